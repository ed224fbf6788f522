"""TF Serving's gRPC interface, by the extra `client`. Floor 2."""

from __future__ import annotations

import re

import numpy as np

from tfreid.search import client
from tfreid.search.client import Client, Metadata, Signature, Status, tensor_info


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
      ('grpc.max_receive_message_length', client.MAX_RESPONSE_BYTES),
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
          raise Status('TLS', details, sent=False) from error
        unreachable = re.search('connect|resol|Socket|endpoint', details) is not None
        raise Status(code.name, _reason(details), sent=not unreachable) from error
      raise Status(code.name, details) from error
    except ValueError as error:  # of a channel that was closed
      raise Status('CANCELLED', str(error)) from error

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
      return tensor_info(described)

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


def _reason(details: str) -> str:
  """What gRPC's list of failed attempts comes down to."""
  details = details[: client.MAX_MESSAGE]
  reasons = re.findall(r'[Ff]ailed to connect to [^:]+:[^;]*?: ?([^;()]+)', details)
  return (reasons[-1] if reasons else details).strip()
