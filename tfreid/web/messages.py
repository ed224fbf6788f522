"""What the API is asked and answers, with the sizes it takes. Floor 5."""

# Pydantic evaluates annotations, and Python 3.9 knows no `X | Y`.
# ruff: noqa: UP007, UP045

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Optional, Union

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

MAX_RESULTS = 500
MAX_JSON_BYTES = 128 * 1024
MAX_UPLOAD_BYTES = 8 * 2**20
MAX_WORDS = 1000
MAX_WHERE = 2000
MAX_ID = 1000
# Settings of a query; schemas with more attributes exist, but no person has so many.
MAX_SETTINGS = 1000
MAX_NAME = 200
MAX_VALUE = 500
MAX_TOKEN = 1000
_MAX_SCORE = 1e9
_MAX_DEPTH = 8


class ApiError(Exception):
  """An answer that is an error.

  Attributes:
    status: of HTTP.
    code: for programs.
    message: for people: what was expected, what came, what to do.
  """

  def __init__(self, status: int, code: str, message: str):
    super().__init__(message)
    self.status = status
    self.code = code
    self.message = message


Name = Annotated[str, StringConstraints(max_length=MAX_NAME)]
Value = Annotated[str, StringConstraints(max_length=MAX_VALUE)]
Settings = Annotated[dict[Name, Value], Field(max_length=MAX_SETTINGS)]
Words = Annotated[str, StringConstraints(max_length=MAX_WORDS)]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID)]


class Request(BaseModel):
  """What is sent to the API; a field that is not known is an error."""

  model_config = ConfigDict(extra='forbid', strict=True)

  def to_log(self) -> dict[str, Any]:
    """What the audit log is told: what differs from the defaults."""
    return self.model_dump(exclude_defaults=True)


class Narrowing(Request):
  """What a search and a "more like this" have in common."""

  top_k: int = Field(20, ge=1, le=MAX_RESULTS, description='Crops in the answer, at most.')
  where: str = Field(
    '',
    max_length=MAX_WHERE,
    description='Of an index: a condition on fields, such as `camera in [1, 2]`.',
  )
  must: Union[Words, Settings] = Field(
    '', description='Of an index: annotations that a crop must have, in words or by name.'
  )
  must_not: Union[Words, Settings] = Field(
    '', description='Of an index: annotations that a crop must not have.'
  )
  exclude: list[Identifier] = Field(
    [],
    max_length=MAX_RESULTS,
    description='Of an index: ids that are not wanted. They count as results for `max_results` of '
    'the policy.',
  )
  min_score: Optional[float] = Field(
    None,
    ge=-_MAX_SCORE,
    le=_MAX_SCORE,
    allow_inf_nan=False,
    description='Of an index: only crops that score as much.',
  )
  purpose: Name = Field('', description='Why this is asked; for the audit log.')

  def to_log(self) -> dict[str, Any]:
    """What the audit log is told: what differs from the defaults, and always how many crops."""
    return {**super().to_log(), 'top_k': self.top_k}


class SearchRequest(Narrowing):
  """A description: settings, words, or both."""

  query: Settings = Field(
    {},
    description='Attribute name to value; \'!value\' means "not this value". What is not said is '
    'left out.',
    examples=[{'upper_color': 'red', 'hat': '!yes'}],
  )
  words: Words = Field('', description='A description in words.')
  explain: bool = Field(True, description='What each attribute adds to each score.')
  suggest: bool = Field(False, description='Which attributes to ask for next, best first.')


class LikeRequest(Narrowing):
  """A crop of the gallery, by its id."""

  id: Identifier = Field(description='Of a crop, as in an answer.')


class LikeOptions(Narrowing):
  """The part `options` of an upload."""


class LikeForm(BaseModel):
  """A form with a picture of a crop; for the description of the API."""

  image: bytes = Field(
    description=f'JPEG or PNG, at most {MAX_UPLOAD_BYTES} bytes.',
    json_schema_extra={'format': 'binary'},
  )
  options: str = Field(
    '{}',
    json_schema_extra={
      'contentMediaType': 'application/json',
      'contentSchema': LikeOptions.model_json_schema(),
    },
  )


