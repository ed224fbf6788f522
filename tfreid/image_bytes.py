"""What the bytes of an image file hold: its kind, its size, and the picture, by Pillow. Floor 0.

The one place that says which files are pictures, how large they may be, and what they look like:
upright, as a viewer shows them, in 8-bit RGB. `image_files` decodes the common kinds with
TensorFlow, which is faster, and gives the same pixels. No TensorFlow here: a page of results and a
client of a server need none.

What a stranger sends is judged before anything is decoded, in time linear in its length. Pillow is
given the parts of a JPEG or PNG file that make its pixels and nothing else, so that neither its
metadata nor what stands behind the picture can cost anything.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

# What is opened, by Pillow's names. Never all that Pillow knows: some kinds start other programs.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF')
KINDS = 'JPEG, PNG, BMP, GIF, WebP and TIFF files'
# Endings of the names of such files. What a file is, its contents say.
ENDINGS = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.bmp', '.dib', '.gif', '.webp'),
  *('.tif', '.tiff'),
)

# The same for a regular expression that ignores case.
ENDING_PATTERN = f'(?:{"|".join(map(re.escape, ENDINGS))})'

# A crop of a person has thousands of pixels. A small file that unfolds into billions is an attack.
MAX_PIXELS = 2**24
MAX_BYTES = 2**26
# A progressive JPEG has ten scans, with every trick some twenty; each passes over the whole image.
MAX_SCANS = 100
# Parts of a JPEG before and between its scans, chunks of a PNG, blocks of a GIF, tags of a TIFF.
MAX_SEGMENTS = 2_000
MAX_CHUNKS = 10_000
MAX_TAGS = 1_000
# Compressed texts in a PNG, each of which may unfold to eight megabytes.
MAX_TEXTS = 32
# Pillow unpacks run-length encoded BMP byte by byte.
_MAX_RLE_BYTES = 2**20
# EXIF stands at the start of a file.
EXIF_WITHIN = 2**17
EXIF_BYTES = 2**16
EXIF = b'Exif\0\0'
_ORIENTATION = 0x0112

_PNG = b'\x89PNG\r\n\x1a\n'
# Chunks that decide the colours of a PNG, and those with compressed texts.
_PNG_PIXELS = (b'IHDR', b'PLTE', b'IDAT', b'IEND')
PNG_TEXTS = (b'zTXt', b'iTXt', b'iCCP')
PNG_EXIF = (b'eXIf', b'Raw profile type exif')
# In the data of a scan, 0xFF is followed by 0, or by the number of a restart.
_MARKER = re.compile(rb'\xff[^\x00\x01\xd0-\xd7\xff]')
_FILL = re.compile(rb'\xff+')
_EOI, _SOS = 0xD9, 0xDA
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
# Baseline, extended and progressive; the last two in arithmetic coding.
_DECODED_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)

_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}

# How files start that are no pictures here, and what to say of them.
_OTHERS = (
  (b'%PDF', 'it is a PDF document: save its pages as JPEG or PNG'),
  (b'%!PS', 'it is a PostScript document: save it as JPEG or PNG'),
  (b'\xc5\xd0\xd3\xc6', 'it is a PostScript document: save it as JPEG or PNG'),
  (b'\xd0\xcf\x11\xe0', 'it is no image but a Thumbs.db or an Office document'),
  (b'PK\x03\x04', 'it is a ZIP archive or an Office document: unpack the images'),
  (b'\x1f\x8b', 'it is a gzip archive: unpack it'),
  (b'\x1a\x45\xdf\xa3', 'it is a video: save its frames as JPEG or PNG'),
  (b'\x00\x00\x01\xba', 'it is a video: save its frames as JPEG or PNG'),
  (b'\x00\x00\x01\xb3', 'it is a video: save its frames as JPEG or PNG'),
  (b'\x00\x00\x00\x0cjP  ', 'it is a JPEG 2000 image: save it as JPEG or PNG'),
  (b'\xff\x4f\xff\x51', 'it is a JPEG 2000 image: save it as JPEG or PNG'),
  (b'\x00\x00\x00\x0cJXL ', 'it is a JPEG XL image: save it as JPEG or PNG'),
  (b'\xff\x0a', 'it is a JPEG XL image: save it as JPEG or PNG'),
  (b'8BPS', 'it is a Photoshop document: save it as JPEG or PNG'),
  (b'II+\0', 'it is a BigTIFF image: save it as TIFF, JPEG or PNG'),
  (b'MM\0+', 'it is a BigTIFF image: save it as TIFF, JPEG or PNG'),
)


class BadImageError(ValueError):
  """No picture can be made of a file; the message says why in a few words, and names no path."""


class MissingImageError(BadImageError, FileNotFoundError):
  """There is no such file."""


class Jpeg(NamedTuple):
  """What stands in the headers of a JPEG file.

  Attributes:
    width: in pixels, as stored.
    height: in pixels, as stored.
    components: 1 grey, 3 colours, 4 printing inks.
    pieces: (start, stop) of the parts that make the picture, without metadata.
    stop: where the picture ends; what stands behind it belongs to something else.
  """

  width: int
  height: int
  components: int
  pieces: list[tuple[int, int]]
  stop: int


def kind(contents: bytes) -> str:
  """Which of FORMATS a file is, by how it starts, whatever its name; '' if none."""
  if contents.startswith(b'\xff\xd8\xff'):
    return 'JPEG'
  if contents.startswith(_PNG):
    return 'PNG'
  if contents.startswith(b'BM'):
    return 'BMP'
  if contents.startswith((b'GIF87a', b'GIF89a')):
    return 'GIF'
  if contents[:4] == b'RIFF' and contents[8:12] == b'WEBP':
    return 'WEBP'
  if contents.startswith((b'II*\0', b'MM\0*')):
    return 'TIFF'
  return ''


def read(path: str | os.PathLike) -> bytes:
  """The bytes of a file, which is not taken to be an image for its name.

  Raises:
    BadImageError: it is not there, not a regular file, too large or not readable.
  """
  try:
    # Opening a pipe would wait for somebody who writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
  except FileNotFoundError as error:
    raise MissingImageError('there is no such file') from error
  except (OSError, ValueError) as error:
    raise BadImageError('the file cannot be read') from error
  try:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
      raise BadImageError('it is not a regular file')
    if status.st_size > MAX_BYTES:
      raise BadImageError(
        f'the file has {status.st_size:,} bytes, and at most {MAX_BYTES:,} are read: cut out the '
        'person, or shrink the image'
      )
    with open(descriptor, 'rb', closefd=False) as file:
      return file.read(MAX_BYTES + 1)
  except OSError as error:
    raise BadImageError('the file cannot be read') from error
  finally:
    os.close(descriptor)


def pixels(contents: bytes) -> np.ndarray:
  """The picture in a file, upright, uint8 [height, width, 3].

  Raises:
    BadImageError: it is none, is damaged, or exceeds a limit.
  """
  return np.asarray(picture(contents))


def picture(
  contents: bytes,
  *,
  formats: Collection[str] = FORMATS,
  at_most: tuple[int, int] | None = None,
) -> Image.Image:
  """The picture in a file, upright, in RGB, without any metadata.

  Of several frames or pages it is the first; of a transparent picture the colours; 16 bits of grey
  or colour become the 8 higher ones. Colour profiles are not applied.

  Args:
    contents: of the file.
    formats: those of FORMATS that are taken.
    at_most: (width, height) to which the picture is shrunk, keeping its shape.

  Raises:
    BadImageError: it is none, is damaged, or exceeds a limit.
  """
  check(contents, formats=formats)
  form = kind(contents)
  try:
    with _opened(contents, form) as image:
      _check_size(*image.size)
      if at_most and form == 'JPEG':
        # A JPEG need not be decoded in its full size; a side may become the other one by turning.
        image.draft('RGB', (2 * max(at_most),) * 2)
      image.load()
      turn = _TURNS.get(_orientation(contents, form, image))
      result = _rgb(image)
  except BadImageError:
    raise
  except Exception as error:  # Pillow's decoders raise many kinds for damaged files
    said = ' '.join(str(error).split())[:200] or type(error).__name__
    raise BadImageError(f'the image is truncated or damaged ({said})') from error
  if turn is not None:
    result = result.transpose(turn)
  if at_most:
    result.thumbnail(at_most)
  result.info = {}
  return result


def for_model(contents: bytes) -> bytes:
  """A JPEG or PNG file of which an exported model decodes just `pixels(contents)`.

  That is the file itself if the model's own operations give the same pixels, which they do of
  almost all JPEG and PNG files; of others a PNG is made.

  Raises:
    BadImageError: the file is no picture, is damaged, or exceeds a limit.
  """
  check(contents)
  form = kind(contents)
  if form == 'JPEG':
    jpeg = read_jpeg(contents)
    if jpeg.components in (1, 3):
      # What a model takes for further scans may be the film that a phone hung behind its picture.
      if contents.count(b'\xff\xda') <= MAX_SCANS:
        return contents
      bare = _bare_jpeg(contents, jpeg)
      return bare[:2] + _exif_segment(exif_orientation(contents)) + bare[2:]
  elif form == 'PNG' and not any(name in contents for name in PNG_EXIF):
    return contents
  buffer = io.BytesIO()
  picture(contents).save(buffer, 'PNG', compress_level=1)
  return buffer.getvalue()


def check(contents: bytes, *, formats: Collection[str] = FORMATS) -> None:
  """Refuses what is no picture, or more of one than any camera writes, before it is decoded.

  Args:
    contents: of the file.
    formats: those of FORMATS that are taken.

  Raises:
    BadImageError: it is refused; a file that passes may still be damaged.
  """
  if not contents:
    raise BadImageError('the file is empty')
  if len(contents) > MAX_BYTES:
    raise BadImageError(f'the file has {len(contents):,} bytes; at most {MAX_BYTES:,} are decoded')
  form = kind(contents)
  if not form or form not in formats:
    raise BadImageError(_what_else(contents, form))
  try:
    _CHECKS[form](contents)
  except (struct.error, IndexError) as error:
    raise BadImageError('the image is truncated or damaged (its header is not whole)') from error


def read_jpeg(contents: bytes) -> Jpeg:
  """The headers of a JPEG file, read without decoding anything.

  Raises:
    BadImageError: they are damaged, of a kind that is not decoded, or too many.
  """
  frame = None
  scans = 0
  pieces = [(0, 2)]
  for marker, start, stop in _segments(contents):
    if marker in _FRAMES:
      if frame is not None:
        raise BadImageError('the image has more than one JPEG frame')
      if marker not in _DECODED_FRAMES:
        raise BadImageError(
          'it is a JPEG of a rare kind (lossless or hierarchical): save it as an ordinary one'
        )
      bits, height, width, components = struct.unpack_from('>BHHB', contents, start + 4)
      frame = width, height, components
      if bits != 8 or components not in (1, 3, 4):
        raise BadImageError(
          f'it is a JPEG of {components} components of {bits} bits: save it with 1, 3 or 4 of 8'
        )
      _check_size(width, height)
    elif marker == _SOS:
      scans += 1
      if scans > MAX_SCANS:
        raise BadImageError(
          f'the image has more than {MAX_SCANS} scans, which no camera writes: save it as an '
          'ordinary JPEG'
        )
    # APP0 (JFIF) and APP14 (Adobe) decide the colours; the rest of APPn and comments do not.
    if not (0xE1 <= marker <= 0xEF and marker != 0xEE or marker == 0xFE):
      pieces.append((start, stop))
  if frame is None or not scans:
    raise BadImageError('the image is truncated or damaged (a JPEG without a picture)')
  return Jpeg(*frame, pieces, pieces[-1][1])


def exif_orientation(contents: bytes) -> int:
  """How a JPEG is to be turned, 1 ... 8 as EXIF numbers it; 1, upright, if it does not say.

  The first APP1 segment called Exif decides, as in browsers. `image_files` has the same rule as
  operations of TensorFlow.
  """
  before, found, tiff = contents[:EXIF_WITHIN].partition(EXIF)
  if not found or before[-4:-2] != b'\xff\xe1' or b'\xff\xda' in before:
    return 1
  return _tiff_orientation(tiff[:EXIF_BYTES])


def _tiff_orientation(tiff: bytes) -> int:
  """The orientation in the first directory of a TIFF structure, 1 if it has none or is damaged."""
  order = {b'II*\0': '<', b'MM\0*': '>'}.get(tiff[:4])
  try:
    if order is None:
      return 1
    (start,) = struct.unpack_from(order + 'I', tiff, 4)
    (count,) = struct.unpack_from(order + 'H', tiff, start)
    for position in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
      tag, type_ = struct.unpack_from(order + 'HH', tiff, position)
      if (tag, type_) == (_ORIENTATION, 3):
        (value,) = struct.unpack_from(order + 'H', tiff, position + 8)
        return value if 1 <= value <= 8 else 1
  except struct.error:
    pass
  return 1


def _orientation(contents: bytes, form: str, image: Image.Image) -> int:
  if form == 'JPEG':
    return exif_orientation(contents)
  if form == 'PNG':
    return _png_orientation(contents)
  if form == 'WEBP':
    return _tiff_orientation(image.info.get('exif', b'').removeprefix(EXIF)[:EXIF_BYTES])
  return 1  # Pillow turns a TIFF when it loads it; the others know no orientation


def _png_orientation(contents: bytes) -> int:
  for name, start, stop in _chunks(contents):
    if name == b'eXIf':
      return _tiff_orientation(contents[start:stop].removeprefix(EXIF)[:EXIF_BYTES])
  if PNG_EXIF[1] in contents:
    # As ImageMagick writes it, as a text of hexadecimal digits.
    with Image.open(io.BytesIO(contents), formats=('PNG',)) as image:
      image.load()
      text = image.info.get('Raw profile type exif', '')
    try:
      exif = bytes.fromhex(''.join(str(text)[: 4 * EXIF_BYTES].split('\n')[3:]))
    except ValueError:
      return 1
    return _tiff_orientation(exif.removeprefix(EXIF)[:EXIF_BYTES])
  return 1


def _opened(contents: bytes, form: str) -> Image.Image:
  """The image, opened by Pillow and not yet decoded, from the parts that make its pixels."""
  if form == 'JPEG':
    contents = _bare_jpeg(contents, read_jpeg(contents))
  elif form == 'PNG':
    contents = _bare_png(contents)
  return Image.open(io.BytesIO(contents), formats=(form,))


def _bare_jpeg(contents: bytes, jpeg: Jpeg) -> bytes:
  return b''.join(contents[start:stop] for start, stop in jpeg.pieces)


def _bare_png(contents: bytes) -> bytes:
  pieces = [_PNG]
  for name, start, stop in _chunks(contents):
    if name in _PNG_PIXELS:
      pieces.append(contents[start - 8 : stop + 4])
  return b''.join(pieces)


def _rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PNG'):
    # Pillow would cut off what is brighter than 255.
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert('RGB')
  if image.mode in ('I', 'F'):
    raise BadImageError('it has 32 bits of grey, and does not say what is white: save it with 8')
  return image.convert('RGB')


def _segments(contents: bytes) -> Iterator[tuple[int, int, int]]:
  """(marker, start, stop) of each segment of a JPEG behind its first two bytes, up to its end.

  The data of a scan belong to the segment that opens it.
  """
  position = 2
  for count in range(MAX_SEGMENTS + 1):
    if position + 1 >= len(contents):
      return
    if count == MAX_SEGMENTS:
      raise BadImageError(
        f'the image has more than {MAX_SEGMENTS} segments, which no camera writes: save it as an '
        'ordinary JPEG'
      )
    if contents[position] != 0xFF:
      # Padding between segments, which decoders pass over.
      position = contents.find(b'\xff', position)
      if position < 0:
        return
    fill = _FILL.match(contents, position)
    assert fill is not None  # the byte at `position` is one
    filled = fill.end()
    if filled >= len(contents):
      return
    marker, start = contents[filled], filled - 1
    if marker == _EOI:
      yield marker, start, filled + 1
      return
    if marker in (0x00, 0x01, *range(0xD0, 0xD8)):  # no segment: nothing belongs to it
      position = filled + 1
      continue
    stop = filled + 1 + struct.unpack_from('>H', contents, filled + 1)[0]
    if marker == _SOS:
      following = _MARKER.search(contents, stop)
      stop = following.start() if following else len(contents)
    yield marker, start, min(stop, len(contents))
    position = stop


def _chunks(contents: bytes) -> Iterator[tuple[bytes, int, int]]:
  """(name, start, stop) of the data of each chunk of a PNG, up to IEND or to what is cut off."""
  position = len(_PNG)
  for count in range(MAX_CHUNKS + 1):
    if position + 8 > len(contents):
      return
    if count == MAX_CHUNKS:
      raise BadImageError(
        f'the image has more than {MAX_CHUNKS} chunks, which no camera writes: save it as an '
        'ordinary PNG'
      )
    size, name = struct.unpack_from('>I4s', contents, position)
    start = position + 8
    yield name, start, min(start + size, len(contents))
    if name == b'IEND':
      return
    position = start + size + 4


def _exif_segment(orientation: int) -> bytes:
  """An APP1 segment that says nothing but the orientation; b'' for upright."""
  if orientation == 1:
    return b''
  tiff = struct.pack('<2sHIHHHIHHI', b'II', 42, 8, 1, _ORIENTATION, 3, 1, orientation, 0, 0)
  return b'\xff\xe1' + struct.pack('>H', 2 + len(EXIF) + len(tiff)) + EXIF + tiff


def _check_size(width: int, height: int) -> None:
  if width * height > MAX_PIXELS:
    raise BadImageError(
      f'the image has {width} x {height} pixels; at most {MAX_PIXELS:,} are decoded: cut out the '
      'person, or shrink the image'
    )
  if width * height <= 0:
    raise BadImageError('the image is damaged (it has no pixels)')


def _check_png(contents: bytes) -> None:
  _check_size(*struct.unpack_from('>II', contents, 16))
  texts = sum(name in PNG_TEXTS for name, _, _ in _chunks(contents))
  if texts > MAX_TEXTS:
    raise BadImageError(
      f'the image has {texts} compressed texts, and at most {MAX_TEXTS} are read: save it without'
    )


def _check_bmp(contents: bytes) -> None:
  (header,) = struct.unpack_from('<I', contents, 14)
  if header == 12:
    width, height = struct.unpack_from('<HH', contents, 18)
    compression = 0
  else:
    width, height = struct.unpack_from('<ii', contents, 18)
    (compression,) = struct.unpack_from('<I', contents, 30)
  _check_size(width, abs(height))
  if compression in (1, 2) and len(contents) > _MAX_RLE_BYTES:
    raise BadImageError(
      f'it is a run-length encoded BMP of {len(contents):,} bytes, and at most '
      f'{_MAX_RLE_BYTES:,} are decoded: save it as PNG'
    )


def _check_gif(contents: bytes) -> None:
  _check_size(*struct.unpack_from('<HH', contents, 6))
  flags = contents[10]
  position = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
  count = 0
  while position < len(contents) and contents[position] == 0x21:  # an extension, before the image
    position += 2
    while position < len(contents) and contents[position]:
      position += contents[position] + 1
      count += 1
      if count > MAX_CHUNKS:
        raise BadImageError(
          f'the image has more than {MAX_CHUNKS} blocks, which no camera writes: save it as PNG'
        )
    position += 1


def _check_webp(contents: bytes) -> None:
  """Looks at the size of the canvas, for which Pillow asks memory when it opens the file."""
  part = contents[12:16]
  if part == b'VP8X':
    sides = contents[24:27], contents[27:30]
    _check_size(*(1 + int.from_bytes(side, 'little') for side in sides))
  elif part == b'VP8L':
    (bits,) = struct.unpack_from('<I', contents, 21)
    _check_size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
  elif part == b'VP8 ':
    width, height = struct.unpack_from('<HH', contents, 26)
    _check_size(width & 0x3FFF, height & 0x3FFF)
  else:
    raise BadImageError('the image is truncated or damaged (a WebP without a picture)')


def _check_tiff(contents: bytes) -> None:
  order = '<' if contents.startswith(b'II') else '>'
  (start,) = struct.unpack_from(order + 'I', contents, 4)
  (count,) = struct.unpack_from(order + 'H', contents, start)
  if count > MAX_TAGS:
    raise BadImageError(f'the image has {count} TIFF tags, and at most {MAX_TAGS} are read')
  sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
  total = 0
  for position in range(start + 2, start + 2 + 12 * count, 12):
    _, type_, number = struct.unpack_from(order + 'HHI', contents, position)
    total += sizes.get(type_, 1) * number
  # Each tag has bytes of its own, unless somebody points with all of them to the same ones.
  if total > len(contents):
    raise BadImageError(
      'the image is truncated or damaged (its TIFF tags are longer than the file)'
    )


_CHECKS = {
  'JPEG': read_jpeg,
  'PNG': _check_png,
  'BMP': _check_bmp,
  'GIF': _check_gif,
  'WEBP': _check_webp,
  'TIFF': _check_tiff,
}


def _what_else(contents: bytes, form: str) -> str:
  """What a file is that is not taken, and what to do about it."""
  if form:
    return f'it is a {form.replace("WEBP", "WebP")} image: save it as JPEG or PNG'
  for start, sentence in _OTHERS:
    if contents.startswith(start):
      return sentence
  if contents[4:8] == b'ftyp':
    brand = contents[8:12]
    if brand in (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1'):
      return 'it is a HEIC image, as phones write it: save it as JPEG'
    if brand in (b'avif', b'avis'):
      return 'it is an AVIF image: save it as JPEG or PNG'
    return 'it is a video: save its frames as JPEG or PNG'
  if contents[:4] == b'RIFF' and contents[8:12] == b'AVI ':
    return 'it is a video: save its frames as JPEG or PNG'
  return f'it is not an image (it starts with {contents[:8]!r})'
