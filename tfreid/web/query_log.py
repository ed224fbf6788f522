"""What the audit log is told of a request, and how much. Floor 5."""

from __future__ import annotations

import asyncio
import collections
import datetime
import hashlib
import ipaddress
import json
import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tfreid.web.audit import AuditLog, UnwritableError
from tfreid.web.executor import BoundedExecutor, BusyError, TooSlowError
from tfreid.web.messages import ApiError

# Bytes of JSON that a field may take in a line: of what was answered, and of what was not.
_ANSWERED_BYTES, _OTHER_BYTES = 8192, 1024
# Lines that one address gets in a minute, by outcome; further ones are counted.
_LINES_PER_MINUTE = {'unauthorized': 10, 'invalid': 1000, 'busy': 1000}
# Addresses that are counted apart from each other.
_ADDRESSES = 1000
_MINUTE = 60.0
# Lines that may wait while others are written.
_WAITING = 1024
_TOO_SLOW = 'The audit log is too slow, and what is not logged is not answered.'


class QueryLog:
  """Writes entries about requests to an audit log, bounded in size and in number.

  Whoever asks without a token, or for nothing that can be answered, costs a bounded number of lines
  in a minute, each of a bounded size; so nobody fills the disk, without which nothing is answered.
  """

  def __init__(self, audit: AuditLog | None, executor: BoundedExecutor):
    """Begins without entries.

    Args:
      audit: where to; None for nowhere.
      executor: whose thread waits for the disk.
    """
    self.audit = audit
    self._executor = executor
    self._floods = FloodCounter()
    # Lines, and who waits for each; and what writes them, if something does.
    self._waiting: list[tuple[Mapping[str, Any], asyncio.Future[None]]] = []
    self._writing: asyncio.Future[None] | None = None

  async def write(self, entry: Mapping[str, Any]) -> None:
    """Writes an entry, or counts it where there are too many of its kind.

    Raises:
      ApiError: it could not be written.
    """
    audit = self.audit
    if audit is None:
      return
    counted = self._floods.ended()
    if self._floods.admits(entry):
      counted.append(bounded(entry))
    for line in counted:
      await self._write(audit, line)

  async def write_counts(self) -> None:
    """Writes how many requests were counted in the minutes that are over.

    Raises:
      ApiError: it could not be written.
    """
    audit = self.audit
    if audit is not None:
      for line in self._floods.ended():
        await self._write(audit, line)

  def close(self) -> None:
    """Writes what was counted until now, and closes the audit log."""
    if self.audit is None:
      return
    try:
      for line in self._floods.ended(everything=True):
        self.audit.write(line)
    except UnwritableError as error:
      logging.getLogger(__name__).error('%s', error)
    self.audit.close()

  async def _write(self, audit: AuditLog, line: Mapping[str, Any]):
    """Returns when a line is on the disk, with those that came while others were written."""
    if len(self._waiting) >= _WAITING:
      raise ApiError(503, 'audit', _TOO_SLOW)
    written = asyncio.get_running_loop().create_future()
    self._waiting.append((line, written))
    if self._writing is None:
      self._writing = asyncio.ensure_future(self._write_waiting(audit))
    try:
      await asyncio.wait_for(written, self._executor.timeout)
    except UnwritableError as error:
      logging.getLogger(__name__).error('%s', error)
      raise ApiError(503, 'audit', str(error)) from error
    except (BusyError, TooSlowError, asyncio.TimeoutError) as error:
      raise ApiError(503, 'audit', _TOO_SLOW) from error

  async def _write_waiting(self, audit: AuditLog):
    """Writes lines until none waits, all that wait at a time."""
    try:
      while self._waiting:
        waiting, self._waiting = self._waiting, []
        # Nobody waits any more for those that have waited too long: they were told so.
        waiting = [(line, written) for line, written in waiting if not written.done()]
        if not waiting:
          continue
        outcomes: Sequence[Exception | None]
        try:
          outcomes = await self._executor.run(_write_lines, audit, [line for line, _ in waiting])
        except Exception as error:  # it belongs to whoever waits
          outcomes = [error] * len(waiting)
        for (_, written), outcome in zip(waiting, outcomes):
          if written.done():
            continue
          if outcome is None:
            written.set_result(None)
          else:
            written.set_exception(outcome)
    finally:
      self._writing = None


