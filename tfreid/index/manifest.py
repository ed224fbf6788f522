"""Which crops to index, and what is known of them: a folder, or a CSV or JSON Lines file. Floor 4.

    path,id,camera,time,site,upper_color
    crops/a17.jpg,a17,1,2024-03-01T09:15:00,north,red

* `path`: absolute, or relative to the manifest's folder.
* `id` (optional): stable, unique; the path as the manifest gives it where there is none.
* every other column is a field for filters: `camera`, `time` and what one likes. Cells such as 3,
  -1 or 2.5 are numbers, others texts ('0002' too); empty cells say nothing. ISO 8601 times can be
  compared as texts.
* a column with the name of one of the model's attributes is an annotation: a value, 'none', or
  several as 'red+blue'; empty where nobody annotated the crop.

Of a folder, all JPEG and PNG files below it are taken, in the order of their names; ids are the
paths relative to it.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfreid.index import filters
from tfreid.index.segment import Row

ENDINGS = ('.jpg', '.jpeg', '.png')

_NUMBER = re.compile(r'-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?')
_NONE = 'none'


def read(source: str, *, attributes: Mapping[str, Sequence[str]] | None = None) -> list[Row]:
  """The rows of a folder or a manifest, in order; files are not opened.

  Args:
    source: a folder, or a '.csv' or '.jsonl' file.
    attributes: of the model, name to values.

  Raises:
    FileNotFoundError: there is no such folder or file.
    OSError: it, or a folder in it, cannot be read.
    ValueError: no crop, or a row that cannot be read; the message names the line.
  """
  source = os.path.expanduser(source)
  if os.path.isdir(source):
    rows = _folder(source)
    if not rows:
      raise ValueError(f"'{source}' has no image: no file that ends in {', '.join(ENDINGS)}.")
    return rows
  if not os.path.isfile(source):
    raise FileNotFoundError(
      f"There is neither a folder nor a file '{source}'. Give a folder of crops, or a manifest "
      '(.csv or .jsonl).'
    )
  ending = os.path.splitext(source)[1].lower()
  if ending not in ('.csv', '.jsonl', '.ndjson'):
    raise ValueError(f"'{source}' is no manifest: its name must end in .csv or .jsonl.")
  lines = _csv_lines if ending == '.csv' else _json_lines
  rows, seen = [], {}
  try:
    # With a byte order mark, which spreadsheets write, the first column's name would be wrong.
    with open(source, encoding='utf-8-sig', newline='') as file:
      for line, cells in lines(file, source):
        row = _row(cells, os.path.dirname(os.path.abspath(source)), attributes or {}, source, line)
        if row.id in seen:
          raise ValueError(
            f"'{source}', line {line}: the id '{row.id}' stands on line {seen[row.id]} already."
          )
        seen[row.id] = line
        rows.append(row)
  except UnicodeDecodeError as error:
    raise ValueError(f"'{source}' is not UTF-8 text ({error}). Save it as UTF-8.") from error
  except csv.Error as error:
    raise ValueError(f"'{source}' is not a readable CSV file: {error}.") from error
  if not rows:
    raise ValueError(f"'{source}' has no rows.")
  return rows


def part(rows: Sequence[Row], number: int, count: int) -> Sequence[Row]:
  """The rows of one of `count` machines: neighbours, so that joining the parts keeps the order.

  Args:
    rows: of the whole manifest.
    number: 1 ... count.
    count: number of machines.

  Raises:
    ValueError: no such part, or nothing in it.
  """
  if not 1 <= number <= count:
    raise ValueError(f'There is no part {number} of {count}; they are numbered 1 to {count}.')
  if count > len(rows):
    raise ValueError(f'{len(rows)} crops cannot be shared out to {count} machines.')
  return rows[(number - 1) * len(rows) // count : number * len(rows) // count]


def _folder(source: str) -> list[Row]:
  rows = []
  for folder, _, files in os.walk(source, onerror=_refuse):
    for file in files:
      if file.lower().endswith(ENDINGS):
        path = os.path.join(folder, file)
        name = os.path.relpath(path, source).replace(os.sep, '/')
        rows.append(Row(_utf8(name, path), os.path.abspath(path)))
  return sorted(rows, key=lambda row: row.id)


def _refuse(error: OSError):
  """Else `os.walk` would pass over the folder, and its crops would be missing."""
  raise OSError(f"The folder '{error.filename}' cannot be listed: {error.strerror}.") from error


def _csv_lines(file, source) -> Iterator[tuple[int, dict[str, Any]]]:
  reader = csv.DictReader(file, strict=True)
  names = reader.fieldnames or []
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(f"'{source}': the column '{twice[0]}' occurs twice in the header line.")
  for cells in reader:
    if None in cells or None in cells.values():
      raise ValueError(
        f"'{source}', line {reader.line_num}: the row has not as many cells as the header line "
        f'({len(names)}).'
      )
    yield (
      reader.line_num,
      {name.strip(): _cell(name.strip(), cell.strip()) for name, cell in cells.items()},
    )


def _cell(name: str, cell: str) -> filters.Value:
  if name not in ('path', 'id') and _NUMBER.fullmatch(cell):
    return float(cell) if '.' in cell else int(cell)
  return cell


def _json_lines(file, source) -> Iterator[tuple[int, dict[str, Any]]]:
  for line, text in enumerate(file, start=1):
    if not text.strip():
      continue
    try:
      cells = json.loads(text)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"'{source}', line {line} is not JSON: {error}.") from error
    if not isinstance(cells, dict):
      raise ValueError(f"'{source}', line {line}: expected an object, got {text.strip()[:40]}.")
    yield line, cells


def _row(cells, folder, attributes, source, line) -> Row:
  where = f"'{source}', line {line}"
  given = cells.get('path')
  # In JSON, a name of digits only may come as a number.
  given = '' if given is None or isinstance(given, bool) else str(given)
  if not given:
    raise ValueError(f"{where}: no 'path'. Each row needs the path of an image.")
  name = cells.get('id')
  name = given if name is None or name == '' else str(name)
  fields, annotated = {}, {}
  for key, value in cells.items():
    if key in ('path', 'id') or value is None or value == '':
      continue
    if key in attributes:
      annotated[key] = _annotation(key, value, attributes[key], where)
      continue
    try:
      filters.check_name(key)
      filters.kind(value)
    except ValueError as error:
      raise ValueError(f"{where}, '{key}': {error}") from error
    fields[key] = value
  path = os.path.normpath(os.path.join(folder, os.path.expanduser(given)))
  return Row(_utf8(name, where), path, fields, annotated)


def _annotation(name, value, values, where) -> str:
  if isinstance(value, bool):
    value = 'yes' if value else 'no'
  if isinstance(value, list):
    value = '+'.join(map(str, value)) or _NONE
  said = str(value).split('+')
  unknown = [part for part in said if part not in values and part != _NONE]
  if unknown:
    raise ValueError(
      f"{where}: '{name}' is '{unknown[0]}'; the model knows {', '.join(values)} and '{_NONE}'."
    )
  return '+'.join(said)


def _utf8(name: str, where: str) -> str:
  try:
    name.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{where!r}: the name is not valid UTF-8, so it cannot be an id. Rename the file, or give it '
      'an id in a manifest.'
    ) from error
  return name
