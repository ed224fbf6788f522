from __future__ import annotations

import collections
import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from tfreid.data import peta
from tfreid.data.attributes import AttributeTable

# Of the split by person with seed 0; train: images and semantic IDs.
PEOPLE_IMAGES = {'validation': 1332, 'test': 3785}
PEOPLE_TRAIN = (9667, 1478)


@pytest.fixture(scope='session')
def by_hand(shared_data):
  """The file read by hand: attribute names and the [19000, 105] values."""
  content = scipy.io.loadmat(shared_data / peta.ANNOTATION_FILE)['peta']
  names = [str(cell[0][0]) for cell in content['attribute'][0, 0]]
  return names, content['data'][0, 0][:, 4:]


@pytest.fixture(scope='session')
def peta_folder(shared_data, tmp_path_factory, write_crops):
  """All 19,000 images, tiny, and the annotation file."""
  root = tmp_path_factory.mktemp('peta')
  write_crops(root / 'images', [f'{number:05d}.png' for number in range(1, 19001)])
  (root / peta.ANNOTATION_FILE).write_bytes((shared_data / peta.ANNOTATION_FILE).read_bytes())
  return root


@pytest.fixture
def small(tmp_path, write_crops):
  """A folder with ten images; returns (root, save), `save(data, names)` writes the .mat."""
  write_crops(tmp_path, [f'{number:05d}.png' for number in range(1, 11)])

  def save(data=None, names=None):
    names = list(peta.SCHEMA.raw_values) if names is None else names
    if data is None:
      data = np.zeros((10, 4 + len(names)), np.uint16)
      data[:, 0] = np.arange(1, 11)
    cells = np.empty((len(names), 1), object)
    cells[:, 0] = names
    content = {'peta': {'data': data, 'attribute': cells}}
    scipy.io.savemat(tmp_path / peta.ANNOTATION_FILE, content)

  save()
  return tmp_path, save


def numbers(split):
  return [int(Path(path).stem) for path in split.paths]


def test_there_are_7769_semantic_ids_of_which_2090_have_several_images(shared_data, by_hand):
  frame = AttributeTable(peta.SCHEMA, peta.read_peta_mat(shared_data / 'PETA.mat')).frame
  groups = peta.semantic_id_order(frame)
  counts = collections.Counter(row.tobytes() for row in by_hand[1])
  assert len(groups) == len(counts) == 7769
  several = [rows for rows in groups if len(rows) > 1]
  assert len(several) == 2090
  assert sum(map(len, several)) == 13321
  firsts = [rows[0] for rows in groups]
  assert firsts == sorted(firsts)
  assert len(AttributeTable(peta.SCHEMA, frame).semantic_ids()[1]) == 7769


def test_vectors_agree_with_the_file_read_by_hand(shared_data, by_hand):
  names, values = by_hand
  frame = peta.read_peta_mat(shared_data / peta.ANNOTATION_FILE)
  vectors = AttributeTable(peta.SCHEMA, frame).vectors()
  assert list(frame.index[[0, -1]]) == ['00001', '19000']
  position = {
    raw: i
    for i, raw in enumerate(
      raw for attribute in peta.SCHEMA.attributes for raw, _ in attribute.columns
    )
  }
  np.testing.assert_array_equal(vectors[:, [position[name] for name in names]], values)
  block = peta.SCHEMA.block('hair_color')
  gray = peta.SCHEMA.attribute('hair_color').values.index('gray')
  np.testing.assert_array_equal(vectors[:, block.start + gray], values[:, names.index('hairGrey')])


@pytest.mark.parametrize(
  ('attribute', 'several', 'none'),
  [('age', 4, 28), ('gender', 0, 1), ('hair', 6, 433), ('sleeves', 2, 89)],
)
def test_choices_hardly_ever_contradict_each_other(shared_data, attribute, several, none):
  frame = peta.read_peta_mat(shared_data / peta.ANNOTATION_FILE)
  block = peta.SCHEMA.encode(frame)[:, peta.SCHEMA.block(attribute)].sum(axis=1)
  assert ((block > 1).sum(), (block == 0).sum()) == (several, none)


