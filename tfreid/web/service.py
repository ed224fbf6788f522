"""Where a question meets the policy and the source: messages in, answers out. Floor 5.

Everything here runs in a worker's thread and knows nothing of HTTP.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import keyword
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from tfreid import cancellation, fibers
from tfreid.data import words
from tfreid.data.attributes import AttributeSchema
from tfreid.index import filters
from tfreid.search import SearchOptions, Source, ask
from tfreid.search.client import ServingError
from tfreid.source.answer import Answer, Suggestion
from tfreid.source.protocol import CANDIDATES
from tfreid.web import thumbnails
from tfreid.web.messages import LikeRequest, Narrowing, SearchRequest
from tfreid.web.policy import Policy, RefusedError
from tfreid.web.reloading import ReloadingSource
from tfreid.web.state import Seen, SeenHere

# What a server says of a version that it has let go, and of a signature that a version lacks.
_GONE, _LACKING = 'NOT_FOUND', 'FAILED_PRECONDITION'
_ABSOLUTE_PATH = re.compile(r'(?<![\w.:/])~?/(?:[^\s\'"/]+/)+[^\s\'"/]*')


class UnknownCropError(Exception):
  """There is no crop of that id."""


@dataclasses.dataclass(frozen=True)
class Capabilities:
  """What can be asked of a source, and what may be: learned when it takes its place, and then kept.

  A question is read, checked, asked and answered by one of these, so that no part of it meets the
  schema of another version.

  Attributes:
    facts: `info()` of the source.
    name: what clients and the log are told that it is: 'depot', 'people, version 3'.
    policy: the rules: those of the site, or narrower ones where these do not fit the schema.
    schema: all attributes, for encoding.
    visible: those that may be asked for.
    can: what the source says it is able to do: 'explain', 'suggest', 'like', 'upload', 'filter'.
    names: what messages must not say, each with what they say instead; longest first.
    allowed: names of what could be asked for when the policy last fitted a schema.
  """

  facts: Mapping[str, Any]
  name: str
  policy: Policy
  schema: AttributeSchema
  visible: AttributeSchema
  can: Mapping[str, bool]
  names: Sequence[tuple[str, str]]
  allowed: frozenset[str]


class ServiceAnswer(NamedTuple):
  """An answer, what to ask for next, and of what it is the answer."""

  answer: Answer
  suggestions: Sequence[Suggestion]
  capabilities: Capabilities


class SearchService:
  """Answers questions to a source as far as a policy allows.

  Attributes:
    source: the source, which may be exchanged, and what can be asked of it.
    seen: crops that were answered.
  """

  def __init__(self, source: Source, policy: Policy, seen: Seen | None = None):
    """Asks the source what it is able to do, and a first question of each kind, to warm it.

    Args:
      source: what is asked; closed by `close` of `source`.
      policy: the rules.
      seen: crops that were answered; of this process alone if not given.

    Raises:
      ValueError: the policy does not fit the source, or the source cannot be searched at all.
      OSError: it cannot be reached.
    """
    self.seen = seen if seen is not None else SeenHere()
    self.source: ReloadingSource[Capabilities] = ReloadingSource(
      source, learn=lambda new, before: learn_capabilities(new, policy, before)
    )

  @property
  def capabilities(self) -> Capabilities:
    """What can be asked now."""
    return self.source.known

  def search(self, asked: SearchRequest) -> ServiceAnswer:
    """The best crops for a description, and what to ask for next.

    Raises:
      RefusedError: the policy does not allow it.
      ValueError: it is not understood.
      OSError: the source cannot be reached.
    """
    return self._answered(lambda source, capabilities: self._search(source, capabilities, asked))

  def like(self, asked: LikeRequest) -> ServiceAnswer:
    """The crops most like one of the gallery.

    Raises:
      RefusedError: the policy does not allow it.
      UnknownCropError: there is none of that id.
      ValueError: a filter is not understood.
      OSError: the source cannot be reached.
    """
    return self._answered(lambda source, capabilities: self._like(source, capabilities, asked))

  def like_upload(self, asked: Narrowing, contents: bytes) -> ServiceAnswer:
    """The crops most like a picture that is not in the gallery.

    Raises:
      RefusedError: the policy does not allow it.
      ValueError: it is not a picture of a reasonable size, or a filter is not understood.
      OSError: the source cannot be reached.
    """
    return self._answered(
      lambda source, capabilities: self._like_upload(source, capabilities, asked, contents)
    )

  def _answered(
    self, ask: Callable[[Source, Capabilities], tuple[Answer, Sequence[Suggestion]]]
  ) -> ServiceAnswer:
    """What a source answers; its successor, where the server has let its version go.

    The successor is asked from the beginning: it may have another schema.
    """
    with self.source.use() as (source, capabilities):
      try:
        return ServiceAnswer(*ask(source, capabilities), capabilities)
      except ServingError as error:
        if error.code not in (_GONE, _LACKING) or not self.source.leave(source):
          raise
    with self.source.use() as (source, capabilities):
      return ServiceAnswer(*ask(source, capabilities), capabilities)

  def _search(self, source, capabilities, asked):
    capabilities.policy.check_purpose(asked.purpose)
    query = _read_query(capabilities, asked.query, asked.words)
    if not query:
      first = capabilities.visible.attributes[0]
      raise ValueError(
        'Nothing is asked for. Say at least one attribute in "query" (for example '
        f'{{"{first.name}": "{first.values[-1]}"}}) or describe the person in "words".'
      )
    # As the encoder sees it, before the source does.
    capabilities.schema.encode_query(query)
    options = _options(capabilities, asked)
    answer = ask(
      source,
      query,
      top_k=_top_k(capabilities.policy, asked),
      text=asked.words.strip(),
      explain=asked.explain and capabilities.can['explain'],
      suggest=asked.suggest and capabilities.can['suggest'],
      options=options,
    )
    return answer, [
      suggestion
      for suggestion in answer.suggestions
      if suggestion.attribute not in capabilities.policy.disabled_attributes
    ]

  def _like(self, source, capabilities, asked):
    capabilities.policy.check_purpose(asked.purpose)
    _check_able(capabilities, 'like', 'crops like one of its gallery')
    options = _options(capabilities, asked)
    # A source takes what is no id for the path of a file.
    crop = source.crop(asked.id)
    if crop is None:
      raise UnknownCropError(
        f"There is no crop '{_short(asked.id)}' (any more). Take an id from an answer."
      )
    self.seen.add([(crop.id, crop.path)])
    # Without the crop itself, which some sources count before they leave it out.
    return source.like(asked.id, top_k=_top_k(capabilities.policy, asked), options=options), ()

  def _like_upload(self, source, capabilities, asked, contents):
    capabilities.policy.check_purpose(asked.purpose)
    if not capabilities.policy.uploads:
      raise RefusedError(
        'The policy of this site does not allow searching for an uploaded picture. Describe the '
        'person, or ask for crops like one of an answer.'
      )
    _check_able(capabilities, 'upload', 'crops like a picture')
    fibers.elsewhere(lambda: thumbnails.check_upload(contents))
    cancellation.check()
    options = _options(capabilities, asked)
    return source.like(contents, top_k=_top_k(capabilities.policy, asked), options=options), ()

  def to_json(self, given: ServiceAnswer, asked: Narrowing) -> dict[str, Any]:
    """What a client sees of an answer: no paths, and nothing of disabled attributes."""
    plain, policy = given.answer.to_json(), given.capabilities.policy
    hits = []
    keys = self.seen.add([(whole.id, whole.path) for whole in given.answer.hits])
    for hit, whole, key in zip(plain['hits'], given.answer.hits, keys):
      hits.append(
        {
          'rank': hit['rank'],
          'id': hit['id'],
          'score': hit['score'],
          'attributes': policy.visible(hit['attributes']),
          'matches': policy.visible(hit['matches']),
          'reasons': policy.visible(hit['reasons']),
          'metadata': policy.visible(hit['metadata']),
          'thumbnail': f'/api/v1/crops/{key}/thumbnail' if whole.path else None,
        }
      )
    return {
      'query': plain['query'],
      'text': plain['text'],
      'source': given.capabilities.name,
      'hits': hits,
      'suggestions': [
        {'attribute': suggestion.attribute, 'gain': float(suggestion.gain)}
        for suggestion in given.suggestions
      ],
      'top_k': min(asked.top_k, policy.max_results or asked.top_k),
      'gallery_size': plain['gallery_size'],
      'seconds': plain['seconds'],
    }

  def clean(self, text: str) -> str:
    """A message without the paths of this machine, and without the address of a model's server."""
    for told, name in self.capabilities.names:
      text = text.replace(told, name)
    return _ABSOLUTE_PATH.sub(lambda match: os.path.basename(match[0].rstrip('/')) or '…', text)


