"""The waist of the house: two encoders that meet in a dot product. Floor 2.

Evaluation and export see a `JointSpace` and nothing else of a method.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

# Importing the networks registers the layers that saved encoders may contain.
from tfreid import forks, storage
from tfreid.networks import archive, flip

_FORMAT = 2
_SIDES = ('image', 'attribute')


class JointSpace(tf.Module):
  """Two encoders whose outputs are compared by their dot product.

  A method that means cosine ends its encoders in an L2 normalisation; one that means Pearson's
  correlation centres first; DeepMAR's log-likelihood is [s, -softplus(s)] . [a, known]. Retrieval
  never learns the difference.

  Attributes:
    image_encoder: functional model, float32 RGB pixels 0 ... 255 [B, H, W, 3] -> float32 [B, E].
    attribute_encoder: functional model, attribute vectors [B, A] -> float32 [B, E].
  """

  def __init__(self, image_encoder: tf.keras.Model, attribute_encoder: tf.keras.Model):
    """Joins the encoders.

    Raises:
      ValueError: they do not agree on the size E of the space.
    """
    super().__init__(name='joint_space')
    if image_encoder.output_shape[-1] != attribute_encoder.output_shape[-1]:
      raise ValueError(
        f'The encoders do not meet: images become {image_encoder.output_shape[-1]} numbers, '
        f'attributes {attribute_encoder.output_shape[-1]}.'
      )
    self.image_encoder = image_encoder
    self.attribute_encoder = attribute_encoder

  def with_flip_test(self) -> JointSpace:
    """The space in which an image is the mean of what it is and what it is in a mirror.

    It shares the variables of this one; see `tfreid.networks.flip`.

    Raises:
      ValueError: it has the flip test already.
    """
    return JointSpace(flip.with_flip_test(self.image_encoder), self.attribute_encoder)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, 3) that `encode_images` takes."""
    return tuple(self.image_encoder.input_shape[1:])

  @property
  def num_attributes(self) -> int:
    """Length A of an attribute vector."""
    return int(self.attribute_encoder.input_shape[-1])

  @property
  def size(self) -> int:
    """E, the number of dimensions."""
    return int(self.attribute_encoder.output_shape[-1])

  def encode_images(self, images: tf.Tensor) -> tf.Tensor:
    """Image concepts, float32 [B, E], of pixels 0 ... 255 [B, H, W, 3]; inference mode."""
    forks.check()
    return self._encode_images(images)

  def encode_attributes(self, attributes: tf.Tensor) -> tf.Tensor:
    """Attribute concepts, float32 [B, E], of attribute vectors [B, A]; inference mode."""
    forks.check()
    return self._encode_attributes(attributes)

  @tf.function(reduce_retracing=True)
  def _encode_images(self, images):
    return tf.cast(self.image_encoder(images, training=False), tf.float32)

  @tf.function(reduce_retracing=True)
  def _encode_attributes(self, attributes):
    return tf.cast(self.attribute_encoder(attributes, training=False), tf.float32)

  def save(self, directory: str, *, metadata: Mapping[str, Any] | None = None):
    """Writes `directory` whole or not at all; an older one of that name is replaced.

    Two `.keras` archives rather than one SavedModel: they keep the architecture, which lets the
    export fold and convert layers, and are written in a second instead of half a minute.

    Args:
      directory: to write.
      metadata: JSON-able facts that travel along: the attribute schema, dataset, method, ...
    """
    parent = os.path.dirname(os.path.abspath(directory))
    storage.make_directories(parent)
    partial = tempfile.mkdtemp(prefix=f'.{os.path.basename(directory)}-', dir=parent)
    try:
      for side, encoder in zip(_SIDES, (self.image_encoder, self.attribute_encoder)):
        encoder.save(os.path.join(partial, f'{side}_encoder.keras'))
      about = {
        'format': _FORMAT,
        'image_shape': list(self.image_shape),
        'num_attributes': self.num_attributes,
        'size': self.size,
        **(metadata or {}),
      }
      storage.write_json(os.path.join(partial, 'space.json'), about)
      storage.seal(partial)
      os.chmod(partial, 0o755)
      storage.put_directory(partial, directory)
    finally:
      shutil.rmtree(partial, ignore_errors=True)

  @classmethod
  def load(cls, directory: str) -> JointSpace:
    """The space saved in `directory`, computing in float32 whatever policy trained it.

    Needs neither gin nor the method's code. `metadata(directory)` has what else was saved. The
    files are checked against their checksums, and may hold nothing but the layers that the project
    writes (`tfreid.networks.archive`).

    Raises:
      FileNotFoundError: `directory` holds no saved space.
      ValueError: it is damaged, or holds something else than the project's layers.
    """
    about = cls.metadata(directory)
    if about['format'] > 1:  # earlier releases wrote no seals
      storage.check_seal(directory, what='joint space')
    return cls(*(archive.load(os.path.join(directory, f'{side}_encoder.keras')) for side in _SIDES))

  @staticmethod
  def metadata(directory: str) -> dict[str, Any]:
    """What `save` was told, and the sizes.

    Raises:
      FileNotFoundError: `directory` holds no saved space.
      ValueError: it is damaged, or was written by a newer version.
    """
    path = os.path.join(directory, 'space.json')
    if not os.path.isfile(path):
      present = sorted(os.listdir(directory))[:5] if os.path.isdir(directory) else 'no such folder'
      raise FileNotFoundError(
        f"'{directory}' holds no joint space (found: {present}). Give the 'space' folder of a "
        'finished stage, for example runs/demo/joint/space.'
      )
    what = 'description of the joint space'
    about = storage.read_json(path, what=what, required=False)
    number = about.get('format')
    if not isinstance(number, int) or number > 1 or os.path.exists(_seal(directory)):
      about = storage.read_json(path, what=what)
    if about['format'] > _FORMAT:
      raise ValueError(f"'{directory}' was written by a newer version of tfreid.")
    return about


def _seal(directory: str) -> str:
  return os.path.join(directory, storage.SEAL)


def similarity(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
  """Dot products, float32 [Q, N], of [Q, E] and [N, E]: the score everything is ranked by."""
  return np.matmul(queries, gallery.T)
