"""From a joint space and a split to the numbers of the tables: the evaluation protocol. Floor 4.

Queries are the distinct attribute vectors of the split, each once; the gallery is all its images; a
match has the same semantic ID; nothing is removed for camera or person. Similarities are made for
a block of queries at a time, so the memory beside the embeddings does not grow with the gallery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from tfreid.data.benchmark import Split
from tfreid.evaluation import ranking, significance
from tfreid.evaluation.alignment import Alignment, alignment
from tfreid.evaluation.ranking import QueryMetrics, Summary
from tfreid.joint_space import JointSpace, similarity

# Called with (images done, images in all) while images are embedded.
Progress = Callable[[int, int], None]

_BLOCK_BYTES = 2**26  # of float32 similarities at a time
_QUERIES_AT_ONCE = 1024  # attribute vectors per call of the encoder

_PERCENT = (
  ('mAP', 'mAP'),
  ('mAP_trapz', 'mAP (trapz)'),
  ('rank1', 'rank-1'),
  ('rank5', 'rank-5'),
  ('rank10', 'rank-10'),
  ('mINP', 'mINP'),
  ('chance_rank1', 'chance rank-1'),
  ('chance_mAP', 'chance mAP'),
)


class Embeddings(NamedTuple):
  """Both sides of a retrieval problem in the joint space, and the key that says what matches.

  Attributes:
    queries: float32 [Q, E].
    gallery: float32 [N, E].
    query_ids: int64 [Q], semantic ID of each query.
    gallery_ids: int64 [N], semantic ID of each gallery image.
  """

  queries: np.ndarray
  gallery: np.ndarray
  query_ids: np.ndarray
  gallery_ids: np.ndarray


def fused(first: Embeddings, second: Embeddings, share: float) -> Embeddings:
  """Embeddings whose dot products are the first's plus `share` times the second's.

  Args:
    first: [Q, E] and [N, E].
    second: of the same queries and images, [Q, E'] and [N, E'].
    share: of the second.

  Returns:
    [Q, E + E'] and [N, E + E'].

  Raises:
    ValueError: they are not of the same queries and images.
  """
  for field in ('query_ids', 'gallery_ids'):
    if not np.array_equal(getattr(first, field), getattr(second, field)):
      raise ValueError('Only embeddings of the same queries and images can be fused.')
  return first._replace(
    queries=np.concatenate([first.queries, second.queries], axis=1),
    gallery=np.concatenate([first.gallery, np.float32(share) * second.gallery], axis=1),
  )


class Evaluation(NamedTuple):
  """The result of the protocol.

  Attributes:
    overall: over all queries.
    seen: over the queries whose attribute combination also occurs in training, None where that is
      not known.
    unseen: over the others.
    per_query: of each query, in the order of `query_ids`: what bootstraps and paired comparisons
      take.
    query_ids: int64 [Q], semantic IDs.
    is_seen: bool [Q], or None.
    alignment: of images and descriptions in the space, None where it was not measured.
  """

  overall: Summary
  seen: Summary | None
  unseen: Summary | None
  per_query: QueryMetrics
  query_ids: np.ndarray
  is_seen: np.ndarray | None
  alignment: Alignment | None = None

  def parts(self) -> dict[str, Summary]:
    """The summaries by name: 'all', and 'seen' and 'unseen' where that is known."""
    parts = {'all': self.overall, 'seen': self.seen, 'unseen': self.unseen}
    return {name: part for name, part in parts.items() if part is not None}

  def scalars(self) -> dict[str, float]:
    """Every number once, for curves: 'mAP', ..., 'seen/mAP', ..., 'alignment/probe_auc', ..."""
    numbers = {
      field if name == 'all' else f'{name}/{field}': float(value)
      for name, part in self.parts().items()
      for field, value in part._asdict().items()
    }
    if self.alignment is not None:
      numbers.update(
        (f'alignment/{field}', value) for field, value in self.alignment._asdict().items()
      )
    return numbers

  def line(self) -> str:
    """The result in one line of text."""
    result = self.overall
    text = (
      f'mAP {_percent(result.mAP)} %, rank-1 {_percent(result.rank1)} %, '
      f'rank-5 {_percent(result.rank5)} %, rank-10 {_percent(result.rank10)} % '
      f'({result.queries} queries, {result.gallery} images, '
      f'chance rank-1 {_percent(result.chance_rank1)} %)'
    )
    if self.seen is not None and self.unseen is not None:
      text += f'; rank-1 seen {_percent(self.seen.rank1)} %, unseen {_percent(self.unseen.rank1)} %'
    return text

  def table(self, title: str = '', *, resamples: int = 0) -> Table:
    """The result as a table for the terminal, in percent.

    Args:
      title: stands above it.
      resamples: if not 0, the 95 % bootstrap interval over queries from so many draws stands beside
        each metric.
    """
    # A metric per row, so that the table fits a terminal of 80 columns.
    table = Table(title=title or None)
    table.add_column('%')
    parts = self.parts()
    for name, part in parts.items():
      table.add_column(f'{name} queries ({part.queries})', justify='right')
    for field, heading in _PERCENT:
      cells = []
      for name, part in parts.items():
        cell = _percent(getattr(part, field))
        values = _values(self._chosen(name), field)
        if resamples and values is not None and part.queries:
          interval = significance.confidence_interval(values, resamples=resamples)
          cell += f'  [{100 * interval.low:.1f}-{100 * interval.high:.1f}]'
        cells.append(cell)
      table.add_row(heading, *cells)
    notes = [f'Gallery of {self.overall.gallery} images.']
    if self.overall.skipped:
      notes.append(f'{self.overall.skipped} queries without a match are left out.')
    if resamples:
      notes.append('In brackets: 95 % bootstrap interval over queries.')
    table.caption = ' '.join(notes)
    return table

  def to_json(self, *, per_query: bool = False) -> dict[str, Any]:
    """The summaries by name as plain JSON types, NaN as None.

    Args:
      per_query: adds 'per_query': the vectors of `per_query`, 'query_ids' and 'is_seen'.
    """
    result: dict[str, Any] = {
      name: {field: _plain(value) for field, value in part._asdict().items()}
      for name, part in self.parts().items()
    }
    if self.alignment is not None:
      result['alignment'] = {
        field: _plain(value) for field, value in self.alignment._asdict().items()
      }
    if per_query:
      vectors = {'query_ids': self.query_ids, **self.per_query._asdict()}
      if self.is_seen is not None:
        vectors['is_seen'] = self.is_seen
      result['per_query'] = {
        name: [_plain(value) for value in vector.tolist()] for name, vector in vectors.items()
      }
    return result

  def _chosen(self, name: str) -> QueryMetrics:
    if name == 'all':
      return self.per_query
    assert self.is_seen is not None  # or `parts` names no other
    return self.per_query.select(self.is_seen if name == 'seen' else ~self.is_seen)


def embed_images(
  space: JointSpace,
  batches: Iterable[Any],
  *,
  count: int | None = None,
  progress: Progress | None = None,
) -> np.ndarray:
  """The joint space's vectors of images, in the order they come.

  Args:
    space: the joint space.
    batches: of images [B, H, W, 3], pixels 0 ... 255, or dicts that hold them as 'image'.
    count: N, where it is known: then nothing is copied, and any other number is an error.
    progress: called after each batch; needs `count`.

  Returns:
    float32 [N, E].

  Raises:
    ValueError: images of another size than the space takes, more or fewer than `count`, or an
      embedding that is not finite.
  """
  result = None if count is None else np.empty((count, space.size), np.float32)
  parts: list[np.ndarray] = []
  done = 0
  for batch in batches:
    images = batch['image'] if isinstance(batch, Mapping) else batch
    if tuple(images.shape[1:]) != space.image_shape:
      raise ValueError(
        f'The joint space takes images of {_by(space.image_shape)}, but the batches hold '
        f'{_by(images.shape[1:])}. Set Pipeline.image_size to '
        f'({space.image_shape[0]}, {space.image_shape[1]}).'
      )
    embeddings = np.asarray(space.encode_images(images))
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
      raise ValueError(
        f'The embedding of image {done + int(np.flatnonzero(~finite)[0])} is not finite '
        f'({np.count_nonzero(~finite)} of a batch of {len(finite)}). The image encoder holds '
        'weights that are not finite, or so large that they overflow.'
      )
    if result is None:
      parts.append(embeddings)
    elif done + len(embeddings) <= len(result):
      result[done : done + len(embeddings)] = embeddings
    done += len(embeddings)
    if progress and count:
      progress(min(done, count), count)
  if result is None:
    return np.concatenate(parts) if parts else np.empty((0, space.size), np.float32)
  if done != count:
    raise ValueError(
      f'The batches held {done} images, but the split has {count}. Give every image once, in the '
      'order of the split: Pipeline.evaluation does.'
    )
  return result


def embed_attributes(space: JointSpace, attributes: np.ndarray) -> np.ndarray:
  """The joint space's vectors of attribute vectors.

  Args:
    space: the joint space.
    attributes: [Q, A] in the encoding the space was trained with.

  Returns:
    float32 [Q, E].

  Raises:
    ValueError: another number of attributes than the space takes, or an embedding that is not
      finite.
  """
  attributes = np.asarray(attributes, np.float32)
  if attributes.ndim != 2 or attributes.shape[1] != space.num_attributes:
    raise ValueError(
      f'The joint space takes attribute vectors of {space.num_attributes} columns, got the shape '
      f'{list(attributes.shape)}. Was it trained on this data set?'
    )
  embeddings = np.empty((len(attributes), space.size), np.float32)
  for start in range(0, len(attributes), _QUERIES_AT_ONCE):
    chunk = slice(start, start + _QUERIES_AT_ONCE)
    embeddings[chunk] = np.asarray(space.encode_attributes(attributes[chunk]))
  finite = np.isfinite(embeddings).all(axis=1)
  if not finite.all():
    raise ValueError(
      f'The embedding of query {np.flatnonzero(~finite)[0]} is not finite '
      f'({np.count_nonzero(~finite)} of {len(finite)}). The attribute encoder holds weights that '
      'are not finite, or so large that they overflow.'
    )
  return embeddings


def embed_split(
  space: JointSpace, split: Split, batches: Iterable[Any], *, progress: Progress | None = None
) -> Embeddings:
  """The queries and the gallery of a split in the joint space.

  Args:
    space: the joint space.
    split: what to retrieve from.
    batches: every image of the split once, in its order, as `Pipeline.evaluation(split)` gives.
    progress: called after each batch.

  Raises:
    ValueError: as `embed_images` and `embed_attributes`.
  """
  attributes, query_ids = split.queries()
  # First the side that takes no time, so that what does not fit shows at once.
  queries = embed_attributes(space, attributes)
  gallery = embed_images(space, batches, count=len(split), progress=progress)
  return Embeddings(queries, gallery, query_ids, split.semantic_ids)


def evaluate(
  space: JointSpace,
  split: Split,
  batches: Iterable[Any],
  *,
  seen: np.ndarray | None = None,
  block_size: int | None = None,
  progress: Progress | None = None,
) -> Evaluation:
  """The protocol's evaluation of a joint space on a split.

  Args:
    space: the joint space.
    split: queries and gallery.
    batches: every image of the split once, in its order, as `Pipeline.evaluation(split)` gives.
    seen: bool [Q], which queries also occur in training (`Benchmark.seen`).
    block_size: queries per block of similarities; as many as fit into 64 MiB if None.
    progress: called after each batch of images.

  Raises:
    ValueError: the space does not fit the split, batches that are not the split's images, or an
      embedding that is not finite.
  """
  embeddings = embed_split(space, split, batches, progress=progress)
  return evaluate_embeddings(embeddings, seen=seen, block_size=block_size)


def evaluate_embeddings(
  embeddings: Embeddings, *, seen: np.ndarray | None = None, block_size: int | None = None
) -> Evaluation:
  """`evaluate` for what is already embedded.

  Raises:
    ValueError: sizes that do not fit, or no queries.
  """
  num_queries = len(embeddings.queries)
  if not num_queries:
    raise ValueError('There are no queries to evaluate: the split is empty.')
  if seen is not None:
    seen = np.asarray(seen, bool)
    if seen.shape != (num_queries,):
      raise ValueError(
        f'`seen` has the shape {list(seen.shape)} for {num_queries} queries; one value per query '
        'is needed.'
      )
  matches = ranking.matches_by_id(embeddings.query_ids, embeddings.gallery_ids)
  per_query = QueryMetrics.concatenate(
    [
      ranking.query_metrics(block, matches.block(rows.start, rows.stop))
      for rows, block in similarity_blocks(embeddings, block_size=block_size)
    ]
  )
  num_gallery = len(embeddings.gallery)
  return Evaluation(
    overall=ranking.summary(per_query, num_gallery),
    seen=None if seen is None else ranking.summary(per_query.select(seen), num_gallery),
    unseen=None if seen is None else ranking.summary(per_query.select(~seen), num_gallery),
    per_query=per_query,
    query_ids=np.asarray(embeddings.query_ids),
    is_seen=seen,
    alignment=alignment(
      embeddings.queries, embeddings.gallery, embeddings.query_ids, embeddings.gallery_ids
    ),
  )


def by_subset(embeddings: Embeddings, subsets: np.ndarray) -> dict[str, ranking.Summary]:
  """The protocol on each part of a collection, as if it were a data set of its own.

  The gallery of a part is its images alone, and its queries are their semantic IDs: a description
  that fits people of two parts is asked of each. Parts are as hard as they are large, so that the
  levels of chance stand beside the numbers (`chance_rank1`, `chance_mAP`).

  Args:
    embeddings: of the whole split.
    subsets: str [N], the part of each gallery image (`Split.subsets`).

  Returns:
    A summary for each part, in order of their names.

  Raises:
    ValueError: another number of images.
  """
  subsets = np.asarray(subsets)
  if subsets.shape != (len(embeddings.gallery),):
    raise ValueError(
      f'`subsets` has the shape {list(subsets.shape)} for {len(embeddings.gallery)} images; one '
      'name per image is needed.'
    )
  summaries = {}
  for name in np.unique(subsets):
    images = subsets == name
    asked = np.isin(embeddings.query_ids, embeddings.gallery_ids[images])
    part = Embeddings(
      embeddings.queries[asked],
      embeddings.gallery[images],
      embeddings.query_ids[asked],
      embeddings.gallery_ids[images],
    )
    matches = ranking.matches_by_id(part.query_ids, part.gallery_ids)
    blocks = [
      ranking.query_metrics(block, matches.block(rows.start, rows.stop))
      for rows, block in similarity_blocks(part)
    ]
    summaries[str(name)] = ranking.summary(QueryMetrics.concatenate(blocks), len(part.gallery))
  return summaries


def subset_results(embeddings: Embeddings, split: Split) -> dict[str, Any]:
  """{'subsets': name -> metrics} for a results row, or {} where a split has one subset or none.

  Args:
    embeddings: of the split.
    split: with `subsets`, or None.
  """
  if split.subsets is None or len(set(split.subsets)) < 2:
    return {}
  parts = by_subset(embeddings, split.subsets)
  return {
    'subsets': {
      name: {field: float(value) for field, value in summary._asdict().items()}
      for name, summary in parts.items()
    }
  }


def similarity_blocks(
  embeddings: Embeddings, *, block_size: int | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
  """Blocks of the similarity matrix: (which queries, float32 [b, N]).

  Args:
    embeddings: both sides.
    block_size: b; as many as fit into 64 MiB if None.

  Raises:
    ValueError: block_size < 1.
  """
  if block_size is None:
    block_size = max(1, _BLOCK_BYTES // (4 * max(1, len(embeddings.gallery))))
  if block_size < 1:
    raise ValueError(f'block_size must be at least 1, not {block_size}.')
  for start in range(0, len(embeddings.queries), block_size):
    rows = slice(start, min(start + block_size, len(embeddings.queries)))
    yield rows, similarity(embeddings.queries[rows], embeddings.gallery)


def top_results(
  embeddings: Embeddings, k: int, *, block_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """The first k images of each query, best first, ties by index.

  Returns:
    int64 [Q, min(k, N)] gallery indices and float32 [Q, min(k, N)] similarities.

  Raises:
    ValueError: k < 1.
  """
  indices, scores = [], []
  for _, block in similarity_blocks(embeddings, block_size=block_size):
    top = ranking.top_k(block, k)
    indices.append(top)
    scores.append(np.take_along_axis(block, top, axis=1))
  return np.concatenate(indices), np.concatenate(scores)


def graded(
  embeddings: Embeddings, split: Split, *, groups: Sequence[int], k: int = 10
) -> ranking.GradedMetrics:
  """How nearly right the first k images of each query are: violations@k and nDCG@k.

  Args:
    embeddings: of the split.
    split: whose attributes are the labels.
    groups: [A], the attribute that each column belongs to (`AttributeSchema.groups`).
    k: length of the lists.
  """
  top, _ = top_results(embeddings, k)
  return ranking.graded_metrics(top, split.queries()[0], split.attributes, groups=groups)


class Distributions(NamedTuple):
  """Similarities of pairs of a query and an image, for histograms.

  Attributes:
    matching: float32 [at most `samples`], of pairs with the same semantic ID.
    non_matching: float32 [`samples`, or 0 where every pair matches], of the others.
  """

  matching: np.ndarray
  non_matching: np.ndarray


def distributions(embeddings: Embeddings, *, samples: int = 10000, seed: int = 0) -> Distributions:
  """Similarities of matching and of non-matching pairs, each pair drawn with equal probability.

  Args:
    embeddings: both sides.
    samples: pairs of each kind. Matching pairs are drawn without repetition, all of them where
      there are fewer.
    seed: of the draw.
  """
  rng = np.random.default_rng(seed)
  num_gallery = len(embeddings.gallery)
  matches = ranking.matches_by_id(embeddings.query_ids, embeddings.gallery_ids)
  counts = matches.counts

  pairs = np.arange(len(matches.indices))
  if len(pairs) > samples:
    pairs = rng.choice(len(pairs), samples, replace=False)
  matching_queries = np.searchsorted(matches.offsets, pairs, 'right') - 1

  # The non-matching pairs, counted query by query. In the order of gallery ids a query's matches
  # are neighbours, so its j-th other image is the j-th, or the (j + R)-th from its matches on.
  others = np.concatenate([[0], np.cumsum(num_gallery - counts)])
  order = np.argsort(embeddings.gallery_ids, kind='stable')
  first = np.searchsorted(np.asarray(embeddings.gallery_ids)[order], embeddings.query_ids)
  drawn = rng.integers(0, others[-1], samples) if others[-1] else np.empty(0, np.int64)
  queries = np.searchsorted(others, drawn, 'right') - 1
  place = drawn - others[queries]
  place += counts[queries] * (place >= first[queries])

  def similarities(queries, gallery):
    return np.einsum('pe,pe->p', embeddings.queries[queries], embeddings.gallery[gallery])

  return Distributions(
    matching=similarities(matching_queries, matches.indices[pairs]),
    non_matching=similarities(queries, order[place]),
  )


def _values(metrics: QueryMetrics, field: str) -> np.ndarray | None:
  """The per-query values whose mean is that field of the summary, None for a chance level."""
  values = {
    'mAP': metrics.average_precision,
    'mAP_trapz': metrics.average_precision_trapz,
    'rank1': metrics.hits(1),
    'rank5': metrics.hits(5),
    'rank10': metrics.hits(10),
    'mINP': metrics.inverse_negative_penalty,
  }
  return values.get(field)


def _percent(share: float) -> str:
  return '-' if np.isnan(share) else f'{100 * share:.2f}'


def _plain(value: Any) -> Any:
  return None if isinstance(value, float) and not np.isfinite(value) else value


def _by(shape: Sequence[int]) -> str:
  return 'x'.join(str(side) for side in shape)
