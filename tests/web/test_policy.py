from __future__ import annotations

import pytest

from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.index import filters
from tfreid.web import policy
from tfreid.web.policy import RefusedError

SCHEMA = AttributeSchema(
  'Depot',
  (
    Attribute('gender', ('male', 'female'), (('gender', 2),), {'female': ('woman',)}),
    Attribute('hat', ('no', 'yes'), (('hat', 2),)),
  ),
  {'gender': (1, 2), 'hat': (1, 2)},
)


def test_without_rules_everything_is_allowed():
  rules = policy.from_json({})
  rules.check_attributes(['gender'])
  rules.check_purpose('')
  assert rules == policy.Policy()
  assert policy.from_json({'blur_thumbnails': 3}).blur_thumbnails == 3.0


def test_rules_are_read(tmp_path):
  path = tmp_path / 'policy.json'
  # With a byte order mark, as Windows' editors write it.
  path.write_text(
    '\ufeff{"disabled_attributes": ["gender"], "require_purpose": ["lost property"],'
    ' "max_results": 5, "blur_thumbnails": 2.5, "uploads": false}'
  )
  assert policy.read(str(path)) == policy.Policy(
    disabled_attributes=frozenset({'gender'}),
    require_purpose=True,
    purposes=('lost property',),
    max_results=5,
    blur_thumbnails=2.5,
    uploads=False,
  )


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('', 'cannot be read'),
    ('[1]', 'a policy is an object'),
    ('[' * 100_000, 'cannot be read'),
    ('{"max_result": 5}', "no rule 'max_result'"),
    ('{"max_results": 5, "max_results": 500}', 'given twice'),
    ('{"max_results": 0}', 'at least 1'),
    ('{"max_results": true}', 'at least 1'),
    ('{"max_results": "5"}', 'at least 1'),
    ('{"uploads": "no"}', 'true or false'),
    ('{"uploads": 0}', 'true or false'),
    ('{"blur_thumbnails": -1}', 'a radius'),
    ('{"blur_thumbnails": NaN}', 'a radius'),
    ('{"blur_thumbnails": true}', 'a radius'),
    ('{"disabled_attributes": "gender"}', 'list of texts'),
    ('{"disabled_attributes": ["gender", 1]}', 'list of texts'),
    ('{"require_purpose": []}', 'no purpose'),
    ('{"require_purpose": ["lost child", "\\u200b"]}', 'list of texts'),
    ('{"max_results": null}', 'at least 1'),
    ('{"max_results": 2.5}', 'at least 1'),
    ('{"blur_thumbnails": 65}', 'a radius'),
    ('{"blur_thumbnails": 1e999}', 'a radius'),
    ('{"require_purpose": "yes"}', 'list of texts'),
  ],
)
def test_a_file_that_is_no_policy_is_refused_with_its_name(tmp_path, text, said):
  path = tmp_path / 'policy.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=said) as error:
    policy.read(str(path))
  assert str(path) in str(error.value)


def test_a_rule_about_an_attribute_that_does_not_exist_is_an_error():
  with pytest.raises(ValueError, match="disables 'gendre'"):
    policy.from_json({'disabled_attributes': ['gendre']}).check_schema(SCHEMA)
  policy.from_json({'disabled_attributes': ['gender']}).check_schema(SCHEMA)
  with pytest.raises(ValueError, match='every attribute'):
    policy.from_json({'disabled_attributes': ['gender', 'hat']}).visible_schema(SCHEMA)


def test_rules_that_do_not_fit_are_narrowed_to_what_is_known_to_be_allowed():
  rules = policy.from_json({'disabled_attributes': ['sex'], 'max_results': 5})
  narrowed = rules.narrowed(SCHEMA, {'hat', 'bag'})
  assert narrowed.disabled_attributes == {'sex', 'gender'}
  assert narrowed.max_results == 5
  assert [a.name for a in narrowed.visible_schema(SCHEMA).attributes] == ['hat']
  with pytest.raises(RefusedError) as error:
    narrowed.read_words('woman', SCHEMA)
  assert 'female' not in str(error.value)
  with pytest.raises(ValueError, match='every attribute'):
    rules.narrowed(SCHEMA, {'bag'}).visible_schema(SCHEMA)


@pytest.mark.parametrize(
  'text',
  ['woman', 'hat, woman', 'gender=male', 'GENDER != female', 'gender=!male', 'woman, gender=male'],
)
def test_words_for_a_disabled_attribute_are_refused(text):
  rules = policy.from_json({'disabled_attributes': ['gender']})
  with pytest.raises((RefusedError, ValueError)) as error:
    rules.read_words(text, SCHEMA)
  assert 'female' not in str(error.value).replace(text, '')
  assert rules.read_words('no hat', SCHEMA) == {'hat': 'no'}


def test_messages_about_words_do_not_tell_of_disabled_attributes():
  rules = policy.from_json({'disabled_attributes': ['gender']})
  with pytest.raises(ValueError, match='Did not understand') as error:
    rules.read_words('womann', SCHEMA)
  assert 'gender' not in str(error.value)
  assert "'woman'" not in str(error.value)


def test_purposes():
  any_purpose = policy.from_json({'require_purpose': True})
  any_purpose.check_purpose('lost child')
  for purpose in (
    '', '  ', '\t\n', '\u200b', '\u200b\u2060\ufeff', '\u00ad', '\u3164', '\u2800 \u00a0', '\u0301',
    '\u202e\u202c', '\x00\x1b', '\ufe0f', '\U000e0001', '\ue000',
  ):  # fmt: skip
    with pytest.raises(RefusedError, match='purpose is stated'):
      any_purpose.check_purpose(purpose)
  for purpose in ('?', 'é', '人', '\U0001f600', '\u200b7\u200b'):
    any_purpose.check_purpose(purpose)
  listed = policy.from_json({'require_purpose': ['lost child']})
  listed.check_purpose('lost child')
  policy.from_json({'require_purpose': ['vermisst: Gr\u00fcn']}).check_purpose(
    'vermisst: Gru\u0308n'
  )
  for purpose in ('', 'curiosity', 'LOST CHILD', 'lost child '):
    with pytest.raises(RefusedError, match='One of: lost child'):
      listed.check_purpose(purpose)


def test_all_fields_of_a_condition_are_found():
  text = 'camera == 1 and not (site in ["a"] or hat is None or 3 < time < 5) or gender == "male"'
  assert policy.fields_of(filters.parse(text)) == {'camera', 'site', 'hat', 'time', 'gender'}
  assert policy.fields_of(filters.required({'hat': '!yes'}, {'gender': 'male'})) == {
    'hat',
    'gender',
  }
  rules = policy.from_json({'disabled_attributes': ['gender']})
  with pytest.raises(RefusedError):
    rules.check_condition(filters.parse(text))
  # Python reads identifiers after NFKC: a full-width letter is no way round.
  with pytest.raises(RefusedError):
    rules.check_condition(filters.parse('ｇender == "male"'))
