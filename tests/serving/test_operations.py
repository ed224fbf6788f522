"""Graphs that would do more than compute: each is refused before TensorFlow loads it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfreid.serving import loading, operations


class Doubling(tf.Module):
  """A model that doubles, by way of a function in a function in a loop."""

  def __init__(self):
    super().__init__()
    self.factor = tf.Variable(2.0)

  @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, 'x')])
  def inner(self, x):
    return x * self.factor

  @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, 'x')])
  def double(self, x):
    return {'y': tf.while_loop(lambda i, _: i < 1, lambda i, y: (i + 1, self.inner(y)), (0, x))[1]}


@pytest.fixture(scope='module')
def harmless(tmp_path_factory):
  """Folder of a small SavedModel. Not to be written to."""
  directory = tmp_path_factory.mktemp('harmless')
  model = Doubling()
  tf.saved_model.save(model, str(directory), signatures={'double': model.double})
  return directory


@pytest.fixture
def changed(harmless, tmp_path):
  """changed(function) -> a copy of the model whose SavedModel message the function changed."""

  def change(edit):
    directory = Path(shutil.copytree(harmless, tmp_path / 'model'))
    message = saved_model_pb2.SavedModel.FromString((directory / 'saved_model.pb').read_bytes())
    edit(message)
    (directory / 'saved_model.pb').write_bytes(message.SerializeToString())
    return str(directory)

  return change


def graph_of(message):
  return message.meta_graphs[0].graph_def


def function_with(message, part):
  return next(f for f in graph_of(message).library.function if part in f.signature.name)


def add(nodes, op, name='extra', inputs=()):
  return nodes.add(op=op, name=name, input=inputs)


def test_a_model_that_only_computes_is_loaded(harmless):
  model = loading.load(str(harmless))
  answer = model.signatures['double'](x=tf.constant([1.0, 3.0]))
  np.testing.assert_array_equal(answer['y'], [2.0, 6.0])


def test_real_graphs_that_write_read_print_and_run_python_are_refused(tmp_path):
  target = tmp_path / 'written'
  (tmp_path / 'secret').write_text('secret')

  def write(x):
    tf.io.write_file(str(target), tf.strings.as_string(x))
    return x

  def read(x):
    return x + tf.cast(tf.strings.length(tf.io.read_file(str(tmp_path / 'secret'))), tf.float32)

  def nested(x):
    return tf.cond(x > 0, lambda: tf.map_fn(write, x[tf.newaxis])[0], lambda: x)

  def printed(x):
    tf.print(x, output_stream=f'file://{target}')
    return x

  def found(x):
    return x + tf.cast(tf.size(tf.io.matching_files(f'{tmp_path}/*')), tf.float32)

  def python(x):
    return tf.ensure_shape(tf.numpy_function(lambda v: v, [x], tf.float32), [])

  cases = [
    (write, 'WriteFile'),
    (nested, 'WriteFile'),
    (read, 'ReadFile'),
    (printed, 'PrintV2'),
    (found, 'MatchingFiles'),
    (python, 'PyFunc'),
  ]
  for number, (function, operation) in enumerate(cases):
    model = tf.Module()
    model.run = tf.function(function, input_signature=[tf.TensorSpec([], tf.float32)])
    directory = str(tmp_path / str(number))
    tf.saved_model.save(model, directory)
    with pytest.raises(ValueError, match=f'is not loaded: .* holds the operation {operation} '):
      loading.load(directory)
  assert not target.exists()


def test_an_initialiser_that_reads_a_vocabulary_is_refused(tmp_path):
  words = tmp_path / 'words.txt'
  words.write_text('hat\n')
  model = tf.Module()
  initialiser = tf.lookup.TextFileInitializer(
    str(words),
    tf.string,
    tf.lookup.TextFileIndex.WHOLE_LINE,
    tf.int64,
    tf.lookup.TextFileIndex.LINE_NUMBER,
  )
  model.table = tf.lookup.StaticHashTable(initialiser, -1)
  model.run = tf.function(
    lambda x: model.table.lookup(x), input_signature=[tf.TensorSpec([None], tf.string)]
  )
  tf.saved_model.save(model, str(tmp_path / 'model'))
  with pytest.raises(ValueError, match='asset'):
    loading.load(str(tmp_path / 'model'))

  def without_the_asset(message):
    meta_graph = message.meta_graphs[0]
    del meta_graph.asset_file_def[:]
    for node in meta_graph.object_graph_def.nodes:
      node.ClearField('asset')
    outer = [node for node in meta_graph.graph_def.node if node.op != 'AssignVariableOp']
    meta_graph.graph_def.ClearField('node')
    meta_graph.graph_def.node.extend(outer)  # without the one that held the asset's name

  path = tmp_path / 'model' / 'saved_model.pb'
  message = saved_model_pb2.SavedModel.FromString(path.read_bytes())
  without_the_asset(message)
  path.write_bytes(message.SerializeToString())
  with pytest.raises(ValueError, match=r'operation (InitializeTableFromTextFileV2|HashTableV2)'):
    loading.load(str(tmp_path / 'model'))


# Stateless ones among them, and one that no TensorFlow has.
@pytest.mark.parametrize(
  'operation',
  ['DebugIdentityV2', 'DebugIdentity', 'ImmutableConst', 'SnapshotDataset', 'Abort', 'RpcCall']
  + ['RemoteCall', '_Send', 'DataServiceDatasetV4', 'SaveSlices', 'TextLineDataset', 'MyOwnOp'],
)
@pytest.mark.parametrize('where', ['outer', 'inner'])
def test_an_operation_that_is_not_known_to_compute_only_is_refused(changed, operation, where):
  def edit(message):
    nodes = graph_of(message).node
    add(nodes if where == 'outer' else function_with(message, 'inner').node_def, operation)

  with pytest.raises(ValueError, match=f"holds the operation {operation} .'extra'"):
    operations.check(changed(edit))


@pytest.mark.parametrize('operation', ['SaveV2', 'RestoreV2', 'MergeV2Checkpoints', 'Save'])
def test_files_of_variables_are_for_the_savers_functions_only(changed, operation):
  def edit(message):
    add(function_with(message, 'double').node_def, operation)

  with pytest.raises(ValueError, match=f'holds the operation {operation} '):
    operations.check(changed(edit))


def save_node(message):
  name = message.meta_graphs[0].saver_def.save_tensor_name.partition(':')[0]
  return next(node for node in graph_of(message).node if node.name == name)


def a_signature_that_saves(message):
  output = message.meta_graphs[0].signature_def['double'].outputs['y']
  output.name = f'{save_node(message).name}:0'


def a_signature_behind_which_something_is_saved(message):
  name = message.meta_graphs[0].signature_def['double'].outputs['y'].name.partition(':')[0]
  node = next(node for node in graph_of(message).node if node.name == name)
  node.input.append(f'^{save_node(message).name}')


def an_initialiser_that_saves(message):
  message.meta_graphs[0].collection_def['saved_model_main_op'].node_list.value[:] = [
    save_node(message).name
  ]


def a_second_call_of_the_function_that_saves(message):
  graph_of(message).node.add().CopyFrom(save_node(message))
  graph_of(message).node[-1].name = 'again'


def a_function_that_calls_the_one_that_saves(message):
  node = add(function_with(message, 'inner').node_def, 'PartitionedCall')
  node.attr['f'].func.name = function_with(message, 'traced_save').signature.name


def a_branch_that_is_the_function_that_saves(message):
  node = add(function_with(message, 'inner').node_def, 'Case')
  node.attr['branches'].list.func.add(name=function_with(message, 'traced_save').signature.name)


def an_object_that_is_the_function_that_saves(message):
  name = function_with(message, 'traced_save').signature.name
  message.meta_graphs[0].object_graph_def.concrete_functions[name].SetInParent()


def a_restoring_that_saves(message):
  saver = message.meta_graphs[0].saver_def
  saver.restore_op_name = save_node(message).name


def a_restoring_that_also_saves(message):
  add(function_with(message, 'traced_restore').node_def, 'SaveV2')


def a_gradient_that_saves(message):
  graph_of(message).library.gradient.add(
    function_name=function_with(message, 'inner').signature.name,
    gradient_func=function_with(message, 'traced_save').signature.name,
  )


@pytest.mark.parametrize(
  'edit',
  [
    a_signature_that_saves,
    a_signature_behind_which_something_is_saved,
    an_initialiser_that_saves,
    a_second_call_of_the_function_that_saves,
    a_function_that_calls_the_one_that_saves,
    a_branch_that_is_the_function_that_saves,
    an_object_that_is_the_function_that_saves,
    a_restoring_that_saves,
    a_restoring_that_also_saves,
    a_gradient_that_saves,
  ],
)
def test_what_saves_variables_is_called_by_nothing_else(changed, edit):
  with pytest.raises(
    ValueError, match=r'holds the operation (SaveV2|ShardedFilename|MergeV2Checkpoints|RestoreV2)'
  ):
    operations.check(changed(edit))


def test_variables_are_not_restored_from_a_file_that_the_graph_names(changed):
  def edit(message):
    restore = function_with(message, 'traced_restore')
    node = next(node for node in restore.node_def if node.op == 'RestoreV2')
    node.input[0] = 'RestoreV2/tensor_names:output:0'

  with pytest.raises(ValueError, match='restores variables from a file that it names itself'):
    operations.check(changed(edit))


def test_a_second_graph_is_looked_at_and_refused(changed):
  def hostile(message):
    message.meta_graphs.add().CopyFrom(message.meta_graphs[0])
    add(message.meta_graphs[1].graph_def.node, 'WriteFile')

  with pytest.raises(ValueError, match='WriteFile'):
    operations.check(changed(hostile))


def test_two_graphs_none_or_one_of_tensorflow_1_are_refused(changed, tmp_path):
  edits = [
    lambda message: message.meta_graphs.add().CopyFrom(message.meta_graphs[0]),
    lambda message: message.meta_graphs[0].ClearField('object_graph_def'),
    lambda message: message.ClearField('meta_graphs'),
  ]
  for edit in edits:
    with pytest.raises(ValueError, match='no SavedModel of TensorFlow 2 with one graph'):
      operations.check(changed(edit))
    shutil.rmtree(tmp_path / 'model')


def test_sizes_are_bounded(changed, tmp_path, monkeypatch):
  def huge_constant(message):
    node = add(function_with(message, 'inner').node_def, 'Const')
    for size in (2**20, 2**20, 0):
      node.attr['value'].tensor.tensor_shape.dim.add(size=size)

  directory = changed(huge_constant)
  with pytest.raises(ValueError, match=f'constant of {2**40} numbers'):
    operations.check(directory)
  monkeypatch.setattr(operations, 'MAX_NODES', 3)
  with pytest.raises(ValueError, match='its graph has .* nodes'):
    operations.check(directory)
  with open(Path(directory, 'saved_model.pb'), 'r+b') as file:
    file.truncate(operations.MAX_BYTES + 1)  # a hole: it takes no room
  with pytest.raises(ValueError, match=f'{operations.MAX_BYTES} at most'):
    operations.check(directory)


def test_what_is_no_message_is_a_sentence(changed):
  directory = changed(lambda message: None)
  Path(directory, 'saved_model.pb').write_bytes(b'\xff\xff nonsense')
  with pytest.raises(ValueError, match='is damaged: it holds no SavedModel'):
    operations.check(directory)
