"""The conformance server in a process of its own, for tests of whoever speaks to TF Serving."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from pathlib import Path

SERVER = Path(__file__).with_name('conformance_server.py')


class Served:
  """A running server.

  Attributes:
    grpc, rest: its addresses.
    said: what it said when it was ready.
  """

  def __init__(self, models, *flags):
    """Starts it.

    Args:
      models: name to folder of versions.
      flags: of the server.
    """
    named = [f'--model={name}={folder}' for name, folder in models.items()]
    # -I: neither this folder nor PYTHONPATH, so that nothing but installed packages is found.
    self.process = subprocess.Popen(
      [sys.executable, '-I', SERVER, *named, *flags],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    line = self.process.stdout.readline()
    assert line, 'the conformance server did not start'
    self.said = json.loads(line)
    self.grpc = f'grpc://127.0.0.1:{self.said["grpc"]}'
    self.rest = f'http://127.0.0.1:{self.said["rest"]}'

  def ask(self, path, body=None, *, method=''):
    """Sends bytes, or a value as JSON, to REST. Returns (HTTP status, JSON or text)."""
    connection = http.client.HTTPConnection('127.0.0.1', self.said['rest'], timeout=60)
    contents = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
      connection.request(method or ('GET' if body is None else 'POST'), path, contents)
      response = connection.getresponse()
      text = response.read().decode()
    finally:
      connection.close()
    try:
      return response.status, json.loads(text)
    except ValueError:
      return response.status, text

  def wait_for(self, name, states, *, seconds=60.0):
    """Waits until the versions of a model are in these states, number to name."""
    deadline = time.monotonic() + seconds
    found = {}
    while found != states and time.monotonic() < deadline:
      _, answer = self.ask(f'/v1/models/{name}')
      rows = answer.get('model_version_status', [])
      found = {int(row['version']): row['state'] for row in rows}
      time.sleep(0.05)
    assert found == states

  def stop(self):
    """Ends it; a server that has crashed is an error."""
    assert self.process.poll() is None, f'the server ended with {self.process.returncode}'
    self.process.stdin.close()
    self.process.wait(timeout=30)
    self.process.stdout.close()
