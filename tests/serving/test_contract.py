"""What TF Serving asks of an export: TensorFlow's C++ loader, and the formats of its interfaces."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
  classification_pb2,
  get_model_metadata_pb2,
  get_model_status_pb2,
  inference_pb2,
  model_service_pb2_grpc,
  predict_pb2,
  prediction_log_pb2,
  prediction_service_pb2_grpc,
)

from tfreid.serving import export, warmup

sys.path.insert(0, str(Path(__file__).parent))
from served import SERVER, Served


@pytest.fixture(scope='module')
def base(exported, tmp_path_factory):
  """Folder of a model with one version, to which a test may add."""
  folder = tmp_path_factory.mktemp('served') / 'people'
  shutil.copytree(exported, folder / '1')
  return folder


@pytest.fixture(scope='module')
def served(base):
  server = Served({'people': base}, '--label=people=stable=1')
  yield server
  server.stop()


@pytest.fixture(scope='module')
def channel(served):
  with grpc.insecure_channel(served.grpc.partition('://')[2]) as channel:
    yield channel


@pytest.fixture(scope='module')
def stub(channel):
  return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def golden(exported):
  """(signature, inputs by name, predictions) of each golden request; binary inputs as bytes."""
  text = Path(exported, 'assets.extra', 'golden.json').read_text(encoding='utf-8')
  for entry in json.loads(text)['golden']:
    rows = entry['request']['instances']
    inputs = {name: [row[name] for row in rows] for name in rows[0]}
    for name, values in inputs.items():
      if isinstance(values[0], dict):
        inputs[name] = [base64.b64decode(value['b64']) for value in values]
    yield entry['request'], inputs, entry['response']['predictions']


def as_column(predictions):
  """Row format to column format: a dict of lists, or a list where the output has no name."""
  if not isinstance(predictions[0], dict):
    return predictions
  return {name: [row[name] for row in predictions] for name in predictions[0]}


def assert_alike(found, expected):
  """Compares JSON values; of ids and scores golden.json holds the first ones."""
  if isinstance(expected, dict):
    assert set(found) == set(expected)
    for name in expected:
      assert_alike(found[name], expected[name])
  elif isinstance(expected, list):
    assert len(found) == len(expected) or len(found) > len(expected) == 10
    for one, other in zip(found, expected):
      assert_alike(one, other)
  elif isinstance(expected, str):
    assert found == expected
  else:
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def predict_request(signature, inputs, **spec):
  request = predict_pb2.PredictRequest()
  request.model_spec.name = spec.get('name', 'people')
  request.model_spec.signature_name = signature
  for name, values in inputs.items():
    request.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(values)))
  return request


def as_float32(inputs):
  return {
    name: np.asarray(values, np.float32) if np.asarray(values).dtype.kind == 'f' else values
    for name, values in inputs.items()
  }


def test_the_server_cannot_import_this_package(served):
  assert served.said['tfreid'] is False
  code = f'import runpy\nsys = runpy.run_path({str(SERVER)!r})["sys"]\n'
  code += 'assert not [name for name in sys.modules if name.split(".")[0] == "tfreid"]'
  subprocess.run([sys.executable, '-I', '-c', code], check=True)


def test_golden_requests_in_row_format_have_the_golden_answers(served, exported):
  asked = set()
  for request, _, predictions in golden(exported):
    status, answer = served.ask('/v1/models/people:predict', request)
    assert status == 200, answer
    assert list(answer) == ['predictions']
    assert_alike(answer['predictions'], predictions)
    asked.add(request['signature_name'])
  assert asked >= {'serving_default', 'explain', 'embed_images', 'search_words', 'describe'}


def test_column_format_and_grpc_have_the_same_answers(served, stub, exported):
  for request, inputs, predictions in golden(exported):
    rows = request.pop('instances')
    names = list(rows[0])
    body = {**request, 'inputs': {name: [row[name] for row in rows] for name in names}}
    status, answer = served.ask('/v1/models/people/versions/1:predict', body)
    assert status == 200, answer
    assert_alike(answer['outputs'], as_column(predictions))
    if len(names) == 1:  # a single input needs no name
      _, again = served.ask(
        '/v1/models/people/labels/stable:predict', {**request, 'inputs': body['inputs'][names[0]]}
      )
      assert again == answer
    response = stub.Predict(predict_request(request['signature_name'], as_float32(inputs)))
    assert response.model_spec.version.value == 1
    arrays = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
    found = {
      name: np.char.decode(array.astype(bytes)).tolist() if array.dtype == object else array
      for name, array in arrays.items()
    }
    found = {name: np.asarray(value).tolist() for name, value in found.items()}
    assert_alike(found if len(found) > 1 else found.popitem()[1], as_column(predictions))


def test_a_batch_is_its_requests_side_by_side(served, exported):
  """What batching needs: requests are joined, filled up by repeating a row, and taken apart."""
  for request, _, predictions in golden(exported):
    first, second = request['instances']
    body = {**request, 'instances': [second, first, second, *[first] * 5]}
    status, answer = served.ask('/v1/models/people:predict', body)
    assert status == 200
    expected = [predictions[i] for i in (1, 0, 1, 0, 0, 0, 0, 0)]
    assert_alike(answer['predictions'], expected)
    status, answer = served.ask('/v1/models/people:predict', {**request, 'instances': [second]})
    assert_alike(answer['predictions'], predictions[1:])


def test_every_signature_has_the_batch_in_front(served):
  status, answer = served.ask('/v1/models/people/metadata')
  assert status == 200 and answer['model_spec']['version'] == '1'
  signatures = answer['metadata']['signature_def']['signature_def']
  signatures = {name: value for name, value in signatures.items() if not name.startswith('__')}
  assert len(signatures) == 9
  for name, signature in signatures.items():
    assert signature['method_name'] == 'tensorflow/serving/predict'
    for side in ('inputs', 'outputs'):
      for info in signature[side].values():
        assert info['tensor_shape']['dim'][0]['size'] == '-1', name


def test_warm_up_records_are_prediction_logs_of_every_signature_and_batch_size(exported):
  path = Path(exported, 'assets.extra', warmup.FILE)
  asked = []
  for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
    log = prediction_log_pb2.PredictionLog.FromString(record)
    assert log.WhichOneof('log_type') == 'predict_log'
    request = log.predict_log.request
    (size,) = {proto.tensor_shape.dim[0].size for proto in request.inputs.values()}
    asked.append((request.model_spec.signature_name, size))
  expected = {request['signature_name'] for request, _, _ in golden(exported)}
  assert sorted(asked) == sorted(
    (name, size) for name in expected for size in export.WARMUP_BATCHES
  )


def test_versions_come_whole_warm_and_newest_first(base, served, exported):
  # What an export that is being written, or was killed, leaves: no version.
  shutil.copytree(exported, base / '.2-partial-abc')
  # One that does not survive its warm-up never becomes available, and the old one stays.
  broken = base.parent / 'broken'
  shutil.copytree(exported, broken)
  warmup.write(
    str(broken / 'assets.extra'), 'people', [warmup.Request('nobody', {'attributes': [0.0]})]
  )
  broken.rename(base / '2')
  served.wait_for('people', {1: 'AVAILABLE', 2: 'END'})
  _, answer = served.ask('/v1/models/people/versions/2')
  assert 'nobody' in answer['model_version_status'][0]['status']['error_message']
  assert served.ask('/v1/models/people:predict', {'instances': [[0.0] * 30]})[0] == 200
  assert served.ask('/v1/models/people/versions/2:predict', {'instances': [[0.0] * 30]})[0] == 404
  # A whole one that appears under its name takes over. (Version 1 has a label, and stays.)
  (base / '.2-partial-abc').rename(base / '3')
  served.wait_for('people', {1: 'AVAILABLE', 2: 'END', 3: 'AVAILABLE'})
  _, answer = served.ask('/v1/models/people/metadata')
  assert answer['model_spec']['version'] == '3'
  _, answer = served.ask('/v1/models/people/labels/stable/metadata')
  assert answer['model_spec']['version'] == '1'


def code_of(call, request):
  with pytest.raises(grpc.RpcError) as error:
    call(request)
  return error.value.code().name, error.value.details()


def test_other_methods_and_wrong_names_have_the_codes_of_tf_serving(served, stub, channel):
  zeros = np.zeros([1, 30], np.float32)
  for request, code, said in [
    (predict_request('nobody', {}), 'FAILED_PRECONDITION', 'Serving signature key "nobody" not'),
    (predict_request('', {'a': zeros}, name='x'), 'NOT_FOUND', 'not found for request: Latest(x)'),
    (predict_request('', {}), 'INVALID_ARGUMENT', 'Missing but required: {attributes}'),
    (predict_request('', {'a': zeros}), 'INVALID_ARGUMENT', 'alias not found in signature: a'),
  ]:
    found, details = code_of(stub.Predict, request)
    assert found == code and said in details
  classify = classification_pb2.ClassificationRequest()
  assert code_of(stub.Classify, classify)[0] == 'UNIMPLEMENTED'
  assert code_of(stub.MultiInference, inference_pb2.MultiInferenceRequest())[0] == 'UNIMPLEMENTED'
  metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=['x'])
  metadata.model_spec.name = 'people'
  assert code_of(stub.GetModelMetadata, metadata)[0] == 'INVALID_ARGUMENT'
  status = get_model_status_pb2.GetModelStatusRequest()
  status.model_spec.name = 'x'
  models = model_service_pb2_grpc.ModelServiceStub(channel)
  assert code_of(models.GetModelStatus, status)[0] == 'NOT_FOUND'
  for path, code in [
    ('/v1/models/x', 404),
    ('/v1/models/people/versions/9', 404),
    ('/v1/models/people/versions/99999999999999999999', 400),
    ('/v1/models', 400),
    ('/v2', 400),
    ('/v1/models/people:predict', 400),
  ]:
    assert served.ask(path)[0] == code, path


@pytest.mark.slow
def test_saved_model_cli_runs_the_default_signature(exported, model):
  tool = Path(sys.executable).with_name('saved_model_cli')
  chosen = ('--dir', exported, '--tag_set', 'serve', '--signature_def', 'serving_default')
  given = ('--input_exprs', f'attributes={[[1.0] * 30]}')
  done = subprocess.run([tool, 'run', *chosen, *given], capture_output=True, text=True, check=True)
  expected = model['serving_default'](attributes=tf.ones([1, 30]))['ids'].numpy()[0]
  found = re.findall(r"b'(test/\d{4}\.jpg)'", done.stdout)
  assert found == [name.decode() for name in expected]
