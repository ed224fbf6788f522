"""The one training step, for every method. Floor 4.

The only GradientTape, the only loss scaling and the only division by the number of replicas.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tfreid.methods.method import Method


class NonFiniteLossError(FloatingPointError):
  """A loss became infinite or not a number. The message says where and what to try."""


class Trainer(tf.Module):
  """Steps a method under a distribution strategy.

  All objectives of a step are differentiated from one forward pass and applied together. Strict
  alternation (Eq. 4, "iteratively optimizing") would show the generator a discriminator that has
  already been updated in this step; here it meets the one from before, a difference of one update
  that saves a second pass through the encoder and a second move of its batch norms.

  Attributes:
    method: what is trained.
    step: int64 variable, steps taken so far.
  """

  def __init__(
    self,
    method: Method,
    strategy: tf.distribute.Strategy,
    *,
    seed: int = 0,
    jit_compile: bool = False,
  ):
    """Wraps the optimizers. Must be called under `strategy.scope()`.

    Args:
      method: built under the same scope.
      strategy: whose replicas run the step.
      seed: of everything random inside the method.
      jit_compile: compile with XLA all of a step but the update of the variables.

    Raises:
      ValueError: a trainable variable is in no objective or in two.
    """
    super().__init__(name='trainer')
    check_objectives(method)
    self.method = method
    self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name='step')
    self._strategy = strategy
    self._seed = seed
    scaled = tf.keras.mixed_precision.global_policy().compute_dtype == 'float16'
    self._optimizers = [
      tf.keras.mixed_precision.LossScaleOptimizer(o.optimizer) if scaled else o.optimizer
      for o in method.objectives
    ]
    self._scaled = scaled
    for objective, optimizer in zip(method.objectives, self._optimizers):
      optimizer.build(list(objective.variables))
    self._base_rates = [float(o.optimizer.learning_rate.numpy()) for o in method.objectives]
    self._differentiate = (
      tf.function(self._gradients, jit_compile=True) if jit_compile else self._gradients
    )

  @property
  def optimizers(self) -> list[tf.keras.optimizers.Optimizer]:
    """One per objective, loss scaling included; part of a checkpoint."""
    return list(self._optimizers)

  def set_rate_factor(self, factor: float):
    """Multiplies every objective's base learning rate, at the start of an epoch."""
    for objective, rate in zip(self.method.objectives, self._base_rates):
      objective.optimizer.learning_rate.assign(rate * factor)

  def learning_rates(self) -> dict[str, float]:
    """Current learning rates by 'position/loss' of the objective."""
    return {
      f'{i}_{o.loss}': float(o.optimizer.learning_rate.numpy())
      for i, o in enumerate(self.method.objectives)
    }

  @tf.function(reduce_retracing=True)
  def train_step(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """One step on one (distributed) global batch.

    Args:
      batch: see `tfreid.methods.method.Batches`; per-replica values under the strategy.

    Returns:
      The method's losses and 'gradient_norm/<position>_<loss>' for each objective, each the mean
      over replicas, float32. A gradient norm is that of the replica's own gradient.
    """
    names: list[str] = []

    def step(batch):
      report = self._replica_step(batch)
      names[:] = report
      return tf.stack(list(report.values()))

    # All in one tensor: each one that is reduced is a message from machine to machine.
    means = self._strategy.reduce(
      tf.distribute.ReduceOp.MEAN, self._strategy.run(step, args=(batch,)), axis=None
    )
    self.step.assign_add(1)
    return dict(zip(names, tf.unstack(means, num=len(names))))

  def _replica_step(self, batch):
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
    counter = tf.bitcast(self.step * replicas + replica, tf.int32)  # [2], low word first
    seed = tf.stack([counter[0], tf.constant(self._seed, tf.int32) ^ counter[1]])
    report, gradients = self._differentiate({**batch, 'seed': seed})
    for objective, optimizer, mine in zip(self.method.objectives, self._optimizers, gradients):
      optimizer.apply_gradients(zip(mine, objective.variables))
    return report

  def _gradients(self, batch):
    """The report of a step and, per objective, what its optimizer is to apply.

    That is the gradient of its share of the global mean, weight decay included. All but the update
    is in here, so that XLA can join the small operations on each variable.
    """
    replicas = self._strategy.num_replicas_in_sync
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
      for objective in self.method.objectives:
        tape.watch(list(objective.variables))
      losses = self.method.losses(batch)
      targets = []
      for objective, optimizer in zip(self.method.objectives, self._optimizers):
        if objective.loss not in losses:
          raise ValueError(
            f"{type(self.method).__name__} descends the loss '{objective.loss}', which its "
            f'losses() does not return; it returns {sorted(losses)}.'
          )
        # Every replica returns the mean over its own equal part, and the optimizer adds the
        # replicas' gradients up: dividing here makes the sum the gradient of the global mean.
        target = losses[objective.loss] / replicas
        targets.append(optimizer.get_scaled_loss(target) if self._scaled else target)
    report = {name: tf.cast(value, tf.float32) for name, value in losses.items()}
    gradients = []
    for i, (objective, target) in enumerate(zip(self.method.objectives, targets)):
      found = tape.gradient(target, list(objective.variables))
      lost = [v.name for v, g in zip(objective.variables, found) if g is None]
      if lost:
        raise ValueError(
          f"{type(self.method).__name__}: the loss '{objective.loss}' does not depend on "
          f'{lost[:3]} ({len(lost)} variables) that should descend it.'
        )
      mine = [tf.convert_to_tensor(g) for g in found]
      if self._scaled:
        mine = self._optimizers[i].get_unscaled_gradients(mine)
      # The optimizer sums gradients over replicas; the loss and this norm are means.
      report[f'gradient_norm/{i}_{objective.loss}'] = tf.linalg.global_norm(mine) * replicas
      if objective.l2:
        mine = [g + objective.l2 / replicas * v for g, v in zip(mine, objective.variables)]
      gradients.append(mine)
    del tape
    return report, gradients


def check_objectives(method: Method):
  """Every trainable variable of a method must be in exactly one objective.

  That holds for its `networks` and for whatever else it holds: a network that it forgot to list
  would stay as it was initialised, and nobody would notice.

  Raises:
    ValueError: a variable is in none, or in several, naming it.
  """
  owners: dict[int, list[str]] = {}
  for i, objective in enumerate(method.objectives):
    if not objective.variables:
      raise ValueError(f"Objective {i} ('{objective.loss}') has no variables to move.")
    for variable in objective.variables:
      owners.setdefault(id(variable), []).append(f'{i}_{objective.loss}')
  layers = [m for m in method.submodules if isinstance(m, tf.keras.layers.Layer)]
  held = [(f"network '{name}'", network) for name, network in method.networks.items()]
  held += [(f"'{layer.name}', which is in no network", layer) for layer in layers]
  variables = [(v, where) for where, layer in held for v in layer.trainable_variables]
  # A layer's variable stays "trainable" when its layer is frozen.
  of_layers = {id(v) for layer in layers for v in layer.weights}
  variables += [
    (v, 'the method itself') for v in method.trainable_variables if id(v) not in of_layers
  ]
  for variable, where in variables:
    mine = owners.get(id(variable), [])
    if len(mine) != 1:
      found = 'no objective' if not mine else f'several objectives ({", ".join(mine)})'
      raise ValueError(
        f"{type(method).__name__}: variable '{variable.name}' of {where} is in {found}; each "
        'trainable variable must be moved by exactly one. Freeze a network that nobody moves with '
        '`network.trainable = False`.'
      )
