"""Products of whole numbers: those of int32 arithmetic, by either way of calling NumKong."""

from __future__ import annotations

import concurrent.futures
import types

import numpy as np
import pytest

from tfreid.serving import packed

pytestmark = pytest.mark.skipif(
  not packed.is_available(), reason='NumKong is not there: it has no wheels for Python 3.9.'
)


@pytest.fixture(params=['C', 'Python'])
def way(request, monkeypatch):
  """The way in which NumKong is called."""
  if request.param == 'Python':
    monkeypatch.setattr(packed, '_functions', lambda: None)
  return request.param


@pytest.mark.parametrize('queries', [1, 2, 3, 16, 17, 64, 65])
@pytest.mark.parametrize('width', [1, 31, 40, 64, 65, 128, 2048])
def test_products_are_exact(queries, width, way):
  rng = np.random.default_rng(queries)
  codes = rng.integers(-127, 128, (queries, width)).astype(np.int8)
  found = packed.PackedQueries(codes)
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
  packed.PackedQueries(queries).multiply(rows, out)
  np.testing.assert_array_equal(out, rows.astype(np.int32) @ queries.T.astype(np.int32))


def test_what_would_be_written_elsewhere_is_refused(way):
  found = packed.PackedQueries(np.ones((3, 40), np.int8))
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
  found = packed.PackedQueries(codes)

  def multiplied(piece):
    out = np.empty((len(piece), 64), np.int32)
    found.multiply(piece, out)
    return out

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for piece, out in zip(rows, pool.map(multiplied, rows)):
      np.testing.assert_array_equal(out, piece.astype(np.int32) @ codes.T.astype(np.int32))


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


def test_a_library_without_the_names_is_called_through_python(monkeypatch):
  monkeypatch.setattr(packed.ctypes, 'CDLL', lambda _: types.SimpleNamespace())
  packed._functions.cache_clear()
  try:
    assert packed._functions() is None
  finally:
    packed._functions.cache_clear()
