"""A whole experiment: data, stages, evaluation, and what is written down. Floor 5.

The root that gin configures and `tfreid train` calls. It lives in the package, not in `tools/`,
so that a test or a notebook can call it as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfreid import storage
from tfreid.data.benchmark import Benchmark, Split
from tfreid.data.pipeline import Pipeline
from tfreid.evaluation import results, retrieval
from tfreid.joint_space import JointSpace
from tfreid.training import checkpoints
from tfreid.training import precision as precisions
from tfreid.training import stages as stages_lib
from tfreid.training.batches import ImageBatches
from tfreid.training.stages import Hooks, Progress, Setting, Stage, StageData

_log = logging.getLogger(__name__)

_PICTURES_PER_STAGE = 10

STRATEGIES = ('mirrored', 'multi_worker', 'one_device')
SPLITS = ('test', 'validation')
RESULTS_FILE = 'results.jsonl'
# Of the images that were left out since they could not be decoded: path to reason.
UNREADABLE_FILE = 'unreadable_images.json'
CONFIG_FILE = 'config.gin'
_PATIENCE = 10.0  # seconds, after which missing workers are named; then twice as many, and so on


def train(
  run_directory: str,
  *,
  dataset: Callable[[], Benchmark],
  pipeline: Callable[[], Pipeline],
  stages: Sequence[Stage],
  first_stages: Sequence[Stage] = (),
  method: str = '',
  seed: int = 0,
  precision: str = 'float32',
  strategy: str = 'mirrored',
  jit_compile: bool = False,
  log_every: int = 20,
  checkpoint_every: int = 1,
  evaluate_every: int = 0,
  final_split: str = 'test',
  config: str = '',
  operative_config: Callable[[], str] | None = None,
  allow_changed_config: bool = False,
  hooks: Callable[[str, Benchmark], Sequence[Hooks]] | None = None,
) -> dict[str, retrieval.Evaluation]:
  """Trains the stages, evaluates every joint space they end in, and writes everything down.

  The run directory gets: config.gin, operative_config.gin, schema.json, environment.json,
  results.jsonl, and a folder per stage with its checkpoints and its space/. Calling it again
  continues where it stopped.

  Args:
    run_directory: created if need be.
    dataset: () -> Benchmark.
    pipeline: () -> Pipeline.
    stages: the recipe.
    first_stages: what goes before the recipe, whatever it is: a pre-training on other data.
    method: its name in the results.
    seed: of weights, order, augmentation and everything random inside a method.
    precision: 'float32', 'mixed_float16', 'mixed_bfloat16', or 'auto': what the devices have
      instructions for, see `training.precision`.
    strategy: 'mirrored' (all local GPUs, or the CPU), 'multi_worker' (by TF_CONFIG) or
      'one_device'.
    jit_compile: compile with XLA all of a step but the update of the variables.
    log_every: steps between reading losses from the device.
    checkpoint_every: epochs between checkpoints.
    evaluate_every: epochs between evaluations on the validation split, 0 for none.
    final_split: what is evaluated once, after training: 'test', or 'validation' while settings are
      being chosen, so that nobody sees a test result before they are.
    config: the configuration's text, kept with the run; a run directory belongs to one.
    operative_config: () -> text of what was really used, asked for once training has begun.
    allow_changed_config: continue a run although its configuration has changed.
    hooks: (run directory, benchmark) -> further hooks, such as progress bars and TensorBoard.

  Returns:
    The final evaluation of each stage that has a joint space, by stage name. Not of an earlier
    stage in a directory of its own that was done before: the run that trained it has evaluated it.

  Raises:
    ValueError: bad settings, data that do not fit, or a run directory of another configuration.
    FileNotFoundError: missing data.
  """
  precision = precisions.policy(precision, run_directory)
  _check_choice('final_split', final_split, SPLITS)
  # First of all: a multi-worker strategy must exist before any tensor does.
  distribution, workers, index = _strategy(strategy)
  chief = index == 0
  if chief:
    _check_config(run_directory, stages, config, allow_changed_config)
  tf.keras.mixed_precision.set_global_policy(precision)
  tf.keras.utils.set_random_seed(seed)

  stages = [*first_stages, *stages]
  built = pipeline()
  benchmark = _readable(dataset(), built)
  _check_part(benchmark, final_split)
  setting = Setting(
    run_directory=run_directory,
    spec=benchmark.spec(built.image_shape),
    batches=functools.partial(_batches, benchmark, seed=seed, shard=(index, workers)),
    pipeline=built,
    strategy=distribution,
    seed=seed,
    jit_compile=jit_compile,
    log_every=log_every,
    checkpoint_every=checkpoint_every,
    workers=workers,
    chief=chief,
    space_metadata=_about_spaces(benchmark, method, seed, precision),
  )
  with _full_disk_explained(run_directory), contextlib.ExitStack() as ending:
    if chief:
      # Not before the data are found: a mistyped path leaves nothing behind.
      storage.make_directories(run_directory)
      ending.enter_context(stages_lib.alone(run_directory))
      _check_config(run_directory, stages, config, allow_changed_config)
      _write_facts(run_directory, benchmark, config, precision, built.left_out)
    attached = _attached(
      run_directory,
      benchmark,
      built,
      (hooks or _no_hooks) if chief else None,
      operative_config,
      evaluate_every,
    )
    for hook in attached:
      ending.callback(hook.close)
    with _lost_worker_explained(workers):
      trained = stages_lib.run(stages, setting, attached)
    if not chief:
      return {}
    # What another run has trained in a directory that both share is that run's to evaluate.
    own = [
      stage
      for stage in stages
      if stage is stages[-1] or stage.name in trained or not stage.directory
    ]
    return _evaluate_spaces(
      run_directory, benchmark, final_split, built, own, method, seed, config, attached
    )


def _check_choice(name: str, given: str, choices: Sequence[str]) -> None:
  if given not in choices:
    raise ValueError(f"{name} is one of {', '.join(choices)}, not '{given}'.")


def _check_part(benchmark: Benchmark, part: str) -> None:
  """Refuses to evaluate on a validation split that is not there."""
  if part == 'validation' and benchmark.validation is None:
    raise ValueError(
      f'{benchmark.name} has no validation split to evaluate on. Hold training semantic IDs out '
      'with VALIDATION_SHARE, for example 0.2.'
    )


def _about_spaces(benchmark: Benchmark, method: str, seed: int, precision: str) -> dict[str, Any]:
  """What is saved with each joint space, so that it can be used without the run."""
  return {
    'schema': benchmark.schema.to_json(),
    'dataset': benchmark.name,
    'method': method,
    'seed': seed,
    'precision': precision,
  }


@contextlib.contextmanager
def _lost_worker_explained(workers: int) -> Iterator[None]:
  """A sentence where another worker has gone, and what to do."""
  try:
    yield
  except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
    if workers == 1:
      raise
    raise ConnectionError(
      'Another worker of this training has gone, so it cannot go on. Start all of them again '
      'with the same commands; they continue from the last checkpoint.'
    ) from error


@contextlib.contextmanager
def _full_disk_explained(run_directory: str) -> Iterator[None]:
  """A sentence where the disk is full, whoever notices it: TensorBoard's writer or a picture."""
  try:
    yield
  except (OSError, tf.errors.OpError) as error:
    if not checkpoints.is_full(error) or 'Is the disk full?' in str(error):
      raise
    with checkpoints.explained(f"Something of the run '{run_directory}'"):
      raise


