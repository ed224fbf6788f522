from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfreid.networks import attribute


def test_layers_are_those_of_table_1():
  model = attribute.attribute_generator(27)
  dense = [layer for layer in model.layers if isinstance(layer, tf.keras.layers.Dense)]
  assert [layer.units for layer in dense] == [128, 256, 512, 128]
  block = ['Dense', 'BatchNormalization', 'ReLU']
  kinds = [type(layer).__name__ for layer in model.layers]
  assert kinds == ['InputLayer', *block, *block, *block, 'Dense', 'Activation']
  assert model.input_shape == (None, 27)
  assert model.output_shape == (None, 128)


def test_number_of_weights_is_that_of_table_1():
  """27 attributes: (27+1)128 + (128+1)256 + (256+1)512 + (512+1)128, and 4 per normalised unit."""
  expected = 28 * 128 + 129 * 256 + 257 * 512 + 513 * 128 + 4 * (128 + 256 + 512)
  assert attribute.attribute_generator(27).count_params() == expected


def test_concept_is_the_hyperbolic_tangent_of_the_last_layer():
  tf.keras.utils.set_random_seed(0)
  model = attribute.attribute_generator(5, 4, hidden=(6,))
  weights = {layer.name: [w.numpy() for w in layer.weights] for layer in model.layers}
  x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  (w1, b1), (w2, b2) = weights['fc1'], weights['fc4']
  # Fresh moving averages are 0 and 1, fresh scale and shift 1 and 0.
  hidden = np.maximum((x @ w1 + b1) / np.sqrt(1.0 + 1e-5), 0.0)
  np.testing.assert_allclose(model(x), np.tanh(hidden @ w2 + b2), rtol=1e-4, atol=1e-6)


def test_concept_is_float32_under_half_precision():
  tf.keras.mixed_precision.set_global_policy('mixed_float16')
  model = attribute.attribute_generator(5, 4, hidden=(6,))
  assert model.get_layer('fc1').compute_dtype == 'float16'
  assert model(tf.ones([2, 5])).dtype == tf.float32
