"""Writes the model that is served: a version folder that is whole or is not there. Floor 4.

<model>/<version>/saved_model.pb, variables/       the Retriever; loads without this package
<model>/<version>/assets.extra/
  model.json      sizes, encoding, metric, parity with the training encoders, fingerprint
  schema.json     the attributes: names, values, words, encoding
  gallery.jsonl   a line per row: id, and what is known (path, person_id, camera, attributes)
  golden.json     requests with the answers that were checked, as TF Serving's REST speaks them
  tf_serving_warmup_requests
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

import tfreid
from tfreid import replicas
from tfreid.data import pipeline
from tfreid.data.attributes import AttributeSchema
from tfreid.joint_space import JointSpace
from tfreid.serving import folding, warmup
from tfreid.serving.folding import FoldedEncoder
from tfreid.serving.retriever import Retriever

FORMAT = 1

# Batch sizes of the warm-up requests; they belong to the allowed_batch_sizes of a server.
WARMUP_BATCHES = (1, 8)

# Crops that are embedded by both encoders and compared.
NUM_PARITY_CROPS = 16
_GOLDEN_CROPS = 2
_GOLDEN_RESULTS = 10

# Called with (images done, images in all).
Progress = Callable[[int, int], None]


class Encoders(NamedTuple):
  """The two sides of a joint space, made for inference.

  Attributes:
    image: pixels -> concepts, in the precision asked for.
    attribute: attribute vectors -> concepts, always float32: it costs nothing.
  """

  image: FoldedEncoder
  attribute: FoldedEncoder

  @property
  def fingerprint(self) -> str:
    """sha256 of everything that decides what a crop or a description becomes.

    Two models with the same fingerprint embed alike; concepts of different ones must not be mixed.
    """
    digest = hashlib.sha256()
    for encoder in self:
      digest.update(f'{encoder.precision} {encoder.input_shape} {encoder.size}'.encode())
      digest.update(encoder.structure.encode())
      for variable in encoder.weights:
        digest.update(f'{variable.dtype.name} {variable.shape.as_list()}'.encode())
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()


class Crop(NamedTuple):
  """An encoded image: what to call it in messages, and its bytes (JPEG or PNG)."""

  name: str
  contents: bytes


def encoders(space: JointSpace, *, precision: str = 'float32') -> Encoders:
  """The encoders of a joint space, folded.

  Args:
    space: as trained.
    precision: of the image encoder's convolutions, 'float32' or 'bfloat16'.
  """
  return Encoders(
    FoldedEncoder(space.image_encoder, precision=precision), FoldedEncoder(space.attribute_encoder)
  )


def embed_files(
  encoder: FoldedEncoder,
  paths: Sequence[str],
  *,
  batch_size: int = 32,
  skip_bad: bool = False,
  progress: Progress | None = None,
  strategy: tf.distribute.Strategy | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Image concepts of files, decoded as the exported model decodes them.

  Args:
    encoder: pixels -> concepts.
    paths: JPEG or PNG files.
    batch_size: images at a time, on each device.
    skip_bad: leave files out that cannot be decoded, instead of failing.
    progress: called after each batch.
    strategy: from `replicas.local`, in whose scope the encoder was made; by default one device.

  Returns:
    float32 [M, E] and int64 [M], the positions in `paths` of what was embedded, ascending.

  Raises:
    ValueError: a file cannot be decoded (it is named), or none can.
  """
  image_size = encoder.input_shape[:2]
  strategy = strategy or tf.distribute.get_strategy()
  embed = replicas.by_parts(
    lambda images: encoder(tf.cast(images, tf.float32)),
    strategy,
    tf.TensorSpec([None, *encoder.input_shape], tf.uint8),
  )
  batch_size *= strategy.num_replicas_in_sync

  def load(position, path):
    return position, pipeline.decode_image(tf.io.read_file(path), image_size)

  paths = [str(path) for path in paths]
  dataset = tf.data.Dataset.from_tensor_slices((np.arange(len(paths)), np.asarray(paths, object)))
  dataset = dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
  if skip_bad:
    dataset = dataset.ignore_errors()
  concepts, positions = [], []
  try:
    for batch, images in dataset.batch(batch_size).prefetch(2):
      concepts.append(embed(images).numpy())
      positions.append(batch.numpy())
      if progress:
        progress(int(batch[-1]) + 1, len(paths))
  except tf.errors.OpError as error:
    raise _explained(error, paths, image_size) from error
  if not concepts:
    raise ValueError(
      f'None of the {len(paths)} images can be read. JPEG and PNG files are expected.'
      if paths
      else 'There is no image to embed.'
    )
  return np.concatenate(concepts), np.concatenate(positions)


