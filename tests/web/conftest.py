"""A tiny index and a tiny exported model behind the application, and somebody who asks it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
import types
from pathlib import Path

import pytest

from tfreid.web.policy import Policy


def _module(folder, name):
  """What the tests of another room make or start."""
  path = Path(__file__).parents[1] / folder / f'{name}.py'
  spec = importlib.util.spec_from_file_location(f'web_{name}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='session')
def depot():
  """The module that makes what the tests of searching search."""
  return _module('search', 'depot')


@pytest.fixture(scope='session')
def people(depot, tmp_path_factory):
  """A model and an index of 24 crops: .model, .index, .schema, .ids, .crops, .folder.

  The index knows camera (0 to 2) and site; half the crops are annotated. Not to be written to.
  """
  from tfreid.index import manifest, writer
  from tfreid.index.embedder import Embedder

  folder = tmp_path_factory.mktemp('web')
  crops = depot.write_crops(folder / 'crops')
  made = depot.build(folder, crops, 'three_state')
  said = [
    {'gender': 'female', 'hat': 'no', 'upper_color': 'red+blue'},
    {'gender': 'male', 'hat': 'yes', 'upper_color': 'green'},
  ]
  rows = []
  for i, path in enumerate(sorted(crops.glob('*.png'))):
    annotated = said[i % 2] if i < 12 else {}
    rows.append(
      {'path': str(path), 'id': f'shelf {i % 2}/{path.name}', 'camera': i % 3, **annotated}
    )
  listed = folder / 'listed.jsonl'
  listed.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  found = manifest.read(str(listed), attributes={a.name: a.values for a in depot.ATTRIBUTES})
  writer.build(str(folder / 'depot'), found, Embedder(made.model))
  return types.SimpleNamespace(
    folder=folder,
    crops=crops,
    model=made.model,
    index=str(folder / 'depot'),
    schema=made.schema,
    ids=[row['id'] for row in rows],
    png=(crops / '000.png').read_bytes(),
  )


@pytest.fixture(scope='session')
def other(depot, people, tmp_path_factory):
  """A model of the same crops with another schema: sex for gender, bag for the colour."""
  from tfreid.data.attributes import Attribute, AttributeSchema

  attributes = (
    Attribute('sex', ('male', 'female'), (('sex', 2),), {'female': ('woman',)}),
    Attribute('hat', ('no', 'yes'), (('hat', 2),)),
    Attribute('bag', ('no', 'yes'), (('bag', 2),)),
  )
  schema = AttributeSchema('Station', attributes, dict.fromkeys(('sex', 'hat', 'bag'), (1, 2)))
  return depot.export_model(tmp_path_factory.mktemp('other') / 'model', people.crops, schema)


class Models:
  """A server of models whose versions come and go, at addresses that stay.

  Attributes:
    server: that runs.
  """

  def __init__(self, folder, start, names):
    self.folder, self._start, self._names = folder, start, names
    self.server = None

  def start(self):
    """Starts it, again at the ports that it had."""
    flags = []
    if self.server:
      flags = [f'--{kind}_port={self.server.said[kind]}' for kind in ('grpc', 'rest')]
    self.server = self._start({name: self.folder / name for name in self._names}, *flags)
    return self

  def stop(self):
    self.server.stop()

  def publish(self, name, model, version):
    """Makes a model the newest version, and waits until it alone is served."""
    hidden = self.folder / name / f'.{version}'
    shutil.copytree(Path(model) / '1', hidden)
    hidden.rename(self.folder / name / str(version))
    if self.server:
      self._wait(name, version)

  def withdraw(self, name, version, former):
    """Takes a version away, and waits until the one before is served."""
    (self.folder / name / str(version)).rename(self.folder / f'{name} {version}')
    self._wait(name, former)

  def _wait(self, name, version):
    served, deadline = None, time.monotonic() + 300
    while served != [version] and time.monotonic() < deadline:
      time.sleep(0.05)
      rows = self.server.ask(f'/v1/models/{name}')[1].get('model_version_status', [])
      served = [int(row['version']) for row in rows if row['state'] == 'AVAILABLE']
    assert served == [version]


@pytest.fixture(scope='session')
def serve_models(people, tmp_path_factory):
  """serve_models(*names): Models, of each the model of `people` as version 1."""
  start = _module('serving', 'served').Served
  started = []

  def begin(*names):
    models = Models(tmp_path_factory.mktemp('served'), start, names)
    for name in names:
      models.publish(name, people.model, 1)
    started.append(models.start())
    return models

  yield begin
  for models in started:
    models.stop()


class Client:
  """Asks an application, and keeps what it logged.

  Attributes:
    http: the test client.
    app: the application.
    path: of the audit log.
  """

  def __init__(self, http, app, path):
    self.http, self.app, self.path = http, app, path

  def __getattr__(self, name):
    return getattr(self.http, name)

  def search(self, **asked):
    return self.http.post('/api/v1/search', json=asked)

  def like(self, **asked):
    return self.http.post('/api/v1/like', json=asked)

  def upload(self, contents, name='crop.png', **options):
    files = {'image': (name, contents, 'image/png')}
    return self.http.post('/api/v1/like', files=files, data={'options': json.dumps(options)})

  def log(self):
    return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture(scope='session')
def loaded(people):
  """The model, loaded once: each application opens its own index with it."""
  from tfreid.index.embedder import Embedder

  return Embedder(people.model)


@pytest.fixture
def serve(people, loaded, tmp_path):
  """serve(policy={...}, source=None, **options of create): a Client of an application."""
  from starlette.testclient import TestClient

  import tfreid.index
  from tfreid.web import app, audit, policy

  started = []

  def start(rules=None, *, source=None, **options):
    source = source or tfreid.index.open(people.index, model=loaded)
    log = tmp_path / f'audit-{len(started)}.jsonl'
    rules = policy.from_json(rules) if rules else Policy()
    options.setdefault('limits', app.Limits(refresh_seconds=0))
    made = app.create(source, policy=rules, audit=audit.AuditLog(str(log)), **options)
    # An error of the server must be an answer, too: the client does not raise it.
    http = TestClient(made, base_url='http://localhost:8000', raise_server_exceptions=False)
    http.__enter__()
    started.append(http)
    return Client(http, made, log)

  yield start
  for http in started:
    http.__exit__(None, None, None)


@pytest.fixture(scope='session')
def start_server(tmp_path_factory):
  """start_server(*flags): the address of a `tfreid serve` in a process of its own."""
  import subprocess
  import sys
  import threading

  root = Path(__file__).parents[2]
  running = []

  def start(*flags):
    process = subprocess.Popen(
      [sys.executable, str(root / 'tools' / 'serve.py'), '--port=0', *flags],
      cwd=tmp_path_factory.mktemp('cwd'),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    running.append(process)
    late = threading.Timer(180, process.kill)
    late.start()
    said = []
    for line in process.stdout:
      said.append(line)
      if line.startswith('Open '):
        late.cancel()
        # Whatever it says later must not fill the pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        return line.split()[1]
    late.cancel()
    raise RuntimeError(f'The server did not start: {"".join(said)}')

  yield start
  for process in running:
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture(scope='session')
def chromium(tmp_path_factory):
  """A headless Chromium; skips where there is none, except in CI."""
  import os
  import shutil

  missing = [name for name in ('chromium', 'chromedriver') if not shutil.which(name)]
  if missing:
    reason = f'no {" and no ".join(missing)} (Debian: apt-get install chromium chromium-driver)'
    if os.environ.get('CI'):
      pytest.fail(f'{reason}: the tests of the page must not be skipped silently')
    pytest.skip(reason)
  from selenium import webdriver
  from selenium.webdriver.chrome.service import Service

  options = webdriver.ChromeOptions()
  options.binary_location = shutil.which('chromium')
  for flag in (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--disable-dev-shm-usage',
    f'--user-data-dir={tmp_path_factory.mktemp("profile")}',
    '--window-size=1360,900',
  ):
    options.add_argument(flag)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
  driver = webdriver.Chrome(options=options, service=Service(shutil.which('chromedriver')))
  driver.set_page_load_timeout(60)
  yield driver
  driver.quit()
