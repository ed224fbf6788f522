"""Saved networks are data: what could run a program is refused before Keras sees it."""

from __future__ import annotations

import copy
import io
import json
import time
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import archive, heads

IMAGE = (8, 8, 3)


@pytest.fixture(scope='module')
def model():
  """A network with nested models, operations as layers, and settings of every kind."""
  keras = tf.keras
  inner = keras.Sequential(
    [keras.Input((6, 6, 4)), keras.layers.Flatten(), keras.layers.Dense(5, activation='tanh')]
  )
  pixels = keras.Input(IMAGE)
  x = keras.layers.Conv2D(
    4, 3, kernel_regularizer='l2', kernel_constraint='max_norm', activation=tf.nn.relu6
  )(pixels / 255.0)
  x = heads.UnitNorm()(inner(heads.batch_norm()(x))[:, 1:])
  return keras.Model(pixels, x)


@pytest.fixture(scope='module')
def saved(model, tmp_path_factory):
  path = tmp_path_factory.mktemp('archive') / 'model.keras'
  model.save(path)
  return path


@pytest.fixture
def changed(saved, tmp_path):
  """changed(function): path of the archive whose configuration the function was called with."""

  def make(change, more=()):
    path = tmp_path / 'changed.keras'
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, 'w') as target:
      for name in source.namelist():
        content = source.read(name)
        if name == 'config.json':
          config = json.loads(content)
          change(config)
          content = json.dumps(config)
        target.writestr(name, content)
      for name, content in more:
        target.writestr(name, content, compress_type=zipfile.ZIP_DEFLATED)
    return path

  return make


def layer(config, kind):
  """A layer's description, wherever it stands."""
  if isinstance(config, list):
    return next(filter(None, (layer(item, kind) for item in config)), None)
  if isinstance(config, dict):
    return config if config.get('class_name') == kind else layer(list(config.values()), kind)
  return None


def test_network_comes_back(model, saved):
  images = np.random.default_rng(0).uniform(0, 255, (2, *IMAGE)).astype(np.float32)
  np.testing.assert_array_equal(archive.load(saved)(images), model(images))


@pytest.mark.parametrize(
  'build',
  ['MobileNetV3Small', 'EfficientNetB0', 'ConvNeXtTiny'],
)
def test_networks_of_keras_are_made_of_what_is_allowed(build):
  network = getattr(tf.keras.applications, build)(weights=None, include_top=False)
  archive.check(json.loads(network.to_json()), build)


def described(module, name, config=None, registered=None):
  config = {} if config is None else config
  return {'module': module, 'class_name': name, 'config': config, 'registered_name': registered}


def command(marker):
  """A Lambda layer that runs a command when Keras builds it, safe mode or not."""
  return {
    'module': 'keras.layers',
    'class_name': 'Lambda',
    'registered_name': None,
    'config': {
      'name': 'innocent',
      'function': described('pydoc', 'function', 'pipepager', 'pipepager'),
      'function_type': 'function',
      'module': 'pydoc',
      'output_shape': None,
      'output_shape_type': 'raw',
      'output_shape_module': None,
      'arguments': {'cmd': f'touch {marker}; cat > /dev/null'},
    },
  }


def test_lambda_layer_that_runs_a_command_is_refused_before_it_runs(changed, tmp_path):
  marker = tmp_path / 'ran'

  def become_lambda(config):
    found = layer(config, 'TFOpLambda')
    found.update(command(marker))
    found['inbound_nodes'] = [[[found['inbound_nodes'][0][0], 0, 0, {}]]]

  path = changed(become_lambda)
  with pytest.raises(ValueError, match=r"refused: it holds the object 'keras.layers.Lambda'"):
    archive.load(path)
  assert not marker.exists()
  with pytest.raises(Exception):  # noqa: B017  (the command's output is no tensor)
    tf.keras.models.load_model(path, compile=False, safe_mode=True)
  for _ in range(200):  # the command is another process
    if marker.exists():
      break
    time.sleep(0.05)
  assert marker.exists()  # so it is a program, and Keras runs it


def put(kind, key, value):
  """A change: what a layer's setting becomes."""
  return lambda config: layer(config, kind)['config'].__setitem__(key, value)


