"""What every method must satisfy, as functions that raise AssertionError where one does not.

Apart from the tests that call them on each shipped recipe, so that the planted faults can be shown
to fail the very same checks.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

import gin
import numpy as np
import tensorflow as tf

from tfreid import experiment
from tfreid.cli import configuration, gin_reading
from tfreid.data.pipeline import Pipeline
from tfreid.methods.method import Method
from tfreid.training.batches import ImageBatches
from tfreid.training.stages import Hooks, Stage
from tfreid.training.trainer import Trainer

FOLDER = Path(__file__).parent
METHODS = sorted(path.stem for path in Path(gin_reading.GIN_ROOT, 'methods').glob('*.gin'))
PRETRAIN = 'pretrain'
EPOCHS = 2


def configure(name: str, *, data: Path, pretrained: Path) -> list[Stage]:
  """Configures gin with a recipe in test size; returns its stages, `EPOCHS` epochs each.

  Args:
    name: of the recipe, and of an overlay of gin/ behind a '+', if one is to go with it.
    data: folder of the images.
    pretrained: stage directory of the shared pre-training.
  """
  name, _, with_ = name.partition('+')
  files = [f'methods/{name}.gin']
  bindings = [f'DATA_ROOT = {str(data)!r}', f'PRETRAIN_DIRECTORY = {str(pretrained)!r}']
  if name == PRETRAIN:
    files = ['base.gin', 'stages/pretrain.gin']
    bindings.append('STAGES = [@pretrain/stages.Stage()]')
  files += ['datasets/synthetic.gin', str(FOLDER / 'tiny.gin')]
  overlay = FOLDER / 'overlays' / f'{name}.gin'
  if overlay.exists():
    files.append(str(overlay))
  if with_:
    files.append(f'{with_}.gin')
  gin.clear_config()
  configuration.configure(files, bindings, allow_imports=['small_networks'])
  # As gin itself resolves a macro where it is used.
  stages = copy.deepcopy(gin.query_parameter('%STAGES'))
  return [dataclasses.replace(stage, epochs=EPOCHS) for stage in stages]


# One run, watched.


@dataclasses.dataclass
class Watched:
  """What was seen of a stage.

  Attributes:
    method: as trained.
    reports: losses and gradient norms of each step.
    before, after: every variable of the method, by position, at the stage's begin and end.
    evaluation: of the live joint space, before it was saved.
    encodings: image and attribute encodings of the live joint space.
  """

  method: Method
  before: list[np.ndarray]
  reports: list[dict[str, float]] = dataclasses.field(default_factory=list)
  after: list[np.ndarray] = dataclasses.field(default_factory=list)
  evaluation: object = None
  encodings: tuple[np.ndarray, np.ndarray] | None = None


class Watcher(Hooks):
  """Notes what happens in each stage, and copies its folder as it is after the first epoch."""

  def __init__(self, benchmark, pipeline, snapshots: Path):
    self.stages: dict[str, Watched] = {}
    self._benchmark = benchmark
    self._pipeline = pipeline
    self._snapshots = snapshots

  def stage_begins(self, progress, steps_per_epoch):
    self.stages[progress.stage.name] = Watched(progress.method, values(progress.method))

  def logged(self, progress):
    self.stages[progress.stage.name].reports.append(dict(progress.losses))

  def epoch_ends(self, progress):
    if progress.epoch == 1:
      shutil.copytree(progress.directory, self._snapshots / progress.stage.name)

  def stage_ends(self, progress):
    seen = self.stages[progress.stage.name]
    seen.after = values(progress.method)
    if progress.method.space is not None:
      seen.encodings = encodings(progress.method.space, self._benchmark, self._pipeline)
      seen.evaluation, _ = experiment.evaluate_split(
        progress.method.space, self._benchmark, self._pipeline, self._benchmark.test
      )


@dataclasses.dataclass
class Run:
  """A finished run of a recipe.

  Attributes:
    stages: the recipe.
    directory: of the run.
    snapshots: a folder per stage, as a process killed after its first epoch leaves it.
    watched: by stage name; a stage that was found done is missing.
    evaluations: what `experiment.train` returned.
    benchmark, pipeline: the data.
  """

  stages: Sequence[Stage]
  directory: Path
  snapshots: Path
  watched: Mapping[str, Watched]
  evaluations: Mapping[str, object]
  benchmark: object
  pipeline: Pipeline


def train(stages, directory: Path, benchmark) -> Run:
  """Runs the recipe that gin is configured with."""
  pipeline = gin.get_configurable('tfreid.data.pipeline.Pipeline')()
  watcher = Watcher(benchmark, pipeline, directory / 'snapshots')
  evaluations = configuration.root('tfreid.experiment.train')(
    str(directory / 'run'),
    pipeline=lambda: pipeline,
    stages=stages,
    hooks=lambda *_: [watcher],
  )
  return Run(
    stages,
    directory / 'run',
    directory / 'snapshots',
    watcher.stages,
    evaluations,
    benchmark,
    pipeline,
  )


def values(method: Method) -> list[np.ndarray]:
  """Every variable of the method."""
  return [variable.numpy() for variable in method.variables]


def encodings(space, benchmark, pipeline) -> tuple[np.ndarray, np.ndarray]:
  """[8, E] image concepts and [8, E] attribute concepts of the first test images."""
  batch = next(iter(pipeline.evaluation(benchmark.test, batch_size=8)))
  return (
    space.encode_images(batch['image']).numpy(),
    space.encode_attributes(batch['attributes']).numpy(),
  )


def check_losses(watched: Watched):
  """Every step reports every objective's loss, and all losses are finite."""
  assert len(watched.reports) >= EPOCHS
  for report in watched.reports:
    assert {o.loss for o in watched.method.objectives} <= set(report)
    bad = {name: value for name, value in report.items() if not np.isfinite(value)}
    assert not bad


