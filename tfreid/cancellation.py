"""Ending work that nobody waits for any more: a flag, looked at between steps. Floor 0.

A thread cannot be stopped from outside. Whoever gives it work runs that below `scope`; whatever
takes long calls `check` between its steps, which costs less than a microsecond and does nothing
where there is no scope. Calls that share a thread (`fibers`) have a scope each.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_current: contextvars.ContextVar[Cancellation | None] = contextvars.ContextVar(
  'cancellation', default=None
)


class CancelledError(Exception):
  """The work was cancelled: nobody waits for its result."""


class Cancellation:
  """Whether some work is to end; for the thread that does it and those that wait for it.

  Attributes:
    turn_of: who asked for the work, where those who ask take turns; '' if nobody said.
  """

  def __init__(self, turn_of: str = '') -> None:
    self.turn_of = turn_of
    self._cancelled = False

  def cancel(self) -> None:
    """Asks the work to end at its next `check`."""
    self._cancelled = True

  @property
  def cancelled(self) -> bool:
    """Whether it was asked to end."""
    return self._cancelled


@contextlib.contextmanager
def scope(cancellation: Cancellation) -> Iterator[None]:
  """Makes `check` look at a cancellation here, until the context ends."""
  before = _current.set(cancellation)
  try:
    yield
  finally:
    _current.reset(before)


def current() -> Cancellation | None:
  """The cancellation that `check` looks at here; None where there is no scope."""
  return _current.get()


def check() -> None:
  """Does nothing while somebody waits for the work that is done here.

  Raises:
    CancelledError: nobody does.
  """
  cancellation = current()
  if cancellation is not None and cancellation.cancelled:
    raise CancelledError('The work was cancelled.')
