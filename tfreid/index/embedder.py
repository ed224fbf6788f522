"""An exported model as what an index needs of it: crops and descriptions to concepts. Floor 4.

Only the SavedModel is read and the files beside it: neither gin nor the method's code. Whoever only
asks by description (`lazy`) waits for no TensorFlow, where the export keeps its attribute encoder
as arrays (`serving.light_encoder`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfreid import forks, image_bytes, threads
from tfreid.data.attributes import AttributeSchema
from tfreid.index.runtimes import RUNTIMES
from tfreid.serving import errors, light_encoder, versions

if TYPE_CHECKING:
  import tensorflow as tf

_SIGNATURES = ('embed_images', 'embed_attributes')

# Images that one call of an exported model decodes at the same time.
_DECODED_TOGETHER = 4


class Embedder:
  """The encoders of an exported model.

  Attributes:
    directory: of the version.
    about: assets.extra/model.json.
    fingerprint: of the encoders; concepts of models that differ in it must not be mixed.
    size: E, the number of dimensions of the joint space.
    schema: of the attributes, None if the model was exported without.
    num_devices: on how many devices crops are embedded.
    in_flight: batches to embed at the same time, from several threads, see `writer.add`. A call
      decodes 4 images at a time and only then computes; on more cores, or beside a GPU, several
      calls keep both busy. More than 4 would cost more memory than they gain.
    runtime: what computes the concepts of images, one of `RUNTIMES`.
  """

  def __init__(
    self,
    directory: str,
    *,
    strategy: tf.distribute.Strategy | None = None,
    lazy: bool = False,
    runtime: str = 'tensorflow',
  ):
    """Loads the model.

    Loaded in the scope of a strategy, a SavedModel has its variables on each device, its gallery
    too, and its signatures run in replicas. A copy of the model and a thread for each device would
    embed as well; it would take as much memory, and threads to look after.

    Args:
      directory: of a version (saved_models/demo/1), or of a model, whose newest version is taken.
      strategy: from `replicas.local`, to embed crops on several devices; by default on one.
      lazy: load the SavedModel when the first crop is to be embedded, if the attribute encoder can
        be computed without. Faults of the SavedModel are then found at that time.
      runtime: 'openvino' to have OpenVINO compute the concepts of images, which is faster on a
        processor (docs/notes/speed.md) and differs from TensorFlow by rounding.

    Raises:
      FileNotFoundError: there is no exported model.
      ImportError: OpenVINO is asked for, and is not installed.
      ValueError: it is not one whose crops can be indexed, or it is damaged; or OpenVINO is asked
        for, and there is a strategy of several devices, or it makes other concepts.
    """
    if runtime not in RUNTIMES:
      raise ValueError(f"The runtime is one of {', '.join(RUNTIMES)}, not '{runtime}'.")
    if runtime == 'openvino' and strategy and strategy.num_replicas_in_sync > 1:
      raise ValueError('OpenVINO embeds on the processor: several devices need TensorFlow.')
    self.runtime = runtime
    self.num_devices: int = strategy.num_replicas_in_sync if strategy else 1
    self.in_flight = max(2, min(4, threads.usable_cores() // _DECODED_TOGETHER))
    self.directory = version(directory)
    self.about = description(self.directory)
    self.fingerprint: str = self.about['fingerprint']
    self.size: int = self.about['embedding_size']
    self.schema = schema(self.directory)
    self._strategy = strategy
    self._loading = threading.Lock()
    self._signatures: _Signatures | None = None
    self._openvino: _OpenVino | None = None
    converts = runtime == 'openvino'
    self._light = _light(self.directory) if lazy or converts else None
    if self._light is None:
      self._loaded()
    if converts and not lazy:
      self._of_images()

  def embed_images(self, contents: Sequence[bytes]) -> np.ndarray:
    """Image concepts, float32 [B, E], of B encoded images (`image_bytes.KINDS`).

    Raises:
      ValueError: one of them cannot be decoded; the message does not say which.
    """
    forks.check()
    return self._of_images().embed_images([image_bytes.for_model(image) for image in contents])

  def embed_attributes(self, vectors: np.ndarray) -> np.ndarray:
    """Attribute concepts, float32 [B, E], of attribute vectors [B, A].

    Raises:
      ValueError: they have another size, or hold numbers that are not finite.
    """
    vectors = np.asarray(vectors, np.float32)
    if self._light is None:
      forks.check()
      return self._loaded().embed_attributes(vectors)
    if self.schema is not None and vectors.shape[-1] != self.schema.size:
      raise ValueError(
        f'An attribute vector has {self.schema.size} numbers; these have the shape {vectors.shape}.'
      )
    return self._light(vectors)

  def _of_images(self) -> _Signatures | _OpenVino:
    """What makes concepts of images."""
    if self.runtime == 'tensorflow':
      return self._loaded()
    with self._loading:
      if self._openvino is None:
        self._openvino = _OpenVino(self.directory, self.in_flight)
      return self._openvino

  def _loaded(self) -> _Signatures:
    with self._loading:
      if self._signatures is None:
        self._signatures = _Signatures(self.directory, self._strategy)
      return self._signatures

  def embed_query(self, query: Mapping[str, str]) -> np.ndarray:
    """The concept, float32 [E], of a description by attribute name and value.

    Raises:
      ValueError: the model has no schema, or does not know an attribute or a value.
    """
    return self.embed_attributes(self.known_schema.encode_query(query)[np.newaxis])[0]

  @property
  def known_schema(self) -> AttributeSchema:
    """The schema.

    Raises:
      ValueError: the model was exported without.
    """
    if self.schema is None:
      raise ValueError(
        f"The model '{self.directory}' has no schema, so it does not know what its attributes are "
        'called. Search with attribute vectors, or export it with a schema.'
      )
    return self.schema


def version(directory: str) -> str:
  """The absolute path of a version: the directory, or its subfolder of the largest number.

  Raises:
    FileNotFoundError: it is neither.
  """
  return versions.newest(os.path.abspath(os.path.expanduser(directory)))


def description(directory: str) -> dict[str, Any]:
  """model.json of a version.

  Raises:
    ValueError: it is missing or does not say what an index must know.
  """
  path = os.path.join(directory, versions.EXTRA, 'model.json')
  try:
    about = versions.read_json(directory, f'{versions.EXTRA}/model.json')
    if isinstance(about['fingerprint'], str) and isinstance(about['embedding_size'], int):
      return about
    raise KeyError('fingerprint')
  except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"'{path}' does not say which model this is ({error!r}). Export it again with "
      '`tfreid export`.'
    ) from error


def schema(directory: str) -> AttributeSchema | None:
  """The schema of a version, None if it has none.

  Raises:
    ValueError: the file is damaged.
  """
  name = f'{versions.EXTRA}/schema.json'
  if not os.path.isfile(os.path.join(directory, name)):
    return None
  return AttributeSchema.from_json(versions.read_json(directory, name))


class _Signatures:
  """The SavedModel of a version, loaded."""

  def __init__(self, directory: str, strategy: tf.distribute.Strategy | None):
    import tensorflow as tf

    from tfreid.serving import loading

    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
      self._model = loading.load(directory)
    signatures = self._model.signatures
    missing = [name for name in _SIGNATURES if name not in signatures]
    if missing:
      raise ValueError(
        f"The model '{directory}' has no signature {' and '.join(missing)} (it has: "
        f'{", ".join(signatures) or "none"}). Export it again with `tfreid export`.'
      )
    self._tf = tf
    self._images = _images(signatures['embed_images'], strategy)
    self._attributes = signatures['embed_attributes']

  def embed_images(self, contents: Sequence[bytes]) -> np.ndarray:
    with _clear():
      return self._images(self._tf.constant(list(contents), self._tf.string)).numpy()

  def embed_attributes(self, vectors: np.ndarray) -> np.ndarray:
    with _clear():
      return self._attributes(attributes=self._tf.constant(vectors))['concepts'].numpy()


class _OpenVino:
  """The image encoder of a version, computed by OpenVINO; files become pixels as in the model."""

  def __init__(self, directory: str, streams: int):
    import tensorflow as tf

    from tfreid.data import image_files
    from tfreid.serving import openvino_encoder, stored_encoders

    encoder = stored_encoders.read(directory).image
    crop = encoder.input_shape
    self._tf = tf
    self._decode = tf.function(
      lambda contents: image_files.decode_batch(contents, crop[:2]),
      input_signature=[tf.TensorSpec([None], tf.string)],
      autograph=False,
    )
    self._encoder = openvino_encoder.OpenVinoEncoder(
      encoder, self._decoded(stored_encoders.crops(directory)), streams=streams
    )

  def embed_images(self, contents: Sequence[bytes]) -> np.ndarray:
    return self._encoder(self._decoded(contents))

  def _decoded(self, contents: Sequence[bytes]) -> np.ndarray:
    with _clear():
      return self._decode(self._tf.constant(list(contents), self._tf.string)).numpy()


@contextlib.contextmanager
def _clear() -> Iterator[None]:
  """Says what is wrong with a picture or a vector in one sentence."""
  import tensorflow as tf

  try:
    yield
  except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
    raise ValueError(errors.plain(error.message)) from error


def _light(directory: str) -> light_encoder.LightEncoder | None:
  """The attribute encoder of a version as arrays, None if it keeps none.

  Raises:
    ValueError: the file is damaged.
  """
  name = f'{versions.EXTRA}/{light_encoder.FILE}'
  # Without a seal nothing says that the file is the one that was compared with the graph.
  if not versions.is_sealed(directory) or not os.path.isfile(os.path.join(directory, name)):
    return None
  return light_encoder.from_bytes(versions.read(directory, name))


def _images(signature: Callable, strategy: tf.distribute.Strategy) -> Callable:
  """Concepts of encoded images, a part of each batch on each device."""
  import tensorflow as tf

  from tfreid import replicas

  def embed(contents):
    return signature(image_bytes=contents)['concepts']

  if strategy.num_replicas_in_sync == 1:
    return embed
  return replicas.by_parts(embed, strategy, tf.TensorSpec([None], tf.string))