def _attached(run_directory, benchmark, pipeline, hooks, operative_config, evaluate_every):
  """The hooks of this worker; `hooks` is None on all but the chief."""
  attached: list[Hooks] = []
  if hooks is not None:
    # First, so that the others find the file written.
    if operative_config:
      attached.append(OperativeConfig(run_directory, operative_config))
    attached += list(hooks(run_directory, benchmark))
  # These two on every worker: both read batch norm averages, a collective operation.
  attached.append(Pictures(attached))
  if evaluate_every and benchmark.validation is not None:
    attached.append(Validation(benchmark, pipeline, evaluate_every, attached))
  return attached


def _no_hooks(run_directory: str, benchmark: Benchmark) -> Sequence[Hooks]:
  return ()


def _write_facts(run_directory, benchmark, config, precision, left_out):
  """What a stranger would ask of a run, before anything is trained in it."""
  storage.remove_partial_files(run_directory)
  storage.write_checked_text(os.path.join(run_directory, CONFIG_FILE), config)
  storage.write_json(os.path.join(run_directory, 'schema.json'), benchmark.schema.to_json())
  facts = {**environment(), 'precision': precision}
  storage.write_json(os.path.join(run_directory, 'environment.json'), facts)
  if left_out:
    storage.write_json(os.path.join(run_directory, UNREADABLE_FILE), left_out)


def _batches(
  benchmark: Benchmark,
  pipeline: Pipeline,
  data: StageData | None = None,
  own_seed: int | None = None,
  *,
  seed: int,
  shard: tuple[int, int],
) -> ImageBatches:
  """Batches of the benchmark's training split, or of a stage's own data."""
  seed = seed if own_seed is None else own_seed
  if data is None:
    return ImageBatches(pipeline, benchmark.train, benchmark.schema, seed=seed, shard=shard)
  return ImageBatches(pipeline, data.split, None, seed=seed, shard=shard, sampler=data.sampler)