def export(
  space: JointSpace,
  directory: str,
  *,
  encoders: Encoders,
  gallery: np.ndarray,
  ids: Sequence[str],
  crops: Sequence[Crop],
  schema: AttributeSchema | None = None,
  version: int | None = None,
  top_k: int = 100,
  gallery_precision: str = 'float32',
  rows: Sequence[Mapping[str, Any]] | None = None,
  about: Mapping[str, Any] | None = None,
  tolerance: float | None = None,
) -> str:
  """Writes a version of a model, checks it, and only then gives it its name.

  What is checked is the written SavedModel, loaded again: its encoders against those of `space` on
  `crops` and on the schema's queries, and its ranking against a full sort.

  Args:
    space: as trained; what the export is compared with.
    directory: of the model, for example saved_models/demo; the version becomes a folder in it.
    encoders: of that space, from `encoders(space)`.
    gallery: float32 [N, E], image concepts, from `embed_files(encoders.image, ...)`.
    ids: N different strings, what an answer calls the rows.
    crops: real crops, at least one; the first NUM_PARITY_CROPS are compared.
    schema: of the attributes.
    version: positive; the next free one by default.
    top_k: results of an answer, at most.
    gallery_precision: of the scan of the gallery, see `ExactSearch`.
    rows: N dicts of JSON-able facts about the rows of the gallery.
    about: further facts for model.json.
    tolerance: greatest relative error of a concept; `folding.TOLERANCES` by default.

  Returns:
    The folder of the version.

  Raises:
    FileExistsError: the version exists.
    ValueError: the parts do not fit, or the written model does not answer as it should.
  """
  if version is None:
    version = next_version(directory)
  final = os.path.join(directory, str(version))
  check_version(directory, version)
  if rows is not None and len(rows) != len(ids):
    raise ValueError(f'{len(rows)} rows of facts for {len(ids)} ids; give one for each.')
  if not crops:
    raise ValueError('Give at least one crop: an export is checked on real crops.')
  os.makedirs(directory, exist_ok=True)
  # Hidden and no number: neither a server nor a reader takes it for a version.
  partial = tempfile.mkdtemp(prefix=f'.{version}-partial-', dir=directory)
  try:
    os.chmod(partial, 0o755)
    # What a client may know as well; `about` may hold paths.
    identity = {
      'format': FORMAT,
      'tfreid': tfreid.__version__,
      'tensorflow': tf.__version__,
      'created': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
      'fingerprint': encoders.fingerprint,
      'metric': 'dot_product',
      'encoding': schema.encoding if schema else None,
      'precision': encoders.image.precision,
      'gallery_precision': gallery_precision,
    }
    retriever = Retriever(
      encoders.image,
      encoders.attribute,
      gallery=gallery,
      ids=ids,
      top_k=top_k,
      schema=schema,
      gallery_precision=gallery_precision,
      about=identity,
    )
    with _quiet():
      tf.saved_model.save(retriever, partial, signatures=retriever.signatures())
    facts = {
      **identity,
      'image_size': list(retriever.image_shape[:2]),
      'num_attributes': retriever.num_attributes,
      'embedding_size': retriever.size,
      'gallery_size': retriever.gallery.size,
      'num_results': retriever.num_results,
      'gallery_bytes': retriever.gallery.memory_bytes,
      'folded_batch_norms': encoders.image.num_folded,
      'kept_batch_norms': encoders.image.num_kept,
      **(about or {}),
    }
    del retriever  # its gallery need not be in memory twice
    written = tf.saved_model.load(partial).signatures
    limit = folding.TOLERANCES[encoders.image.precision] if tolerance is None else tolerance
    attributes = _example_attributes(space.num_attributes, schema)
    crops = list(crops[:NUM_PARITY_CROPS])
    facts['parity'] = _check_encoders(written, space, crops, attributes, limit)
    ids = [str(name) for name in ids]
    _check_ranking(written, gallery, ids, attributes)
    extra = os.path.join(partial, 'assets.extra')
    os.mkdir(extra)
    examples = _examples(crops[:_GOLDEN_CROPS], attributes, ids, schema)
    _write_json(os.path.join(extra, 'golden.json'), _golden(written, examples, limit))
    _write_json(os.path.join(extra, 'model.json'), facts)
    if schema is not None:
      _write_json(os.path.join(extra, 'schema.json'), schema.to_json())
    with open(os.path.join(extra, 'gallery.jsonl'), 'w', encoding='utf-8') as file:
      for i, name in enumerate(ids):
        row = {'id': name, **(rows[i] if rows else {})}
        file.write(json.dumps(row, ensure_ascii=False) + '\n')
    name = os.path.basename(os.path.abspath(directory))
    warmup.write(extra, name, _warmup_requests(examples))
    _flush(partial)
    # Again: another export may have been faster. (A rename onto a folder with files in it fails.)
    check_version(directory, version)
    try:
      os.rename(partial, final)
    except OSError as error:
      if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        check_version(directory, version)
      raise
    _flush_directory(directory)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return final


