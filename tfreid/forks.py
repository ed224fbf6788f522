"""Notices a process that was forked from one that used TensorFlow already. Floor 0.

TensorFlow's threads do not live on in such a process, and its first operation waits for them for
ever. So whoever runs one asks here first.
"""

from __future__ import annotations

import os

_used_by: int | None = None  # the process that ran an operation


def check() -> None:
  """Notes that this process uses TensorFlow from now on.

  Raises:
    RuntimeError: a process that it was forked from did so before.
  """
  global _used_by
  if _used_by is None:
    _used_by = os.getpid()
  elif _used_by != os.getpid():
    raise RuntimeError(
      f'This process ({os.getpid()}) was forked from one ({_used_by}) that had used TensorFlow '
      'before; it would wait for ever. Fork before the first use, or start processes with '
      "multiprocessing.get_context('spawn')."
    )
