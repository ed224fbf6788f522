"""The interface that search engines fulfil, and the arithmetic they share. Floor 4.

An engine holds the concepts and rows of an index and finds the best by dot product, exactly. Every
engine ranks by the same last score s(x), summed in float32 in the order of the exported model, and
by the order in which crops were added where scores are equal; so rankings agree between engines,
and with the exported model.
"""

from __future__ import annotations

import abc
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfreid.index import filters, segment
from tfreid.index.directory import IndexDirectory
from tfreid.index.segment import Row
from tfreid.serving import summation

# Rows whose last scores are computed together.
_SCORED = 8192
# Rows that NumPy adds faster than a call of TensorFlow takes.
_FEW = 1024
# The least normal number of float32, and what `_sums_or_tensorflow` says of products and queries.
_NORMAL, _SMALLEST, _LARGEST = (np.float32(2.0**power) for power in (-126, -100, 26))

# Called with (crops done, crops in all).
Progress = Callable[[int, int], None]


class Match:
  """One result.

  Attributes:
    score: of the crop for the query.
    concept: float32 [E], the crop's; None where it was not searched for.
  """

  __slots__ = ('_place', '_row', 'concept', 'score')

  def __init__(
    self,
    row: Row | Callable[[int], Row],
    score: float,
    concept: np.ndarray | None = None,
    place: int = 0,
  ):
    """Holds a result.

    Args:
      row: the crop, or what reads it from its place when it is first asked for: of the many that
        are looked at to suggest what to ask next, few are shown.
      score: of the crop.
      concept: of the crop.
      place: what `row` is called with.
    """
    self._row, self.score, self.concept, self._place = row, score, concept, place

  @property
  def row(self) -> Row:
    """The crop.

    Raises:
      ValueError: what the index holds of it is damaged.
    """
    if not isinstance(self._row, Row):
      self._row = self._row(self._place)
    return self._row

  def __repr__(self) -> str:
    return f'Match({self.row!r}, {self.score!r})'


