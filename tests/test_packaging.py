"""The door: metadata, pinned versions, refused versions, and the environment that make sets up."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import tfreid

ROOT = Path(__file__).parent.parent
PYTHONS = ('3.9', '3.10', '3.11')


def _requirements():
  """All requirements of setup.cfg, those of the extras included."""
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  groups = [config['options']['install_requires'], *config['options.extras_require'].values()]
  lines = [line.strip() for group in groups for line in group.splitlines()]
  return [Requirement(line) for line in lines if line and not line.startswith('#')]


def _pins(python):
  text = (ROOT / 'constraints' / f'python{python}.txt').read_text()
  pins = re.findall(r'(?m)^([\w.-]+)==(\S+) \\$', text)
  return {_normal(name): Version(version) for name, version in pins}


def _blocks(lock):
  """Each requirement of a lock with the hashes below it."""
  lines = [line for line in lock.read_text().splitlines() if line and not line.startswith('#')]
  return re.split(r'\n(?=\S)', '\n'.join(lines))


def _normal(name):
  return re.sub(r'[-_.]+', '-', name).lower()


@pytest.mark.parametrize('python', PYTHONS)
def test_the_pinned_versions_satisfy_every_requirement(python):
  pins = _pins(python)
  checked = 0
  for requirement in _requirements():
    if requirement.marker and not requirement.marker.evaluate({'python_version': python}):
      continue
    assert pins[_normal(requirement.name)] in requirement.specifier, requirement
    checked += 1
  assert checked > 15


def test_everything_that_is_installed_with_the_package_is_pinned():
  """Follows the requirements of what is installed here, so it speaks of this Python."""
  pins = _pins(f'{sys.version_info.major}.{sys.version_info.minor}')
  open_, seen = [(requirement, '') for requirement in _requirements()], set()
  while open_:
    requirement, extra = open_.pop()
    name = _normal(requirement.name)
    if requirement.marker and not requirement.marker.evaluate({'extra': extra}):
      continue
    try:
      needed = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
      continue  # of an extra that is not installed here
    for option in ('', *requirement.extras):
      if (name, option) not in seen:
        seen.add((name, option))
        open_ += [(Requirement(line), option) for line in needed]
  installed = {name for name, _ in seen}
  assert len(installed) > 40
  assert installed - set(pins) == set()


def test_the_pins_name_every_python_that_the_metadata_allows():
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  allowed = Requirement(f'python{config["options"]["python_requires"]}').specifier
  assert [f'3.{minor}' for minor in range(20) if f'3.{minor}' in allowed] == list(PYTHONS)
  files = sorted(path.name for path in (ROOT / 'constraints').iterdir())
  locks = [f'python{python}.txt' for python in PYTHONS]
  assert files == sorted([*locks, 'gpu.txt', 'audit.txt', 'docs.txt', 'uv.txt'])


@pytest.mark.parametrize('lock', sorted((ROOT / 'constraints').iterdir()), ids=lambda p: p.stem)
def test_every_package_of_a_lock_has_its_version_and_hashes_and_no_address(lock):
  text = lock.read_text()
  assert text.startswith('# ') and 'Written by `make lock`' in text.splitlines()[1]
  assert '://' not in text and '--index-url' not in text and '--find-links' not in text
  blocks = _blocks(lock)
  assert blocks
  for block in blocks:
    first, *hashes = block.split('\n')
    assert re.fullmatch(r'[\w.-]+==\S+ \\', first), first
    assert hashes and all(
      re.fullmatch(r'    --hash=sha256:[0-9a-f]{64}( \\)?', line) for line in hashes
    ), first


# Import name -> the distribution that brings it, where the two differ; several can bring google.
DISTRIBUTIONS = {
  'PIL': 'pillow',
  'absl': 'absl-py',
  'gin': 'gin-config',
  'google': 'protobuf',
  'grpc': 'grpcio',
  'milvus_lite': 'milvus-lite',
  'tensorflow_addons': 'tensorflow-addons',
  'tensorflow_serving': 'tensorflow-serving-api',
}
# The parts of the package that need an extra; the first that fits counts.
EXTRAS = {
  'tfreid/index/milvus.py': 'milvus',
  'tfreid/search/client': 'client',
  'tfreid/networks/osnet_weights.py': 'onnx',
  'tfreid/serving/openvino_encoder.py': 'openvino',
  'tfreid/web/': 'serve',
  'tfreid/fibers.py': 'serve',
  'tfreid/serving/packed.py': 'serve',
  'tfreid/cli/serve.py': 'serve',
  'tfreid/comparison/figure.py': 'report',
  'tfreid/evaluation/partial.py': 'report',
}


def _imports():
  """Yields (file, distribution) for each import of a library, wherever in the file it stands."""
  for path in sorted((ROOT / 'tfreid').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom) and not node.level:
        modules = [node.module]
      else:
        continue
      for module in modules:
        top = module.partition('.')[0]
        if top not in sys.stdlib_module_names and top not in ('tfreid', '__gin__'):
          yield path.relative_to(ROOT).as_posix(), _normal(DISTRIBUTIONS.get(top, top))


@pytest.mark.skipif(sys.version_info < (3, 10), reason='Python 3.9 does not list its own modules')
def test_what_is_imported_is_declared_where_it_is_needed():
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')

  def named(text):
    lines = [line.strip() for line in text.splitlines()]
    return {_normal(Requirement(line).name) for line in lines if line and line[0] != '#'}

  always = named(config['options']['install_requires'])
  extras = {name: named(text) for name, text in config['options.extras_require'].items()}
  imports = sorted(set(_imports()))
  undeclared = [
    (file, name)
    for file, name in imports
    if name
    not in always.union(*(extras[extra] for part, extra in EXTRAS.items() if file.startswith(part)))
  ]
  assert undeclared == []
  # And nothing is declared that nobody imports, but for what is needed unseen.
  unseen = {'setuptools', 'python-multipart', 'uvloop'}
  used = {name for _, name in imports}
  assert always.union(*(extras[name] for name in set(EXTRAS.values()))) - used - unseen == set()


@pytest.mark.parametrize('module', ['tfreid', 'tfreid.search', 'tfreid.index', 'tfreid.cli.main'])
def test_an_import_warns_of_nothing_and_does_not_wait_for_tensorflow(module):
  code = f"import sys, {module}; sys.exit('tensorflow' in sys.modules)"
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.skipif(sys.platform != 'linux', reason='oneDNN is a choice in TensorFlow for Linux')
def test_tensorflow_imported_first_and_without_onednn_is_said():
  code = """
    import warnings, tensorflow
    from tensorflow.python.util._pywrap_util_port import IsMklEnabled
    with warnings.catch_warnings(record=True) as said:
      warnings.simplefilter('always')
      import tfreid
    said = [w for w in said if 'oneDNN' in str(w.message)]
    print(IsMklEnabled(), len(said), {w.filename for w in said} <= {'<string>'})
  """
  environment = {k: v for k, v in os.environ.items() if k != 'TF_ENABLE_ONEDNN_OPTS'}
  arguments = {'cwd': ROOT, 'capture_output': True, 'text': True, 'check': True}
  command = [sys.executable, '-c', textwrap.dedent(code)]
  done = subprocess.run(command, env=environment, **arguments)
  # By itself TensorFlow uses it on processors with AVX512-VNNI only.
  assert done.stdout.split() in (['True', '0', 'True'], ['False', '1', 'True'])
  done = subprocess.run(command, env={**environment, 'TF_ENABLE_ONEDNN_OPTS': '0'}, **arguments)
  assert done.stdout.split() == ['False', '0', 'True']


def test_the_package_tells_type_checkers_that_it_has_types_and_names_no_page_that_is_not_there():
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  assert (ROOT / 'tfreid' / 'py.typed').is_file()
  assert 'url' not in config['metadata'] and 'project_urls' not in config['metadata']


@pytest.mark.parametrize(
  ('installed', 'said'),
  [
    ({}, 'no TensorFlow is installed'),
    ({'tensorflow': '2.16.1', 'keras': '3.0.5'}, 'tensorflow 2.16.1 is installed'),
    ({'tensorflow': '2.14.0', 'keras': '2.14.0'}, 'tensorflow 2.14.0 is installed'),
    ({'tensorflow': '2.15.1', 'keras': '3.3.2'}, 'Keras 3.3.2 is installed'),
    ({'tensorflow-cpu': '2.15.1'}, 'no Keras is installed'),
    ({'tensorflow': '2.15.1', 'tf-nightly': '2.18.0', 'keras': '2.15.0'}, 'tf-nightly 2.18.0'),
  ],
)
def test_versions_that_cannot_work_are_refused_with_advice(installed, said):
  with pytest.raises(ImportError, match=re.escape(said)) as error:
    tfreid.check_versions(installed.get)
  assert "pip install 'tensorflow>=2.15.1,<2.16' keras==2.15.0" in str(error.value)


def test_the_versions_of_the_stack_are_accepted():
  tfreid.check_versions({'tensorflow': '2.15.1', 'keras': '2.15.0'}.get)
  tfreid.check_versions({'tensorflow-macos': '2.15.1', 'keras': '2.15.0'}.get)


# The set-up. `Door` is a copy of it with an interpreter that only writes down what it is asked.

INTERPRETER = """\
  #!/bin/sh
  case "$1 $2" in
    '- ') cat >/dev/null; printf '%s\\n' "$ANSWER" ;;
    '-m venv')
      echo venv >>"$ASKED"
      mkdir -p "$3/bin" && : >"$3/pyvenv.cfg" && cp "$0" "$3/bin/python" ;;
    '-m pip') echo pip >>"$ASKED"; exit "$PIP_STATUS" ;;
    '-c import sys'*) echo 3.11 ;;
  esac
  """
COMMANDS = (
  'sh cat cksum cp date dirname find flock grep ls mkdir mktemp mv pwd rm sed sleep tail uname wc'
)


class Door:
  """A copy of the set-up, in a world whose only programs are COMMANDS and those of `bin`."""

  def __init__(self, root):
    self.root = root / 'project'
    self.bin = root / 'bin'
    self.asked = root / 'asked'
    self.venv = self.root / '.venv'
    self.stamp = self.venv / 'tfreid-installed'
    self.bin.mkdir()
    for name in COMMANDS.split():
      if shutil.which(name):
        (self.bin / name).symlink_to(shutil.which(name))
    shutil.copytree(ROOT / 'constraints', self.root / 'constraints')
    shutil.copy(ROOT / 'setup.cfg', self.root)
    (self.root / 'tools').mkdir()
    shutil.copy(ROOT / 'tools' / 'bootstrap.sh', self.root / 'tools')

  def add_interpreter(self, name):
    path = self.bin / name
    path.write_text(textwrap.dedent(INTERPRETER))
    path.chmod(0o755)
    return path

  def open(self, answer='', pip_status=0, **environment):
    """Runs the set-up and returns (exit status, what it said, what interpreters were asked for)."""
    self.asked.write_text('')
    done = subprocess.run(
      ['sh', str(self.root / 'tools' / 'bootstrap.sh')],
      env={
        'PATH': str(self.bin),
        'HOME': str(self.root),
        'ASKED': str(self.asked),
        'ANSWER': answer or f'yes {self.bin / "python3.11"}',
        'PIP_STATUS': str(pip_status),
        **environment,
      },
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      check=False,
      timeout=60,
    )
    return done.returncode, done.stdout + done.stderr, self.asked.read_text().split()


@pytest.fixture
def door(tmp_path):
  return Door(tmp_path)


def test_without_any_python_one_sentence_says_what_to_do(door):
  status, said, _ = door.open()
  assert status == 1
  assert said.count('\n') == 1
  assert 'needs Python 3.9, 3.10 or 3.11' in said
  assert 'found: no Python at all' in said
  assert 'PYTHON=/path/to/python3.11' in said
  assert not door.stamp.exists()


def test_an_unsupported_python_is_named(door):
  door.add_interpreter('python3')
  status, said, _ = door.open(answer='no 3.13.0', pip_status=1)
  assert status == 1
  assert 'found: python3 is 3.13.0' in said
  assert not (door.venv / 'bin').exists()


def test_where_no_python_is_found_uv_is_asked_for_one(door):
  managed = door.add_interpreter('managed-python')
  uv = door.bin / 'uv'
  uv.write_text(f'#!/bin/sh\nif [ "$1 $2" = "python find" ]; then echo {managed}; fi\n')
  uv.chmod(0o755)
  status, said, asked = door.open()
  assert (status, asked) == (0, ['venv', 'pip', 'pip'])
  assert f'Making the environment .venv with {managed}' in said


def test_where_uv_cannot_fetch_a_python_the_sentence_quotes_it(door):
  uv = door.bin / 'uv'
  uv.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "error: no network"\nexit 2\n')
  uv.chmod(0o755)
  status, said, _ = door.open()
  assert status == 1
  assert "uv says 'error: no network'" in said
  assert 'install Python 3.11' in said


def test_the_environment_is_made_once(door):
  door.add_interpreter('python3.11')
  status, said, asked = door.open()
  assert (status, asked) == (0, ['venv', 'pip', 'pip'])
  assert said.endswith('The environment .venv is ready.\n')
  assert door.open() == (0, '', [])


def test_changed_pins_are_installed_into_the_same_environment(door):
  door.add_interpreter('python3.11')
  door.open()
  with open(door.root / 'constraints' / 'python3.11.txt', 'a') as file:
    file.write('another==1.0\n')
  status, _, asked = door.open()
  assert (status, asked) == (0, ['pip', 'pip'])
  assert door.open()[2] == []


def test_other_extras_are_installed_into_the_same_environment(door):
  door.add_interpreter('python3.11')
  door.open()
  assert door.open(EXTRAS='gpu')[2] == ['pip', 'pip']


def test_an_interrupted_install_does_not_look_finished(door):
  door.add_interpreter('python3.11')
  status, said, asked = door.open(pip_status=1)
  assert (status, asked) == (1, ['venv', 'pip'])
  assert 'Installing failed' in said
  assert not door.stamp.exists()
  # What pip left may be half a package, so the next run begins with an empty environment.
  left = door.venv / 'lib' / 'half-a-package'
  left.parent.mkdir()
  left.touch()
  status, _, asked = door.open()
  assert (status, asked) == (0, ['venv', 'pip', 'pip'])
  assert not left.exists()


def test_an_interrupted_renewal_does_not_look_finished(door):
  door.add_interpreter('python3.11')
  door.open()
  assert door.open(EXTRAS='gpu', pip_status=1)[0] == 1
  assert door.open()[2] == ['venv', 'pip', 'pip']


def test_a_moved_project_gets_a_new_environment(door):
  door.add_interpreter('python3.11')
  door.open()
  moved = door.root.with_name('moved')
  door.root.rename(moved)
  door.root = moved
  status, said, asked = door.open()
  assert (status, asked) == (0, ['venv', 'pip', 'pip'])
  assert 'was made for' in said


def test_a_forced_interpreter_that_does_not_fit_leaves_the_environment_alone(door):
  door.add_interpreter('python3.11')
  door.open()
  status, said, asked = door.open(PYTHON='/nowhere/python3.10')
  assert (status, asked) == (1, [])
  assert 'PYTHON=/nowhere/python3.10 does not run' in said
  assert door.open() == (0, '', [])


def test_a_folder_of_other_things_is_not_emptied(door):
  door.add_interpreter('python3.11')
  precious = door.root / 'precious'
  precious.mkdir()
  (precious / 'thesis.tex').touch()
  status, said, _ = door.open(VENV=str(precious))
  assert status == 1
  assert 'holds other things' in said
  assert (precious / 'thesis.tex').exists()


def test_make_without_a_goal_lists_the_goals():
  if not shutil.which('make'):
    pytest.skip('no make here')
  said = subprocess.run(['make'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
  goals = 'demo tables test test-fast lint format docs bench lock audit clean'.split()
  for goal in goals:
    assert f'  make {goal} ' in said


def test_a_lock_is_made_of_every_extra():
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  script = (ROOT / 'tools' / 'lock.sh').read_text()
  locked = set(re.findall(r'--extra (\w+)', script))
  assert locked == set(config['options.extras_require']) - {'gpu'}
