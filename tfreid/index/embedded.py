"""The default engine: segments in files, searched exactly where they lie. Floor 4.

By default the concepts stay on the disk, memory-mapped, and their copy in 8 bits is read once per
search, in blocks: an index may be larger than the memory. `resident=True` keeps both in memory, 5 E
bytes per crop (`QuantizedScan`). Where segments of an earlier release have no copy, or SimSIMD is
not installed, the concepts themselves are read, or are resident in TensorFlow (`ExactSearch`), 4 E
bytes per crop; so they are with `resident='float32'`, and with 'bfloat16', which scans half of
them. All answer the same, since float32 has the last word.
"""

from __future__ import annotations

import bisect
import collections
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfreid import cancellation, storage
from tfreid.index import engine, filters, segment
from tfreid.index.directory import IndexDirectory
from tfreid.index.engine import Engine, Match
from tfreid.index.segment import Row, Segment, id_hash
from tfreid.serving import quantized

# More segments than this are joined at a commit.
MAX_SEGMENTS = 32

# Rows scored together: with 128 dimensions 8 MiB, so that they and their scores stay in the cache.
_BLOCK = 16384
# Queries scanned together.
_QUERIES = 64
# Filters whose answer is remembered.
_MASKS = 8
# How often opening starts again because a writer removed what the state had named.
_ATTEMPTS = 5
# Bytes of an index whose checksums are compared whenever it is opened: a fraction of a second.
CHECKED_BYTES = 1 << 28


# What `resident` may be.
_RESIDENT = (False, True, 'int8', 'float32', 'bfloat16')


