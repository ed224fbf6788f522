"""An attribute encoder as arrays: computed by NumPy, where TensorFlow would take long to start.

Floor 0. Descriptions are short, and an attribute encoder is a chain of a few small layers, or some
such chains that end side by side. So an export keeps it a second time, as a file of arrays and a
list of steps, if it consists of layers that are known here; its concepts are compared with the
graph's at the export. Whoever searches an
index by description then needs no TensorFlow.

The file is a NumPy archive: the arrays, and the steps as JSON. It holds no code.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

FILE = 'attribute_encoder.npz'
# The greatest relative difference of a concept from that of the graph.
TOLERANCE = 1e-5

_FORMAT = 1

# Steps between chains: keep what there is under a number, go on from what was kept, go on from
# several of these side by side.
_KEEP, _TAKE, _JOIN = 'keep', 'take', 'join'

# A step: its name, and what it needs. An array is written as its number.
Step = list

_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'linear': lambda x: x,
  'relu': lambda x: np.maximum(x, 0),
  'tanh': np.tanh,
  'sigmoid': lambda x: 1 / (1 + np.exp(-x)),
  'softplus': lambda x: np.logaddexp(x, np.float32(0)),
  'elu': lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


class LightEncoder:
  """Chains of layers, attribute vectors -> concepts.

  Attributes:
    steps: what is done, in order.
    arrays: the weights that the steps name by their numbers, float32.
  """

  def __init__(self, steps: Sequence[Step], arrays: Sequence[np.ndarray]):
    self.steps = [list(step) for step in steps]
    self.arrays = [np.asarray(array, np.float32) for array in arrays]

  def __call__(self, vectors: np.ndarray) -> np.ndarray:
    """Concepts, float32 [B, E], of attribute vectors [B, A].

    Raises:
      ValueError: a number is not finite, or so large that a concept is not.
    """
    x = np.asarray(vectors, np.float32)
    if not np.isfinite(x).all():
      raise ValueError('An attribute vector holds NaN or infinity.')
    kept: dict[int, np.ndarray] = {}
    with np.errstate(over='ignore', invalid='ignore'):
      for name, *settings in self.steps:
        if name == _KEEP:
          kept[settings[0]] = x
        elif name == _TAKE:
          x = kept[settings[0]]
        elif name == _JOIN:
          x = np.concatenate([kept[number] for number in settings[0]], axis=-1)
        else:
          x = np.asarray(_STEPS[name](self.arrays, x, *settings), np.float32)
    if not np.isfinite(x).all():
      raise ValueError(
        'The numbers of an attribute vector are too large: its concept holds NaN or infinity.'
      )
    return x

  def to_bytes(self) -> bytes:
    """The content of the file."""
    file = io.BytesIO()
    about = json.dumps({'format': _FORMAT, 'steps': self.steps})
    arrays = {f'array{i}': array for i, array in enumerate(self.arrays)}
    np.savez(file, about=np.frombuffer(about.encode(), np.uint8), **arrays)
    return file.getvalue()


def from_bytes(content: bytes) -> LightEncoder:
  """The encoder in the content of a file.

  Raises:
    ValueError: it is damaged, or of a later release.
  """
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
      about = json.loads(archive['about'].tobytes())
      if about['format'] != _FORMAT:
        raise ValueError(f'its format is {about["format"]}, and {_FORMAT} is known')
      arrays = [archive[f'array{i}'] for i in range(len(archive.files) - 1)]
    unknown = {step[0] for step in about['steps']} - {*_STEPS, _KEEP, _TAKE, _JOIN}
    if unknown:
      raise ValueError(f'it has the steps {sorted(unknown)}, which are not known')
    return LightEncoder(about['steps'], arrays)
  except (zipfile.BadZipFile, EOFError, OSError, LookupError, TypeError, ValueError) as error:
    raise ValueError(f'{FILE} is damaged: {error}. Export the model again.') from error


def from_structure(structure: str, weights: Sequence[np.ndarray]) -> LightEncoder | None:
  """The encoder of a Keras model of known layers; None for another one.

  Each layer takes what one other gives, or is a concatenation.

  Args:
    structure: the functional model as JSON, as `FoldedEncoder.structure`.
    weights: of its layers, in their order.
  """
  config = json.loads(structure)['config']
  taken = _takers(config['layers'])
  ends = [names[0] for names in config.get('output_layers', ())]
  steps: list[Step] = []
  used = 0
  numbers: dict[str, int] = {}  # of what is kept
  before = None
  for place, layer in enumerate(config['layers']):
    name, inbound = layer['config']['name'], _inbound(layer)
    if layer['class_name'] == 'InputLayer' and before is None and not inbound:
      pass
    elif _kind(layer) == 'Concatenate':
      if layer['config']['axis'] != -1 or not inbound or not numbers.keys() >= {*inbound}:
        return None
      steps.append([_JOIN, [numbers[source] for source in inbound]])
    else:
      make = _LAYERS.get(_kind(layer))
      if make is None or before is None or len(inbound) != 1:
        return None
      if inbound != [before]:
        if inbound[0] not in numbers:
          return None
        steps.append([_TAKE, numbers[inbound[0]]])
      count, step = make(layer['config'], used)
      if step is None:
        return None
      used += count
      steps += step
    before = name
    # What only the next layer takes need not be kept.
    if taken.get(name, []) not in ([], [place + 1]) or _joins(config['layers'], place + 1):
      numbers[name] = len(numbers)
      steps.append([_KEEP, numbers[name]])
  if used != len(weights) or ends != [before]:
    return None
  return LightEncoder(steps, weights)


def _takers(layers: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
  """The places of the layers that take what a layer gives, by its name."""
  taken: dict[str, list[int]] = {}
  for place, layer in enumerate(layers):
    for source in _inbound(layer):
      taken.setdefault(source, []).append(place)
  return taken


def _joins(layers: Sequence[Mapping[str, Any]], place: int) -> bool:
  """Whether the layer at a place is a concatenation."""
  return place < len(layers) and _kind(layers[place]) == 'Concatenate'


def _inbound(layer: Mapping[str, Any]) -> list[str]:
  """The layers that a layer takes its inputs from; more than its calls have is no chain."""
  names = []
  for call in layer.get('inbound_nodes', ()):
    if not isinstance(call, list):
      return ['?', '?']
    for source in call:
      plain = isinstance(source, list) and len(source) == 4 and source[1:] == [0, 0, {}]
      names.append(source[0] if plain else '?')
  return names


def _kind(layer: Mapping[str, Any]) -> str:
  """'Dense' for a layer of Keras, 'tfreid>UnitNorm' for one of this package."""
  registered = layer.get('registered_name')
  return registered if registered else layer['class_name']


def _activation(name: Any) -> list[Step] | None:
  if not isinstance(name, str) or name not in _ACTIVATIONS:
    return None
  return [] if name == 'linear' else [['activation', name]]


def _dense(config, first):
  count = 2 if config['use_bias'] else 1
  activation = _activation(config['activation'])
  bias = first + 1 if config['use_bias'] else None
  return count, None if activation is None else [['dense', first, bias], *activation]


def _batch_norm(config, first):
  # Gamma and beta, where there are any, then mean and variance.
  numbers = iter(range(first, first + 4))
  gamma = next(numbers) if config['scale'] else None
  beta = next(numbers) if config['center'] else None
  mean, variance = next(numbers), next(numbers)
  step = ['batch_norm', gamma, beta, mean, variance, config['epsilon']]
  return variance + 1 - first, [step]


def _relu(config, first):
  plain = config['max_value'] is None and not config['threshold']
  return 0, [['leaky_relu', float(config['negative_slope'] or 0.0)]] if plain else None


def _reading(config, first):
  return 0, [['reading', config['reading'], config['encoding'], list(config['rates'])]]


# A layer's settings and the number of its first weight -> how many it has, and its steps; steps of
# None if it has settings that are not known.
_LAYERS: dict[str, Callable[[Mapping[str, Any], int], tuple[int, list[Step] | None]]] = {
  'Dense': _dense,
  'Activation': lambda config, first: (0, _activation(config['activation'])),
  'ReLU': _relu,
  'LeakyReLU': lambda config, first: (0, [['leaky_relu', float(config['alpha'])]]),
  'BatchNormalization': _batch_norm,
  'Dropout': lambda config, first: (0, []),
  'tfreid>UnitNorm': lambda config, first: (0, [['unit_norm']]),
  'tfreid>PearsonNorm': lambda config, first: (0, [['centre'], ['unit_norm']]),
  'tfreid>Standardization': lambda config, first: (2, [['standardize', first, first + 1]]),
  'tfreid>CentredProjection': lambda config, first: (2, [['project', first, first + 1]]),
  'tfreid>DescriptionReading': _reading,
}


def _compute_dense(arrays, x, kernel, bias):
  product = x @ arrays[kernel]
  return product if bias is None else product + arrays[bias]


def _compute_batch_norm(arrays, x, gamma, beta, mean, variance, epsilon):
  scale = 1 / np.sqrt(arrays[variance] + np.float32(epsilon))
  scale = scale if gamma is None else scale * arrays[gamma]
  shift = 0 if beta is None else arrays[beta]
  return (x - arrays[mean]) * scale + shift


def _unit_norm(x):
  length = np.sqrt(np.maximum((x * x).sum(axis=-1, keepdims=True), np.float32(1e-12)))
  return x / length


def _compute_reading(arrays, x, reading, encoding, rates):
  """As `networks.attribute_scores.DescriptionReading`."""
  off = -1.0 if encoding == 'three_state' else 0.0
  bits = (x > 1.0 - 1e-6).astype(np.float32)
  known = np.maximum(bits, x < off + 1e-6)
  if reading == 'cosine':
    return _unit_norm(known * bits + (1 - known) * np.asarray(rates or [0.5], np.float32))
  return np.concatenate([bits, known], axis=-1) if reading == 'log_likelihood' else bits


_STEPS: dict[str, Callable[..., np.ndarray]] = {
  'dense': _compute_dense,
  'activation': lambda arrays, x, name: _ACTIVATIONS[name](x),
  'leaky_relu': lambda arrays, x, slope: np.where(x > 0, x, x * np.float32(slope)),
  'batch_norm': _compute_batch_norm,
  'unit_norm': lambda arrays, x: _unit_norm(x),
  'centre': lambda arrays, x: x - x.mean(axis=-1, keepdims=True),
  'standardize': lambda arrays, x, mean, deviation: (x - arrays[mean]) / arrays[deviation],
  'project': lambda arrays, x, mean, matrix: (x - arrays[mean]) @ arrays[matrix],
  'reading': _compute_reading,
}
