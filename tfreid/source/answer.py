"""A ranked answer to one description, whoever computed it. Floor 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from tfreid.printable import printable
from tfreid.query import Statement, read, setting

TICK, CROSS, UNKNOWN = '✓', '✗', '·'


@dataclasses.dataclass(frozen=True)
class Hit:
  """One ranked crop.

  Attributes:
    id: of the crop, stable.
    score: dot product in the joint space; larger is better.
    path: of the image file as it was when the gallery was made, or ''.
    attributes: annotated attributes, name to value ('a+b' where several are on), or {} where
      nobody annotated the crop.
    metadata: whatever else is known (camera, person id, ...).
    reasons: attribute name to the change of the score when that attribute is withdrawn from the
      query; positive speaks for the match.
  """

  id: str
  score: float
  path: str = ''
  attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reasons: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Suggestion(NamedTuple):
  """An attribute to ask for next.

  Attributes:
    attribute: its name.
    gain: expected information, in bits, about which of the best crops is meant.
  """

  attribute: str
  gain: float


@dataclasses.dataclass(frozen=True)
class Answer:
  """The ranked crops for one query.

  Attributes:
    query: attribute name to value, '!value' for "not this value"; see `tfreid.query`.
    hits: best first.
    text: the description as it was given.
    source: what was asked, for the page's footer.
    gallery_size: number of crops searched.
    seconds: time the search took.
    suggestions: what to ask for next, best first, where that was asked.
  """

  query: Mapping[str, str]
  hits: Sequence[Hit]
  text: str = ''
  source: str = ''
  gallery_size: int = 0
  seconds: float = 0.0
  suggestions: Sequence[Suggestion] = ()

  def table(self) -> Table:
    """The answer for the terminal: a row per crop, a tick or cross per queried attribute."""
    # As texts and not as rich's markup: ids are names of files, which may have brackets.
    # Control characters in them are shown, and not obeyed by the terminal.
    title = f'{describe(self.query)}  -  best {len(self.hits)} of {self.gallery_size}'
    table = Table(title=Text(printable(title, lines=False)))
    table.add_column('rank', justify='right')
    table.add_column('score', justify='right')
    for name in self.query:
      table.add_column(Text(printable(name, lines=False)), justify='center')
    table.add_column('crop', overflow='fold')  # what is cut off cannot be copied
    styles = {TICK: 'green', CROSS: 'red', UNKNOWN: ''}
    for rank, hit in enumerate(self.hits, start=1):
      marks = []
      for name in self.query:
        sign = verdict(self.query[name], hit.attributes.get(name))
        mark = Text(sign, styles[sign])
        if name in hit.reasons:
          mark.append(f' {hit.reasons[name]:+.3f}', 'default')
        marks.append(mark)
      table.add_row(str(rank), f'{hit.score:.3f}', *marks, Text(printable(hit.id, lines=False)))
    notes = [f'{TICK} annotated as asked, {CROSS} otherwise, {UNKNOWN} not annotated.']
    if any(hit.reasons for hit in self.hits):
      notes.append('Numbers: what the attribute adds to the score.')
    table.caption = ' '.join(notes)
    return table

  def ask_next(self, count: int = 3) -> str:
    """The best suggestions in words: 'hat (0.81 bits), gender (0.40 bits)'; '' if there are none.

    Args:
      count: of suggestions, at most. Those that round to no information are left out.
    """
    return ', '.join(
      f'{name} ({gain:.2f} bits)' for name, gain in self.suggestions[:count] if gain >= 0.005
    )

  def to_json(self) -> dict[str, Any]:
    """The answer as plain JSON types."""
    asked = {name: read(value) for name, value in self.query.items()}
    return {
      'query': dict(self.query),
      'text': self.text,
      'source': self.source,
      'gallery_size': self.gallery_size,
      'seconds': round(self.seconds, 4),
      'ask_next': [{'attribute': name, 'gain': float(gain)} for name, gain in self.suggestions],
      'hits': [
        {
          'rank': rank,
          'id': hit.id,
          'score': hit.score,
          'path': hit.path,
          'attributes': dict(hit.attributes),
          'matches': {
            name: {TICK: True, CROSS: False, UNKNOWN: None}[
              verdict(statement, hit.attributes.get(name))
            ]
            for name, statement in asked.items()
          },
          'reasons': {name: float(change) for name, change in hit.reasons.items()},
          'metadata': dict(hit.metadata),
        }
        for rank, hit in enumerate(self.hits, start=1)
      ],
    }


def describe(query: Mapping[str, str]) -> str:
  """The query in words: 'gender=female, upper_color=red, hat≠yes'."""
  return ', '.join(setting(name, value).replace('!=', '≠') for name, value in query.items())


def verdict(asked: str | Statement, annotated: str | None) -> str:
  """TICK, CROSS or UNKNOWN: whether a crop is as the query asked.

  Args:
    asked: a value, 'a+b' or '!value'; or what that says, for many crops.
    annotated: the crop's value, 'a+b' where several are on, or None.
  """
  if annotated is None:
    return UNKNOWN
  return TICK if read(asked).fits(annotated) else CROSS
