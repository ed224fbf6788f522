from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tfreid.cli import photographs, recipes, training_runs
from tfreid.comparison import paper
from tfreid.data import peta

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  return {
    'peta': '/data/peta',
    'market': '/data/market',
    'ids': ['/data/cuhk01', '/data/pku'],
    'osnet': '/data/osnet.onnx',
    'out': str(tmp_path_factory.mktemp('out')),
  }


@pytest.fixture(scope='module', params=['osnet', 'attributes'])
def plan(request, given):
  return photographs.Plan(**given, start=request.param)


def flag(step, name):
  return [value.split('=', 1)[1] for value in step.command if value.startswith(f'--{name}=')]


def test_every_system_and_seed_of_the_tables_is_planned(plan):
  (main,), (real,), (market,) = plan.parts['peta'], plan.parts['real'], plan.parts['market']
  systems = set(flag(main, 'systems')[0].split(','))
  assert systems | set(flag(real, 'systems')) == {
    *('without_adversarial', 'mmd', 'deep_coral', 'a2img', 'img2a', 'both', 'dcca', 'dccae'),
    *('two_way_net', 'deepmar', 'image_gan'),
  }
  assert flag(main, 'seeds') == flag(market, 'seeds') == ['0,1,2,3,4']
  assert flag(real, 'seeds') == ['0,1,2']
  # The image GAN goes on from the pre-training of the other systems.
  assert flag(real, 'out') == flag(main, 'out')


def test_the_test_split_chooses_nothing(plan):
  for part in ('choose', 'figure3'):
    (step,) = plan.parts[part]
    assert step.command[0] == 'tune'
    assert flag(step, 'share') == ['0'] and flag(step, 'dataset') == ['peta']
  assert all(step.part != 'choose' for step in plan.steps())


def test_a_start_is_trained_on_the_data_of_its_own_comparison_and_no_other(plan):
  folders = {}
  for part in ('peta', 'real', 'sal', 'market', 'subsets'):
    for step in plan.parts[part]:
      (start,) = [text for text in flag(step, 'gin_bindings') if 'ATTRIBUTES_DIRECTORY' in text]
      assert flag(step, 'out')[0] in start
      folders.setdefault(start, []).append((part, flag(step, 'dataset')[0]))
  assert len(folders) == 3 + 10 and [('peta', 'peta'), ('real', 'peta')] in folders.values()


def test_a_published_network_is_what_all_begins_from_where_it_is_given(given):
  plan = photographs.Plan(**given)
  assert plan.start == 'osnet'
  for part in ('choose', 'peta', 'real', 'sal', 'market', 'figure3', 'subsets'):
    for step in plan.parts[part]:
      assert 'photographs/from_osnet_attributes.gin' in flag(step, 'gin_file')
      bindings = flag(step, 'gin_bindings')
      assert any('OSNET_WEIGHTS' in text for text in bindings)
      # No picture that is tested on tells batch norms' statistics.
      assert any('OSNET_STATISTICS_FROM' in text and given['ids'][0] in text for text in bindings)
  others = photographs.Plan(**given, start='attributes')
  assert flag(plan.parts['choose'][0], 'grids') == ['tuning/from_osnet.json']
  assert flag(others.parts['choose'][0], 'grids') == ['tuning/photographs.json']
  # It has fewer epochs than what begins with less.
  for part in ('choose', 'peta'):
    assert plan.parts[part][0].seconds < others.parts[part][0].seconds
  with pytest.raises(ValueError, match='--start=osnet needs --osnet'):
    photographs.Plan(**{**given, 'osnet': None}, start='osnet')


@pytest.mark.parametrize(
  ('start', 'others'),
  [
    ('osnet', ['Random weights', 'Attributes', 'Person ids', 'Published OSNet']),
    ('attributes', ['Random weights', 'Person ids', 'Published OSNet']),
  ],
)
def test_the_other_starts_are_compared_with_it(given, start, others):
  plan = photographs.Plan(**given, start=start)
  assert [step.title for step in plan.parts['starts']] == others
  assert len({flag(step, 'out')[0] for step in plan.parts['starts']}) == len(others)


def test_figure_3_has_the_papers_weights():
  (first, second) = json.loads((ROOT / 'gin' / 'tuning' / 'figure3.json').read_text())['a2img']
  generator, discriminator = first
  assert tuple(first[generator]) == paper.GENERATOR_WEIGHTS
  assert first[discriminator] == [paper.FIXED_DISCRIMINATOR_WEIGHT]
  assert {*second[discriminator], 1.0} == {*paper.DISCRIMINATOR_WEIGHTS, 1.0}


def test_the_attribute_task_stands_behind_each_start_on_each_data_set(given):
  for start in ('osnet', 'attributes'):
    steps = photographs.Plan(**given, start=start).parts['task']
    assert [flag(step, 'dataset')[0] for step in steps] == ['peta', 'peta', 'market1501']
    assert ['SPLIT = "sal"' in flag(step, 'gin_bindings') for step in steps] == [False, True, False]
    assert len({flag(step, 'out')[0] for step in steps}) == 3
    for step in steps:
      assert flag(step, 'gin_file')[-1] == 'photographs/attribute_task.gin'
      (binding,) = [b for b in flag(step, 'gin_bindings') if 'ATTRIBUTES_DIRECTORY' in b]
      assert flag(step, 'out')[0] in binding
  assert len(photographs.Plan(**{**given, 'market': None}).parts['task']) == 2


