"""The scan of the 8-bit copy: the answers of a full sort, whatever the rows are like."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import sys
import threading
import time
import types

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfreid import threads
from tfreid.index import engine
from tfreid.serving import candidates, packed, quantized, search


@pytest.fixture(autouse=True)
def _several_threads(monkeypatch):
  """Also where there are too few rows for them to be worth it, and on one core."""
  for module in (quantized, candidates):
    monkeypatch.setattr(module, '_WORTH', 1)
  monkeypatch.setattr(quantized, '_AT_ONCE', 0)
  cores = max(threads.usable_cores(), 2)
  monkeypatch.setattr(threads, 'usable_cores', lambda: cores)


def scan_of(*galleries):
  """A scan of rows in several parts."""
  parts = [quantized.Part(rows, *quantized.quantized(rows)) for rows in galleries]
  return quantized.QuantizedScan(parts, width=galleries[0].shape[1], score=engine.last_scores)


def last_scores(rows, query):
  """What TensorFlow sums, row by row, without anything of the index."""
  return tf.reduce_sum(tf.constant(rows) * tf.constant(query), axis=-1).numpy()


def full_sort(rows, query, top_k, keep=None):
  """Rows and scores by a stable sort of all last scores."""
  scores = last_scores(rows, query)
  order = np.argsort(-scores, kind='stable')
  if keep is not None:
    order = order[keep[order]]
  return order[:top_k], scores[order[:top_k]]


def assert_exact(scan, rows, queries, top_k, keep=None):
  found = scan.search(queries, top_k=top_k, keep=keep)
  assert len(found) == len(queries)
  for query, (positions, scores) in zip(queries, found):
    expected, wanted = full_sort(rows, query, top_k, keep)
    np.testing.assert_array_equal(positions, expected)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores.view(np.int32), wanted.view(np.int32))


def unit(rng, *shape):
  vectors = rng.standard_normal(shape)
  return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def _galleries():
  """Rows that are hard for 8 bits, by name."""
  rng = np.random.default_rng(0)
  rows = unit(rng, 6000, 40)
  spikes = rows.copy()
  spikes[::3, 7] = 1e6  # one number so large that the others become 0
  near = unit(rng, 1, 40) + 1e-4 * rng.standard_normal((6000, 40)).astype(np.float32)
  norms = rows * np.exp(rng.uniform(-40, 20, (6000, 1))).astype(np.float32)
  halves = np.rint(20 * rows) / 2
  return {
    'unit': rows,
    'one huge number': spikes,
    'closer than 8 bits can tell': near.astype(np.float32),
    'equal up to the last bits': np.nextafter(
      np.repeat(rows[:1], 6000, axis=0), rng.integers(0, 2, (6000, 40)).astype(np.float32)
    ),
    'all equal': np.repeat(rows[:1], 6000, axis=0),
    'duplicates': rows[rng.integers(0, 30, 6000)],
    'all negative': (-1e4 * rng.random((6000, 40))).astype(np.float32),
    'huge and tiny norms': norms,
    # By their bits: arithmetic may flush them to zero.
    'denormal': rng.integers(0, 1 << 20, (6000, 40), np.uint32).view(np.float32),
    'around the smallest normal number': (rows * 2.0**-125).astype(np.float32),
    'the longest that are allowed': rows * np.float32(9e17),
    'zeros': np.zeros((6000, 40), np.float32),
    'some zeros': np.where(rng.random((6000, 1)) < 0.5, rows, 0).astype(np.float32),
    'exact in 8 bits': halves.astype(np.float32),
    'one dimension that differs': np.eye(1, 40, 3, dtype=np.float32)
    * rng.standard_normal((6000, 1)).astype(np.float32),
  }


GALLERIES = _galleries()


AT_ONCE = quantized._AT_ONCE
SAMPLED = [
  'one after the other',
  'together',
  'a matrix of whole numbers',
  'a matrix of float32',
]


@pytest.fixture(
  params=[*SAMPLED, 'one after the other, all rows at once', 'together, all rows at once']
)
def batches(request, monkeypatch):
  """batches(queries): the queries one by one, or all at once, in each way that there is."""
  if request.param.endswith('all rows at once'):
    monkeypatch.setattr(quantized, '_AT_ONCE', AT_ONCE)
  if request.param.startswith('one after the other'):
    return lambda queries: [queries[i : i + 1] for i in range(len(queries))]
  few = {'a matrix of whole numbers': '_PACKED', 'a matrix of float32': '_MATRIX'}
  for name in ('_PACKED', '_MATRIX'):
    monkeypatch.setattr(quantized, name, 2 if few.get(request.param) == name else 1000)
  if request.param == 'a matrix of float32':
    monkeypatch.setattr(packed, 'is_available', lambda: False)
  elif request.param == 'a matrix of whole numbers' and not packed.is_available():
    pytest.skip('Neither NumKong nor ONNX Runtime is here.')
  return lambda queries: [queries]


@pytest.mark.parametrize('name', GALLERIES)
def test_answers_are_those_of_a_full_sort_bit_by_bit(name, batches, monkeypatch):
  # Several blocks and tiles, in two parts.
  monkeypatch.setattr(quantized, '_BLOCK', 40 * 900)
  monkeypatch.setattr(quantized, '_TILE', 500)
  monkeypatch.setattr(quantized, '_FIRST', 64)
  rng = np.random.default_rng(1)
  rows = GALLERIES[name]
  scan = scan_of(rows[:2500], rows[2500:])
  queries = np.concatenate(
    [
      unit(rng, 2, 40),
      unit(rng, 1, 40) * np.float32(1e-30),
      unit(rng, 1, 40) * np.float32(1e15),
      rows[:1] / np.maximum(np.linalg.norm(rows[:1].astype(np.float64)), 1e-30),
      np.zeros((1, 40)),
      np.eye(1, 40, 7),
      -np.eye(1, 40, 7),
    ]
  ).astype(np.float32)
  for part in batches(queries):
    assert_exact(scan, rows, part, 13)
  for keep in (rng.random(6000) < 0.5, rng.random(6000) < 0.02, np.arange(6000) == 3000):
    for part in batches(queries[:5]):
      assert_exact(scan, rows, part, 13, keep)


@pytest.mark.parametrize('size', [1, 2, 7, 100, 257])
def test_as_many_as_there_are_or_more_are_answered(size, batches):
  rng = np.random.default_rng(size)
  rows, queries = unit(rng, size, 33), unit(rng, 5, 33)
  scan = scan_of(rows)
  for top_k in (1, size, size + 5):
    for part in batches(queries):
      assert_exact(scan, rows, part, top_k)


def test_without_rows_or_with_none_that_may_be_answered_there_is_no_answer():
  rng = np.random.default_rng(2)
  queries = np.concatenate([unit(rng, 5, 8), np.zeros((1, 8), np.float32)])
  for scan, keep in (
    (scan_of(np.empty((0, 8), np.float32)), None),
    (scan_of(unit(rng, 50, 8)), np.zeros(50, bool)),
  ):
    for count in (1, 6):
      found = scan.search(queries[:count], top_k=3, keep=keep)
      assert [len(positions) for positions, _ in found] == [0] * count
  assert scan.search(queries[:0], top_k=3) == []


@pytest.mark.parametrize('width', [1, 2, 127, 128, 513, 1500])
def test_any_width(width, batches):
  rng = np.random.default_rng(width)
  rows, queries = unit(rng, 900, width), unit(rng, 5, width)
  for part in batches(queries):
    assert_exact(scan_of(rows), rows, part, 20)


def test_the_answers_are_those_of_the_exported_scan():
  rng = np.random.default_rng(3)
  rows, queries = unit(rng, 5000, 128), unit(rng, 70, 128)
  keep = rng.random(5000) < 0.3
  scan = scan_of(rows)
  scores, positions = search.ExactSearch(rows)(queries, k=25, keep=tf.constant(keep))
  for part in (slice(0, 70), slice(5, 6)):
    for found, expected, wanted in zip(
      scan.search(queries[part], top_k=25, keep=keep), positions.numpy()[part], scores.numpy()[part]
    ):
      np.testing.assert_array_equal(found[0], expected)
      np.testing.assert_array_equal(found[1].view(np.int32), wanted.view(np.int32))


# Smaller ones are in GALLERIES: hypothesis makes none where a library has them flushed to zero.
finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(st.data(), st.integers(1, 60), st.integers(1, 6), st.integers(1, 15))
def test_any_numbers(data, size, width, count):
  numbers = st.one_of(
    finite, st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0**-126, -(2.0**-120), 2.0**50])
  )
  rows = data.draw(hypothesis.extra.numpy.arrays(np.float32, (size, width), elements=numbers))
  queries = data.draw(hypothesis.extra.numpy.arrays(np.float32, (count, width), elements=numbers))
  top_k = data.draw(st.integers(1, size))
  assert_exact(scan_of(rows), rows, queries, top_k)


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
  hypothesis.extra.numpy.arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.integers(1, 20)),
    elements=st.one_of(finite, st.floats(-(2.0**-100), 2.0**-100, width=32, allow_subnormal=False)),
  )
)
def test_the_copy_says_how_far_it_is_off(rows):
  codes, (scales, residuals, norms) = quantized.quantized(rows)
  assert codes.dtype == np.int8
  assert np.abs(codes.astype(int)).max() <= 127
  copies = codes.astype(np.longdouble) * scales.astype(np.longdouble)[:, np.newaxis]
  exact = rows.astype(np.longdouble)
  assert np.all(np.sqrt(np.sum((exact - copies) ** 2, axis=1)) <= residuals)
  assert np.all(np.sqrt(np.sum(exact**2, axis=1)) <= norms)
  assert np.all(np.sqrt(np.sum(copies**2, axis=1)) <= norms)
  # And it is not far off: half a step for each number, if steps are normal numbers.
  normal = np.abs(rows).max(axis=1) > 1e-30
  steps = scales.astype(np.float64) * np.sqrt(rows.shape[1])
  assert np.all(residuals[normal] <= 0.51 * steps[normal])


# How queries are multiplied, with how many of them.
KINDS = [('_One', 1), ('_Packed', 8), ('_Matrix', 8)]


def kind_of(name):
  if name == '_Packed' and not packed.is_available():
    pytest.skip('Neither NumKong nor ONNX Runtime is here.')
  return getattr(quantized, name)


def _bounds(rows, queries, kind):
  """a(x) - s(x) and eps(x), float64 [Q, N], as the scan computes them."""
  codes, bounds = quantized.quantized(rows)
  asked = kind_of(kind)(queries, np.arange(len(queries)))
  found = asked.factors[:, np.newaxis] * asked.products(codes, bounds[0], quantized._Room()).T
  last = np.stack([last_scores(rows, query) for query in queries])
  everyone = [
    asked.epsilon(np.full(len(rows), q), bounds[1], bounds[2]) for q in range(len(queries))
  ]
  return found - last, np.stack(everyone)


@pytest.mark.parametrize(('kind', 'count'), KINDS)
@pytest.mark.parametrize('name', GALLERIES)
def test_no_row_is_farther_off_than_its_bound(name, kind, count):
  rng = np.random.default_rng(4)
  for scale in (1e-35, 1, 1e15):
    off, epsilon = _bounds(GALLERIES[name], unit(rng, count, 40) * np.float32(scale), kind)
    assert np.all(np.abs(off) <= epsilon)


@pytest.mark.parametrize(('kind', 'count'), KINDS)
def test_the_bound_is_reached_by_what_is_worst_for_it(kind, count):
  # The query points where rounding took from the row: by Cauchy and Schwarz nothing is worse.
  rng = np.random.default_rng(5)
  rows = unit(rng, count, 64)
  codes, bounds = quantized.quantized(rows)
  missing = rows - codes * bounds[0][:, np.newaxis]
  queries = (missing / np.linalg.norm(missing, axis=1, keepdims=True)).astype(np.float32)
  off, epsilon = _bounds(rows, queries, kind)
  worst = np.abs(np.diag(off))
  assert np.all(worst <= np.diag(epsilon))
  # The rest is the query's own rounding; as a matrix of float32, there is none.
  assert np.all(worst >= (0.95 if kind == '_Matrix' else 0.4) * np.diag(epsilon))


def test_rows_at_the_border_of_the_bound_are_looked_at(batches):
  """The best row by float32 is the worst by its copy.

  All rows have the same copy. Each differs from it by less than half a step, and the query points
  along the difference of one of them: the copy cannot see it.
  """
  rng = np.random.default_rng(6)
  copy = rng.integers(-126, 127, 32).astype(np.float32)
  copy[0] = 127  # so that the scale is 1
  rows = copy + rng.uniform(-0.49, 0.49, (3000, 32)).astype(np.float32)
  rows[:, 0] = 127
  codes, bounds = quantized.quantized(rows)
  assert np.all(codes == codes[0]) and np.all(bounds[0] == 1)
  queries = np.stack([rows[i] - copy for i in (5, 1777, 2999, 40, 41)])
  for part, names in zip(batches(queries), batches(np.array([5, 1777, 2999, 40, 41]))):
    found = scan_of(rows).search(part, top_k=1)
    assert [positions.tolist() for positions, _ in found] == [[name] for name in names]
    assert_exact(scan_of(rows), rows, part, 40)


@pytest.mark.parametrize('batches', SAMPLED, indirect=True)
def test_memory_stays_bounded_where_every_row_is_a_candidate(monkeypatch, batches):
  monkeypatch.setattr(candidates, '_PENDING', 500)
  monkeypatch.setattr(quantized, '_BLOCK', 40 * 300)
  monkeypatch.setattr(quantized, '_SHORTEST', 40 * 300)
  monkeypatch.setattr(quantized, '_TILE', 300)
  most = []
  pruned = candidates.Candidates._prune

  def prune(self):
    most.append(self._number)
    pruned(self)
    assert self._number <= 250

  monkeypatch.setattr(candidates.Candidates, '_prune', prune)
  rows = GALLERIES['all equal']
  queries = unit(np.random.default_rng(7), 5, 40)
  for part in batches(queries):
    assert_exact(scan_of(rows), rows, part, 30)
  assert most and max(most) <= 500 + 300 * 5  # and a block for each query


def test_rows_of_a_mapped_file_are_asked_for_before_they_are_read(tmp_path, monkeypatch):
  rows = GALLERIES['unit']
  np.save(tmp_path / 'rows.npy', rows)
  mapped = np.load(tmp_path / 'rows.npy', mmap_mode='r')
  asked = []
  read = quantized._ReadAhead.read

  def noted(self, places):
    asked.append((self._mapping is not None, len(places)))
    read(self, places)

  monkeypatch.setattr(quantized._ReadAhead, 'read', noted)
  queries = unit(np.random.default_rng(13), 3, 40)
  # A part of a mapping, a whole one, and an array that is none.
  scan = scan_of(mapped[1:2000], mapped[2000:], rows[:50])
  assert_exact(scan, np.concatenate([rows[1:], rows[:50]]), queries, 200)
  assert {is_mapped for is_mapped, _ in asked} == {True, False}
  assert max(count for is_mapped, count in asked if is_mapped) > quantized._AHEAD


@pytest.mark.parametrize('at_once', [0, AT_ONCE])
def test_low_scores_need_not_be_answered(at_once, monkeypatch):
  monkeypatch.setattr(quantized, '_AT_ONCE', at_once)
  rng = np.random.default_rng(8)
  rows, queries = unit(rng, 4000, 24), unit(rng, 5, 24)
  scan = scan_of(rows)
  for count in (1, 5):
    found = scan.search(queries[:count], top_k=4000, min_score=0.3)
    for query, (positions, scores) in zip(queries, found):
      expected, wanted = full_sort(rows, query, 4000)
      able = wanted >= np.float32(0.3)
      np.testing.assert_array_equal(positions[scores >= np.float32(0.3)], expected[able])
      assert 0 < able.sum() <= len(positions) < 1000


@pytest.mark.parametrize('kind', ['_One', '_Packed'])
def test_products_of_the_extremes_are_exact_in_whole_numbers(kind):
  rng = np.random.default_rng(9)
  for width in (1, 31, 64, 100, 1000, 100_000, quantized.MAX_WIDTH):
    codes = rng.choice(np.array([-127, 127], np.int8), (5, width))
    for sign in (1, -1):
      queries = sign * codes[: 1 if kind == '_One' else 3].astype(np.float32)
      asked = kind_of(kind)(queries, np.arange(len(queries)))
      np.testing.assert_array_equal(asked.factors, 1)
      found = asked.products(codes, np.ones(5, np.float32), quantized._Room())
      exact = codes.astype(np.int64) @ queries.T.astype(np.int64)
      np.testing.assert_array_equal(found, exact.astype(np.float32))


def test_what_is_too_wide_or_does_not_fit_is_refused():
  wide = np.zeros((1, quantized.MAX_WIDTH + 1), np.float32)
  with pytest.raises(ValueError, match='exact to 133000'):
    scan_of(wide)
  rows = np.zeros((3, 4), np.float32)
  codes, bounds = quantized.quantized(rows)
  for part in ((rows, codes[:2], bounds), (rows, codes, bounds[:2]), (rows, rows, bounds)):
    with pytest.raises(ValueError, match='shapes and types'):
      quantized.QuantizedScan([quantized.Part(*part)], width=4, score=engine.last_scores)


def test_queries_whose_scores_could_overflow_do_not_suit():
  queries = np.ones((2, 4), np.float32)
  assert quantized.suits(queries)
  queries[1] *= 1e20
  assert not quantized.suits(queries)
  queries[1] = np.float32(3e38)
  assert not quantized.suits(queries)


def test_many_threads_may_ask_at_once(monkeypatch):
  monkeypatch.setattr(threads, 'usable_cores', lambda: 4)
  monkeypatch.setattr(threads, '_helpers', None)
  monkeypatch.setattr(quantized, '_SHORTEST', 40 * 200)
  rng = np.random.default_rng(10)
  rows, queries = GALLERIES['unit'], unit(rng, 60, 40)
  scan = scan_of(rows)
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    found = list(pool.map(lambda i: scan.search(queries[i : i + 1], top_k=9)[0], range(60)))
  for query, (positions, scores) in zip(queries, found):
    expected, wanted = full_sort(rows, query, 9)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(scores, wanted)


@pytest.mark.parametrize('cores', [1, 2, 7])
def test_helpers_are_woken_up_for_what_is_worth_it(cores, monkeypatch):
  monkeypatch.undo()
  monkeypatch.setattr(quantized, '_AT_ONCE', 0)
  rng = np.random.default_rng(28)
  rows, queries = unit(rng, 50000, 64), unit(rng, 24, 64)
  asked = []
  in_parallel = threads.in_parallel

  def noted(work, *, helpers, **others):
    asked.append(helpers)
    in_parallel(work, helpers=helpers, **others)

  monkeypatch.setattr(threads, 'in_parallel', noted)
  monkeypatch.setattr(threads, '_helpers', None)
  monkeypatch.setattr(threads, 'usable_cores', lambda: cores)
  scan = scan_of(rows)
  # 3 MiB of the copy: one query is not worth a helper, and a few are not either.
  assert_exact(scan, rows, queries[:1], 100)
  assert_exact(scan, rows, queries[:4], 100)
  assert asked == [0, 0]
  if packed.is_available():
    # For the scan of two blocks, and for the candidates.
    assert_exact(scan, rows, queries, 500)
    assert asked[2] == min(cores, 2) - 1
    assert (1 <= asked[3] < cores) if cores > 1 else not asked[3:]
    del asked[2:]
  # A filter leaves less to do.
  keep = np.arange(len(rows)) < 5000
  assert_exact(scan, rows, queries[:4], 100, keep)
  assert asked[2] == 0


def test_a_search_ends_between_blocks_when_nobody_waits(monkeypatch):
  monkeypatch.setattr(threads, 'usable_cores', lambda: 3)
  monkeypatch.setattr(threads, '_helpers', None)
  monkeypatch.setattr(quantized, '_SHORTEST', 40 * 50)
  monkeypatch.setattr(quantized, '_BLOCK', 40 * 50)
  scan = scan_of(GALLERIES['unit'])
  taken, raised = [], threading.Event()
  take = quantized.QuantizedScan._take

  def slow_take(*given):
    raised.wait(60)
    taken.append(1)
    time.sleep(0.01)
    return take(*given)

  class NobodyWaitsError(Exception):
    pass

  def check():
    raised.set()
    raise NobodyWaitsError

  monkeypatch.setattr(quantized.QuantizedScan, '_take', slow_take)
  with pytest.raises(NobodyWaitsError):
    scan.search(np.ones((1, 40), np.float32), top_k=5, check=check)
  assert len(taken) < 60  # of 120 blocks
  # What fails in a helper is not lost either.
  monkeypatch.setattr(
    quantized.QuantizedScan, '_last', lambda *_: (_ for _ in ()).throw(MemoryError)
  )
  with pytest.raises(MemoryError):
    scan.search(np.ones((1, 40), np.float32), top_k=5)


def _search_in_a_fork(scan, query, answers):
  answers.put(scan.search(query, top_k=5)[0][0].tolist())


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows does not fork')
def test_a_forked_process_searches_with_threads_of_its_own(monkeypatch):
  monkeypatch.setattr(threads, 'usable_cores', lambda: 3)
  monkeypatch.setattr(threads, '_helpers', None)
  monkeypatch.setattr(quantized, '_SHORTEST', 40 * 200)
  rows = GALLERIES['unit']
  parts = [quantized.Part(rows, *quantized.quantized(rows))]
  scan = quantized.QuantizedScan(
    parts, width=40, score=lambda rows, query: np.sum(rows * query, axis=-1)
  )
  query = unit(np.random.default_rng(11), 1, 40)
  expected = scan.search(query, top_k=5)[0][0].tolist()
  assert any(thread.name.startswith('tfreid-helper') for thread in threading.enumerate())
  fork = multiprocessing.get_context('fork')
  answers = fork.Queue()
  child = fork.Process(target=_search_in_a_fork, args=(scan, query, answers))
  child.start()
  assert answers.get(timeout=60) == expected
  child.join(60)
  assert child.exitcode == 0


def test_simsimd_is_missing(monkeypatch):
  assert quantized.is_available()
  monkeypatch.setitem(sys.modules, 'simsimd', None)
  assert not quantized.is_available()


def test_numkong_is_missing_or_multiplies_otherwise(monkeypatch):
  kind_of('_Packed')
  rows = GALLERIES['unit']
  queries = unit(np.random.default_rng(12), 30, 40)
  for broken in (None, types.SimpleNamespace(dots_pack=np.asarray, dots_packed=lambda *_: 0)):
    packed.is_available.cache_clear()
    packed._numkong_multiplies.cache_clear()
    with monkeypatch.context() as patch:
      patch.setitem(sys.modules, 'numkong', broken)
      # ONNX Runtime takes its place, if it can.
      assert packed.is_available() == (packed._session() is not None)
      assert_exact(scan_of(rows), rows, queries, 5)
      packed.is_available.cache_clear()
      patch.setattr(packed, '_session', lambda: None)
      assert not packed.is_available()
      assert_exact(scan_of(rows), rows, queries, 5)
  packed._numkong_multiplies.cache_clear()
  packed.is_available.cache_clear()
  assert packed.is_available()
  assert_exact(scan_of(rows), rows, queries, 5)


def test_a_simsimd_that_cannot_multiply_is_not_used(monkeypatch):
  """As where usearch was imported before it: the functions of one are taken for the other's."""
  import simsimd

  def wrong(*_, **__):
    raise TypeError('Input tensors must have matching datatypes')

  quantized._multiplies.cache_clear()
  try:
    monkeypatch.setattr(simsimd, 'cdist', wrong)
    assert not quantized.is_available()
    quantized._multiplies.cache_clear()
    monkeypatch.setattr(simsimd, 'cdist', lambda *_, **__: np.zeros((1, 2), np.float32))
    assert not quantized.is_available()
  finally:
    monkeypatch.undo()
    quantized._multiplies.cache_clear()
  assert quantized.is_available()


