"""Backpack, shoulder bag, handbag and walking stick."""

from __future__ import annotations

from tfreid.data.synthetic import palette
from tfreid.data.synthetic.canvas import ellipse, mirrored, smooth


def backpack_outline(figure, scale=1.0):
  """Returns half width, top and bottom of the backpack."""
  half = 0.86 * figure.build.shoulder * figure.identity.bag_size * scale
  top = figure.shoulder_y - 0.012
  bottom = figure.waist_y + 0.015 * figure.identity.bag_size
  return half, top, bottom


def backpack_behind(figure, canvas):
  """From the front a backpack is all but hidden: its edge shows over the shoulders."""
  half, top, bottom = backpack_outline(figure)
  outline = mirrored([(0.6 * half, top - 0.022), (half, top), (half, bottom), (0.8 * half, bottom)])
  canvas.fill(smooth(outline), paint=figure.identity.bag_color)


def backpack_straps(figure, canvas):
  """Draws the shoulder straps of a backpack, from the front."""
  build = figure.build
  color = palette.scale(figure.identity.bag_color, 0.85)
  for side in (-1, 1):
    canvas.line(
      [
        (side * 0.50 * build.shoulder, figure.shoulder_y - 0.022),
        (side * 0.58 * build.shoulder, figure.shoulder_y + 0.05),
        (side * 0.74 * build.shoulder, figure.shoulder_y + 0.125),
      ],
      0.024,
      color,
    )


def backpack_back(figure, canvas):
  """Draws the backpack from behind."""
  half, top, bottom = backpack_outline(figure)
  identity = figure.identity
  outline = mirrored(
    [
      (0.5 * half, top - 0.012),
      (0.95 * half, top + 0.025),
      (half, bottom - 0.03),
      (0.9 * half, bottom),
    ]
  )
  canvas.fill(smooth(outline), paint=identity.bag_color, shade=0.4)
  middle = top + 0.52 * (bottom - top)
  pocket = mirrored(
    [
      (0.66 * half, middle),
      (0.70 * half, bottom - 0.035),
      (0.62 * half, bottom - 0.018),
    ]
  )
  canvas.fill(smooth(pocket, 1), paint=palette.scale(identity.bag_color, 0.78), shade=0.35)
  canvas.line(
    [(-0.62 * half, middle - 0.02), (0.62 * half, middle - 0.02)], 0.007, identity.bag_accent
  )
  canvas.line(ellipse((0, top - 0.010), (0.2 * half, 0.016), 180, 360), 0.008, identity.bag_accent)


def backpack_side(figure, canvas):
  """Draws the backpack in profile, behind the back."""
  half, top, bottom = backpack_outline(figure)
  identity = figure.identity
  back = -0.7 * figure.build.depth
  out = back - 0.100 * identity.bag_size
  outline = [
    (back + 0.03, top - 0.005),
    (out + 0.03, top),
    (out, top + 0.06),
    (out - 0.012, bottom - 0.03),
    (out + 0.01, bottom),
    (back + 0.03, bottom),
  ]
  canvas.fill(smooth(outline), paint=identity.bag_color, shade=0.4)
  middle = top + 0.5 * (bottom - top)
  canvas.line([(out + 0.005, middle), (back, middle)], 0.007, identity.bag_accent)


def strap(figure, canvas):
  """The diagonal strap of a shoulder bag, from the far shoulder to the hip that carries it."""
  if figure.attributes.bag != 'bag':
    return
  side = figure.identity.bag_side * figure.left
  build = figure.build
  canvas.line(
    [
      (-side * 0.52 * build.shoulder, figure.shoulder_y - 0.022),
      (side * 0.1 * build.waist, 0.5 * (figure.shoulder_y + figure.waist_y) + 0.015),
      (side * 1.0 * build.waist, figure.waist_y + 0.02),
    ],
    0.019,
    figure.identity.bag_accent,
  )


