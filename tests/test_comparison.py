from __future__ import annotations

import html.parser
import json
import math
import os
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.test_templating import HOSTILE, read
from tfreid.cli.recipes import Recipe
from tfreid.comparison import costs, document, figure, paper, plan, provenance, report, scores
from tfreid.comparison.comparison import Comparison, Settings
from tfreid.comparison.plan import PARAMETER, PRETRAIN, TABLE, UNTRAINED, Clock, Leg, Run
from tfreid.comparison.report import findings
from tfreid.evaluation import significance

QUERIES, GALLERY, MATCHES = 60, 300, 5
PRE = Leg(PRETRAIN, 'image_classification.ImageClassification', 10, 64)
JOINT = Leg('joint', 'joint_concepts.JointConcepts', 5, 64)
DCCA = Leg('dcca', 'correlation.DeepCCA', 100, 512, frozen=True)


def row(system, seed, first_rank, *, role=TABLE, label='joint', primary=True, weights=None, **more):
  """A row of the results file whose queries' first match is at `first_rank`, alone at that rank."""
  first_rank = np.asarray(first_rank)
  precision = 1.0 / first_rank
  seen = np.arange(len(first_rank)) % 3 == 0

  def part(chosen):
    return {
      'queries': int(chosen.sum()),
      'skipped': 0,
      'gallery': GALLERY,
      **{f'rank{k}': float(np.mean(first_rank[chosen] <= k)) for k in (1, 5, 10)},
      'mAP': float(np.mean(precision[chosen])),
      'chance_rank1': MATCHES / GALLERY,
    }

  folder = {TABLE: f'runs/{system}', UNTRAINED: f'untrained/{system}'}.get(
    role, f'figure3/{weights}'
  )
  return {
    'role': role,
    'system': system,
    'kind': 'JointConcepts',
    'seed': seed,
    'weights': weights,
    'run': f'{folder}/seed-{seed}',
    'label': label,
    'primary': primary,
    'dataset': 'Market-1501',
    'metrics': {'all': part(seen | True), 'seen': part(seen), 'unseen': part(~seen)},
    'per_query': {
      'query_ids': list(range(len(first_rank))),
      'num_matches': [MATCHES] * len(first_rank),
      'first_rank': first_rank.tolist(),
      'average_precision': precision.tolist(),
      'average_precision_trapz': precision.tolist(),
      'inverse_negative_penalty': precision.tolist(),
      'is_seen': seen.tolist(),
    },
    'seconds': 100.0,
    'attempts': 1,
    'peak_bytes': 2**31,
    'stages': {label: {'epochs': 5, 'steps': 90, 'seconds': 50.0}},
    **more,
  }


def ranks(share, seed=0):
  """Ranks of the first match: 1 for so many of the queries, 7 for the others."""
  first_rank = np.full(QUERIES, 7)
  first_rank[: round(share * QUERIES)] = 1
  return np.random.default_rng(seed).permutation(first_rank)


def right(*queries_ranked_first):
  first_rank = np.full(QUERIES, 7)
  first_rank[list(queries_ranked_first)] = 1
  return first_rank


@pytest.fixture
def rows():
  """Ours is far ahead of w/o adv, and one query ahead of mmd."""
  every = []
  for seed in (0, 1, 2):
    every.append(row('a2img', seed, right(*range(40 + seed)), weights=[0.001, 0.5]))
    every.append(row('mmd', seed, right(*range(39 + seed))))
    every.append(row('without_adversarial', seed, right(*range(10 + seed))))
  every.append(row('without_adversarial', 0, right(0), role=UNTRAINED))
  return every


# The whole, without gin and command line.


class PlainRecipe:
  """A recipe of these legs."""

  def __init__(self, legs, bindings=()):
    self._legs, self._bindings = legs, tuple(bindings)

  def get(self, name, argument, default=None):
    return default

  def stages(self):
    return [f'{leg.name}/stages.Stage' for leg in self._legs]

  def legs(self):
    return self._legs

  def fingerprint(self):
    return repr((self._legs, self._bindings))


class PlainSurroundings:
  """Runs a process that writes its bindings down; one that has `failing` among them fails."""

  recipes = {'a': [PRE, JOINT], 'b': [DCCA]}
  code = (
    'import sys, pathlib; path, failing, *bindings = sys.argv[1:]; '
    'pathlib.Path(path, "bindings").write_text("\\n".join(bindings)); '
    'print("Error: no disk"); sys.exit(3 if failing in bindings else 0)'
  )

  def __init__(self, failing='nothing'):
    self.failing = failing
    self.prepared = 0

  def recipe(self, system, bindings=None):
    return PlainRecipe(self.recipes[system], bindings or ())

  def check(self, recipes):
    assert [recipe.legs() for recipe in recipes] == list(self.recipes.values())

  def command(self, system, bindings, directory):
    return [sys.executable, '-c', self.code, directory, self.failing, *bindings]

  def shown(self, command):
    return 'a run'

  def prepare(self):
    self.prepared += 1

  def num_images(self, system):
    return 130


def plain_comparison(tmp_path, surroundings):
  out = str(tmp_path / 'out')
  settings = Settings('Market', out, out, seeds=[1], systems=['a', 'b'], images_per_second=13)
  return Comparison(settings, surroundings)


def test_a_comparison_plans_runs_and_continues_without_gin_and_flags(tmp_path):
  surroundings = PlainSurroundings()
  comparison = plain_comparison(tmp_path, surroundings)
  costs = {cost.run.name: cost for cost in map(comparison.cost, comparison.runs)}
  assert list(costs) == [
    'pretrain/seed-1', 'runs/a/seed-1', 'runs/b/seed-1', 'untrained/a/seed-1', 'untrained/b/seed-1',
  ]  # fmt: skip
  assert {cost.state for cost in costs.values()} == {plan.NEW}
  # 130 images: two batches of 64 in each of 10 epochs, one of 130 features in each of 100.
  assert costs['pretrain/seed-1'].steps == 20 and costs['runs/b/seed-1'].steps == 100
  assert costs['pretrain/seed-1'].seconds == pytest.approx(10 * 10 + 25)
  assert comparison.run() == {}
  assert surroundings.prepared == 1
  written = tmp_path / 'out' / 'runs' / 'a' / 'seed-1'
  shared = os.path.join(str(tmp_path / 'out'), 'pretrain', 'seed-1', 'pretrain')
  assert (written / 'bindings').read_text() == f'SEED = 1\nPRETRAIN_DIRECTORY = {shared!r}'
  assert json.loads((written / 'compare.json').read_text())['command'] == 'a run'
  again = plain_comparison(tmp_path, PlainSurroundings())
  assert {again.state(run) for run in again.runs} == {plan.DONE}
  assert again.run() == {}
  assert {again.record(run)['attempts'] for run in again.runs} == {1}


