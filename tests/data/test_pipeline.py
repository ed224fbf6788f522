from __future__ import annotations

import dataclasses
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfreid.data import image_files
from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.data.benchmark import Split
from tfreid.data.pipeline import MEAN_PIXEL, Pipeline

SIZE = (32, 16)
COUNT = 26  # three batches of 8 and a remainder of 2

SCHEMA = AttributeSchema(
  name='toy',
  attributes=(
    Attribute('hat', ('no', 'yes'), (('hat', 2),)),
    Attribute('color', ('red', 'blue', 'green'), (('red', 2), ('blue', 2), ('green', 2))),
    Attribute('bag', ('no', 'yes'), (('bag', 2),)),
  ),
  raw_values=dict.fromkeys(('hat', 'red', 'blue', 'green', 'bag'), (1, 2)),
  encoding='three_state',
)

EVERYTHING = {'crop': 0.6, 'erase': 0.5, 'attribute_dropout': 0.4}


def encoded(pixels, suffix='png', **options):
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  stream = io.BytesIO()
  image.save(stream, {'jpg': 'JPEG'}.get(suffix, suffix), **options)
  return stream.getvalue()


def make_split(folder):
  """Noise of SIZE, every second image as JPEG; each image has a semantic ID of its own."""
  rng = np.random.default_rng(0)
  paths = []
  for i in range(COUNT):
    pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    paths.append(folder / f'{i:04d}.{("png", "jpg")[i % 2]}')
    paths[-1].write_bytes(encoded(pixels, paths[-1].suffix[1:]))
  return Split(
    paths=np.asarray([str(path) for path in paths]),
    attributes=rng.choice([-1.0, 1.0], (COUNT, SCHEMA.size)).astype(np.float32),
    semantic_ids=np.arange(COUNT),
    person_ids=np.asarray([f'{i:04d}' for i in range(COUNT)]),
    cameras=np.zeros(COUNT, np.int32),
    keys=tuple((i,) for i in range(COUNT)),
    dropped={'not annotated': 5},
  )


@pytest.fixture(scope='module')
def split(tmp_path_factory):
  return make_split(tmp_path_factory.mktemp('crops'))