@pytest.mark.parametrize(
  ('change', 'named'),
  [
    # In a nested model, in the place of a setting, deep inside one.
    (lambda c: layer(c, 'Sequential')['config']['layers'].append(command('x')), 'Lambda'),
    (put('Dense', 'activation', described('os', 'function', 'system', 'system')), 'os.system'),
    (put('Dense', 'activation', described('builtins', 'function', 'eval')), 'builtins.eval'),
    (put('Dense', 'kernel_initializer', described('subprocess', 'Popen')), 'subprocess.Popen'),
    (put('Conv2D', 'kernel_regularizer', described('os', 'system')), 'os.system'),
    (put('Conv2D', 'kernel_constraint', {'class_name': 'Popen', 'config': {}}), 'Popen'),
    (put('Conv2D', 'dtype', [{'deep': [described('pickle', 'loads')]}]), 'pickle.loads'),
    # Of Keras itself, but it loads a SavedModel, reads a file, or calls what it is told to.
    (put('Dense', 'bias_initializer', described('keras.layers', 'TFSMLayer')), 'TFSMLayer'),
    (put('Dense', 'bias_initializer', described('keras.layers', 'StringLookup')), 'StringLookup'),
    (put('TFOpLambda', 'function', 'io.write_file'), "operation 'io.write_file'"),
    (put('TFOpLambda', 'function', 'py_function'), "operation 'py_function'"),
    (put('SlicingOpLambda', 'function', 'io.read_file'), "operation 'io.read_file'"),
    # Under another name.
    (lambda c: layer(c, 'Dense').update(registered_name='tests>Evil'), 'Dense'),
    (lambda c: layer(c, 'Dense').update(module='os'), 'os.Dense'),
    (lambda c: layer(c, 'UnitNorm').update(class_name='Evil'), 'tfreid>UnitNorm'),
    (lambda c: layer(c, 'UnitNorm').update(registered_name='tfreid>Evil'), 'tfreid>Evil'),
    (put('Dense', 'x', {'class_name': '__lambda__', 'config': {'value': ''}}), '__lambda__'),
    (
      put('Dense', 'x', {'class_name': '__typespec__', 'spec_name': 'x', 'module': 'os'}),
      '__typespec__',
    ),
    (put('Dense', 'x', {'spec_name': 'x', 'module': 'os'}), 'object'),
    (put('Dense', 'x', {'class_name': ['Lambda'], 'config': {}}), 'object'),
  ],
)
def test_what_names_another_class_function_or_operation_is_refused(change, named, changed):
  with pytest.raises(ValueError, match='is refused: it holds the ') as caught:
    archive.load(changed(change))
  assert named in str(caught.value)


def test_configuration_nested_too_deeply_is_refused(changed):
  def nest(config):
    value = []
    for _ in range(200):
      value = [value]
    layer(config, 'Dense')['config']['x'] = value

  with pytest.raises(ValueError, match='nested too deeply'):
    archive.load(changed(nest))


@pytest.mark.parametrize('change', ['more', 'bomb', 'cut', 'text', 'settings'])
def test_archive_that_is_none_is_refused_with_a_sentence(change, saved, changed, tmp_path):
  path = tmp_path / 'changed.keras'
  if change == 'more':
    path = changed(lambda config: None, more=[('assets/vocabulary.txt', 'a')])
  elif change == 'bomb':
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as target:
      target.writestr('config.json', '{}')
      target.writestr('metadata.json', '{}')
      target.writestr('model.weights.h5', bytes(10_000_000))
  elif change == 'settings':
    path = changed(put('Dense', 'units', 'many'))
  else:
    content = saved.read_bytes()
    path.write_bytes(content[: len(content) // 2] if change == 'cut' else b'no archive')
  with pytest.raises(ValueError, match=r"The network '.*changed.keras' ") as caught:
    archive.load(path)
  assert ('would take 10000000 bytes' in str(caught.value)) == (change == 'bomb')


@pytest.mark.parametrize('kind', ['external', 'link', 'virtual', 'unwritten'])
def test_weights_from_elsewhere_or_of_no_bytes_are_refused(kind, saved, tmp_path):
  """An array may be said to lie in another file, or to be of any size without being written."""
  buffer = io.BytesIO()
  with h5py.File(buffer, 'w') as file:
    if kind == 'external':
      file.create_dataset('x', (3,), 'u1', external=[('/etc/hostname', 0, 3)])
    elif kind == 'link':
      file['x'] = h5py.ExternalLink('/etc/hostname', '/x')
    elif kind == 'virtual':
      layout = h5py.VirtualLayout((3,), 'f4')
      layout[:] = h5py.VirtualSource('/etc/hostname', 'x', (3,))
      file.create_virtual_dataset('x', layout)
    else:
      file.create_dataset('x', (1 << 40,), 'f4')
  path = tmp_path / 'model.keras'
  with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, 'w') as target:
    for name in source.namelist():
      weights = name == 'model.weights.h5'
      target.writestr(name, buffer.getvalue() if weights else source.read(name))
  with pytest.raises(ValueError, match='weights are not all in the file itself'):
    archive.load(path)


def test_own_layer_is_allowed_once_it_is_registered():
  @tf.keras.utils.register_keras_serializable(archive.PACKAGE)
  class OfAnEngineer(tf.keras.layers.Layer):
    pass

  config = tf.keras.utils.serialize_keras_object(OfAnEngineer())
  archive.check(config, 'here')
  other = copy.deepcopy(config)
  other['registered_name'] = 'tfreid>Unknown'
  with pytest.raises(ValueError, match='tfreid>Unknown'):
    archive.check(other, 'here')
