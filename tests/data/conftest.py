"""What the tests of the data share: crops on disk and annotation files in the published form."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import scipy.io
from PIL import Image


@pytest.fixture(scope='session')
def write_crops():
  """Writes tiny JPEGs: `write_crops(folder, names)`, the folder is made."""
  buffer = io.BytesIO()
  Image.new('RGB', (4, 8), (200, 30, 30)).save(buffer, 'JPEG')

  def write(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
      (folder / name).write_bytes(buffer.getvalue())

  return write


@pytest.fixture(scope='session')
def write_attribute_mat():
  """Writes frames (index: person id) as Market and Duke publish them: a struct per half."""

  def write(path, variable, frames):
    halves = {}
    for half, frame in frames.items():
      people = np.empty((1, len(frame)), object)
      people[0, :] = list(frame.index)
      halves[half] = {
        **{column: frame[column].to_numpy()[None] for column in frame},
        'image_index': people,
      }
    scipy.io.savemat(path, {variable: halves}, do_compression=True)

  return write


@pytest.fixture
def no_frames():
  """Frames in which everybody has the first legal value: `no_frames(schema, people)`."""

  def make(schema, people):
    values = {raw: [legal[0]] * len(people) for raw, legal in schema.raw_values.items()}
    return pd.DataFrame(values, index=pd.Index(people, dtype=object))

  return make
