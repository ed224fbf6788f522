"""A segment: concepts and rows in files that are written once and never changed. Floor 4.

  embeddings.npy   float32 [n, E], memory-mapped
  rows.jsonl       a line per row: id, path, fields, attributes, digest
  offsets.npy      int64 [n + 1], where the lines begin
  hashes.npy       uint64 [n], of the ids: looking one up does not read the lines
  columns.json     field name -> its different values
  codes.npy        int32 [C, n], which of them each row has, -1 for none
  int8.npy         int8 [n, E], the concepts in 8 bits, and
  int8_bounds.npy  float32 [3, n], their scales and what 8 bits lost; see `tfreid.serving.quantized`
  segment.json     the mark: by it a writer knows what it may remove

The last two are a copy from which a search reads a quarter of the bytes. Segments of earlier
releases have none, and are searched without.

A segment counts once an entry in index.json names it. The entry holds its size, the checksum of
each file, and, where rows were removed, the file that lists them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from tfreid import storage
from tfreid.index import filters
from tfreid.index.filters import Column
from tfreid.printable import control_character, printable
from tfreid.serving import quantized

FILES = (
  'embeddings.npy',
  'rows.jsonl',
  'offsets.npy',
  'hashes.npy',
  'columns.json',
  'codes.npy',
)
# The copy in 8 bits, both or none: segments of earlier releases have none.
COPY = ('int8.npy', 'int8_bounds.npy')
# Nor have they this.
MARK = 'segment.json'
NAME = re.compile('[0-9a-f]{16}')
# More rows than this are not written into one.
MAX_ROWS = 1 << 20
# Ids up to which each is looked for by itself.
_FEW = 4
REMOVED = re.compile(r'removed-[0-9a-f]{16}\.npy')

_PARTIAL = '.partial'


@dataclasses.dataclass(frozen=True)
class Row:
  """What is known of one crop.

  Attributes:
    id: stable, unique in the index.
    path: of the image file.
    fields: camera, time and whatever else the manifest said; texts, numbers and flags.
    attributes: annotated attributes, name to value, 'a+b' where several are on.
    digest: of the file's contents when it was embedded, see `digest`; '' if not known.
  """

  id: str
  path: str = ''
  fields: Mapping[str, filters.Value] = dataclasses.field(default_factory=dict)
  attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  digest: str = ''

  def contents(self) -> bytes | None:
    """The file, if it can be read and is still the one that was embedded, as far as is known."""
    try:
      with open(self.path, 'rb') as file:
        contents = file.read()
    except OSError:
      return None
    return contents if not self.digest or digest(contents) == self.digest else None

  def to_json(self) -> dict[str, Any]:
    """The row as plain JSON types, without what is empty."""
    data = {name: getattr(self, name) for name in ('path', 'fields', 'attributes', 'digest')}
    return {'id': self.id, **{name: value for name, value in data.items() if value}}

  @classmethod
  def from_json(cls, data: Mapping[str, Any]) -> Row:
    """The row that `to_json` wrote."""
    return cls(**data)


def check_row(row: Row) -> None:
  """Refuses a row that not every engine could find again.

  Milvus compares texts with control characters as others than they are: such a crop would be
  neither found nor left out nor removed.

  Raises:
    ValueError: a text of it holds a tab, a line feed or another control character; the message says
      which text, and not of which row.
  """
  texts = {'id': row.id, **row.fields, **row.attributes}
  for name, value in texts.items():
    if isinstance(value, str) and (character := control_character(value)):
      what = 'the id' if name == 'id' else f"the field '{name}'"
      raise ValueError(
        f"{what}, '{printable(value[:80], lines=False)}', holds the control character {character}. "
        'Write it without tabs, line feeds and the like; a file can be renamed, or given another '
        'id in a manifest.'
      )


def digest(contents: bytes) -> str:
  """A fingerprint of a file's contents, 32 hexadecimal digits."""
  return storage.checksum(contents)


