from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tfreid import losses

# Small enough to follow by hand, large enough that no mean is a single number.
IMAGES = np.array([[0.5, -0.2], [0.1, 0.9], [-0.7, 0.3], [0.2, 0.2]], np.float32)
ATTRIBUTES = np.array([[0.4, 0.4], [-0.1, 0.6], [-0.5, -0.5], [0.9, 0.1]], np.float32)


def sigmoid(x):
  return 1.0 / (1.0 + math.exp(-x))


def column(*logits):
  return tf.constant([[logit] for logit in logits], tf.float32)


# Classification and the adversary: Eq. 3, 6, 7 and 8.


def test_classification_loss_is_the_mean_negative_log_probability_of_the_right_id():
  logits = [[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]
  ids = [1, 0]
  expected = np.mean(
    [
      -math.log(math.exp(row[i]) / sum(math.exp(value) for value in row))
      for row, i in zip(logits, ids)
    ]
  )
  found = losses.semantic_classification_loss(tf.constant(logits), tf.constant(ids, tf.int64))
  assert float(found) == pytest.approx(expected, rel=1e-6)


def test_classification_loss_without_any_knowledge_is_the_log_of_the_number_of_ids():
  found = losses.semantic_classification_loss(tf.zeros([5, 508]), tf.range(5))
  assert float(found) == pytest.approx(math.log(508), rel=1e-6)


def test_discriminator_loss_is_that_of_eq_6():
  image, attribute = (2.0, -0.5, 0.3), (0.7, -1.5, 0.1)
  expected = np.mean([-math.log(sigmoid(d)) for d in image]) + np.mean(
    [-math.log(1.0 - sigmoid(d)) for d in attribute]
  )
  found = losses.discriminator_loss(column(*image), column(*attribute))
  assert float(found) == pytest.approx(expected, rel=1e-6)


def test_discriminator_that_cannot_tell_loses_two_bits():
  found = losses.discriminator_loss(tf.zeros([7, 1]), tf.zeros([7, 1]))
  assert float(found) == pytest.approx(2.0 * math.log(2.0), rel=1e-6)


def test_fooling_loss_is_that_of_eq_7_for_either_side():
  logits = (2.0, -0.5, 0.3)
  attribute = np.mean([-math.log(sigmoid(d)) for d in logits])
  image = np.mean([-math.log(1.0 - sigmoid(d)) for d in logits])
  assert float(losses.fooling_loss(column(*logits), wanted=1.0)) == pytest.approx(attribute)
  assert float(losses.fooling_loss(column(*logits), wanted=0.0)) == pytest.approx(image)


@pytest.mark.parametrize('confidence', [-1e4, 1e4])
def test_confident_discriminator_does_not_overflow(confidence):
  logits = column(confidence)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    total = losses.discriminator_loss(logits, -logits) + losses.fooling_loss(logits, wanted=1.0)
  assert np.isfinite(float(total))
  assert np.isfinite(tape.gradient(total, logits).numpy()).all()


def test_fooled_generator_has_no_gradient_left_and_caught_one_has_a_full_one():
  """d/dd of -log sigmoid(d) is sigmoid(d) - 1: 0 where fooled, -1 where caught."""
  logits = column(30.0, -30.0)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = losses.fooling_loss(logits, wanted=1.0)
  np.testing.assert_allclose(tape.gradient(loss, logits)[:, 0] * 2, [0.0, -1.0], atol=1e-6)


# Discrepancies between two sets.


def test_linear_mmd_is_the_squared_distance_of_the_means():
  difference = IMAGES.mean(axis=0) - ATTRIBUTES.mean(axis=0)
  found = losses.linear_mmd(tf.constant(IMAGES), tf.constant(ATTRIBUTES))
  assert float(found) == pytest.approx(float(difference @ difference), rel=1e-5)


def naive_multi_kernel_mmd(x, y, *, kernels, factor, unbiased):
  """The definition, pair by pair."""
  n = len(x)
  pooled = np.concatenate([x, y]).astype(np.float64)
  between_any = [
    np.sum((pooled[i] - pooled[j]) ** 2) for i in range(2 * n) for j in range(2 * n) if i != j
  ]
  width = np.mean(between_any)

  def kernel(u, v):
    distance = np.sum((u.astype(np.float64) - v) ** 2)
    exponents = range(-(kernels // 2), kernels // 2 + 1)
    return sum(math.exp(-distance * factor**j / width) for j in exponents)

  def within(z):
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j or not unbiased]
    return sum(kernel(z[i], z[j]) for i, j in pairs) / len(pairs)

  across = np.mean([kernel(u, v) for u in x for v in y])
  return within(x) + within(y) - 2.0 * across


@pytest.mark.parametrize('unbiased', [True, False])
@pytest.mark.parametrize(('kernels', 'factor'), [(5, 2.0), (1, 2.0), (3, 4.0)])
def test_multi_kernel_mmd_is_the_sum_over_pairs(kernels, factor, unbiased):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(6, 3)).astype(np.float32)
  y = rng.normal(0.5, 1.5, size=(6, 3)).astype(np.float32)
  settings = {'kernels': kernels, 'factor': factor, 'unbiased': unbiased}
  found = losses.multi_kernel_mmd(tf.constant(x), tf.constant(y), **settings)
  assert float(found) == pytest.approx(naive_multi_kernel_mmd(x, y, **settings), abs=1e-5)


def test_biased_multi_kernel_mmd_of_a_set_with_itself_is_zero():
  x = tf.constant(IMAGES)
  assert float(losses.multi_kernel_mmd(x, x, unbiased=False)) == pytest.approx(0.0, abs=1e-6)


def test_unbiased_multi_kernel_mmd_of_equal_distributions_is_zero_on_average():
  rng = np.random.default_rng(0)
  draws = [
    float(
      losses.multi_kernel_mmd(
        *(tf.constant(rng.normal(size=(16, 4)), tf.float32) for _ in range(2))
      )
    )
    for _ in range(200)
  ]
  assert abs(np.mean(draws)) < 4.0 * np.std(draws) / math.sqrt(len(draws))
  assert min(draws) < 0.0


def test_multi_kernel_mmd_treats_its_bandwidth_as_a_constant():
  """Scaling both sets scales the bandwidth: a derivative through it would be exactly zero."""
  scale = tf.Variable(1.0)
  with tf.GradientTape() as tape:
    found = losses.multi_kernel_mmd(scale * IMAGES, scale * (ATTRIBUTES + 1.0))
  step = 1e-2
  x, y = tf.constant(IMAGES), tf.constant(ATTRIBUTES + 1.0)
  whole = losses.multi_kernel_mmd((1 + step) * x, (1 + step) * y) - losses.multi_kernel_mmd(x, y)
  assert abs(float(whole) / step) < 1e-4
  assert abs(float(tape.gradient(found, scale))) > 0.1


def test_multi_kernel_mmd_of_identical_points_has_a_finite_gradient():
  x = tf.Variable(tf.ones([4, 3]))
  with tf.GradientTape() as tape:
    found = losses.multi_kernel_mmd(x, tf.ones([4, 3]))
  assert np.isfinite(tape.gradient(found, x).numpy()).all()


def test_coral_loss_is_the_distance_of_the_covariances():
  difference = np.cov(IMAGES, rowvar=False) - np.cov(ATTRIBUTES, rowvar=False)
  expected = np.sum(difference**2) / (4 * 2**2)
  found = losses.coral_loss(tf.constant(IMAGES), tf.constant(ATTRIBUTES))
  assert float(found) == pytest.approx(expected, rel=1e-5)


def test_coral_loss_does_not_see_the_means_unless_told_to():
  x, y = tf.constant(IMAGES), tf.constant(IMAGES + np.float32([3.0, -1.0]))
  assert float(losses.coral_loss(x, y)) == pytest.approx(0.0, abs=1e-6)
  assert float(losses.coral_loss(x, y, match_mean=True)) == pytest.approx((9.0 + 1.0) / 2, rel=1e-5)


# Person ids: label smoothing and the batch-hard triplet loss.


def test_smoothed_classification_loss_is_the_cross_entropy_with_the_smoothed_distribution():
  logits = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
  wanted = np.full([2, 3], 0.3 / 3) + 0.7 * np.eye(3)[[1, 0]]
  expected = -np.mean(np.sum(wanted * (logits - np.log(np.exp(logits).sum(1, keepdims=True))), 1))
  found = losses.semantic_classification_loss(
    tf.constant(logits, tf.float32), tf.constant([1, 0]), label_smoothing=0.3
  )
  assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('margin', [0.3, 0.0, None])
def test_triplet_loss_takes_the_farthest_of_the_person_and_the_nearest_other(margin):
  x = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
  people = [0, 0, 1, 1, 1, 2, 2, 3, 0]  # person 3 is alone: no positive
  terms = []
  for i in range(9):
    distances = [float(np.linalg.norm(x[i] - x[j])) for j in range(9)]
    same = [distances[j] for j in range(9) if j != i and people[j] == people[i]]
    others = [distances[j] for j in range(9) if people[j] != people[i]]
    if same:
      gap = max(same) - min(others)
      terms.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
  found = losses.batch_hard_triplet_loss(tf.constant(x), tf.constant(people), margin=margin)
  assert len(terms) == 8
  assert float(found) == pytest.approx(np.mean(terms), rel=1e-4)


def test_triplet_loss_of_equal_embeddings_is_the_margin_with_a_finite_gradient():
  x = tf.Variable(tf.ones([4, 3]))
  with tf.GradientTape() as tape:
    loss = losses.batch_hard_triplet_loss(x, tf.constant([0, 0, 1, 1]), margin=0.3)
  assert float(loss) == pytest.approx(0.3, abs=1e-5)
  assert np.isfinite(tape.gradient(loss, x)).all()


def test_triplet_loss_without_a_triplet_is_nothing():
  assert float(losses.batch_hard_triplet_loss(tf.eye(3), tf.range(3))) == 0.0
  assert float(losses.batch_hard_triplet_loss(tf.eye(3), tf.zeros([3], tf.int32))) == 0.0
