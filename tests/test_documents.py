"""The documents: what they show runs, the options they name exist, their links lead somewhere.

Each fenced block of Python runs; each command of `tfreid` is parsed by the flags of its
sub-command. A block that cannot run has a comment in front of it that says why:

  <!-- not run: it needs a server -->
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
# Written by programs: the results of a run, and the diary of `tfreid tune`.
GENERATED = (
  'docs/results/tables.md',
  'docs/results/photographs/peta/tables.md',
  'docs/results/photographs/peta_again/tables.md',
  'docs/results/photographs/peta_eleven/tables.md',
  'docs/results/photographs/task/tables.md',
  'docs/results/photographs/task_sal/tables.md',
  'docs/results/photographs/task_market/tables.md',
  'docs/results/photographs/task_sal_256x128/tables.md',
  'docs/results/photographs/sal/tables.md',
  'docs/results/photographs/market/tables.md',
  'docs/results/photographs/subsets/CUHK/tables.md',
  'docs/results/photographs/subsets/TownCentre/tables.md',
  'docs/results/photographs/subsets/TownCentre_task/tables.md',
)
# What was going to be compared, put down before it was run: its text is not touched afterwards.
AS_WRITTEN = ('docs/results/photographs/README.md',)
DOCUMENTS = sorted(
  path.relative_to(ROOT).as_posix()
  for pattern in ('*.md', 'docs/**/*.md', 'serving/*.md', 'saved_models/**/*.md')
  for path in ROOT.glob(pattern)
  if path.relative_to(ROOT).as_posix() not in GENERATED
)
NOTEBOOK = 'examples/search_a_folder.ipynb'
LANGUAGES = ('', 'sh', 'python', 'json', 'yaml', 'gin')
# Programs that the documents may use besides those whose options are checked.
OTHERS = (
  'cat', 'chmod', 'curl', 'docker', 'export', 'git', 'openssl', 'pip', 'sed', 'tensorboard',
  '.venv/bin/saved_model_cli',
)  # fmt: skip
TFREID = ('tfreid', '.venv/bin/tfreid')

_NOT_RUN = re.compile(r'\s*<!-- not run: (\S.*) -->')


class Block(NamedTuple):
  """A fenced block of a document."""

  document: str
  line: int
  language: str
  text: str
  not_run: str  # the reason, '' if there is none

  def __str__(self):
    return f'{self.document}:{self.line}'


def blocks_of(document: str) -> Iterator[Block]:
  """The fenced blocks of a document, in order."""
  lines = (ROOT / document).read_text(encoding='utf-8').splitlines()
  start = None
  for number, line in enumerate(lines):
    if not (fence := re.match(r'( *)```(\S*)$', line)):
      assert '```' not in line, f'{document}:{number + 1}: a fence stands alone on its line'
    elif start is None:
      start, indent, language = number, len(fence[1]), fence[2]
      marker = _NOT_RUN.match(lines[number - 1])
    else:
      text = ''.join(f'{inner[indent:]}\n' for inner in lines[start + 1 : number])
      yield Block(document, start + 2, language, text, marker[1] if marker else '')
      start = None
  assert start is None, f'{document}:{start}: the fence is not closed'


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


def commands_of(text: str) -> Iterator[list[str]]:
  """The simple commands of a shell text as lists of words, without comments and redirections."""
  pending = ''
  for line in text.replace('\\\n', ' ').splitlines():
    pending += line
    lexer = shlex.shlex(pending, posix=True, punctuation_chars='|&;<>')
    lexer.whitespace_split = True
    try:
      tokens = list(lexer)
    except ValueError:  # a quotation goes on in the next line
      pending += '\n'
      continue
    pending = ''
    yield from _split(tokens)
  assert not pending, pending


def _split(tokens: list[str]) -> Iterator[list[str]]:
  """The commands between `|`, `&&` and `;`; what `<` and `>` name is left out."""
  words: list[str] = []
  redirected = False
  for word in [*tokens, ';']:
    if set(word) <= set('|&;'):
      if words:
        yield words
      words = []
    elif set(word) <= set('<>'):
      redirected = True
    elif redirected:
      redirected = False
    elif words or not re.match(r'\w+=', word):  # not VARIABLE=value in front of the program
      words.append(word)


def shell_commands() -> list[tuple[str, list[str]]]:
  """(where, words) of every command in the documents' blocks of shell that can be run."""
  texts = [(str(b), b.text) for b in BLOCKS if b.language == 'sh' and not b.not_run]
  for cell in json.loads((ROOT / NOTEBOOK).read_text(encoding='utf-8'))['cells']:
    source = ''.join(cell['source'])
    texts += [(NOTEBOOK, text) for text in re.findall(r'```sh\n(.*?)```', source, re.DOTALL)]
    texts += [(NOTEBOOK, text) for text in re.findall(r'(?m)^!(.*)$', source)]
  return [(where, words) for where, text in texts for words in commands_of(text)]


