"""Pictures of ranked results beside the page of a comparison. Floor 5."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from PIL import Image

from tfreid.comparison import plan
from tfreid.comparison.scores import Result

FOLDER = 'ranked'

_SHOWN_QUERIES = 8


def copy(results: Sequence[Result], out: str, directory: str) -> dict[str, str]:
  """One picture of ranked results per system, beside the page: system -> relative address.

  Of each system the first seed's. Pictures that an earlier call copied stay where the run is gone.
  """
  addresses = {}
  for result in results:
    if result.role != plan.TABLE or not result.primary or result.system in addresses:
      continue
    address = f'{FOLDER}/{result.system}.png'
    path = os.path.join(directory, FOLDER, f'{result.system}.png')
    folder = os.path.join(out, *result.row['run'].split('/'), result.label, 'ranked_results')
    if out and os.path.isdir(folder):
      _stack(folder, path)
    if os.path.isfile(path):
      addresses[result.system] = address
  return addresses


def _stack(folder: str, path: str):
  """The pictures of a folder below one another, in one file."""
  names = sorted(name for name in os.listdir(folder) if name.endswith('.png'))[:_SHOWN_QUERIES]
  if not names:
    return
  os.makedirs(os.path.dirname(path), exist_ok=True)
  if len(names) == 1:
    shutil.copyfile(os.path.join(folder, names[0]), path)
    return
  pictures: list[Image.Image] = []
  for name in names:
    with Image.open(os.path.join(folder, name), formats=('PNG',)) as picture:
      pictures.append(picture.convert('RGB'))
  sheet = Image.new(
    'RGB', (max(p.width for p in pictures), sum(p.height for p in pictures)), 'white'
  )
  top = 0
  for part in pictures:
    sheet.paste(part, (0, top))
    top += part.height
  partial = f'{path}.partial-{os.getpid()}'
  # 256 colours: a third of the size, and nobody judges a gradient here.
  sheet.quantize(256).save(partial, 'PNG', optimize=True)
  os.replace(partial, path)
