"""The page and its JSON API as an ASGI application. Floor 5.

  GET  /                              the page
  GET  /healthz                       whether it answers
  GET  /api/v1/schema                 what can be asked for
  GET  /api/v1/info                   what is searched, under which rules
  POST /api/v1/search                 the best crops for a description
  POST /api/v1/like                   the crops most like one
  GET  /api/v1/crops/KEY/thumbnail    a picture of a crop that was answered
  POST /api/v1/session                a token for a cookie, for browsers; DELETE ends the session
  GET  /api/v1/openapi.json           all this for programs

An error is JSON, {"error": what was expected, what came, what to do, "code": for programs}.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.resources
import logging
from collections.abc import Awaitable, Callable

import fastapi
from fastapi import security
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import tfreid
from tfreid.search import Source
from tfreid.web import api, messages
from tfreid.web.access import Access
from tfreid.web.audit import AuditLog
from tfreid.web.executor import BoundedExecutor, GroupExecutor
from tfreid.web.intake import Intake
from tfreid.web.messages import ApiError
from tfreid.web.middleware import SecurityMiddleware
from tfreid.web.policy import Policy
from tfreid.web.query_log import QueryLog
from tfreid.web.service import SearchService
from tfreid.web.services import JOINED, THREADS, Limits, Services
from tfreid.web.state import Seen
from tfreid.web.thumbnails import Thumbnails

_STATIC = {
  '/static/page.css': ('page.css', 'text/css; charset=utf-8'),
  '/static/page.js': ('page.js', 'text/javascript; charset=utf-8'),
  '/static/icon.svg': ('icon.svg', 'image/svg+xml'),
}
# Threads that wait for the disks of the pictures.
_PICTURE_THREADS = 4
# Long bodies that are read at a time, and that may wait for that.
_UPLOADS, _WAITING_UPLOADS = 8, 256
# Between two looks at whether requests were counted that the log must be told of.
_COUNT_SECONDS = 15.0


def create(
  source: Source,
  *,
  policy: Policy | None = None,
  audit: AuditLog | None = None,
  access: Access | None = None,
  limits: Limits | None = None,
  seen: Seen | None = None,
) -> SecurityMiddleware:
  """The application; it closes the source and the log when it ends.

  Args:
    source: what is searched.
    policy: what is allowed; everything by default.
    audit: where queries are logged; nowhere by default.
    access: who may ask; everybody by default.
    limits: how much at a time.
    seen: crops that were answered; of this process alone by default.

  Raises:
    ValueError: the policy does not fit the source.
    OSError: the source cannot be reached.
  """
  policy, access, limits = policy or Policy(), access or Access(), limits or Limits()
  services = _services(source, policy, audit, access, limits, seen)
  # Neither /docs nor /redoc: they load their scripts from other hosts.
  application = fastapi.FastAPI(
    title='tfreid',
    summary='Find a person by description.',
    description='A description in, a ranked list of person crops out. A high score is not an '
    'identification.',
    version=tfreid.__version__,
    openapi_url='/api/v1/openapi.json',
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,
    lifespan=_lifespan,
  )
  application.state.services = services
  _add_errors(application)
  _add_page(application)
  # Only for the description of the API: `api.signed_in` asks who is there.
  schemes = [
    fastapi.Security(security.HTTPBearer(auto_error=False, description='A token.')),
    fastapi.Security(security.APIKeyCookie(name=api.COOKIE, auto_error=False)),
  ]
  application.include_router(api.router, dependencies=schemes if access.tokens else [])
  application.include_router(api.session_router)
  return SecurityMiddleware(
    application,
    access=access,
    # A form's borders and the other fields come on top of the picture.
    max_bytes=messages.MAX_UPLOAD_BYTES + messages.MAX_JSON_BYTES,
    body_seconds=limits.body_seconds,
    intake=Intake(limits.body_bytes, turns=_UPLOADS, waiting=_WAITING_UPLOADS),
  )


def _services(source, policy, audit, access, limits, seen) -> Services:
  log_thread = BoundedExecutor('log', threads=1, waiting=1, timeout=limits.seconds)
  return Services(
    search=SearchService(source, policy, seen),
    log=QueryLog(audit, log_thread),
    access=access,
    limits=limits,
    thumbnails=Thumbnails(blur=policy.blur_thumbnails),
    searches=_searches(source, limits),
    pictures=BoundedExecutor(
      'pictures', threads=_PICTURE_THREADS, waiting=1024, timeout=limits.seconds
    ),
    logging=log_thread,
  )


def _searches(source, limits) -> BoundedExecutor:
  """Where a source is searched."""
  bounds = {'waiting': limits.waiting, 'timeout': limits.seconds}
  if source.capabilities().joins:
    return GroupExecutor('search', together=limits.threads or JOINED, **bounds)
  return BoundedExecutor('search', threads=limits.threads or THREADS, **bounds)


@contextlib.asynccontextmanager
async def _lifespan(application: fastapi.FastAPI):
  services: Services = application.state.services
  tasks = [asyncio.create_task(_repeat(_COUNT_SECONDS, services.log.write_counts))]
  if services.limits.refresh_seconds:
    refresh = services.search.source.refresh
    tasks.append(
      asyncio.create_task(
        _repeat(services.limits.refresh_seconds, lambda: asyncio.to_thread(refresh))
      )
    )
  try:
    yield
  finally:
    for task in tasks:
      task.cancel()
    services.close()


async def _repeat(seconds: float, function: Callable[[], Awaitable]):
  while True:
    await asyncio.sleep(seconds)
    try:
      await function()
    except Exception:  # the next time may succeed, and what was there goes on
      logging.getLogger(__name__).exception('Looking for changes failed.')


def _add_errors(application: fastapi.FastAPI):
  services: Services = application.state.services

  @application.exception_handler(ApiError)
  async def _(_request, error: ApiError):
    headers = dict(api.NO_STORE)
    if error.status == 503:
      headers['retry-after'] = '1'
    if error.status == 401:
      headers['www-authenticate'] = 'Bearer'
    message = services.search.clean(error.message)
    return JSONResponse({'error': message, 'code': error.code}, error.status, headers)

  @application.exception_handler(HTTPException)
  async def _(_request, error: HTTPException):
    message = {
      404: 'There is nothing here. The page is at /, the API is described at /api/v1/openapi.json.',
      405: 'This address does not take that method. See /api/v1/openapi.json.',
    }.get(error.status_code, 'The request cannot be read.')
    headers = {**api.NO_STORE, **(error.headers or {})}
    return JSONResponse({'error': message, 'code': 'http'}, error.status_code, headers)


def _add_page(application: fastapi.FastAPI):
  folder = importlib.resources.files('tfreid.web') / 'static'
  page = (folder / 'page.html').read_bytes()
  pages = {
    arrival: page.replace(b'data-arrival=""', b'data-arrival="%s"' % arrival)
    for arrival in (b'trusted', b'elsewhere')
  }

  @application.api_route('/', methods=['GET', 'HEAD'], include_in_schema=False)
  async def _(request: fastapi.Request):
    # 'none': typed, or from a bookmark. Without the header nobody knows, and nothing is trusted.
    is_trusted = request.headers.get('sec-fetch-site') in ('none', 'same-origin')
    contents = pages[b'trusted' if is_trusted else b'elsewhere']
    return _static(request, contents, 'text/html; charset=utf-8')

  def add(path, contents, kind):
    @application.api_route(path, methods=['GET', 'HEAD'], include_in_schema=False)
    async def _(request: fastapi.Request):
      return _static(request, contents, kind)

  for path, (file, kind) in _STATIC.items():
    add(path, (folder / file).read_bytes(), kind)

  @application.get('/healthz', include_in_schema=False)
  async def _():
    searches = application.state.services.searches
    state = 'busy' if searches.is_full else 'ok'
    return JSONResponse(
      {'status': state, 'searches': searches.taken}, 503 if searches.is_full else 200, api.NO_STORE
    )


def _static(request: fastapi.Request, contents: bytes, kind: str) -> Response:
  etag = f'"{hashlib.blake2b(contents, digest_size=8).hexdigest()}"'
  headers = {'etag': etag, 'cache-control': 'no-cache', 'vary': 'sec-fetch-site'}
  if request.headers.get('if-none-match') == etag:
    return Response(status_code=304, headers=headers)
  return Response(contents, media_type=kind, headers=headers)
