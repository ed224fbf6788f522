from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data import image_files, words
from tfreid.data.attributes import AttributeSchema
from tfreid.serving import retriever


def texts(tensor):
  return np.char.decode(np.asarray(tensor).astype(bytes)).tolist()


def png_header(width, height):
  """The first 33 bytes of a PNG of that size."""
  data = width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + bytes([8, 2, 0, 0, 0])
  body = b'IHDR' + data
  return (
    b'\x89PNG\r\n\x1a\n' + len(data).to_bytes(4, 'big') + body + zlib.crc32(body).to_bytes(4, 'big')
  )


def test_ranking_is_that_of_the_training_encoders_and_a_full_sort(model, space, gallery, ids):
  attributes = np.random.default_rng(3).integers(0, 2, (70, 30)).astype(np.float32)
  answer = model['serving_default'](attributes=tf.constant(attributes))
  similarity = space.encode_attributes(attributes).numpy() @ gallery.T
  best = -np.sort(-similarity, axis=1)[:, :20]
  np.testing.assert_allclose(answer['scores'], best, atol=2e-6)
  rows = {name: row for row, name in enumerate(ids)}
  for i, names in enumerate(texts(answer['ids'])):
    assert len(set(names)) == 20
    np.testing.assert_allclose(similarity[i, [rows[n] for n in names]], best[i], atol=2e-6)


def test_equal_crops_come_in_the_order_of_the_gallery(model, gallery):
  answer = model['search_concepts'](concepts=tf.constant(gallery[[3]]))
  names = texts(answer['ids'])[0]
  assert names.index('test/0007.jpg') == names.index('test/0003.jpg') + 1


def test_words_find_what_their_vector_finds(model, schema):
  asked = ['woman, red top, no hat', 'gender=male', 'teenager with a backpack']
  vectors = np.stack([schema.encode_query(words.parse(text, schema)) for text in asked])
  answer = model['search_words'](words=tf.constant(asked))
  expected = model['serving_default'](attributes=tf.constant(vectors))
  assert texts(answer['ids']) == texts(expected['ids'])
  np.testing.assert_allclose(answer['scores'], expected['scores'], atol=1e-6)
  assert texts(answer['unknown']) == texts(answer['contradictory']) == ['', '', '']


def test_a_text_that_is_not_understood_finds_nothing_and_says_why(model):
  answer = model['search_words'](words=tf.constant(['woman, purple zebra', 'woman', 'man, woman']))
  assert texts(answer['unknown']) == ['purple zebra', '', '']
  assert texts(answer['contradictory']) == ['', '', 'gender']
  found = np.asarray(texts(answer['ids']))
  assert (found[[0, 2]] == '').all() and (found[1] != '').all()
  assert not answer['scores'].numpy()[[0, 2]].any()


def test_encoded_crops_become_what_the_training_encoder_makes_of_their_pixels(model, space, crops):
  contents = [crop.contents for crop in crops]
  pixels = [image_files.decode(tf.constant(data), space.image_shape[:2]) for data in contents]
  expected = space.encode_images(tf.cast(tf.stack(pixels), tf.float32))
  answer = model['embed_images'](image_bytes=tf.constant(contents))
  np.testing.assert_allclose(answer['concepts'], expected, atol=2e-6)


def test_search_by_crop_is_search_by_its_concept(model, crops):
  contents = tf.constant([crop.contents for crop in crops[:2]])
  concepts = model['embed_images'](image_bytes=contents)['concepts']
  answer = model['search_images'](image_bytes=contents)
  expected = model['search_concepts'](concepts=concepts)
  assert texts(answer['ids']) == texts(expected['ids'])
  np.testing.assert_allclose(answer['scores'], expected['scores'], atol=1e-6)


