"""Stages: what is trained after what, and how one hands over to the next. Floor 4.

A stage hands over a checkpoint, never a Python object. Resuming, repeating, sharing one
pre-training among many systems and changing the recipe are then one operation: look for what is on
disk, carry what is named, start the rest afresh.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import numbers
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import tensorflow as tf

from tfreid import forks, storage
from tfreid.data.benchmark import Split
from tfreid.data.pipeline import Pipeline
from tfreid.data.samplers import Sampler
from tfreid.methods.method import Method
from tfreid.spec import DatasetSpec
from tfreid.training import checkpoints
from tfreid.training.batches import ImageBatches, distributed
from tfreid.training.optimizers import Schedule
from tfreid.training.trainer import NonFiniteLossError, Trainer

_log = logging.getLogger(__name__)

_LOCK = '.training.lock'
_FORMAT = 2
_LONGEST_SILENCE = 30.0  # seconds


class StageData(Protocol):
  """Training data of one stage's own, such as `data.person_crops.PersonCrops`. A dataclass.

  Attributes:
    name: of the data.
    split: the images.
    sampler: chooses the images of an epoch; None takes each once.
  """

  # `dataclasses.replace` makes others of it. A protocol cannot say "dataclass" otherwise.
  __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

  @property
  def name(self) -> str: ...

  @property
  def split(self) -> Split: ...

  @property
  def sampler(self) -> Sampler | None: ...

  def spec(self, image_shape: Sequence[int]) -> DatasetSpec:
    """The sizes that the stage's method is built with."""


@dataclasses.dataclass(frozen=True)
class Stage:
  """One leg of a recipe.

  Attributes:
    name: folder name under the run directory, and what a later stage's `carry` calls it.
    method: spec -> Method, uncalled.
    epochs: to train for; 0 keeps the fresh or carried networks as they are.
    carry: earlier stage's name -> names of the networks to take over from its final checkpoint.
      A name that either side does not have is an error, never a silent fresh start.
    directory: where the stage lives; '' is <run>/<name>. Several runs that name one directory
      share the stage: the first trains it, the others find it done.
    schedule: epoch -> factor on every learning rate; None is constant.
    pipeline: changes this stage's input pipeline, () -> Pipeline; None is the experiment's.
    data: what this stage alone is trained on, () -> `StageData`; None is the experiment's training
      split.
    seed: of this stage, so that runs of several seeds can share it; None is the run's.
  """

  name: str
  method: Callable[[DatasetSpec], Method]
  epochs: int
  carry: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
  directory: str = ''
  schedule: Schedule | None = None
  pipeline: Callable[[], Pipeline] | None = None
  data: Callable[[], StageData] | None = None
  seed: int | None = None

  def __post_init__(self):
    whole = isinstance(self.epochs, numbers.Integral) and not isinstance(self.epochs, bool)
    if not whole or self.epochs < 0:
      raise ValueError(
        f"Stage '{self.name}': epochs (stages.Stage.epochs) is a whole number, 0 or more, not "
        f'{self.epochs!r}.'
      )

  def path(self, run_directory: str) -> str:
    """Where the stage's checkpoints are."""
    return self.directory or os.path.join(run_directory, self.name)


@dataclasses.dataclass
class Progress:
  """What hooks are told while a stage runs.

  Attributes:
    stage, method, trainer, directory: of the running stage.
    epoch: epochs finished.
    step: steps finished in the stage.
    losses: latest losses and gradient norms, Python floats.
    images_per_second: over the latest interval.
    learning_rates: latest.
    batch_size: images of a step, 0 until they are known.
  """

  stage: Stage
  method: Method
  trainer: Trainer
  directory: str
  epoch: int = 0
  step: int = 0
  losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
  images_per_second: float = 0.0
  learning_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
  batch_size: int = 0


