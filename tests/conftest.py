"""What all tests share: TensorFlow's surroundings, the real annotation files, a tiny data set."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ANNOTATIONS = ('market_attribute.mat', 'duke_attribute.mat', 'PETA.mat')

# Before anything imports TensorFlow. On the CPU, unless the caller names a GPU, and with as many
# threads on each machine: the order of a parallel sum is a part of its result.
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '2')
os.environ.setdefault('TF_NUM_INTEROP_THREADS', '2')
# As the package does, which most tests import after TensorFlow.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
# Tests train in this process: no tool that one of them imports may have weights kept as constants.
os.environ['TF_ONEDNN_ASSUME_FROZEN_WEIGHTS'] = '0'


@pytest.fixture(scope='session', autouse=True)
def _nothing_in_the_home_directory(tmp_path_factory):
  """What `tfreid.index.trust` keeps of a user, in a file of the session."""
  if 'TFREID_TRUST_FILE' not in os.environ:
    os.environ['TFREID_TRUST_FILE'] = str(tmp_path_factory.mktemp('trust') / 'trusted.jsonl')


@pytest.fixture(autouse=True)
def _precision_of_one_test_is_not_that_of_the_next():
  yield
  if 'tensorflow' in sys.modules:
    sys.modules['tensorflow'].keras.mixed_precision.set_global_policy('float32')


def _split_cpu():
  import tensorflow as tf

  cpu = tf.config.list_physical_devices('CPU')[0]
  if len(tf.config.get_logical_device_configuration(cpu) or ()) < 2:
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def pytest_collection_finish(session):
  """Splits the CPU in two before the first test starts the TensorFlow runtime."""
  if 'tensorflow' in sys.modules and not session.config.option.collectonly:
    _split_cpu()
  # What has been imported stays, and need not be looked through each time garbage is collected.
  gc.collect()
  gc.freeze()


@pytest.fixture(scope='session')
def two_devices() -> list[str]:
  """Names of two logical CPUs, for tests of replicas in one process."""
  import tensorflow as tf

  _split_cpu()
  return [device.name for device in tf.config.list_logical_devices('CPU')]


_TOOL_ON_TWO_DEVICES = """
import runpy
import sys
import tensorflow as tf
(cpu,) = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, 'tools')
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='session')
def run_on_two_devices():
  """run_on_two_devices(tool, *arguments): the tool in a process whose CPU is split in two."""

  def run(tool, *arguments):
    return subprocess.run(
      [sys.executable, '-c', _TOOL_ON_TWO_DEVICES, f'tools/{tool}.py', *map(str, arguments)],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )

  return run


@pytest.fixture(scope='session')
def shared_data() -> Path:
  """Folder of the real annotation files of Market-1501, DukeMTMC-reID and PETA.

  They stand in ../shared/data beside the checkout, not in it: their licences do not let the project
  ship them. Without them the tests that need them are skipped.
  """
  shared = ROOT.parent / 'shared'
  missing = [name for name in ANNOTATIONS if not (shared / 'data' / name).is_file()]
  if missing:
    reason = f'no {", ".join(missing)} in {shared / "data"}'
    if os.environ.get('CI') and shared.is_dir():
      pytest.fail(f'{reason}, though {shared} is there: its tests must not be skipped silently')
    pytest.skip(reason)
  return shared / 'data'


@pytest.fixture(scope='session')
def shared_photographs() -> Path:
  """Folder of real photographs, ../shared/photos beside the checkout; no part of the project.

  Without them the tests that need them are skipped. What tests say of them are numbers only.
  """
  photographs = ROOT.parent / 'shared' / 'photos'
  missing = [name for name in ('peta', 'odd_files') if not (photographs / name).is_dir()]
  if missing:
    reason = f'no {", ".join(missing)} in {photographs}'
    if os.environ.get('CI') and photographs.parent.is_dir():
      pytest.fail(f'{reason}, though {photographs.parent} is there: not to be skipped silently')
    pytest.skip(reason)
  return photographs


@pytest.fixture(scope='session')
def tiny_market(tmp_path_factory) -> Path:
  """Folder of drawn people in Market-1501's layout: 16 in training, 10 in test, 4 crops of each.

  Also 2 false detections and 2 distractors; crops of 32x16 pixels. Not to be written to: all tests
  of a session read it.
  """
  from tfreid.data.synthetic import SyntheticPeople

  people = SyntheticPeople(
    num_train_people=16,
    num_test_people=10,
    images_per_person=(4, 4),
    image_size=(32, 16),
    num_junk=2,
    num_distractors=2,
  )
  folder = tmp_path_factory.mktemp('people') / 'market'
  return Path(people.write(folder, workers=1, progress=False).directory)
