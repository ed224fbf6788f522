"""Speed of the input pipeline: images per second at 256x128, from JPEGs made on the spot."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import tfreid  # noqa: F401 - before TensorFlow, which then uses oneDNN

# isort: split
import numpy as np
import tensorflow as tf

from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.data.benchmark import Split
from tfreid.data.pipeline import Pipeline

IMAGE_SIZE = (256, 128)
BATCH_SIZE = 128

# As Market-1501's crops are, and of a size that has to be reduced.
FILE_SIZES = {'market': (128, 64), 'large': (400, 160)}


def _schema(count: int) -> AttributeSchema:
  names = [f'attribute_{i}' for i in range(count)]
  return AttributeSchema(
    name='benchmark',
    attributes=tuple(Attribute(name, ('no', 'yes'), ((name, 2),)) for name in names),
    raw_values=dict.fromkeys(names, (1, 2)),
    encoding='three_state',
  )


def _write(folder: Path, count: int, size: tuple[int, int], schema: AttributeSchema) -> Split:
  """A split of JPEGs with about the detail, and so the file size, of a crop."""
  rng = np.random.default_rng(0)
  paths = []
  for i in range(count):
    coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3)).astype(np.float32)
    image = tf.image.resize(coarse, size, method='bicubic') + rng.normal(0, 8, (*size, 3))
    image = tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)
    paths.append(str(folder / f'{i:05d}.jpg'))
    tf.io.write_file(paths[-1], tf.io.encode_jpeg(image, quality=90))
  return Split(
    paths=np.asarray(paths),
    attributes=rng.choice([-1.0, 1.0], (count, schema.size)).astype(np.float32),
    semantic_ids=np.arange(count),
    person_ids=np.asarray([str(i) for i in range(count)]),
    cameras=np.zeros(count, np.int32),
    keys=tuple((i,) for i in range(count)),
  )


def _images_per_second(epochs: Iterable[tf.data.Dataset]) -> float:
  """Throughput over whole epochs, building the datasets included; the first one only warms up."""
  images, started = 0, 0.0
  for number, dataset in enumerate(epochs):
    if number == 1:
      started = time.perf_counter()
    for batch in dataset:
      images += len(batch['image']) * (number > 0)
  return images / (time.perf_counter() - started)


def run(*, num_images: int = 1024, epochs: int = 3) -> dict[str, float]:
  """Images per second of the pipeline, by what it has to do.

  Args:
    num_images: images per epoch.
    epochs: measured epochs, after one that is not measured.

  Returns:
    Numbers by name: `decode` reads, decodes and resizes; `flip` is the default; `augment` crops,
    erases and drops attributes too; `cached_...` take the images from memory. With them
    `cache_fill`, images per second of filling the cache.
  """
  schema = _schema(30)
  everything = {'crop': 1.0, 'erase': 0.5, 'attribute_dropout': 0.3}
  settings = {
    'decode': {'flip': False},
    'flip': {},
    'augment': everything,
    'cached_flip': {'cache': True},
    'cached_augment': {'cache': True, **everything},
  }
  results = {}
  for kind, size in FILE_SIZES.items():
    with tempfile.TemporaryDirectory() as folder:
      split = _write(Path(folder), num_images, size, schema)
      for name, kwargs in settings.items():
        if kind != 'market' and name != 'decode':
          continue  # only decoding depends on the files
        pipeline = Pipeline(IMAGE_SIZE, min(BATCH_SIZE, num_images), **kwargs)
        if pipeline.cache and 'cache_fill' not in results:
          started = time.perf_counter()
          pipeline.load(split)
          results['cache_fill'] = num_images / (time.perf_counter() - started)
        results[f'{name}_{size[0]}x{size[1]}'] = _images_per_second(
          pipeline.training(split, seed=0, epoch=epoch, schema=schema)
          for epoch in range(epochs + 1)
        )
  return {name: round(value, 1) for name, value in results.items()}


if __name__ == '__main__':
  print(json.dumps(run(), indent=2))