def test_explanation_is_the_ranking_and_the_products_with_each_variant(
  model, space, gallery, ids, schema
):
  rng = np.random.default_rng(6)
  attributes = rng.uniform(size=(3, 30)).astype(np.float32)
  variants = rng.uniform(size=(3, 5, 30)).astype(np.float32)
  answer = model['explain'](attributes=tf.constant(attributes), variants=tf.constant(variants))
  expected = model['serving_default'](attributes=tf.constant(attributes))
  assert texts(answer['ids']) == texts(expected['ids'])
  np.testing.assert_allclose(answer['scores'], expected['scores'], atol=1e-6)
  assert answer['variant_scores'].shape == (3, 20, 5)
  rows = {name: row for row, name in enumerate(ids)}
  for i, names in enumerate(texts(answer['ids'])):
    concepts = space.encode_attributes(variants[i]).numpy()
    products = gallery[[rows[name] for name in names]] @ concepts.T
    np.testing.assert_allclose(answer['variant_scores'][i], products, atol=2e-6)


def test_a_query_as_its_own_variant_scores_as_it_did(model):
  attributes = np.random.default_rng(7).uniform(size=(2, 30)).astype(np.float32)
  answer = model['explain'](
    attributes=tf.constant(attributes), variants=tf.constant(attributes[:, np.newaxis])
  )
  np.testing.assert_allclose(answer['variant_scores'][:, :, 0], answer['scores'], atol=1e-6)


def test_a_gallery_in_halves_explains_with_its_float32_numbers(encoders, gallery, ids):
  arguments = {'gallery': gallery, 'ids': ids, 'top_k': 7}
  rng = np.random.default_rng(8)
  inputs = {
    'attributes': tf.constant(rng.uniform(size=(2, 30)).astype(np.float32)),
    'variants': tf.constant(rng.uniform(size=(2, 3, 30)).astype(np.float32)),
  }
  whole, halves = (
    retriever.Retriever(
      encoders.image, encoders.attribute, gallery_precision=precision, **arguments
    ).signatures()['explain'](**inputs)
    for precision in ('float32', 'bfloat16')
  )
  assert texts(whole['ids']) == texts(halves['ids'])
  np.testing.assert_array_equal(whole['variant_scores'], halves['variant_scores'])


def test_variants_that_do_not_belong_to_the_queries_are_an_error(model):
  queries = tf.zeros([2, 30])
  with pytest.raises(tf.errors.InvalidArgumentError, match='Variants must be given for each query'):
    model['explain'](attributes=queries, variants=tf.zeros([3, 4, 30]))
  variants = np.zeros([2, 4, 30], np.float32)
  variants[1, 2, 3] = np.inf
  with pytest.raises(tf.errors.InvalidArgumentError, match='attribute vector holds NaN or inf'):
    model['explain'](attributes=queries, variants=tf.constant(variants))


def test_search_by_id_is_search_by_the_concept_of_that_row(model, gallery):
  answer = model['search_ids'](crop_ids=tf.constant(['test/0042.jpg', 'nobody', '']))
  expected = model['search_concepts'](concepts=tf.constant(gallery[[42]]))
  assert texts(answer['ids'])[0] == texts(expected['ids'])[0]
  np.testing.assert_allclose(answer['scores'][0], expected['scores'][0], atol=1e-6)
  assert texts(answer['ids'])[1:] == [[''] * 20] * 2
  assert not answer['scores'].numpy()[1:].any()


def test_the_model_describes_itself_without_a_path(model, schema, encoders):
  answers = texts(model['describe'](any=tf.constant(['', 'x']))['description'])
  assert answers[0] == answers[1]
  described = json.loads(answers[0])
  assert AttributeSchema.from_json(described['schema']) == schema
  assert (described['gallery_size'], described['num_results']) == (300, 20)
  assert described['fingerprint'] == encoders.fingerprint
  assert '/' not in answers[0] and 'squares' not in answers[0]


@pytest.mark.parametrize(
  ('signature', 'inputs', 'limit'),
  [
    ('serving_default', {'attributes': np.zeros([1025, 30], np.float32)}, 1024),
    ('embed_attributes', {'attributes': np.zeros([1025, 30], np.float32)}, 1024),
    ('search_concepts', {'concepts': np.zeros([1025, 12], np.float32)}, 1024),
    ('search_words', {'words': [''] * 1025}, 1024),
    ('embed_images', {'image_bytes': [''] * 257}, 256),
    ('search_images', {'image_bytes': [''] * 257}, 256),
    ('search_ids', {'crop_ids': [''] * 65}, 64),
    ('describe', {'any': [''] * 65}, 64),
    (
      'explain',
      {'attributes': np.zeros([1, 30], np.float32), 'variants': np.zeros([1, 16385, 30], 'f')},
      16384,
    ),
  ],
)
def test_a_request_for_too_much_is_refused(model, signature, inputs, limit):
  with pytest.raises(tf.errors.InvalidArgumentError, match=f'A request may have {limit} '):
    model[signature](**{name: tf.constant(value) for name, value in inputs.items()})


