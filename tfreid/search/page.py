"""An answer as one self-contained HTML file: no script, no request to anywhere. Floor 4."""

from __future__ import annotations

import base64
import html
import io

from tfreid.data import image_bytes
from tfreid.source.answer import CROSS, TICK, UNKNOWN, Answer, Hit, describe, verdict

_THUMBNAIL = (128, 256)  # width, height in pixels, at most

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #f5f6f8; --card: #fff;
  --line: #d8dde5; --soft: #5b6675; --yes: #1a7f37; --no: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --paper: #14181f; --card: #1d232d;
  --line: #343c49; --soft: #9aa6b6; --yes: #57c878; --no: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 20px; margin: 0 0 8px; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin: 0 0 20px; padding: 0; list-style: none; }
.chips li { border: 1px solid var(--line); background: var(--card); border-radius: 999px;
  padding: 2px 12px; }
.next { margin: 0 0 20px; color: var(--soft); }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px;
  margin: 0; padding: 0; list-style: none; }
.hit { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; }
.hit img { display: block; width: 100%; height: 240px; object-fit: contain; background: #808894;
  image-rendering: auto; }
.missing { height: 240px; display: grid; place-items: center; color: var(--soft); }
.hit header { display: flex; justify-content: space-between; padding: 6px 10px 0;
  font-weight: 600; }
.hit p { margin: 0; padding: 0 10px; color: var(--soft); font-size: 12px;
  overflow-wrap: anywhere; }
.hit ul { margin: 4px 0 10px; padding: 0 10px; list-style: none; font-size: 13px; }
.yes { color: var(--yes); } .no { color: var(--no); } .open { color: var(--soft); }
footer { margin-top: 20px; color: var(--soft); font-size: 13px; }
"""


def render(answer: Answer) -> str:
  """The whole page.

  Args:
    answer: hits whose `path` can be read become thumbnails inside the file; the others say so.
  """
  chips = ''.join(
    f'<li>{html.escape(describe({name: value}))}</li>' for name, value in answer.query.items()
  )
  hits = ''.join(_hit(rank, hit, answer) for rank, hit in enumerate(answer.hits, start=1))
  title = answer.text or describe(answer.query)
  source = f' Asked: {html.escape(answer.source)}.' if answer.source else ''
  question = answer.ask_next()
  asked = f'<p class="next">Ask next: {html.escape(question)}</p>\n' if question else ''
  explained = (
    ' In brackets: what the attribute adds to the score.'
    if any(hit.reasons for hit in answer.hits)
    else ''
  )
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
    f'<h1>{html.escape(title)}</h1>\n<ul class="chips">{chips}</ul>\n{asked}<ol>{hits}</ol>\n'
    f'<footer>Best {len(answer.hits)} of {answer.gallery_size} crops.{source} '
    f'{TICK} annotated as asked, {CROSS} otherwise, {UNKNOWN} not annotated.{explained} A high '
    'score is not an identification.</footer>\n</body>\n</html>\n'
  )


def _hit(rank: int, hit: Hit, answer: Answer) -> str:
  marks = []
  classes = {TICK: 'yes', CROSS: 'no', UNKNOWN: 'open'}
  words = {TICK: 'as asked', CROSS: 'not as asked', UNKNOWN: 'not annotated'}
  for name, value in answer.query.items():
    mark = verdict(value, hit.attributes.get(name))
    said = hit.attributes.get(name, '')
    shown = html.escape(f'{name}: {said}' if said else name)
    change = f' <small>({hit.reasons[name]:+.3f})</small>' if name in hit.reasons else ''
    marks.append(
      f'<li class="{classes[mark]}"><span role="img" aria-label="{words[mark]}">{mark}</span> '
      f'{shown}{change}</li>'
    )
  picture = thumbnail(hit.path)
  image = (
    f'<img src="{picture}" alt="crop {html.escape(hit.id)}">'
    if picture
    else '<div class="missing">image not readable</div>'
  )
  return (
    f'<li class="hit">{image}<header><span>{rank}</span><span>{hit.score:.3f}</span></header>'
    f'<ul>{"".join(marks)}</ul><p>{html.escape(hit.id)}</p></li>'
  )


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
