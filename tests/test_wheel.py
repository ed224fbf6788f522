"""The wheel in an environment of its own: the whole way from an empty folder, no checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import pytest

import tfreid

ROOT = Path(__file__).parent.parent
SOURCES = ('tfreid', 'gin', 'serving', 'tools', 'docs', 'constraints')
FILES = ('setup.py', 'setup.cfg', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE')
MORE = ('CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md', 'SECURITY.md', 'Makefile')

# A user's own recipe: it includes shipped ones, and names an encoder of the user's.
RECIPE = """
from __gin__ import dynamic_registration

import small_networks
from tfreid.data import pipeline
from tfreid.training import stages

include 'methods/without_adversarial.gin'
include 'datasets/synthetic.gin'

DATA_ROOT = 'people'
IMAGE_ENCODER = @small_networks.image_encoder
STAGES = [@joint/stages.Stage()]
joint/stages.Stage.carry = {}
JOINT_EPOCHS = 1
pipeline.Pipeline.image_size = (32, 16)
pipeline.Pipeline.batch_size = 16
"""

_SDIST = """
import sys
from setuptools import build_meta
print(build_meta.build_sdist(sys.argv[1]))
"""


def run(*command, **options):
  done = subprocess.run(
    [str(part) for part in command], capture_output=True, text=True, timeout=280, **options
  )
  assert done.returncode == 0, f'{command}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}'
  return done.stdout


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
  """The source distribution, built from a copy of the sources, and the wheel built from that."""
  folder = tmp_path_factory.mktemp('build')
  sources = folder / 'sources'
  for name in SOURCES:
    ignored = shutil.ignore_patterns('__pycache__', 'images')
    shutil.copytree(ROOT / name, sources / name, ignore=ignored)
  for name in (*FILES, *MORE):
    if name in FILES or (ROOT / name).exists():
      shutil.copy(ROOT / name, sources / name)
  said = run(sys.executable, '-c', _SDIST, folder, cwd=sources)
  sdist = folder / said.splitlines()[-1]
  with tarfile.open(sdist) as archive:
    archive.extractall(folder / 'unpacked')
  (unpacked,) = (folder / 'unpacked').iterdir()
  pip = (sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-build-isolation', '--no-deps')
  run(*pip, '--no-index', f'--wheel-dir={folder}', unpacked)
  (wheel,) = folder.glob('*.whl')
  return sdist, wheel


def names_in(folder):
  """Relative names of the files below a folder of the repository."""
  paths = (ROOT / folder).rglob('*')
  return {
    path.relative_to(ROOT / folder).as_posix()
    for path in paths
    if path.is_file() and '__pycache__' not in path.parts and not path.name.startswith('.')
  }


@pytest.mark.slow
def test_the_wheel_holds_the_package_the_gin_files_and_the_serving_files(distributions):
  _, wheel = distributions
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
    (metadata,) = (name for name in names if name.endswith('.dist-info/METADATA'))
    about = archive.read(metadata).decode()
  assert {f'tfreid/{name}' for name in names_in('tfreid')} <= names
  assert {f'tfreid/gin_files/{name}' for name in names_in('gin')} <= names
  assert {f'tfreid/serving_files/{name}' for name in names_in('serving')} <= names
  assert 'tfreid/py.typed' in names
  assert any(name.endswith('/LICENSE') for name in names)
  assert {name.split('/')[0] for name in names} == {'tfreid', metadata.split('/')[0]}
  assert 'Project-URL' not in about and 'Home-page' not in about  # there is no such page


class Installed:
  """An environment that holds the wheel, and an empty folder to work in."""

  def __init__(self, folder, wheel):
    self.folder = folder / 'work'
    self.folder.mkdir()
    environment = folder / 'environment'
    run(sys.executable, '-m', 'venv', '--without-pip', environment)
    python = environment / 'bin' / 'python'
    installed = run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip()
    # The dependencies, without installing them again. The .pth files in that folder, that of an
    # editable tfreid for one, are not read.
    others = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}
    Path(installed, 'dependencies.pth').write_text('\n'.join(sorted(others)) + '\n')
    pip = (sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet')
    run(*pip, '--no-index', '--no-deps', '--ignore-installed', wheel)
    self.installed = Path(installed)
    self.python = python
    self.tfreid = environment / 'bin' / 'tfreid'
    self.environment = {
      **{name: value for name, value in os.environ.items() if not name.startswith('PYTHON')},
      'PYTHONPATH': str(self.folder),  # for the user's own module
    }

  def run(self, *arguments):
    return run(self.tfreid, *arguments, cwd=self.folder, env=self.environment)


@pytest.fixture(scope='module')
def installed(distributions, tmp_path_factory):
  return Installed(tmp_path_factory.mktemp('installed'), distributions[1])


@pytest.mark.slow
def test_the_whole_way_from_an_empty_folder(installed):
  where = run(
    *(installed.python, '-c', 'import tfreid; print(tfreid.__file__)'),
    cwd=installed.folder,
    env=installed.environment,
  )
  assert Path(where.strip()).parent == installed.installed / 'tfreid'  # not the checkout
  assert installed.run('--version') == f'tfreid {tfreid.__version__}\n'
  files = installed.run('--files')
  assert str(installed.installed / 'tfreid' / 'gin_files') in files

  installed.run(
    *('synthesize', '--out=people', '--num_train_people=16', '--num_test_people=6', '--noprogress'),
    *('--image_height=32', '--image_width=16', '--workers=1'),
    '--gin_bindings=synthetic.SyntheticPeople.images_per_person = (4, 4)',
  )
  shutil.copy(ROOT / 'tests' / 'conformance' / 'small_networks.py', installed.folder)
  (installed.folder / 'mine.gin').write_text(RECIPE)
  said = installed.run(
    'train', '--gin_file=mine.gin', '--run_dir=run', '--allow_imports=small_networks'
  )
  assert 'rank-1' in said
  said = installed.run('evaluate', '--space=run/joint/space', '--allow_imports=small_networks')
  assert 'Added to' in said
  rows = (installed.folder / 'run' / 'results.jsonl').read_text().splitlines()
  first, second = (json.loads(row)['metrics']['all'] for row in rows)
  assert first['mAP'] == pytest.approx(second['mAP'], abs=1e-6)

  installed.run(
    *('export', '--space=run/joint/space', '--out=model', '--dataset=synthetic'),
    '--data_root=people',
  )
  said = installed.run(
    *('index', 'build', '--index=index', '--model=model'), '--source=people/query', '--json'
  )
  added = json.loads(said)['added']
  assert added == len(list((installed.folder / 'people' / 'query').glob('*.jpg')))
  said = installed.run('search', '--index=index', '--top_k=3', '--json', 'woman, red top')
  hits = json.loads(said)['hits']
  assert len(hits) == 3
  assert all((installed.folder / 'people' / 'query' / hit['id']).is_file() for hit in hits)
  assert [hit['id'] for hit in hits] == served(installed)


def served(installed):
  """The ids that a server of the index answers to the same question."""
  process = subprocess.Popen(
    [installed.tfreid, 'serve', '--index=index', '--port=0'],
    cwd=installed.folder,
    env=installed.environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  try:
    said = ''
    for line in process.stdout:
      said += line
      if found := re.match(r'Open (http://\S+?)/?\s', line):
        break
    else:
      pytest.fail(f'The server did not start: {said}')
    question = json.dumps({'words': 'woman, red top', 'top_k': 3}).encode()
    request = urllib.request.Request(
      f'{found[1]}/api/v1/search', question, {'Content-Type': 'application/json'}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
      return [hit['id'] for hit in json.load(response)['hits']]
  finally:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
