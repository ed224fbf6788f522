"""An index with an exported model: the same answers as the model itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tfreid.index
import tfreid.search
from tfreid.index import manifest, writer
from tfreid.index.embedder import Embedder
from tfreid.index.segment import Row
from tfreid.search import SearchOptions, ask
from tfreid.search.exported import ExportedModel


@pytest.fixture(scope='session')
def embedder(models):
  return Embedder(str(models / 'people'))


@pytest.fixture(scope='session')
def rows(crops):
  """The crops with cameras, and with attributes for every other one."""
  found = manifest.read(str(crops))
  return [
    type(row)(
      row.id,
      row.path,
      {'camera': i % 3},
      {'hat': ('no', 'yes')[i % 4 // 2], 'upper_color': 'red'} if i % 2 else {},
    )
    for i, row in enumerate(found)
  ]


@pytest.fixture(scope='session')
def depot(tmp_path_factory, rows, embedder, place):
  """Folder of an index of all crops, of either engine. Not to be written to."""
  directory = str(tmp_path_factory.mktemp('indexes') / 'depot')
  writer.build(directory, rows, embedder, shard_rows=7, batch_size=4, **place)
  return directory


@pytest.mark.parametrize('resident', [False, True, 'bfloat16'])
def test_the_answer_is_that_of_the_exported_model(models, depot, resident):
  model = ExportedModel(str(models / 'people'))
  with tfreid.index.open(depot, resident=resident) as index:
    for query in ({'hat': 'yes'}, {'upper_color': 'red', 'hat': 'no'}, {'upper_color': '!blue'}):
      expected, found = model.search(query, top_k=10), index.search(query, top_k=10)
      assert [hit.id for hit in found.hits] == [hit.id for hit in expected.hits]
      np.testing.assert_allclose(
        [hit.score for hit in found.hits], [hit.score for hit in expected.hits], atol=1e-6
      )
      assert found.query == expected.query
      assert found.gallery_size == 30


def test_words_fields_and_attributes_narrow_the_answer(depot):
  with tfreid.index.open(depot) as index:
    answer = index.search('red top, no hat', top_k=30)
    assert answer.query == {'upper_color': 'red', 'hat': 'no'}
    assert answer.text == 'red top, no hat'
    assert len(answer.hits) == 30
    camera = index.search('red top', top_k=30, where='camera in [1, 2]')
    assert len(camera.hits) == 20
    assert all(hit.metadata['camera'] in (1, 2) for hit in camera.hits)
    hats = index.search('red top', top_k=30, must='hat')
    assert {hit.attributes['hat'] for hit in hats.hits} == {'yes'}
    without = index.search('red top', top_k=30, must_not={'hat': 'yes'})
    assert len(hats.hits) + len(without.hits) == 30
    few = index.search('red top', exclude=[answer.hits[0].id], min_score=answer.hits[9].score)
    assert answer.hits[0].id not in [hit.id for hit in few.hits]
    with pytest.raises(ValueError, match="Did not understand 'purple top'"):
      index.search('purple top')
    with pytest.raises(ValueError, match="Unknown value of 'hat': 'maybe'"):
      index.search('red top', must={'hat': 'maybe'})


def test_crops_like_a_crop(depot, crops):
  with tfreid.index.open(depot) as index:
    # These two look the same.
    assert index.like('c0/004.png', top_k=1).hits[0].id == 'c1/029.png'
    contents = (crops / 'c0' / '006.png').read_bytes()
    for answer in (index.like(contents, top_k=3), index.like(str(crops / 'c0/006.png'), top_k=3)):
      assert answer.hits[0].id == 'c0/006.png'
      assert answer.hits[0].score == pytest.approx(1.0, abs=1e-5)
    assert index.like('c0/006.png', where='camera == 1').hits
    with pytest.raises(ValueError, match='neither an id of the index nor an image'):
      index.like('nowhere.png')
    with pytest.raises(ValueError):
      index.like(b'no image')


def test_a_vector_is_a_query_as_well(depot, embedder):
  with tfreid.index.open(depot, model=embedder) as index:
    concept = embedder.embed_query({'hat': 'yes'})
    assert [h.id for h in index.search(concept).hits] == [
      h.id for h in index.search({'hat': 'yes'}).hits
    ]
    with pytest.raises(ValueError, match='A concept has 6 numbers'):
      index.search(np.zeros(5))


def test_reasons_and_suggestions_ask_the_engine_once(depot, embedder, monkeypatch):
  with tfreid.index.open(depot, model=embedder) as index:

    def looks_up(ids):
      raise AssertionError('the concepts came with the matches')

    monkeypatch.setattr(index.engine, 'concepts', looks_up)
    monkeypatch.setattr(index.engine, 'rows', looks_up)
    answer = index.search({'hat': 'yes', 'upper_color': 'red'}, explain=True, top_k=5)
    hats = embedder.embed_query({'hat': 'yes'})
    for hit in answer.hits:
      concept = embedder.embed_images([Path(hit.path).read_bytes()])[0]
      assert hit.reasons['upper_color'] == pytest.approx(hit.score - concept @ hats, abs=1e-5)
    assert [found.attribute for found in index.suggest('hat', top_k=5)] == ['upper_color']
    assert index.suggest('hat', top_k=5, where='camera == 2', exclude=[answer.hits[0].id])
    # Where no crop is left, there is nothing to ask.
    assert index.suggest('hat', top_k=5, min_score=1e9) == []


def test_a_word_that_is_no_precision_is_refused(tmp_path, rows, embedder):
  writer.build(str(tmp_path / 'index'), rows[:3], embedder)
  with pytest.raises(ValueError, match="in 'int8', 'float32' or 'bfloat16', .* not in 'float16'"):
    tfreid.index.open(str(tmp_path / 'index'), resident='float16')


def test_another_model_is_refused_and_a_moved_one_is_found(depot, models, tmp_path):
  with tfreid.index.open(depot, model=str(models / 'other')) as index:
    with pytest.raises(ValueError, match='built with another model .seed 1.*seed 2'):
      index.search('hat')
  with pytest.raises(ValueError, match='built with another model'):
    tfreid.index.open(depot, model=Embedder(str(models / 'other')))
  moved = shutil.copytree(models / 'people', tmp_path / 'moved')
  with tfreid.index.open(depot, model=str(moved)) as index:
    assert index.model.directory == str(moved / '1')
    assert index.search('hat').hits


def test_an_undecodable_file_is_found_among_good_ones(crops, embedder, tmp_path):
  folder = shutil.copytree(crops, tmp_path / 'crops')
  bad = folder / 'c1' / '013.png'
  bad.write_bytes(bad.read_bytes()[:50])
  rows = manifest.read(str(folder))
  with pytest.raises(ValueError, match='1 file cannot be read or decoded') as error:
    writer.build(str(tmp_path / 'index'), rows, embedder, batch_size=8)
  assert str(bad) in str(error.value)
  report = writer.build(str(tmp_path / 'index'), rows, embedder, batch_size=8, skip_corrupt=True)
  assert report.added == 29
  assert [path for path, _ in report.corrupt] == [str(bad)]


def test_changed_and_missing_files_are_found_on_request(crops, embedder, tmp_path):
  folder = shutil.copytree(crops, tmp_path / 'crops')
  rows = manifest.read(str(folder))
  writer.build(str(tmp_path / 'index'), rows, embedder)
  with tfreid.index.open(str(tmp_path / 'index')) as index:
    assert index.problems(files=True) == []
    (folder / 'c0' / '000.png').unlink()
    (folder / 'c0' / '002.png').write_bytes((folder / 'c0' / '004.png').read_bytes())
    assert index.problems() == []
    missing, changed = index.problems(files=True)
    assert "'c0/000.png'" in missing
    assert 'No such file' in missing
    assert "'c0/002.png'" in changed
    assert 'has changed' in changed


def test_facts_of_an_index(depot, place):
  with tfreid.index.open(depot) as index:
    facts = index.info()
  assert json.loads(json.dumps(facts)) == facts
  name = place.get('engine_name', 'embedded')
  assert (facts['crops'], facts['engine'], facts['embedding_size']) == (30, name, 6)
  assert facts.get('uri') == place.get('uri')
  assert facts['fields'] == {'camera': ['number'], 'hat': ['text'], 'upper_color': ['text']}
  assert facts['model']['fingerprint'] == 'seed 1'


def test_load_takes_an_index_or_an_exported_model(depot, models):
  index, model = tfreid.search.load(depot), tfreid.search.load(str(models / 'people'))
  assert [hit.id for hit in index.search('hat', top_k=5).hits] == [
    hit.id for hit in model.search('hat', top_k=5).hits
  ]
  with pytest.raises(FileNotFoundError, match='holds no exported model'):
    tfreid.search.load(str(models))
  with pytest.raises(ValueError, match='no use for resident'):
    tfreid.search.load(str(models / 'people'), resident=True)


def test_folders_that_are_no_model_of_ours_are_refused(tmp_path, models):
  folder = shutil.copytree(models / 'people' / '1', tmp_path / 'model')
  (folder / 'assets.extra' / 'model.json').unlink()
  with pytest.raises(ValueError, match='does not say which model this is'):
    Embedder(str(folder))
  plain = tmp_path / 'plain' / '1'
  module = tf.Module()
  tf.saved_model.save(module, str(plain))
  shutil.copytree(models / 'people' / '1' / 'assets.extra', plain / 'assets.extra')
  with pytest.raises(ValueError, match='has no signature embed_images and embed_attributes'):
    Embedder(str(plain.parent))


def test_reasons_and_suggestions_come_with_the_answer(depot):
  with tfreid.index.open(depot) as index:
    check_composed(index)


def check_composed(index):
  answer = ask(index, 'red top', top_k=5, options=SearchOptions(where='camera is None'))
  assert [hit.id for hit in answer.hits] == [
    hit.id for hit in index.search('red top', top_k=5, where='camera is None').hits
  ]
  assert all(hit.reasons for hit in answer.hits)
  assert list(answer.suggestions) == index.suggest('red top', where='camera is None')
  plain = ask(index, 'red top', top_k=5, explain=False, suggest=False)
  assert not plain.suggestions and not any(hit.reasons for hit in plain.hits)


def test_an_id_is_found_however_its_accents_are_composed(tmp_path, embedder, crops):
  """A Mac lists 'e' and an accent for what a keyboard types as 'é'."""
  ids = ['cafe\u0301.png', 'été.png', 'c.png']
  rows = [Row(name, str(path)) for name, path in zip(ids, sorted(crops.rglob('*.png')))]
  directory = str(tmp_path / 'index')
  writer.build(directory, rows, embedder)
  with tfreid.index.open(directory, model=embedder) as index:
    assert index.crop('café.png').id == 'cafe\u0301.png'
    assert index.crop('e\u0301te\u0301.png').id == 'été.png'
    assert len(index.like('café.png').hits) == 2
    left = index.search({'hat': 'yes'}, exclude=['café.png', 'e\u0301te\u0301.png']).hits
    assert [hit.id for hit in left] == ['c.png']
  with pytest.raises(ValueError, match="no crop 'd.png'"):
    writer.remove(directory, ['café.png', 'd.png'])
  assert writer.remove(directory, ['café.png', 'e\u0301te\u0301.png']) == 2
