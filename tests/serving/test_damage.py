"""Flipped and cut files of a version: each is noticed, in a sentence, and nothing is answered."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import pytest

from tfreid.search.exported import ExportedModel
from tfreid.serving import export, golden, versions
from tfreid.serving.exported_space import ExportedSpace

DATA = 'variables/variables.data-00000-of-00001'


@pytest.fixture
def copy(exported, tmp_path):
  return Path(shutil.copytree(exported, tmp_path / 'people' / '1'))


def files_of(version):
  return sorted(
    path.relative_to(version).as_posix() for path in version.rglob('*') if path.is_file()
  )


def damages(content):
  """The content with single bits flipped, cut, emptied, and with something behind it."""
  for place in (0, len(content) // 3, len(content) - 1):
    flipped = bytearray(content)
    flipped[place] ^= 1 << (place % 8)
    yield bytes(flipped)
  yield from (b'', content[:-2], content[: len(content) // 2], content + b'\0')


def test_every_damaged_file_is_noticed_when_the_version_is_opened(copy):
  names = files_of(copy)
  assert {'saved_model.pb', DATA, 'assets.extra/seal.json', 'assets.extra/golden.json'} <= set(
    names
  )
  count = 0
  for name in names:
    whole = (copy / name).read_bytes()
    for content in damages(whole):
      (copy / name).write_bytes(content)
      with pytest.raises(ValueError, match=r'damaged|is not loaded'):
        versions.check(str(copy), variables=True)
      if name != DATA:
        # The bytes of the variables are TensorFlow's to check, see below.
        for opened in (ExportedModel, ExportedSpace):
          with pytest.raises(ValueError, match='damaged'):
            opened(str(copy))
      count += 1
    (copy / name).unlink()
    with pytest.raises((ValueError, FileNotFoundError)):
      ExportedModel(str(copy))
    (copy / name).write_bytes(whole)
  assert count == 7 * len(names)
  assert versions.check(str(copy), variables=True)


def test_a_file_that_is_read_alone_is_compared_with_its_checksum(copy):
  for name in ('golden.json', 'model.json', 'schema.json'):
    path = copy / 'assets.extra' / name
    whole = path.read_bytes()
    # Still JSON: nothing but the checksum can tell.
    path.write_bytes(whole.replace(b'0', b'1', 1))
    with pytest.raises(ValueError, match='does not fit its checksum'):
      versions.read_json(str(copy), f'assets.extra/{name}')
    if name == 'golden.json':
      with pytest.raises(ValueError, match='does not fit its checksum'):
        golden.read(str(copy))
    path.write_bytes(whole)


def test_flipped_bytes_of_variables_are_found_by_what_reads_them(copy):
  path = copy / DATA
  whole = path.read_bytes()
  for place in range(100, len(whole), len(whole) // 4):
    flipped = bytearray(whole)
    flipped[place] ^= 4
    path.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match='cannot be loaded'):
      ExportedModel(str(copy))


def test_a_version_of_an_earlier_release_has_no_checksums_and_opens(copy):
  (copy / versions.SEAL).unlink()
  with pytest.raises(ValueError, match=r'checksums \(assets.extra/seal.json\) are missing'):
    versions.check(str(copy))
  path = copy / 'assets.extra' / 'model.json'
  facts = json.loads(path.read_text())
  path.write_text(json.dumps({**facts, 'format': 1}))
  assert versions.check(str(copy), variables=True) is False
  with ExportedModel(str(copy)) as people:
    assert len(people.search('woman', top_k=3).hits) == 3


def test_a_disk_that_takes_no_more_is_a_sentence_and_leaves_nothing(
  space, encoders, gallery, ids, crops, tmp_path
):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  # What is written beyond this fails, as on a full disk; Python ignores the signal of it.
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
  try:
    with pytest.raises(OSError, match=r'cannot be written: .*make room'):
      export.export(
        space,
        str(tmp_path / 'people'),
        encoders=encoders,
        gallery=gallery[:30],
        ids=ids[:30],
        crops=crops,
      )
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert os.listdir(tmp_path / 'people') == []
