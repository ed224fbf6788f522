"""Control characters, shown."""

from __future__ import annotations

import json

import pytest

from tfreid.printable import control_character, printable, printable_json

# A clear screen, a window's title, a CSI in one character, a right-to-left override, half a letter.
WORST = 'a\x1b[2J\x1b]0;title\x07b\x9b31m\u202egpj.exe\u2028\r\ttab\x7f\ud800é\u4e2d'


def test_what_a_terminal_would_obey_is_written_out():
  shown = printable(WORST)
  assert shown == (
    'a\\x1b[2J\\x1b]0;title\\x07b\\x9b31m\\u202egpj.exe\\u2028\\r\\ttab\\x7f\\ud800é\u4e2d'
  )
  assert printable('one\ntwo') == 'one\ntwo'
  assert printable('one\ntwo', lines=False) == 'one\\ntwo'
  assert printable(12) == '12'


def test_json_says_the_same_and_holds_no_control_character():
  text = printable_json({'id': WORST})
  assert printable(text) == text
  assert json.loads(text) == {'id': WORST}
  assert 'é' in text


@pytest.mark.parametrize(
  ('text', 'character'),
  [('a\tb', '\\t'), ('a\nb', '\\n'), ('\x00', '\\x00'), ('\x85', '\\x85'), ('\u2028', '\\u2028')],
)
def test_the_first_control_character_is_named(text, character):
  assert control_character(text) == character
  assert control_character('crop "é" \\ \u4e2d 1') == ''
