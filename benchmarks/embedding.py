"""Images per second of bulk embedding at 256x128: as trained, folded, by OpenVINO; and PyTorch.

Each contestant is a process of its own that waits until it is asked, so that all take turns on the
same machine: TensorFlow with oneDNN's operations off and on (TF_ENABLE_ONEDNN_OPTS; which is the
default depends on the processor), and PyTorch's channels_last where there is a Python that has it,
with --torch_compile also through torch.compile, which needs a C++ compiler:

  python benchmarks/embedding.py --torch_python=<environment with torch>/bin/python
  python benchmarks/embedding.py --encoder=osnet_x0_25 --torch_python=…

How far bfloat16 and OpenVINO are from TensorFlow's float32, with real weights and photographs:

  python benchmarks/embedding.py --encoder=osnet_x0_25 --weights=osnet_x0_25.onnx --crops=cuhk01/
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

import _encoders
import _interleaved

# TensorFlow and PyTorch are imported by the processes that need them only.

SIZE = (256, 128)
BATCH = 32
VARIANTS = {
  'tensorflow': ('keras_float32', 'keras_bfloat16', 'folded_float32', 'folded_bfloat16'),
  'openvino': ('openvino_float32', 'openvino_bfloat16'),
  'torch': ('torch_float32', 'torch_bfloat16'),
  'torch_compiled': ('torch_float32_compiled', 'torch_bfloat16_compiled'),
}
# As the tools that embed and never train set them (tfreid/cli/startup.py); and a GPU is shared.
_ENVIRONMENT = {'TF_ONEDNN_ASSUME_FROZEN_WEIGHTS': '1', 'TF_FORCE_GPU_ALLOW_GROWTH': 'true'}


def _tensorflow_variants(encoder: str, batch: int) -> Iterator[tuple[str, Callable[[], object]]]:
  import tensorflow as tf

  from tfreid.serving.folding import FoldedEncoder

  shape = (*SIZE, 3)
  pixels = tf.random.uniform([batch, *shape], 0, 255, seed=0)
  build = _encoders.tensorflow(encoder)
  model = build(shape)

  def traced(function):
    compiled = tf.function(function, input_signature=[tf.TensorSpec([None, *shape])])
    return lambda: compiled(pixels).numpy()

  yield 'keras_float32', traced(lambda images: model(images, training=False))
  for precision in ('float32', 'bfloat16'):
    yield f'folded_{precision}', traced(FoldedEncoder(model, precision=precision))
  tf.keras.mixed_precision.set_global_policy('mixed_bfloat16')
  mixed = build(shape)
  yield 'keras_bfloat16', traced(lambda images: mixed(images, training=False))


def _openvino_variants(encoder: str, batch: int) -> Iterator[tuple[str, Callable[[], object]]]:
  import numpy as np

  from tfreid.serving.folding import FoldedEncoder
  from tfreid.serving.openvino_encoder import OpenVinoEncoder

  shape = (*SIZE, 3)
  pixels = np.random.default_rng(0).integers(0, 256, (batch, *shape), dtype=np.uint8)
  model = _encoders.tensorflow(encoder)(shape)
  for precision in ('float32', 'bfloat16'):
    folded = FoldedEncoder(model, precision=precision)
    converted = OpenVinoEncoder(folded, pixels[:2], streams=1)
    yield f'openvino_{precision}', lambda converted=converted: converted(pixels)


def _torch_variants(
  encoder: str, batch: int, *, compiled: bool = False
) -> Iterator[tuple[str, Callable[[], object]]]:
  import copy

  import _torch_resnet
  import torch

  torch.set_num_threads(_interleaved.cores())
  device = _torch_resnet.device()
  model = _encoders.torch(encoder).eval()
  for name in ('float32', 'bfloat16'):
    kind = getattr(torch, name)
    place = {'device': device, 'dtype': kind, 'memory_format': torch.channels_last}
    pixels = torch.rand(batch, 3, *SIZE).to(**place)
    converted = copy.deepcopy(model).to(**place)
    if compiled:
      converted = torch.compile(converted)

    def embed(converted=converted, pixels=pixels):
      with torch.inference_mode():
        return converted(pixels).cpu()

    yield f'torch_{name}{"_compiled" * compiled}', embed


def run(
  *,
  encoder: str = 'resnet50',
  batch: int = BATCH,
  repeats: int = 5,
  torch_python: str = sys.executable,
  onednn: Sequence[str] = ('off', 'on'),
  torch_compile: bool = False,
) -> dict[str, object]:
  """Throughput of the image encoder in inference.

  Args:
    encoder: see `_encoders`.
    batch: images at a time.
    repeats: batches of each variant; the median counts.
    torch_python: an interpreter that has PyTorch; it need not have anything else.
    onednn: TensorFlow with these of oneDNN's operations 'off' and 'on'. A GPU does not use them.
    torch_compile: PyTorch through torch.compile as well.

  Returns:
    Images per second by variant (and with 'per_core_second' what a second of one core's time
    does, which other programs on the machine disturb less), and ratios.
  """
  contestants = {
    f'onednn_{state}': (
      'tensorflow',
      sys.executable,
      {**_ENVIRONMENT, 'TF_ENABLE_ONEDNN_OPTS': str(int(state == 'on'))},
    )
    for state in onednn
  }
  if importlib.util.find_spec('openvino'):
    contestants['openvino'] = ('openvino', sys.executable, _ENVIRONMENT)
  if _encoders.has_torch_rival(encoder) and _interleaved.has_torch(torch_python):
    contestants['torch'] = ('torch', torch_python, {})
    if torch_compile:
      contestants['torch_compiled'] = ('torch_compiled', torch_python, {})
  running: dict[str, _interleaved.Contestant] = {}
  seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
  try:
    for name, (library, python, environment) in contestants.items():
      arguments = [f'--contestant={library}', f'--encoder={encoder}', f'--batch={batch}']
      running[name] = _interleaved.Contestant(python, __file__, arguments, environment)
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
    label = f'{variant}_{name}' if name.startswith('onednn') else variant
    rates[label] = batch / clock
    results[label] = {
      'images_per_second': round(batch / clock, 2),
      'per_core_second': round(batch / processor, 2),
    }
  best = {
    kind: max(rate for label, rate in rates.items() if label.startswith(kind))
    for kind in ('keras', 'folded', 'openvino', 'torch')
    if any(label.startswith(kind) for label in rates)
  }
  ratios = {'folded_to_keras': best['folded'] / best['keras']}
  if 'openvino' in best:
    ratios['openvino_to_folded'] = best['openvino'] / best['folded']
  if {'openvino', 'torch'} <= set(best):
    ratios['openvino_to_torch'] = best['openvino'] / best['torch']
  if 'torch' in best:
    ratios['folded_to_torch'] = best['folded'] / best['torch']
    bfloat16 = max(rate for label, rate in rates.items() if label.startswith('folded_bfloat16'))
    rival = max(rate for label, rate in rates.items() if label.startswith('torch_bfloat16'))
    ratios['folded_bfloat16_to_torch_bfloat16'] = bfloat16 / rival
  results['ratios_of_the_best'] = {name: round(ratio, 2) for name, ratio in ratios.items()}
  return results


def deviations(encoder: str, weights: str, crops: str) -> dict[str, dict[str, float]]:
  """Relative errors of the features of some photographs, beside TensorFlow's in float32.

  Args:
    encoder: an OSNet, see `_encoders`.
    weights: of torchreid's model zoo, .onnx or .npz.
    crops: a folder of photographs, of which 64 are taken.

  Returns:
    'median' and 'max' of each runtime and precision.
  """
  import numpy as np
  import tensorflow as tf

  from tfreid.networks import encoder as encoders
  from tfreid.networks import osnet_weights
  from tfreid.serving import folding
  from tfreid.serving.openvino_encoder import OpenVinoEncoder

  model = encoders.features(_encoders.tensorflow(encoder)((*SIZE, 3), weights=weights))
  pixels = np.round(osnet_weights.samples(crops, SIZE)).clip(0, 255).astype(np.uint8)
  found = {}
  for precision in folding.PRECISIONS:
    folded = folding.FoldedEncoder(model, precision=precision)
    found[f'tensorflow_{precision}'] = tf.function(folded)(tf.cast(pixels, tf.float32)).numpy()
    found[f'openvino_{precision}'] = OpenVinoEncoder(folded, pixels[:2])(pixels)
  reference = found.pop('tensorflow_float32')
  errors = {name: folding.relative_errors(made, reference) for name, made in found.items()}
  return {
    name: {'median': float(np.median(error)), 'max': float(error.max())}
    for name, error in errors.items()
  }


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--encoder', default='resnet50', help=_encoders.__doc__)
  parser.add_argument('--batch', type=int, default=BATCH)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--torch_python', default=sys.executable)
  parser.add_argument('--onednn', default='off,on', help='off, on, or both')
  parser.add_argument('--torch_compile', action='store_true', help='PyTorch also compiled')
  parser.add_argument('--weights', help='.onnx or .npz: measures deviations, not speed')
  parser.add_argument('--crops', help='with --weights: a folder of photographs')
  parser.add_argument('--contestant', help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.contestant:
    make = {
      'tensorflow': _tensorflow_variants,
      'openvino': _openvino_variants,
      'torch': _torch_variants,
      'torch_compiled': functools.partial(_torch_variants, compiled=True),
    }[given.contestant]
    _interleaved.serve(dict(make(given.encoder, given.batch)))
  elif given.weights:
    print(json.dumps(deviations(given.encoder, given.weights, given.crops), indent=2))
  else:
    measured = run(
      encoder=given.encoder,
      batch=given.batch,
      repeats=given.repeats,
      torch_python=given.torch_python,
      onednn=given.onednn.split(','),
      torch_compile=given.torch_compile,
    )
    print(json.dumps(measured, indent=2))
