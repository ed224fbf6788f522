"""Warm-up records: what TensorFlow Serving asks a model before it lets others ask. Floor 4.

`assets.extra/tf_serving_warmup_requests` is a TFRecord file of `tensorflow.serving.PredictionLog`
messages. Their classes come from the package tensorflow-serving-api, which is not needed here: a
message is its field numbers, and those are part of TensorFlow Serving's public interface.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf import wrappers_pb2 as _wrappers  # noqa: F401  (registers Int64Value)

FILE = 'tf_serving_warmup_requests'

# "At most 1000 records", or the server refuses the file.
MAX_RECORDS = 1000

# Not tensorflow.serving: a program may import tensorflow-serving-api as well, and a message can be
# registered under its name only once. Names of packages and messages are not transmitted.
_PACKAGE = 'tfreid.serving.wire'
_FIELD = descriptor_pb2.FieldDescriptorProto


class Request(NamedTuple):
  """One request to warm up with: the signature's name, and its inputs by name."""

  signature: str
  inputs: Mapping[str, Any]


class Messages(NamedTuple):
  """Message classes with the fields of TensorFlow Serving's, for reading and writing."""

  ModelSpec: type[Any]
  PredictRequest: type[Any]
  PredictResponse: type[Any]
  PredictionLog: type[Any]


# Of each message its fields: name, number, and what it holds: 'string', 'strings' (repeated),
# 'tensors' (a map from names), or the full name of a message.
_MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
  'ModelSpec': (
    ('name', 1, 'string'),
    ('version', 2, '.google.protobuf.Int64Value'),
    ('signature_name', 3, 'string'),
  ),
  'PredictRequest': (
    ('model_spec', 1, f'.{_PACKAGE}.ModelSpec'),
    ('inputs', 2, 'tensors'),
    ('output_filter', 3, 'strings'),
  ),
  'PredictResponse': (('outputs', 1, 'tensors'), ('model_spec', 2, f'.{_PACKAGE}.ModelSpec')),
  'PredictLog': (
    ('request', 1, f'.{_PACKAGE}.PredictRequest'),
    ('response', 2, f'.{_PACKAGE}.PredictResponse'),
  ),
  'PredictionLog': (('predict_log', 6, f'.{_PACKAGE}.PredictLog'),),
}


def _describe() -> descriptor_pb2.FileDescriptorProto:
  file = descriptor_pb2.FileDescriptorProto(
    name='tfreid/serving/wire.proto',
    package=_PACKAGE,
    syntax='proto3',
    dependency=['tensorflow/core/framework/tensor.proto', 'google/protobuf/wrappers.proto'],
  )
  for name, fields in _MESSAGES.items():
    message = file.message_type.add(name=name)
    for field, number, kind in fields:
      _add_field(message, field, number, kind)
  return file


def _add_field(message, name: str, number: int, kind: str) -> None:
  """Adds a field to the description of a message; `kind` as in `_MESSAGES`."""
  repeated = kind in ('strings', 'tensors')
  field = message.field.add(
    name=name,
    number=number,
    label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL,
  )
  if kind in ('string', 'strings'):
    field.type = _FIELD.TYPE_STRING
    return
  field.type, field.type_name = _FIELD.TYPE_MESSAGE, kind
  if kind == 'tensors':
    # A map is a repeated message of a key and a value.
    entry = message.nested_type.add(name=f'{name.capitalize()}Entry')
    entry.options.map_entry = True
    _add_field(entry, 'key', 1, 'string')
    _add_field(entry, 'value', 2, '.tensorflow.TensorProto')
    field.type_name = f'.{_PACKAGE}.{message.name}.{entry.name}'


@functools.cache
def messages() -> Messages:
  """The message classes; the same ones at every call."""
  pool = descriptor_pool.Default()
  pool.AddSerializedFile(_describe().SerializeToString())
  # protobuf 3 has a method for what is a function in protobuf 4.
  get_class = getattr(message_factory, 'GetMessageClass', None)
  get_class = get_class or message_factory.MessageFactory(pool).GetPrototype
  return Messages(
    *(get_class(pool.FindMessageTypeByName(f'{_PACKAGE}.{name}')) for name in Messages._fields)
  )


def predict_request(model: str, request: Request):
  """The PredictRequest message of a request to the model of that name."""
  message = messages().PredictRequest()
  message.model_spec.name = model
  message.model_spec.signature_name = request.signature
  for name, value in request.inputs.items():
    message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
  return message


def write(directory: str, model: str, requests: Sequence[Request]) -> str:
  """Writes the warm-up file of a model.

  Args:
    directory: the model's `assets.extra`.
    model: its name.
    requests: what to ask, in this order.

  Returns:
    The path of the file.

  Raises:
    ValueError: there are more requests than TensorFlow Serving accepts.
  """
  if len(requests) > MAX_RECORDS:
    raise ValueError(
      f'{len(requests)} warm-up requests; TensorFlow Serving accepts {MAX_RECORDS} at most.'
    )
  path = os.path.join(directory, FILE)
  with tf.io.TFRecordWriter(path) as writer:
    for request in requests:
      log = messages().PredictionLog()
      log.predict_log.request.CopyFrom(predict_request(model, request))
      writer.write(log.SerializeToString())
  return path


def read(path: str) -> list[Request]:
  """The requests of a warm-up file, inputs as arrays."""
  requests = []
  for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
    request = messages().PredictionLog.FromString(record).predict_log.request
    inputs: dict[str, np.ndarray] = {
      name: tf.make_ndarray(value) for name, value in request.inputs.items()
    }
    requests.append(Request(request.model_spec.signature_name, inputs))
  return requests
