from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'


def compare(*flags):
  return subprocess.run(
    [sys.executable, TOOLS / 'compare.py', *map(str, flags)],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )


def recipe_module():
  sys.path.insert(0, str(TOOLS))
  try:
    spec = importlib.util.spec_from_file_location('_recipe', TOOLS / '_recipe.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
  finally:
    sys.path.remove(str(TOOLS))


Recipe = recipe_module().Recipe


@pytest.fixture
def gin(tmp_path):
  """Writes a gin file and returns its path."""

  def write(name, text):
    path = tmp_path / name
    path.write_text(text)
    return str(path)

  return write


@pytest.fixture
def market(tmp_path):
  """A folder with as many training images as there are files; none is ever read."""
  folder = tmp_path / 'market' / 'bounding_box_train'
  folder.mkdir(parents=True)
  for number in range(130):
    (folder / f'{number:04d}.jpg').touch()
  return folder.parent


# Reading recipes.


def test_the_last_binding_wins_and_macros_are_followed(gin):
  path = gin('a.gin', 'STAGES = [@s/stages.Stage()]\ns/stages.Stage.epochs = %EPOCHS\nEPOCHS = 3')
  assert Recipe([path]).get('s/stages.Stage', 'epochs') == 3
  assert Recipe([path], ['EPOCHS = 5']).get('s/stages.Stage', 'epochs') == 5
  assert Recipe([path], ['stages.Stage.name = "n"']).get('s/stages.Stage', 'name') == 'n'


@pytest.mark.parametrize(
  ('method', 'legs'),
  [
    ('a2img', [('pretrain', 100, 128, False), ('joint', 200, 128, False)]),
    ('deepmar', [('pretrain', 100, 128, False), ('deepmar', 150, 32, True)]),
    ('deepmar_fine_tuned', [('pretrain', 100, 128, False), ('deepmar', 150, 32, False)]),
    (
      'image_gan',
      [('pretrain', 100, 128, False), ('gan', 200, 64, False), ('gan_classified', 200, 64, False)],
    ),
  ],
)
def test_legs_are_what_the_methods_file_says(method, legs):
  found = Recipe([f'methods/{method}.gin', 'datasets/market1501.gin']).legs()
  assert [(leg.name, leg.epochs, leg.batch_size, leg.frozen) for leg in found] == legs


def test_every_recipe_can_be_planned():
  for path in sorted((ROOT / 'gin' / 'methods').glob('*.gin')):
    legs = Recipe([str(path), 'datasets/synthetic.gin', 'tables.gin']).legs()
    assert legs and all(leg.name and leg.method for leg in legs), path.name


def test_a_fingerprint_heeds_what_is_used_and_nothing_else(gin):
  files = ['methods/a2img.gin', 'datasets/market1501.gin']

  def of(*bindings, extra=()):
    return Recipe([*files, *extra], bindings).fingerprint()

  same = of()
  assert of(extra=[gin('comment.gin', '# nothing but words')]) == same
  assert of('alignment.DeepCORAL.weight = 3.0') == same
  assert of('DCCA_EPOCHS = 3') == same
  assert of('alignment.Adversarial.generator_weight = 3.0') != same
  assert of('JOINT_EPOCHS = 3') != same
  assert of('joint_image/optimizers.adam.learning_rate = 3.0') != same
  assert of('pipeline.Pipeline.batch_size = 3') != same
  assert of('DATA_ROOT = "elsewhere"') != same


@pytest.mark.parametrize('method', ['a2img', 'mmd', 'dcca'])
def test_a_shared_pretraining_does_not_depend_on_what_starts_from_it(method):
  def of(*bindings):
    alone = ('METHOD = "pretrain"', 'STAGES = [@pretrain/stages.Stage()]')
    files = [f'methods/{method}.gin', 'datasets/market1501.gin']
    return Recipe(files, [*bindings, *alone]).fingerprint()

  without = Recipe(
    ['methods/without_adversarial.gin', 'datasets/market1501.gin'],
    ['METHOD = "pretrain"', 'STAGES = [@pretrain/stages.Stage()]'],
  ).fingerprint()
  assert of() == without
  assert of('joint/stages.Stage.epochs = 3') == without
  assert of('pretrain/stages.Stage.epochs = 3') != without


def test_a_file_that_gin_cannot_read_is_named(gin):
  path = gin('bad.gin', 'a.b = = 3')
  with pytest.raises(ValueError, match='bad.gin cannot be read'):
    Recipe([path])


# The tool.


def dry(market, tmp_path, *flags):
  return compare(
    '--dry_run',
    '--dataset=market1501',
    f'--data_root={market}',
    f'--out={tmp_path / "out"}',
    '--systems=mmd,dcca',
    '--seeds=0,1',
    *flags,
  )


def test_a_dry_run_prints_plan_and_cost_and_writes_nothing(market, tmp_path):
  done = dry(market, tmp_path)
  assert done.returncode == 0, done.stderr
  assert '8 of 8 runs to do' in done.stdout
  # 130 images: a step per epoch of 128 (100 + 200 epochs), one of all features (100 epochs).
  assert f'{2 * (100 + 200 + 100)} steps' in done.stdout
  assert 'not known yet' in done.stdout
  assert not (tmp_path / 'out').exists()


def test_a_guessed_speed_gives_a_time(market, tmp_path):
  done = dry(market, tmp_path, '--images_per_second=10')
  assert 'guessed from 10 images per second' in done.stdout
  assert 'not known yet' not in done.stdout


def record_of(run_dir, fingerprint, **more):
  run_dir.mkdir(parents=True, exist_ok=True)
  record = {'fingerprint': fingerprint, 'attempts': 1, **more}
  (run_dir / 'compare.json').write_text(json.dumps(record))


def mmd_fingerprint(market, out):
  directory = str(out / 'pretrain' / 'seed-0' / 'pretrain')
  bindings = [f'DATA_ROOT = {str(market)!r}', 'SEED = 0', f'PRETRAIN_DIRECTORY = {directory!r}']
  return Recipe(['methods/mmd.gin', 'datasets/market1501.gin'], bindings).fingerprint()


def test_a_finished_run_is_not_planned_again_and_tells_the_time(market, tmp_path):
  out = tmp_path / 'out'
  record_of(
    out / 'runs' / 'mmd' / 'seed-0',
    mmd_fingerprint(market, out),
    status=0,
    seconds=230.0,
    stages={'joint': {'epochs': 200, 'steps': 200, 'seconds': 200.0}},
  )
  done = dry(market, tmp_path)
  assert '7 of 8 runs to do' in done.stdout, done.stdout
  # 2 pre-trainings of 100 epochs and one mmd of 200, a second each; each of 7 runs 30 s around it,
  # and a little for passes over features.
  assert 'Time left: 10 min' in done.stdout or 'Time left: 11 min' in done.stdout, done.stdout


def test_a_run_of_another_configuration_stops_the_comparison_before_it_begins(market, tmp_path):
  out = tmp_path / 'out'
  record_of(out / 'runs' / 'mmd' / 'seed-0', 'another', status=0, seconds=1.0)
  done = compare(
    '--dataset=market1501', f'--data_root={market}', f'--out={out}', '--systems=mmd', '--seeds=0'
  )
  assert done.returncode == 1
  assert 'made with another configuration' in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (out / 'pretrain').exists()


@pytest.mark.slow
def test_a_run_that_fails_is_reported_and_those_that_need_it_are_not_started(market, tmp_path):
  """The folder has no annotations, so that pre-training ends at the door."""
  out = tmp_path / 'out'
  done = compare(
    '--dataset=market1501', f'--data_root={market}', f'--out={out}', '--systems=mmd', '--seeds=0',
    '--nountrained', '--nofigure3',
  )  # fmt: skip
  assert done.returncode == 1
  assert 'Failed: pre-training, seed 0: exit status 1: Error: ' in done.stderr
  assert 'mmd' not in [path.name for path in out.glob('runs/*')]
  page = (out / 'index.html').read_text()
  assert 'What is missing' in page
  assert 'which it starts from' in page
  record = json.loads((out / 'pretrain' / 'seed-0' / 'compare.json').read_text())
  assert record['status'] == 1 and record['peak_bytes'] > 1e6


def test_two_at_one_run_take_turns(tmp_path):
  code = (
    'import sys, time; sys.path.insert(0, sys.argv[1]); import _runs\n'
    'with _runs.alone(sys.argv[2]) as first:\n'
    '  print(first, flush=True); sys.stdin.readline()\n'
  )

  def start():
    return subprocess.Popen(
      [sys.executable, '-c', code, str(TOOLS), str(tmp_path / 'run')],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  with start() as one:
    assert one.stdout.readline() == 'True\n'
    with start() as other:
      with pytest.raises(subprocess.TimeoutExpired):
        other.wait(timeout=1)
      one.communicate('over\n')
      assert other.stdout.readline() == 'False\n'
      other.communicate('over\n')
  with start() as third:
    assert third.stdout.readline() == 'True\n'
    third.communicate('over\n')


def test_rendering_alone_says_where_it_looked(tmp_path):
  done = compare('--render_only', f'--out={tmp_path}')
  assert done.returncode == 1
  assert f"no results in '{tmp_path}" in done.stderr


@pytest.mark.parametrize(
  ('flags', 'complaint'),
  [
    (['--dataset=market1501'], 'give --data_root'),
    (['--systems=no_such', '--dry_run'], "No gin file 'methods/no_such.gin'"),
    (['--seeds=0,x', '--dry_run'], 'whole numbers'),
    (['--seeds=1,1', '--dry_run'], 'named twice'),
    (['market'], 'Unexpected argument'),
  ],
)
def test_bad_flags_are_explained_without_a_traceback(flags, complaint):
  done = compare(*flags)
  assert done.returncode != 0
  assert complaint in done.stdout + done.stderr
  assert 'Traceback' not in done.stderr
