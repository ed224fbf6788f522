"""No damaged file of a run is used without a word, and none ends in a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import damaged_run


def test_every_damaged_file_of_a_run_is_refused_or_told(tmp_path):
  run = damaged_run.make(str(tmp_path))
  counts, faults = damaged_run.trials(run, 60, seed=1)
  assert faults == []
  assert sum(counts.values()) == 60
  assert counts['refused'] > 30
