"""The words people use for attributes: phrases, and descriptions made of them. Floor 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_SPELLINGS = {'gray': ('gray', 'grey')}


def color_words(colors: Sequence[str], garments: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
  """Phrases for the colours of a piece of clothing, for `Attribute.words`.

  Args:
    colors: the attribute's values.
    garments: what may follow the colour, for example ('top', 'shirt').

  Returns:
    For each colour, 'red top', 'red shirt', ...; 'gray' is also spelled 'grey'.
  """
  return {
    color: tuple(f'{c} {garment}' for c in _SPELLINGS.get(color, (color,)) for garment in garments)
    for color in colors
  }
