import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted(path.stem for path in (ROOT / 'gin' / 'methods').glob('*.gin'))
ENCODERS = sorted(path.stem for path in (ROOT / 'gin' / 'encoders').glob('*.gin'))
DATASETS = sorted(path.stem for path in (ROOT / 'gin' / 'datasets').glob('*.gin'))

# One process for all: importing TensorFlow takes longer than reading every file.
_PARSE = """
import json, sys
import gin
from tfreid.cli import configuration
answers = {}
for name, files in json.loads(sys.argv[1]).items():
  gin.clear_config()
  try:
    answers[name] = configuration.configure(files)
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
  for name in ('without_adversarial', 'mmd', 'deep_coral', 'a2img', 'img2a', 'both'):
    files = [f'methods/{name}.gin', 'datasets/market1501.gin', 'attribute_task.gin']
    yield f'attribute_task {name}', files
  for name in ENCODERS:
    yield f'encoder {name}', ['methods/a2img.gin', 'datasets/peta.gin', f'encoders/{name}.gin']
  yield (
    'person_ids',
    ['methods/dcca.gin', 'datasets/peta.gin', 'encoders/osnet.gin', 'stages/person_ids.gin'],
  )
  photographs = 'photographs/peta.gin'
  for method in METHODS:
    yield f'photographs {method}', [f'methods/{method}.gin', 'datasets/peta.gin', photographs]
  starts = 'from_attributes', 'from_ids', 'from_osnet', 'from_osnet_attributes'
  for name in (*starts, 'resnet50', 'shared', 'size_256x128'):
    files = ['methods/a2img.gin', 'datasets/peta.gin', photographs, f'photographs/{name}.gin']
    yield f'photographs {name}', files
  files = ['methods/a2img.gin', 'datasets/peta.gin', photographs]
  for start in ('from_attributes', 'from_osnet_attributes'):
    overlays = [f'photographs/{start}.gin', 'photographs/attribute_task.gin']
    yield f'attribute_task {start}', [*files, *overlays]
  yield (
    'photographs market',
    ['methods/a2img.gin', 'datasets/market1501.gin', 'photographs/market.gin'],
  )
  for name in ('model', 'model_256x128'):
    yield f'photographs {name}', [f'photographs/{name}.gin']
  yield 'fine_tune', ['fine_tune.gin', 'datasets/manifest.gin']
  yield 'demo', ['demo.gin']
  yield 'full_size', ['full_size.gin']
  yield 'tables', ['methods/a2img.gin', 'datasets/synthetic.gin', 'tables.gin']


COMBINATIONS = dict(_combinations())


@pytest.fixture(scope='module')
def parsed():
  result = subprocess.run(
    [sys.executable, '-c', _PARSE, json.dumps(COMBINATIONS)],
    cwd=ROOT,
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


# As published, each with the line that uses it where a macro stands between.
PUBLISHED = {
  # Eisenschtat and Wolf 2017, the authors' code: settings for images and text.
  'two_way_net': (
    'two_way_net.TwoWayNet.optimizer = @two_way_net/optimizers.sgd',
    'two_way_net/optimizers.sgd.learning_rate = 0.0001',
    'two_way_net/optimizers.sgd.momentum = 0.9',
    'two_way_net/optimizers.sgd.nesterov = True',
    'two_way_net/stages.Stage.schedule = @two_way_net/optimizers.milestones()',
    'two_way_net/optimizers.milestones.epochs = %TWO_WAY_MILESTONES',
    'TWO_WAY_MILESTONES = (20, 40, 60, 80)',
    'two_way_net/optimizers.milestones.factor = 0.5',
    'two_way_net.TwoWayNet.batch_size = %TWO_WAY_BATCH_SIZE',
    'TWO_WAY_BATCH_SIZE = 128',
    'two_way_net.TwoWayNet.dropout = 0.5',
    'two_way_net.TwoWayNet.representation = 1',
    'two_way_net.TwoWayNet.match_weight = 0.25',
    'two_way_net.TwoWayNet.decorrelation_weight = 0.5',
    'two_way_net.TwoWayNet.weight_norm_weight = 0.05',
    'two_way_net.TwoWayNet.inverse_scale_weight = 0.05',
  ),
  # Li et al. 2015, the authors' ResNet-50 code.
  'deepmar': (
    'attribute_prediction.AttributePrediction.optimizer = @deepmar/optimizers.sgd',
    'deepmar/optimizers.sgd.learning_rate = 0.001',
    'deepmar/optimizers.sgd.momentum = 0.9',
    'attribute_prediction.AttributePrediction.batch_size = %DEEPMAR_BATCH_SIZE',
    'DEEPMAR_BATCH_SIZE = 32',
    'deepmar/stages.Stage.epochs = %DEEPMAR_EPOCHS',
    'DEEPMAR_EPOCHS = 150',
    'deepmar/stages.Stage.schedule = @deepmar/optimizers.milestones()',
    'deepmar/optimizers.milestones.epochs = %DEEPMAR_MILESTONES',
    'DEEPMAR_MILESTONES = (50, 100)',
    'deepmar/optimizers.milestones.factor = 0.1',
    'attribute_prediction.AttributePrediction.dropout = 0.5',
    'attribute_prediction.AttributePrediction.weight_decay = 0.0005',
  ),
  # Reed et al. 2016 and its code; epochs and lambda_G from Sec. 4.5.
  'image_gan': (
    'image_generation.ImageGeneration.generator_optimizer = @gan/optimizers.adam',
    'image_generation.ImageGeneration.discriminator_optimizer = @gan/optimizers.adam',
    'gan/optimizers.adam.learning_rate = %GAN_LEARNING_RATE',
    'GAN_LEARNING_RATE = 0.0002',
    'gan/optimizers.adam.beta_1 = 0.5',
    'gan/stages.Stage.schedule = @gan/optimizers.step_decay()',
    'gan_classified/stages.Stage.schedule = @gan/optimizers.step_decay()',
    'gan/optimizers.step_decay.every = %GAN_HALF_LIFE',
    'GAN_HALF_LIFE = 100',
    'gan/optimizers.step_decay.factor = 0.5',
    'gan/pipeline.Pipeline.batch_size = %GAN_BATCH_SIZE',
    'GAN_BATCH_SIZE = 64',
    'GAN_EPOCHS = 200',
    'GAN_CLASSIFIED_EPOCHS = 200',
    'gan_classified/image_generation.ImageGeneration.adversarial_weight = 0.001',
    'image_generation.ImageGeneration.noise_size = 100',
    'image_generation.ImageGeneration.wrong_share = 0.5',
    'conditional_gan.generator.width = 128',
    'conditional_gan.discriminator.width = 64',
  ),
}
# Fine-tuned DeepMAR is the same recipe on images.
PUBLISHED['deepmar_fine_tuned'] = PUBLISHED['deepmar']


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_rivals_published_numbers_are_in_its_recipe(name, parsed):
  # gin breaks long lines with a backslash.
  lines = parsed[name].replace('\\\n    ', '').splitlines()
  missing = [line for line in PUBLISHED[name] if line not in lines]
  assert not missing, missing


def test_three_state_overlay_changes_encoding_and_drops_attributes(parsed):
  assert "ENCODING = 'three_state'" in parsed['three_state']
  assert "ENCODING = 'binary'" in parsed['a2img']


def test_attribute_task_is_in_both_stages_and_nowhere_without_its_overlay(parsed):
  for stage in ('image_classification.ImageClassification', 'joint_concepts.JointConcepts'):
    line = f'{stage}.attribute_task = @multi_task.AttributeTask'
    assert line in parsed['attribute_task a2img'], stage
    assert f'{stage}.attribute_task' not in parsed['a2img'].replace('attribute_task = None', '')


def test_attribute_task_of_the_photographs_goes_on_with_the_first_stages_scores(parsed):
  for start in ('from_attributes', 'from_osnet_attributes'):
    lines = parsed[f'attribute_task {start}'].replace('\\\n    ', '')
    carry = "pretrain/stages.Stage.carry = {'attributes': ('image_encoder', 'attribute_scores')}"
    assert carry in lines, start


def test_every_gin_file_of_the_photographs_is_among_these():
  named = {Path(file).name for files in COMBINATIONS.values() for file in files}
  assert {path.name for path in (ROOT / 'gin' / 'photographs').glob('*.gin')} <= named


def test_the_shipped_model_is_trained_on_what_is_said_alone(parsed):
  text = parsed['photographs model']
  for line in (
    "ENCODING = 'three_state'",
    'pipeline.Pipeline.attribute_dropout = 0.0',
    'STAGES = [@deepmar/stages.Stage()]',
    'deepmar/stages.Stage.carry = {}',
    'experiment.train.first_stages = ()',
    'OSNET_WEIGHTS = None',
  ):
    assert line in text, line


def test_every_gin_file_says_how_it_is_used():
  for path in sorted((ROOT / 'gin').rglob('*.gin')):
    assert path.read_text(encoding='utf-8').startswith('# '), f'{path.name} has no header comment'


def test_gin_folder_is_no_package():
  assert not (ROOT / 'gin' / '__init__.py').exists()  # it would hide gin-config
