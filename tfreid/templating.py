"""Pages from Jinja templates; every value is escaped unless a template says `safe`. Floor 0.

The templates of a package are files in its folder `templates/`. They hold what a page looks like;
what it says is worked out before, in Python.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import jinja2


def render(package: str, name: str, **values: Any) -> str:
  """The page that a template makes of some values.

  Args:
    package: whose folder `templates/` holds the template, such as 'tfreid.search'.
    name: of its file there.
    **values: by the names that the template uses. A text comes out as it is, whatever it looks
      like: neither as HTML nor as a template.

  Raises:
    jinja2.TemplateNotFound: the package has no such template.
    jinja2.UndefinedError: the template uses a name that was not given.
  """
  return _environment(package).get_template(name).render(values)


@functools.cache
def _environment(package: str) -> jinja2.Environment:
  # Here and not above: those who write no page do not wait for it.
  import jinja2

  return jinja2.Environment(
    loader=jinja2.PackageLoader(package),
    # Of every template, whatever the ending of its name.
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
