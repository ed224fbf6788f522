#!/usr/bin/env python3
"""Cuts the power at every step of a training and checks that nothing acknowledged is lost.

  tools/power_cuts.py                   as many states as there are
  tools/power_cuts.py --states=40       40 of them, evenly spaced
  tools/power_cuts.py --begin=40 --states=40      the 40 from there on
  tools/power_cuts.py --keep            leaves the folder for inspection

A small training of two stages runs under strace, which records everything that it writes, syncs,
renames and removes, TensorFlow's own writing in C++ included. The record is replayed on a simulated
disk, and after each step the power is cut, in several ways:

  strict   only names and contents that were synced are there
  names    all names are there, but files hold what they held when they were last synced
  torn     as `names`, with the first half of what was appended to a file since
  kill     everything is there, as after a kill
  mixed    some of the names since the last sync, and of each file the old content, the new, or
           the old with a part of what was appended

Each state is written out, and must have: every stage that was finished and every checkpoint and row
of results that was acknowledged by a sync, whole; nothing that carries a name and is not whole but
for what the next start removes. Then the same training continues from it, and must end with the
weights of the uninterrupted one. States that are alike are checked once. Needs strace and Linux.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import app, flags, logging

_STATES = flags.DEFINE_integer('states', 0, 'How many states to check; 0 is all.', lower_bound=0)
_BEGIN = flags.DEFINE_integer(
  'begin', None, 'Check --states in a row, from this one on.', lower_bound=0
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the mixed states.')
_KEEP = flags.DEFINE_bool('keep', False, 'Leave the folder for inspection.')
_TRAIN = flags.DEFINE_string('train', None, 'The folder; starts the process that is recorded.')

_FINAL = ('first/final.json', 'second/final.json')
WAYS = ('strict', 'names', 'torn', 'kill', 'mixed')
_CALLS = (
  'openat,open,creat,write,pwrite64,writev,lseek,fsync,fdatasync,sync_file_range,rename,renameat,'
  'renameat2,unlink,unlinkat,rmdir,truncate,ftruncate,mkdir,mkdirat,link,linkat,symlink,symlinkat,'
  'fallocate,copy_file_range,sendfile'
)


class Event(NamedTuple):
  """One call that changed or synced something below the run directory.

  Attributes:
    kind: 'create', 'write', 'truncate', 'sync', 'sync folder', 'rename', 'remove' or 'folder'.
    path: relative to the run directory.
    other: the new path of a rename.
    offset: in bytes, of a write; the size of a truncate.
    content: of a write.
  """

  kind: str
  path: str
  other: str = ''
  offset: int = 0
  content: bytes = b''


class File:
  """What a file holds now, and what it held when it was last synced (None: never)."""

  def __init__(self):
    self.content = bytearray()
    self.synced: bytes | None = None


class Disk:
  """A disk with a cache in front of it, as a file system without promises has it.

  Attributes:
    names: path -> File, or None for a folder; as the processes see it.
    durable: the same, of names whose folder was synced since they came.
    pending: the changes of names that are in `names` and not in `durable`, in order.
  """

  def __init__(self):
    self.names: dict[str, File | None] = {'': None}
    self.durable: dict[str, File | None] = {'': None}
    self.pending: list[tuple[str, str, File | None]] = []

  def apply(self, event: Event) -> None:
    """Does what a call did."""
    file = self.names.get(event.path)
    if event.kind == 'folder':
      self._put(event.path, None)
    elif event.kind == 'create' and event.path not in self.names:
      self._put(event.path, File())
    elif event.kind == 'rename':
      below = [n for n in self.names if n == event.path or n.startswith(f'{event.path}/')]
      moved = {event.other + name[len(event.path) :]: self.names[name] for name in below}
      for name in below:
        self._drop(name)
      for name, what in moved.items():
        self._put(name, what)
    elif event.kind == 'remove':
      self._drop(event.path)
    elif event.kind == 'sync folder':
      self._sync_folder(event.path)
    elif file is None:
      return  # of a file that was not made below the run directory
    elif event.kind == 'write':
      end = event.offset + len(event.content)
      if len(file.content) < end:
        file.content.extend(bytes(end - len(file.content)))
      file.content[event.offset : end] = event.content
    elif event.kind == 'truncate':
      del file.content[event.offset :]
      file.content.extend(bytes(event.offset - len(file.content)))
    elif event.kind == 'sync':
      file.synced = bytes(file.content)

  def _put(self, name, what):
    self.names[name] = what
    self.pending.append(('put', name, what))

  def _drop(self, name):
    if name in self.names:
      del self.names[name]
      self.pending.append(('drop', name, None))

  def _sync_folder(self, folder):
    def inside(name):
      return bool(name) and os.path.dirname(name) == folder

    for name in [name for name in self.durable if inside(name) and name not in self.names]:
      # A folder that is gone takes with it what was in it, under its new name as well as its old.
      for below in [n for n in self.durable if n == name or n.startswith(f'{name}/')]:
        del self.durable[below]
    for name, what in self.names.items():
      if inside(name):
        self.durable[name] = what
        if what is None:
          # A folder that was renamed brings what had been synced in it under its old name.
          for below, file in self.names.items():
            if below.startswith(f'{name}/') and self._is_known(file):
              self.durable.setdefault(below, file)
    self.pending = [change for change in self.pending if not inside(change[1])]

  def _is_known(self, file):
    return file is None or file.synced is not None

  def after_cut(self, way: str, draw: random.Random) -> dict[str, bytes | None]:
    """What is on the disk when the power comes back: path -> content, None for a folder."""
    names = dict(self.durable if way == 'strict' else self.names)
    if way == 'mixed':
      names = dict(self.durable)
      # Journals keep the order of changes of names: some first ones have arrived.
      for kind, name, what in self.pending[: draw.randint(0, len(self.pending))]:
        if kind == 'put':
          names[name] = what
        else:
          names.pop(name, None)
    state: dict[str, bytes | None] = {}
    for name, file in names.items():
      parents = [part for part in _parents(name) if names.get(part, b'') is not None]
      if parents:
        continue  # its folder did not arrive
      state[name] = None if file is None else self._content(file, way, draw)
    return state

  def _content(self, file, way, draw):
    synced, now = file.synced or b'', bytes(file.content)
    if way == 'kill':
      return now
    # What was synced once stays: a file that was appended to since does not lose its beginning.
    appended = len(now) - len(synced) if now.startswith(synced) else 0
    if way == 'torn':
      return now[: len(synced) + appended // 2] if appended else synced
    if way == 'mixed':
      part = now[: len(synced) + draw.randint(0, appended)] if appended else synced
      return draw.choice([synced, now, part])
    return synced


def _parents(name: str) -> Iterator[str]:
  while name:
    name = os.path.dirname(name)
    yield name


# What strace wrote.

_LINE = re.compile(r'^(\d+)\s+(\w+)\((.*)\)\s+=\s+(-?\d+)(.*)$')
_DESCRIPTOR = re.compile(r'^(-?\d+|AT_FDCWD)(?:<(.*)>)?$')


def calls(path: str) -> Iterator[tuple[str, str, list[str], int, str]]:
  """Yields (thread, name, arguments, result, rest) of each finished call in strace's output."""
  open_calls: dict[str, str] = {}
  with open(path, encoding='latin-1') as file:
    for line in file:
      line = line.rstrip('\n')
      if line.endswith('<unfinished ...>'):
        thread = line.split(' ', 1)[0]
        open_calls[thread] = line[: -len('<unfinished ...>')].rstrip()
        continue
      resumed = re.match(r'^(\d+)\s+<\.\.\. \w+ resumed>(.*)$', line)
      if resumed:
        begun = open_calls.pop(resumed.group(1), '')
        line = f'{begun}{resumed.group(2).lstrip() if begun.endswith("(") else resumed.group(2)}'
      match = _LINE.match(line)
      if match and int(match.group(4)) >= 0:
        thread, name, arguments, result, rest = match.groups()
        yield thread, name, _split(arguments), int(result), rest


