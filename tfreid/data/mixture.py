"""Several data sets as one, in shared attributes: what a model for any photographs learns. Floor 1.

Every annotated image of each data set is used, whatever part its authors put it in. A share of the
people of each, drawn by a hash of their ids, is held out for test, and another for validation, so
that what is told of the model is told of people that it has not seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tfreid.data import dukemtmc, held_out, market1501, peta, shared_attributes
from tfreid.data.benchmark import Benchmark, Split, assemble

NAME = 'Photographs'

# The reader of all images of a data set, by the name that `roots` has for it.
_READERS: Mapping[str, Callable[[str], Split]] = {
  'peta': peta.load_all,
  'market1501': lambda root: _both_halves(market1501.load(root)),
  'dukemtmc': lambda root: _both_halves(dukemtmc.load(root)),
}


def load(
  roots: Mapping[str, str],
  *,
  least: int = 1,
  encoding: str = 'three_state',
  test_share: float = 0.12,
  validation_share: float = 0.03,
  seed: int = 0,
) -> Benchmark:
  """Several data sets as one Benchmark in the attributes that they share.

  Its `subsets` name the data set of each image, and of PETA its subset too ('PETA/VIPeR'). Test and
  validation parts hold images and queries, as any data set's; an attribute that a data set does not
  tell is not said there, and two descriptions of which one says more are two semantic IDs.

  Args:
    roots: folder of each data set, by 'peta', 'market1501' and 'dukemtmc'; two or more.
    least: number of the data sets that must name an attribute; 1 takes all of the table.
    encoding: 'three_state'; 'binary' leaves out the images of which something is unsaid, and needs
      all data sets to name all attributes.
    test_share: of the people of each data set to hold out for test, in (0, 1).
    validation_share: of the people to hold out for choosing; 0 for none.
    seed: of the draw. It belongs to the people: adding a data set moves nobody.

  Raises:
    FileNotFoundError: a folder or an annotation file is missing.
    ValueError: an unknown data set, shares that leave nothing, or crops that cannot be read.
  """
  unknown = [name for name in roots if name not in _READERS]
  if unknown or not roots:
    raise ValueError(
      f'mixture.load.roots names {unknown or "no data set"}; give a folder for each of some of '
      f'{", ".join(_READERS)}.'
    )
  if not 0.0 <= validation_share < 1.0 - test_share:
    raise ValueError(
      f'validation_share={validation_share} and test_share={test_share} leave nobody to train on.'
    )
  schema = shared_attributes.schema(list(roots), least=min(least, len(roots)), encoding=encoding)
  schema = dataclasses.replace(schema, name=NAME)
  parts: dict[str, list[Split]] = {'train': [], 'validation': [], 'test': []}
  for name, root in roots.items():
    split = _read(name, root, schema)
    test, chosen = _sides(name, split, test_share, validation_share, seed)
    masks = {'train': ~(test | chosen), 'validation': chosen, 'test': test}
    for part, mask in masks.items():
      if mask.any():
        parts[part].append(split.subset(np.flatnonzero(mask)))
  return assemble(
    NAME,
    schema,
    concatenated(parts['train']),
    concatenated(parts['test']),
    validation=concatenated(parts['validation']) if parts['validation'] else None,
  )


def _read(name: str, root: str, schema) -> Split:
  """All images of a data set, described in the schema and with the data set's name on them."""
  split = _READERS[name](root)
  full = shared_attributes.full_name(name)
  own = shared_attributes.correspondence.SCHEMAS[full]
  subsets = [full] * len(split)
  if split.subsets is not None:
    subsets = [f'{full}/{subset}' for subset in split.subsets]
  named = dataclasses.replace(
    split,
    person_ids=np.asarray([f'{full}/{person}' for person in split.person_ids], dtype=str),
    subsets=np.asarray(subsets, dtype=str),
  )
  return shared_attributes.view(named, own, schema)


def _sides(name, split: Split, test_share: float, validation_share: float, seed: int):
  """Which images are for test and which for validation, two bool [N]."""
  people = [str(person) for person in split.person_ids]
  test = held_out.is_held_out(name, people, test_share, seed=seed)
  both = test
  if validation_share:
    both = held_out.is_held_out(name, people, test_share + validation_share, seed=seed)
  return test, both & ~test


def _both_halves(benchmark: Benchmark) -> Split:
  """Training and test images together; a person is in one of them."""
  return concatenated([benchmark.train, benchmark.test])


def concatenated(splits: Sequence[Split]) -> Split:
  """Splits one behind the other; equal attribute combinations are one semantic ID.

  Args:
    splits: of one schema, which `keys` are of too.

  Raises:
    ValueError: there is none.
  """
  if not splits:
    raise ValueError('Nothing is left to train on, or nobody is held out. Choose other shares.')
  keys = sorted({key for split in splits for key in split.keys})
  number = {key: i for i, key in enumerate(keys)}
  dropped: dict[str, int] = {}
  for split in splits:
    for reason, count in split.dropped.items():
      dropped[reason] = dropped.get(reason, 0) + count
  subsets = [split.subsets for split in splits if split.subsets is not None]
  return Split(
    paths=np.concatenate([split.paths for split in splits]),
    attributes=np.concatenate([split.attributes for split in splits]),
    semantic_ids=np.concatenate(
      [np.asarray([number[key] for key in split.keys])[split.semantic_ids] for split in splits]
    ).astype(np.int64),
    person_ids=np.concatenate([split.person_ids for split in splits]),
    cameras=np.concatenate([split.cameras for split in splits]),
    keys=tuple(keys),
    dropped=dropped,
    subsets=np.concatenate(subsets) if len(subsets) == len(splits) else None,
  )
