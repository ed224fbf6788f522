from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from tfreid.index import manifest
from tfreid.index.segment import Row

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
    ('m.csv', 'id\n1\n', "no column 'path'. Add one with .* has: 'id'"),
    ('m.csv', 'path,id\n,1\n', "line 2: no 'path'.* It has: 'id'"),
    ('m.csv', 'cam,image_file\n1,a.jpg\n', "Rename 'image_file' to 'path'.* 'cam', 'image_file'"),
    ('m.csv', 'file;camera\na.jpg;1\n', "Rename 'file' to 'path'.* 'file', 'camera'"),
    ('m.csv', 'Path,camera\na.jpg,1\n', "Rename 'Path' to 'path'"),
    ('m.csv', '/data/a.jpg\n/data/b.jpg\n', 'first line, which names the columns, has: .*a.jpg'),
    ('m.csv', 'path,ID\na.jpg,1\n', "'ID' differs from 'id' only by case. Rename it to 'id'"),
    ('m.csv', 'path,Hat\na.jpg,1\n', "'Hat' differs from the attribute 'hat' only by case"),
    ('m.csv', 'path,camera, camera\na.jpg,1,2\n', "the column 'camera' occurs twice"),
    ('m.csv', 'path,hat\nx.jpg,2\n', "'hat' is '2'; the model knows no, yes .or 0, 1. and 'none'"),
    ('m.csv', 'path,color\nx.jpg,1\n', "'color' is '1'; the model knows red, blue and"),
    ('m.jsonl', '{"path": "x.jpg"}\n{"path": "y.jpg", "Id": 1}', "line 2: 'Id' differs from 'id'"),
    ('m.jsonl', '{"file": "x.jpg", "id": 1}', "line 1: no 'path'.* It has: 'file', 'id'"),
    ('m.csv', 'path\n', 'has no rows'),
    ('m.csv', 'path,id\na.jpg,1\nb.jpg,1\n', "line 3: the id '1' stands on line 2 already"),
    ('m.csv', 'path,a b\nx.jpg,1\n', "'a b' cannot be the name of a field.*'a_b'"),
    ('m.csv', 'path,and\nx.jpg,1\n', "'and' cannot be the name of a field"),
    ('m.csv', 'path,camera\nx.jpg\n', 'line 2: the row has 1 cells and the header line 2'),
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


@pytest.mark.parametrize('separator', [';', '\t', '|'])
def test_another_separator_is_found_and_said(tmp_path, caplog, separator):
  lines = [['path', 'camera', 'note'], ['1.jpg', '3', 'a, b'], ['2.jpg', '', '2,5']]
  path = write(tmp_path / 'm.csv', '\n'.join(map(separator.join, lines)))
  first, second = manifest.read(path)
  assert first.fields == {'camera': 3, 'note': 'a, b'}
  assert second.fields == {'note': '2,5'}
  (said,) = caplog.messages
  assert f'({"path, camera, note"}), not by commas' in said
  caplog.clear()
  # Commas, although the name of another column holds such a sign.
  path = write(tmp_path / 'm.csv', f'path,id,camera\nx{separator}1.jpg,1,3\n')
  assert manifest.read(path)[0].path == str(tmp_path / f'x{separator}1.jpg')
  assert not caplog.messages


@pytest.mark.parametrize('ending', ['csv', 'jsonl'])
def test_attributes_of_yes_and_no_may_be_0_and_1(tmp_path, ending):
  given = ['0', '1', '0.0', '1.0', 'True', 'false', 'yes', 'no', 'none', '']
  if ending == 'csv':
    text = 'path,hat\n' + ''.join(f'{i}.jpg,{value}\n' for i, value in enumerate(given))
  else:
    values = [0, 1, 0.0, 1.0, True, False, 'yes', 'no', 'none', None]
    rows = ({'path': f'{i}.jpg', 'hat': value} for i, value in enumerate(values))
    text = '\n'.join(map(json.dumps, rows))
  rows = manifest.read(write(tmp_path / f'm.{ending}', text), attributes=ATTRIBUTES)
  read = [row.attributes.get('hat') for row in rows]
  assert read == ['no', 'yes', 'no', 'yes', 'yes', 'no', 'yes', 'no', 'none', None]


def fields(tmp_path, name, cells, ending='csv'):
  if ending == 'csv':
    text = f'path,{name}\n' + ''.join(f'{i}.jpg,{cell}\n' for i, cell in enumerate(cells))
  else:
    text = '\n'.join(json.dumps({'path': f'{i}.jpg', name: cell}) for i, cell in enumerate(cells))
  return [row.fields.get(name) for row in manifest.read(write(tmp_path / f'm.{ending}', text))]


