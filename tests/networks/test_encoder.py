"""What is known of image encoders outside networks/: that they are image encoders."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid.networks import encoder

PACKAGE = Path(__file__).resolve().parents[2] / 'tfreid'
# A network's name, a layer of one, a kind of normalisation: nobody else's business.
SECRETS = ('resnet', 'osnet', 'conv5', 'caffe', 'imagenet', 'mobilenet', 'efficientnet', 'convnext')


def _code(path: Path) -> str:
  """The names and the strings of a module, docstrings aside."""
  tree = ast.parse(path.read_text(encoding='utf-8'))
  for node in ast.walk(tree):
    first = getattr(node, 'body', None)
    if isinstance(first, list) and first and isinstance(first[0], ast.Expr):
      if isinstance(first[0].value, ast.Constant):
        first[0].value.value = ''
  return ast.unparse(tree).lower()


# The plan of one comparison, whose starts are networks: it names them as a gin file would.
_PLANS = ('cli/photographs.py',)


def test_nothing_outside_networks_knows_which_network_an_encoder_is():
  found = [
    (path.relative_to(PACKAGE).as_posix(), secret)
    for path in PACKAGE.rglob('*.py')
    if 'networks' not in path.parts and path.relative_to(PACKAGE).as_posix() not in _PLANS
    for secret in SECRETS
    if secret in _code(path)
  ]
  assert found == []


def test_affine_pixels_scale_and_shift_each_channel_after_the_exchange():
  pixels = np.float32([[[[1.0, 2.0, 3.0]]]])
  straight = encoder.AffinePixels([2.0, 3.0, 4.0], [0.0, 1.0, -1.0])(pixels)
  np.testing.assert_allclose(straight, [[[[2.0, 7.0, 11.0]]]])
  reversed_ = encoder.AffinePixels([2.0, 3.0, 4.0], [0.0, 1.0, -1.0], reverse=True)(pixels)
  np.testing.assert_allclose(reversed_, [[[[6.0, 7.0, 3.0]]]])


@pytest.mark.parametrize('kind', [tf.float32, tf.bfloat16])
def test_numbers_for_each_channel_give_the_same_bits_by_rows(kind):
  random = np.random.default_rng(0)
  pixels = tf.cast(random.uniform(0.0, 255.0, (2, 5, 7, 3)), kind)
  scale, offset = random.normal(size=(2, 3)).tolist()

  def affine(x, scale, offset):
    return x * scale + offset

  expected = pixels * tf.constant(scale, kind) + tf.constant(offset, kind)
  found = encoder.by_channel(affine, pixels, scale, offset)
  assert found.dtype == kind
  assert found.shape == expected.shape
  assert bool(tf.reduce_all(found == expected))
  # Of a size that is not known while the graph is made, and of no image at all.
  for shape in ([None, None, None, 3], [None, 5, 7, 3]):
    function = tf.function(
      lambda x: encoder.by_channel(affine, x, scale, offset),
      input_signature=[tf.TensorSpec(shape, kind)],
    )
    assert bool(tf.reduce_all(function(pixels) == expected))
    assert function(pixels[:0]).shape == (0, 5, 7, 3)


def test_a_model_that_is_no_image_encoder_is_refused_with_advice():
  given = tf.keras.Input([4])
  model = tf.keras.Model(given, tf.keras.layers.Dense(2)(given), name='mine')
  with pytest.raises(ValueError, match="'mine' has no layer 'features'. A builder of image"):
    encoder.features(model)
  with pytest.raises(ValueError, match="'mine' has no layer 'concept'"):
    encoder.head(model)
  with pytest.raises(ValueError, match="are 'features' or 'concept', not 'conv1'"):
    encoder.features(model, 'conv1')
