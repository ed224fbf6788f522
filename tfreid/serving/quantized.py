"""Exact search from an 8-bit copy of the rows: a quarter of the bytes, the same answers. Floor 0.

One query over many rows takes as long as the rows take to be read. So a copy is read in which a row
x of E float32 numbers is E whole numbers c from -127 to 127 and one scale, and float32 ranks what
the copy cannot tell apart.

*The copy.* Of x, with c = round(x / scale) and scale = max |x_i| / 127 rounded to float32, remain

    x^ = scale c,   rho >= ||x - x^||,   nu >= max(||x||, ||x^||),

computed in float64 and rounded up. Any scale and any c would do: the proof only asks that rho is
the norm of what is missing. A row of zeros has scale 0, rho 0 and nu 0; of a row so small that its
scale is 0, rho is the norm.

*The scan.* The query q is quantised in the same way, in float64: q^ = t d, p = q - q^, pi >= ||p||.
The products d . c are whole numbers, at most 127^2 E and exact in int32 for E <= `MAX_WIDTH`. Then
a(x) = t (scale (d . c)), in which the conversion of the product to float32 and the multiplication
by the scale round. Several queries are multiplied as a matrix (`packed`) in the same whole
numbers. Where it is missing, `_MATRIX` queries and more are multiplied in float32, which takes less
time than whole numbers for each: there q^ = q, pi = 0, and a(x) is a float32 dot product with the
rounded x^.

*The bound.* Let s(x) be the last score, the float32 dot product that all engines rank by, and

    gamma = n u / (1 - n u),   u = 2^-24,   n = E + 8.

A float32 dot product of E terms, whatever the order of its sum, is off by at most gamma times the
product of the norms (Higham, Accuracy and Stability of Numerical Algorithms, Sec. 3.1; 8 further
roundings are allowed for, and at most 3 occur). Hence, by Cauchy and Schwarz,

    |a(x) - s(x)| <= |s(x) - q . x| + |q . (x - x^)| + |p . x^| + |q^ . x^ - a(x)|
                  <= gamma ||q|| nu + ||q|| rho + pi nu + gamma (||q|| + pi) nu
                  <= ||q|| rho + (pi + 2 gamma (||q|| + pi)) nu + tiny =: eps(x).

tiny = E 2^-125 (1 + ||q|| + nu) is for numbers below float32's normal ones (2^-126), which may be
flushed to zero, when the copy is made or when it is scanned, and not the other time: each of the E
products (2^-126), each number of the row times the query's (2^-126 sum |q_i|) and the other way
round, and the same again in the sum. Its part in nu is added to the factor of nu. All of it is 1.01
times as large as computed, for the rounding of the bound itself, which is in float64. Nothing
overflows: no row is longer than 1e18, which a segment checks, and no query (`suits`).

*The answer.* So a(x) - eps(x) <= s(x) <= a(x) + eps(x) =: upper. Let T be the K-th greatest of
lower bounds, or of last scores, of any rows seen: K rows score T or more, so a row with upper < T
is not among the K best, not even as a tie, and is forgotten. At the end the others are scored in
float32, those of the greatest upper first, until what remains has upper < T for the K-th best last
score T. Sorted by (-s, row), the first K are the exact answer, bit by bit.

The first T comes from a sample of the rows, spread over all of them: what K of its rows reach, or,
where that is higher, a guess of what K of all rows reach. If the K-th best last score found is not
below the guess, the guess was a T; else the query is scanned again without it. So few rows become
candidates that are forgotten later, and these cost more than the scan where there are only 100,000
rows. Whether a row passes is first asked of whole blocks, with the greatest rho and nu of a block:
that reads E + 4 bytes per row instead of the E + 12 of the copy.

Memory, while it runs: blocks of 8 MiB and their products for each core, up to 6 MiB; and
26 bytes for each candidate, of which there are at most a million and those of one more block: then
they are scored, and the K best of them kept. The sample, 65,536 rows of the copy or fewer, stays.
"""

from __future__ import annotations

import abc
import ctypes
import functools
import itertools
import math
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfreid import threads
from tfreid.serving import candidates as found
from tfreid.serving import packed

