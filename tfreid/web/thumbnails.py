"""Small pictures of crops, made once, blurred where the policy says so. Floor 5."""

from __future__ import annotations

import collections
import hashlib
import io
import os
import stat
import threading
from typing import NamedTuple

from PIL import ImageFilter

from tfreid import image_bytes

SIZE = (128, 256)  # width, height in pixels, at most
# What may be searched for.
UPLOAD_FORMATS = ('JPEG', 'PNG')


class Thumbnail(NamedTuple):
  """A JPEG file and what names its contents."""

  contents: bytes
  etag: str


class UnreadableError(Exception):
  """There is no picture to be made; the message names no path."""


class Thumbnails:
  """Makes thumbnails and remembers the last of them; for many threads.

  Attributes:
    blur: radius in pixels of the thumbnail.
  """

  def __init__(self, *, blur: float = 0.0, memory: int = 64 * 2**20):
    """Begins with none.

    Args:
      blur: radius in pixels of the thumbnail; 0 for none.
      memory: bytes of JPEG that are remembered.
    """
    self.blur = blur
    self._memory = memory
    self._lock = threading.Lock()
    self._kept: collections.OrderedDict[tuple, Thumbnail] = collections.OrderedDict()
    self._bytes = 0

  def get(self, path: str) -> Thumbnail:
    """The thumbnail of an image file.

    Raises:
      UnreadableError: it is missing, or is not an image that can be shown.
    """
    try:
      status = os.stat(path)
    except (OSError, ValueError) as error:
      raise UnreadableError('The image file is not there.') from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > image_bytes.MAX_BYTES:
      raise UnreadableError('The image file is not one that can be shown.')
    key = (path, status.st_mtime_ns, status.st_size)
    with self._lock:
      if key in self._kept:
        self._kept.move_to_end(key)
        return self._kept[key]
    contents = self._make(path)
    etag = f'"{hashlib.blake2b(contents, digest_size=16).hexdigest()}"'
    made = Thumbnail(contents, etag)
    with self._lock:
      if key not in self._kept:
        self._kept[key] = made
        self._bytes += len(contents)
      while self._bytes > self._memory and len(self._kept) > 1:
        _, dropped = self._kept.popitem(last=False)
        self._bytes -= len(dropped.contents)
    return made

  def _make(self, path: str) -> bytes:
    try:
      small = image_bytes.picture(image_bytes.read(path), at_most=SIZE)
    except image_bytes.BadImageError as error:
      raise UnreadableError('The image file cannot be read.') from error
    if self.blur:
      small = small.filter(ImageFilter.GaussianBlur(self.blur))
    buffer = io.BytesIO()
    # A new picture: what a camera wrote into the file (place, time, owner) stays there.
    small.save(buffer, 'JPEG', quality=88)
    return buffer.getvalue()


def check_upload(contents: bytes) -> None:
  """Refuses bytes that are no image of a size that a crop may have.

  What stands in the header is looked at before anything is decoded, so that a small file that would
  become a huge picture, or take long to decode, costs nothing.

  Raises:
    ValueError: the message says what was expected.
  """
  try:
    image_bytes.picture(contents, formats=UPLOAD_FORMATS)
  except image_bytes.BadImageError as error:
    raise ValueError(
      f'The upload cannot be searched for: {error}. Send one crop of a person as a JPEG or PNG '
      'file.'
    ) from error
