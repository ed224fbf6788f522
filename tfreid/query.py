"""What a query says of an attribute: a few types, and the one place that reads and writes them.

    text          statement                      as a setting
    red           Is(('red',))                   color=red
    black+white   Is(('black', 'white'))         color=black+white
    !red          IsNot('red')                   color!=red

Queries come and go as texts by attribute name, {'color': '!red'}. They are read once, where they
come in, by `AttributeSchema.read_query`, which knows the attributes and their values. More that can
be said (one of several values, how sure somebody is) is another type, or another field, here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Union

from tfreid.text import check_length, normalized, shortened

# Values are words. A description with all values of the largest attribute has some 200 characters.
MAX_CHARACTERS = 1000


@dataclasses.dataclass(frozen=True)
class Is:
  """The attribute has this value, or all of these: a black and white top is both."""

  values: tuple[str, ...]

  def __str__(self) -> str:
    return '+'.join(self.values)

  def fits(self, annotated: str) -> bool:
    """Whether an annotation ('a+b' where several values are on) is as the statement says."""
    return set(self.values) <= set(annotated.split('+'))


@dataclasses.dataclass(frozen=True)
class IsNot:
  """The attribute has another value than this, or none."""

  value: str

  def __str__(self) -> str:
    return f'!{self.value}'

  def fits(self, annotated: str) -> bool:
    """Whether an annotation ('a+b' where several values are on) is as the statement says."""
    return self.value not in annotated.split('+')


Statement = Union[Is, IsNot]
# Attribute name to what is said of it, as a text or as what the text means.
Query = Mapping[str, Union[str, Is, IsNot]]


def read(text: str | Is | IsNot) -> Statement:
  """What 'value', 'a+b' or '!value' says; a statement says itself.

  Raises:
    ValueError: it excludes several values at once, or is longer than any value.
  """
  if not isinstance(text, str):
    return text
  text = normalized(check_length('A value', text, MAX_CHARACTERS)).strip()
  if not text.startswith('!'):
    return Is(_values(text))
  values = _values(text[1:])
  if len(values) > 1:
    raise ValueError(
      f"'{shortened(text)}' excludes several values at once. Exclude one, or say which are wanted."
    )
  return IsNot(values[0])


def read_setting(text: str) -> tuple[str, Statement]:
  """The attribute's name and what is said of it, of 'name=value', 'name!=value' or 'name=!value'.

  Raises:
    ValueError: it is no setting.
  """
  # Not by a regular expression: one that may leave blanks out at both ends backtracks.
  name, equals, value = text.partition('=')
  negated = name.endswith('!')
  name = name[:-1] if negated else name
  if not equals or '=' in value or '!' in name:
    raise ValueError(
      f"Cannot read '{shortened(text.strip())}'. Write attribute=value or attribute!=value, "
      'separated by commas.'
    )
  value = value.strip()
  if negated and value.startswith('!'):
    return name.strip(), Is(_values(normalized(value[1:])))
  return name.strip(), read(f'!{value}' if negated else value)


def setting(name: str, statement: str | Is | IsNot) -> str:
  """'name=value' or 'name!=value', which `read_setting` reads."""
  statement = read(statement)
  if isinstance(statement, IsNot):
    return f'{name}!={statement.value}'
  return f'{name}={statement}'


def _values(text: str) -> tuple[str, ...]:
  """The values of 'a+b', each once; with single blanks where there are several."""
  return tuple(dict.fromkeys(' '.join(value.split()) for value in text.split('+')))
