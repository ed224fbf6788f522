"""Retrieval metrics: similarities and identities in, numbers out. Floor 0, numpy only.

The protocol: for each query the gallery is ordered by (-similarity, gallery index), so that tied
scores have one defined order. With the R matches of a query at the 0-based ranks
h_1 < ... < h_R,

    rank-k      = 1 if h_1 < k else 0                                   (CMC, first match)
    AP          = 1/R sum_i i / (h_i + 1)                               (finite sum)
    AP_trapz    = 1/R sum_i 1/2 [i / (h_i + 1) + ((i - 1) / h_i if h_i > 0 else 1)]
    INP         = R / (h_R + 1)                                         (Ye et al. 2021)

and mAP, mAP_trapz, mINP and rank-k are means over the queries that have a match. The finite sum is
scikit-learn's average precision since 0.19 and SAL's; the trapezoid is that of the Oxford buildings
and Market-1501 code and ASMR's. The two differ by about 0.8 points of mAP at Market's scale, so
both are reported.

All of this needs only the ranks of the matches, never the whole ordering: the rank of a match is
the number of gallery scores above it, plus the number of equal scores at a smaller index.
`match_ranks` counts those without sorting the gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Up to so many scores are compared with the matches' scores one by one; from there on a histogram
# of at least so many buckets, which stays in the cache, sorts out those that need not be.
_FEW = 4096
# From so many scores that matches share with other items on, one sort is cheaper than a pass each.
_TIED_LEVELS = 32


class Matches(NamedTuple):
  """Which gallery items are right answers to which query, Q queries, M pairs.

  Attributes:
    indices: int64 [M], gallery indices, query after query, ascending within a query.
    offsets: int64 [Q + 1]; the matches of query q are indices[offsets[q]:offsets[q + 1]].
  """

  indices: np.ndarray
  offsets: np.ndarray

  @property
  def counts(self) -> np.ndarray:
    """int64 [Q], number of matches R of each query."""
    return np.diff(self.offsets)

  def block(self, start: int, stop: int) -> Matches:
    """The matches of the queries start ... stop - 1."""
    offsets = self.offsets[start : stop + 1]
    return Matches(self.indices[offsets[0] : offsets[-1]], offsets - offsets[0])


def matches_by_id(query_ids: np.ndarray, gallery_ids: np.ndarray) -> Matches:
  """The pairs of a query and a gallery item with equal id.

  Args:
    query_ids: [Q], integers or strings.
    gallery_ids: [N], of the same kind.

  Raises:
    ValueError: the arrays are not vectors, or one holds numbers and the other strings.
  """
  query_ids, gallery_ids = np.asarray(query_ids), np.asarray(gallery_ids)
  if query_ids.ndim != 1 or gallery_ids.ndim != 1:
    raise ValueError(
      f'Ids must be vectors, got the shapes {list(query_ids.shape)} for the queries and '
      f'{list(gallery_ids.shape)} for the gallery.'
    )
  if (query_ids.dtype.kind in 'US') != (gallery_ids.dtype.kind in 'US'):
    raise ValueError(
      f'Query ids ({query_ids.dtype}) and gallery ids ({gallery_ids.dtype}) are of different kinds '
      'and can never match. Use the same id for both.'
    )
  order = np.argsort(gallery_ids, kind='stable')
  ordered = gallery_ids[order]
  first = np.searchsorted(ordered, query_ids, 'left')
  counts = np.searchsorted(ordered, query_ids, 'right') - first
  offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
  within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
  return Matches(order[np.repeat(first, counts) + within].astype(np.int64), offsets)


def match_ranks(similarity: np.ndarray, matches: Matches) -> np.ndarray:
  """The 0-based rank of every match when the gallery is ordered by (-similarity, index).

  Makes no index matrix: the work per query is a few passes over its row, and the memory a few times
  that of one row. One thread: the passes over a row of usual length are so short that two threads
  mostly wait for each other at the interpreter lock.

  Args:
    similarity: [Q, N], larger is better. Infinities are allowed, NaN is not.
    matches: the right answers of the Q queries.

  Returns:
    int64 [M], laid out by `matches.offsets`, ascending within a query.

  Raises:
    ValueError: shapes that do not fit, or a NaN.
  """
  similarity = _checked_similarity(similarity)
  num_queries, num_gallery = similarity.shape
  if num_queries != len(matches.offsets) - 1:
    raise ValueError(
      f'The similarity matrix has {num_queries} rows but there are matches for '
      f'{len(matches.offsets) - 1} queries; one row per query is needed.'
    )
  if len(matches.indices) and not 0 <= matches.indices.min() <= matches.indices.max() < num_gallery:
    raise ValueError(
      f'The similarity matrix has {num_gallery} columns but a match is gallery item '
      f'{matches.indices.max()}; one column per gallery item is needed.'
    )
  ranks = np.empty(len(matches.indices), np.int64)

  for q in np.flatnonzero(matches.counts):
    span = slice(matches.offsets[q], matches.offsets[q + 1])
    ranks[span] = _row_ranks(similarity[q], matches.indices[span])
  return ranks


def _checked_similarity(similarity: np.ndarray) -> np.ndarray:
  """`similarity` as a float32 or float64 matrix without NaN."""
  similarity = np.asarray(similarity)
  if similarity.ndim != 2:
    raise ValueError(
      f'Similarities must be a matrix [queries, gallery], got the shape {list(similarity.shape)}.'
    )
  if similarity.dtype.kind not in 'fiub':
    raise ValueError(f'Similarities must be numbers, got {similarity.dtype}.')
  if similarity.dtype not in (np.float32, np.float64):
    # float16 fits into float32 exactly, as integers do into float64 up to 2^53.
    wider = np.float32 if similarity.dtype == np.float16 else np.float64
    similarity = similarity.astype(wider)
  # The minimum is NaN if anything is, and needs no temporary of the matrix' size.
  if similarity.size and np.isnan(similarity.min()):
    rows = np.flatnonzero([np.isnan(row.min()) for row in similarity])
    column = np.flatnonzero(np.isnan(similarity[rows[0]]))[0]
    raise ValueError(
      f'The similarity of query {rows[0]} and gallery item {column} is NaN (NaN in {len(rows)} of '
      f'{len(similarity)} rows), so there is no ranking. Look for non-finite weights or embeddings.'
    )
  return similarity


def _row_ranks(row: np.ndarray, matches: np.ndarray) -> np.ndarray:
  """Ranks of one query's matches (R >= 1 of them), ascending. int64 [R].

  The distinct scores of the matches are the levels t_1 < ... < t_m, and what is wanted is the
  number of scores at or above each.
  """
  scores = row[matches]
  levels, sizes = np.unique(scores, return_counts=True)  # [m], ascending
  near, above = _near_levels(row, levels)
  slot = levels.searchsorted(near, 'right') - 1  # t_slot <= score < t_(slot + 1)
  at_least = above + np.bincount(slot, minlength=len(levels))[::-1].cumsum()[::-1]
  equal = np.bincount(slot[levels[slot] == near], minlength=len(levels))
  tied = np.flatnonzero(equal > sizes)  # levels that an item other than the matches is on
  if len(tied) > _TIED_LEVELS:
    return _tied_row_ranks(row, matches, levels)
  # The matches of an untied level follow each other, behind what is above.
  first = (at_least - equal)[::-1]
  sizes = sizes[::-1]
  offsets = np.cumsum(sizes) - sizes
  ranks = np.repeat(first - offsets, sizes) + np.arange(len(matches))
  for level in len(levels) - 1 - tied:
    score = levels[len(levels) - 1 - level]
    own = np.flatnonzero(row == score).searchsorted(matches[scores == score])
    ranks[offsets[level] : offsets[level] + sizes[level]] = first[level] + own
  return ranks


def _tied_row_ranks(row: np.ndarray, matches: np.ndarray, levels: np.ndarray) -> np.ndarray:
  """`_row_ranks` where many matches tie with other items: sorts the row, coarsened to the levels.

  What lies between two levels has no match, so its own order is of no concern, and the sort is one
  of small integers.
  """
  slot = levels.searchsorted(row, 'right')  # 0 for scores below the first level
  key = 2 * (len(levels) - slot) + (levels[slot - 1] == row)
  if 2 * len(levels) <= np.iinfo(np.uint16).max:
    key = key.astype(np.uint16)  # numpy's stable sort of 16 bits is a radix sort
  is_match = np.zeros(len(row), bool)
  is_match[matches] = True
  return np.flatnonzero(is_match[np.argsort(key, kind='stable')])


def _near_levels(row: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray | int]:
  """The few scores that must be compared with the levels one by one.

  A histogram of the scores places most of them in a bucket without a level; those need only be
  counted. Scores below the first level count nowhere and are left out.

  Returns:
    The scores that share a bucket with a level; and for each level, int64 [m], the number of scores
    in higher buckets that hold no level.
  """
  lowest = levels[0]
  near = row[row >= lowest]
  if len(near) <= _FEW:
    return near, 0
  buckets = min(max(_FEW, 32 * len(levels)), len(row))
  with np.errstate(over='ignore', divide='ignore', invalid='ignore'):
    scale = row.dtype.type((buckets - 1) / (near.max() - lowest))
  if not 0 < scale < np.inf:  # the span is infinite, or too small to be divided
    return near, 0
  # Rounding is monotone, so a score in a higher bucket is a higher score.
  bucket = ((near - lowest) * scale).astype(np.intp)
  level_bucket = ((levels - lowest) * scale).astype(np.intp)
  shared = np.zeros(buckets, bool)
  shared[level_bucket] = True
  histogram = np.bincount(bucket, minlength=buckets)
  histogram[level_bucket] = 0
  return near[shared[bucket]], histogram[::-1].cumsum()[::-1][level_bucket]


class QueryMetrics(NamedTuple):
  """The metrics of each query, Q of them; a query without a match has NaN (and first_rank 0).

  Attributes:
    num_matches: int64 [Q], R.
    first_rank: int64 [Q], 1-based rank of the first match, h_1 + 1.
    average_precision: float64 [Q] in [0, 1], finite sum.
    average_precision_trapz: float64 [Q] in [0, 1], trapezoid.
    inverse_negative_penalty: float64 [Q] in [0, 1].
  """

  num_matches: np.ndarray
  first_rank: np.ndarray
  average_precision: np.ndarray
  average_precision_trapz: np.ndarray
  inverse_negative_penalty: np.ndarray

  def hits(self, k: int) -> np.ndarray:
    """float64 [Q]: rank-k of each query, 1 if a match is among the first k, NaN if it has none."""
    return np.where(self.num_matches > 0, (self.first_rank <= k).astype(np.float64), np.nan)

  def select(self, queries: np.ndarray) -> QueryMetrics:
    """The metrics of some of the queries (a mask or indices)."""
    return QueryMetrics(*(values[queries] for values in self))

  @classmethod
  def concatenate(cls, blocks: Sequence[QueryMetrics]) -> QueryMetrics:
    """The metrics of blocks of queries, joined."""
    return cls(*(np.concatenate(values) for values in zip(*blocks)))


def metrics_from_ranks(ranks: np.ndarray, offsets: np.ndarray) -> QueryMetrics:
  """The metrics of each query from the ranks of its matches.

  Args:
    ranks: int64 [M], 0-based, ascending within a query, as `match_ranks` returns them.
    offsets: int64 [Q + 1], those of the `Matches`.
  """
  counts = np.diff(offsets)
  valid = counts > 0
  starts = offsets[:-1][valid]
  number = np.arange(len(ranks)) - np.repeat(offsets[:-1], counts) + 1  # i, counted from 1
  at_hit = number / (ranks + 1)
  # The precision just before the hit; before the first rank it is 1 by convention.
  before = np.where(ranks > 0, (number - 1) / np.maximum(ranks, 1), 1.0)

  def mean_over_matches(values: np.ndarray) -> np.ndarray:
    means = np.full(len(counts), np.nan)
    if len(starts):
      means[valid] = np.add.reduceat(values, starts) / counts[valid]
    return means

  first_rank = np.zeros(len(counts), np.int64)
  first_rank[valid] = ranks[starts] + 1
  inverse_negative_penalty = np.full(len(counts), np.nan)
  inverse_negative_penalty[valid] = counts[valid] / (ranks[offsets[1:][valid] - 1] + 1)
  return QueryMetrics(
    num_matches=counts,
    first_rank=first_rank,
    average_precision=mean_over_matches(at_hit),
    average_precision_trapz=mean_over_matches((at_hit + before) / 2),
    inverse_negative_penalty=inverse_negative_penalty,
  )


def query_metrics(similarity: np.ndarray, matches: Matches) -> QueryMetrics:
  """The metrics of each query from its similarities to the gallery.

  Args:
    similarity: [Q, N], larger is better, no NaN.
    matches: the right answers of the Q queries.

  Raises:
    ValueError: as `match_ranks`.
  """
  return metrics_from_ranks(match_ranks(similarity, matches), matches.offsets)


class Summary(NamedTuple):
  """The row of a table: means over the queries that have a match, in [0, 1] (NaN without any).

  Attributes:
    queries: number of queries that have a match.
    skipped: number of queries that have none and count nowhere else.
    gallery: number N of gallery items.
    mAP: mean finite-sum average precision.
    mAP_trapz: mean trapezoid average precision.
    rank1, rank5, rank10: share of queries with a match among the first 1, 5, 10.
    mINP: mean inverse negative penalty.
    chance_rank1: expected rank1 of a random ranking.
    chance_mAP: expected mAP of a random ranking.
  """

  queries: int
  skipped: int
  gallery: int
  mAP: float  # noqa: N815
  mAP_trapz: float  # noqa: N815
  rank1: float
  rank5: float
  rank10: float
  mINP: float  # noqa: N815
  chance_rank1: float
  chance_mAP: float  # noqa: N815


def summary(metrics: QueryMetrics, num_gallery: int) -> Summary:
  """Means of the metrics over the queries that have a match, and their chance levels.

  Args:
    metrics: of any set of queries.
    num_gallery: N, size of the gallery they were ranked in.
  """
  kept = metrics.select(metrics.num_matches > 0)
  queries = len(kept.num_matches)

  def mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if queries else float('nan')

  return Summary(
    queries=queries,
    skipped=len(metrics.num_matches) - queries,
    gallery=int(num_gallery),
    mAP=mean(kept.average_precision),
    mAP_trapz=mean(kept.average_precision_trapz),
    rank1=mean(kept.hits(1)),
    rank5=mean(kept.hits(5)),
    rank10=mean(kept.hits(10)),
    mINP=mean(kept.inverse_negative_penalty),
    chance_rank1=mean(chance_hits(kept.num_matches, num_gallery, k=1)),
    chance_mAP=mean(chance_average_precision(kept.num_matches, num_gallery)),
  )


def chance_hits(num_matches: np.ndarray, num_gallery: int, *, k: int) -> np.ndarray:
  """Probability that a random ranking has a match among its first k, per query.

  1 - C(N - R, k) / C(N, k), which for k = 1 is R / N.

  Args:
    num_matches: integers [Q], R.
    num_gallery: N.
    k: at least 1.

  Returns:
    float64 [Q].
  """
  num_matches = np.asarray(num_matches, np.float64)
  missed = np.ones_like(num_matches)
  for i in range(min(k, num_gallery)):
    missed *= np.maximum(num_gallery - num_matches - i, 0.0) / (num_gallery - i)
  return 1.0 - missed


def chance_average_precision(num_matches: np.ndarray, num_gallery: int) -> np.ndarray:
  """Expected finite-sum average precision of a random ranking, per query.

  AP = 1/R sum_r [match at r] 1/r sum_{s <= r} [match at s], and in a random ranking two different
  ranks both hold a match with probability R (R - 1) / (N (N - 1)), so that with the harmonic number
  H_N

      E[AP] = 1/N [H_N + (R - 1) / (N - 1) (N - H_N)].

  Args:
    num_matches: integers [Q], R >= 1.
    num_gallery: N.

  Returns:
    float64 [Q].
  """
  num_matches = np.asarray(num_matches, np.float64)
  if num_gallery < 1:
    return np.full(num_matches.shape, np.nan)
  harmonic = np.sum(1.0 / np.arange(1, num_gallery + 1))
  pairs = (num_matches - 1) / max(num_gallery - 1, 1)
  return (harmonic + pairs * (num_gallery - harmonic)) / num_gallery


def top_k(similarity: np.ndarray, k: int) -> np.ndarray:
  """The first k gallery indices in the order (-similarity, index) of each query.

  Args:
    similarity: [Q, N], no NaN.
    k: at least 1; clipped to N.

  Returns:
    int64 [Q, min(k, N)].

  Raises:
    ValueError: k < 1, or similarities that are no matrix of numbers or hold a NaN.
  """
  if k < 1:
    raise ValueError(f'The number of results must be at least 1, got k={k}.')
  similarity = _checked_similarity(similarity)
  num_gallery = similarity.shape[1]
  k = min(k, num_gallery)
  top = np.empty((len(similarity), k), np.int64)
  for q, row in enumerate(similarity if k else ()):
    last = np.partition(row, num_gallery - k)[num_gallery - k]
    candidates = np.flatnonzero(row >= last)  # k of them, more where the last one ties
    top[q] = candidates[np.argsort(-row[candidates], kind='stable')[:k]]
  return top


class GradedMetrics(NamedTuple):
  """How nearly right the first k results of each query are.

  mAP counts "everything right but the bag" as a complete miss; these do not.

  Attributes:
    violations: float64 [Q], mean number of wrong attributes among the first k results.
    ndcg: float64 [Q] in [0, 1], discounted cumulative gain of the first k over the best possible,
      where the gain of a result is the share of attributes it agrees on, each weighted by the
      inverse frequency of the asked value in the gallery: agreeing on a rare value counts more.
  """

  violations: np.ndarray
  ndcg: np.ndarray


def graded_metrics(
  top: np.ndarray,
  query_attributes: np.ndarray,
  gallery_attributes: np.ndarray,
  *,
  groups: Sequence[int],
  specified: np.ndarray | None = None,
) -> GradedMetrics:
  """Graded relevance of the first k results from the attribute labels alone.

  An attribute is one group of columns ('upper_color=red', 'upper_color=blue', ...) and agrees if
  all its columns do.

  Args:
    top: int64 [Q, k], gallery indices, best first, as `top_k` returns them.
    query_attributes: [Q, A] labels.
    gallery_attributes: [N, A] labels, N >= 1.
    groups: [A], the attribute that each column belongs to.
    specified: bool [Q, number of attributes] (attributes in ascending order of their group), what
      the query says; all of it if None. A query that says nothing gets NaN.
  """
  query_codes, gallery_codes = _attribute_codes(query_attributes, gallery_attributes, groups)
  if specified is None:
    specified = np.ones(query_codes.shape, bool)
  num_gallery = len(gallery_codes)
  says_something = specified.any(axis=1)

  frequency = np.empty(query_codes.shape)
  for g, codes in enumerate(gallery_codes.T):
    counts = np.bincount(codes, minlength=query_codes[:, g].max(initial=0) + 1)
    frequency[:, g] = np.maximum(counts[query_codes[:, g]], 1) / num_gallery
  weights = specified / frequency
  weights /= np.where(says_something, weights.sum(axis=1), 1.0)[:, np.newaxis]  # [Q, G]

  agrees = gallery_codes[top] == query_codes[:, np.newaxis]  # [Q, k, G]
  violations = (~agrees & specified[:, np.newaxis]).sum(axis=2).mean(axis=1)
  gains = np.einsum('qkg,qg->qk', agrees, weights)

  # The best possible results: gallery items with equal attributes have equal gain, so the distinct
  # combinations and their numbers decide.
  distinct, numbers = np.unique(gallery_codes, axis=0, return_counts=True)
  k = top.shape[1]
  discount = 1.0 / np.log2(np.arange(2, k + 2))
  ideal = np.empty(len(query_codes))
  for q, codes in enumerate(query_codes):
    possible = (distinct == codes) @ weights[q]
    best = np.argsort(-possible, kind='stable')[:k]
    ideal[q] = np.repeat(possible[best], np.minimum(numbers[best], k))[:k] @ discount
  # Gains can be zero all over a gallery that agrees on nothing; then every ranking is the best.
  ndcg = np.where(ideal > 0, (gains @ discount) / np.where(ideal > 0, ideal, 1.0), 1.0)
  missing = np.where(says_something, 0.0, np.nan)
  return GradedMetrics(violations + missing, ndcg + missing)


def _attribute_codes(
  query_attributes: np.ndarray, gallery_attributes: np.ndarray, groups: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Each attribute's block of columns as one number that is equal where the block is.

  Returns:
    int64 [Q, G] and [N, G].
  """
  group = np.asarray(groups)
  both = np.concatenate([query_attributes, gallery_attributes])
  if both.shape[1] != len(group):
    raise ValueError(f'Attribute vectors have {both.shape[1]} columns but {len(group)} groups.')
  codes = np.stack(
    [
      np.unique(both[:, group == g], axis=0, return_inverse=True)[1].reshape(-1)
      for g in np.unique(group)
    ],
    axis=1,
  )
  return codes[: len(query_attributes)], codes[len(query_attributes) :]
