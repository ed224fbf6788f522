"""The paper's model: image and attribute concepts in one space (Sec. 3). Floor 3."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfreid import losses
from tfreid.joint_space import JointSpace
from tfreid.methods import multi_task
from tfreid.methods.alignment import Alignment
from tfreid.methods.method import Method, Objective, OptimizerBuilder
from tfreid.networks import attribute, heads
from tfreid.spec import DatasetSpec


class JointConcepts(Method):
  """The joint stage: l_concept = l_I + l_A + alignment (Eq. 2 and 9).

  Both branches end in concepts that one classifier Psi must tell apart by semantic ID; the
  alignment makes their distributions alike. The distance is the cosine of the concepts (Sec. 4.5).
  """

  def __init__(
    self,
    spec: DatasetSpec,
    *,
    image_encoder: Callable[..., tf.keras.Model],
    alignment: Callable[[int], Alignment],
    image_optimizer: OptimizerBuilder,
    attribute_optimizer: OptimizerBuilder,
    attribute_generator: Callable[..., tf.keras.Model] = attribute.attribute_generator,
    attribute_task: Callable[[DatasetSpec, tf.keras.Model], multi_task.AttributeTask] | None = None,
    weight_decay: float = 0.0,
  ):
    """Builds both branches, the classifier and the alignment.

    Args:
      spec: sizes of the data set.
      image_encoder: image shape -> model.
      alignment: embedding size -> Alignment.
      image_optimizer: for the image branch.
      attribute_optimizer: for the attribute branch and the shared classifier, which Table 1 lists
        as fc5 of the attribute branch.
      attribute_generator: (attributes, embedding size) -> model.
      attribute_task: (spec, image encoder) -> a second task of the image branch; none in the paper.
      weight_decay: coupled L2 factor of both branches.
    """
    super().__init__(name='joint_concepts')
    self.image_encoder = image_encoder(spec.image_shape)
    size = self.image_encoder.output_shape[-1]
    self.attribute_generator = attribute_generator(spec.num_attributes, size)
    self.classifier = heads.classifier(size, spec.num_semantic_ids)
    self.alignment = alignment(size)
    self.attribute_task = attribute_task and attribute_task(spec, self.image_encoder)
    image_side = [*self.image_encoder.trainable_variables]
    self.networks = {
      'image_encoder': self.image_encoder,
      'attribute_generator': self.attribute_generator,
      'classifier': self.classifier,
      **self.alignment.networks,
    }
    if self.attribute_task:
      self.networks.update(self.attribute_task.networks)
      image_side += self.attribute_task.trained
    attribute_side = [
      *self.attribute_generator.trainable_variables,
      *self.classifier.trainable_variables,
    ]
    self.objectives = [
      Objective('concept', image_side, image_optimizer(), weight_decay),
      Objective('concept', attribute_side, attribute_optimizer(), weight_decay),
      *self.alignment.objectives,
    ]
    self.space = JointSpace(
      heads.unit_norm(self.image_encoder), heads.unit_norm(self.attribute_generator)
    )
    if self.attribute_task:
      self.space, self.spaces = self.attribute_task.spaces(self.space)

  def losses(self, batch):
    task = {}
    if self.attribute_task:
      features, image_concepts = self.attribute_task.encode(batch['image'])  # C^I [B, E]
      task = self.attribute_task.losses(features, batch)
    else:
      image_concepts = self.image_encoder(batch['image'], training=True)
    attribute_concepts = self.attribute_generator(batch['attributes'], training=True)  # C^A [B, E]
    image_logits = self.classifier(image_concepts, training=True)  # [B, C]
    attribute_logits = self.classifier(attribute_concepts, training=True)
    semantic_ids = batch['semantic_id']
    image_loss = losses.semantic_classification_loss(image_logits, semantic_ids)
    attribute_loss = losses.semantic_classification_loss(attribute_logits, semantic_ids)
    aligned = self.alignment.losses(image_concepts, attribute_concepts)
    return {
      'concept': image_loss
      + attribute_loss
      + aligned['alignment']
      + task.get('attribute_task', 0.0),
      'image_classification': image_loss,
      'attribute_classification': attribute_loss,
      'image_accuracy': _accuracy(image_logits, semantic_ids),
      'attribute_accuracy': _accuracy(attribute_logits, semantic_ids),
      **aligned,
      **task,
    }


def _accuracy(logits: tf.Tensor, semantic_ids: tf.Tensor) -> tf.Tensor:
  return tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, axis=1), semantic_ids), tf.float32))
