"""The order of summation, bit by bit against TensorFlow's."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfreid.index import engine
from tfreid.serving import summation


@pytest.mark.skipif(not summation.is_known(), reason='another build of TensorFlow is asked itself')
def test_sums_are_those_of_tensorflow_bit_by_bit():
  rng = np.random.default_rng(0)
  for width in [*range(1, 70), 127, 128, 131, 256, 300, 512, 1000, 2048, 8192]:
    for count in (1, 3, 50):
      rows = rng.standard_normal((count, width)) * np.exp(3 * rng.standard_normal((count, width)))
      products = (rows * rng.standard_normal(width)).astype(np.float32)
      expected = tf.reduce_sum(tf.constant(products), axis=-1).numpy()
      np.testing.assert_array_equal(summation.row_sums(products), expected, f'{count} x {width}')
  # Another order gives other bits: the comparison above can fail.
  assert np.any(products.sum(axis=1) != expected)
  extremes = np.array([[1e38, 1e38, -1e38, -1e38, 1e-45, 0, -0.0, 3, 1e38]], np.float32)
  np.testing.assert_array_equal(
    summation.row_sums(extremes), tf.reduce_sum(tf.constant(extremes), axis=-1).numpy()
  )


@pytest.mark.skipif(not summation.is_known(), reason='another build of TensorFlow is asked itself')
@pytest.mark.parametrize('width', [1, 2, 7, 8, 9, 32, 33, 40])
def test_zeros_have_the_signs_that_tensorflow_gives_them(width):
  rows = np.array([[-0.0] * width, [0.0] * width, [-0.0] * (width - 1) + [0.0]], np.float32)
  expected = tf.reduce_sum(tf.constant(rows), axis=-1).numpy()
  np.testing.assert_array_equal(summation.row_sums(rows).view(np.int32), expected.view(np.int32))


def test_longer_rows_are_refused():
  with pytest.raises(ValueError, match='known to 8192'):
    summation.row_sums(np.zeros((1, 8193), np.float32))


_ROWS = np.random.default_rng(1).standard_normal((300, 128)).astype(np.float32)
_SPARSE = np.where(_ROWS > 0, _ROWS, 0).astype(np.float32)
_NUMBERS = {
  'usual': (_ROWS, _ROWS[0], False),
  'many zeros': (_SPARSE, -_SPARSE[1], False),
  'a query for each row': (_ROWS, _ROWS[::-1], False),
  'small products': (_ROWS * np.float32(1e-20), _ROWS[0] * np.float32(1e-20), True),
  'rows below the normal numbers': (_ROWS * np.float32(1e-39), _ROWS[0], True),
  'such rows, and a long query': (_ROWS * np.float32(1e-39), _ROWS[0] * np.float32(1e18), True),
  'such a query, and long rows': (_ROWS * np.float32(1e18), _ROWS[0] * np.float32(1e-39), True),
  'too many': (np.tile(_ROWS, (4, 1)), _ROWS[0], True),
}


@pytest.mark.skipif(not summation.is_known(), reason='another build of TensorFlow is asked itself')
@pytest.mark.parametrize('numbers', _NUMBERS)
def test_numpy_adds_few_rows_where_it_gives_the_same_bits(numbers, monkeypatch):
  rows, query, asks = _NUMBERS[numbers]
  own, calls = engine._sums_of_tensorflow, []
  monkeypatch.setattr(engine, '_sums_of_tensorflow', lambda *g: calls.append(1) or own(*g))
  found = engine.last_scores(rows, query)
  assert bool(calls) == asks
  np.testing.assert_array_equal(found.view(np.int32), own(rows, query).view(np.int32))


@pytest.mark.skipif(not summation.is_known(), reason='another build of TensorFlow is asked itself')
def test_last_scores_need_no_tensorflow():
  code = (
    'import sys, numpy as np; from tfreid.index import engine; '
    'print(engine.last_scores(np.eye(3, dtype=np.float32), np.float32([1, 2, 3]))); '
    "assert 'tensorflow' not in sys.modules"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout == '[1. 2. 3.]\n'
