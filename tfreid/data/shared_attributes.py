"""Attributes in which people of several data sets are described alike. Floor 1.

`correspondence.TABLE` says what the attributes of one data set mean in another. From it come

* `schema`: the attributes that several data sets name;
* `view`: a split of one of them in that schema, with what cannot be told left unsaid;
* `load`: a whole data set so, to train on;
* `asked`: a data set whose queries a model of another schema understands, to ask a model that was
  trained on one data set for the people of another.

A row of shared values says of each column yes (1), no (-1) or nothing (0). In the three-state
encoding it is the attribute vector; the binary encoding has no word for "not said", so that a view
in it, as one that is searched, leaves the images out of which the row leaves something unsaid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfreid.data import correspondence
from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.data.benchmark import Benchmark, Split, assemble
from tfreid.data.correspondence import Correspondence, Reading, Said

INCOMPLETE = 'not all shared attributes are known'
_STATES = (-1, 0, 1)
_SHORT = {'peta': correspondence.PETA, 'market1501': correspondence.MARKET}
_SHORT['dukemtmc'] = correspondence.DUKE


def full_name(name: str) -> str:
  """The name of a data set of the table, from 'peta', 'market1501', 'dukemtmc' or itself.

  Raises:
    ValueError: it is not in the table.
  """
  full = _SHORT.get(name, name)
  if full not in correspondence.SCHEMAS:
    raise ValueError(
      f"'{name}' is not in the table of correspondences; choose from {', '.join(_SHORT)}."
    )
  return full


def schema(
  names: Sequence[str], *, least: int | None = None, encoding: str = 'three_state'
) -> AttributeSchema:
  """The attributes that data sets share.

  Args:
    names: of the data sets, as `full_name` takes them.
    least: number of the data sets that must name an attribute, and each of its colours; all of
      them by default. 1 gives every attribute of the table that one of them names.
    encoding: of the attribute vectors.

  Raises:
    ValueError: a name that is not in the table, one twice, or nothing is shared.
  """
  names = [full_name(name) for name in names]
  least = len(names) if least is None else least
  if len(set(names)) != len(names) or not 1 <= least <= len(names):
    raise ValueError(
      f'Name different data sets, and `least` between 1 and their number; got {names} and {least}.'
    )
  attributes = []
  for entry in correspondence.TABLE:
    readings = [entry.readings[name] for name in names if name in entry.readings]
    # What is made of other attributes for the sake of one data set is of no use without it.
    alone = len(readings) == 1 and readings[0].certainty == correspondence.LOOSE
    if len(readings) < least or alone:
      continue
    values = tuple(
      value
      for value in entry.values
      if entry.is_binary or sum(value in reading.values for reading in readings) >= least
    )
    if len(values) > 1:
      attributes.append(_attribute(entry, values))
  if not attributes:
    raise ValueError(f'The table of correspondences names nothing that {", ".join(names)} share.')
  taken = {phrase for a in attributes for phrase in (*a.words.get('yes', ()), a.name)}
  attributes = [_without_taken(attribute, taken) for attribute in attributes]
  return AttributeSchema(
    name=f'{" and ".join(names)} ({"shared" if least == len(names) else "all"} attributes)',
    attributes=tuple(attributes),
    raw_values={column: _STATES for a in attributes for column in a.column_names},
    encoding=encoding,
  )


def _attribute(entry: Correspondence, values: tuple[str, ...]) -> Attribute:
  columns = (entry.name,) if entry.is_binary else tuple(f'{entry.name}={v}' for v in values)
  return Attribute(
    entry.name,
    values,
    tuple((column, 1) for column in columns),
    words={value: entry.words[value] for value in values if value in entry.words},
  )


def _without_taken(attribute: Attribute, taken: set[str]) -> Attribute:
  """The attribute without phrases that are another one's own: a T-shirt is a thing if it can be."""
  if 'yes' in attribute.values:
    return attribute
  words = {
    value: tuple(phrase for phrase in phrases if phrase not in taken)
    for value, phrases in attribute.words.items()
  }
  return dataclasses.replace(attribute, words=words)


def data_set(own: AttributeSchema) -> str | None:
  """Which data set of the table a schema is of, whatever its name; None if of none."""
  for name, known in correspondence.SCHEMAS.items():
    if set(known.raw_values) == set(own.raw_values) and known.column_names == own.column_names:
      return name
  return None


