"""From the results of many runs to means over seeds, and to which differences are real. Floor 5."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfreid.comparison import paper, plan
from tfreid.evaluation import ranking, significance
from tfreid.evaluation.ranking import QueryMetrics
from tfreid.evaluation.results import read_rows as read_whole_rows

RESULTS_FILE = 'results.jsonl'
METRICS = ('rank1', 'rank5', 'rank10', 'mAP')
LEVEL = 0.05  # of the tests, after correction for their number
# Of what each query scored: the file is kept among the documents, and a mean over queries needs no
# more.
_DECIMALS = 6

# Of a run's results row, what the comparison's keeps; the configuration's text stays with the run.
_KEPT = (
  'dataset', 'stage', 'epoch', 'split', 'protocol', 'metrics', 'per_query', 'time', 'revision',
  'dirty', 'versions', 'config_sha256', 'subsets',
)  # fmt: skip

# Of the record of how a run went.
_OF_RECORD = ('seconds', 'attempts', 'peak_bytes', 'stages', 'workers')


class Result(NamedTuple):
  """One evaluation of one run.

  Attributes:
    role: of the run, as in `plan`.
    system: its name.
    seed: of the run.
    weights: (lambda_G, lambda_D) where the run has them.
    label: the stage, or <stage>/<reading>.
    primary: whether it is the system's result, not one of another reading or an earlier stage.
    metrics: part ('all', 'seen', 'unseen') -> metric -> value in [0, 1] or None.
    per_query: of each query, None where the run did not keep it.
    query_ids: int64 [Q], or None.
    is_seen: bool [Q], or None.
    row: everything that was written down.
  """

  role: str
  system: str
  seed: int
  weights: tuple[float, float] | None
  label: str
  primary: bool
  metrics: Mapping[str, Mapping[str, float | None]]
  per_query: QueryMetrics | None
  query_ids: np.ndarray | None
  is_seen: np.ndarray | None
  row: Mapping[str, Any]

  def value(self, metric: str, part: str = 'all') -> float:
    """A metric in [0, 1], NaN where it is not known."""
    value = self.metrics.get(part, {}).get(metric)
    return math.nan if value is None else float(value)

  def vector(self, metric: str, part: str = 'all') -> np.ndarray:
    """float64 [queries of the part], what `value` is the mean of."""
    return self.of_part(_vector(self.kept, metric), part)

  @property
  def kept(self) -> QueryMetrics:
    """What each query scored.

    Raises:
      ValueError: the run did not keep it.
    """
    if self.per_query is None:
      raise ValueError(
        f'{paper.label(self.system)}, seed {self.seed}: the scores of the queries were not kept.'
      )
    return self.per_query

  def of_part(self, values: np.ndarray, part: str) -> np.ndarray:
    """The values [Q] of the queries of a part.

    Raises:
      ValueError: it is not known which queries were seen in training.
    """
    if part == 'all':
      return values
    if self.is_seen is None:
      raise ValueError(
        f'{paper.label(self.system)}, seed {self.seed}: it is not known which queries '
        'were seen in training.'
      )
    return values[self.is_seen if part == 'seen' else ~self.is_seen]


class Score(NamedTuple):
  """A metric over seeds, in percent.

  Attributes:
    mean: over seeds.
    deviation: sample standard deviation over seeds, NaN for a single one.
    seeds: how many.
  """

  mean: float
  deviation: float
  seeds: int


class Verdict(NamedTuple):
  """Whether a system differs from a reference, in percent points.

  Attributes:
    difference: system - reference, with its 95 % interval over seeds and queries
      (`significance.two_way_comparison`), not corrected.
    p_value: two-sided, corrected for the number of comparisons (Holm).
    standard_error: of the difference.
    degrees_of_freedom: of the standard error.
    agreeing: seeds in which the difference has this sign.
    seeds: seeds compared: those that both have or, where seeds are not paired, the system's.
  """

  difference: significance.Interval
  p_value: float
  standard_error: float
  degrees_of_freedom: float
  agreeing: int
  seeds: int

  @property
  def is_real(self) -> bool:
    """Whether it is more than the choice of queries and of seeds explains."""
    return self.p_value < LEVEL


def collect(
  out: str,
  runs: Sequence[plan.Run],
  *,
  kinds: Mapping[str, str],
  weights: tuple[float, float] | None = None,
  changed: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """The rows of the comparison: each evaluation of each finished run, and what the run cost.

  Args:
    out: folder of the comparison.
    runs: whose results are wanted.
    kinds: system -> what its networks are, `plan.kind`.
    weights: (lambda_G, lambda_D) of the recipe of `paper.OURS`.
    changed: names of runs that are of another configuration than the rest.

  Returns:
    JSON-able rows; what each query scored is rounded to 6 decimals. A run that evaluates nothing
    has one without metrics.
  """
  rows = []
  for run in runs:
    directory = run.directory(out)
    record = plan.read_record(directory)
    if record.get('status') != 0:
      continue
    own = weights if run.role == plan.TABLE and run.system == paper.OURS else None
    about = {
      'role': run.role,
      'system': run.system,
      'kind': kinds.get(run.system, ''),
      'seed': run.seed,
      'weights': run.weights or own,
      'run': run.name,
      **{name: record.get(name) for name in _OF_RECORD},
      'changed': bool(record.get('changed')) or run.name in changed,
    }
    if run.role in (plan.TABLE, plan.PARAMETER):
      about['start'] = _start(out, run.seed)
    latest: dict[str, dict[str, Any]] = {}
    for row in read_rows(os.path.join(directory, RESULTS_FILE)):
      if row.get('split') == 'test':
        # A row that a later evaluation adds without its queries does not replace one with them.
        if 'per_query' in row or 'per_query' not in latest.get(row['stage'], {}):
          latest[row['stage']] = row
    own_stages = [label for label in latest if '/' not in label]
    for label, row in latest.items():
      kept = {name: row[name] for name in _KEPT if name in row}
      if kept.get('subsets'):
        kept['subsets'] = {
          name: dict(zip(values, _short(list(values.values()))))
          for name, values in kept['subsets'].items()
        }
      if kept.get('per_query'):
        kept['per_query'] = {name: _short(values) for name, values in kept['per_query'].items()}
      primary = bool(own_stages) and label == own_stages[-1]
      rows.append({**about, 'label': label, 'primary': primary, **kept})
    if not latest:
      rows.append({**about, 'label': '', 'primary': False, 'metrics': {}})
  return rows


def _start(out: str, seed: int) -> str | None:
  """A checksum of the weights of a seed's shared pre-training; None where there is none."""
  pretraining = plan.Run(plan.PRETRAIN, '', seed).directory(out)
  sums = []
  for path in sorted(glob.glob(os.path.join(glob.escape(pretraining), '*', 'final.json'))):
    with open(path, encoding='utf-8') as file:
      files = json.load(file).get('files') or {}  # stages of earlier versions have none
    sums += [f'{name}:{facts[-1]}' for name, facts in sorted(files.items())]
  return hashlib.sha256('\n'.join(sums).encode()).hexdigest()[:16] if sums else None


