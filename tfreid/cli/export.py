"""Exports a joint space with a gallery: a SavedModel that answers queries. Checks one, too.

  tfreid export --space=runs/a2img/joint/space --out=saved_models/market \\
    --dataset=market1501 --data_root=/data/market1501
  tfreid export --model=saved_models/demo --index=indexes/depot --out=saved_models/depot
  tfreid export --model=saved_models/demo --images=/data/my_crops --out=saved_models/mine
  tfreid export --space=runs/a2img/joint/space --out=saved_models/people --empty_gallery
  tfreid export --check=saved_models/depot
  tfreid export --check=saved_models/depot --server=grpc://localhost:8500

The encoders come from a training run (--space) or from a model that was exported before (--model);
the gallery is the test split of a data set, a folder of crops (JPEG or PNG, subfolders too), or
what an index holds that was made with these encoders. With --empty_gallery there is none: such a
model is for indexes, which keep the concepts of the crops themselves. The version is written whole
or not at all, after it was checked against the encoders it was made from. The same command writes
the next version when the gallery has changed, and a server takes it over.

--check asks the golden requests of a version, of this TensorFlow or of a server, and ends with exit
code 0 if the answers are those of the export, within the tolerance that was put down with them.
"""

from __future__ import annotations

import contextlib
import os
import sys

from absl import app, flags

from tfreid.cli import configuration, gin_flags, startup

