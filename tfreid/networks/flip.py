"""The flip test: an image is embedded as it is and as in a mirror, and the mean counts. Floor 1.

The cheapest test-time augmentation, usual in person re-identification: a person is the same in a
mirror, and so is every attribute of the paper's data sets. It takes twice the time of embedding,
and nothing else: an index is as large, and a search as fast.
"""

from __future__ import annotations

import tensorflow as tf


@tf.keras.utils.register_keras_serializable('tfreid')
class MirrorImages(tf.keras.layers.Layer):
  """Left and right of images [B, H, W, 3] exchanged, of the type that comes in."""

  def call(self, inputs):
    return inputs[:, :, ::-1]


def with_flip_test(encoder: tf.keras.Model) -> tf.keras.Model:
  """An image encoder with the flip test; it shares the variables of the one given.

  A score is a dot product, so that of the mean concept is the mean of both scores: of two cosines,
  of two log-likelihoods. The mean of two unit vectors is shorter than 1 where they differ, and is
  left so.

  Args:
    encoder: functional model, pixels [B, H, W, 3] -> concepts [B, E].

  Returns:
    Model of the same shapes, float32.

  Raises:
    ValueError: it has the flip test already.
  """
  if has_flip_test(encoder):
    raise ValueError('This image encoder has the flip test already.')
  pixels = tf.keras.Input(encoder.input_shape[1:], name='pixels')
  mirrored = MirrorImages(dtype='float32', name='mirror_images')(pixels)
  both = [encoder(pixels), encoder(mirrored)]
  mean = tf.keras.layers.Average(dtype='float32', name='flip_test')(both)
  return tf.keras.Model(pixels, mean, name=f'{encoder.name}_flip_test')


def has_flip_test(encoder: tf.keras.Model) -> bool:
  """Whether an image encoder embeds images as in a mirror, too."""
  return any(isinstance(module, MirrorImages) for module in encoder.submodules)
