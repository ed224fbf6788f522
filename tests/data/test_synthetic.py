from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import scipy.io

from tfreid.data import market1501, synthetic
from tfreid.data.synthetic import palette, population

ROOT = pathlib.Path(__file__).parent.parent.parent
NAME = re.compile(r'(-1|\d{4})_c[1-6]s[1-6]_\d{6}_\d{2}\.jpg')


def small(**changes) -> synthetic.SyntheticPeople:
  settings = {
    'num_train_people': 7,
    'num_test_people': 5,
    'images_per_person': (3, 4),
    'image_size': (32, 16),
    'unseen_share': 0.4,
    'num_junk': 2,
    'num_distractors': 3,
    'seed': 5,
  }
  return synthetic.SyntheticPeople(**{**settings, **changes})


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  return small().write(tmp_path_factory.mktemp('synthetic') / 'people', workers=1).directory


def files(directory: pathlib.Path) -> dict:
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }


def clean_crop(attributes, view='front', **looks):
  """A crop without any difficulty, float64 [256, 128, 3], and its identity."""
  rng = np.random.default_rng(3)
  clean = synthetic.LEVELS['clean']
  identity = synthetic.sample_identity(attributes, rng, clean)
  camera = synthetic.make_cameras(0, clean)[1]
  image = synthetic.draw_person(
    attributes, identity, camera, view, rng, image_size=(256, 128), difficulty=clean
  )
  return np.asarray(image, np.float64), identity


# -- the annotation file ------------------------------------------------------------------------


def test_annotation_has_the_form_of_the_real_file(folder, shared_data):
  real = scipy.io.loadmat(shared_data / 'market_attribute.mat')['market_attribute']
  ours = scipy.io.loadmat(folder / 'market_attribute.mat')['market_attribute']
  assert ours.shape == real.shape == (1, 1)
  assert ours.dtype == real.dtype
  for split, people in (('test', 5), ('train', 7)):
    theirs, mine = real[split][0, 0], ours[split][0, 0]
    assert mine.shape == theirs.shape
    # The same columns in the same order, which is another one in train than in test.
    assert mine.dtype.names == theirs.dtype.names
    for column in theirs.dtype.names:
      a, b = theirs[column][0, 0], mine[column][0, 0]
      assert b.dtype == a.dtype
      assert b.shape == (1, people)
      if column == 'image_index':
        assert b[0, 0].shape == a[0, 0].shape
        assert b[0, 0].dtype == a[0, 0].dtype
      else:
        assert set(b.ravel()) <= set(range(1, 5 if column == 'age' else 3))


def test_train_and_test_list_the_same_columns_in_different_orders():
  train, test = population.TRAIN_COLUMNS, population.TEST_COLUMNS
  assert len(train) == len(test) == 27
  assert sorted(train) == sorted(test)
  assert sum(a != b for a, b in zip(train, test)) == 23


def test_annotation_says_what_the_people_are(folder):
  table = scipy.io.loadmat(folder / 'market_attribute.mat')['market_attribute']['train'][0, 0]
  people = small().population.train
  assert [i[0] for i in table['image_index'][0, 0][0]] == [p.person_id for p in people]
  for i, person in enumerate(people):
    a = person.attributes
    assert table['gender'][0, 0][0, i] == {'male': 1, 'female': 2}[a.gender]
    assert table['age'][0, 0][0, i] == ['child', 'teenager', 'adult', 'old'].index(a.age) + 1
    assert table['clothes'][0, 0][0, i] == {'dress': 1, 'pants': 2}[a.lower]
    assert table['up'][0, 0][0, i] == {'long': 1, 'short': 2}[a.sleeves]
    assert table['down'][0, 0][0, i] == {'long': 1, 'short': 2}[a.lower_length]
    assert table['hair'][0, 0][0, i] == {'short': 1, 'long': 2}[a.hair]
    worn = [c for c in population.UPPER_COLORS if table['up' + c][0, 0][0, i] == 2]
    assert worn == ([] if a.upper_color is None else [a.upper_color])
    worn = [c for c in population.LOWER_COLORS if table['down' + c][0, 0][0, i] == 2]
    assert worn == ([] if a.lower_color is None else [a.lower_color])
    bags = [b for b in ('backpack', 'bag', 'handbag') if table[b][0, 0][0, i] == 2]
    assert bags == ([] if a.bag is None else [a.bag])


# -- the folder ---------------------------------------------------------------------------------


