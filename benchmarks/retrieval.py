"""Milliseconds of exact retrieval of 100 rows, at 100k and 1M rows of 128 numbers; beside others.

The others are FAISS (IndexFlatIP, with one thread, which is faster for one query of few rows, and
with one for each core) and usearch (exact). They are no dependencies of the project and take part
where they can be imported and memory has room for them, for example with
PYTHONPATH=<site-packages of an environment that has faiss-cpu, usearch and the same numpy>. All
take turns, so that all meet the same machine.

  python benchmarks/retrieval.py --rows=10000000 --repeats=5     (needs 16 GB of memory)
  python benchmarks/retrieval.py --keep=0.1                      a filter that a tenth fulfils
  python benchmarks/retrieval.py --in_a_row=20                   caches as a busy server finds them
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

# FAISS's threads would go on spinning for a while after each search, into the other's turn. This is
# read when OpenMP is loaded, which SimSIMD does too.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import tfreid  # noqa: F401 - before TensorFlow, which then uses oneDNN

# isort: split
import _interleaved
import numpy as np
import tensorflow as tf

from tfreid.index import engine
from tfreid.serving import quantized, search

WIDTH = 128
TOP_K = 100
QUERIES = (1, 64)

# With more rows than this, one engine of the project after the other, since memory is short.
TOGETHER_ROWS = 4_000_000
# What the ratios are of, each with the memory that it takes, in parts of what the rows take.
OWN = {'float32': 1.0, 'bfloat16': 0.5, 'int8': 0.6}
# Likewise the others: FAISS copies the rows, usearch keeps all scores of 64 queries.
OTHERS = {'faiss': 1.0, 'usearch': 2.5}


def _unit_rows(count: int, *, seed: int = 0) -> np.ndarray:
  """Random unit vectors, float32 [count, 128], made in place."""
  rows = np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)
  for start in range(0, count, 65536):
    part = rows[start : start + 65536]
    part /= np.sqrt(np.einsum('ne,ne->n', part, part))[:, np.newaxis]
  return rows


def _faiss(rows: np.ndarray, keep: np.ndarray | None) -> dict[str, Callable]:
  """FAISS' exact search with one thread, and with as many as there are cores."""
  try:
    import faiss
  except ImportError:
    return {}
  index = faiss.IndexFlatIP(WIDTH)
  index.add(rows)
  options = {}
  if keep is not None:
    chosen = faiss.IDSelectorBitmap(np.packbits(keep, bitorder='little'))
    options['params'] = faiss.SearchParameters(sel=chosen)

  def ask(threads, queries):
    # Each time: others share its OpenMP, SimSIMD for example, and may set the number too.
    faiss.omp_set_num_threads(threads)
    return index.search(queries, TOP_K, **options)[0]

  numbers = {'faiss': _interleaved.cores(), 'faiss_one_thread': 1}
  return {name: functools.partial(ask, threads) for name, threads in numbers.items()}


def _usearch(rows: np.ndarray, keep: np.ndarray | None) -> dict[str, Callable]:
  """The exact search of usearch; nothing for a filter: it has none."""
  if keep is not None:
    return {}
  try:
    from usearch import index
  except ImportError:
    return {}

  def ask(queries):
    found = index.search(
      rows, queries, TOP_K, index.MetricKind.IP, exact=True, threads=_interleaved.cores()
    )
    return 1 - found.distances.reshape(len(queries), -1)

  return {'usearch': ask}


def _int8(rows: np.ndarray, keep: np.ndarray | None) -> Callable:
  """The search that an index does, with a copy in 8 bits."""
  copies = [quantized.quantized(rows[i : i + 4096]) for i in range(0, len(rows), 4096)]
  codes, bounds = (np.concatenate(arrays, axis=axis) for axis, arrays in enumerate(zip(*copies)))
  part = quantized.Part(rows, codes, bounds)
  scan = quantized.QuantizedScan([part], width=WIDTH, score=engine.last_scores)
  return lambda queries: np.stack(
    [scores for _, scores in scan.search(queries, top_k=TOP_K, keep=keep)]
  )


def _engine(rows: np.ndarray, precision: str, keep: np.ndarray | None) -> Callable:
  """The search that an exported model does, as a graph with a batch of any size."""
  found = search.ExactSearch(rows, precision=precision)
  given = [] if keep is None else [tf.constant(keep)]
  answer = tf.function(
    lambda queries, keep=None: found(queries, k=TOP_K, keep=keep),
    input_signature=[
      tf.TensorSpec([None, WIDTH]),
      *([tf.TensorSpec(len(rows), tf.bool)] if given else []),
    ],
  )
  return lambda queries: answer(tf.constant(queries), *given)[0].numpy()


def _contestants(
  rows: np.ndarray, keep: np.ndarray | None, own: Sequence[str]
) -> dict[str, Callable]:
  """What is timed, by name."""
  found: dict[str, Callable] = {}
  # Imported after usearch, SimSIMD does not multiply.
  if 'int8' in own and not quantized.is_available():
    raise RuntimeError('The package simsimd cannot be used here.')
  needed, makers = sum(OWN[name] for name in own), {'faiss': _faiss, 'usearch': _usearch}
  free = _kibibytes('/proc/meminfo', 'MemAvailable')
  for name, make in makers.items():
    needed += OTHERS[name]
    if free is None or 1024 * free > 1.1 * rows.nbytes * needed:
      found.update(make(rows, keep))
  for name in own:
    found[name] = _int8(rows, keep) if name == 'int8' else _engine(rows, name, keep)
  return found


