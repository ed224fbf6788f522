"""A tiny joint space with a schema, and one export of it, for all tests of serving."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data import market1501
from tfreid.joint_space import JointSpace
from tfreid.serving import export

layers = tf.keras.layers

IMAGE_SIZE = (32, 16)
NUM_ROWS = 300


def encode(image, kind='png'):
  encoder = {'png': tf.io.encode_png, 'jpeg': tf.io.encode_jpeg}[kind]
  return encoder(tf.constant(image, tf.uint8)).numpy()


def draw_crop(rng, size=(48, 24)):
  """A picture of coloured squares, uint8 [H, W, 3]."""
  squares = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3))
  return squares.repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)


def build_space(schema, seed=0):
  """A joint space of 12 dimensions whose batch norms have something to fold."""
  tf.keras.utils.set_random_seed(seed)
  pixels = tf.keras.Input([*IMAGE_SIZE, 3], name='image')
  x = layers.Rescaling(1 / 127.5, offset=-1.0)(pixels)
  x = layers.Conv2D(8, 3, strides=2)(x)
  x = layers.ReLU()(layers.BatchNormalization()(x))
  x = layers.Conv2D(16, 3, strides=2)(x)
  x = layers.ReLU()(layers.BatchNormalization()(x))
  x = layers.Dense(12, activation='tanh')(layers.Flatten()(x))
  image_encoder = tf.keras.Model(pixels, x, name='image_encoder')
  attributes = tf.keras.Input([schema.size], name='attributes')
  x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(32)(attributes)))
  x = layers.Dense(12, activation='tanh')(x)
  space = JointSpace(image_encoder, tf.keras.Model(attributes, x, name='attribute_encoder'))
  rng = np.random.default_rng(seed)
  pictures = np.stack([draw_crop(rng, IMAGE_SIZE) for _ in range(32)]).astype(np.float32)
  vectors = rng.integers(0, 2, (32, schema.size)).astype(np.float32)
  for encoder, inputs in ((space.image_encoder, pictures), (space.attribute_encoder, vectors)):
    norms = [layer for layer in encoder.layers if isinstance(layer, layers.BatchNormalization)]
    for layer in norms:
      layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
      layer.beta.assign(rng.normal(size=layer.beta.shape) / 3)
      layer.momentum = 0.0  # the statistics become those of the next batch
    encoder(inputs, training=True)
  return space


@pytest.fixture(scope='session')
def schema():
  return market1501.SCHEMA


@pytest.fixture(scope='session')
def space(schema):
  return build_space(schema)


@pytest.fixture(scope='session')
def crops():
  rng = np.random.default_rng(1)
  images = [draw_crop(rng) for _ in range(6)]
  return [
    export.Crop(f'crop{i}.{kind}', encode(image, kind))
    for i, (image, kind) in enumerate(zip(images, ['png', 'jpeg'] * 3))
  ]


@pytest.fixture(scope='session')
def gallery(space):
  rng = np.random.default_rng(2)
  pictures = np.stack([draw_crop(rng, IMAGE_SIZE) for _ in range(NUM_ROWS)])
  gallery = space.encode_images(pictures.astype(np.float32)).numpy()
  gallery[7] = gallery[3]  # two crops that look the same
  return gallery


@pytest.fixture(scope='session')
def encoders(space):
  return export.encoders(space)


@pytest.fixture(scope='session')
def ids():
  return [f'test/{i:04d}.jpg' for i in range(NUM_ROWS)]


@pytest.fixture(scope='session')
def exported(tmp_path_factory, space, encoders, gallery, ids, crops, schema):
  """Folder of version 1 of a model with 20 results. Not to be written to."""
  return export.export(
    space,
    str(tmp_path_factory.mktemp('models') / 'people'),
    encoders=encoders,
    gallery=gallery,
    ids=ids,
    crops=crops,
    schema=schema,
    top_k=20,
    rows=[{'path': f'/data/{name}', 'camera': 1} for name in ids],
    about={'dataset': 'squares'},
  )


@pytest.fixture(scope='session')
def half(space, gallery, ids, crops, schema, tmp_path_factory):
  """Folder of a version in bfloat16. Not to be written to."""
  return export.export(
    space,
    str(tmp_path_factory.mktemp('models') / 'half'),
    encoders=export.encoders(space, precision='bfloat16'),
    gallery=gallery[:30],
    ids=ids[:30],
    crops=crops,
    schema=schema,
  )


@pytest.fixture(scope='session')
def model(exported):
  """The signatures of the export, loaded again."""
  loaded = tf.saved_model.load(exported)
  signatures = dict(loaded.signatures.items())
  signatures['owner'] = loaded  # signatures do not keep their variables alive
  return signatures
