from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data import augmentation
from tfreid.data.augmentation import Stream


@pytest.fixture
def images(rng):
  return rng.integers(0, 256, (5, 16, 8, 3)).astype(np.uint8)


@pytest.fixture
def rng():
  return np.random.default_rng(3)


def test_draws_repeat_and_differ_by_seed_epoch_and_stream():
  first = augmentation.draws(1, 2, Stream.FLIP, (100,)).numpy()
  np.testing.assert_array_equal(first, augmentation.draws(1, 2, Stream.FLIP, (100,)))
  others = [(2, 2, Stream.FLIP), (1, 3, Stream.FLIP), (2, 1, Stream.FLIP), (1, 2, Stream.CROP)]
  for other in others:
    assert not np.isin(first, augmentation.draws(*other, (100,))).any()


def test_draws_are_uniform():
  """10,000 numbers: the mean of ten classes of 1,000 has a standard deviation of 30."""
  numbers = augmentation.draws(0, 0, Stream.CROP, (1000, 10)).numpy()
  counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
  assert counts.sum() == 10_000
  assert np.abs(counts - 1000).max() < 150


def test_flip_is_the_exact_mirror_where_the_draw_is_below_a_half(images):
  flipped = augmentation.flip(images, tf.constant([0.0, 0.49, 0.5, 0.51, 0.999])).numpy()
  np.testing.assert_array_equal(flipped[:2], images[:2, :, ::-1])
  np.testing.assert_array_equal(flipped[2:], images[2:])
  assert flipped.dtype == np.uint8


def test_nothing_and_everything_can_be_chosen(images):
  np.testing.assert_array_equal(augmentation.flip(images, tf.ones(5)), images)
  np.testing.assert_array_equal(augmentation.flip(images, tf.zeros(5)), images[:, :, ::-1])


def test_crop_boxes_have_the_area_and_aspect_of_open_reid():
  """At 256x128 an aspect of 1 to 1.5 times the image's own is 2 to 3."""
  draws = augmentation.draws(0, 0, Stream.CROP, (4000, augmentation.CROP_DRAWS))
  top, left, height, width = augmentation.crop_boxes(draws, 1.0).numpy().T
  area, aspect = height * width, (256 * height) / (128 * width)
  assert (area > 0.6399).all() and (area <= 1.0).all()
  assert (aspect > 1.999).all() and (aspect < 3.0001).all()
  assert (top >= 0).all() and (top + height <= 1.0 + 1e-6).all()
  assert (left >= 0).all() and (left + width <= 1.0 + 1e-6).all()
  assert area.min() < 0.65 and aspect.max() > 2.3 and area.max() > 0.95
  # Of ten attempts one fits, but for one image in thousands.
  assert np.mean(area < 1.0) > 0.99


def test_the_first_attempt_that_fits_decides_the_crop():
  """First attempt: area 1, stretch 1.5, too high. Second: area 0.64, stretch 1: 0.8 x 0.8."""
  draws = np.full((1, augmentation.CROP_DRAWS), 0.999999, np.float32)
  attempts = augmentation.CROP_ATTEMPTS
  draws[0, 0] = 0.3
  draws[0, 2] = draws[0, 2 + attempts] = 0.0
  draws[0, -2:] = 0.25, 0.5
  expected = [[0.25 * 0.2, 0.5 * 0.2, 0.8, 0.8]]
  np.testing.assert_allclose(augmentation.crop_boxes(draws, 0.31), expected, rtol=1e-5)
  np.testing.assert_array_equal(augmentation.crop_boxes(draws, 0.3), [[0, 0, 1, 1]])
  draws[0, 2] = 0.999999
  draws[0, 2 + attempts] = 0.999999
  np.testing.assert_array_equal(augmentation.crop_boxes(draws, 1.0), [[0, 0, 1, 1]])


def test_the_whole_image_as_crop_is_the_image(images):
  whole = tf.tile([[0.0, 0.0, 1.0, 1.0]], [5, 1])
  np.testing.assert_array_equal(augmentation.crop(images, whole), images.astype(np.float32))


def test_a_crop_is_the_bilinear_enlargement_of_its_box():
  """A plane is enlarged to a plane: the corner pixels of the box are those of the result."""
  rows, columns = np.mgrid[:21, :11].astype(np.float32)
  plane = np.stack([2 * rows + 3 * columns, rows, columns], axis=-1)[None]
  box = tf.constant([[3 / 21, 2 / 11, 11 / 21, 6 / 11]])  # rows 3 ... 13, columns 2 ... 7
  y, x = np.linspace(3, 13, 21)[:, None], np.linspace(2, 7, 11)[None]
  expected = np.stack([2 * y + 3 * x, y + 0 * x, 0 * y + x], axis=-1)[None]
  np.testing.assert_allclose(augmentation.crop(plane, box), expected, atol=1e-4)