def test_file_names_are_market_1501s(folder):
  people = small().population
  for name, ids in (
    ('bounding_box_train', {p.person_id for p in people.train}),
    ('bounding_box_test', {p.person_id for p in people.test} | {'-1', '0000'}),
    ('query', {p.person_id for p in people.test}),
  ):
    names = [path.name for path in (folder / name).iterdir()]
    assert all(NAME.fullmatch(n) for n in names)
    assert {n.split('_')[0] for n in names} == ids
  test = [path.name for path in (folder / 'bounding_box_test').iterdir()]
  assert sum(n.startswith('-1_') for n in test) == 2
  assert sum(n.startswith('0000_') for n in test) == 3


def test_crops_have_the_wanted_size_and_number(folder):
  counts = {}
  for path in folder.rglob('*.jpg'):
    with PIL.Image.open(path) as image:
      assert (image.format, image.mode, image.size) == ('JPEG', 'RGB', (16, 32))
    counts[path.name.split('_')[0]] = counts.get(path.name.split('_')[0], 0) + 1
  assert {counts[p] for p in counts if p not in ('-1', '0000')} <= {3, 4}


def test_the_market_loader_reads_it(folder):
  benchmark = market1501.load(folder)
  people = small().population
  assert set(benchmark.train.person_ids) == {p.person_id for p in people.train}
  assert set(benchmark.test.person_ids) == {p.person_id for p in people.test}
  assert len(benchmark.train.keys) == len({p.attributes for p in people.train})
  assert len(benchmark.test.keys) == len({p.attributes for p in people.test})
  unseen = 1.0 - np.mean(benchmark.seen())
  assert unseen == pytest.approx(people.unseen_share())


def test_same_arguments_give_the_same_bytes_with_any_number_of_workers(folder, tmp_path):
  again = small().write(tmp_path / 'again', workers=2).directory
  assert files(again) == files(folder)


def test_another_seed_gives_other_pictures(folder, tmp_path):
  other = small(seed=6, num_train_people=2, num_test_people=2).write(tmp_path / 'other', workers=1)
  pictures = {content for name, content in files(folder).items() if name.endswith('.jpg')}
  others = {content for n, content in files(other.directory).items() if n.endswith('.jpg')}
  assert not pictures & others


def test_the_same_data_set_is_recognised_and_left_alone(folder):
  before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
  written = small().write(folder, workers=1)
  assert not written.fresh
  assert sum(written.images.values()) == len(list(folder.rglob('*.jpg')))
  assert {path: path.stat().st_mtime_ns for path in folder.rglob('*')} == before


def test_another_data_set_is_replaced_only_when_asked(folder, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(folder, copy)
  other = small(num_train_people=2, num_test_people=2)
  with pytest.raises(FileExistsError, match='num_test_people, num_train_people.*overwrite'):
    other.write(copy, workers=1)
  assert files(copy) == files(folder)
  assert other.write(copy, workers=1, overwrite=True).fresh
  marker = json.loads((copy / 'synthetic.json').read_text())
  assert marker['parameters']['num_train_people'] == 2
  assert [path.name for path in tmp_path.iterdir()] == ['copy']


def test_damaged_data_set_is_told_and_drawn_again_when_asked(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / 'copy')
  victim = sorted(copy.rglob('*.jpg'))[2]
  content = victim.read_bytes()
  victim.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
  with pytest.raises(ValueError, match=f'synthetic data set .* is damaged.*{victim.name}'):
    small().write(copy, workers=1)
  assert small().write(copy, workers=1, overwrite=True).fresh
  assert victim.read_bytes() == content


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
  (tmp_path / 'holiday.txt').write_text('precious')
  with pytest.raises(FileExistsError, match='not a synthetic data set'):
    small().write(tmp_path, workers=1, overwrite=True)
  assert [path.name for path in tmp_path.iterdir()] == ['holiday.txt']


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
  people = small()
  draw = people.draw

  def interrupted(person, number, crop):
    if person == people.population.train[2]:
      raise KeyboardInterrupt
    return draw(person, number, crop)

  monkeypatch.setattr(people, 'draw', interrupted)
  with pytest.raises(KeyboardInterrupt):
    people.write(tmp_path / 'people', workers=1)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'num_train_people': 9_999}, 'at most 9999'),
    ({'images_per_person': (1, 4)}, 'images_per_person'),
    ({'image_size': (16, 16)}, 'image_size'),
    ({'unseen_share': 1.5}, 'unseen_share'),
    ({'difficulty': 'impossible'}, "'impossible'.*easy"),
    ({'seed': -1}, 'seed'),
  ],
)
def test_arguments_outside_their_range_are_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    small(**changes)


def test_importing_it_does_not_import_tensorflow():
  code = (
    'import sys, tfreid.data.synthetic; '
    "print(sorted(m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'keras', 'gin')))"
  )
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'