def test_each_subset_is_left_out_once_and_each_model_is_asked_for_both(plan):
  assert photographs.SUBSETS == peta.SUBSETS
  left_out = [flag(step, 'gin_bindings')[-1] for step in plan.parts['subsets']]
  assert left_out == [f'SPLIT = "without:{subset}"' for subset in peta.SUBSETS]
  pairs = {(flag(step, 'space')[0], flag(step, 'dataset')[0]) for step in plan.parts['across']}
  assert len(pairs) == len(plan.parts['across']) == 3 * 5 * 2 * 2


@pytest.mark.parametrize(
  'part', ['peta', 'market', 'sal', 'starts', 'task', 'size', 'subsets', 'real', 'resnet50']
)
def test_the_bindings_of_the_steps_are_used_by_their_recipes(plan, part):
  for step in plan.parts[part][-1:]:
    for system in flag(step, 'systems')[0].split(',')[-3:]:
      files = [f'methods/{system}.gin', f'datasets/{flag(step, "dataset")[0]}.gin']
      recipe = recipes.Recipe([*files, *flag(step, 'gin_file')], flag(step, 'gin_bindings'))
      recipes.check_use([recipe], (), flag(step, 'gin_bindings'))
      assert recipe.legs()


def test_the_training_images_of_every_split_of_peta_are_counted(given, shared_data):
  """`compare` counts them for its estimate, before anything else."""
  plan = photographs.Plan(**given)
  counts = {}
  for part in ('peta', 'sal', 'subsets'):
    bindings = flag(plan.parts[part][-1], 'gin_bindings')
    recipe = recipes.Recipe(
      ['methods/a2img.gin', 'datasets/peta.gin', *flag(plan.parts[part][-1], 'gin_file')],
      [f'DATA_ROOT = {str(shared_data)!r}', *bindings],
    )
    counts[part] = training_runs.num_images(recipe)
  assert counts['sal'] == 11886
  # VIPeR's 1,264 images are not trained on, nor are those whose description is told of one image.
  assert 10000 < counts['subsets'] < 19000 - 1264
  assert 8000 < counts['peta'] < counts['sal']


def test_the_model_that_ships_is_trained_and_exported_by_a_part_of_its_own(given):
  train, export = photographs.Plan(**given).parts['model']
  assert (train.command[0], export.command[0]) == ('train', 'export')
  assert flag(export, 'space')[0].startswith(flag(train, 'run_dir')[0])
  # It begins with random weights.
  assert not any('osnet.onnx' in text for text in train.command)
  recipe = recipes.Recipe(flag(train, 'gin_file'), flag(train, 'gin_bindings'))
  recipes.check_use([recipe], (), flag(train, 'gin_bindings'))
  (leg,) = recipe.legs()
  assert leg.epochs == photographs._MODEL_EPOCHS
  assert 'model' not in {step.part for step in photographs.Plan(**given).steps()}
  assert not photographs.Plan(**{**given, 'market': None}).parts['model']


def test_without_data_a_part_is_not_planned_and_says_so(tmp_path):
  bare = photographs.Plan(peta='p', market=None, ids=[], osnet=None, out=str(tmp_path))
  assert {step.part for step in bare.steps()} == {
    *('peta', 'real', 'sal', 'figure3', 'starts', 'task', 'size', 'resnet50', 'subsets'),
  }
  assert not any('from_ids' in part for step in bare.steps() for part in step.command)
  with pytest.raises(ValueError, match="'across' needs --market"):
    bare.steps(['across'])
  with pytest.raises(ValueError, match="no part 'tables'; choose from choose"):
    bare.steps(['tables'])


def test_what_is_done_is_not_done_again_and_a_changed_step_is(tmp_path):
  done = []

  def run(step):
    done.append(step.title)
    return int(step.title == 'bad')

  def step(part, title, command=('x',)):
    return photographs.Step(part, title, (title, *command), 90.0)

  steps = [step('a', 'first'), step('a', 'bad'), step('a', 'behind'), step('b', 'other')]
  out = str(tmp_path)
  assert photographs.execute(steps, out, run) == [steps[1]]
  assert done == ['first', 'bad', 'other']
  assert photographs.execute(steps, out, run) == [steps[1]]
  assert done[3:] == ['bad']
  text = photographs.describe(steps, out)
  assert 'a           1 of 3 steps done, 3 min left' in text and 'b           1 of 1' in text
  photographs.execute([step('a', 'first', ('y',))], out, run)
  assert done[4:] == ['first']
  records = [json.loads(path.read_text()) for path in (tmp_path / 'steps').iterdir()]
  assert sorted(record['command'] for record in records) == [
    *('tfreid first x', 'tfreid first y', 'tfreid other x'),
  ]


def test_the_plan_and_the_estimate_are_printed_without_tensorflow(tmp_path):
  code = (
    'import sys\nfrom tfreid.cli import main\n'
    'try:\n  main.main(sys.argv[1:])\nfinally:\n  assert "tensorflow" not in sys.modules\n'
  )

  def tfreid(*arguments):
    return subprocess.run(
      [sys.executable, '-c', code, 'photographs', *arguments],
      capture_output=True,
      text=True,
      cwd=ROOT,
      check=False,
    )

  done = tfreid('--peta=/data/peta', f'--out={tmp_path}/out', '--dry_run')
  assert done.returncode == 0, done.stderr
  assert 'Time left: about' in done.stdout and 'tfreid compare --dataset=peta' in done.stdout
  assert not (tmp_path / 'out').exists()
  done = tfreid('--dry_run')
  assert done.returncode == 1 and 'Give --peta' in done.stderr
