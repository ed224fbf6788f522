"""Batch norms that train faster: all that they give and learn is what Keras's do."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from tfreid import processor
from tfreid.networks import applications, batch_norms, encoder, heads, osnet


def _step(layer, x, weights, training=True):
  """What a layer gives and what it learns from x, as float32 arrays by name."""
  x = tf.constant(x, tf.as_dtype(layer.compute_dtype))
  layer.build(x.shape)
  layer.set_weights(weights)
  with tf.GradientTape() as tape:
    tape.watch(x)
    y = tf.function(lambda value: layer(value, training=training))(x)
    score = tf.reduce_sum(tf.cast(y, tf.float32) * tf.random.stateless_normal(x.shape, [1, 2]))
  watched = [x, *layer.trainable_variables]
  found = [y, *tape.gradient(score, watched), *layer.non_trainable_variables]
  return [np.asarray(tf.cast(value, tf.float32)) for value in found]


def _maps(channels):
  random = np.random.default_rng(channels)
  return random.normal(2.0, 3.0, (4, 6, 5, channels)).astype(np.float32)


@pytest.mark.usefixtures('instructions')
@pytest.mark.parametrize('channels', [1, 8, 16, 24, 40, 72])
@pytest.mark.parametrize('scale, center', [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize('policy', ['float32', 'mixed_bfloat16'])
def test_an_accelerated_batch_norm_is_keras_own(channels, scale, center, policy):
  layers = []
  for _ in range(2):
    options = {'scale': scale, 'center': center, 'dtype': policy}
    layers.append(tf.keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **options))
  batch_norms.accelerate(layers[1])
  random = np.random.default_rng(0)
  weights = [random.uniform(0.5, 1.5, channels) for _ in range(2 + scale + center)]
  expected, found = (_step(layer, _maps(channels), weights) for layer in layers)
  assert len(found) == 4 + scale + center
  rounding = 2**-7 if policy == 'mixed_bfloat16' else 1e-5
  for one, other in zip(expected, found):
    np.testing.assert_allclose(other, one, rtol=rounding, atol=1e-5 * np.abs(one).max())
  # What is learned is float32 in both, so that nothing of it is lost in rounding.
  for one, other in zip(expected[2:], found[2:]):
    np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())
  assert layers[0].get_config().keys() == layers[1].get_config().keys()


def _channels_of_kernels(layer, x, training=True):
  """The channels that Keras's kernels are given while a layer is traced."""
  function = tf.function(lambda value: layer(value, training=training))
  graph = function.get_concrete_function(tf.TensorSpec(x.shape, x.dtype)).graph
  return [op.inputs[1].shape[0] for op in graph.get_operations() if 'FusedBatchNorm' in op.type]


@pytest.fixture
def instructions(monkeypatch):
  """Sets what the processor can do; AVX-512 unless a test says otherwise."""

  def set_to(*flags):
    monkeypatch.setattr(processor, 'processor', lambda: processor.Processor(flags=flags))

  set_to('avx2', 'avx512f', 'avx512bw')
  monkeypatch.delenv('ONEDNN_MAX_CPU_ISA', raising=False)
  monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', '1')
  return set_to


@pytest.mark.usefixtures('instructions')
def test_only_what_is_slow_in_training_is_computed_otherwise():
  layers = {name: heads.batch_norm(dtype=name) for name in ('float32', 'mixed_bfloat16')}
  x = tf.constant(_maps(24))
  assert _channels_of_kernels(layers['mixed_bfloat16'], x) == [32]
  assert _channels_of_kernels(layers['float32'], x) == []
  for layer in layers.values():
    assert _channels_of_kernels(layer, x, training=False) == [24]
    layer.trainable = False  # Keras's way to freeze: the statistics stay
    assert _channels_of_kernels(layer, x) == [24]


@pytest.mark.parametrize(
  'flags, onednn, kind, slow',
  [
    (('avx2', 'avx512bw'), '1', tf.float32, {24, 40}),
    (('avx2', 'avx512bw'), '1', tf.bfloat16, {24, 40}),
    (('avx2',), '1', tf.float32, {16, 24, 40, 64}),
    (('avx2',), '1', tf.bfloat16, set()),
    (('avx2', 'avx512bw'), '1', tf.float16, set()),
    (('asimd', 'bf16'), '1', tf.float32, set()),
    ((), '1', tf.float32, set()),
    (('avx2', 'avx512bw'), '0', tf.float32, set()),
  ],
)
def test_what_is_slow_depends_on_the_instructions(
  instructions, monkeypatch, flags, onednn, kind, slow
):
  instructions(*flags)
  monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', onednn)
  found = {c for c in (16, 24, 40, 64) if batch_norms._faster(kind, c, flags) is not None}
  assert found == slow


def test_what_onednn_is_told_to_do_without_is_not_there(instructions, monkeypatch):
  instructions('avx2', 'avx512bw')
  monkeypatch.setenv('ONEDNN_MAX_CPU_ISA', 'avx2')
  assert batch_norms._faster(tf.float32, 16, ('avx2', 'avx512bw')) is batch_norms._by_rows
  monkeypatch.setenv('ONEDNN_MAX_CPU_ISA', 'AVX512_CORE')
  assert batch_norms._faster(tf.float32, 16, ('avx2', 'avx512bw')) is None


