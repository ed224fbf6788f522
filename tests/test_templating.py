"""Pages from templates: every value is a text, whatever it looks like."""

from __future__ import annotations

import collections
import html.parser
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest

from tfreid import templating

ROOT = Path(__file__).parent.parent

# Texts that want to be something else: tags, ends of what they stand in, templates, entities.
HOSTILE = (
  '<script>alert(1)</script>',
  '</title></style></h1><img src=x onerror=alert(1)>',
  '"><b onclick=alert(1)>',
  "' onmouseover='alert(1)",
  '`--><svg/onload=alert(1)>',
  '{{ 7 * 7 }}',
  '{% for x in y %}',
  '{# nothing #}',
  '&lt;b&gt; &amp; &#39;',
  'a\x07b\x1b[2J\x7f\u202e',
  '{{ document.title | safe }}',
)

_VOID = ('meta', 'img', 'link', 'br')


class _Read(html.parser.HTMLParser):
  """What a browser would find in a page."""

  def __init__(self):
    super().__init__()
    self.tags: list[str] = []
    self.attributes: list[tuple[str, str, str | None]] = []
    # Tag -> the whole text of each element of that name.
    self.texts: dict[str, list[str]] = collections.defaultdict(list)
    self._open: list[tuple[str, int]] = []

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += [(tag, name, value) for name, value in attributes]
    if tag not in _VOID:
      self._open.append((tag, len(self.texts[tag])))
      self.texts[tag].append('')

  def handle_endtag(self, tag):
    self.tags.append(f'/{tag}')
    assert self._open.pop()[0] == tag

  def handle_data(self, data):
    for tag, place in self._open:
      self.texts[tag][place] += data


def read(page):
  """The tags, attributes and texts of a page; its elements must be closed in their order."""
  reader = _Read()
  reader.feed(page)
  reader.close()
  assert reader._open == []
  return reader


@pytest.fixture
def package(tmp_path, monkeypatch):
  """The name of a package that has a template `page.txt`."""
  name = f'templated_{abs(hash(tmp_path))}'
  folder = tmp_path / name / 'templates'
  folder.mkdir(parents=True)
  (tmp_path / name / '__init__.py').touch()
  # No .html: the ending of a name does not decide whether a value is escaped.
  (folder / 'page.txt').write_text(
    '{% if said %}\n<p id="{{ said }}">{{ said }}</p>\n{% endif %}\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  return name


@pytest.mark.parametrize('text', HOSTILE)
def test_a_value_is_escaped_in_text_and_in_an_attribute(package, text):
  shown = read(templating.render(package, 'page.txt', said=text))
  assert shown.tags == ['p', '/p']
  assert shown.attributes == [('p', 'id', text)]
  assert shown.texts == {'p': [text]}


def test_lines_of_a_template_that_only_say_what_to_do_leave_nothing_behind(package):
  assert templating.render(package, 'page.txt', said='x') == '<p id="x">x</p>\n'
  assert templating.render(package, 'page.txt', said='') == ''


def test_what_a_template_uses_must_be_given(package):
  with pytest.raises(jinja2.UndefinedError, match='said'):
    templating.render(package, 'page.txt')
  with pytest.raises(jinja2.TemplateNotFound):
    templating.render(package, 'other.txt')


@pytest.mark.parametrize(
  'module', ['tfreid.templating', 'tfreid.search.page', 'tfreid.comparison.document']
)
def test_who_writes_no_page_does_not_wait_for_jinja(module):
  code = f"import sys, {module}; sys.exit('jinja2' in sys.modules)"
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_only_a_drawing_is_marked_as_safe():
  """A template that marks another value so opens a door."""
  marked = {
    f'{path.parent.parent.name}/{path.name}: {line.strip()}'
    for path in (ROOT / 'tfreid').rglob('templates/*')
    for line in path.read_text(encoding='utf-8').splitlines()
    if 'safe' in line or 'autoescape' in line
  }
  assert len(list((ROOT / 'tfreid').rglob('templates/*'))) == 2
  assert marked == {
    'comparison/document.html.j2: <figure role="group">{{ part.svg | safe }}<figcaption>'
    '{{ part.caption }}</figcaption></figure>'
  }
