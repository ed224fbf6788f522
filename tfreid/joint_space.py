"""The waist of the house: two encoders that meet in a dot product. Floor 2.

Evaluation and export see a `JointSpace` and nothing else of a method.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

# Registers the layers that saved encoders may contain.
from tfreid import networks  # noqa: F401

_FORMAT = 1


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

  @tf.function(reduce_retracing=True)
  def encode_images(self, images: tf.Tensor) -> tf.Tensor:
    """Image concepts, float32 [B, E], of pixels 0 ... 255 [B, H, W, 3]; inference mode."""
    return tf.cast(self.image_encoder(images, training=False), tf.float32)

  @tf.function(reduce_retracing=True)
  def encode_attributes(self, attributes: tf.Tensor) -> tf.Tensor:
    """Attribute concepts, float32 [B, E], of attribute vectors [B, A]; inference mode."""
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
    os.makedirs(parent, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=f'.{os.path.basename(directory)}-', dir=parent)
    try:
      self.image_encoder.save(os.path.join(partial, 'image_encoder.keras'))
      self.attribute_encoder.save(os.path.join(partial, 'attribute_encoder.keras'))
      about = {
        'format': _FORMAT,
        'image_shape': list(self.image_shape),
        'num_attributes': self.num_attributes,
        'size': self.size,
        **(metadata or {}),
      }
      with open(os.path.join(partial, 'space.json'), 'w', encoding='utf-8') as file:
        json.dump(about, file, indent=1, ensure_ascii=False)
      os.chmod(partial, 0o755)
      if os.path.isdir(directory):
        shutil.rmtree(directory)
      os.rename(partial, directory)
    finally:
      shutil.rmtree(partial, ignore_errors=True)

  @classmethod
  def load(cls, directory: str) -> JointSpace:
    """The space saved in `directory`, computing in float32 whatever policy trained it.

    Needs neither gin nor the method's code. `metadata(directory)` has what else was saved.

    Raises:
      FileNotFoundError: `directory` holds no saved space.
    """
    cls.metadata(directory)
    return cls(
      *(
        _load_float32(os.path.join(directory, f'{side}_encoder.keras'))
        for side in ('image', 'attribute')
      )
    )

  @staticmethod
  def metadata(directory: str) -> dict[str, Any]:
    """What `save` was told, and the sizes.

    Raises:
      FileNotFoundError: `directory` holds no saved space.
      ValueError: it was written by a newer version.
    """
    path = os.path.join(directory, 'space.json')
    if not os.path.isfile(path):
      found = sorted(os.listdir(directory))[:5] if os.path.isdir(directory) else 'no such folder'
      raise FileNotFoundError(
        f"'{directory}' holds no joint space (found: {found}). Give the 'space' folder of a "
        'finished stage, for example runs/demo/joint/space.'
      )
    with open(path, encoding='utf-8') as file:
      about = json.load(file)
    if about.get('format', 0) > _FORMAT:
      raise ValueError(f"'{directory}' was written by a newer version of tfreid.")
    return about


def _load_float32(path: str) -> tf.keras.Model:
  """A `.keras` model with its mixed-precision policies replaced by float32.

  Variables are float32 under a mixed policy, so only the layers' compute type changes; half
  precision on a CPU would be both slow and coarser than what evaluation promises.
  """
  patched = io.BytesIO()
  with zipfile.ZipFile(path) as source, zipfile.ZipFile(patched, 'w') as target:
    for item in source.infolist():
      data = source.read(item.filename)
      if item.filename == 'config.json':
        data = json.dumps(_float32_policies(json.loads(data))).encode()
      target.writestr(item, data)
  with tempfile.TemporaryDirectory() as folder:
    copy = os.path.join(folder, 'model.keras')
    with open(copy, 'wb') as file:
      file.write(patched.getvalue())
    return tf.keras.models.load_model(copy, compile=False)


def _float32_policies(config: Any) -> Any:
  if isinstance(config, dict):
    return {key: _float32_policies(value) for key, value in config.items()}
  if isinstance(config, list):
    return [_float32_policies(value) for value in config]
  if config in ('mixed_float16', 'mixed_bfloat16'):
    return 'float32'
  return config


def similarity(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
  """Dot products, float32 [Q, N], of [Q, E] and [N, E]: the score everything is ranked by."""
  return np.matmul(queries, gallery.T)
