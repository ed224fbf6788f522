from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tfreid.data import person_crops
from tfreid.data.pipeline import Pipeline


def write(folder, names):
  for number, name in enumerate(names):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 16), (number, 0, 0)).save(path)


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
  """CUHK01, Market-1501 and a folder for each person, all with a person '0001'."""
  root = tmp_path_factory.mktemp('crops')
  write(root / 'cuhk01', [f'{person:04}{n:03}.png' for person in (1, 2) for n in (1, 2, 3, 4)])
  (root / 'cuhk01' / 'Thumbs.db').write_bytes(b'x')
  write(
    root / 'market' / 'bounding_box_train',
    [f'{person}_c{camera}s1_000001_00.jpg' for person in ('0001', '0007') for camera in (1, 2, 3)]
    + ['-1_c1s1_000002_00.jpg', '0000_c1s1_000003_00.jpg', '0009_c1s1_000004_00.jpg'],
  )
  write(root / 'market' / 'query', ['0044_c1s1_000001_00.jpg', '0044_c2s1_000001_00.jpg'])
  write(root / 'pku' / 'train', [f'0001/0{c}_{n}.png' for c in (1, 2) for n in (1, 2)])
  write(root / 'pku' / 'train', ['anna/a.JPG', 'anna/b.jpeg', 'anna/._b.jpeg', '.hidden/a.png'])
  return root


def test_people_of_several_data_sets_are_kept_apart(roots):
  crops = person_crops.load([roots / 'cuhk01', roots / 'market', roots / 'pku' / 'train'])
  split = crops.split
  assert crops.name == 'cuhk01+market+pku'
  assert [len(split), len(split.keys)] == [8 + 6 + 6, 2 + 2 + 2]
  assert sorted(np.bincount(split.semantic_ids)) == [2, 3, 3, 4, 4, 4]
  # The same id in three data sets: three people.
  first = split.semantic_ids[split.person_ids == '0001']
  assert len(set(first)) == 3
  # One person has one data set and one id.
  for person in range(6):
    rows = split.semantic_ids == person
    assert len(set(split.person_ids[rows])) == 1
    assert len({path.split('crops')[1].split('/')[1] for path in split.paths[rows]}) == 1


def test_what_is_no_crop_of_a_known_person_is_counted(roots):
  crops = person_crops.load([roots / 'cuhk01', roots / 'market', roots / 'pku' / 'train'])
  assert crops.split.dropped == {
    'not a crop': 2,  # the resource fork and the hidden folder
    'not a crop (.db)': 1,
    'false detection': 1,
    'distractor': 1,
    'of people with fewer than 2 crops': 1,
  }


def test_markets_test_folders_are_not_trained_on(roots):
  assert '0044' not in person_crops.load([roots / 'market']).split.person_ids


def test_spec_has_the_people_for_classes_and_no_attributes(roots):
  spec = person_crops.load(roots / 'cuhk01').spec((16, 8, 3))
  assert (spec.num_semantic_ids, spec.num_images, spec.num_attributes) == (2, 8, 0)


def test_batches_of_the_sampler_come_out_of_the_pipeline(roots):
  crops = person_crops.load([roots / 'cuhk01', roots / 'market', roots / 'pku' / 'train'])
  pipeline = Pipeline((16, 8), 8, crop=0.5)
  epoch = [
    list(pipeline.training(crops.split, seed=0, epoch=2, sampler=crops.sampler)) for _ in range(2)
  ]
  assert len(epoch[0]) >= 3
  for first, again in zip(*epoch):
    assert sorted(np.unique(first['semantic_id'], return_counts=True)[1]) == [4, 4]
    assert first['attributes'].shape == (8, 0)
    np.testing.assert_array_equal(first['image'], again['image'])
  # Two workers read the halves of what one reads.
  halves = [
    next(iter(pipeline.training(crops.split, seed=0, epoch=2, sampler=crops.sampler, shard=(i, 2))))
    for i in range(2)
  ]
  both = np.concatenate([half['semantic_id'] for half in halves])
  np.testing.assert_array_equal(both, epoch[0][0]['semantic_id'])


def test_what_does_not_go_is_refused_with_advice(roots, tmp_path):
  with pytest.raises(FileNotFoundError, match='Set PERSON_CROPS to folders'):
    person_crops.load([tmp_path / 'nowhere'])
  with pytest.raises(ValueError, match='Set PERSON_CROPS to a list'):
    person_crops.load([])
  with pytest.raises(ValueError, match='none of the known layouts .found: nothing'):
    person_crops.load([tmp_path])
  with pytest.raises(ValueError, match='2 layouts for 1 folders'):
    person_crops.load([roots / 'cuhk01'], layouts=['cuhk01', 'market1501'])
  with pytest.raises(ValueError, match="one of cuhk01, market1501, person_folders, not 'viper'"):
    person_crops.load([roots / 'cuhk01'], layouts=['viper'])
  with pytest.raises(ValueError, match='0 people with at least 5 crops'):
    person_crops.load([roots / 'cuhk01'], least_crops=5)