class Hooks:
  """What composition attaches to the loop: progress bars, TensorBoard, evaluation.

  All do nothing here. The loop calls the first four and knows no writer and no evaluator; the
  others are called by whoever evaluates, saves pictures and ends the run. No hook may change what
  is trained: none is asked for a random number, and none writes a variable.
  """

  def stage_begins(self, progress: Progress, steps_per_epoch: int):
    """The method is built, carried and restored; `progress.epoch` epochs are already done."""

  def logged(self, progress: Progress):
    """New losses have been read from the device."""

  def epoch_ends(self, progress: Progress):
    """An epoch is over and its checkpoint, if due, is written."""

  def stage_ends(self, progress: Progress):
    """All epochs and `finish` are done; the final checkpoint is not yet written."""

  def embedding(self, label: str, done: int, count: int):
    """Of the images to be embedded for the evaluation called `label`, so many are done."""

  def validated(self, progress: Progress, evaluation: Any, embeddings: Any):
    """The method's space was evaluated on the validation split (both of `evaluation.retrieval`)."""

  def evaluated(self, stage: Stage, label: str, part: str, evaluation: Any, embeddings: Any):
    """A saved space of a finished stage was evaluated.

    `label` is the stage's name, or <stage>/<name> for one of `Method.spaces`; `part` is the split,
    'test' or 'validation'.
    """

  def pictured(self, progress: Progress, pictures: Mapping[str, np.ndarray]):
    """The method drew `Method.pictures`: name -> uint8 [N, H, W, 3]."""

  def close(self):
    """The run is over, be it finished, interrupted or ended by an error."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all stages of a run share.

  Attributes:
    run_directory: where the run is written.
    spec: sizes of the data set.
    batches: Pipeline -> ImageBatches of the training images; with a `StageData` and a seed as
      further arguments, of the images of a stage that has data or a seed of its own.
    pipeline: the input pipeline.
    strategy: distribution.
    seed: of weights, order, augmentation and everything random inside a method.
    jit_compile: XLA for all of a step but the update of the variables.
    log_every: steps between reading losses from the device.
    checkpoint_every: epochs between checkpoints.
    workers: number of processes that train together.
    chief: whether this process writes what belongs to the whole run.
    space_metadata: travels with every saved joint space (schema, data set, ...).
  """

  run_directory: str
  spec: DatasetSpec
  batches: Callable[..., ImageBatches]
  pipeline: Pipeline
  strategy: tf.distribute.Strategy
  seed: int = 0
  jit_compile: bool = False
  log_every: int = 20
  checkpoint_every: int = 1
  workers: int = 1
  chief: bool = True
  space_metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run(stages: Sequence[Stage], setting: Setting, hooks: Sequence[Hooks] = ()) -> set[str]:
  """Runs the stages in order, each only as far as it is not yet done.

  For each: (1) its final checkpoint exists: done; (2) a checkpoint of its own exists: resume;
  (3) carry the named networks; (4) the rest starts fresh. Then `prepare`, the epochs, `finish`,
  the final checkpoint and, where the method has one, the joint space.

  Returns:
    The names of those that were not done yet.

  Raises:
    ValueError: two stages of one name, a carry from an unknown or later stage, a checkpoint that
      does not fit.
    NonFiniteLossError: a loss became infinite or not a number.
  """
  directories: dict[str, str] = {}
  for stage in stages:
    if stage.name in directories:
      raise ValueError(f"Two stages are called '{stage.name}'.")
    for source in stage.carry:
      if source not in directories:
        raise ValueError(
          f"Stage '{stage.name}' carries networks from '{source}', which is not an earlier stage "
          f'(earlier: {list(directories) or "none"}).'
        )
    directories[stage.name] = stage.path(setting.run_directory)
  return {
    stage.name
    for index, stage in enumerate(stages)
    if _run_stage(stage, index, directories, setting, hooks)
  }


def _own(stage: Stage, setting: Setting) -> tuple[Setting, Callable[[], ImageBatches]]:
  """The setting of one stage, which may have data, a pipeline and a seed of its own."""
  pipeline = stage.pipeline() if stage.pipeline else setting.pipeline
  seed = setting.seed if stage.seed is None else stage.seed
  if stage.data is None:
    if stage.seed is None:
      return setting, lambda: setting.batches(pipeline)
    own = dataclasses.replace(setting, seed=seed)
    return own, lambda: setting.batches(pipeline, None, seed)
  data = stage.data()
  data = dataclasses.replace(data, split=pipeline.check(data.split))
  own = dataclasses.replace(
    setting,
    seed=seed,
    spec=data.spec(setting.spec.image_shape),
    space_metadata={**setting.space_metadata, 'dataset': data.name},
  )
  return own, lambda: setting.batches(pipeline, data, seed)


