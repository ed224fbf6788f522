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


# All cases in one process, since importing TensorFlow takes longer than reading gin files. `evil`
# is a module that only the last case may import.
_CASES = """
import json, sys
from pathlib import Path
from tfreid.cli import configuration
import gin
answers = {}
for name, (texts, bindings, options) in json.loads(sys.argv[1]).items():
  gin.clear_config()
  assert 'evil' not in sys.modules, name
  for number, text in enumerate(texts):
    Path(f'own{number}.gin').write_text('from __gin__ import dynamic_registration\\n' + text)
  files = options.pop('files', ['methods/a2img.gin', 'datasets/synthetic.gin'])
  try:
    configuration.configure([*files, *(['own0.gin'] if texts else [])], bindings, **options)
    answers[name] = 'read'
  except (ValueError, OSError) as error:
    answers[name] = str(error)
assert 'evil' in sys.modules
print(json.dumps(answers))
"""
_TRAIN = {'root': 'tfreid.experiment.train'}
_OPTIMIZERS = 'from tfreid.training import optimizers\n'

# Name -> the texts of the user's own gin files, of which the first is named, bindings, options of
# `configure`, and what is said; 'read' where nothing is wrong.
CASES = {
  # What may be imported.
  'import': (['import evil'], [], {}, ["'import evil' is not allowed", '--allow_imports=evil']),
  'from': (['from evil import x'], [], {}, ['own0.gin, line 2', '--allow_imports=evil']),
  'alias': (['import evil.deep as tfreid'], [], {}, ['not allowed']),
  'like ours': (['import tfreid_evil'], [], {}, ['not allowed']),
  'included': (["include 'own1.gin'", 'import evil'], [], {}, ['own1.gin, line 2']),
  'binding': ([], ['import evil'], {}, ['--gin_bindings', 'not allowed']),
  'system': (['import os'], [], {}, ["'import os' is not allowed"]),
  'command line': (['from tfreid.cli import training_runs'], [], {}, ['not allowed']),
  'allowed': (
    ['import evil\nIMAGE_ENCODER = @evil.encoder'],
    [],
    {'allow_imports': ['evil'], **_TRAIN},
    ['read'],
  ),
  # What may be named.
  'by way of ours': (
    ['from tfreid import storage\nDATASET = @storage.os.remove'],
    [],
    {},
    ["names 'tfreid.storage.os.remove', which belongs to the module 'posix'"],
  ),
  'bound by way of ours': (
    ["from tfreid import storage\nstorage.os.remove.path = '/x'"],
    [],
    {},
    ['which belongs to the module'],
  ),
  # What nothing uses.
  'macro': ([], ['JOINT_EPOCS = 7'], _TRAIN, ['JOINT_EPOCS is bound', "mean 'JOINT_EPOCHS'?"]),
  'macro in a file': (['\nJOINT_EPOCS = 7'], [], _TRAIN, ['own0.gin, line 3', 'JOINT_EPOCHS']),
  'macro in an include': (
    ["include 'own1.gin'", 'JOINT_EPOCS = 7'],
    [],
    _TRAIN,
    ['own1.gin, line 2', 'JOINT_EPOCHS'],
  ),
  'scope': (
    [_OPTIMIZERS + 'joint_imag/optimizers.adam.learning_rate = 0.1'],
    [],
    _TRAIN,
    ["Did you mean 'joint_image/optimizers.adam.learning_rate'?"],
  ),
  'scope in an alias': (
    ['from tfreid.training import optimizers as o\njoint_imag/o.adam.learning_rate = 0.1'],
    [],
    _TRAIN,
    ['joint_imag/o.adam.learning_rate is bound'],
  ),
  'other system': ([], ['GAN_EPOCHS = 3'], _TRAIN, ['GAN_EPOCHS', '--allow_unused_bindings']),
  'function that nothing calls': (
    ['from tfreid.methods import correlation\ncorrelation.DeepCCA.regularization = 1.0'],
    [],
    _TRAIN,
    ['correlation.DeepCCA.regularization is bound'],
  ),
  'used': (
    [_OPTIMIZERS + 'joint_image/optimizers.adam.learning_rate = 0.1\nMETHOD = "mine"'],
    ['JOINT_EPOCHS = 3', 'pipeline.Pipeline.batch_size = 4', 'PRETRAIN_DIRECTORY = "x"'],
    _TRAIN,
    ['read'],
  ),
  'shipped overlay': (
    [],
    [],
    {**_TRAIN, 'files': ['methods/mmd.gin', 'datasets/synthetic.gin', 'tables.gin']},
    ['read'],
  ),
  'not asked': ([], ['JOINT_EPOCS = 7'], {}, ['read']),
  # What a value may be.
  'epochs as text': ([], ['JOINT_EPOCHS = "2"'], {}, ["Stage.epochs (by JOINT_EPOCHS) is '2'"]),
  'epochs and a half': ([], ['JOINT_EPOCHS = 1.5'], {}, ['1.5; expected a whole number']),
  'epochs below 0': ([], ['JOINT_EPOCHS = -1'], {}, ['-1; expected a number that is not negative']),
  'rate below 0': (
    [_OPTIMIZERS + 'joint_image/optimizers.adam.learning_rate = -0.1'],
    [],
    {},
    ['joint_image/optimizers.adam.learning_rate is -0.1; expected'],
  ),
  'rate too large': (
    [_OPTIMIZERS + 'joint_image/optimizers.adam.learning_rate = 1e999'],
    [],
    {},
    ['learning_rate is inf; expected a finite number'],
  ),
  'weight as text': (
    [],
    ['alignment.Adversarial.generator_weight = "0.1"'],
    {},
    ["alignment.Adversarial.generator_weight is '0.1'; expected a number."],
  ),
  'weight below 0': ([], ['alignment.Adversarial.generator_weight = -1'], {}, ['not negative']),
  'batch as number': ([], ['pipeline.Pipeline.batch_size = 8.0'], {}, ['a whole number']),
  'switch as number': ([], ['pipeline.Pipeline.flip = 1'], {}, ['pipeline.Pipeline.flip is 1']),
  'whole number for a number': ([], ['pipeline.Pipeline.cache_gib = 1'], {}, ['read']),
  # Only the data set is used: of the bindings of a run nothing is said, of one's own it is.
  'data set': (
    [],
    ['SPLT = "sal"'],
    {'root': 'DATASET', 'files': ['datasets/peta.gin']},
    ['SPLT is bound', "Did you mean 'SPLIT'?"],
  ),
  'data set of a run': (
    ['JOINT_EPOCS = 7'],
    ['SPLIT = "sal"'],
    {'root': 'DATASET', 'files': ['datasets/peta.gin']},
    ['read'],
  ),
}  # fmt: skip


@pytest.fixture(scope='module')
def answers(tmp_path_factory):
  folder = tmp_path_factory.mktemp('gin')
  (folder / 'evil.py').write_text('def encoder(shape): pass\n')
  names = sorted(CASES, key='allowed'.__eq__)
  done = subprocess.run(
    [sys.executable, '-c', _CASES, json.dumps({name: CASES[name][:3] for name in names})],
    cwd=folder,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(folder)])},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('name', CASES)
def test_what_a_gin_file_may_not_name_and_what_nothing_uses_is_refused(name, answers):
  for words in CASES[name][3]:
    assert words in answers[name]
  assert (answers[name] == 'read') == (CASES[name][3] == ['read'])


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
