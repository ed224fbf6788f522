"""What index.json says, checked before it is believed. Floor 4.

An index may come from elsewhere, and a file may be damaged: names in it become paths, and sizes
become memory. So each part must be of the kind that this package writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfreid.index import segment

_CHECKSUM = re.compile('[0-9a-f]{32}')
# Far beyond any joint space; what is read with it is allocated.
_MAX_EMBEDDING_SIZE = 1 << 20


def check(state: Mapping[str, Any], path: str) -> None:
  """Refuses a state that this package cannot have written.

  Args:
    state: what was read.
    path: of the file, for the message.

  Raises:
    ValueError: something is missing or of another kind; the message says what.
  """
  try:
    _count(state, 'generation')
    model = _part(state, 'model', Mapping)
    _part(model, 'fingerprint', str)
    _part(model, 'path', str)
    if not 1 <= _count(model, 'embedding_size') <= _MAX_EMBEDDING_SIZE:
      raise ValueError(f"'embedding_size' is {model['embedding_size']}")
    engine = _part(state, 'engine', Mapping)
    _part(engine, 'name', str)
    if not all(isinstance(value, str) for value in engine.values()):
      raise ValueError("'engine' holds something else than texts")
    if not isinstance(state.get('commit', ''), str):
      raise ValueError("'commit' is no text")
    for entry in _part(state, 'segments', Sequence):
      check_entry(entry)
    names = [entry['name'] for entry in state['segments']]
    if len(set(names)) < len(names):
      raise ValueError('a segment is named twice')
    if 'shard' in state:
      number, count = _numbers(state, 'shard', 2)
      if not 1 <= number <= count:
        raise ValueError(f"'shard' is {number} of {count}")
  except (ValueError, TypeError, LookupError) as error:
    raise ValueError(
      f"'{path}' is damaged, or no index of tfreid: {_told(error)}. Restore it from a copy."
    ) from error


def check_entry(entry: Mapping[str, Any]) -> None:
  """Refuses what is no entry of a segment.

  Args:
    entry: of index.json or pending.jsonl.

  Raises:
    ValueError: something in it is of another kind, for example a name that leads elsewhere.
    LookupError, TypeError: something is missing, or it is no object.
  """
  if not segment.NAME.fullmatch(_part(entry, 'name', str)):
    raise ValueError(f'{entry["name"]!r} is no name of a segment')
  rows = _count(entry, 'rows')
  files = _part(entry, 'files', Mapping)
  copy = set(segment.COPY) & set(files)
  if (
    not set(segment.FILES) <= set(files) <= {*segment.FILES, *copy, segment.MARK} or len(copy) == 1
  ):
    raise ValueError(f'a segment has the files {sorted(files)}')
  for size, checksum in files.values():
    _check_seal(size, checksum)
  norm = entry['greatest_norm']
  if isinstance(norm, bool) or not isinstance(norm, (int, float)) or not 0 <= norm < math.inf:
    raise ValueError(f"'greatest_norm' is {norm!r}")
  for name, kinds in _part(entry, 'fields', Mapping).items():
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
      raise ValueError(f"the kinds of the field '{name}' are {kinds!r}")
  removed = entry['removed']
  if removed is not None:
    if not segment.REMOVED.fullmatch(_part(removed, 'file', str)):
      raise ValueError(f'{removed["file"]!r} is no name of a list of removed rows')
    _check_seal(removed['size'], removed['checksum'])
    if _count(removed, 'count') > rows:
      raise ValueError(f'{removed["count"]} of {rows} rows are removed')


def _part(state: Mapping[str, Any], name: str, kind: type) -> Any:
  value = state[name]
  if not isinstance(value, kind) or (kind is Sequence and isinstance(value, str)):
    raise ValueError(f"'{name}' is {value!r:.60}")
  return value


def _count(state: Mapping[str, Any], name: str) -> int:
  value = state[name]
  if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
    raise ValueError(f"'{name}' is {value!r:.60}")
  return value


def _numbers(state: Mapping[str, Any], name: str, length: int) -> list[int]:
  values = state[name]
  if not isinstance(values, list) or len(values) != length:
    raise ValueError(f"'{name}' is {values!r:.60}")
  return [_count({name: value}, name) for value in values]


def _check_seal(size: Any, checksum: Any) -> None:
  _count({'size': size}, 'size')
  if not isinstance(checksum, str) or not _CHECKSUM.fullmatch(checksum):
    raise ValueError(f'{checksum!r:.60} is no checksum')


def _told(error: Exception) -> str:
  return f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
