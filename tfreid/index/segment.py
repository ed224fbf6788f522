"""A segment: concepts and rows in files that are written once and never changed. Floor 4.

  embeddings.npy   float32 [n, E], memory-mapped
  rows.jsonl       a line per row: id, path, fields, attributes, digest
  offsets.npy      int64 [n + 1], where the lines begin
  hashes.npy       uint64 [n], of the ids: looking one up does not read the lines
  columns.json     field name -> its different values
  codes.npy        int32 [C, n], which of them each row has, -1 for none

A segment counts once an entry in index.json names it. The entry holds its size, the checksum of
each file, and, where rows were removed, the file that lists them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfreid.index import filters
from tfreid.index.filters import Column

FILES = (
  'embeddings.npy',
  'rows.jsonl',
  'offsets.npy',
  'hashes.npy',
  'columns.json',
  'codes.npy',
)


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

  def to_json(self) -> dict[str, Any]:
    """The row as plain JSON types, without what is empty."""
    data = {name: getattr(self, name) for name in ('path', 'fields', 'attributes', 'digest')}
    return {'id': self.id, **{name: value for name, value in data.items() if value}}

  @classmethod
  def from_json(cls, data: Mapping[str, Any]) -> Row:
    """The row that `to_json` wrote."""
    return cls(**data)


def digest(contents: bytes) -> str:
  """A fingerprint of a file's contents, 32 hexadecimal digits."""
  return hashlib.blake2b(contents, digest_size=16).hexdigest()


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
  os.makedirs(folder, exist_ok=True)
  name = secrets.token_hex(8)
  partial = os.path.join(folder, f'{name}.partial')
  os.mkdir(partial)
  try:
    facts = _write_files(partial, parts, size, width)
    files = {file: _sealed(os.path.join(partial, file)) for file in FILES}
    flush_directory(partial)
    os.rename(partial, os.path.join(folder, name))
    flush_directory(folder)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  return {'name': name, 'rows': size, **facts, 'files': files, 'removed': None}


def _write_files(folder, parts, size, width):
  """The files of a segment; returns the greatest norm and the kinds of the fields' values."""
  hashes, offsets = np.empty(size, np.uint64), np.zeros(size + 1, np.int64)
  columns: dict[str, tuple[dict, np.ndarray]] = {}
  start, norm = 0, 0.0
  files = [os.path.join(folder, file) for file in ('embeddings.npy', 'rows.jsonl')]
  with open(files[0], 'wb') as concepts, open(files[1], 'wb') as lines:
    # Written and not mapped: where the disk is full, a write is an error, and a mapping a SIGBUS.
    _write_header(concepts, np.dtype('<f4'), (size, width))
    for vectors, rows in parts:
      vectors = np.asarray(vectors, np.float32)
      if vectors.shape != (len(rows), width) or start + len(rows) > size:
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
      norm = max(norm, float(lengths.max(initial=0.0)))
      concepts.write(vectors.astype('<f4', copy=False).tobytes())
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
  if start != size:
    raise ValueError(f'{start} rows were given for a segment of {size}.')
  _save(os.path.join(folder, 'offsets.npy'), offsets)
  _save(os.path.join(folder, 'hashes.npy'), hashes)
  with open(os.path.join(folder, 'columns.json'), 'w', encoding='utf-8') as file:
    values = {key: [value for _, value in known] for key, (known, _) in columns.items()}
    json.dump(values, file, ensure_ascii=False)
  codes = [codes for _, codes in columns.values()]
  _save(os.path.join(folder, 'codes.npy'), np.stack(codes) if codes else np.empty((0, size), 'i4'))
  kinds = {key: sorted({kind for kind, _ in known}) for key, (known, _) in columns.items()}
  return {'greatest_norm': norm * (1 + 1e-6), 'fields': kinds}