def test_a_column_has_a_kind_and_not_each_cell(tmp_path, caplog):
  cells = ['1e-05', '', '0.123456789012345678', '-3', '2.5E3', '17', '9223372036854775807']
  read = fields(tmp_path, 'score', cells)
  assert read == [1e-05, None, 0.123456789012345678, -3, 2500.0, 17, 2**63 - 1]
  assert [type(value) for value in read[3:]] == [int, float, int, int]
  assert fields(tmp_path, 'track', ['0002', '0003']) == ['0002', '0003']
  assert not caplog.messages
  for cells in (
    ['0002', '3'],
    ['1', 'a'],
    ['7', '18446744073709551616'],
    ['1', '1e999'],
    ['1', '1;5'],
  ):
    caplog.clear()
    assert fields(tmp_path, 'track', cells) == cells
    (said,) = caplog.messages
    assert "'track' has numbers (line" in said and 'all are read as texts' in said
  # A part decides as the whole does.
  path = write(tmp_path / 'p.csv', 'path,track\na,1\nb,2\nc,x\nd,4\n')
  parts = [manifest.read(path, part=(i, 2)) for i in (1, 2)]
  assert [row.fields['track'] for part in parts for row in part] == ['1', '2', 'x', '4']


@pytest.mark.parametrize('ending', ['csv', 'jsonl'])
def test_times_are_kept_in_one_form(tmp_path, caplog, ending):
  cells = ['2024-03-01 09:15', '2024-03-01T09:15:00.500', '2024-03-01', '2024-03-01T09:15:00']
  assert fields(tmp_path, 'time', cells, ending) == [
    *('2024-03-01T09:15:00', '2024-03-01T09:15:00.5', '2024-03-01', '2024-03-01T09:15:00')
  ]
  cells = ['2024-03-01T09:15:00+01:00', '2024-03-01 08:15Z', '2024-03-01T00:15:00.25-0800']
  read = fields(tmp_path, 'time', cells, ending)
  assert read == [*['2024-03-01T08:15:00+00:00'] * 2, '2024-03-01T08:15:00.25+00:00']
  assert read == sorted(read)
  with pytest.raises(ValueError, match=r'with an offset from UTC .line \d: .* and times without'):
    fields(tmp_path, 'time', [*cells, '2024-03-01T09:15:00'], ending)
  assert not caplog.messages
  assert (
    fields(tmp_path, 'time', ['2024-13-01T09:15:00', '2024-01-01 09:15'], ending)[0][5:7] == '13'
  )
  assert 'other texts' in caplog.text


def test_a_column_without_a_name_is_left_out_and_told(tmp_path, caplog):
  path = write(tmp_path / 'm.csv', ',path,Unnamed: 0,camera\n0,a.jpg,0,3\n1,b.jpg,1,4\n')
  assert [row.fields for row in manifest.read(path)] == [{'camera': 3}, {'camera': 4}]
  assert len([message for message in caplog.messages if 'has no name' in message]) == 2