def _kibibytes(path: str, field: str) -> int | None:
  """A line of a file like /proc/self/status, in KiB; None where there is no such file."""
  try:
    with open(path, encoding='ascii') as file:
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
  before = _kibibytes('/proc/self/status', 'VmRSS')
  result = function()
  return result, round((_kibibytes('/proc/self/status', 'VmHWM') - before) / 2**10, 1)


def _measure(
  engines: Mapping[str, Callable], queries: np.ndarray, *, repeats: int, in_a_row: int
) -> dict[str, list[tuple[float, float]]]:
  """Milliseconds of each call, by the clock and of all cores together; the engines take turns."""
  milliseconds = {name: [] for name in engines}
  for turn in range(repeats + 1):
    for name, contestant in engines.items():
      for call in range(in_a_row):
        started = time.perf_counter(), time.process_time()
        contestant(queries)
        took = time.perf_counter() - started[0], time.process_time() - started[1]
        # The first turn only warms up, and so does the first of several calls.
        if turn and (call or in_a_row == 1):
          milliseconds[name].append((1e3 * took[0], 1e3 * took[1]))
  return milliseconds


def _one_size(
  count: int, *, repeats: int, keep: float, engines: Sequence[str], in_a_row: int
) -> dict[str, object]:
  rows = _unit_rows(count)
  kept = None if keep == 1 else np.random.default_rng(2).random(count) < keep
  able = rows if kept is None else rows[kept]
  results: dict[str, object] = {'rows_mib': round(rows.nbytes / 2**20, 1)}
  # Where memory is short, one after the other.
  rounds = [[name] for name in engines] if count > TOGETHER_ROWS else [list(engines)]
  for own in rounds:
    contestants = _contestants(rows, kept, own)
    for batch in QUERIES:
      queries = _unit_rows(batch, seed=1)
      expected = -np.sort(-(queries[:1] @ able.T), axis=1)[:, :TOP_K]
      growth = {}
      for name, contestant in contestants.items():
        # The first call: later ones find the memory already with the process.
        found, growth[name] = _with_growth(
          lambda contestant=contestant, queries=queries: contestant(queries)
        )
        if not np.allclose(found[:1], expected, atol=1e-6):
          raise RuntimeError(f'{name} does not find the {TOP_K} best rows.')
      milliseconds = _measure(contestants, queries, repeats=repeats, in_a_row=in_a_row)
      part = results.setdefault(f'queries_{batch}', {})
      for name, values in milliseconds.items():
        clock, cores = zip(*values)
        part[name] = {
          'median_ms': round(statistics.median(clock), 2),
          'best_ms': round(min(clock), 2),
          'core_ms': round(statistics.median(cores), 2),
        }
        if growth[name] is not None:
          part[name]['working_mib'] = growth[name]
      others = [part[name]['median_ms'] for name in part if name not in OWN]
      for name in own if others else ():
        part[name]['times_faster_than_others'] = round(min(others) / part[name]['median_ms'], 2)
    del contestants
    gc.collect()
  return results


def run(
  *,
  rows: Sequence[int] = (100_000, 1_000_000),
  repeats: int = 9,
  keep: float = 1.0,
  engines: Sequence[str] = tuple(OWN),
  in_a_row: int = 1,
) -> dict[str, dict[str, object]]:
  """What an answer costs, by the number of rows and of queries at a time.

  Args:
    rows: sizes of the gallery.
    repeats: of each measurement.
    keep: part of the rows that a filter leaves, drawn by chance; 1 for no filter.
    engines: those of OWN that are timed.
    in_a_row: calls of one engine before the next has its turn; of several, the first is not
      counted. With one, each finds the caches full of what the others read.

  Returns:
    For each size, for 1 and 64 queries and for each engine (and FAISS, with one thread and with one
    for each core, and usearch): median and best milliseconds by the clock, those of all cores
    together (which others on the machine disturb less), and MiB that the process grew by at the
    first answer; and how many times faster an engine is by the clock than the best of the others.
  """
  return {
    f'rows_{count}': _one_size(
      count, repeats=repeats, keep=keep, engines=engines, in_a_row=in_a_row
    )
    for count in rows
  }


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', default='100000,1000000', help='sizes of the gallery')
  parser.add_argument('--repeats', type=int, default=9)
  parser.add_argument('--keep', type=float, default=1.0, help='part that a filter leaves')
  parser.add_argument('--engines', default=','.join(OWN), help='those of this project')
  parser.add_argument('--in_a_row', type=int, default=1, help='calls of one engine in its turn')
  given = parser.parse_args()
  json.dump(
    run(
      rows=[int(count) for count in given.rows.split(',')],
      repeats=given.repeats,
      keep=given.keep,
      engines=given.engines.split(','),
      in_a_row=given.in_a_row,
    ),
    sys.stdout,
    indent=2,
  )
  print()
