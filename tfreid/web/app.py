"""The page and its JSON API as an ASGI application. Floor 5.

  GET  /                              the page
  GET  /healthz                       whether it answers
  GET  /api/v1/schema                 what can be asked for
  GET  /api/v1/info                   what is searched, under which rules
  POST /api/v1/search                 the best crops for a description
  POST /api/v1/like                   the crops most like one
  GET  /api/v1/crops/KEY/thumbnail    a picture of a crop that was answered
  POST /api/v1/session                a token for a cookie, for browsers
  GET  /api/v1/openapi.json           all this for programs

An error is JSON, {"error": what was expected, what came, what to do, "code": for programs}.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import hashlib
import importlib.resources
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

import fastapi
from fastapi import security
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

import tfreid
from tfreid.search import Source
from tfreid.search.client import ServingError
from tfreid.web import messages
from tfreid.web import service as search_service
from tfreid.web.audit import AuditLog, UnwritableError
from tfreid.web.executor import BoundedExecutor, BusyError, TooSlowError
from tfreid.web.messages import ApiError
from tfreid.web.middleware import Access, SecurityMiddleware
from tfreid.web.policy import Policy, RefusedError
from tfreid.web.thumbnails import Thumbnails, UnreadableError

_STATIC = {
  '/': ('page.html', 'text/html; charset=utf-8'),
  '/static/page.css': ('page.css', 'text/css; charset=utf-8'),
  '/static/page.js': ('page.js', 'text/javascript; charset=utf-8'),
  '/static/icon.svg': ('icon.svg', 'image/svg+xml'),
}
_COOKIE = 'tfreid_session'
_NO_STORE = {'cache-control': 'no-store'}
# Threads that wait for the disk of the log, and for those of the pictures.
_LOG_THREADS = 16
_PICTURE_THREADS = 4
# What the log calls an answer of this status; any other is 'invalid'.
_OUTCOMES = {
  401: 'unauthorized',
  403: 'refused',
  500: 'failed',
  502: 'failed',
  503: 'busy',
  504: 'timeout',
}


@dataclasses.dataclass(frozen=True)
class Limits:
  """How much at a time, and how long.

  Attributes:
    threads: searches at a time.
    waiting: searches that may wait besides; more are sent away.
    seconds: that a search may take, waiting included.
    body_seconds: in which a request must have arrived.
    refresh_seconds: between two looks at whether there is a newer state of an index, or another
      version of a served model; 0 for never.
  """

  threads: int = 2
  waiting: int = 128
  seconds: float = 30.0
  body_seconds: float = 20.0
  refresh_seconds: float = 5.0


@dataclasses.dataclass
class _Services:
  """What the endpoints share."""

  search: search_service.SearchService
  audit: AuditLog | None
  access: Access
  limits: Limits
  thumbnails: Thumbnails
  searches: BoundedExecutor
  pictures: BoundedExecutor
  logging: BoundedExecutor


def create(
  source: Source,
  *,
  policy: Policy | None = None,
  audit: AuditLog | None = None,
  access: Access | None = None,
  limits: Limits | None = None,
  resident: bool = False,
) -> SecurityMiddleware:
  """The application; it closes the source and the log when it ends.

  Args:
    source: what is searched.
    policy: what is allowed; everything by default.
    audit: where queries are logged; nowhere by default.
    access: who may ask; everybody by default.
    limits: how much at a time.
    resident: how an index that has changed is opened again.

  Raises:
    ValueError: the policy does not fit the source.
    OSError: the source cannot be reached.
  """
  policy, access, limits = policy or Policy(), access or Access(), limits or Limits()
  services = _Services(
    search=search_service.SearchService(source, policy, resident=resident),
    audit=audit,
    access=access,
    limits=limits,
    thumbnails=Thumbnails(blur=policy.blur_thumbnails),
    searches=BoundedExecutor(
      'search', threads=limits.threads, waiting=limits.waiting, timeout=limits.seconds
    ),
    pictures=BoundedExecutor(
      'pictures', threads=_PICTURE_THREADS, waiting=1024, timeout=limits.seconds
    ),
    logging=BoundedExecutor('log', threads=_LOG_THREADS, waiting=1024, timeout=limits.seconds),
  )

  @contextlib.asynccontextmanager
  async def lifespan(_):
    task = None
    if limits.refresh_seconds:
      task = asyncio.create_task(_refresh(services.search, limits.refresh_seconds))
    try:
      yield
    finally:
      if task:
        task.cancel()
      for pool in (services.searches, services.pictures, services.logging):
        pool.close()
      services.search.source.close()
      if audit:
        audit.close()

  # Neither /docs nor /redoc: they load their scripts from other hosts.
  api = fastapi.FastAPI(
    title='tfreid',
    summary='Find a person by description.',
    description='A description in, a ranked list of person crops out. A high score is not an '
    'identification.',
    version=tfreid.__version__,
    openapi_url='/api/v1/openapi.json',
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,
    lifespan=lifespan,
  )
  api.state.service, api.state.searches = services.search, services.searches
  _add_errors(api, services)
  _add_page(api, services)
  _add_api(api, services)
  return SecurityMiddleware(
    api,
    access=access,
    # A form's borders and the other fields come on top of the picture.
    max_bytes=messages.MAX_UPLOAD_BYTES + messages.MAX_JSON_BYTES,
    body_seconds=limits.body_seconds,
  )


async def _refresh(search: search_service.SearchService, seconds: float):
  while True:
    await asyncio.sleep(seconds)
    try:
      await asyncio.to_thread(search.source.refresh)
    except Exception:  # the next look may succeed, and what was there goes on
      logging.getLogger(__name__).exception('Looking for changes failed.')


def _add_errors(api: fastapi.FastAPI, services: _Services):
  @api.exception_handler(ApiError)
  async def _(_request, error: ApiError):
    headers = dict(_NO_STORE)
    if error.status == 503:
      headers['retry-after'] = '1'
    if error.status == 401:
      headers['www-authenticate'] = 'Bearer'
    message = services.search.clean(error.message)
    return JSONResponse({'error': message, 'code': error.code}, error.status, headers)

  @api.exception_handler(HTTPException)
  async def _(_request, error: HTTPException):
    said = {
      404: 'There is nothing here. The page is at /, the API is described at /api/v1/openapi.json.',
      405: 'This address does not take that method. See /api/v1/openapi.json.',
    }.get(error.status_code, 'The request cannot be read.')
    headers = {**_NO_STORE, **(error.headers or {})}
    return JSONResponse({'error': said, 'code': 'http'}, error.status_code, headers)


def _add_page(api: fastapi.FastAPI, services: _Services):
  folder = importlib.resources.files('tfreid.web') / 'static'

  def serve(path, file, kind):
    contents = (folder / file).read_bytes()
    etag = f'"{hashlib.blake2b(contents, digest_size=8).hexdigest()}"'
    headers = {'etag': etag, 'cache-control': 'no-cache'}

    @api.api_route(path, methods=['GET', 'HEAD'], include_in_schema=False)
    async def _(request: fastapi.Request):
      if request.headers.get('if-none-match') == etag:
        return Response(status_code=304, headers=headers)
      return Response(contents, media_type=kind, headers=headers)

  for path, (file, kind) in _STATIC.items():
    serve(path, file, kind)

  @api.get('/healthz', include_in_schema=False)
  async def _():
    waiting = services.searches.taken
    full = waiting >= services.limits.threads + services.limits.waiting
    return JSONResponse(
      {'status': 'busy' if full else 'ok', 'searches': waiting}, 503 if full else 200, _NO_STORE
    )


def _add_api(api: fastapi.FastAPI, services: _Services):
  errors = {
    400: {'model': messages.ErrorAnswer, 'description': 'Not understood.'},
    401: {'model': messages.ErrorAnswer, 'description': 'No token, or a wrong one.'},
    403: {'model': messages.ErrorAnswer, 'description': 'The policy does not allow it.'},
    404: {'model': messages.ErrorAnswer, 'description': 'There is no such crop.'},
    408: {'model': messages.ErrorAnswer, 'description': 'The request did not arrive in time.'},
    413: {'model': messages.ErrorAnswer, 'description': 'The request is too large.'},
    415: {'model': messages.ErrorAnswer, 'description': 'The body is of another type.'},
    500: {
      'model': messages.ErrorAnswer,
      'description': 'A fault of the server; its log says what.',
    },
    502: {'model': messages.ErrorAnswer, 'description': 'What is searched cannot be reached.'},
    503: {'model': messages.ErrorAnswer, 'description': 'Too many searches, or no audit log.'},
    504: {'model': messages.ErrorAnswer, 'description': 'Not finished in time.'},
  }

  # For the description only: `_user` asks.
  asks_who = []
  if services.access.tokens:
    asks_who = [
      fastapi.Security(security.HTTPBearer(auto_error=False, description='A token.')),
      fastapi.Security(security.APIKeyCookie(name=_COOKIE, auto_error=False)),
    ]

  @api.get('/api/v1/schema', summary='What can be asked for.', dependencies=asks_who)
  async def schema(request: fastapi.Request):
    _user(request, services.access)
    return JSONResponse(_schema_json(services.search.capabilities.visible), headers=_NO_STORE)

  @api.get('/api/v1/info', summary='What is searched, under which rules.', dependencies=asks_who)
  async def info(request: fastapi.Request):
    user = _user(request, services.access)
    return JSONResponse(_info_json(services, user), headers=_NO_STORE)

  @api.post(
    '/api/v1/session',
    summary='A cookie for a token, for browsers.',
    responses={status: errors[status] for status in (400, 401, 413, 415, 503)},
  )
  async def session(request: fastapi.Request):
    data = await _json_body(request)
    token = data.get('token') if isinstance(data, dict) else None
    if not isinstance(token, str):
      raise ApiError(400, 'request', 'Expected {"token": "…"}.')
    name = services.access.name_of(token)
    entry = _entry(request, services, 'session', name or '')
    if name is None:
      await asyncio.sleep(0.5)  # for whoever tries many
      await _log(services, {**entry, 'outcome': 'unauthorized'})
      raise ApiError(401, 'token', 'This token is not known. Ask whoever runs this server for one.')
    await _log(services, {**entry, 'outcome': 'answered'})
    answer = JSONResponse({'user': name}, headers=_NO_STORE)
    answer.set_cookie(
      _COOKIE,
      services.access.cookie(name),
      httponly=True,
      samesite='strict',
      secure=request.url.scheme == 'https',
    )
    return answer

  @api.post(
    '/api/v1/search',
    summary='The best crops for a description.',
    response_model=messages.SearchAnswer,
    responses={status: said for status, said in errors.items() if status != 404},
    openapi_extra=_body(messages.SearchRequest),
    dependencies=asks_who,
  )
  async def search(request: fastapi.Request):
    async def ask(entry):
      asked = messages.check(messages.SearchRequest, await _json_body(request))
      entry.update(_asked(asked))
      return asked, lambda: services.search.search(asked)

    return await _answer(request, services, 'search', ask)

  @api.post(
    '/api/v1/like',
    summary='The crops most like one of the gallery, or like an uploaded one.',
    response_model=messages.SearchAnswer,
    responses=errors,
    dependencies=asks_who,
    openapi_extra={
      'requestBody': {
        'required': True,
        'content': {
          'application/json': {'schema': messages.LikeRequest.model_json_schema()},
          'multipart/form-data': {
            'schema': {
              'type': 'object',
              'required': ['image'],
              'properties': {
                'image': {
                  'type': 'string',
                  'format': 'binary',
                  'description': f'JPEG or PNG, at most {messages.MAX_UPLOAD_BYTES} bytes.',
                },
                'options': {
                  'type': 'string',
                  'contentMediaType': 'application/json',
                  'contentSchema': messages.LikeOptions.model_json_schema(),
                },
              },
            }
          },
        },
      }
    },
  )
  async def like(request: fastapi.Request):
    async def ask(entry):
      if not _is_type(request, 'multipart/form-data'):
        asked = messages.check(messages.LikeRequest, await _json_body(request))
        entry.update(_asked(asked))
        return asked, lambda: services.search.like(asked)
      contents, options = await _upload(request)
      entry['upload'] = {'sha256': hashlib.sha256(contents).hexdigest(), 'bytes': len(contents)}
      asked = messages.check(messages.LikeOptions, options)
      entry.update(_asked(asked))
      return asked, lambda: services.search.like_upload(asked, contents)

    return await _answer(request, services, 'like', ask)

  @api.get(
    '/api/v1/crops/{key}/thumbnail',
    summary='A picture of a crop that was answered, at most 128x256 pixels.',
    response_class=Response,
    dependencies=asks_who,
    responses={
      200: {'content': {'image/jpeg': {}}},
      **{status: errors[status] for status in (401, 404, 503, 504)},
    },
  )
  async def thumbnail(key: str, request: fastapi.Request):
    _user(request, services.access)
    path = services.search.seen.path(key) if re.fullmatch(r'[0-9a-f]{32}', key) else None
    if not path:
      raise ApiError(
        404,
        'crop',
        'No answer of this server has named such a crop since it was started. Search again.',
      )
    try:
      found = await services.pictures.run(services.thumbnails.get, path)
    except UnreadableError as error:
      raise ApiError(404, 'picture', str(error)) from error
    except BusyError as error:
      raise ApiError(503, 'busy', 'Too many pictures are asked for. Try again.') from error
    except TooSlowError as error:
      raise ApiError(504, 'slow', 'The picture could not be made in time. Try again.') from error
    headers = {'etag': found.etag, 'cache-control': 'private, max-age=300'}
    if request.headers.get('if-none-match') == found.etag:
      return Response(status_code=304, headers=headers)
    return Response(found.contents, media_type='image/jpeg', headers=headers)


async def _answer(
  request: fastapi.Request, services: _Services, action: str, ask: Callable
) -> Response:
  """Asks, logs, and answers, in this order: what is not logged is not answered."""
  entry = _entry(request, services, action, '')
  started = time.perf_counter()
  body, failure = None, None
  try:
    user = _user(request, services.access)
    entry['who'] = _who(request, services.access, user)
    asked, function = await ask(entry)
    found = await services.searches.run(function)
    body = services.search.to_json(found, asked)
    # What it was when the question came may have been followed by another.
    entry.update(_searched(found.capabilities))
    entry.update(outcome='answered', understood=body['query'], results=len(body['hits']))
  except Exception as error:  # whatever it was, it is logged before it is told
    failure = _as_api_error(error)
    entry.update(
      outcome=_OUTCOMES.get(failure.status, 'invalid'),
      error=services.search.clean(failure.message)[:500],
      results=0,
    )
  entry['seconds'] = round(time.perf_counter() - started, 4)
  await _log(services, entry)
  if failure is not None:
    raise failure
  return JSONResponse(body, headers=_NO_STORE)


def _entry(request: fastapi.Request, services: _Services, action: str, user: str) -> dict[str, Any]:
  """The first half of an entry of the log: when, who, what of."""
  return {
    'time': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='milliseconds'),
    'request': secrets.token_hex(8),
    'who': _who(request, services.access, user),
    'action': action,
    **_searched(services.search.capabilities),
  }


async def _log(services: _Services, entry: dict[str, Any]):
  """Writes to the log, if there is one.

  Raises:
    ApiError: it could not be written.
  """
  if services.audit is None:
    return
  try:
    await services.logging.run(services.audit.write, entry)
  except UnwritableError as error:
    logging.getLogger(__name__).error('%s', error)
    raise ApiError(503, 'audit', str(error)) from error
  except (BusyError, TooSlowError) as error:
    raise ApiError(
      503, 'audit', 'The audit log is too slow, and what is not logged is not answered.'
    ) from error


def _as_api_error(error: Exception) -> ApiError:
  """What a client is told of an error."""
  if isinstance(error, ApiError):
    return error
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


def _user(request: fastapi.Request, access: Access) -> str:
  """Whose token came along; '' where nobody needs one.

  Raises:
    ApiError: it is missing or wrong.
  """
  if not access.tokens:
    return ''
  scheme, _, token = request.headers.get('authorization', '').partition(' ')
  name = access.name_of(token.strip()) if scheme.lower() == 'bearer' else None
  name = name or access.name_of_cookie(request.cookies.get(_COOKIE, ''))
  if name is None:
    raise ApiError(
      401,
      'token',
      'This server asks who you are. Send the header "Authorization: Bearer TOKEN", or enter your '
      'token in the page.',
    )
  return name


def _who(request: fastapi.Request, access: Access, user: str) -> dict[str, str]:
  who = {'address': request.client.host if request.client else ''}
  if user:
    who['token'] = user
  if access.user_header:
    who['user'] = request.headers.get(access.user_header, '')[:200]
  return who


def _searched(capabilities: search_service.Capabilities) -> dict[str, Any]:
  """What is searched, for the log."""
  return {
    'model': (capabilities.facts.get('model') or {}).get('fingerprint'),
    'source': capabilities.name,
    'generation': capabilities.facts.get('generation'),
  }


def _asked(asked: messages.Narrowing) -> dict[str, Any]:
  """What was asked, for the log: what differs from the defaults, and always how many."""
  return {**asked.model_dump(exclude_defaults=True), 'top_k': asked.top_k}


def _body(model) -> dict[str, Any]:
  schema = model.model_json_schema()
  return {'requestBody': {'required': True, 'content': {'application/json': {'schema': schema}}}}


def _is_type(request: fastapi.Request, kind: str) -> bool:
  return request.headers.get('content-type', '').partition(';')[0].strip().lower() == kind


async def _json_body(request: fastapi.Request) -> Any:
  # A form of another site can send text, but not JSON without asking first.
  if not _is_type(request, 'application/json'):
    raise ApiError(415, 'type', 'Send JSON, with the header "Content-Type: application/json".')
  body = b''
  async for part in request.stream():
    body += part
    if len(body) > messages.MAX_JSON_BYTES:
      raise ApiError(
        413, 'too_large', f'A query has at most {messages.MAX_JSON_BYTES:,} bytes; shorten it.'
      )
  return messages.read_json(body)


async def _upload(request: fastapi.Request) -> tuple[bytes, Any]:
  """The picture and the options of a form."""
  try:
    async with request.form(
      max_files=1, max_fields=1, max_part_size=messages.MAX_JSON_BYTES
    ) as form:
      unknown = [name for name in form if name not in ('image', 'options')]
      image, options = form.get('image'), form.get('options', '{}')
      if unknown or image is None or isinstance(image, str) or not isinstance(options, str):
        raise ApiError(
          400,
          'form',
          'Expected a form with the file "image" and, if need be, the field "options" with JSON.',
        )
      contents = await image.read()
  except (ApiError, UnwritableError):
    raise
  except (
    HTTPException,
    MultiPartException,
    ValueError,
    KeyError,
    TypeError,
    UnicodeError,
  ) as error:
    raise ApiError(
      400, 'form', 'The form cannot be read: it is damaged or not complete. Send it again.'
    ) from error
  if len(contents) > messages.MAX_UPLOAD_BYTES:
    raise ApiError(
      413,
      'too_large',
      f'The image has {len(contents):,} bytes; at most {messages.MAX_UPLOAD_BYTES:,} are taken. '
      'Send one crop, not a whole picture.',
    )
  return contents, messages.read_json(options.encode('utf-8', 'surrogatepass'))


def _schema_json(schema) -> dict[str, Any]:
  return {
    'name': schema.name,
    'examples': search_service.examples(schema),
    'attributes': [
      {
        'name': attribute.name,
        'values': list(attribute.values) + ([] if attribute.is_binary else ['none']),
        'binary': attribute.is_binary,
        'words': {value: list(phrases) for value, phrases in attribute.words.items()},
      }
      for attribute in schema.attributes
    ],
  }


def _info_json(services: _Services, user: str) -> dict[str, Any]:
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
    'logged': services.audit is not None,
    'user': user,
    'version': tfreid.__version__,
  }
