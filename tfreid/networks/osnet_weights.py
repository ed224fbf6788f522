"""Weights of torchreid's model zoo for OSNet. Floor 1.

torchreid publishes `.pth` files, which only PyTorch can read; `tools/convert_torchreid.py` makes an
`.npz` file of one, with the same names and layouts. Others publish `.onnx` files made of them, in
which batch norms have become part of the convolutions before them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfreid.networks import batch_norms


def load(model: tf.keras.Model, path: str, *, statistics_from: str | None = None):
  """Gives an OSNet the weights of a file.

  A file without batch norms' statistics, as .onnx files are, leaves open how batch norms and
  convolutions shared the work. `statistics_from` mends that, see `networks.batch_norms`.

  Args:
    model: an image encoder of `osnet.osnet`; its concept layer is left as it is.
    path: an `.onnx` or `.npz` file.
    statistics_from: a folder of crops, of which some are taken where statistics are missing.

  Raises:
    FileNotFoundError: there is no such file.
    ImportError: an `.onnx` file, and the package onnx is not installed.
    ValueError: it is a file of another kind, or of another network.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f"No OSNet weights at '{path}'. osnet.osnet.weights is the path of an .onnx or .npz file, or "
      'None for a random start.'
    )
  ending = os.path.splitext(path)[1].lower()
  if ending == '.npz':
    with np.load(path, allow_pickle=False) as file:
      state = {name.removeprefix('module.'): file[name] for name in file.files}
  elif ending == '.onnx':
    state = _by_name(list(modules(model)), _read_onnx(path), path)
  else:
    raise ValueError(
      f"'{path}' is no .onnx or .npz file. Make an .npz file of torchreid's .pth file with "
      'tools/convert_torchreid.py, which needs PyTorch.'
    )
  folded = [_assign(model, state, name, path) for name in modules(model)]
  if any(folded) and statistics_from is not None:
    images = batch_norms.samples(
      statistics_from, model.input_shape[1:3], 'osnet.osnet.statistics_from'
    )
    batch_norms.calibrate(model, images)


def modules(model: tf.keras.Model) -> Iterator[str]:
  """PyTorch's names of the layers that multiply, in the order in which torchreid calls them."""
  names = {layer.name for layer in model.layers}
  yield 'conv1.conv'
  for stage in (2, 3, 4):
    for block in (0, 1):
      prefix = f'conv{stage}.{block}'
      yield f'{prefix}.conv1.conv'
      for length, stream in enumerate('abcd', start=1):
        for i in range(length):
          lite = f'{prefix}.conv2{stream}' + (f'.{i}' if length > 1 else '')
          yield f'{lite}.conv1'
          yield f'{lite}.conv2'
      yield f'{prefix}.gate.fc1'
      yield f'{prefix}.gate.fc2'
      yield f'{prefix}.conv3.conv'
      if f'conv{stage}_{block}_downsample_conv' in names:
        yield f'{prefix}.downsample.conv'
    if f'conv{stage}_2_0_conv' in names:
      yield f'conv{stage}.2.0.conv'
  yield 'conv5.conv'
  yield 'fc.0'


def _read_onnx(path: str) -> list[dict[str, np.ndarray]]:
  """The weights of each convolution and dense layer of an .onnx file, in the order of the program.

  Names of operations and weights are whatever the exporter made them, so the order it is. A gate
  is called once for each stream, with the same weights. What belongs to a batch norm behind the
  layer is called 'norm.…'.
  """
  try:
    import onnx
    from onnx import numpy_helper
  except ImportError as error:
    raise ImportError(
      f"Reading '{path}' needs the package onnx: pip install 'tfreid[onnx]'."
    ) from error
  graph = onnx.load(path).graph
  values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
  found: list[dict[str, np.ndarray]] = []
  seen: set[str] = set()
  for node in graph.node:
    if node.op_type in ('Conv', 'Gemm') and node.input[1] not in seen:
      seen.add(node.input[1])
      weight = values[node.input[1]]
      transposed = {a.name: a.i for a in node.attribute}.get('transB', 0)
      if node.op_type == 'Gemm' and not transposed:
        weight = weight.T
      layer = {'weight': weight}
      if len(node.input) > 2:
        layer['bias'] = values[node.input[2]]
      found.append(layer)
    elif node.op_type == 'BatchNormalization' and found:
      names = ('weight', 'bias', 'running_mean', 'running_var')
      found[-1].update({f'norm.{n}': values[i] for n, i in zip(names, node.input[1:])})
  return found


