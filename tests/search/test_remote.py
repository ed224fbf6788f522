"""The client of TF Serving against the conformance server, and against servers that misbehave."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tensorflow.core.protobuf import saved_model_pb2

import tfreid.index
import tfreid.search
from tfreid.search import client
from tfreid.search.client import ServingError
from tfreid.search.exported import ExportedModel
from tfreid.search.remote import ServedModel

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'serving'))
from served import Served  # noqa: E402

KINDS = ('grpc', 'rest')


@pytest.fixture(scope='module')
def served(people):
  server = Served({'people': people.model}, '--label=people=stable=1')
  yield server
  server.stop()


@pytest.fixture(scope='module', params=KINDS)
def remote(request, served):
  with ServedModel(getattr(served, request.param), 'people', timeout=60) as model:
    yield model


@pytest.fixture(scope='module')
def local(people):
  """The same crops as a model and as an index, here."""
  with ExportedModel(people.model) as model, tfreid.index.open(people.index) as index:
    yield model, index


def assert_same_answers(found, expected):
  assert found.query == expected.query
  assert found.text == expected.text
  assert found.gallery_size == expected.gallery_size
  assert [hit.id for hit in found.hits] == [hit.id for hit in expected.hits]
  for hit, other in zip(found.hits, expected.hits):
    assert hit.score == pytest.approx(other.score, rel=1e-5, abs=1e-6)
    assert list(hit.reasons) == list(other.reasons)
    assert list(hit.reasons.values()) == pytest.approx(list(other.reasons.values()), abs=1e-5)


@pytest.mark.parametrize(
  ('query', 'options'),
  [
    ('woman, red top', {}),
    ('no hat', {'top_k': 3}),
    ({'upper_color': '!green', 'gender': 'female'}, {'explain': True}),
    ('woman with a blue top, hat', {'explain': True, 'top_k': 24}),
    ({'hat': 'yes'}, {'explain': True, 'text': 'who wore the hat?'}),
  ],
)
def test_model_index_and_server_give_the_same_answer(remote, local, query, options):
  found = remote.search(query, **options)
  assert found.hits
  assert any(hit.reasons for hit in found.hits) == options.get('explain', False)
  for source in local:
    assert_same_answers(found, source.search(query, **options))


def test_model_index_and_server_suggest_the_same(remote, local):
  for query in ('woman', {'upper_color': 'red'}):
    found = remote.suggest(query)
    assert len(found) == 2 and found[0].gain > 0
    for source in local:
      expected = source.suggest(query)
      assert [name for name, _ in found] == [name for name, _ in expected]
      assert [gain for _, gain in found] == pytest.approx([gain for _, gain in expected], abs=1e-4)
  assert remote.suggest({'gender': 'male', 'hat': 'no', 'upper_color': 'red'}) == []


def test_reasons_and_suggestions_come_with_one_request(remote, local, monkeypatch):
  predict, asked = type(remote._opened.client).predict, []
  monkeypatch.setattr(
    type(remote._opened.client),
    'predict',
    lambda *given: asked.append(given[1]) or predict(*given),
  )
  answer = remote.search({'upper_color': 'red'}, explain=True, suggest=True)
  assert asked == ['explain']
  expected = local[0].search({'upper_color': 'red'}, explain=True, suggest=True)
  assert_same_answers(answer, expected)
  assert [name for name, _ in answer.suggestions] == [name for name, _ in expected.suggestions]
  assert len(answer.suggestions) == 2


def test_model_index_and_server_embed_the_same(remote, local, people):
  crops = [hit.path for hit in local[0].search({'hat': 'yes'}, top_k=3).hits]
  for source in local:
    np.testing.assert_allclose(remote.embed(crops), source.embed(crops), atol=1e-5)
    np.testing.assert_allclose(
      remote.embed_query('red top, no hat'), source.embed_query('red top, no hat'), atol=1e-6
    )


def test_model_index_and_server_find_the_same_crops_like_one(remote, local, people, crops):
  picture = crops / '003.png'
  for crop in (people.ids[5], str(picture), picture.read_bytes()):
    found = remote.like(crop, top_k=6)
    assert len(found.hits) == 6
    for source in local:
      assert_same_answers(found, source.like(crop, top_k=6))
  assert people.ids[5] not in [hit.id for hit in remote.like(people.ids[5], top_k=24).hits]
  with pytest.raises(ValueError, match="'nobody' is neither an id of the gallery nor an image"):
    remote.like('nobody')
  with pytest.raises(ValueError, match='image'):
    remote.like(b'GIF89a')


def test_a_crop_is_known_by_its_id_and_a_path_is_none(remote, people, crops):
  known = remote.crop(people.ids[3])
  assert (known.id, known.score, known.path) == (people.ids[3], 0.0, '')
  assert remote.crop(str(crops / '003.png')) is None
  assert remote.crop('') is None


def test_info_says_what_was_asked(remote, people):
  facts = remote.info()
  model_json = Path(people.model, '1', 'assets.extra', 'model.json').read_text()
  assert facts['model']['fingerprint'] == json.loads(model_json)['fingerprint']
  assert (facts['crops'], facts['embedding_size'], facts['version']) == (24, 8, 1)
  assert facts['versions'] == {'1': 'AVAILABLE'}
  assert facts['name'] == 'people, version 1'
  assert 'explain' in facts['signatures'] and '__saved_model_init_op' not in facts['signatures']
  assert remote.schema == people.schema
  json.dumps(facts)
  answer = remote.search('woman')
  assert answer.source == f'{remote.address}, people, version 1'


def test_with_the_gallery_file_hits_have_paths_and_annotations(served, local, people):
  extra = Path(people.model, '1', 'assets.extra')
  model = ServedModel(served.rest, 'people', gallery_file=str(extra / 'gallery.jsonl'))
  for hit, expected in zip(model.search('woman').hits, local[0].search('woman').hits):
    assert (hit.path, hit.attributes) == (expected.path, expected.attributes)
    assert hit.path
  assert model.crop(people.ids[3]) == local[0].crop(people.ids[3])
  with pytest.raises(FileNotFoundError, match='no file'):
    ServedModel(served.rest, 'people', gallery_file='nowhere.jsonl')


def test_versions_and_labels_are_asked_for_by_name(served):
  for address in (served.grpc, served.rest):
    with tfreid.search.load(address, model='people', label='stable') as model:
      assert model.version == 1 and model.search('woman').hits
    with ServedModel(address, 'people', version=1, timeout=60) as model:
      assert model.search('woman').hits
    with pytest.raises(ServingError, match=r'no available version 7. It has: 1 \(AVAILABLE\)'):
      ServedModel(address, 'people', version=7)
    with pytest.raises(ServingError, match="no available version with the label 'canary'"):
      ServedModel(address, 'people', label='canary')
    with pytest.raises(ServingError, match="has no model 'nobody'.*models.config"):
      ServedModel(address, 'nobody')
  with pytest.raises(ValueError, match='Say which model'):
    tfreid.search.load(served.grpc)


def test_what_cannot_be_asked_is_a_value_error(remote):
  for query, options, said in [
    ('zebra', {}, "Did not understand 'zebra'"),
    ({'hat': 'blue'}, {}, "Unknown value of 'hat'"),
    ('woman', {'where': 'camera == 1'}, 'only an index can filter'),
    ('woman', {'top_k': 0}, 'at least 1'),
  ]:
    with pytest.raises(ValueError, match=said):
      remote.search(query, **options)
  with pytest.raises(TypeError, match='unexpected keyword'):
    remote.search('woman', colour='red')


def test_rest_needs_no_tensorflow(served):
  code = f"""if True:
    import sys
    from tfreid.search.remote import ServedModel
    with ServedModel({served.rest!r}, 'people', timeout=60) as model:
      assert model.search('woman, red top', explain=True).hits
      assert model.suggest('woman')
    assert 'tensorflow' not in sys.modules and 'grpc' not in sys.modules
  """
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_many_threads_share_one_client(remote):
  expected = [hit.id for hit in remote.search('woman').hits]
  found = []

  def ask():
    found.extend([hit.id for hit in remote.search('woman').hits] for _ in range(5))

  threads = [threading.Thread(target=ask) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [expected] * 40


@pytest.fixture(scope='module')
def changing(people, tmp_path_factory):
  """A server of the versions in a folder of its own: (server, folder)."""
  folder = tmp_path_factory.mktemp('changing') / 'people'
  shutil.copytree(Path(people.model, '1'), folder / '1')
  server = Served({'people': folder})
  yield server, folder
  server.stop()


def without(version, names):
  """Removes signatures of a version, with which it is one that was exported earlier."""
  path = version / 'saved_model.pb'
  saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  for name in names:
    del saved.meta_graphs[0].signature_def[name]
  path.write_bytes(saved.SerializeToString())
  (version / 'assets.extra' / 'tf_serving_warmup_requests').unlink()


def test_a_client_follows_a_new_version_and_reads_its_schema(changing, people, tmp_path):
  server, folder = changing
  listed = tmp_path / 'gallery.jsonl'
  listed.write_text('{"id": "000.png", "path": "old/000.png"}\n')
  clients = [
    ServedModel(getattr(server, kind), 'people', timeout=60, gallery_file=str(listed))
    for kind in KINDS
  ]
  held = [model.pinned() for model in clients]
  held.append(ServedModel(server.rest, 'people', version=1, timeout=60))
  assert clients[0].crop('000.png').path == 'old/000.png'
  listed.write_text('{"id": "000.png", "path": "new/000.png"}\n')
  assert not clients[0].refresh() and clients[0].crop('000.png').path == 'old/000.png'
  expected = [hit.id for hit in clients[0].search('woman').hits]
  # A version that is older: it does not describe itself, explain, or know its crops by id.
  shutil.copytree(folder / '1', folder / '.2')
  without(folder / '.2', ['describe', 'explain', 'search_ids'])
  (folder / '.2').rename(folder / '2')
  server.wait_for('people', {1: 'END', 2: 'AVAILABLE'})
  for model in clients:
    # The description is read by the model itself now.
    answer = model.search('woman, red top')
    assert model.version == 2 and answer.source.endswith('version 2')
    assert answer.query == {'gender': 'female', 'upper_color': 'red'}
    assert [hit.id for hit in model.search('woman').hits] == expected
    assert model.search('hat=no, upper_color!=red').query == {'hat': 'no', 'upper_color': '!red'}
    with pytest.raises(ValueError, match="Did not understand 'zebra'"):
      model.search('woman, zebra')
    with pytest.raises(ValueError, match='contradicts itself about .gender'):
      model.search('woman, gender=male')
    for ask in (lambda m=model: m.schema, lambda m=model: m.search({'gender': 'female'})):
      with pytest.raises(ValueError, match='does not say its attributes. Give .*schema.json'):
        ask()
    with pytest.raises(ValueError, match='neither an id'):
      model.like(people.ids[0])
    # What is known of the crops is read again with the version.
    assert model.crop('000.png').path == 'new/000.png'
  # Who asked for a version by its number, or holds one, is not given another.
  for model in held:
    with pytest.raises(ServingError, match='no available version 1'):
      model.search('woman')
    assert model.version == 1
  schema = str(Path(people.model, '1', 'assets.extra', 'schema.json'))
  with ServedModel(server.grpc, 'people', schema=schema, timeout=60) as model:
    assert [hit.id for hit in model.search({'gender': 'female'}).hits] == expected
    with pytest.raises(ServingError, match="no signature 'explain' .*it has: .*serving_default"):
      model.search('woman', explain=True)
  assert not clients[0].refresh()
  # Rolled back: the folder of the new version is moved away, and the old one is served again.
  (folder / '2').rename(folder.parent / '2')
  server.wait_for('people', {1: 'AVAILABLE', 2: 'END'})
  for model in (*clients, *held):
    assert [hit.id for hit in model.search({'gender': 'female'}, explain=True).hits] == expected
    assert model.version == 1
  # The connection is that of the model, which what was held of it does not end.
  for model in held:
    model.close()
  assert all(model.search('woman').hits for model in clients)


# Servers that misbehave.


@contextlib.contextmanager
def listening(handle):
  """Calls handle(connection) for each connection; yields the port."""
  with socket.create_server(('127.0.0.1', 0)) as listener:

    def accept():
      while True:
        try:
          connection, _ = listener.accept()
        except OSError:
          return
        threading.Thread(target=handle, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]


@contextlib.contextmanager
def answering(*answers):
  """A web server that gives each answer (status, body) once, and the last one for ever."""
  left, asked = list(answers), []

  class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
      pass

    def do_GET(self):
      asked.append(self.path)
      status, body = left.pop(0) if len(left) > 1 else left[0]
      self.send_response(status)
      self.end_headers()
      self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f'http://127.0.0.1:{server.server_port}', asked
  finally:
    server.shutdown()
    server.server_close()


def refused(scheme):
  with socket.create_server(('127.0.0.1', 0)) as listener:
    port = listener.getsockname()[1]
  return f'{scheme}://127.0.0.1:{port}'


@pytest.mark.parametrize('scheme', ['grpc', 'http'])
def test_nobody_there_is_said_with_what_to_look_at(scheme):
  for address in (refused(scheme), f'{scheme}://nowhere.invalid:1'):
    with pytest.raises(ServingError, match='Nobody answers at .*8500 for gRPC and 8501') as error:
      ServedModel(address, 'people', timeout=3)
    assert error.value.code == 'UNAVAILABLE'


@pytest.mark.parametrize('scheme', ['grpc', 'http'])
def test_a_server_that_says_nothing_is_left_after_the_time_out(scheme):
  kept = []
  with listening(kept.append) as port:
    started = time.monotonic()
    with pytest.raises(ServingError, match=r'No answer of .* within 0.5 s|Nobody answers'):
      ServedModel(f'{scheme}://127.0.0.1:{port}', 'people', timeout=0.5)
    assert time.monotonic() - started < 3


def test_a_server_that_drips_is_left_after_the_time_out():
  def drip(connection):
    with contextlib.suppress(OSError):
      connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n')
      while True:
        connection.sendall(b' ')
        time.sleep(0.1)

  with listening(drip) as port:
    started = time.monotonic()
    with pytest.raises(ServingError, match='No answer of .* within 1 s'):
      ServedModel(f'http://127.0.0.1:{port}', 'people', timeout=1)
    assert time.monotonic() - started < 3


def test_an_endless_answer_is_cut_off(monkeypatch):
  monkeypatch.setattr(client, 'MAX_RESPONSE_BYTES', 10000)
  with answering((200, b' ' * 20000)) as (address, _):
    with pytest.raises(ServingError, match='more than 10000 bytes'):
      ServedModel(address, 'people')


@pytest.mark.parametrize(
  ('status', 'body', 'said'),
  [
    (200, b'<html>', 'is this TF Serving'),
    (200, b'[]', 'is this TF Serving'),
    (200, b'{}', 'metadata cannot be read'),
    (200, b'\xff\xfe', 'is this TF Serving'),
    (200, b'{"metadata": {"signature_def": 3}}', 'metadata cannot be read'),
    (404, b'<html>not here</html>', "has no model 'people'"),
    (401, b'', 'wants to know who asks'),
    (429, b'{"error": "too many"}', 'no room: too many'),
    (500, b'{"error": "oh"}', 'answers INTERNAL: oh'),
    (418, b'', 'answers UNKNOWN: HTTP 418'),
    (302, b'', 'answers UNKNOWN: HTTP 302'),
  ],
)
def test_odd_answers_are_errors_that_say_so(status, body, said):
  with answering((status, body)) as (address, _):
    with pytest.raises(ServingError, match=said):
      ServedModel(address, 'people')


def test_only_an_unavailable_server_is_asked_again():
  with answering((503, b'{"error": "queue full"}')) as (address, asked):
    with pytest.raises(ServingError, match='cannot answer now: queue full'):
      ServedModel(address, 'people')
    assert len(asked) == 3
  with answering((503, b''), (404, b'{}')) as (address, asked):
    with pytest.raises(ServingError):
      ServedModel(address, 'people')
    assert asked[:2] == ['/v1/models/people/metadata'] * 2
  with answering((500, b'')) as (address, asked):
    with pytest.raises(ServingError):
      ServedModel(address, 'people')
    assert len(asked) == 1


def test_the_wrong_port_is_recognised(served):
  with pytest.raises(ServingError, match='is this its port for gRPC'):
    ServedModel(served.grpc.replace('grpc', 'http'), 'people')
  with pytest.raises(ServingError):
    ServedModel(served.rest.replace('http', 'grpc'), 'people', timeout=2)


@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
  """PEM files of a certificate for 127.0.0.1 that signs itself, and of its key."""
  x509 = pytest.importorskip('cryptography.x509')
  from cryptography.hazmat.primitives import hashes, serialization
  from cryptography.hazmat.primitives.asymmetric import ec

  key = ec.generate_private_key(ec.SECP256R1())
  name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'localhost')])
  now = datetime.datetime.now(datetime.timezone.utc)
  signed = (
    x509.CertificateBuilder()
    .subject_name(name)
    .issuer_name(name)
    .public_key(key.public_key())
    .serial_number(x509.random_serial_number())
    .not_valid_before(now - datetime.timedelta(days=1))
    .not_valid_after(now + datetime.timedelta(days=1))
    .add_extension(
      x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address('127.0.0.1'))]), False
    )
    .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    .sign(key, hashes.SHA256())
  )
  folder = tmp_path_factory.mktemp('certificate')
  (folder / 'cert.pem').write_bytes(signed.public_bytes(serialization.Encoding.PEM))
  (folder / 'key.pem').write_bytes(
    key.private_bytes(
      serialization.Encoding.PEM,
      serialization.PrivateFormat.PKCS8,
      serialization.NoEncryption(),
    )
  )
  return folder / 'cert.pem', folder / 'key.pem'


@contextlib.contextmanager
def encrypting(address, certificate, protocols):
  """A proxy that speaks TLS in front of an address and passes bytes on; yields its port."""
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(*certificate)
  context.set_alpn_protocols(protocols)
  port = int(address.rpartition(':')[2])

  def copy(source, target):
    with contextlib.suppress(OSError):
      while data := source.recv(65536):
        target.sendall(data)
      target.shutdown(socket.SHUT_WR)

  def handle(connection):
    try:
      inside = context.wrap_socket(connection, server_side=True)
    except (OSError, ssl.SSLError):
      connection.close()
      return
    behind = socket.create_connection(('127.0.0.1', port))
    threading.Thread(target=copy, args=(inside, behind), daemon=True).start()
    copy(behind, inside)
    inside.close()
    behind.close()

  with listening(handle) as encrypted:
    yield encrypted


@pytest.mark.parametrize(
  ('scheme', 'protocols'), [('https', ['http/1.1']), ('grpcs', ['h2'])], ids=['https', 'grpcs']
)
def test_encrypted_connections_check_the_certificate(served, certificate, scheme, protocols):
  behind = served.rest if scheme == 'https' else served.grpc
  with encrypting(behind, certificate, protocols) as port:
    address = f'{scheme}://127.0.0.1:{port}'
    with ServedModel(address, 'people', certificate=str(certificate[0])) as model:
      assert model.search('woman').hits
    with pytest.raises(ServingError, match='No encrypted connection.*who signed') as error:
      ServedModel(address, 'people', timeout=3)
    assert error.value.code == 'TLS'
  plain = behind.replace('http:', 'https:').replace('grpc:', 'grpcs:')
  with pytest.raises(ServingError, match='No encrypted connection.*Is it encrypted at all'):
    ServedModel(plain, 'people', timeout=3)


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    ({'address': 'localhost:8500'}, 'no address of a server'),
    ({'address': 'ftp://localhost'}, 'no address of a server'),
    ({'address': 'grpc://'}, 'no address of a server'),
    ({'address': 'http://host:99999'}, 'no address of a server'),
    ({'address': 'http://user@host'}, 'no address of a server'),
    ({'address': 'http://host/?x=1'}, 'no address of a server'),
    ({'address': 'grpc://host/path'}, 'gRPC has no path'),
    ({'model': ''}, 'no name of a model'),
    ({'model': '../x'}, 'no name of a model'),
    ({'model': 'a:predict'}, 'no name of a model'),
    ({'version': -1}, 'whole number, not -1'),
    ({'version': '1'}, "whole number, not '1'"),
    ({'version': 1, 'label': 'stable'}, 'not both'),
    ({'label': 'a/b'}, 'no label'),
    ({'timeout': 0}, 'positive number of seconds'),
    ({'timeout': float('nan')}, 'positive number of seconds'),
    ({'certificate': '/nowhere.pem'}, 'no file'),
    ({'certificate': __file__}, 'not encrypted'),
    ({'address': 'https://host', 'certificate': __file__}, 'holds no certificate'),
  ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_sent(arguments, said):
  with pytest.raises(ValueError, match=said):
    client.connect(**{'address': 'http://127.0.0.1:1', 'model': 'people', **arguments})


def test_addresses_have_the_ports_of_tf_serving_and_of_tls():
  addresses = ['grpc://h', 'http://h', 'grpcs://h', 'https://h/prefix/', 'http://[::1]:8501']
  assert [str(client.parse_address(address)) for address in addresses] == [
    'grpc://h:8500',
    'http://h:8501',
    'grpcs://h:443',
    'https://h:443/prefix',
    'http://[::1]:8501',
  ]


def test_only_types_that_signatures_have_can_be_sent(served):
  with client.connect(served.grpc, 'people') as there:
    with pytest.raises(ValueError, match='float64 cannot be sent'):
      there.predict('serving_default', {'attributes': np.zeros([1, 5])})


@pytest.mark.slow
def test_the_search_tool_asks_a_server(served, people):
  def run(*arguments):
    return subprocess.run(
      [sys.executable, ROOT / 'tools' / 'search.py', *arguments],
      capture_output=True,
      text=True,
      check=False,
      env={'PATH': '', 'COLUMNS': '120', 'CUDA_VISIBLE_DEVICES': '-1'},
    )

  asked = ('--json', '--top_k=4', 'woman, red top')
  expected = json.loads(run(f'--model={people.model}', *asked).stdout)
  for kind in KINDS:
    done = run(f'--server={getattr(served, kind)}', '--model_version=stable', *asked)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for key in ('query', 'gallery_size'):
      assert found[key] == expected[key]
    assert [hit['id'] for hit in found['hits']] == [hit['id'] for hit in expected['hits']]
    assert [row['attribute'] for row in found['ask_next']] == [
      row['attribute'] for row in expected['ask_next']
    ]
  for arguments, said in [
    ((f'--server={served.rest}', '--model_name=nobody', 'woman'), "has no model 'nobody'"),
    ((f'--server={refused("http")}', 'woman'), 'Nobody answers'),
    ((f'--server={served.rest}', '--model=x', 'woman'), 'not both'),
    ((f'--server={served.rest}', '--min_score=1', 'woman'), 'need --index'),
    ((f'--model={people.model}', '--model_version=1', 'woman'), '--model_version needs --server'),
    (('--index=x', '--gallery=x', 'woman'), '--gallery needs --server'),
  ]:
    done = run(*arguments)
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
