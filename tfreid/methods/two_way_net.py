"""2WayNet (Table 2): two tied channels that reconstruct each other's input. Floor 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from tfreid import correlation, replicas
from tfreid.joint_space import JointSpace
from tfreid.methods import features
from tfreid.methods.method import Batches, Method, Objective, OptimizerBuilder
from tfreid.networks import encoder, two_way, views
from tfreid.spec import DatasetSpec


class TwoWayNet(Method):
  """Linking image and text with 2-way nets (Eisenschtat and Wolf 2017) on frozen features.

  One set of weight matrices maps image features x to attributes a' and, transposed, attributes a to
  features x'. With errors summed over dimensions and averaged over the batch,

    L = |x - x'|^2 + |a - a'|^2 + c2 |h_x - h_a|^2 + c3 (D(h_x) + D(h_a))
        + c4 sum |W|^2 + c5 sum 1 / gamma^2,

  where h_x and h_a are both channels' activations in the middle layer, after dropout, and
  D(h) = ||C||_F - ||diag C||_F with C = h^T h / m. The score is Pearson's correlation of h_x and
  h_a over their units, without dropout.
  """

  def __init__(
    self,
    spec: DatasetSpec,
    *,
    image_encoder: Callable[..., tf.keras.Model],
    optimizer: OptimizerBuilder,
    batch_size: int = 128,
    hidden: Sequence[int] = (1024, 256, 64),
    representation: int = 1,
    activation_first: bool = False,
    dropout: float = 0.5,
    match_weight: float = 0.25,
    decorrelation_weight: float = 0.5,
    weight_norm_weight: float = 0.05,
    inverse_scale_weight: float = 0.05,
    batch_norm_momentum: float = 0.99,
    image_features: str = 'features',
  ):
    """Builds the network and the encoders that end in its middle layer.

    Args:
      spec: sizes of the data set.
      image_encoder: image shape -> model; carried from the pre-training and never moved here.
      optimizer: of the network.
      batch_size: of the global batch of feature vectors; 0 is the pipeline's, -1 all images.
      hidden: widths of the hidden layers, seen from the image side.
      representation: position in `hidden`, from 0, of the middle layer.
      activation_first: leaky ReLU before batch norm and not after it.
      dropout: p of the tied dropout.
      match_weight: c2.
      decorrelation_weight: c3.
      weight_norm_weight: c4.
      inverse_scale_weight: c5.
      batch_norm_momentum: of the moving averages.
      image_features: 'features' or 'concept' of the image encoder.

    Raises:
      ValueError: `representation` is no hidden layer, or `dropout` no probability below 1.
    """
    super().__init__(name='two_way_net')
    if not 0.0 <= dropout < 1.0:
      raise ValueError(f'TwoWayNet.dropout is a probability in [0, 1), not {dropout}.')
    self.batch_size = batch_size
    self.hidden = tuple(hidden)
    self.dropout = dropout
    self.match_weight = match_weight
    self.decorrelation_weight = decorrelation_weight
    self.weight_norm_weight = weight_norm_weight
    self.inverse_scale_weight = inverse_scale_weight
    self.image_features = image_features
    self.image_encoder = image_encoder(spec.image_shape)
    self.image_encoder.trainable = False
    frozen = encoder.features(self.image_encoder, image_features)
    parts = two_way.two_way(
      frozen.output_shape[-1],
      spec.num_attributes,
      hidden=self.hidden,
      representation=representation,
      activation_first=activation_first,
      batch_norm_momentum=batch_norm_momentum,
    )
    self.network = parts.network
    self.networks = {'image_encoder': self.image_encoder, 'two_way': self.network}
    self.objectives = [
      Objective('two_way_loss', self.network.trainable_variables, optimizer()),
    ]
    self._kernels = [
      layer.kernel for layer in self.network.layers if isinstance(layer, two_way.TiedDense)
    ]
    self._scales = [
      layer.gamma
      for layer in self.network.layers
      if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]
    self.standardization = views.Standardization(name='standardization')
    image_representation = parts.image_encoder(self.standardization(frozen.output))
    attributes = parts.attribute_encoder.input
    self.space = JointSpace(
      tf.keras.Model(
        frozen.input,
        two_way.PearsonNorm(name='pearson_norm')(image_representation),
        name='image_pearson',
      ),
      tf.keras.Model(
        attributes,
        two_way.PearsonNorm(name='pearson_norm')(parts.attribute_encoder.output),
        name='attribute_pearson',
      ),
    )

  def prepare(self, batches: Batches) -> Batches:
    """Images to standardised frozen features, once."""
    arrays = features.extract(self.image_encoder, batches, layer=self.image_features)
    self.standardization.adapt(arrays['image'])
    arrays['image'] = self.standardization(arrays['image']).numpy()
    return features.feature_batches(arrays, batches, batch_size=self.batch_size)

  def losses(self, batch):
    masks = two_way.tied_dropout_masks(
      batch['seed'], tf.shape(batch['image'])[0], widths=self.hidden, rate=self.dropout
    )
    outputs = self.network(
      {'features': batch['image'], 'attributes': batch['attributes'], **masks}, training=True
    )
    image_middle, attribute_middle = (
      outputs['image_representation'],
      outputs['attribute_representation'],
    )
    image_error = _squared_distance(batch['image'], outputs['image_reconstruction'])
    attribute_error = _squared_distance(batch['attributes'], outputs['attribute_reconstruction'])
    match = _squared_distance(image_middle, attribute_middle)
    # A second moment is of the whole batch: the norm of a mean is not the mean of norms.
    decorrelation = correlation.decorrelation(
      replicas.gather(image_middle)
    ) + correlation.decorrelation(replicas.gather(attribute_middle))
    weight_norm = tf.add_n([tf.reduce_sum(tf.square(kernel)) for kernel in self._kernels])
    inverse_scales = correlation.inverse_square_sum(self._scales)
    return {
      'two_way_loss': image_error
      + attribute_error
      + self.match_weight * match
      + self.decorrelation_weight * decorrelation
      + self.weight_norm_weight * weight_norm
      + self.inverse_scale_weight * inverse_scales,
      'image_reconstruction': image_error,
      'attribute_reconstruction': attribute_error,
      'match': match,
      'decorrelation': decorrelation,
      'weight_norm': weight_norm,
      'inverse_scales': inverse_scales,
    }


def _squared_distance(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
  """Squared error summed over dimensions, mean over the batch."""
  return tf.reduce_mean(tf.reduce_sum(tf.math.squared_difference(x, y), axis=1))
