"""The page of a comparison: who wins, by how much, and what it cost. Floor 5."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tfreid.comparison import accounts, document, figure, paper, plan, scores, sheets
from tfreid.comparison.document import Cell, Document, Figure, Row, Section, Table
from tfreid.comparison.scores import Result
from tfreid.evaluation.alignment import Alignment

PAGE, MARKDOWN = 'index.html', 'tables.md'
FIGURE3 = 'figure3.svg'

_HEADINGS = {'rank1': 'rank-1', 'rank5': 'rank-5', 'rank10': 'rank-10', 'mAP': 'mAP'}


def write(
  rows: Sequence[Mapping[str, Any]],
  about: Mapping[str, Any],
  directory: str,
  *,
  out: str = '',
) -> str:
  """Writes the page, its Markdown with the drawing, and the ranked-result sheets it links to.

  Args:
    rows: of the comparison's results file.
    about: 'dataset' and, where known, 'command', 'settings' (text by title), 'machine', 'seeds',
      'failed' (title -> what went wrong), 'unfinished' (titles).
    directory: to write to.
    out: folder of the comparison's runs, whose ranked results are copied; '' keeps what is there.

  Returns:
    The path of the page.

  Raises:
    ValueError: systems that were evaluated on different test splits.
  """
  os.makedirs(directory, exist_ok=True)
  found = scores.results(rows)
  links = sheets.copy(found, out, directory)
  made = build(rows, about, links=links)
  page = os.path.join(directory, PAGE)
  for section in made.sections:
    for part in section.parts:
      if isinstance(part, Figure) and part.file:
        plan.write_text(os.path.join(directory, part.file), f'{part.svg.rstrip()}\n')
  plan.write_text(page, document.to_html(made))
  plan.write_text(os.path.join(directory, MARKDOWN), document.to_markdown(made, page=PAGE))
  return page


def build(
  rows: Sequence[Mapping[str, Any]],
  about: Mapping[str, Any],
  *,
  links: Mapping[str, str] | None = None,
) -> Document:
  """The page's content.

  Args:
    rows: of the comparison's results file.
    about: as `write` takes it.
    links: system -> address of its ranked results.
  """
  return _Report(rows, about, links or {}).document()


class _Report:
  def __init__(self, rows, about, links):
    self.rows = rows
    self.about = about
    self.links = links
    self.found = scores.results(rows)
    primary = [result for result in self.found if result.primary]
    self.systems = _by_system(primary, plan.TABLE)
    self.untrained = _by_system(primary, plan.UNTRAINED)
    self.column = paper.column(about.get('dataset', ''))
    self.same_data = paper.has(about.get('dataset', ''))
    self.best = scores.best(self.systems)
    self.reference = paper.OURS if paper.OURS in self.systems else self.best

  def document(self) -> Document:
    dataset = self.about.get('dataset', 'a data set')
    title = f'Attribute-based person search: the systems of the paper on {dataset}'
    sections = []
    if self.systems:
      sections.append(Section('At a glance', [self._glance()]))
      sections.append(Section('Table 2', self._table2()))
      sections.append(Section('Table 3', self._table3()))
      sections.append(Section('Which differences are real', self._differences()))
      sections.append(Section('Seen and unseen descriptions', self._seen()))
      sections += self._alignment()
      sections.append(Section('Against an untrained network and chance', self._references()))
      sections += self._figure3()
      sections += self._readings()
    sections.append(Section('Time and memory', accounts.costs(self.rows)))
    missing = accounts.missing(self.rows, self.about, self.found)
    if missing:
      sections.append(Section('What is missing', missing))
    made = accounts.made(self.rows, self.about, self.found)
    sections.append(Section('How this was made', made))
    return Document(title, self._lead(), sections)

  def _lead(self) -> list[str]:
    if not self.systems:
      return ['No run has finished yet.']
    winner = scores.score(self.systems[self.best], 'rank1')
    behind = self._against_the_best('rank1')
    close = [paper.label(name) for name, verdict in behind.items() if not verdict.is_real]
    lines = [
      f'Highest rank-1: {paper.label(self.best)}, {_plus_minus(winner)} %.'
      + (
        f' Not clearly behind it (over seeds and queries, all pairs): {", ".join(close)}.'
        if close
        else ' Every other system is clearly behind it.'
        if behind
        else ''
      )
    ]
    if paper.OURS in self.systems:
      verdicts = self._against(paper.OURS, 'rank1')
      by = {
        word: [paper.label(n) for n, v in verdicts.items() if _verdict(v) == word]
        for word in ('better', 'worse', 'no clear difference')
      }
      told = [
        f'{phrase} {", ".join(by[word])}'
        for word, phrase in (
          ('better', 'clearly better are'),
          ('worse', 'clearly worse are'),
          ('no clear difference', 'not told apart are'),
        )
        if by[word]
      ]
      if told:
        lines.append(f'Against {paper.label(paper.OURS)}: {"; ".join(told)}.')
    lines.append(self._order())
    return [line for line in lines if line]

  def _order(self) -> str:
    """Both orders by rank-1, where the paper's table has at least two of the systems."""
    printed = {
      name: value for name in self.systems if (value := _printed(name, self.column)) is not None
    }
    if len(printed) < 2:
      return ''
    here = sorted(printed, key=lambda name: -scores.score(self.systems[name], 'rank1').mean)
    there = sorted(printed, key=lambda name: -printed[name])
    return (
      f'Order by rank-1 here: {" > ".join(map(paper.label, here))}. '
      f"The paper's on {self.column}: {' > '.join(map(paper.label, there))}."
    )

  def _against(self, reference, metric, part='all'):
    return scores.compare(self.systems, self.systems[reference], metric, part)

  def _against_the_best(self, metric):
    """By system, the verdict against the best, which the same results have chosen."""
    pairs = scores.all_pairs(self.systems, metric)
    return {first: verdict for (first, second), verdict in pairs.items() if second == self.best}

  def _glance(self) -> Table:
    ranked = sorted(self.systems, key=lambda name: -scores.score(self.systems[name], 'rank1').mean)
    top = max(1e-9, scores.score(self.systems[self.best], 'rank1').mean)
    printed = {name: _printed(name, self.column) for name in ranked}
    theirs = max((value for value in printed.values() if value is not None), default=1.0)
    rows = []
    for name in ranked:
      value = scores.score(self.systems[name], 'rank1')
      own = printed[name]
      rows.append(
        Row(
          [
            self._name(name, best=name == self.best),
            Cell(f'{_plus_minus(value)} %', best=name == self.best, bar=value.mean / top),
            Cell('–', tone='paper')
            if own is None
            else Cell(f'{own:.1f} %', tone='paper', bar=own / theirs),
          ]
        )
      )
    luck = scores.chance(next(iter(self.systems.values()))[0])['rank1']
    rows.append(Row([Cell('chance'), Cell(f'{luck:.2f} %', bar=luck / top), Cell('')], muted=True))
    return Table(
      [
        Cell('system'),
        Cell('rank-1, best first'),
        Cell(f"the paper's rank-1, {self.column}", tone='paper'),
      ],
      rows,
      'Mean ± standard deviation over seeds, all queries.'
      + (' A name leads to ranked results of its first seed.' if self.links else ''),
    )

  def _table2(self):
    order = [system.name for system in paper.SYSTEMS if system.table2]
    known = {system.name for system in paper.SYSTEMS}
    names = [name for name in order if name in self.systems]
    names += [name for name in self.systems if name not in known]
    best = {
      metric: scores.best({name: self.systems[name] for name in names}, metric)
      for metric in scores.METRICS
    }
    verdicts = self._against(self.reference, 'rank1')
    headings = [
      Cell('system'),
      *(Cell(_HEADINGS[metric]) for metric in scores.METRICS),
      *(Cell(f'paper: {_HEADINGS[metric]}', tone='paper') for metric in scores.METRICS),
      Cell(f'rank-1 against {paper.label(self.reference)}'),
    ]
    rows = []
    for name in names:
      printed = paper.BY_NAME[name].table2.get(self.column) if name in paper.BY_NAME else None
      rows.append(
        Row(
          [
            self._name(name),
            *(
              Cell(_plus_minus(scores.score(self.systems[name], metric)), best[metric] == name)
              for metric in scores.METRICS
            ),
            *(
              Cell('–' if printed is None else f'{value:.2f}', tone='paper')
              for value in printed or [math.nan] * 4
            ),
            _difference(verdicts.get(name), own=name == self.reference, brief=True),
          ]
        )
      )
    luck = scores.chance(next(iter(self.systems.values()))[0])
    cells = [Cell('chance'), *(Cell(_number(luck[metric])) for metric in scores.METRICS)]
    rows.append(Row([*cells, *[Cell('')] * 5], muted=True))
    return [Table(headings, rows, self._caption())]

  def _differences(self):
    """Every system against ours and against the best, with intervals."""
    columns = [(self.reference, 'rank1'), (self.reference, 'mAP')]
    if self.best != self.reference:
      columns.append((self.best, 'rank1'))
    verdicts = {
      (reference, metric): self._against_the_best(metric)
      if reference == self.best != self.reference
      else self._against(reference, metric)
      for reference, metric in columns
    }
    rows = [
      Row(
        [
          self._name(name),
          *(_difference(verdicts[c].get(name), own=name == c[0]) for c in columns),
        ]
      )
      for name in self._ordered()
    ]
    headings = [Cell('system')]
    for reference, metric in columns:
      which = ', the best' if reference == self.best else ''
      headings.append(Cell(f'{_HEADINGS[metric]} against {paper.label(reference)}{which}'))
    return [
      Table(
        headings,
        rows,
        'Percent points with their 95 % interval over seeds and queries (two-way model, not '
        'corrected), and in how many seeds the difference has this sign. ▲ clearly better, ▼ '
        'clearly worse, ≈ no clear difference: corrected for the number of systems, and against '
        'the best, which these results have chosen, for the number of pairs.',
      ),
      *self._design(),
    ]

  def _design(self) -> list[str]:
    """How large a difference these seeds and queries could have shown."""
    sentences = []
    for metric in ('rank1', 'mAP'):
      pairs = scores.all_pairs(self.systems, metric)
      number = len(pairs) // 2
      if not number:
        continue
      alone = scores.detectable(pairs)
      corrected = scores.detectable(pairs, comparisons=number)
      sentences.append(
        f'{_HEADINGS[metric]}: a true difference of {alone:.1f} points between two systems is '
        f'found in four of five such comparisons when the two were chosen before, and one of '
        f'{corrected:.1f} points among all {number} pairs.'
      )
    return sentences

  def _table3(self):
    names = [name for name in paper.TABLE3_ORDER if name in self.systems]
    if not names:
      return ['None of its systems was run.']
    best = scores.best({name: self.systems[name] for name in names})
    best_map = scores.best({name: self.systems[name] for name in names}, 'mAP')
    verdicts = self._against(self.reference, 'rank1')
    rows = []
    for name in names:
      printed = paper.BY_NAME[name].table3
      rows.append(
        Row(
          [
            self._name(name),
            Cell(_plus_minus(scores.score(self.systems[name], 'rank1')), name == best),
            Cell(_plus_minus(scores.score(self.systems[name], 'mAP')), name == best_map),
            *(Cell(str(printed[column]), tone='paper') for column in printed),
            _difference(verdicts.get(name), own=name == self.reference, brief=True),
          ]
        )
      )
    headings = [
      Cell('system'),
      Cell('rank-1'),
      Cell('mAP'),
      *(Cell(f'paper: {c} rank-1', tone='paper') for c in paper.COLUMNS.values()),
      Cell(f'rank-1 against {paper.label(self.reference)}'),
    ]
    return [
      Table(
        headings,
        rows,
        'Mean ± standard deviation over seeds, in percent. Bold: best of the column. '
        "The paper's columns are its own figures, single runs.",
      )
    ]

  def _seen(self):
    first = next(iter(self.systems.values()))[0]
    if 'seen' not in first.metrics:
      return ['Which queries occur in training is not known for this data set.']
    counts = {part: first.value('queries', part) for part in ('seen', 'unseen')}
    parts = [part for part in counts if counts[part] > 0]
    headings = [Cell('system')]
    columns = [(part, metric) for part in parts for metric in ('rank1', 'mAP')]
    headings += [Cell(f'{part}: {_HEADINGS[metric]}') for part, metric in columns]
    headings += [Cell(f'{part}: rank-1 against {paper.label(self.reference)}') for part in parts]
    best = {(part, metric): scores.best(self.systems, metric, part) for part, metric in columns}
    verdicts = {part: self._against(self.reference, 'rank1', part) for part in parts}
    rows = []
    for name in self._ordered():
      own = self.systems[name]
      cells = [self._name(name)]
      cells += [
        Cell(_plus_minus(scores.score(own, metric, part)), best[part, metric] == name)
        for part, metric in columns
      ]
      cells += [
        _difference(verdicts[part].get(name), own=name == self.reference, brief=True)
        for part in parts
      ]
      rows.append(Row(cells))
    luck = {part: scores.chance(first, part) for part in parts}
    cells = [Cell('chance')]
    cells += [Cell(_number(luck[part][metric])) for part, metric in columns]
    rows.append(Row([*cells, *(Cell('') for _ in parts)], muted=True))
    told = ' and '.join(f'{counts[part]:.0f} {part}' for part in parts)
    return [
      Table(
        headings,
        rows,
        f'{told} queries; seen means that the same combination of attributes occurs in training. '
        'The gallery is the whole one for both.',
      )
    ]

  def _alignment(self):
    """Whether images and descriptions have the same distribution in each system's space."""
    rows = []
    for name in self._ordered():
      values = [
        scores.plain_score(self.systems[name], field, 'alignment') for field in Alignment._fields
      ]
      if values[0].seeds:
        rows.append(Row([self._name(name), *(Cell(_plus_minus(value)) for value in values)]))
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

  def _references(self):
    """Each system against an untrained network of its kind, and against chance."""
    luck = scores.chance(next(iter(self.systems.values()))[0])
    method = {
      result.system: result.row.get('kind')
      for result in self.found
      if result.role in (plan.TABLE, plan.UNTRAINED)
    }
    twins: dict[str, Sequence[Result]] = {}
    for name in self._ordered():
      for other, untrained in self.untrained.items():
        if method.get(other) == method.get(name):
          twins.setdefault(name, untrained)
    # One call for the column, so that the correction counts all its systems. The untrained network
    # has a seed of its own: the mean over all of the system's seeds is compared with it.
    verdicts = scores.compare(self.systems, twins, 'mAP', paired_seeds=False)
    above = {name: scores.above_chance(own) for name, own in self.systems.items()}
    rows = []
    for name in self._ordered():
      own, fresh = self.systems[name], twins.get(name, ())
      rows.append(
        Row(
          [
            self._name(name),
            Cell(_plus_minus(scores.score(own, 'rank1'))),
            Cell(_plus_minus(scores.score(fresh, 'rank1')), tone='muted'),
            Cell(_plus_minus(scores.score(own, 'mAP'))),
            Cell(_plus_minus(scores.score(fresh, 'mAP')), tone='muted'),
            _difference(verdicts.get(name)),
            _above_chance(above[name]),
          ]
        )
      )
    headings = [
      Cell('system'),
      Cell('rank-1'),
      Cell('untrained: rank-1'),
      Cell('mAP'),
      Cell('untrained: mAP'),
      Cell('mAP against untrained'),
      Cell('mAP above chance'),
    ]
    caption = (
      'An untrained network has the same layers with the weights it was born with (0 epochs, no '
      'pre-training), one seed; the mean over all seeds of a system is compared with it. DeepCCA '
      'and DeepCCAE still fit their closing linear CCA, which reads the training data. Above '
      'chance: average precision less what a random ranking of the same gallery has on the same '
      'query, mean and 95 % interval over queries and seeds, not corrected for the '
      'number of systems; ▲ where the whole interval is above 0. '
      f'Chance: rank-1 {_number(luck["rank1"])}, mAP {_number(luck["mAP"])}.'
    )
    return [
      self._told_of_chance(above),
      self._told_of_untrained(twins, verdicts),
      Table(headings, rows, caption),
    ]

  def _told_of_chance(self, above) -> str:
    known = {name: interval for name, interval in above.items() if interval is not None}
    if not known:
      return 'Whether the systems beat chance is not known: no run kept what its queries scored.'
    weak = [paper.label(n) for n in self._ordered() if n in known and not known[n].low > 0]
    if weak:
      return f'Not above chance: {", ".join(weak)}.'
    if len(known) < len(above):
      return 'Every system that kept what its queries scored beats chance.'
    return 'Every system beats chance.'

  def _told_of_untrained(self, twins, verdicts) -> str:
    if not twins:
      return 'No untrained networks were evaluated.'
    weak = [
      paper.label(name)
      for name in self._ordered()
      if name in twins and (name not in verdicts or _verdict(verdicts[name]) != 'better')
    ]
    if weak:
      return f'Not clearly better than untrained: {", ".join(weak)}.'
    alone = [paper.label(name) for name in self._ordered() if name not in twins]
    if alone:
      return (
        'Every system whose untrained network was evaluated is clearly better than it; not '
        f'evaluated was that of {", ".join(alone)}.'
      )
    return 'Every system is clearly better than an untrained network of its kind.'

  def _figure3(self):
    left, right, best = scores.parameter_curves(self.found)
    if best is None:
      return []
    seeds = sorted({r.seed for r in self.found if r.role == plan.PARAMETER})
    plain = None
    if 'without_adversarial' in self.systems:
      own = [r for r in self.systems['without_adversarial'] if r.seed in seeds]
      plain = scores.score(own, 'rank1').mean if own else None
    svg = figure.sensitivity(
      left,
      right,
      best=best,
      fixed=paper.FIXED_DISCRIMINATOR_WEIGHT,
      ours=None if plain is None or math.isnan(plain) else plain,
    )
    table = Table(
      [Cell('weight'), Cell('rank-1')],
      [
        Row([Cell(f'{name} = {weight:g}, {given}'), Cell(_plus_minus(value), weight == top)])
        for name, given, points, top in (
          ('λ_G', f'λ_D = {paper.FIXED_DISCRIMINATOR_WEIGHT:g}', left, best),
          ('λ_D', f'λ_G = {best:g}', right, max(right, key=lambda w: right[w].mean)),
        )
        for weight, value in points.items()
      ],
      'Bold: best of its half.',
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
    return [Section('Figure 3', [Figure(svg, caption, FIGURE3), table])]

  def _readings(self):
    """Scores that the tables leave out: other readings of a score, earlier stages."""
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in self.found:
      if result.role == plan.TABLE and not result.primary:
        grouped.setdefault((result.system, result.label), []).append(result)
    if not grouped:
      return []
    rows = []
    shown = set()
    for (name, label), own in grouped.items():
      if name not in shown and name in self.systems:
        shown.add(name)
        rows.append(self._reading(name, self._read_as(name, grouped), self.systems[name], True))
      rows.append(self._reading(name, label, own, False))
    headings = [Cell('system'), Cell('evaluated'), *(Cell(_HEADINGS[m]) for m in scores.METRICS)]
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

  def _read_as(self, name, grouped) -> str:
    """The label of what the tables show; with its reading, which the recipe chose, where one can.

    A stage evaluates its other readings by name, so its own is the one that is not among them.
    """
    label = self.systems[name][0].label
    others = {other for system, other in grouped if system == name}
    left = [reading for reading in paper.READINGS if f'{label}/{reading}' not in others]
    return f'{label}/{left[0]}' if len(left) == 1 else label

  def _reading(self, name, label, own, shown):
    return Row(
      [
        Cell(paper.label(name)),
        Cell(label, shown),
        *(Cell(_plus_minus(scores.score(own, metric)), shown) for metric in scores.METRICS),
      ]
    )

  def _caption(self) -> str:
    text = (
      'Percent, mean ± standard deviation over seeds. Bold: best of the column. Differences: '
      'percent points; ▲ clearly better, ▼ clearly worse, ≈ no clear difference. '
      f"In italics the paper's own figures for {self.column}, single runs"
    )
    if self.same_data:
      return f'{text}.'
    return f'{text}: other people and other images, so only the order can be compared.'

  def _ordered(self) -> list[str]:
    order = [system.name for system in paper.SYSTEMS]
    known = [name for name in order if name in self.systems]
    return known + [name for name in self.systems if name not in order]

  def _name(self, name, best=False) -> Cell:
    return Cell(paper.label(name), best, link=self.links.get(name, ''))


def _by_system(found: Sequence[Result], role: str) -> dict[str, list[Result]]:
  grouped: dict[str, list[Result]] = {}
  for result in found:
    if result.role == role:
      grouped.setdefault(result.system, []).append(result)
  return grouped


def _printed(name: str, column: str) -> float | None:
  """The paper's rank-1 of a system, from Table 2 or else Table 3."""
  system = paper.BY_NAME.get(name)
  if system is None:
    return None
  if column in system.table2:
    return system.table2[column][0]
  return system.table3.get(column)


def _verdict(verdict: scores.Verdict) -> str:
  if not verdict.is_real:
    return 'no clear difference'
  return 'better' if verdict.difference.mean > 0 else 'worse'


def _difference(verdict: scores.Verdict | None, *, own: bool = False, brief: bool = False) -> Cell:
  """What a system's difference from a reference says, in words, figures and colour."""
  if own:
    return Cell('reference', tone='muted')
  if verdict is None:
    return Cell('–', tone='muted')
  word = _verdict(verdict)
  sign, tone = {'better': ('▲', 'good'), 'worse': ('▼', 'bad')}.get(word, ('≈', 'even'))
  difference = verdict.difference
  text = f'{sign} {difference.mean:+.1f}'
  if not brief:
    text += f' [{difference.low:+.1f}, {difference.high:+.1f}]'
    if verdict.seeds > 1:
      text += f' {verdict.agreeing}/{verdict.seeds}'
  return Cell(text, tone=tone, note=f'{word}, corrected p = {verdict.p_value:.3g}')


def _above_chance(interval) -> Cell:
  """Average precision above chance, and whether all of its interval is."""
  if interval is None:
    return Cell('–', tone='muted')
  sign, tone = ('▲', 'good') if interval.low > 0 else ('≈', 'even')
  if interval.high < 0:
    sign, tone = '▼', 'bad'
  return Cell(f'{sign} {interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]', tone=tone)


def _plus_minus(value: scores.Score) -> str:
  if not value.seeds:
    return '–'
  if math.isnan(value.deviation):
    return f'{value.mean:.2f}'
  return f'{value.mean:.2f} ± {value.deviation:.2f}'


def _number(value: float) -> str:
  return '–' if math.isnan(value) else f'{value:.2f}'
