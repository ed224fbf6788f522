"""Cells and numbers of the report, as every table has them. Floor 5."""

from __future__ import annotations

import math

from tfreid.comparison import paper, scores
from tfreid.comparison.document import Cell

HEADINGS = {'rank1': 'rank-1', 'rank5': 'rank-5', 'rank10': 'rank-10', 'mAP': 'mAP'}


def printed(name: str, column: str) -> float | None:
  """The paper's rank-1 of a system, from Table 2 or else Table 3."""
  system = paper.BY_NAME.get(name)
  if system is None:
    return None
  if column in system.table2:
    return system.table2[column][0]
  return system.table3.get(column)


def verdict_word(verdict: scores.Verdict) -> str:
  """Whether a difference is clear, and which way: 'better', 'worse', 'no clear difference'."""
  if not verdict.is_real:
    return 'no clear difference'
  return 'better' if verdict.difference.mean > 0 else 'worse'


def difference(verdict: scores.Verdict | None, *, own: bool = False, brief: bool = False) -> Cell:
  """What a system's difference from a reference says, in words, figures and colour."""
  if own:
    return Cell('reference', tone='muted')
  if verdict is None:
    return Cell('–', tone='muted')
  word = verdict_word(verdict)
  sign, tone = {'better': ('▲', 'good'), 'worse': ('▼', 'bad')}.get(word, ('≈', 'even'))
  difference = verdict.difference
  text = f'{sign} {difference.mean:+.1f}'
  if not brief:
    text += f' [{difference.low:+.1f}, {difference.high:+.1f}]'
    if verdict.seeds > 1:
      text += f' {verdict.agreeing}/{verdict.seeds}'
  return Cell(text, tone=tone, note=f'{word}, corrected p = {verdict.p_value:.3g}')


def above_chance(interval) -> Cell:
  """Average precision above chance, and whether all of its interval is."""
  if interval is None:
    return Cell('–', tone='muted')
  sign, tone = ('▲', 'good') if interval.low > 0 else ('≈', 'even')
  if interval.high < 0:
    sign, tone = '▼', 'bad'
  return Cell(f'{sign} {interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]', tone=tone)


def plus_minus(value: scores.Score) -> str:
  """Mean ± standard deviation; '–' where there is nothing."""
  if not value.seeds:
    return '–'
  if math.isnan(value.deviation):
    return f'{value.mean:.2f}'
  return f'{value.mean:.2f} ± {value.deviation:.2f}'


def number(value: float) -> str:
  """A number with two decimals; '–' for NaN."""
  return '–' if math.isnan(value) else f'{value:.2f}'
