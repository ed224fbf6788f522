"""The server's command line, with a real process for each start."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TOOL = str(ROOT / 'tools' / 'serve.py')


def module(folder, name):
  """What the tests of another room make or start."""
  path = ROOT / 'tests' / folder / f'{name}.py'
  spec = importlib.util.spec_from_file_location(f'serve_{name}', path)
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  return found


@pytest.fixture(scope='module')
def depot(tmp_path_factory):
  """Folders of a model and of an index of its crops."""
  maker = module('search', 'depot')
  folder = tmp_path_factory.mktemp('depot')
  return maker.build(folder, maker.write_crops(folder / 'crops'), 'binary')


def refused(*flags, code=1):
  """What a server says that does not start."""
  done = subprocess.run(
    [sys.executable, TOOL, *flags], capture_output=True, text=True, check=False, timeout=120
  )
  assert done.returncode == code, done.stdout + done.stderr
  assert 'Traceback' not in done.stderr
  return done.stdout + done.stderr


class Started:
  """A server in a process of its own."""

  def __init__(self, *flags):
    self.process = subprocess.Popen(
      [sys.executable, TOOL, '--port=0', *flags],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    self.said = ''
    for line in self.process.stdout:
      self.said += line
      if found := re.match(r'Open http://.*:(\d+)/', line):
        self.port = int(found[1])
        break

  def ask(self, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
    connection.request(method, path, body, {'Connection': 'close', **(headers or {})})
    found = connection.getresponse()
    return found.status, found.read()

  def search(self, query, **headers):
    body = json.dumps({'query': query, 'top_k': 30})
    headers = {'Content-Type': 'application/json', **headers}
    status, answer = self.ask('POST', '/api/v1/search', body, headers)
    return status, json.loads(answer)

  def end(self, number=signal.SIGTERM):
    self.process.send_signal(number)
    rest, _ = self.process.communicate(timeout=60)
    self.said += rest
    return self.process.returncode


@pytest.fixture
def start():
  """start(*flags): a Started."""
  started = []

  def begin(*flags):
    started.append(Started(*flags))
    return started[-1]

  yield begin
  for server in started:
    if server.process.poll() is None:
      server.process.kill()
      server.process.communicate()


def test_help_imports_neither_tensorflow_nor_fastapi():
  code = (
    'import sys, runpy; sys.argv = [sys.argv[1], "--help"]\n'
    'try:\n  runpy.run_path(sys.argv[0], run_name="__main__")\n'
    'except SystemExit:\n  pass\n'
    'print([m for m in ("tensorflow", "fastapi", "uvicorn", "numpy") if m in sys.modules])'
  )
  tool = str(ROOT / 'tools')
  done = subprocess.run(
    [sys.executable, '-c', code, TOOL],
    capture_output=True,
    text=True,
    check=True,
    env={**os.environ, 'PYTHONPATH': tool},
  )
  for flag in ('--[no]allow_anonymous', '--index', '--server_timeout', '--model_version'):
    assert f'  {flag}: ' in done.stdout
  assert done.stdout.rstrip().endswith('[]')


def test_what_cannot_be_served_is_refused_with_advice(tmp_path):
  assert 'Give --index=DIRECTORY, --model=DIRECTORY or --server=ADDRESS' in refused()
  for folder in ('--model=x', '--index=x'):
    assert 'Give --server or a folder' in refused(folder, '--server=http://localhost:8501')
  assert '--model_version needs --server' in refused('--model=x', '--model_version=3')
  assert '--certificate needs --server' in refused('--index=x', '--certificate=x')
  assert 'no address of a server' in refused('--server=localhost:8501', '--port=0')
  nobody = refused('--server=http://127.0.0.1:1', '--port=0', '--server_timeout=1')
  assert 'Nobody answers at http://127.0.0.1:1' in nobody
  assert 'holds no exported model' in refused(f'--model={tmp_path}', '--port=0')
  assert 'holds no index' in refused(f'--index={tmp_path}', '--port=0')
  policy = tmp_path / 'policy.json'
  policy.write_text('{"max_result": 5}')
  assert "no rule 'max_result'" in refused('--model=x', f'--policy={policy}')
  assert 'such as https://depot.example' in refused('--model=x', '--public_url=depot.example')
  assert 'expected IP addresses' in refused('--model=x', '--trusted_proxies=10.0.0.0/8')
  assert 'No such file' in refused('--model=x', f'--policy={tmp_path / "missing"}')
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    assert 'Choose another --port' in refused('--model=x', f'--port={port}')


def test_others_are_let_in_by_nobodys_accident(tmp_path):
  for host in ('0.0.0.0', '::', '192.0.2.1'):
    assert '--allow_anonymous if anybody may' in refused('--model=x', f'--host={host}', '--port=0')
  assert 'at least 16' in refused('--model=x', '--host=0.0.0.0', '--token=ann:short')
  tokens = tmp_path / 'tokens'
  tokens.write_text('# nobody yet\n\n')
  tokens.chmod(0o600)
  assert 'no line NAME:SECRET' in refused('--model=x', f'--token_file={tokens}')
  tokens.write_text('ann:0123456789abcdef\nann:fedcba9876543210\n')
  assert 'line 2: there is a token' in refused('--model=x', f'--token_file={tokens}')


def test_a_model_is_served_to_this_machine_and_ends_well(start, depot, tmp_path):
  log = tmp_path / 'audit.jsonl'
  server = start(f'--model={depot.model}', f'--audit_log={log}')
  assert 'Open http://127.0.0.1:' in server.said
  assert server.ask('GET', '/healthz')[0] == 200
  assert b'<title>' in server.ask('GET', '/')[1]
  status, answer = server.search({'hat': 'yes'})
  assert (status, len(answer['hits'])) == (200, 24)
  assert server.ask('GET', '/', headers={'Host': 'evil.example'})[0] == 400
  assert len(log.read_text().splitlines()) == 1
  # Nobody else can reach it.
  listening = Path('/proc/net/tcp')
  if listening.exists():
    lines = [line.split()[1] for line in listening.read_text().splitlines()[1:]]
    assert f'0100007F:{server.port:04X}' in lines
    assert f'00000000:{server.port:04X}' not in lines
  assert server.end() == 0
  assert server.said.endswith('Ended.\n')


def test_ctrl_c_ends_it_well(start, depot):
  server = start(f'--model={depot.model}')
  assert 'Searches are not logged' in server.said
  assert server.end(signal.SIGINT) == 0


def test_others_must_say_who_they_are_and_are_warned_about(start, depot, tmp_path):
  tokens = tmp_path / 'tokens'
  tokens.write_text('ann:0123456789abcdef\n')
  tokens.chmod(0o600)
  log = tmp_path / 'audit.jsonl'
  log.touch(0o644)
  server = start(
    f'--model={depot.model}',
    '--host=0.0.0.0',
    f'--token_file={tokens}',
    f'--audit_log={log}',
    '--public_url=https://depot.example',
    '--trusted_proxies=127.0.0.1',
  )
  assert 'Warning: others than this machine can reach 0.0.0.0' in server.said
  assert 'Others than its owner can read or change the audit log' in server.said
  assert server.search({'hat': 'yes'})[0] == 401
  assert server.search({'hat': 'yes'}, Authorization='Bearer 0123456789abcdef')[0] == 200
  assert '0123456789abcdef' not in server.said
  # A proxy that encrypts stands in front: the log has whom it speaks for.
  proxied = {'Host': 'depot.example', 'X-Forwarded-For': '10.1.2.3', 'X-Forwarded-Proto': 'https'}
  assert server.search({'hat': 'yes'}, **proxied)[0] == 401
  connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=60)
  body, kind = json.dumps({'token': '0123456789abcdef'}), 'application/json'
  connection.request('POST', '/api/v1/session', body, {**proxied, 'Content-Type': kind})
  assert 'Secure' in connection.getresponse().headers['Set-Cookie']
  connection.close()
  addresses = [json.loads(line)['who']['address'] for line in log.read_text().splitlines()]
  assert addresses == ['127.0.0.1', '127.0.0.1', '10.1.2.3', '10.1.2.3']


def test_an_index_that_grows_is_taken_over(start, depot, tmp_path):
  import shutil

  from tfreid.index import writer

  index = tmp_path / 'index'
  shutil.copytree(depot.index, index)
  server = start(f'--index={index}', '--refresh_seconds=0.1')
  assert len(server.search({'hat': 'yes'})[1]['hits']) == 24
  writer.remove(str(index), depot.ids[:4])
  deadline = time.monotonic() + 60
  while server.search({'hat': 'yes'})[1]['gallery_size'] != 20 and time.monotonic() < deadline:
    time.sleep(0.1)
  ids = {hit['id'] for hit in server.search({'hat': 'yes'})[1]['hits']}
  assert ids == set(depot.ids[4:])
  assert server.end() == 0


def test_a_model_under_tf_serving_is_served_and_its_next_version_taken_over(start, depot, tmp_path):
  import shutil

  folder = tmp_path / 'people'
  shutil.copytree(Path(depot.model, '1'), folder / '1')
  behind = module('serving', 'served').Served({'people': folder})
  try:
    log = tmp_path / 'audit.jsonl'
    server = start(
      f'--server={behind.rest}',
      '--model_name=people',
      f'--gallery={folder}/1/assets.extra/gallery.jsonl',
      f'--audit_log={log}',
      '--refresh_seconds=0.1',
      '--server_timeout=60',
    )
    status, answer = server.search({'hat': 'yes'})
    assert (status, len(answer['hits'])) == (200, 24)
    assert server.ask('GET', answer['hits'][0]['thumbnail'])[0] == 200
    shutil.copytree(folder / '1', folder / '.2')
    (folder / '.2').rename(folder / '2')
    deadline = time.monotonic() + 300
    while answer['source'] != 'people, version 2' and time.monotonic() < deadline:
      time.sleep(0.1)
      status, answer = server.search({'hat': 'yes'})
      assert status == 200
    assert answer['source'] == 'people, version 2'
    assert json.loads(server.ask('GET', '/api/v1/info')[1])['name'] == 'people, version 2'
    assert json.loads(log.read_text().splitlines()[-1])['source'] == 'people, version 2'
    assert server.end() == 0
    assert 'What is searched has changed: people, version 2, 24 crops.' in server.said
  finally:
    behind.stop()


def test_rest_needs_no_tensorflow(depot):
  behind = module('serving', 'served').Served({'people': depot.model})
  code = f"""if True:
    import sys
    from starlette.testclient import TestClient
    from tfreid.search.remote import ServedModel
    from tfreid.web import app
    made = app.create(ServedModel({behind.rest!r}, 'people', timeout=60))
    with TestClient(made, base_url='http://localhost:8000') as client:
      asked = client.post('/api/v1/search', json={{'words': 'woman', 'suggest': True}})
      assert asked.status_code == 200 and asked.json()['suggestions'], asked.text
    assert 'tensorflow' not in sys.modules and 'grpc' not in sys.modules
  """
  try:
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
  finally:
    behind.stop()
