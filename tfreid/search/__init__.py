"""Asking: a description in, a ranked answer with pictures and reasons out.

with tfreid.search.load('saved_models/demo') as people:
  answer = people.search('woman, red top', explain=True)
  next_question = people.suggest('woman, red top')[0].attribute
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
  import numpy as np

  from tfreid.data.attributes import AttributeSchema
  from tfreid.search.answer import Answer, Hit, Suggestion


class Source(Protocol):
  """What can be searched: an exported model, an index, a server. All answer alike.

  Attributes:
    schema: what can be said of a person, with words and encoding.
  """

  schema: AttributeSchema

  def search(
    self,
    query: str | Mapping[str, str],
    *,
    top_k: int = 20,
    text: str = '',
    explain: bool = False,
    **options: Any,
  ) -> Answer:
    """The best crops for a description.

    Args:
      query: a description in words, or attribute name to value ('!value': not this value).
      top_k: number of crops, at most.
      text: the description as it was given, for the answer.
      explain: fill `Hit.reasons`.
      **options: where, must, must_not, exclude and min_score of an index; ValueError elsewhere.

    Raises:
      ValueError: something that is not known; the message names it.
    """

  def like(self, crop: str | bytes, *, top_k: int = 20, **options: Any) -> Answer:
    """The crops most like one: an id of the gallery, the path of an image, or the bytes of one."""

  def suggest(self, query: str | Mapping[str, str], *, top_k: int = 50) -> list[Suggestion]:
    """The attributes of which the query says nothing, by what asking for them would tell.

    The gain is about which of the best `top_k` crops is meant; best first; see `search.suggestion`.
    """

  def embed(self, crops: Sequence[str | bytes]) -> np.ndarray:
    """The concepts of crops, float32 [N, E]: of paths of images, or of the bytes of some.

    Raises:
      ValueError: one cannot be decoded.
      FileNotFoundError: there is no such file.
    """

  def embed_query(self, query: str | Mapping[str, str]) -> np.ndarray:
    """The concept of a description, float32 [E]: its dot product with a crop's is the score."""

  def crop(self, identifier: str) -> Hit | None:
    """What is known of the crop of that id, with a score of 0; None if there is none.

    `like` takes an id that is unknown for the path of a file: whoever passes on what strangers
    say asks here first.
    """

  def info(self) -> dict[str, Any]:
    """Facts, as plain JSON types."""

  def close(self) -> None:
    """Frees what it holds."""

  def __enter__(self) -> Source: ...

  def __exit__(self, *exception: Any) -> None: ...


def load(directory: str, **options: Any) -> Source:
  """What can be searched: the index or the exported model in a directory, or a model of a server.

  Args:
    directory: of an index, of a version of an exported model, or of such a model; or the address of
      a TF Serving, 'grpc://host:8500' or 'http://host:8501'.
    **options: of `tfreid.index.open`, for an index; of `tfreid.search.remote.ServedModel`, for a
      server: `model`, its name there, at least.

  Raises:
    FileNotFoundError: there is neither.
    ValueError: it is damaged, or options for an exported model.
    ServingError: the server cannot be reached, or lacks the model.
  """
  import os

  if '://' in directory:
    from tfreid.search.remote import ServedModel

    if 'model' not in options:
      raise ValueError(f"Say which model of {directory} is meant: model='people', for example.")
    return ServedModel(directory, **options)
  directory = os.path.expanduser(directory)
  # Here, so that importing the package, which every room may do for `answer`, opens no room.
  if os.path.isfile(os.path.join(directory, 'index.json')):
    from tfreid import index

    return index.open(directory, **options)
  if options:
    raise ValueError(
      f"'{directory}' holds no index, so there is no use for {', '.join(sorted(options))}."
    )
  from tfreid.search.exported import ExportedModel

  return ExportedModel(directory)
