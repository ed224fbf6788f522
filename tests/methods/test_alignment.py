from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import tensorflow as tf

from tfreid import losses
from tfreid.methods import alignment
from tfreid.methods.joint_concepts import JointConcepts
from tfreid.networks import heads
from tfreid.spec import DatasetSpec

SPEC = DatasetSpec((8, 4, 3), ('hat', 'bag', 'red', 'adult'), 3)
SGD = functools.partial(tf.keras.optimizers.SGD, 0.1)


def adversarial(generators, **arguments):
  settings = {'generator_weight': 0.25, 'discriminator_weight': 0.5, **arguments}
  return functools.partial(alignment.Adversarial, optimizer=SGD, generators=generators, **settings)


ALIGNMENTS = {
  'a2img': (adversarial(('attribute',)), {'attribute'}),
  'img2a': (adversarial(('image',)), {'image'}),
  'both': (adversarial(('attribute', 'image')), {'attribute', 'image'}),
  'mmd': (functools.partial(alignment.MaximumMeanDiscrepancy, weight=0.1), {'attribute'}),
  'multi_kernel_mmd': (
    functools.partial(alignment.MaximumMeanDiscrepancy, weight=0.1, kernel='multi'),
    {'attribute'},
  ),
  'mmd_of_both': (
    functools.partial(
      alignment.MaximumMeanDiscrepancy, weight=0.1, generators=('attribute', 'image')
    ),
    {'attribute', 'image'},
  ),
  'coral': (functools.partial(alignment.DeepCORAL, weight=10.0), {'attribute'}),
  'coral_of_images': (
    functools.partial(alignment.DeepCORAL, weight=10.0, generators=('image',)),
    {'image'},
  ),
}


def image_encoder(image_shape, embedding_size=6):
  pixels = tf.keras.Input(image_shape)
  x = tf.keras.layers.Conv2D(4, 3)(tf.keras.layers.Rescaling(1 / 255.0)(pixels))
  x = tf.keras.layers.GlobalAveragePooling2D()(tf.keras.layers.ReLU()(heads.batch_norm()(x)))
  return tf.keras.Model(pixels, tf.keras.layers.Dense(embedding_size, 'tanh')(x))


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  return {
    'image': tf.constant(rng.uniform(0, 255, (6, *SPEC.image_shape)), tf.float32),
    'attributes': tf.constant(rng.integers(0, 2, (6, 4)), tf.float32),
    'semantic_id': tf.constant([0, 1, 2, 0, 1, 2], tf.int64),
  }


def concepts(seed=0, size=4):
  rng = np.random.default_rng(seed)
  return (tf.constant(rng.uniform(-1, 1, (5, size)), tf.float32) for _ in range(2))


def joint(chosen):
  tf.keras.utils.set_random_seed(0)
  return JointConcepts(
    SPEC,
    image_encoder=image_encoder,
    alignment=chosen,
    image_optimizer=SGD,
    attribute_optimizer=SGD,
  )


@pytest.mark.parametrize('name', ALIGNMENTS)
def test_alignment_term_moves_exactly_the_intended_encoders(name, batch):
  """The gradient of the term alone, by every network of the method."""
  chosen, intended = ALIGNMENTS[name]
  method = joint(chosen)
  with tf.GradientTape(persistent=True) as tape:
    found = method.losses(batch)

  def moves(network):
    gradients = tape.gradient(found['alignment'], network.trainable_variables)
    return any(g is not None and np.abs(g).max() > 1e-7 for g in map(_dense, gradients))

  assert moves(method.image_encoder) == ('image' in intended)
  assert moves(method.attribute_generator) == ('attribute' in intended)
  # It is computed from concepts; what makes IDs of them has no part in it.
  assert not moves(method.classifier)


def _dense(gradient):
  return None if gradient is None else tf.convert_to_tensor(gradient).numpy()


@pytest.mark.parametrize('name', ['a2img', 'img2a', 'both'])
def test_discriminator_descends_its_own_loss_only(name, batch):
  """The objective that holds D's variables is not the one with the fooling term."""
  method = joint(ALIGNMENTS[name][0])
  owner = {
    id(variable): objective.loss
    for objective in method.objectives
    for variable in objective.variables
  }
  discriminator = method.networks['discriminator']
  assert {owner[id(v)] for v in discriminator.trainable_variables} == {'discriminator'}
  encoders = [*method.image_encoder.trainable_variables]
  encoders += method.attribute_generator.trainable_variables
  assert {owner[id(v)] for v in encoders} == {'concept'}


@pytest.mark.parametrize('name', ALIGNMENTS)
def test_concept_loss_is_the_sum_of_its_three_terms(name, batch):
  found = joint(ALIGNMENTS[name][0]).losses(batch)
  parts = ('image_classification', 'attribute_classification', 'alignment')
  assert float(found['concept']) == pytest.approx(sum(float(found[part]) for part in parts))