def _split(text: str) -> list[str]:
  """Arguments; a comma within quotes, <> or brackets separates nothing."""
  parts, depth, quoted, begin = [], 0, False, 0
  if len(text) > 100_000:  # of a write: descriptor, content, and one or two numbers
    first = text.index(', "')
    last = text.rindex('"')
    return [text[:first], text[first + 2 : last + 1], *_split(text[last + 3 :])]
  for i, letter in enumerate(text):
    if letter == '"':
      quoted = not quoted
    elif not quoted and letter in '<[{':
      depth += 1
    elif not quoted and letter in '>]}':
      depth -= 1
    elif letter == ',' and not quoted and not depth:
      parts.append(text[begin:i].strip())
      begin = i + 1
  return [*parts, text[begin:].strip()]


def _bytes(text: str) -> bytes:
  """A string of strace -xx."""
  return bytes.fromhex(text.strip('"').replace('\\x', ''))


def events(trace: str, directory: str) -> list[Event]:
  """What a recorded process did below a directory, in order.

  Raises:
    ValueError: a call was used that the replay does not know.
  """
  reader = _Reader(directory)
  for _, name, arguments, result, rest in calls(trace):
    reader.read(name, arguments, result, rest)
  return reader.events


class _Reader:
  """Follows descriptors and offsets through the calls."""

  def __init__(self, directory):
    self.directory = os.path.realpath(directory)
    self.events: list[Event] = []
    self._offsets: dict[tuple[str, int], int] = {}
    self._appends: set[tuple[str, int]] = set()
    self._sizes: dict[str, int] = {}

  def read(self, name, arguments, result, rest):
    if name in ('openat', 'open', 'creat'):
      self._open(name, arguments, result, rest)
    elif name in ('write', 'pwrite64', 'lseek', 'fsync', 'fdatasync', 'ftruncate'):
      self._descriptor(name, arguments, result)
    elif name in ('rename', 'renameat', 'renameat2'):
      old, new = self._paths(arguments)
      if old is not None or new is not None:
        if old is None or new is None:
          raise ValueError(f'Something was moved in or out: {arguments}.')
        self._add(Event('rename', old, new))
        self._sizes[new] = self._sizes.pop(old, 0)
    elif name in ('unlink', 'unlinkat', 'rmdir', 'mkdir', 'mkdirat'):
      (path,) = self._paths(arguments)[:1]
      if path is not None:
        self._add(Event('folder' if name.startswith('mkdir') else 'remove', path))
    elif any(self.directory in self._decoded(part) for part in arguments):
      raise ValueError(f'The replay does not know {name}({", ".join(arguments)[:300]}).')

  def _add(self, event):
    self.events.append(event)

  def _decoded(self, text):
    return re.sub(r'(\\x[0-9a-f]{2})+', lambda m: _bytes(m.group()).decode('latin-1'), text[:5000])

  def _below(self, path):
    path = os.path.normpath(path)
    if path == self.directory:
      return ''
    return path[len(self.directory) + 1 :] if path.startswith(f'{self.directory}/') else None

  def _paths(self, arguments):
    """Relative paths in the arguments; a descriptor before a path is its folder."""
    found, folder = [], os.getcwd()
    for argument in arguments:
      match = _DESCRIPTOR.match(self._decoded(argument))
      if match and match.group(2):
        folder = match.group(2)
      elif argument.startswith('"'):
        found.append(self._below(os.path.join(folder, _bytes(argument).decode())))
    return found

  def _open(self, name, arguments, result, rest):
    path = self._paths(arguments)[0]
    modes = arguments[1 if name != 'openat' else 2] if name != 'creat' else 'O_CREAT|O_TRUNC'
    match = re.match(r'^<(.*?)>', self._decoded(rest))
    if path is None or not match:
      return
    key = (path, result)
    self._offsets[key] = 0
    self._appends.discard(key)
    if 'O_APPEND' in modes:
      self._appends.add(key)
    if 'O_CREAT' in modes and 'O_DIRECTORY' not in modes:
      self._sizes.setdefault(path, 0)
      self._add(Event('create', path))
    if 'O_TRUNC' in modes:
      self._sizes[path] = 0
      self._add(Event('truncate', path))

  def _descriptor(self, name, arguments, result):
    match = _DESCRIPTOR.match(self._decoded(arguments[0]))
    path = self._below(match.group(2)) if match and match.group(2) else None
    if path is None:
      return
    key = (path, int(match.group(1)))
    if name == 'lseek':
      self._offsets[key] = result
    elif name in ('fsync', 'fdatasync'):
      is_file = path in self._sizes
      self._add(Event('sync' if is_file else 'sync folder', path))
    elif name == 'ftruncate':
      self._sizes[path] = int(arguments[1])
      self._add(Event('truncate', path, offset=int(arguments[1])))
    else:
      offset = int(arguments[3]) if name == 'pwrite64' else self._offsets.get(key, 0)
      if key in self._appends:
        offset = self._sizes[path]
      content = _bytes(arguments[1])[:result]
      if name == 'write':
        self._offsets[key] = offset + result
      self._sizes[path] = max(self._sizes.get(path, 0), offset + result)
      self._add(Event('write', path, offset=offset, content=content))


