"""Tables and text as Markdown and as one self-contained HTML page. Floor 5.

Plain HTML with a style sheet inside: no script, no request to anywhere. Colour and bars repeat what
the text says, so nothing is lost without them.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple, Union

# What a tone means is said by the cell's text; the colour only helps the eye.
TONES = ('good', 'bad', 'even', 'paper', 'muted')

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --page: #f5f6f8; --card: #fff; --line: #d8dde5;
  --soft: #5b6675; --bar: #bcd3f2; --top: #9fd8ae; --good: #1a7f37; --bad: #b3261e;
  --paper: #f0ece0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --page: #14181f; --card: #1d232d;
  --line: #343c49; --soft: #9aa6b6; --bar: #2d4a75; --top: #245c36; --good: #57c878;
  --bad: #ff8a80; --paper: #2c2920; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px; max-width: 1280px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 32px 0 8px; }
p { margin: 6px 0; max-width: 80ch; } .lead { font-size: 17px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line);
  margin: 8px 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 6px 0; caption-side: bottom; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
thead th { font-weight: 600; white-space: normal; vertical-align: bottom; }
tbody th, thead th:first-child { text-align: left; }
tbody th { font-weight: 400; } td.best, th.best { font-weight: 700; }
td.good { color: var(--good); } td.bad { color: var(--bad); }
td.even, td.muted, tr.muted th, tr.muted td { color: var(--soft); }
td.paper, th.paper { background: var(--paper); font-style: italic; }
td.bar { min-width: 300px; text-align: left; }
td.bar span { display: inline-block; height: 14px; background: var(--bar); border-radius: 2px;
  vertical-align: -2px; }
td.bar.best span { background: var(--top); }
figure { margin: 12px 0; background: var(--card); border: 1px solid var(--line); padding: 8px; }
figure svg { display: block; width: 100%; height: auto; background: #fff; }
figcaption { color: var(--soft); padding-top: 6px; }
pre { background: var(--card); border: 1px solid var(--line); padding: 10px; overflow-x: auto;
  font-size: 13px; }
details { margin: 8px 0; } summary { cursor: pointer; }
a { color: inherit; }
"""


class Cell(NamedTuple):
  """One cell of a table.

  Attributes:
    text: what it says.
    best: set in bold.
    tone: one of TONES or ''.
    bar: length of a bar in [0, 1] in the place of text, which then follows it.
    link: address, relative to the page.
    note: said when the pointer rests on it.
  """

  text: str
  best: bool = False
  tone: str = ''
  bar: float | None = None
  link: str = ''
  note: str = ''


class Row(NamedTuple):
  """A row of a table; a muted one is a reference and not a competitor."""

  cells: Sequence[Cell]
  muted: bool = False


class Table(NamedTuple):
  """A table: headings (cells, for their tones), rows, and what must be said below."""

  headings: Sequence[Cell]
  rows: Sequence[Row]
  caption: str = ''


class Figure(NamedTuple):
  """A drawing: SVG source, in words what it shows, its file beside the Markdown if it has one."""

  svg: str
  caption: str
  file: str = ''


class Code(NamedTuple):
  """A text set as it is, folded away under a title on the page."""

  title: str
  text: str


Part = Union[str, Table, Figure, Code]


class Section(NamedTuple):
  """A heading and what follows it; paragraphs are plain strings."""

  title: str
  parts: Sequence[Part]


class Document(NamedTuple):
  """The whole: a title, the message in a few sentences, sections."""

  title: str
  lead: Sequence[str]
  sections: Sequence[Section]


