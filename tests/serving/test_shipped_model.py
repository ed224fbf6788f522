"""saved_models/photographs: what comes with the repository is whole, small, and of nobody."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from tfreid import image_bytes, search
from tfreid.data import mixture, synthetic
from tfreid.index import default_model
from tfreid.index.embedder import Embedder
from tfreid.serving import golden, versions

FOLDER = Path(__file__).parents[2] / 'saved_models' / 'photographs'
VERSION = FOLDER / '1'


def test_it_is_what_was_exported_and_small_enough_for_a_repository():
  assert versions.is_sealed(str(VERSION)) and versions.check(str(VERSION), variables=True)
  size = sum(path.stat().st_size for path in FOLDER.rglob('*') if path.is_file())
  assert size < 8 * 2**20
  about = json.loads((VERSION / 'assets.extra' / 'model.json').read_text())
  assert (about['gallery_size'], about['precision'], about['image_size']) == (
    0,
    'float32',
    [128, 64],
  )
  assert (FOLDER / 'LICENSE').is_file() and (FOLDER / 'MODEL_CARD.md').is_file()


def test_it_answers_its_golden_requests_on_this_machine():
  outcomes = golden.replay(str(VERSION), golden.loaded(str(VERSION)))
  assert {outcome.signature for outcome in outcomes} == {
    *('embed_images', 'embed_attributes', 'describe'),
  }
  assert [outcome.problem for outcome in outcomes] == ['', '', '']


def test_the_only_pictures_in_it_are_drawn():
  drawn = {
    image_bytes.for_model(picture)
    for picture in itertools.islice(synthetic.SyntheticPeople().pictures(), 16)
  }
  kept = []
  for entry in golden.read(str(VERSION))['golden']:
    kept += list(golden.inputs(entry['request']).get('image_bytes', ()))
  assert len(kept) == 2 and set(kept) <= drawn
  # Nowhere else: neither the start of a JPEG file nor that of a PNG file.
  for path in VERSION.rglob('*'):
    if path.is_file() and path.name != 'tf_serving_warmup_requests':
      content = path.read_bytes()
      assert b'\xff\xd8\xff\xe0' not in content and b'\x89PNG\r\n' not in content, path
  warm_up = (VERSION / 'assets.extra' / 'tf_serving_warmup_requests').read_bytes()
  for picture in kept:
    warm_up = warm_up.replace(picture, b'')
  assert b'\xff\xd8\xff' not in warm_up and b'\x89PNG' not in warm_up


def test_it_is_the_model_where_none_is_named(monkeypatch, tmp_path):
  monkeypatch.delenv(default_model.VARIABLE, raising=False)
  monkeypatch.chdir(tmp_path)
  assert default_model.directory() == str(FOLDER)


def test_the_card_has_the_numbers_that_were_measured():
  card = json.loads((FOLDER / 'card.json').read_text())
  text = (FOLDER / 'MODEL_CARD.md').read_text()
  whole = card['whole_descriptions']['all']
  assert f'mAP {100 * whole["mAP"]:.1f} %' in text
  for key in ('descriptions', 'descriptions_about'):
    mean, low, high = (100 * value for value in card[key]['mean_precision'])
    assert f'{mean:.1f}% [{low:.1f}, {high:.1f}]'.replace('%', ' %') in text
  for row in card['attributes']:
    ((name, value),) = row['query'].items()
    assert f'| {name}={value} | {row["images"]} |' in text


@pytest.mark.slow
def test_it_finds_colours_and_backpacks_on_people_that_it_has_not_seen(shared_photographs):
  """A part of the card: the held-out people of the Market half, some 1,370 crops."""
  roots = {
    'peta': str(shared_photographs / 'peta'),
    'market1501': str(shared_photographs / 'market1501_half'),
  }
  data = mixture.load(
    roots, least=1, encoding='three_state', test_share=0.12, validation_share=0.03, seed=0
  )
  chosen = [i for i, name in enumerate(data.test.subsets) if name == 'Market-1501']
  assert len(chosen) == 1368
  model = Embedder(str(VERSION))
  contents = [Path(data.test.paths[i]).read_bytes() for i in chosen]
  gallery = np.concatenate(
    [model.embed_images(contents[i : i + 64]) for i in range(0, len(contents), 64)]
  )
  truth = [data.schema.describe(data.test.attributes[i]) for i in chosen]
  expected = {
    ('upper_color', 'red'): 0.9,
    ('upper_color', 'white'): 0.9,
    ('upper_color', 'black'): 0.9,
    ('lower_color', 'black'): 0.9,
    ('backpack', 'yes'): 0.7,
  }
  with search.load(str(VERSION)) as source:
    for (name, value), least in expected.items():
      query = np.asarray(source.embed_query({name: value}), np.float32).reshape(-1)
      best = np.argsort(-(gallery @ query), kind='stable')[:20]
      right = np.mean([value in str(truth[i].get(name, '')).split('+') for i in best])
      assert right >= least, (name, value, right)
