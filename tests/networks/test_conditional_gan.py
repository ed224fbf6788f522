from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import conditional_gan


@pytest.mark.parametrize(
  ('image_shape', 'at_most', 'stages'),
  [
    ((64, 32, 3), 5, 4),
    ((128, 64, 3), 5, 5),
    ((256, 128, 3), 6, 6),
    ((256, 128, 3), 5, 5),
    ((160, 64, 3), 5, 5),  # 40 times the start map: 32 is nearer than 64 on a scale of doublings
    ((32, 32, 3), 5, 3),
    ((4, 2, 3), 5, 1),
  ],
)
def test_number_of_stages_is_the_nearest_to_the_crops_height(image_shape, at_most, stages):
  found = conditional_gan.nearest_stages(image_shape, start=(4, 2), at_most=at_most)
  assert found == stages


def test_no_stage_at_all_is_refused():
  with pytest.raises(ValueError, match='at least one stage'):
    conditional_gan.nearest_stages((64, 32, 3), start=(4, 2), at_most=0)


@pytest.mark.parametrize(
  ('start', 'stages', 'shape'),
  [((4, 2), 4, (64, 32)), ((4, 2), 5, (128, 64)), ((4, 4), 3, (32, 32)), ((3, 1), 1, (6, 2))],
)
def test_images_are_the_start_map_doubled_once_per_stage(start, stages, shape):
  generator = conditional_gan.generator(
    5, 7, start=start, stages=stages, width=2, description_size=4
  )
  discriminator = conditional_gan.discriminator(
    5, start=start, stages=stages, width=2, description_size=4
  )
  rng = np.random.default_rng(0)
  attributes = rng.integers(0, 2, (3, 5)).astype(np.float32)
  images = generator([attributes, rng.normal(size=(3, 7)).astype(np.float32)], training=True)
  assert images.shape == (3, *shape, 3)
  assert np.abs(images).max() < 1.0
  assert discriminator([images, attributes]).shape == (3, 1)


@pytest.fixture(scope='module')
def networks():
  tf.keras.utils.set_random_seed(0)
  sizes = {'start': (4, 2), 'stages': 3, 'description_size': 8}
  return (
    conditional_gan.generator(5, 7, width=16, **sizes),
    conditional_gan.discriminator(5, width=16, **sizes),
  )


def test_generated_images_depend_on_the_description_and_on_the_noise(networks):
  generator, _ = networks
  attributes = np.eye(5, dtype=np.float32)[:2]
  noise = np.random.default_rng(0).normal(size=(2, 7)).astype(np.float32)
  same = generator([attributes[[0, 0]], noise[[0, 0]]]).numpy()
  np.testing.assert_allclose(same[0], same[1], atol=1e-6)
  for inputs in ([attributes, noise[[0, 0]]], [attributes[[0, 0]], noise]):
    images = generator(inputs).numpy()
    assert np.abs(images[0] - images[1]).max() > 1e-6


def test_verdicts_depend_on_the_image_and_on_the_description(networks):
  _, discriminator = networks
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (2, 32, 16, 3)).astype(np.float32)
  attributes = np.eye(5, dtype=np.float32)[:2]
  for inputs in ([images[[0, 0]], attributes], [images, attributes[[0, 0]]]):
    logits = discriminator(inputs).numpy()
    assert abs(logits[0, 0] - logits[1, 0]) > 1e-6


def test_fresh_weights_are_those_of_the_published_code(networks):
  """Kernels N(0, 0.02), batch norm scales N(1, 0.02), no convolution biases."""
  for network in networks:
    kernels, scales = [], []
    for layer in network.layers:
      if isinstance(layer, (tf.keras.layers.Conv2D, tf.keras.layers.Conv2DTranspose)):
        assert not layer.use_bias
        kernels.append(layer.kernel.numpy().ravel())
      if isinstance(layer, tf.keras.layers.BatchNormalization):
        scales.append(layer.gamma.numpy())
    kernels, scales = np.concatenate(kernels), np.concatenate(scales)
    assert abs(kernels.mean()) < 1e-3
    assert abs(kernels.std() - 0.02) < 1e-3
    assert abs(scales.mean() - 1.0) < 0.01
    assert abs(scales.std() - 0.02) < 0.005
    # Every kernel is drawn by itself: none begins as another one does.
    first = [
      layer.kernel.numpy().ravel()[0] for layer in network.layers if hasattr(layer, 'kernel')
    ]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize(('down', 'across'), [(2, 2), (4, 4), (3, 1)])
