"""Writes the model that is served: a version folder that is whole or is not there. Floor 4.

<model>/<version>/saved_model.pb, variables/       the Retriever; loads without this package
<model>/<version>/assets.extra/
  model.json      sizes, encoding, metric, parity with the training encoders, fingerprint
  schema.json     the attributes: names, values, words, encoding
  encoders.json   layers and settings of the folded encoders, for exports that are made from this
  attribute_encoder.npz  the attribute encoder as arrays, where it is one that NumPy can compute
  gallery.jsonl   a line per row: id, and what is known (path, person_id, camera, attributes)
  golden.json     requests with the answers they got, see `golden`
  tf_serving_warmup_requests
  seal.json       size and checksum of each file, see `versions`
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

import tfreid
from tfreid import storage
from tfreid.data.attributes import AttributeSchema
from tfreid.joint_space import JointSpace
from tfreid.serving import (
  errors,
  folding,
  golden,
  light_encoder,
  loading,
  parity,
  versions,
  warmup,
)
from tfreid.serving.encoders import Crop, embed_files, encoders
from tfreid.serving.retriever import Retriever
from tfreid.serving.stored_encoders import FILE as ENCODERS_FILE
from tfreid.serving.stored_encoders import Encoders

if TYPE_CHECKING:
  from tfreid.serving.exported_space import ExportedSpace

__all__ = ['Crop', 'Encoders', 'embed_files', 'encoders', 'export']

FORMAT = versions.SEALED_FORMAT

# Batch sizes of the warm-up requests; they belong to the allowed_batch_sizes of a server.
WARMUP_BATCHES = (1, 8)

# Crops that are embedded by both encoders and compared.
NUM_PARITY_CROPS = 16
_GOLDEN_CROPS = 2


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
    gallery: float32 [N, E], image concepts, from `embed_files(encoders.image, ...)`; of no row for
      a model that searches nothing itself and embeds what an index holds.
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
    OSError: the disk is full, or the folder cannot be written; nothing remains.
  """
  version = versions.next_number(directory) if version is None else version
  versions.check_number(directory, version)
  if isinstance(rows, Sized) and len(rows) != len(ids):
    raise ValueError(f'{len(rows)} rows of facts for {len(ids)} ids; give one for each.')
  if not crops:
    raise ValueError('Give at least one crop: an export is checked on real crops.')
  attributes = parity.example_attributes(space.num_attributes, schema)
  crops = [parity.as_sent(crop) for crop in crops[:NUM_PARITY_CROPS]]
  # First: an exported model holds a gallery itself, and need not be in memory beside the new one.
  expected = parity.expected_concepts(space, crops, attributes)
  limit = folding.TOLERANCES[encoders.image.precision] if tolerance is None else tolerance
  ids = [str(name) for name in ids]
  with versions.writing(directory, version) as partial:
    facts, norm = _write_model(
      partial,
      encoders,
      gallery=gallery,
      ids=ids,
      top_k=top_k,
      schema=schema,
      gallery_precision=gallery_precision,
    )
    written = loading.load(partial)
    facts['parity'] = parity.check_encoders(written.signatures, expected, crops, attributes, limit)
    if ids:
      parity.check_ranking(written.signatures, gallery, norm, ids, attributes)
    contents = [crop.contents for crop in crops[:_GOLDEN_CROPS]]
    examples = golden.examples(contents, attributes, gallery, ids, schema)
    recorded = golden.record(written.signatures, examples, tolerance=limit, greatest_norm=norm)
    extra = os.path.join(partial, versions.EXTRA)
    os.mkdir(extra)
    _write_json(os.path.join(extra, golden.FILE), recorded)
    _write_json(os.path.join(extra, ENCODERS_FILE), encoders.to_json())
    if schema is not None:
      _write_json(os.path.join(extra, 'schema.json'), schema.to_json())
    listed = os.path.join(extra, 'gallery.jsonl')
    _write_gallery(listed, ids, rows)
    # In model.json too: whoever has the list without the version can compare it.
    facts['gallery_checksum'] = storage.checksum_of_file(listed)
    _write_json(os.path.join(extra, 'model.json'), {**facts, **(about or {})})
    _write_light_encoder(extra, encoders, written, attributes)
    name = os.path.basename(os.path.abspath(directory))
    with _disk_errors(partial):
      warmup.write(extra, name, _warmup_requests(examples))
  return os.path.join(directory, str(version))


def _write_model(
  directory: str,
  encoders: Encoders,
  *,
  gallery: np.ndarray,
  ids: Sequence[str],
  top_k: int,
  schema: AttributeSchema | None,
  gallery_precision: str,
) -> tuple[dict[str, Any], float]:
  """Writes the SavedModel.

  Returns:
    Facts for model.json, and the greatest norm of a row of the gallery.
  """
  # What a client may know as well; what else is said of a model may hold paths.
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
  with _quiet(), _disk_errors(directory):
    tf.saved_model.save(retriever, directory, signatures=retriever.signatures())
  norm, gallery_bytes = 0.0, 0
  if len(ids):
    norm = float(retriever.gallery.greatest_norm.numpy())
    gallery_bytes = retriever.gallery.memory_bytes
  facts = {
    **identity,
    **retriever.sizes,
    'gallery_bytes': gallery_bytes,
    'folded_batch_norms': encoders.image.num_folded,
    'kept_batch_norms': encoders.image.num_kept,
  }
  return facts, norm


def _write_light_encoder(
  extra: str, encoders: Encoders, written: Any, attributes: np.ndarray
) -> None:
  """Writes the attribute encoder for NumPy, if it is one that NumPy can compute.

  Raises:
    ValueError: it does not give what the graph gives.
  """
  weights = [variable.numpy() for variable in encoders.attribute.weights]
  light = light_encoder.from_structure(encoders.attribute.structure, weights)
  if light is None:
    return
  expected = written.signatures['embed_attributes'](attributes=tf.constant(attributes))['concepts']
  error = folding.relative_errors(light(attributes), expected.numpy()).max()
  if not error <= light_encoder.TOLERANCE:
    raise ValueError(
      f'The attribute encoder in NumPy differs from the one in the graph by {error:.2g} of a '
      f'concept, with a tolerance of {light_encoder.TOLERANCE:g}. Nothing was exported. This is a '
      'defect of the export; please report it.'
    )
  storage.write_bytes(os.path.join(extra, light_encoder.FILE), light.to_bytes())


def _warmup_requests(examples: golden.Examples) -> list[warmup.Request]:
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


def _write_gallery(path: str, ids: Sequence[str], rows: Iterable[Mapping[str, Any]] | None) -> None:
  """Writes gallery.jsonl.

  Raises:
    ValueError: the rows are not those of the ids.
  """
  known = iter(({} for _ in ids) if rows is None else rows)
  with storage.replacing(path) as file:
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


def _write_json(path: str, value: Any) -> None:
  text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
  storage.write_text(path, f'{text}\n')


@contextlib.contextmanager
def _disk_errors(directory: str) -> Iterator[None]:
  """Makes what TensorFlow says of a disk that is full or fails an `OSError`."""
  try:
    yield
  except tf.errors.OpError as error:
    raise OSError(
      f"'{directory}' cannot be written: {errors.plain(error.message)}. Is the disk full? Nothing "
      'was exported; make room and give the same command again.'
    ) from error


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
