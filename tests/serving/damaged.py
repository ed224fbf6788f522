"""Versions that are not what was exported, for tests of what must notice."""

from __future__ import annotations

import os
from pathlib import Path

import tensorflow as tf

from tfreid import storage
from tfreid.serving import versions

VARIABLE = '{}/.ATTRIBUTES/VARIABLE_VALUE'


def seal_again(version):
  """Gives a version that was changed checksums that fit, as somebody who changes it on purpose."""
  storage.seal(version, file=versions.SEAL)


def change_variable(version, name, change):
  """Replaces a variable of a SavedModel in its files, with checksums that fit.

  Args:
    version: folder of it.
    name: of the variable, for example 'attribute_encoder/weights/0'.
    change: its value -> the new one.
  """
  prefix = Path(version, 'variables', 'variables')
  checkpoint = tf.train.load_checkpoint(str(prefix))
  tensors = {key: checkpoint.get_tensor(key) for key in checkpoint.get_variable_to_shape_map()}
  key = VARIABLE.format(name)
  tensors[key] = change(tensors[key])
  tf.raw_ops.SaveV2(
    prefix=str(prefix.with_name('changed')),
    tensor_names=list(tensors),
    shape_and_slices=[''] * len(tensors),
    tensors=[tf.constant(value) for value in tensors.values()],
  )
  for path in prefix.parent.glob('changed.*'):
    os.replace(path, path.with_name(path.name.replace('changed', 'variables')))
  if versions.is_sealed(version):
    seal_again(version)
