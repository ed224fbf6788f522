"""The tied two-way network of Eisenschtat and Wolf (2017), 2WayNet. Floor 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfreid.networks import heads


@tf.keras.utils.register_keras_serializable('tfreid')
class TiedDense(tf.keras.layers.Layer):
  """One weight matrix used in both directions: x W + b and, transposed, y W^T + c.

  One layer and one variable rather than two layers that refer to each other, so that a model that
  holds either direction saves and loads by itself.
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    bias: bool = False,
    transposed_bias: bool = False,
    **kwargs,
  ):
    """Sizes are given, not inferred: a model may hold the transposed direction only.

    Args:
      inputs, outputs: W is [inputs, outputs].
      bias: have b [outputs].
      transposed_bias: have c [inputs].
      **kwargs: of a layer.
    """
    super().__init__(**kwargs)
    self.inputs = inputs
    self.outputs = outputs
    self.has_bias = bias
    self.has_transposed_bias = transposed_bias

  def build(self, input_shape):
    self.kernel = self.add_weight(
      'kernel', [self.inputs, self.outputs], initializer='glorot_uniform'
    )
    self.bias = self.transposed_bias = None
    if self.has_bias:
      self.bias = self.add_weight('bias', [self.outputs], initializer='zeros')
    if self.has_transposed_bias:
      self.transposed_bias = self.add_weight('transposed_bias', [self.inputs], initializer='zeros')
    super().build(input_shape)

  def call(self, values, transpose: bool = False):
    values = tf.matmul(values, self.kernel, transpose_b=transpose)
    bias = self.transposed_bias if transpose else self.bias
    return values if bias is None else values + bias

  def get_config(self):
    return {
      **super().get_config(),
      'inputs': self.inputs,
      'outputs': self.outputs,
      'bias': self.has_bias,
      'transposed_bias': self.has_transposed_bias,
    }


@tf.keras.utils.register_keras_serializable('tfreid')
class PearsonNorm(tf.keras.layers.Layer):
  """Centres each vector over its own entries, then L2-normalises: dot product = correlation.

  A constant vector, which correlates with nothing, becomes 0.
  """

  def __init__(self, **kwargs):
    super().__init__(**{'dtype': 'float32', **kwargs})

  def call(self, inputs):
    inputs = tf.cast(inputs, tf.float32)
    centred = inputs - tf.reduce_mean(inputs, axis=-1, keepdims=True)
    return tf.math.l2_normalize(centred, axis=-1, epsilon=1e-12)


class TwoWay(NamedTuple):
  """The network in its three forms, sharing all variables.

  Attributes:
    network: for training. Inputs 'features' [B, F], 'attributes' [B, A] and the tied dropout masks
      'mask1' [B, n1] ... 'maskL' [B, nL]; outputs float32 'image_reconstruction' [B, F],
      'attribute_reconstruction' [B, A], 'image_representation' and 'attribute_representation'
      [B, n].
    image_encoder: features [B, F] -> representation [B, n], without dropout.
    attribute_encoder: attributes [B, A] -> representation [B, n], without dropout.
  """

  network: tf.keras.Model
  image_encoder: tf.keras.Model
  attribute_encoder: tf.keras.Model


class _Channels:
  """The layers that both channels share, and those that each has of its own."""

  def __init__(
    self,
    sizes: Sequence[int],
    *,
    activation_first: bool,
    leak: float,
    batch_norm_momentum: float,
  ):
    """Makes the layers; sizes are F, n1 ... nL, A, the others as `two_way` takes them."""
    self._count = len(sizes) - 2  # L
    self._activation_first = activation_first
    self._dense = [
      TiedDense(
        inputs,
        outputs,
        bias=activation_first or i == self._count,
        transposed_bias=activation_first or i == 0,
        name=f'fc{i + 1}',
      )
      for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:]))
    ]
    self._image, self._attribute = (
      [
        (
          tf.keras.layers.BatchNormalization(
            momentum=batch_norm_momentum,
            epsilon=1e-3,
            gamma_initializer=tf.keras.initializers.RandomUniform(0.95, 1.05),
            synchronized=heads.synchronized(),
            name=f'{channel}_bn{i}',
          ),
          tf.keras.layers.LeakyReLU(leak, name=f'{channel}_relu{i}'),
        )
        for i in range(1, self._count + 1)
      ]
      for channel in ('image', 'attribute')
    )
    self._dropout = [
      tf.keras.layers.Multiply(name=f'tied_dropout{i + 1}') for i in range(self._count)
    ]

  def run(
    self, x: tf.Tensor, masks: Sequence[tf.Tensor] | None, *, transpose: bool
  ) -> tuple[dict[int, tf.Tensor], tf.Tensor]:
    """One channel from end to end.

    Args:
      x: features [B, F], or attributes [B, A] with `transpose`.
      masks: of the tied dropout, by hidden layer; None for none.
      transpose: run from the attributes to the features.

    Returns:
      The activations by position of the hidden layer, seen from the image side, and what the
      channel makes of the other view.
    """
    order = range(self._count)
    layers = self._attribute if transpose else self._image
    activations = {}
    for i in reversed(order) if transpose else order:
      x = self._dense[i + 1](x, transpose=True) if transpose else self._dense[i](x)
      batch_norm, relu = layers[i]
      x = batch_norm(relu(x)) if self._activation_first else relu(batch_norm(x))
      x = activations[i] = self._dropout[i]([x, masks[i]]) if masks else x
    return activations, self._dense[0](x, transpose=True) if transpose else self._dense[-1](x)