class EmbeddedIndex(Engine):
  """An index in a folder."""

  name = 'embedded'
  can_compact = True
  joins = True

  def __init__(
    self,
    folder: IndexDirectory,
    state: Mapping[str, Any],
    *,
    resident: bool | str = False,
    check: bool | None = None,
    checked: Iterable[str] = (),
  ):
    """Opens the segments.

    Args:
      folder: of the index.
      state: from `folder.read()`, or a new one.
      resident: keep all concepts in memory; 'int8' to scan their copy in 8 bits, 'bfloat16' to scan
        them in half the bytes, 'float32' to scan them as they are; True for 'int8' where that can
        be, and else 'float32'.
      check: compare the checksums of all files, which reads every byte; False to compare only their
        sizes; by default the checksums of an index of up to CHECKED_BYTES.
      checked: names of segments of which this was done before.

    Raises:
      ValueError: another word, 'int8' of what has no copy in 8 bits, or a damaged segment.
    """
    super().__init__(folder, state)
    if resident not in _RESIDENT:
      raise ValueError(
        "An index is resident in 'int8', 'float32' or 'bfloat16', in the first of them that can be "
        f'(True), or not (False); not in {resident!r}.'
      )
    self.resident = resident
    self.check = check
    self._checked_segments = frozenset(checked)
    for attempt in range(_ATTEMPTS):
      try:
        self._open()
        break
      except FileNotFoundError:
        # A commit came between reading index.json and opening what it named.
        if attempt == _ATTEMPTS - 1 or not folder.exists or folder.read() == self.state:
          raise
        self.state = folder.read()

  def _open(self):
    entries = self.state['segments']
    check = self.check
    if check is None:
      check = sum(size for entry in entries for size, _ in entry['files'].values()) <= CHECKED_BYTES
    self._segments = [
      Segment(
        self.folder.segments,
        entry,
        content=check and entry['name'] not in self._checked_segments,
      )
      for entry in entries
    ]
    for part in self._segments:
      if part.concepts.shape[1] != self.width:
        raise ValueError(
          f"'{part.directory}' is damaged: its concepts have {part.concepts.shape[1]} numbers "
          'each, '
          f'and those of the index {self.width}. Run `tfreid index verify`.'
        )
    if check:
      self._checked_segments = frozenset(entry['name'] for entry in entries)
    if self.resident == 'int8' and self._segments and not self._can_quantize:
      raise ValueError(
        f"'{self.folder.directory}' cannot be searched by a copy in 8 bits: {self._about_copy()}."
      )
    self._starts = np.cumsum([0, *map(len, self._segments)])
    self._bounds = self._starts.tolist()
    self._live = np.concatenate([np.empty(0, bool), *(s.live for s in self._segments)])
    self._size = int(self._live.sum())
    self._masks: collections.OrderedDict = collections.OrderedDict()
    self._exact, self._kernels, self._quantized = None, {}, None
    # What is in memory of segments, by their files, which never change.
    self._held: dict[str, quantized.Part] = {}
    # Readers may be many threads; what they remember for each other is changed by one at a time.
    self._remembering = threading.Lock()

  @property
  def size(self) -> int:
    """Number of crops."""
    return self._size

  @property
  def fields(self) -> dict[str, list[str]]:
    """The fields and attributes that crops have: name to the kinds of their values."""
    kinds: dict[str, set[str]] = {}
    for part in self._segments:
      for name, values in part.entry['fields'].items():
        kinds.setdefault(name, set()).update(values)
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
    keep = self._keep(where, exclude)
    # No more than there are: neither the kernel nor the caller has a use for empty places.
    top_k = min(top_k, int(np.count_nonzero(keep)))
    if not top_k or not len(queries):
      return [[] for _ in queries]
    find = self._in_memory if self.resident else self._in_blocks
    if self._can_quantize and quantized.suits(queries):
      find = self._in_8_bits
    results = []
    for start in range(0, len(queries), _QUERIES):
      cancellation.check()
      for positions, scores in find(queries[start : start + _QUERIES], top_k, keep, min_score):
        if min_score is not None:
          positions, scores = positions[scores >= min_score], scores[scores >= min_score]
        ranked = zip(scores.tolist(), self._vectors_at(positions), positions.tolist())
        results.append([Match(self._row_at, *one) for one in ranked])
    return results

  def rows(self, ids: Sequence[str]) -> dict[str, Row]:
    """The rows with these ids."""
    return {row.id: row for row in self._rows_at(self._find(ids))}

  def concepts(self, ids: Sequence[str]) -> np.ndarray:
    """Concepts, float32 [M, E], of these ids."""
    positions = self._find(ids)
    at = {row.id: position for row, position in zip(self._rows_at(positions), positions)}
    missing = [name for name in ids if name not in at]
    if missing:
      raise KeyError(f"The index has no crop '{missing[0]}'.")
    return self._vectors_at(np.asarray([at[name] for name in ids], np.int64))

  def parts(self) -> Iterator[tuple[np.ndarray, list[Row]]]:
    """All concepts and rows in the order of adding."""
    for part in self._segments:
      yield from part.live_parts()

  def commit(
    self,
    entries: Sequence[Mapping[str, Any]],
    *,
    remove: Iterable[str] = (),
    replace: bool = False,
    shard: Sequence[int] | None = None,
    progress: engine.Progress | None = None,
  ) -> None:
    """Adds segments and removes rows, all at once; see `Engine.commit`."""
    del progress  # takes no time: the segments are where they belong
    if replace:
      kept = []
    else:
      gone = self._find(list(remove))
      owners = self._owner(gone)
      kept = [
        part.without(gone[owners == i] - self._starts[i]) if np.any(owners == i) else part.entry
        for i, part in enumerate(self._segments)
      ]
      kept = [entry for entry in kept if _live_rows(entry)]
    entries = [*kept, *entries]
    if len(entries) > MAX_SEGMENTS:
      entries = self._joined(entries)
    self._write(entries, shard)

  def compact(self) -> None:
    """Joins segments and writes those anew that hold removed rows: nothing of these remains.

    Segments without a copy in 8 bits are written anew as well, and have one then.

    Raises:
      ValueError: a segment is damaged.
    """
    entries = self._joined(self.state['segments'], copied=True)
    self._write(entries, self.state.get('shard'))

  def facts(self) -> dict[str, Any]:
    """Number of segments, of removed rows that are still in them, bytes of all, and the copy."""
    entries = self.state['segments']
    return {
      'segments': len(entries),
      'removed': sum((entry['removed'] or {}).get('count', 0) for entry in entries),
      'bytes': sum(size for entry in entries for size, _ in entry['files'].values()),
      'quantized': 'yes' if not self._segments or self._can_quantize else self._about_copy(),
    }

  def stage(self, folder: IndexDirectory) -> list[dict[str, Any]]:
    """Brings all crops below the folder of another index; see `Engine.stage`.

    Files are linked where the file system can, else copied.
    """
    entries = []
    for part in self._segments:
      name = part.entry['name']
      if len(part.removed) or os.path.exists(os.path.join(folder.segments, name)):
        # Linked files are looked at when they are there; what is written anew would be whole.
        damaged = part.problems()
        if damaged:
          raise ValueError(f'The parts cannot be joined. {damaged[0]}')
        size = int(part.live.sum())
        entries.append(
          segment.write(folder.segments, part.live_parts(), size=size, width=self.width)
        )
        continue
      try:
        with segment.new_folder(folder.segments, name) as partial:
          for file in part.entry['files']:
            if file != segment.MARK:
              _link(os.path.join(part.directory, file), os.path.join(partial, file))
      except FileNotFoundError as error:
        raise FileNotFoundError(
          f"'{error.filename}' vanished while it was merged. Merge again when nobody writes to "
          f"'{self.folder.directory}'."
        ) from error
      entries.append(dict(part.entry))
    return entries

  def problems(self) -> list[str]:
    """What is wrong with the files: sizes, checksums, ids."""
    return segment.problems(self._segments)

  def newer(self) -> EmbeddedIndex | None:
    """What was committed since, opened beside this one; see `Engine.newer`."""
    state = self.folder.read()
    if state['generation'] == self.state['generation']:
      return None
    newer = EmbeddedIndex(
      self.folder,
      state,
      resident=self.resident,
      check=self.check,
      checked=self._checked_segments,
    )
    # What both hold is in memory once, and only what is new is read.
    with self._remembering:
      newer._held = dict(self._held)
    return newer

  def refresh(self) -> bool:
    """Takes over what was committed since; returns whether that was anything."""
    # Opened first: where that fails, this one stays what it was.
    newer = self.newer()
    if newer is not None:
      self.__dict__ = newer.__dict__
    return newer is not None

  def _write(self, entries, shard):
    state = {**self.state, 'generation': self.state['generation'] + 1, 'segments': list(entries)}
    state.pop('shard', None)
    if shard:
      state['shard'] = list(shard)
    self.folder.write(state)
    self.state = self.folder.read()
    self._open()
    self.folder.clean()

  def _joined(self, entries, *, copied=False):
    """The rows of these segments in fewer ones, in the same order, without removed rows.

    Args:
      entries: of the segments.
      copied: write those anew that have no copy in 8 bits.
    """
    groups: list[list] = []
    total = 0
    for entry in entries:
      rows = _live_rows(entry)
      if groups and total + rows <= segment.MAX_ROWS:
        groups[-1].append(entry)
        total += rows
      elif rows:
        groups.append([entry])
        total = rows
    joined = []
    for group in groups:
      stays = not copied or not self._copies or segment.COPY[0] in group[0]['files']
      if len(group) == 1 and not group[0].get('removed') and stays:
        joined += group
        continue
      # Looked at whole: written anew, what is damaged would have a checksum that is right.
      sources = [Segment(self.folder.segments, entry, content=True) for entry in group]
      joined.append(
        segment.write(
          self.folder.segments,
          (part for source in sources for part in source.live_parts()),
          size=sum(map(_live_rows, group)),
          width=self.width,
        )
      )
    return joined

  def _keep(self, where, exclude):
    """Which rows may be answered, bool [n]."""
    keep = self._live
    if where is not None:
      # Not the condition itself: camera == 1 and camera == True are equal to Python.
      key = repr(where)
      with self._remembering:
        mask = self._masks.get(key)
      if mask is None:
        parts = [filters.evaluate(where, s.column, len(s)) for s in self._segments]
        mask = np.concatenate([np.empty(0, bool), *parts])
      with self._remembering:
        self._masks[key] = mask
        self._masks.move_to_end(key)
        if len(self._masks) > _MASKS:
          self._masks.popitem(last=False)
      keep = keep & mask
    if exclude:
      keep = keep.copy()
      keep[self._find(exclude)] = False
    return keep

  def _find(self, ids):
    """Positions int64 of the live rows with these ids, ascending."""
    wanted = set(ids)
    if not wanted:
      return np.empty(0, np.int64)
    hashes = _hashes(id_hash(name) for name in wanted)
    positions = [np.empty(0, np.int64)]
    for start, part in zip(self._starts, self._segments):
      near = part.near(hashes)
      same = [row.id in wanted for row in part.rows(near.tolist())]
      positions.append(near[np.asarray(same, bool)] + start)
    return np.concatenate(positions)

  def _owner(self, positions):
    """Which segment each position lies in."""
    return np.searchsorted(self._starts, positions, side='right') - 1

  def _rows_at(self, positions):
    rows: list[Row | None] = [None] * len(positions)
    owners = self._owner(positions)
    for i in np.unique(owners):
      places = np.flatnonzero(owners == i)
      read = self._segments[i].rows((positions[places] - self._starts[i]).tolist())
      for place, row in zip(places, read):
        rows[place] = row
    return rows

  def _row_at(self, position: int) -> Row:
    owner = bisect.bisect_right(self._bounds, position) - 1
    return self._segments[owner].row(position - self._bounds[owner])

  def _vectors_at(self, positions):
    vectors = np.empty((len(positions), self.width), np.float32)
    owners = self._owner(positions)
    for i in np.unique(owners):
      places = owners == i
      vectors[places] = self._segments[i].concepts[positions[places] - self._starts[i]]
    return vectors

  @property
  def _copies(self):
    """Whether segments of this width have a copy in 8 bits."""
    return self.width <= quantized.MAX_WIDTH

  @property
  def _can_quantize(self):
    """Whether searches read the copy in 8 bits."""
    if self.resident in ('float32', 'bfloat16') or not self._segments:
      return False
    return all(part.copy is not None for part in self._segments) and quantized.is_available()

  def _about_copy(self):
    """Why searches do not read the copy, and what to do about it."""
    without = sum(part.copy is None for part in self._segments)
    if not self._copies:
      return f'no; {self.width} dimensions are too many for it'
    if without:
      return (
        f'no; {without} of {len(self._segments)} segments are of an earlier release and have no '
        'copy in 8 bits: `tfreid index compact` makes it'
      )
    if not quantized.is_available():
      return (
        'no; the package simsimd is missing (`pip install simsimd`), or cannot multiply because '
        'another package was imported before it'
      )
    return f'no; it was opened with resident={self.resident!r}'

  def _in_8_bits(self, queries, top_k, keep, min_score):
    """Positions and scores of the best rows of each query, by `QuantizedScan`."""
    with self._remembering:
      if self._quantized is None:
        parts = [self._part(part) for part in self._segments]
        self._held = dict(zip(map(_key, self._segments), parts)) if self.resident else {}
        self._quantized = quantized.QuantizedScan(parts, width=self.width, score=engine.last_scores)
      scan = self._quantized
    return scan.search(
      queries,
      top_k=top_k,
      keep=None if keep.all() else keep,
      min_score=min_score,
      check=cancellation.check,
    )

  def _part(self, part):
    """A segment as `QuantizedScan` takes it; of a resident index in memory."""
    held = self._held.get(_key(part))
    if held is None:
      assert part.copy is not None  # as `_can_quantize` says of all
      hold = np.array if self.resident else np.asarray
      held = quantized.Part(hold(part.concepts), hold(part.copy[0]), hold(part.copy[1]))
    return held

  def _in_memory(self, queries, top_k, keep, min_score):
    """Positions and scores of the best rows of each query, by `ExactSearch`."""
    import tensorflow as tf

    del min_score  # The caller cuts; the kernel has no use for it.
    masked = not keep.all()
    with self._remembering:
      kernel = self._kernel(top_k, masked)
    inputs = [tf.constant(queries), *([tf.constant(keep)] if masked else [])]
    scores, positions = kernel(*inputs)
    return list(zip(positions.numpy()[:, :top_k], scores.numpy()[:, :top_k]))

  def _kernel(self, top_k, masked):
    """`ExactSearch` as a graph for at least `top_k` results, with or without a mask of rows."""
    import tensorflow as tf

    from tfreid.serving.search import ExactSearch

    if self._exact is None:
      self._exact = ExactSearch(
        np.concatenate([s.concepts for s in self._segments]),
        precision='bfloat16' if self.resident == 'bfloat16' else 'float32',
      )
    # A graph per power of two: tracing takes longer than many searches.
    k = min(1 << max(top_k - 1, 31).bit_length(), self._exact.size)
    if (k, masked) not in self._kernels:
      exact = self._exact
      signature = [tf.TensorSpec([None, self.width], tf.float32)]
      if masked:
        signature.append(tf.TensorSpec([exact.size], tf.bool))
      self._kernels[k, masked] = tf.function(
        lambda queries, keep=None: exact(queries, k=k, keep=keep),
        input_signature=signature,
        autograph=False,
      )
    return self._kernels[k, masked]

  def _in_blocks(self, queries, top_k, keep, min_score):
    """Positions and scores of the best rows of each query, reading the files once.

    With a(x) the score of the scan and |a(x) - s(x)| <= eps: let t be the K-th best a. K rows have
    s >= t - eps, and a row with a < t - 2 eps has s < t - eps, so it is not among the K best by s.
    Candidates are all others, t rises from block to block, and the last word is s.
    """
    greatest = max(part.entry['greatest_norm'] for part in self._segments)
    epsilon = engine.rounding(queries, greatest)
    floor = -np.inf if min_score is None else min_score - epsilon
    bounds = np.maximum(np.full(len(queries), -np.inf), floor)
    per_query = [_Candidates(top_k, 2 * eps) for eps in epsilon]
    for start, part in zip(self._starts, self._segments):
      for first in range(0, len(part), _BLOCK):
        cancellation.check()
        block = slice(first, min(first + _BLOCK, len(part)))
        allowed = keep[start + block.start : start + block.stop]
        if not allowed.any():
          continue
        scores = queries @ part.concepts[block].T  # [Q, rows]
        able = (scores >= bounds[:, np.newaxis]) & allowed
        for q in np.flatnonzero(able.any(axis=1)):
          places = np.flatnonzero(able[q])
          per_query[q].add(scores[q, places], places + start + block.start)
          bounds[q] = max(bounds[q], per_query[q].bound)
    results = []
    for query, candidates in zip(queries, per_query):
      positions = candidates.positions()
      order, scores = engine.best(self._vectors_at(positions), positions, query, top_k)
      results.append((positions[order], scores))
    return results


