from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid import experiment, storage
from tfreid.data import market1501
from tfreid.data.pipeline import Pipeline
from tfreid.joint_space import JointSpace
from tfreid.methods import alignment
from tfreid.methods.joint_concepts import JointConcepts
from tfreid.networks import attribute, heads
from tfreid.training import optimizers
from tfreid.training.stages import Hooks, Stage

ROOT = Path(__file__).resolve().parents[1]
GALLERY = 40  # 10 people of `tiny_market`, 4 crops of each


@pytest.fixture(autouse=True, scope='module')
def restore_policy():
  yield
  tf.keras.mixed_precision.set_global_policy('float32')


def image_encoder(image_shape):
  pixels = tf.keras.Input(image_shape)
  x = tf.keras.layers.Conv2D(8, 4, 4)(tf.keras.layers.Rescaling(1 / 127.5, -1.0)(pixels))
  x = tf.keras.layers.ReLU()(heads.batch_norm()(x))
  x = tf.keras.layers.GlobalAveragePooling2D(dtype='float32')(x)
  return tf.keras.Model(pixels, tf.keras.layers.Dense(6, 'tanh', dtype='float32')(x))


def joint(name='joint', *, epochs=2):
  method = functools.partial(
    JointConcepts,
    image_encoder=image_encoder,
    attribute_generator=functools.partial(attribute.attribute_generator, hidden=(8,)),
    alignment=alignment.NoAlignment,
    image_optimizer=functools.partial(optimizers.adam, 0.01),
    attribute_optimizer=functools.partial(optimizers.adam, 0.01),
  )
  return Stage(name, method, epochs)


def train(run_directory, data, *, validation_share=0.0, batch_size=16, bad='error', **arguments):
  settings = {
    'dataset': lambda: market1501.load(str(data), validation_share=validation_share),
    'pipeline': lambda: Pipeline((32, 16), batch_size, on_bad_image=bad),
    'stages': [joint()],
    'method': 'without_adversarial',
    'seed': 5,
    'log_every': 1,
    'config': 'SEED = 5\nEPOCHS = 2\n',
    **arguments,
  }
  return experiment.train(str(run_directory), **settings)


def network_values(path):
  """Values of the networks in a checkpoint, without optimizers and counters.

  Kernels only: a bias before a batch norm has no gradient but rounding, of which Adam makes steps.
  """
  reader = tf.train.load_checkpoint(str(path))
  values = {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    if 'optimizers/' not in name and '/kernel/' in name
  }
  assert len(values) > 3
  return values


class Seen(Hooks):
  """What happened, in order."""

  def __init__(self):
    self.told = []
    self.report = {}

  def logged(self, progress):
    self.report = dict(progress.losses)

  def epoch_ends(self, progress):
    self.told.append(('epoch', progress.epoch))

  def validated(self, progress, evaluation, embeddings):
    self.told.append(('validated', progress.epoch, evaluation.overall.gallery))

  def evaluated(self, stage, label, part, evaluation, embeddings):
    self.told.append(('evaluated', label, evaluation.overall.gallery))

  def close(self):
    self.told.append(('closed',))


@pytest.fixture(scope='module')
def finished(tiny_market, tmp_path_factory):
  """A run directory, what the run returned and what it told."""
  directory, seen = tmp_path_factory.mktemp('finished'), Seen()
  evaluations = train(
    directory, tiny_market, hooks=lambda *_: [seen], operative_config=lambda: 'SEED = 5\n'
  )
  return directory, evaluations, seen


@pytest.fixture
def run(finished, tmp_path):
  """A copy of the finished run's directory, to be changed."""
  return Path(shutil.copytree(finished[0], tmp_path / 'run'))


def test_run_directory_holds_all_that_a_stranger_would_ask_for(finished, tiny_market):
  directory, evaluations, _ = finished
  assert experiment.run_config(str(directory)) == 'SEED = 5\nEPOCHS = 2\n'
  assert storage.read_checked_text(directory / 'operative_config.gin') == 'SEED = 5\n'
  schema = market1501.load(str(tiny_market)).schema
  assert json.loads((directory / 'schema.json').read_text())['name'] == schema.name
  environment = json.loads((directory / 'environment.json').read_text())
  assert environment['versions']['tensorflow'] == tf.__version__
  assert set(environment) >= {'time', 'platform', 'devices', 'code', 'command'}
  about = JointSpace.metadata(str(directory / 'joint' / 'space'))
  assert (about['method'], about['seed']) == ('without_adversarial', 5)
  assert about['schema'] == storage.read_json(directory / 'schema.json')
  (row,) = map(json.loads, (directory / 'results.jsonl').read_text().splitlines())
  assert [row[name] for name in ('method', 'stage', 'epoch', 'seed', 'split')] == [
    'without_adversarial',
    'joint',
    2,
    5,
    'test',
  ]
  assert row['config'] == 'SEED = 5\nEPOCHS = 2\n'
  assert row['metrics'] == json.loads(json.dumps(evaluations['joint'].to_json()))


