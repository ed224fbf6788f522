"""Image encoders that train on from an exported model."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfreid.joint_space import JointSpace
from tfreid.networks import applications, batch_norms, encoder, image, osnet
from tfreid.serving import export, folding, unfolding

# Keras pads maps of even and odd sides in different ways in MobileNets; of both sizes all are even.
CROP, LARGER, SIZE = (32, 32, 3), (96, 64, 3), 8
NETWORKS = {
  'osnet_x0_25': functools.partial(osnet.osnet, width=0.25),
  'ResNet-50': image.image_encoder,
  'MobileNetV3Small': functools.partial(
    applications.application, name='MobileNetV3Small', weights=None
  ),
  # Of ConvNeXt nothing is folded: it has no batch norm.
  'ConvNeXtTiny': functools.partial(applications.application, name='ConvNeXtTiny', weights=None),
}
SLOW = ('ResNet-50', 'ConvNeXtTiny')
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NETWORKS]


def with_statistics(model):
  """Batch norms as after a training: none of their numbers is 0 or 1."""
  rng = np.random.default_rng(0)
  for layer in model.layers:
    if isinstance(layer, tf.keras.layers.BatchNormalization):
      gamma, beta, mean, variance = layer.get_weights()
      layer.set_weights(
        [
          gamma * rng.uniform(0.5, 1.5, gamma.shape),
          beta + rng.normal(0.0, 0.1, beta.shape),
          mean + rng.normal(0.0, 0.1, mean.shape),
          variance * rng.uniform(0.5, 1.5, variance.shape),
        ]
      )
  return model


@pytest.fixture(scope='module', params=NAMES)
def trained(request):
  """A function that builds the network, and the network with weights as after a training."""
  tf.keras.utils.set_random_seed(0)
  build = functools.partial(NETWORKS[request.param], embedding_size=SIZE)
  return build, with_statistics(build(CROP))


@pytest.fixture(scope='module')
def pictures():
  rng = np.random.default_rng(1)
  coarse = rng.uniform(0, 255, (8, 8, 6, 3)).astype(np.float32)
  return tf.image.resize(coarse, LARGER[:2]).numpy()


@pytest.fixture(scope='module')
def folder_of_crops(pictures, tmp_path_factory):
  folder = tmp_path_factory.mktemp('crops')
  for number, picture in enumerate(pictures):
    Image.fromarray(picture.astype(np.uint8)).save(folder / f'{number}.png')
  return str(folder)


def test_an_unfolded_network_is_the_one_that_was_folded_at_any_size(trained, pictures):
  build, model = trained
  folded = folding.FoldedEncoder(model)
  stored = folding.layers_of(folded.structure)
  for variable, value in zip(stored.weights, folded.weights):
    variable.assign(value)
  unfolded = unfolding.unfold(stored, LARGER)
  larger = build(LARGER)
  larger.set_weights(model.get_weights())
  expected = encoder.features(larger)(pictures).numpy()
  assert np.abs(expected).max() > 0.0
  errors = folding.relative_errors(unfolded(pictures).numpy(), expected)
  assert errors.max() < 1e-4

  def norms(network):
    return [
      layer.name
      for layer in network.layers
      if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]

  assert norms(unfolded) == norms(encoder.features(larger))


def test_layers_that_are_folded_train_in_the_precision_they_had(trained):
  build, model = trained
  folded = folding.FoldedEncoder(model)
  stored = folding.layers_of(folded.structure)
  policy = tf.keras.mixed_precision.global_policy()
  tf.keras.mixed_precision.set_global_policy('mixed_bfloat16')
  try:
    unfolded = unfolding.unfold(stored, CROP)
    mixed = encoder.features(build(CROP))
  finally:
    tf.keras.mixed_precision.set_global_policy(policy)
  convolutions = [layer.name for layer in mixed.layers if isinstance(layer, tf.keras.layers.Conv2D)]
  assert convolutions
  for name in convolutions:
    assert unfolded.get_layer(name).compute_dtype == mixed.get_layer(name).compute_dtype
  assert unfolded.output.dtype == tf.float32


def attribute_side(schema, size):
  attributes = tf.keras.Input([schema.size], name='attributes')
  return tf.keras.Model(attributes, tf.keras.layers.Dense(size)(attributes))


@pytest.fixture(scope='module')
def small():
  tf.keras.utils.set_random_seed(0)
  return with_statistics(osnet.osnet(CROP, SIZE, width=0.25))


@pytest.fixture(scope='module')
def exported(small, schema, crops, tmp_path_factory):
  """Makes an export of a model with `small`'s network and returns the model's folder."""

  def make(name, image_encoder, precision='float32'):
    space = JointSpace(image_encoder, attribute_side(schema, image_encoder.output_shape[-1]))
    version = export.export(
      space,
      str(tmp_path_factory.mktemp(name) / 'model'),
      encoders=export.encoders(space, precision=precision),
      gallery=np.zeros([0, image_encoder.output_shape[-1]], np.float32),
      ids=[],
      crops=crops[:1],
      schema=schema,
    )
    return str(Path(version).parent)

  return make


@pytest.fixture(scope='module')
def plain(small, exported):
  return exported('plain', small)


def test_an_exported_model_is_trained_on_from(small, plain, folder_of_crops):
  built = unfolding.image_encoder(CROP, SIZE, model=plain, statistics_from=folder_of_crops)
  images = batch_norms.samples(folder_of_crops, CROP[:2], 'here')
  expected = small(images).numpy()
  assert folding.relative_errors(built(images).numpy(), expected).max() < 1e-3
  # On the crops that the statistics are of, training begins with what inference gives.
  assert folding.relative_errors(built(images, training=True).numpy(), expected).max() < 1e-2
  # A bias that a batch norm takes away again does not come back.
  names, before = (
    {variable.name for variable in model.trainable_variables} for model in (built, small)
  )
  assert before - names == {'fc_0/bias:0'} and names <= before
  # In its place in every method: features, the concept, and crops of another size.
  assert encoder.features(built).output_shape == (None, 512)
  with pytest.raises(ValueError, match=r'concepts of 8 numbers, and 16 .*embedding_size to 8'):
    unfolding.image_encoder(CROP, 16, model=plain, statistics_from=folder_of_crops)


def test_a_model_without_concepts_gives_its_features(small, exported, folder_of_crops, caplog):
  """DeepMAR's exported image encoder ends in attributes, in a model of its own. In bfloat16."""
  features = encoder.features(small)
  inner = tf.keras.Sequential([tf.keras.Input([512]), tf.keras.layers.Dense(5)])
  scores = tf.keras.Model(features.input, inner(features.output))
  model = exported('scores', scores, 'bfloat16')
  with caplog.at_level('INFO', 'tfreid'):
    built = unfolding.image_encoder(CROP, 16, model=model, statistics_from=folder_of_crops)
  assert "up to 'features'; 'concept' has random ones" in caplog.text
  assert built.output_shape == (None, 16)
  images = batch_norms.samples(folder_of_crops, CROP[:2], 'here')
  errors = folding.relative_errors(
    encoder.features(built)(images).numpy(), features(images).numpy()
  )
  assert errors.max() < folding.TOLERANCES['bfloat16']