# The training that is recorded, and continued.


def _image_encoder(image_shape):
  import tensorflow as tf

  pixels = tf.keras.Input(image_shape)
  x = tf.keras.layers.Conv2D(4, 4, 4, activation='relu')(pixels)
  x = tf.keras.layers.GlobalAveragePooling2D()(tf.keras.layers.BatchNormalization()(x))
  return tf.keras.Model(pixels, tf.keras.layers.Dense(4)(x), name='image_encoder')


def train(folder: str, name: str) -> None:
  """The training: two stages of two epochs, the second carries from the first."""
  from tfreid import experiment
  from tfreid.data import market1501
  from tfreid.data.pipeline import Pipeline
  from tfreid.methods import alignment
  from tfreid.methods.joint_concepts import JointConcepts
  from tfreid.networks import attribute
  from tfreid.training import optimizers
  from tfreid.training.stages import Stage

  method = functools.partial(
    JointConcepts,
    image_encoder=_image_encoder,
    attribute_generator=functools.partial(attribute.attribute_generator, hidden=(4,)),
    alignment=alignment.NoAlignment,
    image_optimizer=functools.partial(optimizers.sgd, 0.02),
    attribute_optimizer=functools.partial(optimizers.sgd, 0.02),
  )
  experiment.train(
    os.path.join(folder, name),
    dataset=lambda: market1501.load(os.path.join(folder, 'people')),
    pipeline=lambda: Pipeline((32, 16), 8),
    stages=[
      Stage('first', method, 3),
      Stage('second', method, 2, carry={'first': ('image_encoder',)}),
    ],
    method='power cuts',
    strategy='one_device',
    config='POWER = "cut"\n',
    operative_config=lambda: 'POWER = "cut"\n',
  )


