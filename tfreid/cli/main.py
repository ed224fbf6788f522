"""The front door: `tfreid SUBCOMMAND ...`, its lists of sub-commands and options, `--version`."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType

# Name -> what it is for. The module has the same name, with '_' for '-'.
SUBCOMMANDS = {
  'train': 'Train and evaluate a system as gin files describe it',
  'evaluate': 'Evaluate a trained joint space on a data set',
  'export': 'Write a SavedModel that answers queries, or check one',
  'model-card': 'Measure an exported model on people that it has not seen',
  'index': 'Build an index of person crops and keep it up to date',
  'search': 'Find the crops that fit a description',
  'serve': 'Serve the search page and its JSON API',
  'compare': "Run the paper's comparison of methods and write its tables",
  'tune': 'Try settings on held-out training people',
  'photographs': 'Run the comparison on PETA and Market-1501, from each start',
  'synthesize': 'Draw a data set of synthetic people',
  'check-data': 'Look a data set over before training on it',
  'demo': 'Draw people, train, evaluate, export and search, in one go',
}
_HELP = ('--help', '-help', '-h', '--helpshort', '-helpshort')


def main(arguments: Sequence[str] | None = None):
  """Runs the sub-command that the first argument names, and ends the process.

  Args:
    arguments: of the command line, without the name of the program; those of `sys` by default.
  """
  try:
    _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    sys.stdout.flush()
  except BrokenPipeError:
    # Who read the output, `head` for example, has enough. Python flushes once more when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """A sentence, with a space before it, about the known name that is meant; '' if none is near."""
  near = difflib.get_close_matches(name, list(known), n=1)
  return f" Did you mean '{near[0]}'?" if near else ''


def _dispatch(arguments: list[str]):
  name = arguments[0] if arguments else ''
  if name in ('', 'help', *_HELP):
    print(_overview(), flush=True)
    sys.exit(0 if name else 1)
  if name in ('--version', '-version'):
    from tfreid import __version__

    print(f'tfreid {__version__}')
    sys.exit(0)
  if name in ('--files', '-files'):
    from tfreid.cli import startup

    for folder in ('gin', 'serving'):
      print(f'{folder:<8} {startup.shipped(folder)}')
    sys.exit(0)
  name = name.replace('_', '-')
  if name not in SUBCOMMANDS:
    print(
      f"'{arguments[0]}' is no sub-command of tfreid.{did_you_mean(name, SUBCOMMANDS)} "
      '`tfreid --help` lists them.',
      file=sys.stderr,
    )
    sys.exit(1)
  _run(name, arguments[1:])


def _run(name: str, arguments: list[str]):
  from absl import app, flags

  module = importlib.import_module(f'tfreid.cli.{name.replace("-", "_")}')
  program = f'tfreid {name}'
  actions = getattr(module, 'ACTIONS', {})
  action = arguments[0] if arguments and arguments[0] in actions else ''
  options = arguments[: arguments.index('--')] if '--' in arguments else arguments
  if any(option in _HELP for option in options):
    print(_help(module, program, action), flush=True)
    sys.exit(0)
  if action:
    program = f'{program} {action}'

  def refuse(error: Exception):
    message = str(error)
    if isinstance(error, flags.UnrecognizedFlagError):
      known = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(module)]
      known = module.options_of(action) if action else known
      hint = did_you_mean(f'--{error.flagname}', [f'--{name}' for name in known])
      message = f'There is no option --{error.flagname}.{hint}'
    # absl: "flag --space=None: Flag --space must have a value other than None."
    elif missing := re.match(r'flag --(\w+)=None: .* must have a value other than None', message):
      message = f'Give --{missing[1]}=….'
    print(f'{program}: {message}\n`{program} --help` lists the options.', file=sys.stderr)
    sys.exit(1)

  def parsed(argv: list[str]) -> list[str]:
    try:
      return flags.FLAGS(argv)
    except flags.Error as error:
      return refuse(error)

  def checked(argv: list[str]):
    try:
      module.main(argv)
    except app.UsageError as error:
      refuse(error)

  # `compare` and `tune` write down the command they were started by.
  sys.argv = [f'tfreid {name}', *arguments]
  app.run(checked, argv=sys.argv, flags_parser=parsed)


def _overview() -> str:
  width = max(map(len, SUBCOMMANDS))
  return '\n'.join(
    [
      'Attribute-based person re-identification: a description in words, a ranked list of crops.',
      '',
      '  tfreid SUBCOMMAND [--option=value ...]',
      '',
      *(f'  {name:<{width}}  {purpose}' for name, purpose in SUBCOMMANDS.items()),
      '',
      '`tfreid SUBCOMMAND --help` shows the options of one, `tfreid --version` the version,',
      '`tfreid --files` where the gin files and the files for TF Serving are.',
      '',
      'Models, joint spaces, indexes and gin files are code: do not open those of strangers.',
    ]
  )


def _help(module: ModuleType, program: str, action: str) -> str:
  """What a sub-command does and its options: of one action only, where it has several."""
  actions: dict[str, str] = getattr(module, 'ACTIONS', {})
  if action:
    keep = module.options_of(action)
    options = _options(module, lambda name: name in keep)
    # The help of a flag begins with the names of the actions that take it, if not all do.
    options = re.sub(
      rf': (<[^>]*>: )?(?:(?:{"|".join(actions)})(?:, |: ))+',
      lambda match: f': {match[1] or ""}',
      options,
    )
    return f'{program} {action}: {actions[action]}\n\n{options}'
  text = (module.__doc__ or '').strip()
  if actions:
    width = max(map(len, actions))
    listed = '\n'.join(f'  {name:<{width}}  {purpose}' for name, purpose in actions.items())
    common = set.intersection(*(set(module.options_of(name)) for name in actions))
    return (
      f'{program} ACTION: {text}\n\nActions; `{program} ACTION --help` shows the options of one:\n'
      f'{listed}\n\nFor all of them:\n{_options(module, lambda name: name in common)}'
    )
  return f'{program}: {text}\n\n{_options(module, lambda name: True)}'


def _options(module: ModuleType, keep: Callable[[str], bool]) -> str:
  """The flags that a module defines or adopts, as paragraphs."""
  from absl import flags

  width = min(100, max(60, shutil.get_terminal_size((100, 24)).columns))
  own = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(module)}
  return '\n'.join(
    textwrap.fill(
      _option(flag),
      width,
      initial_indent='  ',
      subsequent_indent='      ',
      break_on_hyphens=False,
      break_long_words=False,
    )
    for name, flag in sorted(own.items())
    if keep(name)
  )


def _option(flag) -> str:
  """A flag in one line: its name, the values it takes, what it is for, and its default."""
  from absl import flags

  text = ' '.join((flag.help or '').split())
  if isinstance(flag, flags.MultiFlag) and 'epeatable' not in text:
    text += ' Repeatable.'
  default = ','.join(map(str, flag.default)) if isinstance(flag.default, list) else flag.default
  if default not in (None, '', False):
    text += f' Default: {default}.'
  return f'--[no]{flag.name}: {text}' if flag.boolean else f'--{flag.name}: {text}'
