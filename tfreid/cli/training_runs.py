"""What the sub-commands share that run `tfreid train` many times: flags, data, command lines.

A sub-command that uses them adopts the flags for its --help:
`flags.adopt_module_key_flags(training_runs)`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from absl import app, flags

from tfreid.cli import gin_flags, recipes, startup

_DATASET = flags.DEFINE_string('dataset', 'synthetic', 'Name of a file in gin/datasets/.')
_DATA_ROOT = flags.DEFINE_string(
  'data_root', None, 'Where the data is. Without it, synthetic people are drawn.'
)
_GIN_FILE = flags.DEFINE_multi_string(
  'gin_file', None, 'Overlay for all systems, repeatable; tables.gin if no --data_root is given.'
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], 'One more binding for all systems, repeatable; wins over the files.'
)
flags.DEFINE_alias('gin_param', 'gin_bindings')

# What is drawn where no data are given; gin/tables.gin has the recipe that goes with it. Many
# people of few images each: what systems learn from is different descriptions.
_PEOPLE = os.path.join('datasets', 'tables')
_TRAIN_PEOPLE, _TEST_PEOPLE, _IMAGES_PER_PERSON = 300, 250, (3, 5)
_SIZE = (64, 32)
_NUM_IMAGES = _TRAIN_PEOPLE * sum(_IMAGES_PER_PERSON) // 2  # for training, about

# Data sets whose training images are not just the files of a folder: what reads them -> the module
# that counts them.
_COUNTED = {'peta.load': 'peta', 'manifest.load': 'manifest'}


def begin(*, needs_data: bool = True) -> None:
  """Refuses a data set without its folder, and lets SIGTERM end a command as Ctrl-C does.

  Args:
    needs_data: whether the command will read the data.

  Raises:
    app.UsageError: --dataset without --data_root.
  """
  if needs_data and is_drawn() and _DATASET.value != 'synthetic':
    raise app.UsageError('With --dataset give --data_root, the folder that holds the data.')
  signal.signal(signal.SIGTERM, interrupt)


def dataset() -> str:
  """The name of a file in gin/datasets."""
  return _DATASET.value


def is_drawn() -> bool:
  """Whether the data are synthetic people that the sub-command draws."""
  return _DATA_ROOT.value is None


def data_root() -> str:
  """The folder of the data."""
  root = _DATA_ROOT.value
  return _PEOPLE if root is None else root


def overlays() -> list[str]:
  """The gin files that all systems have after their own."""
  return _GIN_FILE.value or (['tables.gin'] if is_drawn() else [])


def gin_bindings() -> list[str]:
  """The bindings of the command line."""
  return _GIN_BINDINGS.value


def num_images(recipe: recipes.Recipe) -> int:
  """The number of training images, 0 where it cannot be told.

  Args:
    recipe: of any of the systems; all have the same data.
  """
  from tfreid import image_bytes

  reader, arguments = recipe.dataset()
  if reader in _COUNTED:
    # Importing the module of a data set takes pandas, not TensorFlow.
    count = importlib.import_module(f'tfreid.data.{_COUNTED[reader]}').count_train_images
    known = inspect.signature(count).parameters
    try:
      return count(**{name: value for name, value in arguments.items() if name in known})
    except FileNotFoundError:
      return 0
  folder = os.path.join(data_root(), 'bounding_box_train')
  if os.path.isdir(folder):
    return sum(name.lower().endswith(image_bytes.ENDINGS) for name in os.listdir(folder))
  return _NUM_IMAGES if is_drawn() else 0


def files(system: str) -> list[str]:
  """The gin files of a system's runs."""
  return [f'methods/{system}.gin', f'datasets/{_DATASET.value}.gin', *overlays()]


def bindings() -> list[str]:
  """What all runs are bound to, the command line last."""
  return [f'DATA_ROOT = {data_root()!r}', *_GIN_BINDINGS.value]


def command(files: Sequence[str], bindings: Sequence[str], directory: str) -> list[str]:
  """The command line of one run of `tfreid train`.

  Args:
    files: gin files, in order.
    bindings: 'name = value'.
    directory: to run in.
  """
  return [
    *startup.program('train'),
    *(f'--gin_file={name}' for name in files),
    *(f'--gin_bindings={binding}' for binding in bindings),
    f'--run_dir={directory}',
    # Whether it may continue was decided before, by what the run uses and not by every line of an
    # overlay that serves all systems.
    '--allow_changed_config',
    # One overlay serves all systems.
    '--allow_unused_bindings',
    *gin_flags.passed_on(),
  ]


def typed(subcommand: str) -> str:
  """The command line of this process as it was typed."""
  return f'tfreid {subcommand} {shlex.join(sys.argv[1:])}'.strip()


def shown(command: Sequence[str]) -> str:
  """A command as a user would type it."""
  return shlex.join(['tfreid', *command[2:]])


def draw_people() -> None:
  """Draws the synthetic people, unless these very ones are there."""
  command = startup.program('synthesize')
  status = subprocess.call([*command, *people_flags()])
  if status:
    raise OSError(f'The synthetic people could not be drawn (exit status {status}).')


def people_flags() -> list[str]:
  """Flags of `tfreid synthesize` that draw them."""
  return [
    f'--out={_PEOPLE}',
    '--difficulty=easy',
    f'--num_train_people={_TRAIN_PEOPLE}',
    f'--num_test_people={_TEST_PEOPLE}',
    f'--image_height={_SIZE[0]}',
    f'--image_width={_SIZE[1]}',
    f'--gin_bindings=synthetic.SyntheticPeople.images_per_person = {_IMAGES_PER_PERSON}',
    '--seed=0',
  ]


def seeds(texts: Sequence[str]) -> list[int]:
  """The whole numbers of a flag.

  Raises:
    ValueError: one is none.
  """
  try:
    return [int(text) for text in texts]
  except ValueError as error:
    raise ValueError(f'--seeds takes whole numbers, not {",".join(texts)!r}.') from error


def interrupt(*_: object) -> None:
  """Handles SIGTERM as Ctrl-C is handled."""
  raise KeyboardInterrupt
