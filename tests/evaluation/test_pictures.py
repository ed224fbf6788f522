from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.data.benchmark import Split
from tfreid.evaluation import pictures, retrieval
from tfreid.evaluation.retrieval import Distributions, Embeddings

BLUE = (0, 0, 255)


def schema(*, flags=('hat', 'bag')):
  """Binary attributes and a colour of three values: len(flags) + 3 columns."""
  attributes = tuple(Attribute(name, ('no', 'yes'), ((name, 1),)) for name in flags)
  colors = ('red', 'gray', 'pink')
  color = Attribute('upper_color', colors, tuple((f'up{color}', 1) for color in colors))
  raw = dict.fromkeys((*flags, *(f'up{color}' for color in colors)), (0, 1))
  return AttributeSchema('toy', (*attributes, color), raw)


def ranked(attributes, matches, **more):
  """A ranked result of blue images, asked for 'hat, red'."""
  count = len(matches)
  return pictures.ranked_result(
    more.pop('schema', schema()),
    np.asarray(more.pop('query', (1, 0, 1, 0, 0)), np.float32),
    [np.full((40, 20, 3), BLUE, np.uint8)] * count,
    attributes=np.asarray(attributes, np.float32),
    scores=np.linspace(1, 0, count),
    matches=np.asarray(matches),
    **more,
  )


def images_in(picture):
  """Boxes (left, top, right, bottom) of the blue images, from left to right."""
  blue = (np.asarray(picture) == BLUE).all(axis=2)
  rows, columns = blue.any(axis=1).nonzero()[0], blue.any(axis=0).nonzero()[0]
  starts = [columns[0], *columns[1:][np.diff(columns) > 1]]
  return [(x, rows[0], x + 19, rows[-1]) for x in starts]


def hue(pixel):
  red, green, blue = (int(value) for value in pixel[:3])
  if red - max(green, blue) > 60:
    return 'red'
  return 'green' if green - max(red, blue) > 40 else ''


def hues(picture, box):
  """Which of red and green occur between left <= x < right and top <= y < bottom."""
  left, top, right, bottom = box
  area = np.asarray(picture)[top:bottom, left:right].reshape(-1, 3)
  return {hue(pixel) for pixel in np.unique(area, axis=0)} - {''}


def test_a_match_has_a_green_frame_and_a_miss_a_red_one():
  picture = ranked([(1, 0, 1, 0, 0)] * 4, [True, False, False, True])
  boxes = images_in(picture)
  frames = [picture.getpixel((left - 2, top + 20)) for left, top, *_ in boxes]
  assert [hue(frame) for frame in frames] == ['green', 'red', 'red', 'green']


def test_a_wrong_attribute_has_a_cross_and_the_value_found_and_the_others_a_tick():
  """Asked: hat, no bag, red. The second image has a bag and is gray."""
  picture = ranked([(1, 0, 1, 0, 0), (1, 1, 0, 1, 0)], [True, False])
  table = images_in(picture)[0][3] + 9
  found = [
    [
      hues(picture, (left - 24, table + 17 * row, left + 44, table + 17 * row + 17))
      for left, *_ in images_in(picture)
    ]
    for row in range(3)
  ]
  assert found == [
    [{'green'}, {'green'}],  # hat
    [{'green'}, {'red'}],  # bag
    [{'green'}, {'red'}],  # colour
  ]


def test_the_size_depends_on_the_number_of_images_and_rows_alone():
  one = ranked([(1, 0, 1, 0, 0)] * 3, [True] * 3, notes=['a', 'b'], rows=2)
  two = ranked([(0, 1, 0, 0, 1)] * 3, [False] * 3, notes=['another' * 30], rows=2)
  assert one.size == two.size
  assert ranked([(1, 0, 1, 0, 0)] * 4, [True] * 4, rows=2).width > one.width
  assert ranked([(1, 0, 1, 0, 0)] * 3, [True] * 3, rows=1).height < one.height


