"""Batch norms: their statistics taken of images, and their speed in training. Floor 1.

Where a batch norm has become part of the convolution before it, inference is right all the same.
But training takes the statistics of the batch, and so would begin with another network: with
features whose cosine to the right ones is 0.4, for a published OSNet. `calibrate` mends that.

`accelerate` is for training: oneDNN normalises sixteen channels at a time, and where their number
is no multiple of that, by other code, which takes up to ten times as long.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfreid import image_bytes, processor

# Images that the statistics are taken of: with 32, features of training and of inference had a
# cosine of 0.98 on other photographs.
_SAMPLES = 64
# Channels that oneDNN's fast batch norms normalise at a time (AVX-512).
_VECTOR = 16


def calibrate(model: tf.keras.Model, images: np.ndarray):
  """Sets the statistics of batch norms as images have them, without changing what is computed.

  For y the input of a batch norm with mean m and variance v over the images, and s and t what it
  multiplies and adds now: the moving statistics become m and v, the scale s sqrt(v + epsilon), the
  shift t + s m.

  Args:
    model: an image encoder, used in inference mode.
    images: RGB pixels 0 ... 255 [N, H, W, 3].
  """
  norms = [layer for layer in model.layers if isinstance(layer, tf.keras.layers.BatchNormalization)]
  inner = tf.keras.Model(model.input, [layer.input for layer in norms])
  for layer, value in zip(norms, inner(tf.constant(images, tf.float32), training=False)):
    value = tf.cast(value, tf.float32)
    mean, variance = tf.nn.moments(value, axes=list(range(value.shape.rank - 1)))
    gamma, beta, moving_mean, moving_variance = layer.get_weights()
    scale = gamma / np.sqrt(moving_variance + layer.epsilon)
    shift = beta - scale * moving_mean
    deviation = np.sqrt(variance.numpy() + layer.epsilon)
    layer.set_weights([scale * deviation, shift + scale * mean.numpy(), mean, variance])


def accelerate(layer: tf.keras.layers.BatchNormalization):
  """Has a batch norm compute faster on a processor, where Keras's kernel is slow.

  With AVX-512, that is where the number of channels is no multiple of 16, and with AVX2 alone it is
  any number. In float32, oneDNN's code for AVX2 takes several times as long forward (and not
  backward), in training and, behind depthwise convolutions, in inference; in bfloat16, training is
  slow in both directions where the number is no multiple of 16. Values, gradients and moving
  statistics are those of Keras but for rounding, as are the layer's variables and its
  configuration; whatever else is computed is computed as before. `benchmarks/batch_norms.py`
  measures it.
  """
  if isinstance(layer._fused_batch_norm, functools.partial):
    return
  # The method of this instance and not a class of its own, so that saved networks stay Keras's.
  layer._fused_batch_norm = functools.partial(_fused_batch_norm, layer, layer._fused_batch_norm)


def _fused_batch_norm(
  layer: tf.keras.layers.BatchNormalization,
  fused_batch_norm: Callable[..., tf.Tensor],
  inputs: tf.Tensor,
  mask: tf.Tensor | None,
  training: bool | tf.Tensor,
) -> tf.Tensor:
  channels = inputs.shape[-1]
  normalized = _faster(inputs.dtype, channels, processor.processor().flags)
  trains = tf.get_static_value(training)
  if (
    normalized is None
    or trains is None
    or inputs.shape.rank != 4
    or list(layer.axis) != [3]
    or not (trains or (normalized is _by_rows and _is_behind_depthwise(layer)))
    or tf.config.list_logical_devices('GPU')
  ):
    return fused_batch_norm(inputs, mask=mask, training=training)
  gamma = tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones([channels])
  beta = tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros([channels])
  if not trains:
    scale = gamma * tf.math.rsqrt(layer.moving_variance + layer.epsilon)
    return _scaled(inputs, scale, beta - layer.moving_mean * scale)
  outputs, mean, variance = normalized(inputs, gamma, beta, layer.epsilon)
  # As Keras's kernel, which gives the unbiased variance.
  count = tf.cast(tf.size(inputs) / channels, tf.float32)
  variance *= count / tf.maximum(count - 1.0, 1.0)
  for moving, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
    moving.assign_sub((moving - value) * (1.0 - layer.momentum))
  return outputs


def _is_behind_depthwise(layer: tf.keras.layers.Layer) -> bool:
  """Whether a layer of a functional model follows a depthwise convolution.

  Into any other convolution TensorFlow itself draws a batch norm, in inference, at no cost.
  """
  producers = [node.inbound_layers for node in layer.inbound_nodes]
  return any(isinstance(producer, tf.keras.layers.DepthwiseConv2D) for producer in producers)


def _faster(kind: tf.DType, channels: int, flags: Collection[str]) -> Callable | None:
  """The function below that is faster than oneDNN's kernel, with these instructions, if any."""
  if os.environ.get('TF_ENABLE_ONEDNN_OPTS', '1') == '0':
    return None
  # With fewer of its instructions, or where it is told so, oneDNN keeps to AVX2.
  limit = os.environ.get('ONEDNN_MAX_CPU_ISA', '').upper()
  with_avx512 = 'avx512bw' in flags and not limit.startswith(('SSE', 'AVX2'))
  if kind == tf.bfloat16:
    return _widened if with_avx512 and channels % _VECTOR else None
  if kind == tf.float32 and 'avx2' in flags:
    return None if with_avx512 and not channels % _VECTOR else _by_rows
  return None