# E, so that products of the copy are exact in int32: 127^2 E < 2^31.
MAX_WIDTH = 133_000
# Length of a row, and of a query, from which a score could overflow; see `segment`.
_LONGEST = 1e18

# Bytes of the copy scanned together, at most and at least: few enough for a cache, and more than
# the steps of the interpreter between blocks cost.
_BLOCK, _SHORTEST = 1 << 23, 1 << 21
# Blocks for each core, if they are not too short or too long. After each of them a thread has to
# wait for the interpreter's lock, and the more often, the more often it comes too late.
_BLOCKS = 2
# Bytes of the copy, once for each query, that are worth another thread: a core that sleeps takes a
# good part of a millisecond to begin, in which one that is awake reads as much.
_WORTH = 1 << 24
# Bytes of the copy up to which one query is multiplied with all rows first.
_AT_ONCE = _WORTH
# Rows per product of float32 matrices, for the same reasons.
_TILE = 8192
# Products at the same time, where whole numbers are multiplied as a matrix: they stay in a cache
# while they are scaled and compared.
_PRODUCTS = 1 << 19
# Rows of the sample that the first bound comes from: one of 32, at least so many if they are not
# more than one of 8, and at most so many.
_SHARES, _SAMPLES = (32, 8), (1 << 13, 1 << 16)
# Groups that the sample is divided into, for each answer: of a group only the best row counts.
_GROUPS = 4
# Standard deviations by which the guess of a bound is lower than what is expected.
_SURE = 3.0
# Rows scanned before there is a bound at all, where the sample gives none.
_FIRST = 1024
# From so many queries on, a product of matrices of whole numbers is faster than a product for each
# query, and one of matrices of float32 numbers.
_PACKED = 3
_MATRIX = 12
# A block of which fewer than a part in so many may be answered is gathered first, and a row then
# takes so many times as long.
_SPARSE, _GATHERED = 4, 8
# Rows of a file that are asked for at once: fewer are waited for one by one.
_AHEAD = 8
# Rows scored together: they stay in a cache.
_SCORED = 2048

_INFINITE = np.float32(np.inf)
_FAR = 1e37

# Last scores, float32 [M], of rows [M, E] for a query [E], or each for one of its own [M, E].
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Part(NamedTuple):
  """Rows with their copy.

  Attributes:
    rows: float32 [n, E].
    codes: int8 [n, E], c of the module's docstring.
    bounds: float32 [3, n], scale, rho and nu.
  """

  rows: np.ndarray
  codes: np.ndarray
  bounds: np.ndarray


def is_available() -> bool:
  """Whether SimSIMD, which multiplies the whole numbers, is here and does so."""
  try:
    import simsimd  # noqa: F401
  except ImportError:
    return False
  return _multiplies()


@functools.cache
def _multiplies() -> bool:
  """Whether SimSIMD can multiply whole numbers in this process.

  It cannot where usearch was imported before it, for example: they share names of functions.
  """
  codes = np.array([[127, -127, 3], [-127, -127, 5]], np.int8)
  try:
    products = _dots(codes[:1], codes)
  except (TypeError, ValueError):
    return False
  return products.tolist() == [[2 * 127**2 + 9, 15]]


