from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data.batches import ArrayBatches
from tfreid.joint_space import JointSpace
from tfreid.methods.two_way_net import TwoWayNet
from tfreid.networks import two_way
from tfreid.spec import DatasetSpec
from tfreid.training import optimizers
from tfreid.training.batches import distributed
from tfreid.training.trainer import Trainer

ROWS, FEATURES, ATTRIBUTES = 240, 12, 8
HIDDEN = (16, 10, 6)


def _pairs(rows=ROWS, *, seed=0):
  """Paired "images" [N, 2, 2, 3] and attributes [N, 8], Gaussian with a common cause."""
  rng = np.random.default_rng(seed)
  mixing = np.random.default_rng(99)
  common = rng.normal(size=(rows, 4))
  x = common @ mixing.normal(size=(4, FEATURES)) + 0.1 * rng.normal(size=(rows, FEATURES))
  a = common @ mixing.normal(size=(4, ATTRIBUTES)) + 0.1 * rng.normal(size=(rows, ATTRIBUTES))
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


def _build(**kwargs):
  tf.keras.utils.set_random_seed(0)
  names = tuple(f'attribute{i}' for i in range(ATTRIBUTES))
  settings = {
    'image_encoder': _encoder,
    'optimizer': lambda: optimizers.sgd(1e-3, nesterov=True),
    'batch_size': 60,
    'hidden': HIDDEN,
    **kwargs,
  }
  return TwoWayNet(DatasetSpec((2, 2, 3), names, 7, num_images=ROWS), **settings)


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


def _training_channel(values, inputs, masks, *, transpose):
  """A channel in training mode in numpy: each batch normalised by its own statistics."""
  side, x, hidden = 'attribute' if transpose else 'image', inputs, {}
  for i in (3, 2, 1) if transpose else (1, 2, 3):
    x = x @ (values[f'fc{i + 1}/kernel'].T if transpose else values[f'fc{i}/kernel'])
    x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)
    x = x * values[f'{side}_bn{i}/gamma'] + values[f'{side}_bn{i}/beta']
    x = hidden[i] = np.where(x > 0.0, x, 0.3 * x) * masks[f'mask{i}']
  if transpose:
    return hidden[2], x @ values['fc1/kernel'].T + values['fc1/transposed_bias']
  return hidden[2], x @ values['fc4/kernel'] + values['fc4/bias']


def _decorrelation(h):
  c = h.T @ h / len(h)
  return np.linalg.norm(c) - np.linalg.norm(np.diag(c))


def test_losses_are_those_that_numpy_computes():
  method = _build(
    match_weight=0.3,
    decorrelation_weight=0.7,
    weight_norm_weight=0.02,
    inverse_scale_weight=0.01,
  )
  rng = np.random.default_rng(0)
  for variable in method.network.trainable_variables:
    variable.assign(rng.uniform(0.5, 1.5, variable.shape) * rng.choice([-1, 1], variable.shape))
  values = {v.name.split(':')[0]: v.numpy().astype(np.float64) for v in method.network.variables}
  x = rng.normal(size=(20, FEATURES)).astype(np.float32)
  a = rng.normal(size=(20, ATTRIBUTES)).astype(np.float32)
  seed = tf.constant([5, 6])
  masks = two_way.tied_dropout_masks(seed, 20, widths=HIDDEN, rate=0.5)
  masks = {name: mask.numpy().astype(np.float64) for name, mask in masks.items()}
  h_x, a_found = _training_channel(values, x.astype(np.float64), masks, transpose=False)
  h_a, x_found = _training_channel(values, a.astype(np.float64), masks, transpose=True)
  wanted = {
    'image_reconstruction': np.mean(np.sum((x - x_found) ** 2, axis=1)),
    'attribute_reconstruction': np.mean(np.sum((a - a_found) ** 2, axis=1)),
    'match': np.mean(np.sum((h_x - h_a) ** 2, axis=1)),
    'decorrelation': _decorrelation(h_x) + _decorrelation(h_a),
    'weight_norm': sum(np.sum(v**2) for name, v in values.items() if 'kernel' in name),
    'inverse_scales': sum(np.sum(v**-2) for name, v in values.items() if 'gamma' in name),
  }
  wanted['two_way_loss'] = (
    wanted['image_reconstruction']
    + wanted['attribute_reconstruction']
    + 0.3 * wanted['match']
    + 0.7 * wanted['decorrelation']
    + 0.02 * wanted['weight_norm']
    + 0.01 * wanted['inverse_scales']
  )
  found = method.losses({'image': x, 'attributes': a, 'seed': seed})
  assert set(found) == set(wanted)
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-3, err_msg=name)


