"""Calls that share one thread, each running until it has to wait. Floor 0.

A thread for each of many calls costs more than the calls: every time one of them waits, Python's
lock passes to another thread, which may be asleep. Here one thread begins them all. What several
wait for is done once, for all of them (`Group.wait`); what takes long is done by another thread
meanwhile (`elsewhere`).

The calls are greenlets, so what they call need not know of it: only what waits asks whether it runs
in a group (`current`). One call must not wait for another of its group in any other way, as for a
lock that the other one holds while it waits.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
  import greenlet

_local = threading.local()
_Result = TypeVar('_Result')
_Together = Callable[[list[Any]], None]


class Group:
  """Calls that one thread makes.

  Attributes:
    rests: whether it does nothing but wait for work elsewhere.
  """

  def __init__(self, threads: Executor):
    """Begins without calls.

    Args:
      threads: for what takes long.

    Raises:
      ModuleNotFoundError: greenlet is not installed; it comes with the extra `serve`.
    """
    import greenlet

    self._greenlet, self._threads = greenlet, threads
    self._caller: greenlet.greenlet | None = None
    # What is to be done together, and for what, for whom.
    self._waiting: dict[_Together, list[tuple[Any, greenlet.greenlet]]] = {}
    # Who goes on, since his work elsewhere is done; None for those who wake this up.
    self._ready: queue.SimpleQueue[greenlet.greenlet | None] = queue.SimpleQueue()
    self._away = 0
    self.rests = False

  def run(self, more: Callable[[], Sequence[Callable[[], None]]]) -> None:
    """Makes calls until there are no more, and all have ended.

    Args:
      more: what is to be called now; asked again and again between the steps. None of these may
        raise an error, since it would belong to none of the others.
    """
    self._caller = self._greenlet.getcurrent()
    _local.group = self
    try:
      while True:
        functions = more()
        for function in functions:
          self._greenlet.greenlet(function).switch()
          self._resume_ready()
        if self._waiting:
          together = next(iter(self._waiting))
          self._do(together, self._waiting.pop(together))
        elif self._away:
          self.rests = True
          ready = self._ready.get()
          self.rests = False
          self._resume(ready)
          self._resume_ready()
        elif not functions:
          return
    finally:
      _local.group = None

  def wake(self) -> None:
    """Has a group that waits for work elsewhere ask for more calls; may be called by any thread."""
    self._ready.put(None)

  def wait(self, together: _Together, item: Any) -> None:
    """Returns when `together` was called with this item and those of others that wait for it.

    Called by a call of this group.

    Args:
      together: called with a list of items when no call can go on; equal functions are one.
      item: what is to be done for this call.

    Raises:
      Exception: what `together` raises, for all that waited.
    """
    self._waiting.setdefault(together, []).append((item, self._greenlet.getcurrent()))
    self._leave()

  def elsewhere(self, function: Callable[[], _Result]) -> _Result:
    """What a function returns, or raises, in another thread; other calls go on meanwhile."""
    call = self._greenlet.getcurrent()
    future: Future[_Result] = self._threads.submit(contextvars.copy_context().run, function)
    self._away += 1
    future.add_done_callback(lambda _: self._ready.put(call))
    self._leave()
    return future.result()

  def _leave(self):
    assert self._caller is not None  # `run` calls who calls this
    self._caller.switch()

  def _do(self, together, waiting):
    try:
      together([item for item, _ in waiting])
    except Exception as error:
      for _, call in waiting:
        call.throw(error)
    else:
      for _, call in waiting:
        call.switch()
        # Who has been away may have to leave again, and should not lose time.
        self._resume_ready()

  def _resume_ready(self):
    while not self._ready.empty():
      self._resume(self._ready.get())

  def _resume(self, call):
    if call is not None:
      self._away -= 1
      call.switch()


def current() -> Group | None:
  """The group whose calls this thread makes; None where it makes none."""
  return getattr(_local, 'group', None)


def elsewhere(function: Callable[[], _Result]) -> _Result:
  """What a function returns that takes long: in another thread, if this one has other calls."""
  group = current()
  return function() if group is None else group.elsewhere(function)
