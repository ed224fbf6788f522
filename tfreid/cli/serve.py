"""Serves the page in the browser and its JSON API, for an exported model, an index or a TF Serving.

  tfreid serve --model=saved_models/demo
  tfreid serve --index=indexes/depot --audit_log=audit.jsonl --policy=policy.json
  tfreid serve --index=indexes/depot --host=0.0.0.0 --token_file=tokens.txt
  tfreid serve --server=grpc://localhost:8500 --model_name=people

Only this machine can reach it unless --host is given; then users need tokens. There is no
encryption: for other machines, put it behind a proxy that encrypts (docs/web.md).
"""

import dataclasses
import gc
import ipaddress
import logging
import os
import re
import signal
import socket
import sys
import urllib.parse

from absl import flags

from tfreid import threads
from tfreid.cli import source_flags, startup

flags.adopt_module_key_flags(source_flags)
_SERVER_TIMEOUT = flags.DEFINE_float(
  'server_timeout',
  10.0,
  'With --server: seconds for a call to it. A search may take some calls.',
  lower_bound=0.001,
)
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to listen at.')
_PORT = flags.DEFINE_integer(
  'port', 8000, '0: one that is free; it is printed.', lower_bound=0, upper_bound=65535
)
_TOKEN = flags.DEFINE_multi_string(
  'token',
  [],
  'Secret of a user, NAME:SECRET, or just a secret. Other users of this machine can read it in the '
  'list of processes: better give --token_file.',
)
_TOKEN_FILE = flags.DEFINE_string('token_file', '', 'File with a line NAME:SECRET for each user.')
_ALLOW_ANONYMOUS = flags.DEFINE_bool(
  'allow_anonymous', False, 'With --host: let anybody ask who can reach this machine.'
)
_ALLOWED_HOSTS = flags.DEFINE_list(
  'allowed_hosts', [], 'Names by which browsers may call this server, besides localhost.'
)
_POLICY = flags.DEFINE_string('policy', '', 'JSON file with what is allowed; see docs/web.md.')
_AUDIT_LOG = flags.DEFINE_string('audit_log', '', 'File to append a line to for each query.')
_USER_HEADER = flags.DEFINE_string(
  'user_header', '', 'Header in which a proxy, which must overwrite it, names the user to the log.'
)
_RESIDENT = flags.DEFINE_bool('resident', True, 'With --index: keep its concepts in memory.')
_PUBLIC_URL = flags.DEFINE_string(
  'public_url',
  '',
  'How browsers reach this server through a proxy that encrypts: https://depot.example. Cookies '
  'are then sent over HTTPS only, and the name need not be in --allowed_hosts.',
)
_TRUSTED_PROXIES = flags.DEFINE_list(
  'trusted_proxies',
  [],
  'Addresses of proxies whose headers X-Forwarded-For and X-Forwarded-Proto say who asks, and how; '
  'they must overwrite these headers.',
)
_REFRESH = flags.DEFINE_float(
  'refresh_seconds',
  5.0,
  'How often to look for new crops (--index) or another version (--server); 0: never.',
  lower_bound=0,
)
_PROCESSES = flags.DEFINE_integer(
  'processes',
  1,
  'Processes that answer, each with the model and the index in memory. Python keeps little more '
  'than one core busy in each. 0: one for each core.',
  lower_bound=0,
)
_THREADS = flags.DEFINE_integer(
  'threads',
  0,
  'Searches at a time, of each process. 0: 64 of an index, which joins those that come together '
  'into one scan, and 2 of a model.',
  lower_bound=0,
)
_QUEUE = flags.DEFINE_integer(
  'queue', 128, 'Searches that may wait; more are sent away.', lower_bound=0
)
_TIMEOUT = flags.DEFINE_float(
  'timeout', 30.0, 'Seconds for a search, waiting included.', lower_bound=0.1
)


def main(argv):
  """Loads what is searched, and serves until SIGTERM or Ctrl-C."""
  startup.no_arguments(argv)
  # Before NumPy is loaded: requests keep the cores busy already, and threads of OpenBLAS that wait
  # for a core in each of them cost more than they compute.
  os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
  source_flags.check()
  with startup.clear_errors():
    # What can be wrong is found before the model is loaded, which takes seconds.
    from tfreid.web import supervisor

    told = supervisor.assignment()
    tokens = told.tokens if told else _tokens()
    if not told:
      _check_access(tokens)
      _check_proxy()
    try:
      import fastapi  # noqa: F401
      import uvicorn  # noqa: F401
    except ImportError as error:
      raise ImportError(f"{error}. Install the extra: pip install 'tfreid[serve]'.") from error
    from tfreid.web import policy

    rules = policy.read(_POLICY.value) if _POLICY.value else policy.Policy()
    # The library speaks by the standard logging, whose root is absl's here.
    logging.getLogger('tfreid').setLevel(logging.INFO)
    if told:
      _serve(socket.socket(fileno=told.listening), rules, tokens, told)
      return
    processes = _PROCESSES.value or threads.usable_cores()
    sockets = _listen(processes)
    try:
      if processes > 1:
        _supervise(sockets, tokens)
      else:
        _serve(sockets[0], rules, tokens)
    finally:
      for listening in sockets:
        listening.close()


