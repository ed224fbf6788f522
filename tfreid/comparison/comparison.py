"""A comparison of systems: its runs, how far they have come, and what is written of them. Floor 5.

What is known of recipes, and how a run is started, comes from outside (`Surroundings`): recipes are
gin files, which only the command line reads.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from tfreid.comparison import paper, plan, processes, scheduler
from tfreid.comparison.plan import Leg, Run

_ABOUT = 'comparison.json'


class Recipe(Protocol):
  """What is known of a system without running it."""

  def get(self, name: str, argument: str, default: Any = None) -> Any:
    """What a configurable's argument is bound to."""

  def stages(self) -> list[str]:
    """The scoped names of the recipe's stages, in order."""

  def legs(self) -> list[Leg]:
    """What each stage costs."""

  def fingerprint(self) -> str:
    """A hash of what a run of the recipe depends on."""


_RecipeT = TypeVar('_RecipeT', bound=Recipe)


@dataclasses.dataclass(frozen=True)
class Settings:
  """What to compare, and where.

  Attributes:
    dataset: the name of the data set's file of settings.
    out: folder of the runs.
    report: folder of results and page.
    seeds: of the runs.
    systems: names of methods; those of Tables 2 and 3 if there are none.
    figure3_seeds: how many of the seeds the two sweeps of Figure 3 use; 0 for no sweeps.
    untrained: also evaluate one untrained network of each kind.
    workers: runs at a time.
    images_per_second: speed of training to estimate times with until a run is finished.
    allow_changed: keep and continue runs of another configuration.
    command: the command line, for the page.
    texts: further settings for the page, title -> text.
    also: results files of comparisons elsewhere, whose runs the tables take in.
    pictures: copy ranked results beside the page.
    note: a sentence for the top of the page, such as what is not the paper's in these runs.
  """

  dataset: str
  out: str
  report: str
  seeds: Sequence[int]
  systems: Sequence[str] = ()
  figure3_seeds: int = 1
  untrained: bool = True
  workers: int = 1
  images_per_second: float | None = None
  allow_changed: bool = False
  command: str = ''
  texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  also: Sequence[str] = ()
  pictures: bool = True
  note: str = ''


class Surroundings(Protocol[_RecipeT]):
  """How recipes are read and runs are started."""

  def recipe(self, system: str, bindings: Sequence[str] | None = None) -> _RecipeT:
    """A system's recipe, with these bindings after those of the command."""

  def check(self, recipes: Sequence[_RecipeT], /) -> None:
    """Raises ValueError if the user configured something that none of the recipes uses."""

  def command(self, system: str, bindings: Sequence[str], directory: str) -> list[str]:
    """The command line of a run, written to `directory`."""

  def shown(self, command: Sequence[str]) -> str:
    """A command line as a user would type it."""

  def prepare(self) -> None:
    """Makes the data ready, before anything runs."""

  def num_images(self, system: str) -> int:
    """The number of training images of a system's recipe, 0 where it cannot be told yet."""


class Cost(NamedTuple):
  """What a run costs.

  Attributes:
    run: which.
    state: whether it has to be done.
    legs: what it trains.
    steps: of training, 0 where the number of images is not known.
    seconds: that it will take, or took; None where nothing tells.
  """

  run: Run
  state: str
  legs: Sequence[Leg]
  steps: int
  seconds: float | None


