"""Each fault that the suite exists for, planted once: the suite must fail."""

from __future__ import annotations

import conformance_checks as checks
import numpy as np
import pytest
import tensorflow as tf

from tfreid import losses, replicas
from tfreid.joint_space import JointSpace
from tfreid.methods.method import Method, Objective
from tfreid.networks import heads
from tfreid.spec import DatasetSpec
from tfreid.training.trainer import Trainer

SPEC = DatasetSpec((4, 2, 3), ('hat', 'bag', 'red', 'adult', 'male'), 3)


def encoder(shape, name):
  """Something [B, ...] to [B, 4], with a batch norm."""
  given = tf.keras.Input(shape)
  x = tf.keras.layers.Dense(6)(tf.keras.layers.Flatten()(given))
  x = tf.keras.layers.Activation('tanh')(heads.batch_norm()(x))
  return tf.keras.Model(given, tf.keras.layers.Dense(4, dtype='float32')(x), name=name)


class Sound(Method):
  """Two encoders whose outputs agree pair by pair, in covariance, and in what a judge says."""

  def __init__(self, spec):
    super().__init__()
    self.image_encoder = encoder(spec.image_shape, 'image_encoder')
    self.attribute_encoder = encoder([spec.num_attributes], 'attribute_encoder')
    self.judge = tf.keras.Sequential([tf.keras.layers.Dense(1)], name='judge')
    self.judge.build([None, 4])
    self.networks = self.choose_networks()
    self.objectives = [
      Objective(loss, variables, tf.keras.optimizers.SGD(0.01))
      for loss, variables in self.choose_objectives()
    ]
    self.space = JointSpace(self.image_encoder, self.attribute_encoder)

  def choose_networks(self):
    return {
      'image_encoder': self.image_encoder,
      'attribute_encoder': self.attribute_encoder,
      'judge': self.judge,
    }

  def choose_objectives(self):
    encoders = self.image_encoder.trainable_variables + self.attribute_encoder.trainable_variables
    return [('distance', encoders), ('judgement', self.judge.trainable_variables)]

  def gathered(self, images, attributes):
    return replicas.gather(images), replicas.gather(attributes)

  def mean(self, distances):
    return tf.reduce_mean(distances)

  def losses(self, batch):
    images = self.image_encoder(batch['image'], training=True)
    attributes = self.attribute_encoder(batch['attributes'], training=True)
    distances = tf.reduce_sum(tf.math.squared_difference(images, attributes), axis=1)
    # A set loss of the kind that is not the mean of its values on parts of the set.
    spread = losses.coral_loss(*self.gathered(images, attributes), match_mean=True)
    logits = self.judge(tf.concat([images, attributes], axis=0))
    said, meant = tf.split(logits, 2)
    return {
      'distance': self.mean(distances) + spread,
      'judgement': losses.discriminator_loss(said, meant),
    }


class ForgetsToMove(Sound):
  """A network that is listed, used, and in no objective."""

  def choose_objectives(self):
    (first, _), second = super().choose_objectives()
    return [(first, self.image_encoder.trainable_variables), second]


class ForgetsNetwork(Sound):
  """A network that is used, and neither listed nor in an objective."""

  def choose_networks(self):
    networks = super().choose_networks()
    del networks['judge']
    return networks

  def choose_objectives(self):
    return super().choose_objectives()[:1]


class MovesUnlisted(Sound):
  """A network that an objective moves and that is not listed: no later stage could carry it."""

  def choose_networks(self):
    networks = super().choose_networks()
    del networks['judge']
    return networks


class HasTemperature(Sound):
  """A variable of the method's own, in no layer, that an objective moves."""

  def choose_objectives(self):
    self.temperature = tf.Variable(1.0, name='temperature')
    (first, encoders), second = super().choose_objectives()
    return [(first, [*encoders, self.temperature]), second]


class MovesTwice(Sound):
  """A network in the objectives of both sides."""

  def choose_objectives(self):
    first, (second, judge) = super().choose_objectives()
    return [first, (second, judge + self.attribute_encoder.trainable_variables)]


class MisnamesLoss(Sound):
  """An objective whose loss is not computed."""

  def choose_objectives(self):
    first, (_, judge) = super().choose_objectives()
    return [first, ('judgment', judge)]


class MovesBystander(Sound):
  """A network in an objective whose loss does not depend on it."""

  def choose_objectives(self):
    (first, encoders), (_, judge) = super().choose_objectives()
    return [(first, encoders + judge)]


class MixesBatches(Sound):
  """The global batch of one modality against the replica's of the other."""

  def gathered(self, images, attributes):
    return images, replicas.gather(attributes)


class GathersNothing(Sound):
  """A set loss of each replica's own part."""

  def gathered(self, images, attributes):
    return images, attributes


class SumsOverBatch(Sound):
  """A sum where the trainer was promised a mean."""

  def mean(self, distances):
    return tf.reduce_sum(distances)


class DividesByReplicas(Sound):
  """The trainer's division, done a second time."""

  def mean(self, distances):
    count = tf.distribute.get_replica_context().num_replicas_in_sync
    return tf.reduce_mean(distances) / count


