"""Saved networks, opened as data: nothing in the file can run what the project did not write.

A `.keras` archive is a zip file of config.json (layers and their settings), metadata.json and
model.weights.h5. Keras builds whatever class or function config.json names, from any module, and a
Lambda layer holds Python's own byte code; its safe mode stops the latter only. Therefore every
class, function and operation that is named is looked up in the lists below before Keras sees the
file, wherever in the configuration it stands. A layer of the project is allowed by being registered
(`register_keras_serializable('tfreid')`); for one of Keras's own, add its name here.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import tensorflow as tf

PACKAGE = 'tfreid'

# Layers that compute something of their inputs and weights, and do nothing else. Not here: Lambda,
# TFSMLayer, text and look-up layers (they read files), ClassMethod, InstanceMethod and the like.
_LAYERS = (
  *('InputLayer', 'Dense', 'Activation', 'ReLU', 'LeakyReLU', 'PReLU', 'ELU', 'Softmax'),
  *('Conv1D', 'Conv2D', 'Conv2DTranspose', 'DepthwiseConv2D', 'SeparableConv2D'),
  *('BatchNormalization', 'LayerNormalization', 'GroupNormalization', 'UnitNormalization'),
  *('MaxPooling2D', 'AveragePooling2D', 'GlobalMaxPooling2D', 'GlobalAveragePooling2D'),
  *('ZeroPadding2D', 'Cropping2D', 'UpSampling2D', 'Resizing', 'Rescaling', 'Normalization'),
  *('Flatten', 'Reshape', 'Permute', 'RepeatVector', 'Identity', 'Embedding'),
  *('Add', 'Subtract', 'Multiply', 'Average', 'Maximum', 'Minimum', 'Concatenate', 'Dot'),
  *('Dropout', 'SpatialDropout2D', 'GaussianNoise', 'GaussianDropout', 'MultiHeadAttention'),
)
_INITIALIZERS = (
  *('Zeros', 'Ones', 'Constant', 'Identity', 'Orthogonal', 'VarianceScaling'),
  *('RandomNormal', 'RandomUniform', 'TruncatedNormal', 'GlorotNormal', 'GlorotUniform'),
  *('HeNormal', 'HeUniform', 'LecunNormal', 'LecunUniform'),
)
_ACTIVATIONS = (
  *('relu', 'relu6', 'elu', 'selu', 'gelu', 'swish', 'silu', 'mish', 'leaky_relu', 'linear'),
  *('tanh', 'sigmoid', 'hard_sigmoid', 'softmax', 'softplus', 'softsign', 'exponential'),
)
# Operations as layers: what arithmetic and slicing of symbolic tensors become. By TensorFlow's
# names; each is a function of numbers that reads and writes nothing else.
_OPERATIONS = (
  *(
    '__operators__.add',
    '__operators__.getitem',
    'cast',
    'clip_by_value',
    'concat',
    'convert_to_tensor',
  ),
  *('expand_dims', 'identity', 'reshape', 'squeeze', 'stack', 'transpose', 'split', 'tile'),
  *(f'math.{name}' for name in ('add', 'subtract', 'multiply', 'truediv', 'divide', 'negative')),
  *(f'math.{name}' for name in ('maximum', 'minimum', 'abs', 'exp', 'log', 'sqrt', 'rsqrt')),
  *(f'math.{name}' for name in ('square', 'pow', 'tanh', 'sigmoid', 'l2_normalize', 'softplus')),
  *(f'math.reduce_{name}' for name in ('mean', 'sum', 'max', 'min', 'variance')),
  *(f'nn.{name}' for name in ('relu', 'relu6', 'leaky_relu', 'elu', 'gelu', 'silu', 'softmax')),
  *(
    'nn.avg_pool2d',
    'nn.max_pool2d',
    'nn.avg_pool',
    'nn.max_pool',
    'nn.softplus',
    'nn.swish',
    'linalg.matmul',
    'linalg.l2_normalize',
  ),
  *('compat.v1.shape', 'shape', 'image.resize', 'zeros_like', 'ones_like', 'nn.l2_normalize'),
)
# (module, class) of what Keras writes with its own modules.
_CLASSES = frozenset(
  [
    *(('keras.layers', name) for name in _LAYERS),
    *(('keras.layers.experimental', name) for name in ('SyncBatchNormalization',)),
    *(('keras.layers.experimental.preprocessing', name) for name in ('Rescaling', 'Normalization')),
    *(('keras.initializers', name) for name in _INITIALIZERS),
    *(('keras.regularizers', name) for name in ('L1', 'L2', 'L1L2', 'OrthogonalRegularizer')),
    *(('keras.constraints', name) for name in ('MaxNorm', 'MinMaxNorm', 'NonNeg', 'UnitNorm')),
    ('keras.mixed_precision', 'Policy'),
    ('keras', 'Sequential'),
    ('keras', 'Model'),
    ('keras.src.engine.functional', 'Functional'),
    ('keras.src.applications.convnext', 'LayerScale'),
    ('keras.src.applications.convnext', 'StochasticDepth'),
    ('keras.src.layers.core.tf_op_layer', 'TFOpLambda'),
    ('keras.src.layers.core.tf_op_layer', 'SlicingOpLambda'),
  ]
)
_WITHOUT_MODULE = (*_LAYERS, *_INITIALIZERS, 'Functional', 'Sequential')
_FUNCTION_MODULES = ('keras.activations', 'builtins')
_VALUES = ('__tensor__', '__numpy__', '__ellipsis__')

_MEMBERS = {'config.json': 64 << 20, 'metadata.json': 1 << 20, 'model.weights.h5': 16 << 30}
_MOST_INFLATED = 50  # times its size in the archive
_DEEPEST = 100  # dictionaries and lists in each other
# Policies of training, and the type of the layers of an export in bfloat16.
_HALF = ('mixed_float16', 'mixed_bfloat16', 'bfloat16')


def load(path: str | os.PathLike) -> tf.keras.Model:
  """The network in a `.keras` archive, computing in float32 whatever policy trained it.

  Variables are float32 under a mixed policy, so only the layers' compute type changes; half
  precision on a CPU would be both slow and coarser than what evaluation promises.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, or holds what `check` refuses.
  """
  path = os.fspath(path)
  try:
    config, members = _members(path)
    check(config, path)
    # Not the file itself, but what was checked, in a folder whose name TensorFlow understands.
    with tempfile.TemporaryDirectory(prefix='tfreid-') as folder:
      copy = os.path.join(folder, 'model.keras')
      with zipfile.ZipFile(copy, 'w') as archive:
        archive.writestr('config.json', json.dumps(in_float32(config)))
        for name, content in members.items():
          archive.writestr(name, content)
      return tf.keras.models.load_model(copy, compile=False, safe_mode=True)
  except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
    raise ValueError(f"The network '{path}' is no whole archive: {error}.") from error
  except (LookupError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
    # Of a configuration that is not Keras's own it says many things.
    words = ' '.join(str(error).split())[:300]
    raise ValueError(
      f"The network '{path}' cannot be built: {words or type(error).__name__}."
    ) from error


def check(config: Any, source: str) -> None:
  """Refuses a configuration of Keras that names anything but the layers the project writes.

  Args:
    config: of a model, as in config.json or from `get_config`.
    source: where it is from, for the message.

  Raises:
    ValueError: it names another class, function or operation, or is nested too deeply.
  """
  for described in _described(config, source):
    objection = _objection(described)
    if objection:
      raise ValueError(
        f"'{source}' is refused: it holds {objection}, which is not among what tfreid's networks "
        'are made of and could run any program. Use it only if you trust where it comes from: then '
        'load it with Keras yourself. A layer of your own is allowed once it is registered '
        f"(tf.keras.utils.register_keras_serializable('{PACKAGE}')) or named in "
        'tfreid/networks/archive.py.'
      )


def in_float32(config: Any) -> Any:
  """The configuration of a network that computes in float32 whatever precision it had."""
  if isinstance(config, dict):
    return {key: in_float32(value) for key, value in config.items()}
  if isinstance(config, list):
    return [in_float32(value) for value in config]
  return 'float32' if config in _HALF else config


def _described(value: Any, source: str) -> Iterator[Mapping[str, Any]]:
  """Yields each dictionary that describes an object, wherever it stands; none by recursion."""
  waiting = [(value, 0)]
  while waiting:
    value, depth = waiting.pop()
    if depth > _DEEPEST:
      raise ValueError(f"'{source}' is refused: its configuration is nested too deeply.")
    if isinstance(value, Mapping):
      if 'class_name' in value or 'spec_name' in value:
        yield value
      waiting += [(item, depth + 1) for item in value.values()]
    elif isinstance(value, (list, tuple)):
      waiting += [(item, depth + 1) for item in value]


def _objection(described: Mapping[str, Any]) -> str:
  """What is wrong with one described object; '' if nothing."""
  name, module = described.get('class_name'), described.get('module')
  registered = described.get('registered_name')
  shown = f"'{module}.{name}'" if module else f"'{name}'"
  if not isinstance(name, str) or not isinstance(module, (str, type(None))):
    return f'the object {shown}'
  if name in _VALUES and module is None:
    return ''
  if name == 'function':
    known = module in _FUNCTION_MODULES and described.get('config') in _ACTIVATIONS
    same = registered in (None, 'function', described.get('config'))
    return '' if known and same else f"the function '{module}.{described.get('config')}'"
  if isinstance(registered, str) and registered.startswith(f'{PACKAGE}>'):
    known = tf.keras.utils.get_registered_object(registered)
    return '' if getattr(known, '__name__', None) == name else f"the object '{registered}'"
  # Without a module Keras looks among its own classes only.
  known = (module, name) in _CLASSES or (module is None and name in _WITHOUT_MODULE)
  if not known or registered not in (None, name) or described.get('config') is None:
    return f'the object {shown}'
  if name in ('TFOpLambda', 'SlicingOpLambda'):
    operation = (
      described['config'].get('function') if isinstance(described['config'], Mapping) else ''
    )
    return '' if operation in _OPERATIONS else f"the operation '{operation}'"
  return ''


def _members(path: str) -> tuple[Any, dict[str, bytes]]:
  """The configuration, and the other members of an archive, their sizes bounded."""
  with zipfile.ZipFile(path) as archive:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if set(entries) != set(_MEMBERS) or len(entries) != len(archive.infolist()):
      raise ValueError(
        f"The network '{path}' holds {sorted(entries)[:6]}; expected {sorted(_MEMBERS)}."
      )
    for name, entry in entries.items():
      most = min(_MEMBERS[name], 1000 + _MOST_INFLATED * entry.compress_size)
      if entry.file_size > most:
        raise ValueError(
          f"The network '{path}' is refused: {name} would take {entry.file_size} bytes, more than "
          f'the {most} that are expected of it.'
        )
    members = {name: archive.read(entry) for name, entry in entries.items()}
  try:
    config = json.loads(members.pop('config.json'))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"The network '{path}' has a damaged config.json: {error}.") from error
  _check_weights(members['model.weights.h5'], path)
  return config, members


def _check_weights(content: bytes, path: str) -> None:
  """Refuses arrays that are not in the file byte for byte: HDF5 can point to other files."""
  plain = True

  def visit(group):
    nonlocal plain
    for name in group:
      if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        plain = False
      elif isinstance(group[name], h5py.Group):
        visit(group[name])
      else:
        array = group[name]
        size = array.size * array.dtype.itemsize
        plain &= not array.external and not array.is_virtual and array.id.get_storage_size() == size

  try:
    with h5py.File(io.BytesIO(content), 'r') as file:
      visit(file)
  except (OSError, RuntimeError, KeyError, RecursionError) as error:
    raise ValueError(f"The network '{path}' has damaged weights: {error}.") from error
  if not plain:
    raise ValueError(
      f"The network '{path}' is refused: its weights are not all in the file itself."
    )