def versions(directory: str) -> list[int]:
  """The versions of a model, ascending; none if the folder does not exist."""
  entries = os.listdir(directory) if os.path.isdir(directory) else []
  return sorted(int(entry) for entry in entries if entry.isdigit())


def next_version(directory: str) -> int:
  """The number after the newest version of a model."""
  return max(versions(directory), default=0) + 1


def check_version(directory: str, version: int):
  """Refuses a version that cannot be written.

  Raises:
    ValueError: it is no positive whole number.
    FileExistsError: it exists.
  """
  if not isinstance(version, int) or version < 1:
    raise ValueError(f'A version is a positive whole number, not {version!r}.')
  if version in versions(directory):
    raise FileExistsError(
      f"Version {version} of '{directory}' exists, and a version never changes. Leave the version "
      f'out to get the next free one ({next_version(directory)}), or remove '
      f'{os.path.join(directory, str(version))} first.'
    )


def _example_attributes(size: int, schema: AttributeSchema | None) -> np.ndarray:
  """Attribute vectors float32 [8, A] to compare encoders with: one of everybody, others random."""
  bits = np.random.default_rng(0).integers(0, 2, (8, size)).astype(np.float32)
  if schema is None:
    return bits
  vectors = schema.from_bits(bits)
  # A query that says one thing only, as people's do.
  attribute = schema.attributes[0]
  vectors[0] = schema.encode_query({attribute.name: attribute.values[-1]})
  return vectors


