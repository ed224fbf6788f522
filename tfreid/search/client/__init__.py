"""TF Serving by gRPC or REST: arrays in, arrays out, and errors that say what to do. Floor 2.

What both have in common is here; `rest_client` and `grpc_client` speak the interfaces.

REST needs the standard library only. gRPC needs the extra `client`, whose messages bring TensorFlow
along; it is imported when the first gRPC client is made.
"""

from __future__ import annotations

import abc
import copy
import os
import re
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
MAX_MESSAGE = 4000
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


class Status(Exception):  # noqa: N818  (no error yet: it may be tried again, and gets its advice)
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
  # Each with its own libraries, so neither is imported before it is wanted.
  kind: type[Client]
  if where.scheme.startswith('grpc'):
    from tfreid.search.client import grpc_client

    kind = grpc_client.GrpcClient
  else:
    from tfreid.search.client import rest_client

    kind = rest_client.RestClient
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
      except Status as status:
        if status.code != 'UNAVAILABLE' or pause is None or time.monotonic() + pause >= deadline:
          raise self._explained(status, signature, timeout) from status
      time.sleep(pause)
    raise AssertionError('unreachable')

  def _explained(self, status: Status, signature: str, timeout: float) -> Exception:
    """The error to raise for a status: what is wrong, and what to do."""
    code, message = status.code, _cleaned(status.message)
    where = f'{self.model} at {self.address}'
    if 'not found' in message and 'ignature' in message:
      # Of the same connection: whoever answered that has an answer to this.
      try:
        known = ', '.join(sorted(self._metadata(timeout).signatures))
      except Status:
        known = 'others'
      return ServingError(
        f"The model {where} has no signature '{signature}' (it has: {known}). It was exported by "
        'an earlier version of tfreid, or without a gallery; export it again with `tfreid export`.',
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
    except Status:
      return (
        f"The server at {self.address} has no model '{self.model}': {message}. Its models are "
        'those of models.config, or the one of --model_name.'
      )
    said = ', '.join(f'{number} ({state})' for number, state in sorted(states.items()))
    return f'The model {self.model} at {self.address} has no available {asked}. It has: {said}.'


def tensor_info(described: Mapping[str, Any]) -> TensorInfo:
  """From the JSON of a TensorInfo message."""
  dtype = str(described['dtype']).removeprefix('DT_').lower()
  dtype = {'float': 'float32', 'double': 'float64', 'half': 'float16'}.get(dtype, dtype)
  shape = described.get('tensor_shape', {})
  if shape.get('unknown_rank'):
    return TensorInfo(dtype, None)
  return TensorInfo(dtype, tuple(int(side['size']) for side in shape.get('dim', ())))


def _cleaned(message: str) -> str:
  """What is wrong, without TensorFlow's account of where in the graph it arose."""
  said = re.sub(r'\{\{function_node[^{}]*\}\}\s*', '', message[:MAX_MESSAGE])
  return errors.plain(said).rstrip('. ')


def strings(values: Sequence[str | bytes]) -> np.ndarray:
  """Texts or bytes as an array [B] of objects, which no later step takes for characters."""
  array = np.empty(len(values), object)
  array[:] = list(values)
  return array
