from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_short_soak_has_no_errors_and_says_how_long_each_kind_took():
  path = Path(__file__).parents[2] / 'benchmarks' / 'soak.py'
  spec = importlib.util.spec_from_file_location('soak', path)
  soak = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(soak)
  found = soak.measure(crops=500, clients=4, seconds=2.0)
  assert found['errors'] == 0
  assert found['requests'] > found['search']['count'] > 0
  assert found['picture']['count'] > found['search']['count']
  for kind in ('search', 'picture'):
    assert 0 < found[kind]['p50_ms'] <= found[kind]['p95_ms'] <= found[kind]['p99_ms']
