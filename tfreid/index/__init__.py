"""An index of crops: built once, kept up to date, searched exactly. Floor 4.

index = tfreid.index.open('indexes/depot')
answer = index.search('woman, red top', where='camera in [1, 2]')
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from tfreid.index.searcher import Searcher


def open(directory: str, **options: Any) -> Searcher:
  """Opens an index; see `Searcher` for the options and what it can do."""
  # Here: the package is also imported by programs that only write, without TensorFlow.
  from tfreid.index.searcher import Searcher

  return Searcher(directory, **options)
