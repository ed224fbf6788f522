from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

WORKS = '''"""Speed of nothing."""
def run():
  print('working')
  return {'rows': 12345, 'float32': {'images_per_second': 812.3456}}
'''
FAILS = '''"""Speed of a failure."""
def run():
  raise ValueError('the disk is full')
'''
NONE = '"""Not a benchmark."""\nraise SystemExit("must not be imported")\n'


@pytest.fixture
def bench(tmp_path):
  """Runs benchmarks given as sources: bench({'works': source}, *flags)."""

  def run(sources, *flags):
    folder = tmp_path / 'benchmarks'
    folder.mkdir()
    for name, source in sources.items():
      (folder / f'{name}.py').write_text(source)
    program = [sys.executable, str(ROOT / 'benchmarks' / 'run.py')]
    done = subprocess.run(
      [*program, f'--folder={folder}', f'--out={tmp_path / "out"}', *flags],
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      check=False,
      timeout=120,
    )
    reports = list((tmp_path / 'out').glob('results-*.json'))
    return done, json.loads(reports[0].read_text()) if reports else None

  return run


def test_results_are_written_with_machine_and_versions(bench, tmp_path):
  done, report = bench({'works': WORKS, 'things': NONE})
  assert done.returncode == 0, done.stderr
  assert list(report['benchmarks']) == ['works']
  assert report['benchmarks']['works']['results'] == {
    'rows': 12345,
    'float32': {'images_per_second': 812.3456},
  }
  assert report['machine']['usable_cores'] >= 1
  assert report['versions']['tensorflow'].startswith('2.15')
  (page,) = (tmp_path / 'out').glob('results-*.md')
  assert '| float32.images_per_second | 812.3 |' in page.read_text()
  assert '| rows | 12,345 |' in page.read_text()
  assert 'Speed of nothing.' in page.read_text()


def test_one_failure_does_not_stop_the_others_but_fails_the_run(bench):
  done, report = bench({'fails': FAILS, 'works': WORKS})
  assert done.returncode == 1
  assert report['benchmarks']['fails']['error'] == 'ValueError: the disk is full'
  assert 'rows' in report['benchmarks']['works']['results']


def test_only_the_named_ones_run(bench):
  done, report = bench({'fails': FAILS, 'works': WORKS}, '--only=works')
  assert done.returncode == 0
  assert list(report['benchmarks']) == ['works']


def test_an_unknown_name_is_refused_with_those_there_are(bench):
  done, report = bench({'works': WORKS}, '--only=work')
  assert (done.returncode, report) == (1, None)
  assert 'no benchmark work' in done.stderr
  assert 'works' in done.stderr
  assert 'Traceback' not in done.stderr


def test_every_benchmark_of_the_project_says_what_it_measures():
  program = [sys.executable, str(ROOT / 'benchmarks' / 'run.py'), '--list']
  lines = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()
  named = {line.split()[0] for line in lines}
  # What begins with an underscore is shared by them; `gpu` runs others, where there is a GPU, and
  # `large` needs a folder with room for tens of gigabytes.
  apart = {'run', 'gpu', 'large'}
  modules = {path.stem for path in (ROOT / 'benchmarks').glob('[!_]*.py')} - apart
  assert named == modules
  assert all(len(line.split()) > 3 for line in lines)


CONTESTANT = """
import sys, time
sys.path.insert(0, 'benchmarks')
import _interleaved
if '--fail' in sys.argv:
  sys.exit(3)
print('a message of some library')
_interleaved.serve({'nap': lambda: time.sleep(0.2), 'work': lambda: sum(range(10**6))})
"""


def test_contestants_are_timed_and_one_that_cannot_start_is_said(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
  import _interleaved

  script = tmp_path / 'contestant.py'
  script.write_text(CONTESTANT)
  contestant = _interleaved.Contestant(sys.executable, str(script), [], {})
  try:
    clock, cores = contestant.seconds('nap')
    assert clock >= 0.2 > cores  # sleeping costs no processor
    clock, cores = contestant.seconds('work')
    assert 0 < cores
  finally:
    contestant.stop()
  with pytest.raises(RuntimeError, match='ended with status 3'):
    _interleaved.Contestant(sys.executable, str(script), ['--fail'], {})
