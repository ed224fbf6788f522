"""`python -m tfreid`: the command `tfreid`. Sub-commands that start others run it by its path."""

import os
import sys

if not __package__:  # run by its path: the folder that holds the package, not the package itself
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from tfreid.cli.main import main

if __name__ == '__main__':
  main()