class Engine(abc.ABC):
  """Concepts and rows of an index, in the state they had when it was opened.

  What an engine needs beyond searching and committing, it says by overriding the methods below
  `close`; the rest of the package asks for no engine by its name. See docs/adding-an-engine.md.

  Attributes:
    name: what index.json and the command line call the engine.
    outlives_process: the crops are there when the process that wrote them has ended.
    can_compact: `compact` erases what was removed; otherwise the engine does so by itself.
    joins: several queries take less time together, so those of many threads are joined; see
      `tfreid.index.joining`.
    folder: of the index.
    state: what index.json said.
  """

  name: ClassVar[str]
  outlives_process: ClassVar[bool] = True
  can_compact: ClassVar[bool] = False
  joins: ClassVar[bool] = False

  def __init__(
    self,
    folder: IndexDirectory,
    state: Mapping[str, Any],
    *,
    resident: bool | str = False,
    check: bool | None = None,
  ):
    """Opens a state.

    Args:
      folder: of the index.
      state: from `folder.read()`, or from `engines.new_state` for an index that is not written yet.
      resident: keep all concepts in memory, for engines that have the choice; see `EmbeddedIndex`.
      check: compare checksums of files, for engines that have any; see `EmbeddedIndex`.
    """
    del resident, check
    self.folder = folder
    self.state = dict(state)

  @property
  def width(self) -> int:
    """E, the number of dimensions of the joint space."""
    return self.state['model']['embedding_size']

  @property
  @abc.abstractmethod
  def size(self) -> int:
    """Number of crops."""

  @property
  @abc.abstractmethod
  def fields(self) -> dict[str, list[str]]:
    """The fields and attributes that crops have: name to the kinds of their values."""

  @abc.abstractmethod
  def search(
    self,
    queries: np.ndarray,
    *,
    top_k: int,
    where: filters.Condition | None = None,
    exclude: Sequence[str] = (),
    min_score: float | None = None,
  ) -> list[list[Match]]:
    """The best crops of each query, best first; equal scores in the order of adding.

    Args:
      queries: float32 [Q, E], finite.
      top_k: results per query, at most.
      where: only crops that fulfil it.
      exclude: ids that are not answered; those that do not exist do not matter.
      min_score: only crops with at least this score.

    Raises:
      ValueError: queries of another shape or not finite, a top_k below 1, or a condition on fields
        that no crop has.
    """

  @abc.abstractmethod
  def rows(self, ids: Sequence[str]) -> dict[str, Row]:
    """The rows with these ids; ids that do not exist are left out."""

  @abc.abstractmethod
  def concepts(self, ids: Sequence[str]) -> np.ndarray:
    """Concepts, float32 [M, E], of these ids.

    Raises:
      KeyError: an id does not exist.
    """

  @abc.abstractmethod
  def parts(self) -> Iterator[tuple[np.ndarray, list[Row]]]:
    """All concepts and rows in the order of adding, some at a time."""

  @abc.abstractmethod
  def commit(
    self,
    entries: Sequence[Mapping[str, Any]],
    *,
    remove: Iterable[str] = (),
    replace: bool = False,
    shard: Sequence[int] | None = None,
    progress: Progress | None = None,
  ) -> None:
    """Adds the rows of segments and removes others, all at once; needs the folder's lock.

    Args:
      entries: of segments below `folder.segments`, from `segment.write`.
      remove: ids to remove; applies to what was there before.
      replace: remove all that was there before.
      shard: (i, n) where this is one of n parts of a manifest.
      progress: called after each segment that takes time to add.
    """

  @abc.abstractmethod
  def problems(self) -> list[str]:
    """What is wrong with the stored data; empty if nothing is."""

  @abc.abstractmethod
  def refresh(self) -> bool:
    """Takes over what was committed since; returns whether that was anything."""

  def close(self) -> None:  # noqa: B027 - not every engine has something to close
    """Frees what the engine holds; may be called again."""

  @classmethod
  def describe(cls, uri: str) -> dict[str, str]:
    """What index.json keeps of the engine of a new index, 'name' at least.

    Args:
      uri: where the crops are to be kept, for engines that keep them at an address; '' elsewhere.

    Raises:
      ValueError: an address for an engine that has none.
    """
    if uri:
      raise ValueError(
        f"The engine '{cls.name}' keeps its crops in the folder of the index and has no use for "
        f"the address '{uri}'. Choose an engine that has, or leave the address out."
      )
    return {'name': cls.name}

  @classmethod
  def begin(
    cls,
    folder: IndexDirectory,
    state: Mapping[str, Any],
    *,
    before: Mapping[str, Any],
    pending: Mapping[str, Any],
  ) -> dict[str, Any]:
    """The state from which a build or a merge starts; needs the folder's lock.

    Args:
      folder: of the index.
      state: of the new index, without crops.
      before: of the index that it replaces; {} if there is none.
      pending: what an attempt that did not come to its end noted of `attempt`; {} if there is none.
    """
    del folder, pending
    known = {'generation': before.get('generation', 0), 'commit': before.get('commit', '')}
    return {**state, **known}

  def attempt(self) -> dict[str, str]:
    """What an unfinished build notes, so that `begin` can remove what it left elsewhere."""
    return {}

  @classmethod  # noqa: B027 - not every engine keeps something elsewhere
  def settle(
    cls, folder: IndexDirectory, *, before: Mapping[str, Any], state: Mapping[str, Any]
  ) -> None:
    """Removes what a replaced index kept elsewhere, after the build that replaced it.

    Args:
      folder: of the index.
      before: the replaced state; {} if there was none.
      state: from `begin`.

    Raises:
      OSError: it could not be removed; the message says what is left, and where.
    """

  def compact(self) -> None:
    """Erases what was removed; needs the folder's lock.

    Raises:
      ValueError: the engine does so by itself.
    """
    raise ValueError(f"The engine '{self.name}' needs no compacting: it erases by itself.")

  def facts(self) -> dict[str, Any]:
    """What `info` tells of this engine alone, as plain JSON types."""
    return {}

  def newer(self) -> Engine | None:
    """An engine with what was committed since; None if nothing was.

    It may be this one, where threads that are asking it are not disturbed. Otherwise both can be
    asked, until each is closed.
    """
    return self if self.refresh() else None

  def stage(self, folder: IndexDirectory) -> list[dict[str, Any]]:
    """Writes all crops as segments below the folder of another index, for its `commit`.

    Args:
      folder: of the other index, with its lock.

    Returns:
      The entries.

    Raises:
      FileNotFoundError: a file vanished meanwhile.
      ValueError: the crops changed meanwhile.
    """
    changed = (
      f"'{self.folder.directory}' changed while it was merged. Merge again when nobody writes to "
      'it.'
    )
    parts = self.parts()
    rest: list[tuple[np.ndarray, list[Row]]] = []

    def take(count):
      while count:
        concepts, rows = (
          rest.pop() if rest else next(parts, (np.empty((0, self.width), np.float32), []))
        )
        if not rows:
          raise ValueError(changed)
        if len(rows) > count:
          rest.append((concepts[count:], rows[count:]))
        yield concepts[:count], rows[:count]
        count -= min(count, len(rows))

    entries = []
    for start in range(0, self.size, segment.MAX_ROWS):
      size = min(segment.MAX_ROWS, self.size - start)
      entries.append(segment.write(folder.segments, take(size), size=size, width=self.width))
    if rest or self.folder.read()['generation'] != self.state['generation']:
      raise ValueError(changed)
    return entries

  def _checked(self, queries, top_k, where):
    queries = np.asarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != self.width:
      raise ValueError(
        f'Queries must be a matrix [Q, {self.width}], one row per query, not of the shape '
        f'{queries.shape}.'
      )
    if not np.all(np.isfinite(queries)):
      raise ValueError('A query holds NaN or infinity.')
    if top_k < 1:
      raise ValueError(f'The number of results must be at least 1, not {top_k}.')
    if where is not None and self.size:
      filters.check(where, self.fields)
    return queries


