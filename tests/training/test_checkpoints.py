"""Checkpoints: what is used, what is refused, and whose a folder is."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfreid import storage
from tfreid.training import checkpoints, stages
from tfreid.training.stages import Stage


def values(number):
  return tf.train.Checkpoint(x=tf.Variable([float(number)] * 4))


@pytest.fixture
def written(tmp_path):
  """A folder with the checkpoints after epochs 2 and 10."""
  for number in (1, 2, 10):
    checkpoints.write(values(number), str(tmp_path), number)
  return tmp_path


def found(folder):
  """The value in the newest whole checkpoint."""
  path = checkpoints.newest(str(folder))
  back = values(0)
  checkpoints.read(back, path).assert_consumed()
  return float(back.x[0])


def damage(path, kind):
  content = path.read_bytes()
  if kind == 'remove':
    path.unlink()
  else:
    place = len(content) // 2
    changed = bytes([content[place] ^ 1]) + content[place + 1 :]
    path.write_bytes(content[:place] + (changed if kind == 'flip' else b''))


def test_newest_is_by_number_and_two_are_kept(written):
  assert found(written) == 10
  assert sorted(os.listdir(written)) == ['ckpt-10', 'ckpt-2']


@pytest.mark.parametrize('name', ['weights.index', 'weights.data-00000-of-00001', 'seal.json'])
@pytest.mark.parametrize('kind', ['flip', 'cut', 'remove'])
def test_newest_that_is_whole_is_used_and_the_damaged_one_is_told(name, kind, written, caplog):
  damage(written / 'ckpt-10' / name, kind)
  assert found(written) == 2
  assert 'ckpt-10' in caplog.text
  assert f"Using '{written}/ckpt-2' instead" in caplog.text
  # Trained again up to there, it takes the damaged one's place.
  checkpoints.write(values(11), str(written), 10)
  assert found(written) == 11


def test_training_does_not_begin_anew_where_no_checkpoint_is_whole(written):
  for number in (2, 10):
    damage(written / f'ckpt-{number}' / 'weights.index', 'cut')
  with pytest.raises(ValueError, match='None of the 2 checkpoints in .* is whole.*ckpt-10'):
    checkpoints.newest(str(written))


def test_text_file_of_tensorflow_is_neither_written_nor_read(written):
  (written / 'checkpoint').write_text('model_checkpoint_path: "elsewhere"\n')
  assert found(written) == 10


def test_checkpoints_of_an_earlier_release_are_not_trained_over(tmp_path):
  (tmp_path / 'ckpt-3.index').write_bytes(b'of TensorFlow')
  with pytest.raises(ValueError, match='checkpoints of an earlier version'):
    checkpoints.newest(str(tmp_path))


def test_what_a_killed_process_left_is_removed_and_nothing_else(written):
  for name in ('.ckpt-11abc', '.ckpt-2.old-00ff', '.space-xyz', 'final_temp'):
    (written / name).mkdir()
  (written / 'stage.json.partial-12-ab').touch()
  (written / 'samples').mkdir()
  checkpoints.tidy(str(written))
  assert sorted(os.listdir(written)) == ['ckpt-10', 'ckpt-2', 'samples']


def test_folder_with_characters_of_patterns_is_resumed_and_carried_from(
  setting, stage, seen, tmp_path
):
  """TensorFlow takes such a name for a pattern when it reads."""

  class Stop(stages.Hooks):
    def logged(self, progress):
      if progress.stage.name == 'second' and progress.step == 5:
        raise InterruptedError

  recipe = [stage('first', epochs=1), stage('second', carry={'first': ('image_encoder',)})]
  with pytest.raises(InterruptedError):
    stages.run(recipe, setting('a[1] *?'), [Stop()])
  stages.run(recipe, setting('a[1] *?'), [seen])
  assert seen.told[0] == ('begins', 'second', 1, 3)
  assert not list(tmp_path.glob('**/ckpt-*'))


def test_mistyped_setting_does_not_claim_a_folder(setting, stage, spec, tmp_path):
  class Stop(stages.Hooks):
    def stage_begins(self, progress, steps_per_epoch):
      raise InterruptedError

  with pytest.raises(InterruptedError):
    stages.run([stage(epochs=1)], setting(spec=spec._replace(num_semantic_ids=9)), [Stop()])
  stages.run([stage(epochs=1)], setting())
  assert json.loads((tmp_path / 'run/joint/stage.json').read_text())['num_semantic_ids'] == 4


@pytest.mark.parametrize('name', ['final.json', 'stage.json'])
@pytest.mark.parametrize('kind', ['flip', 'cut'])
def test_damaged_record_of_a_stage_is_refused(name, kind, setting, stage, tmp_path):
  stages.run([stage(epochs=1)], setting())
  damage(tmp_path / 'run' / 'joint' / name, kind)
  with pytest.raises(ValueError, match=f"'.*{name}' is damaged"):
    stages.run([stage(epochs=1)], setting())


@pytest.mark.parametrize('kind', ['flip', 'cut', 'remove'])
def test_damaged_final_checkpoint_is_not_carried(kind, setting, stage, tmp_path):
  recipe = [stage('first', epochs=1), stage('second', carry={'first': ('image_encoder',)})]
  stages.run(recipe[:1], setting())
  damage(tmp_path / 'run' / 'first' / 'final.data-00000-of-00001', kind)
  with pytest.raises(ValueError, match=r"cannot carry .* from 'first'.*final.data"):
    stages.run(recipe, setting())


def test_finished_stage_of_an_earlier_release_is_carried_from(setting, stage, tmp_path):
  recipe = [stage('first', epochs=1), stage('second', carry={'first': ('image_encoder',)})]
  stages.run(recipe[:1], setting())
  for name in ('final.json', 'stage.json'):
    path = tmp_path / 'run' / 'first' / name
    content = json.loads(path.read_text())
    kept = {key: v for key, v in content.items() if key not in ('format', 'checksum', 'files')}
    path.write_text(json.dumps(kept))
  stages.run(recipe, setting())
  assert stages.facts(str(tmp_path / 'run' / 'second'))['epochs'] == 3


def test_lost_final_record_does_not_begin_the_training_anew(setting, stage, tmp_path):
  stages.run([stage(epochs=3)], setting())
  (tmp_path / 'run' / 'joint' / 'final.json').unlink()
  with pytest.raises(ValueError, match=r"final.json' is missing"):
    stages.run([stage(epochs=3)], setting())


def test_second_training_in_one_folder_is_refused_with_a_sentence(setting, stage, tmp_path):
  """Of another process: locks of one process do not shut each other out everywhere."""
  folder = tmp_path / 'run' / 'joint'
  folder.mkdir(parents=True)
  code = (
    'import sys; from tfreid.training import stages\n'
    'with stages.alone(sys.argv[1]):\n  print("held", flush=True); sys.stdin.read()\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code, str(folder)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(BlockingIOError, match='Another process is training in .*joint'):
      stages.run([stage(epochs=1)], setting())
  finally:
    process.communicate()
  stages.run([stage(epochs=1)], setting())


@pytest.mark.parametrize('epochs', [-1, 1.5, '2', None, True])
def test_epochs_are_a_whole_number(epochs):
  with pytest.raises(ValueError, match=r"Stage 'joint': epochs .* whole number, 0 or more, not"):
    Stage('joint', None, epochs)
  assert Stage('joint', None, np.int64(2)).epochs == 2


@pytest.mark.parametrize('saving', ['checkpoint', 'final'])
def test_full_disk_is_a_sentence_and_what_was_there_stays(saving, written, monkeypatch):
  """TensorFlow's own writing fails as it does on a full disk: with an error of an operation."""
  if not os.path.exists('/dev/full'):
    pytest.skip('there is no /dev/full here')

  class Full:
    def write(self, prefix):
      tf.io.write_file('/dev/full', b'x' * 100000)

  with pytest.raises(OSError, match='could not be written .*Is the disk full'):
    if saving == 'checkpoint':
      checkpoints.write(Full(), str(written), 12)
    else:
      checkpoints.write_final(Full(), str(written))
  assert found(written) == 10
  assert sorted(os.listdir(written)) == ['ckpt-10', 'ckpt-2']


def test_log_is_silent_where_all_is_whole(written, caplog):
  with caplog.at_level(logging.WARNING):
    found(written)
  assert not caplog.records
  assert storage.damage(written / 'ckpt-10') == []
