from __future__ import annotations

import ast
import concurrent.futures
import itertools
import operator
import random
import time

import numpy as np
import pytest

from tfreid.index import filters, milvus_filters
from tfreid.index.filters import Column, Compare, Has, In, Missing

ROWS = [
  {'camera': 1, 'time': '2024-01-05', 'indoor': True},
  {'camera': 2, 'time': '2023-12-31'},
  {'camera': 3.5, 'time': '2024-02-01', 'indoor': False},
  {'time': '2024-03-01', 'site': 'nørth'},
  {},
]


def column(rows, name):
  values = []
  codes = np.full(len(rows), -1, np.int32)
  for i, row in enumerate(rows):
    if name in row:
      codes[i] = len(values)
      values.append(row[name])
  return Column(values, codes) if values else None


def chosen(condition, rows=ROWS):
  if isinstance(condition, str):
    condition = filters.parse(condition)
  answer = filters.evaluate(condition, lambda name: column(rows, name), len(rows))
  return np.flatnonzero(answer).tolist()


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('camera in [1, 2] and time >= "2024-01-01"', [0]),
    ('camera == 1 or camera == 2', [0, 1]),
    ('camera != 1', [1, 2]),
    ('not camera == 1', [1, 2]),
    ('camera not in (1, 3.5)', [1]),
    ('camera is None', [3, 4]),
    ('camera is not None', [0, 1, 2]),
    ('not (camera is None or time < "2024")', [0, 2]),
    ('1 < camera <= 3.5', [1, 2]),
    ('2 >= camera', [0, 1]),
    ('camera > -1', [0, 1, 2]),
    ('indoor == True', [0]),
    ('indoor != True', [2]),
    ('camera == True', []),
    ("site == 'nørth'", [3]),
    ('not (camera > 1 and time > "2024")', [0, 1]),
    ('nowhere == 1', []),
    ('nowhere is None', [0, 1, 2, 3, 4]),
  ],
)
def test_a_condition_chooses_these_rows(text, expected):
  assert chosen(text) == expected


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('__import__("os").system("true")', 'is not a condition'),
    ('camera.real == 1', 'is not the name of a field'),
    ('camera == __class__', 'compares two fields'),
    ('camera == (1).real', 'is not a text, a number'),
    ('[x for x in camera] == 1', 'is not the name of a field'),
    ('camera == f"{1}"', 'is not a text, a number'),
    ('(lambda: 1)() == camera', 'is not a text, a number'),
    ('camera', 'is not a condition'),
    ('1 == 1', 'is not the name of a field'),
    ('camera = 1', 'Cannot read the filter'),
    ('camera=1', "Write == for 'equal'"),
    ('camera => 1', "Write <= or >=; '=>' is not known"),
    ('time > 2024-01-01', 'stand in quotation marks: "2024-01-01"'),
    ('time > 2024-10-11', 'stand in quotation marks: "2024-10-11"'),
    ('time > 2024-03-01T09:15:00Z', 'stand in quotation marks: "2024-03-01T09:15:00Z"'),
    ('time > 9:30', 'stand in quotation marks: "9:30"'),
    ('camera == 1 AND time > "a"', "Write 'and' in lower case"),
    ('NOT camera == 1', "Write 'not' in lower case"),
    ('camera == 1 && camera == 2', "'&&' is not known"),
    ('!camera', "'!' is not known"),
    ('camera <> 1', "'<>' is not known"),
    ('camera is null', "What a crop does not have is 'None'"),
    ('indoor == true', "Write 'True'"),
    ('site == “north', 'The quotation mark “ is not closed'),
    ('camera == 1 # or 2', "A '#' stands in texts only"),
    ('camera == 1 #', "A '#' stands in texts only"),
    ('not ' * 21 + 'camera == 1', 'nested too deeply'),
    ('(' * 21 + 'camera == 1' + ')' * 21, 'nested too deeply'),
    (f'a in [{"1," * 3990}] or a in [{"1," * 11}]', 'compares with 4,001 values'),
    ('site like "n%"', "There is no 'like'"),
    ('site == "C:\\new"', 'r"C:'),
    ("site == 'a\\d'", 'A backslash is written twice'),
    ('site == "\\N{BULLET}"', 'A backslash is written twice'),
    ('site == "\\u12"', 'A backslash is written twice'),
    ('site == "a = b AND c" d', 'invalid syntax'),
    ('camera == red', 'Texts stand in quotation marks: camera == "red"'),
    ('camera in [red]', 'Texts stand in quotation marks: "red"'),
    ('camera in []', 'Name at least one value'),
    ('camera in "12"', "'in' stands between a field and a list"),
    ('camera == None', "is asked for with 'is'"),
    ('camera is 1', "'is' asks for a missing field"),
    ('camera == 1e999', 'finite'),
    (f'camera == 0x{"f" * 400}', 'finite'),
    ('camera == b"1"', 'neither a text'),
    ('camera == -"a"', 'is not a text, a number'),
    ('camera == 1 if camera else 2', 'is not a condition'),
    ('camera == 1; camera == 2', 'Cannot read the filter'),
    ('camera := 1', 'Cannot read the filter'),
    ('', 'Cannot read the filter'),
    ('camera == "\x00"', 'Cannot read the filter'),
    (f'camera == {"9" * 6000}', 'Cannot read the filter'),
    ('(' * 5000 + 'camera == 1' + ')' * 5000, 'characters'),
    ('(' * 3000 + 'camera == 1' + ')' * 3000, 'filter'),
    ('not ' * 2400 + 'camera == 1', 'filter'),
  ],
)
def test_what_is_no_condition_is_refused_and_never_run(text, said):
  with pytest.raises(ValueError, match=said.replace('(', r'\(')):
    filters.parse(text)


