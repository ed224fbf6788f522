from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tfreid.serving import golden

sys.path.insert(0, str(Path(__file__).parent))
from damaged import change_variable


@pytest.fixture
def copy(exported, tmp_path):
  """A version that a test may damage."""
  return Path(shutil.copytree(exported, tmp_path / 'people' / '1'))


def problems(outcomes):
  return {outcome.signature for outcome in outcomes if outcome.problem}


def test_a_version_gives_its_golden_answers_again(exported, model):
  outcomes = golden.replay(exported, golden.loaded(exported))
  assert {outcome.signature for outcome in outcomes} == set(model) - {'owner'}
  assert problems(outcomes) == set()
  for outcome in outcomes:
    assert 0 <= outcome.deviation <= outcome.tolerance == 1e-4


@pytest.mark.parametrize(
  ('variable', 'differing'),
  [
    # A change of 1 %: far more than rounding, and no reason to look elsewhere than in numbers.
    (
      'attribute_encoder/weights/0',
      {'serving_default', 'embed_attributes', 'explain', 'search_words'},
    ),
    ('image_encoder/weights/2', {'embed_images', 'search_images'}),
    (
      'gallery/vectors',
      {
        'serving_default',
        'search_images',
        'search_concepts',
        'search_ids',
        'search_words',
        'explain',
      },
    ),
  ],
)
def test_a_changed_variable_is_noticed_by_the_signatures_that_read_it(copy, variable, differing):
  change_variable(copy, variable, lambda value: (value * 1.01).astype(value.dtype))
  outcomes = golden.replay(str(copy), golden.loaded(str(copy)))
  assert problems(outcomes) == differing
  for outcome in outcomes:
    assert (outcome.deviation > 1e-4) == (outcome.signature in differing)
  # Who asks for less precision gets it.
  assert not problems(golden.replay(str(copy), golden.loaded(str(copy)), tolerance=0.2))


def test_ids_that_were_exchanged_are_noticed_though_all_numbers_are_right(copy):
  change_variable(copy, 'ids', lambda value: value[::-1])
  outcomes = {o.signature: o for o in golden.replay(str(copy), golden.loaded(str(copy)))}
  assert 'the crop in place 1 is' in outcomes['serving_default'].problem
  assert not outcomes['embed_attributes'].problem


def test_a_file_that_is_not_what_was_written_is_not_loaded(copy):
  data = copy / 'variables' / 'variables.data-00000-of-00001'
  contents = bytearray(data.read_bytes())
  contents[len(contents) // 2] ^= 1
  data.write_bytes(contents)
  with pytest.raises(ValueError, match='cannot be loaded: .*copy them again'):
    golden.loaded(str(copy))


def test_missing_and_damaged_golden_requests_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'golden\.json.* does not exist'):
    golden.read(str(tmp_path))
  (tmp_path / 'assets.extra').mkdir()
  path = tmp_path / 'assets.extra' / 'golden.json'
  for text in ('', '[]', '{"golden": [{"request": {}}]}', '{"golden": [], "tolerance": "none"}'):
    path.write_text(text)
    with pytest.raises(ValueError, match=r'damaged.*golden\.json|golden\.json.* is damaged'):
      golden.read(str(tmp_path))


RANKING = {'ids': ['a', 'b', 'c'], 'scores': [3.0, 2.0, 2.0]}
CONCEPTS = [3.0, 4.0]  # of length 5


def write(folder, signature, predictions, **facts):
  """A version that consists of one golden request, of as many rows as there are predictions."""
  entry = {
    'request': {
      'signature_name': signature,
      'instances': [{'words': f'text {i}'} for i in range(len(predictions))],
    },
    'response': {'predictions': predictions},
    **facts,
  }
  extra = folder / 'assets.extra'
  extra.mkdir(exist_ok=True)
  (extra / 'golden.json').write_text(json.dumps({'tolerance': 0.01, 'golden': [entry]}))
  return str(folder)


def outcome_of(folder, answer, asked=None):
  def ask(signature, inputs):
    if asked is not None:
      asked.append((signature, {name: list(values) for name, values in inputs.items()}))
    return answer

  (outcome,) = golden.replay(folder, ask)
  return outcome


