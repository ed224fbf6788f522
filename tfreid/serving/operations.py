"""Which operations the graph of an exported model may hold, and the check of that. Floor 0.

The graph of a SavedModel is a program. TensorFlow has operations that write and read files, start
Python code, or talk to other machines, and runs them for whoever loads or asks the model. So each
graph is read before TensorFlow sees it, and only operations of an allow list pass: those that
compute their outputs from their inputs, in memory. What an export of this package uses is in the
list, and what usual layers of encoders use; all else is refused, custom operations too.

Variables are read from and written to files by two functions that every SavedModel holds, one that
saves and one that restores. File operations are allowed in these two only, and only while nothing
else in the model calls them: no signature, no initialiser, no other function.

What this does not stop: a graph that computes for ever, that fills the memory, or that gives wrong
answers. A model from somebody you do not trust belongs into a container with limits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

# A normal export has 1 to 5 MB: weights, galleries and ids are in the files of the variables.
MAX_BYTES = 2**26
# Nodes of a normal export: 3,000 to 20,000.
MAX_NODES = 500_000
# Numbers of a constant: its shape may promise more than its bytes hold.
MAX_CONSTANT = 2**24

# Each computes its outputs from its inputs. By kind, so that a reader sees what is missing.
ALLOWED = frozenset(
  """
  Assert CheckNumerics Const DisableCopyOnRead EnsureShape FakeParam Identity IdentityN NoOp
  Placeholder PlaceholderWithDefault PreventGradient Snapshot StopGradient

  Case If PartitionedCall StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile While
  Enter Exit LoopCond Merge NextIteration Switch ToBool

  ReadVariableOp ResourceGather ResourceGatherNd VarHandleOp VarIsInitializedOp VariableShape

  Abs Acos Acosh Add AddN AddV2 All Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan Atan2 Atanh
  BatchMatMul BatchMatMulV2 BatchMatMulV3 Bitcast BitwiseAnd BitwiseOr BitwiseXor Bucketize Cast
  Ceil ClipByValue Cos Cosh Cross Cumprod Cumsum CumulativeLogsumexp Diag DiagPart Div DivNoNan
  Einsum Equal Erf Erfc Erfinv EuclideanNorm Exp Expm1 Floor FloorDiv FloorMod Greater GreaterEqual
  Inv Invert IsFinite IsInf IsNan L2Loss LeftShift Less LessEqual Log Log1p LogSoftmax LogicalAnd
  LogicalNot LogicalOr MatMul MatrixBandPart MatrixDiag MatrixDiagPartV3 MatrixDiagV3
  MatrixSetDiagV3 Max Maximum Mean Min Minimum Mod Mul MulNoNan Neg NotEqual Pow Prod RealDiv
  Reciprocal RightShift Rint Round Rsqrt Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Square
  SquaredDifference Sub Sum Tan Tanh TruncateDiv TruncateMod Xdivy Xlog1py Xlogy

  BatchToSpaceND BroadcastArgs BroadcastTo Concat ConcatOffset ConcatV2 DenseBincount Bincount
  DynamicPartition DynamicStitch ExpandDims Fill Gather GatherNd GatherV2 InTopK InTopKV2
  InvertPermutation LinSpace ListDiff LowerBound MirrorPad NthElement OneHot OnesLike Pack Pad PadV2
  ParallelConcat ParallelDynamicStitch Range Rank Reshape Reverse ReverseSequence ReverseV2 Roll
  ScatterNd SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum Select SelectV2 Shape ShapeN
  Size Slice SpaceToBatchND Split SplitV Squeeze StridedSlice TensorScatterAdd TensorScatterMax
  TensorScatterMin TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate Tile TopK TopKV2
  Transpose Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2 Unpack UnravelIndex
  UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum UpperBound Where
  ZerosLike

  RaggedGather RaggedRange RaggedTensorToTensor
  EmptyTensorList TensorListConcat TensorListConcatLists TensorListConcatV2 TensorListElementShape
  TensorListFromTensor TensorListGather TensorListGetItem TensorListLength TensorListPopBack
  TensorListPushBack TensorListReserve TensorListResize TensorListScatter
  TensorListScatterIntoExistingList TensorListScatterV2 TensorListSetItem TensorListSplit
  TensorListStack

  AvgPool AvgPool3D BiasAdd Conv2D Conv2DBackpropInput Conv3D DepthToSpace DepthwiseConv2dNative
  Dilation2D Elu FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 LRN LeakyRelu MaxPool MaxPool3D
  MaxPoolV2 MaxPoolWithArgmax Relu Relu6 Selu SpaceToDepth

  AdjustContrastv2 AdjustHue AdjustSaturation CropAndResize DecodeAndCropJpeg DecodeImage DecodeJpeg
  DecodePaddedRaw DecodePng DecodeRaw ExtractImagePatches ExtractJpegShape HSVToRGB
  ImageProjectiveTransformV2 ImageProjectiveTransformV3 RGBToHSV ResizeArea ResizeBicubic
  ResizeBilinear ResizeNearestNeighbor ScaleAndTranslate

  AsString DecodeBase64 EncodeBase64 ReduceJoin RegexFullMatch RegexReplace StaticRegexFullMatch
  StaticRegexReplace StringFormat StringJoin StringLength StringLower StringNGrams StringSplit
  StringSplitV2 StringStrip StringToHashBucketFast StringToNumber StringUpper Substr UnicodeDecode
  UnicodeDecodeWithOffsets UnicodeEncode UnicodeScript UnicodeTranscode UnsortedSegmentJoin
  """.split()
)

# In the function that restores variables, and in the one that saves them.
_RESTORING = ALLOWED | {'RestoreV2', 'AssignVariableOp'}
_SAVING = ALLOWED | {'SaveV2', 'MergeV2Checkpoints', 'ShardedFilename'}


class _Graph(NamedTuple):
  """A meta graph, by names.

  Attributes:
    nodes: of the outer graph.
    functions: of the library.
    calls: function to the functions that its nodes name.
  """

  nodes: dict[str, Any]
  functions: dict[str, Any]
  calls: dict[str, set[str]]


def check(directory: str) -> None:
  """Refuses a SavedModel whose graph may do more than compute, before TensorFlow loads it.

  Args:
    directory: of the SavedModel.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it cannot be read, is larger than a model of this package can be, or holds an
      operation that is not allowed; the message says which, and where.
  """
  from google.protobuf.message import DecodeError
  from tensorflow.core.protobuf import saved_model_pb2

  path = os.path.join(directory, 'saved_model.pb')
  size = os.path.getsize(path)
  if size > MAX_BYTES:
    raise ValueError(
      f"'{path}' has {size} bytes; the graph of an exported model has {MAX_BYTES} at most."
    )
  with open(path, 'rb') as file:
    content = file.read(MAX_BYTES + 1)
  try:
    model = saved_model_pb2.SavedModel.FromString(content)
  except DecodeError as error:
    raise ValueError(f"'{path}' is damaged: it holds no SavedModel.") from error
  try:
    _check_model(model)
  except ValueError as error:
    raise ValueError(f"The model '{directory}' is not loaded: {error}") from error


def _check_model(model) -> None:
  for meta_graph in model.meta_graphs:
    _check_meta_graph(meta_graph)
  if len(model.meta_graphs) != 1 or not model.meta_graphs[0].object_graph_def.nodes:
    raise ValueError(
      'it is no SavedModel of TensorFlow 2 with one graph, as exports of this package are.'
    )


def _check_meta_graph(meta_graph) -> None:
  library = meta_graph.graph_def.library
  functions = {function.signature.name: function for function in library.function}
  count = len(meta_graph.graph_def.node) + sum(len(f.node_def) for f in functions.values())
  if count > MAX_NODES or len(functions) != len(library.function):
    raise ValueError(f'its graph has {count} nodes, or two functions of one name.')
  for node in meta_graph.object_graph_def.nodes:
    if node.registered_saver or node.HasField('asset'):
      raise ValueError(
        'it holds an asset or a saver of its own; exports of this package have none.'
      )
  if meta_graph.asset_file_def:
    raise ValueError('it reads asset files; exports of this package have none.')
  calls = {name: set(_called(f.node_def, functions)) for name, f in functions.items()}
  for gradient in library.gradient:
    calls.setdefault(gradient.function_name, set()).add(gradient.gradient_func)
  graph = _Graph({node.name: node for node in meta_graph.graph_def.node}, functions, calls)
  rules = _rules(meta_graph, graph)
  _check_nodes(meta_graph.graph_def.node, ALLOWED, functions, 'the outer graph')
  for name, function in functions.items():
    _check_nodes(function.node_def, rules.get(name, ALLOWED), functions, f"function '{name}'")
    _check_restoring(function)


def _rules(meta_graph, graph: _Graph) -> dict[str, frozenset[str]]:
  """The functions that may do more than `ALLOWED`, with what they may."""
  saver = meta_graph.saver_def
  restore, save = _node_of(saver.restore_op_name), _node_of(saver.save_tensor_name)
  special = {name: graph.nodes[name] for name in (restore, save) if name and name in graph.nodes}
  # What a signature or an initialiser computes is run with inputs of strangers, or at once.
  asked = _ancestors(graph, _outputs(meta_graph))
  if restore == save or asked & set(special):
    return {}
  called = {
    name: _closure(graph, _called([node], graph.functions)) for name, node in special.items()
  }
  others = _called(
    (node for name, node in graph.nodes.items() if name not in special), graph.functions
  )
  objects = meta_graph.object_graph_def.concrete_functions
  ordinary = _closure(graph, [*others, *(name for name in objects if name in graph.functions)])
  saving, restoring = called.get(save, set()), called.get(restore, set())
  return {
    **dict.fromkeys(saving - restoring - ordinary, _SAVING),
    **dict.fromkeys(restoring - saving - ordinary, _RESTORING),
  }


def _check_nodes(nodes, allowed, functions, where) -> None:
  for node in nodes:
    if node.op not in allowed and node.op not in functions:
      raise ValueError(
        f"{where} holds the operation {node.op} ('{node.name}'), which is none of those that only "
        'compute (tfreid.serving.operations.ALLOWED). It may touch files, processes or the '
        'network. Do not use this model unless you know who made it and what it does.'
      )
    if node.op == 'Const':
      numbers = 1
      for side in node.attr['value'].tensor.tensor_shape.dim:
        numbers *= max(side.size, 1)
      if numbers > MAX_CONSTANT:
        raise ValueError(f"{where} holds a constant of {numbers} numbers ('{node.name}').")


def _check_restoring(function) -> None:
  """Variables come from the files that the loader names, and from no others."""
  arguments = {argument.name for argument in function.signature.input_arg}
  for node in function.node_def:
    if node.op == 'RestoreV2' and (not node.input or node.input[0] not in arguments):
      raise ValueError(
        f"function '{function.signature.name}' restores variables from a file that it names itself."
      )


def _called(nodes: Iterable[Any], functions) -> Iterator[str]:
  """The functions that nodes call or hold."""
  for node in nodes:
    if node.op in functions:
      yield node.op
    for value in node.attr.values():
      if value.HasField('func'):
        yield value.func.name
      for item in value.list.func:
        yield item.name


def _closure(graph: _Graph, names: Iterable[str]) -> set[str]:
  """These functions and all that they call."""
  reached: set[str] = set()
  waiting = list(names)
  while waiting:
    name = waiting.pop()
    if name not in reached:
      reached.add(name)
      waiting += graph.calls.get(name, ())
  return reached


def _outputs(meta_graph) -> Iterator[str]:
  """The nodes of the outer graph that signatures and initialisers name."""
  for signature in meta_graph.signature_def.values():
    for tensor in [*signature.inputs.values(), *signature.outputs.values()]:
      yield _node_of(tensor.name)
      for part in tensor.composite_tensor.components:
        yield _node_of(part.name)
      coo = tensor.coo_sparse
      for name in (coo.values_tensor_name, coo.indices_tensor_name, coo.dense_shape_tensor_name):
        yield _node_of(name)
  for collection in meta_graph.collection_def.values():
    for name in collection.node_list.value:
      yield _node_of(name)


def _ancestors(graph: _Graph, names: Iterable[str]) -> set[str]:
  """These nodes of the outer graph and all that they take their inputs from."""
  reached: set[str] = set()
  waiting = list(names)
  while waiting:
    name = waiting.pop()
    if name in reached or name not in graph.nodes:
      continue
    reached.add(name)
    waiting += map(_node_of, graph.nodes[name].input)
  return reached


def _node_of(tensor: str) -> str:
  """'name' of 'name:0' and of '^name'."""
  return tensor.lstrip('^').partition(':')[0]
