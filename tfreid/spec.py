"""What a method needs to know of a data set before it can be built. Floor 0."""

from __future__ import annotations

from typing import NamedTuple


class DatasetSpec(NamedTuple):
  """The sizes and training statistics that the data, not the configuration, decides.

  gin binds constructors uncalled ("how"); the code completes them with this ("how big").

  Attributes:
    image_shape: (height, width, 3) of the crops after resizing, in pixels.
    attribute_names: name of each column of an attribute vector, A of them, for example
      'backpack' or 'upper_color=red'.
    num_semantic_ids: number of training semantic IDs, the classes of the classifier.
    attribute_rates: A floats in [0, 1], the share of training images for which the column is on.
    num_images: number of training images.
    encoding: of the attribute vectors, 'binary' (0 / 1) or 'three_state' (-1 / 0 / +1).
  """

  image_shape: tuple[int, int, int]
  attribute_names: tuple[str, ...]
  num_semantic_ids: int
  attribute_rates: tuple[float, ...] = ()
  num_images: int = 0
  encoding: str = 'binary'

  @property
  def num_attributes(self) -> int:
    """Length A of an attribute vector."""
    return len(self.attribute_names)
