from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os

import numpy as np
import pytest
import tensorflow as tf

from tfreid.joint_space import JointSpace
from tfreid.training import optimizers, stages
from tfreid.training.stages import Hooks
from tfreid.training.trainer import NonFiniteLossError


def final_values(directory):
  """What a final checkpoint holds, by key."""
  reader = tf.train.load_checkpoint(os.path.join(directory, 'final'))
  return {
    key: reader.get_tensor(key)
    for key in reader.get_variable_to_shape_map()
    if key != '_CHECKPOINTABLE_OBJECT_GRAPH' and 'save_counter' not in key
  }


def assert_same(one, other):
  ours, theirs = final_values(one), final_values(other)
  assert set(ours) == set(theirs)
  for key, value in ours.items():
    np.testing.assert_allclose(theirs[key], value, rtol=1e-6, atol=1e-7, err_msg=key)


def network(directory, name='image_encoder'):
  """Kernel of a network of the toy method, as its final checkpoint has it."""
  values = final_values(directory)
  (key,) = [key for key in values if f'{name}/' in key and '/kernel/.ATTRIBUTES' in key]
  return values[key]


class PowerCutError(Exception):
  """What ends a process at once."""


class StopAt(Hooks):
  """Interrupts after a step."""

  def __init__(self, step):
    self.step = step

  def logged(self, progress):
    if progress.step == self.step:
      raise PowerCutError


# What a stage writes and tells.


def test_stage_tells_its_hooks_what_happens_in_order(setting, stage, seen):
  stages.run([stage(epochs=2)], setting(), [seen])
  assert seen.told == [
    ('begins', 'joint', 0, 3),
    ('logged', 'joint', 1),
    ('logged', 'joint', 2),
    ('logged', 'joint', 3),
    ('epoch', 'joint', 1),
    ('logged', 'joint', 4),
    ('logged', 'joint', 5),
    ('logged', 'joint', 6),
    ('epoch', 'joint', 2),
    ('ends', 'joint', 2),
  ]


def test_losses_are_read_every_so_many_steps_and_at_the_end_of_an_epoch(setting, stage, seen):
  stages.run([stage(epochs=2)], setting(log_every=2), [seen])
  assert [told[2] for told in seen.told if told[0] == 'logged'] == [2, 3, 5, 6]


def test_finished_stage_leaves_checkpoint_space_and_facts(setting, stage, tmp_path):
  metadata = {'dataset': 'toys', 'method': 'pairs'}
  stages.run([stage()], setting(space_metadata=metadata))
  folder = tmp_path / 'run' / 'joint'
  names = sorted(os.listdir(folder))
  assert names == [
    '.training.lock',
    'final.data-00000-of-00001',
    'final.index',
    'final.json',
    'space',
    'stage.json',
  ]
  facts = json.loads((folder / 'final.json').read_text())
  assert (facts['stage'], facts['method'], facts['epochs'], facts['steps']) == (
    'joint',
    'Pairs',
    3,
    9,
  )
  assert JointSpace.metadata(str(folder / 'space'))['dataset'] == 'toys'
  assert final_values(folder)['method/finished/.ATTRIBUTES/VARIABLE_VALUE'] == 1


def test_stage_learns(setting, stage, seen):
  stages.run([stage(epochs=20)], setting(), [seen])
  assert seen.losses['joint', 60]['distance'] < 0.2 * seen.losses['joint', 1]['distance']


def test_further_spaces_are_saved_beside_the_first(setting, stage, pairs, tmp_path):
  class Twice(pairs):
    def __init__(self, *arguments, **named):
      super().__init__(*arguments, **named)
      self.spaces = {'other': JointSpace(self.image_encoder, self.attribute_encoder)}

  stages.run([dataclasses.replace(stage(), method=Twice)], setting())
  folder = str(tmp_path / 'run' / 'joint')
  assert stages.spaces(folder) == {'': f'{folder}/space', 'other': f'{folder}/space-other'}
  assert JointSpace.metadata(f'{folder}/space-other')['space'] == 'other'


