"""Shards of a build: what is kept of them, how many batches are in flight, parts of a manifest."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from tfreid.index import engines, manifest, writer
from tfreid.index.directory import IndexDirectory
from tfreid.index.embedder import Embedder


@pytest.fixture
def directory(tmp_path):
  return str(tmp_path / 'index')


@pytest.fixture
def stopped(directory, files, digest_model):
  """An unfinished build: two shards of four rows, and then a bad file; with all its rows."""
  rows = files(12)
  with open(rows[9].path, 'w') as file:
    file.write('broken')
  with pytest.raises(ValueError, match='cannot be read or decoded'):
    writer.build(directory, rows, digest_model, shard_rows=4, batch_size=2)
  with open(rows[9].path, 'w') as file:
    file.write('mended')
  digest_model.embedded.clear()
  return rows


def held(directory):
  found = engines.open_engine(IndexDirectory(directory))
  assert found.problems() == []
  return {row.id: vector for part, rows in found.parts() for vector, row in zip(part, rows)}


def shard_file(directory):
  return os.path.join(directory, 'pending.jsonl')


def size_of(directory):
  return os.path.getsize(shard_file(directory))


def test_a_finished_shard_writes_its_own_line_only(directory, files, digest_model, monkeypatch):
  written = []
  add, write = IndexDirectory.add_pending, IndexDirectory.write_pending

  def adding(self, key, shard):
    before = open(shard_file(directory), 'rb').read() if written else b''
    add(self, key, shard)
    after = open(shard_file(directory), 'rb').read()
    assert after.startswith(before)
    written.append(len(after) - len(before))

  heads = []
  monkeypatch.setattr(IndexDirectory, 'add_pending', adding)
  monkeypatch.setattr(
    IndexDirectory,
    'write_pending',
    lambda *args, **kwargs: heads.append(1) or write(*args, **kwargs),
  )
  writer.build(directory, files(60), digest_model, shard_rows=2)
  assert (len(written), len(heads)) == (30, 1)
  # A line of the same length for each but the number of bytes in it: not one that grows.
  assert max(written) < 1.1 * min(written)
  assert not {'pending.json', 'pending.jsonl'} & set(os.listdir(directory))


def test_finished_shards_are_taken_up(directory, stopped, digest_model):
  report = writer.build(directory, stopped, digest_model, shard_rows=4)
  assert (report.added, report.resumed) == (12, 8)
  assert len(digest_model.embedded) == 4
  assert list(held(directory)) == [row.id for row in stopped]


@pytest.mark.parametrize('cut', [1, 40])
def test_a_line_that_a_kill_cut_off_costs_its_shard_only(directory, stopped, digest_model, cut):
  os.truncate(shard_file(directory), size_of(directory) - cut)
  report = writer.build(directory, stopped, digest_model, shard_rows=4)
  assert (report.added, report.resumed) == (12, 4)
  assert list(held(directory)) == [row.id for row in stopped]
  assert len(os.listdir(os.path.join(directory, 'segments'))) == 3


def test_after_a_line_that_was_cut_off_the_next_stands_by_itself(
  directory, stopped, digest_model, monkeypatch
):
  os.truncate(shard_file(directory), size_of(directory) - 40)
  with monkeypatch.context() as patched:
    patched.setattr('tfreid.index.embedded.EmbeddedIndex.commit', stop)
    with pytest.raises(KeyboardInterrupt):
      writer.build(directory, stopped, digest_model, shard_rows=4)
  digest_model.embedded.clear()
  report = writer.build(directory, stopped, digest_model, shard_rows=4)
  assert (report.added, report.resumed) == (12, 12)
  assert not digest_model.embedded


def stop(*_, **__):
  raise KeyboardInterrupt


def test_a_damaged_line_before_the_last_is_named(directory, stopped, digest_model):
  contents = bytearray(open(shard_file(directory), 'rb').read())
  contents[0] = ord('?')
  with open(shard_file(directory), 'wb') as file:
    file.write(contents)
  with pytest.raises(ValueError, match="pending.jsonl', line 1, is damaged"):
    writer.build(directory, stopped, digest_model, shard_rows=4)


def test_shards_of_another_model_are_forgotten(directory, stopped, digest_model):
  digest_model.fingerprint = 'another'
  with pytest.raises(ValueError, match='None of the files'):
    os.rename(stopped[0].path, f'{stopped[0].path}.away')
    writer.build(directory, stopped[:1], digest_model, skip_corrupt=True)
  pending = IndexDirectory(directory).read_pending()
  assert pending['fingerprint'] == 'another'
  assert [shard['segment'] for shard in pending['shards'].values()] == [None]


def test_an_unfinished_build_of_the_version_before_is_taken_up(directory, stopped, digest_model):
  """It kept the shards in pending.json itself."""
  folder = IndexDirectory(directory)
  pending = folder.read_pending()
  assert len(pending['shards']) == 2
  with folder.lock():
    folder.write_pending(pending, keep_shards=False)
  assert not os.path.exists(shard_file(directory))
  report = writer.build(directory, stopped, digest_model, shard_rows=4)
  assert (report.added, report.resumed) == (12, 8)


def test_what_is_finished_is_told_shard_by_shard(directory, stopped, digest_model):
  told = []
  options = {'shard_rows': 4, 'finished': lambda *numbers: told.append(numbers)}
  writer.build(directory, stopped, digest_model, **options)
  assert told == [(4, 12, 4), (8, 12, 8), (12, 12, 8)]


@pytest.mark.parametrize('in_flight', [1, 2, 4])
def test_as_many_batches_are_in_flight_as_asked_and_the_order_stays(
  directory, files, digest_model, in_flight
):
  rows = files(30)
  whole, lock, at_once, most = digest_model.embed_images, threading.Lock(), [0], [0]
  full = threading.Event()

  def embed_images(contents):
    with lock:
      at_once[0] += 1
      most[0] = max(most[0], at_once[0])
      if most[0] >= in_flight:
        full.set()
    # Until the others are there; without them this would wait until it fails.
    assert full.wait(60)
    try:
      return whole(contents)
    finally:
      with lock:
        at_once[0] -= 1

  digest_model.embed_images = embed_images
  writer.build(directory, rows, digest_model, batch_size=3, in_flight=in_flight)
  assert most[0] == in_flight
  digest_model.embed_images = whole
  found = held(directory)
  assert list(found) == [row.id for row in rows]
  for row in rows:
    np.testing.assert_array_equal(found[row.id], whole([open(row.path, 'rb').read()])[0])


def test_a_failure_in_one_batch_ends_the_build_and_its_threads(directory, files, digest_model):
  digest_model.embed_images = lambda contents: 1 / 0
  before = threading.active_count()
  with pytest.raises(ZeroDivisionError):
    writer.build(directory, files(40), digest_model, batch_size=2, in_flight=3)
  assert threading.active_count() == before


def test_the_concepts_are_the_same_bit_by_bit_for_any_number_in_flight(tmp_path, models, crops):
  model = Embedder(str(models / 'people'))
  assert 2 <= model.in_flight <= 4
  rows = manifest.read(str(crops))
  for number in (1, model.in_flight, 4):
    writer.build(str(tmp_path / str(number)), rows, model, batch_size=4, in_flight=number)
  alone = held(str(tmp_path / '1'))
  for number in (model.in_flight, 4):
    found = held(str(tmp_path / str(number)))
    assert list(found) == list(alone)
    np.testing.assert_array_equal(np.stack([*found.values()]), np.stack([*alone.values()]))


def test_a_part_stays_a_part_when_crops_are_added(tmp_path, files, digest_model):
  """In the whole they stand behind the others of their part."""
  rows = files(8)
  names = [str(tmp_path / name) for name in ('first', 'second', 'all')]
  writer.build(names[0], rows[:4], digest_model, shard=(1, 2))
  writer.build(names[1], rows[4:], digest_model, shard=(2, 2))
  more = files(2, start=20)
  writer.add(names[0], more, digest_model)
  assert writer.merge(names[2], [names[1], names[0]]) == 10
  assert list(held(names[2])) == [row.id for row in [*rows[:4], *more, *rows[4:]]]


def test_parts_of_a_manifest_join_to_the_whole_and_doubled_ids_are_found(
  tmp_path, files, digest_model
):
  rows = files(10)
  lines = [f'{row.path},{row.id}' for row in rows]
  source = tmp_path / 'm.csv'

  def parts(name):
    source.write_text('\n'.join(['path,id', *lines]))
    made = []
    for i in (1, 2, 3):
      made.append(str(tmp_path / f'{name}{i}'))
      part = manifest.read(str(source), part=(i, 3))
      writer.build(made[-1], part, digest_model, shard=(i, 3))
    return made

  assert writer.merge(str(tmp_path / 'all'), parts('part')) == 10
  assert list(held(str(tmp_path / 'all'))) == [row.id for row in rows]
  lines[9] = f'{rows[9].path},id 0'
  with pytest.raises(ValueError, match="The id 'id 0' occurs 2 times"):
    writer.merge(str(tmp_path / 'other'), parts('doubled'))
