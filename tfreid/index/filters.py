r"""Conditions on what is known of a crop: a small language, read and never executed. Floor 4.

    camera in [1, 2] and time >= "2024-01-01" and not (site == "north" or track is None)

Fields are compared with constants: ==, !=, <, <=, >, >=, in, not in, is None, is not None; these
are joined by and, or, not. A comparison with a field that a crop does not have is neither true nor
false, and neither is its opposite: such a crop is not answered unless `is None` asks for it. That
is SQL's rule, and it lets `not` be moved inward until it stands before comparisons only. So
conditions here have no "not", and mean the same to every engine.

Texts stand in single or double quotation marks. In them `\\` is a backslash, `\"` and `\'` are
quotation marks, and `\u00f8` is a letter by its number. Any other backslash is refused: most often
somebody wrote a path with single ones. In r"C:\crops" all backslashes are just that. The curly
marks of some keyboards and most word processors are quotation marks as well. A letter with an
accent is the same letter whether its accent is a character of its own or not.

Texts are ordered letter by letter, and times (a date and a time of day of ISO 8601) as the instants
they name: see `tfreid.data.times`.
"""

from __future__ import annotations

import ast
import bisect
import dataclasses
import functools
import json
import keyword
import re
import threading
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Union

import numpy as np

from tfreid import cancellation, query
from tfreid.data import times
from tfreid.text import check_length, did_you_mean, normalized, shortened

Value = Union[str, int, float, bool]

# Longer texts are not written by people; the bounds keep Python's parser from deep recursion.
MAX_CHARACTERS = 10_000
MAX_CONSTANTS = 4000
MAX_DEPTH = 20

# Values of a column that are sorted at a time: sorting holds the interpreter.
_RUN = 2**17

_OPERATORS = {
  ast.Eq: '==',
  ast.NotEq: '!=',
  ast.Lt: '<',
  ast.LtE: '<=',
  ast.Gt: '>',
  ast.GtE: '>=',
}
_OPPOSITES = {'==': '!=', '!=': '==', '<': '>=', '>=': '<', '>': '<=', '<=': '>'}
_MIRRORED = {'==': '==', '!=': '!=', '<': '>', '>': '<', '<=': '>=', '>=': '<='}
# Python 3.11 counts the depth of what it parses once for all threads (SystemError, 'recursion depth
# mismatch'). The lock keeps filters apart; where other code parses meanwhile, another try helps.
_PARSING = threading.Lock()
_ATTEMPTS = 20

_TOO_DEEP = f'The filter is nested too deeply; at most {MAX_DEPTH} levels are read.'
_HINT = 'Example: camera in [1, 2] and time >= "2024-01-01".'

_DOUBLE = '\u201c\u201d\u201e\u201f\u00ab\u00bb'
_SINGLE = '\u2018\u2019\u201a\u201b\u2039\u203a'
# A text in quotation marks, closed or not, with what stands before it.
_STRAIGHT = (
  r"""(?<![A-Za-z])([A-Za-z]{0,2})"""
  r"""("(?:[^"\\]|\\(?:.|\Z))*(?:"|\Z)|'(?:[^'\\]|\\(?:.|\Z))*(?:'|\Z))"""
)
_TEXT = re.compile(_STRAIGHT, re.DOTALL)
# The same, or a text in curly marks (without the marks), or white space.
_TEXT_OR_SPACE = re.compile(
  rf'{_STRAIGHT}|[{_DOUBLE}]([^{_DOUBLE}]*)[{_DOUBLE}]|[{_SINGLE}]([^{_SINGLE}]*)[{_SINGLE}]|\s',
  re.DOTALL,
)
_MARK_OR_ESCAPE = re.compile(r'\\.|"', re.DOTALL)
_ESCAPE = re.compile(r"""\\(?:[\\"']|u[0-9a-fA-F]{4}|(.))""", re.DOTALL)
# What other languages write, and what it is called here; looked for outside of texts.
_FOREIGN = (
  (
    re.compile(r'\d{4}-\d\d?(?:-\d\d?)?(?:T[\d:.]*\d(?:Z|[+-]\d\d:?\d\d)?)?|\d\d?:\d\d(?::\d\d)?'),
    'Times are texts and stand in quotation marks: "{0}".',
  ),
  (
    re.compile(f'[{_DOUBLE}{_SINGLE}]'),
    'The quotation mark {0} is not closed. A text stands between two: "north".',
  ),
  (re.compile('#'), "A '#' stands in texts only; there are no comments."),
  (re.compile(r'=[<>]'), "Write <= or >=; '{0}' is not known."),
  (re.compile(r'(?<![=!<>:])=(?!=)'), "Write == for 'equal'."),
  (re.compile(r'<>|(?<!=)!(?!=)|&&|\|\||&|\|'), "Write !=, and, or, not; '{0}' is not known."),
  (re.compile(r'\b(?:AND|OR|NOT|IN|IS)\b'), "Write '{1}' in lower case."),
  (
    re.compile(r'\b(?:like|between|contains)\b', re.IGNORECASE),
    "There is no '{0}'. Compare with <= and >=, or list the values: camera in [1, 2].",
  ),
  (re.compile(r'\b(?:null|NULL|Null|none|NONE)\b'), "What a crop does not have is 'None'."),
  (re.compile(r'\b(?:true|TRUE)\b'), "Write 'True' with one capital letter."),
  (re.compile(r'\b(?:false|FALSE)\b'), "Write 'False' with one capital letter."),
)


