"""What comes from elsewhere: links, names that lead out, models and servers that an index names."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tfreid.index
from tfreid import storage
from tfreid.index import engines, segment, trust, writer
from tfreid.index.directory import IndexDirectory

ROOT = Path(__file__).parents[2]


def snapshot(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(Path(folder).rglob('*'))
    if path.is_file()
  }


@pytest.fixture
def built(tmp_path, files, digest_model):
  """The folder of an index of ten crops in two segments."""
  folder = tmp_path / 'index'
  writer.build(str(folder), files(10), digest_model, shard_rows=5)
  return folder


def writers(folder, files, model):
  """What writes to an index."""
  directory = str(folder)
  more = files(3, start=50)
  return [
    lambda: writer.build(directory, more, model, overwrite=True),
    lambda: writer.add(directory, more, model),
    lambda: writer.remove(directory, ['id 1']),
    lambda: writer.compact(directory),
    lambda: writer.merge(directory, [directory]),
  ]


@pytest.mark.parametrize(
  'part', ['segments', 'index.json', 'pending.json', 'pending.jsonl', 'lock']
)
def test_a_part_that_is_a_link_is_refused_and_nothing_is_touched(
  tmp_path, built, files, digest_model, part
):
  other = tmp_path / 'other'
  writer.build(str(other), files(10), digest_model, shard_rows=5)
  (other / 'pending.json').write_text('{}')
  (other / 'pending.jsonl').write_text('')
  before = snapshot(other)
  path = built / part
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
  path.symlink_to(other / part)
  for write in writers(built, files, digest_model):
    with pytest.raises(ValueError, match=f"{part}' is a link"):
      write()
    assert snapshot(other) == before
  if part in ('segments', 'index.json'):
    with pytest.raises(ValueError, match='is a link'):
      tfreid.index.open(built)


def test_a_segment_or_a_file_of_it_that_is_a_link_is_refused(tmp_path, built):
  first, second = (entry['name'] for entry in IndexDirectory(built).read()['segments'])
  for path in (built / 'segments' / first, built / 'segments' / second / 'rows.jsonl'):
    moved = tmp_path / f'{path.name} moved'
    shutil.move(path, moved)
    path.symlink_to(moved)
    with pytest.raises(ValueError, match='is damaged: .* is (a link|no regular file)'):
      tfreid.index.open(built)
    with pytest.raises(ValueError, match='is damaged'):
      writer.remove(str(built), ['id 1'])
    path.unlink()
    shutil.move(moved, path)
  assert len(tfreid.index.open(built)) == 10


def test_a_link_to_the_folder_of_the_index_is_followed(tmp_path, built):
  link = tmp_path / 'link'
  link.symlink_to(built)
  assert writer.remove(str(link), ['id 1']) == 1
  assert len(tfreid.index.open(link)) == 9


def test_writers_remove_only_what_a_writer_has_made(tmp_path, built, files, digest_model, caplog):
  segments = built / 'segments'
  elsewhere = tmp_path / 'elsewhere'
  shutil.copytree(segments, elsewhere)
  stranger, foreign = '0123456789abcdef', 'fedcba9876543210'
  (segments / 'notes').mkdir()
  (segments / 'notes' / 'todo.txt').write_text('mine')
  (segments / stranger).mkdir()
  (segments / stranger / 'rows.jsonl').write_text('mine')
  (segments / foreign).symlink_to(next(elsewhere.iterdir()))
  (segments / 'a file').write_text('mine')
  # As a segment, and with something of somebody else in it.
  (kept,) = segments.glob(IndexDirectory(built).read()['segments'][0]['name'])
  (kept / 'photo.jpg').write_bytes(b'mine')
  for name in ('my.json.partial', 'removing-list.npy', 'index.json.partial-of-mine'):
    (built / name).write_text('mine')
  (kept / 'removed-by-me.npy').write_bytes(b'mine')
  # And what writers do leave when they are killed.
  left = segments / 'aaaaaaaaaaaaaaaa.partial'
  left.mkdir()
  (left / segment.MARK).write_text(json.dumps(storage.with_checksum({'segment': 'a' * 16})))
  (left / 'embeddings.npy').write_bytes(b'half')
  old = segments / 'bbbbbbbbbbbbbbbb'
  shutil.copytree(next(elsewhere.iterdir()), old)
  (old / segment.MARK).unlink()
  (built / 'index.json.partial-17-00000000').write_text('half')
  before = {name: data for name, data in snapshot(tmp_path).items() if data in (b'mine',)}
  writer.compact(str(built))
  writer.build(str(built), files(3), digest_model, overwrite=True)
  after = snapshot(tmp_path)
  assert {name: after[name] for name in before} == before
  assert snapshot(elsewhere)
  assert not left.exists() and not old.exists()
  assert not (built / 'index.json.partial-17-00000000').exists()
  assert os.path.islink(segments / foreign)
  for name in (stranger, foreign, 'notes', 'a file', kept.name):
    assert f"/segments/{name}' is no segment that tfreid wrote" in caplog.text


HARMS = {
  'the name of a segment': lambda state: state['segments'][0].update(name='../../other/segments'),
  'a file': lambda state: state['segments'][0]['files'].update({'../../../x': [1, 'a' * 32]}),
  'half a copy': lambda state: state['segments'][0]['files'].pop('int8_bounds.npy'),
  'a list': lambda state: state['segments'][0].update(
    removed={'file': '/etc/passwd', 'count': 1, 'size': 1, 'checksum': 'a' * 32}
  ),
  'rows': lambda state: state['segments'][0].update(rows=-1),
  'more rows': lambda state: state['segments'][0].update(rows=1 << 40),
  'a norm': lambda state: state['segments'][0].update(greatest_norm=float('inf')),
  'no norm': lambda state: state['segments'][0].pop('greatest_norm'),
  'twice': lambda state: state['segments'].append(state['segments'][0]),
  'generation': lambda state: state.update(generation='1'),
  'size': lambda state: state['model'].update(embedding_size=1 << 40),
  'path': lambda state: state['model'].update(path=None),
  'engine': lambda state: state.update(engine='embedded'),
  'another engine': lambda state: state['engine'].update(name='os.system'),
  'shard': lambda state: state.update(shard=[3, 2]),
  'entries': lambda state: state.update(segments={'a': 1}),
}


@pytest.mark.parametrize('harm', HARMS)
def test_a_state_that_leads_elsewhere_or_is_of_another_kind_is_refused(built, harm):
  """With a checksum that fits: whoever makes such a file can make that, too."""
  path = built / 'index.json'
  state = json.loads(path.read_text())
  HARMS[harm](state)
  storage.write_json(path, state)
  with pytest.raises(ValueError):
    tfreid.index.open(built)
  with pytest.raises(ValueError):
    writer.remove(str(built), ['id 1'])


def test_collections_of_others_are_not_dropped(tmp_path):
  """An index from elsewhere that calls its collections what those of all indexes are called."""
  about = {'fingerprint': 'f', 'embedding_size': 3, 'path': '(none)'}
  state = engines.new_state(about, engine='milvus')
  for change in ({'prefix': 'tfreid'}, {'prefix': ''}, {'prefix': None}):
    with pytest.raises(ValueError, match='damaged, or no index'):
      engines.open_engine(
        IndexDirectory(str(tmp_path)), {**state, 'engine': {**state['engine'], **change}}
      )
  with pytest.raises(ValueError, match='damaged, or no index'):
    engines.open_engine(IndexDirectory(str(tmp_path)), {**state, 'collection': 'somebody_elses'})


def test_the_generation_is_compared_where_locks_do_nothing(built, files, digest_model):
  """A second writer, as from another machine on a file system whose locks do not reach there."""
  embed = digest_model.embed_images

  def meanwhile(contents):
    digest_model.embed_images = embed
    state = IndexDirectory(built).read()
    entries = state['segments'][:1]
    changed = {**state, 'generation': state['generation'] + 1, 'segments': entries, 'commit': 'x'}
    storage.write_json(built / 'index.json', changed)
    return embed(contents)

  digest_model.embed_images = meanwhile
  with pytest.raises(OSError, match='Another process has changed the index .* one machine only'):
    writer.add(str(built), files(3, start=20), digest_model)
  assert len(tfreid.index.open(built)) == 5
  assert writer.add(str(built), files(3, start=20), digest_model).added == 3
  assert len(tfreid.index.open(built)) == 8


def test_segments_that_another_machine_cleaned_up_are_not_committed(built, files, digest_model):
  embed = digest_model.embed_images

  def meanwhile(contents):
    for folder in (built / 'segments').iterdir():
      if folder.name not in {entry['name'] for entry in IndexDirectory(built).read()['segments']}:
        segment.remove(str(folder))
    return embed(contents)

  digest_model.embed_images = meanwhile
  with pytest.raises(OSError, match='has vanished: another process has cleaned up'):
    writer.add(str(built), files(6, start=20), digest_model, shard_rows=3, batch_size=3)
  assert len(tfreid.index.open(built)) == 10


def test_a_model_is_loaded_only_if_this_user_has_named_it(tmp_path, models, crops, monkeypatch):
  from tfreid.index import manifest
  from tfreid.index.embedder import Embedder

  directory = tmp_path / 'index'
  model = Embedder(str(models / 'people'))
  writer.build(str(directory), manifest.read(str(crops)), model)
  with tfreid.index.open(directory) as opened:
    assert opened.model.fingerprint == 'seed 1'
  # The same on another machine, or by another user.
  monkeypatch.setenv('TFREID_TRUST_FILE', str(tmp_path / 'nobody' / 'trusted.jsonl'))
  with tfreid.index.open(directory) as opened:
    concept = opened.engine.concepts(['c0/000.png'])[0]
    assert opened.search(concept, top_k=1).hits[0].id == 'c0/000.png'
    with pytest.raises(ValueError, match='which this user has not used .*--model='):
      opened.search('hat')
  with tfreid.index.open(directory, model=str(models / 'people')) as opened:
    assert opened.search('hat', top_k=1).hits
  assert not (tmp_path / 'nobody').exists()
  # Another model at that path, or this one at another, has not been named by that.
  trust.remember_model({'path': str(models / 'people' / '1'), 'fingerprint': 'other'})
  trust.remember_model({'path': str(models / 'other' / '1'), 'fingerprint': 'seed 1'})
  with pytest.raises(ValueError, match='which this user has not used'):
    tfreid.index.open(directory).search('hat')
  trust.remember(IndexDirectory(directory).read())
  with tfreid.index.open(directory) as opened:
    assert opened.search('hat', top_k=1).hits
  assert os.stat(tmp_path / 'nobody').st_mode & 0o777 == 0o700


def test_a_place_of_milvus_is_opened_only_if_this_user_has_named_it(tmp_path, monkeypatch):
  about = {'fingerprint': 'f', 'embedding_size': 3, 'path': '(none)'}
  for uri in ('http://127.0.0.1:1', str(tmp_path / 'somewhere' / 'milvus.db')):
    state = engines.new_state(about, engine='milvus', uri=uri)
    with pytest.raises(ValueError, match='which this user has not named .*MILVUS_TOKEN'):
      engines.open_engine(IndexDirectory(str(tmp_path)), state)
  assert not (tmp_path / 'somewhere').exists()


def test_where_nothing_can_be_noted_the_index_is_built_all_the_same(
  tmp_path, files, digest_model, monkeypatch, caplog
):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('TFREID_TRUST_FILE', str(tmp_path / 'file' / 'trusted.jsonl'))
  assert writer.build(str(tmp_path / 'index'), files(3), digest_model).added == 3
  assert 'must be named with --model' in caplog.text


def test_verifying_waits_for_no_pipe_and_reads_no_device(tmp_path, files, digest_model):
  """In a process of its own, which they would stop for good."""
  rows = files(4)
  writer.build(str(tmp_path / 'index'), rows, digest_model)
  for row, make in ((rows[1], os.mkfifo), (rows[2], os.mkdir), (rows[3], None)):
    os.remove(row.path)
    if make:
      make(row.path)
    else:
      os.symlink('/dev/zero', row.path)
  code = """
