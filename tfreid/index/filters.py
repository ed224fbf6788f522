r"""Conditions on what is known of a crop: a small language, read and never executed. Floor 4.

    camera in [1, 2] and time >= "2024-01-01" and not (site == "north" or track is None)

Fields are compared with constants: ==, !=, <, <=, >, >=, in, not in, is None, is not None; these
are joined by and, or, not. A comparison with a field that a crop does not have is neither true nor
false, and neither is its opposite: such a crop is not answered unless `is None` asks for it. That
is SQL's rule, and it lets `not` be moved inward until it stands before comparisons only. So
conditions here have no "not", and mean the same to every engine.

Texts stand in single or double quotation marks. In them `\\` is a backslash, `\"` and `\'` are
quotation marks, and `\u00f8` is a letter by its number. Any other backslash is refused: most often
somebody wrote a path with single ones. In r"C:\crops" all backslashes are just that.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import json
import keyword
import operator
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Union

import numpy as np

from tfreid import cancellation

Value = Union[str, int, float, bool]

# Longer texts are not written by people; the bound keeps Python's parser from deep recursion.
MAX_CHARACTERS = 10_000

_OPERATORS = {
  ast.Eq: '==',
  ast.NotEq: '!=',
  ast.Lt: '<',
  ast.LtE: '<=',
  ast.Gt: '>',
  ast.GtE: '>=',
}
_FUNCTIONS = {
  '==': operator.eq,
  '!=': operator.ne,
  '<': operator.lt,
  '<=': operator.le,
  '>': operator.gt,
  '>=': operator.ge,
}
_OPPOSITES = {'==': '!=', '!=': '==', '<': '>=', '>=': '<', '>': '<=', '<=': '>'}
_MIRRORED = {'==': '==', '!=': '!=', '<': '>', '>': '<', '<=': '>=', '>=': '<='}
_HINT = 'Example: camera in [1, 2] and time >= "2024-01-01".'

# A text in quotation marks, closed or not, with what stands before it.
_TEXT = re.compile(
  r"""(?<![A-Za-z])([A-Za-z]{0,2})("(?:[^"\\]|\\(?:.|\Z))*(?:"|\Z)|'(?:[^'\\]|\\(?:.|\Z))*(?:'|\Z))""",
  re.DOTALL,
)
_ESCAPE = re.compile(r"""\\(?:[\\"']|u[0-9a-fA-F]{4}|(.))""", re.DOTALL)
# What other languages write, and what it is called here; looked for outside of texts.
_FOREIGN = (
  (
    re.compile(r'\d{4}-\d\d?(?:-\d\d?)?(?:T[\d:.]*\d(?:Z|[+-]\d\d:?\d\d)?)?|\d\d?:\d\d(?::\d\d)?'),
    'Times are texts and stand in quotation marks: "{0}".',
  ),
  (re.compile('[\u2018-\u201f\u00ab\u00bb]'), 'Use straight quotation marks (") instead of {0}.'),
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


Condition = Union[Compare, In, Missing, Has, And, Or]


class Column(NamedTuple):
  """One field of n crops.

  Attributes:
    values: the different values.
    codes: int [n], position in `values` of each crop's, -1 where it has none.
  """

  values: Sequence[Value]
  codes: np.ndarray


def parse(text: str) -> Condition:
  """The condition that a text states.

  Raises:
    ValueError: it is not a condition; the message says what was not understood.
  """
  if len(text) > MAX_CHARACTERS:
    raise ValueError(f'The filter has {len(text)} characters; at most {MAX_CHARACTERS} are read.')
  _check_texts(text)
  try:
    tree = ast.parse(text.strip(), mode='eval')
    return _condition(tree.body)
  except SyntaxError as error:
    # Python's message speaks of Python; only where nothing is known to be foreign is it the best.
    said = _foreign(text) or f'{error.msg}. {_HINT}'
    raise ValueError(f"Cannot read the filter '{text}': {said}") from error
  except (RecursionError, MemoryError) as error:
    raise ValueError('The filter is nested too deeply.') from error
  except ValueError as error:
    if isinstance(error, _NotUnderstoodError):
      advice = _foreign(text)
      if advice:
        raise ValueError(f"Cannot read the filter '{text}': {advice}") from error
      raise
    # Null characters, and numbers with more digits than Python converts.
    raise ValueError(f'Cannot read the filter: {error}. {_HINT}') from error


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
          f"Cannot read the filter '{text}': in the text {quoted} stands '{found[0]}'. A backslash "
          f'is written twice, or the text with an r before it: r{quoted}.'
        )


def _foreign(text: str) -> str:
  """Advice on what another language would write so; '' if there is nothing of the kind."""
  bare = _TEXT.sub('""', text)
  for pattern, advice in _FOREIGN:
    found = pattern.search(bare)
    if found:
      return advice.format(found[0], found[0].lower())
  return ''


