from __future__ import annotations

import io
import json
import tracemalloc

import numpy as np
import pytest
import rich.console
import tensorflow as tf
from sklearn.metrics import average_precision_score

from tfreid.data.benchmark import Split
from tfreid.evaluation import ranking, retrieval
from tfreid.evaluation.alignment import Alignment
from tfreid.joint_space import JointSpace

ATTRIBUTES = 6


@pytest.fixture(scope='module')
def space():
  """Both sides become the attributes as -1/+1, exactly; an image shows bit i in its column i.

  Vectors of one length, so equal attributes have the largest dot product; and integers, so that
  what ties in theory ties in floating point.
  """

  def signs(bits, weights):
    layer = tf.keras.layers.Dense(ATTRIBUTES)
    encoded = layer(bits)
    layer.set_weights([weights, -np.ones(ATTRIBUTES)])
    return encoded

  pixels = tf.keras.Input((1, ATTRIBUTES, 3))
  red = np.zeros((ATTRIBUTES * 3, ATTRIBUTES), np.float32)
  red[3 * np.arange(ATTRIBUTES), np.arange(ATTRIBUTES)] = 2.0 / 128.0
  attributes = tf.keras.Input((ATTRIBUTES,))
  return JointSpace(
    tf.keras.Model(pixels, signs(tf.keras.layers.Flatten()(pixels), red)),
    tf.keras.Model(attributes, signs(attributes, 2.0 * np.eye(ATTRIBUTES))),
  )


def make_split(rng, people=12, images=50):
  """A split of people with random attributes, and its images, which show the attributes."""
  bits = rng.integers(0, 2, (people, ATTRIBUTES)).astype(np.float32)
  keys, semantic_ids = np.unique(bits, axis=0, return_inverse=True)
  person = rng.permutation(np.arange(images) % people)
  pixels = np.zeros((images, 1, ATTRIBUTES, 3), np.float32)
  pixels[:, 0, :, 0] = 128.0 * bits[person]
  split = Split(
    paths=np.asarray([f'{i}.jpg' for i in range(images)]),
    attributes=bits[person],
    semantic_ids=semantic_ids.reshape(-1)[person].astype(np.int64),
    person_ids=person.astype(str),
    cameras=np.ones(images, np.int32),
    keys=tuple(map(tuple, keys)),
  )
  return split, pixels


def batches_of(pixels, size=8):
  return tf.data.Dataset.from_tensor_slices({'image': pixels}).batch(size)


def random_embeddings(rng, queries=30, gallery=200, size=5):
  return retrieval.Embeddings(
    rng.standard_normal((queries, size), np.float32),
    rng.standard_normal((gallery, size), np.float32),
    np.arange(queries),
    rng.integers(0, queries + 3, gallery),
  )


def test_an_oracle_space_scores_one_hundred_percent(space):
  split, pixels = make_split(np.random.default_rng(0))
  result = retrieval.evaluate(space, split, batches_of(pixels))
  assert result.overall[3:9] == (1.0,) * 6
  assert (result.overall.queries, result.overall.gallery) == (len(split.keys), 50)
  assert result.overall.chance_rank1 == pytest.approx(1 / len(split.keys))
  assert result.seen is None and result.unseen is None and result.is_seen is None


def test_metrics_are_those_of_the_dot_products_of_the_two_encoders(space):
  """The images are shuffled against the labels, so the numbers are far from 0 and 1."""
  rng = np.random.default_rng(1)
  split, pixels = make_split(rng)
  pixels = rng.permutation(pixels)
  result = retrieval.evaluate(space, split, batches_of(pixels))
  shown = 2.0 * (pixels[:, 0, :, 0] > 0) - 1.0
  attributes, ids = split.queries()
  scores = np.round((2.0 * attributes - 1.0) @ shown.T)
  order = np.argsort(-scores, axis=1, kind='stable')
  hits = split.semantic_ids[order] == ids[:, np.newaxis]
  assert result.overall.rank1 == hits[:, 0].mean()
  assert result.overall.rank5 == hits[:, :5].any(axis=1).mean()
  ranked = -np.arange(len(split))
  want = np.mean([average_precision_score(row, ranked) for row in hits])
  assert result.overall.mAP == pytest.approx(want)
  assert 0.05 < result.overall.mAP < 0.9


