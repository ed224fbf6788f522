"""Any network of `keras.applications` as an image encoder. Floor 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfreid.networks import encoder, heads

# Keras gives EfficientNetB0 ... B7 this further factor for its own ImageNet weights, because they
# were trained with (x - mean) / variance; it leaves it out for the same file given by its path.
_EFFICIENT_NET_DEVIATIONS = (0.229, 0.224, 0.225)


def application(
  image_shape: tuple[int, int, int],
  embedding_size: int = 128,
  *,
  name: str,
  weights: str | None = None,
  activation: str = 'tanh',
  batch_norm_momentum: float = heads.BATCH_NORM_MOMENTUM,
) -> tf.keras.Model:
  """The image branch on a network of `keras.applications`, without its classifier.

  Its normalisation of pixels, whatever it is, becomes part of the model. Layer 'features' is what
  it gives with pooling='avg'. Dropout and stochastic depth are left out: their random numbers are
  Keras's, and a resumed run would not equal an uninterrupted one.

  Args:
    image_shape: (height, width, 3); 32 x 32 pixels are enough for most networks, 75 x 75 for all.
    embedding_size: E.
    name: of the function, for example 'MobileNetV3Small', 'EfficientNetB0' or 'ConvNeXtTiny'.
    weights: 'imagenet' (downloads Keras's file, or finds it in Keras's cache), the path of such a
      file without the classifier, or None for a random start.
    activation: of the concept.
    batch_norm_momentum: of every batch norm's moving averages.

  Returns:
    Model, float32 RGB pixels 0 ... 255 [B, H, W, 3] -> float32 image concepts C^I [B, E].

  Raises:
    ValueError: there is no such network, it cannot take the crop, or the weights do not fit.
    FileNotFoundError: there is no such weights file.
    OSError: the ImageNet weights cannot be downloaded.
  """
  function = getattr(tf.keras.applications, name, None)
  if not name[:1].isupper() or not callable(function):
    known = [n for n in dir(tf.keras.applications) if n[:1].isupper()]
    raise ValueError(
      f"keras.applications has no network '{name}'. application.name is one of {', '.join(known)}."
    )
  encoder.check_crop(name, image_shape, 32)
  if weights is not None and weights != 'imagenet' and not os.path.isfile(weights):
    raise FileNotFoundError(
      f"No weights of {name} at '{weights}'. application.weights is 'imagenet', None, or the path "
      "of one of Keras's files without the classifier ('notop')."
    )
  pixels = tf.keras.Input(image_shape, name='image')
  x = _normalization(function)(pixels)
  backbone = _network(function, name, x, image_shape, weights)
  backbone = _plain(backbone, rescaled=name.startswith('EfficientNetB') and weights != 'imagenet')
  encoder.set_batch_norms(backbone, batch_norm_momentum)
  x = tf.keras.layers.Activation('linear', dtype='float32', name=encoder.FEATURES)(backbone.output)
  return encoder.with_concept(
    backbone.input, x, embedding_size=embedding_size, activation=activation
  )


@tf.keras.utils.register_keras_serializable('tfreid')
class Arithmetic(tf.keras.layers.Layer):
  """The sum or the product of a tensor and another, or a number: Keras's operators as a layer."""

  reducible = True

  def __init__(self, operation: str, **kwargs):
    super().__init__(**kwargs)
    self.operation = operation

  def call(self, x, y, name=None):
    y = tf.cast(y, x.dtype)
    return x + y if self.operation == 'add' else x * y

  def get_config(self):
    return {**super().get_config(), 'operation': self.operation}


@tf.keras.utils.register_keras_serializable('tfreid')
class ChannelScale(tf.keras.layers.Layer):
  """A trained factor for each channel: ConvNeXt's layer scale."""

  reducible = True

  def build(self, input_shape):
    self.gamma = self.add_weight('gamma', [int(input_shape[-1])], initializer='ones')
    super().build(input_shape)

  def call(self, inputs):
    return inputs * self.gamma


def _normalization(function: Callable) -> tf.keras.layers.Layer:
  """The layer that does what the `preprocess_input` beside a network's function does.

  All of Keras's are a factor and an offset for each channel, after an exchange of red and blue in
  some. They are read off what they make of four colours.
  """
  prepare = sys.modules[function.__module__].preprocess_input
  colours = np.concatenate([np.zeros([1, 3]), 255.0 * np.eye(3)]).astype(np.float32)
  made = np.asarray(prepare(colours.reshape(4, 1, 1, 3).copy())).reshape(4, 3)
  factors = (made[1:] - made[0]) / 255.0  # [input channel, output channel]
  reverse = bool(abs(factors[0, 2]) > abs(factors[0, 0]))
  straight = factors[::-1] if reverse else factors
  layer = encoder.AffinePixels(
    np.diag(straight).tolist(), made[0].tolist(), reverse=reverse, name='pixel_normalization'
  )
  probe = np.random.default_rng(0).uniform(0.0, 255.0, (1, 2, 2, 3)).astype(np.float32)
  expected = np.asarray(prepare(probe.copy()))
  if not np.allclose(layer(probe), expected, atol=1e-3):
    raise ValueError(
      f"The preprocess_input of keras.applications' {function.__name__} is not a factor and an "
      'offset for each channel, as those of Keras 2.15 are. Which version of Keras is this?'
    )
  return layer


