"""The cores that this process may use, and work that is shared among them. Cellar.

The helpers are threads of Python: they help where the work is done outside the interpreter, as in
NumPy.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable


def usable_cores() -> int:
  """How many cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


# Of the whole process, one for each core but the one that asks.
_helpers: concurrent.futures.ThreadPoolExecutor | None = None
_starting = threading.Lock()


def _pool() -> concurrent.futures.ThreadPoolExecutor:
  global _helpers
  with _starting:
    if _helpers is None:
      _helpers = concurrent.futures.ThreadPoolExecutor(max(usable_cores() - 1, 1), 'tfreid-helper')
    return _helpers


def _forget_helpers() -> None:
  """In a process that was forked: its threads did not come along."""
  global _helpers, _starting
  _helpers, _starting = None, threading.Lock()


if hasattr(os, 'register_at_fork'):
  os.register_at_fork(after_in_child=_forget_helpers)


def _nothing() -> None:
  pass


def in_parallel(
  work: Callable[[Callable[[], None]], object],
  *,
  helpers: int,
  check: Callable[[], None] = _nothing,
  stop: Callable[[], None] = _nothing,
) -> None:
  """Calls `work` in this thread, and in as many helpers as are free, until all have returned.

  Each call takes what is left of the work, so that it does not matter how many there are. What one
  of them raises is raised. A helper may call this function too: nobody waits for a call that has
  not begun.

  Args:
    work: called with what it is to call between its steps.
    helpers: how many, at most.
    check: what the call in this thread is given; the others are given one that does nothing.
    stop: ends the work of the others when this thread's has failed.
  """
  others = [_pool().submit(work, _nothing) for _ in range(helpers)]
  try:
    work(check)
  except BaseException:
    stop()
    raise
  finally:
    # One that has not begun, because others search, is not needed any more.
    begun = [other for other in others if not other.cancel()]
    concurrent.futures.wait(begun)
  for other in begun:
    other.result()
