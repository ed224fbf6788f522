"""Threads for what takes long: a bounded number, a bounded queue, a bounded wait. Floor 5."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from tfreid import cancellation

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
      self._executor.submit(self._run_next)
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

  def _run_next(self) -> None:
    """Runs the oldest call of whoever's turn it is, if one still waits."""
    with self._lock:
      if not self._queues:
        return
      name, queue = self._queues.popitem(last=False)
      job = queue.popleft()
      if queue:
        self._queues[name] = queue
    job.run()

  def _leave(self, name: str, job: _Job) -> None:
    with self._lock:
      self._jobs.discard(job)
      queue = self._queues.get(name)
      if queue and job in queue:  # cancelled while it waited
        queue.remove(job)
        if not queue:
          del self._queues[name]
