"""Who lives in the synthetic data set: attributes, their frequencies, and the two splits.

The column orders and value codes are those of Market-1501's attribute annotation, in which the
train and the test table list the same 27 columns in different orders.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfreid.data.synthetic.difficulty import Difficulty

AGES = ('child', 'teenager', 'adult', 'old')  # raw values 1, 2, 3, 4
BAGS = ('backpack', 'bag', 'handbag')
UPPER_COLORS = ('black', 'white', 'red', 'purple', 'yellow', 'gray', 'blue', 'green')
LOWER_COLORS = (
  'black',
  'white',
  'pink',
  'purple',
  'yellow',
  'gray',
  'blue',
  'green',
  'brown',
)

_FIRST = ('age', 'backpack', 'bag', 'handbag')
_SHAPES = ('clothes', 'down', 'up', 'hair', 'hat', 'gender')
TEST_COLUMNS = (
  _FIRST + _SHAPES + tuple('up' + c for c in UPPER_COLORS) + tuple('down' + c for c in LOWER_COLORS)
)
TRAIN_COLUMNS = (
  _FIRST
  + tuple('down' + c for c in sorted(LOWER_COLORS))
  # Alphabetical but for green before gray, as in the annotation file.
  + tuple('up' + c for c in ('black', 'blue', 'green', 'gray', 'purple', 'red', 'white', 'yellow'))
  + _SHAPES
)

# Relative frequencies, close to Market-1501's training people; `Difficulty.tail` flattens them.
_AGE_RATES = {'child': 14, 'teenager': 569, 'adult': 160, 'old': 16}
_FEMALE_RATE = 0.43
_LONG_HAIR_RATES = {'male': 0.01, 'female': 0.78}
_HAT_RATE = 0.04
_LONG_SLEEVES_RATE = 0.08
_SKIRT_RATES = {'male': 0.0, 'female': 0.36}
_LONG_LOWER_RATES = {'pants': 0.43, 'dress': 0.14}
_BAG_RATES = {None: 281, 'backpack': 199, 'bag': 185, 'handbag': 86}
_UPPER_RATES = {
  'black': 113,
  'white': 228,
  'red': 78,
  'purple': 30,
  'yellow': 40,
  'gray': 86,
  'blue': 50,
  'green': 56,
  None: 78,
}
_LOWER_RATES = {
  'black': 293,
  'white': 58,
  'pink': 29,
  'purple': 4,
  'yellow': 10,
  'gray': 123,
  'blue': 123,
  'green': 16,
  'brown': 65,
  None: 30,
}


class Attributes(NamedTuple):
  """What an annotator would write down of one person; the tuple is the semantic ID's key.

  Attributes:
    age: 'child', 'teenager', 'adult' or 'old'.
    gender: 'male' or 'female'.
    hair: 'short' or 'long'.
    hat: whether the person wears one.
    sleeves: 'long' or 'short'.
    lower: 'pants' or 'dress' (which includes skirts).
    lower_length: 'long' or 'short'.
    upper_color: one of UPPER_COLORS, or None: several colours or one without a column.
    lower_color: one of LOWER_COLORS, or None.
    bag: 'backpack', 'bag' (on the shoulder), 'handbag' or None.
  """

  age: str = 'adult'
  gender: str = 'male'
  hair: str = 'short'
  hat: bool = False
  sleeves: str = 'short'
  lower: str = 'pants'
  lower_length: str = 'long'
  upper_color: str | None = 'white'
  lower_color: str | None = 'blue'
  bag: str | None = None

  def raw(self) -> dict:
    """Returns the 27 annotation columns by name, each with its raw value (1, 2; age 1..4)."""
    values = {
      'age': 1 + AGES.index(self.age),
      'clothes': 1 if self.lower == 'dress' else 2,
      'down': 1 if self.lower_length == 'long' else 2,
      'up': 1 if self.sleeves == 'long' else 2,
      'hair': 1 if self.hair == 'short' else 2,
      'hat': 2 if self.hat else 1,
      'gender': 1 if self.gender == 'male' else 2,
    }
    values.update({bag: 2 if self.bag == bag else 1 for bag in BAGS})
    values.update({'up' + c: 2 if self.upper_color == c else 1 for c in UPPER_COLORS})
    values.update({'down' + c: 2 if self.lower_color == c else 1 for c in LOWER_COLORS})
    return values

  def words(self) -> str:
    """Returns a short description for people, as under the pictures of a contact sheet."""
    lower = {
      ('pants', 'long'): 'trousers',
      ('pants', 'short'): 'shorts',
      ('dress', 'long'): 'long skirt',
      ('dress', 'short'): 'short skirt',
    }[self.lower, self.lower_length]
    parts = [
      f'{self.age} {self.gender}',
      f'{self.hair} hair' + (', hat' if self.hat else ''),
      f'{self.upper_color or "other"}, {self.sleeves} sleeves',
      f'{self.lower_color or "other"} {lower}',
      self.bag or 'no bag',
    ]
    return '\n'.join(parts)


class Person(NamedTuple):
  """One synthetic person: id as in the file names, number that seeds the looks, attributes."""

  person_id: str
  number: int
  attributes: Attributes


class Population(NamedTuple):
  """The people of both splits, each sorted by person id."""

  train: tuple[Person, ...]
  test: tuple[Person, ...]

  def unseen_share(self) -> float:
    """Returns the share of the test split's semantic IDs that no training person has."""
    seen = {p.attributes for p in self.train}
    test = {p.attributes for p in self.test}
    return len(test - seen) / len(test)


