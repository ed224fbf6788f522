from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from tfreid.evaluation import significance


def test_interval_of_hits_is_that_of_the_binomial():
  """The mean of a resample of 0/1 values is Binomial(Q, p) / Q exactly."""
  values = np.repeat([1.0, 0.0], [120, 280])
  got = significance.confidence_interval(values, resamples=20000)
  binomial = scipy.stats.binom(400, 0.3)
  assert got.mean == pytest.approx(0.3)
  assert got.low == pytest.approx(binomial.ppf(0.025) / 400, abs=0.004)
  assert got.high == pytest.approx(binomial.ppf(0.975) / 400, abs=0.004)


def test_interval_agrees_with_scipy():
  values = np.random.default_rng(1).beta(0.5, 2.0, 150)
  got = significance.confidence_interval(values, confidence=0.9, resamples=20000, seed=3)
  want = scipy.stats.bootstrap(
    (values,),
    np.mean,
    confidence_level=0.9,
    n_resamples=20000,
    method='percentile',
    random_state=np.random.default_rng(5),
  ).confidence_interval
  spread = values.std() / np.sqrt(150)
  assert got.low == pytest.approx(want.low, abs=0.05 * spread)
  assert got.high == pytest.approx(want.high, abs=0.05 * spread)


def test_interval_covers_the_truth_as_often_as_it_says():
  """400 samples; at 90 % the count is Binomial(400, 0.9), standard deviation 6."""
  rng = np.random.default_rng(7)
  covered = 0
  for i in range(400):
    interval = significance.confidence_interval(
      rng.normal(0.4, 0.2, 60), confidence=0.9, resamples=400, seed=i
    )
    covered += interval.low <= 0.4 <= interval.high
  assert 335 <= covered <= 382


def test_the_same_seed_draws_the_same_and_chunks_do_not_matter(monkeypatch):
  values = np.random.default_rng(2).random(50)
  first = significance.confidence_interval(values, seed=4)
  assert significance.confidence_interval(values, seed=4) == first
  assert significance.confidence_interval(values, seed=5) != first
  monkeypatch.setattr(significance, '_CHUNK', 60)
  assert significance.confidence_interval(values, seed=4) == first


def test_queries_without_a_match_are_left_out():
  values = np.asarray([0.1, np.nan, 0.5, 0.9, np.nan])
  want = significance.confidence_interval(values[[0, 2, 3]])
  assert significance.confidence_interval(values) == want
  assert np.isnan(significance.confidence_interval(np.full(3, np.nan))).all()
  pair = significance.paired_bootstrap(values, values / 2)
  assert pair.queries == 3
  assert significance.paired_bootstrap(np.full(2, np.nan), np.full(2, np.nan)).queries == 0


def test_pairing_sees_a_small_difference_that_apart_is_lost_in_the_spread():
  rng = np.random.default_rng(9)
  hardness = rng.uniform(0, 1, 200)
  worse = hardness * 0.8
  better = worse + rng.normal(0.01, 0.02, 200)
  pair = significance.paired_bootstrap(better, worse)
  assert pair.difference.mean == pytest.approx(better.mean() - worse.mean())
  assert 0 < pair.difference.low < 0.01 < pair.difference.high
  assert pair.p_value < 0.01
  alone = [significance.confidence_interval(values) for values in (better, worse)]
  assert alone[0].low < alone[1].high


def test_p_value_agrees_with_the_paired_t_test():
  rng = np.random.default_rng(11)
  first = rng.normal(0.5, 0.2, 300)
  second = first - rng.normal(0.012, 0.1, 300)
  want = scipy.stats.ttest_rel(first, second).pvalue
  assert 0.005 < want < 0.5
  got = significance.paired_bootstrap(first, second, resamples=20000)
  assert got.p_value == pytest.approx(want, rel=0.25, abs=0.01)


def test_equal_systems_are_found_different_as_rarely_as_promised():
  """400 comparisons of equal systems at 5 %: Binomial(400, 0.05), mean 20, deviation 4.4."""
  rng = np.random.default_rng(13)
  found = 0
  for i in range(400):
    first, second = rng.normal(0.5, 0.2, (2, 80))
    found += significance.paired_bootstrap(first, second, resamples=400, seed=i).p_value < 0.05
  assert 7 <= found <= 40


def test_a_system_is_not_different_from_itself():
  values = np.random.default_rng(15).random(30)
  pair = significance.paired_bootstrap(values, values)
  assert pair.p_value == 1.0
  assert pair.difference == (0.0, 0.0, 0.0)


def test_exchanging_the_systems_changes_only_the_sign():
  first, second = np.random.default_rng(17).random((2, 40))
  one = significance.paired_bootstrap(first, second)
  other = significance.paired_bootstrap(second, first)
  assert one.p_value == other.p_value
  assert one.difference.mean == -other.difference.mean
  assert one.difference.low == pytest.approx(-other.difference.high)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: significance.paired_bootstrap(np.zeros(3), np.zeros(4)), '3 queries and the other 4'),
    (
      lambda: significance.paired_bootstrap(np.asarray([0, np.nan]), np.asarray([np.nan, 0])),
      'skipped different queries',
    ),
    (lambda: significance.confidence_interval(np.zeros((2, 2))), 'one value per query'),
    (lambda: significance.confidence_interval(np.zeros(2), confidence=95), 'between 0 and 1'),
    (lambda: significance.confidence_interval(np.zeros(2), resamples=0), 'at least 1'),
  ],
)
def test_what_cannot_be_compared_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