class ReadsForgottenSeed(Sound):
  """Its own randomness, in the place of the batch's seed: no run could be repeated."""

  def mean(self, distances):
    return tf.reduce_mean(distances * tf.random.uniform(tf.shape(distances)))


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return {
    'image': rng.normal(size=(8, 4, 2, 3)).astype(np.float32),
    # The halves are unlike each other, as they are in any real batch.
    'attributes': rng.normal(size=(8, 5)).astype(np.float32) + np.arange(8)[:, None] // 4,
    'semantic_id': np.arange(8) % 3,
  }


def check_replicas(build, batch):
  """The check of `test_methods.py`, on any method."""
  one = checks.one_step(build, SPEC, batch)
  checks.check_same_step(one, checks.one_step(build, SPEC, batch, replicas=2))


def test_sound_method_passes(batch, two_devices):
  check_replicas(Sound, batch)


@pytest.mark.parametrize(
  'fault', [MixesBatches, GathersNothing, SumsOverBatch, DividesByReplicas, ReadsForgottenSeed]
)
def test_update_that_depends_on_the_number_of_replicas_is_noticed(fault, batch, two_devices):
  with pytest.raises(AssertionError, match='distance'):
    check_replicas(fault, batch)


@pytest.mark.parametrize(
  ('fault', 'complaint'),
  [
    (ForgetsToMove, "of network 'attribute_encoder' is in no objective"),
    (ForgetsNetwork, "of 'judge', which is in no network is in no objective"),
    (MovesTwice, "of network 'attribute_encoder' is in several objectives"),
  ],
)
def test_variable_that_is_not_moved_exactly_once_is_refused(fault, complaint):
  with pytest.raises(ValueError, match=complaint):
    Trainer(fault(SPEC), tf.distribute.get_strategy())


@pytest.mark.parametrize(
  ('fault', 'complaint'),
  [
    (MisnamesLoss, "descends the loss 'judgment', which its losses.. does not return"),
    (MovesBystander, "the loss 'distance' does not depend on .*kernel"),
  ],
)
def test_objective_without_its_loss_is_refused(fault, complaint, batch):
  with pytest.raises(ValueError, match=complaint):
    checks.one_step(fault, SPEC, batch)


def watched(method):
  """What the suite sees of a method before anything has moved."""
  return checks.Watched(method, checks.values(method), after=checks.values(method))


def move(seen, network, by=1.0):
  """As if training had changed a network."""
  mine = {id(variable) for variable in network.weights}
  seen.after = [
    value + by if id(variable) in mine else value
    for variable, value in zip(seen.method.variables, seen.after)
  ]


def move_all(seen):
  """As if training had changed everything."""
  seen.after = [value + 1.0 for value in seen.before]


@pytest.mark.parametrize(
  ('fault', 'complaint'),
  [
    (MovesUnlisted, r'in none of the networks: .*dense.*/kernel'),
    (MovesTwice, 'a variable is in two objectives'),
    (ForgetsToMove, 'a trainable variable is in no objective'),
  ],
)
def test_method_that_says_wrongly_what_moves_is_noticed(fault, complaint):
  seen = watched(fault(SPEC))
  move_all(seen)
  with pytest.raises(AssertionError, match=complaint):
    checks.check_movement(seen)


def test_unlisted_network_is_noticed_where_the_method_does_not_even_hold_it():
  method = Sound(SPEC)
  stranger = encoder([2], 'stranger')
  method.objectives.append(
    Objective('distance', stranger.trainable_variables, tf.keras.optimizers.SGD(0.01))
  )
  seen = watched(method)
  move_all(seen)
  with pytest.raises(AssertionError, match='in none of the networks'):
    checks.check_movement(seen)


@pytest.mark.parametrize('method', [Sound, HasTemperature])
def test_sound_method_in_which_all_moves_passes(method):
  seen = watched(method(SPEC))
  move_all(seen)
  checks.check_movement(seen)


def test_variable_that_stays_where_it_was_is_noticed():
  seen = watched(Sound(SPEC))
  move(seen, seen.method.image_encoder)
  move(seen, seen.method.judge)
  with pytest.raises(AssertionError, match='never moved'):
    checks.check_movement(seen)
  move(seen, seen.method.attribute_encoder)
  checks.check_movement(seen)


class FrozenJudge(Sound):
  """A judge that nobody moves, and that says so."""

  def choose_objectives(self):
    self.judge.trainable = False
    return super().choose_objectives()[:1]


def test_frozen_network_that_moves_is_noticed():
  seen = watched(FrozenJudge(SPEC))
  move(seen, seen.method.image_encoder)
  move(seen, seen.method.attribute_encoder)
  checks.check_movement(seen)
  move(seen, seen.method.judge)
  with pytest.raises(AssertionError, match='frozen, and yet moved'):
    checks.check_movement(seen)


def test_loss_that_is_not_finite_is_noticed():
  seen = watched(Sound(SPEC))
  seen.reports = [{'distance': 1.0, 'judgement': 0.5}, {'distance': float('nan'), 'judgement': 0.5}]
  with pytest.raises(AssertionError, match='nan'):
    checks.check_losses(seen)


def test_resumed_run_that_differs_is_noticed(tmp_path):
  for name, value in (('one', 1.0), ('other', 1.001)):
    tf.train.Checkpoint(weight=tf.Variable(value)).write(str(tmp_path / name))
  checks.check_same_checkpoints(tmp_path / 'one', tmp_path / 'one')
  with pytest.raises(AssertionError, match='weight'):
    checks.check_same_checkpoints(tmp_path / 'one', tmp_path / 'other')
