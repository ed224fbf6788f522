"""Writes the model that is served: a version folder that is whole or is not there. Floor 4.

<model>/<version>/saved_model.pb, variables/       the Retriever; loads without this package
<model>/<version>/assets.extra/
  model.json      sizes, encoding, metric, parity with the training encoders, fingerprint
  schema.json     the attributes: names, values, words, encoding
  encoders.json   layers and settings of the folded encoders, for exports that are made from this
  gallery.jsonl   a line per row: id, and what is known (path, person_id, camera, attributes)
  golden.json     requests with the answers they got, see `golden`
  tf_serving_warmup_requests
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

import tfreid
from tfreid import replicas, storage
from tfreid.data import image_bytes, image_files
from tfreid.data.attributes import AttributeSchema
from tfreid.joint_space import JointSpace
from tfreid.serving import folding, golden, warmup
from tfreid.serving.folding import FoldedEncoder
from tfreid.serving.retriever import Retriever

if TYPE_CHECKING:
  from tfreid.serving.exported_space import ExportedSpace

FORMAT = 1
ENCODERS_FILE = 'encoders.json'

# Batch sizes of the warm-up requests; they belong to the allowed_batch_sizes of a server.
WARMUP_BATCHES = (1, 8)

# Crops that are embedded by both encoders and compared.
NUM_PARITY_CROPS = 16
_GOLDEN_CROPS = 2

_PARTIAL = re.compile(r'\.[0-9]+-partial-.+')

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

  def to_json(self) -> dict[str, Any]:
    """What they are made of beside their weights, for `FoldedEncoder.restored`."""
    return {
      side: {
        'precision': encoder.precision,
        'num_folded': encoder.num_folded,
        'num_kept': encoder.num_kept,
        'num_weights': len(encoder.weights),
        'structure': encoder.structure,
      }
      for side, encoder in self._asdict().items()
    }


class Crop(NamedTuple):
  """An encoded image: what to call it in messages, and its bytes."""

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
    paths: of image files.
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

  paths = [str(path) for path in paths]
  dataset = image_files.images(paths, image_size, skip_bad=skip_bad)
  concepts, positions = [], []
  try:
    for batch, pictures in dataset.batch(batch_size).prefetch(2):
      concepts.append(embed(pictures).numpy())
      positions.append(batch.numpy())
      if progress:
        progress(int(batch[-1]) + 1, len(paths))
  except tf.errors.OpError as error:
    raise _explained(error, paths) from error
  if not concepts:
    raise ValueError(
      f'None of the {len(paths)} images can be read. {image_bytes.KINDS} are expected.'
      if paths
      else 'There is no image to embed.'
    )
  return np.concatenate(concepts), np.concatenate(positions)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
  """No TensorFloat-32 meanwhile: a GPU's 10-bit products would hide what an export does wrong."""
  before = tf.config.experimental.tensor_float_32_execution_enabled()
  tf.config.experimental.enable_tensor_float_32_execution(False)
  try:
    yield
  finally:
    tf.config.experimental.enable_tensor_float_32_execution(before)


