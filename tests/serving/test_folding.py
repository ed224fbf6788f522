from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import attribute_scores, conditional_gan, heads, image, two_way, views
from tfreid.serving import folding

layers = tf.keras.layers


def randomise(model, seed=0):
  """Gives every batch norm random scales and shifts, and the statistics of pictures behind them."""
  rng = np.random.default_rng(seed)
  norms = [layer for layer in model.submodules if isinstance(layer, layers.BatchNormalization)]
  for layer in norms:
    size = layer.moving_mean.shape
    if layer.scale:
      layer.gamma.assign(rng.uniform(0.3, 1.5, size) * rng.choice([-1, 1], size))
    if layer.center:
      layer.beta.assign(rng.normal(size=size))
    momentum, layer.momentum = layer.momentum, 0.0
  model(pixels(8, *model.input_shape[1:], seed=seed), training=True)
  for layer in norms:
    layer.momentum = momentum
  return model


def residual_network():
  """A small relative of ResNet: pad, strided convolutions, a shortcut with and without weights."""
  pixels = tf.keras.Input([32, 24, 3])
  x = image.PixelNormalization()(pixels)
  x = layers.ZeroPadding2D(3)(x)
  x = layers.Conv2D(8, 7, strides=2, name='stem')(x)
  x = layers.BatchNormalization(epsilon=1.001e-5)(x)
  x = layers.Activation('relu')(x)
  x = layers.MaxPooling2D(3, strides=2)(x)
  for stride, channels in ((1, 8), (2, 16)):
    shortcut = x
    if stride == 2:
      shortcut = layers.BatchNormalization()(layers.Conv2D(channels, 1, strides=2)(x))
    y = layers.Conv2D(channels, 3, strides=stride, padding='same', use_bias=False)(x)
    y = layers.BatchNormalization(scale=False)(y)
    y = layers.ReLU()(y)
    y = layers.Conv2D(channels, 1)(y)
    y = layers.BatchNormalization(center=False)(y)
    x = layers.Activation('relu')(layers.Add()([shortcut, y]))
  x = layers.GlobalAveragePooling2D()(x)
  return tf.keras.Model(pixels, layers.Dense(6, activation='tanh')(x))


def pixels(*shape, seed=1):
  """Pictures of coloured squares and some noise, 0 ... 255."""
  rng = np.random.default_rng(seed)
  count, height, width, channels = shape
  squares = rng.uniform(0, 255, (count, height // 4, width // 4, channels))
  pictures = squares.repeat(4, axis=1).repeat(4, axis=2)
  noise = rng.normal(0, 10, pictures.shape)
  return np.clip(pictures + noise, 0, 255).astype(np.float32)


def assert_same(model, encoder, images, tolerance):
  expected = model(images, training=False).numpy()
  concepts = encoder(images)
  assert concepts.dtype == tf.float32
  assert folding.relative_errors(concepts, expected).max() < tolerance
  # The comparison must be able to fail: the concepts are neither constant nor saturated.
  assert np.std(expected, axis=0).mean() > 0.02 and np.abs(expected).mean() < 0.95


def test_every_batch_norm_of_a_residual_network_is_folded():
  model = randomise(residual_network())
  encoder = folding.FoldedEncoder(model)
  assert (encoder.num_folded, encoder.num_kept) == (6, 0)
  assert encoder.input_shape == (32, 24, 3) and encoder.size == 6
  assert_same(model, encoder, pixels(5, 32, 24, 3), 1e-5)


def test_bfloat16_keeps_the_concepts_within_its_tolerance_and_its_weights_in_two_bytes():
  model = randomise(residual_network())
  encoder = folding.FoldedEncoder(model, precision='bfloat16')
  assert_same(model, encoder, pixels(5, 32, 24, 3), folding.TOLERANCES['bfloat16'])
  kinds = {variable.dtype for variable in encoder.variables if variable.shape.rank == 4}
  assert kinds == {tf.bfloat16}
  # The concept layer stays in float32.
  assert {v.dtype for v in encoder.variables if v.shape.rank == 2} == {tf.float32}


def test_folding_leaves_the_original_alone_and_does_not_follow_it():
  model = randomise(residual_network())
  images = pixels(2, 32, 24, 3)
  before = [weight.copy() for weight in model.get_weights()]
  expected = model(images, training=False).numpy()
  encoder = folding.FoldedEncoder(model)
  for old, new in zip(before, model.get_weights()):
    np.testing.assert_array_equal(old, new)
  randomise(model, seed=9)
  assert np.abs(model(images, training=False).numpy() - expected).max() > 0.01
  np.testing.assert_allclose(encoder(images), expected, atol=1e-5)


def unfoldable(kind):
  pixels = tf.keras.Input([8, 8, 3])
  if kind == 'activation in between':
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, activation='relu')(pixels))
  elif kind == 'output read twice':
    x = layers.Conv2D(4, 3)(pixels)
    x = layers.Add()([x, layers.BatchNormalization()(x)])
  elif kind == 'layer used twice':
    convolution, norm = layers.Conv2D(3, 3, padding='same'), layers.BatchNormalization()
    x = norm(convolution(layers.ReLU()(convolution(pixels))))
  elif kind == 'norm used twice':
    norm = layers.BatchNormalization()
    x = layers.Add()([norm(layers.Conv2D(4, 3)(pixels)), norm(layers.Conv2D(4, 3)(pixels))])
  elif kind == 'norm first':
    x = layers.Conv2D(4, 3)(layers.BatchNormalization()(pixels))
  elif kind == 'other axis':
    x = layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3)(pixels))
  elif kind == 'transposed':
    x = layers.BatchNormalization()(layers.Conv2DTranspose(4, 3)(pixels))
  elif kind == 'subclass':
    x = layers.BatchNormalization()(DoubledConvolution(4, 3)(pixels))
  return tf.keras.Model(pixels, layers.GlobalMaxPooling2D()(x))


