"""A version of an exported model, loaded in this process. Floor 2."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfreid import forks, storage
from tfreid.serving import errors, operations, versions


def load(directory: str) -> Any:
  """The SavedModel of a version, with its `signatures`.

  Its files are checked first against the version's seal (see `versions`), then its graph (see
  `operations`): what may do more than compute is not loaded.

  Args:
    directory: of the version.

  Raises:
    ValueError: it holds an operation that is not allowed, or its files are damaged or not all
      there; the message says which, or what TensorFlow found.
  """
  versions.check(directory)
  operations.check(directory)
  forks.check()
  try:
    with storage.without_patterns(directory) as path:
      return tf.saved_model.load(path)
  except (tf.errors.OpError, OSError, LookupError, ValueError, RuntimeError) as error:
    # Of files that are cut off TensorFlow says many things, IndexError among them.
    raise ValueError(
      f"The model '{directory}' cannot be loaded: {errors.plain(str(error))}. Its files are not "
      'those that were exported: copy them again, or export it again.'
    ) from error
