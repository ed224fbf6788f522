"""Every signature with what nobody should send: an error that says what is wrong, and no harm.

Once in this process, on the C++ loader alone, where a crash ends the test run; and once through
both interfaces of the server, which must answer a good request afterwards.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import socket
import struct
import sys
import zlib
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorflow_serving.apis import predict_pb2

from tfreid import image_bytes
from tfreid.serving import signatures

sys.path.insert(0, str(Path(__file__).parent))
from served import SERVER, Served

# Examples are drawn from a fixed seed: a failure is one for everybody.
FUZZ = settings(
  max_examples=60,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=list(HealthCheck),
)
PREDICT = '/v1/models/people:predict'
# The type and the shape behind the batch of each input; -1 is any size.
INPUTS = {
  'attributes': ('float32', [30]),
  'variants': ('float32', [-1, 30]),
  'concepts': ('float32', [12]),
  'image_bytes': ('string', []),
  'words': ('string', []),
  'crop_ids': ('string', []),
  'any': ('string', []),
}
SIGNATURES = {
  signature.name: [tensor.name for tensor in signature.inputs]
  for signature in signatures.SIGNATURES
}


@pytest.fixture(scope='module')
def conformance():
  """The module of the server, for its loader."""
  spec = importlib.util.spec_from_file_location('conformance_server', SERVER)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def bundle(conformance, exported):
  bundle = conformance.Bundle(exported)
  assert set(SIGNATURES) == {name for name in bundle.signatures if not name.startswith('__')}
  yield bundle
  bundle.close()


@pytest.fixture(scope='module')
def run(conformance, bundle):
  """Runs a signature: outputs by name, or the message of the error."""

  def ask(signature, inputs):
    try:
      return bundle.predict(signature, inputs, timeout=30)
    except conformance.StatusError as error:
      assert error.code.name in ('INVALID_ARGUMENT', 'UNIMPLEMENTED', 'INTERNAL'), error.message
      return error.message

  return ask


@pytest.fixture(scope='module')
def served(exported):
  server = Served({'people': Path(exported).parent})
  yield server
  server.stop()


@pytest.fixture(scope='module')
def call(served):
  """Sends bytes to PredictionService.Predict: a response, or (code, details)."""
  with grpc.insecure_channel(served.grpc.partition('://')[2]) as channel:
    method = channel.unary_unary('/tensorflow.serving.PredictionService/Predict')

    def send(contents):
      try:
        return predict_pb2.PredictResponse.FromString(method(contents, timeout=30))
      except grpc.RpcError as error:
        return error.code().name, error.details()

    yield send


@pytest.fixture
def still_well(served, exported):
  """After the test, the server answers a good request as it does before."""
  good = {'instances': [[0.5] * 30]}
  before = served.ask(PREDICT, good)
  assert before[0] == 200
  yield
  assert served.ask(PREDICT, good) == before


def assert_says_no_path(text, exported):
  """An error must not tell strangers what the disk looks like, here or where it was exported."""
  assert str(exported) not in text
  assert 'site-packages' not in text and '.py' not in text
  assert not re.search(r'/(tmp|home|work|usr|root|var|opt)/', text), text


def good(name, size=1):
  kind, shape = INPUTS[name]
  if kind == 'float32':
    return np.zeros([size, *(2 if side < 0 else side for side in shape)], np.float32)
  value = {'image_bytes': png(np.zeros([4, 4, 3], np.uint8)), 'words': b'woman'}.get(name, b'')
  return strings([value] * size)


def strings(values):
  array = np.empty(len(values), object)
  array[:] = values
  return array


def png(pixels):
  return encoded(pixels, 'PNG')


def encoded(pixels, kind, **options):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, kind, **options)
  return buffer.getvalue()


def chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def bomb(width, height, *, rows=1):
  """A PNG that says it has width x height pixels, with the zeros for `rows` of them."""
  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  data = zlib.compress(bytes(rows * (1 + 3 * width)), 9)
  magic = b'\x89PNG\r\n\x1a\n'
  return magic + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def jpeg_of(width, height):
  """A JPEG whose header says another size than its contents have."""
  contents = bytearray(encoded(np.zeros([8, 8, 3], np.uint8), 'JPEG'))
  at = contents.index(b'\xff\xc0') + 5
  contents[at : at + 4] = struct.pack('>HH', height, width)
  return bytes(contents)


IMAGES = {
  'empty': b'',
  'one byte': b'\xff',
  'a text': b'not an image',
  'a GIF': encoded(np.zeros([4, 4], np.uint8), 'GIF'),
  'a BMP': encoded(np.zeros([4, 4, 3], np.uint8), 'BMP'),
  'a TIFF': encoded(np.zeros([4, 4, 3], np.uint8), 'TIFF'),
  'the magic of a JPEG': b'\xff\xd8\xff',
  'the magic of a PNG': b'\x89PNG\r\n\x1a\n',
  'a truncated PNG': png(np.zeros([64, 64, 3], np.uint8))[:60],
  'a truncated JPEG': encoded(np.full([64, 64, 3], 90, np.uint8), 'JPEG')[:200],
  'a bomb': bomb(60000, 60000, rows=2),
  'a bomb in one row': bomb(2**31 - 1, 1, rows=0),
  'a bomb in one column': bomb(1, 2**31 - 1, rows=0),
  'a bomb just over the limit': bomb(4097, 4096),
  'a PNG of no pixels': bomb(0, 0, rows=0),
  'a JPEG that claims to be huge': jpeg_of(65500, 65500),
  'a JPEG of no pixels': jpeg_of(0, 0),
  'a JPEG in a PNG': b'\x89PNG\r\n\x1a\n' + encoded(np.zeros([8, 8, 3], np.uint8), 'JPEG'),
}


@pytest.mark.parametrize('signature', ['search_images', 'embed_images'])
@pytest.mark.parametrize('kind', IMAGES)
def test_an_image_that_is_none_is_an_error(run, exported, signature, kind):
  found = run(signature, {'image_bytes': strings([IMAGES[kind]])})
  assert isinstance(found, str), found
  assert_says_no_path(found, exported)


def test_images_of_all_shapes_and_colours_are_read(run):
  rng = np.random.default_rng(0)
  colours = rng.integers(0, 256, [40, 20, 4]).astype(np.uint8)
  images = [
    png(colours),
    png(colours[..., 0]),
    png(colours[:1, :1, :3]),
    png(colours[:1].repeat(1000, axis=1)[..., :3]),
    encoded(colours[..., :3], 'JPEG', progressive=True),
    encoded(colours[..., 0], 'JPEG'),
    encoded(rng.integers(0, 2**16, [9, 9]).astype(np.uint16), 'PNG'),
  ]
  for image in images:
    found = run('embed_images', {'image_bytes': strings([image])})
    assert not isinstance(found, str), found
    assert np.isfinite(found['concepts']).all()


def test_the_largest_image_that_is_taken_takes_neither_long_nor_much(run):
  """As many pixels as are allowed, from a few kilobytes."""
  contents = bomb(4096, 4096, rows=4096)
  assert len(contents) < 60000 and 4096 * 4096 == image_bytes.MAX_PIXELS
  found = run('embed_images', {'image_bytes': strings([contents])})
  assert np.isfinite(found['concepts']).all()


@FUZZ
@given(st.data())
def test_damaged_images_are_an_error_or_a_concept(run, exported, data):
  rng = np.random.default_rng(1)
  pixels = rng.integers(0, 256, [20, 10, 3]).astype(np.uint8)
  contents = bytearray(encoded(pixels, data.draw(st.sampled_from(['PNG', 'JPEG']))))
  for _ in range(data.draw(st.integers(1, 8))):
    contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
  contents = contents[: data.draw(st.integers(0, len(contents)))]
  found = run('embed_images', {'image_bytes': strings([bytes(contents)])})
  if isinstance(found, str):
    assert_says_no_path(found, exported)
  else:
    assert np.isfinite(found['concepts']).all()


@pytest.mark.parametrize('signature', SIGNATURES)
@FUZZ
@given(st.data())
def test_wrong_types_and_shapes_are_errors(run, exported, signature, data):
  """Fed past the signature's own description, as TF Serving does, which checks neither."""
  inputs = {name: good(name) for name in SIGNATURES[signature]}
  name = data.draw(st.sampled_from(sorted(inputs)))
  kinds = [
    'float32',
    'float64',
    'float16',
    'int32',
    'int64',
    'uint8',
    'bool',
    'complex64',
    'string',
  ]
  kind = data.draw(st.sampled_from(kinds))
  shape = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 12, 29, 30, 31]), max_size=4))
  if kind == 'string':
    inputs[name] = np.full(shape, b'x', object)
  else:
    inputs[name] = np.ones(shape, kind)
  right, inner = INPUTS[name]
  fits = kind == right and len(shape) == 1 + len(inner)
  fits = fits and all(side in (-1, found) for side, found in zip(inner, shape[1:]))
  if signature == 'explain':
    fits = fits and shape[0] == 1
  found = run(signature, inputs)
  if not fits or (name == 'image_bytes' and shape[0] > 0):
    assert isinstance(found, str), (kind, shape, found)
    assert_says_no_path(found, exported)
  else:
    assert not isinstance(found, str), (kind, shape, found)
    assert {len(value) for value in found.values()} == {shape[0]}


