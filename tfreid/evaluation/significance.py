"""How sure a number is, over queries and over seeds. Numpy and scipy.stats only.

The test queries are a sample of the descriptions that someone could ask for, and the seeds of the
trainings that someone could run. One run is judged over its queries, by a bootstrap
(`confidence_interval`). Systems with several seeds are compared by a two-way model with random
effects of seeds and of queries (`two_way_comparison`): with three or five seeds a bootstrap that
draws seeds anew finds differences where there are none, because its percentiles know nothing of
how badly three numbers tell a variance; a t-interval with the degrees of freedom of the estimate
does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

_CHUNK = 2**22  # indices drawn at a time, which bounds the memory


class Interval(NamedTuple):
  """A mean and its confidence interval."""

  mean: float
  low: float
  high: float


class Comparison(NamedTuple):
  """The difference of two systems on the same queries.

  Attributes:
    first, second: mean of each system.
    difference: first - second, with its interval.
    p_value: two-sided, of the hypothesis that there is no difference.
    standard_error: of the difference.
    degrees_of_freedom: of the standard error (Satterthwaite), infinity where it is exactly 0.
    queries: number of queries compared.
  """

  first: float
  second: float
  difference: Interval
  p_value: float
  standard_error: float
  degrees_of_freedom: float
  queries: int


class MeanSquare(NamedTuple):
  """An estimated variance, or a part of one.

  Attributes:
    value: of the variance.
    degrees: of freedom of the estimate.
  """

  value: float
  degrees: float


def confidence_interval(
  values: np.ndarray, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
  """The mean of per-query values of one run, with its bootstrap percentile interval (Efron 1979).

  Says how much the mean would change with other queries. How much it would change with another
  training seed cannot be seen from one run.

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
  _check_confidence(confidence)
  if resamples < 1:
    raise ValueError(f'resamples must be at least 1, not {resamples}.')
  if not len(values):
    return Interval(*(float('nan'),) * 3)
  means = _resampled_means(values, resamples, seed)
  low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
  return Interval(float(values.mean()), float(low), float(high))


def two_way_comparison(
  first: np.ndarray,
  second: np.ndarray,
  *,
  paired_seeds: bool = True,
  pooled: MeanSquare | None = None,
  confidence: float = 0.95,
) -> Comparison:
  """Whether one system is better than another, for other queries and for other seeds.

  The value of query q in seed s is taken as mean + effect of s + effect of q + remainder, all
  effects random and independent. With paired seeds this is the model of the differences d[s, q],
  whose mean has the variance (MS_S + MS_Q - MS_SQ) / (S Q), where MS_S, MS_Q and MS_SQ are the mean
  squares of seeds, of queries and of the remainder in the two-way analysis of variance
  (Searle, Casella and McCulloch 1992, section 4.7; for queries and topics Carterette 2012). The
  interval and the p-value are Student's with the degrees of freedom of Satterthwaite (1946).
  A component that is estimated below zero is set to zero, so the variance is never smaller than
  that of the seeds, of the queries or of the remainder alone.

  With one seed the variance is that of the queries, and nothing is said about other seeds.

  `docs/statistics.md` has its rates of error and its power, from simulations.

  Args:
    first: [S, Q], per-query values of one system, a row per seed.
    second: [T, Q], those of the other, in the same order of queries.
    paired_seeds: row i of both has the same seed, so S = T; otherwise the seeds of each are drawn
      apart, and a system with one seed is taken to spread over seeds as the other does.
    pooled: variance of the difference of two systems in one seed, from all systems of a table
      (`pooled_variance_of_seeds`). Where the two systems' own estimate is smaller, it is taken
      instead: of three seeds, a variance comes out far too small so often that among dozens of
      comparisons some look certain that are chance.
    confidence: in (0, 1).

  Returns:
    NaN throughout if there is no query. With a single query, or where no two values differ, there
    is nothing to estimate a variance from: the interval is the difference itself, and the p-value
    is 1 if that is 0 and 0 otherwise.

  Raises:
    ValueError: the tables differ in queries, in where they are NaN or, if paired, in seeds; or an
      argument is out of range.
  """
  first, second = _tables(first, second, paired_seeds)
  _check_confidence(confidence)
  queries = first.shape[1]
  if not queries:
    nan = float('nan')
    return Comparison(nan, nan, Interval(nan, nan, nan), nan, nan, nan, 0)
  ours, theirs = float(first.mean()), float(second.mean())
  difference = ours - theirs
  if paired_seeds:
    tables = [first - second]
  else:
    tables = [first, second]
  variance = _variance_of_mean_difference(tables, first.mean(0) - second.mean(0), pooled)
  error = math.sqrt(variance.value)
  # Means of thirds and the like leave rounding where there is no difference at all.
  if abs(difference) < 1e-12:
    difference = 0.0
  if error < 1e-12:
    interval = Interval(difference, difference, difference)
    p_value = 1.0 if difference == 0 else 0.0
    return Comparison(ours, theirs, interval, p_value, 0.0, math.inf, queries)
  distribution = scipy.stats.t(variance.degrees)
  reach = float(distribution.ppf((1 + confidence) / 2)) * error
  return Comparison(
    first=ours,
    second=theirs,
    difference=Interval(difference, difference - reach, difference + reach),
    p_value=float(2 * distribution.sf(abs(difference) / error)),
    standard_error=error,
    degrees_of_freedom=variance.degrees,
    queries=queries,
  )


