from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.methods import test_joint_concepts
from tfreid import losses
from tfreid.methods import alignment
from tfreid.methods.image_classification import ImageClassification
from tfreid.methods.joint_concepts import JointConcepts
from tfreid.methods.multi_task import AttributeTask

SPEC = test_joint_concepts.SPEC._replace(attribute_rates=(0.5, 0.2, 0.3, 0.4))
SHARE = 0.02


def task(**arguments):
  return functools.partial(AttributeTask, **{'weight': 0.1, **arguments})


def joint(attribute_task, spec=SPEC):
  tf.keras.utils.set_random_seed(0)
  return JointConcepts(
    spec,
    image_encoder=test_joint_concepts.image_encoder,
    alignment=alignment.NoAlignment,
    image_optimizer=functools.partial(tf.keras.optimizers.SGD, 0.1),
    attribute_optimizer=functools.partial(tf.keras.optimizers.SGD, 0.2),
    attribute_task=attribute_task,
    weight_decay=0.5,
  )


def pretraining(attribute_task):
  tf.keras.utils.set_random_seed(0)
  return ImageClassification(
    SPEC,
    image_encoder=test_joint_concepts.image_encoder,
    body_optimizer=functools.partial(tf.keras.optimizers.SGD, 0.1),
    head_optimizer=functools.partial(tf.keras.optimizers.SGD, 0.2),
    attribute_task=attribute_task,
  )


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  return {
    'image': tf.constant(rng.uniform(0, 255, (6, *SPEC.image_shape)), tf.float32),
    'attributes': tf.constant(rng.integers(0, 2, (6, 4)), tf.float32),
    'semantic_id': tf.constant([0, 1, 2, 0, 1, 2], tf.int64),
    'seed': tf.constant([1, 2], tf.int32),
  }


def logits_of(method, images, *, training):
  """Attribute logits, by hand."""
  features = tf.keras.Model(
    method.image_encoder.input, method.image_encoder.get_layer('features').output
  )(images, training=training).numpy()
  kernel, bias = (w.numpy() for w in method.networks['attribute_scores'].weights)
  return features @ kernel + bias


def wake(method):
  """Gives the layer of the scores weights that matter: it begins near 0."""
  for weight in method.networks['attribute_scores'].trainable_variables:
    weight.assign(np.random.default_rng(1).normal(size=weight.shape))


@pytest.mark.parametrize('build', [joint, pretraining])
def test_task_adds_its_weighted_loss_to_the_objective(batch, build):
  plain, method = build(None), build(task(weight=0.3))
  wake(method)
  for name, network in plain.networks.items():
    network.set_weights(method.networks[name].get_weights())
  without, found = plain.losses(batch), method.losses(batch)
  logits = logits_of(method, batch['image'], training=True)
  expected = 0.3 * losses.weighted_attribute_loss(
    tf.constant(logits, tf.float32),
    batch['attributes'],
    known=tf.ones([6, 4]),
    rates=tf.constant(SPEC.attribute_rates),
  )
  assert float(found['attribute_task']) == pytest.approx(float(expected), rel=1e-4)
  right = np.mean((logits > 0) == (batch['attributes'].numpy() > 0.5))
  assert float(found['attribute_task_accuracy']) == pytest.approx(right)
  objective = method.objectives[0].loss
  difference = float(found[objective]) - float(without[objective])
  assert difference == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize('build', [joint, pretraining])
def test_task_trains_with_the_images_and_reaches_their_network(batch, build):
  method = build(task())
  wake(method)
  holders = [
    objective
    for objective in method.objectives
    for variable in objective.variables
    if variable is method.networks['attribute_scores'].trainable_variables[0]
  ]
  assert len(holders) == 1
  with tf.GradientTape() as tape:
    loss = method.losses(batch)['attribute_task']
  convolution = method.image_encoder.get_layer('conv').kernel
  assert float(tf.norm(tape.gradient(loss, convolution))) > 0.0


def test_every_variable_is_in_one_objective(batch):
  for method in (joint(task()), pretraining(task())):
    held = [id(v) for objective in method.objectives for v in objective.variables]
    assert len(held) == len(set(held))
    assert set(held) == {id(v) for v in method.trainable_variables}


def test_batch_norms_move_once(batch):
  plain, method = joint(None), joint(task())
  for name, network in plain.networks.items():
    network.set_weights(method.networks[name].get_weights())
  plain.losses(batch), method.losses(batch)
  for one, other in zip(plain.image_encoder.weights, method.image_encoder.weights):
    np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6, err_msg=one.name)


def test_answers_weigh_concepts_and_likelihood(batch):
  method = joint(task(share=SHARE))
  wake(method)
  logits = logits_of(method, batch['image'], training=False).astype(np.float64)
  attributes = batch['attributes'].numpy()
  likelihood = attributes @ logits.T - np.log1p(np.exp(logits)).sum(axis=1)  # [6, 6]

  def answers(space):
    return space.encode_attributes(batch['attributes']).numpy() @ (
      space.encode_images(batch['image']).numpy().T
    )

  concepts = answers(joint(None).space)
  np.testing.assert_allclose(answers(method.spaces['concepts']), concepts, atol=1e-5)
  np.testing.assert_allclose(answers(method.spaces['attributes']), likelihood, rtol=1e-4)
  np.testing.assert_allclose(answers(method.space), concepts + SHARE * likelihood, atol=1e-5)


def test_without_a_share_the_concepts_answer(batch):
  method = joint(task())
  assert method.space.size == 6
  assert sorted(method.spaces) == ['attributes']


def test_joined_space_is_saved_and_loaded(batch, tmp_path):
  method = joint(task(share=SHARE))
  wake(method)
  method.space.save(tmp_path / 'space')
  loaded = type(method.space).load(tmp_path / 'space')
  for encode, inputs in (('encode_images', 'image'), ('encode_attributes', 'attributes')):
    np.testing.assert_allclose(
      getattr(loaded, encode)(batch[inputs]), getattr(method.space, encode)(batch[inputs])
    )


@pytest.mark.parametrize(
  ('arguments', 'spec', 'message'),
  [
    ({'weight': 0.0}, SPEC, 'weight must be above 0, not 0.0'),
    ({'weight': float('nan')}, SPEC, 'weight must be above 0, not nan'),
    ({'share': -1.0}, SPEC, 'share must be at least 0, not -1.0'),
    ({'dropout': 1.0}, SPEC, r'dropout must be in \[0, 1\), not 1.0'),
    ({}, test_joint_concepts.SPEC, 'training rate of each of the 4 attribute'),
  ],
)
def test_refuses_what_cannot_be_a_task(arguments, spec, message):
  with pytest.raises(ValueError, match=message):
    joint(task(**arguments), spec)
