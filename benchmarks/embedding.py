"""Images per second of bulk embedding with ResNet-50 at 256x128: as trained, folded; and PyTorch.

Each contestant is a process of its own that waits until it is asked, so that all take turns on the
same machine: TensorFlow with oneDNN's operations off and on (TF_ENABLE_ONEDNN_OPTS; which is the
default depends on the processor), and PyTorch's channels_last where there is a Python that has it:

  python benchmarks/embedding.py --torch_python=<environment with torch>/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

# TensorFlow and PyTorch are imported by the processes that need them only.

SIZE = (256, 128)
BATCH = 32
VARIANTS = {
  'tensorflow': ('keras_float32', 'keras_bfloat16', 'folded_float32', 'folded_bfloat16'),
  'torch': ('torch_float32', 'torch_bfloat16'),
}


def _tensorflow_variants(batch: int) -> Iterator[tuple[str, Callable[[], object]]]:
  import tensorflow as tf

  from tfreid.networks import image
  from tfreid.serving.folding import FoldedEncoder

  shape = (*SIZE, 3)
  pixels = tf.random.uniform([batch, *shape], 0, 255, seed=0)
  model = image.image_encoder(shape)

  def traced(function):
    compiled = tf.function(function, input_signature=[tf.TensorSpec([None, *shape])])
    return lambda: compiled(pixels).numpy()

  yield 'keras_float32', traced(lambda images: model(images, training=False))
  for precision in ('float32', 'bfloat16'):
    yield f'folded_{precision}', traced(FoldedEncoder(model, precision=precision))
  tf.keras.mixed_precision.set_global_policy('mixed_bfloat16')
  mixed = image.image_encoder(shape)
  yield 'keras_bfloat16', traced(lambda images: mixed(images, training=False))


def _torch_variants(batch: int) -> Iterator[tuple[str, Callable[[], object]]]:
  import torch
  from torch import nn

  class Bottleneck(nn.Module):
    def __init__(self, channels, width, stride):
      super().__init__()
      self.body = nn.Sequential(
        *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
      )
      self.shortcut = nn.Identity()
      if stride > 1 or channels != 4 * width:
        self.shortcut = nn.Sequential(
          nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
        )

    def forward(self, x):
      return torch.relu(self.body(x) + self.shortcut(x))

  stages, channels = [], 64
  for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
    for i in range(count):
      stages.append(Bottleneck(channels, width, 1 if i else stride))
      channels = 4 * width
  model = nn.Sequential(
    *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
    *(nn.MaxPool2d(3, 2, 1), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    nn.Linear(2048, 128),
  ).eval()
  torch.set_num_threads(_cores())
  for name in ('float32', 'bfloat16'):
    kind = getattr(torch, name)
    pixels = torch.rand(batch, 3, *SIZE).to(kind).contiguous(memory_format=torch.channels_last)
    converted = _copied(model).to(kind).to(memory_format=torch.channels_last)

    def embed(converted=converted, pixels=pixels):
      with torch.inference_mode():
        return converted(pixels)

    yield f'torch_{name}', embed


def _copied(model):
  import copy

  return copy.deepcopy(model)


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _contest(library: str, batch: int) -> None:
  """The process of a contestant: says what it can do, then times what it is asked for."""
  make = {'tensorflow': _tensorflow_variants, 'torch': _torch_variants}[library]
  variants = dict(make(batch))
  for variant in variants.values():
    variant()  # traces and compiles
  # Standard output may carry the libraries' own messages; answers are marked.
  print('READY', flush=True)
  for line in sys.stdin:
    started = time.perf_counter(), time.process_time()
    variants[line.strip()]()
    print(f'TOOK {time.perf_counter() - started[0]} {time.process_time() - started[1]}', flush=True)


class _Contestant:
  """A waiting process; `seconds(variant)` has it embed one batch."""

  def __init__(self, python: str, library: str, batch: int, environment: dict[str, str]):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    self._process = subprocess.Popen(
      [python, os.path.abspath(__file__), f'--contestant={library}', f'--batch={batch}'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
      cwd=root,
      env={**os.environ, 'PYTHONPATH': root, 'TF_CPP_MIN_LOG_LEVEL': '3', **environment},
    )
    self._answer('READY')

  def _answer(self, mark: str) -> list[str]:
    for line in self._process.stdout:
      if line.startswith(mark):
        return line.split()[1:]
    raise RuntimeError(f'A contestant ended with status {self._process.wait()}.')

  def seconds(self, variant: str) -> tuple[float, float]:
    """Seconds of the clock, and of all cores together."""
    self._process.stdin.write(f'{variant}\n')
    self._process.stdin.flush()
    clock, processor = self._answer('TOOK')
    return float(clock), float(processor)

  def stop(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()


def _has_torch(python: str) -> bool:
  done = subprocess.run(
    [python, '-c', 'import torch'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  return done.returncode == 0


def run(
  *, batch: int = BATCH, repeats: int = 5, torch_python: str = sys.executable
) -> dict[str, object]:
  """Throughput of the image encoder in inference.

  Args:
    batch: images at a time.
    repeats: batches of each variant; the median counts.
    torch_python: an interpreter that has PyTorch; it need not have anything else.

  Returns:
    Images per second by variant (and with 'per_core_second' what a second of one core's time
    does, which other programs on the machine disturb less), and ratios.
  """
  contestants = {
    'onednn_off': ('tensorflow', sys.executable, {'TF_ENABLE_ONEDNN_OPTS': '0'}),
    'onednn_on': ('tensorflow', sys.executable, {'TF_ENABLE_ONEDNN_OPTS': '1'}),
  }
  if _has_torch(torch_python):
    contestants['torch'] = ('torch', torch_python, {})
  running: dict[str, _Contestant] = {}
  seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
  try:
    for name, (library, python, environment) in contestants.items():
      running[name] = _Contestant(python, library, batch, environment)
    for _ in range(repeats):
      for name, contestant in running.items():
        for variant in VARIANTS[contestants[name][0]]:
          seconds.setdefault((name, variant), []).append(contestant.seconds(variant))
  finally:
    for contestant in running.values():
      contestant.stop()
  results: dict[str, object] = {}
  rates = {}
  for (name, variant), times in seconds.items():
    clock, processor = (statistics.median(column) for column in zip(*times))
    label = variant if name == 'torch' else f'{variant}_{name}'
    rates[label] = batch / clock
    results[label] = {
      'images_per_second': round(batch / clock, 2),
      'per_core_second': round(batch / processor, 2),
    }
  best = {
    kind: max(rate for label, rate in rates.items() if label.startswith(kind))
    for kind in ('keras', 'folded', 'torch')
    if any(label.startswith(kind) for label in rates)
  }
  ratios = {'folded_to_keras': best['folded'] / best['keras']}
  if 'torch' in best:
    ratios['folded_to_torch'] = best['folded'] / best['torch']
    bfloat16 = max(rate for label, rate in rates.items() if label.startswith('folded_bfloat16'))
    ratios['folded_bfloat16_to_torch_bfloat16'] = bfloat16 / rates['torch_bfloat16']
  results['ratios_of_the_best'] = {name: round(ratio, 2) for name, ratio in ratios.items()}
  return results


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batch', type=int, default=BATCH)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--torch_python', default=sys.executable)
  parser.add_argument('--contestant', help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.contestant:
    _contest(given.contestant, given.batch)
  else:
    measured = run(batch=given.batch, repeats=given.repeats, torch_python=given.torch_python)
    print(json.dumps(measured, indent=2))
