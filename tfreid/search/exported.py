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
from tfreid.search.answer import Answer, Hit


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
      FileNotFoundError: there is no exported model.
    """
    self.directory = newest_version(directory)
    with open(
      os.path.join(self.directory, 'assets.extra', 'schema.json'), encoding='utf-8'
    ) as file:
      self.schema = AttributeSchema.from_json(file.read())
    self._gallery = _gallery(os.path.join(self.directory, 'assets.extra', 'gallery.jsonl'))
    self._model = tf.saved_model.load(self.directory)
    self._retrieve = self._model.signatures['serving_default']

  def search(self, query: str | Mapping[str, str], *, top_k: int = 20, text: str = '') -> Answer:
    """The best crops for a description.

    Args:
      query: a description in words, or attribute name to value.
      top_k: number of crops; the export fixed how many there are at most.
      text: the description as it was given, for the answer.

    Raises:
      ValueError: an unknown word, attribute or value.
    """
    if isinstance(query, str):
      text = text or query
      query = words.parse(query, self.schema)
    vector = self.schema.encode_query(query)
    started = time.perf_counter()
    found = self._retrieve(attributes=tf.constant(vector[None]))
    seconds = time.perf_counter() - started
    ids = [value.decode() for value in found['ids'].numpy()[0]]
    scores = np.asarray(found['scores'])[0]
    hits = []
    for identifier, score in list(zip(ids, scores))[:top_k]:
      about = self._gallery.get(identifier, {})
      hits.append(
        Hit(
          id=identifier,
          score=float(score),
          path=about.get('path', ''),
          attributes=about.get('attributes') or {},
          metadata={key: about[key] for key in ('person_id', 'camera') if key in about},
        )
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


def _gallery(path: str) -> dict[str, dict[str, Any]]:
  """What is known of each crop, by id; {} where nothing was kept."""
  if not os.path.isfile(path):
    return {}
  with open(path, encoding='utf-8') as file:
    rows = [json.loads(line) for line in file if line.strip()]
  return {row['id']: row for row in rows}
