"""benchmarks/gpu.py: its parts are commands of the other benchmarks, and nothing ends the rest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / 'benchmarks'
_spec = importlib.util.spec_from_file_location('gpu_benchmark', FOLDER / 'gpu.py')
gpu = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(gpu)


def test_the_flags_of_each_part_are_those_of_its_benchmark():
  planned = gpu.parts(batches=[128, 256], repeats=3, torch_python='python')
  assert len(planned) == 6 and {command[0] for command in planned.values()} == {
    *('training.py', 'embedding.py', 'retrieval.py'),
  }
  for name in {command[0] for command in planned.values()}:
    told = subprocess.run(
      [sys.executable, FOLDER / name, '--help'], capture_output=True, text=True, check=True
    ).stdout
    for command in planned.values():
      if command[0] == name:
        assert all(flag.split('=')[0] in told for flag in command[1:])


def test_what_fails_or_takes_too_long_is_told_and_the_rest_is_measured(tmp_path, monkeypatch):
  monkeypatch.setattr(gpu, 'HERE', tmp_path)
  (tmp_path / 'good.py').write_text('print("warm"); print(\'{\\n "a": 2.5,\\n "b": {"c": 1}\\n}\')')
  (tmp_path / 'bad.py').write_text('raise SystemExit("no GPU")')
  (tmp_path / 'slow.py').write_text('import time; time.sleep(60)')
  results = {name: gpu.measured([f'{name}.py'], 20 if name != 'slow' else 1) for name in
             ('good', 'bad', 'slow')}  # fmt: skip
  assert results == {
    'good': {'a': 2.5, 'b': {'c': 1}},
    'bad': {'failed': 'no GPU'},
    'slow': {'failed': 'longer than 1 s'},
  }
  assert gpu.table(results).splitlines()[2:] == [
    '| good | a | 2.5 |',
    '| good | b c | 1 |',
    '| bad | failed | no GPU |',
    '| slow | failed | longer than 1 s |',
  ]
