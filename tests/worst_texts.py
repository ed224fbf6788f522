"""Every door through which a stranger's text comes in, and the texts that cost the most there.

    python tests/worst_texts.py            feeds each door the texts of WORST
    python tests/worst_texts.py search     looks for worse ones, and prints them

A door gets a text of its full length, where it must do its work, and one of a thousand times that
length, where it must refuse. `search` measures how the time of a door grows with the length of a
text made of a few random pieces, repeated: what costs most per character is printed.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from tfreid.data import market1501, peta, times, words
from tfreid.index import filters
from tfreid.search import client
from tfreid.search.client import grpc_client
from tfreid.serving import errors
from tfreid.web import messages


class Door(NamedTuple):
  """Something that reads a text.

  Attributes:
    read: the text -> whatever; a ValueError or ApiError refuses it.
    length: the longest text that it reads, or for which it promises to be quick.
  """

  read: Callable[[str], object]
  length: int


def _fields(text: str) -> object:
  """The query's own fields: names and values, ids, purpose."""
  for data in (
    {'query': {text: 'yes'}},
    {'query': {'hat': text}},
    {'must': text},
    {'must': {'hat': text}},
    {'must_not': {text: 'yes'}},
    {'exclude': [text]},
    {'where': text},
    {'words': text},
    {'purpose': text},
  ):
    try:
      messages.check(messages.SearchRequest, data)
    except messages.ApiError:
      continue
  return None


DOORS = {
  'words of PETA': Door(lambda text: words.parse(text, peta.SCHEMA), words.MAX_CHARACTERS),
  'words of Market': Door(lambda text: words.parse(text, market1501.SCHEMA), words.MAX_CHARACTERS),
  'a value': Door(lambda text: peta.SCHEMA.encode_query({'hair_color': text}), 1000),
  'a name': Door(lambda text: peta.SCHEMA.encode_query({text: 'yes'}), 1000),
  'a filter': Door(
    lambda text: filters.check(filters.parse(text), {'camera': ['number'], 'site': ['text']}),
    filters.MAX_CHARACTERS,
  ),
  'a list in a filter': Door(
    lambda text: filters.parse(f'camera in [{text}]'), filters.MAX_CHARACTERS - 20
  ),
  'a text in a filter': Door(
    lambda text: filters.parse(f'site == "{text}"'), filters.MAX_CHARACTERS - 20
  ),
  'a time': Door(times.canonical, 1000),
  'the fields of a request': Door(_fields, messages.MAX_WORDS),
  'a body': Door(lambda text: messages.read_json(text.encode()), messages.MAX_JSON_BYTES),
  'an error of a server': Door(client._cleaned, 4000),
  'an error of gRPC': Door(grpc_client._reason, 4000),
  'an error of TensorFlow': Door(errors.plain, 4000),
}

# Found by `search`, or known from other programs; each is repeated to the length that is wanted.
WORST = (
  ' ', ' ! =', '! =', '=', '!', '! ', '\t', ',', 'a', 'a ', 'no ', 'and ', 'purpel top,',
  'no hat and ', 'upper_color=,', 'uper_colr=re,', 'bkac pkac ', 'red ', 'sohrt hiar,', 'gender',
  '(', '[', '{', '([{', '-', 'not ', '"', "'", '\\', '"\\', '\\"', '\u201c', '\u2018\u201c', '#',
  'a.', 'a==', '1,', '"a",', 'a==1 or ', 'a in ', '1<', 'lambda:', 'a if a else ', '2024-01-01T',
  '00:', '2024-01-01T00:00:00.', '=<', '<>', 'a\u0301', '\u0301\u0316', '\u0316\u0301', '\ufb01',
  '\u0130', '\ud55c', '\u1100\u1161\u11a8', '{{function_node', '{{', '[[{{node', ' [Op:', '  (0) ',
  '"a":', 'failed to connect to :', 'failed to connect to a:', 'failed to connect to ', '{"a":',
  '[1,', '\\u', '\n',
)  # fmt: skip
# Of the texts that are too long to be read.
_LONGEST = 2**25


def repeated(unit: str, length: int) -> str:
  """The unit, repeated to a length."""
  return (unit * (length // len(unit) + 1))[:length]


def seconds(door: Door, text: str) -> float:
  """Processor time that a door takes for a text."""
  started = time.process_time()
  try:
    door.read(text)
  except (ValueError, messages.ApiError):
    pass  # Refused, which is an answer. Anything else is a fault.
  return time.process_time() - started


def feed() -> None:
  """Feeds each door; prints the slowest text of each."""
  for name, door in DOORS.items():
    longest = [(seconds(door, repeated(unit, door.length)), unit) for unit in WORST]
    refused = [
      (seconds(door, repeated(unit, min(1000 * door.length, _LONGEST))), unit)
      for unit in (' ', ' ! =', '(', '\u0316\u0301')
    ]
    (slow, unit), (slow_refused, _) = max(longest), max(refused)
    print(f'{name}: {slow:.3f} s ({unit!r}); 1,000 times as long: {slow_refused:.3f} s', flush=True)


def search(rounds: int = 300) -> None:
  """Looks for the texts that take each door longest, and how that grows with their length."""
  draw = random.Random(time.time())
  pieces = (*WORST, *'ab01.:;!?=<>&|()[]{}"\'\\#\n\t-_', 'or ', 'hat', 'yes', 'is None', '\u00e9')
  for name, door in DOORS.items():
    found = []
    for _ in range(rounds):
      unit = ''.join(draw.choice(pieces) for _ in range(draw.randint(1, 4)))
      start, end = draw.choice(('', 'hat', '"', '(')), draw.choice(('', '=', ')', '"', 'x'))
      half = seconds(door, start + repeated(unit, door.length // 2 - 9) + end)
      whole = seconds(door, start + repeated(unit, door.length - 9) + end)
      found.append((whole, whole / max(half, 1e-6), start, unit, end))
    for whole, growth, *text in sorted(found, reverse=True)[:3]:
      print(f'{name}: {whole:.3f} s, {growth:.1f} times that of half the length: {text}')


if __name__ == '__main__':
  search() if sys.argv[1:] == ['search'] else feed()