def _run_stage(stage, index, directories, setting, hooks) -> bool:
  """Runs a stage as far as it is not yet done; returns whether there was anything to do."""
  directory = directories[stage.name]
  setting, batches = _own(stage, setting)
  if not is_finished(directory):
    with contextlib.ExitStack() as held:
      if setting.chief:
        storage.make_directories(directory)
        held.enter_context(alone(directory))
        checkpoints.tidy(directory)
      # Looked at again, since somebody else may have finished it before the lock was free.
      if not is_finished(directory):
        _check_belongs(stage, directory, setting)
        _run_unfinished(stage, index, directories, setting, batches, hooks)
        return True
  _check_belongs(stage, directory, setting)
  checkpoints.final_facts(directory)
  _log.info("Stage '%s' is already done (%s).", stage.name, directory)
  return False


def alone(directory: str) -> contextlib.AbstractContextManager[None]:
  """Keeps the folder of a run or a stage to one training at a time, on one machine.

  Raises:
    BlockingIOError: another process trains there.
  """
  return storage.exclusive_lock(
    os.path.join(directory, _LOCK),
    message=f"Another process is training in '{directory}'. Wait until it has ended, or give "
    'another run directory.',
  )


def _run_unfinished(stage, index, directories, setting, batches, hooks):
  forks.check()
  directory = directories[stage.name]
  started = time.time()
  # Each stage's fresh weights depend on the seed and its place, not on what ran before it, so that
  # a resumed run and an uninterrupted one build the same networks.
  tf.keras.utils.set_random_seed(setting.seed + 1000 * index)
  with setting.strategy.scope():
    method = stage.method(setting.spec)
    trainer = Trainer(
      method, setting.strategy, seed=setting.seed + 1000 * index, jit_compile=setting.jit_compile
    )
    epoch = tf.Variable(0, dtype=tf.int64, trainable=False, name='epoch')
  checkpoint = tf.train.Checkpoint(
    networks=tf.train.Checkpoint(**method.networks),
    method=method,
    optimizers=trainer.optimizers,
    step=trainer.step,
    epoch=epoch,
  )
  # The chief's, on every worker: what each starts from must be the same.
  state = checkpoints.newest(directory)
  if state:
    _restore(checkpoint, state, stage)
    _log.info("Stage '%s' resumes after epoch %d.", stage.name, int(epoch.numpy()))
  else:
    _check_nothing_lost(stage, directory, setting)
    for source, names in stage.carry.items():
      _carry(method, stage, source, directories[source], names)
  images = batches()
  try:
    _train(stage, method, trainer, checkpoint, images, setting, hooks, directory)
  except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
    # A file that cannot be read surfaces as an op's error; say which file it is.
    raise images.explain(error) from error
  with _written_by(setting, directory) as base:
    _write_final(checkpoint, base, stage, method, setting, time.time() - started)
  if setting.chief:
    checkpoints.remove(directory)


def _check_nothing_lost(stage, directory, setting):
  """Refuses to begin anew beside a final checkpoint whose record was lost.

  A process that dies between the two leaves the checkpoints from before, if there were any.
  """
  there = os.path.isfile(os.path.join(directory, f'{checkpoints.FINAL}.index'))
  if there and stage.epochs > setting.checkpoint_every:
    raise ValueError(
      f"'{os.path.join(directory, checkpoints.FINAL_FILE)}' is missing beside the final checkpoint "
      f"of stage '{stage.name}'. Restore it from a copy; to train the stage again from its "
      f"beginning, remove '{directory}'."
    )