def id_hash(identifier: str) -> int:
  """64 bits of an id."""
  return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), 'little')


def write(
  folder: str, parts: Iterable[tuple[np.ndarray, Sequence[Row]]], *, size: int, width: int
) -> dict[str, Any]:
  """Writes a segment below `folder`; it is on the disk, with a name of its own, on return.

  Args:
    folder: of all segments.
    parts: concepts float32 [m, E] with their m rows, `size` rows in all.
    size: n.
    width: E.

  Returns:
    The entry for index.json.

  Raises:
    ValueError: the parts do not fit, or a concept is not finite.
  """
  name = secrets.token_hex(8)
  with new_folder(folder, name) as partial:
    facts = _write_files(partial, parts, size, width)
    names = (*FILES, *(COPY if width <= quantized.MAX_WIDTH else ()), MARK)
    files = {file: _sealed(os.path.join(partial, file)) for file in names}
  return {'name': name, 'rows': size, **facts, 'files': files, 'removed': None}


@contextlib.contextmanager
def new_folder(folder: str, name: str) -> Iterator[str]:
  """A folder to fill, with its mark, that becomes the segment of that name when the block ends.

  Args:
    folder: of all segments.
    name: of the segment.

  Yields:
    The folder to write to. If the block fails, nothing is left of it.
  """
  os.makedirs(folder, exist_ok=True)
  partial = os.path.join(folder, name + _PARTIAL)
  os.mkdir(partial)
  try:
    # First of all: whatever else a kill leaves in it, it is known to be a writer's.
    _write_mark(partial)
    yield partial
    storage.sync_directory(partial)
    os.rename(partial, os.path.join(folder, name))
    storage.sync_directory(folder)
  except BaseException:
    remove(partial)
    raise


def _write_mark(folder: str) -> None:
  name = os.path.basename(folder).removesuffix(_PARTIAL)
  with open(os.path.join(folder, MARK), 'w', encoding='utf-8') as file:
    json.dump(storage.with_checksum({'segment': name}), file)


def remove(folder: str) -> bool:
  """Removes the folder of a segment, if a writer of this package made it.

  It did if the folder has the name of a segment, is no link, and holds nothing but files that a
  segment has: all of them, or the mark with its name. They are removed one by one, so that whatever
  is in the folder besides stays.

  Returns:
    Whether it was one, and is gone.
  """
  if not _is_written(folder):
    return False
  files = set(os.listdir(folder))
  if files and MARK not in files:
    # Of an earlier release: a kill may leave a part of it, which must be known as well. Where the
    # disk is full, removing comes first.
    with contextlib.suppress(OSError):
      _write_mark(folder)
  for file in sorted(files - {MARK}):
    with contextlib.suppress(FileNotFoundError):
      os.remove(os.path.join(folder, file))
  with contextlib.suppress(FileNotFoundError):
    os.remove(os.path.join(folder, MARK))
  os.rmdir(folder)
  return True


def _is_written(folder: str) -> bool:
  plain = os.path.basename(folder).removesuffix(_PARTIAL)
  if not NAME.fullmatch(plain) or os.path.islink(folder) or not os.path.isdir(folder):
    return False
  files = set(os.listdir(folder))
  if any(
    not is_regular(os.path.join(folder, file))
    or not (file in (*FILES, *COPY, MARK) or REMOVED.fullmatch(file))
    for file in files
  ):
    return False
  # A kill, or a full disk, may have left nothing but a part of the mark.
  if files <= {MARK} or set(FILES) <= files:
    return True
  try:
    path = os.path.join(folder, MARK)
    # After a loss of power a name may be there, and its content not.
    return not os.path.getsize(path) or storage.read_json(path) == {'segment': plain}
  except (OSError, ValueError):
    return False


