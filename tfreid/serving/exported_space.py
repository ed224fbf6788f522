"""The joint space of an exported model: what its next version, with another gallery, is made from.

Floor 4. The size of the gallery is a part of an exported graph, so a new gallery needs a new graph.
What a graph is traced from are the folded encoders; an export keeps their layers and settings in
assets.extra/encoders.json, and their weights are among its variables. So they come back as they
were, bfloat16 as bfloat16, with the fingerprint they had, and neither the training run nor its
`space` folder is needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfreid.data.attributes import AttributeSchema
from tfreid.joint_space import JointSpace
from tfreid.serving import golden, parity, stored_encoders, versions
from tfreid.serving.encoders import Crop
from tfreid.serving.stored_encoders import Encoders


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

  def __init__(self, directory: str, *, flip_test: bool = False):
    """Reads what is written beside the model; the model itself is not loaded.

    Args:
      directory: of a version (saved_models/demo/1), or of a model, whose newest version is taken.
      flip_test: with the flip test, see `tfreid.networks.flip`; the model must not have it already.

    Raises:
      FileNotFoundError: there is no exported model.
      ValueError: it is damaged, or was exported before exports could be made from it; or it has the
        flip test already.
    """
    self._flip_test = flip_test
    self.directory = versions.newest(os.path.abspath(os.path.expanduser(directory)))
    versions.check(self.directory)
    self.about: dict[str, Any] = self._json('model.json')
    stored_encoders.parts(self.directory)
    has_schema = os.path.isfile(os.path.join(self.directory, versions.EXTRA, 'schema.json'))
    if flip_test and self.about.get('flip_test'):
      raise ValueError(f"The model '{self.directory}' has the flip test already.")
    self.schema = AttributeSchema.from_json(self._json('schema.json')) if has_schema else None
    try:
      self.fingerprint = str(self.about['fingerprint'])
      height, width = map(int, self.about['image_size'])
      self.image_shape = (height, width, 3)
      self.num_attributes = int(self.about['num_attributes'])
    except (KeyError, TypeError, ValueError) as error:
      raise stored_encoders.damaged(self.directory, 'model.json', error) from error

  @property
  def origin(self) -> dict[str, Any]:
    """What a model made from this one says of where it comes from, for its model.json."""
    told = ('dataset', 'method', 'stage', 'flip_test')
    kept = {key: self.about[key] for key in told if key in self.about}
    # Of the first export: the encoders that were compared there with those of training.
    trained = self.about.get('trained_parity', self.about.get('parity'))
    if self._flip_test:
      kept['flip_test'] = True
    return {**kept, 'exported_from': self.directory, 'trained_parity': trained}

  def encoders(self) -> Encoders:
    """The encoders, with variables of their own, in the scope of a strategy if there is one.

    Raises:
      ValueError: a file is damaged, or they are not those that were exported.
    """
    encoders = stored_encoders.read(self.directory)
    if self._flip_test:
      return encoders._replace(image=encoders.image.with_flip_test())
    return encoders

  def embed(
    self, contents: Sequence[bytes], attributes: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Image and attribute concepts, as the exported model itself answers them.

    The model is loaded for that and let go: it holds a gallery. With a flip test that it has not,
    they are those of its layers.

    Args:
      contents: encoded crops, JPEG or PNG.
      attributes: float32 [B, A].

    Raises:
      ValueError: the model cannot be loaded, or does not take the input.
    """
    if self._flip_test:
      encoders = stored_encoders.read(self.directory)
      space = JointSpace(encoders.image.layers(), encoders.attribute.layers()).with_flip_test()
      named = [Crop(f'crop {i}', content) for i, content in enumerate(contents)]
      found = parity.expected_concepts(space, named, attributes)
      return found['image'], found['attribute']
    ask = golden.loaded(self.directory)
    crops = np.empty(len(contents), object)
    crops[:] = list(contents)
    images = ask('embed_images', {'image_bytes': crops})['concepts']
    return images, ask('embed_attributes', {'attributes': attributes})['concepts']

  def crops(self) -> list[Crop]:
    """The crops of its golden requests, for a gallery whose files are not at hand."""
    found = stored_encoders.crops(self.directory)
    return [Crop(f'golden crop {i}', content) for i, content in enumerate(found)]

  def _json(self, name: str) -> dict[str, Any]:
    return stored_encoders.read_json(self.directory, name)
