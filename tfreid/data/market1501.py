"""Market-1501 with its attribute annotations. Floor 1.

Images: Zheng et al., "Scalable person re-identification: A benchmark", ICCV 2015. Annotations:
`market_attribute.mat`, Lin et al., "Improving person re-identification by attribute and identity
learning", Pattern Recognition 2019. Neither is part of this project, and nothing here fetches
them.

    <root>/bounding_box_train/0002_c1s1_000451_03.jpg     person 0002, camera 1
    <root>/bounding_box_test/   '-1' is junk, '0000' a distractor: both are left out and counted
    <root>/query/
    <root>/market_attribute.mat
"""

from __future__ import annotations

import dataclasses
import os
import re

from tfreid.data import reid_folder
from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.data.benchmark import Benchmark
from tfreid.data.words import color_words
from tfreid.image_bytes import ENDING_PATTERN

NAME = 'Market-1501'
ANNOTATION_FILE = 'market_attribute.mat'
VARIABLE = 'market_attribute'
PATTERN = re.compile(
  r'(?P<person>-1|\d{4,})_c(?P<camera>\d+)s\d+_\d+_\d+' + f'{ENDING_PATTERN}+', re.IGNORECASE
)
IGNORED = {'-1': "junk '-1'", '0000': "distractor '0000'"}

UPPER_COLORS = ('black', 'white', 'red', 'purple', 'yellow', 'gray', 'blue', 'green')
LOWER_COLORS = ('black', 'white', 'pink', 'purple', 'yellow', 'gray', 'blue', 'green', 'brown')

_TOPS = ('top', 'shirt', 't-shirt', 'jacket', 'coat', 'sweater', 'upper body')
_BOTTOMS = (
  *('pants', 'trousers', 'jeans', 'shorts', 'skirt', 'dress', 'bottoms', 'leggings'),
  'lower body',
)

# The annotation file's columns, in the order that the semantic IDs are sorted by. Values are 1 and
# 2, "no" and "yes" except where the schema says otherwise. `up` and `down` are lengths; the
# colours start with the same letters (`upred`), so nothing may be found by prefix.
RAW_VALUES = {
  'age': (1, 2, 3, 4),
  **dict.fromkeys(('gender', 'hair', 'up', 'down', 'clothes'), (1, 2)),
  **dict.fromkeys(('hat', 'backpack', 'bag', 'handbag'), (1, 2)),
  **dict.fromkeys((f'up{color}' for color in UPPER_COLORS), (1, 2)),
  **dict.fromkeys((f'down{color}' for color in LOWER_COLORS), (1, 2)),
}

SCHEMA = AttributeSchema(
  name=NAME,
  attributes=(
    Attribute(
      name='age',
      values=('child', 'teenager', 'adult', 'old'),
      columns=(('age', 1), ('age', 2), ('age', 3), ('age', 4)),
      words={
        'child': ('child', 'kid'),
        'teenager': ('teenager', 'teenage', 'teen'),
        'adult': ('adult', 'grown-up'),
        'old': ('old', 'elderly', 'old person', 'elderly person', 'senior'),
      },
    ),
    Attribute(
      name='gender',
      values=('male', 'female'),
      columns=(('gender', 2),),
      words={'male': ('male', 'man'), 'female': ('female', 'woman')},
    ),
    Attribute(
      name='hair',
      values=('short', 'long'),
      columns=(('hair', 2),),
      words={
        'short': ('short hair', 'short haired', 'short-haired'),
        'long': ('long hair', 'long haired', 'long-haired'),
      },
    ),
    Attribute(
      name='sleeves',
      values=('long', 'short'),
      columns=(('up', 2),),
      words={
        'long': ('long sleeves', 'long sleeve', 'long-sleeved', 'long sleeved'),
        'short': ('short sleeves', 'short sleeve', 'short-sleeved', 'short sleeved'),
      },
    ),
    Attribute(
      name='lower_length',
      values=('long', 'short'),
      columns=(('down', 2),),
      words={
        'long': ('long lower body clothing', 'long pants', 'long trousers', 'long skirt'),
        'short': ('short lower body clothing', 'shorts', 'short pants', 'short skirt'),
      },
    ),
    Attribute(
      name='lower_type',
      values=('dress', 'pants'),
      columns=(('clothes', 2),),
      words={'dress': ('dress', 'skirt'), 'pants': ('pants', 'trousers', 'jeans')},
    ),
    Attribute('hat', ('no', 'yes'), (('hat', 2),), words={'yes': ('hat', 'cap')}),
    Attribute(
      'backpack', ('no', 'yes'), (('backpack', 2),), words={'yes': ('backpack', 'rucksack')}
    ),
    Attribute('bag', ('no', 'yes'), (('bag', 2),), words={'yes': ('bag', 'shoulder bag')}),
    Attribute('handbag', ('no', 'yes'), (('handbag', 2),), words={'yes': ('handbag', 'purse')}),
    Attribute(
      name='upper_color',
      values=UPPER_COLORS,
      columns=tuple((f'up{color}', 2) for color in UPPER_COLORS),
      words=color_words(UPPER_COLORS, _TOPS),
    ),
    Attribute(
      name='lower_color',
      values=LOWER_COLORS,
      columns=tuple((f'down{color}', 2) for color in LOWER_COLORS),
      words=color_words(LOWER_COLORS, _BOTTOMS),
    ),
  ),
  raw_values=RAW_VALUES,
)


def load(
  root: str | os.PathLike,
  *,
  annotations: str | os.PathLike | None = None,
  name: str = NAME,
  encoding: str = 'binary',
  validation_share: float = 0.0,
  seed: int = 0,
) -> Benchmark:
  """Market-1501: 508 training and 484 test semantic IDs, a gallery of test and query together.

  Args:
    root: the folder with `bounding_box_train`, `bounding_box_test` and `query`.
    annotations: the attribute file; default `<root>/market_attribute.mat`.
    name: of the data set in reports, where other images come in Market-1501's layout.
    encoding: of the attribute vectors, 'binary' (as in the paper) or 'three_state'.
    validation_share: share of the training semantic IDs to hold out; 0 in the paper's recipes.
    seed: of that draw.

  Raises:
    FileNotFoundError: a folder or the annotation file is missing.
    ValueError: a folder without crops, or annotations that do not fit.
  """
  schema = dataclasses.replace(SCHEMA, name=name, encoding=encoding)
  folder = reid_folder.check_root(root, name=name)
  source = folder / ANNOTATION_FILE if annotations is None else annotations
  return reid_folder.load_benchmark(
    folder,
    reid_folder.read_attribute_mat(source, VARIABLE),
    name=name,
    schema=schema,
    pattern=PATTERN,
    source=source,
    ignored=IGNORED,
    validation_share=validation_share,
    seed=seed,
  )
