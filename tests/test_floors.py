"""The floors of the house: who may import whom, read from the sources without running them.

F7  __main__
F6  cli                                              the command; it alone knows gin
F5  experiment, reporting, comparison, search, web   compose the rest; know everyone below
F4  training, evaluation, serving, index             rooms; none imports another
F3  methods                                          training alone sees it, only methods.method
    serving.stored_encoders, serving.openvino_encoder
F2  joint_space, source, serving.loading,            the waists: what is trained, what is searched
    serving.folding
F1  networks, data, serving.versions                 rooms that do not know each other
F0  losses, correlation, replicas, spec, storage, printable, templating, forks, cancellation,
    fibers, evaluation.ranking, serving.search, serving.errors,
    serving.signatures, serving.operations, serving.light_encoder, serving.summation,
    serving.quantized, image_bytes
Cellar  text, threads, processor; query,             what even the ground floor stands on
        serving.packed, serving.candidates above them
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The longest prefix of a module's name decides: its floor and its room.
FLOORS = {
  'tfreid.losses': 0,
  'tfreid.correlation': 0,
  'tfreid.replicas': 0,
  'tfreid.spec': 0,
  'tfreid.text': -2,
  'tfreid.threads': -2,
  'tfreid.processor': -2,
  'tfreid.query': -1,
  'tfreid.serving.candidates': -1,
  'tfreid.serving.packed': -1,
  'tfreid.cancellation': 0,
  'tfreid.fibers': 0,
  'tfreid.storage': 0,
  'tfreid.printable': 0,
  'tfreid.templating': 0,
  'tfreid.forks': 0,
  'tfreid.evaluation.ranking': 0,
  'tfreid.serving.search': 0,
  'tfreid.serving.errors': 0,
  'tfreid.serving.signatures': 0,
  'tfreid.serving.operations': 0,
  'tfreid.serving.light_encoder': 0,
  'tfreid.serving.summation': 0,
  'tfreid.serving.quantized': 0,
  'tfreid.image_bytes': 0,
  'tfreid.serving.versions': 1,
  'tfreid.serving.loading': 2,
  'tfreid.serving.folding': 2,
  'tfreid.serving.stored_encoders': 3,
  'tfreid.serving.openvino_encoder': 3,
  'tfreid.networks': 1,
  'tfreid.data': 1,
  'tfreid.joint_space': 2,
  'tfreid.source': 2,
  'tfreid.methods': 3,
  'tfreid.training': 4,
  'tfreid.evaluation': 4,
  'tfreid.serving': 4,
  'tfreid.index': 4,
  'tfreid.search': 5,
  'tfreid.experiment': 5,
  'tfreid.reporting': 5,
  'tfreid.comparison': 5,
  'tfreid.web': 5,
  'tfreid.cli': 6,
  'tfreid.__main__': 7,
}

# Libraries that have a seat: the modules that may import them.
SEATS = {
  'gin': ('tfreid.cli',),
  '__gin__': (),
  'tensorflow_addons': ('tfreid.data.pipeline',),
  'simsimd': ('tfreid.serving.quantized',),
  'numkong': ('tfreid.serving.packed',),
  'onnxruntime': ('tfreid.serving.packed',),
  'openvino': ('tfreid.serving.openvino_encoder',),
  'greenlet': ('tfreid.fibers',),
  'pandas': ('tfreid.data', 'tfreid.evaluation.results'),
  'jinja2': ('tfreid.templating',),
  'tools': (),
  'benchmarks': (),
  'tests': (),
}

# Packages with a door: others import what their __init__ names, and none of their modules.
DOORS = ('tfreid.data.synthetic', 'tfreid.comparison.report')

# Packages with modules on several floors, or with more than others may see: importing one module
# runs the package's __init__, so that must open no room; a function in it may, when it is called.
SEALED = ('tfreid', 'tfreid.evaluation', 'tfreid.methods', 'tfreid.serving')


def _is_within(module: str, package: str) -> bool:
  return module == package or module.startswith(package + '.')


def _room(module: str) -> str | None:
  rooms = [room for room in FLOORS if _is_within(module, room)]
  return max(rooms, key=len) if rooms else None


def _walk(node: ast.AST, runs: bool = True) -> Iterator[tuple[ast.AST, bool]]:
  """Yields each node below one, and whether it runs when the module is imported."""
  if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or (
    isinstance(node, ast.If) and getattr(node.test, 'id', '') == 'TYPE_CHECKING'
  ):
    runs = False
  for child in ast.iter_child_nodes(node):
    yield child, runs
    yield from _walk(child, runs)


def _imported_modules(tree: ast.Module, package: str, modules: set[str]) -> Iterator[tuple]:
  """Yields (line, module, whether at import) for each import, wherever in the file it stands."""
  for node, runs in _walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name, runs
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ''
      if node.level:
        parents = package.split('.')[: len(package.split('.')) - node.level + 1]
        base = '.'.join([*parents, base] if base else parents)
      for alias in node.names:
        # `from package import name` names a module or something inside the package.
        full = f'{base}.{alias.name}'
        yield node.lineno, full if full in modules else base, runs
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
      name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
      if name in ('import_module', '__import__') and isinstance(node.args[0].value, str):
        yield node.lineno, node.args[0].value, runs


def _objection(module: str, imported: str, runs: bool) -> str | None:
  """Why `module` may not import `imported`; None if it may."""
  for library, seats in SEATS.items():
    if _is_within(imported, library) and not any(_is_within(module, seat) for seat in seats):
      return f'{library} is for {" and ".join(seats) or "tools/ and gin/"}'
  if not _is_within(imported, 'tfreid') or imported == 'tfreid':
    return None
  for door in DOORS:
    if imported.startswith(f'{door}.') and not _is_within(module, door):
      return f'{door} is imported by what its __init__ names'
  if module == 'tfreid' or (module in SEALED and runs):
    return f"{module}'s __init__ opens no room"
  room, other = _room(module), _room(imported)
  if other is None:
    return f'{imported} has no floor'
  if room == other or FLOORS[room] > max(4, FLOORS[other]) or FLOORS[room] == FLOORS[other] == 5:
    return None
  if FLOORS[other] >= FLOORS[room]:
    return f'{room} is on floor {FLOORS[room]}, {other} on floor {FLOORS[other]}'
  if other == 'tfreid.methods' and room != 'tfreid.training':
    return f'{room} knows of a method only its joint space'
  if other == 'tfreid.methods' and not _is_within(imported, 'tfreid.methods.method'):
    return 'training knows the interface of methods, tfreid.methods.method, and no method'
  return None


def violations(root: Path) -> list[str]:
  """Each import under root/tfreid that the floors forbid, as 'file:line: module: why'."""
  files = {}
  for path in sorted((root / 'tfreid').rglob('*.py')):
    parts = path.relative_to(root).with_suffix('').parts
    is_package = parts[-1] == '__init__'
    files['.'.join(parts[:-1] if is_package else parts)] = path, is_package
  found = []
  for module, (path, is_package) in files.items():
    name = path.relative_to(root).as_posix()
    if _room(module) is None and module != 'tfreid':
      found.append(f'{name}: {module} has no floor; give it one in tests/test_floors.py')
      continue
    tree = ast.parse(path.read_text(encoding='utf-8'), filename=str(path))
    package = module if is_package else module.rpartition('.')[0]
    for line, imported, runs in _imported_modules(tree, package, set(files)):
      objection = _objection(module, imported, runs)
      if objection:
        found.append(f'{name}:{line}: {imported}: {objection}')
  return found


@pytest.fixture
def house(tmp_path):
  """Writes a small house: house({'data/pipeline.py': source}) -> its violations."""

  def build(sources):
    for name in ('losses', 'replicas', 'spec', 'joint_space', 'experiment', 'reporting'):
      _write(tmp_path, f'{name}.py', '')
    for name in ('evaluation/ranking', 'evaluation/retrieval', 'methods/method', 'data/pipeline'):
      _write(tmp_path, f'{name}.py', '')
    for name in ('methods/mmd', 'training/trainer', 'serving/retriever', 'networks/image'):
      _write(tmp_path, f'{name}.py', '')
    for name, source in sources.items():
      _write(tmp_path, name, source)
    return violations(tmp_path)

  return build


def _write(root, name, source):
  path = root / 'tfreid' / name
  path.parent.mkdir(parents=True, exist_ok=True)
  (path.parent / '__init__.py').touch()
  path.write_text(source)


def test_no_import_of_the_package_breaks_the_floors():
  assert len(list((ROOT / 'tfreid').rglob('*.py'))) > 10
  assert violations(ROOT) == []


@pytest.mark.parametrize(
  ('file', 'source'),
  [
    # Upward.
    ('losses.py', 'from tfreid import joint_space'),
    ('networks/image.py', 'import tfreid.methods.method'),
    ('data/pipeline.py', 'from tfreid.evaluation import retrieval'),
    ('joint_space.py', 'from tfreid.serving.retriever import Retriever'),
    ('methods/mmd.py', 'from tfreid.training.trainer import Trainer'),
    ('evaluation/ranking.py', 'from tfreid.evaluation import retrieval'),
    # Upward, in disguise.
    ('losses.py', 'def f():\n  import tfreid.joint_space'),
    ('losses.py', 'from . import joint_space'),
    ('networks/image.py', 'from ..methods.method import Method'),
    ('networks/image.py', "import importlib\nimportlib.import_module('tfreid.methods.method')"),
    (
      'networks/image.py',
      'try:\n  from tfreid.joint_space import JointSpace\nexcept ImportError:\n  pass',
    ),
    ('training/trainer.py', 'from tfreid import experiment'),
    # Sideways.
    ('losses.py', 'from tfreid import replicas'),
    ('networks/image.py', 'from tfreid.data import pipeline'),
    ('data/pipeline.py', 'from tfreid.networks.image import resnet50'),
    ('training/trainer.py', 'from tfreid.evaluation.retrieval import evaluate'),
    ('evaluation/retrieval.py', 'from tfreid.training import trainer'),
    ('serving/retriever.py', 'from tfreid.evaluation.retrieval import similarity'),
    ('index/embedded.py', 'from tfreid.search.page import as_html'),
    ('source/protocol.py', 'from tfreid.index import engine'),
    ('source/protocol.py', 'def load():\n  from tfreid.search import remote'),
    # Past a door.
    ('reporting.py', 'from tfreid.data.synthetic.sheet import contact_sheet'),
    ('data/folder.py', 'import tfreid.data.synthetic.palette'),
    # Past the waist.
    ('training/trainer.py', 'from tfreid.methods.mmd import MMD'),
    ('training/trainer.py', 'from tfreid.methods import mmd'),
    ('training/trainer.py', 'import tfreid.methods'),
    ('evaluation/retrieval.py', 'from tfreid.methods.method import Method'),
    ('serving/retriever.py', 'from tfreid.methods import method'),
    # Libraries out of their seats.
    ('training/trainer.py', 'import gin'),
    ('experiment.py', 'import gin'),
    ('experiment.py', 'from tfreid.cli import startup'),
    ('methods/mmd.py', 'from gin import configurable'),
    ('networks/image.py', 'import tensorflow_addons as tfa'),
    ('data/attributes.py', 'from tensorflow_addons.image import random_cutout'),
    ('training/trainer.py', 'import pandas as pd'),
    ('evaluation/retrieval.py', 'from pandas import DataFrame'),
    ('data/pipeline.py', 'from tools import demo'),
    # Rooms of no floor, and packages that open rooms they must not.
    ('utils.py', ''),
    ('misc.py', 'import os'),
    ('data/pipeline.py', 'import tfreid.utils'),
    ('methods/__init__.py', 'from tfreid.methods.mmd import MMD'),
    ('evaluation/__init__.py', 'from . import retrieval'),
    ('__init__.py', 'from tfreid import spec'),
    ('__init__.py', 'def load():\n  from tfreid import spec'),
    ('serving/__init__.py', 'if True:\n  from tfreid.evaluation import ranking'),
    ('methods/__init__.py', 'def load():\n  from tfreid.training import trainer'),
    ('networks/__init__.py', 'from tfreid.joint_space import JointSpace'),
  ],
)
def test_a_forbidden_import_is_found(house, file, source):
  found = house({file: source})
  assert len(found) == 1
  assert found[0].startswith(f'tfreid/{file}')


@pytest.mark.parametrize(
  ('file', 'source'),
  [
    ('training/trainer.py', 'from tfreid.methods.method import Method'),
    ('training/trainer.py', 'from tfreid.methods import method'),
    ('training/trainer.py', 'from tfreid.data import pipeline'),
    ('training/stages.py', 'from tfreid.training.trainer import Trainer'),
    ('evaluation/retrieval.py', 'from tfreid.evaluation import ranking'),
    ('evaluation/retrieval.py', 'from tfreid.joint_space import JointSpace'),
    ('evaluation/results.py', 'import pandas as pd'),
    ('serving/retriever.py', 'from tfreid.evaluation.ranking import rank'),
    ('methods/mmd.py', 'import tfreid.losses\nfrom . import method\nfrom .. import replicas'),
    ('methods/mmd.py', 'from tfreid.networks import image'),
    ('networks/__init__.py', 'from tfreid.networks.image import resnet50'),
    ('search/__init__.py', 'def load():\n  from tfreid.serving import retriever'),
    ('search/__init__.py', 'if TYPE_CHECKING:\n  from tfreid.serving import retriever'),
    ('index/embedded.py', 'from tfreid.source.answer import Answer'),
    ('joint_space.py', 'from tfreid import __version__'),
    ('reporting.py', 'from tfreid.data.synthetic import contact_sheet'),
    ('data/synthetic/scene.py', 'from tfreid.data.synthetic.palette import shade'),
    ('experiment.py', 'from tfreid import reporting\nfrom tfreid.methods import mmd'),
    ('data/pipeline.py', 'import tensorflow_addons as tfa\nimport pandas'),
    ('losses.py', 'import tensorflow as tf\nimport ginger'),
  ],
)
def test_a_downward_import_is_allowed(house, file, source):
  assert house({file: source}) == []


def test_several_violations_are_each_named_with_file_and_line(house):
  found = house({'spec.py': 'import os\nimport gin\nfrom tfreid import losses, replicas\n'})
  assert [line.split(': ')[:2] for line in found] == [
    ['tfreid/spec.py:2', 'gin'],
    ['tfreid/spec.py:3', 'tfreid.losses'],
    ['tfreid/spec.py:3', 'tfreid.replicas'],
  ]


def table() -> str:
  """FLOORS as the lines of docs/architecture.md; `python tests/test_floors.py` prints it."""
  lines = ['| floor | rooms |', '|---|---|']
  for floor in sorted(set(FLOORS.values()), reverse=True):
    rooms = sorted(name.removeprefix('tfreid.') for name, on in FLOORS.items() if on == floor)
    lines.append(f'| F{floor} | {", ".join(f"`{room}`" for room in rooms)} |')
  return '\n'.join(lines)


def test_the_document_shows_the_floors_as_they_are():
  text = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')
  assert table() in text, 'print it with `python tests/test_floors.py`'


def test_a_package_stands_on_one_floor():
  split = {name.split('.')[1] for name in FLOORS if name.count('.') > 1}
  # What is left to mend; no other may be added.
  assert split <= {'evaluation', 'serving'}


def test_the_folder_gin_does_not_shadow_gin_config():
  """A package beats a folder of the same name on the path, unless the folder is a package too."""
  assert (ROOT / 'gin').is_dir()
  assert list((ROOT / 'gin').rglob('*.py')) == []
  import gin

  assert callable(gin.parse_config_files_and_bindings)


if __name__ == '__main__':
  print(table())
