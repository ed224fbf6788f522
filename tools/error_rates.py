#!/usr/bin/env python3
"""Rates of error and power of the comparison of systems, by simulation.

  python tools/error_rates.py

Values are drawn from the two-way model that `significance.two_way_comparison` assumes, with the
spreads that the tables of drawn people have (printed first, from docs/results/results.jsonl) and
with more and less spread over seeds. Some minutes; the table of docs/statistics.md is its output.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tfreid.evaluation import significance  # noqa: E402

SYSTEMS = 11
# Standard deviations of a difference of two systems: over queries, of the remainder.
SPREADS = {'mAP': (0.083, 0.201), 'rank-1': (0.116, 0.483)}


def components(path: str) -> dict[str, tuple[float, float, float]]:
  """Root mean square over all pairs of systems: spread over seeds, over queries, remainder."""
  tables: dict[str, dict[str, dict[int, np.ndarray]]] = {'mAP': {}, 'rank-1': {}}
  with open(path, encoding='utf-8') as file:
    for row in map(json.loads, file):
      if row['role'] != 'table' or not row['primary'] or not row.get('per_query'):
        continue
      queries = row['per_query']
      values = {
        'mAP': [np.nan if v is None else v for v in queries['average_precision']],
        'rank-1': [float(rank == 1) for rank in queries['first_rank']],
      }
      for metric, each in values.items():
        tables[metric].setdefault(row['system'], {})[row['seed']] = np.asarray(each, float)
  return {metric: _spread(systems) for metric, systems in tables.items()}


def _spread(systems) -> tuple[float, float, float]:
  variances = []
  for first, second in itertools.combinations(systems, 2):
    seeds = sorted(set(systems[first]) & set(systems[second]))
    table = np.stack([systems[first][seed] - systems[second][seed] for seed in seeds])
    rows, columns = table.shape
    centred = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    remainder = (centred**2).sum() / ((rows - 1) * (columns - 1))
    of_seeds = table.mean(1).var(ddof=1) - remainder / columns
    of_queries = table.mean(0).var(ddof=1) - remainder / rows
    variances.append((max(0, of_seeds), max(0, of_queries), remainder))
  return tuple(float(value) for value in np.sqrt(np.mean(variances, axis=0)))


def systems_of(rng, seeds, queries, spreads, count=2, unequal=0.0):
  """[count, S, Q]: systems without any difference between them but that of seeds and queries.

  With `unequal`, systems spread over seeds by factors whose logarithms have this deviation.
  """
  # A difference of two has twice the variance of one.
  each = [spread / 2**0.5 for spread in spreads]
  factors = np.exp(rng.normal(0, unequal, (count, 1, 1)) - unequal**2 / 2)
  return (
    rng.normal(0, 0.2, (1, 1, queries))
    + rng.normal(0, each[0], (count, seeds, 1)) * factors
    + rng.normal(0, each[1], (count, 1, queries))
    + rng.normal(0, each[2], (count, seeds, queries))
  )


def rates(rng, seeds, queries, spreads, trials, difference):
  """Shares of comparisons that are called clear.

  Of two equal systems with paired seeds, with unpaired ones, and against one seed; of two with a
  true difference; and of tables of eleven equal systems, in how many any is called clearly behind
  the best: where all spread alike over seeds, and where some spread several times as much.
  """
  clear = np.zeros(4)
  for _ in range(trials):
    first, second = systems_of(rng, seeds, queries, spreads)
    cases = (
      significance.two_way_comparison(first, second),
      significance.two_way_comparison(first, second, paired_seeds=False),
      significance.two_way_comparison(first, second[:1], paired_seeds=False),
      significance.two_way_comparison(first + difference, second),
    )
    clear += [case.p_value < 0.05 for case in cases]
  tables = trials // 10
  wrong = [
    sum(_some_behind_the_best(rng, seeds, queries, spreads, unequal) for _ in range(tables))
    for unequal in (0.0, 0.7)
  ]
  return (*(clear / trials), *(count / tables for count in wrong))


def _some_behind_the_best(rng, seeds, queries, spreads, unequal) -> bool:
  systems = systems_of(rng, seeds, queries, spreads, SYSTEMS, unequal)
  best = int(systems.mean(axis=(1, 2)).argmax())
  pairs = list(itertools.combinations(range(SYSTEMS), 2))
  pooled = significance.pooled_variance_of_seeds(systems)
  p_values = significance.holm(
    [
      significance.two_way_comparison(systems[a], systems[b], pooled=pooled).p_value
      for a, b in pairs
    ]
  )
  return any(p < 0.05 for p, pair in zip(p_values, pairs) if best in pair)


def main():
  """Prints the components and the table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
  parser.add_argument('--trials', type=int, default=4000)
  parser.add_argument('--difference', type=float, default=0.03)
  options = parser.parse_args()
  path = os.path.join(ROOT, 'docs', 'results', 'results.jsonl')
  for metric, (of_seeds, of_queries, remainder) in components(path).items():
    print(f'{metric}: seeds {of_seeds:.4f}, queries {of_queries:.3f}, remainder {remainder:.3f}')
  rng = np.random.default_rng(0)
  print(
    '| metric | spread over seeds | seeds | queries | paired | unpaired | one seed | power | best '
    '| unequal |'
  )
  print('|---|---|---|---|---|---|---|---|---|---|')
  for metric, (of_queries, remainder) in SPREADS.items():
    for of_seeds, (seeds, queries) in itertools.product(
      (0.0, 0.013, 0.03), ((3, 200), (5, 200), (3, 500), (5, 500))
    ):
      spreads = (of_seeds, of_queries, remainder)
      values = rates(rng, seeds, queries, spreads, options.trials, options.difference)
      shown = ' | '.join(f'{100 * value:.1f}' for value in values)
      print(f'| {metric} | {100 * of_seeds:.1f} | {seeds} | {queries} | {shown} |', flush=True)


if __name__ == '__main__':
  main()
