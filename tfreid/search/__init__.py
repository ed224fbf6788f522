"""Asking: a description in, a ranked answer with pictures and reasons out.

answer = tfreid.search.load('saved_models/demo').search('woman, red top')
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
  from tfreid.index.searcher import Searcher
  from tfreid.search.exported import ExportedModel

  Source = Union[ExportedModel, Searcher]


def load(directory: str, **options: Any) -> Source:
  """What can be searched: the index or the exported model in a directory.

  Args:
    directory: of an index, of a version of an exported model, or of such a model.
    **options: of `tfreid.index.open`, for an index.

  Raises:
    FileNotFoundError: there is neither.
    ValueError: it is damaged, or options for an exported model.
  """
  import os

  directory = os.path.expanduser(directory)
  # Here, so that importing the package, which every room may do for `answer`, opens no room.
  if os.path.isfile(os.path.join(directory, 'index.json')):
    from tfreid import index

    return index.open(directory, **options)
  if options:
    raise ValueError(
      f"'{directory}' holds no index, so there is no use for {', '.join(sorted(options))}."
    )
  from tfreid.search.exported import ExportedModel

  return ExportedModel(directory)
