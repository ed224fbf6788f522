"""Patterns on cloth: stripes, checks, prints, in body units so that they move with the body."""

from __future__ import annotations

import zlib

import numpy as np

from tfreid.data.synthetic.canvas import Cloth


def _polygon(draw, to_pixels, points, color):
  draw.polygon([tuple(p) for p in to_pixels(np.asarray(points, np.float64))], fill=color)


def _rectangle(draw, to_pixels, x0, y0, x1, y1, color):
  _polygon(draw, to_pixels, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)


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
  height = bottom - top
  # Where a print sits and how wide a stripe is belongs to the garment, not to the crop: derived
  # from its colours, so that the same person always wears the same one.
  variety = zlib.crc32(repr((ground, accents, pattern)).encode()) / 2**32

  def stripes(draw, pixels, unit):
    step = 0.034 + 0.02 * variety
    for y in np.arange(top + step, bottom, step):
      _rectangle(draw, pixels, -0.4, y, 0.4, y + 0.19 * step, accents[1])

  def pinstripes(draw, pixels, unit):
    step = 0.022 + 0.012 * variety
    for x in np.arange(-0.4, 0.4, step):
      _rectangle(draw, pixels, x, top - 0.1, x + 0.25 * step, bottom + 0.1, accents[0])

  def print_(draw, pixels, unit):
    if view == 'side' or (view == 'back') != (variety < 0.25):
      return
    middle = top + (0.3 + 0.15 * variety) * height
    size = 0.030 + 0.02 * variety
    _rectangle(draw, pixels, -size, middle - 0.7 * size, size, middle + 0.7 * size, accents[1])

  def raglan(draw, pixels, unit):
    _rectangle(draw, pixels, -0.4, top - 0.1, 0.4, top + 0.10 * height, accents[1])

  def open_(draw, pixels, unit):
    if view != 'front':
      return
    width = 0.010 + 0.008 * variety
    _rectangle(draw, pixels, -width, top - 0.1, width, bottom, accents[1])

  def buttons(draw, pixels, unit):
    if view != 'front':
      return
    _rectangle(draw, pixels, -0.004, top - 0.1, 0.004, bottom, accents[0])

  def collar(draw, pixels, unit):
    _rectangle(draw, pixels, -0.055, top - 0.1, 0.055, top + 0.012, accents[1])

  def hem(draw, pixels, unit):
    _rectangle(draw, pixels, -0.4, bottom - 0.11 * height, 0.4, bottom + 0.1, accents[1])

  def side(draw, pixels, unit):
    if view == 'side':
      _rectangle(draw, pixels, -0.014, top, 0.014, bottom, accents[1])
      return
    for sign in (-1, 1):
      _rectangle(draw, pixels, sign * 0.088, top, sign * 0.110, bottom, accents[1])

  def faded(draw, pixels, unit):
    _rectangle(draw, pixels, -0.4, top + 0.25 * height, 0.4, top + 0.5 * height, accents[0])

  def checks(draw, pixels, unit):
    step = 0.035 + 0.015 * variety
    for x in np.arange(-0.4, 0.4, step):
      _rectangle(draw, pixels, x, top - 0.1, x + 0.3 * step, bottom + 0.1, accents[0])
    for y in np.arange(top, bottom, step):
      _rectangle(draw, pixels, -0.4, y, 0.4, y + 0.2 * step, accents[0])

  def blocks(draw, pixels, unit):
    third = height / 3
    _rectangle(draw, pixels, -0.4, top + third, 0.4, top + 2 * third, accents[0])
    _rectangle(draw, pixels, -0.4, top + 2 * third, 0.4, bottom + 0.1, accents[1])

  def bands(draw, pixels, unit):
    step = 0.045 + 0.02 * variety
    colors = (ground, *accents)
    for i, y in enumerate(np.arange(top - step, bottom + step, step)):
      _rectangle(draw, pixels, -0.4, y, 0.4, y + step, colors[i % 3])

  def patches(draw, pixels, unit):
    rng = np.random.default_rng(int(variety * 2**32))
    for i in range(70):
      x, y = rng.uniform(-0.2, 0.2), rng.uniform(top - 0.02, bottom + 0.02)
      size = rng.uniform(0.018, 0.038)
      points = [(x + size * np.cos(a), y + size * np.sin(a)) for a in np.linspace(0, 5.2, 6)]
      _polygon(draw, pixels, points, accents[i % 2])

  marks = {
    'stripes': stripes,
    'pinstripes': pinstripes,
    'print': print_,
    'raglan': raglan,
    'open': open_,
    'buttons': buttons,
    'collar': collar,
    'hem': hem,
    'side': side,
    'faded': faded,
    'checks': checks,
    'blocks': blocks,
    'bands': bands,
    'patches': patches,
  }
  return Cloth(ground, None if pattern is None else marks[pattern])