def _write_lines(
  audit: AuditLog, lines: Sequence[Mapping[str, Any]]
) -> Sequence[UnwritableError | None]:
  """Writes lines together, or else each alone; returns what was wrong with each."""
  try:
    audit.write(*lines)
  except UnwritableError as error:
    # What is in the file would be there twice.
    if len(lines) == 1 or error.appended:
      return [error] * len(lines)
    return [error for line in lines for error in _write_lines(audit, [line])]
  return [None] * len(lines)


class FloodCounter:
  """Decides which entries get a line of their own, and counts the others by address and outcome."""

  def __init__(self) -> None:
    """Begins with none."""
    self._lock = threading.Lock()
    self._minutes: collections.OrderedDict[tuple[str, str], _Minute] = collections.OrderedDict()

  def admits(self, entry: Mapping[str, Any]) -> bool:
    """Whether an entry gets a line of its own; if not, it is counted."""
    outcome = entry.get('outcome', '')
    limit = _LINES_PER_MINUTE.get(outcome)
    if limit is None:
      return True
    key = outcome, _network(entry['who']['address'])
    with self._lock:
      if key not in self._minutes and len(self._minutes) >= _ADDRESSES:
        key = outcome, 'others'
      minute = self._minutes.setdefault(key, _Minute())
      minute.lines += 1
      if minute.lines <= limit:
        return True
      minute.actions[entry.get('action', '')] += 1
      minute.last = _now()
      return False

  def ended(self, *, everything: bool = False) -> list[dict[str, Any]]:
    """Lines about the minutes that are over, which are forgotten; of all minutes, if asked for."""
    lines: list[dict[str, Any]] = []
    now = time.monotonic()
    with self._lock:
      # In the order of their beginnings.
      while self._minutes:
        (outcome, address), minute = next(iter(self._minutes.items()))
        if now < minute.started + _MINUTE and not everything:
          break
        self._minutes.popitem(last=False)
        if minute.actions:
          lines.append(
            {
              'time': minute.last,
              'request': secrets.token_hex(8),
              'who': {'address': address},
              'action': 'counted',
              'outcome': outcome,
              'count': sum(minute.actions.values()),
              'actions': dict(minute.actions),
            }
          )
    return lines


class _Minute:
  """What one address did in a minute."""

  def __init__(self) -> None:
    self.started = time.monotonic()
    self.lines = 0
    self.actions: collections.Counter[str] = collections.Counter()
    self.last = ''


def begin(address: str, action: str) -> dict[str, Any]:
  """The first part of an entry: when, who, what."""
  return {
    'time': _now(),
    'request': secrets.token_hex(8),
    'who': {'address': address},
    'action': action,
  }


def bounded(entry: Mapping[str, Any]) -> dict[str, Any]:
  """An entry whose fields have at most some thousand bytes each.

  A longer field becomes {"begins": its first part, "bytes": of its JSON, "sha256": of its JSON}.
  """
  most = _ANSWERED_BYTES if entry.get('outcome') == 'answered' else _OTHER_BYTES
  # Where all of it is no longer than a field may be, no field is.
  if len(_as_json(entry)) <= most:
    return dict(entry)
  return {name: _bounded_field(value, most) for name, value in entry.items()}


def _as_json(value):
  return json.dumps(value, ensure_ascii=True, separators=(',', ':'))


def _bounded_field(value, most):
  text = _as_json(value)
  if len(text) <= most:
    return value
  digest = hashlib.sha256(text.encode()).hexdigest()
  return {'begins': text[: most // 2], 'bytes': len(text), 'sha256': digest}


def _network(address: str) -> str:
  """An address, or the network of one: whoever has one address of IPv6 has 2^64 of them."""
  try:
    parsed = ipaddress.ip_address(address)
  except ValueError:
    return address
  if parsed.version == 4:
    return address
  return str(ipaddress.ip_network((int(parsed), 64), strict=False))


def _now() -> str:
  return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='milliseconds')