def required(
  must: Mapping[str, str] | None = None, must_not: Mapping[str, str] | None = None
) -> Condition | None:
  """The condition that attributes are annotated as asked; None if nothing is asked.

  Args:
    must: attribute name to value; '!value' for "not this value". A crop that nobody annotated does
      not fulfil it.
    must_not: the same, for what a crop must not be annotated with. A crop that nobody annotated
      fulfils it.
  """
  parts: list[Condition] = []
  for name, value in (must or {}).items():
    if value.startswith('!'):
      parts += [Missing(name, negated=True), Has(name, value[1:], negated=True)]
    else:
      parts.append(Has(name, value))
  for name, value in (must_not or {}).items():
    if value.startswith('!'):
      parts.append(Or((Missing(name), Has(name, value[1:]))))
    else:
      parts.append(Has(name, value, negated=True))
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
  name = condition.attribute if isinstance(condition, Has) else condition.field
  if isinstance(condition, Has) and condition.negated:
    return  # True of a gallery that nobody annotated.
  if name not in fields:
    near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ''
    raise ValueError(
      f"No crop of the gallery has a field '{name}'.{hint} There are: "
      f'{", ".join(sorted(fields)) or "none"}.'
    )
  values: Sequence[Value] = ()
  if isinstance(condition, Compare):
    values = (condition.value,)
  elif isinstance(condition, In):
    values = condition.values
  for value in values:
    if kind(value) not in fields[name]:
      raise ValueError(
        f"'{name}' is compared with {json.dumps(value, ensure_ascii=False)}, a {kind(value)}, but "
        f'in the gallery it is a {" or a ".join(sorted(fields[name]))}.'
      )


def evaluate(condition: Condition, column: Callable[[str], Column | None], size: int) -> np.ndarray:
  """Which crops fulfil a condition, bool [size].

  Args:
    condition: to evaluate.
    column: name of a field -> the field of the crops, None if none of them has it.
    size: number of crops.
  """
  cancellation.check()
  if isinstance(condition, (And, Or)):
    combine = np.logical_and if isinstance(condition, And) else np.logical_or
    return combine.reduce([evaluate(part, column, size) for part in condition.parts])
  found = column(condition.attribute if isinstance(condition, Has) else condition.field)
  if found is None:
    found = Column((), np.full(size, -1, np.int32))
  # Once per different value, and once, in the last place, for "has none": code -1 picks it.
  answers = np.zeros(len(found.values) + 1, bool)
  answers[:-1] = [_holds(condition, value) for value in found.values]
  if isinstance(condition, Missing):
    answers[-1] = not condition.negated
  elif isinstance(condition, Has):
    answers[-1] = condition.negated
  return answers[found.codes]


def mark(*names: str) -> str:
  """What stands for a name, or for an attribute and its value, in `marks`."""
  return hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()


def marks(fields: Mapping[str, Value], attributes: Mapping[str, str]) -> dict[str, int]:
  """The fields a crop has, and the values of its attributes, as 1 each, for `to_milvus`."""
  found = [mark(name) for name in (*fields, *attributes)]
  for name, value in attributes.items():
    found += [mark(name, part) for part in value.split('+')]
  return dict.fromkeys(found, 1)


def to_milvus(condition: Condition) -> str:
  """The condition as Milvus' boolean expression over the JSON fields `fields` and `marks`.

  Milvus Lite knows neither `exists` nor a general `not`, and a JSON != holds where there is
  nothing; so what a crop has is looked up in `marks`, with == and !=, which all of Milvus 2.5 have.
  """
  if isinstance(condition, (And, Or)):
    word = ' and ' if isinstance(condition, And) else ' or '
    return word.join(f'({to_milvus(part)})' for part in condition.parts)
  if isinstance(condition, Missing):
    return _marked(mark(condition.field), condition.negated)
  if isinstance(condition, Has):
    return _marked(mark(condition.attribute, condition.value), not condition.negated)
  name = f'fields[{_quoted(condition.field)}]'
  if isinstance(condition, Compare):
    expression = f'{name} {condition.operator} {_literal(condition.value)}'
    if condition.operator == '!=':
      return f'{_marked(mark(condition.field), True)} and {expression}'
    return expression
  # A list of Milvus' holds one type.
  lists: dict[type, list[str]] = {}
  for value in condition.values:
    lists.setdefault(type(value), []).append(_literal(value))
  if not condition.negated:
    return ' or '.join(f'{name} in [{", ".join(values)}]' for values in lists.values())
  parts = [f'{name} not in [{", ".join(values)}]' for values in lists.values()]
  return ' and '.join([_marked(mark(condition.field), True), *parts])


def _marked(text: str, present: bool) -> str:
  return f'marks["{text}"] {"==" if present else "!="} 1'


def _literal(value: Value) -> str:
  if isinstance(value, bool):
    return 'true' if value else 'false'
  return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
  return json.dumps(text, ensure_ascii=False)


def _holds(condition: Condition, value: Value) -> bool:
  """Whether a condition holds for a crop whose field has this value."""
  if isinstance(condition, Missing):
    return condition.negated
  if isinstance(condition, Has):
    return (condition.value in str(value).split('+')) != condition.negated
  if isinstance(condition, In):
    return any(_equal(value, other) for other in condition.values) != condition.negated
  if kind(value) != kind(condition.value):
    return condition.operator == '!='
  return _FUNCTIONS[condition.operator](value, condition.value)


def _equal(value: Value, other: Value) -> bool:
  # True == 1 in Python.
  return kind(value) == kind(other) and value == other


class _NotUnderstoodError(ValueError):
  """Something Python's grammar allows and a condition does not."""


def _condition(node: ast.expr) -> Condition:
  if isinstance(node, ast.BoolOp):
    parts = tuple(_condition(value) for value in node.values)
    return And(parts) if isinstance(node.op, ast.And) else Or(parts)
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
    return negated(_condition(node.operand))
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
      if kind(node.value) == 'number':
        return sign * node.value
      if sign == 1:
        return node.value
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