@pytest.fixture
def damaged(tmp_path):
  """A split with a truncated image, a text and an empty file at 3, 10 and 12."""
  split = make_split(tmp_path)
  for i, contents in ((10, b'no image'), (12, b'')):
    Path(split.paths[i]).write_bytes(contents)
  whole = Path(split.paths[3]).read_bytes()
  Path(split.paths[3]).write_bytes(whole[: len(whole) // 2])
  return split


def pipeline(**settings):
  return Pipeline(image_size=SIZE, batch_size=8, **settings)


def joined(batches, *, axis=0):
  batches = list(batches)
  return {name: np.concatenate([b[name] for b in batches], axis=axis) for name in batches[0]}


def epoch(split, *, seed=0, epoch=0, shard=(0, 1), **settings):
  return joined(
    pipeline(**settings).training(split, seed=seed, epoch=epoch, schema=SCHEMA, shard=shard)
  )


@pytest.fixture(scope='module')
def everything(split):
  return epoch(split, **EVERYTHING)


def assert_same(first, second):
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_training_batches_have_the_promised_shapes_types_and_range(split):
  dataset = pipeline(**EVERYTHING).training(split, seed=0, epoch=0, schema=SCHEMA)
  assert dataset.element_spec == {
    'image': tf.TensorSpec([8, *SIZE, 3], tf.float32),
    'attributes': tf.TensorSpec([8, 5], tf.float32),
    'semantic_id': tf.TensorSpec([8], tf.int64),
  }
  image = joined(dataset)['image']
  assert image.min() >= 0.0 and image.min() < 5.0
  assert image.max() <= 255.0 and image.max() > 250.0


def test_training_takes_each_image_at_most_once_and_drops_the_remainder(split):
  maker = pipeline(flip=False)
  dataset = maker.training(split, seed=0, epoch=0)
  assert int(dataset.cardinality()) == maker.num_batches(split) == 3
  ids = joined(dataset)['semantic_id']
  assert len(ids) == len(set(ids)) == 24
  assert list(ids) != sorted(ids)


def test_images_and_labels_stay_together(split):
  batch = epoch(split, flip=False)
  rows = batch['semantic_id']
  np.testing.assert_array_equal(batch['attributes'], split.attributes[rows])
  for image, row in zip(batch['image'], rows):
    np.testing.assert_array_equal(image, Image.open(split.paths[row]))


def test_evaluation_gives_the_split_in_order_unaugmented_with_the_remainder(split):
  maker = pipeline(**EVERYTHING)
  dataset = maker.evaluation(split)
  assert [len(batch['semantic_id']) for batch in dataset] == [8, 8, 8, 2]
  batch = joined(dataset)
  assert set(batch) == {'image', 'attributes', 'semantic_id'}
  np.testing.assert_array_equal(batch['semantic_id'], split.semantic_ids)
  np.testing.assert_array_equal(batch['attributes'], split.attributes)
  for image, path in zip(batch['image'], split.paths):
    np.testing.assert_array_equal(image, Image.open(path))
  assert batch['image'].dtype == np.float32
  assert [len(b['semantic_id']) for b in maker.evaluation(split, batch_size=20)] == [20, 6]


def test_an_epoch_is_bit_identical_when_repeated(split, everything):
  assert_same(everything, epoch(split, **EVERYTHING))


def test_an_epoch_is_bit_identical_for_any_number_of_threads(split, everything):
  assert_same(everything, epoch(split, num_parallel_calls=1, **EVERYTHING))


@pytest.mark.parametrize('other', [{'seed': 1}, {'epoch': 1}])
def test_another_seed_or_epoch_has_another_order_and_other_augmentation(split, everything, other):
  first, second = everything, epoch(split, **other, **EVERYTHING)
  assert list(first['semantic_id']) != list(second['semantic_id'])
  places = {row: place for place, row in enumerate(second['semantic_id'])}
  shared = [(i, places[row]) for i, row in enumerate(first['semantic_id']) if row in places]
  same = [np.array_equal(first['image'][i], second['image'][j]) for i, j in shared]
  assert len(shared) > 20 and np.mean(same) < 0.5
  assert any(not np.array_equal(first['attributes'][i], second['attributes'][j]) for i, j in shared)


def test_switching_one_augmentation_off_leaves_order_and_the_others_as_they_were(split, everything):
  every = everything
  without = epoch(split, **{**EVERYTHING, 'erase': 0.0})
  np.testing.assert_array_equal(every['semantic_id'], without['semantic_id'])
  np.testing.assert_array_equal(every['attributes'], without['attributes'])
  erased = (every['image'] != without['image']).any(axis=(1, 2, 3))
  assert 0 < erased.sum() < 24


def test_the_shards_of_two_workers_join_to_the_global_batches(split, everything):
  shards = [
    list(pipeline(**EVERYTHING).training(split, seed=0, epoch=0, schema=SCHEMA, shard=(i, 2)))
    for i in range(2)
  ]
  assert [len(batch['image']) for shard in shards for batch in shard] == [4] * 6
  assert_same(everything, joined(part for parts in zip(*shards) for part in parts))


def test_four_workers_see_each_example_of_an_epoch_once(split, everything):
  shards = [epoch(split, shard=(i, 4), flip=False)['semantic_id'].reshape(3, 2) for i in range(4)]
  np.testing.assert_array_equal(
    np.concatenate(shards, axis=1).reshape(-1), everything['semantic_id']
  )


def test_replicas_split_the_global_batch_in_order(split, everything, two_devices):
  maker = pipeline(**EVERYTHING)
  strategy = tf.distribute.MirroredStrategy(two_devices)

  def training(shard=(0, 1)):
    return maker.training(split, seed=0, epoch=0, schema=SCHEMA, shard=shard)

  def worker(context):
    dataset = training((context.input_pipeline_id, context.num_input_pipelines))
    return dataset.rebatch(context.get_per_replica_batch_size(maker.batch_size))

  automatic = strategy.experimental_distribute_dataset(training())
  explicit = strategy.distribute_datasets_from_function(worker)
  for distributed in (automatic, explicit):
    parts = [
      {name: strategy.experimental_local_results(value)[i] for name, value in batch.items()}
      for batch in distributed
      for i in range(2)
    ]
    assert [len(part['image']) for part in parts] == [4] * 6
    assert_same(everything, joined(parts))


def test_flip_mirrors_about_half_of_the_images_exactly(split):
  plain, flipped = epoch(split, flip=False), epoch(split, flip=True)
  np.testing.assert_array_equal(plain['semantic_id'], flipped['semantic_id'])
  mirrored = 0
  for a, b in zip(plain['image'], flipped['image']):
    if not np.array_equal(a, b):
      np.testing.assert_array_equal(a[:, ::-1], b)
      mirrored += 1
  assert 4 < mirrored < 20


def test_erased_windows_have_the_size_and_the_mean_pixel(split):
  """Of 32x16, (0.25, 0.5) is a window of 8x8; noise equals the mean pixel almost nowhere."""
  plain = epoch(split, flip=False)
  erased = epoch(split, flip=False, erase=0.5, erase_size=(0.25, 0.5))
  places = set()
  for before, after in zip(plain['image'], erased['image']):
    rows, columns = np.nonzero((before != after).any(axis=-1))
    if not len(rows):
      continue
    top, left = rows.min(), columns.min()
    assert (rows.max() - top, columns.max() - left) == (7, 7)
    expected = before.copy()
    expected[top : top + 8, left : left + 8] = MEAN_PIXEL
    np.testing.assert_array_equal(after, expected)
    places.add((top, left))
  assert 4 < len(places) < 20


def test_every_image_is_erased_at_a_share_of_one_and_a_full_window_leaves_nothing(split):
  erased = epoch(split, erase=1.0, erase_size=(1.0, 1.0))['image']
  np.testing.assert_array_equal(erased, np.broadcast_to(MEAN_PIXEL, erased.shape))


def test_attributes_are_dropped_as_groups_and_one_is_kept(split):
  batch = epoch(split, attribute_dropout=0.5)
  truth = split.attributes[batch['semantic_id']]
  said = batch['attributes'] != 0
  np.testing.assert_array_equal(batch['attributes'][said], truth[said])
  np.testing.assert_array_equal(said[:, 1], said[:, 2])
  np.testing.assert_array_equal(said[:, 1], said[:, 3])
  kept = said[:, [0, 1, 4]].sum(axis=1)
  assert kept.min() == 1 and 1.0 < kept.mean() < 2.5


def test_at_full_dropout_just_as_many_attributes_stay_as_are_to_be_kept(split):
  said = epoch(split, attribute_dropout=1.0, keep_at_least=2)['attributes'] != 0
  np.testing.assert_array_equal(said[:, [0, 1, 4]].sum(axis=1), 2)


def test_attributes_cannot_be_dropped_where_that_cannot_be_said(split):
  maker = pipeline(attribute_dropout=0.5)
  with pytest.raises(ValueError, match="three-state.*toy is 'binary'.*attribute_dropout to 0"):
    maker.training(split, seed=0, epoch=0, schema=dataclasses.replace(SCHEMA, encoding='binary'))
  with pytest.raises(ValueError, match='needs the schema'):
    maker.training(split, seed=0, epoch=0)
  with pytest.raises(ValueError, match='keep_at_least=4, but toy has only 3 attributes'):
    pipeline(attribute_dropout=0.5, keep_at_least=4).training(split, seed=0, epoch=0, schema=SCHEMA)


@pytest.mark.parametrize('size', [(64, 32), (75, 21), (20, 40), (300, 200)])
def test_resizing_is_that_of_pillow_with_antialiasing(size):
  """Pillow's bilinear filter widens when it shrinks; both round, at different points."""
  pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
  expected = Image.fromarray(pixels).resize(SIZE[::-1], Image.BILINEAR)
  resized = image_files.decode(encoded(pixels), SIZE).numpy().astype(int)
  assert np.abs(resized - np.asarray(expected, dtype=int)).max() <= 1


def test_a_split_smaller_than_a_batch_is_refused_with_the_numbers(split):
  few = split.subset(np.arange(7))
  with pytest.raises(ValueError, match='7 images, fewer than one batch of 8.*batch_size to 7'):
    pipeline().training(few, seed=0, epoch=0)
  with pytest.raises(ValueError, match='7 images'):
    pipeline().num_batches(few)
  assert [len(batch['image']) for batch in pipeline().evaluation(few)] == [7]


@pytest.mark.parametrize(
  ('shard', 'message'),
  [((0, 3), 'batch_size=8 cannot be divided among 3 workers'), ((2, 2), '0 ... 1')],
)
def test_impossible_shards_are_refused(split, shard, message):
  with pytest.raises(ValueError, match=message):
    pipeline().training(split, seed=0, epoch=0, shard=shard)


@pytest.mark.parametrize('wrong', [{'seed': -1}, {'epoch': -1}, {'seed': 0.5}])
def test_seed_and_epoch_are_whole_and_not_negative(split, wrong):
  with pytest.raises(ValueError, match=f'{next(iter(wrong))} must be a whole number'):
    pipeline().training(split, **{'seed': 0, 'epoch': 0, **wrong})


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'image_size': 256}, 'image_size is .height, width.'),
    ({'image_size': (256, 0)}, 'image_size must be a whole number'),
    ({'batch_size': 0}, 'batch_size must be a whole number of at least 1, not 0'),
    ({'crop': 1.5}, 'crop is a share'),
    ({'erase': -0.1}, 'erase is a share'),
    ({'erase_size': (0.0, 0.5)}, 'erase_size is two shares'),
    ({'attribute_dropout': 2}, 'attribute_dropout is a share'),
    ({'keep_at_least': 0}, 'keep_at_least must be'),
    ({'num_parallel_calls': 0}, 'num_parallel_calls must be'),
    ({'cache_gib': 0}, 'cache_gib must be positive'),
    ({'on_bad_image': 'ignore'}, "error, skip, skip_also_in_test, not 'ignore'"),
  ],
)
def test_settings_out_of_range_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Pipeline(**settings)


