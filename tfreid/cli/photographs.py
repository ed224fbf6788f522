"""Runs the comparison on photographs: the paper's systems on PETA and Market-1501, from each start.

  tfreid photographs --peta=/data/peta --market=/data/market1501 \\
    --ids=/data/cuhk01,/data/pku_reid/train,/data/market1501 --dry_run
  make photographs PETA=/data/peta MARKET=/data/market1501 IDS=/data/cuhk01,/data/pku_reid/train

What is compared, and what counts as better, stands in docs/results/photographs/README.md. It prints
its steps and an estimate of the time first. Each step is another sub-command, which the plan shows;
running the same command again continues where it stopped. --parts chooses among

  choose      settings on PETA's validation part (write what it finds into gin/photographs/)
  peta        Tables 2 and 3 on PETA's split 'paper', five seeds
  real        the image GAN of Table 3, three seeds
  sal         PETA's split 'sal', for comparison with other work
  market      the same as `peta` on Market-1501, nothing chosen there
  figure3     the two weights of A2Img, on PETA's validation part
  person_ids  a start for `starts`: crops with person ids and no attributes (--ids)
  starts      other starts than --start's: random weights, attributes, person ids, the published
              OSNet; three seeds
  task        no alignment and A2Img with a second task, the attributes, on 'paper', 'sal' and
              Market-1501, three seeds
  size        no alignment and A2Img at 256x128, on 'paper', and with the second task on 'sal',
              three seeds
  resnet50    the paper's encoder from random weights, small, one seed
  across      models of one data set asked for the people of the other
  subsets     each of PETA's ten subsets left out
  model       the model that ships, from random weights

All but `starts`, `resnet50` and `model` begin with an attributes' stage on their own training data,
from --start: the published OSNet (--osnet), or random weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags

from tfreid.cli import gin_flags, startup, training_runs

flags.adopt_module_key_flags(gin_flags)
_PETA = flags.DEFINE_string('peta', None, "PETA's folder, with PETA.mat and the images.")
_MARKET = flags.DEFINE_string('market', None, "Market-1501's folder, or one of its layout.")
_IDS = flags.DEFINE_list('ids', [], 'Folders of crops with person ids, see gin/stages/person_ids.')
_OSNET = flags.DEFINE_string('osnet', None, 'The published OSNet x0.25, .onnx or .npz.')
_START = flags.DEFINE_enum(
  'start',
  None,
  ['osnet', 'attributes'],
  "What all begins from before the attributes: osnet, the default if it is given; or 'attributes', "
  'with nothing before them.',
)
_OUT = flags.DEFINE_string('out', os.path.join('runs', 'photographs'), 'Where runs are written.')
_PARTS = flags.DEFINE_list(
  'parts', None, 'Which parts; default: all that the data allow, but `choose` and `model`.'
)
_SEEDS = flags.DEFINE_integer('seeds', 5, 'Seeds of `peta` and `market`.', lower_bound=1)
_SPEED = flags.DEFINE_float(
  'images_per_second',
  480.0,
  'Speed of training OSNet x0.25 at 128x64 on this machine, for the estimate.',
  lower_bound=1e-3,
)
_WORKERS = flags.DEFINE_integer('workers', 1, 'Runs at a time.', lower_bound=1)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the steps and the estimate, run nothing.')

ALIGNED = ('without_adversarial', 'mmd', 'deep_coral', 'a2img', 'img2a', 'both')
RIVALS = ('dcca', 'dccae', 'two_way_net', 'deepmar')
# Those that models across data sets and left-out subsets are trained with, and their last stage.
ACROSS = {'without_adversarial': 'joint', 'a2img': 'joint', 'deepmar': 'deepmar'}
SUBSETS = (
  *('3DPeS', 'CAVIAR4REID', 'CUHK', 'GRID', 'i-LID', 'MIT', 'PRID', 'SARC3D', 'TownCentre'),
  'VIPeR',
)

# Training images, for the estimate: of PETA's splits, of a mean left-out subset, of the Market half
# and of the crops with person ids.
_PAPER, _SAL, _WITHOUT, _HALF, _CROPS = 9059, 11886, 11800, 8747, 13800
# Epochs of the attributes' stage.
_ATTRIBUTES = {'photographs/from_attributes.gin': 30, 'photographs/from_osnet_attributes.gin': 10}
_EVALUATION_SECONDS = 40.0
_LARGE_SPEED = 0.25  # of 256x128 beside 128x64
_GAN_SPEED = 0.25  # of the image GAN beside OSNet x0.25, both at 128x64
_RESNET_SPEED = 0.1  # of ResNet-50 at 64x32 beside OSNet x0.25 at 128x64
# The model that ships: its images, its epochs, and the speed of OSNet x0.5 beside that of x0.25.
_MODEL, _MODEL_EPOCHS, _MODEL_SPEED = 27134, 30, 0.5
_ONLY_IF_ASKED = ('choose', 'model')
_RECORDS = 'steps'
_ON_SAL = {'more': ['--gin_bindings=SPLIT = "sal"'], 'images': _SAL}


@dataclasses.dataclass(frozen=True)
class Step:
  """One command of the plan.

  Attributes:
    part: that it belongs to.
    title: for a person.
    command: arguments of `tfreid`.
    seconds: estimate, of what is not done.
  """

  part: str
  title: str
  command: tuple[str, ...]
  seconds: float

  def record(self, out: str) -> str:
    """The file that says that this very command is done."""
    digest = hashlib.sha256('\0'.join(self.command).encode()).hexdigest()[:16]
    return os.path.join(out, _RECORDS, f'{self.part}-{digest}.json')

  def is_done(self, out: str) -> bool:
    """Whether it has ended well."""
    return os.path.isfile(self.record(out))


class Plan:
  """The steps of all parts, in order."""

  def __init__(
    self,
    *,
    peta: str,
    market: str | None,
    ids: Sequence[str],
    osnet: str | None,
    out: str,
    seeds: int = 5,
    speed: float = 480.0,
    workers: int = 1,
    start: str | None = None,
  ):
    """Reads nothing and runs nothing.

    Args:
      peta: folder of PETA.
      market: folder of Market-1501, or None: then there is no part of it.
      ids: folders of crops with person ids; none: all start from random weights.
      osnet: the published weights, or None.
      out: where runs are written.
      seeds: of the main tables.
      speed: images per second, for the estimate.
      workers: runs at a time.
      start: 'osnet' or 'attributes', what all begins from; by default the first if it is given.

    Raises:
      ValueError: the start is 'osnet', and there are no weights.
    """
    self.peta, self.market, self.ids, self.osnet, self.out = peta, market, tuple(ids), osnet, out
    self.start = start or ('osnet' if osnet else 'attributes')
    if self.start == 'osnet' and not osnet:
      raise ValueError('--start=osnet needs --osnet, the file of the published weights.')
    self.seeds = list(range(seeds))
    self.speed = speed
    self.workers = workers
    self._costs: dict[tuple, float] = {}
    makers: dict[str, Callable[[], list[Step]]] = {
      'choose': self._choose,
      'peta': self._peta,
      'real': self._real,
      'sal': self._sal,
      'market': self._market,
      'figure3': self._figure3,
      'person_ids': self._person_ids,
      'starts': self._starts,
      'task': self._task,
      'size': self._size,
      'resnet50': self._resnet50,
      'across': self._across,
      'subsets': self._subsets,
      'model': self._model,
    }
    self.parts = {name: make() for name, make in makers.items()}

  def steps(self, parts: Sequence[str] | None = None) -> list[Step]:
    """The steps of these parts, or of all but `choose` and `model`, in the plan's order.

    Raises:
      ValueError: there is no such part, or the data for it are not given.
    """
    for part in parts or ():
      if part not in self.parts:
        raise ValueError(f"There is no part '{part}'; choose from {', '.join(self.parts)}.")
      if not self.parts[part]:
        raise ValueError(
          f"The part '{part}' needs --market, --ids or --osnet; `--help` says which."
        )
    parts = parts or [part for part in self.parts if part not in _ONLY_IF_ASKED]
    return [step for part, steps in self.parts.items() if part in parts for step in steps]

  # The bindings that a start needs.

  def _start_of(self, directory: str) -> tuple[list[str], list[str]]:
    """Gin files and flags of what the runs below a folder begin from."""
    files, start_flags = self._from_attributes(directory)
    if self.start == 'osnet':
      return ['photographs/from_osnet_attributes.gin'], [*self._from_osnet()[1], *start_flags]
    return files, start_flags

  def _from_attributes(self, directory: str) -> tuple[list[str], list[str]]:
    """The attributes of the runs' own training data, which they share."""
    attributes = os.path.join(self.out, directory, 'attributes')
    flag = f'--gin_bindings=ATTRIBUTES_DIRECTORY = {attributes!r}'
    return ['photographs/from_attributes.gin'], [flag]

  def _from_ids(self) -> tuple[list[str], list[str]]:
    """Person ids, which all that begin there share."""
    flags_ = [
      f'--gin_bindings=PERSON_CROPS = {self.ids!r}',
      f'--gin_bindings=PERSON_IDS_DIRECTORY = {self._ids_directory()!r}',
    ]
    return ['photographs/from_ids.gin'], flags_

  def _from_osnet(self) -> tuple[list[str], list[str]]:
    """The published weights."""
    flags_ = [
      f'--gin_bindings=OSNET_WEIGHTS = {self.osnet!r}',
      f'--gin_bindings=OSNET_STATISTICS_FROM = {self._crops()!r}',
    ]
    return ['photographs/from_osnet.gin'], flags_

  def _crops(self) -> str:
    """For statistics: crops of others, if there are any, as some of PETA's are for testing."""
    return self.ids[0] if self.ids else os.path.join(self.peta, 'images')

  def _ids_directory(self) -> str:
    return os.path.join(self.out, 'person_ids', 'person_ids')

  def _compare(self, part, title, directory, systems, seeds, *, data='peta', files=(), more=(),
               start=None, images=_PAPER, speed=1.0) -> Step:  # fmt: skip
    """A step that is `tfreid compare`; `start` has gin files and flags, or is that of all."""
    recipe = 'photographs/market.gin' if data == 'market1501' else 'photographs/peta.gin'
    start_files, start_flags = self._start_of(directory) if start is None else start
    files = [recipe, *files, *start_files]
    command = [
      'compare',
      f'--dataset={data}',
      f'--data_root={self.market if data == "market1501" else self.peta}',
      f'--systems={",".join(systems)}',
      f'--seeds={",".join(map(str, seeds))}',
      f'--out={os.path.join(self.out, directory)}',
      *(f'--gin_file={file}' for file in files),
      *start_flags,
      f'--workers={self.workers}',
      '--nountrained',
      '--nofigure3',
      '--nopictures',
      *more,
    ]
    seconds = len(seeds) * self._cost(systems, [*files], images, speed)
    epochs = sum(_ATTRIBUTES.get(file, 0) for file in files)
    seconds += epochs * images / (self.speed * speed)
    return Step(part, title, tuple(command), seconds)

  def _cost(self, systems, files, images, speed) -> float:
    """Seconds of one seed: a pre-training and each system's own stages."""
    from tfreid.cli import recipes
    from tfreid.comparison import plan

    key = (*systems, *files, images, speed)
    if key not in self._costs:
      clock = plan.Clock(images, images_per_second=self.speed * speed)
      total = 0.0
      for number, system in enumerate(systems):
        recipe = recipes.Recipe([f'methods/{system}.gin', 'datasets/peta.gin', *files])
        legs = [leg for leg in recipe.legs() if number == 0 or leg.name != plan.PRETRAIN]
        total += clock.seconds(legs) or 0.0
      self._costs[key] = total
    return self._costs[key]

  # The parts.

  def _person_ids(self) -> list[Step]:
    if not self.ids:
      return []
    files, start_flags = self._from_ids()
    command = [
      'train',
      '--gin_file=methods/without_adversarial.gin',
      '--gin_file=datasets/peta.gin',
      '--gin_file=photographs/peta.gin',
      *(f'--gin_file={file}' for file in files),
      *start_flags,
      f'--gin_bindings=DATA_ROOT = {self.peta!r}',
      '--gin_bindings=METHOD = "person_ids"',
      '--gin_bindings=STAGES = []',
      '--allow_unused_bindings',
      f'--run_dir={os.path.join(self.out, "person_ids")}',
    ]
    return [Step('person_ids', 'Person ids', tuple(command), 60 * _CROPS / self.speed)]

  def _choose(self) -> list[Step]:
    grids = 'from_osnet' if self.start == 'osnet' else 'photographs'
    return [self._tune('choose', "Settings on PETA's validation part", grids, '0')]

  def _figure3(self) -> list[Step]:
    return [self._tune('figure3', "Figure 3 on PETA's validation part", 'figure3', '0,1')]

  def _tune(self, part: str, title: str, grids: str, folds: str) -> Step:
    """A step that is `tfreid tune`; without a share it evaluates on the validation part."""
    from tfreid.cli import gin_reading

    name = f'tuning/{grids}.json'
    files, start_flags = self._start_of('peta')
    files = ['photographs/peta.gin', *files]
    with open(gin_reading.gin_path(name), encoding='utf-8') as file:
      content = json.load(file)
    command = [
      'tune',
      f'--grids={name}',
      '--dataset=peta',
      f'--data_root={self.peta}',
      '--share=0',
      f'--folds={folds}',
      *(f'--gin_file={file}' for file in files),
      *start_flags,
      f'--out={os.path.join(self.out, part)}',
    ]
    alone = ['without_adversarial']
    seconds = pretrained = self._cost(alone, files, _PAPER, 1.0) - self._joint(files)
    for system, grid in content.items():
      points = 1 + sum(_product(values) for values in grid)
      seconds += points * max(60.0, self._cost([system], files, _PAPER, 1.0) - pretrained)
    return Step(part, title, tuple(command), len(folds.split(',')) * seconds)

  def _joint(self, files) -> float:
    """Seconds of w/o adv behind its pre-training."""
    both = self._cost(['without_adversarial', 'mmd'], files, _PAPER, 1.0)
    return both - self._cost(['without_adversarial'], files, _PAPER, 1.0)

  def _peta(self) -> list[Step]:
    systems = [*ALIGNED, *RIVALS]
    return [self._compare('peta', "PETA, 'paper'", 'peta', systems, self.seeds)]

  def _real(self) -> list[Step]:
    more = [f'--report={os.path.join(self.out, "real")}']
    return [
      self._compare(
        'real', 'Image GAN', 'peta', ['image_gan'], self.seeds[:3], more=more, speed=_GAN_SPEED
      )
    ]

  def _sal(self) -> list[Step]:
    systems = ['without_adversarial', 'mmd', 'deep_coral', 'a2img', 'deepmar']
    return [self._compare('sal', "PETA, 'sal'", 'sal', systems, self.seeds[:3], **_ON_SAL)]

  def _market(self) -> list[Step]:
    if not self.market:
      return []
    systems = [*ALIGNED, *RIVALS]
    title = 'Market-1501, own division of people'
    return [
      self._compare('market', title, 'market', systems, self.seeds, data='market1501', images=_HALF)
    ]

  def _starts(self) -> list[Step]:
    others: list[tuple[str, str, tuple[list[str], list[str]]]] = [
      ('Random weights', 'from_random', ([], []))
    ]
    if self.start != 'attributes':
      others.append(('Attributes', 'from_attributes', self._from_attributes('from_attributes')))
    if self.ids:
      others.append(('Person ids', 'from_ids', self._from_ids()))
    if self.osnet:
      others.append(('Published OSNet', 'from_osnet', self._from_osnet()))
    systems, seeds = ['without_adversarial', 'a2img'], self.seeds[:3]
    return [
      self._compare('starts', title, directory, systems, seeds, start=start)
      for title, directory, start in others
    ]

  def _task(self) -> list[Step]:
    kinds: list[tuple[str, str, dict[str, Any]]] = [
      ("PETA, 'paper', with the attribute task", 'task', {}),
      ("PETA, 'sal', with the attribute task", 'task_sal', _ON_SAL),
    ]
    if self.market:
      market = {'data': 'market1501', 'images': _HALF}
      kinds.append(('Market-1501, with the attribute task', 'task_market', market))
    return [self._with_task('task', *kind) for kind in kinds]

  def _with_task(
    self,
    part: str,
    title: str,
    directory: str,
    options: Mapping[str, Any],
    size: Sequence[str] = (),
  ) -> Step:
    """No alignment and A2Img with the attribute task; `size` is an overlay of the images' size."""
    files, flags_ = self._start_of(directory)
    note = "--note=Not the paper's systems: each with a second task, see gin/attribute_task.gin."
    start = [*size, *files, 'photographs/attribute_task.gin'], [*flags_, note]
    systems, seeds = ['without_adversarial', 'a2img'], self.seeds[:3]
    return self._compare(part, title, directory, systems, seeds, start=start, **options)

  def _size(self) -> list[Step]:
    files = ['photographs/size_256x128.gin']
    return [
      self._compare(
        'size',
        "PETA, 'paper', at 256x128",
        'size_256x128',
        ['without_adversarial', 'a2img'],
        self.seeds[:3],
        files=files,
        speed=_LARGE_SPEED,
      ),
      self._with_task(
        'size',
        "PETA, 'sal', with the attribute task, at 256x128",
        'task_sal_256x128',
        {**_ON_SAL, 'speed': _LARGE_SPEED},
        files,
      ),
    ]

  def _resnet50(self) -> list[Step]:
    return [
      self._compare(
        'resnet50',
        'ResNet-50 from random weights',
        'resnet50',
        ['without_adversarial', 'a2img'],
        self.seeds[:1],
        files=['photographs/resnet50.gin'],
        start=([], []),
        speed=_RESNET_SPEED,
      )
    ]

  def _across(self) -> list[Step]:
    if not self.market:
      return []
    steps = []
    roots = {'peta': self.peta, 'market1501': self.market}
    for trained, folder in (('peta', 'peta'), ('market1501', 'market')):
      for system, stage in ACROSS.items():
        for seed in self.seeds:
          run = os.path.join(self.out, folder, 'runs', system, f'seed-{seed}')
          for asked, root in roots.items():
            name = f'{system}-{seed}-{trained}-to-{asked}'
            command = (
              'evaluate',
              f'--space={os.path.join(run, stage, "space")}',
              f'--dataset={asked}',
              f'--data_root={root}',
              '--through=peta,market1501',
              '--resamples=0',
              '--noappend',
              f'--json={os.path.join(self.out, "across", name + ".json")}',
            )
            title = f'{system}, seed {seed}: {trained} asked for {asked}'
            steps.append(Step('across', title, command, _EVALUATION_SECONDS))
    return steps

  def _subsets(self) -> list[Step]:
    return [
      self._compare(
        'subsets',
        f'PETA without {subset}',
        os.path.join('subsets', subset),
        list(ACROSS),
        [0],
        more=[f'--gin_bindings=SPLIT = "without:{subset}"'],
        images=_WITHOUT,
      )
      for subset in SUBSETS
    ]

  def _model(self) -> list[Step]:
    if not self.market:
      return []
    run = os.path.join(self.out, 'model')
    train = [
      'train',
      '--gin_file=photographs/model.gin',
      '--precision=auto',
      f'--gin_bindings=PETA = {self.peta!r}',
      f'--gin_bindings=MARKET = {self.market!r}',
      f'--run_dir={run}',
    ]
    space, exported = os.path.join(run, 'deepmar', 'space'), os.path.join(run, 'exported')
    export = ['export', f'--space={space}', '--empty_gallery', f'--out={exported}']
    seconds = _MODEL_EPOCHS * _MODEL / (self.speed * _MODEL_SPEED)
    return [
      Step('model', 'The model that ships', tuple(train), seconds),
      Step('model', f'The same, exported to {exported}', tuple(export), _EVALUATION_SECONDS),
    ]


