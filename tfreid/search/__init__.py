"""Asking: a description in, a ranked answer with pictures and reasons out.

with tfreid.search.load('saved_models/demo') as people:
  answer = people.search('woman, red top', explain=True)
  next_question = people.suggest('woman, red top')[0].attribute
"""

from __future__ import annotations

from typing import Any

from tfreid.source.protocol import Capabilities, SearchOptions, Source, ask

__all__ = ['Capabilities', 'SearchOptions', 'Source', 'ask', 'load']


def load(directory: str, **options: Any) -> Source:
  """What can be searched: the index or the exported model in a directory, or a model of a server.

  Args:
    directory: of an index, of a version of an exported model, or of such a model; or the address of
      a TF Serving, 'grpc://host:8500' or 'http://host:8501'.
    **options: of `tfreid.index.open`, for an index; of `tfreid.search.remote.ServedModel`, for a
      server: `model`, its name there, at least.

  Raises:
    FileNotFoundError: there is neither.
    ValueError: it is damaged, or options for an exported model.
    ServingError: the server cannot be reached, or lacks the model.
  """
  import os

  if '://' in directory:
    from tfreid.search.remote import ServedModel

    if 'model' not in options:
      raise ValueError(f"Say which model of {directory} is meant: model='people', for example.")
    return ServedModel(directory, **options)
  directory = os.path.expanduser(directory)
  # Here, so that importing the package does not import TensorFlow.
  if os.path.isfile(os.path.join(directory, 'index.json')):
    from tfreid import index

    return index.open(directory, **options)
  if options:
    raise ValueError(
      f"'{directory}' holds no index, so there is no use for {', '.join(sorted(options))}."
    )
  from tfreid.search.exported import ExportedModel

  return ExportedModel(directory)
