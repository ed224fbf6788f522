"""TF Serving by gRPC or REST: arrays in, arrays out, and errors that say what to do. Floor 2.

REST needs the standard library only. gRPC needs the extra `client`, whose messages bring TensorFlow
along; it is imported when the first gRPC client is made.
"""

from __future__ import annotations

import abc
import base64
import copy
import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tfreid.serving import errors

# A ranked answer has kilobytes. What is larger comes from something else.
MAX_RESPONSE_BYTES = 2**26

_DEFAULT_PORTS = {'grpc': 8500, 'grpcs': 443, 'http': 8501, 'https': 443}
# Characters of an error message of a server that are read: it is as long as the server likes.
_READ = 4000
# Seconds before the second and third attempt of a call that found nobody.
_PAUSES = (0.2, 0.6)

_Result = TypeVar('_Result')


class ServingError(OSError):
  """A server that cannot be reached, or cannot answer.

  Attributes:
    code: name of the status, as gRPC calls it: 'UNAVAILABLE', 'NOT_FOUND', ...
  """

  def __init__(self, message: str, code: str):
    super().__init__(message)
    self.code = code


class TensorInfo(NamedTuple):
  """An input or output of a signature.

  Attributes:
    dtype: 'float32', 'int64', 'string', ...
    shape: sizes, -1 where any size will do; None where the rank is open.
  """

  dtype: str
  shape: tuple[int, ...] | None


class Signature(NamedTuple):
  """The inputs and outputs of a signature, by name."""

  inputs: Mapping[str, TensorInfo]
  outputs: Mapping[str, TensorInfo]


class Metadata(NamedTuple):
  """What a server says of a model.

  Attributes:
    version: the version that was asked about, which the choice of it (newest, label) led to.
    signatures: by name; those that can be asked, so without TensorFlow's own.
  """

  version: int
  signatures: Mapping[str, Signature]


class Address(NamedTuple):
  """Where a server is: scheme ('grpc', 'grpcs', 'http', 'https'), host, port, path before /v1."""

  scheme: str
  host: str
  port: int
  path: str = ''

  def __str__(self) -> str:
    host = f'[{self.host}]' if ':' in self.host else self.host
    return f'{self.scheme}://{host}:{self.port}{self.path}'


class _Status(Exception):  # noqa: N818  (no error yet: it may be tried again, and gets its advice)
  """A status other than OK, before it is explained."""

  def __init__(self, code: str, message: str, *, sent: bool = True):
    super().__init__(message)
    self.code = code
    self.message = message
    self.sent = sent  # whether the server may have seen the request


def parse_address(text: str) -> Address:
  """The address in a text.

  Args:
    text: 'grpc://host:8500', 'http://host:8501'; with TLS 'grpcs://host:443', 'https://host'. The
      port may be left out (8500, 8501, 443).

  Raises:
    ValueError: it is none.
  """
  wrong = ValueError(
    f"'{text}' is no address of a server. Give grpc://host:8500 or http://host:8501 (with TLS: "
    'grpcs:// or https://).'
  )
  try:
    parts = urllib.parse.urlsplit(text)
    port = parts.port
  except ValueError as error:
    raise wrong from error
  if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
    raise wrong
  if parts.username or parts.query or parts.fragment or re.search(r'\s', text):
    raise wrong
  path = parts.path.rstrip('/')
  if path and parts.scheme.startswith('grpc'):
    raise ValueError(f"'{text}': an address of gRPC has no path; leave out '{path}'.")
  return Address(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme], path)


