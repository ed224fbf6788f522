"""The grid search on held-out training people, from its own command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfreid.cli.recipes import Recipe

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / 'tests' / 'conformance' / 'tiny.gin'


def tune(*flags):
  return subprocess.run(
    [sys.executable, str(ROOT / 'tools' / 'tune.py'), *map(str, flags)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=dict(os.environ, PYTHONPATH=str(TINY.parent)),
    timeout=900,
    check=False,
  )


@pytest.fixture
def grids(tmp_path):
  """Writes a file of grids and returns the flag that names it."""

  def write(content):
    path = tmp_path / 'grids.json'
    # With a byte order mark, as Windows' editors write it.
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding='utf-8-sig')
    return f'--grids={path}'

  return write


def test_every_combination_is_a_point_once_after_the_recipe(grids):
  flag = grids(
    {
      'mmd': [
        {'KERNEL': ['linear', 'multi'], 'alignment.MaximumMeanDiscrepancy.weight': [1, 2]},
        {'KERNEL': []},
      ]
    }
  )
  result = tune(flag, '--dry_run', '--folds=0,1')
  assert result.returncode == 0, result.stderr
  assert result.stdout.splitlines() == [
    'mmd: recipe: 0 of 2 folds done',
    "mmd: KERNEL = 'linear', weight = 1: 0 of 2 folds done",
    "mmd: KERNEL = 'linear', weight = 2: 0 of 2 folds done",
    "mmd: KERNEL = 'multi', weight = 1: 0 of 2 folds done",
    "mmd: KERNEL = 'multi', weight = 2: 0 of 2 folds done",
  ]


def test_what_the_recipe_says_already_is_not_a_point_of_its_own(grids):
  weight = 'alignment.Adversarial.generator_weight'
  flag = grids({'a2img': [{weight: [0.25, 0.5]}, {'GENERATORS': [['attribute']]}]})
  result = tune(flag, '--dry_run', '--folds=0', f'--gin_bindings={weight} = 0.25')
  assert result.returncode == 0, result.stderr
  points = [line.removesuffix(': 0 of 1 folds done') for line in result.stdout.splitlines()]
  assert points[:2] == ['a2img: recipe', 'a2img: generator_weight = 0.5']
  assert not any('0.25' in point for point in points)


@pytest.mark.parametrize(
  ('content', 'flags', 'said'),
  [
    ('{"mmd": ', (), 'is no JSON file'),
    ({'mmd': {'KERNEL': ['linear']}}, (), 'a list of grids'),
    ({'mmd': [{'KERNEL': 'linear'}]}, (), 'a list of grids'),
    ({'mmd': []}, ('--systems=a2img',), 'has no grid for a2img; it has: mmd'),
    ({'mmd': []}, ('--folds=a',), 'whole numbers'),
    ({'mmd': [{'JOINT_EPOCS': [1]}]}, (), "'mmd': JOINT_EPOCS is bound"),
    ({'mmd': []}, ('--gin_bindings=JOINT_EPOCS = 1',), 'no system makes use of it'),
  ],
)
def test_grids_that_cannot_be_understood_are_refused(grids, content, flags, said):
  result = tune(grids(content), '--dry_run', *flags)
  assert result.returncode == 1
  assert said in result.stderr
  assert 'Traceback' not in result.stderr


def test_the_shipped_grids_name_bindings_that_exist():
  # A misspelt name would train the recipe under another title.
  grids = json.loads((ROOT / 'gin' / 'tuning' / 'tables.json').read_text())
  assert grids
  for system, of_system in grids.items():
    files = [f'methods/{system}.gin', 'datasets/synthetic.gin', 'tables.gin']
    known = Recipe(files).values
    for grid in of_system:
      assert not [name for name in grid if name not in known], system


@pytest.mark.slow
def test_points_share_a_pretraining_never_read_the_test_split_and_are_done_once(
  tiny_market, grids, tmp_path
):
  out = tmp_path / 'out'
  flags = (
    grids({'dcca': [{'DCCA_EPOCHS': [2]}]}),
    '--folds=3',
    '--share=0.3',
    f'--data_root={tiny_market}',
    f'--gin_file={TINY}',
    f'--gin_file={ROOT / "tests" / "conformance" / "overlays" / "dcca.gin"}',
    '--allow_imports=small_networks',
    '--gin_bindings=PRETRAIN_EPOCHS = 1',
    '--gin_bindings=DCCA_EPOCHS = 1',
    f'--out={out}',
  )
  first = tune(*flags)
  assert first.returncode == 0, first.stdout + first.stderr
  assert '[2/2]' in first.stdout
  records = sorted((out / 'dcca').glob('*/fold-3/compare.json'))
  assert len(records) == 2
  values = [json.loads(path.read_text())['values'] for path in records]
  assert all(0 <= value <= 1 for one in values for value in one.values())
  report = (out / 'tuning.md').read_text()
  assert '| *recipe* |' in report.replace('**', '')
  assert 'DCCA_EPOCHS = 2' in report
  # One fold has no deviation.
  assert 'Each fold holds 0.3 of the training' in report and '±' not in report
  assert (out / 'pretrain' / 'fold-3' / 'pretrain').is_dir()
  assert not (out / 'dcca' / 'recipe' / 'fold-3' / 'pretrain').exists()
  again = tune(*flags)
  assert again.returncode == 0
  assert '[1/' not in again.stdout
  changed = tune(*flags, '--gin_bindings=PRETRAIN_EPOCHS = 2')
  assert changed.returncode == 1
  assert 'another configuration' in changed.stderr


@pytest.mark.parametrize(
  ('arguments', 'title', 'said'),
  [
    ("share=0.0, folds=1, metric='mAP'", 'the validation part', 'Number of seeds: 1.'),
    ("share=0.25, folds=3, metric='rank1'", 'held-out training people', 'holds 0.25 of'),
  ],
)
def test_the_report_says_what_the_points_were_searched_in(arguments, title, said):
  # In a process of its own: commands have flags of the same names.
  program = f"from tfreid.cli import tune; print(tune._introduction('tfreid tune', {arguments}))"
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True, cwd=ROOT
  )
  assert done.stdout.startswith(f'# Settings tried on {title}\n')
  assert said in done.stdout
  assert ('One training each' in done.stdout) == ('folds=1' in arguments)
