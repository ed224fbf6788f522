"""ISO 8601 times in one form, so that texts are ordered as the instants they name. Floor 1.

    2024-03-01 09:15            2024-03-01T09:15:00
    2024-03-01T09:15:00.500     2024-03-01T09:15:00.5
    2024-03-01T09:15:00+01:00   2024-03-01T08:15:00+00:00
    2024-03-01T08:15:00Z        2024-03-01T08:15:00+00:00

In this form, equal instants are equal texts, and an earlier one is the smaller text: '+' comes
before '.', which comes before digits. Dates and beginnings of times ('2024-03') fit in as texts.
A time without an offset is the time of some place, and has no order among those that have one.
"""

from __future__ import annotations

import datetime
import re

_TIME = re.compile(
  r'(\d{4}-\d\d-\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?'
  r'(?: ?([Zz]|[+-]\d\d(?::?\d\d)?))?',
  re.ASCII,
)
_SHORTEST, _LONGEST = len('2024-03-01T09:15'), 40


def canonical(text: str) -> str | None:
  """A time in the form in which times are compared; None where the text is no whole time.

  Args:
    text: a date and a time of day as in ISO 8601, with a T or a blank between them.
  """
  if not _SHORTEST <= len(text) <= _LONGEST or text[4] != '-':
    return None
  match = _TIME.fullmatch(text)
  if match is None:
    return None
  date, hour, minute, second, fraction, offset = match.groups()
  try:
    moment = datetime.datetime.fromisoformat(f'{date}T{hour}:{minute}:{second or "00"}')
    if offset:
      moment -= _minutes(offset)
  except (ValueError, OverflowError):
    return None
  fraction = (fraction or '').rstrip('0')
  return f'{moment.isoformat()}{"." if fraction else ""}{fraction}{"+00:00" if offset else ""}'


def key(text: str) -> str:
  """What a text is compared by: a time in the form of `canonical`, any other as it is."""
  # Most times are in that form already.
  if len(text) == 19 and text[10] == 'T' and text[16] == ':':
    return text
  return canonical(text) or text


def has_offset(time: str) -> bool:
  """Whether a time, as `canonical` writes it, is an instant: it was given with an offset."""
  return time.endswith('+00:00')


def _minutes(offset: str) -> datetime.timedelta:
  if offset in 'Zz':
    return datetime.timedelta(0)
  hours, minutes = int(offset[1:3]), int(offset[3:].lstrip(':') or 0)
  if hours > 23 or minutes > 59:
    raise ValueError(offset)
  size = datetime.timedelta(hours=hours, minutes=minutes)
  return -size if offset[0] == '-' else size