def inline_commands() -> Iterator[tuple[str, list[str]]]:
  """(where, words) of each `tfreid …` within a sentence."""
  for document in DOCUMENTS:
    text = (ROOT / document).read_text(encoding='utf-8')
    text = re.sub(r'(?m)^ *```[^`]*?^ *```$', '', text)
    for span in re.findall(r'`(tfreid [^`]*)`', text):
      words = shlex.split(' '.join(span.split()))
      if words[1].islower():  # not `tfreid SUBCOMMAND`
        yield document, words


def test_the_parser_of_shell_text_finds_the_commands():
  text = "A=1 tfreid index add --x='a b' \\\n  --y # no\nmake demo && cat f | sed s > t.txt; ls\n"
  assert list(commands_of(text)) == [
    ['tfreid', 'index', 'add', '--x=a b', '--y'],
    ['make', 'demo'],
    ['cat', 'f'],
    ['sed', 's'],
    ['ls'],
  ]


def test_every_block_has_a_language_that_is_checked_or_is_no_command():
  for block in BLOCKS:
    assert block.language in LANGUAGES, f'{block}: {block.language}'
    if not block.language and not block.not_run:
      for line in block.text.splitlines():
        first = (line.split() or [''])[0]
        assert first not in ('$', *TFREID, *OTHERS, 'make', 'python'), f'{block}: {line}'


def test_every_program_of_the_documents_is_known():
  commands = shell_commands()
  assert len(commands) > 60
  for where, words in commands:
    if words[0] == 'make':
      check_make(where, words[1:])
    elif words[0] == 'python' or words[0].endswith('.py'):
      check_script(where, words[words[0] == 'python' :])
    elif words[0] not in TFREID:
      assert words[0] in OTHERS, f'{where}: {words[0]}'


def check_make(where: str, arguments: list[str]) -> None:
  """Goals and variables are those of the Makefile."""
  makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
  for argument in arguments:
    pattern = rf'(?m)^{argument.split("=")[0]}{" =" if "=" in argument else ":"}'
    assert re.search(pattern, makefile), f'{where}: make {argument}'


def check_script(where: str, words: list[str]) -> None:
  """The script is there and its text names the options; `-m pytest` and `-c` are Python's."""
  if words[0] in ('-m', '-c'):
    return
  script = ROOT / words[0]
  assert script.is_file(), f'{where}: {words[0]}'
  text = script.read_text(encoding='utf-8')
  if (ROOT / 'tfreid' / 'cli' / script.name).is_file():
    text = (ROOT / 'tfreid' / 'cli' / script.name).read_text(encoding='utf-8')
  for word in words[1:]:
    if word.startswith('--'):
      name = word[2:].split('=')[0]
      assert re.search(rf"""['"](--)?{name}['"]""", text), f'{where}: {words[0]} has no --{name}'


