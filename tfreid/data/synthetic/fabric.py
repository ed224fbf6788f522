"""Patterns on cloth: stripes, checks, prints, in body units so that they move with the body."""

from __future__ import annotations

import functools
import zlib
from typing import NamedTuple

import numpy as np

from tfreid.data.synthetic.canvas import Cloth


def _polygon(draw, to_pixels, points, color):
  draw.polygon([tuple(p) for p in to_pixels(np.asarray(points, np.float64))], fill=color)


def _rectangle(draw, to_pixels, x0, y0, x1, y1, color):
  _polygon(draw, to_pixels, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)


class _Garment(NamedTuple):
  """What a pattern needs to know of its garment; arguments of `fabric`.

  Attributes:
    variety: 0..1, where a print sits and how wide a stripe is.
  """

  ground: object
  accents: tuple
  top: float
  bottom: float
  view: str
  variety: float

  @property
  def height(self) -> float:
    return self.bottom - self.top


def _stripes(garment, draw, pixels, unit):
  step = 0.034 + 0.02 * garment.variety
  for y in np.arange(garment.top + step, garment.bottom, step):
    _rectangle(draw, pixels, -0.4, y, 0.4, y + 0.19 * step, garment.accents[1])


def _pinstripes(garment, draw, pixels, unit):
  step = 0.022 + 0.012 * garment.variety
  for x in np.arange(-0.4, 0.4, step):
    _rectangle(
      draw, pixels, x, garment.top - 0.1, x + 0.25 * step, garment.bottom + 0.1, garment.accents[0]
    )


def _print(garment, draw, pixels, unit):
  if garment.view == 'side' or (garment.view == 'back') != (garment.variety < 0.25):
    return
  middle = garment.top + (0.3 + 0.15 * garment.variety) * garment.height
  size = 0.030 + 0.02 * garment.variety
  _rectangle(
    draw, pixels, -size, middle - 0.7 * size, size, middle + 0.7 * size, garment.accents[1]
  )


def _raglan(garment, draw, pixels, unit):
  _rectangle(
    draw,
    pixels,
    -0.4,
    garment.top - 0.1,
    0.4,
    garment.top + 0.10 * garment.height,
    garment.accents[1],
  )


def _open(garment, draw, pixels, unit):
  if garment.view != 'front':
    return
  width = 0.010 + 0.008 * garment.variety
  _rectangle(draw, pixels, -width, garment.top - 0.1, width, garment.bottom, garment.accents[1])


def _buttons(garment, draw, pixels, unit):
  if garment.view != 'front':
    return
  _rectangle(draw, pixels, -0.004, garment.top - 0.1, 0.004, garment.bottom, garment.accents[0])


def _collar(garment, draw, pixels, unit):
  _rectangle(
    draw, pixels, -0.055, garment.top - 0.1, 0.055, garment.top + 0.012, garment.accents[1]
  )


def _hem(garment, draw, pixels, unit):
  _rectangle(
    draw,
    pixels,
    -0.4,
    garment.bottom - 0.11 * garment.height,
    0.4,
    garment.bottom + 0.1,
    garment.accents[1],
  )


def _side(garment, draw, pixels, unit):
  if garment.view == 'side':
    _rectangle(draw, pixels, -0.014, garment.top, 0.014, garment.bottom, garment.accents[1])
    return
  for sign in (-1, 1):
    _rectangle(
      draw, pixels, sign * 0.088, garment.top, sign * 0.110, garment.bottom, garment.accents[1]
    )


def _faded(garment, draw, pixels, unit):
  _rectangle(
    draw,
    pixels,
    -0.4,
    garment.top + 0.25 * garment.height,
    0.4,
    garment.top + 0.5 * garment.height,
    garment.accents[0],
  )


def _checks(garment, draw, pixels, unit):
  step = 0.035 + 0.015 * garment.variety
  for x in np.arange(-0.4, 0.4, step):
    _rectangle(
      draw, pixels, x, garment.top - 0.1, x + 0.3 * step, garment.bottom + 0.1, garment.accents[0]
    )
  for y in np.arange(garment.top, garment.bottom, step):
    _rectangle(draw, pixels, -0.4, y, 0.4, y + 0.2 * step, garment.accents[0])


def _blocks(garment, draw, pixels, unit):
  third = garment.height / 3
  _rectangle(
    draw, pixels, -0.4, garment.top + third, 0.4, garment.top + 2 * third, garment.accents[0]
  )
  _rectangle(
    draw, pixels, -0.4, garment.top + 2 * third, 0.4, garment.bottom + 0.1, garment.accents[1]
  )


def _bands(garment, draw, pixels, unit):
  step = 0.045 + 0.02 * garment.variety
  colors = (garment.ground, *garment.accents)
  for i, y in enumerate(np.arange(garment.top - step, garment.bottom + step, step)):
    _rectangle(draw, pixels, -0.4, y, 0.4, y + step, colors[i % 3])


def _patches(garment, draw, pixels, unit):
  rng = np.random.default_rng(int(garment.variety * 2**32))
  for i in range(70):
    x, y = rng.uniform(-0.2, 0.2), rng.uniform(garment.top - 0.02, garment.bottom + 0.02)
    size = rng.uniform(0.018, 0.038)
    points = [(x + size * np.cos(a), y + size * np.sin(a)) for a in np.linspace(0, 5.2, 6)]
    _polygon(draw, pixels, points, garment.accents[i % 2])


_MARKS = {
  'stripes': _stripes,
  'pinstripes': _pinstripes,
  'print': _print,
  'raglan': _raglan,
  'open': _open,
  'buttons': _buttons,
  'collar': _collar,
  'hem': _hem,
  'side': _side,
  'faded': _faded,
  'checks': _checks,
  'blocks': _blocks,
  'bands': _bands,
  'patches': _patches,
}


def fabric(ground, accents, pattern, *, top: float, bottom: float, view: str) -> Cloth:
  """Returns the paint of a garment that reaches from y = `top` to y = `bottom`.

  Args:
    ground: the named colour.
    accents: (another shade of it, another colour), or the other colours of a garment that has
      no colour name.
    pattern: one of Identity's patterns, None for plain.
    top, bottom: extent of the garment in body units.
    view: 'front', 'back' or 'side': some marks are on one side only.

  Returns:
    Cloth.
  """
  if pattern is None:
    return Cloth(ground, None)
  # Where a print sits and how wide a stripe is belongs to the garment, not to the crop: derived
  # from its colours, so that the same person always wears the same one.
  variety = zlib.crc32(repr((ground, accents, pattern)).encode()) / 2**32
  garment = _Garment(ground, accents, top, bottom, view, variety)
  return Cloth(ground, functools.partial(_MARKS[pattern], garment))
