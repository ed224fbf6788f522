"""Seconds of evaluation: metrics of 484 queries x 16,483 images beside argsort; a big gallery."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from tfreid.evaluation import ranking, retrieval

# Market-1501's test half: 484 attribute combinations of 750 people on 16,483 crops.
MARKET = {'num_queries': 484, 'num_people': 750, 'num_gallery': 16483}
BIG = {'num_queries': 1000, 'num_people': 9000, 'num_gallery': 200_000}

# Noise per coordinate that is 1 without it: about the paper's rank-1, and chance.
TRAINED = 6.0
UNTRAINED = 1000.0


def _embeddings(
  num_queries: int, num_people: int, num_gallery: int, *, noise: float
) -> retrieval.Embeddings:
  """Unit vectors, 128-d: each image is its query's vector with noise; most IDs are one person."""
  rng = np.random.default_rng(0)
  rest = np.minimum(rng.geometric(12 / num_queries, num_people - num_queries), num_queries) - 1
  ids = np.concatenate([np.arange(num_queries), rest])
  ids = rng.permutation(ids[rng.integers(0, num_people, num_gallery)])
  queries = rng.standard_normal((num_queries, 128), np.float32)
  gallery = rng.standard_normal((num_gallery, 128), np.float32)
  gallery *= noise
  for start in range(0, num_gallery, 4096):  # no copy of it, for the peak of the memory
    gallery[start : start + 4096] += queries[ids[start : start + 4096]]
  for vectors in (queries, gallery):
    vectors /= np.sqrt(np.einsum('ne,ne->n', vectors, vectors))[:, np.newaxis]
  return retrieval.Embeddings(queries, gallery, np.arange(num_queries), ids)


def _by_sorting(
  similarity: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> tuple[float, float]:
  """(mAP, rank-1) the usual way: the whole order, then cumulative sums over all of it."""
  order = np.argsort(-similarity, axis=1, kind='stable')
  hits = gallery_ids[order] == query_ids[:, np.newaxis]
  hits = hits[hits.any(axis=1)]
  precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
  return float(((precision * hits).sum(axis=1) / hits.sum(axis=1)).mean()), float(hits[:, 0].mean())


def _medians(*functions: Callable[[], object], repeats: int) -> list[float]:
  """Median seconds of each function; they take turns, so that all meet the same machine."""
  seconds = [[] for _ in functions]
  for _ in range(repeats):
    for function, times in zip(functions, seconds):
      started = time.perf_counter()
      function()
      times.append(time.perf_counter() - started)
  return [statistics.median(times) for times in seconds]


def _peak_mib() -> float:
  """The largest memory the process has had so far; macOS counts bytes, Linux KiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
    2**20 if sys.platform == 'darwin' else 2**10
  )


def _metrics_beside_sorting(noise: float, *, repeats: int) -> dict[str, float]:
  embeddings = _embeddings(**MARKET, noise=noise)
  similarity = embeddings.queries @ embeddings.gallery.T
  ids = embeddings.query_ids, embeddings.gallery_ids

  def metrics():
    return ranking.summary(
      ranking.query_metrics(similarity, ranking.matches_by_id(*ids)), similarity.shape[1]
    )

  result = metrics()
  if not np.allclose(_by_sorting(similarity, *ids), (result.mAP, result.rank1)):
    raise RuntimeError('The two ways of computing the metrics do not agree.')
  ours, sorting, everything = _medians(
    metrics,
    lambda: _by_sorting(similarity, *ids),
    lambda: retrieval.evaluate_embeddings(embeddings),
    repeats=repeats,
  )
  return {
    'metrics_seconds': round(ours, 4),
    'argsort_seconds': round(sorting, 4),
    'times_faster': round(sorting / ours, 1),
    'with_similarity_seconds': round(everything, 4),
    'rank1': round(result.rank1, 4),
  }


def run(*, repeats: int = 7) -> dict[str, dict[str, float]]:
  """What evaluation costs once everything is embedded.

  Args:
    repeats: of each measurement on the Market-sized case; the median counts.

  Returns:
    `market_trained` and `market_untrained` (metrics from the similarity matrix of a space that
    ranks well, and of one at chance, beside sorting each row; and with the matrix product), and
    `big_gallery` (all of it, with the memory it took beyond the embeddings).
  """
  # The big case first: the peak of the process is to be its own.
  embeddings = _embeddings(**BIG, noise=TRAINED)
  before = _peak_mib()
  started = time.perf_counter()
  result = retrieval.evaluate_embeddings(embeddings)
  seconds = time.perf_counter() - started
  big = {
    'queries': BIG['num_queries'],
    'gallery': BIG['num_gallery'],
    'seconds': round(seconds, 3),
    'peak_mib': round(_peak_mib()),
    'peak_mib_before': round(before),
    'peak_mib_more': round(_peak_mib() - before),
    'matrix_mib': round(4 * len(embeddings.queries) * len(embeddings.gallery) / 2**20),
    'rank1': round(result.overall.rank1, 4),
  }
  del embeddings
  return {
    'market_trained': _metrics_beside_sorting(TRAINED, repeats=repeats),
    'market_untrained': _metrics_beside_sorting(UNTRAINED, repeats=repeats),
    'big_gallery': big,
  }


if __name__ == '__main__':
  print(json.dumps(run(), indent=2))