def write_rows(path: str, rows: Sequence[Mapping[str, Any]]):
  """Writes the comparison's results file, a JSON object per line."""
  plan.write_text(
    path, ''.join(f'{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n' for row in rows)
  )


def read_rows(path: str) -> list[dict[str, Any]]:
  """The rows of a results file, none where there is no file; torn lines are logged and left out."""
  return read_whole_rows(path)[0] if os.path.isfile(path) else []


def joined(rows: Sequence[Mapping[str, Any]], files: Sequence[str]) -> list[dict[str, Any]]:
  """The rows of a comparison with those of others: more seeds, or systems, from elsewhere.

  Args:
    rows: of this comparison. Its runs win over those of the same name elsewhere.
    files: results files of the others; of one run in several of them, that of the first counts.

  Raises:
    FileNotFoundError: a file is not there.
    ValueError: one is of other data, or has other queries.
  """
  copies = [dict(row) for row in rows]
  for path in files:
    if not os.path.isfile(path):
      raise FileNotFoundError(f"There is no results file '{path}'.")
    known = {row['run'] for row in copies}
    copies += [row for row in read_rows(path) if row['run'] not in known]
  evaluated = [row for row in copies if row.get('metrics')]
  for name in ('dataset', 'split', 'protocol'):
    values = list(dict.fromkeys(row.get(name, '') for row in evaluated))
    if len(values) > 1:
      raise ValueError(
        f"Results of '{values[0]}' and of '{values[1]}' ({name}) cannot stand in one table. Name "
        'the results files of one comparison only.'
      )
  counts = dict.fromkeys(
    (row['metrics']['all']['queries'], row['metrics']['all']['gallery']) for row in evaluated
  )
  if len(counts) > 1:
    described = ' and '.join(f'{queries} queries in {size} crops' for queries, size in counts)
    raise ValueError(
      f'These results are of different questions: {described}. Name the results files of one '
      'comparison only.'
    )
  return copies


