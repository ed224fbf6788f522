"""What can be searched answers alike: the exported model, the index, and a computation by hand."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import tfreid.search
from tfreid import storage
from tfreid.index import writer
from tfreid.search import gallery
from tfreid.search.exported import ExportedModel
from tfreid.serving import versions
from tfreid.source import query as queries

QUERIES = (
  {'hat': 'yes'},
  {'upper_color': '!blue'},
  {'gender': 'female', 'hat': '!yes', 'upper_color': 'red'},
  {'upper_color': 'none', 'gender': 'male'},
)


@pytest.fixture(scope='module')
def sources(people, tmp_path_factory):
  """An exported model, an index of the embedded engine, and the same one moved to Milvus."""
  pytest.importorskip('pymilvus', reason="needs the extra 'milvus'")
  moved = str(tmp_path_factory.mktemp('moved') / 'index')
  writer.merge(moved, [people.index], engine_name='milvus')
  with contextlib.ExitStack() as opened:
    loaded = [tfreid.search.load(path) for path in (people.model, people.index, moved)]
    yield tuple(opened.enter_context(source) for source in loaded)


def direct_reasons(people, query):
  """Crop to attribute to change of the score, by the encoder that was trained."""

  def scores(said):
    vector = people.schema.encode_query(said) if said else people.schema.unsaid()
    return people.gallery @ people.space.encode_attributes(vector[np.newaxis]).numpy()[0]

  whole = scores(query)
  changes = {
    name: whole - scores({other: value for other, value in query.items() if other != name})
    for name in query
  }
  return {
    identifier: {name: change[row] for name, change in changes.items()}
    for row, identifier in enumerate(people.ids)
  }


@pytest.mark.parametrize('query', QUERIES)
def test_reasons_are_those_of_a_direct_computation_from_each_source(people, sources, query):
  expected = direct_reasons(people, query)
  assert max(abs(change) for changes in expected.values() for change in changes.values()) > 0.1
  answers = [source.search(query, explain=True, top_k=10) for source in sources]
  for answer in answers:
    assert [hit.id for hit in answer.hits] == [hit.id for hit in answers[0].hits]
    assert len(answer.hits) == 10
    for hit in answer.hits:
      assert list(hit.reasons) == list(query)
      for name, change in hit.reasons.items():
        assert change == pytest.approx(expected[hit.id][name], abs=3e-6)


def test_an_answer_is_the_same_explained_or_not(sources):
  for source in sources:
    plain, explained = (
      source.search('woman, red top', explain=explain) for explain in (False, True)
    )
    assert [hit.id for hit in plain.hits] == [hit.id for hit in explained.hits]
    np.testing.assert_allclose(
      [hit.score for hit in plain.hits], [hit.score for hit in explained.hits], atol=1e-6
    )
    assert not any(hit.reasons for hit in plain.hits)
    assert explained.text == 'woman, red top'
    assert explained.query == {'gender': 'female', 'upper_color': 'red'}


def test_sources_suggest_the_same_with_the_same_gains(sources):
  for query in ('hat', {'upper_color': '!red'}):
    first, *others = (source.suggest(query, top_k=12) for source in sources)
    said = {'hat'} if query == 'hat' else {'upper_color'}
    assert {s.attribute for s in first} == {'gender', 'hat', 'upper_color'} - said
    assert first[0].gain >= first[1].gain > 0
    for other in others:
      assert [s.attribute for s in first] == [s.attribute for s in other]
      assert [s.gain for s in first] == pytest.approx([s.gain for s in other], abs=1e-5)
  for source in sources:
    assert source.suggest('woman, red top, no hat') == []
    with pytest.raises(ValueError, match="Did not understand 'purple'"):
      source.suggest('purple')


@pytest.mark.parametrize('explain', [False, True])
def test_an_answer_brings_the_reasons_and_suggestions_that_are_asked_for_alone(sources, explain):
  for query in ({'hat': 'yes'}, {'upper_color': '!red'}, {'gender': 'male', 'hat': 'no'}):
    for source in sources:
      answer = source.search(query, explain=explain, suggest=True)
      alone = source.suggest(query)
      assert [s.attribute for s in answer.suggestions] == [s.attribute for s in alone] != []
      assert [s.gain for s in answer.suggestions] == pytest.approx(
        [s.gain for s in alone], abs=1e-5
      )
      plain = source.search(query, explain=explain)
      assert [hit.id for hit in answer.hits] == [hit.id for hit in plain.hits]
      for hit, other in zip(answer.hits, plain.hits):
        assert hit.reasons == pytest.approx(other.reasons, abs=1e-5)
        assert bool(hit.reasons) == explain
  for source in sources:
    # Nothing is left to be asked.
    assert not source.search('woman, red top, no hat', suggest=True).suggestions


def test_reasons_and_suggestions_take_one_pass_through_an_exported_model(people, monkeypatch):
  asked = []
  ask = ExportedModel._ask
  monkeypatch.setattr(
    ExportedModel, '_ask', lambda *given, **inputs: asked.append(given[1]) or ask(*given, **inputs)
  )
  with tfreid.search.load(people.model) as source:
    source.search({'hat': 'yes'}, explain=True, suggest=True)
    source.search({'hat': 'yes'}, suggest=True)
    source.search({'hat': 'yes'})
  assert asked == ['explain', 'explain', 'serving_default']


def test_suggestions_are_about_the_best_crops_alone(sources):
  for source in sources:
    # Of one crop, nothing is left to be known.
    assert [s.gain for s in source.suggest('hat', top_k=1)] == [0.0, 0.0]


def test_crops_like_a_crop_by_id_by_file_and_by_bytes(people, sources, crops):
  for source in sources:
    by_id = source.like('004.png', top_k=5)
    path = str(crops / '004.png')
    by_file, by_bytes = source.like(path, top_k=6), source.like((crops / '004.png').read_bytes())
    expected = np.argsort(-people.gallery @ people.gallery[4])
    assert [hit.id for hit in by_file.hits] == [people.ids[row] for row in expected[:6]]
    assert [hit.id for hit in by_bytes.hits] == [people.ids[row] for row in expected[:20]]
    others = [people.ids[row] for row in expected if row != 4]
    assert [hit.id for hit in by_id.hits] == others[:5]
    with pytest.raises(ValueError, match='neither an id of the .* nor an image file'):
      source.like('nowhere.png')
    with pytest.raises(ValueError, match='is not an image|neither a JPEG'):
      source.like(b'no image')


def test_the_crops_of_a_gallery_are_in_the_model_whatever_its_precision(people, tmp_path, crops):
  from tfreid.serving import export

  encoders = export.encoders(people.space)
  directory = export.export(
    people.space,
    str(tmp_path),
    encoders=encoders,
    gallery=people.gallery,
    ids=people.ids,
    crops=[export.Crop('a', (crops / '000.png').read_bytes())],
    schema=people.schema,
    gallery_precision='bfloat16',
  )
  # No path is known of any crop.
  with ExportedModel(directory) as model, ExportedModel(people.model) as expected:
    found, wanted = model.like('004.png'), expected.like('004.png')
    assert [hit.id for hit in found.hits] == [hit.id for hit in wanted.hits]
    assert [hit.score for hit in found.hits] == [hit.score for hit in wanted.hits]


def test_facts_are_plain_json_and_name_the_same_model(people, sources):
  facts = [source.info() for source in sources]
  assert json.loads(json.dumps(facts)) == facts
  assert [fact['crops'] for fact in facts] == [24, 24, 24]
  assert [fact['engine'] for fact in facts] == ['exported model', 'embedded', 'milvus']
  assert [fact['embedding_size'] for fact in facts] == [8, 8, 8]
  assert len({fact['model']['fingerprint'] for fact in facts}) == 1
  assert 'explain' in facts[0]['signatures']
  for source in sources:
    assert source.schema == people.schema


def test_a_model_refuses_what_only_an_index_can_do(sources):
  model, *indexes = sources
  for options in ({'where': 'camera == 1'}, {'must': 'hat', 'min_score': 0.1}):
    for ask in (lambda o: model.search('hat', **o), lambda o: model.like('000.png', **o)):
      with pytest.raises(ValueError, match=f'{" *, *".join(sorted(options))}: only an index can'):
        ask(options)
  with pytest.raises(TypeError, match="unexpected keyword argument 'wheer'"):
    model.search('hat', wheer='camera == 1')
  for source in sources:
    with pytest.raises(ValueError, match='must be at least 1, not 0'):
      source.search('hat', top_k=0)
  for index in indexes:
    answer = index.search('hat', explain=True, exclude=['000.png'], must={'gender': 'female'})
    assert len(answer.hits) == 11 and all(hit.reasons for hit in answer.hits)
    assert index.suggest('hat', must={'gender': 'female'}, top_k=3)


def test_a_concept_has_no_reasons(people, sources):
  for index in sources[1:]:
    answer = index.search(people.gallery[0], explain=True)
    assert len(answer.hits) == 20 and not any(hit.reasons for hit in answer.hits)


def test_an_older_export_answers_and_says_what_it_cannot_do(people, crops, tmp_path):
  picture = crops / '000.png'
  directory = shutil.copytree(f'{people.model}/1', tmp_path / 'model' / '1')
  loaded = tf.saved_model.load(str(directory))
  kept = {name: loaded.signatures[name] for name in ('serving_default', 'embed_images')}
  tf.saved_model.save(loaded, str(tmp_path / 'older' / '1'), signatures=kept)
  # Neither had a seal, nor said model.json that it must have one.
  left_out = shutil.ignore_patterns('seal.json', 'model.json')
  extra = tmp_path / 'older' / '1' / 'assets.extra'
  shutil.copytree(directory / 'assets.extra', extra, ignore=left_out)
  with tfreid.search.load(str(tmp_path / 'older')) as older:
    with tfreid.search.load(people.model) as newer:
      assert older.search('hat').hits == newer.search('hat').hits
    for ask in (
      lambda: older.search('hat', explain=True),
      lambda: older.suggest('hat'),
      lambda: older.like('000.png'),
      lambda: older.like(picture.read_bytes()),
    ):
      with pytest.raises(ValueError, match=r'earlier version .*Export it again'):
        ask()


def test_a_closed_model_says_so(people):
  model = tfreid.search.load(people.model)
  model.close()
  with pytest.raises(ValueError, match='is closed'):
    model.search('hat')


def test_a_model_without_schema_is_refused(people, tmp_path):
  directory = shutil.copytree(f'{people.model}/1', tmp_path / 'model' / '1')
  (directory / 'assets.extra' / 'schema.json').unlink()
  with pytest.raises(FileNotFoundError, match='Export it with a schema'):
    ExportedModel(str(directory))


def test_a_crop_is_known_by_its_id_and_not_by_its_path(people, sources, crops):
  for source in sources:
    found = source.crop('000.png')
    assert (found.id, found.path) == ('000.png', str(crops / '000.png'))
    assert found.attributes['gender'] == 'female'
    assert source.crop('023.png').attributes == {}
    assert source.crop(str(crops / '000.png')) is None
    assert source.crop('') is None


def test_a_damaged_model_is_refused_in_one_sentence(people, tmp_path):
  shutil.copytree(people.model, tmp_path / 'model')
  (variables,) = (tmp_path / 'model').glob('*/variables/variables.index')
  variables.write_bytes(variables.read_bytes()[:10])
  with pytest.raises(ValueError, match='is damaged: .*variables.index.* make it again'):
    ExportedModel(str(tmp_path / 'model'))


def test_every_source_embeds_crops_and_descriptions_and_their_products_are_the_scores(
  people, sources, tmp_path
):
  expected = people.gallery[[5, 0, 7]]
  paths = [json.loads(line)['path'] for line in _gallery_lines(people)]
  crops = [paths[5], open(paths[0], 'rb').read(), paths[7]]
  query = {'hat': 'yes', 'upper_color': '!blue'}
  for source in sources:
    concepts = source.embed(crops)
    assert concepts.dtype == np.float32
    np.testing.assert_allclose(concepts, expected, atol=1e-5)
    scores = {hit.id: hit.score for hit in source.search(query, top_k=24).hits}
    found = concepts @ source.embed_query(query)
    np.testing.assert_allclose(found, [scores[people.ids[i]] for i in (5, 0, 7)], atol=1e-5)
    same = source.embed_query('woman, red top')
    np.testing.assert_array_equal(
      same, source.embed_query({'gender': 'female', 'upper_color': 'red'})
    )
    with pytest.raises(ValueError, match='Give a list of crops'):
      source.embed(paths[0])
    with pytest.raises(FileNotFoundError):
      source.embed([str(tmp_path / 'missing.png')])
    with pytest.raises(ValueError):
      source.embed([b'no picture'])


def test_many_crops_are_embedded_some_at_a_time():
  sizes = []

  def embed(contents):
    sizes.append(len(contents))
    return np.array([[float(text)] for text in contents])

  found = queries.embedded([str(i).encode() for i in range(70)], embed, batch=32)
  assert sizes == [32, 32, 6]
  np.testing.assert_array_equal(found[:, 0], np.arange(70))


def test_a_model_without_its_gallery_file_still_knows_its_crops(people, tmp_path):
  shutil.copytree(people.model, tmp_path / 'model')
  (listed,) = (tmp_path / 'model').glob('*/assets.extra/gallery.jsonl')
  with tfreid.search.load(people.model) as whole:
    identifier = whole.search({'hat': 'yes'}).hits[0].id
    expected = whole.like(identifier, top_k=5)
  listed.unlink()
  with pytest.raises(ValueError, match=r"damaged: '.*gallery.jsonl' is missing"):
    tfreid.search.load(str(tmp_path / 'model'))
  # Somebody left it out on purpose.
  storage.seal(listed.parents[1], file=versions.SEAL)
  with tfreid.search.load(str(tmp_path / 'model')) as source:
    answer = source.like(identifier, top_k=5)
    assert [(hit.id, hit.score) for hit in answer.hits] == [
      (hit.id, hit.score) for hit in expected.hits
    ]
    assert answer.gallery_size == expected.gallery_size == source.info()['crops'] > 5
    assert source.crop(identifier).path == ''
    assert source.crop('nobody') is None


def test_all_fields_of_a_gallery_file_are_told():
  known = {'a': {'id': 'a', 'path': 'a.png', 'attributes': {'hat': 'yes'}, 'time': '9:15', 'n': 2}}
  (hit,) = gallery.hits(['a'], [1.0], known, top_k=1)
  assert hit.metadata == {'time': '9:15', 'n': 2}
  assert (hit.path, hit.attributes) == ('a.png', {'hat': 'yes'})


def _gallery_lines(people):
  (path,) = pathlib.Path(people.model).glob('*/assets.extra/gallery.jsonl')
  return path.read_text().splitlines()
