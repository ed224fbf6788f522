from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from tfreid import losses
from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.data.batches import ArrayBatches
from tfreid.data.benchmark import Benchmark, Split
from tfreid.joint_space import JointSpace
from tfreid.methods.attribute_prediction import AttributePrediction
from tfreid.networks import attribute_scores
from tfreid.networks.attribute_scores import bits_and_known
from tfreid.spec import DatasetSpec
from tfreid.training import optimizers, stages
from tfreid.training.trainer import Trainer

RATES = (0.1, 0.5, 0.25, 0.9)
SPEC = DatasetSpec((16, 8, 3), ('hat', 'bag', 'red', 'adult'), 4, RATES)
READINGS = ('cosine', 'log_likelihood', 'requested')


def _image_encoder(image_shape, embedding_size=5):
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
  arguments = {'image_encoder': _image_encoder, **arguments}
  arguments.setdefault('optimizer', functools.partial(optimizers.sgd, 0.1))
  return AttributePrediction(spec, **arguments)


def _arrays(count=16, size=(16, 8), seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.uniform(0, 255, (count, *size, 3)).astype(np.float32),
    'attributes': rng.integers(0, 2, (count, 4)).astype(np.float32),
    'semantic_id': np.arange(count, dtype=np.int64) % 4,
  }


def _batch(arrays, seed=(0, 0)):
  return {
    **{name: tf.constant(array) for name, array in arrays.items()},
    'seed': tf.constant(seed, tf.int32),
  }


def _sigmoid(x):
  return 1.0 / (1.0 + np.exp(-x))


# The loss.


def test_loss_is_the_weighted_cross_entropy_computed_by_hand():
  """Two images, two attributes with rates 0.2 and 0.7, in probabilities."""
  logits = np.array([[0.5, -1.0], [2.0, 0.0]])
  bits = np.array([[1.0, 0.0], [0.0, 1.0]])
  p = _sigmoid(logits)
  first = np.exp(0.8) * -np.log(p[0, 0]) + np.exp(0.7) * -np.log(1 - p[0, 1])
  second = np.exp(0.2) * -np.log(1 - p[1, 0]) + np.exp(0.3) * -np.log(p[1, 1])
  found = losses.weighted_attribute_loss(
    tf.constant(logits, tf.float32),
    tf.constant(bits, tf.float32),
    known=tf.ones([2, 2]),
    rates=tf.constant([0.2, 0.7]),
  )
  np.testing.assert_allclose(found, (first + second) / 2, rtol=1e-6)


def test_loss_is_finite_for_confident_mistakes():
  found = losses.weighted_attribute_loss(
    tf.constant([[500.0, -500.0]]),
    tf.constant([[0.0, 1.0]]),
    known=tf.ones([1, 2]),
    rates=tf.constant([0.5, 0.5]),
  )
  np.testing.assert_allclose(found, 1000.0 * np.exp(0.5), rtol=1e-6)


def test_what_is_not_known_has_no_weight():
  bits, known = bits_and_known(tf.constant([[1.0, 0.0, -1.0]]), 'three_state')
  logits = tf.Variable([[0.3, 5.0, -0.2]])
  with tf.GradientTape() as tape:
    loss = losses.weighted_attribute_loss(
      logits, bits, known=known, rates=tf.constant([0.5, 0.5, 0.5])
    )
  gradient = tape.gradient(loss, logits).numpy()[0]
  assert gradient[1] == 0.0
  assert gradient[0] < 0.0 < gradient[2]


@pytest.mark.parametrize(
  ('encoding', 'vector', 'bits', 'known'),
  [
    ('binary', [0.0, 1.0, 0.37, 1.0], [0, 1, 0, 1], [1, 1, 0, 1]),
    ('binary', [0.0, 0.0, 0.9, 0.5], [0, 0, 0, 0], [1, 1, 0, 0]),
    ('three_state', [-1.0, 1.0, 0.0, 1.0], [0, 1, 0, 1], [1, 1, 0, 1]),
  ],
)
def test_both_encodings_say_what_is_on_and_what_is_not_said(encoding, vector, bits, known):
  found_bits, found_known = bits_and_known(tf.constant([vector]), encoding)
  np.testing.assert_array_equal(found_bits, [bits])
  np.testing.assert_array_equal(found_known, [known])