def learn_capabilities(
  source: Source, policy: Policy, before: Capabilities | None = None
) -> Capabilities:
  """What can be asked of a source that is about to answer, which is warm after that.

  Args:
    source: asked one question of each kind that it is able to answer, or one search if it has the
      model of the one before.
    policy: the rules of the site. If they do not fit the schema of a successor, that is an error in
      the log, and nothing may be asked for that could not be before.
    before: what could be asked of the source before; None for the first.

  Raises:
    ValueError: the policy does not fit the first source, or leaves nothing to ask for, or the
      source cannot be searched at all.
    OSError: it cannot be reached.
  """
  facts, schema = source.info(), source.schema
  name = facts.get('name') or name_of_folder(facts.get('directory') or '') or 'model'
  try:
    policy.check_schema(schema)
    visible = policy.visible_schema(schema)
    allowed = frozenset(attribute.name for attribute in visible.attributes)
  except ValueError as error:
    if before is None:
      raise
    allowed = before.allowed
    policy = policy.narrowed(schema, allowed)
    visible = policy.visible_schema(schema)
    logging.getLogger(__name__).error(
      'The policy does not fit %s: %s Until one that does is given and the server started again, '
      'only this can be asked for: %s.',
      name,
      error,
      ', '.join(attribute.name for attribute in visible.attributes),
    )
  has_new_model = before is None or facts.get('model') != before.facts.get('model')
  warm(source, all_kinds=has_new_model)
  able = source.capabilities()
  if before is not None:
    crops = facts.get('crops', 0)
    logging.getLogger(__name__).info('What is searched has changed: %s, %d crops.', name, crops)
  return Capabilities(
    facts=facts,
    name=name,
    policy=policy,
    schema=schema,
    visible=visible,
    can={
      'explain': able.explain,
      'suggest': able.suggest,
      'like': able.like,
      'upload': able.upload,
      'filter': able.narrow,
    },
    names=_names(source, facts, name),
    allowed=allowed,
  )


