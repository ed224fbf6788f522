from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tfreid import storage
from tfreid.index import embedded, engines, segment, writer
from tfreid.index.directory import IndexDirectory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory(tmp_path):
  return str(tmp_path / 'index')


def opened(directory):
  return engines.open_engine(IndexDirectory(directory))


def held(directory):
  """Id to concept of what an index holds, in its order."""
  with contextlib.closing(opened(directory)) as found:
    assert found.problems() == []
    return {row.id: vector for part, rows in found.parts() for vector, row in zip(part, rows)}


def wanted(rows, model):
  return {row.id: model.embed_images([Path(row.path).read_bytes()])[0] for row in rows}


def assert_holds(directory, rows, model):
  actual, expected = held(directory), wanted(rows, model)
  assert list(actual) == list(expected)
  for name, vector in expected.items():
    np.testing.assert_array_equal(actual[name], vector)


def test_a_built_index_holds_each_crop_in_order(directory, files, digest_model, place):
  rows = files(25)
  done = []
  report = writer.build(
    directory,
    rows,
    digest_model,
    shard_rows=10,
    batch_size=4,
    progress=lambda *n: done.append(n),
    **place,
  )
  assert report == writer.Report(added=25)
  assert done[0] == (4, 25)
  assert done[-1] == (25, 25)
  assert_holds(directory, rows, digest_model)
  found = opened(directory).rows(['id 4'])['id 4']
  contents = Path(rows[4].path).read_bytes()
  assert found == dataclasses.replace(rows[4], digest=segment.digest(contents))


def test_a_build_goes_on_where_it_was_stopped(directory, files, digest_model, place):
  rows = files(30)
  whole = digest_model.embed_images

  def stops(contents):
    if len(digest_model.embedded) >= 16:  # two shards; batches of one are embedded together
      raise KeyboardInterrupt
    return whole(contents)

  digest_model.embed_images = stops
  with pytest.raises(KeyboardInterrupt):
    writer.build(directory, rows, digest_model, shard_rows=8, batch_size=4, **place)
  with pytest.raises(FileNotFoundError, match='is not finished'):
    opened(directory)
  digest_model.embedded.clear()
  digest_model.embed_images = whole
  # One file of a finished shard changed in between.
  Path(rows[3].path).write_text('another crop altogether')
  report = writer.build(directory, rows, digest_model, shard_rows=8, batch_size=4, **place)
  assert (report.added, report.resumed) == (30, 8)
  assert len(digest_model.embedded) == 22
  assert_holds(directory, rows, digest_model)
  assert not os.path.exists(os.path.join(directory, 'pending.json'))


def test_what_another_model_embedded_is_not_taken_up(directory, files, digest_model):
  rows = files(6)
  Path(rows[5].path).write_text('broken')
  with pytest.raises(ValueError, match='cannot be read or decoded'):
    writer.build(directory, rows, digest_model, shard_rows=2)
  digest_model.fingerprint = 'another'
  report = writer.build(directory, rows[:5], digest_model, shard_rows=2)
  assert (report.added, report.resumed) == (5, 0)


def test_an_index_is_replaced_only_when_asked_and_in_one_moment(
  directory, files, digest_model, place
):
  rows, new = files(10), files(5, start=50)
  writer.build(directory, rows, digest_model, **place)
  with pytest.raises(FileExistsError, match='holds an index already'):
    writer.build(directory, new, digest_model, **place)
  reader = opened(directory)
  Path(new[4].path).write_text('broken')
  with pytest.raises(ValueError, match='broken|decoded'):
    writer.build(directory, new, digest_model, overwrite=True, shard_rows=2, **place)
  assert_holds(directory, rows, digest_model)
  Path(new[4].path).write_text('mended')
  report = writer.build(directory, new, digest_model, overwrite=True, shard_rows=2, **place)
  assert (report.added, report.resumed) == (5, 4)
  assert_holds(directory, new, digest_model)
  # Who had opened the old one goes on: with its files, which outlast it, or, where its collection
  # was dropped, with the new one.
  left = new if place['engine_name'] == 'milvus' else rows
  assert list(reader.rows([rows[3].id, new[3].id])) == [left[3].id]
  query = wanted(left, digest_model)[left[3].id][None]
  assert [match.row.id for match in reader.search(query, top_k=1)[0]] == [left[3].id]
  reader.close()


