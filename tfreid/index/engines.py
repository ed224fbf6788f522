"""Opening an index with the engine that holds it. Floor 4.

Apart from `engine`, the interface, so that this knows the engines and they do not know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfreid.index.engine import Engine
from tfreid.index.index import EmbeddedIndex
from tfreid.index.ledger import Ledger
from tfreid.index.milvus import MilvusIndex


def open_engine(
  ledger: Ledger,
  state: Mapping[str, Any] | None = None,
  *,
  resident: bool | str = False,
  check: bool | None = None,
) -> Engine:
  """The engine of an index.

  Args:
    ledger: the folder of the index.
    state: of an index that is not written yet; read if not given.
    resident: of the embedded engine, see `EmbeddedIndex`; Milvus has memory of its own.
    check: compare checksums, see `EmbeddedIndex`.
  """
  state = ledger.read() if state is None else state
  if state['engine']['name'] == 'milvus':
    return MilvusIndex(ledger, state)
  return EmbeddedIndex(ledger, state, resident=resident, check=check)