NUMBERS = ('attributes', 'variants', 'concepts')


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  ('signature', 'name'),
  [
    (signature, name)
    for signature, names in SIGNATURES.items()
    for name in names
    if name in NUMBERS
  ],
)
def test_numbers_that_are_not_finite_are_an_error_wherever_they_stand(run, signature, name, value):
  for position in (0, -1):
    inputs = {other: good(other, 2) for other in SIGNATURES[signature]}
    inputs[name].reshape(-1)[position] = value
    found = run(signature, inputs)
    assert isinstance(found, str) and re.search('NaN|Inf|finite', found), found


@pytest.mark.parametrize('signature', ['serving_default', 'search_concepts', 'embed_attributes'])
def test_numbers_of_any_size_are_an_error_or_finite(run, signature):
  (name,) = SIGNATURES[signature]
  for size in (1e-45, 1e10, 1e30, 3e38):
    inputs = {name: np.full_like(good(name), size)}
    inputs[name][0, ::2] *= -1
    found = run(signature, inputs)
    if not isinstance(found, str):
      for value in found.values():
        assert value.dtype == object or np.isfinite(value).all(), size


@FUZZ
@given(st.binary(max_size=1200))
def test_words_of_any_bytes_are_read_or_reported(run, contents):
  found = run('search_words', {'words': strings([contents, b'woman'])})
  assert not isinstance(found, str), found
  for name in ('unknown', 'understood', 'contradictory'):
    found[name][0].decode(
      'utf-8'
    )  # whatever came in, text goes out: REST could not say it otherwise
  assert found['ids'][1, 0] and found['understood'][1] == b'gender=female'


