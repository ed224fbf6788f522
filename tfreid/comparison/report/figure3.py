"""Figure 3: rank-1 against the two weights. Floor 5."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tfreid.comparison import figure, paper, plan, scores
from tfreid.comparison.document import Cell, Figure, Row, Section, Table
from tfreid.comparison.report import cells
from tfreid.comparison.report.findings import Findings
from tfreid.comparison.scores import Score

FILE = 'figure3.svg'


def figure3(findings: Findings) -> list[Section]:
  """The drawing and its points in words; nothing where the sweeps were not run."""
  left, right, best = scores.parameter_curves(findings.results)
  if best is None:
    return []
  seeds = sorted({r.seed for r in findings.results if r.role == plan.PARAMETER})
  plain = None
  if 'without_adversarial' in findings.systems:
    own = [r for r in findings.systems['without_adversarial'] if r.seed in seeds]
    plain = scores.score(own, 'rank1').mean if own else None
  svg = figure.sensitivity(
    left,
    right,
    best=best,
    fixed=paper.FIXED_DISCRIMINATOR_WEIGHT,
    ours=None if plain is None or math.isnan(plain) else plain,
  )
  caption = (
    f'Rank-1 of {paper.label(paper.OURS)} against its two weights, '
    f'{"seed" if len(seeds) == 1 else "seeds"} {", ".join(map(str, seeds))}. '
    'The paper found {:g} and {:g} best (Duke); it prints no figures for the points. '.format(
      *paper.BEST_WEIGHTS
    )
    + 'The curve shows the test split and chose nothing: the tables use the weights of the gin '
    'file. The best λ_G of the left half only says where the right half is drawn.'
  )
  return [Section('Figure 3', [Figure(svg, caption, FILE), _points(left, right, best)])]


def _points(left: Mapping[float, Score], right: Mapping[float, Score], best: float) -> Table:
  """The points of the drawing as a table."""
  return Table(
    [Cell('weight'), Cell('rank-1')],
    [
      Row([Cell(f'{name} = {weight:g}, {given}'), Cell(cells.plus_minus(value), weight == top)])
      for name, given, points, top in (
        ('λ_G', f'λ_D = {paper.FIXED_DISCRIMINATOR_WEIGHT:g}', left, best),
        ('λ_D', f'λ_G = {best:g}', right, max(right, key=lambda w: right[w].mean)),
      )
      for weight, value in points.items()
    ],
    'Bold: best of its half.',
  )
