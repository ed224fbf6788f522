from __future__ import annotations

import ast
import functools
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.data import picture_zoo as zoo
from tfreid import image_bytes
from tfreid.data import image_files

FILES = zoo.zoo()
RGB = zoo.saved(zoo.colors(), 'PNG')
JPEG = zoo.saved(zoo.colors(), 'JPEG')


@functools.cache
def exported(height, width):
  return tf.function(
    lambda contents: image_files.decode_batch(contents, (height, width)),
    input_signature=[tf.TensorSpec([None], tf.string)],
  )


def alone(contents, shape):
  """What the exported graph makes of a file, in the size that it has."""
  return exported(*shape[:2])(tf.constant([contents]))[0].numpy()


@pytest.mark.parametrize('name', FILES)
def test_every_way_from_a_file_to_pixels_gives_what_pillow_shows(name):
  expected = zoo.shown(FILES[name])
  assert expected.shape in ((*zoo.SIZE, 3), (*zoo.SIZE[::-1], 3))
  np.testing.assert_array_equal(image_bytes.pixels(FILES[name]), expected)
  np.testing.assert_array_equal(image_files.decode_whole(FILES[name]), expected)
  sent = image_bytes.for_model(FILES[name])
  np.testing.assert_array_equal(alone(sent, expected.shape), expected)
  try:
    found = alone(FILES[name], expected.shape)
  except tf.errors.InvalidArgumentError as error:
    assert any(word in error.message for word in ('neither a JPEG', 'scans', 'CMYK', 'EXIF'))
    assert sent != FILES[name]
  else:
    np.testing.assert_array_equal(found, expected)


def test_orientations_turn_the_picture():
  upright = zoo.shown(JPEG)
  turned = [zoo.shown(FILES[f'jpeg orientation {i}, big end first']) for i in range(1, 9)]
  np.testing.assert_array_equal(turned[0], upright)
  np.testing.assert_array_equal(turned[5], np.rot90(upright, -1))
  assert len({(image.shape, image.tobytes()) for image in turned}) == 8


def test_most_files_are_sent_to_a_model_as_they_are():
  same = [name for name in FILES if image_bytes.for_model(FILES[name]) is FILES[name]]
  assert {'jpeg', 'jpeg progressive', 'png', 'png 16 bits', 'png palette', 'mpo'} <= set(same)
  assert 'jpeg orientation 6, little end first' in same
  assert not any(name.startswith(('bmp', 'gif', 'tiff', 'webp')) for name in same)


def test_many_files_are_read_in_order_with_their_positions(tmp_path):
  paths = []
  for contents in FILES.values():
    paths.append(str(tmp_path / f'{len(paths)}.png'))  # what they are, not what they are called
    (tmp_path / paths[-1]).write_bytes(contents)
  found = list(image_files.images(paths))
  assert [int(position) for position, _ in found] == list(range(len(FILES)))
  for (_, image), contents in zip(found, FILES.values()):
    np.testing.assert_array_equal(image, zoo.shown(contents))
  (tmp_path / paths[3]).unlink()
  (tmp_path / paths[5]).write_bytes(b'')
  found = [int(position) for position, _ in image_files.images(paths, (8, 4), skip_bad=True)]
  assert found == [i for i in range(len(FILES)) if i not in (3, 5)]
  sizes = list(image_files.sizes(paths))
  assert [i for i, size in enumerate(sizes) if size is None] == [3, 5]
  assert sizes[-1] == zoo.SIZE[::-1]
  np.testing.assert_array_equal(image_files.undecodable(paths), [3, 5])


