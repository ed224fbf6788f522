"""What stands before the application: who may talk to it, and how much may be said. Floor 5."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import ipaddress
import json
import logging
import secrets
import time
import urllib.parse
from collections.abc import Mapping

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


@dataclasses.dataclass(frozen=True)
class Access:
  """Who may ask.

  Attributes:
    tokens: name of a user to the secret that shows who it is; empty: anybody may ask.
    user_header: a header in which a trusted proxy names the user, for the audit log; '' for none.
    hosts: names under which this server may be called, besides localhost and addresses.
    key: what session cookies are signed with; new in each process.
  """

  tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
  user_header: str = ''
  hosts: frozenset[str] = frozenset()
  key: bytes = dataclasses.field(default_factory=lambda: secrets.token_bytes(32), repr=False)

  def name_of(self, token: str) -> str | None:
    """Whose token it is; None if nobody's. Takes as long for a wrong one as for a right one."""
    given, found = _digest(token), None
    for name, secret in self.tokens.items():
      if hmac.compare_digest(given, _digest(secret)):
        found = name
    return found

  def cookie(self, name: str) -> str:
    """The value of the cookie of a session."""
    return f'{name.encode().hex()}.{self._signed(name)}'

  def name_of_cookie(self, value: str) -> str | None:
    """Whose session it is; None if nobody's."""
    encoded, _, signature = value.partition('.')
    try:
      name = bytes.fromhex(encoded).decode()
    except ValueError:
      return None
    if name in self.tokens and hmac.compare_digest(signature.encode(), self._signed(name).encode()):
      return name
    return None

  def allows_host(self, host: str) -> bool:
    """Whether a Host header names this server.

    A page of somebody else can have its own name lead to 127.0.0.1, and would then be allowed to
    read our answers; so names must be known. An address is no name that could be led anywhere.
    """
    try:
      name = urllib.parse.urlsplit(f'//{host}').hostname or ''
    except ValueError:
      return False
    if name == 'localhost' or name in self.hosts:
      return True
    try:
      ipaddress.ip_address(name)
      return True
    except ValueError:
      return False

  def _signed(self, name: str) -> str:
    # With the secret: a session ends when the token of its user is changed.
    message = f'{name}\n{self.tokens[name]}'.encode()
    return hmac.new(self.key, message, hashlib.sha256).hexdigest()


class SecurityMiddleware:
  """ASGI middleware: refuses strangers and too much, adds headers, lets no error out as it is."""

  def __init__(self, app, *, access: Access, max_bytes: int, body_seconds: float):
    """Stands before an application.

    Args:
      app: the application.
      access: who may ask.
      max_bytes: of a body.
      body_seconds: in which it must have arrived.
    """
    self.app = app
    self._access = access
    self._max_bytes = max_bytes
    self._body_seconds = body_seconds

  async def __call__(self, scope, receive, send):
    if scope['type'] == 'lifespan':
      await self.app(scope, receive, send)
      return
    if scope['type'] != 'http':
      await send({'type': 'websocket.close', 'code': 1008})
      return
    started = False

    async def answer(message):
      nonlocal started
      if message['type'] == 'http.response.start':
        started = True
        present = {name.lower() for name, _ in message.get('headers', ())}
        message = {**message, 'headers': list(message.get('headers', ()))}
        for name, value in HEADERS.items():
          if name.encode() not in present:
            message['headers'].append((name.encode(), value.encode()))
      await send(message)

    try:
      self._check(scope)
      await self.app(scope, self._limited(receive), answer)
    except ApiError as error:
      if not started:
        await _say(answer, error)
    except Exception:  # whatever it is, it is ours to look at, not the client's
      logging.getLogger(__name__).exception('%s %s', scope['method'], scope['path'])
      if not started:
        await _say(
          answer,
          ApiError(500, 'internal', 'Something is wrong in this server; its log says what.'),
        )

  def _check(self, scope):
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
    if length is not None and (not length.isdigit() or int(length[:20]) > self._max_bytes):
      raise self._too_large()

  def _limited(self, receive):
    """`receive` that gives up on a body that is too large or too slow."""
    deadline = time.monotonic() + self._body_seconds
    received, complete = 0, False

    async def limited():
      nonlocal received, complete
      if complete:
        return await receive()
      try:
        message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.001))
      except asyncio.TimeoutError as error:
        raise ApiError(
          408, 'slow', f'The request did not arrive within {self._body_seconds:g} seconds.'
        ) from error
      if message['type'] == 'http.request':
        received += len(message.get('body', b''))
        complete = not message.get('more_body')
        if received > self._max_bytes:
          raise self._too_large()
      return message

    return limited

  def _too_large(self):
    return ApiError(
      413,
      'too_large',
      f'The request is too large; at most {self._max_bytes:,} bytes are taken. Send one crop, '
      'not a whole picture.',
    )


async def _say(send, error: ApiError):
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


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).digest()
