"""Milliseconds of exact retrieval of 100 rows, at 100k and 1M rows of 128 numbers; beside FAISS.

FAISS is no dependency of the project; it takes part where it can be imported, for example with
PYTHONPATH=<site-packages of an environment that has faiss-cpu and the same numpy>. All take turns,
so that all meet the same machine.

  python benchmarks/retrieval.py --rows=10000000 --repeats=5     (needs 16 GB of memory)
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfreid.serving import search

WIDTH = 128
TOP_K = 100
QUERIES = (1, 64)

# With more rows than this, a copy of them for FAISS would not fit beside.
FAISS_ROWS = 4_000_000


def _unit_rows(count: int, *, seed: int = 0) -> np.ndarray:
  """Random unit vectors, float32 [count, 128], made in place."""
  rows = np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)
  for start in range(0, count, 65536):
    part = rows[start : start + 65536]
    part /= np.sqrt(np.einsum('ne,ne->n', part, part))[:, np.newaxis]
  return rows


def _faiss(rows: np.ndarray) -> Callable | None:
  """FAISS' exact search with as many threads as there are cores; None where it is not there."""
  if len(rows) > FAISS_ROWS:
    return None
  # Its threads would go on spinning for a while after each search, into the other's turn.
  os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
  try:
    import faiss
  except ImportError:
    return None
  index = faiss.IndexFlatIP(WIDTH)
  index.add(rows)
  return lambda queries: index.search(queries, TOP_K)[0]


def _engine(rows: np.ndarray, precision: str) -> Callable:
  """The search that an exported model does, as a graph with a batch of any size."""
  found = search.ExactSearch(rows, precision=precision)
  answer = tf.function(
    lambda queries: found(queries, k=TOP_K), input_signature=[tf.TensorSpec([None, WIDTH])]
  )
  return lambda queries: answer(tf.constant(queries))[0].numpy()


def _status(field: str) -> int | None:
  """A line of /proc/self/status in KiB; None where there is no such file."""
  try:
    with open('/proc/self/status', encoding='ascii') as file:
      return next(int(line.split()[1]) for line in file if line.startswith(field))
  except OSError:
    return None


def _with_growth(function: Callable[[], np.ndarray]) -> tuple[np.ndarray, float | None]:
  """What the function returns, and the MiB by which the process grew; None if that is not told."""
  try:
    with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
      file.write('5')  # forget the peak until now
  except OSError:
    return function(), None
  before = _status('VmRSS')
  result = function()
  return result, round((_status('VmHWM') - before) / 2**10, 1)


def _measure(
  engines: Mapping[str, Callable], queries: np.ndarray, *, repeats: int
) -> dict[str, list[float]]:
  """Milliseconds of each call; the engines take turns."""
  milliseconds = {name: [] for name in engines}
  for turn in range(repeats + 1):
    for name, engine in engines.items():
      started = time.perf_counter()
      engine(queries)
      if turn:  # the first one only warms up
        milliseconds[name].append(1e3 * (time.perf_counter() - started))
  return milliseconds


def _one_size(count: int, *, repeats: int) -> dict[str, object]:
  rows = _unit_rows(count)
  faiss = _faiss(rows)
  results: dict[str, object] = {'rows_mib': round(rows.nbytes / 2**20, 1)}
  big = count > FAISS_ROWS
  # Where memory is short, one after the other.
  rounds = [[p] for p in search.PRECISIONS] if big else [list(search.PRECISIONS)]
  for precisions in rounds:
    engines = {} if faiss is None else {'faiss': faiss}
    engines.update({precision: _engine(rows, precision) for precision in precisions})
    for batch in QUERIES:
      queries = _unit_rows(batch, seed=1)
      expected = -np.sort(-(queries[:1] @ rows.T), axis=1)[:, :TOP_K]
      growth = {}
      for name, engine in engines.items():
        # The first call: later ones find the memory already with the process.
        found, growth[name] = _with_growth(lambda engine=engine, queries=queries: engine(queries))
        if not np.allclose(found[:1], expected, atol=1e-6):
          raise RuntimeError(f'{name} does not find the {TOP_K} best rows.')
      milliseconds = _measure(engines, queries, repeats=repeats)
      part = results.setdefault(f'queries_{batch}', {})
      for name, values in milliseconds.items():
        part[name] = {
          'median_ms': round(statistics.median(values), 2),
          'best_ms': round(min(values), 2),
        }
        if growth[name] is not None:
          part[name]['working_mib'] = growth[name]
      if 'faiss' in part:
        for precision in precisions:
          ratio = part['faiss']['median_ms'] / part[precision]['median_ms']
          part[precision]['times_faster_than_faiss'] = round(ratio, 2)
    del engines
    gc.collect()
  return results


def run(
  *, rows: Sequence[int] = (100_000, 1_000_000), repeats: int = 9
) -> dict[str, dict[str, object]]:
  """What an answer costs, by the number of rows and of queries at a time.

  Args:
    rows: sizes of the gallery.
    repeats: of each measurement.

  Returns:
    For each size, for 1 and 64 queries and for float32 and bfloat16 (and FAISS' IndexFlatIP):
    median and best milliseconds, and MiB that the process grew by at the first answer.
  """
  return {f'rows_{count}': _one_size(count, repeats=repeats) for count in rows}


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', default='100000,1000000', help='sizes of the gallery')
  parser.add_argument('--repeats', type=int, default=9)
  given = parser.parse_args()
  json.dump(
    run(rows=[int(count) for count in given.rows.split(',')], repeats=given.repeats),
    sys.stdout,
    indent=2,
  )
  print()