def check_movement(watched: Watched):
  """Objectives hold each trainable variable once; all of these move, and nothing frozen does.

  What an objective holds belongs to a listed network, which a later stage can carry over, or is a
  variable of the method's own, outside any layer (a learnt temperature).
  """
  method = watched.method
  moved = [id(v) for objective in method.objectives for v in objective.variables]
  assert len(moved) == len(set(moved)), 'a variable is in two objectives'
  networks = method.networks.values()
  listed = {id(v) for network in networks for v in network.weights}
  layers = [m for m in method.submodules if isinstance(m, tf.keras.layers.Layer)]
  of_layers = {id(v) for layer in layers for v in layer.weights}
  # Not `method.variables`: that finds what the objectives themselves hold.
  own = {id(v) for v in vars(method).values() if isinstance(v, tf.Variable)} - of_layers
  unlisted = [
    variable.name
    for objective in method.objectives
    for variable in objective.variables
    if id(variable) not in listed | own
  ]
  assert not unlisted, f'in an objective, but in none of the networks: {unlisted}'
  trainable = {id(v): v.name for network in networks for v in network.trainable_variables}
  assert set(trainable) <= set(moved), 'a trainable variable is in no objective'
  frozen = {
    id(v): f'{layer.name}/{v.name}'
    for network in networks
    for layer in network._flatten_layers(include_self=False)
    if not layer.trainable
    for v in layer.weights
  }
  changed = {
    id(variable): not np.array_equal(before, after)
    for variable, before, after in zip(method.variables, watched.before, watched.after)
  }
  still = [trainable[i] for i in trainable if not changed[i]]
  assert not still, f'never moved: {still}'
  strayed = [name for i, name in frozen.items() if changed[i]]
  assert not strayed, f'frozen, and yet moved: {strayed}'


def checkpoint_values(path: Path) -> dict[str, np.ndarray]:
  """What a checkpoint holds, by key; not how often it was saved."""
  reader = tf.train.load_checkpoint(str(path))
  return {
    key: reader.get_tensor(key)
    for key in reader.get_variable_to_shape_map()
    if key != '_CHECKPOINTABLE_OBJECT_GRAPH' and 'save_counter' not in key
  }


