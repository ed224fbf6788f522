"""Searching an exported model that TF Serving serves, as if it were here. Floor 4.

No TensorFlow is imported for REST: a client starts in a fraction of a second.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from tfreid import image_bytes
from tfreid.data.attributes import AttributeSchema
from tfreid.query import read_setting
from tfreid.search import client, gallery
from tfreid.search.client import ServingError
from tfreid.source import explanation, suggestion
from tfreid.source import query as queries
from tfreid.source.answer import Answer, Hit, Suggestion
from tfreid.source.protocol import CANDIDATES, Capabilities, Description, SearchOptions

_Result = TypeVar('_Result')


if TYPE_CHECKING:
  from typing_extensions import Unpack

  from tfreid.source.protocol import Narrowing


class _Opened(NamedTuple):
  """A version of the model, and what was learned of it.

  Attributes:
    client: asks this version and no other.
    version: its number.
    signatures: their names.
    schema: its attributes; None where neither it nor the caller says.
    facts: its sizes and fingerprint; {} of an old export.
    known: what the gallery file says of its crops, by id.
  """

  client: client.Client
  version: int
  signatures: tuple[str, ...]
  schema: AttributeSchema | None
  facts: Mapping[str, Any]
  known: Mapping[str, Mapping[str, Any]]


class ServedModel:
  """An exported model under TF Serving.

  Attribute vectors have the order of a schema, and a new version may have another schema. So each
  request asks for the version whose schema is known. When the server has let that go, or a question
  cannot be answered, the newest (or the labelled) one is looked at and asked. A version that the
  caller names is never left, nor is the one of `pinned`.

  Attributes:
    address: of the server.
    name: of the model on the server.
  """

  def __init__(
    self,
    address: str,
    model: str,
    *,
    version: int | None = None,
    label: str = '',
    timeout: float = 10.0,
    schema: AttributeSchema | str | None = None,
    gallery_file: str = '',
    certificate: str = '',
    headers: Mapping[str, str] | None = None,
  ):
    """Looks at the model on the server.

    Args:
      address: 'grpc://host:8500' or 'http://host:8501'; with TLS 'grpcs://' or 'https://'.
      model: its name on the server.
      version: a version to stay with; the newest by default.
      label: a label of a version ('stable'), instead of its number.
      timeout: seconds for a call.
      schema: the attributes, or the path of an export's schema.json; only for a model that was
        exported before it could say them itself.
      gallery_file: an export's gallery.jsonl, for paths and annotations of the hits; a server
        knows ids only. It is read again for each version that is looked at.
      certificate: see `client.connect`.
      headers: see `client.connect`.

    Raises:
      ValueError: an argument that cannot be.
      FileNotFoundError: no schema or gallery file where one is named.
      ServingError: the server cannot be reached, or lacks the model or version.
      ImportError: gRPC without the extra `client`.
    """
    for path in (schema, gallery_file):
      if isinstance(path, str) and path and not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file '{path}'.")
    if isinstance(schema, str):
      with open(schema, encoding='utf-8-sig') as file:
        schema = AttributeSchema.from_json(file.read())
    self._given_schema = schema
    self._gallery_file = gallery_file
    # Of a pinned one, that from which it came.
    self._origin: ServedModel | None = None
    self._client = client.connect(
      address,
      model,
      version=version,
      label=label,
      timeout=timeout,
      certificate=certificate,
      headers=headers,
    )
    self.address = str(self._client.address)
    self.name = model
    try:
      self._opened = self._open(self._client.metadata())
    except BaseException:
      self._client.close()
      raise

  @property
  def version(self) -> int:
    """The number of the version that is asked."""
    return self._opened.version

  @property
  def schema(self) -> AttributeSchema:
    """The attributes of the model.

    Raises:
      ValueError: the model does not say them, and no schema was given.
    """
    return self._schema(self._opened)

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
    come with the same request.

    Raises:
      ValueError: an unknown word, attribute or value, or an option.
      ServingError: see `client.Client.predict`.
    """
    gallery.check(top_k, options, narrowing)
    if isinstance(query, str):
      text = text or query

    def ask(served: _Opened) -> Answer:
      started = time.perf_counter()
      if isinstance(query, str) and served.schema is None and not (explain or suggest):
        statements, outputs = self._read_there(served, query)
        return self._answer(served, outputs, started, top_k=top_k, query=statements, text=text)
      schema = self._schema(served)
      statements = queries.parsed(schema, query)
      said = schema.encode_query(statements)
      vector = said[np.newaxis]
      more = explanation.Explanation(
        schema, statements, explain=explain, suggest=suggest, said=said
      )
      reasons: list[dict[str, float]] = []
      suggestions: Sequence[Suggestion] = ()
      if explain or len(more.variants):
        outputs = served.client.predict(
          'explain', {'attributes': vector, 'variants': more.variants[np.newaxis]}
        )
        scored = outputs['scores'][0], outputs['variant_scores'][0]
        reasons, suggestions = more.reasons(*scored), more.suggestions(*scored)
      else:
        outputs = served.client.predict('serving_default', {'attributes': vector})
      answer = self._answer(
        served, outputs, started, top_k=top_k, query=statements, text=text, reasons=reasons
      )
      return dataclasses.replace(answer, suggestions=suggestions)

    return self._asking(ask)

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
        image here, or the bytes of one.
      top_k: number of crops; the export fixed how many there are at most.
      options: none; those of an index are refused.
      **narrowing: none, likewise.

    Raises:
      ValueError: it is neither, the image cannot be decoded, or an option.
      ServingError: see `client.Client.predict`.
    """
    gallery.check(top_k, options, narrowing)

    def ask(served: _Opened) -> Answer:
      started = time.perf_counter()
      if isinstance(crop, bytes):
        return self._answer(served, self._look(served, crop), started, top_k=top_k)
      text = f'like {crop}'
      if 'search_ids' in served.signatures:
        outputs = self._find(served, crop)
        if outputs['ids'][0, 0]:
          return self._answer(served, outputs, started, top_k=top_k, text=text, left_out=crop)
      if not os.path.isfile(crop):
        raise ValueError(f"'{crop}' is neither an id of the gallery nor an image file.")
      outputs = self._look(served, queries.contents_of(crop))
      return self._answer(served, outputs, started, top_k=top_k, text=text)

    return self._asking(ask)

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
      ValueError: an unknown word, attribute or value.
      ServingError: see `client.Client.predict`.
    """
    gallery.check(top_k, options, narrowing)

    def ask(served: _Opened) -> list[Suggestion]:
      schema = self._schema(served)
      statements = queries.parsed(schema, query)
      vector = schema.encode_query(statements)

      def score(variants):
        outputs = served.client.predict(
          'explain', {'attributes': vector[np.newaxis], 'variants': variants[np.newaxis]}
        )
        return outputs['scores'][0, :top_k], outputs['variant_scores'][0, :top_k]

      return suggestion.suggest(schema, statements, score)

    return self._asking(ask)

  def embed(self, crops: Sequence[str | bytes]) -> np.ndarray:
    """The concepts of crops that lie here; see `Source`.

    Raises:
      ServingError: see `client.Client.predict`.
    """

    def ask(served: _Opened) -> np.ndarray:
      return queries.embedded(
        crops,
        lambda contents: served.client.predict(
          'embed_images',
          {'image_bytes': client.strings([image_bytes.for_model(crop) for crop in contents])},
        )['concepts'],
      )

    return self._asking(ask)

  def embed_query(self, query: Description) -> np.ndarray:
    """The concept of a description; see `Source`.

    Raises:
      ServingError: see `client.Client.predict`.
    """

    def ask(served: _Opened) -> np.ndarray:
      schema = self._schema(served)
      vector = schema.encode_query(queries.parsed(schema, query))[np.newaxis]
      return served.client.predict('embed_attributes', {'attributes': vector})['concepts'][0]

    return self._asking(ask)

  def crop(self, identifier: str) -> Hit | None:
    """What is known of the crop of that id, with a score of 0; None if there is none.

    The server says whether there is one, the gallery file what is known of it.

    Raises:
      ServingError: see `client.Client.predict`.
    """

    def ask(served: _Opened) -> Hit | None:
      there = identifier in served.known
      if 'search_ids' in served.signatures:
        outputs = self._find(served, identifier)
        there = bool(outputs['ids'][0, 0])
      return gallery.hits([identifier], [0.0], served.known, top_k=1)[0] if there else None

    return self._asking(ask)

  def capabilities(self) -> Capabilities:
    """What the signatures of the version that is asked now allow."""
    opened = self._opened
    can_explain = 'explain' in opened.signatures and opened.schema is not None
    return Capabilities(
      explain=can_explain,
      suggest=can_explain,
      like='search_ids' in opened.signatures,
      upload='search_images' in opened.signatures,
      narrow=False,
    )

  def info(self) -> dict[str, Any]:
    """Facts of the model as plain JSON types, and the versions that the server knows now."""
    opened = self._opened
    return {
      'name': self._title(opened),
      'directory': self._source(opened),
      'engine': 'TF Serving',
      'crops': self._size(opened),
      'embedding_size': opened.facts.get('embedding_size'),
      'signatures': sorted(opened.signatures),
      'version': opened.version,
      'versions': {str(number): state for number, state in self._client.versions().items()},
      'model': {'path': self._source(opened), **opened.facts},
    }

  def refresh(self) -> bool:
    """Looks for a newer version, or where the label went; returns whether there was another.

    Without it, a version is asked for as long as the server has it.

    Raises:
      ValueError: the other version is no model that can be asked; this one stays.
      ServingError: see `client.Client.predict`.
    """
    metadata = self._client.metadata()
    if metadata.version == self._opened.version:
      return False
    self._opened = self._open(metadata)
    return True

  def pinned(self) -> ServedModel:
    """This model at the version that is asked now, which it never leaves by itself.

    For whoever checks a question by the schema before it is asked: without it, the version and with
    it the schema may change in between. The connection is that of
    this model, which closes it.
    """
    other = copy.copy(self)
    other._client = self._opened.client
    other._origin = self._origin or self
    return other

  def newer(self) -> ServedModel | None:
    """The newest version, or where the label went; None if that is the version asked now.

    Of a model that is not pinned it is this one, which has gone there.
    """
    if self._origin is None:
      return self if self.refresh() else None
    self._origin.refresh()
    # Not what `refresh` says: a version that could not be taken over is tried again.
    return self._origin.pinned() if self._origin.version != self.version else None

  def close(self) -> None:
    """Ends the connection, unless it is that of another; nothing can be asked after that."""
    if self._origin is None:
      self._client.close()

  def __enter__(self) -> ServedModel:
    return self

  def __exit__(self, *exception: Any) -> None:
    self.close()

  def _open(self, metadata: client.Metadata) -> _Opened:
    names = tuple(sorted(metadata.signatures))
    at = self._client.at(metadata.version)
    schema, facts = self._given_schema, {}
    if 'describe' in names:
      (text,) = at.predict('describe', {'any': client.strings([''])})['description']
      try:
        facts = dict(json.loads(text))
        described = facts.pop('schema')
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f'{self.name} at {self.address} describes itself in a way that this version of tfreid '
          f'does not read: {error!r}.'
        ) from error
      schema = schema or (described and AttributeSchema.from_json(described))
    elif 'serving_default' not in names:
      raise ValueError(
        f'{self.name} at {self.address} is no model that tfreid exported: it has the signatures '
        f'{", ".join(names) or "(none)"}.'
      )
    known = gallery.read(self._gallery_file) if self._gallery_file else {}
    return _Opened(at, metadata.version, names, schema, facts, known)

  def _asking(self, function: Callable[[_Opened], _Result]) -> _Result:
    """Calls `function` with the version that is open, or with its successor where that is gone.

    What a question lacks (a word, a signature, a schema) may be in the successor as well; so before
    such an error is told, the server is asked whether there is one.
    """
    opened = self._opened
    try:
      return function(opened)
    except (ServingError, ValueError) as error:
      curable = isinstance(error, ValueError) or error.code in ('NOT_FOUND', 'FAILED_PRECONDITION')
      if not curable or self._client.version is not None:
        raise
      try:
        self.refresh()
      except (ServingError, ValueError):
        raise error from None
      if self._opened.version == opened.version:
        raise
    return function(self._opened)

  def _schema(self, opened: _Opened) -> AttributeSchema:
    if opened.schema is None:
      raise ValueError(
        f'{self.name} at {self.address} was exported without a schema, or by an earlier version, '
        "and does not say its attributes. Give the export's assets.extra/schema.json (schema=), or "
        'export it again.'
      )
    return opened.schema

  def _read_there(self, served, text):
    """A description that the model reads by itself: what it understood, and what it found."""
    outputs = served.client.predict('search_words', {'words': client.strings([text])})
    for name, what in (
      ('unknown', 'Did not understand'),
      ('contradictory', 'The description contradicts itself about'),
    ):
      if outputs[name][0]:
        raise ValueError(f"{what} '{outputs[name][0]}'.")
    statements = {}
    for setting in filter(None, outputs['understood'][0].split(', ')):
      name, statement = read_setting(setting)
      statements[name] = str(statement)
    if not statements:
      raise ValueError('The description says nothing about any attribute.')
    return statements, outputs

  def _look(self, served, contents):
    return served.client.predict(
      'search_images', {'image_bytes': client.strings([image_bytes.for_model(contents)])}
    )

  def _find(self, served, identifier):
    return served.client.predict('search_ids', {'crop_ids': client.strings([identifier])})

  def _title(self, opened: _Opened) -> str:
    return f'{self.name}, version {opened.version}'

  def _source(self, opened: _Opened) -> str:
    return f'{self.address}, {self._title(opened)}'

  def _size(self, opened: _Opened) -> int:
    return int(opened.facts.get('gallery_size') or len(opened.known))

  def _answer(
    self, served, outputs, started, *, top_k, query=(), text='', reasons=(), left_out=''
  ) -> Answer:
    return Answer(
      query=dict(query),
      hits=gallery.hits(
        outputs['ids'][0],
        outputs['scores'][0],
        served.known,
        top_k=top_k,
        reasons=reasons,
        left_out=left_out,
      ),
      text=text,
      source=self._source(served),
      gallery_size=self._size(served),
      seconds=time.perf_counter() - started,
    )
