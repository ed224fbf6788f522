#!/usr/bin/env python3
"""Measures filters over a field of many different values: lists of values, and a range.

  benchmarks/filters.py
  benchmarks/filters.py --values=1000000 --constants=4000

The first evaluation orders the values, which the index remembers. Processor time, in seconds.
"""

from __future__ import annotations

import datetime
import random
import time

import numpy as np
from absl import app, flags

from tfreid.index import filters

_VALUES = flags.DEFINE_integer('values', 200_000, 'Different times.', lower_bound=1)
_CONSTANTS = flags.DEFINE_integer('constants', 4000, 'Values of each of two lists.', lower_bound=1)


def run() -> dict[str, float]:
  """The measurement in its usual size, for run.py."""
  return measure()


def measure(values: int = 200_000, constants: int = 4000) -> dict[str, float]:
  """Seconds of processor time of each filter, by name.

  Args:
    values: different times.
    constants: values of each of two lists.
  """
  start = datetime.datetime(2024, 1, 1)
  times = [(start + datetime.timedelta(seconds=i)).isoformat() for i in range(values)]
  random.Random(0).shuffle(times)
  column = filters.Column(times, np.arange(values, dtype=np.int32))
  listed = [filters.In('time', tuple(times[i :: values // constants or 1])) for i in (0, 1)]
  seconds = {}
  for name, condition in (
    ('two lists, first', filters.Or(tuple(listed))),
    ('two lists, again', filters.Or(tuple(listed))),
    ('a range', filters.parse('time >= "2024-01-02" and time < "2024-01-02T12:00:00"')),
  ):
    started = time.process_time()
    filters.evaluate(condition, {'time': column}.get, values)
    seconds[name] = time.process_time() - started
  return seconds


def main(_):
  """Prints a line per filter."""
  for name, seconds in measure(_VALUES.value, _CONSTANTS.value).items():
    print(f'{name}: {seconds:.4f} s')


if __name__ == '__main__':
  app.run(main)
