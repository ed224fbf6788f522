"""What conformance tests share. Their helper modules are imported by name, from this folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
if str(FOLDER) not in sys.path:
  sys.path.insert(0, str(FOLDER))
pytest.register_assert_rewrite('conformance_checks')


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory):
  """The stage directory of the pre-training that all recipes of a session share."""
  return tmp_path_factory.mktemp('pretrained') / 'pretrain'


@pytest.fixture(autouse=True, scope='module')
def float32_afterwards():
  """Leaves the precision policy and gin as other tests expect them."""
  yield
  import gin
  import tensorflow as tf

  tf.keras.mixed_precision.set_global_policy('float32')
  gin.clear_config()