def test_the_spec_tells_the_encoding():
  schema = AttributeSchema(
    'people',
    (Attribute('hat', ('no', 'yes'), (('hat', 2),)),),
    {'hat': (1, 2)},
    encoding='three_state',
    rates=(0.5,),
  )
  split = Split(
    paths=np.array(['a.jpg']),
    attributes=np.ones([1, 1], np.float32),
    semantic_ids=np.zeros(1, np.int64),
    person_ids=np.array(['0001']),
    cameras=np.ones(1, np.int32),
    keys=((2,),),
  )
  benchmark = Benchmark('people', schema, split, None, split)
  assert benchmark.spec((64, 32, 3)).encoding == 'three_state'
  binary = dataclasses.replace(benchmark, schema=dataclasses.replace(schema, encoding='binary'))
  assert binary.spec((64, 32, 3)).encoding == 'binary'


# The readings.


def _score(reading, logits, attributes, encoding='binary'):
  """Similarities [Q, N] by the layers that end the encoders."""
  image = attribute_scores.ImageReading(reading)(tf.constant(logits, tf.float32))
  description = attribute_scores.DescriptionReading(reading, encoding=encoding, rates=RATES)(
    tf.constant(attributes, tf.float32)
  )
  return np.matmul(description.numpy(), image.numpy().T)


def _formula(reading, logits, attributes):
  """The same by the formulae, for fully known binary descriptions, in probabilities."""
  p = _sigmoid(logits.astype(np.float64))[None]  # [1, N, A]
  a = attributes.astype(np.float64)[:, None]  # [Q, 1, A]
  if reading == 'cosine':
    return (a * p).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(p, axis=-1)
  if reading == 'log_likelihood':
    return np.log(np.where(a == 1, p, 1 - p)).sum(-1)
  return np.where(a == 1, np.log(p), 0.0).sum(-1)


@pytest.mark.parametrize('reading', READINGS)
def test_dot_product_is_the_formula(reading):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(6, 4)) * 2
  attributes = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], np.float32)
  expected = _formula(reading, logits, attributes)
  np.testing.assert_allclose(_score(reading, logits, attributes), expected, rtol=1e-5, atol=1e-6)
  signed = 2 * attributes - 1
  found = _score(reading, logits, signed, encoding='three_state')
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('reading', READINGS)
def test_a_partial_description_scores_alike_in_both_encodings(reading):
  """The binary encoding has the training rate where the three-state one has 0."""
  logits = np.random.default_rng(1).normal(size=(6, 4))
  three_state = np.array([[1.0, 0.0, -1.0, 0.0]])
  binary = np.array([[1.0, RATES[1], 0.0, RATES[3]]])
  np.testing.assert_allclose(
    _score(reading, logits, binary), _score(reading, logits, three_state, 'three_state'), rtol=1e-6
  )


def test_log_likelihood_of_a_partial_description_leaves_out_the_rest():
  logits = np.random.default_rng(2).normal(size=(6, 4))
  found = _score('log_likelihood', logits, np.array([[1.0, 0.0, -1.0, 0.0]]), 'three_state')
  p = _sigmoid(logits)
  np.testing.assert_allclose(found[0], np.log(p[:, 0]) + np.log(1 - p[:, 2]), rtol=1e-5)


def test_scores_rise_with_what_is_asked_for_and_fall_with_what_is_not():
  logits = np.random.default_rng(3).normal(size=(1, 4))
  attributes = np.array([[1.0, 0.0, 1.0, 0.0]])
  more = {column: logits + np.eye(4)[column] for column in range(4)}
  for reading in ('log_likelihood', 'requested'):
    for column in (0, 2):
      assert _score(reading, more[column], attributes) > _score(reading, logits, attributes)
  for reading in ('log_likelihood', 'cosine'):
    for column in (1, 3):
      assert _score(reading, more[column], attributes) < _score(reading, logits, attributes)
  for column in (1, 3):
    assert _score('requested', more[column], attributes) == _score('requested', logits, attributes)


