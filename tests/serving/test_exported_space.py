from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid.serving import export, golden
from tfreid.serving.exported_space import ExportedSpace

sys.path.insert(0, str(Path(__file__).parent))
from damaged import change_variable, seal_again


@pytest.fixture
def copy(exported, tmp_path):
  """A version that a test may damage."""
  return Path(shutil.copytree(exported, tmp_path / 'people' / '1'))


def facts(version):
  return json.loads(Path(version, 'assets.extra', 'model.json').read_text())


def as_text(values):
  return np.char.decode(values.numpy().astype(bytes)).tolist()


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_encoders_come_back_as_they_were(exported, half, space, crops, precision):
  version = exported if precision == 'float32' else half
  found = ExportedSpace(version).encoders()
  made = export.encoders(space, precision=precision)
  assert found.fingerprint == made.fingerprint == facts(version)['fingerprint']
  assert (found.image.num_folded, found.image.num_kept) == (2, 0)
  assert found.image.precision == precision and found.attribute.precision == 'float32'
  dtypes = [variable.dtype for variable in found.image.weights]
  assert dtypes == [variable.dtype for variable in made.image.weights]
  assert (tf.bfloat16 in dtypes) == (precision == 'bfloat16')
  pixels = np.random.default_rng(0).uniform(0, 255, (3, 32, 16, 3)).astype(np.float32)
  np.testing.assert_array_equal(found.image(pixels), made.image(pixels))
  vectors = np.eye(30, dtype=np.float32)
  np.testing.assert_array_equal(found.attribute(vectors), made.attribute(vectors))


def test_the_exported_model_says_itself_what_it_makes_of_crops(exported, space, crops, schema):
  source = ExportedSpace(str(Path(exported).parent))
  assert source.directory == exported and source.schema == schema
  assert (source.image_shape, source.num_attributes) == ((32, 16, 3), 30)
  vectors = np.eye(30, dtype=np.float32)
  images, attributes = source.embed([crop.contents for crop in crops], vectors)
  assert images.shape == (6, 12)
  np.testing.assert_allclose(attributes, space.encode_attributes(vectors), atol=1e-5)
  assert [crop.contents for crop in source.crops()] == [crop.contents for crop in crops[:2]]


def test_an_export_of_an_export_of_an_export_has_another_gallery_and_nothing_else(
  half, space, gallery, ids, tmp_path
):
  versions, source, rows = [half], ExportedSpace(half), gallery[100:160]
  for _ in range(2):
    versions.append(
      export.export(
        source,
        str(tmp_path / 'depot'),
        encoders=source.encoders(),
        gallery=rows,
        ids=ids[100:160],
        crops=source.crops(),
        schema=source.schema,
        top_k=20,
        about=source.origin,
      )
    )
    source = ExportedSpace(versions[-1])
  assert [Path(version).name for version in versions[1:]] == ['1', '2']
  assert len({facts(version)['fingerprint'] for version in versions}) == 1
  # The encoders are traced anew, not wrapped: a graph does not grow with the generations.
  sizes = [Path(version, 'saved_model.pb').stat().st_size for version in versions]
  assert max(sizes) < 1.02 * min(sizes)
  variables = [
    {
      name: shape
      for name, shape in tf.train.list_variables(str(Path(version, 'variables', 'variables')))
      if 'encoder' in name
    }
    for version in versions
  ]
  assert variables[0] == variables[1] == variables[2]
  last = facts(versions[-1])
  assert last['exported_from'] == versions[1] and last['gallery_size'] == 60
  assert last['precision'] == 'bfloat16'
  assert last['parity']['image_error'] <= last['parity']['image_tolerance']
  # What was measured against training stays known.
  assert last['trained_parity'] == facts(half)['parity']
  model = tf.saved_model.load(versions[-1])
  vectors = np.random.default_rng(1).integers(0, 2, (3, 30)).astype(np.float32)
  answer = model.signatures['serving_default'](attributes=tf.constant(vectors))
  scores = space.encode_attributes(vectors).numpy() @ rows.T
  order = np.argsort(-scores, axis=1, kind='stable')[:, :20]
  assert as_text(answer['ids']) == [[ids[100 + row] for row in line] for line in order]
  np.testing.assert_allclose(answer['scores'], np.take_along_axis(scores, order, 1), atol=1e-5)
  assert not [o for o in golden.replay(versions[-1], golden.loaded(versions[-1])) if o.problem]


def test_an_export_that_differs_from_the_exported_model_is_refused(
  exported, gallery, ids, crops, tmp_path
):
  source = ExportedSpace(exported)
  wrong = source.encoders()
  kernel = wrong.image.weights[2]
  kernel.assign(kernel * 1.01)
  with pytest.raises(ValueError, match='image encoder differs from the original one'):
    export.export(
      source,
      str(tmp_path),
      encoders=wrong,
      gallery=gallery[:30],
      ids=ids[:30],
      crops=crops,
    )
  assert list(tmp_path.iterdir()) == []


def test_a_model_of_an_earlier_version_is_refused_with_advice(copy):
  (copy / 'assets.extra' / 'encoders.json').unlink()
  seal_again(copy)
  with pytest.raises(ValueError, match=r'exported by an earlier version of tfreid.*--space='):
    ExportedSpace(str(copy))


def test_encoders_that_are_not_those_of_the_fingerprint_are_refused(copy):
  change_variable(copy, 'image_encoder/weights/1', lambda value: value + np.float32(1e-3))
  with pytest.raises(
    ValueError, match=r'is damaged \(variables: the encoders have the fingerprint'
  ):
    ExportedSpace(str(copy)).encoders()


def test_damaged_files_are_named(copy):
  extra = copy / 'assets.extra'
  encoders = json.loads((extra / 'encoders.json').read_text())
  encoders['image']['num_weights'] -= 1
  (extra / 'encoders.json').write_text(json.dumps(encoders))
  seal_again(copy)
  with pytest.raises(ValueError, match=r'is damaged \(variables: The layers take 6 weights'):
    ExportedSpace(str(copy)).encoders()
  encoders['image']['num_weights'] += 2
  (extra / 'encoders.json').write_text(json.dumps(encoders))
  seal_again(copy)
  with pytest.raises(ValueError, match=r'is damaged \(variables: '):
    ExportedSpace(str(copy)).encoders()
  for name in ('encoders.json', 'model.json'):
    (extra / name).write_text('{"half')
    seal_again(copy)
    with pytest.raises(ValueError, match=rf'is damaged \(assets.extra/{name}: '):
      ExportedSpace(str(copy))
  with pytest.raises(FileNotFoundError, match='holds no exported model'):
    ExportedSpace(str(extra))


def test_a_layer_that_holds_code_is_refused_before_keras_sees_it(copy):
  path = copy / 'assets.extra' / 'encoders.json'
  encoders = json.loads(path.read_text())
  structure = json.loads(encoders['attribute']['structure'])
  # What runs when a Lambda is made is marshalled byte code; the name alone must be enough.
  structure['config']['layers'][2].update(class_name='Lambda', registered_name=None)
  encoders['attribute']['structure'] = json.dumps(structure)
  path.write_text(json.dumps(encoders))
  seal_again(copy)
  with pytest.raises(ValueError, match=r"holds the object 'keras\.layers\.Lambda'"):
    ExportedSpace(str(copy)).encoders()
