"""The server of the page under 50 clients at once for a minute, on an index of 100k crops.

  python benchmarks/soak.py --crops=1000000 --clients=10 --seconds=30
  python benchmarks/soak.py --processes=2
  python benchmarks/soak.py --abuse --seconds=20

Each client does what the page does: it searches (with reasons and the next question), fetches the
pictures that come into sight, sometimes filters, asks for more like a crop, and uploads one. The
concepts are random unit vectors; server, log and clients share the machine.

With --abuse the same clients are measured three times: alone; beside 1,000 connections that never
finish their headers and 100 uploads that send 1 MB and then a byte in a while, and whoever is cut
off comes again at once; and beside 300 uploads of 6 MB that come at the same moment.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NUM_CROPS, CLIENTS, SECONDS = 100_000, 50, 60.0
WIDTH = 128
# Crops that a picture is drawn for; the rows share them.
_PICTURES = 200
_BLOCK = 4000
# Whom the clients are beside, with --abuse.
_ABUSES = {
  'beside_half_open': {'half_open': 1000, 'slow_upload': 100},
  'beside_300_uploads': {'large_upload': 300},
}


def run() -> dict[str, float]:
  """100k crops, 50 clients, a minute."""
  return measure(crops=NUM_CROPS, clients=CLIENTS, seconds=SECONDS)


def measure(
  *, crops: int, clients: int, seconds: float, flags: Sequence[str] = (), abuse: bool = False
) -> dict:
  """Makes an index and a model, serves them, and asks.

  Args:
    crops: in the index.
    clients: that ask at the same time, each one thing after the other.
    seconds: for which they go on.
    flags: more of them, for `tfreid serve`.
    abuse: ask once more, beside those who hold connections and send slowly.

  Returns:
    Requests in all and per second, errors, and for each kind of request the milliseconds that half,
    95 %, 99 % and all of them took at most; the most memory that the server had; with `abuse`, the
    same under 'abused'.
  """
  with tempfile.TemporaryDirectory() as folder:
    log = os.path.join(folder, 'audit.jsonl')
    # In a process of its own: the clients of this one want no TensorFlow beside them.
    subprocess.run(
      [sys.executable, os.path.abspath(__file__), f'--make={folder}', f'--crops={crops}'],
      check=True,
    )
    command = [
      sys.executable,
      os.path.join(ROOT, 'tools', 'serve.py'),
      f'--index={folder}/index',
      f'--model={folder}/model',
      '--port=0',
      f'--audit_log={log}',
      *flags,
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
      port = _port(server)
      with open(f'{folder}/crops/0.jpg', 'rb') as file:
        picture = file.read()
      results = _ask(port, picture, clients=clients, seconds=seconds)
      results['server_mib'] = _most_memory(server.pid)
      if abuse:
        for name, kinds in _ABUSES.items():
          with _Abuse(port, kinds) as abuse_:
            abused = _ask(port, picture, clients=clients, seconds=seconds)
          results['answered'] += abused.pop('answered')
          abused.update(abuse=abuse_.counts, server_mib=_most_memory(server.pid))
          results[name] = abused
    finally:
      server.send_signal(signal.SIGTERM)
      status = server.wait(timeout=60)
    with open(log, encoding='utf-8') as file:
      logged = sum(1 for line in file if json.loads(line)['outcome'] == 'answered')
    if logged != results.pop('answered'):
      raise RuntimeError(f'{logged} answers are in the log, which is not how many were given.')
    if status:
      raise RuntimeError(f'The server ended with status {status}.')
  return {'crops': crops, 'clients': clients, **results}


def _most_memory(pid: int) -> float:
  """MiB that a process and its children have had at most, resident, each for itself."""
  with open(f'/proc/{pid}/status', encoding='ascii') as file:
    most = next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) / 1024
  with open(f'/proc/{pid}/task/{pid}/children', encoding='ascii') as file:
    return most + sum(_most_memory(int(child)) for child in file.read().split())


class _Abuse:
  """An abuser in a process of its own, as long as the context lasts.

  Attributes:
    counts: how often it connected, by kind.
  """

  def __init__(self, port: int, kinds: Mapping[str, int]):
    self.counts: dict[str, int] = {}
    command = [sys.executable, os.path.abspath(__file__), f'--abuse_port={port}']
    command.append(f'--kinds={json.dumps(kinds)}')
    self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

  def __enter__(self) -> _Abuse:
    print(self._process.stdout.readline().strip(), file=sys.stderr)
    return self

  def __exit__(self, *_) -> None:
    self._process.send_signal(signal.SIGTERM)
    self.counts = json.loads(self._process.communicate(timeout=60)[0].splitlines()[-1])


class _Abuser:
  """Holds connections, sends slowly, sends much; counts how often it was cut off."""

  def __init__(self, port: int):
    self._port = port
    self.counts: collections.Counter = collections.Counter()

  async def run(self, kinds: Mapping[str, int], end: asyncio.Event):
    """Goes on until `end`; says when all connections are there for the first time."""
    tasks = [
      asyncio.ensure_future(self._again(getattr(self, f'_{kind}'), end))
      for kind, count in kinds.items()
      for _ in range(count)
    ]
    # An upload at the same moment as others begins beside the clients.
    await asyncio.sleep(0 if 'large_upload' in kinds else 3)
    print(f'Abuse has begun: {dict(self.counts)}.', flush=True)
    await end.wait()
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(self.counts), flush=True)

  async def _again(self, kind, end):
    while not end.is_set():
      self.counts[kind.__name__.strip('_')] += 1
      try:
        reader, writer = await asyncio.open_connection('127.0.0.1', self._port)
      except OSError:
        await asyncio.sleep(0.1)
        continue
      try:
        await kind(reader, writer)
      except OSError:
        pass
      finally:
        writer.close()
      if kind == self._large_upload:
        return

  async def _half_open(self, reader, writer):
    writer.write(b'GET / HTTP/1.1\r\nHost: localhost\r\n')
    await reader.read()

  async def _slow_upload(self, reader, writer):
    self._begin_upload(writer)
    writer.write(bytes(1_000_000))
    closed = asyncio.ensure_future(reader.read())
    while not closed.done():
      writer.write(b'x')
      await asyncio.wait({closed}, timeout=0.5)

  async def _large_upload(self, reader, writer):
    self._begin_upload(writer)
    writer.write(bytes(6_000_000))
    await writer.drain()
    writer.write(b'\r\n--b--\r\n')
    await reader.read()

  def _begin_upload(self, writer):
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    writer.write(
      b'POST /api/v1/like HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n'
      b'Content-Type: multipart/form-data; boundary=b\r\n'
      b'Content-Length: %d\r\n\r\n' % (len(part) + 6_000_000 + 9) + part
    )


async def _be_abusive(port: int, kinds: Mapping[str, int]) -> None:
  end, loop = asyncio.Event(), asyncio.get_running_loop()
  loop.add_signal_handler(signal.SIGTERM, end.set)
  loop.set_exception_handler(lambda *_: None)  # being cut off is what it is for
  await _Abuser(port).run(kinds, end)


def _port(server: subprocess.Popen) -> int:
  for line in server.stdout:
    if match := re.match(r'Open http://.*:(\d+)/', line):
      return int(match[1])
  raise RuntimeError('The server did not start.')


# What of an answer says which crops it holds; reading all of it would take the client as long as it
# takes the server to write it.
_THUMBNAIL = re.compile(rb'"thumbnail": ?"([^"]+)"')
_ID = re.compile(rb'"id": ?("[^"]+")')
_LENGTH = re.compile(rb'\r\ncontent-length: *(\d+)', re.IGNORECASE)


class _Client:
  """Asks one thing after the other, over one connection.

  By hand, and all in one thread: whatever the clients compute, the server, which has the same
  cores, cannot.
  """

  def __init__(self, number: int, port: int, picture: bytes, *, pictures: int = 6):
    self._pictures = pictures
    self.milliseconds: dict[str, list[float]] = collections.defaultdict(list)
    self.errors: collections.Counter = collections.Counter()
    self._random = random.Random(number)
    self._port, self._picture = port, picture
    self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

  async def run(self, end: asyncio.Event):
    """Goes on until `end`, and finishes what it has begun."""
    while not end.is_set():
      answer = await self._search()
      for path in _THUMBNAIL.findall(answer)[: self._pictures]:
        await self._request('picture', b'GET', path)
      names = _ID.findall(answer)
      if names and self._random.random() < 0.2:
        body = b'{"id": %s}' % self._random.choice(names)
        await self._request('like', b'POST', b'/api/v1/like', body)
      if self._random.random() < 0.1:
        await self._upload()
    if self._connection:
      self._connection[1].close()

  async def _search(self) -> bytes:
    draw = self._random
    query = draw.choice(
      [
        {'gender': 'female', 'upper_color': draw.choice(['red', 'blue', 'black'])},
        {'gender': 'male', 'backpack': 'yes', 'lower_color': '!black'},
        {'hat': draw.choice(['yes', 'no']), 'age': 'adult', 'hair': 'long'},
      ]
    )
    asked, kind = {'query': query, 'explain': True, 'suggest': True}, 'search'
    if draw.random() < 0.2:
      asked['where'] = f'camera in [{draw.randrange(20)}, {draw.randrange(20)}]'
      kind = 'filtered'
    return await self._request(kind, b'POST', b'/api/v1/search', json.dumps(asked).encode())

  async def _upload(self):
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    body = head + self._picture + b'\r\n--b--\r\n'
    await self._request(
      'upload', b'POST', b'/api/v1/like', body, b'multipart/form-data; boundary=b'
    )

  async def _request(self, kind, method, path, body=b'', content_type=b'application/json'):
    started = time.perf_counter()
    try:
      status, contents = await asyncio.wait_for(
        self._exchange(method, path, body, content_type), timeout=120
      )
    except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as error:
      self.errors[f'{kind}: {type(error).__name__}'] += 1
      if self._connection:
        self._connection[1].close()
      self._connection = None
      return b''
    if status != 200:
      self.errors[f'{kind}: {status}'] += 1
      return b''
    self.milliseconds[kind].append(1000 * (time.perf_counter() - started))
    return contents

  async def _exchange(self, method, path, body, content_type):
    """The status and the body of an answer."""
    if self._connection is None:
      self._connection = await asyncio.open_connection('127.0.0.1', self._port, limit=2**20)
    reader, writer = self._connection
    about = b'Content-Type: %s\r\nContent-Length: %d\r\n' % (content_type, len(body))
    writer.write(
      b'%s %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n' % (method, path, about if body else b'') + body
    )
    head = await reader.readuntil(b'\r\n\r\n')
    length = _LENGTH.search(head)
    if length is None:
      raise ValueError('An answer does not say how long it is.')
    contents = await reader.readexactly(int(length[1]))
    if b'\r\nconnection: close' in head.lower():
      writer.close()
      self._connection = None
    return int(head.split(b' ', 2)[1]), contents


async def _ask_together(asking: Sequence[_Client], seconds: float) -> None:
  end = asyncio.Event()
  tasks = [asyncio.ensure_future(client.run(end)) for client in asking]
  await asyncio.wait(tasks, timeout=seconds)  # one that ends has failed, and is told below
  end.set()
  await asyncio.wait_for(asyncio.gather(*tasks), timeout=180)


def _ask(port: int, picture: bytes, *, clients: int, seconds: float, pictures: int = 6) -> dict:
  asking = [_Client(number, port, picture, pictures=pictures) for number in range(clients)]
  started = time.perf_counter()
  asyncio.run(_ask_together(asking, seconds))
  took = time.perf_counter() - started
  errors = sum((client.errors for client in asking), collections.Counter())
  kinds: Mapping[str, list[float]] = collections.defaultdict(list)
  for client in asking:
    for kind, values in client.milliseconds.items():
      kinds[kind] += values
  count = sum(map(len, kinds.values()))
  answered = count - len(kinds['picture'])
  results = {
    'seconds': took,
    'requests': count,
    'errors': sum(errors.values()),
    'requests_per_second': count / took,
    'answers_per_second': answered / took,
    'answered': answered,
  }
  for kind, values in sorted((kind, values) for kind, values in kinds.items() if values):
    half, most, nearly = np.percentile(values, [50, 95, 99])
    results[kind] = {
      'count': len(values),
      'p50_ms': float(half),
      'p95_ms': float(most),
      'p99_ms': float(nearly),
      'max_ms': float(max(values)),
    }
  if errors:
    results['error_kinds'] = dict(errors)
  return results


def _make(folder: str, crops: int) -> None:
  """Writes an export of untrained encoders and an index of random concepts, with its pictures."""
  sys.path.insert(0, ROOT)
  from tfreid.data import market1501
  from tfreid.data.synthetic import SyntheticPeople

  people = SyntheticPeople(
    num_train_people=_PICTURES // 4 + 10,
    num_test_people=8,
    images_per_person=(4, 4),
    image_size=(128, 64),
    difficulty='easy',
  )
  drawn = market1501.load(people.write(f'{folder}/people', workers=1, progress=False).directory)
  paths = list(drawn.train.paths)[:_PICTURES]
  os.mkdir(f'{folder}/crops')
  for i, path in enumerate(paths):
    os.rename(path, f'{folder}/crops/{i}.jpg')
  paths = [f'{folder}/crops/{i}.jpg' for i in range(len(paths))]
  _make_model(folder, paths, drawn.schema)
  _make_index(folder, paths, crops)


def _make_model(folder, paths, schema):
  """Exports a model with one convolution."""
  import tensorflow as tf

  from tfreid.joint_space import JointSpace
  from tfreid.networks.heads import UnitNorm
  from tfreid.serving import export

  tf.keras.utils.set_random_seed(0)
  size = schema.size
  pixels, vector = tf.keras.Input([128, 64, 3]), tf.keras.Input([size])
  hidden = tf.keras.layers.Conv2D(16, 8, strides=8, activation='relu')(pixels)
  hidden = tf.keras.layers.Dense(WIDTH)(tf.keras.layers.Flatten()(hidden))
  space = JointSpace(
    tf.keras.Model(pixels, UnitNorm()(hidden)),
    # Of layers that a server computes without TensorFlow, as those of the methods are.
    tf.keras.Model(vector, UnitNorm()(tf.keras.layers.Dense(WIDTH)(vector))),
  )
  encoders = export.encoders(space)
  with open(paths[0], 'rb') as file:
    sample = export.Crop('0', file.read())
  gallery, _ = export.embed_files(encoders.image, paths[:2])
  export.export(
    space,
    f'{folder}/model',
    encoders=encoders,
    gallery=gallery,
    ids=['0', '1'],
    crops=[sample],
    schema=schema,
  )


def _make_index(folder, paths, crops):
  """Writes an index of random concepts."""
  from tfreid.index import engines, segment
  from tfreid.index.directory import IndexDirectory
  from tfreid.index.embedder import Embedder

  model = Embedder(f'{folder}/model')
  rng = np.random.default_rng(0)

  def parts():
    for start in range(0, crops, _BLOCK):
      count = min(_BLOCK, crops - start)
      concepts = rng.standard_normal((count, WIDTH), np.float32)
      concepts /= np.linalg.norm(concepts, axis=1, keepdims=True)
      yield concepts, [_row(i, paths) for i in range(start, start + count)]

  def _row(i, paths):
    return segment.Row(
      f'camera{i % 20}/{i:09d}.jpg',
      paths[i % len(paths)],
      {'camera': i % 20, 'time': f'2024-{i % 12 + 1:02d}-{i % 28 + 1:02d}T10:00:00'},
      {'gender': 'female' if i % 2 else 'male', 'hat': 'no'} if i % 3 else {},
    )

  opened = IndexDirectory(f'{folder}/index')
  about = {
    'fingerprint': model.fingerprint,
    'embedding_size': model.size,
    'path': model.directory,
  }
  index = engines.open_engine(opened, engines.new_state(about))
  with opened.lock():
    index.commit([segment.write(opened.segments, parts(), size=crops, width=WIDTH)])


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--crops', type=int, default=NUM_CROPS)
  parser.add_argument('--clients', type=int, default=CLIENTS)
  parser.add_argument('--seconds', type=float, default=SECONDS)
  parser.add_argument('--processes', type=int, default=1, help='of the server')
  parser.add_argument('--make', default='', help=argparse.SUPPRESS)
  parser.add_argument('--abuse', action='store_true', help='ask once more, beside an abuser')
  parser.add_argument('--kinds', default='{}', help=argparse.SUPPRESS)
  parser.add_argument('--abuse_port', type=int, default=0, help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.make:
    _make(given.make, given.crops)
  elif given.abuse_port:
    asyncio.run(_be_abusive(given.abuse_port, json.loads(given.kinds)))
  else:
    measured = measure(
      crops=given.crops,
      clients=given.clients,
      seconds=given.seconds,
      flags=[f'--processes={given.processes}'],
      abuse=given.abuse,
    )
    print(json.dumps(measured, indent=1))
