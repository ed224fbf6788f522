"""Filling an index: crops are embedded shard by shard, kept, and committed at once. Floor 4.

A shard that is embedded is on the disk and named in pending.jsonl. The same command, run again
after whatever stopped it, finds it there and goes on; only with the last shard is the index
replaced.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tfreid import storage
from tfreid.index import engines, manifest, segment, trust
from tfreid.index.directory import IndexDirectory
from tfreid.index.engine import Engine, Progress
from tfreid.index.segment import Row
from tfreid.text import spellings

# What to do with ids that the index has already.
EXISTING = ('refuse', 'skip', 'replace')

_READERS = 8
# How often a file is read that changes while it is read.
_ATTEMPTS = 3
_NAMED = 5  # corrupt files that a message names

# Called with (crops done, crops in all, those of the done that an earlier run embedded).
Finished = Callable[[int, int, int], None]


class Known(Protocol):
  """What is known of a model without loading it."""

  directory: str
  fingerprint: str


class Model(Protocol):
  """What makes concepts of crops; `Embedder` is one."""

  directory: str
  fingerprint: str
  size: int

  def embed_images(self, contents: Sequence[bytes]) -> np.ndarray:
    """float32 [B, E]; raises ValueError if one of the images cannot be decoded.

    Several threads may call it at the same time.
    """


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
    engine_name: one of `engines.NAMES`.
    uri: of Milvus; '' for a Milvus Lite file in the directory.
    overwrite: replace an index that exists, in one moment, when the new one is complete.
    shard: (i, n), where `rows` are one of n parts of a manifest; noted for `merge`.
    **options: of `add`: shard_rows, batch_size, in_flight, skip_corrupt, progress, finished.

  Raises:
    FileExistsError: there is an index already.
    ValueError: as `add`.
  """
  folder = IndexDirectory(directory)
  with folder.lock():
    before = folder.read() if folder.exists else {}
    if before and not overwrite:
      raise FileExistsError(
        f"'{folder.directory}' holds an index already. Use `tfreid index add` to add crops, or "
        '--overwrite to replace it.'
      )
    if before and before['engine']['name'] != engine_name:
      raise FileExistsError(
        f"'{folder.directory}' is an index of the engine '{before['engine']['name']}'; give "
        f"the one of '{engine_name}' a folder of its own."
      )
    folder.clean()
    about = {'fingerprint': model.fingerprint, 'embedding_size': model.size}
    new = engines.new_state({**about, 'path': model.directory}, engine=engine_name, uri=uri)
    trust.remember_place(new['engine'].get('uri', ''))
    kind = engines.engine_class(engine_name)
    state = kind.begin(folder, new, before=before, pending=folder.read_pending())
    index = kind(folder, state)
    try:
      report = _fill(index, rows, model, replace=True, shard=shard, **options)
    finally:
      index.close()
    trust.remember_model(state['model'])
  kind.settle(folder, before=before, state=state)
  return report


