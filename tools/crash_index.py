#!/usr/bin/env python3
"""Kills writers of an index at random moments and checks that nothing committed is lost.

  tools/crash_index.py                 100 kills
  tools/crash_index.py --kills=1000 --seed=7
  tools/crash_index.py --engine=milvus --longest=5

A child process builds, adds, replaces, removes and compacts through the functions that
tools/index.py calls; the embedding is a function of the file's bytes, so that a kill falls into the
writing and not into a neural network. It says so before and after each operation. The parent sends
SIGKILL (to Milvus Lite as well) after a random time, opens what is left, and checks: the crops are
those before or those after the operation that was under way, and those after it if the child had
said that it was done; each has the concept and the fields it should have; the checksums are right;
and the next child can go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tfreid.cli import startup  # noqa: E402
from tfreid.index import engines  # noqa: E402

_KILLS = flags.DEFINE_integer('kills', 100, 'How often to kill.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments and operations.')
_LONGEST = flags.DEFINE_float('longest', 0.5, 'Seconds that a child writes before it is killed.')
_ENGINE = flags.DEFINE_enum(
  'engine',
  'embedded',
  [name for name in engines.NAMES if engines.engine_class(name).outlives_process],
  'What is written to.',
)
_KEEP = flags.DEFINE_bool('keep', False, 'Leave the folder for inspection.')
_CHILD = flags.DEFINE_string('child', None, 'The folder; starts the process that is killed.')

_CROPS = 120
_WIDTH = 16


class DigestModel:
  """Embeds a file as numbers drawn from its bytes."""

  directory = '(none)'
  fingerprint = 'crash test'
  size = _WIDTH

  def embed_images(self, contents):
    """float32 [B, E]."""
    import numpy as np

    return np.stack([concept(content) for content in contents])


def concept(contents):
  """The numbers of a file, float32 [E]."""
  import numpy as np

  seed = int.from_bytes(contents[:8].ljust(8, b'\0'), 'little')
  return np.random.default_rng(seed).standard_normal(_WIDTH, np.float32)


def contents_of(number: int, version: int) -> bytes:
  """What is in the file of a crop, in one of its versions."""
  return f'{number:04d}{version:04d}'.encode() * 50


def row_of(folder, number, version):
  """The manifest's row of a crop, its file written."""
  from tfreid.index.segment import Row

  path = os.path.join(folder, 'crops', f'{number:04d}-{version}.bin')
  if not os.path.exists(path):
    with open(f'{path}.partial', 'wb') as file:
      file.write(contents_of(number, version))
    os.replace(f'{path}.partial', path)
  return Row(f'crop {number}', path, {'camera': number % 3, 'version': version})