def _evaluate_spaces(run_directory, benchmark, part, pipeline, stages, method, seed, config, hooks):
  """The evaluation of every saved space on one split, by label, added to the results."""
  # What is evaluated is what was saved, not what happens to be in memory.
  tf.keras.mixed_precision.set_global_policy('float32')
  evaluations = {}
  for stage in stages:
    for name, directory in stages_lib.spaces(stage.path(run_directory)).items():
      label = stage.name if not name else f'{stage.name}/{name}'
      evaluation, embeddings = evaluate_split(
        JointSpace.load(directory),
        benchmark,
        pipeline,
        getattr(benchmark, part),
        progress=_embedding(hooks, f'{label}, {part}'),
      )
      results.append_result(
        os.path.join(run_directory, RESULTS_FILE),
        dataset=benchmark.name,
        method=method,
        stage=label,
        epoch=stage.epochs,
        seed=seed,
        split=part,
        evaluation=evaluation,
        config=config,
        # What a paired comparison with another run needs.
        more={
          'per_query': evaluation.to_json(per_query=True)['per_query'],
          'images': len(getattr(benchmark, part)),
          'unreadable_images_left_out': getattr(benchmark, part).dropped.get('unreadable', 0),
          **retrieval.subset_results(embeddings, getattr(benchmark, part)),
        },
      )
      evaluations[label] = evaluation
      for hook in hooks:
        hook.evaluated(stage, label, part, evaluation, embeddings)
  return evaluations


def _embedding(hooks, label):
  """What tells the hooks how far embedding has come."""

  def progress(done, count):
    for hook in hooks:
      hook.embedding(label, done, count)

  return progress


def evaluate_split(
  space: JointSpace,
  benchmark: Benchmark,
  pipeline: Pipeline,
  split: Split,
  *,
  progress: retrieval.Progress | None = None,
) -> tuple[retrieval.Evaluation, retrieval.Embeddings]:
  """The protocol's evaluation of a joint space on the test or the validation split.

  Returns:
    The evaluation, and what it was made from, so that pictures need not embed the split again.
  """
  try:
    embeddings = retrieval.embed_split(space, split, pipeline.evaluation(split), progress=progress)
  except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
    raise pipeline.explain(error, split) from error
  return retrieval.evaluate_embeddings(embeddings, seen=benchmark.seen(split)), embeddings


class Validation(Hooks):
  """Evaluates on the validation split every so many epochs, for choosing and for curves."""

  def __init__(self, benchmark, pipeline, every, others: Sequence[Hooks]):
    self._benchmark = benchmark
    self._pipeline = pipeline
    self._every = every
    self._others = others

  def epoch_ends(self, progress: Progress):
    space = progress.method.space
    due = progress.epoch % self._every == 0 or progress.epoch == progress.stage.epochs
    if space is None or not due:
      return
    evaluation, embeddings = evaluate_split(
      space,
      self._benchmark,
      self._pipeline,
      self._benchmark.validation,
      progress=_embedding(self._others, f'{progress.stage.name}, validation'),
    )
    _log.info('Validation after epoch %d: %s', progress.epoch, evaluation.line())
    for hook in self._others:
      hook.validated(progress, evaluation, embeddings)


class Pictures(Hooks):
  """Asks the method for pictures at the ends of some epochs, about ten times in a stage."""

  def __init__(self, others: Sequence[Hooks]):
    self._others = others

  def epoch_ends(self, progress: Progress):
    epochs = progress.stage.epochs
    every = -(-epochs // _PICTURES_PER_STAGE)
    if progress.epoch % every and progress.epoch != epochs:
      return
    pictures = progress.method.pictures()
    if pictures:
      for hook in self._others:
        hook.pictured(progress, pictures)


class OperativeConfig(Hooks):
  """Writes gin's operative configuration, which is complete only after everything was called."""

  def __init__(self, run_directory: str, text: Callable[[], str]):
    self._path = os.path.join(run_directory, 'operative_config.gin')
    self._text = text

  def stage_begins(self, progress: Progress, steps_per_epoch: int):
    self._write()

  def stage_ends(self, progress: Progress):
    self._write()

  def _write(self):
    storage.write_checked_text(self._path, self._text())


def _readable(benchmark: Benchmark, pipeline: Pipeline) -> Benchmark:
  """The benchmark without unreadable images, where the pipeline is told to skip them."""
  validation = benchmark.validation
  return dataclasses.replace(
    benchmark,
    train=pipeline.check(benchmark.train),
    validation=validation and pipeline.check(validation, evaluated=True),
    test=pipeline.check(benchmark.test, evaluated=True),
  )


def _strategy(name: str) -> tuple[tf.distribute.Strategy, int, int]:
  """The strategy, the number of workers and this worker's index."""
  gpu = bool(tf.config.list_physical_devices('GPU'))
  if name == 'mirrored':
    # By itself it would take every logical CPU, where a process has split its CPU.
    return tf.distribute.MirroredStrategy(None if gpu else ['CPU:0']), 1, 0
  if name == 'one_device':
    return tf.distribute.OneDeviceStrategy('GPU:0' if gpu else 'CPU:0'), 1, 0
  if name != 'multi_worker':
    raise ValueError(f"strategy is one of {', '.join(STRATEGIES)}, not '{name}'.")
  with _telling_of_missing_workers():
    return _several_workers()


def _several_workers() -> tuple[tf.distribute.Strategy, int, int]:
  try:
    cluster = json.loads(os.environ.get('TF_CONFIG', '') or '{}')
    workers = len(cluster['cluster']['worker'])
    index = int(cluster['task']['index'])
  except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      'strategy "multi_worker" needs the environment variable TF_CONFIG, for example '
      '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", '
      '"index": 0}}; '
      + ('it is not set.' if not os.environ.get('TF_CONFIG') else f'it cannot be read: {error!r}.')
    ) from error
  return tf.distribute.MultiWorkerMirroredStrategy(), workers, index


