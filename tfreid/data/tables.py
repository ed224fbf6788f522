"""Tables that people write, as CSV or JSON Lines: one reader, one set of rules. Floor 1.

* The text is UTF-8, with or without a byte order mark. CSV may be separated by commas, semicolons,
  tabs or vertical bars; the header line must have the column `path`, which tells them apart.
* A column without a name, which pandas makes of its index, is left out, and that is told.
* In CSV, a *column* has a kind, not a cell: it holds numbers if every cell that is not empty is one
  (3, -1, 2.5, 1e-05; not 007 or 1,5), and texts otherwise. Where some cells are numbers, that is
  told. JSON says the kind of each value itself.
* Times (a date and a time of day of ISO 8601) are brought into one form, see `tfreid.data.times`. A
  column that has some with an offset from UTC and some without is refused: they have no order.
* Texts are composed (Unicode's NFC), but for those of the columns that name files.
"""

from __future__ import annotations

import csv
import functools
import json
import logging
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO, Union

from tfreid.data import times
from tfreid.text import normalized, shortened, spellings

# Spreadsheets of many countries separate by semicolons, exports of databases by tabs or bars.
_SEPARATORS = {',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'vertical bars'}
# What others call the column `path`.
_LIKE_PATH = re.compile('path|file|image|img|crop|photo|picture', re.IGNORECASE)
_UNNAMED = re.compile(r'(Unnamed: \d+)?')
_NUMBER = re.compile(r'-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?')
# Of a number; what is longer is no measure but a name.
_LONGEST_NUMBER = 40
_DATE = re.compile(r'\d{4}(-\d\d(-\d\d)?)?')
# How tables of yes and no are written as well; pandas makes 1.0 of 1 where a cell is empty.
_YES_OR_NO = {
  **dict.fromkeys(('0', '0.0', 'false'), 'no'),
  **dict.fromkeys(('1', '1.0', 'true'), 'yes'),
}

Value = Union[str, int, float, bool]
_log = logging.getLogger(__name__)


def is_json_lines(path: str) -> bool:
  """Whether a file is JSON Lines by its name."""
  return path.lower().endswith(('.jsonl', '.ndjson'))


def open_text(path: str | os.PathLike) -> TextIO:
  """Opens a text file that a person wrote: UTF-8, with or without a byte order mark."""
  # With a byte order mark, which spreadsheets write, the first word would be another.
  return open(path, encoding='utf-8-sig', newline='')


def on_disk(path: str) -> str:
  """The path as the file system spells it; as it is given where there is no such file.

  File systems of Apple's, and archives made there, write 'é' as two characters.
  """
  if path.isascii() or os.path.exists(path):
    return path
  return next((other for other in spellings(path) if os.path.exists(other)), path)


def yes_or_no(cell: str) -> str:
  """'yes' or 'no' of a cell that says so as 0, 1, 1.0, true, ...; any other cell as it is."""
  return _YES_OR_NO.get(cell.lower(), cell)


class _Seen(NamedTuple):
  """Where a column first had a cell of some sort."""

  line: int
  cell: str


class Table:
  """A CSV or JSON Lines file that is open; it can be gone through several times.

  Attributes:
    path: of the file, for messages.
    names: of the columns, None of JSON Lines, whose rows name their own.
  """

  def __init__(
    self,
    file: TextIO,
    path: str,
    *,
    known: Mapping[str, str],
    texts: Collection[str] | None = None,
  ):
    """Reads the header line.

    Args:
      file: from `open_text`.
      path: of the file.
      known: names of columns that mean something, and what messages call them: no other column may
        differ from one by case only.
      texts: columns of CSV whose cells stay as they are; None for all.

    Raises:
      ValueError: there is no column `path`, or one occurs twice.
      UnicodeDecodeError: the file is no text.
    """
    self._file, self.path = file, path
    self._known = known
    self._texts = texts
    self._checked = set(known)
    self._sorts: dict[str, dict[str, _Seen]] = {}
    self._dropped: set[str] = set()
    self.names: list[str] | None = None
    self._separator = ','
    if not is_json_lines(path):
      self.names, self._separator = self._header()
      self._numbers: frozenset[str] = frozenset()
      if texts is not None:
        self._numbers = self._decide()

  def lines(self) -> Iterator[tuple[int, Any]]:
    """The rows from the beginning, as they stand in the file, and the numbers of their lines."""
    self._file.seek(0)
    if self.names is None:
      return ((line, text) for line, text in enumerate(self._file, start=1) if text.strip())
    reader = csv.reader(self._file, delimiter=self._separator, strict=True)
    filled = ((reader.line_num, cells) for cells in reader if cells)
    next(filled, None)
    return filled

  def cells(self, line: int, row: Any) -> dict[str, Any]:
    """The cells of a row by column: values of CSV by the kind of their column, of JSON as they are.

    Args:
      line: number of its line.
      row: as `lines` gives it.

    Raises:
      ValueError: another number of cells than columns, no JSON object, or a name that differs from
        one that is known by case only.
    """
    where = f"'{self.path}', line {line}"
    if self.names is None:
      cells = _json_object(row, where)
      for key in [key for key in cells if key not in self._checked]:
        if _UNNAMED.fullmatch(key):
          del cells[key]
          self._drop(key)
        else:
          self._check_case(key, where)
          self._checked.add(key)
      return cells
    if len(row) != len(self.names):
      raise ValueError(
        f'{where}: the row has {len(row)} cells and the header line {len(self.names)}; give as '
        'many.'
      )
    return {
      name: self._cell(name, cell.strip())
      for name, cell in zip(self.names, row)
      if not _UNNAMED.fullmatch(name)
    }

  def value(self, line: int, name: str, value: Value) -> Value:
    """A value of a field, as it is kept: times in one form, letters composed.

    Of JSON Lines, remembers what the column has, for `check_kinds`.
    """
    if self.names is None:
      self._see(line, name, value)
    # The same text for all rows: JSON makes a new one for each.
    return sys.intern(times.key(normalized(value))) if type(value) is str else value

  def check_kinds(self) -> None:
    """Tells of columns with values of several kinds, among the rows that were read.

    Raises:
      ValueError: some times of a column have an offset from UTC, and some have not.
    """
    for name, sorts in self._sorts.items():
      local, instant = sorts.get('time'), sorts.get('instant')
      if local and instant:
        raise ValueError(
          f"'{self.path}': the column '{name}' has times with an offset from UTC (line "
          f"{instant.line}: '{instant.cell}') and times without (line {local.line}: "
          f"'{local.cell}'), which cannot be compared. Write all of them in one way."
        )
      text, number = sorts.get('text'), sorts.get('number')
      some = text or local or instant or sorts.get('date')
      if number and some:
        what = 'each is read as what it is' if self.names is None else 'all are read as texts'
        _log.warning(
          "'%s': the column '%s' has numbers (line %d: '%s') and texts (line %d: '%s'); %s.",
          *(self.path, name, *number, *some, what),
        )
      time = local or instant
      if text and time:
        _log.warning(
          "'%s': the column '%s' has times (line %d: '%s') and other texts (line %d: '%s'), which "
          'are compared letter by letter.',
          *(self.path, name, *time, *text),
        )

  def _cell(self, name: str, cell: str) -> Value:
    if name in self._numbers and cell:
      return _number(cell)  # type: ignore[return-value]  # every cell of the column is one
    return cell

  def _header(self) -> tuple[list[str], str]:
    """The columns of a CSV file, and what separates them."""
    found = {}
    for separator in _SEPARATORS:
      self._file.seek(0)
      cells = next((cells for cells in csv.reader(self._file, delimiter=separator) if cells), [])
      found[separator] = [normalized(cell.strip()) for cell in cells]
    # A comma if that gives a path; a title with a comma in it must not hide the semicolons.
    separator = next((mark for mark in found if 'path' in found[mark]), '')
    if not separator:
      separator = max(found, key=lambda mark: len(found[mark]))
    names = found[separator]
    if 'path' not in names:
      raise ValueError(_no_path(self.path, names))
    if separator != ',':
      _log.warning(
        "'%s' is read as separated by %s (%s), not by commas.",
        *(self.path, _SEPARATORS[separator], ', '.join(names)),
      )
    for name in names:
      if _UNNAMED.fullmatch(name):
        self._drop(name)
      elif names.count(name) > 1:
        raise ValueError(f"'{self.path}': the column '{name}' occurs twice in the header line.")
      else:
        self._check_case(name, f"'{self.path}', header line")
    return names, separator

  def _decide(self) -> frozenset[str]:
    """The columns of CSV that hold numbers, by all of the file."""
    assert self.names is not None and self._texts is not None
    columns = [
      (position, name)
      for position, name in enumerate(self.names)
      if name not in self._texts and not _UNNAMED.fullmatch(name)
    ]
    if not columns:
      return frozenset()
    for line, row in self.lines():
      for position, name in columns:
        if position < len(row):
          self._see(line, name, row[position].strip())
    self.check_kinds()
    numbers = frozenset(name for name, sorts in self._sorts.items() if set(sorts) == {'number'})
    self._sorts = {}  # it has been told
    return numbers

  def _see(self, line: int, name: str, value: Value) -> None:
    if type(value) is str:
      sort = _sort(value) if self.names is not None else _sort_of_text(value)
    else:
      sort = 'flag' if isinstance(value, bool) else 'number'
    sorts = self._sorts.setdefault(name, {})
    if sort and sort not in sorts:
      sorts[sort] = _Seen(line, shortened(str(value)))

  def _drop(self, name: str) -> None:
    if name not in self._dropped:
      self._dropped.add(name)
      _log.warning(
        "'%s': the column '%s' is not read: it has no name. (pandas writes its index so; leave it "
        'out with index=False.)',
        *(self.path, name),
      )

  def _check_case(self, name: str, where: str) -> None:
    """Refuses what would be taken for a field because of a capital letter."""
    if name in self._known:
      return
    for other, what in self._known.items():
      if name.lower() == other.lower():
        raise ValueError(
          f"{where}: '{name}' differs from {what} only by case. Rename it to '{other}', or, if it "
          'is a field of its own, to something else.'
        )


def _json_object(text: str, where: str) -> dict[str, Any]:
  try:
    cells = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{where} is not JSON: {error}.') from error
  if not isinstance(cells, dict):
    raise ValueError(f'{where}: expected an object, got {text.strip()[:40]}.')
  return {normalized(key): value for key, value in cells.items()}


def _no_path(source: str, names: Sequence[str]) -> str:
  said = ', '.join(f"'{shortened(name)}'" for name in names[:20]) or 'nothing'
  near = next((name for name in names if name.lower() == 'path'), '') or next(
    filter(_LIKE_PATH.search, names), ''
  )
  advice = f"Rename '{near}' to 'path'" if near else "Add one with the images' paths"
  return (
    f"'{source}' has no column 'path'. {advice}. Its first line, which names the columns, has: "
    f'{said}.'
  )


def _number(cell: str) -> int | float | None:
  """The number that a cell is; None if it is none, or one that is not finite."""
  if len(cell) > _LONGEST_NUMBER:
    return None
  match = _NUMBER.fullmatch(cell)
  if match is None:
    return None
  number = float(cell) if match[2] or match[3] else int(cell)
  return number if abs(number) < 2**63 else None


# Cells repeat: cameras, sites, days.
@functools.lru_cache(maxsize=2**14)
def _sort(cell: str) -> str:
  """What a cell of CSV is: 'number', or as `_sort_of_text`."""
  return 'number' if cell and _number(cell) is not None else _sort_of_text(cell)


def _sort_of_text(text: str) -> str:
  """'time', 'instant' (a time with an offset), 'date', 'text', or '' of an empty one."""
  if not text:
    return ''
  time = times.canonical(text)
  if time:
    return 'instant' if times.has_offset(time) else 'time'
  return 'date' if _DATE.fullmatch(text) else 'text'
