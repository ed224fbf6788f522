from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import two_way

SIZES = {'num_features': 6, 'num_attributes': 3, 'hidden': (5, 4)}


def _build(**kwargs):
  """A two-way network whose every variable has a value of its own."""
  parts = two_way.two_way(**{**SIZES, 'representation': 1, **kwargs})
  rng = np.random.default_rng(0)
  for variable in parts.network.variables:
    low = 0.5 if 'variance' in variable.name or 'gamma' in variable.name else -1.0
    variable.assign(rng.uniform(low, 1.0, variable.shape))
  return parts


def _values(network):
  return {variable.name.split(':')[0]: variable.numpy() for variable in network.variables}


def _inputs(rows=8, *, rate=0.5):
  rng = np.random.default_rng(1)
  masks = two_way.tied_dropout_masks(tf.constant([1, 2]), rows, widths=SIZES['hidden'], rate=rate)
  return {
    'features': rng.normal(size=(rows, 6)).astype(np.float32),
    'attributes': rng.integers(0, 2, (rows, 3)).astype(np.float32),
    **{name: mask.numpy() for name, mask in masks.items()},
  }


def _channel(values, inputs, order, masks, *, transpose, activation_first):
  """One channel in numpy: [W x -> BN -> leaky ReLU -> mask]* and the linear reconstruction."""
  side = 'attribute' if transpose else 'image'
  x, hidden = inputs, {}
  for i in order:
    if transpose:
      x = x @ values[f'fc{i + 1}/kernel'].T + values.get(f'fc{i + 1}/transposed_bias', 0.0)
    else:
      x = x @ values[f'fc{i}/kernel'] + values.get(f'fc{i}/bias', 0.0)
    name = f'{side}_bn{i}'

    def batch_norm(x, name=name):
      scale = values[f'{name}/gamma'] / np.sqrt(values[f'{name}/moving_variance'] + 1e-3)
      return (x - values[f'{name}/moving_mean']) * scale + values[f'{name}/beta']

    def leak(x):
      return np.where(x > 0.0, x, 0.3 * x)

    x = batch_norm(leak(x)) if activation_first else leak(batch_norm(x))
    x = hidden[i] = x * masks[i]
  if transpose:
    return hidden, x @ values['fc1/kernel'].T + values['fc1/transposed_bias']
  return hidden, x @ values['fc3/kernel'] + values['fc3/bias']


@pytest.mark.parametrize('activation_first', [False, True])
def test_both_channels_compute_what_numpy_does(activation_first):
  parts = _build(activation_first=activation_first)
  inputs, values = _inputs(), _values(parts.network)
  masks = {1: inputs['mask1'], 2: inputs['mask2']}
  kwargs = {'activation_first': activation_first}
  image, attributes = _channel(values, inputs['features'], (1, 2), masks, transpose=False, **kwargs)
  attribute, features = _channel(
    values, inputs['attributes'], (2, 1), masks, transpose=True, **kwargs
  )
  found = parts.network(inputs, training=False)
  close = {'rtol': 1e-4, 'atol': 1e-5}
  np.testing.assert_allclose(found['attribute_reconstruction'], attributes, **close)
  np.testing.assert_allclose(found['image_reconstruction'], features, **close)
  np.testing.assert_allclose(found['image_representation'], image[2], **close)
  np.testing.assert_allclose(found['attribute_representation'], attribute[2], **close)


def test_each_weight_matrix_is_one_variable_that_both_channels_use():
  parts = _build()
  kernels = [v for v in parts.network.trainable_variables if 'kernel' in v.name]
  assert [tuple(v.shape) for v in kernels] == [(6, 5), (5, 4), (4, 3)]
  inputs = _inputs(rate=0.0)
  for kernel in kernels:
    with tf.GradientTape() as tape:
      found = parts.network(inputs, training=False)
      both = [found['image_reconstruction'], found['attribute_reconstruction']]
      sums = [tf.reduce_sum(tf.square(x)) for x in both]
    both_ways = tape.gradient(sums, kernel)
    assert np.abs(both_ways).max() > 0.0
    before = [x.numpy() for x in both]
    kernel.assign_add(tf.ones_like(kernel))
    after = parts.network(inputs, training=False)
    assert np.abs(before[0] - after['image_reconstruction']).max() > 1e-3
    assert np.abs(before[1] - after['attribute_reconstruction']).max() > 1e-3


def test_batch_norms_are_each_channels_own():
  parts = two_way.two_way(**SIZES)
  scales = [v for v in parts.network.trainable_variables if 'gamma' in v.name]
  assert len(scales) == 4
  for scale in scales:
    assert np.all((scale.numpy() >= 0.95) & (scale.numpy() <= 1.05))
    assert scale.numpy().std() > 0.0
  norms = [x for x in parts.network.layers if isinstance(x, tf.keras.layers.BatchNormalization)]
  assert {(x.momentum, x.epsilon) for x in norms} == {(0.99, 1e-3)}