def examples(schema: AttributeSchema) -> list[str]:
  """Descriptions that the schema understands, for somebody who sees it for the first time."""
  phrases_of: dict[str, list[str]] = {'kind': [], 'value': [], 'thing': []}
  for attribute in schema.attributes:
    if attribute.values == ('no', 'yes'):
      phrases_of['thing'].append(attribute.name.replace('_', ' '))
    else:
      phrases = [p for value in attribute.values for p in attribute.words.get(value, ())[:1]]
      if phrases:
        phrases_of['kind' if attribute.is_binary else 'value'].append(
          phrases[-1 if attribute.is_binary else 0]
        )
  descriptions = []
  for parts in (
    phrases_of['kind'][:1] + phrases_of['value'][:1] + phrases_of['thing'][:1],
    phrases_of['value'][1:2] + [f'no {thing}' for thing in phrases_of['thing'][1:2]],
    phrases_of['thing'][:1],
  ):
    text = ', '.join(parts)
    try:
      words.parse(text, schema)
    except ValueError:
      continue  # Two of the phrases need not go together.
    if text not in descriptions:
      descriptions.append(text)
  return descriptions


def warm(source: Source, *, all_kinds: bool = True) -> None:
  """Asks a source what its first clients would wait for: loading, and tracing of graphs.

  Args:
    source: to ask.
    all_kinds: a question of each kind that it is able to answer; otherwise only searches.

  Raises:
    ValueError: it cannot be searched, or does not answer what it says it is able to.
    OSError: it cannot be reached.
  """
  able = source.capabilities()
  attribute = source.schema.attributes[0]
  query = {attribute.name: attribute.values[-1]}
  hits = source.search(query, top_k=20).hits
  if able.narrow:
    # For what suggestions need, and with a mask of rows, too.
    fields = filter(_can_be_said, source.info().get('fields', {}))
    for where in ('', *(f'{name} is None' for name in itertools.islice(fields, 1))):
      source.search(query, top_k=CANDIDATES, where=where)
      source.search(query, top_k=20, where=where)
  if not all_kinds:
    return
  if able.explain:
    source.search(query, top_k=1, explain=True)
  if able.suggest:
    source.suggest(query, top_k=CANDIDATES)
  # An id that is not known would be taken for the path of a file.
  if able.like and hits and source.crop(hits[0].id) is not None:
    source.like(hits[0].id, top_k=1)
  if able.upload:
    picture = io.BytesIO()
    Image.new('RGB', (64, 128), 'gray').save(picture, 'PNG')
    source.like(picture.getvalue(), top_k=1)


