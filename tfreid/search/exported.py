"""Searching an exported model: the SavedModel that TF Serving would serve. Floor 4."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfreid import forks, image_bytes
from tfreid.data.attributes import AttributeSchema
from tfreid.search import gallery
from tfreid.serving import errors, loading, versions
from tfreid.source import explanation, suggestion
from tfreid.source import query as queries
from tfreid.source.answer import Answer, Hit, Suggestion
from tfreid.source.protocol import CANDIDATES, Capabilities, Description, SearchOptions
from tfreid.text import spellings

if TYPE_CHECKING:
  from typing_extensions import Unpack

  from tfreid.source.protocol import Narrowing


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
      ValueError: it is damaged.
    """
    self.directory = versions.newest(directory)
    extra = os.path.join(self.directory, 'assets.extra')
    path = os.path.join(extra, 'schema.json')
    if not os.path.isfile(path):
      raise FileNotFoundError(
        f"The model '{self.directory}' has no assets.extra/schema.json, so it does not know what "
        'its attributes are called. Export it with a schema to search it by description.'
      )
    # First: it compares all files with their checksums.
    self._model = loading.load(self.directory)
    self.schema = AttributeSchema.from_json(
      versions.read_json(self.directory, f'{versions.EXTRA}/schema.json')
    )
    self._gallery = gallery.read(os.path.join(extra, 'gallery.jsonl'))
    # gallery.jsonl may be missing, or of a part.
    self._size = int(self._model.ids.shape[0])

  def search(
    self,
    query: Description,
    *,
    top_k: int = 20,
    text: str = '',
    explain: bool = False,
    suggest: bool = False,
    options: SearchOptions | None = None,
    **narrowing: Unpack[Narrowing],
  ) -> Answer:
    """The best crops for a description; see `Source`.

    The export fixed how many there are at most, and there are no options. Reasons and suggestions
    come from the same pass through the model.

    Raises:
      ValueError: an unknown word, attribute or value, an option, or `explain` of a model that was
        exported before it could.
    """
    gallery.check(top_k, options, narrowing)
    if isinstance(query, str):
      text = text or query
    statements = queries.parsed(self.schema, query)
    said = self.schema.encode_query(statements)
    vector = tf.constant(said[np.newaxis])
    started = time.perf_counter()
    more = explanation.Explanation(
      self.schema, statements, explain=explain, suggest=suggest, said=said
    )
    reasons: list[dict[str, float]] = []
    suggestions: Sequence[Suggestion] = ()
    if explain or len(more.variants):
      variants = tf.constant(more.variants[np.newaxis])
      outputs = self._ask('explain', attributes=vector, variants=variants)
      scored = outputs['scores'].numpy()[0], outputs['variant_scores'].numpy()[0]
      reasons, suggestions = more.reasons(*scored), more.suggestions(*scored)
    else:
      outputs = self._ask('serving_default', attributes=vector)
    seconds = time.perf_counter() - started
    answer = self._answer(
      outputs, top_k=top_k, query=statements, text=text, seconds=seconds, reasons=reasons
    )
    return dataclasses.replace(answer, suggestions=suggestions)

  def like(
    self,
    crop: str | bytes,
    *,
    top_k: int = 20,
    options: SearchOptions | None = None,
    **narrowing: Unpack[Narrowing],
  ) -> Answer:
    """The crops most like one crop.

    Args:
      crop: the id of a crop of the gallery (which is then left out of the answer), the path of an
        image, or the bytes of one. The concept of a crop of the gallery is in the model: its file
        need not exist any more.
      top_k: number of crops; the export fixed how many there are at most.
      options: none; those of an index are refused.
      **narrowing: none, likewise.

    Raises:
      ValueError: it is neither, the image cannot be decoded, or an option.
    """
    gallery.check(top_k, options, narrowing)
    text, left_out = '', ''
    started = time.perf_counter()
    if isinstance(crop, bytes):
      outputs = self._ask('search_images', image_bytes=tf.constant([image_bytes.for_model(crop)]))
    else:
      text = f'like {crop}'
      name = self._known(crop)
      if name is not None:
        left_out = name
        concept = self._concept(name)
        outputs = self._ask('search_concepts', concepts=tf.constant(concept[np.newaxis]))
      elif os.path.isfile(crop):
        contents = queries.contents_of(crop)
        outputs = self._ask('search_images', image_bytes=tf.constant([contents]))
      else:
        raise ValueError(f"'{crop}' is neither an id of the gallery nor an image file.")
    seconds = time.perf_counter() - started
    return self._answer(outputs, top_k=top_k, text=text, seconds=seconds, left_out=left_out)

  def suggest(
    self,
    query: Description,
    *,
    top_k: int = CANDIDATES,
    options: SearchOptions | None = None,
    **narrowing: Unpack[Narrowing],
  ) -> list[Suggestion]:
    """What to ask for next, of which the query says nothing; see `Source`.

    Raises:
      ValueError: an unknown word, attribute or value, or a model that was exported before it could
        explain.
    """
    gallery.check(top_k, options, narrowing)
    statements = queries.parsed(self.schema, query)
    vector = self.schema.encode_query(statements)

    def score(variants):
      outputs = self._ask(
        'explain',
        attributes=tf.constant(vector[np.newaxis]),
        variants=tf.constant(variants[np.newaxis]),
      )
      return outputs['scores'].numpy()[0, :top_k], outputs['variant_scores'].numpy()[0, :top_k]

    return suggestion.suggest(self.schema, statements, score)

  def embed(self, crops: Sequence[str | bytes]) -> np.ndarray:
    """The concepts of crops; see `Source`."""
    return queries.embedded(
      crops,
      lambda contents: self._ask(
        'embed_images', image_bytes=tf.constant([image_bytes.for_model(crop) for crop in contents])
      )['concepts'].numpy(),
    )

  def embed_query(self, query: Description) -> np.ndarray:
    """The concept of a description; see `Source`."""
    vector = self.schema.encode_query(queries.parsed(self.schema, query))
    outputs = self._ask('embed_attributes', attributes=tf.constant(vector[np.newaxis]))
    return outputs['concepts'].numpy()[0]

  def crop(self, identifier: str) -> Hit | None:
    """What is known of the crop of that id, with a score of 0; None if there is none."""
    name = self._known(identifier)
    if name is None:
      return None
    return gallery.hits([name], [0.0], self._gallery, top_k=1)[0]

  def capabilities(self) -> Capabilities:
    """What the signatures of the model allow."""
    names = self._signatures()
    return Capabilities(
      explain='explain' in names,
      suggest='explain' in names,
      like='search_concepts' in names,
      upload='search_images' in names,
      narrow=False,
    )

  def pinned(self) -> ExportedModel:
    """This model: a version that was exported does not change."""
    return self

  @property
  def has_gallery(self) -> bool:
    """Whether there is anything to search; without, the model is one for indexes."""
    return self._size > 0

  def check_gallery(self) -> None:
    """Refuses a model that was exported without a gallery.

    Raises:
      ValueError: the message says how to search one's own pictures with it.
    """
    if not self.has_gallery:
      raise ValueError(
        f"The model '{self.directory}' was exported without a gallery, so there is nothing in it "
        'to search. Make an index of your pictures and search that: tfreid index build '
        f'--model={self.directory} --source=FOLDER --index=INDEX'
      )

  def newer(self) -> None:
    """None: what was loaded stays."""
    return None

  def info(self) -> dict[str, Any]:
    """Facts of the model as plain JSON types: assets.extra/model.json, and what was loaded."""
    name = f'{versions.EXTRA}/model.json'
    known = os.path.isfile(os.path.join(self.directory, name))
    about: dict[str, Any] = versions.read_json(self.directory, name) if known else {}
    return {
      'directory': self.directory,
      'engine': 'exported model',
      'crops': self._size,
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

  @functools.cached_property
  def _rows(self) -> dict[bytes, int]:
    """Position of each id in the gallery; made when it is first asked for."""
    self._signatures()
    return {name: row for row, name in enumerate(self._model.ids.numpy().tolist())}

  def _row(self, identifier: str) -> int | None:
    return self._rows.get(identifier.encode('utf-8', 'surrogatepass'))

  def _known(self, identifier: str) -> str | None:
    """The id as the gallery has it, however its accents are composed; None if there is none."""
    return next((form for form in spellings(identifier) if self._row(form) is not None), None)

  def _signatures(self):
    if self._model is None:
      raise ValueError(f"The model '{self.directory}' is closed. Load it again to ask it.")
    return self._model.signatures

  def _ask(self, signature: str, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
    """What a signature answers.

    Raises:
      ValueError: the model has no such signature, or does not take the input.
    """
    forks.check()
    signatures = self._signatures()
    if signature not in signatures:
      self.check_gallery()
      raise ValueError(
        f"The model '{self.directory}' has no signature {signature}: it was exported by an earlier "
        f'version (it has: {", ".join(sorted(signatures)) or "none"}). Export it again with '
        '`tfreid export`.'
      )
    try:
      return signatures[signature](**inputs)
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
      raise ValueError(errors.plain(error.message)) from error

  def _concept(self, identifier: str) -> np.ndarray:
    """The concept, float32 [E], of a crop of the gallery."""
    self._signatures()
    row = self._row(identifier)
    stored = self._model.gallery
    if hasattr(stored, 'vectors'):
      return stored.vectors[row].numpy()
    # A gallery that is scanned in bfloat16 keeps the halves of its float32 numbers apart; see
    # `tfreid.serving.search`.
    upper = tf.cast(tf.bitcast(stored.upper[row], tf.int16), tf.int32)
    lower = tf.cast(stored.lower[row], tf.int32)
    return tf.bitcast(tf.bitwise.left_shift(upper, 16) + lower, tf.float32).numpy()

  def _answer(
    self, outputs, *, top_k, seconds, query=(), text='', reasons=(), left_out=''
  ) -> Answer:
    hits = gallery.hits(
      [value.decode() for value in outputs['ids'].numpy()[0]],
      outputs['scores'].numpy()[0],
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
      gallery_size=self._size,
      seconds=seconds,
    )