def two_way(
  num_features: int,
  num_attributes: int,
  *,
  hidden: Sequence[int] = (1024, 256, 64),
  representation: int = 1,
  activation_first: bool = False,
  leak: float = 0.3,
  batch_norm_momentum: float = 0.99,
) -> TwoWay:
  """Two channels, x -> a' and a -> x', that share their weight matrices transposed.

  Channel x is dense W1 ... WL, each followed by batch norm, leaky ReLU and tied dropout, then a
  linear W(L+1) to the attributes. Channel a runs through W(L+1)^T ... W2^T in the same manner and
  ends in a linear W1^T. Hidden layers have no bias of their own where batch norm follows, whose
  shift is one. Batch norms are each channel's own, with scales drawn from U(0.95, 1.05), epsilon
  1e-3 and momentum 0.99, as published.

  Args:
    num_features: F.
    num_attributes: A.
    hidden: n1 ... nL, seen from the image side.
    representation: position in `hidden`, from 0, of the layer where both channels meet and by
      which they are compared.
    activation_first: leaky ReLU before batch norm (the published MNIST and XRMB form) and not
      after it (the image-text form).
    leak: slope of the leaky ReLU for negative inputs.
    batch_norm_momentum: of the moving averages.

  Returns:
    See `TwoWay`.

  Raises:
    ValueError: there is no such layer.
  """
  if not 0 <= representation < len(hidden):
    raise ValueError(
      f'two_way.representation is a position in hidden {tuple(hidden)}, 0 ... {len(hidden) - 1}, '
      f'not {representation}.'
    )
  channels = _Channels(
    [num_features, *hidden, num_attributes],
    activation_first=activation_first,
    leak=leak,
    batch_norm_momentum=batch_norm_momentum,
  )
  features = tf.keras.Input([num_features], name='features')
  attributes = tf.keras.Input([num_attributes], name='attributes')
  masks = [tf.keras.Input([n], name=f'mask{i}') for i, n in enumerate(hidden, start=1)]
  image_hidden, attribute_reconstruction = channels.run(features, masks, transpose=False)
  attribute_hidden, image_reconstruction = channels.run(attributes, masks, transpose=True)
  outputs = {
    'image_reconstruction': image_reconstruction,
    'attribute_reconstruction': attribute_reconstruction,
    'image_representation': image_hidden[representation],
    'attribute_representation': attribute_hidden[representation],
  }
  network = tf.keras.Model(
    {
      'features': features,
      'attributes': attributes,
      **{f'mask{i}': mask for i, mask in enumerate(masks, start=1)},
    },
    {
      name: tf.keras.layers.Activation('linear', dtype='float32', name=name)(output)
      for name, output in outputs.items()
    },
    name='two_way',
  )

  def encoder(name, inputs, transpose):
    activations, _ = channels.run(inputs, None, transpose=transpose)
    return tf.keras.Model(inputs, activations[representation], name=name)

  return TwoWay(
    network,
    encoder('image_channel', tf.keras.Input([num_features], name='features'), False),
    encoder('attribute_channel', tf.keras.Input([num_attributes], name='attributes'), True),
  )


def tied_dropout_masks(
  seed: tf.Tensor, batch_size: tf.Tensor, *, widths: Sequence[int], rate: float
) -> dict[str, tf.Tensor]:
  """Masks that both channels of a step share, by the name of the network's input.

  A unit is kept with probability 1 - p and then divided by sqrt(1 - p), which preserves the second
  moment and with it the variance that batch norm has set; ordinary dropout's 1 / (1 - p) preserves
  the mean.

  Args:
    seed: int32 [2].
    batch_size: B.
    widths: n1 ... nL.
    rate: p in [0, 1).

  Returns:
    'mask1' ... 'maskL', float32 [B, n], each entry 0 or 1 / sqrt(1 - p).
  """
  masks = {}
  for i, width in enumerate(widths, start=1):
    own = tf.random.experimental.stateless_fold_in(seed, i)
    kept = tf.random.stateless_uniform([batch_size, width], own) >= rate
    masks[f'mask{i}'] = tf.cast(kept, tf.float32) * (1.0 - rate) ** -0.5
  return masks