def _dots(queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
  """Dot products, float32 [Q, n], of int8 [Q, E] and [n, E], by SimSIMD.

  It sets OpenMP's number of threads, in this thread and to one, and leaves it so. Other libraries
  may have been given the same OpenMP, FAISS for example: they would have one thread from then on.
  """
  import simsimd

  openmp = _openmp()
  if openmp is None:
    return np.asarray(simsimd.cdist(queries, codes, 'dot', out_dtype='float32'))
  before = openmp.omp_get_max_threads()
  try:
    return np.asarray(simsimd.cdist(queries, codes, 'dot', out_dtype='float32'))
  finally:
    openmp.omp_set_num_threads(before)


@functools.cache
def _openmp() -> ctypes.PyDLL | None:
  """The functions of the OpenMP that SimSIMD was linked to; None where they cannot be found."""
  import simsimd

  try:
    # The library is loaded already. Found in it is also what it depends on. The interpreter's lock
    # is kept: these calls are shorter than getting it back.
    library = ctypes.PyDLL(simsimd.__file__)
    for name in ('omp_get_max_threads', 'omp_set_num_threads'):
      getattr(library, name)
  except (OSError, AttributeError, TypeError):
    return None
  return library


def quantized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The copy of rows: c, int8 [n, E], and scale, rho and nu, float32 [3, n].

  Args:
    rows: float32 [n, E], finite, none longer than 1e18.
  """
  exact = np.asarray(rows, np.float32).astype(np.float64)
  scales = (np.abs(exact).max(axis=1, initial=0.0) / 127).astype(np.float32)
  divisors = np.where(scales > 0, scales, 1).astype(np.float64)[:, np.newaxis]
  codes = np.clip(np.rint(exact / divisors), -127, 127)
  codes[scales == 0] = 0
  copies = codes * scales.astype(np.float64)[:, np.newaxis]
  norms = np.maximum(_lengths(exact), _lengths(copies))
  bounds = np.stack([scales, _rounded_up(_lengths(exact - copies)), _rounded_up(norms)])
  return codes.astype(np.int8), bounds


def _lengths(vectors):
  return np.sqrt(np.einsum('ne,ne->n', vectors, vectors))


def _rounded_up(values):
  """Float32 numbers that are not below float64 ones, nor below what these were computed from."""
  rounded = (values * (1 + 1e-6)).astype(np.float32)
  # Where rounding to a small number lost something.
  return np.where(rounded < values, np.nextafter(rounded, _INFINITE), rounded)


def suits(queries: np.ndarray) -> bool:
  """Whether queries, float32 [Q, E], are short enough for their scores not to overflow."""
  return bool(np.all(_lengths(queries.astype(np.float64)) < _LONGEST))


class QuantizedScan:
  """Finds the K best rows by dot product, exactly, with a copy in 8 bits.

  Several threads may search at the same time.

  Attributes:
    size: N, the rows of all parts.
    width: E.
  """

  def __init__(self, parts: Sequence[Part], *, width: int, score: Score):
    """Takes rows and copies, memory-mapped or not; nothing is read yet.

    Args:
      parts: in the order of the rows.
      width: E.
      score: of the last scores, which the answer is ranked by.

    Raises:
      ValueError: a part of other shapes or types, or more than `MAX_WIDTH` dimensions.
    """
    if width > MAX_WIDTH:
      raise ValueError(f'{width} dimensions; products of 8-bit numbers are exact to {MAX_WIDTH}.')
    for part in parts:
      count = len(part.rows)
      wanted = (((count, width), 'f4'), ((count, width), 'i1'), ((3, count), 'f4'))
      shapes = [(array.shape, array.dtype.str[1:]) for array in part]
      if shapes != list(wanted):
        raise ValueError(f'Rows and their copy have shapes and types {shapes}; expected {wanted}.')
    # A slice of a plain array costs less than one of a memory map.
    self._parts = [Part(*(np.asarray(array).view(np.ndarray) for array in part)) for part in parts]
    self._ahead = [_ReadAhead(part.rows) for part in parts]
    self._starts = np.cumsum([0, *(len(part.rows) for part in parts)])
    self.size, self.width = int(self._starts[-1]), width
    self._score = score
    most, least = max(_BLOCK // width, 1), max(_SHORTEST // width, 1)
    longest = min(most, max(least, -(-self.size // (_BLOCKS * threads.usable_cores()))))
    self._blocks = [
      _Block(part, int(offset), start, min(start + length, len(part.rows)))
      for part, offset in zip(self._parts, self._starts)
      for length in [_even(len(part.rows), longest)]
      for start in range(0, len(part.rows), length)
    ]
    self._sampling = threading.Lock()
    self._sample: _Sample | None = None

  def search(
    self,
    queries: np.ndarray,
    *,
    top_k: int,
    keep: np.ndarray | None = None,
    min_score: float | None = None,
    check: Callable[[], None] = lambda: None,
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """The best rows of each query, by (-s, row).

    Args:
      queries: float32 [Q, E], finite, which `suits`.
      top_k: K, at least 1.
      keep: bool [N], the rows that may be answered; all of them if not given.
      min_score: rows with a lower score need not be answered (and may be).
      check: called between blocks; what it raises ends the search.

    Returns:
      For each query, positions (int64, at most K) and last scores (float32).
    """
    queries = np.ascontiguousarray(queries, np.float32)
    candidates = found.Candidates(
      top_k, len(queries), min_score, lambda asked, p: self._last(queries, asked, p)
    )
    asked = np.flatnonzero(queries.any(axis=1))
    unsure = self._search(queries, asked, candidates, keep, check)
    if len(unsure):
      self._search(queries, unsure, candidates, keep, check, guess=False)
    # All rows score 0 for a query of zeros: the first ones are the best.
    first = None
    for q in set(range(len(queries))) - set(asked.tolist()):
      if first is None:
        first = np.arange(self.size) if keep is None else np.flatnonzero(keep)
      candidates.put(q, first[:top_k])
    return candidates.answers()

  def _search(self, queries, asked, candidates, keep, check, *, guess=True) -> np.ndarray:
    """Finds the best rows of some queries; returns those for which a guess was too high."""
    if not len(asked):
      return asked
    kind = _Packed if len(asked) >= _PACKED and packed.is_available() else _Matrix
    together = len(asked) >= (_PACKED if kind is _Packed else _MATRIX)
    groups = [asked] if together else np.split(asked, len(asked))
    scanned = [(kind if together else _One)(queries[group], group) for group in groups]
    if not together and self._reads(keep) <= _AT_ONCE:
      for query in scanned:
        check()
        self._ask_at_once(query, candidates, keep)
      return asked[:0]
    for some in scanned:
      self._begin(some, candidates, keep, guess=guess)
    blocks = _Blocks(self._blocks)
    threads.in_parallel(
      lambda check: self._work(blocks.each(check), scanned, candidates, keep),
      helpers=self._helpers(len(asked), keep) if scanned[0].threaded else 0,
      check=check,
      stop=blocks.stop,
    )
    return candidates.unsure()

  def _helpers(self, queries, keep) -> int:
    """How many other threads are worth waking up for so many queries."""
    rows = self.size if keep is None else np.count_nonzero(keep)
    if rows * _SPARSE < self.size:
      rows *= _GATHERED
    work = rows * self.width * queries
    return min(len(self._blocks), threads.usable_cores(), max(work // _WORTH, 1)) - 1

  def _reads(self, keep) -> int:
    """Bytes of the copy that are read for a query by itself, or as many that take as long."""
    rows = self.size if keep is None else np.count_nonzero(keep) * _GATHERED
    return min(rows, self.size) * self.width

  def _ask_at_once(self, query, candidates, keep):
    """Finds the best of few rows for one query: all products first, and no sample.

    A millisecond is all that such a query takes, and the steps of the interpreter are half of it.
    """
    if not self.size:
      return
    where = bounds = None
    if keep is not None and np.count_nonzero(keep) * _SPARSE < self.size:
      # Few of them, of rows that may be many: nothing is read but theirs.
      where = np.flatnonzero(keep)
      bounds = self._bounds_of(where)
      greatest = bounds.max(axis=1, initial=0.0)
    else:
      greatest = self._greatest
    products = self._products(query, where)
    if keep is not None and where is None:
      # In numbers, which takes a tenth of the time of choosing them: 2 _FAR if kept, else -2 _FAR.
      limit = keep.astype(np.float32)
      limit *= np.float32(4 * _FAR)
      limit -= np.float32(2 * _FAR)
      np.minimum(products, limit, out=products)
    top_k = candidates.top_k
    size = max(len(products) // (_GROUPS * top_k), 1)
    # The best rows of K groups are K rows, and there are fewer of them to look through.
    best = products[: len(products) // size * size].reshape(size, -1).max(axis=0)
    if len(best) >= top_k:
      reached = np.partition(best, -top_k)[-top_k]
      candidates.raise_bounds(query.numbers, query.lower(reached, *greatest))
    able = np.flatnonzero(products >= query.limits(candidates.bounds, *greatest))
    rows = able if where is None else where[able]
    asked = np.full(len(rows), query.numbers[0])
    approximate = query.factors * products[able]
    residuals, norms = self._bounds_of(rows) if bounds is None else bounds[:, able]
    epsilon = query.epsilon(slice(None), residuals, norms)
    if len(rows) > _SCORED:
      candidates.add(asked, rows, approximate, epsilon)
      return
    if len(rows) > top_k:
      least = np.partition(approximate - epsilon, -top_k)[-top_k]
      rows = rows[approximate + epsilon >= least]
    candidates.settle(query.numbers[0], rows)

  def _products(self, query, where) -> np.ndarray:
    """a(x) / t, float32, of all rows or of those at ascending positions."""
    places: Sequence[slice | np.ndarray] = [slice(None)] * len(self._parts)
    if where is not None:
      places = self._places(where)
    found, room = [], _Room()
    for part, some in zip(self._parts, places):
      codes = _chosen(part.codes, some)
      if len(codes):
        found.append(query.products(codes, part.bounds[0][some], room)[:, 0])
    return found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.float32), *found])

  def _places(self, positions) -> list[np.ndarray]:
    """The places in each part of rows at ascending positions."""
    if len(self._parts) == 1:
      return [positions]
    edges = np.searchsorted(positions, self._starts)
    return [positions[a:b] - start for a, b, start in zip(edges, edges[1:], self._starts)]

  def _bounds_of(self, positions) -> np.ndarray:
    """Rho and nu, float32 [2, n], of rows at ascending positions."""
    places = zip(self._parts, self._places(positions))
    return np.concatenate([part.bounds[1:, some] for part, some in places], axis=1)

  @functools.cached_property
  def _greatest(self) -> tuple[float, float]:
    """The greatest rho and nu of all rows."""
    rho, nu = np.max([block.greatest for block in self._blocks], axis=0, initial=0.0)
    return float(rho), float(nu)

  def _work(self, blocks, scanned, candidates, keep):
    """Scans blocks, in one of several threads."""
    room = _Room()
    for block in blocks:
      # A block that was read for one query is in the cache for the others.
      for queries in scanned:
        self._scan(block, queries, candidates, keep, room)

  def _begin(self, queries, candidates, keep, *, guess):
    """Bounds from a sample of the rows: what K of them reach, and a guess of what K of all will."""
    top_k = candidates.top_k
    sample = self._sampled()
    codes, scales, size = sample.codes, sample.scales, self.size
    if keep is not None:
      allowed = keep[sample.positions]
      codes, scales, size = codes[allowed], scales[allowed], np.count_nonzero(keep)
    count = len(codes)
    if not count:
      return
    # A row of the sample stands for `share` rows. Of its r best, the last is one of the K best of
    # all if K rows are r of the sample or more: on average they are K / share. So many standard
    # deviations more, and hardly a query is scanned twice.
    share = size / count
    rank = math.ceil(((_SURE + math.sqrt(_SURE**2 + 4 * top_k / share)) / 2) ** 2)
    # Without a guess the bound rises as rows are scanned, by what they reach at least: about twice
    # as many candidates as an exact bound would leave, which rises at once.
    rising = 2 * top_k * (1 + math.log(share)) if share > 1 else 0.0
    guess = guess and rank <= count and rank * share < rising
    if not guess and count < top_k:
      return
    # The best rows of K groups are K rows, and there are fewer of them to look through.
    best = _best_of_groups(queries, codes, scales, max(count // (_GROUPS * max(top_k, rank)), 1))
    if len(best) >= top_k:
      reached = np.partition(best.T, -top_k, axis=1)[:, -top_k]
      candidates.raise_bounds(queries.numbers, queries.lower(reached, *sample.greatest))
    if guess and len(best) >= rank:
      likely = np.partition(best.T, -rank, axis=1)[:, -rank]
      candidates.guess(queries.numbers, queries.factors * likely)

  def _sampled(self) -> _Sample:
    """The sample, read when it is first asked for."""
    with self._sampling:
      if self._sample is None:
        self._sample = _Sample.of(self._parts, self._starts)
      return self._sample

  def _scan(self, block, queries, candidates, keep, room):
    """Adds to the candidates the rows of a block that may be among the best."""
    start, length = block.start, _FIRST
    allowed = None
    if keep is not None:
      allowed = keep[block.offset + block.start : block.offset + block.stop]
      count = np.count_nonzero(allowed)
      if not count:
        return
      if count * _SPARSE < len(allowed):
        places = np.flatnonzero(allowed) + block.start
        for piece in range(0, len(places), _TILE):
          self._take(block, places[piece : piece + _TILE], queries, candidates, None, room)
        return
    while start < block.stop:
      # Short at first: without a bound every row is a candidate.
      bounded = candidates.bounded(queries.numbers)
      stop = min(block.stop, start + (queries.rows if bounded else length))
      length = min(2 * length, queries.rows)
      part = None
      if allowed is not None:
        part = allowed[start - block.start : stop - block.start]
      self._take(block, slice(start, stop), queries, candidates, part, room)
      start = stop

  def _take(self, block, where, queries, candidates, allowed, room):
    codes, scales = _chosen(block.part.codes, where), block.part.bounds[0][where]
    products = queries.products(codes, scales, room)  # [rows, Q]
    limits = queries.limits(candidates.bounds, *block.greatest)
    is_able = np.greater_equal(products, limits, out=room.array('able', products.shape, bool))
    able = np.flatnonzero(is_able)
    if not len(able):
      return
    places, asked = np.divmod(able, len(limits)) if len(limits) > 1 else (able, np.zeros_like(able))
    if allowed is not None:
      able, asked, places = (array[allowed[places]] for array in (able, asked, places))
    rows = where[places] if isinstance(where, np.ndarray) else places + where.start
    approximate = queries.factors[asked] * products.ravel()[able]
    epsilon = queries.epsilon(asked, block.part.bounds[1][rows], block.part.bounds[2][rows])
    candidates.add(queries.numbers[asked], rows + block.offset, approximate, epsilon)

  def _last(self, queries, asked, positions):
    """The last scores of rows, which may be many, each for the query `asked` of it."""
    scores = [np.empty(0, np.float32)]
    for first in range(0, len(positions), _SCORED):
      some, wanted = positions[first : first + _SCORED], asked[first : first + _SCORED]
      rows = self._rows(some)
      alone = wanted[0] == wanted[-1]  # those of a query are together
      scores.append(self._score(rows, queries[wanted[0]] if alone else queries[wanted]))
    return np.concatenate(scores)

  def _rows(self, positions):
    """The float32 rows at positions."""
    if len(self._parts) == 1:
      self._ahead[0].read(positions)
      return self._parts[0].rows[positions]
    owners = np.searchsorted(self._starts, positions, side='right') - 1
    present = np.unique(owners)
    own = [positions[owners == i] - self._starts[i] for i in present]
    # Of all parts, before the first is waited for.
    for i, places in zip(present, own):
      self._ahead[i].read(places)
    if len(present) == 1:
      return self._parts[present[0]].rows[own[0]]
    rows = np.empty((len(positions), self.width), np.float32)
    for i, places in zip(present, own):
      rows[owners == i] = self._parts[i].rows[places]
    return rows


class _Sample(NamedTuple):
  """Rows of the copy, spread over all of them.

  Attributes:
    positions: int64 [S], ascending.
    codes: int8 [S, E].
    scales: float32 [S].
    greatest: the greatest rho and nu of these rows.
  """

  positions: np.ndarray
  codes: np.ndarray
  scales: np.ndarray
  greatest: tuple[float, float]

  @classmethod
  def of(cls, parts: Sequence[Part], starts: np.ndarray) -> _Sample:
    """Reads the sample of these parts."""
    size, (least, most) = int(starts[-1]), _SAMPLES
    wanted = min(max(size // _SHARES[0], least), size // _SHARES[1], most)
    positions = np.arange(0, size, max(-(-size // max(wanted, 1)), 1))
    edges = np.searchsorted(positions, starts)
    places = [positions[a:b] - start for a, b, start in zip(edges, edges[1:], starts)]
    codes = np.concatenate([part.codes[some] for part, some in zip(parts, places)])
    scales, rho, nu = np.concatenate(
      [part.bounds[:, some] for part, some in zip(parts, places)], axis=1
    )
    greatest = float(rho.max(initial=0.0)), float(nu.max(initial=0.0))
    return cls(positions, codes, scales, greatest)


class _Room:
  """Arrays of one thread, used again for each piece of rows.

  Memory that is asked for anew is filled with zeros by the system first, one thread at a time.
  """

  def __init__(self) -> None:
    self._flat: dict[str, np.ndarray] = {}

  def array(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of this shape, with anything in it; that of the same name is gone then."""
    size = math.prod(shape)
    flat = self._flat.get(name)
    if flat is None or flat.size < size:
      flat = self._flat[name] = np.empty(size, dtype)
    return flat[:size].reshape(shape)


class _ReadAhead:
  """Asks the system for rows of a file that is mapped, all at once.

  Otherwise each row that is not in memory would be waited for by itself, and 128 KiB around it read
  with it.
  """

  def __init__(self, rows: np.ndarray):
    """Finds the mapping that holds float32 [n, E], if there is one."""
    self._mapping, self._row_bytes = None, rows.strides[0] if len(rows) else 0
    base: Any = rows
    while isinstance(base, np.ndarray):
      base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, 'MADV_WILLNEED') and len(rows):
      self._mapping = base
      whole = np.frombuffer(base, np.uint8)
      self._start = rows.__array_interface__['data'][0] - whole.__array_interface__['data'][0]

  def read(self, places: np.ndarray) -> None:
    """Begins to read the rows at these places, and does not wait."""
    if self._mapping is None or len(places) < _AHEAD:
      return
    first = (self._start + places * self._row_bytes) // mmap.PAGESIZE
    last = (self._start + (places + 1) * self._row_bytes - 1) // mmap.PAGESIZE
    for page, count in zip(first.tolist(), (last - first + 1).tolist()):
      self._mapping.madvise(mmap.MADV_WILLNEED, page * mmap.PAGESIZE, count * mmap.PAGESIZE)


