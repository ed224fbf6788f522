from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from tfreid import losses
from tfreid.data.batches import ArrayBatches
from tfreid.joint_space import JointSpace
from tfreid.methods.image_generation import ImageGeneration, other_people
from tfreid.networks import conditional_gan, image
from tfreid.spec import DatasetSpec
from tfreid.training import optimizers, stages
from tfreid.training.trainer import Trainer

SPEC = DatasetSpec((16, 8, 3), ('hat', 'bag', 'red', 'adult'), 3, (0.5,) * 4)
GAN_ALONE = {'classification_weight': 0.0, 'adversarial_weight': 1.0}
CLASSIFIED = {'classification_weight': 1.0, 'adversarial_weight': 0.001}


def _image_encoder(image_shape, embedding_size=6):
  """An image branch of three layers, named as the ResNet's are."""
  pixels = tf.keras.Input(image_shape)
  x = tf.keras.layers.Rescaling(1 / 127.5, -1.0)(pixels)
  x = tf.keras.layers.Conv2D(8, 4, 4, name='conv')(x)
  x = tf.keras.layers.BatchNormalization(momentum=0.9, name='bn')(x)
  x = tf.keras.layers.ReLU()(x)
  x = tf.keras.layers.GlobalAveragePooling2D(name='features')(x)
  concepts = tf.keras.layers.Dense(embedding_size, 'tanh', name='concept')(x)
  return tf.keras.Model(pixels, concepts, name='image_encoder')


def _method(spec=SPEC, **arguments):
  tf.keras.utils.set_random_seed(0)
  adam = functools.partial(optimizers.adam, 0.002, beta_1=0.5)
  defaults = {
    'image_encoder': _image_encoder,
    'generator_optimizer': adam,
    'discriminator_optimizer': adam,
    'generator': functools.partial(conditional_gan.generator, width=4, description_size=8),
    'discriminator': functools.partial(conditional_gan.discriminator, width=4, description_size=8),
    'noise_size': 5,
    'draws': 3,
    'shown': 2,
  }
  return ImageGeneration(spec, **{**defaults, **arguments})


def _arrays(count=12, size=(16, 8)):
  rng = np.random.default_rng(0)
  semantic_ids = np.arange(count, dtype=np.int64) % 3
  return {
    'image': np.round(rng.uniform(0, 255, (count, *size, 3))).astype(np.float32),
    'attributes': np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 1, 0]], np.float32)[semantic_ids],
    'semantic_id': semantic_ids,
  }


def _batch(arrays, seed=(5, 7)):
  return {
    **{name: tf.constant(array) for name, array in arrays.items()},
    'seed': tf.constant(seed, tf.int32),
  }


# Losses and wrong images.


