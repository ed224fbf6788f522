"""Files that survive a kill and a loss of power, and that notice when they were damaged. Floor 0.

A name is written after what it names is on the disk: the content first, synced, then the rename,
then the folder that holds the name. Whoever finds a name therefore finds all that it stands for.
Each function here keeps that order; nothing else in the package calls `os.replace` or `os.fsync`
for a file that matters.

What is written can be checked when it is read: a JSON document carries the checksum of its content
(`write_json`, `read_json`), a folder the sizes and checksums of its files (`seal`, `check_seal`).
The checksums find accidents, such as a flipped bit or a file that was cut off. They are no
signatures: whoever changes a file on purpose can change its checksum as well.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

CHECKSUM = 'checksum'
SEAL = 'seal.json'

_PARTIAL = '.partial-'
_CHECKED = (
  '# The last line is the checksum of the others; written by a program, not to be changed.\n'
)
_CHECKSUM_LINE = '# checksum '
# What TensorFlow's file functions take for patterns.
_PATTERN = re.compile(r'[\[\]*?\\{}]')
# Some file systems (network shares, some FUSE ones) cannot sync a folder, and say so like this.
_CANNOT_SYNC_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF)


def sync_directory(path: str | os.PathLike) -> None:
  """Makes the names in a folder outlast a loss of power.

  Where the file system cannot do that for a folder, it is left to the file system.

  Raises:
    OSError: the folder does not exist, or the disk failed.
  """
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    if error.errno not in _CANNOT_SYNC_FOLDERS:
      raise
  finally:
    os.close(descriptor)


def sync_file(path: str | os.PathLike) -> None:
  """Makes the content of a file outlast a loss of power, whoever wrote it.

  Raises:
    OSError: the file does not exist, or the disk is full or failed.
  """
  # Opened for writing, since some systems sync no file that was opened for reading.
  descriptor = os.open(path, os.O_RDWR)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def sync_tree(path: str | os.PathLike) -> None:
  """Makes everything below a folder outlast a loss of power: files first, then their folders.

  Raises:
    OSError: as `sync_file`.
  """
  for folder, _, files in os.walk(os.fspath(path), topdown=False):
    for name in files:
      sync_file(os.path.join(folder, name))
    sync_directory(folder)


def make_directories(path: str | os.PathLike) -> None:
  """`os.makedirs` whose new names outlast a loss of power; existing folders stay as they are."""
  path = os.path.abspath(path)
  missing = []
  while not os.path.isdir(path):
    missing.append(path)
    path = os.path.dirname(path)
  for folder in reversed(missing):
    with contextlib.suppress(FileExistsError):
      os.mkdir(folder)
    sync_directory(os.path.dirname(folder))


@contextlib.contextmanager
def replacing(
  path: str | os.PathLike, mode: str = 'w', *, permissions: int | None = None
) -> Iterator[IO[Any]]:
  """Opens a new file that takes the place of `path` when the block ends without an error.

  A reader sees the old file or the whole new one. If the block fails, or the process dies, `path`
  is as it was.

  Args:
    path: the file to write; its folder must exist.
    mode: 'w' for text (UTF-8, line feeds as written), 'wb' for bytes.
    permissions: of the new file, for example 0o600; by default what the system gives a new file.

  Yields:
    The file to write to.

  Raises:
    ValueError: another mode.
    OSError: the file cannot be written, or the disk is full; `path` is as it was.
  """
  if mode not in ('w', 'wb'):
    raise ValueError(f"The mode is 'w' or 'wb', not {mode!r}.")
  path = os.fspath(path)
  partial = f'{path}{_PARTIAL}{os.getpid()}-{secrets.token_hex(4)}'
  descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions or 0o666)
  try:
    encoding, newline = (None, None) if 'b' in mode else ('utf-8', '')
    with os.fdopen(descriptor, mode, encoding=encoding, newline=newline) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(partial)
    raise
  sync_directory(os.path.dirname(path) or '.')


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file (UTF-8) as `replacing` does."""
  with replacing(path) as file:
    file.write(text)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file as `replacing` does."""
  with replacing(path, 'wb') as file:
    file.write(content)


def remove_partial_files(folder: str | os.PathLike) -> None:
  """Removes what `replacing` left in a folder when a process died; nobody else may write there."""
  for name in os.listdir(folder):
    if _PARTIAL in name:
      with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
        os.remove(os.path.join(folder, name))


@contextlib.contextmanager
def without_patterns(path: str | os.PathLike) -> Iterator[str]:
  """The path, or while the block lasts one through a link, without characters of patterns in it.

  TensorFlow takes some names for patterns when it reads: a checkpoint below a folder called 'a[1]'
  is not found.

  Args:
    path: of a file or folder, or the prefix of several files; the folder above it must exist.

  Raises:
    OSError: no link can be made.
  """
  path = os.path.abspath(path)
  if not _PATTERN.search(path):
    yield path
    return
  folder, name = (path, '') if os.path.isdir(path) else os.path.split(path)
  if _PATTERN.search(name):
    raise ValueError(f"'{name}' in '{folder}' has a character of {_PATTERN.pattern}; rename it.")
  temporary = tempfile.gettempdir()
  if _PATTERN.search(temporary):
    temporary = '/tmp'
  with tempfile.TemporaryDirectory(prefix='tfreid-', dir=temporary) as place:
    link = os.path.join(place, 'link')
    os.symlink(folder, link)
    yield os.path.join(link, name)


def put_directory(
  partial: str | os.PathLike, final: str | os.PathLike, *, replace: bool = True
) -> None:
  """Renames a finished folder to its name, after all of its files are on the disk.

  A folder that has the name already is replaced: it is renamed aside, and removed when the new one
  stands. Between the two renames, and only if the process dies there, the name is missing and the
  old folder stands beside it as '.NAME.old-…'.

  Args:
    partial: the finished folder, on the same file system.
    final: its name from now on.
    replace: whether a folder of that name may be replaced.

  Raises:
    FileExistsError: there is a folder of that name with something in it, and none may be replaced.
    OSError: it cannot be renamed, or the disk is full; what had the name before has it again.
  """
  partial, final = os.fspath(partial), os.path.abspath(final)
  sync_tree(partial)
  parent = os.path.dirname(final)
  old = ''
  if replace and os.path.lexists(final):
    old = os.path.join(parent, f'.{os.path.basename(final)}.old-{secrets.token_hex(4)}')
    os.rename(final, old)
  try:
    os.rename(partial, final)
  except OSError as error:
    if old:
      os.rename(old, final)
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
      raise FileExistsError(errno.EEXIST, 'it exists already', final) from error
    raise
  sync_directory(parent)
  if old:
    if os.path.islink(old):
      os.remove(old)
    else:
      shutil.rmtree(old, ignore_errors=True)


def append_line(path: str | os.PathLike, line: bytes) -> None:
  """Adds one line to a file, whole or not at all, and waits until it is on the disk.

  Lines of processes that append at the same time do not mix (O_APPEND, one write). A last line that
  was cut off by a kill is left for the reader to report, and the new line begins on its own.

  Args:
    path: the file; made if there is none, its folder must exist.
    line: without its line feed, and with none inside.

  Raises:
    ValueError: the line holds a line feed.
    OSError: it could not be written whole; the file is as it was.
  """
  if b'\n' in line:
    raise ValueError('A line to append holds a line feed.')
  is_new = not os.path.exists(path)
  descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
  try:
    size = os.fstat(descriptor).st_size
    torn = size and os.pread(descriptor, 1, size - 1) != b'\n'
    content = (b'\n' if torn else b'') + line + b'\n'
    try:
      written = os.write(descriptor, content)
      if written < len(content):
        # For the system's own reason why the rest had no room.
        written += os.write(descriptor, content[written:])
      if written < len(content):
        raise OSError(
          errno.ENOSPC,
          f'only {written} of {len(content)} bytes of a line could be written; is the disk full?',
          os.fspath(path),
        )
      os.fsync(descriptor)
    except OSError as error:
      if error.filename is None:
        error.filename = os.fspath(path)
      # Only what stands at the end is ours to take back: somebody else may have appended since.
      if os.fstat(descriptor).st_size - size < len(content):
        os.ftruncate(descriptor, size)
      raise
  finally:
    os.close(descriptor)
  if is_new:
    sync_directory(os.path.dirname(os.fspath(path)) or '.')


def open_regular(path: str | os.PathLike) -> IO[bytes]:
  """Opens a regular file for reading, and nothing else.

  Opening a pipe waits for somebody who writes to it, and opening a device may do anything; both can
  stand under a name that a list of files gives.

  Args:
    path: the file; a link to a regular file is one.

  Raises:
    FileNotFoundError: there is none.
    OSError: it is a folder, a pipe, a device or a socket, or it cannot be read.
  """
  path = os.fspath(path)
  _check_regular(os.stat(path), path)
  # Another thing may have taken the name meanwhile: a pipe must not be waited for.
  descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  try:
    _check_regular(os.fstat(descriptor), path)
    return os.fdopen(descriptor, 'rb')
  except BaseException:
    os.close(descriptor)
    raise


def _check_regular(status: os.stat_result, path: str) -> None:
  if stat.S_ISDIR(status.st_mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
  if not stat.S_ISREG(status.st_mode):
    raise OSError(errno.EINVAL, 'it is a pipe, a device or a socket, and no file', path)


def read_bytes(path: str | os.PathLike, *, limit: int | None = None) -> bytes:
  """The content of a regular file; see `open_regular`.

  Args:
    path: the file.
    limit: how many bytes it may have at most.

  Raises:
    OSError: as `open_regular`, or the file is larger than the limit.
  """
  with open_regular(path) as file:
    content = file.read() if limit is None else file.read(limit + 1)
  if limit is not None and len(content) > limit:
    raise OSError(errno.EFBIG, f'it has more than {limit} bytes', os.fspath(path))
  return content


def checksum(content: bytes) -> str:
  """The checksum of some bytes: BLAKE2b of 128 bits, as 32 hexadecimal digits."""
  return hashlib.blake2b(content, digest_size=16).hexdigest()


def checksum_of_file(path: str | os.PathLike) -> str:
  """The checksum of a file's content, read in blocks; as `checksum`.

  Raises:
    OSError: it cannot be read, or is no regular file.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(errno.ENOENT, 'there is no such regular file', os.fspath(path))
  state = hashlib.blake2b(digest_size=16)
  with open_regular(path) as file:
    while block := file.read(1 << 20):
      state.update(block)
  return state.hexdigest()