# What follows normalises inputs [B, H, W, C] by their own statistics. It gives the outputs, and the
# mean and the biased variance of each channel, float32 [C].


def _by_rows(inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float):
  """In float32, by rows of W * C numbers, for which TensorFlow's arithmetic is fast."""
  width, channels = tf.shape(inputs)[2], inputs.shape[-1]

  @tf.custom_gradient
  def function(inputs, gamma, beta):
    rows = tf.reshape(inputs, [-1, width * channels])
    count = tf.cast(tf.size(rows) / channels, tf.float32)
    ones = tf.ones([1, tf.shape(rows)[0]])

    def mean_of(values):
      return tf.reduce_sum(tf.reshape(tf.matmul(ones, values), [width, channels]), 0) / count

    mean = mean_of(rows)
    variance = mean_of(tf.math.squared_difference(rows, tf.tile(mean, [width])))
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    outputs = _scaled(inputs, scale, beta - mean * scale)

    def gradients(upstream, *_):
      found = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=upstream,
        x=inputs,
        scale=gamma,
        reserve_space_1=mean,
        reserve_space_2=variance,
        reserve_space_3=tf.zeros([0]),
        epsilon=epsilon,
        is_training=True,
      )
      return found.x_backprop, found.scale_backprop, found.offset_backprop

    return (outputs, mean, variance), gradients

  return function(inputs, gamma, beta)


def _widened(inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float):
  """In bfloat16, by Keras's kernel with more channels.

  Channels of zeros are added before it and taken away behind it by products with an identity
  matrix, which is exact and takes a fraction of what is saved; padding and slicing take longer.
  """
  channels = inputs.shape[-1]
  added = -channels % _VECTOR
  widening = tf.eye(channels, channels + added, dtype=inputs.dtype)
  outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
    _product(inputs, widening),
    tf.pad(gamma, [[0, added]]),
    tf.pad(beta, [[0, added]]),
    epsilon=epsilon,
    is_training=True,
  )
  count = tf.cast(tf.size(inputs) / channels, tf.float32)
  biased = variance[:channels] * tf.maximum(count - 1.0, 1.0) / count
  return _product(outputs, tf.transpose(widening)), mean[:channels], biased


def _scaled(inputs: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
  """Inputs [B, H, W, C] times scale plus shift, [C], by rows of W * C numbers."""
  width = tf.shape(inputs)[2]
  rows = tf.reshape(inputs, [-1, width * inputs.shape[-1]])
  outputs = rows * tf.tile(scale, [width]) + tf.tile(shift, [width])
  return tf.ensure_shape(tf.reshape(outputs, tf.shape(inputs)), inputs.shape)


def _product(maps: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
  """Maps [B, H, W, C] times matrix [C, D], [B, H, W, D]."""
  rows = tf.matmul(tf.reshape(maps, [-1, maps.shape[-1]]), matrix)
  shape = maps.shape[:-1].concatenate(matrix.shape[-1])
  sizes = [tf.shape(maps)[i] if size is None else size for i, size in enumerate(shape)]
  return tf.ensure_shape(tf.reshape(rows, sizes), shape)


def samples(folder: str, size: Sequence[int], setting: str) -> np.ndarray:
  """Some images of a folder and the folders in it, float32 [N, *size, 3], for `calibrate`.

  Args:
    folder: of crops.
    size: (height, width) of what is returned.
    setting: what names the folder, for messages.

  Raises:
    ValueError: there is no image, or one of those chosen cannot be read.
  """
  paths = sorted(
    path
    for path in Path(folder).expanduser().rglob('*')
    if path.suffix.lower() in image_bytes.ENDINGS
  )
  if not paths:
    raise ValueError(f"No image file in '{folder}'. {setting} is a folder of crops.")
  chosen = paths[:: -(-len(paths) // _SAMPLES)]
  return np.stack(
    [tf.image.resize(_pixels(path, setting), size, antialias=True) for path in chosen]
  )


def _pixels(path: Path, setting: str) -> np.ndarray:
  try:
    return image_bytes.pixels(image_bytes.read(path))
  except image_bytes.BadImageError as error:
    raise ValueError(f"'{path}', a crop for {setting}: {error}.") from error
