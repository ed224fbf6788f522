"""An index as the gallery of an export: `tfreid.serving.galleries.of_index`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

import tfreid.index
from tfreid.index import segment, writer
from tfreid.serving import galleries


@pytest.fixture
def built(tmp_path, files, digest_model):
  """An index of 12 crops, and their rows."""
  rows = [
    dataclasses.replace(row, fields={'site': 'north', 'path': 'no', 'id': 1}, attributes={'a': 'b'})
    for row in files(12)
  ]
  writer.build(str(tmp_path / 'index'), rows, digest_model)
  return str(tmp_path / 'index'), rows


def test_concepts_ids_and_facts_are_those_of_the_index(built, digest_model):
  directory, rows = built
  with tfreid.index.open(directory, model=digest_model) as index:
    found = galleries.of_index(index, num_crops=4)
    assert found.ids == [row.id for row in rows]
    assert found.gallery.dtype == np.float32
    wanted = digest_model.embed_images([Path(row.path).read_bytes() for row in rows])
    # An index holds concepts as it was given them, or of length one.
    scale = np.linalg.norm(wanted, axis=1) / np.linalg.norm(found.gallery, axis=1)
    np.testing.assert_allclose(found.gallery * scale[:, np.newaxis], wanted, rtol=1e-5)
    # A field of the name of a fact does not stand for it.
    assert list(found.rows) == [
      {'id': row.id, 'site': 'north', 'path': row.path, 'attributes': {'a': 'b'}} for row in rows
    ]


def test_only_files_that_are_still_what_was_embedded_become_crops(built, digest_model):
  directory, rows = built
  os.remove(rows[0].path)
  Path(rows[3].path).write_text('another')
  with tfreid.index.open(directory, model=digest_model) as index:
    # Spread evenly: of 12 crops each third.
    found = galleries.of_index(index, num_crops=4)
    assert [crop.name for crop in found.crops] == [rows[6].path, rows[9].path]
    assert [crop.contents for crop in found.crops] == [b'crop 6', b'crop 9']


def test_an_empty_index_is_no_gallery(built, digest_model):
  directory, rows = built
  writer.remove(directory, [row.id for row in rows])
  with tfreid.index.open(directory, model=digest_model) as index:
    with pytest.raises(ValueError, match='holds no crop'):
      galleries.of_index(index, num_crops=4)


def test_the_contents_of_a_row_are_checked_where_they_can_be(tmp_path):
  path = tmp_path / 'crop'
  path.write_bytes(b'crop')
  assert segment.Row('a', str(path)).contents() == b'crop'
  row = segment.Row('a', str(path), digest=segment.digest(b'crop'))
  assert row.contents() == b'crop'
  path.write_bytes(b'other')
  assert row.contents() is None
  path.unlink()
  assert row.contents() is None
