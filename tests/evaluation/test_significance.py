from __future__ import annotations

import itertools

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


def every_mean(values):
  """The mean of every possible draw of as many values, all equally likely."""
  return np.asarray([np.mean(draw) for draw in itertools.product(values, repeat=len(values))])


def test_two_level_bootstrap_agrees_with_the_enumeration_of_all_draws():
  """4^4 draws of queries, 3^3 of seeds; a seed's deviation counts sqrt(3 / 2) times."""
  rng = np.random.default_rng(3)
  first, second = rng.normal(0.5, 1.0, (3, 4)), rng.normal(0.0, 1.0, (3, 4))
  table = first - second
  queries, seeds = every_mean(table.mean(axis=0)), every_mean(table.mean(axis=1))
  means = np.add.outer(queries, np.sqrt(1.5) * (seeds - table.mean())).ravel()
  got = significance.two_level_bootstrap(first, second, resamples=40000)
  assert got.difference.mean == pytest.approx(table.mean())
  assert (got.first, got.second) == pytest.approx((first.mean(), second.mean()))
  assert got.queries == 4
  one_sided = min(np.mean(means <= 0), np.mean(means >= 0))
  assert 0.01 < one_sided < 0.4
  assert got.p_value == pytest.approx(2 * one_sided, abs=0.015)
  low, high = np.quantile(means, [0.025, 0.975])
  assert got.difference.low == pytest.approx(low, abs=0.03)
  assert got.difference.high == pytest.approx(high, abs=0.03)


def test_seeds_that_are_not_paired_are_drawn_apart():
  """One query: a draw's difference is that of 2 of 2 seeds' deviations and of 3 of 3."""
  first, second = np.asarray([1.0, 4.0]), np.asarray([0.0, 2.0, 3.0])
  ours = np.sqrt(2.0) * (every_mean(first) - first.mean())
  theirs = np.sqrt(1.5) * (every_mean(second) - second.mean())
  mean = first.mean() - second.mean()
  means = mean + np.subtract.outer(ours, theirs)
  got = significance.two_level_bootstrap(
    first[:, None], second[:, None], paired_seeds=False, resamples=40000
  )
  assert got.difference.mean == pytest.approx(mean)
  assert got.p_value == pytest.approx(2 * np.mean(means <= 0), abs=0.015)


def test_two_level_spread_is_that_of_queries_and_of_seeds():
  """Effects of 4 seeds, of 200 queries and noise; variances of means as in analysis of variance."""
  rng = np.random.default_rng(8)
  table = rng.normal(0, 1, (4, 1)) + rng.normal(0, 3, (1, 200)) + rng.normal(0, 2, (4, 200))
  of_queries = table.mean(axis=0).var(ddof=1) / 200
  of_seeds = table.mean(axis=1).var(ddof=1) / 4
  got = significance.two_level_bootstrap(
    table, np.zeros_like(table), confidence=0.6827, resamples=40000
  )
  spread = (got.difference.high - got.difference.low) / 2
  assert spread == pytest.approx(np.sqrt(of_queries + of_seeds), rel=0.05)


def test_one_seed_leaves_the_bootstrap_over_queries():
  rng = np.random.default_rng(5)
  first, second = rng.random(80), rng.random(80)
  got = significance.two_level_bootstrap(first[None], second[None], resamples=20000)
  want = significance.paired_bootstrap(first, second, resamples=20000, seed=9)
  assert got.p_value == pytest.approx(want.p_value, abs=0.02)
  assert got.difference == pytest.approx(want.difference, abs=0.005)


def test_a_seed_of_three_that_says_the_opposite_is_enough_for_no_clear_difference():
  """All three draws are of that seed in 1 of 27; the mean over seeds is above 0 for each query."""
  difference = np.repeat([[0.5], [0.5], [-0.1]], 100, axis=1)
  means = difference.mean(axis=0)
  assert significance.paired_bootstrap(means, np.zeros(100)).p_value < 0.01
  got = significance.two_level_bootstrap(difference, np.zeros((3, 100)), resamples=20000)
  assert got.p_value == pytest.approx(2 / 27, abs=0.01)
  agreed = significance.two_level_bootstrap(np.abs(difference), np.zeros((3, 100)))
  assert agreed.p_value < 0.01


def test_two_level_draws_are_repeatable_and_no_difference_is_none(monkeypatch):
  table, other = np.random.default_rng(1).random((2, 3, 40))
  one = significance.two_level_bootstrap(table, other, seed=4)
  assert significance.two_level_bootstrap(table, other, seed=5) != one
  monkeypatch.setattr(significance, '_CHUNK', 100)
  assert significance.two_level_bootstrap(table, other, seed=4) == one
  same = significance.two_level_bootstrap(table, table)
  assert same.p_value == 1.0 and same.difference == (0.0, 0.0, 0.0)


def test_two_level_bootstrap_leaves_queries_without_a_match_out():
  first = np.asarray([[0.5, np.nan, 0.25], [0.75, np.nan, 0.5]])
  got = significance.two_level_bootstrap(first, first - 0.25)
  assert got.queries == 2 and got.difference.mean == pytest.approx(0.25)
  nothing = np.full((2, 3), np.nan)
  assert significance.two_level_bootstrap(nothing, nothing).queries == 0


@pytest.mark.parametrize(
  ('first', 'second', 'complaint'),
  [
    (np.zeros((2, 3)), np.zeros((3, 3)), '2 seeds and the other 3'),
    (np.zeros((2, 3)), np.zeros((2, 4)), '3 queries and the other 4'),
    (np.zeros((1, 2)), np.asarray([[0.0, np.nan]]), 'skipped different queries'),
    (np.asarray([[0.0, 1.0], [0.0, np.nan]]), np.zeros((2, 2)), 'skipped different queries'),
    (np.zeros(3), np.zeros(3), 'a row per seed'),
  ],
)
def test_tables_that_do_not_belong_together_are_refused(first, second, complaint):
  with pytest.raises(ValueError, match=complaint):
    significance.two_level_bootstrap(first, second)
