"""How sure a number is: bootstrap over queries. Numpy only.

The test queries are a sample of the descriptions someone could ask for, so the spread of a mean
over queries is found by drawing the queries anew, with replacement, many times (Efron 1979). Two
systems are compared on the same draws ("paired"): most of the spread is that some descriptions are
harder than others, which is the same for both. How much training with another seed would change is
not seen from one run and not covered.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_CHUNK = 2**22  # indices drawn at a time, which bounds the memory


class Interval(NamedTuple):
  """A mean and its bootstrap percentile interval."""

  mean: float
  low: float
  high: float


class Comparison(NamedTuple):
  """The difference of two systems on the same queries.

  Attributes:
    first, second: mean of each system.
    difference: first - second, with its interval.
    p_value: two-sided; how often resampling the queries puts the difference on the other side of
      zero, times two.
    queries: number of queries compared.
  """

  first: float
  second: float
  difference: Interval
  p_value: float
  queries: int


def confidence_interval(
  values: np.ndarray, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
  """The mean of per-query values with its bootstrap interval.

  Args:
    values: [Q], for example `QueryMetrics.average_precision`; NaN (a query without a match) is
      left out.
    confidence: in (0, 1).
    resamples: number of draws, at least 1.
    seed: of the draws.

  Returns:
    NaN throughout if there is no value.

  Raises:
    ValueError: `values` is no vector, or an argument is out of range.
  """
  values = _vector(values)
  values = values[~np.isnan(values)]
  _check(confidence, resamples)
  if not len(values):
    return Interval(*(float('nan'),) * 3)
  means = _resampled_means(values, resamples, seed)
  return Interval(float(values.mean()), *_percentiles(means, confidence))


def paired_bootstrap(
  first: np.ndarray,
  second: np.ndarray,
  *,
  confidence: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> Comparison:
  """Whether one system is better than another on the same queries.

  Args:
    first: [Q], per-query values of one system: average precision, or `QueryMetrics.hits(1)`.
    second: [Q], those of the other, in the same order of queries.
    confidence: in (0, 1).
    resamples: number of draws, at least 1.
    seed: of the draws.

  Raises:
    ValueError: the vectors differ in length or in where they are NaN, so that they cannot be of
      the same queries and gallery; or an argument is out of range.
  """
  first, second = _vector(first), _vector(second)
  _check(confidence, resamples)
  if len(first) != len(second):
    raise ValueError(
      f'One system has {len(first)} queries and the other {len(second)}. Compare evaluations on '
      'the same split.'
    )
  if not np.array_equal(np.isnan(first), np.isnan(second)):
    raise ValueError(
      'The systems skipped different queries, so their galleries differ. Compare evaluations '
      'on the same split.'
    )
  kept = ~np.isnan(first)
  first, second = first[kept], second[kept]
  if not len(first):
    nan = float('nan')
    return Comparison(nan, nan, Interval(nan, nan, nan), nan, 0)
  differences = first - second
  means = _resampled_means(differences, resamples, seed)
  # The observed sample counts as one of the draws, so no finite number of draws says p = 0.
  below = (np.count_nonzero(means <= 0) + 1) / (resamples + 1)
  above = (np.count_nonzero(means >= 0) + 1) / (resamples + 1)
  return Comparison(
    first=float(first.mean()),
    second=float(second.mean()),
    difference=Interval(float(differences.mean()), *_percentiles(means, confidence)),
    p_value=min(1.0, 2.0 * min(below, above)),
    queries=len(first),
  )


def _vector(values: np.ndarray) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 1:
    raise ValueError(f'Expected one value per query, got the shape {list(values.shape)}.')
  return values


def _check(confidence: float, resamples: int):
  if not 0.0 < confidence < 1.0:
    raise ValueError(f'confidence must be between 0 and 1, not {confidence}.')
  if resamples < 1:
    raise ValueError(f'resamples must be at least 1, not {resamples}.')


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
  """Means of `resamples` samples of the size of `values`, drawn from it with replacement."""
  rng = np.random.default_rng(seed)
  rows = max(1, _CHUNK // len(values))
  means = np.empty(resamples)
  for start in range(0, resamples, rows):
    stop = min(start + rows, resamples)
    draws = rng.integers(0, len(values), (stop - start, len(values)))
    means[start:stop] = values[draws].mean(axis=1)
  return means


def _percentiles(means: np.ndarray, confidence: float) -> tuple[float, float]:
  low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
  return float(low), float(high)
