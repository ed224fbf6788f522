"""The card of a model with untrained encoders, on drawn people."""

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
from tfreid.evaluation import retrieval
from tfreid.joint_space import JointSpace
from tfreid.serving import export

ROOT = Path(__file__).parents[2]
IMAGE = (32, 16, 3)


@pytest.fixture(scope='module')
def made(tmp_path_factory, tiny_market):
  """An exported model, the space that it was made of, and the card of it."""
  folder = tmp_path_factory.mktemp('card')
  benchmark = market1501.load(tiny_market, encoding='three_state')
  tf.keras.utils.set_random_seed(0)
  pixels, said = tf.keras.Input(IMAGE), tf.keras.Input([benchmark.schema.size])
  flat = tf.keras.layers.Flatten()(tf.keras.layers.Rescaling(1 / 255.0)(pixels))
  space = JointSpace(
    tf.keras.Model(pixels, tf.keras.layers.Dense(6)(flat)),
    tf.keras.Model(said, tf.keras.layers.Dense(6, activation='tanh')(said)),
  )
  encoders = export.encoders(space)
  paths = [str(path) for path in benchmark.test.paths[:4]]
  gallery, _ = export.embed_files(encoders.image, paths)
  export.export(
    space,
    str(folder / 'model'),
    encoders=encoders,
    gallery=gallery,
    ids=[Path(path).name for path in paths],
    crops=[export.Crop(Path(path).name, Path(path).read_bytes()) for path in paths[:2]],
    schema=benchmark.schema,
  )
  done = card(folder / 'model', tiny_market, folder / 'card')
  assert done.returncode == 0, done.stderr
  return space, benchmark, folder


def card(model, data, out, *flags):
  return subprocess.run(
    [
      *(sys.executable, '-m', 'tfreid', 'model-card', f'--model={model}', '--dataset=synthetic'),
      *(f'--data_root={data}', f'--out={out}', '--resamples=20', '--descriptions=7', *flags),
    ],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )


@pytest.mark.slow
def test_the_numbers_are_those_of_the_encoders(made):
  space, benchmark, folder = made
  split = benchmark.test
  numbers = json.loads((folder / 'card.json').read_text())
  assert numbers['split'] == {'images': 40, 'people': 10, 'descriptions': len(split.keys)}
  want = retrieval.evaluate(space, split, Pipeline(IMAGE[:2], 8).evaluation(split))
  assert numbers['whole_descriptions']['all']['mAP'] == pytest.approx(want.overall.mAP, abs=1e-3)

  # One attribute by hand: women of 40 images, the first 20 by the score of that one word.
  images = retrieval.embed_images(space, Pipeline(IMAGE[:2], 8).evaluation(split), count=40)
  query = benchmark.schema.encode_query({'gender': 'female'})
  scores = images @ np.asarray(space.encode_attributes(query[np.newaxis]))[0]
  right = split.attributes[:, benchmark.schema.column_names.index('gender')] > 0
  (row,) = [row for row in numbers['attributes'] if row['query'] == {'gender': 'female'}]
  assert row['base_rate'] == pytest.approx(right.mean())
  assert row['precision'][0] == pytest.approx(right[np.argsort(-scores)[:20]].mean(), abs=0.051)
  for key in ('descriptions', 'descriptions_about'):
    assert len(numbers[key]['queries']) == 7
  names = {'upper_color', 'lower_color', 'backpack', 'bag', 'handbag', 'hat'}
  assert all(names & set(row['query']) for row in numbers['descriptions_about']['queries'])
  assert {row['group'].split('=')[0] for row in numbers['groups']} <= {'gender', 'age'}


@pytest.mark.slow
def test_the_tables_say_the_same(made):
  _, _, folder = made
  numbers = json.loads((folder / 'card.json').read_text())
  text = (folder / 'card.md').read_text()
  assert '40 images of 10 people of Synthetic people' in text
  row = numbers['attributes'][0]
  asked = ', '.join(f'{name}={value}' for name, value in row['query'].items())
  assert f'| {asked} | {row["images"]} | {100 * row["base_rate"]:.1f} |' in text
  for title in ('## Each attribute', '## Groups of people', '## Colours and things'):
    assert title in text


@pytest.mark.slow
def test_a_data_set_of_other_attributes_is_refused(made, tmp_path, shared_data):
  _, _, folder = made
  done = card(folder / 'model', shared_data, tmp_path / 'card', '--dataset=dukemtmc')
  assert done.returncode == 1 and 'Error: ' in done.stderr
  assert 'Traceback' not in done.stderr
