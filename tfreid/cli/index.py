"""Makes an index of crops and keeps it up to date.

  tfreid index build   --index=indexes/depot --model=saved_models/demo --source=crops/
  tfreid index add     --index=indexes/depot --source=new.csv --existing=skip
  tfreid index remove  --index=indexes/depot crops/a17.jpg crops/b02.jpg
  tfreid index info    --index=indexes/depot
  tfreid index verify  --index=indexes/depot --files
  tfreid index compact --index=indexes/depot
  tfreid index merge   --index=indexes/all indexes/part1 indexes/part2
  tfreid index merge   --index=indexes/all --engine=milvus --uri=http://milvus:19530 indexes/depot
  tfreid index trust   --index=indexes/from_elsewhere

The source is a folder, or a manifest (.csv or .jsonl) with a column `path` and whatever else is
known: id, camera, time, fields of one's own, attributes. Stopped by anything, `build` and `add` go
on where they were when the same command is given again; until it has come to its end, the index is
as it was before. Without a terminal there is a line in the log for each finished shard. Crops are
embedded on all GPUs of the machine; on several machines, `build --shard=1/4` ... `--shard=4/4`,
each of which keeps its part of the source only, then `merge`.

A model is a program. `add` and searching load the one that an index names only if this user has
built an index with it on this machine; else name it with --model, or trust what the index names.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import re
import sys
import time
from typing import TYPE_CHECKING

from absl import app, flags

from tfreid.cli import startup
from tfreid.index import engines, runtimes
from tfreid.printable import printable, printable_json

if TYPE_CHECKING:
  from rich.progress import TaskID

startup.never_trains()

# What there is to do, the first argument.
ACTIONS = {
  'build': 'makes an index of a folder of crops or of a manifest.',
  'add': 'adds the crops of a folder or a manifest.',
  'remove': 'removes crops; their ids are further arguments, or stand in the file of --ids.',
  'info': 'shows what an index holds and how it was made.',
  'verify': 'checks that an index is whole; exit code 1 if it is not.',
  'compact': 'rewrites the files of an index without what was removed, with a copy in 8 bits.',
  'merge': 'joins indexes, whose folders are further arguments, in a new one.',
  'trust': 'notes that you trust the model (and the Milvus) that an index from elsewhere names.',
}

_INDEX = flags.DEFINE_string('index', None, 'Folder of the index.')
_MODEL = flags.DEFINE_string(
  'model',
  None,
  'Exported model. For build: by default saved_models/photographs, or what TFREID_MODEL names. For '
  'add: by default where it was when the index was built.',
)
_SOURCE = flags.DEFINE_string('source', None, 'Folder of crops, or a manifest (.csv or .jsonl).')
_SHARD = flags.DEFINE_string('shard', None, 'build: only part i of n of the source, as i/n.')
_ENGINE = flags.DEFINE_enum(
  'engine', 'embedded', engines.NAMES, 'build, merge: where the crops are kept.'
)
_URI = flags.DEFINE_string(
  'uri', '', 'build, merge: of Milvus, http://host:19530, or a file; by default one in the index.'
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'build: replace an index that exists.')
_EXISTING = flags.DEFINE_enum(
  'existing', 'refuse', ['refuse', 'skip', 'replace'], 'add: crops whose id the index has already.'
)
_SKIP_CORRUPT = flags.DEFINE_bool(
  'skip_corrupt', False, 'build, add: leave out files that cannot be decoded instead of stopping.'
)
_SHARD_ROWS = flags.DEFINE_integer(
  'shard_rows', 4096, 'build, add: crops that are embedded before they are safe.', lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size',
  64,
  'build, add: crops embedded together, on each device.',
  lower_bound=1,
  upper_bound=256,  # exported models take no more at once
)
_DEVICES = flags.DEFINE_integer(
  'devices', None, 'build, add: GPUs that embed; by default all, or the CPU.', lower_bound=1
)
_RUNTIME = flags.DEFINE_enum(
  'runtime',
  'tensorflow',
  runtimes.RUNTIMES,
  'build, add: what embeds the crops. openvino is faster on processors, and needs the extra of '
  'that name.',
)
_IDS = flags.DEFINE_string('ids', None, "remove: a file with an id per line; '-' reads the input.")
_MISSING_OK = flags.DEFINE_bool('missing_ok', False, 'remove: do not mind ids that are not there.')
_FILES = flags.DEFINE_bool(
  'files', False, 'verify: also that the image files exist, unchanged, and the model as well.'
)
_JSON = flags.DEFINE_bool('json', False, 'Print JSON.')
_PROGRESS = flags.DEFINE_bool(
  'progress', True, 'Show a progress bar, or without a terminal lines in the log; not with --json.'
)

# What of the flags above is for some actions only.
_FOR = {
  **dict.fromkeys(('shard', 'overwrite'), ('build',)),
  **dict.fromkeys(('engine', 'uri'), ('build', 'merge')),
  **dict.fromkeys(('model', 'source', 'skip_corrupt', 'shard_rows'), ('build', 'add')),
  **dict.fromkeys(('batch_size', 'devices', 'runtime'), ('build', 'add')),
  'existing': ('add',),
  **dict.fromkeys(('ids', 'missing_ok'), ('remove',)),
  'files': ('verify',),
}


def options_of(action: str) -> list[str]:
  """The names of the flags that an action takes."""
  own = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])]
  return [name for name in own if action in _FOR.get(name, ACTIONS)]


def main(argv):
  """Does what the first argument says."""
  command = argv[1] if len(argv) > 1 else ''
  if command not in ACTIONS:
    near = difflib.get_close_matches(command, ACTIONS, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ''
    what = f"'{command}' is none of these.{hint}" if command else ''
    raise app.UsageError(f'Say what to do: {", ".join(ACTIONS)}. {what}'.strip())
  if not _INDEX.value:
    raise app.UsageError('Give --index=DIRECTORY.')
  if command in ('build', 'add') and not _SOURCE.value:
    raise app.UsageError('Give --source=FOLDER_OR_MANIFEST.')
  if len(argv) > 2 and command not in ('remove', 'merge'):
    raise app.UsageError(f'Unexpected argument: {argv[2]!r}.')
  for name, commands in _FOR.items():
    if flags.FLAGS[name].present and command not in commands:
      raise app.UsageError(f'--{name} is for {" and ".join(commands)}, not for {command}.')
  with startup.clear_errors():
    try:
      {
        'build': _build,
        'add': _add,
        'remove': _remove,
        'info': _info,
        'verify': _verify,
        'compact': _compact,
        'merge': _merge,
        'trust': _trust,
      }[command](argv[2:])
    except KeyboardInterrupt:
      print('\nInterrupted. The index is as it was; the same command goes on.', file=sys.stderr)
      sys.exit(130)


def _build(_):
  from tfreid.index import default_model, directory, manifest, writer

  shard = _read_shard()
  _check_engine()
  if directory.IndexDirectory(startup.given(_INDEX)).exists and not _OVERWRITE.value:
    # Before the model is loaded and the source read.
    raise FileExistsError(
      f"'{_INDEX.value}' holds an index already. Use `tfreid index add` to add crops, or "
      '--overwrite to replace it.'
    )
  manifest.check(startup.given(_SOURCE))
  model = _embedder(_MODEL.value or default_model.directory())
  if not _MODEL.value and not _JSON.value:
    print(printable(f'Model: {model.directory}', lines=False))
  rows = manifest.read(startup.given(_SOURCE), attributes=_attributes(model), part=shard)
  with _shown(len(rows)) as shown:
    report = writer.build(
      startup.given(_INDEX),
      rows,
      model,
      engine_name=_ENGINE.value,
      uri=_URI.value,
      overwrite=_OVERWRITE.value,
      shard=shard,
      **_pace(model),
      **shown,
    )
  _say(report)


def _add(_):
  from tfreid.index import directory, manifest, trust, writer

  state = directory.IndexDirectory(startup.given(_INDEX)).read()
  manifest.check(startup.given(_SOURCE))
  model = _embedder(_MODEL.value or trust.model_path(state, startup.given(_INDEX)))
  rows = manifest.read(startup.given(_SOURCE), attributes=_attributes(model))
  with _shown(len(rows)) as shown:
    report = writer.add(
      startup.given(_INDEX), rows, model, existing=_EXISTING.value, **_pace(model), **shown
    )
  _say(report)


def _remove(ids):
  from tfreid.index import writer

  ids = list(ids)
  if _IDS.value == '-':
    # Some programs begin what they pipe with a byte order mark, as they do files.
    lines = sys.stdin.read().removeprefix('\ufeff').split('\n')
    ids += [line for line in lines if line.strip()]
  elif _IDS.value:
    with open(_IDS.value, encoding='utf-8-sig') as file:
      ids += [line.rstrip('\n') for line in file if line.strip()]
  if not ids:
    raise ValueError('Name the ids to remove, or give --ids=FILE with one per line.')
  count = writer.remove(startup.given(_INDEX), ids, missing_ok=_MISSING_OK.value)
  _print({'removed': count}, f'{count} crops removed.')


def _info(_):
  import tfreid.index

  with tfreid.index.open(startup.given(_INDEX)) as index:
    facts = index.info()
  if _JSON.value:
    print(printable_json(facts))
    return
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text

  table = Table(show_header=False, box=None)
  table.add_column()
  table.add_column(overflow='fold')  # not cut: paths are long
  for name, value in facts.items():
    if isinstance(value, dict):
      value = ', '.join(
        f'{key}: {" or ".join(item) if isinstance(item, list) else item}'
        for key, item in value.items()
      )
    # As texts: in names that people gave, brackets are no markup.
    table.add_row(name, Text(f'{value:,}' if isinstance(value, int) else printable(value)))
  Console().print(table)


def _verify(_):
  import tfreid.index
  from tfreid.index.directory import IndexDirectory

  try:
    with tfreid.index.open(startup.given(_INDEX), check=False) as index:
      problems, size = index.problems(files=_FILES.value), len(index)
      copy = index.info().get('quantized', 'yes')
  except (ValueError, OSError):
    # Too damaged to be opened, or no index at all: then this fails, too.
    problems, size, copy = IndexDirectory(startup.given(_INDEX)).damage(), None, 'yes'
    if not problems:
      raise
  if _JSON.value:
    print(printable_json({'crops': size, 'problems': problems}))
  else:
    for problem in problems:
      print(printable(problem, lines=False))
    what = f'{size} crops' if size is not None else 'The index cannot be opened'
    count = f'{len(problems)} problem{"s" if len(problems) > 1 else ""}'
    print(f'{what}: {count if problems else "no problem found"}.')
    if copy != 'yes':
      print(f'Searched by a copy in 8 bits: {copy}.')
  if problems:
    sys.exit(1)


def _compact(_):
  from tfreid.index import writer

  writer.compact(startup.given(_INDEX))
  _print({}, 'Compacted: nothing of what was removed is left in the files of the index.')


def _merge(parts):
  from tfreid.index import writer

  _check_engine()
  if not parts:
    raise ValueError('Name the indexes to merge: `tfreid index merge --index=all part1 part2`')
  with _shown_stages() as progress:
    size = writer.merge(
      startup.given(_INDEX), parts, engine_name=_ENGINE.value, uri=_URI.value, progress=progress
    )
  count = f'{len(parts)} index{"es" if len(parts) > 1 else ""}'
  _print({'crops': size}, f'{size} crops of {count} in {_INDEX.value}.')


def _trust(_):
  from tfreid.index import directory, trust

  state = directory.IndexDirectory(startup.given(_INDEX)).read()
  trust.remember(state)
  named = {'model': state['model']['path'], 'fingerprint': state['model']['fingerprint']}
  if state['engine'].get('uri'):
    named['uri'] = state['engine']['uri']
  listed = ', '.join(f'{name} {value}' for name, value in named.items())
  _print(named, f'Trusted from now on, by this user on this machine: {listed}.')


def _check_engine():
  if not engines.engine_class(_ENGINE.value).outlives_process:
    raise ValueError(
      f"The engine '{_ENGINE.value}' holds its crops as long as the process runs, and this one "
      'ends '
      'with the command. Use it from Python.'
    )


def _read_shard():
  if not _SHARD.value:
    return None
  match = re.fullmatch(r'(\d+)/(\d+)', _SHARD.value)
  if not match or not 1 <= int(match[1]) <= int(match[2]):
    raise ValueError(
      f"--shard is '{_SHARD.value}'; expected i/n, from 1/n to n/n, for example 1/4."
    )
  return int(match[1]), int(match[2])


def _embedder(directory):
  """The model, on the devices that were asked for."""
  from tfreid.index import embedder

  if _RUNTIME.value == 'openvino':
    if _DEVICES.present:
      raise app.UsageError('--devices is of TensorFlow; OpenVINO embeds on the processor.')
    return embedder.Embedder(directory, runtime=_RUNTIME.value)
  from tfreid import replicas

  return embedder.Embedder(directory, strategy=replicas.local(_DEVICES.value))


def _attributes(model):
  return {a.name: a.values for a in model.schema.attributes} if model.schema else {}


def _pace(model):
  """How `writer` goes through the crops, for a model."""
  return {
    'shard_rows': _SHARD_ROWS.value,
    'batch_size': _BATCH_SIZE.value * model.num_devices,
    'in_flight': model.in_flight,
    'skip_corrupt': _SKIP_CORRUPT.value,
  }


@contextlib.contextmanager
def _shown(count):
  """The options of `writer` that show how far it is."""
  if not _PROGRESS.value or _JSON.value:
    yield {}
    return
  if not sys.stderr.isatty():
    _log(f'Embedding {count:,} crops.')
    yield {'finished': _ShardLog()}
    return
  with _bar() as bar:
    task = bar.add_task('Embedding', total=None)
    yield {'progress': lambda done, total: bar.update(task, completed=done, total=total)}


@contextlib.contextmanager
def _shown_stages():
  """What `writer.merge` tells how far it is; None where nobody wants to know."""
  if not _PROGRESS.value or _JSON.value:
    yield None
    return
  if not sys.stderr.isatty():
    yield _StageLog()
    return
  with _bar() as bar:
    tasks: dict[str, TaskID] = {}

    def show(what, done, total):
      if what not in tasks:
        for task in tasks.values():
          bar.update(task, completed=total)
        tasks[what] = bar.add_task(what, total=total)
      bar.update(tasks[what], completed=done)

    yield show


class _StageLog:
  """Logs the beginning of each stage, and not more often than each minute how far it is."""

  def __init__(self):
    self._stage, self._logged = '', 0.0

  def __call__(self, what, done, total):
    now = time.monotonic()
    if what == self._stage and now - self._logged < 60:
      return
    self._stage, self._logged = what, now
    _log(f'{what}: {done:,} of {total:,} crops.')


class _ShardLog:
  """Logs a line per shard: crops done, how many per second in this run, the time that is left."""

  def __init__(self):
    self._started, self._before, self._resumed = time.monotonic(), 0, 0

  def __call__(self, done, total, resumed):
    now = time.monotonic()
    if resumed != self._resumed:
      # Found, not embedded: no line and no share in the rate.
      self._started, self._before, self._resumed = now, done, resumed
      if done < total:
        return
    said = f'{done:,} of {total:,} crops'
    if resumed:
      said += f', {resumed:,} of them by an earlier run'
    rate = (done - self._before) / max(now - self._started, 1e-3)
    if rate:
      said += f', {rate:,.1f} per second, {_span((total - done) / rate)} left'
    _log(f'{said}.')


def _bar():
  from rich import progress
  from rich.console import Console

  columns = [
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    progress.TimeRemainingColumn(),
  ]
  return progress.Progress(*columns, console=Console(stderr=True))


def _span(seconds):
  minutes = round(seconds / 60)
  return f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{minutes} min'


def _log(text):
  print(f'{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {text}', file=sys.stderr, flush=True)


def _say(report):
  said = [f'{report.added} crops added']
  if report.resumed:
    said.append(f'{report.resumed} of them embedded by an earlier run')
  if report.skipped:
    said.append(f'{report.skipped} were there already')
  if report.corrupt:
    said.append(f'{len(report.corrupt)} file{"s" if len(report.corrupt) > 1 else ""} left out')
  if not _JSON.value:
    for path, reason in report.corrupt:
      print(printable(f'left out: {path} ({reason})', lines=False))
  _print(
    {
      'added': report.added,
      'resumed': report.resumed,
      'skipped': report.skipped,
      'corrupt': [list(pair) for pair in report.corrupt],
    },
    f'{", ".join(said)}.',
  )


def _print(facts, text):
  print(printable_json(facts) if _JSON.value else printable(text))
