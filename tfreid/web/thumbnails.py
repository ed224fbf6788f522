"""Small pictures of crops, made once, blurred where the policy says so. Floor 5."""

from __future__ import annotations

import collections
import hashlib
import io
import os
import stat
import threading
from typing import NamedTuple

from PIL import Image, ImageFilter, UnidentifiedImageError

SIZE = (128, 256)  # width, height in pixels, at most
_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP')
# What the model decodes, and so what may be searched for.
UPLOAD_FORMATS = ('JPEG', 'PNG')
MAX_PIXELS = 16_777_216
_MAX_FILE_BYTES = 2**26


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
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE_BYTES:
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
      with open(path, 'rb') as file, _opened(file, _FORMATS) as image:
        image.draft('RGB', (2 * SIZE[0], 2 * SIZE[1]))  # a JPEG need not be decoded in full size
        small = image.convert('RGB')
        small.thumbnail(SIZE)
        if self.blur:
          small = small.filter(ImageFilter.GaussianBlur(self.blur))
        buffer = io.BytesIO()
        # A new picture: what a camera wrote into the file (place, time, owner) stays there.
        small.info = {}
        small.save(buffer, 'JPEG', quality=88)
        return buffer.getvalue()
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
      raise UnreadableError('The image file cannot be read.') from error


def check_upload(contents: bytes) -> None:
  """Refuses bytes that are no image of a size that a crop may have.

  The sizes in the header are looked at before anything is decoded, so that a small file that would
  become a huge picture costs nothing.

  Raises:
    ValueError: the message says what was expected.
  """
  try:
    with _opened(io.BytesIO(contents), UPLOAD_FORMATS) as image:
      image.load()
  except _TooLargeError as error:
    raise ValueError(str(error)) from error
  except UnidentifiedImageError as error:
    raise ValueError(
      'The upload is not an image. Send one crop of a person as a JPEG or PNG file.'
    ) from error
  except (OSError, ValueError, SyntaxError, MemoryError) as error:
    raise ValueError(
      'The image cannot be decoded: it is damaged or not complete. Send a whole JPEG or PNG file.'
    ) from error


class _TooLargeError(OSError):
  """More pixels than are decoded."""


def _opened(file, formats) -> Image.Image:
  try:
    image = Image.open(file, formats=formats)
  except Image.DecompressionBombError as error:
    raise _TooLargeError('The image is far too large. Cut out the person, or shrink it.') from error
  width, height = image.size
  if width * height > MAX_PIXELS:
    image.close()
    raise _TooLargeError(
      f'The image has {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded. Cut out the '
      'person, or shrink the image.'
    )
  return image
