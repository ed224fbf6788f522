"""The simulated disk of tools/power_cuts.py forgets what a disk may forget, and nothing else."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))
import power_cuts
from power_cuts import Event


def state(events, way):
  disk = power_cuts.Disk()
  for event in events:
    disk.apply(event)
  return disk.after_cut(way, random.Random(0))


def written(path, content=b'new'):
  return [Event('create', path), Event('write', path, content=content)]


def test_what_was_not_synced_is_lost_or_empty_or_there():
  events = written('a')
  assert state(events, 'strict') == {'': None}
  assert state(events, 'names') == {'': None, 'a': b''}
  assert state(events, 'kill') == {'': None, 'a': b'new'}


def test_of_what_was_appended_since_the_last_sync_a_half_may_be_there():
  more = Event('write', 'a', offset=3, content=b'more')
  events = [*written('a'), Event('sync', 'a'), Event('sync folder', ''), more]
  assert state(events, 'strict') == state(events, 'names') == {'': None, 'a': b'new'}
  assert state(events, 'torn') == {'': None, 'a': b'newmo'}
  assert state(events, 'kill') == {'': None, 'a': b'newmore'}
  assert state(written('a'), 'torn') == {'': None, 'a': b'n'}


def test_name_needs_its_folder_to_be_synced_and_content_the_file():
  events = [*written('a'), Event('sync', 'a')]
  assert state(events, 'strict') == {'': None}
  assert state(events, 'names') == {'': None, 'a': b'new'}
  assert state([*events, Event('sync folder', '')], 'strict') == {'': None, 'a': b'new'}


def test_file_that_is_renamed_before_it_is_synced_can_be_empty_under_its_name():
  """The fault that the whole tool looks for."""
  old = [*written('a', b'old'), Event('sync', 'a'), Event('sync folder', '')]
  careless = [*old, *written('b'), Event('rename', 'b', 'a'), Event('sync folder', '')]
  assert state(careless, 'strict') == {'': None, 'a': b''}
  careful = [*old, *written('b'), Event('sync', 'b'), Event('rename', 'b', 'a')]
  assert state(careful, 'strict') == {'': None, 'a': b'old'}
  assert state(careful, 'names') == {'': None, 'a': b'new'}


def test_folder_that_is_renamed_brings_what_was_synced_in_it():
  events = [Event('folder', 'd'), *written('d/a'), Event('sync', 'd/a'), Event('sync folder', 'd')]
  assert state(events, 'strict') == {'': None}  # the folder's own name was not
  moved = [*events, Event('rename', 'd', 'e'), Event('sync folder', '')]
  assert state(moved, 'strict') == {'': None, 'e': None, 'e/a': b'new'}
  gone = [*moved, Event('remove', 'e/a'), Event('remove', 'e'), Event('sync folder', '')]
  assert state(gone, 'strict') == {'': None}


def test_calls_are_read_from_what_strace_writes(tmp_path):
  def hexadecimal(text):
    return ''.join(f'\\x{byte:02x}' for byte in text.encode())

  run, file = hexadecimal('/x/run'), hexadecimal('/x/run/a')
  lines = [
    f'7 mkdir("{run}", 0777) = 0',
    f'7 openat(AT_FDCWD<{hexadecimal("/")}>, "{file}", O_WRONLY|O_CREAT|O_CLOEXEC, 0666) = '
    f'3<{file}>',
    f'7 write(3<{file}>, "{hexadecimal("ab")}", 2 <unfinished ...>',
    f'8 write(1<{hexadecimal("/dev/null")}>, "{hexadecimal("z")}", 1) = 1',
    '7 <... write resumed>) = 2',
    f'7 pwrite64(3<{file}>, "{hexadecimal("c")}", 1, 5) = 1',
    f'7 fsync(3<{file}>) = 0',
    f'7 unlink("{hexadecimal("/x/run/none")}") = -1 ENOENT (No such file or directory)',
    f'7 rename("{file}", "{file}{hexadecimal("1")}") = 0',
  ]
  (tmp_path / 'trace').write_text('\n'.join(lines) + '\n')
  assert power_cuts.events(str(tmp_path / 'trace'), '/x/run') == [
    Event('folder', ''),
    Event('create', 'a'),
    Event('write', 'a', content=b'ab'),
    Event('write', 'a', offset=5, content=b'c'),
    Event('sync', 'a'),
    Event('rename', 'a', 'a1'),
  ]


@pytest.mark.parametrize('way', power_cuts.WAYS)
def test_what_was_synced_is_there_whatever_happens(way):
  events = [*written('a'), Event('sync', 'a'), Event('sync folder', ''), *written('b')]
  assert state(events, way)['a'] == b'new'
