from __future__ import annotations

import json
import os

import pytest

from tfreid.index import manifest

ATTRIBUTES = {'hat': ('no', 'yes'), 'color': ('red', 'blue')}


def write(path, text):
  path.write_text(text, encoding='utf-8')
  return str(path)


def test_a_folder_gives_its_images_by_relative_path(tmp_path):
  for name in ('b/2.PNG', 'a/1.jpg', 'c.jpeg', 'notes.txt', 'a/.x'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  rows = manifest.read(str(tmp_path))
  assert [row.id for row in rows] == ['a/1.jpg', 'b/2.PNG', 'c.jpeg']
  assert [row.path for row in rows] == [str(tmp_path / row.id) for row in rows]
  assert all(not row.fields and not row.attributes for row in rows)


def test_a_csv_file_says_fields_and_attributes(tmp_path):
  path = write(
    tmp_path / 'm.csv',
    '\ufeffpath,id,camera,speed,track,hat,color\n'
    'x/1.jpg,007,3,-1.5,0042,yes,red+blue\n'
    '/abs/2.jpg,,,,"a, b",,none\n',
  )
  first, second = manifest.read(path, attributes=ATTRIBUTES)
  assert first.id == '007'
  assert first.path == str(tmp_path / 'x' / '1.jpg')
  assert first.fields == {'camera': 3, 'speed': -1.5, 'track': '0042'}
  assert isinstance(first.fields['camera'], int)
  assert first.attributes == {'hat': 'yes', 'color': 'red+blue'}
  assert (second.id, second.path) == ('/abs/2.jpg', '/abs/2.jpg')
  assert second.fields == {'track': 'a, b'}
  assert second.attributes == {'color': 'none'}


def test_json_lines_keep_their_types(tmp_path):
  rows = [
    {'path': '1.jpg', 'id': 7, 'indoor': True, 'time': '2024', 'hat': True, 'color': ['red']},
    {'path': '2.jpg', 'camera': None, 'color': []},
  ]
  path = write(tmp_path / 'm.jsonl', '\n\n'.join(map(json.dumps, rows)))
  first, second = manifest.read(path, attributes=ATTRIBUTES)
  assert (first.id, first.fields) == ('7', {'indoor': True, 'time': '2024'})
  assert first.attributes == {'hat': 'yes', 'color': 'red'}
  assert (second.id, second.fields, second.attributes) == ('2.jpg', {}, {'color': 'none'})


@pytest.mark.parametrize(
  ('name', 'text', 'said'),
  [
    ('m.csv', 'id\n1\n', "line 2: no 'path'"),
    ('m.csv', 'path\n', 'has no rows'),
    ('m.csv', 'path,id\na.jpg,1\nb.jpg,1\n', "line 3: the id '1' stands on line 2 already"),
    ('m.csv', 'path,a b\nx.jpg,1\n', "'a b' cannot be the name of a field.*'a_b'"),
    ('m.csv', 'path,and\nx.jpg,1\n', "'and' cannot be the name of a field"),
    ('m.csv', 'path,camera\nx.jpg\n', 'line 2: the row has not as many cells'),
    ('m.csv', 'path,path\nx.jpg,y.jpg\n', "the column 'path' occurs twice"),
    ('m.csv', 'path,color\nx.jpg,pink\n', "line 2: 'color' is 'pink'; the model knows red, blue"),
    ('m.csv', 'path\n"x.jpg\n', 'not a readable CSV file'),
    ('m.jsonl', '{"path": "x.jpg"}\n{"path"', 'line 2 is not JSON'),
    ('m.jsonl', '["x.jpg"]', 'expected an object'),
    ('m.jsonl', '{"path": "x.jpg", "box": [1, 2]}', "'box': .* is neither a text"),
    ('m.jsonl', '{"path": "x.jpg", "n": 1e999}', "'n': inf"),
    ('m.jsonl', '[' * 100000, 'is not JSON'),
    ('m.txt', 'x.jpg', 'must end in .csv or .jsonl'),
  ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, name, text, said):
  with pytest.raises(ValueError, match=said):
    manifest.read(write(tmp_path / name, text), attributes=ATTRIBUTES)


def test_missing_and_empty_sources_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='neither a folder nor a file'):
    manifest.read(str(tmp_path / 'nothing'))
  with pytest.raises(ValueError, match='has no image'):
    manifest.read(str(tmp_path))
  (tmp_path / 'm.csv').write_bytes(b'path\n\xff.jpg\n')
  with pytest.raises(ValueError, match='not UTF-8'):
    manifest.read(str(tmp_path / 'm.csv'))


def test_parts_are_neighbours_and_cover_everything(tmp_path):
  for i in range(11):
    (tmp_path / f'{i:02d}.png').touch()
  rows = manifest.read(str(tmp_path))
  parts = [list(manifest.part(rows, i, 4)) for i in range(1, 5)]
  assert sum(parts, []) == rows
  assert {len(part) for part in parts} == {2, 3}
  for number, count in ((0, 4), (5, 4), (1, 12)):
    with pytest.raises(ValueError, match='part|shared out'):
      manifest.part(rows, number, count)


def test_a_file_name_that_is_no_text_is_refused(tmp_path):
  try:
    open(os.fsencode(tmp_path) + b'/\xff.jpg', 'w').close()
  except OSError:
    pytest.skip('this file system has no such names')
  with pytest.raises(ValueError, match='not valid UTF-8'):
    manifest.read(str(tmp_path))
