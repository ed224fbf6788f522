"""Speed of the training step: the whole A2Img step, images per second.

In each precision and, with --xla, also compiled with XLA. Where there is a Python that has PyTorch,
a step of its own takes turns with ours, on the same encoder: channels_last, automatic mixed
precision, fused Adam, cross-entropy over as many classes, and with --torch_compile (or --xla) also
through torch.compile, which needs a C++ compiler. It has no attribute encoder and no discriminator,
whose share of ours is small, so the comparison is kind to it.

  python benchmarks/training.py --batch_size=128 --policies=float32,mixed_float16 --xla \
    --torch_python=<environment with torch>/bin/python
  python benchmarks/training.py --encoder=osnet_x0_25 --image_size=128x64 --cores=1

With --before=<a checkout of another commit> its step takes turns as well.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

import _encoders
import _interleaved

# TensorFlow and PyTorch are imported by the processes that need them only.

IMAGE_SIZE = (256, 128)
BATCH_SIZE = 32
NUM_CLASSES = 508
POLICIES = ('float32', 'mixed_bfloat16')
# Steps until the loss scale of float16 and XLA's compilation have settled.
_WARM_UP = 3


def _tensorflow_step(
  policy: str, *, encoder: str, compiled: bool, batch_size: int, image_size: tuple[int, int]
) -> Callable[[], float]:
  """A function that takes one step, waits for it, and nothing else."""
  import numpy as np
  import tensorflow as tf

  from tfreid.methods import alignment, joint_concepts
  from tfreid.spec import DatasetSpec
  from tfreid.training import optimizers
  from tfreid.training.trainer import Trainer

  tf.keras.mixed_precision.set_global_policy(policy)
  spec = DatasetSpec(
    image_shape=(*image_size, 3),
    attribute_names=tuple(f'attribute_{i}' for i in range(30)),
    num_semantic_ids=NUM_CLASSES,
  )
  adam = functools.partial(optimizers.adam, 1e-3)
  strategy = tf.distribute.MirroredStrategy()
  with strategy.scope():
    method = joint_concepts.JointConcepts(
      spec,
      image_encoder=_encoders.tensorflow(encoder),
      alignment=functools.partial(
        alignment.Adversarial, optimizer=adam, generator_weight=1e-3, discriminator_weight=0.5
      ),
      image_optimizer=adam,
      attribute_optimizer=adam,
      weight_decay=5e-4,
    )
    trainer = Trainer(method, strategy, jit_compile=compiled)
  rng = np.random.default_rng(0)
  pixels = rng.uniform(0, 255, (batch_size, *image_size, 3)).astype(np.float32)
  batch = {
    'image': tf.constant(pixels),
    'attributes': tf.constant(rng.integers(0, 2, (batch_size, 30)), tf.float32),
    'semantic_id': tf.constant(rng.integers(0, NUM_CLASSES, batch_size), tf.int64),
  }

  def step():
    tf.keras.mixed_precision.set_global_policy(policy)  # tracing reads it
    return float(trainer.train_step(batch)['concept'])

  return step


def _torch_step(
  policy: str, *, encoder: str, compiled: bool, batch_size: int, image_size: tuple[int, int]
) -> Callable[[], float]:
  """The same of PyTorch: policies by their Keras names."""
  import _torch_resnet
  import torch

  torch.set_num_threads(_interleaved.cores())
  device = _torch_resnet.device()
  reduced = {'mixed_float16': torch.float16, 'mixed_bfloat16': torch.bfloat16}.get(policy)
  network = torch.nn.Sequential(_encoders.torch(encoder), torch.nn.Linear(128, NUM_CLASSES))
  network = network.to(device, memory_format=torch.channels_last).train()
  adam = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=5e-4, fused=True)
  scaler = torch.amp.GradScaler(device.type, enabled=policy == 'mixed_float16')
  forward = torch.compile(network) if compiled else network
  pixels = torch.rand(batch_size, 3, *image_size, device=device)
  pixels = pixels.contiguous(memory_format=torch.channels_last)
  labels = torch.randint(NUM_CLASSES, (batch_size,), device=device)

  def step():
    adam.zero_grad(set_to_none=True)
    with torch.autocast(device.type, dtype=reduced, enabled=reduced is not None):
      loss = torch.nn.functional.cross_entropy(forward(pixels), labels)
    scaler.scale(loss).backward()
    scaler.step(adam)
    scaler.update()
    return loss.item()

  return step


def _names(library: str, policies: Sequence[str], *, compiled: bool) -> Iterator[tuple]:
  """Name, policy and whether it is compiled, of each variant."""
  prefix, suffix = ('torch_', '_compiled') if library == 'torch' else ('', '_xla')
  for policy in policies:
    yield prefix + policy, policy, False
    if compiled:
      yield prefix + policy + suffix, policy, True


def run(
  *,
  encoder: str = 'resnet50',
  batch_size: int = BATCH_SIZE,
  image_size: tuple[int, int] = IMAGE_SIZE,
  repeats: int = 5,
  policies: Sequence[str] = POLICIES,
  xla: bool = False,
  torch_compile: bool = False,
  torch_python: str = sys.executable,
  before: str = '',
) -> dict[str, float]:
  """Images per second of the training step, forward, backward and update, by precision.

  The variants take turns, so that what else the machine does falls on all alike.

  Args:
    encoder: see `_encoders`.
    batch_size: images per step.
    image_size: height and width in pixels.
    repeats: measured steps of each.
    policies: of Keras's precision: float32, mixed_float16, mixed_bfloat16.
    xla: measure each also compiled, by XLA and by torch.compile.
    torch_compile: measure PyTorch's also compiled. A step of a deep network takes XLA minutes to
      compile on processors, so that they are told apart.
    torch_python: an interpreter that has PyTorch; it need not have anything else.
    before: a checkout of this project, such as of the commit before; its step takes turns too.

  Returns:
    Medians in images per second: `<precision>`, `before_<precision>`, `<precision>_xla`,
    `torch_<precision>` and `torch_<precision>_compiled`; and ratios of the medians:
    `bfloat16_over_float32` and `float16_over_float32`, `<precision>_over_before`,
    `<precision>_over_torch`, the best of ours over PyTorch's best, and `best_over_torch`, which
    leaves the precision to each.
  """
  contestants = {'tensorflow': (sys.executable, __file__, {})}
  compiled = {'tensorflow': xla, 'before': xla, 'torch': xla or torch_compile}
  if before:
    root = os.path.abspath(before)
    script = os.path.join(root, 'benchmarks', os.path.basename(__file__))
    contestants['before'] = (sys.executable, script, {'PYTHONPATH': root})
  if _encoders.has_torch_rival(encoder) and _interleaved.has_torch(torch_python):
    contestants['torch'] = (torch_python, __file__, {})
  options = [
    f'--encoder={encoder}',
    f'--batch_size={batch_size}',
    f'--image_size={image_size[0]}x{image_size[1]}',
    f'--policies={",".join(policies)}',
    *['--xla'] * xla,
    *['--torch_compile'] * torch_compile,
  ]
  running: dict[str, _interleaved.Contestant] = {}
  seconds: dict[str, list[float]] = {}
  try:
    for library, (python, script, environment) in contestants.items():
      role = 'tensorflow' if library == 'before' else library
      running[library] = _interleaved.Contestant(
        python,
        script,
        [f'--contestant={role}', *options],
        {'TF_FORCE_GPU_ALLOW_GROWTH': 'true', 'CUDA_MODULE_LOADING': 'LAZY', **environment},
      )
    for _ in range(repeats):
      for library, contestant in running.items():
        prefix = 'before_' * (library == 'before')
        for variant, *_ in _names(library, policies, compiled=compiled[library]):
          seconds.setdefault(prefix + variant, []).append(contestant.seconds(variant)[0])
  finally:
    for contestant in running.values():
      contestant.stop()
  rates = {variant: batch_size / statistics.median(times) for variant, times in seconds.items()}
  ratios = {}
  for policy in policies:
    best = max(rates[name] for name in (policy, f'{policy}_xla') if name in rates)
    if policy != 'float32' and 'float32' in rates:
      ratios[f'{policy.removeprefix("mixed_")}_over_float32'] = rates[policy] / rates['float32']
    if f'before_{policy}' in rates:
      ratios[f'{policy}_over_before'] = rates[policy] / rates[f'before_{policy}']
    torch = [rates[name] for name in rates if name.startswith(f'torch_{policy}')]
    if torch:
      ratios[f'{policy}_over_torch'] = best / max(torch)
  rivals = [rate for name, rate in rates.items() if name.startswith('torch_')]
  if rivals:
    ours = max(rate for name, rate in rates.items() if not name.startswith(('torch_', 'before_')))
    ratios['best_over_torch'] = ours / max(rivals)
  return {
    **{variant: round(rate, 2) for variant, rate in rates.items()},
    **{name: round(ratio, 3) for name, ratio in ratios.items()},
  }


def _size(text: str) -> tuple[int, int]:
  height, width = text.split('x')
  return int(height), int(width)


def _main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--encoder', default='resnet50', help=_encoders.__doc__)
  parser.add_argument('--batch_size', type=int, default=BATCH_SIZE)
  parser.add_argument('--image_size', type=_size, default=IMAGE_SIZE, help='for example 128x64')
  parser.add_argument('--cores', type=int, help='how many may be used; all if not given')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--policies', default=','.join(POLICIES))
  parser.add_argument('--xla', action='store_true', help='each also compiled')
  parser.add_argument('--torch_compile', action='store_true', help="PyTorch's also compiled")
  parser.add_argument('--torch_python', default=sys.executable)
  parser.add_argument('--before', default='', help='a checkout to take turns with')
  parser.add_argument('--contestant', help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.cores:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
  policies = given.policies.split(',')
  if given.contestant:
    make = _torch_step if given.contestant == 'torch' else _tensorflow_step
    compile_too = given.xla or (given.contestant == 'torch' and given.torch_compile)
    steps = {
      name: make(
        policy,
        encoder=given.encoder,
        compiled=compiled,
        batch_size=given.batch_size,
        image_size=given.image_size,
      )
      for name, policy, compiled in _names(given.contestant, policies, compiled=compile_too)
    }
    _interleaved.serve(steps, warm_up=_WARM_UP)
    return
  measured = run(
    encoder=given.encoder,
    batch_size=given.batch_size,
    image_size=given.image_size,
    repeats=given.repeats,
    policies=policies,
    xla=given.xla,
    torch_compile=given.torch_compile,
    torch_python=given.torch_python,
    before=given.before,
  )
  print(json.dumps(measured, indent=2))


if __name__ == '__main__':
  _main()