@_full_float32()
def export(
  space: JointSpace | ExportedSpace,
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
  rows: Iterable[Mapping[str, Any]] | None = None,
  about: Mapping[str, Any] | None = None,
  tolerance: float | None = None,
) -> str:
  """Writes a version of a model, checks it, and only then gives it its name.

  What is checked is the written SavedModel, loaded again: its encoders against those of `space` on
  `crops` and on the schema's queries, and its ranking against a full sort.

  What an export that was killed left behind in `directory` is removed. A GPU multiplies in full
  float32 meanwhile, so that the golden answers are exact.

  Args:
    space: as trained, or of an exported model; what the export is compared with.
    directory: of the model, for example saved_models/demo; the version becomes a folder in it.
    encoders: of that space, from `encoders(space)` or `space.encoders()`.
    gallery: float32 [N, E], image concepts, from `embed_files(encoders.image, ...)`.
    ids: N different strings, what an answer calls the rows.
    crops: real crops, at least one; the first NUM_PARITY_CROPS are compared.
    schema: of the attributes.
    version: positive; the next free one by default.
    top_k: results of an answer, at most.
    gallery_precision: of the scan of the gallery, see `ExactSearch`.
    rows: N dicts of JSON-able facts about the rows of the gallery, in their order; read once. An
      'id' among them must be that of the row.
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
  if isinstance(rows, Sized) and len(rows) != len(ids):
    raise ValueError(f'{len(rows)} rows of facts for {len(ids)} ids; give one for each.')
  if not crops:
    raise ValueError('Give at least one crop: an export is checked on real crops.')
  attributes = _example_attributes(space.num_attributes, schema)
  crops = [_as_sent(crop) for crop in crops[:NUM_PARITY_CROPS]]
  # First: an exported model holds a gallery itself, and need not be in memory beside the new one.
  expected = _expected(space, crops, attributes)
  os.makedirs(directory, exist_ok=True)
  _sweep(directory)
  partial, lock = _new_partial(directory, version)
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
    norm = float(retriever.gallery.greatest_norm.numpy())
    del retriever  # its gallery need not be in memory twice
    written = tf.saved_model.load(partial).signatures
    limit = folding.TOLERANCES[encoders.image.precision] if tolerance is None else tolerance
    facts['parity'] = _check_encoders(written, expected, crops, attributes, limit)
    ids = [str(name) for name in ids]
    _check_ranking(written, gallery, norm, ids, attributes)
    extra = os.path.join(partial, 'assets.extra')
    os.mkdir(extra)
    contents = [crop.contents for crop in crops[:_GOLDEN_CROPS]]
    examples = golden.examples(contents, attributes, gallery, ids, schema)
    recorded = golden.record(written, examples, tolerance=limit, greatest_norm=norm)
    _write_json(os.path.join(extra, golden.FILE), recorded)
    _write_json(os.path.join(extra, ENCODERS_FILE), encoders.to_json())
    if schema is not None:
      _write_json(os.path.join(extra, 'schema.json'), schema.to_json())
    listed = os.path.join(extra, 'gallery.jsonl')
    _write_gallery(listed, ids, rows)
    facts['gallery_checksum'] = storage.checksum_of_file(listed)
    _write_json(os.path.join(extra, 'model.json'), facts)
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
    if lock is not None:
      os.close(lock)
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
    ValueError: it is no positive whole number, or the path is one that TensorFlow does not read.
    FileExistsError: it exists.
  """
  # TensorFlow looks for the files of variables by pattern.
  if re.search(r'[][*?\\]', os.path.abspath(directory)):
    raise ValueError(
      f"'{os.path.abspath(directory)}' cannot hold a model: TensorFlow takes [, ], *, ? and \\ in "
      'a path for a pattern. Give a folder without them.'
    )
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


