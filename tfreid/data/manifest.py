"""Your own crops without writing a class: a manifest and a schema. Floor 1.

The manifest is a CSV file with a header line, or JSON Lines; a row per crop:

    path,split,person_id,camera,gender,backpack,upper_color
    crops/a17.jpg,train,17,1,female,yes,red
    crops/b02.jpg,test,2,3,male,no,none

* `path`: absolute, or relative to the manifest's folder.
* `split`: 'train', 'validation' (or 'val') or 'test'; 'query' and 'gallery' both mean 'test'.
* `person_id` (optional): without the column, or where a cell is empty, the crop is a person of its
  own.
* `camera` (optional): a whole number; 0 where it is not given.
* a column per attribute of the schema, with the name of a value. An attribute with more than two
  values may be 'none' or empty; several at once are written 'red+blue'. An attribute with two
  values must be said; no and yes also as 0 and 1, or false and true.

What else holds for such tables (separators, encodings, columns without a name) is said in
`tfreid.data.tables`. Whole numbers may be written as 17.0, as pandas does.

The schema is a JSON file:

    {"name": "Depot 7",
     "attributes": [
       {"name": "gender", "values": ["male", "female"],
        "words": {"male": ["man"], "female": ["woman"]}},
       {"name": "backpack", "values": ["no", "yes"]},
       {"name": "upper_color", "values": ["red", "green", "blue"],
        "words": {"red": ["red top", "red shirt"]}}]}

Attributes with two values are one bit of the vector, the others one bit per value. `words` are
phrases for queries and may be left out.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tfreid.data import tables
from tfreid.data.attributes import NONE, Attribute, AttributeSchema, AttributeTable
from tfreid.data.benchmark import Benchmark, ImageRecord, Split, assemble, join
from tfreid.data.words import phrases
from tfreid.text import normalized, shortened

_log = logging.getLogger(__name__)

SPLITS = {
  'train': 'train',
  'validation': 'validation',
  'val': 'validation',
  'test': 'test',
  'query': 'test',
  'gallery': 'test',
}
_RESERVED = ('path', 'split', 'person_id', 'camera')


def read_schema(path: str | os.PathLike) -> AttributeSchema:
  """The schema of a JSON file as the module describes it.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not JSON, or not such a schema; the message names the attribute.
  """
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f"There is no schema '{path}'. Write one (JSON, with the attributes' names and values), or "
      'set manifest.load.schema to it.'
    )
  try:
    data = json.loads(path.read_text(encoding='utf-8-sig'))
  except ValueError as error:  # both json's errors and a wrong encoding
    raise ValueError(f"'{path}' is not JSON: {error}.") from error
  if not isinstance(data, dict) or not isinstance(data.get('attributes'), list):
    raise ValueError(f"'{path}' must be a JSON object with a list 'attributes'.")
  attributes: list[Attribute] = []
  for position, entry in enumerate(data['attributes'], start=1):
    attributes.append(_attribute(entry, source=f"'{path}', attribute {position}"))
    name = attributes[-1].name
    if name in [attribute.name for attribute in attributes[:-1]]:
      raise ValueError(f"'{path}' has two attributes '{name}'. Rename one.")
  if not attributes:
    raise ValueError(f"'{path}' lists no attribute.")
  raw_values = {}
  for attribute in attributes:
    if attribute.is_binary:
      raw_values[attribute.name] = (1, 2)
    else:
      raw_values.update(dict.fromkeys(attribute.column_names, (0, 1)))
  schema = AttributeSchema(str(data.get('name', path.stem)), tuple(attributes), raw_values)
  try:
    phrases(schema)
  except ValueError as error:
    raise ValueError(f"'{path}': {error}") from error
  return schema


def _attribute(entry: Any, *, source: str) -> Attribute:
  if not isinstance(entry, dict):
    raise ValueError(f'{source}: expected an object with "name" and "values", got {entry!r}.')
  entry = _composed(entry)
  name, values, words = entry.get('name'), entry.get('values'), entry.get('words', {})
  surplus = sorted(set(entry) - {'name', 'values', 'words'})
  if surplus:
    raise ValueError(f'{source}: unknown keys {surplus}; known are "name", "values" and "words".')
  if not isinstance(name, str) or not name or set(name) & set(' ,;=!+'):
    raise ValueError(
      f'{source}: "name" must be a text without spaces and without any of , ; = ! + (got {name!r}).'
    )
  if name in _RESERVED:
    raise ValueError(f"{source}: '{name}' is a column of the manifest already. Rename it.")
  if not _is_texts(values) or len(values) < 2 or len(set(values)) < len(values):
    raise ValueError(
      f'{source} (\'{name}\'): "values" must be a list of two or more different texts (got '
      f'{values!r}). JSON reads yes and no as text only in quotation marks.'
    )
  for value in values:
    if value == NONE or not value.strip() or set(value) & set(',;=!+'):
      raise ValueError(
        f"{source} ('{name}'): the value '{value}' cannot be used: '{NONE}' is given to everybody "
        'with no value, and , ; = ! + have a meaning of their own.'
      )
  if not isinstance(words, dict) or not all(map(_is_texts, words.values())):
    raise ValueError(
      f'{source} (\'{name}\'): "words" must map a value to a list of phrases (got {words!r}).'
    )
  columns: tuple[tuple[str, int], ...]
  if len(values) == 2:
    columns = ((name, 2),)
  else:
    columns = tuple((f'{name}={value}', 1) for value in values)
  unknown = sorted(set(words) - set(values))
  if unknown:
    raise ValueError(f'{source} (\'{name}\'): "words" names values it does not have: {unknown}.')
  return Attribute(name, tuple(values), columns, {v: tuple(p) for v, p in words.items()})


def _composed(data: Any) -> Any:
  """JSON with all of its texts in Unicode's composed form."""
  if isinstance(data, dict):
    return {_composed(key): _composed(value) for key, value in data.items()}
  if isinstance(data, list):
    return [_composed(item) for item in data]
  return normalized(data) if isinstance(data, str) else data