class _Block:
  """Rows that are scanned by one thread.

  Attributes:
    part: that they belong to.
    offset: the position of the part's first row.
    start: the first row, in the part.
    stop: behind the last one.
  """

  def __init__(self, part: Part, offset: int, start: int, stop: int):
    self.part, self.offset, self.start, self.stop = part, offset, start, stop
    self._greatest: tuple[float, float] | None = None

  @property
  def greatest(self) -> tuple[float, float]:
    """The greatest rho and nu, read when they are first asked for."""
    if self._greatest is None:
      rho, nu = self.part.bounds[1:, self.start : self.stop].max(axis=1)
      self._greatest = float(rho), float(nu)
    return self._greatest


class _Blocks:
  """Hands each block to one of several threads."""

  def __init__(self, blocks: Sequence[_Block]):
    self._blocks, self._next, self._stopped = blocks, itertools.count(), False

  def each(self, check: Callable[[], None]) -> Iterator[_Block]:
    """The blocks that this thread is to scan."""
    # Counting is one step of the interpreter: no two threads get the same number.
    while not self._stopped:
      check()
      number = next(self._next)
      if number >= len(self._blocks):
        return
      yield self._blocks[number]

  def stop(self) -> None:
    """Hands out no more."""
    self._stopped = True


class _Queries(abc.ABC):
  """Queries, none of them zeros, as the scan multiplies them: in whole numbers here.

  Attributes:
    numbers: int64 [Q], the place of each among those that were asked.
    factors: float64 [Q], t.
    rows: of a block, that are multiplied together.
    threaded: several blocks can be multiplied at the same time.
  """

  rows = _BLOCK
  threaded = True

  def __init__(self, queries: np.ndarray, numbers: np.ndarray):
    self.numbers = numbers
    self._all = slice(None)
    exact = queries.astype(np.float64)
    self.factors, copies, lost = self._copied(exact)
    self._queries = self._prepared(copies)
    norms, width = _lengths(exact), queries.shape[1]
    gamma = (width + 8) * 2.0**-24 / (1.0 - (width + 8) * 2.0**-24)
    self._of_residual = 1.01 * norms
    self._of_norm = 1.01 * (lost + 2 * gamma * (norms + lost) + width * 2.0**-125)
    self._tiny = 1.01 * width * 2.0**-125 * (1 + norms)

  def _copied(self, exact: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors t, d (int8 [Q, E]) and pi."""
    factors = np.abs(exact).max(axis=1) / 127
    whole = np.clip(np.rint(exact / factors[:, np.newaxis]), -127, 127)
    lost = _lengths(exact - whole * factors[:, np.newaxis])
    return factors, whole.astype(np.int8), lost

  def _prepared(self, copies: np.ndarray) -> Any:
    return copies

  @abc.abstractmethod
  def products(self, codes: np.ndarray, scales: np.ndarray, room: _Room) -> np.ndarray:
    """a(x) / t, float32 [rows, Q], of rows' codes, int8 [rows, E], and scales, float32 [rows].

    The next call with the same room may overwrite it.
    """

  def epsilon(self, asked, residuals, norms) -> np.ndarray:
    """Bounds eps(x), float64, of rows with these rho and nu for the queries `asked`."""
    return self._of_residual[asked] * residuals + self._of_norm[asked] * norms + self._tiny[asked]

  def lower(self, products, residual, norm) -> np.ndarray:
    """a(x) - eps(x), float64 [Q], of a(x) / t of one row for each query, with at most these."""
    return self.factors * products - self.epsilon(self._all, residual, norm)

  def limits(self, bounds, residual, norm) -> np.ndarray:
    """What a(x) / t must reach, float32 [Q], so that a(x) + eps(x) may reach the bounds.

    Args:
      bounds: float64, for all queries that were asked.
      residual: the greatest rho that may occur.
      norm: the greatest nu.
    """
    least = (bounds[self.numbers] - self.epsilon(self._all, residual, norm)) / self.factors
    # No a(x) / t is as far from 0: rows are shorter, and the rest is at most 127 E.
    least = np.maximum(np.minimum(least, _FAR), -_FAR).astype(np.float32)
    return np.nextafter(least, -_INFINITE)


class _One(_Queries):
  """One query, multiplied by SimSIMD."""

  def products(self, codes, scales, room):
    products = _dots(self._queries, codes)
    products *= scales
    return products.reshape(-1, 1)


class _Packed(_Queries):
  """Several queries, multiplied by NumKong or ONNX Runtime as a matrix of whole numbers."""

  def _prepared(self, copies):
    # As many products at a time as a cache holds.
    self.rows = max(_FIRST, _PRODUCTS // len(copies))
    return packed.packed(copies)

  def products(self, codes, scales, room):
    shape = len(codes), len(self.numbers)
    whole = room.array('whole', shape, np.int32)
    self._queries.multiply(codes, whole, room.array('unsigned', codes.shape, np.uint8))
    products = room.array('products', shape, np.float32)
    np.copyto(products, whole, casting='unsafe')
    products *= scales[:, np.newaxis]
    return products


class _Matrix(_Queries):
  """Many queries, multiplied by NumPy as a matrix of float32 numbers."""

  rows = _TILE
  # The library that multiplies matrices has threads of its own, which would wait for ours.
  threaded = False

  def _copied(self, exact):
    nothing = np.zeros(len(exact))
    return nothing + 1, exact.astype(np.float32), nothing

  def products(self, codes, scales, room):
    copies = codes.astype(np.float32)
    copies *= scales[:, np.newaxis]
    return copies @ self._queries.T


def _chosen(codes: np.ndarray, where: slice | np.ndarray) -> np.ndarray:
  """Rows of the copy: a slice, or those at some places."""
  # Half the time of codes[where].
  return codes[where] if isinstance(where, slice) else codes.take(where, axis=0)


def _even(count: int, longest: int) -> int:
  """Rows of a block, so that each core gets as many of the `count` rows."""
  blocks = -(-count // longest)
  if blocks > threads.usable_cores():
    blocks = -(-blocks // threads.usable_cores()) * threads.usable_cores()
  return max(-(-count // max(blocks, 1)), 1)


def _best_of_groups(queries, codes, scales, size) -> np.ndarray:
  """The greatest a(x) / t of each group of so many rows, float32 [groups, Q]."""
  best, room = [], _Room()
  for start in range(0, len(codes), queries.rows):
    piece = slice(start, start + queries.rows)
    products = queries.products(codes[piece], scales[piece], room)
    groups = len(products) // size
    best.append(products[: groups * size].reshape(size, groups, -1).max(axis=0))
  return np.concatenate(best)
