"""How the runs of a comparison were made, and what is missing of them. Floor 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfreid.comparison import paper, plan
from tfreid.comparison.document import Cell, Code, Part, Row, Table
from tfreid.comparison.scores import Result

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


def missing(
  rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], results: Sequence[Result]
) -> list[Part]:
  """What a reader must know is not there, or not alike; nothing if all is well.

  Args:
    rows: of the comparison's results file.
    about: as `report.write` takes it.
    results: the evaluations among the rows.
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
  without = sorted({r.row['run'] for r in results if r.per_query is None})
  if without:
    parts.append(
      'Without the scores of each query, so left out of the comparisons: '
      f'{", ".join(without)}. Evaluate these runs again to have them.'
    )
  parts += _starts(rows)
  parts += _code(rows)
  return parts


def _starts(rows) -> list[str]:
  """That systems of a seed do not start from the same weights, or that this is not known."""
  starts: dict[int, dict[str | None, set[str]]] = {}
  for row in rows:
    if row['role'] == plan.TABLE:
      own = starts.setdefault(row['seed'], {})
      own.setdefault(row.get('start'), set()).add(row['system'])
  several = {seed: own for seed, own in starts.items() if len(own) > 1}
  if not several:
    return []
  # The start that most systems have is what the others differ from.
  odd = {
    paper.label(system)
    for own in several.values()
    for start in sorted(own, key=lambda start: -len(own[start]))[1:]
    for system in own[start]
  }
  seeds = f'seed{"s" * (len(several) > 1)} {", ".join(map(str, sorted(several)))}'
  are = 'are not known to start' if any(None in own for own in several.values()) else 'do not start'
  return [
    f'The systems of {seeds} {are} from the same pre-training ({", ".join(sorted(odd))} against '
    'the others), so a difference between them may be one of the start.'
  ]


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
  rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], results: Sequence[Result]
) -> list[Part]:
  """Data, machine, versions, how differences were judged, command and settings.

  Args:
    rows: of the comparison's results file.
    about: as `report.write` takes it.
    results: the evaluations among the rows.
  """
  facts = []
  first = results[0] if results else None
  if first is not None:
    facts.append(('queries', f'{first.value("queries"):.0f}'))
    facts.append(('gallery', f'{first.value("gallery"):.0f} images'))
    facts.append(('protocol', str(first.row.get('protocol', '–'))))
  seeds = sorted({r.seed for r in results if r.role == plan.TABLE})
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
