"""The list of crops beside an exported model."""

from __future__ import annotations

import json

import pytest

from tfreid import storage
from tfreid.search import gallery
from tfreid.source.protocol import SearchOptions

ROWS = [{'id': 'a.jpg', 'path': '/a.jpg', 'camera': 1}, {'id': 'é.jpg'}]


@pytest.fixture
def listed(tmp_path):
  path = tmp_path / 'gallery.jsonl'
  path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in ROWS))
  return path


def test_it_is_read_by_id(listed, tmp_path):
  assert gallery.read(str(listed)) == {row['id']: row for row in ROWS}
  assert gallery.read(str(tmp_path / 'none.jsonl')) == {}


def test_it_must_be_what_was_exported(listed, tmp_path):
  about = {'gallery_checksum': storage.checksum_of_file(listed)}
  (tmp_path / 'model.json').write_text(json.dumps(about))
  assert len(gallery.read(str(listed))) == 2
  whole = listed.read_bytes()
  for bad in (whole[:-1], whole[: len(whole) // 2], whole + b'\n', whole.replace(b'1', b'2'), b''):
    listed.write_bytes(bad)
    with pytest.raises(ValueError, match="gallery.jsonl' is not what was exported"):
      gallery.read(str(listed))
  (tmp_path / 'model.json').write_text('{')
  with pytest.raises(ValueError, match="model.json' is damaged"):
    gallery.read(str(listed))


@pytest.mark.parametrize('line', ['{', '[]', '{"path": 1}', '{"id": 3}', '\xff', '[' * 100_000])
def test_lines_that_are_no_rows_are_named(listed, line):
  listed.write_bytes(listed.read_bytes() + line.encode('latin-1') + b'\n')
  with pytest.raises(ValueError, match='line 3: no JSON object with an id'):
    gallery.read(str(listed))


def test_what_only_an_index_can_do_is_refused():
  gallery.check(1, None, {})
  gallery.check(1, SearchOptions(), {'where': '', 'exclude': []})
  with pytest.raises(ValueError, match='where: only an index can filter'):
    gallery.check(1, SearchOptions(where='camera == 1'), {})
  with pytest.raises(ValueError, match='exclude, min_score: only an index'):
    gallery.check(1, None, {'min_score': 0.0, 'exclude': ['a']})
  with pytest.raises(TypeError, match="keyword argument 'wher'"):
    gallery.check(1, None, {'wher': 'camera == 1'})
