from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfreid import replicas
from tfreid.data.attributes import AttributeSchema
from tfreid.serving import export, folding, parity, versions, warmup


@pytest.fixture
def arguments(space, encoders, gallery, ids, crops):
  """All that `export` needs beside the folder; a small gallery, and no schema, for speed."""
  return {
    'space': space,
    'encoders': encoders,
    'gallery': gallery[:30],
    'ids': ids[:30],
    'crops': crops,
  }


def read_json(*parts):
  return json.loads(Path(*parts).read_text(encoding='utf-8'))


def test_files_of_a_version_say_what_it_is(exported, schema, ids, encoders):
  assert os.path.basename(exported) == '1'
  extra = Path(exported, 'assets.extra')
  facts = read_json(extra, 'model.json')
  assert (facts['image_size'], facts['num_attributes'], facts['embedding_size']) == (
    [32, 16],
    30,
    12,
  )
  assert (facts['gallery_size'], facts['num_results']) == (300, 20)
  assert (facts['metric'], facts['encoding']) == ('dot_product', 'binary')
  assert (facts['precision'], facts['dataset']) == ('float32', 'squares')
  assert (facts['folded_batch_norms'], facts['kept_batch_norms']) == (2, 0)
  assert facts['parity']['crops'] == 6
  assert 0 < facts['parity']['image_error'] < facts['parity']['image_tolerance']
  assert facts['fingerprint'] == encoders.fingerprint and len(facts['fingerprint']) == 64
  assert AttributeSchema.from_json(extra.joinpath('schema.json').read_text()) == schema
  rows = [json.loads(line) for line in extra.joinpath('gallery.jsonl').read_text().splitlines()]
  assert [row['id'] for row in rows] == ids
  assert rows[5] == {'id': 'test/0005.jpg', 'path': '/data/test/0005.jpg', 'camera': 1}


def test_golden_requests_give_the_golden_answers_in_row_format(exported, model):
  golden = read_json(exported, 'assets.extra', 'golden.json')['golden']
  asked = [entry['request']['signature_name'] for entry in golden]
  assert sorted(asked) == sorted(set(model) - {'owner'})
  for entry in golden:
    request, predictions = entry['request'], entry['response']['predictions']
    inputs = {
      name: [instance[name] for instance in request['instances']]
      for name in request['instances'][0]
    }
    if 'image_bytes' in inputs:
      inputs['image_bytes'] = [base64.b64decode(value['b64']) for value in inputs['image_bytes']]
    answer = model[request['signature_name']](
      **{name: tf.constant(values) for name, values in inputs.items()}
    )
    assert len(predictions) == len(request['instances']) == 2
    for i, prediction in enumerate(predictions):
      if len(answer) == 1:  # TF Serving leaves the name of a single output out
        prediction = dict(zip(answer, [prediction]))
      assert set(prediction) == set(answer)
      for key, expected in prediction.items():
        value = answer[key][i].numpy()
        if key in ('ids', 'scores', 'variant_scores'):
          value = value[: len(expected)]
        if value.dtype == object if isinstance(value, np.ndarray) else isinstance(value, bytes):
          assert np.char.decode(np.asarray(value, bytes)).tolist() == expected
        else:
          np.testing.assert_allclose(value, expected, atol=1e-6)


def test_warmup_file_asks_every_signature_with_each_batch_size(exported, model):
  requests = warmup.read(os.path.join(exported, 'assets.extra', warmup.FILE))
  asked = sorted((r.signature, len(next(iter(r.inputs.values())))) for r in requests)
  signatures = set(model) - {'owner'}
  assert asked == sorted((name, size) for name in signatures for size in export.WARMUP_BATCHES)
  for request in requests:
    answer = model[request.signature](
      **{name: tf.constant(value) for name, value in request.inputs.items()}
    )
    size = len(next(iter(request.inputs.values())))
    assert all(len(value) == size for value in [*request.inputs.values(), *answer.values()])


