"""`python -m tfreid`, and what sub-commands start that start others."""

import os
import sys

if not __package__:  # run by its path: the folder that holds the package, not the package itself
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from tfreid import cli

if __name__ == '__main__':
  cli.run(sys.argv[1], sys.argv[2:])
