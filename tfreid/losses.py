"""The formulae of the paper and of the domain-alignment rivals, as pure functions. Floor 0.

All take float32 tensors and return float32 scalars. Means over a batch are means over what is
passed in; whoever needs the global batch gathers it first (`tfreid.replicas.gather`).
"""

from __future__ import annotations

import tensorflow as tf


def semantic_classification_loss(
  logits: tf.Tensor, semantic_ids: tf.Tensor, *, label_smoothing: float = 0.0
) -> tf.Tensor:
  """Softmax cross-entropy over semantic IDs: l_I of Eq. 3 and l_A of Eq. 8.

  Args:
    logits: [B, C], f = Psi(C^I) or Psi(C^A), unnormalised log probabilities.
    semantic_ids: int [B], y in 0 ... C-1.
    label_smoothing: share s of the wanted probability that is spread evenly over all C classes
      (Szegedy et al. 2016), 0 in the paper. The wanted probability of y is 1 - s + s / C.

  Returns:
    Scalar, mean over the batch.
  """
  loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=semantic_ids, logits=logits)
  if label_smoothing:
    uniform = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=1)  # [B]
    loss = (1.0 - label_smoothing) * loss + label_smoothing * uniform
  return tf.reduce_mean(loss)


def batch_hard_triplet_loss(
  embeddings: tf.Tensor, people: tf.Tensor, *, margin: float | None = 0.3
) -> tf.Tensor:
  """Batch-hard triplet loss (Hermans et al. 2017), on Euclidean distances.

  For each crop i with another crop of its person in the batch: with p its farthest crop of the same
  person and n its nearest of another, max(0, d(i, p) - d(i, n) + margin); with the soft margin,
  log(1 + exp(d(i, p) - d(i, n))).

  Args:
    embeddings: [B, F].
    people: int [B].
    margin: >= 0, or None for the soft margin.

  Returns:
    Scalar, mean over the crops that have both p and n; 0 where there is none.
  """
  squares = tf.reduce_sum(tf.square(embeddings), axis=1)
  distances = (
    squares[:, None] + squares[None, :] - 2.0 * tf.matmul(embeddings, embeddings, transpose_b=True)
  )
  # The root has no derivative at 0, and cancellation can leave -1e-6.
  distances = tf.sqrt(tf.maximum(distances, 1e-12))  # [B, B]
  same = tf.equal(people[:, None], people[None, :])
  others = tf.logical_and(same, tf.logical_not(tf.eye(tf.shape(people)[0], dtype=tf.bool)))
  valid = tf.logical_and(tf.reduce_any(others, axis=1), tf.reduce_any(tf.logical_not(same), axis=1))
  farthest = tf.reduce_max(tf.where(others, distances, 0.0), axis=1)
  nearest = tf.reduce_min(tf.where(same, distances.dtype.max, distances), axis=1)
  difference = tf.where(valid, farthest - nearest, 0.0)
  if margin is None:
    loss = tf.nn.softplus(difference)
  else:
    loss = tf.nn.relu(difference + margin)
  count = tf.reduce_sum(tf.cast(valid, loss.dtype))
  return tf.reduce_sum(tf.where(valid, loss, 0.0)) / tf.maximum(count, 1.0)


def discriminator_loss(image_logits: tf.Tensor, attribute_logits: tf.Tensor) -> tf.Tensor:
  """Loss of the concept discriminator, l_adv^D of Eq. 6.

  -log D(C^I) - log(1 - D(C^A)), computed from logits so that a confident discriminator does not
  overflow: -log sigmoid(d) = softplus(-d).

  Args:
    image_logits: [B, 1], logit of D(C^I), "comes from an image".
    attribute_logits: [B, 1], logit of D(C^A).

  Returns:
    Scalar, mean over the batch.
  """
  return tf.reduce_mean(tf.nn.softplus(-image_logits)) + tf.reduce_mean(
    tf.nn.softplus(attribute_logits)
  )


def fooling_loss(logits: tf.Tensor, *, wanted: float) -> tf.Tensor:
  """Loss of a generator that wants its concepts taken for the other modality's, Eq. 7.

  -log D(C^A) for the attribute generator (`wanted` 1) and -log(1 - D(C^I)) for the image one
  (`wanted` 0), the non-saturating form.

  Args:
    logits: [B, 1], the discriminator's logits of the generator's concepts.
    wanted: 1.0 to be taken for an image, 0.0 to be taken for an attribute description.

  Returns:
    Scalar, mean over the batch.
  """
  return tf.reduce_mean(tf.nn.softplus(-logits if wanted else logits))


