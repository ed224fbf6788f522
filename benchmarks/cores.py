"""Images per second of the training step by cores and threads, and where the time of a step goes.

  python benchmarks/cores.py --encoder=osnet_x0_25 --image_size=128x64 --batch_size=64
  python benchmarks/cores.py --profile      # milliseconds of each kind of operation, by threads

The step is that of `benchmarks/training.py`. One process on one core is beside one on all cores, in
several divisions of its threads, and beside as many processes as there are cores, each on its own.
"""

from __future__ import annotations

import argparse
import collections
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import training

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENCODER, IMAGE_SIZE, BATCH_SIZE = 'osnet_x0_25', (128, 64), 64
SECONDS, ROUNDS = 8.0, 2
_PROFILED = 5
# Until the process has started, and taken its first steps.
_START = 25.0


def run() -> dict[str, object]:
  """The measurement in its usual size, for run.py."""
  return measure(_options(ENCODER, IMAGE_SIZE, BATCH_SIZE), seconds=SECONDS, rounds=ROUNDS)


def measure(options: Sequence[str], *, seconds: float, rounds: int) -> dict[str, object]:
  """Images per second of each division of the cores, medians of its steps, one of each round.

  Args:
    options: of the step: encoder, size of images and of batches.
    seconds: of each measurement.
    rounds: measurements of each.

  Returns:
    By name: 'one core'; 'all cores, I threads, O operations' (of an operation, and at a time);
    'N processes', the sum of all.
  """
  cores = sorted(os.sched_getaffinity(0))
  count = len(cores)
  divisions = {'one core': [(cores[:1], 1, 1)]}
  for threads, operations in ((count, count), (1, count), (count, 1)):
    name = f'all cores, {threads} threads, {operations} operations'
    divisions[name] = [(cores, threads, operations)]
  divisions[f'{count} processes'] = [([core], 1, 1) for core in cores]
  rates: dict[str, list[float]] = collections.defaultdict(list)
  for _ in range(rounds):
    for name, parts in divisions.items():
      rates[name].append(round(_together(parts, options, seconds), 1))
      print(name, rates[name][-1], file=sys.stderr, flush=True)
  return dict(rates)


def profile(options: Sequence[str], *, threads: int) -> dict[str, list[float]]:
  """Milliseconds and number of each kind of operation in a step, the greatest first.

  Operations that run at the same time count for each of them.

  Args:
    options: of the step.
    threads: of an operation; as many are computed at a time, on as many cores.
  """
  cores = sorted(os.sched_getaffinity(0))[:threads]
  child = _child((cores, threads, threads), options, ['--child=profile'])
  return json.loads(child.communicate()[0].splitlines()[-1])


def _options(encoder, image_size, batch_size):
  return [
    f'--encoder={encoder}',
    f'--image_size={image_size[0]}x{image_size[1]}',
    f'--batch_size={batch_size}',
  ]


def _child(part, options, flags):
  cores, threads, operations = part
  command = [sys.executable, os.path.abspath(__file__), *options, *flags]
  command += [f'--cores={",".join(map(str, cores))}', f'--threads={threads},{operations}']
  return subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': ROOT, 'TF_CPP_MIN_LOG_LEVEL': '3'},
  )


def _together(parts, options, seconds):
  """The images per second of processes that begin at the same moment."""
  flags = ['--child=rate', f'--start={time.time() + _START}', f'--seconds={seconds}']
  children = [_child(part, options, flags) for part in parts]
  return sum(float(child.communicate()[0].splitlines()[-1]) for child in children)


def _step(given):
  import tensorflow as tf

  os.sched_setaffinity(0, given.cores)
  threads, operations = given.threads
  tf.config.threading.set_intra_op_parallelism_threads(threads)
  tf.config.threading.set_inter_op_parallelism_threads(operations)
  step = training._tensorflow_step(
    'float32',
    encoder=given.encoder,
    compiled=False,
    batch_size=given.batch_size,
    image_size=given.image_size,
  )
  for _ in range(4):
    step()
  return step


def _rate(given):
  """Takes steps from a moment on, and prints how many images a second they were."""
  step = _step(given)
  if time.time() > given.start:
    raise RuntimeError('The step was ready too late.')
  time.sleep(given.start - time.time())
  times = []
  while time.time() < given.start + given.seconds:
    began = time.perf_counter()
    step()
    times.append(time.perf_counter() - began)
  print(given.batch_size / statistics.median(times))


def _profile(given):
  """Prints what some steps were spent on."""
  import tensorflow as tf
  from tensorflow.tsl.profiler.protobuf import xplane_pb2

  step = _step(given)
  with tempfile.TemporaryDirectory() as folder:
    tf.profiler.experimental.start(folder)
    began = time.perf_counter()
    for _ in range(_PROFILED):
      step()
    took = time.perf_counter() - began
    tf.profiler.experimental.stop()
    space = xplane_pb2.XSpace()
    with open(glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)[0], 'rb') as file:
      space.ParseFromString(file.read())
  kinds: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
  for plane in space.planes:
    for line in plane.lines:
      for event in line.events:
        name = plane.event_metadata[event.metadata_id].name
        # 'name of the operation:kind'; what has '::' is a part of TensorFlow.
        if ':' in name and '::' not in name and plane.name == '/host:CPU':
          kinds[name.rpartition(':')[2]][0] += event.duration_ps / 1e9 / _PROFILED
          kinds[name.rpartition(':')[2]][1] += 1 / _PROFILED
  ordered = sorted(kinds.items(), key=lambda item: -item[1][0])[:25]
  told = {name: [round(ms, 2), round(count)] for name, (ms, count) in ordered}
  print(json.dumps({'step': [round(1000 * took / _PROFILED, 1), 1], **told}))


def _numbers(text: str) -> list[int]:
  return [int(part) for part in text.split(',')]


def _main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--encoder', default=ENCODER)
  parser.add_argument('--image_size', type=training._size, default=IMAGE_SIZE)
  parser.add_argument('--batch_size', type=int, default=BATCH_SIZE)
  parser.add_argument('--seconds', type=float, default=SECONDS)
  parser.add_argument('--rounds', type=int, default=ROUNDS)
  parser.add_argument('--profile', action='store_true', help='what a step is spent on')
  parser.add_argument('--child', help=argparse.SUPPRESS)
  parser.add_argument('--cores', type=_numbers, help=argparse.SUPPRESS)
  parser.add_argument('--threads', type=_numbers, help=argparse.SUPPRESS)
  parser.add_argument('--start', type=float, help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.child:
    {'rate': _rate, 'profile': _profile}[given.child](given)
    return
  options = _options(given.encoder, given.image_size, given.batch_size)
  if given.profile:
    count = len(os.sched_getaffinity(0))
    result = {f'{n} threads': profile(options, threads=n) for n in sorted({1, count})}
  else:
    result = measure(options, seconds=given.seconds, rounds=given.rounds)
  print(json.dumps(result, indent=1))


if __name__ == '__main__':
  _main()
