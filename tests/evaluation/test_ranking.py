from __future__ import annotations

import fractions
import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from tfreid.evaluation import ranking

BIG = 3 * ranking._FEW  # a gallery for which the histogram is used


def naive_ranks(similarity, query_ids, gallery_ids):
  """0-based ranks of each query's matches by a stable sort of the whole row."""
  ranks = []
  for row, query in zip(similarity, query_ids):
    order = np.argsort(-row.astype(np.float64), kind='stable')
    ranks.append(np.flatnonzero(gallery_ids[order] == query))
  return ranks


def naive_metrics(ranks):
  """(rank-1, rank-5, rank-10, AP, AP_trapz, INP) of one query, by the formulae, in Python."""
  hits = [int(h) for h in ranks]
  number = len(hits)
  finite = sum((i + 1) / (h + 1) for i, h in enumerate(hits)) / number
  trapz = (
    sum(0.5 * ((i + 1) / (h + 1) + (i / h if h > 0 else 1.0)) for i, h in enumerate(hits)) / number
  )
  return [*(float(hits[0] < k) for k in (1, 5, 10)), finite, trapz, number / (hits[-1] + 1)]


def assert_ranks_are_naive(similarity, query_ids, gallery_ids):
  matches = ranking.matches_by_id(query_ids, gallery_ids)
  got = np.split(ranking.match_ranks(similarity, matches), matches.offsets[1:-1])
  want = naive_ranks(similarity, query_ids, gallery_ids)
  assert len(got) == len(want)
  for g, w in zip(got, want):
    np.testing.assert_array_equal(g, w)


def draw_ids(rng, queries, gallery):
  """A few frequent ids and many rare ones; some queries have no match and some ids no query."""
  sizes = rng.pareto(1.0, queries + 3) + 0.05
  return (
    rng.permutation(np.arange(queries)),
    rng.choice(np.arange(3, queries + 6), gallery, p=sizes / sizes.sum()),
  )


SCORES = {
  'normal': lambda rng, shape: rng.standard_normal(shape),
  'heavy tails': lambda rng, shape: rng.standard_cauchy(shape) ** 3,
  'float32 steps apart': lambda rng, shape: 1.0 + rng.integers(0, 400, shape) * 2.0**-23,
  'two values': lambda rng, shape: rng.integers(0, 2, shape),
  'few values': lambda rng, shape: rng.integers(-3, 4, shape) / 7,
  'int8': lambda rng, shape: rng.integers(-128, 128, shape).astype(np.int8),
  'constant': lambda rng, shape: np.full(shape, 0.3),
  'zeros of both signs': lambda rng, shape: rng.choice([0.0, -0.0], shape),
  'subnormal': lambda rng, shape: rng.integers(0, 50, shape) * 1e-45,
  'huge': lambda rng, shape: rng.uniform(-1, 1, shape) * 3.4e38,
  'infinities': lambda rng, shape: rng.choice([-np.inf, -1.0, 0.5, np.inf], shape),
  'one outlier': lambda rng, shape: np.where(
    rng.random(shape) < 1e-3, 1e30, rng.standard_normal(shape)
  ),
  'mostly zero': lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.3),
}


@pytest.mark.parametrize('kind', SCORES)
@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.float16])
def test_ranks_equal_those_of_a_stable_sort(kind, dtype):
  rng = np.random.default_rng(7)
  for queries, gallery in ((1, 1), (2, 3), (9, 40), (30, 500), (12, BIG)):
    query_ids, gallery_ids = draw_ids(rng, queries, gallery)
    scores = SCORES[kind](rng, (queries, gallery))
    if scores.dtype != np.int8:
      with np.errstate(over='ignore'):
        scores = scores.astype(dtype)
    assert_ranks_are_naive(scores, query_ids, gallery_ids)


def test_ranks_equal_those_of_a_stable_sort_in_every_small_ranking():
  """All score rows of length 4 over three values, with each of the 16 match patterns."""
  rows = np.asarray(list(itertools.product([-1.0, 0.0, 2.0], repeat=4)), np.float32)
  for pattern in itertools.product([0, 1], repeat=4):
    assert_ranks_are_naive(rows, np.ones(len(rows), int), np.asarray(pattern))


def test_ranks_are_the_same_for_any_memory_order():
  rng = np.random.default_rng(3)
  query_ids, gallery_ids = draw_ids(rng, 40, 300)
  scores = rng.integers(0, 30, (40, 300)).astype(np.float32)
  assert_ranks_are_naive(np.asfortranarray(scores), query_ids, gallery_ids)
  assert_ranks_are_naive(scores[:, ::-1], query_ids, gallery_ids)