def _supervise(sockets, tokens):
  """Starts a process for each socket, and watches over them until it is told to end."""
  import secrets

  from tfreid.web import supervisor

  command = [*startup.program('serve'), *sys.argv[1:]]
  key = secrets.token_bytes(32)
  watching = supervisor.Supervisor(command, sockets, key=key, tokens=tokens)

  def end(*_):
    watching.should_end = True

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, end)

  def opened():
    for listening in sockets:
      listening.listen(2048)
    _announce(sockets[0], f' ({len(sockets)} processes)')

  status = watching.run(opened)
  if status:
    sys.exit(status)
  print('Ended.', flush=True)


def _announce(listening, about=''):
  """Says where the page is."""
  if not _AUDIT_LOG.value:
    print('Searches are not logged; --audit_log=FILE logs them.')
  host, port = listening.getsockname()[:2]
  if ipaddress.ip_address(host).is_unspecified:
    host = socket.gethostname()
  print(f'Open http://{f"[{host}]" if ":" in host else host}:{port}/{about}', flush=True)


def _serve(listening, rules, tokens, told=None):
  """Serves at a socket until it is told to end, alone or as one of several workers."""
  import uvicorn

  from tfreid.web import audit

  if told and told.number:
    # The first one has said it.
    logging.getLogger(audit.__name__).setLevel(logging.ERROR)
  log = audit.AuditLog(_AUDIT_LOG.value) if _AUDIT_LOG.value else None
  server = uvicorn.Server(_server_configuration(_application(rules, tokens, log, told), told))
  # What is there now stays: the modules, TensorFlow's among them, and what is searched. Looking for
  # garbage in it took a seventh of the time of a busy server.
  gc.collect()
  gc.freeze()

  # uvicorn ends at a signal, and then sends it once more to whoever was there before: this, which
  # also hears those that come before uvicorn does. A server that was asked to end has ended well.
  def end(*_):
    server.should_exit = True

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, end)
  # From here on, who comes waits until the server takes up its work, and is not turned away.
  listening.listen(2048)
  if told:
    told.when_left(end)
    told.ready()
  else:
    _announce(listening)
  server.run(sockets=[listening])
  if not told:
    print('Ended.', flush=True)
  sys.stderr.flush()
  # The source and the log are closed. What is left is Python taking TensorFlow apart, object by
  # object, which can take longer than whoever stops a service waits before it kills.
  os._exit(0)


