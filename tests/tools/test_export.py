from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid import storage
from tfreid.data import image_files, market1501
from tfreid.data.pipeline import Pipeline
from tfreid.joint_space import JointSpace
from tfreid.serving import versions

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / 'tests' / 'search'), str(ROOT / 'tests' / 'serving')]


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


@pytest.fixture(scope='module')
def people(tmp_path_factory):
  """A model of 24 crops, and an index of them and later of others. Not to be written to."""
  import depot

  from tfreid.index import manifest, writer
  from tfreid.index.embedder import Embedder

  folder = tmp_path_factory.mktemp('people')
  made = depot.build(folder, depot.write_crops(folder / 'crops'), 'binary')
  # Other crops than those inside the model, in another order, with facts of their own.
  rng = np.random.default_rng(5)
  listed = folder / 'more.jsonl'
  with open(listed, 'w') as file:
    for i in reversed(range(30)):
      path = folder / 'more' / f'{i}.png'
      path.parent.mkdir(exist_ok=True)
      pixels = rng.integers(0, 256, (12, 6, 3)).astype(np.uint8)
      path.write_bytes(tf.io.encode_png(pixels).numpy())
      line = {'path': str(path), 'id': f'more [bold]/{i}', 'camera': i % 3, 'hat': 'yes'}
      file.write(json.dumps(line) + '\n')
  attributes = {a.name: a.values for a in depot.ATTRIBUTES}
  writer.add(made.index, manifest.read(str(listed), attributes=attributes), Embedder(made.model))
  writer.remove(made.index, made.ids[3:9])
  made.folder = folder
  return made