def _canonical(document: Mapping[str, Any]) -> bytes:
  content = {key: value for key, value in document.items() if key != CHECKSUM}
  text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(',', ':'))
  return text.encode('utf-8', 'surrogatepass')


def with_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
  """The document with the checksum of everything else in it, as its last entry 'checksum'."""
  # What a reader will see, so that the checksum is of the same content: tuples become lists.
  plain = json.loads(json.dumps(document, ensure_ascii=False))
  plain.pop(CHECKSUM, None)
  return {**plain, CHECKSUM: checksum(_canonical(plain))}


def write_json(path: str | os.PathLike, document: Mapping[str, Any]) -> None:
  """Writes a JSON object with its checksum, as `replacing` does.

  Args:
    path: the file.
    document: an object; an entry 'checksum' is added at its end, and replaced if there is one.

  Raises:
    TypeError: something in it is not of JSON.
    OSError: as `replacing`.
  """
  with replacing(path) as file:
    json.dump(with_checksum(document), file, indent=1, ensure_ascii=False)
    file.write('\n')


def read_json(
  path: str | os.PathLike, *, what: str = 'file', required: bool = True
) -> dict[str, Any]:
  """The JSON object in a file that `write_json` wrote, without its checksum.

  Args:
    path: the file.
    what: what it is, for the message, for example 'state of the index'.
    required: whether a document without a checksum is refused. Documents of earlier releases have
      none; a reader knows them by their number of format, which it must check.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged; the message names the file.
  """
  content = read_bytes(path)
  damaged = f"The {what} '{os.fspath(path)}' is damaged"
  try:
    document = json.loads(content.decode('utf-8'))
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{damaged}: {error}. Restore it from a copy.') from error
  if not isinstance(document, dict):
    raise ValueError(f'{damaged}: it holds no JSON object. Restore it from a copy.')
  stored = document.pop(CHECKSUM, None)
  if stored is None and not required:
    return document
  if stored != checksum(_canonical(document)):
    reason = 'it has no checksum' if stored is None else 'its content does not fit its checksum'
    raise ValueError(f'{damaged}: {reason}. Restore it from a copy.')
  return document


