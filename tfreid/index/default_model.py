"""The model where none is named: the one for photographs, if it is at hand. Floor 4.

It comes with the repository and not with the wheel, since its terms (research, not commerce) are
others than those of the code.
"""

from __future__ import annotations

import os

VARIABLE = 'TFREID_MODEL'
_PLACE = os.path.join('saved_models', 'photographs')
_REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def directory() -> str:
  """The folder of the model.

  That is what the environment variable TFREID_MODEL names; else saved_models/photographs in the
  current folder; else the one of the checkout that this package is run from.

  Raises:
    FileNotFoundError: there is none; the message says how to get one.
  """
  named = os.environ.get(VARIABLE, '')
  if named:
    if not os.path.isdir(os.path.expanduser(named)):
      raise FileNotFoundError(
        f"{VARIABLE} names the model '{named}', and there is no such folder. Correct it, or give "
        '--model=DIRECTORY.'
      )
    return os.path.abspath(os.path.expanduser(named))
  for place in (os.getcwd(), _REPOSITORY):
    path = os.path.join(place, _PLACE)
    if any(name.isdecimal() for name in (os.listdir(path) if os.path.isdir(path) else ())):
      return path
  raise FileNotFoundError(
    f'No model is named, and {_PLACE} is not here. That model, for photographs of people, is part '
    'of the repository and not of the package, since it is for research only: copy the folder from '
    f'there, and name it with --model=DIRECTORY or {VARIABLE}. Or train one: docs/train.md.'
  )
