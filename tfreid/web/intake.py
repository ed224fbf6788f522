"""How much of the requests' bodies is in memory at a time. Floor 5.

All bodies together have a budget of bytes. What is short is read as it comes. What is long, or does
not say how long it is, waits for one of a few turns before its first byte is read; a turn ends when
the body is complete, or soon, so that a client who sends slowly does not keep others waiting. Where
the budget is used up all the same, the body that has been coming for longest makes room.
"""

from __future__ import annotations

import asyncio
import collections

# As much can be read at once without waiting for a turn.
_SHORT = 64 * 1024
# Seconds after which a turn passes to whoever waits.
_TURN_SECONDS = 0.5


class OverfullError(Exception):
  """There is no room for this body."""


class Body:
  """The part of one request's body that is in memory."""

  def __init__(self, intake: Intake):
    self._intake = intake
    self._bytes = 0
    self._turn: asyncio.TimerHandle | None = None
    self._evicted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

  @property
  def evicted(self) -> asyncio.Future[None]:
    """Done when this body has to make room for others."""
    return self._evicted

  async def begin(self, length: int | None) -> None:
    """Waits for a turn, if the body is long; call it before anything is read.

    Args:
      length: of the body in bytes; None if it is not known.

    Raises:
      OverfullError: too many wait already.
    """
    self._intake._coming[self] = None
    if length is None or length > _SHORT:
      await self._intake._take_turn()
      loop = asyncio.get_running_loop()
      self._turn = loop.call_later(_TURN_SECONDS, self._end_turn)

  def add(self, count: int) -> None:
    """Counts bytes that were read.

    Raises:
      OverfullError: there is no room, and no other body to make some.
    """
    self._bytes += count
    self._intake._add(self, count)

  def complete(self) -> None:
    """Notes that nothing more comes; what there is stays in memory until `close`."""
    self._end_turn()
    self._intake._coming.pop(self, None)

  def close(self) -> None:
    """Gives the memory back."""
    self.complete()
    self._intake.used -= self._bytes
    self._bytes = 0

  def _end_turn(self):
    if self._turn is not None:
      self._turn.cancel()
      self._turn = None
      self._intake._end_turn()


class Intake:
  """The budget of all bodies.

  Attributes:
    max_bytes: of all bodies together.
    used: bytes that are in memory.
  """

  def __init__(self, max_bytes: int, *, turns: int, waiting: int):
    """Begins with nothing.

    Args:
      max_bytes: of all bodies together.
      turns: long bodies that are read at a time.
      waiting: long bodies that may wait for that.
    """
    self.max_bytes = max_bytes
    self.used = 0
    self._free, self._max_waiting = turns, waiting
    # The newest first: who has waited long will have been given up by its client first.
    self._waiting: list[asyncio.Future[None]] = []
    # Bodies of which more is to come, the oldest first.
    self._coming: collections.OrderedDict[Body, None] = collections.OrderedDict()

  async def _take_turn(self) -> None:
    if self._free:
      self._free -= 1
      return
    if len(self._waiting) >= self._max_waiting:
      raise OverfullError
    turn = asyncio.get_running_loop().create_future()
    self._waiting.append(turn)
    try:
      await turn
    except asyncio.CancelledError:
      if turn.done() and not turn.cancelled():
        self._end_turn()  # it was given a moment before
      else:
        self._waiting.remove(turn)
      raise

  def _end_turn(self) -> None:
    while self._waiting:
      turn = self._waiting.pop()
      if not turn.done():
        turn.set_result(None)
        return
    self._free += 1

  def _add(self, body: Body, count: int) -> None:
    self.used += count
    while self.used > self.max_bytes:
      other = next((one for one in self._coming if one is not body), None)
      if other is None:
        raise OverfullError
      other._evicted.set_result(None)
      other.close()
