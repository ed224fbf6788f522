"""An answer as one self-contained HTML file: no script, no request to anywhere. Floor 4."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import NamedTuple

from tfreid import image_bytes, templating
from tfreid.source.answer import CROSS, TICK, UNKNOWN, Answer, Hit, describe, verdict

_THUMBNAIL = (128, 256)  # width, height in pixels, at most

_MEANINGS = {
  # Mark -> its CSS class, and what it says to who cannot see it.
  TICK: ('yes', 'as asked'),
  CROSS: ('no', 'not as asked'),
  UNKNOWN: ('open', 'not annotated'),
}


class _Mark(NamedTuple):
  """How a crop agrees with one attribute of the query, as the template shows it."""

  css: str
  meaning: str
  mark: str
  text: str
  change: str


class _Shown(NamedTuple):
  """A hit, as the template shows it."""

  id: str
  score: str
  picture: str
  marks: list[_Mark]


def render(answer: Answer) -> str:
  """The whole page.

  Args:
    answer: hits whose `path` can be read become thumbnails inside the file; the others say so.
  """
  return templating.render(
    'tfreid.search',
    'answer.html.j2',
    title=answer.text or describe(answer.query),
    chips=[describe({name: value}) for name, value in answer.query.items()],
    question=answer.ask_next(),
    hits=[_shown(hit, answer.query) for hit in answer.hits],
    shown=len(answer.hits),
    gallery_size=answer.gallery_size,
    source=answer.source,
    tick=TICK,
    cross=CROSS,
    unknown=UNKNOWN,
    explained=any(hit.reasons for hit in answer.hits),
  )


def _shown(hit: Hit, query: Mapping[str, str]) -> _Shown:
  marks = []
  for name, value in query.items():
    mark = verdict(value, hit.attributes.get(name))
    css, meaning = _MEANINGS[mark]
    said = hit.attributes.get(name, '')
    change = f'{hit.reasons[name]:+.3f}' if name in hit.reasons else ''
    marks.append(_Mark(css, meaning, mark, f'{name}: {said}' if said else name, change))
  return _Shown(hit.id, f'{hit.score:.3f}', thumbnail(hit.path), marks)


def thumbnail(path: str) -> str:
  """The image as a data URL, at most 128 x 256 pixels; '' if it cannot be read."""
  try:
    image = image_bytes.picture(image_bytes.read(path), at_most=_THUMBNAIL) if path else None
  except image_bytes.BadImageError:
    return ''
  if image is None:
    return ''
  buffer = io.BytesIO()
  image.save(buffer, 'JPEG', quality=88)
  return f'data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}'
