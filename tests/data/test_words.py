from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tfreid.data import dukemtmc, market1501, peta, words
from tfreid.data.attributes import Attribute, AttributeSchema

MARKET = market1501.SCHEMA
SCHEMAS = [market1501.SCHEMA, dukemtmc.SCHEMA, peta.SCHEMA]


def small(*attributes):
  raw_values = {raw: (0, 1, 2) for attribute in attributes for raw, _ in attribute.columns}
  return AttributeSchema('small', attributes, raw_values)


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    (
      'gender=female, upper_color=red, backpack=yes',
      {'gender': 'female', 'upper_color': 'red', 'backpack': 'yes'},
    ),
    (' GENDER = Female ;upper color=red', {'gender': 'female', 'upper_color': 'red'}),
    ('hat!=yes', {'hat': 'no'}),
    ('hat=!yes', {'hat': 'no'}),
    ('gender!=male', {'gender': 'female'}),
    ('upper_color!=red', {'upper_color': '!red'}),
    ('upper_color=none', {'upper_color': 'none'}),
    (
      'female, red top, backpack, no hat',
      {'gender': 'female', 'upper_color': 'red', 'backpack': 'yes', 'hat': 'no'},
    ),
    (
      'A woman with a red shirt and blue trousers.',
      {'gender': 'female', 'upper_color': 'red', 'lower_color': 'blue', 'lower_type': 'pants'},
    ),
    (
      'old man wearing a grey coat, without a backpack',
      {'age': 'old', 'gender': 'male', 'upper_color': 'gray', 'backpack': 'no'},
    ),
    (
      'gender=male, long hair, white skirt, hat=no',
      {
        'gender': 'male',
        'hair': 'long',
        'lower_color': 'white',
        'lower_type': 'dress',
        'hat': 'no',
      },
    ),
    (
      'teenager in shorts and short sleeves',
      {'age': 'teenager', 'lower_length': 'short', 'sleeves': 'short'},
    ),
    ('no hat and no backpack', {'hat': 'no', 'backpack': 'no'}),
    ('no hat and with a backpack', {'hat': 'no', 'backpack': 'yes'}),
    ('not a red top', {'upper_color': '!red'}),
    ('hat, hat, with hat', {'hat': 'yes'}),
    ('no red top, blue top', {'upper_color': 'blue'}),
    ('adult, not old', {'age': 'adult'}),
    ('upper_color=black + white', {'upper_color': 'black+white'}),
    ('upper_color=white+black, upper_color!=red', {'upper_color': 'white+black'}),
    (
      '\ufeffwoman  with\u00a0a\u3000red\u200b\u2003shirt',
      {'gender': 'female', 'upper_color': 'red'},
    ),
    ('\u201cred top\u201d, \u2018no\u2019 hat', {'upper_color': 'red', 'hat': 'no'}),
    ('Upper  Color =\u00a0RED;hat\x00=\x7fno', {'upper_color': 'red', 'hat': 'no'}),
    ('lower length=short', {'lower_length': 'short'}),
  ],
)
def test_descriptions(text, said):
  assert words.parse(text, MARKET) == said


@pytest.mark.parametrize('schema', SCHEMAS, ids=lambda schema: schema.name)
def test_every_phrase_is_read_as_the_table_says(schema):
  table = words.phrases(schema)
  for phrase, (name, value) in table.items():
    assert words.parse(phrase, schema)[name] == value, phrase
    assert words.parse(f'Person with the {phrase.upper()}', schema)[name] == value, phrase


@pytest.mark.parametrize('schema', SCHEMAS, ids=lambda schema: schema.name)
def test_the_table_holds_known_attributes_and_values(schema):
  for phrase, (name, value) in words.phrases(schema).items():
    assert schema.check_value(name, value.lstrip('!')) == value.lstrip('!')
    assert not value.startswith('!') or not schema.attribute(name).is_binary
    assert phrase == ' '.join(phrase.lower().split())


@pytest.mark.parametrize('schema', SCHEMAS, ids=lambda schema: schema.name)
def test_every_value_of_every_attribute_can_be_said_in_words(schema):
  said = set(words.phrases(schema).values())
  for attribute in schema.attributes:
    for value in attribute.values:
      assert (attribute.name, value) in said


