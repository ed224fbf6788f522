"""What a data set's annotations and images look like, and what is odd about them. Floor 1."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from tfreid.data import image_files
from tfreid.data.attributes import AttributeSchema
from tfreid.data.benchmark import Benchmark, Split


class ImageCheck(NamedTuple):
  """One image file: its size in pixels, or why it cannot be decoded ('' if it can)."""

  path: str
  width: int
  height: int
  problem: str


def splits(benchmark: Benchmark) -> dict[str, Split]:
  """The splits that there are, by name."""
  named = {'train': benchmark.train, 'validation': benchmark.validation, 'test': benchmark.test}
  return {name: split for name, split in named.items() if split is not None}


def summarize(benchmark: Benchmark) -> pd.DataFrame:
  """Counts of each split, a row per split.

  Columns: images, people, cameras, semantic_ids, single_person_ids (semantic IDs that only one
  person has), largest_id (people of the commonest one), seen and unseen (semantic IDs that do or
  do not occur in training).
  """
  rows = {}
  for name, split in splits(benchmark).items():
    people = pd.Series(split.semantic_ids).groupby(split.person_ids).first().value_counts()
    seen = int(benchmark.seen(split).sum())
    rows[name] = {
      'images': len(split),
      'people': len(set(split.person_ids)),
      'cameras': len(set(split.cameras.tolist())),
      'semantic_ids': len(split.keys),
      'single_person_ids': int((people == 1).sum()),
      'largest_id': int(people.max()),
      'seen': seen,
      'unseen': len(split.keys) - seen,
    }
  return pd.DataFrame.from_dict(rows, orient='index')


def column_rates(benchmark: Benchmark) -> pd.DataFrame:
  """Share of people with each value, a row per column of a vector, a column per split.

  The row of a binary attribute is called by the value that the bit stands for: 'gender=female'.
  """
  rates = {
    name: _person_bits(split, benchmark.schema).mean(axis=0)
    for name, split in splits(benchmark).items()
  }
  return pd.DataFrame(rates, index=_labels(benchmark.schema))


def group_counts(benchmark: Benchmark) -> pd.DataFrame:
  """How many people have no value, one value or several of each attribute that is a choice.

  Rows are (split, attribute), columns 'none', 'one' and 'several'. A model that expects exactly
  one colour meets exceptions where 'none' or 'several' is not 0.
  """
  rows: dict[tuple[str, str], list[int]] = {}
  for name, split in splits(benchmark).items():
    bits = _person_bits(split, benchmark.schema)
    for attribute in benchmark.schema.attributes:
      if not attribute.is_binary:
        on = bits[:, benchmark.schema.block(attribute.name)].sum(axis=1)
        rows[name, attribute.name] = [
          int((on == 0).sum()),
          int((on == 1).sum()),
          int((on > 1).sum()),
        ]
  if not rows:
    return pd.DataFrame(columns=['none', 'one', 'several'])
  index = pd.MultiIndex.from_tuples(list(rows), names=['split', 'attribute'])
  return pd.DataFrame(list(rows.values()), index=index, columns=['none', 'one', 'several'])


def findings(benchmark: Benchmark, *, rare: int = 5) -> list[str]:
  """What is odd about the annotations, a sentence each.

  Args:
    benchmark: the data.
    rare: fewer training people than this with (or without) an attribute are remarked on.
  """
  findings = []
  train = _person_bits(benchmark.train, benchmark.schema)
  test = _person_bits(benchmark.test, benchmark.schema)
  for column, name in enumerate(_labels(benchmark.schema)):
    on, tested = int(train[:, column].sum()), int(test[:, column].sum())
    if on in (0, len(train)):
      always = 'nobody' if on == 0 else 'everybody'
      text = f"'{name}': {always} has it in training, so it cannot be learned"
      findings.append(f'{text}; in test {tested} of {len(test)} people have it.')
    elif min(on, len(train) - on) < rare:
      who = f'{on} training people have' if on < rare else f'{len(train) - on} training people lack'
      findings.append(f"'{name}' is rare: only {who} it.")
    if tested == 0 and on:
      findings.append(f"'{name}': nobody has it in test, so no result says how well it is found.")
  for (split, attribute), counts in group_counts(benchmark).iterrows():
    if counts['several'] or counts['none']:
      findings.append(
        f"'{attribute}' in {split}: {counts['none']} people have no value, {counts['several']} "
        'have several.'
      )
  for name, split in splits(benchmark).items():
    ids = pd.Series(split.semantic_ids).groupby(split.person_ids).nunique()
    if (ids > 1).any():
      findings.append(
        f'{name}: {int((ids > 1).sum())} people are annotated differently from crop to crop, '
        f"'{ids.index[ids > 1][0]}' first."
      )
  both = sorted(set(benchmark.train.person_ids) & set(benchmark.test.person_ids))
  if both:
    findings.append(f"{len(both)} people are in training and in test, '{both[0]}' first.")
  return findings


def check_images(paths: Iterable[str], *, threads: int | None = None) -> Iterator[ImageCheck]:
  """Decodes every image as training does and yields what came of it, in order.

  The pixels are decoded, not the header alone: a truncated download has a good header.

  Args:
    paths: of the images.
    threads: how many decode at once; default as many as there are processors.
  """
  paths = list(paths)
  sizes = image_files.sizes(paths, parallel=threads or os.cpu_count() or 1)
  for path, size in zip(paths, sizes):
    if size is None:
      yield ImageCheck(path, 0, 0, image_files.reason(path))
    else:
      yield ImageCheck(path, size[1], size[0], '')


def _labels(schema: AttributeSchema) -> list[str]:
  """What each column of a vector says: 'backpack', 'gender=female', 'upper_color=red'."""
  labels = []
  for attribute in schema.attributes:
    if attribute.is_binary and attribute.values != ('no', 'yes'):
      labels.append(f'{attribute.name}={attribute.values[1]}')
    else:
      labels += attribute.column_names
  return labels


def _person_bits(split: Split, schema: AttributeSchema) -> np.ndarray:
  """Zeros and ones, [P, A], a row per person (of the person's first crop)."""
  _, first = np.unique(split.person_ids, return_index=True)
  return schema.to_bits(split.attributes[first])
