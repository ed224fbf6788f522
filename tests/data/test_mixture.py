from __future__ import annotations

import numpy as np
import pytest

from tfreid.data import held_out, market1501, mixture, peta, shared_attributes


@pytest.fixture(scope='module')
def small_peta(tmp_path_factory, write_crops, shared_data):
  """PETA with every twentieth image, tiny, and its real annotations."""
  root = tmp_path_factory.mktemp('peta')
  write_crops(root / 'images', [f'{number:05d}.png' for number in range(20, 19001, 20)])
  (root / 'PETA.mat').write_bytes((shared_data / 'PETA.mat').read_bytes())
  return root


@pytest.fixture(scope='module')
def both(small_peta, tiny_market):
  return mixture.load(
    {'peta': str(small_peta), 'market1501': str(tiny_market)},
    test_share=0.25,
    validation_share=0.1,
  )


def test_a_persons_draw_is_its_own_and_even():
  draws = np.asarray([held_out.draw('a', str(i)) for i in range(4000)])
  assert draws.min() >= 0.0 and draws.max() < 1.0
  counts = np.histogram(draws, bins=10, range=(0, 1))[0]
  assert np.abs(counts - 400).max() < 5 * np.sqrt(400)
  # Known value, so that nobody's side moves with a new version.
  assert held_out.draw('PETA', '00001', seed=0) == pytest.approx(0.3396309255899888, abs=1e-9)
  assert held_out.draw('PETA', '00001', seed=1) != held_out.draw('PETA', '00001', seed=0)
  assert held_out.draw('b', '1') != held_out.draw('a', '1')


def test_all_images_are_used_and_nobody_stands_on_two_sides(both, small_peta, tiny_market):
  parts = (both.train, both.validation, both.test)
  market = market1501.load(tiny_market)
  assert sum(map(len, parts)) == 950 + len(market.train) + len(market.test)
  people = [set(part.person_ids) for part in parts]
  assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])
  assert {person.split('/')[0] for person in set().union(*people)} == {'PETA', 'Market-1501'}
  share = len({p for p in people[2] if p.startswith('PETA')}) / len(
    {p for side in people for p in side if p.startswith('PETA')}
  )
  assert 0.2 < share < 0.3


def test_what_a_data_set_does_not_tell_is_not_said(both):
  columns = both.schema.column_names
  handbag, jeans = columns.index('handbag'), columns.index('jeans')
  train = both.train
  is_peta = np.char.startswith(train.subsets, 'PETA/')
  assert 0 < is_peta.sum() < len(train)
  assert not train.attributes[is_peta, handbag].any()
  assert not train.attributes[~is_peta, jeans].any()
  assert set(np.unique(train.attributes[is_peta, jeans])) == {-1.0, 1.0}
  # The rates are those of the images of which it is said.
  on = (train.attributes[is_peta, jeans] > 0).mean()
  assert both.schema.rates[jeans] == pytest.approx(on)
  assert set(both.test.subsets[np.char.startswith(both.test.subsets, 'PETA/')]) <= {
    f'PETA/{subset}' for subset in peta.SUBSETS
  }


def test_another_data_set_moves_nobody(both, small_peta):
  alone = mixture.load({'peta': str(small_peta)}, test_share=0.25, validation_share=0.1)
  together = {p for p in both.test.person_ids if p.startswith('PETA/')}
  assert set(alone.test.person_ids) == together


def test_semantic_ids_are_one_numbering(both):
  split = both.train
  assert len(set(split.keys)) == len(split.keys) == len(set(split.semantic_ids))
  for i in range(0, len(split), 97):
    np.testing.assert_array_equal(split.keys[split.semantic_ids[i]], split.attributes[i])


def test_what_cannot_be_mixed_is_refused(small_peta):
  with pytest.raises(ValueError, match=r"names \['cuhk'\]; give a folder .* peta, market1501"):
    mixture.load({'cuhk': 'x'})
  with pytest.raises(ValueError, match='names no data set'):
    mixture.load({})
  with pytest.raises(ValueError, match='leave nobody to train on'):
    mixture.load({'peta': str(small_peta)}, test_share=0.6, validation_share=0.4)
  with pytest.raises(ValueError, match='Nothing is left'):
    mixture.concatenated([])


@pytest.mark.slow
def test_the_photographs_themselves(shared_photographs):
  """Folders as they are; counts only."""
  benchmark = mixture.load(
    {
      'peta': str(shared_photographs / 'peta'),
      'market1501': str(shared_photographs / 'market1501_half'),
    }
  )
  assert (
    benchmark.schema.column_names
    == shared_attributes.schema(['peta', 'market1501'], least=1).column_names
  )
  parts = (benchmark.train, benchmark.validation, benchmark.test)
  assert sum(map(len, parts)) == 19000 + 12936
  people = [len(set(part.person_ids)) for part in parts]
  assert sum(people) == 8699 + 751
  assert tuple(map(len, parts)) == (27134, 998, 3804) and 0.10 < people[2] / sum(people) < 0.15
