"""The image files below a folder, and how many other files were left out, and why. Floor 1."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator

from tfreid import image_bytes

# What systems put beside people's files: deleted ones, previews, halves of Apple's files.
_OF_THE_SYSTEM = ('__macosx', '@eadir', '$recycle.bin', 'system volume information', 'lost+found')
_MOST_ENDINGS = 12


class ImageFolder:
  """Iterates over the images below a folder: paths relative to it, ascending; for one pass.

  One folder is held at a time, however many images there are. Links to folders outside are
  followed, each folder once; a link to a folder inside, which comes anyway, is not.

  Attributes:
    folder: where it begins.
    left_out: how many entries were left out so far, by reason; files by their ending.
  """

  def __init__(self, folder: str | os.PathLike):
    """Looks at nothing yet.

    Args:
      folder: where to begin.
    """
    self.folder = os.fspath(folder)
    self.left_out: collections.Counter[str] = collections.Counter()
    self._root = os.path.realpath(self.folder)
    self._linked: set[tuple[int, int]] = set()

  def __iter__(self) -> Iterator[str]:
    """Yields the paths.

    Raises:
      OSError: a folder cannot be listed: its images would be missing.
    """
    self.left_out.clear()
    self._linked.clear()
    yield from self._below('', linked=False)

  def told(self) -> str:
    """What was left out, in a few words for people; '' if nothing was."""
    common = self.left_out.most_common(_MOST_ENDINGS)
    said = [f'{count} {reason}' for reason, count in common]
    rest = sum(self.left_out.values()) - sum(count for _, count in common)
    return ', '.join([*said, f'{rest} others'] if rest else said)

  def _below(self, below: str, *, linked: bool) -> Iterator[str]:
    folder = os.path.join(self.folder, below).rstrip('/') or '/'
    try:
      with os.scandir(folder) as found:
        entries = [(name, entry) for entry in found if (name := self._kept(entry))]
    except OSError as error:
      raise OSError(f"The folder '{folder}' cannot be listed: {error.strerror}.") from error
    for name, entry in sorted(entries, key=lambda pair: pair[0]):
      if not name.endswith('/'):
        yield below + name
      elif not (linked or entry.is_symlink()):
        yield from self._below(below + name, linked=False)
      elif self._is_new(entry):
        yield from self._below(below + name, linked=True)

  def _kept(self, entry: os.DirEntry) -> str:
    """The name of an entry that is an image or a folder to look into; '' for others."""
    reason = self._objection(entry)
    if reason:
      self.left_out[reason] += 1
      return ''
    # With the slash it has in a path, a folder comes where its files come among all paths.
    return f'{entry.name}/' if entry.is_dir() else entry.name

  def _objection(self, entry: os.DirEntry) -> str:
    """Why an entry is left out; '' if it is not."""
    try:
      entry.name.encode()
    except UnicodeEncodeError:
      return 'of a name that is not UTF-8'
    if entry.is_dir():
      if entry.name.startswith('.') or entry.name.lower() in _OF_THE_SYSTEM:
        return 'hidden folders'
      return ''
    if entry.name.startswith('.'):
      return 'hidden files'
    ending = os.path.splitext(entry.name)[1].lower()
    if ending in image_bytes.ENDINGS:
      return ''
    return ending or 'without ending'

  def _is_new(self, entry: os.DirEntry) -> bool:
    """Whether a folder outside, or behind a link, is to be looked into; else it is counted."""
    path = os.path.realpath(entry.path)
    if os.path.commonpath([path, self._root]) == self._root:
      self.left_out['links to a folder that comes anyway'] += 1
      return False
    status = entry.stat()
    if (status.st_dev, status.st_ino) in self._linked:
      self.left_out['links to a folder that came already'] += 1
      return False
    self._linked.add((status.st_dev, status.st_ino))
    return True
