"""OpenVINO in TensorFlow's place: the same concepts, and nothing is told to anybody."""

from __future__ import annotations

import concurrent.futures
import gc
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid import replicas
from tfreid.index import joining, runtimes
from tfreid.index.embedder import Embedder
from tfreid.serving import folding, openvino_encoder
from tfreid.serving.openvino_encoder import OpenVinoEncoder

sys.path.insert(0, str(Path(__file__).parent))
from conftest import IMAGE_SIZE, draw_crop

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def pixels():
  rng = np.random.default_rng(5)
  return np.stack([draw_crop(rng, IMAGE_SIZE) for _ in range(33)])


@pytest.fixture(scope='module')
def converted(encoders, pixels):
  return OpenVinoEncoder(encoders.image, pixels[:3])


def test_concepts_are_those_of_tensorflow_whatever_the_size_of_the_batch(
  converted, encoders, pixels
):
  expected = encoders.image(tf.cast(pixels, tf.float32)).numpy()
  assert (converted.size, converted.input_shape) == (12, (*IMAGE_SIZE, 3))
  assert converted.precision == 'float32' and 0 < converted.deviation < 1e-5
  for count in (0, 1, 2, 3, 5, 33):
    found = converted(pixels[:count])
    assert found.shape == (count, 12) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected[:count], atol=1e-5)
  # A view that is not contiguous.
  np.testing.assert_allclose(converted(pixels[::-4]), expected[::-4], atol=1e-5)


def test_many_crops_are_embedded_in_parts(converted, pixels, monkeypatch):
  whole = converted(pixels)
  monkeypatch.setattr(openvino_encoder, 'MAX_IMAGES', 4)
  sizes = set(converted._requests)
  np.testing.assert_allclose(converted(pixels), whole, atol=1e-5)
  assert set(converted._requests) - sizes <= {1, 4}


def test_weights_in_float32_live_until_openvino_has_them(space, pixels, monkeypatch):
  """TensorFlow's functions do not keep variables alive, and Python collects when it wants to."""
  convert = openvino_encoder._converted

  def after_a_collection(core, function):
    gc.collect()
    return convert(core, function)

  monkeypatch.setattr(openvino_encoder, '_converted', after_a_collection)
  reduced = folding.FoldedEncoder(space.image_encoder, precision='bfloat16')
  assert OpenVinoEncoder(reduced, pixels[:3]).size == 12


def test_many_threads_get_each_their_own(converted, pixels):
  alone = [converted(pixels[i : i + 3]) for i in range(30)]
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    together = list(threads.map(lambda i: converted(pixels[i : i + 3]), list(range(30)) * 4))
  for i, found in enumerate(together):
    np.testing.assert_array_equal(found, alone[i % 30])


def test_other_concepts_than_those_of_tensorflow_are_refused(encoders, pixels, monkeypatch):
  class Other(folding.FoldedEncoder):
    """Converted with weights that it no longer has when it is compared."""

    def __init__(self, encoder):
      tf.Module.__init__(self, name='other')
      self.num_folded, self.num_kept = encoder.num_folded, encoder.num_kept
      weights = [tf.Variable(variable) for variable in encoder.weights]
      restored = folding.FoldedEncoder.restored(
        encoder.structure,
        [weight.numpy() for weight in weights],
        precision='float32',
        num_folded=2,
        num_kept=0,
      )
      self._take(tf.keras.models.model_from_json(encoder.structure), encoder.structure, 'float32')
      self._function = restored._function
      self.weights = restored.weights

  other, convert = Other(encoders.image), openvino_encoder._converted

  def convert_and_change(core, function):
    model = convert(core, function)
    other.weights[0].assign(other.weights[0] * 1.01)
    return model

  monkeypatch.setattr(openvino_encoder, '_converted', convert_and_change)
  with pytest.raises(ValueError, match=r'other concepts .* off by 0\.0.*tolerance of 0\.0001'):
    OpenVinoEncoder(other, pixels)


def test_without_a_crop_nothing_can_be_compared(encoders, pixels):
  with pytest.raises(ValueError, match='at least one crop'):
    OpenVinoEncoder(encoders.image, pixels[:0])


def test_what_openvino_cannot_compute_is_said(encoders, pixels, monkeypatch):
  def fail(core, function):
    raise RuntimeError('Check failed at frontend.cpp:1:\nFrontEnd cannot convert XYZ\n')

  monkeypatch.setattr(openvino_encoder, '_converted', fail)
  with pytest.raises(ValueError, match='cannot compute this encoder: FrontEnd cannot convert XYZ'):
    OpenVinoEncoder(encoders.image, pixels)


@pytest.mark.parametrize('precision', folding.PRECISIONS)
def test_an_exported_model_embeds_files_alike(precision, exported, half, crops):
  version = exported if precision == 'float32' else half
  contents = [crop.contents for crop in crops]
  plain = Embedder(version)
  for lazy in (False, True):
    found = Embedder(version, runtime='openvino', lazy=lazy)
    errors = folding.relative_errors(found.embed_images(contents), plain.embed_images(contents))
    assert errors.max() < folding.TOLERANCES[precision]
    assert (found.fingerprint, found.size) == (plain.fingerprint, plain.size)
    vectors = np.eye(30, dtype=np.float32)
    np.testing.assert_allclose(
      found.embed_attributes(vectors), plain.embed_attributes(vectors), atol=1e-5
    )
    assert joining._most_images(found) == 1


def test_a_bad_picture_is_refused_in_the_words_of_tensorflow(exported, crops):
  messages = []
  for runtime in runtimes.RUNTIMES:
    with pytest.raises(ValueError) as caught:
      Embedder(exported, runtime=runtime).embed_images([crops[0].contents, b'no image'])
    messages.append(str(caught.value))
  assert messages[0] == messages[1] and 'not an image' in messages[0]


def test_a_runtime_that_is_not_there_is_refused(exported, monkeypatch, two_devices):
  with pytest.raises(ValueError, match='one of tensorflow, openvino, not "onnx"'.replace('"', "'")):
    Embedder(exported, runtime='onnx')
  with pytest.raises(ValueError, match='several devices need TensorFlow'):
    Embedder(exported, runtime='openvino', strategy=replicas.local(2))
  monkeypatch.setitem(sys.modules, 'openvino', None)
  with pytest.raises(ImportError, match=r"pip install 'tfreid\[openvino\]'"):
    Embedder(exported, runtime='openvino')
  # Who only describes does not need it.
  lazy = Embedder(exported, runtime='openvino', lazy=True)
  assert lazy.embed_attributes(np.eye(30, dtype=np.float32)).shape == (30, 12)


def test_openvino_does_not_report_that_it_is_used():
  code = """
    import importlib.util, sys
    from tfreid.serving import openvino_encoder
    assert importlib.util.find_spec('openvino_telemetry')
    openvino_encoder._openvino()
    import openvino.tools.ovc.telemetry_utils as used
    print(used.tm.__name__, sorted(name for name in sys.modules if 'telemetry' in name))
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  name, _, loaded = done.stdout.partition(' ')
  assert name == 'openvino.tools.ovc.telemetry_stub'
  assert "'openvino_telemetry" not in loaded
