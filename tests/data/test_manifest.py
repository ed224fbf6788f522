from __future__ import annotations

import json

import numpy as np
import pytest

from tfreid.data import manifest, words

SCHEMA = {
  'name': 'Depot 7',
  'attributes': [
    {
      'name': 'gender',
      'values': ['male', 'female'],
      'words': {'male': ['man'], 'female': ['woman']},
    },
    {'name': 'backpack', 'values': ['no', 'yes']},
    {
      'name': 'upper_color',
      'values': ['red', 'green', 'blue'],
      'words': {'red': ['red top', 'red shirt']},
    },
  ],
}

HEADER = 'path,split,person_id,camera,gender,backpack,upper_color'
ROWS = [
  'crops/0.jpg,train,17,1,female,yes,red',
  'crops/1.jpg,train,17,2,female,yes,red',
  'crops/2.jpg,train,18,2,male,no,none',
  'crops/3.jpg,test,30,4,male,no,',
  'crops/4.jpg,query,31,5,female,no,red+blue',
]


@pytest.fixture
def own(tmp_path, write_crops):
  """A folder with five crops; `own(rows, header, schema)` writes the files, returns the folder."""
  write_crops(tmp_path / 'crops', [f'{i}.jpg' for i in range(6)])

  def write(rows=ROWS, header=HEADER, schema=SCHEMA):
    (tmp_path / 'manifest.csv').write_text('\n'.join([header, *rows]) + '\n')
    text = schema if isinstance(schema, str) else json.dumps(schema)
    (tmp_path / 'schema.json').write_text(text)
    return tmp_path

  return write


def changed(line, old, new):
  """ROWS with a change in one line of the file (the header is line 1)."""
  assert old in ROWS[line - 2]
  return [row.replace(old, new) if i == line - 2 else row for i, row in enumerate(ROWS)]