@pytest.fixture
def asked_again(monkeypatch):
  """How many queries were scanned again, of each scan."""
  numbers = []
  unsure = candidates.Candidates.unsure

  def noted(self):
    found = unsure(self)
    numbers.append(len(found))
    return found

  monkeypatch.setattr(candidates.Candidates, 'unsure', noted)
  return numbers


@pytest.mark.parametrize('batches', SAMPLED, indirect=True)
@pytest.mark.parametrize('name', GALLERIES)
def test_a_guess_that_is_too_high_costs_time_and_no_answer(name, batches, monkeypatch, asked_again):
  monkeypatch.setattr(quantized, '_SURE', -20.0)
  rows = GALLERIES[name]
  queries = unit(np.random.default_rng(21), 4, 40)
  for part in batches(queries):
    assert_exact(scan_of(rows[:3500], rows[3500:]), rows, part, 80)
  if name == 'unit':
    assert sum(asked_again) == len(queries)


@pytest.mark.parametrize('batches', SAMPLED, indirect=True)
def test_a_sample_of_the_best_rows_only_misleads_nobody(batches, asked_again):
  rng = np.random.default_rng(22)
  rows, queries = unit(rng, 8000, 40), unit(rng, 3, 40)
  step = quantized._SHARES[1]
  # The sample sees 40 very good rows for the first query, and there are no others.
  rows[np.arange(0, 40 * step, step)] = queries[0]
  for part in batches(queries):
    assert_exact(scan_of(rows), rows, part, 60)
  assert sum(asked_again) >= 1


