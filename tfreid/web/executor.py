"""Threads for what takes long: a bounded number, a bounded queue, a bounded wait. Floor 5."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from tfreid import cancellation, fibers

# Seconds for which a group may run before calls that come later get another thread.
_PATIENCE = 0.5

_Result = TypeVar('_Result')


class BusyError(Exception):
  """So much is waiting already that waiting longer would help nobody."""


class TooSlowError(Exception):
  """It took longer than anybody waits."""


class _Job(Generic[_Result]):
  """A call that waits or runs."""

  def __init__(self, function: Callable[[], _Result], turn_of: str):
    self.future: concurrent.futures.Future[_Result] = concurrent.futures.Future()
    self.cancellation = cancellation.Cancellation(turn_of)
    self._function = function

  def run(self) -> None:
    """Calls the function, unless nobody waits for it any more."""
    if not self.future.set_running_or_notify_cancel():
      return
    try:
      with cancellation.scope(self.cancellation):
        cancellation.check()
        result = self._function()
    except BaseException as error:  # it belongs to whoever waits
      self.future.set_exception(error)
    else:
      self.future.set_result(result)

  def give_up(self) -> None:
    """Tells whoever waits for a call that has not ended that it will not."""
    if not self.future.done():
      self.future.set_exception(RuntimeError('The call was given up.'))


class BoundedExecutor:
  """Runs functions in threads, for coroutines that wait for them.

  TensorFlow and NumPy let go of the interpreter while they compute, so threads are enough, and one
  model serves all of them. A thread cannot be stopped, so a call that is too slow is asked to end
  (`cancellation.check`), and keeps its place until it has: what was abandoned cannot pile up.

  Those who ask take turns: a hundred calls of one of them delay a call of another by one.
  """

  def __init__(self, name: str, *, threads: int, waiting: int, timeout: float):
    """Starts no thread yet.

    Args:
      name: of the threads.
      threads: calls at a time.
      waiting: calls that may wait besides.
      timeout: seconds that a caller waits, in the queue and for the call.
    """
    self.timeout = timeout
    self._executor = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix=name)
    self._places = threads + waiting
    self._lock = threading.Lock()
    self._jobs: set[_Job] = set()
    # Who asks, next one first, to the calls of each, oldest first.
    self._queues: collections.OrderedDict[str, collections.deque[_Job]] = collections.OrderedDict()

  @property
  def taken(self) -> int:
    """Calls that run or wait."""
    return len(self._jobs)

  @property
  def is_full(self) -> bool:
    """Whether another call would be refused."""
    return len(self._jobs) >= self._places

  async def run(
    self, function: Callable[..., _Result], *arguments: Any, turn_of: str = ''
  ) -> _Result:
    """What the function returns.

    Args:
      function: to call.
      *arguments: of the function.
      turn_of: who asks.

    Raises:
      BusyError: the queue is full; the function was not called.
      TooSlowError: no result in time.
    """
    job = _Job(lambda: function(*arguments), turn_of)
    with self._lock:
      if self.is_full:
        raise BusyError
      self._jobs.add(job)
      self._queues.setdefault(turn_of, collections.deque()).append(job)
    job.future.add_done_callback(lambda _: self._leave(turn_of, job))
    try:
      self._begin()
    except RuntimeError as error:  # shut down
      job.future.cancel()
      raise BusyError from error
    try:
      return await asyncio.wait_for(asyncio.wrap_future(job.future), self.timeout)
    except asyncio.TimeoutError as error:
      raise TooSlowError from error
    finally:
      # Also where whoever waits is cancelled, since the client has hung up.
      job.cancellation.cancel()

  def close(self) -> None:
    """Takes no more calls, forgets those that wait, and asks those that run to end."""
    with self._lock:
      jobs = list(self._jobs)
    for job in jobs:
      job.future.cancel()
      job.cancellation.cancel()
    self._executor.shutdown(wait=False, cancel_futures=True)

  def _begin(self) -> None:
    """Has a thread look for calls that wait."""
    self._executor.submit(self._run_next)

  def _run_next(self) -> None:
    """Runs the oldest call of whoever's turn it is, if one still waits."""
    with self._lock:
      job = self._take()
    if job:
      job.run()

  def _take(self) -> _Job | None:
    """Takes the oldest call of whoever's turn it is; to be called with the lock."""
    if not self._queues:
      return None
    name, queue = self._queues.popitem(last=False)
    job = queue.popleft()
    if queue:
      self._queues[name] = queue
    return job

  def _leave(self, name: str, job: _Job) -> None:
    with self._lock:
      self._jobs.discard(job)
      queue = self._queues.get(name)
      if queue and job in queue:  # cancelled while it waited
        queue.remove(job)
        if not queue:
          del self._queues[name]


class GroupExecutor(BoundedExecutor):
  """Runs functions in one thread, as a group of `fibers`.

  For many short calls most of which wait for the same: what they wait for is done for all of them
  at once, and no thread has to be woken up for each. A call that computes long by itself keeps
  those of its group waiting, but not those that come later: where every group has been computing
  for a while, they get another one.
  """

  def __init__(self, name: str, *, together: int, waiting: int, timeout: float):
    """Starts no thread yet.

    Args:
      name: of the threads.
      together: calls of a group, and groups, at most.
      waiting: calls that may wait besides.
      timeout: seconds that a caller waits, in the queue and for the call.
    """
    super().__init__(name, threads=together, waiting=waiting, timeout=timeout)
    self._together = together
    self._elsewhere = concurrent.futures.ThreadPoolExecutor(
      together, thread_name_prefix=f'{name}-elsewhere'
    )
    # The groups that run, and since when they have not asked for calls.
    self._running: dict[fibers.Group, float] = {}
    self._looks_again = False

  def close(self) -> None:
    """Takes no more calls, forgets those that wait, and asks those that run to end."""
    super().close()
    self._elsewhere.shutdown(wait=False, cancel_futures=True)

  def _begin(self) -> None:
    now, begun = time.monotonic(), None
    with self._lock:
      responsive = (
        group for group, since in self._running.items() if group.rests or now < since + _PATIENCE
      )
      if group := next(responsive, None):
        group.wake()
      elif len(self._running) < self._together:
        begun = fibers.Group(self._elsewhere)
        self._running[begun] = now
    if begun:
      self._executor.submit(self._run_group, begun)
    elif not self._looks_again:
      self._looks_again = True
      asyncio.get_running_loop().call_later(_PATIENCE, self._look_again)

  def _look_again(self) -> None:
    """Has calls that still wait, behind one that computes long, run by another group."""
    self._looks_again = False
    if self._queues:
      with contextlib.suppress(RuntimeError):  # shut down meanwhile
        self._begin()

  def _run_group(self, group: fibers.Group) -> None:
    """Runs calls until none waits."""
    jobs: set[_Job] = set()

    def more() -> list[Callable[[], None]]:
      jobs.difference_update([job for job in jobs if job.future.done()])
      with self._lock:
        taken = (self._take() for _ in range(self._together - len(jobs)))
        new = [job for job in taken if job]
        self._running[group] = time.monotonic()
        if not jobs and not new:
          del self._running[group]  # with the lock: who comes from now on begins another
      jobs.update(new)
      return [job.run for job in new]

    try:
      group.run(more)
    except Exception:  # no call raises: what is wrong is here, and must not end with nobody told
      logging.getLogger(__name__).exception('A group of calls was given up.')
    finally:
      with self._lock:
        self._running.pop(group, None)
      for job in jobs:
        job.give_up()
