"""Asking an index: descriptions, vectors and crops in, answers out. Floor 4."""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfreid import storage
from tfreid.index import engines, filters, joining, segment, trust
from tfreid.index.directory import IndexDirectory
from tfreid.index.engine import Match
from tfreid.index.writer import check_model
from tfreid.serving import versions
from tfreid.source import explanation, suggestion
from tfreid.source import query as queries
from tfreid.source.answer import Answer, Hit, Suggestion
from tfreid.source.protocol import CANDIDATES, Capabilities, Description, SearchOptions
from tfreid.text import spellings

if TYPE_CHECKING:
  from typing_extensions import Unpack

  from tfreid.data.attributes import AttributeSchema
  from tfreid.index.embedder import Embedder
  from tfreid.index.segment import Row
  from tfreid.query import Query
  from tfreid.source.protocol import Narrowing


# Crops that verifying embeds again, and how far off their concepts may be, relatively: bfloat16 on
# another processor rounds otherwise, and a model with other weights is off by about 1.
_EMBEDDED_AGAIN = 8
_ALIKE = 0.03
# No crop of a person has as many bytes.
_LARGEST_IMAGE = 1 << 28


class Searcher:
  """An index with the model that it was built with.

  Attributes:
    directory: of the index.
    engine: what holds the crops.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    model: str | Embedder = '',
    resident: bool | str = False,
    check: bool | None = None,
    runtime: str = 'tensorflow',
  ):
    """Opens an index; the model is loaded when it is first needed.

    Args:
      directory: of the index.
      model: directory of the exported model, or the model; by default where it was when the index
        was built, if this user has built one with it on this machine (see `tfreid.index.trust`).
      resident: keep all concepts in memory, for many fast searches (embedded engine): 'int8' to
        scan a quarter of the bytes, 'bfloat16' half, 'float32' all of them, with the same answers;
        True for 'int8' where the index has the copy that it takes, and else 'float32'.
      check: compare the checksums of all files, which reads every byte; False to compare their
        sizes only; by default the checksums of an index of up to 256 MiB (embedded engine).
      runtime: what computes the concepts of images, see `Embedder`; of a model that is given as a
        directory or not at all.

    Raises:
      FileNotFoundError: there is no index.
      ValueError: a part of it is damaged, the model is not the one it was built with, or `resident`
        is another word.
    """
    folder = IndexDirectory(directory)
    self.directory = folder.directory
    self.engine = engines.open_engine(folder, resident=resident, check=check)
    self._path = model if isinstance(model, str) else ''
    self._runtime = runtime
    self._model = None if isinstance(model, str) else model
    # Of this index in all its states: `newer` shares them.
    self._joined, self._images = joining.JoinedSearch(), joining.JoinedImages()
    if self._model is not None:
      check_model(self.engine.state, self._model)

  def __len__(self) -> int:
    return self.engine.size

  @property
  def model(self) -> Embedder:
    """The model.

    Raises:
      FileNotFoundError: it is not where it was.
      ValueError: it is not the one that the index was built with, or the index names one that
        this user has not.
    """
    if self._model is None:
      path = self._path or trust.model_path(self.engine.state, self.directory)
      from tfreid.index.embedder import Embedder, description, version

      # Before loading, which takes long: is it the right one?
      directory = version(path)
      if description(directory)['fingerprint'] == self.engine.state['model']['fingerprint']:
        self._model = Embedder(directory, lazy=True, runtime=self._runtime)
      else:
        check_model(self.engine.state, _Described(directory))
    assert self._model is not None  # else `check_model` has refused it
    return self._model

  @property
  def schema(self) -> AttributeSchema:
    """The attributes of the model.

    Raises:
      ValueError: it was exported without.
    """
    return self.model.known_schema

  def search(
    self,
    query: Description | np.ndarray,
    *,
    top_k: int = 20,
    text: str = '',
    explain: bool = False,
    suggest: bool = False,
    options: SearchOptions | None = None,
    **narrowing: Unpack[Narrowing],
  ) -> Answer:
    """The best crops for a query.

    Args:
      query: a description in words, attribute name to value, or a concept (float32 [E]).
      top_k: number of crops, at most.
      text: the description as it was given, for the answer.
      explain: fill `Hit.reasons`; a concept has no attributes, and so no reasons.
      suggest: fill `Answer.suggestions`, from what is read for the answer; likewise.
      options: which crops may be answered.
      **narrowing: single options: where, must, must_not, exclude, min_score.

    Raises:
      ValueError: words, attributes, values or fields that are not known; the message names them.
    """
    if isinstance(query, str):
      text = text or query
    if isinstance(query, (str, Mapping)):
      statements = queries.parsed(self.schema, query)
      said = self.schema.encode_query(statements)
      concept = self.model.embed_attributes(said[np.newaxis])[0]
      more = explanation.Explanation(
        self.schema, statements, explain=explain, suggest=suggest, said=said
      )
    else:
      statements, more, concept = {}, None, np.asarray(query, np.float32)
      if concept.shape != (self.engine.width,):
        raise ValueError(
          f'A concept has {self.engine.width} numbers; this one has the shape {concept.shape}.'
        )
    started = time.perf_counter()
    options = SearchOptions.joined(options, narrowing)
    # One scan for both: the best crops are the first of the candidates, or the other way round.
    most = max(top_k, CANDIDATES) if more and more.suggests and top_k > 0 else top_k
    candidates = self._matches(concept, top_k=most, options=options)
    matches = candidates[:top_k]
    reasons: Sequence[Mapping[str, float]] = ()
    suggestions: Sequence[Suggestion] = ()
    # Each from a product of its own: the last bits of one depend on its shape, and what is asked
    # for beside the reasons must not change them.
    if more and matches and len(more.without_one):
      scores = np.array([match.score for match in matches])
      reasons = more.reasons(scores, self._scores(matches, more.without_one))
    if more and more.suggests:
      suggestions = self._suggestions(more.questions, candidates[:CANDIDATES])
    return Answer(
      query=statements,
      hits=[_hit(match, why) for match, why in zip(matches, reasons or [{}] * len(matches))],
      text=text,
      source=self.directory,
      gallery_size=self.engine.size,
      seconds=time.perf_counter() - started,
      suggestions=suggestions,
    )

  def suggest(
    self,
    query: Description,
    *,
    top_k: int = CANDIDATES,
    options: SearchOptions | None = None,
    **narrowing: Unpack[Narrowing],
  ) -> list[Suggestion]:
    """What to ask for next: the attributes that the query leaves out, best first.

    Args:
      query: a description in words, or attribute name to value.
      top_k: number of best crops between which the answer is to decide.
      options: which crops these may be.
      **narrowing: single options, as in `search`.

    Returns:
      For each attribute of which nothing is said, the bits that its answer is expected to give
      about which of these crops is meant; see `suggestion.suggestions`.

    Raises:
      ValueError: words, attributes, values or fields that are not known.
    """
    options = SearchOptions.joined(options, narrowing)
    statements = queries.parsed(self.schema, query)
    asked = suggestion.questions(self.schema, statements)
    if not asked:
      return []
    matches = self._matches(self.model.embed_query(statements), top_k=top_k, options=options)
    return self._suggestions(asked, matches)

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
      crop: the id of a crop of the index (which is then left out of the answer), the path of an
        image, or the bytes of one.
      top_k: number of crops, at most.
      options: which crops may be answered.
      **narrowing: single options, as in `search`.

    Raises:
      ValueError: it is neither, or the image cannot be decoded.
    """
    options = SearchOptions.joined(options, narrowing)
    text = '' if isinstance(crop, bytes) else f'like {crop}'
    row = self._row(crop) if isinstance(crop, str) else None
    if row is not None:
      options = dataclasses.replace(options, exclude=[*options.exclude, row.id])
      concept = self.engine.concepts([row.id])[0]
    else:
      if isinstance(crop, str):
        if not os.path.isfile(crop):
          raise ValueError(f"'{crop}' is neither an id of the index nor an image file.")
        crop = queries.contents_of(crop)
      concept = self._images.embed(self.model, crop)
    return self.search(concept, top_k=top_k, text=text, options=options)

  def embed(self, crops: Sequence[str | bytes]) -> np.ndarray:
    """The concepts of crops; see `Source`."""
    return queries.embedded(crops, self.model.embed_images)

  def embed_query(self, query: Description) -> np.ndarray:
    """The concept of a description; see `Source`."""
    return self.model.embed_query(queries.parsed(self.schema, query))

  def crop(self, identifier: str) -> Hit | None:
    """What is known of the crop of that id, with a score of 0; None if there is none."""
    row = self._row(identifier)
    return None if row is None else _hit(Match(row, 0.0), {})

  def refresh(self) -> bool:
    """Takes over what was added and removed since; returns whether that was anything."""
    return self.engine.refresh()

  def capabilities(self) -> Capabilities:
    """All that there is; the model must have a schema and the signatures for it."""
    return Capabilities(
      explain=True, suggest=True, like=True, upload=True, narrow=True, joins=self.engine.joins
    )

  def pinned(self) -> Searcher:
    """This index, which takes over nothing by itself."""
    return self

  def newer(self) -> Searcher | None:
    """The index with what was committed since; see `Source.newer`. It has the same model."""
    newer = self.engine.newer()
    if newer is None or newer is self.engine:
      return None if newer is None else self
    try:
      if self._model is not None:
        check_model(newer.state, self._model)
    except ValueError:
      newer.close()
      raise
    other = copy.copy(self)
    other.engine = newer
    return other

  def info(self) -> dict[str, Any]:
    """Facts of the index as plain JSON types."""
    state = self.engine.state
    facts = {
      'directory': self.directory,
      'engine': state['engine']['name'],
      'crops': self.engine.size,
      'embedding_size': self.engine.width,
      'fields': {name: list(kinds) for name, kinds in self.engine.fields.items()},
      'model': state['model'],
      'generation': state['generation'],
      'changed': state.get('changed', ''),
    }
    facts.update(self.engine.facts())
    if state.get('shard'):
      facts['shard'] = '{}/{}'.format(*state['shard'])
    return facts

  def problems(self, *, files: bool = False) -> list[str]:
    """What is wrong with the index; empty if nothing is.

    Args:
      files: also that each crop's file exists and is the one that was embedded, and that the model
        is the one that embedded it: some crops are embedded again.
    """
    sentences = self.engine.problems()
    if not files or sentences:
      return sentences
    whole: dict[str, bytes] = {}
    for _, rows in self.engine.parts():
      for row in rows:
        try:
          contents = storage.read_bytes(row.path, limit=_LARGEST_IMAGE)
        except OSError as error:
          sentences.append(f"'{row.id}': {row.path}: {error.strerror or error}.")
          continue
        if row.digest and segment.digest(contents) != row.digest:
          sentences.append(f"'{row.id}': {row.path} has changed since it was embedded.")
        elif len(whole) < _EMBEDDED_AGAIN:
          whole[row.id] = contents
    return sentences + self._problems_of_model(whole)

  def _problems_of_model(self, crops):
    """What is wrong with the model, which must make the concepts of these crops again."""
    try:
      model = self.model
      versions.check(model.directory, variables=True)
      vectors: Iterable[np.ndarray] = model.embed_images(list(crops.values())) if crops else []
    except (ValueError, OSError) as error:
      return [f'The model: {error}']
    known = self.engine.concepts(list(crops))
    for name, vector, concept in zip(crops, vectors, known):
      # Not "greater than": what is not a number is no small difference either.
      if not np.linalg.norm(vector - concept) <= _ALIKE * np.linalg.norm(concept):
        return [
          f"The model: '{model.directory}' makes another concept of '{name}' than the one in the "
          'index. Its files are not those that the index was built with.'
        ]
    return []

  def close(self) -> None:
    """Frees what the engine holds."""
    self.engine.close()

  def __enter__(self) -> Searcher:
    return self

  def __exit__(self, *exception: Any) -> None:
    self.close()

  def _row(self, identifier: str) -> Row | None:
    """The row of that id, however its accents are composed; None if there is none."""
    forms = spellings(identifier)
    rows = self.engine.rows(forms)
    return next((rows[form] for form in forms if form in rows), None)

  def _matches(self, concept: np.ndarray, *, top_k: int, options: SearchOptions) -> list[Match]:
    """The best crops for a concept, float32 [E]."""
    condition = filters.joined(
      filters.parse(options.where) if options.where else None,
      filters.required(self._attributes(options.must), self._attributes(options.must_not)),
    )
    return self._joined.search(
      self.engine,
      concept,
      top_k=top_k,
      where=condition,
      exclude=[form for identifier in options.exclude for form in spellings(identifier)],
      min_score=options.min_score,
    )

  def _suggestions(
    self, asked: Sequence[suggestion.Question], matches: Sequence[Match]
  ) -> list[Suggestion]:
    """What the answers to questions tell about which of the matches is meant."""
    if not asked or not matches:
      return []
    vectors = np.concatenate([question.vectors for question in asked])
    scores = np.array([match.score for match in matches])
    return suggestion.suggestions(asked, scores, self._scores(matches, vectors))

  def _scores(self, matches: Sequence[Match], vectors: np.ndarray) -> np.ndarray:
    """Scores, float32 [K, M], of crops that were found for attribute vectors [M, A]."""
    concepts = np.array([match.concept for match in matches]).reshape(-1, self.engine.width)
    return concepts @ self.model.embed_attributes(vectors).T

  def _attributes(self, asked: Mapping[str, str] | str | None) -> Query:
    """What is asked of attributes, checked."""
    return self.schema.read_query(queries.parsed(self.schema, asked)) if asked else {}


class _Described:
  """A model that is only read about."""

  def __init__(self, directory):
    from tfreid.index.embedder import description

    self.directory = directory
    self.fingerprint = description(directory)['fingerprint']


def _hit(match: Match, reasons: Mapping[str, float]) -> Hit:
  row = match.row
  return Hit(
    id=row.id,
    score=match.score,
    path=row.path,
    attributes=row.attributes,
    metadata=row.fields,
    reasons=reasons,
  )
