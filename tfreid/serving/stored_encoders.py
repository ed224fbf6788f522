"""The encoders that an exported model keeps beside its graph: layers, settings, weights. Floor 3.

Their layers and settings stand in assets.extra/encoders.json, and their weights are among the
variables of the SavedModel. So they come back as they were, bfloat16 as bfloat16, with the
fingerprint they had, for whatever computes them: another export, or another runtime.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# The package registers the layers that encoders may contain.
from tfreid.networks import archive
from tfreid.serving import errors, versions
from tfreid.serving.folding import FoldedEncoder

# Of a version: layers and settings of its encoders.
FILE = 'encoders.json'

_GOLDEN = f'{versions.EXTRA}/golden.json'
_CHECKPOINT = os.path.join('variables', 'variables')
_WEIGHT = '{}_encoder/weights/{}/.ATTRIBUTES/VARIABLE_VALUE'


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


def parts(directory: str) -> dict[str, Any]:
  """What the encoders of a version are made of, as `Encoders.to_json` has it.

  Raises:
    ValueError: it was exported before exports kept them, or the file is damaged.
  """
  if not os.path.isfile(os.path.join(directory, versions.EXTRA, FILE)):
    raise ValueError(
      f"'{directory}' was exported by an earlier version of tfreid, which did not keep what "
      f'its encoders are made of ({FILE}). Export it once more from its training run '
      '(`tfreid export --space=…`, with the same precision): its concepts stay the same, so an '
      'index that was made with it can be used with the new one.'
    )
  return read_json(directory, FILE)


def read(directory: str) -> Encoders:
  """The encoders, with variables of their own, in the scope of a strategy if there is one.

  Args:
    directory: of the version.

  Raises:
    ValueError: it keeps none, a file is damaged, or they are not those that were exported.
  """
  versions.check(directory)
  kept = parts(directory)
  known = str(read_json(directory, 'model.json').get('fingerprint'))
  for side in Encoders._fields:
    _check_layers(directory, kept, side)
  try:
    checkpoint = tf.train.load_checkpoint(os.path.join(directory, _CHECKPOINT))
    encoders = Encoders(*(_encoder(checkpoint, side, kept[side]) for side in Encoders._fields))
  except (tf.errors.OpError, LookupError, TypeError, ValueError, RuntimeError) as error:
    raise damaged(directory, 'variables', errors.plain(str(error))) from error
  if encoders.fingerprint != known:
    raise damaged(
      directory,
      'variables',
      f'the encoders have the fingerprint {encoders.fingerprint[:12]}, and model.json says '
      f'{known[:12]}',
    )
  return encoders


def crops(directory: str) -> list[bytes]:
  """The encoded crops that a version was checked with when it was exported, two at most.

  Args:
    directory: of the version.

  Raises:
    ValueError: its golden requests are damaged.
  """
  try:
    for entry in versions.read_json(directory, _GOLDEN)['golden']:
      if entry['request']['signature_name'] == 'embed_images':
        return [
          base64.b64decode(instance['image_bytes']['b64'])
          for instance in entry['request']['instances']
        ]
  except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
    raise damaged(directory, 'golden.json', error) from error
  return []


def read_json(directory: str, name: str) -> dict[str, Any]:
  """A file of assets.extra.

  Raises:
    ValueError: it is damaged or not there.
  """
  try:
    return versions.read_json(directory, f'{versions.EXTRA}/{name}')
  except OSError as error:
    raise damaged(directory, name, error) from error


def damaged(directory: str, name: str, error: object) -> ValueError:
  """What to raise for a file of a version that is not what it should be."""
  return ValueError(
    f"The exported model '{directory}' is damaged ({name}: {error}). Copy it again, or "
    'export it again.'
  )


def _check_layers(directory: str, kept: Mapping[str, Any], side: str) -> None:
  """Refuses layers that could hold code, before Keras sees them."""
  path = os.path.join(directory, versions.EXTRA, FILE)
  try:
    structure = json.loads(kept[side]['structure'])
    kind, config = structure['class_name'], structure['config']
  except (LookupError, TypeError, ValueError) as error:
    raise damaged(directory, FILE, error) from error
  if kind != 'Functional':
    raise ValueError(f"'{path}' is refused: an encoder is a functional model, not a '{kind}'.")
  archive.check(config, path)


def _encoder(checkpoint: Any, side: str, part: Mapping[str, Any]) -> FoldedEncoder:
  return FoldedEncoder.restored(
    part['structure'],
    [checkpoint.get_tensor(_WEIGHT.format(side, i)) for i in range(part['num_weights'])],
    precision=part['precision'],
    num_folded=part['num_folded'],
    num_kept=part['num_kept'],
  )
