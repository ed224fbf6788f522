"""The pre-training on person ids, as a stage that other stages carry from."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data import person_crops
from tfreid.data.pipeline import Pipeline
from tfreid.data.samplers import PeopleSampler
from tfreid.methods.image_classification import ImageClassification
from tfreid.methods.person_identification import PersonIdentification
from tfreid.networks import encoder, heads
from tfreid.spec import DatasetSpec
from tfreid.training import stages
from tfreid.training.batches import ImageBatches
from tfreid.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
CROP = (32, 16, 3)
SPEC = DatasetSpec(CROP, (), 4, num_images=16)
adam = functools.partial(tf.keras.optimizers.Adam, 0.01)


def small_encoder(image_shape):
  pixels = tf.keras.Input(image_shape)
  x = tf.keras.layers.Rescaling(1 / 127.5, -1.0)(pixels)
  x = heads.batch_norm()(tf.keras.layers.Conv2D(8, 4, 4)(x))
  x = tf.keras.layers.GlobalAveragePooling2D(name='features')(tf.keras.layers.ReLU()(x))
  return encoder.with_concept(pixels, x, embedding_size=4, activation='tanh')


def method(spec=SPEC, **settings):
  return PersonIdentification(spec, image_encoder=small_encoder, optimizer=adam, **settings)


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return {
    'image': tf.constant(rng.uniform(0, 255, (8, *CROP)), tf.float32),
    'attributes': tf.zeros([8, 0]),
    'semantic_id': tf.constant([0, 0, 1, 1, 2, 2, 3, 3], tf.int64),
  }


def test_total_is_cross_entropy_and_weighted_triplet(batch):
  tf.keras.utils.set_random_seed(0)
  losses = method(triplet_weight=0.5).losses(batch)
  assert float(losses['triplet']) > 0.0
  assert float(losses['person_identification']) == pytest.approx(
    float(losses['person_classification'] + 0.5 * losses['triplet']), rel=1e-6
  )
  assert float(method(triplet_weight=0.0, label_smoothing=0.0).losses(batch)['triplet']) > 0.0


@pytest.mark.parametrize('layer', ['features', 'concept'])
def test_what_the_loss_reaches_is_trained_and_nothing_else(layer, batch):
  made = method(layer=layer)
  Trainer(made, tf.distribute.get_strategy())  # refuses a variable that no objective holds
  head = {id(variable) for variable in encoder.head(made.image_encoder).variables}
  moved = {id(variable) for variable in made.objectives[0].variables}
  assert bool(head & moved) == (layer == 'concept')


def test_step_on_two_replicas_is_that_on_one(two_devices, batch):
  def updates(strategy):
    tf.keras.utils.set_random_seed(0)
    with strategy.scope():
      made = method()
      made.objectives = [made.objectives[0]._replace(optimizer=tf.keras.optimizers.SGD(1.0))]
      trainer = Trainer(made, strategy)
    before = [variable.numpy() for variable in made.objectives[0].variables]
    size = 8 // strategy.num_replicas_in_sync

    def part(context):
      start = context.replica_id_in_sync_group * size
      return {name: value[start : start + size] for name, value in batch.items()}

    trainer.train_step(strategy.experimental_distribute_values_from_function(part))
    return [v.numpy() - b for v, b in zip(made.objectives[0].variables, before)]

  one = updates(tf.distribute.OneDeviceStrategy('CPU:0'))
  two = updates(
    tf.distribute.MirroredStrategy(
      two_devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
  )
  assert max(np.abs(update).max() for update in one) > 0.01
  for single, both in zip(one, two):
    np.testing.assert_allclose(both, single, rtol=1e-3, atol=1e-5)


def test_settings_out_of_range_are_refused():
  with pytest.raises(ValueError, match=r'label_smoothing must be in \[0, 1\), not 1.0'):
    method(label_smoothing=1.0)
  with pytest.raises(ValueError, match='must not be negative, not 1.0 and -0.1'):
    method(margin=-0.1)


# The stage.


@pytest.fixture(scope='module')
def crops(tiny_market):
  return person_crops.load([tiny_market], sampler=PeopleSampler(2))


def run(directory, crops, *, shared, seed=0, epochs=2):
  pipeline = Pipeline(CROP[:2], 8, flip=False)

  def batches(pipeline, data=None, own_seed=None):
    data = data or crops
    sampler = data.sampler if own_seed is not None else None
    return ImageBatches(pipeline, data.split, None, seed=own_seed or seed, sampler=sampler)

  setting = stages.Setting(
    run_directory=str(directory),
    spec=DatasetSpec(CROP, ('hat',), len(crops.split.keys), num_images=len(crops.split)),
    batches=batches,
    pipeline=pipeline,
    strategy=tf.distribute.OneDeviceStrategy('CPU:0'),
    seed=seed,
  )
  classification = functools.partial(
    ImageClassification, image_encoder=small_encoder, body_optimizer=adam, head_optimizer=adam
  )
  recipe = [
    stages.Stage('person_ids', method, epochs, data=lambda: crops, seed=5, directory=str(shared)),
    stages.Stage('pretrain', classification, 0, carry={'person_ids': ('image_encoder',)}),
  ]
  stages.run(recipe, setting)
  return setting


def convolution(directory):
  """The kernel of the encoder's convolution in a final checkpoint."""
  reader = tf.train.load_checkpoint(os.path.join(directory, 'final'))
  shapes = reader.get_variable_to_shape_map()
  (key,) = (
    key for key, shape in shapes.items() if shape == [4, 4, 3, 8] and 'optimizers' not in key
  )
  return reader.get_tensor(key)