def test_stage_without_attribute_encoder_has_no_space(setting, stage, tmp_path):
  stages.run([stage(with_space=False)], setting())
  folder = str(tmp_path / 'run' / 'joint')
  assert stages.is_finished(folder)
  assert stages.spaces(folder) == {}


def test_stage_of_no_epochs_hands_on_what_it_was_given(setting, stage, tmp_path):
  stages.run(
    [stage('first'), stage('second', epochs=0, carry={'first': ('image_encoder',)})], setting()
  )
  np.testing.assert_array_equal(
    network(tmp_path / 'run' / 'second'), network(tmp_path / 'run' / 'first')
  )


def test_learning_rate_follows_the_schedule(setting, stage):
  rates = []

  class Rates(Hooks):
    def epoch_ends(self, progress):
      rates.append(progress.learning_rates['0_distance'])

  stages.run([stage(schedule=optimizers.milestones(epochs=(2,)))], setting(), [Rates()])
  assert rates == pytest.approx([0.05, 0.05, 0.025])


def test_method_may_put_other_batches_in_the_place_of_images(setting, stage, pairs, tmp_path):
  class Doubled(pairs):
    def prepare(self, batches):
      arrays = {**batches.arrays, 'image': 2.0 * batches.arrays['image']}
      self.prepared = type(batches)(arrays, batch_size=12, seed=batches.seed)
      return self.prepared

    def finish(self, batches):
      assert batches is self.prepared
      super().finish(batches)

  stages.run([dataclasses.replace(stage(), method=Doubled)], setting())
  assert json.loads((tmp_path / 'run/joint/final.json').read_text())['steps'] == 3 * 2


# Starting again.


def test_finished_stage_is_not_run_again(setting, stage, seen, tmp_path):
  stages.run([stage()], setting())
  before = (tmp_path / 'run/joint/final.index').stat().st_mtime_ns
  stages.run([stage()], setting(), [seen])
  assert seen.told == []
  assert (tmp_path / 'run/joint/final.index').stat().st_mtime_ns == before


@pytest.mark.parametrize('step', [4, 5, 6, 8])
def test_resumed_run_equals_uninterrupted_run(step, setting, stage, seen, tmp_path):
  """Stopped in the middle of an epoch and at its end: Adam's moments, noise, order, schedule."""
  recipe = [stage(schedule=optimizers.step_decay(every=1, factor=0.7))]
  stages.run(recipe, setting('whole'))
  with pytest.raises(PowerCutError):
    stages.run(recipe, setting('stopped'), [StopAt(step)])
  stages.run(recipe, setting('stopped'), [seen])
  done = (step - 1) // 3  # the checkpoint follows the epoch's last step
  assert seen.told[0] == ('begins', 'joint', done, 3)
  assert_same(tmp_path / 'whole' / 'joint', tmp_path / 'stopped' / 'joint')


def test_run_stopped_before_its_first_checkpoint_starts_again(setting, stage, tmp_path):
  stages.run([stage()], setting('whole'))
  with pytest.raises(PowerCutError):
    stages.run([stage()], setting('stopped'), [StopAt(2)])
  stages.run([stage()], setting('stopped'))
  assert_same(tmp_path / 'whole' / 'joint', tmp_path / 'stopped' / 'joint')


def test_checkpoints_come_as_often_as_asked(setting, stage, seen):
  with pytest.raises(PowerCutError):
    stages.run([stage(epochs=9)], setting(checkpoint_every=2), [StopAt(17)])
  stages.run([stage(epochs=9)], setting(checkpoint_every=2), [seen])
  assert seen.told[0] == ('begins', 'joint', 4, 3)  # of five finished epochs


def test_stage_killed_while_it_saves_its_space_is_not_taken_for_finished(
  setting, stage, tmp_path, monkeypatch
):
  stages.run([stage()], setting('whole'))

  def interrupted(*_, **__):
    raise PowerCutError

  with monkeypatch.context() as patch:
    patch.setattr(JointSpace, 'save', interrupted)
    with pytest.raises(PowerCutError):
      stages.run([stage()], setting('stopped'))
  assert not stages.is_finished(str(tmp_path / 'stopped' / 'joint'))
  stages.run([stage()], setting('stopped'))
  assert stages.spaces(str(tmp_path / 'stopped' / 'joint'))
  assert_same(tmp_path / 'whole' / 'joint', tmp_path / 'stopped' / 'joint')


