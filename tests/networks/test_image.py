from __future__ import annotations

import h5py
import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import encoder as encoders
from tfreid.networks import image

CROP = (64, 32, 3)


@pytest.fixture(scope='module')
def encoder():
  tf.keras.utils.set_random_seed(0)
  return image.image_encoder(CROP, 16)


@pytest.fixture(scope='module')
def pixels():
  return np.random.default_rng(0).uniform(0, 255, (2, *CROP)).astype(np.float32)


def test_pixels_are_normalised_as_keras_normalises_for_its_resnet(pixels):
  expected = tf.keras.applications.resnet50.preprocess_input(pixels.copy())
  np.testing.assert_allclose(image.PixelNormalization()(pixels), expected, rtol=1e-5, atol=1e-4)


def test_concept_is_the_tanh_of_a_linear_layer_on_pooled_features(encoder, pixels):
  features = encoders.features(encoder)
  assert features.output_shape == (None, 2048)
  assert encoder.output_shape == (None, 16)
  kernel, bias = encoder.get_layer('concept').get_weights()
  expected = np.tanh(features(pixels).numpy() @ kernel + bias)
  np.testing.assert_allclose(encoder(pixels), expected, rtol=1e-4, atol=1e-5)


def test_features_are_the_mean_of_the_last_map(encoder, pixels):
  last = tf.keras.Model(encoder.input, encoder.get_layer('conv5_block3_out').output)
  maps = last(pixels).numpy()
  assert maps.shape == (2, 2, 1, 2048)  # 32 times smaller
  found = encoders.features(encoder)(pixels)
  np.testing.assert_allclose(found, maps.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)


def test_features_share_the_encoders_variables(encoder):
  mine = {id(v) for v in encoder.variables}
  assert {id(v) for v in encoders.features(encoder).variables} < mine


def test_every_batch_norm_has_the_momentum_asked_for(encoder):
  norms = [layer for layer in encoder.layers if 'BatchNormalization' in type(layer).__name__]
  assert len(norms) == 53
  assert {layer.momentum for layer in norms} == {0.9}


@pytest.mark.slow
def test_last_stride_doubles_the_last_map_and_changes_no_weight(encoder):
  finer = image.image_encoder(CROP, 16, last_stride=1, activation='linear')
  assert finer.get_layer('conv5_block3_out').output_shape == (None, 4, 2, 2048)
  assert [v.shape for v in finer.weights] == [v.shape for v in encoder.weights]
  assert finer.get_layer('concept').activation is tf.keras.activations.linear


@pytest.mark.slow
@pytest.mark.parametrize('policy', ['mixed_float16', 'mixed_bfloat16'])
def test_body_computes_in_half_precision_and_concepts_in_single(policy):
  tf.keras.mixed_precision.set_global_policy(policy)
  half = image.image_encoder((32, 32, 3), 4)
  assert half.get_layer('conv3_block1_1_conv').compute_dtype == policy[len('mixed_') :]
  assert half.get_layer('features').compute_dtype == 'float32'
  assert half.output.dtype == tf.float32


@pytest.mark.slow
def test_batch_norms_are_global_over_two_replicas(two_devices):
  with tf.distribute.MirroredStrategy(two_devices).scope():
    model = image.image_encoder((32, 32, 3), 4)
  norms = [layer for layer in model.layers if 'BatchNormalization' in type(layer).__name__]
  assert all(layer.synchronized and not layer.fused for layer in norms)


@pytest.mark.parametrize('shape', [(31, 64, 3), (64, 16, 3), (64, 32, 1)])
def test_crop_that_resnet_cannot_take_is_refused(shape):
  with pytest.raises(ValueError, match='at least 32 x 32 pixels.*Raise Pipeline.image_size'):
    image.image_encoder(shape)


# Weights, in the format in which Keras publishes them: generated here, since the published ones
# can be had only from the network.


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """Keras' own ResNet-50 of random weights, and its .h5 files with and without the classifier."""
  folder = tmp_path_factory.mktemp('weights')
  tf.keras.utils.set_random_seed(1)
  whole = tf.keras.applications.ResNet50(weights=None, input_shape=(*CROP[:2], 3), classes=10)
  body = tf.keras.Model(whole.input, whole.get_layer('avg_pool').output)
  rng = np.random.default_rng(0)
  for layer in body.layers:
    if isinstance(layer, tf.keras.layers.BatchNormalization):
      # As after training: fresh averages would hide one that is not loaded.
      layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
      layer.moving_variance.assign(rng.uniform(0.5, 2.0, layer.moving_variance.shape))
    elif isinstance(layer, tf.keras.layers.Conv2D):
      layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))  # they start as zeros
  files = {'with top': folder / 'top.h5', 'without top': folder / 'notop.h5'}
  whole.save_weights(files['with top'])
  body.save_weights(files['without top'])
  return body, files


