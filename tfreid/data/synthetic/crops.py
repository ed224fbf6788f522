"""A crop: one person, seen by one camera, from one side."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tfreid.data.synthetic import scene
from tfreid.data.synthetic.difficulty import Difficulty, as_difficulty
from tfreid.data.synthetic.figure import VIEWS, Figure, Pose
from tfreid.data.synthetic.identity import Identity
from tfreid.data.synthetic.population import Attributes


def _oversampling(height: int) -> int:
  """Returns how many times larger than the crop the figure is drawn (at least 256 pixels)."""
  return int(np.clip(round(384 / height), 2, 5))


def draw_person(
  attributes: Attributes,
  identity: Identity,
  camera: scene.Camera,
  view: str,
  rng: np.random.Generator,
  *,
  image_size: tuple[int, int] = (128, 64),
  difficulty: Difficulty | str = 'default',
) -> Image.Image:
  """Returns a crop of a person, before JPEG compression.

  Args:
    attributes: what the annotation says.
    identity: the person's looks, from `sample_identity`.
    camera: from `make_cameras`.
    view: 'front', 'back', 'left' or 'right'.
    rng: decides pose, background, occlusion, crop box and recording.
    image_size: (height, width) of the crop.
    difficulty: a Difficulty or a level's name.

  Returns:
    RGB picture of `image_size`.
  """
  if view not in VIEWS:
    raise ValueError(f'Unknown view {view!r}; expected one of {", ".join(VIEWS)}.')
  difficulty = as_difficulty(difficulty)
  height, width = image_size
  factor = _oversampling(height)
  size = (width * factor, height * factor)
  picture = scene.background(camera, size, rng, difficulty)
  _paste_figure(picture, attributes, identity, view, rng, difficulty)
  scene.occlude(picture, rng, difficulty)
  return scene.expose(picture, camera, rng, size=(width, height), difficulty=difficulty)


def _paste_figure(picture, attributes, identity, view, rng, difficulty) -> None:
  """Draws the person into the picture."""
  width, height = picture.size
  pose = Pose(
    phase=float(rng.uniform(0, 2 * np.pi)) if difficulty.pose > 0 else 0.9,
    swing=0.35 + 0.65 * difficulty.pose * float(rng.random()),
    turn=difficulty.pose * float(rng.uniform(-1, 1)),
    carry=float(rng.random()) if difficulty.pose > 0 else 0.0,
  )
  jitter = difficulty.crop_jitter * np.clip(rng.standard_normal(3), -2.2, 2.2)
  # A detector's box fits the body, so that only a part of the differences in stature is left.
  unit = float(0.90 * height * identity.build.stature**0.55 * (1.0 + 1.5 * jitter[0]))
  feet = float(height * (0.968 + jitter[1]))
  middle = float(width * (0.5 + 2.0 * jitter[2]))
  if view in ('left', 'right') and attributes.bag == 'backpack':
    middle += (0.03 if view == 'right' else -0.03) * unit
  figure = Figure(attributes, identity, view=view, pose=pose)
  canvas = figure.canvas(picture.size, (middle, feet - unit), unit)
  figure.draw(canvas)
  scene.cast_shadow(picture, (middle, feet), 0.16 * unit)
  picture.paste(scene.drape(canvas.image, rng, difficulty), (0, 0), canvas.mask)


def draw_junk(
  camera: scene.Camera,
  rng: np.random.Generator,
  *,
  image_size: tuple[int, int],
  difficulty: Difficulty,
  person: tuple[Attributes, Identity] | None = None,
) -> Image.Image:
  """Returns a false detection: background alone, or a small part of a person.

  Args:
    camera: from `make_cameras`.
    rng: the source of randomness.
    image_size: (height, width) of the crop.
    difficulty: as for `draw_person`.
    person: (attributes, identity) of somebody of whom a part is seen; None for nobody.

  Returns:
    RGB picture of `image_size`.
  """
  height, width = image_size
  factor = _oversampling(height)
  size = (width * factor, height * factor)
  picture = scene.background(camera, size, rng, difficulty)
  if person is not None:
    view = VIEWS[int(rng.integers(len(VIEWS)))]
    _paste_figure(picture, *person, view, rng, difficulty)
    # A badly placed box: a corner of the scene, enlarged.
    w, h = size
    left, top = rng.uniform(0, 0.55) * w, rng.uniform(0, 0.6) * h
    picture = picture.crop((int(left), int(top), int(left + 0.45 * w), int(top + 0.4 * h)))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
  return scene.expose(picture, camera, rng, size=(width, height), difficulty=difficulty)