def _can_be_said(name: str) -> bool:
  """Whether a filter can ask for a field of that name."""
  return name.isidentifier() and not keyword.iskeyword(name)


def _names(source: Source, facts: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
  """What messages may say of where the source is, longest first, each with what is told instead."""
  if address := getattr(source, 'address', ''):
    return [(facts['directory'], name), (address, 'its server')]
  paths = {facts.get('directory'), (facts.get('model') or {}).get('path')}
  paths |= {getattr(source, 'directory', None)}
  replacements = {}
  for path in filter(None, paths):
    for spelling in (path, os.path.abspath(path), os.path.realpath(path)):
      replacements[spelling] = name_of_folder(path)
  return sorted(replacements.items(), key=lambda item: -len(item[0]))


def _read_query(
  capabilities: Capabilities, settings: Mapping[str, str], text: str
) -> dict[str, str]:
  """Attribute name to value of settings and words together, checked."""
  capabilities.policy.check_attributes(settings)
  query = {name: str(wanted) for name, wanted in capabilities.visible.read_query(settings).items()}
  if text.strip():
    for name, value in capabilities.policy.read_words(text, capabilities.schema).items():
      if query.setdefault(name, value) != value:
        raise ValueError(
          f"'{name}' is asked for twice: {query[name]} by its setting, {value} by the words. Keep "
          'one of the two.'
        )
  return query


def _check_able(capabilities: Capabilities, ability: str, what: str) -> None:
  """Refuses what the source cannot do, before it is taken for one that is out of order."""
  if not capabilities.can[ability]:
    raise ValueError(
      f'This model cannot find {what}: it was exported by an earlier version of tfreid. Describe '
      'the person instead.'
    )


def _options(capabilities: Capabilities, asked: Narrowing) -> SearchOptions:
  """The options of an index that were asked for, checked."""
  options: dict[str, Any] = {}
  if asked.where.strip():
    options['where'] = asked.where
  for name in ('must', 'must_not'):
    given = getattr(asked, name)
    query = (
      _read_query(capabilities, {}, given)
      if isinstance(given, str)
      else _read_query(capabilities, given, '')
    )
    if query:
      options[name] = query
  if asked.exclude:
    options['exclude'] = asked.exclude
  if asked.min_score is not None:
    options['min_score'] = asked.min_score
  if options and not capabilities.can['filter']:
    raise ValueError(
      f'{", ".join(options)}: only an index can filter its answers, and this is an exported '
      'model. Leave the filters out.'
    )
  if 'where' in options:
    try:
      condition = filters.parse(asked.where)
      capabilities.policy.check_condition(condition)
      # The source checks it too, but would name fields that must not be named.
      filters.check(condition, capabilities.policy.visible(capabilities.facts.get('fields', {})))
    except RecursionError as error:
      raise ValueError('The filter is nested too deeply.') from error
  return SearchOptions(**options)


def _top_k(policy: Policy, asked: Narrowing) -> int:
  """Crops to ask for, where those that are not wanted count as seen.

  Otherwise `exclude` would turn the pages that `max_results` forbids.
  """
  if not policy.max_results:
    return asked.top_k
  left = policy.max_results - len(set(asked.exclude))
  if left < 1:
    raise RefusedError(
      f'The policy of this site allows {policy.max_results} results of a query, those that '
      'are left out by "exclude" included. Describe the person more closely instead.'
    )
  return min(asked.top_k, left)


def name_of_folder(path: str) -> str:
  """The last name of a path; of a version of a model, with the model: 'demo/1'."""
  path = os.path.normpath(path)
  name = os.path.basename(path)
  return f'{os.path.basename(os.path.dirname(path))}/{name}' if name.isdigit() else name


def _short(text: str) -> str:
  return text if len(text) <= 80 else f'{text[:80]}…'