class GinSurroundings(PlainSurroundings):
  """Recipes of PETA on photographs, whose attributes' stage is of DeepMAR's method."""

  overlays = ('datasets/peta.gin', 'photographs/peta.gin', 'photographs/from_attributes.gin')

  def recipe(self, system, bindings=None):
    return Recipe([f'methods/{system}.gin', *self.overlays], bindings or ())

  def check(self, recipes):
    pass


@pytest.mark.parametrize('systems', [['deepmar'], ['deepmar', 'a2img'], ['dccae'], ['image_gan']])
def test_the_pretraining_is_the_same_whichever_systems_are_asked_for(systems, tmp_path):
  """So that they may be run one after the other, in the folder of one comparison."""

  def pretraining(systems):
    out = str(tmp_path / 'out')
    settings = Settings('PETA', out, out, seeds=[1], systems=systems, images_per_second=13)
    comparison = Comparison(settings, GinSurroundings())
    (run,) = [run for run in comparison.runs if run.role == 'pretrain']
    return comparison.fingerprint(run)

  assert pretraining(systems) == pretraining(['without_adversarial', 'mmd'])


def test_what_starts_from_a_failed_pretraining_is_given_up_and_the_rest_is_done(tmp_path):
  failing = f'STAGES = [@{PRETRAIN}/stages.Stage()]'
  comparison = plain_comparison(tmp_path, PlainSurroundings(failing))
  failed = comparison.run()
  log = os.path.join(str(tmp_path / 'out'), 'pretrain', 'seed-1', 'train.log')
  assert failed['pre-training, seed 1'] == f'exit status 3: Error: no disk (log: {log})'
  assert failed['a, seed 1'] == 'pre-training, seed 1 failed, which it starts from'
  done = [run.name for run in comparison.runs if comparison.state(run) == plan.DONE]
  assert done == ['runs/b/seed-1', 'untrained/a/seed-1', 'untrained/b/seed-1']


def test_planning_imports_nothing_that_takes_time():
  code = (
    'import sys, tfreid.comparison.comparison; '
    'heavy = ("tensorflow", "pandas", "scipy", "gin", "absl", "rich"); '
    'print([name for name in heavy if name in sys.modules])'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout == '[]\n'


# The plan.


def test_each_seed_begins_with_its_pretraining_and_the_first_has_the_untrained_networks():
  recipes = {'mmd': [PRE, JOINT], 'a2img': [PRE, JOINT], 'dcca': [PRE, DCCA]}
  runs = plan.table_runs(list(recipes), [3, 4], recipes=recipes)
  assert [run.name for run in runs] == [
    'pretrain/seed-3',
    'runs/mmd/seed-3',
    'runs/a2img/seed-3',
    'runs/dcca/seed-3',
    # mmd and a2img have the same networks.
    'untrained/mmd/seed-3',
    'untrained/dcca/seed-3',
    'pretrain/seed-4',
    'runs/mmd/seed-4',
    'runs/a2img/seed-4',
    'runs/dcca/seed-4',
  ]


def test_a_seed_named_twice_is_refused():
  with pytest.raises(ValueError, match='seed 1 is named twice'):
    plan.table_runs(['mmd'], [1, 1], untrained=False)


def test_figure_3_sweeps_one_weight_at_a_time_and_repeats_no_point():
  left = {run.weights for run in plan.generator_runs([0])}
  assert left == {(weight, 1.0) for weight in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)}
  right_half = plan.discriminator_runs([0], 1e-2)
  assert {run.weights for run in right_half} == {(1e-2, weight) for weight in (0.1, 0.2, 0.5, 2.0)}
  names = [run.name for run in plan.generator_runs([0, 1]) + plan.discriminator_runs([0, 1], 1e-2)]
  assert len(set(names)) == len(names) == 18


def test_the_state_of_a_run_is_what_its_record_says():
  assert plan.state({}, 'f') == plan.NEW
  assert plan.state({'fingerprint': 'f', 'attempts': 1}, 'f') == plan.STARTED
  assert plan.state({'fingerprint': 'f', 'status': 0}, 'f') == plan.DONE
  assert plan.state({'fingerprint': 'f', 'status': -9}, 'f') == plan.FAILED
  assert plan.state({'fingerprint': 'g', 'status': 0}, 'f') == plan.CHANGED


def test_a_run_that_was_mixed_stays_marked_however_often_it_is_continued():
  assert not plan.is_changed({}, 'f')
  assert not plan.is_changed({'fingerprint': 'f', 'changed': False}, 'f')
  assert plan.is_changed({'fingerprint': 'g'}, 'f')
  assert plan.is_changed({'fingerprint': 'f', 'changed': True}, 'f')


def test_steps_drop_the_last_partial_batch():
  assert JOINT.steps(200) == 5 * 3
  assert Leg('x', 'y', 7, 0).steps(200) == 7
  assert Leg('x', 'y', 7, 512).steps(200) == 7
  assert JOINT.steps(0) == 0


def test_time_is_learnt_by_stage_and_for_others_by_image():
  clock = Clock(1000)
  assert clock.seconds([JOINT]) is None
  record = {'status': 0, 'attempts': 1, 'seconds': 70.0, 'stages': {'joint': {'seconds': 50.0}}}
  clock.learn([JOINT], record)
  # 50 s for 5 epochs, and 20 s around them.
  assert clock.seconds([JOINT._replace(epochs=10)]) == pytest.approx(120.0)
  assert clock.seconds([PRE]) == pytest.approx(20.0 + 10 * 10.0)
  assert clock.seconds([]) == pytest.approx(20.0)