def test_adding_asks_what_to_do_with_known_ids(directory, files, digest_model, place):
  rows = files(8)
  writer.build(directory, rows, digest_model, **place)
  more = files(10, start=4, text='later')
  with pytest.raises(ValueError, match="has 4 of these ids already, 'id 4' first"):
    writer.add(directory, more, digest_model)
  before = held(directory)
  report = writer.add(directory, more, digest_model, existing='skip')
  assert (report.added, report.skipped) == (6, 4)
  after = held(directory)
  assert list(after) == [f'id {i}' for i in range(14)]
  np.testing.assert_array_equal(after['id 5'], before['id 5'])
  report = writer.add(directory, more, digest_model, existing='replace')
  assert (report.added, report.skipped) == (10, 0)
  assert_holds(directory, [*rows[:4], *more], digest_model)


def test_corrupt_and_missing_files_are_named_counted_and_left_out(
  directory, files, digest_model, place
):
  rows = files(20)
  for i in (3, 4, 11):
    Path(rows[i].path).write_text(f'broken {i}')
  os.remove(rows[17].path)
  with pytest.raises(ValueError, match='3 files cannot be read or decoded') as error:
    writer.build(directory, rows, digest_model, shard_rows=12, **place)
  assert rows[11].path in str(error.value)
  assert 'Not an image.' in str(error.value)
  assert '--skip_corrupt' in str(error.value)
  report = writer.build(directory, rows, digest_model, shard_rows=12, skip_corrupt=True, **place)
  assert report.added == 16
  assert [path for path, _ in report.corrupt] == [rows[i].path for i in (3, 4, 11, 17)]
  assert report.corrupt[-1][1] == 'No such file or directory'
  assert_holds(
    directory, [row for i, row in enumerate(rows) if i not in (3, 4, 11, 17)], digest_model
  )
  with pytest.raises(ValueError, match='None of the files can be read'):
    writer.build(f'{directory}2', [rows[3]], digest_model, skip_corrupt=True, **place)


def test_another_model_is_refused(directory, files, digest_model, place):
  writer.build(directory, files(3), digest_model, **place)
  digest_model.fingerprint = 'retrained'
  with pytest.raises(ValueError, match='built with another model .digest.* .retrained.'):
    writer.add(directory, files(3, start=3), digest_model)


def test_removing_is_all_or_nothing(directory, files, digest_model, place):
  rows = files(10)
  writer.build(directory, rows, digest_model, **place)
  with pytest.raises(ValueError, match="no crop 'id 99' .1 of 2 ids"):
    writer.remove(directory, ['id 1', 'id 99'])
  assert len(held(directory)) == 10
  assert writer.remove(directory, ['id 1', 'id 99', 'id 1'], missing_ok=True) == 1
  assert writer.remove(directory, ['id 0', 'id 9']) == 2
  assert_holds(directory, rows[2:9], digest_model)


def test_compacting_leaves_nothing_of_what_was_removed(directory, files, digest_model):
  rows = files(10)
  writer.build(directory, rows, digest_model)
  secret = wanted(rows, digest_model)['id 4'].tobytes()

  def on_disk():
    contents = [path.read_bytes() for path in Path(directory).rglob('*') if path.is_file()]
    return any(secret in content or b'"id 4"' in content for content in contents)

  writer.remove(directory, ['id 4'])
  assert on_disk()
  writer.compact(directory)
  assert not on_disk()
  assert_holds(directory, [*rows[:4], *rows[5:]], digest_model)


def test_many_small_commits_end_up_in_few_segments(directory, files, digest_model):
  rows = files(embedded.MAX_SEGMENTS + 3)
  writer.build(directory, rows[:1], digest_model)
  for row in rows[1:]:
    writer.add(directory, [row], digest_model)
  assert len(IndexDirectory(directory).read()['segments']) <= embedded.MAX_SEGMENTS
  assert_holds(directory, rows, digest_model)
  assert len(os.listdir(os.path.join(directory, 'segments'))) == len(
    IndexDirectory(directory).read()['segments']
  )


