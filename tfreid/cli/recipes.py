"""What a recipe will cost and what it depends on, read from gin files unexecuted. Floor 5.

Importing what a recipe names takes TensorFlow and seconds; planning dozens of runs needs neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tfreid.cli import gin_reading
from tfreid.cli.gin_reading import Macro, Reference
from tfreid.cli.main import did_you_mean

_STAGES, _DATASET = 'STAGES', 'DATASET'


class Recipe:
  """The bindings of gin files, the last of each name, as they would be used."""

  def __init__(self, files: Sequence[str], bindings: Sequence[str] = ()):
    """Reads the files in order, then the bindings, which win.

    Args:
      files: names or paths, as `gin_reading.gin_path` takes them.
      bindings: 'name = value'.

    Raises:
      ValueError: gin could not read a file.
      FileNotFoundError: there is none.
    """
    from gin import config_parser

    self.values: dict[str, Any] = {}
    for statement, _ in gin_reading.read(files, bindings):
      if isinstance(statement, config_parser.BindingStatement):
        self.values[_name(statement)] = statement.value

  def get(self, name: str, argument: str, default: Any = None) -> Any:
    """What a configurable's argument is bound to in its scope, or else without one."""
    plain = name.rpartition('/')[2]
    for key in (f'{name}.{argument}', f'{plain}.{argument}'):
      if key in self.values:
        return self.resolve(self.values[key])
    return default

  def resolve(self, value: Any) -> Any:
    """A value with its macros replaced; a macro that nothing binds stays one."""
    seen = set()
    while isinstance(value, Macro) and value.name in self.values and value.name not in seen:
      seen.add(value.name)
      value = self.values[value.name]
    return value

  def stages(self) -> list[str]:
    """The scoped names of the recipe's stages, in order.

    Raises:
      ValueError: no file names any.
    """
    stages = self.resolve(Macro(_STAGES))
    if (
      isinstance(stages, (Macro, Reference)) or not isinstance(stages, (list, tuple)) or not stages
    ):
      raise ValueError('The gin files name no STAGES. Is there a method among them?')
    return [self.resolve(stage).name for stage in stages]

  def legs(self):
    """What each stage costs, a list of `plan.Leg`."""
    from tfreid.comparison.plan import Leg

    legs = []
    for stage in self.stages():
      method = self.get(stage, 'method')
      if not isinstance(method, Reference):
        raise ValueError(f"The stage '{stage}' has no method.")
      pipeline = self.get(stage, 'pipeline', Reference('pipeline.Pipeline'))
      batch_size = self.get(pipeline.name, 'batch_size', 0)
      # A batch size of its own means: of features, which are extracted once.
      own = self.get(method.name, 'batch_size')
      frozen = own is not None and bool(self.get(method.name, 'frozen', True))
      legs.append(
        Leg(
          name=self.get(stage, 'name', ''),
          method=method.name.rpartition('/')[2],
          epochs=int(self.get(stage, 'epochs', 0)),
          batch_size=max(0, int(own if frozen else batch_size)),
          frozen=frozen,
        )
      )
    return legs

  def dataset(self) -> tuple[str, dict[str, Any]]:
    """What reads the data, 'module.function' ('' if nothing names it), and its arguments."""
    reader = self.resolve(Macro(_DATASET))
    if not isinstance(reader, Reference):
      return '', {}
    arguments = {
      key.rpartition('.')[2]: self.resolve(value)
      for key, value in self.values.items()
      if key.rpartition('.')[0] == reader.name
    }
    known = {name: value for name, value in arguments.items() if not isinstance(value, Macro)}
    return reader.name, known

  def fingerprint(self) -> str:
    """A hash of what the run depends on: bindings that nothing it uses refers to do not count."""
    kept = [(key, repr(self.values[key])) for key in self.used()]
    return hashlib.sha256(repr(sorted(kept)).encode()).hexdigest()[:16]

  def used(self) -> set[str]:
    """The names of the bindings that the run makes use of."""
    functions, scopes, macros = self._reachable()
    kept = set()
    for key in self.values:
      scope, _, rest = key.rpartition('/')
      if key in macros or (
        '.' in key
        and rest.rpartition('.')[0] in functions
        and (not scope or set(scope.split('/')) <= scopes)
      ):
        kept.add(key)
    return kept

  def _reachable(self) -> tuple[set[str], set[str], set[str]]:
    """Configurables, scopes and macros that the root refers to, directly or through others."""
    used, macros = {'experiment.train'}, {_STAGES}
    scopes: set[str] = set()
    while True:
      before = len(used) + len(scopes) + len(macros)
      for key, value in self.values.items():
        scope, _, plain = key.rpartition('/')
        in_scope = not scope or set(scope.split('/')) <= scopes
        if key in macros or (plain.rpartition('.')[0] in used and in_scope):
          for mention in _mentioned(value):
            if isinstance(mention, Macro):
              macros.add(mention.name)
            else:
              scope, _, name = mention.name.rpartition('/')
              used.add(name)
              scopes.update(part for part in scope.split('/') if part)
      if len(used) + len(scopes) + len(macros) == before:
        return used, scopes, macros


def check_use(
  recipes: Iterable[Recipe],
  files: Sequence[str],
  bindings: Sequence[str],
  origin: str = '--gin_bindings',
):
  """Refuses bindings of the user that no recipe makes use of: a misspelled name, most likely.

  Args:
    recipes: of all systems, with these files and bindings among their own.
    files: the user's overlays; what comes with tfreid may serve systems that are not among these.
    bindings: the user's, 'name = value'.
    origin: of the bindings, for the message.

  Raises:
    ValueError: the first of them, with the name that was meant, if one is near.
  """
  from gin import config_parser

  used = set().union(*(recipe.used() for recipe in recipes))
  for written in gin_reading.read(files, bindings):
    if written.shipped or not isinstance(written.statement, config_parser.BindingStatement):
      continue
    name = _name(written.statement)
    if name not in used:
      place = written.place if written.path else origin
      raise ValueError(
        f'{place}: {name} is bound, but no system makes use of it.{did_you_mean(name, used)}'
      )


def _name(statement: Any) -> str:
  """The name of a binding, with its scope and argument."""
  scope = f'{statement.scope}/' if statement.scope else ''
  argument = f'.{statement.arg_name}' if statement.arg_name else ''
  return f'{scope}{statement.selector}{argument}'


def _mentioned(value: Any) -> Iterator[Any]:
  """References and macros inside a value."""
  if isinstance(value, (Reference, Macro)):
    yield value
  elif isinstance(value, Mapping):
    for item in value.values():
      yield from _mentioned(item)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from _mentioned(item)
