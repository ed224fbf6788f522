"""Scores that the tables leave out: other readings, earlier stages. Floor 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfreid.comparison import paper, plan, scores
from tfreid.comparison.document import Cell, Row, Section, Table
from tfreid.comparison.report import cells
from tfreid.comparison.report.findings import Findings
from tfreid.comparison.scores import Result


def readings(findings: Findings) -> list[Section]:
  """Scores that the tables leave out: other readings of a score, earlier stages."""
  grouped: dict[tuple[str, str], list[Result]] = {}
  for result in findings.results:
    if result.role == plan.TABLE and not result.primary:
      grouped.setdefault((result.system, result.label), []).append(result)
  if not grouped:
    return []
  rows = []
  shown = set()
  for (name, label), own in grouped.items():
    if name not in shown and name in findings.systems:
      shown.add(name)
      rows.append(_reading(name, _read_as(findings, name, grouped), findings.systems[name], True))
    rows.append(_reading(name, label, own, False))
  headings = [Cell('system'), Cell('evaluated'), *(Cell(cells.HEADINGS[m]) for m in scores.METRICS)]
  return [
    Section(
      'Other readings',
      [
        Table(
          headings,
          rows,
          'Further scores of one training, and earlier stages. Bold: what the tables above show.',
        )
      ],
    )
  ]


def _read_as(
  findings: Findings, name: str, grouped: Mapping[tuple[str, str], Sequence[Result]]
) -> str:
  """The label of what the tables show; with its reading, which the recipe chose, where one can.

  A stage evaluates its other readings by name, so its own is the one that is not among them.
  """
  label = findings.systems[name][0].label
  others = {other for system, other in grouped if system == name}
  left = [reading for reading in paper.READINGS if f'{label}/{reading}' not in others]
  return f'{label}/{left[0]}' if len(left) == 1 else label


def _reading(name: str, label: str, own: Sequence[Result], shown: bool) -> Row:
  return Row(
    [
      Cell(paper.label(name)),
      Cell(label, shown),
      *(Cell(cells.plus_minus(scores.score(own, metric)), shown) for metric in scores.METRICS),
    ]
  )
