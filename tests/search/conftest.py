"""The same crops as the gallery of an exported model and as an index, in both encodings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# `depot`, which the test of the tool shares, is imported by name, from this folder.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope='session')
def crops(tmp_path_factory):
  """Folder of crops. Not to be written to."""
  import depot

  return depot.write_crops(tmp_path_factory.mktemp('data') / 'crops')


@pytest.fixture(scope='session', params=['binary', 'three_state'])
def people(request, tmp_path_factory, crops):
  """What `depot.build` made. Not to be written to."""
  import depot

  return depot.build(tmp_path_factory.mktemp(request.param), crops, request.param)