def search(*arguments):
  """The hits of `tfreid search`."""
  done = subprocess.run(
    [sys.executable, ROOT / 'tools' / 'search.py', '--json', *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)['hits']


def ask(source, query='red top', **options):
  """The hits of a folder or an address, as `tfreid search` has them."""
  import tfreid.search

  with tfreid.search.load(str(source), **options) as opened:
    return opened.search(query, top_k=40).to_json()['hits']


def assert_same_hits(found, expected):
  assert [hit['id'] for hit in found] == [hit['id'] for hit in expected]
  for one, other in zip(found, expected):
    assert one['score'] == pytest.approx(other['score'], abs=1e-5)
    assert (one['path'], one['attributes']) == (other['path'], other['attributes'])


def facts(version):
  return json.loads((version / 'assets.extra' / 'model.json').read_text())


@pytest.mark.slow
def test_an_index_becomes_a_model_that_answers_as_the_index_does_wherever_it_is_served(
  people, tmp_path
):
  from served import Served

  from tfreid.index import writer

  out = tmp_path / 'depot'
  index = Path(shutil.copytree(people.index, tmp_path / 'index'))
  done = export(f'--model={people.model}', f'--index={index}', f'--out={out}', '--top_k=40')
  assert done.returncode == 0, done.stderr
  assert f'Exported {out}/1' in done.stdout and '48 crops' in done.stdout
  said = facts(out / '1')
  assert said['fingerprint'] == facts(Path(people.model, '1'))['fingerprint']
  assert (said['gallery_size'], said['num_results']) == (48, 40)
  assert (said['index'], said['exported_from']) == (str(index), str(Path(people.model, '1')))
  lines = (out / '1' / 'assets.extra' / 'gallery.jsonl').read_text().splitlines()
  row = next(row for row in map(json.loads, lines) if row['id'] == 'more [bold]/4')
  assert row == {
    'id': 'more [bold]/4',
    'path': str(people.folder / 'more' / '4.png'),
    'camera': 1,
    'attributes': {'hat': 'yes'},
  }
  query = 'woman, red top, no hat'
  expected = search(f'--index={index}', '--top_k=40', query)
  assert len(expected) == 40 and len({hit['id'].partition('/')[0] for hit in expected}) > 1
  assert_same_hits(ask(out, query), expected)
  server = Served({'depot': out})
  try:
    gallery = str(out / '1' / 'assets.extra' / 'gallery.jsonl')
    found = ask(server.rest, query, model='depot', gallery_file=gallery)
    assert_same_hits(found, expected)
    for asked in ((), (f'--server={server.grpc}', '--model_name=depot')):
      checked = export(f'--check={out}', *asked)
      assert checked.returncode == 0, checked.stdout + checked.stderr
      assert 'answers as at the export: 9 signatures.' in checked.stdout.splitlines()[-1]
    # The index changes; the same command from the new model itself makes the next version, and the
    # server takes it over.
    writer.remove(str(index), [expected[0]['id']])
    again = export(f'--model={out}', f'--index={index}', f'--out={out}', '--top_k=40')
    assert again.returncode == 0, again.stderr
    server.wait_for('depot', {1: 'END', 2: 'AVAILABLE'})
    found = ask(server.grpc, query, model='depot', gallery_file=gallery)
    assert_same_hits(found, ask(index, query))
    assert [hit['id'] for hit in found][:39] == [hit['id'] for hit in expected[1:]]
  finally:
    server.stop()
  assert facts(out / '2')['fingerprint'] == said['fingerprint']


@pytest.mark.slow
def test_a_folder_becomes_a_gallery_of_an_exported_model_whose_run_is_gone(people, tmp_path):
  done = export(f'--model={people.model}', f'--images={people.folder}/more', f'--out={tmp_path}')
  assert done.returncode == 0, done.stderr
  model = tf.saved_model.load(str(tmp_path / '1'))
  paths = sorted((people.folder / 'more').glob('*.png'), key=str)
  contents = tf.constant([path.read_bytes() for path in paths])
  original = tf.saved_model.load(str(Path(people.model, '1')))
  gallery = original.signatures['embed_images'](image_bytes=contents)['concepts'].numpy()
  query = tf.constant(np.eye(people.schema.size, dtype=np.float32))
  concepts = original.signatures['embed_attributes'](attributes=query)['concepts'].numpy()
  answer = model.signatures['serving_default'](attributes=query)
  order = np.argsort(-(concepts @ gallery.T), axis=1)
  names = [[paths[row].name for row in line] for line in order]
  assert np.char.decode(answer['ids'].numpy().astype(bytes)).tolist() == names


@pytest.mark.slow
@pytest.mark.parametrize('engine', ['embedded', 'milvus'])
def test_an_index_whose_files_are_gone_is_exported_by_either_engine(people, tmp_path, engine):
  if engine == 'milvus':
    pytest.importorskip('pymilvus', reason="needs the extra 'milvus'")
  from tfreid.index import manifest, writer
  from tfreid.index.embedder import Embedder

  crops = Path(shutil.copytree(people.folder / 'more', tmp_path / 'crops'))
  index = tmp_path / 'index'
  rows = manifest.read(str(crops))
  writer.build(str(index), rows, Embedder(people.model), engine_name=engine)
  writer.remove(str(index), ['7.png'])
  shutil.rmtree(crops)
  # The model is where the index says.
  done = export(f'--index={index}', f'--out={tmp_path}/model')
  assert done.returncode == 0, done.stderr
  assert 'Checked on 2 crops' in done.stdout
  extra = tmp_path / 'model' / '1' / 'assets.extra'
  names = [json.loads(line)['id'] for line in (extra / 'gallery.jsonl').read_text().splitlines()]
  assert names == [row.id for row in rows if row.id != '7.png']
  assert_same_hits(ask(tmp_path / 'model'), ask(index))


@pytest.mark.slow
def test_encoders_that_do_not_belong_to_the_index_are_refused(people, tmp_path):
  import depot

  from tfreid.serving.export import Crop, encoders
  from tfreid.serving.export import export as export_space

  people.space.save(str(tmp_path / 'same'), metadata={'schema': people.schema.to_json()})
  made = depot.build_space(people.schema)
  bias = made.image_encoder.layers[-1].bias
  bias.assign_add(tf.fill(bias.shape, 0.01))
  path = Path(people.rows[0]['path'])
  export_space(
    made,
    str(tmp_path / 'exported'),
    encoders=encoders(made),
    gallery=people.gallery,
    ids=people.ids,
    crops=[Crop(path.name, path.read_bytes())],
    schema=people.schema,
  )
  flags = [f'--index={people.index}', f'--out={tmp_path}/out']
  done = export(f'--model={tmp_path}/exported', *flags)
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert 'The index was built with another model' in done.stderr
  assert not (tmp_path / 'out').exists()
  # The training run that the index's model came from has the same encoders, if it is still there.
  done = export(f'--space={tmp_path}/same', *flags)
  assert done.returncode == 0, done.stderr
  assert facts(tmp_path / 'out' / '1')['gallery_size'] == 48


@pytest.mark.slow
def test_what_cannot_be_exported_from_a_model_is_refused_with_advice(people, tmp_path):
  from tfreid.index import writer

  old = Path(shutil.copytree(people.model, tmp_path / 'old'))
  (old / '1' / 'assets.extra' / 'encoders.json').unlink()
  storage.seal(old / '1', file=versions.SEAL)
  index = Path(shutil.copytree(people.index, tmp_path / 'index'))
  import tfreid.index

  with tfreid.index.open(str(index)) as opened:
    ids = [row.id for _, rows in opened.engine.parts() for row in rows]
  writer.remove(str(index), ids)
  for flags, message in [
    ((f'--model={old}', f'--index={people.index}'), 'exported by an earlier version of tfreid'),
    ((f'--model={people.model}', f'--index={index}'), 'holds no crop'),
    (
      (f'--model={people.model}', f'--index={people.index}', '--precision=bfloat16'),
      'was exported in float32',
    ),
  ]:
    done = export(*flags, f'--out={tmp_path}/out')
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert 'Traceback' not in done.stderr and not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_a_check_of_a_changed_variable_fails_here_and_on_a_server(people, tmp_path):
  from damaged import change_variable
  from served import Served

  changed = Path(shutil.copytree(people.model, tmp_path / 'people'))
  change_variable(changed / '1', 'attribute_encoder/weights/0', lambda value: value * 0.5)
  done = export(f'--check={changed}')
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  differ = {line.split()[1] for line in done.stdout.splitlines() if line.startswith('DIFFERS')}
  assert differ == {'serving_default', 'embed_attributes', 'explain', 'search_words'}
  assert done.stdout.splitlines()[-1].endswith('as at the export: 4 of 9 signatures.')
  server = Served({'people': changed})
  try:
    # The golden requests of the version as it was exported, on a machine that got it otherwise.
    done = export(f'--check={people.model}/1', f'--server={server.grpc}', '--model_name=people')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert {line.split()[1] for line in done.stdout.splitlines() if 'DIFFERS' in line} == differ
    assert f'people 1 at {server.grpc} does not answer' in done.stdout
    lenient = export(
      f'--check={people.model}/1',
      f'--server={server.rest}',
      '--model_name=people',
      '--tolerance=10',
    )
    assert lenient.returncode == 0, lenient.stdout + lenient.stderr
  finally:
    server.stop()
  nobody = export(f'--check={people.model}', f'--server={server.grpc}', '--timeout=1')
  assert nobody.returncode == 1 and 'Traceback' not in nobody.stderr
  assert 'answers' in nobody.stderr or 'No answer' in nobody.stderr


def test_usage_errors_and_missing_folders_are_one_sentence(tmp_path):
  for flags, message in [
    ([], '--space'),
    (['--space=x', '--images=z'], 'Give --out'),
    (['--space=x', '--out=y'], 'either --dataset and --data_root, or --images, or --index'),
    (['--model=x', '--out=y', '--images=z', '--index=i'], 'either --dataset and'),
    (['--space=x', '--model=x', '--out=y', '--images=z'], 'Give the encoders once'),
    (['--space=x', '--out=y', '--dataset=peta'], '--data_root'),
    (['--check=x', '--out=y'], 'there is no use for --out'),
    (['--check=x', '--flip_test'], 'there is no use for --flip_test'),
    (['--index=x', '--out=y', '--flip_test'], 'build the index anew'),
    (['--check=x', '--model_name=y'], '--model_name needs --server'),
    (['--space=x', '--out=y', '--images=z', '--server=grpc://a'], '--check=DIRECTORY'),
  ]:
    done = export(*flags)
    assert done.returncode == 1 and message in done.stderr + done.stdout
    assert 'Traceback' not in done.stderr
  missing = export(f'--space={tmp_path}/none', f'--out={tmp_path}/m', f'--images={tmp_path}')
  assert missing.returncode == 1 and 'holds no joint space' in missing.stderr
  assert 'Traceback' not in missing.stderr


@pytest.mark.slow
def test_a_model_with_the_flip_test_finds_the_same_in_a_mirror(space, tmp_path):
  done = export(f'--space={space}', f'--out={tmp_path}/model', '--empty_gallery', '--flip_test')
  assert done.returncode == 0, done.stderr
  about = json.loads((tmp_path / 'model' / '1' / 'assets.extra' / 'model.json').read_text())
  assert about['flip_test'] is True
  picture = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)
  contents = [tf.io.encode_png(image).numpy() for image in (picture, picture[:, ::-1])]
  signature = tf.saved_model.load(str(tmp_path / 'model' / '1')).signatures['embed_images']
  found = signature(image_bytes=tf.constant(contents))['concepts'].numpy()
  np.testing.assert_array_equal(found[0], found[1])
  loaded = JointSpace.load(str(space))
  both = loaded.encode_images(np.stack([picture, picture[:, ::-1]]).astype(np.float32)).numpy()
  np.testing.assert_allclose(found[0], both.mean(axis=0), rtol=1e-4, atol=1e-5)
  assert np.abs(both[0] - both[1]).max() > 0.01
  twice = export(
    f'--model={tmp_path}/model', f'--out={tmp_path}/m', '--empty_gallery', '--flip_test'
  )
  assert twice.returncode == 1 and 'has the flip test already' in twice.stderr
  assert 'Traceback' not in twice.stderr


