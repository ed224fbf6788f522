"""The global batch, seen from inside a replica, and shared out to replicas. Floor 0."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def gather(x: tf.Tensor) -> tf.Tensor:
  """The batches of all replicas, concatenated in replica order.

  A loss over a *set* (a mean discrepancy, a covariance, a correlation) is not the mean of its
  values on the parts, so it must see the global batch. Every replica then computes the same
  value; `all_gather`'s gradient sums over replicas, which the trainer's one division by their
  number makes exact.

  Args:
    x: [b, ...], this replica's part; b is equal on all replicas.

  Returns:
    [b * replicas, ...]; `x` itself where there is one replica.
  """
  context = tf.distribute.get_replica_context()
  if context is None or context.num_replicas_in_sync == 1:
    return x
  gathered = context.all_gather(x, axis=0)
  # all_gather forgets the static batch size, which matrix code downstream wants to know.
  size = None if x.shape[0] is None else x.shape[0] * context.num_replicas_in_sync
  return tf.ensure_shape(gathered, [size, *x.shape[1:]])


def local(count: int | None = None) -> tf.distribute.Strategy:
  """The strategy that computes on the devices of this process.

  Args:
    count: the first so many GPUs or, where there is none, CPUs; by default all GPUs, or one CPU (a
      process has several only if it has split it).

  Returns:
    A `MirroredStrategy` on two devices or more. For one, TensorFlow's default, which adds nothing
    and computes where everything else is computed.

  Raises:
    ValueError: there are fewer devices.
  """
  gpus = tf.config.list_logical_devices('GPU')
  devices = gpus or tf.config.list_logical_devices('CPU')
  if count is None:
    count = max(len(gpus), 1)
  if not 1 <= count <= len(devices):
    kind = 'GPU' if gpus else 'CPU'
    raise ValueError(
      f'There are {len(devices)} {kind}s to compute on, not {count}.'
      if len(devices) > 1
      else f'There is one {kind} to compute on, not {count}.'
    )
  if count == 1:
    return tf.distribute.get_strategy()
  return tf.distribute.MirroredStrategy([device.name for device in devices[:count]])


def by_parts(
  function: Callable[[tf.Tensor], tf.Tensor], strategy: tf.distribute.Strategy, batch: tf.TensorSpec
) -> Callable[[tf.Tensor], tf.Tensor]:
  """`function` of a batch, with a part of the batch on each replica.

  One graph holds all replicas, because called from Python `strategy.run` runs one after the other.
  The parts are equal, ceil(B / replicas): the last row stands in for those that are missing, and
  its results are cut off. So no replica gets an empty batch, which some kernels refuse.

  Args:
    function: of rows [b, ...], each of which it treats by itself; gives [b, ...]. Its variables
      were made in the strategy's scope.
    strategy: from `local`.
    batch: what it takes, [None, ...].

  Returns:
    A graph: [B, ...] -> [B, ...], in the order of the batch.
  """
  replicas = strategy.num_replicas_in_sync
  if replicas == 1:
    return tf.function(function, input_signature=[batch])

  def all_parts(rows):
    # On the host: else the whole batch would travel to the first GPU, and its parts on from there.
    with tf.device('CPU:0'):
      count = tf.shape(rows)[0]
      size = -(-count // replicas)
      missing = tf.repeat(rows[-1:], size * replicas - count, axis=0)
      parts = tf.split(tf.concat([rows, missing], axis=0), replicas)
    values = strategy.experimental_distribute_values_from_function(
      lambda context: parts[context.replica_id_in_sync_group]
    )
    results = strategy.experimental_local_results(strategy.run(function, args=(values,)))
    with tf.device('CPU:0'):
      return tf.concat(results, axis=0)[:count]

  return tf.function(all_parts, input_signature=[batch])
