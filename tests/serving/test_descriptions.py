from __future__ import annotations

import random
import unicodedata

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data import dukemtmc, market1501, words
from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.serving import descriptions


def traced(schema):
  reader = descriptions.DescriptionReader(schema)
  return tf.function(reader, input_signature=[tf.TensorSpec([None], tf.string)])


@pytest.fixture(scope='module')
def schemas():
  market = market1501.SCHEMA
  rates = tuple(np.linspace(0.05, 0.95, market.size))
  custom = AttributeSchema(
    name='custom',
    attributes=(
      Attribute('hat', ('no', 'yes'), (('hat', 2),)),
      Attribute(
        'coat',
        ('dark red', 'blue'),
        (('coat', 1), ('coat', 2)),
        words={'dark red': ('dark red coat', 'dark red'), 'blue': ('blue coat',)},
      ),
      Attribute('béret', ('no', 'yes'), (('béret', 2),), words={'yes': ('bonnet d’été',)}),
    ),
    raw_values={'hat': (1, 2), 'coat': (1, 2, 3), 'béret': (1, 2)},
    encoding='three_state',
  )
  return {
    'market, rates': AttributeSchema(
      market.name, market.attributes, market.raw_values, rates=rates
    ),
    'duke, three states': AttributeSchema(
      dukemtmc.SCHEMA.name,
      dukemtmc.SCHEMA.attributes,
      dukemtmc.SCHEMA.raw_values,
      encoding='three_state',
    ),
    'custom': custom,
  }


@pytest.fixture(scope='module')
def readers(schemas):
  return {name: traced(schema) for name, schema in schemas.items()}


NAMES = ('market, rates', 'duke, three states', 'custom')


def random_text(rng, schema):
  """Phrases, settings, connectives, negations and nonsense in random order and spelling."""
  table = list(words.phrases(schema))
  pieces = []
  for _ in range(rng.randint(1, 6)):
    kind = rng.random()
    if kind < 0.5:
      piece = rng.choice(table)
    elif kind < 0.65:
      attribute = rng.choice(schema.attributes)
      value = rng.choice([*attribute.values, 'none', 'mauve'])
      spaces = rng.choice(['', ' '])
      sign = rng.choice(['=', '!=', '=', '=!'])
      piece = f'{attribute.name}{spaces}{sign}{spaces}{value},'
    elif kind < 0.85:
      piece = rng.choice(['and', 'with', 'the', 'no', 'without', 'not', 'wearing', 'a', 'and and'])
    else:
      piece = rng.choice(['zebra', 'or', 'purple', 'red', 'striped tights', 'é', '"big"', 'd’été'])
    piece = piece.upper() if rng.random() < 0.2 else piece
    form = rng.choice(['NFC', 'NFC', 'NFD'])
    around = rng.choice(['', '', '', '\u201c', '\u2019', '\u00a0', '\u200b', '\x00', '\u2003'])
    piece = unicodedata.normalize(form, piece).replace(' ', rng.choice([' ', ' ', '  ', '\u00a0 ']))
    pieces.append(around + piece + around + rng.choice(['', '', ',', ' ;', '.', '  ']))
  return ' '.join(pieces)


@pytest.mark.parametrize('name', NAMES)
def test_graph_reads_random_texts_as_python_does(name, schemas, readers):
  schema, rng = schemas[name], random.Random(name)
  texts = [random_text(rng, schema) for _ in range(400)]
  reading = readers[name](tf.constant(texts))
  understood = 0
  for i, text in enumerate(texts):
    # The graph composes the letters of its phrases only.
    unknown = unicodedata.normalize('NFC', reading.unknown[i].numpy().decode())
    valid = bool(reading.valid[i])
    try:
      expected = words.parse(text, schema)
    except ValueError as error:
      assert not valid, text
      if str(error).startswith('Did not understand'):
        assert unknown, text
        for run in unknown.split('; '):
          # A setting is told apart by the underscores of its single token.
          assert f"'{run}'" in str(error) or '=' in run or ' and ' in run, (text, str(error))
      continue
    assert valid and unknown == '', (text, expected, unknown)
    settings = [
      f'{a.name}!={expected[a.name][1:]}'
      if expected[a.name].startswith('!')
      else f'{a.name}={expected[a.name]}'
      for a in schema.attributes
      if a.name in expected
    ]
    assert reading.understood[i].numpy().decode() == ', '.join(settings), ascii(text)
    np.testing.assert_array_equal(reading.vectors[i], schema.encode_query(expected), err_msg=text)
    understood += 1
  assert 60 < understood < 360  # both sides of the comparison were met


@pytest.mark.parametrize('name', NAMES)
def test_every_phrase_and_setting_is_read_as_python_reads_it(name, schemas, readers):
  schema = schemas[name]
  texts = list(words.phrases(schema))
  for attribute in schema.attributes:
    for value in attribute.values:
      texts += [f'{attribute.name}={value}', f'{attribute.name} != {value.upper()}']
  reading = readers[name](tf.constant(texts))
  assert reading.valid.numpy().all()
  expected = [schema.encode_query(words.parse(text, schema)) for text in texts[::7]]
  np.testing.assert_array_equal(reading.vectors[::7], expected)


@pytest.mark.parametrize(
  ('text', 'unknown', 'contradictory', 'understood'),
  [
    ('woman, red top, no hat', '', '', 'gender=female, hat=no, upper_color=red'),
    ('', '', '', ''),
    (' , ; ', '', '', ''),
    ('a woman with', '', '', 'gender=female'),
    ('purple cow and blue pants', 'purple cow', '', 'lower_type=pants, lower_color=blue'),
    ('man, woman', '', 'gender', 'gender=male'),
    ('no hat and backpack', 'no hat and backpack', '', 'hat=no'),
    ('no hat, backpack', '', '', 'hat=no, backpack=yes'),
    ('no white skirt xx yy, zz', 'no white skirt; xx yy; zz', '', ''),
    ('gender=femal', 'gender=femal', '', ''),
    ('gender==male', 'gender==male', '', ''),
    ('upper_color=none, upper_color!=red', '', '', 'upper_color=none'),
    ('upper_color=black+white', 'upper_color=black+white', '', ''),
    ('upper_color!=red, upper_color!=blue', '', 'upper_color', 'upper_color!=red'),
    ('woman\x1fman\x00 \x1f', '', 'gender', 'gender=female'),
    ('woman\x00, zebra', 'zebra', '', 'gender=female'),
  ],
)
def test_what_is_not_understood_is_reported(text, unknown, contradictory, understood, readers):
  reading = readers['market, rates'](tf.constant([text, 'woman']))
  assert reading.unknown[0].numpy().decode() == unknown
  assert reading.contradictory[0].numpy().decode() == contradictory
  assert reading.understood[0].numpy().decode() == understood
  assert bool(reading.valid[0]) == (bool(understood) and not unknown and not contradictory)
  # Whoever asks beside it is not touched.
  assert bool(reading.valid[1]) and reading.understood[1] == b'gender=female'


def test_empty_batches_long_texts_and_broken_bytes_are_no_crash(readers):
  read = readers['market, rates']
  assert read(tf.constant([], tf.string)).vectors.shape == (0, 30)
  texts = [b'woman \xff\xfe', b'\xff', b'woman ' * 200, b'man' + b' ' * 900, '女人'.encode()]
  reading = read(tf.constant(texts))
  assert reading.valid.numpy().tolist() == [False, False, False, True, False]
  assert reading.unknown[2] == b'a text of more than 1000 bytes'
  assert reading.unknown[4].numpy().decode() == '女人'