def connect(
  address: str,
  model: str,
  *,
  version: int | None = None,
  label: str = '',
  timeout: float = 10.0,
  certificate: str = '',
  headers: Mapping[str, str] | None = None,
) -> Client:
  """A client of one model. Nothing is sent yet.

  Args:
    address: see `parse_address`.
    model: its name on the server.
    version: which to ask; the newest by default.
    label: a label of a version ('stable'), instead of its number.
    timeout: seconds for a call, attempts and pauses included.
    certificate: PEM file of the authority that signed the server's certificate, where it is none
      of the system's.
    headers: to send with each call, for example an authorization.

  Raises:
    ValueError: an argument that cannot be.
    ImportError: gRPC without the extra `client`.
  """
  where = parse_address(address)
  if not re.fullmatch(r'[^/:\s]+', model):
    raise ValueError(
      f"'{model}' is no name of a model. It is the name in models.config, or --model_name of "
      'tensorflow_model_server.'
    )
  if version is not None and (not isinstance(version, int) or version < 0):
    raise ValueError(f'A version is a whole number, not {version!r}.')
  if version is not None and label:
    raise ValueError(f"Give the version ({version}) or the label ('{label}'), not both.")
  if label and not re.fullmatch(r'[^/:\s]+', label):
    raise ValueError(f"'{label}' is no label of a version.")
  if not timeout > 0:
    raise ValueError(f'A time-out is a positive number of seconds, not {timeout}.')
  if certificate and not os.path.isfile(certificate):
    raise ValueError(f"There is no file '{certificate}' with a certificate.")
  if certificate and where.scheme in ('grpc', 'http'):
    raise ValueError(f'{where} is not encrypted, so there is no use for a certificate.')
  kind = GrpcClient if where.scheme.startswith('grpc') else RestClient
  return kind(
    where,
    model,
    version=version,
    label=label,
    timeout=timeout,
    certificate=certificate,
    headers=dict(headers or {}),
  )


