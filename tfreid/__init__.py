"""Attribute-based person re-identification: a description in words, a ranked list of crops.

`import tfreid` is cheap: it does not import TensorFlow. It does look at the installed versions and
refuses those that the package cannot work with, before TensorFlow's own errors, which do not say
what to do.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable

__version__ = '0.1.0.dev0'

# Each of these distributions brings the module `tensorflow`.
_TENSORFLOW = ('tensorflow', 'tensorflow-cpu', 'tensorflow-macos', 'tensorflow-intel', 'tf-nightly')
_ADVICE = "run `pip install 'tensorflow>=2.15.1,<2.16' keras==2.15.0` in an environment of its own"


def _installed_version(distribution: str) -> str | None:
  """Version of an installed distribution, None where there is none."""
  try:
    return importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    return None


def check_versions(installed: Callable[[str], str | None] = _installed_version) -> None:
  """Refuses a TensorFlow or Keras that the package cannot work with.

  tensorflow-addons 0.23 is its last release and needs Keras 2, which `tf.keras` is up to
  TensorFlow 2.15 and is not from 2.16 on.

  Args:
    installed: Distribution name -> its version, None if it is not installed.

  Raises:
    ImportError: TensorFlow is missing or is not 2.15, or Keras is missing or is not 2.15.
  """
  present = {name: version for name in _TENSORFLOW if (version := installed(name)) is not None}
  if not present:
    raise ImportError(f'tfreid needs TensorFlow 2.15, and no TensorFlow is installed: {_ADVICE}.')
  for name, version in present.items():
    if version.split('.')[:2] != ['2', '15']:
      raise ImportError(
        f'tfreid needs TensorFlow 2.15, the last one with Keras 2, and {name} {version} is '
        f'installed: {_ADVICE}.'
      )
  # Any package that asks for a newer Keras replaces the one that TensorFlow 2.15 brought.
  keras = installed('keras')
  if keras is None or keras.split('.')[:2] != ['2', '15']:
    raise ImportError(
      f'tfreid needs Keras 2.15, and {"no Keras" if keras is None else f"Keras {keras}"} is '
      f'installed beside TensorFlow {next(iter(present.values()))}: {_ADVICE}.'
    )


def _warn_without_onednn() -> None:
  """Says that TensorFlow, which has been imported, was not told to use oneDNN and does not."""
  if sys.platform != 'linux' or 'TF_ENABLE_ONEDNN_OPTS' in os.environ:
    return
  try:
    from tensorflow.python.util._pywrap_util_port import IsMklEnabled
  except ImportError:  # TensorFlow is being imported by somebody else, or is built otherwise.
    return
  if not IsMklEnabled():
    warnings.warn(
      'TensorFlow was imported before tfreid, and on this processor it does not use oneDNN unless '
      'told so: training takes several times as long, and some networks cannot be trained. Import '
      'tfreid first, or set TF_ENABLE_ONEDNN_OPTS=1 before Python starts (0 keeps this as it is, '
      'without the warning).',
      stacklevel=3,
    )


check_versions()

# Read by TensorFlow when it is imported, which should therefore come after this package. By itself
# TensorFlow 2.15 uses oneDNN only on processors with AVX512-VNNI; on others the gradients of
# convolutions take several times as long without it.
if 'tensorflow' in sys.modules:
  _warn_without_onednn()
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
# What matters reaches Python as an exception; below '3' each start prints complaints about CUDA
# factories and advice on how to compile TensorFlow.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
