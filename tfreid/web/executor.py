"""Threads for what takes long: a bounded number, a bounded queue, a bounded wait. Floor 5."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_Result = TypeVar('_Result')


class BusyError(Exception):
  """So much is waiting already that waiting longer would help nobody."""


class TooSlowError(Exception):
  """It took longer than anybody waits."""


class BoundedExecutor:
  """Runs functions in threads, for coroutines that wait for them.

  TensorFlow and NumPy let go of the interpreter while they compute, so threads are enough, and one
  model serves all of them. A thread cannot be stopped: a call that is too slow keeps its place
  until it is done, though nobody waits for it any more.
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
    self._taken = 0
    self._lock = threading.Lock()

  @property
  def taken(self) -> int:
    """Calls that run or wait."""
    return self._taken

  async def run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
    """What the function returns.

    Raises:
      BusyError: the queue is full; the function was not called.
      TooSlowError: no result in time.
    """
    with self._lock:
      if self._taken >= self._places:
        raise BusyError
      self._taken += 1
    try:
      future = self._executor.submit(function, *arguments)
    except RuntimeError as error:  # shut down
      self._leave(None)
      raise BusyError from error
    future.add_done_callback(self._leave)
    try:
      return await asyncio.wait_for(asyncio.wrap_future(future), self.timeout)
    except asyncio.TimeoutError as error:
      raise TooSlowError from error

  def close(self) -> None:
    """Takes no more calls, and forgets those that wait."""
    self._executor.shutdown(wait=False, cancel_futures=True)

  def _leave(self, _):
    with self._lock:
      self._taken -= 1