def _train(stage, method, trainer, checkpoint, images, setting, hooks, directory):
  epoch = checkpoint.epoch
  batches = method.prepare(images)
  progress = Progress(
    stage,
    method,
    trainer,
    directory,
    epoch=int(epoch.numpy()),
    step=int(trainer.step.numpy()),
    batch_size=batches.batch_size,
  )
  steps = int(batches.training(0).cardinality()) if stage.epochs else 0
  for hook in hooks:
    hook.stage_begins(progress, steps)
  while int(epoch.numpy()) < stage.epochs:
    number = int(epoch.numpy())
    trainer.set_rate_factor(stage.schedule(number) if stage.schedule else 1.0)
    _run_epoch(batches, number, progress, setting, hooks)
    epoch.assign_add(1)
    progress.epoch = int(epoch.numpy())
    if progress.epoch % setting.checkpoint_every == 0 and progress.epoch < stage.epochs:
      with _written_by(setting, directory) as base:
        checkpoints.write(checkpoint, base, progress.epoch)
    for hook in hooks:
      hook.epoch_ends(progress)
  method.finish(batches)
  for hook in hooks:
    hook.stage_ends(progress)


def _run_epoch(batches, number, progress, setting, hooks):
  trainer = progress.trainer
  iterator = distributed(batches.training(number), setting.strategy, workers=setting.workers)
  images, since, report = 0, time.perf_counter(), None
  taken = 0
  for batch in iterator:
    report = trainer.train_step(batch)
    taken += 1
    images += batches.batch_size
    # On a slow machine every so many steps is too rarely: nobody knows whether it still works.
    if taken % setting.log_every == 0 or time.perf_counter() - since > _LONGEST_SILENCE:
      _log_step(progress, report, images / (time.perf_counter() - since), hooks)
      images, since, report = 0, time.perf_counter(), None
  if report is not None:
    _log_step(progress, report, images / (time.perf_counter() - since), hooks)


def _log_step(progress, report, images_per_second, hooks):
  progress.step = int(progress.trainer.step.numpy())
  progress.losses = {name: float(value) for name, value in report.items()}
  progress.images_per_second = images_per_second
  progress.learning_rates = progress.trainer.learning_rates()
  bad = {
    n: v
    for n, v in progress.losses.items()
    # Under float16 a gradient may overflow: the loss scale falls and the step is skipped.
    if not np.isfinite(v) and not n.startswith('gradient_norm/')
  }
  if bad:
    terms = ', '.join(f'{n} = {v:.4g}' for n, v in sorted(progress.losses.items()))
    raise NonFiniteLossError(
      f"Stage '{progress.stage.name}': {', '.join(sorted(bad))} is not finite at or shortly before "
      f'step {progress.step} (epoch {progress.epoch + 1}). All terms: {terms}. Try a lower '
      'learning rate or a warm-up, gradient clipping (clip_norm of the optimizer), or float32. The '
      'last checkpoint is from before this epoch; running the same command continues from it.'
    )
  for hook in hooks:
    hook.logged(progress)


@contextlib.contextmanager
def _written_by(setting: Setting, directory: str) -> Iterator[str]:
  """Yields where this process writes checkpoints: the stage's folder, or one that goes at once.

  Saving is a collective operation when several workers train together, so all must call it; all
  but the chief write to a folder that nobody reads.
  """
  if setting.chief:
    yield directory
    return
  with tempfile.TemporaryDirectory(prefix='tfreid-worker-') as folder:
    yield folder


def is_finished(directory: str) -> bool:
  """Whether a stage's final checkpoint is complete: its marker is written last."""
  return os.path.isfile(os.path.join(directory, checkpoints.FINAL_FILE))


def facts(directory: str) -> dict[str, Any]:
  """What is written down of a finished stage: stage, method, epochs, steps, seconds; {} of others.

  Raises:
    ValueError: the file is damaged.
  """
  return checkpoints.final_facts(directory) if is_finished(directory) else {}


def space_directory(directory: str, name: str = '') -> str:
  """The saved joint space of a finished stage; with a name, that of `Method.spaces`."""
  return os.path.join(directory, f'space-{name}' if name else 'space')


