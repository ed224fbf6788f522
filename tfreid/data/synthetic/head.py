"""Head, hair, face and hat, from each side."""

from __future__ import annotations

import numpy as np

from tfreid.data.synthetic import palette
from tfreid.data.synthetic.canvas import ellipse, limb, mirrored, smooth


def neck(figure, canvas, x):
  """Draws the neck, with its middle at `x`."""
  radius = 0.235 * figure.build.head
  if figure.attributes.gender == 'male':
    radius *= 1.2
  canvas.fill(
    limb((x, 0.75 * figure.chin), (0.6 * x, figure.shoulder_y - 0.01), radius, 1.1 * radius),
    paint=palette.scale(figure.identity.skin, 0.9),
  )


def radii(figure):
  """Returns half width and half height of the head."""
  head = figure.build.head
  wide = 0.385 if figure.attributes.age != 'child' else 0.43
  return wide * head, 0.5 * head


def long_hair_behind(figure, canvas):
  """Draws long hair that falls behind the shoulders of a person seen from the front."""
  if figure.attributes.hair != 'long' or figure.identity.hair_style == 'tail':
    return
  rx, ry = radii(figure)
  end = figure.shoulder_y + 0.095
  outline = mirrored(
    [
      (0.4 * rx, -0.02 * ry),
      (1.15 * rx, 0.45 * ry),
      (1.32 * rx, 1.2 * ry),
      (1.42 * rx, figure.shoulder_y),
      (1.40 * rx, end),
      (0.6 * rx, end + 0.01),
    ]
  )
  canvas.fill(smooth(outline), paint=figure.identity.hair, shade=0.15)


def front(figure, canvas):
  """Draws face and hair from the front."""
  rx, ry = radii(figure)
  identity = figure.identity
  x = 0.30 * rx * figure.pose.turn
  style = identity.hair_style
  if style == 'bob':
    outline = mirrored(
      [
        (0.5 * rx, -0.06 * ry),
        (1.22 * rx, 0.4 * ry),
        (1.30 * rx, 1.3 * ry),
        (1.18 * rx, 1.85 * ry),
        (0.7 * rx, 1.8 * ry),
      ]
    )
    canvas.fill(smooth(outline), paint=identity.hair, shade=0.15)
  if style == 'bun':
    canvas.fill(ellipse((0, -0.08 * ry), (0.42 * rx, 0.36 * ry)), paint=identity.hair)
  if style in ('crop', 'thin', 'bun', 'tail'):
    for side in (-1, 1):
      canvas.fill(ellipse((side * rx, 1.05 * ry), (0.13 * rx, 0.2 * ry)), paint=identity.skin)
  canvas.fill(ellipse((0, ry), (rx, ry)), paint=identity.skin, shade=0.2)
  dark = palette.scale(identity.skin, 0.62)
  if identity.beard:
    canvas.fill(
      ellipse((0, 1.32 * ry), (0.86 * rx, 0.66 * ry), 0, 180),
      paint=identity.hair,
      shade=0,
    )
    canvas.dot((x, 1.42 * ry), (0.30 * rx, 0.07 * ry), (150, 84, 76))
  for side in (-1, 1):
    eye = (x + side * 0.40 * rx, 0.98 * ry)
    canvas.dot(eye, (0.14 * rx, 0.075 * ry), (30, 24, 22))
    canvas.line(
      [(eye[0] - 0.2 * rx, eye[1] - 0.17 * ry), (eye[0] + 0.2 * rx, eye[1] - 0.17 * ry)],
      0.005,
      palette.scale(identity.hair, 0.8),
    )
  canvas.line([(x, 1.0 * ry), (1.3 * x, 1.26 * ry)], 0.006, dark)
  if not identity.beard:
    lips = (176, 62, 70) if figure.attributes.gender == 'female' else dark
    canvas.dot((x, 1.50 * ry), (0.28 * rx, 0.07 * ry), lips)
  if identity.glasses:
    for side in (-1, 1):
      ring = ellipse((x + side * 0.40 * rx, 0.98 * ry), (0.30 * rx, 0.2 * ry))
      canvas.line(ring, 0.004, (30, 30, 34))
  fringe(figure, canvas, rx, ry)
  if style == 'tail':
    side = identity.bag_side
    end = (side * 0.55 * figure.build.shoulder, figure.shoulder_y + 0.12)
    canvas.fill(
      limb((side * 1.02 * rx, 1.2 * ry), end, 0.018, 0.014), paint=identity.hair, shade=0.2
    )


