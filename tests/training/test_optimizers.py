from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from tfreid.training import optimizers

GRADIENTS = np.array([[0.3, -2.0], [0.1, 0.5], [-0.7, 1.0]])


def trajectory(optimizer):
  """Where two numbers go from (1, 2) under the gradients above."""
  variable = tf.Variable([1.0, 2.0])
  for gradient in GRADIENTS:
    optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
  return variable.numpy()


def test_adam_is_pytorchs():
  """Moments m and v corrected for their start at zero, epsilon added to the corrected root."""
  x, m, v = np.array([1.0, 2.0]), 0.0, 0.0
  for t, g in enumerate(GRADIENTS, start=1):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    x = x - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
  np.testing.assert_allclose(trajectory(optimizers.adam(0.01)), x, rtol=1e-5)


def test_adam_in_one_pass_is_keras_adam_with_the_same_slots():
  """One variable per branch: a matrix, one with a sparse gradient, one of double precision."""
  rng = np.random.default_rng(0)
  starts = [rng.normal(size=(5, 3)), rng.normal(size=(4, 2)), rng.normal(size=3)]
  types = (tf.float32, tf.float32, tf.float64)
  found = []
  for kind in (optimizers.FusedAdam, tf.keras.optimizers.Adam):
    rng = np.random.default_rng(1)
    variables = [tf.Variable(start, dtype=dtype) for start, dtype in zip(starts, types)]
    optimizer = kind(0.01, beta_1=0.5, epsilon=1e-8)
    for _ in range(10):
      gradients = [tf.constant(rng.normal(size=v.shape), v.dtype) for v in variables]
      gradients[1] = tf.IndexedSlices(gradients[1][:2], tf.constant([0, 3]), tf.constant([4, 2]))
      optimizer.apply_gradients(zip(gradients, variables))
    found.append([*variables, *optimizer.variables])
  assert len(found[0]) == len(found[1])
  for mine, keras in zip(*found):
    np.testing.assert_allclose(mine.numpy(), keras.numpy(), rtol=2e-5, atol=1e-7)


def test_sgd_is_pytorchs():
  x, velocity = np.array([1.0, 2.0]), 0.0
  for g in GRADIENTS:
    velocity = 0.9 * velocity + g
    x = x - 0.01 * velocity
  np.testing.assert_allclose(trajectory(optimizers.sgd(0.01)), x, rtol=1e-5)


def test_nesterov_looks_ahead():
  x, velocity = np.array([1.0, 2.0]), 0.0
  for g in GRADIENTS:
    velocity = 0.8 * velocity + g
    x = x - 0.01 * (g + 0.8 * velocity)
  found = trajectory(optimizers.sgd(0.01, momentum=0.8, nesterov=True))
  np.testing.assert_allclose(found, x, rtol=1e-5)


def test_clip_norm_is_of_all_variables_together():
  a, b = tf.Variable([0.0]), tf.Variable([0.0])
  optimizer = optimizers.sgd(1.0, momentum=0.0, clip_norm=1.0)
  optimizer.apply_gradients([(tf.constant([3.0]), a), (tf.constant([4.0]), b)])
  np.testing.assert_allclose([a.numpy()[0], b.numpy()[0]], [-0.6, -0.8], rtol=1e-5)


def test_step_decay_falls_after_every_so_many_epochs():
  factor = optimizers.step_decay(every=40)
  assert [factor(epoch) for epoch in (0, 39, 40, 79, 80)] == pytest.approx(
    [1.0, 1.0, 0.1, 0.1, 0.01]
  )


def test_milestones_fall_at_each_epoch_named():
  factor = optimizers.milestones(epochs=(20, 50), factor=0.5)
  assert [factor(epoch) for epoch in (0, 19, 20, 49, 50, 99)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_cosine_falls_to_its_floor_and_stays_there():
  factor = optimizers.cosine(total=10, floor=0.2)
  expected = [1.0, 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.3)), 0.6, 0.2, 0.2]
  assert [factor(epoch) for epoch in (0, 3, 5, 10, 15)] == pytest.approx(expected)


@pytest.mark.parametrize(
  'schedule',
  [
    lambda warm_up: optimizers.step_decay(every=100, warm_up=warm_up),
    lambda warm_up: optimizers.milestones(epochs=(100,), warm_up=warm_up),
  ],
)
def test_warm_up_rises_linearly_to_the_full_rate(schedule):
  factor = schedule(3)
  assert [factor(epoch) for epoch in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
  assert schedule(0)(0) == 1.0


@pytest.mark.parametrize(
  ('schedule', 'name'),
  [
    (lambda: optimizers.step_decay(every=0), 'step_decay.every'),
    (lambda: optimizers.cosine(total=0), 'cosine.total'),
  ],
)
def test_schedule_of_no_epochs_is_refused(schedule, name):
  with pytest.raises(ValueError, match=f'{name} must be a positive number of epochs, not 0'):
    schedule()


@pytest.mark.parametrize('rate', [0.0, -0.001, math.nan, math.inf])
@pytest.mark.parametrize('name', ['adam', 'sgd'])
def test_a_rate_that_cannot_train_is_refused(name, rate):
  with pytest.raises(ValueError, match=f'optimizers.{name}.learning_rate must be a positive'):
    getattr(optimizers, name)(rate)


@pytest.mark.parametrize('norm', [0.0, -1.0, math.nan])
def test_a_clip_norm_that_stops_everything_is_refused(norm):
  with pytest.raises(ValueError, match='clip_norm must be a positive, finite number or None'):
    optimizers.sgd(0.1, clip_norm=norm)