def linear_mmd(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
  """Squared maximum mean discrepancy with the linear kernel, ||mean x - mean y||^2.

  What Sec. 4.4 describes: "MMD minimizes difference between means of two distributions".

  Args:
    x, y: [B, E].

  Returns:
    Scalar >= 0.
  """
  return tf.reduce_sum(tf.square(tf.reduce_mean(x, axis=0) - tf.reduce_mean(y, axis=0)))


def multi_kernel_mmd(
  x: tf.Tensor, y: tf.Tensor, *, kernels: int = 5, factor: float = 2.0, unbiased: bool = True
) -> tf.Tensor:
  """Squared maximum mean discrepancy with a sum of Gaussian kernels (Long et al. 2015, DAN).

  k(u, v) = sum_j exp(-gamma factor^j ||u - v||^2), j = -kernels//2 ... kernels//2, where
  1/gamma is the mean squared distance over the pooled batch, recomputed at each call and treated
  as a constant. The full quadratic estimate, not the linear-time one of the published code.

  Args:
    x, y: [B, E], equally many.
    kernels: number of bandwidths, odd.
    factor: ratio of neighbouring bandwidths.
    unbiased: leave out k(u, u). The estimate can then be negative.

  Returns:
    Scalar.
  """
  n = tf.shape(x)[0]
  pooled = tf.concat([x, y], axis=0)  # [2B, E]
  squares = tf.reduce_sum(tf.square(pooled), axis=1)
  distances = (
    squares[:, None] + squares[None, :] - 2.0 * tf.matmul(pooled, pooled, transpose_b=True)
  )
  distances = tf.maximum(distances, 0.0)  # [2B, 2B]; cancellation can leave -1e-7
  total = tf.cast(4 * n * n - 2 * n, distances.dtype)
  gamma = tf.stop_gradient(total / tf.maximum(tf.reduce_sum(distances), 1e-12))
  kernel = tf.add_n(
    [tf.exp(-gamma * factor**j * distances) for j in range(-(kernels // 2), kernels // 2 + 1)]
  )
  within_x, within_y, between = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
  count = tf.cast(n, kernel.dtype)
  if unbiased:
    pairs = count * (count - 1.0)
    mean_x = (tf.reduce_sum(within_x) - tf.linalg.trace(within_x)) / pairs
    mean_y = (tf.reduce_sum(within_y) - tf.linalg.trace(within_y)) / pairs
  else:
    mean_x, mean_y = tf.reduce_mean(within_x), tf.reduce_mean(within_y)
  return mean_x + mean_y - 2.0 * tf.reduce_mean(between)


def coral_loss(x: tf.Tensor, y: tf.Tensor, *, match_mean: bool = False) -> tf.Tensor:
  """Deep CORAL (Sun and Saenko 2016): ||Cov(x) - Cov(y)||_F^2 / (4 E^2).

  The published loss matches covariances only, though Sec. 4.4 says "mean and covariance".

  Args:
    x, y: [B, E], B > 1.
    match_mean: add ||mean x - mean y||^2 / E, which the published loss does not have.

  Returns:
    Scalar >= 0.
  """
  size = tf.cast(tf.shape(x)[1], x.dtype)

  def covariance(z):
    centred = z - tf.reduce_mean(z, axis=0, keepdims=True)
    count = tf.cast(tf.shape(z)[0], z.dtype)
    return tf.matmul(centred, centred, transpose_a=True) / (count - 1.0)  # [E, E]

  loss = tf.reduce_sum(tf.square(covariance(x) - covariance(y))) / (4.0 * size * size)
  if match_mean:
    loss += linear_mmd(x, y) / size
  return loss


def weighted_attribute_loss(
  logits: tf.Tensor, bits: tf.Tensor, *, known: tf.Tensor, rates: tf.Tensor
) -> tf.Tensor:
  """DeepMAR's weighted sigmoid cross-entropy (Li et al. 2015).

  sum_l w_l (softplus(s_l) - s_l a_l), with w_l = exp(1 - p_l) where a_l is 1 and exp(p_l) where it
  is 0, so that the rarer answer of each attribute weighs more.

  Args:
    logits: [B, A], s, scores whose sigmoids are probabilities.
    bits: [B, A], a, zeros and ones.
    known: [B, A], 0 where a is not known and does not count.
    rates: [A], p, the share of training images with the attribute.

  Returns:
    Scalar, sum over attributes, mean over the batch.
  """
  weights = known * tf.exp(bits * (1.0 - rates) + (1.0 - bits) * rates)
  losses = weights * (tf.nn.softplus(logits) - bits * logits)
  return tf.reduce_mean(tf.reduce_sum(losses, axis=1))


def matching_discriminator_loss(
  real_logits: tf.Tensor,
  wrong_logits: tf.Tensor,
  fake_logits: tf.Tensor,
  *,
  exists: tf.Tensor,
  wrong_share: float = 0.5,
) -> tf.Tensor:
  """Loss of the matching-aware discriminator, GAN-CLS (Reed et al. 2016, Algorithm 1).

  -log D(x, a) - w log(1 - D(x', a)) - (1 - w) log(1 - D(G(z, a), a)), where x is an image of the
  description a, x' a real image of another one, and G(z, a) a generated one. From logits.

  Args:
    real_logits: [B, 1], of D(x, a).
    wrong_logits: [B, 1], of D(x', a).
    fake_logits: [B, 1], of D(G(z, a), a).
    exists: [B], 1 where there is an x', 0 where its logit does not count.
    wrong_share: w, 0.5 in the published code.

  Returns:
    Scalar, mean over the batch.
  """
  wrong = exists[:, tf.newaxis] * tf.nn.softplus(wrong_logits)
  return (
    tf.reduce_mean(tf.nn.softplus(-real_logits))
    + wrong_share * tf.reduce_mean(wrong)
    + (1.0 - wrong_share) * tf.reduce_mean(tf.nn.softplus(fake_logits))
  )
