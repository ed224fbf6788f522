from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data.batches import ArrayBatches
from tfreid.joint_space import JointSpace
from tfreid.methods.correlation import DeepCCA, DeepCCAE
from tfreid.spec import DatasetSpec
from tfreid.training import optimizers
from tfreid.training.batches import distributed
from tfreid.training.trainer import Trainer

ROWS, FEATURES, ATTRIBUTES = 240, 12, 8


def _pairs(rows=ROWS, *, shared=3, seed=0):
  """Paired "images" [N, 2, 2, 3] and attributes [N, 8], Gaussian with a common cause."""
  rng = np.random.default_rng(seed)
  mixing = np.random.default_rng(99)
  common = rng.normal(size=(rows, shared))
  x = common @ mixing.normal(size=(shared, FEATURES)) + 0.3 * rng.normal(size=(rows, FEATURES))
  a = common @ mixing.normal(size=(shared, ATTRIBUTES)) + 0.3 * rng.normal(size=(rows, ATTRIBUTES))
  return {
    'image': (20.0 * x + 100.0).reshape(rows, 2, 2, 3).astype(np.float32),
    'attributes': a.astype(np.float32),
    'semantic_id': np.arange(rows) % 7,
  }


def _encoder(image_shape):
  """An image encoder in small: its features are its pixels, batch normalised."""
  pixels = tf.keras.Input(image_shape, name='image')
  x = tf.keras.layers.Flatten()(pixels)
  x = tf.keras.layers.BatchNormalization(momentum=0.5, name='bn')(x)
  x = tf.keras.layers.Activation('linear', dtype='float32', name='features')(x)
  return tf.keras.Model(pixels, tf.keras.layers.Dense(4, name='concept')(x), name='image_encoder')


def _spec(num_images=ROWS):
  names = tuple(f'attribute{i}' for i in range(ATTRIBUTES))
  return DatasetSpec((2, 2, 3), names, 7, num_images=num_images)


def _build(kind=DeepCCA, *, rate=1e-2, spec=None, **kwargs):
  tf.keras.utils.set_random_seed(0)
  settings = {
    'embedding_size': 3,
    'image_hidden': (16,),
    'attribute_hidden': (16,),
    'image_encoder': _encoder,
    'optimizer': lambda: optimizers.adam(rate),
    **({'reconstruction_weight': 0.5} if kind is DeepCCAE else {}),
    **kwargs,
  }
  return kind(spec or _spec(), **settings)


