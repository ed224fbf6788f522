"""Embedding on several devices: two logical CPUs stand for two GPUs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tfreid import replicas
from tfreid.index import engines
from tfreid.index.directory import IndexDirectory
from tfreid.index.embedder import Embedder


def held(directory):
  found = engines.open_engine(IndexDirectory(str(directory)))
  assert found.problems() == []
  return {row.id: vector for part, rows in found.parts() for vector, row in zip(part, rows)}


@pytest.fixture(scope='module')
def pair(models, two_devices):
  return Embedder(str(models / 'people'), strategy=replicas.local(2))


@pytest.fixture(scope='module')
def contents(crops):
  return [path.read_bytes() for path in sorted(crops.rglob('*.png'))]


@pytest.mark.parametrize('count', [1, 2, 7, 30])
def test_two_devices_embed_as_one_does(models, pair, contents, count):
  alone = Embedder(str(models / 'people'))
  assert (alone.num_devices, pair.num_devices) == (1, 2)
  expected = alone.embed_images(contents[:count])
  actual = pair.embed_images(contents[:count])
  assert actual.shape == expected.shape
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
  # A loaded signature outside the strategy's replicas.
  query = {'hat': 'yes'}
  np.testing.assert_array_equal(pair.embed_query(query), alone.embed_query(query))


def test_each_device_embeds_its_part_with_its_own_weights(models, contents):
  model = Embedder(str(models / 'people'), strategy=replicas.local(2))
  before = model.embed_images(contents[:5])
  first, second = model._loaded()._model.pixels.values
  assert (first.device[-5:], second.device[-5:]) == ('CPU:0', 'CPU:1')
  second.assign(-second)
  after = model.embed_images(contents[:5])
  np.testing.assert_array_equal(after[:3], before[:3])
  np.testing.assert_array_equal(after[3:], -before[3:])


def test_a_bad_crop_is_a_clear_error_on_each_device(pair, contents):
  for place in (0, 3):
    batch = contents[:4]
    batch[place] = b'no image'
    with pytest.raises(ValueError, match='not an image'):
      pair.embed_images(batch)


@pytest.mark.slow
def test_the_tool_builds_the_same_index_on_two_devices(tmp_path, models, crops, run_on_two_devices):
  for crop in crops.rglob('*.png'):
    copy = tmp_path / 'crops' / crop.relative_to(crops)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(crop.read_bytes())
  (tmp_path / 'crops' / 'broken.png').write_bytes(b'no image')
  flags = [f'--model={models}/people', f'--source={tmp_path}/crops', '--skip_corrupt']
  # 30 crops in shards of 11, on two devices in batches of 2 x 4 + 3.
  flags += ['--shard_rows=11', '--batch_size=4', '--json']
  for name, devices in (('one', []), ('two', ['--devices=2'])):
    done = run_on_two_devices('index', 'build', f'--index={tmp_path}/{name}', *flags, *devices)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report['added'] == 30
    assert [path for path, _ in report['corrupt']] == [f'{tmp_path}/crops/broken.png']
  one, two = held(tmp_path / 'one'), held(tmp_path / 'two')
  assert list(one) == list(two)
  np.testing.assert_allclose(np.stack([*two.values()]), np.stack([*one.values()]), atol=1e-6)
  done = run_on_two_devices('index', 'build', f'--index={tmp_path}/three', *flags, '--devices=3')
  assert done.returncode == 1
  assert 'Error: There are 2 CPUs to compute on, not 3.' in done.stderr
