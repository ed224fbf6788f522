from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.data import picture_zoo
from tfreid.web.thumbnails import Thumbnails, UnreadableError, check_upload


def encoded(size=(40, 80), form='PNG', **options):
  pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, form, **options)
  return buffer.getvalue()


def bomb(width, height):
  """A PNG of some kilobytes whose header promises width x height pixels."""

  def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  rows = zlib.compress(bytes(1000 * (3 * min(width, 1000) + 1)))
  signature = b'\x89PNG\r\n\x1a\n'
  return signature + chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


def opened(contents):
  return Image.open(io.BytesIO(contents))


@pytest.mark.parametrize('form', ['PNG', 'JPEG', 'BMP', 'GIF', 'WEBP'])
def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape(tmp_path, form):
  path = tmp_path / 'crop'
  path.write_bytes(encoded((600, 900), form))
  found = Thumbnails().get(str(path))
  image = opened(found.contents)
  assert (image.format, image.size) == ('JPEG', (128, 192))


def test_small_pictures_are_not_enlarged(tmp_path):
  (tmp_path / 'crop.png').write_bytes(encoded((20, 50)))
  assert opened(Thumbnails().get(str(tmp_path / 'crop.png')).contents).size == (20, 50)


def test_what_a_camera_wrote_into_the_file_stays_there(tmp_path):
  exif = Image.Exif()
  exif[0x013B] = 'the owner of the camera'
  path = tmp_path / 'crop.jpg'
  path.write_bytes(encoded(form='JPEG', exif=exif, comment=b'a secret place'))
  assert b'the owner' in path.read_bytes()
  found = Thumbnails().get(str(path)).contents
  assert b'the owner' not in found
  assert b'secret' not in found


def test_blurring_takes_the_detail(tmp_path):
  path = tmp_path / 'crop.png'
  path.write_bytes(encoded((128, 256)))
  sharp, blurred = (
    np.asarray(opened(Thumbnails(blur=blur).get(str(path)).contents), np.float32) for blur in (0, 6)
  )
  assert blurred.shape == sharp.shape
  assert np.abs(np.diff(blurred, axis=0)).mean() < 0.1 * np.abs(np.diff(sharp, axis=0)).mean()


def test_a_changed_file_is_made_anew_and_an_unchanged_one_is_not(tmp_path, monkeypatch):
  made = []
  make = Thumbnails._make
  monkeypatch.setattr(Thumbnails, '_make', lambda self, path: made.append(path) or make(self, path))
  path = tmp_path / 'crop.png'
  path.write_bytes(encoded())
  kept = Thumbnails()
  first = kept.get(str(path))
  assert kept.get(str(path)) == first
  assert len(made) == 1
  path.write_bytes(encoded((44, 90)))
  assert kept.get(str(path)).etag != first.etag
  assert len(made) == 2


def test_memory_is_bounded(tmp_path):
  kept = Thumbnails(memory=20_000)
  for i in range(40):
    path = tmp_path / f'{i}.png'
    path.write_bytes(encoded((40 + i, 80)))
    kept.get(str(path))
  assert 1 <= len(kept._kept) < 20
  assert sum(len(t.contents) for t in kept._kept.values()) == kept._bytes <= 20_000


@pytest.mark.parametrize(
  'contents',
  [b'', b'not an image', encoded()[:100], bomb(60_000, 60_000), b'<svg onload="alert(1)"/>'],
)
def test_what_cannot_be_shown_is_told_without_its_path(tmp_path, contents):
  path = tmp_path / 'secret-folder.png'
  path.write_bytes(contents)
  with pytest.raises(UnreadableError) as error:
    Thumbnails().get(str(path))
  assert 'secret' not in str(error.value)


def test_only_files_are_opened(tmp_path):
  import os

  os.mkfifo(tmp_path / 'pipe')  # opening it would wait for ever
  for path in (tmp_path, tmp_path / 'missing', tmp_path / 'pipe', '\0'):
    with pytest.raises(UnreadableError):
      Thumbnails().get(str(path))


@pytest.mark.parametrize('form', ['PNG', 'JPEG'])
def test_a_crop_may_be_uploaded(form):
  check_upload(encoded(form=form))


@pytest.mark.parametrize(
  ('contents', 'said'),
  [
    (b'', 'the file is empty'),
    (b'%PDF-1.7', 'PDF document'),
    (b'<html>', 'not an image'),
    (encoded(form='GIF'), 'it is a GIF image'),
    (encoded()[:-400], 'truncated or damaged'),
    (encoded(form='JPEG')[:-700], 'truncated or damaged'),
    (bomb(5000, 5000), '5000 x 5000 pixels'),
    (bomb(2**31 - 1, 2**31 - 1), 'pixels'),
    (bomb(0, 0), 'no pixels'),
    (picture_zoo.progressive_with_scans(30_000), 'more than 100 scans'),
  ],
)
def test_other_uploads_are_refused(contents, said):
  with pytest.raises(ValueError, match=said):
    check_upload(contents)


@pytest.mark.parametrize('contents', [bomb(5000, 5000), picture_zoo.progressive_with_scans(30_000)])
def test_a_bomb_is_refused_before_it_is_decoded(contents, monkeypatch, tmp_path):
  def never(*_, **__):
    raise AssertionError('opened')

  monkeypatch.setattr(Image, 'open', never)
  with pytest.raises(ValueError, match='pixels|scans'):
    check_upload(contents)
  (tmp_path / 'bomb').write_bytes(contents)
  with pytest.raises(UnreadableError):
    Thumbnails().get(str(tmp_path / 'bomb'))


def test_a_phone_photo_stands_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  (tmp_path / 'lying.jpg').write_bytes(encoded((80, 40), 'JPEG', exif=exif))
  assert opened(Thumbnails().get(str(tmp_path / 'lying.jpg')).contents).size == (40, 80)
