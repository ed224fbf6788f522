"""The whole way in one command: draw people, train, evaluate, export, search. `make demo` runs it.

Each step is the command a user would give, in a process of its own, and continues or skips what an
earlier run has already done.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time

from absl import flags

from tfreid.cli import startup

_QUERY = flags.DEFINE_string(
  'query', 'gender=female, upper_color=red, backpack=yes', 'What to search for at the end.'
)
_FRESH = flags.DEFINE_bool('fresh', False, 'Throw away what an earlier demo left, and start anew.')

DATA, RUN, MODEL, PAGE = 'datasets/demo', 'runs/demo', 'saved_models/demo', 'runs/demo/answer.html'


def main(argv):
  """Runs the steps and prints how long each took."""
  startup.no_arguments(argv)
  if _FRESH.value:
    for folder in (DATA, RUN, MODEL):
      shutil.rmtree(folder, ignore_errors=True)
  # Seed 13: four of its 90 test people are women in red with a backpack, so that the query below
  # has something to find. Nothing else was looked at to choose it.
  steps = [
    (
      'Draw synthetic people',
      ['synthesize', f'--out={DATA}', '--difficulty=easy', '--num_train_people=180',
       '--num_test_people=90', '--image_height=64', '--image_width=32', '--seed=13'],
    ),
    (
      'Train both stages and evaluate',
      ['train', '--gin_file=demo.gin', f'--run_dir={RUN}'],
    ),
  ]  # fmt: skip
  if not os.path.isdir(os.path.join(MODEL, '1')):
    steps.append(
      (
        'Export',
        ['export', f'--space={RUN}/joint/space', '--dataset=synthetic', f'--data_root={DATA}',
         f'--out={MODEL}', '--version=1'],
      )
    )  # fmt: skip
  steps.append(
    (
      'Search the exported model',
      ['search', f'--model={MODEL}/1', '--top_k=12', f'--html={PAGE}', _QUERY.value],
    )
  )
  times = []
  for number, (title, command) in enumerate(steps, start=1):
    print(f'\n[{number}/{len(steps)}] {title}\n  tfreid {shlex.join(command)}\n', flush=True)
    started = time.time()
    status = subprocess.call([*startup.program(command[0]), *command[1:]])
    if status:
      print(f'\nThe demo stopped: "{title}" failed. `make demo` continues from here.')
      sys.exit(status)
    times.append((title, time.time() - started))
  print('\nDone.')
  for title, seconds in times:
    print(f'  {title:<34}{seconds:6.0f} s')
  print(f'  {"in all":<34}{sum(seconds for _, seconds in times):6.0f} s')
  print(f'\nLook at {PAGE} in a browser, and at the curves with: tensorboard --logdir {RUN}')
