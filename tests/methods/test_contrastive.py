import numpy as np
import pytest

from tfreid.methods import contrastive


def _by_loops(images, attributes, ids, temperature):
  def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)

  def one_way(x, y):
    total = 0.0
    for i in range(len(x)):
      scores = [float(x[i] @ y[j]) / temperature for j in range(len(y))]
      normalizer = np.log(sum(np.exp(s) for s in scores))
      right = [j for j in range(len(y)) if ids[j] == ids[i]]
      total -= sum(scores[j] - normalizer for j in right) / len(right)
    return total / len(x)

  x, y = unit(images), unit(attributes)
  return 0.5 * (one_way(x, y) + one_way(y, x))


def test_loss_equals_a_loop_over_pairs():
  rng = np.random.default_rng(0)
  images, attributes = rng.normal(size=(2, 6, 4)).astype(np.float32)
  ids = np.asarray([0, 1, 1, 2, 0, 0])
  loss = contrastive.contrastive_loss(images, attributes, ids, temperature=0.3)
  assert float(loss) == pytest.approx(_by_loops(images, attributes, ids, 0.3), rel=1e-5)


def test_perfectly_aligned_distinct_concepts_cost_nothing_at_low_temperature():
  concepts = np.eye(5, dtype=np.float32)
  loss = contrastive.contrastive_loss(concepts, concepts, np.arange(5), temperature=0.01)
  assert float(loss) < 1e-6
