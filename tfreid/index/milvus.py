"""Milvus as the engine: Milvus Lite in a file, or a server or cluster by its address. Floor 4.

Needs the extra `milvus`. The folder of the index keeps index.json, the lock and unfinished shards;
crops live in a collection. Milvus has no transactions, so a commit is made of what it has:

* Each crop carries the generation that added it, and a search asks for generations up to the one in
  index.json. Crops of a commit that did not come to its end are not seen, and the next writer
  removes them.
* What is to be removed is listed in index.json in the same commit, is not answered from then on,
  and is deleted afterwards, by the next writer if need be.

Milvus finds candidates by exhaustive search (index FLAT) and the filter's expression; they are
ranked by the same last score as everywhere, and more are fetched until none left out could matter.

Where the server asks for one, the token is read from the environment variable MILVUS_TOKEN.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import secrets
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfreid.index import engine, filters
from tfreid.index.engine import Engine, Match
from tfreid.index.ledger import Ledger
from tfreid.index.segment import Row, Segment

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
# Rows per request.
_BATCH = 1000
# Bytes of the vectors in one request; a gRPC message may have 64 MiB.
_BATCH_BYTES = 1 << 23


# How many indexes of this process are open at an address, or in a Milvus Lite file: with the last
# one the connection ends, and the server of the file.
_open: collections.Counter[str] = collections.Counter()


class MilvusIndex(Engine):
  """An index in a collection of Milvus."""

  def __init__(self, ledger: Ledger, state: Mapping[str, Any]):
    """Connects.

    Args:
      ledger: the folder of the index.
      state: from `ledger.read()`, or a new one.

    Raises:
      ImportError: pymilvus is not installed.
      OSError: there is no connection.
    """
    super().__init__(ledger, state)
    client, self._exceptions = _library()
    about = self.state['engine']
    self.uri = about['uri'] or os.path.join(ledger.directory, 'milvus.db')
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
    """The best crops of each query; see `Engine.search`."""
    queries = self._checked(queries, top_k, where)
    if top_k > _MAX_RESULTS - _SPARE:
      raise ValueError(f'Milvus answers {_MAX_RESULTS - _SPARE} results at most, not {top_k}.')
    if not self.size:
      return [[] for _ in queries]
    parts = [self._visible()]
    if where is not None:
      parts.append(filters.to_milvus(where))
    if exclude:
      parts.append(f'id not in {_list(exclude)}')
    expression = ' and '.join(f'({part})' for part in parts)
    rooms = 2 * engine.rounding(queries, self.state['greatest_norm'])
    answers = []
    for query, room in zip(queries, rooms):
      found = self._best(query, top_k, expression, room)
      answers.append([match for match in found if min_score is None or match.score >= min_score])
    return answers

  def _best(self, query, top_k, expression, room):
    limit = top_k + _SPARE
    while True:
      with self._clear():
        (hits,) = self._client.search(
          self._collection,
          data=[query.tolist()],
          limit=limit,
          filter=expression,
          output_fields=['position', 'row', 'concept'],
          search_params={'metric_type': 'IP'},
          consistency_level='Strong',
        )
      if not hits:
        return []
      scanned = -np.sort([-hit['distance'] for hit in hits])
      # As in `EmbeddedIndex`: what Milvus left out has a < t - 2 eps, so it is not among the best.
      complete = len(hits) < limit or scanned[-1] < scanned[top_k - 1] - room
      if complete or limit == _MAX_RESULTS:
        break
      limit = min(4 * limit, _MAX_RESULTS)
    entities = [hit['entity'] for hit in hits]
    concepts = np.asarray([entity['concept'] for entity in entities], np.float32)
    positions = np.asarray([entity['position'] for entity in entities], np.int64)
    order, scores = engine.best(concepts, positions, query, top_k)
    return [
      Match(Row.from_json(entities[i]['row']), float(score)) for i, score in zip(order, scores)
    ]

  def rows(self, ids: Sequence[str]) -> dict[str, Row]:
    """The rows with these ids."""
    return {entity['row']['id']: Row.from_json(entity['row']) for entity in self._find(ids, 'row')}

  def concepts(self, ids: Sequence[str]) -> np.ndarray:
    """Concepts, float32 [M, E], of these ids."""
    found = {entity['id']: entity['concept'] for entity in self._find(ids, 'id', 'concept')}
    missing = [name for name in ids if name not in found]
    if missing:
      raise KeyError(f"The index has no crop '{missing[0]}'.")
    return np.asarray([found[name] for name in ids], np.float32).reshape(len(ids), self.width)

  def parts(self) -> Iterator[tuple[np.ndarray, list[Row]]]:
    """All concepts and rows in the order of adding."""
    for start in range(0, self.state.get('next_position', 0), _BATCH):
      expression = f'{self._visible()} and position >= {start} and position < {start + _BATCH}'
      found = self._query(expression, 'position', 'row', 'concept')
      found.sort(key=lambda entity: entity['position'])
      if found:
        concepts = np.asarray([entity['concept'] for entity in found], np.float32)
        yield concepts, [Row.from_json(entity['row']) for entity in found]

  def commit(
    self,
    entries: Sequence[Mapping[str, Any]],
    *,
    remove: Iterable[str] = (),
    replace: bool = False,
    shard: Sequence[int] | None = None,
  ) -> None:
    """Adds the rows of segments and removes others, all at once; see `Engine.commit`."""
    self.recover()
    state = {**self.state, 'generation': self.state['generation'] + 1}
    state.pop('shard', None)
    if shard:
      state['shard'] = list(shard)
    removing = []
    if replace or not self._collection:
      state.update(size=0, next_position=0, greatest_norm=0.0, fields={})
      state['collection'] = self._create()
    else:
      removing = [entity['position'] for entity in self._find(list(remove), 'position')]
    for entry in entries:
      self._insert(Segment(self.ledger.segments, entry), state)
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
    state['removing'] = removing
    state['size'] -= len(removing)
    self.ledger.write(state)
    self.state = self.ledger.read()
    self.recover()
    self.ledger.clean()

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
    removing = self.state.get('removing', [])
    for start in range(0, len(removing), _BATCH):
      with self._clear():
        self._client.delete(
          self._collection, filter=f'position in {removing[start : start + _BATCH]}'
        )
    if removing:
      self.ledger.write({**self.state, 'removing': []})
      self.state = self.ledger.read()

  def problems(self) -> list[str]:
    """What is wrong with the collection: its number of crops, their ids, their concepts."""
    found, count, names = [], 0, set()
    for concepts, rows in self.parts():
      count += len(rows)
      for row, finite in zip(rows, np.isfinite(concepts).all(axis=1)):
        if row.id in names:
          found.append(f"The id '{row.id}' occurs more than once.")
        if not finite:
          found.append(f"The concept of '{row.id}' is not finite.")
        names.add(row.id)
    if count != self.size:
      found.append(
        f"The collection '{self._collection}' has {count} crops; index.json says {self.size}."
      )
    return found

  def refresh(self) -> bool:
    """Takes over what was committed since; returns whether that was anything."""
    state = self.ledger.read()
    changed = state['generation'] != self.state['generation']
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

  @property
  def _collection(self):
    return self.state.get('collection', '')

  def _visible(self):
    """The expression that hides what is not committed, and what is to be removed."""
    expression = f'generation <= {self.state["generation"]}'
    if self.state.get('removing'):
      expression += f' and position not in {self.state["removing"]}'
    return expression

  def _check_collection(self):
    if self._collection and not self._client.has_collection(self._collection):
      raise FileNotFoundError(
        f"Milvus at '{self.uri}' has no collection '{self._collection}', which the index "
        f"'{self.ledger.directory}' speaks of. Is it the right server?"
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
            'marks': filters.marks(row.fields, row.attributes),
            'row': whole,
            'concept': concept.tolist(),
          }
        )
        position += 1
      with self._clear():
        self._client.insert(state['collection'], data)

  def _find(self, ids, *output):
    """Entities of the rows with these ids."""
    ids = sorted(set(ids))
    found = []
    for start in range(0, len(ids), _BATCH):
      names = _list(ids[start : start + _BATCH])
      found += self._query(f'{self._visible()} and id in {names}', *output)
    return found

  def _query(self, expression, *output):
    if not self._collection:
      return []
    with self._clear():
      return list(
        self._client.query(
          self._collection,
          filter=expression,
          output_fields=list(output),
          limit=_MAX_RESULTS,
          consistency_level='Strong',
        )
      )

  @contextlib.contextmanager
  def _clear(self):
    """Turns Milvus' errors into OSErrors that say where they come from."""
    try:
      yield
    except self._exceptions as error:
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
