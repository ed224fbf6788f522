from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def check_data(*flags):
  return subprocess.run(
    [sys.executable, ROOT / 'tools' / 'check_data.py', *flags], capture_output=True, text=True
  )


@pytest.fixture
def own(tmp_path):
  """A data set of four crops described by a manifest."""
  buffer = io.BytesIO()
  Image.new('RGB', (4, 8)).save(buffer, 'JPEG')
  for i in range(4):
    (tmp_path / f'{i}.jpg').write_bytes(buffer.getvalue())
  schema = {'name': 'Own', 'attributes': [{'name': 'hat', 'values': ['no', 'yes']}]}
  (tmp_path / 'schema.json').write_text(json.dumps(schema))
  rows = ['0.jpg,train,no', '1.jpg,train,no', '2.jpg,test,no', '3.jpg,test,yes']
  (tmp_path / 'manifest.csv').write_text('\n'.join(['path,split,hat', *rows]) + '\n')
  return tmp_path


def test_it_prints_counts_and_remarks(own):
  done = check_data('--dataset=manifest', f'--data_root={own}', '--images')
  assert done.returncode == 0, done.stderr
  assert 'Own, 1 columns' in done.stdout
  assert "'hat': nobody has it in training, so it cannot be learned; in test 1 of 2" in done.stdout
  assert '4 images can be decoded; height x width is 8x4 at least' in done.stdout


def test_an_unreadable_image_is_named_and_fails(own):
  (own / '1.jpg').write_bytes((own / '1.jpg').read_bytes()[:100])
  done = check_data('--dataset=manifest', f'--data_root={own}', '--images')
  assert done.returncode == 1
  assert f'unreadable: {own}/1.jpg' in done.stdout


def test_a_wrong_folder_is_one_clear_message(tmp_path):
  done = check_data('--dataset=market1501', f'--data_root={tmp_path}')
  assert done.returncode == 1
  assert "Error: Market-1501 has no 'bounding_box_train' under" in done.stderr
  assert 'Traceback' not in done.stderr