@pytest.mark.parametrize('schema', SCHEMAS, ids=lambda schema: schema.name)
def test_settings_survive_parsing(schema):
  rng = np.random.default_rng(0)
  for _ in range(100):
    chosen = rng.choice(len(schema.attributes), rng.integers(1, 8), replace=False)
    query = {}
    for attribute in (schema.attributes[i] for i in chosen):
      options = list(attribute.values)
      if not attribute.is_binary:
        options += ['none', *(f'!{value}' for value in attribute.values)]
      query[attribute.name] = str(rng.choice(options))
    text = ', '.join(
      f'{name}!={value[1:]}' if value.startswith('!') else f'{name}={value}'
      for name, value in query.items()
    )
    assert words.parse(text, schema) == query


@pytest.mark.parametrize('encoding', ['binary', 'three_state'])
def test_words_and_settings_give_the_same_vector(encoding):
  schema = dataclasses.replace(MARKET, encoding=encoding)
  in_words = words.parse('woman, red shirt, rucksack, no cap', schema)
  settings = words.parse('gender=female, upper_color=red, backpack=yes, hat=no', schema)
  np.testing.assert_array_equal(schema.encode_query(in_words), schema.encode_query(settings))


def test_the_longest_phrase_wins():
  schema = small(
    Attribute('bag', ('no', 'yes'), (('bag', 2),)),
    Attribute('plastic_bag', ('no', 'yes'), (('plastic', 2),)),
  )
  assert words.parse('bag', schema) == {'bag': 'yes'}
  assert words.parse('plastic bag', schema) == {'plastic_bag': 'yes'}
  assert words.parse('no plastic bag', schema) == {'plastic_bag': 'no'}


def test_a_comma_ends_a_phrase():
  with pytest.raises(ValueError, match="'red'"):
    words.parse('red, top', MARKET)


@pytest.mark.parametrize(
  ('text', 'messages'),
  [
    ('purpel top, hat', ["'purpel top' (nearest known: 'purple top')"]),
    ('man in a blakc shirt with a zebra', ["(nearest known: 'black shirt')", "'zebra'"]),
    ('red skirt', ["'red'"]),  # Market has no red lower body; the skirt alone is not what was said
    ('young woman', ["'young'"]),
    ('backpack or hat', ["'or'"]),
    ('no white skirt', ["'no white skirt'"]),
    ('black and white top', ["'black'"]),
  ],
)
def test_unknown_words_are_reported_with_the_nearest_known(text, messages):
  with pytest.raises(ValueError, match='Did not understand') as error:
    words.parse(text, MARKET)
  for message in messages:
    assert message in str(error.value)
  assert 'upper_color' in str(error.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('gendre=male', "Unknown attribute: 'gendre'. Did you mean 'gender'"),
    ('gender=femal', "Unknown value of 'gender': 'femal'. Did you mean 'female'"),
    ('upper_color=', "Unknown value of 'upper_color': ''"),
    ('=red', "Unknown attribute: ''"),
    ('a=b=c', "Cannot read 'a=b=c'"),
    ('upper_color!=none', 'name one'),
    ('upper_color!=red+blue', 'excludes several values at once'),
    ('upper_color=red+mauve', "Unknown value of 'upper_color': 'mauve'"),
    ('hat!=!!yes', "Unknown value of 'hat': '!yes'"),
  ],
)
def test_settings_that_cannot_be_read(text, message):
  with pytest.raises(ValueError, match=message):
    words.parse(text, MARKET)


@pytest.mark.parametrize(
  'text',
  [
    *('red top, blue top', 'hat, no hat', 'gender=male, woman', 'red top, not red top'),
    *('upper_color=black+white, not a white top', 'upper_color=black+white, black top'),
  ],
)
def test_contradictions_are_an_error(text):
  with pytest.raises(ValueError, match='contradicts itself'):
    words.parse(text, MARKET)


def test_two_exclusions_of_one_attribute_are_an_error():
  with pytest.raises(ValueError, match="Only one value of 'upper_color' can be excluded"):
    words.parse('no red top, no blue top', MARKET)


