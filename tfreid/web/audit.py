"""Who asked what, and when: a line of JSON per query, appended and never changed. Floor 5."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import Any


class UnwritableError(OSError):
  """The log cannot be written, so nothing may be answered."""


class AuditLog:
  """A file of JSON lines.

  A line is written whole by one call, on a descriptor that can only append, and is on the disk when
  `write` returns; lines that arrive together share one flush. The file may be rotated by renaming
  it: the next line goes into a new one.

  Attributes:
    path: of the file.
  """

  def __init__(self, path: str):
    """Opens the file, for its owner only.

    Raises:
      UnwritableError: it cannot be opened for appending.
    """
    self.path = os.path.abspath(os.path.expanduser(path))
    self._lock, self._flush_lock = threading.Lock(), threading.Lock()
    self._written = self._flushed = 0
    self._descriptor: int | None = None
    with self._lock:
      self._open()

  def write(self, entry: Mapping[str, Any]) -> None:
    """Appends an entry.

    Raises:
      UnwritableError: it is not on the disk. The message names no path: it is for whoever asked.
    """
    # ASCII only: whatever a text holds, it is one line, and any program can read it.
    line = json.dumps(entry, ensure_ascii=True, separators=(',', ':')).encode() + b'\n'
    try:
      with self._lock:
        self._follow()
        if self._descriptor is None:
          self._open()
        start = os.fstat(self._descriptor).st_size
        if os.write(self._descriptor, line) != len(line):
          # A full disk took a part. What is there of it must not look like a line of the next one.
          os.ftruncate(self._descriptor, start)
          raise OSError('no space left')
        self._written += 1
        mine, descriptor = self._written, os.dup(self._descriptor)
      try:
        self._flush(mine, descriptor)
      finally:
        os.close(descriptor)
    except UnwritableError:
      raise
    except OSError as error:
      raise UnwritableError(_advice(error)) from error

  def close(self) -> None:
    """Closes the file."""
    with self._lock:
      if self._descriptor is not None:
        os.close(self._descriptor)
        self._descriptor = None

  def _open(self):
    try:
      self._descriptor = os.open(
        self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, 'O_CLOEXEC', 0), 0o600
      )
    except OSError as error:
      raise UnwritableError(_advice(error)) from error

  def _follow(self):
    """Lets go of a file that has been renamed or removed."""
    if self._descriptor is None:
      return
    try:
      now, ours = os.stat(self.path), os.fstat(self._descriptor)
      if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
        return
    except FileNotFoundError:
      pass
    # Before a line of the new file can count as flushed, all of the old one are.
    os.fsync(self._descriptor)
    os.close(self._descriptor)
    self._descriptor = None

  def _flush(self, mine: int, descriptor: int):
    """Returns when line number `mine` is on the disk."""
    with self._flush_lock:
      if self._flushed >= mine:
        return  # somebody flushed it along while this thread waited
      with self._lock:
        written = self._written
        same = self._descriptor is not None and os.path.sameopenfile(self._descriptor, descriptor)
      os.fsync(descriptor)
      # After a rotation the later lines are in another file, which this call did not flush.
      self._flushed = max(self._flushed, written if same else mine)


def _advice(error: OSError) -> str:
  return (
    f'The audit log cannot be written ({error.strerror or error}), and what is not logged is not '
    'answered. Whoever runs this server must see to it.'
  )
