"""Tables 2 and 3 of the paper, with the paper's own figures. Floor 5."""

from __future__ import annotations

import math

from tfreid.comparison import paper, scores
from tfreid.comparison.document import Cell, Part, Row, Table
from tfreid.comparison.report import cells
from tfreid.comparison.report.findings import Findings


def table2(findings: Findings) -> list[Part]:
  """All four metrics of the systems of Table 2 and of the user's own."""
  order = [system.name for system in paper.SYSTEMS if system.table2]
  known = {system.name for system in paper.SYSTEMS}
  names = [name for name in order if name in findings.systems]
  names += [name for name in findings.systems if name not in known]
  best = {
    metric: scores.best({name: findings.systems[name] for name in names}, metric)
    for metric in scores.METRICS
  }
  verdicts = findings.against(findings.reference, 'rank1')
  published = scores.METRICS if findings.column else ()
  headings = [
    Cell('system'),
    *(Cell(cells.HEADINGS[metric]) for metric in scores.METRICS),
    *(Cell(f'paper: {cells.HEADINGS[metric]}', tone='paper') for metric in published),
    Cell(f'rank-1 against {paper.label(findings.reference)}'),
  ]
  rows = []
  for name in names:
    printed = paper.BY_NAME[name].table2.get(findings.column) if name in paper.BY_NAME else None
    rows.append(
      Row(
        [
          findings.name(name),
          *(
            Cell(
              cells.plus_minus(scores.score(findings.systems[name], metric)), best[metric] == name
            )
            for metric in scores.METRICS
          ),
          *(
            Cell('–' if printed is None else f'{value:.2f}', tone='paper')
            for value in printed or [math.nan] * len(published)
          ),
          cells.difference(verdicts.get(name), own=name == findings.reference, brief=True),
        ]
      )
    )
  luck = scores.chance(next(iter(findings.systems.values()))[0])
  line = [Cell('chance'), *(Cell(cells.number(luck[metric])) for metric in scores.METRICS)]
  rows.append(Row([*line, *[Cell('')] * (len(published) + 1)], muted=True))
  return [Table(headings, rows, _caption(findings))]


def table3(findings: Findings) -> list[Part]:
  """The ablation: rank-1 and mAP of the systems of Table 3."""
  names = [name for name in paper.TABLE3_ORDER if name in findings.systems]
  if not names:
    return ['None of its systems was run.']
  best = scores.best({name: findings.systems[name] for name in names})
  best_map = scores.best({name: findings.systems[name] for name in names}, 'mAP')
  verdicts = findings.against(findings.reference, 'rank1')
  rows = []
  for name in names:
    printed = paper.BY_NAME[name].table3
    rows.append(
      Row(
        [
          findings.name(name),
          Cell(cells.plus_minus(scores.score(findings.systems[name], 'rank1')), name == best),
          Cell(cells.plus_minus(scores.score(findings.systems[name], 'mAP')), name == best_map),
          *(Cell(str(printed[column]), tone='paper') for column in printed if findings.column),
          cells.difference(verdicts.get(name), own=name == findings.reference, brief=True),
        ]
      )
    )
  headings = [
    Cell('system'),
    Cell('rank-1'),
    Cell('mAP'),
    *(
      Cell(f'paper: {column} rank-1', tone='paper')
      for column in paper.COLUMNS.values()
      if findings.column
    ),
    Cell(f'rank-1 against {paper.label(findings.reference)}'),
  ]
  return [
    Table(
      headings,
      rows,
      'Mean ± standard deviation over seeds, in percent. Bold: best of the column.'
      + (" The paper's columns are its own figures, single runs." if findings.column else ''),
    )
  ]


def _caption(findings: Findings) -> str:
  text = (
    'Percent, mean ± standard deviation over seeds. Bold: best of the column. Differences: '
    'percent points; ▲ clearly better, ▼ clearly worse, ≈ no clear difference.'
  )
  if not findings.column:
    return text
  text += f" In italics the paper's own figures for {findings.column}, single runs"
  if findings.same_data:
    return f'{text}.'
  return f'{text}: other people and other images, so only the order can be compared.'
