"""What `--precision=auto` chooses, for devices that are described and not here."""

from __future__ import annotations

import json
import logging

import pytest

from tfreid import processor
from tfreid.training import precision


@pytest.mark.parametrize(
  'gpus, flags, expected',
  [
    ([], ['avx2', 'fma'], 'float32'),
    ([], ['avx512f', 'avx512_bf16'], 'mixed_bfloat16'),
    ([], ['amx_tile', 'amx_bf16'], 'mixed_bfloat16'),
    ([], ['asimd', 'bf16'], 'mixed_bfloat16'),
    ([(9, 0)], ['avx2'], 'mixed_float16'),
    ([(7, 0), (8, 6)], ['amx_bf16'], 'mixed_float16'),
    # A GPU without tensor cores is what trains, whatever the processor can.
    ([(6, 1)], ['amx_bf16'], 'float32'),
    ([(8, 0), None], [], 'float32'),
  ],
)
def test_the_precision_is_what_the_devices_have_instructions_for(gpus, flags, expected):
  present = processor.Processor(flags=tuple(flags))
  assert precision.best(gpus, present).policy == expected


def test_bfloat16_of_a_processor_of_intel_without_amx_is_left_alone():
  def best(vendor, *flags):
    return precision.best([], processor.Processor(vendor=vendor, flags=flags))

  choice = best('GenuineIntel', 'avx512f', 'avx512_bf16')
  assert choice.policy == 'float32'
  assert 'avx512_bf16 is no faster' in choice.reason
  assert best('GenuineIntel', 'amx_bf16', 'avx512_bf16').policy == 'mixed_bfloat16'
  assert best('AuthenticAMD', 'avx512_bf16').policy == 'mixed_bfloat16'
  assert best('GenuineIntel', 'avx2').reason.startswith('the processor has no')


def test_without_onednn_a_processor_trains_in_single(monkeypatch):
  monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', '0')
  assert precision.best([], processor.Processor(flags=('amx_bf16',))).policy == 'float32'


def test_a_run_goes_on_in_the_precision_that_it_began_with(tmp_path, monkeypatch, caplog):
  present = processor.Processor('', 'AuthenticAMD', ('avx512_bf16',))
  monkeypatch.setattr(processor, 'processor', lambda: present)
  monkeypatch.setattr(precision, '_capabilities', list)
  with caplog.at_level(logging.WARNING):
    assert precision.policy('auto', str(tmp_path)) == 'mixed_bfloat16'
  assert 'Precision: mixed_bfloat16 (the processor has avx512_bf16).' in caplog.text
  (tmp_path / 'environment.json').write_text(json.dumps({'precision': 'float32'}))
  assert precision.policy('auto', str(tmp_path)) == 'float32'
  # Of a run that was begun before it was noted, and whatever was asked for by name.
  (tmp_path / 'environment.json').write_text(json.dumps({'time': ''}))
  assert precision.policy('auto', str(tmp_path)) == 'mixed_bfloat16'
  assert precision.policy('mixed_float16', str(tmp_path)) == 'mixed_float16'
  with pytest.raises(ValueError, match="not 'half'"):
    precision.policy('half')
