from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import encoder, osnet

CROP = (64, 32, 3)


@pytest.fixture(scope='module')
def small():
  tf.keras.utils.set_random_seed(0)
  return osnet.osnet(CROP, 16, width=0.25)


def test_the_whole_and_the_smallest_have_the_published_number_of_weights(small):
  """The authors count 2.2 and 0.2 million without a classifier."""
  for model, million in ((osnet.osnet(CROP, 16), 2.2), (small, 0.2)):
    variables = encoder.features(model).trainable_variables
    count = sum(int(np.prod(variable.shape)) for variable in variables)
    assert count / 1e6 == pytest.approx(million, abs=0.05)


def test_features_are_512_that_are_not_negative_and_the_concept_a_tanh(small):
  pixels = np.random.default_rng(0).uniform(0, 255, (2, *CROP)).astype(np.float32)
  features = encoder.features(small)(pixels).numpy()
  assert features.shape == (2, 512)
  assert features.min() == 0.0 < features.max()
  kernel, bias = encoder.head(small).get_weights()
  np.testing.assert_allclose(small(pixels), np.tanh(features @ kernel + bias), atol=1e-5)


def test_streams_see_three_to_nine_pixels(small):
  """Of the four streams of a block, the longest gives the largest field of view."""
  maps = [small.get_layer(f'conv4_0_conv2{name}_relu') for name in ('a', 'b_1', 'c_2', 'd_3')]
  block = small.get_layer('conv4_0_conv1_relu').output
  model = tf.keras.Model(block, [layer.output for layer in maps])
  # The network's own map is 4 x 2; the convolutions take any.
  free = tf.keras.models.clone_model(model, input_tensors=tf.keras.Input([21, 21, 32]))
  free.set_weights([np.abs(weight) for weight in model.get_weights()])
  impulse = np.zeros([1, 21, 21, 32], np.float32)
  impulse[:, 10, 10] = 1.0
  for expected, found in zip((3, 5, 7, 9), free(impulse)):
    reached = np.flatnonzero(found.numpy().max(axis=(0, 2, 3)) > 0.0)
    assert reached[-1] - reached[0] + 1 == expected


def test_pixels_are_normalised_as_torchreid_does(small):
  pixels = np.random.default_rng(0).uniform(0, 255, (1, 4, 4, 3)).astype(np.float32)
  expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  np.testing.assert_allclose(small.get_layer('pixel_normalization')(pixels), expected, atol=1e-5)


def test_unknown_width_and_small_crop_are_refused():
  with pytest.raises(ValueError, match='one of 1.0, 0.75, 0.5, 0.25, not 0.3'):
    osnet.osnet(CROP, width=0.3)
  with pytest.raises(ValueError, match='at least 16 x 16 pixels.*Raise Pipeline.image_size'):
    osnet.osnet((64, 12, 3))
