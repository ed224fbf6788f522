import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).resolve().parents[1]
RECIPE = (
  'methods/a2img.gin',
  'datasets/synthetic.gin',
  str(ROOT / 'tests' / 'conformance' / 'tiny.gin'),
)
OPTIMIZERS = (
  'image_classification.ImageClassification.body_optimizer',
  'image_classification.ImageClassification.head_optimizer',
  'joint_concepts.JointConcepts.image_optimizer',
  'joint_concepts.JointConcepts.attribute_optimizer',
  'alignment.Adversarial.optimizer',
)


def _free_port():
  with socket.socket() as server:
    server.bind(('127.0.0.1', 0))
    return server.getsockname()[1]


def _start(data, run_dir, strategy, config=None):
  environment = dict(os.environ, PYTHONPATH=str(ROOT / 'tests' / 'conformance'))
  if config:
    environment['TF_CONFIG'] = json.dumps(config)
  return subprocess.Popen(
    [
      sys.executable,
      str(ROOT / 'tools' / 'train.py'),
      *(f'--gin_file={name}' for name in RECIPE),
      f'--gin_bindings=DATA_ROOT = {str(data)!r}',
      '--gin_bindings=PRETRAIN_EPOCHS = 1',
      '--gin_bindings=JOINT_EPOCHS = 2',
      # Plain gradient steps: Adam turns a gradient of rounding errors into a full step.
      *(f'--gin_bindings={name} = @plain/optimizers.sgd' for name in OPTIMIZERS),
      '--gin_bindings=plain/optimizers.sgd.learning_rate = 0.05',
      f'--strategy={strategy}',
      '--allow_imports=small_networks',
      f'--run_dir={run_dir}',
    ],
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _finish(processes):
  outputs = []
  try:
    for process in processes:
      outputs.append(process.communicate(timeout=400)[0])
  finally:
    for process in processes:
      process.kill()
  for process, output in zip(processes, outputs):
    assert process.returncode == 0, output[-3000:]
  return outputs


def _weights(run_dir):
  reader = tf.train.load_checkpoint(str(run_dir / 'joint' / 'final'))
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    if name.startswith('networks/') and name.endswith('VARIABLE_VALUE')
  }


@pytest.mark.slow
def test_two_workers_train_the_model_that_one_process_trains(tiny_market, tmp_path):
  _finish([_start(tiny_market, tmp_path / 'alone', 'one_device')])
  cluster = {'worker': [f'127.0.0.1:{_free_port()}' for _ in range(2)]}
  workers = [
    _start(
      tiny_market,
      tmp_path / 'together',
      'multi_worker',
      {'cluster': cluster, 'task': {'type': 'worker', 'index': index}},
    )
    for index in range(2)
  ]
  chief, _ = _finish(workers)
  alone, together = _weights(tmp_path / 'alone'), _weights(tmp_path / 'together')
  assert alone and set(alone) == set(together)
  for name, value in alone.items():
    np.testing.assert_allclose(together[name], value, rtol=2e-3, atol=2e-4, err_msg=name)
  # The chief alone evaluates and writes the row.
  assert 'rank-1' in chief
  assert len((tmp_path / 'together' / 'results.jsonl').read_text().splitlines()) == 1


def test_multi_worker_without_tf_config_says_what_to_set(tiny_market, tmp_path):
  process = _start(tiny_market, tmp_path / 'run', 'multi_worker')
  output = process.communicate(timeout=300)[0]
  assert process.returncode == 1
  assert 'TF_CONFIG' in output and 'it is not set' in output
  assert 'Traceback' not in output
