from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def large(monkeypatch):
  path = Path(__file__).parents[2] / 'benchmarks' / 'large.py'
  spec = importlib.util.spec_from_file_location('large_benchmark', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  monkeypatch.setattr(module, '_PART', 300)
  monkeypatch.setattr(module.segment, 'MAX_ROWS', 1000)
  return module


def test_an_index_is_written_once_searched_and_compared_with_all_of_its_concepts(large, tmp_path):
  found = large.measure(folder=str(tmp_path), rows=2500, repeats=2, checked=3)
  assert found['rows'] == 2500 and found['written_per_second'] > 0
  assert found['exact'] is True and found['checked_queries'] == 3
  for name in ('first', '1', '1_where_camera', '1_where_camera_and_day', '64'):
    assert 0 < found[f'seconds_{name}']['median'] <= found[f'seconds_{name}']['slowest']
  assert large.make(str(tmp_path), 2500) == 0


def test_a_writing_that_was_interrupted_goes_on(large, tmp_path, monkeypatch):
  written = large.segment.write

  def stopped(*given, size, **options):
    if size == 500:
      raise KeyboardInterrupt
    return written(*given, size=size, **options)

  monkeypatch.setattr(large.segment, 'write', stopped)
  with pytest.raises(KeyboardInterrupt):
    large.make(str(tmp_path), 2500)
  monkeypatch.setattr(large.segment, 'write', written)
  assert large.make(str(tmp_path), 2500) > 0
  found = large.ask(str(tmp_path), 2500, repeats=1, checked=1)
  assert found['exact'] is True


def test_an_answer_that_is_not_exact_is_noticed(large, tmp_path, monkeypatch):
  large.make(str(tmp_path), 1200)
  index = large.engines.open_engine(large._directory(str(tmp_path), 1200))
  queries = np.eye(2, large.WIDTH, dtype=np.float32)
  assert large._are_exact(index, queries)
  search = type(index).search
  monkeypatch.setattr(
    type(index), 'search', lambda *given, **options: [search(*given, **options)[0][::-1]]
  )
  assert not large._are_exact(index, queries)
