"""Milliseconds of a batch norm's training step by channels: Keras's, and that of the encoders here.

  python benchmarks/batch_norms.py
  python benchmarks/batch_norms.py --size=64x32x16 --channels=16,64 --policies=float32 --cores=1

Each number is of one layer with its ReLU, forward and backward, in a chain of ten, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence

SIZE, CHANNELS = (64, 16, 8), (16, 24, 32, 40, 72, 96)
POLICIES = ('float32', 'mixed_bfloat16')
_CHAINED = 10


def run() -> dict[str, object]:
  """The measurement in its usual size, for run.py."""
  return measure(SIZE, CHANNELS, POLICIES, repeats=9)


def measure(
  size: Sequence[int], channels: Sequence[int], policies: Sequence[str], *, repeats: int
) -> dict[str, dict[str, float]]:
  """Milliseconds of each layer by 'policy, channels', medians.

  Args:
    size: (batch, height, width) of the maps.
    channels: numbers of channels.
    policies: of Keras's mixed precision.
    repeats: turns.
  """
  found = {}
  for policy in policies:
    for count in channels:
      steps = {name: _chain(policy, (*size, count), ours=name == 'ours') for name in _NAMES}
      times: dict[str, list[float]] = {name: [] for name in _NAMES}
      for turn in range(repeats + 1):
        for name, step in steps.items():
          began = time.perf_counter()
          step()
          if turn:
            times[name].append(1000 * (time.perf_counter() - began) / _CHAINED)
      medians = {name: round(statistics.median(taken), 3) for name, taken in times.items()}
      medians['times'] = round(medians['keras'] / medians['ours'], 2)
      found[f'{policy}, {count}'] = medians
  return found


_NAMES = ('keras', 'ours')


def _chain(policy: str, shape: Sequence[int], *, ours: bool) -> Callable[[], None]:
  """A function that takes one step of a chain of layers and waits for it."""
  import tensorflow as tf

  from tfreid.networks import batch_norms

  layers = [tf.keras.layers.BatchNormalization(dtype=policy) for _ in range(_CHAINED)]
  for layer in layers:
    layer.build([None, *shape[1:]])
    if ours:
      batch_norms.accelerate(layer)
  kind = tf.as_dtype(layers[0].compute_dtype)
  given, upstream = (tf.cast(tf.random.normal(shape), kind) for _ in range(2))

  @tf.function
  def step():
    with tf.GradientTape() as tape:
      tape.watch(given)
      x = given
      for layer in layers:
        x = tf.nn.relu(layer(x, training=True))
    return tape.gradient(x, given, upstream)[0, 0, 0, 0]

  return lambda: float(step())


def _numbers(separator: str) -> Callable[[str], tuple[int, ...]]:
  return lambda text: tuple(int(part) for part in text.split(separator))


def _main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', type=_numbers('x'), default=SIZE, help='batch x height x width')
  parser.add_argument('--channels', type=_numbers(','), default=CHANNELS)
  parser.add_argument('--policies', type=lambda text: text.split(','), default=POLICIES)
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--cores', type=int, help='how many may be used; all if not given')
  given = parser.parse_args()
  if given.cores:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
  found = measure(given.size, given.channels, given.policies, repeats=given.repeats)
  for name, medians in found.items():
    print(name, json.dumps(medians))


if __name__ == '__main__':
  _main()
