"""No text that a stranger sends stops the others: each is read or refused in bounded time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import worst_texts

ROOT = Path(__file__).parent.parent


def test_every_door_answers_the_worst_texts():
  """Were one door quadratic, this would take minutes; were one cubic, days. It takes seconds."""
  found = subprocess.run(
    [sys.executable, worst_texts.__file__],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert found.returncode == 0, found.stderr
  assert [line.split(':')[0] for line in found.stdout.splitlines()] == list(worst_texts.DOORS)
