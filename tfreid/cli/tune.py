"""Tries settings of systems on held-out training people and writes down what came out.

  tfreid tune --dry_run                         which runs there will be
  tfreid tune --report=docs/notes/tuning.md   the grids behind gin/tables.gin
  tfreid tune --systems=mmd,deep_coral --dataset=market1501 --data_root=/data/market1501 \\
    --gin_bindings='PRETRAIN_EPOCHS = 60' --out=runs/tuning_market

The grids are a JSON file (default gin/tuning/tables.json): system -> a list of grids, each a gin
binding -> the values to try. Every fold holds other training people out and has a pre-training of
its own, which all points share. The test split is never read. Nothing is changed: put what you
choose into a gin file. Running the same command again continues where it stopped.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time

from absl import flags

from tfreid.cli import gin_flags, gin_reading, recipes, startup, training_runs

flags.adopt_module_key_flags(gin_flags)
flags.adopt_module_key_flags(training_runs)
_GRIDS = flags.DEFINE_string('grids', 'tuning/tables.json', 'JSON file; a path, or below gin/.')
_SYSTEMS = flags.DEFINE_list('systems', None, 'Which of the grids; default: all.')
_FOLDS = flags.DEFINE_list('folds', ['0', '1', '2'], 'Seeds of training and of who is held out.')
_SHARE = flags.DEFINE_float(
  'share',
  0.25,
  'Share of the training semantic IDs to hold out; 0: a validation part of its own.',
  0,
  0.9,
)
_METRIC = flags.DEFINE_enum('metric', 'mAP', ['mAP', 'rank1', 'rank5', 'rank10'], 'Decides.')
_OUT = flags.DEFINE_string('out', os.path.join('runs', 'tuning'), 'Where the runs are written.')
_REPORT = flags.DEFINE_string('report', None, 'Markdown file; default: <out>/tuning.md.')
_KEEP = flags.DEFINE_bool('keep_weights', False, 'Keep the weights of the runs, not only results.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the runs and do none.')

_METRICS = ('mAP', 'rank1', 'rank5', 'rank10')
_PRETRAINED_BY = 'without_adversarial'


def main(argv):
  """Runs what is not done and writes the report."""
  startup.no_arguments(argv)
  training_runs.begin()
  with startup.clear_errors('The same command continues where it stopped.'):
    tuning = Tuning()
    if _DRY_RUN.value:
      tuning.print_plan()
      return
    failed = tuning.run()
  sys.exit(1 if failed else 0)


class Tuning:
  """The points of all grids, and what is known of them."""

  def __init__(self):
    """Reads the grids; runs and writes nothing.

    Raises:
      FileNotFoundError: there are no grids.
      ValueError: they cannot be understood.
    """
    self.grids = _read_grids(_GRIDS.value, _SYSTEMS.value)
    self.folds = training_runs.seeds(_FOLDS.value)
    # A dict per point: binding -> value. The recipe as it is comes first.
    self.points = {system: _points(grids) for system, grids in self.grids.items()}
    self.failed: dict[str, str] = {}
    self._check_use()
    self.points = {system: self._distinct(system, points) for system, points in self.points.items()}

  def _distinct(self, system, points) -> list[dict]:
    """The points without those that say what the recipe, or another point, says already."""
    fold = self.folds[0] if self.folds else 0
    known: dict[str, dict] = {}
    for point in points:
      known.setdefault(self._fingerprint(system, point, fold), point)
    return list(known.values())

  def _check_use(self):
    """Refuses a misspelled name, which would train the recipe under another title."""
    fold = self.folds[0] if self.folds else 0
    plain = {
      system: recipes.Recipe(training_runs.files(system), self.bindings({}, fold))
      for system in self.points
    }
    recipes.check_use(plain.values(), training_runs.overlays(), training_runs.gin_bindings())
    for system, points in self.points.items():
      names = sorted({name for point in points for name in point})
      bindings = [f'{name} = None' for name in names]
      recipe = recipes.Recipe(training_runs.files(system), [*self.bindings({}, fold), *bindings])
      recipes.check_use([recipe], (), bindings, f"{_GRIDS.value}, '{system}'")

  def bindings(self, point, fold: int) -> list[str]:
    """The bindings of a run; those of a point win."""
    shared = os.path.join(self._pretraining(fold), 'pretrain')
    return [
      *training_runs.bindings(),
      f'SEED = {fold}',
      f'VALIDATION_SEED = {fold}',
      f'VALIDATION_SHARE = {_SHARE.value}',
      "experiment.train.final_split = 'validation'",
      f'PRETRAIN_DIRECTORY = {shared!r}',
      *(f'{name} = {value!r}' for name, value in point.items()),
    ]

  def directory(self, system: str, point, fold: int) -> str:
    """Where a run is written."""
    return os.path.join(_OUT.value, system, _slug(point), f'fold-{fold}')

  def print_plan(self):
    """Every point, and what is done of it."""
    for system, points in self.points.items():
      for point in points:
        done = sum(self._values(system, point, fold) is not None for fold in self.folds)
        print(f'{system}: {_title(point)}: {done} of {len(self.folds)} folds done')

  def run(self) -> dict[str, str]:
    """Does what is not done, the report after each system; returns what failed."""
    from tfreid.comparison import plan, processes

    if training_runs.is_drawn():
      training_runs.draw_people()
    todo = [
      (system, point, fold)
      for system, points in self.points.items()
      for point in points
      for fold in self.folds
      if self._values(system, point, fold) is None
    ]
    started = time.time()
    for number, (system, point, fold) in enumerate(todo, start=1):
      title = f'{system}, {_title(point)}, fold {fold}'
      if self._pretrain(fold):
        status, seconds = self._one(system, point, fold)
        values = self._values(system, point, fold)
        if status or values is None:
          log = os.path.join(self.directory(system, point, fold), plan.LOG)
          self.failed[title] = f'{processes.last_words(log)} (log: {log})'
          outcome = 'failed'
        else:
          outcome = f'{_METRIC.value} {100 * values[_METRIC.value]:.2f} in {seconds:.0f} s'
      else:
        outcome = self.failed[title] = 'its pre-training failed'
      left = (time.time() - started) / number * (len(todo) - number)
      print(f'[{number}/{len(todo)}] {title}: {outcome}; left: {left / 60:.0f} min', flush=True)
      self.write()
    self.write()
    for title, reason in self.failed.items():
      print(f'Failed: {title}: {reason}', file=sys.stderr)
    print(f'Written: {self.report}')
    return self.failed

  @property
  def report(self) -> str:
    """The Markdown file."""
    return _REPORT.value or os.path.join(_OUT.value, 'tuning.md')

  def write(self):
    """Writes the report of what is known so far."""
    from tfreid.comparison import plan

    parts = [
      _introduction(
        training_runs.typed('tune'),
        share=_SHARE.value,
        folds=len(self.folds),
        metric=_METRIC.value,
      )
    ]
    for system, points in self.points.items():
      rows = []
      for point in points:
        finished = [self._values(system, point, fold) for fold in self.folds]
        folds = [metrics for metrics in finished if metrics]
        if len(folds) == len(self.folds):
          rows.append((point, {name: [100 * fold[name] for fold in folds] for name in _METRICS}))
      if rows:
        parts.append(_table(system, rows))
    plan.write_text(self.report, '\n'.join(parts))

  def _values(self, system, point, fold) -> dict[str, float] | None:
    """The validation metrics of a finished run of this very configuration, or None."""
    from tfreid.comparison import plan

    record = plan.read_record(self.directory(system, point, fold))
    if record.get('fingerprint') != self._fingerprint(system, point, fold):
      return None
    return record.get('values')

  def _fingerprint(self, system, point, fold) -> str:
    return recipes.Recipe(training_runs.files(system), self.bindings(point, fold)).fingerprint()

  def _pretraining(self, fold: int) -> str:
    return os.path.join(_OUT.value, 'pretrain', f'fold-{fold}')

  def _pretrain(self, fold: int) -> bool:
    """Makes the fold's pre-training if it is missing; returns whether it is there."""
    from tfreid.comparison import plan

    directory = self._pretraining(fold)
    bindings = [
      *(text for text in self.bindings({}, fold) if not text.startswith('PRETRAIN_DIRECTORY')),
      'METHOD = "pretrain"',
      f'STAGES = [@{plan.PRETRAIN}/stages.Stage()]',
    ]
    # From one method's files, whichever system comes first: all share the stage.
    files = training_runs.files(_PRETRAINED_BY)
    fingerprint = recipes.Recipe(files, bindings).fingerprint()
    record = plan.read_record(directory)
    if record.get('fingerprint') == fingerprint and record.get('status') == 0:
      return True
    if record and record.get('fingerprint') != fingerprint:
      raise ValueError(
        f"'{directory}' holds a pre-training of another configuration. Give another --out, or "
        'remove the folder.'
      )
    plan.write_record(directory, {'fingerprint': fingerprint})
    status, _ = self._train(files, bindings, directory)
    plan.write_record(directory, {'fingerprint': fingerprint, 'status': status})
    return status == 0

  def _one(self, system, point, fold) -> tuple[int, float]:
    from tfreid.comparison import plan, scores

    directory = self.directory(system, point, fold)
    # A run of another configuration, which the page does not know any more, is done anew.
    _remove(directory, '')
    os.makedirs(directory, exist_ok=True)
    status, seconds = self._train(
      training_runs.files(system), self.bindings(point, fold), directory
    )
    if not status:
      rows = [
        row
        for row in scores.read_rows(os.path.join(directory, scores.RESULTS_FILE))
        if row.get('split') == 'validation' and '/' not in row['stage']
      ]
      values = {name: rows[-1]['metrics']['all'][name] for name in _METRICS}
      plan.write_record(
        directory,
        {
          'fingerprint': self._fingerprint(system, point, fold),
          'point': point,
          'values': values,
          'seconds': round(seconds, 1),
        },
      )
      if not _KEEP.value:
        _remove(directory, plan.RECORD)
    return status, seconds

  def _train(self, files, bindings, directory) -> tuple[int, float]:
    from tfreid.comparison import plan, processes

    command = training_runs.command(files, bindings, directory)
    started = time.time()
    log = os.path.join(directory, plan.LOG)
    status, _ = processes.wait(command, log, lambda elapsed: None)
    return status, time.time() - started


