"""Connections of real sockets: to a small application, and many of them at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest
import uvicorn

from tfreid.web import connections
from tfreid.web.access import Access
from tfreid.web.connections import ConnectionLimits
from tfreid.web.intake import Intake
from tfreid.web.middleware import SecurityMiddleware

PATIENCE = 30
GET = b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'


class Server:
  """A running server of an application that answers with the length of what it is sent.

  Attributes:
    port: at which it listens.
    table: its connections.
    intake: the bytes that it holds.
  """

  def __init__(self, limits, *, body_seconds=PATIENCE, max_bytes=2**20, budget=2**21):
    self.intake = Intake(budget, turns=2, waiting=4)
    self.held = threading.Event()
    self.held.set()
    application = SecurityMiddleware(
      self._application,
      access=Access(),
      max_bytes=max_bytes,
      body_seconds=body_seconds,
      intake=self.intake,
    )
    protocol = connections.protocol(limits)
    self.table = protocol.table
    config = uvicorn.Config(
      application, http=protocol, log_config=None, lifespan='off', ws='none', timeout_keep_alive=60
    )
    self._server = uvicorn.Server(config)
    listening = socket.create_server(('127.0.0.1', 0), backlog=2048)
    self.port = listening.getsockname()[1]
    self._thread = threading.Thread(target=self._server.run, kwargs={'sockets': [listening]})
    self._thread.start()

  async def _application(self, scope, receive, send):
    count, more = 0, scope['method'] == 'POST'
    while more:
      message = await receive()
      if message['type'] == 'http.disconnect':
        return
      count, more = count + len(message['body']), message['more_body']
    while not self.held.is_set():
      await asyncio.sleep(0.01)
    body = json.dumps(count).encode().ljust(int(scope['query_string'] or 0))
    headers = [(b'content-length', b'%d' % len(body))]
    await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
    await send({'type': 'http.response.body', 'body': body})

  def connect(self, sent=b''):
    client = socket.create_connection(('127.0.0.1', self.port), timeout=PATIENCE)
    client.sendall(sent)
    return client

  def until(self, condition):
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
      time.sleep(0.01)
    assert condition()

  def stop(self):
    self.held.set()
    self._server.should_exit = self._server.force_exit = True
    self._thread.join(PATIENCE)


@pytest.fixture
def serve():
  """serve(**limits of connections, options={...} of Server): a Server."""
  with contextlib.ExitStack() as stack:

    def start(options=None, **limits):
      server = Server(ConnectionLimits(**limits), **(options or {}))
      stack.callback(server.stop)
      return server

    yield start


def read(client):
  """All that comes until the server closes the connection."""
  parts = []
  with contextlib.suppress(ConnectionResetError):
    while part := client.recv(2**16):
      parts.append(part)
  client.close()
  return b''.join(parts)


def answered(client):
  """The status and the body of one answer, after which the connection stays open."""
  head = b''
  while b'\r\n\r\n' not in head:
    part = client.recv(1)
    if not part:
      return None, b''
    head += part
  length = next(int(h.split(b':')[1]) for h in head.lower().split(b'\r\n') if b'th:' in h)
  body = b''
  while len(body) < length:
    body += client.recv(length - len(body))
  return int(head.split()[1]), body


def error_of(answer):
  """Status and code of an error, which is JSON of the agreed form with all headers."""
  head, _, body = answer.partition(b'\r\n\r\n')
  assert b"content-security-policy: default-src 'none'" in head
  assert b'connection: close' in head
  assert set(json.loads(body)) == {'error', 'code'}
  return int(head.split()[1]), json.loads(body)['code']


def test_headers_that_do_not_come_to_an_end_are_a_408(serve):
  server = serve(header_seconds=0.3)
  slow = [
    server.connect(start) for start in (b'G', b'GET / HTTP/1.1\r\n', GET[:-2], GET[:-2] + b'X-Y: z')
  ]
  for client in slow:
    assert error_of(read(client)) == (408, 'slow')
  # Who has said nothing at all is told nothing.
  assert read(server.connect()) == b''
  server.until(lambda: len(server.table) == 0)


def test_dripping_does_not_put_the_end_off(serve):
  server = serve(header_seconds=0.5)
  client = server.connect(b'GET / HTTP/1.1\r\n')
  with contextlib.suppress(OSError):
    for _ in range(500):
      client.sendall(b'x: y\r\n')
      time.sleep(0.02)
  assert server.table.waiting == 0


def test_a_client_that_was_answered_may_rest_and_ask_again(serve):
  server = serve(header_seconds=0.2)
  client = server.connect(GET)
  assert answered(client) == (200, b'0')
  time.sleep(0.5)
  client.sendall(GET)
  assert answered(client) == (200, b'0')
  # The next question has a deadline of its own, the second part of it too.
  client.sendall(GET + GET[:10])
  assert answered(client) == (200, b'0')
  assert error_of(read(client)) == (408, 'slow')


def test_a_body_after_its_answer_is_not_waited_for_for_ever(serve):
  server = serve(header_seconds=0.3)
  # The application reads no body of a GET.
  client = server.connect(b'GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nab')
  assert answered(client) == (200, b'0')
  assert read(client) == b''


def test_a_client_that_does_not_read_is_let_go(serve):
  server = serve(send_seconds=0.3)
  client = server.connect(GET.replace(b'GET /', b'GET /?%d' % 2**26))
  server.until(lambda: len(server.table) == 1)
  server.until(lambda: len(server.table) == 0)
  client.close()


def test_what_is_not_http_is_an_error_of_the_agreed_form(serve):
  server = serve()
  for sent in (b'\x16\x03\x01\x02\0\x01\r\n\r\n', b'GET\r\n\r\n', b'GET / HTTP/1.1\r\n:\r\n\r\n'):
    assert error_of(read(server.connect(sent))) == (400, 'http')
  long = b'GET / HTTP/1.1\r\nX: ' + b'x' * 100_000
  assert error_of(read(server.connect(long))) == (400, 'http')


def test_too_many_connections_make_room_the_longest_waiting_first(serve):
  server = serve(total=20, per_address=100)
  first = server.connect(b'GET / ')
  others = [server.connect(b'GET / ') for _ in range(19)]
  server.until(lambda: len(server.table) == 20)
  client = server.connect(GET)
  assert answered(client) == (200, b'0')
  assert error_of(read(first)) == (503, 'busy')
  # The others are still there.
  others[-1].sendall(GET[len(b'GET / ') :])
  assert answered(others[-1]) == (200, b'0')


def test_who_works_is_not_put_out_for_who_waits(serve):
  server = serve(total=4, per_address=100)
  server.held.clear()
  working = [server.connect(GET) for _ in range(4)]
  server.until(lambda: len(server.table) == 4 and server.table.waiting == 0)
  assert error_of(read(server.connect(GET))) == (503, 'busy')
  server.held.set()
  assert [answered(client) for client in working] == [(200, b'0')] * 4


def test_one_address_has_only_so_many_that_wait(serve):
  server = serve(total=100, per_address=5)
  clients = [server.connect(b'G') for _ in range(30)]
  server.until(lambda: len(server.table) == 5)
  for client in clients[:25]:
    answer = read(client)
    # What was sent and not yet read can cost the sender the answer: that is TCP.
    assert not answer or error_of(answer) == (503, 'busy')
  exempt = serve(total=100, per_address=5, exempt=frozenset({'127.0.0.1'}))
  clients += [exempt.connect(b'G') for _ in range(30)]
  exempt.until(lambda: len(exempt.table) == 30)


def post(server, length, sent=b''):
  head = b'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n' % length
  return server.connect(head + sent)


def test_half_open_connections_and_slow_bodies_keep_nobody_waiting(serve):
  server = serve(total=300, per_address=250)
  stuck = [server.connect(GET[:-2]) for _ in range(280)]
  stuck += [post(server, 10_000, b'x' * 100) for _ in range(100)]
  clients = [post(server, 5, b'abcde') for _ in range(50)]
  assert [answered(client) for client in clients] == [(200, b'5')] * 50
  for client in stuck:
    client.close()


def test_bodies_have_a_budget_and_the_oldest_makes_room(serve):
  server = serve(options={'budget': 300_000})
  old = [post(server, 100_000, b'x' * 90_000) for _ in range(3)]
  server.until(lambda: server.intake.used == 270_000)
  new = post(server, 60_000, b'x' * 60_000)
  assert answered(new) == (200, b'60000')
  assert error_of(read(old[0])) == (503, 'busy')
  for client in old[1:]:
    client.sendall(b'x' * 10_000)
    assert answered(client) == (200, b'100000')
  server.until(lambda: server.intake.used == 0)


def test_the_turns_of_slow_bodies_pass_on(serve):
  server = serve(options={'budget': 10**6})
  slow = [post(server, 400_000, b'x') for _ in range(4)]
  # Two turns at a time, which end; the newest is next.
  fast = post(server, 400_000, b'x' * 400_000)
  assert answered(fast) == (200, b'400000')
  for client in slow:
    client.close()
  server.until(lambda: server.intake.used == 0 and len(server.table) <= 1)


def test_a_body_that_is_too_slow_is_a_408_and_the_end(serve):
  server = serve(options={'body_seconds': 0.3})
  assert error_of(read(post(server, 10, b'abc'))) == (408, 'slow')


def test_a_client_that_hangs_up_leaves_no_trace(serve, caplog):
  server = serve()
  server.held.clear()
  clients = [post(server, 10, b'abc'), post(server, 3, b'abc'), server.connect(GET[:5])]
  server.until(lambda: len(server.table) == 3)
  for client in clients:
    client.close()
  server.held.set()
  server.until(lambda: len(server.table) == 0 and server.intake.used == 0)
  assert not [record for record in caplog.records if record.levelname in ('ERROR', 'WARNING')]
