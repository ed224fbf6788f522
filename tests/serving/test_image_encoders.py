"""Every image encoder that gin can name: trained, saved, folded, exported and searched."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data import market1501
from tfreid.data.pipeline import Pipeline
from tfreid.joint_space import JointSpace
from tfreid.methods.contrastive import Contrastive
from tfreid.networks import applications, osnet
from tfreid.serving import export, folding
from tfreid.serving.openvino_encoder import OpenVinoEncoder
from tfreid.training.trainer import Trainer

CROP = (32, 32, 3)
BATCH = 4


def application(name):
  return functools.partial(applications.application, name=name)


ENCODERS = {
  'osnet_x0_25': functools.partial(osnet.osnet, width=0.25),
  'MobileNetV3Small': application('MobileNetV3Small'),
  'EfficientNetB0': application('EfficientNetB0'),
  'ConvNeXtTiny': application('ConvNeXtTiny'),
}
# Batch norms that become part of convolutions, and those that cannot.
FOLDED = {
  'osnet_x0_25': (80, 0),
  'MobileNetV3Small': (34, 0),
  'EfficientNetB0': (49, 0),
  'ConvNeXtTiny': (0, 0),
}
SLOW = ('EfficientNetB0', 'ConvNeXtTiny')
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ENCODERS]


@pytest.fixture(scope='module')
def benchmark(tiny_market):
  return market1501.load(tiny_market)


@pytest.fixture(scope='module', params=NAMES)
def trained(request, benchmark, tmp_path_factory):
  """Name, what its variables were before and after one step, and the folder of the saved space."""
  tf.keras.utils.set_random_seed(0)
  adam = functools.partial(tf.keras.optimizers.Adam, 1e-3)
  method = Contrastive(
    benchmark.spec(CROP),
    image_encoder=functools.partial(ENCODERS[request.param], embedding_size=8),
    image_optimizer=adam,
    attribute_optimizer=adam,
  )
  trainer = Trainer(method, tf.distribute.get_strategy())
  batch = next(iter(Pipeline(CROP[:2], BATCH).training(benchmark.train, seed=0, epoch=0)))
  variables = method.image_encoder.trainable_variables
  before = [variable.numpy() for variable in variables]
  # Op by op: tracing takes many times as long as one step does.
  tf.config.run_functions_eagerly(True)
  try:
    report = trainer.train_step(batch)
  finally:
    tf.config.run_functions_eagerly(False)
  directory = str(tmp_path_factory.mktemp(request.param) / 'space')
  method.space.save(directory, metadata={})
  still = [v.name for v, b in zip(variables, before) if np.array_equal(v.numpy(), b)]
  return request.param, float(report['contrastive']), still, directory


@pytest.fixture(scope='module')
def space(trained):
  return JointSpace.load(trained[-1])


def test_a_step_moves_every_variable(trained):
  _, loss, still, _ = trained
  assert np.isfinite(loss)
  # A gate of OSNet x0.25 has one or two hidden units, whose ReLU may be silent for all images.
  assert [name for name in still if '_gate_' not in name] == []


@pytest.mark.parametrize('precision', folding.PRECISIONS)
def test_exported_model_finds_what_the_space_finds(precision, trained, space, benchmark, tmp_path):
  paths = [str(path) for path in benchmark.test.paths[:6]]
  encoders = export.encoders(space, precision=precision)
  assert (encoders.image.num_folded, encoders.image.num_kept) == FOLDED[trained[0]]
  gallery, _ = export.embed_files(encoders.image, paths)
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
  errors = folding.relative_errors(gallery, images)
  assert errors.max() < folding.TOLERANCES[precision]
  queries = space.encode_attributes(batch['attributes'][:1]).numpy()
  signatures = tf.saved_model.load(folder).signatures
  answer = signatures['serving_default'](attributes=batch['attributes'][:1])
  found = answer['scores'].numpy()[0]
  expected = np.sort((queries @ images.T)[0])[::-1]
  np.testing.assert_allclose(found, expected, atol=2 * folding.TOLERANCES[precision])


@pytest.mark.parametrize('precision', folding.PRECISIONS)
def test_openvino_makes_the_same_concepts(precision, space, benchmark):
  encoder = export.encoders(space, precision=precision).image
  pixels = next(iter(Pipeline(CROP[:2], 6).evaluation(benchmark.test)))['image'].numpy()
  pixels = np.round(pixels).astype(np.uint8)
  converted = OpenVinoEncoder(encoder, pixels[:2])
  expected = encoder(tf.cast(pixels, tf.float32)).numpy()
  errors = folding.relative_errors(converted(pixels), expected)
  assert errors.max() < folding.TOLERANCES[precision]
  assert converted.precision == 'float32' or precision == 'bfloat16'