@contextlib.contextmanager
def _telling_of_missing_workers() -> Iterator[None]:
  """Says from time to time which other workers do not answer, while TensorFlow waits for them."""
  over = threading.Event()

  def tell():
    wait = _PATIENCE
    while not over.wait(wait):
      missing = [address for address in _other_workers() if not _answers(address)]
      # On standard error and not in the log: TensorFlow is starting, and gin may have muted it.
      print(
        f'Waiting for the other workers of TF_CONFIG; not reached: {", ".join(missing) or "none"}. '
        'Each has to be started with the same command and its own index.',
        file=sys.stderr,
        flush=True,
      )
      wait = 2 * wait

  thread = threading.Thread(target=tell, daemon=True)
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()


def _other_workers() -> list[str]:
  try:
    config = json.loads(os.environ.get('TF_CONFIG', '') or '{}')
    index = int(config['task']['index'])
    return [a for i, a in enumerate(config['cluster']['worker']) if i != index]
  except (ValueError, LookupError, TypeError):
    return []


def _answers(address: str) -> bool:
  host, _, port = address.rpartition(':')
  try:
    with socket.create_connection((host, int(port)), timeout=1):
      return True
  except (OSError, ValueError):
    return False


def _check_config(run_directory: str, stages: Sequence[Stage], config: str, allow_changed: bool):
  """A run directory belongs to one configuration, once something was trained or measured in it."""
  kept = run_config(run_directory)
  if kept is None or allow_changed or kept.rstrip('\n') == config.rstrip('\n'):
    return
  folders = [os.path.join(run_directory, name) for name in os.listdir(run_directory)]
  folders += [stage.path(run_directory) for stage in stages if not stage.directory]
  used = os.path.isfile(os.path.join(run_directory, RESULTS_FILE))
  if not used and not any(map(checkpoints.has_trained, folders)):
    return
  old, new = set(kept.splitlines()), set(config.splitlines())
  gone = [line for line in kept.splitlines() if line and line not in new][:5]
  come = [line for line in config.splitlines() if line and line not in old][:5]
  raise ValueError(
    f"'{run_directory}' belongs to another configuration.\n  There: "
    + '; '.join(gone or ['(nothing else)'])
    + '\n  Here:  '
    + '; '.join(come or ['(nothing else)'])
    + '\nGive another --run_dir, or --allow_changed_config to continue with this one.'
  )


def run_config(run_directory: str) -> str | None:
  """The configuration that a run directory was written with; None if there is none.

  Raises:
    ValueError: the file is damaged.
  """
  path = os.path.join(run_directory, CONFIG_FILE)
  if not os.path.isfile(path):
    return None
  return storage.read_checked_text(path, what='configuration of the run')


def run_of(space: str) -> str | None:
  """The run that a saved space belongs to: the nearest folder above it with a configuration."""
  folder = os.path.abspath(space)
  for _ in range(2):
    folder = os.path.dirname(folder)
    if os.path.isfile(os.path.join(folder, CONFIG_FILE)):
      return folder
  return None


def epochs_of(space: str) -> int | None:
  """The number of epochs the stage of a saved space was trained for, where that is written down."""
  return stages_lib.facts(os.path.dirname(os.path.abspath(space))).get('epochs')


def environment() -> dict[str, Any]:
  """Versions, devices and revision: what someone would ask who cannot reproduce a number."""
  return {
    'time': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
    'platform': platform.platform(),
    'processors': os.cpu_count(),
    'versions': results.versions(),
    'devices': [device.name for device in tf.config.list_logical_devices()],
    'code': results.code_revision(),
    'command': sys.argv,
  }