def test_not_follows_the_logic_of_three_values():
  """Against a direct evaluation in which a comparison with nothing is neither true nor false."""
  draw = random.Random(0)
  leaves = ['a == 1', 'a != 2', 'b < 2', 'b in [1, 3]', 'a not in [3]', 'b is None']

  def expression(depth):
    if not depth:
      return draw.choice(leaves)
    kind = draw.choice(['and', 'or', 'not'])
    if kind == 'not':
      return f'(not {expression(depth - 1)})'
    return f'({expression(depth - 1)} {kind} {expression(depth - 1)})'

  def truth(node, row):
    """0, 1/2 or 1: not is 1 - x, and the smaller, or the greater (Kleene)."""
    if isinstance(node, str):
      name, rest = node.split(' ', 1)
      if rest == 'is None':
        return float(name not in row)
      return float(eval(f'{row[name]} {rest}')) if name in row else 0.5
    if node[0] == 'not':
      return 1 - truth(node[1], row)
    return (min if node[0] == 'and' else max)(truth(part, row) for part in node[1:])

  def tree(text):
    if text in leaves:
      return text
    inner = text[1:-1]
    if inner.startswith('not '):
      return ('not', tree(inner[4:]))
    depth = 0
    for i, letter in enumerate(inner):
      # Lists have brackets of another kind.
      depth += (letter == '(') - (letter == ')')
      for word in ('and', 'or'):
        if not depth and inner[i:].startswith(f' {word} '):
          return (word, tree(inner[:i]), tree(inner[i + len(word) + 2 :]))
    raise AssertionError(text)

  rows = [
    {name: value for name, value in (('a', a), ('b', b)) if value}
    for a, b in itertools.product(range(4), range(4))
  ]
  for _ in range(150):
    text = expression(draw.randint(1, 4))
    expected = [i for i, row in enumerate(rows) if truth(tree(text), row) == 1]
    assert chosen(text, rows) == expected, text


def test_required_attributes():
  rows = [{'color': 'red'}, {'color': 'red+blue'}, {'color': 'blue'}, {'color': 'none'}, {}]
  assert chosen(filters.required({'color': 'red'}), rows) == [0, 1]
  assert chosen(filters.required({'color': '!red'}), rows) == [2, 3]
  assert chosen(filters.required(None, {'color': 'red'}), rows) == [2, 3, 4]
  assert chosen(filters.required(None, {'color': '!red'}), rows) == [0, 1, 4]
  assert chosen(filters.required({'color': 'red'}, {'color': 'blue'}), rows) == [0]
  assert chosen(filters.required({'color': 'green'}), rows) == []
  assert chosen(filters.required(None, {'color': 'green'}), rows) == [0, 1, 2, 3, 4]
  assert chosen(filters.required({'color': 'red+blue'}), rows) == [1]
  assert chosen(filters.required(None, {'color': 'red+blue'}), rows) == [0, 2, 3, 4]
  assert filters.required() is None


def test_unknown_fields_and_kinds_are_refused_by_name():
  fields = {'camera': ['number'], 'time': ['text']}
  filters.check(filters.parse('camera == 1 and time > "2024" and not camera is None'), fields)
  filters.check(filters.required(None, {'hat': 'yes'}), fields)
  with pytest.raises(ValueError, match="a field 'hat'"):
    filters.check(filters.required({'hat': 'yes'}), fields)
  with pytest.raises(ValueError, match="No crop of the gallery has a field 'camra'.* 'camera'"):
    filters.check(filters.parse('time == "x" or not camra == 1'), fields)
  with pytest.raises(ValueError, match='\'camera\' is compared with "1", a text, but .* a number'):
    filters.check(filters.parse('camera in [2, "1"]'), fields)


