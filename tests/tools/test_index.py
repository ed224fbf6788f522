"""The command line of the index, with a real process for each command."""

from __future__ import annotations

import json
import os
import re
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


def run(tool, *arguments, **options):
  return subprocess.run(
    [sys.executable, ROOT / 'tools' / f'{tool}.py', *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
    **options,
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
  # A name with what `rich` would take for markup.
  index = f'--index={world / "index[/1]"}'
  build = ('build', index, f'--model={world / "model"}', f'--source={world / "crops.csv"}')
  done = run('index', *build)
  assert done.returncode == 1
  assert f'Error: 1 file cannot be read or decoded: {world}/3.png' in done.stderr
  assert 'Traceback' not in done.stderr
  done = run('index', *build, '--skip_corrupt')
  assert done.returncode == 0, done.stderr
  assert f'left out: {world}/3.png' in done.stdout
  assert '5 crops added, 1 file left out.' in done.stdout
  # No terminal: a line when it begins, and one for the shard.
  first, last = done.stderr.splitlines()[-2:]
  assert re.fullmatch(r'\d{4}-\d\d-\d\d [\d:]{8} Embedding 6 crops\.', first)
  assert re.search(r' 6 of 6 crops, \d+\.\d per second, 0 min left\.$', last)
  done = run('index', 'info', index)
  assert done.returncode == 0, done.stderr
  assert 'index[/1]' in ''.join(done.stdout.split())
  done = run('search', index, '--json', '--filter=camera == 0', '--exclude_ids=2.png,2.jpg', 'hat')
  assert done.returncode == 0, done.stderr
  assert "An id of --exclude_ids: the index has no crop '2.jpg'." in done.stderr
  assert [hit['id'] for hit in json.loads(done.stdout)['hits']] == ['4.png', '0.png']
  (world / 'gone.txt').write_bytes(b'\xef\xbb\xbf4.png\r\n')
  done = run('index', 'remove', index, f'--ids={world / "gone.txt"}')
  assert done.stdout == '1 crops removed.\n'
  # As somebody else, or on another machine: nobody has named the model yet.
  elsewhere = {**os.environ, 'TFREID_TRUST_FILE': str(world / 'trusted.jsonl')}
  done = run('search', index, 'hat', env=elsewhere)
  assert done.returncode == 1
  assert f"names the model '{world}/model/1', which this user has not used" in done.stderr
  done = run('index', 'trust', index, env=elsewhere)
  assert done.returncode == 0, done.stderr
  assert f'Trusted from now on, by this user on this machine: model {world}' in done.stdout
  assert run('search', index, 'hat', env=elsewhere).returncode == 0
  (world / '5.png').unlink()
  done = run('index', 'verify', index, '--files')
  assert done.returncode == 1
  assert "'5.png'" in done.stdout
  assert '4 crops: 1 problem.' in done.stdout


def test_a_model_that_nobody_names_is_the_one_for_photographs(world):
  index, source = f'--index={world / "index"}', f'--source={world / "crops.csv"}'
  environment = {**os.environ, 'TFREID_MODEL': str(world / 'nowhere')}
  done = run('index', 'build', index, source, env=environment)
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert f"TFREID_MODEL names the model '{world}/nowhere', and there is no such" in done.stderr
  named = {**os.environ, 'TFREID_MODEL': str(world / 'model')}
  # Without an index: embedded, asked, and gone. Filters work as with an index.
  asked = ('search', source, '--json', '--filter=camera == 0', 'hat')
  once = run(*asked, env=named)
  assert once.returncode == 0, once.stderr
  assert f'left out: {world}/3.png' in once.stderr and f'Model: {world}/model/1' in once.stderr
  done = run('index', 'build', index, source, '--skip_corrupt', env=named)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f'Model: {world}/model/1\n')
  built = run('search', index, '--json', '--filter=camera == 0', 'hat')
  hits, expected = (json.loads(answer.stdout)['hits'] for answer in (once, built))
  assert [hit['id'] for hit in expected] == ['4.png', '2.png', '0.png']
  assert hits == expected
  # saved_models/photographs of the folder that one is in.
  (world / 'saved_models').mkdir()
  (world / 'saved_models' / 'photographs').symlink_to(world / 'model')
  here = {name: value for name, value in os.environ.items() if name != 'TFREID_MODEL'}
  done = run('search', '--source=crops.csv', '--json', 'hat', env=here, cwd=world)
  assert done.returncode == 0, done.stderr
  assert len(json.loads(done.stdout)['hits']) == 5
  both = run('search', index, source, 'hat')
  assert both.returncode == 1 and 'one of them' in both.stderr


def test_an_index_moves_to_milvus_and_is_kept_up_to_date_there(world):
  pytest.importorskip('pymilvus', reason="needs the extra 'milvus'")
  old, new = f'--index={world / "index"}', f'--index={world / "moved"}'
  build = ('build', old, f'--model={world / "model"}', f'--source={world / "crops.csv"}')
  assert run('index', *build, '--skip_corrupt').returncode == 0
  done = run('index', 'merge', new, '--engine=milvus', world / 'index')
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'5 crops of 1 index in {world / "moved"}.\n'
  told = [line.split(' ', 2)[2] for line in done.stderr.splitlines() if ' of 5 crops.' in line]
  assert told == [
    'Reading: 0 of 5 crops.',
    'Checking: 0 of 5 crops.',
    'Filling Milvus: 5 of 5 crops.',
  ]
  asked = ('--json', '--filter=camera == 0', 'hat')
  answers = [json.loads(run('search', index, *asked).stdout) for index in (old, new)]
  ids = [[(hit['id'], hit['score']) for hit in answer['hits']] for answer in answers]
  assert ids[0] == ids[1] and len(ids[0]) == 3
  assert run('index', 'remove', new, '4.png').stdout == '1 crops removed.\n'
  done = run('index', 'verify', new, '--files')
  assert (done.returncode, done.stdout) == (0, '4 crops: no problem found.\n')
  facts = json.loads(run('index', 'info', new, '--json').stdout)
  assert (facts['engine'], facts['crops']) == ('milvus', 4)
  done = run('index', *build[:1], new, *build[2:], '--overwrite', '--skip_corrupt')
  assert done.returncode == 1
  assert "is an index of the engine 'milvus'" in done.stderr
  assert 'Traceback' not in done.stderr


def test_what_stands_in_files_does_not_reach_the_terminal_unseen(tmp_path):
  folder = tmp_path / 'a\x1b[2Jb'
  folder.mkdir()
  done = run('index', 'info', f'--index={folder}')
  assert done.returncode == 1
  assert 'a\\x1b[2Jb' in done.stderr and '\x1b' not in done.stderr


def test_usage_errors_are_short_and_fast():
  for tool, arguments, said in [
    ('index', (), 'Say what to do: build, add'),
    ('index', ('build', '--index=x'), 'Give --source='),
    ('index', ('biuld', '--index=x'), "'biuld' is none of these. Did you mean 'build'?"),
    ('index', ('info', '--index=x', 'y'), "Unexpected argument: 'y'"),
    (
      'index',
      ('build', '--index=x', '--model=x', '--source=nowhere'),
      "folder nor a file 'nowhere'",
    ),
    ('index', ('add', '--index=x', '--source=y', '--shard=1/2'), '--shard is for build, not for'),
    ('index', ('info', '--index=x', '--devices=2'), '--devices is for build and add, not for info'),
    ('search', ('--model=x', '--filter=a == 1', 'hat'), 'need --index'),
    ('search', ('--index=x',), 'Give a description'),
  ]:
    done = run(tool, *arguments)
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('shard', ['0/4', '5/4', '1/0', '1-4', '1/4/2', 'a/b'])
def test_a_part_that_cannot_be_is_refused_before_anything_is_read(tmp_path, shard):
  flags = (f'--index={tmp_path}', '--model=x', '--source=y', f'--shard={shard}')
  done = run('index', 'build', *flags)
  assert done.returncode == 1
  assert f"--shard is '{shard}'; expected i/n, from 1/n to n/n" in done.stderr


_LOG = """
from tfreid.cli import index
now = [100.0]
index.time.monotonic = lambda: now[0]
log = index._ShardLog()
for seconds, done, resumed in {shards}:
  now[0] += seconds
  log(done, {total}, resumed)
"""


@pytest.mark.parametrize(
  ('total', 'shards', 'said'),
  [
    (
      10000,
      [(10, 4000, 0), (30, 8000, 0), (10, 10000, 0)],
      [
        '4,000 of 10,000 crops, 400.0 per second, 0 min left.',
        '8,000 of 10,000 crops, 200.0 per second, 0 min left.',
        '10,000 of 10,000 crops, 200.0 per second, 0 min left.',
      ],
    ),
    # What an earlier run had done has no line, and no share in the rate.
    (
      10**6,
      [(5, 4000, 4000), (5, 8000, 8000), (40, 12000, 8000)],
      [
        '12,000 of 1,000,000 crops, 8,000 of them by an earlier run, 100.0 per second, '
        '2 h 45 min left.'
      ],
    ),
    (8, [(1, 4, 4), (1, 8, 8)], ['8 of 8 crops, 8 of them by an earlier run.']),
  ],
)
def test_the_log_has_a_line_per_shard_with_rate_and_time_left(total, shards, said):
  code = _LOG.format(total=total, shards=shards)
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert [line[20:] for line in done.stderr.splitlines()] == said


def test_an_index_that_is_not_there_is_one_clear_message(tmp_path):
  done = run('index', 'info', f'--index={tmp_path}')
  assert done.returncode == 1
  assert 'Error:' in done.stderr
  assert 'holds no index' in done.stderr
  assert 'Traceback' not in done.stderr
