"""Damages the files of a training run, one at a time, and reads them as the project does.

  python tests/training/damaged_run.py --trials=1000

Prints how many damages were refused with a sentence, changed nothing, were silent or ended in a
traceback; exits with 1 if there was one of the last two.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools'), str(ROOT / 'tests')]

import damage  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from tfreid import experiment, storage  # noqa: E402
from tfreid.evaluation import results  # noqa: E402
from tfreid.joint_space import JointSpace  # noqa: E402
from tfreid.training import checkpoints  # noqa: E402


def make(folder: str) -> str:
  """A finished run, with a stage beside it that was interrupted after its second epoch."""
  import power_cuts

  power_cuts.draw_people(folder)
  power_cuts.train(folder, 'run')
  stage = os.path.join(folder, 'run', 'third')
  os.makedirs(stage)
  for epoch in (1, 2):
    checkpoints.write(_values(epoch), stage, epoch)
  return os.path.join(folder, 'run')


def _values(epoch):
  return tf.train.Checkpoint(x=tf.Variable(np.arange(200, dtype=np.float32) * epoch))


class Told(logging.Handler):
  """Counts warnings: what was told is not silent."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.count = 0

  def emit(self, record):
    self.count += 1


def reader(run: str, path: str) -> Callable[[], Any]:
  """What reads a file of the run, as training, evaluation and export do; its answer is bytes."""
  folder, name = os.path.split(path)

  def space():
    found = JointSpace.load(folder)
    vectors = np.eye(found.num_attributes, dtype=np.float32)[:2]
    images = np.full((1, *found.image_shape), 50, np.float32)
    answers = found.encode_attributes(vectors), found.encode_images(images)
    about = json.dumps(JointSpace.metadata(folder), sort_keys=True)
    return about + repr([answer.numpy().tolist() for answer in answers])

  def checkpoint():
    values = _values(0)
    newest = checkpoints.newest(os.path.dirname(folder))
    checkpoints.read(values, newest).assert_consumed()
    return repr(values.x.numpy().tolist())

  def final():
    with checkpoints.final_prefix(folder) as prefix:
      found = tf.train.load_checkpoint(prefix)
      keys = sorted(found.get_variable_to_shape_map())
      values = repr([(key, np.asarray(found.get_tensor(key)).tolist()) for key in keys])
    return values + repr(checkpoints.final_facts(folder))

  if os.path.basename(folder).startswith('space'):
    return space
  if os.path.basename(folder).startswith('ckpt-'):
    return checkpoint
  if name.startswith('final.'):
    return final
  return {
    'stage.json': lambda: repr(checkpoints.read_document(path, what='record of the stage')),
    'config.gin': lambda: experiment.run_config(run),
    'operative_config.gin': lambda: storage.read_checked_text(path),
    'results.jsonl': lambda: results.read_results(path).to_json(),
  }.get(name, lambda: repr(storage.read_json(path)))


def trials(run: str, count: int, seed: int) -> tuple[collections.Counter, list[str]]:
  """Damages so many times; see `damage.trials`."""
  paths = [path for path in damage.files_below(run) if os.path.getsize(path)]
  expected = {path: reader(run, path)() for path in paths}
  told = Told()
  logging.getLogger('tfreid').addHandler(told)
  counts, faults = collections.Counter(), []
  try:
    for accident in damage.accidents(paths, count, seed=seed, kinds=('flip', 'flip', 'cut')):
      before = told.count

      def same(answer, path=accident.path, before=before):
        # An older checkpoint, or the rows that are whole, with a warning.
        return answer == expected[path] or told.count > before

      found, wrong = damage.trials([accident], reader(run, accident.path), same=same)
      counts += found
      faults += wrong
  finally:
    logging.getLogger('tfreid').removeHandler(told)
  return counts, faults


def main():
  """Runs the trials."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--trials', type=int, default=1000)
  parser.add_argument('--seed', type=int, default=0)
  given = parser.parse_args()
  logging.disable(logging.INFO)
  with tempfile.TemporaryDirectory(prefix='damaged-run-') as folder:
    counts, faults = trials(make(folder), given.trials, given.seed)
  print('\n'.join(faults))
  print(dict(counts))
  sys.exit(bool(faults))


if __name__ == '__main__':
  main()