def read(rows: np.ndarray, own: AttributeSchema, shared: AttributeSchema) -> np.ndarray:
  """Raw annotations in shared attributes.

  Args:
    rows: int [N, columns], raw values in the order of `own.raw_values`.
    own: the schema of the data set that they are of.
    shared: as `schema` made it.

  Returns:
    int8 [N, A]: 1 yes, -1 no, 0 not said.

  Raises:
    ValueError: the data set is not in the table.
  """
  name = _known(own)
  column_of = {raw: i for i, raw in enumerate(own.raw_values)}
  entries = {entry.name: entry for entry in correspondence.TABLE}
  rows = np.asarray(rows).reshape(-1, len(column_of))

  def on(pairs: Sequence[Said]) -> np.ndarray:
    result = np.zeros(len(rows), bool)
    for raw, value in pairs:
      result |= rows[:, column_of[raw]] == value
    return result

  parts = []
  for attribute in shared.attributes:
    entry = entries[attribute.name]
    reading = entry.readings.get(name)
    if reading is None:
      parts.append(np.zeros((len(rows), len(attribute.columns)), np.int8))
      continue
    said = {value: on(pairs) for value, pairs in reading.values.items()}
    block = (
      _read_binary(attribute, reading, said)
      if entry.is_binary
      else _read_colors(attribute, entry, said)
    )
    block[on(reading.leaves_open)] = 0
    parts.append(block)
  return np.concatenate(parts, axis=1)


def _read_binary(attribute: Attribute, reading: Reading, said) -> np.ndarray:
  """[N, 1]: not said where both values are, or neither and nothing is said of that."""
  nobody = np.zeros_like(next(iter(said.values())))
  off, on = (said.get(value, nobody) for value in attribute.values)
  block = on.astype(np.int8) - off.astype(np.int8)
  neither = ~on & ~off
  if reading.otherwise is not None:
    block[neither] = 1 if reading.otherwise == attribute.values[1] else -1
  return block[:, np.newaxis]


def _read_colors(attribute: Attribute, entry: Correspondence, said) -> np.ndarray:
  """[N, values]: nothing is said where no value is, nor of neighbours that have no common name.

  A colour that only one side names may have been called by a neighbour's name on the other. So a
  pink top says nothing of red where pink cannot be asked for, and a red one nothing of pink where
  the data set has no pink.
  """
  any_said = np.any(list(said.values()), axis=0)
  block = np.where(any_said[:, np.newaxis], np.int8(-1), np.int8(0))
  block = np.repeat(block, len(attribute.values), axis=1).astype(np.int8)
  for column, value in enumerate(attribute.values):
    for other, there in said.items():
      uncommon = other not in attribute.values or value not in said
      if uncommon and frozenset((value, other)) in entry.neighbors:
        block[there, column] = 0
    if value in said:
      block[said[value], column] = 1
  # What is said by a value that nobody here asks for, and that has no neighbour, is "none of them".
  return block


def _known(own: AttributeSchema) -> str:
  name = data_set(own)
  if name is None:
    raise ValueError(
      f"The attributes of '{own.name}' are not in the table of correspondences, which has those of "
      f'{", ".join(correspondence.SCHEMAS)}.'
    )
  return name


def view(
  split: Split, own: AttributeSchema, shared: AttributeSchema, *, complete: bool | None = None
) -> Split:
  """A split with its people described in shared attributes.

  Args:
    split: of a data set in the table.
    own: its schema.
    shared: as `schema` made it; its encoding is that of the result.
    complete: leave images out of which something is unsaid, counted in `dropped`. By default as the
      encoding needs it: binary vectors cannot leave anything unsaid.

  Returns:
    The images with new attributes and semantic IDs, which are the distinct rows of shared values;
    `keys` are these rows, so that two data sets' can be compared.

  Raises:
    ValueError: the data set is not in the table, nothing is left, or binary vectors are to leave
      something unsaid.
  """
  binary = shared.encoding == 'binary'
  complete = binary if complete is None else complete
  if binary and not complete:
    raise ValueError(
      'The binary encoding cannot leave an attribute unsaid. Use ENCODING = "three_state", or '
      'leave the images out of which not all is known.'
    )
  states = read(np.asarray(split.keys, np.int64), own, shared)[split.semantic_ids]
  dropped = dict(split.dropped)
  kept = np.flatnonzero((states != 0).all(axis=1)) if complete else np.arange(len(states))
  if not len(kept):
    raise ValueError(f'No image of {own.name} says all the {shared.size} shared columns.')
  if len(kept) < len(split):
    dropped[INCOMPLETE] = len(split) - len(kept)
  part, states = split.subset(kept), states[kept]
  keys, ids = np.unique(states, axis=0, return_inverse=True)
  return dataclasses.replace(
    part,
    attributes=shared.from_bits(states > 0) if binary else states.astype(np.float32),
    semantic_ids=ids.astype(np.int64).reshape(-1),
    keys=tuple(tuple(int(value) for value in key) for key in keys),
    dropped=dropped,
  )


