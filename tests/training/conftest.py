"""A method of two linear maps on vectors, and the surroundings to train it in."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data.batches import ArrayBatches
from tfreid.joint_space import JointSpace
from tfreid.methods.method import Method, Objective
from tfreid.spec import DatasetSpec
from tfreid.training.stages import Hooks, Setting, Stage


def linear(inputs, outputs, name):
  given = tf.keras.Input([inputs])
  return tf.keras.Model(given, tf.keras.layers.Dense(outputs)(given), name=name)


class Pairs(Method):
  """Vectors and attributes, mapped to where they agree; noise makes every step its own."""

  def __init__(self, spec, *, size=4, noise=0.1, optimizer=None, with_space=True):
    super().__init__()
    optimizer = optimizer or functools.partial(tf.keras.optimizers.Adam, 0.05)
    self.noise = noise
    self.image_encoder = linear(spec.image_shape[0], size, 'image_encoder')
    self.attribute_encoder = linear(spec.num_attributes, size, 'attribute_encoder')
    self.networks = {
      'image_encoder': self.image_encoder,
      'attribute_encoder': self.attribute_encoder,
    }
    self.objectives = [
      Objective('distance', network.trainable_variables, optimizer(), 0.01)
      for network in self.networks.values()
    ]
    self.space = JointSpace(self.image_encoder, self.attribute_encoder) if with_space else None
    self.finished = tf.Variable(0, trainable=False, name='finished')

  def losses(self, batch):
    images = self.image_encoder(batch['image'])
    attributes = self.attribute_encoder(batch['attributes'])
    images += self.noise * tf.random.stateless_normal(tf.shape(images), batch['seed'])
    return {'distance': tf.reduce_mean(tf.math.squared_difference(images, attributes - 1.0))}

  def finish(self, batches):
    self.finished.assign_add(1)


class Rows(ArrayBatches):
  """Arrays in the place of images on disk."""

  def explain(self, error):
    return error


class Seen(Hooks):
  """What a stage told, in order."""

  def __init__(self):
    self.told = []
    self.losses = {}

  def stage_begins(self, progress, steps_per_epoch):
    self.told.append(('begins', progress.stage.name, progress.epoch, steps_per_epoch))

  def logged(self, progress):
    self.told.append(('logged', progress.stage.name, progress.step))
    self.losses[progress.stage.name, progress.step] = dict(progress.losses)

  def epoch_ends(self, progress):
    self.told.append(('epoch', progress.stage.name, progress.epoch))

  def stage_ends(self, progress):
    self.told.append(('ends', progress.stage.name, progress.epoch))


@pytest.fixture
def seen():
  return Seen()


@pytest.fixture
def pairs():
  return Pairs


@pytest.fixture
def spec():
  return DatasetSpec((5, 1, 3), ('hat', 'bag', 'red'), 4, num_images=24)


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  return {
    'image': rng.normal(size=(24, 5)).astype(np.float32),
    'attributes': rng.integers(0, 2, (24, 3)).astype(np.float32),
    'semantic_id': np.arange(24) % 4,
  }


@pytest.fixture
def setting(spec, arrays, tmp_path):
  """Name of a run directory -> Setting, three steps an epoch."""

  def make(name='run', **changes):
    directory = tmp_path / name
    directory.mkdir(exist_ok=True)
    settings = {
      'run_directory': str(directory),
      'spec': spec,
      'batches': lambda pipeline: Rows(arrays, batch_size=8, seed=3),
      'pipeline': None,
      'strategy': tf.distribute.OneDeviceStrategy('CPU:0'),
      'seed': 3,
      'log_every': 1,
      **changes,
    }
    return Setting(**settings)

  return make


@pytest.fixture
def stage(pairs):
  """Stage of the method above, three epochs."""

  def make(name='joint', *, epochs=3, carry=None, directory='', schedule=None, **arguments):
    return Stage(
      name,
      functools.partial(pairs, **arguments),
      epochs,
      carry=carry or {},
      directory=directory,
      schedule=schedule,
    )

  return make
