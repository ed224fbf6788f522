"""Who may ask: tokens, sessions of browsers, and the names of this server. Floor 5."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import ipaddress
import secrets
import time
import urllib.parse
from collections.abc import Mapping

from tfreid.web.state import EndedHere, EndedSessions


@dataclasses.dataclass(frozen=True)
class Access:
  """Who may ask.

  Attributes:
    tokens: name of a user to the secret that shows who it is; empty: anybody may ask.
    user_header: a header in which a trusted proxy names the user, for the audit log; '' for none.
    hosts: names under which this server may be called, besides localhost and addresses.
    public_url: how browsers reach this server through a proxy, 'https://depot.example'; '' if they
      reach it directly.
    session_seconds: after which a browser must show its token again.
    key: what session cookies are signed with; new for each server.
    ended: sessions that were ended before their time; of this process alone by default.
  """

  tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
  user_header: str = ''
  hosts: frozenset[str] = frozenset()
  public_url: str = ''
  session_seconds: int = 12 * 3600
  key: bytes = dataclasses.field(default_factory=lambda: secrets.token_bytes(32), repr=False)
  ended: EndedSessions = dataclasses.field(default_factory=EndedHere, repr=False)

  def name_of(self, token: str) -> str | None:
    """Whose token it is; None if nobody's. Takes as long for a wrong one as for a right one."""
    given, owner = _digest(token), None
    for name, secret in self.tokens.items():
      if hmac.compare_digest(given, _digest(secret)):
        owner = name
    return owner

  def cookie(self, name: str) -> str:
    """The value of the cookie of a new session."""
    expires = int(time.time()) + self.session_seconds
    session = f'{name.encode().hex()}.{expires}.{secrets.token_hex(16)}'
    return f'{session}.{self._signature(name, session)}'

  def name_of_cookie(self, value: str) -> str | None:
    """Whose session it is; None if nobody's, or if it is over."""
    session, _, signature = value.rpartition('.')
    try:
      encoded, expires, identifier = session.split('.')
      name, end = bytes.fromhex(encoded).decode(), int(expires)
    except ValueError:
      return None
    if name not in self.tokens:
      return None
    if not hmac.compare_digest(signature.encode(), self._signature(name, session).encode()):
      return None
    return name if time.time() < end and identifier not in self.ended else None

  def end_session(self, value: str) -> None:
    """Ends the session of a cookie: who has a copy of it has no session either."""
    if self.name_of_cookie(value) is None:
      return
    _, expires, identifier, _ = value.split('.')
    self.ended.add(identifier, int(expires))

  def needs_secure_cookie(self, scheme: str) -> bool:
    """Whether browsers reach this server by HTTPS, so that a cookie never goes another way.

    Args:
      scheme: of the request: 'http' or 'https'.
    """
    return scheme == 'https' or self.public_url.startswith('https://')

  def allows_host(self, host: str) -> bool:
    """Whether a Host header names this server.

    This prevents DNS rebinding: a page of somebody else may let its own name resolve to 127.0.0.1,
    and would then be allowed to read our answers. So names must be known. An IP address cannot be
    made to resolve to something else.
    """
    try:
      name = urllib.parse.urlsplit(f'//{host}').hostname or ''
    except ValueError:
      return False
    if name == 'localhost' or name in self.hosts:
      return True
    if self.public_url and name == urllib.parse.urlsplit(self.public_url).hostname:
      return True
    try:
      ipaddress.ip_address(name)
      return True
    except ValueError:
      return False

  def _signature(self, name: str, session: str) -> str:
    # With the secret: a session ends when the token of its user is changed.
    message = f'{session}\n{self.tokens[name]}'.encode()
    return hmac.new(self.key, message, hashlib.sha256).hexdigest()


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).digest()
