"""The one description of the signatures, and what follows from it."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfreid.serving import golden, signatures

ROOT = Path(__file__).parents[2]


def test_an_exported_model_has_the_signatures_that_are_described(model, schema):
  sizes = {'A': schema.size, 'E': 12, 'K': 20}
  assert set(model) - {'owner'} == {signature.name for signature in signatures.SIGNATURES}
  for signature in signatures.SIGNATURES:
    function = model[signature.name]
    inputs = function.structured_input_signature[1]
    for tensors, found in (
      (signature.inputs, inputs),
      (signature.outputs, function.structured_outputs),
    ):
      assert {tensor.name for tensor in tensors} == set(found)
      for tensor in tensors:
        shape = [sizes.get(side) for side in tensor.shape]
        assert found[tensor.name].dtype == tensor.dtype
        assert found[tensor.name].shape.as_list() == shape


def test_a_model_without_a_schema_reads_no_words(space, encoders, gallery):
  names = [signature.name for signature in signatures.available(has_schema=False)]
  assert 'search_words' not in names and len(names) == len(signatures.SIGNATURES) - 1
  vectors = np.zeros((8, 30), np.float32)
  asked = golden.examples([b'crop'], vectors, gallery, ['a', 'b'], None)
  assert list(asked) == names


def test_what_describe_answers_are_the_sizes_and_the_schema(model, schema):
  (text,) = model['describe'](any=tf.constant(['']))['description'].numpy()
  facts = json.loads(text)
  assert facts['schema'] == json.loads(json.dumps(schema.to_json()))
  sizes = ('image_size', 'num_attributes', 'embedding_size', 'gallery_size', 'num_results')
  assert [facts[name] for name in sizes] == [[32, 16], 30, 12, 300, 20]


def test_the_documents_show_the_signatures_as_they_are():
  assert signatures.table() in (ROOT / 'docs' / 'serving.md').read_text(encoding='utf-8')


def test_the_client_asks_signatures_that_are_described_with_their_inputs():
  """Each call of the served model, read from the source."""
  asked = {}
  tree = ast.parse((ROOT / 'tfreid' / 'search' / 'remote.py').read_text(encoding='utf-8'))
  for node in ast.walk(tree):
    if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'predict':
      name, inputs = node.args
      asked[name.value] = [key.value for key in inputs.keys]
  assert len(asked) >= 8
  for name, inputs in asked.items():
    assert inputs == [tensor.name for tensor in signatures.BY_NAME[name].inputs], name
  # JSON does not say which texts are bytes; the client goes by the name of an output.
  outputs = [tensor for signature in signatures.SIGNATURES for tensor in signature.outputs]
  assert not [tensor.name for tensor in outputs if tensor.name.endswith('_bytes')]


def test_limits_of_the_graph_are_those_that_are_described():
  assert signatures.MAX_IMAGES == signatures.BY_NAME['embed_images'].max_rows == 256
  assert signatures.BY_NAME['explain'].max_rows == 1024
  assert signatures.BY_NAME['describe'].max_rows == 64
