"""The annotation file of synthetic people: market_attribute.mat, with the real file's structs."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import scipy.io

from tfreid.data.synthetic import population


def annotation_file(people: population.Population) -> bytes:
  """Returns the content of market_attribute.mat: a 1x1 struct of two, test before train."""
  tables = np.empty((1, 1), dtype=[('test', object), ('train', object)])
  tables['test'][0, 0] = _table(people.test, population.TEST_COLUMNS)
  tables['train'][0, 0] = _table(people.train, population.TRAIN_COLUMNS)
  buffer = io.BytesIO()
  scipy.io.savemat(buffer, {'market_attribute': tables}, do_compression=True)
  content = bytearray(buffer.getvalue())
  # The first 116 bytes are a text for people, into which scipy writes the time of day.
  content[:116] = b'MATLAB 5.0 MAT-file, synthetic people'.ljust(116)
  return bytes(content)


def _table(people: Sequence[population.Person], columns: Sequence[str]) -> np.ndarray:
  """Returns one split's struct: uint8 [1, P] for each column, then image_index, object [1, P]."""
  table = np.empty((1, 1), dtype=[(name, object) for name in (*columns, 'image_index')])
  raw = [person.attributes.raw() for person in people]
  for name in columns:
    table[name][0, 0] = np.array([[values[name] for values in raw]], np.uint8)
  ids = np.empty((1, len(people)), dtype=object)
  for i, person in enumerate(people):
    ids[0, i] = np.array([person.person_id])
  table['image_index'][0, 0] = ids
  return table
