"""Draws the body: limbs, clothes, hair, bags, as seen from the front, the back or the side."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfreid.data.synthetic import belongings, body_front, body_side, head
from tfreid.data.synthetic.canvas import Canvas, ellipse, limb, tube
from tfreid.data.synthetic.fabric import fabric
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
    self.upper = self._fabric(
      identity.upper, identity.upper_accents, identity.upper_pattern, self.shoulder_y, self.hem_y
    )
    bottom = self.lower_end()
    self.lower = self._fabric(
      identity.lower, identity.lower_accents, identity.lower_pattern, self.waist_y, bottom
    )

  def canvas(self, size, origin, unit: float) -> Canvas:
    """Returns an empty canvas that stoops and faces as this figure does."""
    stoop, hip = self.build.stoop, self.crotch

    def warp(points):
      above = np.maximum(hip - points[:, 1], 0.0)
      forward = stoop * above * (1.0 + above) if self.view == 'side' else 0.0
      sinks = 0.18 * stoop * above + 0.5 * stoop * above**2
      # Hips and feet stay behind, so that the person remains in the middle of the crop.
      back = 0.25 * stoop if self.view == 'side' else 0.0
      return np.stack([points[:, 0] + forward - back, points[:, 1] + sinks], axis=1)

    return Canvas(size, origin, unit, flip=self.flip, warp=warp if stoop > 0 else None)

  def _fabric(self, ground, accents, pattern, top, bottom):
    return fabric(ground, accents, pattern, top=top, bottom=bottom, view=self.view)

  def lower_end(self) -> float:
    """Returns y of the hem of trousers or skirt."""
    if self.attributes.lower_length == 'long':
      return 0.95
    return self.knee_y - (0.045 if self.attributes.lower == 'dress' else 0.02)

  def draw(self, canvas: Canvas) -> None:
    """Draws the figure, far parts first."""
    if self.view == 'side':
      self._draw_side(canvas)
    else:
      self._draw_upright(canvas)

  def _draw_upright(self, canvas):
    front = self.view == 'front'
    arms = body_front.arms(self)
    if self.attributes.bag == 'backpack' and front:
      belongings.backpack_behind(self, canvas)
    if front:
      head.long_hair_behind(self, canvas)
    body_front.legs(self, canvas)
    if not front:
      self._arms(canvas, arms)
    body_front.lower(self, canvas)
    head.neck(self, canvas, 0.0)
    body_front.torso(self, canvas)
    if front:
      self._arms(canvas, arms)
    belongings.strap(self, canvas)
    if front:
      head.front(self, canvas)
      if self.attributes.bag == 'backpack':
        belongings.backpack_straps(self, canvas)
    else:
      head.back(self, canvas)
      if self.attributes.bag == 'backpack':
        belongings.backpack_back(self, canvas)
    if self.attributes.hat:
      head.hat(self, canvas, 0.0)
    belongings.shoulder_bag(self, canvas)
    belongings.handbag(self, canvas, arms)
    if self.identity.cane:
      belongings.cane(self, canvas, arms)

  def carries(self, side: int) -> bool:
    """Returns whether the arm on this side of the picture holds a handbag."""
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

  def _draw_side(self, canvas):
    attributes, pose = self.attributes, self.pose
    swing = body_side.stride(pose)
    carried_near = self.identity.bag_side * self.left > 0
    far_arm, near_arm = body_side.arm(self, swing, far=True), body_side.arm(self, -swing, far=False)
    far_leg, near_leg = body_side.leg(self, -swing), body_side.leg(self, swing)
    self._arm(canvas, *far_arm, shade=0.5)
    if attributes.bag == 'handbag' and not carried_near:
      belongings.handbag_at(self, canvas, far_arm[2])
    if attributes.bag == 'bag' and not carried_near:
      belongings.bag_box(self, canvas, -0.045, self.waist_y + 0.02, 0.060, 0.110)
    body_side.draw_leg(self, canvas, far_leg, shade=0.55)
    if attributes.bag == 'backpack':
      belongings.backpack_side(self, canvas)
    body_side.draw_leg(self, canvas, near_leg, shade=0.25)
    body_side.lower(self, canvas)
    head.neck(self, canvas, 0.008)
    body_side.torso(self, canvas)
    head.profile(self, canvas)
    if attributes.hat:
      head.hat(self, canvas, 0.006)
    if attributes.bag == 'backpack':
      belongings.backpack_strap_side(self, canvas)
    if attributes.bag == 'bag':
      belongings.strap_side(self, canvas, carried_near)
    self._arm(canvas, *near_arm)
    if attributes.bag == 'handbag' and carried_near:
      belongings.handbag_at(self, canvas, near_arm[2])
    if self.identity.cane:
      hand = (far_arm if carried_near else near_arm)[2]
      canvas.line([hand, (hand[0] + 0.03, 0.985)], 0.012, (92, 60, 36))