def test_an_interrupted_run_says_nothing_about_time():
  clock = Clock(1000)
  clock.learn([JOINT], {'status': 0, 'attempts': 2, 'seconds': 9.0, 'stages': {}})
  clock.learn([JOINT], {'status': 1, 'attempts': 1, 'seconds': 9.0, 'stages': {}})
  assert clock.is_guess


def test_a_guessed_speed_serves_until_something_is_measured():
  clock = Clock(1000, images_per_second=50.0)
  assert clock.seconds([JOINT]) - clock.seconds([]) == pytest.approx(5 * 1000 / 50)
  assert clock.is_guess


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(None, 'not known yet'), (44.6, '45 s'), (600, '10 min'), (3900 + 3600, '2 h 05 min')],
)
def test_durations_are_for_people(seconds, text):
  assert plan.duration(seconds) == text


# Collecting.


@pytest.fixture
def finished(tmp_path):
  """A finished run of DeepMAR as it lies on disk, and one that failed."""
  run = Run(TABLE, 'deepmar', 0)
  directory = tmp_path / 'runs' / 'deepmar' / 'seed-0'
  record = {'fingerprint': 'f', 'status': 0, 'seconds': 9.5, 'attempts': 1, 'peak_bytes': 5}
  plan.write_record(str(directory), {**record, 'stages': {}})
  lines = []
  for stage, share in (('deepmar', 0.5), ('deepmar/requested', 0.25), ('deepmar', 0.75)):
    whole = row('deepmar', 0, ranks(share))
    lines.append({'stage': stage, 'split': 'test', 'config': 'long', **{
      name: whole[name] for name in ('dataset', 'metrics', 'per_query')
    }})  # fmt: skip
  lines.append({'stage': 'deepmar', 'split': 'validation', 'metrics': {}})
  # A later evaluation that did not keep its queries.
  lines.append({'stage': 'deepmar', 'split': 'test', 'metrics': {'all': {'rank1': 0.1}}})
  text = '\n'.join(map(json.dumps, lines))
  (directory / 'results.jsonl').write_text(text + '\n{"stage": "torn')
  plan.write_record(str(tmp_path / 'runs' / 'mmd' / 'seed-0'), {'fingerprint': 'f', 'status': 1})
  return tmp_path, [run, Run(TABLE, 'mmd', 0), Run(TABLE, 'both', 0)]


def test_collecting_takes_the_latest_whole_row_of_each_space_of_each_finished_run(finished):
  out, runs = finished
  found = scores.collect(str(out), runs, kinds={'deepmar': 'AttributePrediction'})
  assert [(r['system'], r['label'], r['primary']) for r in found] == [
    ('deepmar', 'deepmar', True),
    ('deepmar', 'deepmar/requested', False),
  ]
  assert found[0]['metrics']['all']['rank1'] == 0.75
  assert found[0]['seconds'] == 9.5
  assert found[0]['kind'] == 'AttributePrediction'
  assert 'config' not in found[0]


def test_what_queries_scored_is_kept_to_six_decimals_and_means_with_it(finished):
  out, runs = finished
  kept = scores.collect(str(out), runs, kinds={})[1]
  precision = kept['per_query']['average_precision']
  assert set(precision) == {1.0, 0.142857}
  assert kept['per_query']['first_rank'] == ranks(0.25).tolist()
  whole = row('deepmar', 0, ranks(0.25))['metrics']
  assert kept['metrics'] == whole
  assert np.mean(precision) == pytest.approx(whole['all']['mAP'], abs=1e-6)


