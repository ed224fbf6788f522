"""A hook of mkdocs: brings the documents beside docs/ into the site. See mkdocs.yml.

README.md, SECURITY.md and the like are written for a reader of the repository: their links lead to
docs/…, and those of docs/ lead to ../SECURITY.md. In the site all pages are in one folder.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
# Document -> its page in the site.
BESIDE = {
  'README.md': 'index.md',
  'SECURITY.md': 'SECURITY.md',
  'CONTRIBUTING.md': 'CONTRIBUTING.md',
  'CHANGELOG.md': 'CHANGELOG.md',
}
# What documents link to and the site does not show otherwise.
ATTACHED = ('CITATION.cff', 'examples/search_a_folder.ipynb')

_LINK = re.compile(r'(\]\()(?!\w+:)([^)#\s]+)')


def on_files(files, config):
  """Adds the documents beside docs/, and what they link to."""
  for source, page in BESIDE.items():
    content = (ROOT / source).read_text(encoding='utf-8')
    files.append(File.generated(config, page, content=_moved(content, source)))
  for source in ATTACHED:
    files.append(File.generated(config, source, content=(ROOT / source).read_bytes()))
  return files


def on_page_markdown(markdown, page, config, files):
  """Mends the links of the pages of docs/ to documents beside it."""
  if page.file.src_uri in BESIDE.values():
    return markdown
  return _moved(markdown, f'docs/{page.file.src_uri}')


def _moved(markdown: str, source: str) -> str:
  """Markdown whose links fit the site.

  Args:
    markdown: of a document.
    source: path of the document in the repository.
  """
  page = BESIDE.get(source, source[len('docs/') :])

  def link(match):
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
    if target in BESIDE:
      target = BESIDE[target]
    elif target.startswith('docs/'):
      target = target[len('docs/') :]
    return match[1] + posixpath.relpath(target, posixpath.dirname(page) or '.')

  return _LINK.sub(link, markdown)
