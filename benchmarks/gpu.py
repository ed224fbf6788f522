#!/usr/bin/env python3
"""All that only a GPU can show, as one command of under ten minutes, with a table at the end.

  python benchmarks/gpu.py --torch_python=<environment with torch>/bin/python

The A2Img step at 256x128 in batches of 128 and 256, in three precisions, with XLA and without,
beside PyTorch (channels_last, automatic mixed precision, with torch.compile and without);
embedding; and exact retrieval. Each part is one of the other benchmarks in a process of its own,
with a share of the time; what takes longer is ended, and the table says so. What was measured is
written after each part, so that nothing is lost if the machine is taken away.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
POLICIES = 'float32,mixed_float16,mixed_bfloat16'


def parts(*, batches: Sequence[int], repeats: int, torch_python: str) -> dict[str, list[str]]:
  """The command line of each part, by its title, in the order of what matters most."""
  torch = [f'--torch_python={torch_python}']
  step = ['training.py', f'--policies={POLICIES}', f'--repeats={repeats}', *torch]
  found = {
    f'step, batch {batch}{", XLA and torch.compile" if xla else ""}': [
      *step,
      f'--batch_size={batch}',
      *['--xla'] * xla,
    ]
    for xla in (False, True)
    for batch in batches
  }
  found['embedding'] = ['embedding.py', '--onednn=on', f'--repeats={repeats}', *torch]
  found['retrieval'] = ['retrieval.py', '--rows=1000000', '--repeats=5']
  return found


def measured(command: Sequence[str], seconds: float) -> dict[str, Any]:
  """What a part measured: numbers by name, or {'failed': why}."""
  environment = {**os.environ, 'PYTHONPATH': str(HERE.parent), 'TF_CPP_MIN_LOG_LEVEL': '2'}
  try:
    done = subprocess.run(
      [sys.executable, str(HERE / command[0]), *command[1:]],
      capture_output=True,
      text=True,
      timeout=seconds,
      env=environment,
    )
  except subprocess.TimeoutExpired:
    return {'failed': f'longer than {seconds:.0f} s'}
  found = re.search(r'^\{.*^\}', done.stdout, re.MULTILINE | re.DOTALL)
  if done.returncode or not found:
    said = (done.stderr.strip() or done.stdout.strip() or 'nothing was said').splitlines()
    return {'failed': said[-1][:200]}
  numbers: dict[str, Any] = json.loads(found[0])
  return numbers


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
  """The results as Markdown, a row for each number."""
  lines = ['| part | measure | value |', '|---|---|---:|']
  for title, numbers in results.items():
    for name, value in _flat(numbers):
      lines.append(f'| {title} | {name} | {value} |')
  return '\n'.join(lines)


def _flat(numbers: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
  found = []
  for name, value in numbers.items():
    if isinstance(value, Mapping):
      found += _flat(value, f'{prefix}{name} ')
    else:
      found.append((prefix + name, value))
  return found


def _main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', default='bench', help='folder of gpu.json and gpu.md')
  parser.add_argument('--seconds', type=float, default=540.0, help='for all parts together')
  parser.add_argument('--batches', default='128,256')
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--torch_python', default=sys.executable)
  given = parser.parse_args()
  out = pathlib.Path(given.out)
  out.mkdir(parents=True, exist_ok=True)
  planned = parts(
    batches=[int(batch) for batch in given.batches.split(',')],
    repeats=given.repeats,
    torch_python=given.torch_python,
  )
  ends, results = time.monotonic() + given.seconds, {}
  for number, (title, command) in enumerate(planned.items()):
    # An even share of what is left: what a quick part spares, the later ones get.
    left = (ends - time.monotonic()) / (len(planned) - number)
    print(f'{title}: at most {max(left, 0):.0f} s', flush=True)
    results[title] = measured(command, left) if left > 5 else {'failed': 'no time was left'}
    (out / 'gpu.json').write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    (out / 'gpu.md').write_text(table(results) + '\n', encoding='utf-8')
  print(table(results))


if __name__ == '__main__':
  _main()
