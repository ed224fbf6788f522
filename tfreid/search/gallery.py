"""What is known of the crops of a gallery beside their concepts, and ranked rows of it. Floor 5."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tfreid import storage
from tfreid.source.answer import Hit
from tfreid.source.protocol import SearchOptions

# What of a row of gallery.jsonl has a place of its own in a hit.
_OWN = ('id', 'path', 'attributes')


def check(top_k: int, options: SearchOptions | None, narrowing: Mapping[str, Any]) -> None:
  """Refuses what the gallery inside a model cannot do.

  Raises:
    ValueError: an option of an index, or fewer than one result.
    TypeError: an option that nothing has.
  """
  if top_k < 1:
    raise ValueError(f'The number of results must be at least 1, not {top_k}.')
  given = SearchOptions.joined(options, narrowing).given
  if given:
    raise ValueError(
      f'{", ".join(sorted(given))}: only an index can filter its answers. Make one of the crops '
      'with `tfreid index`.'
    )


def read(path: str) -> dict[str, dict[str, Any]]:
  """What is known of each crop, by id; {} where nothing was kept.

  Where model.json lies beside the file, as in an export, the checksum in it is compared.

  Args:
    path: of an export's `assets.extra/gallery.jsonl`: a JSON object per line, with the key id.

  Raises:
    ValueError: it is not what was exported, or a line is no such object.
  """
  if not os.path.isfile(path):
    return {}
  content = storage.read_bytes(path)
  checksum = _exported_checksum(path)
  if checksum and storage.checksum(content) != checksum:
    raise ValueError(
      f"'{path}' is not what was exported: its checksum differs. Copy it again, or export again."
    )
  rows = {}
  # With a byte order mark, which some programs write, the first line would be no JSON.
  for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b'\n'), start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      if not isinstance(row['id'], str):
        raise TypeError(f'the id {row["id"]!r} is no text')
      rows[row['id']] = row
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise ValueError(f'{path}, line {number}: no JSON object with an id: {error!r}.') from error
  return rows


def _exported_checksum(path: str) -> str:
  """What model.json beside a gallery file says of it; '' of an earlier export, or a copy."""
  beside = os.path.join(os.path.dirname(path), 'model.json')
  if not os.path.isfile(beside):
    return ''
  try:
    about = json.loads(storage.read_bytes(beside))
    return str(about.get('gallery_checksum', ''))
  except (ValueError, AttributeError, RecursionError) as error:
    raise ValueError(f"'{beside}' is damaged: {error}. Export the model again.") from error


def hits(
  ids: Sequence[str],
  scores: Sequence[float],
  known: Mapping[str, Mapping[str, Any]],
  *,
  top_k: int,
  reasons: Sequence[Mapping[str, float]] = (),
  left_out: str = '',
) -> list[Hit]:
  """Ranked crops with what is known of them.

  Args:
    ids: best first.
    scores: of these.
    known: from `read`.
    top_k: number of hits, at most.
    reasons: of each crop, or nothing.
    left_out: id of a crop that is not wanted.
  """
  ranked = []
  for rank, (identifier, score) in enumerate(zip(ids, scores)):
    if identifier == left_out:
      continue
    about = known.get(identifier, {})
    ranked.append(
      Hit(
        id=identifier,
        score=float(score),
        path=about.get('path', ''),
        attributes=about.get('attributes') or {},
        metadata={key: value for key, value in about.items() if key not in _OWN},
        reasons=reasons[rank] if reasons else {},
      )
    )
  return ranked[:top_k]