def test_a_manifest_is_a_benchmark(own):
  root = own()
  benchmark = manifest.load(root)
  assert benchmark.name == 'Depot 7'
  assert benchmark.schema.column_names == (
    'gender',
    'backpack',
    'upper_color=red',
    'upper_color=green',
    'upper_color=blue',
  )
  train, test = benchmark.train, benchmark.test
  assert list(train.paths) == [str(root / 'crops' / f'{i}.jpg') for i in range(3)]
  np.testing.assert_array_equal(
    train.attributes, [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
  )
  np.testing.assert_array_equal(test.attributes, [[0, 0, 0, 0, 0], [1, 0, 1, 0, 1]])
  assert list(train.person_ids) == ['17', '17', '18']
  assert list(train.cameras) == [1, 2, 2]
  assert list(test.person_ids) == ['30', '31']
  assert len(train.keys) == 2 and train.semantic_ids[0] == train.semantic_ids[1]
  assert benchmark.validation is None
  # The man without anything is in training too, the woman in two colours is not.
  assert {bool(seen): q.tolist() for seen, q in zip(benchmark.seen(), test.queries()[0])} == {
    True: [0, 0, 0, 0, 0],
    False: [1, 0, 1, 0, 1],
  }
  np.testing.assert_allclose(benchmark.schema.rates, [2 / 3, 2 / 3, 2 / 3, 0, 0], rtol=1e-6)


def test_its_attributes_can_be_asked_for_in_words(own):
  schema = manifest.load(own()).schema
  query = words.parse('woman, red shirt, no backpack', schema)
  np.testing.assert_array_equal(schema.encode_query(query), [1, 0, 1, 0, 0])


def test_json_lines_give_the_same_benchmark(own):
  root = own()
  names = HEADER.split(',')
  rows = [dict(zip(names, row.split(','))) for row in ROWS]
  rows[4]['upper_color'] = ['red', 'blue']
  rows[3]['upper_color'] = None
  rows[0]['camera'] = 1
  rows[0]['backpack'] = True
  (root / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n\n')
  ours, theirs = manifest.load(root, table='rows.jsonl'), manifest.load(root)
  for one, other in ((ours.train, theirs.train), (ours.test, theirs.test)):
    for field in ('paths', 'attributes', 'semantic_ids', 'person_ids', 'cameras'):
      np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_person_and_camera_are_optional(own):
  header = 'split,upper_color,path,backpack,gender'
  rows = ['train,red,crops/0.jpg,yes,female', 'test,none,crops/1.jpg,no,male']
  benchmark = manifest.load(own(rows, header))
  assert list(benchmark.train.person_ids) == ['crops/0.jpg']
  assert list(benchmark.train.cameras) == [0]
  np.testing.assert_array_equal(benchmark.train.attributes, [[1, 1, 1, 0, 0]])


def test_a_validation_split_may_be_given_or_drawn(own):
  given = manifest.load(own([*ROWS, 'crops/5.jpg,val,40,1,male,yes,green']))
  assert list(given.validation.person_ids) == ['40']
  drawn = manifest.load(own(), validation_share=0.5)
  assert len(drawn.train.keys) == len(drawn.validation.keys) == 1


def test_three_state_encoding(own):
  benchmark = manifest.load(own(), encoding='three_state')
  np.testing.assert_array_equal(benchmark.test.attributes[1], [1, -1, 1, -1, 1])


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(own):
  root = own()
  text = (root / 'manifest.csv').read_text()
  (root / 'manifest.csv').write_bytes(b'\xef\xbb\xbf' + text.replace('\n', '\r\n').encode())
  assert len(manifest.load(root).train) == 3


def test_what_pandas_and_spreadsheets_write_is_read_and_told(own, caplog):
  expected = manifest.load(own())
  rows = [row.split(',') for row in ROWS]
  for i, row in enumerate(rows):
    row[2:6] = [f'{row[2]}.0', f'{row[3]}.0', row[4], {'yes': 'True', 'no': '0'}[row[5]]]
    row.insert(0, str(i))
  header = ';' + HEADER.replace(',', ';')
  written = manifest.load(own([';'.join(row) for row in rows], header))
  for one, other in ((written.train, expected.train), (written.test, expected.test)):
    for field in ('paths', 'attributes', 'person_ids', 'cameras'):
      np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
  assert any('separated by semicolons' in message for message in caplog.messages)
  assert any('has no name' in message for message in caplog.messages)


def test_names_may_be_composed_or_not(own, tmp_path, write_crops):
  """An archive made on a Mac has 'e' and an accent; whoever types a manifest has 'é'."""
  schema = {'attributes': [{'name': 'éte\u0301', 'values': ['fonce\u0301', 'clair']}]}
  write_crops(tmp_path / 'crops', ['e\u0301.jpg', 'ü.jpg'])
  rows = ['crops/é.jpg,train,foncé', 'crops/u\u0308.jpg,test,fonce\u0301']
  benchmark = manifest.load(own(rows, 'path,split,e\u0301te\u0301', schema))
  assert list(benchmark.train.paths) == [str(tmp_path / 'crops' / 'e\u0301.jpg')]
  assert list(benchmark.test.paths) == [str(tmp_path / 'crops' / 'ü.jpg')]
  np.testing.assert_array_equal(benchmark.train.attributes, benchmark.test.attributes)


def test_a_schema_may_have_a_byte_order_mark(own):
  assert len(manifest.load(own(schema='\ufeff' + json.dumps(SCHEMA))).train) == 3


def test_a_person_in_both_splits_is_a_warning(own, caplog):
  manifest.load(own(changed(5, ',30,', ',17,')))
  assert "1 people are in training and in test, '17' first" in caplog.text


@pytest.mark.parametrize(
  ('line', 'old', 'new', 'message'),
  [
    (2, 'train', 'trian', "line 2: 'split' is 'trian'; expected train, validation"),
    (3, 'female', 'femal', "line 3: 'gender' is 'femal'; expected male or female"),
    (3, 'female', '', "line 3: 'gender' is ''; expected male or female"),
    (4, 'none', 'pink', "line 4: 'upper_color' is 'pink'; expected one of red, green, blue, or"),
    (6, 'red+blue', 'red+', "line 6: 'upper_color' is ''; expected one of"),
    (4, ',2,', ',two,', "line 4: 'camera' is 'two'; expected a whole number"),
    (5, ',male', '', 'line 5: the row has 6 cells and the header line 7'),
    (5, 'male', 'male,x', 'line 5: the row has 8 cells and the header line 7'),
    (6, 'crops/4.jpg', 'crops/0.jpg', "line 6: 'crops/0.jpg' stands on line 2 already"),
    (6, '31', '"31', 'not a readable CSV file'),
  ],
)
def test_a_row_that_does_not_fit_is_an_error_that_names_it(own, line, old, new, message):
  with pytest.raises(ValueError, match=message):
    manifest.load(own(changed(line, old, new)))


def test_a_missing_image_is_an_error_that_names_the_row(own):
  with pytest.raises(FileNotFoundError, match=r"line 3: there is no image '.*crops/x.jpg'"):
    manifest.load(own(changed(3, 'crops/1.jpg', 'crops/x.jpg')))


@pytest.mark.parametrize(
  ('header', 'message'),
  [
    (HEADER.replace('gender', 'sex'), 'Missing: gender; not known: sex'),
    (HEADER.replace('split', 'part'), 'Missing: split; not known: part'),
    (HEADER.replace('camera', 'path'), "column 'path' occurs twice"),
  ],
)
def test_columns_that_do_not_fit_are_an_error(own, header, message):
  with pytest.raises(ValueError, match=message):
    manifest.load(own(header=header))


def test_an_empty_split_is_an_error(own):
  with pytest.raises(ValueError, match="has no test crops: no row's 'split' is 'test'"):
    manifest.load(own(ROWS[:3]))
  with pytest.raises(ValueError, match='has no training crops'):
    manifest.load(own(ROWS[3:]))
  with pytest.raises(ValueError, match='has no rows'):
    manifest.load(own([]))


def test_missing_files_are_errors(own, tmp_path):
  root = own()
  with pytest.raises(FileNotFoundError, match='Set DATA_ROOT'):
    manifest.load(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match=r"no manifest '.*other.csv'"):
    manifest.load(root, table='other.csv')
  with pytest.raises(FileNotFoundError, match=r"no schema '.*other.json'"):
    manifest.load(root, schema='other.json')


def test_a_file_that_is_not_text_is_an_error(own):
  root = own()
  (root / 'manifest.csv').write_bytes(b'path,split\xff\xfe\n')
  with pytest.raises(ValueError, match='not UTF-8 text'):
    manifest.load(root)


@pytest.mark.parametrize(
  ('text', 'message'), [('{', 'line 1 is not JSON'), ('[1]', 'line 1: expected an object')]
)
def test_json_lines_that_are_not_are_errors(own, text, message):
  root = own()
  (root / 'rows.jsonl').write_text(text + '\n')
  with pytest.raises(ValueError, match=message):
    manifest.load(root, table='rows.jsonl')


def attribute(**changes):
  return {'attributes': [{**SCHEMA['attributes'][2], **changes}]}


@pytest.mark.parametrize(
  ('schema', 'message'),
  [
    ('{"attributes": [', 'is not JSON'),
    ('[]', "must be a JSON object with a list 'attributes'"),
    ({'attributes': []}, 'lists no attribute'),
    ({'attributes': ['hat']}, 'attribute 1: expected an object'),
    (attribute(colour='x'), r"unknown keys \['colour'\]"),
    (attribute(name='upper color'), '"name" must be a text without spaces'),
    (attribute(name='split'), "'split' is a column of the manifest already"),
    (attribute(values=['red']), '"values" must be a list of two or more'),
    (attribute(values=['red', 'red', 'blue']), '"values" must be a list of two or more different'),
    (attribute(values=[False, True]), 'only in quotation marks'),
    (attribute(values=['red', 'none', 'blue']), "the value 'none' cannot be used"),
    (attribute(values=['red', 'a=b', 'blue']), "the value 'a=b' cannot be used"),
    (attribute(words={'red': 'red top'}), '"words" must map a value to a list'),
    (attribute(words={'pink': ['pink top']}), r"names values it does not have: \['pink'\]"),
    (attribute(words={'red': ['top'], 'blue': ['top']}), "uses the phrase 'top' both for"),
    ({'attributes': SCHEMA['attributes'][:1] * 2}, "two attributes 'gender'"),
  ],
)
def test_a_schema_that_does_not_fit_is_an_error_that_names_the_file(own, schema, message):
  with pytest.raises(ValueError, match=message) as error:
    manifest.load(own(schema=schema))
  assert 'schema.json' in str(error.value)
