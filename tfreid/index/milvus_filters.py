"""Conditions as Milvus' boolean expressions. Floor 4."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from tfreid.index.filters import And, Compare, Condition, Has, In, Missing, Or, Value
from tfreid.printable import control_character, printable


def mark(*names: str) -> str:
  """What stands for a name, or for an attribute and its value, in `marks`."""
  return hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()


def marks(fields: Mapping[str, Value], attributes: Mapping[str, str]) -> dict[str, int]:
  """The fields a crop has, and the values of its attributes, as 1 each, for `to_milvus`."""
  marked = [mark(name) for name in (*fields, *attributes)]
  for name, value in attributes.items():
    marked += [mark(name, part) for part in value.split('+')]
  return dict.fromkeys(marked, 1)


def to_milvus(condition: Condition) -> str:
  """The condition as Milvus' boolean expression over the JSON fields `fields` and `marks`.

  Milvus Lite knows neither `exists` nor a general `not`, and a JSON != holds where there is
  nothing; so what a crop has is looked up in `marks`, with == and !=, which all of Milvus 2.5 have.
  """
  if isinstance(condition, (And, Or)):
    word = ' and ' if isinstance(condition, And) else ' or '
    return word.join(f'({to_milvus(part)})' for part in condition.parts)
  if isinstance(condition, Missing):
    return _marked(mark(condition.field), condition.negated)
  if isinstance(condition, Has):
    return _marked(mark(condition.attribute, condition.value), not condition.negated)
  name = f'fields[{_quoted(condition.field)}]'
  if isinstance(condition, Compare):
    expression = f'{name} {condition.operator} {_literal(condition.value)}'
    if condition.operator == '!=':
      return f'{_marked(mark(condition.field), True)} and {expression}'
    return expression
  # A list of Milvus' holds one type.
  lists: dict[type, list[str]] = {}
  for value in condition.values:
    lists.setdefault(type(value), []).append(_literal(value))
  if not condition.negated:
    return ' or '.join(f'{name} in [{", ".join(values)}]' for values in lists.values())
  parts = [f'{name} not in [{", ".join(values)}]' for values in lists.values()]
  return ' and '.join([_marked(mark(condition.field), True), *parts])


def _marked(text: str, present: bool) -> str:
  return f'marks["{text}"] {"==" if present else "!="} 1'


def _literal(value: Value) -> str:
  if isinstance(value, bool):
    return 'true' if value else 'false'
  return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
  return json.dumps(text, ensure_ascii=False)


def check(condition: Condition) -> None:
  """Refuses a condition on texts that Milvus compares as others than they are.

  Raises:
    ValueError: a text holds a control character.
  """
  for value in _values(condition):
    if isinstance(value, str) and (character := control_character(value)):
      raise ValueError(
        f"The filter's text '{printable(value[:80], lines=False)}' holds the control character "
        f'{character}. No crop is compared with such a text in Milvus.'
      )


def _values(condition: Condition) -> Iterator[Value]:
  """All constants of a condition."""
  if isinstance(condition, (And, Or)):
    for part in condition.parts:
      yield from _values(part)
  elif isinstance(condition, In):
    yield from condition.values
  elif isinstance(condition, (Compare, Has)):
    yield condition.value
