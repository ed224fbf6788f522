"""What makes a person that person: build, skin, shades, patterns, belongings."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfreid.data.synthetic import palette
from tfreid.data.synthetic.difficulty import Difficulty
from tfreid.data.synthetic.population import Attributes

Color = palette.Color


@dataclasses.dataclass(frozen=True)
class Build:
  """A body's proportions, in units of its own stature unless said otherwise.

  Attributes:
    stature: height against that of an adult man.
    head: height of the head.
    shoulder: half width of the shoulders.
    waist: half width of the waist.
    hip: half width of the hips.
    leg: height of the crotch above the ground.
    arm: radius of the upper arm.
    thigh: radius of the thigh.
    depth: half depth of the chest seen from the side.
    bust: how far the chest swells in front, seen from the side.
    belly: how far the belly swells in front, seen from the side.
    stoop: forward lean of the upper body, in body units per body unit of height.
  """

  stature: float
  head: float
  shoulder: float
  waist: float
  hip: float
  leg: float
  arm: float
  thigh: float
  depth: float
  bust: float
  belly: float
  stoop: float


_BUILDS = {
  # stature, head, shoulder, waist, hip, leg, arm, thigh, depth, bust, belly, stoop
  ('child', 'male'): Build(
    0.70, 0.205, 0.112, 0.090, 0.092, 0.41, 0.033, 0.047, 0.066, 0.0, 0.016, 0.0
  ),
  ('child', 'female'): Build(
    0.68, 0.210, 0.104, 0.084, 0.092, 0.41, 0.031, 0.046, 0.062, 0.0, 0.014, 0.0
  ),
  ('teenager', 'male'): Build(
    0.91, 0.156, 0.104, 0.070, 0.074, 0.485, 0.026, 0.042, 0.054, 0.0, 0.0, 0.0
  ),
  ('teenager', 'female'): Build(
    0.88, 0.157, 0.089, 0.060, 0.080, 0.490, 0.023, 0.041, 0.050, 0.016, 0.0, 0.0
  ),
  ('adult', 'male'): Build(
    1.02, 0.128, 0.134, 0.104, 0.098, 0.475, 0.037, 0.054, 0.072, 0.0, 0.020, 0.0
  ),
  ('adult', 'female'): Build(
    0.97, 0.132, 0.112, 0.082, 0.112, 0.475, 0.031, 0.054, 0.060, 0.030, 0.008, 0.0
  ),
  ('old', 'male'): Build(
    0.93, 0.140, 0.118, 0.106, 0.098, 0.45, 0.031, 0.046, 0.070, 0.0, 0.026, 0.15
  ),
  ('old', 'female'): Build(
    0.89, 0.142, 0.106, 0.100, 0.108, 0.44, 0.030, 0.047, 0.068, 0.018, 0.026, 0.16
  ),
}


@dataclasses.dataclass(frozen=True)
class Identity:
  """The looks of one person beyond the attributes; the same in all of the person's crops.

  Attributes:
    build: proportions.
    skin: colour.
    hair: colour.
    hair_style: 'crop' or 'thin' (men), 'bob' or 'bun' (short), 'loose' or 'tail' (long).
    beard: whether there is one.
    glasses: whether there are.
    upper: ground colour of the top; upper_accents: colours of its marks; upper_pattern: their kind.
    lower: ground colour below; lower_accents; lower_pattern: as for the top.
    one_piece: whether a dress covers both halves (where both have one colour).
    hem: how far the top hangs over the waist, in body units.
    shoe: colour of the shoes; sock: whether socks show.
    hat: 'cap', 'beanie' or 'brim'; hat_color: its colour.
    bag_color: colour of the bag; bag_accent: of its strap and trim.
    bag_size: factor of its size.
    bag_side: +1 on the person's own left, -1 on the right.
    cane: whether an old person walks with one.
  """

  build: Build
  skin: Color
  hair: Color
  hair_style: str
  beard: bool
  glasses: bool
  upper: Color
  upper_accents: tuple[Color, ...]
  upper_pattern: str | None
  lower: Color
  lower_accents: tuple[Color, ...]
  lower_pattern: str | None
  one_piece: bool
  hem: float
  shoe: Color
  sock: bool
  hat: str
  hat_color: Color
  bag_color: Color
  bag_accent: Color
  bag_size: float
  bag_side: int
  cane: bool


# Young people wear other tops and shoes than grown-ups: weak marks of age, beside the build.
_YOUNG_PATTERNS = ('stripes', 'print', 'print', 'raglan', 'hem')
_GROWN_PATTERNS = ('pinstripes', 'stripes', 'open', 'buttons', 'collar')
_YOUNG_SHOES = ('white', 'red', 'blue', 'white', 'green', 'white', 'black', 'yellow')
_GROWN_SHOES = ('black', 'brown', 'black', 'gray', 'black', 'brown', 'white', 'black')
_TROUSER_PATTERNS = ('side', 'faded', 'checks', 'hem', 'pinstripes')
_SKIRT_PATTERNS = ('checks', 'hem', 'pinstripes')
# People whose clothes have no colour column wear several colours at once, or one of these.
_UPPER_OTHERS = ('orange', 'brown')
_LOWER_OTHERS = ('orange', 'red')


def sample_identity(
  attributes: Attributes,
  rng: np.random.Generator,
  difficulty: Difficulty,
) -> Identity:
  """Returns random looks of a person with these attributes."""
  grown = attributes.age in ('adult', 'old')
  build = _vary(_BUILDS[attributes.age, attributes.gender], rng)
  spread = difficulty.shade_spread
  clothes = _clothes(attributes, rng, difficulty)
  hairs = palette.GRAY_HAIRS if attributes.age == 'old' else palette.HAIRS
  style = _hair_style(attributes, rng)
  hair_index = int(rng.integers(len(hairs)))
  skin_index = int(rng.integers(len(palette.SKINS)))
  hat_away = (hairs[hair_index], palette.SKINS[skin_index])
  draws = rng.random(8)
  return Identity(
    build=build,
    skin=_jitter(palette.SKINS[skin_index], rng, 10 * spread),
    hair=_jitter(hairs[hair_index], rng, 10 * spread),
    hair_style=style,
    beard=bool(attributes.gender == 'male' and grown and draws[0] < 0.45),
    glasses=bool(draws[1] < (0.4 if attributes.age == 'old' else 0.15)),
    **clothes,
    hem=0.035 + 0.03 * float(draws[2]),
    shoe=palette.shade((_GROWN_SHOES if grown else _YOUNG_SHOES)[int(8 * draws[3])], rng),
    sock=bool(draws[4] < (0.15 if grown else 0.5)),
    hat=('cap', 'beanie', 'brim')[int(3 * draws[5])],
    hat_color=palette.contrasting(rng, hat_away, ('red', 'blue', 'green', 'yellow', 'white')),
    bag_color=palette.contrasting(rng, (clothes['upper'], clothes['lower']), least=120.0),
    bag_accent=palette.contrasting(
      rng, (clothes['upper'],), ('black', 'white', 'brown', 'beige'), 120.0
    ),
    bag_size=0.92 + 0.22 * float(draws[6]),
    bag_side=1 if draws[7] < 0.5 else -1,
    cane=bool(attributes.age == 'old' and rng.random() < 0.5),
  )


def _clothes(attributes, rng, difficulty):
  """Returns the arguments of Identity about top and bottom."""
  upper, upper_accents, upper_pattern = _garment(
    attributes.upper_color,
    _GROWN_PATTERNS if attributes.age in ('adult', 'old') else _YOUNG_PATTERNS,
    _UPPER_OTHERS,
    rng,
    difficulty,
  )
  lower, lower_accents, lower_pattern = _garment(
    attributes.lower_color,
    _SKIRT_PATTERNS if attributes.lower == 'dress' else _TROUSER_PATTERNS,
    _LOWER_OTHERS,
    rng,
    difficulty,
  )
  one_piece = (
    attributes.lower == 'dress'
    and attributes.upper_color is not None
    and attributes.upper_color == attributes.lower_color
    and rng.random() < 0.8
  )
  if one_piece:
    lower, lower_accents = upper, upper_accents
    lower_pattern = upper_pattern if upper_pattern == 'pinstripes' else None
  return {
    'upper': upper,
    'upper_accents': upper_accents,
    'upper_pattern': upper_pattern,
    'lower': lower,
    'lower_accents': lower_accents,
    'lower_pattern': lower_pattern,
    'one_piece': bool(one_piece),
  }


def _hair_style(attributes, rng) -> str:
  if attributes.hair == 'long':
    return 'tail' if rng.random() < 0.25 else 'loose'
  if attributes.gender == 'male':
    return 'thin' if attributes.age == 'old' and rng.random() < 0.5 else 'crop'
  return 'bun' if rng.random() < 0.3 else 'bob'


def _vary(build: Build, rng) -> Build:
  """Returns the build with each proportion changed by a few percent."""
  values = dataclasses.asdict(build)
  factors = 1.0 + 0.025 * np.clip(rng.standard_normal(len(values)), -1.5, 1.5)
  factors[list(values).index('leg')] = 1.0 + 0.4 * (factors[list(values).index('leg')] - 1.0)
  return Build(**{name: value * float(f) for (name, value), f in zip(values.items(), factors)})


def _jitter(color: Color, rng, amount: float) -> Color:
  red, green, blue = (int(np.clip(c + amount * rng.standard_normal(), 0, 255)) for c in color)
  return red, green, blue


def _garment(name, patterns, others, rng, difficulty):
  """Returns (ground, accents, pattern) of a garment of a named colour, or of None's many."""
  if name is None:
    if rng.random() < 0.3:
      return (
        palette.shade(others[int(rng.integers(len(others)))], rng, difficulty.shade_spread),
        (),
        None,
      )
    names = rng.permutation(['red', 'yellow', 'blue', 'green', 'white', 'black', 'purple'])[:3]
    colors = [palette.shade(n, rng, difficulty.shade_spread) for n in names]
    return colors[0], tuple(colors[1:]), ('blocks', 'bands', 'patches')[int(rng.integers(3))]
  ground = palette.shade(name, rng, difficulty.shade_spread)
  accent = palette.contrasting(rng, (ground,), least=90.0)
  # A mark in another shade of the same colour, and one in another colour.
  lightness = 0.68 if sum(ground) > 240 else 1.22
  accents = (palette.scale(ground, lightness), accent)
  pattern = None
  if rng.random() < difficulty.pattern:
    pattern = patterns[int(rng.integers(len(patterns)))]
  return ground, accents, pattern