def test_the_last_stage_with_a_space_is_the_result(tmp_path):
  directory = tmp_path / 'runs' / 'image_gan' / 'seed-0'
  plan.write_record(str(directory), {'fingerprint': 'f', 'status': 0})
  lines = [
    {'stage': stage, 'split': 'test', 'metrics': row('x', 0, ranks(0.5))['metrics']}
    for stage in ('gan', 'gan_classified')
  ]
  (directory / 'results.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  found = scores.collect(str(tmp_path), [Run(TABLE, 'image_gan', 0)], kinds={})
  assert [(r['label'], r['primary']) for r in found] == [('gan', False), ('gan_classified', True)]


def test_the_results_file_is_read_as_it_was_written(tmp_path, rows):
  path = str(tmp_path / 'results.jsonl')
  scores.write_rows(path, rows)
  assert scores.read_rows(path) == rows
  found = scores.results(scores.read_rows(path))[0]
  np.testing.assert_array_equal(found.per_query.first_rank, right(*range(40)))
  assert found.weights == (0.001, 0.5)


# Aggregation.


def test_the_seeds_of_other_comparisons_are_taken_in(tmp_path):
  here, there = tmp_path / 'here.jsonl', tmp_path / 'there.jsonl'
  own = [row('a2img', 0, np.ones(QUERIES)), row('mmd', 0, np.full(QUERIES, 2))]
  other = [row('a2img', 0, np.full(QUERIES, 9)), row('a2img', 1, np.full(QUERIES, 4))]
  scores.write_rows(str(here), other[:1])
  scores.write_rows(str(there), other)
  found = scores.joined(own, [str(there), str(here)])
  assert found == [*own, other[1]]
  precision = [result.value('mAP') for result in scores.results(found) if result.system == 'a2img']
  assert precision == [1.0, 0.25]
  with pytest.raises(FileNotFoundError, match='nowhere'):
    scores.joined(own, ['nowhere.jsonl'])
  scores.write_rows(str(there), [{**other[1], 'dataset': 'PETA'}])
  with pytest.raises(ValueError, match="'Market-1501' and of 'PETA'"):
    scores.joined(own, [str(there)])
  scores.write_rows(str(there), [row('a2img', 1, np.ones(QUERIES - 1))])
  with pytest.raises(ValueError, match='60 queries in 300 crops and 59 queries'):
    scores.joined(own, [str(there)])


def test_a_score_is_mean_and_sample_deviation_over_seeds(rows):
  found = scores.score([r for r in scores.results(rows) if r.system == 'a2img'], 'rank1')
  values = [100 * n / QUERIES for n in (40, 41, 42)]
  assert found.mean == pytest.approx(statistics.mean(values))
  assert found.deviation == pytest.approx(statistics.stdev(values))
  assert found.seeds == 3


def test_one_seed_has_no_deviation(rows):
  assert math.isnan(scores.score(scores.results(rows)[:1], 'mAP').deviation)


def test_vectors_average_to_the_metrics_of_their_part(rows):
  found = scores.results(rows)[0]
  for metric in scores.METRICS:
    for part in ('all', 'seen', 'unseen'):
      assert found.vector(metric, part).mean() == pytest.approx(found.value(metric, part))


def test_chance_is_the_share_of_matches(rows):
  luck = scores.chance(scores.results(rows)[0])
  assert luck['rank1'] == pytest.approx(100 * MATCHES / GALLERY)
  # None of five drawn without replacement is one of the matches.
  missed = math.comb(GALLERY - MATCHES, 5) / math.comb(GALLERY, 5)
  assert luck['rank5'] == pytest.approx(100 * (1 - missed))


def test_a_large_difference_is_real_and_one_query_is_not(rows):
  found = findings.by_system(scores.results(rows), TABLE)
  verdicts = scores.compare(found, found['a2img'], 'rank1')
  assert set(verdicts) == {'mmd', 'without_adversarial'}
  far, near = verdicts['without_adversarial'], verdicts['mmd']
  assert far.is_real and far.difference.mean == pytest.approx(-50.0)
  assert far.difference.high < 0
  assert (far.agreeing, far.seeds) == (3, 3)
  assert not near.is_real and near.difference.mean == pytest.approx(-100 / QUERIES)


def test_a_column_is_corrected_for_all_its_systems_and_compared_over_all_seeds(rows):
  """Each against an untrained network of its own, by separate calls and by Holm's method here."""
  found = findings.by_system(scores.results(rows), TABLE)
  near = scores.results([row('without_adversarial', 0, right(*range(34)), role=UNTRAINED)])
  twins = {'a2img': near, 'mmd': near}
  verdicts = scores.compare(found, twins, 'rank1', paired_seeds=False)
  alone = [
    scores.compare({name: found[name]}, near, 'rank1', paired_seeds=False)[name].p_value
    for name in ('a2img', 'mmd')
  ]
  assert set(verdicts) == {'a2img', 'mmd'}
  assert [verdicts[name].p_value for name in ('a2img', 'mmd')] == significance.holm(alone)
  # 40, 41 and 42 queries against 34, though seed 0 alone has 40.
  assert verdicts['a2img'].difference.mean == pytest.approx(100 * (41 - 34) / QUERIES)
  assert (verdicts['a2img'].agreeing, verdicts['a2img'].seeds) == (3, 3)


def test_a_difference_that_one_seed_contradicts_is_not_clear():
  """On the mean over seeds 20 of 60 queries are better by a third and none is worse."""
  own = [row('mmd', seed, right(*range(n))) for seed, n in ((0, 30), (1, 30), (2, 8))]
  other = [row('a2img', seed, right(*range(10))) for seed in (0, 1, 2)]
  verdict = scores.compare({'mmd': scores.results(own)}, scores.results(other), 'rank1')['mmd']
  assert (verdict.agreeing, verdict.seeds) == (2, 3)
  assert verdict.difference.mean > 15
  assert not verdict.is_real
  agreed = scores.compare({'mmd': scores.results(own[:2])}, scores.results(other), 'rank1')['mmd']
  assert agreed.is_real


def test_above_chance_is_the_mean_of_what_each_query_has_above_its_own():
  found = scores.results([row('mmd', seed, right(*range(20 + seed))) for seed in (0, 1)])
  interval = scores.above_chance(found)
  # A random order has a match at rank r with probability R / N, and then R - 1 others before it.
  luck = np.mean([(1 + (r - 1) * (MATCHES - 1) / (GALLERY - 1)) / r for r in range(1, GALLERY + 1)])
  precision = np.mean([(n + (QUERIES - n) / 7) / QUERIES for n in (20, 21)])
  assert interval.mean == pytest.approx(100 * (precision - luck))
  assert 0 < interval.low < interval.mean < interval.high
  bare = scores.results([{**row('mmd', 0, right(0)), 'per_query': None}])
  assert scores.above_chance(bare) is None


def test_only_seeds_that_both_have_are_compared():
  own = scores.results([row('mmd', seed, right(*range(30))) for seed in (0, 1)])
  other = scores.results([row('a2img', 1, right(*range(10))), row('a2img', 2, right())])
  verdict = scores.compare({'mmd': own}, other, 'rank1')['mmd']
  assert verdict.difference.mean == pytest.approx(100 * 20 / QUERIES)
  assert (verdict.agreeing, verdict.seeds) == (1, 1)


def test_systems_of_different_test_splits_are_not_compared(rows):
  other = row('mmd', 0, right(0))
  other['per_query']['query_ids'][0] = 99
  found = scores.results([rows[0], other])
  with pytest.raises(ValueError, match='different test splits'):
    scores.compare({'mmd': found[1:]}, found[:1], 'rank1')


def test_a_run_without_its_queries_is_left_out_of_comparisons(rows):
  bare = {**row('mmd', 0, right(0)), 'per_query': None}
  found = scores.results([rows[0], bare])
  assert scores.compare({'mmd': found[1:]}, found[:1], 'rank1') == {}


def test_statements_about_the_best_are_corrected_for_all_pairs(rows):
  systems = findings.by_system(scores.results(rows), TABLE)
  pairs = scores.all_pairs(systems, 'rank1')
  assert len(pairs) == 6
  alone = {
    (first, second): scores._verdict(
      first,
      systems[first],
      systems[second],
      'rank1',
      'all',
      True,
      scores._pooled(systems, 'rank1', 'all'),
    )
    for first, second in (
      ('a2img', 'mmd'),
      ('a2img', 'without_adversarial'),
      ('mmd', 'without_adversarial'),
    )
  }
  corrected = significance.holm([verdict.p_value for verdict in alone.values()])
  assert [pairs[key].p_value for key in alone] == pytest.approx(corrected)
  forth, back = pairs['a2img', 'mmd'], pairs['mmd', 'a2img']
  assert back.difference == (-forth.difference.mean, -forth.difference.high, -forth.difference.low)
  assert back.p_value == forth.p_value


def test_the_page_says_how_large_a_difference_it_could_have_seen(rows):
  """Of the standard errors the median; t(0.975) + t(0.8) of them at 5 %, more after correction."""
  systems = findings.by_system(scores.results(rows), TABLE)
  pairs = scores.all_pairs(systems, 'rank1')
  alone, corrected = scores.detectable(pairs), scores.detectable(pairs, comparisons=3)
  errors = sorted(verdict.standard_error for verdict in pairs.values())
  assert errors[0] * 2.8 < alone < corrected
  text = document.to_markdown(report.build(rows, {'dataset': 'x'}))
  assert f'a true difference of {alone:.1f} points' in text
  assert f'one of {corrected:.1f} points among all 3 pairs' in text


def test_the_table_run_is_a_point_of_the_curve_with_the_seeds_of_the_sweep(rows):
  swept = [
    row('a2img', 0, right(*range(n)), role=PARAMETER, weights=weights)
    for n, weights in ((20, (1e-4, 1.0)), (30, (1e-3, 1.0)), (25, (1e-2, 1.0)), (12, (1e-3, 0.1)))
  ]
  left, right_half, best = scores.parameter_curves(scores.results(rows + swept))
  assert best == 1e-3
  assert {w: value.mean for w, value in left.items()} == pytest.approx(
    {1e-4: 100 * 20 / 60, 1e-3: 50.0, 1e-2: 100 * 25 / 60}
  )
  # 0.5 is seed 0 of the table: 40 queries, not the mean of three seeds.
  assert {w: value.mean for w, value in right_half.items()} == pytest.approx(
    {0.1: 20.0, 0.5: 100 * 40 / 60, 1.0: 50.0}
  )
  assert list(right_half) == [0.1, 0.5, 1.0]


def test_without_a_sweep_there_is_no_curve(rows):
  assert scores.parameter_curves(scores.results(rows)) == ({}, {}, None)


# The paper's figures.


def test_tables_2_and_3_of_the_paper_agree_to_their_rounding():
  """Table 3 repeats two rows of Table 2; for w/o adv on PETA the paper prints 36.34 and 36.5."""
  for name in ('a2img', 'without_adversarial'):
    system = paper.BY_NAME[name]
    for column, rank1 in system.table3.items():
      tolerance = 0.17 if (name, column) == ('without_adversarial', 'PETA') else 0.051
      assert abs(system.table2[column][0] - rank1) < tolerance


def test_cmc_figures_of_the_paper_never_fall():
  figures = [values for system in paper.SYSTEMS for values in system.table2.values()]
  assert len(figures) == 8 * 3
  for rank1, rank5, rank10, _ in figures:
    assert rank1 < rank5 < rank10


@pytest.mark.parametrize(
  ('dataset', 'column', 'known'),
  [
    ('market1501', 'Market', True),
    ('Market-1501', 'Market', True),
    ('dukemtmc', 'Duke', True),
    ('DukeMTMC-reID', 'Duke', True),
    ('peta', 'PETA', True),
    ('PETA', 'PETA', True),
    ('Synthetic people', 'Market', False),
    ('', 'Market', False),
  ],
)
def test_data_are_known_by_gin_file_and_by_loader(dataset, column, known):
  assert (paper.column(dataset), paper.has(dataset)) == (column, known)


def test_loaders_call_their_data_what_the_papers_columns_expect():
  from tfreid.data import dukemtmc, market1501, peta

  assert set(paper._NAMES) == {dukemtmc.NAME, market1501.NAME, peta.NAME}


def test_readings_are_those_that_deepmar_has():
  from tfreid.networks import attribute_scores

  assert paper.READINGS == attribute_scores.READINGS


# The page.


class Reader(html.parser.HTMLParser):
  """The text of a page by table row, and whatever it would load."""

  def __init__(self):
    super().__init__()
    self.rows, self.open, self.loads, self.bold = [], [], [], set()

  def handle_starttag(self, tag, attributes):
    given = dict(attributes)
    if tag not in ('meta', 'br', 'img', 'link', 'path', 'use', 'rect'):
      self.open.append(tag)
    if tag in ('script', 'link', 'iframe', 'img', 'object'):
      self.loads.append(tag)
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th'):
      self.rows[-1].append('')
      if 'best' in (given.get('class') or '').split():
        self.bold.add((len(self.rows) - 1, len(self.rows[-1]) - 1))

  def handle_endtag(self, tag):
    if tag in self.open:
      while self.open.pop() != tag:
        pass

  def handle_data(self, data):
    if self.rows and self.open and {'td', 'th'} & set(self.open):
      self.rows[-1][-1] += data


@pytest.fixture
def written(tmp_path, rows):
  """The page of fabricated results, with ranked results of one run."""
  out = tmp_path / 'out'
  folder = out / 'runs' / 'a2img' / 'seed-0' / 'joint' / 'ranked_results'
  folder.mkdir(parents=True)
  for number, color in enumerate(('red', 'blue'), start=1):
    Image.new('RGB', (30, 10 * number), color).save(folder / f'{number:02d}.png')
  swept = [
    row('a2img', 0, right(*range(n)), role=PARAMETER, weights=weights)
    for n, weights in ((20, [1e-4, 1.0]), (30, [1e-3, 1.0]), (12, [1e-3, 0.1]))
  ]
  other = row('mmd', 0, ranks(0.2), label='joint/other', primary=False)
  about = {
    'dataset': 'synthetic',
    'command': 'tfreid compare --gin_bindings=\'X = "<1>"\'',
    'failed': {'Both, seed 0': 'exit status 1: out of <memory>'},
    'machine': {'cores': '2'},
  }
  page = report.write([*rows, *swept, other], about, str(tmp_path / 'report'), out=str(out))
  reader = Reader()
  text = (tmp_path / 'report' / 'index.html').read_text()
  assert page == str(tmp_path / 'report' / 'index.html')
  reader.feed(text)
  return tmp_path / 'report', text, reader


def test_the_page_needs_no_other_file_and_no_script(written):
  _, text, reader = written
  assert reader.loads == []
  assert not re.search(r'(src|href)\s*=\s*["\']?(https?:)?//', text)
  assert 'url(http' not in text and '@import' not in text
  assert 'out of &lt;memory&gt;' in text and '<memory>' not in text


def test_table_2_has_means_deviations_and_the_papers_own_figures(written):
  _, _, reader = written
  table = [r for r in reader.rows if len(r) == 10]
  assert table[0][1:5] == ['rank-1', 'rank-5', 'rank-10', 'mAP']
  assert table[0][5:9] == [f'paper: {m}' for m in ('rank-1', 'rank-5', 'rank-10', 'mAP')]
  named = {r[0]: r for r in table[1:]}
  values = [100 * n / QUERIES for n in (40, 41, 42)]
  assert named['ours (A2Img)'][1] == f'{values[1]:.2f} ± {statistics.stdev(values):.2f}'
  assert named['ours (A2Img)'][5:] == ['40.26', '49.21', '58.61', '20.67', 'reference']
  assert named['ours w/o adv'][9] == '▼ -50.0'
  assert named['ours w/o adv + MMD'][9] == '≈ -1.7'
  assert named['chance'][1] == f'{100 * MATCHES / GALLERY:.2f}'
  assert 'other people and other images, so only the order can be compared' in written[1]


def test_differences_have_intervals_and_the_number_of_agreeing_seeds(written):
  _, _, reader = written
  start = next(
    i for i, r in enumerate(reader.rows) if r[1:2] == ['rank-1 against ours (A2Img), the best']
  )
  named = {r[0]: r for r in reader.rows[start + 1 : start + 4]}
  assert re.fullmatch(r'▼ -50\.0 \[-\d+\.\d, -\d+\.\d\] 3/3', named['ours w/o adv'][1])
  assert re.fullmatch(r'≈ -1\.7 \[-\d\.\d, \+\d\.\d\] 3/3', named['ours w/o adv + MMD'][1])
  assert named['ours (A2Img)'][1] == 'reference'


def test_the_best_of_a_column_is_bold_and_nothing_else_of_it(written):
  _, _, reader = written
  start = next(i for i, r in enumerate(reader.rows) if len(r) == 10)
  bold = {(r, c) for r, c in reader.bold if len(reader.rows[r]) == 10}
  assert {c for _, c in bold} == {1, 2, 3, 4}
  for r, c in bold:
    assert r > start
    # At equal means (rank-10 is 100 % for all) the first of the table is named.
    means = [float(reader.rows[i][c].split(' ')[0]) for i in range(start + 1, start + 4)]
    assert float(reader.rows[r][c].split(' ')[0]) == max(means)


def test_the_lead_says_who_wins_and_what_is_not_told_apart(written):
  _, text, _ = written
  assert 'Highest rank-1: ours (A2Img), 68.33 ± 1.67 %' in text
  assert 'behind it (over seeds and queries, all pairs): ours w/o adv + MMD.' in text
  assert 'clearly worse are ours w/o adv' in text


def test_alignment_stands_in_a_table_where_it_was_measured(rows):
  assert '## Alignment' not in document.to_markdown(report.build(rows, {'dataset': 'x'}))
  for position, each in enumerate(rows):
    if each['system'] == 'mmd':
      each['metrics']['alignment'] = {
        'probe_auc': 0.5 + position / 100, 'mean_distance': 0.25, 'covariance_distance': None
      }  # fmt: skip
  text = document.to_markdown(report.build(rows, {'dataset': 'x'}))
  # The seeds of mmd are rows 1, 4 and 7: 0.51, 0.54 and 0.57.
  assert '| ours w/o adv + MMD | 0.54 ± 0.03 | 0.25 ± 0.00 | – |' in text


def test_seen_and_unseen_queries_stand_apart(written):
  _, text, reader = written
  assert '20 seen and 40 unseen queries' in text
  header = next(r for r in reader.rows if 'seen: rank-1' in r)
  assert 'unseen: mAP' in header


def test_the_untrained_reference_and_the_costs_are_told(written):
  _, text, reader = written
  assert 'Every system is clearly better than an untrained network of its kind.' in text
  cost = next(r for r in reader.rows if r[0] == 'ours (A2Img)' and len(r) == 6 and r[1] == 'joint')
  assert cost[2:] == ['5', '10.00', '100', '2.00']
  start = next(i for i, r in enumerate(reader.rows) if r[-1:] == ['mAP above chance'])
  ours = next(r for r in reader.rows[start:] if r[0] == 'ours (A2Img)')
  trained = [(n + (QUERIES - n) / 7) / QUERIES for n in (40, 41, 42)]
  untrained = (1 + (QUERIES - 1) / 7) / QUERIES
  assert ours[5].startswith(f'▲ {100 * (statistics.mean(trained) - untrained):+.1f} [')
  assert 'Every system beats chance.' in text


def test_figure_3_is_drawn_inside_the_page_and_told_in_words(written):
  _, text, _ = written
  assert text.count('<svg ') == 1
  assert 'rank-1 by lambda_G is 0.0001: 33.3, 0.001: 50.0' in text
  assert re.search(r'<svg [^>]*role="img"', text)


def test_figure_3_lies_beside_the_markdown_and_in_it(written):
  directory, text, _ = written
  assert '![Figure 3](figure3.svg)' in (directory / 'tables.md').read_text()
  drawing = (directory / 'figure3.svg').read_text()
  assert drawing.strip() in text
  # As a file of its own it must say what it is, and name what it uses.
  root = xml.etree.ElementTree.fromstring(drawing)
  assert root.tag == '{http://www.w3.org/2000/svg}svg'


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch):
  figure.check()
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(ImportError, match=r'pip install "tfreid\[report\]".*--nofigure3'):
    figure.check()


