"""Inference-only encoders: batch norms folded into the convolutions before them. Floor 2.

In inference mode a batch norm is an affine map per channel,

    y = gamma (x - mean) / sqrt(variance + epsilon) + beta,

and a convolution that nothing else reads can do it itself: with s = gamma / sqrt(variance +
epsilon) its kernel becomes W s and its bias (b - mean) s + beta. What then remains of a
residual block is what TensorFlow's graph optimiser fuses: convolution, bias, ReLU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfreid.networks import archive, flip

PRECISIONS = ('float32', 'bfloat16')

# The greatest relative error ||folded - original|| / ||original|| of a concept that an export
# accepts. float32 differs by the order of operations only; bfloat16 has 8 significant bits.
TOLERANCES = {'float32': 1e-4, 'bfloat16': 3e-2}

# Exact types: a subclass may compute something else.
FOLDABLE = (
  tf.keras.layers.Conv1D,
  tf.keras.layers.Conv2D,
  tf.keras.layers.Conv3D,
  tf.keras.layers.DepthwiseConv2D,
  tf.keras.layers.Dense,
)
# Layers whose arithmetic may be done in bfloat16, beside those that say so by an attribute
# `reducible` (tfreid/networks/encoder.py). All others stay in float32: the pixel normalisation, the
# global pooling, the concept layer, and what is not known.
_REDUCIBLE = (
  tf.keras.layers.Conv1D,
  tf.keras.layers.Conv2D,
  tf.keras.layers.Conv3D,
  tf.keras.layers.DepthwiseConv2D,
  tf.keras.layers.ZeroPadding2D,
  tf.keras.layers.MaxPooling2D,
  tf.keras.layers.AveragePooling2D,
  tf.keras.layers.Activation,
  tf.keras.layers.ReLU,
  tf.keras.layers.LeakyReLU,
  tf.keras.layers.Add,
  tf.keras.layers.Multiply,
  tf.keras.layers.Concatenate,
)


class FoldedEncoder(tf.Module):
  """A Keras model for inference only, with its batch norms folded where that is possible.

  Its weights are variables of its own in float32 or bfloat16, not constants of a graph; it shares
  none with a model it changed anything about, so training on does not reach it.

  Attributes:
    precision: of the convolutions, 'float32' or 'bfloat16'. Inputs and outputs are float32.
    num_folded: number of batch norms that were folded.
    num_kept: number of batch norms that were not.
    input_shape: of one input, (height, width, 3) or (A,).
    size: E, number of outputs.
    weights: its variables, in the order of the layers.
    structure: its layers and their settings, as JSON.
  """

  def __init__(self, model: tf.keras.Model, *, precision: str = 'float32'):
    """Folds a copy of `model`.

    Args:
      model: functional or sequential, one input, one output. A layer or a pattern that is not
        known is kept as it is.
      precision: 'float32' or 'bfloat16'.

    Raises:
      ValueError: an unknown precision, or not a functional model with one input and output.
    """
    super().__init__(name='folded_encoder')
    if precision not in PRECISIONS:
      raise ValueError(f"Unknown precision '{precision}'; choose from {PRECISIONS}.")
    if not _is_functional(model) or len(model.inputs) != 1 or len(model.outputs) != 1:
      raise ValueError(
        'Only a functional Keras model with one input and one output can be folded, not '
        f"{type(model).__name__} '{model.name}'."
      )
    folded = _folded(model, precision)
    batch_norms = sum(map(_is_batch_norm, _layers(model)))
    self.num_kept = sum(map(_is_batch_norm, _layers(folded)))
    self.num_folded = batch_norms - self.num_kept
    self._take(folded, folded.to_json(), precision)

  @classmethod
  def restored(
    cls,
    structure: str,
    weights: Sequence[np.ndarray],
    *,
    precision: str,
    num_folded: int,
    num_kept: int,
  ) -> FoldedEncoder:
    """The encoder that had this structure and the values of these weights.

    Args:
      structure: its `structure`.
      weights: the values of its `weights`, of their types.
      precision: its `precision`.
      num_folded: its `num_folded`.
      num_kept: its `num_kept`.

    Raises:
      ValueError: the weights are not those of the structure, or a layer is not known.
    """
    folded = layers_of(structure)
    shapes = [(variable.dtype.name, tuple(variable.shape)) for variable in folded.weights]
    given = [(weight.dtype.name, weight.shape) for weight in weights]
    if shapes != given:
      raise ValueError(
        f'The layers take {len(shapes)} weights, of which these {len(given)} are not the right '
        f'ones: {set(shapes) ^ set(given) or "their order differs"}.'
      )
    for variable, weight in zip(folded.weights, weights):
      variable.assign(weight)
    encoder = cls.__new__(cls)
    tf.Module.__init__(encoder, name='folded_encoder')
    encoder.num_folded, encoder.num_kept = num_folded, num_kept
    # As it was given: another version of Keras may write it otherwise, and it is in fingerprints.
    encoder._take(folded, structure, precision)
    return encoder

  def _take(self, folded, structure, precision):
    self.precision = precision
    self.input_shape = tuple(folded.input_shape[1:])
    self.size = int(folded.output_shape[-1])
    # The variables are tracked, the Keras layers are not: saving would trace each of them.
    self.weights = list(folded.weights)
    self.structure = structure
    self._function = lambda inputs: folded(inputs, training=False)

  def layers(self) -> tf.keras.Model:
    """Its layers, with variables of their own and the values of these."""
    model = layers_of(self.structure)
    for variable, value in zip(model.weights, self.weights):
      variable.assign(tf.cast(value, variable.dtype))
    return model

  def with_flip_test(self) -> FoldedEncoder:
    """The image encoder with the flip test, see `tfreid.networks.flip`; with its own variables.

    Raises:
      ValueError: it has the flip test already.
    """
    model = flip.with_flip_test(self.layers())
    return FoldedEncoder.restored(
      model.to_json(),
      [variable.numpy() for variable in model.weights],
      precision=self.precision,
      num_folded=self.num_folded,
      num_kept=self.num_kept,
    )

  def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
    """Concepts, float32 [B, E], of a float32 batch of what the model takes."""
    return tf.cast(self._function(inputs), tf.float32)


def layers_of(structure: str) -> tf.keras.Model:
  """The Keras model of a `FoldedEncoder.structure`, with weights that are not its own yet.

  Raises:
    ValueError: a layer is not known.
  """
  archive.check(json.loads(structure), 'the structure of the encoder')
  return tf.keras.models.model_from_json(structure)


def relative_errors(concepts: np.ndarray, references: np.ndarray) -> np.ndarray:
  """||concept - reference|| / ||reference|| of each row, float64 [B], of two [B, E]."""
  references = np.asarray(references, np.float64)
  difference = np.linalg.norm(np.asarray(concepts, np.float64) - references, axis=-1)
  return difference / np.maximum(np.linalg.norm(references, axis=-1), 1e-12)


def _is_functional(layer) -> bool:
  return isinstance(layer, tf.keras.Model) and getattr(layer, '_is_graph_network', False)


def _is_reducible(layer) -> bool:
  if type(layer) not in _REDUCIBLE and not getattr(layer, 'reducible', False):
    return False
  # Maps only. What comes behind a global pooling, the features or a gate of the channels, costs
  # next to nothing, and much depends on it.
  shapes = [node.output_shapes for node in layer.inbound_nodes]
  return any(len(shape) > 2 and set(shape[1:-1]) != {1} for shape in shapes)


def _is_batch_norm(layer) -> bool:
  # Synchronisation over replicas is a matter of training.
  return type(layer) in (
    tf.keras.layers.BatchNormalization,
    tf.keras.layers.experimental.SyncBatchNormalization,
  )


def _layers(model) -> Iterator[tf.keras.layers.Layer]:
  """All layers, those of nested models too."""
  for layer in model.layers:
    if isinstance(layer, tf.keras.Model):
      yield from _layers(layer)
    else:
      yield layer


def _folded(model: tf.keras.Model, precision: str) -> tf.keras.Model:
  """A copy of the model in which foldable pairs are one layer and an identity."""
  pairs = list(_pairs(model))
  folding = {producer.name: norm for producer, norm in pairs}
  identities = {norm.name: producer for producer, norm in pairs}
  kernels = {}

  def clone(layer):
    if layer.name in identities:
      # Of the type that comes in, so that nothing is converted.
      kind = precision if _is_reducible(identities[layer.name]) else 'float32'
      return tf.keras.layers.Activation('linear', name=layer.name, dtype=kind)
    if _is_functional(layer):
      return _folded(layer, precision)
    reduced = precision == 'bfloat16' and _is_reducible(layer)
    if layer.name not in folding and not reduced:
      # A fresh layer of the same weights: the original must not get new nodes in its graph.
      copy = layer.__class__.from_config(layer.get_config())
      kernels[copy] = layer.get_weights()
      return copy
    config = layer.get_config()
    config['dtype'] = precision if reduced else 'float32'
    if layer.name in folding:
      config['use_bias'] = True
      weights = _fold(layer, folding[layer.name])
    else:
      weights = layer.get_weights()
    copy = layer.__class__.from_config(config)
    kernels[copy] = weights
    return copy

  copied = tf.keras.models.clone_model(model, clone_function=clone)
  for layer, weights in kernels.items():
    for variable, value in zip(layer.weights, weights):
      variable.assign(tf.cast(value, variable.dtype))
  return copied


def _pairs(model) -> Iterator[tuple[tf.keras.layers.Layer, tf.keras.layers.Layer]]:
  """The layers that can take over the batch norm behind them, with that batch norm."""
  outputs = {id(tensor) for tensor in model.outputs}
  nodes = {id(node) for depth in model._nodes_by_depth.values() for node in depth}

  def uses(all_nodes):
    return [node for node in all_nodes if id(node) in nodes]

  for norm in model.layers:
    if not _is_batch_norm(norm) or len(uses(norm.inbound_nodes)) != 1:
      continue
    producer = uses(norm.inbound_nodes)[0].inbound_layers
    if isinstance(producer, list) or type(producer) not in FOLDABLE:
      continue
    if (
      len(uses(producer.inbound_nodes)) == 1
      and len(uses(producer.outbound_nodes)) == 1
      and id(producer.output) not in outputs
      and producer.activation is tf.keras.activations.linear
      and getattr(producer, 'data_format', 'channels_last') == 'channels_last'
      and list(norm.axis) == [len(norm.input_shape) - 1]
    ):
      yield producer, norm


def _fold(layer, norm) -> list[np.ndarray]:
  """Kernel and bias of `layer` with `norm` in them, computed in float64."""
  kernel, *others = (np.asarray(weight, np.float64) for weight in layer.get_weights())
  bias = others[0] if others else 0.0
  mean = norm.moving_mean.numpy().astype(np.float64)
  scale = 1.0 / np.sqrt(norm.moving_variance.numpy().astype(np.float64) + norm.epsilon)
  if norm.scale:
    scale = scale * norm.gamma.numpy()
  shift = norm.beta.numpy() if norm.center else 0.0
  # A depthwise kernel is [height, width, channels, multiplier]; the channels of its output are the
  # last two, together. Any other kernel ends in the output's channels.
  is_depthwise = isinstance(layer, tf.keras.layers.DepthwiseConv2D)
  per_kernel = scale.reshape(kernel.shape[-2:]) if is_depthwise else scale
  return [kernel * per_kernel, (bias - mean) * scale + shift]
