"""The attribute generator. Floor 1."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfreid.networks import heads


def attribute_generator(
  num_attributes: int, embedding_size: int = 128, *, hidden: Sequence[int] = (128, 256, 512)
) -> tf.keras.Model:
  """The attribute branch Phi_A of Table 1: (fc - batch norm - ReLU) x 3, fc, tanh.

  Args:
    num_attributes: A, length of an attribute vector.
    embedding_size: E, 128 in the paper.
    hidden: widths of fc1 ... fc3.

  Returns:
    Model, attribute vectors [B, A] -> float32 attribute concepts C^A [B, E] in (-1, 1).
  """
  attributes = tf.keras.Input([num_attributes], name='attributes')
  x = attributes
  for i, width in enumerate(hidden, start=1):
    x = tf.keras.layers.Dense(width, name=f'fc{i}')(x)
    x = heads.batch_norm(f'bn{i}')(x)
    x = tf.keras.layers.ReLU(name=f'relu{i}')(x)
  x = tf.keras.layers.Dense(embedding_size, name='fc4')(x)
  concepts = tf.keras.layers.Activation('tanh', dtype='float32', name='concept')(x)
  return tf.keras.Model(attributes, concepts, name='attribute_generator')