_LABELS = {'mAP': 'mAP', 'rank1': 'rank-1', 'rank5': 'rank-5', 'rank10': 'rank-10'}
_INTRODUCTION = """# Settings tried on {held_out}

    {command}

{how} The test split is not read. {values}, in percent; **bold** is the best {metric}, *recipe* is
what the system's gin files said when this was run. Machine: {machine}.
"""
_FOLDS_ARE = (
  'Each fold holds {share:g} of the training semantic IDs out, others in each of {folds} folds,\n'
  'trains on the rest and searches the held-out people.'
)
_SEEDS_ARE = (
  'Each point trains on the training part and searches the validation part, which has other\n'
  "semantic IDs; the data set's split says which. Number of seeds: {folds}."
)


def _introduction(command: str, *, share: float, folds: int, metric: str) -> str:
  from tfreid.comparison import processes

  return _INTRODUCTION.format(
    held_out='held-out training people' if share else 'the validation part',
    how=(_FOLDS_ARE if share else _SEEDS_ARE).format(share=share, folds=folds),
    values='Mean and standard deviation' if folds > 1 else 'One training each',
    command=command,
    metric=_LABELS[metric],
    machine=', '.join(processes.machine().values()),
  )


def _table(system, rows) -> str:
  metric = _METRIC.value
  best = max(range(len(rows)), key=lambda i: statistics.mean(rows[i][1][metric]))
  lines = [
    f'## {system}',
    '',
    '| setting | ' + ' | '.join(_LABELS[name] for name in _METRICS) + ' |',
    '|---' + '|---:' * len(_METRICS) + '|',
  ]
  for i, (point, values) in enumerate(rows):
    cells = []
    for name in _METRICS:
      cell = f'{statistics.mean(values[name]):.2f}'
      if len(values[name]) > 1:
        cell += f' ± {statistics.stdev(values[name]):.2f}'
      cells.append(cell)
    setting = f'`{_title(point)}`' if point else '*recipe*'
    mark = '**' if i == best else ''
    lines.append(
      f'| {mark}{setting}{mark} | ' + ' | '.join(f'{mark}{c}{mark}' for c in cells) + ' |'
    )
  return '\n'.join(lines) + '\n'


