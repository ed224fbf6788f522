"""The attribute encoder in NumPy against Keras, for each layer that it knows."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import attribute, attribute_scores, heads, two_way, views
from tfreid.serving import folding, light_encoder

layers = tf.keras.layers


def chain(*parts, size=7):
  inputs = x = tf.keras.Input([size])
  for part in parts:
    x = part(x)
  return tf.keras.Model(inputs, x)


def with_random_weights(model, seed=0):
  rng = np.random.default_rng(seed)
  for variable in model.weights:
    variable.assign(rng.uniform(0.1, 1.0, variable.shape) * rng.choice([-1, 1], variable.shape))
    if 'variance' in variable.name or 'deviation' in variable.name:
      variable.assign(tf.abs(variable))
  return model


MODELS = {
  'the paper': lambda: attribute.attribute_generator(7, 5, hidden=(8, 9)),
  'cosine': lambda: heads.unit_norm(attribute.attribute_generator(7, 5, hidden=(8,))),
  'linear': lambda: chain(layers.Dense(5)),
  'without a bias': lambda: chain(layers.Dense(5, use_bias=False), layers.LeakyReLU(0.2)),
  'activations': lambda: chain(*(layers.Dense(6, a) for a in ('sigmoid', 'softplus', 'elu'))),
  'a norm that is kept': lambda: chain(
    layers.BatchNormalization(scale=False), layers.Dropout(0.5), layers.Dense(4)
  ),
  'cca': lambda: chain(
    layers.Dense(6, 'tanh'), views.Standardization(), views.CentredProjection(3)
  ),
  'pearson': lambda: chain(layers.Dense(6), two_way.PearsonNorm()),
  **{
    f'{reading}, {encoding}': lambda reading=reading, encoding=encoding: chain(
      attribute_scores.DescriptionReading(reading, encoding=encoding, rates=[0.3] * 7)
    )
    for reading in attribute_scores.READINGS
    for encoding in attribute_scores.ENCODINGS
  },
}


@pytest.mark.parametrize('name', MODELS)
def test_concepts_are_those_of_keras(name):
  model = with_random_weights(MODELS[name]())
  encoder = folding.FoldedEncoder(model)
  light = light_encoder.from_structure(encoder.structure, [v.numpy() for v in encoder.weights])
  again = light_encoder.from_bytes(light.to_bytes())
  vectors = np.random.default_rng(1).choice([-1.0, 0.0, 0.25, 1.0], (9, 7)).astype(np.float32)
  found = again(vectors)
  assert found.dtype == np.float32
  errors = folding.relative_errors(found, model(vectors, training=False).numpy())
  assert errors.max() < light_encoder.TOLERANCE
  np.testing.assert_array_equal(found, light(vectors))


def two_branches():
  inputs = tf.keras.Input([7])
  return tf.keras.Model(inputs, layers.Add()([layers.Dense(3)(inputs), layers.Dense(3)(inputs)]))


def a_layer_used_twice():
  inputs = tf.keras.Input([7])
  layer = layers.Dense(7)
  return tf.keras.Model(inputs, layer(layer(inputs)))


@pytest.mark.parametrize(
  'build',
  [
    two_branches,
    a_layer_used_twice,
    lambda: chain(layers.Dense(3, 'gelu')),
    lambda: chain(layers.ReLU(max_value=6.0)),
    lambda: chain(layers.LayerNormalization()),
    lambda: chain(chain(layers.Dense(3))),
  ],
)
def test_an_encoder_that_is_no_chain_of_known_layers_is_left_to_tensorflow(build):
  model = build()
  weights = [variable.numpy() for variable in model.weights]
  assert light_encoder.from_structure(model.to_json(), weights) is None


def test_what_is_not_finite_and_damaged_files_are_sentences():
  model = chain(layers.Dense(5))
  light = light_encoder.from_structure(model.to_json(), [v.numpy() for v in model.weights])
  with pytest.raises(ValueError, match='holds NaN or infinity'):
    light(np.full((1, 7), np.nan))
  with pytest.raises(ValueError, match='too large'):
    light(np.full((1, 7), 3e38))
  content = light.to_bytes()
  for broken in (b'', content[:100], content[:-30], content.replace(b'dense', b'hence')):
    with pytest.raises(ValueError, match='is damaged'):
      light_encoder.from_bytes(broken)