def test_resumed_first_stage_leads_to_the_same_second(setting, stage, tmp_path):
  """What a later stage draws does not depend on whether an earlier one ran in the same process."""
  recipe = [stage('first'), stage('second', carry={'first': ('image_encoder',)})]
  stages.run(recipe, setting('whole'))
  stages.run(recipe[:1], setting('parts'))
  stages.run(recipe, setting('parts'))
  assert_same(tmp_path / 'whole' / 'second', tmp_path / 'parts' / 'second')


# Handing over.


def test_carried_network_starts_where_the_other_ended_and_the_rest_afresh(setting, stage, tmp_path):
  class Begin(Hooks):
    def stage_begins(self, progress, steps_per_epoch):
      self.start = {
        name: model.get_weights()[0] for name, model in progress.method.networks.items()
      }
      self.moments = [
        float(tf.norm(v)) for v in progress.trainer.optimizers[0].variables if 'm/' in v.name
      ]

  begin = Begin()
  stages.run(
    [stage('first'), stage('second', carry={'first': ('image_encoder',)})], setting(), [begin]
  )
  first = tmp_path / 'run' / 'first'
  np.testing.assert_array_equal(begin.start['image_encoder'], network(first))
  assert not np.allclose(begin.start['attribute_encoder'], network(first, 'attribute_encoder'))
  assert begin.moments and not any(begin.moments)  # optimizers are never carried


def test_two_runs_share_a_stage_in_a_directory_of_its_own(setting, stage, seen, tmp_path):
  shared = stage('first', directory=str(tmp_path / 'shared'))
  after = stage('second', carry={'first': ('image_encoder',)})
  assert stages.run([shared, after], setting('one')) == {'first', 'second'}
  assert stages.run([shared, after], setting('two'), [seen]) == {'second'}
  assert stages.run([shared, after], setting('two')) == set()
  assert {told[1] for told in seen.told} == {'second'}
  assert_same(tmp_path / 'one' / 'second', tmp_path / 'two' / 'second')


def test_carry_from_a_stage_that_is_not_earlier_is_refused(setting, stage):
  late = stage('second', carry={'frist': ('image_encoder',)})
  with pytest.raises(ValueError, match=r"from 'frist', which is not an earlier .*\['first'\]"):
    stages.run([stage('first', epochs=1), late], setting())
  with pytest.raises(ValueError, match=r"from 'second', which is not an earlier .*none"):
    stages.run([stage('first', carry={'second': ('image_encoder',)}), stage('second')], setting())


def test_misnamed_network_is_refused_and_names_those_there_are(setting, stage):
  late = stage('second', carry={'first': ('image_encodr',)})
  with pytest.raises(
    ValueError, match="carries network 'image_encodr'.*it has: image_encoder, attribute_encoder"
  ):
    stages.run([stage('first', epochs=1), late], setting())


def test_network_that_the_earlier_stage_does_not_have_is_refused(setting, stage, pairs):
  class Judged(pairs):
    def __init__(self, *arguments, **named):
      super().__init__(*arguments, **named)
      self.judge = tf.keras.Sequential([tf.keras.layers.Dense(1)])
      self.judge.build([None, 4])
      self.judge.trainable = False
      self.networks['judge'] = self.judge

  late = dataclasses.replace(stage('second', carry={'first': ('judge',)}), method=Judged)
  with pytest.raises(ValueError, match=r"carries \['judge'\] from 'first'.*does not have them"):
    stages.run([stage('first', epochs=1), late], setting())


def test_network_of_another_size_is_refused(setting, stage):
  late = stage('second', carry={'first': ('image_encoder',)}, size=6)
  with pytest.raises(ValueError, match=r"cannot carry \['image_encoder'\] from 'first'.*shape"):
    stages.run([stage('first', epochs=1), late], setting())