flags.adopt_module_key_flags(gin_flags)
_SPACE = flags.DEFINE_string(
  'space', None, "Encoders: the 'space' folder of a finished stage, <run>/<stage>/space."
)
_MODEL = flags.DEFINE_string(
  'model',
  None,
  'Encoders: an exported model, the folder of a version or of the model (newest version). With '
  '--index it may be left out: then it is the one that the index was built with.',
)
_OUT = flags.DEFINE_string(
  'out', None, 'Folder of the model, e.g. saved_models/market; a version is added.'
)
_DATASET = flags.DEFINE_string(
  'dataset', None, 'Gallery: name of a file in gin/datasets/: market1501, dukemtmc, peta, …'
)
_DATA_ROOT = flags.DEFINE_string('data_root', None, 'With --dataset: where the data set is.')
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], 'Options of the loader, e.g. \'SPLIT = "sal"\'. Repeatable.'
)
flags.DEFINE_alias('gin_param', 'gin_bindings')
_IMAGES = flags.DEFINE_string('images', None, 'Gallery: a folder of crops.')
_INDEX = flags.DEFINE_string(
  'index', None, 'Gallery: an index of `tfreid index`; its crops are not embedded again.'
)
_EMPTY = flags.DEFINE_bool(
  'empty_gallery',
  False,
  'No gallery: the encoders alone, for `tfreid index`. What is checked are crops of drawn people.',
)
_VERSION = flags.DEFINE_integer(
  'version', None, 'Number of the version; the next free one if not given.', lower_bound=1
)
_TOP_K = flags.DEFINE_integer('top_k', 100, 'Results of an answer, at most.', lower_bound=1)
_PRECISION = flags.DEFINE_enum(
  'precision',
  'float32',
  ['float32', 'bfloat16'],
  'With --space: of the image encoder. bfloat16 is for processors that have instructions for it; '
  'docs/serving.md says when, and what it costs. With --model it is that of the model.',
)
_GALLERY_PRECISION = flags.DEFINE_enum(
  'gallery_precision',
  'float32',
  ['float32', 'bfloat16'],
  'Of the scan of the gallery; the answers are those of float32 either way.',
)
_TOLERANCE = flags.DEFINE_float(
  'tolerance',
  None,
  'Greatest relative error of a concept, if not the default (1e-4 in float32, 3e-2 in bfloat16); '
  'with --check, of all answers, if not what was put down at the export.',
  lower_bound=0.0,
)
_FLIP_TEST = flags.DEFINE_bool(
  'flip_test',
  False,
  'The exported model embeds each crop as it is and as in a mirror, and takes the mean: better '
  'answers for twice the time of embedding. An index has to be built anew for it.',
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
_CHECK = flags.DEFINE_string(
  'check', None, 'Instead of exporting: the version, or the model (newest version), to check.'
)
_SERVER = flags.DEFINE_string(
  'server',
  None,
  'With --check: address of the TF Serving to ask, grpc://host:8500 or http://host:8501, with TLS '
  'grpcs:// or https://.',
)
_MODEL_NAME = flags.DEFINE_string(
  'model_name', None, "With --server: name of the model there; by default its folder's."
)
_CERTIFICATE = flags.DEFINE_string(
  'certificate', '', "With --server: PEM file of the authority that signed the server's."
)
_TIMEOUT = flags.DEFINE_float(
  'timeout', 30.0, 'With --server: seconds to wait for an answer.', lower_bound=0.001
)


def main(argv):
  """Checks a version, or gets encoders and gallery together and writes one."""
  startup.no_arguments(argv)
  if _CHECK.value:
    making = (_SPACE, _MODEL, _OUT, _DATASET, _DATA_ROOT, _IMAGES, _INDEX, _EMPTY, _VERSION)
    for flag in (*making, _FLIP_TEST):
      if flag.present:
        raise app.UsageError(f'--check writes nothing: there is no use for --{flag.name}.')
    for other in (_MODEL_NAME, _CERTIFICATE, _TIMEOUT):
      if other.present and not _SERVER.value:
        raise app.UsageError(f'--{other.name} needs --server: it is about a model of a TF Serving.')
    with startup.clear_errors():
      sys.exit(_check())
  if _SERVER.value:
    raise app.UsageError('--server is asked by --check=DIRECTORY of the version it serves.')
  if _SPACE.value and _MODEL.value:
    raise app.UsageError('Give the encoders once: --space of a training run, or --model.')
  if not (_SPACE.value or _MODEL.value or _INDEX.value):
    raise app.UsageError(
      'Give the encoders: --space of a training run, or --model, a model exported before.'
    )
  galleries = (_DATASET.value, _IMAGES.value, _INDEX.value, _EMPTY.value)
  if sum(map(bool, galleries)) != 1:
    raise app.UsageError(
      'Give the gallery: either --dataset and --data_root, or --images, or --index; or '
      '--empty_gallery for none.'
    )
  if _DATASET.value and _DATA_ROOT.value is None:
    raise app.UsageError('With --dataset give --data_root, the folder that holds the data.')
  if _FLIP_TEST.value and _INDEX.value:
    raise app.UsageError(
      '--flip_test changes what a crop becomes, and --index takes the crops as they were embedded. '
      'Give --images or --empty_gallery, and build the index anew with the exported model.'
    )
  if not _OUT.value:
    raise app.UsageError('Give --out, the folder of the model that gets the new version.')
  with startup.clear_errors():
    try:
      _export()
    except KeyboardInterrupt:
      print('\nInterrupted. No version was written.', file=sys.stderr)
      sys.exit(130)


def _export():
  from rich.console import Console

  from tfreid.serving import export, versions

  # Names are not markup: a folder may be called [bold].
  console = Console(highlight=False, soft_wrap=True, markup=False)
  out = startup.given(_OUT)
  version = _VERSION.value or versions.next_number(out)
  versions.check_number(out, version)  # before minutes are spent on the gallery
  with contextlib.ExitStack() as stack:
    if _INDEX.value:
      import tfreid.index

      # Open until the end: what is known of its crops is read while it is written.
      index = stack.enter_context(tfreid.index.open(_INDEX.value))
      gallery, options = _from_index(index)
    elif _EMPTY.value:
      gallery, options = _without_gallery()
    else:
      gallery, options = _from_files(console)
    stack.enter_context(console.status('Writing the model and checking it'))
    where = export.export(
      directory=out,
      version=version,
      top_k=_TOP_K.value,
      tolerance=_TOLERANCE.value,
      **gallery._asdict(),
      **options,
    )
  _say(console, where)


def _original(directory=None):
  """The encoders that were asked for.

  Args:
    directory: of an exported model, where neither --space nor --model says which.

  Returns:
    The space, a function that makes its encoders, what model.json says of its origin, and the
    schema.
  """
  from tfreid.data.attributes import AttributeSchema
  from tfreid.joint_space import JointSpace
  from tfreid.serving import export

  if _SPACE.value:
    about = JointSpace.metadata(_SPACE.value)
    schema = AttributeSchema.from_json(about['schema']) if about.get('schema') else None
    space = JointSpace.load(_SPACE.value)
    origin = {key: about[key] for key in ('dataset', 'method', 'stage') if key in about}
    if _FLIP_TEST.value:
      space, origin = space.with_flip_test(), {**origin, 'flip_test': True}
    return space, lambda: export.encoders(space, precision=_PRECISION.value), origin, schema
  from tfreid.serving.exported_space import ExportedSpace

  exported = ExportedSpace(_MODEL.value or directory, flip_test=_FLIP_TEST.value)
  precision = exported.about.get('precision')
  if _PRECISION.present and _PRECISION.value != precision:
    raise ValueError(
      f"'{exported.directory}' was exported in {precision}, and an export that is made from it has "
      f'the same encoders. For {_PRECISION.value} export from the training run (--space).'
    )
  return exported, exported.encoders, exported.origin, exported.schema


def _gallery_precision(space):
  """As asked for; else as in the exported model that is the source."""
  if _GALLERY_PRECISION.present or _SPACE.value:
    return _GALLERY_PRECISION.value
  return space.about.get('gallery_precision', _GALLERY_PRECISION.value)


def _from_files(console):
  """The gallery of a data set or a folder, which is embedded, and further arguments of `export`."""
  from tfreid import replicas
  from tfreid.data import attributes
  from tfreid.serving import export, galleries

  strategy = replicas.local(_DEVICES.value)
  space, make_encoders, origin, schema = _original()
  if _DATASET.value:
    benchmark = _benchmark(schema)
    attributes.check_same_columns(
      schema,
      benchmark.schema,
      advice='Export it with --images, which needs no attributes, or with a data set that has the '
      'same.',
    )
    schema = schema or benchmark.schema
    files = galleries.files_of_split(benchmark.test, benchmark.schema)
  else:
    files = galleries.files_below(startup.given(_IMAGES))
  encoders = make_encoders()
  # On each device, and again: what is exported keeps its variables in one place.
  if strategy.num_replicas_in_sync > 1:
    with strategy.scope():
      embedding = make_encoders().image
  else:
    embedding = encoders.image
  with _bar('Embedding the gallery', len(files.paths)) as progress:
    gallery = galleries.embedded(
      files,
      embedding,
      root=os.path.abspath(_DATA_ROOT.value or startup.given(_IMAGES)),
      num_crops=export.NUM_PARITY_CROPS,
      batch_size=_BATCH_SIZE.value,
      skip_bad=_BAD.value == 'skip',
      progress=progress,
      strategy=strategy,
    )
  if len(gallery.ids) < len(files.paths):
    left_out = len(files.paths) - len(gallery.ids)
    console.print(f'Left out, unreadable: {left_out} of {len(files.paths)} files.')
  return gallery, {
    'space': space,
    'encoders': encoders,
    'schema': schema,
    'gallery_precision': _gallery_precision(space),
    'about': origin,
  }


def _benchmark(schema):
  """The data set that the flags name, in the encoding of the encoders where they have one."""
  return configuration.dataset(
    [f'datasets/{_DATASET.value}.gin'],
    given=[
      f'DATA_ROOT = {_DATA_ROOT.value!r}',
      f'ENCODING = {(schema.encoding if schema else "binary")!r}',
      'VALIDATION_SHARE = 0.0',
      'VALIDATION_SEED = 0',
    ],
    bindings=_GIN_BINDINGS.value,
    allow_imports=gin_flags.allow_imports(),
  )


def _without_gallery():
  """No crop, and further arguments of `export`."""
  from tfreid.serving import export, galleries

  space, make_encoders, origin, schema = _original()
  encoders = make_encoders()
  gallery = galleries.empty(encoders, num_crops=export.NUM_PARITY_CROPS)
  return gallery, {'space': space, 'encoders': encoders, 'schema': schema, 'about': origin}


def _from_index(index):
  """The gallery of an index, whose concepts are taken as they are, and arguments of `export`."""
  import types

  from tfreid.index import trust, writer
  from tfreid.serving import export, galleries

  state = index.engine.state
  space, make_encoders, origin, schema = _original(trust.model_path(state, index.directory))
  encoders = make_encoders()
  where = _SPACE.value or space.directory
  writer.check_model(
    state, types.SimpleNamespace(fingerprint=encoders.fingerprint, directory=where)
  )
  gallery = galleries.of_index(index, num_crops=export.NUM_PARITY_CROPS)
  if not gallery.crops and not _SPACE.value:
    gallery = gallery._replace(crops=space.crops())
  if not gallery.crops:
    raise ValueError(
      f"Of the crops of '{_INDEX.value}' none is at hand as it was embedded, and an export is "
      'checked on real crops. Bring the files back to where they were, or export from a model '
      '(--model), which has some with it.'
    )
  return gallery, {
    'space': space,
    'encoders': encoders,
    'schema': schema,
    'gallery_precision': _gallery_precision(space),
    'about': {
      **origin,
      'index': index.directory,
      'index_generation': state['generation'],
    },
  }


@contextlib.contextmanager
def _bar(what, total):
  """A progress bar; yields the function (done, count) that moves it."""
  import rich.progress
  from rich.console import Console

  with rich.progress.Progress(
    *rich.progress.Progress.get_default_columns(),
    rich.progress.MofNCompleteColumn(),
    console=Console(stderr=True),
  ) as bar:
    task = bar.add_task(what, total=total)
    yield lambda done, count: bar.update(task, completed=done)


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
  original = facts.get('exported_from', 'the trained encoder')
  if facts.get('flip_test'):
    original += ' with the flip test'
  if not facts['gallery_size']:
    console.print(
      f'Exported {where} ({size / 2**20:.1f} MiB): no gallery, {facts["embedding_size"]} '
      f'dimensions, {facts["folded_batch_norms"]} batch norms folded. Checked on '
      f'{parity["crops"]} drawn crops: the concepts differ from those of {original} by '
      f'{parity["image_error"]:.1g} of their length (tolerance {parity["image_tolerance"]:g}).'
    )
    console.print(f'Use it: tfreid index build --model={where} --source=FOLDER --index=INDEX')
    return
  console.print(
    f'Exported {where} ({size / 2**20:.1f} MiB): {facts["gallery_size"]} crops in '
    f'{facts["embedding_size"]} dimensions, {facts["num_results"]} results per query, '
    f'{facts["folded_batch_norms"]} batch norms folded.'
  )
  console.print(
    f'Checked on {parity["crops"]} crops: the concepts differ from those of {original} by '
    f'{parity["image_error"]:.1g} of their length (tolerance {parity["image_tolerance"]:g}); the '
    'ranking is that of a full sort.'
  )
  console.print(f'Search it: tfreid search --model={where} "woman, red top"')


def _check():
  """Asks the golden requests again; prints what came of it and returns the exit code."""
  from tfreid.serving import versions

  directory = versions.newest(os.path.abspath(os.path.expanduser(startup.given(_CHECK))))
  if versions.check(directory, variables=True):
    print(f'{"ok":8}{"files":18}as they were written')
  else:
    print(f'{"":8}{"files":18}no checksums: exported by an earlier version of tfreid')
  if _SERVER.value:
    name = _MODEL_NAME.value or os.path.basename(os.path.dirname(directory))
    outcomes, asked = _replay_on_server(directory, name)
  else:
    from tfreid.serving import golden

    outcomes = golden.replay(directory, golden.loaded(directory), tolerance=_TOLERANCE.value)
    asked = directory
  for outcome in outcomes:
    said = outcome.problem or (
      f'as at the export; deviation {outcome.deviation:.1g}, tolerance {outcome.tolerance:g}'
    )
    print(f'{"DIFFERS" if outcome.problem else "ok":8}{outcome.signature:18}{said}')
  wrong = sum(bool(outcome.problem) for outcome in outcomes)
  if wrong:
    print(f'{asked} does not answer as at the export: {wrong} of {len(outcomes)} signatures.')
    return 1
  print(f'{asked} answers as at the export: {len(outcomes)} signatures.')
  return 0


def _replay_on_server(directory, name):
  """Outcomes of a server, and what was asked there."""
  from tfreid.search import client
  from tfreid.serving import golden

  # The golden answers are those of this version, whichever is the newest there.
  number = os.path.basename(directory)
  version = int(number) if number.isdecimal() else None
  with client.connect(
    startup.given(_SERVER),
    name,
    version=version,
    timeout=_TIMEOUT.value,
    certificate=_CERTIFICATE.value,
  ) as server:
    outcomes = golden.replay(directory, server.predict, tolerance=_TOLERANCE.value)
  return outcomes, f'{name}{"" if version is None else f" {version}"} at {_SERVER.value}'
