"""Which crops to index, and what is known of them: a folder, or a CSV or JSON Lines file. Floor 4.

    path,id,camera,time,site,upper_color
    crops/a17.jpg,a17,1,2024-03-01T09:15:00,north,red

* `path`: absolute, or relative to the manifest's folder.
* `id` (optional): stable, unique; the path as the manifest gives it where there is none.
* every other column is a field for filters: `camera`, `time` and what one likes. A column holds
  numbers (3, -1, 2.5, 1e-05) if all of its cells are some, and texts ('0002' too) otherwise; empty
  cells say nothing. Times of ISO 8601 are compared as instants. See `tfreid.data.tables`.
* a column with the name of one of the model's attributes is an annotation: a value, 'none', or
  several as 'red+blue'; empty where nobody annotated the crop.

Of a folder, all image files below it are taken, in the order of their names; ids are the paths
relative to it. Files of other endings, hidden ones, and what systems put between them are left out
and counted; links to folders are followed.

One machine of several reads its part only: `part=(i, n)`.
"""

from __future__ import annotations

import array
import csv
import itertools
import logging
import os
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from tfreid import image_bytes
from tfreid.data import folders, tables
from tfreid.index import filters, segment
from tfreid.index.segment import Row
from tfreid.text import normalized, shortened

ENDINGS = image_bytes.ENDINGS

_NONE = 'none'
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
    return _folder(source, part)
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
  suspects = segment.repeated([hashes])
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
  images = folders.ImageFolder(source)
  if part:
    start, stop = _bounds(part, sum(1 for _ in images))
  # Of the whole folder: the second pass ends with the part.
  told = images.told()
  rows = []
  for name in itertools.islice(images, start, stop):
    path = os.path.abspath(os.path.join(source, name))
    rows.append(_checked(Row(name, path), repr(path)))
  told = told if part else images.told()
  if told:
    _log.warning("Left out of '%s': %s.", source, told)
  if not rows:
    nothing = f' It has {told}.' if told else ''
    raise ValueError(
      f"'{source}' has no image: no file that ends in {', '.join(ENDINGS)}.{nothing}"
    )
  return rows


def _file(source, attributes, part) -> list[Row]:
  known = {'path': "'path'", 'id': "'id'"}
  known.update((name, f"the attribute '{name}'") for name in attributes)
  with tables.open_text(source) as file:
    before = os.fstat(file.fileno())
    table = tables.Table(file, source, known=known, texts=frozenset(known))
    start, stop = 0, None
    if part:
      start, stop = _bounds(part, sum(1 for _ in table.lines()))
    folder, checked = os.path.dirname(os.path.abspath(source)), set(known)
    rows, lines = [], array.array('q')
    for line, record in itertools.islice(table.lines(), start, stop):
      rows.append(_row(table, line, record, folder, attributes, checked))
      lines.append(line)
    after = os.fstat(file.fileno())
  table.check_kinds()
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


def _row(table, line, record, folder, attributes, checked) -> Row:
  """A row of a table; `checked` are names that are known to be good."""
  cells, where = table.cells(line, record), f"'{table.path}', line {line}"
  given = cells.get('path')
  # In JSON, a name of digits only may come as a number.
  given = '' if given is None or isinstance(given, bool) else str(given)
  if not given:
    present = ', '.join(f"'{key}'" for key in list(cells)[:20] if key != 'path')
    raise ValueError(
      f"{where}: no 'path'. Each row needs the path of an image. It has: {present or 'nothing'}."
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
    fields[sys.intern(key)] = table.value(line, key, value)
  path = tables.on_disk(os.path.normpath(os.path.join(folder, os.path.expanduser(given))))
  return _checked(Row(_utf8(name, where), path, fields, annotated), where)


def _annotation(name, value, values, where) -> str:
  if isinstance(value, list):
    value = '+'.join(map(str, value)) or _NONE
  said = [part.strip() for part in normalized(str(value)).split('+')]
  binary = set(values) == {'no', 'yes'}
  if binary:
    said = [tables.yes_or_no(part) for part in said]
  unknown = [part for part in said if part not in values and part != _NONE]
  if unknown:
    known = 'no, yes (or 0, 1)' if binary else ', '.join(values)
    raise ValueError(
      f"{where}: '{name}' is '{shortened(unknown[0])}'; the model knows {known} and '{_NONE}'."
    )
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
