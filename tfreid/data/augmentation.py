"""Augmentation of a batch, vectorised, with the random numbers given from outside. Floor 1.

Each function takes the batch and `draws`, uniform numbers in [0, 1) with a row per example. So
what happens to an image is decided by the image's own row: not by the batch it stands in, by the
number of threads or by the worker that reads it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

CROP_AREA = (0.64, 1.0)
CROP_STRETCH = (1.0, 1.5)
CROP_ATTEMPTS = 10
CROP_DRAWS = 1 + 2 * CROP_ATTEMPTS + 2
# Crops that are enlarged together.
_BOXES = 8


class Stream(enum.IntEnum):
  """The independent streams of random numbers; switching one on leaves the others as they are."""

  ORDER = 0
  FLIP = 1
  CROP = 2
  ERASE = 3
  ATTRIBUTES = 4


def draws(seed: int, epoch: int, stream: Stream, shape: Sequence[int]) -> tf.Tensor:
  """Uniform random numbers of one epoch, float32 `shape` in [0, 1).

  Args:
    seed: of the run.
    epoch: number of the epoch.
    stream: what they are for.
    shape: (N, K), K numbers for each position of the epoch.
  """
  key = np.random.SeedSequence([seed, epoch, int(stream)]).generate_state(2, np.uint32)
  # On the CPU and with a named algorithm, so that a GPU in the machine changes nothing.
  with tf.device('CPU:0'):
    return tf.random.stateless_uniform(shape, seed=key.astype(np.int64), alg='philox')


def changed(
  images: tf.Tensor, chosen: tf.Tensor, change: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
  """Images of which the chosen ones are replaced.

  Several times as fast as to change all of them and to select by `tf.where`.

  Args:
    images: [B, H, W, 3].
    chosen: bool [B].
    change: gets the chosen rows, int64 [M], and returns what is to stand there, [M, H, W, 3].

  Returns:
    [B, H, W, 3].
  """
  rows = tf.where(chosen)  # [M, 1]
  return tf.tensor_scatter_nd_update(images, rows, change(rows[:, 0]))


def flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
  """Images of which about half are mirrored left to right.

  Args:
    images: [B, H, W, 3], any dtype.
    draws: [B], in [0, 1); below 0.5 mirrors.

  Returns:
    [B, H, W, 3], dtype of `images`.
  """
  return changed(images, draws < 0.5, lambda rows: tf.reverse(tf.gather(images, rows), axis=[2]))


def crop_boxes(draws: tf.Tensor, rate: float) -> tf.Tensor:
  """Random area crops after Open-ReID's RandomSizedRectCrop, as shares of the image.

  The crop's area is drawn from [0.64, 1] and its aspect from 1 to 1.5 times the image's own
  (Open-ReID says 2 to 3, the same for its 256x128). Of ten attempts the first that fits into the
  image counts; if none does, the image stays whole.

  Args:
    draws: [B, CROP_DRAWS], in [0, 1).
    rate: share of the images to crop.

  Returns:
    float32 [B, 4]: top, left, height, width, where 1 is the whole height or width.
  """
  batch = tf.shape(draws)[0]
  low, high = CROP_AREA
  area = low + (high - low) * draws[:, 1 : 1 + CROP_ATTEMPTS]  # [B, attempts]
  low, high = CROP_STRETCH
  stretch = low + (high - low) * draws[:, 1 + CROP_ATTEMPTS : 1 + 2 * CROP_ATTEMPTS]
  sizes = tf.stack([tf.sqrt(area * stretch), tf.sqrt(area / stretch)], axis=-1)
  # The whole image follows as the last attempt, which always fits.
  sizes = tf.concat([sizes, tf.ones([batch, 1, 2])], axis=1)  # [B, attempts + 1, 2]
  first = tf.argmax(tf.reduce_all(sizes <= 1.0, axis=-1), axis=1)
  size = tf.gather(sizes, first, axis=1, batch_dims=1)  # [B, 2]
  size = tf.where(draws[:, :1] < rate, size, tf.ones_like(size))
  return tf.concat([draws[:, -2:] * (1.0 - size), size], axis=1)


def crop(images: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
  """The boxes of the images, enlarged to the size of the image.

  Args:
    images: [B, H, W, 3], uint8 or float32.
    boxes: [B, 4], as `crop_boxes` returns them.

  Returns:
    float32 [B, H, W, 3]. Bilinear, the centres of the corner pixels of a box fall onto those of
    the result, so that nothing is read outside the box; the whole image comes back as it was.
    A crop is always enlarged, which needs no antialiasing.
  """
  shape = tf.shape(images)[1:3]
  size = tf.cast(shape, tf.float32)
  start, share = boxes[:, :2], boxes[:, 2:]
  # The op's 0 and 1 are the centres of the first and the last pixel.
  span = tf.maximum(size - 1.0, 1.0)
  first, last = start * size / span, ((start + share) * size - 1.0) / span
  # By rounding a last row could come to lie beyond the image, where the op reads zeros. A
  # millionth is more than its rounding and far less than a pixel; the whole image needs it not.
  last = tf.where(share < 1.0, tf.minimum(last, 1.0 - 1e-6), 1.0)
  corners = tf.concat([first, last], axis=1)

  def boxes_of(rows):
    return tf.image.crop_and_resize(
      images, tf.gather(corners, rows), tf.cast(rows, tf.int32), shape
    )

  def enlarged(rows):
    # So many at a time, the last ones filled up: of an operation with an unknown number of boxes
    # TensorFlow's optimiser warns at each epoch. One piece at least: none could not be joined.
    count = tf.shape(rows)[0]
    pieces = tf.reshape(tf.pad(rows, [[0, _BOXES - count % _BOXES]]), [-1, _BOXES])
    found = tf.map_fn(boxes_of, pieces, fn_output_signature=tf.float32)
    return tf.reshape(found, tf.concat([[-1], tf.shape(images)[1:]], axis=0))[:count]

  return changed(tf.cast(images, tf.float32), tf.reduce_any(share < 1.0, axis=1), enlarged)


def drop_attributes(
  attributes: tf.Tensor,
  draws: tf.Tensor,
  *,
  groups: Sequence[int],
  rate: float,
  keep_at_least: int,
) -> tf.Tensor:
  """Attribute vectors of which some attributes are not said, as in a partial query.

  Args:
    attributes: float32 [B, A], three-state: +1, -1, 0 = not said.
    draws: [B, G] in [0, 1), one per attribute; below `rate` drops all columns of the attribute.
    groups: for each of the A columns the number of its attribute, 0 ... G-1.
    rate: chance of each attribute to be dropped.
    keep_at_least: so many attributes stay, those with the largest draws, whatever the rate.

  Returns:
    float32 [B, A].
  """
  # Rank 0 is the largest draw of the row.
  ranks = tf.argsort(tf.argsort(draws, direction='DESCENDING', stable=True), stable=True)
  said = tf.logical_or(draws >= rate, ranks < keep_at_least)  # [B, G]
  return tf.where(tf.gather(said, tf.constant(groups), axis=1), attributes, 0.0)
