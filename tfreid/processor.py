"""What the processor is and what it can do, as Linux tells it. Cellar."""

from __future__ import annotations

import functools
import platform
from typing import NamedTuple


class Processor(NamedTuple):
  """A processor; where the system does not tell, names are '' and there are no flags.

  Attributes:
    name: of the model, such as 'AMD EPYC 9R14'.
    vendor: 'AuthenticAMD', 'GenuineIntel'; '' for ARM.
    flags: instructions that it has, as /proc/cpuinfo names them: 'avx512f', 'amx_bf16', 'asimd'.
  """

  name: str = ''
  vendor: str = ''
  flags: tuple[str, ...] = ()


INTEL = 'GenuineIntel'


@functools.cache
def processor() -> Processor:
  """The processor that this process runs on."""
  if platform.system() != 'Linux':
    return Processor()
  try:
    with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
      return parse(file.read())
  except OSError:
    return Processor()


def parse(text: str) -> Processor:
  """The first processor of a text like /proc/cpuinfo."""
  told: dict[str, str] = {}
  for line in text.splitlines():
    name, _, value = line.partition(':')
    told.setdefault(name.strip().lower(), value.strip())
  flags = told.get('flags', told.get('features', '')).split()
  return Processor(told.get('model name', ''), told.get('vendor_id', ''), tuple(flags))
