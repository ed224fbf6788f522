"""Writing, sealing and locking of files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from tfreid import storage


@pytest.fixture
def recorded(monkeypatch):
  """The order in which files and folders are synced and renamed, as (what, path)."""
  events = []
  fsync, replace, rename = os.fsync, os.replace, os.rename

  def path_of(descriptor):
    return os.readlink(f'/proc/self/fd/{descriptor}') if os.path.isdir('/proc/self/fd') else ''

  monkeypatch.setattr(os, 'fsync', lambda fd: (events.append(('sync', path_of(fd))), fsync(fd))[1])
  monkeypatch.setattr(
    os, 'replace', lambda a, b: (events.append(('rename', os.fspath(b))), replace(a, b))[1]
  )
  monkeypatch.setattr(
    os, 'rename', lambda a, b: (events.append(('rename', os.fspath(b))), rename(a, b))[1]
  )
  return events


def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_the_call_returns(
  tmp_path, recorded
):
  storage.write_text(tmp_path / 'a.txt', 'content')
  (first, partial), (second, final), (third, folder) = recorded
  assert (first, second, third) == ('sync', 'rename', 'sync')
  assert partial.startswith(str(tmp_path / 'a.txt.partial-'))
  assert final == str(tmp_path / 'a.txt')
  assert folder == str(tmp_path)


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
  path = tmp_path / 'a.txt'
  path.write_text('old')
  with pytest.raises(error), storage.replacing(path) as file:
    file.write('half')
    raise error
  assert path.read_text() == 'old'
  assert os.listdir(tmp_path) == ['a.txt']


def test_replaced_file_keeps_line_feeds_and_takes_permissions(tmp_path):
  with storage.replacing(tmp_path / 'a', permissions=0o600) as file:
    file.write('one\r\ntwo\n')
  assert (tmp_path / 'a').read_bytes() == b'one\r\ntwo\n'
  assert os.stat(tmp_path / 'a').st_mode & 0o777 == 0o600


def test_a_folder_is_synced_bottom_up_before_it_gets_its_name(tmp_path, recorded):
  partial = tmp_path / 'partial'
  (partial / 'inner').mkdir(parents=True)
  (partial / 'inner' / 'file').write_text('x')
  storage.put_directory(partial, tmp_path / 'final')
  assert recorded == [
    ('sync', str(partial / 'inner' / 'file')),
    ('sync', str(partial / 'inner')),
    ('sync', str(partial)),
    ('rename', str(tmp_path / 'final')),
    ('sync', str(tmp_path)),
  ]


def test_a_folder_takes_the_place_of_another(tmp_path):
  for name in ('new', 'final'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'content').write_text(name)
  storage.put_directory(tmp_path / 'new', tmp_path / 'final')
  assert (tmp_path / 'final' / 'content').read_text() == 'new'
  assert os.listdir(tmp_path) == ['final']


def test_put_directory_never_follows_a_link_at_its_place(tmp_path):
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere' / 'precious').write_text('x')
  (tmp_path / 'final').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'new').mkdir()
  storage.put_directory(tmp_path / 'new', tmp_path / 'final')
  assert (tmp_path / 'elsewhere' / 'precious').exists()
  assert not (tmp_path / 'final').is_symlink()


def test_a_torn_last_line_does_not_swallow_the_next(tmp_path):
  path = tmp_path / 'log'
  storage.append_line(path, b'one')
  with open(path, 'ab') as file:
    file.write(b'tw')
  storage.append_line(path, b'three')
  assert path.read_bytes() == b'one\ntw\nthree\n'


def test_a_line_that_does_not_fit_is_taken_back(tmp_path, monkeypatch):
  path = tmp_path / 'log'
  storage.append_line(path, b'one')
  write = os.write
  monkeypatch.setattr(os, 'write', lambda fd, content: write(fd, content[:2]))
  with pytest.raises(OSError, match='only 4 of 6 bytes') as caught:
    storage.append_line(path, b'three')
  assert caught.value.errno == errno.ENOSPC
  assert path.read_bytes() == b'one\n'


def test_a_line_holds_no_line_feed(tmp_path):
  with pytest.raises(ValueError, match='line feed'):
    storage.append_line(tmp_path / 'log', b'one\ntwo')


DOCUMENT = {'format': 2, 'names': ['ä', 'b\u2028'], 'nested': {'x': 1.5, 'y': None}, 'pair': (1, 2)}


def test_json_is_read_back_without_its_checksum(tmp_path):
  storage.write_json(tmp_path / 'a.json', DOCUMENT)
  assert storage.read_json(tmp_path / 'a.json') == {**DOCUMENT, 'pair': [1, 2]}


def test_every_flipped_bit_and_every_cut_of_a_document_is_noticed(tmp_path):
  path = tmp_path / 'a.json'
  storage.write_json(path, DOCUMENT)
  whole, value = path.read_bytes(), storage.read_json(path)
  for position in range(len(whole)):
    for damaged in (
      whole[:position],
      whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :],
      whole[:position] + bytes([whole[position] ^ 32]) + whole[position + 1 :],
    ):
      path.write_bytes(damaged)
      try:
        # White space between entries may change; the content never.
        assert storage.read_json(path) == value
      except ValueError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize('content', ['', '[1]', '[' * 100_000, '{"a": 1}', 'null', '\ufeff{}'])
def test_what_is_no_sealed_document_is_refused_in_a_sentence(tmp_path, content):
  path = tmp_path / 'a.json'
  path.write_text(content)
  with pytest.raises(ValueError, match="The file '.*a.json' is damaged: "):
    storage.read_json(path)


def test_a_document_of_an_earlier_release_is_read_on_request(tmp_path):
  (tmp_path / 'a.json').write_text(json.dumps({'format': 1}))
  assert storage.read_json(tmp_path / 'a.json', required=False) == {'format': 1}


def test_a_seal_notices_missing_changed_and_cut_files_and_ignores_new_ones(tmp_path):
  (tmp_path / 'inner').mkdir()
  for name in ('a', 'b', 'c', 'inner/d'):
    (tmp_path / name).write_text(f'content of {name}')
  storage.seal(tmp_path)
  assert storage.damage(tmp_path) == []
  (tmp_path / 'new').write_text('x')
  (tmp_path / 'a').unlink()
  (tmp_path / 'b').write_text('short')
  (tmp_path / 'inner' / 'd').write_text('Content of inner/d')
  assert storage.damage(tmp_path) == [
    f"'{tmp_path / 'a'}' is missing.",
    f"'{tmp_path / 'b'}' has 5 bytes; it was written with 12.",
    f"The content of '{tmp_path / 'inner' / 'd'}' does not fit its checksum.",
  ]
  with pytest.raises(ValueError, match=r'The joint space .* is damaged: .*a. is missing. \(2 more'):
    storage.check_seal(tmp_path, what='joint space')


def test_a_second_process_does_not_get_the_lock(tmp_path):
  path = tmp_path / 'lock'
  code = (
    'import sys; from tfreid import storage\n'
    "with storage.exclusive_lock(sys.argv[1], message='taken'): print('mine')"
  )

  def other():
    return subprocess.run(
      [sys.executable, '-c', code, path], capture_output=True, text=True, check=False
    )

  with storage.exclusive_lock(path, message='taken'):
    assert 'BlockingIOError: taken' in other().stderr
  assert other().stdout == 'mine\n'


@pytest.mark.parametrize('kind', ['link', 'dangling link', 'folder', 'pipe'])
def test_a_lock_is_a_file_of_its_own(tmp_path, kind):
  path, other = tmp_path / 'lock', tmp_path / 'other'
  if kind == 'link':
    other.write_text('precious')
  if 'link' in kind:
    path.symlink_to(other)
  else:
    (os.mkdir if kind == 'folder' else os.mkfifo)(path)
  with pytest.raises(OSError, match='is a link, or no file'):
    with storage.exclusive_lock(path, message='taken'):
      pass
  assert other.exists() == (kind == 'link')


def test_only_regular_files_are_opened(tmp_path):
  """In a process of its own, which a pipe or a device would stop for good."""
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'file').write_bytes(b'12345')
  (tmp_path / 'link').symlink_to(tmp_path / 'file')
  code = """
