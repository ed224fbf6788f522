"""Where and how a person is seen: cameras, backgrounds, occluders, and what a lens does."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tfreid.data.synthetic import palette
from tfreid.data.synthetic.difficulty import Difficulty

NUM_CAMERAS = 6


class Camera(NamedTuple):
  """One fixed camera.

  Attributes:
    number: 1..6, as in the file names.
    gain: factor of the red, green and blue channel.
    exposure: factor of all channels.
    scene: what stands behind people: 'lawn', 'plaza', 'brick', 'road', 'glass' or 'park'.
    horizon: where the ground meets what is behind it, as a share of the crop's height.
    ground: colour of the ground; wall: colour of what is behind.
  """

  number: int
  gain: tuple[float, float, float]
  exposure: float
  scene: str
  horizon: float
  ground: palette.Color
  wall: palette.Color


_SCENES = (
  ('lawn', (118, 140, 84), (74, 98, 62)),
  ('plaza', (172, 166, 156), (142, 138, 134)),
  ('brick', (132, 128, 126), (148, 104, 84)),
  ('road', (104, 106, 110), (168, 172, 174)),
  ('glass', (156, 152, 150), (122, 142, 156)),
  ('park', (158, 144, 118), (96, 116, 84)),
)


def make_cameras(seed: int, difficulty: Difficulty) -> tuple[Camera, ...]:
  """Returns the six cameras of a data set; casts and exposures are spread over their range.

  Args:
    seed: seed of the data set.
    difficulty: its `color_cast` and `exposure` are the half ranges.
  """
  rng = np.random.default_rng([seed, 202])
  spread = np.linspace(-1.0, 1.0, NUM_CAMERAS)
  exposures = 1.0 + difficulty.exposure * rng.permutation(spread)
  gains = np.stack([1.0 + difficulty.color_cast * rng.permutation(spread) for _ in range(3)], 1)
  # A cast changes the hue, not the brightness: that is the exposure's part.
  gains /= gains.mean(axis=1, keepdims=True)
  return tuple(
    Camera(
      number=i + 1,
      gain=(float(gains[i, 0]), float(gains[i, 1]), float(gains[i, 2])),
      exposure=float(exposures[i]),
      scene=scene,
      horizon=float(rng.uniform(0.28, 0.55)),
      ground=ground,
      wall=wall,
    )
    for i, (scene, ground, wall) in enumerate(_SCENES)
  )


def background(
  camera: Camera, size, rng: np.random.Generator, difficulty: Difficulty
) -> Image.Image:
  """Returns what the camera sees without the person, as an RGB picture of `size` (w, h)."""
  full_size, size = size, (-(-size[0] // 2), -(-size[1] // 2))
  width, height = size
  vary = 1.0 + 0.12 * difficulty.texture * rng.standard_normal()
  ground, wall = (
    palette.scale(camera.ground, min(vary, 1.3)),
    palette.scale(camera.wall, min(vary, 1.3)),
  )
  horizon = int(height * (camera.horizon + 0.04 * difficulty.texture * rng.standard_normal()))
  image = Image.new('RGB', size, wall)
  draw = ImageDraw.Draw(image)
  draw.rectangle((0, horizon, width, height), fill=ground)
  if difficulty.texture > 0:
    _surface(draw, camera.scene, size, horizon, wall, ground, rng)
  for _ in range(rng.poisson(difficulty.clutter)):
    _thing(draw, size, horizon, rng)
  if difficulty.texture > 0:
    coarse, fine = 0.30 * difficulty.texture, 0.16 * difficulty.texture
    image = _mottle(image, rng, (coarse, (9, 5)), (fine, (48, 24)))
  # Enlarged, since the camera is focused on the person and not on what is behind.
  return image.resize(full_size, Image.Resampling.BILINEAR)


def _surface(draw, scene, size, horizon, wall, ground, rng):
  """Joints, bricks, panes or trunks, at a random shift."""
  width, height = size
  if scene in ('plaza', 'glass', 'road'):
    tile = height * 0.10
    color = palette.scale(ground, 0.88)
    y, step = horizon, 0.35 * tile
    while y < height:
      draw.line((0, y, width, y), fill=color, width=max(1, height // 250))
      y, step = y + step, step * 1.35
    shift = rng.uniform(-0.5, 0.5)
    for i in range(-6, 7):
      top, low = (i + shift) * 0.16 * width, (i + shift) * 0.42 * width
      draw.line(
        (width / 2 + top, horizon, width / 2 + low, height), fill=color, width=max(1, height // 250)
      )
  if scene == 'road':
    x = rng.uniform(-0.4, 1.0) * width
    draw.polygon(
      [
        (x, horizon),
        (x + 0.05 * width, horizon),
        (x + 0.3 * width, height),
        (x + 0.12 * width, height),
      ],
      fill=(214, 212, 200),
    )
  if scene == 'brick':
    brick, color = height * 0.035, palette.scale(wall, 0.82)
    for row, y in enumerate(np.arange(0, horizon, brick)):
      draw.line((0, y, width, y), fill=color, width=max(1, height // 220))
      for x in np.arange((row % 2) * brick, width, 2 * brick):
        draw.line((x, y, x, min(y + brick, horizon)), fill=color, width=max(1, height // 220))
  if scene == 'glass':
    pane = width * 0.32
    for x in np.arange(-pane + rng.uniform(0, pane), width, pane):
      draw.line((x, 0, x, horizon), fill=palette.scale(wall, 0.6), width=max(2, height // 90))
    draw.line(
      (0, 0.4 * horizon, width, 0.4 * horizon),
      fill=palette.scale(wall, 0.7),
      width=max(1, height // 120),
    )
  if scene in ('lawn', 'park'):
    for _ in range(3):
      x, thick = rng.uniform(0, width), width * rng.uniform(0.03, 0.08)
      draw.rectangle((x, 0, x + thick, horizon), fill=(84, 68, 54))


def _dulled(color: palette.Color) -> palette.Color:
  """The colour of something far away, which has less of it than the person."""
  red, green, blue = (int(0.65 * c + 0.35 * 128) for c in color)
  return red, green, blue


def _thing(draw, size, horizon, rng):
  """One thing of the background, of a random kind and colour."""
  width, height = size
  names = tuple(palette.SHADES)
  color = _dulled(palette.shade(names[int(rng.integers(len(names)))], rng))
  kind = ('pole', 'sign', 'car', 'person', 'bicycle', 'bin')[int(rng.integers(6))]
  x = rng.uniform(0, width)
  base = horizon + rng.uniform(0.0, 0.35) * (height - horizon)
  if kind == 'pole':
    thick = width * rng.uniform(0.02, 0.05)
    draw.rectangle((x, 0, x + thick, base), fill=palette.scale(color, 0.7))
  elif kind == 'sign':
    w, h = width * rng.uniform(0.15, 0.35), height * rng.uniform(0.05, 0.12)
    y = rng.uniform(0.0, max(1.0, horizon - h))
    draw.rectangle((x, y, x + w, y + h), fill=color)
    draw.rectangle(
      (x + 0.1 * w, y + 0.4 * h, x + 0.8 * w, y + 0.55 * h), fill=palette.scale(color, 0.6)
    )
  elif kind == 'car':
    w, h = width * rng.uniform(0.5, 0.9), height * rng.uniform(0.10, 0.16)
    x -= w / 2
    draw.rounded_rectangle((x, base - 0.6 * h, x + w, base), radius=0.2 * h, fill=color)
    draw.rounded_rectangle(
      (x + 0.2 * w, base - h, x + 0.8 * w, base - 0.5 * h), radius=0.2 * h, fill=(60, 70, 80)
    )
    for wheel in (0.2, 0.8):
      cx, r = x + wheel * w, 0.18 * h
      draw.ellipse((cx - r, base - r, cx + r, base + r), fill=(28, 28, 30))
  elif kind == 'person':
    h = height * rng.uniform(0.25, 0.5)
    w = 0.24 * h
    lower = _dulled(palette.shade(names[int(rng.integers(len(names)))], rng))
    top = base - h
    draw.rectangle((x - 0.3 * w, base - 0.5 * h, x - 0.03 * w, base), fill=lower)
    draw.rectangle((x + 0.03 * w, base - 0.5 * h, x + 0.3 * w, base), fill=lower)
    draw.rounded_rectangle(
      (x - w / 2, top + 0.15 * h, x + w / 2, base - 0.45 * h), radius=0.2 * w, fill=color
    )
    draw.ellipse((x - 0.2 * w, top, x + 0.2 * w, top + 0.14 * h), fill=(150, 112, 90))
  elif kind == 'bicycle':
    _bicycle(draw, x, base, height, color)
  else:
    w, h = 0.16 * width, 0.12 * height
    draw.rounded_rectangle((x, base - h, x + w, base), radius=0.1 * w, fill=color)


def _bicycle(draw, x, base, height, color):
  """A bicycle around x that stands on y = base, in a picture so high."""
  r, thick = 0.05 * height, max(1, height // 160)
  for cx in (x - 1.2 * r, x + 1.2 * r):
    draw.ellipse((cx - r, base - 2 * r, cx + r, base), outline=(40, 40, 44), width=thick)
  draw.line(
    (
      x - 1.2 * r,
      base - r,
      x - 0.3 * r,
      base - 2.4 * r,
      x + 0.9 * r,
      base - 2.4 * r,
      x + 1.2 * r,
      base - r,
    ),
    fill=color,
    width=thick,
  )


def _field(size, rng, cells) -> np.ndarray:
  """Returns smooth noise of `size` (w, h), standard deviation about 1, float32 [h, w]."""
  rows, columns = cells
  noise = rng.standard_normal((rows, columns)).astype(np.float32)
  return np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))


def _mottle(image: Image.Image, rng, *layers) -> Image.Image:
  """Returns the picture times smooth noise around 1; each layer is (amount, cells)."""
  factor = np.full(image.size[::-1], 128.0, np.float32)
  for amount, cells in layers:
    factor += (64.0 * amount) * _field(image.size, rng, cells)
  # In 16-bit integers, which is several times faster than in floating point.
  factor = np.clip(factor, 0, 255).astype(np.uint16)
  pixels = np.multiply(np.asarray(image), factor[..., None], dtype=np.uint16) >> 7
  return Image.fromarray(np.minimum(pixels, 255).astype(np.uint8))


def drape(image: Image.Image, rng: np.random.Generator, difficulty: Difficulty) -> Image.Image:
  """Returns the figure with folds: smooth light and dark patches on all of it."""
  if difficulty.texture <= 0:
    return image
  return _mottle(image, rng, (0.24 * difficulty.texture, (26, 9)))


def cast_shadow(image: Image.Image, feet: tuple[float, float], radius: float) -> None:
  """Darkens the ground around the feet (x, y), in place."""
  mask = Image.new('L', image.size)
  x, y = feet
  ImageDraw.Draw(mask).ellipse(
    (x - radius, y - 0.16 * radius, x + radius, y + 0.22 * radius), fill=110
  )
  image.paste((20, 20, 24), (0, 0), mask.filter(ImageFilter.BoxBlur(0.12 * radius)))


def occlude(image: Image.Image, rng: np.random.Generator, difficulty: Difficulty) -> None:
  """Puts something in front of the person, in place, with probability `difficulty.occlusion`."""
  if rng.random() >= difficulty.occlusion:
    return
  width, height = image.size
  draw = ImageDraw.Draw(image)
  size = difficulty.occlusion_size * rng.uniform(0.4, 1.0)
  kind = ('pole', 'bush', 'shoulder', 'railing', 'car')[int(rng.integers(5))]
  names = tuple(palette.SHADES)
  color = palette.shade(names[int(rng.integers(len(names)))], rng)
  if kind == 'pole':
    x, thick = rng.uniform(0.15, 0.85) * width, 0.5 * size * width
    draw.rectangle((x - thick / 2, 0, x + thick / 2, height), fill=(96, 98, 100))
    draw.rectangle((x + 0.2 * thick, 0, x + thick / 2, height), fill=(74, 76, 78))
  elif kind == 'bush':
    for _ in range(40):
      x, y = rng.uniform(0, width), height * (1 - size * rng.uniform(0, 0.9))
      r = rng.uniform(0.04, 0.09) * width
      green = palette.scale((70, 100, 52), rng.uniform(0.6, 1.15))
      draw.ellipse((x - r, y - r, x + r, y + r), fill=green)
      draw.rectangle((x - 0.6 * r, y, x + 0.6 * r, height), fill=palette.scale((60, 88, 48), 0.9))
  elif kind == 'shoulder':
    # Somebody walks past on one side, nearer to the camera.
    side = width if rng.random() < 0.5 else 0
    w, top = size * width, rng.uniform(0.1, 0.5) * height
    draw.ellipse((side - w, top, side + w, top + 2.2 * w), fill=color)
    draw.rectangle((side - w, top + 1.1 * w, side + w, height), fill=color)
    draw.rectangle((side - w, top + 0.4 * height, side + w, height), fill=palette.scale(color, 0.4))
  elif kind == 'railing':
    y, thick = height * (1 - size), max(2, int(0.012 * height))
    for level in np.linspace(y, height, 4):
      draw.line((0, level, width, level), fill=(130, 132, 136), width=thick)
    for x in np.arange(rng.uniform(0, 0.2) * width, width, 0.22 * width):
      draw.line((x, y, x, height), fill=(118, 120, 124), width=thick)
  else:
    y = height * (1 - 0.8 * size)
    draw.rounded_rectangle(
      (-0.2 * width, y, rng.uniform(0.5, 1.2) * width, 1.2 * height),
      radius=0.06 * height,
      fill=color,
    )


def expose(
  image: Image.Image,
  camera: Camera,
  rng: np.random.Generator,
  *,
  size: tuple[int, int],
  difficulty: Difficulty,
) -> Image.Image:
  """Returns the crop as the camera records it: resolution, blur, cast, exposure and noise.

  Args:
    image: the drawn scene, larger than the crop.
    camera: gives gain and exposure.
    rng: the source of randomness.
    size: (width, height) of the crop.
    difficulty: how bad it gets.

  Returns:
    RGB picture of `size`.
  """
  width, height = size
  resolution = 1.0 - (1.0 - difficulty.min_resolution) * rng.random() ** 1.5
  small = (max(4, round(width * resolution)), max(8, round(height * resolution)))
  image = image.resize(small, Image.Resampling.BOX if resolution < 1 else Image.Resampling.LANCZOS)
  if small != size:
    image = image.resize(size, Image.Resampling.BILINEAR)
  radius = difficulty.blur * rng.random() * height / 128
  if radius > 0.05:
    image = image.filter(ImageFilter.GaussianBlur(radius))
  exposure = camera.exposure * (1.0 + 0.25 * difficulty.exposure * rng.standard_normal())
  pixels = np.asarray(image, np.float32) * (exposure * np.asarray(camera.gain, np.float32))
  if difficulty.noise > 0:
    pixels = pixels + difficulty.noise * rng.random() * rng.standard_normal(
      pixels.shape, np.float32
    )
  # A soft shoulder instead of hard clipping, as sensors have: white stays a little below 255.
  over = np.maximum(pixels - 225.0, 0.0)
  pixels = np.minimum(pixels, 225.0) + 30.0 * (1.0 - np.exp(-over / 30.0))
  return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def encode_jpeg(image: Image.Image, rng: np.random.Generator, difficulty: Difficulty) -> bytes:
  """Returns the picture as JPEG bytes of a random quality."""
  low, high = difficulty.jpeg_quality
  buffer = io.BytesIO()
  image.save(buffer, 'JPEG', quality=int(rng.integers(low, high + 1)))
  return buffer.getvalue()
