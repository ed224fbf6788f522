"""What an index consists of: one small file, replaced whole, and a lock for writers. Floor 4.

  <index>/index.json     the state: model, engine, segments; what it does not name does not exist
  <index>/pending.json   what is being built, while it is not finished
  <index>/pending.jsonl  its shards, a line for each: they are kept, and not searched
  <index>/segments/      the segments of all, see `segment`
  <index>/lock           held by the one process that writes

A commit writes new files, flushes them, and replaces index.json; it happens at that moment or not
at all. Readers take no lock: they see the state they opened.

index.json, pending.json and each line of pending.jsonl carry a checksum of their own. index.json
also holds those of all other files. The folder of an index may be reached by a link; below it,
everything is a regular file or a folder, and a link is refused, since whoever writes also removes.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import tfreid
from tfreid import storage
from tfreid.index import segment
from tfreid.index import state as states

# Documents of format 1, of earlier releases, have no checksum; segments of format 2 have no copy in
# 8 bits, and may still be among those of format 3.
FORMAT, _FORMATS = 3, (1, 2, 3)
STATE, PENDING, SHARDS = 'index.json', 'pending.json', 'pending.jsonl'
LOCK, SEGMENTS = 'lock', 'segments'

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
# What a writer that was killed leaves of the files that it replaces: now, and in earlier releases.
_LEFT = re.compile(r'(index|pending)\.json\.partial(-[0-9]+-[0-9a-f]{8})?')

_log = logging.getLogger(__name__)


class IndexDirectory:
  """The folder of an index.

  Attributes:
    directory: the folder.
    segments: the folder in it that holds the segments.
  """

  def __init__(self, directory: str | os.PathLike[str]):
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
      ValueError: index.json is damaged or leads elsewhere, or a later version of this package wrote
        it.
    """
    if not self.exists:
      if os.path.isfile(self._path(PENDING)):
        raise FileNotFoundError(
          f"The index '{self.directory}' is not finished. The command that began it continues it."
        )
      names = sorted(os.listdir(self.directory))[:5] if os.path.isdir(self.directory) else []
      raise FileNotFoundError(
        f"'{self.directory}' holds no index (found: {', '.join(names) or 'nothing'}). "
        '`tfreid index build` makes one.'
      )
    self._check_parts()
    path = self._path(STATE)
    state = storage.read_json(path, what='state of the index', required=False)
    if state.get('format') not in _FORMATS:
      raise ValueError(
        f"'{self.directory}' is an index of format {state.get('format')}; this version of tfreid "
        f'reads format {FORMAT}. Build it again, or use the version that wrote it '
        f'({state.get("tfreid", "unknown")}).'
      )
    if state['format'] > 1:
      # Read again, as what must have a checksum.
      state = storage.read_json(path, what='state of the index')
    states.check(state, path)
    return state

  def write(self, state: Mapping[str, Any]) -> None:
    """Commits a state: replaces index.json.

    Args:
      state: the new one. Its 'commit' is that of the state from which it was made, or '' (or
        missing) where there was none.

    Raises:
      RuntimeError: the lock is not held.
      OSError: another writer has replaced index.json or removed a segment meanwhile, which can only
        be where locks do nothing, as on some network file systems; or the disk is full.
    """
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
    self._check_unchanged(state)
    commit = secrets.token_hex(8)
    self._write(
      STATE,
      {**state, 'format': FORMAT, 'tfreid': tfreid.__version__, 'changed': now, 'commit': commit},
    )

  def _check_unchanged(self, state: Mapping[str, Any]) -> None:
    """Refuses a state that was made from another one than the one on the disk."""
    before = self.read() if self.exists else {}
    known = before.get('commit', '') == state.get('commit', '')
    if not known or before.get('generation', 0) not in (state['generation'], _previous(state)):
      raise OSError(
        f"Another process has changed the index '{self.directory}' while this one wrote to it. "
        'Nothing was committed; give the same command again. If the index lies on a network file '
        'system, locks may do nothing there between machines: write from one machine only.'
      )
    for entry in state['segments']:
      folder = os.path.join(self.segments, entry['name'])
      if not os.path.isdir(folder):
        raise OSError(
          f"'{folder}', which was to be committed, has vanished: another process has cleaned up "
          'the '
          'index. Give the same command again, and write from one machine only.'
        )

  def damage(self) -> list[str]:
    """What is wrong with the segments of an index that may be too damaged to be opened."""
    return [
      problem
      for entry in self.read()['segments']
      for problem in segment.damage(os.path.join(self.segments, entry['name']), entry)
    ]

  def read_pending(self) -> dict[str, Any]:
    """What an unfinished build left, {} if there is none; its shards by their keys in 'shards'.

    Raises:
      ValueError: it is damaged.
    """
    if not os.path.isfile(self._path(PENDING)):
      return {}
    self._check_parts()
    pending = storage.read_json(self._path(PENDING), what='unfinished build', required=False)
    if 'format' in pending:
      pending = storage.read_json(self._path(PENDING), what='unfinished build')
      del pending['format']
    shards = pending.get('shards', {})
    try:
      for shard in shards.values():
        _check_shard(shard)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
      raise ValueError(f"'{self._path(PENDING)}' is damaged: {error}. {self._anew()}") from error
    return {**pending, 'shards': {**shards, **self._shards()[0]}}

  def write_pending(self, pending: Mapping[str, Any], *, keep_shards: bool) -> None:
    """Replaces what a later run of the same build will find.

    Args:
      pending: what is being built, without shards.
      keep_shards: the shards in pending.jsonl belong to it; if not, they are forgotten.
    """
    if not keep_shards:
      with contextlib.suppress(FileNotFoundError):
        os.remove(self._path(SHARDS))
    self._write(PENDING, {**pending, 'format': FORMAT})

  def add_pending(self, key: str, shard: Mapping[str, Any]) -> None:
    """Adds a shard; only its line is written, since a build may have tens of thousands."""
    self._check_locked()
    content = [key, shard]
    line = _line([*content, storage.checksum(_line(content))])
    storage.append_line(self._path(SHARDS), line)

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
    lines = storage.read_bytes(self._path(SHARDS)).splitlines(keepends=True)
    for i, line in enumerate(lines):
      if i == len(lines) - 1 and not line.endswith(b'\n'):
        break
      try:
        key, shard, *checksums = json.loads(line)
        # Lines of earlier releases have none.
        if checksums and checksums != [storage.checksum(_line([key, shard]))]:
          raise ValueError('it does not fit its checksum')
        _check_shard(shard)
        shards[key] = {'segment': shard['segment'], 'corrupt': shard['corrupt']}
      except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(
          f"'{self._path(SHARDS)}', line {i + 1}, is damaged: {error}. {self._anew()}"
        ) from error
      size += len(line)
    return shards, size

  def _anew(self) -> str:
    return (
      f"Delete '{self._path(PENDING)}' and '{self._path(SHARDS)}' to begin the unfinished build "
      'from its start; the index itself, if there is one, is not concerned.'
    )

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
      ValueError: a part of the index is a link.
      OSError: the folder cannot be written to, or the disk is full; with `errno`.
    """
    if self._locked:
      yield
      return
    taken = f"Another process writes to the index '{self.directory}'. Wait until it has finished."
    with self._explained():
      self._check_parts()
      storage.make_directories(self.segments)
      with storage.exclusive_lock(self._path(LOCK), message=taken):
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
    """Removes what a writer left and neither the state nor an unfinished build names.

    Of the folder of segments, only what a writer has made is removed, file by file; see
    `segment.remove`. Anything else there is left, and named in the log.

    Raises:
      RuntimeError: the lock is not held.
    """
    self._check_locked()
    self._check_parts()
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
      if name in kept:
        segment.remove_lists(folder, keep=(kept[name].get('removed') or {}).get('file', ''))
      elif not segment.remove(folder):
        _log.warning("'%s' is no segment that tfreid wrote, and is left as it is.", folder)
    for name in os.listdir(self.directory):
      if _LEFT.fullmatch(name):
        with contextlib.suppress(IsADirectoryError, PermissionError):
          os.remove(self._path(name))

  def _check_locked(self) -> None:
    if not self._locked:
      raise RuntimeError('Writing needs the lock.')

  def _check_parts(self) -> None:
    """Refuses an index of which a part is a link, or not what it should be.

    Raises:
      ValueError: the message names the part.
    """
    for name in (STATE, PENDING, SHARDS, LOCK, SEGMENTS):
      path = self._path(name)
      is_right = os.path.isdir(path) if name == SEGMENTS else os.path.isfile(path)
      if os.path.islink(path) or (os.path.exists(path) and not is_right):
        kind = 'a link' if os.path.islink(path) else 'of another kind than it should be'
        raise ValueError(
          f"'{path}' is {kind}. An index consists of files and folders of its own: what a link "
          'points to is not its own to change or remove. Move the whole folder of the index '
          'instead; a link may point to that.'
        )

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
      return storage.read_json(self._path(STATE), required=False).get('generation')
    except (OSError, ValueError):
      return None

  def _path(self, name: str) -> str:
    return os.path.join(self.directory, name)

  def _write(self, name: str, data: Mapping[str, Any]) -> None:
    self._check_locked()
    storage.write_json(self._path(name), data)


def _previous(state: Mapping[str, Any]) -> int:
  return max(state['generation'] - 1, 0)


def _line(content: Any) -> bytes:
  return json.dumps(content, ensure_ascii=False, separators=(',', ':')).encode(
    'utf-8', 'surrogatepass'
  )


def _check_shard(shard: Mapping[str, Any]) -> None:
  """Refuses what is no shard of an unfinished build."""
  if shard['segment'] is not None:
    states.check_entry(shard['segment'])
  for path, reason in shard['corrupt']:
    if not isinstance(path, str) or not isinstance(reason, str):
      raise ValueError(f'{path!r} is no path, or {reason!r} no reason')
