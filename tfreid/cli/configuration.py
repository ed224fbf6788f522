"""gin's configuration: what the gin files say, checked, and the functions that they configure.

A gin file is code: it names functions of any module that it imports, and they are called with the
values that stand there. So a file may import and name what is in tfreid and nothing else, unless
the user trusts it with more. And what nobody uses is a typing error, not a wish.
"""

from __future__ import annotations

import inspect
import logging as logging_
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TextIO

from tfreid.cli import gin_reading
from tfreid.cli.main import did_you_mean

TRAIN = 'tfreid.experiment.train'
DATASET = 'DATASET'
_DYNAMIC = '__gin__.dynamic_registration'
# A name that says what a recipe is, for its readers.
_LABELS = ('METHOD',)

# A key of gin's configuration: the scope and the full name of a function, or ('NAME', 'gin.macro').
_Key = tuple[str, str]
_MACRO = 'gin.macro'


def configure(
  files: Sequence[str],
  bindings: Sequence[str] = (),
  *,
  given: Sequence[str] = (),
  allow_imports: Collection[str] = (),
  root: str = '',
) -> str:
  """Parses gin files in order, then the bindings, which win.

  Args:
    files: names or paths.
    bindings: 'name = value', with the modules that any of the files imports at hand.
    given: bindings that come before those, of the command itself.
    allow_imports: packages, besides tfreid, whose modules and functions may be named.
    root: the full name of the function that is going to be called, or DATASET, the macro. Bindings
      of which it makes no use are errors: those of `bindings` and, but for DATASET, those of files
      that do not come with tfreid. '' checks nothing.

  Returns:
    The configuration as text: what a run directory belongs to.

  Raises:
    ValueError: whatever gin does not understand, as gin says it; an import or a name that is not
      allowed; a value of the wrong type; a binding that nothing uses.
    FileNotFoundError: there is no such file.
  """
  import gin

  readers = gin.config._FILE_READERS
  if readers[0][0] is not _open_text:
    # gin's public way adds a reader behind `open`, which then reads every file.
    readers.insert(0, (_open_text, os.path.isfile))
  here = os.getcwd()
  gin.add_config_file_search_path(here)
  paths = [gin_reading.gin_path(name) for name in files]
  written = list(gin_reading.read(paths, bindings))
  imports = _checked_imports(written, allow_imports)
  logging_.disable(logging_.ERROR)  # gin reports each place in which it does not find an include
  # Included names are relative to gin/. As a search path it would be tried last, after Python's
  # packages: a folder 'datasets' beside this file would then hide gin/datasets.
  os.chdir(gin_reading.GIN_ROOT)
  try:
    for path in paths:
      gin.parse_config_file(path)
    if given or bindings:
      gin.parse_config([*imports, *given, *bindings])
    text = gin.config_str()
  except (ValueError, SyntaxError, NameError, AttributeError, ImportError, RuntimeError) as error:
    raise ValueError(f'The configuration cannot be read: {_gin_message(error)}') from error
  finally:
    os.chdir(here)
    logging_.disable(logging_.NOTSET)
  _check_names(allow_imports)
  _check_values()
  if root:
    own = [w for w in written if not w.path or (root != DATASET and not w.shipped)]
    _check_use(own, root)
  return text


def dataset(
  files: Sequence[str],
  *,
  given: Sequence[str] = (),
  bindings: Sequence[str] = (),
  allow_imports: Collection[str] = (),
):
  """The Benchmark that gin files bind to DATASET, loaded.

  Args:
    files, given, bindings, allow_imports: as `configure` takes them.

  Raises:
    ValueError: the configuration names no data set, or `configure` refuses it.
  """
  import gin

  configure(files, bindings, given=given, allow_imports=allow_imports, root=DATASET)
  try:
    load = gin.query_parameter(f'%{DATASET}').scoped_configurable_fn
    return load()
  except (TypeError, AttributeError) as error:
    advice = _left_open(str(error))
    if advice:
      raise ValueError(f'The configuration {advice}') from error
    raise ValueError(f'The configuration names no usable {DATASET}: {error}') from error


def root(name: str):
  """The configured function of that full name, e.g. 'tfreid.experiment.train'.

  Calling it turns gin's own complaints into advice.
  """
  import gin

  try:
    function = gin.get_configurable(name)
  except ValueError as error:
    raise ValueError(
      f'No gin file configures {name}. Did you pass --gin_file=methods/….gin?'
    ) from error

  def call(*args, **kwargs):
    try:
      return function(*args, **kwargs)
    except TypeError as error:
      advice = _left_open(str(error))
      if not advice:
        raise
      raise ValueError(f'The configuration {advice}') from error

  return call