def test_the_sal_split_has_sals_counts(peta_folder):
  benchmark = peta.load(peta_folder, split='sal')
  assert (len(benchmark.train.keys), len(benchmark.train)) == (1890, 11886)
  assert (len(benchmark.test.keys), len(benchmark.test)) == (200, 1435)
  assert benchmark.validation is None
  assert peta.count_train_images(peta_folder, split='sal') == 11886
  assert not benchmark.seen().any()
  assert benchmark.train.dropped == {'semantic ID with a single image': 5679}
  with pytest.raises(ValueError, match='validation split of its own'):
    peta.load(peta_folder, split='paper', validation_share=0.1)


def test_the_sal_split_is_numpys_legacy_choice(by_hand):
  """SAL draws the training IDs with `choice` from the global state, seeded with 1."""
  state = np.random.RandomState(1)
  chosen = state.choice(2090, 2090 - 200, replace=False)
  drawn = peta.draw_split(2090, 'sal', seed=0)
  assert set(drawn['train']) == set(chosen)
  assert set(drawn['test']) == set(range(2090)) - set(chosen)


def test_the_paper_split_has_the_papers_counts(peta_folder):
  benchmark = peta.load(peta_folder)
  splits = {
    'train': benchmark.train,
    'validation': benchmark.validation,
    'test': benchmark.test,
  }
  assert {part: len(split.keys) for part, split in splits.items()} == {
    'train': 1500,
    'validation': 390,
    'test': 200,
  }
  assert sum(map(len, splits.values())) == 13321
  assert peta.count_train_images(peta_folder) == len(benchmark.train)
  keys = [key for split in splits.values() for key in split.keys]
  assert len(set(keys)) == 2090
  assert not benchmark.seen().any()
  assert not benchmark.seen(benchmark.validation).any()
  assert min(np.bincount(benchmark.test.semantic_ids)) >= 2
  assert not benchmark.test.cameras.any()


def test_images_carry_their_person_and_their_subset(peta_folder, shared_data):
  """Columns 2 and 3 of the file, read by hand."""
  data = scipy.io.loadmat(shared_data / peta.ANNOTATION_FILE)['peta']['data'][0, 0]
  people = {int(row[0]): (f'{row[1]:05d}', peta.SUBSETS[row[2] - 1]) for row in data}
  assert len({person for person, _ in people.values()}) == 8699
  counts = collections.Counter(subset for _, subset in people.values())
  assert (counts['CUHK'], counts['i-LID'], counts['VIPeR']) == (4563, 477, 1264)
  benchmark = peta.load(peta_folder, split='sal')
  for split in (benchmark.train, benchmark.test, benchmark.test.subset(np.arange(5, 50))):
    found = list(zip(split.person_ids, split.subsets))
    assert found == [people[number] for number in numbers(split)]
  assert set(benchmark.train.person_ids).isdisjoint(benchmark.test.person_ids)


def test_the_people_split_divides_people_by_their_own_number(peta_folder):
  benchmark = peta.load(peta_folder, split='people')
  parts = (benchmark.train, benchmark.validation, benchmark.test)
  people = [set(part.person_ids) for part in parts]
  assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
  # All images of the people for test, and of the others what is seen twice.
  assert [len(part) for part in parts[1:]] == [PEOPLE_IMAGES['validation'], PEOPLE_IMAGES['test']]
  assert (len(benchmark.train), len(benchmark.train.keys)) == PEOPLE_TRAIN
  assert min(np.bincount(benchmark.train.semantic_ids)) == 2
  assert sum(map(len, parts)) + benchmark.train.dropped['semantic ID with a single image'] == 19000
  assert 0 < benchmark.seen().sum() < len(benchmark.test.keys)