@pytest.mark.parametrize('reading', READINGS)
def test_all_readings_of_a_perfect_predictor_find_the_described_person(reading):
  people = np.array([[i >> bit & 1 for bit in range(4)] for i in range(1, 16)], np.float32)
  scores = _score(reading, 12.0 * (2 * people - 1), people)
  if reading == 'requested':
    # It cannot tell a person from one who has more than what was asked for.
    superset = (people[:, None] <= people[None]).all(-1)
    assert ((scores > -1.0) == superset).all()
  else:
    np.testing.assert_array_equal(scores.argmax(axis=1), np.arange(15))


# The method.


def test_prepare_replaces_images_by_features_of_the_frozen_encoder():
  method = _method(batch_size=-1)
  arrays = _arrays(10)
  batches = method.prepare(ArrayBatches(arrays, batch_size=4, seed=0))
  assert batches.batch_size == 10
  features = tf.keras.Model(
    method.image_encoder.input, method.image_encoder.get_layer('features').output
  )(arrays['image'])
  np.testing.assert_allclose(batches.arrays['image'], features, atol=1e-6)
  np.testing.assert_array_equal(batches.arrays['attributes'], arrays['attributes'])
  assert _method().prepare(ArrayBatches(arrays, batch_size=4, seed=0)).batch_size == 4
  fine_tuned = _method(frozen=False)
  unchanged = ArrayBatches(arrays, batch_size=4, seed=0)
  assert fine_tuned.prepare(unchanged) is unchanged


def _moved(method, batches):
  """Names of the variables of the method's networks that two steps changed."""
  before = {
    f'{name}/{variable.name}': variable.numpy()
    for name, network in method.networks.items()
    for variable in network.variables
  }
  trainer = Trainer(method, tf.distribute.get_strategy())
  for batch in list(batches.training(0))[:2]:
    trainer.train_step(batch)
  return {
    f'{name}/{variable.name}'
    for name, network in method.networks.items()
    for variable in network.variables
    if not np.array_equal(variable.numpy(), before[f'{name}/{variable.name}'])
  }


def test_frozen_moves_the_linear_layer_alone():
  method = _method()
  batches = method.prepare(ArrayBatches(_arrays(), batch_size=8, seed=0))
  assert _moved(method, batches) == {
    'attribute_scores/logits/kernel:0',
    'attribute_scores/logits/bias:0',
  }


def test_fine_tuned_moves_everything_but_the_concept_layer_it_does_not_use():
  method = _method(frozen=False)
  # The weight decay must not move the concept layer either.
  assert len(method.objectives) == 1
  moved = _moved(method, ArrayBatches(_arrays(), batch_size=8, seed=0))
  every = {f'{n}/{v.name}' for n, network in method.networks.items() for v in network.variables}
  assert moved == {name for name in every if '/concept/' not in name}


def test_fine_tuned_on_the_concept_moves_that_too():
  method = _method(frozen=False, layer='concept')
  moved = _moved(method, ArrayBatches(_arrays(), batch_size=8, seed=0))
  assert 'image_encoder/concept/kernel:0' in moved


def test_dropout_comes_from_the_batchs_seed_alone():
  method = _method(layer='concept')
  batches = method.prepare(ArrayBatches(_arrays(), batch_size=16, seed=0))
  method.attribute_scores.set_weights(
    [np.random.default_rng(0).normal(size=w.shape) for w in method.attribute_scores.weights]
  )
  loss = {
    seed: float(method.losses(_batch(batches.arrays, seed))['attribute_prediction'])
    for seed in [(1, 2), (1, 3)]
  }
  assert loss[1, 2] != loss[1, 3]
  again = method.losses(_batch(batches.arrays, (1, 2)))['attribute_prediction']
  assert float(again) == loss[1, 2]


def test_losses_without_dropout_are_those_of_the_formula():
  method = _method(dropout=0.0)
  batches = method.prepare(ArrayBatches(_arrays(), batch_size=16, seed=0))
  kernel, bias = method.attribute_scores.get_weights()
  assert 0.0 < np.abs(kernel).max() < 0.006  # N(0, 0.001)
  logits = batches.arrays['image'] @ kernel + bias
  a, p, rates = batches.arrays['attributes'], _sigmoid(logits), np.array(RATES)
  terms = np.where(a == 1, -np.exp(1 - rates) * np.log(p), -np.exp(rates) * np.log(1 - p))
  found = method.losses(_batch(batches.arrays))
  np.testing.assert_allclose(found['attribute_prediction'], terms.sum(1).mean(), rtol=1e-5)
  np.testing.assert_allclose(found['attribute_accuracy'], ((logits > 0) == (a == 1)).mean())


