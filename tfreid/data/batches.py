"""Batches of arrays that are already in memory, such as frozen features. Floor 1."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf


class ArrayBatches:
  """Batches of named arrays with a common first dimension, in the form methods are fed.

  Has the members of `tfreid.methods.method.Batches`; `Method.prepare` returns one when it replaces
  images by something computed once.

  Attributes:
    arrays: name -> array [N, ...].
    batch_size: of the global batch.
    seed: of the run; (seed, epoch) decides the order.
  """

  def __init__(
    self,
    arrays: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
  ):
    """Checks the sizes.

    Args:
      arrays: name -> array [N, ...].
      batch_size: of the global batch; 0 means all N at once.
      seed: of the run.
      shard: (index, count) of this worker: which slice of each global batch it feeds.

    Raises:
      ValueError: lengths differ, or there are fewer rows than one batch needs.
    """
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) != 1:
      raise ValueError(f'Arrays of different length cannot be batched together: {sizes}.')
    count = next(iter(sizes.values()))
    self.batch_size = batch_size or count
    if self.batch_size > count:
      raise ValueError(
        f'A batch of {self.batch_size} needs more than the {count} training images there are. '
        'Lower the batch size.'
      )
    if self.batch_size % shard[1]:
      raise ValueError(
        f'A batch of {self.batch_size} cannot be split evenly over {shard[1]} workers.'
      )
    self.arrays = dict(arrays)
    self.seed = seed
    self.shard = shard

  def training(self, epoch: int) -> tf.data.Dataset:
    """One epoch in an order decided by (seed, epoch); a last partial batch is dropped."""
    count = len(next(iter(self.arrays.values())))
    order = np.random.default_rng([self.seed, epoch]).permutation(count)
    steps = count // self.batch_size
    index, workers = self.shard
    order = order[: steps * self.batch_size].reshape(steps, workers, -1)[:, index]
    tensors = {name: tf.constant(array) for name, array in self.arrays.items()}
    local = self.batch_size // workers

    def batch(rows):
      rows = tf.ensure_shape(rows, [local])
      return {name: tf.gather(tensor, rows) for name, tensor in tensors.items()}

    dataset = tf.data.Dataset.from_tensor_slices(order.astype(np.int64))
    return dataset.map(batch).prefetch(tf.data.AUTOTUNE)

  def evaluation(self) -> tf.data.Dataset:
    """All rows once, in order; the last batch may be partial."""
    return tf.data.Dataset.from_tensor_slices(self.arrays).batch(self.batch_size)