def _network(
  function: Callable, name: str, x: tf.Tensor, image_shape: Sequence[int], weights: str | None
) -> tf.keras.Model:
  """What Keras makes, with its errors turned into advice."""
  try:
    return function(
      include_top=False, weights=weights, input_tensor=x, input_shape=image_shape, pooling='avg'
    )
  except ValueError as error:
    advice = ' Raise Pipeline.image_size.' if 'Input size' in str(error) else ''
    raise ValueError(
      f'{name} cannot be made for crops {tuple(image_shape)} with weights {weights!r}: '
      f'{error}{advice}'
    ) from error
  except Exception as error:  # get_file raises bare Exceptions for URL errors
    if weights != 'imagenet':
      raise
    raise OSError(
      f'The ImageNet weights of {name} could not be downloaded ({error}). Fetch them on a machine '
      'with internet access and set application.weights to the path of the file, or copy it to '
      f'{os.path.join("~", ".keras", "models")}; application.weights = None trains from scratch.'
    ) from error


def _plain(model: tf.keras.Model, *, rescaled: bool) -> tf.keras.Model:
  """The same function with layers that an archive and an export can hold.

  Operators, and layers that Keras does not export, become layers of this package; a normalisation
  of pixels is read from its variables; dense layers on maps become 1 x 1 convolutions, which are
  the same and which batch norms can be folded into.

  Args:
    model: of `keras.applications`.
    rescaled: give a normalisation with ImageNet's statistics the factor of EfficientNet.
  """
  weights: dict[str, list[np.ndarray]] = {}

  def clone(layer):
    config, kind = layer.get_config(), type(layer).__name__
    common = {'name': layer.name, 'dtype': config.get('dtype')}
    weights[layer.name] = layer.get_weights()
    if kind == 'TFOpLambda':
      operation = config['function'].rpartition('.')[-1]
      if operation not in ('add', '__add__', 'multiply', 'mul', '__mul__'):
        raise ValueError(f"Layer '{layer.name}' is an operator that is not known here.")
      name = layer.name.replace('.', '_').strip('_')
      weights[name] = []
      return Arithmetic('add' if 'add' in operation else 'multiply', name=name)
    if kind == 'Normalization':
      weights[layer.name] = []
      scale, offset = _affine(layer, rescaled=rescaled)
      return encoder.AffinePixels(scale, offset, name=layer.name)
    if kind == 'GlobalAveragePooling2D' and not layer.keepdims:
      return tf.keras.layers.GlobalAveragePooling2D(name=layer.name, dtype='float32')
    if kind == 'LayerScale':
      return ChannelScale(**common)
    if kind in ('Dropout', 'StochasticDepth', 'SpatialDropout2D'):
      return tf.keras.layers.Activation('linear', **common)
    if isinstance(layer, tf.keras.Model):
      weights[layer.name] = []
      return _plain(layer, rescaled=rescaled)
    if kind == 'Dense' and len(layer.input_shape) == 4:
      weights[layer.name][0] = weights[layer.name][0][np.newaxis, np.newaxis]
      names = ('activation', 'use_bias', 'kernel_initializer', 'bias_initializer')
      given = {name: config[name] for name in names}
      return tf.keras.layers.Conv2D(config['units'], 1, **common, **given)
    return layer.__class__.from_config(config)

  copied = tf.keras.models.clone_model(model, clone_function=clone)
  for layer in copied.layers:
    if weights.get(layer.name):
      layer.set_weights(weights[layer.name])
  return copied


def _affine(
  layer: tf.keras.layers.Layer, *, rescaled: bool
) -> tuple[Sequence[float], Sequence[float]]:
  """Scale and offset of a Normalization layer of three channels."""
  values = layer.get_weights()
  mean, variance = values[:2] if values else (layer.mean, layer.variance)
  mean = np.broadcast_to(np.asarray(mean, np.float64).reshape(-1), 3)
  variance = np.broadcast_to(np.asarray(variance, np.float64).reshape(-1), 3)
  scale = 1.0 / np.maximum(np.sqrt(variance), tf.keras.backend.epsilon())
  if rescaled and not np.allclose(variance, 1.0):
    scale = scale / np.sqrt(_EFFICIENT_NET_DEVIATIONS)
  return list(scale), list(-mean * scale)
