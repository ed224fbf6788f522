"""gin files, found by name and read without running them.

Reading tells what a configuration would import and bind before anything is imported: importing is
running, and takes TensorFlow and seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tfreid.cli import startup

GIN_ROOT = startup.shipped('gin')


class Reference(NamedTuple):
  """@name or @name() in a gin file."""

  name: str


class Macro(NamedTuple):
  """%name in a gin file."""

  name: str


class Written(NamedTuple):
  """A statement and where it stands.

  Attributes:
    statement: of `gin.config_parser`; references in its value are `Reference` and `Macro`.
    path: of the file; '' for a binding of the command line.
  """

  statement: Any
  path: str

  @property
  def shipped(self) -> bool:
    """Whether it stands in a file that comes with tfreid."""
    return self.path.startswith(GIN_ROOT + os.sep)

  @property
  def place(self) -> str:
    """For a message: the file and the line."""
    if not self.path:
      return '--gin_bindings'
    return f'{os.path.relpath(self.path)}, line {self.statement.location.line_num}'


def gin_path(name: str) -> str:
  """The gin file of that name: a path, or a name below the folder of the shipped gin files.

  Raises:
    FileNotFoundError: neither exists; the message lists what does.
  """
  return _find(name, ('', GIN_ROOT))


def read(files: Sequence[str], bindings: Sequence[str] = ()) -> Iterator[Written]:
  """Yields each statement of the files in order, includes in their place, then of the bindings.

  Args:
    files: names or paths, as `gin_path` takes them.
    bindings: 'name = value'.

  Raises:
    ValueError: gin could not read a file.
    FileNotFoundError: there is none.
  """
  for name in files:
    yield from _read_file(gin_path(name), ())
  yield from _read('\n'.join(bindings), '', ())


def _find(name: str, folders: Sequence[str]) -> str:
  for folder in folders:
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return os.path.abspath(path)
  folder = os.path.dirname(os.path.join(GIN_ROOT, name))
  folder = folder if os.path.isdir(folder) else GIN_ROOT
  there = sorted(file for file in os.listdir(folder) if file.endswith('.gin'))
  raise FileNotFoundError(
    f"No gin file '{name}', neither here nor in {os.path.relpath(GIN_ROOT)}/. "
    f'{os.path.relpath(folder, GIN_ROOT)}/ has: {", ".join(there)}.'
  )


def _read_file(path: str, including: tuple[str, ...]) -> Iterator[Written]:
  if path in including:
    raise ValueError(f'{path} includes itself, by way of {including[-1]}.')
  with open(path, encoding='utf-8-sig') as file:
    text = file.read()
  yield from _read(text, path, (*including, path))


def _read(text: str, path: str, including: tuple[str, ...]) -> Iterator[Written]:
  from gin import config_parser

  class Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
      return Reference(scoped_configurable_name)

    def macro(self, macro_name):
      return Macro(macro_name)

  try:
    for statement in config_parser.ConfigParser(text, Delegate()):
      if isinstance(statement, config_parser.IncludeStatement):
        # In the order in which `configuration.configure` lets gin look for it.
        yield from _read_file(_find(statement.filename, (GIN_ROOT, '')), including)
      else:
        yield Written(statement, path)
  except SyntaxError as error:
    what = path or '--gin_bindings'
    raise ValueError(f'{what} cannot be read: {" ".join(str(error).split())}') from error
