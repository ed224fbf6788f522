"""The body seen from the side, facing right: limbs, torso and what covers them."""

from __future__ import annotations

import numpy as np

from tfreid.data.synthetic.canvas import Point, limb, smooth, tube


def stride(pose) -> float:
  """Returns how far the near leg is ahead, in radians; never so little that the legs merge."""
  swing = np.sin(pose.phase)
  return float((0.12 + 0.36 * pose.swing) * np.copysign(0.4 + 0.6 * abs(swing), swing))


def arm(figure, swing: float, *, far: bool) -> tuple[Point, Point, Point]:
  """Returns shoulder, elbow and wrist of the near or far arm, `swing` radians ahead."""
  near = figure.identity.bag_side * figure.left > 0
  if figure.attributes.bag == 'handbag' and near != far:
    swing *= 0.4
  shoulder = (0.0, figure.shoulder_y + 0.022)
  upper_arm, forearm = 0.160, 0.145
  bend = swing + 0.18 + 0.25 * max(swing, 0.0)
  elbow = (shoulder[0] + upper_arm * np.sin(swing), shoulder[1] + upper_arm * np.cos(swing))
  wrist = (elbow[0] + forearm * np.sin(bend), elbow[1] + forearm * np.cos(bend))
  return shoulder, elbow, wrist


def leg(figure, swing: float) -> tuple:
  """Returns hip, knee and ankle of a leg that is `swing` radians ahead."""
  hip = (0.0, figure.crotch - 0.01)
  thigh, shin = figure.knee_y - hip[1], figure.ankle_y - figure.knee_y
  bend = swing - (0.10 + 0.5 * max(-swing, 0.0))
  knee = (hip[0] + thigh * np.sin(swing), hip[1] + thigh * np.cos(swing))
  ankle = (knee[0] + shin * np.sin(bend), knee[1] + shin * np.cos(bend))
  return hip, knee, ankle


def draw_leg(figure, canvas, joints, *, shade: float) -> None:
  """Draws a leg with shoe and trouser leg."""
  hip, knee, ankle = joints
  thigh = figure.build.thigh
  canvas.fill(
    limb(hip, knee, 1.05 * thigh, 0.70 * thigh),
    limb(knee, ankle, 0.70 * thigh, 0.44 * thigh),
    paint=figure.identity.skin,
    shade=shade,
  )
  if figure.identity.sock:
    above = tuple(a + 0.15 * (k - a) for a, k in zip(ankle, knee))
    canvas.fill(limb(above, ankle, 0.46 * thigh, 0.46 * thigh), paint=(236, 236, 232), shade=shade)
  sole = ankle[1] + 0.032
  shoe = [
    (ankle[0] - 0.026, ankle[1] - 0.006),
    (ankle[0] + 0.022, ankle[1] - 0.004),
    (ankle[0] + 0.070, sole - 0.012),
    (ankle[0] + 0.072, sole),
    (ankle[0] - 0.030, sole),
  ]
  canvas.fill(smooth(shoe, 1), paint=figure.identity.shoe, shade=shade)
  if figure.attributes.lower == 'pants':
    if figure.attributes.lower_length == 'long':
      shapes = [
        limb(hip, knee, 1.22 * thigh, 0.92 * thigh),
        limb(knee, ankle, 0.92 * thigh, 0.72 * thigh),
      ]
    else:
      share = (figure.lower_end() - hip[1]) / (figure.knee_y - hip[1])
      end = tuple(h + share * (k - h) for h, k in zip(hip, knee))
      shapes = [tube(hip, end, 1.22 * thigh, 1.08 * thigh)]
    canvas.fill(*shapes, paint=figure.lower, shade=shade)


def lower(figure, canvas) -> None:
  """Draws the seat of the trousers, or the skirt."""
  build = figure.build
  seat = 0.80 * build.hip
  end = figure.lower_end()
  if figure.attributes.lower == 'pants':
    block = [
      (-0.82 * build.depth, figure.waist_y - 0.03),
      (0.9 * build.depth, figure.waist_y - 0.03),
      (0.85 * seat, figure.crotch + 0.01),
      (-seat, figure.crotch + 0.01),
    ]
    canvas.fill(smooth(block, 1), paint=figure.lower, shade=0.15)
    return
  reach = seat * 1.15 + 0.56 * abs(stride(figure.pose)) * (end - figure.crotch)
  skirt = [
    (-0.82 * build.depth, figure.waist_y - 0.03),
    (0.9 * build.depth, figure.waist_y - 0.03),
    (0.9 * seat, figure.crotch - 0.02),
    (reach, end),
    (0.0, end + 0.01),
    (-reach, end),
    (-seat * 1.05, figure.crotch - 0.02),
  ]
  canvas.fill(smooth(skirt, 1), paint=figure.lower, shade=0.28)


def torso(figure, canvas) -> None:
  """Draws the top without its sleeves."""
  build = figure.build
  depth = build.depth
  bottom = figure.waist_y if figure.identity.one_piece else figure.hem_y
  seat = 0.72 * build.hip
  outline = [
    (-0.45 * depth, figure.shoulder_y - 0.03),
    (0.35 * depth, figure.shoulder_y - 0.025),
    (0.80 * depth, figure.shoulder_y + 0.03),
    (0.95 * depth + build.bust, figure.shoulder_y + 0.085),
    (0.88 * depth + 0.4 * build.bust + 0.4 * build.belly, figure.shoulder_y + 0.13),
    (0.86 * depth + build.belly, figure.waist_y - 0.01),
    (0.86 * depth + 0.7 * build.belly, bottom),
    (-seat, bottom),
    (-0.84 * depth, figure.waist_y - 0.03),
    (-1.0 * depth, figure.shoulder_y + 0.08),
    (-0.92 * depth, figure.shoulder_y + 0.01),
  ]
  canvas.fill(smooth(outline, 1), paint=figure.upper, shade=0.25)