@pytest.mark.slow
def test_without_a_gallery_it_is_a_model_for_indexes(space, tmp_path):
  import tfreid.index
  from tfreid.search import exported

  flags = [f'--space={space}', f'--out={tmp_path}/model']
  done = export(*flags, '--empty_gallery')
  assert done.returncode == 0, done.stderr
  assert 'no gallery' in done.stdout and 'tfreid index build --model=' in done.stdout
  version = tmp_path / 'model' / '1'
  assert (version / 'assets.extra' / 'gallery.jsonl').read_text() == ''
  model = json.loads((version / 'assets.extra' / 'model.json').read_text())
  assert (model['gallery_size'], model['num_results'], model['gallery_bytes']) == (0, 0, 0)
  names = set(tf.saved_model.load(str(version)).signatures)
  assert names == {'embed_images', 'embed_attributes', 'describe'}
  checked = export(f'--check={version}')
  assert checked.returncode == 0 and 'as they were written' in checked.stdout
  with exported.ExportedModel(str(version)) as loaded:
    assert not any(dataclasses.astuple(loaded.capabilities()))
    assert loaded.embed_query({'gender': 'female'}).shape == (6,)
    for ask in (
      lambda: loaded.search({'gender': 'female'}),
      lambda: loaded.suggest({'gender': 'male'}),
      lambda: loaded.like((version / 'saved_model.pb').read_bytes()),
    ):
      with pytest.raises(ValueError, match='tfreid index build|not an image|cannot be read'):
        ask()
  command = [sys.executable, ROOT / 'tools' / 'search.py', f'--model={version}', 'woman']
  refused = subprocess.run(command, capture_output=True, text=True)
  assert refused.returncode == 1 and 'without a gallery' in refused.stderr
  assert 'Traceback' not in refused.stderr
  # An index is made with it, and a model with that index as its gallery.
  crops = tmp_path / 'crops'
  crops.mkdir()
  rng = np.random.default_rng(0)
  for i in range(4):
    picture = tf.io.encode_png(rng.integers(0, 256, (20, 10, 3), dtype=np.uint8))
    tf.io.write_file(str(crops / f'{i}.png'), picture)
  ready = str(tmp_path / 'index')
  command = [sys.executable, ROOT / 'tools' / 'index.py', 'build', f'--index={ready}']
  built = subprocess.run(
    [*command, f'--model={version}', f'--source={crops}'], capture_output=True, text=True
  )
  assert built.returncode == 0, built.stderr
  with tfreid.index.open(ready) as index:
    concepts = index.embed([str(crops / '2.png')])
    assert len(index) == 4 and index.search({'gender': 'male'}, top_k=4).hits
  made = export(f'--model={version}', f'--out={tmp_path}/other', f'--index={tmp_path}/index')
  assert made.returncode == 0, made.stderr
  trained = JointSpace.load(str(space))
  pixels = tf.cast(image_files.decode((crops / '2.png').read_bytes(), (32, 16)), tf.float32)
  exact = trained.encode_images(pixels[tf.newaxis]).numpy()
  np.testing.assert_allclose(concepts, exact, atol=1e-5)
  both = export(*flags, '--empty_gallery', f'--images={crops}')
  assert both.returncode == 1 and 'Give the gallery' in both.stderr