def test_a_denial_of_two_things_is_ambiguous():
  with pytest.raises(ValueError, match='can be read in two ways'):
    words.parse('without a hat and backpack', MARKET)


@pytest.mark.parametrize('text', ['', ' , ;', 'a person with'])
def test_an_empty_description_is_an_error(text):
  with pytest.raises(ValueError, match='names no attribute'):
    words.parse(text, MARKET)


def test_a_bare_color_is_no_phrase():
  """Before a garment that the table does not know it would colour the wrong one."""
  assert not {'red', 'pink', 'brown'} & set(words.phrases(MARKET))


def test_without_words_a_value_is_called_with_its_attribute():
  schema = small(
    Attribute('gender', ('male', 'female'), (('sex', 2),)),
    Attribute('vest_color', ('red', 'lime'), (('red', 1), ('lime', 1))),
    Attribute('hard_hat', ('no', 'yes'), (('hat', 1),)),
  )
  assert words.parse('female gender, lime vest color, no hard hat', schema) == {
    'gender': 'female',
    'vest_color': 'lime',
    'hard_hat': 'no',
  }


def test_articles_inside_the_schemas_words_do_not_matter():
  schema = small(Attribute('dog', ('no', 'yes'), (('dog', 1),), {'yes': ('walking the dog',)}))
  assert words.parse('walking a dog', schema) == {'dog': 'yes'}


def test_a_schema_that_uses_a_phrase_twice_is_an_error():
  schema = small(
    Attribute('bag', ('no', 'yes'), (('bag', 2),), {'yes': ('sack',)}),
    Attribute('backpack', ('no', 'yes'), (('backpack', 2),), {'yes': ('Sack',)}),
  )
  with pytest.raises(ValueError, match="'sack' both for bag=yes and for backpack=yes"):
    words.phrases(schema)


def test_a_schema_with_an_empty_phrase_is_an_error():
  schema = small(Attribute('bag', ('no', 'yes'), (('bag', 2),), {'yes': ('...',)}))
  with pytest.raises(ValueError, match='phrase without a word'):
    words.phrases(schema)


def test_color_words_know_both_spellings():
  assert words.color_words(['gray', 'red'], ['top']) == {
    'gray': ('gray top', 'grey top'),
    'red': ('red top',),
  }


def test_letters_with_accents_are_the_same_composed_and_decomposed():
  schema = small(
    Attribute(
      'été', ('foncé', 'bleu ciel'), (('a', 1), ('b', 1)), {'foncé': ('pull fonce\u0301',)}
    ),
    Attribute('béret', ('no', 'yes'), (('c', 2),)),
  )
  for text in ('Pull Foncé, no béret', 'pull fonce\u0301, no be\u0301ret', 'ÉTÉ=FONCÉ, béret!=yes'):
    assert words.parse(text, schema) == {'été': 'foncé', 'béret': 'no'}
  for text in ('été=bleu  ciel', 'e\u0301te\u0301 = Bleu_ciel', 'été=bleu\u00a0ciel'):
    assert words.parse(text, schema) == {'été': 'bleu ciel'}


def test_long_descriptions_are_refused_and_long_lists_of_unknown_words_shortened():
  with pytest.raises(ValueError, match='The description has 4,001 characters; at most 4,000'):
    words.parse('x' * 4001, MARKET)
  with pytest.raises(ValueError, match="'x{80}…'; .*and 15 more") as error:
    words.parse(','.join(['x' * 100] * 25), MARKET)
  assert len(str(error.value)) < 1500


def test_the_vocabulary_is_made_once_for_a_schema(monkeypatch):
  schema = dataclasses.replace(MARKET)
  made = []
  table = words._table
  monkeypatch.setattr(words, '_table', lambda schema: made.append(schema) or table(schema))
  for _ in range(3):
    assert words.parse('woman', schema) == {'gender': 'female'}
  words.phrases(schema)['woman'] = 'changed'
  assert words.parse('woman', schema) == {'gender': 'female'}
  assert made == [schema]
  # Another schema has another.
  assert 'woman' not in words.phrases(small(Attribute('hat', ('no', 'yes'), (('hat', 2),))))