@pytest.mark.parametrize('batches', SAMPLED, indirect=True)
def test_a_sample_without_the_best_rows_misses_none(batches, asked_again):
  rng = np.random.default_rng(23)
  rows, queries = unit(rng, 8000, 40), unit(rng, 3, 40)
  rows[1 + np.arange(0, 200 * quantized._SHARES[1], quantized._SHARES[1])] = queries[0]
  for part in batches(queries):
    assert_exact(scan_of(rows), rows, part, 60)
  assert not any(asked_again)


@pytest.mark.parametrize('share', [0.5, 0.05, 0.002])
def test_the_sample_asks_the_filter_too(share, batches):
  rng = np.random.default_rng(24)
  rows, queries = unit(rng, 20000, 40), unit(rng, 4, 40)
  keep = rng.random(len(rows)) < share
  # What is not kept is better than all that is.
  rows[~keep & (rng.random(len(rows)) < 0.3)] = queries[0]
  for part in batches(queries):
    assert_exact(scan_of(rows[:7000], rows[7000:]), rows, part, 50, keep)


def test_few_rows_are_candidates(monkeypatch):
  """What is added and forgotten again costs more than the scan of some 100,000 rows."""
  rng = np.random.default_rng(25)
  rows, queries = unit(rng, 60000, 64), unit(rng, 8, 64)
  numbers = []
  add = candidates.Candidates.add

  def noted(self, asked, *others):
    numbers.append(len(asked))
    add(self, asked, *others)

  monkeypatch.setattr(candidates.Candidates, 'add', noted)
  assert_exact(scan_of(rows), rows, queries, 100)
  assert sum(numbers) < 8 * 100 * 8


