"""Generator and matching-aware discriminator of person images, after Reed et al. 2016. Floor 1.

Both see images in -1 ... 1 whose size is the start map's doubled once per stage, whatever the size
of the crops; `to_generated_range` and `GeneratedPixels` convert.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tfreid.networks import heads

_LEAK = 0.2


def nearest_stages(image_shape: Sequence[int], *, start: Sequence[int], at_most: int) -> int:
  """How many doublings of the start map come nearest the height of a crop.

  Args:
    image_shape: (height, width, ...) of the crops.
    start: (height, width) of the map that noise and description become.
    at_most: a limit.

  Raises:
    ValueError: the limit leaves no stage.
  """
  if at_most < 1 or min(start) < 1:
    raise ValueError(
      f'An image GAN needs at least one stage and a start map, not {at_most} and {tuple(start)}.'
    )
  return min(at_most, max(1, round(math.log2(image_shape[0] / start[0]))))


def generator(
  num_attributes: int,
  noise_size: int = 100,
  *,
  start: Sequence[int] = (4, 2),
  stages: int = 5,
  width: int = 128,
  description_size: int = 128,
) -> tf.keras.Model:
  """The image generator G(z, a).

  The description, a leaky linear layer, and the noise become a map of 8 * width channels by a
  transposed convolution; each stage doubles it and, once no more than 8 * width channels are
  needed, halves the channels. Bottleneck residual blocks refine the two smallest maps.

  Args:
    num_attributes: A.
    noise_size: Z.
    start: (height, width) of the smallest map. Reed et al. start at 4 x 4; people are upright.
    stages: number of stride-2 stages, 5 for 128 x 64 from 4 x 2.
    width: channels of the largest map but one (ngf).
    description_size: size of the description's embedding (nt).

  Returns:
    Model, [attribute vectors [B, A], noise [B, Z]] -> float32 images in -1 ... 1
    [B, start[0] * 2^stages, start[1] * 2^stages, 3].
  """
  attributes = tf.keras.Input([num_attributes], name='attributes')
  noise = tf.keras.Input([noise_size], name='noise')
  x = tf.keras.layers.Dense(description_size, name='description')(attributes)
  x = tf.keras.layers.LeakyReLU(_LEAK, name='description_relu')(x)
  x = tf.keras.layers.Concatenate(name='condition')([noise, x])
  x = tf.keras.layers.Reshape([1, 1, noise_size + description_size], name='seed')(x)
  channels = [width * min(8, 2 ** (stages - 1 - i)) for i in range(stages)]
  x = tf.keras.layers.Conv2DTranspose(channels[0], tuple(start), **_convolution('start'))(x)
  x = _norm('start_bn')(x)
  x = _bottleneck(x, 'start_residual', _relu)
  for i, size in enumerate(channels[1:], start=1):
    name = f'stage{i}'
    x = tf.keras.layers.Conv2DTranspose(size, 4, 2, 'same', **_convolution(name))(x)
    x = _norm(f'{name}_bn')(x)
    if i == 1:
      x = _bottleneck(x, f'{name}_residual', _relu)
    else:
      x = _relu(f'{name}_relu')(x)
  x = tf.keras.layers.Conv2DTranspose(3, 4, 2, 'same', **_convolution(f'stage{stages}'))(x)
  images = tf.keras.layers.Activation('tanh', dtype='float32', name='image')(x)
  return tf.keras.Model([attributes, noise], images, name='generator')


def discriminator(
  num_attributes: int,
  *,
  start: Sequence[int] = (4, 2),
  stages: int = 5,
  width: int = 64,
  description_size: int = 128,
) -> tf.keras.Model:
  """The matching-aware discriminator D(x, a): is x a real image, and one of a?

  Stride-2 convolutions down to the start map and a bottleneck residual block; there the embedded
  description joins at every position. It ends in a logit.

  Args:
    num_attributes: A.
    start, stages: as the generator's.
    width: channels of the largest map (ndf).
    description_size: size of the description's embedding (nt).

  Returns:
    Model, [images in -1 ... 1 [B, H, W, 3], attribute vectors [B, A]] -> float32 logits [B, 1].
  """
  shape = [size * 2**stages for size in start]
  images = tf.keras.Input([*shape, 3], name='image')
  attributes = tf.keras.Input([num_attributes], name='attributes')
  x = images
  for i in range(stages):
    name = f'stage{i + 1}'
    size = width * min(8, 2**i)
    x = tf.keras.layers.Conv2D(size, 4, 2, 'same', **_convolution(name))(x)
    if i:
      x = _norm(f'{name}_bn')(x)
    if i < stages - 1:
      x = _leaky_relu(f'{name}_relu')(x)
  x = _bottleneck(x, 'residual', _leaky_relu)
  description = tf.keras.layers.Dense(description_size, name='description')(attributes)
  description = _leaky_relu('description_relu')(description)
  description = tf.keras.layers.RepeatVector(start[0] * start[1], name='everywhere')(description)
  description = tf.keras.layers.Reshape([*start, description_size], name='description_map')(
    description
  )
  x = tf.keras.layers.Concatenate(name='match')([x, description])
  x = tf.keras.layers.Conv2D(size, 1, **_convolution('match_conv'))(x)
  x = _norm('match_bn')(x)
  x = _leaky_relu('match_relu')(x)
  x = tf.keras.layers.Conv2D(1, tuple(start), dtype='float32', **_convolution('verdict'))(x)
  logits = tf.keras.layers.Reshape([1], dtype='float32', name='logit')(x)
  return tf.keras.Model([images, attributes], logits, name='image_discriminator')


def to_generated_range(pixels: tf.Tensor, size: Sequence[int]) -> tf.Tensor:
  """Crops as the discriminator sees them.

  Args:
    pixels: 0 ... 255 [B, H, W, 3].
    size: (height, width) of the generated images.

  Returns:
    float32 [B, *size, 3] in -1 ... 1.
  """
  pixels = tf.cast(pixels, tf.float32)
  # Whole factors by means, the rest bilinearly: no aliasing, and XLA has no antialiased resize.
  factors = [max(1, pixels.shape[1 + i] // size[i]) for i in range(2)]
  if max(factors) > 1:
    pixels = tf.nn.avg_pool2d(pixels, factors, factors, 'VALID')
  if tuple(pixels.shape[1:3]) != tuple(size):
    pixels = tf.image.resize(pixels, size)
  return pixels / 127.5 - 1.0


@tf.keras.utils.register_keras_serializable('tfreid')
class GeneratedPixels(tf.keras.layers.Layer):
  """Generated images -1 ... 1 to pixels 0 ... 255 of the crops' size, [B, height, width, 3]."""

  def __init__(self, height: int, width: int, **kwargs):
    super().__init__(**{'dtype': 'float32', **kwargs})
    self.height = height
    self.width = width

  def call(self, inputs):
    pixels = (tf.cast(inputs, tf.float32) + 1.0) * 127.5
    if tuple(inputs.shape[1:3]) == (self.height, self.width):
      return pixels
    return tf.image.resize(pixels, [self.height, self.width])

  def get_config(self):
    return {**super().get_config(), 'height': self.height, 'width': self.width}


