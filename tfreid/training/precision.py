"""The precision of training, and which one suits the devices that are here. Floor 4.

bfloat16 and float16 are faster only where a device has instructions for them; elsewhere they are
computed by way of float32 and are slower. `auto` looks.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfreid import processor

AUTO = 'auto'
POLICIES = ('float32', 'mixed_float16', 'mixed_bfloat16')
PRECISIONS = (*POLICIES, AUTO)

# Volta, the first with tensor cores.
_TENSOR_CORES = (7, 0)
# As /proc/cpuinfo names them, on x86-64 and on ARM.
_AMX = 'amx_bf16'
_BFLOAT16 = (_AMX, 'avx512_bf16', 'bf16')

_log = logging.getLogger(__name__)


class Choice(NamedTuple):
  """A precision and why it was chosen.

  Attributes:
    policy: one of `POLICIES`.
    reason: a sentence's end, for the log.
  """

  policy: str
  reason: str


def policy(precision: str, run_directory: str = '') -> str:
  """The Keras policy of a training; says in the log what was chosen where that is 'auto'.

  Args:
    precision: one of `PRECISIONS`.
    run_directory: of the training. A run that was begun goes on as it began, on whatever machine:
      its weights and its results belong to one precision.

  Raises:
    ValueError: an unknown precision.
  """
  if precision not in PRECISIONS:
    raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not '{precision}'.")
  if precision != AUTO:
    return precision
  begun = _begun(run_directory)
  choice = (
    Choice(begun, 'this run began with it')
    if begun
    else best(_capabilities(), processor.processor())
  )
  _log.warning('Precision: %s (%s).', choice.policy, choice.reason)
  return choice.policy


def best(gpus: Sequence[tuple[int, int] | None], present: processor.Processor) -> Choice:
  """The precision for these devices.

  Args:
    gpus: the compute capability of each GPU, None where it does not tell; empty without one.
    present: the processor.
  """
  if gpus:
    if all(capability is not None and capability >= _TENSOR_CORES for capability in gpus):
      return Choice('mixed_float16', 'each GPU has tensor cores')
    return Choice('float32', 'not every GPU has tensor cores')
  flags = [flag for flag in _BFLOAT16 if flag in present.flags]
  # Intel's avx512_bf16 multiplies as many numbers per cycle as its float32, and oneDNN converts in
  # addition: ResNet-50 embeds at two thirds of the speed. AMD's is twice as fast as float32.
  if present.vendor == processor.INTEL and flags and _AMX not in flags:
    return Choice('float32', f'{flags[0]} is no faster than float32 on a processor of Intel')
  if flags and os.environ.get('TF_ENABLE_ONEDNN_OPTS', '1') != '0':
    return Choice('mixed_bfloat16', f'the processor has {flags[0]}')
  return Choice('float32', 'the processor has no instructions for bfloat16 that TensorFlow uses')


def _begun(run_directory: str) -> str:
  """The policy that a run began with, '' where none has begun."""
  path = os.path.join(run_directory, 'environment.json')
  if not run_directory or not os.path.isfile(path):
    return ''
  with open(path, encoding='utf-8') as file:
    known: Mapping[str, Any] = json.load(file)
  precision = known.get('precision', '')
  return precision if precision in POLICIES else ''


def _capabilities() -> list[tuple[int, int] | None]:
  return [
    tf.config.experimental.get_device_details(gpu).get('compute_capability')
    for gpu in tf.config.list_physical_devices('GPU')
  ]
