"""What a server remembers between requests: crops that were answered, sessions that ended. Floor 5.

A server of one process keeps it in memory. Several processes of one server share it by databases of
SQLite: a browser that was answered by one asks another for the pictures, and who signs out has no
session at any.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

# Crops whose pictures may be looked at: the last ones that were answered.
_SEEN = 200_000
# Sessions that were ended before their time and are remembered until then.
_MAX_ENDED = 100_000
# Seconds that a process waits for another one to finish with the database.
_PATIENCE = 10.0


class Seen(Protocol):
  """Crops that were in an answer: a key for each, and where its picture is.

  Only their pictures are given out. So nobody can look through a gallery past the log of queries,
  and a client names keys, never files.
  """

  def add(self, crops: Sequence[tuple[str, str]]) -> list[str]:
    """Remembers crops, each an id and a path; returns a key of each, 32 hexadecimal digits."""

  def path(self, key: str) -> str | None:
    """Where the picture is; None if the crop was not answered, or long ago."""


class EndedSessions(Protocol):
  """Sessions that ended before their time."""

  def add(self, identifier: str, expires: int) -> None:
    """Remembers a session until the time at which it would have ended, in seconds since 1970."""

  def __contains__(self, identifier: object) -> bool: ...


class SeenHere:
  """The last crops that this process has answered; see `Seen`."""

  def __init__(self, size: int = _SEEN):
    """Remembers the last `size` crops."""
    self._size = size
    self._paths: collections.OrderedDict[str, str] = collections.OrderedDict()
    self._lock = threading.Lock()

  def add(self, crops: Sequence[tuple[str, str]]) -> list[str]:
    """Remembers crops; see `Seen`."""
    keys = [_key(identifier) for identifier, _ in crops]
    with self._lock:
      for key, (_, path) in zip(keys, crops):
        self._paths[key] = path
        self._paths.move_to_end(key)
      while len(self._paths) > self._size:
        self._paths.popitem(last=False)
    return keys

  def path(self, key: str) -> str | None:
    """Where the picture is; see `Seen`."""
    with self._lock:
      return self._paths.get(key)


class EndedHere:
  """Sessions that ended at this process; see `EndedSessions`."""

  def __init__(self) -> None:
    """Begins with none."""
    self._ended: dict[str, int] = {}

  def add(self, identifier: str, expires: int) -> None:
    """Remembers a session; see `EndedSessions`."""
    now = time.time()
    for over in [one for one, end in self._ended.items() if end < now]:
      del self._ended[over]
    if len(self._ended) >= _MAX_ENDED:
      self._ended.pop(next(iter(self._ended)))
    self._ended[identifier] = expires

  def __contains__(self, identifier: object) -> bool:
    return identifier in self._ended


class SharedState:
  """What the processes of one server have in common.

  Attributes:
    seen: crops that any of them has answered.
    ended: sessions that ended at any of them.
  """

  def __init__(self, folder: str, *, number: int, processes: int, size: int = _SEEN):
    """Opens the databases in a folder, or makes them.

    Args:
      folder: that exists, and that nobody else can read: the databases have paths of pictures.
      number: of this process, from 0.
      processes: how many there are.
      size: of the crops that each of them remembers.

    Raises:
      sqlite3.Error: one cannot be opened.
    """
    self._ended = _SharedEnded(os.path.join(folder, 'ended.sqlite'))
    # A database of its own for each process, which writes in it for each answer, and would wait for
    # the others: only who looks for a crop of another one reads there.
    files = [os.path.join(folder, f'seen-{i}.sqlite') for i in range(processes)]
    own = files.pop(number)
    self._seen = _SharedSeen(own, files, size)
    self.seen: Seen = self._seen
    self.ended: EndedSessions = self._ended

  def close(self) -> None:
    """Closes the databases."""
    self._seen.close()
    self._ended.close()


class _Database:
  """A connection that the threads of a process share."""

  def __init__(self, path: str, table: str):
    self._lock = threading.Lock()
    # One statement after the other, where none begins something greater.
    self._connection = sqlite3.connect(
      path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
    )
    # Who reads never waits for who writes. And what is in it is of no use to the next server: it
    # need not be on the disk.
    _patiently(self._connection, 'PRAGMA journal_mode = WAL')
    self._connection.execute('PRAGMA synchronous = OFF')
    _patiently(self._connection, f'CREATE TABLE IF NOT EXISTS {table} WITHOUT ROWID')

  @contextlib.contextmanager
  def changing(self) -> Iterator[sqlite3.Connection]:
    """The connection, in a transaction that is undone if it fails."""
    with self._lock:
      self._connection.execute('BEGIN IMMEDIATE')
      try:
        yield self._connection
      except BaseException:
        self._connection.execute('ROLLBACK')
        raise
      self._connection.execute('COMMIT')

  def rows(self, statement: str, *values: object) -> list[tuple]:
    """The rows that are selected."""
    with self._lock:
      return self._connection.execute(statement, values).fetchall()

  def close(self) -> None:
    with self._lock:
      self._connection.close()


def _patiently(connection: sqlite3.Connection, statement: str) -> None:
  """Executes a statement, again and again while another process has the database.

  SQLite waits by itself for most locks, but not where two connections might wait for each other:
  of two that both make a database a write-ahead log, one is refused at once. Workers of one server
  begin at the same time.
  """
  end = time.monotonic() + _PATIENCE
  while True:
    try:
      connection.execute(statement)
      return
    except sqlite3.OperationalError as error:
      if 'locked' not in str(error) or time.monotonic() >= end:
        raise
    time.sleep(0.01 + 0.04 * random.random())


# Names of files need not be text, and SQLite's texts are UTF-8.
_SEEN_TABLE = 'seen (key TEXT PRIMARY KEY, path BLOB NOT NULL)'


class _SharedSeen:
  """The crops of this process, in memory and in its database, and those of the others in theirs."""

  def __init__(self, own: str, others: Sequence[str], size: int):
    self._size = size
    self._own = _Database(own, _SEEN_TABLE)
    self._others = [_Database(path, _SEEN_TABLE) for path in others]
    self._lock = threading.Lock()
    # Oldest first; those of the process that was here before, in any order.
    self._paths: collections.OrderedDict[str, bytes] = collections.OrderedDict(
      self._own.rows('SELECT key, path FROM seen')
    )

  def add(self, crops: Sequence[tuple[str, str]]) -> list[str]:
    """Remembers crops; see `Seen`."""
    keys = [_key(identifier) for identifier, _ in crops]
    paths = {key: os.fsencode(path) for key, (_, path) in zip(keys, crops)}
    with self._lock:
      new = [(key, path) for key, path in paths.items() if self._paths.get(key) != path]
      if new:
        gone = self._too_many(paths)
        with self._own.changing() as database:
          database.executemany('INSERT OR REPLACE INTO seen VALUES (?, ?)', new)
          database.executemany('DELETE FROM seen WHERE key = ?', ((key,) for key in gone))
        for key in gone:
          del self._paths[key]
      for key, path in paths.items():
        self._paths[key] = path
        self._paths.move_to_end(key)
    return keys

  def path(self, key: str) -> str | None:
    """Where the picture is; see `Seen`."""
    with self._lock:
      path = self._paths.get(key)
    for database in self._others if path is None else ():
      rows = database.rows('SELECT path FROM seen WHERE key = ?', key)
      if rows:
        ((path,),) = rows
        break
    return None if path is None else os.fsdecode(path)

  def close(self) -> None:
    """Closes the databases."""
    for database in (self._own, *self._others):
      database.close()

  def _too_many(self, coming: Mapping[str, bytes]) -> list[str]:
    """Keys of the crops that make room for others, the oldest."""
    number = len(self._paths) + sum(key not in self._paths for key in coming) - self._size
    old = (key for key in self._paths if key not in coming)
    return list(itertools.islice(old, max(number, 0)))


class _SharedEnded:
  """Sessions that ended at any process, in one database."""

  def __init__(self, path: str):
    self._database = _Database(path, 'ended (session TEXT PRIMARY KEY, expires INTEGER NOT NULL)')

  def add(self, identifier: str, expires: int) -> None:
    """Remembers a session; see `EndedSessions`."""
    with self._database.changing() as connection:
      connection.execute('DELETE FROM ended WHERE expires < ?', (int(time.time()),))
      connection.execute(
        'DELETE FROM ended WHERE session IN '
        '(SELECT session FROM ended ORDER BY expires DESC LIMIT -1 OFFSET ?)',
        (_MAX_ENDED - 1,),
      )
      connection.execute('INSERT OR REPLACE INTO ended VALUES (?, ?)', (identifier, expires))

  def __contains__(self, identifier: object) -> bool:
    return bool(self._database.rows('SELECT 1 FROM ended WHERE session = ?', identifier))

  def close(self) -> None:
    """Closes the database."""
    self._database.close()


def _key(identifier: str) -> str:
  return hashlib.blake2b(identifier.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()
