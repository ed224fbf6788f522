"""Frozen image features in the place of images, for the rivals of Table 2. Floor 3."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfreid.data.batches import ArrayBatches
from tfreid.methods.method import Batches
from tfreid.networks import encoder


def extract(
  image_encoder: tf.keras.Model, batches: Batches, *, layer: str = encoder.FEATURES
) -> dict[str, np.ndarray]:
  """Runs a frozen image encoder over the training images once, unaugmented.

  "We use features extracted by our pre-trained ResNet50 as image features, and raw attributes as
  attribute features in all the compared models" (Sec. 4.4).

  Args:
    image_encoder: used in inference mode.
    batches: the images.
    layer: 'features' [N, F] or 'concept' [N, E], see `networks.encoder`.

  Returns:
    'image' float32 [N, F], 'attributes' float32 [N, A], 'semantic_id' int64 [N].

  Raises:
    ValueError: the batches drop attributes at random, which would have no effect here.
  """
  if getattr(batches, 'drops_attributes', False):
    raise ValueError(
      'This system trains on features and attributes that are extracted once, so dropping '
      'attributes at random (Pipeline.attribute_dropout, three_state.gin) would have no effect. '
      "Bind pipeline.Pipeline.attribute_dropout = 0.0; ENCODING = 'three_state' may stay."
    )
  network = encoder.features(image_encoder, layer)
  run = tf.function(lambda images: network(images, training=False), reduce_retracing=True)
  parts: dict[str, list] = {'image': [], 'attributes': [], 'semantic_id': []}
  for batch in batches.evaluation():
    parts['image'].append(run(batch['image']).numpy())
    parts['attributes'].append(batch['attributes'].numpy())
    parts['semantic_id'].append(batch['semantic_id'].numpy())
  return {name: np.concatenate(part) for name, part in parts.items()}


def feature_batches(
  arrays: dict[str, np.ndarray], batches: Batches, *, batch_size: int = 0
) -> ArrayBatches:
  """The extracted arrays as batches, seeded and sharded as the images' were.

  Args:
    arrays: what `extract` returned, standardised or not.
    batches: where seed, shard and (with batch_size 0) the batch size come from.
    batch_size: of the global batch; -1 means all images at once.
  """
  size = 0 if batch_size < 0 else batch_size or batches.batch_size
  return ArrayBatches(
    arrays, batch_size=size, seed=batches.seed, shard=getattr(batches, 'shard', (0, 1))
  )