def test_parts_from_several_machines_join_in_the_order_of_the_manifest(
  tmp_path, files, digest_model
):
  rows = files(11)
  parts = []
  for i in (3, 1, 2):
    parts.append(str(tmp_path / f'part{i}'))
    part = rows[(i - 1) * 11 // 3 : i * 11 // 3]
    writer.build(parts[-1], part, digest_model, shard=(i, 3))
  with pytest.raises(ValueError, match='not all the parts of one manifest: 3/3, 1/3'):
    writer.merge(str(tmp_path / 'all'), parts[:2])
  with pytest.raises(ValueError, match='not all the parts'):
    writer.merge(str(tmp_path / 'all'), [*parts[:2], parts[0]])
  assert writer.merge(str(tmp_path / 'all'), parts) == 11
  assert_holds(str(tmp_path / 'all'), rows, digest_model)
  # Of one's own: what is removed or rebuilt in a part does not touch the whole.
  writer.remove(parts[0], ['id 10'])
  writer.compact(parts[0])
  assert_holds(str(tmp_path / 'all'), rows, digest_model)


def test_joining_refuses_other_models_and_doubled_ids(tmp_path, files, digest_model):
  names = [str(tmp_path / name) for name in 'abcd']
  writer.build(names[0], files(5), digest_model)
  writer.build(names[1], files(5, start=4), digest_model)
  with pytest.raises(ValueError, match="The id 'id 4' occurs 2 times"):
    writer.merge(names[3], names[:2])
  writer.remove(names[1], ['id 4'])
  assert writer.merge(names[3], names[:2]) == 9
  digest_model.fingerprint = 'another'
  writer.build(names[2], files(5, start=20), digest_model)
  with pytest.raises(ValueError, match='different models'):
    writer.merge(f'{names[3]}2', names[:3])


def test_a_second_writer_is_told_to_wait(directory, files, digest_model):
  rows = files(4)
  writer.build(directory, rows, digest_model)
  with IndexDirectory(directory).lock():
    with pytest.raises(BlockingIOError, match='Another process writes to the index'):
      writer.remove(directory, ['id 1'])
  assert writer.remove(directory, ['id 1']) == 1


def test_a_failed_write_leaves_the_old_index_and_no_rubbish(
  directory, files, digest_model, monkeypatch
):
  rows = files(6)
  writer.build(directory, rows, digest_model)
  before = sorted(path.name for path in Path(directory).rglob('*'))

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  for name in ('fsync', 'replace'):
    with monkeypatch.context() as patched:
      patched.setattr(os, name, full)
      with pytest.raises(OSError, match='No space left'):
        writer.add(directory, files(3, start=10), digest_model)
    assert_holds(directory, rows, digest_model)
  writer.remove(directory, ['id 0'])
  writer.compact(directory)
  after = sorted(path.name for path in Path(directory).rglob('*'))
  assert len(after) == len(before)
  assert_holds(directory, rows[1:], digest_model)


def test_concepts_that_are_no_numbers_are_refused(directory, files, digest_model):
  whole = digest_model.embed_images
  digest_model.embed_images = lambda contents: whole(contents) * np.float32(np.nan)
  with pytest.raises(ValueError, match="The concept of 'id 0' has length nan"):
    writer.build(directory, files(3), digest_model)


def test_verifying_finds_damage(directory, files, digest_model):
  writer.build(directory, files(6), digest_model)
  (entry,) = IndexDirectory(directory).read()['segments']
  path = Path(directory, 'segments', entry['name'], 'embeddings.npy')
  whole = path.read_bytes()
  path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  with pytest.raises(ValueError, match='is damaged: .* checksum differs'):
    opened(directory)
  (problem,) = engines.open_engine(IndexDirectory(directory), check=False).problems()
  assert str(path) in problem
  assert 'checksum differs' in problem
  path.write_bytes(whole[:-8])
  with pytest.raises(ValueError, match='is damaged'):
    opened(directory)


def test_unreadable_states_are_refused(directory, files, digest_model):
  with pytest.raises(FileNotFoundError, match='holds no index .found: nothing'):
    opened(directory)
  writer.build(directory, files(2), digest_model)
  path = Path(directory, 'index.json')
  state = json.loads(path.read_text())
  storage.write_json(path, {**state, 'format': 99})
  with pytest.raises(ValueError, match='is an index of format 99'):
    opened(directory)
  path.write_text('{')
  with pytest.raises(ValueError, match='is damaged'):
    opened(directory)


def test_writing_needs_no_tensorflow(directory, files, digest_model):
  writer.build(directory, files(2), digest_model)
  code = (
    'import sys; from tfreid.index import writer; '
    f'writer.remove({directory!r}, ["id 0"]); sys.exit("tensorflow" in sys.modules)'
  )
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == 0
  assert list(held(directory)) == ['id 1']


def test_writers_that_are_killed_lose_nothing(tmp_path):
  """A few kills; tools/crash_index.py makes as many as one likes."""
  done = subprocess.run(
    [sys.executable, ROOT / 'tools' / 'crash_index.py', '--kills=4', '--longest=0.3'],
    capture_output=True,
    text=True,
    env={**os.environ, 'TMPDIR': str(tmp_path)},
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert '4 kills: nothing committed was lost' in done.stdout
