import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted(path.stem for path in (ROOT / 'gin' / 'methods').glob('*.gin'))
DATASETS = sorted(path.stem for path in (ROOT / 'gin' / 'datasets').glob('*.gin'))

# One process for all: importing TensorFlow takes longer than reading every file.
_PARSE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import _tool
import gin
answers = {}
for name, files in json.loads(sys.argv[2]).items():
  gin.clear_config()
  try:
    answers[name] = _tool.configure(files)
  except ValueError as error:
    answers[name] = f'ERROR {error}'
print(json.dumps(answers))
"""


def _combinations():
  for method in METHODS:
    yield method, [f'methods/{method}.gin', 'datasets/market1501.gin']
  for dataset in DATASETS:
    yield f'data {dataset}', ['methods/a2img.gin', f'datasets/{dataset}.gin']
  yield 'data first', ['datasets/market1501.gin', 'methods/a2img.gin']
  yield (
    'three_state',
    ['methods/a2img.gin', 'datasets/market1501.gin', 'three_state.gin'],
  )
  yield 'demo', ['demo.gin']
  yield 'tables', ['methods/a2img.gin', 'datasets/synthetic.gin', 'tables.gin']


COMBINATIONS = dict(_combinations())


@pytest.fixture(scope='module')
def parsed():
  result = subprocess.run(
    [sys.executable, '-c', _PARSE, str(ROOT / 'tools'), json.dumps(COMBINATIONS)],
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize('name', COMBINATIONS)
def test_shipped_gin_file_parses(name, parsed):
  assert not parsed[name].startswith('ERROR'), parsed[name]


@pytest.mark.parametrize('name', METHODS)
def test_method_file_names_itself_and_its_stages(name, parsed):
  assert f"METHOD = '{name}'" in parsed[name]
  assert '\nSTAGES = ' in parsed[name]


def test_papers_numbers_are_in_the_recipe(parsed):
  # Sec. 4.3: lambda_G, lambda_D, both branches' learning rates, weight decay, pre-training epochs.
  text = parsed['a2img']
  for line in (
    'alignment.Adversarial.generator_weight = 0.001',
    'alignment.Adversarial.discriminator_weight = 0.5',
    'joint_image/optimizers.adam.learning_rate = 0.001',
    'joint_attribute/optimizers.adam.learning_rate = 0.01',
    'joint_concepts.JointConcepts.weight_decay = 0.0005',
    'PRETRAIN_EPOCHS = 100',
    'image.image_encoder.embedding_size = 128',
  ):
    assert line in text, line


def test_three_state_overlay_changes_encoding_and_drops_attributes(parsed):
  assert "ENCODING = 'three_state'" in parsed['three_state']
  assert "ENCODING = 'binary'" in parsed['a2img']


def test_every_gin_file_says_how_it_is_used():
  for path in sorted((ROOT / 'gin').rglob('*.gin')):
    assert path.read_text(encoding='utf-8').startswith('# '), f'{path.name} has no header comment'


def test_gin_folder_is_no_package():
  assert not (ROOT / 'gin' / '__init__.py').exists()  # it would hide gin-config