@pytest.mark.parametrize('policy', ['float32', 'mixed_bfloat16'])
@pytest.mark.parametrize('kind', ['Conv2D', 'DepthwiseConv2D'])
def test_inference_is_keras_own(instructions, policy, kind):
  instructions('avx2')
  random = np.random.default_rng(0)
  given = tf.keras.Input([None, 5, 24])
  options = {'padding': 'same', 'use_bias': False, 'dtype': policy}
  convolution = getattr(tf.keras.layers, kind)
  x = convolution(3, **options)(given) if 'Depth' in kind else convolution(24, 3, **options)(given)
  norms = heads.batch_norm(dtype=policy), tf.keras.layers.BatchNormalization(dtype=policy)
  model = tf.keras.Model(given, [norm(x) for norm in norms])
  weights = [random.uniform(0.5, 1.5, 24) for _ in range(4)]
  for norm in norms:
    norm.epsilon = 1e-3
    norm.set_weights(weights)
  function = tf.function(lambda value: model(value, training=False))
  found, expected = (tf.cast(value, tf.float32) for value in function(_maps(24)))
  rounding = 2**-7 if policy == 'mixed_bfloat16' else 1e-5
  np.testing.assert_allclose(found, expected, rtol=rounding, atol=1e-4)
  graph = function.get_concrete_function(tf.TensorSpec([2, 6, 5, 24])).graph
  kernels = [op for op in graph.get_operations() if 'FusedBatchNorm' in op.type]
  assert len(kernels) == (1 if policy == 'float32' and 'Depth' in kind else 2)


@pytest.mark.usefixtures('instructions')
@pytest.mark.parametrize('policy', ['float32', 'mixed_bfloat16'])
def test_what_is_decided_while_it_runs_is_decided_by_keras(policy):
  """Whether it trains may be a tensor."""
  layer, reference = (heads.batch_norm(dtype=policy) for _ in range(2))
  x = tf.cast(_maps(24), tf.as_dtype(layer.compute_dtype))
  function = tf.function(lambda value, training: layer(value, training=training))
  for training in (True, False):
    found = tf.cast(function(x, tf.constant(training)), tf.float32)
    expected = tf.cast(reference(x, training=training), tf.float32)
    rounding = 2**-7 if policy == 'mixed_bfloat16' else 1e-5
    np.testing.assert_allclose(found, expected, rtol=rounding, atol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, reference.moving_mean, rtol=1e-4)


@pytest.mark.usefixtures('instructions')
def test_values_far_from_zero_are_normalised_as_well():
  """The variance is that of what is centred: of 1e4 + noise nothing is lost but what float32 is."""
  layer = heads.batch_norm()
  x = 1e4 + _maps(24)
  y = layer(tf.constant(x), training=True).numpy()
  expected = (x - x.mean((0, 1, 2), np.float64)) / x.std((0, 1, 2), np.float64)
  np.testing.assert_allclose(y, expected, atol=2e-3)


@pytest.mark.usefixtures('instructions')
@pytest.mark.parametrize('policy', ['float32', 'mixed_bfloat16'])
def test_maps_of_unknown_size_are_normalised_too(policy):
  layer = heads.batch_norm(dtype=policy)
  kind = tf.as_dtype(layer.compute_dtype)
  function = tf.function(
    lambda value: layer(value, training=True),
    input_signature=[tf.TensorSpec([None, None, None, 24], kind)],
  )
  x = tf.cast(_maps(24), kind)
  y = tf.cast(function(x), tf.float32)
  assert y.shape == x.shape
  np.testing.assert_allclose(tf.reduce_mean(y, [0, 1, 2]), np.zeros(24), atol=1e-2)
  np.testing.assert_allclose(tf.math.reduce_std(y, [0, 1, 2]), np.ones(24), atol=1e-2)


def test_networks_of_keras_have_such_batch_norms_too():
  model = applications.application((32, 32, 3), 8, name='MobileNetV3Small')
  norms = [x for x in model.layers if isinstance(x, tf.keras.layers.BatchNormalization)]
  assert any(norm.gamma.shape[0] % 16 for norm in norms)
  accelerated = [norm._fused_batch_norm for norm in norms]
  assert all(isinstance(method, functools.partial) for method in accelerated)
  for norm in norms:
    batch_norms.accelerate(norm)  # a second time
  assert [norm._fused_batch_norm for norm in norms] == accelerated


@pytest.mark.usefixtures('instructions')
def test_encoders_have_such_batch_norms():
  tf.keras.mixed_precision.set_global_policy('mixed_bfloat16')
  model = osnet.osnet((32, 16, 3), 8, width=0.25)
  function = tf.function(lambda pixels: model(pixels, training=True))
  graph = function.get_concrete_function(tf.TensorSpec([2, 32, 16, 3])).graph
  kernels = [op for op in graph.get_operations() if 'FusedBatchNorm' in op.type]
  assert len(kernels) == 79
  assert {op.inputs[1].shape[0] for op in kernels} == {16, 32, 64, 96, 128}
  norms = [x for x in model.layers if isinstance(x, tf.keras.layers.BatchNormalization)]
  assert sum(norm.gamma.shape == [24] for norm in norms) == 22
  assert encoder.features(model).layers[-1].name == encoder.FEATURES
