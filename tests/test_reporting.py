from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import re
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.pr_curve import metadata as pr_curve_metadata

from tfreid import experiment, reporting
from tfreid.data import market1501
from tfreid.data.pipeline import Pipeline
from tfreid.evaluation import ranking
from tfreid.evaluation.retrieval import Evaluation
from tfreid.joint_space import JointSpace
from tfreid.methods.method import Method, Objective
from tfreid.training import memory, optimizers
from tfreid.training.stages import Hooks, Stage

EPOCHS = 2
CONFIG = """\
from tfreid import experiment

SEED = 3
DATA_ROOT = '/data'
ALIGNMENT = @alignment.Adversarial
GENERATORS = ('attribute',)
joint/stages.Stage.epochs = %EPOCHS
joint/stages.Stage.method = \\
    @joint_concepts.JointConcepts
image.image_encoder.weights = None
pipeline.Pipeline.image_size = \\
    (32, 16)
pipeline.Pipeline.flip = True
optimizers.adam.learning_rate = 0.001
"""


class Pull(Method):
  """Pulls an image's mean colour towards its description: two linear maps, nothing else."""

  def __init__(self, spec):
    super().__init__()

    def unit(inputs, outputs):
      return tf.keras.Model(inputs, tf.math.l2_normalize(outputs, axis=-1))

    pixels = tf.keras.Input(spec.image_shape)
    attributes = tf.keras.Input((len(spec.attribute_names),))
    pooled = tf.keras.layers.AveragePooling2D(8)(pixels / 128.0 - 1.0)
    image = unit(pixels, tf.keras.layers.Dense(6)(tf.keras.layers.Flatten()(pooled)))
    attribute = unit(attributes, tf.keras.layers.Dense(6)(attributes))
    self.networks = {'image_encoder': image, 'attribute_encoder': attribute}
    self.space = JointSpace(image, attribute)
    self.objectives = [
      Objective('pull', network.trainable_variables, optimizers.adam(0.01))
      for network in self.networks.values()
    ]

  def losses(self, batch):
    image, attribute = (
      self.networks[f'{name}_encoder'](batch['image' if name == 'image' else 'attributes'])
      for name in ('image', 'attribute')
    )
    noise = tf.random.stateless_normal(tf.shape(image), batch['seed'], stddev=0.1)
    pull = -tf.reduce_mean(tf.reduce_sum((image + noise) * attribute, axis=1))
    return {'pull': pull, 'squared': tf.square(pull)}

  def pictures(self):
    weights = self.networks['attribute_encoder'].trainable_variables[0].numpy()
    shade = np.clip(128 + 100 * weights[:5, 0], 0, 255).astype(np.uint8)
    return {'shades': np.tile(shade[:, None, None, None], (1, 16, 8, 3))}


class Collected(Hooks):
  """What the hooks were told, in order."""

  def __init__(self, stop_at=None):
    self.told = []
    self._stop_at = stop_at

  def stage_begins(self, progress, steps_per_epoch):
    self.told.append(('begins', progress.epoch, progress.step))

  def logged(self, progress):
    self.told.append(('logged', progress.step, dict(progress.losses)))
    if progress.step == self._stop_at:
      raise RuntimeError('the power is gone')

  def embedding(self, label, done, count):
    if done == count:
      self.told.append(('embedded', label, count))

  def validated(self, progress, evaluation, embeddings):
    self.told.append(('validated', progress.step, evaluation))

  def evaluated(self, stage, label, part, evaluation, embeddings):
    self.told.append(('evaluated', label, evaluation))

  def pictured(self, progress, pictures):
    self.told.append(('pictured', progress.epoch, pictures))

  def close(self):
    self.told.append(('closed',))

  def of(self, kind):
    return [told[1:] for told in self.told if told[0] == kind]


@dataclasses.dataclass
class Run:
  folder: object
  told: Collected
  console: str = ''
  lines: list = ()
  evaluations: object = None

  def events(self, run):
    # What TensorBoard itself reads with; 0 keeps every point.
    keep = dict.fromkeys(('scalars', 'images', 'histograms', 'text', 'pr_curves'), 0)
    folder = str(self.folder / 'tensorboard' / run)
    return EventAccumulator(folder, tensor_size_guidance=keep).Reload()

  def weights(self):
    reader = tf.train.load_checkpoint(str(self.folder / 'joint' / 'final'))
    return {
      name: reader.get_tensor(name)
      for name in reader.get_variable_to_shape_map()
      if name.startswith('networks/') and name.endswith('VARIABLE_VALUE')
    }