def test_whole_gallery_is_evaluated_after_all_training(finished):
  _, _, seen = finished
  assert seen.told == [('epoch', 1), ('epoch', 2), ('evaluated', 'joint', GALLERY), ('closed',)]


def test_a_shared_stage_is_evaluated_by_the_run_that_trains_it(tiny_market, tmp_path):
  shared = dataclasses.replace(joint('first', epochs=1), directory=str(tmp_path / 'shared'))
  after = joint('second', epochs=1)
  evaluated = [
    list(train(tmp_path / name, tiny_market, stages=stages))
    for name, stages in [
      ('one', [shared, after]),
      ('two', [shared, after]),
      ('three', [shared]),
      ('three', [shared]),
    ]
  ]
  # The last one is what the run is for, whoever has trained it.
  assert evaluated == [['first', 'second'], ['second'], ['first'], ['first']]


def test_finished_run_is_evaluated_again_and_not_trained_again(run, finished, tiny_market):
  seen = Seen()
  again = train(run, tiny_market, hooks=lambda *_: [seen])
  assert [told[0] for told in seen.told] == ['evaluated', 'closed']
  assert again['joint'].scalars() == pytest.approx(finished[1]['joint'].scalars(), nan_ok=True)
  assert len((run / 'results.jsonl').read_text().splitlines()) == 2


def test_one_device_trains_what_a_mirrored_one_does(finished, tiny_market, tmp_path):
  train(tmp_path, tiny_market, strategy='one_device')
  found = network_values(tmp_path / 'joint' / 'final')
  for name, value in network_values(finished[0] / 'joint' / 'final').items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_mirrored_without_a_gpu_is_the_whole_cpu_whatever_it_is_split_into(two_devices):
  assert len(two_devices) == 2
  strategy, workers, index = experiment._strategy('mirrored')
  assert (strategy.num_replicas_in_sync, workers, index) == (1, 1, 0)


def test_seed_decides_the_weights(finished, tiny_market, tmp_path):
  train(tmp_path, tiny_market, seed=6, stages=[joint(epochs=1)])
  ours = network_values(finished[0] / 'joint' / 'final')
  others = network_values(tmp_path / 'joint' / 'final')
  assert all(not np.allclose(ours[name], others[name], atol=0.05) for name in ours)


def test_run_directory_of_another_configuration_is_refused_with_both_lines(run, tiny_market):
  changed = {'config': 'SEED = 5\nEPOCHS = 3\n', 'stages': [joint(epochs=3)]}
  with pytest.raises(ValueError, match='belongs to another configuration') as caught:
    train(run, tiny_market, **changed)
  assert 'There: EPOCHS = 2\n  Here:  EPOCHS = 3' in str(caught.value)
  assert '--allow_changed_config' in str(caught.value)
  assert experiment.run_config(str(run)) == 'SEED = 5\nEPOCHS = 2\n'
  train(run, tiny_market, allow_changed_config=True, **changed)
  assert experiment.run_config(str(run)) == 'SEED = 5\nEPOCHS = 3\n'


def test_run_directory_belongs_to_nobody_before_anything_is_trained(tiny_market, tmp_path):
  """Neither mistyped data nor a recipe that fails at its beginning claims it."""
  run = tmp_path / 'run'
  with pytest.raises(FileNotFoundError):
    train(run, tmp_path / 'markte', config='DATA_ROOT = "markte"\n')
  assert not run.exists()
  with pytest.raises(ValueError, match='fewer than one batch'):
    train(run, tiny_market, batch_size=65, config='BATCH_SIZE = 65\n')
  train(run, tiny_market, stages=[joint(epochs=1)])
  with pytest.raises(ValueError, match='belongs to another configuration'):
    train(run, tiny_market, config='BATCH_SIZE = 65\n')


