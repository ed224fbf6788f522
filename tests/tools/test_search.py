"""The command line of the search, with a real process for each question."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'search'))


def search(*arguments):
  return subprocess.run(
    [sys.executable, ROOT / 'tools' / 'search.py', *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
    env={
      'PATH': '',
      'COLUMNS': '120',
      'CUDA_VISIBLE_DEVICES': '-1',
      # Which models this user has named: the index was built by this process.
      'TFREID_TRUST_FILE': os.environ['TFREID_TRUST_FILE'],
    },
  )


@pytest.fixture(scope='module')
def people(tmp_path_factory):
  """A model and an index of the same crops. Not to be written to."""
  import depot

  folder = tmp_path_factory.mktemp('people')
  return depot.build(folder, depot.write_crops(folder / 'crops'), 'binary')


def rows_of(table):
  """Rank, score, reasons in the order of the columns, and crop, of each row of a printed table."""
  rows = []
  for line in table.splitlines():
    cells = [cell.strip() for cell in re.split('[│┃]', line)[1:-1]]
    if cells and cells[0].isdigit():
      rows.append((cells[1], [cell.split()[-1] for cell in cells[2:-1]], cells[-1]))
  return rows


@pytest.mark.slow
def test_table_json_and_page_of_a_model_and_of_an_index_say_the_same(people, tmp_path):
  found = {}
  for name in ('model', 'index'):
    source = f'--{name}={getattr(people, name)}'
    page = tmp_path / f'{name}.html'
    table = search(source, '--top_k=5', f'--html={page}', 'woman, red top')
    assert table.returncode == 0, table.stderr
    as_json = search(source, '--top_k=5', '--json', 'woman, red top')
    assert as_json.returncode == 0, as_json.stderr
    found[name] = json.loads(as_json.stdout)
    hits = found[name]['hits']
    printed = rows_of(table.stdout)
    assert [crop for _, _, crop in printed] == [hit['id'] for hit in hits]
    assert [score for score, _, _ in printed] == [f'{hit["score"]:.3f}' for hit in hits]
    expected = [[f'{change:+.3f}' for change in hit['reasons'].values()] for hit in hits]
    assert [reasons for _, reasons, _ in printed] == expected
    assert all(len(reasons) == 2 for reasons in expected)
    (question,) = found[name]['ask_next']
    assert question['attribute'] == 'hat' and question['gain'] > 0
    line = f'Ask next: hat ({question["gain"]:.2f} bits)'
    assert line in table.stdout.splitlines()
    shown = page.read_text(encoding='utf-8')
    assert re.findall(r'<p>([^<]+)</p></li>', shown) == [hit['id'] for hit in hits]
    assert re.findall(r'<span>(-?[\d.]+)</span></header>', shown) == [s for s, _, _ in printed]
    assert re.findall(r'<small>\(([^)]+)\)', shown) == [r for _, row, _ in printed for r in row]
    assert line in shown
  model, index = found['model']['hits'], found['index']['hits']
  assert [hit['id'] for hit in model] == [hit['id'] for hit in index]
  for one, other in zip(model, index):
    assert one['score'] == pytest.approx(other['score'], abs=1e-5)
    assert one['reasons'] == pytest.approx(other['reasons'], abs=1e-5)
    assert one['matches'] == other['matches']
  assert found['model']['ask_next'][0]['gain'] == pytest.approx(
    found['index']['ask_next'][0]['gain'], abs=1e-5
  )


def test_without_explanation_there_are_neither_reasons_nor_questions(people):
  done = search(f'--model={people.model}', '--noexplain', '--json', 'woman')
  answer = json.loads(done.stdout)
  assert answer['ask_next'] == []
  assert len(answer['hits']) == 20 and not any(hit['reasons'] for hit in answer['hits'])


@pytest.mark.slow
def test_a_crop_is_searched_for_in_a_model_as_in_an_index(people, tmp_path):
  outside = shutil.copy(Path(people.model).parent / 'crops' / '005.png', tmp_path / 'mine.png')
  for crop, first in (('005.png', None), (outside, '005.png')):
    answers = []
    for source in (f'--model={people.model}', f'--index={people.index}'):
      done = search(source, '--json', '--top_k=4', f'--like={crop}')
      assert done.returncode == 0, done.stderr
      answers.append(json.loads(done.stdout))
    ids = [[hit['id'] for hit in answer['hits']] for answer in answers]
    assert ids[0] == ids[1] and len(ids[0]) == 4
    assert ids[0][0] == first if first else '005.png' not in ids[0]
    assert answers[0]['text'] == f'like {crop}'


@pytest.mark.slow
def test_an_older_export_is_searched_without_reasons_unless_they_are_asked_for(people, tmp_path):
  import tensorflow as tf

  loaded = tf.saved_model.load(f'{people.model}/1')
  older = tmp_path / 'older' / '1'
  kept = {'serving_default': loaded.signatures['serving_default']}
  tf.saved_model.save(loaded, str(older), signatures=kept)
  left_out = shutil.ignore_patterns('seal.json', 'model.json')
  shutil.copytree(f'{people.model}/1/assets.extra', older / 'assets.extra', ignore=left_out)
  done = search(f'--model={older}', '--json', 'woman')
  assert done.returncode == 0, done.stderr
  assert len(json.loads(done.stdout)['hits']) == 20
  done = search(f'--model={older}', '--explain', 'woman')
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert 'has no signature explain' in done.stderr and 'Export it again' in done.stderr


@pytest.mark.slow
def test_what_is_wrong_is_said_in_a_sentence(people, tmp_path):
  model, index = f'--model={people.model}', f'--index={people.index}'
  for arguments, message in [
    ([], '--index=DIRECTORY, --model=DIRECTORY or --server=ADDRESS'),
    ([model], 'a description in quotation marks'),
    (['woman'], '--index=DIRECTORY, --model=DIRECTORY or --server=ADDRESS'),
    ([model, '--like=005.png', 'woman'], 'or --like'),
    ([model, '--filter=camera == 1', 'woman'], 'need --index'),
    ([model, '--explain', '--like=005.png'], '--explain needs a description'),
    ([model, 'woman, purple zebra'], "Did not understand 'purple zebra'"),
    ([index, 'hut'], "'hut'"),
    ([model, 'hat=maybe'], "Unknown value of 'hat': 'maybe'"),
    ([model, '--like=nowhere.png'], "'nowhere.png' is neither an id of the gallery nor an image"),
    ([f'--model={tmp_path}/nowhere', 'woman'], 'holds no exported model'),
    ([f'--index={tmp_path}/nowhere', 'woman'], f'{tmp_path}/nowhere'),
  ]:
    done = search(*arguments)
    assert done.returncode == 1, arguments
    assert message in done.stdout + done.stderr, arguments
    assert 'Traceback' not in done.stderr
