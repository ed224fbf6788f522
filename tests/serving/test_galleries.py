from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tfreid.data.attributes import Attribute, AttributeSchema, check_same_columns
from tfreid.data.benchmark import Split
from tfreid.serving import galleries

SCHEMA = AttributeSchema(
  'Depot',
  (
    Attribute('gender', ('male', 'female'), (('gender', 2),)),
    Attribute('color', ('red', 'green', 'blue'), (('red', 1), ('green', 1), ('blue', 1))),
  ),
  {'gender': (1, 2), 'red': (0, 1), 'green': (0, 1), 'blue': (0, 1)},
)


def test_the_files_of_a_split_come_with_person_camera_and_attributes_in_words(tmp_path):
  split = Split(
    paths=np.asarray([str(tmp_path / 'b.jpg'), str(tmp_path / 'x' / '..' / 'a.jpg')]),
    attributes=np.asarray([[1, 0, 0, 1], [0, 1, 0, 0]], np.float32),
    semantic_ids=np.asarray([0, 1]),
    person_ids=np.asarray(['7', '0012']),
    cameras=np.asarray([3, 1], np.int32),
    keys=((1, 0, 0, 1), (0, 1, 0, 0)),
  )
  files = galleries.files_of_split(split, SCHEMA)
  assert files.paths == [str(tmp_path / 'b.jpg'), str(tmp_path / 'a.jpg')]
  first, second = files.rows
  assert first == {
    'path': str(tmp_path / 'b.jpg'),
    'person_id': '7',
    'camera': 3,
    'attributes': {'gender': 'female', 'color': 'blue'},
  }
  assert (second['person_id'], second['camera']) == ('0012', 1)
  assert second['attributes'] == {'gender': 'male', 'color': 'red'}


def test_the_images_below_a_folder_are_sorted_and_the_rest_is_told(tmp_path, caplog):
  for name in ('b/2.png', 'a.jpg', 'b/1.JPG', 'notes.txt', '.hidden/3.png'):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    Image.new('RGB', (2, 4)).save(path, 'PNG')
  files = galleries.files_below(str(tmp_path))
  wanted = [str(tmp_path / name) for name in ('a.jpg', 'b/1.JPG', 'b/2.png')]
  assert files.paths == wanted
  assert files.rows == [{'path': path} for path in wanted]
  assert f"Left out of '{tmp_path}'" in caplog.text


def test_a_folder_without_images_is_refused(tmp_path):
  with pytest.raises(ValueError, match='holds no image'):
    galleries.files_below(str(tmp_path))
  with pytest.raises(FileNotFoundError, match='There is no folder'):
    galleries.files_below(str(tmp_path / 'none'))


def test_data_of_other_columns_or_of_another_encoding_are_refused():
  advice = 'Do so and so.'
  check_same_columns(None, SCHEMA, advice=advice)
  check_same_columns(SCHEMA, dataclasses.replace(SCHEMA, name='Other'), advice=advice)
  for other in (
    dataclasses.replace(SCHEMA, encoding='three_state'),
    dataclasses.replace(SCHEMA, attributes=SCHEMA.attributes[:1], raw_values={'gender': (1, 2)}),
  ):
    told = r'trained on the 4 binary attribute columns of Depot, .* Do so and so\.$'
    with pytest.raises(ValueError, match=told):
      check_same_columns(SCHEMA, other, advice=advice)
