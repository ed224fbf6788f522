"""Figure 3 as drawings: rank-1 against lambda_G and against lambda_D. Floor 5."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping

from tfreid.comparison.scores import Score

_SIZE = (9.0, 3.4)  # inches
_INK, _MARK = '#1f4e8c', '#b3261e'


def check():
  """Refuses to go on without what draws.

  Raises:
    ImportError: matplotlib is not installed.
  """
  try:
    import matplotlib.figure  # noqa: F401
  except ImportError as error:
    raise ImportError(
      'Figure 3 is drawn with matplotlib, which is not installed: pip install "tfreid[report]", '
      'or leave the figure out (`tfreid compare --nofigure3`).'
    ) from error


def sensitivity(
  generator: Mapping[float, Score],
  discriminator: Mapping[float, Score],
  *,
  best: float,
  fixed: float,
  ours: float | None = None,
  metric: str = 'rank-1 (%)',
) -> str:
  """Two plots side by side, as SVG source to stand inside a page.

  Args:
    generator: lambda_G -> score, at lambda_D = `fixed`.
    discriminator: lambda_D -> score, at lambda_G = `best`.
    best: the best lambda_G.
    fixed: lambda_D of the left plot.
    ours: the score without any alignment, drawn as a line across.
    metric: what is on the vertical axis.

  Raises:
    ImportError: matplotlib is not installed.
  """
  check()
  from matplotlib import figure as figures
  from matplotlib import rc_context

  # Text stays text, so that it can be read aloud and searched; a fixed salt makes the ids, and so
  # the file, the same each time.
  with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'tfreid', 'font.size': 10}):
    drawing = figures.Figure(figsize=_SIZE, layout='constrained')
    left, right = drawing.subplots(1, 2, sharey=True)
    halves = (
      (left, generator, 'λ_G', f'λ_D = {fixed:g}'),
      (right, discriminator, 'λ_D', f'λ_G = {best:g}'),
    )
    for axes, points, name, given in halves:
      weights = list(points)
      means = [points[weight].mean for weight in weights]
      spread = [
        0.0 if math.isnan(points[weight].deviation) else points[weight].deviation
        for weight in weights
      ]
      axes.errorbar(weights, means, yerr=spread, marker='o', capsize=3, color=_INK)
      for weight, mean in zip(weights, means):
        axes.annotate(
          f'{mean:.1f}', (weight, mean), xytext=(0, 7), textcoords='offset points', ha='center'
        )
      if ours is not None:
        axes.axhline(ours, linestyle='--', color=_MARK, linewidth=1, label='w/o adv')
        axes.legend(loc='best', frameon=False)
      axes.set_xscale('log')
      if weights:
        axes.set_xticks(weights, [f'{weight:g}' for weight in weights])
        axes.minorticks_off()
      axes.set_xlabel(f'{name}  ({given})')
      axes.margins(x=0.1, y=0.2)
      axes.grid(alpha=0.3)
    left.set_ylabel(metric)
    buffer = io.StringIO()
    drawing.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
  return _inline(buffer.getvalue(), 'Figure 3: ' + _words(generator, discriminator))


def _words(generator, discriminator) -> str:
  """What the plots show, for who cannot see them."""
  halves = []
  for name, points in (('lambda_G', generator), ('lambda_D', discriminator)):
    listed = ', '.join(f'{weight:g}: {value.mean:.1f}' for weight, value in points.items())
    halves.append(f'rank-1 by {name} is {listed}')
  return '; '.join(halves)


def _inline(svg: str, title: str) -> str:
  """An SVG file's content without what only a file of its own needs."""
  start = svg.index('<svg')
  svg = re.sub(r'<metadata>.*?</metadata>\s*', '', svg[start:], flags=re.DOTALL)
  return svg.replace('<svg ', f'<svg role="img" aria-label="{title}" ', 1)
