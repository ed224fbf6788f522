"""What every image encoder is, whatever network it is made of. Floor 1.

An image encoder is a functional Keras model that a builder function returns. The builder is named
in gin, and nothing else of the code knows which network it is: all that must be known of it travels
with the model.

* Its input are RGB pixels 0 ... 255 [B, H, W, 3]; the normalisation that its weights were trained
  with is a layer of the model.
* The layer 'features' gives float32 [B, F], what the network makes of an image; the layer
  'concept' is the embedding float32 [B, E] and the output. See `features`, `head`.
* The smallest crop that it can take is checked by the builder (`check_crop`).
* Its layers are those of Keras or registered ones, so that `serving.folding` can copy it. A layer
  of its own that may compute in bfloat16 in an export says so: `reducible`, a class attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from tfreid.networks import batch_norms, heads

FEATURES, CONCEPT = 'features', 'concept'


@tf.keras.utils.register_keras_serializable('tfreid')
class AffinePixels(tf.keras.layers.Layer):
  """Pixels times a scale plus an offset for each channel, after an exchange of red and blue.

  In float32 whatever the precision policy.
  """

  def __init__(
    self, scale: Sequence[float], offset: Sequence[float], *, reverse: bool = False, **kwargs
  ):
    """Takes the numbers.

    Args:
      scale: three factors, in the order of the output's channels.
      offset: three numbers, in the same order.
      reverse: give blue, green, red.
      **kwargs: of a layer.
    """
    super().__init__(**{'dtype': 'float32', **kwargs})
    self.scale = [float(value) for value in scale]
    self.offset = [float(value) for value in offset]
    self.reverse = reverse

  def call(self, inputs):
    pixels = tf.cast(inputs, tf.float32)
    if self.reverse:
      # Not [..., ::-1], which does the same in five times the time.
      pixels = tf.reverse(pixels, [-1])
    return by_channel(lambda x, scale, offset: x * scale + offset, pixels, self.scale, self.offset)

  def get_config(self):
    return {
      **super().get_config(),
      'scale': self.scale,
      'offset': self.offset,
      'reverse': self.reverse,
    }


def by_channel(
  function: Callable[..., tf.Tensor], pixels: tf.Tensor, *numbers: Sequence[float]
) -> tf.Tensor:
  """`function(pixels, *numbers)` with numbers for each channel, computed by rows of images.

  The same bits in a fifth of the time: numbers that change from value to value cost TensorFlow
  more on a processor than the arithmetic does, so they are repeated to the length of a row first.
  With three channels that was a sixth of embedding with OSNet x0.25.

  Args:
    function: of tensors [N, W * C] and [W * C], value by value.
    pixels: [B, H, W, C].
    numbers: C each.
  """
  _, height, width, channels = pixels.shape
  if height is None or width is None:
    return function(pixels, *(tf.constant(values, pixels.dtype) for values in numbers))
  rows = tf.reshape(pixels, [-1, width * channels])
  repeated = [tf.constant(list(values) * width, pixels.dtype) for values in numbers]
  return tf.reshape(function(rows, *repeated), [-1, height, width, channels])


def check_crop(name: str, image_shape: Sequence[int], smallest: int):
  """Refuses crops that a network cannot take.

  Args:
    name: of the network, for the message.
    image_shape: (height, width, channels).
    smallest: least height and width in pixels.

  Raises:
    ValueError: the crop is smaller, or not RGB.
  """
  if len(image_shape) != 3 or image_shape[2] != 3 or min(image_shape[:2]) < smallest:
    raise ValueError(
      f'{name} needs RGB crops of at least {smallest} x {smallest} pixels, not '
      f'{tuple(image_shape)}. Raise Pipeline.image_size.'
    )


def with_concept(
  pixels: tf.Tensor, features: tf.Tensor, *, embedding_size: int, activation: str
) -> tf.keras.Model:
  """The image encoder that ends in a linear layer on the features of a network.

  Args:
    pixels: the network's input [B, H, W, 3].
    features: float32 [B, F], the output of a layer of the name 'features'.
    embedding_size: E.
    activation: of the concept.

  Returns:
    Model, float32 RGB pixels 0 ... 255 [B, H, W, 3] -> float32 image concepts C^I [B, E].
  """
  concepts = tf.keras.layers.Dense(
    embedding_size, activation=activation, dtype='float32', name=CONCEPT
  )(features)
  return tf.keras.Model(pixels, concepts, name='image_encoder')


def features(model: tf.keras.Model, layer: str = FEATURES) -> tf.keras.Model:
  """The part of an image encoder up to 'features' or 'concept', sharing its variables.

  Args:
    model: an image encoder.
    layer: 'features' for what the network makes of an image, 'concept' for the whole encoder.

  Returns:
    Model, pixels [B, H, W, 3] -> float32 [B, F] or [B, E].

  Raises:
    ValueError: another layer is asked for, or the model is not an image encoder.
  """
  if layer == CONCEPT:
    return model
  if layer != FEATURES:
    raise ValueError(f"Image features are '{FEATURES}' or '{CONCEPT}', not '{layer}'.")
  return tf.keras.Model(model.input, _layer(model, FEATURES).output, name=f'{model.name}_features')


def head(model: tf.keras.Model) -> tf.keras.layers.Layer:
  """The layer behind the features, 'concept': what is new where the network is pre-trained."""
  return _layer(model, CONCEPT)


def set_batch_norms(model: tf.keras.Model, momentum: float):
  """Gives each batch norm of a model this momentum, the statistics of all replicas, and speed."""
  for layer in model.layers:
    if isinstance(layer, tf.keras.Model):
      set_batch_norms(layer, momentum)
    elif isinstance(layer, tf.keras.layers.BatchNormalization):
      layer.momentum = momentum
      if heads.synchronized():
        # Only the unfused kernel can reduce over replicas.
        layer.fused, layer.synchronized = False, True
      else:
        batch_norms.accelerate(layer)


def _layer(model: tf.keras.Model, name: str) -> tf.keras.layers.Layer:
  try:
    return model.get_layer(name)
  except ValueError as error:
    raise ValueError(
      f"The image encoder '{model.name}' has no layer '{name}'. A builder of image encoders names "
      f"the layer that gives its features '{FEATURES}' and its last layer '{CONCEPT}'; "
      'see tfreid/networks/encoder.py.'
    ) from error
