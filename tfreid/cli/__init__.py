"""The command `tfreid`: a module for each of its sub-commands, and what they share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence


def run(name: str, arguments: Sequence[str]):
  """Runs a sub-command and ends the process.

  Args:
    name: of its module in this package, e.g. 'check_data'.
    arguments: what stands behind the name on the command line.
  """
  from absl import app, flags

  module = importlib.import_module(f'tfreid.cli.{name}')
  sys.argv = [f'tfreid {name}', *arguments]
  # --help shows the docstring of the main module and its flags.
  sys.modules['__main__'].__doc__ = module.__doc__
  for flag in flags.FLAGS.get_key_flags_for_module(module):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  app.run(module.main)
