"""The same crops as the gallery of an exported model and as an index, in both encodings."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.index import building, manifest
from tfreid.index.embedder import Embedder
from tfreid.joint_space import JointSpace
from tfreid.serving import export

SIZE = 8  # E
NUM_CROPS = 24
ATTRIBUTES = (
  Attribute('gender', ('male', 'female'), (('gender', 2),), {'female': ('woman',)}),
  Attribute('hat', ('no', 'yes'), (('hat', 2),)),
  Attribute(
    'upper_color',
    ('red', 'green', 'blue'),
    (('red', 1), ('green', 1), ('blue', 1)),
    {'red': ('red top',), 'green': ('green top',), 'blue': ('blue top',)},
  ),
)
RAW_VALUES = {'gender': (1, 2), 'hat': (1, 2), 'red': (0, 1), 'green': (0, 1), 'blue': (0, 1)}
RATES = {'binary': (0.4, 0.1, 0.5, 0.2, 0.3), 'three_state': ()}


def build_schema(encoding):
  return AttributeSchema('Depot', ATTRIBUTES, RAW_VALUES, encoding, RATES[encoding])


def build_space(schema):
  """Untrained encoders, one of them not linear."""
  tf.keras.utils.set_random_seed(3)
  pixels, vector = tf.keras.Input([8, 4, 3]), tf.keras.Input([schema.size])
  flat = tf.keras.layers.Flatten()(tf.keras.layers.Rescaling(1 / 127.5, offset=-1.0)(pixels))
  hidden = tf.keras.layers.Dense(16, activation='relu')(vector)
  return JointSpace(
    tf.keras.Model(pixels, tf.keras.layers.Dense(SIZE)(flat)),
    tf.keras.Model(vector, tf.keras.layers.Dense(SIZE, activation='tanh')(hidden)),
  )


@pytest.fixture(scope='session')
def crops(tmp_path_factory):
  """Folder of crops. Not to be written to."""
  folder = tmp_path_factory.mktemp('data') / 'crops'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(NUM_CROPS):
    pixels = rng.integers(0, 256, (8, 4, 3)).astype(np.uint8)
    (folder / f'{i:03d}.png').write_bytes(tf.io.encode_png(pixels).numpy())
  return folder


@pytest.fixture(scope='session', params=['binary', 'three_state'])
def people(request, tmp_path_factory, crops):
  """Folders of a model and of an index of the same crops: .model, .index; and .schema, .space.

  The first half of the crops is annotated. Not to be written to.
  """
  schema = build_schema(request.param)
  space = build_space(schema)
  encoders = export.encoders(space)
  paths = sorted(crops.glob('*.png'))
  gallery, _ = export.embed_files(encoders.image, [str(path) for path in paths])
  folder = tmp_path_factory.mktemp(request.param)
  said = {'gender': 'female', 'hat': 'no', 'upper_color': 'red+blue'}
  rows = [
    {'path': str(path), 'attributes': said} if i < NUM_CROPS // 2 else {'path': str(path)}
    for i, path in enumerate(paths)
  ]
  export.export(
    space,
    str(folder / 'model'),
    encoders=encoders,
    gallery=gallery,
    ids=[path.name for path in paths],
    crops=[export.Crop(path.name, path.read_bytes()) for path in paths[:2]],
    schema=schema,
    rows=rows,
  )
  listed = folder / 'crops.jsonl'
  listed.write_text(
    ''.join(
      json.dumps({'path': row['path'], 'id': path.name, **row.get('attributes', {})}) + '\n'
      for path, row in zip(paths, rows)
    )
  )
  found = manifest.read(str(listed), attributes={a.name: a.values for a in ATTRIBUTES})
  building.build(str(folder / 'index'), found, Embedder(str(folder / 'model')))
  return types.SimpleNamespace(
    model=str(folder / 'model'),
    index=str(folder / 'index'),
    schema=schema,
    space=space,
    gallery=gallery,
    ids=[path.name for path in paths],
  )
