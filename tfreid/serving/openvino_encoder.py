"""An image encoder computed by OpenVINO instead of TensorFlow. Floor 3.

OpenVINO compiles the convolutions of a folded encoder for the processor at hand, and embeds 1.1 to
2 times as many crops per second, most with the light networks (docs/notes/speed.md). It is the
extra `openvino` and a choice (`--runtime=openvino`), as concepts differ from TensorFlow's by
rounding.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfreid import forks, threads
from tfreid.networks import archive
from tfreid.serving import folding
from tfreid.serving.signatures import MAX_IMAGES

_REPORTS = 'openvino_telemetry'


class OpenVinoEncoder:
  """The image encoder of an export: the same layers and weights, computed by OpenVINO.

  An encoder in bfloat16 is computed in bfloat16 where the processor has instructions for it, and
  else in float32, which is faster there.

  Attributes:
    precision: of the computation, 'float32' or 'bfloat16'.
    input_shape: of a crop, (height, width, 3).
    size: E.
    deviation: the greatest relative error of a concept of the crops that it was checked with,
      beside what TensorFlow makes of them in the encoder's precision.
  """

  def __init__(self, encoder: folding.FoldedEncoder, crops: np.ndarray, *, streams: int = 2):
    """Converts the encoder, and compares both.

    Args:
      encoder: as exported.
      crops: uint8 [B, height, width, 3], of which both make concepts.
      streams: batches computed at the same time; they share the cores.

    Raises:
      ImportError: OpenVINO is not installed.
      ValueError: there is no crop, OpenVINO cannot compute this encoder, or it makes other concepts
        of the crops than TensorFlow does, by more than an export allows (`folding.TOLERANCES`).
    """
    if not len(crops):
      raise ValueError('Give at least one crop: OpenVINO is compared with TensorFlow on crops.')
    self._core = _openvino().Core()
    has_bfloat16 = 'BF16' in self._core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
    reduced = encoder.precision == 'bfloat16' and has_bfloat16
    self.precision = 'bfloat16' if reduced else 'float32'
    self.input_shape, self.size = encoder.input_shape, encoder.size
    # As graphs: see `cli.startup.never_trains` about convolutions outside of one.
    own = _traced(encoder)
    # A concrete function does not keep its variables alive: this name does, until it is converted.
    full = encoder if encoder.precision == 'float32' else _in_float32(encoder)
    self._settings = {
      'INFERENCE_PRECISION_HINT': 'bf16' if reduced else 'f32',
      'NUM_STREAMS': streams,
      'INFERENCE_NUM_THREADS': threads.usable_cores(),
      # Several servers on one machine would all hold on to the same cores.
      'ENABLE_CPU_PINNING': False,
    }
    self._streams, self._compiling = streams, threading.Lock()
    self._requests: dict[int, queue.SimpleQueue[Any]] = {}
    try:
      self._model = _converted(self._core, own if full is encoder else _traced(full))
      concepts = self(crops)
    except RuntimeError as error:
      raise ValueError(
        f'OpenVINO cannot compute this encoder: {str(error).strip().splitlines()[-1]}. Use '
        '--runtime=tensorflow.'
      ) from error
    expected = own(tf.constant(crops)).numpy()
    self.deviation = float(folding.relative_errors(concepts, expected).max())
    # Not "greater than": what is not a number is no small deviation either.
    if not self.deviation <= folding.TOLERANCES[encoder.precision]:
      raise ValueError(
        f'OpenVINO makes other concepts of crops than TensorFlow does: off by {self.deviation:.2g} '
        f'(relative), with a tolerance of {folding.TOLERANCES[encoder.precision]:g}. Use '
        '--runtime=tensorflow.'
      )

  def __call__(self, crops: np.ndarray) -> np.ndarray:
    """Concepts, float32 [B, E], of crops uint8 [B, height, width, 3]; from several threads."""
    starts = range(0, len(crops), MAX_IMAGES)
    parts = [self._embedded(crops[start : start + MAX_IMAGES]) for start in starts]
    return np.concatenate([np.empty((0, self.size), np.float32), *parts])

  def _embedded(self, crops: np.ndarray) -> np.ndarray:
    # Compiled for one size, a batch takes five sixths of the time; few sizes are enough.
    size = 1 << (len(crops) - 1).bit_length()
    padded = np.zeros((size, *self.input_shape), np.uint8)
    padded[: len(crops)] = crops
    requests = self._compiled(size)
    request = requests.get()
    try:
      found = request.infer({0: padded}, share_inputs=True)
      return np.array(next(iter(found.values()))[: len(crops)], np.float32)
    finally:
      requests.put(request)

  def _compiled(self, size: int) -> queue.SimpleQueue[Any]:
    """What computes batches of that size, one for each stream."""
    with self._compiling:
      if size not in self._requests:
        model = self._model.clone()
        model.reshape([size, *self.input_shape])
        compiled = self._core.compile_model(model, 'CPU', self._settings)
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self._streams):
          requests.put(compiled.create_infer_request())
        self._requests[size] = requests
      return self._requests[size]


def _openvino() -> Any:
  """The package.

  Raises:
    ImportError: it is not installed; the message says what to do.
  """
  forks.check()
  try:
    with _unreported():
      import openvino
  except ImportError as error:
    raise ImportError(
      "--runtime=openvino needs OpenVINO: pip install 'tfreid[openvino]'."
    ) from error
  return openvino


@contextlib.contextmanager
def _unreported() -> Iterator[None]:
  """Keeps OpenVINO from telling its makers that it was imported, which it does by default.

  It does without its package for that where there is none. What a program that imported it before
  has decided stays.
  """
  if _REPORTS in sys.modules or 'openvino' in sys.modules:
    yield
    return
  sys.modules[_REPORTS] = None  # type: ignore[assignment]
  try:
    yield
  finally:
    del sys.modules[_REPORTS]


def _traced(encoder: folding.FoldedEncoder) -> Any:
  """The encoder as a concrete function, uint8 [B, height, width, 3] -> float32 [B, E]."""
  pixels = tf.TensorSpec([None, *encoder.input_shape], tf.uint8, 'pixels')
  function = tf.function(
    lambda pixels: encoder(tf.cast(pixels, tf.float32)), [pixels], autograph=False
  )
  return function.get_concrete_function()


def _in_float32(encoder: folding.FoldedEncoder) -> folding.FoldedEncoder:
  """The encoder with float32 weights: in which precision it computes is said to OpenVINO."""
  return folding.FoldedEncoder.restored(
    json.dumps(archive.in_float32(json.loads(encoder.structure))),
    [tf.cast(variable, tf.float32).numpy() for variable in encoder.weights],
    precision='float32',
    num_folded=encoder.num_folded,
    num_kept=encoder.num_kept,
  )


def _converted(core: Any, function: Any) -> Any:
  """A concrete function as OpenVINO's model, with its weights."""
  frozen = convert_variables_to_constants_v2(function)
  # OpenVINO reads files only, and its own converter in Python reports to its makers.
  with tempfile.TemporaryDirectory(prefix='tfreid-') as folder:
    path = os.path.join(folder, 'encoder.pb')
    with open(path, 'wb') as file:
      file.write(frozen.graph.as_graph_def().SerializeToString())
    return core.read_model(path)
