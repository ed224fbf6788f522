"""How much memory a stage's training will take, told before it takes it. Floor 4."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from tfreid.training.stages import Progress


def estimated_bytes(progress: Progress) -> int:
  """About how many bytes the weights, optimizers, gradients and activations of a stage take.

  The first three are exact; of activations each layer's output is counted once, which is kept for
  the backward pass. TensorFlow itself, the input pipeline and what a library sets aside for a
  moment come on top. Of all replicas together.

  Args:
    progress: of a stage that begins.
  """
  method, trainer = progress.method, progress.trainer
  held = [*method.variables, *(v for o in trainer.optimizers for v in o.variables)]
  total = sum(_size(v.shape) * v.dtype.size for v in {id(v): v for v in held}.values())
  moved = {id(v): v for o in method.objectives for v in o.variables}
  total += sum(_size(v.shape) * v.dtype.size for v in moved.values())
  for network in method.networks.values():
    total += progress.batch_size * sum(_outputs(network))
  return int(total)


def _outputs(network: tf.keras.Model) -> Iterable[int]:
  """Bytes of each layer's output, for one image."""
  for layer in network.layers:
    if isinstance(layer, tf.keras.Model):
      yield from _outputs(layer)
      continue
    try:
      shapes = tf.nest.flatten(tf.nest.map_structure(lambda t: t.shape, layer.output))
    except (AttributeError, RuntimeError):  # a layer without a single output
      continue
    kind = tf.as_dtype(layer.compute_dtype or 'float32')
    for shape in shapes:
      yield _size(shape[1:]) * kind.size


def _size(shape: Iterable[int | None]) -> int:
  """Number of elements; what is not known counts as one."""
  return int(np.prod([size or 1 for size in shape], dtype=np.int64))
