"""What each sub-command does first: TensorFlow's surroundings, and errors without tracebacks."""

from __future__ import annotations

import contextlib
import logging as logging_
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from absl import app, flags, logging

from tfreid.printable import printable

_Value = TypeVar('_Value')

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Read by TensorFlow when it is first imported, which the sub-commands do late. What matters reaches
# Python as an exception; at '2' each start prints three complaints about CUDA factories.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

# What gin appends to every error that passes through a configured function.
_GIN_TRAIL = re.compile(r"\n  In call to configurable '[^\n]*")

# A person reads these lines: the message is enough, and what TensorFlow says of its own renaming
# while it writes a SavedModel (pages of it) is none, nor how it reduces a value on one device.
_NOISE = (
  'with unsupported characters which will be renamed',
  'Writing fingerprint to',
  'then broadcast to',
)


class _Printable(logging_.Formatter):
  """The message, which may quote what stands in files."""

  def format(self, record: logging_.LogRecord) -> str:
    return printable(super().format(record))


logging.get_absl_handler().setFormatter(_Printable('%(message)s'))
logging.get_absl_handler().addFilter(
  lambda record: not any(noise in str(record.msg) for noise in _NOISE)
)


def never_trains():
  """For a tool that asks exported models and changes no weight; call it before it imports more.

  oneDNN's convolutions then keep the layout into which they bring their weights, where they would
  do that again for each batch. They keep it per operation of a loaded graph, so a process that
  trains, or runs convolutions outside of a graph with weights of several models, would go on with
  old ones. And a GPU multiplies float32 numbers as such: what it embeds fits what a processor has
  embedded, and the reasons of a match are not lost in TensorFloat-32's rounding.
  """
  os.environ.setdefault('TF_ONEDNN_ASSUME_FROZEN_WEIGHTS', '1')
  os.environ.setdefault('NVIDIA_TF32_OVERRIDE', '0')


def no_arguments(argv: Sequence[str]):
  """Refuses arguments that are not flags: usually a value that lost its '--flag='."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected argument: {argv[1]!r}. Everything is a --flag=value here.')


def given(flag: flags.FlagHolder[_Value | None]) -> _Value:
  """The value of a flag that has no default.

  Raises:
    app.UsageError: it was not given.
  """
  if flag.value is None:
    raise app.UsageError(f'Give --{flag.name}.')
  return flag.value


@contextlib.contextmanager
def clear_errors(interrupted: str = '') -> Iterator[None]:
  """Turns errors that are the user's to mend into one message without a traceback, exit code 1.

  With --verbosity=1 (debug) the traceback is shown as well.

  Args:
    interrupted: what to add after 'Interrupted.' on Ctrl-C, e.g. how to go on.
  """
  try:
    yield
  except BrokenPipeError:
    raise
  except (ValueError, OSError, FloatingPointError, ImportError) as error:
    if logging.get_verbosity() >= logging.DEBUG:
      raise
    print(printable(f'\nError: {_GIN_TRAIL.sub("", str(error))}'), file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print(f'\nInterrupted. {interrupted}'.rstrip(), file=sys.stderr)
    sys.exit(130)


def program(name: str) -> list[str]:
  """The beginning of a command line that runs a sub-command of this very package."""
  return [sys.executable, PACKAGE, name]


def shipped(folder: str) -> str:
  """Where the gin files ('gin') or the files for TF Serving ('serving') lie.

  In a wheel they are data of the package; in a checkout they stand beside it.
  """
  inside = os.path.join(PACKAGE, f'{folder}_files')
  return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(PACKAGE), folder)