def fringe(figure, canvas, rx, ry):
  """Draws the hair over the forehead."""
  style = figure.identity.hair_style
  hair = figure.identity.hair
  if style == 'thin':
    for side in (-1, 1):
      canvas.fill(ellipse((side * 0.92 * rx, 0.8 * ry), (0.2 * rx, 0.34 * ry)), paint=hair)
    return
  if style == 'crop':
    outline = np.concatenate(
      [
        ellipse((0, 0.96 * ry), (1.06 * rx, 1.04 * ry), 190, 350),
        [(0.80 * rx, 0.60 * ry), (0.2 * rx, 0.50 * ry), (-0.75 * rx, 0.62 * ry)],
      ]
    )
  else:
    part = 0.3 * figure.identity.bag_side
    outline = np.concatenate(
      [
        ellipse((0, 0.98 * ry), (1.10 * rx, 1.06 * ry), 165, 375),
        [(0.88 * rx, 0.85 * ry), (part * rx, 0.34 * ry), (-0.88 * rx, 0.85 * ry)],
      ]
    )
  canvas.fill(outline, paint=hair, shade=0.15)


def back(figure, canvas):
  """Draws the head from behind."""
  rx, ry = radii(figure)
  hair, style = figure.identity.hair, figure.identity.hair_style
  skin = figure.identity.skin
  if style in ('crop', 'thin', 'bun', 'tail'):
    for side in (-1, 1):
      canvas.fill(ellipse((side * rx, 1.05 * ry), (0.13 * rx, 0.2 * ry)), paint=skin)
  canvas.fill(ellipse((0, ry), (rx, ry)), paint=skin, shade=0.2)
  if style == 'thin':
    canvas.fill(ellipse((0, 1.1 * ry), (1.05 * rx, 0.55 * ry), -20, 200), paint=hair)
  elif style == 'crop':
    canvas.fill(ellipse((0, 0.86 * ry), (1.06 * rx, 0.92 * ry)), paint=hair, shade=0.2)
  elif style == 'bun':
    canvas.fill(ellipse((0, 0.88 * ry), (1.08 * rx, 0.94 * ry)), paint=hair, shade=0.2)
    bun = ellipse((0, 0.42 * ry), (0.52 * rx, 0.44 * ry))
    canvas.fill(bun, paint=palette.scale(hair, 1.12), shade=0.4)
  elif style == 'bob':
    outline = mirrored(
      [
        (0.5 * rx, -0.06 * ry),
        (1.22 * rx, 0.4 * ry),
        (1.30 * rx, 1.3 * ry),
        (1.20 * rx, 1.85 * ry),
        (0.5 * rx, 1.9 * ry),
      ]
    )
    canvas.fill(smooth(outline), paint=hair, shade=0.2)
  elif style == 'tail':
    canvas.fill(ellipse((0, 0.9 * ry), (1.1 * rx, 0.98 * ry)), paint=hair, shade=0.2)
    end = (0.01 * figure.identity.bag_side, figure.shoulder_y + 0.14)
    canvas.fill(limb((0, 0.9 * ry), end, 0.026, 0.016), paint=hair, shade=0.35)
  else:
    end = figure.shoulder_y + 0.16
    outline = mirrored(
      [
        (0.5 * rx, -0.06 * ry),
        (1.2 * rx, 0.4 * ry),
        (1.34 * rx, 1.3 * ry),
        (1.55 * rx, figure.shoulder_y),
        (1.5 * rx, end - 0.03),
        (0.6 * rx, end),
      ]
    )
    canvas.fill(smooth(outline), paint=hair, shade=0.2)


def profile(figure, canvas):
  """Draws the head in profile, facing right."""
  rx, ry = radii(figure)
  rx *= 1.12
  identity = figure.identity
  x = 0.012
  canvas.fill(ellipse((x, ry), (rx, ry)), paint=identity.skin, shade=0.2)
  nose = [(x + 0.92 * rx, 0.95 * ry), (x + 1.2 * rx, 1.2 * ry), (x + 0.9 * rx, 1.3 * ry)]
  canvas.fill(np.asarray(nose), paint=identity.skin, shade=0)
  if identity.beard:
    beard = [
      (x + 0.15 * rx, 1.2 * ry),
      (x + 0.98 * rx, 1.38 * ry),
      (x + 0.8 * rx, 1.95 * ry),
      (x + 0.2 * rx, 1.9 * ry),
    ]
    canvas.fill(smooth(beard, 1), paint=identity.hair, shade=0)
  eye = (x + 0.66 * rx, 0.96 * ry)
  canvas.dot(eye, (0.10 * rx, 0.08 * ry), (30, 24, 22))
  if identity.glasses:
    canvas.line([(eye[0] + 0.2 * rx, eye[1]), (x - 0.2 * rx, eye[1])], 0.005, (30, 30, 34))
  if not identity.beard:
    lips = palette.scale(identity.skin, 0.62)
    if figure.attributes.gender == 'female':
      lips = (176, 62, 70)
    canvas.line([(x + 0.68 * rx, 1.52 * ry), (x + 0.95 * rx, 1.50 * ry)], 0.007, lips)
  _profile_hair(figure, canvas, x, rx, ry)


