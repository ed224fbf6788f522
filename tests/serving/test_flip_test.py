"""Exports with the flip test, of a training run's space and of an exported model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data import image_files
from tfreid.index import runtimes
from tfreid.index.embedder import Embedder
from tfreid.networks import flip, heads, osnet
from tfreid.serving import export, folding, unfolding
from tfreid.serving.exported_space import ExportedSpace

sys.path.insert(0, str(Path(__file__).parent))
from conftest import IMAGE_SIZE


@pytest.fixture(scope='module')
def pixels(crops):
  """What the exported model makes of the crops' files, float32 [6, H, W, 3]."""
  return np.stack([image_files.decode(crop.contents, IMAGE_SIZE) for crop in crops]).astype('f4')


@pytest.fixture(scope='module')
def versions(exported, half, crops, tmp_path_factory):
  """Versions with the flip test of the exports in float32 and in bfloat16."""
  found = {}
  for precision, source in (('float32', exported), ('bfloat16', half)):
    original = ExportedSpace(source, flip_test=True)
    found[precision] = export.export(
      original,
      str(tmp_path_factory.mktemp('models') / precision),
      encoders=original.encoders(),
      gallery=np.empty((0, 12), np.float32),
      ids=[],
      crops=crops,
      schema=original.schema,
      about=original.origin,
    )
  return found


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_an_export_of_an_export_makes_the_mean(versions, exported, half, crops, pixels, precision):
  original = ExportedSpace({'float32': exported, 'bfloat16': half}[precision]).encoders().image
  wanted = (original(pixels) + original(pixels[:, :, ::-1])) / 2
  version = versions[precision]
  model = tf.saved_model.load(version)
  contents = tf.constant([crop.contents for crop in crops])
  found = model.signatures['embed_images'](image_bytes=contents)['concepts']
  # The graph may order the operations of bfloat16 in another way.
  atol = {'float32': 1e-5, 'bfloat16': 2e-2}[precision]
  np.testing.assert_allclose(found, wanted, atol=atol)
  assert np.abs(found - original(pixels)).max() > 0.05
  about = json.loads(Path(version, 'assets.extra', 'model.json').read_text())
  assert about['flip_test'] is True and about['precision'] == precision
  assert about['folded_batch_norms'] == 2 and about['exported_from']
  assert about['fingerprint'] != ExportedSpace(exported).fingerprint


def test_a_model_with_it_is_made_into_others_but_does_not_get_it_twice(versions):
  again = ExportedSpace(versions['float32'])
  assert again.origin['flip_test'] is True
  assert again.encoders().fingerprint == again.fingerprint
  with pytest.raises(ValueError, match='has the flip test already'):
    ExportedSpace(versions['float32'], flip_test=True)


def test_the_same_export_twice_is_the_same_model(exported):
  first, second = (ExportedSpace(exported, flip_test=True).encoders() for _ in range(2))
  assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_a_space_that_was_trained_is_folded_with_it(space, pixels, precision):
  encoders = export.encoders(space.with_flip_test(), precision=precision)
  plain = export.encoders(space, precision=precision).image
  assert (encoders.image.num_folded, encoders.image.num_kept) == (2, 0)
  wanted = (plain(pixels) + plain(pixels[:, :, ::-1])) / 2
  np.testing.assert_allclose(encoders.image(pixels), wanted, atol=1e-6)


@pytest.mark.parametrize('runtime', runtimes.RUNTIMES)
def test_an_index_is_made_with_it_by_each_runtime(versions, exported, crops, pixels, runtime):
  if runtime == 'openvino':
    pytest.importorskip('openvino')
  original = ExportedSpace(exported).encoders().image
  wanted = (original(pixels) + original(pixels[:, :, ::-1])) / 2
  embedder = Embedder(versions['float32'], runtime=runtime)
  found = embedder.embed_images([crop.contents for crop in crops])
  np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_training_goes_on_from_it_without_it():
  tf.keras.utils.set_random_seed(0)
  shape = (64, 32, 3)
  model = heads.unit_norm(osnet.osnet(shape, 8, width=0.25))
  layers = folding.FoldedEncoder(model).with_flip_test().layers()
  network = unfolding._network(layers)
  assert flip.has_flip_test(layers) and not flip.has_flip_test(network)
  unfolded = unfolding.unfold(network, shape)
  pixels = np.random.default_rng(0).uniform(0, 255, (2, *shape)).astype(np.float32)
  features = tf.keras.Model(model.input, unfolding._network(model).get_layer('features').output)
  np.testing.assert_allclose(unfolded(pixels), features(pixels), rtol=1e-3, atol=1e-4)
