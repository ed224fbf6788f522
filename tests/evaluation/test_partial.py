from __future__ import annotations

import csv
import io
import itertools
import json

import numpy as np
import pytest
import rich.console
import tensorflow as tf
from PIL import Image
from sklearn.metrics import average_precision_score

from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.data.benchmark import Split
from tfreid.evaluation import partial, retrieval
from tfreid.joint_space import JointSpace

ATTRIBUTES = (
  Attribute('gender', ('male', 'female'), (('gender', 2),)),
  Attribute('hat', ('no', 'yes'), (('hat', 2),)),
  Attribute('bag', ('no', 'yes'), (('bag', 2),)),
  Attribute('color', ('red', 'green', 'blue'), (('red', 1), ('green', 1), ('blue', 1))),
)
RAW_VALUES = dict.fromkeys(('gender', 'hat', 'bag'), (1, 2))
RAW_VALUES.update(dict.fromkeys(('red', 'green', 'blue'), (0, 1)))


def make_schema(encoding):
  rates = (0.4, 0.1, 0.3, 0.5, 0.2, 0.2) if encoding == 'binary' else ()
  return AttributeSchema('Depot', ATTRIBUTES, RAW_VALUES, encoding, rates)


@pytest.fixture(scope='module', params=['binary', 'three_state'])
def schema(request):
  return make_schema(request.param)


@pytest.fixture(scope='module')
def split(schema):
  rng = np.random.default_rng(0)
  people, images = 15, 60
  bits = np.concatenate(
    [rng.integers(0, 2, (people, 3)), np.eye(3)[rng.integers(0, 3, people)]], axis=1
  )
  keys, ids = np.unique(bits, axis=0, return_inverse=True)
  person = rng.permutation(np.arange(images) % people)
  return Split(
    paths=np.asarray([f'{i}.jpg' for i in range(images)]),
    attributes=schema.from_bits(bits[person]),
    semantic_ids=ids.reshape(-1)[person].astype(np.int64),
    person_ids=person.astype(str),
    cameras=np.ones(images, np.int32),
    keys=tuple(tuple(int(v) for v in key) for key in keys),
  )


@pytest.fixture(scope='module')
def oracle(schema):
  """Compares by -|q - g|^2 = 2 q.g - |q|^2 - |g|^2: what is said decides, nothing else is known.

  The squares of the query shift all its scores alike and are left out.
  """
  vector = tf.keras.Input([schema.size])
  encoded = tf.keras.layers.Concatenate()([2.0 * vector, -tf.ones_like(vector[:, :1])])
  pixels = tf.keras.Input([1, 1, 3])
  side = tf.keras.layers.Dense(schema.size + 1)(tf.keras.layers.Flatten()(pixels))
  return JointSpace(tf.keras.Model(pixels, side), tf.keras.Model(vector, encoded))


@pytest.fixture(scope='module')
def gallery(split):
  squares = (split.attributes**2).sum(axis=1, keepdims=True)
  return np.concatenate([split.attributes, squares], axis=1).astype(np.float32)


@pytest.fixture(scope='module')
def noisy(gallery):
  return gallery + np.random.default_rng(1).normal(0, 0.7, gallery.shape).astype(np.float32)


def test_with_all_attributes_the_curve_is_the_ordinary_evaluation(oracle, split, schema, noisy):
  vectors, ids = split.queries()
  queries = retrieval.embed_attributes(oracle, vectors)
  want = retrieval.evaluate_embeddings(
    retrieval.Embeddings(queries, noisy, ids, split.semantic_ids)
  )
  found = partial.curve(oracle, split, noisy, schema=schema, counts=['all'])
  (point,) = found.points
  assert (point.attributes, point.draws) == (4, 1)
  assert point.summary == want.overall
  assert point.mAP.mean == pytest.approx(want.overall.mAP)
  assert 0.1 < want.overall.mAP < 0.95
  # Here a semantic ID is a vector of attributes, so both readings of "right" are the same.
  said = partial.curve(oracle, split, noisy, schema=schema, counts=['all'], relevance='said')
  assert said.points[0].summary == want.overall


def test_an_oracle_finds_all_that_agrees_with_what_was_said(oracle, split, schema, gallery):
  # In the three-state encoding 0 is equally far from -1 and +1, so only what is said ranks. In the
  # binary one the rates rank among those that agree, and for one attribute across them.
  found = partial.curve(oracle, split, gallery, schema=schema, draws=3, relevance='said')
  assert [point.attributes for point in found.points] == [1, 2, 3, 4]
  assert [point.draws for point in found.points] == [3, 3, 3, 1]
  assert found.points[-1].summary.mAP == 1.0
  if schema.encoding == 'three_state':
    assert all(point.summary.mAP == point.summary.rank1 == 1.0 for point in found.points)
  chances = [point.summary.chance_rank1 for point in found.points]
  assert chances == sorted(chances, reverse=True) and chances[0] > 2 * chances[-1]


# Not in the binary encoding, whose rates break the ties.
@pytest.mark.parametrize('schema', ['three_state'], indirect=True)
def test_an_oracle_confuses_only_what_agrees_when_the_identity_is_asked_for(
  oracle, split, schema, gallery
):
  """With ties in the order of the gallery, rank-1 says how often the first that agrees is right."""
  found = partial.curve(oracle, split, gallery, schema=schema, counts=[2], draws=4, seed=9)
  vectors, ids = split.queries()
  hits = []
  for order in partial._orders(len(vectors), 4, 4, 9):
    for query, identity, places in zip(vectors, ids, order):
      said = [column for column, g in enumerate(schema.groups) if places[g] < 2]
      agrees = (split.attributes[:, said] == query[said]).all(axis=1)
      hits.append(split.semantic_ids[np.flatnonzero(agrees)[0]] == identity)
  assert found.points[0].summary.rank1 == pytest.approx(np.mean(hits))
  assert 0 < np.mean(hits) < 1


