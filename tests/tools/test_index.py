"""The command line of the index, with a real process for each command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).parents[2]
SCHEMA = {
  'name': 'Depot',
  'encoding': 'binary',
  'attributes': [{'name': 'hat', 'values': ['no', 'yes'], 'columns': [['hat', 2]]}],
  'raw_values': {'hat': [1, 2]},
}


def run(tool, *arguments):
  return subprocess.run(
    [sys.executable, ROOT / 'tools' / f'{tool}.py', *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )


class Model(tf.Module):
  """Mean colours; a hat is red."""

  @tf.function(input_signature=[tf.TensorSpec([None], tf.string, 'image_bytes')])
  def embed_images(self, image_bytes):
    def read(contents):
      image = tf.ensure_shape(tf.io.decode_png(contents, channels=3), [None, None, 3])
      return tf.reduce_mean(tf.cast(image, tf.float32), axis=[0, 1]) / 255.0

    return {'concepts': tf.map_fn(read, image_bytes, fn_output_signature=tf.TensorSpec([3]))}

  @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, 'attributes')])
  def embed_attributes(self, attributes):
    return {'concepts': tf.concat([attributes, 1 - attributes, 0 * attributes], axis=1)}


@pytest.fixture
def world(tmp_path):
  """A model and a manifest of six crops, the redder the later, one of them broken."""
  model = Model()
  signatures = {'embed_images': model.embed_images, 'embed_attributes': model.embed_attributes}
  tf.saved_model.save(model, str(tmp_path / 'model' / '1'), signatures=signatures)
  extra = tmp_path / 'model' / '1' / 'assets.extra'
  extra.mkdir()
  (extra / 'schema.json').write_text(json.dumps(SCHEMA))
  (extra / 'model.json').write_text(json.dumps({'fingerprint': 'f', 'embedding_size': 3}))
  lines = ['path,camera']
  for i in range(6):
    image = np.full((4, 2, 3), (40 * i, 100, 0), np.uint8)
    (tmp_path / f'{i}.png').write_bytes(tf.io.encode_png(image).numpy())
    lines.append(f'{i}.png,{i % 2}')
  (tmp_path / '3.png').write_bytes(b'no image')
  (tmp_path / 'crops.csv').write_text('\n'.join(lines) + '\n')
  return tmp_path


def test_build_search_remove_verify(world):
  index = f'--index={world / "index"}'
  build = ('build', index, f'--model={world / "model"}', f'--source={world / "crops.csv"}')
  done = run('index', *build)
  assert done.returncode == 1
  assert f'Error: 1 file cannot be read or decoded: {world}/3.png' in done.stderr
  assert 'Traceback' not in done.stderr
  done = run('index', *build, '--skip_corrupt')
  assert done.returncode == 0, done.stderr
  assert f'left out: {world}/3.png' in done.stdout
  assert '5 crops added, 1 files left out.' in done.stdout
  done = run('search', index, '--json', '--filter=camera == 0', '--exclude_ids=2.png', 'hat')
  assert done.returncode == 0, done.stderr
  assert [hit['id'] for hit in json.loads(done.stdout)['hits']] == ['4.png', '0.png']
  done = run('index', 'remove', index, '4.png')
  assert done.stdout == '1 crops removed.\n'
  (world / '5.png').unlink()
  done = run('index', 'verify', index, '--files')
  assert done.returncode == 1
  assert "'5.png'" in done.stdout
  assert '4 crops: 1 problem.' in done.stdout


def test_usage_errors_are_short_and_fast():
  for tool, arguments, said in [
    ('index', (), 'Say what to do: build, add'),
    ('index', ('build', '--index=x'), 'Give --source='),
    ('index', ('info', '--index=x', 'y'), "Unexpected argument: 'y'"),
    ('search', ('--model=x', '--filter=a == 1', 'hat'), 'need --index'),
    ('search', ('--index=x',), 'and a description'),
  ]:
    done = run(tool, *arguments)
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert 'Traceback' not in done.stderr


def test_an_index_that_is_not_there_is_one_clear_message(tmp_path):
  done = run('index', 'info', f'--index={tmp_path}')
  assert done.returncode == 1
  assert 'Error:' in done.stderr
  assert 'holds no index' in done.stderr
  assert 'Traceback' not in done.stderr
