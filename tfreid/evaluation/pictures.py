"""Evaluation to look at: ranked results with their attributes, and what separates matches. Floor 4.

A table of numbers does not say *what* a system confuses. A ranked result does: the description, the
first images, which of them match, and for each image and attribute whether it is as asked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from tfreid.data import image_files
from tfreid.data.attributes import AttributeSchema
from tfreid.data.benchmark import Split
from tfreid.evaluation import ranking, retrieval
from tfreid.evaluation.ranking import QueryMetrics
from tfreid.evaluation.retrieval import Distributions, Embeddings

_PAPER = (255, 255, 255)
_INK = (28, 36, 48)
_SOFT = (105, 115, 128)
_LINE = (226, 230, 236)
# Light and dark enough apart to be told from each other without seeing colours.
_MATCH = (26, 127, 55)
_MISS = (207, 60, 50)

_TEXT = 12
_ROW = 17  # height of a line of the attribute table
_PANEL = 210  # width of the left column
_FRAME = 4
_GAP = 6
_MARGIN = 10
_LEAST_WIDTH = 68  # of a result's column, so that a word fits beside a cross


def crop(path: str, size: Sequence[int]) -> np.ndarray:
  """An image file in (height, width), decoded as the networks see it, uint8 [height, width, 3]."""
  return image_files.decode(tf.io.read_file(str(path)), tuple(size)).numpy()


def spread(per_query: QueryMetrics, count: int) -> np.ndarray:
  """Queries from the best to the worst answered one, evenly over their average precisions.

  Args:
    per_query: of all queries.
    count: how many.

  Returns:
    int64 [min(count, queries with a match)], positions, by descending average precision, ties by
    position.
  """
  valid = np.flatnonzero(per_query.num_matches > 0)
  ordered = valid[np.argsort(-per_query.average_precision[valid], kind='stable')]
  count = min(count, len(ordered))
  return ordered[np.round(np.linspace(0, len(ordered) - 1, count)).astype(np.int64)]


def ranked_queries(
  embeddings: Embeddings,
  split: Split,
  schema: AttributeSchema,
  evaluation: retrieval.Evaluation,
  queries: Sequence[int],
  *,
  k: int = 10,
  crop_size: Sequence[int] = (128, 64),
  max_rows: int = 16,
  read: Callable[[str, Sequence[int]], np.ndarray] = crop,
) -> list[Image.Image]:
  """A picture per query: what was asked, the first k images, and where they differ from it.

  Args:
    embeddings: of the split.
    split: whose images are ranked.
    schema: names of the attributes.
    evaluation: of the embeddings, for the text beside the images.
    queries: positions of the queries to show.
    k: images per query.
    crop_size: (height, width) an image is shown in.
    max_rows: attributes to list; of a longer schema those that say something about the result.
    read: (path, (height, width)) -> uint8 [height, width, 3].

  Returns:
    RGB pictures of one size.
  """
  positions = np.asarray(queries, np.int64)
  if not len(positions):
    return []
  asked, _ = split.queries()
  chosen = embeddings._replace(
    queries=embeddings.queries[positions], query_ids=embeddings.query_ids[positions]
  )
  top, scores = retrieval.top_results(chosen, k)
  rows = min(max_rows, len(schema.attributes))
  pictures = []
  for position, query in enumerate(positions):
    indices = top[position]
    pictures.append(
      ranked_result(
        schema,
        asked[query],
        [read(path, crop_size) for path in split.paths[indices]],
        attributes=split.attributes[indices],
        scores=scores[position],
        matches=embeddings.gallery_ids[indices] == embeddings.query_ids[query],
        notes=_notes(evaluation, query, len(split)),
        rows=rows,
      )
    )
  return pictures


def _notes(evaluation: retrieval.Evaluation, query: int, gallery: int) -> list[str]:
  metrics = evaluation.per_query
  lines = [f'query {evaluation.query_ids[query]}']
  if evaluation.is_seen is not None:
    seen = evaluation.is_seen[query]
    lines.append('its attributes occur in training' if seen else 'not seen in training')
  matches = int(metrics.num_matches[query])
  lines.append(f'{matches} of {gallery} images match')
  if matches:
    lines.append(f'first match at rank {metrics.first_rank[query]}')
    lines.append(f'AP {100 * metrics.average_precision[query]:.1f} %')
  return lines


def ranked_result(
  schema: AttributeSchema,
  query: np.ndarray,
  images: Sequence[np.ndarray],
  *,
  attributes: np.ndarray,
  scores: np.ndarray,
  matches: np.ndarray,
  notes: Sequence[str] = (),
  rows: int = 16,
) -> Image.Image:
  """One query and its first K images: a green frame for a match, a red one for none.

  Below each image a tick for each attribute that is as asked, and a cross with the image's own
  value for each that is not.

  Args:
    schema: names of the attributes.
    query: [A], fully known attributes.
    images: K times uint8 [H, W, 3], best first.
    attributes: [K, A] of the images.
    scores: [K].
    matches: bool [K].
    notes: lines beside the images.
    rows: lines of the attribute table.

  Returns:
    RGB picture, the size of which depends on K, H, W and `rows` alone.

  Raises:
    ValueError: no images, or not one attribute vector, score and match for each.
  """
  if not len(images):
    raise ValueError('A ranked result needs at least one image.')
  if not len(images) == len(attributes) == len(scores) == len(matches):
    raise ValueError(
      f'{len(images)} images need as many attribute vectors, scores and matches; got '
      f'{len(attributes)}, {len(scores)} and {len(matches)}.'
    )
  asked = schema.describe(query)
  descriptions = [schema.describe(vector) for vector in attributes]
  names = _telling(schema, asked, descriptions, rows)
  height, width = images[0].shape[:2]
  column = max(width + 2 * _FRAME, _LEAST_WIDTH) + _GAP
  top = _MARGIN + _ROW  # of the frames
  table = top + height + 2 * _FRAME + _GAP  # of the attribute table
  hidden = len(schema.attributes) > rows
  size = (
    _MARGIN + _PANEL + column * len(images) + _MARGIN - _GAP,
    table + _ROW * (rows + hidden) + _MARGIN,
  )
  picture = Image.new('RGB', size, _PAPER)
  draw = ImageDraw.Draw(picture)

  for line, note in enumerate(notes):
    place = (_MARGIN, _MARGIN + _ROW * line)
    draw.text(place, _fitted(note, _PANEL - _GAP), fill=_SOFT if line else _INK, font=_font())
  for line, name in enumerate(names):
    y = table + _ROW * line
    draw.line([(_MARGIN, y - 2), (size[0] - _MARGIN, y - 2)], fill=_LINE)
    value = _fitted(asked[name], _PANEL // 2 - _GAP)
    draw.text((_MARGIN, y), _fitted(_words(name), _PANEL // 2 - _GAP), fill=_SOFT, font=_font())
    draw.text((_MARGIN + _PANEL // 2, y), value, fill=_INK, font=_font())
  if hidden:
    rest = [name for name in asked if name not in names]
    wrong = sum(any(image[name] != asked[name] for image in descriptions) for name in rest)
    note = f'{len(rest)} more attributes: ' + (f'{wrong} differ' if wrong else 'all as asked')
    draw.text((_MARGIN, table + _ROW * rows), note, fill=_SOFT, font=_font())

  for rank, image in enumerate(images):
    x = _MARGIN + _PANEL + column * rank
    right = bool(matches[rank])
    colour = _MATCH if right else _MISS
    draw.text((x, _MARGIN - 2), f'{rank + 1}', fill=_INK, font=_font())
    # Cosines with three digits; log-likelihoods are larger, and wider.
    score = f'{scores[rank]:.3f}' if abs(scores[rank]) < 10 else f'{scores[rank]:.1f}'
    draw.text(
      (x + column - _GAP - _font().getlength(score), _MARGIN - 2), score, fill=_SOFT, font=_font()
    )
    _mark(draw, (x + 22, _MARGIN), right)
    box = [x, top, x + column - _GAP - 1, top + height + 2 * _FRAME - 1]
    draw.rectangle(box, fill=colour)
    inset = (column - _GAP - width) // 2
    picture.paste(Image.fromarray(image), (x + inset, top + _FRAME))
    for line, name in enumerate(names):
      y = table + _ROW * line
      same = descriptions[rank][name] == asked[name]
      _mark(draw, (x + 1, y), same)
      if not same:
        value = _fitted(descriptions[rank][name], column - _GAP - 16)
        draw.text((x + 16, y), value, fill=_MISS, font=_font())
  return picture


def _telling(
  schema: AttributeSchema, asked: dict[str, str], found: Sequence[dict[str, str]], rows: int
) -> list[str]:
  """Names of the attributes to list, in the schema's order.

  Where not all have a line: first those that some image has otherwise, then those that were asked
  to be there, then the rest.
  """

  def weight(attribute):
    name = attribute.name
    if any(image[name] != asked[name] for image in found):
      return 0
    return 2 if attribute.is_binary and asked[name] == attribute.values[0] else 1

  kept = sorted(schema.attributes, key=weight)[:rows]
  return [attribute.name for attribute in schema.attributes if attribute in kept]


def _words(name: str) -> str:
  return name.replace('_', ' ')


@functools.cache
def _font(size: int = _TEXT) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
  return ImageFont.load_default(size)


def _fitted(text: str, width: float) -> str:
  """`text`, cut short to so many pixels."""
  if _font().getlength(text) <= width:
    return text
  while text and _font().getlength(f'{text}…') > width:
    text = text[:-1]
  return f'{text}…'


def _mark(draw: ImageDraw.ImageDraw, place: tuple[int, int], good: bool):
  """A tick or a cross, 11 pixels wide. Drawn, since Pillow's own font has neither."""
  x, y = place
  if good:
    draw.line([(x + 1, y + 7), (x + 4, y + 11), (x + 10, y + 3)], fill=_MATCH, width=2)
  else:
    draw.line([(x + 2, y + 3), (x + 10, y + 11)], fill=_MISS, width=2)
    draw.line([(x + 10, y + 3), (x + 2, y + 11)], fill=_MISS, width=2)