def test_two_stages_of_one_name_are_refused(setting, stage):
  with pytest.raises(ValueError, match="Two stages are called 'joint'"):
    stages.run([stage(), stage()], setting())


# What does not belong.


def test_directory_of_another_data_set_is_refused(setting, stage, spec):
  stages.run([stage(epochs=1)], setting())
  other = spec._replace(num_semantic_ids=9)
  with pytest.raises(
    ValueError, match=r'belongs to another stage or data set.*num_semantic_ids is 4 there and 9'
  ):
    stages.run([stage(epochs=1)], setting(spec=other))


def test_directory_of_another_seed_is_refused(setting, stage):
  stages.run([stage(epochs=1)], setting())
  with pytest.raises(ValueError, match='its seed differ'):
    stages.run([stage(epochs=1)], setting(seed=4))


def test_directory_of_a_stage_of_another_name_is_refused(setting, stage, tmp_path):
  shared = str(tmp_path / 'shared')
  stages.run([stage('one', epochs=1, directory=shared)], setting())
  with pytest.raises(ValueError, match='its stage differ'):
    stages.run([stage('two', epochs=1, directory=shared)], setting())


@pytest.mark.parametrize('changed', ['size', 'optimizer'])
def test_checkpoint_that_does_not_fit_is_refused(changed, setting, stage):
  with pytest.raises(PowerCutError):
    stages.run([stage()], setting(), [StopAt(5)])
  other = {
    'size': {'size': 6},
    'optimizer': {'optimizer': functools.partial(tf.keras.optimizers.SGD, 0.1)},
  }[changed]
  with pytest.raises(ValueError, match="does not fit stage 'joint' as it is configured now"):
    stages.run([stage(**other)], setting())


# Losses that are no numbers.


class Breaking(Hooks):
  """Makes a weight infinite before a step."""

  def __init__(self, step):
    self.step = step

  def logged(self, progress):
    if progress.step == self.step - 1:
      progress.method.image_encoder.weights[0].assign_add(np.full([5, 4], np.inf))


def test_loss_that_is_not_finite_stops_with_step_terms_and_advice(setting, stage):
  with pytest.raises(NonFiniteLossError) as caught:
    stages.run([stage()], setting(), [Breaking(5)])
  message = str(caught.value)
  assert "Stage 'joint': distance is not finite at or shortly before step 5 (epoch 2)" in message
  assert 'All terms: distance = ' in message
  assert 'lower learning rate' in message


def test_run_that_diverged_continues_from_before(setting, stage, seen, tmp_path):
  stages.run([stage()], setting('whole'))
  with pytest.raises(NonFiniteLossError):
    stages.run([stage()], setting('broken'), [Breaking(5)])
  stages.run([stage()], setting('broken'), [seen])
  assert seen.told[0] == ('begins', 'joint', 1, 3)
  assert_same(tmp_path / 'whole' / 'joint', tmp_path / 'broken' / 'joint')


def test_lost_checkpoint_of_a_finished_stage_is_one_clear_message(setting, stage, tmp_path):
  stages.run([stage('first', epochs=1)], setting())
  for path in (tmp_path / 'run' / 'first').glob('final.*-of-*'):
    path.unlink()
  late = stage('second', carry={'first': ('image_encoder',)})
  with pytest.raises(ValueError, match=r"cannot carry \['image_encoder'\] from 'first'"):
    stages.run([stage('first', epochs=1), late], setting())


def test_log_says_what_was_found_and_carried(setting, stage, caplog):
  recipe = [stage('first'), stage('second', carry={'first': ('image_encoder',)})]
  with caplog.at_level(logging.INFO, 'tfreid.training.stages'):
    stages.run(recipe, setting())
    stages.run(recipe[:1], setting())
  said = [record.getMessage() for record in caplog.records]
  assert "Stage 'second' carries image_encoder from 'first'." in said
  assert any("Stage 'first' is already done" in line for line in said)