def test_the_people_split_belongs_to_the_person_and_the_seed(shared_data):
  people = peta.read_peta_people(shared_data / peta.ANNOTATION_FILE)
  whole = peta.divide(people, 'people', seed=0)
  assert (whole['train'] + 0 + whole['validation'] + whole['test'] == 1).all()
  half = peta.divide(people.iloc[::2], 'people', seed=0)
  np.testing.assert_array_equal(half['test'], whole['test'][::2])
  other = peta.divide(people, 'people', seed=1)
  assert 0.2 < (other['test'] != whole['test']).mean() < 0.5


@pytest.mark.parametrize(
  ('subset', 'images', 'people'), [('VIPeR', 1264, 632), ('CUHK', 4563, 4563), ('SARC3D', 200, 50)]
)
def test_a_subset_is_left_out_whole(peta_folder, subset, images, people):
  benchmark = peta.load(peta_folder, split=f'without:{subset.lower()}')
  assert benchmark.name == f'PETA, without {subset}'
  assert set(benchmark.test.subsets) == {subset}
  assert set(benchmark.train.subsets) == set(peta.SUBSETS) - {subset}
  assert (len(benchmark.test), len(set(benchmark.test.person_ids))) == (images, people)
  assert benchmark.validation is None
  lost = benchmark.train.dropped['semantic ID with a single image']
  assert len(benchmark.train) + lost == 19000 - images
  assert peta.count_train_images(peta_folder, split=f'without:{subset}') == len(benchmark.train)


def test_the_training_images_of_a_split_by_person_are_counted_as_they_are_loaded(peta_folder):
  for least in (1, 2):
    benchmark = peta.load(peta_folder, split='people', seed=3, least_images=least)
    counted = peta.count_train_images(peta_folder, split='people', seed=3, least_images=least)
    assert counted == len(benchmark.train)


def test_a_split_that_there_is_not_is_not_counted(tmp_path):
  with pytest.raises(ValueError, match="'without:' and one of 3DPeS, .*VIPeR"):
    peta.count_train_images(tmp_path, split='without:Viper City')


def test_rare_semantic_ids_can_be_kept_in_training(peta_folder):
  benchmark = peta.load(peta_folder, split='without:GRID', least_images=1, validation_share=0.1)
  assert benchmark.validation is not None
  assert len(benchmark.train) + len(benchmark.validation) == 19000 - 1275
  assert not benchmark.train.dropped


def test_all_images_can_be_had_in_one_split(peta_folder):
  split = peta.load_all(peta_folder, encoding='three_state')
  assert (len(split), len(split.keys), len(set(split.person_ids))) == (19000, 7769, 8699)
  assert set(np.unique(split.attributes)) == {-1.0, 1.0}