def check_same_checkpoints(one: Path, other: Path):
  """Both hold the same values under the same keys."""
  ours, theirs = checkpoint_values(one), checkpoint_values(other)
  assert set(ours) == set(theirs)
  for key, value in ours.items():
    np.testing.assert_allclose(theirs[key], value, rtol=1e-6, atol=1e-7, err_msg=key)


# One step, on one or two replicas.


class Reading(dict):
  """A batch that remembers which of its entries were looked at."""

  def __init__(self, batch):
    super().__init__(batch)
    self.read: set[str] = set()

  def __getitem__(self, key):
    self.read.add(key)
    return super().__getitem__(key)


@dataclasses.dataclass
class Step:
  """One step of plain gradient descent with learning rate 1.

  Attributes:
    losses: what `Method.losses` returned, replica means.
    kinds: their dtypes as the method returned them.
    updates: of each trainable variable, by network and position.
    averages: moving averages of batch norms after the step, by network and position.
  """

  losses: dict[str, float]
  kinds: dict[str, tf.DType]
  updates: dict[str, np.ndarray]
  averages: dict[str, np.ndarray]


Build = Callable[..., Method]


def one_step(
  build: Build, spec, arrays, *, replicas: int = 1, policy: str = 'float32', start=None
) -> Step:
  """Builds a method, gives it weights, and takes one step on the global batch `arrays`.

  Args:
    build: spec -> Method.
    spec: sizes of the data set.
    arrays: name -> [B, ...].
    replicas: 1 or 2 logical CPUs.
    policy: precision.
    start: values of all variables, or None for the method's own.
  """
  tf.keras.mixed_precision.set_global_policy(policy)
  devices = [f'CPU:{i}' for i in range(replicas)]
  strategy = (
    tf.distribute.OneDeviceStrategy(devices[0])
    if replicas == 1
    else tf.distribute.MirroredStrategy(
      devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
  )
  kinds: dict[str, tf.DType] = {}
  tf.keras.utils.set_random_seed(0)
  with strategy.scope():
    method = build(spec)
    method.objectives = [
      # Momentum and adaptive rates would hide, or blow up, what a replica adds to the update.
      objective._replace(optimizer=tf.keras.optimizers.SGD(1.0))
      for objective in method.objectives
    ]
    trainer = Trainer(method, strategy)
    compute = method.losses

    def losses(batch):
      found = compute(batch)
      kinds.update({name: value.dtype for name, value in found.items()})
      return found

    method.losses = losses
  if start is not None:
    for variable, value in zip(method.variables, start):
      variable.assign(value)
  before = _by_network(method, 'trainable_variables')
  size = len(next(iter(arrays.values()))) // replicas

  def part(context):
    rows = slice(
      context.replica_id_in_sync_group * size, (context.replica_id_in_sync_group + 1) * size
    )
    return {name: tf.constant(array[rows]) for name, array in arrays.items()}

  batch = strategy.experimental_distribute_values_from_function(part)
  # Op by op: tracing for two replicas takes many times as long as one step does.
  tf.config.run_functions_eagerly(True)
  try:
    report = trainer.train_step(batch)
  finally:
    tf.config.run_functions_eagerly(False)
  after = _by_network(method, 'trainable_variables')
  return Step(
    losses={name: float(report[name]) for name in kinds},
    kinds=kinds,
    updates={name: after[name] - before[name] for name in before},
    averages=_by_network(method, 'non_trainable_variables', only='moving_'),
  )


def _by_network(method: Method, kind: str, *, only: str = '') -> dict[str, np.ndarray]:
  # By position: names of layers count on through a process.
  return {
    f'{name}/{i}': variable.numpy()
    for name, network in method.networks.items()
    for i, variable in enumerate(getattr(network, kind))
    if only in variable.name
  }


def sample(build: Build, spec, batches: ImageBatches) -> tuple[dict[str, np.ndarray], list, bool]:
  """A global batch to step on.

  A method that draws random numbers may pick *which* examples meet, and a replica can pick only
  among its own. For such a method the batch holds two different examples, again and again, more of
  the one in its first half and more of the other in its second: whatever is picked is the same,
  while a statistic of half a batch is still another than that of the whole.

  Returns:
    name -> [B, ...], the values of all variables, and whether the method draws random numbers.
  """
  tf.keras.mixed_precision.set_global_policy('float32')
  tf.keras.utils.set_random_seed(0)
  method = build(spec)
  prepared = method.prepare(batches)
  start = values(method)
  arrays = {name: x.numpy() for name, x in next(iter(prepared.training(0))).items()}
  reading = Reading({**arrays, 'seed': tf.constant([1, 2])})
  method.losses(reading)
  draws = 'seed' in reading.read
  if draws:
    ids = arrays['semantic_id']
    other = int(np.flatnonzero(ids != ids[0])[0])
    half = len(ids) // 2
    few = max(1, half // 4)
    rows = [0] * (half - few) + [other] * few + [other] * (half - few) + [0] * few
    arrays = {name: array[rows] for name, array in arrays.items()}
  return arrays, start, draws


def _still(shape, low=0.0, high=1.0, dtype=tf.float32):
  """[..., n]: the same for every example, different for each of the n."""
  shape = tf.convert_to_tensor(shape, tf.int32)
  pattern = tf.math.floormod(0.618034 * (1.0 + tf.range(shape[-1], dtype=tf.float32)), 1.0)
  return tf.cast(tf.broadcast_to(low + (high - low) * pattern, shape), dtype)


@contextlib.contextmanager
def still_randomness():
  """Random numbers that do not depend on how many examples share a replica.

  One seed gives a batch of 16 other numbers than two batches of 8, so that the steps could not be
  compared at all.
  """

  def uniform(shape, seed, minval=0, maxval=1, dtype=tf.float32, **_):
    del seed
    return _still(shape, float(minval), float(maxval), dtype)

  def normal(shape, seed, mean=0.0, stddev=1.0, dtype=tf.float32, **_):
    del seed
    return _still(shape, mean - 1.7 * stddev, mean + 1.7 * stddev, dtype)

  def dropout(x, rate, seed, **_):
    del seed
    kept = tf.cast(_still(tf.shape(x)) >= rate, x.dtype)
    return x * kept / (1.0 - rate)

  with contextlib.ExitStack() as stack:
    for module, name, function in (
      (tf.random, 'stateless_uniform', uniform),
      (tf.random, 'stateless_normal', normal),
      (tf.random, 'stateless_truncated_normal', normal),
      (tf.nn.experimental, 'stateless_dropout', dropout),
    ):
      stack.enter_context(mock.patch.object(module, name, function))
    yield


def check_same_step(one: Step, two: Step):
  """The step does not depend on the number of replicas.

  Raises:
    AssertionError: a loss is not the mean over replicas, a set loss sees part of the set, or the
      update differs.
  """
  assert set(one.losses) == set(two.losses)
  for name, value in one.losses.items():
    np.testing.assert_allclose(two.losses[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
  largest = max(np.abs(update).max() for update in one.updates.values())
  for found, expected in ((two.updates, one.updates), (two.averages, one.averages)):
    assert set(found) == set(expected)
    for name, value in expected.items():
      tolerance = 1e-3 * np.abs(value).max() + 1e-5 * largest
      np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


def check_half_precision(full: Step, half: Step, losses: Sequence[str]):
  """Losses are float32 under any policy, and mixed_float16 changes them little."""
  assert set(half.kinds.values()) == {tf.float32}
  for name in losses:
    np.testing.assert_allclose(half.losses[name], full.losses[name], rtol=0.03, atol=0.01)
  assert all(np.isfinite(update).all() for update in half.updates.values())


def image_batches(benchmark, pipeline: Pipeline) -> ImageBatches:
  """The training images as a stage sees them."""
  return ImageBatches(pipeline, benchmark.train, benchmark.schema, seed=0)


def final(run: Run, stage: Stage) -> Path:
  """A stage's final checkpoint."""
  return Path(stage.path(str(run.directory)), 'final')
