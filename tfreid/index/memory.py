"""An engine in memory, for notebooks and tests: what was built is gone with the process. Floor 4.

The folder of the index holds index.json and the lock, as everywhere, so that all that writes and
searches works as it does elsewhere; `merge` moves such an index into one that stays. Everything
that opens the same folder in this process sees the same crops.

This is also the shortest engine there is: see docs/adding-an-engine.md.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfreid.index import engine, filters
from tfreid.index.directory import IndexDirectory
from tfreid.index.engine import Engine, Match
from tfreid.index.segment import Row, Segment


class _Crops(NamedTuple):
  """The crops of one generation; never changed.

  Attributes:
    generation: of the commit.
    concepts: float32 [n, E].
    rows: n of them.
    places: id to position.
  """

  generation: int
  concepts: np.ndarray
  rows: Sequence[Row]
  places: Mapping[str, int]


# The crops of each index of this process, by the key in its index.json: the last generation, and
# while it is committed the one before as well.
_stored: dict[str, dict[int, _Crops]] = {}
_storing = threading.Lock()


class MemoryIndex(Engine):
  """An index in the memory of this process."""

  name = 'memory'
  outlives_process = False

  def __init__(
    self,
    folder: IndexDirectory,
    state: Mapping[str, Any],
    *,
    resident: bool | str = False,
    check: bool | None = None,
  ):
    """Takes the crops of a state; `resident` and `check` are of no use here.

    Raises:
      ValueError: another process holds them, or held them.
    """
    super().__init__(folder, state, resident=resident, check=check)
    self._crops = self._of(self.state)

  @classmethod
  def describe(cls, uri: str) -> dict[str, str]:
    """Name, and the key by which this process knows the crops."""
    return {**super().describe(uri), 'key': f'{os.getpid()}-{secrets.token_hex(8)}'}

  @classmethod
  def begin(
    cls,
    folder: IndexDirectory,
    state: Mapping[str, Any],
    *,
    before: Mapping[str, Any],
    pending: Mapping[str, Any],
  ) -> dict[str, Any]:
    """The state from which a build starts; it goes on with what it replaces until it commits."""
    state = super().begin(folder, state, before=before, pending=pending)
    return {**state, 'engine': dict(before.get('engine', state['engine']))}

  @property
  def size(self) -> int:
    """Number of crops."""
    return len(self._crops.rows)

  @property
  def fields(self) -> dict[str, list[str]]:
    """The fields and attributes that crops have: name to the kinds of their values."""
    kinds: dict[str, set[str]] = {}
    for row in self._crops.rows:
      for name, value in (*row.fields.items(), *row.attributes.items()):
        kinds.setdefault(name, set()).add(filters.kind(value))
    return {name: sorted(values) for name, values in kinds.items()}

  def search(
    self,
    queries: np.ndarray,
    *,
    top_k: int,
    where: filters.Condition | None = None,
    exclude: Sequence[str] = (),
    min_score: float | None = None,
  ) -> list[list[Match]]:
    """The best crops of each query; see `Engine.search`."""
    queries = self._checked(queries, top_k, where)
    crops = self._crops
    keep = np.ones(len(crops.rows), bool)
    if where is not None:
      keep &= filters.evaluate(where, lambda name: _column(crops.rows, name), len(crops.rows))
    keep[[crops.places[name] for name in exclude if name in crops.places]] = False
    positions = np.flatnonzero(keep)
    concepts = crops.concepts[positions]
    results = []
    for query in queries:
      order, scores = engine.best(concepts, positions, query, top_k)
      results.append(
        [
          Match(crops.rows[positions[place]], float(score), concepts[place])
          for place, score in zip(order, scores)
          if min_score is None or score >= min_score
        ]
      )
    return results

  def rows(self, ids: Sequence[str]) -> dict[str, Row]:
    """The rows with these ids."""
    crops = self._crops
    return {name: crops.rows[crops.places[name]] for name in ids if name in crops.places}

  def concepts(self, ids: Sequence[str]) -> np.ndarray:
    """Concepts, float32 [M, E], of these ids."""
    crops = self._crops
    missing = [name for name in ids if name not in crops.places]
    if missing:
      raise KeyError(f"The index has no crop '{missing[0]}'.")
    return crops.concepts[np.asarray([crops.places[name] for name in ids], np.int64)]

  def parts(self) -> Iterator[tuple[np.ndarray, list[Row]]]:
    """All concepts and rows in the order of adding."""
    if self._crops.rows:
      yield self._crops.concepts, list(self._crops.rows)

  def commit(
    self,
    entries: Sequence[Mapping[str, Any]],
    *,
    remove: Iterable[str] = (),
    replace: bool = False,
    shard: Sequence[int] | None = None,
    progress: engine.Progress | None = None,
  ) -> None:
    """Adds the rows of segments and removes others, all at once; see `Engine.commit`."""
    del progress  # takes no time
    gone = set(remove)
    kept = [] if replace else [i for i, row in enumerate(self._crops.rows) if row.id not in gone]
    concepts = [self._crops.concepts[np.asarray(kept, np.int64)]]
    rows = [self._crops.rows[i] for i in kept]
    for entry in entries:
      for vectors, more in Segment(self.folder.segments, entry).live_parts():
        concepts.append(vectors)
        rows += more
    generation = self.state['generation'] + 1
    places = {row.id: place for place, row in enumerate(rows)}
    crops = _Crops(generation, np.concatenate(concepts), rows, places)
    state = {**self.state, 'generation': generation}
    state.pop('shard', None)
    if shard:
      state['shard'] = list(shard)
    versions = self._versions(self.state)
    with _storing:
      versions[generation] = crops
    # A reader finds the new crops as soon as it can read of them.
    self.folder.write(state)
    self.state, self._crops = self.folder.read(), crops
    with _storing:
      for other in set(versions) - {generation}:
        del versions[other]
    self.folder.clean()

  def problems(self) -> list[str]:
    """Ids that occur twice; memory is not looked after."""
    if len(self._crops.places) == len(self._crops.rows):
      return []
    return ['An id occurs twice.']

  def refresh(self) -> bool:
    """Takes over what was committed since; returns whether that was anything."""
    state = self.folder.read()
    if state['generation'] == self.state['generation']:
      return False
    crops = self._of(state)
    # Each exchanged whole, for threads that are asking.
    self.state, self._crops = state, crops
    return True

  @staticmethod
  def _versions(state: Mapping[str, Any]) -> dict[int, _Crops]:
    with _storing:
      return _stored.setdefault(state['engine'].get('key', ''), {})

  def _of(self, state: Mapping[str, Any]) -> _Crops:
    if state['generation'] == 0:
      return _Crops(0, np.empty((0, self.width), np.float32), (), {})
    versions = self._versions(state)
    with _storing:
      crops = versions.get(state['generation'])
    if crops is None:
      raise ValueError(
        f"The crops of the index '{self.folder.directory}' are, or were, in the memory of another "
        'process. Build it again, with another engine if it is to stay.'
      )
    return crops


def _column(rows: Sequence[Row], name: str) -> filters.Column | None:
  """A field or an attribute of some rows; None if none has it."""
  known: dict[tuple[str, Any], int] = {}
  codes = np.full(len(rows), -1, np.int32)
  for i, row in enumerate(rows):
    value = row.fields.get(name, row.attributes.get(name))
    if value is not None:
      # With the kind, since True, 1 and 1.0 are one key.
      codes[i] = known.setdefault((filters.kind(value), value), len(known))
  return filters.Column([value for _, value in known], codes) if known else None
