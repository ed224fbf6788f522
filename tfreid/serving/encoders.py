"""The encoders of a joint space, made for inference, and what they make of files. Floor 4."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfreid import image_bytes, replicas
from tfreid.data import image_files
from tfreid.joint_space import JointSpace
from tfreid.serving.folding import FoldedEncoder
from tfreid.serving.stored_encoders import Encoders

# Called with (images done, images in all).
Progress = Callable[[int, int], None]


class Crop(NamedTuple):
  """An encoded image: what to call it in messages, and its bytes."""

  name: str
  contents: bytes


def encoders(space: JointSpace, *, precision: str = 'float32') -> Encoders:
  """The encoders of a joint space, folded.

  Args:
    space: as trained.
    precision: of the image encoder's convolutions, 'float32' or 'bfloat16'.
  """
  return Encoders(
    FoldedEncoder(space.image_encoder, precision=precision), FoldedEncoder(space.attribute_encoder)
  )


def embed_files(
  encoder: FoldedEncoder,
  paths: Sequence[str],
  *,
  batch_size: int = 32,
  skip_bad: bool = False,
  progress: Progress | None = None,
  strategy: tf.distribute.Strategy | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Image concepts of files, decoded as the exported model decodes them.

  Args:
    encoder: pixels -> concepts.
    paths: of image files.
    batch_size: images at a time, on each device.
    skip_bad: leave files out that cannot be decoded, instead of failing.
    progress: called after each batch.
    strategy: from `replicas.local`, in whose scope the encoder was made; by default one device.

  Returns:
    float32 [M, E] and int64 [M], the positions in `paths` of what was embedded, ascending.

  Raises:
    ValueError: a file cannot be decoded (it is named), or none can.
  """
  image_size = encoder.input_shape[:2]
  strategy = strategy or tf.distribute.get_strategy()
  embed = replicas.by_parts(
    lambda images: encoder(tf.cast(images, tf.float32)),
    strategy,
    tf.TensorSpec([None, *encoder.input_shape], tf.uint8),
  )
  batch_size *= strategy.num_replicas_in_sync

  paths = [str(path) for path in paths]
  dataset = image_files.images(paths, image_size, skip_bad=skip_bad)
  concepts, positions = [], []
  try:
    for batch, pictures in dataset.batch(batch_size).prefetch(2):
      concepts.append(embed(pictures).numpy())
      positions.append(batch.numpy())
      if progress:
        progress(int(batch[-1]) + 1, len(paths))
  except tf.errors.OpError as error:
    raise _explained(error, paths) from error
  if not concepts:
    raise ValueError(
      f'None of the {len(paths)} images can be read. {image_bytes.KINDS} are expected.'
      if paths
      else 'There is no image to embed.'
    )
  return np.concatenate(concepts), np.concatenate(positions)


def _explained(error: tf.errors.OpError, paths: Sequence[str]) -> Exception:
  """What to raise for an error of reading one of the files: an error that names it."""
  bad = image_files.undecodable(paths)
  if len(bad):
    return ValueError(
      f'{paths[bad[0]]} cannot be read: {image_files.reason(paths[bad[0]])}. '
      f'{image_bytes.KINDS} are expected. Replace or remove it, or leave unreadable files out '
      '(--on_bad_image=skip).'
    )
  if isinstance(error, (tf.errors.NotFoundError, tf.errors.InvalidArgumentError)):
    return ValueError(
      f'A file could not be read when its turn came, and can be read now: {first_line(error)}. Do '
      'not change the images while they are embedded; give the same command again.'
    )
  return error


def first_line(error: tf.errors.OpError) -> str:
  """The message without TensorFlow's account of where in the graph it arose."""
  text = error.message.splitlines()[0]
  return text.split('} ', 1)[-1].split(' [Op:', 1)[0].rstrip('.')
