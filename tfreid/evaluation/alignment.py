"""How well images and descriptions are aligned in a joint space. Numpy only. Floor 4.

An adversarial method, MMD and Deep CORAL promise that embeddings of images and of descriptions have
the same distribution. Retrieval does not show whether they do: a space can rank well though a
hyperplane separates its two sides, and rank badly though nothing does. These numbers show it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_FOLDS = 5
_SHRINKAGE = 0.1
_MOST_IMAGES = 20_000  # of the gallery, evenly spaced, which bounds the time


class Alignment(NamedTuple):
  """Whether embeddings of images and of descriptions are alike, each semantic ID counted once.

  Attributes:
    probe_auc: area under the ROC curve, 0 to 1, of a linear probe that tells an image from a
      description, on semantic IDs that it was not fitted on: 0.5 if nothing tells them apart, 1 if
      a hyperplane separates them.
    mean_distance: distance of the two means, divided by the root of the mean square distance of the
      embeddings to the mean of their side; 0 if they agree.
    covariance_distance: Frobenius norm of the difference of the two covariances, divided by the sum
      of their norms; 0 if they agree, at most 1.
  """

  probe_auc: float
  mean_distance: float
  covariance_distance: float


def alignment(
  queries: np.ndarray, gallery: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray
) -> Alignment:
  """The alignment of both sides of a retrieval problem.

  The probe is Fisher's linear discriminant with a tenth of the identity in its covariance. It is
  fitted five times on four fifths of the semantic IDs and scored on the rest, so that what it finds
  holds for other people.

  Args:
    queries: float32 [Q, E], embeddings of descriptions, each of another semantic ID.
    gallery: float32 [N, E], embeddings of images. Of more than 20,000, so many are taken.
    query_ids: int [Q], semantic IDs.
    gallery_ids: int [N], semantic IDs; images of others than the queries' take no part.

  Returns:
    NaN throughout where fewer than ten semantic IDs have both a description and an image.
  """
  ids, positions = np.unique(query_ids, return_index=True)
  step = -(-len(gallery) // _MOST_IMAGES)
  gallery, gallery_ids = gallery[::step], np.asarray(gallery_ids)[::step]
  place = np.searchsorted(ids, gallery_ids).clip(max=len(ids) - 1) if len(ids) else gallery_ids
  known = ids[place] == gallery_ids if len(ids) else np.zeros(len(gallery), bool)
  counts = np.bincount(place[known], minlength=len(ids))
  used = np.flatnonzero(counts)
  if len(used) < 2 * _FOLDS:
    return Alignment(*(float('nan'),) * 3)
  descriptions = queries[positions[used]].astype(np.float64)
  images = gallery[known].astype(np.float64)
  group = place[known]
  weights = 1.0 / counts[group]
  group = np.searchsorted(used, group)
  order = np.random.default_rng(0).permutation(len(used))
  fold = np.empty(len(used), np.int64)
  fold[order] = np.arange(len(used)) % _FOLDS
  areas = []
  for held_out in range(_FOLDS):
    inside, outside = fold != held_out, fold == held_out
    of_images = inside[group]
    direction = _discriminant(images[of_images], weights[of_images], descriptions[inside])
    areas.append(
      _area(images[~of_images] @ direction, weights[~of_images], descriptions[outside] @ direction)
    )
  return Alignment(float(np.mean(areas)), *_distances(images, weights, descriptions))


def _moments(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean [E] and covariance [E, E]."""
  weights = weights / weights.sum()
  mean = weights @ values
  centred = values - mean
  return mean, (centred * weights[:, np.newaxis]).T @ centred


def _discriminant(images, weights, descriptions) -> np.ndarray:
  """The direction [E] in which images are highest and descriptions lowest."""
  mean, covariance = _moments(images, weights)
  other, other_covariance = _moments(descriptions, np.ones(len(descriptions)))
  within = (covariance + other_covariance) / 2
  size = len(within)
  scale = np.trace(within) / size
  if scale <= 0:
    return mean - other
  return np.linalg.solve(
    (1 - _SHRINKAGE) * within + _SHRINKAGE * scale * np.eye(size), mean - other
  )


def _area(high: np.ndarray, weights: np.ndarray, low: np.ndarray) -> float:
  """P(a drawn value of `high` is above one of `low`), ties counting half."""
  low = np.sort(low)
  below = np.searchsorted(low, high, 'left')
  not_above = np.searchsorted(low, high, 'right')
  return float((weights * (below + not_above)).sum() / (2 * weights.sum() * len(low)))


def _distances(images, weights, descriptions) -> tuple[float, float]:
  mean, covariance = _moments(images, weights)
  other, other_covariance = _moments(descriptions, np.ones(len(descriptions)))
  spread = np.sqrt((np.trace(covariance) + np.trace(other_covariance)) / 2)
  norms = np.linalg.norm(covariance) + np.linalg.norm(other_covariance)
  if spread == 0 or norms == 0:
    same = np.array_equal(mean, other)
    return (0.0 if same else float('inf')), 0.0
  return (
    float(np.linalg.norm(mean - other) / spread),
    float(np.linalg.norm(covariance - other_covariance) / norms),
  )
