"""Several processes that answer at one address, and the one that watches over them. Floor 5.

Python takes one step at a time, so one process cannot use many cores. Each worker here has the
whole application and takes its share of the connections: Linux spreads what comes to a port over
all sockets that listen at it. The supervisor opens these sockets and keeps them, so who comes to a
worker that is being started again waits, and is not turned away.

A worker is the same command once more, with the number of an open socket in its environment, by
which it is told what to do and says when it is ready; its end tells each of them that the other one
is gone.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

# Names the socket, in the environment of a worker.
_VARIABLE = 'TFREID_SERVE_WORKER'
_READY = b'ready\n'
# Seconds between two looks at whether anything is to be done.
_PAUSE = 0.5
# Seconds that workers have to end: uvicorn gives ten to those who are being answered.
_ENDING = 15.0
# Seconds before a worker that ended is started again: at first, and at most.
_FIRST_DELAY, _LAST_DELAY = 1.0, 30.0
# A worker that has lived so long, in seconds, is started again without further delay.
_LONG = 60.0


class Assignment(NamedTuple):
  """What a worker is told.

  Attributes:
    number: of the worker, from 0.
    processes: how many there are.
    listening: the file descriptor of its socket.
    folder: of what the workers share; see `tfreid.web.state.SharedState`.
    key: what session cookies are signed with.
    tokens: name of a user to secret.
    channel: to the supervisor.
  """

  number: int
  processes: int
  listening: int
  folder: str
  key: bytes
  tokens: Mapping[str, str]
  channel: socket.socket

  def ready(self) -> None:
    """Tells the supervisor that this worker answers from now on."""
    self.channel.sendall(_READY)

  def when_left(self, function: Callable[[], None]) -> None:
    """Calls a function, in a thread, when the supervisor is gone."""

    def wait():
      try:
        while self.channel.recv(1024):
          pass
      except OSError:
        pass
      function()

    threading.Thread(target=wait, name='supervisor', daemon=True).start()


def assignment() -> Assignment | None:
  """What this process is to do as a worker; None if it is none.

  Raises:
    ValueError: the environment says that it is one, and nobody says what to do.
  """
  descriptor = os.environ.pop(_VARIABLE, '')
  if not descriptor:
    return None
  try:
    channel = socket.socket(fileno=int(descriptor))
    with channel.makefile('rb') as file:
      told = json.loads(file.readline())
    told['key'] = bytes.fromhex(told['key'])
    return Assignment(channel=channel, **told)
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise ValueError(
      f'{_VARIABLE} is set, but this process was not started by a server. Unset it.'
    ) from error


class _Worker:
  """A worker, as the supervisor sees it.

  Attributes:
    process: the last one, None before the first.
    is_ready: whether it answers.
  """

  def __init__(self, number: int, listening: socket.socket):
    self.number, self.listening = number, listening
    self.process: subprocess.Popen | None = None
    self.channel: socket.socket | None = None
    self.is_ready = False
    self._started = 0.0
    self._delay = _FIRST_DELAY
    self.due = 0.0  # when it is to be started again

  def start(self, command: Sequence[str], told: Mapping[str, object]) -> socket.socket:
    """Starts a process, which is not ready yet; returns the channel to it."""
    ours, theirs = socket.socketpair()
    descriptors = theirs.fileno(), self.listening.fileno()
    with theirs:
      self.process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=descriptors,
        env={**os.environ, _VARIABLE: str(descriptors[0])},
      )
    self.channel, self.is_ready, self._started = ours, False, time.monotonic()
    about = {**told, 'number': self.number, 'listening': descriptors[1]}
    try:
      ours.sendall(json.dumps(about).encode() + b'\n')
    except OSError:
      pass  # it has ended already, which is noticed where all ends are
    return ours

  def hear(self) -> None:
    """Notes what the process says."""
    assert self.channel is not None
    try:
      said = self.channel.recv(1024)
    except OSError:
      said = b''
    if said:
      self.is_ready = True
    else:
      self.channel.close()
      self.channel = None

  def end(self) -> int:
    """Waits for a process that has let go of its channel, or was told to; returns its status."""
    assert self.process is not None
    try:
      status = self.process.wait(_ENDING)
    except subprocess.TimeoutExpired:
      self.process.kill()
      status = self.process.wait()
    self.is_ready = False
    if self.channel is not None:
      self.channel.close()
      self.channel = None
    if time.monotonic() - self._started > _LONG:
      self._delay = _FIRST_DELAY
    self.due, self._delay = time.monotonic() + self._delay, min(2 * self._delay, _LAST_DELAY)
    return status


class Supervisor:
  """Starts workers, starts those again that end, and ends all when it is told to.

  Attributes:
    should_end: set it, in a handler of signals for example, to end.
  """

  def __init__(
    self,
    command: Sequence[str],
    listening: Sequence[socket.socket],
    *,
    key: bytes,
    tokens: Mapping[str, str],
  ):
    """Starts nothing yet.

    Args:
      command: of a worker.
      listening: a bound socket for each worker.
      key: see `Assignment`.
      tokens: see `Assignment`.
    """
    self.should_end = False
    self._command = list(command)
    self._workers = [_Worker(number, one) for number, one in enumerate(listening)]
    self._told = {'processes': len(listening), 'key': key.hex(), 'tokens': dict(tokens)}
    self._selector = selectors.DefaultSelector()

  def run(self, opened: Callable[[], None]) -> int:
    """Serves until it is told to end.

    The first worker starts alone: what it cannot do, the others cannot, and it is said once.

    Args:
      opened: called when all workers are ready for the first time.

    Returns:
      0; or the status of a worker that could not start.
    """
    folder = tempfile.mkdtemp(prefix='tfreid-serve-')  # for its owner only
    self._told['folder'] = folder
    try:
      for workers in (self._workers[:1], self._workers[1:]):
        for worker in workers:
          self._start(worker)
        while not self.should_end and not all(worker.is_ready for worker in workers):
          self._listen()
          for worker in self._workers:
            if worker.channel is None and worker.process is not None:
              return worker.end() or 1
      if not self.should_end:
        opened()
      while not self.should_end:
        self._listen()
        self._start_again()
      return 0
    finally:
      self._end()
      shutil.rmtree(folder, ignore_errors=True)

  def _start(self, worker: _Worker) -> None:
    channel = worker.start(self._command, self._told)
    self._selector.register(channel, selectors.EVENT_READ, worker)

  def _listen(self) -> None:
    """Waits until a worker says something or ends, but not for long."""
    for event, _ in self._selector.select(_PAUSE):
      channel, worker = event.fileobj, event.data
      worker.hear()
      if worker.channel is None:
        self._selector.unregister(channel)

  def _start_again(self) -> None:
    """Starts workers anew that have ended."""
    for worker in self._workers:
      if worker.channel is None and worker.process is not None:
        status = worker.end()
        worker.process = None
        if not self.should_end:
          logging.getLogger(__name__).error(
            'Process %d of the server ended with status %d. It is started again.',
            worker.number,
            status,
          )
      if worker.process is None and time.monotonic() >= worker.due and not self.should_end:
        self._start(worker)

  def _end(self) -> None:
    """Ends all workers, and waits for them."""
    for worker in self._workers:
      if worker.process is not None:
        worker.process.send_signal(signal.SIGTERM)
    for worker in self._workers:
      if worker.process is not None:
        worker.end()
    self._selector.close()