@pytest.mark.slow
@pytest.mark.parametrize('conv_bias', [True, False])
@pytest.mark.parametrize('form', ['with top', 'without top'])
def test_encoder_with_published_weights_computes_keras_features(form, conv_bias, published, pixels):
  body, files = published
  encoder = image.image_encoder(CROP, 16, weights=str(files[form]), conv_bias=conv_bias)
  convolutions = [x for x in encoder.layers if isinstance(x, tf.keras.layers.Conv2D)]
  assert [x.use_bias for x in convolutions] == [conv_bias] * 53
  expected = body(tf.keras.applications.resnet50.preprocess_input(pixels.copy())).numpy()
  found = encoders.features(encoder)(pixels).numpy()
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.slow
def test_biases_make_no_difference_in_training(published, pixels):
  _, files = published
  batch = np.concatenate([pixels, 255 - pixels])
  found = [
    encoders.features(
      image.image_encoder(CROP, 16, weights=str(files['without top']), conv_bias=conv_bias)
    )(batch, training=True).numpy()
    for conv_bias in (True, False)
  ]
  assert found[0].max() > 0.1
  np.testing.assert_allclose(found[1], found[0], atol=2e-3 * found[0].max())


@pytest.mark.slow
def test_imagenet_asks_keras_for_the_file_without_the_classifier(published, pixels, monkeypatch):
  body, files = published
  asked = []

  def get_file(name, origin, **options):
    asked.append((name, origin, options['file_hash']))
    return str(files['without top'])

  monkeypatch.setattr(tf.keras.utils, 'get_file', get_file)
  encoder = image.image_encoder(CROP, 16, weights='imagenet')
  np.testing.assert_array_equal(
    encoder.get_layer('conv1_conv').get_weights()[0], body.get_layer('conv1_conv').get_weights()[0]
  )
  ((name, origin, digest),) = asked
  assert name == 'resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5'
  assert origin.endswith('/resnet/' + name)
  assert len(digest) == 32


@pytest.fixture
def body():
  """Two layers with names of ResNet-50's: what a file is missing or has in another form."""
  given = tf.keras.Input([8, 8, 3])
  x = tf.keras.layers.Conv2D(4, 3, name='conv1_conv')(given)
  return tf.keras.Model(given, tf.keras.layers.BatchNormalization(name='conv1_bn')(x))


def test_no_network_is_one_clear_message(body, monkeypatch):
  def get_file(*_, **__):
    raise Exception('URL fetch failure: [Errno -2] Name or service not known')  # as Keras does

  monkeypatch.setattr(tf.keras.utils, 'get_file', get_file)
  with pytest.raises(OSError, match='could not be downloaded .*Errno -2.*on a machine with') as e:
    image._load_weights(body, 'imagenet')
  assert 'image_encoder.weights = None trains from scratch' in str(e.value)


def test_missing_weights_file_is_named(body, tmp_path):
  with pytest.raises(FileNotFoundError, match="No ResNet-50 weights at '.*nowhere.h5'"):
    image._load_weights(body, str(tmp_path / 'nowhere.h5'))


def test_file_that_is_not_hdf5_is_refused(body, tmp_path):
  path = tmp_path / 'weights.h5'
  path.write_text('<html>404</html>')
  with pytest.raises(ValueError, match='is not a Keras .h5 weights file'):
    image._load_weights(body, str(path))


def test_weights_of_another_network_are_refused(body, tmp_path):
  """Loading by name would otherwise skip every layer and train from scratch, silently."""
  path = tmp_path / 'other.h5'
  given = tf.keras.Input([8, 8, 3])
  x = tf.keras.layers.Conv2D(4, 3, name='conv1_conv')(given)
  tf.keras.Model(given, x).save_weights(path)
  with pytest.raises(ValueError, match="layer 'conv1_bn' and 0 more of 2 are missing"):
    image._load_weights(body, str(path))


def test_weights_of_another_shape_are_refused(body, tmp_path):
  path = tmp_path / 'other.h5'
  body.save_weights(path)
  with h5py.File(path, 'r+') as file:
    group = file['conv1_conv/conv1_conv']
    del group['kernel:0']
    group['kernel:0'] = np.zeros([3, 3, 3, 5], np.float32)
  with pytest.raises(ValueError, match='do not fit ResNet-50'):
    image._load_weights(body, str(path))


def test_file_without_any_weights_is_refused(body, tmp_path):
  path = tmp_path / 'empty.h5'
  with h5py.File(path, 'w'):
    pass
  with pytest.raises(ValueError, match='does not hold the weights of ResNet-50'):
    image._load_weights(body, str(path))


def test_what_is_taken_from_inside_keras_is_still_there():
  """Keras 2.15's own ResNet is the one part of its inside that is used, and by one file."""
  import inspect
  from pathlib import Path

  from keras.src.applications import resnet

  import tfreid

  package = Path(tfreid.__file__).parent
  users = [
    str(path.relative_to(package))
    for path in package.rglob('*.py')
    if 'from keras.src' in path.read_text(encoding='utf-8')
  ]
  assert users == ['networks/image.py']
  told = (
    'networks/image.py builds its ResNet-50 of it; write these blocks there if Keras drops them'
  )
  stack = inspect.signature(resnet.stack1).parameters
  assert list(stack)[:3] == ['x', 'filters', 'blocks'] and {'stride1', 'name'} <= set(stack), told
  assert {'stack_fn', 'preact', 'use_bias'} <= set(inspect.signature(resnet.ResNet).parameters), (
    told
  )
  assert 'resnet50' in resnet.WEIGHTS_HASHES and resnet.BASE_WEIGHTS_PATH.startswith('https'), told
