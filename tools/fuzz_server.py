#!/usr/bin/env python3
"""Sends a server thousands of requests that nobody should send, with a time limit on each.

  python tools/fuzz_server.py --requests=10000 --seed=0

Starts `tfreid serve` on a small index, sends random requests over plain sockets (broken HTTP, wrong
JSON, worst texts, damaged pictures, bodies that stop early) from several threads, and from time to
time an ordinary search, which must be answered well. Ends with 1, and says which request it was,
if one is not answered within the limit, if an answer is a 5xx other than 503 or no HTTP at all, if
an ordinary search fails, or if the server prints a traceback.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, 'benchmarks'))
sys.path.insert(0, ROOT)

import soak  # noqa: E402

_PATHS = (
  '/', '/healthz', '/api/v1/info', '/api/v1/schema', '/api/v1/search', '/api/v1/search',
  '/api/v1/search', '/api/v1/like', '/api/v1/like', '/api/v1/crops/0/thumbnail',
  '/api/v1/crops/..%2f..%2fetc/thumbnail', '/api/v1/session', '/openapi.json', '/static/page.js',
  '/search', '/../../etc/passwd', '/%2e%2e/%00', '/search?a=' + 'b' * 5000, '/' + 'x' * 9000,
)  # fmt: skip
_METHODS = ('GET', 'POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS', 'PATCH', 'BREW', 'post', '')
_FIELDS = (
  'query', 'words', 'where', 'must', 'must_not', 'exclude', 'min_score', 'purpose', 'top_k',
  'explain', 'suggest', 'id', 'path', '__proto__', 'constructor',
)  # fmt: skip
_TEXTS = (
  'hat', 'yes', '!yes', 'red', '!', '!!yes', '../..', '\0', '\ud800', 'Ω' * 9, ' ' * 8000 + '! =',
  '! =' * 500, 'camera in [' + ', '.join(map(str, range(3000))) + ']', '(' * 3000, 'not ' * 2000,
  'a' * 100_000, 'hat=' * 300,
  '\u202e\u200b\x1b[2J', '{{7*7}}', "' or 1=1 --", '<script>', '🙂' * 400,
)  # fmt: skip
_LIKE_HTTP = (b'\r\n\r\n', b'\x16\x03\x01\x02\x00', b'GET', b'\0' * 2000, b'PRI * HTTP/2.0\r\n\r\n')


def main() -> int:
  """Runs the trial; returns the status to end with."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
  parser.add_argument('--requests', type=int, default=1000)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--seconds', type=float, default=10.0, help='Limit of each request.')
  parser.add_argument('--threads', type=int, default=4)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run([sys.executable, soak.__file__, f'--make={folder}', '--crops=1000'], check=True)
    with open(os.path.join(folder, 'server.log'), 'w+', encoding='utf-8') as log:
      server = subprocess.Popen(
        [
          sys.executable,
          os.path.join(ROOT, 'tools', 'serve.py'),
          f'--index={folder}/index',
          f'--model={folder}/model',
          '--port=0',
          f'--audit_log={folder}/audit.jsonl',
        ],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
      )
      try:
        port = soak._port(server)
        with open(f'{folder}/crops/0.jpg', 'rb') as file:
          trial = Trial(port, file.read(), options.seconds)
        trial.run(options.requests, options.seed, options.threads)
      finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(timeout=60)
      log.seek(0)
      printed = log.read()
  if 'Traceback' in printed:
    trial.faults.append(f'The server printed a traceback: {printed[:6000]}')
  if status:
    trial.faults.append(f'The server ended with status {status}.')
  slowest = max(trial.seconds, default=0.0)
  print(f'{len(trial.seconds)} requests, slowest {slowest:.2f} s, answers: {dict(trial.statuses)}')
  for fault in trial.faults[:20]:
    print(f'FAULT: {fault}')
  return 1 if trial.faults else 0


