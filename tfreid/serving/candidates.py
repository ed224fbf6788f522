"""Rows that may be among the best of each of several queries, while the others are scanned.

`tfreid.serving.quantized` says what the bounds are and why the answer is exact.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import numpy as np

from tfreid import threads

# Candidates for each answer that are added before they are looked through again, at least.
_ROOM = 6
# Candidates of all queries, above which they are scored before all rows are scanned.
_PENDING = 1 << 20
# Most rows of a query that are scored before its bound is looked at again.
_SCORED = 8192
# Candidates that are worth another thread, for others of the queries.
_WORTH = 4096

_INFINITE = np.float32(np.inf)


class Candidates:
  """Rows that may be among the best of each query, and what is needed to be one of them.

  Attributes:
    bounds: float64 [Q], T of the module's docstring.
    top_k: K.
  """

  def __init__(
    self,
    top_k: int,
    count: int,
    min_score: float | None,
    last: Callable[[np.ndarray, np.ndarray], np.ndarray],
  ):
    self.bounds = np.full(count, -np.inf)
    if min_score is not None:
      # Whoever compares in float32 rounds it first.
      with np.errstate(over='ignore'):
        self.bounds[:] = np.nextafter(np.float32(min_score), -_INFINITE)
    self.top_k, self._last = top_k, last
    # Query, position and last score of the best, the queries' one after the other.
    self._best = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    self._pending: list[tuple[np.ndarray, ...]] = []
    self._number, self._limit = 0, _ROOM * top_k * count
    self._proven, self._guessed = np.full((2, count), -np.inf)
    self._changing = threading.Lock()

  def bounded(self, numbers: np.ndarray) -> bool:
    """Whether there is a bound for each of these queries."""
    return bool(np.all(self.bounds[numbers] > -np.inf))

  def raise_bounds(self, numbers: np.ndarray, bounds: np.ndarray) -> None:
    """Takes what K rows reach for each of these queries, int64 [n] and float64 [n]."""
    with self._changing:
      self.bounds[numbers] = np.maximum(self.bounds[numbers], bounds)

  def guess(self, numbers: np.ndarray, bounds: np.ndarray) -> None:
    """Takes what K rows are likely to reach; `unsure` tells where they do not."""
    self._proven[numbers], self._guessed[numbers] = self.bounds[numbers], bounds
    self.bounds[numbers] = np.maximum(self.bounds[numbers], bounds)

  def unsure(self) -> np.ndarray:
    """Queries of which K rows do not reach what was guessed; they are to be asked again."""
    self._settle()
    guessed = np.flatnonzero(self._guessed > self._proven)
    asked, positions, scores = self._best
    # Where the K-th best of each is, if there are so many.
    last = np.searchsorted(asked, guessed) + self.top_k - 1
    full = np.flatnonzero(last < len(asked))
    last, own = last[full], guessed[full]
    reached = (asked[last] == own) & (scores[last] >= self._guessed[own])
    unsure = np.delete(guessed, full[reached])
    if len(unsure):
      self.bounds[unsure] = self._proven[unsure]
      kept = ~np.isin(asked, unsure)
      self._best = asked[kept], positions[kept], scores[kept]
    self._guessed[:] = -np.inf
    return unsure

  def add(self, asked, positions, approximate, epsilon) -> None:
    """Adds rows, each for one query, with a(x) and eps(x)."""
    part = asked.astype(np.int16), positions, approximate - epsilon, approximate + epsilon
    with self._changing:
      self._pending.append(part)
      self._number += len(asked)
      if self._number > self._limit:
        self._prune()

  def settle(self, q: int, positions: np.ndarray) -> None:
    """Makes the best of ascending rows the answer to a query, the last one asked so far."""
    scores = self._last(np.full(len(positions), q), positions)
    order = np.argsort(-scores, kind='stable')[: self.top_k]
    asked, before, best = self._best
    self._best = (
      np.concatenate([asked, np.full(len(order), q)]),
      np.concatenate([before, positions[order]]),
      np.concatenate([best, scores[order]]),
    )

  def put(self, q: int, positions: np.ndarray) -> None:
    """Makes ascending rows the answer to a query, in the order of their last scores."""
    asked = np.full(len(positions), q)
    self._best = self._joined(self._best, (asked, positions, self._last(asked, positions)))

  def answers(self) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions and last scores of the best of each query."""
    self._settle()
    asked, positions, scores = self._best
    edges = np.searchsorted(asked, np.arange(len(self.bounds) + 1)).tolist()
    return [(positions[a:b], scores[a:b]) for a, b in zip(edges, edges[1:])]

  def _columns(self) -> tuple[np.ndarray, ...]:
    """Query, position, and lower and upper bound of what is pending."""
    return tuple(map(np.concatenate, zip(*self._pending)))

  def _able(self, columns: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Those of them that may be among the best."""
    able = columns[3] >= self.bounds[columns[0]]
    return tuple(column[able] for column in columns)

  def _prune(self):
    """Raises the bounds, and forgets what is below them."""
    asked, _, lower, _ = columns = self._columns()
    starts, counts = _runs(asked, len(self.bounds))
    reached = np.flatnonzero(counts >= self.top_k)
    if len(reached):
      ordered = lower[np.argsort(_keys(asked, lower))]
      # Of the K that are the first when rounded, the last may not be the least.
      first = starts[reached]
      edges = np.stack([first, first + self.top_k], axis=1).ravel()
      edges = edges[:-1] if edges[-1] == len(ordered) else edges
      least = np.minimum.reduceat(ordered, edges)[::2]
      self.bounds[reached] = np.maximum(self.bounds[reached], least)
    columns = self._able(columns)
    self._pending, self._number = [columns], len(columns[0])
    if 2 * self._number > _PENDING:
      self._settle()
    # More of them at a time if many stay: each is looked at a few times only.
    room = max(_ROOM * self.top_k * len(self.bounds), self._number // 2)
    self._limit = min(self._number + room, _PENDING)

  def _settle(self):
    """Scores what is pending, and keeps the best."""
    if not self._pending:
      return
    pending = self._able(self._columns())
    shares = min(threads.usable_cores(), len(self.bounds), len(pending[0]) // _WORTH)
    if shares < 2:
      self._best = self._settled(pending, self._best)
    else:
      self._best = self._settled_together(pending, shares)
    self._pending, self._number = [], 0

  def _settled_together(self, pending, shares):
    """What `_settled` returns for all queries, a share of them in each of several threads."""
    edges = np.linspace(0, len(self.bounds), shares + 1).astype(np.int64)
    numbers, best = itertools.count(), [self._best] * shares

    def work(check):
      del check
      # Counting is one step of the interpreter: no two threads get the same number.
      while (i := next(numbers)) < shares:
        own = (pending[0] >= edges[i]) & (pending[0] < edges[i + 1])
        begin, end = np.searchsorted(self._best[0], edges[i : i + 2])
        best[i] = self._settled(
          tuple(column[own] for column in pending), tuple(c[begin:end] for c in self._best)
        )

    threads.in_parallel(work, helpers=shares - 1)
    return tuple(map(np.concatenate, zip(*best)))

  def _settled(self, pending, best):
    """Scores what is pending of some queries; returns their best, with those they have."""
    asked, positions, _, upper = pending
    order = np.argsort(_keys(asked, upper))
    asked, positions, upper = asked[order].astype(np.int64), positions[order], upper[order]
    # Of each query those of the greatest upper bound first, and all queries together: what a call
    # costs is more than what a hundred rows cost.
    ranks = np.arange(len(asked)) - _runs(asked, len(self.bounds))[0][asked]
    first, length = 0, min(2 * self.top_k, _SCORED)
    while len(asked):
      now = ranks < first + length
      some = asked[now], positions[now]
      best = self._joined(best, (*some, self._last(*some)))
      left = np.flatnonzero(~now & (upper >= self.bounds[asked]))
      asked, positions, upper, ranks = (array[left] for array in (asked, positions, upper, ranks))
      first, length = first + length, min(2 * length, _SCORED)
    return best

  def _joined(self, best, new):
    """The best of some queries with new rows, each for the query `asked` of it; raises bounds."""
    asked, positions, scores = map(np.concatenate, zip(best, new))
    keys = _keys(asked, scores)
    order = np.argsort(keys)
    if np.any(keys[order[1:]] == keys[order[:-1]]):
      order = np.lexsort((positions, keys))
    starts, counts = _runs(asked, len(self.bounds))
    kept = order[np.arange(len(order)) - starts[asked[order]] < self.top_k]
    full = np.flatnonzero(counts >= self.top_k)
    last = scores[order[starts[full] + self.top_k - 1]].astype(np.float64)
    self.bounds[full] = np.maximum(self.bounds[full], last)
    return asked[kept], positions[kept], scores[kept]


def _runs(asked: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Where each query's rows begin when they are sorted by query, and how many there are."""
  counts = np.bincount(asked, minlength=count)
  return np.cumsum(counts) - counts, counts


def _keys(asked: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Whole numbers that ascend by query and, within a query, from the greatest value to the least.

  Values are rounded to float32, and 0 and -0 are one.
  """
  bits = (values + np.float32(0)).astype(np.float32).view(np.int32)
  # In the order of the numbers: the bits of negative ones descend.
  ascending = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
  return (asked.astype(np.int64) << 32) - ascending
