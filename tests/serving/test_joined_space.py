"""A space of the attribute task, two readings side by side: saved, folded, exported and asked."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data import market1501
from tfreid.data.pipeline import Pipeline
from tfreid.joint_space import JointSpace
from tfreid.methods import alignment
from tfreid.methods.joint_concepts import JointConcepts
from tfreid.methods.multi_task import AttributeTask
from tfreid.networks import osnet
from tfreid.serving import export, folding, light_encoder

CROP = (32, 32, 3)


@pytest.fixture(scope='module')
def benchmark(tiny_market):
  return market1501.load(tiny_market)


@pytest.fixture(scope='module')
def space(benchmark, tmp_path_factory):
  tf.keras.utils.set_random_seed(0)
  sgd = functools.partial(tf.keras.optimizers.SGD, 0.1)
  method = JointConcepts(
    benchmark.spec(CROP),
    image_encoder=functools.partial(osnet.osnet, width=0.25, embedding_size=8),
    alignment=alignment.NoAlignment,
    image_optimizer=sgd,
    attribute_optimizer=sgd,
    attribute_task=functools.partial(AttributeTask, weight=0.1, share=0.05),
  )
  scores = method.networks['attribute_scores']
  for variable in scores.trainable_variables:
    variable.assign(np.random.default_rng(0).normal(size=variable.shape))
  directory = tmp_path_factory.mktemp('joined') / 'space'
  method.space.save(directory, metadata={})
  return JointSpace.load(str(directory))


def test_the_export_finds_what_the_space_finds(space, benchmark, tmp_path):
  precision = 'bfloat16'
  paths = [str(path) for path in benchmark.test.paths[:6]]
  encoders = export.encoders(space, precision=precision)
  gallery, _ = export.embed_files(encoders.image, paths)
  size = 8 + 2 * benchmark.schema.size
  assert gallery.shape == (6, size)
  folder = export.export(
    space,
    str(tmp_path / 'model'),
    encoders=encoders,
    gallery=gallery,
    ids=[str(position) for position in range(len(paths))],
    crops=[export.Crop(path, Path(path).read_bytes()) for path in paths[:2]],
    schema=benchmark.schema,
    top_k=len(paths),
  )
  batch = next(iter(Pipeline(CROP[:2], 6).evaluation(benchmark.test)))
  images = space.encode_images(batch['image']).numpy()
  assert folding.relative_errors(gallery, images).max() < folding.TOLERANCES[precision]
  attributes = batch['attributes'].numpy()
  concepts = space.encode_attributes(attributes).numpy()
  signatures = tf.saved_model.load(folder).signatures
  answer = signatures['serving_default'](attributes=tf.constant(attributes[:1]))
  found = dict(zip(answer['ids'].numpy()[0].astype(str), answer['scores'].numpy()[0]))
  wanted = concepts[:1] @ gallery.T
  for position in range(6):
    assert found[str(position)] == pytest.approx(wanted[0, position], rel=1e-4, abs=1e-4)
  # Whoever searches by description needs no TensorFlow for this space either.
  (file,) = Path(folder).rglob(light_encoder.FILE)
  light = light_encoder.from_bytes(file.read_bytes())
  np.testing.assert_allclose(light(attributes), concepts, rtol=1e-4, atol=1e-5)
