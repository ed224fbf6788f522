"""The attribute predictor's linear layer, and the ways of reading its scores. Floor 1.

A reading turns "how well does this description fit these scores?" into a dot product: one layer at
the end of the image side, one on the description's.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

READINGS = ('cosine', 'log_likelihood', 'requested')
ENCODINGS = ('binary', 'three_state')


def attribute_scores(num_features: int, num_attributes: int) -> tf.keras.Model:
  """One linear layer, initialised N(0, 0.001) as the authors of DeepMAR do.

  Args:
    num_features: F.
    num_attributes: A.

  Returns:
    Model, image features [B, F] -> float32 logits [B, A]; their sigmoids are the probabilities of
    the attributes.
  """
  features = tf.keras.Input([num_features], name='features')
  logits = tf.keras.layers.Dense(
    num_attributes,
    kernel_initializer=tf.keras.initializers.RandomNormal(stddev=0.001),
    dtype='float32',
    name='logits',
  )(features)
  return tf.keras.Model(features, logits, name='attribute_scores')


def bits_and_known(attributes: tf.Tensor, encoding: str) -> tuple[tf.Tensor, tf.Tensor]:
  """What attribute vectors say, and of which columns they say something.

  A column is known where it has one of the two values that mean on and off. The three-state
  encoding writes 0 for "not said", the binary one the training rate.

  Args:
    attributes: [..., A] in the schema's encoding.
    encoding: 'binary' (0 / 1) or 'three_state' (-1 / 0 / +1).

  Returns:
    float32 [..., A] of zeros and ones: on or not (0 where not known), and known or not.
  """
  attributes = tf.cast(attributes, tf.float32)
  off = -1.0 if encoding == 'three_state' else 0.0
  on = attributes > 1.0 - 1e-6
  known = tf.logical_or(on, attributes < off + 1e-6)
  return tf.cast(on, tf.float32), tf.cast(known, tf.float32)


@tf.keras.utils.register_keras_serializable('tfreid')
class ImageReading(tf.keras.layers.Layer):
  """The image side of a reading: logits s [B, A] to [B, A], or [B, 2A] for 'log_likelihood'.

  * 'cosine': sigmoid(s), L2-normalised;
  * 'log_likelihood': s and -softplus(s);
  * 'requested': log sigmoid(s) = -softplus(-s).
  """

  def __init__(self, reading: str, **kwargs):
    super().__init__(**{'dtype': 'float32', **kwargs})
    self.reading = _checked('reading', reading, READINGS)

  def call(self, inputs):
    logits = tf.cast(inputs, tf.float32)
    if self.reading == 'cosine':
      return tf.math.l2_normalize(tf.sigmoid(logits), axis=-1, epsilon=1e-12)
    if self.reading == 'log_likelihood':
      return tf.concat([logits, -tf.nn.softplus(logits)], axis=-1)
    return -tf.nn.softplus(-logits)

  def get_config(self):
    return {**super().get_config(), 'reading': self.reading}


@tf.keras.utils.register_keras_serializable('tfreid')
class DescriptionReading(tf.keras.layers.Layer):
  """The description's side of a reading: attribute vectors a [B, A] to what meets `ImageReading`.

  * 'cosine': a as zeros and ones with the training rate where a column is not known,
    L2-normalised. The product is the cosine of a and the probabilities.
  * 'log_likelihood': a and "known". The product is sum a s - softplus(s) over the known columns,
    the log probability of the description if attributes are independent.
  * 'requested': a. The product is the log probability that all attributes that are on are there;
    what is off counts as not asked for, and so does what is not known.
  """

  def __init__(
    self, reading: str, *, encoding: str = 'binary', rates: Sequence[float] = (), **kwargs
  ):
    super().__init__(**{'dtype': 'float32', **kwargs})
    self.reading = _checked('reading', reading, READINGS)
    self.encoding = _checked('encoding', encoding, ENCODINGS)
    self.rates = tuple(float(rate) for rate in rates)

  def call(self, inputs):
    bits, known = bits_and_known(inputs, self.encoding)
    if self.reading == 'cosine':
      rates = tf.constant(self.rates or [0.5], tf.float32)
      filled = known * bits + (1.0 - known) * rates
      return tf.math.l2_normalize(filled, axis=-1, epsilon=1e-12)
    if self.reading == 'log_likelihood':
      return tf.concat([bits, known], axis=-1)
    return bits

  def get_config(self):
    return {
      **super().get_config(),
      'reading': self.reading,
      'encoding': self.encoding,
      'rates': list(self.rates),
    }


def _checked(name: str, value: str, allowed: Sequence[str]) -> str:
  if value not in allowed:
    raise ValueError(f"{name} must be one of {', '.join(allowed)}, not '{value}'.")
  return value
