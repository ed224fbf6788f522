"""Who asked what, and when: a line of JSON per query, appended and never changed. Floor 5."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import stat
import threading
from collections.abc import Mapping
from typing import Any


class UnwritableError(OSError):
  """The log cannot be written, so nothing may be answered.

  Attributes:
    appended: whether the lines are in the file, though perhaps not on the disk.
  """

  appended = False


class AuditLog:
  """A file of JSON lines.

  Lines are written whole by one call, on a descriptor that can only append, and are on the disk
  when `write` returns; those of threads that come together share one flush. Several servers may
  write to one file: a lock of the file keeps each from taking back, or continuing, a line of
  another. What a crash left of a line stays as it is, and the next line begins on its own. The file
  may be rotated by renaming it: the next line goes into a new one.

  Attributes:
    path: of the file.
  """

  def __init__(self, path: str):
    """Opens the file, for its owner only.

    A file that is there already keeps its permissions, which may be somebody's intention (a group
    that reads the log); where others than its owner can read it, a warning says so.

    Raises:
      UnwritableError: it cannot be opened for appending.
    """
    self.path = os.path.abspath(os.path.expanduser(path))
    self._lock, self._flush_lock = threading.Lock(), threading.Lock()
    self._written = self._flushed = 0
    self._descriptor: int | None = None
    with self._lock:
      mode = os.fstat(self._open()).st_mode
    if stat.S_ISREG(mode) and mode & 0o077:
      logging.getLogger(__name__).warning(
        'Others than its owner can read or change the audit log %s (mode %o). If that is not '
        'intended: chmod 600 it.',
        self.path,
        stat.S_IMODE(mode),
      )

  def write(self, *entries: Mapping[str, Any]) -> None:
    """Appends entries, all of them or none.

    Raises:
      UnwritableError: they are not on the disk. The message names no path: it is for whoever asked.
    """
    # ASCII only: whatever a text holds, it is one line, and any program can read it.
    lines = b''.join(
      json.dumps(entry, ensure_ascii=True, separators=(',', ':')).encode() + b'\n'
      for entry in entries
    )
    try:
      with self._lock:
        self._follow()
        opened = self._open() if self._descriptor is None else self._descriptor
        _append(opened, lines)
        self._written += 1
        mine, descriptor = self._written, os.dup(opened)
      try:
        self._flush(mine, descriptor)
      except OSError as error:
        unwritable = UnwritableError(_advice(error))
        unwritable.appended = True
        raise unwritable from error
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

  def _open(self) -> int:
    flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
      try:
        # To read, too: whether the last line is whole.
        descriptor = os.open(self.path, flags | os.O_RDWR, 0o600)
      except PermissionError:
        descriptor = os.open(self.path, flags | os.O_WRONLY, 0o600)
    except OSError as error:
      raise UnwritableError(_advice(error)) from error
    self._descriptor = descriptor
    return descriptor

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


def _append(descriptor: int, lines: bytes):
  """Writes lines behind what is there, all of them or none."""
  with contextlib.suppress(OSError):  # not every file system can; then one server only
    fcntl.flock(descriptor, fcntl.LOCK_EX)
  try:
    size = os.fstat(descriptor).st_size
    if _is_torn(descriptor, size):
      lines = b'\n' + lines  # what a crash has left is a line of its own
    if os.write(descriptor, lines) != len(lines):
      # A full disk took a part, which goes, unless the file is append-only: then it stays torn.
      with contextlib.suppress(OSError):
        os.ftruncate(descriptor, size)
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  finally:
    with contextlib.suppress(OSError):
      fcntl.flock(descriptor, fcntl.LOCK_UN)


def _is_torn(descriptor: int, size: int) -> bool:
  """Whether the last line of a file has no end; not, if the file cannot be read."""
  try:
    return size > 0 and os.pread(descriptor, 1, size - 1) != b'\n'
  except OSError:
    return False


def _advice(error: OSError) -> str:
  return (
    f'The audit log cannot be written ({error.strerror or error}), and what is not logged is not '
    'answered. Whoever runs this server must see to it.'
  )