def replaced(split, row, path):
  paths = np.where(np.arange(len(split)) == row, str(path), split.paths)
  return dataclasses.replace(split, paths=paths)


def failure(dataset):
  with pytest.raises(tf.errors.OpError) as caught:
    for _ in dataset:
      pass
  return caught.value


def test_a_truncated_image_is_named(split, tmp_path):
  path = tmp_path / 'half.jpg'
  whole = Path(split.paths[5]).read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  broken = replaced(split, 5, path)
  maker = pipeline(flip=False)
  for dataset in (maker.training(broken, seed=0, epoch=0), maker.evaluation(broken)):
    explained = maker.explain(failure(dataset), broken)
    assert type(explained) is ValueError
    assert str(explained).startswith(f'{path} is unreadable: the image is truncated or damaged')
    assert 'others' not in str(explained) and '{{' not in str(explained)


def test_files_that_are_no_images_or_not_there_are_named(split, tmp_path):
  text = tmp_path / 'notes.jpg'
  text.write_bytes(b'<html>not found</html>')
  reasons = {
    text: "not an image .it starts with b'<html>no'",
    tmp_path / 'gone.jpg': 'no such file',
  }
  for path, reason in reasons.items():
    bad = replaced(split, 5, path)
    explained = pipeline().explain(failure(pipeline().evaluation(bad)), bad)
    with pytest.raises(ValueError, match=f'{path.name} is unreadable: .*{reason}'):
      raise explained


