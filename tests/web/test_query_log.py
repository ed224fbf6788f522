from __future__ import annotations

import hashlib
import json

import pytest

from tfreid.web import query_log
from tfreid.web.query_log import FloodCounter


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
