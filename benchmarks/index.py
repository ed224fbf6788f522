"""An index: images per second of `build`, bytes per crop, seconds per search and filter.

python benchmarks/index.py --images=2048 --repeats=5      the rate of `build` only
python benchmarks/index.py --encoder=osnet_x0_25 --runtimes=tensorflow,openvino
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence

import _encoders
import numpy as np

from tfreid.data.synthetic import SyntheticPeople
from tfreid.index import engines, filters, manifest, segment, writer
from tfreid.index.directory import IndexDirectory
from tfreid.index.segment import Row

NUM_CROPS = 200_000
WIDTH = 128
NUM_IMAGES, SIZE, BATCH = 1024, (256, 128), 64
_PER_PERSON = 16


def run() -> dict[str, object]:
  """The rate of `build` with ResNet-50, and what an index costs that is there.

  In a process that does nothing else: see `never_trains` in tfreid/cli/startup.py.
  """
  _never_trains()
  return {'build': build_rates(), **costs(), **_manifest_costs()}


def _never_trains():
  # As `tfreid index`; read at the first convolution, for the whole process.
  os.environ.setdefault('TF_ONEDNN_ASSUME_FROZEN_WEIGHTS', '1')


def build_rates(
  *,
  images: int = NUM_IMAGES,
  image_size: tuple[int, int] = SIZE,
  batch: int = BATCH,
  repeats: int = 3,
  in_flight: Sequence[int] = (1, 2),
  network: Callable | None = None,
  runtimes: Sequence[str] = ('tensorflow',),
) -> dict[str, dict[str, float]]:
  """Images per second of `build`, from files to a committed index, beside the bare encoder's.

  The crops are drawn people, JPEG files of 128x64 pixels as Market-1501 has them, just written and
  so in the system's cache. The model is an export with random weights. All measurements take turns.

  Args:
    images: number of crops.
    image_size: (height, width) that they are resized to.
    batch: images at a time.
    repeats: turns; medians count.
    in_flight: batches that `build` embeds at the same time, one measurement for each number.
    network: (height, width, 3) -> the image encoder, a Keras model; by default ResNet-50.
    runtimes: that embed, of `runtimes.RUNTIMES`.

  Returns:
    For each precision: 'encoder', images per second of the folded encoder with pixels in memory;
    'build_<n>' and 'openvino_<n>', of `build` with n batches in flight; and 'core_seconds_<n>', of
    all cores together, per image.
  """
  import tensorflow as tf

  from tfreid.index.embedder import Embedder
  from tfreid.joint_space import JointSpace
  from tfreid.networks import attribute, image
  from tfreid.serving import export, folding

  shape = (*image_size, 3)
  encoder = (network or image.image_encoder)(shape)
  space = JointSpace(encoder, attribute.attribute_generator(30, encoder.output_shape[-1]))
  pixels = tf.random.uniform([batch, *shape], 0, 255, seed=0)
  with tempfile.TemporaryDirectory() as folder:
    rows = _crops(os.path.join(folder, 'people'), images)
    with open(rows[0].path, 'rb') as file:
      crop = export.Crop(rows[0].id, file.read())
    contestants: dict[str, dict[str, Callable[[], object]]] = {}
    for precision in folding.PRECISIONS:
      encoders = export.encoders(space, precision=precision)
      version = export.export(
        *(space, os.path.join(folder, precision)),
        encoders=encoders,
        gallery=np.eye(1, encoders.image.size, dtype=np.float32),
        ids=['nobody'],
        crops=[crop],
        tolerance=1.0,  # of random weights, which nothing is asked of
      )
      contestants[precision] = _contestants(
        tf.function(encoders.image, input_signature=[tf.TensorSpec([None, *shape])]),
        *(pixels, images, {name: Embedder(version, runtime=name) for name in runtimes}),
        *(rows, in_flight),
      )
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for turn in range(repeats + 1):
      for precision, functions in contestants.items():
        for name, function in functions.items():
          started = time.perf_counter(), time.process_time()
          function()
          took = time.perf_counter() - started[0], time.process_time() - started[1]
          if turn:  # The first traces and compiles.
            seconds.setdefault((precision, name), []).append(took)
  results: dict[str, dict[str, float]] = {}
  for (precision, name), times in seconds.items():
    clock, cores = (statistics.median(column) for column in zip(*times))
    found = results.setdefault(precision, {'images': images, 'batch': batch})
    found[name] = images / clock
    found[f'core_seconds_{name}'] = cores / images
  return results


def _crops(folder: str, count: int) -> list[Row]:
  """Rows of so many drawn crops."""
  people = SyntheticPeople(
    num_train_people=-(-count // _PER_PERSON),
    num_test_people=1,
    images_per_person=(_PER_PERSON, _PER_PERSON),
    num_junk=0,
    num_distractors=0,
  )
  directory = people.write(folder).directory
  rows = manifest.read(os.path.join(directory, 'bounding_box_train'))[:count]
  if len(rows) < count:
    raise RuntimeError(f'{len(rows)} crops were drawn; {count} are needed.')
  return rows


def _contestants(encode, pixels, images, models, rows, in_flight):
  """What is timed for one model, by name."""
  batch = len(pixels)

  def bare():
    for start in range(0, images, batch):
      encode(pixels[: images - start]).numpy()

  def build(model, number):
    with tempfile.TemporaryDirectory() as folder:
      report = writer.build(
        os.path.join(folder, 'index'), rows, model, batch_size=batch, in_flight=number
      )
    if report.added != images:
      raise RuntimeError(f'{report.added} of {images} crops were embedded.')

  builds = {
    f'{"build" if runtime == "tensorflow" else runtime}_{n}': functools.partial(build, model, n)
    for runtime, model in models.items()
    for n in in_flight
  }
  return {'encoder': bare, **builds}


def costs() -> dict[str, float]:
  """Writes an index of random unit vectors and searches it, on the disk and in memory."""
  rng = np.random.default_rng(0)
  queries = rng.standard_normal((64, WIDTH), np.float32)
  with tempfile.TemporaryDirectory() as folder:
    opened = IndexDirectory(os.path.join(folder, 'index'))
    about = {'fingerprint': 'benchmark', 'embedding_size': WIDTH, 'path': ''}
    found = engines.open_engine(opened, engines.new_state(about))
    started = time.perf_counter()
    with opened.lock():
      entry = segment.write(opened.segments, _parts(rng), size=NUM_CROPS, width=WIDTH)
      found.commit([entry])
    results = {
      'crops': NUM_CROPS,
      'written_per_second': NUM_CROPS / (time.perf_counter() - started),
      'bytes_per_crop': sum(size for size, _ in entry['files'].values()) / NUM_CROPS,
    }
    found.search(queries[:1], top_k=20)  # imports TensorFlow
    condition = filters.parse('camera in [1, 2] and time >= "2024-06"')
    started = time.perf_counter()
    found.search(queries[:1], top_k=20, where=condition)
    results['seconds_first_filtered'] = time.perf_counter() - started
    results['seconds_filtered'] = _median(
      lambda: found.search(queries[:1], top_k=20, where=condition)
    )
    for name, resident in (('mapped', False), ('resident', True)):
      found = engines.open_engine(IndexDirectory(opened.directory), resident=resident)
      for count in (1, 64):
        results[f'seconds_{name}_{count}'] = _median(
          lambda found=found, count=count: found.search(queries[:count], top_k=20)
        )
  return results


def _manifest_costs() -> dict[str, float]:
  """Memory and time of reading a manifest with ids, paths of 36 characters and two fields."""
  with tempfile.TemporaryDirectory() as folder:
    source = os.path.join(folder, 'crops.csv')
    with open(source, 'w', encoding='utf-8') as file:
      file.write('path,id,camera,time\n')
      for i in range(NUM_CROPS):
        second = f'2024-03-01T{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}'
        file.write(f'camera{i % 20:02d}/2024-03-01/{i:012d}.jpg,c{i:012d},{i % 20},{second}\n')
    seconds = {}
    for name, part in (('counted', (1, NUM_CROPS)), ('kept', (1, 1))):
      started = time.perf_counter()
      manifest.read(source, part=part)
      seconds[name] = time.perf_counter() - started
    tracemalloc.start()
    rows = manifest.read(source)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
  return {
    'manifest_bytes_per_crop': kept / len(rows),
    'manifest_counted_per_second': NUM_CROPS / seconds['counted'],
    'manifest_kept_per_second': NUM_CROPS / seconds['kept'],
  }


def _parts(rng: np.random.Generator):
  for start in range(0, NUM_CROPS, 4000):
    concepts = rng.standard_normal((4000, WIDTH), np.float32)
    concepts /= np.linalg.norm(concepts, axis=1, keepdims=True)
    yield (
      concepts,
      [
        Row(
          f'camera{i % 20}/{i:09d}.jpg',
          f'/data/crops/camera{i % 20}/{i:09d}.jpg',
          {'camera': i % 20, 'time': f'2024-{i % 12 + 1:02d}-{i % 28 + 1:02d}T10:00:00'},
          digest='0' * 32,
        )
        for i in range(start, start + 4000)
      ],
    )


def _median(function: Callable[[], object], times: int = 5) -> float:
  function()
  seconds = []
  for _ in range(times):
    started = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - started)
  return statistics.median(seconds)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=NUM_IMAGES)
  parser.add_argument('--batch', type=int, default=BATCH)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--in_flight', default='1,2', help='batches at the same time, each measured')
  parser.add_argument('--encoder', default='resnet50', help=_encoders.__doc__)
  parser.add_argument('--runtimes', default='tensorflow', help='tensorflow, openvino, or both')
  given = parser.parse_args()
  _never_trains()
  measured = build_rates(
    images=given.images,
    batch=given.batch,
    repeats=given.repeats,
    in_flight=[int(number) for number in given.in_flight.split(',')],
    network=_encoders.tensorflow(given.encoder),
    runtimes=given.runtimes.split(','),
  )
  print(json.dumps(measured, indent=2))