@pytest.mark.parametrize(
  'name', ['', 'a b', 'and', 'None', '1a', 'id', 'path', 'a-b', 'a.b', 'ﬁ', 'x' * 101]
)
def test_fields_that_no_filter_could_name_are_refused(name):
  with pytest.raises(ValueError, match='cannot be the name of a field'):
    filters.check_name(name)


def test_milvus_expressions_quote_what_people_write():
  text = milvus_filters.to_milvus(filters.parse("site == 'a\"b\\\\' or camera in [1, 2.5, 'x']"))
  assert text == (
    '(fields["site"] == "a\\"b\\\\") or '
    '(fields["camera"] in [1] or fields["camera"] in [2.5] or fields["camera"] in ["x"])'
  )


def test_texts_say_backslashes_and_quotation_marks():
  for text, value in [
    (r'"C:\\new\\1.jpg"', r'C:\new\1.jpg'),
    (r'r"C:\new\1.jpg"', r'C:\new\1.jpg'),
    (r'"\"a\" \'b\'"', '"a" \'b\''),
    (r"'n\u00f8rd'", 'nørd'),
    ('"a = 1 AND b => 2024-01-01"', 'a = 1 AND b => 2024-01-01'),
  ]:
    assert filters.parse(f'site == {text}') == Compare('site', '==', value)
    assert filters.parse(f'"x" == site or site in [{text}]').parts[1] == In('site', (value,))


def test_curly_marks_are_quotation_marks_and_accents_may_stand_apart():
  for text in ('“nørth”', '„nørth“', '«nørth»', '‘nørth’', '‚nørth‘', 'r“nørth”'[1:]):
    assert filters.parse(f'site == {text}') == Compare('site', '==', 'nørth')
  assert filters.parse('site == “l’été 5" "”') == Compare('site', '==', 'l’été 5" "')
  assert filters.parse('site == "“a” ‘b’"') == Compare('site', '==', '“a” ‘b’')
  assert filters.parse('site == "e\u0301te\u0301"') == Compare('site', '==', 'été')
  assert filters.parse('camera\u00a0==\u30001\nand\tsite is None')
  rows = [{'site': 'été'}, {'site': 'e\u0301te\u0301'}, {'site': 'ete'}]
  assert chosen('site == "été"', rows) == chosen('site in ["e\u0301te\u0301"]', rows) == [0, 1]
  assert chosen(filters.required({'site': 'e\u0301te\u0301'}), rows) == [0, 1]


def test_times_are_compared_as_instants():
  rows = [
    {'time': '2024-03-01T09:15:00+01:00'},
    {'time': '2024-03-01 08:15:00.5Z'},
    {'time': '2024-03-01T08:14:59.999+00:00'},
    {'time': '2024-03-01T03:15-0500'},
    {'time': '2024-02-29T23:59:59-09'},
    {},
  ]
  assert chosen('time == "2024-03-01T08:15:00Z"', rows) == [0, 3]
  assert chosen('time > "2024-03-01 08:15Z"', rows) == [1, 4]
  assert chosen('time in ["2024-03-01T10:15:00+02:00", "2024-03-01T08:59:59Z"]', rows) == [0, 3, 4]
  assert chosen('time < "2024-03-01T08:15:00Z"', rows) == [2]
  assert chosen('time >= "2024-03-01" and time < "2024-03-02"', rows) == [0, 1, 2, 3, 4]
  with pytest.raises(
    ValueError, match='with an offset from UTC, and "2024-03-01T08:15:00" has not'
  ):
    chosen('time == "2024-03-01T08:15"', rows)
  local = [{'time': '2024-03-01 09:15'}, {'time': '2024-03-01T09:15:00.25'}, {'time': 'noon'}]
  assert chosen('time == "2024-03-01T09:15:00"', local) == [0]
  assert chosen('time <= "2024-03-01T09:15:00.250"', local) == [0, 1]
  with pytest.raises(ValueError, match='without an offset'):
    chosen('time == "2024-03-01T08:15Z"', local)