class Trial:
  """Requests to one server, and what came of them.

  Attributes:
    statuses: how often each status was answered; 'closed' where the server hung up, which it may
      do to what is no HTTP.
    seconds: that each request took.
    faults: a sentence each.
  """

  def __init__(self, port: int, picture: bytes, limit: float):
    """Args: the server's port, a whole JPEG, and seconds that a request may take."""
    self._port = port
    self._picture = picture
    self._limit = limit
    self.statuses: collections.Counter = collections.Counter()
    self.seconds: list[float] = []
    self.faults: list[str] = []

  def run(self, requests: int, seed: int, threads: int) -> None:
    """Sends so many requests, shared among threads; what they are depends on the seed alone."""
    workers = [
      threading.Thread(target=self._some, args=(range(first, requests, threads), seed))
      for first in range(threads)
    ]
    for worker in workers:
      worker.start()
    for worker in workers:
      worker.join()

  def _some(self, numbers: range, seed: int) -> None:
    for number in numbers:
      rng = random.Random(f'{seed}/{number}')
      ordinary = number % 50 == 0
      content, cut = (self._ordinary(), False) if ordinary else self._request(rng)
      started = time.monotonic()
      try:
        status = self._send(content, cut=cut)
      except OSError as error:
        status = 'closed' if isinstance(error, ConnectionError) else f'{error!r}'
      took = time.monotonic() - started
      self.statuses[status] += 1
      self.seconds.append(took)
      fine = status == 200 if ordinary else status == 'closed' or status == 503 or (
        isinstance(status, int) and 200 <= status < 500
      )  # fmt: skip
      if not fine or took > self._limit:
        self.faults.append(
          f'request {number} of seed {seed}: {status} after {took:.1f} s: {content[:300]!r}'
        )

  def _send(self, content: bytes, *, cut: bool) -> int | str:
    with socket.create_connection(('127.0.0.1', self._port), timeout=self._limit + 5) as link:
      link.sendall(content)
      if cut:
        # Nothing more will come: the server need not wait for the rest until its deadline.
        link.shutdown(socket.SHUT_WR)
      answer = b''
      while block := link.recv(65536):
        answer += block
        if len(answer) > 2**24:
          return 'endless'
    if not answer:
      return 'closed'
    words = answer.split(b' ', 2)
    if words[0] != b'HTTP/1.1' or len(words) < 2 or not words[1].isdigit():
      return f'no HTTP: {answer[:60]!r}'
    return int(words[1])

  def _ordinary(self) -> bytes:
    body = json.dumps({'query': {'hat': 'yes'}, 'top_k': 5}).encode()
    return self._http('POST', '/api/v1/search', {'Content-Type': 'application/json'}, body)

  def _request(self, rng: random.Random) -> tuple[bytes, bool]:
    """A request, and whether the server may wait for more of it."""
    kind = rng.random()
    if kind < 0.05:
      return rng.choice(_LIKE_HTTP) + rng.randbytes(rng.randrange(200)), True
    if kind < 0.75:
      body = self._json(rng)
      content_type = rng.choice(['application/json'] * 8 + ['text/plain', '', 'a' * 5000])
    else:
      body, content_type = self._upload(rng)
    method = 'POST' if rng.random() < 0.9 else rng.choice(_METHODS)
    if rng.random() < 0.8:
      path = rng.choice(['/api/v1/search', '/api/v1/like']) if kind < 0.75 else '/api/v1/like'
    else:
      path = rng.choice(_PATHS)
    broken = rng if rng.random() < 0.15 else None
    content = self._http(method, path, {'Content-Type': content_type}, body, broken)
    cut = broken is not None
    if rng.random() < 0.05:
      content, cut = content[: rng.randrange(1, len(content) + 1)], True
    return content, cut

  def _http(self, method, path, headers, body, rng=None) -> bytes:
    lines = [f'{method} {path} HTTP/1.1', 'Host: localhost', 'Connection: close']
    lines += [f'{name}: {value}' for name, value in headers.items()]
    length = len(body)
    if rng is not None and rng.random() < 0.7:
      length = rng.choice([-1, 0, length + 1, 10**12, 'x', f'{length}, {length}'])
    lines.append(f'Content-Length: {length}')
    if rng is not None and rng.random() < 0.4:
      lines.append(rng.choice(['Transfer-Encoding: chunked', 'X: ' + 'y' * 40_000, ': : :']))
    return '\r\n'.join([*lines, '', '']).encode('utf-8', 'replace') + body

  def _json(self, rng: random.Random) -> bytes:
    document = {rng.choice(_FIELDS): self._value(rng) for _ in range(rng.randrange(5))}
    text = json.dumps(document).encode()
    if rng.random() < 0.15:
      position = rng.randrange(len(text))
      text = text[:position] + rng.randbytes(rng.randrange(4)) + text[position + 1 :]
    return text

  def _value(self, rng: random.Random, depth: int = 0):
    kind = rng.random()
    if kind < 0.5:
      return rng.choice(_TEXTS)
    if kind < 0.7:
      return rng.choice([0, -1, 10**30, 1e308, True, None, 0.5, 500])
    if depth > 12:
      return []
    if kind < 0.85:
      return [self._value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(_TEXTS): self._value(rng, depth + 1) for _ in range(rng.randrange(4))}

  def _upload(self, rng: random.Random) -> tuple[bytes, str]:
    picture = bytearray(self._picture)
    for _ in range(rng.randrange(4)):
      picture[rng.randrange(len(picture))] = rng.randrange(256)
    if rng.random() < 0.3:
      del picture[rng.randrange(len(picture)) :]
    if rng.random() < 0.1:
      # Scans without end: what a progressive picture must not have so many of.
      picture[-2:] = b'\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00' * 20_000
    if rng.random() < 0.5:
      return bytes(picture), rng.choice(['image/jpeg', 'image/png', 'image/svg+xml', ''])
    edge = rng.choice(['b', 'b' * 70, '', '"'])
    name = rng.choice(['image', 'image', 'top_k', rng.choice(_TEXTS)])
    head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="x"'
    body = head.encode('utf-8', 'replace') + b'\r\n\r\n' + bytes(picture)
    return body + f'\r\n--{edge}--\r\n'.encode(), f'multipart/form-data; boundary={edge}'


if __name__ == '__main__':
  sys.exit(main())
