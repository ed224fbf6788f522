"""The joint space of an exported model: what its next version, with another gallery, is made from.

Floor 4. The size of the gallery is a part of an exported graph, so a new gallery needs a new graph.
What a graph is traced from are the folded encoders; an export keeps their layers and settings in
assets.extra/encoders.json, and their weights are among its variables. So they come back as they
were, bfloat16 as bfloat16, with the fingerprint they had, and neither the training run nor its
`space` folder is needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfreid.data.attributes import AttributeSchema

# The package registers the layers that encoders may contain.
from tfreid.networks import archive
from tfreid.serving import errors, golden, versions
from tfreid.serving.encoders import FILE as ENCODERS_FILE
from tfreid.serving.encoders import Crop, Encoders
from tfreid.serving.folding import FoldedEncoder

_CHECKPOINT = os.path.join('variables', 'variables')
_WEIGHT = '{}_encoder/weights/{}/.ATTRIBUTES/VARIABLE_VALUE'


class ExportedSpace:
  """The encoders of a version of an exported model.

  Attributes:
    directory: of the version.
    about: its assets.extra/model.json.
    schema: of the attributes, None if the model was exported without.
    fingerprint: of the encoders.
    image_shape: (height, width, 3) to which crops are resized.
    num_attributes: A.
  """

  def __init__(self, directory: str):
    """Reads what is written beside the model; the model itself is not loaded.

    Args:
      directory: of a version (saved_models/demo/1), or of a model, whose newest version is taken.

    Raises:
      FileNotFoundError: there is no exported model.
      ValueError: it is damaged, or was exported before exports could be made from it.
    """
    self.directory = versions.newest(os.path.abspath(os.path.expanduser(directory)))
    versions.check(self.directory)
    if not os.path.isfile(os.path.join(self._extra, ENCODERS_FILE)):
      raise ValueError(
        f"'{self.directory}' was exported by an earlier version of tfreid, which did not keep what "
        f'its encoders are made of ({ENCODERS_FILE}). Export it once more from its training run '
        '(`tfreid export --space=…`, with the same precision): its concepts stay the same, so an '
        'index that was made with it can be used with the new one.'
      )
    self.about: dict[str, Any] = self._json('model.json')
    self._parts = self._json(ENCODERS_FILE)
    has_schema = os.path.isfile(os.path.join(self._extra, 'schema.json'))
    self.schema = AttributeSchema.from_json(self._json('schema.json')) if has_schema else None
    try:
      self.fingerprint = str(self.about['fingerprint'])
      height, width = map(int, self.about['image_size'])
      self.image_shape = (height, width, 3)
      self.num_attributes = int(self.about['num_attributes'])
    except (KeyError, TypeError, ValueError) as error:
      raise self._damaged('model.json', error) from error

  @property
  def origin(self) -> dict[str, Any]:
    """What a model made from this one says of where it comes from, for its model.json."""
    kept = {key: self.about[key] for key in ('dataset', 'method', 'stage') if key in self.about}
    # Of the first export: the encoders that were compared there with those of training.
    trained = self.about.get('trained_parity', self.about.get('parity'))
    return {**kept, 'exported_from': self.directory, 'trained_parity': trained}

  def encoders(self) -> Encoders:
    """The encoders, with variables of their own, in the scope of a strategy if there is one.

    Raises:
      ValueError: a file is damaged, or they are not those that were exported.
    """
    for side in Encoders._fields:
      self._check_layers(side)
    try:
      checkpoint = tf.train.load_checkpoint(os.path.join(self.directory, _CHECKPOINT))
      encoders = Encoders(*(self._encoder(checkpoint, side) for side in Encoders._fields))
    except (tf.errors.OpError, LookupError, TypeError, ValueError, RuntimeError) as error:
      raise self._damaged('variables', errors.plain(str(error))) from error
    if encoders.fingerprint != self.fingerprint:
      raise self._damaged(
        'variables',
        f'the encoders have the fingerprint {encoders.fingerprint[:12]}, and model.json says '
        f'{self.fingerprint[:12]}',
      )
    return encoders

  def embed(
    self, contents: Sequence[bytes], attributes: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Image and attribute concepts, as the exported model itself answers them.

    The model is loaded for that and let go: it holds a gallery.

    Args:
      contents: encoded crops, JPEG or PNG.
      attributes: float32 [B, A].

    Raises:
      ValueError: the model cannot be loaded, or does not take the input.
    """
    ask = golden.loaded(self.directory)
    crops = np.empty(len(contents), object)
    crops[:] = list(contents)
    images = ask('embed_images', {'image_bytes': crops})['concepts']
    return images, ask('embed_attributes', {'attributes': attributes})['concepts']

  def crops(self) -> list[Crop]:
    """The crops of its golden requests, for a gallery whose files are not at hand."""
    for entry in golden.read(self.directory)['golden']:
      if entry['request']['signature_name'] == 'embed_images':
        contents = golden.inputs(entry['request'])['image_bytes']
        return [Crop(f'golden crop {i}', content) for i, content in enumerate(contents)]
    return []

  @property
  def _extra(self) -> str:
    return os.path.join(self.directory, 'assets.extra')

  def _check_layers(self, side: str) -> None:
    """Refuses layers that could hold code, before Keras sees them."""
    path = os.path.join(self._extra, ENCODERS_FILE)
    try:
      structure = json.loads(self._parts[side]['structure'])
      kind, config = structure['class_name'], structure['config']
    except (LookupError, TypeError, ValueError) as error:
      raise self._damaged(ENCODERS_FILE, error) from error
    if kind != 'Functional':
      raise ValueError(f"'{path}' is refused: an encoder is a functional model, not a '{kind}'.")
    archive.check(config, path)

  def _encoder(self, checkpoint: Any, side: str) -> FoldedEncoder:
    part = self._parts[side]
    return FoldedEncoder.restored(
      part['structure'],
      [checkpoint.get_tensor(_WEIGHT.format(side, i)) for i in range(part['num_weights'])],
      precision=part['precision'],
      num_folded=part['num_folded'],
      num_kept=part['num_kept'],
    )

  def _json(self, name: str) -> dict[str, Any]:
    try:
      return versions.read_json(self.directory, f'{versions.EXTRA}/{name}')
    except OSError as error:
      raise self._damaged(name, error) from error

  def _damaged(self, name, error) -> ValueError:
    return ValueError(
      f"The exported model '{self.directory}' is damaged ({name}: {error}). Copy it again, or "
      'export it again.'
    )
