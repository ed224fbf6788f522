"""Splits and benchmarks: images joined with the attribute table. Floor 1."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tfreid.data.attributes import AttributeSchema, AttributeTable
from tfreid.spec import DatasetSpec

_log = logging.getLogger(__name__)


class ImageRecord(NamedTuple):
  """One crop on disk: its path, the person id as the file name spells it, and the camera."""

  path: str
  person_id: str
  camera: int


@dataclasses.dataclass(frozen=True)
class Split:
  """Annotated crops, N of them, in a fixed order.

  Attributes:
    paths: str [N].
    attributes: float32 [N, A], in the schema's encoding.
    semantic_ids: int64 [N]: class indices in a training split, match keys in a test split. The
      two are numbered apart and never compared; `keys` are what can be compared.
    person_ids: str [N], as on disk.
    cameras: int32 [N].
    keys: the raw attribute combination of each semantic ID.
    dropped: how many files were left out, by reason, for the log and the report.
    subsets: str [N], which of the data sets that a collection such as PETA was made of; None if
      there is but one.
  """

  paths: np.ndarray
  attributes: np.ndarray
  semantic_ids: np.ndarray
  person_ids: np.ndarray
  cameras: np.ndarray
  keys: tuple[tuple[int, ...], ...]
  dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
  subsets: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.paths)

  def queries(self) -> tuple[np.ndarray, np.ndarray]:
    """Every attribute combination of this split once, as the protocol's queries.

    Returns:
      float32 [Q, A] attribute vectors and int64 [Q] semantic IDs, in ascending order of ID.
    """
    ids, first = np.unique(self.semantic_ids, return_index=True)
    return self.attributes[first], ids

  def subset(self, index: np.ndarray) -> Split:
    """The images at `index` (int [M]), with semantic IDs numbered anew from 0."""
    old, new = np.unique(self.semantic_ids[index], return_inverse=True)
    return Split(
      paths=self.paths[index],
      attributes=self.attributes[index],
      semantic_ids=new.astype(np.int64).reshape(-1),
      person_ids=self.person_ids[index],
      cameras=self.cameras[index],
      keys=tuple(self.keys[i] for i in old),
      dropped=self.dropped,
      subsets=None if self.subsets is None else self.subsets[index],
    )


def join(
  records: Sequence[ImageRecord],
  table: AttributeTable,
  *,
  source: str,
  dropped: Mapping[str, int] | None = None,
) -> Split:
  """Images joined with the table on the person id, never on a row number.

  Images of people without a row (Market's junk '-1' and distractors '0000' among them) fall out;
  people without an image do too. Both are counted and logged.

  Args:
    records: the crops.
    table: the annotated people.
    source: name of the split, for messages.
    dropped: counts of what was left out before, merged into the result's.

  Returns:
    The Split, ordered as `records`.

  Raises:
    ValueError: nothing is left.
  """
  people = {person: row for row, person in enumerate(table.frame.index)}
  kept = [record for record in records if record.person_id in people]
  dropped = dict(dropped or {})
  lost = len(records) - len(kept)
  if lost:
    dropped['not annotated'] = dropped.get('not annotated', 0) + lost
  absent = len(people) - len({record.person_id for record in kept})
  if absent:
    _log.warning('%s: %d of %d annotated people have no image.', source, absent, len(people))
  for reason, count in dropped.items():
    _log.info('%s: %d images left out (%s).', source, count, reason)
  if not kept:
    raise ValueError(
      f'{source} is empty: {len(records)} images were found, none of which belongs to one of the '
      f'{len(people)} annotated people. Do the images and the annotation file belong together?'
    )
  rows = np.asarray([people[record.person_id] for record in kept])
  person_semantic_ids, keys = table.semantic_ids()
  split = Split(
    paths=np.asarray([record.path for record in kept], dtype=str),
    attributes=table.vectors()[rows],
    semantic_ids=person_semantic_ids[rows],
    person_ids=np.asarray([record.person_id for record in kept], dtype=str),
    cameras=np.asarray([record.camera for record in kept], np.int32),
    keys=tuple(keys),
    dropped=dropped,
  )
  # Semantic IDs of people without an image would be classes that never occur.
  return split.subset(np.arange(len(split)))


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A data set as the experiments use it.

  Attributes:
    name: of the data set.
    schema: the attributes; its `rates` are those of the training images.
    train: what is trained on; its semantic IDs are class indices 0 ... C-1.
    validation: semantic IDs held out of the training people for choosing, or None.
    test: the gallery (test and query images together); its queries are its combinations.
  """

  name: str
  schema: AttributeSchema
  train: Split
  validation: Split | None
  test: Split

  def spec(self, image_shape: Sequence[int]) -> DatasetSpec:
    """The sizes a method is built with. `image_shape` is (height, width, 3)."""
    height, width, channels = image_shape
    return DatasetSpec(
      image_shape=(height, width, channels),
      attribute_names=self.schema.column_names,
      num_semantic_ids=len(self.train.keys),
      attribute_rates=self.schema.rates,
      num_images=len(self.train),
      encoding=self.schema.encoding,
    )

  def seen(self, split: Split | None = None) -> np.ndarray:
    """Whether each query of `split` (default: test) also occurs in training, bool [Q]."""
    split = self.test if split is None else split
    train = set(self.train.keys)
    return np.asarray([split.keys[i] in train for i in split.queries()[1]], dtype=bool)


def training_rates(schema: AttributeSchema, attributes: np.ndarray) -> tuple[float, ...]:
  """How often each column is on among the images of which it is said, A floats.

  Args:
    schema: of the vectors; in the three-state encoding 0 means "not said".
    attributes: float32 [N, A].

  Returns:
    The rates; 0 where a column is said of nobody.
  """
  if schema.encoding != 'three_state':
    return tuple(float(rate) for rate in schema.to_bits(attributes).mean(axis=0))
  said = np.count_nonzero(attributes, axis=0)
  on = schema.to_bits(attributes).sum(axis=0)
  return tuple(float(rate) for rate in on / np.maximum(said, 1))


def assemble(
  name: str,
  schema: AttributeSchema,
  train: Split,
  test: Split,
  *,
  validation: Split | None = None,
  validation_share: float = 0.0,
  seed: int = 0,
) -> Benchmark:
  """A Benchmark from its splits: holds out validation IDs and measures the training rates.

  Args:
    name: of the data set.
    schema: without rates.
    train: all training images.
    test: the gallery.
    validation: a ready-made validation split (PETA's `paper` split has one).
    validation_share: in [0, 1), the share of training semantic IDs to hold out. 0 in the paper's
      recipes. The held-out IDs leave training altogether, so every one of them is unseen, as most
      test IDs are.
    seed: of the draw.

  Raises:
    ValueError: the share is out of range or leaves a side empty, or both ways are asked for.
  """
  if not 0.0 <= validation_share < 1.0:
    raise ValueError(f'validation_share must be in [0, 1), not {validation_share}.')
  if validation_share:
    if validation is not None:
      raise ValueError(f'{name} brings a validation split of its own; set validation_share to 0.')
    count = len(train.keys)
    held = round(validation_share * count)
    if not 0 < held < count:
      raise ValueError(
        f'validation_share={validation_share} of {count} training semantic IDs leaves one side '
        'empty. Choose another share.'
      )
    ids = np.random.default_rng(seed).permutation(count)[:held]
    mask = np.isin(train.semantic_ids, ids)
    validation, train = train.subset(np.flatnonzero(mask)), train.subset(np.flatnonzero(~mask))
  schema = dataclasses.replace(schema, rates=training_rates(schema, train.attributes))
  _log.info(
    '%s: %d training images with %d semantic IDs; %s; gallery of %d images with %d queries.',
    name,
    len(train),
    len(train.keys),
    f'{len(validation)} validation images with {len(validation.keys)}'
    if validation
    else 'no validation split',
    len(test),
    len(test.keys),
  )
  return Benchmark(name, schema, train, validation, test)
