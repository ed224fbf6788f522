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
