"""How good retrieval is when only some attributes are given: the curve over their number. Floor 4.

The tables ask with everything that was annotated. A witness says two or three things. Here each
query of a split is asked again with k of its attributes, drawn at random; the others are not said
(0 in the three-state encoding, the training rate in the binary one). What is a right answer then?

* `identity`: what it was for the full query, the images with its semantic ID. The numbers are
  comparable with each other and with the tables: with all attributes given, they are the tables'.
  An image that fits all that was said but is of another semantic ID counts as wrong.
* `said`: the images that agree with each attribute that was said. The system is judged by what it
  was told; but with fewer attributes there are more right answers, so the numbers fall as k grows,
  and are to be read against the chance level of their own k.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from tfreid.data.attributes import AttributeSchema
from tfreid.data.benchmark import Split
from tfreid.evaluation import ranking, retrieval, significance
from tfreid.evaluation.ranking import Matches, QueryMetrics, Summary
from tfreid.evaluation.retrieval import Embeddings
from tfreid.evaluation.significance import Interval
from tfreid.joint_space import JointSpace

RELEVANCES = ('identity', 'said')

# Called with (queries asked, queries to ask in all).
Progress = Callable[[int, int], None]

_SIZE = (6.4, 4.2)  # inches of the picture
_LINES = (('mAP', 'mAP', '#1f4e8c', 'o'), ('rank1', 'rank-1', '#b3261e', 's'))


class Point(NamedTuple):
  """The evaluation with one number of attributes given.

  Attributes:
    attributes: k, how many each query says.
    draws: how often each query was asked, with other attributes; 1 where there is no choice.
    summary: over all queries of all draws.
    mAP, rank1: the same means with their 95 % bootstrap intervals over queries; the draws of a
      query stay together.
  """

  attributes: int
  draws: int
  summary: Summary
  mAP: Interval  # noqa: N815
  rank1: Interval


class Curve(NamedTuple):
  """The metrics against the number of attributes given.

  Attributes:
    points: by ascending number of attributes.
    num_attributes: how many there are.
    relevance: what counts as a right answer, one of RELEVANCES.
    seed: of the draws.
  """

  points: Sequence[Point]
  num_attributes: int
  relevance: str
  seed: int

  def table(self, title: str = '') -> Table:
    """The curve for the terminal, in percent."""
    table = Table(title=title or None)
    for heading in ('attributes', 'draws', 'mAP', 'rank-1', 'rank-5', 'rank-10', 'chance rank-1'):
      table.add_column(heading, justify='right')
    for point in self.points:
      shown = point.summary
      table.add_row(
        f'{point.attributes} of {self.num_attributes}',
        str(point.draws),
        *(
          f'{_percent(interval.mean)}  [{_percent(interval.low, 1)}-{_percent(interval.high, 1)}]'
          for interval in (point.mAP, point.rank1)
        ),
        *(_percent(value) for value in (shown.rank5, shown.rank10, shown.chance_rank1)),
      )
    right = {
      'identity': 'the semantic ID of the full query',
      'said': 'every attribute that was said',
    }[self.relevance]
    table.caption = f'In percent. Right: images with {right}. [95 % interval over queries]'
    return table

  def to_json(self) -> dict[str, Any]:
    """The curve as plain JSON types, NaN as None."""
    return {
      'relevance': self.relevance,
      'seed': self.seed,
      'num_attributes': self.num_attributes,
      'points': [
        {name: None if value != value else value for name, value in row.items()}
        for row in self._rows()
      ],
    }

  def to_csv(self) -> str:
    """The curve as a CSV file with a header, a line per number of attributes; shares in [0, 1]."""
    rows = self._rows()
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()

  def picture(self, title: str = '') -> bytes:
    """The curve as a PNG file.

    Raises:
      ImportError: matplotlib is not installed.
    """
    figures, rc_context = drawing()
    counts = [point.attributes for point in self.points]
    with rc_context({'font.size': 10}):
      figure = figures.Figure(figsize=_SIZE, layout='constrained', dpi=150)
      axes = figure.add_subplot()
      for field, name, color, marker in _LINES:
        intervals = [getattr(point, field) for point in self.points]
        axes.fill_between(
          counts,
          [100 * interval.low for interval in intervals],
          [100 * interval.high for interval in intervals],
          color=color,
          alpha=0.15,
          linewidth=0,
        )
        means = [100 * interval.mean for interval in intervals]
        axes.plot(counts, means, color=color, marker=marker, label=name)
        chance = [100 * getattr(point.summary, f'chance_{field}') for point in self.points]
        axes.plot(counts, chance, color=color, linestyle=':', linewidth=1, label=f'chance {name}')
      axes.set_xticks(counts, [str(count) for count in counts])
      axes.set_xlabel(f'attributes given, of {self.num_attributes}')
      axes.set_ylabel('%')
      axes.set_ylim(bottom=0)
      axes.grid(alpha=0.3)
      axes.legend(frameon=False, ncols=2)
      what = {'identity': 'same semantic ID', 'said': 'agrees with all that was said'}
      axes.set_title(
        '\n'.join(filter(None, [title, f'right: {what[self.relevance]}'])), fontsize=10
      )
      buffer = io.BytesIO()
      figure.savefig(buffer, format='png', metadata={'Software': None})
    return buffer.getvalue()

  def _rows(self) -> list[dict[str, Any]]:
    return [
      {
        'attributes': point.attributes,
        'draws': point.draws,
        **point.summary._asdict(),
        'mAP_low': point.mAP.low,
        'mAP_high': point.mAP.high,
        'rank1_low': point.rank1.low,
        'rank1_high': point.rank1.high,
      }
      for point in self.points
    ]


def checked_counts(counts: Sequence[int | str] | None, schema: AttributeSchema) -> list[int]:
  """Numbers of attributes, ascending, each once.

  Args:
    counts: whole numbers, or 'all' for all attributes; None for each number there is.
    schema: of the attributes.

  Raises:
    ValueError: no number, or more than there are attributes, or none given.
  """
  most = len(schema.attributes)
  if counts is None:
    return list(range(1, most + 1))
  found = set()
  for given in counts:
    text = str(given).strip()
    count = most if text == 'all' else int(text) if text.isdecimal() else 0
    if not 1 <= count <= most:
      raise ValueError(
        f"'{given}' is no number of attributes to ask with. {schema.name} has {most}: give numbers "
        f"from 1 to {most}, or 'all'."
      )
    found.add(count)
  if not found:
    raise ValueError('Give at least one number of attributes.')
  return sorted(found)


def curve(
  space: JointSpace,
  split: Split,
  gallery: np.ndarray,
  *,
  schema: AttributeSchema,
  counts: Sequence[int | str] | None = None,
  draws: int = 5,
  seed: int = 0,
  relevance: str = 'identity',
  resamples: int = 1000,
  progress: Progress | None = None,
) -> Curve:
  """The metrics of a joint space against the number of attributes that the queries give.

  Args:
    space: the joint space.
    split: queries and gallery.
    gallery: float32 [N, E], the split's images in the space (`Embeddings.gallery`).
    schema: that the space was trained with; its rates stand for what is not said where the
      encoding is binary.
    counts: numbers of attributes, 'all' among them if wanted; None for each number there is.
    draws: how often each query is asked, with other attributes.
    seed: of the draws. Each draw is an order in which a query's attributes are told, and k means
      the first k: what is given with fewer is given with more. An order depends on the seed, the
      draw and the query, and not on `counts`.
    relevance: 'identity' or 'said', see above.
    resamples: bootstrap draws for the intervals.
    progress: called after each round of queries.

  Raises:
    ValueError: counts, draws or relevance that cannot be, a schema or a gallery that does not fit
      the split.
  """
  if relevance not in RELEVANCES:
    raise ValueError(f"Unknown relevance '{relevance}'; choose from {', '.join(RELEVANCES)}.")
  if draws < 1:
    raise ValueError(f'The number of draws must be at least 1, not {draws}.')
  vectors, query_ids = split.queries()
  if schema.size != vectors.shape[1]:
    raise ValueError(
      f'The schema of {schema.name} has {schema.size} columns, the attribute vectors of the split '
      f'{vectors.shape[1]}. They must belong together.'
    )
  if len(gallery) != len(split):
    raise ValueError(f'{len(gallery)} embeddings for the {len(split)} images of the split.')
  counts = checked_counts(counts, schema)
  num_attributes = len(schema.attributes)
  orders = _orders(len(vectors), num_attributes, draws, seed)
  # With everything said the draws are the same query.
  rounds = {count: draws if count < num_attributes else 1 for count in counts}
  right = _RightAnswers(split, schema, relevance)
  points, done = [], 0
  for count in counts:
    metrics = []
    for order in orders[: rounds[count]]:
      said = order < count  # [Q, G]
      queries = retrieval.embed_attributes(space, keep(vectors, said, schema))
      asked = Embeddings(queries, gallery, query_ids, split.semantic_ids)
      metrics.append(
        QueryMetrics.concatenate(
          [
            ranking.query_metrics(block, right.matches(rows, said))
            for rows, block in retrieval.similarity_blocks(asked)
          ]
        )
      )
      done += 1
      if progress:
        progress(done * len(vectors), sum(rounds.values()) * len(vectors))
    precisions = np.mean([one.average_precision for one in metrics], axis=0)  # [Q]
    hits = np.mean([one.hits(1) for one in metrics], axis=0)
    points.append(
      Point(
        count,
        rounds[count],
        ranking.summary(QueryMetrics.concatenate(metrics), len(gallery)),
        significance.confidence_interval(precisions, resamples=resamples),
        significance.confidence_interval(hits, resamples=resamples),
      )
    )
  return Curve(points, num_attributes, relevance, seed)


def keep(vectors: np.ndarray, said: np.ndarray, schema: AttributeSchema) -> np.ndarray:
  """Attribute vectors of which only some attributes are said.

  Args:
    vectors: float32 [Q, A], fully known.
    said: bool [Q, number of attributes], in the order of the schema.
    schema: of the vectors.

  Returns:
    float32 [Q, A]: what is not said is as in `schema.unsaid()`.
  """
  return np.where(said[:, list(schema.groups)], vectors, schema.unsaid()).astype(np.float32)


def drawing():
  """Matplotlib's module of figures, and its rc_context.

  Raises:
    ImportError: it is not installed.
  """
  try:
    from matplotlib import figure, rc_context
  except ImportError as error:
    raise ImportError(
      'The curve over the number of attributes is drawn with matplotlib, which is not installed: '
      'pip install "tfreid[report]".'
    ) from error
  return figure, rc_context


class _RightAnswers:
  """Which images are right answers to which queries."""

  def __init__(self, split, schema, relevance):
    vectors, query_ids = split.queries()
    self._by_id = None
    if relevance == 'identity':
      self._by_id = ranking.matches_by_id(query_ids, split.semantic_ids)
      return
    # Images of the same attributes are right together: as many combinations as there are vectors.
    distinct, self._combination = np.unique(split.attributes, axis=0, return_inverse=True)
    self._combination = self._combination.reshape(-1)
    groups = np.asarray(schema.groups)
    self._agrees = np.stack(
      [
        (vectors[:, np.newaxis, groups == g] == distinct[:, groups == g]).all(axis=2)
        for g in range(len(schema.attributes))
      ],
      axis=2,
    )  # bool [Q, combinations, G]

  def matches(self, rows: slice, said: np.ndarray) -> Matches:
    """The right answers of some of the queries, which say `said`, bool [Q, G]."""
    if self._by_id is not None:
      return self._by_id.block(rows.start, rows.stop)
    right = (self._agrees[rows] | ~said[rows, np.newaxis]).all(axis=2)  # [b, combinations]
    indices = [np.flatnonzero(row[self._combination]) for row in right]
    offsets = np.concatenate([[0], np.cumsum([len(found) for found in indices])])
    return Matches(np.concatenate(indices).astype(np.int64), offsets.astype(np.int64))


def _orders(num_queries: int, num_attributes: int, draws: int, seed: int) -> np.ndarray:
  """For each draw and query the place of each attribute in the order of telling, [draws, Q, G]."""
  orders = np.empty((draws, num_queries, num_attributes), np.int64)
  for draw in range(draws):
    rng = np.random.default_rng((seed, draw))
    orders[draw] = rng.permuted(np.tile(np.arange(num_attributes), (num_queries, 1)), axis=1)
  return orders


def _percent(share: float, digits: int = 2) -> str:
  return '-' if np.isnan(share) else f'{100 * share:.{digits}f}'
