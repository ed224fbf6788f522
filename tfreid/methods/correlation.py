"""DeepCCA and DeepCCAE (Table 2): views that correlate as much as possible. Floor 3."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfreid import correlation, replicas
from tfreid.joint_space import JointSpace
from tfreid.methods import features
from tfreid.methods.method import Batches, Method, Objective, OptimizerBuilder
from tfreid.networks import encoder, heads, views
from tfreid.spec import DatasetSpec


class DeepCCA(Method):
  """Deep canonical correlation analysis (Andrew et al. 2013) on frozen image features.

  Two perceptrons f (image features) and g (attributes) maximise the sum of the canonical
  correlations of their outputs. That is blind to any invertible linear map of either output, so the
  space ends in a linear CCA of f and g over all training images (`finish`) and cosine is taken
  behind it. While training, the CCA of the latest batch stands in its place, so that an evaluation
  between epochs means something.
  """

  def __init__(
    self,
    spec: DatasetSpec,
    *,
    image_encoder: Callable[..., tf.keras.Model],
    optimizer: OptimizerBuilder,
    embedding_size: int,
    batch_size: int = -1,
    image_hidden: Sequence[int] = (1024, 1024),
    attribute_hidden: Sequence[int] = (256, 256),
    activation: str = 'tanh',
    image_features: str = 'features',
    norm: str = 'nuclear',
    regularization: float = 1e-3,
    correlation_power: float = 0.0,
    rows_per_dimension: float = 16.0,
    weight_decay: float = 0.0,
  ):
    """Builds both views and the encoders that end in the closing CCA.

    Args:
      spec: sizes of the data set.
      image_encoder: image shape -> model; carried from the pre-training and never moved here.
      optimizer: of both views.
      embedding_size: k. More than there are attribute columns leaves directions to noise.
      batch_size: of the global batch of feature vectors, which has nothing to do with the
        pipeline's; -1 means all training images.
      image_hidden: widths of f's hidden layers; () makes f linear.
      attribute_hidden: widths of g's hidden layers.
      activation: of hidden layers.
      image_features: 'features' or 'concept' of the image encoder.
      norm: 'nuclear' for the sum of canonical correlations, 'squared_frobenius' for the sum of
        their squares.
      regularization: r, added to the views' variances, also in the closing CCA. The attribute view
        has few distinct rows, so r must be real.
      correlation_power: p; both sides of dimension i are multiplied by rho_i^p before the cosine.
      rows_per_dimension: smallest permitted batch_size / embedding_size. At 4, 8, 16 and 64
        unrelated noise shows mean correlations of about .44, .30, .21 and .11.
      weight_decay: coupled L2 factor.

    Raises:
      ValueError: the batch is too small for the dimension, or the data set for the batch.
    """
    super().__init__(name='deep_cca')
    self.embedding_size = embedding_size
    self.batch_size = batch_size
    self.image_hidden = tuple(image_hidden)
    self.attribute_hidden = tuple(attribute_hidden)
    self.activation = activation
    self.image_features = image_features
    self.norm = norm
    self.regularization = regularization
    self.correlation_power = correlation_power
    self.rows_per_dimension = rows_per_dimension
    if norm not in correlation.NORMS:
      raise ValueError(f"DeepCCA.norm is one of {', '.join(correlation.NORMS)}, not '{norm}'.")
    if regularization <= 0.0:
      raise ValueError(
        f'DeepCCA.regularization must be positive, not {regularization}: the attribute view has '
        'few distinct rows, and its covariance may be singular.'
      )
    self._replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if spec.num_images:
      self._rows(spec.num_images)
    self.image_encoder = image_encoder(spec.image_shape)
    self.image_encoder.trainable = False
    frozen = encoder.features(self.image_encoder, image_features)
    self.image_view = views.view(
      frozen.output_shape[-1],
      embedding_size,
      hidden=image_hidden,
      activation=activation,
      name='image_view',
    )
    self.attribute_view = views.view(
      spec.num_attributes,
      embedding_size,
      hidden=attribute_hidden,
      activation=activation,
      name='attribute_view',
    )
    self.networks = {
      'image_encoder': self.image_encoder,
      'image_view': self.image_view,
      'attribute_view': self.attribute_view,
    }
    moved = [*self.image_view.trainable_variables, *self.attribute_view.trainable_variables]
    self.objectives = [Objective('correlation_loss', moved, optimizer(), weight_decay)]
    self.standardization = views.Standardization(name='standardization')
    self.image_projection = views.CentredProjection(embedding_size, name='image_cca')
    self.attribute_projection = views.CentredProjection(embedding_size, name='attribute_cca')
    image_outputs = self.image_view(self.standardization(frozen.output))
    attribute_outputs = self.attribute_view.output
    self.space = JointSpace(
      heads.unit_norm(
        tf.keras.Model(frozen.input, self.image_projection(image_outputs), name='image')
      ),
      heads.unit_norm(
        tf.keras.Model(
          self.attribute_view.input, self.attribute_projection(attribute_outputs), name='attribute'
        )
      ),
    )

  def prepare(self, batches: Batches) -> Batches:
    """Images to standardised frozen features, once."""
    arrays = features.extract(self.image_encoder, batches, layer=self.image_features)
    self.standardization.adapt(arrays['image'])
    arrays['image'] = self.standardization(arrays['image']).numpy()
    rows = self._rows(len(arrays['image']))
    return features.feature_batches(arrays, batches, batch_size=rows)

  def losses(self, batch):
    outputs = self._outputs(batch)
    return self._correlation(*outputs)

  def finish(self, batches: Batches):
    """The closing linear CCA, over all training images."""
    parts = [self._outputs(batch, training=False) for batch in batches.evaluation()]
    image_outputs, attribute_outputs = (tf.concat(part, axis=0) for part in zip(*parts))
    self._project(
      correlation.whitened_correlation(
        image_outputs, attribute_outputs, regularization=self.regularization
      )
    )

  def _outputs(self, batch, training=True):
    """f(x) and g(a), float32 [B, k] each."""
    return (
      self.image_view(batch['image'], training=training),
      self.attribute_view(batch['attributes'], training=training),
    )

  def _correlation(self, image_outputs, attribute_outputs):
    """Losses of the global batch, which also moves the provisional projections."""
    whitened = correlation.whitened_correlation(
      replicas.gather(image_outputs),
      replicas.gather(attribute_outputs),
      regularization=self.regularization,
    )
    total = tf.cast(correlation.correlation_norm(whitened, norm=self.norm), tf.float32)
    correlations = self._project(whitened)
    return {
      'correlation_loss': -total,
      'mean_correlation': tf.cast(tf.reduce_mean(correlations), tf.float32),
    }

  def _project(self, whitened):
    """Ends both encoders in the CCA of the whitened views; returns the correlations [k]."""
    projections = correlation.canonical_projections(whitened)
    weights = projections.correlations**self.correlation_power
    self.image_projection.assign(projections.x_mean, projections.x_projection * weights)
    self.attribute_projection.assign(projections.y_mean, projections.y_projection * weights)
    return projections.correlations

  def _rows(self, num_images: int) -> int:
    """Rows of a global batch of features.

    Args:
      num_images: number of training images.

    Raises:
      ValueError: too few rows for the dimension, or too few images for the rows.
    """
    name = type(self).__name__
    if self.batch_size == 0 or self.batch_size < -1:
      raise ValueError(
        f'{name}.batch_size is a number of images, or -1 for all, not {self.batch_size}.'
      )
    if self.batch_size > num_images:
      raise ValueError(
        f'{name}.batch_size is {self.batch_size}, but there are only {num_images} training images. '
        'Lower it, or set it to -1 for all of them at once.'
      )
    # All of them, but for what cannot be split evenly over the replicas.
    rows = self.batch_size if self.batch_size > 0 else num_images - num_images % self._replicas
    wanted = math.ceil(self.rows_per_dimension * self.embedding_size)
    if rows < wanted:
      largest = int(rows // self.rows_per_dimension)
      advice = [f'raise {name}.batch_size to {wanted} or more'] if wanted <= num_images else []
      advice += [f'lower {name}.embedding_size to {largest} or less'] if largest else []
      advice += [f'lower {name}.rows_per_dimension if you must']
      raise ValueError(
        f'{name} would estimate {self.embedding_size} canonical correlations from batches of '
        f'{rows} images, {rows / self.embedding_size:.1f} for each dimension; with fewer than '
        f'{self.rows_per_dimension:g}, noise passes for correlation. There are {num_images} '
        f'training images: {", or ".join(advice)}.'
      )
    return rows


class DeepCCAE(DeepCCA):
  """Deep canonically correlated autoencoders (Wang et al. 2015).

  DeepCCA plus the reconstruction of both views from their k-dimensional outputs:

    -corr(f(x), g(a)) + w (mean (x - p(f(x)))^2 + mean (a - q(g(a)))^2).

  The squared errors are means over dimensions, not sums as published: 2,048 summed errors would
  drown k correlations, and the same w would mean something else for each size of feature.
  """

  def __init__(self, spec: DatasetSpec, *, reconstruction_weight: float, **kwargs):
    """Builds the decoders p and q, mirrors of the encoders, behind what `DeepCCA` builds.

    Args:
      spec: sizes of the data set.
      reconstruction_weight: w; 0 is DeepCCA exactly.
      **kwargs: of `DeepCCA`.
    """
    super().__init__(spec, **kwargs)
    self.reconstruction_weight = reconstruction_weight
    self.image_decoder, self.attribute_decoder = (
      views.view(
        self.embedding_size,
        encoder.input_shape[-1],
        hidden=tuple(reversed(hidden)),
        activation=self.activation,
        name=name,
      )
      for encoder, hidden, name in (
        (self.image_view, self.image_hidden, 'image_decoder'),
        (self.attribute_view, self.attribute_hidden, 'attribute_decoder'),
      )
    )
    self.networks = {
      **self.networks,
      'image_decoder': self.image_decoder,
      'attribute_decoder': self.attribute_decoder,
    }
    (correlated,) = self.objectives
    decoders = [
      *self.image_decoder.trainable_variables,
      *self.attribute_decoder.trainable_variables,
    ]
    self.objectives = [
      correlated._replace(loss='autoencoder_loss', variables=[*correlated.variables, *decoders])
    ]

  def losses(self, batch):
    image_outputs, attribute_outputs = self._outputs(batch)
    correlated = self._correlation(image_outputs, attribute_outputs)
    image_error = _mean_squared_error(
      batch['image'], self.image_decoder(image_outputs, training=True)
    )
    attribute_error = _mean_squared_error(
      batch['attributes'], self.attribute_decoder(attribute_outputs, training=True)
    )
    return {
      'autoencoder_loss': correlated['correlation_loss']
      + self.reconstruction_weight * (image_error + attribute_error),
      **correlated,
      'image_reconstruction': image_error,
      'attribute_reconstruction': attribute_error,
    }


def _mean_squared_error(wanted: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
  return tf.reduce_mean(tf.math.squared_difference(wanted, found))
