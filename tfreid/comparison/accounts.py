"""What the runs of a comparison cost, what is missing of them, and how they were made. Floor 5."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tfreid.comparison import paper, plan
from tfreid.comparison.document import Cell, Code, Part, Row, Table
from tfreid.comparison.scores import Result

_GIB = 2.0**30

HOW_COMPARED = (
  'A difference is called clear if it is larger than the choice of queries and of seeds explains, '
  'at the 5 % level. The values of two systems on the same query and seed are subtracted; the '
  'differences are taken as a mean plus random effects of the seed, of the query and of both '
  "(two-way analysis of variance), and the mean is tested by Student's t with Satterthwaite's "
  'degrees of freedom. Against a system that was named before, p-values are corrected for the '
  'number of systems in the column (Holm); statements about the best system, which the same '
  'results have chosen, are corrected for all pairs of systems. With one seed, nothing is said '
  'about other seeds. The bracket is the 95 % interval of the difference in percent points without '
  'the correction; behind it stands in how many seeds the difference has the same sign.'
)


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


def missing(
  rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], found: Sequence[Result]
) -> list[Part]:
  """What a reader must know is not there, or not alike; nothing if all is well.

  Args:
    rows: of the comparison's results file.
    about: as `report.write` takes it.
    found: the evaluations among the rows.
  """
  parts: list[Part] = []
  failed = about.get('failed') or {}
  if failed:
    parts.append(
      Table(
        [Cell('run that failed'), Cell('how')],
        [Row([Cell(title), Cell(what)]) for title, what in failed.items()],
      )
    )
  unfinished = about.get('unfinished') or []
  if unfinished:
    parts.append(f'Not done yet: {", ".join(unfinished)}.')
  changed = sorted({row['run'] for row in rows if row.get('changed')})
  if changed:
    parts.append(f'Made with another configuration than the rest: {", ".join(changed)}.')
  without = sorted({r.row['run'] for r in found if r.per_query is None})
  if without:
    parts.append(
      'Without the scores of each query, so left out of the comparisons: '
      f'{", ".join(without)}. Evaluate these runs again to have them.'
    )
  parts += _code(rows)
  return parts


def _code(rows) -> list[str]:
  """That not one committed state of the code made all runs, where that is so."""
  revisions: dict[str, set[str]] = {}
  dirty, every = set(), set()
  for row in rows:
    if row.get('revision'):
      revisions.setdefault(row['revision'], set()).add(row['run'])
      every.add(row['run'])
      if row.get('dirty'):
        dirty.add(row['run'])
  told = []
  if len(revisions) > 1:
    told.append(
      f'The runs were made by {len(revisions)} revisions of the code (listed below), so a '
      'difference between two of them may be one of the code.'
    )
  if dirty:
    told.append(
      f'{len(dirty)} of {len(every)} runs were made by code with changes that were not committed; '
      'its revision does not give that code back.'
    )
  return [' '.join(told)] if told else []


def made(
  rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], found: Sequence[Result]
) -> list[Part]:
  """Data, machine, versions, how differences were judged, command and settings.

  Args:
    rows: of the comparison's results file.
    about: as `report.write` takes it.
    found: the evaluations among the rows.
  """
  facts = []
  first = found[0] if found else None
  if first is not None:
    facts.append(('queries', f'{first.value("queries"):.0f}'))
    facts.append(('gallery', f'{first.value("gallery"):.0f} images'))
    facts.append(('protocol', str(first.row.get('protocol', '–'))))
  seeds = sorted({r.seed for r in found if r.role == plan.TABLE})
  facts.append(('seeds', ', '.join(map(str, seeds)) or '–'))
  facts += [(name, str(value)) for name, value in (about.get('machine') or {}).items()]
  versions: dict[str, Any] = {}
  revisions: set[str] = set()
  for row in rows:
    versions.update(row.get('versions') or {})
    if row.get('revision'):
      revisions.add(row['revision'][:12] + (' with changes' if row.get('dirty') else ''))
  if versions:
    facts.append(('versions', ', '.join(f'{k} {v}' for k, v in versions.items())))
  if revisions:
    facts.append(('code', ', '.join(sorted(revisions))))
  parts: list[Part] = [
    Table([Cell('what'), Cell('')], [Row([Cell(name), Cell(value)]) for name, value in facts]),
    HOW_COMPARED,
  ]
  if about.get('command'):
    parts.append(Code('Command', about['command']))
  parts += [Code(title, text) for title, text in (about.get('settings') or {}).items()]
  return parts


def _median(values: Sequence[float], digits: int) -> str:
  return f'{statistics.median(values):.{digits}f}' if values else '–'
