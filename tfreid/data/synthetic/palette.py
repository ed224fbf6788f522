"""Colours by name: a range of shades for each name, and draws from it."""

from __future__ import annotations

import colorsys

import numpy as np

Color = tuple[int, int, int]

# Name -> ranges of hue (degrees), saturation and value. The middle of a range is the shade that
# everybody would call by that name; the ends still are closer to it than to any other name.
SHADES = {
  'black': ((200, 260), (0.00, 0.14), (0.06, 0.17)),
  'white': ((40, 220), (0.00, 0.05), (0.90, 1.00)),
  'gray': ((200, 240), (0.00, 0.07), (0.43, 0.63)),
  'red': ((-8, 7), (0.80, 0.95), (0.62, 0.88)),
  'pink': ((328, 346), (0.30, 0.50), (0.90, 1.00)),
  'purple': ((270, 288), (0.52, 0.75), (0.42, 0.66)),
  'yellow': ((48, 56), (0.66, 0.90), (0.88, 1.00)),
  'blue': ((210, 230), (0.62, 0.88), (0.45, 0.85)),
  'green': ((105, 148), (0.55, 0.80), (0.36, 0.66)),
  'brown': ((20, 30), (0.55, 0.70), (0.30, 0.44)),
  'orange': ((22, 30), (0.85, 0.95), (0.88, 0.98)),
  'beige': ((34, 42), (0.28, 0.38), (0.74, 0.84)),
}

SKINS = ((244, 214, 190), (232, 190, 160), (214, 164, 128), (180, 126, 92), (130, 86, 60))
HAIRS = ((26, 22, 20), (44, 30, 22), (78, 50, 32), (120, 78, 44), (186, 148, 92))
GRAY_HAIRS = ((196, 196, 198), (224, 224, 222), (164, 164, 168))


def from_hsv(hue: float, saturation: float, value: float) -> Color:
  """Returns the RGB colour of a hue in degrees, saturation and value in [0, 1]."""
  red, green, blue = colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value)
  return int(round(255 * red)), int(round(255 * green)), int(round(255 * blue))


def center(name: str) -> Color:
  """Returns the middle shade of a colour name."""
  return from_hsv(*[(low + high) / 2 for low, high in SHADES[name]])


def shade(name: str, rng: np.random.Generator, spread: float = 1.0) -> Color:
  """Returns a random shade of a colour name; `spread` in [0, 1] narrows its range."""
  draws = []
  for low, high in SHADES[name]:
    draws.append((low + high) / 2 + spread * (rng.random() - 0.5) * (high - low))
  return from_hsv(*draws)


def scale(color: Color, factor: float) -> Color:
  """Returns the colour made lighter (factor > 1, towards white) or darker (factor < 1)."""
  if factor <= 1.0:
    red, green, blue = (int(round(c * factor)) for c in color)
  else:
    red, green, blue = (int(round(c + (255 - c) * min(1.0, factor - 1.0))) for c in color)
  return red, green, blue


def distance(first: Color, second: Color) -> float:
  """Returns the Euclidean distance of two colours, 0..441."""
  return float(np.linalg.norm(np.subtract(first, second)))


def contrasting(rng: np.random.Generator, others, names=tuple(SHADES), least=110.0) -> Color:
  """Returns a shade of one of `names` at distance `least` or more from every colour of `others`.

  Args:
    rng: the source of randomness.
    others: colours to keep away from.
    names: colour names to choose from.
    least: least distance; when no draw of 24 reaches it, the farthest one is returned.

  Returns:
    Color.
  """
  best, best_distance = (0, 0, 0), -1.0  # the first draw is farther
  for _ in range(24):
    color = shade(names[int(rng.integers(len(names)))], rng)
    nearest = min((distance(color, other) for other in others), default=442.0)
    if nearest > best_distance:
      best, best_distance = color, nearest
    if nearest >= least:
      break
  return best
