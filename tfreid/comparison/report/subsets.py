"""What each system scores in each subset of the data, a retrieval problem of its own. Floor 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfreid.comparison import scores
from tfreid.comparison.document import Cell, Row, Section, Table
from tfreid.comparison.report import cells
from tfreid.comparison.report.findings import Findings


def subsets(findings: Findings) -> list[Section]:
  """Mean average precision by subset, if the data have subsets; the largest gallery first."""
  systems = [name for name in findings.ordered() if any(map(_of, findings.systems[name]))]
  about: dict[str, Mapping[str, Any]] = {}
  for name in systems:
    for result in findings.systems[name]:
      about.update(_of(result))
  if not about:
    return []
  rows = []
  for subset in sorted(about, key=lambda name: (-about[name]['gallery'], name)):
    known = about[subset]
    means = [
      scores.over_seeds([_value(result, subset) for result in findings.systems[name]])
      for name in systems
    ]
    best = max((value.mean for value in means if value.seeds), default=None)
    rows.append(
      Row(
        [
          Cell(subset),
          Cell(f'{known["gallery"]:.0f}'),
          Cell(f'{known["queries"]:.0f}'),
          *(Cell(cells.plus_minus(value), value.mean == best) for value in means),
          Cell(cells.number(100 * (known.get('chance_mAP') or 0.0)), tone='muted'),
        ]
      )
    )
  headings = [
    *(Cell(heading) for heading in ('subset', 'images', 'queries')),
    *(findings.name(name) for name in systems),
    Cell('chance'),
  ]
  caption = (
    'mAP in percent, mean ± standard deviation over seeds. Bold: best of the row. Each subset by '
    'itself: its test images are the gallery, their descriptions the queries. A small gallery is '
    'easier, which chance shows.'
  )
  return [Section('By subset', [Table(headings, rows, caption)])]


def _of(result: scores.Result) -> Mapping[str, Mapping[str, Any]]:
  return result.row.get('subsets') or {}


def _value(result: scores.Result, subset: str) -> float:
  value = _of(result).get(subset, {}).get('mAP')
  return float('nan') if value is None else 100 * float(value)