def write(folder: str, seed: int, engine: str) -> None:
  """Writes to the index until it is killed."""
  from tfreid.index import writer
  from tfreid.index.directory import IndexDirectory

  draw = random.Random(seed)
  index = os.path.join(folder, 'index')
  known = contents(index) if IndexDirectory(index).exists else {}
  print(json.dumps({'ready': known}), flush=True)
  while True:
    numbers = draw.sample(range(_CROPS), draw.randint(1, _CROPS // 2))
    choice = draw.random()
    there = [number for number in numbers if f'crop {number}' in known]
    after = dict(known)
    version = draw.randint(0, 9)
    options = {'shard_rows': draw.choice([7, 20, 1000]), 'batch_size': 16}
    if not IndexDirectory(index).exists or choice < 0.1:
      operation, after = 'build', {f'crop {number}': version for number in numbers}
    elif choice < 0.6:
      operation = draw.choice(['skip', 'replace'])
      new = {f'crop {number}': version for number in numbers}
      after = {**known, **new} if operation == 'replace' else {**new, **known}
    elif choice < 0.95 and there:
      operation = 'remove'
      for number in there:
        del after[f'crop {number}']
    elif engines.engine_class(engine).can_compact:
      operation = 'compact'
    else:
      continue
    print(json.dumps({'begin': operation, 'after': after}), flush=True)
    rows = [row_of(folder, number, version) for number in numbers]
    if operation == 'build':
      writer.build(index, rows, DigestModel(), engine_name=engine, overwrite=True, **options)
    elif operation == 'remove':
      writer.remove(index, [f'crop {number}' for number in there])
    elif operation == 'compact':
      writer.compact(index)
    else:
      writer.add(index, rows, DigestModel(), existing=operation, **options)
    known = after
    print(json.dumps({'done': operation}), flush=True)


def contents(index: str) -> dict[str, int]:
  """The crops of an index: id to version. Each is checked.

  Raises:
    AssertionError: something is not as it was written.
  """
  import tfreid.index.engines
  from tfreid.index.directory import IndexDirectory

  with contextlib.closing(tfreid.index.engines.open_engine(IndexDirectory(index))) as engine:
    return _contents(engine)


def _contents(engine):
  import numpy as np

  problems = engine.problems()
  if problems:
    raise AssertionError(problems)
  found = {}
  for concepts, rows in engine.parts():
    for vector, row in zip(concepts, rows):
      number, version = int(row.id.split()[1]), row.fields['version']
      expected = concept(contents_of(number, version))
      if not np.array_equal(vector, expected) or row.fields['camera'] != number % 3:
        raise AssertionError(f'{row} has {vector}; expected {expected}.')
      found[row.id] = version
  if len(found) != engine.size:
    raise AssertionError(f'{len(found)} crops, but the index says {engine.size}.')
  return found


def check_nothing_is_left(index: str) -> None:
  """Cleans up as the next writer would, and looks whether a killed one left anything.

  Raises:
    AssertionError: it did.
  """
  from tfreid.index.directory import IndexDirectory

  folder = IndexDirectory(index)
  if not folder.exists:
    return
  with folder.lock():
    folder.clean()
    shards = folder.read_pending().get('shards', {}).values()
    entries = [*folder.read()['segments'], *(shard['segment'] for shard in shards)]
  left = set(os.listdir(folder.segments)) - {entry['name'] for entry in entries if entry}
  if left:
    raise AssertionError(f'Of killed writers is left: {sorted(left)}.')


def run(folder: str, kills: int, seed: int, longest: float, engine: str) -> dict[str, int]:
  """Kills `kills` children; returns what was under way, and how it came out.

  Raises:
    AssertionError: something was lost, or is half.
  """
  draw = random.Random(seed)
  index = os.path.join(folder, 'index')
  os.makedirs(os.path.join(folder, 'crops'), exist_ok=True)
  counts: dict[str, int] = {}
  known: dict[str, int] = {}
  for kill in range(kills):
    child = subprocess.Popen(
      [
        sys.executable,
        os.path.abspath(__file__),
        f'--child={folder}',
        f'--seed={seed + kill + 1}',
        f'--engine={engine}',
      ],
      stdout=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    # Until it has imported everything and read the index, there is nothing to interrupt.
    lines = [json.loads(child.stdout.readline() or 'null')]
    if lines[0] is None:
      raise AssertionError(f'Child {kill} ended with {child.wait()} before it wrote anything.')
    if lines[0]['ready'] != known:
      raise AssertionError(f'Child {kill} found {lines[0]["ready"]}; expected {known}.')
    time.sleep(draw.uniform(0.0, longest))
    if child.poll() is not None:
      raise AssertionError(f'Child {kill} ended by itself with {child.returncode}.')
    os.killpg(child.pid, signal.SIGKILL)
    # A line that was cut off was not said.
    rest = child.stdout.read().split('\n')[:-1]
    child.wait()
    child.stdout.close()
    before, under_way = known, None
    for line in map(json.loads, rest):
      if 'begin' in line:
        under_way = line
      else:
        before, under_way = under_way['after'], None
        counts['done'] = counts.get('done', 0) + 1
    if not os.path.isfile(os.path.join(index, 'index.json')):
      if before:
        raise AssertionError(f'After kill {kill} the index is gone; it had {len(before)} crops.')
      known, outcome = {}, 'none yet'
    else:
      known = contents(index)
      if known == before:
        outcome = 'before'
      elif under_way and known == under_way['after']:
        outcome = 'after'
      else:
        raise AssertionError(
          f'After kill {kill} in {under_way and under_way["begin"]} the index has {known}; '
          f'expected {before} or {under_way and under_way["after"]}.'
        )
    if kill % 10 == 9 or kill == kills - 1:
      check_nothing_is_left(index)
    name = f'killed in {under_way["begin"]}: {outcome}' if under_way else 'killed between'
    counts[name] = counts.get(name, 0) + 1
  return counts


def main(argv):
  """Runs the test, or is its child."""
  startup.no_arguments(argv)
  if _CHILD.value:
    write(_CHILD.value, _SEED.value, _ENGINE.value)
    return
  folder = tempfile.mkdtemp(prefix='crash-index-')
  try:
    counts = run(folder, _KILLS.value, _SEED.value, _LONGEST.value, _ENGINE.value)
  except AssertionError as error:
    print(f'Lost or half (in {folder}): {error}', file=sys.stderr)
    sys.exit(1)
  for name in sorted(counts):
    print(f'{counts[name]:6d}  {name}')
  print(f'{_KILLS.value} kills: nothing committed was lost, nothing is half.')
  if not _KEEP.value:
    shutil.rmtree(folder)


if __name__ == '__main__':
  app.run(main)
