"""The protocol of what can be searched, what narrows a search, what a source can do. Floor 2."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Union

from tfreid.source.answer import Answer, Hit, Suggestion

if TYPE_CHECKING:
  import numpy as np
  from typing_extensions import TypedDict, Unpack

  from tfreid.data.attributes import AttributeSchema

  class Narrowing(TypedDict, total=False):
    """The fields of `SearchOptions`, as keywords."""

    where: str
    must: Mapping[str, str] | str | None
    must_not: Mapping[str, str] | str | None
    exclude: Sequence[str]
    min_score: float | None


# A description in words, or attribute name to value; '!value' for "not this value".
Description = Union[str, Mapping[str, str]]

# Best crops between which the answer to a suggested question is to decide.
CANDIDATES = 50


@dataclasses.dataclass(frozen=True)
class SearchOptions:
  """Which crops may be answered; by default all. Only an index can do with less than all.

  Attributes:
    where: a condition on fields, see `tfreid.index.filters`.
    must: attributes with which a crop must be annotated, by name or in words.
    must_not: attributes with which a crop must not be annotated.
    exclude: ids that are not wanted, for example because they were seen.
    min_score: only crops with at least this score.
  """

  where: str = ''
  must: Mapping[str, str] | str | None = None
  must_not: Mapping[str, str] | str | None = None
  exclude: Sequence[str] = ()
  min_score: float | None = None

  @property
  def given(self) -> list[str]:
    """Names of what narrows the search."""
    default = SearchOptions()
    return [
      field.name
      for field in dataclasses.fields(self)
      if (value := getattr(self, field.name)) != getattr(default, field.name)
      and (value or value == 0)
    ]

  @classmethod
  def joined(cls, options: SearchOptions | None, keywords: Mapping[str, Any]) -> SearchOptions:
    """The options, with what is also given as keywords.

    Raises:
      TypeError: a keyword that is no option.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(keywords) - known)
    if unknown:
      raise TypeError(
        f'search() got an unexpected keyword argument {unknown[0]!r}; the options are '
        f'{", ".join(sorted(known))}'
      )
    return dataclasses.replace(options or cls(), **keywords)


@dataclasses.dataclass(frozen=True)
class Capabilities:
  """What a source is able to do, beyond `search` for a description.

  Attributes:
    explain: `search(explain=True)`.
    suggest: `suggest`.
    like: `like` of a crop of the gallery.
    upload: `like` of an image.
    narrow: the options of `SearchOptions`.
    joins: what many threads ask at the same time takes less than one after the other: such a source
      is best asked by many at a time.
  """

  explain: bool
  suggest: bool
  like: bool
  upload: bool
  narrow: bool
  joins: bool = False


class Source(Protocol):
  """What can be searched: an exported model, an index, a served model. All answer alike."""

  @property
  def schema(self) -> AttributeSchema:
    """What can be said of a person, with words and encoding.

    Raises:
      ValueError: it is not known.
    """

  def search(
    self,
    query: Description,
    *,
    top_k: int = 20,
    text: str = '',
    explain: bool = False,
    suggest: bool = False,
    options: SearchOptions | None = None,
    **narrowing: Unpack[Narrowing],
  ) -> Answer:
    """The best crops for a description.

    Args:
      query: a description in words, or attribute name to value ('!value': not this value).
      top_k: number of crops, at most.
      text: the description as it was given, for the answer.
      explain: fill `Hit.reasons`.
      suggest: fill `Answer.suggestions`, with what `suggest` says; where it can, a source reads its
        gallery once for both.
      options: which crops may be answered; ValueError where `capabilities().narrow` is false.
      **narrowing: single options, for people: `where='camera == 1'`.

    Raises:
      ValueError: something that is not known; the message names it.
    """

  def like(
    self,
    crop: str | bytes,
    *,
    top_k: int = 20,
    options: SearchOptions | None = None,
    **narrowing: Unpack[Narrowing],
  ) -> Answer:
    """The crops most like one.

    Args:
      crop: the id of a crop of the gallery (which is then left out of the answer), the path of an
        image, or the bytes of one.
      top_k: number of crops, at most.
      options: as in `search`.
      **narrowing: as in `search`.

    Raises:
      ValueError: it is neither, or the image cannot be decoded.
    """

  def suggest(
    self,
    query: Description,
    *,
    top_k: int = CANDIDATES,
    options: SearchOptions | None = None,
    **narrowing: Unpack[Narrowing],
  ) -> list[Suggestion]:
    """The attributes of which the query says nothing, by what asking for them would tell.

    Args:
      query: as in `search`.
      top_k: the best crops about which of them the gain is.
      options: as in `search`.
      **narrowing: as in `search`.

    Returns:
      Best first; see `source.suggestion`.
    """

  def embed(self, crops: Sequence[str | bytes]) -> np.ndarray:
    """The concepts of crops, float32 [N, E]: of paths of images, or of the bytes of some.

    Raises:
      ValueError: one cannot be decoded.
      FileNotFoundError: there is no such file.
    """

  def embed_query(self, query: Description) -> np.ndarray:
    """The concept of a description, float32 [E]: its dot product with a crop's is the score."""

  def crop(self, identifier: str) -> Hit | None:
    """What is known of the crop of that id, with a score of 0; None if there is none.

    `like` takes an id that is unknown for the path of a file: whoever passes on what strangers
    say asks here first.
    """

  def capabilities(self) -> Capabilities:
    """What it is able to do."""

  def info(self) -> dict[str, Any]:
    """Facts, as plain JSON types."""

  def pinned(self) -> Source:
    """This source in the state it has now, which it does not leave by itself.

    It may be this one. The other uses what this one holds, which is therefore closed last.
    """

  def newer(self) -> Source | None:
    """What has come since, opened beside this one; None if nothing has.

    It may be this one, where threads that are asking it are not disturbed. Otherwise both can be
    asked, until each is closed.

    Raises:
      ValueError: what is new cannot be asked.
      OSError: it cannot be reached.
    """

  def close(self) -> None:
    """Frees what it holds; may be called again."""

  def __enter__(self) -> Source: ...

  def __exit__(self, *exception: Any) -> None: ...


def ask(
  source: Source,
  query: Description,
  *,
  top_k: int = 20,
  text: str = '',
  explain: bool | None = None,
  suggest: bool | None = None,
  options: SearchOptions | None = None,
) -> Answer:
  """The best crops for a description, why, and what to ask for next.

  Args:
    source: to ask.
    query: as in `Source.search`.
    top_k: as there.
    text: as there.
    explain: fill `Hit.reasons`; None where the source can.
    suggest: fill `Answer.suggestions`; None where the source can.
    options: as in `Source.search`.

  Raises:
    ValueError: something that is not known, or asked for and not possible; the message names it.
  """
  can = source.capabilities()
  explain = can.explain if explain is None else explain
  suggest = can.suggest if suggest is None else suggest
  return source.search(
    query, top_k=top_k, text=text, explain=explain, suggest=suggest, options=options
  )