def add(
  directory: str,
  rows: Sequence[Row],
  model: Model,
  *,
  existing: str = 'refuse',
  shard_rows: int = 4096,
  batch_size: int = 64,
  in_flight: int = 2,
  skip_corrupt: bool = False,
  progress: Progress | None = None,
  finished: Finished | None = None,
) -> Report:
  """Adds crops to an index, all at once.

  A part of a manifest (`build(shard=(i, n))`) stays one: what is added stands at its end, also in
  what `merge` makes of it.

  Args:
    directory: of the index.
    rows: the crops.
    model: the one the index was built with.
    existing: with ids that the index has, 'refuse' to do anything, 'skip' them, or 'replace' them.
    shard_rows: crops that are kept together while the rest is embedded.
    batch_size: crops embedded together.
    in_flight: batches that are embedded at the same time: the images of one are decoded while
      another is in the network. Each takes the memory of its activations; the concepts are the same
      for any number.
    skip_corrupt: leave out files that cannot be read or decoded, instead of stopping.
    progress: called after each batch.
    finished: called after each shard, when it is on the disk.

  Raises:
    FileNotFoundError: there is no index.
    BlockingIOError: another process writes to it.
    ValueError: another model, ids that the index has, or files that cannot be read or decoded; the
      message names them.
  """
  if existing not in EXISTING:
    raise ValueError(f"Unknown choice '{existing}'; choose from {', '.join(EXISTING)}.")
  folder = IndexDirectory(directory)
  state = folder.read()
  check_model(state, model)
  with folder.lock():
    folder.clean()
    index = engines.open_engine(folder)
    try:
      there = index.rows([row.id for row in rows])
      if there and existing == 'refuse':
        raise ValueError(
          f"The index has {len(there)} of these ids already, '{next(iter(there))}' first. Use "
          '--existing=skip to keep them as they are, or --existing=replace.'
        )
      if existing == 'skip':
        rows = [row for row in rows if row.id not in there]
      report = _fill(
        index,
        rows,
        model,
        remove=list(there) if existing == 'replace' else (),
        shard=index.state.get('shard'),
        shard_rows=shard_rows,
        batch_size=batch_size,
        in_flight=in_flight,
        skip_corrupt=skip_corrupt,
        progress=progress,
        finished=finished,
      )
    finally:
      index.close()
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
  folder = IndexDirectory(directory)
  folder.read()
  with folder.lock():
    folder.clean()
    index = engines.open_engine(folder)
    try:
      ids = list(dict.fromkeys(ids))
      there = index.rows([form for name in ids for form in spellings(name)])
      missing = [name for name in ids if not any(form in there for form in spellings(name))]
      if missing and not missing_ok:
        raise ValueError(
          f"The index has no crop '{missing[0]}' ({len(missing)} of {len(ids)} ids are not there). "
          'Nothing was removed.'
        )
      if there:
        index.commit([], remove=list(there), shard=index.state.get('shard'))
      return len(there)
    finally:
      index.close()


def compact(directory: str) -> None:
  """Writes anew what holds removed crops, so that nothing of them remains in the index's files.

  Raises:
    ValueError: the engine erases by itself what was removed.
  """
  folder = IndexDirectory(directory)
  state = folder.read()
  if not engines.engine_class(state['engine']['name']).can_compact:
    raise ValueError(
      f"The engine '{state['engine']['name']}' is not compacted: it erases by itself what was "
      'removed.'
    )
  with folder.lock():
    folder.clean()
    with contextlib.closing(engines.open_engine(folder)) as index:
      index.compact()


def merge(
  directory: str,
  parts: Sequence[str],
  *,
  engine_name: str = 'embedded',
  uri: str = '',
  progress: Callable[[str, int, int], None] | None = None,
) -> int:
  """Joins indexes that were built apart into a new one; a single one moves to another engine.

  Nothing is embedded again: concepts, ids, fields, attributes and the model go along. All crops are
  brought below `directory` as segments and looked at, a segment at a time; files of the same file
  system are linked. Milvus is filled from there, and they are removed. The new index is there in
  one moment; stopped before that, there is none, and the same call begins again.

  Args:
    directory: of the new index.
    parts: directories of indexes of any engine, built with the same model. Parts of one manifest
      (`build(shard=(i, n))`) are put in its order, and all n of them must be there.
    engine_name: of the new index, one of `engines.NAMES`.
    uri: of Milvus; '' for a Milvus Lite file in the directory.
    progress: called with what is done ('Reading', 'Checking' or 'Filling Milvus'), of how many
      crops, of how many in all.

  Returns:
    The number of crops.

  Raises:
    FileExistsError: there is an index already, or a build that is not finished.
    ValueError: different models, a missing or doubled part, an id that occurs twice, a damaged
      part, or one that changed meanwhile.
    OSError: a part or the new index cannot be reached, read or written.
  """
  if not parts:
    raise ValueError('Name the indexes to merge.')
  folder = IndexDirectory(directory)
  with contextlib.ExitStack() as opened:
    sources = [
      # Looked at below, when they are here.
      opened.enter_context(
        contextlib.closing(engines.open_engine(IndexDirectory(part), check=False))
      )
      for part in parts
    ]
    models = {source.state['model']['fingerprint'] for source in sources}
    if len(models) > 1:
      raise ValueError(
        'The parts were built with different models, so their scores do not compare. Embed them '
        'with one model.'
      )
    _order(sources)
    new = engines.new_state(sources[0].state['model'], engine=engine_name, uri=uri)
    trust.remember_place(new['engine'].get('uri', ''))
    with folder.lock():
      if folder.exists:
        raise FileExistsError(f"'{folder.directory}' holds an index already. Name another folder.")
      pending = folder.read_pending()
      if pending.get('shards'):
        raise FileExistsError(
          f"'{folder.directory}' holds crops of a build that is not finished. Finish it, or name "
          'another folder.'
        )
      folder.clean()
      entries = _staged(folder, sources, progress or (lambda *_: None))
      kind = engines.engine_class(engine_name)
      state = kind.begin(folder, new, before={}, pending=pending)
      target = opened.enter_context(contextlib.closing(kind(folder, state)))
      if target.attempt():
        folder.write_pending(_attempt(target, state['model']['fingerprint'], 0), keep_shards=False)
      filling = f'Filling {engine_name.capitalize()}'
      target.commit(entries, progress=progress and functools.partial(progress, filling))
      return target.size


