"""The order of summation, bit by bit against TensorFlow's."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

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


def test_longer_rows_are_refused():
  with pytest.raises(ValueError, match='known to 8192'):
    summation.row_sums(np.zeros((1, 8193), np.float32))


@pytest.mark.skipif(not summation.is_known(), reason='another build of TensorFlow is asked itself')
def test_last_scores_need_no_tensorflow():
  code = (
    'import sys, numpy as np; from tfreid.index import engine; '
    'print(engine.last_scores(np.eye(3, dtype=np.float32), np.float32([1, 2, 3]))); '
    "assert 'tensorflow' not in sys.modules"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout == '[1. 2. 3.]\n'
