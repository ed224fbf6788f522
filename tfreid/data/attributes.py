"""Attributes by name: the schema, the annotation table and their encoding. Floor 1.

The public annotation files store their columns in a different order for the train and the test
half, so nothing here is ever positional: a table is a DataFrame whose columns are names, and an
attribute vector is made from it by a schema that knows which name belongs to which position.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from tfreid import query as queries
from tfreid.query import Is, IsNot, Query, Statement
from tfreid.text import did_you_mean, normalized, shortened

if TYPE_CHECKING:
  # Half a second that whoever only asks need not wait.
  import pandas as pd

ENCODINGS = ('binary', 'three_state')
NONE = 'none'
# Characters of a name or a value that are compared with those of a schema.
_LONGEST = 200

_Derived = TypeVar('_Derived')


@dataclasses.dataclass(frozen=True)
class Attribute:
  """One thing that can be said of a person, and where the annotation file says it.

  A *binary* attribute has two values and one column: the column is on for the second value
  (('no', 'yes'), ('male', 'female')). Any other attribute has one column per value, at most one
  of which is on in a query; all off means 'none' ("no colour was annotated").

  Attributes:
    name: the word used in queries and reports, for example 'upper_color'.
    values: the values' names.
    columns: for each bit of the attribute's block of the vector, the (raw column, raw value) of
      the annotation file that switches it on.
    words: for each value, the phrases a person may use for it. Phrases are lower case.
  """

  name: str
  values: tuple[str, ...]
  columns: tuple[tuple[str, int], ...]
  words: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.is_binary:
      if len(self.values) != 2:
        raise ValueError(f"Attribute '{self.name}' has one column and so needs two values.")
    elif len(self.columns) != len(self.values):
      raise ValueError(
        f"Attribute '{self.name}' has {len(self.values)} values but {len(self.columns)} columns; "
        'give one column per value, or two values and one column.'
      )
    unknown = set(self.words) - set(self.values)
    if unknown:
      raise ValueError(f"Attribute '{self.name}' has words for unknown values {sorted(unknown)}.")

  @property
  def is_binary(self) -> bool:
    """True if the attribute is one bit."""
    return len(self.columns) == 1

  @property
  def column_names(self) -> tuple[str, ...]:
    """Names of the attribute's columns in a vector: 'backpack', or 'upper_color=red', ..."""
    if self.is_binary:
      return (self.name,)
    return tuple(f'{self.name}={value}' for value in self.values)


