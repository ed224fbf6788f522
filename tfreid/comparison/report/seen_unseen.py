"""Queries that occur in training apart from those that do not. Floor 5."""

from __future__ import annotations

from tfreid.comparison import paper, scores
from tfreid.comparison.document import Cell, Part, Row, Table
from tfreid.comparison.report import cells
from tfreid.comparison.report.findings import Findings


def seen_and_unseen(findings: Findings) -> list[Part]:
  """Rank-1 and mAP of both kinds of queries, and which differences are real in each."""
  first = next(iter(findings.systems.values()))[0]
  if 'seen' not in first.metrics:
    return ['Which queries occur in training is not known for this data set.']
  counts = {part: first.value('queries', part) for part in ('seen', 'unseen')}
  parts = [part for part in counts if counts[part] > 0]
  headings = [Cell('system')]
  columns = [(part, metric) for part in parts for metric in ('rank1', 'mAP')]
  headings += [Cell(f'{part}: {cells.HEADINGS[metric]}') for part, metric in columns]
  headings += [Cell(f'{part}: rank-1 against {paper.label(findings.reference)}') for part in parts]
  best = {(part, metric): scores.best(findings.systems, metric, part) for part, metric in columns}
  verdicts = {part: findings.against(findings.reference, 'rank1', part) for part in parts}
  rows = []
  for name in findings.ordered():
    own = findings.systems[name]
    line = [findings.name(name)]
    line += [
      Cell(cells.plus_minus(scores.score(own, metric, part)), best[part, metric] == name)
      for part, metric in columns
    ]
    line += [
      cells.difference(verdicts[part].get(name), own=name == findings.reference, brief=True)
      for part in parts
    ]
    rows.append(Row(line))
  luck = {part: scores.chance(first, part) for part in parts}
  line = [Cell('chance')]
  line += [Cell(cells.number(luck[part][metric])) for part, metric in columns]
  rows.append(Row([*line, *(Cell('') for _ in parts)], muted=True))
  told = ' and '.join(f'{counts[part]:.0f} {part}' for part in parts)
  return [
    Table(
      headings,
      rows,
      f'{told} queries; seen means that the same combination of attributes occurs in training. '
      'The gallery is the whole one for both.',
    )
  ]