def test_the_network_is_found_within_a_joined_model(small, exported, folder_of_crops):
  """Two readings side by side, as the attribute task has them."""
  pixels = tf.keras.Input(CROP, name='image')
  concepts = small(pixels)
  joined = tf.keras.Model(pixels, tf.keras.layers.Concatenate()([concepts, concepts]))
  built = unfolding.image_encoder(
    CROP, SIZE, model=exported('joined', joined), statistics_from=folder_of_crops
  )
  images = batch_norms.samples(folder_of_crops, CROP[:2], 'here')
  errors = folding.relative_errors(built(images).numpy(), small(images).numpy())
  assert errors.max() < 1e-3


def test_what_is_no_exported_model_of_a_network_is_refused(
  exported, plain, folder_of_crops, tmp_path
):
  with pytest.raises(FileNotFoundError, match='nothing'):
    unfolding.image_encoder(CROP, model=str(tmp_path / 'nothing'), statistics_from=folder_of_crops)
  with pytest.raises(ValueError, match='at least 16 x 16 pixels.*Raise Pipeline.image_size'):
    unfolding.image_encoder((8, 4, 3), SIZE, model=plain, statistics_from=folder_of_crops)
  with pytest.raises(ValueError, match='statistics_from is a folder of crops'):
    unfolding.image_encoder(CROP, SIZE, model=plain, statistics_from=str(tmp_path))
  pixels = tf.keras.Input(CROP, name='image')
  other = tf.keras.Model(pixels, tf.keras.layers.Dense(4)(tf.keras.layers.Flatten()(pixels)))
  model = exported('other', other)
  with pytest.raises(ValueError, match="has no layer 'features'"):
    unfolding.image_encoder(CROP, model=model, statistics_from=folder_of_crops)
