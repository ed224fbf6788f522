from __future__ import annotations

import logging

import numpy as np
import pytest
import scipy.io

from tfreid.data import market1501, reid_folder
from tfreid.data.attributes import AttributeTable


def frames_of(shared_data):
  return reid_folder.read_attribute_mat(
    shared_data / market1501.ANNOTATION_FILE, market1501.VARIABLE
  )


def raw_struct(shared_data, half):
  """One half of the file read by hand: person id to {column: value}."""
  content = scipy.io.loadmat(shared_data / market1501.ANNOTATION_FILE)
  struct = content['market_attribute'][half][0, 0]
  people = [cell[0] for cell in struct['image_index'][0, 0][0]]
  columns = [name for name in struct.dtype.names if name != 'image_index']
  values = {name: struct[name][0, 0][0] for name in columns}
  return {person: {c: int(values[c][i]) for c in columns} for i, person in enumerate(people)}


@pytest.fixture(scope='session')
def market_folder(shared_data, tmp_path_factory, write_crops):
  """Market-1501's layout with a crop for each annotated person, twice for test people."""
  root = tmp_path_factory.mktemp('market')
  people = {half: list(raw_struct(shared_data, half)) for half in ('train', 'test')}
  write_crops(
    root / 'bounding_box_train',
    [f'{person}_c{1 + i % 6}s1_{i:06d}_01.jpg' for i, person in enumerate(people['train'])],
  )
  write_crops(
    root / 'bounding_box_test',
    [f'{person}_c{1 + i % 6}s2_{i:06d}_02.jpg' for i, person in enumerate(people['test'])],
  )
  write_crops(
    root / 'query',
    [f'{person}_c{1 + i % 6}s3_{i:06d}_00.jpg' for i, person in enumerate(people['test'])],
  )
  junk = [f'-1_c{camera}s1_000401_03.jpg' for camera in (1, 2, 3)]
  distractors = ['0000_c1s1_000151_01.jpg', '0000_c5s2_000201_04.jpg']
  write_crops(root / 'bounding_box_test', junk + distractors)
  for folder in ('bounding_box_train', 'bounding_box_test', 'query'):
    (root / folder / 'Thumbs.db').write_bytes(b'windows')
  annotations = (shared_data / market1501.ANNOTATION_FILE).read_bytes()
  (root / market1501.ANNOTATION_FILE).write_bytes(annotations)
  return root


@pytest.fixture
def small(tmp_path, write_crops, write_attribute_mat, no_frames):
  """A complete folder of three people; returns (root, frames, save)."""
  write_crops(tmp_path / 'bounding_box_train', ['0002_c1s1_000451_03.jpg'])
  write_crops(tmp_path / 'bounding_box_test', ['0001_c2s1_000301_00.jpg'])
  write_crops(tmp_path / 'query', ['0001_c3s1_000301_00.jpg'])
  frames = {
    'train': no_frames(market1501.SCHEMA, ['0002', '0007']),
    'test': no_frames(market1501.SCHEMA, ['0001']),
  }

  def save():
    path = tmp_path / market1501.ANNOTATION_FILE
    write_attribute_mat(path, market1501.VARIABLE, frames)
    return path

  save()
  return tmp_path, frames, save


def test_semantic_ids_are_the_papers_508_and_484(shared_data):
  keys = {}
  for half, frame in frames_of(shared_data).items():
    ids, keys[half] = AttributeTable(market1501.SCHEMA, frame).semantic_ids()
    by_hand = raw_struct(shared_data, half)
    assert len(frame) == len(by_hand)
    combinations = {tuple(sorted(values.items())) for values in by_hand.values()}
    assert len(combinations) == len(keys[half]) == len(set(ids))
  assert (len(keys['train']), len(keys['test'])) == (508, 484)
  assert len(set(keys['train']) & set(keys['test'])) == 169


def test_vectors_agree_with_the_file_read_by_hand(shared_data):
  names = market1501.SCHEMA.column_names
  for half, frame in frames_of(shared_data).items():
    vectors = AttributeTable(market1501.SCHEMA, frame).vectors()
    by_hand = raw_struct(shared_data, half)
    for person, vector in zip(frame.index, vectors):
      raw = by_hand[person]
      on = {name for name, bit in zip(names, vector) if bit}
      expected = {f'age={["child", "teenager", "adult", "old"][raw["age"] - 1]}'}
      expected |= {name for name in ('hat', 'backpack', 'bag', 'handbag') if raw[name] == 2}
      expected |= {'gender'} if raw['gender'] == 2 else set()  # female
      expected |= {'hair'} if raw['hair'] == 2 else set()  # long
      expected |= {'sleeves'} if raw['up'] == 2 else set()  # short
      expected |= {'lower_length'} if raw['down'] == 2 else set()  # short
      expected |= {'lower_type'} if raw['clothes'] == 2 else set()  # pants
      for prefix, attribute in (('up', 'upper_color'), ('down', 'lower_color')):
        for column, value in raw.items():
          if column.startswith(prefix) and column != prefix and value == 2:
            expected.add(f'{attribute}={column[len(prefix) :]}')
      assert on == expected, person