def test_a_name_leads_to_ranked_results_that_are_there(written):
  directory, text, _ = written
  assert '<a href="ranked/a2img.png">ours (A2Img)</a>' in text
  with Image.open(directory / 'ranked' / 'a2img.png') as sheet:
    assert sheet.size == (30, 30)
    assert sheet.convert('RGB').getpixel((5, 5)) == (255, 0, 0)
    assert sheet.convert('RGB').getpixel((5, 25)) == (0, 0, 255)
  assert 'ranked/mmd.png' not in text


def test_without_pictures_none_is_copied_or_linked_to(written, rows, tmp_path):
  out, directory = str(tmp_path / 'out'), tmp_path / 'numbers_only'
  report.write(rows, {'dataset': 'PETA'}, str(directory), out=out, pictures=False)
  for name in ('index.html', 'tables.md'):
    assert 'ranked/' not in (directory / name).read_text(encoding='utf-8')
  assert not [path.name for path in directory.rglob('*') if path.suffix in ('.png', '.jpg')]
  # Nor are those of an earlier page linked to.
  report.write(rows, {'dataset': 'PETA'}, str(written[0]), pictures=False)
  assert 'ranked/' not in (written[0] / 'index.html').read_text(encoding='utf-8')


def test_a_part_of_the_papers_data_is_named_and_stands_beside_no_published_figure(tmp_path):
  for loaded, title, published in (
    ('PETA', 'on peta', True),
    ('PETA, without TownCentre', 'on PETA, without TownCentre', False),
    ('PETA, split by person', 'on PETA, split by person', False),
  ):
    rows = [row(name, 0, ranks(0.2), dataset=loaded) for name in ('a2img', 'deepmar')]
    report.write(rows, {'dataset': 'peta'}, str(tmp_path))
    text = (tmp_path / 'tables.md').read_text(encoding='utf-8')
    assert text.splitlines()[0].endswith(title)
    assert ('27.86' in text) == published


