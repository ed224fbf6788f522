"""Ending work that nobody waits for any more: a flag per thread, looked at between steps. Floor 0.

A thread cannot be stopped from outside. Whoever gives it work runs that below `scope`; whatever
takes long calls `check` between its steps, which costs less than a microsecond and does nothing
where there is no scope.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_local = threading.local()


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
  """Makes `check` in this thread look at a cancellation, until the context ends."""
  before = getattr(_local, 'cancellation', None)
  _local.cancellation = cancellation
  try:
    yield
  finally:
    _local.cancellation = before


def current() -> Cancellation | None:
  """The cancellation that `check` looks at in this thread; None where there is no scope."""
  return getattr(_local, 'cancellation', None)


def check() -> None:
  """Does nothing while somebody waits for the work of this thread.

  Raises:
    CancelledError: nobody does.
  """
  cancellation = current()
  if cancellation is not None and cancellation.cancelled:
    raise CancelledError('The work was cancelled.')
