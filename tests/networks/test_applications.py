from __future__ import annotations

import sys

import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import applications, encoder

CROP = (32, 32, 3)


def keras_features(name, pixels, weights=None):
  """What Keras's own network makes of its own normalisation of the pixels, and the network."""
  function = getattr(tf.keras.applications, name)
  network = function(include_top=False, weights=weights, input_shape=CROP, pooling='avg')
  prepare = sys.modules[function.__module__].preprocess_input
  return network, lambda: network(prepare(pixels.copy()), training=False).numpy()


@pytest.fixture(scope='module')
def pixels():
  return np.random.default_rng(0).uniform(0, 255, (2, *CROP)).astype(np.float32)


# The normalisation of each: one that is inside, -1 ... 1, ImageNet's deviations, and blue first.
@pytest.mark.parametrize('name', ['MobileNetV3Small', 'MobileNetV2', 'DenseNet121', 'VGG16'])
def test_pixels_are_normalised_as_keras_normalises_for_the_network(name, pixels):
  function = getattr(tf.keras.applications, name)
  expected = sys.modules[function.__module__].preprocess_input(pixels.copy())
  np.testing.assert_allclose(
    applications._normalization(function)(pixels), expected, rtol=1e-5, atol=1e-4
  )


@pytest.mark.parametrize('name', ['MobileNetV3Small', 'ConvNeXtTiny'])
def test_encoder_with_keras_file_computes_keras_features(name, pixels, tmp_path):
  tf.keras.utils.set_random_seed(0)
  network, expected = keras_features(name, pixels)
  network.save_weights(tmp_path / 'weights.h5')
  model = applications.application(CROP, 8, name=name, weights=str(tmp_path / 'weights.h5'))
  found = encoder.features(model)(pixels).numpy()
  np.testing.assert_allclose(found, expected(), rtol=1e-4, atol=1e-4 * np.abs(found).max())
  # Only Keras's own layers, and registered ones: that is what an archive may hold.
  foreign = {type(layer).__name__ for layer in model.layers} - set(dir(tf.keras.layers))
  assert foreign <= {'AffinePixels', 'Arithmetic', 'ChannelScale', 'Functional', 'Sequential'}


@pytest.mark.slow
def test_efficient_nets_published_file_gets_the_factor_that_imagenet_gets(pixels, tmp_path):
  """Keras scales pixels once more for weights='imagenet', but not for the same file by its path."""
  tf.keras.utils.set_random_seed(0)
  network, expected = keras_features('EfficientNetB0', pixels)
  (normalization,) = (x for x in network.layers if type(x).__name__ == 'Normalization')
  mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
  normalization.set_weights([mean, deviation**2, np.int64(1)])
  normalization.finalize_state()
  network.save_weights(tmp_path / 'weights.h5')
  model = applications.application(
    CROP, 8, name='EfficientNetB0', weights=str(tmp_path / 'weights.h5')
  )
  # What Keras makes of pixels that the first layers turn into what they should have been.
  wanted = (pixels / 255 - mean) / deviation / np.sqrt(deviation)
  pixels[...] = 255 * (wanted * deviation + mean)
  given = 255 * ((pixels / 255 - mean) / deviation * np.sqrt(deviation) * deviation + mean)
  np.testing.assert_allclose(encoder.features(model)(given), expected(), rtol=1e-3, atol=1e-4)


def test_what_does_not_go_is_refused_with_advice():
  with pytest.raises(ValueError, match="no network 'ResNet51'. application.name is one of "):
    applications.application(CROP, name='ResNet51')
  with pytest.raises(ValueError, match="no network 'resnet50'"):
    applications.application(CROP, name='resnet50')
  with pytest.raises(ValueError, match='at least 32 x 32 pixels.*Raise Pipeline.image_size'):
    applications.application((64, 16, 3), name='MobileNetV3Small')
  with pytest.raises(ValueError, match='Input size must be at least 75x75.*Raise Pipeline'):
    applications.application(CROP, name='InceptionV3')
  with pytest.raises(FileNotFoundError, match="No weights of VGG16 at '/nowhere.h5'"):
    applications.application(CROP, name='VGG16', weights='/nowhere.h5')


def test_no_network_is_one_clear_message(monkeypatch):
  def unreachable(*_, **__):
    raise Exception('URL fetch failure: [Errno -2] Name or service not known')  # as Keras does

  module = sys.modules[tf.keras.applications.MobileNetV3Small.__module__]
  monkeypatch.setattr(module.data_utils, 'get_file', unreachable)
  with pytest.raises(OSError, match='MobileNetV3Small could not be downloaded .*Errno -2'):
    applications.application(CROP, name='MobileNetV3Small', weights='imagenet')
