"""The build. Metadata is in setup.cfg; here stands only what setup.cfg cannot say.

The gin files and the files for TF Serving live at the top of the repository, where people look for
them. In a wheel they are data of the package: `tfreid/gin_files` and `tfreid/serving_files`.
"""

import os
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = {'gin': 'gin_files', 'serving': 'serving_files'}


class BuildWithFiles(build_py):
  """Copies the shipped files into the package; an editable install finds them in the checkout."""

  def run(self):
    super().run()
    if self.editable_mode:
      return
    for folder, name in SHIPPED.items():
      target = os.path.join(self.build_lib, 'tfreid', name)
      shutil.rmtree(target, ignore_errors=True)  # what an earlier build has left
      shutil.copytree(folder, target, ignore=shutil.ignore_patterns('__pycache__', '.*'))


setup(cmdclass={'build_py': BuildWithFiles})
