"""The attribute encoder in NumPy against Keras, for each layer that it knows."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
import tensorflow as tf

import tfreid.index
from tfreid.index import embedder, writer
from tfreid.index.segment import Row
from tfreid.networks import attribute, attribute_scores, heads, two_way, views
from tfreid.serving import folding, light_encoder

layers = tf.keras.layers


def chain(*parts, size=7):
  inputs = x = tf.keras.Input([size])
  for part in parts:
    x = part(x)
  return tf.keras.Model(inputs, x)


def with_random_weights(model, seed=0):
  rng = np.random.default_rng(seed)
  for variable in model.weights:
    variable.assign(rng.uniform(0.1, 1.0, variable.shape) * rng.choice([-1, 1], variable.shape))
    if 'variance' in variable.name or 'deviation' in variable.name:
      variable.assign(tf.abs(variable))
  return model


def side_by_side():
  """As the attribute task's: concepts and a reading of the same description."""
  concepts = heads.unit_norm(attribute.attribute_generator(7, 5, hidden=(8,)))
  reading = attribute_scores.DescriptionReading('log_likelihood')(concepts.input)
  return tf.keras.Model(concepts.input, layers.Concatenate()([concepts.output, reading]))


def branches_of_branches():
  inputs = tf.keras.Input([7])
  one = layers.Dense(3, 'relu')(inputs)
  two, three = layers.Dense(4, 'tanh')(one), layers.Dense(2)(one)
  both = layers.Dense(5)(layers.Concatenate()([three, two]))
  return tf.keras.Model(inputs, layers.Concatenate()([both, one, inputs]))


MODELS = {
  'side by side': side_by_side,
  'branches of branches': branches_of_branches,
  'the paper': lambda: attribute.attribute_generator(7, 5, hidden=(8, 9)),
  'cosine': lambda: heads.unit_norm(attribute.attribute_generator(7, 5, hidden=(8,))),
  'linear': lambda: chain(layers.Dense(5)),
  'without a bias': lambda: chain(layers.Dense(5, use_bias=False), layers.LeakyReLU(0.2)),
  'activations': lambda: chain(*(layers.Dense(6, a) for a in ('sigmoid', 'softplus', 'elu'))),
  'a norm that is kept': lambda: chain(
    layers.BatchNormalization(scale=False), layers.Dropout(0.5), layers.Dense(4)
  ),
  'cca': lambda: chain(
    layers.Dense(6, 'tanh'), views.Standardization(), views.CentredProjection(3)
  ),
  'pearson': lambda: chain(layers.Dense(6), two_way.PearsonNorm()),
  **{
    f'{reading}, {encoding}': lambda reading=reading, encoding=encoding: chain(
      attribute_scores.DescriptionReading(reading, encoding=encoding, rates=[0.3] * 7)
    )
    for reading in attribute_scores.READINGS
    for encoding in attribute_scores.ENCODINGS
  },
}


@pytest.mark.parametrize('name', MODELS)
def test_concepts_are_those_of_keras(name):
  model = with_random_weights(MODELS[name]())
  encoder = folding.FoldedEncoder(model)
  light = light_encoder.from_structure(encoder.structure, [v.numpy() for v in encoder.weights])
  again = light_encoder.from_bytes(light.to_bytes())
  vectors = np.random.default_rng(1).choice([-1.0, 0.0, 0.25, 1.0], (9, 7)).astype(np.float32)
  found = again(vectors)
  assert found.dtype == np.float32
  errors = folding.relative_errors(found, model(vectors, training=False).numpy())
  assert errors.max() < light_encoder.TOLERANCE
  np.testing.assert_array_equal(found, light(vectors))


def two_branches():
  inputs = tf.keras.Input([7])
  return tf.keras.Model(inputs, layers.Add()([layers.Dense(3)(inputs), layers.Dense(3)(inputs)]))


def joined_along_the_batch():
  inputs = tf.keras.Input([7])
  parts = [layers.Dense(3)(inputs), layers.Dense(3)(inputs)]
  return tf.keras.Model(inputs, layers.Concatenate(axis=0)(parts))