def test_an_empty_batch_is_an_empty_answer(model):
  nothing = model['explain'](attributes=tf.zeros([0, 30]), variants=tf.zeros([0, 4, 30]))
  assert nothing['variant_scores'].shape == (0, 20, 4)
  without = model['explain'](attributes=tf.zeros([2, 30]), variants=tf.zeros([2, 0, 30]))
  assert without['variant_scores'].shape == (2, 20, 0)
  assert model['serving_default'](attributes=tf.zeros([0, 30]))['ids'].shape == (0, 20)
  assert model['embed_images'](image_bytes=tf.constant([], tf.string))['concepts'].shape == (0, 12)
  assert model['search_words'](words=tf.constant([], tf.string))['scores'].shape == (0, 20)


JPEG = b'\xff\xd8\xff'


@pytest.mark.parametrize(
  ('contents', 'message'),
  [
    (b'', 'neither a JPEG nor a PNG'),
    (b'GIF89a' + bytes(50), 'neither a JPEG nor a PNG'),
    (b'BM' + bytes(100), 'neither a JPEG nor a PNG'),
    (JPEG, 'JPEG'),
    (JPEG + bytes(500), 'JPEG'),
    (png_header(10, 10), 'PNG'),
    (png_header(10, 10)[:20], 'PNG'),
    (png_header(2**16, 2**16), 'more than 16777216 pixels'),
    (png_header(2**31 - 1, 2**31 - 1), 'more than 16777216 pixels'),
    (png_header(0, 0), 'PNG'),
  ],
)
def test_bytes_that_are_no_crop_are_an_error_that_says_so(model, crops, contents, message):
  with pytest.raises(tf.errors.InvalidArgumentError, match=message):
    model['embed_images'](image_bytes=tf.constant([crops[0].contents, contents]))


def test_damaged_copies_of_a_crop_are_an_error_or_a_concept_never_a_crash(model, crops):
  rng = np.random.default_rng(4)
  outcomes = set()
  for crop in crops[:2]:
    for _ in range(40):
      data = bytearray(crop.contents[: rng.integers(1, len(crop.contents) + 1)])
      for position in rng.integers(0, len(data), 3):
        data[position] = rng.integers(256)
      try:
        concepts = model['embed_images'](image_bytes=tf.constant([bytes(data)]))['concepts']
        assert concepts.shape == (1, 12) and np.isfinite(concepts).all()
        outcomes.add('concept')
      except tf.errors.InvalidArgumentError:
        outcomes.add('error')
  assert 'error' in outcomes


def test_attributes_that_are_not_finite_are_an_error(model):
  attributes = np.zeros([2, 30], np.float32)
  attributes[1, 4] = np.nan
  with pytest.raises(tf.errors.InvalidArgumentError, match='NaN'):
    model['serving_default'](attributes=tf.constant(attributes))


def test_a_gallery_smaller_than_k_answers_all_of_it(encoders, gallery, schema):
  small = retriever.Retriever(
    encoders.image, encoders.attribute, gallery=gallery[:5], ids='abcde', top_k=100
  )
  answer = small.signatures()['serving_default'](attributes=tf.zeros([2, 30]))
  assert answer['ids'].shape == (2, 5)
  assert sorted(texts(answer['ids'])[0]) == list('abcde')
  assert 'search_words' not in small.signatures()


def test_schema_of_another_size_is_refused(encoders, gallery, schema):
  from tfreid.data import dukemtmc

  with pytest.raises(
    ValueError, match='schema of .* has 23 columns, the attribute encoder takes 30'
  ):
    retriever.Retriever(
      encoders.image, encoders.attribute, gallery=gallery[:1], ids='a', schema=dukemtmc.SCHEMA
    )
