#!/usr/bin/env python3
"""Exports a trained joint space with a gallery: a SavedModel that answers queries.

  tools/export.py --space=runs/a2img/joint/space --out=saved_models/market \\
    --dataset=market1501 --data_root=/data/market1501
  tools/export.py --space=runs/a2img/joint/space --out=saved_models/mine --images=/data/my_crops

The gallery is the test split of a data set, or a folder of crops (JPEG or PNG, subfolders too).
The version is written whole or not at all, after it was checked against the trained encoders.
"""

from __future__ import annotations

import os

from absl import app, flags

import _tool

_SPACE = flags.DEFINE_string(
  'space', None, "The 'space' folder of a finished stage, <run>/<stage>/space.", required=True
)
_OUT = flags.DEFINE_string(
  'out', None, 'Folder of the model, e.g. saved_models/market; a version is added.', required=True
)
_DATASET = flags.DEFINE_string(
  'dataset', None, 'Name of a file in gin/datasets/: market1501, dukemtmc, peta, …'
)
_DATA_ROOT = flags.DEFINE_string('data_root', None, 'Where the data set is.')
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], 'Options of the loader, e.g. \'SPLIT = "sal"\'. Repeatable.'
)
flags.DEFINE_alias('gin_param', 'gin_bindings')
_IMAGES = flags.DEFINE_string('images', None, 'A folder of crops, instead of a data set.')
_VERSION = flags.DEFINE_integer(
  'version', None, 'Number of the version; the next free one if not given.', lower_bound=1
)
_TOP_K = flags.DEFINE_integer('top_k', 100, 'Results of an answer, at most.', lower_bound=1)
_PRECISION = flags.DEFINE_enum(
  'precision', 'float32', ['float32', 'bfloat16'], 'Of the image encoder. See docs on hardware.'
)
_GALLERY_PRECISION = flags.DEFINE_enum(
  'gallery_precision',
  'float32',
  ['float32', 'bfloat16'],
  'Of the scan of the gallery; the answers are those of float32 either way.',
)
_TOLERANCE = flags.DEFINE_float(
  'tolerance', None, 'Greatest relative error of a concept, if not the default.', lower_bound=0.0
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 32, 'Images embedded together, on each device.', lower_bound=1
)
_DEVICES = flags.DEFINE_integer(
  'devices', None, 'GPUs that embed; by default all, or the CPU.', lower_bound=1
)
_BAD = flags.DEFINE_enum(
  'on_bad_image', 'error', ['error', 'skip'], 'What to do about files that cannot be decoded.'
)

SUFFIXES = ('.jpg', '.jpeg', '.png')


def benchmark_gallery(about):
  """Files of the test split and what is known of them.

  Args:
    about: what was saved with the space.

  Returns:
    Paths, rows of facts, and the schema.
  """
  import gin

  encoding = (about.get('schema') or {}).get('encoding', 'binary')
  given = [
    f'DATA_ROOT = {_DATA_ROOT.value!r}',
    f'ENCODING = {encoding!r}',
    'VALIDATION_SHARE = 0.0',
    'VALIDATION_SEED = 0',
    *_GIN_BINDINGS.value,
  ]
  _tool.configure([f'datasets/{_DATASET.value}.gin'], given)
  try:
    benchmark = gin.query_parameter('%DATASET').scoped_configurable_fn()
  except (TypeError, AttributeError) as error:
    raise ValueError(f'The configuration names no usable DATASET: {error}') from error
  split, schema = benchmark.test, benchmark.schema
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
  return paths, rows, schema


def folder_gallery(folder):
  """The image files below a folder, sorted, and what is known of them: their paths."""
  if not os.path.isdir(folder):
    raise FileNotFoundError(f"There is no folder '{folder}'. Give one that holds person crops.")
  paths = sorted(
    os.path.join(parent, name)
    for parent, _, names in os.walk(os.path.abspath(folder))
    for name in names
    if name.lower().endswith(SUFFIXES)
  )
  if not paths:
    raise ValueError(f"'{folder}' holds no image: no file ends in {', '.join(SUFFIXES)}.")
  return paths, [{'path': path} for path in paths]


def schema_of(about, other):
  """The attributes that the space was trained on; refuses a data set that has other ones."""
  from tfreid.data.attributes import AttributeSchema

  if not about.get('schema'):
    return other
  schema = AttributeSchema.from_json(about['schema'])
  if other and (schema.column_names, schema.encoding) != (other.column_names, other.encoding):
    raise ValueError(
      f'The joint space was trained on the {schema.size} {schema.encoding} attribute columns of '
      f'{schema.name}, but {other.name} has other ones ({other.size}, {other.encoding}). Export '
      'it with --images, which needs no attributes, or with a data set that has the same.'
    )
  return schema


