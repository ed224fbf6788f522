"""Evaluates a trained joint space: prints the table, adds a row to the run's results.jsonl.

  tfreid evaluate --space=runs/a2img/joint/space
  tfreid evaluate --space=runs/a2img/joint/space --dataset=market1501 --data_root=/data/market1501
  tfreid evaluate --space=runs/a2img/joint/space --attribute_counts=1,2,4,8,all
  tfreid evaluate --space=runs/peta/joint/space --dataset=market1501 --data_root=/data/market1501 \
    --through=peta,market1501
  tfreid evaluate --space=runs/a2img/joint/space --with_space=runs/a2img/joint/space-attributes \
    --shares=0.02,0.05,0.1 --split=validation

With --through a model that was trained on one data set is asked for the people of another, in the
attributes that the named data sets share (tfreid/data/correspondence.py). Name the same data sets
when you ask it for its own people, to see what the change of data set costs.

Without --dataset the data are those of the run's config.gin. The space alone is loaded, not the
method that trained it.
"""

from __future__ import annotations

import logging
import os

from absl import app, flags

from tfreid.cli import configuration, gin_flags, startup
from tfreid.printable import printable

flags.adopt_module_key_flags(gin_flags)
_SPACE = flags.DEFINE_string(
  'space', None, "The 'space' folder of a finished stage, <run>/<stage>/space.", required=True
)
_DATASET = flags.DEFINE_string(
  'dataset', None, 'Name of a file in gin/datasets/: market1501, dukemtmc, peta, …'
)
_DATA_ROOT = flags.DEFINE_string(
  'data_root', None, 'Where the data is, if elsewhere than in training.'
)
_GIN_FILE = flags.DEFINE_multi_string('gin_file', [], 'One more gin file, repeatable.')
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], 'Options of the loader, e.g. \'SPLIT = "sal"\'. Repeatable.'
)
flags.DEFINE_alias('gin_param', 'gin_bindings')
_SPLIT = flags.DEFINE_enum('split', 'test', ['test', 'validation'], 'What to evaluate on.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 64, 'Images per step.', lower_bound=1)
_RESAMPLES = flags.DEFINE_integer(
  'resamples', 1000, 'Draws for the 95 % intervals; 0 shows none.', lower_bound=0
)
_TOP = flags.DEFINE_integer('top', 10, 'k of violations@k and nDCG@k.', lower_bound=1)
_JSON = flags.DEFINE_string('json', None, 'Write everything here too, each query included.')
_RESULTS = flags.DEFINE_string(
  'results', None, "The results file to add to; default: the run's results.jsonl."
)
_COUNTS = flags.DEFINE_list(
  'attribute_counts',
  [],
  'Also ask with so many attributes, drawn at random, e.g. 1,2,4,8,all, or each number there is: '
  "'every'. Writes the curve as .csv, .json and .png.",
)
_DRAWS = flags.DEFINE_integer(
  'attribute_draws', 5, 'How often each query is asked with other attributes.', lower_bound=1
)
_SEED = flags.DEFINE_integer('attribute_seed', 0, 'Of the draws.', lower_bound=0)
_RELEVANCE = flags.DEFINE_enum(
  'relevance',
  'identity',
  ['identity', 'said'],
  'What is right when attributes are left out: images with the semantic ID of the full query, or '
  'all that agree with what was said.',
)
_CURVE = flags.DEFINE_string(
  'curve',
  None,
  "Files of the curve, without ending; default: attribute_counts in the run's folder.",
)
_THROUGH = flags.DEFINE_list(
  'through',
  [],
  'Ask in the attributes that these data sets share: of peta, market1501, dukemtmc.',
)
_WITH_SPACE = flags.DEFINE_string(
  'with_space', None, 'Also score with this space beside --space: see --shares.'
)
_SHARES = flags.DEFINE_list(
  'shares',
  ['0.01', '0.02', '0.05', '0.1', '0.2'],
  'With --with_space: the score is the dot product in --space plus this much of that in the other.',
)
_FLIP_TEST = flags.DEFINE_bool(
  'flip_test',
  False,
  'Embed each image as it is and as in a mirror, and score with the mean: twice the time.',
)
_APPEND = flags.DEFINE_bool('append', True, 'Add a row to the results file.')


def load_benchmark(about, run):
  """The data set that the flags name, or that of the run.

  Args:
    about: what was saved with the space.
    run: its run directory, or None.
  """
  given = [] if _DATA_ROOT.value is None else [f'DATA_ROOT = {_DATA_ROOT.value!r}']
  if _DATASET.value:
    files = [f'datasets/{_DATASET.value}.gin']
    given += [
      f'ENCODING = {_encoding(about)!r}',
      'VALIDATION_SHARE = 0.0',
      'VALIDATION_SEED = 0',
    ]
  elif run or _GIN_FILE.value:
    from tfreid import experiment

    files = []
    if run:
      experiment.run_config(run)  # raises if it is damaged
      files = [os.path.join(run, experiment.CONFIG_FILE)]
  else:
    raise ValueError(
      f"No config.gin lies above '{_SPACE.value}', so the data it was trained on are not known. "
      'Give --dataset and --data_root.'
    )
  return configuration.dataset(
    [*files, *_GIN_FILE.value],
    given=given,
    bindings=_GIN_BINDINGS.value,
    allow_imports=gin_flags.allow_imports(),
  )


def evaluate_space(benchmark):
  """What `saved_space.evaluate` finds, with a progress bar."""
  import rich.console
  import rich.progress

  from tfreid.evaluation import saved_space

  fewer = None
  if _COUNTS.value:
    fewer = saved_space.FewerAttributes(
      counts=None if _COUNTS.value == ['every'] else _COUNTS.value,
      draws=_DRAWS.value,
      seed=_SEED.value,
      relevance=_RELEVANCE.value,
      resamples=_RESAMPLES.value or 1,
    )
  fusion = None
  if _WITH_SPACE.value:
    fusion = saved_space.Fusion(_WITH_SPACE.value, _numbers(_SHARES.value))
  with rich.progress.Progress(
    *rich.progress.Progress.get_default_columns(),
    rich.progress.MofNCompleteColumn(),
    console=rich.console.Console(stderr=True),
  ) as bar:
    tasks = {}

    def progress(what, done, count):
      if what not in tasks:
        tasks[what] = bar.add_task(what, total=count)
      bar.update(tasks[what], completed=done, total=count)

    return saved_space.evaluate(
      _SPACE.value,
      benchmark,
      part=_SPLIT.value,
      batch_size=_BATCH_SIZE.value,
      top=_TOP.value,
      through=_THROUGH.value,
      fewer=fewer,
      fusion=fusion,
      flip_test=_FLIP_TEST.value,
      progress=progress,
    )


def main(argv):
  """Loads, evaluates, prints and writes down."""
  startup.no_arguments(argv)
  if _DATASET.value and _DATA_ROOT.value is None:
    raise app.UsageError('With --dataset give --data_root, the folder that holds the data.')
  if _THROUGH.value and _COUNTS.value:
    raise app.UsageError('--through and --attribute_counts cannot be given together.')
  if _THROUGH.value and _WITH_SPACE.value:
    raise app.UsageError('--through and --with_space cannot be given together.')
  _numbers(_SHARES.value)
  with startup.clear_errors():
    logging.getLogger('tfreid').setLevel(logging.WARNING)
    from tfreid import experiment
    from tfreid.joint_space import JointSpace

    about = JointSpace.metadata(_SPACE.value)
    run = experiment.run_of(_SPACE.value)
    benchmark = load_benchmark(about, run)
    result = evaluate_space(benchmark)
    title = _title(about, benchmark, result)
    facts = {
      'dataset': benchmark.name,
      'method': about.get('method', ''),
      'stage': _stage(about),
      'epoch': experiment.epochs_of(_SPACE.value),
      'seed': about.get('seed'),
      'split': _SPLIT.value,
    }
    console = _console()
    _print_evaluation(console, title, result)
    if result.fused:
      _print_fused(console, result)
    beside = run or os.path.dirname(os.path.abspath(_SPACE.value))
    _write(console, result, title=title, facts=facts, beside=beside, run=run)


def _numbers(texts) -> list[float]:
  """Shares that were given, in their order.

  Raises:
    app.UsageError: one is no number from 0 on.
  """
  numbers = []
  for text in texts:
    try:
      number = float(text)
    except ValueError:
      number = -1.0
    if not 0.0 <= number < float('inf'):
      raise app.UsageError(f"--shares takes numbers from 0 on, such as 0.02,0.1, not '{text}'.")
    numbers.append(number)
  return numbers


def _title(about, benchmark, found) -> str:
  title = f'{about.get("method") or "joint space"} on {benchmark.name}, {_SPLIT.value} split'
  if _THROUGH.value:
    columns = found.facts['through_columns']
    title += f', through {columns} columns that {_and(_THROUGH.value)} share'
  if _FLIP_TEST.value:
    title += ', with the flip test'
  return printable(title, lines=False)


def _console():
  import rich.console

  console = rich.console.Console()
  if not console.is_terminal:
    console.width = max(console.width, 140)
  return console


def _print_evaluation(console, title, found):
  console.print(found.evaluation.table(title, resamples=_RESAMPLES.value))
  violations, ndcg = (found.facts[f'{name}{_TOP.value}'] for name in ('violations', 'nDCG'))
  console.print(
    f'Of the first {_TOP.value} images: {violations:.2f} attributes wrong in the mean, nDCG '
    f'{100 * ndcg:.2f} %.',
    highlight=False,
  )


def _print_fused(console, found):
  """A line for each share of the second space."""
  import rich.table

  table = rich.table.Table(
    title=printable(f'With {_WITH_SPACE.value}', lines=False),
    caption=f'{found.evaluation.overall.queries} queries, {found.evaluation.overall.gallery} '
    'images; %',
  )
  for heading in ('share', 'rank-1', 'rank-5', 'rank-10', 'mAP'):
    table.add_column(heading, justify='right')
  for share, evaluation in found.fused.items():
    summary = evaluation.overall
    values = summary.rank1, summary.rank5, summary.rank10, summary.mAP
    table.add_row(f'{share:g}', *(f'{100 * value:.2f}' for value in values))
  console.print(table)


def _write(console, found, *, title, facts, beside, run):
  """Writes what the flags ask for, and says where; `beside` is the folder where none is named."""
  from tfreid import experiment
  from tfreid.evaluation import results, saved_space

  # Before anything is written: it raises if it is damaged.
  config = experiment.run_config(run) or '' if run else ''
  if _JSON.value:
    protocol = {'protocol': results.PROTOCOL}
    metrics = {'metrics': found.evaluation.to_json(per_query=True)}
    if found.fused:
      metrics['with_space'] = _WITH_SPACE.value
      metrics['fused'] = [
        {'share': share, 'metrics': evaluation.to_json(per_query=True)}
        for share, evaluation in found.fused.items()
      ]
    saved_space.write_json(_JSON.value, {**facts, **protocol, **found.facts, **metrics})
  if found.curve:
    console.print(found.curve.table(f'Attributes given: {title}'))
    base = _CURVE.value or os.path.join(beside, 'attribute_counts')
    saved_space.write_curve(base, found.curve, title=title, facts=facts)
    console.print(f'Curve in {base}.png, .csv and .json', highlight=False, soft_wrap=True)
  if _APPEND.value:
    path = _RESULTS.value or os.path.join(beside, 'results.jsonl')
    results.append_result(
      path, evaluation=found.evaluation, config=config, more=found.facts, **facts
    )
    console.print(f'Added to {path}', highlight=False, soft_wrap=True)


def _and(names) -> str:
  return ' and '.join(names)


def _encoding(about) -> str:
  return (about.get('schema') or {}).get('encoding', 'binary')


def _stage(about) -> str:
  """As the row after training says it: the stage, with the name of a further space of it."""
  stage, name = about.get('stage', ''), about.get('space', '')
  return f'{stage}/{name}' if name else stage