def test_precision_is_that_of_scikit_learn_for_what_was_said(oracle, split, schema, noisy):
  found = partial.curve(oracle, split, noisy, schema=schema, counts=[1], draws=1, relevance='said')
  vectors, _ = split.queries()
  (order,) = partial._orders(len(vectors), 4, 1, 0)
  queries = partial.keep(vectors, order < 1, schema)
  similarity = oracle.encode_attributes(queries).numpy() @ noisy.T
  wanted = []
  for query, places, scores in zip(vectors, order, similarity):
    said = [column for column, g in enumerate(schema.groups) if places[g] == 0]
    agrees = (split.attributes[:, said] == query[said]).all(axis=1)
    wanted.append(average_precision_score(agrees, scores))
  assert found.points[0].summary.mAP == pytest.approx(np.mean(wanted), abs=1e-6)


def test_what_is_not_said_is_zero_or_the_rate(schema, split):
  vectors, _ = split.queries()
  said = np.zeros((len(vectors), 4), bool)
  said[:, [1, 3]] = True
  found = partial.keep(vectors, said, schema)
  np.testing.assert_array_equal(found[:, [1, 3, 4, 5]], vectors[:, [1, 3, 4, 5]])
  unsaid = [0.4, 0.3] if schema.encoding == 'binary' else [0, 0]
  np.testing.assert_allclose(found[:, [0, 2]], np.tile(unsaid, (len(vectors), 1)), rtol=1e-6)
  # As a person's query is encoded.
  for row, vector in zip(found, vectors):
    described = schema.describe(vector)
    query = {name: described[name] for name in ('hat', 'color')}
    np.testing.assert_array_equal(row, schema.encode_query(query))


def test_draws_are_seeded_and_what_few_attributes_say_more_attributes_say_too():
  orders = partial._orders(5, 4, 3, 7)
  for order in itertools.chain(*orders):
    assert sorted(order) == [0, 1, 2, 3]
  np.testing.assert_array_equal(partial._orders(5, 4, 2, 7), orders[:2])
  assert (partial._orders(5, 4, 3, 8) != orders).any()
  assert len({tuple(order) for order in itertools.chain(*orders)}) > 5
  # A count's result does not depend on the other counts: the same orders serve all.
  first = [set(np.flatnonzero(order < 2)) for order in orders[0]]
  more = [set(np.flatnonzero(order < 3)) for order in orders[0]]
  assert all(few < many for few, many in zip(first, more))


def test_a_point_does_not_depend_on_the_other_points(oracle, split, schema, noisy):
  alone = partial.curve(oracle, split, noisy, schema=schema, counts=[2], draws=3)
  among = partial.curve(oracle, split, noisy, schema=schema, counts=[3, '2', 1, 2], draws=3)
  assert [point.attributes for point in among.points] == [1, 2, 3]
  assert among.points[1] == alone.points[0]
  assert alone.points[0].summary.queries == 3 * len(split.keys)
  other = partial.curve(oracle, split, noisy, schema=schema, counts=[2], draws=3, seed=1)
  assert other.points[0].summary != alone.points[0].summary


def test_the_curve_is_a_table_a_file_and_a_picture(oracle, split, schema, noisy):
  found = partial.curve(oracle, split, noisy, schema=schema, counts=[1, 2, 'all'], resamples=200)
  rows = list(csv.DictReader(io.StringIO(found.to_csv())))
  data = json.loads(json.dumps(found.to_json(), allow_nan=False))
  assert (data['relevance'], data['num_attributes'], data['seed']) == ('identity', 4, 0)
  console = rich.console.Console(width=140, file=io.StringIO())
  console.print(found.table('Depot'))
  text = console.file.getvalue()
  for row, entry, point in zip(rows, data['points'], found.points):
    assert int(row['attributes']) == entry['attributes'] == point.attributes
    assert float(row['mAP']) == entry['mAP'] == point.summary.mAP
    assert entry['rank1_low'] <= entry['rank1'] <= entry['rank1_high']
    assert f'{point.attributes} of 4' in text and f'{100 * point.summary.mAP:.2f}' in text
  assert 'semantic ID of the full query' in text.replace('\n', ' ')
  pytest.importorskip('matplotlib', reason="needs the extra 'report'")
  picture = found.picture('Depot')
  assert picture == found.picture('Depot')
  pixels = np.asarray(Image.open(io.BytesIO(picture)).convert('RGB')).reshape(-1, 3)
  for color in ((0x1F, 0x4E, 0x8C), (0xB3, 0x26, 0x1E)):
    assert (pixels == color).all(axis=1).sum() > 100


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'counts': [5]}, "'5' is no number of attributes.*Depot has 4"),
    ({'counts': [0]}, "'0' is no number"),
    ({'counts': ['some']}, "'some' is no number"),
    ({'counts': []}, 'at least one number'),
    ({'draws': 0}, 'at least 1, not 0'),
    ({'relevance': 'person'}, "Unknown relevance 'person'"),
  ],
)
def test_what_cannot_be_asked_is_refused(oracle, split, schema, gallery, options, message):
  with pytest.raises(ValueError, match=message):
    partial.curve(oracle, split, gallery, schema=schema, **options)
  with pytest.raises(ValueError, match='59 embeddings for the 60 images'):
    partial.curve(oracle, split, gallery[1:], schema=schema)
