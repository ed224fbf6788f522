"""Pre-training on person ids: crops of people without attributes. Floor 3."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfreid import losses, replicas
from tfreid.methods.method import Method, Objective, OptimizerBuilder
from tfreid.networks import encoder, heads
from tfreid.spec import DatasetSpec


class PersonIdentification(Method):
  """Classic re-identification: cross-entropy over the people and a batch-hard triplet loss.

  The start for an image encoder without published weights, and the way from classic
  re-identification to attributes: a later stage carries `image_encoder`. `semantic_id` of a batch
  is the person, and a batch holds several crops of each (`data.samplers.PeopleSampler`).
  """

  def __init__(
    self,
    spec: DatasetSpec,
    *,
    image_encoder: Callable[..., tf.keras.Model],
    optimizer: OptimizerBuilder,
    layer: str = encoder.FEATURES,
    label_smoothing: float = 0.1,
    triplet_weight: float = 1.0,
    margin: float | None = 0.3,
    weight_decay: float = 0.0,
  ):
    """Builds the image encoder and a classifier of the people.

    Args:
      spec: sizes of the data; its semantic IDs are the people.
      image_encoder: image shape -> model.
      optimizer: for both.
      layer: what is classified and compared, 'features' or 'concept'. With 'features', the concept
        layer is not trained here and starts afresh in the stage that carries the encoder.
      label_smoothing: share of the wanted probability that is spread over all people.
      triplet_weight: of the triplet loss beside the cross-entropy; 0 leaves it out.
      margin: by which another person must be farther away than the same; None is the soft margin.
      weight_decay: coupled L2 factor.

    Raises:
      ValueError: a setting is out of range.
    """
    super().__init__(name='person_identification')
    if not 0.0 <= label_smoothing < 1.0:
      raise ValueError(f'label_smoothing must be in [0, 1), not {label_smoothing}.')
    if triplet_weight < 0.0 or (margin is not None and margin < 0.0):
      raise ValueError(
        f'triplet_weight and margin must not be negative, not {triplet_weight} and {margin}.'
      )
    self.label_smoothing = label_smoothing
    self.triplet_weight = triplet_weight
    self.margin = margin
    self.image_encoder = image_encoder(spec.image_shape)
    self.feature_network = encoder.features(self.image_encoder, layer)
    self.person_classifier = heads.classifier(
      self.feature_network.output_shape[-1], spec.num_semantic_ids
    )
    self.networks = {
      'image_encoder': self.image_encoder,
      'person_classifier': self.person_classifier,
    }
    if layer == encoder.FEATURES:
      # Nothing that is trained passes through it.
      encoder.head(self.image_encoder).trainable = False
    variables = [
      *self.feature_network.trainable_variables,
      *self.person_classifier.trainable_variables,
    ]
    self.objectives = [Objective('person_identification', variables, optimizer(), weight_decay)]

  def losses(self, batch):
    people = batch['semantic_id']
    features = self.feature_network(batch['image'], training=True)  # [b, F]
    logits = self.person_classifier(features, training=True)  # [b, people]
    classification = losses.semantic_classification_loss(
      logits, people, label_smoothing=self.label_smoothing
    )
    # The hardest are sought in the whole batch, so every replica must see all of it.
    triplet = losses.batch_hard_triplet_loss(
      replicas.gather(features), replicas.gather(people), margin=self.margin
    )
    accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, axis=1), people), tf.float32))
    total = classification
    if self.triplet_weight:
      total += self.triplet_weight * triplet
    return {
      'person_identification': total,
      'person_classification': classification,
      'triplet': triplet,
      'person_accuracy': accuracy,
    }