import sys
import tfreid.index
for problem in tfreid.index.open(sys.argv[1]).problems(files=True):
  print(problem)
"""
  done = subprocess.run(
    [sys.executable, '-c', code, tmp_path / 'index'],
    capture_output=True, text=True, timeout=120, check=True, cwd=ROOT,
  )  # fmt: skip
  assert done.stdout.splitlines()[:3] == [
    f"'id 1': {rows[1].path}: it is a pipe, a device or a socket, and no file.",
    f"'id 2': {rows[2].path}: Is a directory.",
    f"'id 3': {rows[3].path}: it is a pipe, a device or a socket, and no file.",
  ]


@pytest.mark.parametrize('text', ['a\tb', 'a\nb', 'a\x00b', 'a\x7f', '\x85', 'a\u2028b'])
def test_control_characters_are_refused_at_the_door(tmp_path, files, digest_model, place, text):
  rows = files(3)
  for bad in (
    segment.Row(text, rows[1].path),
    segment.Row('id', rows[1].path, {'site': text}),
    segment.Row('id', rows[1].path, {}, {'color': text}),
  ):
    with pytest.raises(ValueError, match='holds the control character') as error:
      writer.build(str(tmp_path / 'index'), [rows[0], bad], digest_model, **place)
    assert rows[1].path in str(error.value)
    assert text not in str(error.value)
  assert digest_model.embedded == []


@pytest.mark.parametrize('name', ['a[b]', 'a*b', 'what?', 'per%20cent #1', "it's"])
def test_names_that_mean_something_to_others_are_only_names(tmp_path, files, digest_model, name):
  directory = str(tmp_path / name / 'index')
  writer.build(directory, files(4), digest_model, shard_rows=2)
  writer.add(directory, files(2, start=4), digest_model)
  writer.remove(directory, ['id 1'])
  writer.compact(directory)
  assert writer.merge(str(tmp_path / f'{name} 2'), [directory]) == 5
  assert tfreid.index.open(directory).problems(files=False) == []


def stopping(count):
  """`os.remove`, at which the process is stopped after so many files."""
  remove, left = os.remove, [count]

  def stops(path):
    if not left[0]:
      raise KeyboardInterrupt
    left[0] -= 1
    remove(path)

  return stops


@pytest.mark.parametrize('marked', [True, False])
def test_a_removal_that_was_killed_is_finished_by_the_next_writer(
  tmp_path, built, monkeypatch, marked
):
  copy, whole = built / 'segments' / ('c' * 16), tmp_path / 'whole'
  shutil.copytree(built / 'segments' / IndexDirectory(built).read()['segments'][0]['name'], whole)
  for kept in range(9):
    shutil.copytree(whole, copy)
    (copy / segment.MARK).write_text(json.dumps(storage.with_checksum({'segment': 'c' * 16})))
    if not marked:
      (copy / segment.MARK).unlink()
    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
      patched.setattr(os, 'remove', stopping(kept))
      segment.remove(str(copy))
    writer.compact(str(built))
    assert not copy.exists()
