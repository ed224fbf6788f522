"""Image files: the only place that decodes pixels, and says why a file has none. Floor 1."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

# Called with (images done, images in all) while something lasts.
Progress = Callable[[int, int], None]

_CHUNK = 1024


def decode(contents: tf.Tensor, image_size: Sequence[int]) -> tf.Tensor:
  """One encoded image, decoded and resized.

  Bilinear with antialiasing, rounded to whole grey levels, so that a picture looks the same to
  training, evaluation and serving.

  Args:
    contents: string scalar, the bytes of a JPEG, PNG or BMP (without palette) file; of a GIF the
      first frame counts, of a transparent PNG the colours.
    image_size: (height, width).

  Returns:
    uint8 [height, width, 3].
  """
  height, width = image_size
  image = tf.io.decode_image(contents, channels=3, expand_animations=False)
  image.set_shape([None, None, 3])
  size = tf.shape(image)

  def resize(antialias):
    resized = tf.image.resize(image, (height, width), method='bilinear', antialias=antialias)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)

  # Enlarging with and without antialiasing is the same, and faster without.
  enlarges = tf.logical_and(size[0] <= height, size[1] <= width)
  image = tf.cond(enlarges, lambda: resize(False), lambda: resize(True))
  return tf.ensure_shape(image, [height, width, 3])


def undecodable(
  paths: Sequence[str],
  image_size: Sequence[int],
  *,
  parallel: int = tf.data.AUTOTUNE,
  progress: Progress | None = None,
) -> np.ndarray:
  """Positions (int64 [M], ascending) of the files that cannot be decoded.

  They are decoded as for training, and not kept.

  Args:
    paths: of the files.
    image_size: (height, width).
    parallel: files at a time.
    progress: called after each thousand.
  """

  def attempt(index, path):
    image = decode(tf.io.read_file(path), image_size)
    # The result must depend on the pixels, or the decoding would be optimised away.
    return index + 0 * tf.cast(image[0, 0, 0], tf.int64)

  # `ignore_errors` gives just what could be decoded. In chunks, to be able to tell the progress.
  sound = np.zeros(len(paths), bool)
  paths = np.asarray(paths, dtype=object)
  for start in range(0, len(paths), _CHUNK):
    stop = min(start + _CHUNK, len(paths))
    dataset = tf.data.Dataset.from_tensor_slices(
      (np.arange(start, stop, dtype=np.int64), paths[start:stop])
    )
    dataset = dataset.map(attempt, num_parallel_calls=parallel).ignore_errors()
    sound[[int(index) for index in dataset]] = True
    if progress:
      progress(stop, len(paths))
  return np.flatnonzero(~sound)


def reason(path: str) -> str:
  """Why a file cannot be decoded, in a few words."""
  try:
    contents = tf.io.read_file(str(path))
  except tf.errors.NotFoundError:
    return 'there is no such file'
  except tf.errors.OpError:
    return 'the file cannot be read'
  start = contents.numpy()[:8]
  if not start:
    return 'the file is empty'
  if not start.startswith((b'\xff\xd8', b'\x89PNG', b'GIF8', b'BM')):
    return f'it is not an image (it starts with {start!r})'
  try:
    tf.io.decode_image(contents, channels=3, expand_animations=False)
  except tf.errors.OpError as error:
    # Without the names of ops that TensorFlow puts around its sentence.
    said = re.sub(r'\{\{.*?\}\}|\[Op:.*?\]|name:', '', error.message[:1000]).strip()
    return f'the image is truncated or damaged ({said.splitlines()[0]})'
  return 'it cannot be resized'
