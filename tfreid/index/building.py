"""Filling an index: crops are embedded shard by shard, kept, and committed at once. Floor 4.

A shard that is embedded is on the disk and named in pending.json. The same command, run again after
whatever stopped it, finds it there and goes on; only with the last shard is the index replaced.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tfreid.index import engine, segment
from tfreid.index.engine import Engine
from tfreid.index.index import EmbeddedIndex
from tfreid.index.ledger import Ledger
from tfreid.index.segment import Row

# What to do with ids that the index has already.
EXISTING = ('refuse', 'skip', 'replace')

_READERS = 8
# How often a file is read that changes while it is read.
_ATTEMPTS = 3
_NAMED = 5  # corrupt files that a message names

# Called with (crops done, crops in all).
Progress = Callable[[int, int], None]


class Model(Protocol):
  """What makes concepts of crops; `Embedder` is one."""

  directory: str
  fingerprint: str
  size: int

  def embed_images(self, contents: Sequence[bytes]) -> np.ndarray:
    """float32 [B, E]; raises ValueError if one of the images cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class Report:
  """What was done.

  Attributes:
    added: number of crops.
    resumed: those of them that an earlier run had embedded.
    skipped: ids that the index had already.
    corrupt: path and reason of files that were left out.
  """

  added: int = 0
  resumed: int = 0
  skipped: int = 0
  corrupt: Sequence[tuple[str, str]] = ()


def build(
  directory: str,
  rows: Sequence[Row],
  model: Model,
  *,
  engine_name: str = 'embedded',
  uri: str = '',
  overwrite: bool = False,
  shard: tuple[int, int] | None = None,
  **options: Any,
) -> Report:
  """Makes an index.

  Args:
    directory: of the index.
    rows: the crops, from `manifest.read`.
    model: embeds them.
    engine_name: one of `engine.ENGINES`.
    uri: of Milvus; '' for a Milvus Lite file in the directory.
    overwrite: replace an index that exists, in one moment, when the new one is complete.
    shard: (i, n), where `rows` are one of n parts of a manifest; noted for `merge`.
    **options: of `add`: shard_rows, batch_size, skip_corrupt, progress.

  Raises:
    FileExistsError: there is an index already.
    ValueError: as `add`.
  """
  ledger = Ledger(directory)
  with ledger.lock():
    before = ledger.read() if ledger.exists else {}
    if before and not overwrite:
      raise FileExistsError(
        f"'{ledger.directory}' holds an index already. Use `tools/index.py add` to add crops, or "
        '--overwrite to replace it.'
      )
    if before and before['engine']['name'] != engine_name:
      raise FileExistsError(
        f"'{ledger.directory}' is an index of the engine '{before['engine']['name']}'; give "
        f"the one of '{engine_name}' a folder of its own."
      )
    ledger.clean()
    about = {'fingerprint': model.fingerprint, 'embedding_size': model.size}
    state = engine.new_state({**about, 'path': model.directory}, engine=engine_name, uri=uri)
    # By its prefix an index knows its collections on a server it shares with others, also those
    # that an attempt before this one did not finish.
    prefix = before.get('engine', {}).get('prefix') or ledger.read_pending().get('prefix')
    if prefix:
      state['engine']['prefix'] = prefix
    state['generation'] = before.get('generation', 0)
    if before.get('engine') == state['engine'] and 'collection' in before:
      state.update(collection=before['collection'], removing=before['removing'])
    found = engine.open_engine(ledger, state)
    try:
      return _fill(found, rows, model, replace=True, shard=shard, **options)
    finally:
      found.close()


