"""Draws the body: limbs, clothes, hair, bags, as seen from the front, the back or the side."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfreid.data.synthetic import palette
from tfreid.data.synthetic.canvas import Canvas, ellipse, limb, mirrored, smooth, tube
from tfreid.data.synthetic.cloth import cloth
from tfreid.data.synthetic.identity import Identity
from tfreid.data.synthetic.population import Attributes

VIEWS = ('front', 'back', 'left', 'right')


class Pose(NamedTuple):
  """A moment of a walk.

  Attributes:
    phase: radians of the walking cycle.
    swing: 0..1, amplitude of legs and arms.
    turn: -1..1, small turn of the body away from the exact view.
    carry: 0..1, how far the arm that holds a handbag is bent.
  """

  phase: float = 0.9
  swing: float = 0.5
  turn: float = 0.0
  carry: float = 0.0


class Figure:
  """A person about to be drawn; `draw(canvas)` draws it.

  Args:
    attributes: what must be visible.
    identity: the person's looks.
    view: 'front', 'back', 'left' or 'right' (the way a person seen from the side walks).
    pose: the moment of the walk.
  """

  def __init__(self, attributes: Attributes, identity: Identity, *, view: str, pose: Pose):
    self.attributes, self.identity, self.pose = attributes, identity, pose
    self.view = 'side' if view in ('left', 'right') else view
    # +1 when the person's own left is on the right of the picture. From the side it is -1 for
    # "far from the camera": a person who walks to the left shows the left side.
    self.left = {'front': 1, 'back': -1, 'left': 1, 'right': -1}[view]
    self.flip = view == 'left'
    build = identity.build
    self.build = build
    self.chin = build.head
    self.shoulder_y = build.head * 1.12 + 0.045
    self.crotch = 1.0 - build.leg
    self.waist_y = self.shoulder_y + 0.66 * (self.crotch - self.shoulder_y)
    self.hem_y = self.waist_y + identity.hem + 0.02
    self.knee_y = 1.0 - 0.52 * build.leg
    self.ankle_y = 0.965
    self.upper = self._cloth(
      identity.upper, identity.upper_accents, identity.upper_pattern, self.shoulder_y, self.hem_y
    )
    bottom = self._lower_end()
    self.lower = self._cloth(
      identity.lower, identity.lower_accents, identity.lower_pattern, self.waist_y, bottom
    )

  def canvas(self, size, origin, unit: float) -> Canvas:
    """Returns an empty canvas that stoops and faces as this figure does."""
    stoop, hip = self.build.stoop, self.crotch

    def warp(points):
      above = np.maximum(hip - points[:, 1], 0.0)
      forward = stoop * above * (1.0 + above) if self.view == 'side' else 0.0
      sinks = 0.18 * stoop * above + 0.5 * stoop * above**2
      return np.stack([points[:, 0] + forward, points[:, 1] + sinks], axis=1)

    return Canvas(size, origin, unit, flip=self.flip, warp=warp if stoop > 0 else None)

  def _cloth(self, ground, accents, pattern, top, bottom):
    return cloth(ground, accents, pattern, top=top, bottom=bottom, view=self.view)

  def _lower_end(self) -> float:
    if self.attributes.lower_length == 'long':
      return 0.95
    return self.knee_y - (0.03 if self.attributes.lower == 'dress' else 0.025)

  def draw(self, canvas: Canvas) -> None:
    """Draws the figure, far parts first."""
    if self.view == 'side':
      self._draw_side(canvas)
    else:
      self._draw_upright(canvas)

  # -- front and back ---------------------------------------------------------------------------

  def _draw_upright(self, canvas):
    front = self.view == 'front'
    arms = self._upright_arms()
    if self.attributes.bag == 'backpack' and front:
      self._backpack_behind(canvas)
    if front:
      self._long_hair_behind(canvas)
    self._upright_legs(canvas)
    if not front:
      self._arms(canvas, arms)
    self._upright_lower(canvas)
    self._neck(canvas, 0.0)
    self._upright_torso(canvas)
    if front:
      self._arms(canvas, arms)
    self._strap(canvas)
    if front:
      self._head_front(canvas)
      if self.attributes.bag == 'backpack':
        self._backpack_straps(canvas)
    else:
      self._head_back(canvas)
      if self.attributes.bag == 'backpack':
        self._backpack_back(canvas)
    if self.attributes.hat:
      self._hat(canvas, 0.0)
    self._shoulder_bag(canvas)
    self._handbag(canvas, arms)
    if self.identity.cane:
      self._cane(canvas, arms)

  def _upright_arms(self):
    """Returns for each side (shoulder, elbow, wrist)."""
    build, pose = self.build, self.pose
    arms = {}
    for side in (-1, 1):
      swing = pose.swing * np.sin(pose.phase) * side
      shoulder = (side * (build.shoulder - 0.7 * build.arm), self.shoulder_y + 0.018)
      out = 0.16 + 0.05 * abs(swing)
      upper_arm, forearm = 0.165, 0.145 * (1.0 - 0.12 * max(swing, 0.0))
      elbow = (shoulder[0] + side * upper_arm * np.sin(out), shoulder[1] + upper_arm * np.cos(out))
      inward = 0.02 - 0.22 * max(swing, 0.0)
      wrist = (elbow[0] + side * forearm * np.sin(inward), elbow[1] + forearm * np.cos(inward))
      if self._carries(side):
        # The forearm of a carrying arm hangs straight, so that the bag is beside the leg.
        wrist = (elbow[0] + side * 0.02, elbow[1] + forearm * (1 - 0.25 * pose.carry))
      arms[side] = (shoulder, elbow, wrist)
    return arms

  def _carries(self, side) -> bool:
    return self.attributes.bag == 'handbag' and side == self.identity.bag_side * self.left

  def _arms(self, canvas, arms):
    for side in (-1, 1):
      self._arm(canvas, *arms[side])

  def _arm(self, canvas, shoulder, elbow, wrist, shade=0.3):
    radius = self.build.arm
    skin = self.identity.skin
    canvas.fill(limb(elbow, wrist, 0.78 * radius, 0.62 * radius), paint=skin, shade=shade)
    hand = (wrist[0], wrist[1] + 0.012)
    canvas.fill(ellipse(hand, (0.75 * radius, 0.022)), paint=skin, shade=shade)
    if self.attributes.sleeves == 'long':
      canvas.fill(
        limb(shoulder, elbow, 1.12 * radius, radius),
        limb(elbow, wrist, radius, 0.86 * radius),
        paint=self.upper,
        shade=shade,
      )
    else:
      canvas.fill(limb(shoulder, elbow, 0.8 * radius, 0.78 * radius), paint=skin, shade=shade)
      reach = 0.58
      end = tuple(s + reach * (e - s) for s, e in zip(shoulder, elbow))
      canvas.fill(tube(shoulder, end, 1.15 * radius, 1.2 * radius), paint=self.upper, shade=shade)

  def _upright_joints(self):
    """Returns for each side (hip, knee, ankle): one leg is ahead of the other."""
    build, pose = self.build, self.pose
    joints = {}
    for side in (-1, 1):
      ahead = pose.swing * np.sin(pose.phase) * side * (1 if self.view == 'front' else -1)
      apart = 0.50 * build.hip
      lift = 0.045 * max(-ahead, 0.0)
      hip = (side * apart, self.crotch - 0.005)
      knee = (side * (apart - 0.004), self.knee_y - 0.4 * lift)
      ankle = (side * (apart - 0.012), self.ankle_y - lift)
      joints[side] = (hip, knee, ankle)
    return joints

  def _upright_legs(self, canvas):
    build = self.build
    for side, (hip, knee, ankle) in self._upright_joints().items():
      canvas.fill(
        limb(hip, knee, 0.92 * build.thigh, 0.66 * build.thigh),
        limb(knee, ankle, 0.66 * build.thigh, 0.42 * build.thigh),
        paint=self.identity.skin,
      )
      self._shoe_upright(canvas, ankle, side)
      if self.attributes.lower == 'pants':
        canvas.fill(*self._trouser_leg(hip, knee, ankle), paint=self.lower)

  def _trouser_leg(self, hip, knee, ankle):
    thigh = self.build.thigh
    if self.attributes.lower_length == 'long':
      end = (ankle[0], ankle[1] - 0.006)
      return [
        limb(hip, knee, 1.06 * thigh, 0.90 * thigh),
        limb(knee, end, 0.90 * thigh, 0.74 * thigh),
      ]
    share = (self._lower_end() - hip[1]) / (self.knee_y - hip[1])
    end = tuple(h + share * (k - h) for h, k in zip(hip, knee))
    return [tube(hip, end, 1.08 * thigh, 1.16 * thigh)]

  def _shoe_upright(self, canvas, ankle, side):
    front = self.view == 'front'
    if self.identity.sock:
      below = (ankle[0], ankle[1] - 0.03)
      canvas.fill(
        limb(below, ankle, 0.46 * self.build.thigh, 0.46 * self.build.thigh), paint=(236, 236, 232)
      )
    center = (ankle[0] + side * 0.006, ankle[1] + (0.016 if front else 0.010))
    canvas.fill(ellipse(center, (0.030, 0.024 if front else 0.018)), paint=self.identity.shoe)

  def _upright_lower(self, canvas):
    build = self.build
    end = self._lower_end()
    if self.attributes.lower == 'pants':
      block = mirrored(
        [
          (build.waist, self.waist_y - 0.03),
          (build.hip, self.crotch - 0.03),
          (build.hip, self.crotch + 0.01),
          (0.004, self.crotch + 0.035),
        ]
      )
      canvas.fill(block, paint=self.lower, shade=0.15)
      canvas.line(
        [(0, self.crotch - 0.01), (0, self.crotch + 0.05)],
        0.006,
        palette.scale(self.identity.lower, 0.6),
      )
      return
    flare = 1.42 if self.attributes.lower_length == 'short' else 1.30
    sway = 0.010 * self.pose.swing * np.sin(self.pose.phase)
    skirt = [
      (-build.waist, self.waist_y - 0.03),
      (build.waist, self.waist_y - 0.03),
      (build.hip * 1.06, self.crotch - 0.02),
      (build.hip * flare + sway, end),
      (0.0, end + 0.012),
      (-build.hip * flare + sway, end),
      (-build.hip * 1.06, self.crotch - 0.02),
    ]
    canvas.fill(smooth(skirt, 1), paint=self.lower, shade=0.28)
    dark = palette.scale(self.identity.lower, 0.78)
    for x in (-0.45, 0.1, 0.55):
      canvas.line(
        [(x * build.hip, self.crotch), (x * 1.25 * build.hip + sway, end - 0.004)], 0.005, dark
      )

  def _upright_torso(self, canvas):
    build = self.build
    turn = 1.0 - 0.10 * abs(self.pose.turn)
    neck = 0.42 * build.shoulder
    bottom = self.waist_y if self.identity.one_piece else self.hem_y
    low = build.waist + (build.hip - build.waist) * 0.75
    if self.attributes.gender == 'male':
      low = max(low, 0.9 * build.hip, 0.98 * build.waist)
    outline = mirrored(
      [
        (neck, self.shoulder_y - 0.028),
        (0.80 * build.shoulder, self.shoulder_y - 0.012),
        (build.shoulder * turn, self.shoulder_y + 0.022),
        (build.shoulder * 0.88 * turn, self.shoulder_y + 0.085),
        (build.waist * turn, self.waist_y - 0.035),
        (build.waist * 1.02 * turn, self.waist_y),
        (low, bottom - 0.004),
        (low, bottom),
      ]
    )
    canvas.fill(smooth(outline, 1), paint=self.upper, shade=0.25)
    dark = palette.scale(self.identity.upper, 0.8)
    if self.view == 'front':
      # The neckline shows skin; a woman's chest and a man's flat front are shaded differently.
      canvas.fill(
        ellipse((0, self.shoulder_y - 0.034), (0.62 * neck, 0.034), 0, 180),
        paint=self.identity.skin,
        shade=0,
      )
      if build.bust > 0:
        for side in (-1, 1):
          y = self.shoulder_y + 0.095
          canvas.line(
            ellipse((side * 0.42 * build.shoulder, y), (0.32 * build.shoulder, 0.022), 20, 160),
            0.006,
            dark,
          )

  def _neck(self, canvas, x):
    radius = 0.235 * self.build.head
    if self.attributes.gender == 'male':
      radius *= 1.2
    canvas.fill(
      limb((x, 0.75 * self.chin), (0.6 * x, self.shoulder_y - 0.01), radius, 1.1 * radius),
      paint=palette.scale(self.identity.skin, 0.9),
    )

  # -- heads ------------------------------------------------------------------------------------

  def _head_radii(self):
    head = self.build.head
    wide = 0.385 if self.attributes.age != 'child' else 0.43
    return wide * head, 0.5 * head

  def _long_hair_behind(self, canvas):
    if self.attributes.hair != 'long' or self.identity.hair_style == 'tail':
      return
    rx, ry = self._head_radii()
    end = self.shoulder_y + 0.095
    outline = mirrored(
      [
        (0.4 * rx, -0.02 * ry),
        (1.15 * rx, 0.45 * ry),
        (1.32 * rx, 1.2 * ry),
        (1.42 * rx, self.shoulder_y),
        (1.40 * rx, end),
        (0.6 * rx, end + 0.01),
      ]
    )
    canvas.fill(smooth(outline), paint=self.identity.hair, shade=0.15)

  def _head_front(self, canvas):
    rx, ry = self._head_radii()
    identity = self.identity
    x = 0.30 * rx * self.pose.turn
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
      lips = (176, 62, 70) if self.attributes.gender == 'female' else dark
      canvas.dot((x, 1.50 * ry), (0.28 * rx, 0.07 * ry), lips)
    if identity.glasses:
      for side in (-1, 1):
        ring = ellipse((x + side * 0.40 * rx, 0.98 * ry), (0.30 * rx, 0.2 * ry))
        canvas.line(ring, 0.004, (30, 30, 34))
    self._fringe(canvas, rx, ry)
    if style == 'tail':
      side = identity.bag_side
      end = (side * 0.55 * self.build.shoulder, self.shoulder_y + 0.12)
      canvas.fill(
        limb((side * 1.02 * rx, 1.2 * ry), end, 0.018, 0.014), paint=identity.hair, shade=0.2
      )

  def _fringe(self, canvas, rx, ry):
    style = self.identity.hair_style
    hair = self.identity.hair
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
      part = 0.3 * self.identity.bag_side
      outline = np.concatenate(
        [
          ellipse((0, 0.98 * ry), (1.10 * rx, 1.06 * ry), 165, 375),
          [(0.88 * rx, 0.85 * ry), (part * rx, 0.34 * ry), (-0.88 * rx, 0.85 * ry)],
        ]
      )
    canvas.fill(outline, paint=hair, shade=0.15)

  def _head_back(self, canvas):
    rx, ry = self._head_radii()
    hair, style = self.identity.hair, self.identity.hair_style
    skin = self.identity.skin
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
      end = (0.01 * self.identity.bag_side, self.shoulder_y + 0.14)
      canvas.fill(limb((0, 0.9 * ry), end, 0.026, 0.016), paint=hair, shade=0.35)
    else:
      end = self.shoulder_y + 0.16
      outline = mirrored(
        [
          (0.5 * rx, -0.06 * ry),
          (1.2 * rx, 0.4 * ry),
          (1.34 * rx, 1.3 * ry),
          (1.55 * rx, self.shoulder_y),
          (1.5 * rx, end - 0.03),
          (0.6 * rx, end),
        ]
      )
      canvas.fill(smooth(outline), paint=hair, shade=0.2)

  def _hat(self, canvas, x):
    rx, ry = self._head_radii()
    identity = self.identity
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
    elif self.view == 'side':
      canvas.fill(ellipse((x + 1.2 * rx, crown_y), (0.85 * rx, 0.12 * ry)), paint=dark, shade=0.1)
    elif self.view == 'front':
      canvas.fill(ellipse((x, crown_y + 0.04 * ry), (1.1 * rx, 0.2 * ry)), paint=dark, shade=0.1)

  # -- bags -------------------------------------------------------------------------------------

  def _backpack_outline(self, scale=1.0):
    half = 0.86 * self.build.shoulder * self.identity.bag_size * scale
    top = self.shoulder_y - 0.012
    bottom = self.waist_y + 0.015 * self.identity.bag_size
    return half, top, bottom

  def _backpack_behind(self, canvas):
    """From the front a backpack is all but hidden: its edge shows over the shoulders."""
    half, top, bottom = self._backpack_outline()
    outline = mirrored(
      [(0.6 * half, top - 0.022), (half, top), (half, bottom), (0.8 * half, bottom)]
    )
    canvas.fill(smooth(outline), paint=self.identity.bag_color)

  def _backpack_straps(self, canvas):
    build = self.build
    color = palette.scale(self.identity.bag_color, 0.85)
    for side in (-1, 1):
      canvas.line(
        [
          (side * 0.50 * build.shoulder, self.shoulder_y - 0.022),
          (side * 0.58 * build.shoulder, self.shoulder_y + 0.05),
          (side * 0.74 * build.shoulder, self.shoulder_y + 0.125),
        ],
        0.024,
        color,
      )

  def _backpack_back(self, canvas):
    half, top, bottom = self._backpack_outline()
    identity = self.identity
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
    canvas.line(
      ellipse((0, top - 0.010), (0.2 * half, 0.016), 180, 360), 0.008, identity.bag_accent
    )

  def _strap(self, canvas):
    """The diagonal strap of a shoulder bag, from the far shoulder to the hip that carries it."""
    if self.attributes.bag != 'bag':
      return
    side = self.identity.bag_side * self.left
    build = self.build
    canvas.line(
      [
        (-side * 0.52 * build.shoulder, self.shoulder_y - 0.022),
        (side * 0.1 * build.waist, 0.5 * (self.shoulder_y + self.waist_y) + 0.015),
        (side * 1.0 * build.waist, self.waist_y + 0.02),
      ],
      0.019,
      self.identity.bag_accent,
    )

  def _shoulder_bag(self, canvas):
    if self.attributes.bag != 'bag':
      return
    side = self.identity.bag_side * self.left
    self._bag_box(canvas, side * (self.build.hip + 0.022), self.waist_y + 0.012, 0.070, 0.115)

  def _bag_box(self, canvas, x, top, half, height):
    """A bag with a flap; `x` its middle."""
    identity = self.identity
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

  def _handbag(self, canvas, arms):
    if self.attributes.bag != 'handbag':
      return
    wrist = arms[self.identity.bag_side * self.left][2]
    self._handbag_at(canvas, wrist)

  def _handbag_at(self, canvas, wrist):
    identity = self.identity
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
      ellipse((wrist[0], wrist[1] + 0.012), (0.8 * self.build.arm, 0.02)), paint=identity.skin
    )

  def _cane(self, canvas, arms):
    side = -self.identity.bag_side * self.left
    hand = arms[side][2]
    canvas.line([hand, (hand[0] + side * 0.02, 0.985)], 0.012, (92, 60, 36))

  # -- side -------------------------------------------------------------------------------------

  def _draw_side(self, canvas):
    attributes, pose, build = self.attributes, self.pose, self.build
    swing = (0.12 + 0.36 * pose.swing) * np.sin(pose.phase)
    carried_near = self.identity.bag_side * self.left > 0
    far_arm, near_arm = self._side_arm(swing, far=True), self._side_arm(-swing, far=False)
    far_leg, near_leg = self._side_leg(-swing), self._side_leg(swing)
    self._arm(canvas, *far_arm, shade=0.5)
    if attributes.bag == 'handbag' and not carried_near:
      self._handbag_at(canvas, far_arm[2])
    if attributes.bag == 'bag' and not carried_near:
      self._bag_box(canvas, -0.045, self.waist_y + 0.02, 0.060, 0.110)
    self._side_leg_drawn(canvas, far_leg, shade=0.55)
    if attributes.bag == 'backpack':
      self._backpack_side(canvas)
    self._side_leg_drawn(canvas, near_leg, shade=0.25)
    self._side_lower(canvas)
    self._neck(canvas, 0.008)
    self._side_torso(canvas)
    self._head_side(canvas)
    if attributes.hat:
      self._hat(canvas, 0.006)
    if attributes.bag == 'backpack':
      canvas.line(
        [
          (-0.3 * build.depth, self.shoulder_y - 0.012),
          (0.50 * build.depth, self.shoulder_y + 0.03),
          (0.40 * build.depth, self.shoulder_y + 0.12),
          (-0.6 * build.depth, self.waist_y - 0.02),
        ],
        0.022,
        palette.scale(self.identity.bag_color, 0.85),
      )
    if attributes.bag == 'bag':
      self._strap_side(canvas, carried_near)
    self._arm(canvas, *near_arm)
    if attributes.bag == 'handbag' and carried_near:
      self._handbag_at(canvas, near_arm[2])
    if self.identity.cane:
      hand = (far_arm if carried_near else near_arm)[2]
      canvas.line([hand, (hand[0] + 0.03, 0.985)], 0.012, (92, 60, 36))

  def _side_arm(self, swing, *, far):
    carries = self.attributes.bag == 'handbag' and ((self.identity.bag_side * self.left > 0) != far)
    if carries:
      swing *= 0.4
    shoulder = (0.0, self.shoulder_y + 0.022)
    upper_arm, forearm = 0.160, 0.145
    bend = swing + 0.18 + 0.25 * max(swing, 0.0)
    elbow = (shoulder[0] + upper_arm * np.sin(swing), shoulder[1] + upper_arm * np.cos(swing))
    wrist = (elbow[0] + forearm * np.sin(bend), elbow[1] + forearm * np.cos(bend))
    return shoulder, elbow, wrist

  def _side_leg(self, swing):
    hip = (0.0, self.crotch - 0.01)
    thigh, shin = self.knee_y - hip[1], self.ankle_y - self.knee_y
    bend = swing - (0.10 + 0.5 * max(-swing, 0.0))
    knee = (hip[0] + thigh * np.sin(swing), hip[1] + thigh * np.cos(swing))
    ankle = (knee[0] + shin * np.sin(bend), knee[1] + shin * np.cos(bend))
    return hip, knee, ankle

  def _side_leg_drawn(self, canvas, joints, shade):
    hip, knee, ankle = joints
    thigh = self.build.thigh
    canvas.fill(
      limb(hip, knee, 1.05 * thigh, 0.70 * thigh),
      limb(knee, ankle, 0.70 * thigh, 0.44 * thigh),
      paint=self.identity.skin,
      shade=shade,
    )
    if self.identity.sock:
      above = tuple(a + 0.15 * (k - a) for a, k in zip(ankle, knee))
      canvas.fill(
        limb(above, ankle, 0.46 * thigh, 0.46 * thigh), paint=(236, 236, 232), shade=shade
      )
    sole = ankle[1] + 0.032
    shoe = [
      (ankle[0] - 0.026, ankle[1] - 0.006),
      (ankle[0] + 0.022, ankle[1] - 0.004),
      (ankle[0] + 0.070, sole - 0.012),
      (ankle[0] + 0.072, sole),
      (ankle[0] - 0.030, sole),
    ]
    canvas.fill(smooth(shoe, 1), paint=self.identity.shoe, shade=shade)
    if self.attributes.lower == 'pants':
      if self.attributes.lower_length == 'long':
        shapes = [
          limb(hip, knee, 1.22 * thigh, 0.92 * thigh),
          limb(knee, ankle, 0.92 * thigh, 0.72 * thigh),
        ]
      else:
        share = (self._lower_end() - hip[1]) / (self.knee_y - hip[1])
        end = tuple(h + share * (k - h) for h, k in zip(hip, knee))
        shapes = [tube(hip, end, 1.22 * thigh, 1.22 * thigh)]
      canvas.fill(*shapes, paint=self.lower, shade=shade)

  def _side_lower(self, canvas):
    build = self.build
    seat = 0.80 * build.hip
    end = self._lower_end()
    if self.attributes.lower == 'pants':
      block = [
        (-0.82 * build.depth, self.waist_y - 0.03),
        (0.9 * build.depth, self.waist_y - 0.03),
        (0.85 * seat, self.crotch + 0.01),
        (-seat, self.crotch + 0.01),
      ]
      canvas.fill(smooth(block, 1), paint=self.lower, shade=0.15)
      return
    stride = 0.35 * abs((0.12 + 0.36 * self.pose.swing) * np.sin(self.pose.phase))
    reach = seat * 1.15 + stride * (end - self.crotch) * 1.6
    skirt = [
      (-0.82 * build.depth, self.waist_y - 0.03),
      (0.9 * build.depth, self.waist_y - 0.03),
      (0.9 * seat, self.crotch - 0.02),
      (reach, end),
      (0.0, end + 0.01),
      (-reach, end),
      (-seat * 1.05, self.crotch - 0.02),
    ]
    canvas.fill(smooth(skirt, 1), paint=self.lower, shade=0.28)

  def _side_torso(self, canvas):
    build = self.build
    depth = build.depth
    bottom = self.waist_y if self.identity.one_piece else self.hem_y
    seat = 0.72 * build.hip
    outline = [
      (-0.45 * depth, self.shoulder_y - 0.03),
      (0.35 * depth, self.shoulder_y - 0.025),
      (0.80 * depth, self.shoulder_y + 0.03),
      (0.95 * depth + build.bust, self.shoulder_y + 0.085),
      (0.88 * depth + 0.4 * build.bust + 0.4 * build.belly, self.shoulder_y + 0.13),
      (0.86 * depth + build.belly, self.waist_y - 0.01),
      (0.86 * depth + 0.7 * build.belly, bottom),
      (-seat, bottom),
      (-0.84 * depth, self.waist_y - 0.03),
      (-1.0 * depth, self.shoulder_y + 0.08),
      (-0.92 * depth, self.shoulder_y + 0.01),
    ]
    canvas.fill(smooth(outline, 1), paint=self.upper, shade=0.25)

  def _head_side(self, canvas):
    rx, ry = self._head_radii()
    rx *= 1.12
    identity, style = self.identity, self.identity.hair_style
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
      if self.attributes.gender == 'female':
        lips = (176, 62, 70)
      canvas.line([(x + 0.68 * rx, 1.52 * ry), (x + 0.95 * rx, 1.50 * ry)], 0.007, lips)
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
      end = (x - 1.6 * rx, self.shoulder_y + 0.13)
      canvas.fill(limb(root, middle, 0.020, 0.026), limb(middle, end, 0.026, 0.012), paint=hair)
    elif style == 'loose':
      end = self.shoulder_y + 0.14
      fall = [
        (x - 0.2 * rx, 0.3 * ry),
        (x + 0.22 * rx, 0.8 * ry),
        (x + 0.1 * rx, self.shoulder_y),
        (x - 0.2 * rx, end),
        (x - 1.7 * rx, end),
        (x - 1.65 * rx, self.shoulder_y),
        (x - 1.25 * rx, 0.8 * ry),
      ]
      canvas.fill(smooth(fall), paint=hair, shade=0.2)
    if style in ('crop', 'bun', 'tail'):
      canvas.dot(
        (x - 0.05 * rx, 1.08 * ry), (0.13 * rx, 0.18 * ry), palette.scale(identity.skin, 0.86)
      )

  def _backpack_side(self, canvas):
    half, top, bottom = self._backpack_outline()
    identity = self.identity
    back = -0.7 * self.build.depth
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

  def _strap_side(self, canvas, carried_near):
    build = self.build
    top = (-0.15 * build.depth, self.shoulder_y - 0.02)
    if carried_near:
      # The strap goes over the far shoulder, down chest and back to the near hip.
      for start in (
        (0.55 * build.depth, self.shoulder_y - 0.005),
        (-0.7 * build.depth, self.shoulder_y),
      ):
        canvas.line([start, (-0.01, self.waist_y + 0.03)], 0.017, self.identity.bag_accent)
      self._bag_box(canvas, -0.012, self.waist_y + 0.012, 0.072, 0.118)
    else:
      for end in (
        (0.95 * build.depth, self.shoulder_y + 0.15),
        (-0.95 * build.depth, self.shoulder_y + 0.15),
      ):
        canvas.line([top, end], 0.017, self.identity.bag_accent)