@pytest.fixture(scope='session')
def as_published(shared_photographs):
  """(number, subset, file, path here) of each image, from the list of the authors' file names."""
  folder = shared_photographs / 'peta'
  here = {path.stem: path for path in (folder / 'images').iterdir()}
  with open(folder / 'index.csv', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  return [(row['number'], row['subset'], row['file'], here[row['number']]) for row in rows]


def archive(root, rows):
  """Folders as the authors give them, of links to the images."""
  for subset in {row[1] for row in rows}:
    (root / subset / 'archive').mkdir(parents=True)
    (root / subset / 'archive' / 'Label.txt').touch()
  for _, subset, name, path in rows:
    os.symlink(path, root / subset / 'archive' / name)


def test_peta_is_read_as_its_authors_give_it(as_published, shared_data, tmp_path):
  """Of four subsets, whose names sort differently by letters and by numbers; a file is missing."""
  wanted = ('3DPeS', 'i-LID', 'SARC3D', 'VIPeR')
  rows = [row for row in as_published if row[1] in wanted]
  archive(tmp_path / 'PETA dataset', rows[1:])
  shutil.copy(shared_data / peta.ANNOTATION_FILE, tmp_path)
  people = peta.read_peta_people(tmp_path / peta.ANNOTATION_FILE)
  records, dropped = peta.scan_archive(tmp_path / 'PETA dataset', people)
  # The missing file moves nobody else's.
  gone = [row for row in rows if row[1] == '3DPeS' and row[2].startswith('100_')]
  found = [(record.person_id, os.path.realpath(record.path)) for record in records]
  assert found == [(row[0], os.path.realpath(row[3])) for row in rows if row not in gone]
  assert dropped == {
    'not a crop (.txt)': 4,
    'of a person with more or fewer files than annotations': len(gone) - 1,
  }
  loaded = peta.load(tmp_path, split='sal')
  assert set(loaded.train.subsets) == set(wanted)
  with pytest.raises(ValueError, match='no crops in <subset>/archive'):
    peta.scan_archive(tmp_path, people)


def test_the_paper_split_is_drawn_by_the_seed():
  draws = [peta.draw_split(2090, 'paper', seed=seed) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(draws[0]['test'], draws[1]['test'])
  assert set(draws[0]['test']) != set(draws[2]['test'])
  for draw in draws:
    assert sorted(np.concatenate(list(draw.values()))) == list(range(2090))


def test_the_split_is_the_same_when_images_are_missing(
  shared_data, peta_folder, tmp_path, write_crops
):
  whole = peta.load(peta_folder, split='sal')
  write_crops(tmp_path, [f'{number:05d}.png' for number in range(20, 19001, 20)])
  part = peta.load(tmp_path, annotations=shared_data / peta.ANNOTATION_FILE, split='sal')
  for few, many in ((part.test, whole.test), (part.train, whole.train)):
    assert numbers(few) == [number for number in numbers(many) if number % 20 == 0]
  assert len(part.test.keys) == len(set(part.test.semantic_ids)) < 200


def test_an_unknown_split_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="no split 'random'; choose from paper, sal"):
    peta.load(tmp_path, split='random')
  with pytest.raises(ValueError, match="'without:' and one of 3DPeS, .*VIPeR"):
    peta.load(tmp_path, split='without:Viper City')


def test_a_missing_root_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='Set DATA_ROOT'):
    peta.load(tmp_path / 'nowhere')


def test_a_folder_without_images_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='PETA: .*holds no crops'):
    peta.load(tmp_path)


def test_missing_annotations_are_an_error(small):
  (small[0] / peta.ANNOTATION_FILE).unlink()
  with pytest.raises(FileNotFoundError, match='PETA.mat'):
    peta.load(small[0])


def test_annotations_of_too_few_semantic_ids_are_an_error(small):
  with pytest.raises(ValueError, match='needs at least 201 .* have 1. Use the full'):
    peta.load(small[0], split='sal')
  with pytest.raises(ValueError, match='needs at least 1701'):
    peta.load(small[0])


def test_columns_that_do_not_fit_the_names_are_an_error(small):
  root, save = small
  save(data=np.zeros((10, 5)))
  with pytest.raises(ValueError, match="'data' has 5 columns, but 105 attributes are named"):
    peta.load(root)


def test_an_unknown_attribute_is_an_error(small):
  root, save = small
  names = list(peta.SCHEMA.raw_values)
  save(names=['upperBodyTartan', *names[1:]])
  with pytest.raises(ValueError, match='not known: .*upperBodyTartan'):
    peta.load(root)


def test_a_value_outside_the_schema_is_an_error_that_names_the_image(small):
  root, save = small
  data = np.zeros((10, 109))
  data[:, 0] = np.arange(1, 11)
  data[6, 4] = 2
  save(data=data)
  with pytest.raises(ValueError, match="of person '00007' is 2; legal values are 0, 1"):
    peta.load(root)
  data[6, 4] = 0.5
  save(data=data)
  with pytest.raises(ValueError, match="'data' must hold whole numbers"):
    peta.load(root)


def test_a_file_without_the_data_is_an_error(small):
  root, _ = small
  scipy.io.savemat(root / peta.ANNOTATION_FILE, {'peta': {'data': np.zeros((3, 3))}})
  with pytest.raises(ValueError, match=r"lacks 'data' or 'attribute' \(found: data\)"):
    peta.load(root)