def add(
  directory: str,
  rows: Sequence[Row],
  model: Model,
  *,
  existing: str = 'refuse',
  shard_rows: int = 4096,
  batch_size: int = 64,
  skip_corrupt: bool = False,
  progress: Progress | None = None,
) -> Report:
  """Adds crops to an index, all at once.

  Args:
    directory: of the index.
    rows: the crops.
    model: the one the index was built with.
    existing: with ids that the index has, 'refuse' to do anything, 'skip' them, or 'replace' them.
    shard_rows: crops that are kept together while the rest is embedded.
    batch_size: crops embedded together.
    skip_corrupt: leave out files that cannot be read or decoded, instead of stopping.
    progress: called after each batch.

  Raises:
    FileNotFoundError: there is no index.
    BlockingIOError: another process writes to it.
    ValueError: another model, ids that the index has, or files that cannot be read or decoded; the
      message names them.
  """
  if existing not in EXISTING:
    raise ValueError(f"Unknown choice '{existing}'; choose from {', '.join(EXISTING)}.")
  ledger = Ledger(directory)
  state = ledger.read()
  check_model(state, model)
  with ledger.lock():
    ledger.clean()
    found = engine.open_engine(ledger)
    try:
      there = found.rows([row.id for row in rows])
      if there and existing == 'refuse':
        raise ValueError(
          f"The index has {len(there)} of these ids already, '{next(iter(there))}' first. Use "
          '--existing=skip to keep them as they are, or --existing=replace.'
        )
      if existing == 'skip':
        rows = [row for row in rows if row.id not in there]
      report = _fill(
        found,
        rows,
        model,
        remove=list(there) if existing == 'replace' else (),
        shard_rows=shard_rows,
        batch_size=batch_size,
        skip_corrupt=skip_corrupt,
        progress=progress,
      )
    finally:
      found.close()
  return dataclasses.replace(report, skipped=len(there) if existing == 'skip' else 0)


def remove(directory: str, ids: Iterable[str], *, missing_ok: bool = False) -> int:
  """Removes crops from an index, all at once.

  The embedded engine keeps the removed numbers in its files until `compact`.

  Args:
    directory: of the index.
    ids: of the crops.
    missing_ok: do not mind ids that the index does not have.

  Returns:
    How many were removed.

  Raises:
    ValueError: the index does not have an id; nothing is removed.
  """
  ledger = Ledger(directory)
  ledger.read()
  with ledger.lock():
    ledger.clean()
    found = engine.open_engine(ledger)
    try:
      ids = list(dict.fromkeys(ids))
      there = found.rows(ids)
      missing = [name for name in ids if name not in there]
      if missing and not missing_ok:
        raise ValueError(
          f"The index has no crop '{missing[0]}' ({len(missing)} of {len(ids)} ids are not there). "
          'Nothing was removed.'
        )
      if there:
        found.commit([], remove=list(there), shard=found.state.get('shard'))
      return len(there)
    finally:
      found.close()


def compact(directory: str) -> None:
  """Writes anew what holds removed crops, so that nothing of them remains in the index's files.

  Raises:
    ValueError: the engine is not the embedded one; Milvus compacts by itself.
  """
  ledger = Ledger(directory)
  state = ledger.read()
  if state['engine']['name'] != 'embedded':
    raise ValueError('Only the embedded engine is compacted; Milvus does it by itself.')
  with ledger.lock():
    ledger.clean()
    found = EmbeddedIndex(ledger, ledger.read())
    found.compact()


def merge(directory: str, parts: Sequence[str]) -> int:
  """Joins indexes that were built apart, for example on several machines, into a new one.

  Args:
    directory: of the new index.
    parts: directories of indexes of the embedded engine, built with the same model. Parts of one
      manifest (`build(shard=(i, n))`) are put in its order, and all n of them must be there.

  Returns:
    The number of crops.

  Raises:
    FileExistsError: there is an index already.
    ValueError: different models, a missing or doubled part, or an id that occurs twice.
  """
  ledger = Ledger(directory)
  sources = []
  for part in parts:
    source = Ledger(part)
    state = source.read()
    if state['engine']['name'] != 'embedded':
      raise ValueError(
        f"'{part}' is an index of the engine '{state['engine']['name']}'; only "
        'embedded ones can be merged.'
      )
    sources.append(EmbeddedIndex(source, state))
  if not sources:
    raise ValueError('Name the indexes to merge.')
  models = {source.state['model']['fingerprint'] for source in sources}
  if len(models) > 1:
    raise ValueError(
      'The parts were built with different models, so their scores do not compare. Embed them with '
      'one model.'
    )
  _order(sources)
  with ledger.lock():
    if ledger.exists:
      raise FileExistsError(f"'{ledger.directory}' holds an index already. Name another folder.")
    target = EmbeddedIndex(ledger, engine.new_state(sources[0].state['model']))
    ledger.clean()
    entries = [entry for source in sources for entry in target.import_segments(source)]
    joined = EmbeddedIndex(ledger, {**target.state, 'segments': entries})
    doubled = [problem for problem in joined.problems() if problem.startswith('The id')]
    if doubled:
      raise ValueError(f'The parts cannot be joined. {doubled[0]} Remove all but one.')
    target.commit(entries)
    return target.size