def to_html(document: Document) -> str:
  """The document as one HTML file that needs no other."""
  body = [f'<h1>{_text(document.title)}</h1>']
  body += [f'<p class="lead">{_text(paragraph)}</p>' for paragraph in document.lead]
  for section in document.sections:
    body.append(f'<section>\n<h2>{_text(section.title)}</h2>')
    body += [_html_part(part) for part in section.parts]
    body.append('</section>')
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{_text(document.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n'
    + '\n'.join(body)
    + '\n</main>\n</body>\n</html>\n'
  )


def to_markdown(document: Document, *, page: str = '') -> str:
  """The document as Markdown.

  Args:
    document: what to write.
    page: name of the HTML page, to which drawings without a file of their own are referred.
  """
  parts = [f'# {document.title}', *document.lead]
  for section in document.sections:
    parts.append(f'## {section.title}')
    for part in section.parts:
      if isinstance(part, Table):
        parts.append(_markdown_table(part))
        if part.caption:
          parts.append(part.caption)
      elif isinstance(part, Figure) and part.file:
        parts += [f'![{section.title}]({part.file})', part.caption]
      elif isinstance(part, Figure):
        parts.append(f'{part.caption} Drawn in [the page]({page}).' if page else part.caption)
      elif isinstance(part, Code):
        parts.append(f'{part.title}:\n\n```\n{part.text.rstrip()}\n```')
      else:
        parts.append(part)
  return '\n\n'.join(parts) + '\n'


def _html_part(part: Part) -> str:
  if isinstance(part, Table):
    return _html_table(part)
  if isinstance(part, Figure):
    return f'<figure role="group">{part.svg}<figcaption>{_text(part.caption)}</figcaption></figure>'
  if isinstance(part, Code):
    return f'<details><summary>{_text(part.title)}</summary><pre>{_text(part.text)}</pre></details>'
  return f'<p>{_text(part)}</p>'


def _html_table(table: Table) -> str:
  head = ''.join(
    f'<th scope="col"{_class(cell)}{_note(cell)}>{_text(cell.text)}</th>' for cell in table.headings
  )
  rows = []
  for row in table.rows:
    cells = ''.join(_html_cell(cell, first=not i) for i, cell in enumerate(row.cells))
    rows.append(f'<tr{" class=muted" if row.muted else ""}>{cells}</tr>')
  caption = f'<caption>{_text(table.caption)}</caption>' if table.caption else ''
  return (
    f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n'
    + '\n'.join(rows)
    + '\n</tbody></table></div>'
  )


def _html_cell(cell: Cell, *, first: bool) -> str:
  text = _text(cell.text)
  if cell.link:
    text = f'<a href="{html.escape(cell.link)}">{text}</a>'
  if cell.bar is not None:
    # The page must not scroll for a bar: 100 % leaves room for the number behind it.
    width = 2.0 * 100 * min(max(cell.bar, 0.0), 1.0)
    text = f'<span style="width:{width:.0f}px" aria-hidden="true"></span> {text}'
  tag, scope = ('th', ' scope="row"') if first else ('td', '')
  return f'<{tag}{scope}{_class(cell)}{_note(cell)}>{text}</{tag}>'


def _class(cell: Cell) -> str:
  names = [cell.tone] if cell.tone else []
  names += ['best'] if cell.best else []
  names += ['bar'] if cell.bar is not None else []
  return f' class="{" ".join(names)}"' if names else ''


def _note(cell: Cell) -> str:
  return f' title="{html.escape(cell.note)}"' if cell.note else ''


def _markdown_table(table: Table) -> str:
  def line(cells):
    return f'| {" | ".join(cells)} |'

  rows = [line([_markdown_cell(cell) for cell in table.headings])]
  rows.append(line(['---'] + ['---:'] * (len(table.headings) - 1)))
  rows += [line([_markdown_cell(cell) for cell in row.cells]) for row in table.rows]
  return '\n'.join(rows)


def _markdown_cell(cell: Cell) -> str:
  text = cell.text.replace('|', '\\|')
  if cell.bar is not None:
    text = f'{"█" * round(20 * min(max(cell.bar, 0.0), 1.0))} {text}'
  if cell.link:
    text = f'[{text}]({cell.link})'
  return f'**{text}**' if cell.best and text else text


def _text(text: str) -> str:
  return html.escape(text, quote=False)
