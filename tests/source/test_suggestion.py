from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tfreid.data import market1501
from tfreid.data.attributes import Attribute, AttributeSchema
from tfreid.source import attribution, suggestion
from tfreid.source.answer import Suggestion

SCHEMA = AttributeSchema(
  'Depot',
  (
    Attribute('hat', ('no', 'yes'), (('hat', 2),)),
    Attribute('color', ('red', 'green'), (('red', 1), ('green', 1))),
  ),
  {'hat': (1, 2), 'red': (0, 1), 'green': (0, 1)},
  'three_state',
)
SURE = 1000.0  # a difference of scores that leaves no doubt at temperature 1


def gain(scores, answers):
  return suggestion.information_gain(np.asarray(scores), np.asarray(answers), temperature=1.0)


def test_an_attribute_that_splits_the_candidates_in_halves_gives_one_bit():
  assert gain([0.0] * 4, [[SURE, 0.0]] * 2 + [[0.0, SURE]] * 2) == pytest.approx(1.0)


def test_an_attribute_that_all_candidates_share_gives_nothing():
  assert gain([0.0] * 4, [[SURE, 0.0]] * 4) == 0.0


def test_an_attribute_about_which_the_model_knows_nothing_gives_nothing():
  # Every answer is as likely for each candidate: H(V) = H(V | C) = 1 bit.
  assert gain([0.0] * 4, [[0.3, 0.3]] * 4) == pytest.approx(0.0, abs=1e-12)


def test_an_attribute_that_tells_each_of_four_candidates_apart_gives_two_bits():
  assert gain([0.0] * 4, SURE * np.eye(4)) == pytest.approx(2.0)


def test_candidates_count_by_the_softmax_of_their_scores():
  """Shares 3/4 and 1/4; the answer says which: H(3/4) = 2 - (3/4) log2 3 bits."""
  expected = 2.0 - 0.75 * math.log2(3.0)
  assert gain([math.log(3.0), 0.0], [[SURE, 0.0], [0.0, SURE]]) == pytest.approx(expected)


def test_a_doubtful_answer_gives_less():
  """Two candidates; the answer is right in 3 of 4 cases: 1 - H(1/4) bits, as a noisy channel."""
  right = math.log(3.0)
  expected = 1.0 - (2.0 - 0.75 * math.log2(3.0))
  assert gain([0.0, 0.0], [[right, 0.0], [0.0, right]]) == pytest.approx(expected)


def test_the_gain_is_within_its_bounds_and_does_not_change_with_the_zero_of_the_scores():
  rng = np.random.default_rng(0)
  for _ in range(50):
    scores, answers = rng.normal(size=6), 3 * rng.normal(size=(6, 3))
    found = gain(scores, answers)
    assert 0.0 <= found <= math.log2(3)
    assert gain(scores + 5.0, answers - 7.0) == pytest.approx(found)


def test_suggestions_are_sorted_and_do_not_change_with_the_unit_of_the_scores():
  questions = suggestion.questions(SCHEMA, {})
  scores = np.array([0.1, 0.2, 0.3, 0.4])
  # All have no hat; two are red, two green, none has no colour.
  answers = np.array([[0.5, 0.1, 0.9, 0.1, -0.5]] * 2 + [[0.5, 0.1, 0.1, 0.9, -0.5]] * 2)
  found = suggestion.suggestions(questions, scores, answers)
  assert [suggestion.attribute for suggestion in found] == ['color', 'hat']
  assert found[0].gain > 0.1 and found[1].gain == pytest.approx(0.0, abs=1e-9)
  again = suggestion.suggestions(questions, 100 * scores + 3, 100 * answers - 3)
  assert [suggestion.gain for suggestion in again] == pytest.approx([s.gain for s in found])


def test_candidates_that_nothing_tells_apart_give_gains_of_zero_in_the_order_of_the_schema():
  questions = suggestion.questions(SCHEMA, {})
  found = suggestion.suggestions(questions, np.ones(3), np.ones((3, 5)))
  assert found == [Suggestion('hat', 0.0), Suggestion('color', 0.0)]
  assert suggestion.suggestions(questions, np.ones(0), np.ones((0, 5))) == []
  assert suggestion.suggestions([], np.ones(3), np.ones((3, 0))) == []


def test_questions_are_what_was_not_said_with_every_answer():
  (question,) = suggestion.questions(SCHEMA, {'hat': '!yes'})
  assert (question.attribute, question.values) == ('color', ('red', 'green', 'none'))
  np.testing.assert_array_equal(question.vectors, [[-1, 1, -1], [-1, -1, 1], [-1, -1, -1]])
  (question,) = suggestion.questions(SCHEMA, {'color': 'red'})
  assert (question.attribute, question.values) == ('hat', ('no', 'yes'))
  np.testing.assert_array_equal(question.vectors, [[-1, 1, -1], [1, 1, -1]])
  assert suggestion.questions(SCHEMA, {'color': '!red', 'hat': 'no'}) == []


def test_withdrawing_an_attribute_leaves_the_rest_and_the_last_leaves_nothing_said():
  found = attribution.leave_one_out(SCHEMA, {'color': '!red', 'hat': 'yes'})
  np.testing.assert_array_equal(found, [[1, 0, 0], [0, -1, 0]])
  np.testing.assert_array_equal(attribution.leave_one_out(SCHEMA, {'hat': 'no'}), [[0, 0, 0]])
  binary = market1501.SCHEMA
  assert binary.encoding == 'binary' and not binary.rates
  (rest,) = attribution.leave_one_out(binary, {'gender': 'female'})
  np.testing.assert_array_equal(rest, np.full(binary.size, 0.5))


@pytest.mark.parametrize('encoding', ['binary', 'three_state'])
@pytest.mark.parametrize('rates', [(), tuple(np.linspace(0.1, 0.9, market1501.SCHEMA.size))])
def test_questions_and_what_is_withdrawn_are_what_the_schema_encodes(encoding, rates):
  """Both are made of the whole query's vector; here of a query for each."""
  schema = dataclasses.replace(market1501.SCHEMA, encoding=encoding, rates=rates)
  rng = np.random.default_rng(1)
  for _ in range(20):
    chosen = rng.permutation(len(schema.attributes))[: rng.integers(2, 8)]
    query = {
      attribute.name: rng.choice(['', '!']) + rng.choice(attribute.values)
      for attribute in (schema.attributes[i] for i in chosen)
    }
    for left_out, vector in zip(query, attribution.leave_one_out(schema, query)):
      rest = {name: value for name, value in query.items() if name != left_out}
      np.testing.assert_array_equal(vector, schema.encode_query(rest))
    asked = suggestion.questions(schema, query)
    assert [question.attribute for question in asked] == [
      attribute.name for attribute in schema.attributes if attribute.name not in query
    ]
    for question in asked:
      for value, vector in zip(question.values, question.vectors):
        expected = schema.encode_query({**query, question.attribute: value})
        np.testing.assert_array_equal(vector, expected)


def test_reasons_are_score_with_minus_score_without():
  found = attribution.reasons(['hat', 'color'], [1.0, 0.5], [[0.75, 1.25], [0.5, 0.0]])
  assert found == [{'hat': 0.25, 'color': -0.25}, {'hat': 0.0, 'color': 0.5}]