def _is_texts(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _read_rows(path: Path, schema: AttributeSchema) -> list[tuple[int, dict[str, str]]]:
  """The rows of a manifest with the line each stands on."""
  if not path.is_file():
    raise FileNotFoundError(
      f"There is no manifest '{path}'. Write one (a CSV file with a row per crop), or set "
      'manifest.load.table to it.'
    )
  known = {name: f"'{name}'" for name in _RESERVED}
  known.update((a.name, f"the attribute '{a.name}'") for a in schema.attributes)
  try:
    with tables.open_text(path) as file:
      table = tables.Table(file, str(path), known=known)
      return [
        (line, {name: _cell(value) for name, value in table.cells(line, row).items()})
        for line, row in table.lines()
      ]
  except UnicodeDecodeError as error:
    raise ValueError(f"'{path}' is not UTF-8 text ({error}). Save it as UTF-8.") from error
  except csv.Error as error:
    raise ValueError(f"'{path}' is not a readable CSV file: {error}.") from error


def _cell(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, list):
    return '+'.join(map(str, value))
  return str(value).strip()


def _raw(attribute: Attribute, cell: str, *, source: str) -> dict[str, int]:
  """The raw columns of one attribute of one crop."""
  cell = normalized(cell)
  if attribute.is_binary:
    if attribute.values == ('no', 'yes'):
      cell = tables.yes_or_no(cell)
    if cell not in attribute.values:
      raise ValueError(
        f"{source}: '{attribute.name}' is '{cell}'; expected {' or '.join(attribute.values)}."
      )
    return {attribute.name: 1 + attribute.values.index(cell)}
  said = [] if cell in ('', NONE) else [value.strip() for value in cell.split('+')]
  unknown = [value for value in said if value not in attribute.values]
  if unknown:
    raise ValueError(
      f"{source}: '{attribute.name}' is '{unknown[0]}'; expected one of "
      f"{', '.join(attribute.values)}, or '{NONE}'."
    )
  return {
    column: int(value in said) for column, value in zip(attribute.column_names, attribute.values)
  }


def load(
  root: str | os.PathLike,
  *,
  table: str | os.PathLike = 'manifest.csv',
  schema: str | os.PathLike = 'schema.json',
  encoding: str = 'binary',
  validation_share: float = 0.0,
  seed: int = 0,
) -> Benchmark:
  """The Benchmark of a manifest and its schema, see the module's description.

  Args:
    root: the folder that `table` and `schema` are relative to.
    table: the manifest, '.csv' or '.jsonl'.
    schema: the schema, JSON.
    encoding: of the attribute vectors, 'binary' (as in the paper) or 'three_state'.
    validation_share: share of the training semantic IDs to hold out, where the manifest has no
      rows with split 'validation'.
    seed: of that draw.

  Raises:
    FileNotFoundError: the folder, a file or a crop is missing; the message names the row.
    ValueError: a file cannot be read, a row does not fit the schema, or a split is empty.
  """
  folder = Path(root).expanduser()
  if not folder.is_dir():
    raise FileNotFoundError(
      f"There is no folder '{folder}'. Set DATA_ROOT to the folder that holds the manifest."
    )
  attribute_schema = dataclasses.replace(read_schema(folder / schema), encoding=encoding)
  path = folder / table
  rows = _read_rows(path, attribute_schema)
  _check_columns(rows, attribute_schema, path)

  crops = _crops(rows, attribute_schema, path)
  splits = {}
  for part, name in (('train', 'training'), ('validation', 'validation'), ('test', 'test')):
    if crops[part]:
      splits[part] = _split(crops[part], attribute_schema, path, name)
    elif part != 'validation':
      raise ValueError(f"'{path}' has no {name} crops: no row's 'split' is '{part}'.")
  _warn_of_people_in_both(splits['train'], splits['test'], path)
  return assemble(
    attribute_schema.name,
    attribute_schema,
    splits['train'],
    splits['test'],
    validation=splits.get('validation'),
    validation_share=validation_share,
    seed=seed,
  )


class _Crop(NamedTuple):
  """A row of the manifest: its line, the image, and the raw columns of its attributes."""

  line: str
  record: ImageRecord
  raw: dict[str, int]


def _crops(
  rows: Sequence[tuple[int, Mapping[str, str]]], schema: AttributeSchema, path: Path
) -> dict[str, list[_Crop]]:
  """The rows by the split they are in, checked."""
  crops: dict[str, list[_Crop]] = {'train': [], 'validation': [], 'test': []}
  seen: dict[str, int] = {}
  for line, row in rows:
    source = f"'{path}', line {line}"
    part = SPLITS.get(row['split'].lower())
    if part is None:
      raise ValueError(f"{source}: 'split' is '{row['split']}'; expected {', '.join(SPLITS)}.")
    record = _record(row, path.parent, source=source)
    if record.path in seen:
      raise ValueError(f"{source}: '{row['path']}' stands on line {seen[record.path]} already.")
    seen[record.path] = line
    raw: dict[str, int] = {}
    for attribute in schema.attributes:
      raw.update(_raw(attribute, row[attribute.name], source=source))
    crops[part].append(_Crop(str(line), record, raw))
  return crops


def _split(crops: Sequence[_Crop], schema: AttributeSchema, path: Path, name: str) -> Split:
  # Crops of one person may be annotated differently, so the table has a row per crop, not per
  # person, and the crop's line is what joins it.
  lines = pd.Index([crop.line for crop in crops], dtype=object)
  frame = pd.DataFrame([crop.raw for crop in crops], index=lines)
  joined = join(
    [crop.record._replace(person_id=crop.line) for crop in crops],
    AttributeTable(schema, frame, source=str(path)),
    source=f'{schema.name} {name}',
  )
  people = np.asarray([crop.record.person_id for crop in crops], dtype=str)
  return dataclasses.replace(joined, person_ids=people)


def _warn_of_people_in_both(train: Split, test: Split, path: Path) -> None:
  both = sorted(set(train.person_ids) & set(test.person_ids))
  if both:
    _log.warning(
      "%s: %d people are in training and in test, '%s' first: no fair test of retrieval.",
      path,
      len(both),
      both[0],
    )


def count_train_images(
  root: str | os.PathLike,
  *,
  table: str | os.PathLike = 'manifest.csv',
  schema: str | os.PathLike = 'schema.json',
) -> int:
  """The number of training crops that the manifest names; the crops are not looked at.

  Args:
    root: the folder that `table` and `schema` are relative to.
    table: the manifest.
    schema: the schema.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file cannot be read, or a row has no split.
  """
  folder = Path(root).expanduser()
  attribute_schema = read_schema(folder / schema)
  rows = _read_rows(folder / table, attribute_schema)
  _check_columns(rows, attribute_schema, folder / table)
  return sum(SPLITS.get(row['split'].lower()) == 'train' for _, row in rows)


def _check_columns(
  rows: Sequence[tuple[int, Mapping[str, str]]], schema: AttributeSchema, path: Path
) -> None:
  if not rows:
    raise ValueError(f"'{path}' has no rows. It needs a header line and a row per crop.")
  needed = ('path', 'split', *(attribute.name for attribute in schema.attributes))
  known = {*needed, *_RESERVED}
  for line, row in rows:
    missing = [name for name in needed if name not in row]
    surplus = [name for name in row if name not in known]
    if missing or surplus:
      raise ValueError(
        f"'{path}', line {line}: the columns do not fit the schema of {schema.name}. "
        f'Missing: {", ".join(missing) or "none"}; not known: {", ".join(surplus) or "none"}.'
      )


def _record(row: Mapping[str, str], folder: Path, *, source: str) -> ImageRecord:
  path = tables.on_disk(os.path.normpath(folder / Path(row['path']).expanduser()))
  if not row['path'] or not os.path.isfile(path):
    raise FileNotFoundError(
      f"{source}: there is no image '{path}'. Paths are relative to the manifest's folder."
    )
  camera = _whole(row.get('camera') or '0')
  # isdecimal: of digits that are no ASCII, '٣', as well.
  if not camera.isdecimal() or len(camera) > 18:
    raise ValueError(f"{source}: 'camera' is '{shortened(camera)}'; expected a whole number.")
  return ImageRecord(path, _whole(row.get('person_id') or '') or row['path'], int(camera))


def _whole(cell: str) -> str:
  """'17' of '17.0', which pandas writes where other cells of the column are empty."""
  return cell[:-2] if cell.endswith('.0') and cell[:-2].isdecimal() else cell