def _open_text(path: str) -> TextIO:
  """Opens a gin file: UTF-8, with or without a byte order mark."""
  return open(path, encoding='utf-8-sig')


def _left_open(message: str) -> str:
  """Advice, if gin's TypeError means that something was left open; '' if it means anything else."""
  macro = re.search(r"call to configurable 'macro' .* in scope '([^']+)'", message)
  if macro:
    name = macro.group(1)
    todo = {
      'DATASET': 'name a data set, for example --gin_file=datasets/market1501.gin',
      'STAGES': 'name a method, for example --gin_file=methods/a2img.gin',
    }.get(name, f"give --gin_bindings='{name} = …' or a gin file that binds it")
    return f'leaves {name} open: {todo}.'
  missing = re.match(
    r".* missing \d+ required (?:positional|keyword-only) argument.*?: '(\w+)'", message
  )
  function = re.search(r"call to configurable '([^']+)'", message)
  if missing and function:
    name = f'{function.group(1)}.{missing.group(1)}'
    return f"leaves {name} open: give --gin_bindings='{name} = …' or a gin file that binds it."
  return ''


# What may be imported and named.


def _checked_imports(
  written: Sequence[gin_reading.Written], allow_imports: Collection[str]
) -> list[str]:
  """The import statements, as text, for bindings to be read with.

  Raises:
    ValueError: one imports what is not allowed. Nothing has been imported then.
  """
  from gin import config_parser

  imports = {'from __gin__ import dynamic_registration': None}
  for statement, path in written:
    if not isinstance(statement, config_parser.ImportStatement):
      continue
    if statement.module != _DYNAMIC and not _allowed(statement.module, allow_imports):
      where = gin_reading.Written(statement, path).place
      raise ValueError(
        f"{where}: '{statement.format()}' is not allowed. A gin file is code, and importing a "
        'module runs it; by itself a gin file may import modules of tfreid (but tfreid.cli). If '
        f'you trust the file and the module, give --allow_imports={statement.module.split(".")[0]}.'
      )
    imports[statement.format()] = None
  return list(imports)


def _allowed(module: str, allow_imports: Collection[str]) -> bool:
  for package in allow_imports:
    if module == package or module.startswith(package + '.'):
      return True
  parts = module.split('.')
  # No recipe configures the command line, which starts programs.
  return parts[0] == 'tfreid' and parts[1:2] not in (['cli'], ['__main__'])


def _check_names(allow_imports: Collection[str]):
  """Refuses functions that are reached through an allowed module and belong to another one.

  `@storage.os.remove` names a function of the operating system by way of tfreid.storage.
  """
  from gin import config

  used = {config._REGISTRY[selector] for _, selector in config._CONFIG}
  used.update(found.configurable for found in config.iterate_references(config._CONFIG))
  for configurable in used:
    module = getattr(configurable.wrapped, '__module__', '') or ''
    if configurable.selector.startswith('gin.') and module.split('.')[0] == 'gin':
      continue
    if not _allowed(module, allow_imports):
      raise ValueError(
        f"The configuration names '{configurable.selector}', which belongs to the module "
        f"'{module}', not to tfreid. If you trust it, give --allow_imports={module.split('.')[0]}."
      )


# What a value may be.


# Parameters by whose name a number below 0 is a typing error, whatever function has them.
_NEVER_NEGATIVE = re.compile(r'(?:^|_)(?:weight|decay|rate|epochs|size|dropout|temperature|every)$')


def _check_values():
  """Refuses values of another type than the function's annotation says, NaN, and negative weights.

  Only int, float, bool, str and None are judged; whatever else an annotation says is left to the
  function. A value is named as it is bound: the function that it reaches says less.
  """
  from gin import config

  for key, values in config._CONFIG.items():
    if key[1] == _MACRO:
      continue
    try:
      parameters = inspect.signature(config._REGISTRY[key[1]].wrapped).parameters
    except (TypeError, ValueError):
      continue  # written in C
    for argument, bound in values.items():
      value, macro = _resolved(bound)
      if argument in parameters and not isinstance(value, config.ConfigurableReference):
        expected = _expected(argument, parameters[argument].annotation, value)
        if expected:
          raise ValueError(
            f'{_short(key)}.{argument}{f" (by {macro})" if macro else ""} is {value!r}; expected '
            f'{expected}.'
          )


