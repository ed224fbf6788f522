from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from tfreid.data import dukemtmc, market1501, peta, reid_folder, words
from tfreid.data.attributes import Attribute, AttributeSchema, AttributeTable
from tfreid.query import Is, IsNot

SCHEMAS = [market1501.SCHEMA, dukemtmc.SCHEMA, peta.SCHEMA]

SMALL = AttributeSchema(
  name='small',
  attributes=(
    Attribute('gender', ('male', 'female'), (('sex', 2),), {'female': ('woman',)}),
    Attribute('color', ('red', 'blue'), (('isred', 1), ('isblue', 1))),
    Attribute('hat', ('no', 'yes'), (('hat', 1),)),
  ),
  raw_values={'sex': (1, 2), 'isred': (0, 1), 'isblue': (0, 1), 'hat': (0, 1)},
  rates=(0.25, 0.5, 0.125, 0.75),
)


def small_frame():
  return pd.DataFrame(
    {'hat': [1, 0, 0, 0], 'isblue': [0, 1, 1, 0], 'isred': [1, 0, 1, 0], 'sex': [2, 1, 1, 1]},
    index=['a', 'b', 'c', 'd'],
  )


def test_vector_sizes_are_those_of_the_paper():
  """Market 4 ages + 26 bits, Duke 23, PETA 105 (Sec. 4.1 counts 61 binary ones and 4 of 11)."""
  assert [schema.size for schema in SCHEMAS] == [30, 23, 105]


def test_column_names_are_the_attribute_or_attribute_and_value():
  assert SMALL.column_names == ('gender', 'color=red', 'color=blue', 'hat')
  assert SMALL.groups == (0, 1, 1, 2)
  assert SMALL.block('color') == slice(1, 3)


@pytest.mark.parametrize('schema', SCHEMAS, ids=lambda schema: schema.name)
def test_each_raw_column_is_read_once_and_column_names_differ(schema):
  read = [column for attribute in schema.attributes for column in attribute.columns]
  assert len(set(read)) == len(read)
  assert {raw for raw, _ in read} == set(schema.raw_values)
  assert len(set(schema.column_names)) == schema.size


