"""Damages files as disks and copying do: one bit flipped, or the end cut off.

What reads a damaged file must answer as if nothing had happened, because what was hit does not
matter, or refuse with a sentence (ValueError or OSError). A wrong answer without a word and a
traceback are the two faults that `trials` looks for.
"""

from __future__ import annotations

import collections
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

KINDS = ('flip', 'cut', 'empty', 'remove')


class Damage(NamedTuple):
  """One accident to one file.

  Attributes:
    path: of the file.
    kind: 'flip' a bit at `place`, 'cut' off what comes from `place` on, 'empty', or 'remove'.
    place: in bytes from the beginning.
    bit: 0 ... 7, of a flip.
  """

  path: str
  kind: str
  place: int = 0
  bit: int = 0

  def applied(self, content: bytes) -> bytes | None:
    """What the file holds after it; None if there is no file any more."""
    if self.kind == 'flip':
      changed = content[self.place] ^ 1 << self.bit
      return content[: self.place] + bytes([changed]) + content[self.place + 1 :]
    return {'cut': content[: self.place], 'empty': b'', 'remove': None}[self.kind]


def files_below(folder: str | os.PathLike) -> list[str]:
  """Paths of all regular files below a folder, sorted."""
  found = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]
  return sorted(path for path in found if os.path.isfile(path) and not os.path.islink(path))


def accidents(
  paths: Sequence[str], count: int, *, seed: int = 0, kinds: Sequence[str] = ('flip', 'cut')
) -> Iterator[Damage]:
  """So many accidents: each file in turn, the kind and the place drawn.

  Half of the places are among the first and the last 64 bytes, where headers and trailers are.

  Args:
    paths: of the files; empty ones are left alone.
    count: how many.
    seed: of the draws.
    kinds: of `KINDS`, each as often.
  """
  draw = random.Random(seed)
  sizes = {path: os.path.getsize(path) for path in paths}
  full = [path for path in paths if sizes[path]]
  for number in range(count):
    path = full[number % len(full)]
    size = sizes[path]
    place = draw.randrange(size)
    if draw.random() < 0.5:
      place = draw.choice([draw.randrange(min(64, size)), size - 1 - draw.randrange(min(64, size))])
    yield Damage(path, draw.choice(list(kinds)), place, draw.randrange(8))


def trials(
  damages: Iterator[Damage] | Sequence[Damage],
  use: Callable[[], Any],
  *,
  same: Callable[[Any], bool],
  refusals: tuple[type[Exception], ...] = (ValueError, OSError),
  restore: Callable[[], None] = lambda: None,
) -> tuple[collections.Counter, list[str]]:
  """Damages a file, uses what it belongs to, and mends it again, once for each damage.

  Args:
    damages: what to do, one at a time.
    use: opens and asks what the files belong to.
    same: whether an answer of `use` is the right one.
    refusals: exceptions that the command line tells as a sentence.
    restore: called after each trial, when the file is whole again: what `use` wrote is to go.

  Returns:
    How many were 'refused', answered the 'same', 'silent' (another answer without a word) or a
    'traceback'; and a line for each of the last two.
  """
  counts: collections.Counter = collections.Counter()
  faults = []
  for damage in damages:
    with open(damage.path, 'rb') as file:
      content = file.read()
    changed = damage.applied(content)
    if changed is None:
      os.remove(damage.path)
    else:
      with open(damage.path, 'wb') as file:
        file.write(changed)
    try:
      answer = use()
    except refusals as error:
      # Of one word nobody learns which file it is and what to do.
      outcome = 'refused' if len(str(error).split()) > 3 else 'traceback'
      words = repr(error)
    except Exception as error:
      outcome, words = 'traceback', repr(error)
    else:
      outcome = 'same' if same(answer) else 'silent'
      words = 'another answer'
    finally:
      with open(damage.path, 'wb') as file:
        file.write(content)
      restore()
    counts[outcome] += 1
    if outcome in ('silent', 'traceback'):
      faults.append(f'{outcome}: {damage}: {words[:300]}')
  return counts, faults
