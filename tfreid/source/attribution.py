"""Why a crop scores as it does: leave-one-out attributions of a score to the query. Floor 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfreid.data.attributes import AttributeSchema


def leave_one_out(schema: AttributeSchema, query: Mapping[str, str]) -> np.ndarray:
  """The query without each of its attributes in turn.

  Args:
    schema: of the attributes.
    query: M attributes, name to value or '!value'.

  Returns:
    float32 [M, A], in the order of the query. With one attribute, what remains says nothing:
    `schema.unsaid()`.

  Raises:
    ValueError: an unknown attribute or value.
  """
  vectors = np.empty((len(query), schema.size), np.float32)
  for row, left_out in enumerate(query):
    rest = {name: value for name, value in query.items() if name != left_out}
    vectors[row] = schema.encode_query(rest) if rest else schema.unsaid()
  return vectors


def reasons(
  names: Sequence[str], scores: np.ndarray, scores_without: np.ndarray
) -> list[dict[str, float]]:
  """What each queried attribute adds to the score of each crop.

  Args:
    names: of the M queried attributes.
    scores: [K], of the whole query.
    scores_without: [K, M], of the queries of `leave_one_out`.

  Returns:
    For each crop, attribute name to score with it minus score without it: positive speaks for the
    match. The encoder of attributes is no linear function, so they need not add up to the score.
  """
  changes = np.asarray(scores, np.float32)[:, np.newaxis] - np.asarray(scores_without, np.float32)
  return [dict(zip(names, row)) for row in changes.tolist()]
