"""From an image file to pixels in TensorFlow, for training, evaluation and serving. Floor 1.

What the picture in a file is, `image_bytes` decides, by Pillow. Here the kinds that almost all
files are of are decoded by TensorFlow's own operations, in parallel and without Python, to the same
pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfreid import image_bytes

# Called with (images done, images in all) while something lasts.
Progress = Callable[[int, int], None]

# Files between two reports of progress.
_CHUNK = 1024
# Files of which the first bytes are looked at together, and how many bytes: the header of a BMP.
_SCREENED = 16
_START = 54
_JPEG_MAGIC, _PNG_MAGIC = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'
# Kinds of files, by how they are decoded.
_JPEG, _PNG, _BMP, _RARE = range(4)
_TOO_LARGE = (
  f'An image has more than {image_bytes.MAX_PIXELS} pixels. Send the crop only. Its shape: '
)


class _Screened(NamedTuple):
  """What the bytes of N files say of them before anything is unfolded, but for a JPEG's frame.

  Attributes:
    kind: int32 [N], which of the _DECODERS gives the picture that `image_bytes.pixels` gives.
    contents: string [N], without what stands behind the picture of a BMP.
    has_exif: bool [N], whether a JPEG may say that it lies.
    objection: string [N], why a graph without Python must not decode a file; '' if it may.
  """

  kind: tf.Tensor
  contents: tf.Tensor
  has_exif: tf.Tensor
  objection: tf.Tensor


def decode(contents: tf.Tensor, image_size: Sequence[int]) -> tf.Tensor:
  """The picture in an image file, upright and resized, as training and evaluation see it.

  Not for a graph that is saved, which has `decode_batch`; `images` is faster for many files.

  Args:
    contents: string scalar, the bytes of one of `image_bytes.KINDS`.
    image_size: (height, width).

  Returns:
    uint8 [height, width, 3].

  Raises:
    InvalidArgumentError: when it runs, for what is no picture, damaged, or beyond a limit.
  """
  return resize(decode_whole(contents), image_size)


def decode_whole(contents: tf.Tensor) -> tf.Tensor:
  """The picture in an image file, upright, uint8 [H, W, 3]: that of `image_bytes.pixels`."""
  screened = _screened_once(tf.convert_to_tensor(contents)[tf.newaxis])
  return _decode_once(screened.contents[0], screened.kind[0])


def images(
  paths: Sequence[str] | np.ndarray,
  image_size: Sequence[int] | None = None,
  *,
  skip_bad: bool = False,
  parallel: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
  """(position, picture) of each file, in order: int64 scalar and uint8 [H, W, 3] as of `decode`.

  Args:
    paths: of the files.
    image_size: (height, width); by default each has its own.
    skip_bad: pass over the files that cannot be decoded, which otherwise are errors when their
      turn comes. Reading is a little slower then.
    parallel: files at a time.
  """
  paths = np.asarray(paths, dtype=object)
  positions = np.arange(len(paths), dtype=np.int64)
  dataset = tf.data.Dataset.from_tensor_slices((positions, paths))
  how = {'num_parallel_calls': parallel, 'deterministic': True}

  def read(position, path):
    return position, tf.io.read_file(path)

  def screen(positions, contents):
    screened = _screened_once(contents)
    return positions, screened.contents, screened.kind

  def picture(position, contents, kind):
    image = _decode_once(contents, kind)
    return position, image if image_size is None else resize(image, image_size)

  # A few dozen operations look at the bytes: for many files at a time they cost next to nothing.
  # A file that cannot be read would take the others of its batch with it.
  # Not in parallel, and few at a time: photographs of phones have megabytes.
  dataset = dataset.map(read, **how).batch(1 if skip_bad else _SCREENED).map(screen)
  dataset = dataset.unbatch().map(picture, **how)
  if skip_bad:
    return dataset.ignore_errors()
  return dataset.apply(tf.data.experimental.assert_cardinality(len(paths)))


def decode_batch(contents: tf.Tensor, image_size: Sequence[int]) -> tf.Tensor:
  """Pictures as of `decode`, by stock operations only, so that a server without Python runs it.

  It takes JPEG and PNG files, and refuses those few of which it would see other pixels.
  `image_bytes.for_model` makes a file that it takes of any that `decode` takes.

  Args:
    contents: string [B].
    image_size: (height, width).

  Returns:
    uint8 [B, height, width, 3].

  Raises:
    InvalidArgumentError: when it runs, for other files, damaged ones, and those beyond a limit.
  """
  screened = _screened(contents)
  with tf.control_dependencies(
    [tf.debugging.Assert(tf.reduce_all(screened.objection == ''), [_first(screened.objection)])]
  ):
    contents = tf.identity(contents)
  upright = tf.ones(tf.shape(contents), tf.int64)
  orientations = tf.cond(
    tf.reduce_any(screened.has_exif),
    lambda: tf.map_fn(_orientation, contents, fn_output_signature=tf.int64),
    lambda: upright,
  )

  def picture(elements):
    contents, is_jpeg, orientation = elements
    with tf.control_dependencies(_frame_checks(contents, is_jpeg)):
      image = _decode_stock(tf.identity(contents))
    image = tf.cond(orientation == 1, lambda: image, lambda: _turned(image, orientation))
    return resize(image, image_size)

  return tf.map_fn(
    picture,
    (contents, screened.kind != _PNG, orientations),
    fn_output_signature=tf.TensorSpec([*image_size, 3], tf.uint8),
    parallel_iterations=4,
  )


def resize(image: tf.Tensor, image_size: Sequence[int]) -> tf.Tensor:
  """A picture in another size: bilinear with antialiasing, rounded to whole grey levels.

  Args:
    image: uint8 [H, W, 3].
    image_size: (height, width).

  Returns:
    uint8 [height, width, 3].
  """
  height, width = image_size
  image.set_shape([None, None, 3])
  size = tf.shape(image)

  def scaled(antialias):
    resized = tf.image.resize(image, (height, width), method='bilinear', antialias=antialias)
    # Means of grey levels: rounded, none is beyond 0 ... 255.
    return tf.cast(tf.round(resized), tf.uint8)

  # Enlarging with and without antialiasing is the same, and faster without.
  enlarges = tf.reduce_all(size <= [height, width, 3])
  image = tf.cond(enlarges, lambda: scaled(False), lambda: scaled(True))
  return tf.ensure_shape(image, [height, width, 3])


def _screened(contents: tf.Tensor) -> _Screened:
  """What is to be known of files, string [N], in time linear in their length."""
  start = tf.strings.join([tf.strings.substr(contents, 0, _START), tf.constant(bytes(_START))])
  start = tf.io.decode_raw(tf.strings.substr(start, 0, _START), tf.uint8)
  start = tf.cast(tf.reshape(start, [-1, _START]), tf.int64)
  is_jpeg, is_png, is_bmp = (
    tf.reduce_all(start[:, : len(magic)] == list(magic), axis=1)
    for magic in (_JPEG_MAGIC, _PNG_MAGIC, b'BM')
  )
  has_exif, objection_to_jpeg = _screened_jpeg(tf.where(is_jpeg, contents, ''))
  # Most batches have JPEG files only.
  objection_to_png = tf.cond(
    tf.reduce_any(is_png),
    lambda: _screened_png(tf.where(is_png, contents, ''), start),
    lambda: tf.zeros_like(contents),
  )
  bmp_size, is_simple_bmp = tf.cond(
    tf.reduce_any(is_bmp),
    lambda: _screened_bmp(contents, start),
    lambda: (tf.zeros_like(is_bmp, tf.int32), tf.zeros_like(is_bmp)),
  )
  lengths = tf.strings.length(contents)
  no_jpeg_or_png = tf.strings.join(
    [
      'An image is neither a JPEG nor a PNG file. Its number of bytes: ',
      tf.strings.as_string(lengths),
    ]
  )
  objection = tf.where(
    is_jpeg, objection_to_jpeg, tf.where(is_png, objection_to_png, no_jpeg_or_png)
  )
  kind = tf.where(is_jpeg & ~has_exif, _JPEG, tf.where(is_png, _PNG, _RARE))
  kind = tf.where(objection == '', kind, tf.where(is_bmp & is_simple_bmp, _BMP, _RARE))
  # Some programs write a few bytes behind the last row, which TensorFlow does not bear.
  lengths = tf.where(kind == _BMP, bmp_size, lengths)
  return _Screened(
    kind, tf.strings.substr(contents, tf.zeros_like(lengths), lengths), has_exif, objection
  )


def _screened_jpeg(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  # In a scan 0xFF is followed by 0: each of these pairs begins a scan, or stands in metadata. Not
  # one scan escapes the count, and of other data it takes 64 KiB to make one such pair by chance.
  scans = _occurrences(contents, b'\xff\xda')
  limit = image_bytes.MAX_SCANS
  objection = tf.where(
    scans > limit,
    f'An image has more than {limit} scans, which no camera writes, or other data behind the '
    'picture. Save it as an ordinary JPEG file.',
    '',
  )
  start = tf.strings.substr(contents, 0, image_bytes.EXIF_WITHIN)
  return _occurrences(start, image_bytes.EXIF) > 0, objection


def _screened_png(contents: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
  # The first chunk of a PNG is its header: width and height are big-endian, from byte 16 on.
  width, height = _number(start, 16, 4), _number(start, 20, 4)
  # Each side first: the product of two sides of 2^32 pixels would not fit.
  limit = image_bytes.MAX_PIXELS
  too_large = (width > limit) | (height > limit) | (width * height > limit)
  texts = tf.add_n([_occurrences(contents, name) for name in image_bytes.PNG_TEXTS])
  exif = tf.add_n([_occurrences(contents, name) for name in image_bytes.PNG_EXIF])
  objection = tf.where(
    exif > 0, 'A PNG file has EXIF data, which may say that it lies. Turn it, save it without.', ''
  )
  objection = tf.where(
    texts > image_bytes.MAX_TEXTS,
    f'An image has more than {image_bytes.MAX_TEXTS} compressed texts. Save it without them.',
    objection,
  )
  return tf.where(too_large, _TOO_LARGE, objection)


def _screened_bmp(contents: tf.Tensor, start: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """How many bytes BMP files need, and whether TensorFlow reads them as Pillow does."""
  offset, header, width, height, planes, bits, compression = (
    _number(start, position, size, little=True)
    for position, size in ((10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4))
  )
  limit = image_bytes.MAX_PIXELS
  # A negative height, of rows from top to bottom, is a huge one here.
  fits = (width > 0) & (width <= limit) & (height > 0) & (height <= limit)
  needed = offset + (width * 3 + 3) // 4 * 4 * height
  fits &= (width * height <= limit) & (needed <= tf.cast(tf.strings.length(contents), tf.int64))
  is_simple = (header == 40) & (planes == 1) & (bits == 24) & (compression == 0) & fits
  return tf.cast(tf.where(is_simple, needed, 0), tf.int32), is_simple


def _decode_screened(contents: tf.Tensor, kind: tf.Tensor) -> tf.Tensor:
  """The picture in a file of one of the kinds, uint8 [H, W, 3]."""

  def jpeg():
    # Of these sides the product is within the limit too.
    side = int(image_bytes.MAX_PIXELS**0.5)
    simple = tf.reduce_all(tf.io.extract_jpeg_shape(contents) <= [side, side, 3])
    return tf.cond(simple, lambda: _decode_stock(contents), lambda: _decode_rare(contents))

  decoders = {
    _JPEG: jpeg,
    _PNG: lambda: _decode_stock(contents),
    _BMP: lambda: tf.io.decode_bmp(contents, channels=3),
    _RARE: lambda: _decode_rare(contents),
  }
  image = tf.switch_case(kind, decoders)
  image.set_shape([None, None, 3])
  return image


def _decode_stock(contents: tf.Tensor) -> tf.Tensor:
  """The picture in a JPEG or PNG file, as it is stored."""
  # TensorFlow's default is a faster cosine transform, by up to twenty grey levels from the exact
  # one, which Pillow and browsers have. The operation takes both kinds.
  return tf.io.decode_jpeg(contents, channels=3, dct_method='INTEGER_ACCURATE')


# Not a part of the graph around it, which would be twice as slow for all the other files.
@tf.function(
  input_signature=[tf.TensorSpec([], tf.string)],
  autograph=False,
  experimental_attributes={'_noinline': True},
)
def _decode_rare(contents):
  types = tf.uint8, tf.string
  image, problem = tf.numpy_function(_by_pillow, [contents], types, stateful=False)
  # An exception would come with an account of Python's calls, several times over.
  with tf.control_dependencies([tf.debugging.Assert(problem == '', [problem])]):
    return tf.ensure_shape(image, [None, None, 3])


def _by_pillow(contents: bytes) -> tuple[np.ndarray, bytes]:
  """The picture, and what is wrong with it."""
  try:
    return image_bytes.pixels(contents), b''
  except image_bytes.BadImageError as error:
    return np.empty((0, 0, 3), np.uint8), str(error).encode()


# Traced once for all data sets of a process, each of which would otherwise take a second.
_screened_once = tf.function(
  _screened, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
)
_decode_once = tf.function(
  _decode_screened,
  input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)],
  autograph=False,
)


def _frame_checks(contents: tf.Tensor, is_jpeg: tf.Tensor) -> list[tf.Operation]:
  """Assertions on what the frame of a JPEG says, before its pixels are unfolded."""
  shape = tf.cond(
    is_jpeg, lambda: tf.io.extract_jpeg_shape(contents), lambda: tf.zeros([3], tf.int32)
  )
  shape = tf.cast(shape, tf.int64)
  return [
    tf.debugging.Assert(shape[0] * shape[1] <= image_bytes.MAX_PIXELS, [_TOO_LARGE, shape]),
    tf.debugging.Assert(
      shape[2] < 4, ['An image has four printing inks (CMYK). Send it in RGB colours.']
    ),
  ]


def _turned(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
  """A picture turned as EXIF numbers it, int64 scalar 1 ... 8."""
  image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
  rows = tf.reduce_any(orientation == [3, 4, 7, 8])
  columns = tf.reduce_any(orientation == [2, 3, 6, 7])
  return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([rows, columns, False]))


def _orientation(contents: tf.Tensor) -> tf.Tensor:
  """`image_bytes.exif_orientation` of a JPEG file, string scalar, as int64 scalar."""
  upright = tf.constant(1, tf.int64)
  start = tf.strings.substr(contents, 0, image_bytes.EXIF_WITHIN)
  before = tf.strings.split(start, sep=image_bytes.EXIF)[0]
  length = tf.strings.length(before)
  is_segment = tf.strings.substr(tf.strings.join(['    ', before]), length, 2) == b'\xff\xe1'
  is_first = _occurrences(before[tf.newaxis], b'\xff\xda')[0] == 0
  fits = length + len(image_bytes.EXIF) <= tf.strings.length(start)
  return tf.cond(
    fits & is_segment & is_first,
    lambda: _tiff_orientation(
      tf.strings.substr(start, length + len(image_bytes.EXIF), image_bytes.EXIF_BYTES)
    ),
    lambda: upright,
  )


def _tiff_orientation(tiff: tf.Tensor) -> tf.Tensor:
  """The orientation in the first directory of a TIFF structure, 1 if it has none."""
  upright = tf.constant(1, tf.int64)
  # Padded, so that a number may be read at any place up to the end.
  values = tf.io.decode_raw(tf.strings.join([tiff, tf.constant(bytes(16))]), tf.uint8)
  values = tf.cast(values, tf.int64)
  size = tf.cast(tf.strings.length(tiff), tf.int64)
  is_little = tf.reduce_all(values[:4] == list(b'II*\0'))

  def number(position, width):
    part = values[tf.newaxis, position : position + width]
    return tf.where(is_little, _number(part, 0, width, little=True), _number(part, 0, width))[0]

  def read():
    start = number(4, 4)
    start = tf.where(start + 2 <= size, start, size)
    count = tf.minimum(number(start, 2), tf.maximum(size - start - 2, 0) // 12)
    entries = tf.reshape(values[start + 2 : start + 2 + 12 * count], [-1, 12])
    # The columns of the tag, of its type and of its value, the higher byte first.
    columns = tf.where(is_little, [1, 0, 3, 2, 9, 8], [0, 1, 2, 3, 8, 9])
    fields = tf.gather(entries, columns, axis=1)
    fields = fields[:, 0::2] * 256 + fields[:, 1::2]  # [entries, 3]
    orientations = tf.boolean_mask(
      fields[:, 2], tf.reduce_all(fields[:, :2] == [0x0112, 3], axis=1)
    )
    value = tf.concat([orientations, [1]], axis=0)[0]
    return tf.where((value >= 1) & (value <= 8), value, upright)

  is_big = tf.reduce_all(values[:4] == list(b'MM\0*'))
  return tf.cond((is_little | is_big) & (size >= 10), read, lambda: upright)


def _occurrences(contents: tf.Tensor, part: bytes) -> tf.Tensor:
  """How often a few bytes occur in each of N strings, int64 [N]."""
  return tf.strings.split(contents, sep=part).row_lengths() - 1


def _number(values: tf.Tensor, position: int, width: int, *, little: bool = False) -> tf.Tensor:
  """The unsigned numbers, int64 [N], of some bytes, int64 [N, M], from a position on."""
  weights = [256**i for i in range(width)]
  if not little:
    weights.reverse()
  weights = tf.constant(weights, tf.int64)
  return tf.reduce_sum(values[:, position : position + width] * weights, axis=1)


def _first(sentences: tf.Tensor) -> tf.Tensor:
  """The first of some sentences, string [N], that is not empty, '' if all are."""
  sentences = tf.reshape(sentences, [-1])
  said = tf.boolean_mask(sentences, sentences != '')
  return tf.concat([said, ['']], axis=0)[0]


def sizes(
  paths: Sequence[str] | np.ndarray, *, parallel: int = tf.data.AUTOTUNE
) -> Iterator[tuple[int, int] | None]:
  """(height, width) of each picture as decoded, None of a file that cannot be decoded; in order.

  They are decoded as for training, and not kept.

  Args:
    paths: of the files.
    parallel: files at a time.
  """

  def measure(position, image):
    # The result must depend on the pixels, or the decoding would be optimised away.
    nothing = 0 * tf.cast(tf.reduce_max(image), tf.int32)
    return position, tf.shape(image)[:2] + nothing

  dataset = images(paths, skip_bad=True, parallel=parallel).map(measure)
  done = 0
  for position, size in dataset.as_numpy_iterator():
    yield from [None] * (position - done)
    yield int(size[0]), int(size[1])
    done = position + 1
  yield from [None] * (len(paths) - done)


def undecodable(
  paths: Sequence[str] | np.ndarray,
  *,
  parallel: int = tf.data.AUTOTUNE,
  progress: Progress | None = None,
) -> np.ndarray:
  """Positions (int64 [M], ascending) of the files that cannot be decoded.

  Args:
    paths: of the files.
    parallel: files at a time.
    progress: called after each thousand.
  """
  bad = []
  for position, size in enumerate(sizes(paths, parallel=parallel)):
    if size is None:
      bad.append(position)
    if progress and ((position + 1) % _CHUNK == 0 or position + 1 == len(paths)):
      progress(position + 1, len(paths))
  return np.asarray(bad, np.int64)


def reason(path: str) -> str:
  """Why a file cannot be decoded, in a few words."""
  try:
    contents = image_bytes.read(path)
    image_bytes.pixels(contents)
    decode_whole(tf.constant(contents))
  except image_bytes.BadImageError as error:
    return str(error)
  except tf.errors.OpError as error:
    # Without the names of ops that TensorFlow puts around its sentence.
    said = re.sub(r'\{\{.*?\}\}|\[Op:.*?\]|name:', '', error.message[:1000]).strip()
    return f'the image is truncated or damaged ({said.splitlines()[0]})'
  return 'it can be decoded now, and could not be before'
