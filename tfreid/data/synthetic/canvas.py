"""The drawing surface of a figure: shaded shapes in body units, with cloth patterns."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Callable, Union

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tfreid.data.synthetic import palette

Point = tuple[float, float]
# [N, 2], or as many points.
Points = Union[Sequence[Point], np.ndarray]
# A plain colour, or a function that draws cloth: (draw, to_pixels) -> None on a filled image.
Paint = Union[palette.Color, 'Cloth']


class Cloth:
  """A paint: a ground colour and marks drawn on it in body units.

  Args:
    ground: the colour beneath.
    marks: called with (draw, to_pixels, unit): an ImageDraw on which to paint, the map from body
      units to its pixels, and the pixels of one body unit; None for plain cloth.
  """

  def __init__(self, ground: palette.Color, marks: Callable | None = None):
    self.ground = ground
    self.marks = marks


def smooth(points: Points, rounds: int = 2) -> np.ndarray:
  """Returns the closed polygon with its corners cut (Chaikin), [len(points) * 2**rounds, 2]."""
  polygon = np.asarray(points, np.float64)
  for _ in range(rounds):
    following = np.roll(polygon, -1, axis=0)
    cut = np.empty((2 * len(polygon), 2))
    cut[0::2] = 0.75 * polygon + 0.25 * following
    cut[1::2] = 0.25 * polygon + 0.75 * following
    polygon = cut
  return polygon


def limb(start: Point, end: Point, start_radius: float, end_radius: float) -> np.ndarray:
  """Returns the outline of a limb: two circles and what lies between them, [18, 2]."""
  (x0, y0), (x1, y1) = start, end
  direction = np.arctan2(y1 - y0, x1 - x0)
  turn = np.linspace(np.pi / 2, 3 * np.pi / 2, 9)
  first = np.stack(
    [x0 + start_radius * np.cos(direction + turn), y0 + start_radius * np.sin(direction + turn)],
    axis=1,
  )
  turn = turn + np.pi
  second = np.stack(
    [x1 + end_radius * np.cos(direction + turn), y1 + end_radius * np.sin(direction + turn)], axis=1
  )
  return np.concatenate([first, second])


def tube(start: Point, end: Point, start_radius: float, end_radius: float) -> np.ndarray:
  """Returns the outline of an open sleeve or trouser leg: as `limb`, but flat at its end."""
  outline = limb(start, end, start_radius, end_radius)
  return np.concatenate([outline[:9], outline[[9, 17]]])


@functools.lru_cache(maxsize=32)
def _darkness(shade: float) -> list:
  return [int((255 - v) * shade) for v in range(256)]


class Canvas:
  """A transparent picture on which a body is drawn in units of its stature.

  Body units: x = 0 is the body's axis, y = 0 the top of the head and y = 1 the soles.

  Args:
    size: (width, height) in pixels.
    origin: pixel of body point (0, 0).
    unit: pixels of one body unit.
    flip: whether x is mirrored (a person who walks to the left).
    warp: maps body points [N, 2] to body points before they become pixels (a stoop); None for
      none.
  """

  def __init__(self, size, origin, unit, *, flip=False, warp=None):
    self.image = Image.new('RGB', size)
    self.mask = Image.new('L', size)
    self.size, self.origin, self.unit = size, origin, unit
    self.sign = -1.0 if flip else 1.0
    self.warp = warp

  def to_pixels(self, points) -> np.ndarray:
    """Returns body points [N, 2] as pixel positions [N, 2]."""
    points = np.asarray(points, np.float64)
    if self.warp is not None:
      points = self.warp(points)
    return np.stack(
      [
        self.origin[0] + self.sign * self.unit * points[:, 0],
        self.origin[1] + self.unit * points[:, 1],
      ],
      axis=1,
    )

  def fill(self, *polygons, paint: Paint, shade: float = 0.25) -> None:
    """Fills the union of polygons with a paint, darker towards the lower right of the shape.

    Args:
      *polygons: outlines in body units, each [N, 2].
      paint: a colour or a Cloth.
      shade: 0..1, how much darker the far edge gets; 0 fills flatly.
    """
    outlines = [self.to_pixels(polygon) for polygon in polygons]
    points = np.concatenate(outlines)
    left, top = np.floor(np.maximum(points.min(0) - 1, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(points.max(0) + 2, self.size)).astype(int)
    if left >= right or top >= bottom:
      return
    corner = np.array([left, top])
    size = (int(right - left), int(bottom - top))
    mask = Image.new('L', size)
    draw = ImageDraw.Draw(mask)
    for outline in outlines:
      draw.polygon([tuple(p) for p in outline - corner], fill=255)
    if isinstance(paint, Cloth):
      ground, marks = paint.ground, paint.marks
    else:
      ground, marks = paint, None
    cloth = Image.new('RGB', size, ground)
    if marks is not None:
      marks(ImageDraw.Draw(cloth), lambda p: self.to_pixels(p) - corner, self.unit)
    if shade > 0.0:
      self._shade(cloth, mask, shade)
    place = (int(left), int(top))
    self.image.paste(cloth, place, mask)
    self.mask.paste(255, place, mask)

  def _shade(self, cloth, mask, shade) -> None:
    """Darkens the part of `cloth` that lies near the right and lower edge of `mask`."""
    reach = max(1.0, 0.02 * self.unit)
    blurred = mask.filter(ImageFilter.BoxBlur(reach))
    shifted = Image.new('L', mask.size)
    shifted.paste(blurred, (-int(round(reach)), -int(round(0.6 * reach))))
    # Inverted and scaled in one look-up.
    rim = shifted.point(_darkness(shade))
    cloth.paste((0, 0, 0), (0, 0), rim)

  def line(self, points, width: float, paint: palette.Color) -> None:
    """Draws a polyline of a width in body units."""
    outline = [tuple(p) for p in self.to_pixels(points)]
    pixels = max(1, int(round(width * self.unit)))
    ImageDraw.Draw(self.image).line(outline, fill=paint, width=pixels, joint='curve')
    ImageDraw.Draw(self.mask).line(outline, fill=255, width=pixels, joint='curve')

  def dot(self, center: Point, radii: tuple[float, float], paint: palette.Color) -> None:
    """Draws an ellipse with its radii (horizontal, vertical) in body units."""
    x, y = self.to_pixels([center])[0]
    rx, ry = radii[0] * self.unit, radii[1] * self.unit
    box = (x - rx, y - ry, x + rx, y + ry)
    ImageDraw.Draw(self.image).ellipse(box, fill=paint)
    ImageDraw.Draw(self.mask).ellipse(box, fill=255)


def ellipse(center: Point, radii: tuple[float, float], start=0.0, end=360.0) -> np.ndarray:
  """Returns an elliptic outline from angle `start` to `end` in degrees, y downwards, [25, 2]."""
  turn = np.radians(np.linspace(start, end, 25))
  return np.stack([center[0] + radii[0] * np.cos(turn), center[1] + radii[1] * np.sin(turn)], 1)


def mirrored(half: Points) -> np.ndarray:
  """Returns the closed outline of a symmetric shape from its right half, listed downwards."""
  right = np.asarray(half, np.float64)
  return np.concatenate([right, right[::-1] * [-1.0, 1.0]])