def test_a_tie_goes_to_the_smaller_gallery_index():
  """Scores 1 1 1 0 with matches 1 and 3: order 0 1 2 3, so the 0-based ranks are 1 and 3."""
  matches = ranking.matches_by_id(np.asarray([5]), np.asarray([0, 5, 0, 5]))
  ranks = ranking.match_ranks(np.asarray([[1.0, 1.0, 1.0, 0.0]]), matches)
  np.testing.assert_array_equal(ranks, [1, 3])


def test_metrics_of_a_ranking_worked_by_hand():
  """Matches at the 1-based ranks 2, 3 and 6.

  AP = (1/2 + 2/3 + 3/6) / 3 = 5/9. Precision just before: 0/1, 1/2, 2/5, so
  AP_trapz = ((1/2 + 0) + (2/3 + 1/2) + (1/2 + 2/5)) / 6 = 77/180. INP = 3/6.
  """
  scores = np.asarray([[9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0]])
  matches = ranking.matches_by_id(np.asarray(['b']), np.asarray(list('abbaaba')))
  metrics = ranking.query_metrics(scores, matches)
  assert metrics.num_matches == [3]
  assert metrics.first_rank == [2]
  assert metrics.average_precision[0] == pytest.approx(5 / 9, abs=1e-15)
  assert metrics.average_precision_trapz[0] == pytest.approx(77 / 180, abs=1e-15)
  assert metrics.inverse_negative_penalty[0] == 0.5
  assert [metrics.hits(k)[0] for k in (1, 2, 3)] == [0.0, 1.0, 1.0]


def test_metrics_equal_the_formulae_on_random_rankings():
  rng = np.random.default_rng(11)
  query_ids, gallery_ids = draw_ids(rng, 60, 700)
  scores = np.round(rng.standard_normal((60, 700)), 2).astype(np.float32)
  metrics = ranking.query_metrics(scores, ranking.matches_by_id(query_ids, gallery_ids))
  valid = 0
  for q, ranks in enumerate(naive_ranks(scores, query_ids, gallery_ids)):
    got = [
      *(metrics.hits(k)[q] for k in (1, 5, 10)),
      metrics.average_precision[q],
      metrics.average_precision_trapz[q],
      metrics.inverse_negative_penalty[q],
    ]
    if len(ranks):
      valid += 1
      np.testing.assert_allclose(got, naive_metrics(ranks), rtol=1e-13)
    else:
      assert np.isnan(got).all() and metrics.first_rank[q] == 0
  assert 0 < valid < 60


def test_finite_sum_average_precision_equals_that_of_scikit_learn():
  rng = np.random.default_rng(13)
  query_ids, gallery_ids = draw_ids(rng, 40, 500)
  scores = rng.permuted(np.tile(np.arange(500.0), (40, 1)), axis=1)  # no ties
  metrics = ranking.query_metrics(scores, ranking.matches_by_id(query_ids, gallery_ids))
  for q in np.flatnonzero(metrics.num_matches):
    oracle = average_precision_score(gallery_ids == query_ids[q], scores[q])
    assert metrics.average_precision[q] == pytest.approx(oracle, rel=1e-12)


def test_an_oracle_scores_one_hundred_percent():
  rng = np.random.default_rng(5)
  gallery_ids = rng.permutation(np.repeat(np.arange(25), rng.integers(1, 9, 25)))
  query_ids = np.arange(25)
  similarity = (query_ids[:, np.newaxis] == gallery_ids).astype(np.float32)
  metrics = ranking.query_metrics(similarity, ranking.matches_by_id(query_ids, gallery_ids))
  result = ranking.summary(metrics, len(gallery_ids))
  assert result[3:9] == (1.0,) * 6
  worst = ranking.query_metrics(-similarity, ranking.matches_by_id(query_ids, gallery_ids))
  assert ranking.summary(worst, len(gallery_ids)).rank1 == 0.0


def test_queries_without_a_match_are_counted_and_enter_no_mean():
  gallery_ids = np.asarray([0, 0, 1, 2])
  scores = np.asarray([[4.0, 3, 2, 1], [9, 9, 9, 9], [1, 2, 3, 4], [0, 1, 0, 0]])
  metrics = ranking.query_metrics(
    scores, ranking.matches_by_id(np.asarray([0, 7, 1, 8]), gallery_ids)
  )
  result = ranking.summary(metrics, 4)
  assert (result.queries, result.skipped, result.gallery) == (2, 2, 4)
  assert result.mAP == (1.0 + 1 / 2) / 2
  assert result.rank1 == 0.5
  assert result.chance_rank1 == (2 / 4 + 1 / 4) / 2


