"""What the report is made of: the results of each system, and who is compared. Floor 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfreid.comparison import paper, plan, scores
from tfreid.comparison.document import Cell
from tfreid.comparison.scores import Result


class Findings:
  """What the rows of a comparison say, grouped as the tables need it.

  Attributes:
    rows: of the comparison's results file.
    about: as `report.write` takes it.
    links: system -> address of its ranked results.
    results: the evaluations among the rows.
    systems: system -> what the tables show, a result per seed.
    untrained: the same of untrained networks.
    column: of the paper's tables, to compare with; '' where nothing was published for the data.
    same_data: whether that column is of the same data set.
    dataset: what the data are called; a part or a division of one of the paper's, as its loader
      calls it.
    best: the system of the highest rank-1.
    reference: the system that the others are compared with.
  """

  def __init__(
    self,
    rows: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    links: Mapping[str, str] | None = None,
  ):
    """Groups the rows; arguments as the attributes."""
    self.rows = rows
    self.about = about
    self.links = links or {}
    self.results = scores.results(rows)
    primary = [result for result in self.results if result.primary]
    self.systems = by_system(primary, plan.TABLE)
    self.untrained = by_system(primary, plan.UNTRAINED)
    dataset, loaded = about.get('dataset', ''), {row['dataset'] for row in rows if 'dataset' in row}
    self.column = paper.column(dataset, loaded)
    self.same_data = bool(self.column) and paper.has(dataset)
    self.dataset = dataset or 'a data set'
    if not self.column and len(loaded) == 1:
      self.dataset = loaded.pop()
    self.best = scores.best(self.systems)
    self.reference = paper.OURS if paper.OURS in self.systems else self.best

  def against(self, reference: str, metric: str, part: str = 'all') -> dict[str, scores.Verdict]:
    """By system, the verdict against one that was named before."""
    return scores.compare(self.systems, self.systems[reference], metric, part)

  def against_the_best(self, metric: str) -> dict[str, scores.Verdict]:
    """By system, the verdict against the best, which the same results have chosen."""
    pairs = scores.all_pairs(self.systems, metric)
    return {first: verdict for (first, second), verdict in pairs.items() if second == self.best}

  def ordered(self) -> list[str]:
    """The systems as the paper orders them, then the user's own."""
    order = [system.name for system in paper.SYSTEMS]
    known = [name for name in order if name in self.systems]
    return known + [name for name in self.systems if name not in order]

  def name(self, name: str, best: bool = False) -> Cell:
    """The cell that names a system, with a link to its ranked results."""
    return Cell(paper.label(name), best, link=self.links.get(name, ''))


def by_system(results: Sequence[Result], role: str) -> dict[str, list[Result]]:
  """System -> its results of a role, in their order."""
  grouped: dict[str, list[Result]] = {}
  for result in results:
    if result.role == role:
      grouped.setdefault(result.system, []).append(result)
  return grouped
