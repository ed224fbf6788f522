from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import batch_norms, encoder, osnet, osnet_weights

ROOT = Path(__file__).resolve().parents[2]
CROP = (64, 32, 3)


@pytest.fixture(scope='module')
def model():
  """An OSNet whose batch norms have statistics as after training."""
  tf.keras.utils.set_random_seed(0)
  made = osnet.osnet(CROP, 8, width=0.25)
  rng = np.random.default_rng(0)
  for layer in made.layers:
    if isinstance(layer, tf.keras.layers.BatchNormalization):
      shape = layer.gamma.shape
      layer.set_weights([rng.uniform(0.5, 1.5, shape) for _ in range(4)])
  return made


@pytest.fixture(scope='module')
def pixels():
  return np.random.default_rng(1).uniform(0, 255, (4, *CROP)).astype(np.float32)


def state_of(model):
  """The weights by PyTorch's names and in PyTorch's layouts."""
  state = {}
  for name in osnet_weights.modules(model):
    layer = model.get_layer(name.replace('.', '_'))
    kernel = layer.get_weights()[0]
    if isinstance(layer, tf.keras.layers.DepthwiseConv2D):
      kernel = np.moveaxis(kernel, (2, 3), (0, 1))
    elif kernel.ndim == 4:
      kernel = np.moveaxis(kernel, (3, 2), (0, 1))
    else:
      kernel = kernel.T[:, :, None, None] if '.gate.' in name else kernel.T
    state[f'{name}.weight'] = kernel
    if layer.use_bias:
      state[f'{name}.bias'] = layer.get_weights()[1]
  for layer in model.layers:
    if isinstance(layer, tf.keras.layers.BatchNormalization):
      name = 'fc.1' if layer.name == 'fc_1' else layer.name.replace('_', '.')
      for part, value in zip(
        ('weight', 'bias', 'running_mean', 'running_var'), layer.get_weights()
      ):
        state[f'{name}.{part}'] = value
  return state


@pytest.fixture(scope='module')
def converted(model, tmp_path_factory):
  """The .npz file that tools/convert_torchreid.py would make of a checkpoint of these weights."""
  path = tmp_path_factory.mktemp('weights') / 'osnet.npz'
  state = {f'module.{name}': value for name, value in state_of(model).items()}
  np.savez(path, **{**state, 'module.classifier.weight': np.zeros([3, 512], np.float32)})
  return path


def test_converted_checkpoint_gives_the_features(converted, model, pixels):
  loaded = osnet.osnet(CROP, 8, width=0.25, weights=str(converted))
  np.testing.assert_allclose(
    encoder.features(loaded)(pixels), encoder.features(model)(pixels), rtol=1e-5, atol=1e-5
  )


def test_calibration_changes_statistics_and_not_the_function(model, pixels):
  copied = tf.keras.models.clone_model(model)
  copied.set_weights(model.get_weights())
  batch_norms.calibrate(copied, pixels)
  before, after = (encoder.features(m)(pixels).numpy() for m in (model, copied))
  np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3 * before.max())
  # On the images it was calibrated with, training begins with what inference gives.
  training = encoder.features(copied)(pixels, training=True).numpy()
  np.testing.assert_allclose(training, before, rtol=1e-2, atol=1e-2 * before.max())


def test_what_does_not_go_is_refused_with_advice(converted, tmp_path):
  with pytest.raises(FileNotFoundError, match="No OSNet weights at '/nowhere.npz'"):
    osnet.osnet(CROP, width=0.25, weights='/nowhere.npz')
  with pytest.raises(ValueError, match=r'shapes .* but this OSNet needs .*Set osnet.osnet.width'):
    osnet.osnet(CROP, width=0.5, weights=str(converted))
  other = tmp_path / 'other.npz'
  np.savez(other, **{'layer1.weight': np.zeros(3)})
  with pytest.raises(ValueError, match="has no 'conv1.conv.weight'.*not a file of OSNet"):
    osnet.osnet(CROP, width=0.25, weights=str(other))
  pickled = tmp_path / 'osnet.pth'
  pickled.touch()
  with pytest.raises(ValueError, match='tools/convert_torchreid.py, which needs PyTorch'):
    osnet.osnet(CROP, width=0.25, weights=str(pickled))


@pytest.fixture(scope='module')
def published():
  """OSNet x0.25 of torchreid's zoo, beside the checkout: the project does not hold it."""
  path = ROOT.parent / 'shared' / 'photos' / 'weights' / 'osnet_x0_25_msmt17.onnx'
  if not path.is_file():
    if os.environ.get('CI') and (ROOT.parent / 'shared').is_dir():
      pytest.fail(f'no {path}, though {ROOT.parent / "shared"} is there')
    pytest.skip(f'no {path}')
  return path


def test_published_weights_give_the_features_of_onnxruntime(published, tmp_path):
  import onnxruntime
  from PIL import Image

  crop = (256, 128, 3)
  rng = np.random.default_rng(0)
  coarse = rng.uniform(0, 255, (2, 16, 8, 3)).astype(np.float32)
  pixels = tf.image.resize(coarse, crop[:2]).numpy()
  loaded = osnet.osnet(crop, 8, width=0.25, weights=str(published))
  found = encoder.features(loaded)(pixels).numpy()
  session = onnxruntime.InferenceSession(published)
  normalised = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  (expected,) = session.run(None, {'images': normalised.transpose(0, 3, 1, 2).astype(np.float32)})
  assert expected.max() > 1.0
  np.testing.assert_allclose(found, expected, atol=1e-4)

  # With statistics of crops, the function stays, and training begins with it.
  for i in range(4):
    Image.fromarray(pixels[i % 2].astype(np.uint8)).save(tmp_path / f'{i}.{"bmp" if i else "png"}')
  # As in PETA: TensorFlow refuses a BMP file with bytes behind its last row.
  with open(tmp_path / '3.bmp', 'ab') as file:
    file.write(b'\0\0')
  images = batch_norms.samples(tmp_path, crop[:2], 'osnet.osnet.statistics_from')
  assert images.shape == (4, *crop)
  batch_norms.calibrate(loaded, images)
  np.testing.assert_allclose(encoder.features(loaded)(pixels), expected, atol=1e-3)


def test_a_crop_that_cannot_be_read_is_named(tmp_path):
  with pytest.raises(ValueError, match='No image file in .*statistics_from is a folder of crops'):
    batch_norms.samples(tmp_path, CROP[:2], 'osnet.osnet.statistics_from')
  (tmp_path / 'broken.JPG').write_bytes(b'no picture')
  with pytest.raises(ValueError, match=r"broken\.JPG', a crop for osnet\.osnet\.statistics_from: "):
    batch_norms.samples(tmp_path, CROP[:2], 'osnet.osnet.statistics_from')


def test_file_of_another_network_is_refused(tmp_path):
  onnx = pytest.importorskip('onnx')
  weight = onnx.numpy_helper.from_array(np.zeros([4, 3, 1, 1], np.float32), 'w')
  node = onnx.helper.make_node('Conv', ['x', 'w'], ['y'])
  graph = onnx.helper.make_graph([node], 'other', [], [], [weight])
  onnx.save(onnx.helper.make_model(graph), tmp_path / 'other.onnx')
  with pytest.raises(ValueError, match='has 1 convolutions and dense layers, but OSNet has'):
    osnet.osnet(CROP, width=0.25, weights=str(tmp_path / 'other.onnx'))