# Words that say nothing of an attribute, and so are neither understood nor unknown.
SILENT = set(
  'a an the some his her their one and with in wearing wears carrying carries has having but '
  'person who is of plus'.split()
)


@FUZZ
@example('PERSON')
@example('a person who is in the')
@given(st.text(max_size=400))
def test_words_of_any_script_are_read_or_reported(run, text):
  found = run('search_words', {'words': strings([text.encode('utf-8', 'surrogatepass')])})
  said = any(found[name][0] for name in ('unknown', 'understood', 'contradictory'))
  assert bool(found['ids'][0, 0]) == bool(
    found['understood'][0] and not found['unknown'][0] and not found['contradictory'][0]
  )
  assert said or set(re.findall(r'[^\W_]+', text.lower())) <= SILENT


@FUZZ
@given(st.binary(max_size=300))
def test_ids_of_any_bytes_find_nothing(run, contents):
  found = run('search_ids', {'crop_ids': strings([contents])})
  assert not found['ids'][0, 0] and not found['scores'].any()


@pytest.mark.parametrize('signature', SIGNATURES)
def test_empty_batches_are_answered_and_huge_ones_refused(run, signature):
  names = SIGNATURES[signature]
  found = run(signature, {name: good(name, 0) for name in names})
  assert {len(value) for value in found.values()} == {0}
  limits = {
    'image_bytes': signatures.MAX_IMAGES,
    'crop_ids': signatures.MAX_CROP_IDS,
    'any': signatures.MAX_CROP_IDS,
  }
  limit = limits.get(names[0], signatures.MAX_ROWS)
  found = run(signature, {name: good(name, limit) for name in names})
  assert {len(value) for value in found.values()} == {limit}
  found = run(signature, {name: good(name, limit + 1) for name in names})
  assert f'A request may have {limit} rows' in found
  found = run(signature, {name: good(name, 200000) for name in names})
  assert f'A request may have {limit} rows' in found


# Through the interfaces.


@FUZZ
@given(contents=st.binary(max_size=300))
def test_bytes_that_are_no_message_are_an_error_of_grpc(call, still_well_once, contents):
  found = call(contents)
  assert isinstance(found, tuple) and found[0] not in ('UNAVAILABLE', 'DEADLINE_EXCEEDED')


@pytest.fixture(scope='module')
def still_well_once(served):
  """As `still_well`, for tests of many examples: around the first and after the last test."""
  good_request = {'instances': [[0.5] * 30]}
  before = served.ask(PREDICT, good_request)
  yield
  assert served.ask(PREDICT, good_request) == before


@FUZZ
@given(data=st.data())
def test_damaged_messages_are_an_error_or_an_answer(call, still_well_once, exported, data):
  signature = data.draw(st.sampled_from(sorted(SIGNATURES)))
  request = predict_pb2.PredictRequest()
  request.model_spec.name = 'people'
  request.model_spec.signature_name = signature
  for name in SIGNATURES[signature]:
    request.inputs[name].CopyFrom(tf.make_tensor_proto(good(name)))
  contents = bytearray(request.SerializeToString())
  for _ in range(data.draw(st.integers(1, 6))):
    contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
  found = call(bytes(contents))
  if isinstance(found, tuple):
    assert found[0] not in ('UNAVAILABLE', 'DEADLINE_EXCEEDED')
    assert_says_no_path(found[1], exported)


