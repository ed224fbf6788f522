from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tfreid.data import (
  correspondence,
  dukemtmc,
  market1501,
  peta,
  reid_folder,
  shared_attributes,
  words,
)
from tfreid.data.attributes import AttributeSchema, AttributeTable
from tfreid.data.benchmark import ImageRecord, join
from tfreid.data.correspondence import DUKE, MARKET, PETA

LOADERS = {PETA: peta, MARKET: market1501, DUKE: dukemtmc}
BOTH = ('peta', 'market1501')


@pytest.fixture(scope='session')
def annotations(shared_data):
  """The tables of the real files: by data set and half."""
  tables = {(PETA, 'all'): peta.read_peta_mat(shared_data / 'PETA.mat')}
  for module in (market1501, dukemtmc):
    path = shared_data / module.ANNOTATION_FILE
    for half, frame in reid_folder.read_attribute_mat(path, module.VARIABLE).items():
      tables[module.NAME, half] = frame
  return tables


def states(frame, module, shared):
  rows = frame[list(module.SCHEMA.raw_values)].to_numpy()
  return shared_attributes.read(rows, module.SCHEMA, shared)


def column(rows, shared, name):
  return rows[:, shared.column_names.index(name)]


def split_of(module, people, *, encoding='binary'):
  """A Split of people without pictures: for each a dict of raw values, the others off."""
  schema = dataclasses.replace(module.SCHEMA, encoding=encoding)
  off = {raw: min(values) for raw, values in schema.raw_values.items()}
  import pandas as pd

  frame = pd.DataFrame(
    [{**off, **person} for person in people], index=[f'{i:04d}' for i in range(len(people))]
  )
  records = [ImageRecord(f'{person}.png', person, 0) for person in frame.index]
  return join(records, AttributeTable(schema, frame), source='people')


# The table.


@pytest.mark.parametrize('entry', correspondence.TABLE, ids=lambda entry: entry.name)
def test_the_table_names_columns_and_values_that_there_are(entry):
  assert entry.readings
  assert set(entry.words) <= set(entry.values)
  for name, reading in entry.readings.items():
    raw = LOADERS[name].SCHEMA.raw_values
    assert set(reading.values) <= set(entry.values)
    assert reading.certainty in correspondence.CERTAINTIES
    said = [pair for pairs in reading.values.values() for pair in pairs]
    assert len(set(said)) == len(said)
    assert all(value in raw[column] for column, value in (*said, *reading.leaves_open))
    if reading.certainty != correspondence.SAME:
      assert reading.note or entry.name in ('hair', 'lower_length', 'lower_type', 'shoes')


@pytest.mark.parametrize(
  ('names', 'least', 'columns', 'attributes'),
  [
    (BOTH, None, 29, 11),
    (('peta', 'dukemtmc'), None, 21, 8),
    (('market1501', 'dukemtmc'), None, 18, 7),
    (('peta', 'market1501', 'dukemtmc'), None, 17, 6),
    (BOTH, 1, 65, 28),
  ],
)
def test_schemas_have_what_is_shared_and_a_vocabulary(names, least, columns, attributes):
  schema = shared_attributes.schema(names, least=least)
  assert (schema.size, len(schema.attributes)) == (columns, attributes)
  table = words.phrases(schema)
  assert table['red top'] == ('upper_color', 'red')
  assert AttributeSchema.from_json(schema.to_json()) == schema


def test_names_that_are_not_in_the_table_are_refused():
  with pytest.raises(ValueError, match="'cuhk' is not in the table .* peta, market1501, dukemtmc"):
    shared_attributes.schema(['cuhk'])
  with pytest.raises(ValueError, match='Name different data sets'):
    shared_attributes.schema(['peta', 'PETA'])
  other = dataclasses.replace(peta.SCHEMA, attributes=peta.SCHEMA.attributes[:3])
  with pytest.raises(ValueError, match='not in the table'):
    shared_attributes.read(np.zeros([1, 105]), other, shared_attributes.schema(BOTH))


# The real files.


def test_counts_of_the_real_files_are_those_of_the_columns(annotations):
  shared = shared_attributes.schema(BOTH)
  frame = annotations[PETA, 'all']
  rows = states(frame, peta, shared)
  assert rows.shape == (19000, 29)
  assert (column(rows, shared, 'hat') == 1).sum() == frame['accessoryHat'].sum()
  assert (column(rows, shared, 'gender') == 1).sum() == frame['personalFemale'].sum()
  assert (column(rows, shared, 'gender') == 0).sum() == 1
  # 433 have neither length of hair, 6 both; 326 wear capri pants.
  assert (column(rows, shared, 'hair') == 0).sum() == 439
  assert (column(rows, shared, 'lower_length') == 0).sum() == 326 + 7 + 51
  # A pink top is nothing that Market names, so nothing is said of red.
  pink = (frame['upperBodyPink'] == 1) & (frame['upperBodyRed'] == 0)
  assert set(column(rows, shared, 'upper_color=red')[pink]) == {0}
  assert set(column(rows, shared, 'upper_color=green')[pink & (frame['upperBodyGreen'] == 0)]) == {
    -1
  }
  for half, people in (('train', 751), ('test', 750)):
    frame = annotations[MARKET, half]
    rows = states(frame, market1501, shared)
    assert rows.shape == (people, 29)
    assert (column(rows, shared, 'gender') == 1).sum() == (frame['gender'] == 2).sum()
    assert (column(rows, shared, 'sleeves') == 1).sum() == (frame['up'] == 2).sum()
    unsaid = (column(rows, shared, 'upper_color=black') == 0).sum()
    assert unsaid == {'train': 78, 'test': 69}[half]


