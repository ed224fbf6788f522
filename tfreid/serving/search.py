"""Exact search for the K best rows by dot product, in stock TensorFlow operations. Floor 0.

No row is left out and nothing is sorted as a whole:

1. *Scan.* Rows are read once, in chunks. A chunk's scores become maxima of blocks of 16 rows and
   are forgotten; those maxima become maxima of groups of 16 blocks.
2. *Select.* Order the blocks by (maximum falling, position). The first K blocks contain the K best
   rows, ties by position included: let row x lie in another block b. The maximum of each of the K
   blocks is greater than b's, or equal to it and in front of it; so each holds a row that precedes
   x, and x is not among the first K. By the same argument those blocks lie in the K best groups.
3. *Refine.* The rows of the selected blocks are scored again, and the best of them a last time, in
   float32 and in a fixed order of summation.
4. *Prove.* Scores of step 1 and 3 differ by rounding, and with bfloat16 rows by more; so step 2
   alone does not prove the answer. With s(x) the last score of row x and a(x) an earlier one,

       |a(x) - s(x)| <= eps(q) = ||q|| (rho + (tau + 2 gamma) g),   gamma = n u / (1 - n u),
       n = E + 1,

   where u = 2^-24 and g bounds the rows' norms: both are float32 dot products, whatever the order
   of their sums (Higham, Accuracy and Stability of Numerical Algorithms, Sec. 3.1), and rho is the
   greatest norm of what rounding to bfloat16 took from a row (0 for float32). tau is 0 but where a
   GPU multiplies in TensorFloat-32, which a probe finds out. Let t be the K-th best s found. What
   was left out cannot reach t if its best a is below t - eps. Where it is not, every block whose
   maximum is at least t - eps is refined, which is complete by the inequality.

So the answer is the exact top K of s, ordered by (-s, row), and s of a row depends neither on its
position nor on the other queries of the batch.

Memory in bytes, for N rows of E dimensions: 4 N E for the rows, in either precision, since bfloat16
keeps the halves of the float32 numbers apart and scans the upper ones. While it runs, for up to 64
queries at a time: 32 N for the block maxima, and some 60 MiB for the chunks and tiles in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

PRECISIONS = ('float32', 'bfloat16')

# Rows per block. Small, because each query scores K blocks again.
_BLOCK = 16
# Blocks per group: the second level, so that selecting does not have to look at N / 16 maxima.
_GROUP = 16
# Numbers in a chunk of rows. bfloat16 rows become float32 first, 4 MiB, which should still be in
# the cache when they are multiplied; float32 rows are not kept, and fewer chunks cost less.
_CHUNK = {'float32': 1 << 22, 'bfloat16': 1 << 20}
# Queries scanned together.
_QUERIES = 64
# Queries refined together. Their rows take 8 MiB; much more would also be handed back to the
# system after each use, and getting it again costs more than the arithmetic.
_REFINED = 8
# Blocks, and then rows, taken beyond K, so that the proof rarely asks for a second look.
_SPARE = 28
# Blocks refined together in that second look.
_PIECE = 2048
# TensorFloat-32 keeps 10 bits behind the point of both factors, which loses up to 2^-10 of each.
_TF32_LOSS = 1.001 * 2.0**-9
# Rows of the probe for it.
_PROBED = 256


class ExactSearch(tf.Module):
  """The K best rows of a matrix for each query, by dot product, exactly.

  The rows are variables, so they may pass 2 GB in a SavedModel.

  Attributes:
    size: N, number of rows.
    width: E, number of dimensions.
    precision: of the scan, 'float32' or 'bfloat16'. The second reads half the memory; the scores
      and the ranking are those of the float32 rows all the same.
  """

  def __init__(self, rows: np.ndarray, *, precision: str = 'float32'):
    """Stores the rows.

    Args:
      rows: float32 [N, E], finite, N >= 1. Unit length is not needed.
      precision: of the scan, 'float32' or 'bfloat16'.

    Raises:
      ValueError: no matrix, no row, a number that is not finite, or an unknown precision.
    """
    super().__init__(name='exact_search')
    if precision not in PRECISIONS:
      raise ValueError(f"Unknown precision '{precision}'; choose from {PRECISIONS}.")
    rows = np.asarray(rows)
    if rows.ndim != 2 or 0 in rows.shape:
      raise ValueError(
        f'The gallery must be a matrix [N, E] with at least one row, not of shape {rows.shape}.'
      )
    rows = np.ascontiguousarray(rows, np.float32)
    self.precision = precision
    self.size, self.width = rows.shape
    norm, residual = _greatest_norms(rows, rounded=precision == 'bfloat16')
    self.greatest_norm = tf.Variable(norm, trainable=False, dtype=tf.float32)
    self.greatest_residual = tf.Variable(residual, trainable=False, dtype=tf.float32)
    if precision == 'float32':
      self.vectors = tf.Variable(rows, trainable=False, name='vectors')
    else:
      # One after the other: each exists twice until it is a variable.
      upper = tf.bitcast(tf.constant(_upper_half(rows)), tf.bfloat16)
      self.upper = tf.Variable(upper, trainable=False, name='upper')
      self.lower = tf.Variable(_lower_half(rows), trainable=False, name='lower')

  @property
  def memory_bytes(self) -> int:
    """Bytes that the rows take."""
    return self.size * self.width * 4

  def rows(self, positions: tf.Tensor) -> tf.Tensor:
    """The float32 rows [..., E] at `positions` (int [...]), bit by bit as they were given."""
    # Gathered from the value, not from the variable: ResourceGather switches its variable to
    # copying at each read from then on, and the scan reads once per chunk.
    if self.precision == 'float32':
      return tf.gather(self.vectors.value(), positions)
    upper = tf.cast(tf.bitcast(tf.gather(self.upper.value(), positions), tf.int16), tf.int32)
    lower = tf.cast(tf.gather(self.lower.value(), positions), tf.int32)
    return tf.bitcast(tf.bitwise.left_shift(upper, 16) + lower, tf.float32)

  @tf.autograph.experimental.do_not_convert
  def __call__(
    self, queries: tf.Tensor, *, k: int, keep: tf.Tensor | None = None
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best rows of each query.

    Args:
      queries: float32 [B, E], finite.
      k: number of results, a Python integer; the answer has K = min(k, N) columns.
      keep: bool [N], the rows that may be answered; all of them if not given.

    Returns:
      float32 [B, K] scores, falling, and int64 [B, K] rows; rows of equal score in ascending
      order. Where fewer than K rows are kept, the rest has score -inf and row -1.

    Raises:
      ValueError: k is less than 1.
      InvalidArgumentError: when it runs, for a query that is not finite.
    """
    if k < 1:
      raise ValueError(f'The number of results must be at least 1, not {k}.')
    k = min(k, self.size)
    queries = tf.ensure_shape(queries, [None, self.width])
    if keep is not None:
      keep = tf.ensure_shape(keep, [self.size])
    # One tile after the other: the tile is what bounds the memory.
    scores, positions = _in_tiles(
      lambda queries, epsilon: self._search(queries, epsilon, k, keep),
      [queries, self._epsilon(queries)],
      tile=_QUERIES,
      parallel=1,
      outputs=[(tf.float32, [k]), (tf.int32, [k])],
    )
    if keep is not None:
      positions = tf.where(scores > -np.inf, positions, -1)
    return scores, tf.cast(positions, tf.int64)

  def _epsilon(self, queries):
    """eps(q) [B] of the module's docstring, rounded up; 0 for a query of zeros."""
    greatest = tf.reduce_max(tf.abs(queries), axis=-1)
    # Scaled, or the squares of small numbers would vanish and those of large ones overflow.
    scaled = tf.math.divide_no_nan(queries, greatest[:, tf.newaxis])
    norm = greatest * tf.sqrt(tf.reduce_sum(scaled * scaled, axis=-1))
    gamma = (self.width + 1) * 2.0**-24 / (1.0 - (self.width + 1) * 2.0**-24)
    factor = self._lost_by_products() + 2.0 * gamma
    bound = norm * (self.greatest_residual + factor * self.greatest_norm)
    # The last term: products below float32's normal numbers may be flushed to zero.
    epsilon = tf.where(norm > 0.0, 1.01 * bound + self.width * 2.0**-125, 0.0)
    # The sum carries each NaN and infinity; the product is infinite where a score could overflow.
    suspect = epsilon + norm * self.greatest_norm + 0.0 * tf.reduce_sum(queries, axis=-1)
    checked = tf.debugging.check_numerics(
      suspect, 'A query holds NaN, infinity, or numbers too large to be scored'
    )
    with tf.control_dependencies([checked]):
      return tf.identity(epsilon)

  def _lost_by_products(self) -> tf.Tensor:
    """Tau of the module's docstring, a scalar: 0, or 2^-9 where a matmul rounds its factors.

    The graph does not know where it will run. So ones are multiplied by a number that float32 has
    and TensorFloat-32 has not. What comes out is less by 2^-11 there, and by less than 2^-13 for
    any order of summing up to 2,000 float32 numbers.
    """
    # 1, but no constant: the graph optimiser would multiply in advance, on a processor.
    one = tf.cast(self.greatest_norm >= 0.0, tf.float32)
    factor = 1.0 + 2.0**-11 - 2.0**-18
    # As large as a GPU's kernels for matrices want it; it costs nothing beside a scan.
    product = tf.matmul(
      tf.fill([_PROBED, self.width], one), tf.fill([self.width, _QUERIES], factor * one)
    )
    exact = factor * self.width
    rounded = tf.reduce_any(tf.abs(product - exact) > 2.0**-12 * exact)
    return tf.where(rounded, _TF32_LOSS, 0.0)

  def _search(self, queries, epsilon, k, keep):
    """Scores and rows [B, k] of one tile of queries."""
    blocks, groups = self._scan(queries, keep)
    num_blocks = -(-self.size // _BLOCK)
    num_selected = min(k + _SPARE, num_blocks)
    if num_selected == num_blocks:
      selected = tf.tile(tf.range(num_blocks)[tf.newaxis], [tf.shape(queries)[0], 1])
      left_out = tf.fill([tf.shape(queries)[0]], -np.inf)
    else:
      selected, left_out = _best_blocks(blocks, groups, num_selected)
    scores, positions, rows_left_out = _in_tiles(
      lambda queries, blocks: self._refine(queries, blocks, k, keep),
      [queries, selected],
      tile=_REFINED,
      parallel=2,
      outputs=[(tf.float32, [k]), (tf.int32, [k]), (tf.float32, [])],
    )
    left_out = tf.maximum(left_out, rows_left_out)
    # All scores of a query of zeros are 0, exactly, in each pass: there step 2 is a proof. Where
    # all that was left out is -inf, it is rows that are not kept.
    proven = (left_out < scores[:, k - 1] - epsilon) | (epsilon == 0.0) | (left_out == -np.inf)
    return self._look_again(queries, epsilon, blocks, scores, positions, proven, keep)

  def _scan(self, queries, keep):
    """Maxima of the blocks [blocks, B] and of the groups [groups, B], -inf past the last row."""
    stored = self.vectors if self.precision == 'float32' else self.upper
    length = max(_CHUNK[self.precision] // self.width // (_BLOCK * _GROUP), 1) * _BLOCK * _GROUP
    num_chunks, rest = divmod(self.size, length)

    def maxima(part, size):
      rows = tf.ensure_shape(stored[part], [size, self.width])
      # [rows, B] rather than [B, rows]: the product is faster so, and so is the maximum, which
      # then takes whole vectors of queries at once.
      scores = tf.matmul(tf.cast(rows, tf.float32), queries, transpose_b=True)
      if keep is not None:
        scores = tf.where(tf.ensure_shape(keep[part], [size])[:, tf.newaxis], scores, -np.inf)
      missing = -size % (_BLOCK * _GROUP)
      if missing:
        scores = tf.pad(scores, [[0, missing], [0, 0]], constant_values=-np.inf)
      blocks = _grouped_maximum(scores, _BLOCK)
      return blocks, _grouped_maximum(blocks, _GROUP)

    def body(i, blocks, groups):
      found = maxima(slice(i * length, (i + 1) * length), length)
      return i + 1, blocks.write(i, found[0]), groups.write(i, found[1])

    outputs = []
    if num_chunks:
      arrays = [
        tf.TensorArray(tf.float32, size=num_chunks, element_shape=[count, None])
        for count in (length // _BLOCK, length // _BLOCK // _GROUP)
      ]
      # Two chunks at once keep the second core busy while the first is between operations.
      _, *arrays = tf.while_loop(
        lambda i, *_: i < num_chunks, body, (tf.constant(0), *arrays), parallel_iterations=2
      )
      outputs.append(
        [
          tf.ensure_shape(array.concat(), [num_chunks * length // count, None])
          for array, count in zip(arrays, (_BLOCK, _BLOCK * _GROUP))
        ]
      )
    if rest:
      outputs.append(maxima(slice(self.size - rest, self.size), rest))
    return outputs[0] if len(outputs) == 1 else [tf.concat(both, 0) for both in zip(*outputs)]

  def _scanned_scores(self, queries, blocks, keep):
    """Scores a(x) [B, M * 16] of the rows of blocks [B, M], and the rows; -inf past the last."""
    positions = _members(blocks, _BLOCK)
    inside = positions < self.size
    positions = tf.minimum(positions, self.size - 1)
    stored = self.vectors if self.precision == 'float32' else self.upper
    rows = tf.cast(tf.gather(stored.value(), positions), tf.float32)
    scores = tf.matmul(rows, queries[:, :, tf.newaxis])[:, :, 0]
    if keep is not None:
      inside &= tf.gather(keep, positions)
    return tf.where(inside, scores, -np.inf), positions

  def _final_scores(self, queries, positions, scanned):
    """Scores s(x) [B, M] of the rows at positions [B, M]; -inf stays -inf."""
    # Not a matmul: its kernels sum the rows at the edge of a tile in another order than the rest,
    # and two equal rows must have equal scores.
    scores = tf.reduce_sum(self.rows(positions) * queries[:, tf.newaxis], axis=-1)
    return tf.where(scanned > -np.inf, scores, -np.inf)

  def _refine(self, queries, blocks, k, keep):
    """The k best rows of ascending blocks [B, M]: scores, rows; the best scanned score left out."""
    scanned, positions = self._scanned_scores(queries, blocks, keep)
    available = scanned.shape[1]
    if available > k + _SPARE:
      best, order = tf.math.top_k(scanned, k + _SPARE + 1)
      left_out = best[:, -1]
      # By position again, or rows of equal score would not come in ascending order.
      order = tf.sort(order[:, :-1], axis=-1)
      scanned = tf.gather(scanned, order, batch_dims=1)
      positions = tf.gather(positions, order, batch_dims=1)
    else:
      left_out = tf.fill([tf.shape(queries)[0]], -np.inf)
    scores, order = tf.math.top_k(self._final_scores(queries, positions, scanned), k)
    return scores, tf.gather(positions, order, batch_dims=1), left_out

  def _look_again(self, queries, epsilon, blocks, scores, positions, proven, keep):
    """Refines, for each query that is not proven, every block that may hold a result."""
    k = scores.shape[1]
    doubtful = tf.where(~proven)  # [D, 1]

    def again(index):
      row = index[0, 0]
      query, bound = queries[row][tf.newaxis], scores[row, k - 1] - epsilon[row]
      wanted = tf.cast(tf.where(blocks[:, row] >= bound)[:, 0], tf.int32)

      def piece(start, best, best_positions):
        part = wanted[start : start + _PIECE]
        scanned, members = self._scanned_scores(query, part[tf.newaxis], keep)
        able = tf.where(scanned[0] >= bound)[:, 0]
        scanned, members = (tf.gather(tensor, able, axis=1) for tensor in (scanned, members))
        # What was found before has lower positions; in front, it wins ties.
        joined = tf.concat([best, self._final_scores(query, members, scanned)], axis=1)
        members = tf.concat([best_positions, members], axis=1)
        best, order = tf.math.top_k(joined, k)
        return start + _PIECE, best, tf.gather(members, order, batch_dims=1)

      nothing = (tf.constant(0), tf.fill([1, k], -np.inf), tf.zeros([1, k], tf.int32))
      _, best, best_positions = tf.while_loop(
        lambda start, *_: start < tf.shape(wanted)[0], piece, nothing, parallel_iterations=1
      )
      return best, best_positions

    def all_again():
      found = _in_tiles(
        again, [doubtful], tile=1, parallel=2, outputs=[(tf.float32, [k]), (tf.int32, [k])]
      )
      return tuple(
        tf.tensor_scatter_nd_update(tensor, doubtful, better)
        for tensor, better in zip((scores, positions), found)
      )

    return tf.cond(tf.size(doubtful) > 0, all_again, lambda: (scores, positions))


def _best_blocks(blocks, groups, count):
  """The `count` best blocks [B, count], ascending, and the best maximum [B] left out."""
  num_groups = min(count + 1, groups.shape[0])
  best_groups = tf.math.top_k(tf.transpose(groups), num_groups).indices
  # Ascending, or blocks of equal maximum would not come in the order of their positions.
  candidates = _members(tf.sort(best_groups, axis=-1), _GROUP)
  columns = tf.broadcast_to(tf.range(tf.shape(groups)[1])[:, tf.newaxis], tf.shape(candidates))
  maxima = tf.gather_nd(blocks, tf.stack([candidates, columns], axis=-1))
  best, order = tf.math.top_k(maxima, count + 1)
  chosen = tf.gather(candidates, order[:, :count], batch_dims=1)
  return tf.sort(chosen, axis=-1), best[:, count]


def _members(blocks, length):
  """Positions [B, M * length] of the members of blocks [B, M] of `length`."""
  members = blocks[:, :, tf.newaxis] * length + tf.range(length)
  columns = -1 if blocks.shape[1] is None else blocks.shape[1] * length
  return tf.reshape(members, [tf.shape(blocks)[0], columns])


def _grouped_maximum(values, length):
  """Maxima [n / length, B] of `length` consecutive rows of [n, B] each; n is static."""
  grouped = tf.reshape(values, [values.shape[0] // length, length, tf.shape(values)[1]])
  return tf.reduce_max(grouped, axis=1)


def _in_tiles(
  function: Callable,
  inputs: Sequence[tf.Tensor],
  *,
  tile: int,
  parallel: int,
  outputs: Sequence[tuple[tf.DType, list[int]]],
) -> list[tf.Tensor]:
  """Applies a function to `tile` rows of the inputs at a time and joins what it returns.

  Args:
    function: tensors [b, ...], b <= tile -> tensors [b, ...].
    inputs: tensors [B, ...], B >= 0.
    tile: rows at a time.
    parallel: tiles at a time.
    outputs: type and static shape, without the leading dimension, of each result.
  """
  count = tf.shape(inputs[0])[0]
  # One (empty) tile at least: an empty TensorArray cannot be joined.
  num_tiles = tf.maximum((count + tile - 1) // tile, 1)

  def body(i, *arrays):
    results = function(*(tensor[i * tile : (i + 1) * tile] for tensor in inputs))
    return i + 1, *(array.write(i, result) for array, result in zip(arrays, results))

  arrays = [
    tf.TensorArray(dtype, size=num_tiles, infer_shape=False, element_shape=[None, *shape])
    for dtype, shape in outputs
  ]
  _, *arrays = tf.while_loop(
    lambda i, *_: i < num_tiles, body, (tf.constant(0), *arrays), parallel_iterations=parallel
  )
  return [
    tf.ensure_shape(array.concat(), [None, *shape]) for array, (_, shape) in zip(arrays, outputs)
  ]


# The bits of a float32, read as an integer, are those of its nearest bfloat16 shifted up by 16,
# plus a rest of 16 bits with a sign: two halves that together are the float32, in no more memory.


def _upper_half(rows: np.ndarray) -> np.ndarray:
  """The bits of the nearest bfloat16 of each number, uint16."""
  upper = np.empty(rows.shape, np.uint16)
  for part in _parts(rows):
    upper[part] = (rows[part].view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)
  return upper


def _lower_half(rows: np.ndarray) -> np.ndarray:
  """What remains of the bits of each number without its upper half, int16."""
  lower = np.empty(rows.shape, np.int16)
  for part in _parts(rows):
    lower[part] = (rows[part].view(np.uint32) & np.uint32(0xFFFF)).astype(np.uint16).view(np.int16)
  return lower


def _greatest_norms(rows: np.ndarray, *, rounded: bool) -> tuple[float, float]:
  """Upper bounds of ||row|| and, if rounded, of ||row - bfloat16(row)||, over all rows.

  Raises:
    ValueError: a row is not finite, or too long for float32.
  """
  norm = residual = 0.0
  for part in _parts(rows):
    exact = rows[part].astype(np.float64)
    lengths = np.sqrt(np.sum(exact * exact, axis=1))
    bad = np.flatnonzero(~(lengths < 1e18))
    if len(bad):
      raise ValueError(
        f'Row {part.start + bad[0]} of the gallery has length {lengths[bad[0]]}: it holds NaN, '
        'infinity, or numbers too large to be compared. Check the image encoder that made it.'
      )
    norm = max(norm, lengths.max())
    if rounded:
      upper = _upper_half(rows[part]).astype(np.uint32) << np.uint32(16)
      difference = exact - upper.view(np.float32)
      residual = max(residual, np.sqrt(np.sum(difference * difference, axis=1)).max())
  # Not below the true value after rounding to float32.
  return norm * (1 + 1e-6), residual * (1 + 1e-6)


def _parts(rows: np.ndarray, size: int = 65536) -> list[slice]:
  """Slices of at most `size` rows that cover the matrix."""
  return [slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
