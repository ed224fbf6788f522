"""`tfreid serve --processes=2`: several processes behind one address."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def module(folder, name):
  """What the tests of another room make or start."""
  path = Path(__file__).parents[1] / folder / f'{name}.py'
  spec = importlib.util.spec_from_file_location(f'serve_processes_{name}', path)
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  return found


served = module('tools', 'test_serve')


@pytest.fixture(scope='module')
def depot(tmp_path_factory):
  """Folders of a model and of an index of its crops."""
  maker = module('search', 'depot')
  folder = tmp_path_factory.mktemp('depot')
  return maker.build(folder, maker.write_crops(folder / 'crops'), 'binary')


class Group(served.Started):
  """A server of two processes."""

  @property
  def workers(self):
    pid = self.process.pid
    return [int(text) for text in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def processes_of(pids):
  """Which of these processes still run."""
  alive = []
  for pid in pids:
    try:
      state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except FileNotFoundError:
      continue
    if state != 'Z':
      alive.append(pid)
  return alive


def eventually(test, seconds=240):
  deadline = time.monotonic() + seconds
  while not test():
    assert time.monotonic() < deadline
    time.sleep(0.2)


def until_both_answer(server, method, path, headers):
  """The statuses of requests over 40 connections, of which each process gets some."""
  connections = [http.client.HTTPConnection('127.0.0.1', server.port) for _ in range(40)]
  try:
    for connection in connections:
      connection.connect()
    statuses = []
    for connection in connections:
      connection.request(method, path, headers=headers)
      found = connection.getresponse()
      found.read()
      statuses.append(found.status)
    return statuses
  finally:
    for connection in connections:
      connection.close()


def sockets_taken(pids):
  """How many connections each process has."""
  counts = {}
  for pid in pids:
    links = []
    for name in os.listdir(f'/proc/{pid}/fd'):
      try:
        links.append(os.readlink(f'/proc/{pid}/fd/{name}'))
      except FileNotFoundError:
        continue  # closed meanwhile
    counts[pid] = sum(link.startswith('socket:') for link in links)
  return counts


def test_processes_answer_as_one_server(depot, tmp_path):
  tokens = tmp_path / 'tokens'
  tokens.write_text('ann:0123456789abcdef\n')
  tokens.chmod(0o600)
  log = tmp_path / 'audit.jsonl'
  server = Group(
    f'--index={depot.index}', '--processes=2', f'--token_file={tokens}', f'--audit_log={log}'
  )
  try:
    assert re.search(r'^Open http://127.0.0.1:\d+/ \(2 processes\)$', server.said, re.MULTILINE)
    workers = server.workers
    assert len(workers) == 2
    bearer = {'Authorization': 'Bearer 0123456789abcdef'}
    idle = sockets_taken(workers)
    held = [socket.create_connection(('127.0.0.1', server.port)) for _ in range(40)]
    try:
      # Linux spreads them by a hash: that one process gets none of 40 does not happen.
      eventually(lambda: all(n > idle[pid] for pid, n in sockets_taken(workers).items()), 60)
    finally:
      for connection in held:
        connection.close()

    # A picture of what one has answered is to be had from both, and of nothing else.
    status, answer = server.search({'hat': 'yes'}, **bearer)
    assert (status, len(answer['hits'])) == (200, 24)
    picture = answer['hits'][0]['thumbnail']
    assert set(until_both_answer(server, 'GET', picture, bearer)) == {200}
    nothing = re.sub('[0-9a-f]{32}', '0' * 32, picture)
    assert set(until_both_answer(server, 'GET', nothing, bearer)) == {404}

    # A session is one at both, and over at both.
    body = json.dumps({'token': '0123456789abcdef'})
    connection = http.client.HTTPConnection('127.0.0.1', server.port)
    connection.request('POST', '/api/v1/session', body, {'Content-Type': 'application/json'})
    cookie = {'Cookie': connection.getresponse().headers['Set-Cookie'].split(';')[0]}
    connection.close()
    assert set(until_both_answer(server, 'GET', '/api/v1/info', cookie)) == {200}
    assert server.ask('DELETE', '/api/v1/session', headers=cookie)[0] in (200, 204)
    assert set(until_both_answer(server, 'GET', '/api/v1/info', cookie)) == {401}

    # Both write whole lines to one log.
    for _ in range(20):
      assert server.search({'hat': 'no'}, **bearer)[0] == 200
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(line['action'] == 'search' for line in lines) == 21

    # One that is killed comes again; what it has answered can still be looked at.
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: len(server.workers) == 2 and server.workers != workers)
    for _ in range(20):  # those that come to it meanwhile wait, and are not turned away
      assert server.search({'hat': 'yes'}, **bearer)[0] == 200
    assert set(until_both_answer(server, 'GET', picture, bearer)) == {200}

    again = server.workers
    assert server.end() == 0
    assert server.said.endswith('Ended.\n')
    assert 'ended with status -9. It is started again.' in server.said
    assert processes_of([*workers, *again]) == []
    assert '0123456789abcdef' not in server.said
  finally:
    server.process.kill()


def test_workers_end_with_the_one_that_watches_over_them(depot):
  server = Group(f'--index={depot.index}', '--processes=2')
  try:
    workers = server.workers
    assert len(workers) == 2
    port = server.port
    taken = served.refused(f'--index={depot.index}', '--processes=2', f'--port={port}')
    assert 'Choose another --port' in taken
    server.process.kill()
    eventually(lambda: processes_of(workers) == [], 60)
  finally:
    server.process.kill()
    server.process.communicate()


def test_what_cannot_be_served_is_said_once(tmp_path):
  said = served.refused(f'--index={tmp_path}', '--port=0', '--processes=2')
  assert said.count('holds no index') == 1


def test_a_worker_that_nobody_started_is_told_so(monkeypatch):
  for number in ('x', '0', '99'):
    monkeypatch.setenv('TFREID_SERVE_WORKER', number)
    assert 'TFREID_SERVE_WORKER is set' in served.refused('--model=x', '--port=0')