def _by_name(
  names: Sequence[str], layers: Sequence[dict[str, np.ndarray]], path: str
) -> dict[str, np.ndarray]:
  """What `_read_onnx` gave, by PyTorch's names."""
  if len(layers) != len(names):
    raise ValueError(
      f"'{path}' has {len(layers)} convolutions and dense layers, but OSNet has {len(names)}. It "
      'is a file of another network.'
    )
  return {
    f'{_norm(name) if key.startswith("norm.") else name}.{key.removeprefix("norm.")}': value
    for name, layer in zip(names, layers)
    for key, value in layer.items()
  }


def _assign(model: tf.keras.Model, state: Mapping[str, np.ndarray], name: str, path: str) -> bool:
  """Sets a layer and the batch norm behind it; returns whether that was part of the layer."""
  layer = model.get_layer(name.replace('.', '_'))
  kernel = _kernel(layer, _taken(state, f'{name}.weight', path))
  _set(
    layer, [kernel, _taken(state, f'{name}.bias', path)] if layer.use_bias else [kernel], name, path
  )
  norm = _norm(name)
  if norm is None:
    return False
  keras_norm = model.get_layer(norm.replace('.', '_'))
  if f'{norm}.running_var' in state:
    parts = ('weight', 'bias', 'running_mean', 'running_var')
    _set(keras_norm, [_taken(state, f'{norm}.{part}', path) for part in parts], norm, path)
    return False
  shift = _taken(state, f'{name}.bias', path)
  ones = np.ones_like(shift)
  _set(keras_norm, [ones, shift, 0.0 * ones, ones - keras_norm.epsilon], norm, path)
  return True


def _norm(name: str) -> str | None:
  """The batch norm behind a layer, by PyTorch's names."""
  parent, _, last = name.rpartition('.')
  if name == 'fc.0':
    return 'fc.1'
  if '.gate.' in name or (last == 'conv1' and '.conv2' in parent):
    return None
  return f'{parent}.bn'


def _is_depthwise(layer: tf.keras.layers.Layer) -> bool:
  return isinstance(layer, tf.keras.layers.DepthwiseConv2D)


def _kernel(layer: tf.keras.layers.Layer, weight: np.ndarray) -> np.ndarray:
  """PyTorch's [out, in, height, width] as Keras has it."""
  if isinstance(layer, tf.keras.layers.Dense):
    return weight.reshape(weight.shape[:2]).T
  if _is_depthwise(layer):
    return weight.transpose(2, 3, 0, 1)  # [channels, 1, height, width]
  return weight.transpose(2, 3, 1, 0)


def _taken(state: Mapping[str, np.ndarray], name: str, path: str) -> np.ndarray:
  if name not in state:
    raise ValueError(
      f"'{path}' has no '{name}' (it has {len(state)} arrays, '{next(iter(state), 'none')}' first)."
      ' It is not a file of OSNet.'
    )
  return state[name]


def _set(layer: tf.keras.layers.Layer, values: Sequence[np.ndarray], name: str, path: str):
  shapes = [weight.shape for weight in layer.get_weights()]
  given = [np.shape(value) for value in values]
  if shapes != given:
    raise ValueError(
      f"'{path}': '{name}' has the shapes {given}, but this OSNet needs {shapes}. Set "
      'osnet.osnet.width to that of the file.'
    )
  layer.set_weights(values)