def spaces(directory: str) -> dict[str, str]:
  """The saved joint spaces of a finished stage: '' for its own, a name for each further one."""
  found = {}
  if os.path.isdir(directory):
    for entry in sorted(os.listdir(directory)):
      if entry == 'space' or entry.startswith('space-'):
        found[entry[len('space-') :]] = os.path.join(directory, entry)
  return found


def _identity(stage: Stage, setting: Setting) -> dict[str, Any]:
  """What must agree for a stage directory to be this stage's."""
  return {
    'stage': stage.name,
    'image_shape': list(setting.spec.image_shape),
    'attribute_names': list(setting.spec.attribute_names),
    'num_semantic_ids': setting.spec.num_semantic_ids,
    'num_images': setting.spec.num_images,
    'seed': setting.seed,
    'dataset': setting.space_metadata.get('dataset', ''),
  }


def _check_belongs(stage, directory, setting):
  path = os.path.join(directory, 'stage.json')
  mine = _identity(stage, setting)
  # Before anything was trained there, a folder belongs to nobody: a mistyped setting claims none.
  if os.path.isfile(path) and checkpoints.has_trained(directory):
    record = checkpoints.read_document(path, what='record of the stage')
    different = sorted(key for key in mine if record.get(key) != mine[key])
    if different:
      key = different[0]
      raise ValueError(
        f"'{directory}' belongs to another stage or data set: its {', '.join(different)} differ "
        f'({key} is {_short(record.get(key))} there and {_short(mine[key])} here). Give another '
        'run directory, or remove that one.'
      )
  elif setting.chief:
    storage.write_json(path, {'format': _FORMAT, **mine})


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) < 60 else f'{text[:57]}...'


def _restore(checkpoint, path, stage):
  status = None
  try:
    status = checkpoints.read(checkpoint, path)
    status.assert_consumed()
  except (AssertionError, ValueError, tf.errors.OpError) as error:
    if status is not None:
      status.expect_partial()  # or TensorFlow says the same again, in many lines
    raise ValueError(
      f"The checkpoint '{path}' does not fit stage '{stage.name}' as it is configured now: "
      f'{_first_line(error)} Use the configuration it was written with, or another run directory.'
    ) from error


def _carry(method, stage, source, directory, names):
  path = os.path.join(directory, checkpoints.FINAL)
  for name in names:
    if name not in method.networks:
      raise ValueError(
        f"Stage '{stage.name}' carries network '{name}', which its method does not have "
        f'(it has: {", ".join(method.networks)}).'
      )
  networks = {name: method.networks[name] for name in names}
  try:
    with checkpoints.final_prefix(directory) as prefix:
      status = tf.train.Checkpoint(networks=tf.train.Checkpoint(**networks)).read(prefix)
      status.expect_partial()
      status.assert_existing_objects_matched()
  except AssertionError as error:
    raise ValueError(
      f"Stage '{stage.name}' carries {list(names)} from '{source}', but its checkpoint '{path}' "
      f'does not have them all, or in another form: {_first_line(error)}'
    ) from error
  except (ValueError, OSError, tf.errors.OpError) as error:
    raise ValueError(
      f"Stage '{stage.name}' cannot carry {list(names)} from '{source}': {_first_line(error)}"
    ) from error
  _log.info("Stage '%s' carries %s from '%s'.", stage.name, ', '.join(names), source)


def _first_line(error: Exception) -> str:
  return str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)


def _write_final(checkpoint, base, stage, method, setting, seconds):
  files = checkpoints.write_final(checkpoint, base)
  named = {} if method.space is None else {'': method.space, **method.spaces}
  for name, space in named.items():
    # Every worker saves: reading a batch norm's moving averages is a collective operation.
    about = {**setting.space_metadata, 'stage': stage.name, 'space': name}
    with checkpoints.explained(f"The joint space '{space_directory(base, name)}'"):
      space.save(space_directory(base, name), metadata=about)
  checkpoints.put_final(
    base,
    files,
    {
      'stage': stage.name,
      'method': type(method).__name__,
      'epochs': stage.epochs,
      'steps': int(checkpoint.step.numpy()),
      'seconds': round(seconds, 1),
      'spaces': sorted(named),
    },
  )