def test_encoding_by_hand():
  table = AttributeTable(SMALL, small_frame())
  np.testing.assert_array_equal(
    table.vectors(), [[1, 1, 0, 1], [0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
  )
  three_state = AttributeTable(dataclasses.replace(SMALL, encoding='three_state'), small_frame())
  np.testing.assert_array_equal(three_state.vectors()[2], [-1, 1, 1, -1])
  assert table.vectors().dtype == np.float32


def test_describe_names_what_is_on():
  vectors = AttributeTable(SMALL, small_frame()).vectors()
  assert SMALL.describe(vectors[0]) == {'gender': 'female', 'color': 'red', 'hat': 'yes'}
  assert SMALL.describe(vectors[2]) == {'gender': 'male', 'color': 'red+blue', 'hat': 'no'}
  assert SMALL.describe(vectors[3]) == {'gender': 'male', 'color': 'none', 'hat': 'no'}


def test_semantic_ids_number_equal_people_equally():
  frame = small_frame()
  frame.loc['e'] = frame.loc['b']
  ids, keys = AttributeTable(SMALL, frame).semantic_ids()
  assert ids[1] == ids[4] and len(set(ids[:4])) == 4
  assert keys == sorted(keys)
  # In the schema's order of the raw columns: sex, isred, isblue, hat.
  assert keys[ids[0]] == (2, 1, 0, 1)


@pytest.mark.parametrize(
  ('file', 'variable', 'schema'),
  [
    ('market_attribute.mat', market1501.VARIABLE, market1501.SCHEMA),
    ('duke_attribute.mat', dukemtmc.VARIABLE, dukemtmc.SCHEMA),
  ],
)
def test_order_of_the_columns_does_not_matter(shared_data, file, variable, schema):
  frames = reid_folder.read_attribute_mat(shared_data / file, variable)
  assert list(frames['train'].columns) != list(frames['test'].columns)
  rng = np.random.default_rng(0)
  for frame in frames.values():
    table = AttributeTable(schema, frame)
    shuffled = AttributeTable(schema, frame[rng.permutation(frame.columns)])
    np.testing.assert_array_equal(table.vectors(), shuffled.vectors())
    np.testing.assert_array_equal(table.semantic_ids()[0], shuffled.semantic_ids()[0])
    assert table.semantic_ids()[1] == shuffled.semantic_ids()[1]


@pytest.mark.parametrize('encoding', ['binary', 'three_state'])
def test_a_full_description_of_a_person_encodes_to_the_person(shared_data, encoding):
  schema = dataclasses.replace(market1501.SCHEMA, encoding=encoding)
  frames = reid_folder.read_attribute_mat(
    shared_data / market1501.ANNOTATION_FILE, market1501.VARIABLE
  )
  # On Market nobody has two colours, so every description is one that a query can give.
  for vector in AttributeTable(schema, frames['test']).vectors():
    np.testing.assert_array_equal(schema.encode_query(schema.describe(vector)), vector)


def test_a_partial_query_takes_the_training_rates_for_the_rest():
  np.testing.assert_allclose(SMALL.encode_query({'gender': 'female'}), [1, 0.5, 0.125, 0.75])
  np.testing.assert_allclose(SMALL.encode_query({'color': 'blue'}), [0.25, 0, 1, 0.75])
  np.testing.assert_allclose(SMALL.encode_query({'color': 'none', 'hat': 'no'}), [0.25, 0, 0, 0])
  np.testing.assert_allclose(SMALL.encode_query({'color': '!blue'}), [0.25, 0.5, 0, 0.75])
  np.testing.assert_allclose(SMALL.encode_query({'gender': '!male'}), [1, 0.5, 0.125, 0.75])


def test_without_rates_the_rest_of_a_partial_query_is_one_half():
  schema = dataclasses.replace(SMALL, rates=())
  np.testing.assert_allclose(schema.encode_query({'hat': 'yes'}), [0.5, 0.5, 0.5, 1])


def test_a_partial_query_leaves_the_rest_zero_in_the_three_state_encoding():
  schema = dataclasses.replace(SMALL, encoding='three_state')
  np.testing.assert_allclose(schema.encode_query({'gender': 'male'}), [-1, 0, 0, 0])
  np.testing.assert_allclose(schema.encode_query({'color': 'red'}), [0, 1, -1, 0])
  np.testing.assert_allclose(schema.encode_query({'color': '!red', 'hat': '!no'}), [0, -1, 0, 1])


@pytest.mark.parametrize('encoding', ['binary', 'three_state'])
def test_bits_survive_the_encoding(encoding):
  schema = dataclasses.replace(peta.SCHEMA, encoding=encoding)
  bits = np.random.default_rng(1).integers(0, 2, (20, schema.size))
  np.testing.assert_array_equal(schema.to_bits(schema.from_bits(bits)), bits)


@pytest.mark.parametrize('schema', [*SCHEMAS, SMALL], ids=lambda schema: schema.name)
def test_a_schema_survives_json(schema):
  again = AttributeSchema.from_json(json.dumps(schema.to_json()))
  assert again == schema
  assert again.column_names == schema.column_names


@pytest.mark.parametrize('text', ['nonsense', '{}', '{"name": "x", "attributes": 3}', '[1]'])
def test_other_json_is_no_schema(text):
  with pytest.raises(ValueError, match='not an attribute schema'):
    AttributeSchema.from_json(text)


@pytest.mark.parametrize(
  ('query', 'message'),
  [
    ({}, 'names no attribute'),
    ({'gendre': 'male'}, "Unknown attribute: 'gendre'. Did you mean 'gender'"),
    ({'color': 'bleu'}, "Unknown value of 'color': 'bleu'. Did you mean 'blue'"),
    ({'gender': 'none'}, "Unknown value of 'gender': 'none'"),
    ({'color': '!none'}, 'name one'),
    ({'color': '!red+blue'}, 'excludes several values at once'),
    ({'color': 'red+none'}, 'contradicts itself'),
    ({'gender': 'male+female'}, 'contradicts itself'),
    ({'hat': '!!yes'}, "Unknown value of 'hat': '!yes'"),
    ({'hat': 'y' * 1001}, 'A value has 1,001 characters; at most 1,000'),
  ],
)
def test_what_a_query_cannot_say_is_an_error(query, message):
  with pytest.raises(ValueError, match=message):
    SMALL.encode_query(query)


def test_annotations_that_do_not_fit_are_errors():
  frame = small_frame()
  with pytest.raises(ValueError, match=r"Missing: \['hat'\]; not known: none"):
    AttributeTable(SMALL, frame.drop(columns='hat'))
  with pytest.raises(ValueError, match=r"not known: \['shoes'\]"):
    AttributeTable(SMALL, frame.assign(shoes=1))
  with pytest.raises(ValueError, match="person 'a' is annotated 2 times"):
    AttributeTable(SMALL, frame.rename(index={'b': 'a'}))
  frame.loc['c', 'sex'] = 3
  with pytest.raises(
    ValueError, match="here: column 'sex' of person 'c' is 3; legal values are 1, 2"
  ):
    AttributeTable(SMALL, frame, source='here')


def test_a_missing_annotation_is_an_error_that_names_the_person():
  frame = small_frame().astype(float)
  frame.loc['d', 'isred'] = np.nan
  with pytest.raises(ValueError, match="column 'isred' of person 'd' is nan"):
    AttributeTable(SMALL, frame)


def test_a_schema_that_contradicts_itself_is_an_error():
  with pytest.raises(ValueError, match='needs two values'):
    Attribute('age', ('young', 'adult', 'old'), (('age', 1),))
  with pytest.raises(ValueError, match='3 values but 2 columns'):
    Attribute('age', ('young', 'adult', 'old'), (('age', 1), ('age', 2)))
  with pytest.raises(ValueError, match=r"words for unknown values \['maybe'\]"):
    Attribute('hat', ('no', 'yes'), (('hat', 1),), {'maybe': ('hat',)})
  with pytest.raises(ValueError, match="value 3 of column 'hat'"):
    AttributeSchema('s', (Attribute('hat', ('no', 'yes'), (('hat', 3),)),), {'hat': (0, 1)})
  with pytest.raises(ValueError, match="encoding 'ternary'"):
    dataclasses.replace(SMALL, encoding='ternary')
  with pytest.raises(ValueError, match='2 rates for 4 columns'):
    dataclasses.replace(SMALL, rates=(0.5, 0.5))


@pytest.mark.parametrize(
  ('dataset', 'encoding'), [('market', 'binary'), ('duke', 'three_state'), ('peta', 'binary')]
)
def test_every_description_that_is_written_can_be_read(shared_data, dataset, encoding):
  """Also those of two colours at once: 20 of 387 descriptions of Duke, 330 of 2,090 of PETA."""
  module = {'market': market1501, 'duke': dukemtmc, 'peta': peta}[dataset]
  schema = dataclasses.replace(module.SCHEMA, encoding=encoding)
  path = shared_data / module.ANNOTATION_FILE
  if dataset == 'peta':
    frames = [peta.read_peta_mat(path).drop_duplicates()]
  else:
    frames = list(reid_folder.read_attribute_mat(path, module.VARIABLE).values())
  vectors = np.concatenate([AttributeTable(schema, frame).vectors() for frame in frames])
  several = 0
  for i, vector in enumerate(np.unique(vectors, axis=0)):
    description = schema.describe(vector)
    here = any('+' in value for value in description.values())
    several += here
    assert np.array_equal(schema.encode_query(description), vector)
    if i % 40 and not (here and several % 10 == 1):
      continue  # reading the text takes longer
    text = ', '.join(f'{name}={value}' for name, value in description.items())
    assert words.parse(text, schema) == description
  assert several > {'market': -1, 'duke': 19, 'peta': 300}[dataset]


def test_what_a_query_says_is_read_in_one_place():
  read = SMALL.read_query({'color': ' blue + red', 'gender': '!male', 'hat': IsNot('yes')})
  assert read == {'color': Is(('blue', 'red')), 'gender': IsNot('male'), 'hat': IsNot('yes')}
  assert [str(statement) for statement in read.values()] == ['blue+red', '!male', '!yes']
  np.testing.assert_array_equal(SMALL.encode_query(read), [1, 1, 1, 0])
  assert SMALL.read_query({'color': 'red+red'}) == {'color': Is(('red',))}


def test_accents_may_stand_apart():
  schema = AttributeSchema(
    'accents', (Attribute('été', ('clair', 'foncé'), (('a', 1),)),), {'a': (0, 1)}
  )
  for name in ('été', 'e\u0301te\u0301'):
    assert schema.attribute(name).name == 'été'
    for value in ('foncé', 'fonce\u0301'):
      np.testing.assert_array_equal(schema.encode_query({name: value}), [1])
  with pytest.raises(ValueError, match='asked for twice'):
    schema.encode_query({'été': 'clair', 'e\u0301te\u0301': 'clair'})