def check_model(state: Mapping[str, Any], model: Model) -> None:
  """Refuses a model that an index was not built with.

  Raises:
    ValueError: the fingerprints differ.
  """
  built_with = state['model']
  if built_with['fingerprint'] != model.fingerprint:
    raise ValueError(
      f'The index was built with another model ({built_with["fingerprint"][:12]}, then at '
      f"'{built_with['path']}') than '{model.directory}' ({model.fingerprint[:12]}): their numbers "
      'do not compare. Give that model, or build an index with this one.'
    )


def _order(sources: list[EmbeddedIndex]) -> None:
  """Puts the parts of one manifest in its order; others stay as they were given."""
  shards = [source.state.get('shard') for source in sources]
  if not any(shards):
    return
  counts = {shard[1] for shard in shards if shard}
  numbers = sorted(shard[0] for shard in shards if shard)
  if not all(shards) or len(counts) > 1 or numbers != list(range(1, min(counts) + 1)):
    said = ', '.join(f'{shard[0]}/{shard[1]}' if shard else 'no part' for shard in shards)
    raise ValueError(
      f'These are not all the parts of one manifest: {said}. Give each of its parts once.'
    )
  sources.sort(key=lambda source: source.state['shard'][0])


def _fill(
  found: Engine,
  rows: Sequence[Row],
  model: Model,
  *,
  replace: bool = False,
  remove: Sequence[str] = (),
  shard: tuple[int, int] | None = None,
  shard_rows: int = 4096,
  batch_size: int = 64,
  skip_corrupt: bool = False,
  progress: Progress | None = None,
) -> Report:
  """Embeds rows, shard by shard, and commits them; needs the lock."""
  ledger = found.ledger
  _check_ids(rows)
  pending = ledger.read_pending()
  generation = ledger.read()['generation'] if ledger.exists else 0
  if pending.get('generation') != generation or pending.get('fingerprint') != model.fingerprint:
    pending = {'generation': generation, 'fingerprint': model.fingerprint, 'shards': {}}
  pending['prefix'] = found.state['engine'].get('prefix')
  entries, corrupt, done, resumed = [], [], 0, 0
  for start in range(0, len(rows), shard_rows):
    part = rows[start : start + shard_rows]
    key = _key(part)
    kept = pending['shards'].get(key)
    if kept is None or (kept['corrupt'] and not skip_corrupt):
      report = None if progress is None else _shifted(progress, start, len(rows))
      kept = _embed_shard(ledger, part, model, batch_size, skip_corrupt, report)
      pending['shards'][key] = kept
      ledger.write_pending(pending)
    else:
      resumed += kept['segment']['rows'] if kept['segment'] else 0
      if progress:
        progress(start + len(part), len(rows))
    corrupt += [(path, reason) for path, reason in kept['corrupt']]
    if kept['segment']:
      entries.append(kept['segment'])
      done += kept['segment']['rows']
  if rows and not done:
    raise ValueError(_complaint(corrupt, 'None of the files can be read.'))
  if done or remove or replace:
    found.commit(entries, remove=remove, replace=replace, shard=shard)
  return Report(added=done, resumed=resumed, corrupt=tuple(corrupt))


def _check_ids(rows: Sequence[Row]) -> None:
  seen = set()
  for row in rows:
    if not row.id:
      raise ValueError(f"The crop '{row.path}' has an empty id.")
    if row.id in seen:
      raise ValueError(f"The id '{row.id}' occurs twice. Ids must be unique.")
    seen.add(row.id)