@dataclasses.dataclass(frozen=True)
class Compare:
  """`field operator value`; the operator is one of == != < <= > >=."""

  field: str
  operator: str
  value: Value


@dataclasses.dataclass(frozen=True)
class In:
  """`field in values`, or not in."""

  field: str
  values: tuple[Value, ...]
  negated: bool = False


@dataclasses.dataclass(frozen=True)
class Missing:
  """`field is None`, or is not None."""

  field: str
  negated: bool = False


@dataclasses.dataclass(frozen=True)
class Has:
  """The crop is annotated with this value of an attribute; negated: it is not annotated so."""

  attribute: str
  value: str
  negated: bool = False


@dataclasses.dataclass(frozen=True)
class And:
  """All parts hold."""

  parts: tuple[Condition, ...]


@dataclasses.dataclass(frozen=True)
class Or:
  """One of the parts holds."""

  parts: tuple[Condition, ...]


# A comparison of one field.
Comparison = Union[Compare, In, Missing, Has]
Condition = Union[Comparison, And, Or]


class _Run(NamedTuple):
  """Different values of one kind, ordered.

  Attributes:
    kind: of the values.
    keys: what they are compared by, ascending.
    codes: int32, position of each among the column's values.
  """

  kind: str
  keys: list
  codes: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
  """One field of n crops. Its values are ordered when it is first compared, which is remembered.

  Attributes:
    values: the different values.
    codes: int [n], position in `values` of each crop's, -1 where it has none.
  """

  values: Sequence[Value]
  codes: np.ndarray

  @functools.cached_property
  def runs(self) -> tuple[_Run, ...]:
    """The values by kind, in runs of at most 2^17, each of them ordered."""
    positions: dict[str, list[int]] = {}
    for position, value in enumerate(self.values):
      positions.setdefault(kind(value), []).append(position)
    runs = []
    for of_kind, all_positions in positions.items():
      for start in range(0, len(all_positions), _RUN):
        part = all_positions[start : start + _RUN]
        keys = [_key(self.values[position]) for position in part]
        order = sorted(range(len(part)), key=keys.__getitem__)
        runs.append(
          _Run(of_kind, [keys[i] for i in order], np.asarray(part, np.int32)[np.asarray(order)])
        )
    return tuple(runs)

  @functools.cached_property
  def offsets(self) -> frozenset[bool]:
    """Whether the times among the values have an offset: {True}, {False}, both or neither."""
    keys = (key for run in self.runs if run.kind == 'text' for key in run.keys)
    return frozenset(
      times.has_offset(key) for key in keys if key[10:11] == 'T' and key[16:17] == ':'
    )

  @functools.cached_property
  def holders(self) -> dict[str, np.ndarray]:
    """For each part of annotations 'a+b', the positions int32 of the values that have it."""
    positions: dict[str, list[int]] = {}
    for position, value in enumerate(self.values):
      for part in set(normalized(str(value)).split('+')):
        positions.setdefault(part, []).append(position)
    return {part: np.asarray(found, np.int32) for part, found in positions.items()}