def test_a_summary_of_nothing_is_nan_with_zero_queries():
  metrics = ranking.query_metrics(
    np.zeros((2, 3)), ranking.matches_by_id(np.asarray([8, 9]), np.asarray([1, 2, 3]))
  )
  result = ranking.summary(metrics, 3)
  assert (result.queries, result.skipped) == (0, 2)
  assert np.isnan(result[3:]).all()
  empty = ranking.query_metrics(
    np.zeros((0, 3)), ranking.matches_by_id(np.zeros(0, int), np.asarray([1, 2, 3]))
  )
  assert ranking.summary(empty, 3).queries == 0


def test_chance_equals_the_mean_over_all_rankings():
  """Every placement of R matches in N = 6 places, in exact arithmetic."""
  for number in range(1, 7):
    placements = list(itertools.combinations(range(6), number))
    precision = sum(
      sum(fractions.Fraction(i + 1, h + 1) for i, h in enumerate(hits)) / number
      for hits in placements
    ) / len(placements)
    assert ranking.chance_average_precision([number], 6)[0] == pytest.approx(float(precision))
    for k in (1, 2, 5, 10):
      hit = sum(hits[0] < k for hits in placements) / len(placements)
      assert ranking.chance_hits([number], 6, k=k)[0] == pytest.approx(hit)
      assert 1 - math.comb(6 - number, k) / max(math.comb(6, k), 1) == pytest.approx(hit) or k > 6


def test_random_rankings_are_at_chance_level():
  rng = np.random.default_rng(17)
  gallery_ids = rng.permutation(np.repeat(np.arange(20), rng.integers(1, 12, 20)))
  matches = ranking.matches_by_id(np.tile(np.arange(20), 200), gallery_ids)
  scores = rng.standard_normal((4000, len(gallery_ids)), np.float32)
  result = ranking.summary(ranking.query_metrics(scores, matches), len(gallery_ids))
  # Standard errors: sqrt(p (1 - p) / 4000) = 0.0034 and about 0.0014.
  assert result.rank1 == pytest.approx(result.chance_rank1, abs=0.014)
  assert result.mAP == pytest.approx(result.chance_mAP, abs=0.006)
  assert result.chance_rank1 == pytest.approx(1 / 20)  # one over the queries: all items are queried


def test_blocks_of_queries_give_the_metrics_of_all():
  rng = np.random.default_rng(19)
  query_ids, gallery_ids = draw_ids(rng, 23, 200)
  scores = rng.integers(0, 90, (23, 200)).astype(np.float32)
  matches = ranking.matches_by_id(query_ids, gallery_ids)
  whole = ranking.query_metrics(scores, matches)
  blocks = ranking.QueryMetrics.concatenate(
    [
      ranking.query_metrics(scores[start : start + 5], matches.block(start, min(start + 5, 23)))
      for start in range(0, 23, 5)
    ]
  )
  for got, want in zip(blocks, whole):
    np.testing.assert_array_equal(got, want)


def test_matches_are_all_pairs_of_equal_ids_in_gallery_order():
  query_ids, gallery_ids = np.asarray([4, 9, 1, 4]), np.asarray([1, 4, 4, 3, 1])
  matches = ranking.matches_by_id(query_ids, gallery_ids)
  np.testing.assert_array_equal(matches.indices, [1, 2, 0, 4, 1, 2])
  np.testing.assert_array_equal(matches.counts, [2, 0, 2, 2])


def test_nan_is_refused_with_its_place():
  scores = np.zeros((3, 4), np.float32)
  scores[1, 2] = np.nan
  matches = ranking.matches_by_id(np.arange(3), np.arange(4))
  for call in (ranking.match_ranks, ranking.top_k):
    with pytest.raises(ValueError, match='query 1 and gallery item 2 is NaN'):
      call(scores, matches if call is ranking.match_ranks else 2)


@pytest.mark.parametrize(
  ('similarity', 'message'),
  [
    (np.zeros(4), 'matrix'),
    (np.zeros((2, 4)), 'has 2 rows but there are matches for 3 queries'),
    (np.zeros((3, 2)), 'has 2 columns but a match is gallery item'),
    (np.asarray([['a'] * 4] * 3), 'must be numbers'),
  ],
)
def test_shapes_that_do_not_fit_are_refused(similarity, message):
  matches = ranking.matches_by_id(np.arange(3), np.arange(4))
  with pytest.raises(ValueError, match=message):
    ranking.match_ranks(similarity, matches)


