"""Image files of every kind that people have, made here, each with what a viewer shows of it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

SIZE = (24, 16)  # height, width, as stored


def saved(image, form, **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def colors(seed=0) -> Image.Image:
  """Smooth noise, so that a JPEG of it is nothing special."""
  noise = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), np.uint8)
  return Image.fromarray(noise).resize(SIZE[::-1], Image.BICUBIC)


def shown(contents: bytes) -> np.ndarray:
  """The picture as Pillow has it, upright, uint8 [H, W, 3]."""
  with Image.open(io.BytesIO(contents)) as image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I;16'):
      image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert('RGB'))


def exif(orientation: int, order='<') -> bytes:
  """A TIFF structure with a tag before and one behind the orientation."""
  tags = [(0x010F, 2, 4, b'abc\0'), (0x0112, 3, 1, None), (0x0128, 3, 1, None)]
  body = struct.pack(order + 'H', len(tags))
  for tag, kind, count, value in tags:
    number = orientation if tag == 0x0112 else 2
    value = value or struct.pack(order + 'HH', number, 0)
    body += struct.pack(order + 'HHI', tag, kind, count) + value
  return (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'I', 8) + body + bytes(4)


def with_segment(jpeg: bytes, marker: int, data: bytes, at=2) -> bytes:
  segment = struct.pack('>BBH', 0xFF, marker, len(data) + 2) + data
  return jpeg[:at] + segment + jpeg[at:]


def chunk(kind: bytes, data: bytes) -> bytes:
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(header: bytes, rows: bytes, *more: bytes) -> bytes:
  body = chunk(b'IHDR', header) + b''.join(more) + chunk(b'IDAT', zlib.compress(rows))
  return b'\x89PNG\r\n\x1a\n' + body + chunk(b'IEND', b'')


def png_of_16_bits(channels: int) -> bytes:
  height, width = SIZE
  values = np.random.default_rng(3).integers(0, 2**16, (height, width * channels))
  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
  header = struct.pack('>IIBBBBB', width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
  return png(header, rows)


def bmp(*, top_down=False, behind=b'') -> bytes:
  contents = bytearray(saved(colors(), 'BMP'))
  if top_down:
    contents[22:26] = struct.pack('<i', -SIZE[0])
  return bytes(contents) + behind


def progressive_with_scans(count: int) -> bytes:
  """A progressive JPEG with its last scan repeated, so that it has more than `count`."""
  contents = saved(colors(), 'JPEG', progressive=True)
  last = contents.rindex(b'\xff\xda')
  return contents[:-2] + contents[last:-2] * count + b'\xff\xd9'


def zoo() -> dict[str, bytes]:
  """Name to contents."""
  rgb, jpeg = colors(), saved(colors(), 'JPEG')
  palette = rgb.quantize(16)
  wide = Image.fromarray(np.random.default_rng(2).integers(0, 2**16, SIZE).astype(np.uint16))
  tiff_turned = Image.Exif()
  tiff_turned[0x0112] = 6
  files = {
    'jpeg': jpeg,
    'jpeg grey': saved(rgb.convert('L'), 'JPEG'),
    'jpeg progressive': saved(rgb, 'JPEG', progressive=True),
    'jpeg 4:4:4': saved(rgb, 'JPEG', subsampling=0, quality=100),
    'jpeg inks': saved(rgb.convert('CMYK'), 'JPEG'),
    'jpeg with bytes behind': jpeg + b'\r\n' * 40,
    'jpeg with a film behind': jpeg + b'\xff\xda film' * 500,
    'turned jpeg with a film behind': with_segment(jpeg, 0xE1, b'Exif\0\0' + exif(8))
    + b'\xff\xda film' * 500,
    'jpeg with broken exif': with_segment(jpeg, 0xE1, b'Exif\0\0' + exif(6)[:17]),
    'jpeg with exif far away': with_segment(jpeg, 0xE1, b'Exif\0\0II*\0\xff\xff\xff\xff'),
    'jpeg with a comment': with_segment(jpeg, 0xFE, b'Exif\0\0' + exif(3)),
    'jpeg with orientation 9': with_segment(jpeg, 0xE1, b'Exif\0\0' + exif(9)),
    'jpeg, exif behind xmp': with_segment(
      with_segment(jpeg, 0xE1, b'Exif\0\0' + exif(6)), 0xE1, b'http://ns.adobe.com/xap/1.0/\0x'
    ),
    'mpo': saved(rgb, 'MPO', save_all=True, append_images=[colors(1)]),
    'png': saved(rgb, 'PNG'),
    'png 1 bit': saved(rgb.convert('1'), 'PNG'),
    'png grey': saved(rgb.convert('L'), 'PNG'),
    'png grey with alpha': saved(rgb.convert('LA'), 'PNG'),
    'png with alpha': saved(Image.merge('RGBA', [*rgb.split(), rgb.convert('L')]), 'PNG'),
    'png palette': saved(palette, 'PNG'),
    'png palette with transparency': saved(palette, 'PNG', transparency=bytes(range(0, 160, 10))),
    'png with one transparent colour': saved(rgb, 'PNG', transparency=(1, 2, 3)),
    'png 16 bits grey': saved(wide, 'PNG'),
    'png 16 bits': png_of_16_bits(3),
    'png turned': saved(rgb, 'PNG', exif=b'Exif\0\0' + exif(6)),
    'png with bytes behind': saved(rgb, 'PNG') + b'behind',
    'png with a profile': saved(rgb, 'PNG', icc_profile=bytes(200)),
    'bmp': bmp(),
    'bmp with bytes behind': bmp(behind=b'\0\0'),
    'bmp from top to bottom': bmp(top_down=True),
    'bmp palette': saved(palette, 'BMP'),
    'bmp grey': saved(rgb.convert('L'), 'BMP'),
    'bmp 1 bit': saved(rgb.convert('1'), 'BMP'),
    'bmp 32 bits': saved(rgb.convert('RGBA'), 'BMP'),
    'gif': saved(palette, 'GIF'),
    'gif animated': saved(palette, 'GIF', save_all=True, append_images=[colors(1).quantize(8)]),
    'webp': saved(rgb, 'WEBP'),
    'webp lossless, turned': saved(rgb, 'WEBP', lossless=True, exif=b'Exif\0\0' + exif(8)),
    'tiff': saved(rgb, 'TIFF'),
    'tiff lzw': saved(rgb, 'TIFF', compression='tiff_lzw'),
    'tiff turned': saved(rgb, 'TIFF', exif=tiff_turned),
    'tiff 16 bits grey': saved(wide, 'TIFF'),
    'tiff inks': saved(rgb.convert('CMYK'), 'TIFF'),
  }
  for orientation in range(1, 9):
    for order, name in (('<', 'little'), ('>', 'big')):
      data = b'Exif\0\0' + exif(orientation, order)
      files[f'jpeg orientation {orientation}, {name} end first'] = with_segment(jpeg, 0xE1, data)
  return files