def parse(text: str) -> Condition:
  """The condition that a text states.

  Raises:
    ValueError: it is not a condition; the message says what was not understood.
  """
  text = _straightened(normalized(check_length('The filter', text, MAX_CHARACTERS)))
  _check_texts(text)
  _check_depth(text)
  quoted = f"'{shortened(text, 300)}'"
  try:
    condition = _condition(_parsed(text.strip()))
  except SyntaxError as error:
    # Python's message speaks of Python; only where nothing is known to be foreign is it the best.
    said = _foreign(text) or f'{error.msg}. {_HINT}'
    raise ValueError(f'Cannot read the filter {quoted}: {said}') from error
  except (RecursionError, MemoryError) as error:
    raise ValueError(_TOO_DEEP) from error
  except ValueError as error:
    if isinstance(error, _NotUnderstoodError):
      advice = _foreign(text)
      if advice:
        raise ValueError(f'Cannot read the filter {quoted}: {advice}') from error
      raise
    # Null characters, and numbers with more digits than Python converts.
    raise ValueError(f'Cannot read the filter: {error}. {_HINT}') from error
  if '#' in _TEXT.sub('""', text):
    raise ValueError(f'Cannot read the filter {quoted}: {_foreign(text)}')
  count = _constants(condition)
  if count > MAX_CONSTANTS:
    raise ValueError(
      f'The filter compares with {count:,} values; at most {MAX_CONSTANTS:,} are taken. Write '
      'ranges (camera >= 1 and camera <= 9), or ask several times.'
    )
  return condition


def _parsed(text: str) -> ast.expr:
  """The text as Python's parser reads an expression, whatever other threads parse meanwhile."""
  for attempt in range(1, _ATTEMPTS + 1):
    try:
      with _PARSING:
        return ast.parse(text, mode='eval').body
    except SystemError:
      if attempt == _ATTEMPTS:
        raise
  raise AssertionError('unreachable')


def _straightened(text: str) -> str:
  """The text with straight quotation marks for curly ones, and blanks for what else is white."""

  def straight(match: re.Match) -> str:
    if match[2]:
      return match[0]
    inner = match[3] if match[3] is not None else match[4]
    if inner is None:
      return ' '
    return '"{}"'.format(_MARK_OR_ESCAPE.sub(lambda m: '\\"' if m[0] == '"' else m[0], inner))

  return _TEXT_OR_SPACE.sub(straight, text)


def _check_depth(text: str) -> None:
  """Refuses deep brackets before Python's parser, which tries each level anew, sees them.

  Raises:
    ValueError: there are more than `MAX_DEPTH` in each other.
  """
  depth = 0
  for letter in _TEXT.sub('', text):
    depth += (letter in '([{') - (letter in ')]}')
    if depth > MAX_DEPTH:
      raise ValueError(_TOO_DEEP)


def _constants(condition: Condition) -> int:
  """How many values a condition compares with."""
  if isinstance(condition, (And, Or)):
    return sum(map(_constants, condition.parts))
  return len(condition.values) if isinstance(condition, In) else 1


def _check_texts(text: str) -> None:
  """Refuses backslashes that do not mean what they seem to.

  Raises:
    ValueError: a text holds an escape that is not known.
  """
  for prefix, quoted in _TEXT.findall(text):
    unknown = () if prefix.lower() == 'r' else _ESCAPE.finditer(quoted)
    for found in unknown:
      if found[1]:
        raise ValueError(
          f"Cannot read the filter '{shortened(text, 300)}': in the text {shortened(quoted)} "
          f"stands '{found[0]}'. A backslash is written twice, or the text with an r before it: "
          f'r{shortened(quoted)}.'
        )


