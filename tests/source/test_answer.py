from __future__ import annotations

import dataclasses
import os

import pytest

from tests.test_templating import HOSTILE, read
from tfreid.search import page
from tfreid.source.answer import CROSS, TICK, UNKNOWN, Answer, Hit, Suggestion, verdict


@pytest.mark.parametrize(
  ('asked', 'annotated', 'mark'),
  [
    ('red', 'red', TICK),
    ('red', 'blue', CROSS),
    ('red', 'black+red', TICK),
    ('!red', 'red', CROSS),
    ('!red', 'blue', TICK),
    ('red', None, UNKNOWN),
  ],
)
def test_verdict_compares_what_was_asked_with_what_was_annotated(asked, annotated, mark):
  assert verdict(asked, annotated) == mark


def _answer(path=''):
  return Answer(
    query={'gender': 'female', 'hat': '!yes'},
    hits=[
      Hit('a.jpg', 0.9, path=path, attributes={'gender': 'female', 'hat': 'no'}),
      Hit('b.jpg', 0.5),
    ],
    text='<b>woman</b>',
    gallery_size=7,
  )


def test_json_has_ranks_and_matches():
  hits = _answer().to_json()['hits']
  assert [hit['rank'] for hit in hits] == [1, 2]
  assert hits[0]['matches'] == {'gender': True, 'hat': True}
  assert hits[1]['matches'] == {'gender': None, 'hat': None}


def test_page_is_self_contained_and_escapes_what_was_typed(tmp_path):
  from PIL import Image

  picture = tmp_path / 'a.jpg'
  Image.new('RGB', (400, 900), 'red').save(picture)
  text = page.render(_answer(str(picture)))
  assert '&lt;b&gt;woman&lt;/b&gt;' in text and '<b>woman' not in text
  assert text.count('data:image/jpeg;base64,') == 1
  assert 'http' not in text.replace('http-equiv', '')
  assert 'image not readable' in text  # the second hit has no file


def test_thumbnail_of_a_file_that_is_no_image_is_left_out(tmp_path):
  broken = tmp_path / 'broken.jpg'
  broken.write_bytes(b'not an image')
  assert page.thumbnail(str(broken)) == ''


def test_the_page_opens_pictures_within_the_limits_and_nothing_else(tmp_path, monkeypatch):
  """An EPS file would start another program, a huge picture take gigabytes."""
  from PIL import Image

  from tests.data import picture_zoo

  files = {
    'eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n',
    'huge': picture_zoo.bmp()[:18] + b'\0\0\1\0' * 2 + picture_zoo.bmp()[26:],
    'scans': picture_zoo.progressive_with_scans(30_000),
    'damaged': picture_zoo.bmp()[:99],
  }
  os.mkfifo(tmp_path / 'pipe')
  formats = []
  real = Image.open
  monkeypatch.setattr(Image, 'open', lambda *a, **o: formats.append(o['formats']) or real(*a, **o))
  for name, contents in files.items():
    (tmp_path / name).write_bytes(contents)
  for name in (*files, 'pipe', 'missing'):
    assert page.thumbnail(str(tmp_path / name)) == ''
  assert all(given == ('BMP',) for given in formats)


def test_the_next_question_leaves_out_what_tells_nothing_and_is_escaped_on_the_page():
  suggestions = [Suggestion('hat<', 0.814), Suggestion('age', 0.5), Suggestion('bag', 0.004)]
  answer = dataclasses.replace(_answer(), suggestions=suggestions)
  assert answer.ask_next() == 'hat< (0.81 bits), age (0.50 bits)'
  assert answer.ask_next(1) == 'hat< (0.81 bits)'
  assert 'Ask next: hat&lt; (0.81 bits), age (0.50 bits)<' in page.render(answer)
  assert answer.to_json()['ask_next'][2] == {'attribute': 'bag', 'gain': 0.004}
  assert _answer().ask_next() == '' and 'Ask next' not in page.render(_answer())


def test_reasons_stand_beside_the_marks_with_a_word_of_what_they_are():
  hit = Hit('a.jpg', 0.9, attributes={'gender': 'female'}, reasons={'gender': 0.1234, 'hat': -2})
  answer = dataclasses.replace(_answer(), hits=[hit])
  text = page.render(answer)
  assert 'gender: female <small>(+0.123)</small>' in text
  assert 'hat <small>(-2.000)</small>' in text
  assert 'what the attribute adds to the score' in text
  assert 'what the attribute adds to the score' not in page.render(_answer())
  assert 'what the attribute adds to the score' in answer.table().caption
  assert answer.to_json()['hits'][0]['reasons'] == {'gender': 0.1234, 'hat': -2.0}


@pytest.mark.parametrize('text', HOSTILE)
def test_whatever_is_said_on_the_page_is_text_and_no_tag_comes_from_it(text, tmp_path):
  from PIL import Image

  def answer(said):
    picture = tmp_path / 'crop.png'
    Image.new('RGB', (6, 12), 'red').save(picture)
    return Answer(
      query={'hat': '!yes', said: said},
      hits=[
        Hit(said, 0.5, path=str(picture), attributes={'hat': said, said: said}, reasons={said: 1}),
        Hit(f'b{said}', -0.25, path=f'/nowhere/{said}'),
      ],
      text=said,
      source=said,
      gallery_size=7,
      suggestions=[Suggestion(said, 0.5)],
    )

  shown, plain = read(page.render(answer(text))), read(page.render(answer('plain')))
  assert shown.tags == plain.tags
  assert [name for _, name, _ in shown.attributes] == [name for _, name, _ in plain.attributes]
  assert ('img', 'alt', f'crop {text}') in shown.attributes
  # Both the title of the window and the heading; ids; what was asked, known, and is asked next.
  assert shown.texts['title'] == shown.texts['h1'] == [text]
  assert shown.texts['p'] == [f'Ask next: {text} (0.50 bits)', text, f'b{text}']
  said = ' '.join(shown.texts['li'])
  assert f'{text}={text}' in said and f'hat: {text}' in said and f'{text}: {text}' in said
  assert f'Asked: {text}.' in shown.texts['footer'][0]
  assert '/nowhere' not in page.render(answer(text))


def test_the_table_shows_ids_as_they_are_and_whole():
  """Neither as markup, which brackets look like, nor cut off."""
  from rich.console import Console

  names = ['cam[/1].jpg', 'a[red]b.jpg', 'x' * 70 + '.jpg']
  answer = Answer(query={'[hat]': '!yes'}, hits=[Hit(name, 0.5) for name in names])
  console = Console(width=60, color_system=None)
  with console.capture() as captured:
    console.print(answer.table())
  text = captured.get()
  assert 'cam[/1].jpg' in text and 'a[red]b.jpg' in text and '[hat]≠yes' in text
  assert text.count('x') == 70


def test_control_characters_of_ids_are_shown_in_the_table():
  from rich.console import Console

  odd = dataclasses.replace(_answer(), hits=[Hit('a\x1b]0;title\x07\x9bm\u202egpj', 0.9)])
  console = Console(width=120)
  with console.capture() as captured:
    console.print(odd.table())
  assert 'a\\x1b]0;title\\x07\\x9bm\\u202egpj' in captured.get()