@pytest.mark.parametrize('wrong', [0, 11, 23])
def test_of_many_attributes_one_that_differs_is_listed_wherever_it_stands(wrong):
  long = schema(flags=[f'flag{i}' for i in range(24)])
  query = np.zeros(long.size, np.float32)
  other = query.copy()
  other[wrong] = 1
  same, different = (
    ranked([vector], [True], schema=long, query=query, rows=4) for vector in (query, other)
  )
  table = images_in(same)[0][3] + 6
  assert 'red' not in hues(same, (0, table, same.width, same.height))
  assert 'red' in hues(different, (0, table, different.width, different.height))


def test_words_too_long_for_their_place_stay_in_it():
  words = 'a very long value of an attribute that no column has room for'
  attribute = Attribute('thing', ('short', words), (('thing', 1),))
  long = AttributeSchema('toy', (attribute,), {'thing': (0, 1)})
  picture = ranked([[1], [0]], [False, True], schema=long, query=[0], rows=1)
  right = images_in(picture)[1][0]
  table = images_in(picture)[0][3] + 6
  # Of the second image's column, which has a tick.
  assert hues(picture, (right - 20, table, picture.width, picture.height)) == {'green'}


def test_a_ranked_result_needs_a_score_and_attributes_for_each_image():
  with pytest.raises(ValueError, match='2 images need as many .* got 1, 2 and 2'):
    ranked([(1, 0, 1, 0, 0)], [True, False])
  with pytest.raises(ValueError, match='at least one image'):
    ranked(np.zeros((0, 5)), [])


