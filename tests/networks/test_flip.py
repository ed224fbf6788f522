"""The flip test: the mean of an image and its mirror image."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.joint_space import JointSpace
from tfreid.networks import flip, heads

SHAPE = (64, 32, 3)


@pytest.fixture(scope='module')
def encoder():
  tf.keras.utils.set_random_seed(0)
  given = tf.keras.Input(SHAPE)
  maps = tf.keras.layers.Conv2D(4, 3, strides=2, activation='relu')(given / 255.0)
  concepts = tf.keras.layers.Dense(8)(tf.keras.layers.Flatten()(maps))
  return heads.unit_norm(tf.keras.Model(given, concepts))


@pytest.fixture(scope='module')
def pixels():
  return np.random.default_rng(0).uniform(0, 255, (3, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize('kind', [np.float32, np.uint8])
def test_a_mirror_exchanges_left_and_right_and_nothing_else(pixels, kind):
  images = pixels.astype(kind)
  mirrored = flip.MirrorImages(dtype=kind)(images)
  np.testing.assert_array_equal(mirrored, images[:, :, ::-1])
  assert mirrored.dtype == kind


def test_a_concept_is_the_mean_of_both_and_the_same_for_both(encoder, pixels):
  tested = flip.with_flip_test(encoder)
  mirror = pixels[:, :, ::-1]
  plain, other = encoder(pixels), encoder(mirror)
  assert np.abs(plain - other).max() > 1e-3
  np.testing.assert_allclose(tested(pixels), (plain + other) / 2, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(tested(pixels), tested(mirror))
  # Shorter than 1 where both differ: it is the mean of both cosines that counts.
  assert np.all(np.linalg.norm(tested(pixels), axis=1) < 1)
  assert tested.input_shape == encoder.input_shape and tested.output_shape == encoder.output_shape


def test_it_shares_its_variables(encoder):
  tested = flip.with_flip_test(encoder)
  assert [v.ref() for v in tested.weights] == [v.ref() for v in encoder.weights]


def test_it_is_asked_for_once(encoder):
  tested = flip.with_flip_test(encoder)
  assert flip.has_flip_test(tested) and not flip.has_flip_test(encoder)
  with pytest.raises(ValueError, match='has the flip test already'):
    flip.with_flip_test(tested)


def test_a_space_with_it_is_saved_and_loaded(encoder, pixels, tmp_path):
  attributes = tf.keras.Input([5])
  space = JointSpace(encoder, tf.keras.Model(attributes, tf.keras.layers.Dense(8)(attributes)))
  tested = space.with_flip_test()
  tested.save(str(tmp_path / 'space'))
  loaded = JointSpace.load(str(tmp_path / 'space'))
  assert loaded.image_shape == SHAPE and flip.has_flip_test(loaded.image_encoder)
  np.testing.assert_allclose(
    loaded.encode_images(pixels), tested.encode_images(pixels), rtol=1e-5, atol=1e-7
  )
