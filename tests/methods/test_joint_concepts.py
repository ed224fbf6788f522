from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from tfreid.methods import alignment
from tfreid.methods.image_classification import ImageClassification
from tfreid.methods.joint_concepts import JointConcepts
from tfreid.networks import heads
from tfreid.spec import DatasetSpec

SPEC = DatasetSpec((8, 4, 3), ('hat', 'bag', 'red', 'adult'), 3)


def image_encoder(image_shape, embedding_size=6):
  pixels = tf.keras.Input(image_shape)
  x = tf.keras.layers.Conv2D(4, 3, name='conv')(tf.keras.layers.Rescaling(1 / 255.0)(pixels))
  x = tf.keras.layers.ReLU()(heads.batch_norm('bn')(x))
  x = tf.keras.layers.GlobalAveragePooling2D(name='features')(x)
  return tf.keras.Model(pixels, tf.keras.layers.Dense(embedding_size, 'tanh', name='concept')(x))


def joint(**arguments):
  tf.keras.utils.set_random_seed(0)
  settings = {
    'image_encoder': image_encoder,
    'alignment': alignment.NoAlignment,
    'image_optimizer': functools.partial(tf.keras.optimizers.SGD, 0.1),
    'attribute_optimizer': functools.partial(tf.keras.optimizers.SGD, 0.2),
    **arguments,
  }
  return JointConcepts(SPEC, **settings)


def pretraining(**arguments):
  tf.keras.utils.set_random_seed(0)
  return ImageClassification(
    SPEC,
    image_encoder=image_encoder,
    body_optimizer=functools.partial(tf.keras.optimizers.SGD, 0.1),
    head_optimizer=functools.partial(tf.keras.optimizers.SGD, 0.2),
    **arguments,
  )


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  return {
    'image': tf.constant(rng.uniform(0, 255, (6, *SPEC.image_shape)), tf.float32),
    'attributes': tf.constant(rng.integers(0, 2, (6, 4)), tf.float32),
    'semantic_id': tf.constant([0, 1, 2, 0, 1, 2], tf.int64),
  }


def cross_entropy(logits, ids):
  shifted = logits - logits.max(axis=1, keepdims=True)
  log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
  return -np.mean(log_probabilities[np.arange(len(ids)), ids])


def test_both_classification_losses_come_from_one_classifier(batch):
  method = joint()
  kernel, bias = (w.numpy().astype(np.float64) for w in method.classifier.weights)
  ids = batch['semantic_id'].numpy()
  expected = {}
  for name, network, inputs in (
    ('image', method.image_encoder, batch['image']),
    ('attribute', method.attribute_generator, batch['attributes']),
  ):
    logits = network(inputs, training=True).numpy() @ kernel + bias
    expected[f'{name}_classification'] = cross_entropy(logits, ids)
    expected[f'{name}_accuracy'] = np.mean(logits.argmax(axis=1) == ids)
  found = method.losses(batch)
  for name, value in expected.items():
    assert float(found[name]) == pytest.approx(value, rel=1e-4), name


def test_classifier_moves_with_the_attribute_branch():
  """Table 1 lists it as fc5 of the attribute branch."""
  method = joint(weight_decay=0.5)
  image, attribute = method.objectives
  assert len(image.variables) == len(method.image_encoder.trainable_variables)
  mine = {id(v) for v in attribute.variables}
  assert {id(v) for v in method.classifier.trainable_variables} < mine
  assert {id(v) for v in method.attribute_generator.trainable_variables} < mine
  rates = [float(objective.optimizer.learning_rate) for objective in method.objectives]
  assert rates == pytest.approx([0.1, 0.2])
  assert (image.l2, attribute.l2) == (0.5, 0.5)


def test_space_compares_concepts_by_their_cosine(batch):
  method = joint()
  images = method.image_encoder(batch['image']).numpy()
  attributes = method.attribute_generator(batch['attributes']).numpy()
  lengths = np.outer(np.linalg.norm(attributes, axis=1), np.linalg.norm(images, axis=1))
  found = method.space.encode_attributes(batch['attributes']).numpy()
  found = found @ method.space.encode_images(batch['image']).numpy().T
  np.testing.assert_allclose(found, attributes @ images.T / lengths, rtol=1e-4, atol=1e-5)


def test_sizes_come_from_the_data():
  method = joint()
  assert method.image_encoder.input_shape == (None, 8, 4, 3)
  assert method.attribute_generator.input_shape == (None, 4)
  assert method.classifier.output_shape == (None, 3)


def test_pretraining_carries_what_the_joint_stage_takes():
  before, after = pretraining().networks, joint().networks
  for name in ('image_encoder', 'classifier'):
    assert [v.shape for v in before[name].weights] == [v.shape for v in after[name].weights]


def test_pretraining_gives_new_layers_a_rate_of_their_own():
  method = pretraining()
  body, head = method.objectives
  new = {id(v) for v in method.image_encoder.get_layer('concept').trainable_variables}
  new |= {id(v) for v in method.classifier.trainable_variables}
  assert {id(v) for v in head.variables} == new
  assert not {id(v) for v in body.variables} & new
  rates = [float(objective.optimizer.learning_rate) for objective in method.objectives]
  assert rates == pytest.approx([0.1, 0.2])


def test_pretraining_loss_is_that_of_eq_3(batch):
  method = pretraining()
  logits = method.classifier(method.image_encoder(batch['image'], training=True)).numpy()
  found = method.losses(batch)
  ids = batch['semantic_id'].numpy()
  assert float(found['image_classification']) == pytest.approx(cross_entropy(logits, ids), rel=1e-4)
  assert float(found['image_accuracy']) == pytest.approx(np.mean(logits.argmax(axis=1) == ids))
  assert method.space is None
