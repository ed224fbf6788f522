from __future__ import annotations

import concurrent.futures
import json
import os
import stat

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
