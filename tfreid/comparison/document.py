"""Tables and text as Markdown and as one self-contained HTML page. Floor 5.

Plain HTML with a style sheet inside: no script, no request to anywhere. Colour and bars repeat what
the text says, so nothing is lost without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Union

from tfreid import templating

# What a tone means is said by the cell's text; the colour only helps the eye.
TONES = ('good', 'bad', 'even', 'paper', 'muted')


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
  return templating.render(
    'tfreid.comparison',
    'document.html.j2',
    document=document,
    kind=_kind,
    classes=_classes,
    width=_bar_width,
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


def _kind(part: Part) -> str:
  """What the template makes of a part."""
  kinds = {Table: 'table', Figure: 'figure', Code: 'code'}
  return kinds.get(type(part), 'paragraph')


def _classes(cell: Cell) -> str:
  """The CSS classes of a cell."""
  names = [cell.tone] if cell.tone else []
  names += ['best'] if cell.best else []
  names += ['bar'] if cell.bar is not None else []
  return ' '.join(names)


def _bar_width(cell: Cell) -> str:
  """Pixels of a cell's bar."""
  # The page must not scroll for a bar: 100 % leaves room for the number behind it.
  return f'{2.0 * 100 * min(max(cell.bar or 0.0, 0.0), 1.0):.0f}'


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
