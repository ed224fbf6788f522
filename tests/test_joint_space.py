from __future__ import annotations

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from tfreid import joint_space, storage
from tfreid.joint_space import JointSpace
from tfreid.networks import attribute, heads

IMAGE = (8, 4, 3)


def image_encoder(size=6):
  pixels = tf.keras.Input(IMAGE)
  x = tf.keras.layers.Conv2D(4, 3, name='conv')(tf.keras.layers.Rescaling(1 / 255.0)(pixels))
  x = heads.batch_norm('bn')(x)
  x = tf.keras.layers.GlobalAveragePooling2D(dtype='float32')(tf.keras.layers.ReLU()(x))
  return tf.keras.Model(pixels, tf.keras.layers.Dense(size, dtype='float32')(x))


@pytest.fixture
def space():
  tf.keras.utils.set_random_seed(0)
  return JointSpace(
    heads.unit_norm(image_encoder()), heads.unit_norm(attribute.attribute_generator(5, 6))
  )


@pytest.fixture
def inputs():
  rng = np.random.default_rng(0)
  images = rng.uniform(0, 255, (3, *IMAGE)).astype(np.float32)
  return tf.constant(images), tf.constant(rng.integers(0, 2, (3, 5)).astype(np.float32))


def test_encoders_that_do_not_meet_are_refused():
  with pytest.raises(ValueError, match='images become 6 numbers, attributes 7'):
    JointSpace(image_encoder(6), attribute.attribute_generator(5, 7))


def test_sizes_come_from_the_encoders(space):
  assert space.image_shape == IMAGE
  assert space.num_attributes == 5
  assert space.size == 6


def test_encodings_do_not_depend_on_the_rest_of_the_batch(space, inputs):
  """Inference mode: batch norm uses its moving averages, and leaves them alone."""
  images, attributes = inputs
  before = [variable.numpy() for variable in space.variables]
  one_by_one = [space.encode_images(image[tf.newaxis])[0] for image in images]
  np.testing.assert_allclose(space.encode_images(images), one_by_one, rtol=1e-5, atol=1e-6)
  one_by_one = [space.encode_attributes(vector[tf.newaxis])[0] for vector in attributes]
  np.testing.assert_allclose(space.encode_attributes(attributes), one_by_one, rtol=1e-5, atol=1e-6)
  for variable, value in zip(space.variables, before):
    np.testing.assert_array_equal(variable, value)


