"""The source that answers now, exchanged for a newer one while it is asked. Floor 5."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tfreid.search import Source


class Current:
  """A source for many threads.

  An index that has changed is opened anew beside the old one, and takes its place in one moment;
  the old one is closed when the last question it was asked is answered.
  """

  def __init__(
    self,
    source: Source,
    *,
    resident: bool = False,
    warm: Callable[[Source], None] = lambda source: None,
  ):
    """Begins with a source, which it closes in the end.

    Args:
      source: what answers.
      resident: how a changed index is opened; see `tfreid.index.open`.
      warm: called with it before it takes the place of the old one.
    """
    self._warm = warm
    self._lock = threading.Lock()
    self._resident = resident
    self._users: dict[int, int] = {}
    self._source = source
    self._facts = source.info()

  @contextlib.contextmanager
  def use(self) -> Iterator[tuple[Source, dict[str, Any]]]:
    """The source and its `info()`; open as long as it is used."""
    with self._lock:
      source, facts = self._source, self._facts
      self._users[id(source)] = self._users.get(id(source), 0) + 1
    try:
      yield source, facts
    finally:
      with self._lock:
        self._users[id(source)] -= 1
        last = not self._users[id(source)]
        if last:
          del self._users[id(source)]
        close = last and source is not self._source
      if close:
        source.close()

  @property
  def facts(self) -> dict[str, Any]:
    """`info()` of the source."""
    return self._facts

  def refresh(self) -> bool:
    """Takes over what was added to an index, and removed; returns whether that was anything.

    An index that cannot be opened, because it is being replaced or has another model now, leaves
    the old one in place.
    """
    engine = getattr(self._source, 'engine', None)
    if engine is None:
      return False
    try:
      if engine.ledger.read()['generation'] == engine.state['generation']:
        return False
      if engine.state['engine']['name'] == 'milvus':
        # Its state is one dictionary, which is exchanged whole; a second connection to a Milvus
        # Lite file would not be.
        self._source.refresh()
        self._facts = self._source.info()
        return True
      from tfreid import index

      source = index.open(self._source.directory, model=self._source.model, resident=self._resident)
      self._warm(source)
      facts = source.info()
    except (OSError, ValueError) as error:
      logging.getLogger(__name__).warning('The changed index cannot be opened: %s', error)
      return False
    with self._lock:
      old, self._source, self._facts = self._source, source, facts
      close = id(old) not in self._users
    if close:
      old.close()
    return True

  def close(self) -> None:
    """Closes the source."""
    self._source.close()
