"""Checks of a written model against what it was made from, before it gets its name. Floor 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfreid import image_bytes
from tfreid.data import image_files
from tfreid.data.attributes import AttributeSchema
from tfreid.joint_space import JointSpace
from tfreid.serving import errors, folding
from tfreid.serving.encoders import Crop

if TYPE_CHECKING:
  from tfreid.serving.exported_space import ExportedSpace

# The functions of a SavedModel by the names of their signatures.
Signatures = Mapping[str, Callable]


def example_attributes(size: int, schema: AttributeSchema | None) -> np.ndarray:
  """Attribute vectors float32 [8, A] to compare encoders with: one of everybody, others random."""
  bits = np.random.default_rng(0).integers(0, 2, (8, size)).astype(np.float32)
  if schema is None:
    return bits
  vectors = schema.from_bits(bits)
  # A query that says one thing only, as people's do.
  attribute = schema.attributes[0]
  vectors[0] = schema.encode_query({attribute.name: attribute.values[-1]})
  return vectors


def as_sent(crop: Crop) -> Crop:
  """A crop as a client sends it to the exported model.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    contents = image_bytes.for_model(crop.contents)
    image_bytes.pixels(contents)
  except image_bytes.BadImageError as error:
    raise ValueError(f'The crop {crop.name} cannot be read: {error}.') from error
  return Crop(crop.name, contents)


def expected_concepts(
  space: JointSpace | ExportedSpace, crops: Sequence[Crop], attributes: np.ndarray
) -> dict[str, np.ndarray]:
  """The concepts that the space makes of crops and attribute vectors, by the side they are of."""
  if not isinstance(space, JointSpace):
    embedded = space.embed([crop.contents for crop in crops], attributes)
    return dict(zip(('image', 'attribute'), embedded))
  size = space.image_shape[:2]
  images = [tf.cast(image_files.decode(crop.contents, size), tf.float32) for crop in crops]
  return {
    'image': space.encode_images(tf.stack(images)).numpy(),
    'attribute': space.encode_attributes(tf.constant(attributes)).numpy(),
  }


def check_encoders(
  written: Signatures,
  expected: Mapping[str, np.ndarray],
  crops: Sequence[Crop],
  attributes: np.ndarray,
  limit: float,
) -> dict[str, Any]:
  """Compares the written encoders with what is expected of them.

  Returns:
    What was measured, for model.json.

  Raises:
    ValueError: a concept differs by more than `limit`.
  """
  asked = {
    'image': ('embed_images', {'image_bytes': tf.constant([crop.contents for crop in crops])}),
    'attribute': ('embed_attributes', {'attributes': tf.constant(attributes)}),
  }
  measured = {}
  for side, (signature, given) in asked.items():
    try:
      concepts = written[signature](**given)['concepts']
    except tf.errors.InvalidArgumentError as error:
      # The written model refuses concepts that are not finite.
      raise ValueError(
        f'The exported {side} encoder differs from the original one: it cannot embed what the '
        f'original one embeds ({errors.plain(error.message)}). Nothing was exported.'
      ) from error
    measured[side] = folding.relative_errors(concepts, expected[side])
  limits = {'image': limit, 'attribute': folding.TOLERANCES['float32']}
  for side, differences in measured.items():
    # Not "greater than": an error that is not a number is too large as well.
    if not differences.max() <= limits[side]:
      which = (
        crops[int(differences.argmax())].name
        if side == 'image'
        else f'query {differences.argmax()}'
      )
      raise ValueError(
        f'The exported {side} encoder differs from the original one: relative error '
        f'{differences.max():.2g} of the concept of {which}, with a tolerance of '
        f'{limits[side]:.2g}. '
        + (
          'Nothing was exported. Export in float32, or raise the tolerance if the ranking '
          'is still good enough.'
          if side == 'image'
          else 'Nothing was exported.'
        )
      )
  return {
    'crops': len(crops),
    'queries': len(attributes),
    'image_error': float(measured['image'].max()),
    'image_tolerance': limits['image'],
    'attribute_error': float(measured['attribute'].max()),
    'attribute_tolerance': limits['attribute'],
  }


def check_ranking(
  written: Signatures,
  gallery: np.ndarray,
  greatest_norm: float,
  ids: Sequence[str],
  attributes: np.ndarray,
  num_queries: int = 2,
) -> None:
  """Compares the written model's ranking with a full sort, and its explanation with the products.

  Raises:
    ValueError: they differ by more than rounding.
  """
  variants = np.broadcast_to(attributes, (num_queries, *attributes.shape))  # [Q, M, A]
  # In one batch, as `explain` embeds them: in another one they may round otherwise.
  others = written['embed_attributes'](
    attributes=tf.constant(variants.reshape(-1, attributes.shape[1]))
  )['concepts'].numpy()
  others = others.reshape(num_queries, len(attributes), -1)  # [Q, M, E]
  attributes = tf.constant(attributes[:num_queries])
  answer = written['serving_default'](attributes=attributes)
  explained = written['explain'](attributes=attributes, variants=tf.constant(variants))
  concepts = written['embed_attributes'](attributes=attributes)['concepts'].numpy()
  rows = {name: row for row, name in enumerate(ids)}
  # Each product of E numbers in float32 is off by some E roundings at most.
  room = 4e-7 * gallery.shape[1] * greatest_norm
  for i, (query, names, scores) in enumerate(
    zip(concepts, answer['ids'].numpy(), answer['scores'].numpy())
  ):
    expected = gallery @ query
    own = expected[[rows[name.decode()] for name in names]]
    best = -np.sort(-expected)[: len(names)]
    products = gallery[[rows[name.decode()] for name in explained['ids'].numpy()[i]]] @ others[i].T
    if not (
      np.abs(own - scores).max() <= room * np.linalg.norm(query)
      and np.abs(best - scores).max() <= room * np.linalg.norm(query)
      and len(set(names)) == len(names)
      and np.abs(explained['scores'].numpy()[i] - scores).max() <= room * np.linalg.norm(query)
      and np.abs(explained['variant_scores'].numpy()[i] - products).max()
      <= room * np.linalg.norm(others[i], axis=1).max()
    ):
      raise ValueError(
        'The exported model ranks the gallery otherwise than a full sort does, or explains a '
        'ranking by other scores. Nothing was exported. This is a defect of the export; please '
        'report it.'
      )
