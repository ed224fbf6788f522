from __future__ import annotations

import importlib.util
from pathlib import Path

import tensorflow as tf


def small(shape):
  pixels = tf.keras.Input(shape)
  pooled = tf.keras.layers.GlobalAveragePooling2D()(tf.keras.layers.Conv2D(4, 3)(pixels))
  return tf.keras.Model(pixels, tf.keras.layers.Dense(8)(pooled))


def test_the_rate_of_build_stands_beside_that_of_the_encoder(monkeypatch):
  monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / 'benchmarks'))
  path = Path(__file__).parents[2] / 'benchmarks' / 'index.py'
  spec = importlib.util.spec_from_file_location('index_benchmark', path)
  benchmark = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(benchmark)
  found = benchmark.build_rates(
    images=21,
    image_size=(32, 16),
    batch=8,
    repeats=1,
    in_flight=(1, 3),
    network=small,
    runtimes=('tensorflow', 'openvino'),
  )
  assert list(found) == ['float32', 'bfloat16']
  for rates in found.values():
    assert (rates['images'], rates['batch']) == (21, 8)
    for name in ('encoder', 'build_1', 'build_3', 'openvino_1', 'openvino_3'):
      assert rates[name] > 0
      assert rates[f'core_seconds_{name}'] > 0
