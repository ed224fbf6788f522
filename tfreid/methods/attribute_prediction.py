"""DeepMAR, the attribute-prediction rival of Table 2. Floor 3."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfreid import losses
from tfreid.joint_space import JointSpace
from tfreid.methods import features
from tfreid.methods.method import Method, Objective, OptimizerBuilder
from tfreid.networks import attribute_scores, encoder
from tfreid.spec import DatasetSpec


class AttributePrediction(Method):
  """Predicts each attribute of an image and matches in attribute space (Sec. 4.4; Li et al. 2015).

  "The output of the prediction model is the predicted score for each attribute"; how a score for a
  description comes of them is left open. One reading is `space`, the others are in `spaces`:

  * 'cosine': of the predicted probabilities and the description's zeros and ones;
  * 'log_likelihood': sum_l a_l s_l - softplus(s_l), the log probability of the description;
  * 'requested': sum over the attributes that are on of log sigmoid(s_l), as DeepMAR's authors rank
    multi-attribute queries, less their exchange of "female" for 1 - "male".
  """

  def __init__(
    self,
    spec: DatasetSpec,
    *,
    image_encoder: Callable[..., tf.keras.Model],
    optimizer: OptimizerBuilder,
    frozen: bool = True,
    layer: str = 'features',
    batch_size: int = 0,
    dropout: float = 0.5,
    reading: str = 'cosine',
    weight_decay: float = 0.0,
  ):
    """Builds the predictor.

    Args:
      spec: sizes of the data set, and the rates of its attributes.
      image_encoder: image shape -> model.
      optimizer: of all that is trained.
      frozen: train the linear layer only, on features extracted once; else the encoder too.
      layer: what the linear layer sees, the image encoder's 'features' or its 'concept'.
      batch_size: with frozen features, of the global batch; 0 is the images' batch size, -1 all.
      dropout: share of the features that are dropped in training.
      reading: of `space`.
      weight_decay: coupled L2 factor of all that is trained.

    Raises:
      ValueError: an unknown reading or layer, a dropout that leaves nothing, or no rates.
    """
    super().__init__(name='attribute_prediction')
    if reading not in attribute_scores.READINGS:
      raise ValueError(
        f"reading is one of {', '.join(attribute_scores.READINGS)}, not '{reading}'."
      )
    check(spec, dropout)
    self.frozen = frozen
    self.layer = layer
    self.batch_size = batch_size
    self.dropout = dropout
    self.reading = reading
    self.encoding = spec.encoding
    self.rates = tf.constant(spec.attribute_rates, tf.float32)
    self.image_encoder = image_encoder(spec.image_shape)
    self.feature_network = encoder.features(self.image_encoder, layer)
    self.attribute_scores = attribute_scores.attribute_scores(
      self.feature_network.output_shape[-1], spec.num_attributes
    )
    self.networks = {
      'image_encoder': self.image_encoder,
      'attribute_scores': self.attribute_scores,
    }
    if frozen:
      self.image_encoder.trainable = False
    elif layer == encoder.FEATURES:
      # Nothing that is trained passes through it.
      encoder.head(self.image_encoder).trainable = False
    variables = [
      *self.feature_network.trainable_variables,
      *self.attribute_scores.trainable_variables,
    ]
    self.objectives = [Objective('attribute_prediction', variables, optimizer(), weight_decay)]
    readings = {
      name: space(spec, self.feature_network, self.attribute_scores, name)
      for name in attribute_scores.READINGS
    }
    self.space = readings.pop(reading)
    self.spaces = readings

  def prepare(self, batches):
    """With a frozen image encoder, its features in the place of the images."""
    if not self.frozen:
      return batches
    arrays = features.extract(self.image_encoder, batches, layer=self.layer)
    return features.feature_batches(arrays, batches, batch_size=self.batch_size)

  def losses(self, batch):
    seen = batch['image']  # [B, F], what `prepare` made of the images
    if not self.frozen:
      seen = self.feature_network(seen, training=True)
    if self.dropout:
      seen = tf.nn.experimental.stateless_dropout(seen, self.dropout, seed=batch['seed'])
    logits = self.attribute_scores(seen, training=True)  # [B, A]
    bits, known = attribute_scores.bits_and_known(batch['attributes'], self.encoding)
    return {
      'attribute_prediction': losses.weighted_attribute_loss(
        logits, bits, known=known, rates=self.rates
      ),
      'attribute_accuracy': accuracy(logits, bits, known),
    }


def check(spec: DatasetSpec, dropout: float):
  """Refuses what attributes cannot be predicted with.

  Raises:
    ValueError: a dropout that leaves nothing, or a data set without the rates of its attributes.
  """
  if not 0.0 <= dropout < 1.0:
    raise ValueError(f'dropout must be in [0, 1), not {dropout}.')
  if len(spec.attribute_rates) != spec.num_attributes:
    raise ValueError(
      f'The weighted loss needs the training rate of each of the {spec.num_attributes} attribute '
      f'columns, but DatasetSpec.attribute_rates has {len(spec.attribute_rates)}.'
    )


def accuracy(logits: tf.Tensor, bits: tf.Tensor, known: tf.Tensor) -> tf.Tensor:
  """Scalar, the share of the known attributes [B, A] whose score has the right sign."""
  right = known * tf.cast(tf.equal(logits > 0.0, bits > 0.5), tf.float32)
  return tf.reduce_sum(right) / tf.maximum(tf.reduce_sum(known), 1.0)


def space(
  spec: DatasetSpec, features: tf.keras.Model, scores: tf.keras.Model, reading: str
) -> JointSpace:
  """The joint space of one reading of an image's attribute scores.

  Args:
    spec: sizes of the data set, and the rates of its attributes.
    features: model, pixels [B, H, W, 3] -> features [B, F].
    scores: model, features [B, F] -> logits [B, A].
    reading: one of `attribute_scores.READINGS`.
  """
  image = attribute_scores.ImageReading(reading, name='image_reading')(scores(features.output))
  attributes = tf.keras.Input([spec.num_attributes], name='attributes')
  return JointSpace(
    tf.keras.Model(features.input, image, name=f'image_{reading}'),
    tf.keras.Model(attributes, reading_of(attributes, spec, reading), name=f'attribute_{reading}'),
  )


def reading_of(attributes: tf.Tensor, spec: DatasetSpec, reading: str) -> tf.Tensor:
  """What attribute vectors [B, A] become in a reading: float32 [B, A] or [B, 2A]."""
  return attribute_scores.DescriptionReading(
    reading, encoding=spec.encoding, rates=spec.attribute_rates, name='description_reading'
  )(attributes)
