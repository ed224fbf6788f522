"""Contestants: processes that wait until they are asked, so that all take turns on one machine.

Standard library only: a contestant may run under a Python that has PyTorch and nothing else.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def serve(variants: Mapping[str, Callable[[], object]], *, warm_up: int = 1) -> None:
  """The process of a contestant: says when it is ready, then times what it is asked for.

  Args:
    variants: what it can do; each returns when it is done.
    warm_up: calls of each before it is ready, in which it traces and compiles.
  """
  for variant in variants.values():
    for _ in range(warm_up):
      variant()
  # Standard output may carry the libraries' own messages; answers are marked.
  print('READY', flush=True)
  for line in sys.stdin:
    started = time.perf_counter(), time.process_time()
    variants[line.strip()]()
    print(f'TOOK {time.perf_counter() - started[0]} {time.process_time() - started[1]}', flush=True)


class Contestant:
  """A waiting process; `seconds(variant)` has it do one thing once."""

  def __init__(
    self, python: str, script: str, arguments: Sequence[str], environment: Mapping[str, str]
  ):
    """Starts it.

    Args:
      python: the interpreter.
      script: path of a program that calls `serve` when it gets the arguments.
      arguments: of the program.
      environment: variables added to those of this process.

    Raises:
      RuntimeError: it ended before it was ready.
    """
    self._command = [python, os.path.abspath(script), *arguments]
    self._process = subprocess.Popen(
      self._command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      cwd=ROOT,
      env={**os.environ, 'PYTHONPATH': _python_path(), 'TF_CPP_MIN_LOG_LEVEL': '3', **environment},
    )
    self._answer('READY')

  def _answer(self, mark: str) -> list[str]:
    for line in self._process.stdout:
      if line.startswith(mark):
        return line.split()[1:]
    raise RuntimeError(
      f'A contestant ended with status {self._process.wait()}. To see why, run it by itself: '
      f'PYTHONPATH={ROOT} {shlex.join(self._command)}'
    )

  def seconds(self, variant: str) -> tuple[float, float]:
    """Seconds of the clock, and of all cores together."""
    self._process.stdin.write(f'{variant}\n')
    self._process.stdin.flush()
    clock, processor = self._answer('TOOK')
    return float(clock), float(processor)

  def stop(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()


def _python_path() -> str:
  given = os.environ.get('PYTHONPATH')
  return ROOT if not given else os.pathsep.join((ROOT, given))


def has_torch(python: str) -> bool:
  """Whether that interpreter has PyTorch."""
  done = subprocess.run(
    [python, '-c', 'import torch'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  return done.returncode == 0


def cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
