"""The application before a model that a TF Serving serves: the conformance server, as it is."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from pathlib import Path

import pytest

import tfreid.index
from tfreid.search.client import ServingError
from tfreid.search.exported import ExportedModel
from tfreid.search.remote import ServedModel
from tfreid.web import app
from tfreid.web import service as search_service
from tfreid.web.policy import Policy

pytestmark = pytest.mark.slow

KINDS = ('rest', 'grpc')
NAMES = ('people', 'changing', 'unwatched', 'renamed', 'older')
WATCHING = app.Limits(refresh_seconds=0.05, seconds=300)
ALONE = app.Limits(refresh_seconds=0, seconds=300)


@pytest.fixture(scope='module')
def models(serve_models):
  return serve_models(*NAMES)


@pytest.fixture
def behind(serve, models):
  """behind(name, kind='rest', rules=None, limits=..., **options of ServedModel): a Client."""

  def start(name, kind='rest', rules=None, limits=None, **options):
    source = ServedModel(getattr(models.server, kind), name, timeout=120, **options)
    return serve(rules, source=source, limits=limits or ALONE)

  return start


def plain(answer):
  """What two sources must agree on."""
  assert answer.status_code == 200, answer.text
  found = answer.json()
  return {
    **found,
    'hits': [
      {**hit, 'score': pytest.approx(hit['score'], abs=1e-5), 'reasons': list(hit['reasons'])}
      for hit in found['hits']
    ],
    'suggestions': [suggestion['attribute'] for suggestion in found['suggestions']],
    'source': None,
    'seconds': None,
  }


def said(response, status, text=''):
  assert response.status_code == status, response.text
  assert set(response.json()) == {'error', 'code'}
  assert text in response.json()['error']
  return response.json()


def until(condition):
  # On a machine that is busy with other things, as tests may find it, everything takes longer.
  deadline = time.monotonic() + 300
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.02)
  assert condition()


@pytest.mark.parametrize('kind', KINDS)
def test_a_served_model_answers_as_the_same_model_in_a_folder(serve, behind, people, kind):
  local = serve(source=ExportedModel(people.model))
  gallery = str(Path(people.model, '1', 'assets.extra', 'gallery.jsonl'))
  client = behind('people', kind, gallery_file=gallery)
  for asked in (
    {'query': {'hat': 'yes', 'upper_color': '!blue'}, 'suggest': True, 'top_k': 7},
    {'words': 'woman, red top', 'query': {'hat': 'no'}},
    {'query': {'gender': 'male'}, 'explain': False, 'top_k': 24},
  ):
    found = client.search(**asked)
    assert plain(found) == plain(local.search(**asked))
    assert found.json()['source'] == 'people, version 1'
  assert plain(client.like(id='003.png')) == plain(local.like(id='003.png'))
  assert plain(client.upload(people.png, top_k=4)) == plain(local.upload(people.png, top_k=4))
  assert client.get('/api/v1/schema').json() == local.get('/api/v1/schema').json()
  facts, others = (one.get('/api/v1/info').json() for one in (client, local))
  for key in ('crops', 'can', 'policy', 'model', 'fields'):
    assert facts[key] == others[key]
  for asked in ({'words': 'pirate'}, {'query': {'hatt': 'yes'}}, {'query': {}}):
    assert said(client.search(**asked), 400) == said(local.search(**asked), 400)
  said(client.search(query={'hat': 'yes'}, where='camera == 1'), 400, 'only an index can filter')
  picture = client.search(query={'hat': 'yes'}).json()['hits'][0]['thumbnail']
  assert client.get(picture).headers['content-type'] == 'image/jpeg'


def test_without_the_gallery_file_no_picture_is_promised(behind):
  client = behind('people')
  hits = client.search(query={'hat': 'yes'}).json()['hits']
  assert len(hits) == 20
  assert [hit['thumbnail'] for hit in hits] == [None] * 20
  assert client.like(id=hits[0]['id']).status_code == 200
  said(client.like(id='/etc/passwd'), 404, 'There is no crop')


@pytest.mark.parametrize('kind', KINDS)
def test_page_and_log_are_told_name_and_version_and_no_address(behind, models, people, kind):
  client = behind('people', kind)
  address = getattr(models.server, kind)
  answers = [
    client.get('/api/v1/info'),
    client.get('/api/v1/schema'),
    client.search(query={'hat': 'yes'}, suggest=True),
    client.search(words='pirate'),
    client.like(id='nobody'),
    client.upload(people.png),
  ]
  assert answers[0].json()['name'] == 'people, version 1'
  for text in [*(answer.text for answer in answers), client.path.read_text()]:
    assert address not in text
    assert address.rpartition(':')[2] not in text
  line = client.log()[0]
  assert (line['source'], line['generation']) == ('people, version 1', None)
  assert line['model'] == answers[0].json()['model']['fingerprint']
  service = client.app.app.state.services.search
  assert service.clean(f'{address}, people, version 1: people at {address} does not.') == (
    'people, version 1: people at its server does not.'
  )


def test_another_version_with_another_schema_is_taken_over_while_it_is_asked(
  behind, models, people, other
):
  clients = [behind('changing', kind, limits=WATCHING) for kind in KINDS]
  stop, failed = threading.Event(), []

  def ask(client):
    while not stop.is_set():
      # Both schemas have it.
      found = client.search(query={'hat': 'yes'}, suggest=True, top_k=3)
      if found.status_code != 200:
        failed.append(found.text)
        return
      names = {suggestion['attribute'] for suggestion in found.json()['suggestions']}
      version = found.json()['source'][-1]
      if names != {'1': {'gender', 'upper_color'}, '2': {'sex', 'bag'}}.get(version, names):
        failed.append(found.text)
      time.sleep(0.02)  # for the server, which has the same processors

  asking = [threading.Thread(target=ask, args=(client,)) for client in clients for _ in range(2)]
  for thread in asking:
    thread.start()
  try:
    models.publish('changing', other.model, 2)
    for client in clients:
      until(lambda c=client: c.get('/api/v1/info').json()['name'] == 'changing, version 2')
    time.sleep(0.2)
  finally:
    stop.set()
    for thread in asking:
      thread.join()
  assert not failed
  with ExportedModel(other.model) as local:
    expected = [hit.id for hit in local.search({'sex': 'female', 'bag': 'yes'}).hits]
  for client in clients:
    names = [a['name'] for a in client.get('/api/v1/schema').json()['attributes']]
    assert names == ['sex', 'hat', 'bag']
    found = client.search(words='woman, bag').json()
    assert found['query'] == {'sex': 'female', 'bag': 'yes'}
    assert [hit['id'] for hit in found['hits']] == expected
    assert all(list(hit['reasons']) == ['sex', 'bag'] for hit in found['hits'])
    said(client.search(query={'gender': 'female'}), 400, "Unknown attribute: 'gender'")
    sources = [line['source'] for line in client.log()]
    assert sources == sorted(sources)
    assert set(sources) == {'changing, version 1', 'changing, version 2'}
    assert len({line['model'] for line in client.log()}) == 2
  # Back again: the one before is no newer version, and is what is served.
  models.withdraw('changing', 2, 1)
  for client in clients:
    until(lambda c=client: c.get('/api/v1/info').json()['name'] == 'changing, version 1')
    assert client.search(query={'gender': 'female'}).status_code == 200


@pytest.mark.parametrize('kind', KINDS)
def test_a_version_that_is_gone_is_followed_without_looking_from_time_to_time(
  behind, models, people, other, kind
):
  name = 'unwatched'
  version = max(int(p.name) for p in (models.folder / name).iterdir())
  client = behind(name, kind)
  fixed = behind(name, kind, version=version)
  models.publish(name, other.model if kind == 'rest' else people.model, version + 1)
  assert client.get('/api/v1/info').json()['name'] == f'{name}, version {version}'
  # Several at once: one of them looks, and all are answered.
  found = []
  threads = [
    threading.Thread(target=lambda: found.append(client.search(query={'hat': 'yes'})))
    for _ in range(6)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert [one.status_code for one in found] == [200] * 6
  assert {one.json()['source'] for one in found} == {f'{name}, version {version + 1}'}
  # A version that was asked for by its number is never left.
  said(fixed.search(query={'hat': 'yes'}), 502, 'cannot be reached now')


def test_a_policy_that_does_not_fit_a_new_version_opens_nothing(
  behind, models, people, other, caplog
):
  rules = {'disabled_attributes': ['gender', 'upper_color']}
  client = behind('renamed', rules=rules, limits=WATCHING)
  assert [a['name'] for a in client.get('/api/v1/schema').json()['attributes']] == ['hat']
  with caplog.at_level(logging.ERROR):
    models.publish('renamed', other.model, 2)
    until(lambda: client.get('/api/v1/info').json()['name'] == 'renamed, version 2')
  (complaint,) = [r.getMessage() for r in caplog.records if r.name == 'tfreid.web.service']
  assert "The policy does not fit renamed, version 2: The policy disables 'gender'" in complaint
  # What gender is called there, and what is new there, is as much out of reach as gender was.
  assert [a['name'] for a in client.get('/api/v1/schema').json()['attributes']] == ['hat']
  for asked in (
    {'query': {'sex': 'female'}},
    {'query': {'gender': 'female'}},
    {'query': {'hat': 'yes', 'bag': 'yes'}},
    {'words': 'woman'},
    {'words': 'hat, bag=yes'},
  ):
    assert 'sex' not in json.dumps(said(client.search(**asked), 403)).replace('by sex', '')
  answers = [
    client.search(query={'hat': 'yes'}, suggest=True),
    client.search(words='womann'),
    client.search(query={'hat': 'maybe'}),
    client.upload(people.png),
    client.get('/api/v1/info'),
  ]
  for answer in answers:
    text = answer.text.replace('womann', '')
    assert not any(word in text for word in ('sex', 'bag', 'gender', 'female', 'woman'))
  assert answers[0].json()['suggestions'] == []
  assert len(answers[0].json()['hits']) == 20
  # And the rules hold as they are where they fit again.
  models.publish('renamed', people.model, 3)
  until(lambda: client.get('/api/v1/info').json()['name'] == 'renamed, version 3')
  said(client.search(query={'gender': 'female'}), 403)
  assert client.search(query={'hat': 'yes'}).status_code == 200


def test_an_older_export_is_served_without_what_it_lacks(behind, models, people, tmp_path):
  import tensorflow as tf

  loaded = tf.saved_model.load(f'{people.model}/1')
  kept = {name: loaded.signatures[name] for name in ('serving_default', 'search_images')}
  tf.saved_model.save(loaded, str(tmp_path / 'older' / '1'), signatures=kept)
  models.publish('older', tmp_path / 'older', 2)
  schema = f'{people.model}/1/assets.extra/schema.json'
  for kind in KINDS:
    client = behind('older', kind, schema=schema)
    assert client.get('/api/v1/info').json()['can'] == {
      'explain': False,
      'suggest': False,
      'like': False,
      'upload': True,
      'filter': False,
    }
    answer = client.search(query={'hat': 'yes'}, suggest=True).json()
    assert len(answer['hits']) == 20
    assert not any(hit['reasons'] for hit in answer['hits'])
    assert answer['suggestions'] == []
    assert client.upload(people.png).status_code == 200
    said(client.like(id='003.png'), 400, 'exported by an earlier version')
    # Without the schema it cannot be asked at all, and says so at the start.
    with pytest.raises(ValueError, match='does not say its attributes'):
      behind('older', kind)


def test_a_server_that_is_gone_is_a_502_until_it_is_back(serve, serve_models, people):
  models = serve_models('people')
  addresses = [models.server.rest, models.server.grpc]
  clients = [
    serve(source=ServedModel(address, 'people', timeout=120), limits=WATCHING)
    for address in addresses
  ]
  unwatched = serve(source=ServedModel(addresses[0], 'people', timeout=120), limits=ALONE)
  models.stop()
  try:
    for client in (*clients, unwatched):
      for ask in (
        lambda c=client: c.search(query={'hat': 'yes'}),
        lambda c=client: c.like(id='003.png'),
        lambda c=client: c.upload(people.png),
      ):
        told = said(ask(), 502, 'cannot be reached now')
        assert told['code'] == 'source'
        assert '127.0.0.1' not in told['error'] and '/' not in told['error']
      assert [line['outcome'] for line in client.log()] == ['failed'] * 3
      # What needs no server goes on: the page can be opened and says what it could be asked.
      for path in ('/', '/healthz', '/api/v1/info', '/api/v1/schema'):
        assert client.get(path).status_code == 200
    with pytest.raises(ServingError, match='Nobody answers'):
      serve(source=ServedModel(addresses[0], 'people', timeout=120))
  finally:
    models.start()
  for client in (*clients, unwatched):
    until(lambda c=client: c.search(query={'hat': 'yes'}).status_code == 200)


class Failing:
  """A source with one function that fails."""

  def __init__(self, source, function, code):
    self.source, self.function, self.code = source, function, code

  def __getattr__(self, name):
    if name != self.function:
      return getattr(self.source, name)

    def fail(*_, **__):
      raise ServingError('It is told why.', self.code)

    return fail


class Unable:
  """A source that says it is not able to do some things, and refuses to be asked for them."""

  def __init__(self, source, *unable):
    self.source, self.unable = source, unable

  def __getattr__(self, name):
    assert name not in self.unable, f'It was asked for {name}.'
    return getattr(self.source, name)

  def search(self, query, *, explain=False, **options):
    assert not (explain and 'explain' in self.unable)
    return self.source.search(query, explain=explain, **options)

  def capabilities(self):
    return dataclasses.replace(self.source.capabilities(), **dict.fromkeys(self.unable, False))


def test_what_a_source_says_it_cannot_do_is_neither_asked_for_nor_offered(people):
  with ExportedModel(people.model) as model:
    said = {'explain': True, 'suggest': True, 'like': True, 'upload': True, 'filter': False}
    assert search_service.learn_capabilities(model, Policy()).can == said
    for unable in (['suggest'], ['explain'], ['like', 'upload'], ['explain', 'suggest']):
      found = search_service.learn_capabilities(Unable(model, *unable), Policy())
      assert found.can == {**said, **dict.fromkeys(unable, False)}
  with tfreid.index.open(people.index) as index:
    assert search_service.learn_capabilities(index, Policy()).can == {**said, 'filter': True}


@pytest.mark.parametrize('function', ['search', 'suggest', 'like'])
def test_a_source_that_does_not_do_what_it_says_does_not_begin_to_answer(people, function):
  with ExportedModel(people.model) as model:
    for code in ('FAILED_PRECONDITION', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'INTERNAL'):
      with pytest.raises(ServingError, match='It is told why'):
        search_service.learn_capabilities(Failing(model, function, code), Policy())


def test_a_source_with_the_model_of_the_one_before_is_only_searched(people):
  with ExportedModel(people.model) as model:
    before = search_service.learn_capabilities(model, Policy())
    again = Failing(Failing(model, 'suggest', 'INTERNAL'), 'like', 'INTERNAL')
    assert search_service.learn_capabilities(again, Policy(), before).can == before.can


def test_a_server_that_is_too_slow_is_a_504(behind, monkeypatch):
  client = behind('people')

  def slow(_):
    raise ServingError('No answer of people at http://127.0.0.1:1 within 1 s.', 'DEADLINE_EXCEEDED')

  monkeypatch.setattr(client.app.app.state.services.search, 'search', slow)
  said(client.search(query={'hat': 'yes'}), 504, 'did not finish in time')
  assert client.log()[-1]['outcome'] == 'timeout'
