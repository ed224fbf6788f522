"""The interface of every system: what differs between them. Floor 3.

A method says who descends which scalar with which optimizer. It never differentiates, scales or
divides: that is the trainer's one step.
"""

from __future__ import annotations

import abc
import types
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from tfreid.joint_space import JointSpace

OptimizerBuilder = Callable[[], tf.keras.optimizers.Optimizer]


class Objective(NamedTuple):
  """A loss, the variables that descend it, and the optimizer that moves them.

  Attributes:
    loss: a key of what `Method.losses` returns.
    variables: every trainable variable of a method is in exactly one objective.
    optimizer: not wrapped for loss scaling; the trainer does that.
    l2: coupled weight decay as in PyTorch's Adam: l2 * variable is added to the gradient before
      the optimizer sees it. (Keras' `weight_decay` is decoupled, a different thing.)
  """

  loss: str
  variables: Sequence[tf.Variable]
  optimizer: tf.keras.optimizers.Optimizer
  l2: float = 0.0


class Batches(Protocol):
  """Where batches come from: what `prepare` takes and gives back.

  A batch is a dict: 'image' float32 [B, H, W, 3] in 0 ... 255 (or whatever `prepare` put in its
  place), 'attributes' float32 [B, A], 'semantic_id' int64 [B].
  """

  batch_size: int
  """Of the global batch."""

  seed: int
  """Of the run; what a new Batches should shuffle by."""

  def training(self, epoch: int) -> tf.data.Dataset:
    """One epoch: shuffled and augmented by (seed, epoch) alone; a last partial batch is dropped."""

  def evaluation(self) -> tf.data.Dataset:
    """The same images once, in order, as they are; the last batch may be partial."""


class Method(tf.Module, abc.ABC):
  """One system: its networks, its objectives, its losses and the joint space it ends in.

  Built under the strategy's scope as `method(spec)`. Everything that must survive a restart is a
  variable reachable from the method; randomness comes from batch['seed'] only.

  Attributes:
    networks: all that a later stage may carry over, by name.
    objectives: who descends what.
    space: the encoders, or None while there is no attribute encoder yet.
    spaces: other joint spaces of the same trained networks by name, where a method can be read in
      several ways. They are saved and evaluated beside `space`.
  """

  networks: Mapping[str, tf.keras.Model]
  objectives: Sequence[Objective]
  space: JointSpace | None = None
  spaces: Mapping[str, JointSpace] = types.MappingProxyType({})

  def prepare(self, batches: Batches) -> Batches:
    """Called once before the first epoch, after networks were carried or restored.

    For example: images to frozen features. Must do the same at every restart.
    """
    return batches

  @abc.abstractmethod
  def losses(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The scalars of one batch; every objective's loss and whatever else is worth logging.

    Called inside a replica, in training mode, once per step, so that batch norm moves once and
    every objective sees the same concepts.

    Args:
      batch: see `Batches`, and 'seed' int32 [2], a stateless seed that is new for every step and
        replica.

    Returns:
      float32 scalars, each the mean over this *replica's* batch. A set loss gathers the global
      batch first (`tfreid.replicas.gather`) and is the same on every replica.
    """

  def finish(self, batches: Batches):
    """Called once after the last epoch with the prepared batches, e.g. for a closing linear CCA."""

  def pictures(self) -> dict[str, np.ndarray]:
    """What the method has learnt, to look at: name -> uint8 [N, H, W, 3], RGB.

    Asked for now and then during training, after `prepare`. Empty for most methods.
    """
    return {}