def similarity_histogram(
  distributions: Distributions, *, bins: int = 60, size: Sequence[int] = (640, 260)
) -> Image.Image:
  """Similarities of matching and of non-matching pairs over one axis, each of area one.

  Args:
    distributions: `retrieval.distributions`.
    bins: of equal width, between the least and the greatest similarity.
    size: (width, height) of the picture.

  Returns:
    RGB picture.

  Raises:
    ValueError: there are no pairs at all.
  """
  values = np.concatenate(distributions)
  if not len(values):
    raise ValueError('There are no pairs of a query and an image.')
  low, high = float(values.min()), float(values.max())
  if low == high:
    low, high = low - 0.5, high + 0.5
  edges = np.linspace(low, high, bins + 1)
  width, height = size
  left, right, top, bottom = 2 * _MARGIN, width - 2 * _MARGIN, 44, height - 30

  # Drawn in four times the size: Pillow's polygons have ragged edges.
  fine = 4
  shapes = []
  for part, colour in ((distributions.non_matching, _MISS), (distributions.matching, _MATCH)):
    counts = np.histogram(part, edges)[0]
    shapes.append((counts / max(1, counts.sum()), colour))
  peak = max(float(shares.max()) for shares, _ in shapes)
  picture = Image.new('RGB', (width * fine, height * fine), _PAPER)
  for shares, colour in shapes:
    outline: list[tuple[float, float]] = [(left * fine, bottom * fine)]
    for i, share in enumerate(shares):
      y = (bottom - (bottom - top) * share / peak) * fine
      ends = [(left + (right - left) * j / bins) * fine for j in (i, i + 1)]
      outline += [(ends[0], y), (ends[1], y)]
    outline.append((right * fine, bottom * fine))
    layer = Image.new('RGBA', picture.size, (*colour, 0))
    pen = ImageDraw.Draw(layer)
    pen.polygon(outline, fill=(*colour, 90))
    pen.line(outline, fill=(*colour, 255), width=2 * fine)
    picture.paste(layer, (0, 0), layer)
  picture = picture.resize((width, height), Image.Resampling.LANCZOS)

  draw = ImageDraw.Draw(picture)
  draw.line([(left, bottom), (right, bottom)], fill=_SOFT)
  for share in np.linspace(0, 1, 5):
    x = left + (right - left) * share
    label = f'{low + (high - low) * share:.3g}'
    draw.line([(x, bottom), (x, bottom + 4)], fill=_SOFT)
    draw.text((x - _font().getlength(label) / 2, bottom + 7), label, fill=_SOFT, font=_font())
  x = left
  for name, part, colour in (
    ('matching', distributions.matching, _MATCH),
    ('non-matching', distributions.non_matching, _MISS),
  ):
    mean = f', mean {np.mean(part):.3g}' if len(part) else ''
    label = f'{name}: {len(part)} pairs{mean}'
    draw.rectangle([x, 14, x + 11, 25], fill=colour)
    draw.text((x + 18, 12), label, fill=_INK, font=_font())
    x += 18 + round(_font().getlength(label)) + 24
  return picture


