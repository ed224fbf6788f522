from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data.batches import ArrayBatches
from tfreid.data.pipeline import Pipeline
from tfreid.training.batches import ImageBatches, distributed


def batches(size, *, shard=(0, 1)):
  arrays = {'row': np.arange(24), 'image': np.arange(48.0).reshape(24, 2)}
  return ArrayBatches(arrays, batch_size=size, seed=5, shard=shard)


def rows(iterator, strategy):
  """Rows of each step, by local replica."""
  return [
    [part.numpy().tolist() for part in strategy.experimental_local_results(batch['row'])]
    for batch in iterator
  ]


@pytest.fixture(scope='module')
def pair(two_devices):
  return tf.distribute.MirroredStrategy(two_devices)


def test_two_replicas_share_the_batch_that_one_would_see(pair):
  alone = tf.distribute.OneDeviceStrategy('CPU:0')
  whole = rows(distributed(batches(8).training(0), alone), alone)
  shared = rows(distributed(batches(8).training(0), pair), pair)
  assert len(whole) == 3
  assert [first + second for first, second in shared] == [batch for (batch,) in whole]
  assert all(len(first) == 4 for first, _ in shared)


def test_workers_slices_make_up_the_global_batch():
  """Two workers with one replica each: what each is fed, one behind the other."""
  alone = tf.distribute.OneDeviceStrategy('CPU:0')
  whole = rows(distributed(batches(8).training(1), alone), alone)
  workers = [
    rows(distributed(batches(8, shard=(index, 2)).training(1), alone), alone) for index in (0, 1)
  ]
  assert [a + b for (a,), (b,) in zip(*workers)] == [batch for (batch,) in whole]


def test_batch_that_cannot_be_split_is_refused(pair):
  with pytest.raises(ValueError, match='9 images per worker cannot be split evenly over 2 devices'):
    distributed(batches(9).training(0), pair)


def test_image_batches_are_the_pipelines(tiny_market):
  from tfreid.data import market1501

  benchmark = market1501.load(tiny_market)
  pipeline = Pipeline((16, 8), 8, flip=True)
  images = ImageBatches(pipeline, benchmark.train, benchmark.schema, seed=5)
  assert images.batch_size == 8
  direct = pipeline.training(benchmark.train, seed=5, epoch=2, schema=benchmark.schema)
  for ours, theirs in zip(images.training(2), direct):
    for name in ('image', 'attributes', 'semantic_id'):
      np.testing.assert_array_equal(ours[name], theirs[name])
  ids = np.concatenate([batch['semantic_id'] for batch in images.evaluation()])
  np.testing.assert_array_equal(ids, benchmark.train.semantic_ids)
