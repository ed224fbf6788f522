"""Milvus as the engine: Milvus Lite in a file, or a server or cluster by its address. Floor 4.

Needs the extra `milvus`. The folder of the index keeps index.json, the lock and unfinished shards;
crops live in a collection. Milvus has no transactions, so a commit is made of what it has:

* Each crop carries the generation that added it, and a search asks for generations up to the one in
  index.json. Crops of a commit that did not come to its end are not seen, and the next writer
  removes them.
* What is to be removed is listed in the same commit, in index.json or, where it is much, in a file
  beside it; it is not answered from then on, and is deleted afterwards, by the next writer if need
  be.

So a reader sees what was added since it opened the index only when it refreshes; but what was
removed it does not see any more, and where the whole index was replaced, its collection is gone,
and it goes on with the new one.

Milvus finds candidates by exhaustive search (index FLAT) and the filter's expression; they are
ranked by the same last score as everywhere, and more are fetched until none left out could matter,
if need be from a part of the positions at a time.

Where the server asks for one, the token is read from the environment variable MILVUS_TOKEN.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import re
import secrets
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tfreid import storage
from tfreid.index import engine, filters, milvus_filters, segment, trust
from tfreid.index.directory import IndexDirectory
from tfreid.index.engine import Engine, Match
from tfreid.index.segment import Row, Segment, id_hash
from tfreid.printable import control_character

_Answer = TypeVar('_Answer')

# Milvus' own limits.
_MAX_RESULTS = 16384
_MAX_ID_BYTES = 4096
_MAX_JSON_BYTES = 65536

# Results beyond K, so that one request usually suffices.
_SPARE = 28
# Starting Milvus Lite took 30 seconds where other programs kept the processors busy.
_CONNECT_SECONDS = 120
# How often it is asked to end.
_ATTEMPTS = 12
# How often opening starts again because a writer removed what the state had named.
_READS = 5
# Positions to remove that index.json lists; more are in a file, for each reader reads index.json.
_LISTED = 1000
_REMOVING = re.compile(r'removing-[0-9a-f]{16}\.npy')
# What an index may call its collections: nobody else's may be dropped for being named in one.
_PREFIX = re.compile('tfreid_[0-9a-f]{12}')
# Rows per request.
_BATCH = 1000
# Bytes of the vectors in one request; a gRPC message may have 64 MiB.
_BATCH_BYTES = 1 << 23


# How many indexes of this process are open at an address, or in a Milvus Lite file: with the last
# one the connection ends, and the server of the file.
_open: collections.Counter[str] = collections.Counter()


class _Found(NamedTuple):
  """A `Match` whose row may still have to be read."""

  row: Row | None
  score: float
  concept: np.ndarray


class MilvusIndex(Engine):
  """An index in a collection of Milvus."""

  name = 'milvus'

  def __init__(
    self,
    folder: IndexDirectory,
    state: Mapping[str, Any],
    *,
    resident: bool | str = False,
    check: bool | None = None,
  ):
    """Connects.

    Args:
      folder: of the index.
      state: from `folder.read()`, or a new one.
      resident: of no use; Milvus has memory of its own.
      check: of no use; `problems` looks at the collection.

    Raises:
      ImportError: pymilvus is not installed.
      OSError: there is no connection.
      ValueError: the state is damaged, or names a place that this user has not.
    """
    super().__init__(folder, state, resident=resident, check=check)
    _check_state(state, folder)
    self.state = self._loaded(state)
    client, self._exceptions = _library()
    about = self.state['engine']
    trust.check_place(about['uri'], folder.directory)
    self.uri = about['uri'] or os.path.join(folder.directory, 'milvus.db')
    if '://' not in self.uri:
      os.makedirs(os.path.dirname(os.path.abspath(self.uri)), exist_ok=True)
    self._closed = False
    with self._clear():
      self._client = client(
        uri=self.uri, token=os.environ.get('MILVUS_TOKEN', ''), timeout=_CONNECT_SECONDS
      )
    # As Milvus Lite tells its files apart.
    self._place = self.uri if '://' in self.uri else os.path.realpath(self.uri)
    _open[self._place] += 1
    try:
      with self._clear():
        self._check_collection()
    except BaseException:
      self.close()
      raise

  @property
  def size(self) -> int:
    """Number of crops."""
    return self.state.get('size', 0)

  @property
  def fields(self) -> dict[str, list[str]]:
    """The fields and attributes that crops have: name to the kinds of their values."""
    return self.state.get('fields', {})

  def search(
    self,
    queries: np.ndarray,
    *,
    top_k: int,
    where: filters.Condition | None = None,
    exclude: Sequence[str] = (),
    min_score: float | None = None,
  ) -> list[list[Match]]:
    """The best crops of each query; see `Engine.search`.

    Raises:
      ValueError: as there, or more results than Milvus answers.
    """

    def ask(state):
      checked = self._checked(queries, top_k, where)
      if not state.get('size'):
        return [[] for _ in checked]
      parts = [_visible(state)]
      if where is not None:
        milvus_filters.check(where)
        parts.append(milvus_filters.to_milvus(where))
      odd = {name for name in exclude if control_character(name)}
      if set(exclude) - odd:
        parts.append(f'id not in {_list(set(exclude) - odd)}')
      if positions := self._positions_of(state, odd):
        parts.append(f'position not in {positions}')
      expression = ' and '.join(f'({part})' for part in parts)
      epsilon = engine.rounding(checked, state['greatest_norm'])
      return [self._best(state, q, top_k, expression, eps) for q, eps in zip(checked, epsilon)]

    if top_k > _MAX_RESULTS - _SPARE:
      raise ValueError(f'Milvus answers {_MAX_RESULTS - _SPARE} results at most, not {top_k}.')
    return [
      [match for match in matches if min_score is None or match.score >= min_score]
      for matches in self._answered(ask)
    ]

  def _best(self, state, query, top_k, expression, epsilon):
    """The best crops for one query, in requests of as many results as it takes.

    Of a range of positions a request answers the rows of the best scores a(x). Let t be the K-th
    best last score s found so far. What the request left out has no better a than its last result,
    and s <= a + eps; so where that is below t, the range holds nothing more. Else more results are
    asked for; and where Milvus answers no more at once, the halves of the range, one by one.
    """
    ranges, limit = [(0, state['next_position'])], top_k + _SPARE
    best: dict[int, _Found] = {}
    while ranges:
      first, last = ranges.pop()
      # Rows take room, and of many results few are answered.
      output = ['row'] if limit == top_k + _SPARE else []
      hits = self._hits(state, query, expression, (first, last), limit, output)
      alive = [hit for hit in hits if not _within(state['removing'], hit['position'])]
      concepts = np.asarray([hit['concept'] for hit in alive], np.float32)
      positions = np.asarray([hit['position'] for hit in alive], np.int64)
      concepts = concepts.reshape(len(alive), self.width)
      for i, score in zip(*engine.best(concepts, positions, query, top_k)):
        position = int(positions[i])
        known = best[position].row if position in best else None
        row = Row.from_json(alive[i]['row']) if output else known
        best[position] = _Found(row, float(score), concepts[i])
      order = sorted(best, key=lambda position: (-best[position].score, position))[:top_k]
      best = {position: best[position] for position in order}
      least = best[order[-1]].score if len(order) == top_k else -np.inf
      if len(hits) < limit or hits[-1]['distance'] + epsilon < least:
        continue
      if limit < _MAX_RESULTS:
        limit = min(4 * limit, _MAX_RESULTS)
        ranges.append((first, last))
      else:
        middle = (first + last) // 2
        ranges += [(middle, last), (first, middle)]
    unread = [position for position, match in best.items() if match.row is None]
    for entity in self._at(state, unread, 'row'):
      position = entity['position']
      best[position] = best[position]._replace(row=Row.from_json(entity['row']))
    # One that was removed since has no row.
    return [
      Match(match.row, match.score, match.concept)
      for match in best.values()
      if match.row is not None
    ]

  def _hits(self, state, query, expression, positions, limit, output):
    """Up to `limit` results with positions in a range, of falling `distance`, which is a(x)."""
    first, last = positions
    if (first, last) != (0, state['next_position']):
      expression = f'({expression}) and position >= {first} and position < {last}'
    with self._clear():
      (hits,) = self._client.search(
        state['collection'],
        data=[query.tolist()],
        limit=limit,
        filter=expression,
        output_fields=['position', 'concept', *output],
        search_params={'metric_type': 'IP'},
        consistency_level='Strong',
      )
    hits = [{**hit['entity'], 'distance': hit['distance']} for hit in hits]
    return sorted(hits, key=lambda hit: -hit['distance'])

  def rows(self, ids: Sequence[str]) -> dict[str, Row]:
    """The rows with these ids."""
    entities = self._answered(lambda state: self._find(state, ids, 'row'))
    return {entity['row']['id']: Row.from_json(entity['row']) for entity in entities}

  def concepts(self, ids: Sequence[str]) -> np.ndarray:
    """Concepts, float32 [M, E], of these ids."""
    entities = self._answered(lambda state: self._find(state, ids, 'id', 'concept'))
    by_id = {entity['id']: entity['concept'] for entity in entities}
    missing = [name for name in ids if name not in by_id]
    if missing:
      raise KeyError(f"The index has no crop '{missing[0]}'.")
    return np.asarray([by_id[name] for name in ids], np.float32).reshape(len(ids), self.width)

  def parts(self) -> Iterator[tuple[np.ndarray, list[Row]]]:
    """All concepts and rows in the order of adding.

    Raises:
      OSError: the index was replaced meanwhile, or the server does not answer.
    """
    state = self.state
    for start in range(0, state.get('next_position', 0), _BATCH):
      window = f'position >= {start} and position < {start + _BATCH}'
      try:
        entities = self._query(state, window, 'position', 'row', 'concept')
      except OSError as error:
        if not self._is_replaced(state):
          raise
        raise OSError(
          f"The index '{self.folder.directory}' was replaced while it was read. Read it again."
        ) from error
      entities.sort(key=lambda entity: entity['position'])
      if entities:
        concepts = np.asarray([entity['concept'] for entity in entities], np.float32)
        yield concepts, [Row.from_json(entity['row']) for entity in entities]

  def commit(
    self,
    entries: Sequence[Mapping[str, Any]],
    *,
    remove: Iterable[str] = (),
    replace: bool = False,
    shard: Sequence[int] | None = None,
    progress: engine.Progress | None = None,
  ) -> None:
    """Adds the rows of segments and removes others, all at once; see `Engine.commit`.

    Of a commit that fails nothing is left in Milvus, if it still answers; else the next writer
    removes it.
    """
    self.recover()
    try:
      self._commit(entries, remove, replace, shard, progress)
    except BaseException:
      # Whatever is wrong here as well, the first error is the one to be told.
      with contextlib.suppress(OSError, ValueError):
        # The error may have come when index.json was replaced already.
        committed = self.folder.read() if self.folder.exists else {}
        if committed.get('engine') == self.state['engine']:
          self.state = self._loaded(committed)
        self.recover()
      raise
    self.recover()
    self.folder.clean()

  def _commit(self, entries, remove, replace, shard, progress):
    state = {**self.state, 'generation': self.state['generation'] + 1}
    state.pop('shard', None)
    if shard:
      state['shard'] = list(shard)
    removing = []
    if replace or not self._collection:
      state.update(size=0, next_position=0, greatest_norm=0.0, fields={})
      state['collection'] = self._create()
    else:
      entities = self._find(self.state, list(remove), 'position')
      removing = sorted(entity['position'] for entity in entities)
    added, total = 0, sum(entry['rows'] for entry in entries)
    for entry in entries:
      self._insert(Segment(self.folder.segments, entry), state)
      added += entry['rows']
      if progress:
        progress(added, total)
      state['size'] += entry['rows']
      state['next_position'] += entry['rows']
      state['greatest_norm'] = max(state['greatest_norm'], entry['greatest_norm'])
      kinds = state['fields']
      state['fields'] = {
        name: sorted({*kinds.get(name, ()), *entry['fields'].get(name, ())})
        for name in (*kinds, *(new for new in entry['fields'] if new not in kinds))
      }
    with self._clear():
      self._client.flush(state['collection'])
    state['removing'] = removing if len(removing) <= _LISTED else self._written(removing)
    state['size'] -= len(removing)
    self.folder.write(state)
    self.state = self._loaded(self.folder.read())

  def recover(self) -> None:
    """Brings the collection to the state of index.json; needs the lock."""
    with self._clear():
      for name in self._client.list_collections():
        if name.startswith(f'{self.state["engine"]["prefix"]}_') and name != self._collection:
          self._client.drop_collection(name)
    if not self._collection:
      return
    later = f'generation > {self.state["generation"]}'
    with self._clear():
      self._client.delete(self._collection, filter=later)
    removing = self.state['removing'].tolist()
    for start in range(0, len(removing), _BATCH):
      with self._clear():
        self._client.delete(
          self._collection, filter=f'position in {removing[start : start + _BATCH]}'
        )
    if removing:
      self.folder.write({**self.state, 'removing': []})
      self.state = self._loaded(self.folder.read())
    for name in os.listdir(self.folder.directory):
      # Also what a kill left of one that was being written.
      if _REMOVING.fullmatch(name.partition('.partial-')[0]):
        os.remove(os.path.join(self.folder.directory, name))

  def problems(self) -> list[str]:
    """What is wrong with the collection: its number of crops, their ids, their concepts."""
    sentences, count, hashes = [], 0, []
    for concepts, rows in self.parts():
      count += len(rows)
      hashes.append(np.fromiter((id_hash(row.id) for row in rows), np.uint64, len(rows)))
      for row, finite in zip(rows, np.isfinite(concepts).all(axis=1)):
        if not finite:
          sentences.append(f"The concept of '{row.id}' is not finite.")
    suspects = set(segment.repeated(hashes).tolist())
    if suspects:
      names = collections.Counter(
        row.id for _, rows in self.parts() for row in rows if id_hash(row.id) in suspects
      )
      sentences += [f"The id '{name}' occurs {n} times." for name, n in names.items() if n > 1]
    if count != self.size:
      sentences.append(
        f"The collection '{self._collection}' has {count} crops; index.json says {self.size}."
      )
    return sentences

  def refresh(self) -> bool:
    """Takes over what was committed since; returns whether that was anything."""
    state = self._loaded(self.folder.read())
    changed = state['generation'] != self.state['generation']
    # Exchanged whole, for threads that are asking.
    self.state = state
    return changed

  def close(self) -> None:
    """Closes the connection; the last one to a Milvus Lite file leaves it to other processes."""
    if self._closed:
      return
    self._closed = True
    _open[self._place] -= 1
    if _open[self._place]:
      # pymilvus has one connection for all clients of an address: closing one would close them all.
      return
    self._client.close()
    if '://' not in self.uri:
      from milvus_lite.server_manager import server_manager_instance

      for attempt in range(_ATTEMPTS):
        try:
          server_manager_instance.release_server(self.uri)
          return
        except subprocess.TimeoutExpired as error:
          # It waits for five seconds, and keeps the server where that was not enough.
          if attempt == _ATTEMPTS - 1:
            raise OSError(f"Milvus Lite does not let go of '{self.uri}'.") from error

  @classmethod
  def describe(cls, uri: str) -> dict[str, str]:
    """Name, address or file, and the beginning of the collections' names."""
    prefix = f'tfreid_{secrets.token_hex(6)}'
    # A file by its absolute path: the index is also opened from elsewhere.
    if uri and '://' not in uri:
      uri = os.path.abspath(os.path.expanduser(uri))
    return {'name': cls.name, 'uri': uri, 'prefix': prefix}

  @classmethod
  def begin(
    cls,
    folder: IndexDirectory,
    state: Mapping[str, Any],
    *,
    before: Mapping[str, Any],
    pending: Mapping[str, Any],
  ) -> dict[str, Any]:
    """The state from which a build or a merge starts; see `Engine.begin`.

    By its prefix an index knows its collections on a server it shares with others, also those that
    an attempt before this one did not finish: they are removed by the commit of this one. One that
    moves to another address has another prefix there: it may be the same server by another name.
    """
    state = super().begin(folder, state, before=before, pending=pending)
    about = dict(state['engine'])
    kept, tried = before.get('engine', {}).get('prefix'), pending.get('prefix')
    if tried and tried != kept and pending.get('uri', about['uri']) != about['uri']:
      drop(folder, {**state, 'engine': {**about, 'uri': pending['uri'], 'prefix': tried}})
      tried = None
    moves = bool(before) and before['engine'].get('uri') != about['uri']
    about['prefix'] = ((tried if tried != kept else None) if moves else kept or tried) or about[
      'prefix'
    ]
    state['engine'] = about
    if before.get('engine') == about and 'collection' in before:
      state.update(collection=before['collection'], removing=before['removing'])
    return state

  def attempt(self) -> dict[str, str]:
    """Where an unfinished build begins collections; see `Engine.attempt`."""
    about = self.state['engine']
    return {'prefix': about['prefix'], 'uri': about['uri']}

  @classmethod
  def settle(
    cls, folder: IndexDirectory, *, before: Mapping[str, Any], state: Mapping[str, Any]
  ) -> None:
    """Drops what an index that moved to another Milvus left on the one before."""
    if not before or before['engine'].get('uri') == state['engine']['uri']:
      return
    try:
      drop(folder, before)
    except OSError as error:
      raise OSError(
        f"The index was built, and is kept at '{state['engine']['uri'] or folder.directory}' now. "
        f"What it replaced could not be dropped: it is left at '{before['engine']['uri']}', in the "
        f"collection '{before['collection']}'. {error}"
      ) from error

  def facts(self) -> dict[str, Any]:
    """Address or file, and the name of the collection."""
    return {'uri': self.uri, 'collection': self._collection}

  @property
  def _collection(self):
    return self.state.get('collection', '')

  def _loaded(self, state):
    """A state with 'removing' as an array, int64, ascending, also where it is in a file."""
    for attempt in range(_READS):
      removing = state.get('removing', [])
      try:
        if isinstance(removing, (str, Mapping)):
          removing = self._read_removing(removing)
        return {**state, 'removing': np.asarray(removing, np.int64)}
      except FileNotFoundError:
        # It was removed, and the file with it, since index.json was read.
        if attempt == _READS - 1 or not self.folder.exists:
          raise
        state = self.folder.read()
    raise AssertionError('not reached')

  def _read_removing(self, removing: str | Mapping[str, str]) -> np.ndarray:
    """Positions from a file that the state names; earlier releases gave no checksum."""
    about = {'file': removing} if isinstance(removing, str) else removing
    name = about.get('file')
    if not isinstance(name, str) or not _REMOVING.fullmatch(name):
      raise ValueError(f'{name!r} is no name of a list of removed crops; index.json is damaged.')
    path = os.path.join(self.folder.directory, name)
    content = storage.read_bytes(path)
    try:
      if about.get('checksum', storage.checksum(content)) != storage.checksum(content):
        raise ValueError('its content does not fit its checksum')
      return np.load(io.BytesIO(content))
    except (ValueError, TypeError, EOFError) as error:
      raise ValueError(f"'{path}' is damaged: {error}. Restore it from a copy.") from error

  def _written(self, removing: list[int]) -> dict[str, str]:
    """The name and checksum of a file, on the disk on return, of positions."""
    name = f'removing-{secrets.token_hex(8)}.npy'
    content = io.BytesIO()
    np.save(content, np.asarray(removing, np.int64))
    storage.write_bytes(os.path.join(self.folder.directory, name), content.getvalue())
    return {'file': name, 'checksum': storage.checksum(content.getvalue())}

  def _answered(self, ask: Callable[[Mapping[str, Any]], _Answer]) -> _Answer:
    """What `ask(state)` returns; of the new state where this one's collection was replaced."""
    state = self.state
    try:
      return ask(state)
    except OSError:
      if not self._is_replaced(state):
        raise
    self.refresh()
    return ask(self.state)

  def _is_replaced(self, state):
    """Whether the index has another collection now."""
    if not self.folder.exists:
      return False
    return self.folder.read().get('collection') != state.get('collection')

  def _check_collection(self):
    if self._collection and not self._client.has_collection(self._collection):
      raise FileNotFoundError(
        f"Milvus at '{self.uri}' has no collection '{self._collection}', which the index "
        f"'{self.folder.directory}' speaks of. Is it the right server?"
      )

  def _create(self):
    from pymilvus import DataType

    name = f'{self.state["engine"]["prefix"]}_{secrets.token_hex(6)}'
    schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field('position', DataType.INT64, is_primary=True)
    schema.add_field('generation', DataType.INT64)
    schema.add_field('id', DataType.VARCHAR, max_length=_MAX_ID_BYTES)
    schema.add_field('fields', DataType.JSON)
    schema.add_field('marks', DataType.JSON)
    schema.add_field('row', DataType.JSON)
    schema.add_field('concept', DataType.FLOAT_VECTOR, dim=self.width)
    params = self._client.prepare_index_params()
    params.add_index('concept', index_type='FLAT', metric_type='IP')
    with self._clear():
      self._client.create_collection(
        name, schema=schema, index_params=params, consistency_level='Strong'
      )
    return name

  def _insert(self, part, state):
    """Inserts the rows of a segment, with the generation and positions of a state."""
    position = state['next_position']
    length = max(1, min(_BATCH, _BATCH_BYTES // (4 * self.width)))
    for concepts, rows in part.live_parts(length):
      data = []
      for concept, row in zip(concepts, rows):
        whole = row.to_json()
        fields = {**row.fields, **row.attributes}
        _check_limits(row, whole, fields)
        data.append(
          {
            'position': position,
            'generation': state['generation'],
            'id': row.id,
            'fields': fields,
            'marks': milvus_filters.marks(row.fields, row.attributes),
            'row': whole,
            'concept': concept.tolist(),
          }
        )
        position += 1
      with self._clear():
        self._client.insert(state['collection'], data)

  def _find(self, state, ids, *output):
    """Entities of the rows with these ids."""
    ids = sorted(set(ids))
    odd = {name for name in ids if control_character(name)}
    ids = [name for name in ids if name not in odd]
    entities = self._at(state, self._positions_of(state, odd), *output) if odd else []
    for start in range(0, len(ids), _BATCH):
      entities += self._query(state, f'id in {_list(ids[start : start + _BATCH])}', *output)
    return entities

  def _positions_of(self, state, ids: set[str]) -> list[int]:
    """Positions of rows with these ids, compared here: earlier releases took such ids.

    In Milvus' expressions a text with a control character equals nothing, itself included.
    """
    positions = []
    for start in range(0, state.get('next_position', 0) if ids else 0, _BATCH):
      window = f'position >= {start} and position < {start + _BATCH}'
      rows = self._query(state, window, 'id', 'position')
      positions += [row['position'] for row in rows if row['id'] in ids]
    return positions

  def _at(self, state, positions, *output):
    """Entities of the rows at these positions."""
    entities = []
    for start in range(0, len(positions), _BATCH):
      part = list(map(int, positions[start : start + _BATCH]))
      entities += self._query(state, f'position in {part}', 'position', *output)
    return entities

  def _query(self, state, expression, *output):
    """Entities that fulfil an expression, are committed, and are not to be removed."""
    if not state.get('collection'):
      return []
    with self._clear():
      entities = self._client.query(
        state['collection'],
        filter=f'{_visible(state)} and {expression}',
        output_fields=list({*output, 'position'}),
        limit=_MAX_RESULTS,
        consistency_level='Strong',
      )
    return [entity for entity in entities if not _within(state['removing'], entity['position'])]

  @contextlib.contextmanager
  def _clear(self):
    """Turns Milvus' errors into OSErrors that say where they come from."""
    try:
      yield
    except (self._exceptions, json.JSONDecodeError) as error:
      # The second is what a damaged file of Milvus Lite looks like.
      raise OSError(f"Milvus at '{self.uri}': {error}") from error


def _library():
  try:
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException
  except ImportError as error:
    raise ImportError(
      "The engine 'milvus' needs pymilvus, with which this environment was not set up: run "
      "`pip install 'tfreid[milvus]'`."
    ) from error
  return MilvusClient, MilvusException


def drop(folder: IndexDirectory, state: Mapping[str, Any]) -> None:
  """Drops all collections of an index that is kept elsewhere now.

  Args:
    folder: of the index.
    state: that it had.

  Raises:
    OSError: the server does not answer.
  """
  index = MilvusIndex(folder, {**state, 'collection': '', 'removing': []})
  try:
    index.recover()
  finally:
    index.close()


def _check_state(state: Mapping[str, Any], folder: IndexDirectory) -> None:
  """Refuses a state in which something stands that the engine would not have written.

  Raises:
    ValueError: the message says what.
  """
  about, collection = state['engine'], state.get('collection', '')
  removing = state.get('removing', [])
  wrong = (
    not isinstance(about.get('uri'), str)
    or not isinstance(about.get('prefix'), str)
    or not _PREFIX.fullmatch(about['prefix'])
    or not isinstance(collection, str)
    or (collection and not re.fullmatch(f'{about["prefix"]}_[0-9a-f]{{12}}', collection))
    or not isinstance(removing, (list, str, Mapping, np.ndarray))
    or (isinstance(removing, list) and not all(type(position) is int for position in removing))
    or (
      collection
      and not (
        all(type(state.get(name, 0)) is int for name in ('size', 'next_position'))
        and type(state.get('greatest_norm', 0)) in (int, float)
        and isinstance(state.get('fields', {}), Mapping)
      )
    )
  )
  if wrong:
    raise ValueError(
      f"The state of the index '{folder.directory}' is damaged, or no index of tfreid: it speaks "
      f'of the collection {collection!r:.80} of {dict(about)!s:.200}. Restore it from a copy.'
    )


def _visible(state: Mapping[str, Any]) -> str:
  """The expression that hides what is not committed.

  What is to be removed is passed over by the reader, for it may be any number of positions.
  """
  return f'generation <= {state["generation"]}'


def _within(positions: np.ndarray, position: int) -> bool:
  """Whether a position is among these, which ascend."""
  place = np.searchsorted(positions, position)
  return bool(place < len(positions) and positions[place] == position)


def _list(texts: Iterable[str]) -> str:
  return json.dumps(sorted(set(texts)), ensure_ascii=False)


def _check_limits(row: Row, *values: Mapping[str, Any]) -> None:
  if len(row.id.encode()) > _MAX_ID_BYTES:
    raise ValueError(
      f"The id '{row.id[:40]}…' has more than {_MAX_ID_BYTES} bytes, which is the most that Milvus "
      'holds here. Give the crop a shorter id in the manifest.'
    )
  if any(len(json.dumps(value).encode()) > _MAX_JSON_BYTES for value in values):
    raise ValueError(
      f"What the manifest says of '{row.id}' has more than {_MAX_JSON_BYTES} bytes, which is the "
      'most that Milvus holds.'
    )
