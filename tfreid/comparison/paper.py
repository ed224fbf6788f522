"""The paper's Tables 2 and 3: which systems are compared, and the figures it prints. Floor 5.

Figures are those of arXiv 1712.01493v1, single runs, in percent. They are shown beside what was
measured and used for nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

# Of a dataset file in gin/datasets, the name of the paper's column.
COLUMNS = {'market1501': 'Market', 'dukemtmc': 'Duke', 'peta': 'PETA'}
# As the loaders name the same data in the rows of results.
_NAMES = {'Market-1501': 'market1501', 'DukeMTMC-reID': 'dukemtmc', 'PETA': 'peta'}

OURS = 'a2img'
WITHOUT_ALIGNMENT = 'without_adversarial'


class System(NamedTuple):
  """A row of the tables.

  Attributes:
    name: of the file in gin/methods.
    label: as the tables print it.
    table2, table3: column of the paper -> what it prints: rank-1, rank-5, rank-10 and mAP in
      Table 2, rank-1 alone in Table 3. Empty where the table does not have the system.
  """

  name: str
  label: str
  table2: Mapping[str, tuple[float, float, float, float]] = {}
  table3: Mapping[str, float] = {}


# In the order of Table 2, then what Table 3 adds.
SYSTEMS = (
  System(
    'dccae',
    'DeepCCAE',
    {
      'Market': (8.12, 23.97, 34.55, 9.72),
      'Duke': (33.28, 59.35, 67.64, 14.95),
      'PETA': (14.24, 22.09, 29.94, 14.45),
    },
  ),
  System(
    'dcca',
    'DeepCCA',
    {
      'Market': (29.94, 50.70, 58.14, 17.47),
      'Duke': (36.71, 58.79, 65.11, 13.53),
      'PETA': (14.44, 20.77, 26.31, 11.49),
    },
  ),
  System(
    'two_way_net',
    '2WayNet',
    {
      'Market': (11.29, 24.38, 31.47, 7.76),
      'Duke': (25.24, 39.88, 45.92, 10.19),
      'PETA': (23.73, 38.53, 41.93, 15.38),
    },
  ),
  System(
    'deepmar',
    'DeepMAR',
    {
      'Market': (13.15, 24.87, 32.90, 8.86),
      'Duke': (36.60, 57.70, 67.00, 14.34),
      'PETA': (17.80, 25.59, 31.06, 12.67),
    },
  ),
  System(
    'without_adversarial',
    'ours w/o adv',
    {
      'Market': (33.83, 48.17, 53.48, 17.82),
      'Duke': (39.30, 55.88, 62.50, 15.17),
      'PETA': (36.34, 48.48, 53.03, 25.35),
    },
    {'Market': 33.8, 'Duke': 39.3, 'PETA': 36.5},
  ),
  System(
    'mmd',
    'ours w/o adv + MMD',
    {
      'Market': (34.15, 47.96, 57.20, 18.90),
      'Duke': (41.77, 62.32, 68.61, 14.23),
      'PETA': (39.31, 48.28, 54.88, 31.54),
    },
  ),
  System(
    'deep_coral',
    'ours w/o adv + DeepCoral',
    {
      'Market': (36.56, 47.61, 55.92, 20.08),
      'Duke': (46.09, 61.02, 68.15, 17.10),
      'PETA': (35.62, 48.65, 53.75, 27.58),
    },
  ),
  System(
    OURS,
    'ours (A2Img)',
    {
      'Market': (40.26, 49.21, 58.61, 20.67),
      'Duke': (46.60, 59.64, 69.07, 15.67),
      'PETA': (39.00, 53.62, 62.20, 27.86),
    },
    {'Market': 40.3, 'Duke': 46.6, 'PETA': 39.0},
  ),
  System('img2a', 'Img2A', {}, {'Market': 36.0, 'Duke': 43.7, 'PETA': 43.6}),
  System('both', 'Both', {}, {'Market': 38.6, 'Duke': 41.3, 'PETA': 34.4}),
  System('image_gan', 'Real (image GAN)', {}, {'Market': 8.13, 'Duke': 20.01, 'PETA': 19.85}),
)
BY_NAME = {system.name: system for system in SYSTEMS}

# How a description may be scored by DeepMAR. A run's own space has one of them, by its recipe; the
# others are evaluated beside it by name.
READINGS = ('cosine', 'log_likelihood', 'requested')

# Table 3 begins with the original.
TABLE3_ORDER = (OURS, 'img2a', 'both', 'image_gan', 'without_adversarial')

# Figure 3 (Sec. 4.5): lambda_G in decades around its best value 0.001 with lambda_D = 1, then
# lambda_D from 0.1 to 2 with the best lambda_G. The text gives the ranges, not the points.
GENERATOR_WEIGHTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
DISCRIMINATOR_WEIGHTS = (0.1, 0.2, 0.5, 1.0, 2.0)
FIXED_DISCRIMINATOR_WEIGHT = 1.0
BEST_WEIGHTS = (0.001, 0.5)


def label(name: str) -> str:
  """How a system is called in the tables: the paper's name, or that of its gin file."""
  return BY_NAME[name].label if name in BY_NAME else name


def has(dataset: str) -> bool:
  """Whether the paper has results on a data set, by the name of its gin file or of its loader."""
  return _NAMES.get(dataset, dataset) in COLUMNS


def column(dataset: str, loaded: Collection[str] = ()) -> str:
  """The paper's column to show beside results on a data set.

  Args:
    dataset: the name of its gin file or of its loader.
    loaded: what the loader called it in each of the results, where that is known.

  Returns:
    Market for a data set that the paper does not have; '' for a part of one that it has, or another
    division of it, which a loader has been given another name for: nothing was published for that.
  """
  if has(dataset) and loaded and not any(map(has, loaded)):
    return ''
  if not has(dataset) and any(dataset.startswith(f'{name},') for name in _NAMES):
    return ''
  return COLUMNS.get(_NAMES.get(dataset, dataset), 'Market')
