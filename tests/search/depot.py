"""Crops, an exported model of them, and an index of them: what can be searched, small."""

from __future__ import annotations

import json
import types

import numpy as np
import tensorflow as tf

from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.index import manifest, writer
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
  """Untrained encoders, that of attributes not linear."""
  tf.keras.utils.set_random_seed(3)
  pixels, vector = tf.keras.Input([8, 4, 3]), tf.keras.Input([schema.size])
  flat = tf.keras.layers.Flatten()(tf.keras.layers.Rescaling(1 / 127.5, offset=-1.0)(pixels))
  hidden = tf.keras.layers.Dense(16, activation='relu')(vector)
  return JointSpace(
    tf.keras.Model(pixels, tf.keras.layers.Dense(SIZE)(flat)),
    tf.keras.Model(vector, tf.keras.layers.Dense(SIZE, activation='tanh')(hidden)),
  )


def write_crops(folder):
  """Writes NUM_CROPS pictures of noise."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(NUM_CROPS):
    pixels = rng.integers(0, 256, (8, 4, 3)).astype(np.uint8)
    (folder / f'{i:03d}.png').write_bytes(tf.io.encode_png(pixels).numpy())
  return folder


def export_model(directory, crops, schema):
  """Exports a model with the crops as its gallery.

  Args:
    directory: of the model.
    crops: folder. The first half of them is annotated.
    schema: of the model; what it knows of the annotations is kept.

  Returns:
    A namespace: model (folder), schema, space, gallery (float32 [N, E]), ids and rows.
  """
  space = build_space(schema)
  encoders = export.encoders(space)
  paths = sorted(crops.glob('*.png'))
  gallery, _ = export.embed_files(encoders.image, [str(path) for path in paths])
  said = {'gender': 'female', 'hat': 'no', 'upper_color': 'red+blue'}
  said = {a.name: said[a.name] for a in schema.attributes if a.name in said}
  rows = [
    {'path': str(path), 'attributes': said if i < NUM_CROPS // 2 else {}}
    for i, path in enumerate(paths)
  ]
  export.export(
    space,
    str(directory),
    encoders=encoders,
    gallery=gallery,
    ids=[path.name for path in paths],
    crops=[export.Crop(path.name, path.read_bytes()) for path in paths[:2]],
    schema=schema,
    rows=rows,
  )
  return types.SimpleNamespace(
    model=str(directory),
    schema=schema,
    space=space,
    gallery=gallery,
    ids=[path.name for path in paths],
    rows=rows,
  )


def build(folder, crops, encoding):
  """Exports a model with the crops as its gallery, and makes an index of them.

  Returns:
    What `export_model` does, and the folder of the index as `index`.
  """
  made = export_model(folder / 'model', crops, build_schema(encoding))
  listed = folder / 'crops.jsonl'
  lines = [
    {'path': row['path'], 'id': identifier, **row['attributes']}
    for identifier, row in zip(made.ids, made.rows)
  ]
  listed.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  found = manifest.read(str(listed), attributes={a.name: a.values for a in ATTRIBUTES})
  writer.build(str(folder / 'index'), found, Embedder(made.model))
  made.index = str(folder / 'index')
  return made
