import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid.joint_space import JointSpace

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / 'tests' / 'conformance' / 'tiny.gin')
RECIPE = ('methods/a2img.gin', 'datasets/synthetic.gin', TINY)


def _command(*arguments, gin_files=RECIPE):
  return [
    sys.executable,
    str(ROOT / 'tools' / 'train.py'),
    *(f'--gin_file={name}' for name in gin_files),
    '--allow_imports=small_networks',
    *arguments,
  ]


def _environment():
  return dict(os.environ, PYTHONPATH=str(ROOT / 'tests' / 'conformance'))


def _run(*arguments, gin_files=RECIPE):
  return subprocess.run(
    _command(*arguments, gin_files=gin_files),
    env=_environment(),
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=500,
    check=False,
  )


def _recipe(data, *, epochs=2):
  return (
    f'--gin_bindings=DATA_ROOT = {str(data)!r}',
    '--gin_bindings=PRETRAIN_EPOCHS = 1',
    f'--gin_bindings=JOINT_EPOCHS = {epochs}',
  )


def _fails(result, *words):
  text = result.stdout + result.stderr
  assert result.returncode == 1, text
  assert 'Traceback' not in text
  for word in words:
    assert word in text, text
  return text


def test_help_does_not_wait_for_tensorflow():
  code = (
    'import runpy, sys\n'
    f"sys.argv = ['train.py', '--help']; sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
    'try:\n'
    f"  runpy.run_path({str(ROOT / 'tools' / 'train.py')!r}, run_name='__main__')\n"
    'except SystemExit:\n'
    "  print('tensorflow' in sys.modules)\n"
  )
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=False
  )
  assert 'gin_bindings' in result.stdout
  assert result.stdout.splitlines()[-1] == 'False'


def test_missing_gin_file_lists_those_there_are(tmp_path):
  result = _run(f'--run_dir={tmp_path}', gin_files=('methods/a2image.gin',))
  _fails(result, "No gin file 'methods/a2image.gin'", 'a2img.gin')


def test_unknown_parameter_is_named(tmp_path):
  result = _run(
    f'--run_dir={tmp_path}', '--gin_bindings=pipeline.Pipeline.batchsize = 3', *_recipe('/x')
  )
  _fails(result, 'batchsize')


def test_missing_data_root_says_how_to_give_it(tmp_path):
  result = _run(f'--run_dir={tmp_path}')
  _fails(result, 'DATA_ROOT', '--gin_bindings')


def test_missing_data_says_what_was_expected(tmp_path):
  result = _run(f'--run_dir={tmp_path / "run"}', *_recipe(tmp_path))
  _fails(result, 'bounding_box_train', str(tmp_path))


@pytest.mark.slow
def test_run_directory_of_another_configuration_is_refused(tiny_market, tmp_path):
  first = _run(f'--run_dir={tmp_path}', *_recipe(tiny_market, epochs=1))
  assert first.returncode == 0, first.stderr[-2000:]
  assert 'rank-1' in first.stdout
  for name in ('config.gin', 'operative_config.gin', 'schema.json', 'environment.json'):
    assert (tmp_path / name).stat().st_size, name
  again = _run(f'--run_dir={tmp_path}', *_recipe(tiny_market, epochs=3))
  _fails(again, 'another configuration', 'JOINT_EPOCHS = 1', 'JOINT_EPOCHS = 3')


@pytest.mark.slow
def test_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(tiny_market, tmp_path):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  recipe = _recipe(tiny_market, epochs=4)
  assert _run(f'--run_dir={whole}', *recipe).returncode == 0
  process = subprocess.Popen(
    _command(f'--run_dir={killed}', *recipe),
    env=_environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.time() + 300
  while not list(killed.glob('joint/ckpt-*')):
    assert process.poll() is None and time.time() < deadline
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (killed / 'joint' / 'final.json').exists()
  resumed = _run(f'--run_dir={killed}', *recipe)
  assert resumed.returncode == 0, resumed.stderr[-2000:]
  readers = [tf.train.load_checkpoint(str(run / 'joint' / 'final')) for run in (whole, killed)]
  names = [n for n in readers[0].get_variable_to_shape_map() if n.startswith('networks/')]
  assert names
  for name in names:
    one, other = (reader.get_tensor(name) for reader in readers)
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_real_resnet_50_trains_and_is_evaluated(tiny_market, tmp_path):
  result = _run(
    f'--run_dir={tmp_path}',
    *_recipe(tiny_market, epochs=1),
    '--gin_bindings=pipeline.Pipeline.image_size = (64, 32)',
    '--gin_bindings=IMAGE_ENCODER = @image.image_encoder',
    '--gin_bindings=image.image_encoder.weights = None',
  )
  assert result.returncode == 0, result.stderr[-3000:]
  assert 'rank-1' in result.stdout
  space = JointSpace.load(str(tmp_path / 'joint' / 'space'))
  assert space.image_encoder.count_params() > 23_000_000  # a ResNet-50, not a stand-in


@pytest.mark.slow
def test_the_model_that_ships_is_trained_further_on_other_attributes(tiny_market, tmp_path):
  """`fine_tune.gin`: a first epoch from trained weights, at another size than they had."""
  bindings = (
    f'--gin_bindings=DATA_ROOT = {str(tiny_market)!r}',
    f'--gin_bindings=EXPORTED_MODEL = {str(ROOT / "saved_models" / "photographs")!r}',
    '--gin_bindings=DEEPMAR_EPOCHS = 1',
    '--gin_bindings=pipeline.Pipeline.image_size = (64, 32)',
    '--gin_bindings=pipeline.Pipeline.batch_size = 8',
    '--gin_bindings=DEEPMAR_BATCH_SIZE = 8',
  )
  files = ('fine_tune.gin', 'datasets/synthetic.gin')
  run = tmp_path / 'run'
  _fails(_run(*bindings, f'--run_dir={run}', gin_files=files), 'EXPORTED_STATISTICS_FROM = …')
  statistics = f'--gin_bindings=EXPORTED_STATISTICS_FROM = {str(tiny_market)!r}'
  result = _run(*bindings, statistics, f'--run_dir={run}', gin_files=files)
  assert result.returncode == 0, result.stderr
  assert 'has the weights of' in result.stderr + result.stdout
  space = JointSpace.load(str(run / 'deepmar' / 'space'))
  assert space.image_encoder.input_shape == (None, 64, 32, 3)
  names = {layer.name for layer in space.image_encoder.layers}
  assert {'conv1_conv', 'conv1_bn', 'conv4_1_gate_fc1', 'features'} <= names