def results(rows: Sequence[Mapping[str, Any]]) -> list[Result]:
  """The evaluations among the rows of a comparison."""
  evaluations = []
  for row in rows:
    if not row['metrics']:
      continue
    vectors = row.get('per_query')
    evaluations.append(
      Result(
        role=row['role'],
        system=row['system'],
        seed=row['seed'],
        weights=tuple(row['weights']) if row.get('weights') else None,
        label=row['label'],
        primary=row['primary'],
        metrics=row['metrics'],
        per_query=_query_metrics(vectors) if vectors else None,
        query_ids=np.asarray(vectors['query_ids'], np.int64) if vectors else None,
        is_seen=np.asarray(vectors['is_seen'], bool) if vectors and 'is_seen' in vectors else None,
        row=row,
      )
    )
  return evaluations


def score(results: Sequence[Result], metric: str, part: str = 'all') -> Score:
  """A metric over the seeds of one system, in percent."""
  return over_seeds([100 * result.value(metric, part) for result in results])


def plain_score(results: Sequence[Result], metric: str, part: str) -> Score:
  """As `score`, not in percent; without a seed where no run has the metric."""
  return over_seeds([result.value(metric, part) for result in results])


def over_seeds(values: Sequence[float]) -> Score:
  """Mean and deviation of a value for each seed; NaN where a seed has none."""
  known = np.asarray(values, np.float64)
  known = known[~np.isnan(known)]
  if not len(known):
    return Score(math.nan, math.nan, 0)
  deviation = float(known.std(ddof=1)) if len(known) > 1 else math.nan
  return Score(float(known.mean()), deviation, len(known))


def chance(result: Result, part: str = 'all') -> dict[str, float]:
  """What a random ranking would score on the same queries and gallery, in percent, by metric."""
  gallery = int(result.value('gallery'))
  if result.per_query is None:
    known = {'rank1': 'chance_rank1', 'mAP': 'chance_mAP'}
    return {
      metric: 100 * result.value(known[metric], part) if metric in known else math.nan
      for metric in METRICS
    }
  matches = result.of_part(result.per_query.num_matches, part)
  matches = matches[matches > 0]
  if not len(matches):
    return dict.fromkeys(METRICS, math.nan)
  values = {f'rank{k}': ranking.chance_hits(matches, gallery, k=k).mean() for k in (1, 5, 10)}
  values['mAP'] = ranking.chance_average_precision(matches, gallery).mean()
  return {metric: 100 * float(values[metric]) for metric in METRICS}


def compare(
  systems: Mapping[str, Sequence[Result]],
  reference: Sequence[Result] | Mapping[str, Sequence[Result]],
  metric: str,
  part: str = 'all',
  *,
  paired_seeds: bool = True,
) -> dict[str, Verdict]:
  """How each system differs from a reference that was chosen before the results were known.

  The test (`significance.two_way_comparison`) asks whether other queries or other seeds could turn
  the order. p-values are corrected for the number of systems (Holm 1979), so one call makes one
  column of a table. A reference that was chosen by its result, such as the best, needs `all_pairs`.

  Args:
    systems: name -> its results, one per seed. The reference itself may be among them and is left
      out of the answer.
    reference: results of the other side, for all systems or by system; a system without one is
      left out.
    metric: one of METRICS.
    part: 'all', 'seen' or 'unseen'.
    paired_seeds: compare seed by seed, of the seeds that both have (all of each where they share
      none); runs of one seed share their pre-training. Otherwise all seeds of the system are taken
      against all of the reference's.

  Returns:
    system -> verdict, of those that kept what their queries scored.

  Raises:
    ValueError: two systems were evaluated on different queries.
  """
  verdicts = {}
  pooled = _pooled(systems, metric, part)
  for name, own in systems.items():
    others = reference.get(name, ()) if isinstance(reference, Mapping) else reference
    verdict = _verdict(name, own, others, metric, part, paired_seeds, pooled)
    if verdict is not None:
      verdicts[name] = verdict
  return _corrected(verdicts)