def _check_encoders(written, space, crops, attributes, limit) -> dict[str, Any]:
  """Compares the written encoders with those of training.

  Returns:
    What was measured, for model.json.

  Raises:
    ValueError: a concept differs by more than `limit`, or a crop cannot be read.
  """
  images = []
  for crop in crops:
    try:
      images.append(pipeline.decode_image(tf.constant(crop.contents), space.image_shape[:2]))
    except tf.errors.OpError as error:
      raise ValueError(f'The crop {crop.name} cannot be read: {_first_line(error)}') from error
  contents = tf.constant([crop.contents for crop in crops])
  measured = {
    'image': folding.relative_errors(
      written['embed_images'](image_bytes=contents)['concepts'],
      space.encode_images(tf.cast(tf.stack(images), tf.float32)),
    ),
    'attribute': folding.relative_errors(
      written['embed_attributes'](attributes=tf.constant(attributes))['concepts'],
      space.encode_attributes(tf.constant(attributes)),
    ),
  }
  limits = {'image': limit, 'attribute': folding.TOLERANCES['float32']}
  for side, errors in measured.items():
    # Not "greater than": an error that is not a number is too large as well.
    if not errors.max() <= limits[side]:
      which = crops[int(errors.argmax())].name if side == 'image' else f'query {errors.argmax()}'
      raise ValueError(
        f'The exported {side} encoder differs from the trained one: relative error '
        f'{errors.max():.2g} of the concept of {which}, with a tolerance of {limits[side]:.2g}. '
        + (
          'Nothing was exported. Export in float32, or raise the tolerance if the ranking '
          'is still good enough.'
          if side == 'image'
          else 'Nothing was exported.'
        )
      )
  return {
    'crops': len(crops),
    'queries': len(attributes),
    'image_error': float(measured['image'].max()),
    'image_tolerance': limits['image'],
    'attribute_error': float(measured['attribute'].max()),
    'attribute_tolerance': limits['attribute'],
  }


def _check_ranking(written, gallery, ids, attributes, num_queries: int = 2):
  """Compares the written model's ranking with a full sort, and its explanation with the products.

  Raises:
    ValueError: they differ by more than rounding.
  """
  variants = np.broadcast_to(attributes, (num_queries, *attributes.shape))  # [Q, M, A]
  # In one batch, as `explain` embeds them: in another one they may round otherwise.
  others = written['embed_attributes'](
    attributes=tf.constant(variants.reshape(-1, attributes.shape[1]))
  )['concepts'].numpy()
  others = others.reshape(num_queries, len(attributes), -1)  # [Q, M, E]
  attributes = tf.constant(attributes[:num_queries])
  answer = written['serving_default'](attributes=attributes)
  explained = written['explain'](attributes=attributes, variants=tf.constant(variants))
  concepts = written['embed_attributes'](attributes=attributes)['concepts'].numpy()
  rows = {name: row for row, name in enumerate(ids)}
  # Each product of E numbers in float32 is off by some E roundings at most.
  room = 4e-7 * gallery.shape[1] * np.linalg.norm(gallery, axis=1).max()
  for i, (query, names, scores) in enumerate(
    zip(concepts, answer['ids'].numpy(), answer['scores'].numpy())
  ):
    expected = gallery @ query
    found = expected[[rows[name.decode()] for name in names]]
    best = -np.sort(-expected)[: len(names)]
    products = gallery[[rows[name.decode()] for name in explained['ids'].numpy()[i]]] @ others[i].T
    if not (
      np.abs(found - scores).max() <= room * np.linalg.norm(query)
      and np.abs(best - scores).max() <= room * np.linalg.norm(query)
      and len(set(names)) == len(names)
      and np.abs(explained['scores'].numpy()[i] - scores).max() <= room * np.linalg.norm(query)
      and np.abs(explained['variant_scores'].numpy()[i] - products).max()
      <= room * np.linalg.norm(others[i], axis=1).max()
    ):
      raise ValueError(
        'The exported model ranks the gallery otherwise than a full sort does, or explains a '
        'ranking by other scores. Nothing was exported. This is a defect of the export; please '
        'report it.'
      )


def _examples(crops, attributes, ids, schema) -> dict[str, dict[str, list]]:
  """For each signature to show and warm up: its inputs by name, and two examples of each."""
  contents = [crop.contents for crop in crops]
  queries = list(attributes[:2])
  examples = {
    'serving_default': {'attributes': queries},
    'embed_attributes': {'attributes': queries},
    'explain': {'attributes': queries, 'variants': [attributes[2:4], attributes[4:6]]},
    'embed_images': {'image_bytes': contents},
    'search_images': {'image_bytes': contents},
    'search_ids': {'crop_ids': [ids[0], 'no such crop']},
    'describe': {'any': ['', '']},
  }
  if schema is not None:
    first, last = schema.attributes[0], schema.attributes[-1]
    texts = [f'{first.name}={first.values[-1]}', f'{last.name}!={last.values[0]}, zebra']
    examples['search_words'] = {'words': texts}
  return examples