def remove_lists(folder: str, *, keep: str) -> None:
  """Removes the lists of removed rows in the folder of a segment but one, which is named."""
  with contextlib.suppress(FileNotFoundError, NotADirectoryError):
    for file in os.listdir(folder):
      path = os.path.join(folder, file)
      if REMOVED.fullmatch(file) and file != keep and not os.path.islink(folder):
        os.remove(path)


def is_regular(path: str) -> bool:
  """Whether a path names a regular file, and not by a link."""
  try:
    return stat.S_ISREG(os.lstat(path).st_mode)
  except OSError:
    return False


def _write_files(folder, parts, size, width):
  """The files of a segment; returns the greatest norm and the kinds of the fields' values."""
  hashes, offsets = np.empty(size, np.uint64), np.zeros(size + 1, np.int64)
  columns: dict[str, tuple[dict, np.ndarray]] = {}
  start = 0
  with (
    contextlib.closing(_Concepts(folder, size, width)) as concepts,
    open(os.path.join(folder, 'rows.jsonl'), 'wb') as lines,
  ):
    for vectors, rows in parts:
      concepts.add(vectors, rows)
      for position, row in enumerate(rows, start=start):
        line = json.dumps(row.to_json(), separators=(',', ':')).encode() + b'\n'
        lines.write(line)
        offsets[position + 1] = offsets[position] + len(line)
        hashes[position] = id_hash(row.id)
        for key, value in (*row.fields.items(), *row.attributes.items()):
          if key not in columns:
            columns[key] = {}, np.full(size, -1, np.int32)
          # With the kind, since True, 1 and 1.0 are one key.
          known, codes = columns[key]
          codes[position] = known.setdefault((filters.kind(value), value), len(known))
      start += len(rows)
    concepts.finish()
  _save(os.path.join(folder, 'offsets.npy'), offsets)
  _save(os.path.join(folder, 'hashes.npy'), hashes)
  with open(os.path.join(folder, 'columns.json'), 'w', encoding='utf-8') as file:
    values = {key: [value for _, value in known] for key, (known, _) in columns.items()}
    json.dump(values, file, ensure_ascii=False)
  table = [codes for _, codes in columns.values()]
  _save(os.path.join(folder, 'codes.npy'), np.stack(table) if table else np.empty((0, size), 'i4'))
  kinds = {key: sorted({kind for kind, _ in known}) for key, (known, _) in columns.items()}
  return {'greatest_norm': concepts.greatest_norm * (1 + 1e-6), 'fields': kinds}


class _Concepts:
  """The files of a segment's concepts, and of their copy in 8 bits, while they are written.

  Attributes:
    greatest_norm: of the concepts so far.
  """

  def __init__(self, folder: str, size: int, width: int):
    self.greatest_norm = 0.0
    self._folder, self._shape, self._count = folder, (size, width), 0
    self._bounds = np.zeros((3, size), np.float32)
    self._files: list[IO[bytes]] = []
    names = ('embeddings.npy', COPY[0]) if width <= quantized.MAX_WIDTH else ('embeddings.npy',)
    # Written and not mapped: where the disk is full, a write is an error, and a mapping a SIGBUS.
    for name, dtype in zip(names, ('<f4', 'i1')):
      file = open(os.path.join(folder, name), 'wb')
      self._files.append(file)
      _write_header(file, np.dtype(dtype), self._shape)

  def add(self, vectors: np.ndarray, rows: Sequence[Row]) -> None:
    """Adds float32 [m, E], the concepts of these rows."""
    size, width = self._shape
    vectors = np.asarray(vectors, np.float32)
    stop = self._count + len(rows)
    if vectors.shape != (len(rows), width) or stop > size:
      raise ValueError(
        f'{len(rows)} rows came with concepts of the shape {vectors.shape}; expected '
        f'{(len(rows), width)}, and {size} rows in all.'
      )
    with np.errstate(over='ignore', invalid='ignore'):
      lengths = np.sqrt(np.sum(np.square(vectors, dtype=np.float64), axis=1))
    bad = np.flatnonzero(~(lengths < 1e18))
    if len(bad):
      raise ValueError(
        f"The concept of '{rows[bad[0]].id}' has length {lengths[bad[0]]}: it holds NaN, "
        'infinity, or numbers too large to be compared. Check the model.'
      )
    self.greatest_norm = max(self.greatest_norm, float(lengths.max(initial=0.0)))
    self._files[0].write(vectors.astype('<f4', copy=False).tobytes())
    if len(self._files) > 1:
      codes, self._bounds[:, self._count : stop] = quantized.quantized(vectors)
      self._files[1].write(codes.tobytes())
    self._count = stop

  def finish(self) -> None:
    """Writes what is written last; all rows must have come."""
    if self._count != self._shape[0]:
      raise ValueError(f'{self._count} rows were given for a segment of {self._shape[0]}.')
    if len(self._files) > 1:
      _save(os.path.join(self._folder, COPY[1]), self._bounds)

  def close(self) -> None:
    """Closes the files."""
    for file in self._files:
      file.close()


