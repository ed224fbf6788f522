from __future__ import annotations

import numpy as np
import pytest

from tfreid.data.samplers import PeopleSampler

# 9 people with 2 to 18 crops.
PEOPLE = np.repeat(np.arange(9), [2, 4, 5, 6, 8, 9, 12, 15, 18])


def batches(people=PEOPLE, *, crops=4, seed=0, epoch=0, batch_size=12):
  rows = PeopleSampler(crops)(people, seed=seed, epoch=epoch, batch_size=batch_size)
  return rows.reshape(-1, batch_size)


def test_each_batch_has_p_people_with_k_crops():
  for rows in batches():
    assert sorted(np.unique(PEOPLE[rows], return_counts=True)[1]) == [4, 4, 4]


def test_a_person_with_enough_crops_is_never_the_same_crop_twice_in_a_batch():
  for rows in batches():
    for person in set(PEOPLE[rows]) - {0}:
      mine = rows[PEOPLE[rows] == person]
      assert len(set(mine)) == len(mine)


def test_of_a_person_with_too_few_crops_all_are_taken():
  people = np.repeat(np.arange(3), [3, 4, 4])
  (rows,) = batches(people)
  assert set(rows[people[rows] == 0]) == {0, 1, 2}


def test_an_epoch_takes_nearly_all_crops_however_uneven_people_are():
  taken = np.unique(batches(epoch=3))
  assert len(taken) / len(PEOPLE) > 0.7


def test_an_epoch_is_decided_by_seed_and_epoch():
  np.testing.assert_array_equal(batches(seed=1, epoch=2), batches(seed=1, epoch=2))
  assert not np.array_equal(batches(seed=1, epoch=2)[0], batches(seed=1, epoch=3)[0])
  assert not np.array_equal(batches(seed=1, epoch=2)[0], batches(seed=2, epoch=2)[0])


def test_what_does_not_go_is_refused_with_advice():
  with pytest.raises(ValueError, match='two crops of one person'):
    PeopleSampler(1)
  with pytest.raises(ValueError, match='multiple of 4, for example 64'):
    batches(batch_size=10)
  with pytest.raises(ValueError, match='takes 10 people .* only 9. Lower the batch size to 36'):
    batches(batch_size=40)
