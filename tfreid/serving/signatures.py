"""The signatures of an exported model, described once. Floor 0.

The model's inputs (`retriever`), its golden and warm-up requests (`golden`), the messages of the
client and the table of docs/serving.md follow from what stands here. It needs no TensorFlow.

In a shape, B is the number of requests in a batch, A that of attribute columns, E the size of a
concept, K the number of results, which the export fixed, and M the number of variants of a query.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# What one request may ask for: a small file, an empty text unfold into a thousand times their size.
MAX_ROWS = 1024
MAX_IMAGES = 256
MAX_CROP_IDS = 64
MAX_VARIANTS = 2**14


class Tensor(NamedTuple):
  """An input or output.

  Attributes:
    name: by which it is given or answered.
    dtype: 'float32' or 'string'.
    shape: a letter for each side, the batch first.
    meaning: what it holds.
  """

  name: str
  dtype: str
  shape: str
  meaning: str = ''

  @property
  def is_ranked(self) -> bool:
    """Whether it has a place for each of the K results."""
    return 'K' in self.shape

  def __str__(self) -> str:
    return f'`{self.name} [{", ".join(self.shape)}]`'


class Signature(NamedTuple):
  """A function of an exported model.

  Attributes:
    name: of the signature.
    inputs: in the order of the function's arguments.
    outputs: what it answers.
    purpose: what it is for, a sentence.
    max_rows: requests in a batch at most.
    by_words: whether it reads words, which a model without a schema cannot.
  """

  name: str
  inputs: tuple[Tensor, ...]
  outputs: tuple[Tensor, ...]
  purpose: str
  max_rows: int = MAX_ROWS
  by_words: bool = False

  @property
  def encodes_images(self) -> bool:
    """Whether it runs the image encoder, which may compute in bfloat16. All else is float32."""
    return _IMAGE in self.inputs

  @property
  def searches(self) -> bool:
    """Whether it answers crops of the gallery, which a model without one cannot."""
    return any(tensor.is_ranked for tensor in self.outputs)


_ATTRIBUTES = Tensor('attributes', 'float32', 'BA', "in the schema's order and encoding")
_IMAGE = Tensor('image_bytes', 'string', 'B', 'JPEG or PNG files')
_RANKING = (
  Tensor('ids', 'string', 'BK', 'of the best crops'),
  Tensor('scores', 'float32', 'BK', 'dot products, falling'),
)
_CONCEPTS = Tensor('concepts', 'float32', 'BE')

SIGNATURES = (
  Signature('serving_default', (_ATTRIBUTES,), _RANKING, 'The best crops for attribute vectors.'),
  Signature(
    'search_words',
    (Tensor('words', 'string', 'B', 'descriptions'),),
    (
      *_RANKING,
      Tensor('understood', 'string', 'B', 'the settings that were read'),
      Tensor('unknown', 'string', 'B', 'words that are in no phrase'),
      Tensor('contradictory', 'string', 'B', 'attributes that are said to be two things'),
    ),
    "The best crops for descriptions; `''` and 0 for a text of which anything was not understood.",
    by_words=True,
  ),
  Signature('search_images', (_IMAGE,), _RANKING, 'The best crops for a crop.', MAX_IMAGES),
  Signature(
    'search_ids',
    (Tensor('crop_ids', 'string', 'B', 'ids of the gallery'),),
    _RANKING,
    "The best crops for a crop of the gallery; `''` and 0 for an unknown id.",
    MAX_CROP_IDS,
  ),
  Signature('search_concepts', (_CONCEPTS,), _RANKING, 'The best crops for concepts.'),
  Signature(
    'explain',
    (_ATTRIBUTES, Tensor('variants', 'float32', 'BMA', 'other vectors for each query')),
    (*_RANKING, Tensor('variant_scores', 'float32', 'BKM', 'of these crops for each variant')),
    'The best crops for attribute vectors, and what they score for variants of them.',
  ),
  Signature('embed_images', (_IMAGE,), (_CONCEPTS,), 'The concepts of crops.', MAX_IMAGES),
  Signature('embed_attributes', (_ATTRIBUTES,), (_CONCEPTS,), 'The concepts of vectors.'),
  Signature(
    'describe',
    (Tensor('any', 'string', 'B', 'which is not looked at'),),
    (Tensor('description', 'string', 'B', 'JSON'),),
    'The schema and the sizes, for a client that has nothing but the address.',
    MAX_CROP_IDS,
  ),
)

BY_NAME = {signature.name: signature for signature in SIGNATURES}


def available(*, has_schema: bool, has_gallery: bool = True) -> Iterator[Signature]:
  """The signatures of a model with a schema and a gallery, or of one without."""
  return (
    signature
    for signature in SIGNATURES
    if (has_schema or not signature.by_words) and (has_gallery or not signature.searches)
  )


def tensors() -> dict[str, Tensor]:
  """All inputs by name; a name means the same in each signature."""
  return {tensor.name: tensor for signature in SIGNATURES for tensor in signature.inputs}


def table() -> str:
  """The signatures as a table in Markdown, for the documents."""
  lines = ['| signature | in | out | what it is for |', '|---|---|---|---|']
  for signature in SIGNATURES:
    sides = (', '.join(map(str, side)) for side in (signature.inputs, signature.outputs))
    lines.append(f'| `{signature.name}` | {" | ".join(sides)} | {signature.purpose} |')
  return '\n'.join(lines) + '\n'
