"""What to run, what is already done, and how long the rest will take. Floor 5.

Every run is a run directory of `tfreid train` below one folder, with a record beside it of how it
went. Nothing else is remembered, so that stopping and starting again is the same as never having
stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tfreid import storage
from tfreid.comparison import paper

PRETRAIN, TABLE, UNTRAINED, PARAMETER = 'pretrain', 'table', 'untrained', 'parameter'
RECORD = 'compare.json'
LOG = 'train.log'

# Whether a run has to be done.
NEW, STARTED, FAILED, DONE, CHANGED = 'new', 'started', 'failed', 'done', 'changed'

GENERATOR, DISCRIMINATOR = 'generator_weight', 'discriminator_weight'

# Where nothing of the kind has been measured, a pass over frozen features is counted as this share
# of a pass of images through the network. Only for the estimate of time.
_FROZEN_SHARE = 0.02
# Seconds of a run beside its training, before any was measured: start, evaluation, export.
_OVERHEAD = 25.0


class Leg(NamedTuple):
  """What a stage of a recipe costs.

  Attributes:
    name: of the stage.
    method: of its method; two systems whose last legs have one method are of one kind.
    epochs: it trains for.
    batch_size: images or feature vectors per step; 0 for all of them at once.
    frozen: it trains on features that are extracted once.
  """

  name: str
  method: str
  epochs: int
  batch_size: int
  frozen: bool = False

  def steps(self, num_images: int) -> int:
    """Steps of the whole stage; the last partial batch of an epoch is dropped."""
    size = min(self.batch_size or num_images, num_images)
    return self.epochs * (num_images // size if size else 0)


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of `tfreid train`.

  Attributes:
    role: PRETRAIN, TABLE (a row of the tables), UNTRAINED (its reference) or PARAMETER (a point of
      Figure 3).
    system: name of a file in gin/methods; '' for pre-training.
    seed: of the run.
    weights: (lambda_G, lambda_D) of a PARAMETER run, where None is what the recipe has.
  """

  role: str
  system: str
  seed: int
  weights: tuple[float, float] | None = None

  @property
  def name(self) -> str:
    """The run directory below the comparison's, with forward slashes."""
    middle = {
      PRETRAIN: '',
      TABLE: f'{self.system}/',
      UNTRAINED: f'{self.system}/',
      PARAMETER: '' if self.weights is None else 'G{:g}_D{:g}/'.format(*self.weights),
    }[self.role]
    folder = {
      PRETRAIN: 'pretrain',
      TABLE: 'runs',
      UNTRAINED: 'untrained',
      PARAMETER: 'figure3',
    }[self.role]
    return f'{folder}/{middle}seed-{self.seed}'

  @property
  def title(self) -> str:
    """What the run is, for a person."""
    what = {
      PRETRAIN: 'pre-training',
      TABLE: paper.label(self.system),
      UNTRAINED: f'untrained {paper.label(self.system)}',
      PARAMETER: '',
    }[self.role]
    if self.weights is not None:
      what = 'Figure 3, λ_G {:g}, λ_D {:g}'.format(*self.weights)
    return f'{what}, seed {self.seed}'

  def directory(self, out: str) -> str:
    """Where it is written."""
    return os.path.join(out, *self.name.split('/'))


def table_runs(
  systems: Sequence[str],
  seeds: Sequence[int],
  *,
  recipes: Mapping[str, Sequence[Leg]] | None = None,
  untrained: bool = True,
) -> list[Run]:
  """The runs of Tables 2 and 3: for each seed a pre-training and every system.

  Args:
    systems: names of files in gin/methods.
    seeds: of the runs. The first is done for all systems before the second begins, so that there
      is a whole table early.
    recipes: system -> its legs; needed for `untrained`.
    untrained: add, for the first seed, one run without any training for each kind of network.

  Raises:
    ValueError: nothing to run, or something twice.
  """
  for what, names in (('system', systems), ('seed', seeds)):
    if not names:
      raise ValueError(f'Name at least one {what} to compare.')
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
      raise ValueError(f'The {what} {twice[0]!r} is named twice.')
  runs = []
  for index, seed in enumerate(seeds):
    runs.append(Run(PRETRAIN, '', seed))
    runs += [Run(TABLE, system, seed) for system in systems]
    if index == 0 and untrained:
      if recipes is None:
        raise ValueError('Give `recipes`: what an untrained network is like depends on them.')
      first_of_kind: dict[str, str] = {}
      for system in systems:
        first_of_kind.setdefault(kind(recipes[system]), system)
      runs += [Run(UNTRAINED, system, seed) for system in first_of_kind.values()]
  return runs


def kind(legs: Sequence[Leg]) -> str:
  """What a system's networks are: the method of its last leg."""
  return legs[-1].method


def generator_runs(seeds: Sequence[int]) -> list[Run]:
  """The runs of the left half of Figure 3: lambda_G changes, lambda_D is 1."""
  return [
    Run(PARAMETER, paper.OURS, seed, (weight, paper.FIXED_DISCRIMINATOR_WEIGHT))
    for weight in paper.GENERATOR_WEIGHTS
    for seed in seeds
  ]