def _foreign(text: str) -> str:
  """Advice on what another language would write so; '' if there is nothing of the kind."""
  bare = _TEXT.sub('""', text)
  for pattern, advice in _FOREIGN:
    match = pattern.search(bare)
    if match:
      return advice.format(match[0], match[0].lower())
  return ''


def required(
  must: query.Query | None = None, must_not: query.Query | None = None
) -> Condition | None:
  """The condition that attributes are annotated as asked; None if nothing is asked.

  Args:
    must: attribute name to value, 'a+b' or '!value'; see `tfreid.query`. A crop that nobody
      annotated does not fulfil it.
    must_not: the same, for what a crop must not be annotated with. A crop that nobody annotated
      fulfils it.
  """
  parts: list[Condition] = []
  for name, value in (must or {}).items():
    statement = query.read(value)
    if isinstance(statement, query.IsNot):
      parts += [Missing(name, negated=True), Has(name, statement.value, negated=True)]
    else:
      parts += [Has(name, value) for value in statement.values]
  for name, value in (must_not or {}).items():
    statement = query.read(value)
    if isinstance(statement, query.IsNot):
      parts.append(Or((Missing(name), Has(name, statement.value))))
    elif len(statement.values) == 1:
      parts.append(Has(name, statement.values[0], negated=True))
    else:
      parts.append(Or(tuple(Has(name, value, negated=True) for value in statement.values)))
  return joined(*parts)


def joined(*conditions: Condition | None) -> Condition | None:
  """All of the conditions; those that are None ask for nothing."""
  parts = tuple(part for part in conditions if part is not None)
  return And(parts) if len(parts) > 1 else parts[0] if parts else None


def negated(condition: Condition) -> Condition:
  """The opposite of a condition, without a "not"."""
  if isinstance(condition, And):
    return Or(tuple(negated(part) for part in condition.parts))
  if isinstance(condition, Or):
    return And(tuple(negated(part) for part in condition.parts))
  if isinstance(condition, Compare):
    return dataclasses.replace(condition, operator=_OPPOSITES[condition.operator])
  return dataclasses.replace(condition, negated=not condition.negated)


def kind(value: Any) -> str:
  """'text', 'number' or 'flag': what can be compared with each other.

  Raises:
    ValueError: something else, or a number that is not finite.
  """
  if isinstance(value, bool):
    return 'flag'
  if isinstance(value, str):
    return 'text'
  # NaN and infinity are not below either; `math.isfinite` would fail on very large integers.
  if isinstance(value, (int, float)) and abs(value) < 2**63:
    return 'number'
  raise ValueError(f'{value!r} is neither a text, nor a finite number, nor true or false.')


def check_name(name: str) -> str:
  """The name of a field, if a condition could say it.

  Raises:
    ValueError: it could not; the message says what would do.
  """
  if (
    not name.isidentifier()
    or keyword.iskeyword(name)
    or name in ('id', 'path', 'digest')
    or unicodedata.normalize('NFKC', name) != name
    or len(name) > 100
  ):
    raise ValueError(
      f"'{name}' cannot be the name of a field: filters speak of it, so it must be letters, digits "
      "and underscores, and no word of the filters' own. Rename it, for example to "
      f"'{_as_name(name)}'."
    )
  return name


def check(condition: Condition, fields: Mapping[str, Sequence[str]]) -> None:
  """Refuses a condition on fields that no crop has, or on values that they cannot have.

  Args:
    condition: to check.
    fields: of the gallery, name to the kinds of its values.

  Raises:
    ValueError: the message names the field and what is known.
  """
  if isinstance(condition, (And, Or)):
    for part in condition.parts:
      check(part, fields)
    return
  name = _field(condition)
  if isinstance(condition, Has) and condition.negated:
    return  # True of a gallery that nobody annotated.
  if name not in fields:
    raise ValueError(
      f"No crop of the gallery has a field '{shortened(name)}'.{did_you_mean(name, fields)} There "
      f'are: {", ".join(sorted(fields)) or "none"}.'
    )
  values: Sequence[Value] = ()
  if isinstance(condition, Compare):
    values = (condition.value,)
  elif isinstance(condition, In):
    values = condition.values
  for value in values:
    if kind(value) not in fields[name]:
      raise ValueError(
        f"'{name}' is compared with {shortened(_literal(value))}, a {kind(value)}, but "
        f'in the gallery it is a {" or a ".join(sorted(fields[name]))}.'
      )