class _Candidates:
  """Rows of one query that may be among its K best."""

  def __init__(self, top_k, room):
    self.bound = -np.inf
    self._top_k, self._room = top_k, room
    self._scores, self._positions = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    self._count = 0

  def add(self, scores, positions):
    self._scores.append(scores)
    self._positions.append(positions)
    self._count += len(scores)
    # Before there are K, nothing can be left out; later, not at each block.
    if self._count >= self._top_k and (
      self.bound == -np.inf or self._count > max(4 * self._top_k, 4096)
    ):
      self._prune()

  def positions(self):
    """The candidates, ascending."""
    if self._count > self._top_k:
      self._prune()
    return np.sort(np.concatenate(self._positions))

  def _prune(self):
    scores, positions = np.concatenate(self._scores), np.concatenate(self._positions)
    self.bound = float(np.partition(scores, -self._top_k)[-self._top_k]) - self._room
    able = scores >= self.bound
    self._scores, self._positions = [scores[able]], [positions[able]]
    self._count = int(able.sum())


def _key(part: Segment) -> str:
  """What names the files of a segment, and their contents."""
  return repr((part.entry['name'], sorted(part.entry['files'].items())))


def _live_rows(entry) -> int:
  return entry['rows'] - (entry['removed']['count'] if entry.get('removed') else 0)


def _hashes(values: Iterable[int]) -> np.ndarray:
  return np.fromiter(values, np.uint64)


def _link(source: str, target: str) -> None:
  try:
    os.link(source, target)
  except OSError:  # another file system, or one without links
    shutil.copyfile(source, target)
    storage.sync_file(target)
