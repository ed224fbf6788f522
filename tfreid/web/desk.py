"""Where a question meets the policy and the source: messages in, answers out. Floor 5.

Everything here runs in a worker's thread and knows nothing of HTTP.
"""

from __future__ import annotations

import collections
import hashlib
import io
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from tfreid.data import words
from tfreid.data.attributes import AttributeSchema
from tfreid.index import filters
from tfreid.search import Source
from tfreid.search.answer import Answer
from tfreid.web import thumbnails
from tfreid.web.current import Current
from tfreid.web.messages import LikeRequest, Narrowing, SearchRequest
from tfreid.web.policy import Policy, RefusedError

# Best crops between which the next question is to decide; as `Source.suggest` has it.
_CANDIDATES = 50
# Crops whose pictures may be looked at: the last ones that were answered.
_SEEN = 200_000
_OPTIONS = ('where', 'must', 'must_not', 'exclude', 'min_score')
_ABSOLUTE_PATH = re.compile(r'(?<![\w.:/])~?/(?:[^\s\'"/]+/)+[^\s\'"/]*')


class UnknownCropError(Exception):
  """There is no crop of that id."""


class Seen:
  """Crops that were in an answer: a key for each, and where its picture is.

  Only their pictures are given out. So nobody can look through a gallery past the log of queries,
  and a client names keys, never files.
  """

  def __init__(self, size: int = _SEEN):
    """Remembers the last `size` crops."""
    self._size = size
    self._paths: collections.OrderedDict[str, str] = collections.OrderedDict()
    self._lock = threading.Lock()

  def add(self, identifier: str, path: str) -> str:
    """Remembers a crop; returns its key, 32 hexadecimal digits."""
    key = hashlib.blake2b(identifier.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()
    with self._lock:
      self._paths[key] = path
      self._paths.move_to_end(key)
      if len(self._paths) > self._size:
        self._paths.popitem(last=False)
    return key

  def path(self, key: str) -> str | None:
    """Where the picture is; None if the crop was not answered."""
    with self._lock:
      return self._paths.get(key)


class Desk:
  """Answers questions to a source as far as a policy allows.

  Attributes:
    current: the source.
    policy: the rules.
    schema: the attributes that may be asked for.
    can: what the source is able to do: 'explain', 'suggest', 'like', 'filter', each True or False.
    seen: crops that were answered.
  """

  def __init__(self, current: Current, policy: Policy):
    """Asks the source a first question of each kind: what it can do, and so that it is warm.

    Raises:
      ValueError: the policy does not fit the source, or the source cannot be searched at all.
    """
    self.current = current
    self.policy = policy
    self.seen = Seen()
    with current.use() as (source, facts):
      self._full_schema: AttributeSchema = source.schema
      self.schema = policy.visible_schema(source.schema)
      self.can = _abilities(source, facts)
      self._names = _names_of_folders(source, facts)

  def search(self, asked: SearchRequest) -> tuple[Answer, list]:
    """The best crops for a description, and what to ask for next.

    Raises:
      RefusedError: the policy does not allow it.
      ValueError: it is not understood.
    """
    self.policy.check_purpose(asked.purpose)
    said = self._said(asked.query, asked.words)
    if not said:
      raise ValueError(
        'Nothing is asked for. Say at least one attribute in "query" (for example '
        f'{{"{self.schema.attributes[0].name}": "{self.schema.attributes[0].values[-1]}"}}) or '
        'describe the person in "words".'
      )
    # As the encoder sees it, before the source does.
    self._full_schema.encode_query(said)
    with self.current.use() as (source, facts):
      options = self._options(asked, facts)
      answer = source.search(
        said,
        top_k=self._top_k(asked),
        text=asked.words.strip(),
        explain=asked.explain and self.can['explain'],
        **options,
      )
      suggestions = []
      if asked.suggest and self.can['suggest']:
        suggestions = [
          suggestion
          for suggestion in source.suggest(said, top_k=_CANDIDATES, **options)
          if suggestion.attribute not in self.policy.disabled_attributes
        ]
    return answer, suggestions

  def like(self, asked: LikeRequest) -> Answer:
    """The crops most like one of the gallery.

    Raises:
      RefusedError: the policy does not allow it.
      UnknownCropError: there is none of that id.
      ValueError: a filter is not understood.
    """
    self.policy.check_purpose(asked.purpose)
    with self.current.use() as (source, facts):
      options = self._options(asked, facts)
      # A source takes what is no id for the path of a file.
      crop = source.crop(asked.id)
      if crop is None:
        raise UnknownCropError(
          f"There is no crop '{_short(asked.id)}' (any more). Take an id from an answer."
        )
      self.seen.add(crop.id, crop.path)
      # Without the crop itself, which some sources count before they leave it out.
      return source.like(asked.id, top_k=self._top_k(asked), **options)

  def like_upload(self, asked: Narrowing, contents: bytes) -> Answer:
    """The crops most like a picture that is not in the gallery.

    Raises:
      RefusedError: the policy does not allow it.
      ValueError: it is not a picture of a reasonable size, or a filter is not understood.
    """
    self.policy.check_purpose(asked.purpose)
    if not self.policy.uploads:
      raise RefusedError(
        'The policy of this site does not allow searching for an uploaded picture. Describe the '
        'person, or ask for crops like one of an answer.'
      )
    thumbnails.check_upload(contents)
    with self.current.use() as (source, facts):
      options = self._options(asked, facts)
      return source.like(contents, top_k=self._top_k(asked), **options)

  def to_json(self, answer: Answer, suggestions: Sequence, top_k: int) -> dict[str, Any]:
    """What a client sees of an answer: no paths, and nothing of disabled attributes."""
    plain = answer.to_json()
    hits = []
    for hit, found in zip(plain['hits'], answer.hits):
      key = self.seen.add(found.id, found.path)
      hits.append(
        {
          'rank': hit['rank'],
          'id': hit['id'],
          'score': hit['score'],
          'attributes': self.policy.visible(hit['attributes']),
          'matches': self.policy.visible(hit['matches']),
          'reasons': self.policy.visible(hit['reasons']),
          'metadata': self.policy.visible(hit['metadata']),
          'thumbnail': f'/api/v1/crops/{key}/thumbnail' if found.path else None,
        }
      )
    return {
      'query': plain['query'],
      'text': plain['text'],
      'hits': hits,
      'suggestions': [
        {'attribute': suggestion.attribute, 'gain': float(suggestion.gain)}
        for suggestion in suggestions
      ],
      'top_k': top_k,
      'gallery_size': plain['gallery_size'],
      'seconds': plain['seconds'],
    }

  def clean(self, text: str) -> str:
    """A message without the paths of this machine."""
    for path, name in self._names:
      text = text.replace(path, name)
    return _ABSOLUTE_PATH.sub(lambda match: os.path.basename(match[0].rstrip('/')) or '…', text)

  def top_k(self, asked: Narrowing) -> int:
    """Crops of an answer, at most."""
    return min(asked.top_k, self.policy.max_results or asked.top_k)

  def _top_k(self, asked: Narrowing) -> int:
    """`top_k`, where crops that are not wanted count as seen.

    Otherwise `exclude` would turn the pages that `max_results` forbids.
    """
    if not self.policy.max_results:
      return asked.top_k
    left = self.policy.max_results - len(set(asked.exclude))
    if left < 1:
      raise RefusedError(
        f'The policy of this site allows {self.policy.max_results} results of a query, those that '
        'are left out by "exclude" included. Describe the person more closely instead.'
      )
    return min(asked.top_k, left)

  def _said(self, settings: Mapping[str, str], text: str) -> dict[str, str]:
    """Attribute name to value of settings and words together, checked."""
    self.policy.check_attributes(settings)
    said = {}
    for name, value in settings.items():
      negated = value.startswith('!')
      checked = self.schema.check_value(name, value[1:] if negated else value)
      said[name] = f'!{checked}' if negated else checked
    if text.strip():
      for name, value in self.policy.read_words(text, self._full_schema).items():
        if said.setdefault(name, value) != value:
          raise ValueError(
            f"'{name}' is asked for twice: {said[name]} by its setting, {value} by the words. Keep "
            'one of the two.'
          )
    return said

  def _options(self, asked: Narrowing, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an index that were asked for, checked."""
    options: dict[str, Any] = {}
    if asked.where.strip():
      options['where'] = asked.where
    for name in ('must', 'must_not'):
      given = getattr(asked, name)
      said = self._said({}, given) if isinstance(given, str) else self._said(given, '')
      if said:
        options[name] = said
    if asked.exclude:
      options['exclude'] = asked.exclude
    if asked.min_score is not None:
      options['min_score'] = asked.min_score
    if options and not self.can['filter']:
      raise ValueError(
        f'{", ".join(options)}: only an index can filter its answers, and this is an exported '
        'model. Leave the filters out.'
      )
    if 'where' in options:
      try:
        condition = filters.parse(asked.where)
        self.policy.check_condition(condition)
        # The source checks it too, but would name fields that must not be named.
        filters.check(condition, self.policy.visible(facts.get('fields', {})))
      except RecursionError as error:
        raise ValueError('The filter is nested too deeply.') from error
    return options


def examples(schema: AttributeSchema) -> list[str]:
  """Descriptions that the schema understands, for somebody who sees it for the first time."""
  said: dict[str, list[str]] = {'kind': [], 'value': [], 'thing': []}
  for attribute in schema.attributes:
    if attribute.values == ('no', 'yes'):
      said['thing'].append(attribute.name.replace('_', ' '))
    else:
      phrases = [p for value in attribute.values for p in attribute.words.get(value, ())[:1]]
      if phrases:
        said['kind' if attribute.is_binary else 'value'].append(
          phrases[-1 if attribute.is_binary else 0]
        )
  found = []
  for parts in (
    said['kind'][:1] + said['value'][:1] + said['thing'][:1],
    said['value'][1:2] + [f'no {thing}' for thing in said['thing'][1:2]],
    said['thing'][:1],
  ):
    text = ', '.join(parts)
    try:
      words.parse(text, schema)
    except ValueError:
      continue  # Two of the phrases need not go together.
    if text not in found:
      found.append(text)
  return found


def warm(source: Source) -> None:
  """Asks a source what its first clients would wait for: loading, and tracing of graphs."""
  attribute = source.schema.attributes[0]
  query = {attribute.name: attribute.values[-1]}
  hits = source.search(query, top_k=20).hits
  if hasattr(source, 'engine') and hits:
    # With a mask of rows, too.
    source.search(query, top_k=20, exclude=[hits[0].id])
    source.search(query, top_k=_CANDIDATES, exclude=[hits[0].id])


def _abilities(source: Source, facts: Mapping[str, Any]) -> dict[str, bool]:
  attribute = source.schema.attributes[0]
  query = {attribute.name: attribute.values[-1]}
  warm(source)
  picture = io.BytesIO()
  Image.new('RGB', (64, 128), 'gray').save(picture, 'PNG')

  def able(function, *arguments, **options):
    try:
      function(*arguments, **options)
      return True
    except (ValueError, KeyError, NotImplementedError) as error:
      # An old export lacks signatures; it is searched without what they would add.
      logging.getLogger(__name__).info('%s', error)
      return False

  return {
    'explain': able(source.search, query, top_k=1, explain=True),
    'suggest': able(source.suggest, query, top_k=_CANDIDATES),
    'like': hasattr(source, 'crop') and able(source.like, picture.getvalue(), top_k=1),
    'filter': 'fields' in facts,
  }


def _names_of_folders(source: Source, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Paths that messages may name, longest first, each with the name that is given out instead."""
  paths = {facts.get('directory'), (facts.get('model') or {}).get('path')}
  paths |= {getattr(source, 'directory', None)}
  found = {}
  for path in filter(None, paths):
    for spelling in (path, os.path.abspath(path), os.path.realpath(path)):
      found[spelling] = name_of_folder(path)
  return sorted(found.items(), key=lambda item: -len(item[0]))


def name_of_folder(path: str) -> str:
  """The last name of a path; of a version of a model, with the model: 'demo/1'."""
  path = os.path.normpath(path)
  name = os.path.basename(path)
  return f'{os.path.basename(os.path.dirname(path))}/{name}' if name.isdigit() else name


def _short(text: str) -> str:
  return text if len(text) <= 80 else f'{text[:80]}…'