def write_checked_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text whose comments begin with '#', with its checksum, as `replacing` does.

  The first line says that the last one holds the checksum, so that a text that was cut off is
  noticed too.
  """
  text = text if text.endswith('\n') or not text else f'{text}\n'
  body = f'{_CHECKED}{text}'
  write_text(path, f'{body}{_CHECKSUM_LINE}{checksum(body.encode())}\n')


def read_checked_text(path: str | os.PathLike, *, what: str = 'file') -> str:
  """The text of a file that `write_checked_text` wrote, without the two lines that it added.

  A text without them is returned as it stands: earlier releases wrote such.

  Args:
    path: the file.
    what: what it is, for the message.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is damaged; the message names the file.
  """
  with open(path, 'rb') as file:
    content = file.read()
  damaged = f"The {what} '{os.fspath(path)}' is damaged"
  advice = 'Restore it from a copy.'
  try:
    text = content.decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{damaged}: {error}. {advice}') from error
  end = re.search(rf'^{re.escape(_CHECKSUM_LINE)}([0-9a-f]+)\n\Z', text, re.MULTILINE)
  # Cut off within its first line it is the beginning of that line.
  begins = text.startswith(_CHECKED) or _CHECKED.startswith(text)
  if not end and not begins and _CHECKSUM_LINE not in text:
    return text
  body = text[: end.start()] if end else ''
  if not end or end.group(1) != checksum(body.encode()) or not body.startswith(_CHECKED):
    raise ValueError(f'{damaged}: its content does not fit its checksum. {advice}')
  return body[len(_CHECKED) :]


def seal(folder: str | os.PathLike, *, file: str = SEAL) -> None:
  """Writes a seal into a folder: size and checksum of each file below it.

  Call it last, before `put_directory`.

  Args:
    folder: whose files are sealed.
    file: the seal's own path below it, with '/', for example 'extra/seal.json'.

  Raises:
    OSError: a file cannot be read, or the seal not written.
  """
  write_json(os.path.join(folder, file), {'files': _measure(folder, file)})


def _measure(folder: str | os.PathLike, seal_file: str) -> dict[str, list]:
  files = {}
  for parent, _, names in os.walk(os.fspath(folder)):
    for name in names:
      path = os.path.join(parent, name)
      relative = os.path.relpath(path, folder).replace(os.sep, '/')
      if relative != seal_file:
        files[relative] = [os.path.getsize(path), checksum_of_file(path)]
  return dict(sorted(files.items()))


def sealed_files(folder: str | os.PathLike, *, file: str = SEAL) -> dict[str, tuple[int, str]]:
  """The files of a sealed folder: path below it, with '/', to size and checksum.

  Raises:
    FileNotFoundError: the folder has no seal.
    ValueError: the seal itself is damaged.
  """
  path = os.path.join(folder, file)
  document = read_json(path, what='seal')
  try:
    return {name: (int(size), str(digest)) for name, (size, digest) in document['files'].items()}
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(f"The seal '{path}' is damaged: it lists no files.") from error


def damage(
  folder: str | os.PathLike,
  *,
  content: bool | Callable[[str], bool] = True,
  file: str = SEAL,
) -> list[str]:
  """What is wrong with a sealed folder, a sentence each; nothing if all is as it was sealed.

  Files that came later are not damage: others may add theirs.

  Args:
    folder: that `seal` sealed.
    content: whether the checksums are computed too, which reads every byte, or for which files, by
      their paths below the folder; of the others only presence and size are compared.
    file: the seal's path below the folder.

  Raises:
    FileNotFoundError: the folder has no seal.
    ValueError: the seal itself is damaged.
  """
  sentences = []
  for name, (size, digest) in sealed_files(folder, file=file).items():
    path = os.path.join(folder, *name.split('/'))
    if not os.path.isfile(path):
      sentences.append(f"'{path}' is missing.")
    elif os.path.getsize(path) != size:
      sentences.append(f"'{path}' has {os.path.getsize(path)} bytes; it was written with {size}.")
    elif (content(name) if callable(content) else content) and checksum_of_file(path) != digest:
      sentences.append(f"The content of '{path}' does not fit its checksum.")
  return sentences


def check_seal(
  folder: str | os.PathLike,
  *,
  what: str,
  content: bool | Callable[[str], bool] = True,
  file: str = SEAL,
) -> None:
  """Refuses a sealed folder that is damaged.

  Args:
    folder: that `seal` sealed.
    what: what it is, for the message, for example 'joint space'.
    content: as in `damage`.
    file: as in `damage`.

  Raises:
    FileNotFoundError: the folder has no seal.
    ValueError: something is missing or changed; the message names the first file.
  """
  sentences = damage(folder, content=content, file=file)
  if sentences:
    more = f' ({len(sentences) - 1} more like this.)' if len(sentences) > 1 else ''
    raise ValueError(
      f"The {what} '{os.fspath(folder)}' is damaged: {sentences[0]}{more} "
      'Restore it from a copy, or make it again.'
    )


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike, *, message: str) -> Iterator[None]:
  """Holds a lock between processes of one machine; the system releases it if the process dies.

  The file stays when the lock is released: removing it would let two processes hold locks on two
  files of one name. On network file systems such a lock may do nothing between machines.

  Args:
    path: the lock's file; made if there is none. A link is not followed: it would make, and lock,
      a file elsewhere.
    message: what to tell whoever comes second.

  Raises:
    BlockingIOError: another process holds it; with `message`.
    OSError: the file cannot be made, or something else has its name.
  """
  import fcntl

  path = os.fspath(path)
  if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
    raise OSError(errno.EINVAL, 'the file of a lock is a link, or no file', path)
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      # Only with the message: with a number it would begin with '[Errno 11]'.
      refused = BlockingIOError(message)
      refused.errno = error.errno
      raise refused from error
    except OSError as error:
      # Without locks nothing is protected, but refusing to work there would protect nothing either.
      if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
        raise
    yield
  finally:
    os.close(descriptor)