def test_dot_product_of_unit_encoders_is_the_cosine_of_the_bare_ones(inputs):
  images, attributes = inputs
  bare_image, bare_attribute = image_encoder(), attribute.attribute_generator(5, 6)
  space = JointSpace(heads.unit_norm(bare_image), heads.unit_norm(bare_attribute))
  u, v = bare_image(images).numpy(), bare_attribute(attributes).numpy()
  expected = (v @ u.T) / np.outer(np.linalg.norm(v, axis=1), np.linalg.norm(u, axis=1))
  found = joint_space.similarity(
    space.encode_attributes(attributes).numpy(), space.encode_images(images).numpy()
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_saved_space_encodes_alike_and_keeps_what_it_was_told(space, inputs, tmp_path):
  images, attributes = inputs
  space.save(str(tmp_path / 'space'), metadata={'method': 'a2img', 'schema': {'name': 'Ä'}})
  loaded = JointSpace.load(str(tmp_path / 'space'))
  np.testing.assert_array_equal(loaded.encode_images(images), space.encode_images(images))
  np.testing.assert_array_equal(
    loaded.encode_attributes(attributes), space.encode_attributes(attributes)
  )
  about = JointSpace.metadata(str(tmp_path / 'space'))
  assert about['method'] == 'a2img'
  assert about['schema'] == {'name': 'Ä'}
  assert (about['image_shape'], about['num_attributes'], about['size']) == ([8, 4, 3], 5, 6)


def test_space_trained_in_half_precision_is_loaded_in_single(inputs, tmp_path):
  images, attributes = inputs
  tf.keras.utils.set_random_seed(0)
  tf.keras.mixed_precision.set_global_policy('mixed_float16')
  try:
    half = JointSpace(
      heads.unit_norm(image_encoder()), heads.unit_norm(attribute.attribute_generator(5, 6))
    )
  finally:
    tf.keras.mixed_precision.set_global_policy('float32')
  assert half.image_encoder.get_layer('conv').compute_dtype == 'float16'
  half.save(str(tmp_path / 'space'))
  loaded = JointSpace.load(str(tmp_path / 'space'))
  for layer in loaded.image_encoder.layers + loaded.attribute_encoder.layers:
    assert layer.compute_dtype == 'float32', layer.name
  full = JointSpace(
    heads.unit_norm(image_encoder()), heads.unit_norm(attribute.attribute_generator(5, 6))
  )
  for variable, trained in zip(full.variables, half.variables):
    variable.assign(trained)
  np.testing.assert_array_equal(loaded.encode_images(images), full.encode_images(images))
  np.testing.assert_array_equal(
    loaded.encode_attributes(attributes), full.encode_attributes(attributes)
  )


def test_older_space_of_that_name_is_replaced_whole(space, tmp_path):
  folder = tmp_path / 'space'
  space.save(str(folder), metadata={'stage': 'one'})
  (folder / 'stray').write_text('of the older one')
  space.save(str(folder), metadata={'stage': 'two'})
  assert JointSpace.metadata(str(folder))['stage'] == 'two'
  assert sorted(os.listdir(folder)) == [
    'attribute_encoder.keras',
    'image_encoder.keras',
    'seal.json',
    'space.json',
  ]
  assert os.listdir(tmp_path) == ['space']


def test_failed_save_leaves_nothing_behind_and_the_older_one_whole(space, inputs, tmp_path):
  folder = tmp_path / 'space'
  space.save(str(folder), metadata={'stage': 'one'})
  with pytest.raises(TypeError):
    space.save(str(folder), metadata={'stage': object()})
  assert os.listdir(tmp_path) == ['space']
  assert JointSpace.metadata(str(folder))['stage'] == 'one'
  JointSpace.load(str(folder))


def test_folder_without_a_space_says_what_it_holds(tmp_path):
  with pytest.raises(FileNotFoundError, match='no such folder'):
    JointSpace.load(str(tmp_path / 'nowhere'))
  (tmp_path / 'final.index').write_text('')
  with pytest.raises(FileNotFoundError, match=r"found: \['final.index'\]"):
    JointSpace.load(str(tmp_path))


def test_space_of_a_newer_version_is_refused(space, tmp_path):
  space.save(str(tmp_path / 'space'))
  path = tmp_path / 'space' / 'space.json'
  about = json.loads(path.read_text())
  storage.write_json(path, {**about, 'format': about['format'] + 1})
  with pytest.raises(ValueError, match='newer version of tfreid'):
    JointSpace.load(str(tmp_path / 'space'))


def test_space_of_an_earlier_release_without_checksums_is_loaded(space, inputs, tmp_path):
  folder = tmp_path / 'space'
  space.save(str(folder))
  about = json.loads((folder / 'space.json').read_text())
  del about['checksum']
  (folder / 'space.json').write_text(json.dumps({**about, 'format': 1}))
  (folder / 'seal.json').unlink()
  loaded = JointSpace.load(str(folder))
  np.testing.assert_array_equal(loaded.encode_images(inputs[0]), space.encode_images(inputs[0]))


@pytest.mark.parametrize(
  'name', ['image_encoder.keras', 'attribute_encoder.keras', 'space.json', 'seal.json']
)
@pytest.mark.parametrize('change', ['flip', 'cut', 'remove'])
def test_damaged_space_is_refused_with_a_sentence(name, change, space, tmp_path):
  folder = tmp_path / 'space'
  space.save(str(folder))
  path = folder / name
  content = path.read_bytes()
  place = len(content) // 2
  if change == 'flip':
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
  elif change == 'cut':
    path.write_bytes(content[:place])
  else:
    path.unlink()
  with pytest.raises((ValueError, FileNotFoundError), match=r'damaged|holds no joint space|seal'):
    JointSpace.load(str(folder))


def test_space_is_saved_and_loaded_below_a_folder_with_characters_of_patterns(
  space, inputs, tmp_path
):
  folder = str(tmp_path / 'a[1] *?' / 'space')
  space.save(folder)
  loaded = JointSpace.load(folder)
  np.testing.assert_array_equal(loaded.encode_images(inputs[0]), space.encode_images(inputs[0]))