def _choose(rng: np.random.Generator, rates: dict, tail: float):
  """Returns a key of `rates`, drawn with probability proportional to rate ** tail."""
  bounds = np.cumsum([rate**tail if rate > 0 else 0.0 for rate in rates.values()])
  return list(rates)[int(np.searchsorted(bounds, rng.random() * bounds[-1], side='right'))]


def _happens(rng: np.random.Generator, rate: float, tail: float) -> bool:
  return bool(_choose(rng, {True: rate, False: 1.0 - rate}, tail))


def sample_attributes(rng: np.random.Generator, tail: float = 1.0) -> Attributes:
  """Returns the attributes of a random person, with frequencies like Market-1501's.

  Args:
    rng: the source of randomness.
    tail: exponent of all frequencies; 1 = as long-tailed as Market-1501, 0 = uniform.

  Returns:
    Attributes. Sex conditions hair and skirts, and skirts condition length; the rest is
    independent.
  """
  age = _choose(rng, _AGE_RATES, tail)
  gender = 'female' if _happens(rng, _FEMALE_RATE, tail) else 'male'
  # Long-haired men stay rare at any tail: there is little else that tells them from women.
  hair_tail = 1.0 if gender == 'male' else tail
  lower = 'dress' if _happens(rng, _SKIRT_RATES[gender], tail) else 'pants'
  return Attributes(
    age=age,
    gender=gender,
    hair='long' if _happens(rng, _LONG_HAIR_RATES[gender], hair_tail) else 'short',
    hat=_happens(rng, _HAT_RATE, tail),
    sleeves='long' if _happens(rng, _LONG_SLEEVES_RATE, tail) else 'short',
    lower=lower,
    lower_length='long' if _happens(rng, _LONG_LOWER_RATES[lower], tail) else 'short',
    upper_color=_choose(rng, _UPPER_RATES, tail),
    lower_color=_choose(rng, _LOWER_RATES, tail),
    bag=_choose(rng, _BAG_RATES, tail),
  )


def sample_population(
  num_train: int,
  num_test: int,
  *,
  unseen_share: float,
  difficulty: Difficulty,
  seed: int,
) -> Population:
  """Returns the people of both splits, with the wanted share of unseen semantic IDs in test.

  Training people are independent draws. A test person is drawn either from the training
  people's combinations or from the combinations that no training person has (whose single
  values all occur in training, so that they are unseen as combinations only), whichever
  brings the share of unseen IDs among the test IDs so far nearer to the wanted one.

  Args:
    num_train: people in the training split.
    num_test: people in the test split.
    unseen_share: wanted share of test semantic IDs absent from training, in [0, 1]. Met to
      within one ID. Where training has few distinct combinations, the test split cannot have
      many more than `their number / (1 - unseen_share)`.
    difficulty: its `tail` sets the frequencies.
    seed: the source of randomness.

  Returns:
    Population with disjoint person ids '0001', '0002', ... mixed over the splits.
  """
  rng = np.random.default_rng([seed, 101])
  train = [sample_attributes(rng, difficulty.tail) for _ in range(num_train)]
  known = set(train)
  known_values = [set(column) for column in zip(*train)]
  test: list[Attributes] = []
  fresh: set[Attributes] = set()
  old: set[Attributes] = set()
  for _ in range(num_test):
    if len(fresh) < unseen_share * (len(fresh) + len(old) + 1):
      attributes = _sample_unseen(rng, known, known_values, difficulty.tail)
      fresh.add(attributes)
    else:
      attributes = train[int(rng.integers(num_train))]
      old.add(attributes)
    test.append(attributes)
  test = [test[i] for i in rng.permutation(num_test)]
  ids = rng.permutation(num_train + num_test) + 1
  people = [
    Person(f'{number:04d}', int(number), attributes)
    for number, attributes in zip(ids, train + test)
  ]
  return Population(tuple(sorted(people[:num_train])), tuple(sorted(people[num_train:])))


def _sample_unseen(rng, known, known_values, tail) -> Attributes:
  for _ in range(10_000):
    attributes = sample_attributes(rng, tail)
    if attributes not in known and all(v in s for v, s in zip(attributes, known_values)):
      return attributes
  raise ValueError(
    'Could not find an attribute combination that is absent from training while each of its '
    'values occurs there. Use more training people, or a smaller unseen_share.'
  )
