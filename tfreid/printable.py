"""Texts that came from files, made fit to be printed. Floor 0.

An id or a path may hold anything, also the characters by which a terminal is told to clear itself,
to rename its window or to type. Printed, they must be seen and not obeyed.
"""

from __future__ import annotations

import json
import re
from typing import Any

# C0 without the line feed, DEL and C1 controls; line and paragraph separators; what turns the
# direction of writing, by which a name can look like another one; halves of characters.
_UNSEEN = re.compile(
  '[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)
_CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029]')


def printable(text: object, *, lines: bool = True) -> str:
  r"""The text with control characters written out, such as '\x1b' and '\u202e'.

  Args:
    text: anything; its `str` is taken.
    lines: line feeds stay, as in a message of several lines; otherwise they are '\n'.
  """
  shown = _UNSEEN.sub(_escaped, str(text))
  return shown if lines else shown.replace('\n', '\\n')


def printable_json(data: Any, *, indent: int | None = 1) -> str:
  """JSON for a terminal or a program: control characters as JSON escapes, other letters as is."""
  text = json.dumps(data, indent=indent, ensure_ascii=False)
  # JSON itself escapes those below a space; line feeds are the layout.
  return _UNSEEN.sub(lambda match: f'\\u{ord(match[0]):04x}', text)


def control_character(text: str) -> str:
  r"""The first control character in a text, written out: '\t'; '' if there is none.

  Those are tabs, line feeds and other C0, DEL, C1, and the separators of lines and paragraphs.
  """
  match = _CONTROL.search(text)
  return repr(match[0])[1:-1] if match else ''


def _escaped(match: re.Match[str]) -> str:
  number = ord(match[0])
  short = {9: '\\t', 13: '\\r'}
  return short.get(number) or (f'\\x{number:02x}' if number < 256 else f'\\u{number:04x}')