def _read_grids(name: str, systems) -> dict[str, list[dict[str, list]]]:
  """The grids of a file, of these systems or all.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no such file, or lacks a system.
  """
  path = next(
    (p for p in (name, os.path.join(gin_reading.GIN_ROOT, name)) if os.path.isfile(p)), None
  )
  if path is None:
    raise FileNotFoundError(f"There are no grids '{name}', neither here nor below gin/.")
  with open(path, encoding='utf-8-sig') as file:
    try:
      grids = json.load(file)
    except ValueError as error:
      raise ValueError(f'{path} is no JSON file: {error}') from error
  good = isinstance(grids, dict) and all(
    isinstance(of_system, list)
    and all(
      isinstance(grid, dict) and all(isinstance(values, list) for values in grid.values())
      for grid in of_system
    )
    for of_system in grids.values()
  )
  if not good:
    raise ValueError(
      f'{path}: expected {{"system": [{{"binding": [value, ...]}}, ...]}}, a list of grids '
      'for each system.'
    )
  missing = [system for system in systems or () if system not in grids]
  if missing:
    raise ValueError(
      f'{path} has no grid for {", ".join(missing)}; it has: {", ".join(sorted(grids))}.'
    )
  return {system: grids[system] for system in systems or grids}


def _points(grids) -> list[dict]:
  """The recipe as it is, then each combination of each grid once."""
  points: list[dict] = [{}]
  for grid in grids:
    for values in itertools.product(*grid.values()):
      point = dict(zip(grid, values))
      if point not in points:
        points.append(point)
  return points


def _title(point) -> str:
  """A point in words: the names without their modules."""
  words = []
  for name, value in point.items():
    scope, _, rest = name.rpartition('/')
    short = rest.rpartition('.')[2]
    words.append(f'{scope}/{short} = {value!r}' if scope else f'{short} = {value!r}')
  return ', '.join(words) or 'recipe'


def _slug(point) -> str:
  """The folder of a point."""
  import hashlib

  if not point:
    return 'recipe'
  return hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:12]


def _remove(directory: str, kept: str):
  """Empties a run directory but for one file and the log."""
  import shutil

  from tfreid.comparison import plan

  for name in os.listdir(directory) if os.path.isdir(directory) else ():
    path = os.path.join(directory, name)
    if os.path.isdir(path):
      shutil.rmtree(path)
    elif not kept or name not in (kept, plan.LOG):
      os.remove(path)
