"""Full disks, folders that may not be written to, files that change, damage: what is left."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import tfreid.index
from tfreid.index import engines, manifest, writer
from tfreid.index.directory import IndexDirectory

ROOT = Path(__file__).parents[2]

# Builds with a model that needs no TensorFlow; the child waits for a line before it embeds.
CHILD = """
import sys
sys.path[:0] = ['tools', '.']
sys.argv[1:], (directory, count, operation) = [], sys.argv[1:]
import crash_index
from tfreid.index import writer
class Waiting(crash_index.DigestModel):
  def embed_images(self, contents):
    if operation == 'wait':
      print('embedding', flush=True)
      sys.stdin.readline()
    return super().embed_images(contents)
rows = [crash_index.row_of(directory, number, 0) for number in range(int(count))]
try:
  if operation == 'add':
    writer.add(directory + '/index', rows, Waiting(), existing='replace')
  else:
    writer.build(directory + '/index', rows, Waiting(), overwrite=True)
except OSError as error:
  sys.exit(str(error))
"""


def child(directory, count, operation):
  (directory / 'crops').mkdir(exist_ok=True)
  return subprocess.Popen(
    [sys.executable, '-c', CHILD, str(directory), str(count), operation],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def tool(*arguments, **options):
  return subprocess.run(
    [sys.executable, ROOT / 'tools' / 'index.py', *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


def held(directory):
  """Id to concept, as lists, of what an index holds; searched as well."""
  found = engines.open_engine(IndexDirectory(str(directory)))
  assert found.problems() == []
  held = {row.id: vector for part, rows in found.parts() for vector, row in zip(part, rows)}
  name, vector = next(iter(held.items()))
  assert found.search(vector[np.newaxis], top_k=1)[0][0].row.id == name
  return {name: vector.tolist() for name, vector in held.items()}


def tree(directory):
  """Each file below a folder with its bytes."""
  paths = (path for path in Path(directory).rglob('*') if path.is_file())
  return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


@contextlib.contextmanager
def files_up_to(size):
  """Lets no file grow beyond `size` bytes, as on a full disk: the write after that is an error."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def without_rights():
  """As a user to whom the permissions of files apply."""
  if os.getuid():
    yield
    return
  os.seteuid(65534)
  try:
    yield
  finally:
    os.seteuid(0)


