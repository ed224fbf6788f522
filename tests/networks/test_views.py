from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import views


def test_standardization_uses_the_adapted_mean_and_deviation():
  values = np.random.default_rng(0).normal(3.0, 2.0, size=(100, 5)).astype(np.float32)
  layer = views.Standardization()
  layer.build([None, 5])
  np.testing.assert_array_equal(layer(values), values)  # the identity before it is adapted
  layer.adapt(values)
  other = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
  wanted = (other - values.mean(axis=0)) / values.std(axis=0)
  np.testing.assert_allclose(layer(other), wanted, rtol=1e-4)
  assert layer.trainable_variables == []


def test_standardization_does_not_amplify_a_unit_silent_in_training():
  """Deviations 2, 1e-9, 0: the root mean square is 2 / sqrt(3), a thousandth of it 1.155e-3."""
  values = np.zeros([100, 3])
  values[::2, 0] = 4.0
  values[::2, 1] = 2e-9
  layer = views.Standardization()
  layer.build([None, 3])
  layer.adapt(values)
  np.testing.assert_allclose(layer.deviation, [2.0, 2e-3 / 3**0.5, 2e-3 / 3**0.5], rtol=1e-6)


def test_standardization_of_constant_features_is_finite():
  layer = views.Standardization()
  layer.build([None, 2])
  layer.adapt(np.full([10, 2], 5.0))
  np.testing.assert_array_equal(layer(tf.constant([[5.0, 6.0]])), [[0.0, 1.0]])


def test_centred_projection_is_the_identity_until_assigned():
  layer = views.CentredProjection(2)
  x = tf.constant([[1.0, 2.0, 3.0]])
  np.testing.assert_array_equal(layer(x), [[1.0, 2.0]])
  layer.assign(tf.constant([1.0, 1.0, 1.0]), tf.constant([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
  np.testing.assert_array_equal(layer(x), [[2.0, 4.0]])
  assert layer.trainable_variables == []


@pytest.mark.parametrize(
  ('hidden', 'activation', 'parameters'),
  [((), 'tanh', 3 * 2 + 2), ((5,), 'sigmoid', 3 * 5 + 5 + 5 * 2 + 2)],
)
def test_view_has_a_linear_last_layer(hidden, activation, parameters):
  model = views.view(3, 2, hidden=hidden, activation=activation)
  assert model.count_params() == parameters
  assert model.layers[-1].activation is tf.keras.activations.linear
  assert all(layer.activation.__name__ == activation for layer in model.layers[1:-1])


def test_view_ends_in_float32_under_mixed_precision():
  tf.keras.mixed_precision.set_global_policy('mixed_float16')
  try:
    model = views.view(3, 2, hidden=(4,))
  finally:
    tf.keras.mixed_precision.set_global_policy('float32')
  assert model.output.dtype == tf.float32
  assert model.layers[1].compute_dtype == 'float16'


def test_layers_survive_saving(tmp_path):
  inputs = tf.keras.Input([3])
  standardization, projection = views.Standardization(), views.CentredProjection(2)
  model = tf.keras.Model(inputs, projection(standardization(inputs)))
  x = np.random.default_rng(0).normal(size=(20, 3))
  standardization.adapt(x)
  projection.assign(tf.constant([0.1, 0.2, 0.3]), tf.constant(x[:3, :2]))
  model.save(tmp_path / 'model.keras')
  loaded = tf.keras.models.load_model(tmp_path / 'model.keras')
  np.testing.assert_array_equal(loaded(x), model(x))
