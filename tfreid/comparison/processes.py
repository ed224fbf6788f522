"""Runs as processes of their own: started, kept to their cores, watched and noted. Floor 5."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from tfreid import processor, threads

_POLL = 0.5  # seconds

# Becomes a command that is kept to some cores. In the new process and not by `preexec_fn`: what
# runs between fork and exec may hang where there are threads.
_PINNED = (
  'import os, sys; os.sched_setaffinity(0, map(int, sys.argv[1].split(","))); '
  'os.execv(sys.argv[2], sys.argv[2:])'
)


def wait(command: Sequence[str], log: str, tell, *, cores: Sequence[int] = ()) -> tuple[int, int]:
  """Runs a command to its end; returns its exit status and its peak resident size in bytes.

  Args:
    command: to run.
    log: file that its output is added to.
    tell: called with the seconds elapsed, from time to time; what it raises ends the command.
    cores: to keep it to, where the system can; none for all.
  """
  if cores and hasattr(os, 'sched_setaffinity'):
    command = [sys.executable, '-c', _PINNED, ','.join(map(str, cores)), *command]
  started = time.time()
  with open(log, 'ab') as file:
    process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
      while True:
        # wait4 and not wait: it tells what this one child used.
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
          break
        tell(time.time() - started)
        time.sleep(_POLL)
    except BaseException:
      process.terminate()
      process.wait()
      raise
  process.returncode = os.waitstatus_to_exitcode(status)
  unit = 1 if sys.platform == 'darwin' else 1024
  return process.returncode, usage.ru_maxrss * unit


@contextlib.contextmanager
def alone(directory: str, *, wait: bool = True) -> Iterator[bool]:
  """Keeps a run to one process, so that several may do the runs of one comparison together.

  Args:
    directory: of the run; made if need be.
    wait: until nobody else is at it.

  Yields:
    Whether nobody else was at it. If somebody was, that is over now: look again what is left to do.
    Without `wait` it is not over.
  """
  os.makedirs(directory, exist_ok=True)
  with open(os.path.join(directory, '.lock'), 'wb') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      first = True
    except BlockingIOError:
      if wait:
        fcntl.flock(file, fcntl.LOCK_EX)
      first = False
    yield first


def last_words(log: str) -> str:
  """What a failed run said at the end: its error message, or else its last line."""
  with open(log, encoding='utf-8', errors='replace') as file:
    lines = [line.strip() for line in file if line.strip()]
  errors = [line for line in lines if re.match(r'(\w+\.)*\w*Error\b', line)]
  return (errors or lines or ['it said nothing'])[-1][:300]


def machine() -> dict[str, str]:
  """What the runs were made on."""
  facts = {
    'system': f'{platform.system()} {platform.machine()}',
    'processor': processor.processor().name or platform.processor() or platform.machine(),
  }
  facts['cores'] = str(threads.usable_cores())
  if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    facts['memory'] = f'{memory / 2**30:.1f} GiB'
  return facts


def shares(count: int) -> list[list[int]]:
  """The cores of this process in so many shares of one size, for runs at the same time.

  Raises:
    ValueError: more shares than cores.
  """
  if hasattr(os, 'sched_getaffinity'):
    cores = sorted(os.sched_getaffinity(0))
  else:
    cores = list(range(os.cpu_count() or 1))
  if not 1 <= count <= len(cores):
    raise ValueError(
      f'--workers={count}, but there are {len(cores)} cores: each run at a time needs one of its '
      'own.'
    )
  size = len(cores) // count
  return [cores[i * size : (i + 1) * size] for i in range(count)]


def now() -> str:
  """The time with its zone."""
  return time.strftime('%Y-%m-%dT%H:%M:%S%z')