def test_crops_are_shrunk_by_whole_factors_to_means_of_pixels(down, across):
  size = (4, 3)
  shape = (2, size[0] * down, size[1] * across, 3)
  pixels = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
  means = pixels.reshape(2, size[0], down, size[1], across, 3).mean(axis=(2, 4))
  found = conditional_gan.to_generated_range(tf.constant(pixels), size)
  np.testing.assert_allclose(found, means / 127.5 - 1.0, atol=1e-5)


@pytest.mark.parametrize('shape', [(11, 7), (4, 9), (3, 2)])
def test_an_even_crop_stays_even_in_any_size(shape):
  pixels = np.full((1, *shape, 3), 51.0, np.float32)
  found = conditional_gan.to_generated_range(tf.constant(pixels), (4, 3))
  np.testing.assert_allclose(found, np.full((1, 4, 3, 3), -0.6), atol=1e-6)


def test_pixels_of_generated_images_are_the_inverse_of_the_generated_range():
  pixels = np.random.default_rng(0).uniform(0, 255, (2, 8, 4, 3)).astype(np.float32)
  ranged = conditional_gan.to_generated_range(tf.constant(pixels), (8, 4))
  assert np.abs(ranged).max() <= 1.0
  np.testing.assert_allclose(conditional_gan.GeneratedPixels(8, 4)(ranged), pixels, atol=1e-4)
  resized = conditional_gan.GeneratedPixels(16, 16)(ranged)
  assert resized.shape == (2, 16, 16, 3)
  assert 0.0 <= np.min(resized) and np.max(resized) <= 255.0


@pytest.fixture(scope='module')
def over_draws():
  """A small model of description and noise, and the mean over four draws of it."""
  attributes, noise = tf.keras.Input([3]), tf.keras.Input([2])
  x = tf.keras.layers.Concatenate()([attributes, noise])
  x = tf.keras.layers.BatchNormalization()(x)
  inner = tf.keras.Model([attributes, noise], tf.keras.layers.Dense(6, 'tanh', dtype='float32')(x))
  layer = conditional_gan.MeanOverDraws(inner, draws=4, noise_size=2, seed=3)
  descriptions = tf.keras.Input([3])
  return inner, layer, tf.keras.Model(descriptions, layer(descriptions))


def test_mean_over_draws_is_the_mean_over_the_stored_noise(over_draws):
  inner, layer, model = over_draws
  descriptions = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  noise = layer.noise.numpy()
  assert noise.shape == (4, 2)
  assert len(np.unique(noise)) == 8
  one_by_one = [inner([descriptions, np.repeat(noise[i : i + 1], 5, axis=0)]) for i in range(4)]
  np.testing.assert_allclose(model(descriptions), np.mean(one_by_one, axis=0), atol=1e-6)
  np.testing.assert_array_equal(model(descriptions), model(descriptions))
  assert model(descriptions[:0]).shape == (0, 6)


def test_mean_over_draws_is_float32_whatever_the_precision_of_the_model():
  tf.keras.mixed_precision.set_global_policy('mixed_float16')
  try:
    generator = conditional_gan.generator(3, 2, stages=1, width=2, description_size=4)
  finally:
    tf.keras.mixed_precision.set_global_policy('float32')
  images = tf.keras.layers.Flatten()(generator.output)
  layer = conditional_gan.MeanOverDraws(
    tf.keras.Model(generator.inputs, images), draws=3, noise_size=2
  )
  assert generator.get_layer('stage1').compute_dtype == 'float16'
  assert layer(np.eye(3, dtype=np.float32)).dtype == tf.float32


def test_mean_over_draws_stays_in_inference_mode(over_draws):
  inner, _, model = over_draws
  (norm,) = (x for x in inner.layers if isinstance(x, tf.keras.layers.BatchNormalization))
  before = norm.moving_mean.numpy()
  model(np.full((2, 3), 9.0, np.float32), training=True)
  np.testing.assert_array_equal(norm.moving_mean, before)


def test_mean_over_draws_is_saved_with_its_noise(over_draws, tmp_path):
  _, layer, model = over_draws
  layer.noise.assign(layer.noise + 1.0)  # so that drawing anew by the seed would not do
  model.save(tmp_path / 'model.keras')
  loaded = tf.keras.models.load_model(tmp_path / 'model.keras')
  descriptions = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
  np.testing.assert_array_equal(loaded(descriptions), model(descriptions))


def test_a_mean_over_no_draws_is_refused(over_draws):
  with pytest.raises(ValueError, match='At least one noise draw'):
    conditional_gan.MeanOverDraws(over_draws[0], draws=0, noise_size=2)