def test_random_comparisons_hold_as_python_says():
  draw = random.Random(1)
  pool = [
    1,
    2,
    2.5,
    -3,
    2**62 + 1,
    2**62,
    0.1,
    True,
    False,
    'a',
    'b',
    'ab',
    '',
    'ø',
    '1',
    '2024-01',
  ]
  symbols = {
    '==': operator.eq, '<': operator.lt, '<=': operator.le, '>': operator.gt, '>=': operator.ge,
  }  # fmt: skip

  def holds(value, symbol, other):
    if filters.kind(value) != filters.kind(other):
      return symbol == '!='
    return value != other if symbol == '!=' else symbols[symbol](value, other)

  for _ in range(100):
    rows = [{'a': draw.choice(pool)} if draw.random() < 0.9 else {} for _ in range(12)]
    # As the segments make it: True, 1 and 1.0 are different values.
    distinct = {}
    codes = [
      distinct.setdefault((filters.kind(row['a']), row['a']), len(distinct)) if row else -1
      for row in rows
    ]
    found = Column([value for _, value in distinct], np.asarray(codes, np.int32))
    symbol, other = draw.choice([*symbols, '!=']), draw.choice(pool)
    listed = tuple(draw.sample(pool, 4))
    for condition, expected in (
      (Compare('a', symbol, other), [bool(r) and holds(r['a'], symbol, other) for r in rows]),
      (In('a', listed), [bool(r) and any(holds(r['a'], '==', o) for o in listed) for r in rows]),
      (
        In('a', listed, negated=True),
        [bool(r) and not any(holds(r['a'], '==', o) for o in listed) for r in rows],
      ),
    ):
      answer = filters.evaluate(condition, {'a': found}.get, 12)
      assert answer.tolist() == expected, condition


def test_a_column_is_ordered_in_runs(monkeypatch):
  monkeypatch.setattr(filters, '_RUN', 3)
  rows = [{'a': str(i % 8)} for i in range(20)] + [{'a': i} for i in range(5)]
  assert len(column(rows, 'a').runs) > 2
  for text, holds in (
    ('a >= "5"', lambda a: isinstance(a, str) and a >= '5'),
    ('a < 3', lambda a: isinstance(a, int) and a < 3),
    ('a in ["0", "7", 2]', lambda a: a in ('0', '7', 2)),
    ('a != "3"', lambda a: a != '3'),
  ):
    assert chosen(text, rows) == [i for i, row in enumerate(rows) if holds(row['a'])], text


def test_many_values_in_a_list_are_looked_up_and_not_gone_through(monkeypatch):
  """Bound by the number of comparisons; it was one for each value of each crop."""
  values = [f'2024-03-01T{i // 3600:02}:{i // 60 % 60:02}:{i % 60:02}' for i in range(20_000)]
  found = Column(values, np.arange(len(values), dtype=np.int32))
  assert found.runs
  calls = []
  monkeypatch.setattr(filters, '_key', lambda value: calls.append(value) or value)
  condition = filters.And((In('time', tuple(values[:4000])), In('time', tuple(values[2000:6000]))))
  assert filters.evaluate(condition, lambda _: found, len(values)).sum() == 2000
  assert len(calls) == 8000


def test_a_long_unreadable_filter_is_refused_fast():
  """Were reading it quadratic, ten thousand characters would take minutes here and not moments."""
  for text in ('"\\' * 4999, '"' * 9999, 'a' * 9999, '1-' * 4999, '\\"' * 4999, '\'"' * 4999):
    with pytest.raises(ValueError, match='filter|condition'):
      filters.parse(text)


def test_parsing_gives_plain_values():
  assert filters.parse('a == -2') == Compare('a', '==', -2)
  assert filters.parse('a not in {"x"}') == In('a', ('x',), negated=True)
  assert filters.negated(Missing('a')) == Missing('a', negated=True)
  assert filters.negated(Has('a', 'b')) == Has('a', 'b', negated=True)


@pytest.mark.parametrize('negated', [False, True])
def test_a_value_that_no_crop_of_a_part_has_is_had_by_none_of_them(negated):
  column = Column(['no', 'red+blue'], np.array([0, -1, 1], np.int32))
  for value, has in (('yes', [False] * 3), ('blue', [False, False, True])):
    mask = filters.evaluate(Has('hat', value, negated), lambda _: column, 3)
    assert mask.tolist() == [answer != negated for answer in has]


def test_filters_are_read_while_other_threads_parse_python(monkeypatch):
  """Python 3.11 counts the depth of its parser once for all threads, and then says SystemError."""
  inside, together, calls = [0], [], itertools.count()
  parse = ast.parse

  def disturbed(*arguments, **options):
    inside[0] += 1
    together.append(inside[0])
    time.sleep(0.001)
    try:
      if next(calls) % 3:  # code elsewhere may parse at the same moment, and takes no lock of ours
        raise SystemError('AST constructor recursion depth mismatch (before=24, after=23)')
      return parse(*arguments, **options)
    finally:
      inside[0] -= 1

  texts = [f'camera == {i} and not (time != "2024-01-05" or site in ["a", "b"])' for i in range(40)]
  expected = [filters.parse(text) for text in texts]
  monkeypatch.setattr(ast, 'parse', disturbed)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(filters.parse, texts)) == expected
  assert max(together) == 1 and len(together) > 100
