"""gin files: found by name, read with their includes, and asked for what they configure."""

from __future__ import annotations

import logging as logging_
import os
import re
from collections.abc import Sequence

from tfreid.cli import startup

# In a wheel the gin files lie in the package; in a checkout they stand beside it.
_SHIPPED = os.path.join(startup.PACKAGE, 'gin_files')
GIN_ROOT = (
  _SHIPPED if os.path.isdir(_SHIPPED) else os.path.join(os.path.dirname(startup.PACKAGE), 'gin')
)

_IMPORT = re.compile(r'^\s*((?:from\s+[\w.]+\s+)?import\s+[\w.]+(?:\s+as\s+\w+)?)\s*(?:#.*)?$')
_INCLUDE = re.compile(r"""^\s*include\s+['"]([^'"]+)['"]""")


def gin_path(name: str) -> str:
  """The gin file of that name: a path, or a name below the repository's gin/ folder.

  Raises:
    FileNotFoundError: neither exists; the message lists what does.
  """
  for path in (name, os.path.join(GIN_ROOT, name)):
    if os.path.isfile(path):
      return os.path.abspath(path)
  folder = os.path.dirname(os.path.join(GIN_ROOT, name))
  folder = folder if os.path.isdir(folder) else GIN_ROOT
  there = sorted(file for file in os.listdir(folder) if file.endswith('.gin'))
  raise FileNotFoundError(
    f"No gin file '{name}', neither here nor in {os.path.relpath(GIN_ROOT)}/. "
    f'{os.path.relpath(folder, GIN_ROOT)}/ has: {", ".join(there)}.'
  )


def configure(files: Sequence[str], bindings: Sequence[str] = ()) -> str:
  """Parses gin files in order, then the bindings, which win.

  Args:
    files: names or paths.
    bindings: 'name = value', with the modules that any of the files imports at hand.

  Returns:
    The configuration as text: what a run directory belongs to.

  Raises:
    ValueError: whatever gin does not understand, as gin says it.
  """
  import gin

  here = os.getcwd()
  gin.add_config_file_search_path(here)
  paths = [gin_path(name) for name in files]
  imports: dict[str, None] = {'from __gin__ import dynamic_registration': None}
  seen: set[str] = set()
  for path in paths:
    _collect_imports(path, imports, seen)
  logging_.disable(logging_.ERROR)  # gin reports each place in which it does not find an include
  # Included names are relative to gin/. As a search path it would be tried last, after Python's
  # packages: a folder 'datasets' beside this file would then hide gin/datasets.
  os.chdir(GIN_ROOT)
  try:
    for path in paths:
      gin.parse_config_file(path)
    if bindings:
      gin.parse_config([*imports, *bindings])
    return gin.config_str()
  except (ValueError, SyntaxError, NameError, AttributeError, ImportError, RuntimeError) as error:
    raise ValueError(f'The configuration cannot be read: {_gin_message(error)}') from error
  finally:
    os.chdir(here)
    logging_.disable(logging_.NOTSET)


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


def _collect_imports(path: str, imports: dict[str, None], seen: set[str]):
  if path in seen:
    return
  seen.add(path)
  with open(path, encoding='utf-8') as file:
    for line in file:
      if match := _IMPORT.match(line):
        imports[match.group(1)] = None
      elif match := _INCLUDE.match(line):
        _collect_imports(gin_path(match.group(1)), imports, seen)


def _gin_message(error: Exception) -> str:
  return ' '.join(str(error).split())