@pytest.mark.parametrize(
  ('names', 'source', 'complete', 'ids'),
  [
    (BOTH, (PETA, 'all'), 16034, 2020),
    (BOTH, (MARKET, 'train'), 649, 405),
    (BOTH, (MARKET, 'test'), 647, 377),
    (('peta', 'dukemtmc'), (DUKE, 'test'), 1085, 317),
  ],
)
def test_how_many_say_everything(annotations, names, source, complete, ids):
  shared = shared_attributes.schema(names)
  rows = states(annotations[source], LOADERS[source[0]], shared)
  whole = rows[(rows != 0).all(axis=1)]
  assert (len(whole), len(np.unique(whole, axis=0))) == (complete, ids)


@pytest.mark.parametrize('name', [PETA, MARKET])
@pytest.mark.parametrize('encoding', ['binary', 'three_state'])
def test_asking_a_data_set_in_its_own_terms_contradicts_nobody(annotations, name, encoding):
  """What a shared description says on is on, and what it says off is off, of whom it is made."""
  shared = shared_attributes.schema(BOTH)
  module = LOADERS[name]
  frame = next(frame for key, frame in annotations.items() if key[0] == name).iloc[::50]
  model = dataclasses.replace(module.SCHEMA, encoding=encoding, rates=(0.37,) * module.SCHEMA.size)
  rows = states(frame, module, shared)
  asked = shared_attributes.vectors(rows, shared, model)
  true = model.encode(frame)
  on, off = (1.0, -1.0) if encoding == 'three_state' else (1.0, 0.0)
  sure = (asked == on) | (asked == off)
  assert (asked[sure] == true[sure]).all()
  # Not by saying nothing: on average at least this many columns of the data set are certain.
  assert sure.sum(axis=1).mean() > {PETA: 25, MARKET: 24}[name]


# One person after the other.


def test_a_market_person_is_asked_in_petas_terms():
  shared = shared_attributes.schema(BOTH)
  person = {'age': 4, 'gender': 2, 'hair': 2, 'up': 2, 'down': 2, 'clothes': 1, 'bag': 2}
  market = split_of(market1501, [{**person, 'upred': 2, 'downblack': 2}])
  rates = np.full(105, 0.25, np.float32)
  places = {
    raw: i for i, (raw, _) in enumerate(p for a in peta.SCHEMA.attributes for p in a.columns)
  }
  rates[places['upperBodyShortSleeve']], rates[places['upperBodyNoSleeve']] = 0.3, 0.1
  model = dataclasses.replace(peta.SCHEMA, rates=tuple(map(float, rates)))
  split, labels = shared_attributes.asked(market, market1501.SCHEMA, shared, model)
  said = dict(zip(places, split.attributes[0]))
  for raw, value in {
    'personalLarger60': 1,
    'personalLess30': 0,
    'personalFemale': 1,
    'personalMale': 0,
    'hairLong': 1,
    'hairShort': 0,
    'upperBodyLongSleeve': 0,
    'upperBodyShortSleeve': 0.75,  # or sleeveless: three to one in training
    'upperBodyNoSleeve': 0.25,
    'lowerBodyTrousers': 0,
    'lowerBodyShortSkirt': 1,  # the one that is short and a skirt
    'lowerBodyLongSkirt': 0,
    'upperBodyRed': 1,
    'upperBodyBlack': 0,
    'upperBodyPink': 0.25,  # may have been called red: the training rate
    'carryingMessengerBag': 1,
    'accessoryHat': 0,
    'accessoryMuffler': 0.25,  # Market does not tell
  }.items():
    assert said[raw] == pytest.approx(value), raw
  assert labels.attributes.shape == (1, 29)
  three = dataclasses.replace(model, encoding='three_state')
  split, _ = shared_attributes.asked(market, market1501.SCHEMA, shared, three)
  said = dict(zip(places, split.attributes[0]))
  assert [said[raw] for raw in ('personalLarger60', 'hairShort', 'accessoryMuffler')] == [1, -1, 0]
  assert (said['upperBodyShortSleeve'], said['upperBodyLongSleeve']) == (0, -1)


