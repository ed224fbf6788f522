"""Evaluates a trained joint space: prints the table, adds a row to the run's results.jsonl.

  tfreid evaluate --space=runs/a2img/joint/space
  tfreid evaluate --space=runs/a2img/joint/space --dataset=market1501 --data_root=/data/market1501
  tfreid evaluate --space=runs/a2img/joint/space --attribute_counts=1,2,4,8,all
  tfreid evaluate --space=runs/peta/joint/space --dataset=market1501 --data_root=/data/market1501 \
    --through=peta,market1501

With --through a model that was trained on one data set is asked for the people of another, in the
attributes that the named data sets share (tfreid/data/correspondence.py). Name the same data sets
when you ask it for its own people, to see what the change of data set costs.

Without --dataset the data are those of the run's config.gin. The space alone is loaded, not the
method that trained it.
"""

from __future__ import annotations

import json
import logging
import os

from absl import app, flags

from tfreid import storage
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
_APPEND = flags.DEFINE_bool('append', True, 'Add a row to the results file.')


def run_directory(space: str) -> str | None:
  """The run that a space belongs to: the nearest folder above it with a config.gin."""
  folder = os.path.abspath(space)
  for _ in range(2):
    folder = os.path.dirname(folder)
    if os.path.isfile(os.path.join(folder, 'config.gin')):
      return folder
  return None


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


def check_schema(about, schema):
  """Refuses a data set whose attribute columns are not those the space was trained on."""
  saved = about.get('schema')
  if not saved:
    return
  from tfreid.data.attributes import AttributeSchema

  trained = AttributeSchema.from_json(saved)
  if (trained.column_names, trained.encoding) != (schema.column_names, schema.encoding):
    raise ValueError(
      f'The joint space was trained on the {trained.size} {trained.encoding} attribute columns of '
      f'{trained.name}, but {schema.name} has other ones ({schema.size}, {schema.encoding}). '
      'Evaluate it on a data set with the same attributes.'
    )


def asked_through(about, benchmark, split):
  """The split as the space's model can be asked for it, see `shared_attributes.asked`.

  Returns:
    The split to search, the same images with the shared attributes, and the schema of these.
  """
  from tfreid.data import shared_attributes
  from tfreid.data.attributes import AttributeSchema

  if _COUNTS.value:
    raise ValueError('--through and --attribute_counts cannot be given together.')
  if not about.get('schema'):
    raise ValueError(f"'{_SPACE.value}' does not say what attributes it was trained on.")
  shared = shared_attributes.schema(_THROUGH.value)
  model = AttributeSchema.from_json(about['schema'])
  return *shared_attributes.asked(split, benchmark.schema, shared, model), shared


def evaluate_space(about, benchmark):
  """Embeds the split and evaluates it, with a progress bar.

  Returns:
    The Evaluation, further facts for the results row (the means of the GradedMetrics of the first
    --top results, results by subset), and the Curve over --attribute_counts or None.
  """
  import numpy as np
  import rich.console
  import rich.progress
  import tensorflow as tf

  from tfreid import experiment
  from tfreid.data.attributes import AttributeSchema
  from tfreid.data.pipeline import Pipeline
  from tfreid.evaluation import partial, retrieval
  from tfreid.joint_space import JointSpace

  split = getattr(benchmark, _SPLIT.value)
  if split is None:
    raise ValueError(
      f'{benchmark.name} has no validation split here. Bind VALIDATION_SHARE as in training, e.g. '
      "--gin_bindings='VALIDATION_SHARE = 0.1'."
    )
  labels, groups, seen = split, benchmark.schema.groups, None
  if _THROUGH.value:
    split, labels, shared = asked_through(about, benchmark, split)
    groups = shared.groups
  else:
    check_schema(about, benchmark.schema)
    seen = benchmark.seen(split)
  # What is not said is the rate of the data that the space was trained on.
  saved = about.get('schema')
  schema = AttributeSchema.from_json(saved) if saved else benchmark.schema
  counts = None if _COUNTS.value == ['every'] else _COUNTS.value
  if _COUNTS.value:
    # Before the long part.
    partial.checked_counts(counts, schema)
    partial.drawing()
  space = JointSpace.load(_SPACE.value)
  pipeline = Pipeline(space.image_shape[:2], _BATCH_SIZE.value)
  console = rich.console.Console(stderr=True)
  with rich.progress.Progress(
    *rich.progress.Progress.get_default_columns(),
    rich.progress.MofNCompleteColumn(),
    console=console,
  ) as bar:
    task = bar.add_task('Embedding images', total=len(split))
    try:
      embeddings = retrieval.embed_split(
        space,
        split,
        pipeline.evaluation(split),
        progress=lambda done, count: bar.update(task, completed=done, total=count),
      )
    except tf.errors.OpError as error:
      raise pipeline.explain(error, split) from error
    curve = None
    if _COUNTS.value:
      task = bar.add_task('Asking with fewer attributes', total=None)
      curve = partial.curve(
        space,
        split,
        embeddings.gallery,
        schema=schema,
        counts=counts,
        draws=_DRAWS.value,
        seed=_SEED.value,
        relevance=_RELEVANCE.value,
        resamples=_RESAMPLES.value or 1,
        progress=lambda done, count: bar.update(task, completed=done, total=count),
      )
  evaluation = retrieval.evaluate_embeddings(embeddings, seen=seen)
  graded = retrieval.graded(embeddings, labels, groups=groups, k=_TOP.value)
  means = {
    f'violations{_TOP.value}': float(np.mean(graded.violations)),
    f'nDCG{_TOP.value}': float(np.mean(graded.ndcg)),
    **experiment.subset_results(embeddings, labels),
  }
  if _THROUGH.value:
    means['through'] = [*_THROUGH.value]
    means['through_columns'] = len(groups)
    means['images'] = len(labels)
    means['images_left_out'] = dict(labels.dropped)
  return evaluation, means, curve


