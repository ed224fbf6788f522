"""The model that is served: descriptions and crops in, ranked crops out. Floor 4.

Built once, complete, and never changed. Stock operations only, no Python state, nothing random; the
weights, the gallery and its ids are variables, so that nothing hits the 2 GB limit of a graph.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfreid.data import image_files
from tfreid.data.attributes import AttributeSchema
from tfreid.serving import descriptions
from tfreid.serving import signatures as described
from tfreid.serving.folding import FoldedEncoder
from tfreid.serving.search import ExactSearch
from tfreid.serving.signatures import MAX_ROWS, MAX_VARIANTS, Tensor

# Methods that several signatures call, and the tensor that each takes.
_SHARED = (
  ('best_rows', 'concepts'),
  ('search', 'concepts'),
  ('embed_attributes', 'attributes'),
  ('embed_images', 'image_bytes'),
)


class Retriever(tf.Module):
  """Both encoders and a gallery, as signatures of a SavedModel.

  Every input and output has the batch as its leading dimension, as the row format of TF Serving's
  REST interface and its batching need it. So the number of results K is fixed: min(top_k, N).

  What each takes, answers and is for stands in `signatures`.

  Attributes:
    image_shape: (height, width, 3) to which crops are resized.
    num_attributes: A.
    size: E.
    gallery_size: N.
    num_results: K.
  """

  def __init__(
    self,
    image_encoder: FoldedEncoder,
    attribute_encoder: FoldedEncoder,
    *,
    gallery: np.ndarray,
    ids: Sequence[str],
    top_k: int = 100,
    schema: AttributeSchema | None = None,
    gallery_precision: str = 'float32',
    about: Mapping[str, Any] | None = None,
  ):
    """Puts the parts together.

    Args:
      image_encoder: pixels -> concepts.
      attribute_encoder: attribute vectors -> concepts.
      gallery: float32 [N, E], the image concepts to search. With no row the model has no
        signature that searches: it is for an index, which holds the concepts.
      ids: N strings, all different, what an answer calls the rows of the gallery.
      top_k: number of results at most.
      schema: of the attributes; without it there is no search by words.
      gallery_precision: of the scan of the gallery, 'float32' or 'bfloat16'; see `ExactSearch`.
      about: further facts for `describe`, JSON-able. Everybody who may ask can read them.

    Raises:
      ValueError: the sizes do not fit, an id occurs twice or is empty, or the gallery is not
        finite.
    """
    super().__init__(name='retriever')
    names = [str(name) for name in ids]
    gallery = np.asarray(gallery)
    sizes = {image_encoder.size, attribute_encoder.size, gallery.shape[-1] if gallery.ndim else 0}
    if len(sizes) != 1:
      raise ValueError(
        f'The concepts of images have {image_encoder.size} numbers, those of attributes '
        f'{attribute_encoder.size}, and the gallery has the shape {gallery.shape}; all three must '
        'end in the same size.'
      )
    if len(names) != len(gallery):
      raise ValueError(
        f'{len(names)} ids for {len(gallery)} rows of the gallery; give one for each.'
      )
    distinct, counts = np.unique(np.asarray(names, dtype=str), return_counts=True)
    if len(distinct) != len(names) or '' in distinct[:1]:
      worst = distinct[counts.argmax()]
      raise ValueError(
        f"The id '{worst}' stands for {counts.max()} rows of the gallery. Each row needs an id of "
        'its own, and none may be empty.'
      )
    if schema is not None and schema.size != attribute_encoder.input_shape[-1]:
      raise ValueError(
        f'The schema of {schema.name} has {schema.size} columns, the attribute encoder takes '
        f'{attribute_encoder.input_shape[-1]}. They must belong together.'
      )
    self.image_encoder = image_encoder
    self.attribute_encoder = attribute_encoder
    self.image_shape = image_encoder.input_shape
    self.num_attributes = int(attribute_encoder.input_shape[-1])
    self.size = image_encoder.size
    self.gallery_size = len(names)
    self.num_results = min(top_k, self.gallery_size)
    if names:
      self.gallery = ExactSearch(gallery, precision=gallery_precision)
    self.ids = tf.Variable(names, trainable=False, dtype=tf.string, name='ids')
    # A schema is no tensor: it is tracked as little as the tables that are made of it.
    reader = None if schema is None else descriptions.DescriptionReader(schema)
    self._read: Callable | None = reader and (lambda texts: reader(texts))
    self._description = json.dumps(
      {
        'schema': schema and schema.to_json(),
        **self.sizes,
        **(about or {}),
      },
      ensure_ascii=False,
    )
    # Traced once each, whatever the number of signatures that call them.
    self._specs = {name: self._spec(tensor) for name, tensor in described.tensors().items()}
    for method, tensor in _SHARED:
      if method in ('best_rows', 'search') and not names:
        continue
      setattr(self, method, self._traced(getattr(self, method), tensor))

  @property
  def sizes(self) -> dict[str, Any]:
    """What a client must know of it beside the schema."""
    return {
      'image_size': list(self.image_shape[:2]),
      'num_attributes': self.num_attributes,
      'embedding_size': self.size,
      'gallery_size': self.gallery_size,
      'num_results': self.num_results,
    }

  def _spec(self, tensor: Tensor) -> tf.TensorSpec:
    known = {'A': self.num_attributes, 'E': self.size}
    return tf.TensorSpec([known.get(side) for side in tensor.shape], tensor.dtype, tensor.name)

  def _traced(self, function: Callable, *names: str):
    return tf.function(function, input_signature=[self._specs[name] for name in names])

  def embed_attributes(self, attributes: tf.Tensor) -> tf.Tensor:
    """Attribute concepts, float32 [B, E], of attribute vectors [B, A].

    Raises:
      InvalidArgumentError: when it runs, for numbers that are not finite, or so large that the
        concept would not be.
    """
    # Here and not at the concepts alone: on some machines a ReLU makes 0 of NaN.
    concepts = self.attribute_encoder(
      tf.debugging.assert_all_finite(attributes, 'An attribute vector holds NaN or infinity')
    )
    return tf.debugging.assert_all_finite(
      concepts,
      'The numbers of an attribute vector are too large: its concept holds NaN or infinity',
    )

  def embed_images(self, image_bytes: tf.Tensor) -> tf.Tensor:
    """Image concepts, float32 [B, E], of encoded crops, string [B].

    Raises:
      InvalidArgumentError: when it runs, for what is no JPEG or PNG, is damaged, or is larger than
        any crop.
    """
    images = decode_crops(image_bytes, self.image_shape[:2])
    # Some kernels of convolutions refuse an empty batch: it gets an image, and loses it again.
    count = tf.shape(images)[0]
    spare = tf.zeros([tf.cast(count == 0, tf.int32), *self.image_shape])
    return self.image_encoder(tf.concat([images, spare], axis=0))[:count]

  def best_rows(self, concepts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores float32 [B, K], falling, and rows int64 [B, K] of the gallery for concepts [B, E]."""
    return self.gallery(concepts, k=self.num_results)

  def search(self, concepts: tf.Tensor) -> dict[str, tf.Tensor]:
    """The best K crops for concepts [B, E]: 'ids' string [B, K] and 'scores' float32 [B, K].

    Scores are dot products, falling; of equal scores the lower row of the gallery comes first.
    """
    scores, rows = self.best_rows(concepts)
    return {'ids': tf.gather(self.ids.value(), rows), 'scores': scores}

  def search_ids(self, crop_ids: tf.Tensor) -> dict[str, tf.Tensor]:
    """The best K crops for crops of the gallery, by their ids, string [B].

    Returns:
      'ids' and 'scores' as `search` does, the crop itself among them; '' and 0 for an id that is
      not in the gallery.
    """
    names = self.ids.value()

    def find(name):
      # Ids differ, so there is one row at most; -1 if there is none.
      return tf.reduce_max(tf.concat([tf.where(names == name)[:, 0], [-1]], axis=0))

    rows = tf.map_fn(find, crop_ids, fn_output_signature=tf.int64)
    results = self.search(self.gallery.rows(tf.maximum(rows, 0)))
    return _only(rows >= 0, results)

  def describe(self, any: tf.Tensor) -> dict[str, tf.Tensor]:
    """The schema and the sizes as JSON: 'description' string [B], B times the same."""
    return {'description': tf.fill(tf.shape(any), self._description)}

  def explain(self, attributes: tf.Tensor, variants: tf.Tensor) -> dict[str, tf.Tensor]:
    """The best K crops for attribute vectors [B, A], and what they score for other vectors.

    The ranking is that of `attributes` alone. With the query less one attribute as a variant, the
    difference of the scores says what that attribute did for a crop; with the query and one
    more, what an answer would change.

    Args:
      attributes: float32 [B, A].
      variants: float32 [B, M, A], M >= 0 attribute vectors for each query.

    Returns:
      'ids' and 'scores' as `search` does, and 'variant_scores' float32 [B, K, M].

    Raises:
      InvalidArgumentError: when it runs, for numbers that are not finite, or another number of
        queries in `variants` than in `attributes`.
    """
    variants = tf.ensure_shape(variants, variants.shape)
    fits = tf.debugging.assert_equal(
      tf.shape(variants)[0],
      tf.shape(attributes)[0],
      'Variants must be given for each query: [B, M, A] for attributes [B, A]. Queries:',
    )
    few = tf.debugging.assert_less_equal(
      tf.reduce_prod(tf.cast(tf.shape(variants)[:2], tf.int64)),
      tf.constant(MAX_VARIANTS, tf.int64),
      f'A request may have {MAX_VARIANTS} variants. It has:',
    )
    scores, rows = self.best_rows(self.embed_attributes(attributes))
    with tf.control_dependencies([fits, few]):
      shape = tf.shape(variants)
    concepts = self.embed_attributes(tf.reshape(variants, [-1, self.num_attributes]))
    concepts = tf.reshape(concepts, [shape[0], shape[1], self.size])  # [B, M, E]
    return {
      'ids': tf.gather(self.ids.value(), rows),
      'scores': scores,
      'variant_scores': tf.matmul(self.gallery.rows(rows), concepts, transpose_b=True),
    }

  def search_words(self, texts: tf.Tensor) -> dict[str, tf.Tensor]:
    """The best K crops for descriptions, string [B], and how they were read.

    Returns:
      'ids' and 'scores' as `search` does; 'understood', the settings the text was read as;
      'unknown', the words that are in no phrase; 'contradictory', the attributes about which it
      contradicts itself. Nothing is guessed: unless all of a text was understood, its ids are ''
      and its scores 0.
    """
    assert self._read is not None  # or the signature is not available
    reading = self._read(texts)
    results = self.search(self.embed_attributes(reading.vectors))
    return {
      **_only(reading.valid, results),
      'understood': reading.understood,
      'unknown': reading.unknown,
      'contradictory': reading.contradictory,
    }

  def signatures(self) -> dict[str, Callable]:
    """The concrete functions to save, by the name of their signature."""
    functions: dict[str, Callable] = {
      'serving_default': lambda attributes: self.search(self.embed_attributes(attributes)),
      'search_words': self.search_words,
      'search_images': lambda image_bytes: self.search(self.embed_images(image_bytes)),
      'search_concepts': self.search,
      'search_ids': self.search_ids,
      'explain': self.explain,
      'embed_images': lambda image_bytes: {'concepts': self.embed_images(image_bytes)},
      'embed_attributes': lambda attributes: {'concepts': self.embed_attributes(attributes)},
      'describe': self.describe,
    }

    def bounded(signature):
      def function(first, *others):
        return functions[signature.name](_few(first, signature.max_rows), *others)

      names = [tensor.name for tensor in signature.inputs]
      return self._traced(_with_parameters(function, names), *names).get_concrete_function()

    wanted = described.available(
      has_schema=self._read is not None, has_gallery=self.gallery_size > 0
    )
    return {signature.name: bounded(signature) for signature in wanted}


