"""Why a crop scores as it does: leave-one-out attributions of a score to the query. Floor 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfreid.data.attributes import AttributeSchema


def leave_one_out(
  schema: AttributeSchema, query: Mapping[str, str], said: np.ndarray | None = None
) -> np.ndarray:
  """The query without each of its attributes in turn.

  Args:
    schema: of the attributes.
    query: M attributes, name to value or '!value'.
    said: float32 [A], the vector of the query, where that is known already.

  Returns:
    float32 [M, A], in the order of the query. With one attribute, what remains says nothing:
    `schema.unsaid()`.

  Raises:
    ValueError: an unknown attribute or value.
  """
  # An attribute has columns of its own, so what is left out has what is there of nothing said.
  said = schema.encode_query(query) if said is None else said
  vectors = np.repeat(said[np.newaxis], len(query), axis=0)
  unsaid = schema.unsaid()
  for vector, left_out in zip(vectors, query):
    block = schema.block(left_out)
    vector[block] = unsaid[block]
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
