"""The embedded index: bytes per crop, crops per second written, seconds per search and filter."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np

from tfreid.index import engine, filters, segment
from tfreid.index.ledger import Ledger
from tfreid.index.segment import Row

NUM_CROPS = 200_000
WIDTH = 128


def run() -> dict[str, float]:
  """Writes an index of random unit vectors and searches it, on the disk and in memory."""
  rng = np.random.default_rng(0)
  queries = rng.standard_normal((64, WIDTH), np.float32)
  with tempfile.TemporaryDirectory() as folder:
    ledger = Ledger(os.path.join(folder, 'index'))
    about = {'fingerprint': 'benchmark', 'embedding_size': WIDTH, 'path': ''}
    found = engine.open_engine(ledger, engine.new_state(about))
    started = time.perf_counter()
    with ledger.lock():
      entry = segment.write(ledger.segments, _parts(rng), size=NUM_CROPS, width=WIDTH)
      found.commit([entry])
    results = {
      'crops': NUM_CROPS,
      'written_per_second': NUM_CROPS / (time.perf_counter() - started),
      'bytes_per_crop': sum(size for size, _ in entry['files'].values()) / NUM_CROPS,
    }
    found.search(queries[:1], top_k=20)  # imports TensorFlow
    condition = filters.parse('camera in [1, 2] and time >= "2024-06"')
    started = time.perf_counter()
    found.search(queries[:1], top_k=20, where=condition)
    results['seconds_first_filtered'] = time.perf_counter() - started
    results['seconds_filtered'] = _median(
      lambda: found.search(queries[:1], top_k=20, where=condition)
    )
    for name, resident in (('mapped', False), ('resident', True)):
      found = engine.open_engine(Ledger(ledger.directory), resident=resident)
      for count in (1, 64):
        results[f'seconds_{name}_{count}'] = _median(
          lambda found=found, count=count: found.search(queries[:count], top_k=20)
        )
  return results


def _parts(rng: np.random.Generator):
  for start in range(0, NUM_CROPS, 4000):
    concepts = rng.standard_normal((4000, WIDTH), np.float32)
    concepts /= np.linalg.norm(concepts, axis=1, keepdims=True)
    yield (
      concepts,
      [
        Row(
          f'camera{i % 20}/{i:09d}.jpg',
          f'/data/crops/camera{i % 20}/{i:09d}.jpg',
          {'camera': i % 20, 'time': f'2024-{i % 12 + 1:02d}-{i % 28 + 1:02d}T10:00:00'},
          digest='0' * 32,
        )
        for i in range(start, start + 4000)
      ],
    )


def _median(function: Callable[[], object], times: int = 5) -> float:
  function()
  seconds = []
  for _ in range(times):
    started = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - started)
  return statistics.median(seconds)