def test_ids_of_different_kinds_are_refused():
  with pytest.raises(ValueError, match='different kinds'):
    ranking.matches_by_id(np.asarray([1, 2]), np.asarray(['1', '2']))
  with pytest.raises(ValueError, match='vectors'):
    ranking.matches_by_id(np.asarray([[1], [2]]), np.asarray([1, 2]))


@pytest.mark.parametrize('kind', SCORES)
def test_top_k_equals_the_head_of_a_stable_sort(kind):
  rng = np.random.default_rng(23)
  scores = np.asarray(SCORES[kind](rng, (15, 80)))
  want = np.argsort(-scores.astype(np.float64), axis=1, kind='stable')
  for k in (1, 7, 80, 200):
    np.testing.assert_array_equal(ranking.top_k(scores, k), want[:, :k])


def test_top_k_of_nothing_is_refused():
  with pytest.raises(ValueError, match='k=0'):
    ranking.top_k(np.zeros((1, 2)), 0)


# Three attributes: a colour of three columns, a bag, a sex.
GROUPS = (0, 0, 0, 1, 2)
RED, BLUE, NO_COLOUR = [1, 0, 0], [0, 1, 0], [0, 0, 0]


def test_violations_count_attributes_and_not_columns():
  """Red against blue differs in two columns but is one wrong attribute."""
  query = np.asarray([RED + [1, 0]], np.float32)
  gallery = np.asarray([RED + [1, 0], BLUE + [1, 0], NO_COLOUR + [0, 1]], np.float32)
  for top, want in (([0], 0.0), ([1], 1.0), ([2], 3.0), ([0, 1, 2], 4 / 3)):
    graded = ranking.graded_metrics(np.asarray([top]), query, gallery, groups=GROUPS)
    assert graded.violations[0] == pytest.approx(want)


def test_violations_leave_out_what_the_query_does_not_say():
  query = np.asarray([RED + [1, 0]] * 2, np.float32)
  gallery = np.asarray([BLUE + [0, 0], RED + [0, 1]], np.float32)
  specified = np.asarray([[True, False, False], [False, False, False]])
  graded = ranking.graded_metrics(
    np.asarray([[0, 1], [0, 1]]), query, gallery, groups=GROUPS, specified=specified
  )
  assert graded.violations[0] == 0.5
  assert np.isnan(graded.violations[1]) and np.isnan(graded.ndcg[1])


def test_ndcg_equals_that_of_scikit_learn_on_the_same_gains():
  rng = np.random.default_rng(29)
  colours = np.eye(3)[rng.choice(3, 60, p=[0.7, 0.2, 0.1])]
  gallery = np.concatenate([colours, rng.integers(0, 2, (60, 2))], axis=1)
  query = gallery[:8]
  scores = rng.standard_normal((8, 60))
  attributes = [gallery[:, :3].argmax(1), gallery[:, 3], gallery[:, 4]]
  gains = np.zeros((8, 60))
  for q in range(8):
    agrees = np.stack([values == values[q] for values in attributes])
    weights = 1 / agrees.mean(axis=1)  # inverse frequency of the asked value
    gains[q] = weights @ agrees / weights.sum()
  for k in (1, 5, 60):
    graded = ranking.graded_metrics(ranking.top_k(scores, k), query, gallery, groups=GROUPS)
    want = [ndcg_score(gains[q : q + 1], scores[q : q + 1], k=k) for q in range(8)]
    np.testing.assert_allclose(graded.ndcg, want, rtol=1e-12)


def test_ndcg_of_the_best_possible_order_is_one():
  gallery = np.asarray([BLUE + [0, 1], RED + [1, 0], RED + [1, 1], RED + [1, 0]], np.float32)
  query = np.asarray([RED + [1, 0]], np.float32)
  best = ranking.graded_metrics(np.asarray([[1, 3, 2]]), query, gallery, groups=GROUPS)
  worse = ranking.graded_metrics(np.asarray([[0, 2, 1]]), query, gallery, groups=GROUPS)
  assert best.ndcg[0] == pytest.approx(1.0)
  assert worse.ndcg[0] < 0.95


def test_attribute_columns_must_fit_their_groups():
  with pytest.raises(ValueError, match='5 columns but 2 groups'):
    ranking.graded_metrics(np.asarray([[0]]), np.zeros((1, 5)), np.zeros((1, 5)), groups=(0, 1))