def load(
  dataset: Callable[[], Benchmark],
  *,
  names: Sequence[str] = ('peta', 'market1501'),
  least: int | None = None,
  encoding: str = 'three_state',
) -> Benchmark:
  """A data set in the attributes that it shares with others, to train on and to evaluate.

  Args:
    dataset: () -> Benchmark, the loader of one in the table.
    names: of the data sets, see `schema`.
    least: see `schema`.
    encoding: 'three_state', or 'binary' without the images of which something is unsaid.

  Raises:
    ValueError: as `view`.
  """
  benchmark = dataset()
  shared = schema(names, least=least, encoding=encoding)
  # What is evaluated is complete where it can be, so that "the same description" has one meaning.
  complete = True if least is None or least == len(names) else None

  def part(split: Split | None, complete: bool | None) -> Split | None:
    return None if split is None else view(split, benchmark.schema, shared, complete=complete)

  train, test = part(benchmark.train, None), part(benchmark.test, complete)
  assert train is not None and test is not None  # a Benchmark has both
  validation = part(benchmark.validation, complete)
  return assemble(benchmark.name, shared, train, test, validation=validation)


def vectors(states: np.ndarray, shared: AttributeSchema, model: AttributeSchema) -> np.ndarray:
  """Shared values as attribute vectors that a model of another schema takes.

  A value that several columns of the model's data set can say (short sleeves: short, or none) gets
  their training rates given that one of them is on, in the binary encoding, and stays unsaid in
  the three-state one; what says another value is off; all else is unsaid.

  Args:
    states: int [Q, S] of 1, -1 and 0.
    shared: the schema of the states.
    model: the schema that the model was trained on: of a data set in the table, or another shared
      one.

  Returns:
    float32 [Q, A].

  Raises:
    ValueError: the model's schema is neither.
  """
  result = np.tile(model.unsaid(), (len(states), 1))
  off = -1.0 if model.encoding == 'three_state' else 0.0
  places = {name: i for i, name in enumerate(model.column_names)}
  if data_set(model) is None:
    common = [name for name in shared.column_names if name in places]
    if not common or not set(model.raw_values) == set(places):
      _known(model)
    for i, name in enumerate(shared.column_names):
      if name in places:
        said = states[:, i] != 0
        result[said, places[name]] = np.where(states[said, i] > 0, 1.0, off)
    return result
  pairs = [pair for attribute in model.attributes for pair in attribute.columns]
  for row, target in zip(states, result):
    share = _shares(row, shared, model, dict(zip(pairs, model.rates or (0.5,) * model.size)))
    for column, pair in enumerate(pairs):
      if pair in share:
        value = share[pair]
        if model.encoding == 'binary':
          target[column] = value
        elif value in (0.0, 1.0):
          target[column] = 2.0 * value - 1.0
  return result


def _shares(
  row: np.ndarray, shared: AttributeSchema, model: AttributeSchema, rates: Mapping[Said, float]
) -> dict[Said, float]:
  """How sure it is that each column of the model's data set is on, where the row says anything."""
  name = _known(model)
  entries = {entry.name: entry for entry in correspondence.TABLE}
  on: list[Sequence[Said]] = []
  off: set[Said] = set()
  for attribute in shared.attributes:
    reading = entries[attribute.name].readings.get(name)
    if reading is None:
      continue
    holds, holds_not = _said(attribute, row[shared.block(attribute.name)])
    said = [reading.values.get(value, ()) for value in holds]
    on += said
    off.update(pair for value in holds_not for pair in reading.values.get(value, ()))
  found = dict.fromkeys(off, 0.0)
  for pairs in on:
    # What another attribute excludes is no candidate: a short skirt is what is short and a skirt.
    left = [pair for pair in pairs if pair not in off]
    total = sum(rates.get(pair, 0.0) for pair in left)
    for pair in left:
      share = rates.get(pair, 0.0) / total if total else 1.0 / len(left)
      found[pair] = max(found.get(pair, 0.0), 1.0 if len(left) == 1 else share)
  return found


def _said(attribute: Attribute, states: np.ndarray) -> tuple[list[str], list[str]]:
  """The values that hold and those that do not."""
  if attribute.is_binary:
    if not states[0]:
      return [], []
    yes, no = (1, 0) if states[0] > 0 else (0, 1)
    return [attribute.values[yes]], [attribute.values[no]]
  return (
    [value for value, state in zip(attribute.values, states) if state > 0],
    [value for value, state in zip(attribute.values, states) if state < 0],
  )


def asked(
  split: Split, own: AttributeSchema, shared: AttributeSchema, model: AttributeSchema
) -> tuple[Split, Split]:
  """A split whose queries say what its data set shares with a model's, in the model's terms.

  Args:
    split: of a data set in the table.
    own: its schema.
    shared: of that data set and the model's.
    model: the schema that the model was trained on.

  Returns:
    The split to search, with attributes [N, columns of the model], and the same images with the
    shared attributes, complete, whose distinct rows are the semantic IDs of both.

  Raises:
    ValueError: as `view` and `vectors`.
  """
  labels = view(split, own, shared, complete=True)
  translated = vectors(np.asarray(labels.keys), shared, model)
  return dataclasses.replace(labels, attributes=translated[labels.semantic_ids]), labels
