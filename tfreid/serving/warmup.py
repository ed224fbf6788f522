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

  ModelSpec: type
  PredictRequest: type
  PredictResponse: type
  PredictionLog: type


def _describe() -> descriptor_pb2.FileDescriptorProto:
  file = descriptor_pb2.FileDescriptorProto(
    name='tfreid/serving/wire.proto',
    package=_PACKAGE,
    syntax='proto3',
    dependency=['tensorflow/core/framework/tensor.proto', 'google/protobuf/wrappers.proto'],
  )

  def message(name, *fields):
    described = file.message_type.add(name=name)
    for field, number, kind in fields:
      if kind == 'string':
        described.field.add(
          name=field, number=number, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL
        )
      elif kind == 'tensors':
        # A map is a repeated message of a key and a value.
        entry = described.nested_type.add(name=f'{field.capitalize()}Entry')
        entry.options.map_entry = True
        entry.field.add(name='key', number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
        entry.field.add(
          name='value',
          number=2,
          type=_FIELD.TYPE_MESSAGE,
          type_name='.tensorflow.TensorProto',
          label=_FIELD.LABEL_OPTIONAL,
        )
        described.field.add(
          name=field,
          number=number,
          type=_FIELD.TYPE_MESSAGE,
          type_name=f'.{_PACKAGE}.{name}.{entry.name}',
          label=_FIELD.LABEL_REPEATED,
        )
      elif kind == 'strings':
        described.field.add(
          name=field, number=number, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_REPEATED
        )
      else:
        described.field.add(
          name=field,
          number=number,
          type=_FIELD.TYPE_MESSAGE,
          type_name=kind,
          label=_FIELD.LABEL_OPTIONAL,
        )

  message(
    'ModelSpec',
    ('name', 1, 'string'),
    ('version', 2, '.google.protobuf.Int64Value'),
    ('signature_name', 3, 'string'),
  )
  message(
    'PredictRequest',
    ('model_spec', 1, f'.{_PACKAGE}.ModelSpec'),
    ('inputs', 2, 'tensors'),
    ('output_filter', 3, 'strings'),
  )
  message(
    'PredictResponse',
    ('outputs', 1, 'tensors'),
    ('model_spec', 2, f'.{_PACKAGE}.ModelSpec'),
  )
  message(
    'PredictLog',
    ('request', 1, f'.{_PACKAGE}.PredictRequest'),
    ('response', 2, f'.{_PACKAGE}.PredictResponse'),
  )
  message('PredictionLog', ('predict_log', 6, f'.{_PACKAGE}.PredictLog'))
  return file


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