@pytest.mark.parametrize('block_size', [1, 4, 7, 30, 1000])
def test_the_size_of_the_blocks_changes_nothing(block_size):
  embeddings = random_embeddings(np.random.default_rng(2))
  whole = retrieval.evaluate_embeddings(embeddings)
  blocks = retrieval.evaluate_embeddings(embeddings, block_size=block_size)
  for got, want in zip(blocks.per_query, whole.per_query):
    np.testing.assert_allclose(got, want)


def test_memory_is_that_of_a_block_and_not_of_the_matrix():
  """The matrix would take 48 MB of float32 and its order 96 MB; a block takes 1.9 MB."""
  rng = np.random.default_rng(3)
  embeddings = random_embeddings(rng, queries=400, gallery=30000, size=2)
  tracemalloc.start()
  try:
    retrieval.evaluate_embeddings(embeddings, block_size=16)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 12e6


def test_seen_and_unseen_queries_are_the_parts_of_all():
  rng = np.random.default_rng(4)
  embeddings = random_embeddings(rng)
  seen = rng.random(30) < 0.4
  result = retrieval.evaluate_embeddings(embeddings, seen=seen)
  valid = result.per_query.num_matches > 0
  assert result.overall.skipped == np.count_nonzero(~valid)
  assert result.seen.queries == np.count_nonzero(valid & seen)
  assert result.seen.queries + result.unseen.queries == result.overall.queries
  assert result.seen.mAP == pytest.approx(result.per_query.average_precision[valid & seen].mean())
  together = result.seen.queries * result.seen.rank5 + result.unseen.queries * result.unseen.rank5
  assert together / result.overall.queries == pytest.approx(result.overall.rank5)


def test_a_subset_is_evaluated_as_a_data_set_of_its_own():
  rng = np.random.default_rng(0)
  split, _ = make_split(rng)
  _, ids = split.queries()
  embeddings = retrieval.Embeddings(
    rng.normal(size=(len(ids), 4)).astype(np.float32),
    rng.normal(size=(len(split), 4)).astype(np.float32),
    ids,
    split.semantic_ids,
  )
  subsets = np.where(np.arange(len(split)) % 3 == 0, 'third', 'others')
  found = retrieval.by_subset(embeddings, subsets)
  assert list(found) == ['others', 'third']
  similarity = embeddings.queries @ embeddings.gallery.T
  for name, summary in found.items():
    inside = subsets == name
    asked = np.flatnonzero(np.isin(ids, split.semantic_ids[inside]))
    precisions = [
      average_precision_score(split.semantic_ids[inside] == ids[q], similarity[q, inside])
      for q in asked
    ]
    assert (summary.queries, summary.gallery) == (len(asked), inside.sum())
    assert summary.mAP == pytest.approx(np.mean(precisions))
  with pytest.raises(ValueError, match=r'shape \[3\] for 50 images'):
    retrieval.by_subset(embeddings, subsets[:3])


def test_batches_may_be_plain_arrays_of_any_sizes(space):
  split, pixels = make_split(np.random.default_rng(5))
  want = retrieval.embed_images(space, batches_of(pixels), count=50)
  ragged = [pixels[:20], pixels[20:21], pixels[21:]]
  np.testing.assert_allclose(retrieval.embed_images(space, ragged), want, atol=1e-6)
  assert retrieval.embed_images(space, []).shape == (0, ATTRIBUTES)


def test_progress_is_told(space):
  split, pixels = make_split(np.random.default_rng(6))
  told = []
  retrieval.evaluate(
    space,
    split,
    batches_of(pixels, 20),
    progress=lambda done, count: told.append((done, count)),
  )
  assert told == [(20, 50), (40, 50), (50, 50)]


@pytest.mark.parametrize('given', [0, 48, 58])
def test_batches_that_are_not_the_split_are_refused(space, given):
  split, pixels = make_split(np.random.default_rng(7))
  images = np.concatenate([pixels, pixels])[:given]
  with pytest.raises(ValueError, match=f'held {given} images, but the split has 50'):
    retrieval.evaluate(space, split, batches_of(images) if given else [])