def draw_people(folder: str) -> None:
  """Draws the few people that are trained on."""
  from tfreid.data.synthetic import SyntheticPeople

  people = SyntheticPeople(
    num_train_people=4,
    num_test_people=3,
    images_per_person=(4, 4),
    image_size=(32, 16),
    num_junk=1,
    num_distractors=1,
  )
  people.write(os.path.join(folder, 'people'), workers=1)


def _record(folder: str) -> list[Event]:
  trace = os.path.join(folder, 'trace')
  # Descriptors with their paths, strings in full and as hexadecimal numbers.
  command = ['strace', '-f', '-y', '-xx', '-s', '100000000', '-o', trace, '-e', f'trace={_CALLS}']
  command += [sys.executable, os.path.abspath(__file__), f'--train={folder}']
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  return events(trace, os.path.join(folder, 'run'))


# Checks.


def weights(directory: str) -> dict[str, Any]:
  """The networks' values in the final checkpoints of both stages."""
  import tensorflow as tf

  from tfreid.training import checkpoints

  found = {}
  for stage in ('first', 'second'):
    with checkpoints.final_prefix(os.path.join(directory, stage)) as prefix:
      reader = tf.train.load_checkpoint(prefix)
      for key in reader.get_variable_to_shape_map():
        if key.startswith('networks/'):
          found[stage, key] = reader.get_tensor(key)
  return found


def acknowledged(state: Mapping[str, bytes | None]) -> dict[str, Any]:
  """What a state without anything unsynced promises: final records, checkpoints, rows."""
  found: dict[str, Any] = {}
  for name, content in state.items():
    parts = name.split('/')
    if parts[-1] == 'final.json' or name in ('results.jsonl', 'config.gin'):
      found[name] = content
    elif len(parts) == 3 and parts[1].startswith('ckpt-') and parts[2] == 'seal.json':
      stage = f'{parts[0]}/epoch'
      found[stage] = max(found.get(stage, 0), int(parts[1][5:]))
  return found


def check(directory: str, promised: Mapping[str, Any]) -> None:
  """Looks at a state before anything continues.

  Raises:
    AssertionError: something that was acknowledged is gone, or a name stands for half a thing.
  """
  from tfreid.joint_space import JointSpace
  from tfreid.training import checkpoints, stages

  for name, value in promised.items():
    path = os.path.join(directory, name)
    if name.endswith('/epoch'):
      stage = os.path.dirname(path)
      newest = checkpoints.newest(stage)
      if not stages.is_finished(stage) and (
        newest is None or int(newest.rpartition('-')[2]) < value
      ):
        raise AssertionError(f"The checkpoint after epoch {value} of '{stage}' is gone: {newest}.")
    elif not os.path.isfile(path):
      raise AssertionError(f"'{path}' was on the disk and is gone.")
    else:
      with open(path, 'rb') as file:
        if not file.read().startswith(value):
          raise AssertionError(f"'{path}' has changed.")
  for stage in ('first', 'second'):
    folder = os.path.join(directory, stage)
    if stages.is_finished(folder):
      with checkpoints.final_prefix(folder):
        pass
      for name in stages.facts(folder)['spaces']:
        JointSpace.load(stages.space_directory(folder, name))


def _content(directory, name):
  path = os.path.join(directory, name)
  if not os.path.isfile(path):
    return None
  with open(path, 'rb') as file:
    return file.read()


