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

# Pydantic evaluates annotations, and Python 3.9 knows no `X | Y`.
# ruff: noqa: UP007

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tfreid.data import words
from tfreid.data.attributes import AttributeSchema
from tfreid.index import filters
from tfreid.text import normalized

# Letters and signs that look like nothing: fillers of Hangul, and the empty pattern of Braille.
_BLANK_LETTERS = frozenset('\u115f\u1160\u3164\uffa0\u2800')
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
    if not is_visible(purpose):
      raise RefusedError(f'The policy of this site demands that a purpose is stated.{listed}')
    if self.purposes and normalized(purpose) not in map(normalized, self.purposes):
      raise RefusedError(f"The policy of this site does not know the purpose '{purpose}'.{listed}")

  def check_condition(self, condition: filters.Condition | None) -> None:
    """Refuses a condition on annotations of a disabled attribute.

    Raises:
      RefusedError: the message names the attribute.
    """
    if condition is not None:
      self.check_attributes(fields_of(condition))

  def visible(self, values: Mapping[str, Any]) -> dict[str, Any]:
    """What may be shown of things by attribute or field name: the same object if it is all."""
    disabled = self.disabled_attributes
    if not disabled:
      return values if isinstance(values, dict) else dict(values)
    return {name: value for name, value in values.items() if name not in disabled}

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
      query = words.parse(text, schema)
    except ValueError:
      if self.disabled_attributes:
        words.parse(text, self.visible_schema(schema))
        # Only with the disabled attributes is there something wrong.
        raise RefusedError(
          'The description speaks of something that the policy of this site does not allow '
          'searching by. Leave it out.'
        ) from None
      raise
    self.check_attributes(query)
    return query


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
  with open(path, encoding='utf-8-sig') as file:
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
  try:
    rules = _Rules.model_validate(data)
  except ValidationError as error:
    name = str(error.errors(include_url=False)[0]['loc'][0])
    if name not in _EXPECTED:
      raise ValueError(
        f"there is no rule '{name[:60]}'. The rules are: {', '.join(_EXPECTED)}."
      ) from error
    if name == 'require_purpose' and data[name] == []:
      raise ValueError('"require_purpose" lists no purpose, so nothing could be asked.') from error
    raise ValueError(f'"{name}" is {_EXPECTED[name]}, not {_short(data[name])}.') from error
  return Policy(
    disabled_attributes=frozenset(rules.disabled_attributes),
    require_purpose=bool(rules.require_purpose),
    purposes=() if isinstance(rules.require_purpose, bool) else tuple(rules.require_purpose),
    max_results=rules.max_results,
    blur_thumbnails=rules.blur_thumbnails,
    uploads=rules.uploads,
  )


def is_visible(text: str) -> bool:
  """Whether anything of a text can be seen: not if it holds only blanks, marks and the like."""
  return any(
    unicodedata.category(character)[0] in 'LNPS' and character not in _BLANK_LETTERS
    for character in text
  )


def _visible(text: str) -> str:
  if not is_visible(text):
    raise ValueError('nothing of it can be seen')
  return text


_Text = Annotated[str, AfterValidator(_visible)]


class _Rules(BaseModel):
  """The file of a policy."""

  model_config = ConfigDict(extra='forbid', strict=True)

  disabled_attributes: list[_Text] = []
  require_purpose: Union[bool, Annotated[list[_Text], Field(min_length=1)]] = False
  # It may be left out, but not null: the default is no value that the file may hold.
  max_results: int = Field(None, ge=1)  # type: ignore[assignment]
  blur_thumbnails: float = Field(0.0, ge=0, le=MAX_BLUR, allow_inf_nan=False)
  uploads: bool = True


# What each rule is, for the message about one that is not.
_EXPECTED = {
  'disabled_attributes': 'a list of texts',
  'require_purpose': 'true, false or a list of texts',
  'max_results': 'a whole number of at least 1',
  'blur_thumbnails': f'a radius of 0 to {MAX_BLUR}',
  'uploads': 'true or false',
}


def _no_key_twice(pairs):
  names = [name for name, _ in pairs]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f"the rule '{name}' is given twice; which one holds?")
  return dict(pairs)


def _short(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 60 else f'{text[:60]}…'
