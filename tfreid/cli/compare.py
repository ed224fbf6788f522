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

import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from tfreid.cli import gin_flags, gin_reading, recipes, startup, training_runs

if TYPE_CHECKING:
  import rich.table

  from tfreid.comparison.comparison import Comparison, Cost, Settings

flags.adopt_module_key_flags(gin_flags)
flags.adopt_module_key_flags(training_runs)
_SYSTEMS = flags.DEFINE_list(
  'systems', None, 'Names of files in gin/methods/; default: those of Tables 2 and 3.'
)
_SEEDS = flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of the runs.')
_OUT = flags.DEFINE_string('out', os.path.join('runs', 'tables'), 'Where the runs are written.')
_REPORT = flags.DEFINE_string('report', None, 'Where results and page are written; default: --out.')
_ALSO = flags.DEFINE_multi_string(
  'also',
  [],
  'Results file (results.jsonl) of another comparison of the same data, of other seeds or made on '
  'another machine, whose runs the tables take in. Repeatable.',
)
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
_PICTURES = flags.DEFINE_bool(
  'pictures',
  True,
  'Copy pictures of ranked results beside the page. --nopictures where people must not be shown; '
  'the runs keep theirs.',
)
_NOTE = flags.DEFINE_string(
  'note', '', "A sentence for the top of the page, such as what is not the paper's in these runs."
)
_ALLOW = flags.DEFINE_bool(
  'allow_changed_config',
  False,
  'Keep and continue runs of another configuration; the page names them.',
)

_GUESSED_SPEED = 45.0  # images per second of a ResNet-50 at that size on two cores


def main(argv: Sequence[str]) -> None:
  """Plans, runs what is not done, collects and writes the page."""
  startup.no_arguments(argv)
  training_runs.begin(needs_data=not _RENDER_ONLY.value)
  with startup.clear_errors('The same command continues where it stopped.'):
    from tfreid.comparison import comparison as comparisons
    from tfreid.comparison import plan

    if _RENDER_ONLY.value:
      page = comparisons.render(
        _OUT.value,
        _REPORT.value or _OUT.value,
        dataset=training_runs.dataset(),
        pictures=_PICTURES.value,
        note=_NOTE.value,
      )
      print(f'Written: {page}')
      return
    comparison = comparisons.Comparison(_settings(), _Surroundings())
    if _DRY_RUN.value:
      _print_plan(comparison)
      return
    failed = comparison.run()
    for title, reason in failed.items():
      print(f'Failed: {title}: {reason}', file=sys.stderr)
    done = sum(comparison.state(run) == plan.DONE for run in comparison.runs)
    print(f'{done} of {len(comparison.runs)} runs are done.')
  sys.exit(1 if failed else 0)


def _settings() -> Settings:
  """What the flags say."""
  from tfreid.comparison.comparison import Settings

  return Settings(
    dataset=training_runs.dataset(),
    out=_OUT.value,
    report=_REPORT.value or _OUT.value,
    seeds=training_runs.seeds(_SEEDS.value),
    systems=_SYSTEMS.value or (),
    figure3_seeds=_FIGURE3_SEEDS.value if _FIGURE3.value else 0,
    untrained=_UNTRAINED.value,
    workers=_WORKERS.value,
    images_per_second=_SPEED.value or (_GUESSED_SPEED if training_runs.is_drawn() else None),
    allow_changed=_ALLOW.value,
    command=training_runs.typed('compare'),
    texts=_texts(),
    also=_ALSO.value,
    pictures=_PICTURES.value,
    note=_NOTE.value,
  )


def _texts() -> dict[str, str]:
  """What the page shows of the settings: title -> text."""
  texts = {}
  for name in training_runs.overlays():
    with open(gin_reading.gin_path(name), encoding='utf-8') as file:
      texts[f'Overlay {os.path.basename(name)}'] = file.read()
  if training_runs.gin_bindings():
    texts['Bindings'] = '\n'.join(training_runs.gin_bindings())
  if training_runs.is_drawn():
    texts['Data'] = shlex.join(['tfreid', 'synthesize', *training_runs.people_flags()])
  return texts


class _Surroundings:
  """Recipes out of gin files, and `tfreid train`."""

  def recipe(self, system: str, bindings: Sequence[str] | None = None) -> recipes.Recipe:
    return recipes.Recipe(
      training_runs.files(system), [*training_runs.bindings(), *(bindings or ())]
    )

  def check(self, read: Sequence[recipes.Recipe]) -> None:
    recipes.check_use(read, training_runs.overlays(), training_runs.gin_bindings())

  def command(self, system: str, bindings: Sequence[str], directory: str) -> list[str]:
    return training_runs.command(
      training_runs.files(system), [*training_runs.bindings(), *bindings], directory
    )

  def shown(self, command: Sequence[str]) -> str:
    return training_runs.shown(command)

  def prepare(self) -> None:
    if training_runs.is_drawn():
      training_runs.draw_people()

  def num_images(self, system: str) -> int:
    return training_runs.num_images(self.recipe(system))


def _print_plan(comparison: Comparison) -> None:
  """The plan, what each run costs and the sum."""
  import rich.console

  from tfreid.comparison import plan

  console = rich.console.Console()
  if not console.is_terminal:
    console.width = max(console.width, 120)
  costs = [comparison.cost(run) for run in comparison.runs]
  later = [comparison.cost(run) for run in comparison.later]
  num_images = comparison.clock.num_images
  console.print(_table(comparison, costs))
  if later:
    console.print(
      f'Then Figure 3 runs {len(later)} more: λ_D at the best λ_G, each like those of λ_G. '
      'Steps and time below have them in.',
      highlight=False,
      soft_wrap=True,
    )
  todo = [cost for cost in costs if cost.state != plan.DONE]
  left = comparison.estimate([cost.run for cost in (*todo, *later)])
  steps = sum(cost.steps for cost in (*costs, *later))
  counted = (
    f'{steps} steps in the whole plan ({num_images} training images)'
    if num_images
    else 'the training images cannot be counted yet, so neither can the steps'
  )
  note = f' with {len(comparison.cores)} at a time' if len(comparison.cores) > 1 else ''
  if (todo or later) and left is None:
    note = (
      ': no run is finished; --images_per_second gives a guess'
      if num_images
      else ': the data are not there, or only a run can count them'
    )
  elif (todo or later) and comparison.clock.is_guess:
    note = f', guessed from {comparison.clock.images_per_second:g} images per second'
  console.print(
    f'{len(todo)} of {len(costs)} runs to do; {counted}. Time left: {plan.duration(left)}{note}.',
    highlight=False,
    soft_wrap=True,
  )


def _table(comparison: Comparison, costs: Sequence[Cost]) -> rich.table.Table:
  """A line per run."""
  import rich.table

  from tfreid.comparison import plan

  table = rich.table.Table(
    title=f'{len(costs)} runs on {training_runs.dataset()} into {comparison.out}'
  )
  for heading in ('run', 'state'):
    table.add_column(heading)
  for heading in ('epochs', 'steps', 'time'):
    table.add_column(heading, justify='right')
  for cost in costs:
    table.add_row(
      cost.run.title,
      cost.state,
      ' + '.join(str(leg.epochs) for leg in cost.legs) or '0',
      str(cost.steps) if comparison.clock.num_images else '?',
      plan.duration(cost.seconds),
    )
  return table
