from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from tfreid.serving import search


def brute_force(queries, rows, k, keep=None):
  """Scores and rows by a stable full sort in float64."""
  scores = queries.astype(np.float64) @ rows.astype(np.float64).T
  if keep is not None:
    scores[:, ~keep] = -np.inf
  order = np.argsort(-scores, axis=1, kind='stable')[:, :k]
  return np.take_along_axis(scores, order, axis=1), order


def unit(rng, *shape):
  vectors = rng.standard_normal(shape)
  return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def integers(rng, *shape):
  """Whole numbers of up to 10 bits in 4 dimensions.

  Their dot products stay below 2^24, so each float32 sum is exact in any order; and they have more
  bits than bfloat16's 8, so rounding them loses something.
  """
  return rng.integers(-1023, 1024, (*shape, 4)).astype(np.float32)


@pytest.mark.parametrize('precision', search.PRECISIONS)
@pytest.mark.parametrize(
  ('num_rows', 'num_queries', 'k'),
  [(1, 1, 1), (5, 3, 100), (16, 1, 16), (17, 2, 3), (256, 0, 4), (700, 2, 7), (3000, 70, 11)],
)
def test_ranking_is_that_of_a_full_sort_of_exact_scores(num_rows, num_queries, k, precision):
  rng = np.random.default_rng(num_rows + k)
  rows, queries = integers(rng, num_rows), integers(rng, num_queries)
  scores, positions = search.ExactSearch(rows, precision=precision)(queries, k=k)
  expected_scores, expected = brute_force(queries, rows, k)
  assert positions.dtype == tf.int64
  np.testing.assert_array_equal(positions, expected)
  np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize('precision', search.PRECISIONS)
@pytest.mark.parametrize('num_rows', [512, 513, 1900, 2048, 5000])
def test_ties_go_to_the_lower_row_across_blocks_chunks_and_tiles(num_rows, precision, monkeypatch):
  # Chunks of 512 rows, and few distinct scores, so that ties lie in several of them.
  monkeypatch.setattr(search, '_CHUNK', dict.fromkeys(search.PRECISIONS, 512 * 4))
  rng = np.random.default_rng(num_rows)
  rows = rng.integers(-2, 3, (num_rows, 4)).astype(np.float32)
  queries = rng.integers(-2, 3, (9, 4)).astype(np.float32)
  found = search.ExactSearch(rows, precision=precision)
  for k in (1, 40, 400):
    scores, positions = found(queries, k=k)
    expected_scores, expected = brute_force(queries, rows, k)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize('precision', search.PRECISIONS)
@pytest.mark.parametrize('spread', [1.0, 0.05, 0.001])
def test_unit_vectors_rank_as_in_float64_up_to_rounding(spread, precision):
  # With a small spread many rows lie closer together than bfloat16 can tell apart.
  rng = np.random.default_rng(3)
  centres = unit(rng, 4, 64)
  rows = centres[rng.integers(0, 4, 6000)] + spread * unit(rng, 6000, 64)
  rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
  queries = np.concatenate([centres, unit(rng, 3, 64)])
  scores, positions = search.ExactSearch(rows, precision=precision)(queries, k=50)
  expected, _ = brute_force(queries, rows, 50)
  np.testing.assert_allclose(scores, expected, rtol=0, atol=3e-7)
  exact = np.einsum('be,bke->bk', queries.astype(np.float64), rows[positions.numpy()])
  np.testing.assert_allclose(scores, exact, rtol=0, atol=3e-7)
  assert all(len(set(row)) == 50 for row in positions.numpy().tolist())


def test_both_precisions_give_the_same_bits():
  rng = np.random.default_rng(5)
  rows, queries = unit(rng, 4000, 128), unit(rng, 20, 128)
  answers = [search.ExactSearch(rows, precision=p)(queries, k=30) for p in search.PRECISIONS]
  for one, other in zip(*answers):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('precision', search.PRECISIONS)
def test_a_row_has_the_same_score_wherever_it_stands_and_whoever_asks_beside(precision):
  rng = np.random.default_rng(6)
  queries = unit(rng, 13, 100)
  rows = unit(rng, 2100, 100)
  rows[[7, 300, 1031, 2099]] = queries[4]
  found = search.ExactSearch(rows, precision=precision)
  scores, positions = found(queries, k=5)
  assert positions.numpy()[4, :4].tolist() == [7, 300, 1031, 2099]
  assert len(set(scores.numpy()[4, :4])) == 1
  for i in range(13):
    alone = found(queries[i : i + 1], k=5)
    np.testing.assert_array_equal(alone[0][0], scores[i])
    np.testing.assert_array_equal(alone[1][0], positions[i])


