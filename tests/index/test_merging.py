"""Indexes that are joined, and that move from one engine to the other, without embedding again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tfreid.index
from tfreid.index import engines, filters, milvus, segment, writer
from tfreid.index.directory import IndexDirectory

ROOT = Path(__file__).parents[2]
CONDITIONS = (
  '',
  'camera in [1, 2] and time >= "2024-01-10"',
  'camera is None',
  'camera != 1',
  'color == "red+blue"',
)

# Merges until something was written to the new index, and waits there.
CHILD = """
import sys
import time
from tfreid.index import writer, milvus
from tfreid.index.engine import Engine
name, directory, part, engine_name, uri = sys.argv[1:]
where = WHERE
whole = getattr(where, name)
def stops(*arguments):
  whole(*arguments)
  print('here', flush=True)
  time.sleep(600)
setattr(where, name, stops)
writer.merge(directory, [part], engine_name=engine_name, uri=uri)
"""


@pytest.fixture
def rows(files):
  """40 rows with fields, every other one with attributes."""
  colors = ('red', 'blue', 'red+blue', 'none')
  return [
    dataclasses.replace(row, attributes={'color': colors[i // 2 % 4]} if i % 2 else {})
    for i, row in enumerate(files(40))
  ]


@pytest.fixture
def depot(tmp_path, rows, digest_model):
  """Folder of an embedded index of several segments, some crops of which were removed."""
  directory = str(tmp_path / 'depot')
  writer.build(directory, rows, digest_model, shard_rows=12)
  writer.remove(directory, ['id 3', 'id 20', 'id 39'])
  digest_model.embedded.clear()
  return directory


def facts(directory):
  """All that must not change: crops in their order, answers to the bit, and what info says."""
  with tfreid.index.open(directory) as opened:
    found = opened.engine
    assert found.problems() == []
    held = [
      (row, vector.tolist()) for part, names in found.parts() for vector, row in zip(part, names)
    ]
    queries = np.random.default_rng(1).standard_normal((3, found.width)).astype(np.float32)
    answers = []
    for text in CONDITIONS:
      where = filters.parse(text) if text else None
      for matches in found.search(queries, top_k=15, where=where, exclude=['id 5']):
        assert matches
        answers.append([(match.row, match.score) for match in matches])
    info = opened.info()
  kept = ('crops', 'embedding_size', 'fields', 'model')
  return held, answers, {name: info[name] for name in kept}


def collections(uri, prefix='tfreid_'):
  from pymilvus import MilvusClient

  client = MilvusClient(uri)
  names = [name for name in client.list_collections() if name.startswith(prefix)]
  client.close()
  return names


def names_in(directory):
  """What is in a folder and in its folders, without what is in a segment."""
  path = Path(directory)
  return {str(found.relative_to(path)) for found in (*path.glob('*'), *path.glob('segments/*'))}


def test_an_index_moves_to_milvus_and_back(tmp_path, depot, digest_model):
  pytest.importorskip('pymilvus', reason="needs the extra 'milvus'")
  before = facts(depot)
  moved, back = str(tmp_path / 'moved'), str(tmp_path / 'back')
  assert writer.merge(moved, [depot], engine_name='milvus') == 37
  assert facts(moved) == before
  assert IndexDirectory(moved).read()['engine']['name'] == 'milvus'
  # Nothing of it is left in segments.
  assert names_in(moved) == {'index.json', 'lock', 'milvus.db', 'segments'}
  assert writer.merge(back, [moved]) == 37
  assert facts(back) == before
  assert facts(depot) == before
  # Both live on, and nothing was embedded.
  assert digest_model.embedded == []
  for directory in (moved, back):
    assert writer.remove(directory, ['id 7']) == 1
    with tfreid.index.open(directory) as opened:
      assert len(opened) == 36


def test_what_milvus_holds_comes_back_in_segments_of_a_bounded_size(
  tmp_path, depot, milvus_server, monkeypatch
):
  # Requests, parts and segments whose borders do not meet.
  monkeypatch.setattr(milvus, '_BATCH', 9)
  monkeypatch.setattr(segment, 'MAX_ROWS', 14)
  moved, back = str(tmp_path / 'moved'), str(tmp_path / 'back')
  writer.merge(moved, [depot], engine_name='milvus', uri=milvus_server)
  writer.remove(moved, ['id 0', 'id 15'])
  writer.merge(back, [moved])
  assert [entry['rows'] for entry in IndexDirectory(back).read()['segments']] == [14, 14, 7]
  assert facts(back) == facts(moved)


def test_parts_of_either_engine_end_in_either(tmp_path, rows, digest_model, milvus_server, place):
  parts = []
  for i in (2, 1, 3):
    part = rows[(i - 1) * 40 // 3 : i * 40 // 3]
    options = {'engine_name': 'milvus', 'uri': milvus_server} if i == 1 else {}
    parts.append(str(tmp_path / f'part{i}'))
    writer.build(parts[-1], part, digest_model, shard=(i, 3), **options)
  whole, directory = str(tmp_path / 'whole'), str(tmp_path / 'all')
  writer.build(whole, rows, digest_model)
  with pytest.raises(ValueError, match='not all the parts of one manifest: 2/3, 1/3'):
    writer.merge(directory, parts[:2], **place)
  told = []
  assert writer.merge(directory, parts, **place, progress=lambda *step: told.append(step)) == 40
  filled = [('Filling Milvus', n, 40) for n in (13, 26, 40)] if len(told) > 5 else []
  assert told == [
    ('Reading', 0, 40),
    *(('Reading', n, 40) for n in (13, 26, 40)),
    ('Checking', 0, 40),
    *filled,
  ]
  assert bool(filled) == (place.get('engine_name') == 'milvus')
  assert facts(directory) == facts(whole)
  with pytest.raises(FileExistsError, match='holds an index already. Name another folder'):
    writer.merge(directory, parts, **place)
  twice = [str(tmp_path / 'whole'), directory]
  with pytest.raises(ValueError, match="The id 'id 0' occurs 2 times. Remove all but one"):
    writer.merge(str(tmp_path / 'twice'), twice, **place)
  assert names_in(tmp_path / 'twice') == {'lock', 'segments'}


@pytest.mark.parametrize('goal', ['embedded', 'milvus'])
def test_a_merge_that_is_killed_leaves_no_index_and_begins_again(
  tmp_path, depot, milvus_server, goal
):
  source, directory = depot, str(tmp_path / 'all')
  where, name, options = 'Engine', 'stage', {}
  if goal == 'milvus':
    where, name = 'milvus.MilvusIndex', '_insert'
    options = {'engine_name': 'milvus', 'uri': milvus_server}
  else:
    source = str(tmp_path / 'source')
    writer.merge(source, [depot], engine_name='milvus', uri=milvus_server)
  before, known = facts(source), collections(milvus_server)
  child = subprocess.Popen(
    [
      sys.executable,
      '-c',
      CHILD.replace('WHERE', where),
      *(name, directory, source, goal, options.get('uri', '')),
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert child.stdout.readline() == 'here\n'
  child.kill()
  child.wait()
  child.stdout.close()
  # Half of it is there, and it is no index.
  assert len(collections(milvus_server)) == len(known) + (goal == 'milvus')
  assert len(os.listdir(Path(directory, 'segments'))) > 0
  with pytest.raises(FileNotFoundError, match='is not finished|holds no index'):
    tfreid.index.open(directory)
  assert facts(source) == before
  assert writer.merge(directory, [source], **options) == 37
  assert facts(directory) == before
  assert len(collections(milvus_server)) == len(known) + (goal == 'milvus')
  assert not os.path.exists(Path(directory, 'pending.json'))
  segments = {entry['name'] for entry in IndexDirectory(directory).read()['segments']}
  assert set(os.listdir(Path(directory, 'segments'))) == segments


def test_what_a_killed_merge_left_at_another_address_is_dropped_there(
  tmp_path, depot, milvus_server, monkeypatch
):
  directory, known = str(tmp_path / 'all'), collections(milvus_server)

  class KilledError(BaseException):
    pass

  def killed(*_):
    raise KilledError

  with monkeypatch.context() as patched:
    patched.setattr(milvus.MilvusIndex, '_insert', killed)
    # As if there were nobody any more to clean up.
    patched.setattr(milvus.MilvusIndex, 'recover', lambda self: None)
    with pytest.raises(KilledError):
      writer.merge(directory, [depot], engine_name='milvus', uri=milvus_server)
  assert len(collections(milvus_server)) == len(known) + 1
  writer.merge(directory, [depot], engine_name='milvus')
  assert collections(milvus_server) == known
  assert facts(directory) == facts(depot)


def test_a_merge_that_fails_leaves_nothing_half_made(
  tmp_path, depot, files, digest_model, milvus_server
):
  long = dataclasses.replace(files(1, start=90)[0], id='x' * 5000)
  writer.add(depot, [long], digest_model)
  before, known, directory = facts(depot), collections(milvus_server), str(tmp_path / 'all')
  with pytest.raises(ValueError, match='has more than 4096 bytes.*Give the crop a shorter id'):
    writer.merge(directory, [depot], engine_name='milvus', uri=milvus_server)
  assert collections(milvus_server) == known
  assert names_in(directory) == {'lock', 'segments', 'pending.json'}
  writer.remove(depot, [long.id])
  assert writer.merge(directory, [depot], engine_name='milvus', uri=milvus_server) == 37
  assert len(collections(milvus_server)) == len(known) + 1
  assert facts(directory)[0] == before[0][:-1]


def test_a_part_that_changes_or_is_damaged_is_not_merged(
  tmp_path, depot, milvus_server, monkeypatch
):
  source, directory = str(tmp_path / 'source'), str(tmp_path / 'all')
  writer.merge(source, [depot], engine_name='milvus', uri=milvus_server)
  for change in (
    lambda: writer.remove(source, ['id 30']),
    lambda: writer.remove(source, ['id 0']),
  ):
    whole = milvus.MilvusIndex.parts

    def meanwhile(self, change=change, whole=whole):
      for i, part in enumerate(whole(self)):
        if i == 1:
          change()
        yield part

    with monkeypatch.context() as patched:
      patched.setattr(milvus, '_BATCH', 10)
      patched.setattr(milvus.MilvusIndex, 'parts', meanwhile)
      with pytest.raises(ValueError, match="source' changed while it was merged. Merge again"):
        writer.merge(directory, [source])
    assert names_in(directory) == {'lock', 'segments'}
  assert writer.merge(directory, [source]) == 35
  # Of files that are linked, and of those that are written anew without what was removed.
  for number in (2, 0):
    entry = IndexDirectory(depot).read()['segments'][number]
    path = Path(depot, 'segments', entry['name'], 'embeddings.npy')
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match='cannot be joined. .*embeddings.npy is not what was'):
      writer.merge(str(tmp_path / 'other'), [depot])
    path.write_bytes(whole)
  assert writer.merge(str(tmp_path / 'other'), [depot]) == 37


def test_a_folder_with_an_unfinished_build_is_not_merged_into(tmp_path, depot, files, digest_model):
  directory, rows = str(tmp_path / 'all'), files(6, start=50)
  Path(rows[5].path).write_text('broken')
  with pytest.raises(ValueError, match='cannot be read or decoded'):
    writer.build(directory, rows, digest_model, shard_rows=2)
  with pytest.raises(FileExistsError, match='holds crops of a build that is not finished'):
    writer.merge(directory, [depot])
  assert writer.build(directory, rows[:4], digest_model, shard_rows=2).resumed == 4


def test_an_address_is_for_milvus_alone(tmp_path, depot, digest_model, rows):
  for write in (
    lambda uri: writer.merge(str(tmp_path / 'all'), [depot], uri=uri),
    lambda uri: writer.build(str(tmp_path / 'all'), rows, digest_model, uri=uri),
  ):
    with pytest.raises(ValueError, match="has no use for the address 'http://milvus:19530'"):
      write('http://milvus:19530')


def test_an_index_that_is_built_at_another_address_is_dropped_at_the_first(
  tmp_path, files, digest_model, milvus_server, monkeypatch
):
  directory, known = str(tmp_path / 'index'), collections(milvus_server)
  writer.build(directory, files(6), digest_model, engine_name='milvus', uri=milvus_server)
  first = IndexDirectory(directory).read()
  options, new = {'engine_name': 'milvus', 'overwrite': True}, files(4)
  # Where that goes wrong, the first is as it was, also if both addresses are one server.
  other = milvus_server.replace('127.0.0.1', 'localhost')
  with monkeypatch.context() as patched:
    patched.setattr(
      milvus.MilvusIndex, '_insert', lambda *_: (_ for _ in ()).throw(OSError('full'))
    )
    with pytest.raises(OSError, match='full'):
      writer.build(directory, new, digest_model, uri=other, **options)
  assert IndexDirectory(directory).read() == first
  assert len(collections(milvus_server)) == len(known) + 1
  assert writer.build(directory, new, digest_model, uri=other, **options).resumed == 4
  state = IndexDirectory(directory).read()
  assert {*known, state['collection']} == set(collections(milvus_server))
  # Where the first does not answer, that is told.
  monkeypatch.setattr(milvus, 'drop', lambda *_: (_ for _ in ()).throw(OSError('no way')))
  with pytest.raises(OSError, match='The index was built.* it is left at .*no way') as error:
    writer.build(directory, files(3), digest_model, **options)
  assert state['collection'] in str(error.value) and other in str(error.value)
  with contextlib.closing(engines.open_engine(IndexDirectory(directory))) as found:
    assert found.size == 3
    assert found.rows(['id 2'])['id 2'].digest == segment.digest(b'crop 2')


def test_a_milvus_file_is_found_from_another_folder(tmp_path, files, digest_model, monkeypatch):
  pytest.importorskip('pymilvus', reason="needs the extra 'milvus'")
  monkeypatch.chdir(tmp_path)
  writer.build('index', files(3), digest_model, engine_name='milvus', uri='crops.db')
  (tmp_path / 'elsewhere').mkdir()
  monkeypatch.chdir(tmp_path / 'elsewhere')
  with contextlib.closing(engines.open_engine(IndexDirectory('../index'))) as found:
    assert found.size == len(list(found.rows([f'id {i}' for i in range(3)]))) == 3
  assert os.listdir(tmp_path / 'elsewhere') == []
