"""Finds the crops that fit a description.

  tfreid search --model=saved_models/demo "gender=female, upper_color=red, backpack=yes"
  tfreid search --model=saved_models/demo --html=answer.html "woman, red top, no hat"
  tfreid search --index=indexes/depot --filter='camera in [1, 2]' "woman, red top"
  tfreid search --index=indexes/depot --like=crops/a17.jpg
  tfreid search --source=/data/my_crops "woman, red top"
  tfreid search --server=grpc://localhost:8500 --model_name=people "woman, red top"

The description is a list of name=value settings, of words, or of both. --model searches the gallery
inside an exported model, --index one made with `tfreid index`, --server that of an exported model
under TF Serving, and --source a folder of crops that is embedded for this one question. Beside each
tick or cross stands what the attribute adds to the score of the crop, and below the table what to
ask for next.
"""

from absl import app, flags

from tfreid.cli import source_flags, startup
from tfreid.printable import printable, printable_json

flags.adopt_module_key_flags(source_flags)
_TIMEOUT = flags.DEFINE_float(
  'timeout', 10.0, 'With --server: seconds to wait for an answer.', lower_bound=0.001
)
_SOURCE = flags.DEFINE_string(
  'source',
  None,
  'Folder of crops, or a manifest (.csv or .jsonl), to search without an index: for a first try. '
  'The model is --model, or else saved_models/photographs.',
)
_TOP_K = flags.DEFINE_integer('top_k', 20, 'Number of crops to show.', lower_bound=1)
_FILTER = flags.DEFINE_string(
  'filter',
  '',
  'With --index: condition on fields, such as \'camera in [1, 2] and time >= "2024"\'.',
)
_MUST = flags.DEFINE_string('must', '', 'With --index: attributes that must be annotated so.')
_MUST_NOT = flags.DEFINE_string(
  'must_not', '', 'With --index: attributes that must not be annotated so.'
)
_EXCLUDE_IDS = flags.DEFINE_list('exclude_ids', [], 'With --index: ids that are not wanted.')
_MIN_SCORE = flags.DEFINE_float('min_score', None, 'With --index: only crops that score as much.')
_LIKE = flags.DEFINE_string(
  'like', None, 'Instead of a description, the id of a crop of the gallery or an image file.'
)
_EXPLAIN = flags.DEFINE_bool(
  'explain',
  None,
  'Show what each attribute adds to the scores, and what to ask for next. Done by default wherever '
  'the model can, which takes some more vectors through its attribute encoder.',
)
_HTML = flags.DEFINE_string('html', None, 'Also write the answer as one self-contained page.')
_JSON = flags.DEFINE_bool('json', False, 'Print JSON instead of a table.')


def main(argv):
  """Loads the model or the index and answers."""
  text = ', '.join(argv[1:])
  source_flags.check(_SOURCE.value or '')
  if bool(text) == bool(_LIKE.value):
    raise app.UsageError('Give a description in quotation marks, or --like; one of the two.')
  options = {
    'where': _FILTER.value,
    'must': _MUST.value,
    'must_not': _MUST_NOT.value,
    'exclude': _EXCLUDE_IDS.value,
    'min_score': _MIN_SCORE.value,
  }
  options = {name: value for name, value in options.items() if value not in ('', [], None)}
  if options and not (_SOURCE.value or source_flags.is_index()):
    raise app.UsageError(
      '--filter, --must, --must_not, --exclude_ids and --min_score need --index or --source.'
    )
  if _LIKE.value and _EXPLAIN.value:
    raise app.UsageError('--explain needs a description: a crop names no attributes.')
  with startup.clear_errors(), _opened() as source:
    _show(_ask(source, text, options))


def _opened():
  if not _SOURCE.value:
    return source_flags.opened(timeout=_TIMEOUT.value)
  return _embedded()


def _embedded():
  """The pictures of --source, embedded for this question."""
  import sys

  import rich.progress
  from rich.console import Console

  from tfreid.index import default_model, folder_index
  from tfreid.index.embedder import Embedder

  model = Embedder(
    source_flags.model() or default_model.directory(), runtime=source_flags.runtime()
  )
  print(printable(f'Model: {model.directory}', lines=False), file=sys.stderr)
  columns = rich.progress.Progress.get_default_columns()
  with rich.progress.Progress(*columns, console=Console(stderr=True)) as bar:
    task = bar.add_task('Embedding', total=None)
    index, report = folder_index.open_folder(
      startup.given(_SOURCE),
      model,
      skip_corrupt=True,
      in_flight=model.in_flight,
      progress=lambda done, total: bar.update(task, completed=done, total=total),
    )
  for path, reason in report.corrupt:
    print(printable(f'left out: {path} ({reason})', lines=False), file=sys.stderr)
  return index


def _ask(source, text, options):
  """The answer of a source to the description or --like."""
  from tfreid.search import SearchOptions, ask

  _tell_unknown(source)
  chosen = SearchOptions(**options)
  if _LIKE.value:
    return source.like(_LIKE.value, top_k=_TOP_K.value, options=chosen)
  # By default what was exported by an earlier version is searched without, and silently.
  wanted = _EXPLAIN.value
  return ask(source, text, top_k=_TOP_K.value, explain=wanted, suggest=wanted, options=chosen)


def _tell_unknown(source):
  """Says which ids of --exclude_ids the index does not have: misspelled, they leave out nothing."""
  import sys

  unknown = [name for name in _EXCLUDE_IDS.value if source.crop(name) is None]
  if unknown:
    count = f'{len(unknown)} of {len(_EXCLUDE_IDS.value)} ids' if len(unknown) > 1 else 'An id'
    said = printable(
      f"{count} of --exclude_ids: the index has no crop '{unknown[0]}'.", lines=False
    )
    print(said, file=sys.stderr)


def _show(answer):

  if _JSON.value:
    print(printable_json(answer.to_json()))
  else:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
      # A file or another program has no width; ids in one piece are easier to find again.
      console.width = max(console.width, 160)
    console.print(answer.table())
    if answer.ask_next():
      text = printable(f'Ask next: {answer.ask_next()}', lines=False)
      console.print(text, highlight=False, soft_wrap=True, markup=False)
  if _HTML.value:
    from tfreid import storage
    from tfreid.search import page

    storage.write_text(_HTML.value, page.render(answer))
    if not _JSON.value:
      print(printable(f'Result page: {_HTML.value}', lines=False))
