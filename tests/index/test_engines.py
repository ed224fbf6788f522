"""One suite for all engines: the same answers as a plain sort, whatever holds the crops."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tfreid.index import engines, filters, milvus, segment
from tfreid.index.directory import IndexDirectory
from tfreid.index.segment import Row

N, E = 240, 16


def gallery(seed=0, count=N):
  rng = np.random.default_rng(seed)
  concepts = rng.standard_normal((count, E)).astype(np.float32)
  concepts /= np.linalg.norm(concepts, axis=1, keepdims=True)
  # Ties, within and across what is searched together.
  concepts[count // 2 + 5] = concepts[3]
  concepts[8] = concepts[7]
  rows = []
  for i in range(count):
    fields = {}
    if i % 4:
      fields['camera'] = i % 5
    if i % 3:
      fields['time'] = f'2024-{i % 12 + 1:02d}-01'
    if i % 7 == 0:
      fields['indoor'] = i % 2 == 0
    if i % 5 == 0:
      fields['mixed'] = i if i % 2 else f't{i}'
    attributes = {'color': ['red', 'blue', 'red+blue', 'none'][i % 4]} if i % 6 else {}
    rows.append(Row(f'crop "{i}" \\ é', f'/data/{i}.png', fields, attributes))
  return concepts, rows


def queries(concepts):
  rng = np.random.default_rng(1)
  return np.concatenate([concepts[[3, 7]], rng.standard_normal((3, E))]).astype(np.float32)


def expected(concepts, rows, query, top_k, keep=lambda row: True):
  """By a full sort in float64, rounded so that equal rows are equal."""
  scores = concepts.astype(np.float64) @ query.astype(np.float64)
  order = np.lexsort((np.arange(len(rows)), -np.round(scores, 9)))
  return [(rows[i].id, scores[i]) for i in order if keep(rows[i])][:top_k]


def assert_matches(found, wanted):
  assert [match.row.id for match in found] == [name for name, _ in wanted]
  np.testing.assert_allclose([match.score for match in found], [s for _, s in wanted], atol=1e-6)


def test_the_ranking_is_that_of_a_full_sort_with_ties_in_order_of_adding(any_engine):
  concepts, rows = gallery()
  found = any_engine(concepts, rows)
  assert found.size == N
  wanted = queries(concepts)
  for query, matches in zip(wanted, found.search(wanted, top_k=25)):
    assert_matches(matches, expected(concepts, rows, query, 25))
  first = found.search(concepts[[3]], top_k=2)[0]
  assert [match.row for match in first] == [rows[3], rows[N // 2 + 5]]
  assert first[0].score == first[1].score


CONDITIONS = {
  'camera in [1, 2] and time >= "2024-06-01"': lambda f: (
    f.get('camera') in (1, 2) and f.get('time', '') >= '2024-06-01'
  ),
  'camera != 1': lambda f: f.get('camera', 1) != 1,
  'not (camera == 1 or time < "2024-03")': lambda f: (
    f.get('camera', 1) != 1 and f.get('time', '') >= '2024-03'
  ),
  'camera is None': lambda f: 'camera' not in f,
  'camera is not None and time is None': lambda f: 'camera' in f and 'time' not in f,
  'camera not in [0, 3]': lambda f: f.get('camera', 0) not in (0, 3),
  '0.5 < camera < 2.5': lambda f: f.get('camera') in (1, 2),
  'camera == 2.0': lambda f: f.get('camera') == 2,
  'indoor == True': lambda f: f.get('indoor') is True,
  'indoor != True': lambda f: f.get('indoor') is False,
  'mixed in [15, "t20"]': lambda f: f.get('mixed') in (15, 't20'),
  'mixed != "t20"': lambda f: f.get('mixed', 't20') != 't20',
  'mixed not in ["t20", 15]': lambda f: f.get('mixed', 15) not in (15, 't20'),
  'mixed > 100': lambda f: isinstance(f.get('mixed'), int) and f['mixed'] > 100,
  'color == "red+blue"': lambda f: f.get('color') == 'red+blue',
}


def test_filters_choose_the_same_rows_in_all_engines(any_engine):
  concepts, rows = gallery()
  found = any_engine(concepts, rows)
  query = queries(concepts)[[4]]
  for text, keep in CONDITIONS.items():
    where = filters.parse(text)
    wanted = expected(
      concepts, rows, query[0], 30, lambda row, keep=keep: keep({**row.fields, **row.attributes})
    )
    assert 0 < len(wanted), text
    assert_matches(found.search(query, top_k=30, where=where)[0], wanted)


def test_must_and_must_not(any_engine):
  concepts, rows = gallery()
  found = any_engine(concepts, rows)
  query = queries(concepts)[[2]]

  def on(row):
    return row.attributes['color'].split('+') if row.attributes else None

  cases = [
    (({'color': 'red'}, None), lambda row: bool(on(row)) and 'red' in on(row)),
    (({'color': '!red'}, None), lambda row: bool(on(row)) and 'red' not in on(row)),
    ((None, {'color': 'red'}), lambda row: not on(row) or 'red' not in on(row)),
    (({'color': 'red'}, {'color': 'blue'}), lambda row: on(row) == ['red']),
  ]
  for asked, keep in cases:
    where = filters.required(*asked)
    assert_matches(
      found.search(query, top_k=40, where=where)[0], expected(concepts, rows, query[0], 40, keep)
    )


def test_excluded_ids_and_low_scores_are_not_answered(any_engine):
  concepts, rows = gallery()
  found = any_engine(concepts, rows)
  query = queries(concepts)[[2]]
  best = expected(concepts, rows, query[0], 20)
  names = [best[0][0], best[5][0], 'nobody']
  assert_matches(
    found.search(query, top_k=10, exclude=names)[0],
    [pair for pair in best if pair[0] not in names][:10],
  )
  cut = next(i for i in range(5, 20) if best[i - 1][1] - best[i][1] > 1e-3)
  threshold = (best[cut - 1][1] + best[cut][1]) / 2
  assert_matches(found.search(query, top_k=20, min_score=threshold)[0], best[:cut])
  assert found.search(query, top_k=5, min_score=1e9) == [[]]


def test_fewer_crops_than_asked_for(any_engine):
  concepts, rows = gallery()
  found = any_engine(concepts, rows)
  query = queries(concepts)[[0]]
  assert len(found.search(query, top_k=1000)[0]) == N
  assert found.search(query[:0], top_k=3) == []
  where = filters.parse('mixed == "t20"')
  assert [m.row.id for m in found.search(query, top_k=9, where=where)[0]] == [rows[20].id]


def test_removed_and_replaced_crops(any_engine):
  concepts, rows = gallery()
  found = any_engine(concepts, rows)
  gone = {rows[i].id for i in (0, 3, 100, N - 1)}
  any_engine.commit(found, concepts[:0], [], remove=gone)
  assert found.size == N - 4
  query = concepts[[3]]
  wanted = expected(concepts, rows, query[0], 20, lambda row: row.id not in gone)
  assert_matches(found.search(query, top_k=20)[0], wanted)
  assert found.rows([rows[0].id, rows[1].id]) == {rows[1].id: rows[1]}
  # Back with another concept: it counts as added now, and nothing is left of before.
  any_engine.commit(found, -concepts[[1, 0]], [rows[1], rows[0]], remove=[rows[1].id])
  assert found.size == N - 3
  np.testing.assert_array_equal(found.concepts([rows[0].id, rows[1].id]), -concepts[[0, 1]])
  order = [row.id for _, part in found.parts() for row in part]
  kept = [row.id for i, row in enumerate(rows) if row.id not in gone and i != 1]
  assert order == [*kept, rows[1].id, rows[0].id]
  assert found.problems() == []


def test_a_second_reader_sees_a_commit_after_refreshing(any_engine):
  concepts, rows = gallery()
  found = any_engine(concepts[:100], rows[:100])
  with contextlib.closing(engines.open_engine(IndexDirectory(found.folder.directory))) as reader:
    any_engine.commit(found, concepts[100:], rows[100:], remove=[rows[5].id])
    assert reader.size == 100
    seen = [match.row.id for match in reader.search(concepts[[5]], top_k=N)[0]]
    # Nothing of what was added; what was removed is gone from Milvus at once.
    kept = {row.id for i, row in enumerate(rows[:100]) if i != 5 or any_engine.engine != 'milvus'}
    assert set(seen) == kept
    assert reader.refresh()
    assert not reader.refresh()
    assert reader.size == N - 1
    query = concepts[[5]]
    wanted = expected(concepts, rows, query[0], 20, lambda row: row.id != rows[5].id)
    assert_matches(reader.search(query, top_k=20)[0], wanted)


def test_a_replaced_index_holds_only_what_is_new(any_engine):
  concepts, rows = gallery()
  found = any_engine(concepts, rows)
  any_engine.commit(found, concepts[:5], rows[:5], replace=True)
  assert found.size == 5
  assert [row for _, part in found.parts() for row in part] == rows[:5]
  assert len(found.search(concepts[:1], top_k=50)[0]) == 5


def test_a_reader_of_a_replaced_index_answers_from_one_of_the_two(any_engine):
  concepts, rows = gallery()
  found = any_engine(concepts[:50], rows[:50])
  with contextlib.closing(engines.open_engine(IndexDirectory(found.folder.directory))) as reader:
    parts = reader.parts()
    any_engine.commit(found, concepts[50:60], rows[50:60], replace=True)
    # The files of an embedded index outlast it as long as they are open; a collection is dropped,
    # and the reader goes on with the next one.
    now = slice(50, 60) if any_engine.engine == 'milvus' else slice(0, 50)
    if any_engine.engine == 'milvus':
      with pytest.raises(OSError, match='was replaced while it was read. Read it again.'):
        next(parts)
    wanted = expected(concepts[now], rows[now], concepts[55], 5)
    assert_matches(reader.search(concepts[[55]], top_k=5)[0], wanted)
    names = [row.id for row in rows[now]]
    assert set(reader.rows(names)) == set(names)
    reader.refresh()
    assert reader.size == 10
    np.testing.assert_array_equal(reader.concepts([rows[55].id]), concepts[[55]])


def test_matches_come_with_their_concepts(any_engine):
  concepts, rows = gallery()
  found = any_engine(concepts, rows)
  place = {row.id: i for i, row in enumerate(rows)}
  for matches in found.search(queries(concepts), top_k=40):
    assert len(matches) == 40
    for match in matches:
      np.testing.assert_array_equal(match.concept, concepts[place[match.row.id]])


def test_bad_queries_are_refused(any_engine):
  concepts, rows = gallery(count=20)
  found = any_engine(concepts, rows)
  query = concepts[:1]
  for bad, said in [
    (np.zeros((1, E + 1)), 'matrix'),
    (np.zeros(E), 'matrix'),
    (query * np.nan, 'NaN'),
    (query * np.inf, 'NaN or infinity'),
  ]:
    with pytest.raises(ValueError, match=said):
      found.search(bad, top_k=3)
  with pytest.raises(ValueError, match='at least 1'):
    found.search(query, top_k=0)
  with pytest.raises(ValueError, match="no field|No crop of the gallery has a field 'camra'"):
    found.search(query, top_k=3, where=filters.parse('camra == 1'))
  with pytest.raises(KeyError, match='nobody'):
    found.concepts(['nobody'])


def test_an_empty_index_answers_nothing(any_engine):
  concepts, rows = gallery(count=20)
  found = any_engine(concepts, rows)
  any_engine.commit(found, concepts[:0], [], remove=[row.id for row in rows])
  assert found.size == 0
  assert found.search(concepts[:2], top_k=3) == [[], []]
  assert found.search(concepts[:1], top_k=3, where=filters.parse('camera == 1')) == [[]]
  assert found.problems() == []


def test_engines_and_the_kernel_of_the_exported_model_give_the_same_bits(any_engine):
  """Also where thousands of rows lie closer together than rounding."""
  import tensorflow as tf

  from tfreid.serving.search import ExactSearch

  rng = np.random.default_rng(3)
  concepts = (1 + 1e-7 * rng.standard_normal((3000, E))).astype(np.float32)
  rows = [Row(str(i)) for i in range(len(concepts))]
  found = any_engine(concepts, rows)
  wanted = (1 + rng.standard_normal((2, E))).astype(np.float32)
  scores, positions = ExactSearch(concepts)(tf.constant(wanted), k=50)
  for matches, score, position in zip(found.search(wanted, top_k=50), scores, positions):
    assert [match.score for match in matches] == score.numpy().tolist()
    assert [match.row.id for match in matches] == [str(i) for i in position.numpy()]


def test_crops_of_a_commit_that_did_not_end_are_not_seen_and_removed_later(
  tmp_path, milvus_server, monkeypatch
):
  concepts, rows = gallery(count=40)
  folder = IndexDirectory(str(tmp_path / 'index'))
  about = {'fingerprint': 'f', 'embedding_size': E, 'path': '(none)'}
  found = engines.open_engine(folder, engines.new_state(about, engine='milvus', uri=milvus_server))

  def entry(start, stop):
    part = (concepts[start:stop], rows[start:stop])
    return segment.write(folder.segments, [part], size=stop - start, width=E)

  with folder.lock():
    found.commit([entry(0, 20)])
    # As if the process had died before index.json was replaced: nobody cleans up.
    with monkeypatch.context() as patched:
      patched.setattr(folder, 'write', lambda state: (_ for _ in ()).throw(OSError('disk full')))
      patched.setattr(found, 'recover', lambda: None)
      with pytest.raises(OSError, match='disk full'):
        found.commit([entry(20, 30)], remove=[rows[0].id])
    assert found.size == 20
    matches = found.search(concepts[[25]], top_k=40)[0]
    assert {match.row.id for match in matches} == {row.id for row in rows[:20]}
    found.commit([entry(30, 40)])
  assert {row.id for _, part in found.parts() for row in part} == {
    row.id for row in rows[:20] + rows[30:]
  }
  assert found.problems() == []
  found.close()


def test_a_commit_that_fails_leaves_nothing_in_milvus(tmp_path, milvus_server, monkeypatch):
  from pymilvus import MilvusClient

  concepts, rows = gallery(count=40)
  folder = IndexDirectory(str(tmp_path / 'index'))
  about = {'fingerprint': 'f', 'embedding_size': E, 'path': '(none)'}
  state = engines.new_state(about, engine='milvus', uri=milvus_server)
  client = MilvusClient(milvus_server)
  with contextlib.closing(engines.open_engine(folder, state)) as found, folder.lock():

    def collections():
      return [name for name in client.list_collections() if state['engine']['prefix'] in name]

    def count():
      return len(client.query(collections()[0], filter='position >= 0', limit=1000))

    def commit(start, stop, **options):
      part = (concepts[start:stop], rows[start:stop])
      entry = segment.write(folder.segments, [part], size=stop - start, width=E)
      found.commit([entry], **options)

    def failing(write):
      with monkeypatch.context() as patched:
        patched.setattr(folder, 'write', lambda state: (_ for _ in ()).throw(OSError('disk full')))
        with pytest.raises(OSError, match='disk full'):
          write()

    failing(lambda: commit(0, 20))
    assert collections() == []
    commit(0, 20)
    before = collections()
    failing(lambda: commit(20, 30, remove=[rows[0].id]))
    failing(lambda: commit(20, 30, replace=True))
    assert (collections(), count()) == (before, 20)
    # index.json is replaced, and what comes after that fails.
    with monkeypatch.context() as patched:
      patched.setattr(found, '_loaded', lambda state: (_ for _ in ()).throw(OSError('later')))
      with pytest.raises(OSError, match='later'):
        commit(20, 30, remove=[rows[0].id], replace=True)
    found.refresh()
    assert (found.size, found.problems()) == (10, [])
    found.recover()
    assert len(collections()) == 1 and collections() != before
    found.commit([], replace=True)
  milvus.drop(folder, folder.read())
  # Connections of a process to an address end together.
  client = MilvusClient(milvus_server)
  assert collections() == []
  client.close()


def test_many_removed_crops_are_hidden_before_they_are_deleted(
  tmp_path, milvus_server, monkeypatch
):
  """Whatever their number, no request and no index.json grows with it."""
  monkeypatch.setattr(milvus, '_LISTED', 10)
  concepts, rows = gallery()
  folder = IndexDirectory(str(tmp_path / 'index'))
  about = {'fingerprint': 'f', 'embedding_size': E, 'path': '(none)'}
  state = engines.new_state(about, engine='milvus', uri=milvus_server)
  with contextlib.closing(engines.open_engine(folder, state)) as found, folder.lock():
    found.commit([segment.write(folder.segments, [(concepts, rows)], size=N, width=E)])
    query = queries(concepts)[0]
    # The best 100 of the query, which come first in each request.
    gone = {name for name, _ in expected(concepts, rows, query, 100)}
    with monkeypatch.context() as patched:
      # As if the process had died after index.json was replaced.
      patched.setattr(found, 'recover', lambda: None)
      found.commit([], remove=gone)
    assert len(json.dumps(folder.read())) < 2000
    wanted = expected(concepts, rows, query, 30, lambda row: row.id not in gone)
    with contextlib.closing(engines.open_engine(folder)) as reader:
      for opened in (found, reader):
        assert opened.size == N - 100
        assert_matches(opened.search(query[None], top_k=30)[0], wanted)
        assert set(opened.rows([row.id for row in rows])) == {row.id for row in rows} - gone
        assert sum(len(part) for _, part in opened.parts()) == N - 100
      found.recover()
      # Deleted, and nothing left of the list; who had opened it before goes on.
      assert not list(Path(folder.directory).glob('removing-*'))
      assert_matches(reader.search(query[None], top_k=30)[0], wanted)
    assert folder.read()['removing'] == []
    assert found.problems() == []
  milvus.drop(folder, folder.read())


def test_more_equal_crops_than_milvus_answers_at_once(tmp_path, milvus_server, monkeypatch):
  """The proof that nothing was left out goes on in parts of the positions, exactly."""
  monkeypatch.setattr(milvus, '_MAX_RESULTS', 64)
  rng = np.random.default_rng(5)
  concepts = np.tile(rng.standard_normal(E), (900, 1)).astype(np.float32)
  # Some a little better, anywhere; which of the equal ones come first is up to their positions.
  better = np.array([890, 17, 444, 445])
  concepts[better] *= 1 + np.array([[4e-4], [3e-4], [2e-4], [1e-4]], np.float32)
  rows = [Row(str(i), fields={'odd': bool(i % 2)}) for i in range(len(concepts))]
  folder = IndexDirectory(str(tmp_path / 'index'))
  about = {'fingerprint': 'f', 'embedding_size': E, 'path': '(none)'}
  state = engines.new_state(about, engine='milvus', uri=milvus_server)
  with contextlib.closing(engines.open_engine(folder, state)) as found, folder.lock():
    found.commit([segment.write(folder.segments, [(concepts, rows)], size=len(rows), width=E)])
    (matches,) = found.search(concepts[:1], top_k=30)
    rest = [i for i in range(900) if i not in better]
    assert [match.row.id for match in matches] == [str(i) for i in [*better, *rest[:26]]]
    where = filters.parse('odd == True')
    (matches,) = found.search(concepts[:1], top_k=30, where=where, exclude=['1'])
    odd = [i for i in [*better, *rest] if i % 2 and i != 1]
    assert [match.row.id for match in matches] == [str(i) for i in odd[:30]]
    assert matches[0].row == rows[17]
    assert matches[0].concept.tolist() == concepts[17].tolist()
    with pytest.raises(ValueError, match='answers 36 results at most, not 37'):
      found.search(concepts[:1], top_k=37)
  milvus.drop(folder, folder.read())


def test_many_threads_with_more_filters_than_are_remembered_get_their_own_answers(any_engine):
  concepts, rows = gallery()
  found = any_engine(concepts, rows)
  query = queries(concepts)[:1]
  names = [row.id for row in rows]

  def ask(i):
    where = filters.parse(f'camera == {i % 5} and time != "2024-{i % 12 + 1:02d}-01"')
    return [match.row.id for match in found.search(query, top_k=N, where=where)[0]]

  def direct(i):
    wanted = [
      (row.fields.get('camera') == i % 5, row.fields.get('time', '') not in ('', month))
      for row, month in zip(rows, [f'2024-{i % 12 + 1:02d}-01'] * N)
    ]
    return {name for name, (camera, time) in zip(names, wanted) if camera and time}

  interval = sys.getswitchinterval()
  sys.setswitchinterval(1e-5)
  try:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
      answers = list(threads.map(ask, range(240)))
  finally:
    sys.setswitchinterval(interval)
  for i, answer in enumerate(answers):
    assert set(answer) == direct(i)


def test_ids_with_control_characters_are_removed_and_left_out_as_well(any_engine):
  """Of earlier releases, which took them: to Milvus such a text equals nothing."""
  concepts, rows = gallery(count=20)
  odd = ['a\tb', 'line\nfeed', 'nul\x00', 'next\x85line', 'bell\x07']
  for place, name in enumerate(odd):
    rows[2 * place] = Row(name, f'/data/{place}.png', {'camera': 1})
  found = any_engine(concepts, rows)
  assert set(found.rows([*odd, rows[1].id, 'nobody\t'])) == {*odd, rows[1].id}
  np.testing.assert_array_equal(found.concepts(odd[::-1]), concepts[[8, 6, 4, 2, 0]])
  any_engine.commit(found, concepts[:0], [], remove=[odd[0], odd[1], rows[1].id])
  assert (found.size, found.problems()) == (17, [])
  assert set(found.rows(odd)) == set(odd[2:])
  names = [match.row.id for match in found.search(concepts[:1], top_k=30, exclude=odd)[0]]
  assert len(names) == 14 and not set(names) & set(odd)


@pytest.mark.parametrize('count', [0, 1, 3, 40])
def test_ids_are_looked_up_by_their_hashes_alike_for_few_and_for_many(tmp_path, monkeypatch, count):
  # Ids whose hashes are equal: which of them is meant, the lines say.
  monkeypatch.setattr(segment, 'id_hash', lambda name: int(name[3:]) // 2)
  rows = [Row(f'id-{i}') for i in range(60)]
  entry = segment.write(str(tmp_path), [(np.eye(60, 8, dtype=np.float32), rows)], size=60, width=8)
  part = segment.Segment(str(tmp_path), entry)
  part = segment.Segment(str(tmp_path), part.without(np.array([3, 10, 59])))
  hashes = np.arange(count, dtype=np.uint64)
  expected = [i for i in range(60) if i // 2 < count and i not in (3, 10, 59)]
  assert part.near(hashes).tolist() == expected
  assert part.near(hashes[::-1].repeat(2)).tolist() == expected
  assert part.near(hashes).dtype == np.int64
