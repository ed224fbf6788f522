"""PETA, the PEdesTrian Attribute data set. Floor 1.

Deng et al., "Pedestrian attribute recognition at far distance", ACM MM 2014. Nothing here
fetches it. PETA has no splits for retrieval, so the semantic IDs are split. All images of a person
are annotated alike, so that this splits the people too; `Split.person_ids` and `Split.subsets` tell
who is who, and from which of ten data sets.

    <root>/images/00001.png ... 19000.png      (or directly under <root>), or as its authors give it
    <root>/PETA dataset/<subset>/archive/*     (or the subsets directly under <root>)
    <root>/PETA.mat
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from tfreid.data import held_out
from tfreid.data.attributes import Attribute, AttributeSchema, AttributeTable
from tfreid.data.benchmark import Benchmark, ImageRecord, Split, assemble, join
from tfreid.data.reid_folder import not_a_crop, read_mat, scan
from tfreid.data.words import color_words
from tfreid.image_bytes import ENDING_PATTERN

NAME = 'PETA'
ANNOTATION_FILE = 'PETA.mat'
VARIABLE = 'peta'
PATTERN = re.compile(r'(?P<person>\d{5})' + ENDING_PATTERN, re.IGNORECASE)
SPLITS = ('paper', 'sal')
PEOPLE = 'people'
WITHOUT = 'without:'
# Of the people of `PEOPLE`: for test and, of the others, for validation.
_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1
_TRAIN_OF_PAPER, _TEST = 1500, 200

# `peta.data` begins with four columns of numbers: image, person, subset, person in the subset.
INDEX_COLUMNS = 4
# The data sets that PETA was made of, in the order of their numbers from 1 on.
SUBSETS = (
  *('3DPeS', 'CAVIAR4REID', 'CUHK', 'GRID', 'i-LID', 'MIT', 'PRID', 'SARC3D', 'TownCentre'),
  'VIPeR',
)
ARCHIVE = 'PETA dataset'
_ARCHIVED = re.compile(r'(?P<person>\d+).*' + ENDING_PATTERN, re.IGNORECASE)
COLORS = (
  *('black', 'blue', 'brown', 'green', 'gray', 'orange', 'pink', 'purple', 'red', 'white'),
  'yellow',
)


def _color(name: str, prefix: str, garments: tuple[str, ...]) -> Attribute:
  # The file spells it 'Grey'; the other data sets' schemas, and so this one, 'gray'.
  columns = tuple((prefix + color.replace('gray', 'grey').capitalize(), 1) for color in COLORS)
  return Attribute(name, COLORS, columns, words=color_words(COLORS, garments))


def _yes_no(name: str, raw: str, *words: str) -> Attribute:
  return Attribute(name, ('no', 'yes'), ((raw, 1),), words={'yes': words} if words else {})


# 105 columns. Besides the four colour groups, choices that exclude each other are groups too, so
# that a query for long hair says "not short hair" as well: in the whole file 16 images contradict
# one of them (4 have two ages, 6 two lengths of hair, 2 two of sleeves, 3 two upper styles, and 1
# has no gender), and where two are on, the vector has both.
_ATTRIBUTES = (
  Attribute(
    name='age',
    values=('less15', 'less30', 'less45', 'less60', 'larger60'),
    columns=(
      ('personalLess15', 1),
      ('personalLess30', 1),
      ('personalLess45', 1),
      ('personalLess60', 1),
      ('personalLarger60', 1),
    ),
    words={
      'less15': ('child', 'kid', 'under 15', 'below 15'),
      'less30': ('aged 15 to 30', '15 to 30', 'under 30'),
      'less45': ('aged 30 to 45', '30 to 45'),
      'less60': ('aged 45 to 60', '45 to 60'),
      'larger60': ('over 60', 'above 60', 'old', 'elderly', 'old person', 'elderly person'),
    },
  ),
  Attribute(
    name='gender',
    values=('male', 'female'),
    columns=(('personalMale', 1), ('personalFemale', 1)),
    words={'male': ('male', 'man'), 'female': ('female', 'woman')},
  ),
  Attribute(
    name='hair',
    values=('short', 'long'),
    columns=(('hairShort', 1), ('hairLong', 1)),
    words={
      'short': ('short hair', 'short haired', 'short-haired'),
      'long': ('long hair', 'long haired', 'long-haired'),
    },
  ),
  Attribute(
    name='sleeves',
    values=('long', 'short', 'sleeveless'),
    columns=(
      ('upperBodyLongSleeve', 1),
      ('upperBodyShortSleeve', 1),
      ('upperBodyNoSleeve', 1),
    ),
    words={
      'long': ('long sleeves', 'long sleeve', 'long-sleeved', 'long sleeved'),
      'short': ('short sleeves', 'short sleeve', 'short-sleeved', 'short sleeved'),
      'sleeveless': ('sleeveless', 'no sleeves', 'without sleeves'),
    },
  ),
  Attribute(
    name='upper_style',
    values=('casual', 'formal'),
    columns=(('upperBodyCasual', 1), ('upperBodyFormal', 1)),
    words={
      'casual': ('casual top', 'casual upper body'),
      'formal': ('formal top', 'formal upper body'),
    },
  ),
  Attribute(
    name='lower_style',
    values=('casual', 'formal'),
    columns=(('lowerBodyCasual', 1), ('lowerBodyFormal', 1)),
    words={
      'casual': ('casual lower body', 'casual bottoms'),
      'formal': ('formal lower body', 'formal bottoms'),
    },
  ),
  _yes_no('hat', 'accessoryHat', 'cap'),
  _yes_no('muffler', 'accessoryMuffler', 'scarf'),
  _yes_no('sunglasses', 'accessorySunglasses'),
  _yes_no('headphones', 'accessoryHeadphone', 'headphone'),
  _yes_no('hair_band', 'accessoryHairBand', 'hairband'),
  _yes_no('kerchief', 'accessoryKerchief'),
  Attribute(
    name='no_accessory',
    values=('no', 'yes'),
    columns=(('accessoryNothing', 1),),
    words={'yes': ('no accessories',), 'no': ('accessory', 'accessories')},
  ),
  _yes_no('backpack', 'carryingBackpack', 'rucksack'),
  _yes_no('messenger_bag', 'carryingMessengerBag'),
  _yes_no('plastic_bags', 'carryingPlasticBags', 'plastic bag'),
  _yes_no('luggage_case', 'carryingLuggageCase', 'luggage'),
  _yes_no('suitcase', 'carryingSuitcase'),
  _yes_no('folder', 'carryingFolder'),
  _yes_no('umbrella', 'carryingUmbrella'),
  _yes_no('baby_buggy', 'carryingBabyBuggy', 'buggy', 'pram', 'stroller'),
  _yes_no('shopping_trolley', 'carryingShoppingTro'),
  _yes_no('carrying_other', 'carryingOther', 'carrying something else'),
  _yes_no('carrying_nothing', 'carryingNothing', 'nothing carried'),
  _yes_no('jacket', 'upperBodyJacket'),
  _yes_no('tshirt', 'upperBodyTshirt', 't-shirt'),
  _yes_no('sweater', 'upperBodySweater'),
  _yes_no('suit', 'upperBodySuit', 'suit jacket'),
  _yes_no('v_neck', 'upperBodyVNeck', 'v-neck'),
  _yes_no('upper_logo', 'upperBodyLogo', 'logo'),
  _yes_no('upper_plaid', 'upperBodyPlaid', 'plaid top', 'plaid shirt'),
  _yes_no('upper_thin_stripes', 'upperBodyThinStripes', 'thin striped top'),
  _yes_no('upper_thick_stripes', 'upperBodyThickStripes', 'thick striped top'),
  _yes_no('upper_other', 'upperBodyOther', 'other top'),
  _yes_no('trousers', 'lowerBodyTrousers'),
  _yes_no('jeans', 'lowerBodyJeans'),
  _yes_no('shorts', 'lowerBodyShorts'),
  _yes_no('hot_pants', 'lowerBodyHotPants'),
  _yes_no('capri', 'lowerBodyCapri', 'capri pants'),
  _yes_no('short_skirt', 'lowerBodyShortSkirt'),
  _yes_no('long_skirt', 'lowerBodyLongSkirt'),
  _yes_no('suit_trousers', 'lowerBodySuits'),
  _yes_no('lower_plaid', 'lowerBodyPlaid', 'plaid bottoms'),
  _yes_no('lower_thin_stripes', 'lowerBodyThinStripes', 'thin striped bottoms'),
  _yes_no('leather_shoes', 'footwearLeatherShoes'),
  _yes_no('sneakers', 'footwearSneaker', 'sneaker', 'trainers'),
  _yes_no('boots', 'footwearBoots'),
  _yes_no('sandals', 'footwearSandals'),
  _yes_no('stockings', 'footwearStocking', 'stocking'),
  # Neither leather shoes nor sneakers, so "black shoes" does not imply them.
  _yes_no('other_shoes', 'footwearShoes'),
  _yes_no('bald', 'hairBald'),
  _color(
    'upper_color',
    'upperBody',
    ('top', 'shirt', 't-shirt', 'jacket', 'coat', 'sweater', 'suit', 'upper body'),
  ),
  _color(
    'lower_color',
    'lowerBody',
    (
      *('pants', 'trousers', 'jeans', 'shorts', 'skirt', 'bottoms', 'short skirt'),
      *('long skirt', 'lower body'),
    ),
  ),
  _color('hair_color', 'hair', ('hair',)),
  _color(
    'footwear_color',
    'footwear',
    ('footwear', 'shoes', 'leather shoes', 'sneakers', 'boots', 'sandals'),
  ),
)

SCHEMA = AttributeSchema(
  name=NAME,
  attributes=_ATTRIBUTES,
  raw_values={raw: (0, 1) for attribute in _ATTRIBUTES for raw, _ in attribute.columns},
)


def read_peta_mat(path: str | os.PathLike) -> pd.DataFrame:
  """The annotation table of `PETA.mat`, a row per image.

  Args:
    path: of the file.

  Returns:
    DataFrame of integers, columns named as in the file, the image number (str, five digits as in
    the file names) as its index, in the file's order. Values are not interpreted.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it cannot be read or has another form.
  """
  data, columns = _read_data(path)
  return pd.DataFrame(data[:, INDEX_COLUMNS:], index=_numbers(data), columns=columns)


def read_peta_people(path: str | os.PathLike) -> pd.DataFrame:
  """Who is to be seen in the images of `PETA.mat`, a row per image.

  Args:
    path: of the file.

  Returns:
    DataFrame with the image number as in `read_peta_mat` as its index. Columns: person (str, five
    digits, one person in all subsets), subset (of SUBSETS, '' if the number is none of theirs) and
    person_in_subset (int, as the names of the authors' files begin).

  Raises:
    FileNotFoundError, ValueError: as `read_peta_mat`.
  """
  data, _ = _read_data(path)
  subsets = dict(enumerate(SUBSETS, start=1))
  return pd.DataFrame(
    {
      'person': [f'{int(person):05d}' for person in data[:, 1]],
      'subset': [subsets.get(int(number), '') for number in data[:, 2]],
      'person_in_subset': data[:, 3],
    },
    index=_numbers(data),
  )


def _read_data(path) -> tuple[np.ndarray, list[str]]:
  """`peta.data` as int64 and the names of its columns from the fifth on."""
  structs = read_mat(path, VARIABLE)
  names = structs.dtype.names or ()
  if not {'data', 'attribute'} <= set(names):
    raise ValueError(
      f"'{path}': '{VARIABLE}' lacks 'data' or 'attribute' (found: {', '.join(names) or 'none'})."
    )
  data = np.atleast_2d(structs['data'].item())
  if data.dtype.kind not in 'uif' or not np.all(np.mod(data, 1) == 0):
    raise ValueError(f"'{path}': 'data' must hold whole numbers only.")
  columns = [str(column) for column in np.atleast_1d(structs['attribute'].item())]
  if data.shape[1] != INDEX_COLUMNS + len(columns):
    raise ValueError(
      f"'{path}': 'data' has {data.shape[1]} columns, but {len(columns)} attributes are named; "
      f'expected {INDEX_COLUMNS} columns more than names.'
    )
  return data.astype(np.int64), columns


def _numbers(data: np.ndarray) -> pd.Index:
  return pd.Index([f'{int(number):05d}' for number in data[:, 0]], name='person_id')


def scan_archive(
  folder: str | os.PathLike, people: pd.DataFrame
) -> tuple[list[ImageRecord], dict[str, int]]:
  """The images in the folders of PETA's authors, with the numbers they have in `PETA.mat`.

  Their files are numbered in the order of their names within a subset, and the names begin with the
  person's number in it. Images are matched person by person, so that a missing file does not shift
  those of other people.

  Args:
    folder: holds the subsets, each with a folder `archive`.
    people: from `read_peta_people`.

  Returns:
    The images, their number as the person id, and how many files were left out, by reason.

  Raises:
    ValueError: none of the images can be told.
  """
  records: list[ImageRecord] = []
  dropped: dict[str, int] = {}
  rows = {
    (subset, number): list(group.index)
    for (subset, number), group in people.groupby(['subset', 'person_in_subset'], sort=False)
  }
  for subset in SUBSETS:
    archive = os.path.join(folder, subset, 'archive')
    files: dict[int, list[str]] = {}
    for name in sorted(os.listdir(archive)) if os.path.isdir(archive) else ():
      match = _ARCHIVED.fullmatch(name)
      if match is None:
        dropped[not_a_crop(name)] = dropped.get(not_a_crop(name), 0) + 1
      else:
        files.setdefault(int(match['person']), []).append(os.path.join(archive, name))
    for person, paths in files.items():
      numbers = rows.get((subset, person), [])
      if len(numbers) == len(paths):
        records += [ImageRecord(path, number, 0) for path, number in zip(paths, numbers)]
      else:
        reason = 'of a person with more or fewer files than annotations'
        dropped[reason] = dropped.get(reason, 0) + len(paths)
  if not records:
    raise ValueError(
      f"{NAME}: '{folder}' holds no crops in <subset>/archive that can be told by their names. "
      'Unpack the images with the file names they were published with.'
    )
  return sorted(records, key=lambda record: record.person_id), dropped


def semantic_id_order(frame: pd.DataFrame) -> list[np.ndarray]:
  """Rows of each attribute combination, the combinations in order of their first occurrence.

  Args:
    frame: raw values, a row per image.

  Returns:
    For each combination int [n], the positions of its rows, ascending.
  """
  groups: dict[bytes, list[int]] = {}
  for position, row in enumerate(frame.to_numpy()):
    groups.setdefault(row.tobytes(), []).append(position)
  return [np.asarray(rows) for rows in groups.values()]


def draw_split(count: int, split: str, *, seed: int) -> dict[str, np.ndarray]:
  """Which semantic IDs go where.

  Args:
    count: how many there are; those of the full file are 2,090.
    split: 'paper' or 'sal', see `load`.
    seed: of the `paper` split; `sal` has its own.

  Returns:
    'train', 'validation' (of `paper`) and 'test': int arrays of positions in 0 ... count-1.

  Raises:
    ValueError: another name, or too few semantic IDs.
  """
  if split not in SPLITS:
    raise ValueError(f"PETA has no split '{split}' of its semantic IDs.")
  needed = _TEST + 1 + (_TRAIN_OF_PAPER if split == 'paper' else 0)
  if count < needed:
    raise ValueError(
      f"PETA's split '{split}' needs at least {needed} semantic IDs with two or more images, and "
      f'the annotations have {count}. Use the full annotation file.'
    )
  if split == 'sal':
    order = np.random.RandomState(1).permutation(count)
    return {'train': order[:-_TEST], 'test': order[-_TEST:]}
  order = np.random.default_rng(seed).permutation(count)
  return {
    'train': order[:_TRAIN_OF_PAPER],
    'validation': order[_TRAIN_OF_PAPER:-_TEST],
    'test': order[-_TEST:],
  }


def divide(people: pd.DataFrame, split: str, *, seed: int) -> dict[str, np.ndarray]:
  """Which images go where, in the splits by person and by subset.

  Args:
    people: from `read_peta_people`, N rows.
    split: 'people', or 'without:' and the name of a subset.
    seed: of the draw of 'people'.

  Returns:
    'train', 'test' and, of 'people', 'validation': bool [N], each image in one of them.

  Raises:
    ValueError: another name, or there is nobody of that subset or nobody else.
  """
  if split == PEOPLE:
    share = _shares(people['person'], seed)
    test = share < _TEST_SHARE
    validation = ~test & (share < _TEST_SHARE + (1 - _TEST_SHARE) * _VALIDATION_SHARE)
    return {'train': ~test & ~validation, 'validation': validation, 'test': test}
  subset = _subset(split)
  if subset is None:
    raise ValueError(_no_such_split(split))
  test = (people['subset'] == subset).to_numpy()
  if test.all() or not test.any():
    raise ValueError(
      f"PETA's split '{split}' needs images of {subset} and of other subsets; the annotations have "
      f'{int(test.sum())} and {int((~test).sum())}.'
    )
  return {'train': ~test, 'test': test}


def _subset(split: str) -> str | None:
  """The subset that a split leaves out, as it is spelled here; None if it names none."""
  named = split[len(WITHOUT) :].lower() if split.startswith(WITHOUT) else ''
  return next((subset for subset in SUBSETS if subset.lower() == named), None)


def _name(split: str) -> str:
  """What the data are called: nothing was published for the splits by person and by subset."""
  if split == PEOPLE:
    return f'{NAME}, split by person'
  subset = _subset(split)
  return NAME if subset is None else f'{NAME}, without {subset}'


def _no_such_split(split: str) -> str:
  return (
    f"PETA has no split '{split}'; choose from {', '.join((*SPLITS, PEOPLE))}, or "
    f"'{WITHOUT}' and one of {', '.join(SUBSETS)}."
  )


def _shares(people: pd.Series, seed: int) -> np.ndarray:
  """For each image a number in [0, 1) that is its person's own, whoever else is in the file."""
  of_person = {person: held_out.draw(NAME, person, seed=seed) for person in people.unique()}
  return people.map(of_person).to_numpy(float)


def load(
  root: str | os.PathLike,
  *,
  annotations: str | os.PathLike | None = None,
  split: str = 'paper',
  encoding: str = 'binary',
  validation_share: float = 0.0,
  least_images: int = 2,
  seed: int = 0,
) -> Benchmark:
  """PETA, with its semantic IDs, its people or its subsets split.

  Of the 7,769 attribute combinations 5,679 belong to a single image; the two published splits leave
  them out, as the paper's "13000 images in total" implies. The remaining 2,090 (13,321 images) are
  split at random, so that every test ID is unseen in training:

  * `paper`: 1,500 for training, 200 for test, as in the paper, and 390 for validation, which the
    paper does not account for. Which ones is not known: `seed` draws them.
  * `sal`: 1,890 (11,886 images) for training and 200 (1,435 images) for test, exactly the draw of
    Cao et al., "Symbiotic adversarial learning for attribute-based person search", ECCV 2020.

  Two more ask other questions. Their test parts hold every image, and a test ID may be one that was
  seen in training:

  * `people`: about a fifth of the people for test and a tenth of the others for validation, by a
    hash of `seed` and the person's number.
  * `without:VIPeR`, or another of `SUBSETS`: that subset is the test part, the nine others are
    trained on; nothing of its place, cameras and people is. What one's own photographs are like.

  The split is drawn on the annotations, so it is the same if some images are missing.

  Args:
    root: the folder with the images, with `images`, or with the authors' folders.
    annotations: the attribute file; default `<root>/PETA.mat`.
    split: 'paper', 'sal', 'people' or 'without:<subset>'.
    encoding: of the attribute vectors, 'binary' (as in the paper) or 'three_state'.
    validation_share: share of the training semantic IDs to hold out, of `sal` and `without:…`.
    least_images: of 'people' and 'without:…', images that a semantic ID must have in training to be
      trained on; 2 leaves out those of a single image, as the published splits do. 1 keeps all.
    seed: of the `paper` and `people` splits, or of the draw for `validation_share`.

  Raises:
    FileNotFoundError: the folder or the annotation file is missing.
    ValueError: a folder without crops, or annotations that do not fit.
  """
  schema = dataclasses.replace(SCHEMA, encoding=encoding)
  _check_split(split)
  source = _Source(root, annotations, schema)
  dropped = source.dropped
  parts, gone = _parts(source.frame, source.people, split, least_images=least_images, seed=seed)
  lost = sum(number in gone for number in source.found)
  if lost:
    dropped['semantic ID with a single image' if least_images == 2 else 'rare semantic ID'] = lost
  splits = {
    part: source.split(rows, part, dropped if part == 'train' else None)
    for part, rows in parts.items()
  }
  return assemble(
    _name(split),
    schema,
    splits['train'],
    splits['test'],
    validation=splits.get('validation'),
    validation_share=validation_share,
    seed=seed,
  )


def count_train_images(
  root: str | os.PathLike,
  *,
  annotations: str | os.PathLike | None = None,
  split: str = 'paper',
  least_images: int = 2,
  seed: int = 0,
) -> int:
  """The number of training images that are annotated; the images themselves are not looked at.

  Args:
    root, annotations, split, least_images, seed: as `load` takes them.

  Raises:
    FileNotFoundError: the annotation file is missing.
    ValueError: it does not fit, or there is no such split.
  """
  _check_split(split)
  source = Path(root).expanduser() / ANNOTATION_FILE if annotations is None else annotations
  frame = AttributeTable(SCHEMA, read_peta_mat(source), source=str(source)).frame
  people = read_peta_people(source)
  parts, _ = _parts(frame, people, split, least_images=least_images, seed=seed)
  return len(parts['train'])


def load_all(
  root: str | os.PathLike,
  *,
  annotations: str | os.PathLike | None = None,
  encoding: str = 'binary',
) -> Split:
  """All images of PETA as one Split, for whoever divides it in another way.

  Args:
    root, annotations, encoding: as of `load`.

  Raises:
    FileNotFoundError, ValueError: as `load`.
  """
  source = _Source(root, annotations, dataclasses.replace(SCHEMA, encoding=encoding))
  return source.split(np.arange(len(source.frame)), 'images', source.dropped)


def _parts(
  frame: pd.DataFrame, people: pd.DataFrame, split: str, *, least_images: int, seed: int
) -> tuple[dict[str, np.ndarray], set[int]]:
  """The rows of each part of a split, ascending, and the numbers of images that it leaves out."""
  if split in SPLITS:
    groups = semantic_id_order(frame)
    several = [rows for rows in groups if len(rows) > 1]
    gone = set(frame.index[[rows[0] for rows in groups if len(rows) == 1]])
    drawn = draw_split(len(several), split, seed=seed)
    parts = {
      part: np.sort(np.concatenate([several[i] for i in ids])) for part, ids in drawn.items()
    }
    return parts, gone
  masks = divide(people, split, seed=seed)
  parts = {part: np.flatnonzero(mask) for part, mask in masks.items()}
  kept = _repeated(frame.iloc[parts['train']], least_images)
  gone = set(frame.index[parts['train'][~kept]])
  parts['train'] = parts['train'][kept]
  return parts, gone


def _check_split(split: str):
  """Refuses a split that there is not, before anything is read."""
  if split not in (*SPLITS, PEOPLE) and _subset(split) is None:
    raise ValueError(_no_such_split(split))


def _repeated(frame: pd.DataFrame, least: int) -> np.ndarray:
  """Which rows, bool, have an attribute combination of at least so many rows."""
  kept = np.zeros(len(frame), bool)
  for rows in semantic_id_order(frame):
    kept[rows] = len(rows) >= least
  return kept


class _Source:
  """The annotations and the images that were found.

  Attributes:
    frame: raw values, a row per annotated image.
    people: as `read_peta_people` gives them.
    found: the image of each number.
    dropped: how many files were left out, by reason.
  """

  def __init__(self, root, annotations, schema: AttributeSchema):
    folder = Path(root).expanduser()
    if not folder.is_dir():
      raise FileNotFoundError(
        f"PETA: there is no folder '{folder}'. Set DATA_ROOT to the folder that holds 'images'."
      )
    self._schema = schema
    self._path = folder / ANNOTATION_FILE if annotations is None else annotations
    records, self.dropped = _scan(folder, self._path)
    self.people = read_peta_people(self._path)
    table = AttributeTable(schema, read_peta_mat(self._path), source=str(self._path))
    self.frame = table.frame
    self.found = {record.person_id: record for record in records}
    if len(self.found) < len(records):
      self.dropped['second file of an image'] = len(records) - len(self.found)
    strangers = len(set(self.found) - set(self.frame.index))
    if strangers:
      self.dropped['not annotated'] = strangers

  def split(self, rows: np.ndarray, part: str, dropped: dict[str, int] | None) -> Split:
    """The images at these rows of the frame."""
    images = self.frame.iloc[rows]
    joined = join(
      [self.found[number] for number in images.index if number in self.found],
      AttributeTable(self._schema, images, source=str(self._path)),
      source=f'{NAME} {part}',
      dropped=dropped,
    )
    who = self.people.loc[joined.person_ids]
    return dataclasses.replace(
      joined,
      person_ids=who['person'].to_numpy(str),
      subsets=who['subset'].to_numpy(str),
    )


def _scan(folder: Path, source: str | os.PathLike) -> tuple[list[ImageRecord], dict[str, int]]:
  """The images in one of the layouts, their number as the person id."""
  if (folder / 'images').is_dir():
    return scan(folder / 'images', PATTERN, name=NAME)
  for archive in (folder / ARCHIVE, folder):
    if any((archive / subset / 'archive').is_dir() for subset in SUBSETS):
      return scan_archive(archive, read_peta_people(source))
  return scan(folder, PATTERN, name=NAME)