class Comparison:
  """The plan of a comparison and how far it has come.

  Attributes:
    settings: what was asked for.
    out: folder of the runs.
    cores: those of each worker.
    runs: in the order in which they are done.
    later: runs of Figure 3 that are certain to follow, but for the weight they will have.
    failed: what failed, title -> how.
    clock: how long runs take.
  """

  def __init__(self, settings: Settings, surroundings: Surroundings[_RecipeT]):
    """Reads the recipes and what is on disk; runs and writes nothing.

    Args:
      settings: what to compare.
      surroundings: how recipes are read and runs are started.

    Raises:
      ValueError: nothing to run, something twice, or a setting that no recipe uses.
    """
    self.settings = settings
    self.out = settings.out
    self.cores = processes.shares(settings.workers)
    self._surroundings: Surroundings[Any] = surroundings
    self._fingerprints: dict[Run, str] = {}
    systems = list(settings.systems) or [system.name for system in paper.SYSTEMS]
    recipes = {system: surroundings.recipe(system) for system in systems}
    surroundings.check(list(recipes.values()))
    self._legs = {system: recipe.legs() for system, recipe in recipes.items()}
    # Those that start from the shared pre-training; a system may have a recipe without one.
    self._starters = [
      system
      for system, legs in self._legs.items()
      if any(leg.name == plan.PRETRAIN for leg in legs)
    ]
    self.runs = plan.table_runs(
      systems, settings.seeds, recipes=self._legs, untrained=settings.untrained
    )
    # Whose recipe the pre-training is read from: of the paper's systems always the same one. With
    # DeepMAR's, settings of its own would seem to be those of the pre-training, and a folder of the
    # others' runs would refuse it where it is the only one that is asked for.
    known = {system.name for system in paper.SYSTEMS}
    self._pretrained_by = next(iter(self._starters), '')
    if self._starters and known.issuperset(self._starters):
      self._pretrained_by = paper.WITHOUT_ALIGNMENT
    if not self._starters:
      self.runs = [run for run in self.runs if run.role != plan.PRETRAIN]
    self._weights = _weights(recipes[paper.OURS]) if paper.OURS in recipes else None
    self._sweep_seeds = settings.seeds[: settings.figure3_seeds] if self._weights else ()
    if self._sweep_seeds:
      self.runs += self._without_tables(plan.generator_runs(self._sweep_seeds))
    self.later = self._expected_sweep()
    self.failed: dict[str, str] = {}
    self.clock = plan.Clock(self._num_images(), images_per_second=settings.images_per_second)
    for run in self.runs:
      if self.state(run) == plan.DONE:
        self._learn(run)

  # The plan.

  def command(self, run: Run) -> list[str]:
    """The command line of a run."""
    return self._surroundings.command(
      run.system or self._pretrained_by, self._bindings(run), run.directory(self.out)
    )

  def _bindings(self, run: Run) -> list[str]:
    """The bindings of a run, beside those of all."""
    seed = f'SEED = {run.seed}'
    if run.role == plan.PRETRAIN:
      return [seed, 'METHOD = "pretrain"', f'STAGES = [@{plan.PRETRAIN}/stages.Stage()]']
    if run.role == plan.UNTRAINED:
      stages = self._surroundings.recipe(run.system).stages()
      return [seed, *(f'{stage}.epochs = 0' for stage in stages)]
    shared = Run(plan.PRETRAIN, '', run.seed).directory(self.out)
    bindings = [seed, f'PRETRAIN_DIRECTORY = {os.path.join(shared, plan.PRETRAIN)!r}']
    if run.weights is not None:
      names = (plan.GENERATOR, plan.DISCRIMINATOR)
      bindings += [
        f'alignment.Adversarial.{name} = {weight!r}' for name, weight in zip(names, run.weights)
      ]
    return bindings

  def fingerprint(self, run: Run) -> str:
    """A hash of what a run depends on."""
    if run not in self._fingerprints:
      recipe = self._surroundings.recipe(run.system or self._pretrained_by, self._bindings(run))
      self._fingerprints[run] = recipe.fingerprint()
    return self._fingerprints[run]

  def record(self, run: Run) -> dict[str, Any]:
    """How a run went; empty where none was started."""
    return plan.read_record(run.directory(self.out))

  def state(self, run: Run) -> str:
    """Whether a run has to be done; with `allow_changed` none is CHANGED."""
    record = self.record(run)
    state = plan.state(record, self.fingerprint(run))
    if state == plan.CHANGED and self.settings.allow_changed:
      return plan.state(record, record['fingerprint'])
    return state

  def starts_from(self, run: Run) -> Run | None:
    """The pre-training that a run needs, None for one that needs none."""
    if run.role in (plan.PRETRAIN, plan.UNTRAINED) or run.system not in self._starters:
      return None
    return Run(plan.PRETRAIN, '', run.seed)

  def estimate(self, runs: Sequence[Run]) -> float | None:
    """Seconds that runs will take, None where nothing is known."""
    total = 0.0
    for run in runs:
      seconds = self.clock.seconds(plan.legs_of(run, self._legs))
      if seconds is None:
        return None
      total += seconds
    # A guessed speed is that of the whole machine; a measured one is that of a worker's share.
    return total / (1 if self.clock.is_guess else len(self.cores))

  def cost(self, run: Run) -> Cost:
    """What a run costs, or did cost."""
    legs = plan.legs_of(run, self._legs)
    state = self.state(run) if run in self.runs else plan.NEW
    return Cost(
      run,
      state,
      legs,
      steps=sum(leg.steps(self.clock.num_images) for leg in legs),
      seconds=self.record(run)['seconds'] if state == plan.DONE else self.clock.seconds(legs),
    )

  # Running.

  def run(self) -> dict[str, str]:
    """Does what is not done, then writes results and page.

    Returns:
      What failed: title -> how.

    Raises:
      ValueError: there are runs of another configuration.
    """
    from tfreid.comparison import figure

    if any(run.role == plan.PARAMETER for run in self.runs):
      figure.check()  # hours before it draws
    self._refuse_changed(self.runs)
    self._surroundings.prepare()
    self.clock.num_images = self._num_images()
    try:
      scheduler.do(self, self.runs)
      if self._sweep_seeds:
        more, self.later = self._second_sweep(), []
        self._refuse_changed(more)
        self.runs += more
        scheduler.do(self, more)
    finally:
      self.write()
    return self.failed

  def one(self, run: Run, cores: Sequence[int], tell: Callable[[float], None]) -> tuple[int, float]:
    """Runs one process to its end, and keeps how it went.

    Args:
      run: what to do.
      cores: of the worker.
      tell: called with the seconds elapsed, from time to time.

    Returns:
      The exit status, and the seconds it took.
    """
    directory = run.directory(self.out)
    record = self.record(run)
    fingerprint = self.fingerprint(run)
    command = self.command(run)
    record = {
      'run': run.name,
      'fingerprint': fingerprint,
      'changed': plan.is_changed(record, fingerprint),
      'attempts': record.get('attempts', 0) + 1,
      'workers': {'count': len(self.cores), 'cores': len(cores)},
      'command': self._surroundings.shown(command),
    }
    plan.write_record(directory, record)
    started = time.time()
    pinned = cores if len(self.cores) > 1 else ()
    status, peak = processes.wait(command, os.path.join(directory, plan.LOG), tell, cores=pinned)
    seconds = time.time() - started
    record.update(
      status=status,
      seconds=round(seconds, 1),
      peak_bytes=peak,
      stages=self._stages(run),
      ended=processes.now(),
    )
    plan.write_record(directory, record)
    return status, seconds

  def _stages(self, run: Run) -> dict[str, dict[str, float]]:
    """What each finished stage of a run took."""
    stages = {}
    for leg in plan.legs_of(run, self._legs):
      path = os.path.join(run.directory(self.out), leg.name, 'final.json')
      if os.path.isfile(path):
        with open(path, encoding='utf-8') as file:
          final = json.load(file)
        stages[leg.name] = {name: final[name] for name in ('epochs', 'steps', 'seconds')}
    return stages

  def ended(self, run: Run, status: int) -> None:
    """Heeds how a run ended: for those that start from it, and for the estimate of time."""
    if status:
      log = os.path.join(run.directory(self.out), plan.LOG)
      self.failed[run.title] = f'exit status {status}: {processes.last_words(log)} (log: {log})'
    self._learn(run)

  def _learn(self, run: Run) -> None:
    """Takes a finished run into the estimate, if it had as much of the machine as the next have."""
    record = self.record(run)
    if (record.get('workers') or {}).get('count', 1) == len(self.cores):
      self.clock.learn(plan.legs_of(run, self._legs), record)

  def write(self, *, page: bool = True) -> None:
    """Writes the results file and, unless told otherwise, the page."""
    from tfreid.comparison import report, scores

    rows = self._rows()
    about = {
      'dataset': self.settings.dataset,
      'command': self.settings.command,
      'note': self.settings.note,
      'settings': dict(self.settings.texts),
      'machine': processes.machine(),
      'failed': self.failed,
      'unfinished': [
        run.title
        for run in self.runs
        if run.title not in self.failed and self.state(run) != plan.DONE
      ],
    }
    for directory in dict.fromkeys((self.out, self.settings.report)):
      scores.write_rows(os.path.join(directory, scores.RESULTS_FILE), rows)
      plan.write_text(
        os.path.join(directory, _ABOUT), json.dumps(about, indent=1, ensure_ascii=False) + '\n'
      )
    if page:
      path = report.write(
        rows, about, self.settings.report, out=self.out, pictures=self.settings.pictures
      )
      print(f'Written: {path}', flush=True)

  def _rows(self) -> list[dict[str, Any]]:
    from tfreid.comparison import scores

    changed = [
      run.name
      for run in self.runs
      if plan.state(self.record(run), self.fingerprint(run)) == plan.CHANGED
    ]
    kinds = {system: plan.kind(legs) for system, legs in self._legs.items()}
    own = scores.collect(self.out, self.runs, kinds=kinds, weights=self._weights, changed=changed)
    return scores.joined(own, self.settings.also)

  def _second_sweep(self) -> list[Run]:
    from tfreid.comparison import scores

    _, _, best = scores.parameter_curves(scores.results(self._rows()))
    if best is None:
      return []
    return self._without_tables(plan.discriminator_runs(self._sweep_seeds, best))

  def _expected_sweep(self) -> list[Run]:
    """The runs of the right half of Figure 3 that are still to do, as far as that can be known.

    Their lambda_G is what the left half will find; until then any stands for it, and whether the
    tables have one of the points is not known.
    """
    left = [run for run in self.runs if run.role == plan.PARAMETER]
    if not left:
      return []
    if all(self.state(run) == plan.DONE for run in left):
      return [run for run in self._second_sweep() if self.state(run) != plan.DONE]
    return plan.discriminator_runs(self._sweep_seeds, paper.GENERATOR_WEIGHTS[0])

  def _without_tables(self, runs: Sequence[Run]) -> list[Run]:
    """The runs but for those that the tables have anyway."""
    return [run for run in runs if run.weights != self._weights]

  def _refuse_changed(self, runs: Sequence[Run]) -> None:
    changed = [run for run in runs if self.state(run) == plan.CHANGED]
    if changed:
      names = ', '.join(run.directory(self.out) for run in changed[:5])
      more = f' and {len(changed) - 5} more' if len(changed) > 5 else ''
      raise ValueError(
        f'{names}{more} were made with another configuration than this command has. Give another '
        '--out, remove these folders to do them again, or keep them with --allow_changed_config '
        '(the page will name them).'
      )

  def _num_images(self) -> int:
    """The number of training images: as a pre-training noted it, as the data show, or 0."""
    for seed in self.settings.seeds:
      directory = Run(plan.PRETRAIN, '', seed).directory(self.out)
      path = os.path.join(directory, plan.PRETRAIN, 'stage.json')
      if os.path.isfile(path):
        with open(path, encoding='utf-8') as file:
          noted = json.load(file).get('num_images')
        if noted:
          return int(noted)
    return self._surroundings.num_images(next(iter(self._legs)))


