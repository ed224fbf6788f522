from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tfreid
from tfreid.evaluation import ranking, results, retrieval

CHECKOUT = Path(tfreid.__file__).parent.parent


@pytest.fixture
def evaluation():
  rng = np.random.default_rng(0)
  embeddings = retrieval.Embeddings(
    rng.standard_normal((9, 4), np.float32),
    rng.standard_normal((30, 4), np.float32),
    np.arange(9),
    rng.integers(0, 8, 30),
  )
  return retrieval.evaluate_embeddings(embeddings, seen=np.zeros(9, bool))


def test_a_row_comes_back_as_it_was_appended(tmp_path, evaluation):
  path = tmp_path / 'run' / 'results.jsonl'
  for epoch, method in ((3, 'a2img'), (4, 'mmd')):
    results.append_result(
      path,
      evaluation=evaluation,
      dataset='Market-1501',
      method=method,
      stage='joint',
      epoch=epoch,
      seed=7,
      config='λ = 0.001\nx = "µ"\n',
    )
  table = results.read_results(path)
  assert list(table['method']) == ['a2img', 'mmd'] and list(table['epoch']) == [3, 4]
  row = table.iloc[0]
  assert (row['dataset'], row['stage'], row['seed']) == ('Market-1501', 'joint', 7)
  assert (row['split'], row['protocol']) == ('test', results.PROTOCOL)
  assert row['config'] == 'λ = 0.001\nx = "µ"\n'
  assert row['config_sha256'] == hashlib.sha256(row['config'].encode()).hexdigest()
  assert row['versions/numpy'] == np.__version__
  assert row['versions/tfreid'] == tfreid.__version__
  for name, part in (('', evaluation.overall), ('seen/', evaluation.seen)):
    for field in ranking.Summary._fields:
      np.testing.assert_equal(row[name + field], getattr(part, field))
  assert np.isnan(row['seen/mAP'])  # no query is seen; not a number is not JSON
  assert table.attrs['torn_lines'] == []


def test_further_facts_become_columns_and_may_not_hide_others(tmp_path, evaluation):
  path = tmp_path / 'results.jsonl'
  results.append_result(
    path,
    evaluation=evaluation,
    dataset='x',
    more={'space': Path('runs/x').name, 'scores': np.float32(0.5), 'ids': np.arange(2)},
  )
  row = results.read_results(path).iloc[0]
  assert (row['space'], row['scores'], row['ids']) == ('x', 0.5, [0, 1])
  with pytest.raises(ValueError, match='its own seed'):
    results.append_result(path, evaluation=evaluation, dataset='x', more={'seed': 3})
  assert len(results.read_results(path)) == 1


