"""The pre-training stage: the image branch learns semantic IDs alone. Floor 3."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfreid import losses
from tfreid.methods import multi_task
from tfreid.methods.method import Method, Objective, OptimizerBuilder
from tfreid.networks import encoder, heads
from tfreid.spec import DatasetSpec


class ImageClassification(Method):
  """Semantic-ID classification of images (Sec. 4.3, "we first pre-train our image network").

  l_I of Eq. 3 with the classifier Psi on top of the image concept.
  """

  def __init__(
    self,
    spec: DatasetSpec,
    *,
    image_encoder: Callable[..., tf.keras.Model],
    body_optimizer: OptimizerBuilder,
    head_optimizer: OptimizerBuilder,
    attribute_task: Callable[[DatasetSpec, tf.keras.Model], multi_task.AttributeTask] | None = None,
    weight_decay: float = 0.0,
  ):
    """Builds the image branch.

    Args:
      spec: sizes of the data set.
      image_encoder: image shape -> model, see `networks.encoder`.
      body_optimizer: for the network up to its features.
      head_optimizer: for the new layers, concept and classifier.
      attribute_task: (spec, image encoder) -> a second task of the image branch; none in the paper.
      weight_decay: coupled L2 factor of both.
    """
    super().__init__(name='image_classification')
    self.image_encoder = image_encoder(spec.image_shape)
    self.classifier = heads.classifier(self.image_encoder.output_shape[-1], spec.num_semantic_ids)
    self.networks = {'image_encoder': self.image_encoder, 'classifier': self.classifier}
    self.attribute_task = attribute_task and attribute_task(spec, self.image_encoder)
    head = [*encoder.head(self.image_encoder).trainable_variables]
    new = {id(variable) for variable in head}
    if self.attribute_task:
      self.networks.update(self.attribute_task.networks)
      head += self.attribute_task.trained
    body = [v for v in self.image_encoder.trainable_variables if id(v) not in new]
    self.objectives = [
      Objective('pretraining', body, body_optimizer(), weight_decay),
      Objective(
        'pretraining',
        [*head, *self.classifier.trainable_variables],
        head_optimizer(),
        weight_decay,
      ),
    ]

  def losses(self, batch):
    task = {}
    if self.attribute_task:
      features, concepts = self.attribute_task.encode(batch['image'])  # [B, E]
      task = self.attribute_task.losses(features, batch)
    else:
      concepts = self.image_encoder(batch['image'], training=True)
    logits = self.classifier(concepts, training=True)  # [B, C]
    accuracy = tf.reduce_mean(
      tf.cast(tf.equal(tf.argmax(logits, axis=1), batch['semantic_id']), tf.float32)
    )
    loss = losses.semantic_classification_loss(logits, batch['semantic_id'])
    return {
      'image_classification': loss,
      'image_accuracy': accuracy,
      'pretraining': loss + task.get('attribute_task', 0.0),
      **task,
    }
