"""What a person watches while a run goes on: progress bars and TensorBoard. Floor 5."""

from __future__ import annotations

import ast
import io
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import numpy as np
from PIL import Image
from rich import console, progress
from tensorboard.plugins.hparams import api as hparams_api
from tensorboard.plugins.hparams import api_pb2 as hparams_pb2
from tensorboard.plugins.hparams import summary as hparams_summary
from tensorboard.plugins.pr_curve import summary as pr_curve_summary

from tfreid import storage
from tfreid.data.benchmark import Benchmark
from tfreid.data.synthetic import contact_sheet
from tfreid.evaluation import pictures, projector, retrieval
from tfreid.evaluation.retrieval import Embeddings, Evaluation
from tfreid.training import memory, stages, summaries
from tfreid.training.stages import Hooks, Progress, Stage
from tfreid.training.summaries import Summaries

TENSORBOARD = 'tensorboard'

_COUNTS = ('queries', 'skipped', 'gallery')
# Of a configuration's entries, those that say where something lies and not how it is done.
_PLACES = re.compile(r'(ROOT|DIRECTORY)$')
_SHEET_HEIGHT = 128  # pixels that a generated picture is enlarged to


def hooks(run_directory: str, benchmark: Benchmark) -> list[Hooks]:
  """The hooks `tfreid train` attaches."""
  # A bar that nobody sees is drawn once, at its end.
  shown = ProgressBar() if console.Console(stderr=True).is_terminal else ProgressLines()
  return [shown, TensorBoard(run_directory, benchmark)]


class Estimate:
  """What a stage will take: steps, images and memory before it begins, then the time left."""

  def __init__(self, progress_: Progress, steps_per_epoch: int):
    """Of a stage that begins."""
    self.steps_per_epoch = max(1, steps_per_epoch)
    self.steps = progress_.stage.epochs * self.steps_per_epoch
    # The step and the time at the first line: what was before includes building the graph.
    self._first: tuple[int, float] | None = None
    self._begin = (
      f'{progress_.stage.name}: {progress_.stage.epochs} epochs of {steps_per_epoch:,} steps, '
      f'{self.steps:,} in all; {progress_.batch_size:,} images a step, '
      f'{steps_per_epoch * progress_.batch_size:,} an epoch; about '
      f'{memory.estimated_bytes(progress_) / 2**30:.2f} GiB for weights, optimizers and '
      'activations, beside TensorFlow itself.'
    )
    if progress_.epoch:
      self._begin += f' {progress_.epoch} epochs are done.'

  def beginning(self) -> str:
    """Steps, images and memory, a sentence each."""
    return self._begin

  def line(self, progress_: Progress, *, now: float) -> str:
    """Where the stage is at `now`, in seconds, and about how long it will still take."""
    loss = progress_.losses[progress_.method.objectives[0].loss]
    where = (
      f'{progress_.stage.name}: epoch {progress_.epoch + 1} of {progress_.stage.epochs}, step '
      f'{progress_.step:,} of {self.steps:,}, loss {loss:.3f}'
    )
    if self._first is None:
      self._first = progress_.step, now
      return f'{where}; building the graph is done, the next line says the time left'
    step, began = self._first
    left = (now - began) / max(1, progress_.step - step) * (self.steps - progress_.step)
    return f'{where}, {progress_.images_per_second:.0f} images/s, about {_duration(left)} left'


