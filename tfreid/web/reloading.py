"""The source that answers now, exchanged for a newer one while it is asked. Floor 5."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tfreid.search import Source

_Known = TypeVar('_Known')


class ReloadingSource(Generic[_Known]):
  """A source for many threads, and what is known of it.

  An index that has changed, or another version of a served model, is opened beside what answers and
  looked at, and takes its place in one moment, together with what was learned of it. The old one is
  closed when the last question it was asked is answered.
  """

  def __init__(
    self,
    source: Source,
    *,
    learn: Callable[[Source, _Known | None], _Known],
  ):
    """Begins with a source, which it closes in the end.

    Args:
      source: what answers.
      learn: what must be known of a source before it answers. It is given what was known of the one
        before, None for the first, and may ask the source what its first clients would wait for.
    """
    self._learn = learn
    self._lock, self._looking = threading.Lock(), threading.Lock()
    self._users: dict[int, int] = {}
    # By itself a served model goes from one version to the next, whose schema may be another one
    # than that by which a question was checked. So what answers is one version of it.
    self._first, self._source = source, source.pinned()
    self._known = learn(self._source, None)
    self._complaint = ''

  @contextlib.contextmanager
  def use(self) -> Iterator[tuple[Source, _Known]]:
    """The source and what is known of it; open as long as it is used."""
    with self._lock:
      source, known = self._source, self._known
      self._users[id(source)] = self._users.get(id(source), 0) + 1
    try:
      yield source, known
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
  def known(self) -> _Known:
    """What is known of the source."""
    return self._known

  def refresh(self) -> bool:
    """Takes over what has come since: of an index, or of the versions of a served model.

    What cannot be opened, because it is being replaced or has another model now, or because the
    server does not answer, leaves the old one in place.

    Returns:
      Whether there was anything.
    """
    with self._looking:
      return self._refresh()

  def leave(self, source: Source) -> bool:
    """Looks for a successor of a source that cannot answer any more; returns whether there is one.

    Of many who come at the same time one looks, and the others wait for what it finds.
    """
    with self._looking:
      return self._source is not source or self._refresh()

  def close(self) -> None:
    """Closes the source."""
    self._source.close()
    self._first.close()

  def _refresh(self) -> bool:
    try:
      source = self._source.newer()
      if source is not None:
        known = self._learned(source)
    except (OSError, ValueError) as error:
      # Each look would say it again.
      if self._complaint != str(error):
        logging.getLogger(__name__).warning('What is new cannot be taken over: %s', error)
      self._complaint = str(error)
      return False
    self._complaint = ''
    if source is None:
      return False
    with self._lock:
      old, self._source, self._known = self._source, source, known
      close = old is not source and id(old) not in self._users
    if close:
      old.close()
    return True

  def _learned(self, source: Source) -> _Known:
    try:
      return self._learn(source, self._known)
    except BaseException:
      if source is not self._source:
        source.close()
      raise
