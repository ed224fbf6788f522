"""uvicorn's HTTP protocol with deadlines and limits for its connections. Floor 5.

uvicorn itself waits for ever for a client that does not finish its headers, that drips bytes after
its answer, or that does not read. Here a connection may wait for its client only so long, and where
there are too many connections, those that have waited longest for their clients make room: first
those that were never answered anything. So whoever holds thousands of connections open keeps nobody
from being answered.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import logging
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tfreid.web.middleware import HEADERS

# Seconds in which a client that has just come would ask, if it means to.
_GRACE = 1.0


@dataclasses.dataclass(frozen=True)
class ConnectionLimits:
  """How many connections there may be, and how long they may wait for their clients.

  Attributes:
    header_seconds: from the first moment at which a request could come to the end of its headers.
    send_seconds: in which a client must have taken what is sent to it.
    total: connections at a time.
    per_address: connections of one address that wait for their client, at a time.
    exempt: addresses without that limit: of proxies, which speak for many.
  """

  header_seconds: float = 20.0
  send_seconds: float = 20.0
  total: int = 4000
  per_address: int = 2000
  exempt: frozenset[str] = frozenset()


class _Waiting:
  """Connections that wait for their clients, the longest first."""

  def __init__(self) -> None:
    self._since: collections.OrderedDict[LimitedConnection, float] = collections.OrderedDict()
    # Of these, those that were never answered.
    self._new: collections.OrderedDict[LimitedConnection, float] = collections.OrderedDict()

  def __len__(self) -> int:
    return len(self._since)

  def __contains__(self, connection: LimitedConnection) -> bool:
    return connection in self._since

  def add(self, connection: LimitedConnection, now: float) -> None:
    """Adds a connection that waits from now on."""
    self._since[connection] = now
    if not connection.was_answered:
      self._new[connection] = now

  def remove(self, connection: LimitedConnection) -> None:
    """Removes a connection that is there."""
    del self._since[connection]
    self._new.pop(connection, None)

  def dispensable(self, now: float) -> LimitedConnection:
    """The connection that is to go first."""
    for connection, since in self._new.items():
      if now >= since + _GRACE:
        return connection
      break
    return next(iter(self._since))


class ConnectionTable:
  """All connections of a server; makes room where there are too many.

  Attributes:
    limits: that it keeps.
  """

  def __init__(self, limits: ConnectionLimits):
    """Begins without connections."""
    self.limits = limits
    self._open: set[LimitedConnection] = set()
    self._waiting = _Waiting()
    self._by_address: dict[str, _Waiting] = {}

  def __len__(self) -> int:
    return len(self._open)

  @property
  def waiting(self) -> int:
    """Connections that wait for their clients."""
    return len(self._waiting)

  def add(self, connection: LimitedConnection) -> bool:
    """Takes a connection in; returns whether there was room, or could be made."""
    if len(self._open) >= self.limits.total:
      if not self._waiting:
        return False
      self._evict(self._waiting.dispensable(time.monotonic()))
    self._open.add(connection)
    return True

  def remove(self, connection: LimitedConnection) -> None:
    """Forgets a connection that is closed."""
    self._open.discard(connection)
    self.works(connection)

  def waits(self, connection: LimitedConnection) -> None:
    """Notes that a connection waits for its client from now on, if it does not already."""
    if connection in self._waiting or connection not in self._open:
      return
    now = time.monotonic()
    same = self._by_address.setdefault(connection.address, _Waiting())
    self._waiting.add(connection, now)
    same.add(connection, now)
    if len(same) > self.limits.per_address and connection.address not in self.limits.exempt:
      self._evict(same.dispensable(now))

  def works(self, connection: LimitedConnection) -> None:
    """Notes that a connection waits for this server now."""
    if connection not in self._waiting:
      return
    self._waiting.remove(connection)
    same = self._by_address[connection.address]
    same.remove(connection)
    if not same:
      del self._by_address[connection.address]

  def _evict(self, connection):
    self.remove(connection)
    message = 'There are too many connections. Close some, or try again.'
    connection.refuse(503, 'busy', message, unasked=connection.cycle is None)


class LimitedConnection(H11Protocol):
  """A connection that does not wait for its client for ever.

  Attributes:
    address: of the client, '' if there is none.
    was_answered: whether it has been given an answer.
  """

  # Set by `protocol`.
  table: ConnectionTable

  def __init__(self, *arguments: Any, **options: Any):
    super().__init__(*arguments, **options)
    self.address = ''
    self.was_answered = False
    # For the headers of a request, or for what comes after an answer.
    self._deadline: asyncio.TimerHandle | None = None
    # For the client to take what is sent.
    self._taking: asyncio.TimerHandle | None = None

  def connection_made(self, transport):
    """A client has come."""
    super().connection_made(transport)
    self.address = self.client[0] if self.client else ''
    if self.table.add(self):
      self._settle()
    else:
      message = 'This server has too many requests at a time. Try again.'
      self.refuse(503, 'busy', message, unasked=True)

  def data_received(self, data):
    """Some bytes of a request, or what a client sends instead."""
    if self.transport.is_closing():
      return
    super().data_received(data)
    self._settle()

  def on_response_complete(self):
    """An answer was handed to the transport."""
    self.was_answered = True
    super().on_response_complete()
    self._settle()

  def timeout_keep_alive_handler(self):
    """The client asked for nothing more."""
    super().timeout_keep_alive_handler()
    self._settle()

  def pause_writing(self):
    """The client does not take what is sent, or not as fast as it comes."""
    super().pause_writing()
    self._expect_taken()

  def resume_writing(self):
    """The client has taken most of what was sent."""
    super().resume_writing()
    if self._taking and not self.transport.is_closing():
      self._taking.cancel()
      self._taking = None

  def connection_lost(self, exc):
    """The connection is closed, by whomever."""
    for timer in (self._deadline, self._taking):
      if timer:
        timer.cancel()
    self._deadline = self._taking = None
    self.table.remove(self)
    self._unset_keepalive_if_required()
    super().connection_lost(exc)

  def send_400_response(self, msg):
    """Answers what is not HTTP."""
    del msg  # says the same
    self.refuse(400, 'http', 'This is not a request of HTTP/1.1, or its headers are too long.')

  def refuse(self, status: int, code: str, message: str, *, unasked: bool = False) -> None:
    """Ends the connection, with an error where the client expects an answer.

    Args:
      status: of HTTP.
      code: for programs.
      message: for people.
      unasked: tell the error before anything was asked, too.
    """
    if self.transport.is_closing():
      return
    if self.cycle is not None and not self.cycle.response_complete:
      # Whoever reads the body or has an answer is told that the client is gone.
      self.cycle.disconnected = True
      self.cycle.message_event.set()
    body = json.dumps({'error': message, 'code': code}).encode()
    try:
      # Who has asked nothing, or has the answer, would take it for the answer to the next question.
      can_answer = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
      if can_answer and (unasked or self._has_begun()):
        self.transport.write(self.conn.send(_head(status, len(body))))
        self.transport.write(self.conn.send(h11.Data(data=body)))
        self.transport.write(self.conn.send(h11.EndOfMessage()))
    except h11.LocalProtocolError:
      logging.getLogger(__name__).debug('Nothing can be said any more.', exc_info=True)
    self.transport.close()
    self._settle()

  def _has_begun(self):
    """Whether a part of a request has come."""
    return self.conn.their_state is not h11.IDLE or bool(self.conn.trailing_data[0])

  def _settle(self):
    """Brings deadline and table up to what is waited for."""
    if self.transport.is_closing():
      self._end_deadline()
      self._expect_taken()
      return
    receiving = self.conn.their_state is h11.SEND_BODY
    asked = self.cycle is not None and not self.cycle.response_complete
    rests = self.timeout_keep_alive_task is not None and not self._has_begun()
    if asked or rests:
      # The body has the application's deadline, and a rest between two requests uvicorn's.
      self._end_deadline()
    elif not self._deadline:
      self._deadline = self.loop.call_later(self.table.limits.header_seconds, self._too_slow)
    if receiving or not asked:
      self.table.waits(self)
    else:
      self.table.works(self)

  def _end_deadline(self):
    if self._deadline:
      self._deadline.cancel()
      self._deadline = None

  def _too_slow(self):
    self._deadline = None
    seconds = self.table.limits.header_seconds
    self.refuse(408, 'slow', f'The request did not arrive within {seconds:g} seconds.')

  def _expect_taken(self):
    if not self._taking:
      self._taking = self.loop.call_later(self.table.limits.send_seconds, self.transport.abort)


def protocol(limits: ConnectionLimits) -> type[LimitedConnection]:
  """The class for `http` of `uvicorn.Config`; all its connections share the limits."""
  return type('Connection', (LimitedConnection,), {'table': ConnectionTable(limits)})


def _head(status: int, length: int) -> h11.Response:
  headers = [
    ('content-type', 'application/json'),
    ('content-length', str(length)),
    ('cache-control', 'no-store'),
    ('connection', 'close'),
    *HEADERS.items(),
  ]
  return h11.Response(status_code=status, headers=headers)
