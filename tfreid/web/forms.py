"""Reads the form of an upload: multipart/form-data, as browsers and curl send it. Floor 5.

The body is in memory anyway and is cut by searching for its boundary, which takes a millisecond for
as much as may be sent. A parser that walks through it takes a hundred, in which nobody is answered.
"""

from __future__ import annotations

import email.message
import email.policy

# Bytes of the headers of a part.
_MAX_HEADERS = 8192
# Characters of a value: the time to take one apart grows with their square.
_MAX_VALUE = 1000
# As RFC 2046 has it.
_MAX_BOUNDARY = 70


class FormError(ValueError):
  """The body is not a form, or not a whole one."""


def parse(content_type: str, body: bytes, *, max_parts: int) -> dict[str, bytes]:
  """The contents of a form by the names of its parts.

  Args:
    content_type: the header of the request, with the boundary.
    body: of the request.
    max_parts: that the form may have.

  Raises:
    FormError: it is damaged, not complete, or has more parts or the same part twice.
  """
  boundary = _parameter(content_type, 'content-type', 'boundary')
  if not 0 < len(boundary) <= _MAX_BOUNDARY or not boundary.isascii():
    raise FormError('no boundary')
  delimiter = b'\r\n--' + boundary.encode()
  # In front of the first boundary there may be a preamble, and behind the last one anything.
  _, *pieces = (b'\r\n' + body).split(delimiter, max_parts + 1)
  form: dict[str, bytes] = {}
  for piece in pieces:
    if piece.startswith(b'--'):
      return form
    head, blank, contents = piece.partition(b'\r\n\r\n')
    if not blank or len(head) > _MAX_HEADERS or not head.startswith(b'\r\n'):
      raise FormError('a part without headers')
    name = _name(head)
    if name in form:
      raise FormError('the same part twice')
    form[name] = contents
  raise FormError('no end, or too many parts')


def _name(head: bytes) -> str:
  for line in head.split(b'\r\n'):
    field, _, value = line.partition(b':')
    if field.strip().lower() == b'content-disposition':
      # Browsers send names in UTF-8; which ones there are is for the caller.
      name = _parameter(value.decode('utf-8', 'replace'), 'content-disposition', 'name')
      if name:
        return name
  raise FormError('a part without a name')


def _parameter(value: str, header: str, name: str) -> str:
  """A parameter of the value of a header, '' if it has none, or if the value is far too long."""
  if len(value) > _MAX_VALUE:
    return ''
  message = email.message.Message(policy=email.policy.compat32)
  message[header] = value.replace('\r', ' ').replace('\n', ' ').strip()
  parameter = message.get_param(name, '', header)
  return parameter if isinstance(parameter, str) else ''
