"""Crops, a small exported model made by hand, and engines without a model."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfreid.index import engines, milvus, segment, trust
from tfreid.index.directory import IndexDirectory

WIDTH = 16  # E of the engines' tests

# `color_model` is imported by name, from this folder, and where it is needed only.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope='session')
def crops(tmp_path_factory):
  """Folder with 30 crops in two folders. Not to be written to."""
  folder = tmp_path_factory.mktemp('data') / 'crops'
  rng = np.random.default_rng(0)
  for i in range(30):
    path = folder / f'c{i % 2}' / f'{i:03d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (8, 4, 3)).astype(np.uint8)).save(path)
  # Two crops that look the same.
  (folder / 'c1' / '029.png').write_bytes((folder / 'c0' / '004.png').read_bytes())
  return folder


@pytest.fixture(scope='session')
def models(tmp_path_factory, crops):
  """Folder of two models: people/1 with the crops as its gallery, other/1 that embeds otherwise."""
  from color_model import write_model

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


@pytest.fixture(scope='session', params=['embedded', 'memory', 'milvus'])
def place(request):
  """Where an index is built: options of `writer.build` and `writer.merge`."""
  if request.param != 'milvus':
    return {'engine_name': request.param}
  return {'engine_name': 'milvus', 'uri': request.getfixturevalue('milvus_server')}


@pytest.fixture(
  params=[
    'embedded',
    'embedded without simsimd',
    'resident',
    'resident float32',
    'resident bfloat16',
    'memory',
    'milvus',
    'milvus server',
  ]
)
def any_engine(request, tmp_path, monkeypatch):
  """any_engine(concepts, rows): an engine that holds them; as `any_engine.commit(...)` adds more.

  Attributes:
    name: what it is.
    engine: its name.
  """
  engine_name, uri, resident = 'embedded', '', False
  if request.param == 'milvus':
    pytest.importorskip('pymilvus', reason="needs the extra 'milvus'")
    engine_name = 'milvus'
  elif request.param == 'milvus server':
    engine_name, uri = 'milvus', request.getfixturevalue('milvus_server')
  elif request.param == 'memory':
    engine_name = 'memory'
  elif request.param.startswith('resident'):
    resident = request.param.partition(' ')[2] or True
  elif request.param == 'embedded without simsimd':
    monkeypatch.setitem(sys.modules, 'simsimd', None)
  opened = []

  def commit(found, concepts, rows, **options):
    with found.folder.lock():
      entries = []
      if len(rows):
        parts = [(concepts, rows)]
        entries = [
          segment.write(found.folder.segments, parts, size=len(rows), width=concepts.shape[1])
        ]
      found.commit(entries, **options)

  def make(concepts, rows):
    folder = IndexDirectory(str(tmp_path / 'index'))
    about = {'fingerprint': 'f', 'embedding_size': concepts.shape[1], 'path': '(none)'}
    state = engines.new_state(about, engine=engine_name, uri=uri)
    found = engines.open_engine(folder, state, resident=resident)
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
      milvus.drop(found.folder, state)
