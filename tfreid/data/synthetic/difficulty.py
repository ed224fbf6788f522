"""How hard the synthetic people are to recognise: one dataclass, four named levels."""

from __future__ import annotations

import dataclasses

# Field -> the values that make sense.
_RANGES = {
  'color_cast': (0.0, 0.5),
  'exposure': (0.0, 0.5),
  'shade_spread': (0.0, 1.0),
  'pattern': (0.0, 1.0),
  'tail': (0.0, 4.0),
  'pose': (0.0, 1.0),
  'clutter': (0.0, 50.0),
  'texture': (0.0, 1.0),
  'occlusion': (0.0, 1.0),
  'occlusion_size': (0.0, 1.0),
  'crop_jitter': (0.0, 0.5),
  'min_resolution': (0.05, 1.0),
  'blur': (0.0, 20.0),
  'noise': (0.0, 100.0),
}


@dataclasses.dataclass(frozen=True)
class Difficulty:
  """What makes a synthetic crop hard; every field is harmless at its 'clean' value.

  The defaults are the 'default' level: hard, yet a person can still name the attributes of
  nearly every crop.

  Attributes:
    color_cast: half range of a camera's gain per colour channel; 0.1 = 0.9 to 1.1.
    exposure: half range of a camera's exposure, and of half that much from crop to crop.
    shade_spread: 0..1, how much of a colour name's range of shades people wear; 0 = one shade.
    pattern: 0..1, probability that a garment has stripes, checks, a print or an open front:
      marks of a person that no attribute names.
    tail: exponent of the attribute frequencies; 1 = as long-tailed as Market-1501, 0 = uniform.
    pose: 0..1, walking amplitude and turn of the body away from the exact view.
    clutter: expected number of things in the background (poles, windows, cars, passers-by).
    texture: 0..1, contrast of background texture and of the folds in cloth.
    occlusion: probability that something stands in front of the person.
    occlusion_size: largest part of the crop's width or height that it covers.
    crop_jitter: standard deviation of the crop box's shift and scale, in box heights.
    min_resolution: in (0, 1], worst resolution of a crop before it is scaled to its size.
    blur: largest Gaussian blur radius, in pixels of a crop 128 high.
    noise: standard deviation of the sensor noise, in 0..255 units.
    jpeg_quality: lowest and highest JPEG quality.
  """

  color_cast: float = 0.10
  exposure: float = 0.18
  shade_spread: float = 0.85
  pattern: float = 0.55
  tail: float = 0.8
  pose: float = 0.8
  clutter: float = 2.0
  texture: float = 0.6
  occlusion: float = 0.2
  occlusion_size: float = 0.3
  crop_jitter: float = 0.025
  min_resolution: float = 0.5
  blur: float = 0.8
  noise: float = 4.0
  jpeg_quality: tuple[int, int] = (55, 92)

  def __post_init__(self):
    # A list from a gin or json file is as good as a tuple, and must compare equal to it.
    if isinstance(self.jpeg_quality, list):
      object.__setattr__(self, 'jpeg_quality', tuple(self.jpeg_quality))
    for name, (low, high) in _RANGES.items():
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f'Difficulty.{name} must be a number in [{low}, {high}], not {value!r}.')
    quality = self.jpeg_quality
    whole = isinstance(quality, tuple) and all(isinstance(q, int) for q in quality)
    if not whole or len(quality) != 2 or not 1 <= quality[0] <= quality[1] <= 100:
      raise ValueError(
        'Difficulty.jpeg_quality must be whole numbers (lowest, highest) with 1 <= lowest <= '
        f'highest <= 100, not {quality!r}.'
      )


LEVELS = {
  'clean': Difficulty(
    color_cast=0.0,
    exposure=0.0,
    shade_spread=0.0,
    pattern=0.0,
    tail=0.5,
    pose=0.0,
    clutter=0.0,
    texture=0.0,
    occlusion=0.0,
    occlusion_size=0.0,
    crop_jitter=0.0,
    min_resolution=1.0,
    blur=0.0,
    noise=0.0,
    jpeg_quality=(95, 95),
  ),
  'easy': Difficulty(
    color_cast=0.04,
    exposure=0.08,
    shade_spread=0.5,
    pattern=0.3,
    tail=0.5,
    pose=0.5,
    clutter=0.6,
    texture=0.3,
    occlusion=0.04,
    occlusion_size=0.2,
    crop_jitter=0.012,
    min_resolution=0.8,
    blur=0.3,
    noise=2.0,
    jpeg_quality=(80, 95),
  ),
  'default': Difficulty(),
  'hard': Difficulty(
    color_cast=0.16,
    exposure=0.28,
    shade_spread=1.0,
    pattern=0.75,
    tail=1.0,
    pose=1.0,
    clutter=3.5,
    texture=1.0,
    occlusion=0.35,
    occlusion_size=0.42,
    crop_jitter=0.045,
    min_resolution=0.3,
    blur=1.3,
    noise=7.0,
    jpeg_quality=(35, 85),
  ),
}


def as_difficulty(difficulty: Difficulty | str) -> Difficulty:
  """Returns a Difficulty from one, or from the name of a level ('easy', 'default', 'hard')."""
  if isinstance(difficulty, Difficulty):
    return difficulty
  if not isinstance(difficulty, str) or difficulty not in LEVELS:
    raise ValueError(f'Unknown difficulty {difficulty!r}; expected one of {", ".join(LEVELS)}.')
  return LEVELS[difficulty]