def test_the_number_of_damaged_files_is_said(damaged):
  explained = pipeline().explain(failure(pipeline().evaluation(damaged)), damaged)
  assert damaged.paths[3] in str(explained) and '2 others of the 26' in str(explained)


def test_errors_with_another_cause_come_back_as_they_are(split):
  other = tf.errors.InvalidArgumentError(None, None, 'shapes differ')
  assert pipeline().explain(other, split) is other
  unrelated = KeyError('x')
  assert pipeline().explain(unrelated, split) is unrelated


def test_unreadable_files_are_left_out_counted_and_logged(damaged, caplog):
  progress, maker = [], pipeline(on_bad_image='skip')
  with caplog.at_level(logging.WARNING):
    kept = maker.check(damaged, progress=lambda *p: progress.append(p))
  rows = np.delete(np.arange(COUNT), [3, 10, 12])
  np.testing.assert_array_equal(kept.paths, damaged.paths[rows])
  np.testing.assert_array_equal(kept.attributes, damaged.attributes[rows])
  np.testing.assert_array_equal(kept.semantic_ids, np.arange(23))
  assert kept.keys == tuple(damaged.keys[row] for row in rows)
  assert kept.dropped == {'not annotated': 5, 'unreadable': 3}
  (told,) = caplog.messages
  assert told.startswith('Left out: 3 of 26 images') and damaged.paths[3] in told
  assert set(maker.left_out) == {damaged.paths[row] for row in (3, 10, 12)}
  assert maker.left_out[damaged.paths[12]] == 'the file is empty'
  assert progress[-1] == (COUNT, COUNT)
  assert len(joined(pipeline().evaluation(kept))['image']) == 23


