"""What is done with texts of strangers, in time that grows no faster than they do.

Whoever sends a text may send the worst one. So texts are bounded before they are read, read without
regular expressions that backtrack, quoted in messages in part only, and compared with what is known
(a quadratic matter) only where they are short enough to be a slip of a known one.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

# What a message quotes of a text, and the longest text that is looked for among those known.
_QUOTED = 80
_COMPARED = 40


def shortened(text: str, length: int = _QUOTED) -> str:
  """The beginning of a text, for a message; with '…' where it goes on."""
  return text if len(text) <= length else f'{text[:length]}…'


def normalized(text: str) -> str:
  """The text in Unicode's composed form (NFC): one spelling for what looks the same.

  Keyboards compose 'é', file systems of Apple's write 'e' and an accent. Bound the text before:
  putting many accents into their order is quadratic.
  """
  return text if text.isascii() else unicodedata.normalize('NFC', text)


def spellings(text: str) -> list[str]:
  """The text as it is, composed and decomposed, without repetitions.

  For names that must be looked for as they were written: of files, and ids in an index.
  """
  if text.isascii():
    return [text]
  forms = (text, unicodedata.normalize('NFC', text), unicodedata.normalize('NFD', text))
  return list(dict.fromkeys(forms))


def check_length(what: str, text: str, limit: int) -> str:
  """`text`, if it is no longer than allowed.

  Args:
    what: what the text is, as the subject of a sentence: 'The description'.
    text: to check.
    limit: characters, at most.

  Raises:
    ValueError: it is longer.
  """
  if len(text) > limit:
    raise ValueError(
      f'{what} has {len(text):,} characters; at most {limit:,} are read. Shorten it.'
    )
  return text


def nearest(given: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
  """The known text that is most like a given one; '' if none is, or the text is too long for it.

  Args:
    given: a text that is not known.
    known: those that are.
    cutoff: how alike they must be, 0 ... 1; see `difflib.get_close_matches`.
  """
  if len(given) > _COMPARED:
    return ''
  near = difflib.get_close_matches(
    given, [text for text in known if len(text) <= 2 * _COMPARED], n=1, cutoff=cutoff
  )
  return near[0] if near else ''


def did_you_mean(given: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
  """' Did you mean 'x'?' for a message; '' where nothing known is like the given text."""
  near = nearest(given, known, cutoff=cutoff)
  return f" Did you mean '{near}'?" if near else ''