def sample_crops(paths, count):
  """Crops spread evenly over the gallery, read as they are on disk."""
  from tfreid.serving.export import Crop

  chosen = paths[:: max(len(paths) // count, 1)][:count]
  crops = []
  for path in chosen:
    with open(path, 'rb') as file:
      crops.append(Crop(path, file.read()))
  return crops


def main(argv):
  """Embeds the gallery, then writes the version."""
  _tool.no_arguments(argv)
  if bool(_DATASET.value) == bool(_IMAGES.value):
    raise app.UsageError('Give the gallery: either --dataset and --data_root, or --images.')
  if _DATASET.value and _DATA_ROOT.value is None:
    raise app.UsageError('With --dataset give --data_root, the folder that holds the data.')
  with _tool.clear_errors():
    from rich.console import Console

    from tfreid import replicas
    from tfreid.joint_space import JointSpace
    from tfreid.serving import export

    strategy = replicas.local(_DEVICES.value)
    console = Console(highlight=False, soft_wrap=True)
    version = _VERSION.value or export.next_version(_OUT.value)
    export.check_version(_OUT.value, version)  # before minutes are spent on the gallery
    about = JointSpace.metadata(_SPACE.value)
    if _DATASET.value:
      paths, rows, schema = benchmark_gallery(about)
    else:
      (paths, rows), schema = folder_gallery(_IMAGES.value), None
    schema = schema_of(about, schema)
    root = os.path.abspath(_DATA_ROOT.value or _IMAGES.value)
    space = JointSpace.load(_SPACE.value)
    encoders = export.encoders(space, precision=_PRECISION.value)
    gallery, kept = _embed(export, space, encoders, paths, strategy)
    if len(kept) < len(paths):
      console.print(f'Left out, unreadable: {len(paths) - len(kept)} of {len(paths)} files.')
    paths, rows = [paths[i] for i in kept], [rows[i] for i in kept]
    with console.status('Writing the model and checking it'):
      where = export.export(
        space,
        _OUT.value,
        encoders=encoders,
        gallery=gallery,
        ids=[os.path.relpath(path, root).replace(os.sep, '/') for path in paths],
        crops=sample_crops(paths, export.NUM_PARITY_CROPS),
        schema=schema,
        version=version,
        top_k=_TOP_K.value,
        gallery_precision=_GALLERY_PRECISION.value,
        rows=rows,
        about={key: about[key] for key in ('dataset', 'method', 'stage') if key in about},
        tolerance=_TOLERANCE.value,
      )
    _say(console, where)


def _embed(export, space, encoders, paths, strategy):
  """Concepts of the files, with a progress bar."""
  import rich.progress
  from rich.console import Console

  if strategy.num_replicas_in_sync > 1:
    # On each device, and again: what is exported keeps its variables in one place.
    with strategy.scope():
      encoders = export.encoders(space, precision=encoders.image.precision)
  with rich.progress.Progress(
    *rich.progress.Progress.get_default_columns(),
    rich.progress.MofNCompleteColumn(),
    console=Console(stderr=True),
  ) as bar:
    task = bar.add_task('Embedding the gallery', total=len(paths))
    return export.embed_files(
      encoders.image,
      paths,
      batch_size=_BATCH_SIZE.value,
      skip_bad=_BAD.value == 'skip',
      progress=lambda done, count: bar.update(task, completed=done),
      strategy=strategy,
    )


def _say(console, where):
  import json

  with open(os.path.join(where, 'assets.extra', 'model.json'), encoding='utf-8') as file:
    facts = json.load(file)
  size = sum(
    os.path.getsize(os.path.join(folder, name))
    for folder, _, names in os.walk(where)
    for name in names
  )
  parity = facts['parity']
  console.print(
    f'Exported {where} ({size / 2**20:.1f} MiB): {facts["gallery_size"]} crops in '
    f'{facts["embedding_size"]} dimensions, {facts["num_results"]} results per query, '
    f'{facts["folded_batch_norms"]} batch norms folded.'
  )
  console.print(
    f'Checked on {parity["crops"]} crops: the concepts differ from the trained encoder by '
    f'{parity["image_error"]:.1g} of their length (tolerance {parity["image_tolerance"]:g}); the '
    'ranking is that of a full sort.'
  )
  console.print(f'Search it: tools/search.py --model={where} "woman, red top"')


if __name__ == '__main__':
  app.run(main)
