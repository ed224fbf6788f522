from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from tfreid.methods.method import Method, Objective
from tfreid.training.trainer import Trainer

SGD = functools.partial(tf.keras.optimizers.SGD, 0.1)
ONE = ('CPU:0',)


class Formula(Method):
  """Variables named in the formula, each with an objective of its own."""

  def __init__(self, start, formula, *, l2=0.0, optimizer=SGD):
    super().__init__()
    self.values = {name: tf.Variable(value, name=name) for name, value in start.items()}
    self.formula = formula
    self.networks = {}
    self.objectives = [
      Objective(f'of_{name}', [variable], optimizer(), l2) for name, variable in self.values.items()
    ]

  def losses(self, batch):
    return self.formula(batch, **self.values)

  def now(self):
    return {name: variable.numpy() for name, variable in self.values.items()}


def built(method, *, devices=ONE, **arguments):
  """The method, built under a strategy, its trainer, and a step on an array of examples."""
  strategy = tf.distribute.MirroredStrategy(
    list(devices), cross_device_ops=tf.distribute.ReductionToOneDevice()
  )
  with strategy.scope():
    made = method()
    trainer = Trainer(made, strategy, **arguments)

  def step(examples):
    size = len(examples) // len(devices)
    batch = strategy.experimental_distribute_values_from_function(
      lambda context: {'x': tf.constant(examples[context.replica_id_in_sync_group * size :][:size])}
    )
    return {name: float(value) for name, value in trainer.train_step(batch).items()}

  return made, trainer, step


def regression(l2=0.0):
  """Mean squared error of w x against 3 x: gradient 2 (w - 3) mean x^2."""
  return lambda: Formula(
    {'w': 1.0},
    lambda batch, w: {'of_w': tf.reduce_mean(tf.square((w - 3.0) * batch['x']))},
    l2=l2,
  )


EXAMPLES = np.float32([1.0, -2.0, 0.5, 4.0])


@pytest.mark.parametrize('replicas', [1, 2])
def test_step_is_the_one_computed_by_hand(replicas, two_devices):
  """Weight decay is coupled: 0.5 w is added to the gradient. w = 1, lr = 0.1."""
  method, trainer, step = built(regression(l2=0.5), devices=two_devices[:replicas])
  report = step(EXAMPLES)
  mean_square = np.mean(EXAMPLES**2)
  gradient = 2.0 * (1.0 - 3.0) * mean_square
  assert method.now()['w'] == pytest.approx(1.0 - 0.1 * (gradient + 0.5 * 1.0), rel=1e-5)
  assert report['of_w'] == pytest.approx(4.0 * mean_square, rel=1e-5)
  assert trainer.step.numpy() == 1


def test_gradient_norm_is_that_of_the_loss_alone(two_devices):
  _, _, step = built(regression(l2=0.5))
  assert step(EXAMPLES)['gradient_norm/0_of_w'] == pytest.approx(4.0 * np.mean(EXAMPLES**2))
  _, _, step = built(regression(l2=0.5), devices=two_devices)
  halves = [4.0 * np.mean(EXAMPLES[:2] ** 2), 4.0 * np.mean(EXAMPLES[2:] ** 2)]
  assert step(EXAMPLES)['gradient_norm/0_of_w'] == pytest.approx(np.mean(halves))


def test_objectives_are_differentiated_from_one_forward_pass():
  """Each sees the other as it was before the step: a' = a - lr b, b' = b + lr a."""
  method, _, step = built(
    lambda: Formula({'a': 2.0, 'b': 5.0}, lambda batch, a, b: {'of_a': a * b, 'of_b': -a * b})
  )
  step(EXAMPLES)
  assert method.now() == pytest.approx({'a': 2.0 - 0.1 * 5.0, 'b': 5.0 + 0.1 * 2.0})


def test_variable_moves_by_its_own_objective_only():
  method, _, step = built(
    lambda: Formula(
      {'a': 2.0, 'b': 5.0},
      lambda batch, a, b: {'of_a': a + 100.0 * b, 'of_b': b + 100.0 * a},
    )
  )
  step(EXAMPLES)
  assert method.now() == pytest.approx({'a': 2.0 - 0.1, 'b': 5.0 - 0.1})


def test_report_holds_every_term_also_one_that_nobody_descends():
  _, _, step = built(
    lambda: Formula(
      {'w': 1.0},
      lambda batch, w: {'of_w': w, 'watched': tf.reduce_mean(tf.cast(batch['x'], tf.float64))},
    )
  )
  report = step(EXAMPLES)
  assert set(report) == {'of_w', 'watched', 'gradient_norm/0_of_w'}
  assert report['watched'] == pytest.approx(EXAMPLES.mean())


