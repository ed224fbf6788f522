"""Each system against an untrained network of its kind, and against chance. Floor 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfreid.comparison import paper, plan, scores
from tfreid.comparison.document import Cell, Part, Row, Table
from tfreid.comparison.report import cells
from tfreid.comparison.report.findings import Findings
from tfreid.comparison.scores import Result
from tfreid.evaluation.significance import Interval


def references(findings: Findings) -> list[Part]:
  """Each system against an untrained network of its kind, and against chance."""
  luck = scores.chance(next(iter(findings.systems.values()))[0])
  method = {
    result.system: result.row.get('kind')
    for result in findings.results
    if result.role in (plan.TABLE, plan.UNTRAINED)
  }
  twins: dict[str, Sequence[Result]] = {}
  for name in findings.ordered():
    for other, untrained in findings.untrained.items():
      if method.get(other) == method.get(name):
        twins.setdefault(name, untrained)
  # One call for the column, so that the correction counts all its systems. The untrained network
  # has a seed of its own: the mean over all of the system's seeds is compared with it.
  verdicts = scores.compare(findings.systems, twins, 'mAP', paired_seeds=False)
  above = {name: scores.above_chance(own) for name, own in findings.systems.items()}
  rows = []
  for name in findings.ordered():
    own, fresh = findings.systems[name], twins.get(name, ())
    rows.append(
      Row(
        [
          findings.name(name),
          Cell(cells.plus_minus(scores.score(own, 'rank1'))),
          Cell(cells.plus_minus(scores.score(fresh, 'rank1')), tone='muted'),
          Cell(cells.plus_minus(scores.score(own, 'mAP'))),
          Cell(cells.plus_minus(scores.score(fresh, 'mAP')), tone='muted'),
          cells.difference(verdicts.get(name)),
          cells.above_chance(above[name]),
        ]
      )
    )
  headings = [
    *('system', 'rank-1', 'untrained: rank-1', 'mAP', 'untrained: mAP'),
    *('mAP against untrained', 'mAP above chance'),
  ]
  caption = (
    'An untrained network has the same layers with the weights it was born with (0 epochs, no '
    'pre-training), one seed; the mean over all seeds of a system is compared with it. DeepCCA '
    'and DeepCCAE still fit their closing linear CCA, which reads the training data. Above '
    'chance: average precision less what a random ranking of the same gallery has on the same '
    'query, mean and 95 % interval over queries and seeds, not corrected for the '
    'number of systems; ▲ where the whole interval is above 0. '
    f'Chance: rank-1 {cells.number(luck["rank1"])}, mAP {cells.number(luck["mAP"])}.'
  )
  return [
    _told_of_chance(findings, above),
    _told_of_untrained(findings, twins, verdicts),
    Table([Cell(heading) for heading in headings], rows, caption),
  ]


def _told_of_chance(findings: Findings, above: Mapping[str, Interval | None]) -> str:
  """Which systems do not beat chance."""
  known = {name: interval for name, interval in above.items() if interval is not None}
  if not known:
    return 'Whether the systems beat chance is not known: no run kept what its queries scored.'
  weak = [paper.label(n) for n in findings.ordered() if n in known and not known[n].low > 0]
  if weak:
    return f'Not above chance: {", ".join(weak)}.'
  if len(known) < len(above):
    return 'Every system that kept what its queries scored beats chance.'
  return 'Every system beats chance.'


def _told_of_untrained(
  findings: Findings,
  twins: Mapping[str, Sequence[Result]],
  verdicts: Mapping[str, scores.Verdict],
) -> str:
  """Which systems are not clearly better than untrained."""
  if not twins:
    return 'No untrained networks were evaluated.'
  weak = [
    paper.label(name)
    for name in findings.ordered()
    if name in twins and (name not in verdicts or cells.verdict_word(verdicts[name]) != 'better')
  ]
  if weak:
    return f'Not clearly better than untrained: {", ".join(weak)}.'
  alone = [paper.label(name) for name in findings.ordered() if name not in twins]
  if alone:
    return (
      'Every system whose untrained network was evaluated is clearly better than it; not '
      f'evaluated was that of {", ".join(alone)}.'
    )
  return 'Every system is clearly better than an untrained network of its kind.'