@tf.keras.utils.register_keras_serializable('tests')
class DoubledConvolution(layers.Conv2D):
  def call(self, inputs):
    return 2.0 * super().call(inputs) + 1.0


@pytest.mark.parametrize('precision', folding.PRECISIONS)
@pytest.mark.parametrize(
  'kind',
  [
    'activation in between',
    'output read twice',
    'layer used twice',
    'norm used twice',
    'norm first',
    'other axis',
    'transposed',
    'subclass',
  ],
)
def test_patterns_that_cannot_be_folded_are_kept_and_stay_right(kind, precision):
  model = randomise(unfoldable(kind))
  encoder = folding.FoldedEncoder(model, precision=precision)
  assert (encoder.num_folded, encoder.num_kept) == (0, 1)
  images = pixels(3, 8, 8, 3)
  tolerance = 1e-5 if precision == 'float32' else folding.TOLERANCES['bfloat16']
  errors = folding.relative_errors(encoder(images), model(images, training=False))
  assert errors.max() < tolerance


def test_depthwise_dense_sequential_and_nested_models_are_folded():
  inner = tf.keras.Sequential(
    [
      layers.DepthwiseConv2D(3, depth_multiplier=2),
      layers.BatchNormalization(),
      layers.ReLU(),
    ]
  )
  images = tf.keras.Input([12, 12, 3])
  x = layers.GlobalAveragePooling2D()(inner(images))
  x = layers.BatchNormalization()(layers.Dense(5)(x))
  model = randomise(tf.keras.Model(images, x))
  encoder = folding.FoldedEncoder(model)
  assert (encoder.num_folded, encoder.num_kept) == (2, 0)
  data = pixels(4, 12, 12, 3)
  assert folding.relative_errors(encoder(data), model(data, training=False)).max() < 1e-5


def test_saved_encoder_is_tensors_without_keras_layers(tmp_path):
  encoder = folding.FoldedEncoder(randomise(residual_network()))
  images = pixels(2, 32, 24, 3)
  expected = encoder(images).numpy()
  signature = tf.function(encoder).get_concrete_function(tf.TensorSpec([None, 32, 24, 3]))
  tf.saved_model.save(encoder, str(tmp_path), signatures=signature)
  loaded = tf.saved_model.load(str(tmp_path))
  np.testing.assert_allclose(
    loaded.signatures['serving_default'](tf.constant(images))['output_0'], expected, atol=1e-6
  )
  assert not (tmp_path / 'keras_metadata.pb').exists()


_EMBED_IN_TURNS = """
import sys
import numpy as np
import tensorflow as tf
folder = sys.argv[1]
images = np.load(f'{folder}/images.npy')
models = [tf.saved_model.load(f'{folder}/{name}') for name in 'ab']
# Batches of several sizes: oneDNN may want another layout for another one.
found = [model(tf.constant(images[:size])).numpy() for size in (6, 1, 6) for model in models * 2]
np.savez(f'{folder}/found.npz', *found)
"""