def all_pairs(
  systems: Mapping[str, Sequence[Result]], metric: str, part: str = 'all'
) -> dict[tuple[str, str], Verdict]:
  """How every two systems differ, corrected for the number of pairs (Holm 1979).

  What holds for all pairs at once holds for whichever pair is looked at afterwards, so statements
  about the best system, which the same results have chosen, are read from here.

  Args:
    systems: name -> its results, one per seed.
    metric: one of METRICS.
    part: 'all', 'seen' or 'unseen'.

  Returns:
    (first, second) -> verdict on first - second, each pair once in each direction.

  Raises:
    ValueError: two systems were evaluated on different queries.
  """
  names = list(systems)
  pooled = _pooled(systems, metric, part)
  once = {}
  for position, first in enumerate(names):
    for second in names[position + 1 :]:
      verdict = _verdict(first, systems[first], systems[second], metric, part, True, pooled)
      if verdict is not None:
        once[first, second] = verdict
  corrected = _corrected(once)
  turned = {}
  for (first, second), verdict in corrected.items():
    mean, low, high = verdict.difference
    difference = significance.Interval(-mean, -high, -low)
    turned[second, first] = verdict._replace(difference=difference)
  return {**corrected, **turned}


def detectable(verdicts: Mapping[Any, Verdict], *, comparisons: int = 1) -> float:
  """The difference, in percent points, that the design finds with a probability of 80 %.

  Args:
    verdicts: whose standard errors are taken; the median speaks for the design.
    comparisons: by how many the level of 5 % is divided (the first step of Holm's correction).

  Returns:
    NaN where there is no verdict.
  """
  values = [
    significance.detectable_difference(
      verdict.standard_error, verdict.degrees_of_freedom, level=LEVEL / comparisons
    )
    for verdict in verdicts.values()
  ]
  return float(np.median(values)) if values else math.nan


def above_chance(results: Sequence[Result]) -> significance.Interval | None:
  """Average precision above that of a random ranking, in percent points, with its 95 % interval.

  Each query is compared with its own chance, which depends on how many matches it has; over seeds
  and queries as in `compare`.

  Returns:
    None where no run kept what its queries scored.
  """
  kept = [result for result in results if result.per_query is not None]
  if not kept:
    return None
  first = kept[0]
  values = np.stack([result.vector('mAP') for result in kept])  # [S, Q]
  matches = np.maximum(first.kept.num_matches, 1)
  luck = ranking.chance_average_precision(matches, int(first.value('gallery')))
  luck = np.where(np.isnan(values), np.nan, luck)
  comparison = significance.two_way_comparison(values, luck)
  return significance.Interval(*(100 * value for value in comparison.difference))


def _corrected(verdicts: Mapping[Any, Verdict]) -> dict[Any, Verdict]:
  adjusted = significance.holm([verdict.p_value for verdict in verdicts.values()])
  return {
    key: verdict._replace(p_value=p_value)
    for (key, verdict), p_value in zip(verdicts.items(), adjusted)
  }


def best(systems: Mapping[str, Sequence[Result]], metric: str = 'rank1', part: str = 'all') -> str:
  """The system of the highest mean; '' if none has any result."""
  means = {name: score(own, metric, part).mean for name, own in systems.items()}
  means = {name: mean for name, mean in means.items() if not math.isnan(mean)}
  return max(means, key=lambda name: means[name]) if means else ''


def parameter_curves(
  evaluations: Sequence[Result], metric: str = 'rank1'
) -> tuple[dict[float, Score], dict[float, Score], float | None]:
  """The two halves of Figure 3.

  Where the table's own run has the weights of a point, it is that point; then only its seeds that
  the other points have too are taken, so that all points are means over the same seeds.

  Returns:
    lambda_G -> score at lambda_D = 1; lambda_D -> score at the best lambda_G; that lambda_G, None
    while the left half is empty.
  """
  swept = [result for result in evaluations if result.role == plan.PARAMETER and result.primary]
  seeds = {result.seed for result in swept}
  swept += [
    result
    for result in evaluations
    if result.role == plan.TABLE and result.primary and result.weights and result.seed in seeds
  ]
  points: dict[tuple[float, float], dict[int, Result]] = {}
  for result in swept:
    assert result.weights is not None  # runs for Figure 3 have them
    points.setdefault(result.weights, {}).setdefault(result.seed, result)
  scores = {weights: score(list(each.values()), metric) for weights, each in points.items()}
  left = {
    generator: value
    for (generator, discriminator), value in sorted(scores.items())
    if discriminator == paper.FIXED_DISCRIMINATOR_WEIGHT
  }
  if not left:
    return {}, {}, None
  # Of equals the smaller weight, which disturbs the classification least.
  chosen = max(left, key=lambda weight: (left[weight].mean, -weight))
  right = {
    discriminator: value
    for (generator, discriminator), value in sorted(scores.items())
    if generator == chosen
  }
  return left, right, chosen


