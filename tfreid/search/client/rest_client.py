"""TF Serving's REST interface, by the standard library. Floor 2."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfreid.search import client
from tfreid.search.client import Client, Metadata, Signature, Status, TensorInfo, tensor_info


class RestClient(Client):
  """The REST interface, in column format: a connection per call, and no proxy."""

  def __init__(self, address, model, **options):
    super().__init__(address, model, **options)
    self._tls = None
    if address.scheme == 'https':
      try:
        self._tls = ssl.create_default_context(cafile=self._certificate or None)
      except (ssl.SSLError, OSError) as error:
        raise ValueError(f"'{self._certificate}' holds no certificate: {error}") from error
    self._outputs: dict[tuple, Mapping[str, TensorInfo]] = {}

  def close(self) -> None:
    """Nothing is open between calls."""

  def _path(self, *, version: bool = True) -> str:
    path = f'{self.address.path}/v1/models/{urllib.parse.quote(self.model, safe="")}'
    if version and self.version is not None:
      path += f'/versions/{self.version}'
    elif version and self.label:
      path += f'/labels/{urllib.parse.quote(self.label, safe="")}'
    return path

  def _predict(self, signature, inputs, seconds):
    deadline = time.monotonic() + seconds
    # JSON says neither types nor, of a single output, the name.
    key = self.version, self.label, signature
    if key not in self._outputs:
      signatures = self._metadata(seconds).signatures
      if signature not in signatures:
        raise Status('FAILED_PRECONDITION', f'Signature "{signature}" not found.')
      self._outputs[key] = signatures[signature].outputs
    outputs = self._outputs[key]
    body = {
      'signature_name': signature,
      'inputs': {name: _to_json(value) for name, value in inputs.items()},
    }
    seconds = max(deadline - time.monotonic(), 0.001)
    answer = self._request('POST', f'{self._path()}:predict', seconds, body)
    found: Any = answer.get('outputs')
    if len(outputs) == 1:
      found = {next(iter(outputs)): found}
    try:
      return {name: _from_json(name, found[name], info) for name, info in outputs.items()}
    except (KeyError, TypeError, ValueError) as error:
      # The newest version may be another one than a moment ago.
      del self._outputs[key]
      raise Status('UNKNOWN', f'the answer does not fit the signature: {error!r}') from error

  def _metadata(self, seconds):
    answer = self._request('GET', f'{self._path()}/metadata', seconds)
    try:
      described = answer['metadata']['signature_def']['signature_def']
      signatures = {
        name: Signature(
          *(
            {key: tensor_info(value) for key, value in signature.get(side, {}).items()}
            for side in ('inputs', 'outputs')
          )
        )
        for name, signature in described.items()
        if not name.startswith('__')
      }
      return Metadata(int(answer['model_spec']['version']), signatures)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise Status('UNKNOWN', f'the metadata cannot be read: {error!r}') from error

  def _versions(self, seconds):
    answer = self._request('GET', self._path(version=False), seconds)
    try:
      return {int(row['version']): str(row['state']) for row in answer['model_version_status']}
    except (KeyError, TypeError, ValueError) as error:
      raise Status('UNKNOWN', f'the status cannot be read: {error!r}') from error

  def _request(self, method, path, seconds, body=None) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    address = self.address
    if self._tls is None:
      connection = http.client.HTTPConnection(address.host, address.port, timeout=seconds)
    else:
      connection = http.client.HTTPSConnection(
        address.host, address.port, timeout=seconds, context=self._tls
      )
    sent = False
    try:
      connection.connect()
      headers = {'Accept': 'application/json', **self._headers}
      contents = None
      if body is not None:
        contents = json.dumps(body).encode()
        headers['Content-Type'] = 'application/json'
      sent = True
      connection.request(method, path, contents, headers)
      response = connection.getresponse()
      text = _read(connection, response, deadline)
    except ssl.SSLError as error:
      raise Status('TLS', str(error.reason or error), sent=False) from error
    except (socket.timeout, TimeoutError) as error:
      if not sent:
        raise Status('UNAVAILABLE', 'the connection timed out', sent=False) from error
      raise Status('DEADLINE_EXCEEDED', '') from error
    except ConnectionRefusedError as error:
      raise Status('UNAVAILABLE', 'the connection is refused', sent=False) from error
    except (http.client.HTTPException, ConnectionError) as error:
      raise Status(
        'UNKNOWN', f'it does not speak HTTP; is this its port for gRPC? ({error!r})'
      ) from error
    except OSError as error:  # no such host, no route
      raise Status('UNAVAILABLE', error.strerror or str(error), sent=False) from error
    finally:
      connection.close()
    try:
      answer = json.loads(text)
    except ValueError:
      answer = None
    if not isinstance(answer, dict):
      answer = {}
      if response.status == 200:
        raise Status('UNKNOWN', 'the answer is no JSON object; is this TF Serving?')
    if response.status != 200:
      message = str(answer.get('error', '')) or f'HTTP {response.status} {response.reason}'
      raise Status(_HTTP_CODES.get(response.status, 'UNKNOWN'), message)
    return answer


# TF Serving's http_server.cc, backwards.
_HTTP_CODES = {
  400: 'INVALID_ARGUMENT',
  401: 'UNAUTHENTICATED',
  403: 'PERMISSION_DENIED',
  404: 'NOT_FOUND',
  413: 'RESOURCE_EXHAUSTED',
  429: 'RESOURCE_EXHAUSTED',
  500: 'INTERNAL',
  501: 'UNIMPLEMENTED',
  502: 'UNAVAILABLE',
  503: 'UNAVAILABLE',
  504: 'DEADLINE_EXCEEDED',
}


def _read(connection, response, deadline) -> bytes:
  """The body, within the time and the size allowed: a socket's time-out is for each piece only."""
  pieces: list[bytes] = []
  size = 0
  while True:
    left = deadline - time.monotonic()
    if left <= 0:
      raise TimeoutError
    if connection.sock is not None:
      connection.sock.settimeout(left)
    piece = response.read1(1 << 16)
    if not piece:
      return b''.join(pieces)
    pieces.append(piece)
    size += len(piece)
    if size > client.MAX_RESPONSE_BYTES:
      limit = f'{client.MAX_RESPONSE_BYTES} bytes'
      raise Status('RESOURCE_EXHAUSTED', f'the answer has more than {limit}')


def _to_json(value: np.ndarray) -> Any:
  """An array as nested lists; bytes in base64."""
  value = np.asarray(value)
  if value.dtype.kind in 'SO':
    flat = np.empty(value.size, object)
    flat[:] = [
      {'b64': base64.b64encode(item).decode()} if isinstance(item, bytes) else item
      for item in value.reshape(-1).tolist()
    ]
    return flat.reshape(value.shape).tolist()
  return value.tolist()


def _from_json(name: str, value: Any, info: TensorInfo) -> np.ndarray:
  """Nested lists as an array of the output's type."""
  if info.dtype != 'string':
    array = np.asarray(value, info.dtype)
  elif name.endswith('_bytes'):
    array = np.asarray(value, object)
    flat = [base64.b64decode(item['b64']) for item in array.reshape(-1)]
    array = np.asarray([*flat, None], object)[:-1].reshape(array.shape)
  else:
    array = np.asarray(value, object)
    if not all(isinstance(item, str) for item in array.reshape(-1)):
      raise ValueError(f'{name} is no array of texts')
  return array