def test_session_loader_answers_in_a_process_without_this_package(exported, model, tmp_path, crops):
  # `tf.compat.v1.saved_model.load` runs the graph by names alone, as TensorFlow Serving does.
  attributes = np.random.default_rng(5).integers(0, 2, (3, 30)).astype(np.float32)
  np.savez(tmp_path / 'in.npz', attributes=attributes, image=np.asarray([crops[0].contents, b'']))
  code = """
    import sys
    import numpy as np
    import tensorflow as tf
    given = np.load('in.npz')
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
      loaded = tf.compat.v1.saved_model.load(session, ['serve'], sys.argv[1])
      def ask(name, value):
        signature = loaded.signature_def[name]
        (placeholder,) = signature.inputs.values()
        outputs = {key: info.name for key, info in signature.outputs.items()}
        return session.run(outputs, {placeholder.name: value})
      found = ask('serving_default', given['attributes'])
      concepts = ask('embed_images', [given['image'][0]])['concepts']
      words = ask('search_words', ['woman, red top, no hat'])
      np.savez('out.npz', ids=found['ids'].astype(str), scores=found['scores'],
               concepts=concepts, words=words['ids'].astype(str))
    assert not [name for name in sys.modules if name.startswith('tfreid')]
  """
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), exported],
    cwd=tmp_path,
    env=environment,
    check=True,
  )
  out = np.load(tmp_path / 'out.npz')
  expected = model['serving_default'](attributes=tf.constant(attributes))
  assert out['ids'].tolist() == np.char.decode(expected['ids'].numpy().astype(bytes)).tolist()
  np.testing.assert_allclose(out['scores'], expected['scores'], atol=1e-6)
  concepts = model['embed_images'](image_bytes=tf.constant([crops[0].contents]))['concepts']
  np.testing.assert_allclose(out['concepts'], concepts, atol=1e-6)
  words = model['search_words'](words=tf.constant(['woman, red top, no hat']))['ids']
  assert out['words'].tolist() == np.char.decode(words.numpy().astype(bytes)).tolist()


def test_graph_holds_stock_operations_only(exported):
  from tensorflow.core.protobuf import saved_model_pb2

  graph = saved_model_pb2.SavedModel.FromString(Path(exported, 'saved_model.pb').read_bytes())
  (meta,) = graph.meta_graphs
  nodes = [*meta.graph_def.node]
  for function in meta.graph_def.library.function:
    nodes += function.node_def
  used = {node.op for node in nodes} - {f.signature.name for f in meta.graph_def.library.function}
  assert {'ReadVariableOp', 'TopKV2', 'MatMul', 'DecodeJpeg'} <= used
  assert not [
    op for op in used if 'Py' in op or 'Random' in op or 'Hash' in op.replace('ToHash', '')
  ]
  # Weights are in variables: no constant of the graph has more than 64 KiB.
  largest = max(
    len(node.attr['value'].tensor.tensor_content) for node in nodes if node.op == 'Const'
  )
  assert largest < 2**16


@pytest.mark.slow
def test_saved_model_cli_shows_signatures_that_read_well_and_runs_them(exported):
  def cli(*arguments):
    tool = Path(sys.executable).with_name('saved_model_cli')
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout

  shown = cli('show', '--dir', exported, '--all')
  for name in ('serving_default', 'embed_images', 'embed_attributes', 'search_words'):
    assert f"signature_def['{name}']" in shown
  for name in ('attributes', 'image_bytes', 'ids', 'scores', 'concepts', 'unknown'):
    assert f"'{name}'" in shown
  assert 'shape: (-1, 30)' in shown and 'shape: (-1, 20)' in shown
  chosen = ('--dir', exported, '--tag_set', 'serve', '--signature_def', 'search_words')
  answer = cli('run', *chosen, '--input_exprs', "words=['woman, no hat', 'zebra']")
  assert 'gender=female, hat=no' in answer and 'zebra' in answer and 'test/0' in answer


def test_versions_count_up_and_an_existing_one_is_refused(arguments, tmp_path):
  directory = str(tmp_path / 'model')
  assert versions.next_number(directory) == 1
  assert export.export(directory=directory, version=7, **arguments) == str(Path(directory, '7'))
  assert export.export(directory=directory, **arguments) == str(Path(directory, '8'))
  before = sorted(path.name for path in Path(directory, '7').rglob('*'))
  with pytest.raises(FileExistsError, match=r'Version 7 of .* exists.*next free one \(9\)'):
    export.export(directory=directory, version=7, **arguments)
  assert sorted(path.name for path in Path(directory, '7').rglob('*')) == before
  assert sorted(os.listdir(directory)) == ['7', '8']
  with pytest.raises(ValueError, match='positive whole number, not 0'):
    export.export(directory=directory, version=0, **arguments)


