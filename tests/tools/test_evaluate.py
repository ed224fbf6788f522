from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data import dukemtmc, market1501, shared_attributes, synthetic
from tfreid.data.pipeline import Pipeline
from tfreid.evaluation import partial, ranking, results, retrieval, saved_space
from tfreid.joint_space import JointSpace

ROOT = Path(__file__).parents[2]
IMAGE = (32, 16, 3)


def evaluate(*flags):
  return subprocess.run(
    [sys.executable, ROOT / 'tools' / 'evaluate.py', *map(str, flags)],
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A small synthetic data set on disk."""
  folder = tmp_path_factory.mktemp('data') / 'people'
  synthetic.SyntheticPeople(
    12, 10, (2, 4), image_size=IMAGE[:2], difficulty='easy', num_junk=1, num_distractors=1
  ).write(folder, workers=1)
  return folder


@pytest.fixture(scope='module')
def benchmark(data):
  return market1501.load(data)


@pytest.fixture(scope='module')
def run(tmp_path_factory, data, benchmark):
  """A run directory as training leaves it, with a space of untrained encoders."""
  folder = tmp_path_factory.mktemp('run')
  tf.keras.utils.set_random_seed(0)

  def encoder(shape):
    given = tf.keras.Input(shape)
    flat = tf.keras.layers.Flatten()(given)
    return tf.keras.Model(given, tf.keras.layers.Dense(6, activation='tanh')(flat / 255.0))

  JointSpace(encoder(IMAGE), encoder((benchmark.schema.size,))).save(
    folder / 'joint' / 'space',
    metadata={
      'schema': benchmark.schema.to_json(),
      'dataset': benchmark.name,
      'method': 'a2img',
      'stage': 'joint',
      'seed': 5,
    },
  )
  (folder / 'joint' / 'final.json').write_text(json.dumps({'epochs': 12}))
  (folder / 'config.gin').write_text(
    'from __gin__ import dynamic_registration\n'
    'from tfreid.data import market1501\n'
    f'DATA_ROOT = {str(data)!r}\n'
    'DATASET = @market1501.load\n'
    'market1501.load.root = %DATA_ROOT\n'
  )
  return folder


@pytest.mark.slow
def test_the_findings_are_those_of_the_parts_and_progress_is_told(run, benchmark):
  told = []
  space = str(run / 'joint' / 'space')
  fewer = saved_space.FewerAttributes(counts=[2, 'all'], draws=2, seed=3, resamples=10)
  found = saved_space.evaluate(
    space, benchmark, batch_size=7, top=5, fewer=fewer, progress=lambda *step: told.append(step)
  )
  loaded = JointSpace.load(space)
  batches = Pipeline(IMAGE[:2], 16).evaluation(benchmark.test)
  embeddings = retrieval.embed_split(loaded, benchmark.test, batches)
  wanted = retrieval.evaluate_embeddings(embeddings, seen=benchmark.seen(benchmark.test))
  assert found.evaluation.overall == pytest.approx(wanted.overall, rel=1e-5)
  graded = retrieval.graded(embeddings, benchmark.test, groups=benchmark.schema.groups, k=5)
  assert found.facts['violations5'] == pytest.approx(np.mean(graded.violations))
  assert found.facts['nDCG5'] == pytest.approx(np.mean(graded.ndcg), rel=1e-5)
  assert 'through' not in found.facts
  most = len(benchmark.schema.attributes)
  assert [(point.attributes, point.draws) for point in found.curve.points] == [(2, 2), (most, 1)]
  # With everything said, it is the evaluation.
  assert found.curve.points[1].summary.mAP == pytest.approx(found.evaluation.overall.mAP, rel=1e-5)
  images, queries = len(benchmark.test), len(benchmark.test.queries()[0])
  embedding = [step[1:] for step in told if step[0] == 'Embedding images']
  assert embedding[0] == (0, images) and embedding[-1] == (images, images)
  asking = [step[1:] for step in told if step[0] == 'Asking with fewer attributes']
  assert asking == [(0, None), *((queries * n, queries * 3) for n in (1, 2, 3))]


def test_shared_attributes_and_fewer_of_them_are_not_asked_together(run, benchmark):
  with pytest.raises(ValueError, match='not both at once'):
    saved_space.evaluate(
      str(run / 'joint' / 'space'),
      benchmark,
      through=['peta', 'market1501'],
      fewer=saved_space.FewerAttributes(),
    )


@pytest.fixture(scope='module')
def other_space(tmp_path_factory, benchmark):
  """A space of the same attributes, of other images and another width."""
  tf.keras.utils.set_random_seed(1)
  pixels, attributes = tf.keras.Input((16, 16, 3)), tf.keras.Input((benchmark.schema.size,))
  flat = tf.keras.layers.Flatten()(pixels)
  folder = tmp_path_factory.mktemp('other') / 'space'
  JointSpace(
    tf.keras.Model(pixels, tf.keras.layers.Dense(3)(flat / 255.0)),
    tf.keras.Model(attributes, tf.keras.layers.Dense(3)(attributes)),
  ).save(folder, metadata={'schema': benchmark.schema.to_json()})
  return folder


@pytest.mark.slow
def test_two_spaces_score_together(run, benchmark, other_space, tmp_path):
  space = run / 'joint' / 'space'
  flags = f'--with_space={other_space}', '--shares=0,0.25,3', f'--json={tmp_path}/out.json'
  done = evaluate(f'--space={space}', *flags, '--noappend')
  assert done.returncode == 0, done.stderr
  written = json.loads((tmp_path / 'out.json').read_text())
  split = benchmark.test
  scores = []
  for folder in (space, other_space):
    loaded = JointSpace.load(str(folder))
    batches = Pipeline(loaded.image_shape[:2], 16).evaluation(split)
    found = retrieval.embed_split(loaded, split, batches)
    scores.append(found.queries @ found.gallery.T)
  matches = ranking.matches_by_id(found.query_ids, found.gallery_ids)
  for share, one in zip((0, 0.25, 3), written['fused']):
    assert one['share'] == share
    metrics = ranking.query_metrics(scores[0] + share * scores[1], matches)
    wanted = ranking.summary(metrics, len(split))
    assert one['metrics']['all']['mAP'] == pytest.approx(wanted.mAP, rel=1e-4)
    assert f'{100 * wanted.rank1:.2f}' in done.stdout
  assert written['fused'][0]['metrics']['all'] == written['metrics']['all']
  values = {one['metrics']['all']['mAP'] for one in written['fused']}
  assert len(values) == 3


@pytest.mark.slow
def test_the_flip_test_scores_with_the_mean_of_both(run, benchmark, other_space, tmp_path):
  space = run / 'joint' / 'space'
  flags = f'--with_space={other_space}', '--shares=0.5', f'--json={tmp_path}/out.json'
  done = evaluate(f'--space={space}', '--flip_test', *flags, '--noappend')
  assert done.returncode == 0, done.stderr
  assert 'with the flip test' in done.stdout
  written = json.loads((tmp_path / 'out.json').read_text())
  assert written['flip_test'] is True
  split = benchmark.test
  scores = []
  for folder in (space, other_space):
    loaded = JointSpace.load(str(folder))
    batches = Pipeline(loaded.image_shape[:2], 16).evaluation(split)
    pixels = np.concatenate([batch['image'].numpy() for batch in batches])
    images = (loaded.encode_images(pixels) + loaded.encode_images(pixels[:, :, ::-1])) / 2
    vectors, ids = split.queries()
    scores.append(loaded.encode_attributes(vectors).numpy() @ images.numpy().T)
  matches = ranking.matches_by_id(ids, split.semantic_ids)
  for total, metrics in (
    (scores[0], written['metrics']),
    (scores[0] + 0.5 * scores[1], written['fused'][0]['metrics']),
  ):
    wanted = ranking.summary(ranking.query_metrics(total, matches), len(split))
    assert metrics['all']['mAP'] == pytest.approx(wanted.mAP, rel=1e-4)
  plain = saved_space.evaluate(str(space), benchmark)
  assert plain.evaluation.overall.mAP != pytest.approx(written['metrics']['all']['mAP'], rel=1e-4)
  assert 'flip_test' not in plain.facts


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--shares=0.1,-1'], "not '-1'"),
    (['--shares=nan'], "not 'nan'"),
    (['--shares=much'], "not 'much'"),
    (['--shares=1e999'], "not '1e999'"),
    (['--through=peta,market1501'], '--through and --with_space'),
  ],
)
def test_shares_that_are_none_are_refused_at_once(flags, message):
  done = evaluate('--space=a', '--with_space=b', *flags)
  assert done.returncode == 1 and message in done.stderr


def test_spaces_of_other_attributes_are_not_fused(run, benchmark, tmp_path):
  schema = dukemtmc.SCHEMA
  attributes, pixels = tf.keras.Input((schema.size,)), tf.keras.Input(IMAGE)
  JointSpace(
    tf.keras.Model(pixels, tf.keras.layers.Dense(2)(tf.keras.layers.Flatten()(pixels))),
    tf.keras.Model(attributes, tf.keras.layers.Dense(2)(attributes)),
  ).save(tmp_path / 'space', metadata={'schema': schema.to_json()})
  space = str(run / 'joint' / 'space')
  fusion = saved_space.Fusion(str(tmp_path / 'space'), [0.1])
  with pytest.raises(ValueError, match='Fuse spaces that were trained on the same attributes'):
    saved_space.evaluate(space, benchmark, fusion=fusion)
  fusion = saved_space.Fusion(space, [-0.1])
  with pytest.raises(ValueError, match=r'numbers from 0 on, not \[-0.1\]'):
    saved_space.evaluate(space, benchmark, fusion=fusion)
  with pytest.raises(ValueError, match='not both at once'):
    saved_space.evaluate(space, benchmark, fusion=fusion, through=['peta', 'market1501'])


@pytest.mark.slow
def test_it_prints_and_writes_down_what_the_evaluator_finds(run, benchmark, tmp_path):
  done = evaluate(f'--space={run}/joint/space', f'--json={tmp_path}/out.json', '--batch_size=7')
  assert done.returncode == 0, done.stderr
  want = retrieval.evaluate(
    JointSpace.load(str(run / 'joint' / 'space')),
    benchmark.test,
    Pipeline(IMAGE[:2], 8).evaluation(benchmark.test),
    seen=benchmark.seen(),
  )
  assert f'a2img on {benchmark.name}, test split' in done.stdout
  assert f'{100 * want.overall.mAP:.2f}' in done.stdout
  assert 'unseen queries' in done.stdout and 'bootstrap' in done.stdout

  table = results.read_results(run / 'results.jsonl')
  assert len(table) == 1
  row = table.iloc[0]
  assert (row['method'], row['stage'], row['epoch'], row['seed']) == ('a2img', 'joint', 12, 5)
  assert row['config'] == (run / 'config.gin').read_text()
  for name, value in want.scalars().items():
    assert row[name] == pytest.approx(value, nan_ok=True)

  data = json.loads((tmp_path / 'out.json').read_text())
  precisions = np.asarray(data['metrics']['per_query']['average_precision'], float)
  np.testing.assert_allclose(precisions, want.per_query.average_precision)
  assert data['violations10'] == row['violations10'] >= 0
  assert 0 <= data['nDCG10'] <= 1


@pytest.mark.slow
def test_the_data_may_be_named_and_the_row_be_left_out(run, data, tmp_path):
  """A space that was moved away from its run."""
  space = tmp_path / 'space'
  (run / 'joint' / 'space').rename(space)
  try:
    done = evaluate(
      f'--space={space}',
      '--dataset=synthetic',
      f'--data_root={data}',
      '--resamples=0',
      '--top=3',
      '--noappend',
    )
  finally:
    space.rename(run / 'joint' / 'space')
  assert done.returncode == 0, done.stderr
  assert 'Of the first 3 images' in done.stdout and 'bootstrap' not in done.stdout
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_model_is_asked_through_the_attributes_that_two_data_sets_share(run, data, tmp_path):
  """Its own people in the words of PETA: as `shared_attributes.asked` puts the queries."""
  done = evaluate(
    f'--space={run}/joint/space',
    '--dataset=synthetic',
    f'--data_root={data}',
    '--through=peta,market1501',
    '--resamples=0',
    f'--results={tmp_path}/results.jsonl',
  )
  assert done.returncode == 0, done.stderr
  benchmark = market1501.load(data, name='Synthetic people')
  shared = shared_attributes.schema(['peta', 'market1501'])
  split, labels = shared_attributes.asked(
    benchmark.test, benchmark.schema, shared, market1501.load(data).schema
  )
  want = retrieval.evaluate(
    JointSpace.load(str(run / 'joint' / 'space')), split, Pipeline(IMAGE[:2], 8).evaluation(split)
  )
  row = results.read_row((tmp_path / 'results.jsonl').read_bytes())
  assert row['metrics']['all']['mAP'] == pytest.approx(want.overall.mAP)
  assert (row['through'], row['through_columns']) == (['peta', 'market1501'], 29)
  assert row['images'] == len(labels)
  assert 'seen' not in row['metrics']
  assert 'through 29 columns that peta and market1501 share' in ' '.join(done.stdout.split())


@pytest.mark.slow
def test_the_curve_over_the_number_of_attributes_is_printed_and_written(run, benchmark, tmp_path):
  pytest.importorskip('matplotlib', reason="needs the extra 'report'")
  done = evaluate(
    f'--space={run}/joint/space',
    '--noappend',
    '--attribute_counts=all,1,3',
    '--attribute_draws=2',
    '--attribute_seed=4',
    f'--curve={tmp_path}/out/curve',
  )
  assert done.returncode == 0, done.stderr
  split = benchmark.test
  space = JointSpace.load(str(run / 'joint' / 'space'))
  embeddings = retrieval.embed_split(space, split, Pipeline(IMAGE[:2], 64).evaluation(split))
  want = partial.curve(
    space, split, embeddings.gallery, schema=benchmark.schema, counts=[1, 3, 'all'], draws=2, seed=4
  )
  lines = (tmp_path / 'out' / 'curve.csv').read_text().splitlines()
  assert lines == want.to_csv().splitlines()
  data = json.loads((tmp_path / 'out' / 'curve.json').read_text())
  assert data['points'] == want.to_json()['points'] and data['method'] == 'a2img'
  # The last point is what the tables say.
  ordinary = retrieval.evaluate_embeddings(embeddings).overall
  assert want.points[-1].summary == ordinary
  assert f'{100 * ordinary.mAP:.2f}' in done.stdout
  most = len(benchmark.schema.attributes)
  assert f'1 of {most}' in done.stdout and f'{most} of {most}' in done.stdout
  assert (tmp_path / 'out' / 'curve.png').read_bytes().startswith(b'\x89PNG')
  assert sorted(path.suffix for path in (tmp_path / 'out').iterdir()) == ['.csv', '.json', '.png']


@pytest.mark.slow
@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--space={space}', '--attribute_counts=1,99'], "'99' is no number of attributes"),
    (['--space={run}/joint'], 'holds no joint space'),
    (['--space={space}', '--through=peta,cuhk'], "'cuhk' is not in the table"),
    (['--space={space}', '--split=validation'], 'VALIDATION_SHARE'),
    (['--space={space}', "--gin_bindings=market1501.load.encoding='three_state'"], 'other ones'),
  ],
)
def test_what_cannot_be_evaluated_is_one_clear_message(run, flags, message):
  names = {'run': run, 'space': run / 'joint' / 'space'}
  done = evaluate(*(flag.format(**names) for flag in flags))
  assert done.returncode == 1
  assert 'Error: ' in done.stderr and message in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_an_unreadable_image_is_named(run, data, benchmark, tmp_path):
  path = Path(benchmark.test.paths[3])
  whole = path.read_bytes()
  path.write_bytes(whole[:60])
  try:
    done = evaluate(f'--space={run}/joint/space', '--noappend')
  finally:
    path.write_bytes(whole)
  assert done.returncode == 1
  assert f'{path.name} is unreadable' in done.stderr.replace('\n', '')
  assert 'Traceback' not in done.stderr


def test_usage_is_told_without_tensorflow():
  code = (
    'import runpy, sys\n'
    f'sys.path.insert(0, {str(ROOT / "tools")!r})\n'
    'sys.argv = ["evaluate.py", *sys.argv[1:]]\n'
    'try:\n'
    f'  runpy.run_path({str(ROOT / "tools" / "evaluate.py")!r}, run_name="__main__")\n'
    'finally:\n'
    '  assert "tensorflow" not in sys.modules\n'
  )
  for flags, message in (
    (['--help'], '--space'),
    ([], 'Give --space='),
    (['--space=x', 'market1501'], "Unexpected argument: 'market1501'"),
    (['--space=x', '--dataset=market1501'], 'give --data_root'),
    (['--space=x', '--through=peta,dukemtmc', '--attribute_counts=1'], 'given together'),
  ):
    done = subprocess.run([sys.executable, '-c', code, *flags], capture_output=True, text=True)
    assert message in done.stdout + done.stderr
    assert 'AssertionError' not in done.stderr