def epoch_of(space: str) -> int | None:
  """The number of epochs the stage of a space was trained for, where that is written down."""
  from tfreid.training import stages

  return stages.facts(os.path.dirname(os.path.abspath(space))).get('epochs')


def write(path: str, contents: bytes):
  """Writes a file so that a reader sees the old or the new one, never half of one."""
  storage.make_directories(os.path.dirname(os.path.abspath(path)))
  storage.write_bytes(path, contents)


def write_json(path: str, value):
  """Writes JSON as `write` does."""
  write(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode())


def write_curve(base: str, curve, *, title: str, facts):
  """Writes base.csv, base.json and base.png."""
  write(f'{base}.png', curve.picture(title))
  write(f'{base}.csv', curve.to_csv().encode())
  write_json(f'{base}.json', {**facts, **curve.to_json()})


def main(argv):
  """Loads, evaluates, prints and writes down."""
  startup.no_arguments(argv)
  if _DATASET.value and _DATA_ROOT.value is None:
    raise app.UsageError('With --dataset give --data_root, the folder that holds the data.')
  with startup.clear_errors():
    logging.getLogger('tfreid').setLevel(logging.WARNING)
    from tfreid.joint_space import JointSpace

    about = JointSpace.metadata(_SPACE.value)
    run = run_directory(_SPACE.value)
    benchmark = load_benchmark(about, run)
    evaluation, graded, curve = evaluate_space(about, benchmark)

    import rich.console

    from tfreid import experiment
    from tfreid.evaluation import results

    title = f'{about.get("method") or "joint space"} on {benchmark.name}, {_SPLIT.value} split'
    if _THROUGH.value:
      title += f', through {graded["through_columns"]} columns that {_and(_THROUGH.value)} share'
    title = printable(title, lines=False)
    console = rich.console.Console()
    if not console.is_terminal:
      console.width = max(console.width, 140)
    console.print(evaluation.table(title, resamples=_RESAMPLES.value))
    console.print(
      f'Of the first {_TOP.value} images: {graded[f"violations{_TOP.value}"]:.2f} attributes wrong '
      f'in the mean, nDCG {100 * graded[f"nDCG{_TOP.value}"]:.2f} %.',
      highlight=False,
    )
    config = experiment.run_config(run) or '' if run else ''
    facts = {
      'dataset': benchmark.name,
      'method': about.get('method', ''),
      'stage': _stage(about),
      'epoch': epoch_of(_SPACE.value),
      'seed': about.get('seed'),
      'split': _SPLIT.value,
    }
    if _JSON.value:
      write_json(
        _JSON.value,
        {
          **facts,
          'protocol': results.PROTOCOL,
          **graded,
          'metrics': evaluation.to_json(per_query=True),
        },
      )
    beside = run or os.path.dirname(os.path.abspath(_SPACE.value))
    if curve:
      console.print(curve.table(f'Attributes given: {title}'))
      base = _CURVE.value or os.path.join(beside, 'attribute_counts')
      write_curve(base, curve, title=title, facts=facts)
      console.print(f'Curve in {base}.png, .csv and .json', highlight=False, soft_wrap=True)
    if _APPEND.value:
      path = _RESULTS.value or os.path.join(beside, 'results.jsonl')
      results.append_result(path, evaluation=evaluation, config=config, more=graded, **facts)
      console.print(f'Added to {path}', highlight=False, soft_wrap=True)


def _and(names) -> str:
  return ' and '.join(names)


def _encoding(about) -> str:
  return (about.get('schema') or {}).get('encoding', 'binary')


def _stage(about) -> str:
  """As the row after training says it: the stage, with the name of a further space of it."""
  stage, name = about.get('stage', ''), about.get('space', '')
  return f'{stage}/{name}' if name else stage