@pytest.mark.parametrize('top_k', [1, 7, 749, 750, 751, 5999, 6000, 7000])
def test_any_number_of_answers_with_a_sample(top_k, batches):
  rows = GALLERIES['unit']
  queries = unit(np.random.default_rng(26), 3, 40)
  for part in batches(queries):
    assert_exact(scan_of(rows), rows, part, top_k)


def test_few_rows_are_asked_at_once(monkeypatch):
  rng = np.random.default_rng(29)
  rows, queries = unit(rng, 4000, 64), unit(rng, 2, 64)
  scan, numbers = scan_of(rows[:1500], rows[1500:]), []
  ask = quantized.QuantizedScan._ask_at_once

  def noted(self, query, *others):
    numbers.extend(query.numbers.tolist())
    ask(self, query, *others)

  monkeypatch.setattr(quantized.QuantizedScan, '_ask_at_once', noted)
  tenth, half = np.arange(4000) % 10 == 3, np.arange(4000) % 2 == 1
  # A row that has to be gathered counts for eight, and none for more than all.
  for keep, read in ((None, 4000), (half, 4000), (tenth, 3200)):
    for more, wanted in ((0, [0, 1]), (-1, [])):
      monkeypatch.setattr(quantized, '_AT_ONCE', 64 * read + more)
      assert_exact(scan, rows, queries, 9, keep)
      assert numbers == wanted
      del numbers[:]
  # Of rows that a filter leaves out, nothing is read.
  scan = scan_of(rows[:1500], rows[1500:])
  monkeypatch.setattr(quantized, '_AT_ONCE', AT_ONCE)
  assert_exact(scan, rows, queries[:1], 9, tenth)
  assert numbers.pop() == 0 and all(block._greatest is None for block in scan._blocks)
  # Many queries are multiplied together, however few rows there are.
  assert_exact(scan, rows, unit(rng, 20, 64), 9)
  assert not numbers