def drawn(batch, w):
  """The seed of a replica: mean, and spread over replicas."""
  first, second = (tf.cast(part, tf.float32) for part in tf.unstack(batch['seed']))
  return {'of_w': w, 'first': first, 'first_squared': first**2, 'second': second}


def test_seed_is_new_for_every_step_and_replica_and_the_same_when_repeated(two_devices):
  def seeds(devices, seed, steps=3):
    _, _, step = built(lambda: Formula({'w': 1.0}, drawn), devices=devices, seed=seed)
    return [step(EXAMPLES) for _ in range(steps)]

  once = seeds(ONE, seed=7)
  assert len({report['first'] for report in once}) == 3
  assert once == seeds(ONE, seed=7)
  other = seeds(ONE, seed=8)
  assert all(a['second'] != b['second'] for a, b in zip(once, other))
  for report in seeds(two_devices, seed=7):
    assert report['first_squared'] > report['first'] ** 2  # the replicas' seeds differ


def test_seed_goes_on_where_a_restored_run_stopped():
  _, trainer, step = built(lambda: Formula({'w': 1.0}, drawn), seed=7)
  whole = [step(EXAMPLES)['first'] for _ in range(3)]
  _, trainer, step = built(lambda: Formula({'w': 1.0}, drawn), seed=7)
  trainer.step.assign(2)
  assert step(EXAMPLES)['first'] == whole[2]


def test_rate_factor_multiplies_the_rate_each_optimizer_was_made_with():
  method, trainer, step = built(
    lambda: Formula({'a': 0.0, 'b': 0.0}, lambda batch, a, b: {'of_a': a, 'of_b': b})
  )
  method.objectives[1].optimizer.learning_rate.assign(0.1)
  trainer.set_rate_factor(0.5)
  trainer.set_rate_factor(0.2)  # of the base, not of the latest
  assert trainer.learning_rates() == pytest.approx({'0_of_a': 0.02, '1_of_b': 0.02})
  step(EXAMPLES)
  assert method.now()['a'] == pytest.approx(-0.02)


def test_loss_scale_leaves_no_trace_in_the_update():
  full, _, step = built(regression(l2=0.5))
  expected_report = step(EXAMPLES)
  tf.keras.mixed_precision.set_global_policy('mixed_float16')
  half, trainer, step = built(regression(l2=0.5))
  assert float(trainer.optimizers[0].loss_scale) > 1.0
  report = step(EXAMPLES)
  assert half.now()['w'] == pytest.approx(full.now()['w'], rel=1e-6)
  assert report == pytest.approx(expected_report, rel=1e-6)


def test_overflow_under_float16_skips_the_step_and_lowers_the_scale():
  tf.keras.mixed_precision.set_global_policy('mixed_float16')

  def overflowing(batch, w):
    return {'of_w': tf.cast(tf.cast(w, tf.float16) * tf.constant(6e4, tf.float16), tf.float32)}

  method, trainer, step = built(lambda: Formula({'w': 1.0}, overflowing))
  before = float(trainer.optimizers[0].loss_scale)
  report = step(EXAMPLES)
  assert np.isfinite(report['of_w'])
  assert not np.isfinite(report['gradient_norm/0_of_w'])
  assert method.now()['w'] == 1.0
  assert float(trainer.optimizers[0].loss_scale) < before


def test_bfloat16_needs_no_loss_scale():
  tf.keras.mixed_precision.set_global_policy('mixed_bfloat16')
  _, trainer, _ = built(regression())
  assert not hasattr(trainer.optimizers[0], 'loss_scale')


@pytest.mark.slow
@pytest.mark.parametrize('policy', ['float32', 'mixed_float16'])
def test_compiled_step_is_the_same(policy):
  tf.keras.mixed_precision.set_global_policy(policy)
  plain, _, step = built(regression(l2=0.5))
  expected = [step(EXAMPLES), step(EXAMPLES)]
  compiled, _, step = built(regression(l2=0.5), jit_compile=True)
  assert [step(EXAMPLES), step(EXAMPLES)] == [pytest.approx(r, rel=1e-5) for r in expected]
  assert compiled.now() == pytest.approx(plain.now(), rel=1e-5)


def test_objective_of_nothing_is_refused():
  class Empty(Formula):
    def __init__(self):
      super().__init__({'w': 1.0}, lambda batch, w: {'of_w': w})
      self.objectives.append(Objective('nothing', [], SGD()))

  with pytest.raises(ValueError, match=r"Objective 1 \('nothing'\) has no variables to move"):
    built(Empty)
