"""Checkpoints that survive a loss of power, and that are checked before they are used. Floor 4.

A stage's folder holds

  ckpt-<epoch>/           weights.index, weights.data-…, seal.json: one unfinished training
  final.index, final.data-…, final.json: the end of the training; final.json, written last, names
                          the files with their sizes and checksums

TensorFlow's own text file `checkpoint`, which says what is newest, is not used: it can be older or
newer than what it names, and a damaged one hides whole checkpoints.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfreid import storage

_log = logging.getLogger(__name__)

FINAL = 'final'
FINAL_FILE = 'final.json'

_WEIGHTS = 'weights'
_FORMAT = 2
_KEPT = 2
_NAME = re.compile(r'ckpt-(\d+)$')
# Of a process that was killed while it wrote; of TensorFlow, of `write` and of `JointSpace.save`.
_LEFT_OVER = re.compile(r'(final_temp|\.ckpt-.*|\.space.*)$')
_OF_EARLIER_RELEASES = re.compile(r'ckpt-\d+\.index$')
_FULL = ('No space left', 'Disk quota exceeded', 'File too large')


def numbers(directory: str) -> list[int]:
  """Epochs after which a checkpoint was written that is still there, descending."""
  matches = [_NAME.match(name) for name in _listed(directory)]
  return sorted((int(match.group(1)) for match in matches if match), reverse=True)


def has_trained(directory: str) -> bool:
  """Whether anything was trained in a stage's folder: a checkpoint was written, whole or not."""
  return (
    bool(numbers(directory))
    or os.path.isfile(os.path.join(directory, FINAL_FILE))
    or any(_OF_EARLIER_RELEASES.match(name) for name in _listed(directory))
  )


def write(checkpoint: tf.train.Checkpoint, directory: str, epoch: int) -> None:
  """Writes a checkpoint under its name when all of it is on the disk; older ones go after that.

  Raises:
    OSError: it cannot be written, for example because the disk is full; those before it are whole.
  """
  partial = tempfile.mkdtemp(prefix='.ckpt-', dir=directory)
  target = os.path.join(directory, f'ckpt-{epoch}')
  try:
    os.chmod(partial, 0o755)
    with explained(f"The checkpoint '{target}'"):
      checkpoint.write(os.path.join(partial, _WEIGHTS))
      storage.seal(partial)
      storage.put_directory(partial, target)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  remove(directory, keep=_KEPT)


def remove(directory: str, *, keep: int = 0) -> None:
  """Removes all checkpoints but the newest ones, and not the final one."""
  for number in numbers(directory)[keep:]:
    path = os.path.join(directory, f'ckpt-{number}')
    # Under a name that nobody reads, so that none is found in halves.
    aside = os.path.join(directory, f'.ckpt-{number}-old')
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
      os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def newest(directory: str) -> str | None:
  """The folder of the newest checkpoint that is whole; None if none was ever written.

  What is newer and damaged is told in the log.

  Raises:
    ValueError: there are checkpoints, and none of them is whole.
  """
  present = numbers(directory)
  sentences = []
  for number in present:
    path = os.path.join(directory, f'ckpt-{number}')
    try:
      storage.check_seal(path, what='checkpoint')
    except (ValueError, OSError) as error:
      sentences.append(str(error))
      continue
    for sentence in sentences:
      _log.warning('%s', sentence)
    if sentences:
      _log.warning("Using '%s' instead, the newest checkpoint that is whole.", path)
    return path
  if present:
    raise ValueError(
      f"None of the {len(present)} checkpoints in '{directory}' is whole, and training does not "
      f'begin anew by itself: {sentences[0]} To train this stage from its beginning, remove '
      f"'{directory}'."
    )
  if any(_OF_EARLIER_RELEASES.match(name) for name in _listed(directory)):
    raise ValueError(
      f"'{directory}' holds checkpoints of an earlier version of tfreid, without checksums. Finish "
      'the training with that version, or give another run directory.'
    )
  return None