def test_without_adversary_nothing_is_added(batch):
  method = joint(alignment.NoAlignment)
  assert 'discriminator' not in method.networks
  assert len(method.objectives) == 2
  assert float(method.losses(batch)['alignment']) == 0.0


@pytest.mark.parametrize(
  ('generators', 'terms'),
  [
    (('attribute',), lambda image, attribute: -np.log(attribute)),
    (('image',), lambda image, attribute: -np.log(1.0 - image)),
    (('attribute', 'image'), lambda image, attribute: -np.log(attribute) - np.log(1.0 - image)),
  ],
)
def test_adversarial_terms_are_those_of_eq_6_and_7(generators, terms):
  """From the discriminator's probabilities, computed apart."""
  part = adversarial(generators)(4)
  images, attributes = concepts()
  # Two moments of the same batch: batch norm uses its statistics, whatever the moving averages.
  logits = part.discriminator(tf.concat([images, attributes], axis=0), training=True)
  image, attribute = np.split(1.0 / (1.0 + np.exp(-logits.numpy().astype(np.float64))), 2)
  found = part.losses(images, attributes)
  fooling = np.mean(terms(image, attribute))
  assert float(found['fooling']) == pytest.approx(fooling, rel=1e-4)
  assert float(found['alignment']) == pytest.approx(0.25 * fooling, rel=1e-4)
  expected = np.mean(-np.log(image)) + np.mean(-np.log(1.0 - attribute))
  assert float(found['discriminator']) == pytest.approx(0.5 * expected, rel=1e-4)
  right = np.mean(np.concatenate([image > 0.5, attribute < 0.5]))
  assert float(found['discriminator_accuracy']) == pytest.approx(right)


def test_exchanged_concepts_only_change_who_plays_generator():
  """Img2A is A2Img with the modalities exchanged and D turned into 1 - D."""
  images, attributes = concepts()
  a2img = adversarial(('attribute',))(4)
  img2a = adversarial(('image',))(4)
  for variable, value in zip(img2a.discriminator.variables, a2img.discriminator.variables):
    variable.assign(value)
  last = img2a.discriminator.get_layer('logit')
  last.set_weights([-weight for weight in last.get_weights()])
  one, other = a2img.losses(images, attributes), img2a.losses(attributes, images)
  for name in ('alignment', 'discriminator', 'discriminator_accuracy'):
    assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-5)


def test_descending_the_term_brings_the_means_together():
  images, attributes = concepts()
  attributes = tf.Variable(attributes)
  part = alignment.MaximumMeanDiscrepancy(4, weight=1.0)
  before = float(losses.linear_mmd(images, attributes))
  for _ in range(50):
    with tf.GradientTape() as tape:
      loss = part.losses(images, attributes)['alignment']
    attributes.assign_sub(tape.gradient(loss, attributes))
  assert float(losses.linear_mmd(images, attributes)) < 1e-4 * before


@pytest.mark.parametrize('kernel', ['linear', 'multi'])
def test_mmd_term_is_weighted(kernel):
  images, attributes = concepts()
  part = alignment.MaximumMeanDiscrepancy(4, weight=0.3, kernel=kernel)
  function = losses.linear_mmd if kernel == 'linear' else losses.multi_kernel_mmd
  expected = float(function(images, attributes))
  found = part.losses(images, attributes)
  assert float(found['mmd']) == pytest.approx(expected)
  assert float(found['alignment']) == pytest.approx(0.3 * expected)


@pytest.mark.parametrize('match_mean', [False, True])
def test_coral_term_is_weighted(match_mean):
  images, attributes = concepts()
  part = alignment.DeepCORAL(4, weight=7.0, match_mean=match_mean)
  expected = float(losses.coral_loss(images, attributes, match_mean=match_mean))
  found = part.losses(images, attributes)
  assert float(found['coral']) == pytest.approx(expected)
  assert float(found['alignment']) == pytest.approx(7.0 * expected)


def test_undecided_discriminator_has_the_losses_of_a_coin():
  """A discriminator whose last layer is zero says 1/2 to everything."""
  part = adversarial(('attribute',))(4)
  last = part.discriminator.get_layer('logit')
  last.set_weights([np.zeros_like(weight) for weight in last.get_weights()])
  found = part.losses(*concepts())
  assert float(found['fooling']) == pytest.approx(math.log(2.0))
  assert float(found['discriminator']) == pytest.approx(0.5 * 2.0 * math.log(2.0))


def test_unknown_kernel_and_unknown_modality_are_refused():
  with pytest.raises(ValueError, match="kernel must be 'linear' or 'multi', not 'rbf'"):
    alignment.MaximumMeanDiscrepancy(4, weight=1.0, kernel='rbf')
  for generators in ((), ('text',)):
    with pytest.raises(ValueError, match='generators must name some of'):
      alignment.DeepCORAL(4, weight=1.0, generators=generators)
