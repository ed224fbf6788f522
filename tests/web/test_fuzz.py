"""Every endpoint with what nobody should send: an error, no crash, no path, no stuck worker."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

# Drawn from a fixed seed: a failure is one for everybody.
FUZZ = settings(
  max_examples=60,
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=list(HealthCheck),
)
JSON = {'content-type': 'application/json'}
VALUES = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-(10**30), 10**30)
  | st.floats()
  | st.text(max_size=30)
  | st.sampled_from(['hat', 'yes', '!yes', 'red', '!', '!!yes', '../..', '\0', '\ud800', 'Ω' * 9]),
  lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
  ),
  max_leaves=12,
)
FIELDS = (
  'query', 'words', 'where', 'must', 'must_not', 'exclude', 'min_score', 'purpose', 'top_k',
  'explain', 'suggest', 'id', 'path', '__class__',
)  # fmt: skip


@pytest.fixture
def ask(serve, people):
  """ask(method, path, ...): the answer, checked to be one; at the end the server must be well."""
  client = serve()
  paths = [str(people.folder), '/tfreid/', 'site-packages', 'Traceback', '.py"']

  def check(method, path, **options):
    found = client.request(method, path, **options)
    assert found.status_code in (200, 304, 400, 401, 403, 404, 405, 408, 413, 415), found.text
    if found.status_code >= 400 and method != 'HEAD':
      said = found.json()
      assert set(said) == {'error', 'code'}
      assert said['error']
      assert len(said['error']) < 3000
    if found.headers.get('content-type') == 'application/json':
      assert not any(name in found.text for name in paths), found.text
    return found

  check.log = client.log
  yield check
  assert client.get('/healthz').json() == {'status': 'ok', 'searches': 0}
  assert client.search(query={'hat': 'yes'}).status_code == 200
  client.log()


@FUZZ
@given(
  body=st.binary(max_size=200) | st.text(max_size=100).map(lambda t: t.encode('utf-8', 'replace'))
)
@example(b'')
@example(b'null')
@example(b'{"query": {"hat": "yes"}')
@example(b'{"query": {"hat": "yes"}, "min_score": NaN}')
@example(b'{"query": {"hat": "yes"}, "min_score": 1e999}')
@example(b'{"query": {"hat": "yes"}, "min_score": -Infinity}')
@example(b'{"query": {"hat": "yes"}, "top_k": 1e2}')
@example(b'{"query": {"hat": "yes"}, "top_k": ' + b'9' * 5000 + b'}')
@example(b'{"query": {"hat": "\\ud800"}}')
@example(b'{"words": "\\udfff\\ud800"}')
@example(b'\xff\xfe{\x00}\x00')
@example(b'\xef\xbb\xbf{}')
@example(b'[' * 60_000)
@example(b'{"a":' * 20_000)
@example(b'{"query":' + b'[' * 900 + b']' * 900 + b'}')
@example(b'{"words": "' + b'x' * 120_000 + b'"}')
@example(b' ' * 500_000)
@example(b'{"query": {' + b','.join(b'"a%d": "b"' % i for i in range(5000)) + b'}}')
def test_bodies_that_are_no_query(ask, body):
  for path in ('/api/v1/search', '/api/v1/like', '/api/v1/session'):
    assert ask('POST', path, content=body, headers=JSON).status_code != 200


@FUZZ
@given(asked=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5))
@example({'query': {'hat': 'yes'}, 'top_k': 10**9})
@example({'query': {'hat': 'yes'}, 'top_k': 0})
@example({'query': {'hat': 'yes'}, 'top_k': True})
@example({'query': {'hat': ['yes']}})
@example({'query': {'hat': None}})
@example({'query': {'hat': ''}})
@example({'query': {'hat': '!'}})
@example({'query': {'hat': '!!yes'}})
@example({'query': {'upper_color': '!none'}})
@example({'query': {'': ''}})
@example({'query': 'hat'})
@example({'query': {'hat': 'yes'}, 'exclude': ['x'] * 501})
@example({'query': {'hat': 'yes'}, 'must': {'hat': '!!'}})
@example({'query': {'hat': 'yes'}, 'must_not': 'hat,'})
@example({'words': 'hat, ' * 199})
@example({'words': 'a' * 1000})
@example({'words': 'x ' * 500})
@example({'words': '=' * 1000})
@example({'words': 'hat\u202e\u0000\u2028'})
@example({'id': '../../../../etc/passwd'})
@example({'id': '/etc/passwd'})
@example({'id': 'shelf 0/../shelf 0/000.png'})
@example({'id': '\u0000'})
@example({'query': {'hat': 'yes'}, 'purpose': '\n{"outcome": "answered"}'})
def test_queries_of_wrong_shapes_and_types(ask, asked):
  body = json.dumps(asked)
  before = len(ask.log())
  for path in ('/api/v1/search', '/api/v1/like'):
    ask('POST', path, content=body, headers=JSON)
  # One line for each, whatever they held.
  assert len(ask.log()) == before + 2


@FUZZ
@given(
  where=st.text(max_size=60)
  | st.text('camer=<>!()[]" 0123.notidr', max_size=80)
  | st.builds('{} {} {}'.format, *3 * [st.sampled_from(['camera', '==', '1', 'in', '[]', 'None'])])
)
@example('(' * 1000 + 'camera' + ')' * 990)
@example('not ' * 499 + 'camera == 1')
@example('-' * 1990 + '1')
@example('camera == ' + '9' * 1980)
@example('camera == 1e999')
@example('camera == 0x' + 'f' * 1900)
@example('__import__("os").system("true") == 1')
@example('camera.real == 1')
@example('[c for c in camera] == 1')
@example('camera in [' + '1,' * 900 + ']')
@example('camera == "\ud800"'.encode('utf-8', 'replace').decode())
@example('camera\0 == 1')
@example('lambda: camera == 1')
@example('(camera := 1) == 1')
@example('1 == 1')
@example('"\\d" == camera')
@example('camera == 1 or ' * 130 + 'camera == 2')
def test_filters(ask, where):
  ask('POST', '/api/v1/search', json={'query': {'hat': 'yes'}, 'where': where})


@FUZZ
@given(path=st.text(max_size=40), method=st.sampled_from(['GET', 'POST', 'HEAD', 'PUT', 'DELETE']))
@example('../../../../etc/passwd', 'GET')
@example('static/../../setup.cfg', 'GET')
@example('static/..%2f..%2fpolicy.py', 'GET')
@example('static/%2e%2e/app.py', 'GET')
@example('api/v1/crops/..%2f..%2fetc%2fpasswd/thumbnail', 'GET')
@example('api/v1/crops/%00/thumbnail', 'GET')
@example('api/v1/crops//thumbnail', 'GET')
@example('api/v1/crops/%ff%fe/thumbnail', 'GET')
@example('docs', 'GET')
@example('openapi.json', 'GET')
def test_addresses(ask, path, method):
  import urllib.parse

  path = urllib.parse.quote(path, safe='/.%')
  found = ask(method, f'/{path}')
  assert found.status_code != 200 or path in ('', '.', './', '/', '//') or not path.strip('/.')


def _chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def _png(width, height, *chunks, rows=b''):
  header = _chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
  body = b''.join(chunks) + _chunk(b'IDAT', zlib.compress(rows)) + _chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + header + body


def _picture(form, size=(8, 4)):
  buffer = io.BytesIO()
  Image.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, form)
  return buffer.getvalue()


PNG, JPEG = _picture('PNG'), _picture('JPEG')
PICTURES = {
  'empty': b'',
  'text': b'hello',
  'svg': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
  'gif': _picture('GIF'),
  'a bomb of 4 gigapixels': _png(65_535, 65_535, rows=bytes(2**20)),
  'a bomb just above the limit': _png(4097, 4097, rows=bytes(2**20)),
  'greatest sizes': _png(2**31 - 1, 2**31 - 1),
  'too large for PNG': _png(2**32 - 1, 1),
  'no size': _png(0, 0),
  'sizes that JPEG cannot keep': JPEG.replace(struct.pack('>HH', 8, 4), b'\xff\xff\xff\xff'),
  'half a JPEG': JPEG[: len(JPEG) // 2],
  'half a PNG': PNG[: len(PNG) // 2],
  'a wrong checksum': PNG.replace(PNG[16:20], b'\0\0\0\7'),
  'too many bytes': bytes(9 * 2**20),
}


@pytest.mark.parametrize('name', PICTURES)
def test_pictures_that_are_none(ask, name):
  found = ask('POST', '/api/v1/like', files={'image': ('x.png', PICTURES[name], 'image/png')})
  assert found.status_code in (400, 413)
  # What is too large is not read, and so nothing was asked.
  assert len(ask.log()) == (found.status_code == 400)


@FUZZ
@given(
  start=st.integers(0, len(JPEG) - 1), noise=st.binary(min_size=1, max_size=8), jpeg=st.booleans()
)
def test_damaged_pictures(ask, start, noise, jpeg):
  whole = JPEG if jpeg else PNG
  damaged = whole[:start] + noise + whole[start + len(noise) :]
  ask('POST', '/api/v1/like', files={'image': ('x', damaged, 'image/png')})


@FUZZ
@given(
  body=st.binary(max_size=300),
  boundary=st.sampled_from(['b', '', 'é', 'x' * 300, '"', 'b; charset=utf-16']),
  cut=st.integers(0, 200),
)
def test_forms_that_are_none(ask, body, boundary, cut):
  form = (
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.png"\r\n'
    b'Content-Type: image/png\r\n\r\n' + PNG + b'\r\n--b--\r\n'
  )
  kind = f'multipart/form-data; boundary={boundary}'.encode()
  for content in (body, form[:cut], form[:-cut] + body, b'--b\r\n' * 200):
    ask('POST', '/api/v1/like', content=content, headers={'content-type': kind})
  kind = b'multipart/form-data'
  assert (
    ask('POST', '/api/v1/like', content=form, headers={'content-type': kind}).status_code == 400
  )


@pytest.mark.parametrize(
  ('files', 'data'),
  [
    ([('image', ('a', PNG)), ('image', ('b', PNG))], {}),
    ([('picture', ('a', PNG))], {}),
    ([('image', ('../../x', PNG)), ('other', ('b', b''))], {}),
    ([('options', ('a', b'{}'))], {}),
    ([('image', ('a', PNG))], {'options': '['}),
    ([('image', ('a', PNG))], {'options': '[]'}),
    ([('image', ('a', PNG))], {'options': '{"id": "x"}'}),
    ([('image', ('a', PNG))], {'options': '{"top_k": 501}'}),
    ([('image', ('a', PNG))], {'options': '{"min_score": NaN}'}),
    ([('image', ('a', PNG))], {'options': '{}', 'more': 'x'}),
    ([('image', ('a', PNG))], {'options': 'x' * 200_000}),
  ],
)
def test_forms_of_the_wrong_parts(ask, files, data):
  assert ask('POST', '/api/v1/like', files=files, data=data).status_code in (400, 413)


@pytest.mark.parametrize(
  'kind', ['', 'text/plain', 'application/x-www-form-urlencoded', 'application/jsonp', 'é']
)
def test_only_json_is_read_as_json(ask, kind):
  body = b'{"query": {"hat": "yes"}}'
  found = ask('POST', '/api/v1/search', content=body, headers={'content-type': kind.encode()})
  assert found.status_code == 415
  assert ask('POST', '/api/v1/session', content=body).status_code == 415


def test_a_body_without_an_end_is_cut_off(ask):
  sent = 0

  def endless():
    nonlocal sent
    while sent < 2**30:
      sent += 2**16
      yield bytes(2**16)

  assert ask('POST', '/api/v1/like', content=endless(), headers=JSON).status_code == 413


@FUZZ
@given(
  name=st.sampled_from(
    ['authorization', 'cookie', 'if-none-match', 'content-length', 'origin', 'range', 'accept']
  ),
  value=st.text(st.characters(codec='latin-1', exclude_characters='\r\n\0'), max_size=60),
)
def test_headers(ask, name, value):
  headers = {name: value.encode('latin-1')}
  ask('GET', '/api/v1/info', headers=headers)
  ask('POST', '/api/v1/search', content=b'{}', headers={**JSON, **headers})