def read(checkpoint: tf.train.Checkpoint, folder: str) -> Any:
  """Reads a checkpoint's values into the variables; returns TensorFlow's status of it.

  Args:
    checkpoint: of the same structure as the one that was written.
    folder: from `newest`.
  """
  with storage.without_patterns(os.path.join(folder, _WEIGHTS)) as prefix:
    return checkpoint.read(prefix)


def write_final(checkpoint: tf.train.Checkpoint, directory: str) -> dict[str, list]:
  """Writes the final checkpoint's files, which `put_final` will name.

  Returns:
    File name -> [size, checksum]; they are on the disk.

  Raises:
    OSError: it cannot be written, for example because the disk is full.
  """
  prefix = os.path.join(directory, FINAL)
  with explained(f"The checkpoint '{prefix}'"):
    checkpoint.write(prefix)
    files = {}
    for name in sorted(_listed(directory)):
      if name == f'{FINAL}.index' or name.startswith(f'{FINAL}.data-'):
        path = os.path.join(directory, name)
        storage.sync_file(path)
        files[name] = [os.path.getsize(path), storage.checksum_of_file(path)]
    storage.sync_directory(directory)
  return files


def put_final(directory: str, files: dict[str, list], facts: dict[str, Any]) -> None:
  """Writes final.json, with which a stage is finished; all that it names must be on the disk."""
  path = os.path.join(directory, FINAL_FILE)
  storage.write_json(path, {'format': _FORMAT, **facts, 'files': files})


def final_facts(directory: str) -> dict[str, Any]:
  """What final.json says: stage, method, epochs, steps, seconds, files.

  Raises:
    FileNotFoundError: the stage is not finished.
    ValueError: the file is damaged.
  """
  return read_document(os.path.join(directory, FINAL_FILE), what='record of the finished stage')


def read_document(path: str, *, what: str) -> dict[str, Any]:
  """A JSON document of a stage; those of earlier releases have no number of format or checksum.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged.
  """
  document = storage.read_json(path, what=what, required=False)
  if 'format' in document:
    document = storage.read_json(path, what=what)
    if document['format'] > _FORMAT:
      raise ValueError(f"The {what} '{path}' was written by a newer version of tfreid.")
  return document


@contextlib.contextmanager
def final_prefix(directory: str) -> Iterator[str]:
  """Yields the prefix under which TensorFlow reads a final checkpoint, after it was checked.

  Raises:
    FileNotFoundError: the stage is not finished.
    ValueError: a file is missing or damaged.
  """
  for name, (size, digest) in final_facts(directory).get('files', {}).items():
    path = os.path.join(directory, name)
    if not os.path.isfile(path):
      raise ValueError(f"'{path}' is missing. Restore it from a copy, or train the stage again.")
    if os.path.getsize(path) != size or storage.checksum_of_file(path) != digest:
      raise ValueError(
        f"The content of '{path}' does not fit its checksum. Restore it from a copy, or remove "
        f"'{directory}' to train the stage again."
      )
  with storage.without_patterns(os.path.join(directory, FINAL)) as prefix:
    yield prefix


def tidy(directory: str) -> None:
  """Removes what a process left that was killed while it wrote; nobody else may be writing."""
  storage.remove_partial_files(directory)
  for name in _listed(directory):
    if _LEFT_OVER.match(name):
      shutil.rmtree(os.path.join(directory, name), ignore_errors=True)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
  """Turns what libraries say while they write a file into an OSError with a sentence."""
  try:
    yield
  except (OSError, RuntimeError, tf.errors.OpError) as error:
    words = ' '.join(str(error).split())
    # h5py says no more of a file that cannot grow than that it could not write.
    if isinstance(error, RuntimeError) and 'write' not in words.lower() and not is_full(error):
      raise
    raise OSError(
      getattr(error, 'errno', None) or errno.EIO,
      f'{what} could not be written ({words[:300]}). Is the disk full? Make room; the same command '
      'continues from the last whole checkpoint',
    ) from error


def is_full(error: BaseException) -> bool:
  """Whether an error, of Python or of TensorFlow, says that a disk is full."""
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  return any(words in str(error) for words in _FULL)


def _listed(directory: str) -> list[str]:
  return os.listdir(directory) if os.path.isdir(directory) else []
