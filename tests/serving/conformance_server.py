"""What TF Serving 2.15 promises of its two interfaces, on TensorFlow's own C++ loader.

  python -I conformance_server.py --model=people=/models/people [--label=stable=1]

Not a product: a stand-in for tests, where no TF Serving is at hand. It loads a version as TF
Serving does, with `LoadSavedModel` of TensorFlow's C++ library (by its C interface), and runs it
with that library's Session: no tracing, no Keras, no Python function of the model. It cannot import
tfreid.

Around it stand PredictionService and ModelService over gRPC, and REST in row and column format,
with the checks, messages and status codes of TF Serving's sources: predict_util.cc (inputs and
signatures), json_tensor.cc (JSON), http_rest_api_handler.cc and http_server.cc (paths, codes),
get_model_metadata_impl.cc, and the version policy `latest`. Versions are warmed up before they are
available, and one that fails to warm up never is.

The first line of the output is JSON with the ports. What is left out: batching, Classify and
Regress (no signature has them), and speed.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import ctypes
import http.server
import importlib.abc
import json
import math
import os
import re
import socketserver
import struct
import sys
import threading
import time
from concurrent import futures


class _NoTfreid(importlib.abc.MetaPathFinder):
  """The proof that an export needs nothing of the package: importing it is an error."""

  def find_spec(self, name, path, target=None):
    if name.partition('.')[0] in ('tfreid', 'tensorflow_addons'):
      raise ImportError(f'{name} must not be needed to serve a model')


if __name__ == '__main__':
  assert 'tfreid' not in sys.modules
  sys.meta_path.insert(0, _NoTfreid())

import grpc  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from google.protobuf import json_format  # noqa: E402
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
  get_model_metadata_pb2,
  get_model_status_pb2,
  model_service_pb2_grpc,
  predict_pb2,
  prediction_log_pb2,
  prediction_service_pb2_grpc,
)

Code = grpc.StatusCode
STATES = get_model_status_pb2.ModelVersionStatus

# The largest tensor that a request may unfold into: a few bytes may name a shape of billions.
MAX_ELEMENTS = 2**26


class StatusError(Exception):
  """A status other than OK."""

  def __init__(self, code: grpc.StatusCode, message: str):
    super().__init__(message)
    self.code = code
    self.message = message


# The C interface. Numbers are those of TF_Code and TF_DataType.

_CODES = {
  1: Code.CANCELLED,
  3: Code.INVALID_ARGUMENT,
  4: Code.DEADLINE_EXCEEDED,
  5: Code.NOT_FOUND,
  8: Code.RESOURCE_EXHAUSTED,
  9: Code.FAILED_PRECONDITION,
  11: Code.OUT_OF_RANGE,
  12: Code.UNIMPLEMENTED,
  13: Code.INTERNAL,
  14: Code.UNAVAILABLE,
}
_STRING = 7


class _Output(ctypes.Structure):
  _fields_ = [('operation', ctypes.c_void_p), ('index', ctypes.c_int)]


class _Buffer(ctypes.Structure):
  _fields_ = [
    ('data', ctypes.c_void_p),
    ('length', ctypes.c_size_t),
    ('deallocator', ctypes.c_void_p),
  ]


def _library():
  folder = os.path.dirname(tf.__file__)
  (name,) = (n for n in os.listdir(folder) if n.startswith('libtensorflow_cc'))
  library = ctypes.CDLL(os.path.join(folder, name))
  pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
  for function, result, arguments in (
    ('TF_NewStatus', pointer, []),
    ('TF_DeleteStatus', None, [pointer]),
    ('TF_GetCode', ctypes.c_int, [pointer]),
    ('TF_Message', text, [pointer]),
    ('TF_NewGraph', pointer, []),
    ('TF_DeleteGraph', None, [pointer]),
    ('TF_NewSessionOptions', pointer, []),
    ('TF_DeleteSessionOptions', None, [pointer]),
    ('TF_NewBuffer', ctypes.POINTER(_Buffer), []),
    ('TF_NewBufferFromString', ctypes.POINTER(_Buffer), [text, size]),
    ('TF_DeleteBuffer', None, [ctypes.POINTER(_Buffer)]),
    (
      'TF_LoadSessionFromSavedModel',
      pointer,
      [pointer, pointer, text, pointer, ctypes.c_int, pointer, ctypes.POINTER(_Buffer), pointer],
    ),
    ('TF_CloseSession', None, [pointer, pointer]),
    ('TF_DeleteSession', None, [pointer, pointer]),
    ('TF_GraphOperationByName', pointer, [pointer, text]),
    ('TF_AllocateTensor', pointer, [ctypes.c_int, pointer, ctypes.c_int, size]),
    ('TF_DeleteTensor', None, [pointer]),
    ('TF_TensorData', pointer, [pointer]),
    ('TF_TensorType', ctypes.c_int, [pointer]),
    ('TF_NumDims', ctypes.c_int, [pointer]),
    ('TF_Dim', ctypes.c_int64, [pointer, ctypes.c_int]),
    ('TF_StringInit', None, [pointer]),
    ('TF_StringCopy', None, [pointer, text, size]),
    ('TF_StringGetDataPointer', pointer, [pointer]),
    ('TF_StringGetSize', size, [pointer]),
    (
      'TF_SessionRun',
      None,
      [pointer, ctypes.POINTER(_Buffer), pointer, pointer, ctypes.c_int]
      + [pointer, pointer, ctypes.c_int, pointer, ctypes.c_int, pointer, pointer],
    ),
  ):
    declared = getattr(library, function)
    declared.restype, declared.argtypes = result, arguments
  return library


_LIBRARY = _library()
_STRING_SIZE = 24


def _check(status):
  code = _LIBRARY.TF_GetCode(status)
  if code:
    message = _LIBRARY.TF_Message(status).decode('utf-8', 'replace')
    raise StatusError(_CODES.get(code, Code.UNKNOWN), message)


def _tensor(array: np.ndarray) -> int:
  """A TF_Tensor with the values of an array; the caller deletes it."""
  array = np.asarray(array)
  kind = _STRING if array.dtype == object else tf.as_dtype(array.dtype).as_datatype_enum
  sides = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
  size = array.size * (_STRING_SIZE if kind == _STRING else array.dtype.itemsize)
  tensor = _LIBRARY.TF_AllocateTensor(kind, sides, array.ndim, size)
  data = _LIBRARY.TF_TensorData(tensor)
  if kind == _STRING:
    for i, value in enumerate(array.reshape(-1).tolist()):
      _LIBRARY.TF_StringInit(data + i * _STRING_SIZE)
      _LIBRARY.TF_StringCopy(data + i * _STRING_SIZE, value, len(value))
  elif size:
    ctypes.memmove(data, np.ascontiguousarray(array).ctypes.data, size)
  return tensor


def _array(tensor: int) -> np.ndarray:
  """The values of a TF_Tensor."""
  kind = _LIBRARY.TF_TensorType(tensor)
  shape = [_LIBRARY.TF_Dim(tensor, i) for i in range(_LIBRARY.TF_NumDims(tensor))]
  count, data = math.prod(shape), _LIBRARY.TF_TensorData(tensor)
  if kind == _STRING:
    values = np.empty(count, object)
    for i in range(count):
      value = data + i * _STRING_SIZE
      values[i] = ctypes.string_at(
        _LIBRARY.TF_StringGetDataPointer(value), _LIBRARY.TF_StringGetSize(value)
      )
    return values.reshape(shape)
  dtype = np.dtype(tf.as_dtype(kind).as_numpy_dtype)
  contents = ctypes.string_at(data, count * dtype.itemsize) if count else b''
  return np.frombuffer(contents, dtype).reshape(shape)


def _milliseconds(timeout: float | None) -> int:
  """As RunOptions has it, 0 for no limit: gRPC says centuries for a call without a deadline."""
  return int(max(1000 * timeout, 1)) if timeout is not None and timeout < 1e6 else 0


class Bundle:
  """A SavedModel in a C++ session.

  Attributes:
    signatures: name to SignatureDef.
  """

  def __init__(self, directory: str):
    """Loads it, as `LoadSavedModel(..., {"serve"}, ...)` does."""
    status, options = _LIBRARY.TF_NewStatus(), _LIBRARY.TF_NewSessionOptions()
    self._graph, meta = _LIBRARY.TF_NewGraph(), _LIBRARY.TF_NewBuffer()
    tags = (ctypes.c_char_p * 1)(b'serve')
    try:
      self._session = _LIBRARY.TF_LoadSessionFromSavedModel(
        options, None, os.fsencode(directory), tags, 1, self._graph, meta, status
      )
      _check(status)
      contents = ctypes.string_at(meta.contents.data, meta.contents.length)
    finally:
      _LIBRARY.TF_DeleteBuffer(meta)
      _LIBRARY.TF_DeleteSessionOptions(options)
      _LIBRARY.TF_DeleteStatus(status)
    self.signatures = dict(meta_graph_pb2.MetaGraphDef.FromString(contents).signature_def)

  def _output(self, name: str) -> _Output:
    operation, _, index = name.partition(':')
    found = _LIBRARY.TF_GraphOperationByName(self._graph, operation.encode())
    assert found, f'{name} of a signature is not in the graph'
    return _Output(found, int(index or 0))

  def run(self, feeds, fetches, *, timeout: float | None = None) -> list[np.ndarray]:
    """Session::Run: tensor name to array, names of tensors -> arrays. Nothing is checked here."""
    given = [_tensor(value) for value in feeds.values()]
    inputs = (_Output * len(feeds))(*(self._output(name) for name in feeds))
    outputs = (_Output * len(fetches))(*(self._output(name) for name in fetches))
    found = (ctypes.c_void_p * len(fetches))()
    options = config_pb2.RunOptions(timeout_in_ms=_milliseconds(timeout))
    packed = options.SerializeToString()
    run_options = _LIBRARY.TF_NewBufferFromString(packed, len(packed))
    status = _LIBRARY.TF_NewStatus()
    try:
      _LIBRARY.TF_SessionRun(
        self._session,
        run_options,
        inputs,
        (ctypes.c_void_p * len(given))(*given),
        len(given),
        outputs,
        found,
        len(fetches),
        None,
        0,
        None,
        status,
      )
      _check(status)
      return [_array(tensor) for tensor in found]
    finally:
      for tensor in [*given, *(value for value in found if value)]:
        _LIBRARY.TF_DeleteTensor(tensor)
      _LIBRARY.TF_DeleteBuffer(run_options)
      _LIBRARY.TF_DeleteStatus(status)

  def predict(self, signature_name: str, inputs, output_filter=(), *, timeout=None):
    """predict_util.cc: RunPredict. Arrays by name -> arrays by name."""
    signature = self.signatures.get(signature_name or 'serving_default')
    if signature is None:
      raise StatusError(
        Code.FAILED_PRECONDITION,
        f'Serving signature key "{signature_name or "serving_default"}" not found.',
      )
    if len(inputs) != len(signature.inputs):
      sent, expected = set(inputs), set(signature.inputs)
      raise StatusError(
        Code.INVALID_ARGUMENT,
        f'input size does not match signature: {len(sent)}!={len(expected)} '
        f'len({{{_names(sent)}}}) != len({{{_names(expected)}}}). Sent extra: '
        f'{{{_names(sent - expected)}}}. Missing but required: {{{_names(expected - sent)}}}.',
      )
    feeds = {}
    for alias, value in inputs.items():
      if alias not in signature.inputs:
        raise StatusError(
          Code.INVALID_ARGUMENT,
          f'input tensor alias not found in signature: {alias}. Inputs expected to be in the set '
          f'{{{_names(signature.inputs)}}}.',
        )
      feeds[signature.inputs[alias].name] = value
    wanted = list(output_filter) or sorted(signature.outputs)
    for alias in wanted:
      if alias not in signature.outputs:
        raise StatusError(
          Code.INVALID_ARGUMENT,
          f'output tensor alias not found in signature: {alias} Outputs expected to be in the set '
          f'{{{_names(signature.outputs)}}}.',
        )
      if wanted.count(alias) > 1:
        raise StatusError(Code.INVALID_ARGUMENT, f'duplicate output tensor alias: {alias}')
    fetches = [signature.outputs[alias].name for alias in wanted]
    return dict(zip(wanted, self.run(feeds, fetches, timeout=timeout)))

  def close(self):
    """Ends the session. The graph goes with it."""
    status = _LIBRARY.TF_NewStatus()
    _LIBRARY.TF_CloseSession(self._session, status)
    _LIBRARY.TF_DeleteSession(self._session, status)
    _LIBRARY.TF_DeleteGraph(self._graph)
    _LIBRARY.TF_DeleteStatus(status)


def _names(names) -> str:
  return ','.join(sorted(names))


def from_proto(alias: str, proto) -> np.ndarray:
  """Tensor::FromProto: the array of a TensorProto."""
  try:
    sides = [side.size for side in proto.tensor_shape.dim]
    # What make_ndarray would unfold before it finds that there are no values.
    if proto.tensor_shape.unknown_rank or min(sides, default=1) < 0:
      raise ValueError('the shape is not known')
    if math.prod(sides) > MAX_ELEMENTS:
      raise ValueError('the shape is too large')
    array = tf.make_ndarray(proto)
    if array.dtype.kind == 'S':
      array = array.astype(object)
  except Exception as error:
    raise StatusError(Code.INVALID_ARGUMENT, f'tensor parsing error: {alias}') from error
  return array


# json_tensor.cc.


def parse_predict(text: bytes, get_inputs):
  """FillPredictRequestFromJson: body -> (signature name, arrays by name, is it row format)."""
  if not text:
    raise _invalid('JSON Parse error: The document is empty')
  try:
    document = json.loads(text.decode('utf-8'))
  except (ValueError, RecursionError) as error:
    raise _invalid(f'JSON Parse error: Invalid value. at offset: {getattr(error, "pos", 0)}') from (
      error
    )
  if not isinstance(document, dict):
    raise _invalid(f'JSON Value: {_shown(document)} Is not object')
  name = document.get('signature_name', '')
  if not isinstance(name, str):
    raise _invalid(
      f"JSON Value: {_shown(document)} not formatted correctly. 'signature_name' key must be a "
      'string value.'
    )
  infos = get_inputs(name)
  if ('instances' in document) == ('inputs' in document):
    raise _invalid(
      "Missing 'inputs' or 'instances' key"
      if 'inputs' not in document
      else f'JSON Value: {_shown(document)} Not formatted correctly expecting only one of '
      "'inputs' or 'instances' keys to exist "
    )
  if 'inputs' in document:
    return name, _columns(document['inputs'], infos), False
  instances = document['instances']
  if not isinstance(instances, list):
    raise _invalid(f"JSON Value: {_shown(document)} Excepting 'instances' to be an list/array")
  if not instances:
    raise _invalid(f"JSON Value: {_shown(document)} No values in 'instances' array")
  return name, _rows(instances, infos), True


def _columns(value, infos):
  if not isinstance(value, dict) or _is_base64(value):
    if len(infos) > 1:
      raise _invalid(
        'inputs is a plain value/list, but expecting an object as multiple input tensors required '
        'as per tensorinfo_map'
      )
    ((name, info),) = infos.items()
    return {name: _dense(value, info.dtype)}
  for name in sorted(infos):
    if name not in value:
      raise _invalid(f"Missing named input: {name} in 'inputs' object.")
  return {name: _dense(value[name], info.dtype) for name, info in infos.items()}


def _rows(instances, infos):
  def is_element(value):
    return isinstance(value, dict) and not _is_base64(value)

  if not isinstance(instances[0], dict) and len(infos) > 1:
    raise _invalid(
      'instances is a plain list, but expecting list of objects as multiple input tensors required '
      'as per tensorinfo_map'
    )
  objects = is_element(instances[0])
  rows = {name: [] for name in infos}
  for i, instance in enumerate(instances):
    if objects != is_element(instance):
      raise _invalid(
        f'Expecting {"object" if objects else "value/list"} but got '
        f'{"list" if objects else "object"} at item {i} of input list'
      )
    element = instance if objects else {min(infos): instance}
    for name, value in element.items():
      try:
        if name not in infos:
          raise _invalid(f'JSON object: does not have named input: {name}')
        row = _dense(value, infos[name].dtype)
        if rows[name] and row.shape != rows[name][0].shape:
          raise _invalid(f'Expecting shape {list(rows[name][0].shape)} but got: {list(row.shape)}')
      except StatusError as failure:
        raise _invalid(
          f"Failed to process element: {i} key: {name} of 'instances' list. Error: "
          f'INVALID_ARGUMENT: {failure.message}'
        ) from failure
      rows[name].append(row)
    if set(element) != set(infos):
      raise _invalid(
        f"Failed to process element: {i} of 'instances' list. JSON object: {_shown(element)} keys "
        f'must be equal to: {_names(infos)}'
      )
  return {name: np.stack(values) for name, values in rows.items()}


def _dense(value, kind) -> np.ndarray:
  """A value or nested list as an array of a DataType."""
  shape, inner = [], value
  while isinstance(inner, list):
    shape.append(len(inner))
    if not inner:
      break
    inner = inner[0]
  if len(shape) > 250:
    raise _invalid('JSON Parse error: Invalid value.')
  dtype = tf.as_dtype(kind)
  values = []

  def fill(item, level):
    if not isinstance(item, list):
      if level != len(shape):
        raise _invalid(
          f'JSON Value: {_shown(item)} found at incorrect level: {level + 1} in the JSON DOM. '
          f'Expected at level: {len(shape)}'
        )
      values.append(_value(item, dtype))
      return
    if level >= len(shape):
      raise _invalid(f'Encountered list at unexpected level: {level} expected < {len(shape)}')
    if len(item) != shape[level]:
      raise _invalid(
        f'Encountered list at unexpected size: {len(item)} at level: {level} expected size: '
        f'{shape[level]}'
      )
    for element in item:
      fill(element, level + 1)

  fill(value, 0)
  array = np.empty(len(values), object if dtype == tf.string else dtype.as_numpy_dtype)
  array[:] = values
  return array.reshape(shape)


def _value(value, dtype):
  wrong = _invalid(
    f'JSON Value: {_shown(value)} Type: {_type_name(value)} is not of expected type: {dtype.name}'
  )
  if isinstance(value, dict):
    if dtype != tf.string:
      raise wrong
    if not _is_base64(value):
      raise _invalid(f'JSON Value: {_shown(value)} not formatted correctly for base64 data')
    try:
      return base64.b64decode(value['b64'], validate=True)
    except (binascii.Error, ValueError) as error:
      raise _invalid('Unable to base64 decode') from error
  if dtype == tf.string:
    if not isinstance(value, str):
      raise wrong
    return value.encode('utf-8', 'surrogatepass')
  if dtype == tf.bool:
    if not isinstance(value, bool):
      raise wrong
    return value
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise wrong
  if dtype.is_floating:
    largest = float(np.finfo(dtype.as_numpy_dtype).max)
    if isinstance(value, int) and abs(value) > 2 ** (24 if dtype == tf.float32 else 53) - 1:
      raise _invalid(
        f'Cannot convert JSON value: {_shown(value)} to float without loss of precision.'
      )
    if math.isfinite(value) and abs(value) > largest:
      raise _invalid(
        f'Cannot convert JSON value: {_shown(value)} to float without loss of precision.'
      )
    return value
  if not isinstance(value, int) or not dtype.min <= value <= dtype.max:
    raise wrong
  return value


def _is_base64(value) -> bool:
  return isinstance(value, dict) and set(value) == {'b64'} and isinstance(value['b64'], str)


def _invalid(message) -> StatusError:
  return StatusError(Code.INVALID_ARGUMENT, message)


def _shown(value) -> str:
  return json.dumps(value, ensure_ascii=True)


def _type_name(value) -> str:
  if value is None or isinstance(value, bool):
    return {None: 'Null', False: 'False', True: 'True'}[value]
  return {dict: 'Object', list: 'Array', str: 'String'}.get(type(value), 'Number')


def to_json(outputs, *, rows: bool) -> str:
  """MakeJsonFromTensors: arrays by name -> body. One output has no name."""
  plain = {name: _plain(array, name.endswith('_bytes')) for name, array in outputs.items()}
  if rows:
    if any(array.ndim == 0 for array in outputs.values()):
      raise _invalid('Tensor name: has no shape information ')
    if len({len(array) for array in outputs.values()}) > 1:
      raise _invalid('Tensor name: has inconsistent batch size')
    if len(plain) > 1:
      predictions = [dict(zip(plain, row)) for row in zip(*plain.values())]
    else:
      (predictions,) = plain.values()
    return json.dumps({'predictions': predictions}, ensure_ascii=False)
  if len(plain) == 1:
    (plain,) = plain.values()
  return json.dumps({'outputs': plain}, ensure_ascii=False)


def _plain(array, as_bytes):
  if array.dtype == object:
    convert = _base64 if as_bytes else (lambda value: value.decode('utf-8', 'surrogateescape'))
    flat = [convert(value) for value in array.reshape(-1).tolist()]
    nested = np.empty(len(flat), object)
    nested[:] = flat
    return nested.reshape(array.shape).tolist()
  if array.dtype == np.float32:
    # As many digits as tell two float32 numbers apart: the caller gets the same number back.
    return np.vectorize(lambda value: float(str(value)), otypes=[float])(array).tolist()
  return array.tolist()


def _base64(value):
  return {'b64': base64.b64encode(value).decode()}


class Core:
  """Models, their versions and their states.

  Attributes:
    models: name to folder.
    labels: name to label to version.
  """

  def __init__(self, models, labels):
    """Loads the newest version of each model."""
    self.models = models
    self.labels = labels
    self._bundles = {name: {} for name in models}
    self._states = {name: {} for name in models}
    self._lock = threading.Lock()
    self.poll()

  def poll(self):
    """Takes over a new version: it is loaded and warm before the old one goes."""
    for name, folder in self.models.items():
      entries = os.listdir(folder) if os.path.isdir(folder) else []
      versions = [int(entry) for entry in entries if entry.isdigit()]
      labelled = set(self.labels.get(name, {}).values()) & set(versions)
      wanted = {max(versions), *labelled} if versions else set()
      # One that failed is not tried again; one that was let go may come back (a roll-back).
      states = self._states[name]
      failed = {version for version, (_, code, _) in states.items() if code}
      for version in sorted(wanted - failed - set(self._bundles[name])):
        self._states[name][version] = (STATES.LOADING, 0, '')
        try:
          bundle = Bundle(os.path.join(folder, str(version)))
          warm_up(bundle, os.path.join(folder, str(version)))
        except StatusError as failure:
          self._states[name][version] = (STATES.END, failure.code.value[0], failure.message)
          continue
        with self._lock:
          self._bundles[name][version] = bundle
          self._states[name][version] = (STATES.AVAILABLE, 0, '')
      if wanted <= set(self._bundles[name]):
        for version in set(self._bundles[name]) - wanted:
          with self._lock:
            # Not closed: a request may be running in it. The process is short-lived.
            del self._bundles[name][version]
            self._states[name][version] = (STATES.END, 0, '')

  def find(self, spec):
    """GetServableHandle: a ModelSpec -> (version, bundle)."""
    with self._lock:
      bundles = dict(self._bundles.get(spec.name, {}))
    if not spec.name:
      raise _invalid('ModelSpec has no name specified.')
    chosen = spec.WhichOneof('version_choice')
    if chosen == 'version_label':
      version = self.labels.get(spec.name, {}).get(spec.version_label)
      if version is None:
        raise _invalid(f'Unrecognized servable version label: {spec.version_label}')
    elif chosen == 'version':
      version = spec.version.value
    else:
      version = max(bundles, default=None)
    if version not in bundles:
      asked = f'Latest({spec.name})' if chosen is None else f'Specific({spec.name}, {version})'
      raise StatusError(Code.NOT_FOUND, f'Servable not found for request: {asked}')
    return version, bundles[version]

  def status(self, spec):
    """GetModelStatusImpl: a GetModelStatusResponse."""
    response = get_model_status_pb2.GetModelStatusResponse()
    states = dict(self._states.get(spec.name, {}))
    if spec.WhichOneof('version_choice') == 'version':
      version = spec.version.value
      states = {version: states[version]} if version in states else {}
      if not states:
        raise StatusError(Code.NOT_FOUND, f'Could not find version {version} of model {spec.name}')
    if not states:
      raise StatusError(Code.NOT_FOUND, f'Could not find any versions of model {spec.name}')
    for version in sorted(states, reverse=True):
      state, code, message = states[version]
      entry = response.model_version_status.add(version=version, state=state)
      entry.status.error_code = code
      entry.status.error_message = message
    return response

  def metadata(self, spec):
    """GetModelMetadataImpl: a GetModelMetadataResponse."""
    version, bundle = self.find(spec)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = spec.name
    response.model_spec.version.value = version
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in bundle.signatures.items():
      signatures.signature_def[name].CopyFrom(signature)
    response.metadata['signature_def'].Pack(signatures)
    return response


def warm_up(bundle: Bundle, directory: str):
  """Replays `assets.extra/tf_serving_warmup_requests`; a record that fails is a StatusError."""
  path = os.path.join(directory, 'assets.extra', 'tf_serving_warmup_requests')
  if not os.path.isfile(path):
    return
  for record in read_records(path):
    log = prediction_log_pb2.PredictionLog.FromString(record)
    if log.WhichOneof('log_type') != 'predict_log':
      raise StatusError(Code.UNIMPLEMENTED, 'Unsupported log_type for warmup')
    request = log.predict_log.request
    inputs = {alias: from_proto(alias, proto) for alias, proto in request.inputs.items()}
    bundle.predict(request.model_spec.signature_name, inputs, request.output_filter)


def read_records(path: str):
  """The records of a TFRecord file: length, checksum, bytes, checksum."""
  with open(path, 'rb') as file:
    while header := file.read(12):
      (length,) = struct.unpack('<Q', header[:8])
      yield file.read(length)
      file.read(4)


class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
  """PredictionService. What is not overridden answers UNIMPLEMENTED."""

  def __init__(self, core):
    self.core = core

  def Predict(self, request, context):  # noqa: N802
    with _aborting(context):
      version, bundle = self.core.find(request.model_spec)
      inputs = {alias: from_proto(alias, proto) for alias, proto in request.inputs.items()}
      name = request.model_spec.signature_name
      outputs = bundle.predict(
        name, inputs, request.output_filter, timeout=context.time_remaining()
      )
      response = predict_pb2.PredictResponse()
      response.model_spec.name = request.model_spec.name
      response.model_spec.signature_name = name or 'serving_default'
      response.model_spec.version.value = version
      for alias, value in outputs.items():
        response.outputs[alias].CopyFrom(tf.make_tensor_proto(value, shape=value.shape))
      return response

  def GetModelMetadata(self, request, context):  # noqa: N802
    with _aborting(context):
      if not request.HasField('model_spec'):
        raise _invalid('Missing ModelSpec')
      if not request.metadata_field:
        raise _invalid('GetModelMetadataRequest must specify at least one metadata_field')
      for field in request.metadata_field:
        if field != 'signature_def':
          raise _invalid(f'Metadata field {field} is not supported')
      return self.core.metadata(request.model_spec)


class Models(model_service_pb2_grpc.ModelServiceServicer):
  """ModelService."""

  def __init__(self, core):
    self.core = core

  def GetModelStatus(self, request, context):  # noqa: N802
    with _aborting(context):
      if not request.HasField('model_spec'):
        raise _invalid('Missing ModelSpec')
      return self.core.status(request.model_spec)


class _aborting:  # noqa: N801
  """Turns a StatusError into the status of a call."""

  def __init__(self, context):
    self._context = context

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(error, StatusError):
      self._context.abort(error.code, error.message)


_PREDICT = re.compile(
  r'(?i)/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?:(classify|regress|predict)'
)
_STATUS = re.compile(
  r'(?i)/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?(?:/(metadata))?'
)
_HTTP = {
  Code.CANCELLED: 499,
  Code.INVALID_ARGUMENT: 400,
  Code.DEADLINE_EXCEEDED: 504,
  Code.NOT_FOUND: 404,
  Code.RESOURCE_EXHAUSTED: 429,
  Code.FAILED_PRECONDITION: 400,
  Code.OUT_OF_RANGE: 400,
  Code.UNIMPLEMENTED: 501,
  Code.UNAVAILABLE: 503,
}


class Rest(http.server.BaseHTTPRequestHandler):
  """The REST interface: HttpRestApiHandler::ProcessRequest."""

  protocol_version = 'HTTP/1.1'
  core: Core
  timeout_seconds = 30.0

  def log_message(self, *args):
    """Says nothing."""

  def do_GET(self):
    """Status and metadata."""
    self._answer('GET', b'')

  def do_POST(self):
    """Predictions."""
    try:
      length = int(self.headers.get('Content-Length', ''))
    except ValueError:
      length = 0
    self._answer('POST', self.rfile.read(max(length, 0)))

  def _answer(self, method, body):
    try:
      code, text = 200, self._process(method, body)
    except StatusError as failure:
      code, text = _HTTP.get(failure.code, 500), json.dumps({'error': failure.message})
    contents = text.encode('utf-8', 'surrogateescape')
    self.send_response(code)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(contents)))
    self.end_headers()
    self.wfile.write(contents)

  def _process(self, method, body) -> str:
    predict, status = _PREDICT.fullmatch(self.path), _STATUS.fullmatch(self.path)
    if method == 'POST' and predict:
      name, version, label, verb = predict.groups()
      spec = self._spec(name, version, label)
      if verb.lower() != 'predict':
        raise _invalid(f'Expected {verb} signature method_name to be tensorflow/serving/{verb}.')

      def get_inputs(signature):
        _, bundle = self.core.find(spec)
        found = bundle.signatures.get(signature or 'serving_default')
        if found is None:
          raise _invalid(
            f'Serving signature name: "{signature or "serving_default"}" not found in signature def'
          )
        return found.inputs

      signature, inputs, rows = parse_predict(body, get_inputs)
      _, bundle = self.core.find(spec)
      outputs = bundle.predict(signature, inputs, timeout=self.timeout_seconds)
      return to_json(outputs, rows=rows)
    if method == 'GET' and status:
      name, version, label, metadata = status.groups()
      if not name:
        raise _invalid('Missing model name in request.')
      spec = self._spec(name, version, label)
      message = self.core.metadata(spec) if metadata else self.core.status(spec)
      # The keyword's name changed in protobuf 5; that of protobuf 3 and 4 serves here.
      return json_format.MessageToJson(
        message, including_default_value_fields=True, preserving_proto_field_name=True
      )
    raise _invalid(f'Malformed request: {method} {self.path}')

  def _spec(self, name, version, label):
    spec = predict_pb2.PredictRequest().model_spec
    spec.name = name
    if version:
      if int(version) >= 2**63:
        raise _invalid(f'Failed to convert version: {version} to numeric.')
      spec.version.value = int(version)
    elif label:
      spec.version_label = label
    return spec


class _Threads(socketserver.ThreadingMixIn, http.server.HTTPServer):
  daemon_threads = True


def main():
  """Serves until standard input ends."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--model', action='append', required=True, help='NAME=FOLDER')
  parser.add_argument('--label', action='append', default=[], help='NAME=LABEL=VERSION')
  parser.add_argument('--rest_timeout', type=float, default=30.0)
  parser.add_argument('--poll', type=float, default=0.2)
  parser.add_argument('--grpc_port', type=int, default=0)
  parser.add_argument('--rest_port', type=int, default=0)
  arguments = parser.parse_args()
  labels = {}
  for label in arguments.label:
    name, label, version = label.split('=')
    labels.setdefault(name, {})[label] = int(version)
  core = Core(dict(model.split('=', 1) for model in arguments.model), labels)
  server = grpc.server(
    futures.ThreadPoolExecutor(8),
    options=[('grpc.max_receive_message_length', -1), ('grpc.max_send_message_length', -1)],
  )
  prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Predictions(core), server)
  model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(core), server)
  grpc_port = server.add_insecure_port(f'127.0.0.1:{arguments.grpc_port}')
  server.start()
  Rest.core = core
  Rest.timeout_seconds = arguments.rest_timeout
  rest = _Threads(('127.0.0.1', arguments.rest_port), Rest)
  threading.Thread(target=rest.serve_forever, daemon=True).start()

  def watch():
    while True:
      time.sleep(arguments.poll)
      core.poll()

  threading.Thread(target=watch, daemon=True).start()
  said = {'grpc': grpc_port, 'rest': rest.server_port, 'tfreid': 'tfreid' in sys.modules}
  print(json.dumps(said), flush=True)
  sys.stdin.read()
  os._exit(0)


if __name__ == '__main__':
  main()