def last_scores(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
  """s(x), float32 [M], of rows [M, E]: what the exported model answers, bit by bit.

  Args:
    rows: float32 [M, E].
    query: float32 [E], or [M, E], one for each row.
  """
  # The order of TensorFlow's sums is known for most builds. So it need not be imported, which takes
  # seconds; where it is there, it adds many rows faster, and few rows slower.
  add: Callable = _sums_of_tensorflow
  if summation.is_known() and rows.shape[1] <= summation.MAX_WIDTH:
    if 'tensorflow' not in sys.modules:
      add = _sums
    elif len(rows) <= _FEW:
      add = _sums_or_tensorflow
  pieces = [np.empty(0, np.float32)]
  for start in range(0, len(rows), _SCORED):
    asked = query if query.ndim == 1 else query[start : start + _SCORED]
    pieces.append(add(np.ascontiguousarray(rows[start : start + _SCORED]), asked))
  return np.concatenate(pieces)


def _sums(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
  return summation.row_sums(rows * query)


def _sums_or_tensorflow(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
  """The sums in NumPy, unless a number occurs that TensorFlow takes for zero in some threads.

  Those are the ones below 2^-126. Where no product but zero is below 2^-100, all products, and so
  all their sums, are multiples of 2^-123. None of these products has such a number as a factor: of
  the queries none is one, and their numbers are below 2^26, which makes of one in a row less than
  2^-100.
  """
  products, asked = rows * query, np.abs(query)
  sizes = np.abs(products)
  if (
    np.count_nonzero(sizes < _SMALLEST) == np.count_nonzero(sizes == 0)
    and np.count_nonzero(asked < _NORMAL) == np.count_nonzero(asked == 0)
    and not np.any(asked >= _LARGEST)
  ):
    return summation.row_sums(products)
  return _sums_of_tensorflow(rows, query)


def _sums_of_tensorflow(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
  import tensorflow as tf

  return tf.reduce_sum(tf.constant(rows) * tf.constant(query), axis=-1).numpy()


def rounding(queries: np.ndarray, greatest_norm: float) -> np.ndarray:
  """eps(q), float64 [Q]: how far two float32 dot products of a query and a row may be apart.

  ||q|| 2 gamma g with gamma = n u / (1 - n u), n = E + 1, u = 2^-24 and g = `greatest_norm`; see
  `tfreid.serving.search`.
  """
  width = queries.shape[1]
  gamma = (width + 1) * 2.0**-24 / (1.0 - (width + 1) * 2.0**-24)
  norms = np.linalg.norm(queries.astype(np.float64), axis=1)
  return 1.01 * norms * 2.0 * gamma * greatest_norm + width * 2.0**-125


def best(
  rows: np.ndarray, positions: np.ndarray, query: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Orders candidates by (-s, position) and keeps the first `top_k`.

  Args:
    rows: float32 [M, E], the candidates' concepts.
    positions: int64 [M], their order of adding.
    query: float32 [E].
    top_k: number of results.

  Returns:
    Indices into the candidates and their scores s.
  """
  scores = last_scores(rows, query)
  order = np.lexsort((positions, -scores))[:top_k]
  return order, scores[order]
