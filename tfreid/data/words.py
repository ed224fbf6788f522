"""The words people use for attributes: phrases, and descriptions made of them. Floor 1.

There is no language model here: a fixed table of phrases, the longest match wins, and a word
that is in no phrase is reported, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tfreid import query as queries
from tfreid.data.attributes import NONE, AttributeSchema
from tfreid.query import Is, IsNot, Statement
from tfreid.text import check_length, nearest, normalized, shortened

# A person in all attributes of the largest schema, as settings, takes some 1,800 characters.
MAX_CHARACTERS = 4000
# Unknown words for which a message names the nearest known phrase, and those it names at all.
_HINTS = 3
_REPORTED = 10

_SPELLINGS = {'gray': ('gray', 'grey')}

# Words that say nothing about an attribute. "or" is not among them: an alternative is something
# a query cannot say, so it is reported like any other unknown word.
_ARTICLES = frozenset(('a', 'an', 'the', 'some', 'his', 'her', 'their', 'one'))
_CONNECTIVES = frozenset(
  (
    *('and', 'with', 'in', 'wearing', 'wears', 'carrying', 'carries', 'has', 'having', 'but'),
    *('person', 'who', 'is', 'of', 'plus'),
  )
)
_NEGATIONS = ('no', 'without', 'not')
# Curly quotation marks and apostrophes separate words as straight ones do.
_QUOTES = '"\'\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\u00ab\u00bb'
_TOKEN = re.compile(rf'[^\s.,;:!?(){_QUOTES}]+')
# Characters that nobody sees: soft hyphens, blanks without width, byte order marks.
_INVISIBLE = '\u00ad\u200b\u2060\ufeff'
# Control characters separate as blanks do. Those that Python takes for white space do anyway.
_CONTROLS = ''.join(map(chr, (*range(0x09), *range(0x0E, 0x20), *range(0x7F, 0xA0))))
_PLAIN = str.maketrans(dict.fromkeys(_INVISIBLE, '') | dict.fromkeys(_CONTROLS, ' '))


def color_words(colors: Sequence[str], garments: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
  """Phrases for the colours of a piece of clothing, for `Attribute.words`.

  Args:
    colors: the attribute's values.
    garments: what may follow the colour, for example ('top', 'shirt').

  Returns:
    For each colour, 'red top', 'red shirt', ...; 'gray' is also spelled 'grey'.
  """
  return {
    color: tuple(f'{c} {garment}' for c in _SPELLINGS.get(color, (color,)) for garment in garments)
    for color in colors
  }


class Vocabulary(NamedTuple):
  """What descriptions of a schema may say; made once per schema, see `vocabulary`.

  Attributes:
    table: see `phrases`.
    things: names of the attributes that a person has or has not, such as a backpack.
    longest: number of words of the longest phrase.
    names: names of the attributes, by `_folded` name.
    values: for each attribute, its values by `_folded` value.
  """

  table: Mapping[str, tuple[str, str]]
  things: frozenset[str]
  longest: int
  names: Mapping[str, str]
  values: Mapping[str, Mapping[str, str]]


def vocabulary(schema: AttributeSchema) -> Vocabulary:
  """The vocabulary of a schema, which keeps it.

  Raises:
    ValueError: the schema uses one phrase for two things.
  """
  return schema.derive('words.vocabulary', _vocabulary)


def _vocabulary(schema: AttributeSchema) -> Vocabulary:
  table = _table(schema)
  longest = max(len(phrase.split()) for phrase in table)
  names = {_folded(attribute.name): attribute.name for attribute in schema.attributes}
  values = {
    attribute.name: {_folded(value): value for value in (*attribute.values, NONE)}
    for attribute in schema.attributes
  }
  return Vocabulary(table, _things(schema), longest, names, values)


def phrases(schema: AttributeSchema) -> dict[str, tuple[str, str]]:
  """Every phrase that `parse` knows, as a table that can be written out.

  An attribute with the values no and yes is called by its name ('backpack', 'hair band') or its
  words. A value of any other attribute is called by its words; where it has none, by value and
  name ('red vest color'). A value's bare name is no phrase unless it is among the words: 'red'
  alone, before a garment that the table does not know, would put the colour on the wrong one.

  'no', 'without' and 'not' before a phrase deny it, if it says one thing only: denying 'white
  skirt' denies neither the white nor the skirt.

  Args:
    schema: the attributes and their words.

  Returns:
    Lower-case phrase, words separated by single spaces, to (attribute, value); '!value' means
    "not this value".

  Raises:
    ValueError: the schema uses one phrase for two things.
  """
  return dict(vocabulary(schema).table)


def _table(schema: AttributeSchema) -> dict[str, tuple[str, str]]:
  table: dict[str, tuple[str, str]] = {}
  things = _things(schema)

  def add(phrase: str, attribute: str, value: str) -> None:
    spelled, phrase = phrase, ' '.join(_tokens(phrase))
    if not phrase:
      raise ValueError(f"The schema of {schema.name} has a phrase without a word: '{spelled}'.")
    if table.setdefault(phrase, (attribute, value)) != (attribute, value):
      raise ValueError(
        f"The schema of {schema.name} uses the phrase '{phrase}' both for "
        f'{queries.setting(*table[phrase])} and for {queries.setting(attribute, value)}; remove '
        'one.'
      )

  # What a schema says itself comes first; the phrases made from it give way where they collide.
  made: list[tuple[str, tuple[str, str]]] = []
  for attribute in schema.attributes:
    for value, words in attribute.words.items():
      for word in words:
        add(word, attribute.name, value)
    name = attribute.name.replace('_', ' ')
    if attribute.name in things:
      made.append((name, (attribute.name, 'yes')))
    else:
      made += [
        (f'{value} {name}', (attribute.name, value))
        for value in attribute.values
        if not attribute.words.get(value)
      ]
  for phrase, said in made:
    table.setdefault(' '.join(_tokens(phrase)), said)
  for phrase, (name, value) in list(table.items()):
    if phrase.split()[0] not in _NEGATIONS and not _implied(phrase, table, things):
      for negation in _NEGATIONS:
        table.setdefault(f'{negation} {phrase}', (name, _negated(schema, name, value)))
    if name in things and value == 'yes':
      table.setdefault(f'with {phrase}', (name, value))
  return table


def parse(text: str, schema: AttributeSchema) -> dict[str, str]:
  """What a description says, attribute by attribute.

  Understands settings ('gender=female, hat!=yes') and phrases ('woman with a red shirt and blue
  jeans, no hat'), mixed as one likes, separated by commas or semicolons. What is said of a thing
  says the thing too: 'white skirt' is a white lower body and a skirt.

  Args:
    text: the description.
    schema: what can be said.

  Returns:
    Attribute name to value, or to '!value' for "not this value", in the order of the text; for
    `AttributeSchema.encode_query`.

  Raises:
    ValueError: a word, attribute or value is unknown (the message names each, with the nearest
      that is known), the description contradicts itself, or it says nothing.
  """
  text = _plain(check_length('The description', text, MAX_CHARACTERS))
  known = vocabulary(schema)
  table = known.table
  said: list[tuple[str, str, str]] = []
  unknown: list[str] = []
  for part in re.split(r'[,;\n]', text):
    if '=' in part:
      said.append((*_read_setting(part, schema), part.strip()))
    else:
      _read_phrases(part, known, said, unknown)
  if unknown:
    reported = [
      _hint(words, table) if i < _HINTS else f"'{shortened(words)}'"
      for i, words in enumerate(unknown[:_REPORTED])
    ]
    if len(unknown) > _REPORTED:
      reported.append(f'and {len(unknown) - _REPORTED} more')
    raise ValueError(
      f'Did not understand {"; ".join(reported)}. '
      f'{schema.name} can be asked for: {", ".join(a.name for a in schema.attributes)}.'
    )
  if not said:
    first = schema.attributes[0]
    raise ValueError(
      f"The description '{shortened(text.strip())}' names no attribute. Say at least one, for "
      f"example '{first.name}={first.values[-1]}' or '{next(iter(table))}'."
    )
  return {name: str(statement) for name, statement in _joined(said).items()}


def _joined(said: Sequence[tuple[str, str, str]]) -> dict[str, Statement]:
  """What all that is said comes to, attribute by attribute.

  Args:
    said: attribute, value and the words that say so, in the order of the text.

  Raises:
    ValueError: two of them contradict each other.
  """
  description: dict[str, Statement] = {}
  sources: dict[str, str] = {}
  for name, value, source in said:
    statement, before = queries.read(value), description.get(name)
    merged = statement if before is None else _merge(before, statement)
    if merged is None:
      raise ValueError(
        f"The description contradicts itself about '{name}': '{sources[name]}' and '{source}'. "
        'Keep one of the two.'
        if not (isinstance(before, IsNot) and isinstance(statement, IsNot))
        else f"Only one value of '{name}' can be excluded, not both '{sources[name]}' and "
        f"'{source}'. Say which value is wanted."
      )
    if merged != before:
      description[name], sources[name] = merged, source
  return description


def _plain(text: str) -> str:
  """The text composed (NFC), without invisible characters, and with blanks for control ones."""
  return normalized(text).translate(_PLAIN)


def _tokens(text: str) -> list[str]:
  """The words of a text, lower case, without articles."""
  return [token for token in _TOKEN.findall(_plain(text).lower()) if token not in _ARTICLES]


def _negated(schema: AttributeSchema, name: str, value: str) -> str:
  """The opposite of a binary attribute's value, '!value' of another's."""
  attribute = schema.attribute(name)
  if attribute.is_binary:
    return attribute.values[1 - attribute.values.index(value)]
  return f'!{value}'


def _read_setting(part: str, schema: AttributeSchema) -> tuple[str, str]:
  """The attribute and the value ('!value', 'a+b') of a setting, checked."""
  name, statement = queries.read_setting(part)
  known = vocabulary(schema)
  # What is not known is passed on: the schema says which it knows.
  name = known.names.get(_folded(name), name)
  values = known.values.get(name, {})
  if isinstance(statement, IsNot):
    statement = IsNot(values.get(_folded(statement.value), statement.value))
  else:
    statement = Is(tuple(values.get(_folded(value), value) for value in statement.values))
  ((name, statement),) = schema.read_query({name: statement}).items()
  if isinstance(statement, IsNot):
    return name, _negated(schema, name, statement.value)
  return name, str(statement)


def _folded(name: str) -> str:
  """A name without what does not matter: case, and whether blanks are underscores."""
  return '_'.join(_plain(name).lower().replace('_', ' ').split())


def _read_phrases(
  part: str,
  known: Vocabulary,
  said: list[tuple[str, str, str]],
  unknown: list[str],
) -> None:
  """Appends what one comma-separated part says to `said`, and what is not known to `unknown`."""
  tokens = _tokens(part)
  table, things, longest = known[:3]
  position = 0
  run: list[str] = []  # of unknown words, reported together
  denied = None  # the phrase that was denied, while only 'and' has followed it

  def end_run() -> None:
    if run:
      unknown.append(' '.join(run))
      run.clear()

  def match_at(start: int) -> str | None:
    for length in range(min(longest, len(tokens) - start), 0, -1):
      phrase = ' '.join(tokens[start : start + length])
      if phrase in table:
        return phrase
    return None

  while position < len(tokens):
    phrase = match_at(position)
    if phrase is None:
      token, after = tokens[position], match_at(position + 1)
      position += 1
      if token in _CONNECTIVES:
        end_run()
        denied = denied if token == 'and' else None
        continue
      run.append(token)
      denied = None
      if token in _NEGATIONS and after:
        # Without its phrase, "did not understand 'no'" would not say which.
        run.append(after)
        position += len(after.split())
        end_run()
      continue
    end_run()
    name, value = table[phrase]
    first = phrase.split()[0]
    if denied and first not in _NEGATIONS and first != 'with' and tokens[position - 1] == 'and':
      raise ValueError(
        f"'{denied} and {phrase}' can be read in two ways. Say '{denied}, no {phrase}' or "
        f"'{denied}, with {phrase}'."
      )
    said.append((name, value, phrase))
    if first in _NEGATIONS:
      denied = phrase
    else:
      denied = None
      said += _implied(phrase, table, things)
    position += len(phrase.split())
  end_run()


def _things(schema: AttributeSchema) -> frozenset[str]:
  """Names of the attributes that a person has or has not, such as a backpack."""
  return frozenset(a.name for a in schema.attributes if a.values == ('no', 'yes'))


def _implied(
  phrase: str, table: Mapping[str, tuple[str, str]], things: frozenset[str]
) -> list[tuple[str, str, str]]:
  """What the endings of a phrase say of other attributes."""
  if table[phrase][0] in things:
    # The name of a thing is one: a plastic bag need not be what the schema means by a bag.
    return []
  words = phrase.split()
  names = {table[phrase][0]}
  implied = []
  for start in range(1, len(words)):
    ending = ' '.join(words[start:])
    if ending in table and table[ending][0] not in names:
      names.add(table[ending][0])
      implied.append((*table[ending], phrase))
  return implied


def _merge(first: Statement, second: Statement) -> Statement | None:
  """What two statements about one attribute say together; None if they cannot both be kept."""
  if first == second:
    return first
  if isinstance(first, IsNot) == isinstance(second, IsNot):
    return None
  excluded, wanted = (first, second) if isinstance(first, IsNot) else (second, first)
  return wanted if excluded.fits(str(wanted)) else None


def _hint(words: str, table: Mapping[str, tuple[str, str]]) -> str:
  near = nearest(words, table, cutoff=0.6)
  if not near:
    # Of several words, one may be a slip: "purpel hat".
    for word in words.split()[:_HINTS]:
      near = near or nearest(word, table, cutoff=0.75)
  return f"'{shortened(words)}'" + (f" (nearest known: '{near}')" if near else '')