@pytest.fixture
def problem():
  """6 queries and 40 images in 3 dimensions, attributes drawn at random; the last has no match."""
  rng = np.random.default_rng(5)
  ids = np.repeat(np.arange(5), 8)
  combinations = np.asarray([(i % 2, i // 2 % 2, i == 0, i == 1, i > 1) for i in range(6)])
  split = Split(
    paths=np.asarray([f'{i}.jpg' for i in range(40)]),
    attributes=combinations[ids].astype(np.float32),
    semantic_ids=ids.astype(np.int64),
    person_ids=ids.astype(str),
    cameras=np.ones(40, np.int32),
    keys=tuple(map(tuple, combinations.astype(int))),
  )
  embeddings = Embeddings(
    queries=rng.normal(size=(5, 3)).astype(np.float32),
    gallery=rng.normal(size=(40, 3)).astype(np.float32),
    query_ids=np.arange(5),
    gallery_ids=split.semantic_ids,
  )
  return embeddings, split


def test_the_images_shown_are_the_best_ones_in_order(problem):
  embeddings, split = problem
  read = []

  def record(path, size):
    read.append((str(path), tuple(size)))
    return np.zeros((*size, 3), np.uint8)

  evaluation = retrieval.evaluate_embeddings(embeddings)
  drawn = pictures.ranked_queries(
    embeddings, split, schema(), evaluation, [3, 1], k=7, crop_size=(32, 16), read=record
  )
  scores = embeddings.queries @ embeddings.gallery.T
  expected = [f'{i}.jpg' for query in (3, 1) for i in np.argsort(-scores[query])[:7]]
  assert read == [(path, (32, 16)) for path in expected]
  assert len(drawn) == 2
  assert drawn[0].size == drawn[1].size
  assert pictures.ranked_queries(embeddings, split, schema(), evaluation, []) == []


def test_the_frames_of_a_query_say_which_of_its_images_match(problem):
  embeddings, split = problem

  def blue(path, size):
    return np.full((40, 20, 3), BLUE, np.uint8)

  (picture,) = pictures.ranked_queries(
    embeddings,
    split,
    schema(),
    retrieval.evaluate_embeddings(embeddings),
    [2],
    k=12,
    crop_size=(40, 20),
    read=blue,
  )
  order = np.argsort(-(embeddings.gallery @ embeddings.queries[2]))[:12]
  expected = ['green' if split.semantic_ids[i] == 2 else 'red' for i in order]
  found = [hue(picture.getpixel((left - 2, top + 9))) for left, top, *_ in images_in(picture)]
  assert found == expected
  assert set(found) == {'green', 'red'}


def test_spread_goes_from_the_best_to_the_worst_and_leaves_out_queries_without_a_match(problem):
  embeddings, _ = problem
  more = embeddings._replace(
    queries=np.concatenate([embeddings.queries, embeddings.queries[:1]]),
    query_ids=np.append(embeddings.query_ids, 99),
  )
  metrics = retrieval.evaluate_embeddings(more).per_query
  by_precision = sorted(range(5), key=lambda q: -metrics.average_precision[q])
  assert pictures.spread(metrics, 5).tolist() == by_precision
  assert pictures.spread(metrics, 3).tolist() == [by_precision[i] for i in (0, 2, 4)]
  assert pictures.spread(metrics, 100).tolist() == by_precision
  nothing = embeddings._replace(query_ids=np.full(5, 99))
  assert pictures.spread(retrieval.evaluate_embeddings(nothing).per_query, 3).tolist() == []


def test_pair_counts_are_those_of_counting_pair_by_pair(problem):
  embeddings, split = problem
  counts = pictures.pair_counts(embeddings, thresholds=9)
  scores = (embeddings.queries @ embeddings.gallery.T).astype(np.float64)
  same = np.arange(5)[:, None] == split.semantic_ids[None]
  assert counts.thresholds[0] == scores.min()
  np.testing.assert_allclose(np.diff(counts.thresholds), np.ptp(scores) / 9)
  assert counts.matching.tolist() == [(scores[same] >= t).sum() for t in counts.thresholds]
  assert counts.non_matching.tolist() == [(scores[~same] >= t).sum() for t in counts.thresholds]


def test_pair_counts_of_equal_similarities_have_no_empty_axis(problem):
  embeddings, _ = problem
  flat = embeddings._replace(queries=np.zeros_like(embeddings.queries))
  counts = pictures.pair_counts(flat, thresholds=4)
  assert (np.diff(counts.thresholds) > 0).all()
  assert (counts.matching[0], counts.non_matching[0]) == (40, 160)


def test_the_histogram_shows_both_kinds_over_one_axis():
  """Non-matching pairs at 0 and matching ones at 1: red left, green right."""
  rng = np.random.default_rng(0)
  picture = pictures.similarity_histogram(
    Distributions(rng.normal(1, 0.02, 500), rng.normal(0, 0.02, 500)), size=(400, 200)
  )
  assert picture.size == (400, 200)
  assert hues(picture, (0, 44, 200, 165)) == {'red'}
  assert hues(picture, (200, 44, 400, 165)) == {'green'}


@pytest.mark.parametrize(
  'parts', [([0.5] * 10, []), ([], [0.5]), ([0.25], [0.25])], ids=['one', 'other', 'equal']
)
def test_a_histogram_of_one_kind_or_of_one_value_is_drawn(parts):
  picture = pictures.similarity_histogram(Distributions(*map(np.asarray, parts)))
  assert {'green' if len(parts[0]) else 'red'} <= hues(picture, (0, 40, 640, 230))


def test_a_histogram_of_nothing_is_an_error():
  with pytest.raises(ValueError, match='no pairs'):
    pictures.similarity_histogram(Distributions(np.zeros(0), np.zeros(0)))


def test_a_crop_is_the_picture_in_the_size_that_is_asked_for(tmp_path):
  halves = np.zeros((60, 40, 3), np.uint8)
  halves[30:] = (200, 100, 50)
  Image.fromarray(halves).save(tmp_path / 'a.png')
  crop = pictures.crop(str(tmp_path / 'a.png'), (12, 6))
  assert crop.shape == (12, 6, 3)
  assert crop.dtype == np.uint8
  assert (crop[:5] == 0).all()
  assert (crop[7:] == (200, 100, 50)).all()
