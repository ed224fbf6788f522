"""Where the gallery of an export comes from: a split, a folder, an index, or nowhere. Floor 4."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from tfreid import image_bytes
from tfreid.data import folders, synthetic
from tfreid.serving.encoders import Crop, Progress, embed_files

if TYPE_CHECKING:
  import tensorflow as tf

  from tfreid.data.attributes import AttributeSchema
  from tfreid.data.benchmark import Split
  from tfreid.serving.folding import FoldedEncoder
  from tfreid.serving.stored_encoders import Encoders

_log = logging.getLogger(__name__)
_Value = TypeVar('_Value')

# Facts of a row of an export that fields of an index must not stand for.
_RESERVED = ('id', 'path', 'attributes')


class Files(NamedTuple):
  """Image files that are to be a gallery.

  Attributes:
    paths: absolute.
    rows: a dict of JSON-able facts about each.
  """

  paths: list[str]
  rows: list[dict[str, Any]]


class Gallery(NamedTuple):
  """What `export.export` takes under these names, and checks the encoders on.

  Attributes:
    gallery: float32 [N, E], concepts.
    ids: N different strings.
    crops: real ones, to compare the encoders on; perhaps none.
    rows: N dicts of JSON-able facts, which may be read once; None where there are none.
  """

  gallery: np.ndarray
  ids: list[str]
  crops: list[Crop]
  rows: Iterable[Mapping[str, Any]] | None = None


def files_of_split(split: Split, schema: AttributeSchema) -> Files:
  """The files of a split, with person, camera and attributes.

  Args:
    split: of a data set.
    schema: of its attributes.
  """
  paths = [os.path.abspath(path) for path in split.paths]
  rows = [
    {
      'path': path,
      'person_id': str(person),
      'camera': int(camera),
      'attributes': schema.describe(vector),
    }
    for path, person, camera, vector in zip(
      paths, split.person_ids, split.cameras, split.attributes
    )
  ]
  return Files(paths, rows)


def files_below(folder: str) -> Files:
  """The image files below a folder, sorted; all that is known of them are their paths.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: it holds no image.
  """
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"There is no folder '{folder}'. Give one that holds person crops.")
  images = folders.ImageFolder(os.path.abspath(folder))
  paths = [os.path.join(images.folder, name) for name in images]
  if images.left_out:
    _log.warning("Left out of '%s': %s.", folder, images.told())
  if not paths:
    raise ValueError(
      f"'{folder}' holds no image: no file ends in {', '.join(image_bytes.ENDINGS)}."
    )
  return Files(paths, [{'path': path} for path in paths])


def embedded(
  files: Files,
  encoder: FoldedEncoder,
  *,
  root: str,
  num_crops: int,
  batch_size: int = 32,
  skip_bad: bool = False,
  progress: Progress | None = None,
  strategy: tf.distribute.Strategy | None = None,
) -> Gallery:
  """A gallery of files.

  Args:
    files: to embed.
    encoder: pixels -> concepts.
    root: the folder that ids are relative to.
    num_crops: to check the encoders on, spread evenly over the gallery.
    batch_size: as `embed_files`, and so the others.
    skip_bad: leave out what cannot be decoded.
    progress: called after each batch.
    strategy: in whose scope the encoder was made.

  Raises:
    ValueError: a file cannot be decoded, or none can.
  """
  gallery, kept = embed_files(
    encoder,
    files.paths,
    batch_size=batch_size,
    skip_bad=skip_bad,
    progress=progress,
    strategy=strategy,
  )
  paths = [files.paths[i] for i in kept]
  crops = []
  for path in _spread(paths, num_crops):
    with open(path, 'rb') as file:
      crops.append(Crop(path, file.read()))
  ids = [os.path.relpath(path, root).replace(os.sep, '/') for path in paths]
  return Gallery(gallery, ids, crops, [files.rows[i] for i in kept])


def empty(encoders: Encoders, *, num_crops: int) -> Gallery:
  """No crop, for models of indexes, and drawn people to check the encoders on."""
  drawn = itertools.islice(synthetic.SyntheticPeople().pictures(), num_crops)
  return Gallery(
    np.zeros((0, encoders.image.size), np.float32),
    [],
    [Crop(f'drawn crop {i}', picture) for i, picture in enumerate(drawn)],
  )


def of_index(index, *, num_crops: int) -> Gallery:
  """Concepts and ids of an index, read part by part.

  Args:
    index: a `tfreid.index.searcher.Searcher`; it keeps the state it was opened in, whatever is
      added meanwhile, and must be open until the rows have been read.
    num_crops: those, spread evenly, whose files are still as they were embedded become crops.

  Raises:
    ValueError: it holds no crop, or changed while it was read.
  """
  size, start = len(index), 0
  if not size:
    raise ValueError(f"The index '{index.directory}' holds no crop, so there is nothing to export.")
  gallery = np.empty((size, index.engine.width), np.float32)
  ids: list[str] = []
  for concepts, rows in index.engine.parts():
    if start + len(rows) > size:
      raise _changed(index)
    gallery[start : start + len(rows)] = concepts
    ids += [row.id for row in rows]
    start += len(rows)
  if start != size:
    raise _changed(index)
  crops = [
    Crop(row.path, contents)
    for row in index.engine.rows(_spread(ids, num_crops)).values()
    if (contents := row.contents()) is not None
  ]
  return Gallery(gallery, ids, crops, _facts(index))


def _facts(index) -> Iterator[dict[str, Any]]:
  for _, rows in index.engine.parts():
    for row in rows:
      yield {
        'id': row.id,
        **{name: value for name, value in row.fields.items() if name not in _RESERVED},
        'path': row.path,
        'attributes': dict(row.attributes),
      }


def _changed(index) -> ValueError:
  return ValueError(
    f"The index '{index.directory}' did not hold still while it was read. Give the same command "
    'again; if nobody writes to it, run `tfreid index verify`.'
  )


def _spread(values: Sequence[_Value], count: int) -> Sequence[_Value]:
  return values[:: max(len(values) // count, 1)][:count]