class Client(abc.ABC):
  """Calls to one model of a server.

  Attributes:
    address: of the server.
    model: name of the model.
    version: number that is asked for, or None.
    label: of the version that is asked for, or ''.
    timeout: seconds for a call.
  """

  def __init__(self, address, model, *, version, label, timeout, certificate, headers):
    self.address = address
    self.model = model
    self.version = version
    self.label = label
    self.timeout = timeout
    self._certificate = certificate
    self._headers = headers

  def predict(
    self, signature: str, inputs: Mapping[str, np.ndarray], *, timeout: float | None = None
  ) -> dict[str, np.ndarray]:
    """Runs a signature.

    Args:
      signature: its name.
      inputs: by name; strings as arrays of str or bytes (dtype object).
      timeout: seconds, instead of `self.timeout`.

    Returns:
      The outputs by name. Strings are arrays of str (dtype object), of bytes where the output's
      name ends in '_bytes'.

    Raises:
      ValueError: the server does not take the input.
      ServingError: it cannot be reached, is too slow, or lacks the model, version or signature.
    """
    return self._call(lambda seconds: self._predict(signature, inputs, seconds), timeout, signature)

  def metadata(self) -> Metadata:
    """The version that answers, and its signatures.

    Raises:
      ServingError: as `predict`.
    """
    return self._call(self._metadata)

  def at(self, version: int) -> Client:
    """A client of the same connection that asks for one version."""
    other = copy.copy(self)
    other.version, other.label = version, ''
    return other

  def versions(self) -> dict[int, str]:
    """The versions that the server knows, number to state ('AVAILABLE', 'LOADING', ...).

    Raises:
      ServingError: as `predict`.
    """
    return self._call(self._versions)

  @abc.abstractmethod
  def close(self) -> None:
    """Ends the connection."""

  def __enter__(self) -> Client:
    return self

  def __exit__(self, *exception: Any) -> None:
    self.close()

  @abc.abstractmethod
  def _predict(self, signature, inputs, seconds) -> dict[str, np.ndarray]: ...

  @abc.abstractmethod
  def _metadata(self, seconds) -> Metadata: ...

  @abc.abstractmethod
  def _versions(self, seconds) -> dict[int, str]: ...

  def _call(
    self,
    function: Callable[[float], _Result],
    timeout: float | None = None,
    signature: str = '',
  ) -> _Result:
    """Calls `function` with the seconds that are left; again where nobody answered.

    Only UNAVAILABLE is tried again: the server is starting, changes versions, or has a full queue.
    """
    timeout = self.timeout if timeout is None else timeout
    deadline = time.monotonic() + timeout
    for pause in (*_PAUSES, None):
      try:
        return function(max(deadline - time.monotonic(), 0.001))
      except _Status as status:
        if status.code != 'UNAVAILABLE' or pause is None or time.monotonic() + pause >= deadline:
          raise self._explained(status, signature, timeout) from status
      time.sleep(pause)
    raise AssertionError('unreachable')

  def _explained(self, status: _Status, signature: str, timeout: float) -> Exception:
    """The error to raise for a status: what is wrong, and what to do."""
    code, message = status.code, _cleaned(status.message)
    where = f'{self.model} at {self.address}'
    if 'not found' in message and 'ignature' in message:
      # Of the same connection: whoever answered that has an answer to this.
      try:
        known = ', '.join(sorted(self._metadata(timeout).signatures))
      except _Status:
        known = 'others'
      return ServingError(
        f"The model {where} has no signature '{signature}' (it has: {known}). It was exported by "
        'an earlier version of tfreid; export it again with tools/export.py.',
        'FAILED_PRECONDITION',
      )
    if code == 'UNAVAILABLE':
      if not status.sent:
        other = 'gRPC' if self.address.scheme.startswith('http') else 'REST'
        return ServingError(
          f'Nobody answers at {self.address}: {message}. Is the server running, and is this not '
          f'its port for {other}? TF Serving has 8500 for gRPC and 8501 for REST.',
          code,
        )
      return ServingError(
        f'The server of {where} cannot answer now: {message}. It is starting, or has more requests '
        'than it can queue; try again later, or raise max_enqueued_batches.',
        code,
      )
    if code == 'NOT_FOUND' or 'servable version label' in message:
      return ServingError(self._missing(message, timeout), 'NOT_FOUND')
    if code == 'DEADLINE_EXCEEDED':
      return ServingError(
        f'No answer of {where} within {timeout:g} s. Allow more time (timeout=), or ask the server '
        'less at once.',
        code,
      )
    if code == 'RESOURCE_EXHAUSTED':
      return ServingError(
        f'The request or the answer is too large for {where}, or the server has no room: {message}',
        code,
      )
    if code in ('UNAUTHENTICATED', 'PERMISSION_DENIED'):
      return ServingError(
        f'The server of {where} wants to know who asks: {message}. Give the authorization '
        'as a header.',
        code,
      )
    if code in ('INVALID_ARGUMENT', 'OUT_OF_RANGE'):
      return ValueError(f'{where} does not take the request: {message}')
    if code == 'TLS':
      return ServingError(
        f'No encrypted connection to {self.address}: {message}. Is it encrypted at all (otherwise '
        'http:// or grpc://), and who signed its certificate (certificate=)?',
        code,
      )
    return ServingError(f'The server of {where} answers {code}: {message}', code)

  def _missing(self, message: str, timeout: float) -> str:
    """What of a model that was not found is missing."""
    asked = f'version {self.version}' if self.version is not None else 'version'
    asked = f"version with the label '{self.label}'" if self.label else asked
    try:
      states = self._versions(timeout)
    except _Status:
      return (
        f"The server at {self.address} has no model '{self.model}': {message}. Its models are "
        'those of models.config, or the one of --model_name.'
      )
    said = ', '.join(f'{number} ({state})' for number, state in sorted(states.items()))
    return f'The model {self.model} at {self.address} has no available {asked}. It has: {said}.'


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
        raise _Status('FAILED_PRECONDITION', f'Signature "{signature}" not found.')
      self._outputs[key] = signatures[signature].outputs
    outputs = self._outputs[key]
    body = {
      'signature_name': signature,
      'inputs': {name: _to_json(value) for name, value in inputs.items()},
    }
    seconds = max(deadline - time.monotonic(), 0.001)
    answer = self._request('POST', f'{self._path()}:predict', seconds, body)
    found = answer.get('outputs')
    if len(outputs) == 1:
      found = {next(iter(outputs)): found}
    try:
      return {name: _from_json(name, found[name], info) for name, info in outputs.items()}
    except (KeyError, TypeError, ValueError) as error:
      # The newest version may be another one than a moment ago.
      del self._outputs[key]
      raise _Status('UNKNOWN', f'the answer does not fit the signature: {error!r}') from error

  def _metadata(self, seconds):
    answer = self._request('GET', f'{self._path()}/metadata', seconds)
    try:
      described = answer['metadata']['signature_def']['signature_def']
      signatures = {
        name: Signature(
          *(
            {key: _tensor_info(value) for key, value in signature.get(side, {}).items()}
            for side in ('inputs', 'outputs')
          )
        )
        for name, signature in described.items()
        if not name.startswith('__')
      }
      return Metadata(int(answer['model_spec']['version']), signatures)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise _Status('UNKNOWN', f'the metadata cannot be read: {error!r}') from error

  def _versions(self, seconds):
    answer = self._request('GET', self._path(version=False), seconds)
    try:
      return {int(row['version']): str(row['state']) for row in answer['model_version_status']}
    except (KeyError, TypeError, ValueError) as error:
      raise _Status('UNKNOWN', f'the status cannot be read: {error!r}') from error

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
      raise _Status('TLS', str(error.reason or error), sent=False) from error
    except (socket.timeout, TimeoutError) as error:
      if not sent:
        raise _Status('UNAVAILABLE', 'the connection timed out', sent=False) from error
      raise _Status('DEADLINE_EXCEEDED', '') from error
    except ConnectionRefusedError as error:
      raise _Status('UNAVAILABLE', 'the connection is refused', sent=False) from error
    except (http.client.HTTPException, ConnectionError) as error:
      raise _Status(
        'UNKNOWN', f'it does not speak HTTP; is this its port for gRPC? ({error!r})'
      ) from error
    except OSError as error:  # no such host, no route
      raise _Status('UNAVAILABLE', error.strerror or str(error), sent=False) from error
    finally:
      connection.close()
    try:
      answer = json.loads(text)
    except ValueError:
      answer = None
    if not isinstance(answer, dict):
      answer = {}
      if response.status == 200:
        raise _Status('UNKNOWN', 'the answer is no JSON object; is this TF Serving?')
    if response.status != 200:
      message = str(answer.get('error', '')) or f'HTTP {response.status} {response.reason}'
      raise _Status(_HTTP_CODES.get(response.status, 'UNKNOWN'), message)
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
  pieces, size = [], 0
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
    if size > MAX_RESPONSE_BYTES:
      raise _Status('RESOURCE_EXHAUSTED', f'the answer has more than {MAX_RESPONSE_BYTES} bytes')


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