def write_out(state: Mapping[str, bytes | None], directory: str) -> None:
  """Writes a state as files."""
  shutil.rmtree(directory, ignore_errors=True)
  for name, content in sorted(state.items()):
    path = os.path.join(directory, name)
    if content is None:
      os.makedirs(path, exist_ok=True)
    else:
      with open(path, 'wb') as file:
        file.write(content)


def compare_with_disk(record: Sequence[Event], directory: str) -> None:
  """Checks that the replay ends in what is really there.

  Raises:
    AssertionError: it does not, so that what it says of power cuts means nothing.
  """
  disk = Disk()
  for event in record:
    disk.apply(event)
  replayed = disk.after_cut('kill', random.Random(0))
  there: dict[str, bytes | None] = {'': None}
  for parent, folders, names in os.walk(directory):
    for name in (*folders, *names):
      path = os.path.join(parent, name)
      content = None
      if name in names:
        with open(path, 'rb') as file:
          content = file.read()
      there[os.path.relpath(path, directory)] = content
  different = sorted(n for n in {*there, *replayed} if there.get(n, 0) != replayed.get(n, 0))
  if different:
    raise AssertionError(f'The replay differs from the disk in {different}.')


def states(record: Sequence[Event], seed: int) -> list[tuple[int, str, dict, dict]]:
  """(step, way, state, what was acknowledged) of each state that differs from those before it."""
  disk, seen, found = Disk(), set(), []
  draw = random.Random(seed)
  for number, event in enumerate(record):
    disk.apply(event)
    following = record[number + 1] if number + 1 < len(record) else None
    # Of writes in a row to one file the last is enough: half of it is as good as nothing.
    if following and event.kind == following.kind == 'write' and event.path == following.path:
      continue
    promised = acknowledged(disk.after_cut('strict', draw))
    for way in WAYS:
      state = disk.after_cut(way, draw)
      digest = hashlib.sha256(repr((sorted(state.items()), promised)).encode()).digest()
      if digest not in seen:
        seen.add(digest)
        found.append((number, way, state, promised))
  return found


def run(folder: str, most: int, seed: int, begin: int | None = None) -> dict[str, int]:
  """Records, cuts, checks and continues; returns how many states of each way were checked.

  Raises:
    AssertionError: something was lost, or the training does not continue.
  """
  import numpy as np

  draw_people(folder)
  record = _record(folder)
  compare_with_disk(record, os.path.join(folder, 'run'))
  expected = weights(os.path.join(folder, 'run'))
  found = states(record, seed)
  chosen = found
  if begin is not None:
    chosen = found[begin : begin + most if most else None]
  elif most and most < len(found):
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, most).astype(int))]
  print(f'{len(record)} calls recorded; {len(found)} states, {len(chosen)} to check.', flush=True)
  directory = os.path.join(folder, 'cut')
  counts = dict.fromkeys(WAYS, 0)
  for number, (step, way, state, promised) in enumerate(chosen):
    about = f'power cut after call {step} ({record[step].kind} {record[step].path}), {way}'
    write_out(state, directory)
    try:
      check(directory, promised)
      finished = [_content(directory, name) for name in _FINAL]
      train(folder, 'cut')
      for name, content in zip(_FINAL, finished):
        if content is not None and _content(directory, name) != content:
          raise AssertionError(f"'{name}' was finished, and was trained again.")
      ended = weights(directory)
      for key, value in expected.items():
        np.testing.assert_allclose(ended[key], value, rtol=1e-5, atol=1e-6, err_msg=str(key))
    except (AssertionError, ValueError, OSError) as error:
      raise AssertionError(f'{about}: {error}') from error
    counts[way] += 1
    if (number + 1) % 25 == 0:
      print(f'{number + 1} of {len(chosen)} states continue to the same weights.', flush=True)
  return counts


def main(argv):
  """Runs the test, or is the process that is recorded."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected argument: {argv[1]!r}.')
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  logging.set_verbosity(logging.ERROR)
  if _TRAIN.value:
    train(_TRAIN.value, 'run')
    return
  if not shutil.which('strace'):
    print('strace is needed (apt-get install strace).', file=sys.stderr)
    sys.exit(2)
  folder = os.path.realpath(tempfile.mkdtemp(prefix='power-cuts-'))
  try:
    counts = run(folder, _STATES.value, _SEED.value, _BEGIN.value)
  except AssertionError as error:
    print(f'Lost (in {folder}): {error}', file=sys.stderr)
    sys.exit(1)
  print(json.dumps(counts))
  print(f'{sum(counts.values())} power cuts: nothing acknowledged was lost, each continued.')
  if not _KEEP.value:
    shutil.rmtree(folder)


if __name__ == '__main__':
  app.run(main)
