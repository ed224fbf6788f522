"""The input pipeline, from a Split to batches. Floor 1."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfreid import image_bytes
from tfreid.data import augmentation, image_files
from tfreid.data.attributes import AttributeSchema
from tfreid.data.augmentation import Stream
from tfreid.data.benchmark import Split
from tfreid.data.image_files import Progress
from tfreid.data.samplers import Sampler

_log = logging.getLogger(__name__)

# The mean pixel of ImageNet, RGB: what an erased area becomes is 0 after normalisation.
MEAN_PIXEL = (124.0, 116.0, 104.0)

BAD_IMAGE_CHOICES = ('error', 'skip', 'skip_also_in_test')


class Pipeline:
  """Batches of a split: for training shuffled and augmented, for evaluation in order.

  A batch is {'image': float32 [B, H, W, 3] in 0 ... 255, 'attributes': float32 [B, A],
  'semantic_id': int64 [B]}.

  All randomness is decided by (seed, epoch) and the position of the example in the epoch, so an
  epoch is bit for bit the same whenever it is repeated, with any number of threads or workers.

  Attributes:
    left_out: path of each file that `without_unreadable` left out, to what is wrong with it.
  """

  def __init__(
    self,
    image_size: Sequence[int] = (256, 128),
    batch_size: int = 128,
    *,
    flip: bool = True,
    crop: float = 0.0,
    erase: float = 0.0,
    erase_size: Sequence[float] = (0.25, 0.5),
    attribute_dropout: float = 0.0,
    keep_at_least: int = 1,
    cache: bool = False,
    cache_gib: float = 8.0,
    on_bad_image: str = 'error',
    num_parallel_calls: int | None = None,
    prefetch: int = 2,
  ):
    """Settings, none of which depends on the data.

    Args:
      image_size: (height, width) in pixels, to which each image is resized.
      batch_size: examples per step, over all replicas and workers.
      flip: mirror half of the training images.
      crop: share of the training images that are cropped at random (Open-ReID's random area crop,
        `augmentation.crop_boxes`).
      erase: share of the training images in which a window is erased (cutout).
      erase_size: height and width of the window as shares of the image's.
      attribute_dropout: chance of each attribute of a training example to become "not said". Only
        for the three-state encoding.
      keep_at_least: attributes of an example that are never dropped.
      cache: keep the decoded and resized images in memory, height x width x 3 bytes each.
      cache_gib: memory that all cached splits together may take.
      on_bad_image: 'error'; or 'skip': `check` then leaves unreadable files out of what is trained
        on, and refuses them in what is evaluated; or 'skip_also_in_test': it leaves them out there
        too, which makes another test of it: its numbers stand beside no other's.
      num_parallel_calls: images decoded at a time; None leaves it to tf.data.
      prefetch: batches kept ready.

    Raises:
      ValueError: a setting is out of range.
    """
    self.image_size = _pair('image_size', image_size)
    self.batch_size = batch_size
    self.flip = flip
    self.crop = crop
    self.erase = erase
    self.erase_size = _pair('erase_size', erase_size)
    self.attribute_dropout = attribute_dropout
    self.keep_at_least = keep_at_least
    self.cache = cache
    self.cache_gib = cache_gib
    self.on_bad_image = on_bad_image
    self.num_parallel_calls = num_parallel_calls
    self.prefetch = prefetch
    for name in ('batch_size', 'prefetch', 'keep_at_least'):
      _check_whole(name, getattr(self, name), 1)
    for size in self.image_size:
      _check_whole('image_size', size, 1)
    if num_parallel_calls is not None:
      _check_whole('num_parallel_calls', num_parallel_calls, 1)
    for name in ('crop', 'erase', 'attribute_dropout'):
      if not 0.0 <= getattr(self, name) <= 1.0:
        raise ValueError(f'{name} is a share in [0, 1], not {getattr(self, name)}.')
    if not all(0.0 < share <= 1.0 for share in self.erase_size):
      raise ValueError(f'erase_size is two shares in (0, 1], not {self.erase_size}.')
    if not cache_gib > 0:
      raise ValueError(f'cache_gib must be positive, not {cache_gib}.')
    if on_bad_image not in BAD_IMAGE_CHOICES:
      raise ValueError(
        f'Pipeline.on_bad_image is one of {", ".join(BAD_IMAGE_CHOICES)}, not {on_bad_image!r}.'
      )
    self._cached: dict[str, tf.Tensor] = {}
    self.left_out: dict[str, str] = {}

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, 3) of the images."""
    return (*self.image_size, 3)

  def num_batches(self, split: Split) -> int:
    """Number of training batches in an epoch; the remainder is dropped.

    Raises:
      ValueError: the split does not fill one batch.
    """
    if len(split) < self.batch_size:
      raise ValueError(
        f'The training split has {len(split)} images, fewer than one batch of {self.batch_size}. '
        f'Set Pipeline.batch_size to {len(split)} or less, or train on more images.'
      )
    return len(split) // self.batch_size

  def training(
    self,
    split: Split,
    *,
    seed: int,
    epoch: int,
    schema: AttributeSchema | None = None,
    shard: tuple[int, int] = (0, 1),
    sampler: Sampler | None = None,
  ) -> tf.data.Dataset:
    """Shuffled and augmented batches of one epoch; the remainder is dropped.

    With several workers, each reads its own part of each batch and decodes nothing else:

      strategy.distribute_datasets_from_function(
        lambda context: pipeline.training(
          split, seed=seed, epoch=epoch,
          shard=(context.input_pipeline_id, context.num_input_pipelines),
        ).rebatch(context.get_per_replica_batch_size(pipeline.batch_size))
      )

    The parts, one behind the other, are the batch that a single worker would read. That function
    expects batches of the size of a replica, hence the `rebatch`. With one worker,
    `strategy.experimental_distribute_dataset(pipeline.training(...))` does the same.

    Args:
      split: the examples.
      seed: of the run, not negative.
      epoch: number of the epoch, not negative.
      schema: of the attributes; needed for `attribute_dropout`.
      shard: (index, count) of the worker. Batches then hold batch_size / count examples.
      sampler: chooses the examples of the epoch; by default each is taken once, shuffled.

    Returns:
      Dataset of `num_batches(split)` dicts, or as many as the sampler fills.

    Raises:
      ValueError: the split is smaller than a batch, the shards do not divide the batch, attributes
        cannot be dropped under this schema, or an image could not be read while filling the cache.
    """
    _check_whole('seed', seed, 0)
    _check_whole('epoch', epoch, 0)
    order, positions = self._epoch(split, seed, epoch, shard, sampler)
    groups = self._droppable(schema) if self.attribute_dropout else ()
    draws = {
      stream: augmentation.draws(seed, epoch, stream, (len(order), *width)).numpy()[positions]
      for stream, width in self._streams(groups).items()
    }
    if self.erase:
      _tensorflow_addons()
    images = self.load(split) if self.cache else None
    batch_size = self.batch_size // shard[1]
    examples = self._examples(
      split, order[positions], batch_size, images=images, draws=draws, drop=True
    )
    return self._finished(examples, self._augment(tuple(draws), groups), images)

  def _epoch(
    self, split: Split, seed: int, epoch: int, shard: tuple[int, int], sampler: Sampler | None
  ) -> tuple[np.ndarray, np.ndarray]:
    """The order of an epoch's examples, rows of the split, and the places in it of the shard."""
    index, count = shard
    if not 0 <= index < count:
      raise ValueError(
        f'shard=({index}, {count}): the index of {count} shards is 0 ... {count - 1}.'
      )
    if self.batch_size % count:
      raise ValueError(
        f'batch_size={self.batch_size} cannot be divided among {count} workers. '
        f'Set Pipeline.batch_size to a multiple of {count}.'
      )
    if sampler is None:
      num_batches = self.num_batches(split)
      order = np.random.default_rng([seed, epoch, int(Stream.ORDER)]).permutation(len(split))
    else:
      order = sampler(split.semantic_ids, seed=seed, epoch=epoch, batch_size=self.batch_size)
      num_batches = len(order) // self.batch_size
    positions = np.arange(num_batches * self.batch_size).reshape(num_batches, count, -1)
    return order, positions[:, index].reshape(-1)

  def _streams(self, groups: tuple[int, ...]) -> dict[Stream, tuple[int, ...]]:
    """What is drawn for each example: the stream, and the shape of its numbers."""
    streams: dict[Stream, tuple[int, ...]] = {}
    if self.flip:
      streams[Stream.FLIP] = ()
    if self.crop:
      streams[Stream.CROP] = (augmentation.CROP_DRAWS,)
    if self.erase:
      streams[Stream.ERASE] = (3,)
    if self.attribute_dropout:
      streams[Stream.ATTRIBUTES] = (max(groups) + 1,)
    return streams

  def _augment(self, streams: tuple[Stream, ...], groups: tuple[int, ...]) -> Callable:
    """(batch, what was drawn from the streams) -> the batch, augmented."""

    def augment(batch, draws):
      image, attributes = batch['image'], batch['attributes']
      draws = dict(zip(streams, draws))
      if self.flip:
        image = augmentation.flip(image, draws[Stream.FLIP])
      if self.crop:
        image = augmentation.crop(image, augmentation.crop_boxes(draws[Stream.CROP], self.crop))
      image = tf.cast(image, tf.float32)
      if self.erase:
        image = self._erase(image, draws[Stream.ERASE])
      if self.attribute_dropout:
        attributes = augmentation.drop_attributes(
          attributes,
          draws[Stream.ATTRIBUTES],
          groups=groups,
          rate=self.attribute_dropout,
          keep_at_least=self.keep_at_least,
        )
      return {**batch, 'image': image, 'attributes': attributes}

    return augment

  def evaluation(self, split: Split, *, batch_size: int | None = None) -> tf.data.Dataset:
    """Batches of all images in the order of the split, not augmented.

    Args:
      split: the examples.
      batch_size: if other than that of training. The last batch may be smaller.
    """
    batch_size = self.batch_size if batch_size is None else batch_size
    _check_whole('batch_size', batch_size, 1)
    images = None
    # A gallery that no longer fits into the cache is only read more slowly, no reason to fail.
    if self.cache and (_key(split) in self._cached or self._size(split) <= self._free()):
      images = self.load(split)
    examples = self._examples(
      split, np.arange(len(split)), batch_size, images=images, draws={}, drop=False
    )

    def as_float(batch, draws):
      return {**batch, 'image': tf.cast(batch['image'], tf.float32)}

    return self._finished(examples, as_float, images)

  def load(self, split: Split, *, progress: Progress | None = None) -> tf.Tensor:
    """The decoded and resized images of a split, uint8 [N, H, W, 3], kept for later calls.

    With `cache` the other methods call it; call it before them to show its progress.

    Raises:
      ValueError: they do not fit into `cache_gib`, or one of them cannot be read.
    """
    key = _key(split)
    if key in self._cached:
      return self._cached[key]
    needed, free = self._size(split), self._free()
    if needed > free:
      raise ValueError(
        f'Caching {len(split)} images of {self.image_size[0]}x{self.image_size[1]} takes '
        f'{needed / 2**30:.2g} GiB, but of Pipeline.cache_gib={self.cache_gib:g} only '
        f'{free / 2**30:.2g} GiB are left. Raise it if the machine has the memory, or set '
        'Pipeline.cache to False.'
      )
    images = _aligned((len(split), *self.image_shape))
    done = 0
    try:
      for batch in self._decoded(split.paths).batch(64).prefetch(1):
        images[done : done + len(batch)] = batch.numpy()
        done += len(batch)
        if progress:
          progress(done, len(split))
    except tf.errors.OpError as error:
      raise self.explain(error, split) from error
    _log.info('Keeping %d images in memory, %.2g GiB.', len(split), needed / 2**30)
    # The tensor shares the array's memory; a constant would be a second copy of it.
    self._cached[key] = tf.experimental.dlpack.from_dlpack(images.__dlpack__())
    return self._cached[key]

  def check(
    self, split: Split, *, evaluated: bool = False, progress: Progress | None = None
  ) -> Split:
    """The split as this pipeline will read it.

    With on_bad_image='error' that is the split itself and costs nothing: a bad file shows up when
    it is read, and `explain` names it. Otherwise each file is decoded once.

    Do this before the sizes of the data are measured: a semantic ID may lose its only image.

    Args:
      split: the examples.
      evaluated: results are told of it (a test or a validation split), so that it must not shrink
        unless on_bad_image='skip_also_in_test' says so.
      progress: called after each thousand files.

    Raises:
      ValueError: none can be read, or some of an evaluated split cannot.
    """
    if self.on_bad_image == 'error':
      return split
    if not evaluated or self.on_bad_image == 'skip_also_in_test':
      return self.without_unreadable(split, progress=progress)
    bad = self.unreadable(split, progress=progress)
    if len(bad):
      path = split.paths[bad[0]]
      raise ValueError(
        f'{len(bad)} of the {len(split)} images that are to be evaluated on are unreadable, {path} '
        f'first ({image_files.reason(path)}). Without them it would be another test. Replace or '
        "repair them, or set Pipeline.on_bad_image to 'skip_also_in_test' and say so beside the "
        'numbers.'
      )
    return split

  def without_unreadable(self, split: Split, *, progress: Progress | None = None) -> Split:
    """The split without the files that cannot be decoded; their number is logged.

    `left_out` then has their paths and what is wrong with them.

    Returns:
      `split` itself if all are sound, or a Split with semantic IDs numbered anew and the count in
      `dropped['unreadable']`.

    Raises:
      ValueError: none can be read.
    """
    bad = self.unreadable(split, progress=progress)
    if not len(bad):
      return split
    reasons = {str(split.paths[i]): image_files.reason(split.paths[i]) for i in bad}
    first, reason = next(iter(reasons.items()))
    if len(bad) == len(split):
      raise ValueError(
        f'None of the {len(split)} images can be read, {first} for one ({reason}). '
        f'{image_bytes.KINDS} are expected.'
      )
    self.left_out.update(reasons)
    kept = split.subset(np.setdiff1d(np.arange(len(split)), bad))
    _log.warning(
      'Left out: %d of %d images, which are unreadable, %s first (%s). %d images with %d semantic '
      'IDs of %d remain.',
      *(len(bad), len(split), first, reason, len(kept), len(kept.keys), len(split.keys)),
    )
    dropped = dict(kept.dropped)
    dropped['unreadable'] = dropped.get('unreadable', 0) + len(bad)
    return dataclasses.replace(kept, dropped=dropped)

  def unreadable(self, split: Split, *, progress: Progress | None = None) -> np.ndarray:
    """Positions (int64 [M], ascending) of the files of a split that cannot be decoded.

    The files are decoded as for training, in parallel, and not kept.
    """

    return image_files.undecodable(split.paths, parallel=self._parallel, progress=progress)

  def explain(self, error: Exception, split: Split) -> Exception:
    """What to raise when reading batches of `split` failed with `error`.

    Args:
      error: as TensorFlow raised it; it says what was wrong with a file but not with which.
      split: that was being read.

    Returns:
      A ValueError that names the file, found by decoding all of them, or `error` itself if all
      can be decoded and it must have another cause.
    """
    if not isinstance(error, tf.errors.OpError):
      return error
    bad = self.unreadable(split)
    if not len(bad):
      return error
    path = split.paths[bad[0]]
    others = f' So are {len(bad) - 1} others of the {len(split)}.' if len(bad) > 1 else ''
    return ValueError(
      f'{path} is unreadable: {image_files.reason(path)}.{others} '
      f'One of {image_bytes.KINDS} is expected, whole. '
      "Replace or remove what is broken, or set Pipeline.on_bad_image to 'skip' to leave it out."
    )

  @property
  def _parallel(self) -> int:
    return tf.data.AUTOTUNE if self.num_parallel_calls is None else self.num_parallel_calls

  def _decoded(self, paths: np.ndarray) -> tf.data.Dataset:
    """Images of the files, uint8 [H, W, 3] each, in the order of `paths`."""
    dataset = image_files.images(paths, self.image_size, parallel=self._parallel)
    return dataset.map(lambda _, image: image)

  def _examples(
    self,
    split: Split,
    rows: np.ndarray,
    batch_size: int,
    *,
    images: tf.Tensor | None,
    draws: Mapping[Stream, np.ndarray],
    drop: bool,
  ) -> tf.data.Dataset:
    """(batch, draws) of the rows of the split; uint8 images, decoded or taken from `images`."""
    labels = {
      'attributes': split.attributes[rows].astype(np.float32),
      'semantic_id': split.semantic_ids[rows].astype(np.int64),
    }
    if images is None:
      dataset = self._decoded(split.paths[rows]).batch(batch_size, drop_remainder=drop)
    else:
      dataset = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size, drop_remainder=drop)
      dataset = dataset.map(
        lambda rows: tf.gather(images, rows),
        num_parallel_calls=self._parallel,
        deterministic=True,
      )
    others = tf.data.Dataset.from_tensor_slices((labels, tuple(draws.values())))
    return tf.data.Dataset.zip((dataset, others.batch(batch_size, drop_remainder=drop))).map(
      lambda image, others: ({'image': image, **others[0]}, others[1])
    )

  def _finished(
    self, dataset: tf.data.Dataset, function: Callable, images: tf.Tensor | None
  ) -> tf.data.Dataset:
    """`function` applied to each batch, in parallel and in order, and prefetched."""
    dataset = dataset.map(function, num_parallel_calls=self._parallel, deterministic=True)
    options = tf.data.Options()
    options.deterministic = True
    # If unsharded batches are given to several workers by `experimental_distribute_dataset`, each
    # keeps its part of each batch: the same examples, but each worker decodes them all.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    if images is not None:
      # TensorFlow's graph optimiser would hash the cache at each epoch: seconds per GiB.
      options.experimental_optimization.apply_default_optimizations = False
    return dataset.prefetch(self.prefetch).with_options(options)

  def _droppable(self, schema: AttributeSchema | None) -> tuple[int, ...]:
    """The groups of the columns, if attributes can be dropped at all."""
    if schema is None:
      raise ValueError(
        'attribute_dropout needs the schema, which says what columns belong together.'
      )
    if schema.encoding != 'three_state':
      raise ValueError(
        f'Pipeline.attribute_dropout={self.attribute_dropout} needs the three-state encoding, in '
        f"which 0 means 'not said'; that of {schema.name} is '{schema.encoding}', in which 0 means "
        "'no'. Set the encoding to 'three_state' or attribute_dropout to 0."
      )
    if self.keep_at_least > len(schema.attributes):
      raise ValueError(
        f'Pipeline.keep_at_least={self.keep_at_least}, but {schema.name} has only '
        f'{len(schema.attributes)} attributes.'
      )
    return schema.groups

  def _erase(self, images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Images with a window of the mean pixel in some of them (cutout, DeVries & Taylor 2017).

    Args:
      images: float32 [B, H, W, 3].
      draws: [B, 3] in [0, 1): whether, and where from top to bottom and from left to right.
    """
    # tfa wants an even window, and the window's centre; all of the window is inside.
    window = [
      2 * max(1, round(share * side / 2)) for share, side in zip(self.erase_size, self.image_size)
    ]
    room = tf.constant([side - size + 1 for side, size in zip(self.image_size, window)], tf.float32)
    corner = tf.cast(tf.floor(draws[:, 1:] * room), tf.int32)
    centre = corner + tf.constant(window) // 2
    # On a mask of one channel and not on the images, which would take several times as long.
    mask = tf.fill([tf.shape(images)[0], *self.image_size, 1], True)
    kept = _tensorflow_addons().image.cutout(mask, window, centre, False)[..., 0]
    chosen = (draws[:, 0] < self.erase)[:, None, None]
    pixels = tf.where(tf.logical_and(chosen, tf.logical_not(kept)))  # [pixels, 3]
    values = tf.tile(tf.constant([MEAN_PIXEL]), [tf.shape(pixels)[0], 1])
    return tf.tensor_scatter_nd_update(images, pixels, values)

  def _size(self, split: Split) -> int:
    """Bytes that the cached images of a split take."""
    return len(split) * int(np.prod(self.image_shape))

  def _free(self) -> int:
    """Bytes of the cache that are still free."""
    taken = sum(len(images) * int(np.prod(self.image_shape)) for images in self._cached.values())
    return int(self.cache_gib * 2**30) - taken


def _pair(name: str, value: Sequence) -> tuple:
  """`value` as a tuple of two."""
  if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) != 2:
    raise ValueError(f'{name} is (height, width), not {value!r}.')
  return tuple(value)


def _check_whole(name: str, value: int, least: int) -> None:
  """Raises ValueError unless `value` is a whole number of at least `least`."""
  if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
    raise ValueError(f'{name} must be a whole number of at least {least}, not {value!r}.')


def _key(split: Split) -> str:
  """Digest of the paths of a split."""
  return hashlib.sha256('\0'.join(map(str, split.paths)).encode()).hexdigest()


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
  """An uninitialised uint8 array at an address that is a multiple of 64, as tensors need it."""
  size = int(np.prod(shape))
  memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].reshape(shape)


def _tensorflow_addons():
  """The module, imported where it is used and without its end-of-life warning.

  Its import takes a second, and 0.23 says at each that it is the last release. That is known:
  it is why TensorFlow is pinned to 2.15.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    import tensorflow_addons
  return tensorflow_addons
