#!/usr/bin/env python3
"""`tfreid index` of this checkout, whether it is installed or not."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tfreid.cli.main import main

if __name__ == '__main__':
  main(['index', *sys.argv[1:]])
