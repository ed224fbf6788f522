"""Children for tests that kill: forked from a process that has only imported TensorFlow.

Importing TensorFlow takes longer than most of what is to be interrupted. Python's fork server
imports it once, runs no operation, and forks each child from there, which is safe (`tfreid.forks`).
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections.abc import Callable, Sequence

_MOST_SECONDS = 1800.0  # until a child is ready; a hang otherwise


class Child:
  """A process that runs a function of the calling script, until it ends or is killed."""

  def __init__(
    self, function: Callable, arguments: Sequence[str], log: str, preload: Sequence[str]
  ):
    """Starts it, and returns when it has begun.

    Args:
      function: of the script's top level.
      arguments: for it.
      log: file that its output is appended to.
      preload: modules that all children of this script need; the first child decides.

    Raises:
      AssertionError: it did not begin.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(list(preload))
    self._said, theirs = context.Pipe(duplex=False)
    self._process = context.Process(target=_run, args=(function, tuple(arguments), log, theirs))
    self._process.start()
    theirs.close()
    if not self._said.poll(_MOST_SECONDS) or self._next() != 'begun':
      self.kill()
      raise AssertionError(f'A child did not begin; its output is in {log}.')

  def _next(self) -> str:
    try:
      return self._said.recv()
    except EOFError:
      return ''

  def ended_within(self, seconds: float) -> bool:
    """Waits so long at most; whether it ended by itself, without an error.

    Raises:
      AssertionError: it ended with an error.
    """
    multiprocessing.connection.wait([self._process.sentinel], timeout=seconds)
    if self._process.is_alive():
      return False
    self._process.join()
    if self._process.exitcode or not self._said.poll() or self._next() != 'done':
      raise AssertionError(f'A child ended by itself with {self._process.exitcode}.')
    return True

  def kill(self) -> None:
    """SIGKILL."""
    if self._process.is_alive():
      os.kill(self._process.pid, signal.SIGKILL)
    self._process.join()
    self._said.close()


def _run(function, arguments, log, says):
  with open(log, 'ab', buffering=0) as file:
    os.dup2(file.fileno(), sys.stdout.fileno())
    os.dup2(file.fileno(), sys.stderr.fileno())
  says.send('begun')
  function(*arguments)
  sys.stdout.flush()
  says.send('done')