@pytest.mark.parametrize('name', ['[red]', 'a*', 'b?', 'c\\d'])
def test_a_path_that_tensorflow_takes_for_a_pattern_is_refused_first(tmp_path, name):
  with pytest.raises(ValueError, match='cannot hold a model: TensorFlow takes'):
    versions.check_number(str(tmp_path / name / 'model'), 1)
  versions.check_number(str(tmp_path / 'plain, with spaces {and} (more)' / 'model'), 1)


def test_an_export_that_fails_leaves_nothing(arguments, tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise KeyboardInterrupt

  # The last thing that is written.
  monkeypatch.setattr(warmup, 'write', fail)
  with pytest.raises(KeyboardInterrupt):
    export.export(directory=str(tmp_path), **arguments)
  assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_killed_export_leaves_no_version(exported, tmp_path):
  # Killed where the folder is complete but for its name; nothing is cleaned up then.
  code = f"""
    import os, signal, sys
    sys.path.insert(0, {str(Path(export.__file__).parents[2])!r})
    from tests_serving import arguments
    from tfreid.serving import export
    os.rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
    export.export(directory='model', **arguments)
  """
  build = """
    import numpy as np
    import tensorflow as tf
    from tfreid.joint_space import JointSpace
    from tfreid.serving import export
    pixels, attributes = tf.keras.Input([8, 8, 3]), tf.keras.Input([3])
    space = JointSpace(
      tf.keras.Model(pixels, tf.keras.layers.Dense(2)(tf.keras.layers.Flatten()(pixels))),
      tf.keras.Model(attributes, tf.keras.layers.Dense(2)(attributes)),
    )
    crop = export.Crop('noise', tf.io.encode_png(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)))
    arguments = dict(space=space, encoders=export.encoders(space), gallery=np.eye(2), ids='ab',
                     crops=[export.Crop('noise', crop.contents.numpy())])
  """
  (tmp_path / 'tests_serving.py').write_text(textwrap.dedent(build))
  killed = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True
  )
  assert killed.returncode == -9, killed.stderr
  (left,) = os.listdir(tmp_path / 'model')
  assert left.startswith('.1-partial-') and (tmp_path / 'model' / left / 'saved_model.pb').exists()
  assert versions.numbers(str(tmp_path / 'model')) == []


def test_an_encoder_that_differs_is_not_exported(arguments, tmp_path):
  wrong = export.encoders(arguments['space'])
  kernel = next(v for v in wrong.image.weights if v.shape.rank == 4)
  kernel.assign(kernel * 1.001)
  with pytest.raises(ValueError, match=r'image encoder differs .* of the concept of crop\d\.'):
    export.export(directory=str(tmp_path), **{**arguments, 'encoders': wrong})
  assert os.listdir(tmp_path) == []
  # A tolerance of one's own lets the image encoder pass, and the attribute encoder only then.
  kernels = [v for v in wrong.attribute.weights if v.shape.rank == 2]
  kernels[0].assign(kernels[0] * 1.1)
  with pytest.raises(ValueError, match=r'attribute encoder differs .* relative error 0\.\d'):
    export.export(directory=str(tmp_path), tolerance=0.1, **{**arguments, 'encoders': wrong})
  # The last kernel: no ReLU comes after it, which on some processors makes a NaN a zero.
  kernels[-1].assign(kernels[-1] * np.nan)
  with pytest.raises(ValueError, match=r'attribute encoder differs .* cannot embed .* NaN'):
    export.export(directory=str(tmp_path), tolerance=0.1, **{**arguments, 'encoders': wrong})
  assert os.listdir(tmp_path) == []


def test_a_gpu_multiplies_in_full_float32_while_a_version_is_checked(
  arguments, tmp_path, monkeypatch
):
  seen = []
  for name in ('expected_concepts', 'check_encoders'):
    original = getattr(parity, name)

    def spied(*given, original=original):
      seen.append(tf.config.experimental.tensor_float_32_execution_enabled())
      return original(*given)

    monkeypatch.setattr(parity, name, spied)
  assert tf.config.experimental.tensor_float_32_execution_enabled()
  export.export(directory=str(tmp_path), **arguments)
  assert seen == [False, False]
  assert tf.config.experimental.tensor_float_32_execution_enabled()


def test_bfloat16_exports_within_its_tolerance_and_with_another_fingerprint(
  arguments, tmp_path, encoders
):
  half = export.encoders(arguments['space'], precision='bfloat16')
  where = export.export(
    directory=str(tmp_path), gallery_precision='bfloat16', **{**arguments, 'encoders': half}
  )
  facts = read_json(where, 'assets.extra', 'model.json')
  assert (facts['precision'], facts['gallery_precision']) == ('bfloat16', 'bfloat16')
  assert folding.TOLERANCES['float32'] < facts['parity']['image_error']
  assert facts['parity']['image_error'] < folding.TOLERANCES['bfloat16']
  assert facts['fingerprint'] != encoders.fingerprint


