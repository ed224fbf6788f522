import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_PARSE = """
import sys
from tfreid.cli import configuration
print(configuration.configure(['methods/without_adversarial.gin', 'datasets/synthetic.gin']))
"""


def test_a_folder_called_datasets_does_not_hide_the_gin_files_of_that_name(tmp_path):
  # gin looks for an include among Python's packages too, and a plain folder is one.
  (tmp_path / 'datasets').mkdir()
  result = subprocess.run(
    [sys.executable, '-c', _PARSE],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(tmp_path)])},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert 'Synthetic people' in result.stdout
  assert 'Path not found' not in result.stderr


@pytest.mark.parametrize(
  ('tool', 'kept'),
  [('index', True), ('search', True), ('serve', True), ('train', False), ('export', False)],
)
def test_only_tools_that_never_train_let_weights_be_taken_for_constants(tool, kept):
  code = f'import tfreid.cli.{tool}, json, os'
  code += '; print(json.dumps(dict(os.environ)))'
  names = ('TF_ONEDNN_ASSUME_FROZEN_WEIGHTS', 'NVIDIA_TF32_OVERRIDE')
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env={name: value for name, value in os.environ.items() if name not in names},
    capture_output=True,
    text=True,
    check=True,
  )
  found = json.loads(done.stdout.splitlines()[-1])
  assert [found.get(name) for name in names] == (['1', '0'] if kept else [None, None])