def a_layer_used_twice():
  inputs = tf.keras.Input([7])
  layer = layers.Dense(7)
  return tf.keras.Model(inputs, layer(layer(inputs)))


@pytest.mark.parametrize(
  'build',
  [
    two_branches,
    joined_along_the_batch,
    a_layer_used_twice,
    lambda: chain(layers.Dense(3, 'gelu')),
    lambda: chain(layers.ReLU(max_value=6.0)),
    lambda: chain(layers.LayerNormalization()),
    lambda: chain(chain(layers.Dense(3))),
  ],
)
def test_an_encoder_that_is_no_chain_of_known_layers_is_left_to_tensorflow(build):
  model = build()
  weights = [variable.numpy() for variable in model.weights]
  assert light_encoder.from_structure(model.to_json(), weights) is None


def test_what_is_not_finite_and_damaged_files_are_sentences():
  model = chain(layers.Dense(5, kernel_initializer='ones'))
  light = light_encoder.from_structure(model.to_json(), [v.numpy() for v in model.weights])
  with pytest.raises(ValueError, match='holds NaN or infinity'):
    light(np.full((1, 7), np.nan))
  with pytest.raises(ValueError, match='too large'):
    light(np.full((1, 7), 3e38))
  content = light.to_bytes()
  for broken in (b'', content[:100], content[:-30], content.replace(b'dense', b'hence')):
    with pytest.raises(ValueError, match='is damaged'):
      light_encoder.from_bytes(broken)


def test_an_index_is_asked_in_words_without_tensorflow_and_answers_the_same(
  exported, gallery, crops, ids, tmp_path
):
  def embed(contents):
    return np.stack([gallery[int(content.split()[1])] for content in contents])

  eager = embedder.Embedder(exported)
  rows = []
  for i in range(60):
    path = tmp_path / 'crops' / f'{i}.png'
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'crop {i}')
    rows.append(Row(ids[i], str(path)))
  maker = types.SimpleNamespace(
    directory=exported, fingerprint=eager.fingerprint, size=12, embed_images=embed
  )
  directory = str(tmp_path / 'index')
  writer.build(directory, rows, maker, batch_size=16)
  code = """
    import json, sys
    import tfreid.index
    with tfreid.index.open(sys.argv[1], model=sys.argv[2]) as index:
      answer = index.search('woman, red top', top_k=10, explain=True)
      asked = index.suggest('woman', top_k=10)
      assert 'tensorflow' not in sys.modules, 'TensorFlow was imported'
    hits = [[hit.id, hit.score, dict(hit.reasons)] for hit in answer.hits]
    print(json.dumps([hits, [suggestion.attribute for suggestion in asked]]))
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), directory, exported],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  hits, asked = json.loads(done.stdout)
  with tfreid.index.open(directory, model=eager) as index:
    expected = index.search('woman, red top', top_k=10, explain=True)
    assert [hit[0] for hit in hits] == [hit.id for hit in expected.hits]
    for (_, score, reasons), hit in zip(hits, expected.hits):
      assert abs(score - hit.score) < 1e-5 and set(reasons) == set(hit.reasons)
      assert all(abs(reasons[name] - hit.reasons[name]) < 1e-5 for name in reasons)
    assert asked == [suggestion.attribute for suggestion in index.suggest('woman', top_k=10)]


def test_a_lazy_model_loads_itself_for_the_first_image(exported, crops, schema):
  lazy, eager = embedder.Embedder(exported, lazy=True), embedder.Embedder(exported)
  contents = [crop.contents for crop in crops[:2]]
  np.testing.assert_array_equal(lazy.embed_images(contents), eager.embed_images(contents))
  vectors = np.eye(schema.size, dtype=np.float32)
  errors = folding.relative_errors(lazy.embed_attributes(vectors), eager.embed_attributes(vectors))
  assert errors.max() < light_encoder.TOLERANCE
  with pytest.raises(ValueError, match='NaN or infinity'):
    lazy.embed_attributes(vectors * np.nan)
  with pytest.raises(ValueError, match=f'has {schema.size} numbers'):
    lazy.embed_attributes(vectors[:, :-1])