def _as_sent(crop: Crop) -> Crop:
  """A crop as a client sends it to the exported model.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    contents = image_bytes.for_model(crop.contents)
    image_bytes.pixels(contents)
  except image_bytes.BadImageError as error:
    raise ValueError(f'The crop {crop.name} cannot be read: {error}.') from error
  return Crop(crop.name, contents)


def _expected(space, crops, attributes) -> dict[str, np.ndarray]:
  """The concepts that the space makes of crops and attribute vectors, by the side they are of."""
  if not isinstance(space, JointSpace):
    found = space.embed([crop.contents for crop in crops], attributes)
    return dict(zip(('image', 'attribute'), found))
  size = space.image_shape[:2]
  images = [tf.cast(image_files.decode(crop.contents, size), tf.float32) for crop in crops]
  return {
    'image': space.encode_images(tf.stack(images)).numpy(),
    'attribute': space.encode_attributes(tf.constant(attributes)).numpy(),
  }


def _check_encoders(written, expected, crops, attributes, limit) -> dict[str, Any]:
  """Compares the written encoders with what is expected of them.

  Returns:
    What was measured, for model.json.

  Raises:
    ValueError: a concept differs by more than `limit`.
  """
  contents = tf.constant([crop.contents for crop in crops])
  found = {
    'image': written['embed_images'](image_bytes=contents),
    'attribute': written['embed_attributes'](attributes=tf.constant(attributes)),
  }
  measured = {
    side: folding.relative_errors(answer['concepts'], expected[side])
    for side, answer in found.items()
  }
  limits = {'image': limit, 'attribute': folding.TOLERANCES['float32']}
  for side, errors in measured.items():
    # Not "greater than": an error that is not a number is too large as well.
    if not errors.max() <= limits[side]:
      which = crops[int(errors.argmax())].name if side == 'image' else f'query {errors.argmax()}'
      raise ValueError(
        f'The exported {side} encoder differs from the original one: relative error '
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


def _check_ranking(written, gallery, greatest_norm, ids, attributes, num_queries: int = 2):
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
  room = 4e-7 * gallery.shape[1] * greatest_norm
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


def _write_gallery(path, ids, rows):
  """Writes gallery.jsonl.

  Raises:
    ValueError: the rows are not those of the ids.
  """
  known = iter(({} for _ in ids) if rows is None else rows)
  with open(path, 'w', encoding='utf-8') as file:
    for number, name in enumerate(ids, start=1):
      row = next(known, None)
      if row is None:
        raise ValueError(f'{number - 1} rows of facts for {len(ids)} ids; give one for each.')
      if row.get('id', name) != name:
        raise ValueError(
          f"Row {number} of the gallery is '{name}', and the facts are those of '{row['id']}'."
        )
      file.write(json.dumps({'id': name, **row}, ensure_ascii=False) + '\n')
  if next(known, None) is not None:
    raise ValueError(f'More than {len(ids)} rows of facts for {len(ids)} ids; give one for each.')


def _new_partial(directory: str, version: int) -> tuple[str, int | None]:
  """A folder to write a version into, and the descriptor that holds its lock.

  Hidden and no number: neither a server nor a reader takes it for a version. The lock, which the
  system gives back when the process dies however it dies, is how `_sweep` knows that somebody is
  writing. Where the file system has no locks there is none, and nothing is swept.
  """
  while True:
    partial = tempfile.mkdtemp(prefix=f'.{version}-partial-', dir=directory)
    lock = None
    try:
      lock = _lock(partial)
    except (BlockingIOError, FileNotFoundError):
      continue  # Another export swept it away before it was held.
    except OSError:
      pass
    if os.path.isdir(partial):
      return partial, lock
    if lock is not None:
      os.close(lock)


def _sweep(directory: str):
  """Removes the folders of exports that were killed; never that of one that runs."""
  for name in os.listdir(directory):
    path = os.path.join(directory, name)
    if not _PARTIAL.fullmatch(name) or os.path.islink(path):
      continue
    try:
      lock = _lock(path)
    except OSError:
      continue  # Somebody writes it, or it is gone, or not ours.
    try:
      shutil.rmtree(path, ignore_errors=True)
    finally:
      os.close(lock)


def _lock(folder: str) -> int:
  """Opens a folder and takes its lock.

  Returns:
    A descriptor; closing it gives the lock back.

  Raises:
    BlockingIOError: another process has it.
    OSError: there is no such folder, or its file system has no locks.
  """
  descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    os.close(descriptor)
    raise
  return descriptor


def _explained(error, paths) -> Exception:
  """What to raise for an error of reading one of the files: an error that names it."""
  bad = image_files.undecodable(paths)
  if len(bad):
    return ValueError(
      f'{paths[bad[0]]} cannot be read: {image_files.reason(paths[bad[0]])}. '
      f'{image_bytes.KINDS} are expected. Replace or remove it, or leave unreadable files out '
      '(--on_bad_image=skip).'
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
