from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tfreid.cli.recipes import Recipe
from tfreid.comparison import processes

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'


TINY = ROOT / 'tests' / 'conformance' / 'tiny.gin'
DCCA = ROOT / 'tests' / 'conformance' / 'overlays' / 'dcca.gin'


def compare(*flags, cwd=ROOT, program=TOOLS / 'compare.py'):
  return subprocess.run(
    [sys.executable, program, *map(str, flags)],
    capture_output=True,
    text=True,
    cwd=cwd,
    env=dict(os.environ, PYTHONPATH=str(TINY.parent)),
  )


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


def test_a_dry_run_counts_the_training_images_of_peta(shared_data, tmp_path):
  (tmp_path / 'PETA.mat').symlink_to(shared_data / 'PETA.mat')
  done = compare(
    '--dry_run', '--dataset=peta', f'--data_root={tmp_path}', f'--out={tmp_path / "out"}',
    '--systems=mmd', '--seeds=0', '--nountrained', '--images_per_second=50',
    '--gin_bindings=SPLIT = "sal"',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  # 1,890 semantic IDs, 11,886 images: 92 whole batches of 128 in each of 100 + 200 epochs.
  assert f'{92 * 300} steps in the whole plan (11886 training images)' in done.stdout
  assert 'guessed from 50 images per second' in done.stdout
  seconds = 11886 * 300 / 50 + 2 * 25
  assert f'Time left: {seconds // 3600:.0f} h {round(seconds % 3600 / 60):02d} min' in done.stdout


def test_a_dry_run_counts_the_rows_of_a_manifest(tmp_path):
  schema = {'name': 'own', 'attributes': [{'name': 'hat', 'values': ['no', 'yes']}]}
  (tmp_path / 'schema.json').write_text(json.dumps(schema))
  rows = [f'{i}.png,{"train" if i < 300 else "test"},yes' for i in range(310)]
  (tmp_path / 'manifest.csv').write_text('\n'.join(['path,split,hat', *rows]))
  done = compare(
    '--dry_run', '--dataset=manifest', f'--data_root={tmp_path}', f'--out={tmp_path / "out"}',
    '--systems=mmd', '--seeds=0', '--nountrained',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert f'{2 * 300} steps in the whole plan (300 training images)' in done.stdout


def test_a_dry_run_that_cannot_count_the_images_says_so_and_names_no_number(tmp_path):
  done = compare(
    '--dry_run', '--dataset=peta', f'--data_root={tmp_path}', f'--out={tmp_path / "out"}',
    '--systems=mmd', '--seeds=0', '--images_per_second=50',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert ' 0 steps' not in done.stdout
  assert 'the training images cannot be counted yet' in done.stdout


def test_a_dry_run_counts_the_second_half_of_figure_3(market, tmp_path):
  done = compare(
    '--dry_run', '--dataset=market1501', f'--data_root={market}', f'--out={tmp_path / "out"}',
    '--systems=a2img', '--seeds=0,1', '--figure3_seeds=2', '--nountrained',
    '--images_per_second=13',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  # For each seed a pre-training, a2img and five of lambda_G; then four of lambda_D.
  assert '14 of 14 runs to do' in done.stdout
  assert 'Figure 3 runs 8 more' in done.stdout
  # A step per epoch: 100 of pre-training, 200 of each of 1 + 5 + 4 joint stages.
  assert f'{2 * (100 + 10 * 200)} steps' in done.stdout
  # An epoch of 130 images takes 10 s; to each of 22 runs 25 s are added for what is around it.
  seconds = 2 * (100 + 10 * 200) * 10 + 22 * 25
  assert f'Time left: {seconds // 3600} h {round(seconds % 3600 / 60):02d} min' in done.stdout


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
  """The folder has no annotations, so that every run ends at the door; `alone` is tried."""
  out = tmp_path / 'out'
  (tmp_path / 'methods').mkdir()
  (tmp_path / 'methods' / 'alone.gin').write_text(
    '# A system without the shared pre-training.\nfrom __gin__ import dynamic_registration\n'
    "from tfreid.training import stages\ninclude 'methods/without_adversarial.gin'\n"
    "METHOD = 'alone'\nSTAGES = [@joint/stages.Stage()]\njoint/stages.Stage.carry = {}\n"
  )
  done = compare(
    '--dataset=market1501', f'--data_root={market}', f'--out={out}', '--systems=mmd,alone',
    '--seeds=0', '--nountrained', '--nofigure3', cwd=tmp_path,
  )  # fmt: skip
  assert done.returncode == 1
  assert 'Failed: pre-training, seed 0: exit status 1: Error: ' in done.stderr
  assert [path.name for path in out.glob('runs/*')] == ['alone']
  assert 'Failed: alone, seed 0: exit status 1: Error: ' in done.stderr
  page = (out / 'index.html').read_text()
  assert 'What is missing' in page
  assert 'which it starts from' in page
  record = json.loads((out / 'pretrain' / 'seed-0' / 'compare.json').read_text())
  assert record['status'] == 1 and record['peak_bytes'] > 1e6


def test_a_missing_matplotlib_is_noticed_before_anything_runs(market, tmp_path):
  (tmp_path / 'matplotlib').mkdir()
  (tmp_path / 'matplotlib' / '__init__.py').write_text('raise ImportError("not here")\n')
  done = subprocess.run(
    [
      sys.executable, TOOLS / 'compare.py', '--dataset=market1501', f'--data_root={market}',
      f'--out={tmp_path / "out"}', '--systems=a2img', '--seeds=0',
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=dict(os.environ, PYTHONPATH=str(tmp_path)),
  )  # fmt: skip
  assert done.returncode == 1
  assert 'matplotlib, which is not installed' in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'out').exists()


def test_a_page_of_rows_alone_knows_the_data_by_what_the_loader_calls_them(tmp_path):
  about = {'system': '', 'seed': 0, 'run': 'pretrain/seed-0', 'seconds': 1.0}
  rows = [
    {**about, 'role': 'pretrain', 'label': '', 'primary': False, 'metrics': {}},
    {
      **about,
      'role': 'table',
      'system': 'a2img',
      'label': 'joint',
      'primary': True,
      'dataset': 'DukeMTMC-reID',
      'metrics': {
        'all': {'rank1': 0.5, 'mAP': 0.5, 'queries': 2, 'gallery': 4, 'chance_rank1': 0.25}
      },
    },
  ]
  (tmp_path / 'results.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  done = compare('--render_only', f'--out={tmp_path}')
  assert done.returncode == 0, done.stderr
  page = (tmp_path / 'tables.md').read_text()
  assert 'the systems of the paper on DukeMTMC-reID' in page
  assert "the paper's rank-1, Duke" in page and '46.60' in page
  assert 'other people and other images' not in page
  # What is not the paper's is said at the top, and stays where the page is made again.
  note = "Not the paper's systems: <each> with a second task."
  assert compare('--render_only', f'--out={tmp_path}', f'--note={note}').returncode == 0
  lines = [line for line in (tmp_path / 'tables.md').read_text().splitlines() if line]
  assert lines[1].replace('\\', '') == note
  assert '&lt;each&gt; with a second task' in (tmp_path / 'index.html').read_text()


@pytest.mark.parametrize('known', [True, False])
def test_a_part_of_the_papers_data_stands_beside_nothing_published(known, tmp_path):
  """Its loader has been given another name; and rows alone may be all there is."""
  rows = [
    {
      **{'system': system, 'seed': 0, 'run': f'runs/{system}/seed-0', 'seconds': 1.0},
      **{'role': 'table', 'label': 'joint', 'primary': True},
      'dataset': 'Market-1501, training half',
      'metrics': {
        'all': {'rank1': 0.5, 'mAP': 0.5, 'queries': 2, 'gallery': 4, 'chance_rank1': 0.25}
      },
    }
    for system in ('a2img', 'without_adversarial')
  ]
  (tmp_path / 'results.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  if known:
    about = {'dataset': 'market1501', 'note': 'With a second task.'}
    (tmp_path / 'comparison.json').write_text(json.dumps(about))
  done = compare('--render_only', f'--out={tmp_path}')
  assert done.returncode == 0, done.stderr
  page = (tmp_path / 'tables.md').read_text()
  assert '| ours (A2Img) |' in page
  assert ('With a second task.' in page) == known
  for published in ("the paper's", "The paper's", 'paper:', '40.3', '33.8'):
    assert published not in page
  widths = [line.count('|') for line in page.splitlines() if line.startswith('| system')]
  assert widths and widths[0] == 3


def test_two_at_one_run_take_turns(tmp_path):
  code = (
    'import fcntl, sys; from tfreid.comparison import processes\n'
    'flock = fcntl.flock\n'
    'def told(file, how):\n'
    '  try:\n'
    '    flock(file, how)\n'
    '  except BlockingIOError:\n'
    '    print("waits", flush=True)\n'
    '    raise\n'
    'fcntl.flock = told\n'
    'with processes.alone(sys.argv[1]) as first:\n'
    '  print(first, flush=True); sys.stdin.readline()\n'
  )

  def start():
    return subprocess.Popen(
      [sys.executable, '-c', code, str(tmp_path / 'run')],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  with start() as one:
    assert one.stdout.readline() == 'True\n'
    with start() as other:
      assert other.stdout.readline() == 'waits\n'
      one.communicate('over\n')
      assert other.stdout.readline() == 'False\n'
      other.communicate('over\n')
  with start() as third:
    assert third.stdout.readline() == 'True\n'
    third.communicate('over\n')


def test_two_commands_at_one_run_need_not_wait(tmp_path):
  directory = str(tmp_path / 'run')
  with processes.alone(directory) as first:
    with processes.alone(directory, wait=False) as second:
      assert (first, second) == (True, False)
  with processes.alone(directory, wait=False) as again:
    assert again


_QUEUE = """
import sys, threading
import rich.console, rich.progress
from tfreid.comparison import plan, scheduler
from tfreid.comparison.plan import Run

class Stub:
  later, out, cores = [], sys.argv[1], [[0], [1]]
  clock = plan.Clock(0)
  def __init__(self):
    self.failed, self.begun, self.done, self.pages = {}, [], set(), []
    self.both = threading.Barrier(2, timeout=60)
  def state(self, run):
    return plan.DONE if run in self.done else plan.NEW
  def starts_from(self, run):
    alone = run.role == plan.PRETRAIN or run.system == 'alone'
    return None if alone else Run(plan.PRETRAIN, '', run.seed)
  def estimate(self, runs):
    return None
  def one(self, run, cores, tell):
    shared = self.starts_from(run)
    assert shared is None or shared in self.done, run.title
    self.begun.append(run.title)
    if run.role == plan.PRETRAIN:
      self.both.wait()  # only passed if both pre-trainings run at the same time
    tell(0.0)
    return (1 if run.role == plan.PRETRAIN and run.seed == 1 else 0), 1.0
  def ended(self, run, status):
    if status:
      self.failed[run.title] = 'failed'
    else:
      self.done.add(run)
  def write(self, page=True):
    self.pages.append(page)

stub = Stub()
runs = [
  Run(role, system, seed)
  for seed in (0, 1)
  for role, system in ((plan.PRETRAIN, ''), (plan.TABLE, 'mmd'), (plan.TABLE, 'alone'))
]
scheduler.do(stub, runs)
print(sorted(stub.begun))
print(sorted(stub.failed))
"""


def test_workers_share_the_runs_and_wait_for_the_pretraining_of_each(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _QUEUE, str(tmp_path)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  begun, failed = map(ast.literal_eval, done.stdout.splitlines())
  assert begun == [
    'alone, seed 0', 'alone, seed 1', 'ours w/o adv + MMD, seed 0', 'pre-training, seed 0',
    'pre-training, seed 1',
  ]  # fmt: skip
  assert failed == ['ours w/o adv + MMD, seed 1', 'pre-training, seed 1']
  assert 'pre-training, seed 1 failed, which it starts from' in done.stderr


def test_cores_are_shared_evenly_and_a_run_is_kept_to_its_own(tmp_path):
  every = sorted(os.sched_getaffinity(0))
  for count in range(1, len(every) + 1):
    shares = processes.shares(count)
    assert {len(share) for share in shares} == {len(every) // count}
    taken = [core for share in shares for core in share]
    assert len(set(taken)) == len(taken) and set(taken) <= set(every)
  with pytest.raises(ValueError, match=f'there are {len(every)} cores'):
    processes.shares(len(every) + 1)
  log = tmp_path / 'log'
  command = [sys.executable, '-c', 'import os; print(os.sched_getaffinity(0)); raise SystemExit(3)']
  status, peak = processes.wait(command, str(log), lambda seconds: None, cores=every[-1:])
  assert status == 3 and peak > 1e6
  assert log.read_text() == f'{{{every[-1]}}}\n'


def finished(out):
  """Of each finished run, what must never change: record and final.json of its stages."""
  found = {}
  for path in sorted(out.glob('**/compare.json')):
    if json.loads(path.read_text()).get('status') == 0:
      files = [path, *path.parent.glob('*/final.json')]
      name = str(path.parent.relative_to(out))
      found[name] = {
        str(file.relative_to(out)): (file.read_text(), file.stat().st_mtime_ns) for file in files
      }
  return found


def tiny_flags(tiny_market, out):
  epochs = ('PRETRAIN_EPOCHS', 'JOINT_EPOCHS', 'DCCA_EPOCHS')
  return [
    '--systems=a2img,dcca',
    '--seeds=0,1',
    f'--data_root={tiny_market}',
    f'--gin_file={TINY}',
    f'--gin_file={DCCA}',
    '--allow_imports=small_networks',
    *(f'--gin_bindings={name} = 1' for name in epochs),
    f'--out={out}',
  ]


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_does_nothing_twice(tiny_market, tmp_path):
  """Stopped while DeepCCA of the first seed trains, and run again to its end."""
  out = tmp_path / 'out'
  flags = tiny_flags(tiny_market, out)
  # Figure 3 with two weights of five: each of its runs is a process of its own.
  program = tmp_path / 'compare.py'
  program.write_text(
    textwrap.dedent(f"""
      import sys
      sys.path.insert(0, {str(ROOT)!r})
      from tfreid.comparison import paper
      paper.GENERATOR_WEIGHTS, paper.DISCRIMINATOR_WEIGHTS = (1e-3, 1e-1), (0.1, 1.0)
      from tfreid.cli.main import main
      main(['compare', *sys.argv[1:]])
    """)
  )
  process = subprocess.Popen(
    [sys.executable, program, *flags],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=ROOT,
    env=dict(os.environ, PYTHONPATH=str(TINY.parent)),
  )
  begun = out / 'runs' / 'dcca' / 'seed-0' / 'train.log'
  try:
    while not begun.exists():
      assert process.poll() is None, process.stdout.read()
      time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
  finally:
    process.kill()
  assert process.returncode == 130, said
  assert 'The same command continues' in said
  before = finished(out)
  assert set(before) == {'pretrain/seed-0', 'runs/a2img/seed-0'}
  assert 'Not done yet: DeepCCA, seed 0' in (out / 'tables.md').read_text()

  done = compare(*flags, program=program)
  assert done.returncode == 0, done.stdout + done.stderr
  after = finished(out)
  assert {name: after[name] for name in before} == before
  # One pre-training per seed, and none inside the runs that start from it. (An untrained network's
  # own has no epochs.)
  pretrainings = [path.parents[1].relative_to(out) for path in out.glob('**/pretrain/final.json')]
  trained = sorted(str(path) for path in pretrainings if path.parts[0] != 'untrained')
  assert trained == ['pretrain/seed-0', 'pretrain/seed-1']
  attempts = {
    name: json.loads((out / name / 'compare.json').read_text())['attempts'] for name in after
  }
  assert attempts.pop('runs/dcca/seed-0') == 2
  assert set(attempts.values()) == {1}

  rows = [json.loads(line) for line in (out / 'results.jsonl').read_text().splitlines()]
  rank1 = {
    tuple(row['weights']): row['metrics']['all']['rank1']
    for row in rows
    if row['role'] in ('parameter', 'table') and row['weights'] and row['seed'] == 0
  }
  left = {weights: value for weights, value in rank1.items() if weights[1] == 1.0}
  assert {weights[0] for weights in left} == {1e-3, 1e-1}
  best = min(left, key=lambda weights: (-left[weights], weights[0]))[0]
  right = {weights[1] for weights in rank1 if weights[0] == best}
  assert {0.1, 1.0} <= right <= {0.1, 0.5, 1.0}  # 0.5 is the table's
  assert {row['role'] for row in rows} == {'pretrain', 'table', 'untrained', 'parameter'}
  kept = [row['per_query']['average_precision'] for row in rows if 'per_query' in row]
  assert kept and all(round(value, 6) == value for values in kept for value in values)

  page, markdown = (out / 'index.html').read_text(), (out / 'tables.md').read_text()
  for weight in (1e-3, 1e-1):
    assert f'λ_G = {weight:g}, λ_D = 1' in page
  assert f'λ_D = 0.1, λ_G = {best:g}' in page
  assert '![Figure 3](figure3.svg)' in markdown
  assert (out / 'figure3.svg').read_text().startswith('<svg ')
  assert 'Not done yet' not in page
  assert '1 of them were continued after an interruption' in markdown

  elsewhere = tmp_path / 'report'
  drawn = compare('--render_only', f'--out={out}', f'--report={elsewhere}')
  assert drawn.returncode == 0, drawn.stderr
  for name in ('index.html', 'tables.md', 'figure3.svg'):
    assert (elsewhere / name).read_text() == (out / name).read_text()
  again = compare(*flags, program=program)
  assert again.returncode == 0
  assert finished(out) == after


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
    (['--workers=4096', '--dry_run'], 'there are'),
    (['market'], 'Unexpected argument'),
  ],
)
def test_bad_flags_are_explained_without_a_traceback(flags, complaint):
  done = compare(*flags)
  assert done.returncode != 0
  assert complaint in done.stdout + done.stderr
  assert 'Traceback' not in done.stderr


def test_a_misspelled_binding_is_refused_before_anything_runs(gin, market):
  flags = ('--dry_run', '--systems=mmd,dcca', '--dataset=market1501', f'--data_root={market}')
  fine = compare(*flags, '--gin_bindings=DCCA_EPOCHS = 2')  # used by one of the two
  assert fine.returncode == 0, fine.stderr
  wrong = compare(*flags, '--gin_bindings=DCCA_EPOCS = 2')
  assert wrong.returncode == 1
  assert (
    "DCCA_EPOCS is bound, but no system makes use of it. Did you mean 'DCCA_EPOCHS'?"
    in wrong.stderr
  )
  overlay = gin('overlay.gin', '# An overlay.\n\nJOINT_EPOCS = 2\n')
  wrong = compare(*flags, f'--gin_file={overlay}')
  assert 'overlay.gin, line 3: JOINT_EPOCS is bound' in wrong.stderr