def test_subsets_are_a_table_of_their_own(tmp_path):
  def subset(gallery, precision):
    return {'queries': 4.0, 'gallery': gallery, 'mAP': precision, 'chance_mAP': 0.0125}

  rows = [
    row('a2img', 0, ranks(0.2), subsets={'MIT': subset(90.0, 0.3), 'CUHK': subset(400.0, 0.2)}),
    row('a2img', 1, ranks(0.2), subsets={'MIT': subset(90.0, 0.5), 'CUHK': subset(400.0, 0.2)}),
    row('mmd', 0, ranks(0.3), subsets={'CUHK': subset(400.0, 0.25)}),
    row('deepmar', 0, ranks(0.3)),
  ]
  report.write(rows, {'dataset': 'PETA'}, str(tmp_path))
  text = (tmp_path / 'tables.md').read_text(encoding='utf-8')
  lines = text[text.index('## By subset') :].splitlines()[2:6]
  table = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
  assert table[0] == ['subset', 'images', 'queries'] + [
    'ours w/o adv + MMD', 'ours (A2Img)', 'chance',
  ]  # fmt: skip
  assert table[2:] == [
    ['CUHK', '400', '4', '**25.00**', '20.00 ± 0.00', '1.25'],
    ['MIT', '90', '4', '–', '**40.00 ± 14.14**', '1.25'],
  ]


