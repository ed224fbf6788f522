"""Optimizers and learning-rate schedules as the published recipes mean them. Floor 4."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

Schedule = Callable[[int], float]
"""Epoch, counted from 0, to a factor on every base learning rate of the stage."""

# Where there is a GPU, Keras compiles the update of each variable with XLA by itself: hundreds of
# launches of a compiled program per step, during which a fast GPU waits.
_JIT_COMPILE = False


class FusedAdam(tf.keras.optimizers.Adam):
  """Keras's Adam, each variable's update in one pass over memory.

  Keras writes the update as a dozen operations, each of which reads and writes a tensor of the
  variable's size: for a large network on small crops a good part of a step on a CPU. The kernel
  computes the same formula and keeps the same slots, so a checkpoint of one is one of the other.
  """

  def update_step(self, gradient, variable):
    """Moves one variable; sparse gradients, AMSGrad and other types take Keras's way."""
    if self.amsgrad or isinstance(gradient, tf.IndexedSlices) or variable.dtype != tf.float32:
      super().update_step(gradient, variable)
      return
    slot = self._index_dict[self._var_key(variable)]
    step = tf.cast(self.iterations + 1, tf.float32)
    tf.raw_ops.ResourceApplyAdam(
      var=variable.handle,
      m=self._momentums[slot].handle,
      v=self._velocities[slot].handle,
      beta1_power=tf.pow(self.beta_1, step),
      beta2_power=tf.pow(self.beta_2, step),
      lr=tf.cast(self.learning_rate, tf.float32),
      beta1=self.beta_1,
      beta2=self.beta_2,
      epsilon=self.epsilon,
      grad=gradient,
    )


def adam(
  learning_rate: float,
  *,
  beta_1: float = 0.9,
  beta_2: float = 0.999,
  epsilon: float = 1e-8,
  clip_norm: float | None = None,
) -> tf.keras.optimizers.Optimizer:
  """Adam with PyTorch's epsilon. "Momentum 0.9" of Sec. 4.3 is beta_1."""
  _check_rate('adam', learning_rate, clip_norm)
  return FusedAdam(
    learning_rate,
    beta_1=beta_1,
    beta_2=beta_2,
    epsilon=epsilon,
    global_clipnorm=clip_norm,
    jit_compile=_JIT_COMPILE,
  )


def sgd(
  learning_rate: float,
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  clip_norm: float | None = None,
) -> tf.keras.optimizers.Optimizer:
  """Stochastic gradient descent with momentum."""
  _check_rate('sgd', learning_rate, clip_norm)
  return tf.keras.optimizers.SGD(
    learning_rate,
    momentum=momentum,
    nesterov=nesterov,
    global_clipnorm=clip_norm,
    jit_compile=_JIT_COMPILE,
  )


def _check_rate(name: str, learning_rate: float, clip_norm: float | None):
  """Refuses what would train backwards, not at all, or into NaN."""
  if not 0.0 < learning_rate < math.inf:
    raise ValueError(
      f'optimizers.{name}.learning_rate must be a positive, finite number, not {learning_rate}.'
    )
  if clip_norm is not None and not 0.0 < clip_norm < math.inf:
    raise ValueError(
      f'optimizers.{name}.clip_norm must be a positive, finite number or None, not {clip_norm}.'
    )


def step_decay(*, every: int, factor: float = 0.1, warm_up: int = 0) -> Schedule:
  """The factor falls by `factor` after each `every` epochs; it rises linearly over `warm_up`."""
  if every < 1:
    raise ValueError(f'step_decay.every must be a positive number of epochs, not {every}.')
  return lambda epoch: _warm_up(epoch, warm_up) * factor ** (epoch // every)


def milestones(*, epochs: Sequence[int], factor: float = 0.5, warm_up: int = 0) -> Schedule:
  """The factor falls by `factor` at each of the given epochs."""
  return lambda epoch: _warm_up(epoch, warm_up) * factor ** sum(epoch >= e for e in epochs)


def cosine(*, total: int, floor: float = 0.0, warm_up: int = 0) -> Schedule:
  """The factor falls from 1 to `floor` along half a cosine over `total` epochs."""
  if total < 1:
    raise ValueError(f'cosine.total must be a positive number of epochs, not {total}.')

  def factor(epoch: int) -> float:
    progress = min(epoch / total, 1.0)
    return _warm_up(epoch, warm_up) * (
      floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    )

  return factor


def _warm_up(epoch: int, epochs: int) -> float:
  return min(1.0, (epoch + 1) / (epochs + 1)) if epochs else 1.0