def train(folder, market, *, watched=True, stop_at=None):
  told = Collected(stop_at)
  output = io.StringIO()
  bar = reporting.ProgressBar(to=Console(file=output, width=100))
  # A clock that moves 10 seconds each time that somebody looks at it.
  lines = io.StringIO()
  ticks = itertools.count(0, 10)
  plain = reporting.ProgressLines(to=lines, every=35, clock=lambda: float(next(ticks)))

  def hooks(run_directory, benchmark):
    # A small console and few queries, but otherwise what `tfreid train` attaches.
    board = reporting.TensorBoard(run_directory, benchmark, ranked=3, top=4)
    return [bar, plain, board, told] if watched else [told]

  run = Run(folder, told)
  try:
    run.evaluations = experiment.train(
      str(folder),
      dataset=functools.partial(market1501.load, market, validation_share=0.3),
      pipeline=functools.partial(Pipeline, (32, 16), 8),
      stages=[Stage('joint', Pull, EPOCHS)],
      method='pull',
      seed=3,
      strategy='one_device',
      log_every=1,
      evaluate_every=1,
      config=CONFIG,
      operative_config=lambda: 'what.was = "used"',
      hooks=hooks,
    )
  finally:
    run.console = output.getvalue()
    run.lines = lines.getvalue().splitlines()
  return run


@pytest.fixture(scope='module')
def watched(tiny_market, tmp_path_factory):
  return train(tmp_path_factory.mktemp('watched') / 'a run', tiny_market)


@pytest.fixture(scope='module')
def bare(tiny_market, tmp_path_factory):
  return train(tmp_path_factory.mktemp('bare') / 'run', tiny_market, watched=False)


@pytest.fixture(scope='module')
def resumed(tiny_market, tmp_path_factory, watched):
  """Killed in the middle of its second epoch, after two steps that were already written."""
  folder = tmp_path_factory.mktemp('resumed') / 'run'
  steps = len(watched.told.of('logged')) // EPOCHS
  with pytest.raises(RuntimeError, match='the power is gone'):
    train(folder, tiny_market, stop_at=steps + 2)
  return train(folder, tiny_market)


def test_without_a_terminal_lines_come_now_and_then_and_say_what_is_ahead(watched, tiny_market):
  split = market1501.load(str(tiny_market), validation_share=0.3).train
  steps = len(split) // 8
  said = [line for line in watched.lines if line.startswith('joint: ')]
  assert said[0].startswith(
    f'joint: 2 epochs of {steps} steps, {2 * steps} in all; 8 images a step, {8 * steps} an epoch; '
    'about 0.00 GiB for weights, optimizers and activations'
  )
  # The first step may take as long as a thousand others, and says nothing of them.
  assert re.fullmatch(
    rf'joint: epoch 1 of 2, step 1 of {2 * steps}, loss -?\d+\.\d\d\d; building the graph is done, '
    'the next line says the time left',
    said[1],
  )
  # From then on each step took 10 seconds by that clock.
  epoch, step, left = re.fullmatch(
    rf'joint: epoch (\d) of 2, step (\d+) of {2 * steps}, loss -?\d+\.\d\d\d, \d+ images/s, '
    r'about (\d+ (?:min|s)) left',
    said[2],
  ).groups()
  assert int(epoch) == 1 + (int(step) - 1) // steps
  assert left == _minutes(10 * (2 * steps - int(step)))
  assert said[-1] == 'joint: all 2 epochs are done.'
  # Fewer lines than steps, and more than none in between.
  assert 3 < len(said) < 2 * steps
  assert any(line.startswith('embedding joint, test: 40 of 40') for line in watched.lines)


def _minutes(seconds):
  return f'{round(seconds / 60)} min'


