"""What the middleware adds to answers."""

from __future__ import annotations

import asyncio

import pytest

from tfreid.web.access import Access
from tfreid.web.intake import Intake
from tfreid.web.middleware import SecurityMiddleware


@pytest.mark.parametrize(('length', 'closed'), [(None, False), (b'0', False), (b'5', True)])
def test_only_an_answer_before_the_end_of_a_body_ends_the_connection(length, closed):
  """The watch over whether a client has hung up may not have come to the end of no body."""
  sent = []

  async def application(scope, receive, send):
    watching = asyncio.ensure_future(receive())
    await asyncio.sleep(0.01)
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b''})
    watching.cancel()

  async def receive():
    await asyncio.sleep(60)

  async def send(message):
    sent.append(message)

  middleware = SecurityMiddleware(
    application,
    access=Access(),
    max_bytes=100,
    body_seconds=20.0,
    intake=Intake(1000, turns=1, waiting=1),
  )
  headers = [(b'host', b'localhost')] + ([(b'content-length', length)] if length else [])
  scope = {'type': 'http', 'method': 'GET', 'path': '/', 'headers': headers}
  asyncio.run(middleware(scope, receive, send))
  assert ((b'connection', b'close') in sent[0]['headers']) == closed