# -- who the people are -------------------------------------------------------------------------


@pytest.mark.parametrize('share', [0.0, 0.4, 0.75, 1.0])
def test_the_wanted_share_of_test_ids_is_unseen(share):
  people = synthetic.SyntheticPeople(300, 150, unseen_share=share).population
  train = {p.attributes for p in people.train}
  test = {p.attributes for p in people.test}
  assert len(test) >= 60
  assert abs(len(test - train) - share * len(test)) <= 1.0


def test_unseen_people_differ_in_their_combination_only():
  people = synthetic.SyntheticPeople(200, 100, unseen_share=1.0).population
  for values, others in zip(
    zip(*(p.attributes for p in people.train)), zip(*(p.attributes for p in people.test))
  ):
    assert set(others) <= set(values)


def test_frequencies_have_a_long_tail_that_difficulty_flattens():
  def most_and_least(tail):
    rng = np.random.default_rng(0)
    colors = [synthetic.sample_attributes(rng, tail).lower_color for _ in range(2000)]
    counts = [colors.count(c) for c in population.LOWER_COLORS]
    return max(counts), min(counts)

  most, least = most_and_least(1.0)
  assert most > 20 * max(least, 1)
  most, least = most_and_least(0.0)
  assert most < 2 * least


# -- what can be seen ---------------------------------------------------------------------------


def hue_box(crop, top, bottom):
  """Mean colour of the middle of the body between two shares of the crop's height."""
  height, width = crop.shape[:2]
  region = crop[int(top * height) : int(bottom * height), int(0.44 * width) : int(0.56 * width)]
  return region.mean(axis=(0, 1))


def nearest(color, names):
  return min(names, key=lambda name: palette.distance(color, palette.center(name)))


@pytest.mark.parametrize('color', population.UPPER_COLORS)
def test_a_top_has_the_color_it_is_named_after(color):
  crop, _ = clean_crop(synthetic.Attributes(upper_color=color, lower_color='brown'), 'back')
  assert nearest(hue_box(crop, 0.30, 0.42), population.UPPER_COLORS) == color


@pytest.mark.parametrize('color', population.LOWER_COLORS)
def test_trousers_have_the_color_they_are_named_after(color):
  # A skirt, since between the legs of trousers the ground shows.
  attributes = synthetic.Attributes(
    gender='female', lower='dress', upper_color='white', lower_color=color
  )
  crop, _ = clean_crop(attributes, 'back')
  assert nearest(hue_box(crop, 0.60, 0.80), population.LOWER_COLORS) == color


def test_every_shade_is_nearest_to_its_own_name():
  rng = np.random.default_rng(0)
  for name in set(population.UPPER_COLORS) | set(population.LOWER_COLORS):
    right = [nearest(palette.shade(name, rng), palette.SHADES) == name for _ in range(200)]
    assert np.mean(right) > 0.95, name


def test_shades_of_a_color_vary():
  rng = np.random.default_rng(0)
  assert len({palette.shade('red', rng) for _ in range(50)}) > 30
  assert len({palette.shade('red', rng, spread=0.0) for _ in range(50)}) == 1


def changed_share(first, second, view):
  """Share of a crop's pixels that differ between two people of one identity."""
  rng = np.random.default_rng(3)
  clean = synthetic.LEVELS['clean']
  identity = synthetic.sample_identity(first, rng, clean)
  camera = synthetic.make_cameras(0, clean)[1]
  a, b = (
    np.asarray(
      synthetic.draw_person(
        attributes,
        identity,
        camera,
        view,
        np.random.default_rng(4),
        image_size=(128, 64),
        difficulty=clean,
      ),
      np.float64,
    )
    for attributes in (first, second)
  )
  return float(np.mean(np.abs(a - b).max(axis=-1) > 40))


def test_a_backpack_shows_from_behind_and_hides_from_the_front():
  without = synthetic.Attributes(upper_color='white')
  with_it = without._replace(bag='backpack')
  back = changed_share(with_it, without, 'back')
  front = changed_share(with_it, without, 'front')
  assert back > 0.04
  assert 0.005 < front < 0.5 * back


@pytest.mark.parametrize(
  ('change', 'view'),
  [
    ({'bag': 'bag'}, 'front'),
    ({'bag': 'bag'}, 'back'),
    ({'bag': 'handbag'}, 'front'),
    ({'bag': 'handbag'}, 'back'),
    ({'hat': True}, 'front'),
    ({'hat': True}, 'left'),
    ({'sleeves': 'long'}, 'front'),
    ({'lower_length': 'short'}, 'right'),
    ({'lower': 'dress'}, 'front'),
  ],
)
def test_an_attribute_changes_the_picture(change, view):
  person = synthetic.Attributes(gender='female', upper_color='blue', lower_color='red')
  assert changed_share(person._replace(**change), person, view) > 0.008


