from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from sklearn.cross_decomposition import CCA

from tfreid import correlation

R = 1e-2


def _views(rows=200, sizes=(5, 4), shared=3, seed=0):
  """Two views of a common Gaussian, correlated to different degrees."""
  rng = np.random.default_rng(seed)
  common = rng.normal(size=(rows, shared))
  x = common @ rng.normal(size=(shared, sizes[0])) + 0.7 * rng.normal(size=(rows, sizes[0]))
  y = common @ rng.normal(size=(shared, sizes[1])) + 0.9 * rng.normal(size=(rows, sizes[1]))
  return x + 3.0, y - 1.0


def _inverse_root(matrix):
  values, vectors = np.linalg.eigh(matrix)
  return vectors @ np.diag(values**-0.5) @ vectors.T


def _symmetric_form(x, y, regularization):
  """T = S11^-1/2 S12 S22^-1/2 of Andrew et al. and its parts, by eigendecomposition."""
  x, y = x - x.mean(axis=0), y - y.mean(axis=0)
  freedom = len(x) - 1
  root_x = _inverse_root(x.T @ x / freedom + regularization * np.eye(x.shape[1]))
  root_y = _inverse_root(y.T @ y / freedom + regularization * np.eye(y.shape[1]))
  return root_x @ (x.T @ y / freedom) @ root_y, root_x, root_y


def _closed_gradient(x, y, regularization):
  """Of the sum of correlations by X, (2 X D11 + Y D12^T) / (m - 1) (Andrew et al. 2013)."""
  matrix, root_x, root_y = _symmetric_form(x, y, regularization)
  u, d, vt = np.linalg.svd(matrix, full_matrices=False)
  cross = root_x @ u @ vt @ root_y
  own = -0.5 * root_x @ u @ np.diag(d) @ u.T @ root_x
  x, y = x - x.mean(axis=0), y - y.mean(axis=0)
  return (2.0 * x @ own + y @ cross.T) / (len(x) - 1)


def _total(x, y, *, regularization, norm='nuclear'):
  whitened = correlation.whitened_correlation(x, y, regularization=regularization)
  return correlation.correlation_norm(whitened, norm=norm)


def _gradients(x, y, **kwargs):
  x, y = tf.constant(x), tf.constant(y)
  with tf.GradientTape() as tape:
    tape.watch([x, y])
    total = _total(x, y, regularization=R, **kwargs)
  return [gradient.numpy() for gradient in tape.gradient(total, [x, y])]


def test_total_correlation_is_the_nuclear_norm_of_the_symmetric_form():
  x, y = _views()
  singular = np.linalg.svd(_symmetric_form(x, y, R)[0], compute_uv=False)
  total = _total(x, y, regularization=R)
  assert total.dtype == tf.float64
  np.testing.assert_allclose(total, singular.sum(), rtol=1e-12)
  squared = _total(x, y, regularization=R, norm='squared_frobenius')
  np.testing.assert_allclose(squared, np.square(singular).sum(), rtol=1e-12)


def test_total_correlation_agrees_with_scikit_learn():
  x, y = _views()
  u, v = CCA(n_components=4, max_iter=20000, tol=1e-14).fit_transform(x, y)
  wanted = sum(np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(4))
  np.testing.assert_allclose(_total(x, y, regularization=1e-12), wanted, rtol=1e-6)


def test_total_correlation_is_blind_to_invertible_linear_maps_of_a_view():
  x, y = _views()
  mixed = x @ np.random.default_rng(1).normal(size=(5, 5)) + 7.0
  np.testing.assert_allclose(
    _total(mixed, y, regularization=1e-12),
    _total(x, y, regularization=1e-12),
    rtol=1e-8,
  )


def test_few_rows_of_unrelated_noise_correlate_perfectly():
  """Why a method must refuse batches that are small for the dimension: m - 1 <= k1 + k2."""
  rng = np.random.default_rng(0)
  few = _total(rng.normal(size=(9, 8)), rng.normal(size=(9, 8)), regularization=1e-9)
  many = _total(rng.normal(size=(4000, 8)), rng.normal(size=(4000, 8)), regularization=1e-9)
  assert few > 7.99
  assert many < 0.5


def test_gradient_is_the_closed_form():
  x, y = _views(rows=40)
  by_x, by_y = _gradients(x, y)
  np.testing.assert_allclose(by_x, _closed_gradient(x, y, R), atol=1e-13)
  np.testing.assert_allclose(by_y, _closed_gradient(y, x, R), atol=1e-13)


@pytest.mark.parametrize('norm', correlation.NORMS)
def test_gradient_is_the_finite_difference(norm):
  x, y = _views(rows=30)
  by_x, by_y = _gradients(x, y, norm=norm)
  step = 1e-5
  rng = np.random.default_rng(2)

  def total(x, y):
    return _total(x, y, regularization=R, norm=norm).numpy()

  along_x, along_y = rng.normal(size=x.shape), rng.normal(size=y.shape)
  found_x = (total(x + step * along_x, y) - total(x - step * along_x, y)) / (2 * step)
  found_y = (total(x, y + step * along_y) - total(x, y - step * along_y)) / (2 * step)
  np.testing.assert_allclose(np.sum(by_x * along_x), found_x, rtol=1e-7)
  np.testing.assert_allclose(np.sum(by_y * along_y), found_y, rtol=1e-7)