class Segment:
  """A segment to read.

  Attributes:
    entry: of index.json.
    removed: int64, positions of removed rows, ascending.
    concepts: float32 [n, E], memory-mapped.
    hashes: uint64 [n], memory-mapped.
    copy: the concepts in 8 bits (int8 [n, E]) and their bounds (float32 [3, n]), memory-mapped;
      None for a segment of an earlier release.
  """

  def __init__(self, folder: str, entry: Mapping[str, Any], *, content: bool = False):
    """Opens the files; their sizes are compared with those that were written.

    Args:
      folder: of all segments.
      entry: of index.json.
      content: compare their checksums, too, which reads every byte.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the files are not those that the entry speaks of.
    """
    self.entry = entry
    self.directory = os.path.join(folder, entry['name'])
    self._check(content)
    self.concepts = self._load('embeddings.npy')
    self.hashes = self._load('hashes.npy')
    self.copy = tuple(map(self._load, COPY)) if COPY[0] in entry['files'] else None
    # Numbers of a plain array are read in a third of the time that those of a memory map take.
    self._offsets = np.asarray(self._load('offsets.npy'))
    self._codes = self._load('codes.npy')
    # Mapped as well: a reader goes on when a writer has replaced what it reads.
    self._lines = self._map('rows.jsonl')
    self._column_text = self._map('columns.json')
    self._columns: dict[str, Column] | None = None
    removed = entry.get('removed')
    self.removed = self._load(removed['file']) if removed else np.empty(0, np.int64)
    rows = entry['rows']
    if not (
      _is_array(self.concepts, 'f4', rows, 2)
      and (self.copy is None or self._fits(*self.copy))
      and _is_array(self.hashes, 'u8', rows)
      and _is_array(self._offsets, 'i8', rows + 1)
      and self._codes.shape[1:] == (rows,)
      and self._codes.dtype == np.int32
      and len(self._lines) == self._offsets[-1]
      and _is_array(self.removed, 'i8', removed['count'] if removed else 0)
      and (not len(self.removed) or 0 <= self.removed.min() <= self.removed.max() < rows)
    ):
      raise ValueError(
        f"'{self.directory}' is damaged: it does not hold the {entry['rows']} rows that index.json "
        'speaks of. Run `tfreid index verify`.'
      )

  def _fits(self, codes: np.ndarray, bounds: np.ndarray) -> bool:
    """Whether a copy is one of these concepts, by its shape and type."""
    return (
      codes.shape == self.concepts.shape
      and codes.dtype == np.int8
      and bounds.shape == (3, len(self.concepts))
      and bounds.dtype == np.float32
    )

  def _check(self, content: bool) -> None:
    """Refuses files of other sizes, or of other checksums; a list of removed rows always whole."""
    sentences = damage(self.directory, self.entry, content=content)
    if not sentences:
      return
    more = f' ({len(sentences) - 1} more like this.)' if len(sentences) > 1 else ''
    kind = FileNotFoundError if sentences[0].endswith('is missing.') else ValueError
    raise kind(f'The index is damaged: {sentences[0]}{more} Run `tfreid index verify`.')

  def _load(self, file):
    path = self._path(file)
    with self._checked(file):
      # An empty array cannot be mapped.
      return np.load(path, mmap_mode='r' if self.entry['rows'] else None)

  def _map(self, file):
    with storage.open_regular(self._path(file)) as opened:
      # An empty file cannot be mapped.
      if not os.fstat(opened.fileno()).st_size:
        return b''
      return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

  def _path(self, file):
    path = os.path.join(self.directory, file)
    if not os.path.isfile(path):
      raise FileNotFoundError(f"'{path}' is missing. Run `tfreid index verify`.")
    return path

  @contextlib.contextmanager
  def _checked(self, file):
    """Says of what cannot be read in a file that the file is damaged."""
    try:
      yield
    except (ValueError, TypeError, EOFError, LookupError, RecursionError) as error:
      path = os.path.join(self.directory, file)
      raise ValueError(f"'{path}' is damaged: {error}. Run `tfreid index verify`.") from error

  def __len__(self) -> int:
    return self.entry['rows']

  @property
  def live(self) -> np.ndarray:
    """Which rows are not removed, bool [n]."""
    live = np.ones(len(self), bool)
    live[self.removed] = False
    return live

  def near(self, hashes: np.ndarray) -> np.ndarray:
    """Positions int64 of the rows whose ids have one of these hashes, uint64 [M], ascending.

    Removed rows are not among them; rows of other ids may be.
    """
    if len(hashes) <= _FEW:
      # `isin` would read the column more often, and make a mask of it.
      found = [np.flatnonzero(self.hashes == one) for one in hashes]
      near = np.unique(np.concatenate([np.empty(0, np.int64), *found]))
    else:
      near = np.flatnonzero(np.isin(self.hashes, hashes))
    return near[~np.isin(near, self.removed)] if len(self.removed) else near

  def rows(self, positions: Iterable[int]) -> Iterator[Row]:
    """The rows at these positions."""
    return map(self.row, positions)

  def row(self, position: int) -> Row:
    """The row at a position."""
    line = self._lines[int(self._offsets[position]) : int(self._offsets[position + 1])]
    with self._checked('rows.jsonl'):
      # As `json` reads bytes, but without guessing their encoding.
      return Row.from_json(json.loads(line.decode('utf-8', 'surrogatepass')))

  def column(self, name: str) -> Column | None:
    """A field or an attribute of all rows, removed ones too; None if no row has it."""
    if self._columns is None:
      with self._checked('columns.json'):
        self._columns = self._read_columns()
    return self._columns.get(name)

  def _read_columns(self) -> dict[str, Column]:
    values = json.loads(self._column_text[:])
    if not isinstance(values, dict) or len(values) != len(self._codes):
      raise ValueError(f'it does not name the {len(self._codes)} fields')
    columns = {
      name: Column(known, codes) for (name, known), codes in zip(values.items(), self._codes)
    }
    for name, column in columns.items():
      known, codes = column.values, column.codes
      if not isinstance(known, list) or (
        len(codes) and not -1 <= codes.min() <= codes.max() < len(known)
      ):
        raise ValueError(f"the crops have other values of '{name}' than it knows")
    return columns

  def live_parts(self, length: int = 4096) -> Iterator[tuple[np.ndarray, list[Row]]]:
    """Concepts and rows that are not removed, `length` at a time."""
    positions = np.flatnonzero(self.live)
    for start in range(0, len(positions), length):
      part = positions[start : start + length]
      yield np.asarray(self.concepts[part]), list(self.rows(part))

  def without(self, positions: np.ndarray) -> dict[str, Any]:
    """The entry of this segment with more rows removed; writes the file that lists them.

    Args:
      positions: of the rows, int64.
    """
    removed = np.union1d(self.removed, positions).astype(np.int64)
    file = f'removed-{secrets.token_hex(8)}.npy'
    path = os.path.join(self.directory, file)
    _save(path, removed)
    size, checksum = _sealed(path)
    storage.sync_directory(self.directory)
    return {
      **self.entry,
      'removed': {'file': file, 'count': len(removed), 'size': size, 'checksum': checksum},
    }

  def problems(self) -> list[str]:
    """What is wrong with the files, by checksum; empty if nothing is."""
    return damage(self.directory, self.entry)