@tf.keras.utils.register_keras_serializable('tfreid')
class MeanOverDraws(tf.keras.layers.Wrapper):
  """The mean of what a model makes of a description with each of K stored noise vectors.

  The noise is drawn once and saved with the layer, so that a description always has the same
  encoding. Descriptions are worked off one by one: K images at a time go through the encoder, not
  K times the number of queries. Inference mode only.
  """

  def __init__(
    self, layer: tf.keras.Model, *, draws: int, noise_size: int, seed: int = 0, **kwargs
  ):
    """Wraps the model.

    Args:
      layer: [attribute vectors [K, A], noise [K, Z]] -> float32 [K, E].
      draws: K.
      noise_size: Z.
      seed: of the draws.
    """
    super().__init__(layer, **{'dtype': 'float32', **kwargs})
    if draws < 1:
      raise ValueError(f'At least one noise draw is needed per description, not {draws}.')
    self.draws = draws
    self.noise_size = noise_size
    self.seed = seed

  def build(self, input_shape=None):
    self.noise = self.add_weight(
      'noise',
      shape=[self.draws, self.noise_size],
      dtype='float32',
      initializer=tf.keras.initializers.RandomNormal(stddev=1.0, seed=self.seed),
      trainable=False,
    )
    self.built = True

  def call(self, inputs):
    noise = tf.convert_to_tensor(
      self.noise
    )  # a layer casts tensors to its precision, not variables

    def encode(attributes):
      described = tf.repeat(attributes[tf.newaxis], self.draws, axis=0)  # [K, A]
      return tf.reduce_mean(self.layer([described, noise], training=False), axis=0)

    size = self.layer.output_shape[-1]
    return tf.map_fn(
      encode,
      tf.cast(inputs, tf.float32),
      parallel_iterations=1,
      fn_output_signature=tf.TensorSpec([size], tf.float32),
    )

  def compute_output_shape(self, input_shape):
    return tf.TensorShape([input_shape[0], self.layer.output_shape[-1]])

  def get_config(self):
    return {
      **super().get_config(),
      'draws': self.draws,
      'noise_size': self.noise_size,
      'seed': self.seed,
    }


def _convolution(name: str) -> dict:
  """Common arguments: N(0, 0.02), and no biases, which the published code zeroes at every step."""
  return {
    'use_bias': False,
    'kernel_initializer': tf.keras.initializers.RandomNormal(stddev=0.02),
    'name': name,
  }


def _norm(name: str) -> tf.keras.layers.Layer:
  return heads.batch_norm(
    name, gamma_initializer=tf.keras.initializers.RandomNormal(mean=1.0, stddev=0.02)
  )


def _relu(name: str) -> tf.keras.layers.Layer:
  return tf.keras.layers.ReLU(name=name)


def _leaky_relu(name: str) -> tf.keras.layers.Layer:
  return tf.keras.layers.LeakyReLU(_LEAK, name=name)


def _bottleneck(x, name: str, activation):
  """1 x 1 to a quarter of the channels, 3 x 3, 3 x 3 back, added to `x`, activated."""
  narrow = max(1, x.shape[-1] // 4)
  y = x
  for i, (size, kernel) in enumerate([(narrow, 1), (narrow, 3), (x.shape[-1], 3)], start=1):
    y = tf.keras.layers.Conv2D(size, kernel, padding='same', **_convolution(f'{name}_conv{i}'))(y)
    y = _norm(f'{name}_bn{i}')(y)
    if i < 3:
      y = activation(f'{name}_relu{i}')(y)
  x = tf.keras.layers.Add(name=f'{name}_add')([x, y])
  return activation(f'{name}_relu')(x)
