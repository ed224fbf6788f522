"""Products of whole numbers: those of int32 arithmetic, by whatever multiplies."""

from __future__ import annotations

import concurrent.futures
import types

import numpy as np
import pytest

from tfreid.serving import packed

needs_numkong = pytest.mark.skipif(
  not packed._numkong_multiplies(), reason='NumKong is not there: it has no wheels for Python 3.9.'
)


@pytest.fixture(
  params=[
    pytest.param('NumKong from C', marks=needs_numkong),
    pytest.param('NumKong from Python', marks=needs_numkong),
    'ONNX Runtime',
  ]
)
def way(request, monkeypatch):
  """What multiplies."""
  if request.param == 'ONNX Runtime':
    if packed._session() is None:
      pytest.skip('ONNX Runtime is not exact on this processor, which has no VNNI.')
    monkeypatch.setattr(packed, '_WIDE', 1)
  else:
    monkeypatch.setattr(packed, '_session', lambda: None)
  if request.param == 'NumKong from Python':
    monkeypatch.setattr(packed, '_functions', lambda: None)
  return request.param


@pytest.mark.parametrize('queries', [1, 2, 3, 16, 17, 64, 65])
@pytest.mark.parametrize('width', [1, 31, 40, 64, 65, 128, 2048])
def test_products_are_exact(queries, width, way):
  rng = np.random.default_rng(queries)
  codes = rng.integers(-127, 128, (queries, width)).astype(np.int8)
  found = packed.packed(codes)
  for count in (0, 1, 5, 100):
    rows = rng.integers(-127, 128, (count, width)).astype(np.int8)
    out = np.full((count, queries), 7, np.int32)
    found.multiply(rows, out)
    np.testing.assert_array_equal(out, rows.astype(np.int32) @ codes.T.astype(np.int32))


def test_rows_and_queries_need_not_be_contiguous(way):
  rng = np.random.default_rng(0)
  codes = rng.integers(-127, 128, (10, 64)).astype(np.int8)
  queries, rows = codes[::2, ::2], codes[1::2, 1::2]
  out = np.empty((5, 5), np.int32)
  packed.packed(queries).multiply(rows, out)
  np.testing.assert_array_equal(out, rows.astype(np.int32) @ queries.T.astype(np.int32))


def test_what_would_be_written_elsewhere_is_refused(way):
  found = packed.packed(np.ones((3, 40), np.int8))
  rows, out = np.ones((5, 40), np.int8), np.zeros((5, 3), np.int32)
  read_only = out.copy()
  read_only.flags.writeable = False
  for some, where in [
    (rows[:, :39], out),
    (rows.astype(np.int32), out),
    (rows[:4], out),
    (rows, np.zeros((5, 2), np.int32)),
    (rows, np.zeros((5, 3), np.float32)),
    (rows, np.zeros((5, 6), np.int32)[:, ::2]),
    (rows, read_only),
  ]:
    with pytest.raises(ValueError, match='expected'):
      found.multiply(some, where)
  assert not out.any()


def test_several_threads_multiply_at_the_same_time(way):
  rng = np.random.default_rng(1)
  codes = rng.integers(-127, 128, (64, 128)).astype(np.int8)
  rows = rng.integers(-127, 128, (40, 500, 128)).astype(np.int8)
  found = packed.packed(codes)

  def multiplied(piece):
    out = np.empty((len(piece), 64), np.int32)
    found.multiply(piece, out)
    return out

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for piece, out in zip(rows, pool.map(multiplied, rows)):
      np.testing.assert_array_equal(out, piece.astype(np.int32) @ codes.T.astype(np.int32))


def test_a_place_for_what_is_done_in_between_may_be_given(way):
  rng = np.random.default_rng(2)
  codes = rng.integers(-127, 128, (20, 128)).astype(np.int8)
  found, scratch = packed.packed(codes), np.empty((500, 128), np.uint8)
  for _ in range(2):
    rows = rng.integers(-127, 128, (500, 128)).astype(np.int8)
    out = np.empty((500, 20), np.int32)
    found.multiply(rows, out, scratch)
    np.testing.assert_array_equal(out, rows.astype(np.int32) @ codes.T.astype(np.int32))


def test_what_cuts_off_sums_of_16_bits_is_found_out():
  class Saturating(packed.PackedQueries):
    def __init__(self, codes):
      super().__init__(codes)
      self._codes = codes

    def _multiply(self, rows, out, scratch):
      pairs = (rows.astype(np.int32) + 128)[:, np.newaxis] * self._codes
      pairs = np.pad(pairs, [(0, 0), (0, 0), (0, pairs.shape[2] % 2)])
      sums = np.clip(pairs[..., ::2] + pairs[..., 1::2], -(2**15), 2**15 - 1)
      out[:] = sums.sum(axis=-1) - 128 * self._codes.sum(axis=1, dtype=np.int32)

  class Exact(Saturating):
    def _multiply(self, rows, out, scratch):
      out[:] = rows.astype(np.int32) @ self._codes.T.astype(np.int32)

  assert packed._is_exact(Exact)
  assert not packed._is_exact(Saturating)


def test_the_model_is_one_product():
  onnx = pytest.importorskip('onnx')
  model = onnx.load_from_string(packed._MODEL)
  onnx.checker.check_model(model)
  (node,) = model.graph.node
  assert (node.op_type, list(node.input), list(node.output)) == (
    'MatMulInteger',
    ['a', 'b', 'z'],
    ['y'],
  )
  (zero,) = model.graph.initializer
  assert onnx.numpy_helper.to_array(zero) == 128


@pytest.mark.parametrize('fault', [ImportError, ValueError])
def test_without_onnx_runtime_numkong_multiplies(monkeypatch, caplog, fault):
  def broken(*_, **__):
    raise fault('broken')

  import onnxruntime

  packed._session.cache_clear()
  try:
    monkeypatch.setattr(onnxruntime, 'InferenceSession', broken)
    assert packed._session() is None
    assert packed.is_available() == packed._numkong_multiplies()
    # What is missing is no news; what fails is.
    assert ('not used' in caplog.text) == (fault is ValueError)
  finally:
    packed._session.cache_clear()


@needs_numkong
def test_another_release_is_called_through_python(monkeypatch):
  import numkong

  packed._functions.cache_clear()
  try:
    if str(numkong.__version__).startswith('7.8.'):
      assert packed._functions() is not None
    packed._functions.cache_clear()
    monkeypatch.setattr(numkong, '__version__', '9.0.0')
    assert packed._functions() is None
  finally:
    packed._functions.cache_clear()


@needs_numkong
def test_a_library_without_the_names_is_called_through_python(monkeypatch):
  monkeypatch.setattr(packed.ctypes, 'CDLL', lambda _: types.SimpleNamespace())
  packed._functions.cache_clear()
  try:
    assert packed._functions() is None
  finally:
    packed._functions.cache_clear()