@pytest.mark.parametrize('difference', [0.0, 1e-15, 1e-9])
def test_gradient_stays_bounded_at_equal_singular_values(difference):
  """Orthonormal X and Y = X, one column stirred: T' is a multiple of I, but for `difference`."""
  basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 6)))
  basis -= basis.mean(axis=0)
  x, _ = np.linalg.qr(basis[:, :5])
  x *= 7.0
  noise = np.random.default_rng(1).normal(size=50)
  y = x.copy()
  y[:, 0] += difference * noise
  by_x, by_y = _gradients(x, y)
  np.testing.assert_allclose(by_x, _closed_gradient(x, y, R), atol=1e-9)
  assert np.abs(by_x).max() < 0.1
  assert np.abs(by_y).max() < 0.1


def test_nuclear_norm_has_a_bounded_gradient_at_zero():
  matrix = tf.zeros([3, 4], tf.float64)
  with tf.GradientTape() as tape:
    tape.watch(matrix)
    norm = correlation.nuclear_norm(matrix)
  gradient = tape.gradient(norm, matrix).numpy()
  assert norm == 0.0
  assert np.linalg.norm(gradient, 2) < 1.0 + 1e-12


def test_half_precision_views_are_correlated_in_double():
  x, y = _views()
  x, y = x.astype(np.float16), y.astype(np.float16)
  wanted = _total(x.astype(np.float64), y.astype(np.float64), regularization=R)
  assert _total(x, y, regularization=R) == wanted


def test_nearly_collinear_columns_keep_their_correlations():
  """Covariances square the condition number: 1e5 of the views would be 1e10 in float32."""
  x, y = _views()
  x[:, 1] = x[:, 0] + 1e-5 * x[:, 1]
  singular = np.linalg.svd(_symmetric_form(x, y, 1e-13)[0], compute_uv=False)
  np.testing.assert_allclose(_total(x, y, regularization=1e-13), singular.sum(), rtol=1e-4)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('norm', correlation.NORMS)
def test_views_that_are_not_finite_give_nan_and_no_error(bad, norm):
  x, y = _views()
  x[3, 2] = bad
  assert np.isnan(_total(x, y, regularization=R, norm=norm))


def test_an_unknown_norm_is_refused():
  x, y = _views()
  with pytest.raises(ValueError, match="nuclear, squared_frobenius, not 'trace'"):
    _total(x, y, regularization=R, norm='trace')


def test_canonical_projections_agree_with_scikit_learn():
  x, y = _views(shared=4)
  found = correlation.canonical_projections(
    correlation.whitened_correlation(x, y, regularization=1e-12)
  )
  u = (x - found.x_mean) @ found.x_projection
  v = (y - found.y_mean) @ found.y_projection
  wanted_u, wanted_v = CCA(n_components=4, max_iter=20000, tol=1e-14).fit_transform(x, y)
  for i in range(4):
    assert abs(np.corrcoef(u[:, i], wanted_u[:, i])[0, 1]) > 1.0 - 1e-6
    assert abs(np.corrcoef(v[:, i], wanted_v[:, i])[0, 1]) > 1.0 - 1e-6


def test_canonical_projections_whiten_and_pair_the_views():
  x, y = _views(sizes=(5, 3))
  found = correlation.canonical_projections(
    correlation.whitened_correlation(x, y, regularization=1e-12)
  )
  u = (x - found.x_mean) @ found.x_projection
  v = (y - found.y_mean) @ found.y_projection
  assert u.shape == v.shape == (200, 3)
  both = np.cov(np.transpose(u), np.transpose(v))
  np.testing.assert_allclose(both[:3, :3], np.eye(3), atol=1e-9)
  np.testing.assert_allclose(both[3:, 3:], np.eye(3), atol=1e-9)
  np.testing.assert_allclose(both[:3, 3:], np.diag(found.correlations), atol=1e-9)
  assert list(found.correlations) == sorted(found.correlations, reverse=True)


def test_canonical_projections_have_a_settled_sign():
  x, y = _views()
  one = correlation.canonical_projections(correlation.whitened_correlation(x, y, regularization=R))
  order = np.random.default_rng(0).permutation(len(x))
  two = correlation.canonical_projections(
    correlation.whitened_correlation(x[order], y[order], regularization=R)
  )
  np.testing.assert_allclose(one.x_projection, two.x_projection, atol=1e-8)
  np.testing.assert_allclose(one.y_projection, two.y_projection, atol=1e-8)
  largest = np.abs(one.x_projection).argmax(axis=0)
  assert np.all(np.asarray(one.x_projection)[largest, np.arange(4)] > 0.0)


def test_decorrelation_of_two_units_by_hand():
  """By hand: h = [[1, 2], [3, 0]], C = [[10, 2], [2, 4]] / 2 = [[5, 1], [1, 2]], not centred.

  ||C||_F = sqrt(25 + 1 + 1 + 4) = sqrt(31), ||diag C||_F = sqrt(25 + 4) = sqrt(29).
  """
  found = correlation.decorrelation(tf.constant([[1.0, 2.0], [3.0, 0.0]]))
  np.testing.assert_allclose(found, 31.0**0.5 - 29.0**0.5, rtol=1e-5)


def test_decorrelation_of_orthogonal_units_is_zero():
  activations = tf.constant([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
  np.testing.assert_allclose(correlation.decorrelation(activations), 0.0, atol=1e-6)


def test_decorrelation_of_a_dead_layer_has_a_finite_gradient():
  activations = tf.zeros([4, 3])
  with tf.GradientTape() as tape:
    tape.watch(activations)
    penalty = correlation.decorrelation(activations)
  np.testing.assert_array_equal(tape.gradient(penalty, activations), np.zeros([4, 3]))


def test_inverse_square_sum_by_hand():
  """1 / 1 + 1 / 4 + 1 / 0.25 + 1 / 0.25."""
  scales = [tf.constant([1.0, 2.0]), tf.constant([0.5, -0.5])]
  np.testing.assert_allclose(correlation.inverse_square_sum(scales), 9.25)
