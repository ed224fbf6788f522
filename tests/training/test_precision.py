"""What `--precision=auto` chooses, for devices that are described and not here."""

from __future__ import annotations

import json
import logging

import pytest

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
  assert precision.best(gpus, flags).policy == expected


def test_without_onednn_a_processor_trains_in_single(monkeypatch):
  monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', '0')
  assert precision.best([], ['amx_bf16']).policy == 'float32'


def test_a_run_goes_on_in_the_precision_that_it_began_with(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(precision, '_flags', lambda: ['avx512_bf16'])
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


def test_the_processor_tells_its_flags():
  flags = precision._flags()
  assert all(isinstance(flag, str) and ' ' not in flag for flag in flags)