def discriminator_runs(seeds: Sequence[int], best: float) -> list[Run]:
  """The runs of the right half of Figure 3 that the left does not have: lambda_D changes.

  Args:
    seeds: of the runs.
    best: lambda_G that was best in the left half.
  """
  return [
    Run(PARAMETER, paper.OURS, seed, (best, weight))
    for weight in paper.DISCRIMINATOR_WEIGHTS
    for seed in seeds
    if weight != paper.FIXED_DISCRIMINATOR_WEIGHT or best not in paper.GENERATOR_WEIGHTS
  ]


def read_record(directory: str) -> dict[str, Any]:
  """How a run went; empty where none was started."""
  path = os.path.join(directory, RECORD)
  if not os.path.isfile(path):
    return {}
  with open(path, encoding='utf-8') as file:
    return json.load(file)


def write_record(directory: str, record: Mapping[str, Any]):
  """Keeps how a run went, beside it."""
  os.makedirs(directory, exist_ok=True)
  write_text(os.path.join(directory, RECORD), json.dumps(record, indent=1, ensure_ascii=False))


def state(record: Mapping[str, Any], fingerprint: str) -> str:
  """Whether a run has to be done: NEW, STARTED, FAILED, DONE or CHANGED.

  Args:
    record: of the run.
    fingerprint: of what would be run now; CHANGED is a run of another configuration.
  """
  if not record:
    return NEW
  if record.get('fingerprint') != fingerprint:
    return CHANGED
  status = record.get('status')
  if status is None:
    return STARTED
  return DONE if status == 0 else FAILED


def is_changed(record: Mapping[str, Any], fingerprint: str) -> bool:
  """Whether a run that goes on was, at any time, one of another configuration.

  Once mixed, always mixed: what was trained before stays in it.

  Args:
    record: of the run so far.
    fingerprint: of what is run now.
  """
  return bool(record) and (bool(record.get('changed')) or record.get('fingerprint') != fingerprint)


def legs_of(run: Run, recipes: Mapping[str, Sequence[Leg]]) -> list[Leg]:
  """What a run trains: the shared pre-training only in the run of that name."""
  if run.role == UNTRAINED:
    return []
  if run.role == PRETRAIN:
    # All systems share it, so it is the same in each recipe that has it.
    return [leg for legs in recipes.values() for leg in legs if leg.name == PRETRAIN][:1]
  return [leg for leg in recipes[run.system] if leg.name != PRETRAIN]


def write_text(path: str, text: str):
  """Writes a file so that a reader sees the old or the new one, never half of one."""
  storage.make_directories(os.path.dirname(os.path.abspath(path)))
  storage.write_text(path, text)


class Clock:
  """How long runs take, learnt from those that are finished."""

  def __init__(self, num_images: int, *, images_per_second: float | None = None):
    """Knows nothing yet, or a guess.

    Args:
      num_images: number of training images, 0 if it is not known.
      images_per_second: speed of training to assume until something is measured.
    """
    self.num_images = num_images
    self.images_per_second = images_per_second
    self._per_epoch: dict[str, list[float]] = {}
    self._per_image: list[float] = []
    self._overhead: list[float] = []

  def learn(self, legs: Sequence[Leg], record: Mapping[str, Any]):
    """Takes in a finished run; one that was interrupted says nothing about time."""
    if record.get('status') != 0 or record.get('attempts') != 1:
      return
    stages = record.get('stages', {})
    trained = 0.0
    for leg in legs:
      seconds = stages.get(leg.name, {}).get('seconds')
      if seconds is None or not leg.epochs:
        continue
      trained += seconds
      self._per_epoch.setdefault(leg.name, []).append(seconds / leg.epochs)
      if not leg.frozen and self.num_images:
        self._per_image.append(seconds / leg.epochs / self.num_images)
    self._overhead.append(max(0.0, record['seconds'] - trained))

  @property
  def is_guess(self) -> bool:
    """Whether no run has been measured yet."""
    return not self._overhead

  def seconds(self, legs: Sequence[Leg]) -> float | None:
    """The expected duration of a run, None where nothing tells.

    A leg that was measured takes as long per epoch as it did; another as long per image as those
    that were, or as the guess has it.
    """
    per_image = _mean(self._per_image) if self._per_image else None
    if per_image is None and self.images_per_second:
      per_image = 1.0 / self.images_per_second
    if self.is_guess and per_image is None:
      return None
    total = _OVERHEAD if self.is_guess else _mean(self._overhead)
    for leg in legs:
      if leg.name in self._per_epoch:
        total += leg.epochs * _mean(self._per_epoch[leg.name])
      elif per_image is None or not self.num_images:
        return None
      else:
        share = _FROZEN_SHARE if leg.frozen else 1.0
        total += share * leg.epochs * self.num_images * per_image
    return total


def duration(seconds: float | None) -> str:
  """A duration for a person: '45 s', '12 min', '1 h 05 min'."""
  if seconds is None:
    return 'not known yet'
  if seconds < 90:
    return f'{seconds:.0f} s'
  minutes = round(seconds / 60)
  return f'{minutes} min' if minutes < 90 else f'{minutes // 60} h {minutes % 60:02d} min'


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values)