def test_a_sound_split_passes_the_check_as_it_is(split):
  assert pipeline(on_bad_image='skip').check(split) is split


def test_what_is_evaluated_shrinks_with_consent_only(split, damaged):
  with pytest.raises(ValueError, match=r'3 of the 26 images.*0003\.jpg first.*skip_also_in_test'):
    pipeline(on_bad_image='skip').check(damaged, evaluated=True)
  assert pipeline(on_bad_image='skip').check(split, evaluated=True) is split
  kept = pipeline(on_bad_image='skip_also_in_test').check(damaged, evaluated=True)
  assert len(kept) == 23 and kept.dropped['unreadable'] == 3


def test_with_errors_asked_for_the_check_leaves_the_split_alone(damaged):
  assert pipeline(on_bad_image='error').check(damaged) is damaged


def test_a_split_without_any_readable_image_is_refused(damaged):
  with pytest.raises(ValueError, match='None of the 2 images can be read.*not an image'):
    pipeline(on_bad_image='skip').check(damaged.subset(np.asarray([10, 12])))


def test_cached_batches_equal_decoded_ones(split, everything):
  cached = pipeline(cache=True, **EVERYTHING)
  assert_same(everything, joined(cached.training(split, seed=0, epoch=0, schema=SCHEMA)))
  assert_same(joined(pipeline().evaluation(split)), joined(cached.evaluation(split)))


def test_the_cache_is_filled_once_per_split_and_read_afterwards(tmp_path):
  split = make_split(tmp_path)
  maker, progress = pipeline(cache=True), []
  images = maker.load(split, progress=lambda *p: progress.append(p))
  assert images.shape == (COUNT, *SIZE, 3) and images.dtype == tf.uint8
  assert progress[-1] == (COUNT, COUNT)
  before = [joined(maker.training(split, seed=0, epoch=n)) for n in range(2)]
  for path in split.paths:
    os.remove(path)
  for number in range(2):
    assert_same(before[number], joined(maker.training(split, seed=0, epoch=number)))
  part = split.subset(np.arange(9))
  with pytest.raises(ValueError, match=r'0000.png is unreadable: there is no such file'):
    maker.training(part, seed=0, epoch=0)


def test_a_cache_that_does_not_fit_is_refused_with_the_numbers(split):
  """26 images of 32x16 take 39,936 bytes."""
  maker = pipeline(cache=True, cache_gib=50_000 / 2**30)
  maker.training(split, seed=0, epoch=0)
  part = split.subset(np.arange(20))
  with pytest.raises(ValueError, match='Caching 20 images of 32x16 takes 2.9e-05 GiB.*cache_gib'):
    maker.training(part, seed=0, epoch=0)
  # A gallery is then decoded each time.
  assert_same(joined(pipeline().evaluation(part)), joined(maker.evaluation(part)))


def test_a_damaged_file_is_named_while_the_cache_is_filled(damaged):
  with pytest.raises(ValueError, match='0003.jpg is unreadable'):
    pipeline(cache=True).training(damaged, seed=0, epoch=0)


def test_tensorflow_addons_is_imported_only_for_erasing(split, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_addons', None)  # importing it is an ImportError
  epoch(split, crop=0.5)
  with pytest.raises(ImportError):
    epoch(split, erase=0.5)


@pytest.mark.slow
def test_tensorflow_addons_is_imported_without_its_warning():
  program = 'from tfreid.data import pipeline; print(pipeline._tensorflow_addons().__version__)'
  done = subprocess.run(
    [sys.executable, '-W', 'error:::tensorflow_addons.utils.tfa_eol_msg', '-c', program],
    capture_output=True,
    text=True,
    cwd=Path(__file__).parents[2],
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('0.')
  assert 'TensorFlow Addons' not in done.stderr