def evaluate(condition: Condition, column: Callable[[str], Column | None], size: int) -> np.ndarray:
  """Which crops fulfil a condition, bool [size].

  Args:
    condition: to evaluate.
    column: name of a field -> the field of the crops, None if none of them has it.
    size: number of crops.
  """
  if not isinstance(condition, (And, Or)):
    return _at_crops([condition], np.logical_and, column, size)
  combine: np.ufunc = np.logical_or
  if isinstance(condition, And):
    combine = np.logical_and
  # Comparisons of one field are joined value by value, and then spread to the crops: once.
  leaves: dict[str, list[Comparison]] = {}
  masks = []
  for part in condition.parts:
    if isinstance(part, (And, Or)):
      masks.append(evaluate(part, column, size))
    else:
      leaves.setdefault(_field(part), []).append(part)
  masks += [_at_crops(parts, combine, column, size) for parts in leaves.values()]
  for mask in masks[1:]:
    combine(masks[0], mask, out=masks[0])
  return masks[0]


def _at_crops(
  parts: Sequence[Comparison],
  combine: np.ufunc,
  column: Callable[[str], Column | None],
  size: int,
) -> np.ndarray:
  """Which crops fulfil all, or one, of some comparisons of one field, bool [size]."""
  cancellation.check()
  found = column(_field(parts[0]))
  if found is None:
    found = Column((), np.full(size, -1, np.int32))
  answers = _answers(parts[0], found)
  for part in parts[1:]:
    combine(answers, _answers(part, found), out=answers)
  return answers[found.codes]


def _answers(condition: Comparison, column: Column) -> np.ndarray:
  """Whether a comparison holds, bool [V + 1]: for each value, and in the last place for "none".

  There, code -1 picks it.
  """
  answers = np.zeros(len(column.values) + 1, bool)
  if isinstance(condition, Missing):
    answers[:-1], answers[-1] = condition.negated, not condition.negated
    return answers
  if isinstance(condition, Has):
    holders = column.holders.get(normalized(condition.value))
    if holders is not None:
      answers[holders] = True
    return ~answers if condition.negated else answers
  if isinstance(condition, In):
    _mark(answers, column, '==', condition.values)
    negated = condition.negated
  else:
    negated = condition.operator == '!='
    _mark(answers, column, '==' if negated else condition.operator, (condition.value,))
  if negated:
    np.logical_not(answers[:-1], out=answers[:-1])
  return answers


def _mark(answers: np.ndarray, column: Column, symbol: str, constants: Sequence[Value]) -> None:
  """Makes true the answers of the values that stand so to one of the constants."""
  keys: dict[str, set] = {}
  for constant in constants:
    keys.setdefault(kind(constant), set()).add(_key(constant))
  _check_times(column, keys.get('text', ()))
  for run in column.runs:
    for key in keys.get(run.kind, ()):
      first, last = bisect.bisect_left(run.keys, key), bisect.bisect_right(run.keys, key)
      start, stop = {
        '==': (first, last),
        '<': (0, first),
        '<=': (0, last),
        '>': (last, None),
        '>=': (first, None),
      }[symbol]
      if start != stop:
        answers[run.codes[start:stop]] = True


def _key(value: Value) -> Value:
  """What a value is compared by: a time as an instant, a text in its composed form."""
  if not isinstance(value, str):
    return value
  return times.key(normalized(value))


def _check_times(column: Column, texts: Collection[str]) -> None:
  """Refuses to compare times with an offset and times without.

  Raises:
    ValueError: the message says which is which.
  """
  for text in texts:
    time = times.canonical(text)
    if time and column.offsets == {not times.has_offset(time)}:
      there, here = ('without', 'has') if times.has_offset(time) else ('with', 'has not')
      raise ValueError(
        f'The times of the gallery are written {there} an offset from UTC, and "{text}" {here} '
        'one: they cannot be compared. A time with an offset: "2024-03-01T09:15:00+01:00".'
      )


