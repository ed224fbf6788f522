"""Trains the systems of the paper's Tables 2 and 3 over several seeds and writes the tables.

  tfreid compare --dataset=market1501 --data_root=/data/market1501 --out=runs/market
  tfreid compare --dry_run                    the plan and its cost
  tfreid compare --render_only --out=runs/market

Without --data_root it draws synthetic people and runs on them in a small size (gin/tables.gin).
Each run is a process of its own; all runs of a seed share one pre-training. Running the same
command again continues where it stopped. With --workers=N there are N runs at a time, each on its
own share of the cores. The page is <out>/index.html.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time

from absl import app, flags

from tfreid.cli import gin_flags, gin_reading, recipes, startup, training_runs

flags.adopt_module_key_flags(gin_flags)
_DATASET = flags.DEFINE_string('dataset', 'synthetic', 'Name of a file in gin/datasets/.')
_DATA_ROOT = flags.DEFINE_string(
  'data_root', None, 'Where the data is. Without it, synthetic people are drawn.'
)
_SYSTEMS = flags.DEFINE_list(
  'systems', None, 'Names of files in gin/methods/; default: those of Tables 2 and 3.'
)
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of the runs.')
_OUT = flags.DEFINE_string('out', os.path.join('runs', 'tables'), 'Where the runs are written.')
_REPORT = flags.DEFINE_string('report', None, 'Where results and page are written; default: --out.')
_GIN_FILE = flags.DEFINE_multi_string(
  'gin_file', None, 'Overlay for all systems, repeatable; tables.gin if no --data_root is given.'
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], 'One more binding for all systems, repeatable; wins over the files.'
)
flags.DEFINE_alias('gin_param', 'gin_bindings')
_FIGURE3 = flags.DEFINE_bool('figure3', True, 'Also run the two sweeps of Figure 3.')
_FIGURE3_SEEDS = flags.DEFINE_integer(
  'figure3_seeds', 1, 'Of --seeds, how many the sweeps use.', lower_bound=1
)
_UNTRAINED = flags.DEFINE_bool(
  'untrained', True, 'Also evaluate one untrained network of each kind.'
)
_SPEED = flags.DEFINE_float(
  'images_per_second',
  None,
  'Speed of training to estimate times with until a run is finished.',
  lower_bound=1e-3,
)
_WORKERS = flags.DEFINE_integer(
  'workers', 1, 'Runs at a time, each on its own share of the cores.', lower_bound=1
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the plan and its cost, run nothing.')
_RENDER_ONLY = flags.DEFINE_bool('render_only', False, 'Write the page from what is there.')
_ALLOW = flags.DEFINE_bool(
  'allow_changed_config',
  False,
  'Keep and continue runs of another configuration; the page names them.',
)

_ABOUT = 'comparison.json'
_LOG = 'train.log'

_GUESSED_SPEED = 45.0  # images per second of a ResNet-50 at that size on two cores
_LOOK = 0.5  # seconds between looks at what could be run


def main(argv):
  """Plans, runs what is not done, collects and writes the page."""
  startup.no_arguments(argv)
  if not _RENDER_ONLY.value and _DATA_ROOT.value is None and _DATASET.value != 'synthetic':
    raise app.UsageError('With --dataset give --data_root, the folder that holds the data.')
  signal.signal(signal.SIGTERM, training_runs.interrupt)
  with startup.clear_errors('The same command continues where it stopped.'):
    if _RENDER_ONLY.value:
      _render_only()
      return
    comparison = Comparison()
    if _DRY_RUN.value:
      comparison.print_plan()
      return
    failed = comparison.run()
  sys.exit(1 if failed else 0)


class Comparison:
  """The plan of this command and how far it has come."""

  def __init__(self):
    """Reads the gin files and what is on disk; runs and writes nothing."""
    from tfreid.comparison import paper, plan

    self.out = _OUT.value
    self.report = _REPORT.value or self.out
    self.systems = _SYSTEMS.value or [system.name for system in paper.SYSTEMS]
    self.cores = training_runs.shares(_WORKERS.value)
    self.seeds = training_runs.seeds(_SEEDS.value)
    drawn = _DATA_ROOT.value is None
    self.data_root = training_runs.PEOPLE if drawn else startup.given(_DATA_ROOT)
    self.overlays = _GIN_FILE.value or (['tables.gin'] if drawn else [])
    configured = {system: self._recipe(system) for system in self.systems}
    recipes.check_use(configured.values(), self.overlays, _GIN_BINDINGS.value)
    self.recipes = {system: recipe.legs() for system, recipe in configured.items()}
    self.kinds = {system: plan.kind(legs) for system, legs in self.recipes.items()}
    self.runs = plan.table_runs(
      self.systems, self.seeds, recipes=self.recipes, untrained=_UNTRAINED.value
    )
    # Those that start from the shared pre-training; a system may have a recipe without one.
    self.starters = [
      system
      for system, legs in self.recipes.items()
      if any(leg.name == plan.PRETRAIN for leg in legs)
    ]
    self._fingerprints: dict = {}
    if not self.starters:
      self.runs = [run for run in self.runs if run.role != plan.PRETRAIN]
    self.weights = self._weights() if paper.OURS in self.systems else None
    self.sweep_seeds = self.seeds[: _FIGURE3_SEEDS.value]
    if _FIGURE3.value and self.weights:
      self.runs += self._without_tables(plan.generator_runs(self.sweep_seeds))
    # Those of Figure 3 that are certain to follow, but for the weight they will have.
    self.later = self._expected_sweep()
    self.failed: dict[str, str] = {}
    self.clock = plan.Clock(
      self._num_images(),
      images_per_second=_SPEED.value or (_GUESSED_SPEED if drawn else None),
    )
    for run in self.runs:
      if self.state(run) == plan.DONE:
        self._learn(run)

  # The plan.

  def files(self, run) -> list[str]:
    """The gin files of a run."""
    method = run.system or self.starters[0]
    return [f'methods/{method}.gin', f'datasets/{_DATASET.value}.gin', *self.overlays]

  def bindings(self, run) -> list[str]:
    """The bindings of a run, those of the command line first."""
    from tfreid.comparison import plan

    found = [f'DATA_ROOT = {self.data_root!r}', *_GIN_BINDINGS.value, f'SEED = {run.seed}']
    if run.role == plan.PRETRAIN:
      return [*found, 'METHOD = "pretrain"', f'STAGES = [@{plan.PRETRAIN}/stages.Stage()]']
    if run.role == plan.UNTRAINED:
      recipe = self._recipe(run.system)
      return [*found, *(f'{stage}.epochs = 0' for stage in recipe.stages())]
    directory = os.path.join(plan.Run(plan.PRETRAIN, '', run.seed).directory(self.out), 'pretrain')
    found.append(f'PRETRAIN_DIRECTORY = {directory!r}')
    if run.weights is not None:
      names = (plan.GENERATOR, plan.DISCRIMINATOR)
      found += [
        f'alignment.Adversarial.{name} = {weight!r}' for name, weight in zip(names, run.weights)
      ]
    return found

  def command(self, run) -> list[str]:
    """The command line of a run."""
    return [
      *startup.program('train'),
      *(f'--gin_file={name}' for name in self.files(run)),
      *(f'--gin_bindings={binding}' for binding in self.bindings(run)),
      f'--run_dir={run.directory(self.out)}',
      # Whether it may continue was decided here, by what the run uses and not by every line of an
      # overlay that serves all systems.
      '--allow_changed_config',
      # One overlay serves all systems.
      '--allow_unused_bindings',
      *gin_flags.passed_on(),
    ]

  def fingerprint(self, run) -> str:
    """A hash of what a run depends on."""
    if run not in self._fingerprints:
      recipe = recipes.Recipe(self.files(run), self.bindings(run))
      self._fingerprints[run] = recipe.fingerprint()
    return self._fingerprints[run]

  def record(self, run) -> dict:
    """How a run went."""
    from tfreid.comparison import plan

    return plan.read_record(run.directory(self.out))

  def state(self, run) -> str:
    """Whether a run has to be done; with --allow_changed_config none is CHANGED."""
    from tfreid.comparison import plan

    record = self.record(run)
    found = plan.state(record, self.fingerprint(run))
    if found == plan.CHANGED and _ALLOW.value:
      return plan.state(record, record['fingerprint'])
    return found

  def estimate(self, runs) -> float | None:
    """Seconds that runs will take, None where nothing is known."""
    from tfreid.comparison import plan

    each: list[float] = []
    for run in runs:
      seconds = self.clock.seconds(plan.legs_of(run, self.recipes))
      if seconds is None:
        return None
      each.append(seconds)
    # A guessed speed is that of the whole machine; a measured one is that of a worker's share.
    return sum(each) / (1 if self.clock.is_guess else len(self.cores))

  def print_plan(self):
    """The plan, what each run costs and the sum."""
    import rich.console
    import rich.table

    from tfreid.comparison import plan

    console = rich.console.Console()
    if not console.is_terminal:
      console.width = max(console.width, 120)
    table = rich.table.Table(title=f'{len(self.runs)} runs on {_DATASET.value} into {self.out}')
    for heading in ('run', 'state'):
      table.add_column(heading)
    for heading in ('epochs', 'steps', 'time'):
      table.add_column(heading, justify='right')
    steps = 0
    for run in self.runs:
      legs = plan.legs_of(run, self.recipes)
      own = sum(leg.steps(self.clock.num_images) for leg in legs)
      steps += own
      state = self.state(run)
      seconds = self.clock.seconds(legs)
      if state == plan.DONE:
        seconds = self.record(run)['seconds']
      table.add_row(
        run.title,
        state,
        ' + '.join(str(leg.epochs) for leg in legs) or '0',
        str(own) if self.clock.num_images else '?',
        plan.duration(seconds),
      )
    console.print(table)
    todo = [run for run in self.runs if self.state(run) != plan.DONE]
    if self.later:
      console.print(
        f'Then Figure 3 runs {len(self.later)} more: λ_D at the best λ_G, each like those of λ_G. '
        'Steps and time below have them in.',
        highlight=False,
        soft_wrap=True,
      )
      for run in self.later:
        steps += sum(leg.steps(self.clock.num_images) for leg in plan.legs_of(run, self.recipes))
    images = f'{self.clock.num_images} training images' if self.clock.num_images else 'no count yet'
    left = self.estimate(todo + self.later)
    note = f' with {len(self.cores)} at a time' if len(self.cores) > 1 else ''
    todo_or_later = todo or self.later
    if todo_or_later and left is None:
      note = ': no run is finished; --images_per_second gives a guess'
    elif todo_or_later and self.clock.is_guess:
      note = f', guessed from {self.clock.images_per_second:g} images per second'
    console.print(
      f'{len(todo)} of {len(self.runs)} runs to do; {steps} steps in the whole plan ({images}). '
      f'Time left: {plan.duration(left)}{note}.',
      highlight=False,
      soft_wrap=True,
    )

  # Running.

  def run(self) -> dict[str, str]:
    """Does what is not done, then writes the page.

    Returns:
      What failed: title -> how.
    """
    from tfreid.comparison import figure, plan

    if any(run.role == plan.PARAMETER for run in self.runs):
      figure.check()  # hours before it draws
    self._refuse_changed(self.runs)
    if _DATA_ROOT.value is None:
      training_runs.draw_people()
      self.clock.num_images = self._num_images()
    try:
      self._do(self.runs)
      if _FIGURE3.value and self.weights:
        more, self.later = self._second_sweep(), []
        self._refuse_changed(more)
        self.runs += more
        self._do(more)
    finally:
      self.write()
    for title, reason in self.failed.items():
      print(f'Failed: {title}: {reason}', file=sys.stderr)
    done = sum(self.state(run) == plan.DONE for run in self.runs)
    print(f'{done} of {len(self.runs)} runs are done.')
    return self.failed

  def write(self, *, page: bool = True):
    """Writes the results file and, unless told otherwise, the page."""
    from tfreid.comparison import plan, report, scores

    rows = self._rows()
    about = {
      'dataset': _DATASET.value,
      'command': f'tfreid compare {shlex.join(sys.argv[1:])}'.strip(),
      'settings': self._settings(),
      'machine': training_runs.machine(),
      'failed': self.failed,
      'unfinished': [
        run.title
        for run in self.runs
        if run.title not in self.failed and self.state(run) != plan.DONE
      ],
    }
    for directory in dict.fromkeys((self.out, self.report)):
      scores.write_rows(os.path.join(directory, scores.RESULTS_FILE), rows)
      plan.write_text(
        os.path.join(directory, _ABOUT), json.dumps(about, indent=1, ensure_ascii=False) + '\n'
      )
    if page:
      path = report.write(rows, about, self.report, out=self.out)
      print(f'Written: {path}', flush=True)

  def _do(self, runs):
    """Does the runs that are not done, as many at a time as there are workers.

    Each worker is a thread that waits for the process of its run. Runs are begun in their order,
    but for those that wait for a pre-training or that another command is at.
    """
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
      rich.progress.TextColumn('{task.description}'),
      rich.progress.BarColumn(bar_width=24),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TextColumn('{task.fields[note]}'),
      console=console,
      refresh_per_second=2,
    ) as bar:
      queue = Queue(self, runs, bar, console)
      workers = [
        threading.Thread(target=queue.work, args=(cores,), daemon=True) for cores in self.cores
      ]
      for worker in workers:
        worker.start()
      try:
        # Joined in short pieces: a signal is handled between two of them.
        while any(worker.is_alive() for worker in workers):
          for worker in workers:
            worker.join(_LOOK)
      finally:
        queue.stop()
        for worker in workers:
          worker.join()
    if queue.error is not None:
      raise queue.error

  def one(self, run, cores, tell) -> tuple[int, float]:
    """Runs one process to its end, and keeps how it went.

    Args:
      run: what to do.
      cores: of the worker.
      tell: called with the seconds elapsed, from time to time.

    Returns:
      The exit status, and the seconds it took.
    """
    from tfreid.comparison import plan

    directory = run.directory(self.out)
    record = self.record(run)
    fingerprint = self.fingerprint(run)
    record = {
      'run': run.name,
      'fingerprint': fingerprint,
      'changed': plan.is_changed(record, fingerprint),
      'attempts': record.get('attempts', 0) + 1,
      'workers': {'count': len(self.cores), 'cores': len(cores)},
      'command': training_runs.shown(self.command(run)),
    }
    plan.write_record(directory, record)
    started = time.time()
    log = os.path.join(directory, _LOG)
    pinned = cores if len(self.cores) > 1 else ()
    status, peak = training_runs.wait(self.command(run), log, tell, cores=pinned)
    seconds = time.time() - started
    stages = {}
    for leg in plan.legs_of(run, self.recipes):
      path = os.path.join(directory, leg.name, 'final.json')
      if os.path.isfile(path):
        with open(path, encoding='utf-8') as file:
          final = json.load(file)
        stages[leg.name] = {name: final[name] for name in ('epochs', 'steps', 'seconds')}
    record.update(
      status=status,
      seconds=round(seconds, 1),
      peak_bytes=peak,
      stages=stages,
      ended=training_runs.now(),
    )
    plan.write_record(directory, record)
    return status, seconds

  def ended(self, run, status):
    """Heeds how a run ended: for those that start from it, and for the estimate of time."""
    if status:
      log = os.path.join(run.directory(self.out), _LOG)
      self.failed[run.title] = f'exit status {status}: {training_runs.last_words(log)} (log: {log})'
    self._learn(run)

  def _learn(self, run):
    """Takes a finished run into the estimate, if it had as much of the machine as the next have."""
    from tfreid.comparison import plan

    record = self.record(run)
    if (record.get('workers') or {}).get('count', 1) == len(self.cores):
      self.clock.learn(plan.legs_of(run, self.recipes), record)

  def starts_from(self, run):
    """The pre-training that a run needs, None for one that needs none."""
    from tfreid.comparison import plan

    if run.role in (plan.PRETRAIN, plan.UNTRAINED) or run.system not in self.starters:
      return None
    return plan.Run(plan.PRETRAIN, '', run.seed)

  def _rows(self):
    from tfreid.comparison import plan, scores

    changed = [
      run.name
      for run in self.runs
      if plan.state(self.record(run), self.fingerprint(run)) == plan.CHANGED
    ]
    return scores.collect(
      self.out, self.runs, kinds=self.kinds, weights=self.weights, changed=changed
    )

  def _second_sweep(self):
    from tfreid.comparison import plan, scores

    _, _, best = scores.parameter_curves(scores.results(self._rows()))
    if best is None:
      return []
    return self._without_tables(plan.discriminator_runs(self.sweep_seeds, best))

  def _expected_sweep(self):
    """The runs of the right half of Figure 3 that are still to do, as far as that can be known.

    Their lambda_G is what the left half will find; until then any stands for it, and whether the
    tables have one of the points is not known.
    """
    from tfreid.comparison import paper, plan

    left = [run for run in self.runs if run.role == plan.PARAMETER]
    if not left:
      return []
    if all(self.state(run) == plan.DONE for run in left):
      return [run for run in self._second_sweep() if self.state(run) != plan.DONE]
    return plan.discriminator_runs(self.sweep_seeds, paper.GENERATOR_WEIGHTS[0])

  def _without_tables(self, runs):
    """The runs but for those that the tables have anyway."""
    return [run for run in runs if run.weights != self.weights]

  def _refuse_changed(self, runs):
    from tfreid.comparison import plan

    changed = [run for run in runs if self.state(run) == plan.CHANGED]
    if changed:
      names = ', '.join(run.directory(self.out) for run in changed[:5])
      more = f' and {len(changed) - 5} more' if len(changed) > 5 else ''
      raise ValueError(
        f'{names}{more} were made with another configuration than this command has. Give another '
        '--out, remove these folders to do them again, or keep them with --allow_changed_config '
        '(the page will name them).'
      )

  # What is known without running.

  def _recipe(self, system: str) -> recipes.Recipe:
    files = [f'methods/{system}.gin', f'datasets/{_DATASET.value}.gin', *self.overlays]
    return recipes.Recipe(files, [f'DATA_ROOT = {self.data_root!r}', *_GIN_BINDINGS.value])

  def _weights(self) -> tuple[float, float]:
    from tfreid.comparison import paper, plan

    recipe = self._recipe(paper.OURS)
    generator, discriminator = (
      float(recipe.get('alignment.Adversarial', name, 1.0))
      for name in (plan.GENERATOR, plan.DISCRIMINATOR)
    )
    return generator, discriminator

  def _num_images(self) -> int:
    """Number of training images: as a pre-training noted it, as the folder shows, or 0."""
    from tfreid.comparison import plan
    from tfreid.data import image_bytes

    for seed in self.seeds:
      directory = plan.Run(plan.PRETRAIN, '', seed).directory(self.out)
      path = os.path.join(directory, plan.PRETRAIN, 'stage.json')
      if os.path.isfile(path):
        with open(path, encoding='utf-8') as file:
          noted = json.load(file).get('num_images')
        if noted:
          return int(noted)
    folder = os.path.join(self.data_root, 'bounding_box_train')
    if os.path.isdir(folder):
      return sum(name.lower().endswith(image_bytes.ENDINGS) for name in os.listdir(folder))
    if _DATA_ROOT.value is None:
      return training_runs.NUM_IMAGES
    return 0

  def _settings(self) -> dict[str, str]:
    texts = {}
    for name in self.overlays:
      with open(gin_reading.gin_path(name), encoding='utf-8') as file:
        texts[f'Overlay {os.path.basename(name)}'] = file.read()
    if _GIN_BINDINGS.value:
      texts['Bindings'] = '\n'.join(_GIN_BINDINGS.value)
    if _DATA_ROOT.value is None:
      texts['Data'] = shlex.join(['tfreid', 'synthesize', *training_runs.people_flags()])
    return texts


class Queue:
  """The runs that the workers of one command take from, and what is told of them.

  Attributes:
    error: what went wrong in a worker beside its run, or None.
  """

  def __init__(self, comparison: Comparison, runs, bar, console):
    """Begins nothing.

    Args:
      comparison: whose runs they are.
      runs: in the order in which they are to be done; those that are done are only counted.
      bar: rich.progress.Progress to tell the progress with.
      console: rich.console.Console to write a line per finished run to.
    """
    from tfreid.comparison import plan

    self.error: BaseException | None = None
    self._comparison = comparison
    self._bar = bar
    self._console = console
    self._pending = [run for run in runs if comparison.state(run) != plan.DONE]
    self._active: dict = {}  # run -> seconds elapsed
    self._count = len(runs)
    self._guard = threading.RLock()
    self._stopped = threading.Event()
    self._task = bar.add_task('runs', total=len(runs), note='')
    self._tell()

  def stop(self):
    """Ends the runs under way and begins no other."""
    self._stopped.set()

  def work(self, cores):
    """Does run after run until none is left."""
    try:
      while not self._stopped.is_set() and (self._pending or self._active):
        if not self._next(cores):
          self._stopped.wait(_LOOK)
    except BaseException as error:
      if not self._stopped.is_set():
        self.error = error
        self.stop()

  def _next(self, cores) -> bool:
    """Does the first run that can be done; False if none can be just now."""
    from tfreid.comparison import plan

    with self._guard:
      ready = [run for run in self._pending if self._is_ready(run)]
    for run in ready:
      if self._doomed(run):
        return True
      with self._guard:
        if run not in self._pending:
          return True  # another worker was faster
        self._pending.remove(run)
        self._active[run] = 0.0
      done = False
      try:
        with training_runs.alone(run.directory(self._comparison.out), wait=False) as mine:
          if mine and self._comparison.state(run) != plan.DONE:
            self._do(run, cores)
        done = mine or self._comparison.state(run) == plan.DONE
      finally:
        with self._guard:
          del self._active[run]
          if not done:  # another command is at it: later, and meanwhile the next
            self._pending.insert(0, run)
      if done:
        self._ended(run)
        return True
    return False

  def _is_ready(self, run) -> bool:
    """Whether a run need not wait for its pre-training."""
    shared = self._comparison.starts_from(run)
    return shared is None or (shared not in self._pending and shared not in self._active)

  def _doomed(self, run) -> bool:
    """Gives a run up whose pre-training failed; it gets no folder."""
    comparison = self._comparison
    shared = comparison.starts_from(run)
    if shared is None or shared.title not in comparison.failed:
      return False
    with self._guard:
      if run in self._pending:
        self._pending.remove(run)
        comparison.failed[run.title] = f'{shared.title} failed, which it starts from'
        self._say(run, comparison.failed[run.title])
        self._tell()
    return True

  def _do(self, run, cores):
    from tfreid.comparison import plan

    def tell(elapsed):
      if self._stopped.is_set():
        raise KeyboardInterrupt
      with self._guard:
        self._active[run] = elapsed
        self._tell()

    status, seconds = self._comparison.one(run, cores, tell)
    with self._guard:
      self._comparison.ended(run, status)
    log = os.path.join(run.directory(self._comparison.out), _LOG)
    self._say(
      run,
      (f'failed, see {log}' if status else f'done in {plan.duration(seconds)}')
      + f'; left: {plan.duration(self._left(without=run))}',
    )

  def _ended(self, run):
    """Keeps what is known now; the page once a seed of the tables is through: one early."""
    from tfreid.comparison import plan

    with self._guard:
      rest = [*self._pending, *self._active]
      of_tables = run.role != plan.PARAMETER and all(
        other.seed != run.seed or other.role == plan.PARAMETER for other in rest
      )
      self._comparison.write(page=bool(rest) and of_tables)
      self._tell()

  def _left(self, without=None) -> float | None:
    """Seconds until all is done."""
    comparison = self._comparison
    with self._guard:
      active = {run: spent for run, spent in self._active.items() if run != without}
      rest = comparison.estimate([*self._pending, *comparison.later])
    for run, spent in active.items():
      whole = comparison.estimate([run])
      if rest is None or whole is None:
        return None
      rest += max(0.0, whole - spent / (1 if comparison.clock.is_guess else len(comparison.cores)))
    return rest

  def _say(self, run, text):
    with self._guard:
      number = self._count - len(self._pending) - sum(other != run for other in self._active)
      self._console.print(
        f'[{number}/{self._count}] {run.title}: {text}',
        markup=False,
        highlight=False,
        soft_wrap=True,
      )

  def _tell(self):
    from tfreid.comparison import plan

    with self._guard:
      under_way = ' | '.join(
        f'{run.title}, {plan.duration(spent)}' for run, spent in self._active.items()
      )
      note = f'{under_way}; left: {plan.duration(self._left())}' if under_way else ''
      completed = self._count - len(self._pending) - len(self._active)
      self._bar.update(self._task, completed=completed, note=note)


def _render_only():
  """Writes the page from a comparison's results file."""
  from tfreid.comparison import report, scores

  path = os.path.join(_OUT.value, scores.RESULTS_FILE)
  rows = scores.read_rows(path)
  if not rows:
    raise FileNotFoundError(
      f"There are no results in '{path}'. Give --out as it was given to the command that ran the "
      'systems.'
    )
  # A pre-training has no results and so no data set.
  about = {'dataset': next((row['dataset'] for row in rows if row.get('dataset')), _DATASET.value)}
  saved = os.path.join(_OUT.value, _ABOUT)
  if os.path.isfile(saved):
    with open(saved, encoding='utf-8') as file:
      about = json.load(file)
  page = report.write(rows, about, _REPORT.value or _OUT.value, out=_OUT.value)
  print(f'Written: {page}')
