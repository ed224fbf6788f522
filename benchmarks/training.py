"""Speed of the training step: the whole A2Img step on a ResNet-50, images per second at 256x128."""

from __future__ import annotations

import functools
import json
import statistics
import time

import numpy as np
import tensorflow as tf

from tfreid.methods import alignment, joint_concepts
from tfreid.networks import image
from tfreid.spec import DatasetSpec
from tfreid.training import optimizers
from tfreid.training.trainer import Trainer

IMAGE_SIZE = (256, 128)
BATCH_SIZE = 32
POLICIES = ('float32', 'mixed_bfloat16')


def _step(policy: str, batch_size: int):
  """A function that takes one step, waits for it, and nothing else."""
  tf.keras.mixed_precision.set_global_policy(policy)
  spec = DatasetSpec(
    image_shape=(*IMAGE_SIZE, 3),
    attribute_names=tuple(f'attribute_{i}' for i in range(30)),
    num_semantic_ids=508,
  )
  adam = functools.partial(optimizers.adam, 1e-3)
  strategy = tf.distribute.MirroredStrategy()
  with strategy.scope():
    method = joint_concepts.JointConcepts(
      spec,
      image_encoder=image.image_encoder,
      alignment=functools.partial(
        alignment.Adversarial, optimizer=adam, generator_weight=1e-3, discriminator_weight=0.5
      ),
      image_optimizer=adam,
      attribute_optimizer=adam,
      weight_decay=5e-4,
    )
    trainer = Trainer(method, strategy)
  rng = np.random.default_rng(0)
  batch = {
    'image': tf.constant(rng.uniform(0, 255, (batch_size, *IMAGE_SIZE, 3)), tf.float32),
    'attributes': tf.constant(rng.integers(0, 2, (batch_size, 30)), tf.float32),
    'semantic_id': tf.constant(rng.integers(0, 508, batch_size), tf.int64),
  }
  return lambda: float(trainer.train_step(batch)['concept'])


def run(*, batch_size: int = BATCH_SIZE, repeats: int = 5) -> dict[str, float]:
  """Images per second of the training step, forward, backward and update, by precision.

  The precisions take turns, so that what else the machine does falls on all alike.

  Args:
    batch_size: images per step.
    repeats: measured steps of each, after one that is not measured.

  Returns:
    Medians by name: `<precision>` in images per second, `bfloat16_over_float32` their ratio.
  """
  steps = {policy: _step(policy, batch_size) for policy in POLICIES}
  seconds: dict[str, list[float]] = {policy: [] for policy in POLICIES}
  for repeat in range(repeats + 1):
    for policy, step in steps.items():
      tf.keras.mixed_precision.set_global_policy(policy)
      started = time.perf_counter()
      step()
      if repeat:
        seconds[policy].append(time.perf_counter() - started)
  tf.keras.mixed_precision.set_global_policy('float32')
  rates = {policy: batch_size / statistics.median(times) for policy, times in seconds.items()}
  return {
    **{policy: round(rate, 2) for policy, rate in rates.items()},
    'bfloat16_over_float32': round(rates['mixed_bfloat16'] / rates['float32'], 3),
  }


if __name__ == '__main__':
  print(json.dumps(run(), indent=2))
