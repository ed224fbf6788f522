"""Networks of the correlation methods: one multi-layer perceptron per view. Floor 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Deviations below this share of their root mean square are raised to it.
_SMALLEST_DEVIATION = 1e-3


@tf.keras.utils.register_keras_serializable('tfreid')
class Standardization(tf.keras.layers.Layer):
  """(x - mean) / deviation with the training images' statistics, kept in untrained variables.

  Part of the encoder, so that a gallery is standardised as the training images were.
  """

  def __init__(self, **kwargs):
    super().__init__(**{'dtype': 'float32', **kwargs})

  def build(self, input_shape):
    size = [int(input_shape[-1])]
    self.mean = self.add_weight('mean', size, initializer='zeros', trainable=False)
    self.deviation = self.add_weight('deviation', size, initializer='ones', trainable=False)
    super().build(input_shape)

  def adapt(self, values: np.ndarray):
    """Takes mean and standard deviation over the rows of `values` [N, F].

    A column that hardly varies keeps out of the way: its deviation is at least a thousandth of the
    columns' root mean square, and 1 where nothing varies, so that a unit that was silent in
    training cannot outweigh the others when a gallery image excites it.
    """
    values = np.asarray(values, np.float64)
    deviation = values.std(axis=0)
    typical = np.sqrt(np.mean(np.square(deviation)))
    deviation = np.maximum(deviation, _SMALLEST_DEVIATION * typical)
    self.mean.assign(values.mean(axis=0).astype(np.float32))
    self.deviation.assign(np.where(deviation > 0.0, deviation, 1.0).astype(np.float32))

  def call(self, inputs):
    return (tf.cast(inputs, tf.float32) - self.mean) / self.deviation


@tf.keras.utils.register_keras_serializable('tfreid')
class CentredProjection(tf.keras.layers.Layer):
  """(x - mean) W with untrained mean and W: the closing linear CCA of a view.

  The identity until `assign` is called.
  """

  def __init__(self, size: int, **kwargs):
    super().__init__(**{'dtype': 'float32', **kwargs})
    self.size = size

  def build(self, input_shape):
    inputs = int(input_shape[-1])
    # Like batch norm's moving averages: each replica writes its own copy during a step, where all
    # copies are equal because the correlation is that of the gathered batch.
    own = {
      'trainable': False,
      'synchronization': tf.VariableSynchronization.ON_READ,
      'aggregation': tf.VariableAggregation.ONLY_FIRST_REPLICA,
    }
    self.mean = self.add_weight('mean', [inputs], initializer='zeros', **own)
    self.projection = self.add_weight(
      'projection', [inputs, self.size], initializer=tf.keras.initializers.Identity(), **own
    )
    super().build(input_shape)

  def assign(self, mean: tf.Tensor, projection: tf.Tensor):
    """Replaces mean [k] and W [k, size]."""
    self.mean.assign(tf.cast(mean, tf.float32))
    self.projection.assign(tf.cast(projection, tf.float32))

  def call(self, inputs):
    return tf.matmul(tf.cast(inputs, tf.float32) - self.mean, self.projection)

  def get_config(self):
    return {**super().get_config(), 'size': self.size}


def view(
  input_size: int,
  output_size: int,
  *,
  hidden: Sequence[int],
  activation: str = 'tanh',
  name: str = 'view',
) -> tf.keras.Model:
  """A multi-layer perceptron with a linear last layer: an encoder f, g or a decoder p, q.

  Args:
    input_size: F or A for an encoder, k for a decoder.
    output_size: k for an encoder, F or A for a decoder.
    hidden: widths of the hidden layers; () for a linear map.
    activation: of the hidden layers. The published ports use sigmoid; tanh is its centred form.
    name: of the model.

  Returns:
    Model, [B, input_size] -> float32 [B, output_size].
  """
  inputs = tf.keras.Input([input_size], name='inputs')
  x = inputs
  for i, width in enumerate(hidden, start=1):
    x = tf.keras.layers.Dense(width, activation=activation, name=f'fc{i}')(x)
  outputs = tf.keras.layers.Dense(output_size, dtype='float32', name='output')(x)
  return tf.keras.Model(inputs, outputs, name=name)