def _tensor_info(described: Mapping[str, Any]) -> TensorInfo:
  """From the JSON of a TensorInfo message."""
  dtype = str(described['dtype']).removeprefix('DT_').lower()
  dtype = {'float': 'float32', 'double': 'float64', 'half': 'float16'}.get(dtype, dtype)
  shape = described.get('tensor_shape', {})
  if shape.get('unknown_rank'):
    return TensorInfo(dtype, None)
  return TensorInfo(dtype, tuple(int(side['size']) for side in shape.get('dim', ())))


class GrpcClient(Client):
  """The gRPC interface, with the messages of tensorflow-serving-api."""

  def __init__(self, address, model, **options):
    super().__init__(address, model, **options)
    try:
      import grpc
      from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
    except ImportError as error:
      raise ImportError(
        "gRPC needs more libraries: pip install 'tfreid[client]'. REST needs none "
        f'(http://{address.host}:8501).'
      ) from error
    self._grpc = grpc
    target = str(address).partition('://')[2]
    settings = [
      ('grpc.max_receive_message_length', MAX_RESPONSE_BYTES),
      ('grpc.max_send_message_length', -1),
      # A server that starts is found within a call, not after the usual second.
      ('grpc.initial_reconnect_backoff_ms', 100),
      ('grpc.min_reconnect_backoff_ms', 100),
      ('grpc.enable_http_proxy', 0),
    ]
    if address.scheme == 'grpc':
      self._channel = grpc.insecure_channel(target, settings)
    else:
      authority = None
      if self._certificate:
        with open(self._certificate, 'rb') as file:
          authority = file.read()
      self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(authority), settings)
    self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
    self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

  def close(self) -> None:
    """Ends the connection."""
    self._channel.close()

  def _choose(self, spec, *, version: bool = True):
    spec.name = self.model
    if version and self.version is not None:
      spec.version.value = self.version
    elif version and self.label:
      spec.version_label = self.label

  def _send(self, call, request, seconds):
    grpc = self._grpc
    metadata = [(name.lower(), value) for name, value in self._headers.items()]
    try:
      return call(request, timeout=seconds, metadata=metadata)
    except grpc.RpcError as error:
      code, details = error.code(), error.details() or ''
      if code == grpc.StatusCode.UNAVAILABLE:
        if 'handshake' in details.lower() or 'ssl' in details.lower():
          raise _Status('TLS', details, sent=False) from error
        unreachable = re.search('connect|resol|Socket|endpoint', details) is not None
        raise _Status(code.name, _reason(details), sent=not unreachable) from error
      raise _Status(code.name, details) from error
    except ValueError as error:  # of a channel that was closed
      raise _Status('CANCELLED', str(error)) from error

  def _predict(self, signature, inputs, seconds):
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    self._choose(request.model_spec)
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
      _fill(request.inputs[name], np.asarray(value))
    response = self._send(self._predictions.Predict, request, seconds)
    return {name: _array(name, proto) for name, proto in response.outputs.items()}

  def _metadata(self, seconds):
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=['signature_def'])
    self._choose(request.model_spec)
    response = self._send(self._predictions.GetModelMetadata, request, seconds)
    described = get_model_metadata_pb2.SignatureDefMap()
    response.metadata['signature_def'].Unpack(described)

    def info(tensor):
      shape = tensor.tensor_shape
      described = {
        'dtype': types_pb2.DataType.Name(tensor.dtype),
        'tensor_shape': {
          'unknown_rank': shape.unknown_rank,
          'dim': [{'size': side.size} for side in shape.dim],
        },
      }
      return _tensor_info(described)

    signatures = {
      name: Signature(
        {key: info(tensor) for key, tensor in signature.inputs.items()},
        {key: info(tensor) for key, tensor in signature.outputs.items()},
      )
      for name, signature in described.signature_def.items()
      if not name.startswith('__')
    }
    return Metadata(response.model_spec.version.value, signatures)

  def _versions(self, seconds):
    from tensorflow_serving.apis import get_model_status_pb2

    request = get_model_status_pb2.GetModelStatusRequest()
    self._choose(request.model_spec, version=False)
    response = self._send(self._models.GetModelStatus, request, seconds)
    states = get_model_status_pb2.ModelVersionStatus.State
    return {row.version: states.Name(row.state) for row in response.model_version_status}


