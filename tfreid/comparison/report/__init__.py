"""The page of a comparison: who wins, by how much, what it cost; a module per table. Floor 5."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tfreid.comparison import costs, document, plan, provenance, ranked_images, scores
from tfreid.comparison.document import Document, Figure, Section
from tfreid.comparison.report import (
  alignment,
  at_a_glance,
  differences,
  figure3,
  paper_tables,
  readings,
  seen_unseen,
  subsets,
  untrained,
)
from tfreid.comparison.report.findings import Findings

PAGE, MARKDOWN = 'index.html', 'tables.md'
FIGURE3 = figure3.FILE


def write(
  rows: Sequence[Mapping[str, Any]],
  about: Mapping[str, Any],
  directory: str,
  *,
  out: str = '',
  pictures: bool = True,
) -> str:
  """Writes the page, its Markdown with the drawing, and the ranked-result sheets it links to.

  Args:
    rows: of the comparison's results file.
    about: 'dataset' and, where known, 'command', 'settings' (text by title), 'machine', 'seeds',
      'failed' (title -> what went wrong), 'unfinished' (titles), 'note' (a sentence for the top).
    directory: to write to.
    out: folder of the comparison's runs, whose ranked results are copied; '' keeps what is there.
    pictures: without them, nothing is copied and no ranked results are linked to.

  Returns:
    The path of the page.

  Raises:
    ValueError: systems that were evaluated on different test splits.
  """
  os.makedirs(directory, exist_ok=True)
  links = ranked_images.copy(scores.results(rows), out, directory) if pictures else {}
  content = build(rows, about, links=links)
  page = os.path.join(directory, PAGE)
  for section in content.sections:
    for part in section.parts:
      if isinstance(part, Figure) and part.file:
        plan.write_text(os.path.join(directory, part.file), f'{part.svg.rstrip()}\n')
  plan.write_text(page, document.to_html(content))
  plan.write_text(os.path.join(directory, MARKDOWN), document.to_markdown(content, page=PAGE))
  return page


def build(
  rows: Sequence[Mapping[str, Any]],
  about: Mapping[str, Any],
  *,
  links: Mapping[str, str] | None = None,
) -> Document:
  """The page's content.

  Args:
    rows: of the comparison's results file.
    about: as `write` takes it.
    links: system -> address of its ranked results.
  """
  findings = Findings(rows, about, links)
  sections = []
  if findings.systems:
    sections.append(Section('At a glance', [at_a_glance.glance(findings)]))
    sections.append(Section('Table 2', paper_tables.table2(findings)))
    sections.append(Section('Table 3', paper_tables.table3(findings)))
    sections.append(Section('Which differences are real', differences.differences(findings)))
    sections.append(Section('Seen and unseen descriptions', seen_unseen.seen_and_unseen(findings)))
    sections += alignment.alignment(findings)
    sections += subsets.subsets(findings)
    against = untrained.references(findings)
    sections.append(Section('Against an untrained network and chance', against))
    sections += figure3.figure3(findings)
    sections += readings.readings(findings)
  sections.append(Section('Time and memory', costs.costs(rows)))
  missing = provenance.missing(rows, about, findings.results)
  if missing:
    sections.append(Section('What is missing', missing))
  sections.append(Section('How this was made', provenance.made(rows, about, findings.results)))
  title = f'Attribute-based person search: the systems of the paper on {findings.dataset}'
  note = [about['note']] if about.get('note') else []
  return Document(title, [*note, *at_a_glance.lead(findings)], sections)
