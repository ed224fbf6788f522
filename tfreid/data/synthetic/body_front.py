"""The body seen from the front or the back: limbs, torso and what covers them."""

from __future__ import annotations

import numpy as np

from tfreid.data.synthetic import palette
from tfreid.data.synthetic.canvas import ellipse, limb, mirrored, smooth, tube


def arms(figure) -> dict:
  """Returns for each side (-1 left in the picture, 1 right) shoulder, elbow and wrist."""
  build, pose = figure.build, figure.pose
  joints = {}
  for side in (-1, 1):
    swing = pose.swing * np.sin(pose.phase) * side
    shoulder = (side * (build.shoulder - 0.7 * build.arm), figure.shoulder_y + 0.018)
    out = 0.16 + 0.05 * abs(swing)
    upper_arm, forearm = 0.165, 0.145 * (1.0 - 0.12 * max(swing, 0.0))
    elbow = (shoulder[0] + side * upper_arm * np.sin(out), shoulder[1] + upper_arm * np.cos(out))
    inward = 0.02 - 0.22 * max(swing, 0.0)
    wrist = (elbow[0] + side * forearm * np.sin(inward), elbow[1] + forearm * np.cos(inward))
    if figure.carries(side):
      # The forearm of a carrying arm hangs straight, so that the bag is beside the leg.
      wrist = (elbow[0] + side * 0.02, elbow[1] + forearm * (1 - 0.25 * pose.carry))
    joints[side] = (shoulder, elbow, wrist)
  return joints


def joints(figure) -> dict:
  """Returns for each side hip, knee and ankle; one leg is ahead of the other."""
  build, pose = figure.build, figure.pose
  joints = {}
  for side in (-1, 1):
    ahead = pose.swing * np.sin(pose.phase) * side * (1 if figure.view == 'front' else -1)
    # Shorts and trousers show a gap between the legs; below a skirt they stand close.
    apart = (0.54 if figure.attributes.lower == 'pants' else 0.46) * build.hip
    lift = 0.045 * max(-ahead, 0.0)
    hip = (side * apart, figure.crotch - 0.005)
    knee = (side * (apart + 0.006), figure.knee_y - 0.4 * lift)
    ankle = (side * (apart + 0.002), figure.ankle_y - lift)
    joints[side] = (hip, knee, ankle)
  return joints


def legs(figure, canvas) -> None:
  """Draws bare legs, shoes and trouser legs."""
  build = figure.build
  for side, (hip, knee, ankle) in joints(figure).items():
    canvas.fill(
      limb(hip, knee, 0.92 * build.thigh, 0.66 * build.thigh),
      limb(knee, ankle, 0.66 * build.thigh, 0.42 * build.thigh),
      paint=figure.identity.skin,
    )
    shoe(figure, canvas, ankle, side)
    if figure.attributes.lower == 'pants':
      canvas.fill(*trouser_leg(figure, hip, knee, ankle), paint=figure.lower)


def trouser_leg(figure, hip, knee, ankle) -> list:
  """Returns the outlines of one trouser leg, to the ankle or to the knee."""
  thigh = figure.build.thigh
  if figure.attributes.lower_length == 'long':
    end = (ankle[0], ankle[1] - 0.006)
    return [
      limb(hip, knee, 1.06 * thigh, 0.90 * thigh),
      limb(knee, end, 0.90 * thigh, 0.74 * thigh),
    ]
  share = (figure.lower_end() - hip[1]) / (figure.knee_y - hip[1])
  end = tuple(h + share * (k - h) for h, k in zip(hip, knee))
  # As wide as leaves a gap to the other leg: shorts must not look like a skirt.
  return [tube(hip, end, min(1.08 * thigh, abs(hip[0])), max(0.9 * thigh, abs(end[0]) - 0.007))]