def _batches(arrays):
  return ArrayBatches(arrays, batch_size=len(arrays['image']) // 4, seed=0)


def _train(method, arrays, steps, strategy=None):
  """Trains on the batches of one epoch over and over; returns all batches and the last losses."""
  strategy = strategy or tf.distribute.get_strategy()
  with strategy.scope():
    trainer = Trainer(method, strategy)
  batches = method.prepare(_batches(arrays))
  epoch = list(distributed(batches.training(0), strategy))
  report = {}
  for i in range(steps):
    report = trainer.train_step(epoch[i % len(epoch)])
  return batches, {name: float(value) for name, value in report.items()}


def _losses(method, batches):
  """The method's losses of all training images, and what those move besides."""
  (batch,) = batches.evaluation()
  return method.losses({**batch, 'seed': tf.zeros([2], tf.int32)})


def _canonical(x, a, size, regularization):
  """Closed-form linear CCA by eigendecomposition: correlations and both projections."""
  x, a = x - x.mean(axis=0), a - a.mean(axis=0)

  def root(z):
    values, vectors = np.linalg.eigh(z.T @ z / (len(z) - 1) + regularization * np.eye(z.shape[1]))
    return vectors @ np.diag(values**-0.5) @ vectors.T

  u, d, vt = np.linalg.svd(root(x) @ (x.T @ a / (len(x) - 1)) @ root(a))
  return d[:size], x @ root(x) @ u[:, :size], a @ root(a) @ vt[:size].T


def _unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def _scores(method, arrays):
  """Similarity of each description to each image."""
  images = method.space.encode_images(arrays['image']).numpy()
  return method.space.encode_attributes(arrays['attributes']).numpy() @ images.T


def test_linear_views_reproduce_closed_form_cca():
  arrays = _pairs()
  method = _build(
    image_hidden=(),
    attribute_hidden=(),
    regularization=1e-8,
    optimizer=lambda: optimizers.adam(0.1, beta_2=0.9),
  )
  batches, _ = _train(method, arrays, steps=200)
  method.finish(batches)
  x = arrays['image'].reshape(ROWS, -1).astype(np.float64)
  x = (x - x.mean(axis=0)) / x.std(axis=0)
  wanted, u, v = _canonical(x, arrays['attributes'].astype(np.float64), 3, 1e-9)
  found = -_losses(method, batches)['correlation_loss']
  np.testing.assert_allclose(found, wanted.sum(), rtol=1e-4)
  assert wanted.sum() < 2.97  # of 3: something is left to be wrong about
  np.testing.assert_allclose(_scores(method, arrays), _unit(v) @ _unit(u).T, atol=0.05)


def test_space_ends_in_the_cca_of_all_training_outputs_and_cosine():
  arrays = _pairs()
  method = _build(regularization=1e-2)
  batches, _ = _train(method, arrays, steps=4)
  method.finish(batches)
  features = batches.arrays['image']
  f = method.image_view(features).numpy().astype(np.float64)
  g = method.attribute_view(arrays['attributes']).numpy().astype(np.float64)
  _, u, v = _canonical(f, g, 3, 1e-2)
  found = _scores(method, arrays)
  np.testing.assert_allclose(found, _unit(v) @ _unit(u).T, atol=1e-4)


def test_correlation_power_weighs_dimensions_before_the_cosine():
  arrays = _pairs()
  method = _build(regularization=1e-2, correlation_power=2.0)
  batches, _ = _train(method, arrays, steps=0)
  method.finish(batches)
  f = method.image_view(batches.arrays['image']).numpy().astype(np.float64)
  g = method.attribute_view(arrays['attributes']).numpy().astype(np.float64)
  correlations, u, v = _canonical(f, g, 3, 1e-2)
  found = _scores(method, arrays)
  weights = correlations**2
  np.testing.assert_allclose(found, _unit(v * weights) @ _unit(u * weights).T, atol=1e-4)


def test_space_is_meaningful_before_finish():
  """A step over the whole set leaves the space that `finish` makes of the same networks."""
  arrays = _pairs()
  method = _build(batch_size=-1)
  batches = method.prepare(_batches(arrays))
  _losses(method, batches)
  provisional = method.space.encode_images(arrays['image']).numpy()
  method.finish(batches)
  np.testing.assert_allclose(provisional, method.space.encode_images(arrays['image']), atol=1e-5)


@pytest.mark.parametrize('kind', [DeepCCA, DeepCCAE])
def test_pairs_that_were_not_trained_on_find_each_other(kind):
  """Chance is 1 in 60."""
  method = _build(kind, regularization=1e-2, batch_size=120)
  batches, _ = _train(method, _pairs(), steps=60)
  method.finish(batches)
  scores = _scores(method, _pairs(60, seed=1))
  assert np.mean(scores.argmax(axis=1) == np.arange(60)) > 0.3


def test_dccae_with_weight_zero_is_dcca_exactly():
  arrays = _pairs()
  cca, autoencoder = _build(DeepCCA), _build(DeepCCAE, reconstruction_weight=0.0)
  _, one = _train(cca, arrays, steps=3)
  _, two = _train(autoencoder, arrays, steps=3)
  assert two['autoencoder_loss'] == two['correlation_loss'] == one['correlation_loss']
  for name in ('image_view', 'attribute_view'):
    for mine, theirs in zip(cca.networks[name].variables, autoencoder.networks[name].variables):
      np.testing.assert_array_equal(mine, theirs)


def test_dccae_adds_the_mean_squared_errors_of_both_reconstructions():
  arrays = _pairs()
  method = _build(DeepCCAE, reconstruction_weight=0.25, batch_size=-1)
  batches = method.prepare(_batches(arrays))
  found = _losses(method, batches)
  x, a = batches.arrays['image'], arrays['attributes']
  image_error = np.mean((x - method.image_decoder(method.image_view(x))) ** 2)
  attribute_error = np.mean((a - method.attribute_decoder(method.attribute_view(a))) ** 2)
  np.testing.assert_allclose(found['image_reconstruction'], image_error, rtol=1e-5)
  np.testing.assert_allclose(found['attribute_reconstruction'], attribute_error, rtol=1e-5)
  np.testing.assert_allclose(
    found['autoencoder_loss'],
    found['correlation_loss'] + 0.25 * (image_error + attribute_error),
    rtol=1e-5,
  )


def test_dccae_decoders_mirror_the_encoders():
  method = _build(DeepCCAE, image_hidden=(16, 9))
  widths = [layer.units for layer in method.image_decoder.layers[1:]]
  assert widths == [9, 16, FEATURES]
  assert method.attribute_decoder.output_shape == (None, ATTRIBUTES)


def test_prepare_standardises_frozen_features_and_moves_nothing():
  arrays = _pairs()
  method = _build()
  method.image_encoder.get_layer('bn').moving_mean.assign(np.arange(12.0))
  before = [v.numpy() for v in method.image_encoder.variables]
  batches, _ = _train(method, arrays, steps=2)
  found = batches.arrays['image']
  np.testing.assert_allclose(found.mean(axis=0), np.zeros(FEATURES), atol=1e-4)
  np.testing.assert_allclose(found.std(axis=0), np.ones(FEATURES), atol=1e-4)
  raw = arrays['image'].reshape(ROWS, -1)
  np.testing.assert_allclose(found, (raw - raw.mean(axis=0)) / raw.std(axis=0), atol=1e-3)
  assert method.image_encoder.trainable_variables == []
  for variable, value in zip(method.image_encoder.variables, before):
    np.testing.assert_array_equal(variable, value)


def test_features_may_be_the_concept():
  method = _build(image_features='concept')
  batches = method.prepare(_batches(_pairs()))
  assert batches.arrays['image'].shape == (ROWS, 4)
  with pytest.raises(ValueError, match="'features' or 'concept', not 'logits'"):
    _build(image_features='logits')


def test_a_batch_too_small_for_the_dimension_is_refused_with_the_numbers():
  with pytest.raises(ValueError) as refused:
    _build(batch_size=100, embedding_size=10)
  message = str(refused.value)
  for part in ('10 canonical', 'batches of 100', '10.0 for each', 'fewer than 16', '160', '240'):
    assert part in message, message
  assert 'embedding_size to 6 or less' in message
  _build(batch_size=160, embedding_size=10)
  _build(batch_size=100, embedding_size=10, rows_per_dimension=10.0)


def test_a_data_set_too_small_for_the_dimension_is_refused_when_it_is_seen():
  spec = _spec(num_images=0)
  with pytest.raises(ValueError, match='batches of 240 images, 10.0 for each'):
    _build(embedding_size=24, spec=spec).prepare(_batches(_pairs()))
  with pytest.raises(ValueError, match='only 240 training images'):
    _build(batch_size=1024, spec=spec).prepare(_batches(_pairs()))


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'batch_size': 1024}, 'only 240 training images'),
    ({'batch_size': 0}, 'not 0'),
    ({'norm': 'trace'}, "not 'trace'"),
    ({'regularization': 0.0}, 'must be positive'),
  ],
)
def test_bad_settings_are_refused_before_anything_is_built(wrong, message):
  with pytest.raises(ValueError, match=message):
    _build(**wrong)


