"""Dynamic batching: calls of many threads that are made at the same time become one. Floor 4.

A scan takes about as long for some queries as for one, and an encoder less for some pictures than
for one after the other. So what is asked while a call runs waits for its end, and then goes
together, as one call.

Nobody waits for company: where nothing runs, a call begins at once. There is no thread for it
either. The thread that finds nothing running makes the call, for itself and for all that wait and
can go along; when it is done, it hands on to the first of those that have come meanwhile. Calls
that share a thread (`fibers`) go together when none of them can go on alone.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from tfreid import cancellation, fibers, processor
from tfreid.index import filters
from tfreid.index.engine import Engine, Match

if TYPE_CHECKING:
  from tfreid.index.embedder import Embedder

# Queries of a scan. The engine scans as many at a time, so more would only wait for each other.
MAX_QUERIES = 64
# Results of a scan: those of a few long searches, or of many short ones.
MAX_RESULTS = 4096
# Pictures that are embedded together. From 8 on, kernels of convolutions sum in another order: some
# concepts of a ResNet50 are then off by a unit in the last place (see docs/web.md). On a processor
# without AVX-512 the kernels did so from 2 on: there each picture is embedded alone.
MAX_IMAGES = 4
# Results up to which searches count as equally long; above, they are joined by powers of two.
_SHORT = 64
# Ids to leave out, up to which they are searched for and then dropped.
_DROPPED = 256

_Key = TypeVar('_Key', bound=Hashable)
_Item = TypeVar('_Item')
_Result = TypeVar('_Result')


class _Place(Generic[_Key, _Item, _Result]):
  """A call that waits or runs.

  Attributes:
    leads: whether its thread is to make the next call.
    ended: whether there is a result or an error.
  """

  def __init__(self, key: _Key, item: _Item):
    self.key, self.item = key, item
    self.cancellation = cancellation.current()
    self.leads = self.ended = False
    self.result: _Result
    self.error: BaseException | None = None
    # Taken until there is something to do: an event would cost two more locks.
    self._asleep = threading.Lock()
    self._asleep.acquire()

  @property
  def turn_of(self) -> str:
    return self.cancellation.turn_of if self.cancellation else ''

  @property
  def cancelled(self) -> bool:
    return self.cancellation is not None and self.cancellation.cancelled

  def end(self, result: _Result) -> None:
    self.result, self.ended = result, True

  def fail(self, error: BaseException) -> None:
    self.error, self.ended = error, True

  def wait(self) -> None:
    self._asleep.acquire()

  def wake(self) -> None:
    self._asleep.release()


class _Together(cancellation.Cancellation):
  """The cancellation of a joined call: there is one when nobody waits for any part of it."""

  def __init__(self, places: Sequence[_Place]):
    super().__init__()
    self._places = places

  @property
  def cancelled(self) -> bool:
    return all(place.cancelled for place in self._places)


class Joiner(Generic[_Key, _Item, _Result]):
  """Joins calls that are made while another runs.

  Calls of the same key go together, the one that has waited longest first. Those who ask (see
  `cancellation.Cancellation.turn_of`) take turns, so a hundred calls of one of them delay a call
  of another by one. A call that was cancelled while it waited is left out, and a joined call ends
  early only if nobody waits for any part of it. If a joined call fails, its parts are called
  alone, so that each fails for its own reasons only.

  There can be no more calls than threads that make them: whoever bounds these bounds the queue.

  Attributes:
    calls: how many were made.
    parts: of how many parts these were.
  """

  def __init__(
    self,
    call: Callable[[_Key, list[_Item]], Sequence[_Result]],
    *,
    most: Callable[[_Key], int],
  ):
    """Begins with nothing.

    Args:
      call: the key and the items of N calls to their N results.
      most: the key to the greatest N.
    """
    self.calls = self.parts = 0
    self._call, self._most = call, most
    self._lock = threading.Lock()
    # Held while a call is made: threads that lead, and groups, make one at a time.
    self._calling = threading.Lock()
    self._runs = False
    # Who asks, next one first, to the calls of each, oldest first.
    self._waiting: collections.OrderedDict[str, collections.deque[_Place[_Key, _Item, _Result]]] = (
      collections.OrderedDict()
    )

  @property
  def waiting(self) -> int:
    """Calls that wait."""
    with self._lock:
      return sum(map(len, self._waiting.values()))

  def __call__(self, key: _Key, item: _Item) -> _Result:
    """The result for one item, from a call of its own or one with others of an equal key.

    Raises:
      CancelledError: nobody waits for it any more.
      Exception: what the call raises for this item alone.
    """
    place: _Place[_Key, _Item, _Result] = _Place(key, item)
    group = fibers.current()
    if group is not None:
      group.wait(self._make_all, place)
    else:
      self._queue(place)
    if place.error is not None:
      raise place.error
    return place.result

  def _queue(self, place: _Place[_Key, _Item, _Result]) -> None:
    """Returns when a place has ended: in a call of another thread, or of this one."""
    with self._lock:
      place.leads = not self._runs
      self._runs = True
      if not place.leads:
        self._waiting.setdefault(place.turn_of, collections.deque()).append(place)
    if not place.leads:
      place.wait()
    if place.leads:
      try:
        self._lead(place)
      finally:
        self._hand_on()

  def _make_all(self, places: list[_Place[_Key, _Item, _Result]]) -> None:
    """Makes the calls of a group, which are all that it waits for."""
    by_key: dict[_Key, list[_Place[_Key, _Item, _Result]]] = {}
    for place in places:
      if place.cancelled:
        place.fail(cancellation.CancelledError('The work was cancelled.'))
      else:
        by_key.setdefault(place.key, []).append(place)
    for key, same in by_key.items():
      most = self._most(key)
      for start in range(0, len(same), most):
        self._make(same[start : start + most])

  def _lead(self, place: _Place[_Key, _Item, _Result]) -> None:
    """Makes a call for a place and those that can go along."""
    with self._lock:
      places = [place, *self._companions(place)]
    try:
      self._make(places)
    finally:
      for other in places:
        if not other.ended:  # something like KeyboardInterrupt, which is this thread's alone
          other.fail(RuntimeError('The search was interrupted.'))
        if other is not place:
          other.wake()

  def _make(self, places: list[_Place[_Key, _Item, _Result]]) -> None:
    with self._lock:
      self.calls += 1
      self.parts += len(places)
    with self._calling:
      self._run(places)

  def _run(self, places: list[_Place[_Key, _Item, _Result]]) -> None:
    try:
      with cancellation.scope(_Together(places)):
        cancellation.check()
        results = self._call(places[0].key, [place.item for place in places])
      for place, result in zip(places, results):
        place.end(result)
    except Exception as error:  # it belongs to whoever waits
      if len(places) == 1 or isinstance(error, cancellation.CancelledError):
        for place in places:
          place.fail(cancellation.CancelledError(*error.args) if len(places) > 1 else error)
      else:
        for place in places:
          self._run([place])

  def _companions(self, leader: _Place[_Key, _Item, _Result]) -> list[_Place[_Key, _Item, _Result]]:
    """Takes those out of the queue that can go along, a call of everybody by turns."""
    most = self._most(leader.key) - 1
    chosen: list[_Place[_Key, _Item, _Result]] = []
    fitting = {
      name: collections.deque(place for place in queue if place.key == leader.key)
      for name, queue in self._waiting.items()
    }
    while fitting and len(chosen) < most:
      for name, queue in list(fitting.items()):
        if not queue or len(chosen) == most:
          del fitting[name]
          continue
        chosen.append(queue.popleft())
    for place in chosen:
      self._take(place)
    # Those that nobody waits for leave with the others, without costing anything.
    alive = []
    for place in chosen:
      if place.cancelled:
        place.fail(cancellation.CancelledError('The work was cancelled.'))
        place.wake()
      else:
        alive.append(place)
    return alive

  def _hand_on(self) -> None:
    """Lets the next one lead whose turn it is, if somebody waits."""
    with self._lock:
      if not self._waiting:
        self._runs = False
        return
      name = next(iter(self._waiting))
      place = self._waiting[name][0]
      self._take(place)
      if name in self._waiting:
        self._waiting.move_to_end(name)
      place.leads = True
    place.wake()

  def _take(self, place: _Place[_Key, _Item, _Result]) -> None:
    queue = self._waiting[place.turn_of]
    queue.remove(place)
    if not queue:
      del self._waiting[place.turn_of]


class JoinedSearch:
  """Searches of an engine, those of many threads in one scan.

  A search gets what it would get alone, to the bit: the score of a row does not depend on the
  other queries of a scan (see `tfreid.serving.search`), and the best K crops are the first K of
  the best K + M.

  Attributes:
    joiner: how many searches were joined.
  """

  def __init__(self) -> None:
    self.joiner: Joiner[_Scan, tuple[np.ndarray, int], list[Match]] = Joiner(
      _scan, most=lambda scan: min(MAX_QUERIES, max(1, MAX_RESULTS // scan.length))
    )

  def search(
    self,
    engine: Engine,
    query: np.ndarray,
    *,
    top_k: int,
    where: filters.Condition | None = None,
    exclude: Sequence[str] = (),
    min_score: float | None = None,
  ) -> list[Match]:
    """The best crops for one query, as `Engine.search`.

    Args:
      engine: which is searched; searches of different ones are not joined.
      query: float32 [E].
      top_k: as there; and so on.
      where: as there.
      exclude: as there.
      min_score: as there.

    Raises:
      ValueError: as there.
      CancelledError: nobody waits for it any more.
    """
    dropped = frozenset(exclude)
    if not engine.joins or top_k < 1 or len(dropped) > _DROPPED:
      (matches,) = engine.search(
        query[np.newaxis], top_k=top_k, where=where, exclude=exclude, min_score=min_score
      )
      return matches
    # Who leaves out some crops can be scanned with who leaves out others: all look for some more.
    count = top_k + len(dropped)
    length = _SHORT if count <= _SHORT else 1 << (count - 1).bit_length()
    # Not the condition itself: camera == 1 and camera == True are equal to Python.
    found = self.joiner(_Scan(engine, where, length), (query, count))
    kept = [match for match in found if match.row.id not in dropped] if dropped else found
    return [match for match in kept[:top_k] if min_score is None or match.score >= min_score]


class JoinedImages:
  """Pictures that become concepts, those of many threads in one call of the encoder.

  Attributes:
    joiner: how many were joined.
  """

  def __init__(self) -> None:
    self.joiner: Joiner[Embedder, bytes, np.ndarray] = Joiner(
      lambda model, images: list(model.embed_images(images)), most=_most_images
    )

  def embed(self, model: Embedder, image: bytes) -> np.ndarray:
    """The concept, float32 [E], of an encoded image, as `Embedder.embed_images`.

    Raises:
      ValueError: it cannot be decoded.
      CancelledError: nobody waits for it any more.
    """
    return fibers.elsewhere(lambda: self.joiner(model, image))


def _most_images(model: Embedder) -> int:
  """Pictures that may be embedded together here, so that each is embedded as alone, bit by bit."""
  # Of OpenVINO's products nothing is known that holds on every processor.
  return _most_in_tensorflow() if model.runtime == 'tensorflow' else 1


def _most_in_tensorflow() -> int:
  return MAX_IMAGES if 'avx512f' in processor.processor().flags else 1


class _Scan:
  """What searches must have in common to be joined; equal to another one where they can be."""

  def __init__(self, engine: Engine, where: filters.Condition | None, length: int):
    self.engine, self.where, self.length = engine, where, length
    self._key = id(engine), repr(where), length

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Scan) and self._key == other._key

  def __hash__(self) -> int:
    return hash(self._key)


def _scan(key: _Scan, asked: list[tuple[np.ndarray, int]]) -> list[list[Match]]:
  results = key.engine.search(
    np.stack([query for query, _ in asked]),
    top_k=max(count for _, count in asked),
    where=key.where,
  )
  return [matches[:count] for matches, (_, count) in zip(results, asked)]