def test_images_of_other_kinds_are_told(tmp_path, caplog):
  for name in ('a.jpg', 'b.HEIC', 'x/c.heic', 'd.cr2'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  assert [row.id for row in manifest.read(str(tmp_path))] == ['a.jpg']
  assert [row.id for row in manifest.read(str(tmp_path), part=(1, 1))] == ['a.jpg']
  assert len(caplog.messages) == 2
  assert all('2 .heic, 1 .cr2' in said for said in caplog.messages)


def test_names_and_texts_may_be_composed_or_not(tmp_path):
  (tmp_path / 'e\u0301.jpg').touch()
  path = write(tmp_path / 'm.csv', 'path,site,color\né.jpg,nørd e\u0301,\ne\u0301.jpg,nørd é,\n')
  first, second = manifest.read(path, attributes=ATTRIBUTES)
  assert first.path == second.path == str(tmp_path / 'e\u0301.jpg')
  assert first.fields == second.fields == {'site': 'nørd é'}
  assert (first.id, second.id) == ('é.jpg', 'e\u0301.jpg')
  colors = {'color': ('foncé', 'clair')}
  path = write(tmp_path / 'n.csv', 'path,color\na.jpg,fonce\u0301 + clair\n')
  assert manifest.read(path, attributes=colors)[0].attributes == {'color': 'foncé+clair'}


def sources(tmp_path):
  """A folder and manifests of 11 crops each; lines are blank, rows go over two lines."""
  for name in ('b', 'a.png', 'a-b/1', 'a/1', 'a/0/x', 'a/2', 'a0/1', 'B/1', 'a!/1', 'z', 'ab'):
    path = tmp_path / 'folder' / (name if name.endswith('.png') else f'{name}.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  lines = [f'"{i}\n.jpg","id {i}"' for i in range(11)]
  write(tmp_path / 'm.csv', '\n'.join(['path,id', *lines[:4], '', *lines[4:], '', '']))
  write(tmp_path / 'm;.csv', '\n'.join(['path;id', *(line.replace(',', ';') for line in lines)]))
  lines = [json.dumps({'path': f'{i}.jpg', 'camera': i}) for i in range(11)]
  write(tmp_path / 'm.jsonl', '\ufeff' + '\n'.join([*lines[:3], ' ', *lines[3:]]))
  return [str(tmp_path / name) for name in ('folder', 'm.csv', 'm;.csv', 'm.jsonl')]


def test_parts_are_neighbours_and_cover_everything(tmp_path):
  for source in sources(tmp_path):
    rows = manifest.read(source)
    assert len(rows) == 11
    for count in (1, 2, 4, 11):
      parts = [manifest.read(source, part=(i + 1, count)) for i in range(count)]
      assert sum(parts, []) == rows
      assert {len(part) for part in parts} <= {11 // count, -(-11 // count)}
    for part in ((0, 4), (5, 4), (1, 12)):
      with pytest.raises(ValueError, match='part|shared out'):
        manifest.read(source, part=part)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
  folder = sources(tmp_path)[0]
  ids = [row.id for row in manifest.read(folder)]
  assert ids == sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob('*.png'))


def test_a_part_says_what_is_wrong_in_it_and_an_id_that_it_has_twice(tmp_path):
  path = write(tmp_path / 'm.csv', 'path,id\na,1\nb,2\nc,2\nd,1\ne,x,y\nf,6\n')
  assert [row.path[-1] for row in manifest.read(path, part=(1, 3))] == ['a', 'b']
  # '2' stands in two parts: whoever joins them sees it.
  assert [row.id for row in manifest.read(path, part=(2, 3))] == ['2', '1']
  with pytest.raises(ValueError, match='line 6: the row has 3 cells'):
    manifest.read(path, part=(3, 3))
  with pytest.raises(ValueError, match="line 4: the id '2' stands on line 3 already"):
    manifest.read(write(tmp_path / 'n.csv', 'path,id\na,1\nb,2\nc,2\nd,4\n'), part=(1, 1))


def test_a_part_of_a_large_manifest_takes_the_memory_of_its_rows_only(tmp_path):
  row = '{"path": "%06d.jpg", "camera": 3, "time": "2024-03-01T09:15:00", "site": "north"}\n'
  path = write(tmp_path / 'm.jsonl', ''.join(row % i for i in range(40000)))

  def peak(part):
    tracemalloc.start()
    try:
      assert len(manifest.read(path, part=part)) == 40000 // part[1]
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  assert peak((57, 100)) < peak((1, 1)) / 20


def test_a_manifest_that_changes_while_a_part_of_it_is_read_is_refused(tmp_path, monkeypatch):
  path = write(tmp_path / 'm.jsonl', '{"path": "1.jpg"}\n{"path": "2.jpg"}\n')
  bounds = manifest._bounds

  def changing(*arguments):
    with open(path, 'a') as file:
      file.write('{"path": "3.jpg"}\n')
    return bounds(*arguments)

  monkeypatch.setattr(manifest, '_bounds', changing)
  with pytest.raises(ValueError, match='changed while it was read. All parts must come from one'):
    manifest.read(path, part=(1, 2))


def test_doubled_ids_are_found_by_name_not_by_hash_alone(monkeypatch):
  rows = [Row(f'{i}') for i in range(50)]
  assert manifest.doubled([]) is None
  assert manifest.doubled(rows) is None
  assert manifest.doubled([*rows, Row('7')]) == (7, 50)
  # All hashes alike.
  monkeypatch.setattr(manifest, 'hash', lambda name: 0, raising=False)
  assert manifest.doubled(rows) is None
  assert manifest.doubled([*rows, Row('7')]) == (7, 50)


def test_what_is_left_out_of_a_folder_is_told(tmp_path, caplog):
  for name in ('1.jpg', '2.WEBP', '3.heic', 'notes.txt', '.hidden.jpg'):
    (tmp_path / name).touch()
  assert [row.id for row in manifest.read(str(tmp_path))] == ['1.jpg', '2.WEBP']
  assert '1 .heic' in caplog.text and '1 .txt' in caplog.text and '1 hidden files' in caplog.text
  for name in ('1.jpg', '2.WEBP'):
    (tmp_path / name).unlink()
  with pytest.raises(ValueError, match=r'has no image: no file that ends in .*It has .*1 \.heic'):
    manifest.read(str(tmp_path))
