"""Reasons and suggestions for an answer, of what one pass through a model scores. Floor 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfreid.data.attributes import AttributeSchema
from tfreid.source import attribution, suggestion
from tfreid.source.answer import Suggestion
from tfreid.source.protocol import CANDIDATES


class Explanation:
  """The queries that an answer is compared with: without each of its attributes, and with others.

  Attributes:
    variants: float32 [M, A], attribute vectors that the best crops are scored for; M may be 0.
    without_one: float32 [N, A], the first of them, which `reasons` takes; N may be 0.
    questions: what could be asked next, whose vectors are the others.
  """

  def __init__(
    self,
    schema: AttributeSchema,
    query: Mapping[str, str],
    *,
    explain: bool,
    suggest: bool,
    said: np.ndarray | None = None,
  ):
    """Decides what is to be scored.

    Args:
      schema: of the attributes.
      query: attribute name to value or '!value'.
      explain: for `reasons`.
      suggest: for `suggestions`.
      said: float32 [A], the vector of the query, where that is known already.

    Raises:
      ValueError: an unknown attribute or value.
    """
    self._names = list(query) if explain else []
    self.questions = suggestion.questions(schema, query, said) if suggest and query else []
    parts = [np.empty((0, schema.size), np.float32)]
    if self._names:
      parts.append(attribution.leave_one_out(schema, query, said))
    parts += [question.vectors for question in self.questions]
    self.variants = np.concatenate(parts)
    self.without_one = self.variants[: len(self._names)]

  @property
  def suggests(self) -> bool:
    """Whether there is something to ask for next, which takes the scores of `CANDIDATES` crops."""
    return bool(self.questions)

  def reasons(self, scores: np.ndarray, variant_scores: np.ndarray) -> list[dict[str, float]]:
    """What each queried attribute adds to the scores, see `attribution.reasons`; [] if not asked.

    Args:
      scores: [K], of the best crops.
      variant_scores: [K, M], or of `without_one` alone [K, N].
    """
    if not self._names:
      return []
    return attribution.reasons(self._names, scores, variant_scores[:, : len(self._names)])

  def suggestions(self, scores: np.ndarray, variant_scores: np.ndarray) -> Sequence[Suggestion]:
    """What to ask for next, of the first `CANDIDATES` crops; () if not asked.

    Args:
      scores: as of `reasons`.
      variant_scores: likewise.
    """
    if not self.questions:
      return ()
    return suggestion.suggestions(
      self.questions, scores[:CANDIDATES], variant_scores[:CANDIDATES, len(self._names) :]
    )