def test_the_chosen_reading_is_the_space_and_the_others_are_beside_it():
  for reading in READINGS:
    method = _method(reading=reading)
    assert set(method.spaces) == set(READINGS) - {reading}
    assert method.space.size == (8 if reading == 'log_likelihood' else 4)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'reading': 'euclidean'}, 'reading is one of'),
    ({'dropout': 1.0}, 'dropout must be in'),
    ({'layer': 'pixels'}, "'features' or 'concept'"),
    ({'spec': SPEC._replace(attribute_rates=())}, 'needs the training rate'),
  ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    _method(**arguments)


def test_learns_separable_attributes_and_saves_all_three_readings(tmp_path):
  """Attributes as brightness of four bands: linear in the features once a band has a channel."""
  rng = np.random.default_rng(0)
  attributes = rng.integers(0, 2, (64, 4)).astype(np.float32)
  attributes[:15] = [[i >> bit & 1 for bit in range(4)] for i in range(1, 16)]
  features = np.concatenate([attributes, 1 - attributes], axis=1)
  features += 0.1 * rng.normal(size=features.shape)

  def encoder(image_shape):
    """Features are the mean brightness of eight bands; nothing in it is random."""
    pixels = tf.keras.Input(image_shape)
    x = tf.keras.layers.AveragePooling2D((2, 8))(pixels)
    x = tf.keras.layers.Flatten()(x)  # 8 bands of 3 equal channels
    pooling = tf.repeat(tf.eye(8), 3, axis=0) / 3.0
    x = tf.keras.layers.Dense(8, use_bias=False, name='features')(x)
    model = tf.keras.Model(pixels, tf.keras.layers.Dense(3, name='concept')(x))
    model.get_layer('features').set_weights([pooling.numpy() / 255.0])
    return model

  images = 255.0 * np.repeat(np.repeat(features, 2, axis=1)[:, :, None, None], 8, axis=2)
  arrays = {
    'image': np.repeat(images, 3, axis=3).astype(np.float32),
    'attributes': attributes,
    'semantic_id': np.zeros(64, np.int64),
  }
  built = []

  def method(spec):
    built.append(
      _method(spec, image_encoder=encoder, optimizer=functools.partial(optimizers.sgd, 0.3))
    )
    return built[-1]

  def accuracy(trained):
    kernel, bias = trained.attribute_scores.get_weights()
    return ((features @ kernel + bias > 0) == (attributes == 1)).mean()

  class Watch(stages.Hooks):
    def stage_begins(self, progress, steps_per_epoch):
      self.before = accuracy(progress.method)

    def logged(self, progress):
      self.with_dropout = progress.losses['attribute_accuracy']

  watched = Watch()
  stages.run(
    [stages.Stage(name='deepmar', method=method, epochs=40)],
    stages.Setting(
      run_directory=str(tmp_path),
      spec=SPEC._replace(attribute_rates=tuple(attributes.mean(0))),
      batches=lambda pipeline: ArrayBatches(arrays, batch_size=16, seed=0),
      pipeline=None,
      strategy=tf.distribute.get_strategy(),
    ),
    [watched],
  )
  (trained,) = built
  assert watched.before < 0.75
  assert accuracy(trained) > 0.95
  assert watched.with_dropout < 1.0
  logits = features @ trained.attribute_scores.get_weights()[0]
  logits += trained.attribute_scores.get_weights()[1]
  folders = stages.spaces(str(tmp_path / 'deepmar'))
  assert set(folders) == {'', 'log_likelihood', 'requested'}
  for name, folder in folders.items():
    space = JointSpace.load(folder)
    assert JointSpace.metadata(folder)['space'] == name
    queries = attributes[:15]
    found = np.matmul(
      space.encode_attributes(queries).numpy(), space.encode_images(arrays['image']).numpy().T
    )
    expected = _formula(name or 'cosine', logits, queries)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    best = attributes[found.argmax(axis=1)]
    if name == 'requested':
      assert (best >= queries).all(axis=1).mean() > 0.9
    else:
      assert (best == queries).all(axis=1).mean() > 0.9