def shoe(figure, canvas, ankle, side) -> None:
  """Draws a shoe, and a sock where the person shows them."""
  front = figure.view == 'front'
  if figure.identity.sock:
    below = (ankle[0], ankle[1] - 0.03)
    radius = 0.46 * figure.build.thigh
    canvas.fill(limb(below, ankle, radius, radius), paint=(236, 236, 232))
  center = (ankle[0] + side * 0.006, ankle[1] + (0.016 if front else 0.010))
  canvas.fill(ellipse(center, (0.030, 0.024 if front else 0.018)), paint=figure.identity.shoe)


def lower(figure, canvas) -> None:
  """Draws the hips in trousers, or the skirt."""
  build = figure.build
  end = figure.lower_end()
  if figure.attributes.lower == 'pants':
    block = mirrored(
      [
        (build.waist, figure.waist_y - 0.03),
        (build.hip, figure.crotch - 0.03),
        (build.hip, figure.crotch + 0.01),
        (0.004, figure.crotch + 0.035),
      ]
    )
    canvas.fill(block, paint=figure.lower, shade=0.15)
    dark = palette.scale(figure.identity.lower, 0.55)
    inseam = [(0, figure.crotch - 0.005), (0, min(end, figure.crotch + 0.16))]
    canvas.line(inseam, 0.008, dark)
    return
  flare = 1.58 if figure.attributes.lower_length == 'short' else 1.50
  sway = 0.010 * figure.pose.swing * np.sin(figure.pose.phase)
  skirt = [
    (-build.waist, figure.waist_y - 0.03),
    (build.waist, figure.waist_y - 0.03),
    (build.hip * 1.06, figure.crotch - 0.02),
    (build.hip * flare + sway, end),
    (0.0, end + 0.012),
    (-build.hip * flare + sway, end),
    (-build.hip * 1.06, figure.crotch - 0.02),
  ]
  canvas.fill(smooth(skirt, 1), paint=figure.lower, shade=0.28)
  dark = palette.scale(figure.identity.lower, 0.78)
  for x in (-0.45, 0.1, 0.55):
    canvas.line(
      [(x * build.hip, figure.crotch), (x * 1.25 * build.hip + sway, end - 0.004)], 0.005, dark
    )


def torso(figure, canvas) -> None:
  """Draws the top without its sleeves."""
  build = figure.build
  turn = 1.0 - 0.10 * abs(figure.pose.turn)
  neck = 0.42 * build.shoulder
  bottom = figure.waist_y if figure.identity.one_piece else figure.hem_y
  low = build.waist + (build.hip - build.waist) * 0.75
  if figure.attributes.gender == 'male':
    low = max(low, 0.9 * build.hip, 0.98 * build.waist)
  outline = mirrored(
    [
      (neck, figure.shoulder_y - 0.028),
      (0.80 * build.shoulder, figure.shoulder_y - 0.012),
      (build.shoulder * turn, figure.shoulder_y + 0.022),
      (build.shoulder * 0.88 * turn, figure.shoulder_y + 0.085),
      (build.waist * turn, figure.waist_y - 0.035),
      (build.waist * 1.02 * turn, figure.waist_y),
      (low, bottom - 0.004),
      (low, bottom),
    ]
  )
  canvas.fill(smooth(outline, 1), paint=figure.upper, shade=0.25)
  dark = palette.scale(figure.identity.upper, 0.8)
  if figure.view == 'front':
    # The neckline shows skin; a woman's chest and a man's flat front are shaded differently.
    canvas.fill(
      ellipse((0, figure.shoulder_y - 0.034), (0.62 * neck, 0.034), 0, 180),
      paint=figure.identity.skin,
      shade=0,
    )
    if build.bust > 0:
      for side in (-1, 1):
        y = figure.shoulder_y + 0.095
        canvas.line(
          ellipse((side * 0.42 * build.shoulder, y), (0.32 * build.shoulder, 0.022), 20, 160),
          0.006,
          dark,
        )
