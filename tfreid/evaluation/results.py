"""The results file: append only, one JSON object per line and evaluation. Floor 4.

A row says what was measured, on what, with which configuration and which code, so that a number in
a table can be traced years later. Rows are only ever added. Adding is one write of whole lines, so
several processes may append to one file; a line that a crash or a full disk tore off is recognised
on reading, reported, and costs nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import tfreid
from tfreid import storage

if TYPE_CHECKING:
  import pandas as pd

  from tfreid.evaluation.retrieval import Evaluation

_log = logging.getLogger(__name__)

# What the numbers mean: queries are the distinct attribute vectors of the split, a match has the
# same semantic ID, CMC by first match, finite-sum AP, ties by (-similarity, index), no removal.
PROTOCOL = 'distinct-queries/first-match/1'

_FORMAT = 2
_PACKAGES = ('tensorflow', 'keras', 'tensorflow-addons', 'numpy')


def append_result(
  path: str | os.PathLike,
  *,
  evaluation: Evaluation,
  dataset: str,
  method: str = '',
  stage: str = '',
  epoch: int | None = None,
  seed: int | None = None,
  split: str = 'test',
  config: str = '',
  more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Adds a row to the results file, which is created if need be.

  Args:
    path: of the file, by convention `<run>/results.jsonl`.
    evaluation: the result.
    dataset: name of the data set.
    method: name of the system.
    stage: of the recipe.
    epoch: that the weights are from.
    seed: of the training.
    split: 'test' or 'validation'.
    config: text of the configuration.
    more: further JSON-able facts, by names that no other column has.

  Returns:
    The row.

  Raises:
    ValueError: `more` repeats a column.
    OSError: the row could not be written whole.
  """
  revision = code_revision()
  row = {
    'format': _FORMAT,
    'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
    'dataset': dataset,
    'method': method,
    'stage': stage,
    'epoch': epoch,
    'seed': seed,
    'split': split,
    'protocol': PROTOCOL,
    'metrics': evaluation.to_json(),
    'revision': revision['revision'],
    'dirty': revision['dirty'],
    'versions': versions(),
    'config_sha256': hashlib.sha256(config.encode()).hexdigest(),
    'config': config,
  }
  repeated = sorted(set(row) & set(more or {}))
  if repeated:
    raise ValueError(f'The results row has its own {", ".join(repeated)}; choose other names.')
  row.update(more or {})
  append_row(path, row)
  return row


def append_row(path: str | os.PathLike, row: Mapping[str, Any]):
  """Adds one JSON line with its checksum to a file and waits until it is on the disk.

  Raises:
    OSError: it could not be written whole.
  """
  row = storage.with_checksum({**_plain(row), 'format': _FORMAT})
  line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
  storage.make_directories(os.path.dirname(os.path.abspath(path)))
  storage.append_line(path, line)


def read_results(path: str | os.PathLike) -> pd.DataFrame:
  """The results file as a table, a row per evaluation.

  Metrics are columns of their own ('mAP', 'rank1', 'seen/mAP', ...), as are versions
  ('versions/numpy'). A line that is torn, is no JSON object or does not fit its checksum is left
  out and logged; the line numbers are in `.attrs['torn_lines']`.

  Raises:
    FileNotFoundError: there is no such file.
  """
  import pandas as pd  # here, because it takes a second, and only notebooks want tables

  rows, torn = read_rows(path)
  table = pd.DataFrame([_flat(row) for row in rows])
  table.attrs['torn_lines'] = torn
  return table


def read_rows(path: str | os.PathLike) -> tuple[list[dict[str, Any]], list[int]]:
  """The whole rows of a results file, and the numbers of the torn lines, which are logged.

  Args:
    path: of the file.

  Raises:
    FileNotFoundError: there is no such file.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f"There is no results file '{path}'. A run writes it as results.jsonl into its directory."
    )
  rows, torn = [], []
  with open(path, 'rb') as file:
    for number, line in enumerate(file, start=1):
      if not line.strip():
        continue
      try:
        rows.append(read_row(line))
      except ValueError:
        torn.append(number)
  if torn:
    _log.warning(
      '%s: line %s is torn and left out, %d rows are whole.',
      path,
      ', '.join(map(str, torn)),
      len(rows),
    )
  return rows, torn


def read_row(line: bytes) -> dict[str, Any]:
  """The row in a line that `append_row` wrote, without its checksum.

  Raises:
    ValueError: it is torn or damaged.
  """
  try:
    row = json.loads(line.decode('utf-8'))
  except RecursionError as error:
    raise ValueError('a line nested too deeply') from error
  if not isinstance(row, dict):
    raise ValueError('not a JSON object')
  stored = row.pop(storage.CHECKSUM, None)
  # Rows of earlier releases, of format 1, have no checksum.
  required = row.get('format', 1) != 1
  if (stored is not None or required) and stored != storage.with_checksum(row)[storage.CHECKSUM]:
    raise ValueError('the row does not fit its checksum')
  return row


def code_revision() -> dict[str, Any]:
  """The git revision of the code that is running, and whether it was changed since.

  Returns:
    {'revision': hash or None, 'dirty': bool or None}; None where the package is not run from a
    checkout of its own. Documents do not count: results are written among them.
  """
  # A package installed into somebody else's checkout must not take that one's revision.
  if _git('ls-files', '--error-unmatch', 'spec.py') is None:
    return {'revision': None, 'dirty': None}
  changes = _git('status', '--porcelain', '--untracked-files=no', '--', ':/', ':(top,exclude)docs')
  return {
    'revision': _git('rev-parse', 'HEAD'),
    'dirty': None if changes is None else bool(changes),
  }


def versions() -> dict[str, str]:
  """Versions of Python, this package and what computes its numbers."""
  versions = {'python': platform.python_version(), 'tfreid': tfreid.__version__}
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      pass
  return versions


def _git(*arguments: str) -> str | None:
  """What git says in the package's folder, None if it cannot."""
  try:
    result = subprocess.run(
      ['git', *arguments],
      cwd=os.path.dirname(os.path.abspath(tfreid.__file__)),
      capture_output=True,
      text=True,
      timeout=20,
      check=True,
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return result.stdout.strip()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
  """A row with its metrics and versions as columns."""
  flat = {name: value for name, value in row.items() if name not in ('metrics', 'versions')}
  for part, metrics in row.get('metrics', {}).items():
    for name, value in metrics.items():
      flat[name if part == 'all' else f'{part}/{name}'] = math.nan if value is None else value
  for package, version in row.get('versions', {}).items():
    flat[f'versions/{package}'] = version
  return flat


def _plain(value: Any) -> Any:
  """`value` in JSON's own types: numpy's numbers and arrays too; NaN and infinity become None."""
  if isinstance(value, Mapping):
    return {str(name): _plain(item) for name, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, (np.ndarray, np.generic)):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
