"""The copy in 8 bits: who makes it, who does without, and that answers do not depend on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tfreid.index
from tfreid import storage
from tfreid.index import engines, segment, writer
from tfreid.index.directory import IndexDirectory
from tfreid.serving import quantized

ROOT = Path(__file__).parent.parent.parent


def copies(directory):
  """For each segment of an index, whether it has a copy, which must be that of its concepts."""
  folder = IndexDirectory(directory)
  found = []
  for entry in folder.read()['segments']:
    part = segment.Segment(folder.segments, entry, content=True)
    found.append(part.copy is not None)
    assert set(segment.COPY) & set(entry['files']) == (set(segment.COPY) if part.copy else set())
    if part.copy:
      for array, expected in zip(part.copy, quantized.quantized(part.concepts)):
        np.testing.assert_array_equal(array, expected)
  return found


def answers(directory, *, resident=False, count=1, **narrowing):
  """Ids and scores of the best for some queries."""
  found = engines.open_engine(IndexDirectory(directory), resident=resident)
  rng = np.random.default_rng(0)
  queries = rng.standard_normal((count, found.width), np.float32)
  results = found.search(queries, top_k=15, **narrowing)
  return [[(match.row.id, match.score) for match in matches] for matches in results]


def strip(directory):
  """Makes of an index one of an earlier release, whose segments have no copy."""
  path = Path(directory, 'index.json')
  state = json.loads(path.read_text())
  for entry in state['segments']:
    for name in segment.COPY:
      del entry['files'][name]
      Path(directory, 'segments', entry['name'], name).unlink()
  state['format'] = 2
  del state['checksum']
  storage.write_json(path, state)


def tool(*arguments):
  return subprocess.run(
    [sys.executable, str(ROOT / 'tools' / 'index.py'), *arguments],
    capture_output=True,
    text=True,
    check=True,
  ).stdout


@pytest.fixture
def built(tmp_path, files, digest_model):
  directory = str(tmp_path / 'index')
  writer.build(directory, files(40), digest_model, shard_rows=15)
  return directory


@pytest.fixture
def scans(monkeypatch):
  """The numbers of queries that the scans of the copy were asked."""
  asked = []
  search = quantized.QuantizedScan.search

  def counted(self, queries, **options):
    asked.append(len(queries))
    return search(self, queries, **options)

  monkeypatch.setattr(quantized.QuantizedScan, 'search', counted)
  return asked


def test_whatever_writes_an_index_keeps_its_copy(tmp_path, built, files, digest_model):
  assert set(copies(built)) == {True}
  writer.add(built, files(8, start=100), digest_model, shard_rows=3)
  assert set(copies(built)) == {True}
  writer.remove(built, [f'id {i}' for i in range(0, 40, 3)])
  assert set(copies(built)) == {True}
  writer.build(str(tmp_path / 'other'), files(5, start=200), digest_model)
  # With removed crops a segment is written anew, and without it is linked.
  writer.merge(str(tmp_path / 'all'), [built, str(tmp_path / 'other')])
  assert set(copies(tmp_path / 'all')) == {True}
  writer.compact(built)
  assert set(copies(built)) == {True}
  with tfreid.index.open(built) as index:
    assert index.info()['quantized'] == 'yes'
    assert index.problems() == []


def test_an_index_of_an_earlier_release_is_searched_without_and_compacted_has_one(
  built, files, digest_model, scans
):
  expected = answers(built)
  many = answers(built, count=19)
  assert scans == [1, 19]
  strip(built)
  assert not any(copies(built))
  assert answers(built) == expected
  assert answers(built, count=19) == many
  assert answers(built, resident=True) == expected
  assert len(scans) == 2
  with pytest.raises(ValueError, match='cannot be searched by a copy .* compact` makes it'):
    answers(built, resident='int8')
  # What is added has one, and is searched with the rest.
  writer.add(built, files(3, start=100), digest_model)
  assert copies(built)[-1] and not copies(built)[0]
  before = answers(built)
  assert len(scans) == 2
  told = tool('verify', f'--index={built}')
  assert 'no problem found.\nSearched by a copy in 8 bits: no; ' in told
  assert f'{len(copies(built)) - 1} of {len(copies(built))} segments' in told
  facts = json.loads(tool('info', f'--index={built}', '--json'))
  assert 'have no copy in 8 bits: `tfreid index compact` makes it' in facts['quantized']
  tool('compact', f'--index={built}')
  assert set(copies(built)) == {True}
  assert 'copy' not in tool('verify', f'--index={built}')
  assert answers(built) == before
  assert answers(built, resident='int8') == before
  assert len(scans) == 4


def test_a_single_segment_without_a_copy_is_compacted_too(built):
  writer.compact(built)
  strip(built)
  assert copies(built) == [False]
  writer.compact(built)
  assert copies(built) == [True]
  (name,) = (entry['name'] for entry in IndexDirectory(built).read()['segments'])
  writer.compact(built)
  assert [entry['name'] for entry in IndexDirectory(built).read()['segments']] == [name]


@pytest.mark.parametrize('count', [1, 19])
def test_without_simsimd_the_answers_are_the_same(built, scans, monkeypatch, count):
  narrowing = {'exclude': ['id 3'], 'min_score': -0.5}
  expected = [
    answers(built, count=count),
    answers(built, count=count, **narrowing),
    answers(built, count=count, resident=True),
    answers(built, count=count, resident='int8', **narrowing),
  ]
  assert scans == 4 * [count]
  monkeypatch.setitem(sys.modules, 'simsimd', None)
  assert [
    answers(built, count=count),
    answers(built, count=count, **narrowing),
    answers(built, count=count, resident=True),
    answers(built, count=count, resident='float32', **narrowing),
  ] == expected
  assert len(scans) == 4
  with pytest.raises(ValueError, match='package simsimd is missing'):
    answers(built, resident='int8')
  with tfreid.index.open(built) as index:
    assert 'pip install simsimd' in index.info()['quantized']


def test_the_words_of_resident_choose_what_is_scanned(built, scans):
  expected = answers(built, resident='float32')
  assert answers(built, resident='bfloat16') == expected
  assert scans == []
  for resident in (False, True, 'int8'):
    assert answers(built, resident=resident) == expected
  assert scans == [1, 1, 1]
  with tfreid.index.open(built, resident='float32') as index:
    assert index.info()['quantized'] == "no; it was opened with resident='float32'"


def test_queries_too_long_for_the_copy_are_answered_all_the_same(built, scans):
  found = engines.open_engine(IndexDirectory(built))
  query = np.random.default_rng(1).standard_normal((1, found.width), np.float32)
  expected = found.search(query, top_k=15)[0]
  assert scans == [1]
  longer = found.search(query * np.float32(2.0**70), top_k=15)[0]
  assert scans == [1]
  assert [match.row.id for match in longer] == [match.row.id for match in expected]
  assert [match.score / 2.0**70 for match in longer] == [match.score for match in expected]


def test_searching_by_the_copy_imports_no_tensorflow(built):
  code = (
    'import sys, numpy as np; from tfreid.index import engines; '
    'from tfreid.index.directory import IndexDirectory; '
    f'found = engines.open_engine(IndexDirectory({built!r}), resident=True); '
    'matches = found.search(np.ones((5, found.width), np.float32), top_k=3); '
    "print([len(some) for some in matches], 'tensorflow' in sys.modules, found._quantized)"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.startswith('[3, 3, 3, 3, 3] False <tfreid.serving.quantized.QuantizedScan')


def test_concepts_of_too_many_dimensions_have_no_copy(tmp_path, monkeypatch):
  monkeypatch.setattr(quantized, 'MAX_WIDTH', 8)
  folder = IndexDirectory(tmp_path / 'index')
  about = {'fingerprint': 'f', 'embedding_size': 9, 'path': '(none)'}
  found = engines.open_engine(folder, engines.new_state(about))
  concepts = np.random.default_rng(2).standard_normal((20, 9)).astype(np.float32)
  rows = [segment.Row(f'id {i}') for i in range(20)]
  with folder.lock():
    found.commit([segment.write(folder.segments, [(concepts, rows)], size=20, width=9)])
    found.compact()
  assert copies(folder.directory) == [False]
  assert found.facts()['quantized'] == 'no; 9 dimensions are too many for it'
  (matches,) = found.search(concepts[:1], top_k=1)
  assert [match.row.id for match in matches] == ['id 0']


def test_a_refresh_reads_only_what_is_new(digest_model, files, tmp_path):
  directory = str(tmp_path / 'index')
  writer.build(directory, files(40), digest_model)
  found = engines.open_engine(IndexDirectory(directory), resident=True)
  query = np.ones((1, found.width), np.float32)
  found.search(query, top_k=5)
  writer.add(directory, files(10, start=40), digest_model)
  writer.remove(directory, ['id 3'])
  newer = found.newer()
  matches = newer.search(query, top_k=60)[0]
  assert sorted(match.row.id for match in matches) == sorted(f'id {i}' for i in range(50) if i != 3)
  before, after = (list(engine._held.values()) for engine in (found, newer))
  assert (len(before), len(after)) == (1, 2)
  for array, same in zip(before[0], after[0]):
    assert same is array
  assert [[match.row.id for match in newer.search(query, top_k=60)[0]]] == [
    [name for name, _ in one] for one in answers_of(directory, query, 60)
  ]


def answers_of(directory, queries, top_k):
  """Ids and scores of an index that is opened for this, without anything in memory."""
  found = engines.open_engine(IndexDirectory(directory))
  return [[(m.row.id, m.score) for m in one] for one in found.search(queries, top_k=top_k)]
