"""What an index consists of: one small file, replaced whole, and a lock for writers. Floor 4.

  <index>/index.json     the state: model, engine, segments; what it does not name does not exist
  <index>/pending.json   what is being built, while it is not finished
  <index>/pending.jsonl  its shards, a line for each: they are kept, and not searched
  <index>/segments/      the segments of all, see `segment`
  <index>/lock           held by the one process that writes

A commit writes new files, flushes them, and replaces index.json; it happens at that moment or not
at all. Readers take no lock: they see the state they opened.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import tfreid
from tfreid.index.segment import flush_directory

FORMAT = 1
STATE, PENDING, SHARDS = 'index.json', 'pending.json', 'pending.jsonl'
LOCK, SEGMENTS = 'lock', 'segments'

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


class Ledger:
  """The folder of an index.

  Attributes:
    directory: the folder.
    segments: the folder in it that holds the segments.
  """

  def __init__(self, directory: str):
    """Names the folder; it need not exist."""
    self.directory = os.path.abspath(os.path.expanduser(directory))
    self.segments = os.path.join(self.directory, SEGMENTS)
    self._locked = False

  @property
  def exists(self) -> bool:
    """Whether there is an index."""
    return os.path.isfile(self._path(STATE))

  def read(self) -> dict[str, Any]:
    """The state.

    Raises:
      FileNotFoundError: there is no index.
      ValueError: index.json cannot be read, or a later version of this package wrote it.
    """
    if not self.exists:
      if os.path.isfile(self._path(PENDING)):
        raise FileNotFoundError(
          f"The index '{self.directory}' is not finished. The command that began it continues it."
        )
      found = sorted(os.listdir(self.directory))[:5] if os.path.isdir(self.directory) else []
      raise FileNotFoundError(
        f"'{self.directory}' holds no index (found: {', '.join(found) or 'nothing'}). "
        '`tools/index.py build` makes one.'
      )
    state = self._read(STATE)
    if state.get('format') != FORMAT:
      raise ValueError(
        f"'{self.directory}' is an index of format {state.get('format')}; this version of tfreid "
        f'reads format {FORMAT}. Build it again, or use the version that wrote it '
        f'({state.get("tfreid", "unknown")}).'
      )
    return state

  def write(self, state: Mapping[str, Any]) -> None:
    """Commits a state: replaces index.json."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    state = {'format': FORMAT, 'tfreid': tfreid.__version__, **state, 'changed': now}
    self._write(STATE, state)

  def read_pending(self) -> dict[str, Any]:
    """What an unfinished build left, {} if there is none; its shards by their keys in 'shards'."""
    if not os.path.isfile(self._path(PENDING)):
      return {}
    pending = self._read(PENDING)
    return {**pending, 'shards': {**pending.get('shards', {}), **self._shards()[0]}}

  def write_pending(self, pending: Mapping[str, Any], *, keep_shards: bool) -> None:
    """Replaces what a later run of the same build will find.

    Args:
      pending: what is being built, without shards.
      keep_shards: the shards in pending.jsonl belong to it; if not, they are forgotten.
    """
    if not keep_shards:
      with contextlib.suppress(FileNotFoundError):
        os.remove(self._path(SHARDS))
    self._write(PENDING, pending)

  def add_pending(self, key: str, shard: Mapping[str, Any]) -> None:
    """Adds a shard; only its line is written, since a build may have tens of thousands."""
    if not self._locked:
      raise RuntimeError('Writing needs the lock.')
    line = json.dumps([key, shard], ensure_ascii=False, separators=(',', ':')).encode() + b'\n'
    path = self._path(SHARDS)
    new = not os.path.exists(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
      before = os.fstat(descriptor).st_size
      try:
        written = 0
        while written < len(line):
          written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
      except BaseException:
        os.ftruncate(descriptor, before)
        raise
    finally:
      os.close(descriptor)
    if new:
      flush_directory(self.directory)

  def _shards(self) -> tuple[dict[str, Any], int]:
    """The shards in pending.jsonl, and how many bytes of it they take.

    The last line may be cut off, by a kill in the midst of writing it; it does not count.

    Raises:
      ValueError: another line cannot be read.
    """
    shards: dict[str, Any] = {}
    size = 0
    if not os.path.isfile(self._path(SHARDS)):
      return shards, size
    with open(self._path(SHARDS), 'rb') as file:
      lines = file.readlines()
    for i, line in enumerate(lines):
      try:
        if not line.endswith(b'\n'):
          raise ValueError('it is cut off')
        key, shard = json.loads(line)
        shards[key] = {'segment': shard['segment'], 'corrupt': shard['corrupt']}
      except (ValueError, TypeError, LookupError) as error:
        if i == len(lines) - 1:
          break
        raise ValueError(f"'{self._path(SHARDS)}', line {i + 1}, is damaged: {error}.") from error
      size += len(line)
    return shards, size

  def _cut_shards(self) -> None:
    """Removes a last line that is cut off, so that the next one begins on a line of its own."""
    with contextlib.suppress(FileNotFoundError):
      size = self._shards()[1]
      if os.path.getsize(self._path(SHARDS)) > size:
        os.truncate(self._path(SHARDS), size)

  def _remove_pending(self) -> None:
    # The shards first: without pending.json they would be nobody's.
    for name in (SHARDS, PENDING):
      with contextlib.suppress(FileNotFoundError):
        os.remove(self._path(name))

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """Holds the writer's lock; the system releases it if the process dies.

    What fails below it leaves no new files behind but shards of an unfinished build: after a full
    disk there is as much room as before.

    Raises:
      BlockingIOError: another process writes.
      OSError: the folder cannot be written to, or the disk is full; with `errno`.
    """
    if self._locked:
      yield
      return
    with self._explained(), self._opened() as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise BlockingIOError(
          f"Another process writes to the index '{self.directory}'. Wait until it has finished."
        ) from error
      self._locked = True
      try:
        yield
      except BaseException:
        # Whatever is wrong here as well, the first error is the one to be told.
        with contextlib.suppress(OSError, ValueError):
          self.clean()
        raise
      finally:
        self._locked = False

  def clean(self) -> None:
    """Removes what neither the state nor an unfinished build names; needs the lock.

    Raises:
      RuntimeError: the lock is not held.
    """
    if not self._locked:
      raise RuntimeError('Cleaning needs the lock.')
    state = self.read() if self.exists else {'segments': [], 'generation': 0}
    pending = self.read_pending()
    entries = list(state['segments'])
    if pending.get('generation') == state['generation']:
      entries += [shard['segment'] for shard in pending['shards'].values() if shard['segment']]
      self._cut_shards()
    else:
      self._remove_pending()
    kept = {entry['name']: entry for entry in entries}
    for name in os.listdir(self.segments):
      folder = os.path.join(self.segments, name)
      if name not in kept:
        shutil.rmtree(folder)
        continue
      removed = (kept[name].get('removed') or {}).get('file')
      for file in os.listdir(folder):
        if file.startswith('removed-') and file != removed:
          os.remove(os.path.join(folder, file))
    for name in os.listdir(self.directory):
      if name.endswith('.json.partial'):
        os.remove(self._path(name))

  def _opened(self):
    os.makedirs(self.segments, exist_ok=True)
    return open(self._path(LOCK), 'a', encoding='utf-8')

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Says of an error of the disk which index it is about, and what to do."""
    before = self._generation()
    try:
      yield
    except OSError as error:
      known = error.errno in (*_FULL, *_FORBIDDEN)
      if self._generation() != before:
        advice = (
          'The change was made all the same; what it replaced is left, and the next writer removes '
          'it.'
        )
      elif not known:
        raise
      elif error.errno in _FULL:
        advice = 'It is as it was before. Make room, then give the same command again.'
      else:
        advice = 'It is as it was before. Writing needs a folder that this user may write to.'
      reason = error.strerror or str(error)
      file = f" ('{error.filename}')" if error.filename else ''
      told = type(error)(
        f"The index '{self.directory}' cannot be written: {reason}{file}. {advice}"
      )
      told.errno = error.errno
      raise told from error

  def _generation(self) -> int | None:
    """Of the last commit; None if there was none, or it cannot be read."""
    try:
      return self._read(STATE).get('generation')
    except (OSError, ValueError):
      return None

  def _path(self, name: str) -> str:
    return os.path.join(self.directory, name)

  def _read(self, name: str) -> dict[str, Any]:
    path = self._path(name)
    with open(path, encoding='utf-8') as file:
      try:
        data = json.load(file)
      except ValueError as error:
        raise ValueError(f"'{path}' is damaged: {error}.") from error
    if not isinstance(data, dict):
      raise ValueError(f"'{path}' is damaged: it is not an object.")
    return data

  def _write(self, name: str, data: Mapping[str, Any]) -> None:
    if not self._locked:
      raise RuntimeError('Writing needs the lock.')
    path = self._path(name)
    with open(f'{path}.partial', 'w', encoding='utf-8') as file:
      json.dump(data, file, indent=1, ensure_ascii=False)
      file.flush()
      os.fsync(file.fileno())
    os.replace(f'{path}.partial', path)
    flush_directory(self.directory)