def test_tensors_that_lie_about_their_shape_are_errors(call, still_well, exported):
  for dims, contents in [
    ([2**40, 30], b''),
    ([2**31, 2**31], b''),
    ([-1, 30], b''),
    ([1, 30], b'123'),
    ([3, 30], np.zeros(30, np.float32).tobytes()),
    ([1] * 300, b''),
  ]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = 'people'
    tensor = request.inputs['attributes']
    tensor.dtype = 1
    tensor.tensor_content = contents
    for size in dims:
      tensor.tensor_shape.dim.add(size=size)
    code, details = call(request.SerializeToString())
    assert code == 'INVALID_ARGUMENT'
    assert_says_no_path(details, exported)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
  ),
  max_leaves=12,
)


@FUZZ
@given(data=st.data())
def test_json_of_any_form_is_an_error_or_an_answer(served, still_well_once, exported, data):
  body = data.draw(
    st.one_of(
      JSON,
      st.fixed_dictionaries(
        {},
        optional={
          'signature_name': st.sampled_from([*SIGNATURES, '', 'nobody', 3]),
          'instances': JSON | st.lists(JSON, max_size=3),
          'inputs': JSON | st.fixed_dictionaries({'attributes': JSON}),
        },
      ),
    )
  )
  status, answer = served.ask(PREDICT, body)
  assert status in (200, 400), answer
  if status != 200:
    assert list(answer) == ['error']
    # What the caller wrote is quoted; the rest must not have paths in it.
    assert str(exported) not in answer['error'] and 'site-packages' not in answer['error']


@FUZZ
@given(contents=st.binary(max_size=200))
def test_bytes_that_are_no_json_are_an_error_of_rest(served, still_well_once, contents):
  status, answer = served.ask(PREDICT, contents)
  assert status == 400 and list(answer) == ['error']


@pytest.mark.parametrize(
  'body',
  [
    b'',
    b'{',
    b'{"instances": [',
    b'[' * 100000,
    b'{"instances": ' + b'[' * 500 + b']' * 500 + b'}',
    b'{"instances": [[1e999]]}',
    b'{"instances": [[' + b'9' * 5000 + b']]}',
    json.dumps({'instances': [[0.0] * 30], 'inputs': [[0.0] * 30]}).encode(),
    json.dumps({'instances': [{'attributes': [0.0] * 30}, [0.0] * 30]}).encode(),
    json.dumps({'instances': [[0.0] * 30, [0.0] * 29]}).encode(),
    json.dumps({'signature_name': 'search_words', 'instances': [3]}).encode(),
    json.dumps({'signature_name': 'search_words', 'instances': [None]}).encode(),
    json.dumps({'signature_name': 'explain', 'instances': [[0.0] * 30]}).encode(),
    json.dumps({'signature_name': 'embed_images', 'instances': [{'b64': '***'}]}).encode(),
    json.dumps({'signature_name': 'embed_images', 'instances': ['\ud800 text']}).encode(),
    json.dumps({'instances': [[float('nan')] * 30]}).encode(),
  ],
  ids=range(16),
)
def test_bad_requests_of_rest_are_refused_with_a_reason(served, still_well, exported, body):
  status, answer = served.ask(PREDICT, body)
  assert status == 400, answer
  assert answer['error']
  assert_says_no_path(answer['error'], exported)


def test_bombs_and_bad_images_by_both_interfaces_leave_the_server_well(
  served, call, still_well, exported
):
  for kind, contents in IMAGES.items():
    body = {
      'signature_name': 'search_images',
      'instances': [{'b64': base64.b64encode(contents).decode()}],
    }
    status, answer = served.ask(PREDICT, body)
    assert status == 400, (kind, answer)
    assert_says_no_path(answer['error'], exported)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = 'people'
    request.model_spec.signature_name = 'search_images'
    request.inputs['image_bytes'].CopyFrom(tf.make_tensor_proto([contents]))
    code, details = call(request.SerializeToString())
    assert code == 'INVALID_ARGUMENT', (kind, details)
    assert_says_no_path(details, exported)


def test_connections_that_break_off_leave_the_server_well(served, still_well):
  for port, contents in [
    (served.said['rest'], b'POST /v1/models/people:predict HTTP/1.1\r\nContent-Length: 9\r\n\r\n{'),
    (served.said['rest'], b'\x00\xff' * 50 + b'\r\n\r\n'),
    (served.said['rest'], b'GET ' + b'/' * 70000 + b' HTTP/1.1\r\n\r\n'),
    (served.said['grpc'], b'GET / HTTP/1.1\r\n\r\n'),
    (served.said['grpc'], b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + b'\xff' * 100),
  ]:
    for _ in range(3):
      with socket.create_connection(('127.0.0.1', port), timeout=10) as connection:
        connection.sendall(contents)
