"""The folders of an exported model: a number for each version, sealed when it is written. Floor 1.

<model>/<version>/               a version; it never changes
<model>/.<version>-partial-…/    a version that somebody is writing, or was

A version's seal (assets.extra/seal.json) holds size and checksum of each of its files. Whoever
reads a file of a version reads it here, or calls `check` first; so a flipped bit is an error and no
wrong answer. Versions of earlier releases have no seal, and are read without.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from tfreid import storage

EXTRA = 'assets.extra'
SEAL = f'{EXTRA}/{storage.SEAL}'
# Versions of this format, as model.json says it, and of later ones have a seal.
SEALED_FORMAT = 2

_MODEL_FILE = 'saved_model.pb'
# Weights and gallery. TensorFlow checks a checksum of each tensor that it reads from there.
_DATA = re.compile(r'variables/variables\.data-.*')
_PARTIAL = re.compile(r'\.[0-9]+-partial-.+')
# Of what is read as a whole and parsed.
_MAX_BYTES = 2**28


def newest(directory: str) -> str:
  """The directory itself if it is a version, or its subfolder of the largest number.

  Raises:
    FileNotFoundError: it is neither.
  """
  if os.path.isfile(os.path.join(directory, _MODEL_FILE)):
    return directory
  entries = os.listdir(directory) if os.path.isdir(directory) else []
  complete = [
    entry
    for entry in entries
    if entry.isdecimal() and os.path.isfile(os.path.join(directory, entry, _MODEL_FILE))
  ]
  if not complete:
    raise FileNotFoundError(
      f"'{directory}' holds no exported model (found: {sorted(entries)[:5] or 'nothing'}). Give "
      'the folder of a version, for example saved_models/demo/1; `tfreid export` writes them.'
    )
  return os.path.join(directory, max(complete, key=int))


def numbers(directory: str) -> list[int]:
  """The versions of a model, ascending; none if the folder does not exist."""
  entries = os.listdir(directory) if os.path.isdir(directory) else []
  return sorted(int(entry) for entry in entries if entry.isdecimal())


def next_number(directory: str) -> int:
  """The number after the newest version of a model."""
  return max(numbers(directory), default=0) + 1


def check_number(directory: str, version: int) -> None:
  """Refuses a version that cannot be written.

  Raises:
    ValueError: it is no positive whole number, or the path is one that TensorFlow does not read.
    FileExistsError: it exists.
  """
  # TensorFlow looks for the files of variables by pattern, a server's TensorFlow too.
  if re.search(r'[][*?\\]', os.path.abspath(directory)):
    raise ValueError(
      f"'{os.path.abspath(directory)}' cannot hold a model: TensorFlow takes [, ], *, ? and \\ in "
      'a path for a pattern. Give a folder without them.'
    )
  if not isinstance(version, int) or version < 1:
    raise ValueError(f'A version is a positive whole number, not {version!r}.')
  if version in numbers(directory):
    raise FileExistsError(
      f"Version {version} of '{directory}' exists, and a version never changes. Leave the version "
      f'out to get the next free one ({next_number(directory)}), or remove '
      f'{os.path.join(directory, str(version))} first.'
    )


@contextlib.contextmanager
def writing(directory: str, version: int) -> Iterator[str]:
  """A folder to write a version into, which gets its name when the block ends without an error.

  Then everything in it is sealed and on the disk. If the block fails nothing remains of it; what an
  export that was killed left behind in `directory` is removed.

  Args:
    directory: of the model; made if there is none.
    version: its number.

  Yields:
    The folder.

  Raises:
    ValueError, FileExistsError: as `check_number`.
  """
  check_number(directory, version)
  storage.make_directories(directory)
  _sweep(directory)
  partial, lock = _new_partial(directory, version)
  try:
    os.chmod(partial, 0o755)
    yield partial
    storage.seal(partial, file=SEAL)
    # Again: another export may have been faster. (A rename onto a folder with files in it fails.)
    check_number(directory, version)
    try:
      storage.put_directory(partial, os.path.join(directory, str(version)), replace=False)
    except FileExistsError:
      check_number(directory, version)
      raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)
    if lock is not None:
      os.close(lock)


def is_sealed(directory: str) -> bool:
  """Whether a version has a seal; those of earlier releases have none."""
  return os.path.isfile(os.path.join(directory, SEAL))


def check(directory: str, *, variables: bool = False) -> bool:
  """Refuses a version of which a file is missing or not what was written.

  Args:
    directory: of the version.
    variables: whether the large files of the variables are read for it too, byte by byte. Without,
      only their sizes are compared: TensorFlow checks what it reads from there by itself.

  Returns:
    Whether that could be found out: False for a version of an earlier release, which has no seal.

  Raises:
    ValueError: it is damaged; the message names the first file.
  """
  if not is_sealed(directory):
    _check_that_none_is_missing(directory)
    return False
  storage.check_seal(
    directory,
    what='exported model',
    content=lambda name: variables or not _DATA.fullmatch(name),
    file=SEAL,
  )
  return True


def read(directory: str, name: str) -> bytes:
  """The content of a file of a version, as it was written.

  Args:
    directory: of the version.
    name: of the file below it, for example 'assets.extra/model.json'.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, or far too large for what it is.
  """
  path = os.path.join(directory, *name.split('/'))
  if not os.path.isfile(path):
    raise FileNotFoundError(f"The exported model '{directory}' has no file {name}.")
  if os.path.getsize(path) > _MAX_BYTES:
    raise ValueError(f"'{path}' has {os.path.getsize(path)} bytes; at most {_MAX_BYTES} are read.")
  with open(path, 'rb') as file:
    content = file.read(_MAX_BYTES)
  if is_sealed(directory):
    expected = storage.sealed_files(directory, file=SEAL).get(name)
    if expected is not None and expected != (len(content), storage.checksum(content)):
      raise ValueError(
        f"The exported model '{directory}' is damaged: the content of {name} does not fit its "
        'checksum. Copy it again, or export it again.'
      )
  return content


def read_json(directory: str, name: str) -> dict[str, Any]:
  """The JSON object in a file of a version; arguments and errors as `read`."""
  content = read(directory, name)
  try:
    document = json.loads(content.decode('utf-8'))
    if not isinstance(document, dict):
      raise ValueError('it holds no JSON object')
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"The exported model '{directory}' is damaged ({name}: {error}). Copy it again, or export it "
      'again.'
    ) from error
  return document


def _check_that_none_is_missing(directory: str) -> None:
  """Refuses a version that must have a seal, and has lost it."""
  name = f'{EXTRA}/model.json'
  if os.path.isfile(os.path.join(directory, name)):
    number = read_json(directory, name).get('format')
    if isinstance(number, int) and number >= SEALED_FORMAT:
      raise ValueError(
        f"The exported model '{directory}' is damaged: its checksums ({SEAL}) are missing. Copy it "
        'again, or export it again.'
      )


def _new_partial(directory: str, version: int) -> tuple[str, int | None]:
  """A folder to write a version into, and the descriptor that holds its lock.

  Hidden and no number: neither a server nor a reader takes it for a version. The lock, which the
  system gives back when the process dies however it dies, is how `_sweep` knows that somebody is
  writing. Where the file system has no locks there is none, and nothing is swept.
  """
  while True:
    partial = tempfile.mkdtemp(prefix=f'.{version}-partial-', dir=directory)
    lock = None
    try:
      lock = _lock(partial)
    except (BlockingIOError, FileNotFoundError):
      continue  # Another export swept it away before it was held.
    except OSError:
      pass
    if os.path.isdir(partial):
      return partial, lock
    if lock is not None:
      os.close(lock)


def _sweep(directory: str) -> None:
  """Removes the folders of exports that were killed; never that of one that runs."""
  for name in os.listdir(directory):
    path = os.path.join(directory, name)
    if not _PARTIAL.fullmatch(name) or os.path.islink(path):
      continue
    try:
      lock = _lock(path)
    except OSError:
      continue  # Somebody writes it, or it is gone, or not ours.
    try:
      shutil.rmtree(path, ignore_errors=True)
    finally:
      os.close(lock)


def _lock(folder: str) -> int:
  """Opens a folder and takes its lock.

  Returns:
    A descriptor; closing it gives the lock back.

  Raises:
    BlockingIOError: another process has it.
    OSError: there is no such folder, or its file system has no locks.
  """
  descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    os.close(descriptor)
    raise
  return descriptor