def test_a_later_stage_carries_the_encoder_and_runs_of_other_seeds_share_it(tmp_path, crops):
  shared = tmp_path / 'shared'
  run(tmp_path / 'one', crops, shared=shared)
  trained = convolution(shared)
  np.testing.assert_array_equal(convolution(tmp_path / 'one' / 'pretrain'), trained)
  identity = json.loads((shared / 'stage.json').read_text())
  assert identity['num_semantic_ids'] == len(crops.split.keys)
  assert identity['attribute_names'] == []
  assert identity['dataset'] == crops.name
  assert identity['seed'] == 5
  # Two batches of 4 people with 2 crops in each group of 8 people.
  assert json.loads((shared / 'final.json').read_text())['steps'] >= 2 * 4
  os.utime(shared / 'final.json', (1, 1))
  run(tmp_path / 'two', crops, shared=shared, seed=1)
  assert os.path.getmtime(shared / 'final.json') == 1
  np.testing.assert_array_equal(convolution(tmp_path / 'two' / 'pretrain'), trained)


def test_a_shared_stage_of_other_people_is_refused(tmp_path, crops):
  run(tmp_path / 'one', crops, shared=tmp_path / 'shared', epochs=0)
  fewer = person_crops.load([Path(crops.split.paths[0]).parent], sampler=PeopleSampler(2))
  fewer = person_crops.PersonCrops('fewer', fewer.split.subset(np.arange(16)), fewer.sampler)
  with pytest.raises(ValueError, match='dataset, num_images, num_semantic_ids differ'):
    run(tmp_path / 'two', fewer, shared=tmp_path / 'shared', epochs=0)


# Real crops.


@pytest.fixture(scope='module')
def photographs():
  """../shared/photos beside the checkout: research data that the project does not hold."""
  folder = ROOT.parent / 'shared' / 'photos'
  wanted = [folder / name for name in ('cuhk01', 'pku_reid/train', 'market1501_half')]
  missing = [str(path) for path in wanted if not path.is_dir()]
  if missing:
    if os.environ.get('CI') and folder.parent.is_dir():
      pytest.fail(f'no {missing}, though {folder.parent} is there')
    pytest.skip(f'no {missing}')
  return wanted


def test_real_data_sets_are_read_together_and_a_step_is_taken(photographs):
  crops = person_crops.load(photographs)
  assert crops.name == 'cuhk01+pku_reid+market1501_half'
  sources = np.asarray([key[0] for key in crops.split.keys])
  assert list(np.bincount(sources)[::2]) == [971, 500]
  assert np.all(np.bincount(crops.split.semantic_ids) >= 2)
  pipeline = Pipeline(CROP[:2], 16)
  batch = next(iter(pipeline.training(crops.split, seed=0, epoch=0, sampler=crops.sampler)))
  made = method(crops.spec(CROP))
  trainer = Trainer(made, tf.distribute.get_strategy())
  report = trainer.train_step(batch)
  assert np.isfinite(float(report['person_identification']))
