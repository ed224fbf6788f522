from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pandas as pd
import pytest

from tfreid.data.attributes import Attribute, AttributeSchema, AttributeTable
from tfreid.data.benchmark import ImageRecord, assemble, join

SCHEMA = AttributeSchema(
  name='toy',
  attributes=(
    Attribute('hat', ('no', 'yes'), (('hat', 2),)),
    Attribute('color', ('red', 'blue', 'green'), (('red', 2), ('blue', 2), ('green', 2))),
  ),
  raw_values={'hat': (1, 2), 'red': (1, 2), 'blue': (1, 2), 'green': (1, 2)},
)


def table(people):
  """People by id, each as (hat, red, blue, green)."""
  frame = pd.DataFrame.from_dict(people, orient='index', columns=list(SCHEMA.raw_values))
  return AttributeTable(SCHEMA, frame)


def records(*people):
  return [ImageRecord(f'/x/{i}.jpg', person, i % 3) for i, person in enumerate(people)]


TRAIN = {'p1': (1, 2, 1, 1), 'p2': (2, 1, 2, 1), 'p3': (1, 2, 1, 1), 'p4': (2, 2, 1, 1)}
TEST = {'q1': (2, 1, 2, 1), 'q2': (1, 1, 1, 2)}


def toy(**kwargs):
  train = join(records('p1', 'p2', 'p2', 'p3'), table(TRAIN), source='toy train')
  test = join(records('q2', 'q1', 'q2'), table(TEST), source='toy test')
  return assemble('toy', SCHEMA, train, test, **kwargs)


def test_join_gives_each_image_the_row_of_its_person_in_the_order_of_the_images():
  split = join(records('p2', 'p1', 'p2'), table(TRAIN), source='toy')
  assert list(split.paths) == ['/x/0.jpg', '/x/1.jpg', '/x/2.jpg']
  assert list(split.person_ids) == ['p2', 'p1', 'p2']
  assert list(split.cameras) == [0, 1, 2]
  np.testing.assert_array_equal(split.attributes, [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0]])
  assert [split.keys[i] for i in split.semantic_ids] == [TRAIN['p2'], TRAIN['p1'], TRAIN['p2']]
  assert split.attributes.dtype == np.float32
  assert split.semantic_ids.dtype == np.int64
  assert split.cameras.dtype == np.int32


def test_join_does_not_depend_on_the_order_of_the_table():
  backwards = dict(reversed(list(TRAIN.items())))
  one = join(records('p2', 'p4', 'p1'), table(TRAIN), source='toy')
  other = join(records('p2', 'p4', 'p1'), table(backwards), source='toy')
  np.testing.assert_array_equal(one.attributes, other.attributes)
  np.testing.assert_array_equal(one.semantic_ids, other.semantic_ids)


def test_equal_people_share_a_semantic_id_and_absent_ones_have_none(caplog):
  with caplog.at_level(logging.INFO):
    split = join(
      records('p1', 'p3', '-1', 'p2', '0000'), table(TRAIN), source='toy', dropped={'not a crop': 1}
    )
  assert split.semantic_ids[0] == split.semantic_ids[1]
  # p4 has no image: its combination would be a class that never occurs.
  assert set(split.keys) == {TRAIN['p1'], TRAIN['p2']}
  assert sorted(set(split.semantic_ids)) == [0, 1]
  assert split.dropped == {'not a crop': 1, 'not annotated': 2}
  assert 'toy: 1 of 4 annotated people have no image' in caplog.text
  assert 'toy: 2 images left out (not annotated)' in caplog.text


def test_images_and_annotations_of_different_data_are_an_error():
  with pytest.raises(ValueError, match='toy is empty: 2 images were found, none of which belongs'):
    join(records('x1', 'x2'), table(TRAIN), source='toy')


def test_queries_are_the_combinations_once_each():
  vectors, ids = toy().test.queries()
  np.testing.assert_array_equal(ids, [0, 1])
  # In sorted order of the raw combinations: (1, 1, 1, 2), then (2, 1, 2, 1).
  np.testing.assert_array_equal(vectors, [[0, 0, 0, 1], [1, 0, 1, 0]])


def test_seen_compares_combinations_not_numbers():
  benchmark = toy()
  assert list(benchmark.seen()) == [False, True]
  assert list(benchmark.seen(benchmark.train)) == [True, True]