def _golden(written, examples, limit) -> dict[str, Any]:
  """Requests in the row format of TF Serving's REST interface, with their answers."""
  golden = []
  for signature, inputs in examples.items():
    answer = written[signature](
      **{name: tf.constant(np.stack(values)) for name, values in inputs.items()}
    )
    arrays = {key: value.numpy() for key, value in answer.items()}
    for key in ('ids', 'scores', 'variant_scores'):
      if key in arrays:
        arrays[key] = arrays[key][:, :_GOLDEN_RESULTS]
    golden.append(
      {
        'request': {
          'signature_name': signature,
          'instances': [
            {name: _json_value(value, binary=True) for name, value in zip(inputs, row)}
            for row in zip(*inputs.values())
          ],
        },
        'response': {'predictions': _predictions(arrays)},
      }
    )
  return {
    'about': 'Requests, and what this version answered when it was exported; of ids and '
    f'scores the first {_GOLDEN_RESULTS}. Another machine may differ by rounding.',
    'tolerance': limit,
    'golden': golden,
  }


def _predictions(arrays: Mapping[str, np.ndarray]) -> list[Any]:
  """Outputs by name, in the row format: a dict for each row, or, of a single output, its values."""
  rows = [
    {name: _json_value(value) for name, value in zip(sorted(arrays), row)}
    for row in zip(*(arrays[name] for name in sorted(arrays)))
  ]
  return rows if len(arrays) > 1 else [value for row in rows for value in row.values()]


def _json_value(value, *, binary=False):
  """A tensor's value as TF Serving's REST interface writes it."""
  if isinstance(value, bytes):
    return {'b64': base64.b64encode(value).decode()} if binary else value.decode()
  if isinstance(value, np.ndarray):
    return [_json_value(element) for element in value.tolist()]
  return value


def _warmup_requests(examples) -> list[warmup.Request]:
  """A request for each signature and batch size."""
  return [
    warmup.Request(
      signature,
      {
        name: np.stack([values[i % len(values)] for i in range(size)])
        for name, values in inputs.items()
      },
    )
    for signature, inputs in examples.items()
    for size in WARMUP_BATCHES
  ]


def _explained(error, paths, image_size) -> Exception:
  """What to raise for an error of reading one of the files: an error that names it."""
  for path in paths:
    try:
      pipeline.decode_image(tf.io.read_file(path), image_size)
    except tf.errors.OpError as reason:
      return ValueError(
        f'{path} cannot be read: {_first_line(reason)}. JPEG and PNG files are expected. Replace '
        'or remove it, or leave unreadable files out (--on_bad_image=skip).'
      )
  if isinstance(error, (tf.errors.NotFoundError, tf.errors.InvalidArgumentError)):
    return ValueError(
      f'A file could not be read when its turn came, and can be read now: {_first_line(error)}. Do '
      'not change the images while they are embedded; give the same command again.'
    )
  return error


def _first_line(error: tf.errors.OpError) -> str:
  """The message without TensorFlow's account of where in the graph it arose."""
  text = error.message.splitlines()[0]
  return text.split('} ', 1)[-1].split(' [Op:', 1)[0].rstrip('.')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps TensorFlow from announcing where it writes: the folder gets another name."""
  logger = tf.get_logger()
  level = logger.level
  logger.setLevel('ERROR')
  try:
    yield
  finally:
    logger.setLevel(level)


def _write_json(path: str, value: Any):
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
    file.write('\n')


def _flush(directory: str):
  """Has everything below the folder on disk before its name says that it is whole."""
  for folder, _, files in os.walk(directory):
    for name in files:
      with open(os.path.join(folder, name), 'rb') as file:
        os.fsync(file.fileno())
    _flush_directory(folder)


def _flush_directory(directory: str):
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
