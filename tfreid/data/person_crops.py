"""Crops with person ids and without attributes, from one folder or several. Floor 1.

What classic re-identification data look like. Three layouts are known, and found by the names:

  CUHK01          0001001.png             person (4 digits), number of the crop (3 digits)
  Market-1501     0002_c1s1_000451_03.jpg person, camera; DukeMTMC's names too. A folder that holds
                                          'bounding_box_train' stands for that folder: the other
                                          two are for testing.
  person folders  anna/1.jpg              a folder for each person, images in it
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tfreid.data import reid_folder
from tfreid.data.benchmark import ImageRecord, Split
from tfreid.data.samplers import PeopleSampler
from tfreid.spec import DatasetSpec

_log = logging.getLogger(__name__)

LAYOUTS = ('cuhk01', 'market1501', 'person_folders')
_ENDING = r'\.(?:jpe?g|jpe|jfif|png|bmp|gif|tiff?|webp)'
_NAMES = {
  'cuhk01': re.compile(r'(?P<person>\d{4})\d{3}' + _ENDING, re.IGNORECASE),
  'market1501': re.compile(r'(?P<person>-?\d+)_c(?P<camera>\d+).*' + _ENDING, re.IGNORECASE),
}
_IMAGE = re.compile(r'[^.].*' + _ENDING, re.IGNORECASE)
# Market-1501: false detections, and people that nobody labelled.
_NOBODY = {'-1': 'false detection', '0000': 'distractor'}


@dataclasses.dataclass(frozen=True)
class PersonCrops:
  """Crops of people who are known by their ids only: the data of a pre-training stage.

  Attributes:
    name: of the data in the run's files, for example 'cuhk01+pku_reid'.
    split: the crops. Attribute vectors have no columns; `semantic_ids` number the people of all
      data sets from 0, and `keys` are (data set, person in it).
    sampler: makes the batches of an epoch.
  """

  name: str
  split: Split
  sampler: PeopleSampler = PeopleSampler()

  def spec(self, image_shape: Sequence[int]) -> DatasetSpec:
    """The sizes a method is built with: the classes are the people."""
    height, width, channels = image_shape
    return DatasetSpec(
      image_shape=(height, width, channels),
      attribute_names=(),
      num_semantic_ids=len(self.split.keys),
      num_images=len(self.split),
    )


def load(
  roots: Sequence[str | os.PathLike],
  *,
  layouts: Sequence[str] | None = None,
  least_crops: int = 2,
  sampler: PeopleSampler | None = None,
) -> PersonCrops:
  """The crops of several data sets together; equal ids of two data sets are two people.

  Args:
    roots: a folder for each data set; '~' is expanded.
    layouts: of each folder, one of `LAYOUTS`; by default it is found by the names in the folder.
    least_crops: people with fewer crops are left out and counted. A triplet needs two.
    sampler: makes the batches; by default four crops of each person.

  Returns:
    The crops in the order of the roots, and of person and file name within a root.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: no root, an unknown layout, or nobody with enough crops.
  """
  if isinstance(roots, (str, os.PathLike)):
    roots = [roots]
  if not roots:
    raise ValueError('No folder of person crops is named. Set PERSON_CROPS to a list of folders.')
  if layouts is not None and len(layouts) != len(roots):
    raise ValueError(
      f'person_crops.load.layouts names {len(layouts)} layouts for {len(roots)} folders. '
      'Give one for each, or none.'
    )
  folders = [Path(root).expanduser() for root in roots]
  records: list[ImageRecord] = []
  keys: list[tuple[int, int]] = []
  classes: list[int] = []
  dropped: dict[str, int] = {}
  for number, folder in enumerate(folders):
    layout = None if layouts is None else layouts[number]
    people, left_out = _people(folder, layout)
    for reason, count in left_out.items():
      dropped[reason] = dropped.get(reason, 0) + count
    kept = 0
    for index, crops in enumerate(people.values()):
      if len(crops) < least_crops:
        reason = f'of people with fewer than {least_crops} crops'
        dropped[reason] = dropped.get(reason, 0) + len(crops)
        continue
      classes += [len(keys)] * len(crops)
      keys.append((number, index))
      records += crops
      kept += len(crops)
    _log.info('%s: %d crops of %d people.', folder, kept, sum(key[0] == number for key in keys))
  for reason, count in dropped.items():
    _log.info('Person crops: %d files left out (%s).', count, reason)
  if len(keys) < 2:
    raise ValueError(
      f'{", ".join(map(str, folders))}: {len(keys)} people with at least {least_crops} crops were '
      f'found, and at least 2 are needed (files left out: {dropped or "none"}).'
    )
  split = Split(
    paths=np.asarray([record.path for record in records], dtype=str),
    attributes=np.zeros([len(records), 0], np.float32),
    semantic_ids=np.asarray(classes, np.int64),
    person_ids=np.asarray([record.person_id for record in records], dtype=str),
    cameras=np.asarray([record.camera for record in records], np.int32),
    keys=tuple(keys),
    dropped=dropped,
  )
  return PersonCrops('+'.join(_names(folders)), split, sampler or PeopleSampler())


def _people(
  folder: Path, layout: str | None
) -> tuple[Mapping[str, list[ImageRecord]], dict[str, int]]:
  """The crops of each person of a folder, in order, and how many files were left out, by reason."""
  if not folder.is_dir():
    raise FileNotFoundError(
      f"There is no folder '{folder}'. Set PERSON_CROPS to folders that hold crops of people."
    )
  if (folder / reid_folder.TRAIN).is_dir():
    folder = folder / reid_folder.TRAIN
  if layout is None:
    layout = _layout(folder)
  elif layout not in LAYOUTS:
    raise ValueError(f"The layout of '{folder}' is one of {', '.join(LAYOUTS)}, not '{layout}'.")
  if layout == 'person_folders':
    records, dropped = _person_folders(folder)
  else:
    records, dropped = reid_folder.scan(
      folder, _NAMES[layout], name=layout, ignored=_NOBODY if layout == 'market1501' else None
    )
  people: dict[str, list[ImageRecord]] = {}
  for record in records:
    people.setdefault(record.person_id, []).append(record)
  return people, dropped


def _layout(folder: Path) -> str:
  """The layout that the names in a folder show."""
  names = sorted(os.listdir(folder))
  for layout, pattern in _NAMES.items():
    if any(pattern.fullmatch(name) for name in names):
      return layout
  if any(True for _ in _images(folder, names)):
    return 'person_folders'
  raise ValueError(
    f"'{folder}' has none of the known layouts (found: {', '.join(names[:5]) or 'nothing'}). "
    "Expected are files named as CUHK01's (0001001.png) or Market-1501's (0002_c1s1_000451_03.jpg),"
    ' or a folder with images for each person.'
  )


def _images(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
  """(person, file name) of each image in a person's folder, in order."""
  for person in names:
    if not person.startswith('.') and (folder / person).is_dir():
      for name in sorted(os.listdir(folder / person)):
        if _IMAGE.fullmatch(name):
          yield person, name


def _person_folders(folder: Path) -> tuple[list[ImageRecord], dict[str, int]]:
  names = sorted(os.listdir(folder))
  records = [
    ImageRecord(str(folder / person / name), person, 0) for person, name in _images(folder, names)
  ]
  if not records:
    raise ValueError(f"'{folder}' has no folders with images, one for each person.")
  files = sum(len(os.listdir(folder / name)) if (folder / name).is_dir() else 1 for name in names)
  others = files - len(records)
  return records, {'not a crop': others} if others else {}


def _names(folders: Sequence[Path]) -> list[str]:
  """A name for each folder: its last part, or the one above where that says nothing."""
  plain = {'train', 'images', reid_folder.TRAIN}
  return [
    folder.parent.name if folder.name in plain and folder.parent.name else folder.name
    for folder in (folder.absolute() for folder in folders)
  ]