def test_fingerprint_is_that_of_the_function_not_of_the_object(space, encoders, tmp_path):
  space.save(str(tmp_path / 'space'))
  again = export.encoders(type(space).load(str(tmp_path / 'space')))
  assert again.fingerprint == encoders.fingerprint
  again.attribute.weights[-1].assign_add(tf.ones_like(again.attribute.weights[-1]) * 1e-3)
  assert again.fingerprint != encoders.fingerprint


def test_wrong_parts_are_refused_before_anything_is_written(arguments, tmp_path):
  cases = [
    ({'ids': arguments['ids'][:-1]}, '29 ids for 30 rows'),
    ({'ids': ['same'] * 30}, "id 'same' stands for 30 rows"),
    ({'ids': ['', *arguments['ids'][1:]]}, 'none may be empty'),
    ({'crops': []}, 'at least one crop'),
    ({'crops': [export.Crop('broken.jpg', b'\xff\xd8\xff nothing')]}, 'broken.jpg cannot be read'),
    ({'gallery': arguments['gallery'][:, :5]}, r'the gallery has the shape \(30, 5\)'),
    ({'gallery': np.full([30, 12], np.nan)}, 'Row 0 of the gallery has length nan'),
    ({'rows': [{}]}, '1 rows of facts for 30 ids'),
    ({'gallery_precision': 'int4'}, "Unknown precision 'int4'"),
  ]
  for change, message in cases:
    with pytest.raises(ValueError, match=message):
      export.export(directory=str(tmp_path), **{**arguments, **change})
  assert os.listdir(tmp_path) == []


def test_files_are_embedded_as_the_exported_model_embeds_their_bytes(
  tmp_path, encoders, crops, model
):
  for crop in crops:
    (tmp_path / crop.name).write_bytes(crop.contents)
  paths = [str(tmp_path / crop.name) for crop in crops]
  seen = []
  concepts, positions = export.embed_files(
    encoders.image, paths, batch_size=4, progress=lambda *numbers: seen.append(numbers)
  )
  answer = model['embed_images'](image_bytes=tf.constant([crop.contents for crop in crops]))
  np.testing.assert_allclose(concepts, answer['concepts'], atol=1e-6)
  assert positions.tolist() == list(range(6)) and seen == [(4, 6), (6, 6)]


@pytest.mark.parametrize('count', [1, 3, 6])
def test_files_are_embedded_alike_on_two_devices(
  tmp_path, space, encoders, crops, two_devices, count
):
  paths = [str(tmp_path / crop.name) for crop in crops[:count]]
  for path, crop in zip(paths, crops):
    Path(path).write_bytes(crop.contents)
  strategy = replicas.local(len(two_devices))
  with strategy.scope():
    pair = export.encoders(space)
  # Batches of 2 x 2: the last one is ragged, or smaller than the number of devices.
  concepts, positions = export.embed_files(pair.image, paths, batch_size=2, strategy=strategy)
  expected, _ = export.embed_files(encoders.image, paths, batch_size=2)
  np.testing.assert_allclose(concepts, expected, rtol=0, atol=1e-6)
  assert positions.tolist() == list(range(count))
  assert pair.fingerprint == encoders.fingerprint


def test_unreadable_files_are_named_or_skipped(tmp_path, encoders, crops):
  paths = [str(tmp_path / name) for name in ('a.png', 'b.png', 'c.png')]
  for path, crop in zip(paths, crops[::2]):
    Path(path).write_bytes(crop.contents)
  Path(paths[1]).write_bytes(crops[2].contents[:100])
  with pytest.raises(ValueError, match=r'b\.png cannot be read: '):
    export.embed_files(encoders.image, paths)
  concepts, positions = export.embed_files(encoders.image, paths, skip_bad=True)
  assert positions.tolist() == [0, 2] and concepts.shape == (2, 12)
  with pytest.raises(ValueError, match='None of the 1 images can be read'):
    export.embed_files(encoders.image, paths[1:2], skip_bad=True)
  with pytest.raises(ValueError, match=r'a\.png|nowhere'):
    export.embed_files(encoders.image, [str(tmp_path / 'nowhere.png')])