def test_scores_are_pearson_correlations_of_the_middle_layer():
  arrays = _pairs(20)
  method = _build(batch_size=10)
  batches, _ = _train(method, arrays, steps=3)
  unmasked = {f'mask{i}': np.ones([20, n]) for i, n in enumerate(HIDDEN, start=1)}
  found = method.network(
    {'features': batches.arrays['image'], 'attributes': arrays['attributes'], **unmasked}
  )
  images, descriptions = found['image_representation'], found['attribute_representation']
  assert images.shape == (20, 10)
  scores = tf.matmul(
    method.space.encode_attributes(arrays['attributes']),
    method.space.encode_images(arrays['image']),
    transpose_b=True,
  )
  np.testing.assert_allclose(scores, np.corrcoef(descriptions, images)[:20, 20:], atol=1e-4)


def test_pairs_that_were_not_trained_on_find_each_other(tmp_path):
  """Chance is 1 in 60. The saved space ranks as the trained one does."""
  method = _build(dropout=0.1, batch_norm_momentum=0.9)
  batches, report = _train(method, _pairs(), steps=200)
  method.finish(batches)
  assert all(np.isfinite(value) for value in report.values())
  arrays = _pairs(60, seed=1)
  images = method.space.encode_images(arrays['image']).numpy()
  descriptions = method.space.encode_attributes(arrays['attributes']).numpy()
  assert np.mean((descriptions @ images.T).argmax(axis=1) == np.arange(60)) > 0.4
  method.space.save(str(tmp_path / 'space'))
  loaded = JointSpace.load(str(tmp_path / 'space'))
  np.testing.assert_allclose(loaded.encode_images(arrays['image']), images, atol=1e-6)
  np.testing.assert_allclose(
    loaded.encode_attributes(arrays['attributes']), descriptions, atol=1e-6
  )


def test_only_the_two_way_network_moves():
  arrays = _pairs()
  method = _build()
  frozen = [v.numpy() for v in method.image_encoder.variables]
  before = [v.numpy() for v in method.network.trainable_variables]
  batches, _ = _train(method, arrays, steps=2)
  np.testing.assert_allclose(batches.arrays['image'].std(axis=0), np.ones(FEATURES), atol=1e-4)
  assert method.image_encoder.trainable_variables == []
  for variable, value in zip(method.image_encoder.variables, frozen):
    np.testing.assert_array_equal(variable, value)
  for variable, value in zip(method.network.trainable_variables, before):
    assert np.any(variable.numpy() != value), variable.name


def test_dropout_is_decided_by_the_seed_of_the_batch():
  method = _build()
  arrays = _pairs(20)
  batch = {'image': arrays['image'].reshape(20, -1) / 50.0, 'attributes': arrays['attributes']}

  def loss(*seed):
    return float(method.losses({**batch, 'seed': tf.constant(seed)})['two_way_loss'])

  assert loss(1, 2) == loss(1, 2)
  assert loss(1, 2) != loss(1, 3)


def test_two_replicas_see_the_decorrelation_of_the_global_batch(two_devices):
  """Without dropout, whose seed is each replica's own."""
  arrays = _pairs()
  # Not by collectives, whose keys would be shared with other strategies of this process.
  strategy = tf.distribute.MirroredStrategy(
    two_devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
  )
  reports = []
  for chosen in (tf.distribute.get_strategy(), strategy):
    with chosen.scope():
      method = _build(dropout=0.0)
    reports.append(_train(method, arrays, steps=3, strategy=chosen)[1])
  assert reports[0]['decorrelation'] > 0.01
  for name, value in reports[0].items():
    if not name.startswith('gradient_norm'):
      np.testing.assert_allclose(reports[1][name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'dropout': 1.0}, r'in \[0, 1\), not 1.0'),
    ({'representation': 3}, '0 ... 2, not 3'),
    ({'image_features': 'logits'}, "not 'logits'"),
  ],
)
def test_bad_settings_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    _build(**wrong)


def test_a_data_set_smaller_than_a_batch_is_refused_with_the_numbers():
  with pytest.raises(ValueError, match='batch of 128 needs more than the 60 training images'):
    _build(batch_size=128).prepare(_batches(_pairs(60)))