def test_orientations_are_read_alike_in_damaged_metadata():
  """In Python and in the graph, of 300 EXIF segments with a few wrong bytes."""
  rng = np.random.default_rng(0)
  read = tf.function(image_files._orientation, input_signature=[tf.TensorSpec([], tf.string)])
  found = []
  for i in range(300):
    data = bytearray(b'Exif\0\0' + zoo.exif(int(rng.integers(2, 9)), '<>'[i % 2]))
    for position in rng.integers(0, len(data), rng.integers(0, 3)):
      data[position] = rng.choice([0, 1, 3, 8, 18, 40, 255])
    contents = zoo.with_segment(JPEG[:20], 0xE1, bytes(data[: rng.integers(20, len(data) + 30)]))
    found.append(image_bytes.exif_orientation(contents))
    assert int(read(contents)) == found[-1], contents
  assert set(found) == set(range(1, 9))


def test_damaged_files_are_refused_everywhere_or_nowhere(tmp_path):
  """Nowhere do two ways from a file to pixels give different pictures, or another size."""
  rng = np.random.default_rng(1)
  outcomes = []
  for name in ('jpeg', 'jpeg progressive', 'png', 'png palette', 'bmp', 'jpeg inks'):
    for i in range(12):
      size = len(FILES[name])
      data = bytearray(FILES[name][: size if i % 2 else rng.integers(size // 2, size)])
      for position in rng.integers(0, len(data), rng.integers(0, 2)):
        data[position] = rng.integers(256)
      found = []
      for way in (image_bytes.pixels, lambda data: image_files.decode_whole(data).numpy()):
        try:
          found.append(way(bytes(data)))
        except (image_bytes.BadImageError, tf.errors.OpError):
          found.append(None)
      if all(image is not None for image in found):
        np.testing.assert_array_equal(*found)
      outcomes.append([image is not None for image in found])
  assert [True, True] in outcomes and [False, False] in outcomes


def bomb_of_texts():
  text = b'Comment\0\0' + zlib.compress(bytes(2**20))
  texts = [zoo.chunk(b'zTXt', text)] * 200
  header = struct.pack('>IIBBBBB', *zoo.SIZE[::-1], 8, 0, 0, 0, 0)
  return zoo.png(header, bytes(zoo.SIZE[0] * (zoo.SIZE[1] + 1)), *texts)


def many_chunks():
  return RGB[:33] + zoo.chunk(b'tEXt', b'a\0b') * 20_000 + RGB[33:]


def huge_png():
  return zoo.png(struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0), bytes(1000))


def huge_jpeg():
  frame = JPEG.index(b'\xff\xc0')
  return JPEG[: frame + 5] + struct.pack('>HH', 65_000, 65_000) + JPEG[frame + 9 :]


def huge_bmp():
  return zoo.bmp()[:18] + struct.pack('<ii', 50_000, 50_000) + zoo.bmp()[26:]


def huge_webp():
  lossless = zoo.saved(zoo.colors(), 'WEBP', lossless=True)
  return lossless[:21] + struct.pack('<I', 0x0FFFFFFF) + lossless[25:]


def many_tags():
  entries = struct.pack('<HHII', 700, 7, 2**20, 8) * 900
  return b'II*\0' + struct.pack('<IH', 8, 900) + entries + bytes(2**20)


def run_length_bmp():
  contents = bytearray(zoo.saved(zoo.colors().quantize(16), 'BMP'))
  contents[30:34] = struct.pack('<I', 1)
  return bytes(contents) + bytes(2**21)


def gif_of_blocks():
  gif = zoo.saved(zoo.colors().quantize(2), 'GIF')
  start = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
  return gif[:start] + b'!\xfe' + b'\x01x' * 50_000 + b'\0' + gif[start:]


BOMBS = {
  'scans': (zoo.progressive_with_scans(30_000), 'more than 100 scans'),
  'segments': (zoo.with_segment(JPEG, 0xFE, b'')[:6] * 1 + b'\xff\xfe\0\x02' * 50_000, 'segments'),
  'frames': (JPEG[:2] + JPEG[JPEG.index(b'\xff\xc0') :][:19] * 2 + JPEG[2:], 'one JPEG frame'),
  'huge jpeg': (huge_jpeg(), '65000 x 65000 pixels'),
  'huge png': (huge_png(), '60000 x 60000 pixels'),
  'huge bmp': (huge_bmp(), '50000 x 50000 pixels'),
  'huge webp': (huge_webp(), 'pixels'),
  'chunks': (many_chunks(), 'more than 10000 chunks'),
  'texts': (bomb_of_texts(), '200 compressed texts'),
  'tags': (many_tags(), 'TIFF tags'),
  'run-length': (run_length_bmp(), 'run-length'),
  'blocks': (gif_of_blocks(), 'blocks'),
}


@pytest.mark.parametrize('name', BOMBS)
def test_what_no_camera_writes_is_refused_before_it_is_decoded(name, tmp_path, monkeypatch):
  contents, said = BOMBS[name]

  def never(*_):
    raise AssertionError('Pillow was asked')

  monkeypatch.setattr(Image, 'open', never)
  for refuse in (image_bytes.pixels, image_bytes.for_model, image_bytes.check):
    with pytest.raises(image_bytes.BadImageError, match=said):
      refuse(contents)
  path = tmp_path / 'bomb'
  path.write_bytes(contents)
  assert said in image_files.reason(str(path))


def test_a_text_beside_the_picture_is_not_unfolded():
  """80 MB in 80 kB; the picture is what it is without."""
  text = zoo.chunk(b'zTXt', b'k\0\0' + zlib.compress(bytes(80_000_000), 9))
  tracemalloc.start()
  try:
    found = image_bytes.pixels(RGB[:33] + text + RGB[33:])
    assert tracemalloc.get_traced_memory()[1] < 2**22
  finally:
    tracemalloc.stop()
  np.testing.assert_array_equal(found, zoo.shown(RGB))


@pytest.mark.parametrize('name', ['scans', 'huge jpeg', 'huge png', 'texts'])
def test_the_graphs_refuse_it_too(name):
  contents, _ = BOMBS[name]
  for decode in (
    lambda: image_files.decode(contents, (8, 4)),
    lambda: image_files.decode_batch(tf.constant([JPEG, contents]), (8, 4)),
  ):
    with pytest.raises(tf.errors.InvalidArgumentError, match='more than|pixels|compressed texts'):
      decode()


@pytest.mark.parametrize(
  ('contents', 'said'),
  [
    (b'', 'the file is empty'),
    (b'%PDF-1.7', 'PDF'),
    (b'%!PS-Adobe-3.0 EPSF-3.0', 'PostScript'),
    (b'\0\0\0\x18ftypheic\0\0', 'HEIC'),
    (b'\0\0\0\x18ftypavif\0\0', 'AVIF'),
    (b'\0\0\0\x18ftypisom\0\0', 'video'),
    (b'RIFF\0\0\0\0AVI LIST', 'video'),
    (b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', 'Thumbs.db'),
    (b'II+\0\x08\0\0\0', 'BigTIFF'),
    (b'<html>not found</html>', "not an image .it starts with b'<html>n"),
    (b'\xff\xd8\xff', 'truncated or damaged'),
    (b'\x89PNG\r\n\x1a\n', 'truncated or damaged'),
    (b'BM', 'truncated or damaged'),
    (b'GIF89a', 'truncated or damaged'),
    (b'RIFF\0\0\0\0WEBPVP8L', 'truncated or damaged'),
    (b'II*\0\x08\0\0\0\xff', 'truncated or damaged'),
    (JPEG[: len(JPEG) // 2], 'truncated or damaged'),
    (JPEG.replace(b'\xff\xc0', b'\xff\xc3', 1), 'rare kind'),
  ],
)
def test_what_is_no_picture_gets_a_sentence(contents, said):
  with pytest.raises(image_bytes.BadImageError, match=said):
    image_bytes.pixels(contents)
  with pytest.raises(tf.errors.InvalidArgumentError):
    image_files.decode_whole(contents)


@pytest.mark.parametrize(
  'contents',
  [
    b'\xff\xd8' + b'\xff' * 2**22,
    b'\xff\xd8\xff\xda\0\x02' + b'\xff\0' * 2**21,
    b'\xff\xd8\xff\xda\0\x02' + b'\xff\xd0' * 2**21,
    b'\xff\xd8\xff\xe1' + bytes(2**22),
    b'\x89PNG\r\n\x1a\n' + bytes(2**22),
    b'GIF89a' + bytes(5) + b'\x87\0' + b'!' * 2**22,
    b'\xff\xd8\xff' + b'Exif\0\0' * 2**19,
  ],
)
def test_the_worst_bytes_are_judged_in_linear_time(contents):
  """Would each byte be looked at from each other one, this would take hours."""
  with pytest.raises(image_bytes.BadImageError):
    image_bytes.for_model(contents)


def test_files_that_are_none_are_not_opened(tmp_path):
  os.mkfifo(tmp_path / 'pipe')  # opening it to read would wait for ever
  for path, said in (
    (tmp_path / 'pipe', 'not a regular file'),
    (tmp_path, 'not a regular file'),
    (tmp_path / 'missing', 'no such file'),
    ('\0', 'cannot be read'),
    ('/dev/zero', 'not a regular file'),
  ):
    with pytest.raises(image_bytes.BadImageError, match=said):
      image_bytes.read(path)


def test_only_known_formats_are_ever_opened():
  with pytest.raises(image_bytes.BadImageError, match='it is a GIF image: save it as JPEG or PNG'):
    image_bytes.picture(FILES['gif'], formats=('JPEG', 'PNG'))
  assert {image_bytes.kind(contents) for contents in FILES.values()} == set(image_bytes.FORMATS)


def test_pillow_is_never_asked_to_guess_the_format():
  """Of all it knows, some start other programs: each call in the package names what it takes."""
  calls = 0
  for path in sorted((Path(__file__).parents[2] / 'tfreid').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('Image.open'):
        calls += 1
        assert 'formats' in {keyword.arg for keyword in node.keywords}, (path, node.lineno)
  assert calls >= 2


def test_pictures_as_cameras_and_phones_write_them(shared_photographs):
  """All ways to the pixels of each file agree with Pillow, or none gives any."""
  names = sorted((shared_photographs / 'odd_files').iterdir())
  pictures = 0
  for path in names:
    contents = path.read_bytes()
    if image_bytes.kind(contents):
      expected = zoo.shown(contents)
      np.testing.assert_array_equal(image_files.decode_whole(contents), expected)
      if expected.size < 2**20:
        sent = image_bytes.for_model(contents)
        np.testing.assert_array_equal(image_bytes.pixels(contents), expected)
        np.testing.assert_array_equal(alone(sent, expected.shape), expected)
      pictures += 1
    else:
      assert path.suffix.lower() in ('.heic', '.db')
      assert any(word in image_files.reason(str(path)) for word in ('HEIC', 'Thumbs.db'))
  assert pictures > 20 and len(names) == pictures + 2


def test_bmp_files_of_peta_are_read_as_pillow_reads_them(shared_photographs):
  """A sample; some of them have two bytes behind the last row."""
  paths = sorted((shared_photographs / 'peta' / 'images').glob('*.bmp'))[::16]
  found = list(image_files.images([str(path) for path in paths]))
  assert len(found) == len(paths) > 40
  odd = 0
  for path, (_, image) in zip(paths, found):
    contents = path.read_bytes()
    np.testing.assert_array_equal(image, zoo.shown(contents))
    odd += len(contents) != int.from_bytes(contents[10:14], 'little') + image.shape[0] * (
      (3 * image.shape[1] + 3) // 4 * 4
    )
  assert odd > 5


def test_a_picture_for_a_page_is_small_upright_and_says_nothing_else():
  large = zoo.colors().resize((600, 900))
  data = b'Exif\0\0' + zoo.exif(6)
  contents = zoo.with_segment(zoo.saved(large, 'JPEG', comment=b'secret'), 0xE1, data)
  image = image_bytes.picture(contents, at_most=(128, 256))
  assert (image.size, image.mode, image.info) == ((128, 85), 'RGB', {})
