"""Time and memory of the runs of a comparison. Floor 5."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tfreid.comparison import paper, plan
from tfreid.comparison.document import Cell, Part, Row, Table

_GIB = 2.0**30


def costs(rows: Sequence[Mapping[str, Any]]) -> list[Part]:
  """Time and memory of each system, and the time of all runs together.

  Args:
    rows: of the comparison's results file.
  """
  grouped: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
  for row in rows:
    if row['role'] in (plan.PRETRAIN, plan.TABLE):
      grouped.setdefault((row['role'], row['system']), {})[row['run']] = row
  lines = []
  for (role, name), runs in grouped.items():
    peak = [row['peak_bytes'] / _GIB for row in runs.values() if row.get('peak_bytes')]
    whole = [row['seconds'] for row in runs.values() if row.get('attempts') == 1]
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in runs.values():
      for stage, cost in (row.get('stages') or {}).items():
        stages.setdefault(stage, []).append({**cost, 'whole': row.get('attempts') == 1})
    for index, (stage, spent) in enumerate(stages.items() or [('–', [])]):
      first = index == 0
      per_epoch = [c['seconds'] / c['epochs'] for c in spent if c['epochs'] and c['whole']]
      lines.append(
        Row(
          [
            Cell(('shared pre-training' if role == plan.PRETRAIN else paper.label(name)) * first),
            Cell(stage),
            Cell(', '.join(str(e) for e in sorted({c['epochs'] for c in spent})) or '–'),
            Cell(_median(per_epoch, 2)),
            Cell(_median(whole, 0) if first else ''),
            Cell((f'{max(peak):.2f}' if peak else '–') if first else ''),
          ]
        )
      )
  headings = ['system', 'stage', 'epochs', 's per epoch', 's per run', 'peak memory, GiB']
  table = Table(
    [Cell(heading) for heading in headings],
    lines,
    'Seconds per epoch: the whole stage, with extraction of frozen features and closing steps, '
    'over its epochs. Seconds per run: from start to exit, with loading and evaluation, without '
    'the shared pre-training. Both are medians over seeds and not means: other programs on the '
    'machine disturb single runs. Peak memory: largest resident size of the process over seeds '
    '(host memory, not that of a GPU). Interrupted runs say nothing about time and are left out of '
    'it.',
  )
  return [table, *_total(rows)]


def _total(rows) -> list[str]:
  """The time of all finished runs, and what is to be said of such a sum."""
  runs = {row['run']: row for row in rows if row.get('seconds') is not None}
  if not runs:
    return []
  text = (
    f'All {len(runs)} finished runs together took '
    f'{plan.duration(sum(row["seconds"] for row in runs.values()))}, each from start to exit.'
  )
  resumed = sum((row.get('attempts') or 1) > 1 for row in runs.values())
  if resumed:
    text += f' {resumed} of them were continued after an interruption and count with the last part.'
  return [f'{text} {_at_a_time(runs.values())}']


def _at_a_time(runs) -> str:
  """How many runs shared the machine."""
  known = {(row['workers']['count'], row['workers']['cores']) for row in runs if row.get('workers')}
  unknown = sum(not row.get('workers') for row in runs)
  told = []
  for count, cores in sorted(known):
    where = f' on {cores} {"core" if cores == 1 else "cores"}'
    told.append(f'one at a time{where}' if count == 1 else f'{count} at a time, each{where}')
  text = f'They ran {"; others ".join(told)}. ' if told and not unknown else ''
  if told and unknown:
    text = f'Some ran {"; others ".join(told)}. '
  if unknown:
    which = 'all' if not told else str(unknown)
    text += (
      f'Of {which} of them it is not known whether others ran at the same time; then the sum is '
      'more than what a clock on the wall showed.'
    )
  return text.strip()


def _median(values: Sequence[float], digits: int) -> str:
  return f'{statistics.median(values):.{digits}f}' if values else '–'