# Parses command lines by the flags of one sub-command, in a process of its own: sub-commands define
# flags of the same names.
_PARSE = """
import importlib, json, sys
from absl import flags
name, lines = sys.argv[1], json.load(sys.stdin)
module = importlib.import_module('tfreid.cli.' + name.replace('-', '_'))
actions = getattr(module, 'ACTIONS', {})
for where, words in lines:
  flags.FLAGS.unparse_flags()
  arguments = words[2:]
  if actions:
    if not arguments:  # it is spoken of
      continue
    if arguments[0] not in actions:
      print(f'{where}: {name} {arguments[0]} is no action')
    options = module.options_of(arguments[0])
    for argument in arguments[1:]:
      option = argument[2:].split('=')[0]
      known = option in options or option[:2] == 'no' and option[2:] in options
      if argument.startswith('--') and not known:
        print(f'{where}: {name} {arguments[0]} has no {argument}')
  for argument in arguments:
    if argument.endswith('=…') and argument[2:-2] not in flags.FLAGS:
      print(f'{where}: {name} has no {argument}')
  arguments = [argument for argument in arguments if not argument.endswith('=…')]
  try:
    rest = flags.FLAGS(['tfreid', *arguments])[1:]
  except flags.Error as error:
    if 'must have a value other than None' not in str(error):
      print(f'{where}: {name}: {error}')
    continue
  if rest and not actions and not (name == 'search' and len(rest) == 1):
    print(f'{where}: {name} takes no {rest}')
"""


def tfreid_commands() -> dict[str, list[tuple[str, list[str]]]]:
  """Sub-command -> (where, words) of each command line of it, '…' left out."""
  found: dict[str, list[tuple[str, list[str]]]] = {}
  for where, words in [*shell_commands(), *inline_commands()]:
    words = [word for word in words if word != '…']
    if words[0] in TFREID and not words[1].startswith('--'):
      found.setdefault(words[1], []).append((where, words))
  return found