class ProgressLines(Hooks):
  """A line now and then, where there is no terminal to draw bars on: logs, batch systems."""

  def __init__(
    self,
    *,
    to: TextIO | None = None,
    every: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Says nothing yet.

    Args:
      to: where the lines go; standard error if None.
      every: seconds between two lines; the first one after a stage began comes at once.
      clock: seconds, from any beginning.
    """
    self._to = to
    self._every = every
    self._clock = clock
    self._next = 0.0
    self._estimate: Estimate | None = None

  def stage_begins(self, progress_: Progress, steps_per_epoch: int):
    now = self._clock()
    self._estimate = Estimate(progress_, steps_per_epoch)
    self._say(self._estimate.beginning())
    self._next = now

  def logged(self, progress_: Progress):
    now = self._clock()
    if now >= self._next and self._estimate is not None:
      self._say(self._estimate.line(progress_, now=now))
      self._next = now + self._every

  def stage_ends(self, progress_: Progress):
    self._say(f'{progress_.stage.name}: all {progress_.stage.epochs} epochs are done.')

  def embedding(self, label: str, done: int, count: int):
    now = self._clock()
    if now >= self._next or done == count:
      self._say(f'embedding {label}: {done:,} of {count:,} images')
      self._next = now + self._every

  def _say(self, text: str):
    print(text, file=self._to or sys.stderr, flush=True)


def _duration(seconds: float) -> str:
  minutes = round(seconds / 60)
  if minutes < 1:
    return f'{max(0, round(seconds))} s'
  return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'


class ProgressBar(Hooks):
  """A bar per stage (epochs, latest loss, images per second, time left) and per evaluation."""

  def __init__(self, *, to: console.Console | None = None):
    """`to` is where it is drawn; standard error if None."""
    self._console = to or console.Console(stderr=True)
    self._bar: progress.Progress | None = None
    self._stage: progress.TaskID | None = None
    self._embedding: dict[str, progress.TaskID] = {}
    self._steps = 1

  def stage_begins(self, progress_: Progress, steps_per_epoch: int):
    self.close()
    self._steps = max(1, steps_per_epoch)
    estimate = Estimate(progress_, steps_per_epoch)
    self._console.print(estimate.beginning(), highlight=False, soft_wrap=True)
    self._stage = self._opened().add_task(
      progress_.stage.name,
      total=progress_.stage.epochs * self._steps,
      completed=progress_.epoch * self._steps,
      note='starting',
    )

  def logged(self, progress_: Progress):
    loss = progress_.losses[progress_.method.objectives[0].loss]
    bar, stage = self._running()
    bar.update(
      stage,
      completed=progress_.step,
      note=f'epoch {progress_.epoch + 1}, loss {loss:.3f}, '
      f'{progress_.images_per_second:.0f} images/s',
    )

  def stage_ends(self, progress_: Progress):
    bar, stage = self._running()
    bar.update(stage, completed=progress_.stage.epochs * self._steps)
    self.close()

  def embedding(self, label: str, done: int, count: int):
    bar = self._opened()
    if label not in self._embedding:
      self._embedding[label] = bar.add_task(f'embedding {label}', total=count, note='images')
    bar.update(self._embedding[label], completed=done)
    if done == count:
      task = self._embedding.pop(label)
      # Beside a stage's bar one line for each validation would pile up.
      if self._stage is not None:
        bar.remove_task(task)

  def evaluated(
    self, stage: Stage, label: str, part: str, evaluation: Evaluation, embeddings: Embeddings
  ):
    self.close()

  def close(self):
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.stop()
    self._bar = self._stage = None
    self._embedding = {}

  def _running(self) -> tuple[progress.Progress, progress.TaskID]:
    assert self._bar is not None and self._stage is not None, 'before stage_begins'
    return self._bar, self._stage

  def _opened(self) -> progress.Progress:
    if self._bar is None:
      self._bar = progress.Progress(
        progress.TextColumn('{task.description}'),
        progress.BarColumn(bar_width=16),
        progress.MofNCompleteColumn(),
        progress.TextColumn('{task.fields[note]}'),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=self._console,
        refresh_per_second=2,
      )
      self._bar.start()
    return self._bar


class TensorBoard(Hooks):
  """Everything about a run that can be looked at, for `tensorboard --logdir=<run>/tensorboard`.

  Runs, in TensorBoard's sense, below <run>/tensorboard:

    .                     configuration, attributes and data as text
    <stage>/train         losses, gradient norms, learning rates, throughput, generated pictures
    <stage>/validation    metrics, similarities and ranked results during training
    <stage>/test          the same of the saved space, the joint space in the projector, hparams
    <stage>/test/<name>   of a further space of the method

  Beside the stage's checkpoints are ranked_results/ (a PNG file per query, best to worst) and
  samples/ (what a generative method draws).
  """

  def __init__(self, run_directory: str, benchmark: Benchmark, *, ranked: int = 8, top: int = 8):
    """Writes nothing yet.

    Args:
      run_directory: of the run.
      benchmark: whose images and attributes the pictures show.
      ranked: queries to show ranked results of.
      top: images of each.
    """
    self._run_directory = run_directory
    self._directory = os.path.join(run_directory, TENSORBOARD)
    self._benchmark = benchmark
    self._ranked = ranked
    self._top = top
    self._open: dict[str, Summaries] = {}
    self._first_step = 0

  # During training.

  def stage_begins(self, progress_: Progress, steps_per_epoch: int):
    self._first_step = progress_.step + 1 if progress_.step else 0
    self._configurations()
    about = self._summaries('', first_step=0)
    about.text('data/splits', _splits(self._benchmark), 0)
    about.text('data/attributes', _attributes(self._benchmark), 0)
    about.flush()
    train = self._summaries(f'{progress_.stage.name}/train')
    train.text('networks', _networks(progress_), progress_.step)
    train.flush()

  def logged(self, progress_: Progress):
    self._summaries(f'{progress_.stage.name}/train').scalars(
      summaries.training_scalars(progress_), progress_.step
    )

  def epoch_ends(self, progress_: Progress):
    for summary in self._open.values():
      summary.flush()

  def validated(self, progress_: Progress, evaluation: Evaluation, embeddings: Embeddings):
    to = self._summaries(f'{progress_.stage.name}/validation')
    # The same queries each time, so that the pictures can be compared over time.
    queries = np.arange(len(embeddings.queries))
    queries = queries[np.round(np.linspace(0, len(queries) - 1, self._ranked)).astype(np.int64)]
    self._evaluation(
      to,
      self._benchmark.validation,
      evaluation,
      embeddings,
      queries=np.unique(queries),
      about_queries='The same queries throughout training.',
      step=progress_.step,
    )
    to.flush()

  def pictured(self, progress_: Progress, pictures_: Mapping[str, np.ndarray]):
    folder = os.path.join(progress_.directory, 'samples')
    for name, images in pictures_.items():
      sheet = _sheet(images)
      _save(sheet, os.path.join(folder, f'{name}-epoch-{progress_.epoch:04d}.png'))
      self._summaries(f'{progress_.stage.name}/train').images(
        f'samples/{name}', np.asarray(sheet)[np.newaxis], progress_.step
      )

  def stage_ends(self, progress_: Progress):
    # Again, as the operative one is complete only now: gin notes a parameter when it is used.
    self._configurations()
    self.close()

  # After it.

  def evaluated(
    self, stage: Stage, label: str, part: str, evaluation: Evaluation, embeddings: Embeddings
  ):
    name = label[len(stage.name) + 1 :]
    split = getattr(self._benchmark, part)
    # <stage>/validation has the curves of training; this is what came after it.
    run = f'{stage.name}/{part}' if part == 'test' else f'{stage.name}/{part}-final'
    run = f'{run}/{name}' if name else run
    directory = stage.path(self._run_directory)
    step = _steps(directory)
    # An evaluation that is repeated replaces the one before. Not only by its step: of hparams
    # TensorBoard keeps the first it finds.
    for old in _listed(os.path.join(self._directory, run)):
      if os.path.basename(old).startswith('events.out.tfevents.'):
        os.remove(old)
    to = self._summaries(run, first_step=step)
    ranked = self._evaluation(
      to,
      split,
      evaluation,
      embeddings,
      queries=pictures.spread(evaluation.per_query, self._ranked),
      about_queries='Queries from the best to the worst answered one, evenly spaced.',
      step=step,
    )
    folder = os.path.join(directory, f'ranked_results-{name}' if name else 'ranked_results')
    for number, picture in enumerate(ranked):
      _save(picture, os.path.join(folder, f'{number + 1:02d}.png'))
    projector.write(
      os.path.join(self._directory, run),
      embeddings,
      split,
      self._benchmark.schema,
      evaluation=evaluation,
    )
    settings_ = settings(_read(os.path.join(self._run_directory, 'config.gin')))
    # In capitals as gin's macros, with which they stand first.
    settings_.update({'DATASET': self._benchmark.name, 'SPACE': label})
    trial = f'{os.path.basename(os.path.abspath(self._run_directory))}, {label}'
    # Here, so that TensorBoard's table of runs has the final metrics for columns, and no others.
    to.proto(hparams_api.hparams_pb(settings_, trial_id=trial), step)
    to.proto(hparams_summary.session_end_pb(hparams_pb2.STATUS_SUCCESS), step)
    self._close(run)

  def close(self):
    """Closes what is open."""
    for run in list(self._open):
      self._close(run)

  def _close(self, run: str):
    self._open.pop(run).close()

  def _summaries(self, run: str, *, first_step: int | None = None) -> Summaries:
    if run not in self._open:
      first_step = self._first_step if first_step is None else first_step
      directory = os.path.join(self._directory, run) if run else self._directory
      self._open[run] = Summaries(directory, first_step=first_step)
    return self._open[run]

  def _configurations(self):
    for name in ('config', 'operative_config'):
      text = _read(os.path.join(self._run_directory, f'{name}.gin'))
      if text:
        about = self._summaries('', first_step=0)
        about.text(f'configuration/{name}', summaries.code_block(text), 0)

  def _evaluation(self, to, split, evaluation, embeddings, *, queries, about_queries, step):
    """Metrics, similarities and ranked results; returns the latter."""
    to.scalars(evaluation_scalars(evaluation), step)
    distributions = retrieval.distributions(embeddings)
    for name, values in distributions._asdict().items():
      if len(values):
        to.histogram(f'similarity/{name}', values, step)
    overlaid = np.asarray(pictures.similarity_histogram(distributions))
    to.images('similarity/both', overlaid[np.newaxis], step)
    to.proto(_precision_recall(embeddings), step)
    ranked = pictures.ranked_queries(
      embeddings,
      split,
      self._benchmark.schema,
      evaluation,
      queries,
      k=self._top,
    )
    for number, picture in enumerate(ranked):
      # A card of its own for each: TensorBoard gives several images of one tag no names.
      to.images(
        f'ranked/{number + 1:02d}', np.asarray(picture)[np.newaxis], step, description=about_queries
      )
    return ranked


def evaluation_scalars(evaluation: Evaluation) -> dict[str, float]:
  """The metrics of an evaluation by TensorBoard tag, without what is not known.

  evaluation/mAP, ..., evaluation_seen/mAP, ..., evaluation_unseen/mAP, ..., and the chance levels
  together: evaluation_chance/mAP, evaluation_chance/seen_mAP, ...
  """
  scalars = {}
  for name, value in evaluation.scalars().items():
    part, _, field = name.rpartition('/')
    if field in _COUNTS or not np.isfinite(value):
      continue
    if field.startswith('chance_'):
      tag = f'_chance/{part}_{field[7:]}' if part else f'_chance/{field[7:]}'
    else:
      tag = f'_{part}/{field}' if part else f'/{field}'
    scalars[f'evaluation{tag}'] = value
  return scalars


def settings(config: str) -> dict[str, Any]:
  """The plain values of a gin configuration, as TensorBoard's hparams take them.

  The bindings whose value is a number, a word or a list of such. What is bound to a function or to
  a macro says nothing by itself, and where something lies is no setting.

  Args:
    config: as `gin.config_str` writes it.

  Returns:
    name -> bool, int, float or str.
  """
  found: dict[str, Any] = {}
  for line in re.sub(r'\\\n\s*', '', config).splitlines():
    binding = re.match(r'([\w./]+)\s*=\s*(\S.*)$', line)
    if not binding or _PLACES.search(binding.group(1)):
      continue
    name, text = binding.groups()
    try:
      value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      continue
    found[name] = value if isinstance(value, (bool, int, float, str)) else str(value)
  return found


def _precision_recall(embeddings: Embeddings):
  counts = pictures.pair_counts(embeddings)
  positives, negatives = counts.matching[0], counts.non_matching[0]
  return pr_curve_summary.raw_data_pb(
    'pairs',
    true_positive_counts=counts.matching,
    false_positive_counts=counts.non_matching,
    true_negative_counts=negatives - counts.non_matching,
    false_negative_counts=positives - counts.matching,
    precision=counts.matching / np.maximum(1, counts.matching + counts.non_matching),
    recall=counts.matching / max(1, positives),
    num_thresholds=len(counts.thresholds),
    display_name='all pairs of a query and an image',
    description=(
      f'The thresholds 0 ... 1 stand for similarities {counts.thresholds[0]:.4g} ... '
      f'{counts.thresholds[-1]:.4g}.'
    ),
  )


def _splits(benchmark: Benchmark) -> str:
  parts = {'train': benchmark.train, 'validation': benchmark.validation, 'test': benchmark.test}
  rows = [
    (
      name,
      len(part),
      len(np.unique(part.person_ids)),
      len(part.keys),
      ', '.join(f'{count} {reason}' for reason, count in part.dropped.items()) or '-',
    )
    for name, part in parts.items()
    if part is not None
  ]
  seen = benchmark.seen()
  return (
    f'{benchmark.name}; {int(seen.sum())} of {len(seen)} test queries also occur in training.\n\n'
    + summaries.table(('split', 'images', 'people', 'semantic IDs', 'left out'), rows)
  )


def _attributes(benchmark: Benchmark) -> str:
  schema = benchmark.schema
  rows = []
  for attribute in schema.attributes:
    rates = schema.rates[schema.block(attribute.name)] if schema.rates else ()
    values = attribute.values[1:] if attribute.is_binary else attribute.values
    shares = ', '.join(f'{value} {100 * rate:.1f} %' for value, rate in zip(values, rates))
    rows.append((attribute.name, ', '.join(attribute.values), shares or '-'))
  return f'Encoding: {schema.encoding}.\n\n' + summaries.table(
    ('attribute', 'values', 'share of training images'), rows
  )


def _networks(progress_: Progress) -> str:
  rows = []
  for name, network in progress_.method.networks.items():
    trainable = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    rows.append((name, f'{network.count_params():,}', f'{trainable:,}'))
  return f'{type(progress_.method).__name__}\n\n' + summaries.table(
    ('network', 'parameters', 'trainable'), rows
  )


def _sheet(images: np.ndarray) -> Image.Image:
  """uint8 [N, H, W, 3] as one picture that is about as wide as it is high."""
  count, height, width = images.shape[:3]
  columns = int(np.clip(round(np.sqrt(count * height / width)), 1, count))
  return contact_sheet(
    [Image.fromarray(image) for image in images],
    columns=columns,
    scale=max(1, _SHEET_HEIGHT // height),
  )


def _save(picture: Image.Image, path: str):
  storage.make_directories(os.path.dirname(path))
  content = io.BytesIO()
  picture.save(content, 'PNG')
  storage.write_bytes(path, content.getvalue())


def _listed(folder: str) -> list[str]:
  names = os.listdir(folder) if os.path.isdir(folder) else []
  return [os.path.join(folder, name) for name in names]


def _steps(directory: str) -> int:
  """Steps of a finished stage."""
  return int(stages.facts(directory).get('steps', 0))


def _read(path: str) -> str:
  return storage.read_checked_text(path) if os.path.isfile(path) else ''
