"""OSNet, the light network of person re-identification (Zhou et al., ICCV 2019). Floor 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tfreid.networks import encoder, heads, osnet_weights

WIDTHS = (1.0, 0.75, 0.5, 0.25)
_CHANNELS = (64, 256, 384, 512)
_STREAMS = 4
_SMALLEST = 16
# Mean and deviation of ImageNet's red, green and blue on the scale 0 ... 1, which torchreid uses.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


def osnet(
  image_shape: tuple[int, int, int],
  embedding_size: int = 128,
  *,
  width: float = 1.0,
  weights: str | None = None,
  statistics_from: str | None = None,
  feature_size: int = 512,
  activation: str = 'tanh',
  batch_norm_momentum: float = heads.BATCH_NORM_MOMENTUM,
) -> tf.keras.Model:
  """The image branch on OSNet: 2.2 million numbers at width 1, 0.2 million at 0.25.

  A 7 x 7 convolution and a pooling; three stages of two omni-scale blocks, each stage but the last
  followed by a 1 x 1 convolution and a pooling; a 1 x 1 convolution, the mean over all positions,
  and a dense layer with batch norm and ReLU, layer 'features'.

  Args:
    image_shape: (height, width, 3), at least 16 x 16 pixels. 256 x 128 is usual.
    embedding_size: E.
    width: factor of all channels, 1.0, 0.75, 0.5 or 0.25.
    weights: a file of torchreid's model zoo as `.onnx`, or as `.npz` from
      `tools/convert_torchreid.py`; None for a random start.
    statistics_from: a folder of crops. An .onnx file has no batch norms any more; to train on from
      one, their statistics are taken of some of these crops (`batch_norms.calibrate`).
    feature_size: F, of 'features'.
    activation: of the concept.
    batch_norm_momentum: of every batch norm's moving averages.

  Returns:
    Model, float32 RGB pixels 0 ... 255 [B, H, W, 3] -> float32 image concepts C^I [B, E].

  Raises:
    ValueError: the crop is too small, there is no such width, or the weights do not fit.
    FileNotFoundError: there is no such weights file.
    ImportError: the weights are an .onnx file, and the package onnx is not installed.
  """
  encoder.check_crop('OSNet', image_shape, _SMALLEST)
  if width not in WIDTHS:
    raise ValueError(f'osnet.width is one of {", ".join(map(str, WIDTHS))}, not {width}.')
  first, *stages = (int(channels * width) for channels in _CHANNELS)
  pixels = tf.keras.Input(image_shape, name='image')
  x = encoder.AffinePixels(
    [1.0 / 255.0 / deviation for deviation in _DEVIATION],
    [-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION)],
    name='pixel_normalization',
  )(pixels)
  # Padded alike on all sides, as in PyTorch; Keras's 'same' pads more behind than before.
  x = tf.keras.layers.ZeroPadding2D(3, name='conv1_pad')(x)
  x = _convolution(x, first, 'conv1', size=7, strides=2)
  # What is pooled is not negative, so that zeros around it change no maximum.
  x = tf.keras.layers.ZeroPadding2D(1, name='maxpool_pad')(x)
  x = tf.keras.layers.MaxPooling2D(3, 2, name='maxpool')(x)
  for number, channels in enumerate(stages, start=2):
    for block in range(2):
      x = _omni_scale_block(x, channels, f'conv{number}_{block}')
    if number < len(stages) + 1:
      x = _convolution(x, channels, f'conv{number}_2_0')
      x = tf.keras.layers.AveragePooling2D(2, name=f'conv{number}_2_1')(x)
  x = _convolution(x, stages[-1], 'conv5')
  x = tf.keras.layers.GlobalAveragePooling2D(dtype='float32', name='global_avgpool')(x)
  x = tf.keras.layers.Dense(
    feature_size,
    kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.01),
    dtype='float32',
    name='fc_0',
  )(x)
  x = heads.batch_norm('fc_1', dtype='float32')(x)
  x = tf.keras.layers.ReLU(dtype='float32', name=encoder.FEATURES)(x)
  model = encoder.with_concept(pixels, x, embedding_size=embedding_size, activation=activation)
  encoder.set_batch_norms(model, batch_norm_momentum)
  if weights is not None:
    osnet_weights.load(model, weights, statistics_from=statistics_from)
  return model


def _omni_scale_block(x: tf.Tensor, channels: int, name: str) -> tf.Tensor:
  """The residual block: streams of one to four Lite 3x3 see 3 to 9 pixels, and a gate joins them.

  The gate is one small network for all streams ("unified aggregation gate"): for each image and
  channel it weighs what the stream has found.
  """
  middle = channels // 4
  shortcut = x
  x = _convolution(x, middle, f'{name}_conv1')
  streams = [_stream(x, middle, f'{name}_conv2', length) for length in range(1, _STREAMS + 1)]
  x = _gated_sum(streams, middle, f'{name}_gate')
  x = _convolution(x, channels, f'{name}_conv3', activated=False)
  if shortcut.shape[-1] != channels:
    shortcut = _convolution(shortcut, channels, f'{name}_downsample', activated=False)
  x = tf.keras.layers.Add(name=f'{name}_add')([x, shortcut])
  return tf.keras.layers.ReLU(name=f'{name}_relu')(x)


def _stream(x: tf.Tensor, channels: int, name: str, length: int) -> tf.Tensor:
  """`length` Lite 3x3, each a linear 1 x 1 and a depthwise 3 x 3 convolution."""
  name += 'abcd'[length - 1]
  for i in range(length):
    lite = name if length == 1 else f'{name}_{i}'
    x = tf.keras.layers.Conv2D(
      channels, 1, use_bias=False, kernel_initializer=_initializer(channels), name=f'{lite}_conv1'
    )(x)
    x = tf.keras.layers.DepthwiseConv2D(
      3,
      padding='same',
      use_bias=False,
      depthwise_initializer=_initializer(9),
      name=f'{lite}_conv2',
    )(x)
    x = heads.batch_norm(f'{lite}_bn')(x)
    x = tf.keras.layers.ReLU(name=f'{lite}_relu')(x)
  return x


def _gated_sum(streams: Sequence[tf.Tensor], channels: int, name: str) -> tf.Tensor:
  """The sum of the streams, each weighed for each image and channel by one gate for all."""
  small = channels // 16
  hidden = tf.keras.layers.Dense(
    small, activation='relu', kernel_initializer=_initializer(small), name=f'{name}_fc1'
  )
  weigh = tf.keras.layers.Dense(
    channels, activation='sigmoid', kernel_initializer=_initializer(channels), name=f'{name}_fc2'
  )
  gated = []
  for i, stream in enumerate(streams):
    mean = tf.keras.layers.GlobalAveragePooling2D(keepdims=True, name=f'{name}_pool{i}')(stream)
    gated.append(
      tf.keras.layers.Multiply(name=f'{name}_multiply{i}')([stream, weigh(hidden(mean))])
    )
  return tf.keras.layers.Add(name=f'{name}_add')(gated)


def _convolution(
  x: tf.Tensor,
  channels: int,
  name: str,
  *,
  size: int = 1,
  strides: int = 1,
  activated: bool = True,
) -> tf.Tensor:
  """Convolution without padding, batch norm and, if `activated`, ReLU."""
  x = tf.keras.layers.Conv2D(
    channels,
    size,
    strides,
    use_bias=False,
    kernel_initializer=_initializer(size * size * channels),
    name=f'{name}_conv',
  )(x)
  x = heads.batch_norm(f'{name}_bn')(x)
  return tf.keras.layers.ReLU(name=f'{name}_relu')(x) if activated else x


def _initializer(fan_out: int) -> tf.keras.initializers.Initializer:
  """He et al.'s normal distribution by the fan-out, torchreid's."""
  return tf.keras.initializers.RandomNormal(stddev=math.sqrt(2.0 / fan_out))
