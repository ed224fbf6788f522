"""Searching an exported model: the SavedModel that TF Serving would serve. Floor 4."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfreid.data import words
from tfreid.data.attributes import AttributeSchema
from tfreid.search import asking, gallery
from tfreid.search.answer import Answer, Hit, Suggestion
from tfreid.serving import errors


class ExportedModel:
  """A version of an exported model, loaded in this process.

  Only the SavedModel and the files beside it are read: neither gin nor the method's code.

  Attributes:
    directory: of the version.
    schema: the attributes the model was trained with.
  """

  def __init__(self, directory: str):
    """Loads the version.

    Args:
      directory: of a version (`saved_models/demo/1`), or of a model, whose newest version is taken.

    Raises:
      FileNotFoundError: there is no exported model, or it was exported without a schema.
    """
    self.directory = newest_version(directory)
    extra = os.path.join(self.directory, 'assets.extra')
    path = os.path.join(extra, 'schema.json')
    if not os.path.isfile(path):
      raise FileNotFoundError(
        f"The model '{self.directory}' has no assets.extra/schema.json, so it does not know what "
        'its attributes are called. Export it with a schema to search it by description.'
      )
    with open(path, encoding='utf-8') as file:
      self.schema = AttributeSchema.from_json(file.read())
    self._gallery = gallery.read(os.path.join(extra, 'gallery.jsonl'))
    self._model = tf.saved_model.load(self.directory)

  def search(
    self,
    query: str | Mapping[str, str],
    *,
    top_k: int = 20,
    text: str = '',
    explain: bool = False,
    **options: Any,
  ) -> Answer:
    """The best crops for a description.

    Args:
      query: a description in words, or attribute name to value.
      top_k: number of crops; the export fixed how many there are at most.
      text: the description as it was given, for the answer.
      explain: fill `Hit.reasons`, in the same pass through the model.
      **options: none; those of an index are refused.

    Raises:
      ValueError: an unknown word, attribute or value, an option, or `explain` of a model that was
        exported before it could.
    """
    gallery.check(top_k, options)
    if isinstance(query, str):
      text = text or query
      query = words.parse(query, self.schema)
    vector = tf.constant(self.schema.encode_query(query)[np.newaxis])
    started = time.perf_counter()
    reasons: list[dict[str, float]] = []
    if explain:
      variants = asking.withdrawals(self.schema, query)[np.newaxis]
      found = self._ask('explain', attributes=vector, variants=tf.constant(variants))
      scores, without = found['scores'].numpy()[0], found['variant_scores'].numpy()[0]
      reasons = asking.reasons(list(query), scores, without)
    else:
      found = self._ask('serving_default', attributes=vector)
    seconds = time.perf_counter() - started
    return self._answer(
      found, top_k=top_k, query=dict(query), text=text, seconds=seconds, reasons=reasons
    )

  def like(self, crop: str | bytes, *, top_k: int = 20, **options: Any) -> Answer:
    """The crops most like one crop.

    Args:
      crop: the id of a crop of the gallery (which is then left out of the answer), the path of an
        image, or the bytes of one. The concept of a crop of the gallery is in the model: its file
        need not exist any more.
      top_k: number of crops; the export fixed how many there are at most.
      **options: none; those of an index are refused.

    Raises:
      ValueError: it is neither, the image cannot be decoded, or an option.
    """
    gallery.check(top_k, options)
    text, left_out = '', ''
    started = time.perf_counter()
    if isinstance(crop, bytes):
      found = self._ask('search_images', image_bytes=tf.constant([crop]))
    else:
      text = f'like {crop}'
      concept = self._concept(crop)
      if concept is not None:
        left_out = crop
        found = self._ask('search_concepts', concepts=tf.constant(concept[np.newaxis]))
      elif os.path.isfile(crop):
        with open(crop, 'rb') as file:
          found = self._ask('search_images', image_bytes=tf.constant([file.read()]))
      else:
        raise ValueError(f"'{crop}' is neither an id of the gallery nor an image file.")
    seconds = time.perf_counter() - started
    return self._answer(found, top_k=top_k, text=text, seconds=seconds, left_out=left_out)

  def suggest(self, query: str | Mapping[str, str], *, top_k: int = 50) -> list[Suggestion]:
    """What to ask for next: the attributes that the query leaves out, best first.

    Args:
      query: a description in words, or attribute name to value.
      top_k: number of best crops between which the answer is to decide.

    Returns:
      For each attribute of which nothing is said, the bits that its answer is expected to give
      about which of these crops is meant; see `asking.suggestions`.

    Raises:
      ValueError: an unknown word, attribute or value, or a model that was exported before it could
        explain.
    """
    gallery.check(top_k, {})
    if isinstance(query, str):
      query = words.parse(query, self.schema)
    vector = self.schema.encode_query(query)
    questions = asking.questions(self.schema, query)
    if not questions:
      return []
    variants = np.concatenate([question.vectors for question in questions])
    found = self._ask(
      'explain',
      attributes=tf.constant(vector[np.newaxis]),
      variants=tf.constant(variants[np.newaxis]),
    )
    return asking.suggestions(
      questions, found['scores'].numpy()[0, :top_k], found['variant_scores'].numpy()[0, :top_k]
    )

  def crop(self, identifier: str) -> Hit | None:
    """What is known of the crop of that id, with a score of 0; None if there is none."""
    if identifier not in self._gallery:
      return None
    return gallery.hits([identifier], [0.0], self._gallery, top_k=1)[0]

  def info(self) -> dict[str, Any]:
    """Facts of the model as plain JSON types: assets.extra/model.json, and what was loaded."""
    path = os.path.join(self.directory, 'assets.extra', 'model.json')
    about: dict[str, Any] = {}
    if os.path.isfile(path):
      with open(path, encoding='utf-8') as file:
        about = json.load(file)
    return {
      'directory': self.directory,
      'engine': 'exported model',
      'crops': len(self._gallery),
      'embedding_size': about.get('embedding_size'),
      'signatures': sorted(self._signatures()),
      'model': {'path': os.path.abspath(self.directory), **about},
    }

  def close(self) -> None:
    """Frees the model; nothing can be asked after that."""
    self._model = None

  def __enter__(self) -> ExportedModel:
    return self

  def __exit__(self, *exception: Any) -> None:
    self.close()

  def _signatures(self):
    if self._model is None:
      raise ValueError(f"The model '{self.directory}' is closed. Load it again to ask it.")
    return self._model.signatures

  def _ask(self, signature: str, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
    """What a signature answers.

    Raises:
      ValueError: the model has no such signature, or does not take the input.
    """
    signatures = self._signatures()
    if signature not in signatures:
      raise ValueError(
        f"The model '{self.directory}' has no signature {signature}: it was exported by an earlier "
        f'version (it has: {", ".join(sorted(signatures)) or "none"}). Export it again with '
        'tools/export.py.'
      )
    try:
      return signatures[signature](**inputs)
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
      raise ValueError(errors.plain(error.message)) from error

  def _concept(self, identifier: str) -> np.ndarray | None:
    """The concept, float32 [E], of a crop of the gallery; None if there is none of that id."""
    if identifier not in self._gallery:
      return None
    self._signatures()
    ids = self._model.ids.numpy()
    (rows,) = np.nonzero(ids == identifier.encode())
    if not len(rows):
      return None
    stored, row = self._model.gallery, int(rows[0])
    if hasattr(stored, 'vectors'):
      return stored.vectors[row].numpy()
    # A gallery that is scanned in bfloat16 keeps the halves of its float32 numbers apart; see
    # `tfreid.serving.search`.
    upper = tf.cast(tf.bitcast(stored.upper[row], tf.int16), tf.int32)
    lower = tf.cast(stored.lower[row], tf.int32)
    return tf.bitcast(tf.bitwise.left_shift(upper, 16) + lower, tf.float32).numpy()

  def _answer(self, found, *, top_k, seconds, query=(), text='', reasons=(), left_out='') -> Answer:
    hits = gallery.hits(
      [value.decode() for value in found['ids'].numpy()[0]],
      found['scores'].numpy()[0],
      self._gallery,
      top_k=top_k,
      reasons=reasons,
      left_out=left_out,
    )
    return Answer(
      query=dict(query),
      hits=hits,
      text=text,
      source=self.directory,
      gallery_size=len(self._gallery),
      seconds=seconds,
    )


def newest_version(directory: str) -> str:
  """The directory itself if it is a version, or its subfolder of the largest number.

  Raises:
    FileNotFoundError: it is neither.
  """
  if os.path.isfile(os.path.join(directory, 'saved_model.pb')):
    return directory
  entries = os.listdir(directory) if os.path.isdir(directory) else []
  versions = [
    entry
    for entry in entries
    if entry.isdigit() and os.path.isfile(os.path.join(directory, entry, 'saved_model.pb'))
  ]
  if not versions:
    raise FileNotFoundError(
      f"'{directory}' holds no exported model (found: {sorted(entries)[:5] or 'nothing'}). Give "
      'the folder of a version, for example saved_models/demo/1; tools/export.py writes them.'
    )
  return os.path.join(directory, max(versions, key=int))
