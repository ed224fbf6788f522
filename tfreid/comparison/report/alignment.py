"""Whether images and descriptions have the same distribution in each space. Floor 5."""

from __future__ import annotations

from tfreid.comparison import scores
from tfreid.comparison.document import Cell, Row, Section, Table
from tfreid.comparison.report import cells
from tfreid.comparison.report.findings import Findings
from tfreid.evaluation.alignment import Alignment


def alignment(findings: Findings) -> list[Section]:
  """Whether images and descriptions have the same distribution in each system's space."""
  rows = []
  for name in findings.ordered():
    values = [
      scores.plain_score(findings.systems[name], field, 'alignment') for field in Alignment._fields
    ]
    if values[0].seeds:
      rows.append(Row([findings.name(name), *(Cell(cells.plus_minus(value)) for value in values)]))
  if not rows:
    return []
  headings = ['system', 'probe: area under the curve', 'distance of means', 'of covariances']
  caption = (
    'Test split, each semantic ID counted once, mean ± standard deviation over seeds. Probe: a '
    'linear classifier that tells images from descriptions, scored on semantic IDs that it was '
    'not fitted on: 0.5 where nothing tells them apart, 1 where a hyperplane separates them. '
    'Distances: of the means, in units of the spread; of the covariances, between 0 and 1.'
  )
  return [Section('Alignment', [Table([Cell(heading) for heading in headings], rows, caption)])]