def _field(condition: Comparison) -> str:
  return condition.attribute if isinstance(condition, Has) else condition.field


def _literal(value: Value) -> str:
  if isinstance(value, bool):
    return 'true' if value else 'false'
  return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
  return json.dumps(text, ensure_ascii=False)


class _NotUnderstoodError(ValueError):
  """Something Python's grammar allows and a condition does not."""


def _condition(node: ast.expr, depth: int = 0) -> Condition:
  if depth > MAX_DEPTH:
    raise ValueError(_TOO_DEEP)
  if isinstance(node, ast.BoolOp):
    parts = tuple(_condition(value, depth + 1) for value in node.values)
    return And(parts) if isinstance(node.op, ast.And) else Or(parts)
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
    return negated(_condition(node.operand, depth + 1))
  if isinstance(node, ast.Compare):
    sides = [node.left, *node.comparators]
    parts = tuple(
      _comparison(left, op, right) for left, op, right in zip(sides, node.ops, sides[1:])
    )
    return And(parts) if len(parts) > 1 else parts[0]
  raise _NotUnderstoodError(f"'{_source(node)}' is not a condition. {_HINT}")


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr) -> Condition:
  if isinstance(op, (ast.In, ast.NotIn)):
    if not isinstance(left, ast.Name) or not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
      raise _NotUnderstoodError(
        f"'in' stands between a field and a list: camera in [1, 2], not '{_source(left)} in "
        f"{_source(right)}'."
      )
    if not right.elts:
      raise _NotUnderstoodError(f"'{left.id} in []' holds for nothing. Name at least one value.")
    return In(left.id, tuple(map(_constant, right.elts)), isinstance(op, ast.NotIn))
  if isinstance(op, (ast.Is, ast.IsNot)):
    if (
      not isinstance(left, ast.Name)
      or not isinstance(right, ast.Constant)
      or right.value is not None
    ):
      raise _NotUnderstoodError(f"'is' asks for a missing field: {_source(left)} is None.")
    return Missing(left.id, isinstance(op, ast.IsNot))
  symbol = _OPERATORS[type(op)]
  if isinstance(left, ast.Name) and isinstance(right, ast.Name):
    raise _NotUnderstoodError(
      f"'{left.id} {symbol} {right.id}' compares two fields; a field is compared with a constant. "
      f'Texts stand in quotation marks: {left.id} {symbol} "{right.id}".'
    )
  if isinstance(right, ast.Name):
    left, right, symbol = right, left, _MIRRORED[symbol]
  if not isinstance(left, ast.Name):
    raise _NotUnderstoodError(f"'{_source(left)}' is not the name of a field. {_HINT}")
  return Compare(left.id, symbol, _constant(right))


def _constant(node: ast.expr) -> Value:
  sign = 1
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    node, sign = node.operand, -1
  if isinstance(node, ast.Name):
    raise _NotUnderstoodError(f'Texts stand in quotation marks: "{node.id}".')
  if isinstance(node, ast.Constant) and node.value is None:
    raise _NotUnderstoodError("None is asked for with 'is': camera is None.")
  if isinstance(node, ast.Constant):
    try:
      value = node.value
      if kind(value) == 'number' and isinstance(value, (int, float)):
        return sign * value
      if sign == 1 and isinstance(value, str):
        # As the manifest writes times, so that an engine that knows texts only agrees.
        return times.canonical(value) or value
      if sign == 1 and isinstance(value, bool):
        return value
    except ValueError as error:
      raise _NotUnderstoodError(str(error)) from error
  raise _NotUnderstoodError(f"'{_source(node)}' is not a text, a number, True or False. {_HINT}")


def _source(node: ast.expr) -> str:
  text = ast.unparse(node)
  return text if len(text) <= 60 else f'{text[:60]}…'


def _as_name(text: str) -> str:
  letters = ''.join(c if c.isalnum() else '_' for c in unicodedata.normalize('NFKC', text))[:100]
  safe = letters if letters.isidentifier() else f'field_{letters}'
  return f'{safe}_' if keyword.iskeyword(safe) or safe in ('id', 'path', 'digest') else safe