def test_images_of_another_size_are_refused(space):
  split, pixels = make_split(np.random.default_rng(8))
  with pytest.raises(ValueError, match=r'takes images of 1x6x3, but the batches hold 2x6x3'):
    retrieval.evaluate(space, split, batches_of(np.repeat(pixels, 2, axis=1)))


def test_attributes_of_another_data_set_are_refused(space):
  with pytest.raises(ValueError, match=r'6 columns, got the shape \[3, 5\]'):
    retrieval.embed_attributes(space, np.zeros((3, 5)))


def test_embeddings_that_are_not_finite_are_refused_with_their_place(space):
  split, pixels = make_split(np.random.default_rng(9))
  pixels[21, 0, 2, 0] = np.nan
  with pytest.raises(ValueError, match='embedding of image 21 is not finite'):
    retrieval.evaluate(space, split, batches_of(pixels))
  attributes = np.zeros((4, ATTRIBUTES))
  attributes[2] = np.inf
  with pytest.raises(ValueError, match='embedding of query 2 is not finite'):
    retrieval.embed_attributes(space, attributes)


def test_bad_settings_are_refused():
  embeddings = random_embeddings(np.random.default_rng(10))
  with pytest.raises(ValueError, match='block_size must be at least 1'):
    retrieval.evaluate_embeddings(embeddings, block_size=0)
  with pytest.raises(ValueError, match=r'shape \[3\] for 30 queries'):
    retrieval.evaluate_embeddings(embeddings, seen=np.ones(3, bool))
  nothing = embeddings._replace(queries=embeddings.queries[:0], query_ids=np.arange(0))
  with pytest.raises(ValueError, match='no queries'):
    retrieval.evaluate_embeddings(nothing)


def test_top_results_are_the_best_scores_in_order():
  embeddings = random_embeddings(np.random.default_rng(11))
  scores = embeddings.queries @ embeddings.gallery.T
  indices, similarities = retrieval.top_results(embeddings, 7, block_size=4)
  np.testing.assert_array_equal(indices, np.argsort(-scores, axis=1, kind='stable')[:, :7])
  np.testing.assert_allclose(similarities, -np.sort(-scores, axis=1)[:, :7], rtol=1e-5)


def test_graded_metrics_of_an_oracle_are_perfect_while_enough_images_match(space):
  split, pixels = make_split(np.random.default_rng(12))
  embeddings = retrieval.embed_split(space, split, batches_of(pixels))
  groups = (0, 0, 1, 2, 3, 4)
  graded = retrieval.graded(embeddings, split, groups=groups, k=1)
  np.testing.assert_array_equal(graded.violations, 0.0)
  np.testing.assert_allclose(graded.ndcg, 1.0)
  wrong = embeddings._replace(gallery=-embeddings.gallery)
  worst = retrieval.graded(wrong, split, groups=groups, k=1)
  assert worst.violations.mean() > 2 and worst.ndcg.mean() < 0.5


def test_distributions_hold_every_matching_pair_once():
  embeddings = random_embeddings(np.random.default_rng(13), queries=8, gallery=40)
  scores = embeddings.queries @ embeddings.gallery.T
  match = embeddings.query_ids[:, np.newaxis] == embeddings.gallery_ids
  got = retrieval.distributions(embeddings, samples=500)
  np.testing.assert_allclose(np.sort(got.matching), np.sort(scores[match]), rtol=1e-4, atol=1e-6)
  few = retrieval.distributions(embeddings, samples=11)
  assert len(few.matching) == len(few.non_matching) == 11
  nearest = np.abs(few.matching[:, np.newaxis] - scores[match])
  assert len(set(nearest.argmin(axis=1))) == 11 and nearest.min(axis=1).max() < 1e-5


