from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid.data import market1501
from tfreid.data.pipeline import Pipeline
from tfreid.joint_space import JointSpace

ROOT = Path(__file__).parents[2]


def export(*flags):
  return subprocess.run(
    [sys.executable, ROOT / 'tools' / 'export.py', *map(str, flags)],
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def space(tmp_path_factory, tiny_market):
  """A saved joint space of untrained encoders for crops of 32 x 16 pixels."""
  tf.keras.utils.set_random_seed(0)
  schema = market1501.load(tiny_market).schema
  pixels, vector = tf.keras.Input([32, 16, 3]), tf.keras.Input([schema.size])
  flat = tf.keras.layers.Flatten()(tf.keras.layers.Rescaling(1 / 255)(pixels))
  folder = tmp_path_factory.mktemp('run') / 'space'
  JointSpace(
    tf.keras.Model(pixels, tf.keras.layers.Dense(6)(flat)),
    tf.keras.Model(vector, tf.keras.layers.Dense(6, activation='tanh')(vector)),
  ).save(str(folder), metadata={'schema': schema.to_json(), 'dataset': schema.name})
  return folder


@pytest.mark.slow
def test_the_test_split_of_a_data_set_is_the_gallery(space, tiny_market, tmp_path):
  flags = [f'--space={space}', f'--out={tmp_path}/model', '--dataset=market1501']
  done = export(*flags, f'--data_root={tiny_market}', '--top_k=5', '--version=3')
  assert done.returncode == 0, done.stderr
  assert 'Exported' in done.stdout and 'model/3' in done.stdout
  split = market1501.load(tiny_market).test
  version = tmp_path / 'model' / '3'
  lines = (version / 'assets.extra' / 'gallery.jsonl').read_text().splitlines()
  rows = {row['id']: row for row in map(json.loads, lines)}
  assert len(rows) == len(split)
  for path, person, camera in zip(split.paths, split.person_ids, split.cameras):
    row = rows[str(Path(path).relative_to(tiny_market))]
    assert (row['path'], row['person_id'], row['camera']) == (str(path), person, camera)
    assert row['attributes']['gender'] in ('male', 'female')
  answer = tf.saved_model.load(str(version)).signatures['serving_default'](
    attributes=tf.constant(split.queries()[0][:2])
  )
  trained = JointSpace.load(str(space))
  # The path that evaluation takes: the data's pipeline and the trained encoders.
  (batch,) = Pipeline((32, 16), len(split)).evaluation(split)
  expected = trained.encode_attributes(split.queries()[0][:2]).numpy() @ np.transpose(
    trained.encode_images(batch['image'])
  )
  np.testing.assert_allclose(answer['scores'], -np.sort(-expected)[:, :5], atol=1e-5)
  again = export(*flags, f'--data_root={tiny_market}', '--version=3')
  assert again.returncode == 1 and 'Traceback' not in again.stderr
  assert 'Version 3' in again.stderr and 'exists' in again.stderr


@pytest.mark.slow
def test_a_folder_of_crops_is_a_gallery_too_and_bad_files_are_named(space, tmp_path):
  rng = np.random.default_rng(0)
  (tmp_path / 'crops' / 'a').mkdir(parents=True)
  for name in ('a/1.png', '2.png', '3.png'):
    image = tf.io.encode_png(rng.integers(0, 256, (20, 10, 3), dtype=np.uint8))
    tf.io.write_file(str(tmp_path / 'crops' / name), image)
  (tmp_path / 'crops' / '4.jpg').write_bytes(b'not an image')
  (tmp_path / 'crops' / 'notes.txt').write_text('not a crop')
  flags = [f'--space={space}', f'--out={tmp_path}/model', f'--images={tmp_path}/crops']
  failed = export(*flags)
  assert failed.returncode == 1 and 'Traceback' not in failed.stderr
  assert '4.jpg cannot be read' in failed.stderr
  assert not (tmp_path / 'model').exists()
  done = export(*flags, '--on_bad_image=skip', '--gallery_precision=bfloat16')
  assert done.returncode == 0, done.stderr
  assert 'unreadable: 1 of 4' in done.stdout
  extra = tmp_path / 'model' / '1' / 'assets.extra'
  names = [json.loads(line)['id'] for line in (extra / 'gallery.jsonl').read_text().splitlines()]
  assert names == ['2.png', '3.png', 'a/1.png']
  assert (extra / 'schema.json').exists()


@pytest.mark.slow
def test_two_devices_embed_the_gallery_as_one_does(
  space, tiny_market, tmp_path, run_on_two_devices
):
  flags = [f'--space={space}', '--dataset=market1501', f'--data_root={tiny_market}']
  flags += ['--batch_size=3', '--top_k=5']
  golden, variables = [], []
  for devices in (1, 2):
    out = tmp_path / str(devices)
    done = run_on_two_devices('export', *flags, f'--out={out}', f'--devices={devices}')
    assert done.returncode == 0, done.stderr
    assert 'the ranking is that of a full sort' in done.stdout
    variables.append(tf.train.list_variables(str(out / '1' / 'variables' / 'variables')))
    golden.append(json.loads((out / '1' / 'assets.extra' / 'golden.json').read_text())['golden'])
  assert variables[0] == variables[1]  # nothing of the copies is exported
  ids, scores = (
    [np.array([row[key] for row in part[0]['response']['predictions']]) for part in golden]
    for key in ('ids', 'scores')
  )
  np.testing.assert_array_equal(ids[1], ids[0])
  np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
  none = run_on_two_devices('export', *flags, f'--out={tmp_path}/3', '--devices=3')
  assert none.returncode == 1 and 'There are 2 CPUs to compute on, not 3.' in none.stderr


def test_usage_errors_and_missing_folders_are_one_sentence(tmp_path):
  for flags, message in [
    ([], '--space'),
    (['--space=x', '--out=y'], 'either --dataset and --data_root, or --images'),
    (['--space=x', '--out=y', '--dataset=peta'], '--data_root'),
  ]:
    done = export(*flags)
    assert done.returncode == 1 and message in done.stderr + done.stdout
    assert 'Traceback' not in done.stderr
  missing = export(f'--space={tmp_path}/none', f'--out={tmp_path}/m', f'--images={tmp_path}')
  assert missing.returncode == 1 and 'holds no joint space' in missing.stderr
  assert 'Traceback' not in missing.stderr