def test_without_subsets_there_is_no_such_table(written):
  assert 'By subset' not in written[1]


def test_failures_and_other_readings_are_told(written):
  _, text, reader = written
  assert ['Both, seed 0', 'exit status 1: out of <memory>'] in reader.rows
  assert any(r[:2] == ['ours w/o adv + MMD', 'joint/other'] for r in reader.rows)


def test_markdown_has_the_same_tables(written):
  directory, _, reader = written
  text = (directory / 'tables.md').read_text()
  line = next(x for x in text.splitlines() if x.startswith('| [ours (A2Img)](') and '40.26' in x)
  cells = [cell.strip().strip('*') for cell in line.strip('|').split('|')]
  assert cells[1:] == next(r for r in reader.rows if len(r) == 10 and r[0] == 'ours (A2Img)')[1:]
  assert '**68.33 ± 1.67**' in text


def test_a_page_can_be_written_before_anything_has_finished(tmp_path):
  text = document.to_html(report.build([], {'dataset': 'synthetic', 'unfinished': ['a', 'b']}))
  assert 'No run has finished yet.' in text and 'Not done yet: a, b.' in text


def test_a_single_system_of_the_users_own_has_a_page():
  made = report.build([row('mine', 0, ranks(0.5))], {'dataset': 'mine'})
  text = document.to_markdown(made)
  assert 'mine' in text and '50.00' in text


def test_a_system_no_better_than_untrained_is_named():
  bad = [row('mmd', 0, ranks(0.1, 1)), row('mmd', 0, ranks(0.1, 2), role=UNTRAINED)]
  text = document.to_markdown(report.build(bad, {'dataset': 'x'}))
  assert 'Not clearly better than untrained: ours w/o adv + MMD.' in text


def _document(said):
  """A document with the same text in every place that takes one."""
  cell = document.Cell
  table = document.Table(
    [cell('system', note=said), cell(said, tone='paper')],
    [
      document.Row([cell(said, link=said, best=True), cell(said, bar=0.5, note=said)]),
      document.Row([cell('chance'), cell(said, tone='good')], muted=True),
    ],
    said,
  )
  drawing = document.Figure('<svg><text>&lt;1&gt;</text></svg>', said)
  parts = [said, table, drawing, document.Code(said, f'  {said}\n')]
  return document.Document(said, [said], [document.Section(said, parts)])


@pytest.mark.parametrize('text', HOSTILE)
def test_whatever_is_said_in_a_document_is_text_and_no_tag_comes_from_it(text):
  shown, plain = read(document.to_html(_document(text))), read(document.to_html(_document('plain')))
  assert shown.tags == plain.tags
  assert [name for _, name, _ in shown.attributes] == [name for _, name, _ in plain.attributes]
  assert [a for a in shown.attributes if a[1] in ('href', 'title')] == [
    *(('th', 'title', text), ('a', 'href', text), ('td', 'title', text)),
  ]
  for tag in ('title', 'h1', 'h2', 'caption', 'figcaption', 'summary'):
    assert shown.texts[tag] == [text]
  assert shown.texts['p'] == [text, text]
  assert shown.texts['th'] == ['system', text, text, 'chance']
  assert shown.texts['td'] == [f' {text}', text]
  assert shown.texts['pre'] == [f'  {text}\n']
  assert shown.texts['svg'] == ['<1>']  # a drawing is no text


