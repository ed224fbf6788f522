"""What is asked, as it comes in: descriptions in words or by name, and crops. Floor 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tfreid import image_bytes
from tfreid.data import words
from tfreid.data.attributes import AttributeSchema
from tfreid.query import Query


def parsed(schema: AttributeSchema, query: str | Query) -> dict[str, str]:
  """Attribute name to value of a query, as the schema spells them.

  Args:
    schema: of the attributes.
    query: a description in words, or attribute name to value; see `tfreid.query`.

  Raises:
    ValueError: an unknown word, attribute or value.
  """
  if isinstance(query, str):
    return words.parse(query, schema)
  return {name: str(statement) for name, statement in schema.read_query(query).items()}


def embedded(
  crops: Sequence[str | bytes], embed: Callable[[list[bytes]], np.ndarray], *, batch: int = 32
) -> np.ndarray:
  """The concepts of crops, some at a time.

  Args:
    crops: paths of images, or their bytes.
    embed: bytes of B images to float32 [B, E].
    batch: B at most.

  Returns:
    float32 [N, E].

  Raises:
    ValueError: there is no crop at all, or one cannot be decoded.
    FileNotFoundError: there is no such file.
  """
  if isinstance(crops, (str, bytes)) or not len(crops):
    raise ValueError('Give a list of crops, each the path of an image or the bytes of one.')
  parts = []
  for start in range(0, len(crops), batch):
    contents = []
    for crop in crops[start : start + batch]:
      if isinstance(crop, str):
        crop = contents_of(crop)
      contents.append(crop)
    parts.append(np.asarray(embed(contents), np.float32))
  return np.concatenate(parts)


def contents_of(path: str) -> bytes:
  """An image file as an exported model takes it; see `image_bytes.for_model`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no picture, is damaged, or exceeds a limit; the message names it.
  """
  try:
    return image_bytes.for_model(image_bytes.read(path))
  except image_bytes.MissingImageError as error:
    raise FileNotFoundError(f"There is no image file '{path}'.") from error
  except image_bytes.BadImageError as error:
    raise ValueError(f"'{path}' cannot be searched for: {error}.") from error