def _profile_hair(figure, canvas, x, rx, ry):
  """Draws the hair of a head in profile; its middle is at x, its radii are rx and ry."""
  identity, style = figure.identity, figure.identity.hair_style
  hair = identity.hair
  if style == 'thin':
    canvas.fill(ellipse((x - 0.35 * rx, 1.1 * ry), (0.62 * rx, 0.45 * ry)), paint=hair)
    return
  cap = np.concatenate(
    [
      ellipse((x, 0.98 * ry), (1.08 * rx, 1.06 * ry), 130, 320),
      [(x + 0.62 * rx, 0.55 * ry), (x + 0.18 * rx, 0.72 * ry), (x + 0.05 * rx, 1.15 * ry)],
    ]
  )
  canvas.fill(cap, paint=hair, shade=0.2)
  if style == 'bob':
    bob = [
      (x - 1.0 * rx, 0.6 * ry),
      (x + 0.25 * rx, 0.6 * ry),
      (x + 0.28 * rx, 1.8 * ry),
      (x - 1.1 * rx, 1.9 * ry),
      (x - 1.3 * rx, 1.3 * ry),
    ]
    canvas.fill(smooth(bob), paint=hair, shade=0.2)
  elif style == 'bun':
    canvas.fill(ellipse((x - 0.95 * rx, 0.42 * ry), (0.5 * rx, 0.42 * ry)), paint=hair, shade=0.4)
  elif style == 'tail':
    root = (x - 0.95 * rx, 0.8 * ry)
    middle = (x - 1.75 * rx, 1.5 * ry)
    end = (x - 1.6 * rx, figure.shoulder_y + 0.13)
    canvas.fill(limb(root, middle, 0.020, 0.026), limb(middle, end, 0.026, 0.012), paint=hair)
  elif style == 'loose':
    end = figure.shoulder_y + 0.14
    fall = [
      (x - 0.2 * rx, 0.3 * ry),
      (x + 0.22 * rx, 0.8 * ry),
      (x + 0.1 * rx, figure.shoulder_y),
      (x - 0.2 * rx, end),
      (x - 1.7 * rx, end),
      (x - 1.65 * rx, figure.shoulder_y),
      (x - 1.25 * rx, 0.8 * ry),
    ]
    canvas.fill(smooth(fall), paint=hair, shade=0.2)
  if style in ('crop', 'bun', 'tail'):
    canvas.dot(
      (x - 0.05 * rx, 1.08 * ry), (0.13 * rx, 0.18 * ry), palette.scale(identity.skin, 0.86)
    )


def hat(figure, canvas, x):
  """Draws the hat, with its middle at `x`."""
  rx, ry = radii(figure)
  identity = figure.identity
  color, style = identity.hat_color, identity.hat
  dark = palette.scale(color, 0.72)
  crown_y = 0.62 * ry
  if style == 'beanie':
    canvas.fill(ellipse((x, crown_y + 0.05 * ry), (1.16 * rx, 0.86 * ry), 180, 360), paint=color)
    canvas.fill(
      limb((x - 1.04 * rx, crown_y), (x + 1.04 * rx, crown_y), 0.14 * ry, 0.14 * ry), paint=dark
    )
    return
  canvas.fill(ellipse((x, crown_y + 0.06 * ry), (1.14 * rx, 0.82 * ry), 180, 360), paint=color)
  if style == 'brim':
    canvas.fill(ellipse((x, crown_y), (1.75 * rx, 0.2 * ry)), paint=dark, shade=0.1)
  elif figure.view == 'side':
    canvas.fill(ellipse((x + 1.2 * rx, crown_y), (0.85 * rx, 0.12 * ry)), paint=dark, shade=0.1)
  elif figure.view == 'front':
    canvas.fill(ellipse((x, crown_y + 0.04 * ry), (1.1 * rx, 0.2 * ry)), paint=dark, shade=0.1)