def strap_side(figure, canvas, carried_near):
  """Draws the strap of a shoulder bag in profile, and the bag where it is on the near side."""
  build = figure.build
  top = (-0.15 * build.depth, figure.shoulder_y - 0.02)
  if carried_near:
    # The strap goes over the far shoulder, down chest and back to the near hip.
    for start in (
      (0.55 * build.depth, figure.shoulder_y - 0.005),
      (-0.7 * build.depth, figure.shoulder_y),
    ):
      canvas.line([start, (-0.01, figure.waist_y + 0.03)], 0.017, figure.identity.bag_accent)
    bag_box(figure, canvas, -0.012, figure.waist_y + 0.012, 0.072, 0.118)
  else:
    for end in (
      (0.95 * build.depth, figure.shoulder_y + 0.15),
      (-0.95 * build.depth, figure.shoulder_y + 0.15),
    ):
      canvas.line([top, end], 0.017, figure.identity.bag_accent)


def shoulder_bag(figure, canvas):
  """Draws a shoulder bag at the hip."""
  if figure.attributes.bag != 'bag':
    return
  side = figure.identity.bag_side * figure.left
  bag_box(figure, canvas, side * (figure.build.hip + 0.022), figure.waist_y + 0.012, 0.070, 0.115)


def bag_box(figure, canvas, x, top, half, height):
  """A bag with a flap; `x` its middle."""
  identity = figure.identity
  half, height = half * identity.bag_size, height * identity.bag_size
  box = [
    (x - half, top),
    (x + half, top),
    (x + half * 1.06, top + height),
    (x - half * 1.06, top + height),
  ]
  canvas.fill(smooth(box, 2), paint=identity.bag_color, shade=0.4)
  flap = [
    (x - half, top),
    (x + half, top),
    (x + 0.9 * half, top + 0.45 * height),
    (x - 0.9 * half, top + 0.45 * height),
  ]
  canvas.fill(smooth(flap, 1), paint=palette.scale(identity.bag_color, 0.8), shade=0.2)
  canvas.dot((x, top + 0.45 * height), (0.010, 0.009), identity.bag_accent)


def handbag(figure, canvas, arms):
  """Draws a handbag at the hand of the arm that carries it."""
  if figure.attributes.bag != 'handbag':
    return
  wrist = arms[figure.identity.bag_side * figure.left][2]
  handbag_at(figure, canvas, wrist)


def handbag_at(figure, canvas, wrist):
  """Draws a handbag hanging from a wrist."""
  identity = figure.identity
  half, height = 0.060 * identity.bag_size, 0.078 * identity.bag_size
  x, top = wrist[0], wrist[1] + 0.062
  handle = ellipse((x, top + 0.006), (0.62 * half, 0.058), 180, 360)
  canvas.line(handle, 0.011, identity.bag_accent)
  body = [
    (x - 0.8 * half, top),
    (x + 0.8 * half, top),
    (x + half, top + height),
    (x - half, top + height),
  ]
  canvas.fill(smooth(body, 1), paint=identity.bag_color, shade=0.4)
  canvas.line(
    [(x - 0.7 * half, top + 0.014), (x + 0.7 * half, top + 0.014)], 0.008, identity.bag_accent
  )
  canvas.fill(
    ellipse((wrist[0], wrist[1] + 0.012), (0.8 * figure.build.arm, 0.02)), paint=identity.skin
  )


def cane(figure, canvas, arms):
  """Draws a walking stick."""
  side = -figure.identity.bag_side * figure.left
  hand = arms[side][2]
  canvas.line([hand, (hand[0] + side * 0.02, 0.985)], 0.012, (92, 60, 36))


def backpack_strap_side(figure, canvas) -> None:
  """Draws the near shoulder strap of a backpack in profile."""
  depth = figure.build.depth
  path = [
    (-0.3 * depth, figure.shoulder_y - 0.012),
    (0.50 * depth, figure.shoulder_y + 0.03),
    (0.40 * depth, figure.shoulder_y + 0.12),
    (-0.6 * depth, figure.waist_y - 0.02),
  ]
  canvas.line(path, 0.022, palette.scale(figure.identity.bag_color, 0.85))