def _fill(proto, value: np.ndarray):
  """Writes an array into a TensorProto."""
  from tensorflow.core.framework import types_pb2

  for size in value.shape:
    proto.tensor_shape.dim.add(size=size)
  if value.dtype.kind in 'SOU':
    proto.dtype = types_pb2.DT_STRING
    for item in value.reshape(-1).tolist():
      proto.string_val.append(item if isinstance(item, bytes) else str(item).encode())
    return
  numbers = {'float32': types_pb2.DT_FLOAT, 'int64': types_pb2.DT_INT64}
  if value.dtype.name not in numbers:
    raise ValueError(f'{value.dtype} cannot be sent; give float32, int64 or texts.')
  proto.dtype = numbers[value.dtype.name]
  proto.tensor_content = np.ascontiguousarray(value, value.dtype.newbyteorder('<')).tobytes()


def _array(name: str, proto) -> np.ndarray:
  """The array of a TensorProto: strings as str, of an output '..._bytes' as bytes."""
  import tensorflow as tf

  array = tf.make_ndarray(proto)
  if array.dtype.kind in 'SO':
    flat = [
      item if name.endswith('_bytes') else item.decode('utf-8', 'replace')
      for item in array.astype(object).reshape(-1)
    ]
    array = np.asarray([*flat, None], object)[:-1].reshape(array.shape)
  return array


def _cleaned(message: str) -> str:
  """What is wrong, without TensorFlow's account of where in the graph it arose."""
  said = re.sub(r'\{\{function_node[^{}]*\}\}\s*', '', message[:_READ])
  return errors.plain(said).rstrip('. ')


def _reason(details: str) -> str:
  """What gRPC's list of failed attempts comes down to."""
  details = details[:_READ]
  found = re.findall(r'[Ff]ailed to connect to [^:]+:[^;]*?: ?([^;()]+)', details)
  return (found[-1] if found else details).strip()


def strings(values: Sequence[str | bytes]) -> np.ndarray:
  """Texts or bytes as an array [B] of objects, which no later step takes for characters."""
  array = np.empty(len(values), object)
  array[:] = list(values)
  return array