class SessionRequest(Request):
  """What shows who somebody is."""

  token: str = Field(max_length=MAX_TOKEN, description='Secret of a user.')

  def to_log(self) -> dict[str, Any]:
    """Nothing: a token, even a wrong one, does not belong in a log."""
    return {}


class Hit(BaseModel):
  """A ranked crop."""

  rank: int
  id: str
  score: float = Field(description='Dot product in the joint space; larger is better.')
  attributes: dict[str, str] = Field(description='Annotations; empty where nobody looked.')
  matches: dict[str, Optional[bool]] = Field(
    description='Whether it is annotated as asked; null where nobody looked.'
  )
  reasons: dict[str, float] = Field(
    description='What each attribute of the query adds to the score; positive speaks for the match.'
  )
  metadata: dict[str, Any]
  thumbnail: Optional[str] = Field(description='Where a small picture is, while this server runs.')


class Suggestion(BaseModel):
  """An attribute to ask for next."""

  attribute: str
  gain: float = Field(description='Expected bits about which of the best crops is meant.')


class SearchAnswer(BaseModel):
  """Crops, best first."""

  query: dict[str, str]
  text: str
  source: str = Field(description='What was searched; `name` of the info, as long as it is that.')
  hits: list[Hit]
  suggestions: list[Suggestion]
  top_k: int = Field(description='Crops asked for, as far as the policy allows them.')
  gallery_size: int
  seconds: float


class ErrorAnswer(BaseModel):
  """Why there is no answer."""

  error: str = Field(description='What was expected, what came, what to do.')
  code: str


def read_json(body: bytes) -> Any:
  """The JSON of a body.

  Raises:
    ApiError: it is none, or holds what JSON cannot (NaN, half a character), or is nested deeply.
  """
  try:
    data = json.loads(body.decode('utf-8'), parse_constant=_refuse_constant)
    _check_depth(data)
    # Half a surrogate pair is a text to Python, and to nothing else.
    json.dumps(data, ensure_ascii=False, allow_nan=False).encode('utf-8')
    return data
  except RecursionError as error:
    raise ApiError(400, 'json', 'The JSON is nested too deeply; a query has two levels.') from error
  except UnicodeError as error:
    raise ApiError(400, 'json', 'The body is not UTF-8. Send JSON in UTF-8.') from error
  except ValueError as error:
    reason = str(error) if len(str(error)) < 200 else 'it cannot be read'
    raise ApiError(400, 'json', f'The body is not JSON: {reason}.') from error


def check(model: type[BaseModel], data: Any) -> Any:
  """`data` as a message.

  Raises:
    ApiError: it is none; the message names what is wrong.
  """
  if not isinstance(data, dict):
    raise ApiError(
      400, 'request', f'Expected a JSON object with {_fields(model)}; got {_kind(data)}.'
    )
  try:
    return model.model_validate(data)
  except ValidationError as error:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = '.'.join(str(part)[:40] for part in first['loc'] if not _is_branch(str(part)))
    if first['type'] == 'extra_forbidden':
      message = f"There is no field '{place}'. The fields are: {_fields(model)}."
    elif first['type'] == 'missing':
      message = f"The field '{place}' is missing."
    else:
      message = f"The field '{place}' does not fit: {first['msg']}."
    raise ApiError(400, 'request', message) from error


def _fields(model: type[BaseModel]) -> str:
  return ', '.join(model.model_fields)


def _is_branch(part: str) -> bool:
  # How Pydantic names the alternatives of a Union.
  return part in ('str', 'constrained-str') or part.startswith('dict[')


def _kind(data: Any) -> str:
  names = {list: 'a list', str: 'a text', bool: 'true or false', type(None): 'null'}
  return names.get(type(data), 'a number')


def _refuse_constant(name: str):
  raise ValueError(f'{name} is not a number of JSON')


def _check_depth(data: Any, depth: int = 0):
  if depth > _MAX_DEPTH:
    raise RecursionError
  if isinstance(data, float) and not math.isfinite(data):
    raise ValueError('a number is too large')  # 1e999
  if isinstance(data, dict):
    data = data.values()
  elif not isinstance(data, list):
    return
  for value in data:
    _check_depth(value, depth + 1)