def _with_parameters(function: Callable, names: Sequence[str]) -> Callable:
  """The function with parameters of these names, by which a signature's inputs are called."""

  def named(*values):
    return function(*values)

  parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
  # Functions may be given one, which tf.function reads; the type of functions does not know it.
  named.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
  return named


def _few(rows: tf.Tensor, limit: int = MAX_ROWS) -> tf.Tensor:
  """The rows [B, ...], of the shape that the signature says: a server checks types, not shapes.

  Raises:
    InvalidArgumentError: when it runs, for another shape, or more rows than `limit`.
  """
  rows = tf.ensure_shape(rows, rows.shape)
  count = tf.shape(rows)[0]
  check = tf.debugging.Assert(
    count <= limit, [f'A request may have {limit} rows. Send the rest in another. It has:', count]
  )
  with tf.control_dependencies([check]):
    return tf.identity(rows)


def _only(valid: tf.Tensor, found: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """What was found for the rows that are valid (bool [B]); ids '' and scores 0 for the others."""
  valid = valid[:, tf.newaxis]
  return {
    'ids': tf.where(valid, found['ids'], ''),
    'scores': tf.where(valid, found['scores'], 0.0),
  }


def decode_crops(image_bytes: tf.Tensor, image_size: Sequence[int]) -> tf.Tensor:
  """Encoded crops, decoded and resized as for training and evaluation.

  Args:
    image_bytes: string [B], JPEG or PNG files.
    image_size: (height, width).

  Returns:
    float32 [B, height, width, 3], 0 ... 255.

  Raises:
    InvalidArgumentError: when it runs, for other files, damaged ones, and those beyond a limit, see
      `image_files.decode_batch`.
  """

  images = image_files.decode_batch(tf.ensure_shape(image_bytes, [None]), image_size)
  return tf.cast(images, tf.float32)
