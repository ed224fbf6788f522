"""The diagnostic of alignment, against closed forms and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from tfreid.evaluation import alignment as alignments
from tfreid.evaluation.alignment import alignment

SIZE = 8


def problem(rng, ids=400, *, shift=0.0, scale=1.0, per_id=2):
  """Both sides standard normal; the images shifted along one axis and scaled."""
  queries = rng.normal(size=(ids, SIZE))
  gallery = scale * rng.normal(size=(ids * per_id, SIZE))
  gallery[:, 3] += shift
  return queries, gallery, np.arange(ids), np.repeat(np.arange(ids), per_id)


def test_equal_distributions_cannot_be_told_apart():
  """The area of 400 against 800 values has a standard error of about 0.018."""
  got = alignment(*problem(np.random.default_rng(0)))
  assert got.probe_auc == pytest.approx(0.5, abs=0.06)
  assert got.mean_distance < 0.15
  assert got.covariance_distance < 0.2


def test_a_shift_of_one_deviation_has_the_area_and_the_distance_of_its_closed_form():
  """Normal sides d apart: the area is Phi(d / sqrt 2), the distance d / sqrt(E)."""
  got = alignment(*problem(np.random.default_rng(1), ids=2000, shift=1.0))
  assert got.probe_auc == pytest.approx(scipy.stats.norm.cdf(1 / np.sqrt(2)), abs=0.02)
  assert got.mean_distance == pytest.approx(1 / np.sqrt(SIZE), abs=0.03)


def test_separated_sides_have_an_area_of_one():
  assert alignment(*problem(np.random.default_rng(2), shift=20.0)).probe_auc == 1.0


def test_covariances_of_another_scale_are_told_by_their_distance():
  """Covariances I and 4 I: the norms are 1 and 4 times the root of E, so the distance is 3 / 5."""
  got = alignment(*problem(np.random.default_rng(3), ids=2000, scale=2.0))
  assert got.covariance_distance == pytest.approx(0.6, abs=0.03)


def test_each_semantic_id_counts_once_however_many_images_it_has():
  """Half of the IDs have their images shifted; the images of the others are repeated 20 times."""
  rng = np.random.default_rng(4)
  queries, gallery, query_ids, gallery_ids = problem(rng, shift=0.0, per_id=1)
  gallery[:200, 3] += 3.0
  once = alignment(queries, gallery, query_ids, gallery_ids)
  repeats = np.where(np.arange(400) < 200, 1, 20)
  more = alignment(
    queries, np.repeat(gallery, repeats, axis=0), query_ids, np.repeat(gallery_ids, repeats)
  )
  assert more == pytest.approx(once)
  assert once.mean_distance > 0.3


def test_the_area_is_that_of_scikit_learn_with_weights_and_ties():
  rng = np.random.default_rng(5)
  high, low = rng.integers(0, 9, 50).astype(float), rng.integers(0, 7, 30).astype(float)
  weights = rng.random(50)
  want = roc_auc_score(
    np.repeat([1, 0], [50, 30]),
    np.concatenate([high, low]),
    sample_weight=np.concatenate([weights, np.ones(30)]),
  )
  assert alignments._area(high, weights, low) == pytest.approx(want)


def test_images_of_other_ids_take_no_part_and_too_few_ids_give_no_number():
  queries, gallery, query_ids, gallery_ids = problem(np.random.default_rng(6), ids=20)
  more = np.concatenate([gallery, 100 + gallery])
  got = alignment(queries, more, query_ids, np.concatenate([gallery_ids, gallery_ids + 1000]))
  assert got == alignment(queries, gallery, query_ids, gallery_ids)
  assert np.isnan(alignment(queries[:9], gallery, query_ids[:9], gallery_ids)).all()
  assert np.isnan(alignment(queries[:0], gallery, query_ids[:0], gallery_ids)).all()