def test_crops_at_every_border_read_only_the_image():
  """Outside the image zeros would be read; a white image must stay white."""
  draws = augmentation.draws(5, 0, Stream.CROP, (2000, augmentation.CROP_DRAWS)).numpy()
  draws[:1000, -2:] = 0.9999999
  draws[1000:1500, -2:] = 0.0
  white = np.full((2000, 10, 5, 3), 255, np.uint8)
  cropped = augmentation.crop(white, augmentation.crop_boxes(draws, 1.0)).numpy()
  np.testing.assert_allclose(cropped, 255.0, atol=1e-3)


@pytest.mark.parametrize('count', [0, 1, 8, 13])
def test_each_crop_is_its_own_whatever_the_number(images, rng, count):
  """They are enlarged some at a time, the last ones filled up."""
  pictures = images[rng.integers(0, len(images), 20)]
  boxes = np.tile(np.float32([0, 0, 1, 1]), [20, 1])
  chosen = rng.choice(20, count, replace=False)
  boxes[chosen] = np.float32([0.1, 0.05, 0.8, 0.9])
  cropped = augmentation.crop(pictures, tf.constant(boxes)).numpy()
  alone = [augmentation.crop(pictures[i : i + 1], boxes[i : i + 1]).numpy()[0] for i in range(20)]
  np.testing.assert_array_equal(cropped, alone)
  changed = np.any(cropped != pictures, axis=(1, 2, 3))
  assert set(np.flatnonzero(changed)) == set(chosen)


def test_crops_in_a_pipeline_leave_nothing_on_the_console(images, capfd):
  """TensorFlow's optimiser warns of a number of boxes that it cannot tell, at each epoch."""
  draws = augmentation.draws(1, 0, Stream.CROP, (12, augmentation.CROP_DRAWS)).numpy()
  pictures = tf.data.Dataset.from_tensor_slices((np.tile(images[:4], [3, 1, 1, 1]), draws))

  def crop(batch, draws):
    return augmentation.crop(batch, augmentation.crop_boxes(draws, 0.5))

  batches = list(pictures.batch(4, drop_remainder=True).map(crop))
  assert [batch.shape for batch in batches] == [(4, *images.shape[1:])] * 3
  said = capfd.readouterr()
  assert 'CropAndResize' not in said.out + said.err


GROUPS = (0, 1, 1, 1, 2, 3)


def test_dropped_attributes_lose_all_their_columns_and_others_none(rng):
  attributes = rng.choice([-1.0, 1.0], (6, len(GROUPS))).astype(np.float32)
  draws = rng.random((6, 4)).astype(np.float32)
  draws[0] = 0.9, 0.1, 0.9, 0.3
  dropped = augmentation.drop_attributes(
    attributes, draws, groups=GROUPS, rate=0.5, keep_at_least=1
  ).numpy()
  np.testing.assert_array_equal(dropped[0], attributes[0] * [1, 0, 0, 0, 1, 0])
  for row in range(6):
    said = draws[row] >= 0.5
    said[np.argmax(draws[row])] = True
    np.testing.assert_array_equal(dropped[row], attributes[row] * said[list(GROUPS)])


@pytest.mark.parametrize('keep', [1, 2, 4])
def test_so_many_attributes_stay_even_if_all_would_be_dropped(rng, keep):
  attributes = np.ones((50, len(GROUPS)), np.float32)
  draws = rng.random((50, 4)).astype(np.float32)
  dropped = augmentation.drop_attributes(
    attributes, draws, groups=GROUPS, rate=1.0, keep_at_least=keep
  ).numpy()
  # Columns 0, 1, 4, 5 are the first of each attribute.
  np.testing.assert_array_equal((dropped[:, [0, 1, 4, 5]] != 0).sum(axis=1), keep)


def test_each_attribute_is_dropped_at_the_rate():
  """Of 20,000 draws at 0.3 the share has a standard deviation of 0.003."""
  draws = augmentation.draws(0, 0, Stream.ATTRIBUTES, (20_000, 4))
  attributes = np.ones((20_000, len(GROUPS)), np.float32)
  dropped = augmentation.drop_attributes(
    attributes, draws, groups=GROUPS, rate=0.3, keep_at_least=1
  ).numpy()
  # Where all four fall below the rate (0.3^4 of the rows) one of them stays: 0.3 - 0.3^4 / 4.
  np.testing.assert_allclose((dropped == 0).mean(axis=0), 0.3 - 0.3**4 / 4, atol=0.015)