def test_a_face_shows_from_the_front_only():
  attributes = synthetic.Attributes(gender='female', hair='long')
  front, identity = clean_crop(attributes, 'front')
  back, _ = clean_crop(attributes, 'back')

  def skin_share(crop):
    head = crop[20:55, 54:74]
    return np.mean(np.abs(head - identity.skin).max(axis=-1) < 40)

  assert skin_share(front) > 0.3
  assert skin_share(back) < 0.05


def test_a_child_is_smaller_and_has_a_larger_head():
  for gender in ('male', 'female'):
    rng = np.random.default_rng(0)
    clean = synthetic.LEVELS['clean']
    child, adult = (
      synthetic.sample_identity(synthetic.Attributes(age=age, gender=gender), rng, clean).build
      for age in ('child', 'adult')
    )
    assert child.stature < 0.8 * adult.stature
    assert child.head > 1.3 * adult.head


def test_cameras_differ_in_color_unless_they_are_told_not_to():
  gains = [camera.gain for camera in synthetic.make_cameras(0, synthetic.LEVELS['hard'])]
  assert len(set(gains)) == 6
  clean = synthetic.make_cameras(0, synthetic.LEVELS['clean'])
  assert {(camera.gain, camera.exposure) for camera in clean} == {((1.0, 1.0, 1.0), 1.0)}


@pytest.mark.parametrize('height', [32, 64, 128, 256])
def test_crops_of_any_size_show_the_same_person(height):
  attributes = synthetic.Attributes(upper_color='red', lower_color='blue')
  clean = synthetic.LEVELS['clean']
  rng = np.random.default_rng(3)
  identity = synthetic.sample_identity(attributes, rng, clean)
  camera = synthetic.make_cameras(0, clean)[0]
  image = synthetic.draw_person(
    attributes,
    identity,
    camera,
    'back',
    rng,
    image_size=(height, height // 2),
    difficulty=clean,
  )
  crop = np.asarray(image, np.float64)
  assert crop.shape == (height, height // 2, 3)
  assert nearest(hue_box(crop, 0.30, 0.42), population.UPPER_COLORS) == 'red'


# -- sheet, gin and tool ------------------------------------------------------------------------


def test_contact_sheet_holds_every_image():
  images = [PIL.Image.new('RGB', (16, 32), (i * 40, 0, 255)) for i in range(5)]
  sheet = np.asarray(synthetic.contact_sheet(images, labels=list('abcde'), columns=2, scale=2))
  for i in range(5):
    assert np.sum((sheet == [i * 40, 0, 255]).all(axis=-1)) == 32 * 64


def test_tool_writes_data_set_and_sheet(tmp_path):
  command = [
    *(sys.executable, str(ROOT / 'tools' / 'make_synthetic.py')),
    *('--out', str(tmp_path / 'people'), '--sheet', str(tmp_path / 'sheet.png')),
    *('--num_train_people=3', '--num_test_people=2', '--image_height=32', '--image_width=16'),
    *('--workers=1', '--noprogress'),
    '--gin_bindings=synthetic.SyntheticPeople.images_per_person = (2, 3)',
    '--gin_bindings=synthetic.Difficulty.occlusion = 0.0',
  ]
  done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'people: written' in done.stdout
  parameters = json.loads((tmp_path / 'people' / 'synthetic.json').read_text())['parameters']
  assert parameters['images_per_person'] == [2, 3]
  expected = synthetic.SyntheticPeople(
    3, 2, (2, 3), (32, 16), difficulty=synthetic.Difficulty(occlusion=0.0)
  )
  # But for the bindings, the gin file says what the constructors default to.
  assert parameters == expected.parameters
  with PIL.Image.open(tmp_path / 'sheet.png') as sheet:
    assert sheet.format == 'PNG'


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--gin_bindings=synthetic.Difficulty.blurr = 1'], 'blurr'),
    (
      ['--gin_bindings=synthetic.Difficulty.blur = "a lot"'],
      "synthetic.Difficulty.blur is 'a lot'; expected a number",
    ),
    (['--image_height=64'], '--image_width'),
  ],
)
def test_tool_says_in_one_message_what_is_wrong(tmp_path, arguments, words):
  command = [sys.executable, str(ROOT / 'tools' / 'make_synthetic.py'), '--out=people', *arguments]
  done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert done.returncode == 1
  assert words in done.stderr
  assert 'Traceback' not in done.stderr
  assert list(tmp_path.iterdir()) == []