def test_a_search_at_once_ends_when_nobody_waits(monkeypatch):
  monkeypatch.setattr(quantized, '_AT_ONCE', AT_ONCE)

  class NobodyWaitsError(Exception):
    pass

  def check():
    raise NobodyWaitsError

  with pytest.raises(NobodyWaitsError):
    scan_of(GALLERIES['unit']).search(np.ones((1, 40), np.float32), top_k=5, check=check)


def test_zero_and_minus_zero_are_one_score():
  keys = candidates._keys(np.zeros(4, np.int64), np.array([0.0, -0.0, 1e-3, -1e-3], np.float32))
  assert keys[0] == keys[1] and keys[2] < keys[0] < keys[3]
  rng = np.random.default_rng(27)
  asked, values = rng.integers(0, 5, 1000), rng.standard_normal(1000).astype(np.float32)
  order = np.lexsort((-values, asked))
  np.testing.assert_array_equal(np.argsort(candidates._keys(asked, values), kind='stable'), order)


def test_a_search_leaves_the_number_of_openmps_threads_as_it_was():
  """SimSIMD sets it to one; FAISS, in the same process, would have one core from then on."""
  openmp = quantized._openmp()
  if openmp is None:
    pytest.skip("SimSIMD's OpenMP is not to be found on this system.")
  rng = np.random.default_rng(0)
  before = openmp.omp_get_max_threads()
  try:
    openmp.omp_set_num_threads(3)
    quantized._multiplies.cache_clear()
    assert quantized.is_available()
    scan_of(unit(rng, 3000, 40)).search(unit(rng, 1, 40), top_k=5)
    assert openmp.omp_get_max_threads() == 3
  finally:
    openmp.omp_set_num_threads(before)