def test_two_replicas_see_the_correlation_of_the_global_batch(two_devices):
  arrays = _pairs()
  # Not by collectives, whose keys would be shared with other strategies of this process.
  strategy = tf.distribute.MirroredStrategy(
    two_devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
  )
  results = []
  for chosen in (tf.distribute.get_strategy(), strategy):
    with chosen.scope():
      method = _build(batch_size=120)
    batches, report = _train(method, arrays, steps=3, strategy=chosen)
    method.finish(batches)
    results.append((report['correlation_loss'], method.space.encode_images(arrays['image'])))
  assert results[0][0] < -1.0
  np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
  np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-3)


def test_all_images_at_once_are_rounded_down_to_equal_replicas(two_devices):
  strategy = tf.distribute.MirroredStrategy(
    two_devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
  )
  with strategy.scope():
    method = _build(batch_size=-1, spec=_spec(239))
  arrays = {name: array[:239] for name, array in _pairs().items()}
  assert method.prepare(_batches(arrays)).batch_size == 238


def test_correlation_is_float64_under_mixed_precision():
  arrays = _pairs()
  losses = []
  for policy in ('float32', 'mixed_float16'):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
      method = _build(batch_size=-1)
      batches = method.prepare(_batches(arrays))
      losses.append(float(_losses(method, batches)['correlation_loss']))
    finally:
      tf.keras.mixed_precision.set_global_policy('float32')
  np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)


def test_checkpoint_and_saved_space_carry_the_closing_cca(tmp_path):
  arrays = _pairs()
  method = _build()
  batches, _ = _train(method, arrays, steps=2)
  method.finish(batches)
  wanted = (
    method.space.encode_images(arrays['image']),
    method.space.encode_attributes(arrays['attributes']),
  )
  tf.train.Checkpoint(space=method.space).write(str(tmp_path / 'checkpoint'))
  method.space.save(str(tmp_path / 'space'))
  fresh = _build()
  tf.train.Checkpoint(space=fresh.space).read(str(tmp_path / 'checkpoint')).assert_consumed()
  for space in (fresh.space, JointSpace.load(str(tmp_path / 'space'))):
    np.testing.assert_allclose(space.encode_images(arrays['image']), wanted[0], atol=1e-6)
    np.testing.assert_allclose(space.encode_attributes(arrays['attributes']), wanted[1], atol=1e-6)