@pytest.mark.parametrize('kind', ['flip', 'cut'])
def test_damaged_configuration_of_a_run_is_refused(kind, run, tiny_market):
  path = run / 'config.gin'
  content = path.read_bytes()
  path.write_bytes(content.replace(b'SEED = 5', b'SEED = 4') if kind == 'flip' else content[:100])
  with pytest.raises(ValueError, match=r"configuration of the run '.*config.gin' is damaged"):
    train(run, tiny_market)


@pytest.mark.parametrize(
  ('setting', 'complaint'),
  [
    ({'precision': 'float16'}, "precision is one of float32, .*, auto, not 'float16'"),
    ({'strategy': 'tpu'}, "strategy is one of mirrored, .*, not 'tpu'"),
  ],
)
def test_unknown_setting_names_the_known_ones(setting, complaint, tiny_market, tmp_path):
  with pytest.raises(ValueError, match=complaint):
    train(tmp_path, tiny_market, **setting)
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('value', 'complaint'),
  [(None, 'it is not set'), ('{cluster', 'it cannot be read'), ('[]', 'it cannot be read')],
)
def test_several_workers_without_a_cluster_say_what_to_set(
  value, complaint, tiny_market, tmp_path, monkeypatch
):
  if value is None:
    monkeypatch.delenv('TF_CONFIG', raising=False)
  else:
    monkeypatch.setenv('TF_CONFIG', value)
  with pytest.raises(ValueError, match=f'TF_CONFIG, for example .*{complaint}'):
    train(tmp_path, tiny_market, strategy='multi_worker')


def test_workers_that_do_not_come_are_named(monkeypatch, capfd):
  with socket.socket() as server:
    server.bind(('127.0.0.1', 0))
    server.listen()
    here = f'127.0.0.1:{server.getsockname()[1]}'
    with socket.socket() as other:
      other.bind(('127.0.0.1', 0))
      gone = f'127.0.0.1:{other.getsockname()[1]}'
    cluster = {'worker': ['127.0.0.1:1', here, gone]}
    task = {'type': 'worker', 'index': 0}
    monkeypatch.setenv('TF_CONFIG', json.dumps({'cluster': cluster, 'task': task}))
    monkeypatch.setattr(experiment, '_PATIENCE', 0.01)
    said = ''
    with experiment._telling_of_missing_workers():
      while 'not reached' not in said:
        said += capfd.readouterr().err
  assert f'Waiting for the other workers of TF_CONFIG; not reached: {gone}.' in said