def test_the_gallery_is_test_and_query_without_junk_and_distractors(market_folder, caplog):
  with caplog.at_level(logging.INFO):
    benchmark = market1501.load(market_folder)
  assert len(benchmark.train) == 751
  assert len(benchmark.test) == 750 + 750
  assert (len(benchmark.train.keys), len(benchmark.test.keys)) == (508, 484)
  assert benchmark.seen().sum() == 169
  assert benchmark.train.dropped == {'not a crop (.db)': 1}
  assert benchmark.test.dropped == {
    'not a crop (.db)': 2,
    "junk '-1'": 3,
    "distractor '0000'": 2,
  }
  assert "3 images left out (junk '-1')" in caplog.text
  assert "2 images left out (distractor '0000')" in caplog.text
  assert {'-1', '0000'}.isdisjoint(benchmark.test.person_ids)
  folders = {path.split('/')[-2] for path in benchmark.test.paths}
  assert folders == {'bounding_box_test', 'query'}
  assert benchmark.validation is None


def test_person_and_camera_come_from_the_file_name(market_folder):
  train = market1501.load(market_folder).train
  for path, person, camera in zip(train.paths, train.person_ids, train.cameras):
    name = path.split('/')[-1]
    assert name.startswith(f'{person}_c{camera}s')


def test_a_crop_carries_the_vector_of_its_person(market_folder, shared_data):
  test = market1501.load(market_folder).test
  frame = frames_of(shared_data)['test']
  vectors = dict(zip(frame.index, market1501.SCHEMA.encode(frame)))
  for person, vector in zip(test.person_ids, test.attributes):
    np.testing.assert_array_equal(vector, vectors[person])


def test_a_validation_share_leaves_the_training_images(market_folder):
  benchmark = market1501.load(market_folder, validation_share=0.1)
  assert len(benchmark.validation.keys) == 51
  assert len(benchmark.train.keys) == 508 - 51
  assert len(benchmark.validation) + len(benchmark.train) == 751


def test_three_state_encoding(market_folder):
  benchmark = market1501.load(market_folder, encoding='three_state')
  assert set(np.unique(benchmark.test.attributes)) == {-1.0, 1.0}
  assert benchmark.schema.encoding == 'three_state'


def test_annotations_may_stand_elsewhere(small, tmp_path_factory):
  root, _, _ = small
  elsewhere = tmp_path_factory.mktemp('elsewhere') / 'attributes.mat'
  (root / market1501.ANNOTATION_FILE).rename(elsewhere)
  assert len(market1501.load(root, annotations=elsewhere).train) == 1


def test_a_crop_in_test_and_query_is_in_the_gallery_once(small, write_crops):
  root, _, _ = small
  write_crops(root / 'query', ['0001_c2s1_000301_00.jpg'])
  test = market1501.load(root).test
  assert len(test) == 2
  assert test.dropped == {'query crop that is in the gallery already': 1}


@pytest.mark.parametrize(
  ('name', 'person', 'camera'),
  [
    ('0002_c1s1_000451_03.jpg', '0002', '1'),
    ('1501_c6s4_012345_11.JPG', '1501', '6'),
    ('0002_c1s1_000451_03.jpg.jpg', '0002', '1'),
    ('-1_c3s2_000451_03.png', '-1', '3'),
    ('12345_c12s1_000451_03.jpg', '12345', '12'),
  ],
)
def test_names_of_crops(name, person, camera):
  match = market1501.PATTERN.fullmatch(name)
  assert (match['person'], match['camera']) == (person, camera)


@pytest.mark.parametrize(
  'name', ['Thumbs.db', '._0002_c1s1_000451_03.jpg', '0002.jpg', '0002_c1s1_000451_03.mat', '.jpg']
)
def test_names_of_other_files(name):
  assert market1501.PATTERN.fullmatch(name) is None


def test_a_missing_root_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'\. Set DATA_ROOT"):
    market1501.load(tmp_path / 'nowhere')


def test_a_missing_folder_is_an_error_that_says_what_is_there(tmp_path):
  (tmp_path / 'images').mkdir()
  with pytest.raises(FileNotFoundError) as error:
    market1501.load(tmp_path)
  assert str(error.value) == (
    f"Market-1501 has no 'bounding_box_train' under {tmp_path} (found: 'images'). "
    'Set DATA_ROOT to the folder that holds it.'
  )


def test_a_root_one_folder_too_high_is_an_error_that_names_the_right_one(tmp_path):
  right = tmp_path / 'Market-1501-v15.09.15'
  (right / 'bounding_box_train').mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match=f"'{right}' has it: set DATA_ROOT to that"):
    market1501.load(tmp_path)


def test_a_missing_query_folder_is_an_error(small):
  root, _, _ = small
  (root / 'query' / '0001_c3s1_000301_00.jpg').unlink()
  (root / 'query').rmdir()
  with pytest.raises(FileNotFoundError, match="has no 'query'"):
    market1501.load(root)


