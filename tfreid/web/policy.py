"""What a site allows: a JSON file that the people who answer for it can read. Floor 5.

    {
      "disabled_attributes": ["gender", "age"],
      "require_purpose": ["missing person", "lost property"],
      "max_results": 50,
      "blur_thumbnails": 6,
      "uploads": false
    }

Every key may be left out. A key that is not known is an error: a rule that is misspelled must not
pass for one that holds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tfreid.data import words
from tfreid.data.attributes import AttributeSchema
from tfreid.index import filters

# A radius above this leaves nothing of a picture of 256 pixels.
MAX_BLUR = 64


class RefusedError(Exception):
  """A request that the policy does not allow; the message says which rule and what to do."""


@dataclasses.dataclass(frozen=True)
class Policy:
  """The rules; by default there are none.

  Attributes:
    disabled_attributes: nobody may ask for them, filter by them or see them.
    require_purpose: a purpose must be stated with every query.
    purposes: the purposes that may be stated; any if empty.
    max_results: crops in an answer, at most; None for the limit of the server.
    blur_thumbnails: radius in pixels of a thumbnail (at most 128x256) by which it is blurred.
    uploads: whether a picture may be searched for.
  """

  disabled_attributes: frozenset[str] = frozenset()
  require_purpose: bool = False
  purposes: tuple[str, ...] = ()
  max_results: int | None = None
  blur_thumbnails: float = 0.0
  uploads: bool = True

  def check_attributes(self, names: Iterable[str]) -> None:
    """Refuses attributes that are disabled.

    Raises:
      RefusedError: the message names them.
    """
    disabled = sorted(self.disabled_attributes.intersection(names))
    if disabled:
      raise RefusedError(
        f'The policy of this site does not allow searching by {", ".join(disabled)}. Leave '
        f'{"it" if len(disabled) == 1 else "them"} out.'
      )

  def check_purpose(self, purpose: str) -> None:
    """Refuses a query without a purpose where one is demanded.

    Raises:
      RefusedError: the message lists the purposes, where there is a list.
    """
    if not self.require_purpose:
      return
    listed = f' One of: {", ".join(self.purposes)}.' if self.purposes else ''
    if not purpose.strip():
      raise RefusedError(f'The policy of this site demands that a purpose is stated.{listed}')
    if self.purposes and purpose not in self.purposes:
      raise RefusedError(f"The policy of this site does not know the purpose '{purpose}'.{listed}")

  def check_condition(self, condition: filters.Condition | None) -> None:
    """Refuses a condition on annotations of a disabled attribute.

    Raises:
      RefusedError: the message names the attribute.
    """
    if condition is not None:
      self.check_attributes(fields_of(condition))

  def visible(self, values: Mapping[str, Any]) -> dict[str, Any]:
    """What may be shown of things by attribute or field name."""
    return {name: value for name, value in values.items() if name not in self.disabled_attributes}

  def check_schema(self, schema: AttributeSchema) -> None:
    """Refuses a schema that has another idea of what there is to disable.

    Raises:
      ValueError: the policy disables an attribute that does not exist.
    """
    names = [attribute.name for attribute in schema.attributes]
    unknown = sorted(self.disabled_attributes.difference(names))
    if unknown:
      raise ValueError(
        f"The policy disables '{unknown[0]}', which {schema.name} does not have; it has: "
        f'{", ".join(names)}. A misspelled rule would protect nothing.'
      )

  def narrowed(self, schema: AttributeSchema, allowed: Collection[str]) -> Policy:
    """These rules, with every attribute of a schema disabled as well that is not among `allowed`.

    Where the rules do not fit a schema, what they mean may be called something else in it.
    """
    others = {a.name for a in schema.attributes}.difference(allowed)
    return dataclasses.replace(self, disabled_attributes=self.disabled_attributes | others)

  def visible_schema(self, schema: AttributeSchema) -> AttributeSchema:
    """The schema without the disabled attributes: for messages and lists, not for encoding.

    Raises:
      ValueError: the policy disables all attributes.
    """
    kept = tuple(a for a in schema.attributes if a.name not in self.disabled_attributes)
    if not kept:
      raise ValueError(f'The policy disables every attribute of {schema.name}: allow at least one.')
    return dataclasses.replace(schema, attributes=kept, rates=())

  def read_words(self, text: str, schema: AttributeSchema) -> dict[str, str]:
    """What a description says, if it says nothing that is disabled; see `words.parse`.

    Raises:
      RefusedError: it says something of a disabled attribute.
      ValueError: it is not understood; the message names no disabled attribute.
    """
    try:
      said = words.parse(text, schema)
    except ValueError:
      if self.disabled_attributes:
        words.parse(text, self.visible_schema(schema))
        # Only with the disabled attributes is there something wrong.
        raise RefusedError(
          'The description speaks of something that the policy of this site does not allow '
          'searching by. Leave it out.'
        ) from None
      raise
    self.check_attributes(said)
    return said


def fields_of(condition: filters.Condition) -> set[str]:
  """The names of all fields and attributes that a condition looks at."""
  if isinstance(condition, (filters.And, filters.Or)):
    return set().union(*(fields_of(part) for part in condition.parts))
  return {condition.attribute if isinstance(condition, filters.Has) else condition.field}


def read(path: str) -> Policy:
  """The policy in a file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not a policy; the message says what was expected.
  """
  with open(path, encoding='utf-8') as file:
    try:
      data = json.load(file, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"The policy '{path}' cannot be read: {error}") from error
  try:
    return from_json(data)
  except ValueError as error:
    raise ValueError(f"The policy '{path}': {error}") from error


def from_json(data: Any) -> Policy:
  """The policy of a JSON object.

  Raises:
    ValueError: an unknown key, or a value of the wrong kind.
  """
  if not isinstance(data, dict):
    raise ValueError(f'a policy is an object such as {{"max_results": 50}}, not {_short(data)}.')
  known = (
    'disabled_attributes', 'require_purpose', 'max_results', 'blur_thumbnails', 'uploads',
  )  # fmt: skip
  unknown = [name for name in data if name not in known]
  if unknown:
    raise ValueError(f"there is no rule '{unknown[0]}'. The rules are: {', '.join(known)}.")
  rules: dict[str, Any] = {}
  if 'disabled_attributes' in data:
    rules['disabled_attributes'] = frozenset(_texts(data, 'disabled_attributes'))
  if 'require_purpose' in data:
    value = data['require_purpose']
    if isinstance(value, bool):
      rules['require_purpose'] = value
    else:
      rules['purposes'] = tuple(_texts(data, 'require_purpose', 'true, false or a '))
      rules['require_purpose'] = True
      if not rules['purposes']:
        raise ValueError('"require_purpose" lists no purpose, so nothing could be asked.')
  if 'max_results' in data:
    value = data['max_results']
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise ValueError(f'"max_results" is a whole number of at least 1, not {_short(value)}.')
    rules['max_results'] = value
  if 'blur_thumbnails' in data:
    value = data['blur_thumbnails']
    # `not (a <= x <= b)`: NaN, which Python's JSON reads, is neither below nor above.
    if (
      isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value <= MAX_BLUR)
    ):
      raise ValueError(f'"blur_thumbnails" is a radius of 0 to {MAX_BLUR}, not {_short(value)}.')
    rules['blur_thumbnails'] = float(value)
  if 'uploads' in data:
    if not isinstance(data['uploads'], bool):
      raise ValueError(f'"uploads" is true or false, not {_short(data["uploads"])}.')
    rules['uploads'] = data['uploads']
  return Policy(**rules)


def _texts(data: Mapping[str, Any], name: str, other: str = 'a ') -> list[str]:
  value = data[name]
  if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
    raise ValueError(f'"{name}" is {other}list of texts, not {_short(value)}.')
  return value


def _no_key_twice(pairs):
  names = [name for name, _ in pairs]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f"the rule '{name}' is given twice; which one holds?")
  return dict(pairs)


def _short(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 60 else f'{text[:60]}…'