@pytest.mark.parametrize('precision', search.PRECISIONS)
def test_equal_rows_and_a_query_of_zeros_answer_the_first_rows(precision, monkeypatch):
  monkeypatch.setattr(search, '_PIECE', 16)  # several pieces in the second look
  rng = np.random.default_rng(7)
  rows = np.repeat(unit(rng, 1, 32), 3000, axis=0)
  queries = np.concatenate([unit(rng, 1, 32), np.zeros([1, 32], np.float32)])
  _, positions = search.ExactSearch(rows, precision=precision)(queries, k=60)
  np.testing.assert_array_equal(positions, np.tile(np.arange(60), [2, 1]))


@pytest.mark.parametrize('precision', search.PRECISIONS)
def test_rows_that_are_not_kept_are_never_answered(precision):
  rng = np.random.default_rng(8)
  rows, queries = integers(rng, 4000), integers(rng, 5)
  for share in (0.5, 0.004):
    keep = rng.random(4000) < share
    scores, positions = search.ExactSearch(rows, precision=precision)(queries, k=30, keep=keep)
    expected_scores, expected = brute_force(queries, rows, 30, keep)
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(positions, np.where(np.isinf(expected_scores), -1, expected))


def test_no_row_kept_is_an_answer_of_minus_one():
  rng = np.random.default_rng(9)
  scores, positions = search.ExactSearch(unit(rng, 500, 8))(
    unit(rng, 2, 8), k=3, keep=np.zeros(500, bool)
  )
  assert np.all(positions.numpy() == -1) and np.all(np.isneginf(scores))


@pytest.mark.parametrize('scale', [1e-30, 1.0, 1e15])
@pytest.mark.parametrize('precision', search.PRECISIONS)
def test_ranking_does_not_depend_on_the_length_of_the_query(scale, precision):
  rng = np.random.default_rng(10)
  rows, queries = unit(rng, 3000, 16), unit(rng, 3, 16)
  found = search.ExactSearch(rows, precision=precision)
  _, expected = found(queries, k=9)
  _, positions = found((queries * np.float64(scale)).astype(np.float32), k=9)
  np.testing.assert_array_equal(positions, expected)


def test_error_bound_covers_every_scanned_score():
  rng = np.random.default_rng(11)
  rows, queries = unit(rng, 2000, 128) * 3, unit(rng, 8, 128) * 5
  exact = queries.astype(np.float64) @ rows.astype(np.float64).T
  for precision in search.PRECISIONS:
    found = search.ExactSearch(rows, precision=precision)
    blocks = tf.tile(tf.range(125)[tf.newaxis], [8, 1])
    scanned, _ = found._scanned_scores(tf.constant(queries), blocks, None)
    worst = np.abs(scanned.numpy() - exact).max(axis=1)
    bound = found._epsilon(tf.constant(queries)).numpy()
    assert np.all(worst < bound)
    # Not so wide that it proves nothing: a hundredth of the scores' own range at most.
    assert np.all(bound < 0.01 * np.ptp(exact, axis=1))


def ten_bits(numbers, rounding):
  """float32 as TensorFloat-32 has them, cut off or rounded to the nearest."""
  bits = tf.bitcast(tf.cast(numbers, tf.float32), tf.int32)
  if rounding == 'nearest':
    bits += 1 << 12
  return tf.bitcast(tf.bitwise.bitwise_and(bits, ~((1 << 13) - 1)), tf.float32)


@pytest.mark.parametrize('precision', search.PRECISIONS)
@pytest.mark.parametrize('rounding', ['cut off', 'nearest'])
def test_answers_are_exact_where_products_are_tensor_float_32(rounding, precision, monkeypatch):
  rng = np.random.default_rng(12)
  # Many rows of nearly the same score.
  rows = unit(rng, 1, 64) + 0.001 * unit(rng, 6000, 64)
  queries = unit(rng, 5, 64) + rows[:5]
  expected = search.ExactSearch(rows, precision=precision)(queries, k=50)
  assert float(search.ExactSearch(rows, precision=precision)._lost_by_products()) == 0.0
  product = tf.matmul

  def matmul(a, b, **options):
    return product(ten_bits(a, rounding), ten_bits(b, rounding), **options)

  monkeypatch.setattr(tf, 'matmul', matmul)
  found = search.ExactSearch(rows, precision=precision)
  blocks = tf.tile(tf.range(375)[tf.newaxis], [5, 1])
  scanned, _ = found._scanned_scores(tf.constant(queries), blocks, None)
  exact = queries.astype(np.float64) @ rows.astype(np.float64).T
  worst = np.abs(scanned.numpy() - exact).max(axis=1)
  bound = found._epsilon(tf.constant(queries)).numpy()
  assert np.all(worst < bound)
  for one, other in zip(found(queries, k=50), expected):
    np.testing.assert_array_equal(one, other)
  # Without the probe the bound would be wrong, and so would be the answers.
  monkeypatch.setattr(search, '_TF32_LOSS', 0.0)
  if precision == 'float32':
    assert np.all(worst > found._epsilon(tf.constant(queries)).numpy())
    assert np.any(found(queries, k=50)[1].numpy() != expected[1].numpy())