def test_distributions_draw_every_non_matching_pair_equally_often():
  """12 queries x 9 images without the matches; at 40,000 draws a count deviates by about 20."""
  rng = np.random.default_rng(14)
  embeddings = random_embeddings(rng, queries=12, gallery=9)
  scores = embeddings.queries @ embeddings.gallery.T
  match = embeddings.query_ids[:, np.newaxis] == embeddings.gallery_ids
  assert match.any()
  drawn = retrieval.distributions(embeddings, samples=40000, seed=1).non_matching
  candidates = np.sort(scores[~match])
  nearest = np.abs(drawn[:, np.newaxis] - candidates)
  assert nearest.min(axis=1).max() < 1e-5
  counts = np.bincount(nearest.argmin(axis=1), minlength=len(candidates))
  expected = 40000 / len(candidates)
  assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_distributions_of_a_single_id_have_no_non_matching_pair():
  embeddings = random_embeddings(np.random.default_rng(15), queries=2, gallery=5)
  embeddings = embeddings._replace(query_ids=np.zeros(2, int), gallery_ids=np.zeros(5, int))
  got = retrieval.distributions(embeddings)
  assert len(got.matching) == 10 and len(got.non_matching) == 0


def shown(table):
  console = rich.console.Console(width=160, record=True, file=io.StringIO())
  console.print(table)
  return console.export_text()


def test_the_table_shows_the_numbers_in_percent():
  embeddings = random_embeddings(np.random.default_rng(16))
  seen = np.arange(30) < 10
  result = retrieval.evaluate_embeddings(embeddings, seen=seen)
  text = shown(result.table('Tiny'))
  assert 'Tiny' in text and 'Gallery of 200 images.' in text
  assert 'unseen queries (20)' in text
  columns = {
    cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
    for cells in (line.split('│') for line in text.splitlines() if '│' in line)
  }
  for heading, field in (('mAP', 'mAP'), ('rank-5', 'rank5'), ('chance mAP', 'chance_mAP')):
    assert columns[heading] == [
      f'{100 * getattr(part, field):.2f}' for part in (result.overall, result.seen, result.unseen)
    ]
  assert f'{100 * result.overall.mAP:.2f} %' in result.line()


def test_the_table_shows_intervals_that_hold_the_mean():
  result = retrieval.evaluate_embeddings(random_embeddings(np.random.default_rng(17)))
  text = shown(result.table(resamples=200))
  lines = {
    line.split('│')[1].strip(): line.split('│')[2].strip()
    for line in text.splitlines()
    if '│' in line
  }
  mean, interval = lines['mAP'].split('  ')
  low, high = (float(end) for end in interval.strip('[]').split('-'))
  assert low < float(mean) < high
  assert '[' not in lines['chance mAP']


def test_a_part_without_queries_shows_a_dash():
  result = retrieval.evaluate_embeddings(
    random_embeddings(np.random.default_rng(18)), seen=np.zeros(30, bool)
  )
  text = shown(result.table())
  row = next(line for line in text.splitlines() if 'rank-1 ' in line)
  assert ' seen queries (0)' in text and row.split('│')[3].strip() == '-'
  assert 'seen - %' in result.line()


def test_scalars_have_every_number_once():
  result = retrieval.evaluate_embeddings(
    random_embeddings(np.random.default_rng(19)), seen=np.arange(30) < 9
  )
  scalars = result.scalars()
  assert len(scalars) == 3 * len(ranking.Summary._fields) + len(Alignment._fields)
  assert scalars['alignment/probe_auc'] == result.alignment.probe_auc
  assert scalars['mAP'] == result.overall.mAP
  assert scalars['unseen/rank10'] == result.unseen.rank10


def test_json_holds_the_result_and_on_demand_each_query():
  result = retrieval.evaluate_embeddings(
    random_embeddings(np.random.default_rng(20), queries=40, gallery=60), seen=np.arange(40) < 9
  )
  data = json.loads(json.dumps(result.to_json(per_query=True), allow_nan=False))
  assert data['all']['mAP'] == result.overall.mAP
  assert data['seen']['queries'] == result.seen.queries
  back = np.asarray(data['per_query']['average_precision'], float)
  np.testing.assert_array_equal(back, result.per_query.average_precision)
  assert np.isnan(back).sum() == result.overall.skipped > 0
  assert 'per_query' not in result.to_json()
