from __future__ import annotations

import types

import pytest
import tensorflow as tf

from tfreid.data.pipeline import Pipeline
from tfreid.methods import features
from tfreid.training.batches import ImageBatches


def test_attribute_dropout_is_refused_where_features_are_extracted_once():
  """It would have no effect, and nobody would notice."""
  pixels = tf.keras.Input([4, 2, 3])
  encoder = tf.keras.Model(pixels, tf.keras.layers.Flatten()(pixels))
  split = types.SimpleNamespace()
  for rate, refused in ((0.4, True), (0.0, False)):
    pipeline = Pipeline((4, 2), 2, attribute_dropout=rate)
    batches = ImageBatches(pipeline, split, schema=None, seed=0)
    assert batches.drops_attributes == refused
  batches = ImageBatches(Pipeline((4, 2), 2, attribute_dropout=0.4), split, schema=None, seed=0)
  with pytest.raises(ValueError, match=r'attribute_dropout = 0\.0'):
    features.extract(encoder, batches, layer='concept')