def _resolved(value: Any) -> tuple[Any, str]:
  """A value, macros replaced by what is bound to them, and the name of the last macro, or ''."""
  from gin import config

  name = ''
  while isinstance(value, config.ConfigurableReference) and value.configurable.selector == _MACRO:
    name = '/'.join(value.scopes)
    bound = config._CONFIG.get((name, _MACRO), {})
    if 'value' not in bound:
      break
    value = bound['value']
  return value, name


_WORDS = {
  'int': 'a whole number',
  'float': 'a number',
  'bool': 'True or False',
  'str': 'a text',
  'None': 'None',
}


def _expected(argument: str, annotation: Any, value: Any) -> str:
  """What a parameter takes, in words, if it does not take the value; '' if it does."""
  if isinstance(value, float) and not math.isfinite(value):
    return 'a finite number'
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if is_number and value < 0 and _NEVER_NEGATIVE.search(argument):
    return 'a number that is not negative'
  kinds = [kind.strip() for kind in str(annotation).split('|')]
  if not set(kinds) <= set(_WORDS):
    return ''
  kind = 'None' if value is None else type(value).__name__
  if kind in kinds or (kind == 'int' and 'float' in kinds):
    return ''
  return ' or '.join(_WORDS[kind] for kind in kinds)


# What nothing uses.


def _check_use(own: Sequence[gin_reading.Written], root: str):
  """Refuses bindings of which nothing makes use that is reached from the root.

  Args:
    own: statements of the user.
    root: the full name of a function, or the name of a macro.

  Raises:
    ValueError: the first of them, with the name that was meant, if one is near.
  """
  from gin import config, config_parser

  reached = _reached(config._CONFIG, root)
  advice = ''
  if root == TRAIN:
    advice = ' If it stands there for other systems, give --allow_unused_bindings.'
  modules: dict[str, str] = {}  # what a name at the beginning of a selector stands for
  for statement, path in own:
    if isinstance(statement, config_parser.ImportStatement):
      whole = statement.is_from or statement.alias
      modules[statement.bound_name()] = statement.module if whole else statement.bound_name()
      continue
    if not isinstance(statement, config_parser.BindingStatement):
      continue
    scope, selector, argument = statement.scope, statement.selector, statement.arg_name
    macro = '/'.join(filter(None, (scope, selector)))
    if not argument:
      used = (macro, _MACRO) in reached or macro in _LABELS
      name = macro
      known = [key[0] for key in reached if key[1] == _MACRO]
    else:
      first, _, rest = selector.partition('.')
      full = '.'.join(filter(None, (modules.get(first, first), rest)))
      keys = [
        key
        for key in config._CONFIG
        if key[0] == scope and f'.{key[1]}'.endswith((f'.{full}', f'.{selector}'))
      ]
      used = not keys or any(key in reached for key in keys)
      name = f'{macro}.{argument}'
      known = [f'{_short(key)}.{arg}' for key in reached for arg in config._CONFIG[key]]
    if not used:
      place = gin_reading.Written(statement, path).place
      raise ValueError(
        f'{place}: {name} is bound, but nothing in this configuration uses it.'
        f'{did_you_mean(name, known)}{advice}'
      )


def _short(key: _Key) -> str:
  """A key as it is written after `from package import module`."""
  scope, selector = key
  return '/'.join(filter(None, (scope, '.'.join(selector.split('.')[-2:]))))


def _reached(bound: Mapping[_Key, Mapping[str, Any]], root: str) -> set[_Key]:
  """The keys of a configuration whose values are used by whoever calls the root."""
  functions, macros = {root}, {root}
  scopes: set[str] = set()
  reached: set[_Key] = set()
  while True:
    before = len(reached)
    for key, values in bound.items():
      scope, selector = key
      if key in reached:
        continue
      if selector == _MACRO:
        active = scope in macros
      else:
        active = selector in functions and set(filter(None, scope.split('/'))) <= scopes
      if not active:
        continue
      reached.add(key)
      for found in _references(values):
        if found.configurable.selector == _MACRO:
          macros.add('/'.join(found.scopes))
        else:
          functions.add(found.configurable.selector)
          scopes.update(found.scopes)
    if len(reached) == before:
      return reached


def _references(values: Mapping[str, Any]) -> Iterator[Any]:
  from gin import config

  return config.iterate_references(values)


def _gin_message(error: Exception) -> str:
  return ' '.join(str(error).split())
