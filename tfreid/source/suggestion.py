"""What to ask next: the attributes whose answers tell the candidates apart. Floor 2.

Everything here is arithmetic on scores and attribute vectors. Whoever has the scores (an exported
model, an index, a server) gives them; so all of them give the same advice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tfreid.data.attributes import AttributeSchema
from tfreid.source.answer import Suggestion


class Question(NamedTuple):
  """An attribute that could be asked for, and the queries that its answers would make.

  Attributes:
    attribute: its name.
    values: the possible answers, V of them.
    vectors: float32 [V, A], the query with each answer added.
  """

  attribute: str
  values: tuple[str, ...]
  vectors: np.ndarray


def questions(
  schema: AttributeSchema, query: Mapping[str, str], said: np.ndarray | None = None
) -> list[Question]:
  """The attributes of which the query says nothing, each with the queries its answers would make.

  Args:
    schema: of the attributes.
    query: attribute name to value or '!value'.
    said: float32 [A], the vector of the query, where that is known already.

  Returns:
    In the order of the schema; none when everything is said. 'none' is an answer for attributes
    that have a column per value.
  """
  alone, own, places = schema.derive('questions', _answers_of_all)
  # An attribute has columns of its own, so an answer is the query with these exchanged.
  if said is None:
    said = schema.encode_query(query) if query else schema.unsaid()
  vectors = np.where(own, alone, said)
  return [
    Question(name, values, vectors[places[name]])
    for name, (values, _) in schema.answers.items()
    if name not in query
  ]


def _answers_of_all(schema):
  """The answers to all questions, one below the other: vectors that say only these, float32 [V, A],
  which columns are the attribute's own, bool [V, A], and where those of each attribute are.
  """
  alone = np.concatenate([vectors for _, vectors in schema.answers.values()])
  own, places, start = np.zeros(alone.shape, bool), {}, 0
  for name, (values, _) in schema.answers.items():
    places[name] = slice(start, start + len(values))
    own[places[name], schema.block(name)] = True
    start += len(values)
  return alone, own, places


def suggest(
  schema: AttributeSchema,
  query: Mapping[str, str],
  score: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> list[Suggestion]:
  """What to ask for next: the attributes of which the query says nothing, best first.

  Args:
    schema: of the attributes.
    query: attribute name to value or '!value'.
    score: the queries with each answer added, M of them (float32 [M, A]), to the scores of the C
      candidates for the query as it is, [C], and for each of these, [C, M]. It is not called where
      the query says everything.
  """
  asked = questions(schema, query)
  if not asked:
    return []
  return suggestions(asked, *score(np.concatenate([question.vectors for question in asked])))


def temperature(scores: np.ndarray, answer_scores: np.ndarray) -> float:
  """The unit T in which scores become probabilities: their spread between candidates.

  The root mean square, over the query and its V continuations, of the standard deviation of the
  scores over the candidates. Scores of different spaces have different units, cosines in [-1, 1] or
  dot products of any length; what a difference means can only be read from the differences there
  are. In this unit the candidates are, typically, one apart: the best is more likely than the
  others but does not take all, and an attribute counts by how far apart its answers move the
  candidates, compared with how far apart they are. A space that is scaled or shifted gives the same
  advice. The continuations count too, because the candidates were chosen for being alike under the
  query alone: their spread there may be as good as zero.

  Nothing was fitted to people's answers, so gains rank questions; they are no promise of bits.

  Args:
    scores: [C], of the candidates.
    answer_scores: [C, V], of the candidates when each of V answers is added to the query.
  """
  columns = np.concatenate([np.asarray(scores, np.float64)[:, np.newaxis], answer_scores], axis=1)
  return float(np.sqrt(np.mean(np.var(columns, axis=0))))


def information_gain(scores: np.ndarray, answer_scores: np.ndarray, *, temperature: float) -> float:
  """The information, in bits, that the answer to a question gives about which candidate is meant.

  The mutual information of candidate c and answer v,

      I = H(V) - H(V | C),   p(c) = softmax_c(s_c / T),   p(v | c) = softmax_v(s_cv / T):

  how surprising the answer is, without what would surprise even if the candidate were known.

  Args:
    scores: [C], s_c.
    answer_scores: [C, V], s_cv.
    temperature: T > 0.

  Returns:
    0 ... log2(min(C, V)).
  """
  return float(_information_gains(scores, answer_scores, np.array([0]), temperature)[0])


def _information_gains(scores, answer_scores, starts, temperature):
  """`information_gain` of Q questions, [Q], whose answers begin at the columns `starts`."""
  counts = np.diff([*starts, answer_scores.shape[1]])
  candidates = _softmax(np.asarray(scores, np.float64) / temperature)  # [C]
  answers = np.asarray(answer_scores, np.float64) / temperature  # [C, sum of V]
  # As `_softmax`, of each question's columns.
  answers = np.exp(
    answers - np.repeat(np.maximum.reduceat(answers, starts, axis=1), counts, axis=1)
  )
  answers /= np.repeat(np.add.reduceat(answers, starts, axis=1), counts, axis=1)
  known = np.add.reduceat(_surprises(answers), starts, axis=1)  # H(V | C = c), [C, Q]
  gains = np.add.reduceat(_surprises(candidates @ answers), starts) - candidates @ known
  return np.maximum(gains, 0.0)  # rounding may leave -1e-17


def suggestions(
  asked: Sequence[Question], scores: np.ndarray, answer_scores: np.ndarray
) -> list[Suggestion]:
  """The questions by what their answers tell, best first; ties in the order they came.

  Args:
    asked: from `questions`.
    scores: [C], of the candidates for the query as it is.
    answer_scores: [C, sum of V], for the vectors of all questions, one after the other.
  """
  if not asked or not len(scores):
    return []
  unit = temperature(scores, answer_scores)
  gains = np.zeros(len(asked))
  if unit > 0:  # without any difference between candidates, no answer tells anything
    starts = np.cumsum([0, *(len(question.values) for question in asked[:-1])])
    gains = _information_gains(scores, answer_scores, starts, unit)
  ranked = [Suggestion(question.attribute, float(gain)) for question, gain in zip(asked, gains)]
  return sorted(ranked, key=lambda suggestion: -suggestion.gain)


def _softmax(values):
  """Along the last axis."""
  powers = np.exp(values - values.max(axis=-1, keepdims=True))
  return powers / powers.sum(axis=-1, keepdims=True)


def _surprises(shares):
  """-p log p of each share, in bits; 0 log 0 = 0. Their sum is the entropy."""
  return -shares * np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