class Segment:
  """A segment to read.

  Attributes:
    entry: of index.json.
    removed: int64, positions of removed rows, ascending.
    concepts: float32 [n, E], memory-mapped.
    hashes: uint64 [n], memory-mapped.
  """

  def __init__(self, folder: str, entry: Mapping[str, Any]):
    """Opens the files.

    Args:
      folder: of all segments.
      entry: of index.json.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the files are not those that the entry speaks of.
    """
    self.entry = entry
    self.directory = os.path.join(folder, entry['name'])
    self.concepts = self._load('embeddings.npy')
    self.hashes = self._load('hashes.npy')
    self._offsets = self._load('offsets.npy')
    self._codes = self._load('codes.npy')
    # Mapped as well: a reader goes on when a writer has replaced what it reads.
    self._lines = self._map('rows.jsonl')
    self._column_text = self._map('columns.json')
    self._columns: dict[str, Column] | None = None
    removed = entry.get('removed')
    self.removed = self._load(removed['file']) if removed else np.empty(0, np.int64)
    if (
      len(self.concepts) != entry['rows']
      or len(self.hashes) != entry['rows']
      or len(self._offsets) != entry['rows'] + 1
      or len(self._lines) != self._offsets[-1]
    ):
      raise ValueError(
        f"'{self.directory}' is damaged: it does not hold the {entry['rows']} rows that index.json "
        'speaks of. Run `tools/index.py verify`.'
      )

  def _load(self, file):
    path = self._path(file)
    with self._checked(file):
      # An empty array cannot be mapped.
      return np.load(path, mmap_mode='r' if self.entry['rows'] else None)

  def _map(self, file):
    with open(self._path(file), 'rb') as opened:
      # An empty file cannot be mapped.
      if not os.fstat(opened.fileno()).st_size:
        return b''
      return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

  def _path(self, file):
    path = os.path.join(self.directory, file)
    if not os.path.isfile(path):
      raise FileNotFoundError(f"'{path}' is missing. Run `tools/index.py verify`.")
    return path

  @contextlib.contextmanager
  def _checked(self, file):
    """Says of what cannot be read in a file that the file is damaged."""
    try:
      yield
    except (ValueError, TypeError, EOFError) as error:
      path = os.path.join(self.directory, file)
      raise ValueError(f"'{path}' is damaged: {error}. Run `tools/index.py verify`.") from error

  def __len__(self) -> int:
    return self.entry['rows']

  @property
  def live(self) -> np.ndarray:
    """Which rows are not removed, bool [n]."""
    live = np.ones(len(self), bool)
    live[self.removed] = False
    return live

  def rows(self, positions: Iterable[int]) -> Iterator[Row]:
    """The rows at these positions."""
    for position in positions:
      line = self._lines[int(self._offsets[position]) : int(self._offsets[position + 1])]
      with self._checked('rows.jsonl'):
        row = Row.from_json(json.loads(line))
      yield row

  def column(self, name: str) -> Column | None:
    """A field or an attribute of all rows, removed ones too; None if no row has it."""
    if self._columns is None:
      with self._checked('columns.json'):
        columns = json.loads(self._column_text[:])
        # Kept: a column remembers the order of its values.
        self._columns = {
          key: Column(values, self._codes[row]) for row, (key, values) in enumerate(columns.items())
        }
    return self._columns.get(name)

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
    flush_directory(self.directory)
    return {
      **self.entry,
      'removed': {'file': file, 'count': len(removed), 'size': size, 'checksum': checksum},
    }

  def problems(self) -> list[str]:
    """What is wrong with the files, by checksum; empty if nothing is."""
    return damage(self.directory, self.entry)


def damage(directory: str, entry: Mapping[str, Any]) -> list[str]:
  """What is wrong with the files of a segment, which need not be fit to be opened.

  Args:
    directory: of the segment.
    entry: of index.json.
  """
  if not os.path.isdir(directory):
    return [f'{directory}, a segment of {entry["rows"]} crops, is missing.']
  found = []
  files = dict(entry['files'])
  if entry.get('removed'):
    removed = entry['removed']
    files[removed['file']] = [removed['size'], removed['checksum']]
  for file, (size, checksum) in files.items():
    path = os.path.join(directory, file)
    try:
      actual = os.path.getsize(path)
      if actual != size:
        found.append(f'{path} has {actual} bytes; {size} were written.')
      elif _checksum(path) != checksum:
        found.append(f'{path} is not what was written: its checksum differs.')
    except FileNotFoundError:
      found.append(f'{path} is missing.')
    except OSError as error:
      found.append(f'{path} cannot be read: {error.strerror}.')
  return found


def flush_directory(path: str) -> None:
  """Makes the names in a folder outlast a loss of power."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


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
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
  return [os.path.getsize(path), _checksum(path)]


def _checksum(path: str) -> str:
  state = hashlib.blake2b(digest_size=16)
  with open(path, 'rb') as file:
    while chunk := file.read(1 << 20):
      state.update(chunk)
  return state.hexdigest()
