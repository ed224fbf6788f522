"""An image encoder that trains on from an exported model. Floor 4.

An export keeps its encoders as layers, settings and weights (`serving.stored_encoders`), with the
batch norms folded into the convolutions before them (`serving.folding`). Here they become batch
norms again, of the same function: where a batch norm was, its shift is the bias of the convolution
and its scale is 1; then `networks.batch_norms.calibrate` gives it the statistics of some crops.
Whatever network it was, it comes back, at any size of crops, as every image encoder is (see
`networks.encoder`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfreid.networks import batch_norms, encoder, heads
from tfreid.serving import folding, stored_encoders, versions

_log = logging.getLogger(__name__)

# Pixels: what the least demanding network takes. Others say by themselves what is too small.
_SMALLEST = 16
_SETTING = 'unfolding.image_encoder.statistics_from'


def image_encoder(
  image_shape: tuple[int, int, int],
  embedding_size: int = 128,
  *,
  model: str,
  statistics_from: str,
  activation: str = 'tanh',
  batch_norm_momentum: float = heads.BATCH_NORM_MOMENTUM,
) -> tf.keras.Model:
  """The image encoder of an exported model, with its weights, to be trained further.

  The network up to 'features' is the exported one. So is the layer 'concept', where the exported
  model has one, as A2Img's does; DeepMAR's has none, and it begins with random weights.

  Args:
    image_shape: (height, width, 3), which may differ from that of the exported model.
    embedding_size: E; that of the exported model, where it has a concept layer.
    model: the folder of the exported model, or of one of its versions.
    statistics_from: a folder of crops; the statistics of the batch norms are taken of some of them.
    activation: of the concept.
    batch_norm_momentum: of every batch norm's moving averages.

  Returns:
    Model, float32 RGB pixels 0 ... 255 [B, H, W, 3] -> float32 image concepts C^I [B, E].

  Raises:
    FileNotFoundError: there is no exported model.
    ValueError: it is damaged or of another size, a crop cannot be read, or crops are too small.
  """
  directory = versions.newest(model)
  encoder.check_crop(f"The network of '{directory}'", image_shape, _SMALLEST)
  network = _network(stored_encoders.read(directory).image.layers())
  if network is None:
    raise ValueError(
      f"The image encoder of '{directory}' has no layer '{encoder.FEATURES}', which every network "
      'of tfreid has. Name a model that tfreid has exported.'
    )
  images = batch_norms.samples(statistics_from, image_shape[:2], _SETTING)
  unfolded = unfold(network, image_shape)
  built = encoder.with_concept(
    unfolded.input, unfolded.output, embedding_size=embedding_size, activation=activation
  )
  encoder.set_batch_norms(built, batch_norm_momentum)
  has_concept = _take_concept(built, network, directory)
  batch_norms.calibrate(built, images)
  _log.info(
    'The image encoder has the weights of %s up to %s.',
    directory,
    f"its output '{encoder.CONCEPT}'"
    if has_concept
    else f"'{encoder.FEATURES}'; '{encoder.CONCEPT}' has random ones",
  )
  return built


def unfold(network: tf.keras.Model, image_shape: tuple[int, int, int]) -> tf.keras.Model:
  """A folded network with batch norms, up to its layer 'features'.

  Args:
    network: functional, of one input, as `folding.FoldedEncoder` keeps it.
    image_shape: (height, width, 3) of what it will take.

  Returns:
    Model, pixels [B, H, W, 3] -> float32 features [B, F], of the network's function in inference
    mode; only maps are padded as at the size that was exported, which in MobileNet and EfficientNet
    depends on whether their sides are even. Its batch norms have the statistics 0 and 1, see
    `batch_norms.calibrate`. What makes maps has the precision policy that is in force; pixels and
    vectors are float32.
  """
  cut = tf.keras.Model(network.input, network.get_layer(encoder.FEATURES).output)
  weights: dict[tf.keras.layers.Layer, list[np.ndarray]] = {}
  pixels = tf.keras.Input(image_shape, name=cut.input.node.layer.name)
  unfolded = _copied(cut, pixels, weights)
  for layer, values in weights.items():
    layer.set_weights(values)
  return unfolded


def _copied(
  model: tf.keras.Model,
  inputs: tf.Tensor,
  weights: dict[tf.keras.layers.Layer, list[np.ndarray]],
) -> tf.keras.Model:
  """A copy of a model with batch norms and other inputs; `weights` gets the values of its layers.

  Layers have weights only when the whole is built, so they are set later.
  """
  folded = dict(_folded(model))
  producers = {norm: model.get_layer(name) for name, norm in folded.items()}

  def clone(layer):
    if layer.name in producers:
      producer = producers[layer.name]
      norm = heads.batch_norm(layer.name, dtype=_kind(producer))
      _, shift = producer.get_weights()
      ones = np.ones(shift.shape, np.float32)
      weights[norm] = [ones, shift, 0.0 * ones, ones - norm.epsilon]
      return norm
    if isinstance(layer, tf.keras.Model):
      # Its own inputs have a size of their own, which the copy's have not.
      shape = [None] * (len(layer.input_shape) - 2) + [layer.input_shape[-1]]
      return _copied(layer, tf.keras.Input(shape), weights)
    config = {**layer.get_config(), 'dtype': _kind(layer)}
    values = layer.get_weights()
    if layer.name in folded:
      config['use_bias'] = False
      values = values[:1]
    copy = type(layer).from_config(config)
    weights[copy] = values
    return copy

  return tf.keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)


def _network(model: tf.keras.Model) -> tf.keras.Model | None:
  """The model, or the one within it, that has the layer 'features'."""
  for layer in model.layers:
    if layer.name == encoder.FEATURES:
      return model
    inner = _network(layer) if isinstance(layer, tf.keras.Model) else None
    if inner is not None:
      return inner
  return None


def _folded(model: tf.keras.Model) -> Iterator[tuple[str, str]]:
  """The names of each layer that a batch norm was folded into, and of that batch norm."""
  for layer in model.layers:
    if type(layer) is tf.keras.layers.Activation and layer.get_config()['activation'] == 'linear':
      producer = layer.inbound_nodes[0].inbound_layers
      if type(producer) in folding.FOLDABLE and producer.use_bias:
        yield producer.name, layer.name


def _kind(layer: tf.keras.layers.Layer) -> str:
  """The precision that a layer trains in: a policy's name."""
  is_map = len(layer.output_shape) > 2 and not isinstance(layer, encoder.AffinePixels)
  return tf.keras.mixed_precision.global_policy().name if is_map else 'float32'


def _take_concept(built: tf.keras.Model, network: tf.keras.Model, directory: str) -> bool:
  """Gives the concept layer the exported weights; returns whether there are any."""
  found = [layer for layer in network.layers if layer.name == encoder.CONCEPT]
  if not found:
    return False
  head = encoder.head(built)
  values = found[0].get_weights()
  if [value.shape for value in values] != [tuple(weight.shape) for weight in head.weights]:
    raise ValueError(
      f"The exported model '{directory}' has concepts of {values[0].shape[-1]} numbers, and "
      f'{head.units} are asked for. Set unfolding.image_encoder.embedding_size to '
      f'{values[0].shape[-1]}.'
    )
  head.set_weights(values)
  return True