def _staged(
  folder: IndexDirectory, sources: Sequence[Engine], progress: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
  """Entries of all crops of some indexes, brought below the folder of another and looked at.

  Raises:
    ValueError: one is damaged, or an id occurs twice.
  """
  entries: list[dict[str, Any]] = []
  total = sum(source.size for source in sources)
  progress('Reading', 0, total)
  for source in sources:
    entries += source.stage(folder)
    progress('Reading', sum(entry['rows'] for entry in entries), total)
  progress('Checking', 0, total)
  problems = segment.problems([segment.Segment(folder.segments, entry) for entry in entries])
  if problems:
    advice = ' Remove all but one.' if problems[0].startswith('The id') else ''
    raise ValueError(f'The parts cannot be joined. {problems[0]}{advice}')
  return entries


def _attempt(index: Engine, fingerprint: str, generation: int) -> dict[str, Any]:
  """What pending.json says of an unfinished build, beside its shards."""
  return {'generation': generation, 'fingerprint': fingerprint, **index.attempt()}


def check_model(state: Mapping[str, Any], model: Known) -> None:
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


def _order(sources: list[Engine]) -> None:
  """Puts the parts of one manifest in its order; others stay as they were given."""
  shards = [source.state.get('shard') for source in sources]
  if not any(shards):
    return
  counts = {shard[1] for shard in shards if shard}
  numbers = sorted(shard[0] for shard in shards if shard)
  if not all(shards) or len(counts) > 1 or numbers != list(range(1, min(counts) + 1)):
    listed = ', '.join(f'{shard[0]}/{shard[1]}' if shard else 'no part' for shard in shards)
    raise ValueError(
      f'These are not all the parts of one manifest: {listed}. Give each of its parts once.'
    )
  sources.sort(key=lambda source: source.state['shard'][0])


def _fill(
  index: Engine,
  rows: Sequence[Row],
  model: Model,
  *,
  replace: bool = False,
  remove: Sequence[str] = (),
  shard: Sequence[int] | None = None,
  shard_rows: int = 4096,
  batch_size: int = 64,
  in_flight: int = 2,
  skip_corrupt: bool = False,
  progress: Progress | None = None,
  finished: Finished | None = None,
) -> Report:
  """Embeds rows, shard by shard, and commits them; needs the lock."""
  folder = index.folder
  _check_ids(rows)
  generation = folder.read()['generation'] if folder.exists else 0
  about = _attempt(index, model.fingerprint, generation)
  pending = folder.read_pending()
  known = pending.pop('shards', {})
  same = all(pending.get(name) == about[name] for name in ('generation', 'fingerprint'))
  known = known if same else {}
  entries, corrupt, done, resumed = [], [], 0, 0
  for start in range(0, len(rows), shard_rows):
    part = rows[start : start + shard_rows]
    key = _key(part)
    kept = known.get(key)
    if kept is None or (kept['corrupt'] and not skip_corrupt):
      report = None if progress is None else _shifted(progress, start, len(rows))
      kept = _embed_shard(folder, part, model, batch_size, in_flight, skip_corrupt, report)
      if pending != about:
        folder.write_pending(about, keep_shards=same)
        pending, same = about, True
      folder.add_pending(key, kept)
    else:
      resumed += kept['segment']['rows'] if kept['segment'] else 0
      if progress:
        progress(start + len(part), len(rows))
    corrupt += [(path, reason) for path, reason in kept['corrupt']]
    if kept['segment']:
      entries.append(kept['segment'])
      done += kept['segment']['rows']
    if finished:
      finished(start + len(part), len(rows), resumed)
  if rows and not done:
    raise ValueError(_complaint(corrupt, 'None of the files can be read.'))
  if done or remove or replace:
    index.commit(entries, remove=remove, replace=replace, shard=shard)
  return Report(added=done, resumed=resumed, corrupt=tuple(corrupt))


def _check_ids(rows: Sequence[Row]) -> None:
  for row in rows:
    if not row.id:
      raise ValueError(f"The crop '{row.path}' has an empty id.")
    try:
      segment.check_row(row)
    except ValueError as error:
      raise ValueError(f"The crop '{row.path}': {error}") from error
  twice = manifest.doubled(rows)
  if twice:
    raise ValueError(f"The id '{rows[twice[0]].id}' occurs twice. Ids must be unique.")


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


def _embed_shard(
  folder, rows, model, batch_size, in_flight, skip_corrupt, progress
) -> dict[str, Any]:
  """Writes a segment of a shard; returns what `IndexDirectory.add_pending` keeps of it."""
  concepts, kept, corrupt = [np.empty((0, model.size), np.float32)], [], []
  for vectors, good, bad in _embedded(model, rows, batch_size, in_flight):
    concepts.append(vectors)
    kept += good
    corrupt += bad
    if progress:
      progress(len(kept) + len(corrupt))
  if corrupt and not skip_corrupt:
    raise ValueError(_complaint(corrupt, 'Nothing was committed.'))
  entry = None
  if kept:
    parts = [(np.concatenate(concepts), kept)]
    entry = segment.write(folder.segments, parts, size=len(kept), width=model.size)
  return {'segment': entry, 'corrupt': corrupt}


def _embedded(
  model, rows, batch_size, in_flight
) -> Iterator[tuple[np.ndarray, list[Row], list[tuple[str, str]]]]:
  """Batches in their order: concepts, their rows with digests, files that could not be embedded.

  A model decodes its images before it computes, so some cores or the GPU would wait: `in_flight`
  batches are given to it at a time. One more is read and waits, one more is being read.
  """

  def embed(batch, contents, unread):
    vectors, positions, bad = _embed(model, contents)
    return (
      vectors,
      [dataclasses.replace(batch[i], digest=segment.digest(contents[i])) for i in positions],
      [*unread, *((batch[i].path, reason) for i, reason in bad)],
    )

  workers = concurrent.futures.ThreadPoolExecutor(in_flight)
  try:
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for read in _read(rows, batch_size):
      waiting.append(workers.submit(embed, *read))
      if len(waiting) > in_flight:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    workers.shutdown(cancel_futures=True)


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
    with storage.open_regular(path) as file:
      before = os.fstat(file.fileno())
      contents = file.read()
      after = os.fstat(file.fileno())
    if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, len(contents)):
      return contents
  raise OSError('it changes while it is read')


def _embed(model, contents) -> tuple[np.ndarray, list[int], list[tuple[int, str]]]:
  """Concepts, the positions of what was embedded, and positions and reasons of what could not be.

  A model refuses a batch for one bad image and does not say which, so halves are tried.
  """
  vectors, bad = [np.empty((0, model.size), np.float32)], []
  good: list[int] = []
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
