from __future__ import annotations

import csv

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.data.benchmark import Split
from tfreid.evaluation import projector, retrieval
from tfreid.evaluation.retrieval import Embeddings

SCHEMA = AttributeSchema(
  'toy',
  (
    Attribute('hat', ('no', 'yes'), (('hat', 1),)),
    Attribute('color', ('light\tred', 'gray'), (('red', 1), ('gray', 1))),
  ),
  {'hat': (0, 1), 'red': (0, 1), 'gray': (0, 1)},
)
VECTORS = np.asarray([(0, 1, 0), (1, 0, 1), (1, 0, 0)], np.float32)


@pytest.fixture
def problem():
  """3 queries and 9 images, three of each."""
  rng = np.random.default_rng(1)
  ids = np.arange(9) % 3
  split = Split(
    paths=np.asarray([f'{i}.jpg' for i in range(9)]),
    attributes=VECTORS[ids],
    semantic_ids=ids,
    person_ids=np.asarray([f'p{i}' for i in ids]),
    cameras=(np.arange(9) % 2).astype(np.int32),
    keys=((0, 1, 0), (1, 0, 1), (1, 0, 0)),
  )
  embeddings = Embeddings(
    rng.normal(size=(3, 4)).astype(np.float32),
    rng.normal(size=(9, 4)).astype(np.float32),
    np.arange(3),
    ids,
  )
  return embeddings, split


def constant(path, size):
  """Image i is all i + 1."""
  return np.full((*size, 3), int(path.split('.')[0]) + 1, np.uint8)


@pytest.fixture
def written(problem, tmp_path):
  embeddings, split = problem
  evaluation = retrieval.evaluate_embeddings(embeddings, seen=np.asarray([True, False, True]))
  projector.write(
    str(tmp_path / 'run'), embeddings, split, SCHEMA, evaluation=evaluation, tile=16, read=constant
  )
  return tmp_path / 'run', evaluation


def test_the_files_are_those_that_the_configuration_names(written):
  folder, _ = written
  config = text_format.Parse((folder / 'projector_config.pbtxt').read_text(), ProjectorConfig())
  (embedding,) = config.embeddings
  assert {embedding.tensor_path, embedding.metadata_path, embedding.sprite.image_path} == {
    path.name for path in folder.iterdir() if path.name != 'projector_config.pbtxt'
  }
  assert list(embedding.sprite.single_image_dim) == [16, 16]


def test_the_points_are_the_queries_and_then_the_images(written, problem):
  folder, _ = written
  embeddings, _ = problem
  points = np.loadtxt(folder / 'joint_space.tsv', delimiter='\t')
  expected = np.concatenate([embeddings.queries, embeddings.gallery])
  np.testing.assert_allclose(points, expected, rtol=1e-5)


def test_each_point_is_labelled_with_its_modality_identity_and_attributes(written):
  folder, evaluation = written
  with open(folder / 'metadata.tsv', encoding='utf-8') as file:
    lines = list(csv.DictReader(file, delimiter='\t'))
  assert [line['modality'] for line in lines] == ['attributes'] * 3 + ['image'] * 9
  assert [line['semantic_id'] for line in lines] == [str(i % 3) for i in range(12)]
  assert [line['color'] for line in lines[:3]] == ['light red', 'gray', 'none']
  assert [line['hat'] for line in lines[3:6]] == ['no', 'yes', 'yes']
  assert [line['in_training'] for line in lines[1:5]] == ['unseen', 'seen', 'seen', 'unseen']
  assert [line['AP'] for line in lines[:3]] == [
    f'{value:.3f}' for value in evaluation.per_query.average_precision
  ]
  assert lines[4]['person'] == 'p1'
  assert lines[4]['camera'] == '1'


def test_the_sprite_has_each_point_s_tile_where_the_projector_cuts_it(written):
  folder, _ = written
  sheet = np.asarray(Image.open(folder / 'sprite.png'))
  assert sheet.shape == (64, 64, 4)  # 12 points in a grid of 4 x 4
  middles = sheet[8::16, 8::16].reshape(-1, 4)
  blue = middles[:3].astype(int)
  assert (blue[:, 2] > blue[:, 0] + 100).all()
  assert middles[3:12].tolist() == [[i + 1, i + 1, i + 1, 255] for i in range(9)]
  assert (sheet[::16, ::16].reshape(-1, 4)[:, 3] == 0).all()  # transparent beside the image


def test_of_too_many_points_the_images_of_the_queries_that_stay_are_shown(problem):
  embeddings, _ = problem
  queries, images = projector.chosen(embeddings, max_queries=2, max_images=100)
  assert len(queries) == 2
  assert sorted(images) == [i for i in range(9) if i % 3 in queries]
  queries, images = projector.chosen(embeddings, max_queries=100, max_images=4)
  assert queries.tolist() == [0, 1, 2]
  assert len(set(images)) == 4