class PairCounts(NamedTuple):
  """How many pairs of a query and an image lie at or above each of T thresholds.

  Attributes:
    thresholds: float64 [T], ascending from the least similarity on, evenly spaced.
    matching: int64 [T], pairs with the same semantic ID.
    non_matching: int64 [T], the others.
  """

  thresholds: np.ndarray
  matching: np.ndarray
  non_matching: np.ndarray


def pair_counts(embeddings: Embeddings, *, thresholds: int = 127) -> PairCounts:
  """The counts that a precision-recall curve over pairs is made of.

  Over all Q x N pairs, not a sample: at the high scores that matter there are few of either kind.

  Args:
    embeddings: both sides.
    thresholds: T.
  """
  low, high = np.inf, -np.inf
  for _, block in retrieval.similarity_blocks(embeddings):
    low, high = min(low, float(block.min())), max(high, float(block.max()))
  if not low < high:
    high = low + 1.0
  matches = ranking.matches_by_id(embeddings.query_ids, embeddings.gallery_ids)
  every = np.zeros(thresholds, np.int64)
  matching = np.zeros(thresholds, np.int64)
  for rows, block in retrieval.similarity_blocks(embeddings):
    mine = matches.block(rows.start, rows.stop)
    at = np.repeat(np.arange(len(block)), mine.counts)
    every += np.histogram(block, thresholds, (low, high))[0]
    matching += np.histogram(block[at, mine.indices], thresholds, (low, high))[0]
  return PairCounts(
    np.linspace(low, high, thresholds, endpoint=False),
    *(counts[::-1].cumsum()[::-1] for counts in (matching, every - matching)),
  )