@pytest.mark.parametrize('rounding', [None, 'cut off', 'nearest'])
@pytest.mark.parametrize('width', [1, 3, 512, 4096])
def test_a_probe_tells_plain_products_from_tensor_float_32(width, rounding, monkeypatch):
  product = tf.matmul
  if rounding:
    monkeypatch.setattr(
      tf, 'matmul', lambda a, b: product(ten_bits(a, rounding), ten_bits(b, rounding))
    )
  # Whatever the rows are: these say nothing by themselves.
  found = search.ExactSearch(np.zeros([3, width], np.float32))
  graph = tf.function(found._lost_by_products)
  for lost in (found._lost_by_products(), graph(), graph()):
    assert float(lost) == (pytest.approx(2.0**-9, rel=0.01) if rounding else 0.0)


def test_the_probe_is_not_answered_in_advance_by_the_graph_optimiser():
  found = search.ExactSearch(np.ones([3, 8], np.float32))
  watched = context.context()
  watched.enable_run_metadata()
  try:
    tf.function(found._lost_by_products)()
    (graph,) = watched.export_run_metadata().function_graphs
  finally:
    watched.disable_run_metadata()
  assert 'MatMul' in {node.op for node in graph.post_optimization_graph.node}


def test_halves_are_the_nearest_bfloat16_and_lose_nothing():
  rng = np.random.default_rng(12)
  rows = (rng.standard_normal((500, 40)) * 10.0 ** rng.integers(-30, 15, (500, 1))).astype('f4')
  rows[0, :4] = 0.0, -0.0, 1.0, -1.0
  found = search.ExactSearch(rows, precision='bfloat16')
  np.testing.assert_array_equal(
    found.rows(tf.range(500)).numpy().view(np.uint32), rows.view(np.uint32)
  )
  nearest = tf.cast(tf.cast(rows, tf.bfloat16), tf.float32).numpy()
  kept = tf.cast(found.upper, tf.float32).numpy()
  np.testing.assert_array_equal(np.abs(kept - rows), np.abs(nearest - rows))
  assert found.upper.dtype.size + found.lower.dtype.size == 4
  assert found.memory_bytes == rows.nbytes


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 3e38])
def test_a_query_that_is_not_finite_is_an_error(bad):
  rng = np.random.default_rng(13)
  queries = unit(rng, 2, 8)
  queries[1, 3] = bad
  with pytest.raises(tf.errors.InvalidArgumentError, match='too large to be scored'):
    search.ExactSearch(10 * unit(rng, 50, 8))(queries, k=3)


def test_bad_galleries_are_refused_with_the_row_and_the_reason():
  rows = np.ones([300, 4], np.float32)
  rows[260, 2] = np.nan
  with pytest.raises(ValueError, match='Row 260 of the gallery has length nan'):
    search.ExactSearch(rows)
  for shape in ([0, 4], [4], [3, 0]):
    with pytest.raises(ValueError, match='at least one row'):
      search.ExactSearch(np.zeros(shape, np.float32))
  with pytest.raises(ValueError, match="Unknown precision 'int8'"):
    search.ExactSearch(rows[:2], precision='int8')
  with pytest.raises(ValueError, match='at least 1, not 0'):
    search.ExactSearch(rows[:2])(rows[:1], k=0)


def test_one_graph_serves_every_batch_size():
  rng = np.random.default_rng(14)
  rows = integers(rng, 2500)
  found = search.ExactSearch(rows)
  traces = itertools.count()

  @tf.function(input_signature=[tf.TensorSpec([None, 4])])
  def answer(queries):
    next(traces)
    return found(queries, k=20)

  for batch in (1, 0, 64, 65, 130):
    queries = integers(rng, batch)
    np.testing.assert_array_equal(answer(queries)[1], brute_force(queries, rows, 20)[1])
  assert next(traces) == 1
