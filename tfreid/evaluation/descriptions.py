"""What a model finds that is asked in few words: the numbers of a model card. Floor 4.

The protocol of the tables asks for whole descriptions. Who searches says one to three things, of
which it can be judged image by image whether they are true. An image of which an annotation leaves
open what is asked is no part of the gallery of that question.

Intervals are percentiles of a bootstrap over people: images of one person are no new evidence.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfreid.data.attributes import AttributeSchema
from tfreid.data.benchmark import Split

FIRST = 20
_NAMES = ('precision', 'average_precision', 'auc')


class Statement(NamedTuple):
  """One thing that can be said of a person, and of whom it is true.

  Attributes:
    attribute: its name.
    value: of the attribute; 'no' is never asked for.
    truth: int8 [N]: 1 true, -1 false, 0 not told.
  """

  attribute: str
  value: str
  truth: np.ndarray


class Estimate(NamedTuple):
  """A number with its interval of 95 %, NaN where nothing can be said."""

  value: float
  low: float
  high: float


class Answer(NamedTuple):
  """How well one question is answered.

  Attributes:
    query: attribute name to value.
    images: of which it is told.
    people: of which it is told.
    base_rate: share of the images for which it is true: the precision of guessing.
    precision: of the first 20.
    average_precision: over all images.
    auc: chance that a right image stands before a wrong one; 0.5 is guessing.
  """

  query: Mapping[str, str]
  images: int
  people: int
  base_rate: float
  precision: Estimate
  average_precision: Estimate
  auc: Estimate

  def to_json(self) -> dict[str, Any]:
    """Plain JSON types, NaN as None."""
    row: dict[str, Any] = {
      'query': dict(self.query),
      'images': self.images,
      'people': self.people,
      'base_rate': self.base_rate,
    }
    for name in _NAMES:
      row[name] = [None if np.isnan(x) else round(float(x), 5) for x in getattr(self, name)]
    return row


def statements(schema: AttributeSchema, split: Split) -> list[Statement]:
  """Everything that can be said in one setting and is true of somebody and false of somebody."""
  vectors = split.attributes
  states = np.sign(vectors if schema.encoding == 'three_state' else vectors - 0.5).astype(np.int8)
  found = []
  for attribute in schema.attributes:
    block = states[:, schema.block(attribute.name)]
    if attribute.is_binary:
      truths = {attribute.values[0]: -block[:, 0], attribute.values[1]: block[:, 0]}
      truths.pop('no', None)
    else:
      truths = dict(zip(attribute.values, block.T))
    found += [
      Statement(attribute.name, value, truth)
      for value, truth in truths.items()
      if (truth > 0).any() and (truth < 0).any()
    ]
  return found


def joined(parts: Sequence[Statement]) -> np.ndarray:
  """Truth of several statements at once, int8 [N]: not told where one of them is not."""
  truths = np.stack([part.truth for part in parts])
  return np.where((truths == 0).any(axis=0), 0, truths.min(axis=0)).astype(np.int8)


def commonest(
  found: Sequence[Statement],
  *,
  count: int = 40,
  sizes: Sequence[int] = (2, 3),
  about: Sequence[str] = (),
) -> list[tuple[Statement, ...]]:
  """The descriptions of two or three attributes that are true of most images.

  Args:
    found: from `statements`.
    count: how many.
    sizes: numbers of attributes.
    about: names of attributes of which each description must have one; none: any will do.

  Returns:
    The descriptions, the commonest first. Equally common ones in the order of the schema.
  """
  true = np.stack([part.truth > 0 for part in found]) if found else np.zeros((0, 0), bool)
  told = np.stack([part.truth != 0 for part in found]) if found else true
  counted: list[tuple[int, tuple[int, ...]]] = []
  for size in sizes:
    for chosen in itertools.combinations(range(len(found)), size - 1):
      both = true[list(chosen)].all(axis=0)
      numbers = true[chosen[-1] + 1 :] @ both.astype(np.int32) if chosen else true.sum(axis=1)
      for other, number in enumerate(numbers, start=chosen[-1] + 1 if chosen else 0):
        all_of_it = (*chosen, other)
        names = [found[i].attribute for i in all_of_it]
        if len(set(names)) == size and (not about or set(names) & set(about)):
          if number and number < np.count_nonzero(told[list(all_of_it)].all(axis=0)):
            counted.append((int(number), all_of_it))
      # Only the best are kept, so that triples of a large schema take no memory.
      counted = sorted(counted, key=lambda item: (-item[0], item[1]))[:count]
  return [tuple(found[i] for i in chosen) for _, chosen in counted]


class Judge:
  """Judges ranked lists, with intervals over people.

  Attributes:
    people: str [N], who is to be seen in each image.
  """

  def __init__(self, people: Sequence[str], *, resamples: int = 500, seed: int = 0):
    """Draws the resamples.

    Args:
      people: str [N], the person of each image.
      resamples: draws of as many people as there are, with repetitions.
      seed: of the draws.
    """
    self.people = np.asarray(people)
    names, self._person = np.unique(self.people, return_inverse=True)
    self._person = self._person.reshape(-1)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    # The first weighs each person once: the number itself.
    self._weights = np.concatenate([np.ones((1, len(names)), int), drawn])

  def judge(self, query: Mapping[str, str], truth: np.ndarray, scores: np.ndarray) -> Answer:
    """How well a question is answered.

    Args:
      query: attribute name to value, for the result.
      truth: int8 [N], see `Statement`.
      scores: float [N]; the highest first, ties by index.
    """
    told = np.flatnonzero(truth)
    order = told[np.lexsort((told, -scores[told]))]
    numbers = self._numbers(truth[order] > 0, self._person[order])
    estimates = {name: _estimate(values) for name, values in zip(_NAMES, numbers)}
    return Answer(
      query=dict(query),
      images=len(told),
      people=len(np.unique(self._person[told])),
      base_rate=float((truth[told] > 0).mean()) if len(told) else float('nan'),
      **estimates,
    )

  def mean(self, truths: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> dict[str, Estimate]:
    """The mean over questions of what `judge` tells of each, with the interval of the mean."""
    total = []
    for truth, row in zip(truths, scores):
      told = np.flatnonzero(truth)
      order = told[np.lexsort((told, -row[told]))]
      total.append(self._numbers(truth[order] > 0, self._person[order]))
    if not total:
      return {name: Estimate(*[float('nan')] * 3) for name in _NAMES}
    means = np.mean(total, axis=0)
    return {name: _estimate(values) for name, values in zip(_NAMES, means)}

  def _numbers(self, right: np.ndarray, person: np.ndarray) -> np.ndarray:
    """[3, 1 + resamples]: precision of the first 20, average precision, AUC, of each resample."""
    weights = self._weights[:, person].astype(np.float64)  # [R, M]
    seen = np.cumsum(weights, axis=1)
    hits = np.cumsum(weights * right, axis=1)
    with np.errstate(invalid='ignore', divide='ignore'):
      # A part of an image that crosses the border counts in part.
      inside = np.clip(FIRST - (seen - weights), 0.0, weights)
      precision = (inside * right).sum(axis=1) / inside.sum(axis=1)
      all_right = hits[:, -1:] if right.size else np.zeros((len(weights), 1))
      share = np.where(seen > 0, hits / seen, 0.0)
      average = (weights * right * share).sum(axis=1) / all_right[:, 0]
      wrong = weights * ~right
      behind = wrong.sum(axis=1, keepdims=True) - np.cumsum(wrong, axis=1)
      auc = (weights * right * behind).sum(axis=1) / (all_right[:, 0] * wrong.sum(axis=1))
    return np.stack([precision, average, auc])


def _estimate(values: np.ndarray) -> Estimate:
  """The first value, with the percentiles of the others."""
  others = values[1:][np.isfinite(values[1:])]
  if not np.isfinite(values[0]) or not len(others):
    return Estimate(float(values[0]), float('nan'), float('nan'))
  low, high = np.percentile(others, [2.5, 97.5])
  return Estimate(float(values[0]), float(low), float(high))


def groups(found: Sequence[Statement], names: Sequence[str]) -> dict[tuple[str, str], np.ndarray]:
  """Images of each group of people, as annotated: (attribute, value) to bool [N]."""
  return {(part.attribute, part.value): part.truth > 0 for part in found if part.attribute in names}


def asked_in_groups(
  found: Sequence[Statement], members: Sequence[np.ndarray], *, by: str, least: int = 10
) -> list[int]:
  """Which statements can be compared between groups: told of enough people of each.

  Args:
    found: from `statements`.
    members: bool [N] of each group.
    by: the attribute that the groups are told by, which is not asked for.
    least: images of each group of which the statement is true, and of which it is false.
  """
  return [
    i
    for i, part in enumerate(found)
    if part.attribute != by
    and all(
      min((part.truth[group] > 0).sum(), (part.truth[group] < 0).sum()) >= least
      for group in members
    )
  ]


def setting(vector: np.ndarray, schema: AttributeSchema) -> dict[str, str]:
  """What an attribute vector says, as a query; attributes that it leaves unsaid are left out."""
  said = schema.describe(vector)
  if schema.encoding != 'three_state':
    return said
  return {name: value for name, value in said.items() if np.any(vector[schema.block(name)])}
