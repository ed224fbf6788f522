"""The flags about what gin files may do, for the sub-commands that read some.

A sub-command that uses them adopts them for its --help: `flags.adopt_module_key_flags(gin_flags)`.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

_ALLOW_IMPORTS = flags.DEFINE_list(
  'allow_imports',
  [],
  'Packages, besides tfreid, that gin files may import, separated by commas. A gin file is '
  'code: read those of others before you use them, and name only packages that you trust.',
)


def allow_imports() -> list[str]:
  """The packages that gin files may import besides tfreid."""
  return _ALLOW_IMPORTS.value


def passed_on() -> Sequence[str]:
  """The flags as arguments, for a `tfreid train` that another sub-command starts."""
  return [f'--allow_imports={",".join(_ALLOW_IMPORTS.value)}'] if _ALLOW_IMPORTS.value else []