import sys
from tfreid import storage
for path in sys.argv[1:]:
  try:
    print(storage.read_bytes(path, limit=5))
  except OSError as error:
    print(error.strerror)
"""
  paths = [tmp_path / 'file', tmp_path / 'link', tmp_path / 'pipe', '/dev/zero', tmp_path]
  done = subprocess.run(
    [sys.executable, '-c', code, *paths], capture_output=True, text=True, check=True, timeout=60
  )
  no_file = 'it is a pipe, a device or a socket, and no file'
  assert done.stdout.splitlines() == [*["b'12345'"] * 2, no_file, no_file, 'Is a directory']
  with pytest.raises(OSError, match='more than 4 bytes'):
    storage.read_bytes(tmp_path / 'file', limit=4)


def test_new_folders_are_named_on_the_disk(tmp_path, recorded):
  storage.make_directories(tmp_path / 'a' / 'b')
  assert recorded == [('sync', str(tmp_path)), ('sync', str(tmp_path / 'a'))]
  storage.make_directories(tmp_path / 'a' / 'b')


@pytest.mark.parametrize('text', ['', 'A = 1\n', 'A = "ä"\nB = 2\n'])
def test_checked_text_comes_back_and_is_still_a_text_with_comments(text, tmp_path):
  path = tmp_path / 'config.gin'
  storage.write_checked_text(path, text)
  assert storage.read_checked_text(path) == text
  lines = path.read_text().splitlines()
  assert [line for line in lines if not line.startswith('#')] == text.splitlines()
  path.write_text(text + 'C = 3\n')  # of an earlier release
  assert storage.read_checked_text(path) == text + 'C = 3\n'


def test_every_flip_and_cut_of_a_checked_text_is_noticed(tmp_path):
  path = tmp_path / 'config.gin'
  storage.write_checked_text(path, 'SEED = 5\n')
  whole = path.read_bytes()
  changed = [whole[:i] for i in range(len(whole))]
  changed += [
    whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))
  ]
  for content in changed:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"The configuration '.*config.gin' is damaged"):
      storage.read_checked_text(path, what='configuration')


def test_path_with_characters_of_patterns_is_reached_through_one_without(tmp_path):
  folder = tmp_path / 'a[1] *?'
  folder.mkdir()
  (folder / 'final.index').write_text('here')
  with storage.without_patterns(folder / 'final') as prefix:
    assert not set('[]*?') & set(prefix)
    with open(f'{prefix}.index') as file:
      assert file.read() == 'here'
  assert not os.path.lexists(os.path.dirname(prefix))
  with storage.without_patterns(folder) as path:
    assert not set('[]*?') & set(path)
    assert os.listdir(path) == ['final.index']
  with storage.without_patterns(tmp_path / 'final') as prefix:
    assert prefix == str(tmp_path / 'final')


def test_a_seal_may_lie_below_the_folder_and_read_some_contents_only(tmp_path):
  (tmp_path / 'extra').mkdir()
  for name in ('large', 'small'):
    (tmp_path / name).write_text('content')
  storage.seal(tmp_path, file='extra/seal.json')
  digest = storage.checksum(b'content')
  expected = {'large': (7, digest), 'small': (7, digest)}
  assert storage.sealed_files(tmp_path, file='extra/seal.json') == expected
  (tmp_path / 'large').write_text('CONTENT')
  options = {'what': 'model', 'file': 'extra/seal.json'}
  storage.check_seal(tmp_path, content=lambda name: name != 'large', **options)
  with pytest.raises(ValueError, match='large'):
    storage.check_seal(tmp_path, **options)


def test_put_directory_leaves_a_folder_that_it_may_not_replace(tmp_path):
  for name in ('new', 'final'):
    (tmp_path / name).mkdir()
    (tmp_path / name / name).touch()
  with pytest.raises(FileExistsError, match='exists already'):
    storage.put_directory(tmp_path / 'new', tmp_path / 'final', replace=False)
  assert [path.name for path in (tmp_path / 'final').iterdir()] == ['final']
  assert (tmp_path / 'new').is_dir()