def test_estimated_memory_counts_weights_gradients_moments_and_activations(watched):
  spec = types.SimpleNamespace(image_shape=(32, 16, 3), attribute_names=['a'] * 7)
  method = Pull(spec)
  optimizers_ = [objective.optimizer for objective in method.objectives]
  for objective in method.objectives:
    objective.optimizer.build(list(objective.variables))
  progress = types.SimpleNamespace(
    method=method, trainer=types.SimpleNamespace(optimizers=optimizers_), batch_size=10
  )
  image, attribute = 24 * 6 + 6, 7 * 6 + 6
  # Weights, gradients and Adam's two moments; the number of iterations (int64) of each optimizer.
  fixed = 4 * 4 * (image + attribute) + 2 * 8
  # Input, two operations and pooling, flattened, dense, normed; input, dense, normed.
  outputs = 4 * (3 * 32 * 16 * 3 + 24 + 24 + 6 + 6 + 7 + 6 + 6)
  assert memory.estimated_bytes(progress) == fixed + 10 * outputs


def scalars(events, tag):
  """(step, value) of each point."""
  return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]


def texts(events, tag):
  return [str(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]


def pngs(events, tag):
  """Each step's pictures."""
  return [
    [np.asarray(Image.open(io.BytesIO(png))) for png in tf.make_ndarray(event.tensor_proto)[2:]]
    for event in events.Tensors(tag)
  ]


def test_watching_a_run_does_not_change_it(watched, bare):
  assert [loss for _, loss in watched.told.of('logged')] == [
    loss for _, loss in bare.told.of('logged')
  ]
  one, two = watched.weights(), bare.weights()
  assert len(one) == 4
  assert set(one) == set(two)
  for name, value in one.items():
    np.testing.assert_array_equal(value, two[name])


def test_each_loss_rate_norm_and_the_throughput_is_a_curve(watched):
  events = watched.events('joint/train')
  told = watched.told.of('logged')
  for term in ('pull', 'squared'):
    expected = [(step, pytest.approx(losses[term])) for step, losses in told]
    assert scalars(events, f'losses/{term}') == expected
  for name in ('0_pull', '1_pull'):
    norms = [(step, pytest.approx(losses[f'gradient_norm/{name}'])) for step, losses in told]
    assert scalars(events, f'gradient_norm/{name}') == norms
    assert scalars(events, f'learning_rate/{name}') == [
      (step, pytest.approx(0.01)) for step, _ in told
    ]
  assert all(rate > 0 for _, rate in scalars(events, 'throughput/images_per_second'))
  epochs = [epoch for _, epoch in scalars(events, 'progress/epoch')]
  assert epochs == sorted(epochs)
  assert set(epochs) == {0, 1}  # finished ones


def test_the_metrics_of_validation_and_test_are_curves_of_the_same_names(watched):
  validated = watched.told.of('validated')
  assert len(validated) == EPOCHS
  events = watched.events('joint/validation')
  assert scalars(events, 'evaluation/mAP') == [
    (step, pytest.approx(evaluation.overall.mAP)) for step, evaluation in validated
  ]
  ((_, final),) = watched.told.of('evaluated')
  events = watched.events('joint/test')
  last = watched.told.of('logged')[-1][0]
  for tag, value in {
    'evaluation/rank1': final.overall.rank1,
    'evaluation_unseen/mAP': final.unseen.mAP,
    'evaluation_chance/rank1': final.overall.chance_rank1,
  }.items():
    assert scalars(events, tag) == [(last, pytest.approx(value))]


def test_a_split_is_embedded_once_for_numbers_and_pictures(watched):
  labels = [label for label, _ in watched.told.of('embedded')]
  assert labels == ['joint, validation'] * EPOCHS + ['joint, test']


def test_similarities_are_histograms_a_picture_and_a_curve(watched):
  for run, steps in (('joint/validation', EPOCHS), ('joint/test', 1)):
    events = watched.events(run)
    for kind in ('matching', 'non_matching'):
      shown = events.Tensors(f'similarity/{kind}')
      assert len(shown) == steps
      buckets = tf.make_ndarray(shown[-1].tensor_proto)  # left, right, count
      assert -1.001 <= buckets[0, 0] <= buckets[-1, 1] <= 1.001
      assert buckets[:, 2].sum() > 0
    assert len(pngs(events, 'similarity/both')) == steps
    curve = tf.make_ndarray(events.Tensors('pairs/pr_curves')[-1].tensor_proto)
    true_positives, false_positives, _, _, precision, recall = curve
    assert recall[0] == 1
    assert precision[0] == pytest.approx(true_positives[0] / (true_positives + false_positives)[0])
    plugin = events.SummaryMetadata('pairs/pr_curves').plugin_data
    assert plugin.plugin_name == pr_curve_metadata.PLUGIN_NAME


def test_ranked_results_are_pictures_of_every_evaluation_and_files_of_the_last(watched):
  events = watched.events('joint/validation')
  tags = [tag for tag in events.Tags()['tensors'] if tag.startswith('ranked/')]
  assert tags == ['ranked/01', 'ranked/02', 'ranked/03']
  assert [len(events.Tensors(tag)) for tag in tags] == [EPOCHS] * 3
  files = sorted((watched.folder / 'joint' / 'ranked_results').iterdir())
  assert [file.name for file in files] == ['01.png', '02.png', '03.png']
  test = watched.events('joint/test')
  for file, tag in zip(files, tags):
    ((picture,),) = pngs(test, tag)
    np.testing.assert_array_equal(picture, np.asarray(Image.open(file)))


def test_what_a_method_draws_becomes_sheets(watched):
  told = watched.told.of('pictured')
  assert [epoch for epoch, _ in told] == [1, 2]
  folder = watched.folder / 'joint' / 'samples'
  assert sorted(path.name for path in folder.iterdir()) == [
    f'shades-epoch-000{epoch}.png' for epoch in (1, 2)
  ]
  events = watched.events('joint/train')
  for (epoch, pictures), (sheet,) in zip(told, pngs(events, 'samples/shades')):
    file = np.asarray(Image.open(folder / f'shades-epoch-{epoch:04d}.png'))
    np.testing.assert_array_equal(file, sheet)
    shades = {int(shade) for shade in pictures['shades'][:, 0, 0, 0]}
    assert shades <= set(np.unique(sheet)) <= shades | {255}


@pytest.mark.parametrize(
  ('epochs', 'expected'),
  [(3, [1, 2, 3]), (10, list(range(1, 11))), (25, [3, 6, 9, 12, 15, 18, 21, 24, 25])],
)
def test_a_method_draws_at_most_about_ten_times_in_a_stage(epochs, expected):
  method = types.SimpleNamespace(pictures=lambda: {'a': np.zeros((1, 4, 4, 3), np.uint8)})
  told = Collected()
  hook = experiment.Pictures([told])
  for epoch in range(1, epochs + 1):
    stage = types.SimpleNamespace(epochs=epochs)
    hook.epoch_ends(types.SimpleNamespace(stage=stage, epoch=epoch, method=method))
  assert [epoch for epoch, _ in told.of('pictured')] == expected


def test_the_joint_space_is_in_the_projector(watched):
  folder = watched.folder / 'tensorboard' / 'joint' / 'test'
  evaluation = watched.evaluations['joint']
  points = evaluation.overall.queries + evaluation.overall.gallery
  assert len((folder / 'joint_space.tsv').read_text().splitlines()) == points
  assert len((folder / 'metadata.tsv').read_text().splitlines()) == points + 1
  assert (folder / 'projector_config.pbtxt').is_file()
  # The projector looks only where there are event files.
  assert list(folder.glob('events*'))


def test_the_configuration_the_data_and_the_networks_are_texts(watched):
  events = watched.events('.')
  shown = texts(events, 'configuration/config')[-1]
  assert all(line in shown for line in CONFIG.splitlines())
  assert 'what.was = "used"' in texts(events, 'configuration/operative_config')[-1]
  schema = json.loads((watched.folder / 'schema.json').read_text())
  attributes = texts(events, 'data/attributes')[-1]
  assert all(f'| {attribute["name"]} |' in attributes for attribute in schema['attributes'])
  assert '| validation |' in texts(events, 'data/splits')[-1]
  assert '| attribute_encoder |' in texts(watched.events('joint/train'), 'networks')[-1]


def test_the_hyper_parameters_stand_beside_the_final_metrics(watched):
  events = watched.events('joint/test')
  content = {
    tag: plugin_data_pb2.HParamsPluginData.FromString(
      events.SummaryMetadata(tag).plugin_data.content
    )
    for tag in events.Tags()['tensors']
    if tag.startswith('_hparams_/')
  }
  start = content['_hparams_/session_start_info'].session_start_info
  assert start.group_name == 'a run, joint'
  assert start.hparams['SEED'].number_value == 3
  assert start.hparams['SPACE'].string_value == 'joint'
  assert content['_hparams_/session_end_info'].session_end_info.status == 1  # success


def test_settings_are_the_plain_values_of_the_configuration():
  assert reporting.settings(CONFIG) == {
    'SEED': 3,
    'GENERATORS': "('attribute',)",
    'image.image_encoder.weights': 'None',
    'pipeline.Pipeline.image_size': '(32, 16)',
    'pipeline.Pipeline.flip': True,
    'optimizers.adam.learning_rate': 0.001,
  }


def test_what_is_not_known_of_an_evaluation_is_no_curve():
  metrics = ranking.metrics_from_ranks(np.asarray([0, 3]), np.asarray([0, 2]))
  overall = ranking.summary(metrics, 8)
  nothing = ranking.summary(metrics.select(np.asarray([False])), 8)
  evaluation = Evaluation(overall, nothing, overall, metrics, np.asarray([0]), np.asarray([False]))
  found = reporting.evaluation_scalars(evaluation)
  metric = {'mAP', 'mAP_trapz', 'rank1', 'rank5', 'rank10', 'mINP'}
  assert set(found) == {
    *(f'{section}/{name}' for section in ('evaluation', 'evaluation_unseen') for name in metric),
    *(f'evaluation_chance/{name}' for name in ('mAP', 'rank1', 'unseen_mAP', 'unseen_rank1')),
  }
  assert found['evaluation/mAP'] == (1 + 2 / 4) / 2
  assert found['evaluation_chance/rank1'] == 2 / 8


def test_the_terminal_shows_how_far_the_stage_and_the_embedding_are(watched):
  steps = len(watched.told.of('logged'))
  lines = [line for line in watched.console.splitlines() if line.strip()]
  assert lines.pop(0).startswith(f'joint: 2 epochs of {steps // 2} steps, {steps} in all; 8 images')
  assert re.match(rf'joint .*{steps}/{steps} epoch {EPOCHS}, loss -?\d', lines[0])
  images = watched.evaluations['joint'].overall.gallery
  assert re.match(rf'embedding joint, test .*{images}/{images} images', lines[-1])


def test_hooks_are_closed_once_whether_a_run_ends_well_or_not(watched, tiny_market, tmp_path):
  assert watched.told.told[-1] == ('closed',)
  assert len(watched.told.of('closed')) == 1
  killed = []

  def hooks(run_directory, benchmark):
    killed.append(Collected(stop_at=1))
    return killed

  with pytest.raises(RuntimeError, match='the power is gone'):
    experiment.train(
      str(tmp_path / 'run'),
      dataset=functools.partial(market1501.load, tiny_market),
      pipeline=functools.partial(Pipeline, (32, 16), 8),
      stages=[Stage('joint', Pull, 1)],
      strategy='one_device',
      log_every=1,
      hooks=hooks,
    )
  assert killed[0].told[-1] == ('closed',)
  assert len(killed[0].of('closed')) == 1


@pytest.mark.slow
def test_the_curves_of_a_resumed_run_are_those_of_an_uninterrupted_one(watched, resumed):
  steps = len(watched.told.of('logged')) // EPOCHS
  assert resumed.told.of('begins') == [(1, steps)]
  folder = resumed.folder / 'tensorboard' / 'joint' / 'train'
  written = [
    event.step
    for file in sorted(folder.iterdir())
    for event in tf.compat.v1.train.summary_iterator(str(file))
    if any(value.tag == 'losses/pull' for value in event.summary.value)
  ]
  # Steps were taken, and written about, twice; TensorBoard shows the second time.
  assert sorted(written) != sorted(set(written))
  for run, tag in (('joint/train', 'losses/pull'), ('joint/validation', 'evaluation/mAP')):
    assert scalars(resumed.events(run), tag) == scalars(watched.events(run), tag)
  for name, value in watched.weights().items():
    np.testing.assert_array_equal(value, resumed.weights()[name])


@pytest.mark.slow
def test_an_evaluation_that_is_repeated_replaces_the_one_before(resumed, tiny_market):
  train(resumed.folder, tiny_market)
  folder = resumed.folder / 'tensorboard' / 'joint' / 'test'
  assert len(list(folder.glob('events*'))) == 1
  assert len(scalars(resumed.events('joint/test'), 'evaluation/mAP')) == 1