def _key(rows: Sequence[Row]) -> str:
  """What a shard is known by: its rows, and size and time of their files."""
  state = hashlib.blake2b(digest_size=16)
  for row in rows:
    try:
      status = os.stat(row.path)
      file = [status.st_size, status.st_mtime_ns]
    except OSError:
      file = None
    state.update(json.dumps([row.to_json(), file]).encode() + b'\n')
  return state.hexdigest()


def _embed_shard(ledger, rows, model, batch_size, skip_corrupt, progress) -> dict[str, Any]:
  """Writes a segment of a shard; returns its part of pending.json."""
  concepts, kept, corrupt = [np.empty((0, model.size), np.float32)], [], []
  for batch, contents, unread in _read(rows, batch_size):
    corrupt += unread
    vectors, positions, bad = _embed(model, contents)
    concepts.append(vectors)
    kept += [dataclasses.replace(batch[i], digest=segment.digest(contents[i])) for i in positions]
    corrupt += [(batch[i].path, reason) for i, reason in bad]
    if progress:
      progress(len(kept) + len(corrupt))
  if corrupt and not skip_corrupt:
    raise ValueError(_complaint(corrupt, 'Nothing was committed.'))
  entry = None
  if kept:
    parts = [(np.concatenate(concepts), kept)]
    entry = segment.write(ledger.segments, parts, size=len(kept), width=model.size)
  return {'segment': entry, 'corrupt': corrupt}


def _read(rows, batch_size) -> Iterator[tuple[list[Row], list[bytes], list[tuple[str, str]]]]:
  """Batches with the files' contents, one batch ahead; files that cannot be read by themselves."""

  def contents(row):
    try:
      return _contents(row.path)
    except OSError as error:
      return (row.path, error.strerror or str(error))

  with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    ahead = [readers.submit(contents, row) for row in batches[0]] if batches else []
    for i, batch in enumerate(batches):
      current = ahead
      ahead = (
        [readers.submit(contents, row) for row in batches[i + 1]] if i + 1 < len(batches) else []
      )
      read = [future.result() for future in current]
      yield (
        [row for row, got in zip(batch, read) if isinstance(got, bytes)],
        [got for got in read if isinstance(got, bytes)],
        [got for got in read if not isinstance(got, bytes)],
      )


def _contents(path: str) -> bytes:
  """What is in a file, at one moment.

  Raises:
    OSError: it cannot be read, is no file, or does not stop changing.
  """
  for _ in range(_ATTEMPTS):
    # Not to wait for a writer, should it be a pipe.
    with open(path, 'rb', opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
      before = os.fstat(file.fileno())
      if not stat.S_ISREG(before.st_mode):
        raise OSError('it is not a file')
      contents = file.read()
      after = os.fstat(file.fileno())
    if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(contents)):
      return contents
  raise OSError('it changes while it is read')


def _embed(model, contents) -> tuple[np.ndarray, list[int], list[tuple[int, str]]]:
  """Concepts, the positions of what was embedded, and positions and reasons of what could not be.

  A model refuses a batch for one bad image and does not say which, so halves are tried.
  """
  vectors, good, bad = [np.empty((0, model.size), np.float32)], [], []
  open_ = [(0, len(contents))] if contents else []
  while open_:
    start, stop = open_.pop()
    try:
      vectors.append(np.asarray(model.embed_images(contents[start:stop]), np.float32))
      good += range(start, stop)
    except ValueError as error:
      if stop - start == 1:
        bad.append((start, str(error)))
      else:
        middle = (start + stop) // 2
        open_ += [(middle, stop), (start, middle)]
  return np.concatenate(vectors), good, bad


def _complaint(corrupt, consequence) -> str:
  named = '; '.join(f'{path} ({reason})' for path, reason in corrupt[:_NAMED])
  more = f'; and {len(corrupt) - _NAMED} more' if len(corrupt) > _NAMED else ''
  count = '1 file' if len(corrupt) == 1 else f'{len(corrupt)} files'
  return (
    f'{count} cannot be read or decoded: {named}{more}. {consequence} --skip_corrupt leaves '
    'such files out.'
  )


def _shifted(progress: Progress, start: int, total: int) -> Callable[[int], None]:
  return lambda done: progress(start + done, total)