def test_discriminator_loss_is_that_of_the_algorithm():
  rng = np.random.default_rng(0)
  real, wrong, fake = rng.normal(size=(3, 6, 1)) * 2

  def d(logits):
    return 1.0 / (1.0 + np.exp(-logits))

  expected = -np.mean(np.log(d(real)) + 0.3 * np.log(1 - d(wrong)) + 0.7 * np.log(1 - d(fake)))
  found = losses.matching_discriminator_loss(
    *(tf.constant(x, tf.float32) for x in (real, wrong, fake)), exists=tf.ones(6), wrong_share=0.3
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_discriminator_loss_leaves_out_wrong_images_that_do_not_exist():
  zeros = tf.zeros([2, 1])
  found = losses.matching_discriminator_loss(
    zeros, tf.constant([[1e4], [-3.0]]), zeros, exists=tf.constant([0.0, 1.0])
  )
  np.testing.assert_allclose(found, 1.5 * np.log(2) + 0.25 * np.log1p(np.exp(-3)), rtol=1e-6)


def test_wrong_images_never_share_the_semantic_id():
  rng = np.random.default_rng(0)
  for step in range(50):
    semantic_ids = rng.integers(0, rng.integers(2, 8), 12)
    semantic_ids[:2] = 0, 1
    others, exists = other_people(tf.constant(semantic_ids), tf.constant([step, 1]))
    assert (semantic_ids[others.numpy()] != semantic_ids).all()
    np.testing.assert_array_equal(exists, np.ones(12))


def test_wrong_images_are_drawn_evenly_and_by_the_seed_alone():
  """Image 0 has three candidates, 2, 3 and 4."""
  semantic_ids = tf.constant([0, 0, 1, 1, 2])
  draws = [int(other_people(semantic_ids, tf.constant([i, 0]))[0][0]) for i in range(300)]
  assert set(draws) == {2, 3, 4}
  # Each is binomial with mean 100 and deviation 8.2.
  assert min(np.bincount(draws)[2:]) > 60
  again = [int(other_people(semantic_ids, tf.constant([i, 0]))[0][0]) for i in range(20)]
  assert again == draws[:20]


def test_a_batch_of_one_semantic_id_has_no_wrong_images():
  _, exists = other_people(tf.constant([4, 4, 4]), tf.constant([0, 0]))
  np.testing.assert_array_equal(exists, np.zeros(3))
  arrays = _arrays()
  arrays['semantic_id'][:] = 1
  found = _method().losses(_batch(arrays))
  assert np.isfinite(found['image_discriminator'])


# The method.


def _softplus(x):
  return np.log1p(np.exp(x))


@pytest.mark.parametrize('weights', [GAN_ALONE, CLASSIFIED])
def test_losses_are_the_formulae_of_the_networks_outputs(weights):
  method = _method(**weights)
  arrays = _arrays()
  batch = _batch(arrays)
  seeds = [tf.random.experimental.stateless_fold_in(batch['seed'], i) for i in range(2)]
  noise = tf.random.stateless_normal([12, 5], seeds[0])
  others = other_people(batch['semantic_id'], seeds[1])[0].numpy()
  reals = arrays['image'] / 127.5 - 1.0
  fakes = method.generator([batch['attributes'], noise], training=True)
  real, wrong, fake = (
    method.discriminator([x, batch['attributes']], training=True).numpy()
    for x in (reals, reals[others], fakes)
  )
  concepts = method.image_encoder((fakes.numpy() + 1) * 127.5, training=False)
  logits = method.classifier(concepts).numpy().astype(np.float64)
  likelihoods = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  classification = -np.log(likelihoods[np.arange(12), arrays['semantic_id']]).mean()
  fooling = _softplus(-fake).mean()

  found = method.losses(batch)
  np.testing.assert_allclose(
    found['generator'],
    weights['classification_weight'] * classification + weights['adversarial_weight'] * fooling,
    rtol=1e-4,
  )
  np.testing.assert_allclose(
    found['image_discriminator'],
    _softplus(-real).mean() + 0.5 * _softplus(wrong).mean() + 0.5 * _softplus(fake).mean(),
    rtol=1e-4,
  )
  assert ('generated_classification' in found) == (weights is CLASSIFIED)


def _assert_only_the_gan_moved(method, before):
  for name in ('image_encoder', 'classifier'):
    for weight, old in zip(method.networks[name].weights, before[name]):
      np.testing.assert_array_equal(weight, old, err_msg=weight.name)
  for name in ('generator', 'image_discriminator'):
    for weight, old in zip(method.networks[name].weights, before[name]):
      assert not np.array_equal(weight, old), weight.name


def _weights(method):
  return {name: network.get_weights() for name, network in method.networks.items()}


@pytest.mark.slow
def test_generator_learns_to_be_classified_through_an_encoder_that_does_not_move():
  method = _method(**CLASSIFIED)
  rng = np.random.default_rng(1)
  method.classifier.set_weights([4 * rng.normal(size=w.shape) for w in method.classifier.weights])
  before = _weights(method)
  trainer = Trainer(method, tf.distribute.get_strategy())
  found = []
  for epoch in range(60):
    for batch in ArrayBatches(_arrays(), batch_size=12, seed=0).training(epoch):
      report = {name: float(value) for name, value in trainer.train_step(batch).items()}
      assert np.isfinite(list(report.values())).all()
      found.append(report['generated_classification'])
  assert np.mean(found[-5:]) < 0.5 * np.mean(found[:5])
  _assert_only_the_gan_moved(method, before)


@pytest.mark.parametrize(
  ('image_shape', 'image_size'),
  [((64, 32, 3), (64, 32)), ((128, 64, 3), (128, 64)), ((40, 40, 3), (32, 16))],
)
def test_images_are_generated_in_the_nearest_size_and_resized_to_the_crops(image_shape, image_size):
  method = _method(SPEC._replace(image_shape=image_shape), draws=1, **CLASSIFIED)
  assert tuple(method.image_size) == image_size
  arrays = _arrays(4, size=image_shape[:2])
  assert method.samples(arrays['attributes']).shape == (4, *image_shape)
  assert method.space.image_shape == image_shape
  assert np.isfinite(method.losses(_batch(arrays))['generator'])


def test_the_limit_of_stages_bounds_the_generated_size():
  method = _method(SPEC._replace(image_shape=(64, 32, 3)), max_stages=2)
  assert tuple(method.image_size) == (16, 8)
  assert method.samples(np.eye(4)).shape == (4, 64, 32, 3)


def _distinct(method):
  """`method` with a generator whose images differ.

  Untrained, it makes an all but even grey, whose direction after centring is lost in rounding.
  """
  for variable in method.generator.trainable_variables:
    variable.assign(5.0 * variable)
  return method


@pytest.mark.parametrize(('layer', 'size'), [('concept', 6), ('features', 8)])
def test_a_description_is_encoded_as_the_mean_of_what_the_encoder_makes_of_its_draws(layer, size):
  method = _distinct(_method(layer=layer))
  attributes = np.eye(4, dtype=np.float32)
  encoder = method.image_encoder
  encoder = tf.keras.Model(encoder.input, encoder.get_layer(layer).output)
  noise = method._over_draws.noise.numpy()
  assert noise.shape == (3, 5)
  total = 0.0
  for z in noise:
    images = method.generator([attributes, np.tile(z, (4, 1))], training=False).numpy()
    encoded = encoder((images + 1) * 127.5).numpy()
    total += encoded / np.linalg.norm(encoded, axis=1, keepdims=True)
  expected = total / np.linalg.norm(total, axis=1, keepdims=True)
  found = method.space.encode_attributes(attributes).numpy()
  assert method.space.size == size
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_array_equal(method.space.encode_attributes(attributes), found)


def test_a_saved_space_encodes_as_before_with_the_stored_draws(tmp_path):
  method = _distinct(_method())
  method._over_draws.noise.assign(method._over_draws.noise + 0.5)  # not what the seed would give
  arrays = _arrays()
  method.space.save(str(tmp_path / 'space'))
  loaded = JointSpace.load(str(tmp_path / 'space'))
  for encode in ('encode_attributes', 'encode_images'):
    given = arrays['attributes' if encode == 'encode_attributes' else 'image']
    expected = getattr(method.space, encode)(given)
    np.testing.assert_allclose(getattr(loaded, encode)(given), expected, atol=1e-6)


def test_sample_sheet_shows_a_photograph_and_every_draw_of_different_people():
  method = _method()
  assert method.pictures() == {}
  arrays = _arrays()
  arrays['semantic_id'] = np.array([2, 2, 2, 0, 0, 0, 1, 1, 1, 1, 1, 1])
  batches = ArrayBatches(arrays, batch_size=2, seed=0)
  assert method.prepare(batches) is batches
  (sheet,) = method.pictures().values()
  assert sheet.dtype == np.uint8
  assert sheet.shape == (2, 16, 4 * 8, 3)
  np.testing.assert_array_equal(sheet[:, :, :8], arrays['image'][[0, 3]])
  described = arrays['attributes'][[0, 3]]
  for draw in range(3):
    strip = sheet[:, :, 8 * (draw + 1) : 8 * (draw + 2)]
    np.testing.assert_array_equal(strip, method.samples(described, draw=draw))
  assert not np.array_equal(sheet[:, :, 8:16], sheet[:, :, 16:24])


@pytest.mark.slow
def test_first_stage_moves_the_gan_alone_and_the_second_goes_on_with_it(tmp_path):
  """The second stage has no epochs here and so hands on what it was given."""
  arrays = _arrays()
  built = []

  def gan(spec, **arguments):
    method = _method(spec, **arguments)
    built.append((method, _weights(method)))
    return method

  setting = stages.Setting(
    run_directory=str(tmp_path),
    spec=SPEC,
    batches=lambda pipeline: ArrayBatches(arrays, batch_size=6, seed=0),
    pipeline=None,
    strategy=tf.distribute.get_strategy(),
  )
  recipe = [
    stages.Stage(name='gan', method=functools.partial(gan, **GAN_ALONE), epochs=2),
    stages.Stage(
      name='gan_classified',
      method=functools.partial(gan, **CLASSIFIED),
      epochs=0,
      carry={'gan': ('image_encoder', 'classifier', 'generator', 'image_discriminator')},
    ),
  ]
  stages.run(recipe, setting)
  _assert_only_the_gan_moved(*built[0])
  second = _weights(built[1][0])
  for name, weights in _weights(built[0][0]).items():
    for weight, carried in zip(weights, second[name]):
      np.testing.assert_array_equal(carried, weight)
  attributes = np.eye(4, dtype=np.float32)
  spaces = [JointSpace.load(str(tmp_path / stage.name / 'space')) for stage in recipe]
  first, second = (space.encode_attributes(attributes).numpy() for space in spaces)
  np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.slow
def test_the_loss_of_the_published_resnet_reaches_the_generator_and_leaves_the_resnet_alone():
  spec = SPEC._replace(image_shape=(32, 32, 3))
  method = _method(spec, image_encoder=image.image_encoder, start=(4, 4), **CLASSIFIED)
  assert tuple(method.image_size) == (32, 32)
  before = method.image_encoder.get_weights()
  arrays = _arrays(4, size=(32, 32))
  with tf.GradientTape() as tape:
    loss = method.losses(_batch(arrays))['generated_classification']
  gradients = tape.gradient(loss, method.generator.trainable_variables)
  norms = [float(tf.norm(gradient)) for gradient in gradients]
  assert np.isfinite(norms).all()
  assert min(norms) > 0.0
  for new, old in zip(method.image_encoder.get_weights(), before):
    np.testing.assert_array_equal(new, old)
