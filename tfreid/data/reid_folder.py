"""Folders of person crops as Market-1501 and DukeMTMC-reID lay them out. Floor 1.

Both keep their crops in `bounding_box_train`, `bounding_box_test` and `query`, write person and
camera into the file name, and are annotated by a .mat file with one struct per half.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io

from tfreid.data.attributes import AttributeSchema, AttributeTable
from tfreid.data.benchmark import Benchmark, ImageRecord, assemble, join

_log = logging.getLogger(__name__)

TRAIN, TEST, QUERY = 'bounding_box_train', 'bounding_box_test', 'query'
PERSON_COLUMN = 'image_index'


def check_root(root: str | os.PathLike, *, name: str) -> Path:
  """The data set's folder, once it is known to hold the three folders of crops.

  Args:
    root: what the user gave; '~' is expanded.
    name: of the data set, for the message.

  Raises:
    FileNotFoundError: the folder, or one of the three in it, is missing.
  """
  root = Path(root).expanduser()
  if not root.is_dir():
    raise FileNotFoundError(
      f"{name}: there is no folder '{root}'. Set DATA_ROOT to the folder that holds '{TRAIN}'."
    )
  missing = [folder for folder in (TRAIN, TEST, QUERY) if not (root / folder).is_dir()]
  if missing:
    nested = [d for d in sorted(root.iterdir()) if (d / TRAIN).is_dir()]
    advice = (
      f"'{nested[0]}' has it: set DATA_ROOT to that."
      if nested
      else 'Set DATA_ROOT to the folder that holds it.'
    )
    raise FileNotFoundError(
      f"{name} has no '{missing[0]}' under {root} (found: {_listing(root)}). {advice}"
    )
  return root


def _listing(folder: Path, limit: int = 5) -> str:
  # Folders first: among them is what the user meant.
  entries = sorted(folder.iterdir(), key=lambda entry: (not entry.is_dir(), entry.name))
  shown = ', '.join(f"'{entry.name}'" for entry in entries[:limit]) or 'nothing'
  return shown if len(entries) <= limit else f'{shown} and {len(entries) - limit} more'


def scan(
  folder: Path, pattern: re.Pattern, *, name: str, ignored: Mapping[str, str] | None = None
) -> tuple[list[ImageRecord], dict[str, int]]:
  """The crops of one folder, in order of their file names.

  Args:
    folder: holds the crops.
    pattern: of a crop's file name, with the group 'person' and, if it tells one, 'camera'.
    name: of the data set, for the message.
    ignored: person ids that are no people, with the reason: they are left out and counted.

  Returns:
    The crops, and how many files were left out, by reason ('Thumbs.db' is 'not a crop (.db)').

  Raises:
    ValueError: no file in the folder has the name of a crop.
  """
  ignored = ignored or {}
  records: list[ImageRecord] = []
  dropped: dict[str, int] = {}
  names = sorted(os.listdir(folder))
  for file_name in names:
    match = pattern.fullmatch(file_name)
    reason = not_a_crop(file_name) if match is None else ignored.get(match['person'])
    if reason is not None:
      dropped[reason] = dropped.get(reason, 0) + 1
    elif match is not None:
      path = os.path.join(folder, file_name)
      camera = int(match['camera']) if 'camera' in pattern.groupindex else 0
      records.append(ImageRecord(path, match['person'], camera))
  if not records and not set(dropped) & set(ignored.values()):
    contents = f"{len(names)} other files, '{names[0]}' first" if names else 'nothing'
    raise ValueError(
      f"{name}: '{folder}' holds no crops (found: {contents}). "
      'Unpack the images into it with the file names they were published with.'
    )
  return records, dropped


def not_a_crop(file_name: str) -> str:
  """Why a file without the name of a crop is left out; with its ending, so that HEIC is seen."""
  ending = os.path.splitext(file_name)[1].lower()
  return f'not a crop ({ending})' if ending else 'not a crop'


def read_mat(path: str | os.PathLike, variable: str) -> np.ndarray:
  """One variable of a MATLAB file, an array with no superfluous dimensions.

  Args:
    path: of the .mat file (version 7 or older).
    variable: its name.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it cannot be read or lacks the variable.
  """
  path = Path(path).expanduser()
  if not path.is_file():
    raise FileNotFoundError(
      f"There is no annotation file '{path}'. Put '{path.name}' there, or set `annotations` to it."
    )
  try:
    content = scipy.io.loadmat(path, squeeze_me=True)
  except NotImplementedError as error:
    raise ValueError(
      f"'{path}' is a MATLAB 7.3 file, which cannot be read here. Save it again with '-v7'."
    ) from error
  except Exception as error:  # scipy's parser raises whatever it stumbles over in a damaged file
    raise ValueError(
      f"'{path}' is not a readable MATLAB file ({error}). Copy or download it again."
    ) from error
  if variable not in content:
    keys = sorted(key for key in content if not key.startswith('__'))
    raise ValueError(
      f"'{path}' has no variable '{variable}' (found: {', '.join(keys) or 'none'}). "
      'Is it the annotation file of another data set?'
    )
  return np.asarray(content[variable])


def read_attribute_mat(path: str | os.PathLike, variable: str) -> dict[str, pd.DataFrame]:
  """The two annotation tables of a Market-1501 or DukeMTMC attribute file.

  Structs and columns are found by name: the files disagree on the order of both, Market's two
  halves at 23 of their 27 columns.

  Args:
    path: of the .mat file.
    variable: the MATLAB variable in it, for example 'market_attribute'.

  Returns:
    'train' and 'test', each a DataFrame of integers with the file's columns in the file's order,
    and the person id (str, as in the names of the crops) as its index. Values are not interpreted.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it cannot be read, or lacks the variable, a struct or the person ids, or its
      columns are of different lengths or not whole numbers.
  """
  structs = read_mat(path, variable)
  frames = {}
  for half in ('train', 'test'):
    if structs.dtype.names is None or half not in structs.dtype.names:
      raise ValueError(
        f"'{path}': '{variable}' has no struct '{half}' "
        f'(found: {", ".join(structs.dtype.names or ()) or "none"}).'
      )
    frames[half] = _frame(structs[half].item(), source=f"{path} ('{half}')")
  return frames


def _frame(struct: Any, *, source: str) -> pd.DataFrame:
  struct = np.asarray(struct)
  names = struct.dtype.names or ()
  if PERSON_COLUMN not in names:
    raise ValueError(
      f"{source} has no column '{PERSON_COLUMN}' with the person ids "
      f'(found: {", ".join(names) or "none"}).'
    )
  people = [str(person) for person in np.atleast_1d(struct[PERSON_COLUMN].item())]
  columns = {}
  for column in names:
    if column == PERSON_COLUMN:
      continue
    values = np.atleast_1d(struct[column].item())
    if values.shape != (len(people),):
      raise ValueError(
        f"{source}: column '{column}' has {values.size} values for {len(people)} people."
      )
    if values.dtype.kind not in 'uif' or not np.all(np.mod(values, 1) == 0):
      raise ValueError(f"{source}: column '{column}' must hold whole numbers only.")
    columns[column] = values.astype(np.int64)
  return pd.DataFrame(columns, index=pd.Index(people, name='person_id', dtype=object))


def load_benchmark(
  root: Path,
  frames: Mapping[str, pd.DataFrame],
  *,
  name: str,
  schema: AttributeSchema,
  pattern: re.Pattern,
  source: str | os.PathLike,
  ignored: Mapping[str, str] | None = None,
  validation_share: float = 0.0,
  seed: int = 0,
) -> Benchmark:
  """The Benchmark of a folder: training crops, and a gallery of test and query crops together.

  Args:
    root: as `check_root` returned it.
    frames: as `read_attribute_mat` returned them.
    name: of the data set.
    schema: of its annotations, in the encoding that is wanted.
    pattern: of a crop's file name, see `scan`.
    source: the annotation file, for messages.
    ignored: person ids that are no people, see `scan`.
    validation_share: see `benchmark.assemble`.
    seed: see `benchmark.assemble`.

  Raises:
    ValueError: an annotation does not fit the schema, or a split is empty.
  """
  tables = {
    half: AttributeTable(schema, frames[half], source=f"{source} ('{half}')")
    for half in ('train', 'test')
  }
  train, train_dropped = scan(root / TRAIN, pattern, name=name, ignored=ignored)
  test, test_dropped = scan(root / TEST, pattern, name=name, ignored=ignored)
  query, query_dropped = scan(root / QUERY, pattern, name=name, ignored=ignored)

  # A crop that someone copied into both folders must not be found twice.
  in_test = {os.path.basename(record.path) for record in test}
  unique = [record for record in query if os.path.basename(record.path) not in in_test]
  if len(unique) < len(query):
    query_dropped['query crop that is in the gallery already'] = len(query) - len(unique)
  for reason, count in query_dropped.items():
    test_dropped[reason] = test_dropped.get(reason, 0) + count

  return assemble(
    name,
    schema,
    join(train, tables['train'], source=f'{name} train', dropped=train_dropped),
    join(test + unique, tables['test'], source=f'{name} test', dropped=test_dropped),
    validation_share=validation_share,
    seed=seed,
  )
