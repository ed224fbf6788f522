"""How sure a number is: bootstrap over queries. Numpy only.

The test queries are a sample of the descriptions someone could ask for, so the spread of a mean
over queries is found by drawing the queries anew, with replacement, many times (Efron 1979). Two
systems are compared on the same draws ("paired"): most of the spread is that some descriptions are
harder than others, which is the same for both. How much training with another seed would change is
not seen from one run; from several it is, and `two_level_bootstrap` draws seeds and queries anew.
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
  return Comparison(
    first=float(first.mean()),
    second=float(second.mean()),
    difference=Interval(float(differences.mean()), *_percentiles(means, confidence)),
    p_value=_p_value(means),
    queries=len(first),
  )


def two_level_bootstrap(
  first: np.ndarray,
  second: np.ndarray,
  *,
  paired_seeds: bool = True,
  confidence: float = 0.95,
  resamples: int = 2000,
  seed: int = 0,
) -> Comparison:
  """Whether one system is better than another, for other queries and for other seeds.

  Each draw takes as many queries and as many seeds as there are, both with replacement, the same
  for both systems, and adds up how far the drawn queries (averaged over all seeds) and the drawn
  seeds (averaged over all queries) are from the mean of all. Its spread is therefore that of
  queries plus that of seeds, the variance of two-way clusters (Cameron, Gelbach and Miller 2011)
  without the term that is subtracted there: what one query does in one seed counts twice, which
  errs on the side of no difference. To average the drawn seeds x the drawn queries instead (the
  pigeonhole bootstrap, Owen 2007) would count it three times, too much where a query's value is a
  hit or none. The deviations of S seeds are scaled by sqrt(S / (S - 1)): drawn as they are, they
  would spread too little by that factor, a fifth for three seeds.

  Chosen over a bootstrap over queries with the rule that all seeds must agree in sign, because
  interval and p-value then say the same thing, and because it weighs how far seeds differ. With few
  seeds it all but contains that rule: of three, one whose difference has the other sign is drawn
  three times in 1 of 27 draws, which keeps a two-sided p-value above 5 % (of two, in 1 of 4). With
  one seed only queries are drawn, and nothing is said about other seeds.

  Args:
    first: [S, Q], per-query values of one system, a row per seed.
    second: [T, Q], those of the other, in the same order of queries.
    paired_seeds: row i of both has the same seed, so S = T and the same rows are drawn; otherwise
      the seeds of each are drawn apart.
    confidence: in (0, 1).
    resamples: number of draws, at least 1.
    seed: of the draws.

  Raises:
    ValueError: the tables differ in queries, in where they are NaN or, if paired, in seeds; or an
      argument is out of range.
  """
  first, second = _table(first), _table(second)
  _check(confidence, resamples)
  if paired_seeds and len(first) != len(second):
    raise ValueError(
      f'One system has {len(first)} seeds and the other {len(second)}. Give the seeds that both '
      'have, or paired_seeds=False.'
    )
  if first.shape[1] != second.shape[1]:
    raise ValueError(
      f'One system has {first.shape[1]} queries and the other {second.shape[1]}. Compare '
      'evaluations on the same split.'
    )
  missing = np.isnan(first[0])
  if any((np.isnan(row) != missing).any() for row in (*first, *second)):
    raise ValueError(
      'The systems skipped different queries, so their galleries differ. Compare evaluations '
      'on the same split.'
    )
  first, second = first[:, ~missing], second[:, ~missing]
  queries = first.shape[1]
  if not queries:
    nan = float('nan')
    return Comparison(nan, nan, Interval(nan, nan, nan), nan, 0)
  ours, theirs = float(first.mean()), float(second.mean())
  # [Q] and, per independent set of seeds, [S].
  of_queries = first.mean(axis=0) - second.mean(axis=0)
  of_seeds = (
    [(first - second).mean(axis=1)] if paired_seeds else [first.mean(axis=1), -second.mean(axis=1)]
  )
  means = _resampled_means(of_queries, resamples, seed)
  rng = np.random.default_rng([seed, 1])
  for values in of_seeds:
    count = len(values)
    if count > 1:
      deviations = (values - values.mean()) * np.sqrt(count / (count - 1))
      means = means + deviations[rng.integers(0, count, (resamples, count))].mean(axis=1)
  # Means of thirds and the like leave rounding where a draw's difference is nothing at all.
  means[np.abs(means) < 1e-12] = 0.0
  return Comparison(
    first=ours,
    second=theirs,
    difference=Interval(ours - theirs, *_percentiles(means, confidence)),
    p_value=_p_value(means),
    queries=queries,
  )


def _p_value(means: np.ndarray) -> float:
  """Two-sided: how often the draws are on the other side of zero, times two."""
  # The observed sample counts as one of the draws, so no finite number of draws says p = 0.
  below = (np.count_nonzero(means <= 0) + 1) / (len(means) + 1)
  above = (np.count_nonzero(means >= 0) + 1) / (len(means) + 1)
  return min(1.0, 2.0 * min(below, above))


def _table(values: np.ndarray) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != 2 or not len(values):
    raise ValueError(
      f'Expected a row per seed and a column per query, got the shape {list(values.shape)}.'
    )
  return values


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
