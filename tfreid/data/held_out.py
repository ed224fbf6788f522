"""Who is held out: a draw that belongs to the person and not to the file. Floor 1.

Shuffling a list of people gives everybody another side when one person is added. A hash of the
person's own id does not: whoever was held out stays held out, in every run and on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def draw(data_set: str, person: str, *, seed: int = 0) -> float:
  """A number in [0, 1) for a person of a data set, evenly spread over people.

  Args:
    data_set: its name; equal ids of two data sets are two people.
    person: the id.
    seed: another one gives every person another number.
  """
  digest = hashlib.sha256(f'{seed}\n{data_set}\n{person}'.encode()).digest()
  return int.from_bytes(digest[:8], 'big') / 2**64


def is_held_out(data_set: str, people: Sequence[str], share: float, *, seed: int = 0) -> np.ndarray:
  """For each crop whether its person is held out, bool [N].

  Args:
    data_set: its name.
    people: person id of each crop.
    share: of the people to hold out, in (0, 1).
    seed: of the draw.

  Raises:
    ValueError: the share is out of range.
  """
  if not 0.0 < share < 1.0:
    raise ValueError(f'The share of people to hold out is in (0, 1), not {share}.')
  held = {
    person: draw(data_set, person, seed=seed) < share for person in dict.fromkeys(map(str, people))
  }
  return np.asarray([held[str(person)] for person in people], bool)