@pytest.mark.parametrize('name', sorted(tfreid_commands()))
def test_every_command_is_parsed_by_the_flags_of_its_sub_command(name):
  from tfreid.cli import main

  lines = tfreid_commands()[name]
  assert name in main.SUBCOMMANDS, lines
  lines = [line for line in lines if '--help' not in line[1]]
  found = subprocess.run(
    [sys.executable, '-c', _PARSE, name],
    input=json.dumps(lines),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert found.stdout == ''


def test_every_gin_file_and_data_set_of_the_commands_exists():
  for lines in tfreid_commands().values():
    for where, words in lines:
      for word in words:
        option, _, value = word.partition('=')
        if option == '--gin_file' and not value.startswith('methods/<'):
          assert (ROOT / 'gin' / value).is_file(), f'{where}: {value}'
        if option == '--dataset':
          assert (ROOT / 'gin' / 'datasets' / f'{value}.gin').is_file(), f'{where}: {value}'


@pytest.mark.parametrize(
  'block', [block for block in BLOCKS if block.language in ('json', 'yaml', 'gin')], ids=str
)
def test_data_blocks_are_read(block, tmp_path):
  if block.language == 'json':
    json.loads(block.text)
  elif block.language == 'gin':
    from tfreid.cli import gin_reading

    (tmp_path / 'a.gin').write_text(block.text)
    assert list(gin_reading.read([str(tmp_path / 'a.gin')]))
  else:
    import yaml

    assert yaml.safe_load(block.text)


PYTHON = [block for block in BLOCKS if block.language == 'python']


@pytest.mark.parametrize('block', PYTHON, ids=str)
def test_the_names_that_a_python_block_imports_exist(block):
  for node in ast.walk(ast.parse(block.text)):
    if isinstance(node, ast.ImportFrom):
      module = importlib.import_module(node.module)
      for alias in node.names:
        if not hasattr(module, alias.name):
          importlib.import_module(f'{node.module}.{alias.name}')
    elif isinstance(node, ast.Import):
      for alias in node.names:
        importlib.import_module(alias.name)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A folder with what the documents speak of: crops, saved_models/demo and indexes/depot."""
  sys.path.insert(0, str(ROOT / 'tests' / 'search'))
  try:
    import depot
  finally:
    del sys.path[0]
  from tfreid.evaluation import results
  from tfreid.index import manifest, writer
  from tfreid.index.embedder import Embedder

  folder = tmp_path_factory.mktemp('documents')
  crops = depot.write_crops(folder / 'crops')
  depot.export_model(folder / 'saved_models' / 'demo', crops, depot.build_schema('binary'))
  lines = ['path,camera,time,upper_color']
  for i, path in enumerate(sorted(crops.glob('*.png'))):
    lines.append(f'{path},{i % 3},2024-02-{i % 28 + 1:02d}T10:00:00,red')
  (folder / 'crops.csv').write_text('\n'.join(lines) + '\n')
  model = Embedder(str(folder / 'saved_models' / 'demo'))
  attributes = {attribute.name: attribute.values for attribute in model.schema.attributes}
  rows = manifest.read(str(folder / 'crops.csv'), attributes=attributes)
  writer.build(str(folder / 'indexes' / 'depot'), rows, model)
  evaluated = {'all': {'mAP': 0.5, 'rank1': 0.25}}
  results.append_row(
    folder / 'runs' / 'a2img' / 'results.jsonl',
    {'stage': 'joint', 'split': 'test', 'metrics': evaluated},
  )
  return folder


@pytest.mark.parametrize('block', [block for block in PYTHON if not block.not_run], ids=str)
def test_python_blocks_run(block, world, monkeypatch):
  monkeypatch.chdir(world)
  exec(compile(block.text, str(block), 'exec'), {'__name__': 'a_document'})


def test_enough_of_the_python_blocks_run():
  assert sum(not block.not_run for block in PYTHON) >= 4


def test_the_notebook_was_executed_whole_and_is_small():
  content = (ROOT / NOTEBOOK).read_text(encoding='utf-8')
  assert len(content) < 400_000
  cells = json.loads(content)['cells']
  code = [cell for cell in cells if cell['cell_type'] == 'code']
  assert [cell['execution_count'] for cell in code] == list(range(1, len(code) + 1))
  outputs = [output for cell in code for output in cell['outputs']]
  assert len(outputs) > 8 and not any(output['output_type'] == 'error' for output in outputs)
  assert not re.search(r'"[^"]*(/home/|/root/|/tmp/|/Users/)', content)


@pytest.mark.parametrize('document', [name for name in DOCUMENTS if name not in AS_WRITTEN])
def test_lines_wrap_at_100_columns(document):
  """But for tables, links that cannot be broken, and what a program printed."""
  printed = {
    block.line + i
    for block in blocks_of(document)
    if block.not_run
    for i in range(block.text.count('\n'))
  }
  lines = (ROOT / document).read_text(encoding='utf-8').splitlines()
  for number, line in enumerate(lines, 1):
    if len(line) > 100 and number not in printed:
      whole = line.lstrip().startswith(('|', '![', '([')) or ' ' not in line.strip()
      assert whole, f'{document}:{number} has {len(line)} columns'


def test_the_readme_is_short():
  assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= 150


def anchors(text: str) -> set[str]:
  """The anchors of the headings of a Markdown text, as GitHub makes them."""
  text = re.sub(r'(?m)^ *```[^`]*?^ *```$', '', text)
  headings = re.findall(r'(?m)^#+ (.+)$', text)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('document', DOCUMENTS)
def test_links_lead_to_a_file_and_a_heading(document):
  text = re.sub(r'`[^`\n]*`', '', (ROOT / document).read_text(encoding='utf-8'))
  for target in re.findall(r'\]\(([^)\s]+)\)', text):
    if '://' in target:
      continue
    path, _, anchor = target.partition('#')
    file = (ROOT / document).parent / path if path else ROOT / document
    assert file.exists(), f'{document}: {target}'
    if anchor:
      assert anchor in anchors(file.read_text(encoding='utf-8')), f'{document}: {target}'
