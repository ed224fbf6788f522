"""The endpoints below /api/v1. Floor 5.

Each request goes the same way: who asks (`signed_in`), what is asked (`json_body`, `like_body`),
the answer, the line in the audit log (`LoggedRoute`), and only then the answer's way to the client.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Union

import fastapi
import pydantic_core
from fastapi import Depends
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

import tfreid
from tfreid.search.client import ServingError
from tfreid.web import forms, messages, query_log
from tfreid.web import service as search_service
from tfreid.web.executor import BusyError, TooSlowError
from tfreid.web.messages import ApiError
from tfreid.web.policy import RefusedError
from tfreid.web.service import Capabilities, SearchService, ServiceAnswer
from tfreid.web.services import Services, services_of
from tfreid.web.thumbnails import UnreadableError

COOKIE = 'tfreid_session'
NO_STORE = {'cache-control': 'no-store'}

_ERRORS = {
  400: 'Not understood.',
  401: 'No token, or a wrong one.',
  403: 'The policy does not allow it.',
  404: 'There is no such crop.',
  408: 'The request did not arrive in time.',
  413: 'The request is too large.',
  415: 'The body is of another type.',
  500: 'A fault of the server; its log says what.',
  502: 'What is searched cannot be reached.',
  503: 'Too much at a time, or no audit log.',
  504: 'Not finished in time.',
}
# What the log calls an answer of this status; any other is 'invalid'.
_OUTCOMES = {
  401: 'unauthorized',
  403: 'refused',
  499: 'cancelled',
  500: 'failed',
  502: 'failed',
  503: 'busy',
  504: 'timeout',
}
# What has a line in the log whatever comes of it; other requests have one if nobody knows who asks.
_LOGGED = ('search', 'like', 'session', 'sign_out')


class LoggedRoute(APIRoute):
  """A route whose requests are in the audit log before they are answered."""

  def get_route_handler(self) -> Callable:
    """The handler of FastAPI, and what is logged of it."""
    handle = super().get_route_handler()

    async def handle_and_log(request: fastapi.Request) -> Response:
      services = services_of(request)
      entry = query_log.begin(request.client.host if request.client else '', self.name)
      entry.update(_searched(services.search.capabilities))
      request.state.entry = entry
      started = time.perf_counter()
      failure = None
      try:
        response = await handle(request)
        entry['outcome'] = 'answered'
      except Exception as error:  # whatever it was, it is logged before it is told
        failure = as_api_error(error)
        entry['outcome'] = _OUTCOMES.get(failure.status, 'invalid')
        entry['error'] = services.search.clean(failure.message)[:500]
        entry['results'] = 0
      entry['seconds'] = round(time.perf_counter() - started, 4)
      if self.name in _LOGGED or entry['outcome'] == 'unauthorized':
        await services.log.write(entry)
      if failure is not None:
        raise failure
      return response

    return handle_and_log


# Two, since nobody has a session before there is one.
router = fastapi.APIRouter(prefix='/api/v1', route_class=LoggedRoute)
session_router = fastapi.APIRouter(prefix='/api/v1', route_class=LoggedRoute)


def as_api_error(error: Exception) -> ApiError:
  """What a client is told of an error."""
  if isinstance(error, ApiError):
    return error
  if isinstance(error, ClientDisconnect):
    return ApiError(499, 'gone', 'The client has hung up.')
  if isinstance(error, RefusedError):
    return ApiError(403, 'policy', str(error))
  if isinstance(error, search_service.UnknownCropError):
    return ApiError(404, 'crop', str(error))
  if isinstance(error, BusyError):
    return ApiError(503, 'busy', 'More is being searched for than this server can. Try again.')
  if isinstance(error, ServingError) and error.code == 'DEADLINE_EXCEEDED':
    logging.getLogger(__name__).error('%s', error)
    error = TooSlowError()
  if isinstance(error, TooSlowError):
    return ApiError(504, 'slow', 'The search did not finish in time. Ask for less, or try again.')
  if isinstance(error, ValueError):
    return ApiError(400, 'query', str(error))
  if isinstance(error, OSError):
    logging.getLogger(__name__).error('%s', error)
    return ApiError(502, 'source', 'What is searched cannot be reached now. Try again later.')
  logging.getLogger(__name__).error('A search failed.', exc_info=error)
  return ApiError(500, 'internal', 'Something is wrong in this server; its log says what.')


# Dependencies.


async def signed_in(request: fastapi.Request) -> str:
  """The name of the user whose token or session comes with a request; '' where anybody may ask.

  Raises:
    ApiError: there is none, or a wrong one.
  """
  access, who = services_of(request).access, request.state.entry['who']
  name = ''
  if access.tokens:
    scheme, _, token = request.headers.get('authorization', '').partition(' ')
    user = access.name_of(token.strip()) if scheme.lower() == 'bearer' else None
    user = user or access.name_of_cookie(request.cookies.get(COOKIE, ''))
    if user is None:
      raise ApiError(
        401,
        'token',
        'This server asks who you are. Send the header "Authorization: Bearer TOKEN", or enter '
        'your token in the page.',
      )
    name = who['token'] = user
  if access.user_header:
    who['user'] = request.headers.get(access.user_header, '')[:200]
  return name


def json_body(model: type[messages.Request]) -> Callable:
  """A dependency: the JSON of a request as a message of that kind."""

  async def read(request: fastapi.Request):
    asked = messages.check(model, await _read_json(request))
    request.state.entry.update(asked.to_log())
    return asked

  return read


class LikeUpload(NamedTuple):
  """A picture of a crop that is not of the gallery, its bytes, and what is asked about it."""

  asked: messages.LikeOptions
  contents: bytes


# What "more like this" is asked about: a crop of the gallery, or a picture.
LikeBody = Union[messages.LikeRequest, LikeUpload]
_read_like_request = json_body(messages.LikeRequest)


async def like_body(request: fastapi.Request) -> LikeBody:
  """A dependency: JSON with an id, or a form with a picture."""
  if not _is_type(request, 'multipart/form-data'):
    return await _read_like_request(request)
  if services_of(request).searches.is_full:
    raise BusyError  # before it is read
  upload = await _read_form(request)
  entry = request.state.entry
  entry['upload'] = {'sha256': upload.digest, 'bytes': len(upload.contents)}
  asked = messages.check(messages.LikeOptions, upload.options)
  entry.update(asked.to_log())
  return LikeUpload(asked, upload.contents)


# FastAPI evaluates the annotations of endpoints among the names of this module.
SignedIn = Annotated[str, Depends(signed_in)]
Shared = Annotated[Services, Depends(services_of)]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
  return {
    status: {'model': messages.ErrorAnswer, 'description': _ERRORS[status]} for status in statuses
  }


def _json_request(model: type[messages.Request]) -> dict[str, Any]:
  """The body for the description of the API, which a dependency reads."""
  schema = model.model_json_schema()
  return {'requestBody': {'required': True, 'content': {'application/json': {'schema': schema}}}}


def _like_request() -> dict[str, Any]:
  described = _json_request(messages.LikeRequest)
  form = messages.LikeForm.model_json_schema()
  described['requestBody']['content']['multipart/form-data'] = {'schema': form}
  return described


# Endpoints; their names are the actions in the log.


@router.get('/schema', summary='What can be asked for.', responses=_errors(401))
async def schema(user: SignedIn, services: Shared):
  """Attributes, values and words."""
  return JSONResponse(_schema_json(services.search.capabilities.visible), headers=NO_STORE)


@router.get('/info', summary='What is searched, under which rules.', responses=_errors(401))
async def info(user: SignedIn, services: Shared, request: fastapi.Request):
  """Facts about the source and the rules of this site."""
  facts = _info_json(services, user)
  facts['session'] = bool(user) and services.access.name_of_cookie(_cookie(request)) == user
  return JSONResponse(facts, headers=NO_STORE)


@router.post(
  '/search',
  summary='The best crops for a description.',
  response_model=messages.SearchAnswer,
  responses=_errors(*(status for status in _ERRORS if status != 404)),
  openapi_extra=_json_request(messages.SearchRequest),
)
async def search(
  user: SignedIn,
  asked: Annotated[messages.SearchRequest, Depends(json_body(messages.SearchRequest))],
  request: fastapi.Request,
):
  """Crops, best first, with reasons and what to ask for next."""
  return await _answer(request, asked, lambda service: service.search(asked))


@router.post(
  '/like',
  summary='The crops most like one of the gallery, or like an uploaded one.',
  response_model=messages.SearchAnswer,
  responses=_errors(*_ERRORS),
  openapi_extra=_like_request(),
)
async def like(
  user: SignedIn, body: Annotated[LikeBody, Depends(like_body)], request: fastapi.Request
):
  """Crops, the most similar first."""
  if isinstance(body, LikeUpload):
    asked, contents = body
    return await _answer(request, asked, lambda service: service.like_upload(asked, contents))
  return await _answer(request, body, lambda service: service.like(body))


@router.get(
  '/crops/{key}/thumbnail',
  summary='A picture of a crop that was answered, at most 128x256 pixels.',
  response_class=Response,
  responses={200: {'content': {'image/jpeg': {}}}, **_errors(401, 404, 503, 504)},
)
async def thumbnail(key: str, user: SignedIn, services: Shared, request: fastapi.Request):
  """A small JPEG, blurred where the policy says so."""
  path = services.search.seen.path(key) if re.fullmatch(r'[0-9a-f]{32}', key) else None
  if not path:
    raise ApiError(
      404,
      'crop',
      'No answer of this server has named such a crop since it was started. Search again.',
    )
  try:
    picture = await _while_connected(
      request,
      services.pictures.run(services.thumbnails.get, path, turn_of=_asker(request)),
    )
  except UnreadableError as error:
    raise ApiError(404, 'picture', str(error)) from error
  except BusyError as error:
    raise ApiError(503, 'busy', 'Too many pictures are asked for. Try again.') from error
  except TooSlowError as error:
    raise ApiError(504, 'slow', 'The picture could not be made in time. Try again.') from error
  headers = {'etag': picture.etag, 'cache-control': 'private, max-age=300'}
  if request.headers.get('if-none-match') == picture.etag:
    return Response(status_code=304, headers=headers)
  return Response(picture.contents, media_type='image/jpeg', headers=headers)


@session_router.post(
  '/session',
  summary='A cookie for a token, for browsers.',
  responses=_errors(400, 401, 413, 415, 503),
  openapi_extra=_json_request(messages.SessionRequest),
)
async def session(
  asked: Annotated[messages.SessionRequest, Depends(json_body(messages.SessionRequest))],
  services: Shared,
  request: fastapi.Request,
):
  """Begins the session of a browser."""
  name = services.access.name_of(asked.token)
  if name is None:
    await asyncio.sleep(0.5)  # for whoever tries many
    raise ApiError(401, 'token', 'This token is not known. Ask whoever runs this server for one.')
  request.state.entry['who']['token'] = name
  answer = JSONResponse({'user': name}, headers=NO_STORE)
  answer.set_cookie(
    COOKIE,
    services.access.cookie(name),
    max_age=services.access.session_seconds,
    httponly=True,
    samesite='strict',
    secure=services.access.needs_secure_cookie(request.url.scheme),
  )
  return answer


@router.delete('/session', summary='Ends the session of a cookie.', responses=_errors(401, 503))
async def sign_out(user: SignedIn, services: Shared, request: fastapi.Request):
  """Ends the session of a browser, here and in the browser."""
  services.access.end_session(_cookie(request))
  answer = JSONResponse({'user': ''}, headers=NO_STORE)
  answer.delete_cookie(
    COOKIE,
    httponly=True,
    samesite='strict',
    secure=services.access.needs_secure_cookie(request.url.scheme),
  )
  return answer


# What the endpoints have in common.


async def _answer(
  request: fastapi.Request,
  asked: messages.Narrowing,
  ask: Callable[[SearchService], ServiceAnswer],
) -> Response:
  """The answer of the search service, which is asked in another thread."""
  services, entry = services_of(request), request.state.entry

  def work() -> tuple[Capabilities, dict[str, Any], bytes]:
    answer = ask(services.search)
    body = services.search.to_json(answer, asked)
    return answer.capabilities, body, pydantic_core.to_json(body, inf_nan_mode='null')

  capabilities, body, encoded = await _while_connected(
    request, services.searches.run(work, turn_of=_asker(request))
  )
  # What it was when the question came may have been followed by another.
  entry.update(_searched(capabilities))
  entry.update(understood=body['query'], results=len(body['hits']))
  return Response(encoded, media_type='application/json', headers=NO_STORE)


async def _while_connected(request: fastapi.Request, coroutine) -> Any:
  """What a coroutine returns; it is cancelled when the client hangs up.

  Raises:
    ClientDisconnect: the client has hung up.
  """

  async def watch():
    while (await request.receive())['type'] != 'http.disconnect':
      pass

  work, gone = asyncio.ensure_future(coroutine), asyncio.ensure_future(watch())
  try:
    await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
      raise ClientDisconnect
    return work.result()
  finally:
    # What the work ends with after its client has gone is nobody's error: asyncio would print it.
    work.add_done_callback(lambda task: task.cancelled() or task.exception())
    work.cancel()
    gone.cancel()


def _asker(request: fastapi.Request) -> str:
  """Who takes turns with others: a user, or else an address."""
  who = request.state.entry['who']
  return who.get('user') or who.get('token') or who['address']


def _cookie(request: fastapi.Request) -> str:
  return request.cookies.get(COOKIE, '')


def _searched(capabilities: Capabilities) -> dict[str, Any]:
  """What is searched, for the log."""
  return {
    'model': (capabilities.facts.get('model') or {}).get('fingerprint'),
    'source': capabilities.name,
    'generation': capabilities.facts.get('generation'),
  }


def _is_type(request: fastapi.Request, kind: str) -> bool:
  return request.headers.get('content-type', '').partition(';')[0].strip().lower() == kind


async def _read_json(request: fastapi.Request) -> Any:
  # A form of another site can send text, but not JSON without asking first.
  if not _is_type(request, 'application/json'):
    raise ApiError(415, 'type', 'Send JSON, with the header "Content-Type: application/json".')
  body = bytearray()
  async for part in request.stream():
    body += part
    if len(body) > messages.MAX_JSON_BYTES:
      raise ApiError(
        413, 'too_large', f'A query has at most {messages.MAX_JSON_BYTES:,} bytes; shorten it.'
      )
  return messages.read_json(bytes(body))


class _Upload(NamedTuple):
  """A picture that was sent, and what was sent with it."""

  contents: bytes
  digest: str
  options: Any


async def _read_form(request: fastapi.Request) -> _Upload:
  """The picture and the options of a form; nothing of them is written to a disk."""
  body = bytearray()
  async for part in request.stream():
    body += part
  return await asyncio.to_thread(_parse_form, request.headers['content-type'], bytes(body))


def _parse_form(content_type: str, body: bytes) -> _Upload:
  try:
    form = forms.parse(content_type, body, max_parts=2)
  except forms.FormError as error:
    raise ApiError(
      400, 'form', 'The form cannot be read: it is damaged or not complete. Send it again.'
    ) from error
  if 'image' not in form or not form.keys() <= {'image', 'options'}:
    raise ApiError(
      400,
      'form',
      'Expected a form with the file "image" and, if need be, the field "options" with JSON.',
    )
  contents, options = form['image'], form.get('options', b'{}')
  if len(options) > messages.MAX_JSON_BYTES:
    raise ApiError(
      413, 'too_large', f'Options have at most {messages.MAX_JSON_BYTES:,} bytes; shorten them.'
    )
  if len(contents) > messages.MAX_UPLOAD_BYTES:
    raise ApiError(
      413,
      'too_large',
      f'The image has {len(contents):,} bytes; at most {messages.MAX_UPLOAD_BYTES:,} are taken. '
      'Send one crop, not a whole picture.',
    )
  digest = hashlib.sha256(contents).hexdigest()
  return _Upload(contents, digest, messages.read_json(options))


def _schema_json(visible) -> dict[str, Any]:
  return {
    'name': visible.name,
    'examples': search_service.examples(visible),
    'attributes': [
      {
        'name': attribute.name,
        'values': list(attribute.values) + ([] if attribute.is_binary else ['none']),
        'binary': attribute.is_binary,
        'words': {value: list(phrases) for value, phrases in attribute.words.items()},
      }
      for attribute in visible.attributes
    ],
  }


def _info_json(services: Services, user: str) -> dict[str, Any]:
  capabilities = services.search.capabilities
  facts, policy = capabilities.facts, capabilities.policy
  model = facts.get('model') or {}
  return {
    'name': capabilities.name,
    'engine': facts.get('engine'),
    'crops': facts.get('crops'),
    'generation': facts.get('generation'),
    'fields': policy.visible(facts.get('fields') or {}),
    'model': {'fingerprint': model.get('fingerprint')},
    'can': {**capabilities.can, 'upload': capabilities.can['upload'] and policy.uploads},
    'policy': {
      'purpose': policy.require_purpose,
      'purposes': list(policy.purposes),
      'max_results': min(policy.max_results or messages.MAX_RESULTS, messages.MAX_RESULTS),
      'blurred': policy.blur_thumbnails > 0,
      'disabled_attributes': len(policy.disabled_attributes),
    },
    'logged': services.log.audit is not None,
    'user': user,
    'version': tfreid.__version__,
  }
