from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tfreid.data import shared_attributes
from tfreid.data.benchmark import Split
from tfreid.evaluation import descriptions

SCHEMA = shared_attributes.schema(['peta', 'market1501'])


@pytest.fixture(scope='module')
def split():
  """A drawn world: 60 people of 4 images, of whom one in five does not tell the length of hair."""
  rng = np.random.default_rng(0)
  people = np.full((60, SCHEMA.size), -1.0, np.float32)
  for name in ('age', 'upper_color', 'lower_color'):
    block = SCHEMA.block(name)
    values = rng.integers(block.start, block.start + 3, 60)
    people[np.arange(60), values] = 1.0
  for attribute in SCHEMA.attributes:
    if attribute.is_binary:
      column = SCHEMA.block(attribute.name).start
      people[:, column] = np.where(rng.random(60) < 0.3, 1.0, -1.0)
  people[::5, SCHEMA.block('hair')] = 0.0
  person = np.repeat(np.arange(60), 4)
  keys, ids = np.unique(people, axis=0, return_inverse=True)
  return Split(
    paths=np.asarray([f'{i}.png' for i in range(240)]),
    attributes=people[person],
    semantic_ids=ids.reshape(-1)[person].astype(np.int64),
    person_ids=person.astype(str),
    cameras=np.zeros(240, np.int32),
    keys=tuple(map(tuple, keys)),
  )


def test_statements_are_what_is_true_of_some_and_false_of_others(split):
  found = descriptions.statements(SCHEMA, split)
  named = {(part.attribute, part.value): part.truth for part in found}
  assert ('hat', 'no') not in named and ('gender', 'male') in named
  # Only three values of each colour are worn.
  assert sum(attribute == 'upper_color' for attribute, _ in named) == 3
  np.testing.assert_array_equal(named['gender', 'male'], -named['gender', 'female'])
  assert (named['hair', 'long'] == 0).sum() == 48
  told = descriptions.joined(
    [part for part in found if part[:2] in (('hair', 'long'), ('hat', 'yes'))]
  )
  assert (told == 0).sum() == 48
  assert (told > 0).sum() == ((named['hair', 'long'] > 0) & (named['hat', 'yes'] > 0)).sum()


def test_the_commonest_descriptions_are_those_of_most_images(split):
  found = descriptions.statements(SCHEMA, split)
  chosen = descriptions.commonest(found, count=15)
  counts = [(descriptions.joined(parts) > 0).sum() for parts in chosen]
  assert counts == sorted(counts, reverse=True) and len(chosen) == 15
  every = sorted(
    (
      (descriptions.joined([a, b]) > 0).sum()
      for i, a in enumerate(found)
      for b in found[i + 1 :]
      if a.attribute != b.attribute
    ),
    reverse=True,
  )
  # No triple is commoner than the pairs in it.
  assert counts == every[:15] or min(counts) >= every[14]
  about = descriptions.commonest(found, count=5, about=('hat',))
  assert all('hat' in [part.attribute for part in parts] for parts in about)
  threes = descriptions.commonest(found, count=5, sizes=(3,))
  assert all(len({part.attribute for part in parts}) == 3 for parts in threes)


def test_numbers_are_scikit_learns(split):
  found = descriptions.statements(SCHEMA, split)
  part = next(part for part in found if part.attribute == 'hair')
  scores = np.random.default_rng(1).normal(size=240) + 0.5 * part.truth
  answer = descriptions.Judge(split.person_ids, resamples=200).judge({}, part.truth, scores)
  told = part.truth != 0
  right = part.truth[told] > 0
  assert (answer.images, answer.people) == (192, 48)
  assert answer.base_rate == pytest.approx(right.mean())
  assert answer.average_precision.value == pytest.approx(
    average_precision_score(right, scores[told])
  )
  assert answer.auc.value == pytest.approx(roc_auc_score(right, scores[told]))
  first = np.argsort(-scores[told])[:20]
  assert answer.precision.value == pytest.approx(right[first].mean())
  for name in ('precision', 'average_precision', 'auc'):
    estimate = getattr(answer, name)
    assert estimate.low < estimate.value < estimate.high
  assert answer.to_json()['auc'][0] == pytest.approx(answer.auc.value, abs=1e-5)


def test_intervals_are_of_people_and_not_of_images(split):
  """Copies of every image are no new evidence."""
  found = descriptions.statements(SCHEMA, split)[3]
  scores = np.random.default_rng(2).normal(size=60).repeat(4) + 0.3 * found.truth
  once = descriptions.Judge(split.person_ids[::4], resamples=400)
  often = descriptions.Judge(split.person_ids, resamples=400)
  narrow = once.judge({}, found.truth[::4], scores[::4]).auc
  wide = often.judge({}, found.truth, scores).auc
  assert wide.high - wide.low == pytest.approx(narrow.high - narrow.low, rel=1e-6)
  as_if = descriptions.Judge([str(i) for i in range(240)], resamples=400)
  too_sure = as_if.judge({}, found.truth, scores).auc
  assert too_sure.high - too_sure.low < 0.7 * (wide.high - wide.low)


def test_a_mean_over_questions_is_the_mean_of_their_numbers(split):
  found = descriptions.statements(SCHEMA, split)[:3]
  rows = list(np.random.default_rng(3).normal(size=(3, 240)))
  judge = descriptions.Judge(split.person_ids, resamples=50)
  means = judge.mean([part.truth for part in found], rows)
  each = [judge.judge({}, part.truth, row).auc.value for part, row in zip(found, rows)]
  assert means['auc'].value == pytest.approx(np.mean(each))
  assert np.isnan(judge.mean([], [])['auc'].value)


def test_groups_are_compared_by_what_can_be_told_of_each(split):
  found = descriptions.statements(SCHEMA, split)
  members = descriptions.groups(found, ['gender'])
  assert set(members) == {('gender', 'male'), ('gender', 'female')}
  assert not (members['gender', 'male'] & members['gender', 'female']).any()
  chosen = descriptions.asked_in_groups(found, list(members.values()), by='gender')
  assert chosen and all(found[i].attribute != 'gender' for i in chosen)
  for i in chosen:
    for group in members.values():
      assert min((found[i].truth[group] > 0).sum(), (found[i].truth[group] < 0).sum()) >= 10
  assert not descriptions.asked_in_groups(found, [np.zeros(240, bool)], by='gender')


def test_a_vector_is_asked_by_what_it_says(split):
  vector = np.zeros(SCHEMA.size, np.float32)
  vector[SCHEMA.block('hat')] = 1.0
  block = SCHEMA.block('upper_color')
  vector[block] = -1.0
  vector[block.start] = 1.0
  said = descriptions.setting(vector, SCHEMA)
  assert said == {'hat': 'yes', 'upper_color': SCHEMA.attribute('upper_color').values[0]}
