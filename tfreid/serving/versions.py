"""The folders of an exported model: a number for each version. Floor 0."""

from __future__ import annotations

import os

_MODEL_FILE = 'saved_model.pb'


def newest(directory: str) -> str:
  """The directory itself if it is a version, or its subfolder of the largest number.

  Raises:
    FileNotFoundError: it is neither.
  """
  if os.path.isfile(os.path.join(directory, _MODEL_FILE)):
    return directory
  entries = os.listdir(directory) if os.path.isdir(directory) else []
  versions = [
    entry
    for entry in entries
    if entry.isdigit() and os.path.isfile(os.path.join(directory, entry, _MODEL_FILE))
  ]
  if not versions:
    raise FileNotFoundError(
      f"'{directory}' holds no exported model (found: {sorted(entries)[:5] or 'nothing'}). Give "
      'the folder of a version, for example saved_models/demo/1; `tfreid export` writes them.'
    )
  return os.path.join(directory, max(versions, key=int))