def test_cells_say_by_class_and_bar_what_they_are():
  text = document.to_html(_document('x'))
  assert '<th scope="row" class="best"><a href="x">x</a></th>' in text
  assert (
    '<td class="bar" title="x"><span style="width:100px" aria-hidden="true"></span> x</td>' in text
  )
  assert '<th scope="col" class="paper">x</th>' in text
  assert '<tr class="muted"><th scope="row">chance</th><td class="good">x</td></tr>' in text


def test_a_vertical_bar_does_not_break_a_markdown_table():
  table = document.Table([document.Cell('a|b')], [document.Row([document.Cell('c')])])
  text = document.to_markdown(document.Document('t', [], [document.Section('s', [table])]))
  assert '| a\\|b |' in text


def test_a_system_that_is_not_above_chance_is_named():
  """Every query's only match is at rank 100: an average precision of 1 %, by chance it is 3 %."""
  bad = [row('mmd', 0, np.full(QUERIES, 100)), row('img2a', 0, right(*range(30)))]
  text = document.to_markdown(report.build(bad, {'dataset': 'x'}))
  assert 'Not above chance: ours w/o adv + MMD.' in text
  line = next(
    x for x in text.splitlines() if x.startswith('| ours w/o adv + MMD') and '▼ -2.4' in x
  )
  assert line.split('|')[-2].strip() == '▼ -2.4 [-2.4, -2.4]'


def test_the_reading_of_the_tables_is_named_by_what_the_others_are_not():
  found = [row('deepmar', 0, ranks(0.5), label='deepmar')]
  for name in ('cosine', 'requested'):
    found.append(row('deepmar', 0, ranks(0.2), label=f'deepmar/{name}', primary=False))
  text = document.to_markdown(report.build(found, {'dataset': 'x'}))
  assert '| DeepMAR | **deepmar/log_likelihood** | **50.00** |' in text
  assert '| DeepMAR | deepmar/cosine | 20.00 |' in text


def costs_of(*rows):
  table, *told = costs.costs(rows)
  return [[cell.text for cell in line.cells] for line in table.rows], ' '.join(told)


def test_times_are_medians_so_that_one_disturbed_run_does_not_count():
  spent = [
    row('mmd', seed, right(0), seconds=whole, stages={'joint': {'epochs': 5, 'seconds': seconds}})
    for seed, seconds, whole in ((0, 50.0, 60.0), (1, 55.0, 70.0), (2, 500.0, 900.0))
  ]
  lines, told = costs_of(*spent)
  assert lines[0][:5] == ['ours w/o adv + MMD', 'joint', '5', '11.00', '70']
  assert 'All 3 finished runs together took 17 min' in told
  assert 'Of all of them it is not known whether others ran at the same time' in told


def test_the_sum_of_times_counts_a_run_once_and_says_what_was_continued():
  first = row('deepmar', 0, right(0), seconds=3600.0, attempts=2)
  other = row('deepmar', 0, right(0), label='deepmar/cosine', primary=False, seconds=3600.0)
  point = row('a2img', 0, right(0), role=PARAMETER, weights=[0.1, 1.0], seconds=3600.0)
  _, told = costs_of(first, {**other, 'attempts': 2}, point)
  assert 'All 2 finished runs together took 2 h 00 min' in told
  assert '1 of them were continued' in told


def test_how_many_ran_at_a_time_is_told_where_it_is_known():
  def workers(count, cores):
    return {'workers': {'count': count, 'cores': cores}}

  two = row('mmd', 0, right(0), **workers(2, 1))
  one = row('mmd', 1, right(0), **workers(1, 2))
  assert costs_of(two)[1].endswith('They ran 2 at a time, each on 1 core.')
  assert costs_of(one)[1].endswith('They ran one at a time on 2 cores.')
  told = costs_of(one, two, row('mmd', 2, right(0)))[1]
  assert 'Some ran one at a time on 2 cores; others 2 at a time, each on 1 core.' in told
  assert 'Of 1 of them it is not known' in told


def test_several_revisions_and_uncommitted_changes_are_told():
  one = row('mmd', 0, right(0), revision='a' * 40, dirty=False)
  other = row('a2img', 0, right(0), revision='b' * 40, dirty=True)
  assert provenance.missing([one], {}, []) == []
  (said,) = provenance.missing([one, other], {}, [])
  assert 'made by 2 revisions of the code' in said
  assert '1 of 2 runs were made by code with changes that were not committed' in said


def test_systems_that_start_from_other_weights_are_named():
  rows = [
    row(system, seed, right(0), start='one')
    for system in ('mmd', 'a2img', 'deep_coral')
    for seed in (0, 1)
  ]
  assert provenance.missing(rows, {}, []) == []
  other = [row('img2a', 0, right(0), start='another')]
  (said,) = provenance.missing(rows + other, {}, [])
  assert said.startswith('The systems of seed 0 do not start from the same pre-training (Img2A ')
  # Rows that were written before this was written down.
  unknown = [{key: value for key, value in one.items() if key != 'start'} for one in rows]
  assert provenance.missing(unknown, {}, []) == []
  more = [row('img2a', 1, right(0), start='another')]
  (said,) = provenance.missing(unknown + other + more, {}, [])
  assert said.startswith('The systems of seeds 0, 1 are not known to start from the same')


def test_the_start_of_a_seed_is_told_by_the_weights_of_its_pretraining(tmp_path):
  def pretrain(checksum):
    path = tmp_path / 'pretrain' / 'seed-3' / 'pretrain' / 'final.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'seconds': 1.0, 'files': {'final.index': [70, checksum]}}))
    return scores._start(str(tmp_path), 3)

  assert scores._start(str(tmp_path), 3) is None
  one, other = pretrain('a'), pretrain('b')
  assert one != other and pretrain('a') == one
  (path,) = tmp_path.glob('*/*/*/final.json')
  path.write_text('{"seconds": 1.0}')
  assert scores._start(str(tmp_path), 3) is None
