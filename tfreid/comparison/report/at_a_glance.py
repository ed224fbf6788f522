"""What a reader wants first: who wins, what is told apart, the order. Floor 5."""

from __future__ import annotations

from tfreid.comparison import paper, scores
from tfreid.comparison.document import Cell, Row, Table
from tfreid.comparison.report import cells
from tfreid.comparison.report.findings import Findings


def lead(findings: Findings) -> list[str]:
  """The message in a few sentences."""
  if not findings.systems:
    return ['No run has finished yet.']
  winner = scores.score(findings.systems[findings.best], 'rank1')
  behind = findings.against_the_best('rank1')
  close = [paper.label(name) for name, verdict in behind.items() if not verdict.is_real]
  lines = [
    f'Highest rank-1: {paper.label(findings.best)}, {cells.plus_minus(winner)} %.'
    + (
      f' Not clearly behind it (over seeds and queries, all pairs): {", ".join(close)}.'
      if close
      else ' Every other system is clearly behind it.'
      if behind
      else ''
    )
  ]
  if paper.OURS in findings.systems:
    verdicts = findings.against(paper.OURS, 'rank1')
    by = {
      word: [paper.label(n) for n, v in verdicts.items() if cells.verdict_word(v) == word]
      for word in ('better', 'worse', 'no clear difference')
    }
    told = [
      f'{phrase} {", ".join(by[word])}'
      for word, phrase in (
        ('better', 'clearly better are'),
        ('worse', 'clearly worse are'),
        ('no clear difference', 'not told apart are'),
      )
      if by[word]
    ]
    if told:
      lines.append(f'Against {paper.label(paper.OURS)}: {"; ".join(told)}.')
  lines.append(_order(findings))
  return [line for line in lines if line]


def _order(findings: Findings) -> str:
  """Both orders by rank-1, where the paper's table has at least two of the systems."""
  printed = {
    name: value
    for name in findings.systems
    if (value := cells.printed(name, findings.column)) is not None
  }
  if len(printed) < 2:
    return ''
  here = sorted(printed, key=lambda name: -scores.score(findings.systems[name], 'rank1').mean)
  there = sorted(printed, key=lambda name: -printed[name])
  return (
    f'Order by rank-1 here: {" > ".join(map(paper.label, here))}. '
    f"The paper's on {findings.column}: {' > '.join(map(paper.label, there))}."
  )


def glance(findings: Findings) -> Table:
  """Rank-1 of the systems as bars, the best first, beside the paper's."""
  ranked = sorted(
    findings.systems, key=lambda name: -scores.score(findings.systems[name], 'rank1').mean
  )
  top = max(1e-9, scores.score(findings.systems[findings.best], 'rank1').mean)
  printed = {name: cells.printed(name, findings.column) for name in ranked}
  theirs = max((value for value in printed.values() if value is not None), default=1.0)
  rows = []
  for name in ranked:
    value = scores.score(findings.systems[name], 'rank1')
    own = printed[name]
    rows.append(
      Row(
        [
          findings.name(name, best=name == findings.best),
          Cell(f'{cells.plus_minus(value)} %', best=name == findings.best, bar=value.mean / top),
          Cell('–', tone='paper')
          if own is None
          else Cell(f'{own:.1f} %', tone='paper', bar=own / theirs),
        ][: 3 if findings.column else 2]
      )
    )
  luck = scores.chance(next(iter(findings.systems.values()))[0])['rank1']
  line = [Cell('chance'), Cell(f'{luck:.2f} %', bar=luck / top)]
  rows.append(Row([*line, Cell('')] if findings.column else line, muted=True))
  return Table(
    [
      Cell('system'),
      Cell('rank-1, best first'),
      Cell(f"the paper's rank-1, {findings.column}", tone='paper'),
    ][: 3 if findings.column else 2],
    rows,
    'Mean ± standard deviation over seeds, all queries.'
    + (' A name leads to ranked results of its first seed.' if findings.links else ''),
  )