def test_a_peta_person_is_asked_in_markets_terms():
  shared = shared_attributes.schema(BOTH)
  said = ('personalLess60', 'personalMale', 'hairShort', 'upperBodyNoSleeve', 'lowerBodyShorts')
  person = dict.fromkeys((*said, 'upperBodyGreen', 'lowerBodyGrey', 'carryingBackpack'), 1)
  split, _ = shared_attributes.asked(
    split_of(peta, [person]), peta.SCHEMA, shared, market1501.SCHEMA
  )
  described = market1501.SCHEMA.describe(split.attributes[0])
  assert described == {
    'age': 'adult',
    'gender': 'male',
    'hair': 'short',
    'sleeves': 'short',
    'lower_length': 'short',
    'lower_type': 'pants',
    'hat': 'no',
    'backpack': 'yes',
    'bag': 'no',
    'handbag': 'no',  # of the rate 0.5, which is not above it
    'upper_color': 'green',
    'lower_color': 'gray',
  }
  block = market1501.SCHEMA.block('handbag')
  assert split.attributes[0, block] == 0.5


def test_incomplete_people_are_left_out_of_what_is_searched_and_counted():
  shared = shared_attributes.schema(BOTH)
  said = dict.fromkeys(
    ('personalLess30', 'personalMale', 'hairShort', 'upperBodyLongSleeve', 'lowerBodyJeans'), 1
  )
  whole = {**said, 'upperBodyBlue': 1, 'lowerBodyBlue': 1}
  bald = {**whole, 'hairShort': 0, 'hairBald': 1}
  pink = {**whole, 'upperBodyBlue': 0, 'upperBodyPink': 1}
  split = split_of(peta, [whole, bald, pink, {**whole, 'upperBodyLogo': 1}])
  with pytest.raises(ValueError, match='cannot leave an attribute unsaid'):
    shared_attributes.view(
      split, peta.SCHEMA, dataclasses.replace(shared, encoding='binary'), complete=False
    )
  found = shared_attributes.view(split, peta.SCHEMA, shared, complete=True)
  assert list(found.paths) == ['0000.png', '0003.png']
  # A logo is nothing that both name: the two are one description now.
  assert list(found.semantic_ids) == [0, 0] and len(found.keys) == 1
  assert found.dropped == {shared_attributes.INCOMPLETE: 2}
  kept = shared_attributes.view(split, peta.SCHEMA, shared)
  assert len(kept) == 4 and len(kept.keys) == 3
  assert kept.attributes[1, shared.column_names.index('hair')] == 0.0


def test_keys_of_two_data_sets_compare():
  shared = shared_attributes.schema(BOTH)
  said = ('personalLess30', 'personalFemale', 'hairLong', 'upperBodyShortSleeve')
  left = split_of(
    peta, [dict.fromkeys((*said, 'lowerBodyShortSkirt', 'upperBodyWhite', 'lowerBodyBlue'), 1)]
  )
  person = {'age': 2, 'gender': 2, 'hair': 2, 'up': 2, 'down': 2, 'clothes': 1}
  right = split_of(market1501, [{**person, 'upwhite': 2, 'downblue': 2}])
  keys = [
    shared_attributes.view(split, module.SCHEMA, shared).keys
    for split, module in ((left, peta), (right, market1501))
  ]
  assert keys[0] == keys[1]


def test_a_model_of_shared_attributes_is_asked_by_their_names():
  shared = shared_attributes.schema(BOTH)
  wide = dataclasses.replace(shared_attributes.schema(BOTH, least=1), name='another name')
  row = np.zeros((1, shared.size), np.int8)
  row[0, shared.column_names.index('hat')] = 1
  row[0, shared.column_names.index('gender')] = -1
  vector = shared_attributes.vectors(row, shared, wide)[0]
  assert {name: v for name, v in zip(wide.column_names, vector) if v} == {'hat': 1, 'gender': -1}
  with pytest.raises(ValueError, match='not in the table'):
    shared_attributes.vectors(
      row, shared, dataclasses.replace(peta.SCHEMA, attributes=peta.SCHEMA.attributes[:2])
    )


def test_a_data_set_can_be_loaded_in_shared_attributes(tiny_market):
  shared = shared_attributes.schema(BOTH)
  benchmark = shared_attributes.load(lambda: market1501.load(tiny_market), names=BOTH)
  plain = market1501.load(tiny_market)
  assert benchmark.schema.column_names == shared.column_names
  assert len(benchmark.train) == len(plain.train)
  assert (benchmark.test.attributes != 0).all()
  lost = benchmark.test.dropped.get(shared_attributes.INCOMPLETE, 0)
  assert len(benchmark.test) + lost == len(plain.test)
  said = (benchmark.train.attributes != 0).sum(axis=0)
  on = (benchmark.train.attributes > 0).sum(axis=0)
  np.testing.assert_allclose(benchmark.schema.rates, on / np.maximum(said, 1))
  binary = shared_attributes.load(lambda: market1501.load(tiny_market), encoding='binary')
  assert set(np.unique(binary.train.attributes)) == {0.0, 1.0}
