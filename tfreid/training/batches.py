"""Where a stage's image batches come from, and how batches reach the replicas. Floor 4."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from tfreid.data.attributes import AttributeSchema
from tfreid.data.benchmark import Split
from tfreid.data.pipeline import Pipeline
from tfreid.data.samplers import Sampler


class ImageBatches:
  """The `tfreid.methods.method.Batches` of a split of images.

  Attributes:
    pipeline: decodes and augments.
    split: the images.
    batch_size: of the global batch.
    seed: of the run.
  """

  def __init__(
    self,
    pipeline: Pipeline,
    split: Split,
    schema: AttributeSchema | None,
    *,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    sampler: Sampler | None = None,
  ):
    """Binds them together.

    Args:
      pipeline: decodes and augments.
      split: the images.
      schema: groups of attribute columns, for attribute dropout; None where there are none.
      seed: of order and augmentation.
      shard: (index, count) of this worker: which slice of each global batch it feeds.
      sampler: chooses the images of an epoch; None takes each once.
    """
    self.pipeline = pipeline
    self.split = split
    self.schema = schema
    self.batch_size = pipeline.batch_size
    self.seed = seed
    self.shard = shard
    self.sampler = sampler

  @property
  def drops_attributes(self) -> bool:
    """Whether the attributes of `training` differ from epoch to epoch."""
    return self.pipeline.attribute_dropout > 0

  def training(self, epoch: int) -> tf.data.Dataset:
    """One epoch, shuffled and augmented."""
    return self.pipeline.training(
      self.split,
      seed=self.seed,
      epoch=epoch,
      schema=self.schema,
      shard=self.shard,
      sampler=self.sampler,
    )

  def evaluation(self) -> tf.data.Dataset:
    """The images once, in order, unaugmented."""
    return self.pipeline.evaluation(self.split)

  def explain(self, error: Exception) -> Exception:
    """What to raise when reading these batches failed: names the file that cannot be read."""
    return self.pipeline.explain(error, self.split)


def distributed(
  dataset: tf.data.Dataset, strategy: tf.distribute.Strategy, *, workers: int = 1
) -> Iterator:
  """Iterates this worker's slices of the global batches, split over its local replicas.

  Which slice is a worker's is decided by `shard` and not by TensorFlow's automatic sharding, whose
  order of images would depend on the number of workers.

  Raises:
    ValueError: a slice cannot be split evenly over the local replicas.
  """
  local = strategy.num_replicas_in_sync // workers
  if strategy.num_replicas_in_sync == 1:
    return iter(dataset)
  size = int(tf.nest.flatten(dataset.element_spec)[0].shape[0])
  if size % local:
    raise ValueError(
      f'A batch of {size} images per worker cannot be split evenly over {local} devices. Choose a '
      f'Pipeline.batch_size that is a multiple of {strategy.num_replicas_in_sync}.'
    )
  return iter(
    strategy.distribute_datasets_from_function(lambda context: dataset.rebatch(size // local))
  )