@pytest.mark.slow
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_weights_that_onednn_keeps_are_those_of_each_model(precision, tmp_path):
  # What the tools do that never train, see tfreid/cli/startup.py.
  images = pixels(6, 32, 24, 3)
  np.save(tmp_path / 'images.npy', images)
  encoders = []
  for seed, name in enumerate('ab'):
    model = residual_network()
    randomise(model, seed)
    encoders.append(folding.FoldedEncoder(model, precision=precision))
    module = tf.Module()
    module.encoder = encoders[-1]
    module.__call__ = tf.function(encoders[-1], input_signature=[tf.TensorSpec([None, 32, 24, 3])])
    tf.saved_model.save(module, str(tmp_path / name))
  done = subprocess.run(
    [sys.executable, '-c', _EMBED_IN_TURNS, str(tmp_path)],
    env={**os.environ, 'TF_ONEDNN_ASSUME_FROZEN_WEIGHTS': '1', 'TF_ENABLE_ONEDNN_OPTS': '1'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = list(np.load(tmp_path / 'found.npz').values())
  expected = [
    encoder(tf.constant(images[:size])).numpy() for size in (6, 1, 6) for encoder in encoders * 2
  ]
  # How far bfloat16 rounds depends on the processor's kernels; another model is much farther away.
  tolerance = folding.TOLERANCES[precision]
  assert folding.relative_errors(expected[0], expected[1]).min() > 3 * tolerance
  for one, other in zip(found, expected):
    assert folding.relative_errors(one, other).max() < tolerance


def test_other_things_than_functional_models_are_refused():
  class Subclassed(tf.keras.Model):
    def call(self, inputs):
      return inputs

  with pytest.raises(ValueError, match="functional .* not Subclassed 'subclassed'"):
    folding.FoldedEncoder(Subclassed())
  with pytest.raises(ValueError, match="Unknown precision 'float16'"):
    folding.FoldedEncoder(residual_network(), precision='float16')


@pytest.mark.slow
def test_the_real_image_encoder_is_folded_completely():
  model = randomise(image.image_encoder((64, 64, 3), 16))
  encoder = folding.FoldedEncoder(model)
  assert (encoder.num_folded, encoder.num_kept) == (53, 0)
  assert_same(model, encoder, pixels(3, 64, 64, 3), folding.TOLERANCES['float32'])


def with_layers(model, *added):
  """The model with more layers behind it."""
  outputs = model.output
  for layer in added:
    outputs = layer(outputs)
  return tf.keras.Model(model.input, outputs)


def mean_over_draws():
  """A description, and the mean of what a model makes of it with stored noise."""
  description, noise = tf.keras.Input([3]), tf.keras.Input([2])
  x = layers.BatchNormalization()(layers.Concatenate()([description, noise]))
  inner = tf.keras.Model([description, noise], layers.Dense(6, 'tanh')(x))
  inputs = tf.keras.Input([3])
  over_draws = conditional_gan.MeanOverDraws(inner, draws=4, noise_size=2)
  return tf.keras.Model(inputs, over_draws(inputs))


# Encoders as the methods make them: every layer of this project that an export may hold.
PROJECT = {
  'a unit norm': lambda: heads.unit_norm(residual_network()),
  'a correlation': lambda: with_layers(
    views.view(6, 4, hidden=[5]), views.Standardization(), views.CentredProjection(4)
  ),
  'the two ways': lambda: with_layers(
    two_way.two_way(6, 5, hidden=(8, 4)).image_encoder, two_way.PearsonNorm()
  ),
  'the two ways back': lambda: two_way.two_way(6, 5, hidden=(8, 4)).attribute_encoder,
  'scores': lambda: with_layers(
    attribute_scores.attribute_scores(6, 5), attribute_scores.ImageReading('log_likelihood')
  ),
  'a description': lambda: with_layers(
    tf.keras.Sequential([tf.keras.Input([3]), layers.ReLU()]),
    attribute_scores.DescriptionReading('cosine', rates=(0.1, 0.2, 0.3)),
  ),
  'a mean over draws': mean_over_draws,
}


@pytest.mark.parametrize('name', PROJECT)
def test_every_layer_of_the_project_comes_back_from_structure_and_weights(name):
  model = PROJECT[name]()
  rng = np.random.default_rng(0)
  # So that what a layer makes anew when it is built would not do.
  for variable in model.variables:
    variable.assign(variable + rng.uniform(0.1, 0.5, variable.shape))
  encoder = folding.FoldedEncoder(model)
  values = [weight.numpy() for weight in encoder.weights]
  found = folding.FoldedEncoder.restored(
    encoder.structure, values, precision='float32', num_folded=0, num_kept=0
  )
  inputs = rng.uniform(0, 1, (3, *encoder.input_shape)).astype(np.float32)
  np.testing.assert_array_equal(found(inputs), encoder(inputs))
  np.testing.assert_allclose(found(inputs), model(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('precision', folding.PRECISIONS)
def test_structure_and_weights_are_the_whole_encoder(precision):
  model = randomise(residual_network())
  encoder = folding.FoldedEncoder(model, precision=precision)
  values = [weight.numpy() for weight in encoder.weights]
  found = folding.FoldedEncoder.restored(
    encoder.structure, values, precision=precision, num_folded=7, num_kept=1
  )
  assert found.structure == encoder.structure and found.precision == precision
  assert (found.input_shape, found.size) == (encoder.input_shape, encoder.size)
  assert (found.num_folded, found.num_kept) == (7, 1)
  images = pixels(2, 32, 24, 3)
  np.testing.assert_array_equal(found(images), encoder(images))
  # It has variables of its own.
  found.weights[0].assign_add(tf.ones_like(found.weights[0]))
  assert not np.array_equal(encoder.weights[0].numpy(), found.weights[0].numpy())


def test_weights_of_another_structure_are_refused():
  encoder = folding.FoldedEncoder(residual_network())
  values = [weight.numpy() for weight in encoder.weights]
  options = {'precision': 'float32', 'num_folded': 0, 'num_kept': 0}
  for wrong in (values[:-1], [values[0].astype(np.float16), *values[1:]], values[::-1]):
    with pytest.raises(ValueError, match='of which these .* are not the right ones'):
      folding.FoldedEncoder.restored(encoder.structure, wrong, **options)