def _product(grid) -> int:
  count = 1
  for values in grid.values():
    count *= len(values)
  return count


def describe(steps: Sequence[Step], out: str) -> str:
  """The plan as text: a line per part, and the time that is left."""
  from tfreid.comparison import plan

  lines, left = [], 0.0
  for part in dict.fromkeys(step.part for step in steps):
    own = [step for step in steps if step.part == part]
    todo = [step for step in own if not step.is_done(out)]
    seconds = sum(step.seconds for step in todo)
    left += seconds
    lines.append(
      f'{part:<11} {len(own) - len(todo)} of {len(own)} steps done, '
      f'{plan.duration(seconds)} left at most'
    )
  lines.append(f'Time left: about {plan.duration(left)}.')
  return '\n'.join(lines)


def execute(steps: Sequence[Step], out: str, run: Callable[[Step], int]) -> list[Step]:
  """Does the steps that are not done, one after the other, and keeps which are.

  A step that fails does not end the others, but nothing of its part is done behind it.

  Args:
    steps: in order.
    out: where the records are kept.
    run: does a step; returns its exit status.

  Returns:
    The steps that failed.
  """
  from tfreid import storage

  failed: list[Step] = []
  for step in steps:
    if step.is_done(out) or any(other.part == step.part for other in failed):
      continue
    started = time.time()
    if run(step):
      failed.append(step)
      continue
    storage.make_directories(os.path.join(out, _RECORDS))
    facts = {
      'part': step.part,
      'title': step.title,
      'command': shlex.join(('tfreid', *step.command)),
      'seconds': round(time.time() - started, 1),
    }
    storage.write_json(step.record(out), facts)
  return failed


