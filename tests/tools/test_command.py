"""The command `tfreid`: its lists, its help, and what it says of a typing error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tfreid
from tfreid.cli import main

ROOT = Path(__file__).resolve().parents[2]

# Ends with a line of those modules that are imported and should not be.
_RUN = """
import atexit, json, sys
heavy = ('tensorflow', 'pandas', 'numpy', 'gin', 'rich', 'jinja2')
atexit.register(lambda: print('\\n' + json.dumps([name for name in heavy if name in sys.modules])))
from tfreid.cli.main import main
main(sys.argv[1:])
"""


def command(*arguments):
  """The exit status, the output, what was said of errors, and the heavy modules imported."""
  done = subprocess.run(
    [sys.executable, '-c', _RUN, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
  )
  *lines, heavy = done.stdout.rstrip('\n').split('\n')
  return done.returncode, '\n'.join(lines).strip(), done.stderr.strip(), json.loads(heavy)


def test_every_module_with_a_main_is_a_sub_command():
  folder = ROOT / 'tfreid' / 'cli'
  with_main = {
    path.stem.replace('_', '-')
    for path in folder.glob('*.py')
    if '\ndef main(argv' in path.read_text(encoding='utf-8')
  }
  assert with_main == set(main.SUBCOMMANDS)


def test_version_and_the_list_of_sub_commands():
  assert command('--version') == (0, f'tfreid {tfreid.__version__}', '', [])
  for ask in ('--help', '-h', 'help'):
    status, said, _, heavy = command(ask)
    assert (status, heavy) == (0, [])
    assert [name for name in main.SUBCOMMANDS if f'\n  {name} ' not in said] == []
  assert command()[0] == 1  # nothing was asked for, so nothing was done


@pytest.mark.parametrize('name', main.SUBCOMMANDS)
def test_help_shows_the_options_without_importing_what_takes_time(name):
  status, said, errors, heavy = command(name, '--help')
  assert (status, errors, heavy) == (0, '', [])
  assert said.startswith(f'tfreid {name}')
  assert '\n  --' in said
  assert '--alsologtostderr' not in said  # absl's own


@pytest.mark.parametrize(
  ('action', 'has', 'has_not'),
  [
    ('build', ('--shard:', '--engine:'), ('--existing', '--files')),
    ('add', ('--existing:', '--source:'), ('--shard:', '--overwrite')),
    ('verify', ('--[no]files:',), ('--source', '--model', '--batch_size')),
    ('remove', ('--ids:', '--[no]missing_ok:'), ('--source', '--files')),
  ],
)  # fmt: skip
def test_help_of_an_action_shows_its_own_options_only(action, has, has_not):
  status, said, _, heavy = command('index', action, '--help')
  assert (status, heavy) == (0, [])
  assert said.startswith(f'tfreid index {action}: ')
  assert [flag for flag in ('--index:', '--[no]json:', *has) if f'\n  {flag}' not in said] == []
  assert [flag for flag in has_not if flag in said] == []


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (('serach',), "'serach' is no sub-command of tfreid. Did you mean 'search'?"),
    (('frobnicate',), '`tfreid --help` lists them'),
    (('index', 'biuld'), "Did you mean 'build'?"),
    (('index', 'build', '--sauce=x'), "no option --sauce. Did you mean '--source'?"),
    (('search', '--modle=x', 'hat'), "Did you mean '--model'?"),
    (('search', '--top_k=many', '--model=x', 'hat'), '--top_k=many'),
    (('evaluate',), 'Give --space='),
    (('check-data', '--dataset=peta'), 'Give --data_root='),
    (('check_data', '--dataset=peta'), 'Give --data_root='),
    (('search', '--model', 'x', '--noexplain', '--nojson'), 'Give a description'),
    (('train', '--run_dir=x', 'market1501'), "Unexpected argument: 'market1501'"),
  ],
)
def test_a_typing_error_is_told_at_once(arguments, said):
  status, _, errors, heavy = command(*arguments)
  assert status == 1
  assert said in errors
  assert 'Traceback' not in errors
  assert heavy == []


def test_a_reader_that_has_enough_is_no_error():
  process = subprocess.Popen(
    [sys.executable, '-m', 'tfreid', 'export', '--help'],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.close()
  assert process.stderr.read() == ''
  process.stderr.close()
  process.wait()


def test_a_tool_of_the_checkout_is_the_sub_command_from_any_folder(tmp_path):
  for tool, name in (
    ('train', 'train'),
    ('make_synthetic', 'synthesize'),
    ('check_data', 'check-data'),
  ):
    done = subprocess.run(
      [sys.executable, ROOT / 'tools' / f'{tool}.py', '--help'],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f'tfreid {name}: ')
