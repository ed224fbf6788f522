"""The application with a real index and a real exported model behind it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import json
import shutil
import threading
import time

import pytest
from PIL import Image

import tfreid.index
from tfreid.web import access, app

QUERY = {'hat': 'yes', 'upper_color': '!blue'}


def error(response, status, said=''):
  """The message of an error, which is JSON of the agreed form."""
  assert response.status_code == status, response.text
  assert set(response.json()) == {'error', 'code'}
  assert said in response.json()['error']
  return response.json()['error']


def test_an_answer_is_that_of_the_index(serve, people, loaded):
  client = serve()
  answer = client.search(query=QUERY, top_k=5).json()
  with tfreid.index.open(people.index, model=loaded) as index:
    direct = index.search(QUERY, top_k=5, explain=True)
  assert [hit['id'] for hit in answer['hits']] == [hit.id for hit in direct.hits]
  for found, hit in zip(answer['hits'], direct.hits):
    assert found['score'] == pytest.approx(hit.score)
    assert found['reasons'] == pytest.approx(dict(hit.reasons))
    assert found['metadata'] == {'camera': hit.metadata['camera']}
  assert answer['query'] == QUERY
  assert (answer['gallery_size'], answer['top_k']) == (24, 5)


def test_words_and_settings_are_one_description(serve):
  client = serve()
  answer = client.search(words='red top, no hat', query={'gender': 'female'}).json()
  assert answer['query'] == {'gender': 'female', 'upper_color': 'red', 'hat': 'no'}
  assert client.search(words='no hat', query={'hat': 'no'}).status_code == 200
  error(client.search(words='no hat', query={'hat': 'yes'}), 400, "'hat' is asked for twice")


def test_an_exported_model_answers_as_well(serve, people):
  from tfreid.search.exported import ExportedModel

  client = serve(source=ExportedModel(people.model))
  answer = client.search(query=QUERY, suggest=True, top_k=4).json()
  assert len(answer['hits']) == 4
  assert list(answer['hits'][0]['reasons']) == list(QUERY)
  assert [suggestion['attribute'] for suggestion in answer['suggestions']] == ['gender']
  assert client.get('/api/v1/info').json()['can']['filter'] is False
  error(client.search(query=QUERY, where='camera == 1'), 400, 'only an index can filter')
  picture = client.get(answer['hits'][0]['thumbnail'])
  assert Image.open(io.BytesIO(picture.content)).size == (4, 8)


def test_filters_narrow_the_answer(serve):
  client = serve()
  hits = client.search(query=QUERY, where='camera == 1', must={'hat': 'yes'}).json()['hits']
  assert hits
  assert all(hit['metadata'] == {'camera': 1} for hit in hits)
  assert all(hit['attributes']['hat'] == 'yes' for hit in hits)
  ids = [hit['id'] for hit in hits]
  left = client.search(query=QUERY, where='camera == 1', must='hat', exclude=ids[:1]).json()['hits']
  assert [hit['id'] for hit in left] == ids[1:]
  least = hits[0]['score']
  assert len(client.search(query=QUERY, must='hat', min_score=least).json()['hits']) >= 1
  error(client.search(query=QUERY, where='kamera == 1'), 400, "Did you mean 'camera'?")
  error(client.search(query=QUERY, where='camera == "1"'), 400, 'compared with')
  error(client.search(query=QUERY, where='camera =='), 400, 'Cannot read the filter')


def test_crops_like_a_crop_and_like_an_upload(serve, people):
  client = serve()
  answer = client.like(id=people.ids[3], top_k=5).json()
  assert len(answer['hits']) == 5
  assert people.ids[3] not in [hit['id'] for hit in answer['hits']]
  uploaded = client.upload((people.crops / '003.png').read_bytes(), top_k=6).json()
  assert uploaded['hits'][0]['id'] == people.ids[3]
  assert [hit['id'] for hit in uploaded['hits'][1:]] == [hit['id'] for hit in answer['hits']]
  filtered = client.upload(people.png, where='camera == 2').json()['hits']
  assert {hit['metadata']['camera'] for hit in filtered} == {2}


def test_an_id_is_never_a_path(serve, people):
  client = serve()
  for path in (people.crops / '000.png', '/etc/passwd', '../crops/000.png', '000.png'):
    said = error(client.like(id=str(path)), 404, 'There is no crop')
    assert 'not an image' not in said
  assert all('/api/v1/crops/' not in hit['id'] for hit in client.search(query=QUERY).json()['hits'])


def test_no_answer_and_no_error_tells_a_path(serve, people):
  client = serve()
  said = [
    client.get('/api/v1/info').text,
    client.get('/api/v1/schema').text,
    client.get('/api/v1/openapi.json').text,
    client.search(query=QUERY, suggest=True).text,
    client.like(id=people.ids[0]).text,
    client.upload(people.png).text,
    client.upload(b'no image').text,
    client.search(query={'hatt': 'yes'}).text,
    client.get('/api/v1/crops/0/thumbnail').text,
  ]
  for text in said:
    assert str(people.folder) not in text
    assert '/tmp' not in text


def test_messages_are_cleaned_of_paths(serve, people):
  service = serve().app.app.state.services.search
  text = f"The model '{people.model}/1' at /srv/models/x/1 and ~/private/data/crop.png and a/b"
  assert service.clean(text) == "The model 'model/1' at 1 and crop.png and a/b"


def test_pictures_are_those_of_answered_crops_only(serve, people):
  client = serve()
  key = client.search(query=QUERY, top_k=1).json()['hits'][0]['thumbnail']
  found = client.get(key)
  assert found.headers['content-type'] == 'image/jpeg'
  assert client.get(key, headers={'if-none-match': found.headers['etag']}).status_code == 304
  other = serve()
  error(other.get(key), 404, 'Search again')
  for name in ('..', '%2e%2e%2fetc', '0' * 32, 'A' * 32, '0' * 33, '%00', 'é', "'"):
    error(client.get(f'/api/v1/crops/{name}/thumbnail'), 404)


def test_a_picture_whose_file_is_gone_is_missing_and_nothing_else(serve, people, tmp_path, loaded):
  from tfreid.index import manifest, writer

  folder = tmp_path / 'crops'
  shutil.copytree(people.crops, folder)
  rows = manifest.read(str(folder), attributes={})
  writer.build(str(tmp_path / 'gone'), rows, loaded)
  shutil.rmtree(folder)
  client = serve(source=tfreid.index.open(str(tmp_path / 'gone'), model=loaded))
  hits = client.search(query=QUERY).json()['hits']
  assert len(hits) == 20
  said = error(client.get(hits[0]['thumbnail']), 404, 'not there')
  assert str(tmp_path) not in said


def test_suggestions_leave_out_what_was_said(serve):
  answer = serve().search(query={'hat': 'yes'}, suggest=True).json()
  assert {s['attribute'] for s in answer['suggestions']} == {'gender', 'upper_color'}
  gains = [s['gain'] for s in answer['suggestions']]
  assert gains == sorted(gains, reverse=True)


def test_the_schema_says_what_may_be_asked(serve):
  found = serve().get('/api/v1/schema').json()
  assert [a['name'] for a in found['attributes']] == ['gender', 'hat', 'upper_color']
  assert found['attributes'][2]['values'] == ['red', 'green', 'blue', 'none']
  assert found['examples'][0] == 'woman, red top, hat'


def test_the_api_is_described(serve):
  found = serve().get('/api/v1/openapi.json').json()
  assert found['openapi'].startswith('3.')
  assert set(found['paths']) == {
    '/api/v1/schema',
    '/api/v1/info',
    '/api/v1/session',
    '/api/v1/search',
    '/api/v1/like',
    '/api/v1/crops/{key}/thumbnail',
  }
  search = found['paths']['/api/v1/search']['post']
  body = search['requestBody']['content']['application/json']['schema']
  assert {'query', 'words', 'where', 'top_k', 'min_score', 'purpose'} <= set(body['properties'])
  assert set(search['responses']) >= {'200', '400', '401', '403', '408', '413', '415', '503', '504'}
  assert 'security' not in search


def test_the_description_says_how_to_show_who_one_is(serve):
  found = serve(access=access.Access(tokens=TOKENS)).get('/api/v1/openapi.json').json()
  assert found['paths']['/api/v1/search']['post']['security'] == [
    {'HTTPBearer': []},
    {'APIKeyCookie': []},
  ]
  schemes = found['components']['securitySchemes']
  assert schemes['HTTPBearer']['scheme'] == 'bearer'
  assert schemes['APIKeyCookie'].items() >= {'in': 'cookie', 'name': 'tfreid_session'}.items()


# The log.


def test_each_query_has_one_line_in_the_log(serve, people):
  client = serve()
  client.search(query=QUERY, where='camera == 1', top_k=7, purpose='a test')
  client.search(words='pirate')
  client.like(id=people.ids[0])
  client.upload(people.png, top_k=3)
  client.post('/api/v1/search', content=b'{', headers={'content-type': 'application/json'})
  asked, unknown, like, upload, broken = client.log()
  assert asked['query'] == QUERY
  assert (asked['where'], asked['top_k'], asked['purpose']) == ('camera == 1', 7, 'a test')
  assert (asked['outcome'], asked['results']) == ('answered', 7)
  assert asked['who']['address'] == 'testclient'
  assert asked['source'] == 'depot'
  assert asked['generation'] == 1
  assert len(asked['model']) > 8
  assert asked['time'].endswith('+00:00')
  assert (unknown['words'], unknown['outcome'], unknown['results']) == ('pirate', 'invalid', 0)
  assert 'pirate' in unknown['error']
  assert (like['action'], like['id'], like['outcome']) == ('like', people.ids[0], 'answered')
  assert upload['upload']['bytes'] == len(people.png)
  assert len(upload['upload']['sha256']) == 64
  assert (upload['results'], upload['top_k']) == (3, 3)
  assert broken['outcome'] == 'invalid'
  assert len({line['request'] for line in client.log()}) == 5


def test_what_cannot_be_logged_is_not_answered(serve, people, tmp_path, monkeypatch):
  client = serve()
  assert client.search(query=QUERY).status_code == 200
  import os

  def full(*_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'write', full)
    for ask in (
      lambda: client.search(query=QUERY),
      lambda: client.like(id=people.ids[0]),
      lambda: client.upload(people.png),
      lambda: client.search(query={'no': 'such'}),
    ):
      said = error(ask(), 503, 'what is not logged is not answered')
      assert str(tmp_path) not in said
  assert client.search(query=QUERY).status_code == 200
  assert len(client.log()) == 2


# The policy.


@pytest.mark.parametrize(
  'asked',
  [
    {'query': {'gender': 'female'}},
    {'query': {'gender': '!female'}},
    {'query': {'hat': 'yes', 'gender': 'male'}},
    {'words': 'woman'},
    {'words': 'hat, gender=male'},
    {'words': 'hat, GENDER!=male'},
    {'query': QUERY, 'where': 'gender == "female"'},
    {'query': QUERY, 'where': 'camera == 1 or not (gender is None)'},
    {'query': QUERY, 'where': 'ｇender == "female"'},
    {'query': QUERY, 'where': '"female" == gender'},
    {'query': QUERY, 'must': {'gender': 'female'}},
    {'query': QUERY, 'must_not': {'gender': '!female'}},
    {'query': QUERY, 'must': 'woman'},
    {'query': QUERY, 'must_not': 'gender=male'},
  ],
)
def test_a_disabled_attribute_cannot_be_asked_for(serve, people, asked):
  client = serve({'disabled_attributes': ['gender']})
  said = error(client.search(**asked), 403, 'policy')
  assert 'female' not in said
  assert client.log()[-1]['outcome'] == 'refused'
  if 'where' in asked or 'must' in asked or 'must_not' in asked:
    narrowing = {name: value for name, value in asked.items() if name != 'query'}
    error(client.like(id=people.ids[0], **narrowing), 403)
    error(client.upload(people.png, **narrowing), 403)


def test_a_disabled_attribute_cannot_be_seen(serve, people):
  client = serve({'disabled_attributes': ['gender']})
  answers = [
    client.get('/api/v1/schema'),
    client.get('/api/v1/info'),
    client.search(query={'hat': 'yes'}, suggest=True, top_k=24),
    client.search(words='hatt'),
    client.search(words='womann'),
    client.search(query={'gendre': 'female'}),
    client.search(query={'hat': 'maybe'}),
    client.search(query={}),
    client.search(query={'hat': 'yes'}, where='gendre == 1'),
    client.like(id=people.ids[0], top_k=24),
    client.upload(people.png, top_k=24),
  ]
  for answer in answers:
    text = answer.text.replace('womann', '').replace('gendre', '')
    assert 'gender' not in text
    assert 'female' not in text
    assert 'woman' not in text
  hits = answers[2].json()['hits']
  assert any('hat' in hit['attributes'] for hit in hits)
  assert {s['attribute'] for s in answers[2].json()['suggestions']} == {'upper_color'}


def test_a_policy_that_does_not_fit_the_source_starts_nothing(serve):
  with pytest.raises(ValueError, match="disables 'age'"):
    serve({'disabled_attributes': ['age']})


def test_a_purpose_is_demanded_of_every_query(serve, people):
  client = serve({'require_purpose': ['lost child']})
  for ask in (
    lambda **more: client.search(query=QUERY, **more),
    lambda **more: client.like(id=people.ids[0], **more),
    lambda **more: client.upload(people.png, **more),
  ):
    error(ask(), 403, 'One of: lost child')
    error(ask(purpose='curiosity'), 403)
    assert ask(purpose='lost child').status_code == 200
  assert [line['outcome'] for line in client.log()] == ['refused', 'refused', 'answered'] * 3


def test_results_are_capped_and_excluding_turns_no_pages(serve, people):
  client = serve({'max_results': 4})
  first = client.search(query=QUERY, top_k=400).json()
  assert (len(first['hits']), first['top_k']) == (4, 4)
  assert client.get('/api/v1/info').json()['policy']['max_results'] == 4
  ids = [hit['id'] for hit in first['hits']]
  assert len(client.search(query=QUERY, exclude=ids[:3]).json()['hits']) == 1
  error(client.search(query=QUERY, exclude=ids), 403, 'policy')
  error(client.search(query=QUERY, exclude=[*ids, 'x' * 20]), 403)
  assert len(client.search(query=QUERY, exclude=['nobody'] * 9).json()['hits']) == 3
  assert len(client.like(id=people.ids[0], top_k=24).json()['hits']) <= 4
  assert len(client.upload(people.png, top_k=24).json()['hits']) == 4


def test_pictures_are_blurred_by_the_policy_and_by_nobody_else(serve):
  sharp, blurred = serve(), serve({'blur_thumbnails': 2})
  pictures = []
  for client in (sharp, blurred):
    key = client.search(query=QUERY, top_k=1).json()['hits'][0]['thumbnail']
    pictures.append(client.get(key).content)
    for more in ('?blur=0', '?size=full', '?blur_thumbnails=0'):
      assert client.get(key + more).content == pictures[-1]
  assert pictures[0] != pictures[1]


def test_uploads_can_be_forbidden(serve, people):
  client = serve({'uploads': False})
  error(client.upload(people.png), 403, 'does not allow searching for an uploaded picture')
  assert client.log()[-1]['outcome'] == 'refused'
  assert client.log()[-1]['upload']['bytes'] == len(people.png)
  assert client.like(id=people.ids[0]).status_code == 200
  assert client.get('/api/v1/info').json()['can']['upload'] is False


# Who may ask.

TOKENS = {'ann': 'the secret of ann', 'bob': 'the secret of bob'}


def test_where_tokens_are_asked_for_nothing_is_told_without(serve):
  client = serve(access=access.Access(tokens=TOKENS))
  for path in ('/api/v1/schema', '/api/v1/info', f'/api/v1/crops/{"0" * 32}/thumbnail'):
    error(client.get(path), 401)
  error(client.search(query=QUERY), 401, 'Authorization: Bearer')
  for wrong in ('', 'the secret of an', 'the secret of ann ' * 2, 'é', 'ann'):
    header = {'authorization': f'Bearer {wrong}'.encode()}
    assert client.get('/api/v1/info', headers=header).status_code == 401
  assert client.get('/').status_code == 200


def test_who_was_turned_away_is_in_the_log(serve):
  client = serve(access=access.Access(tokens=TOKENS))
  for path in ('schema', 'info', f'crops/{"0" * 32}/thumbnail'):
    error(client.get(f'/api/v1/{path}'), 401)
  error(client.search(query=QUERY), 401)
  error(client.like(id='x'), 401)
  error(client.delete('/api/v1/session'), 401)
  error(client.post('/api/v1/session', json={'token': 'a guess'}), 401)
  client.post('/api/v1/session', json={'token': TOKENS['ann']})
  client.search(query=QUERY)
  client.get('/api/v1/info')
  found = [(line['action'], line['outcome'], line['who'].get('token')) for line in client.log()]
  assert found == [
    ('schema', 'unauthorized', None),
    ('info', 'unauthorized', None),
    ('thumbnail', 'unauthorized', None),
    ('search', 'unauthorized', None),
    ('like', 'unauthorized', None),
    ('sign_out', 'unauthorized', None),
    ('session', 'unauthorized', None),
    ('session', 'answered', 'ann'),
    ('search', 'answered', 'ann'),
  ]
  # Neither what a stranger asked nor what was tried as a token.
  assert not any('query' in line for line in client.log() if line['outcome'] == 'unauthorized')
  assert 'guess' not in client.path.read_text()


def test_the_log_names_whose_token_it_was(serve):
  client = serve(access=access.Access(tokens=TOKENS, user_header='x-user'))
  headers = {'authorization': 'Bearer the secret of bob', 'x-user': 'B. O. B.'}
  client.post('/api/v1/search', json={'query': QUERY}, headers=headers)
  assert client.log()[-1]['who'] == {'address': 'testclient', 'token': 'bob', 'user': 'B. O. B.'}


def test_a_header_names_nobody_unless_a_proxy_is_trusted(serve):
  client = serve()
  client.post('/api/v1/search', json={'query': QUERY}, headers={'x-forwarded-user': 'root'})
  assert client.log()[-1]['who'] == {'address': 'testclient'}


def test_a_browser_gets_a_cookie_for_a_token(serve):
  rules = access.Access(tokens=TOKENS)
  client = serve(access=rules)
  error(client.post('/api/v1/session', json={'token': 'guess'}), 401)
  error(client.post('/api/v1/session', json={'token': 1}), 400)
  given = client.post('/api/v1/session', json={'token': TOKENS['ann']})
  cookie = given.headers['set-cookie']
  assert 'HttpOnly' in cookie
  assert 'SameSite=strict' in cookie
  assert 'Max-Age=43200' in cookie
  assert 'Secure' not in cookie
  facts = client.get('/api/v1/info').json()
  assert (facts['user'], facts['session']) == ('ann', True)
  client.http.cookies.clear()
  session, _, signature = rules.cookie('ann').rpartition('.')
  name, expires, identifier = session.split('.')
  for value in (
    f'{b"bob".hex()}.{expires}.{identifier}.{signature}',
    f'{name}.{int(expires) + 1}.{identifier}.{signature}',
    f'{name}.{expires}.{identifier[:-1]}.{signature}',
    f'{session}.',
    session,
    name,
    f'zz.{expires}.{identifier}.{signature}',
    '...',
    'é',
  ):
    header = {'cookie': f'tfreid_session={value}'.encode()}
    assert client.get('/api/v1/info', headers=header).status_code == 401
  # Another process has another key.
  other = serve(access=access.Access(tokens=TOKENS))
  header = {'cookie': f'tfreid_session={rules.cookie("ann")}'}
  assert other.get('/api/v1/info', headers=header).status_code == 401


def test_a_session_ends_when_it_is_over_and_when_its_user_signs_out(serve):
  rules = access.Access(tokens=TOKENS)
  client = serve(access=rules)
  client.post('/api/v1/session', json={'token': TOKENS['ann']})
  copied = client.http.cookies['tfreid_session']
  ended = client.delete('/api/v1/session')
  assert 'Max-Age=0' in ended.headers['set-cookie']
  error(client.get('/api/v1/info'), 401)
  # Whoever has copied the cookie is out as well; another session of the same user is not.
  assert rules.name_of_cookie(copied) is None
  assert rules.name_of_cookie(rules.cookie('ann')) == 'ann'
  assert client.log()[-2]['action'] == 'sign_out'
  over = access.Access(tokens=TOKENS, session_seconds=-1)
  assert over.name_of_cookie(over.cookie('ann')) is None
  # Programs have no session, and are told so.
  bearer = {'authorization': f'Bearer {TOKENS["bob"]}'}
  assert client.get('/api/v1/info', headers=bearer).json()['session'] is False


@pytest.mark.parametrize(
  ('base', 'public', 'secure'),
  [
    ('http://localhost:8000', '', False),
    ('http://localhost:8000', 'http://depot.example', False),
    ('https://localhost:8000', '', True),
    ('http://depot.example', 'https://depot.example', True),
  ],
)
def test_a_cookie_is_sent_over_https_only_where_there_is_https(serve, base, public, secure):
  client = serve(access=access.Access(tokens=TOKENS, public_url=public))
  for ask in (
    lambda: client.post(f'{base}/api/v1/session', json={'token': TOKENS['ann']}),
    lambda: client.delete(
      f'{base}/api/v1/session', headers={'authorization': f'Bearer {TOKENS["ann"]}'}
    ),
  ):
    answer = ask()
    assert answer.status_code == 200, answer.text
    assert ('Secure' in answer.headers['set-cookie']) is secure


@pytest.mark.parametrize(
  ('host', 'status'),
  [
    ('localhost', 200),
    ('LOCALHOST:8000', 200),
    ('127.0.0.1:8000', 200),
    ('[::1]:8000', 200),
    ('192.168.1.7', 200),
    ('depot.example', 200),
    ('evil.example', 400),
    ('localhost.evil.example', 400),
    ('evil.example#localhost', 400),
    ('', 400),
    ('[', 400),
    ('127.0.0.1.evil.example', 400),
  ],
)
def test_only_known_names_lead_here(serve, host, status):
  client = serve(access=access.Access(hosts=frozenset({'depot.example'})))
  for path in ('/', '/api/v1/info', '/healthz'):
    assert client.get(path, headers={'host': host}).status_code == status


@pytest.mark.parametrize(
  ('headers', 'status'),
  [
    ({}, 200),
    ({'origin': 'http://localhost:8000', 'sec-fetch-site': 'same-origin'}, 200),
    ({'origin': 'http://evil.example'}, 403),
    ({'origin': 'http://localhost:3000'}, 403),
    ({'origin': 'null'}, 403),
    ({'origin': 'http://['}, 403),
    ({'sec-fetch-site': 'cross-site'}, 403),
    ({'sec-fetch-site': 'same-site'}, 403),
  ],
)
def test_pages_of_others_may_not_ask(serve, headers, status):
  client = serve()
  found = client.post('/api/v1/search', json={'query': QUERY}, headers=headers)
  assert found.status_code == status
  assert len(client.log()) == (status == 200)
  assert 'access-control-allow-origin' not in found.headers


def test_every_answer_forbids_the_browser_what_is_not_needed(serve, monkeypatch):
  client = serve()
  monkeypatch.setattr(client.app.app.state.services.search, 'search', lambda _: 1 / 0)
  answers = [
    client.get('/'),
    client.get('/static/page.js'),
    client.get('/missing'),
    client.search(query=QUERY),
    client.get('/', headers={'host': 'evil.example'}),
    client.post('/'),
  ]
  assert [answer.status_code for answer in answers] == [200, 200, 404, 500, 400, 405]
  for answer in answers:
    policy = answer.headers['content-security-policy']
    assert "default-src 'none'" in policy
    assert 'unsafe' not in policy
    assert answer.headers['x-content-type-options'] == 'nosniff'
    assert answer.headers['referrer-policy'] == 'no-referrer'
  assert 'ZeroDivisionError' not in answers[3].text
  assert client.log()[-1]['outcome'] == 'failed'


def test_the_page_asks_for_nothing_of_other_hosts(serve):
  client = serve()
  for path in ('/', '/static/page.css', '/static/page.js', '/static/icon.svg'):
    text = client.get(path).text.replace('http://www.w3.org/2000/svg', '')
    assert '://' not in text
    assert ' style="' not in text
    assert 'innerHTML' not in text
  etag = client.get('/static/page.js').headers['etag']
  assert client.get('/static/page.js', headers={'if-none-match': etag}).status_code == 304
  assert client.head('/').status_code == 200


# Too much at a time.


def test_a_slow_search_blocks_nobody(serve, monkeypatch):
  client = serve(limits=app.Limits(threads=2, waiting=1, seconds=1.5, refresh_seconds=0))
  service = client.app.app.state.services.search
  search, released = service.search, threading.Event()

  def slow(asked):
    if asked.words == 'hat':
      released.wait(10)
    return search(asked)

  monkeypatch.setattr(service, 'search', slow)
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    stuck = threads.submit(lambda: client.search(words='hat'))
    time.sleep(0.1)
    assert client.search(query=QUERY).status_code == 200
    assert client.get('/healthz').json() == {'status': 'ok', 'searches': 1}
    error(stuck.result(), 504)
    # Nobody waits for it any more, but it keeps its place.
    more = [threads.submit(lambda: client.search(words='hat')) for _ in range(2)]
    time.sleep(0.1)
    assert client.get('/healthz').status_code == 503
    full = client.search(query=QUERY)
    error(full, 503, 'Try again')
    assert full.headers['retry-after'] == '1'
    assert client.get('/').status_code == 200
    assert [error(one.result(), 504) for one in more]
    released.set()
    deadline = time.monotonic() + 10
    while client.app.app.state.services.searches.taken and time.monotonic() < deadline:
      time.sleep(0.01)
  assert client.search(query=QUERY).status_code == 200
  outcomes = [line['outcome'] for line in client.log()]
  assert sorted(outcomes) == ['answered', 'answered', 'busy', 'timeout', 'timeout', 'timeout']


def test_many_ask_at_once(serve, people):
  client = serve()

  def ask(i):
    found = client.search(query=QUERY, where=f'camera == {i % 3}', suggest=True, top_k=24)
    assert {hit['metadata']['camera'] for hit in found.json()['hits']} == {i % 3}
    return found.status_code

  with concurrent.futures.ThreadPoolExecutor(16) as threads:
    assert set(threads.map(ask, range(64))) == {200}
  assert len(client.log()) == 64


def test_a_changed_index_is_taken_over_while_it_is_asked(serve, people, loaded, tmp_path):
  from tfreid.index import manifest, writer

  folder = str(tmp_path / 'index')
  rows = manifest.read(str(people.crops), attributes={})
  writer.build(folder, rows[:10], loaded)
  client = serve(
    source=tfreid.index.open(folder, model=loaded),
    limits=app.Limits(refresh_seconds=0.05),
  )
  stop, failed = threading.Event(), []

  def ask():
    while not stop.is_set():
      found = client.search(query=QUERY, top_k=24)
      if found.status_code != 200:
        failed.append(found.text)

  asking = threading.Thread(target=ask)
  asking.start()
  try:
    for count in (16, 24):
      writer.add(folder, rows[count - 8 : count], loaded, existing='skip')
      deadline = time.monotonic() + 20
      while client.get('/api/v1/info').json()['crops'] != count and time.monotonic() < deadline:
        time.sleep(0.02)
    writer.remove(folder, [rows[0].id])
    writer.compact(folder)
    deadline = time.monotonic() + 20
    while client.get('/api/v1/info').json()['crops'] != 23 and time.monotonic() < deadline:
      time.sleep(0.02)
  finally:
    stop.set()
    asking.join()
  assert not failed
  answer = client.search(query=QUERY, top_k=24).json()
  assert len(answer['hits']) == answer['gallery_size'] == 23
  generations = [json.loads(line)['generation'] for line in client.path.read_text().splitlines()]
  assert generations == sorted(generations)
  assert generations[-1] > generations[0]


def test_a_client_that_hangs_up_ends_what_it_asked_for(serve, monkeypatch, caplog):
  from tfreid import cancellation

  client = serve()
  begun, ended = threading.Event(), threading.Event()

  def slow(_):
    begun.set()
    try:
      while True:
        cancellation.check()
        time.sleep(0.001)
    except cancellation.CancelledError:
      ended.set()
      raise

  service = client.app.app.state.services.search
  monkeypatch.setattr(service, 'search', slow)
  body = json.dumps({'query': QUERY}).encode()
  scope = {
    'type': 'http',
    'method': 'POST',
    'path': '/api/v1/search',
    'query_string': b'',
    'headers': [(b'host', b'localhost'), (b'content-type', b'application/json')],
    'client': ('10.0.0.1', 1),
  }
  sent = []

  async def ask(*messages):
    coming = iter(messages)

    async def receive():
      message = next(coming)
      while message['type'] == 'http.disconnect' and len(messages) > 1 and not begun.is_set():
        await asyncio.sleep(0.01)
      return message

    async def send(message):
      sent.append(message)

    await client.app(dict(scope), receive, send)

  # In the middle of the search, and before all of the question had come.
  asyncio.run(ask({'type': 'http.request', 'body': body}, {'type': 'http.disconnect'}))
  assert ended.wait(30)
  asyncio.run(ask({'type': 'http.disconnect'}))
  assert [line['outcome'] for line in client.log()] == ['cancelled'] * 2
  assert not [record for record in caplog.records if record.levelname in ('ERROR', 'WARNING')]
  assert client.app.intake.used == 0


def test_a_refused_body_writes_a_bounded_line(serve):
  client = serve()
  error(client.search(query={'hat': 'y' * 80_000}), 400)
  error(client.search(query={f'a{i}': 'y' * 190 for i in range(400)}), 400)
  error(client.search(query=QUERY, exclude=[f'{i}' * 200 for i in range(100, 250)], top_k=0), 400)
  assert [line['outcome'] for line in client.log()] == ['invalid'] * 3
  assert max(map(len, client.path.read_text().splitlines())) < 4000


def test_a_flood_without_a_token_is_a_count_in_the_log(serve):
  client = serve(access=access.Access(tokens=TOKENS))
  for _ in range(30):
    error(client.get('/api/v1/info'), 401)
  client.app.app.state.services.log.close()
  lines = client.log()
  assert len(lines) == 11
  assert (lines[-1]['action'], lines[-1]['outcome'], lines[-1]['count']) == (
    'counted', 'unauthorized', 20,
  )  # fmt: skip