def _weights(recipe: Recipe) -> tuple[float, float]:
  """(lambda_G, lambda_D) of a recipe."""
  generator, discriminator = (
    float(recipe.get('alignment.Adversarial', name, 1.0))
    for name in (plan.GENERATOR, plan.DISCRIMINATOR)
  )
  return generator, discriminator


def render(out: str, directory: str, *, dataset: str, pictures: bool = True, note: str = '') -> str:
  """Writes the page from a comparison's results file.

  Args:
    out: folder of the comparison.
    directory: to write to.
    dataset: what the data are called where nothing there says it.
    pictures: copy ranked results beside the page.
    note: for the top of the page; the comparison's own if there is none.

  Returns:
    The path of the page.

  Raises:
    FileNotFoundError: there are no results.
  """
  from tfreid.comparison import report, scores

  path = os.path.join(out, scores.RESULTS_FILE)
  rows = scores.read_rows(path)
  if not rows:
    raise FileNotFoundError(
      f"There are no results in '{path}'. Give --out as it was given to the command that ran the "
      'systems.'
    )
  # A pre-training has no results and so no data set.
  about = {'dataset': next((row['dataset'] for row in rows if row.get('dataset')), dataset)}
  saved = os.path.join(out, _ABOUT)
  if os.path.isfile(saved):
    with open(saved, encoding='utf-8') as file:
      about = json.load(file)
  if note:
    about['note'] = note
  return report.write(rows, about, directory, out=out, pictures=pictures)
