"""Small layers and heads shared by the networks. Floor 1.

Every last layer is float32 whatever the precision policy: losses, dot products and rankings are
computed from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfreid.networks import batch_norms

# PyTorch's defaults, which the paper's code (Open-ReID) ran with: Keras counts momentum the other
# way round (0.9 here is 0.1 there) and defaults to 0.99, too slow for ~100 steps an epoch.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5


@tf.keras.utils.register_keras_serializable('tfreid')
class UnitNorm(tf.keras.layers.Layer):
  """L2 normalisation of the last axis, x / max(||x||, 1e-6): a dot product becomes a cosine."""

  def __init__(self, **kwargs):
    super().__init__(**{'dtype': 'float32', **kwargs})

  def call(self, inputs):
    return tf.math.l2_normalize(tf.cast(inputs, tf.float32), axis=-1, epsilon=1e-12)


def synchronized() -> bool:
  """True when a network is being built for more than one replica.

  Batch norm then uses the statistics of the global batch, so that a model does not depend on the
  number of devices it was trained on.
  """
  return tf.distribute.get_strategy().num_replicas_in_sync > 1


def batch_norm(name: str | None = None, **kwargs) -> tf.keras.layers.BatchNormalization:
  """A batch normalisation layer with PyTorch's momentum and epsilon, global over replicas."""
  layer = tf.keras.layers.BatchNormalization(
    momentum=BATCH_NORM_MOMENTUM,
    epsilon=BATCH_NORM_EPSILON,
    synchronized=synchronized(),
    name=name,
    **kwargs,
  )
  batch_norms.accelerate(layer)
  return layer


def classifier(embedding_size: int, num_semantic_ids: int) -> tf.keras.Model:
  """The shared semantic-ID classifier Psi (fc5 of Table 1): one linear layer.

  Args:
    embedding_size: E.
    num_semantic_ids: C.

  Returns:
    Model, concepts [B, E] -> float32 logits [B, C].
  """
  concepts = tf.keras.Input([embedding_size], name='concepts')
  logits = tf.keras.layers.Dense(num_semantic_ids, dtype='float32', name='fc5')(concepts)
  return tf.keras.Model(concepts, logits, name='classifier')


def discriminator(
  embedding_size: int,
  *,
  hidden: Sequence[int] = (512, 256),
  batch_norms: bool = True,
  leak: float = 0.2,
) -> tf.keras.Model:
  """The concept discriminator D of Sec. 3.2.

  The paper does not list its layers; these are 512 - 256 - 1 with batch norm and leaky ReLU,
  after the closest published relative (SAL). It ends in a logit: probabilities belong to the loss.

  Args:
    embedding_size: E.
    hidden: widths of the hidden layers.
    batch_norms: whether hidden layers are batch normalised.
    leak: slope of the leaky ReLU for negative inputs.

  Returns:
    Model, concepts [B, E] -> float32 logits [B, 1] of "comes from an image".
  """
  concepts = tf.keras.Input([embedding_size], name='concepts')
  x = concepts
  for i, width in enumerate(hidden, start=1):
    x = tf.keras.layers.Dense(width, use_bias=not batch_norms, name=f'fc{i}')(x)
    if batch_norms:
      x = batch_norm(f'bn{i}')(x)
    x = tf.keras.layers.LeakyReLU(leak, name=f'relu{i}')(x)
  logits = tf.keras.layers.Dense(1, dtype='float32', name='logit')(x)
  return tf.keras.Model(concepts, logits, name='discriminator')


def unit_norm(encoder: tf.keras.Model) -> tf.keras.Model:
  """`encoder` followed by an L2 normalisation, sharing its variables: dot product = cosine."""
  return tf.keras.Model(
    encoder.input, UnitNorm(name='unit_norm')(encoder.output), name=f'{encoder.name}_unit'
  )
