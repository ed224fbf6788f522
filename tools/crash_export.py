#!/usr/bin/env python3
"""Kills exports at random moments and checks that a version is whole or is not there.

  tools/crash_export.py                 50 kills
  tools/crash_export.py --kills=300 --kill_seed=7

A child process exports a joint space with a gallery of 64 crops, as the next version of one model;
the parent sends SIGKILL after a random time. Then each version that has a name must be sealed, must
have the files of its seal, and must answer its golden requests; those that were there before must
be what they were; and the next export, which nobody kills, must leave nothing of the killed ones
behind.
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

_KILLS = flags.DEFINE_integer('kills', 50, 'How often to kill.', lower_bound=1)
_SEED = flags.DEFINE_integer('kill_seed', 0, 'Of the moments.')
_LEAVE = flags.DEFINE_bool('leave', False, 'Leave the folder for inspection.')

_MOST_SECONDS = 1800  # of a child, a hang otherwise
_KILLS_IN_A_ROW = 10  # then an export is left alone, and looked at


def export(folder: str) -> None:
  """The next version of <folder>/model."""
  import numpy as np
  import tensorflow as tf

  from tfreid.data import market1501
  from tfreid.joint_space import JointSpace
  from tfreid.serving import export as exporting

  tf.keras.utils.set_random_seed(0)
  layers, schema = tf.keras.layers, market1501.SCHEMA
  pixels, vector = tf.keras.Input([32, 16, 3]), tf.keras.Input([schema.size])
  x = layers.Conv2D(4, 3, strides=2)(layers.Rescaling(1 / 255)(pixels))
  x = layers.Dense(6, activation='tanh')(layers.Flatten()(layers.BatchNormalization()(x)))
  space = JointSpace(
    tf.keras.Model(pixels, x), tf.keras.Model(vector, layers.Dense(6, activation='tanh')(vector))
  )
  rng = np.random.default_rng(0)
  pictures = [
    tf.io.encode_png(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)).numpy() for _ in range(2)
  ]
  exporting.export(
    space,
    os.path.join(folder, 'model'),
    encoders=exporting.encoders(space),
    gallery=rng.normal(size=(64, 6)).astype(np.float32),
    ids=[f'crop {i}' for i in range(64)],
    crops=[exporting.Crop(f'{i}.png', picture) for i, picture in enumerate(pictures)],
    schema=schema,
  )


def check(model: str, known: dict[str, bytes], *, answers: bool) -> dict[str, bytes]:
  """Compares what is there with what was there.

  Args:
    model: its folder.
    known: the seal of each version that was there.
    answers: also ask the golden requests of the versions that are new.

  Returns:
    The seal of each version that is there now.

  Raises:
    AssertionError: one is gone, another than before, or not whole.
  """
  from tfreid.serving import golden, versions

  found = {}
  for name in os.listdir(model) if os.path.isdir(model) else ():
    if not name.isdecimal():
      continue
    version = os.path.join(model, name)
    if not versions.is_sealed(version):
      raise AssertionError(f'{version} has no seal.')
    versions.check(version, variables=True)
    with open(os.path.join(version, versions.SEAL), 'rb') as file:
      found[name] = file.read()
    if answers and name not in known:
      outcomes = golden.replay(version, golden.loaded(version))
      if not outcomes or any(
        outcome.problem or not outcome.deviation <= outcome.tolerance for outcome in outcomes
      ):
        raise AssertionError(f'{version} does not answer as it did when it was exported.')
  for name, seal in known.items():
    if found.get(name) != seal:
      raise AssertionError(f'Version {name} is gone, or another.')
  return found


def run(folder: str, kills: int, seed: int) -> collections.Counter:
  """Kills so many exports; returns how often it fell where.

  Raises:
    AssertionError: something is half, was lost, or is left behind.
  """

  def start():
    log = os.path.join(folder, 'log')
    return kill_children.Child(export, (folder,), log, ['tfreid.serving.export'])

  model, known = os.path.join(folder, 'model'), {}
  draw, counts = random.Random(seed), collections.Counter()
  while True:
    child, begun = start(), time.time()
    if not child.ended_within(_MOST_SECONDS):
      raise AssertionError('An export that nobody killed does not end.')
    child.kill()
    # Anew each time: the machine may have been busy before, and then nothing would be interrupted.
    longest = time.time() - begun
    now = check(model, known, answers=True)
    if len(now) != len(known) + 1:
      raise AssertionError(f'An export that nobody killed left the versions {sorted(now)}.')
    # Sorted by number: the oldest versions are not needed any more.
    for name in sorted(now, key=int)[:-2]:
      shutil.rmtree(os.path.join(model, name))
      del now[name]
    left = sorted(set(os.listdir(model)) - set(now))
    if left:
      raise AssertionError(f'An export that nobody killed left {left} of others behind.')
    known = now
    counts['left alone'] += 1
    done = sum(counts.values()) - counts['left alone']
    if done >= kills:
      return counts
    for _ in range(min(_KILLS_IN_A_ROW, kills - done)):
      child = start()
      ended = child.ended_within(draw.uniform(0, longest))
      child.kill()
      now = check(model, known, answers=True)
      if ended and len(now) == len(known):
        raise AssertionError('An export said that it was done, and its version is not there.')
      killed = (
        'after it ended' if ended else 'its version is there' if len(now) > len(known) else ''
      )
      counts[f'killed: {killed or "no version"}'] += 1
      known = now


def main(argv):
  """Runs the test."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected argument: {argv[1]!r}.')
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  logging.set_verbosity(logging.ERROR)
  folder = os.path.realpath(tempfile.mkdtemp(prefix='crash-export-'))
  try:
    counts = run(folder, _KILLS.value, _SEED.value)
  except (AssertionError, ValueError, OSError) as error:
    print(f'Lost or half (in {folder}, see log there): {error}', file=sys.stderr)
    sys.exit(1)
  for name in sorted(counts):
    print(f'{counts[name]:6d}  {name}')
  print(
    f'{_KILLS.value} kills: each version is whole or is not there, and nothing was left behind.'
  )
  if not _LEAVE.value:
    shutil.rmtree(folder)


if __name__ == '__main__':
  app.run(main)
