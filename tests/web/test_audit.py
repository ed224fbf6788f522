from __future__ import annotations

import concurrent.futures
import json
import os
import stat
import subprocess
import sys

import pytest

from tfreid.web.audit import AuditLog, UnwritableError


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended_for_the_owner_only(tmp_path):
  path = tmp_path / 'audit.jsonl'
  for i in range(2):
    log = AuditLog(str(path))
    log.write({'n': i, 'text': 'two\nlines \u2028 \ud800 é'})
    log.close()
  assert [line['n'] for line in lines(path)] == [0, 1]
  assert path.read_bytes().isascii()
  assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_there_is_never_overwritten(tmp_path):
  path = tmp_path / 'audit.jsonl'
  log = AuditLog(str(path))
  log.write({'n': 0})
  with open(path, 'a') as other:
    other.write('{"n": "another program"}\n')
  log.write({'n': 1})
  assert [line['n'] for line in lines(path)] == [0, 'another program', 1]


def test_many_threads_write_whole_lines(tmp_path):
  path = tmp_path / 'audit.jsonl'
  log = AuditLog(str(path))
  with concurrent.futures.ThreadPoolExecutor(16) as threads:
    list(threads.map(lambda i: log.write({'n': i, 'pad': 'x' * 5000}), range(300)))
  assert sorted(line['n'] for line in lines(path)) == list(range(300))


def test_a_line_is_on_the_disk_when_write_returns(tmp_path, monkeypatch):
  synced = []
  fsync = os.fsync
  monkeypatch.setattr(os, 'fsync', lambda fd: (synced.append(os.fstat(fd).st_size), fsync(fd)))
  path = tmp_path / 'audit.jsonl'
  log = AuditLog(str(path))
  for i in range(3):
    log.write({'n': i})
    assert synced[-1] == path.stat().st_size


def test_after_a_rotation_lines_go_into_a_new_file(tmp_path):
  path = tmp_path / 'audit.jsonl'
  log = AuditLog(str(path))
  log.write({'n': 0})
  path.rename(tmp_path / 'audit.jsonl.1')
  log.write({'n': 1})
  path.unlink()
  log.write({'n': 2})
  assert lines(tmp_path / 'audit.jsonl.1') == [{'n': 0}]
  assert lines(path) == [{'n': 2}]


def test_a_full_disk_is_told_without_a_path():
  if not os.path.exists('/dev/full'):
    pytest.skip('no /dev/full here')
  log = AuditLog('/dev/full')
  with pytest.raises(UnwritableError, match='No space left on device') as error:
    log.write({'n': 0})
  assert '/dev' not in str(error.value)


def test_a_part_of_a_line_is_taken_back(tmp_path, monkeypatch):
  path = tmp_path / 'audit.jsonl'
  log = AuditLog(str(path))
  log.write({'n': 0})
  write = os.write
  with monkeypatch.context() as patch:
    patch.setattr(os, 'write', lambda fd, data: write(fd, data[:4]))
    with pytest.raises(UnwritableError):
      log.write({'n': 1})
  log.write({'n': 2})
  assert [line['n'] for line in lines(path)] == [0, 2]


def test_lines_that_are_written_together_are_there_all_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / 'audit.jsonl'
  log = AuditLog(str(path))
  log.write({'n': 0}, {'n': 1, 'text': 'two\nlines'})
  write = os.write
  with monkeypatch.context() as patch:
    patch.setattr(os, 'write', lambda fd, data: write(fd, data[:12]))
    with pytest.raises(UnwritableError):
      log.write({'n': 2}, {'n': 3})
  log.write({'n': 4})
  assert [line['n'] for line in lines(path)] == [0, 1, 4]


def test_a_folder_is_no_log(tmp_path):
  with pytest.raises(UnwritableError, match='cannot be written'):
    AuditLog(str(tmp_path))
  with pytest.raises(UnwritableError):
    AuditLog(str(tmp_path / 'missing' / 'audit.jsonl'))


def test_a_log_that_becomes_unwritable_recovers(tmp_path):
  folder = tmp_path / 'logs'
  folder.mkdir()
  log = AuditLog(str(folder / 'audit.jsonl'))
  log.write({'n': 0})
  folder.rename(tmp_path / 'away')
  with pytest.raises(UnwritableError):
    log.write({'n': 1})
  (tmp_path / 'away').rename(folder)
  log.write({'n': 2})
  assert [line['n'] for line in lines(folder / 'audit.jsonl')] == [0, 2]


def test_what_a_crash_left_of_a_line_does_not_swallow_the_next(tmp_path):
  path = tmp_path / 'audit.jsonl'
  path.write_bytes(b'{"n": 0}\n{"n": 1, "wor')
  log = AuditLog(str(path))
  log.write({'n': 2})
  log.write({'n': 3})
  assert path.read_bytes() == b'{"n": 0}\n{"n": 1, "wor\n{"n":2}\n{"n":3}\n'


_WRITER = """
import os, sys
from tfreid.web.audit import AuditLog, UnwritableError
log, write = AuditLog(sys.argv[1]), os.write
print('ready', flush=True)
sys.stdin.readline()
for i in range(200):
  # Each third time the disk takes only a part, which is taken back.
  os.write = (lambda fd, data: write(fd, data[:-7])) if i % 3 == 2 else write
  try:
    log.write({'who': sys.argv[2], 'n': i, 'pad': 'x' * (i * 37 % 3000)})
  except UnwritableError:
    assert i % 3 == 2
"""


def test_two_servers_do_not_cut_each_others_lines(tmp_path):
  path = tmp_path / 'audit.jsonl'
  writers = [
    subprocess.Popen(
      [sys.executable, '-c', _WRITER, str(path), name],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    for name in 'ab'
  ]
  for writer in writers:
    assert writer.stdout.readline() == 'ready\n'
  for writer in writers:
    writer.stdin.write('\n')
    writer.stdin.flush()
  assert [writer.wait(60) for writer in writers] == [0, 0]
  for writer in writers:
    writer.stdin.close()
    writer.stdout.close()
  found = lines(path)
  for name in 'ab':
    mine = [line['n'] for line in found if line['who'] == name]
    assert mine == [i for i in range(200) if i % 3 != 2]


def test_a_log_that_others_can_read_is_warned_about_and_left_as_it_is(tmp_path, caplog):
  path = tmp_path / 'audit.jsonl'
  AuditLog(str(path)).close()
  assert caplog.text == ''
  path.chmod(0o644)
  AuditLog(str(path)).close()
  assert 'Others than its owner' in caplog.text
  assert stat.S_IMODE(path.stat().st_mode) == 0o644