@pytest.fixture
def open_folder():
  """A folder that other users can reach, which those of pytest are not."""
  folder = tempfile.mkdtemp(prefix='test-faults-')
  os.chmod(folder, 0o755)
  yield Path(folder)
  shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path):
  """Folder of a file system of 512 KiB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', 'size=512k', 'none', str(folder)]
  if os.getuid() or not shutil.which('mount') or subprocess.run(command, check=False).returncode:
    pytest.skip('this user cannot mount a small file system')
  yield folder
  subprocess.run(['umount', str(folder)], check=True)


def operations(folder, files, model):
  """What writes to an index in folder/index: name -> (the call, ids afterwards)."""
  directory, rows, more = str(folder / 'index'), files(40), files(30, start=30, text='later')
  names = [row.id for row in rows]
  return {
    'build': (
      lambda: writer.build(directory, more, model, overwrite=True, shard_rows=8),
      [row.id for row in more],
    ),
    'add': (
      lambda: writer.add(directory, more, model, existing='skip', shard_rows=8),
      [*names, *(f'id {i}' for i in range(40, 60))],
    ),
    'replace': (
      lambda: writer.add(directory, more, model, existing='replace', shard_rows=8),
      [*names[:30], *(row.id for row in more)],
    ),
    'remove': (lambda: writer.remove(directory, ['id 3', 'id 4']), [*names[:3], *names[5:]]),
    'compact': (lambda: writer.compact(directory), names),
  }


@pytest.mark.parametrize('operation', ['build', 'add', 'replace', 'remove', 'compact'])
def test_a_disk_that_is_full_at_any_byte(tmp_path, files, digest_model, operation):
  directory = tmp_path / 'index'
  run, expected = operations(tmp_path, files, digest_model)[operation]
  writer.build(str(directory), files(42), digest_model, shard_rows=21)
  writer.remove(str(directory), ['id 40', 'id 41'])
  before, on_disk = held(directory), tree(directory)
  failed = 0
  for size in range(0, 40000, 150):
    try:
      with files_up_to(size):
        run()
    except OSError as error:
      failed += 1
      assert error.errno == errno.EFBIG
      assert f"The index '{directory}' cannot be written: File too large" in str(error)
      assert 'It is as it was before. Make room' in str(error)
      assert held(directory) == before
      # What is new are finished shards, and nothing is there that is not named.
      shards = IndexDirectory(str(directory)).read_pending().get('shards', {})
      kept = {shard['segment']['name'] for shard in shards.values()}
      left = tree(directory)
      assert {name: left[name] for name in on_disk} == on_disk
      new = {name.split('/')[1] for name in left if name not in on_disk and '/' in name}
      assert new == kept
      assert set(left) - set(on_disk) <= {'pending.json', 'pending.jsonl'} | {
        name for name in left if name.split('/')[1:2] and name.split('/')[1] in kept
      }
    else:
      break
  assert failed > 2
  assert list(held(directory)) == expected


def test_a_first_build_on_a_full_disk_goes_on(tmp_path, files, digest_model, place):
  directory, rows = tmp_path / 'index', files(40)
  with files_up_to(1200), pytest.raises(OSError, match='It is as it was before. Make room'):
    writer.build(str(directory), rows, digest_model, shard_rows=4, **place)
  with pytest.raises(FileNotFoundError, match='is not finished'):
    held(directory)
  embedded = len(digest_model.embedded)
  report = writer.build(str(directory), rows, digest_model, shard_rows=4, **place)
  assert report.added == 40
  assert 0 < report.resumed <= embedded < 40
  assert len(held(directory)) == 40


def test_a_merge_on_a_full_disk_leaves_the_parts_and_nothing_else(
  tmp_path, files, digest_model, place
):
  for name, rows in (('a', files(30)), ('b', files(30, start=30))):
    writer.build(str(tmp_path / name), rows, digest_model)
    # So that it must be written anew, and not linked.
    writer.remove(str(tmp_path / name), [rows[0].id])
  parts = [str(tmp_path / 'a'), str(tmp_path / 'b')]
  before = [tree(part) for part in parts]
  merged = tmp_path / 'all'
  for size in (0, 500, 2100, 4000):
    with files_up_to(size), pytest.raises(OSError, match='cannot be written: File too large'):
      writer.merge(str(merged), parts, **place)
    assert [tree(part) for part in parts] == before
    assert list(tree(merged)) == ['lock']
  assert writer.merge(str(merged), parts, **place) == 58
  assert len(held(merged)) == 58


def test_parts_that_vanish_while_they_are_merged(tmp_path, files, digest_model):
  writer.build(str(tmp_path / 'a'), files(5), digest_model)
  part = engines.open_engine(IndexDirectory(str(tmp_path / 'a')))
  shutil.rmtree(tmp_path / 'a')
  folder = IndexDirectory(str(tmp_path / 'all'))
  with pytest.raises(FileNotFoundError, match='vanished while it was merged'), folder.lock():
    part.stage(folder)
  assert list(tree(tmp_path / 'all')) == ['lock']


def test_a_real_disk_that_is_full(small_disk):
  """Not only files that may not grow: blocks that are not there, where a mapping is a SIGBUS."""
  (small_disk / 'crops').mkdir()
  first = child(small_disk, 20, 'build')
  assert first.communicate()[1] == ''
  before = held(small_disk / 'index')
  # The files of the crops that come next; then what is left is filled, but for a few blocks.
  warm = subprocess.run(
    [sys.executable, '-c', CHILD.split('rows = ')[0] + 'for i in range(80):\n'
     '  crash_index.row_of(directory, i, 0)', str(small_disk), '0', ''],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert warm.returncode == 0, warm.stderr
  failed = 0
  for room in (0, 1, 2, 3, 5, 7):
    filler = small_disk / 'filler'
    with open(filler, 'wb') as file, contextlib.suppress(OSError):
      while True:
        os.write(file.fileno(), bytes(4096))
    os.truncate(filler, max(filler.stat().st_size - 4096 * room, 0))
    adding = child(small_disk, 80, 'add')
    _, said = adding.communicate()
    if adding.returncode:
      failed += 1
      assert adding.returncode == 1, said
      assert 'cannot be written: No space left on device' in said
      assert 'Make room, then give the same command again.' in said
      assert held(small_disk / 'index') == before
    filler.unlink()
    if not adding.returncode:
      break
  assert failed > 2
  adding = child(small_disk, 80, 'add')
  assert adding.communicate()[1] == ''
  assert len(held(small_disk / 'index')) == 80


@pytest.mark.slow
def test_the_tool_on_a_full_disk_says_so_and_goes_on(tmp_path, models, crops):
  flags = [f'--index={tmp_path}/index', f'--model={models}/people', f'--source={crops}']
  flags += ['--shard_rows=10']

  def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

  done = tool('build', *flags, preexec_fn=limit)
  assert done.returncode == 1
  assert f"Error: The index '{tmp_path}/index' cannot be written: File too large" in done.stderr
  assert 'Traceback' not in done.stderr
  done = tool('build', *flags)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('30 crops added')
  before = held(tmp_path / 'index')
  index = f'--index={tmp_path}/index'
  for command in (('remove', index, 'c0/000.png'), ('compact', index)):
    done = tool(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99)))
    assert done.returncode == 1
    assert 'Error: The index' in done.stderr and 'Traceback' not in done.stderr
    assert held(tmp_path / 'index') == before


def test_a_folder_that_may_not_be_written_to(open_folder, files, digest_model):
  directory = str(open_folder / 'index')
  writer.build(directory, files(10), digest_model)
  for folder in (*Path(directory).rglob('*'), Path(directory)):
    os.chmod(folder, 0o555 if folder.is_dir() else 0o444)
  before, on_disk = held(directory), tree(directory)
  with without_rights():
    for write in (
      lambda: writer.remove(directory, ['id 3']),
      lambda: writer.compact(directory),
    ):
      with pytest.raises(PermissionError, match='cannot be written: Permission denied') as error:
        write()
      assert f"The index '{directory}'" in str(error.value)
      assert 'Writing needs a folder that this user may write to' in str(error.value)
    with pytest.raises(PermissionError, match='cannot be written'):
      writer.merge(str(open_folder / 'another'), [directory])
    # Reading needs no right to write.
    assert held(directory) == before
  assert tree(directory) == on_disk
  for folder in (*Path(directory).rglob('*'), Path(directory)):
    os.chmod(folder, 0o755)
  assert writer.remove(directory, ['id 3']) == 1


def test_a_folder_that_cannot_be_listed_is_not_passed_over(open_folder):
  (open_folder / 'a').mkdir()
  (open_folder / 'a' / '1.png').write_bytes(b'1')
  (open_folder / 'b').mkdir()
  (open_folder / 'b' / '2.png').write_bytes(b'2')
  os.chmod(open_folder / 'b', 0)
  with without_rights(), pytest.raises(OSError, match="/b' cannot be listed: Permission denied"):
    manifest.read(str(open_folder))
  os.chmod(open_folder / 'b', 0o755)
  assert [row.id for row in manifest.read(str(open_folder))] == ['a/1.png', 'b/2.png']


def test_files_that_vanish_or_change_between_listing_and_reading(
  tmp_path, files, digest_model, place
):
  rows, directory = files(16), str(tmp_path / 'index')
  whole = digest_model.embed_images

  def meanwhile(contents):
    # Two files of the fourth batch, which nobody has read: with one in flight, two are read ahead.
    if not digest_model.embedded:
      os.remove(rows[13].path)
      Path(rows[14].path).write_text('another picture')
    return whole(contents)

  digest_model.embed_images = meanwhile
  options = {'batch_size': 4, 'in_flight': 1, **place}
  with pytest.raises(ValueError, match='1 file cannot be read') as error:
    writer.build(directory, rows, digest_model, **options)
  assert f'{rows[13].path} (No such file or directory)' in str(error.value)
  Path(rows[13].path).write_text('back again')
  Path(rows[14].path).write_text('crop 14')
  digest_model.embedded.clear()
  report = writer.build(directory, rows, digest_model, skip_corrupt=True, **options)
  assert (report.added, [path for path, _ in report.corrupt]) == (15, [rows[13].path])
  # What was embedded is what was read.
  assert held(directory)['id 14'] == whole([b'another picture'])[0].tolist()
  with tfreid.index.open(directory) as opened:
    assert not any('id 14' in problem for problem in opened.problems(files=True))


def test_a_file_that_changes_while_it_is_read_is_not_embedded(
  tmp_path, files, digest_model, monkeypatch
):
  rows = files(3)
  fstat, changing = os.fstat, os.stat(rows[1].path).st_ino

  def changed_after(descriptor):
    status = fstat(descriptor)
    if status.st_ino == changing:
      os.utime(rows[1].path, ns=(0, status.st_mtime_ns + 1_000_000))
    return status

  with monkeypatch.context() as patch:
    patch.setattr(writer.os, 'fstat', changed_after)
    with pytest.raises(ValueError, match='1 file cannot be read') as error:
      writer.build(str(tmp_path / 'index'), rows, digest_model)
  assert f'{rows[1].path} (it changes while it is read)' in str(error.value)
  assert writer.build(str(tmp_path / 'index'), rows, digest_model).added == 3


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, files, digest_model, place):
  rows = files(4)
  for row, make in ((rows[1], os.mkdir), (rows[2], os.mkfifo)):
    os.remove(row.path)
    make(row.path)
  report = writer.build(str(tmp_path / 'index'), rows, digest_model, skip_corrupt=True, **place)
  assert report.added == 2
  assert [reason for _, reason in report.corrupt] == [
    'Is a directory',
    'it is a pipe, a device or a socket, and no file',
  ]


def test_an_index_that_is_removed_under_its_reader(tmp_path, files, digest_model):
  directory = str(tmp_path / 'index')
  writer.build(directory, files(20), digest_model, shard_rows=6)
  with tfreid.index.open(directory) as opened:
    query = opened.engine.concepts(['id 7'])[0]
    before = [(hit.id, hit.score) for hit in opened.search(query, top_k=5, where='camera < 4').hits]
    shutil.rmtree(directory)
    with pytest.raises(FileNotFoundError, match='holds no index'):
      opened.refresh()
    after = [(hit.id, hit.score) for hit in opened.search(query, top_k=5, where='camera < 4').hits]
    assert after == before
    (problem,) = {line.split(', a segment of')[1] for line in opened.problems()[:1]}
    assert problem == ' 6 crops, is missing.'


def test_a_reader_stays_what_it_was_where_the_next_state_is_damaged(tmp_path, files, digest_model):
  directory = str(tmp_path / 'index')
  writer.build(directory, files(10), digest_model)
  with tfreid.index.open(directory) as opened:
    writer.add(directory, files(5, start=10), digest_model)
    last = IndexDirectory(directory).read()['segments'][-1]['name']
    moved = shutil.move(os.path.join(directory, 'segments', last), tmp_path / 'elsewhere')
    for _ in range(2):
      with pytest.raises(FileNotFoundError, match='is missing. Run `tfreid index verify`'):
        opened.refresh()
    assert len(opened) == 10 and len(opened.engine.concepts(['id 9'])) == 1
    shutil.move(moved, os.path.join(directory, 'segments', last))
    assert opened.refresh()
    assert len(opened) == 15


def test_two_writers_at_once(tmp_path):
  first = child(tmp_path, 10, 'build')
  assert first.communicate()[1] == ''
  writer = child(tmp_path, 15, 'wait')
  assert writer.stdout.readline() == 'embedding\n'
  directory = f'--index={tmp_path}/index'
  for command in (('remove', directory, 'crop 3'), ('compact', directory)):
    done = tool(*command)
    assert done.returncode == 1
    assert 'Error: Another process writes to the index' in done.stderr
    assert 'Traceback' not in done.stderr
  assert len(held(tmp_path / 'index')) == 10
  assert writer.communicate('go on\n' * 9)[1] == ''
  assert len(held(tmp_path / 'index')) == 15
  assert tool('remove', directory, 'crop 3').returncode == 0


@pytest.mark.parametrize(
  'file',
  ['rows.jsonl', 'embeddings.npy', 'offsets.npy', 'hashes.npy', 'int8.npy', 'int8_bounds.npy'],
)
@pytest.mark.parametrize('harm', ['truncated', 'emptied', 'flipped', 'missing'])
def test_a_damaged_segment_is_found(tmp_path, files, digest_model, file, harm):
  directory = str(tmp_path / 'index')
  writer.build(directory, files(10), digest_model, shard_rows=5)
  entry = IndexDirectory(directory).read()['segments'][1]
  path = Path(directory, 'segments', entry['name'], file)
  whole = path.read_bytes()
  if harm == 'missing':
    path.unlink()
  else:
    middle = len(whole) - 3
    path.write_bytes(
      {
        'truncated': whole[:-9],
        'emptied': b'',
        'flipped': whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :],
      }[harm]
    )
  said = {
    'truncated': f'has {len(whole) - 9} bytes; {len(whole)} were written.',
    'emptied': f'has 0 bytes; {len(whole)} were written.',
    'flipped': 'is not what was written: its checksum differs.',
    'missing': 'is missing.',
  }[harm]
  assert IndexDirectory(directory).damage() == [f'{path} {said}']
  if harm == 'flipped' and file != 'offsets.npy':
    # As an index is opened that is too large to be read whole each time.
    unread = engines.open_engine(IndexDirectory(directory), check=False)
    assert unread.problems() == [f'{path} {said}']
  with pytest.raises((ValueError, FileNotFoundError), match='Run `tfreid index verify`') as error:
    engines.open_engine(IndexDirectory(directory))
  assert f'The index is damaged: {path} {said}' in str(error.value)


def test_the_tool_lists_all_damage_of_what_cannot_be_opened(tmp_path, files, digest_model):
  directory = tmp_path / 'index'
  writer.build(str(directory), files(15), digest_model, shard_rows=5)
  names = [entry['name'] for entry in IndexDirectory(str(directory)).read()['segments']]
  os.truncate(directory / 'segments' / names[0] / 'embeddings.npy', 200)
  shutil.rmtree(directory / 'segments' / names[2])
  done = tool('verify', f'--index={directory}', '--files')
  assert done.returncode == 1
  assert f'{names[0]}/embeddings.npy has 200 bytes; 448 were written.' in done.stdout
  assert f'{names[2]}, a segment of 5 crops, is missing.' in done.stdout
  assert 'The index cannot be opened: 2 problems.' in done.stdout
  assert 'Traceback' not in done.stderr
  done = tool('info', f'--index={directory}')
  assert done.returncode == 1
  assert 'is damaged' in done.stderr and 'Traceback' not in done.stderr


def test_another_model_in_the_place_of_the_one_that_embedded(tmp_path, models, crops):
  from tfreid.index.embedder import Embedder

  model = tmp_path / 'model' / '1'
  shutil.copytree(models / 'people' / '1', model)
  directory = str(tmp_path / 'index')
  writer.build(directory, manifest.read(str(crops)), Embedder(str(model)))

  def problems():
    with tfreid.index.open(directory) as opened:
      return opened.problems(files=True)

  assert problems() == []
  # Other weights under the same name.
  shutil.rmtree(model / 'variables')
  shutil.copytree(models / 'other' / '1' / 'variables', model / 'variables')
  (problem,) = problems()
  assert f"'{model}' makes another concept of 'c0/000.png'" in problem
  # Half of the weights.
  weights = model / 'variables' / 'variables.data-00000-of-00001'
  weights.write_bytes(weights.read_bytes()[:100])
  (problem,) = problems()
  assert f"The model '{model}' cannot be loaded" in problem
  # Another model, which says so.
  shutil.rmtree(model)
  shutil.copytree(models / 'other' / '1', model)
  (problem,) = problems()
  assert 'built with another model' in problem
  shutil.rmtree(model)
  (problem,) = problems()
  assert 'holds no exported model' in problem


def test_a_closed_milvus_file_is_free_for_other_processes(tmp_path, files, digest_model):
  pytest.importorskip('pymilvus', reason="needs the extra 'milvus'")
  directory = str(tmp_path / 'index')
  writer.build(directory, files(6), digest_model, engine_name='milvus')
  first, second = tfreid.index.open(directory), tfreid.index.open(directory)
  first.close()
  first.close()
  # The other one goes on: they share a server.
  assert len(second.engine.rows(['id 1', 'id 2'])) == 2
  second.close()
  done = tool('remove', f'--index={directory}', 'id 3')
  assert done.returncode == 0, done.stderr
  with tfreid.index.open(directory) as again:
    assert len(again) == 5
