"""Asking an index: descriptions, vectors and crops in, answers out. Floor 4."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfreid import storage
from tfreid.index import engines, filters, segment, trust
from tfreid.index.building import check_model
from tfreid.index.engine import Match
from tfreid.index.ledger import Ledger
from tfreid.search import asking
from tfreid.search.answer import Answer, Hit, Suggestion
from tfreid.serving import versions

if TYPE_CHECKING:
  from tfreid.data.attributes import AttributeSchema
  from tfreid.index.embedder import Embedder
  from tfreid.query import Query


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
  ):
    """Opens an index; the model is loaded when it is first needed.

    Args:
      directory: of the index.
      model: directory of the exported model, or the model; by default where it was when the index
        was built, if this user has built one with it on this machine (see `tfreid.index.trust`).
      resident: keep all concepts in memory, for many fast searches (embedded engine): 'bfloat16' to
        scan half the bytes, with the same answers; True or 'float32' to scan them as they are.
      check: compare the checksums of all files, which reads every byte; False to compare their
        sizes only; by default the checksums of an index of up to 256 MiB (embedded engine).

    Raises:
      FileNotFoundError: there is no index.
      ValueError: a part of it is damaged, the model is not the one it was built with, or `resident`
        is another word.
    """
    ledger = Ledger(directory)
    self.directory = ledger.directory
    self.engine = engines.open_engine(ledger, resident=resident, check=check)
    self._path = model if isinstance(model, str) else ''
    self._model = None if isinstance(model, str) else model
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
      from tfreid.index.embedder import Embedder, description, version

      path = self._path or trust.model_path(self.engine.state, self.directory)
      # Before loading, which takes long: is it the right one?
      directory = version(path)
      if description(directory)['fingerprint'] == self.engine.state['model']['fingerprint']:
        self._model = Embedder(directory, lazy=True)
      else:
        check_model(self.engine.state, _Described(directory))
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
    query: str | Mapping[str, str] | np.ndarray,
    *,
    top_k: int = 20,
    explain: bool = False,
    where: str = '',
    must: Mapping[str, str] | str | None = None,
    must_not: Mapping[str, str] | str | None = None,
    exclude: Sequence[str] = (),
    min_score: float | None = None,
    text: str = '',
  ) -> Answer:
    """The best crops for a query.

    Args:
      query: a description in words, attribute name to value, or a concept (float32 [E]).
      top_k: number of crops, at most.
      explain: fill `Hit.reasons`; a concept has no attributes, and so no reasons.
      where: a condition on fields, see `tfreid.index.filters`.
      must: attributes with which a crop must be annotated, by name or in words.
      must_not: attributes with which a crop must not be annotated.
      exclude: ids that are not wanted, for example because they were seen.
      min_score: only crops with at least this score.
      text: the description as it was given, for the answer.

    Raises:
      ValueError: words, attributes, values or fields that are not known; the message names them.
    """
    if isinstance(query, str):
      text = text or query
    if isinstance(query, (str, Mapping)):
      said = asking.said(self.schema, query)
      concept = self.model.embed_query(said)
    else:
      said, concept = {}, np.asarray(query, np.float32)
      if concept.shape != (self.engine.width,):
        raise ValueError(
          f'A concept has {self.engine.width} numbers; this one has the shape {concept.shape}.'
        )
    started = time.perf_counter()
    matches = self._matches(
      concept,
      top_k=top_k,
      where=where,
      must=must,
      must_not=must_not,
      exclude=exclude,
      min_score=min_score,
    )
    reasons: list[dict[str, float]] = [{} for _ in matches]
    if explain and said and matches:
      without = self._scores(matches, asking.withdrawals(self.schema, said))
      reasons = asking.reasons(list(said), np.array([match.score for match in matches]), without)
    return Answer(
      query=said,
      hits=[_hit(match, why) for match, why in zip(matches, reasons)],
      text=text,
      source=self.directory,
      gallery_size=self.engine.size,
      seconds=time.perf_counter() - started,
    )

  def suggest(
    self, query: str | Mapping[str, str], *, top_k: int = 50, **options: Any
  ) -> list[Suggestion]:
    """What to ask for next: the attributes that the query leaves out, best first.

    Args:
      query: a description in words, or attribute name to value.
      top_k: number of best crops between which the answer is to decide.
      **options: of `search`, which narrow what these crops are.

    Returns:
      For each attribute of which nothing is said, the bits that its answer is expected to give
      about which of these crops is meant; see `asking.suggestions`.

    Raises:
      ValueError: words, attributes, values or fields that are not known.
    """
    said = asking.said(self.schema, query)

    def score(vectors):
      matches = self._matches(self.model.embed_query(said), top_k=top_k, **options)
      return np.array([match.score for match in matches]), self._scores(matches, vectors)

    return asking.suggest(self.schema, said, score)

  def like(self, crop: str | bytes, *, top_k: int = 20, **options: Any) -> Answer:
    """The crops most like one crop.

    Args:
      crop: the id of a crop of the index (which is then left out of the answer), the path of an
        image, or the bytes of one.
      top_k: number of crops, at most.
      **options: of `search`.

    Raises:
      ValueError: it is neither, or the image cannot be decoded.
    """
    options['top_k'] = top_k
    if isinstance(crop, bytes):
      return self.search(self.model.embed_images([crop])[0], **options)
    if self.engine.rows([crop]):
      options['exclude'] = [*options.get('exclude', ()), crop]
      return self.search(self.engine.concepts([crop])[0], text=f'like {crop}', **options)
    if not os.path.isfile(crop):
      raise ValueError(f"'{crop}' is neither an id of the index nor an image file.")
    contents = storage.read_bytes(crop, limit=_LARGEST_IMAGE)
    return self.search(self.model.embed_images([contents])[0], text=f'like {crop}', **options)

  def embed(self, crops: Sequence[str | bytes]) -> np.ndarray:
    """The concepts of crops; see `tfreid.search.Source`."""
    return asking.embedded(crops, self.model.embed_images)

  def embed_query(self, query: str | Mapping[str, str]) -> np.ndarray:
    """The concept of a description; see `tfreid.search.Source`."""
    return self.model.embed_query(asking.said(self.schema, query))

  def crop(self, identifier: str) -> Hit | None:
    """What is known of the crop of that id, with a score of 0; None if there is none."""
    row = self.engine.rows([identifier]).get(identifier)
    return None if row is None else _hit(Match(row, 0.0), {})

  def refresh(self) -> bool:
    """Takes over what was added and removed since; returns whether that was anything."""
    return self.engine.refresh()

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
    if state['engine']['name'] == 'milvus':
      facts.update(uri=self.engine.uri, collection=state['collection'])
    else:
      entries = state['segments']
      facts['segments'] = len(entries)
      facts['removed'] = sum((entry.get('removed') or {}).get('count', 0) for entry in entries)
      facts['bytes'] = sum(size for entry in entries for size, _ in entry['files'].values())
    if state.get('shard'):
      facts['shard'] = '{}/{}'.format(*state['shard'])
    return facts

  def problems(self, *, files: bool = False) -> list[str]:
    """What is wrong with the index; empty if nothing is.

    Args:
      files: also that each crop's file exists and is the one that was embedded, and that the model
        is the one that embedded it: some crops are embedded again.
    """
    found = self.engine.problems()
    if not files or found:
      return found
    whole: dict[str, bytes] = {}
    for _, rows in self.engine.parts():
      for row in rows:
        try:
          contents = storage.read_bytes(row.path, limit=_LARGEST_IMAGE)
        except OSError as error:
          found.append(f"'{row.id}': {row.path}: {error.strerror or error}.")
          continue
        if row.digest and segment.digest(contents) != row.digest:
          found.append(f"'{row.id}': {row.path} has changed since it was embedded.")
        elif len(whole) < _EMBEDDED_AGAIN:
          whole[row.id] = contents
    return found + self._problems_of_model(whole)

  def _problems_of_model(self, crops):
    """What is wrong with the model, which must make the concepts of these crops again."""
    try:
      model = self.model
      versions.check(model.directory, variables=True)
      vectors = model.embed_images(list(crops.values())) if crops else []
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

  def _matches(
    self,
    concept: np.ndarray,
    *,
    top_k: int,
    where: str = '',
    must: Mapping[str, str] | str | None = None,
    must_not: Mapping[str, str] | str | None = None,
    exclude: Sequence[str] = (),
    min_score: float | None = None,
  ) -> list[Match]:
    """The best crops for a concept, float32 [E]; see `search`."""
    condition = filters.joined(
      filters.parse(where) if where else None,
      filters.required(self._attributes(must), self._attributes(must_not)),
    )
    (matches,) = self.engine.search(
      concept[np.newaxis], top_k=top_k, where=condition, exclude=exclude, min_score=min_score
    )
    return matches

  def _scores(self, matches: Sequence[Match], vectors: np.ndarray) -> np.ndarray:
    """Scores, float32 [K, M], of crops that were found for attribute vectors [M, A]."""
    concepts = np.array([match.concept for match in matches]).reshape(-1, self.engine.width)
    return concepts @ self.model.embed_attributes(vectors).T

  def _attributes(self, asked: Mapping[str, str] | str | None) -> Query:
    """What is asked of attributes, checked."""
    return self.schema.read_query(asking.said(self.schema, asked)) if asked else {}


class _Described:
  """A model that is only read about."""

  def __init__(self, directory):
    from tfreid.index.embedder import description

    self.directory = directory
    self.fingerprint = description(directory)['fingerprint']


def _hit(match: Match, reasons: Mapping[str, float]) -> Hit:
  return Hit(
    id=match.row.id,
    score=match.score,
    path=match.row.path,
    attributes=match.row.attributes,
    metadata=match.row.fields,
    reasons=reasons,
  )