def _application(rules, tokens, log, told=None):
  """The ASGI application for a policy, the secrets of users and an audit log.

  Args:
    rules: the policy.
    tokens: the secrets.
    log: the audit log, or None.
    told: what it shares with other processes, or None if there are none.
  """
  from tfreid.web import access, state
  from tfreid.web import app as web

  parts = told.processes if told else 1
  shared = state.SharedState(told.folder, number=told.number, processes=parts) if told else None
  of_sessions = {'key': told.key, 'ended': shared.ended} if shared else {}
  names = [*_ALLOWED_HOSTS.value, _HOST.value, socket.gethostname()]
  return web.create(
    source_flags.opened(timeout=_SERVER_TIMEOUT.value, resident=_RESIDENT.value, check=True),
    policy=rules,
    audit=log,
    access=access.Access(
      tokens=tokens,
      public_url=_PUBLIC_URL.value,
      user_header=_USER_HEADER.value,
      hosts=frozenset(name.strip().lower() for name in names),
      **of_sessions,
    ),
    limits=web.Limits(
      threads=_THREADS.value,
      waiting=-(-_QUEUE.value // parts),
      seconds=_TIMEOUT.value,
      body_bytes=web.Limits.body_bytes // parts,
      refresh_seconds=_REFRESH.value,
    ),
    seen=shared.seen if shared else None,
  )


def _server_configuration(application, told=None):
  """How uvicorn serves an application, alone or in one of several workers."""
  import uvicorn

  from tfreid.web import connections

  limits = connections.ConnectionLimits(
    total=_most_connections(), exempt=frozenset(_TRUSTED_PROXIES.value)
  )
  if told:
    limits = dataclasses.replace(
      limits,
      total=max(1, limits.total // told.processes),
      per_address=max(1, limits.per_address // told.processes),
    )
  return uvicorn.Config(
    application,
    log_config=None,
    # A warning of uvicorn's tells that somebody has sent what is not HTTP.
    log_level='error',
    access_log=False,
    server_header=False,
    # Who asks is who is connected; what a header says of it can be invented.
    proxy_headers=bool(_TRUSTED_PROXIES.value),
    forwarded_allow_ips=_TRUSTED_PROXIES.value,
    ws='none',
    http=connections.protocol(limits),
    timeout_keep_alive=30,
    timeout_graceful_shutdown=10,
    h11_max_incomplete_event_size=32 * 1024,
  )


def _most_connections():
  """How many connections there may be at a time, by the files that this process may open."""
  import resource

  from tfreid.web import connections

  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
  if soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
  # An index has some files for each of its parts.
  return max(16, min(connections.ConnectionLimits.total, max(soft, wanted) - 500))


def _check_proxy():
  """Refuses what cannot be right about a proxy.

  Raises:
    ValueError: the message says what was expected.
  """
  for address in _TRUSTED_PROXIES.value:
    try:
      ipaddress.ip_address(address)
    except ValueError as error:
      raise ValueError(
        f"--trusted_proxies: expected IP addresses such as 10.0.0.2, not '{address}'."
      ) from error
  url = urllib.parse.urlsplit(_PUBLIC_URL.value)
  if _PUBLIC_URL.value and (url.scheme not in ('http', 'https') or not url.hostname):
    raise ValueError(
      f"--public_url: expected an address such as https://depot.example, not '{_PUBLIC_URL.value}'."
    )


def _listen(count):
  """Sockets bound to --host and --port; nobody is answered before the server runs.

  Args:
    count: how many; Linux spreads connections over them.

  Raises:
    ValueError: --host is no address.
    OSError: another server listens there, or this user may not.
  """
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
      _HOST.value, _PORT.value, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
  except socket.gaierror as error:
    raise ValueError(f"--host: '{_HOST.value}' is no address: {error.strerror}.") from error

  def bound(address, *, shared):
    # With its protocol by name: otherwise asyncio leaves TCP's waiting for more to send switched
    # on, and each answer takes 40 ms longer.
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
      listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
      listening.bind(address)
    except OSError as error:
      listening.close()
      raise OSError(
        f'Cannot listen at {_HOST.value}, port {_PORT.value}: {error.strerror}. Choose another '
        '--port (0: one that is free).'
      ) from error
    return listening

  first = bound(address, shared=False)
  if count == 1:
    return [first]
  if sys.platform != 'linux':
    return [first] * count  # elsewhere one socket is taken from by all, who may get unequal parts
  # It was alone there, and so no other server would get a part of what comes. Now others may join.
  address = first.getsockname()
  first.close()
  return [bound(address, shared=True) for _ in range(count)]


def _tokens():
  """Name of a user to secret.

  Raises:
    ValueError: a line that is none, a name twice, or a secret that could be guessed.
  """
  lines = [('--token', text) for text in _TOKEN.value]
  if _TOKEN_FILE.value:
    if os.stat(_TOKEN_FILE.value).st_mode & 0o077:
      logging.getLogger(__name__).warning('Others can read %s: chmod 600 it.', _TOKEN_FILE.value)
    with open(_TOKEN_FILE.value, encoding='utf-8-sig') as file:
      for number, line in enumerate(file, start=1):
        if line.strip() and not line.startswith('#'):
          lines.append((f'{_TOKEN_FILE.value}, line {number}', line.strip()))
  tokens = {}
  for place, text in lines:
    name, colon, secret = text.partition(':')
    if not colon:
      name, secret = 'token', text
    if not re.fullmatch(r'[\w.@-]{1,100}', name):
      raise ValueError(f'{place}: expected NAME:SECRET, the name of letters, digits and . _ @ -')
    if len(secret) < 16 or re.search(r'\s', secret):
      raise ValueError(
        f'{place}: the secret of {name} has {len(secret)} characters; take at least 16, and no '
        'spaces. `openssl rand -hex 24` makes one.'
      )
    if name in tokens:
      raise ValueError(f"{place}: there is a token of '{name}' already; give each user a name.")
    tokens[name] = secret
  if _TOKEN_FILE.value and not tokens:
    raise ValueError(f'{_TOKEN_FILE.value} has no line NAME:SECRET.')
  return tokens


def _check_access(tokens):
  """Refuses to be open to others by accident.

  Raises:
    ValueError: others could reach it, and nobody would ask who they are.
  """
  try:
    local = all(
      ipaddress.ip_address(str(resolved[4][0]).partition('%')[0]).is_loopback
      for resolved in socket.getaddrinfo(_HOST.value, None)
    )
  except (OSError, ValueError):
    local = False
  if local:
    return
  if not tokens and not _ALLOW_ANONYMOUS.value:
    raise ValueError(
      f'With --host={_HOST.value} others than this machine can ask. Give --token_file=FILE, so '
      'that they must say who they are, or --allow_anonymous if anybody may.'
    )
  print(
    f'Warning: others than this machine can reach {_HOST.value}, and what is sent is not '
    'encrypted. Put it behind a proxy that encrypts.'
    + ('' if tokens else ' Nobody is asked who he is.'),
    file=sys.stderr,
  )
