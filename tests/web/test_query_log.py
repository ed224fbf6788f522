from __future__ import annotations

import asyncio
import hashlib
import json
import threading

import pytest

from tfreid.web import query_log
from tfreid.web.audit import AuditLog, UnwritableError
from tfreid.web.executor import BoundedExecutor
from tfreid.web.messages import ApiError
from tfreid.web.query_log import FloodCounter, QueryLog


def entry(address='10.0.0.1', outcome='unauthorized', action='info'):
  return {**query_log.begin(address, action), 'outcome': outcome}


def admitted(counter, count, *arguments):
  return sum(counter.admits(entry(*arguments)) for _ in range(count))


@pytest.fixture
def counter(monkeypatch):
  """A counter, and .now, which is the time."""

  class Clock:
    now = 0.0

    def monotonic(self):
      return self.now

  made = FloodCounter()
  made.clock = Clock()
  monkeypatch.setattr(query_log, 'time', made.clock)
  return made


def test_a_flood_is_counted_by_address_and_minute(counter):
  assert admitted(counter, 500) == 10
  assert admitted(counter, 5, '10.0.0.2') == 5
  # Answers are what the log is for.
  assert admitted(counter, 5000, '10.0.0.1', 'answered') == 5000
  assert admitted(counter, 5000, '10.0.0.1', 'invalid') == 1000
  assert counter.ended() == []
  counter.clock.now = 61
  first, second = counter.ended()
  assert first.items() >= {'action': 'counted', 'outcome': 'unauthorized', 'count': 490}.items()
  assert first['who'] == {'address': '10.0.0.1'}
  assert first['actions'] == {'info': 490}
  assert second.items() >= {'outcome': 'invalid', 'count': 4000}.items()
  assert counter.ended() == []
  assert admitted(counter, 500) == 10
  assert [line['count'] for line in counter.ended(everything=True)] == [490]


def test_the_addresses_of_one_network_of_ipv6_are_one(counter):
  assert sum(admitted(counter, 1, f'2001:db8::{i:x}') for i in range(100)) == 10
  assert admitted(counter, 1, '2001:db8:0:1::1') == 1


def test_many_addresses_share_what_is_left(counter):
  assert sum(admitted(counter, 1, f'10.0.{i // 250}.{i % 250}') for i in range(5000)) == 1010
  assert [line['who']['address'] for line in counter.ended(everything=True)] == ['others']


@pytest.mark.parametrize(('outcome', 'most'), [('answered', 8192), ('invalid', 1024)])
def test_a_line_is_bounded_and_says_what_it_left_out(outcome, most):
  query = {f'{i}': '\U0001f600' * 200 for i in range(100)}
  line = query_log.bounded({**entry(outcome=outcome), 'query': query, 'words': 'red top'})
  assert line['words'] == 'red top'
  text = json.dumps(query, separators=(',', ':'))
  assert line['query']['bytes'] == len(text) > 200_000
  assert line['query']['sha256'] == hashlib.sha256(text.encode()).hexdigest()
  assert text.startswith(line['query']['begins'])
  assert len(json.dumps(line['query'])) < most


@pytest.fixture
def disk(tmp_path, monkeypatch):
  """An audit log, .open to let its first write end, and .calls of it."""

  class Disk(AuditLog):
    def __init__(self, path):
      super().__init__(path)
      self.open, self.calls = threading.Event(), []

    def write(self, *entries):
      self.calls.append([entry.get('n') for entry in entries])
      self.open.wait(30)
      if len(self.calls) > 1 and any(entry.get('n') == 'large' for entry in entries):
        raise UnwritableError('There is no room for that.')
      super().write(*entries)

  return Disk(str(tmp_path / 'audit.jsonl'))


def written(disk, entries, *, seconds=30.0):
  """What came of each entry: None, or the error; all but the first come while that is written."""
  log = QueryLog(disk, BoundedExecutor('log', threads=1, waiting=1, timeout=seconds))

  async def write():
    first = asyncio.ensure_future(log.write(entries[0]))
    while not disk.calls:
      await asyncio.sleep(0.001)
    others = [asyncio.ensure_future(log.write(entry)) for entry in entries[1:]]
    await asyncio.sleep(0.01)
    if seconds > 1:
      disk.open.set()
    return await asyncio.gather(first, *others, return_exceptions=True)

  found = asyncio.run(write())
  disk.open.set()
  return found


def test_entries_that_come_while_others_are_written_go_together(disk):
  assert written(disk, [{**entry(outcome='answered'), 'n': i} for i in range(20)]) == [None] * 20
  assert disk.calls == [[0], list(range(1, 20))]
  with open(disk.path, encoding='utf-8') as file:
    assert [json.loads(line)['n'] for line in file] == list(range(20))


def test_an_entry_that_cannot_be_written_does_not_take_others_along(disk):
  names = ['first', 'a', 'large', 'b']
  found = written(disk, [{**entry(outcome='answered'), 'n': name} for name in names])
  assert found[0] is found[1] is found[3] is None
  assert isinstance(found[2], ApiError) and found[2].status == 503
  assert 'no room' in found[2].message
  with open(disk.path, encoding='utf-8') as file:
    assert [json.loads(line)['n'] for line in file] == ['first', 'a', 'b']


def test_lines_that_could_not_be_flushed_are_not_written_twice(disk, monkeypatch):
  def fail(descriptor):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr('tfreid.web.audit.os.fsync', fail)
  found = written(disk, [{**entry(outcome='answered'), 'n': i} for i in range(4)])
  assert [error.status for error in found] == [503] * 4
  assert disk.calls == [[0], [1, 2, 3]]


def test_a_log_that_is_too_slow_is_told_to_all_who_wait(disk):
  found = written(disk, [{**entry(outcome='answered'), 'n': i} for i in range(3)], seconds=0.1)
  assert [(error.status, error.code) for error in found] == [(503, 'audit')] * 3
