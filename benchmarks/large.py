"""An index of more crops than fit into memory: what a search takes, and that its answer is exact.

  python benchmarks/large.py --rows=50000000 --folder=/data/large     (38 GB on the disk)

Concepts are random unit vectors. The index is written as `tfreid index build` writes one, segment
by segment, and stays in the folder: with the same arguments it is not written again. It is searched
from its files, by the copy in 8 bits. Then the answers to some queries are compared with those of a
scan of all float32 concepts, row by row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping

import numpy as np

from tfreid.index import engine, engines, filters, segment
from tfreid.index.directory import IndexDirectory
from tfreid.index.segment import Row

WIDTH, TOP_K = 128, 100
CAMERAS = 20
_PART = 16384
_DAYS = 50
# A twentieth, and a thousandth.
_FILTERS = {'camera': 'camera == 7', 'camera_and_day': 'camera == 7 and day == 3'}


def _parts(start: int, stop: int, seed: int) -> Iterator[tuple[np.ndarray, list[Row]]]:
  """Concepts and rows from `start` to `stop`, the same whenever they are asked for."""
  for first in range(start, stop, _PART):
    count = min(_PART, stop - first)
    vectors = np.random.default_rng([seed, first]).standard_normal((count, WIDTH), np.float32)
    vectors /= np.sqrt(np.einsum('ne,ne->n', vectors, vectors))[:, np.newaxis]
    yield (
      vectors,
      [
        Row(f'{i:09d}', fields={'camera': i % CAMERAS, 'day': i // CAMERAS % _DAYS})
        for i in range(first, first + count)
      ],
    )


def make(folder: str, rows: int) -> float:
  """Writes the index; returns crops per second, 0 if it is there already."""
  directory = _directory(folder, rows)
  about = {'path': '', 'fingerprint': 'none', 'embedding_size': WIDTH}
  with directory.lock():
    state = directory.read() if directory.exists else engines.new_state(about)
    index = engines.open_engine(directory, state, check=False)
    begun, started = index.size, time.perf_counter()
    for start in range(begun, rows, segment.MAX_ROWS):
      stop = min(start + segment.MAX_ROWS, rows)
      parts = _parts(start, stop, 0)
      entry = segment.write(directory.segments, parts, size=stop - start, width=WIDTH)
      index.commit([entry])
      print(f'{stop:,} of {rows:,} crops are written.', file=sys.stderr, flush=True)
  return (rows - begun) / (time.perf_counter() - started)


def ask(folder: str, rows: int, *, repeats: int, checked: int) -> dict[str, object]:
  """Searches the index.

  Args:
    folder: of `make`.
    rows: of the index.
    repeats: searches of each kind.
    checked: queries whose answers are compared with a scan of all concepts.
  """
  before = _memory()
  started = time.perf_counter()
  index = engines.open_engine(_directory(folder, rows), check=False)
  results: dict[str, object] = {'open_seconds': time.perf_counter() - started}
  rng = np.random.default_rng(1)
  queries = rng.standard_normal((max(checked, 64), WIDTH)).astype(np.float32)
  queries /= np.linalg.norm(queries, axis=1, keepdims=True)
  for name, where, count in (
    ('first', '', 1),
    ('1', '', 1),
    *((f'1_where_{name}', where, 1) for name, where in _FILTERS.items()),
    ('64', '', 64),
  ):
    condition = filters.parse(where) if where else None
    took = []
    for i in range(1 if name == 'first' else repeats):
      asked = queries[:count] if count > 1 else queries[i % len(queries)][np.newaxis]
      begun = time.perf_counter()
      index.search(asked, top_k=TOP_K, where=condition)
      took.append(time.perf_counter() - begun)
    results[f'seconds_{name}'] = {'median': statistics.median(took), 'slowest': max(took)}
    print(name, results[f'seconds_{name}'], file=sys.stderr, flush=True)
  memory = _memory()
  # What the index and its searches hold; what is mapped, the system takes back when it likes.
  results['own_mib'] = memory['RssAnon'] - before['RssAnon']
  results['mapped_mib'] = memory['RssFile'] - before['RssFile']
  results['checked_queries'] = checked
  results['exact'] = _are_exact(index, queries[:checked])
  return results


def _are_exact(index: engine.Engine, queries: np.ndarray) -> bool:
  """Whether the answers are those of all float32 concepts: rows, their order, and scores."""
  best = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
  first = 0
  for entry in index.state['segments']:
    folder = os.path.join(index.folder.segments, entry['name'])
    concepts = np.load(os.path.join(folder, 'embeddings.npy'), mmap_mode='r')
    for start in range(0, len(concepts), _PART):
      rows = np.asarray(concepts[start : start + _PART])
      places = np.arange(first + start, first + start + len(rows))
      for q, query in enumerate(queries):
        positions = np.concatenate([best[q][0], places])
        scores = np.concatenate([best[q][1], engine.last_scores(rows, query)])
        order = np.lexsort((positions, -scores))[:TOP_K]
        best[q] = positions[order], scores[order]
    first += len(concepts)
  for query, (positions, scores) in zip(queries, best):
    (found,) = index.search(query[np.newaxis], top_k=TOP_K)
    if [int(match.row.id) for match in found] != positions.tolist():
      return False
    if [match.score for match in found] != scores.tolist():
      return False
  return True


def _directory(folder: str, rows: int) -> IndexDirectory:
  return IndexDirectory(os.path.join(folder, f'index-{rows}'))


def _memory() -> Mapping[str, float]:
  """MiB of this process, by the names of /proc/self/status."""
  with open('/proc/self/status', encoding='ascii') as file:
    lines = (line.split() for line in file if line.startswith('Rss'))
    return {name.rstrip(':'): int(value) / 1024 for name, value, *_ in lines}


def measure(*, folder: str, rows: int, repeats: int, checked: int) -> dict[str, object]:
  """Writes the index, if need be, and searches it; see `ask` for the arguments."""
  written = make(folder, rows)
  return {
    'rows': rows,
    'written_per_second': written,
    **ask(folder, rows, repeats=repeats, checked=checked),
  }


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', type=int, default=10_000_000)
  parser.add_argument('--folder', required=True, help='where the index is written, and stays')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--checked', type=int, default=2, help='queries, each against all rows')
  print(json.dumps(measure(**vars(parser.parse_args())), indent=1))