def test_an_empty_folder_is_an_error(small):
  root, _, _ = small
  crop = root / 'bounding_box_train' / '0002_c1s1_000451_03.jpg'
  crop.unlink()
  with pytest.raises(ValueError, match=r'bounding_box_train.* holds no crops \(found: nothing\)'):
    market1501.load(root)
  (root / 'bounding_box_train' / 'readme.txt').write_text('x')
  with pytest.raises(ValueError, match=r"found: 1 other files, 'readme.txt' first"):
    market1501.load(root)


def test_missing_annotations_are_an_error(small):
  root, _, _ = small
  (root / market1501.ANNOTATION_FILE).unlink()
  with pytest.raises(FileNotFoundError, match=r"no annotation file '.*market_attribute.mat'"):
    market1501.load(root)


@pytest.mark.parametrize('content', [b'', b'not MATLAB', b'MATLAB 5.0 MAT-file' + b'\0' * 300])
def test_an_unreadable_annotation_file_is_an_error(small, content):
  root, _, _ = small
  (root / market1501.ANNOTATION_FILE).write_bytes(content)
  with pytest.raises(ValueError, match=r"market_attribute.mat'"):
    market1501.load(root)


def test_a_truncated_annotation_file_is_an_error(small):
  root, _, save = small
  path = save()
  whole = path.read_bytes()
  for size in range(130, len(whole), 197):
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"market_attribute.mat'"):
      market1501.load(root)


def test_a_damaged_annotation_file_is_an_error(small):
  """Published files are compressed, so that a flipped bit breaks a checksum."""
  root, _, save = small
  path = save()
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  for position in rng.integers(140, len(whole), 40):
    damaged = bytearray(whole)
    damaged[position] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match='not a readable MATLAB file'):
      market1501.load(root)


def test_a_matlab_73_file_is_an_error_that_says_how_to_save_it(small):
  root, _, _ = small
  header = b'MATLAB 7.3 MAT-file'.ljust(124) + b'\x00\x02IM'
  (root / market1501.ANNOTATION_FILE).write_bytes(header + b'\x89HDF' + b'\0' * 500)
  with pytest.raises(ValueError, match="MATLAB 7.3 file.*'-v7'"):
    market1501.load(root)


def test_annotations_of_another_data_set_are_an_error(small, write_attribute_mat):
  root, frames, _ = small
  write_attribute_mat(root / market1501.ANNOTATION_FILE, 'duke_attribute', frames)
  with pytest.raises(ValueError, match="no variable 'market_attribute' .found: duke_attribute"):
    market1501.load(root)


def test_annotations_without_a_half_are_an_error(small):
  root, frames, save = small
  del frames['test']
  save()
  with pytest.raises(ValueError, match="has no struct 'test' .found: train"):
    market1501.load(root)


def test_annotations_that_are_no_struct_are_an_error(small):
  root, _, _ = small
  scipy.io.savemat(root / market1501.ANNOTATION_FILE, {'market_attribute': np.arange(3)})
  with pytest.raises(ValueError, match="has no struct 'train' .found: none"):
    market1501.load(root)
  scipy.io.savemat(
    root / market1501.ANNOTATION_FILE, {'market_attribute': {'train': 1.0, 'test': 2.0}}
  )
  with pytest.raises(ValueError, match="no column 'image_index'"):
    market1501.load(root)


def test_a_missing_column_is_an_error_that_names_it(small):
  root, frames, save = small
  frames['test'] = frames['test'].drop(columns='upred')
  save()
  with pytest.raises(ValueError, match=r"\('test'\): .*Missing: \['upred'\]"):
    market1501.load(root)


def test_a_value_outside_the_schema_is_an_error_that_names_the_person(small):
  root, frames, save = small
  frames['train'].loc['0007', 'hat'] = 3
  save()
  with pytest.raises(ValueError, match="column 'hat' of person '0007' is 3; legal values are 1, 2"):
    market1501.load(root)


def test_a_fraction_is_an_error(small):
  root, frames, save = small
  frames['train']['hat'] = 1.5
  save()
  with pytest.raises(ValueError, match="column 'hat' must hold whole numbers"):
    market1501.load(root)


def test_columns_of_different_lengths_are_an_error(small):
  root, frames, _ = small
  halves = {}
  for half, frame in frames.items():
    halves[half] = {column: frame[column].to_numpy()[None] for column in frame}
    halves[half]['image_index'] = np.array([list(frame.index)], dtype=object)
  halves['train']['hat'] = np.array([[1, 2, 1]])
  scipy.io.savemat(root / market1501.ANNOTATION_FILE, {'market_attribute': halves})
  with pytest.raises(ValueError, match="column 'hat' has 3 values for 2 people"):
    market1501.load(root)


def test_images_of_other_people_are_an_error(small, write_crops):
  root, _, _ = small
  (root / 'bounding_box_train' / '0002_c1s1_000451_03.jpg').unlink()
  write_crops(root / 'bounding_box_train', ['0999_c1s1_000451_03.jpg'])
  with pytest.raises(ValueError, match='Market-1501 train is empty: 1 images were found'):
    market1501.load(root)


def test_an_unknown_encoding_is_an_error(small):
  with pytest.raises(ValueError, match="encoding 'ternary'"):
    market1501.load(small[0], encoding='ternary')
