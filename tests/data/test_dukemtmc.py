from __future__ import annotations

import numpy as np
import pytest
import scipy.io

from tfreid.data import dukemtmc, reid_folder
from tfreid.data.attributes import AttributeTable


def frames_of(shared_data):
  return reid_folder.read_attribute_mat(shared_data / dukemtmc.ANNOTATION_FILE, dukemtmc.VARIABLE)


def raw_struct(shared_data, half):
  """One half of the file read by hand: person id to {column: value}."""
  content = scipy.io.loadmat(shared_data / dukemtmc.ANNOTATION_FILE)
  struct = content['duke_attribute'][half][0, 0]
  people = [cell[0] for cell in struct['image_index'][0, 0][0]]
  columns = [name for name in struct.dtype.names if name != 'image_index']
  values = {name: struct[name][0, 0][0] for name in columns}
  return {person: {c: int(values[c][i]) for c in columns} for i, person in enumerate(people)}


@pytest.fixture(scope='session')
def duke_folder(shared_data, tmp_path_factory, write_crops):
  """DukeMTMC-reID's layout: a crop per person, a query for the first 702 test people."""
  root = tmp_path_factory.mktemp('duke')
  people = {half: list(raw_struct(shared_data, half)) for half in ('train', 'test')}
  for folder, chosen in (
    ('bounding_box_train', people['train']),
    ('bounding_box_test', people['test']),
    ('query', people['test'][:702]),
  ):
    write_crops(
      root / folder,
      [f'{p}_c{1 + i % 8}_f{46182 + i + len(folder):07d}.jpg' for i, p in enumerate(chosen)],
    )
  annotations = (shared_data / dukemtmc.ANNOTATION_FILE).read_bytes()
  (root / dukemtmc.ANNOTATION_FILE).write_bytes(annotations)
  return root


def test_semantic_ids_are_the_papers_300_and_387(shared_data):
  keys = {}
  for half, frame in frames_of(shared_data).items():
    keys[half] = AttributeTable(dukemtmc.SCHEMA, frame).semantic_ids()[1]
    by_hand = raw_struct(shared_data, half).values()
    assert len({tuple(sorted(values.items())) for values in by_hand}) == len(keys[half])
  assert (len(keys['train']), len(keys['test'])) == (300, 387)
  assert len(set(keys['train']) & set(keys['test'])) == 158


def test_the_two_missing_values_of_top_are_kept_or_repaired(duke_folder):
  kept = dukemtmc.load(duke_folder)
  repaired = dukemtmc.load(duke_folder, repair=True)
  assert (len(kept.train.keys), len(kept.test.keys)) == (300, 387)
  assert (len(repaired.train.keys), len(repaired.test.keys)) == (299, 387)
  np.testing.assert_array_equal(kept.train.attributes, repaired.train.attributes)
  top = list(dukemtmc.SCHEMA.raw_values).index('top')
  zero = [i for i, key in enumerate(kept.train.keys) if key[top] == 0]
  people = set(kept.train.person_ids[np.isin(kept.train.semantic_ids, zero)])
  assert people == {'0370', '0679'}
  block = dukemtmc.SCHEMA.block('upper_length')
  assert not kept.train.attributes[np.isin(kept.train.person_ids, list(people)), block].any()
  assert all(key[top] != 0 for key in repaired.train.keys)


def test_the_gallery_is_every_test_and_query_crop(duke_folder):
  benchmark = dukemtmc.load(duke_folder)
  assert len(benchmark.train) == 702
  assert len(benchmark.test) == 1110 + 702
  assert benchmark.test.dropped == {}
  assert benchmark.seen().sum() == 158
  for path, person, camera in zip(
    benchmark.test.paths, benchmark.test.person_ids, benchmark.test.cameras
  ):
    assert path.split('/')[-1].startswith(f'{person}_c{camera}_f')


def test_vectors_agree_with_the_file_read_by_hand(shared_data):
  names = dukemtmc.SCHEMA.column_names
  for half, frame in frames_of(shared_data).items():
    vectors = AttributeTable(dukemtmc.SCHEMA, frame).vectors()
    by_hand = raw_struct(shared_data, half)
    for person, vector in zip(frame.index, vectors):
      raw = by_hand[person]
      on = {name for name, bit in zip(names, vector) if bit}
      expected = {name for name in ('backpack', 'bag', 'handbag', 'boots') if raw[name] == 2}
      expected |= {'gender'} if raw['gender'] == 2 else set()  # female
      expected |= {'hat'} if raw['hat'] == 2 else set()
      expected |= {'shoes'} if raw['shoes'] == 2 else set()  # light
      expected |= {'upper_length'} if raw['top'] == 2 else set()  # long
      for prefix, attribute in (('up', 'upper_color'), ('down', 'lower_color')):
        for column, value in raw.items():
          if column.startswith(prefix) and value == 2:
            expected.add(f'{attribute}={column[len(prefix) :]}')
      assert on == expected, person


def test_test_people_with_several_lower_colors_have_several_bits(shared_data):
  frame = frames_of(shared_data)['test']
  block = AttributeTable(dukemtmc.SCHEMA, frame).vectors()[:, dukemtmc.SCHEMA.block('lower_color')]
  counts = np.bincount(block.sum(axis=1).astype(int))
  assert (counts[0], counts[2], counts[3]) == (11, 22, 1)


def test_names_of_crops():
  match = dukemtmc.PATTERN.fullmatch('0001_c2_f0046182.jpg')
  assert (match['person'], match['camera']) == ('0001', '2')
  assert dukemtmc.PATTERN.fullmatch('0002_c1s1_000451_03.jpg') is None


def test_a_folder_of_another_data_set_is_an_error(tmp_path, write_crops):
  for folder in ('bounding_box_train', 'bounding_box_test', 'query'):
    write_crops(tmp_path / folder, ['0002_c1s1_000451_03.jpg'])
  with pytest.raises(FileNotFoundError, match='duke_attribute.mat'):
    dukemtmc.load(tmp_path)


def test_crops_with_the_names_of_another_data_set_are_an_error(
  tmp_path, write_crops, write_attribute_mat, no_frames
):
  for folder in ('bounding_box_train', 'bounding_box_test', 'query'):
    write_crops(tmp_path / folder, ['0002_c1s1_000451_03.jpg'])
  frames = {half: no_frames(dukemtmc.SCHEMA, ['0002']) for half in ('train', 'test')}
  write_attribute_mat(tmp_path / dukemtmc.ANNOTATION_FILE, dukemtmc.VARIABLE, frames)
  with pytest.raises(ValueError, match='DukeMTMC-reID: .*holds no crops .*0002_c1s1_000451_03.jpg'):
    dukemtmc.load(tmp_path)


def test_a_missing_folder_names_the_data_set(tmp_path):
  with pytest.raises(FileNotFoundError, match="DukeMTMC-reID has no 'bounding_box_train'"):
    dukemtmc.load(tmp_path)
