#!/usr/bin/env python3
"""Kills a training at random moments and checks that it ends as if nothing had happened.

  tools/crash_training.py                 50 kills
  tools/crash_training.py --kills=300 --kill_seed=7

The training is that of tools/power_cuts.py: two stages on drawn people, the second carries from the
first. A child process trains; the parent sends SIGKILL after a random time, looks at what is left
(whatever has a name is whole, and nothing that was finished is unfinished again), and starts the
same training again, until it ends by itself. Then its weights must be those of an uninterrupted
training, and the next one begins in a new folder, until there were enough kills.
"""

from __future__ import annotations

import collections
import os
import random
import shutil
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import app, flags, logging

import kill_children
import power_cuts

# (--seed, --keep and others are flags of tools/power_cuts.py, which come along.)
_KILLS = flags.DEFINE_integer('kills', 50, 'How often to kill.', lower_bound=1)
_CHOICE = flags.DEFINE_integer('kill_seed', 0, 'Of the moments.')
_LEAVE = flags.DEFINE_bool('leave', False, 'Leave the folder for inspection.')

_MOST_SECONDS = 1800  # of a child, a hang otherwise


def start(folder: str, name: str) -> kill_children.Child:
  """A child that trains, and has imported everything."""
  log = os.path.join(folder, 'log')
  return kill_children.Child(power_cuts.train, (folder, name), log, ['tfreid.experiment'])


def progress(directory: str) -> tuple[int, int]:
  """How far a run has come: finished stages, and the epoch of the next one's newest checkpoint."""
  from tfreid.training import checkpoints, stages

  for number, name in enumerate(('first', 'second')):
    stage = os.path.join(directory, name)
    if not stages.is_finished(stage):
      newest = checkpoints.newest(stage)
      return number, int(newest.rpartition('-')[2]) if newest else 0
  return 2, 0


def run(folder: str, kills: int, seed: int) -> collections.Counter:
  """Kills so many children; returns how often it fell where.

  Raises:
    AssertionError: something was lost, does not continue, or ends in other weights.
  """
  import numpy as np

  power_cuts.draw_people(folder)
  begun = start(folder, 'whole')
  started = time.time()
  if not begun.ended_within(_MOST_SECONDS):
    raise AssertionError('The uninterrupted training does not end.')
  longest = time.time() - started
  expected = power_cuts.weights(os.path.join(folder, 'whole'))
  draw, counts = random.Random(seed), collections.Counter()
  number, before = 0, (0, 0)
  while sum(counts.values()) - counts['ended'] < kills or before != (0, 0):
    directory = os.path.join(folder, f'run-{number}')
    child, begun = start(folder, os.path.basename(directory)), time.time()
    enough = sum(counts.values()) - counts['ended'] >= kills
    done = child.ended_within(_MOST_SECONDS if enough else draw.uniform(0, longest))
    child.kill()
    power_cuts.check(directory, {})
    now = progress(directory)
    if now < before:
      raise AssertionError(f'It had come to {before}, and is at {now} now.')
    if done:
      if before == (0, 0):  # all of it; the machine may be less busy than it was
        longest = min(longest, time.time() - begun)
      ended = power_cuts.weights(directory)
      for key, value in expected.items():
        np.testing.assert_allclose(ended[key], value, rtol=1e-5, atol=1e-6, err_msg=str(key))
      counts['ended'] += 1
      shutil.rmtree(directory)
      number, now = number + 1, (0, 0)
    elif enough:
      raise AssertionError('A training that nobody killed does not end.')
    else:
      counts[f'killed in stage {now[0]} after epoch {now[1]}'] += 1
    before = now
  return counts


def main(argv):
  """Runs the test, or is its child."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected argument: {argv[1]!r}.')
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  logging.set_verbosity(logging.ERROR)
  folder = os.path.realpath(tempfile.mkdtemp(prefix='crash-training-'))
  try:
    counts = run(folder, _KILLS.value, _CHOICE.value)
  except (AssertionError, ValueError, OSError) as error:
    print(f'Lost or half (in {folder}, see log there): {error}', file=sys.stderr)
    sys.exit(1)
  for name in sorted(counts):
    print(f'{counts[name]:6d}  {name}')
  print(f'{_KILLS.value} kills: each training ended in the weights of an uninterrupted one.')
  if not _LEAVE.value:
    shutil.rmtree(folder)


if __name__ == '__main__':
  app.run(main)
