"""What Linux tells of processors."""

from __future__ import annotations

from tfreid import processor

_AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse avx2 avx512f avx512_bf16

processor\t: 1
vendor_id\t: AuthenticAMD
model name\t: another
flags\t\t: fpu
"""


def test_the_first_processor_is_told():
  flags = ('fpu', 'sse', 'avx2', 'avx512f', 'avx512_bf16')
  assert processor.parse(_AMD) == ('AMD EPYC 9R14', 'AuthenticAMD', flags)


def test_arm_calls_them_features_and_names_no_vendor():
  told = processor.parse('processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd bf16\n')
  assert told == processor.Processor(flags=('fp', 'asimd', 'bf16'))


def test_what_is_not_told_is_empty(monkeypatch):
  assert processor.parse('') == ('', '', ())
  monkeypatch.setattr('platform.system', lambda: 'Darwin')
  assert processor.processor.__wrapped__() == processor.Processor()


def test_this_one():
  found = processor.processor()
  assert all(flag and ' ' not in flag for flag in found.flags)