@pytest.mark.parametrize(
  ('ids', 'scores', 'deviation', 'problem'),
  [
    ('abc', [3.0, 2.0, 2.0], 0.0, ''),
    ('abc', [3.04, 2.0, 2.0], 0.008, ''),
    # Crops of equal score have no order that another machine must find.
    ('acb', [3.0, 2.0, 2.0], 0.0, ''),
    # Nor does one that is not in the golden answer have to be worse than the last of it.
    ('abd', [3.0, 2.0, 2.0], 0.0, ''),
    ('abc', [3.06, 2.0, 2.0], 0.012, 'the scores: off by 0.012'),
    ('abc', [3.0, 2.0, math.nan], math.nan, 'the scores: off by nan'),
    ('bac', [3.0, 2.0, 2.0], 0.0, "place 1 is 'b', not 'a'"),
    ('dbc', [3.0, 2.0, 2.0], 0.0, "place 1 is 'd', not 'a'"),
    ('abb', [3.0, 2.0, 2.0], 0.0, "the crops are ['a', 'b', 'b']"),
    ('ab', [3.0, 2.0], 0.0, '2 results, not 3'),
  ],
)
def test_rankings_are_compared_by_score_and_place(tmp_path, ids, scores, deviation, problem):
  folder = write(tmp_path, 'search_words', [RANKING], tolerance=0.01, score_tolerance=0.05)
  answer = {'ids': np.array([[*ids]], object), 'scores': np.array([scores])}
  found = outcome_of(folder, answer)
  assert problem in found.problem and bool(problem) == bool(found.problem)
  assert found.deviation == pytest.approx(deviation, nan_ok=True)
  # An export of before tolerances were put down for each request: the greatest score is the scale,
  # and 1 % of 3 is less than 0.04.
  folder = write(tmp_path, 'search_words', [RANKING])
  assert bool(outcome_of(folder, answer).problem) == bool(problem or scores[0] == 3.04)


def test_nothing_found_must_stay_nothing_found(tmp_path):
  golden_row = {'ids': ['', ''], 'scores': [0.0, 0.0], 'unknown': 'zebra'}
  folder = write(tmp_path, 'search_words', [golden_row], tolerance=0.01, score_tolerance=0.05)
  answer = {'ids': [[b'', b'']], 'scores': [[0.0, 0.0]], 'unknown': [b'zebra']}
  answer = {name: np.array(value, object) for name, value in answer.items()}
  assert not outcome_of(folder, answer).problem
  wrong = {**answer, 'ids': np.array([['a', 'b']], object)}
  assert "the crops are ['a', 'b']" in outcome_of(folder, wrong).problem
  wrong = {**answer, 'unknown': np.array(['horse'], object)}
  assert "unknown is 'horse', not 'zebra'" in outcome_of(folder, wrong).problem


def test_scores_of_variants_are_compared_crop_by_crop(tmp_path):
  row = {**RANKING, 'variant_scores': [[1.0], [5.0], [9.0]]}
  folder = write(tmp_path, 'explain', [row], tolerance=0.01, score_tolerance=0.05)
  ids, scores = np.array([['a', 'c', 'b']], object), np.array([RANKING['scores']])
  right = {'ids': ids, 'scores': scores, 'variant_scores': np.array([[[1.0], [9.0], [5.0]]])}
  assert not outcome_of(folder, right).problem
  wrong = {**right, 'variant_scores': np.array([[[1.0], [5.0], [9.0]]])}
  assert 'variant_scores: off by' in outcome_of(folder, wrong).problem


@pytest.mark.parametrize(
  ('answer', 'problem'),
  [
    # A single output has no name in the golden answer.
    ({'concepts': np.array([CONCEPTS, CONCEPTS])}, ''),
    ({'concepts': np.array([CONCEPTS, [3.0, 4.04]])}, ''),
    ({'concepts': np.array([CONCEPTS, [3.0, 4.1]])}, 'request 2: concepts: off by 0.02'),
    ({'concepts': np.array([[math.inf, 4.0], CONCEPTS])}, 'request 1: concepts: off by inf'),
    ({'concepts': np.array([[3.0], [3.0]])}, 'has the shape (1,)'),
    ({'concepts': np.array([CONCEPTS])}, 'does not answer 2 requests'),
    ({'concepts': np.array([CONCEPTS] * 2), 'ids': np.array(['', ''])}, 'it has 2 outputs'),
  ],
)
def test_concepts_are_compared_by_their_relative_error(tmp_path, answer, problem):
  folder = write(tmp_path, 'embed_images', [CONCEPTS, CONCEPTS], tolerance=0.01)
  asked = []
  found = outcome_of(folder, answer, asked)
  assert problem in found.problem and bool(problem) == bool(found.problem)
  assert asked == [('embed_images', {'words': ['text 0', 'text 1']})]


def test_other_outputs_and_refused_requests_are_problems(tmp_path):
  folder = write(tmp_path, 'search_words', [RANKING])
  found = outcome_of(folder, {'ids': np.array([['a', 'b', 'c']], object)})
  assert "its outputs are ['ids'], not ['ids', 'scores']" in found.problem

  def refuse(signature, inputs):
    raise ValueError('no such signature')

  (found,) = golden.replay(folder, refuse)
  assert found.problem == 'no answer: no such signature' and math.isnan(found.deviation)
