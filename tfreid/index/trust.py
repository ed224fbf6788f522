"""Which models and servers an index may name: those that this user has named before. Floor 4.

An index says where its model is, and of Milvus the address or file. Loading a model runs it, and a
connection sends a token. So what an index names is used only if this user, on this machine, has
named it: by building or adding with that model, by giving that address, or by `remember`. What was
named is kept in a file of the user, a line each: TFREID_TRUST_FILE, or 'tfreid/trusted.jsonl' below
XDG_DATA_HOME (~/.local/share).

A model is known by its path and its fingerprint, so that another index cannot lead to another one.
Whoever can write to that path can change the model itself; that is for the file system to guard.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from tfreid import storage

_log = logging.getLogger(__name__)


def file() -> str:
  """The path of the file that lists what this user has named."""
  named = os.environ.get('TFREID_TRUST_FILE')
  if named:
    return os.path.abspath(named)
  data = os.environ.get('XDG_DATA_HOME') or os.path.join(os.path.expanduser('~'), '.local', 'share')
  return os.path.join(data, 'tfreid', 'trusted.jsonl')


def remember_model(model: Mapping[str, Any]) -> None:
  """Notes a model that the user has named.

  Args:
    model: its 'path' and 'fingerprint'.
  """
  _remember(_model(model))


def remember_place(uri: str) -> None:
  """Notes an address or file of Milvus that the user has named; '' is in the index itself."""
  if uri:
    _remember({'milvus': uri})


def remember(state: Mapping[str, Any]) -> None:
  """Notes all that an index names, which the user has looked at.

  Args:
    state: of the index.
  """
  remember_model(state['model'])
  remember_place(state['engine'].get('uri', ''))


def model_path(state: Mapping[str, Any], directory: str) -> str:
  """Where an index says that its model is, if the user has named that model before.

  Args:
    state: of the index.
    directory: of the index, for the message.

  Raises:
    ValueError: the user has not; the message says how to.
  """
  path = state['model']['path']
  if _model(state['model']) not in _known():
    raise ValueError(
      f"The index '{directory}' names the model '{path}', which this user has not used for an "
      'index '
      'on this machine. A model is a program that runs when it is loaded. If you trust it, name it '
      f'yourself (--model={path}, in Python model=), or run `tfreid index trust` once.'
    )
  return path


def check_place(uri: str, directory: str) -> None:
  """Refuses an address or file of Milvus that the user has not named before.

  Args:
    uri: of Milvus; '' for a file in the index.
    directory: of the index, for the message.

  Raises:
    ValueError: the message says what to do.
  """
  if uri and {'milvus': uri} not in _known():
    raise ValueError(
      f"The index '{directory}' keeps its crops in Milvus at '{uri}', which this user has not "
      'named '
      'on this machine. If you trust that place (the token in MILVUS_TOKEN is sent to it), run '
      '`tfreid index trust` once.'
    )


def _model(model: Mapping[str, Any]) -> dict[str, str]:
  return {'model': os.path.realpath(model['path']), 'fingerprint': model['fingerprint']}


def _known() -> list[dict[str, str]]:
  """What was named; a line that cannot be read names nothing."""
  known = []
  try:
    lines = storage.read_bytes(file()).split(b'\n')
  except OSError:
    return []
  for line in lines:
    try:
      known.append(json.loads(line))
    except ValueError:
      continue
  return known


def _remember(line: dict[str, str]) -> None:
  if line in _known():
    return
  path = file()
  try:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    storage.append_line(path, json.dumps(line).encode())
  except OSError as error:
    # The index itself is none the worse.
    _log.warning(
      "What this index names cannot be noted in '%s' (%s): its model must be named with --model "
      'when '
      'it is opened. TFREID_TRUST_FILE may name another file.',
      path,
      error.strerror or error,
    )
