"""A small exported model made by hand, for whoever needs one: it takes TensorFlow to make."""

from __future__ import annotations

import json

import numpy as np
import tensorflow as tf

from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.serving.search import ExactSearch

SIZE = 6  # E of the exported model

SCHEMA = AttributeSchema(
  'Depot',
  (
    Attribute('hat', ('no', 'yes'), (('hat', 2),)),
    Attribute(
      'upper_color',
      ('red', 'green', 'blue'),
      (('red', 1), ('green', 1), ('blue', 1)),
      {'red': ('red top',), 'green': ('green top',), 'blue': ('blue top',)},
    ),
  ),
  {'hat': (1, 2), 'red': (0, 1), 'green': (0, 1), 'blue': (0, 1)},
)


class Model(tf.Module):
  """Colours of a crop, and colours of a description, by fixed matrices."""

  def __init__(self, seed, gallery, ids):
    super().__init__()
    rng = np.random.default_rng(seed)
    self.pixels = tf.Variable(rng.standard_normal((2 * 2 * 3, SIZE)), dtype=tf.float32)
    self.words = tf.Variable(rng.standard_normal((SCHEMA.size, SIZE)), dtype=tf.float32)
    self.gallery = ExactSearch(gallery)
    self.ids = tf.Variable(ids, trainable=False)

  @tf.function(input_signature=[tf.TensorSpec([None], tf.string, 'image_bytes')])
  def embed_images(self, image_bytes):
    def read(contents):
      image = tf.ensure_shape(tf.io.decode_png(contents, channels=3), [None, None, 3])
      return tf.image.resize(tf.cast(image, tf.float32) / 255.0, (2, 2), antialias=True)

    images = tf.map_fn(read, image_bytes, fn_output_signature=tf.TensorSpec([2, 2, 3]))
    concepts = tf.matmul(tf.reshape(images, [-1, 12]) - 0.5, self.pixels)
    return {'concepts': tf.math.l2_normalize(concepts, axis=-1)}

  @tf.function(input_signature=[tf.TensorSpec([None, SCHEMA.size], tf.float32, 'attributes')])
  def embed_attributes(self, attributes):
    return {'concepts': tf.math.l2_normalize(tf.matmul(attributes, self.words), axis=-1)}

  @tf.function(input_signature=[tf.TensorSpec([None, SCHEMA.size], tf.float32, 'attributes')])
  def search(self, attributes):
    scores, rows = self.gallery(self.embed_attributes(attributes)['concepts'], k=10)
    return {'ids': tf.gather(self.ids, rows), 'scores': scores}


def write_model(directory, seed, contents, ids):
  """Exports a model with a gallery of crops."""
  model = Model(seed, np.zeros((1, SIZE)), [''])
  model = Model(seed, model.embed_images(tf.constant(contents))['concepts'], ids)
  signatures = {
    'embed_images': model.embed_images,
    'embed_attributes': model.embed_attributes,
    'serving_default': model.search,
  }
  tf.saved_model.save(model, str(directory), signatures=signatures)
  extra = directory / 'assets.extra'
  extra.mkdir()
  (extra / 'schema.json').write_text(json.dumps(SCHEMA.to_json()))
  about = {'fingerprint': f'seed {seed}', 'embedding_size': SIZE}
  (extra / 'model.json').write_text(json.dumps(about))
  (extra / 'gallery.jsonl').write_text(''.join(json.dumps({'id': name}) + '\n' for name in ids))
