"""Canonical correlation analysis and the terms of 2WayNet, as pure functions. Floor 0.

Sets go in, scalars and projections come out. Whoever trains on several replicas gathers first
(`tfreid.replicas.gather`): the correlation of a set is not the mean of its parts' correlations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

NORMS = ('nuclear', 'squared_frobenius')


class WhitenedCorrelation(NamedTuple):
  """Both views whitened, and how they correlate then. All float64.

  Attributes:
    matrix: T' = L1^-1 S12 L2^-T [k1, k2]; its singular values are the canonical correlations.
    x_mean, y_mean: [k1], [k2].
    x_factor, y_factor: L1 [k1, k1] and L2 [k2, k2], lower Cholesky factors of the covariances.
    finite: bool scalar. Where an input is infinite or not a number, the matrices above are those
      of unrelated unit-variance views, because decompositions of NaN fail on some devices and
      never return on others; what is computed from them must become NaN.
  """

  matrix: tf.Tensor
  x_mean: tf.Tensor
  y_mean: tf.Tensor
  x_factor: tf.Tensor
  y_factor: tf.Tensor
  finite: tf.Tensor


class CanonicalProjections(NamedTuple):
  """The closing linear CCA: u = (x - x_mean) x_projection and v alike are maximally correlated.

  Attributes:
    x_mean, y_mean: float64 [k1], [k2].
    x_projection, y_projection: float64 [k1, k], [k2, k] with k = min(k1, k2). The columns of u
      have unit (regularised) variance and are uncorrelated.
    correlations: float64 [k] in [0, 1], descending.
  """

  x_mean: tf.Tensor
  y_mean: tf.Tensor
  x_projection: tf.Tensor
  y_projection: tf.Tensor
  correlations: tf.Tensor


def whitened_correlation(
  x: tf.Tensor, y: tf.Tensor, *, regularization: float
) -> WhitenedCorrelation:
  """The cross-covariance of two views after each was whitened.

  S11 = X^T X / (m - 1) + r I on centred X, S22 alike, S12 = X^T Y / (m - 1), S11 = L1 L1^T,
  T' = L1^-1 S12 L2^-T. It has the singular values of T = S11^-1/2 S12 S22^-1/2 (Andrew et al.
  2013), since L^-1 and S^-1/2 differ by a rotation, and needs no eigendecomposition, whose
  gradient has 1 / (difference of eigenvalues) in it. In float64 whatever comes in: covariances
  square the condition number of the views.

  Args:
    x, y: [m, k1], [m, k2], paired rows, m > 1.
    regularization: r > 0, in the units of the views' variances.

  Returns:
    See `WhitenedCorrelation`.
  """
  x, y = tf.cast(x, tf.float64), tf.cast(y, tf.float64)
  finite = tf.reduce_all(tf.math.is_finite(x)) & tf.reduce_all(tf.math.is_finite(y))
  x_mean, y_mean = tf.reduce_mean(x, axis=0), tf.reduce_mean(y, axis=0)
  centred_x, centred_y = x - x_mean, y - y_mean
  freedom = tf.cast(tf.shape(x)[0] - 1, tf.float64)

  def factor(centred):
    identity = tf.eye(tf.shape(centred)[1], dtype=tf.float64)
    covariance = tf.matmul(centred, centred, transpose_a=True) / freedom
    return tf.linalg.cholesky(tf.where(finite, covariance + regularization * identity, identity))

  x_factor, y_factor = factor(centred_x), factor(centred_y)
  cross = tf.matmul(centred_x, centred_y, transpose_a=True) / freedom  # S12 [k1, k2]
  cross = tf.where(finite, cross, tf.zeros_like(cross))
  half = tf.linalg.triangular_solve(x_factor, cross)  # L1^-1 S12
  matrix = tf.linalg.matrix_transpose(
    tf.linalg.triangular_solve(y_factor, tf.linalg.matrix_transpose(half))
  )
  return WhitenedCorrelation(matrix, x_mean, y_mean, x_factor, y_factor, finite)


def nuclear_norm(matrix: tf.Tensor) -> tf.Tensor:
  """Sum of singular values, ||T||_* = <T, U V^T> with T = U D V^T.

  U V^T is held constant: it is the gradient, bounded however close two singular values are (a
  subgradient where one is 0). Differentiating the decomposition would give the same in exact
  arithmetic and 1 / (s_i^2 - s_j^2) in TensorFlow's. Only first derivatives are right.

  Args:
    matrix: [k1, k2].

  Returns:
    Scalar >= 0, of the matrix' dtype.
  """
  _, u, v = tf.linalg.svd(tf.stop_gradient(matrix))
  return tf.reduce_sum(matrix * tf.stop_gradient(tf.matmul(u, v, transpose_b=True)))


def correlation_norm(whitened: WhitenedCorrelation, *, norm: str = 'nuclear') -> tf.Tensor:
  """How much two whitened views correlate in total.

  'nuclear' is the sum of the canonical correlations, the objective of Andrew et al. (2013);
  'squared_frobenius' is the sum of their squares, which needs no decomposition and cares less for
  weak directions. (Public "DCCA losses" are also found as the Frobenius norm itself and as sums of
  element-wise roots; neither is a total correlation.)

  Args:
    whitened: of the two views.
    norm: one of `NORMS`.

  Returns:
    float64 scalar in [0, min(k1, k2)]; NaN where a view was not finite.

  Raises:
    ValueError: unknown norm.
  """
  if norm == 'nuclear':
    total = nuclear_norm(whitened.matrix)
  elif norm == 'squared_frobenius':
    total = tf.reduce_sum(tf.square(whitened.matrix))
  else:
    raise ValueError(f"A correlation is summed by one of {', '.join(NORMS)}, not '{norm}'.")
  return tf.where(whitened.finite, total, tf.constant(float('nan'), tf.float64))


def canonical_projections(whitened: WhitenedCorrelation) -> CanonicalProjections:
  """The linear CCA that two whitened views end in.

  A1 = L1^-T U, A2 = L2^-T V with T' = U D V^T: the same as S11^-1/2 U of the symmetric form. The
  objective of deep CCA does not change under invertible linear maps of a view, so raw network
  outputs cannot be compared; these projections can.

  The sign of a pair of columns is arbitrary; here the largest entry of A1's column is positive, so
  that two computations agree.

  Args:
    whitened: of the two views.

  Returns:
    See `CanonicalProjections`. No gradient flows through them.
  """
  whitened = WhitenedCorrelation(*(tf.stop_gradient(part) for part in whitened))
  correlations, u, v = tf.linalg.svd(whitened.matrix)
  x_projection = tf.linalg.triangular_solve(whitened.x_factor, u, adjoint=True)  # [k1, k]
  y_projection = tf.linalg.triangular_solve(whitened.y_factor, v, adjoint=True)
  largest = tf.argmax(tf.abs(x_projection), axis=0)
  signs = tf.sign(tf.gather(tf.transpose(x_projection), largest, batch_dims=1))  # [k]
  return CanonicalProjections(
    whitened.x_mean, whitened.y_mean, x_projection * signs, y_projection * signs, correlations
  )


def decorrelation(activations: tf.Tensor) -> tf.Tensor:
  """2WayNet's decorrelation term, ||C||_F - ||diag C||_F with C = h^T h / m, not centred.

  Args:
    activations: h [m, n].

  Returns:
    Scalar >= 0, of the activations' dtype.
  """
  count = tf.cast(tf.shape(activations)[0], activations.dtype)
  second_moment = tf.matmul(activations, activations, transpose_a=True) / count  # C [n, n]
  squares = tf.square(second_moment)
  # A square root has no derivative at 0, where a dead layer would put it.
  whole = tf.sqrt(tf.maximum(tf.reduce_sum(squares), 1e-12))
  diagonal = tf.sqrt(tf.maximum(tf.linalg.trace(squares), 1e-12))
  return whole - diagonal


def inverse_square_sum(scales: Sequence[tf.Tensor]) -> tf.Tensor:
  """2WayNet's batch-norm term, the sum of 1 / gamma^2: keeps scales away from 0.

  Args:
    scales: gammas, any shapes.

  Returns:
    Scalar > 0.
  """
  return tf.add_n([tf.reduce_sum(1.0 / tf.square(scale)) for scale in scales])
