"""Which images an epoch takes, and in what order, where that is not a plain shuffle. Floor 1."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from tfreid.data.augmentation import Stream


class Sampler(Protocol):
  """Chooses the examples of an epoch, such as `PeopleSampler`."""

  def __call__(self, people: np.ndarray, *, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """Rows int64 [steps * batch_size] of examples whose semantic IDs are `people`, int [N]."""


@dataclasses.dataclass(frozen=True)
class PeopleSampler:
  """Batches of P people with K crops each, which a batch-hard triplet loss needs.

  Each epoch divides the crops of each person into groups of K; a person's last group is completed
  with other crops of the person (with repetitions where the person has fewer than K). A batch takes
  one group of P different people. People with more groups left are taken more often, so that in the
  end few groups are left over: those of fewer than P people, which the epoch drops.

  Attributes:
    crops: K, crops of each person in a batch. P is the batch size divided by it.
  """

  crops: int = 4

  def __post_init__(self):
    if isinstance(self.crops, bool) or not isinstance(self.crops, int) or self.crops < 2:
      raise ValueError(
        f'PeopleSampler.crops is a whole number of at least 2, not {self.crops!r}: a triplet needs '
        'two crops of one person.'
      )

  def __call__(self, people: np.ndarray, *, seed: int, epoch: int, batch_size: int) -> np.ndarray:
    """The rows of an epoch, decided by (seed, epoch) alone.

    Args:
      people: int [N], the person of each crop.
      seed: of the run, not negative.
      epoch: not negative.
      batch_size: P times K.

    Returns:
      int64 [steps * batch_size], positions in `people`; each batch has its P people one after the
      other.

    Raises:
      ValueError: the batch size is not a multiple of K, or there are fewer than P people.
    """
    if batch_size % self.crops or batch_size < 2 * self.crops:
      raise ValueError(
        f'A batch of {batch_size} images cannot hold two or more people with '
        f'PeopleSampler.crops={self.crops} crops each. Set Pipeline.batch_size to a multiple of '
        f'{self.crops}, for example {16 * self.crops}.'
      )
    per_batch = batch_size // self.crops
    names, positions = np.unique(people, return_inverse=True)
    if len(names) < per_batch:
      raise ValueError(
        f'A batch takes {per_batch} people (Pipeline.batch_size={batch_size}, '
        f'PeopleSampler.crops={self.crops}), but there are only {len(names)}. Lower the batch size '
        f'to {len(names) * self.crops} or less.'
      )
    generator = np.random.default_rng([seed, epoch, int(Stream.ORDER)])
    groups = self._groups(positions, len(names), generator)
    left = np.asarray([len(group) for group in groups])
    rows = []
    while np.count_nonzero(left) >= per_batch:
      chosen = generator.choice(len(names), per_batch, replace=False, p=left / left.sum())
      left[chosen] -= 1
      rows += [groups[person][left[person]] for person in chosen]
    return np.concatenate(rows).astype(np.int64)

  def _groups(self, people, count, generator) -> list[np.ndarray]:
    """For each person, rows [groups, K]."""
    shuffled = generator.permutation(len(people))
    by_person = shuffled[np.argsort(people[shuffled], kind='stable')]
    ends = np.cumsum(np.bincount(people, minlength=count))
    groups = []
    for rows in np.split(by_person, ends[:-1]):
      missing = -len(rows) % self.crops
      # Others of the person first; repetitions only where there are not enough.
      spare = rows[: max(len(rows) - (len(rows) % self.crops), 0)]
      pool = spare if len(spare) >= missing else rows
      more = generator.choice(pool, missing, replace=len(pool) < missing)
      groups.append(np.concatenate([rows, more]).reshape(-1, self.crops))
    return groups