def test_process_forked_after_the_first_use_of_tensorflow_is_told_and_does_not_hang(finished):
  code = (
    'import os, sys\n'
    'import numpy as np\n'
    'from tfreid.joint_space import JointSpace\n'
    'space = JointSpace.load(sys.argv[1])\n'
    'vectors = np.zeros((1, space.num_attributes), np.float32)\n'
    'space.encode_attributes(vectors)\n'
    'child = os.fork()\n'
    'if not child:\n'
    '  try:\n'
    '    space.encode_attributes(vectors)\n'
    '  except RuntimeError as error:\n'
    '    print(error, flush=True)\n'
    '  os._exit(0)\n'
    'os.waitpid(child, 0)\n'
  )
  environment = {k: v for k, v in os.environ.items() if k != 'TF_CPP_MIN_LOG_LEVEL'}
  result = subprocess.run(
    [sys.executable, '-c', code, str(finished[0] / 'joint' / 'space')],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  assert 'forked from one' in result.stdout and "get_context('spawn')" in result.stdout
  # Nor does TensorFlow say anything of itself when the package is imported first.
  assert result.stderr == ''


def test_validation_is_evaluated_as_often_as_asked_and_test_once_at_the_end(tiny_market, tmp_path):
  seen = Seen()
  train(
    tmp_path,
    tiny_market,
    validation_share=0.3,
    stages=[joint(epochs=3)],
    evaluate_every=2,
    hooks=lambda *_: [seen],
  )
  size = len(market1501.load(str(tiny_market), validation_share=0.3).validation)
  assert [told for told in seen.told if told[0] != 'epoch'] == [
    ('validated', 2, size),
    ('validated', 3, size),
    ('evaluated', 'joint', GALLERY),
    ('closed',),
  ]
  rows = (tmp_path / 'results.jsonl').read_text().splitlines()
  assert [json.loads(row)['split'] for row in rows] == ['test']


def test_while_settings_are_chosen_the_test_split_is_not_read(tiny_market, tmp_path):
  seen = Seen()
  arguments = {'validation_share': 0.3, 'final_split': 'validation', 'hooks': lambda *_: [seen]}
  evaluation = train(tmp_path, tiny_market, **arguments)['joint']
  size = len(market1501.load(str(tiny_market), validation_share=0.3).validation)
  assert ('evaluated', 'joint', size) in seen.told
  (row,) = (json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines())
  assert row['split'] == 'validation'
  assert row['metrics']['all']['mAP'] == pytest.approx(evaluation.overall.mAP)


def test_final_evaluation_on_a_missing_validation_split_is_refused_before_training(
  tiny_market, tmp_path
):
  with pytest.raises(ValueError, match='VALIDATION_SHARE'):
    train(tmp_path, tiny_market, final_split='validation')
  with pytest.raises(ValueError, match="not 'train'"):
    train(tmp_path, tiny_market, final_split='train')


def test_hooks_are_closed_when_the_run_ends_in_an_error(tiny_market, tmp_path):
  class Failing(Seen):
    def epoch_ends(self, progress):
      raise RuntimeError('disk full')

  seen = Failing()
  with pytest.raises(RuntimeError, match='disk full'):
    train(tmp_path, tiny_market, hooks=lambda *_: [seen])
  assert seen.told == [('closed',)]


@pytest.mark.slow
@pytest.mark.parametrize('precision', ['mixed_float16', 'mixed_bfloat16'])
def test_half_precision_trains_and_is_evaluated_in_single(precision, tiny_market, tmp_path):
  seen = Seen()
  evaluations = train(tmp_path, tiny_market, precision=precision, hooks=lambda *_: [seen])
  assert np.isfinite(seen.report['concept'])
  assert 0.0 <= evaluations['joint'].overall.mAP <= 1.0
  assert tf.keras.mixed_precision.global_policy().name == 'float32'
  space = JointSpace.load(str(tmp_path / 'joint' / 'space'))
  assert {layer.compute_dtype for layer in space.image_encoder.layers} == {'float32'}


# Images that cannot be read.


@pytest.fixture
def damaged(tiny_market, tmp_path):
  """A copy of the data in which one training image is cut short."""
  data = Path(shutil.copytree(tiny_market, tmp_path / 'market'))
  victim = sorted((data / 'bounding_box_train').glob('*.jpg'))[3]
  victim.write_bytes(victim.read_bytes()[:150])
  return data, victim


def rows(run):
  return [json.loads(line) for line in (run / 'results.jsonl').read_text().splitlines()]


def test_unreadable_image_is_named(damaged, tmp_path):
  data, victim = damaged
  with pytest.raises(ValueError, match=f'{victim.name} is unreadable.*truncated') as caught:
    train(tmp_path / 'run', data)
  assert "Pipeline.on_bad_image to 'skip'" in str(caught.value)


def test_unreadable_image_is_left_out_when_told_to_and_named_in_a_file(damaged, tmp_path, caplog):
  data, victim = damaged
  with caplog.at_level(logging.WARNING, 'tfreid'):
    train(tmp_path / 'run', data, bad='skip', stages=[joint(epochs=1)])
  (told,) = [text for text in caplog.messages if 'unreadable' in text]
  assert told.startswith('Left out: 1 of 64 images') and '63 images with' in told
  stage = json.loads((tmp_path / 'run' / 'joint' / 'stage.json').read_text())
  assert stage['num_images'] == 63
  named = json.loads((tmp_path / 'run' / 'unreadable_images.json').read_text())
  assert named.pop(str(victim)).startswith('the image is truncated or damaged')
  (row,) = rows(tmp_path / 'run')
  assert (row['images'], row['unreadable_images_left_out']) == (40, 0)


def test_the_test_split_shrinks_with_consent_only_and_the_row_says_so(tiny_market, tmp_path):
  data = Path(shutil.copytree(tiny_market, tmp_path / 'market'))
  victim = sorted((data / 'bounding_box_test').glob('0*.jpg'))[-1]
  victim.write_bytes(b'')
  with pytest.raises(ValueError, match=f'1 of the 40 images.*{victim.name}.*skip_also_in_test'):
    train(tmp_path / 'run', data, bad='skip', stages=[joint(epochs=1)])
  assert not (tmp_path / 'run').exists()
  train(tmp_path / 'run', data, bad='skip_also_in_test', stages=[joint(epochs=1)])
  (row,) = rows(tmp_path / 'run')
  assert (row['images'], row['unreadable_images_left_out']) == (39, 1)


def test_fewer_images_than_a_batch_is_one_clear_message(tiny_market, tmp_path):
  with pytest.raises(ValueError, match='64 images, fewer than one batch of 65'):
    train(tmp_path, tiny_market, batch_size=65)


# Killed processes. What runs in them is a recipe from gin/ in test size.

CHILD = """
import os, signal, sys
root, data, directory, strategy, kill_at = sys.argv[1:]
sys.path[:0] = [root, f'{root}/tests/conformance']
from tfreid.cli import configuration
config = configuration.configure(
  ['methods/deep_coral.gin', 'datasets/synthetic.gin', f'{root}/tests/conformance/tiny.gin'],
  [
    f'DATA_ROOT = {data!r}',
    'STAGES = [@joint/stages.Stage()]',
    'joint/stages.Stage.carry = {}',
    'JOINT_EPOCHS = 3',
    f'experiment.train.strategy = {strategy!r}',
    # Plain gradient steps: Adam turns a gradient of rounding errors into a full step.
    'joint_concepts.JointConcepts.image_optimizer = @optimizers.sgd',
    'joint_concepts.JointConcepts.attribute_optimizer = @optimizers.sgd',
    'optimizers.sgd.learning_rate = 0.02',
  ],
  allow_imports=['small_networks'],
)
from tfreid.training import stages

class Kill(stages.Hooks):
  def logged(self, progress):
    if progress.step == int(kill_at):
      os.kill(os.getpid(), signal.SIGKILL)

# On every worker: the hooks of `experiment.train` are the chief's alone.
run = stages.run
stages.run = lambda recipe, setting, hooks: run(recipe, setting, [*hooks, Kill()])
configuration.root('tfreid.experiment.train')(directory, config=config)
"""


def start(data, directory, *, strategy='one_device', kill_at=0, task=None):
  environment = dict(os.environ)
  if task is not None:
    environment['TF_CONFIG'] = json.dumps(task)
  arguments = [str(ROOT), str(data), str(directory), strategy, str(kill_at)]
  return subprocess.Popen(
    [sys.executable, '-c', CHILD, *arguments],
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def cluster(data, directory, **arguments):
  """Two workers on loopback."""
  ports = []
  for _ in range(2):
    with socket.socket() as server:
      server.bind(('127.0.0.1', 0))
      ports.append(server.getsockname()[1])
  workers = [f'127.0.0.1:{port}' for port in ports]
  return [
    start(
      data,
      directory,
      strategy='multi_worker',
      task={'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': index}},
      **arguments,
    )
    for index in range(2)
  ]


def finish(processes):
  """Waits until all are done, as none of them may hang."""
  try:
    outputs = [process.communicate(timeout=300)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, output in zip(processes, outputs):
    assert process.returncode == 0, output[-3000:]


def killed(processes):
  """Waits until one is killed, and kills those that wait for it, as whoever runs a cluster does."""
  try:
    assert processes[0].wait(timeout=300) == -signal.SIGKILL, processes[0].stdout.read()[-3000:]
  finally:
    for process in processes:
      process.kill()
      process.communicate()


@pytest.fixture(scope='module')
def uninterrupted(tiny_market, tmp_path_factory):
  directory = tmp_path_factory.mktemp('uninterrupted')
  finish([start(tiny_market, directory)])
  return network_values(directory / 'joint' / 'final')


@pytest.mark.slow
def test_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_weights(
  uninterrupted, tiny_market, tmp_path
):
  killed([start(tiny_market, tmp_path, kill_at=6)])
  assert (tmp_path / 'joint' / 'ckpt-1').is_dir()
  assert not (tmp_path / 'joint' / 'final.json').exists()
  finish([start(tiny_market, tmp_path)])
  for name, value in network_values(tmp_path / 'joint' / 'final').items():
    np.testing.assert_allclose(value, uninterrupted[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_two_workers_killed_and_started_again_train_what_one_process_trains(
  uninterrupted, tiny_market, tmp_path
):
  killed(cluster(tiny_market, tmp_path, kill_at=6))
  assert (tmp_path / 'joint' / 'ckpt-1').is_dir()
  finish(cluster(tiny_market, tmp_path))
  for name, value in network_values(tmp_path / 'joint' / 'final').items():
    np.testing.assert_allclose(value, uninterrupted[name], rtol=2e-3, atol=2e-4, err_msg=name)
