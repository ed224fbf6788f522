"""What stands before the application: who may talk to it, and how much may be said. Floor 5."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.parse

from starlette.requests import ClientDisconnect

from tfreid.web.access import Access
from tfreid.web.intake import Body, Intake, OverfullError
from tfreid.web.messages import ApiError

# No script, style, picture or request but this server's own, and no page around this one.
HEADERS = {
  'content-security-policy': "default-src 'none'; script-src 'self'; style-src 'self'; "
  "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
  "frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'x-frame-options': 'DENY',
  'permissions-policy': 'camera=(), microphone=(), geolocation=()',
}


class SecurityMiddleware:
  """ASGI middleware: refuses strangers and too much, adds headers, lets no error out as it is."""

  def __init__(self, app, *, access: Access, max_bytes: int, body_seconds: float, intake: Intake):
    """Stands before an application.

    Args:
      app: the application.
      access: who may ask.
      max_bytes: of a body.
      body_seconds: in which it must have arrived.
      intake: how much of all bodies may be in memory.
    """
    self.app = app
    self.intake = intake
    self._access = access
    self._max_bytes = max_bytes
    self._body_seconds = body_seconds

  async def __call__(self, scope, receive, send):
    """Handles one request."""
    if scope['type'] == 'lifespan':
      await self.app(scope, receive, send)
      return
    if scope['type'] != 'http':
      await send({'type': 'websocket.close', 'code': 1008})
      return
    started = False
    limited = _LimitedReceive(receive, self._max_bytes, self._body_seconds)

    async def answer(message):
      nonlocal started
      if message['type'] == 'http.response.start':
        started = True
        message = {**message, 'headers': list(message.get('headers', ()))}
        present = {name.lower() for name, _ in message['headers']}
        added = dict(HEADERS)
        if limited.is_cut_off:
          added['connection'] = 'close'  # the rest of the body is not read
        for name, value in added.items():
          if name.encode() not in present:
            message['headers'].append((name.encode(), value.encode()))
      await send(message)

    try:
      limited.open(self.intake, self._check(scope))
      await self.app(scope, limited, answer)
    except ApiError as error:
      if not started:
        await _send_error(answer, error)
    except ClientDisconnect:
      pass  # nobody is there to be told, and nothing is wrong here
    except Exception:  # whatever it is, it is ours to look at, not the client's
      logging.getLogger(__name__).exception('%s %s', scope['method'], scope['path'][:200])
      if not started:
        await _send_error(
          answer,
          ApiError(500, 'internal', 'Something is wrong in this server; its log says what.'),
        )
    finally:
      limited.close()

  def _check(self, scope) -> int | None:
    """Refuses what comes from elsewhere; returns the length of the body, None if it is not said."""
    headers = {name.lower(): value.decode('latin-1') for name, value in scope['headers']}
    hosts = [value for name, value in scope['headers'] if name.lower() == b'host']
    host = headers.get(b'host', '')
    if len(hosts) != 1 or not self._access.allows_host(host):
      raise ApiError(
        400,
        'host',
        'This server is not known by that name. Call it by localhost or its address, or start it '
        'with --allowed_hosts=NAME.',
      )
    # Only the page of this server may make a browser ask. (A browser says whose page it is; a
    # program need not.)
    origin = headers.get(b'origin')
    foreign = origin is not None and _host_of(origin) != host
    if foreign or headers.get(b'sec-fetch-site') in ('cross-site', 'same-site'):
      if scope['path'].startswith('/api/'):
        raise ApiError(403, 'origin', 'Pages of other sites may not ask this server.')
    length = headers.get(b'content-length')
    if length is None:
      return None if b'transfer-encoding' in headers else 0
    if not length.isdigit() or int(length[:20]) > self._max_bytes:
      raise _too_large(self._max_bytes)
    return int(length)


class _LimitedReceive:
  """`receive` of one request, which gives up on a body that is too large, too slow or one too many.

  Attributes:
    is_cut_off: whether a part of the body was read, and the rest will not be.
  """

  def __init__(self, receive, max_bytes, seconds):
    self.is_cut_off = False
    self._receive, self._max_bytes, self._seconds = receive, max_bytes, seconds
    self._deadline = time.monotonic() + seconds
    self._received, self._complete = 0, False
    self._body: Body | None = None
    self._length: int | None = None
    self._begun = False

  def open(self, intake: Intake, length: int | None) -> None:
    """Says where the bytes are counted, and how many are to come."""
    self._body, self._length = Body(intake), length

  def close(self) -> None:
    """Gives the memory back."""
    if self._body:
      self._body.close()

  async def __call__(self):
    if self._complete:
      return await self._receive()
    body = self._body
    assert body is not None  # `open` comes first
    # Where no body is to come, nothing is cut off by an answer that does not wait for its end.
    self.is_cut_off = self._length != 0
    if not self._begun:
      self._begun = True
      await self._begin(body)
    message = await self._next(body)
    if message['type'] != 'http.request':
      return message
    count = len(message.get('body', b''))
    self._received += count
    if self._received > self._max_bytes:
      raise _too_large(self._max_bytes)
    try:
      body.add(count)
    except OverfullError as error:
      raise _overfull() from error
    if not message.get('more_body'):
      self._complete, self.is_cut_off = True, False
      body.complete()
    return message

  async def _begin(self, body: Body):
    try:
      await asyncio.wait_for(body.begin(self._length), self._seconds)
    except (OverfullError, asyncio.TimeoutError) as error:
      raise _overfull() from error

  async def _next(self, body: Body):
    reading = asyncio.ensure_future(self._receive())
    try:
      done, _ = await asyncio.wait(
        {reading, body.evicted},
        timeout=max(self._deadline - time.monotonic(), 0.001),
        return_when=asyncio.FIRST_COMPLETED,
      )
    finally:
      if not reading.done():
        reading.cancel()
    if body.evicted in done:
      raise _overfull()
    if reading in done:
      return reading.result()
    raise ApiError(408, 'slow', f'The request did not arrive within {self._seconds:g} seconds.')


def _overfull() -> ApiError:
  return ApiError(503, 'busy', 'More is being sent to this server than it can take. Try again.')


def _too_large(max_bytes: int) -> ApiError:
  return ApiError(
    413,
    'too_large',
    f'The request is too large; at most {max_bytes:,} bytes are taken. Send one crop, not a whole '
    'picture.',
  )


async def _send_error(send, error: ApiError):
  body = json.dumps({'error': error.message, 'code': error.code}, ensure_ascii=False).encode()
  headers = [
    (b'content-type', b'application/json'),
    (b'content-length', str(len(body)).encode()),
    (b'cache-control', b'no-store'),
    # What is left of the body is not read.
    (b'connection', b'close'),
  ]
  await send({'type': 'http.response.start', 'status': error.status, 'headers': headers})
  await send({'type': 'http.response.body', 'body': body})


def _host_of(origin: str) -> str:
  try:
    return urllib.parse.urlsplit(origin).netloc
  except ValueError:
    return ''