def test_a_torn_line_costs_only_itself(tmp_path, caplog):
  path = tmp_path / 'results.jsonl'
  results.append_row(path, {'metrics': {'all': {'mAP': 0.25}}, 'n': 1})
  whole = path.read_bytes()
  path.write_bytes(whole + whole[: len(whole) // 2])  # as a crash would leave it
  table = results.read_results(path)
  assert list(table['n']) == [1] and table.attrs['torn_lines'] == [2]
  assert 'line 2 is torn' in caplog.text

  results.append_row(path, {'n': 3})
  table = results.read_results(path)
  assert list(table['n']) == [1, 3] and table.attrs['torn_lines'] == [2]
  assert table['mAP'][0] == 0.25


@pytest.mark.parametrize('junk', [b'7\n', b'"text"\n', b'[1, 2]\n', b'\xff\xfe{"a": 1}\n', b'{"a"'])
def test_what_is_no_row_is_reported_by_its_line(tmp_path, junk):
  path = tmp_path / 'results.jsonl'
  path.write_bytes(b'{"a": 1}\n\n' + junk)
  table = results.read_results(path)
  assert list(table['a']) == [1] and table.attrs['torn_lines'] == [3]


def test_rows_of_processes_that_append_at_once_do_not_mix(tmp_path):
  path = tmp_path / 'results.jsonl'
  code = (
    'import sys\n'
    'from tfreid.evaluation import results\n'
    'for n in range(40):\n'
    '  row = {"writer": sys.argv[2], "number": n, "text": "x" * 20000}\n'
    '  results.append_row(sys.argv[1], row)\n'
  )
  writers = [
    subprocess.Popen([sys.executable, '-c', code, str(path), str(writer)], cwd=CHECKOUT)
    for writer in range(3)
  ]
  assert [writer.wait() for writer in writers] == [0, 0, 0]
  table = results.read_results(path)
  assert table.attrs['torn_lines'] == []
  for _, rows in table.groupby('writer'):
    assert list(rows['number']) == list(range(40))
  assert (table['text'].str.len() == 20000).all() and len(table) == 120


def test_a_row_that_did_not_fit_is_an_error(tmp_path):
  """A disk that fills up: the file limit takes a part of the second row, which is taken back."""
  path = tmp_path / 'results.jsonl'
  code = (
    'import resource, signal, sys\n'
    'from tfreid.evaluation import results\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\n'
    'for n in range(2):\n'
    '  try:\n'
    '    results.append_row(sys.argv[1], {"n": n, "text": "x" * 1000})\n'
    '  except OSError as error:\n'
    '    print(error)\n'
  )
  output = subprocess.run(
    [sys.executable, '-c', code, str(path)],
    cwd=CHECKOUT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert re.search(r'File too large: .*results.jsonl', output)
  table = results.read_results(path)
  assert list(table['n']) == [0] and table.attrs['torn_lines'] == []


def test_row_that_does_not_fit_its_checksum_is_left_out_and_told(tmp_path, caplog):
  path = tmp_path / 'results.jsonl'
  for n in (1, 2):
    results.append_row(path, {'metrics': {'all': {'mAP': 0.25}}, 'n': n})
  path.write_bytes(path.read_bytes().replace(b'0.25', b'0.75', 1))
  table = results.read_results(path)
  assert list(table['n']) == [2] and table.attrs['torn_lines'] == [1]
  path.write_text('{"format": 1, "n": 3}\n')  # of an earlier release
  assert list(results.read_results(path)['n']) == [3]


def test_an_empty_file_is_an_empty_table_and_none_is_an_error(tmp_path):
  path = tmp_path / 'results.jsonl'
  with pytest.raises(FileNotFoundError, match='results.jsonl'):
    results.read_results(path)
  path.touch()
  assert len(results.read_results(path)) == 0


def _git(folder, *arguments):
  subprocess.run(
    ['git', '-c', 'user.name=A', '-c', 'user.email=a@b.c', *arguments],
    cwd=folder,
    check=True,
    capture_output=True,
  )


def test_the_revision_is_that_of_the_package_and_says_whether_it_was_changed(tmp_path, monkeypatch):
  package = tmp_path / 'tfreid'
  package.mkdir()
  (package / '__init__.py').touch()
  monkeypatch.setattr(tfreid, '__file__', str(package / '__init__.py'))
  assert results.code_revision() == {'revision': None, 'dirty': None}

  _git(tmp_path, 'init', '-q')
  (package / 'spec.py').write_text('a = 1\n')
  # Somebody else's checkout, into which the package was installed: not its revision.
  _git(tmp_path, 'commit', '-q', '--allow-empty', '-m', 'first')
  assert results.code_revision() == {'revision': None, 'dirty': None}

  (tmp_path / 'docs').mkdir()
  (tmp_path / 'docs' / 'tables.md').write_text('old')
  _git(tmp_path, 'add', '.')
  _git(tmp_path, 'commit', '-q', '-m', 'second')
  clean = results.code_revision()
  assert re.fullmatch('[0-9a-f]{40}', clean['revision']) and clean['dirty'] is False
  (tmp_path / 'docs' / 'tables.md').write_text('new')
  assert results.code_revision() == clean
  (package / 'spec.py').write_text('a = 2\n')
  assert results.code_revision() == {'revision': clean['revision'], 'dirty': True}


def test_a_row_is_one_line_of_json(tmp_path, evaluation):
  path = tmp_path / 'results.jsonl'
  row = results.append_result(path, evaluation=evaluation, dataset='x', config='a\nb\n')
  lines = path.read_text(encoding='utf-8').splitlines()
  assert len(lines) == 1
  assert json.loads(lines[0])['metrics']['all']['mAP'] == row['metrics']['all']['mAP']
  assert os.stat(path).st_mode & 0o777 == 0o644 & ~_umask()


def _umask():
  mask = os.umask(0)
  os.umask(mask)
  return mask