class _Place(NamedTuple):
  """Where an attribute is in a vector.

  Attributes:
    attribute: which.
    block: positions of its columns.
    values: what a description may say of it, 'none' too where it has a column per value.
  """

  attribute: Attribute
  block: slice
  values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class AttributeSchema:
  """The names, values, groups and words of a data set's attributes, and the one encoding.

  It travels with the data, the checkpoint, the exported model and every report, as JSON.

  Two encodings exist. 'binary' is the paper's: 1 where a column is on, 0 where it is off; a
  query cannot say "unknown", so columns of attributes that a partial query leaves out get their
  training rate (0.5 where the rates are not known), the expectation over training people.
  'three_state' has +1 (on), -1 (off) and 0 (not said).

  Attributes:
    name: of the data set.
    attributes: in the order of the vector's blocks.
    raw_values: the legal values of every column of the annotation file, in the canonical order of
      the table's columns; the semantic IDs are the distinct rows of that table.
    encoding: 'binary' or 'three_state'.
    rates: share of training images with each column on, A floats, or () where not known.
    derived: what others have made of the schema and keep with it, by name; see `derive`.
  """

  name: str
  attributes: tuple[Attribute, ...]
  raw_values: Mapping[str, tuple[int, ...]]
  encoding: str = 'binary'
  rates: tuple[float, ...] = ()
  derived: dict[str, Any] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  def __post_init__(self):
    if self.encoding not in ENCODINGS:
      raise ValueError(f"Unknown attribute encoding '{self.encoding}'; choose from {ENCODINGS}.")
    for attribute in self.attributes:
      for raw, value in attribute.columns:
        if raw not in self.raw_values or value not in self.raw_values[raw]:
          raise ValueError(
            f"Attribute '{attribute.name}' reads value {value} of column '{raw}', which the schema "
            f'of {self.name} does not list.'
          )
    if self.rates and len(self.rates) != self.size:
      raise ValueError(f'{len(self.rates)} rates for {self.size} columns of {self.name}.')

  @property
  def column_names(self) -> tuple[str, ...]:
    """Names of the A columns of an attribute vector."""
    return tuple(name for a in self.attributes for name in a.column_names)

  @property
  def size(self) -> int:
    """Length A of an attribute vector."""
    return sum(len(a.columns) for a in self.attributes)

  @property
  def groups(self) -> tuple[int, ...]:
    """For each of the A columns, the position of its attribute in `attributes`."""
    return tuple(i for i, a in enumerate(self.attributes) for _ in a.columns)

  def derive(self, name: str, make: Callable[[AttributeSchema], _Derived]) -> _Derived:
    """What `make` makes of this schema: made once, then kept.

    A schema does not change, so what follows from it, such as the table of its phrases, does not
    either. Two threads that ask at once may both make it; it is the same.

    Args:
      name: of what is made.
      make: makes it; its result must not be changed.
    """
    if name not in self.derived:
      self.derived[name] = make(self)
    return self.derived[name]

  def block(self, name: str) -> slice:
    """Positions of the attribute's columns in a vector."""
    place = self._places.get(name)
    return place.block if place else self._places[self.attribute(name).name].block

  @property
  def _places(self) -> dict[str, _Place]:
    """Where the attributes are, by name."""
    return self.derive('places', AttributeSchema._find_places)

  def _find_places(self) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    start = 0
    for attribute in self.attributes:
      stop = start + len(attribute.columns)
      known = attribute.values if attribute.is_binary else (*attribute.values, NONE)
      places.setdefault(attribute.name, _Place(attribute, slice(start, stop), known))
      start = stop
    return places

  def attribute(self, name: str) -> Attribute:
    """The attribute of that name.

    Raises:
      ValueError: there is none; the message suggests the nearest.
    """
    place = self._places.get(name)
    if place:
      return place.attribute
    if not name.isascii():
      for attribute in self.attributes:
        if normalized(attribute.name) == normalized(name[:_LONGEST]):
          return attribute
    raise ValueError(self._unknown('attribute', name, [a.name for a in self.attributes]))

  def check_value(self, name: str, value: str) -> str:
    """`value` if the attribute knows it ('none' too, where it has one column per value).

    Returns:
      The value as the schema spells it, which may compose accents otherwise.

    Raises:
      ValueError: unknown attribute or value; the message suggests the nearest.
    """
    attribute = self.attribute(name)
    known = self._places[attribute.name].values
    if value in known:
      return value
    for other in known:
      if normalized(' '.join(other.split())) == normalized(value[:_LONGEST]):
        return other
    raise ValueError(self._unknown(f"value of '{attribute.name}'", value, known))

  def read_query(self, query: Query) -> dict[str, Statement]:
    """What a query says, with names and values as the schema spells them.

    Args:
      query: attribute name to 'value', to 'a+b' for several values at once, to '!value' for "not
        this value", or to a statement.

    Raises:
      ValueError: an unknown attribute or value, an attribute twice, or what nobody can be.
    """
    read: dict[str, Statement] = {}
    for given, text in query.items():
      attribute = self.attribute(given)
      name, statement = attribute.name, queries.read(text)
      if name in read:
        raise ValueError(f"'{name}' is asked for twice, in two spellings. Keep one.")
      if isinstance(statement, IsNot):
        statement = IsNot(self.check_value(name, statement.value))
        if statement.value == NONE and not attribute.is_binary:
          raise ValueError(f"'{name}!=none' says that some value is on but not which; name one.")
      else:
        statement = Is(tuple(self.check_value(name, value) for value in statement.values))
        if len(statement.values) > 1 and (attribute.is_binary or NONE in statement.values):
          raise ValueError(f"'{name}={statement}' contradicts itself: keep one of its values.")
      read[name] = statement
    return read

  def _unknown(self, what: str, given: str, known: Sequence[str]) -> str:
    hint = did_you_mean(given, known)
    return f"Unknown {what}: '{shortened(given)}'.{hint} {self.name} knows: {', '.join(known)}."

  def encode(self, table: pd.DataFrame) -> np.ndarray:
    """Attribute vectors of annotated people.

    Args:
      table: raw columns by name, P rows.

    Returns:
      float32 [P, A]: 0/1 in the binary encoding, -1/+1 in the three-state one.
    """
    bits = np.stack(
      [
        (table[raw].to_numpy() == value).astype(np.float32)
        for attribute in self.attributes
        for raw, value in attribute.columns
      ],
      axis=1,
    )
    return self.from_bits(bits)

  def from_bits(self, bits: np.ndarray) -> np.ndarray:
    """[..., A] zeros and ones, to vectors of this schema's encoding, float32."""
    bits = np.asarray(bits, np.float32)
    return 2.0 * bits - 1.0 if self.encoding == 'three_state' else bits

  def to_bits(self, vectors: np.ndarray) -> np.ndarray:
    """[..., A] fully known vectors of this schema's encoding, to zeros and ones, float32."""
    vectors = np.asarray(vectors, np.float32)
    return (vectors > 0.0 if self.encoding == 'three_state' else vectors > 0.5).astype(np.float32)

  def unsaid(self) -> np.ndarray:
    """The attribute vector of a description that says nothing, float32 [A].

    Zeros in the three-state encoding, the training rates in the binary one. `encode_query` starts
    from it; nobody searches for it, but what an attribute contributes is measured against it.
    """
    if self.encoding == 'three_state':
      return np.zeros(self.size, np.float32)
    return np.asarray(self.rates or (0.5,) * self.size, np.float32)

  def encode_query(self, query: Query) -> np.ndarray:
    """The attribute vector of a description that may leave attributes out.

    Args:
      query: see `read_query`.

    Returns:
      float32 [A]. What is not said is 0 in the three-state encoding and the training rate in the
      binary one.

    Raises:
      ValueError: unknown attribute or value, or an empty query.
    """
    if not query:
      raise ValueError(
        'The query names no attribute. Say at least one, for example '
        f'{self.attributes[0].name}={self.attributes[0].values[-1]}.'
      )
    off, on = (-1.0, 1.0) if self.encoding == 'three_state' else (0.0, 1.0)
    vector = self.unsaid()
    for name, statement in self.read_query(query).items():
      attribute, block = self.attribute(name), self.block(name)
      if attribute.is_binary:
        wanted = statement.fits(attribute.values[1])
        vector[block] = on if wanted else off
      elif isinstance(statement, IsNot):
        vector[block.start + attribute.values.index(statement.value)] = off
      else:
        vector[block] = off
        for value in statement.values:
          if value != NONE:
            vector[block.start + attribute.values.index(value)] = on
    return vector

  @property
  def answers(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """For each attribute, its possible values and the vectors of descriptions that say only these.

    V values, 'none' among them where an attribute has a column per value, and float32 [V, A].
    """
    return self.derive('answers', AttributeSchema._find_answers)

  def _find_answers(self) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    found = {}
    for attribute in self.attributes:
      values = tuple(attribute.values) + (() if attribute.is_binary else (NONE,))
      vectors = np.stack([self.encode_query({attribute.name: value}) for value in values])
      vectors.setflags(write=False)  # of everybody who asks
      found[attribute.name] = values, vectors
    return found

  def describe(self, vector: np.ndarray) -> dict[str, str]:
    """A fully known vector [A] as attribute name to value; 'a+b' where several are on.

    `encode_query` reads what this writes, and gives the same vector again.
    """
    bits = self.to_bits(vector)
    described = {}
    for attribute in self.attributes:
      block = bits[self.block(attribute.name)]
      if attribute.is_binary:
        described[attribute.name] = attribute.values[int(block[0])]
      else:
        on = [value for value, bit in zip(attribute.values, block) if bit]
        described[attribute.name] = '+'.join(on) or NONE
    return described

  def to_json(self) -> dict[str, Any]:
    """The schema as plain JSON types."""
    return {
      'name': self.name,
      'encoding': self.encoding,
      'rates': [float(rate) for rate in self.rates],
      'attributes': [
        {
          'name': a.name,
          'values': list(a.values),
          'columns': [[raw, int(value)] for raw, value in a.columns],
          'words': {value: list(words) for value, words in a.words.items()},
        }
        for a in self.attributes
      ],
      'raw_values': {raw: [int(v) for v in values] for raw, values in self.raw_values.items()},
    }

  @classmethod
  def from_json(cls, data: Mapping[str, Any] | str) -> AttributeSchema:
    """The schema that `to_json` wrote, from the dict or its text.

    Raises:
      ValueError: the text is not a schema.
    """
    try:
      record: Mapping[str, Any] = json.loads(data) if isinstance(data, str) else data
      attributes = tuple(
        Attribute(
          name=a['name'],
          values=tuple(a['values']),
          columns=tuple((raw, int(value)) for raw, value in a['columns']),
          words={value: tuple(words) for value, words in a.get('words', {}).items()},
        )
        for a in record['attributes']
      )
      return cls(
        name=record['name'],
        attributes=attributes,
        raw_values={raw: tuple(v) for raw, v in record['raw_values'].items()},
        encoding=record['encoding'],
        rates=tuple(record.get('rates', ())),
      )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
      raise ValueError(f'This is not an attribute schema: {error!r}.') from error


class AttributeTable:
  """Annotated people: raw values by column name, one row per person.

  Attributes:
    schema: the AttributeSchema that reads the columns.
    frame: DataFrame, index = person id as on disk (str), columns = `schema.raw_values` in that
      canonical order, whatever order the file had; dtype int64.
  """

  def __init__(self, schema: AttributeSchema, frame: pd.DataFrame, *, source: str = 'annotations'):
    """Checks the columns and values.

    Args:
      schema: what the columns mean.
      frame: raw columns by name, index = person id; surplus columns are an error too, so that
        a new release of a file is noticed.
      source: where the frame came from, for the messages.

    Raises:
      ValueError: a missing or surplus column, a value the schema does not list, a person twice.
    """
    missing = [raw for raw in schema.raw_values if raw not in frame.columns]
    surplus = [raw for raw in frame.columns if raw not in schema.raw_values]
    if missing or surplus:
      raise ValueError(
        f'{source}: the annotation columns do not fit {schema.name}. '
        f'Missing: {missing or "none"}; not known: {surplus or "none"}. '
        f'Expected exactly: {", ".join(schema.raw_values)}.'
      )
    twice = frame.index[frame.index.duplicated()]
    if len(twice):
      raise ValueError(f"{source}: person '{twice[0]}' is annotated {len(twice) + 1} times.")
    frame = frame[list(schema.raw_values)]
    for raw, legal in schema.raw_values.items():
      bad = frame.index[~frame[raw].isin(legal)]
      if len(bad):
        raise ValueError(
          f"{source}: column '{raw}' of person '{bad[0]}' is {frame.loc[bad[0], raw]}; "
          f'legal values are {", ".join(map(str, legal))}. ({len(bad)} people have such a value.)'
        )
    self.schema = schema
    self.frame = frame.astype(np.int64)

  def __len__(self) -> int:
    return len(self.frame)

  def vectors(self) -> np.ndarray:
    """Attribute vectors, float32 [P, A], a row per person."""
    return self.schema.encode(self.frame)

  def semantic_ids(self) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Numbers people by attribute combination (Sec. 3.1: "semantic ID").

    The *raw* values decide, as in the paper's counts: Market's age keeps its four values, and
    Duke's two people without a `top` value keep their own.

    Returns:
      int64 [P], the semantic ID of each person, numbered from 0 in sorted order of the
      combination; and the combinations, one tuple of raw values per semantic ID.
    """
    rows = self.frame.to_numpy()
    if not len(rows):
      return np.zeros(0, np.int64), []
    keys, ids = np.unique(rows, axis=0, return_inverse=True)
    return ids.astype(np.int64).reshape(-1), [tuple(int(v) for v in key) for key in keys]


def check_same_columns(
  trained: AttributeSchema | None, schema: AttributeSchema, *, advice: str
) -> None:
  """Refuses a data set whose attribute columns are not those that a space was trained on.

  Args:
    trained: of the space; None where it is not known, and anything fits.
    schema: of the data set.
    advice: what to do then, a sentence.

  Raises:
    ValueError: they differ.
  """
  if trained is None:
    return
  if (trained.column_names, trained.encoding) != (schema.column_names, schema.encoding):
    raise ValueError(
      f'The joint space was trained on the {trained.size} {trained.encoding} attribute columns of '
      f'{trained.name}, but {schema.name} has other ones ({schema.size}, {schema.encoding}). '
      f'{advice}'
    )
