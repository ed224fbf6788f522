"""A second task of the image branch: single attributes beside semantic IDs. Floor 3.

The paper's image branch learns semantic IDs only. Where they are few, or where what is asked for
was never seen in training, a loss of each attribute keeps in the features what IDs alone let go
(Lin et al. 2019, "Improving person re-identification by attribute and identity learning"). It is
part of no system of the paper: a recipe names it, or it is not there.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tfreid import losses
from tfreid.joint_space import JointSpace
from tfreid.methods import attribute_prediction
from tfreid.networks import attribute_scores, encoder
from tfreid.spec import DatasetSpec


class AttributeTask(tf.Module):
  """Predicts each attribute from the features of an image encoder that also learns concepts.

  Attributes:
    networks: 'attribute_scores', added to the method's.
    trained: this network's variables; the method's image objective moves them.
  """

  def __init__(
    self,
    spec: DatasetSpec,
    image_encoder: tf.keras.Model,
    *,
    weight: float,
    dropout: float = 0.0,
    share: float = 0.0,
  ):
    """Builds the linear layer on the features.

    Args:
      spec: sizes of the data set, and the rates of its attributes.
      image_encoder: the method's.
      weight: of the task's loss beside the method's others.
      dropout: share of the features that this task does not see in training, in [0, 1).
      share: what one nat of a description's log-likelihood counts in the answers, beside the cosine
        of the concepts; 0: concepts only.

    Raises:
      ValueError: a weight that is not above 0, a negative share, a dropout that leaves nothing, or
        no attribute rates.
    """
    super().__init__(name='attribute_task')
    if not weight > 0.0:
      raise ValueError(f'weight must be above 0, not {weight}; without the task, name none.')
    if not share >= 0.0:
      raise ValueError(f'share must be at least 0, not {share}.')
    attribute_prediction.check(spec, dropout)
    self._spec = spec
    self.weight = weight
    self.dropout = dropout
    self.share = share
    self.encoding = spec.encoding
    self.rates = tf.constant(spec.attribute_rates, tf.float32)
    features = encoder.features(image_encoder)
    self.attribute_scores = attribute_scores.attribute_scores(
      features.output_shape[-1], spec.num_attributes
    )
    self.networks: Mapping[str, tf.keras.Model] = {'attribute_scores': self.attribute_scores}
    self.trained = self.attribute_scores.trainable_variables
    self._likelihood = attribute_prediction.space(
      spec, features, self.attribute_scores, 'log_likelihood'
    )
    # One pass for both: batch norms move once.
    self._features_and_concepts = tf.keras.Model(
      image_encoder.input, [features.output, image_encoder.output], name='features_and_concepts'
    )

  def encode(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Features [B, F] and concepts [B, E] of pixels [B, H, W, 3], in training mode."""
    return self._features_and_concepts(images, training=True)

  def losses(self, features: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Scalars of one batch.

    Args:
      features: [B, F], of `encode`.
      batch: of the method.

    Returns:
      'attribute_task', the weighted term that the method adds to its objective, and the share of
      attributes that is right.
    """
    if self.dropout:
      features = tf.nn.experimental.stateless_dropout(features, self.dropout, seed=batch['seed'])
    logits = self.attribute_scores(features, training=True)  # [B, A]
    bits, known = attribute_scores.bits_and_known(batch['attributes'], self.encoding)
    loss = losses.weighted_attribute_loss(logits, bits, known=known, rates=self.rates)
    return {
      'attribute_task': self.weight * loss,
      'attribute_task_accuracy': attribute_prediction.accuracy(logits, bits, known),
    }

  def spaces(self, concepts: JointSpace) -> tuple[JointSpace, dict[str, JointSpace]]:
    """What is searched, and the other ways to read the networks.

    Args:
      concepts: the method's space, of concepts of length 1.

    Returns:
      The concepts' space if `share` is 0, else the one whose score is the cosine of the concepts
      plus `share` times the log-likelihood of the description; and by name 'attributes', the
      log-likelihood alone, and 'concepts' where that is not the first.
    """
    others = {'attributes': self._likelihood}
    if not self.share:
      return concepts, others
    share = tf.keras.layers.Rescaling(self.share, dtype='float32', name='share')
    together = JointSpace(
      _joined(concepts.image_encoder, share(self._likelihood.image_encoder.output), 'image'),
      _joined(
        concepts.attribute_encoder,
        attribute_prediction.reading_of(
          concepts.attribute_encoder.input, self._spec, 'log_likelihood'
        ),
        'attribute',
      ),
    )
    return together, {**others, 'concepts': concepts}


def _joined(encoder_: tf.keras.Model, numbers: tf.Tensor, side: str) -> tf.keras.Model:
  """An encoder with more numbers behind its own, made from the same input."""
  both = tf.keras.layers.Concatenate(dtype='float32', name='together')([encoder_.output, numbers])
  return tf.keras.Model(encoder_.input, both, name=f'{side}_together')