def test_a_file_that_changes_while_files_are_embedded_is_no_traceback(tmp_path, encoders, crops):
  paths = [str(tmp_path / f'{i}.png') for i in range(200)]
  for path in paths:
    Path(path).write_bytes(crops[0].contents)
  Path(paths[150]).write_bytes(crops[0].contents[:100])

  def mend(done, count):
    time.sleep(2.0)  # by then the next batch has been read ahead
    Path(paths[150]).write_bytes(crops[0].contents)

  with pytest.raises(ValueError, match='could not be read when its turn came, and can be read now'):
    export.embed_files(encoders.image, paths, batch_size=100, progress=mend)


def test_an_export_removes_what_a_killed_one_left_and_never_what_another_writes(
  arguments, tmp_path
):
  dead, alive = tmp_path / '.1-partial-dead', tmp_path / '.2-partial-alive'
  for folder in (dead, alive):
    (folder / 'variables').mkdir(parents=True)
    (folder / 'variables' / 'variables.data-00000-of-00001').write_bytes(b'gigabytes')
  (tmp_path / '.partial').mkdir()  # somebody else's
  (tmp_path / '.3-partial-link').symlink_to(tmp_path / '.partial')
  # Another process, as it is while it exports.
  code = (
    'import sys; from tfreid.serving import versions; versions._lock(sys.argv[1]); print(1); '
    'input()'
  )
  other = subprocess.Popen(
    [sys.executable, '-c', code, alive],
    cwd=Path(export.__file__).parents[2],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert other.stdout.readline() == b'1\n'
  assert export.export(directory=str(tmp_path), **arguments) == str(tmp_path / '1')
  left = sorted(path.name for path in tmp_path.iterdir())
  assert left == ['.2-partial-alive', '.3-partial-link', '.partial', '1']
  assert (alive / 'variables' / 'variables.data-00000-of-00001').exists()
  other.kill()
  other.communicate()
  export.export(directory=str(tmp_path), **arguments)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    '.3-partial-link',
    '.partial',
    '1',
    '2',
  ]


def test_an_export_holds_its_folder_while_it_writes(arguments, tmp_path, monkeypatch):
  seen = []

  def write(directory, *args):
    partial = Path(directory).parent
    versions._sweep(str(tmp_path))  # as another export would
    seen.append(partial.is_dir())

  monkeypatch.setattr(warmup, 'write', write)
  export.export(directory=str(tmp_path), **arguments)
  assert seen == [True] and os.listdir(tmp_path) == ['1']


def test_where_there_are_no_locks_nothing_is_swept_and_exports_are_made(tmp_path, monkeypatch):
  def refuse(*args):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(versions.fcntl, 'flock', refuse)
  (tmp_path / '.1-partial-old').mkdir()
  versions._sweep(str(tmp_path))
  partial, lock = versions._new_partial(str(tmp_path), 2)
  assert lock is None and Path(partial).is_dir()
  assert (tmp_path / '.1-partial-old').is_dir()


def test_a_folder_that_was_swept_before_it_was_held_is_made_again(tmp_path, monkeypatch):
  lock, calls = versions._lock, []

  def late(folder):
    calls.append(folder)
    if len(calls) == 1:
      os.rmdir(folder)
    if len(calls) == 2:
      raise BlockingIOError
    return lock(folder)

  monkeypatch.setattr(versions, '_lock', late)
  partial, held = versions._new_partial(str(tmp_path), 1)
  assert len(calls) == 3 and partial == calls[2] and os.path.isdir(partial)
  os.close(held)


def test_facts_may_come_one_by_one_and_must_be_those_of_the_ids(arguments, tmp_path):
  names = arguments['ids']
  rows = ({'id': name, 'camera': i} for i, name in enumerate(names))
  where = export.export(directory=str(tmp_path), rows=rows, **arguments)
  lines = Path(where, 'assets.extra', 'gallery.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {'id': name, 'camera': i} for i, name in enumerate(names)
  ]
  for rows, message in [
    (({} for _ in names[1:]), '29 rows of facts for 30 ids'),
    (({} for _ in [*names, 'more']), 'More than 30 rows of facts'),
    (({'id': name} for name in reversed(names)), 'Row 1 of the gallery is'),
  ]:
    with pytest.raises(ValueError, match=message):
      export.export(directory=str(tmp_path), rows=rows, **arguments)
  assert os.listdir(tmp_path) == ['1']