def repeated(hashes: Iterable[np.ndarray]) -> np.ndarray:
  """Values, uint64, ascending, that occur more than once in all of these arrays together."""
  # Sorted in place: 8 bytes per crop, where a set of Python's numbers takes more than 60.
  values = np.concatenate([np.empty(0, np.uint64), *hashes])
  values.sort()
  return np.unique(values[1:][values[1:] == values[:-1]])


def problems(segments: Sequence[Segment]) -> list[str]:
  """What is wrong with segments that belong together: sizes, checksums, ids."""
  sentences = [problem for part in segments for problem in part.problems()]
  if sentences:
    return sentences
  suspects = repeated(part.hashes[part.live] for part in segments)
  names = collections.Counter(
    row.id
    for part in segments
    for row in part.rows(np.flatnonzero(part.live & np.isin(part.hashes, suspects)).tolist())
  )
  return [f"The id '{name}' occurs {n} times." for name, n in names.items() if n > 1]


def damage(directory: str, entry: Mapping[str, Any], *, content: bool = True) -> list[str]:
  """What is wrong with the files of a segment, which need not be fit to be opened.

  Args:
    directory: of the segment.
    entry: of index.json.
    content: compare checksums, too, of all files; otherwise only that of the removed rows, which
      are few.
  """
  if not os.path.isdir(directory):
    return [f'{directory}, a segment of {entry["rows"]} crops, is missing.']
  if os.path.islink(directory):
    return [f'{directory} is a link, and the segments of an index are folders of its own.']
  files = dict(entry['files'])
  always = ''
  if entry.get('removed'):
    always = entry['removed']['file']
    files[always] = [entry['removed']['size'], entry['removed']['checksum']]
  sentences = []
  for file, (size, checksum) in files.items():
    path = os.path.join(directory, file)
    try:
      status = os.lstat(path)
      if not stat.S_ISREG(status.st_mode):
        sentences.append(f'{path} is no regular file.')
      elif status.st_size != size:
        sentences.append(f'{path} has {status.st_size} bytes; {size} were written.')
      elif (content or file == always) and storage.checksum_of_file(path) != checksum:
        sentences.append(f'{path} is not what was written: its checksum differs.')
    except FileNotFoundError:
      sentences.append(f'{path} is missing.')
    except OSError as error:
      sentences.append(f'{path} cannot be read: {error.strerror}.')
  return sentences


def _is_array(array: np.ndarray, kind: str, length: int, dimensions: int = 1) -> bool:
  return array.ndim == dimensions and len(array) == length and array.dtype == np.dtype(kind)


def _save(path: str, array: np.ndarray) -> None:
  """`np.save`, whose error does not say why where the disk is full."""
  with open(path, 'wb') as file:
    _write_header(file, array.dtype, array.shape)
    file.write(array.tobytes())


def _write_header(file, dtype, shape):
  header = {'descr': np.lib.format.dtype_to_descr(dtype), 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(file, header)


def _sealed(path: str) -> list:
  """Flushes a file to the disk; returns its size and checksum."""
  storage.sync_file(path)
  return [os.path.getsize(path), storage.checksum_of_file(path)]