def pooled_variance_of_seeds(tables: Sequence[np.ndarray]) -> MeanSquare | None:
  """Variance of the difference of two systems in one seed, pooled over all systems of a table.

  What a seed does to all systems alike takes no part: it leaves their differences as they are.

  Args:
    tables: of each system [S, Q], a row per seed, the same seeds and queries in all.

  Returns:
    Twice the mean square of systems and seeds, with (systems - 1) (S - 1) degrees of freedom; None
    for fewer than three systems or two seeds, where there is nothing to pool.
  """
  if len(tables) < 3 or len(tables[0]) < 2:
    return None
  means = np.stack([np.nanmean(_table(table), axis=1) for table in tables])  # [systems, S]
  centred = means - means.mean(1, keepdims=True) - means.mean(0) + means.mean()
  degrees = (means.shape[0] - 1) * (means.shape[1] - 1)
  return MeanSquare(2 * float((centred**2).sum()) / degrees, degrees)


def detectable_difference(
  standard_error: float, degrees_of_freedom: float, *, level: float = 0.05, power: float = 0.8
) -> float:
  """The true difference that a comparison of this design finds with a given probability.

  Args:
    standard_error: of the difference, as `two_way_comparison` estimates it.
    degrees_of_freedom: of that estimate.
    level: of the two-sided test, after whatever correction, in (0, 1).
    power: the probability, in (0, 1).

  Returns:
    (t(1 - level / 2) + t(power)) standard errors: the usual approximation.
  """
  if standard_error == 0:
    return 0.0
  distribution = scipy.stats.t(degrees_of_freedom)
  return float(distribution.ppf(1 - level / 2) + distribution.ppf(power)) * standard_error


def holm(p_values: Sequence[float]) -> list[float]:
  """p-values corrected for their number by the step-down method of Holm (1979), in their order."""
  order = np.argsort(p_values, kind='stable')
  adjusted = [1.0] * len(p_values)
  largest = 0.0
  for position, index in enumerate(order):
    largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
    adjusted[index] = largest
  return adjusted


def _variance_of_mean_difference(
  tables: Sequence[np.ndarray], of_queries: np.ndarray, pooled: MeanSquare | None
) -> MeanSquare:
  """Variance of the difference of means, and its degrees of freedom.

  Args:
    tables: each [S, Q] whose seeds are drawn apart: the differences, or the two systems.
    of_queries: [Q], the difference of each query's means over seeds.
    pooled: as `two_way_comparison` takes it.
  """
  count = len(of_queries)
  # A system with one seed says nothing of its spread over seeds; it is taken to be the other's.
  known = [table for table in tables if len(table) > 1]
  share = sum(1 / len(table) for table in tables) if len(known) == 1 else 0.0
  # Each is the variance of a mean: of the seeds', of the queries', and of the remainder, which both
  # of them contain and which therefore is subtracted once.
  seeds, remainders = [], []
  for table in known:
    rows, scale = len(table), share or 1 / len(table)
    seeds.append(MeanSquare(float(table.mean(1).var(ddof=1)) * scale, rows - 1))
    if count > 1:
      centred = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
      degrees = (rows - 1) * (count - 1)
      value = float((centred**2).sum()) / degrees * scale / count
      remainders.append(MeanSquare(value, degrees))
  if pooled is not None:
    # Half of it is one system's; of each, the mean over its seeds is what varies.
    scale = sum(1 / len(table) for table in tables) / len(tables)
    if pooled.value * scale > sum(part.value for part in seeds):
      seeds = [MeanSquare(pooled.value * scale, pooled.degrees)]
  parts_of_queries = []
  if count > 1:
    parts_of_queries.append(MeanSquare(float(of_queries.var(ddof=1)) / count, count - 1))
  if not seeds or not parts_of_queries:
    return _sum(seeds + parts_of_queries, [])
  candidates = (
    _sum(seeds + parts_of_queries, remainders),
    _sum(seeds, []),
    _sum(parts_of_queries, []),
    _sum(remainders, []),
  )
  return max(candidates, key=lambda part: part.value)


def _sum(added: Sequence[MeanSquare], subtracted: Sequence[MeanSquare]) -> MeanSquare:
  """Sum of independent mean squares, with the degrees of freedom of Satterthwaite (1946)."""
  value = sum(part.value for part in added) - sum(part.value for part in subtracted)
  weights = sum(part.value**2 / part.degrees for part in (*added, *subtracted))
  if value <= 0 or weights == 0:
    return MeanSquare(max(value, 0.0), 1.0)
  return MeanSquare(value, value**2 / weights)


def _tables(
  first: np.ndarray, second: np.ndarray, paired_seeds: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Both as float64 [seeds, queries with a match]."""
  first, second = _table(first), _table(second)
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
  return first[:, ~missing], second[:, ~missing]


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


def _check_confidence(confidence: float) -> None:
  if not 0.0 < confidence < 1.0:
    raise ValueError(f'confidence must be between 0 and 1, not {confidence}.')


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
