from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import heads


def test_unit_norm_has_length_one_and_the_same_direction():
  x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
  found = heads.UnitNorm()(x).numpy()
  np.testing.assert_allclose(found, x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-5)


def test_unit_norm_of_zero_is_zero_with_a_finite_gradient():
  x = tf.Variable(tf.zeros([1, 3]))
  with tf.GradientTape() as tape:
    found = heads.UnitNorm()(x)
  np.testing.assert_array_equal(found, tf.zeros([1, 3]))
  assert np.isfinite(tape.gradient(found, x).numpy()).all()


def test_unit_norm_is_float32_under_half_precision():
  tf.keras.mixed_precision.set_global_policy('mixed_float16')
  assert heads.UnitNorm()(tf.ones([1, 3], tf.float16)).dtype == tf.float32


def test_classifier_is_one_linear_layer():
  model = heads.classifier(3, 4)
  kernel, bias = model.get_weights()
  x = np.float32([[1.0, -2.0, 0.5]])
  np.testing.assert_allclose(model(x), x @ kernel + bias, rtol=1e-5, atol=1e-6)
  assert kernel.shape == (3, 4)


def test_batch_norm_has_pytorchs_momentum_and_epsilon():
  """Keras' 0.9 is PyTorch's 0.1: moving <- 0.9 moving + 0.1 batch."""
  layer = heads.batch_norm()
  x = np.float32([[1.0], [3.0], [5.0], [7.0]])
  found = layer(x, training=True).numpy()
  np.testing.assert_allclose(found, (x - 4.0) / np.sqrt(5.0 + 1e-5), rtol=1e-5)
  np.testing.assert_allclose(layer.moving_mean, [0.1 * 4.0], rtol=1e-5)
  np.testing.assert_allclose(layer.moving_variance, [0.9 * 1.0 + 0.1 * 5.0], rtol=1e-5)


def test_batch_norm_of_two_replicas_uses_the_global_batch(two_devices):
  strategy = tf.distribute.MirroredStrategy(
    two_devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
  )
  x = np.float32([[1.0], [3.0], [50.0], [70.0]])
  with strategy.scope():
    layer = heads.batch_norm()
    layer.build([None, 1])
  parts = strategy.experimental_distribute_values_from_function(
    lambda context: tf.constant(x[2 * context.replica_id_in_sync_group :][:2])
  )

  @tf.function
  def run(values):
    return strategy.run(lambda part: layer(part, training=True), args=(values,))

  found = tf.concat(strategy.experimental_local_results(run(parts)), axis=0)
  np.testing.assert_allclose(found, (x - x.mean()) / np.sqrt(x.var() + 1e-5), rtol=1e-4)
  assert not heads.batch_norm().synchronized  # outside of the scope there is nothing to wait for


def test_discriminator_has_the_layers_it_says():
  model = heads.discriminator(16, hidden=(8, 4))
  kinds = [type(layer).__name__ for layer in model.layers]
  block = ['Dense', 'BatchNormalization', 'LeakyReLU']
  assert kinds == ['InputLayer', *block, *block, 'Dense']
  assert [layer.units for layer in model.layers if hasattr(layer, 'units')] == [8, 4, 1]
  assert model.output_shape == (None, 1)


def test_discriminator_without_batch_norm_judges_each_concept_by_itself():
  model = heads.discriminator(4, hidden=(8,), batch_norms=False)
  x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
  together = model(x, training=True)
  np.testing.assert_allclose(together, [model(row[None], training=True)[0] for row in x], rtol=1e-5)


@pytest.mark.parametrize('policy', ['mixed_float16', 'mixed_bfloat16'])
def test_last_layers_are_float32_under_any_policy(policy):
  tf.keras.mixed_precision.set_global_policy(policy)
  x = tf.ones([2, 4])
  assert heads.classifier(4, 3)(x).dtype == tf.float32
  discriminator = heads.discriminator(4)
  assert discriminator(x).dtype == tf.float32
  assert discriminator.get_layer('fc1').compute_dtype == policy[len('mixed_') :]


def test_unit_norm_of_an_encoder_shares_its_variables():
  bare = heads.classifier(3, 4)
  unit = heads.unit_norm(bare)
  assert [id(v) for v in unit.variables] == [id(v) for v in bare.variables]
  np.testing.assert_allclose(tf.norm(unit(tf.ones([2, 3])), axis=1), [1.0, 1.0], rtol=1e-5)