def test_encoders_reach_the_middle_layer_without_dropout():
  parts = _build(representation=0)
  inputs = {**_inputs(), 'mask1': np.ones([8, 5]), 'mask2': np.ones([8, 4])}
  found = parts.network(inputs, training=False)
  np.testing.assert_allclose(
    parts.image_encoder(inputs['features']), found['image_representation'], rtol=1e-6
  )
  np.testing.assert_allclose(
    parts.attribute_encoder(inputs['attributes']), found['attribute_representation'], rtol=1e-6
  )
  network = {id(v) for v in parts.network.variables}
  for encoder in (parts.image_encoder, parts.attribute_encoder):
    assert {id(v) for v in encoder.variables} < network


def test_either_encoder_survives_saving_alone(tmp_path):
  parts, inputs = _build(), _inputs()
  for encoder, x in (
    (parts.image_encoder, inputs['features']),
    (parts.attribute_encoder, inputs['attributes']),
  ):
    encoder.save(tmp_path / 'encoder.keras')
    loaded = tf.keras.models.load_model(tmp_path / 'encoder.keras')
    np.testing.assert_array_equal(loaded(x), encoder(x))


@pytest.mark.parametrize('representation', [-1, 2])
def test_a_representation_that_is_no_hidden_layer_is_refused(representation):
  with pytest.raises(ValueError, match=rf'\(5, 4\), 0 ... 1, not {representation}'):
    two_way.two_way(**{**SIZES, 'representation': representation})


def test_outputs_are_float32_under_mixed_precision():
  tf.keras.mixed_precision.set_global_policy('mixed_float16')
  try:
    parts = two_way.two_way(**SIZES)
  finally:
    tf.keras.mixed_precision.set_global_policy('float32')
  assert {output.dtype for output in parts.network(_inputs()).values()} == {tf.float32}


@pytest.mark.parametrize('rate', [0.5, 0.2])
def test_tied_dropout_preserves_the_second_moment(rate):
  """E[m^2] = (1 - p) / (1 - p) = 1, where ordinary dropout has E[m] = 1 and E[m^2] = 1 / (1 - p).

  The share of kept units over 200,000 draws is within 5 deviations, 5 * 0.5 / sqrt(2e5) = 0.0056.
  """
  (mask,) = two_way.tied_dropout_masks(tf.constant([3, 4]), 2000, widths=(100,), rate=rate).values()
  mask = mask.numpy()
  np.testing.assert_allclose(np.unique(mask), [0.0, (1.0 - rate) ** -0.5], rtol=1e-6)
  assert abs((mask > 0.0).mean() - (1.0 - rate)) < 0.0056
  np.testing.assert_allclose(np.square(mask).mean(), 1.0, atol=0.0056 / (1.0 - rate))


def test_tied_dropout_drops_the_same_units_in_both_channels():
  parts, inputs = _build(), _inputs(rows=50)
  found = parts.network(inputs, training=True)
  dropped = inputs['mask2'] == 0.0
  assert 0.3 < dropped.mean() < 0.7
  for side in ('image', 'attribute'):
    representation = found[f'{side}_representation'].numpy()
    np.testing.assert_array_equal(representation == 0.0, dropped)


def test_tied_dropout_is_decided_by_the_seed_and_differs_between_layers():
  def masks(seed):
    return two_way.tied_dropout_masks(tf.constant(seed), 64, widths=(8, 8), rate=0.5)

  one, same, other = masks([1, 2]), masks([1, 2]), masks([1, 3])
  np.testing.assert_array_equal(one['mask1'], same['mask1'])
  np.testing.assert_array_equal(one['mask2'], same['mask2'])
  assert np.any(one['mask1'] != other['mask1'])
  assert np.any(one['mask1'] != one['mask2'])


def test_pearson_norm_turns_dot_products_into_correlations():
  rng = np.random.default_rng(0)
  x, y = rng.normal(2.0, 3.0, size=(4, 9)), rng.normal(-1.0, 0.1, size=(5, 9))
  layer = two_way.PearsonNorm()
  found = tf.matmul(layer(x), layer(y), transpose_b=True)
  np.testing.assert_allclose(found, np.corrcoef(x, y)[:4, 4:], atol=1e-5)


def test_pearson_norm_of_a_constant_vector_is_zero():
  np.testing.assert_array_equal(two_way.PearsonNorm()(tf.fill([1, 4], 3.0)), np.zeros([1, 4]))
