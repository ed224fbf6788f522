"""The global batch, seen from inside a replica. Floor 0."""

from __future__ import annotations

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