def test_subset_numbers_semantic_ids_anew():
  split = join(records('p1', 'p2', 'p4', 'p4'), table(TRAIN), source='toy')
  subset = split.subset(np.array([3, 1]))
  assert list(subset.person_ids) == ['p4', 'p2']
  assert sorted(subset.semantic_ids) == [0, 1]
  assert [subset.keys[i] for i in subset.semantic_ids] == [TRAIN['p4'], TRAIN['p2']]


def test_rates_are_the_shares_of_the_training_images():
  benchmark = toy()
  # p1 (red), p2 twice (hat, blue), p3 (red).
  np.testing.assert_allclose(benchmark.schema.rates, [0.5, 0.5, 0.5, 0.0])


def test_spec_has_the_sizes_of_the_training_data():
  spec = toy().spec([16, 8, 3])
  assert spec.image_shape == (16, 8, 3)
  assert spec.attribute_names == ('hat', 'color=red', 'color=blue', 'color=green')
  assert spec.num_attributes == 4
  assert spec.num_semantic_ids == 2
  assert spec.num_images == 4
  assert spec.attribute_rates == (0.5, 0.5, 0.5, 0.0)


def many():
  """40 people in 20 combinations, two images each."""
  rng = np.random.default_rng(3)
  combinations = [
    (1 + (i & 1), 1 + (i >> 1 & 1), 1 + (i >> 2 & 1), 1 + (i >> 3 & 1)) for i in range(16)
  ]
  people = {f'p{i}': combinations[i % 16] for i in range(48)}
  order = rng.permutation(np.repeat(list(people), 2))
  return join(records(*order), table(people), source='many')


def test_no_image_is_held_out_unless_asked():
  assert toy().validation is None
  assert len(toy().train) == 4


def test_validation_holds_out_whole_semantic_ids():
  train = many()
  test = join(records('q1'), table(TEST), source='toy test')
  benchmark = assemble('many', SCHEMA, train, test, validation_share=0.25, seed=1)
  assert len(benchmark.validation.keys) == 4
  assert len(benchmark.train.keys) == 12
  assert not set(benchmark.validation.keys) & set(benchmark.train.keys)
  assert not benchmark.seen(benchmark.validation).any()
  paths = [*benchmark.train.paths, *benchmark.validation.paths]
  assert sorted(paths) == sorted(train.paths)
  assert sorted(set(benchmark.train.semantic_ids)) == list(range(12))
  for split in (benchmark.train, benchmark.validation):
    for vector, semantic_id in zip(split.attributes, split.semantic_ids):
      assert tuple(int(bit) + 1 for bit in vector) == split.keys[semantic_id]
  np.testing.assert_allclose(benchmark.schema.rates, benchmark.train.attributes.mean(axis=0))


def test_validation_is_drawn_by_the_seed():
  train, test = many(), join(records('q1'), table(TEST), source='toy test')

  def held_out(seed):
    benchmark = assemble('many', SCHEMA, train, test, validation_share=0.25, seed=seed)
    return benchmark.validation.keys

  assert held_out(1) == held_out(1)
  assert len({held_out(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize('share', [-0.1, 1.0, 1.5])
def test_a_share_out_of_range_is_an_error(share):
  with pytest.raises(ValueError, match='must be in'):
    toy(validation_share=share)


def test_a_share_that_leaves_a_side_empty_is_an_error():
  with pytest.raises(ValueError, match='leaves one side empty'):
    toy(validation_share=0.1)


def test_two_validation_splits_are_an_error():
  ready = join(records('p1'), table(TRAIN), source='toy')
  assert toy(validation=ready).validation is ready
  with pytest.raises(ValueError, match='validation split of its own'):
    toy(validation=ready, validation_share=0.5)


def test_three_state_vectors_give_the_same_rates():
  schema = dataclasses.replace(SCHEMA, encoding='three_state')
  frame = table(TRAIN).frame
  train = join(records('p1', 'p2'), AttributeTable(schema, frame), source='toy')
  test = join(records('p4'), AttributeTable(schema, frame), source='toy')
  assert set(np.unique(train.attributes)) == {-1.0, 1.0}
  assert assemble('toy', schema, train, test).schema.rates == (0.5, 0.5, 0.5, 0.0)
