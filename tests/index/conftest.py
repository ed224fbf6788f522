"""Crops, a small exported model made by hand, and engines without a model."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.index import engine, engines, milvus, segment, trust
from tfreid.index.ledger import Ledger
from tfreid.serving.search import ExactSearch

SIZE = 6  # E of the exported model
WIDTH = 16  # E of the engines' tests

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


@pytest.fixture(scope='session')
def crops(tmp_path_factory):
  """Folder with 30 crops in two folders. Not to be written to."""
  folder = tmp_path_factory.mktemp('data') / 'crops'
  rng = np.random.default_rng(0)
  for i in range(30):
    path = folder / f'c{i % 2}' / f'{i:03d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(rng.integers(0, 256, (8, 4, 3)).astype(np.uint8)).numpy())
  # Two crops that look the same.
  (folder / 'c1' / '029.png').write_bytes((folder / 'c0' / '004.png').read_bytes())
  return folder


@pytest.fixture(scope='session')
def models(tmp_path_factory, crops):
  """Folder of two models: people/1 with the crops as its gallery, other/1 that embeds otherwise."""
  folder = tmp_path_factory.mktemp('models')
  paths = sorted(crops.rglob('*.png'))
  ids = [path.relative_to(crops).as_posix() for path in paths]
  contents = [path.read_bytes() for path in paths]
  write_model(folder / 'people' / '1', 1, contents, ids)
  write_model(folder / 'other' / '1', 2, contents, ids)
  return folder


def concept(contents):
  """What `DigestModel` makes of a file: numbers drawn from its bytes."""
  if b'broken' in contents:
    raise ValueError('Not an image.')
  seed = int.from_bytes(segment.digest(contents)[:8].encode(), 'little')
  return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


@pytest.fixture
def digest_model():
  """A model that takes any file that does not say 'broken', and counts what it embedded."""
  embedded = []

  def embed_images(contents):
    vectors = np.stack([concept(content) for content in contents])
    embedded.extend(contents)
    return vectors

  return types.SimpleNamespace(
    directory='(none)',
    fingerprint='digest',
    size=WIDTH,
    embed_images=embed_images,
    embedded=embedded,
  )


@pytest.fixture
def files(tmp_path):
  """files(n, start=0): rows of n new files; every third has neither camera nor time."""

  def make(count, start=0, text='crop'):
    rows = []
    for i in range(start, start + count):
      path = tmp_path / 'files' / f'{i}.bin'
      path.parent.mkdir(exist_ok=True)
      path.write_text(f'{text} {i}')
      fields = {'camera': i % 5, 'time': f'2024-01-{i % 28 + 1:02d}'} if i % 3 else {}
      rows.append(segment.Row(f'id {i}', str(path), fields))
    return rows

  return make


# Milvus Lite as a server for many: in a process that ends with the one that holds its input.
SERVER = """
import sys
from milvus_lite.server import Server
server = Server(sys.argv[1], address=sys.argv[2])
if not server.init() or not server.start():
  sys.exit('Milvus Lite did not start')
sys.stdin.read()
server.stop()
"""


@pytest.fixture(scope='session')
def milvus_server(tmp_path_factory):
  """Address of a Milvus server: the process of Milvus Lite, asked by TCP."""
  pytest.importorskip('pymilvus', reason="needs the extra 'milvus'")
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  folder = tmp_path_factory.mktemp('server')
  server = subprocess.Popen(
    [sys.executable, '-c', SERVER, str(folder / 'server.db'), f'127.0.0.1:{port}'],
    stdin=subprocess.PIPE,
  )
  try:
    for _ in range(600):
      assert server.poll() is None, 'the server ended'
      try:
        socket.create_connection(('127.0.0.1', port), 1).close()
        break
      except OSError:
        time.sleep(0.1)
    trust.remember_place(f'http://127.0.0.1:{port}')
    yield f'http://127.0.0.1:{port}'
  finally:
    server.stdin.close()
    server.wait()


@pytest.fixture(scope='session', params=['embedded', 'milvus'])
def place(request):
  """Where an index is built: options of `building.build` and `building.merge`."""
  if request.param == 'embedded':
    return {}
  return {'engine_name': 'milvus', 'uri': request.getfixturevalue('milvus_server')}


@pytest.fixture(params=['embedded', 'resident', 'resident bfloat16', 'milvus', 'milvus server'])
def any_engine(request, tmp_path):
  """any_engine(concepts, rows): an engine that holds them; as `any_engine.commit(...)` adds more.

  Attributes:
    name: what it is.
    engine: 'embedded' or 'milvus'.
  """
  engine_name, uri, resident = 'embedded', '', False
  if request.param == 'milvus':
    pytest.importorskip('pymilvus', reason="needs the extra 'milvus'")
    engine_name = 'milvus'
  elif request.param == 'milvus server':
    engine_name, uri = 'milvus', request.getfixturevalue('milvus_server')
  elif request.param != 'embedded':
    resident = 'bfloat16' if 'bfloat16' in request.param else True
  opened = []

  def commit(found, concepts, rows, **options):
    with found.ledger.lock():
      entries = []
      if len(rows):
        parts = [(concepts, rows)]
        entries = [
          segment.write(found.ledger.segments, parts, size=len(rows), width=concepts.shape[1])
        ]
      found.commit(entries, **options)

  def make(concepts, rows):
    ledger = Ledger(str(tmp_path / 'index'))
    about = {'fingerprint': 'f', 'embedding_size': concepts.shape[1], 'path': '(none)'}
    state = engine.new_state(about, engine=engine_name, uri=uri)
    found = engines.open_engine(ledger, state, resident=resident)
    opened.append(found)
    # In two commits, so that each search crosses a border.
    middle = len(rows) // 2
    commit(found, concepts[:middle], rows[:middle])
    commit(found, concepts[middle:], rows[middle:])
    return found

  make.commit = commit
  make.name = request.param
  make.engine = engine_name
  yield make
  for found in opened:
    state = found.state
    found.close()
    if uri:
      milvus.drop(found.ledger, state)
