from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid import replicas


@pytest.fixture(scope='module')
def pair(two_devices):
  return tf.distribute.MirroredStrategy(
    two_devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
  )


def parts(strategy, array):
  """Each replica's equal part of the rows, in replica order."""
  size = len(array) // strategy.num_replicas_in_sync
  return strategy.experimental_distribute_values_from_function(
    lambda context: tf.constant(array[context.replica_id_in_sync_group * size :][:size])
  )


def test_one_replica_gathers_nothing():
  x = tf.constant([[1.0], [2.0]])
  assert replicas.gather(x) is x
  found = tf.distribute.OneDeviceStrategy('CPU:0').run(replicas.gather, args=(x,))
  np.testing.assert_array_equal(found, x)


def test_every_replica_sees_all_parts_in_replica_order(pair):
  array = np.arange(12, dtype=np.float32).reshape(6, 2)

  @tf.function
  def gathered(values):
    return pair.run(replicas.gather, args=(values,))

  for found in pair.experimental_local_results(gathered(parts(pair, array))):
    np.testing.assert_array_equal(found, array)


def test_gathered_batch_has_a_static_size(pair):
  shapes = []

  def note(values):
    shapes.append(replicas.gather(values).shape)
    return tf.reduce_sum(values)

  @tf.function
  def run(values):
    return pair.run(note, args=(values,))

  run(parts(pair, np.zeros([6, 2], np.float32)))
  assert {tuple(shape) for shape in shapes} == {(6, 2)}


def test_gradient_of_a_set_loss_is_that_of_the_global_batch(pair):
  """The loss is ||sum of all rows||^2, whose gradient is 2 sum for each row, on every replica.

  Replicas' gradients are added up and the trainer divides by their number once: so is it here.
  """
  array = np.arange(8, dtype=np.float32).reshape(4, 2)
  with pair.scope():
    scale = tf.Variable(1.0)

  def replica(values):
    with tf.GradientTape() as tape:
      total = tf.reduce_sum(replicas.gather(scale * values), axis=0)
      loss = tf.reduce_sum(tf.square(total)) / pair.num_replicas_in_sync
    return tape.gradient(loss, scale)

  @tf.function
  def run(values):
    return pair.reduce('SUM', pair.run(replica, args=(values,)), axis=None)

  expected = 2.0 * np.sum(np.sum(array, axis=0) ** 2)
  assert float(run(parts(pair, array))) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize('count', [0, 1, 2, 3, 5, 8])
def test_a_batch_is_shared_out_and_put_together_in_its_order(pair, count):
  with pair.scope():
    factor = tf.Variable(0.0)
  # As a mirrored variable never is: to see which replica made which row.
  for value, component in zip((10.0, 100.0), factor.values):
    component.assign(value)
  sizes = []

  def times(rows):
    sizes.append(rows.shape)
    tf.debugging.assert_positive(tf.size(rows) + tf.cast(count == 0, tf.int32))
    return factor * tf.cast(rows, tf.float32)

  shared = replicas.by_parts(times, pair, tf.TensorSpec([None, 2], tf.int32))
  rows = np.arange(1, 2 * count + 1, dtype=np.int32).reshape(count, 2)
  first = -(-count // 2)
  expected = np.concatenate([10.0 * rows[:first], 100.0 * rows[first:]])
  np.testing.assert_array_equal(shared(tf.constant(rows, shape=[count, 2])), expected)
  assert len(sizes) == 2  # traced for each replica, into one graph


def test_texts_are_shared_out_too(pair):
  shared = replicas.by_parts(tf.strings.length, pair, tf.TensorSpec([None], tf.string))
  np.testing.assert_array_equal(shared(tf.constant(['a', 'bb', 'ccc'])), [1, 2, 3])


def test_on_one_device_nothing_is_shared_out(two_devices):
  strategy = replicas.local()
  assert strategy.num_replicas_in_sync == 1
  double = replicas.by_parts(lambda rows: 2 * rows, strategy, tf.TensorSpec([None], tf.int32))
  nodes = double.get_concrete_function().graph.get_operations()
  assert {node.type for node in nodes} <= {'Placeholder', 'Const', 'Mul', 'Identity'}
  np.testing.assert_array_equal(double(tf.constant([3, 4])), [6, 8])


def test_as_many_devices_as_there_are(two_devices):
  assert replicas.local(1).num_replicas_in_sync == 1
  strategy = replicas.local(2)
  assert [device[-5:] for device in strategy.extended.worker_devices] == ['CPU:0', 'CPU:1']
  for count in (0, 3):
    with pytest.raises(ValueError, match=f'There are 2 CPUs to compute on, not {count}'):
      replicas.local(count)