def _verdict(
  name: str,
  own: Sequence[Result],
  others: Sequence[Result],
  metric: str,
  part: str,
  paired_seeds: bool,
  pooled: significance.MeanSquare | None,
) -> Verdict | None:
  """Uncorrected; None where one side kept nothing of its queries, or both are the same."""
  own = [result for result in own if result.per_query is not None]
  others = [result for result in others if result.per_query is not None]
  if not own or not others or own[0].row is others[0].row:
    return None
  shared = sorted({r.seed for r in own} & {r.seed for r in others}) if paired_seeds else []
  if shared:
    own = [next(r for r in own if r.seed == seed) for seed in shared]
    others = [next(r for r in others if r.seed == seed) for seed in shared]
  _check_same_queries(name, own, others)
  mine = np.stack([result.vector(metric, part) for result in own])  # [S, Q]
  theirs = np.stack([result.vector(metric, part) for result in others])  # [T, Q]
  comparison = significance.two_way_comparison(
    mine, theirs, paired_seeds=bool(shared), pooled=pooled
  )
  difference = comparison.difference
  floors = [result.value(metric, part) for result in others]
  if not shared:
    floors = [float(np.mean(floors))] * len(own)
  signs = [np.sign(result.value(metric, part) - floor) for result, floor in zip(own, floors)]
  return Verdict(
    difference=significance.Interval(*(100 * value for value in difference)),
    p_value=comparison.p_value if not math.isnan(comparison.p_value) else 1.0,
    standard_error=100 * comparison.standard_error,
    degrees_of_freedom=comparison.degrees_of_freedom,
    agreeing=sum(sign == np.sign(difference.mean) for sign in signs),
    seeds=len(own),
  )


def _pooled(
  systems: Mapping[str, Sequence[Result]], metric: str, part: str
) -> significance.MeanSquare | None:
  """How much the seed moves a difference of two systems, from all systems with the same seeds."""
  tables = {}
  for name, results in systems.items():
    kept = {r.seed: r.vector(metric, part) for r in results if r.per_query is not None}
    if len(kept) > 1:
      tables[name] = kept
  seeds = set.intersection(*map(set, tables.values())) if tables else set()
  stacked = [np.stack([kept[seed] for seed in sorted(seeds)]) for kept in tables.values() if seeds]
  return significance.pooled_variance_of_seeds(stacked) if stacked else None


def _check_same_queries(name: str, own: Sequence[Result], others: Sequence[Result]) -> None:
  first = own[0]
  for other in (*own, *others):
    same = _same_ids(first, other) and np.array_equal(
      first.kept.num_matches, other.kept.num_matches
    )
    if not same:
      raise ValueError(
        f'The runs of {paper.label(name)} and {paper.label(other.system)} '
        f'({first.row["run"]}, {other.row["run"]}) were evaluated on different test splits, so '
        'they cannot be compared. Run all systems on one data set.'
      )


def _same_ids(first: Result, other: Result) -> bool:
  if first.query_ids is None or other.query_ids is None:
    return first.query_ids is other.query_ids
  return np.array_equal(first.query_ids, other.query_ids)


def _short(values: Sequence[Any]) -> list[Any]:
  """Fractions to _DECIMALS decimals, everything else as it is."""
  return [round(value, _DECIMALS) if isinstance(value, float) else value for value in values]


def _vector(metrics: QueryMetrics, metric: str) -> np.ndarray:
  if metric == 'mAP':
    return metrics.average_precision
  return metrics.hits(int(metric[len('rank') :]))


def _query_metrics(vectors: Mapping[str, Sequence[Any]]) -> QueryMetrics:
  counts = {'num_matches', 'first_rank'}
  return QueryMetrics(
    **{
      field: np.array(
        [math.nan if value is None else value for value in vectors[field]],
        np.int64 if field in counts else np.float64,
      )
      for field in QueryMetrics._fields
    }
  )
