"""Sums of rows in the order in which TensorFlow sums them, without TensorFlow. Floor 0.

A sum of float32 numbers depends on the order of its additions. The last score of a crop is
`tf.reduce_sum(row * query)`, and an index answers what an exported model answers, bit by bit, ties
included. Importing TensorFlow for that takes seconds. So its order is kept here, for the builds
whose order is known: those of TensorFlow 2.15 for x86-64, as released. A test compares them bit by
bit; for other builds TensorFlow is asked.

The order is Eigen's for a reduction of the innermost dimension (InnerMostDimReducer): vectors of 8
numbers are added in turn to four accumulators, which are added up; then come the vectors that were
too few for another turn; the 8 sums are halved, and added crosswise; what is left over at the end
of a row is added one by one, and that sum last.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform

import numpy as np

_LANES = 8
_ACCUMULATORS = 4
# Longer rows are divided first.
MAX_WIDTH = _LANES * 1024
_MACHINES = ('x86_64', 'AMD64')
_RELEASE = '2.15.'


@functools.cache
def is_known() -> bool:
  """Whether the order of the TensorFlow that is installed here is the one that is kept here."""
  if platform.machine() not in _MACHINES:
    return False
  for name in ('tensorflow', 'tensorflow-cpu', 'tensorflow-intel'):
    try:
      return importlib.metadata.version(name).startswith(_RELEASE)
    except importlib.metadata.PackageNotFoundError:
      continue
  return False


def row_sums(values: np.ndarray) -> np.ndarray:
  """The sums, float32 [M], of the rows of float32 [M, n], n <= `MAX_WIDTH`.

  Raises:
    ValueError: the rows are longer.
  """
  count, width = values.shape
  if width > MAX_WIDTH:
    raise ValueError(f'Rows of {width} numbers; their order of summation is known to {MAX_WIDTH}.')
  if width == 1:
    return values[:, 0].copy()  # nothing is added, not even to 0: a -0 stays one
  turn = _ACCUMULATORS * _LANES
  turns, vectors = width // turn * turn, width // _LANES * _LANES
  sums = np.zeros((count, turn), np.float32)
  for start in range(0, turns, turn):
    sums += values[:, start : start + turn]
  lanes = sums[:, :_LANES]
  for start in range(_LANES, turn, _LANES):
    lanes = lanes + sums[:, start : start + _LANES]
  for start in range(turns, vectors, _LANES):
    lanes = lanes + values[:, start : start + _LANES]
  lanes = lanes[:, :4] + lanes[:, 4:]
  total = (lanes[:, 0] + lanes[:, 2]) + (lanes[:, 1] + lanes[:, 3])
  rest = np.zeros(count, np.float32)
  for column in range(vectors, width):
    rest += values[:, column]
  return total + rest
