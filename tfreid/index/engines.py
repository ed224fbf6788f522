"""The engines that there are, by name. Floor 4.

Apart from `engine`, the interface, so that this knows the engines and they do not know it. An
engine is imported when it is asked for, so that its name costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from tfreid.index.directory import IndexDirectory
  from tfreid.index.engine import Engine

# Name -> class. A new engine is a file and a line here.
_CLASSES = {
  'embedded': 'tfreid.index.embedded.EmbeddedIndex',
  'milvus': 'tfreid.index.milvus.MilvusIndex',
  'memory': 'tfreid.index.memory.MemoryIndex',
}
NAMES = tuple(_CLASSES)


def engine_class(name: str) -> type[Engine]:
  """The class of an engine.

  Raises:
    ValueError: there is none of that name.
  """
  if name not in _CLASSES:
    raise ValueError(f"Unknown engine '{name}'; choose from {', '.join(NAMES)}.")
  module, _, attribute = _CLASSES[name].rpartition('.')
  return getattr(importlib.import_module(module), attribute)


def new_state(
  model: Mapping[str, Any], *, engine: str = 'embedded', uri: str = ''
) -> dict[str, Any]:
  """The state of an index without crops.

  Args:
    model: fingerprint, embedding_size, and where the model is ('path').
    engine: one of NAMES.
    uri: where the crops are kept, for engines that keep them at an address: of Milvus an address, a
      Milvus Lite file, or '' for such a file in the index.

  Raises:
    ValueError: an unknown engine, or an address for one that has none.
  """
  about = engine_class(engine).describe(uri)
  return {'generation': 0, 'model': dict(model), 'engine': about, 'segments': []}


def open_engine(
  folder: IndexDirectory,
  state: Mapping[str, Any] | None = None,
  *,
  resident: bool | str = False,
  check: bool | None = None,
) -> Engine:
  """The engine of an index.

  Args:
    folder: of the index.
    state: of an index that is not written yet; read if not given.
    resident: see `Engine`.
    check: see `Engine`.

  Raises:
    FileNotFoundError: there is no index.
    ValueError: it is damaged, or of an engine that this version does not have.
    OSError: the place where its crops are kept does not answer.
  """
  state = folder.read() if state is None else state
  kind = engine_class(state['engine']['name'])
  return kind(folder, state, resident=resident, check=check)
