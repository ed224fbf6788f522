"""Which differences between systems are real. Floor 5."""

from __future__ import annotations

from tfreid.comparison import paper, scores
from tfreid.comparison.document import Cell, Part, Row, Table
from tfreid.comparison.report import cells
from tfreid.comparison.report.findings import Findings


def differences(findings: Findings) -> list[Part]:
  """Every system against ours and against the best, with intervals."""
  columns = [(findings.reference, 'rank1'), (findings.reference, 'mAP')]
  if findings.best != findings.reference:
    columns.append((findings.best, 'rank1'))
  verdicts = {
    (reference, metric): findings.against_the_best(metric)
    if reference == findings.best != findings.reference
    else findings.against(reference, metric)
    for reference, metric in columns
  }
  rows = [
    Row(
      [
        findings.name(name),
        *(cells.difference(verdicts[c].get(name), own=name == c[0]) for c in columns),
      ]
    )
    for name in findings.ordered()
  ]
  headings = [Cell('system')]
  for reference, metric in columns:
    which = ', the best' if reference == findings.best else ''
    headings.append(Cell(f'{cells.HEADINGS[metric]} against {paper.label(reference)}{which}'))
  return [
    Table(
      headings,
      rows,
      'Percent points with their 95 % interval over seeds and queries (two-way model, not '
      'corrected), and in how many seeds the difference has this sign. ▲ clearly better, ▼ '
      'clearly worse, ≈ no clear difference: corrected for the number of systems, and against '
      'the best, which these results have chosen, for the number of pairs.',
    ),
    *_design(findings),
  ]


def _design(findings: Findings) -> list[str]:
  """How large a difference these seeds and queries could have shown."""
  sentences = []
  for metric in ('rank1', 'mAP'):
    pairs = scores.all_pairs(findings.systems, metric)
    number = len(pairs) // 2
    if not number:
      continue
    alone = scores.detectable(pairs)
    corrected = scores.detectable(pairs, comparisons=number)
    sentences.append(
      f'{cells.HEADINGS[metric]}: a true difference of {alone:.1f} points between two systems is '
      f'found in four of five such comparisons when the two were chosen before, and one of '
      f'{corrected:.1f} points among all {number} pairs.'
    )
  return sentences
