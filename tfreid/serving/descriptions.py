"""Descriptions in words, read inside the graph: string to attribute vector. Floor 4.

What `tfreid.data.words.parse` and `AttributeSchema.encode_query` do in Python, in stock operations,
so that a model server understands 'woman, red top, no hat' by itself. The table of phrases is made
from the schema when the graph is built.

A text becomes tokens; from left to right, the longest phrase of the table that starts at a token is
taken. Phrases are found by hash, in a table that is a constant of the graph. Nothing is guessed:
words that are not understood, and attributes about which the text contradicts itself, are answered
as such. Several values of one attribute at once ('upper_color=black+white') are not understood
here; they are sent as an attribute vector.

A letter with an accent is understood in both of Unicode's forms, composed and decomposed. There is
no stock operation that composes; so the letters that the schema's own phrases need are composed one
by one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfreid import query as queries
from tfreid.data import words
from tfreid.data.attributes import NONE, AttributeSchema

# Longer texts are not descriptions. It bounds the work that one request can ask for.
MAX_BYTES = 1000

_END_OF_PART = '\x1f'  # a token of its own, and in no text: it is removed from the input


class Reading(NamedTuple):
  """What B descriptions say.

  Attributes:
    vectors: float32 [B, A], attribute vectors in the schema's encoding.
    understood: string [B], settings in the schema's order: 'gender=female, hat!=yes'.
    unknown: string [B], what was not understood, in the order of the text, separated by '; '.
    contradictory: string [B], names of attributes the text contradicts itself about, by ', '.
    valid: bool [B], whether the text says something, and nothing else than is understood.
  """

  vectors: tf.Tensor
  understood: tf.Tensor
  unknown: tf.Tensor
  contradictory: tf.Tensor
  valid: tf.Tensor


class DescriptionReader:
  """Reads descriptions of a schema. It holds arrays only, which become constants of a graph."""

  def __init__(self, schema: AttributeSchema):
    """Makes the tables.

    Args:
      schema: what can be said.

    Raises:
      ValueError: the schema uses one phrase for two things.
    """
    self.schema = schema
    # Codes of what is said of an attribute: 0 nothing, v + 1 the value v, -(v + 1) not the value v.
    self._codes = {
      attribute.name: {
        value: code
        for code, value in enumerate(
          attribute.values if attribute.is_binary else (*attribute.values, NONE), start=1
        )
      }
      for attribute in schema.attributes
    }
    effects = {phrase: self._said(phrase) for phrase in words.phrases(schema)}
    effects.update(self._settings())
    self._phrases = np.asarray(sorted(effects), dtype=object)
    # [P, attributes]; the last row is of no phrase.
    self._effects = np.zeros([len(effects) + 1, len(schema.attributes)], np.int32)
    for row, phrase in enumerate(self._phrases):
      self._effects[row] = self._encoded(effects[phrase])
    self._lengths = np.asarray([len(phrase.split()) for phrase in self._phrases] + [0], np.int32)
    self._denies = np.asarray(
      [phrase.split()[0] in words._NEGATIONS for phrase in self._phrases] + [False]
    )
    # A phrase that says by itself whether it is denied: "no hat and with backpack" is clear.
    self._decided = self._denies | np.asarray(
      [phrase.split()[0] == 'with' for phrase in self._phrases] + [False]
    )
    self._buckets = _buckets(self._phrases)
    self._longest = int(self._lengths.max())
    # Decomposed -> composed, for the letters that occur.
    letters = sorted(set(''.join(self._phrases)))
    self._composed = {
      apart: letter
      for letter in letters
      if (apart := unicodedata.normalize('NFD', letter)) != letter
    }

  def _said(self, phrase: str) -> dict[str, str]:
    """What a phrase says, of other attributes too: a white skirt is a skirt."""
    said: list[tuple[str, str, str]] = []
    words._read_phrases(phrase, words.vocabulary(self.schema), said, [])
    return {name: value for name, value, _ in said}

  def _settings(self) -> dict[str, dict[str, str]]:
    """What settings say, which are one token each: 'upper_color=red'."""
    settings = {}
    for attribute in self.schema.attributes:
      for value in self._codes[attribute.name]:
        key = f'{words._folded(attribute.name)}={words._folded(value)}'
        settings[key] = {attribute.name: value}
        if value != NONE or attribute.is_binary:  # "not none" would not say which value is on
          denied = words._negated(self.schema, attribute.name, value)
          settings[key.replace('=', '!=')] = {attribute.name: denied}
    return settings

  def _encoded(self, description) -> list[int]:
    return [
      self._code(a.name, queries.read(description[a.name])) if a.name in description else 0
      for a in self.schema.attributes
    ]

  def _code(self, name, statement) -> int:
    if isinstance(statement, queries.IsNot):
      return -self._codes[name][statement.value]
    return self._codes[name][str(statement)]

  @tf.autograph.experimental.do_not_convert
  def __call__(self, texts: tf.Tensor) -> Reading:
    """Reads descriptions, string [B]."""
    texts = tf.ensure_shape(texts, [None])
    too_long = tf.strings.length(texts) > MAX_BYTES
    tokens, lengths = _tokens(tf.where(too_long, '', texts), self._composed)
    codes, conflicts, unknown_tokens, run_starts = self._read(tokens, lengths)
    unknown = _joined(tokens, unknown_tokens, run_starts)
    unknown = tf.where(too_long, f'a text of more than {MAX_BYTES} bytes', unknown)
    names = tf.constant([a.name for a in self.schema.attributes])
    contradictory = _listed(tf.where(conflicts, names[tf.newaxis], ''))
    understood = _listed(self._names(codes))
    valid = (unknown == '') & (contradictory == '') & (understood != '')
    return Reading(self._vectors(codes), understood, unknown, contradictory, valid)

  def _matches(self, tokens):
    """For each token [B, T], the longest phrase that starts there: its number, P if none."""
    number = len(self._phrases)
    phrases = tf.constant([*self._phrases, _END_OF_PART])  # the last is of no phrase
    best = tf.fill(tf.shape(tokens), number)
    text = tokens
    for length in range(1, self._longest + 1):
      if length > 1:
        # The tokens that follow; '' past the end, so that no phrase reaches beyond it.
        following = tf.pad(tokens, [[0, 0], [0, length - 1]], constant_values='')
        following = following[:, length - 1 :]
        text = tf.strings.join([text, following], separator=' ')
      slots = tf.strings.to_hash_bucket_fast(text, len(self._buckets))
      candidates = tf.gather(tf.constant(self._buckets), slots)  # [B, T, depth]
      equal = tf.gather(phrases, candidates) == text[..., tf.newaxis]
      found = tf.reduce_min(tf.where(equal, candidates, number), axis=-1)
      best = tf.where(found < number, found, best)
    return best

  def _read(self, tokens, lengths):
    """Goes through the tokens once, for all texts together.

    Returns:
      int32 [B, attributes] codes, bool [B, attributes] contradictions, bool [B, T] tokens that were
      not understood, and bool [B, T] tokens at which a run of such begins.
    """
    matches = self._matches(tokens)
    count, width = tf.shape(tokens)[0], tf.shape(tokens)[1]
    columns = tf.range(width)[tf.newaxis]
    phrase_lengths = tf.constant(self._lengths)
    match_lengths = tf.gather(phrase_lengths, matches)  # [B, T], 0 where no phrase starts
    connective = _is_one_of(tokens, (*words._CONNECTIVES, _END_OF_PART))
    negation = _is_one_of(tokens, words._NEGATIONS)
    after = tf.pad(match_lengths, [[0, 0], [0, 1]])[:, 1:]

    def span(start, stop):
      return (columns >= start[:, tf.newaxis]) & (columns < stop[:, tf.newaxis])

    def step(t, position, codes, conflicts, unknown, starts, denied):
      active = (position == t) & (t < lengths)
      token, length, follows = tokens[:, t], match_lengths[:, t], after[:, t]
      phrase = tf.gather(matches, t, axis=1)
      known = active & (length > 0)
      # "no hat and backpack" can be read in two ways: neither is taken.
      previous = tokens[:, tf.maximum(t - 1, 0)]
      ambiguous = (
        known & (denied >= 0) & ~tf.gather(tf.constant(self._decided), phrase) & (previous == 'and')
      )
      said = tf.where((known & ~ambiguous)[:, tf.newaxis], tf.gather(self._effects, phrase), 0)
      merged, conflict = _merged(codes, said)
      # A denial whose phrase is not in the table with it is reported together with the phrase.
      lost = active & (length == 0) & ~connective[:, t]
      reach = tf.where(negation[:, t], follows, 0)
      bad_start = tf.where(ambiguous, denied, t)
      bad_stop = tf.where(ambiguous, t + length, tf.where(lost, t + 1 + reach, t))
      bad = span(bad_start, bad_stop)
      # Runs end at phrases, connectives and the ends of parts, all of which leave a gap of tokens;
      # only a reported denial may have another run directly behind it.
      new_starts = columns == (t + 1 + reach)[:, tf.newaxis]
      starts |= new_starts & (lost & (reach > 0))[:, tf.newaxis]
      starts |= (columns == denied[:, tf.newaxis]) & ambiguous[:, tf.newaxis]
      starts |= (columns == (t + length)[:, tf.newaxis]) & ambiguous[:, tf.newaxis]
      denies = known & tf.gather(tf.constant(self._denies), phrase)
      still = active & (token == 'and') & (length == 0)
      denied = tf.where(active, tf.where(denies, t, tf.where(still, denied, -1)), denied)
      advance = tf.where(known, length, 1 + tf.where(lost, reach, 0))
      position = tf.where(active, position + advance, position)
      return t + 1, position, merged, conflicts | conflict, unknown | bad, starts, denied

    attributes = len(self.schema.attributes)
    nothing = tf.zeros([count, width], tf.bool)
    state = (
      tf.constant(0),
      tf.zeros([count], tf.int32),
      tf.zeros([count, attributes], tf.int32),
      tf.zeros([count, attributes], tf.bool),
      nothing,
      nothing,
      tf.fill([count], -1),
    )
    _, _, codes, conflicts, unknown, starts, _ = tf.while_loop(
      lambda t, *_: t < width, step, state, parallel_iterations=1
    )
    return codes, conflicts, unknown, starts

  def _vectors(self, codes):
    """Attribute vectors [B, A] of codes [B, attributes]."""
    schema = self.schema
    three_state = schema.encoding == 'three_state'
    off, on = (-1.0, 1.0) if three_state else (0.0, 1.0)
    if three_state:
      unsaid = np.zeros(schema.size, np.float32)
    else:
      unsaid = np.asarray(schema.rates or (0.5,) * schema.size, np.float32)
    code = tf.gather(codes, schema.groups, axis=1)  # [B, A]
    # The code that switches a column on: its value's; a binary attribute's is its second value.
    own = np.concatenate(
      [[2] if a.is_binary else np.arange(1, len(a.values) + 1) for a in schema.attributes]
    ).astype(np.int32)
    # "Not red" says that red is off, and nothing of the others.
    vectors = tf.where(code == own, on, tf.where(code > 0, off, unsaid))
    return tf.where(code == -own, off, vectors)

  def _names(self, codes):
    """Settings as strings [B, attributes], '' where nothing is said."""
    columns = []
    for i, attribute in enumerate(self.schema.attributes):
      values = list(self._codes[attribute.name])
      names = [''] * (2 * len(values) + 1)
      for code, value in enumerate(values, start=1):
        names[len(values) + code] = queries.setting(attribute.name, queries.Is((value,)))
        names[len(values) - code] = queries.setting(attribute.name, queries.IsNot(value))
      columns.append(tf.gather(tf.constant(names), codes[:, i] + len(values)))
    return tf.stack(columns, axis=1)


def _merged(codes, said):
  """What is known after more is said, and where that is a contradiction; both [B, attributes]."""
  first, again = codes == 0, (said == 0) | (said == codes)
  # One excludes a value and the other names one: what is named says more.
  mixed = (codes < 0) != (said < 0)
  merged = tf.where(first, said, tf.where(again | ~mixed, codes, tf.maximum(codes, said)))
  conflict = ~first & ~again & (~mixed | (codes == -said))
  return merged, conflict


def _tokens(texts, composed: Mapping[str, str]):
  """Lower-case tokens [B, T], '' past the end, and their number [B].

  Parts of a text end in a token of their own; a setting ('Hat = yes') is one token ('hat=yes').

  Args:
    texts: string [B].
    composed: letters, decomposed -> composed.
  """
  texts = tf.strings.unicode_transcode(texts, 'UTF-8', 'UTF-8', errors='replace')
  texts = tf.strings.regex_replace(texts, f'[{words._INVISIBLE}]', '')
  # Before `lower`, which drops what comes behind a null character.
  # So are all blanks one, but for the ends of lines.
  controls = r'\x00-\x09\x0b-\x1f\x{7f}-\x{9f}'
  texts = tf.strings.regex_replace(texts, rf'[{controls}\p{{Z}}]+', ' ')
  texts = tf.strings.lower(texts, encoding='utf-8')
  for apart, letter in composed.items():
    texts = tf.strings.regex_replace(texts, apart, letter)
  texts = tf.strings.regex_replace(texts, '[,;\\n]', _END_OF_PART)
  parts = tf.strings.split(texts, _END_OF_PART)  # ragged [B, parts]
  flat = parts.flat_values
  is_setting = tf.strings.regex_full_match(flat, '(?s).*=.*')
  setting = tf.strings.strip(flat)
  setting = tf.strings.regex_replace(setting, r'\s*(!?)=\s*', r'\1=')
  setting = tf.strings.regex_replace(setting, r'=!\s*', '=!')
  setting = tf.strings.regex_replace(setting, '!=!', '=')
  setting = tf.strings.regex_replace(setting, '^([^=]*)=!', r'\1!=')
  setting = tf.strings.regex_replace(setting, '[ _]+', '_')
  phrase = tf.strings.regex_replace(flat, f'[ .,;:!?(){words._QUOTES}]+', ' ')
  articles = '|'.join(sorted(words._ARTICLES))
  # Twice, since two articles in a row share the space between them.
  for _ in range(2):
    phrase = tf.strings.regex_replace(phrase, f'(^| )({articles})( |$)', ' ')
  parts = parts.with_flat_values(tf.where(is_setting, setting, phrase))
  texts = tf.strings.reduce_join(parts, axis=-1, separator=f' {_END_OF_PART} ')
  tokens = tf.strings.split(texts)
  return tokens.to_tensor(''), tf.cast(tokens.row_lengths(), tf.int32)


def _is_one_of(tokens, known):
  return tf.reduce_any(tokens[..., tf.newaxis] == tf.constant(sorted(known)), axis=-1)


def _joined(tokens, chosen, starts):
  """The chosen tokens of each row: runs of neighbours, separated by '; '."""
  texts = tf.where(chosen, tokens, _END_OF_PART)
  texts = tf.where(starts, tf.strings.join([_END_OF_PART, texts], separator=' '), texts)
  texts = tf.strings.reduce_join(texts, axis=1, separator=' ')
  return _separated(texts, f'( ?{_END_OF_PART} ?)+', '; ')


def _listed(texts):
  """The texts [B, n] of each row that are not empty, separated by ', '."""
  return _separated(
    tf.strings.reduce_join(texts, axis=1, separator=_END_OF_PART), f'{_END_OF_PART}+', ', '
  )


def _separated(texts, gap, separator):
  texts = tf.strings.regex_replace(texts, f'^{gap}', '')
  texts = tf.strings.regex_replace(texts, f'{gap}$', '')
  return tf.strings.regex_replace(texts, gap, separator)


def _buckets(phrases: np.ndarray) -> np.ndarray:
  """A hash table, int32 [S, depth]: the phrases with each hash value, then len(phrases)."""
  size = len(phrases)
  hashes = tf.strings.to_hash_bucket_fast(tf.constant(list(phrases)), size).numpy()
  buckets = np.full([size, np.bincount(hashes).max()], len(phrases), np.int32)
  filled = np.zeros(size, np.int64)
  for phrase, slot in enumerate(hashes):
    buckets[slot, filled[slot]] = phrase
    filled[slot] += 1
  return buckets
