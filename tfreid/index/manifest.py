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

One machine of several reads its part only: `part=(i, n)`.
"""

from __future__ import annotations

import array
import csv
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfreid.index import engine, filters, segment
from tfreid.index.segment import Row

ENDINGS = ('.jpg', '.jpeg', '.png')

# Spreadsheets of many countries separate by semicolons, exports of databases by tabs or bars.
_SEPARATORS = {',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'vertical bars'}
# What others call the column `path`.
_LIKE_PATH = re.compile('path|file|image|img|crop|photo|picture', re.IGNORECASE)

_NUMBER = re.compile(r'-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?')
_NONE = 'none'
# How tables of yes and no are written as well; pandas makes 1.0 of 1 where a cell is empty.
_YES_OR_NO = {
  **dict.fromkeys(('0', '0.0', 'false'), 'no'),
  **dict.fromkeys(('1', '1.0', 'true'), 'yes'),
}

_log = logging.getLogger(__name__)


def read(
  source: str,
  *,
  attributes: Mapping[str, Sequence[str]] | None = None,
  part: tuple[int, int] | None = None,
) -> list[Row]:
  """The rows of a folder or a manifest, in order; images are not opened.

  Args:
    source: a folder, or a '.csv' or '.jsonl' file.
    attributes: of the model, name to values.
    part: (i, n), only the rows of the i-th of n machines. They are neighbours, so that joining the
      parts in their order gives the whole. The rows before and behind are counted: they take time
      and no memory, and what is wrong with them, or an id that stands in two parts, is not seen.

  Raises:
    FileNotFoundError: there is no such folder or file.
    OSError: it, or a folder in it, cannot be read.
    ValueError: no crop, no such part, or a row that cannot be read; the message names the line.
  """
  source = os.path.expanduser(source)
  if part and not 1 <= part[0] <= part[1]:
    raise ValueError(f'There is no part {part[0]} of {part[1]}; they are numbered from 1 on.')
  check(source)
  if os.path.isdir(source):
    rows = _folder(source, part)
    if not rows:
      raise ValueError(f"'{source}' has no image: no file that ends in {', '.join(ENDINGS)}.")
    return rows
  try:
    rows = _file(source, attributes or {}, part)
  except UnicodeDecodeError as error:
    raise ValueError(f"'{source}' is not UTF-8 text ({error}). Save it as UTF-8.") from error
  except csv.Error as error:
    raise ValueError(f"'{source}' is not a readable CSV file: {error}.") from error
  if not rows:
    raise ValueError(f"'{source}' has no rows.")
  return rows


def check(source: str) -> None:
  """Refuses what is neither a folder nor a manifest by its name.

  Raises:
    FileNotFoundError: there is no such folder or file.
    ValueError: another kind of file.
  """
  source = os.path.expanduser(source)
  if os.path.isdir(source):
    return
  if not os.path.isfile(source):
    raise FileNotFoundError(
      f"There is neither a folder nor a file '{source}'. Give a folder of crops, or a manifest "
      '(.csv or .jsonl).'
    )
  if os.path.splitext(source)[1].lower() not in ('.csv', '.jsonl', '.ndjson'):
    raise ValueError(f"'{source}' is no manifest: its name must end in .csv or .jsonl.")


def doubled(rows: Sequence[Row]) -> tuple[int, int] | None:
  """Positions of two rows with the same id, None if all ids differ; takes some 20 bytes per row."""
  hashes = np.fromiter((hash(row.id) for row in rows), np.int64, len(rows)).view(np.uint64)
  suspects = engine.repeated([hashes])
  if not len(suspects):
    return None
  first: dict[str, int] = {}
  for position in np.flatnonzero(np.isin(hashes, suspects)).tolist():
    before = first.setdefault(rows[position].id, position)
    if before != position:
      return before, position
  return None


def _bounds(part: tuple[int, int], total: int) -> tuple[int, int]:
  """Where a part of `total` rows begins and ends."""
  number, count = part
  if count > max(total, 1):
    raise ValueError(f'{total} crops cannot be shared out to {count} machines.')
  return (number - 1) * total // count, number * total // count


def _folder(source: str, part: tuple[int, int] | None) -> list[Row]:
  start, stop = 0, None
  if part:
    start, stop = _bounds(part, sum(1 for _ in _images(source)))
  rows = []
  for name in itertools.islice(_images(source), start, stop):
    path = os.path.abspath(os.path.join(source, name))
    rows.append(_checked(Row(_utf8(name, path), path), repr(path)))
  return rows


def _images(source: str, below: str = '') -> Iterator[str]:
  """Images below a folder by their paths relative to it, ascending; holds one folder at a time."""
  folder = os.path.join(source, below).rstrip('/') or '/'
  try:
    with os.scandir(folder) as found:
      entries = []
      for entry in found:
        if not entry.is_dir():
          entries += [entry.name] if entry.name.lower().endswith(ENDINGS) else []
        elif not entry.is_symlink():
          # With the slash it has in a path, a folder comes where its files come among all paths.
          entries.append(f'{entry.name}/')
  except OSError as error:
    # Passed over, its crops would be missing.
    raise OSError(f"The folder '{folder}' cannot be listed: {error.strerror}.") from error
  for name in sorted(entries):
    if name.endswith('/'):
      yield from _images(source, below + name)
    else:
      yield below + name


def _file(source, attributes, part) -> list[Row]:
  # With a byte order mark, which spreadsheets write, the first column's name would be wrong.
  with open(source, encoding='utf-8-sig', newline='') as file:
    names, separator = None, ','
    if source.lower().endswith('.csv'):
      names, separator = _header(file, source, attributes)

    def records():
      file.seek(0)
      return _lines(file) if names is None else _csv_lines(file, separator)

    before = os.fstat(file.fileno())
    start, stop = 0, None
    if part:
      start, stop = _bounds(part, sum(1 for _ in records()))
    folder, checked = os.path.dirname(os.path.abspath(source)), {'path', 'id', *attributes}
    rows, lines = [], array.array('q')
    for line, record in itertools.islice(records(), start, stop):
      where = f"'{source}', line {line}"
      cells = _json_cells(record, where) if names is None else _csv_cells(names, record, where)
      rows.append(_row(cells, folder, attributes, checked, where))
      lines.append(line)
    after = os.fstat(file.fileno())
  if part and (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
    raise ValueError(
      f"'{source}' changed while it was read. All parts must come from one file: leave it as it "
      'is, and build again those that came from another.'
    )
  twice = doubled(rows)
  if twice:
    first, second = twice
    raise ValueError(
      f"'{source}', line {lines[second]}: the id '{rows[second].id}' stands on line "
      f'{lines[first]} already.'
    )
  return rows


def _header(file, source, attributes) -> tuple[list[str], str]:
  """The columns of a CSV file, and what separates them."""
  found = {}
  for separator in _SEPARATORS:
    file.seek(0)
    cells = next((cells for cells in csv.reader(file, delimiter=separator) if cells), [])
    found[separator] = [cell.strip() for cell in cells]
  # A comma if that gives a path; a title with a comma in it must not hide the semicolons.
  separator = next((mark for mark in found if 'path' in found[mark]), '')
  if not separator:
    separator = max(found, key=lambda mark: len(found[mark]))
  names = found[separator]
  if 'path' not in names:
    raise ValueError(_no_path(source, names))
  if separator != ',':
    _log.warning(
      "'%s' is read as separated by %s (%s), not by commas.",
      *(source, _SEPARATORS[separator], ', '.join(names)),
    )
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(f"'{source}': the column '{twice[0]}' occurs twice in the header line.")
  for name in names:
    _check_case(name, attributes, f"'{source}', header line")
  return names, separator


def _no_path(source: str, names: Sequence[str]) -> str:
  said = ', '.join(f"'{name}'" for name in names[:20]) or 'nothing'
  near = next((name for name in names if name.lower() == 'path'), '') or next(
    filter(_LIKE_PATH.search, names), ''
  )
  advice = f"Rename '{near}' to 'path'" if near else "Add one with the images' paths"
  return (
    f"'{source}' has no column 'path'. {advice}. Its first line, which names the columns, has: "
    f'{said}.'
  )


def _check_case(name: str, attributes, where: str) -> None:
  """Refuses what would be taken for a field because of a capital letter."""
  known = ('path', 'id', *attributes)
  if name in known:
    return
  for other in known:
    if name.lower() == other.lower():
      what = f"the attribute '{other}'" if other in attributes else f"'{other}'"
      raise ValueError(
        f"{where}: '{name}' differs from {what} only by case. Rename it to '{other}', or, if it is "
        'a field of its own, to something else.'
      )


def _csv_lines(file, separator) -> Iterator[tuple[int, list[str]]]:
  """Rows without the header, and the numbers of their lines."""
  reader = csv.reader(file, delimiter=separator, strict=True)
  filled = ((reader.line_num, cells) for cells in reader if cells)
  next(filled, None)
  return filled


def _csv_cells(names, cells, where) -> dict[str, Any]:
  if len(cells) != len(names):
    raise ValueError(
      f'{where}: the row has {len(cells)} cells and the header line {len(names)}; give as many.'
    )
  return {name: _cell(name, cell.strip()) for name, cell in zip(names, cells)}


def _cell(name: str, cell: str) -> filters.Value:
  if name not in ('path', 'id') and _NUMBER.fullmatch(cell):
    return float(cell) if '.' in cell else int(cell)
  return cell


def _lines(file) -> Iterator[tuple[int, str]]:
  return ((line, text) for line, text in enumerate(file, start=1) if text.strip())


def _json_cells(text, where) -> dict[str, Any]:
  try:
    cells = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{where} is not JSON: {error}.') from error
  if not isinstance(cells, dict):
    raise ValueError(f'{where}: expected an object, got {text.strip()[:40]}.')
  return cells


def _row(cells, folder, attributes, checked, where) -> Row:
  """The row of some cells; `checked` are names that are known to be good."""
  for key in cells:
    if key not in checked:
      _check_case(key, attributes, where)
  given = cells.get('path')
  # In JSON, a name of digits only may come as a number.
  given = '' if given is None or isinstance(given, bool) else str(given)
  if not given:
    found = ', '.join(f"'{key}'" for key in list(cells)[:20] if key != 'path')
    raise ValueError(
      f"{where}: no 'path'. Each row needs the path of an image. It has: {found or 'nothing'}."
    )
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
      if key not in checked:
        filters.check_name(key)
        checked.add(key)
      filters.kind(value)
    except ValueError as error:
      raise ValueError(f"{where}, '{key}': {error}") from error
    # The same text for all rows: JSON makes a new one for each.
    fields[sys.intern(key)] = value
  path = os.path.normpath(os.path.join(folder, os.path.expanduser(given)))
  return _checked(Row(_utf8(name, where), path, fields, annotated), where)


def _annotation(name, value, values, where) -> str:
  if isinstance(value, list):
    value = '+'.join(map(str, value)) or _NONE
  said = str(value).split('+')
  binary = set(values) == {'no', 'yes'}
  if binary:
    said = [_YES_OR_NO.get(part.lower(), part) for part in said]
  unknown = [part for part in said if part not in values and part != _NONE]
  if unknown:
    known = 'no, yes (or 0, 1)' if binary else ', '.join(values)
    raise ValueError(f"{where}: '{name}' is '{unknown[0]}'; the model knows {known} and '{_NONE}'.")
  return '+'.join(said)


def _checked(row: Row, where: str) -> Row:
  try:
    segment.check_row(row)
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error
  return row


def _utf8(name: str, where: str) -> str:
  try:
    name.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{where!r}: the name is not valid UTF-8, so it cannot be an id. Rename the file, or give it '
      'an id in a manifest.'
    ) from error
  return name
