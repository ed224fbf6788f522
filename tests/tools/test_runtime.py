"""--runtime=openvino, with a real process for each command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tfreid.index

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'search'))


def run(tool, *arguments):
  return subprocess.run(
    [sys.executable, ROOT / 'tools' / f'{tool}.py', *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope='module')
def people(tmp_path_factory):
  import depot

  folder = tmp_path_factory.mktemp('people')
  made = depot.build(folder, depot.write_crops(folder / 'crops'), 'binary')
  made.folder = folder
  return made


@pytest.mark.slow
def test_an_index_that_openvino_embeds_answers_as_one_of_tensorflow(people, tmp_path):
  index = tmp_path / 'index'
  source = people.folder / 'crops'
  done = run(
    'index',
    *('build', f'--index={index}', f'--model={people.model}', f'--source={source}'),
    *('--runtime=openvino', '--json'),
  )
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout)['added'] == len(people.ids)
  with (
    tfreid.index.open(str(index), model=people.model) as made,
    tfreid.index.open(people.index, model=people.model) as known,
  ):
    found, expected = made.search('hat=yes').hits, known.search('hat=yes').hits
    assert made.problems(files=True) == []
  assert len(found) == len(expected) == 20
  scores = [[hit.score for hit in hits] for hits in (found, expected)]
  np.testing.assert_allclose(*scores, atol=1e-5)
  # A picture is embedded by whatever is asked for, and finds itself.
  crop = sorted(source.iterdir())[5]
  answers = []
  for runtime in ('openvino', 'tensorflow'):
    done = run('search', f'--index={index}', f'--like={crop}', f'--runtime={runtime}', '--json')
    assert done.returncode == 0, done.stderr
    answers.append(json.loads(done.stdout)['hits'])
  assert [hit['id'] for hit in answers[0]] == [hit['id'] for hit in answers[1]]
  flags = [f'--model={people.model}', f'--source={source}', '--runtime=openvino', '--json']
  done = run('search', *flags, 'hat=yes')
  assert done.returncode == 0, done.stderr
  scores[0] = [hit['score'] for hit in json.loads(done.stdout)['hits']]
  np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize(
  ('tool', 'arguments', 'said'),
  [
    ('search', ['--model=m', '--runtime=openvino', 'x'], '--runtime needs --index or --source'),
    ('serve', ['--model=m', '--runtime=openvino'], '--runtime needs --index or --source'),
    ('index', ['verify', '--index=i', '--runtime=openvino'], '--runtime is for build and add'),
    ('search', ['--index=i', '--runtime=onnx', 'x'], 'onnx'),
  ],
)
def test_where_a_runtime_makes_no_sense_it_is_refused(tool, arguments, said):
  done = run(tool, *arguments)
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert said in ' '.join((done.stdout + done.stderr).split())
