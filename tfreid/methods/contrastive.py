"""A cross-modal contrastive joint space, beyond the paper. Floor 3."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfreid import replicas
from tfreid.joint_space import JointSpace
from tfreid.methods.method import Method, Objective, OptimizerBuilder
from tfreid.networks import attribute, heads
from tfreid.spec import DatasetSpec


class Contrastive(Method):
  """Each image finds the attribute vectors of its semantic ID within the batch, and vice versa.

  No classifier and no adversary: the space is trained by the very comparison it is used for.
  """

  def __init__(
    self,
    spec: DatasetSpec,
    *,
    image_encoder: Callable[..., tf.keras.Model],
    image_optimizer: OptimizerBuilder,
    attribute_optimizer: OptimizerBuilder,
    attribute_generator: Callable[..., tf.keras.Model] = attribute.attribute_generator,
    temperature: float = 0.1,
    weight_decay: float = 0.0,
  ):
    """Builds both branches.

    Args:
      spec: sizes of the data set.
      image_encoder: image shape -> model.
      image_optimizer: for the image branch.
      attribute_optimizer: for the attribute branch.
      attribute_generator: (attributes, embedding size) -> model.
      temperature: the cosines are divided by it; > 0.
      weight_decay: coupled L2 factor of both branches.
    """
    super().__init__(name='contrastive')
    self.temperature = temperature
    self.image_encoder = image_encoder(spec.image_shape)
    self.attribute_generator = attribute_generator(
      spec.num_attributes, self.image_encoder.output_shape[-1]
    )
    self.networks = {
      'image_encoder': self.image_encoder,
      'attribute_generator': self.attribute_generator,
    }
    self.objectives = [
      Objective(
        'contrastive', self.image_encoder.trainable_variables, image_optimizer(), weight_decay
      ),
      Objective(
        'contrastive',
        self.attribute_generator.trainable_variables,
        attribute_optimizer(),
        weight_decay,
      ),
    ]
    self.space = JointSpace(
      heads.unit_norm(self.image_encoder), heads.unit_norm(self.attribute_generator)
    )

  def losses(self, batch):
    images = self.image_encoder(batch['image'], training=True)  # [b, E]
    attributes = self.attribute_generator(batch['attributes'], training=True)
    # The choice is among the whole batch, so every replica must see all of it.
    return {
      'contrastive': contrastive_loss(
        replicas.gather(images),
        replicas.gather(attributes),
        replicas.gather(batch['semantic_id']),
        temperature=self.temperature,
      )
    }


def contrastive_loss(
  images: tf.Tensor, attributes: tf.Tensor, semantic_ids: tf.Tensor, *, temperature: float
) -> tf.Tensor:
  """Supervised cross-modal contrastive loss, the mean of both directions.

  For image i: -1/|P(i)| sum_{j in P(i)} log softmax_j(cos(x_i, a_j) / temperature), where P(i) are
  the batch's attribute vectors with the semantic ID of i; and the same with the sides exchanged.

  Args:
    images, attributes: [B, E] concepts of the same people, not normalised.
    semantic_ids: int [B].
    temperature: > 0.

  Returns:
    Scalar.
  """
  images = tf.math.l2_normalize(images, axis=1, epsilon=1e-12)
  attributes = tf.math.l2_normalize(attributes, axis=1, epsilon=1e-12)
  logits = tf.matmul(images, attributes, transpose_b=True) / temperature  # [B, B]
  same = tf.cast(tf.equal(semantic_ids[:, None], semantic_ids[None, :]), logits.dtype)
  wanted = same / tf.reduce_sum(same, axis=1, keepdims=True)
  by_image = tf.nn.softmax_cross_entropy_with_logits(wanted, logits)
  by_attributes = tf.nn.softmax_cross_entropy_with_logits(wanted, tf.transpose(logits))
  return 0.5 * (tf.reduce_mean(by_image) + tf.reduce_mean(by_attributes))