def main(argv):
  """Prints the plan and the estimate, then does what is left."""
  startup.no_arguments(argv)
  if not _PETA.value:
    raise app.UsageError('Give --peta, the folder that holds PETA.mat and the images.')
  signal.signal(signal.SIGTERM, training_runs.interrupt)
  with startup.clear_errors('The same command continues where it stopped.'):
    plan = Plan(
      peta=_PETA.value,
      market=_MARKET.value,
      ids=_IDS.value,
      osnet=_OSNET.value,
      out=_OUT.value,
      seeds=_SEEDS.value,
      speed=_SPEED.value,
      workers=_WORKERS.value,
      start=_START.value,
    )
    steps = plan.steps(_PARTS.value)
    print(describe(steps, _OUT.value), flush=True)
    if _DRY_RUN.value:
      for step in steps:
        print(f'\n# {step.part}: {step.title}\n{shlex.join(("tfreid", *step.command))}')
      return
    failed = execute(steps, _OUT.value, _run)
  for step in failed:
    print(f'Failed: {step.part}: {step.title}', file=sys.stderr)
  sys.exit(1 if failed else 0)


def _run(step: Step) -> int:
  print(f'\n[{step.part}] {step.title}', flush=True)
  name, *arguments = step.command
  command = [*startup.program(name), *arguments, *gin_flags.passed_on()]
  return subprocess.run(command, check=False).returncode
