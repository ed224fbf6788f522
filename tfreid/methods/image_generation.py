"""Alignment in image space: people are generated from descriptions ("Real" of Table 3). Floor 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfreid import losses
from tfreid.joint_space import JointSpace
from tfreid.methods.method import Method, Objective, OptimizerBuilder
from tfreid.networks import conditional_gan, encoder, heads
from tfreid.spec import DatasetSpec


class ImageGeneration(Method):
  """An attribute-conditional image GAN, compared with photographs by the image encoder (Sec. 4.5).

  Two stages of this one method: first the GAN alone (`classification_weight` 0), then the
  generator descends CE(Psi(Phi_I(G(z, a))), y) + lambda_G l_G with encoder and classifier as
  pre-training left them. The paper does not say whether those two go on learning; here they are
  frozen, in inference mode, so that the generated images and not the classifier adapt.

  A description's encoding is the mean, over several stored noise draws, of what the encoder makes
  of the generated images. (The paper gives no number of draws; a mean of one is a lottery.)
  """

  def __init__(
    self,
    spec: DatasetSpec,
    *,
    image_encoder: Callable[..., tf.keras.Model],
    generator_optimizer: OptimizerBuilder,
    discriminator_optimizer: OptimizerBuilder,
    classification_weight: float = 0.0,
    adversarial_weight: float = 1.0,
    wrong_share: float = 0.5,
    generator: Callable[..., tf.keras.Model] = conditional_gan.generator,
    discriminator: Callable[..., tf.keras.Model] = conditional_gan.discriminator,
    start: Sequence[int] = (4, 2),
    max_stages: int = 5,
    noise_size: int = 100,
    draws: int = 8,
    layer: str = 'concept',
    shown: int = 8,
  ):
    """Builds both networks of the GAN beside the frozen encoder and classifier.

    Args:
      spec: sizes of the data set.
      image_encoder: image shape -> model.
      generator_optimizer, discriminator_optimizer: of the two.
      classification_weight: of the semantic-ID loss of generated images in the generator's
        objective; 0 leaves the encoder out of training.
      adversarial_weight: of the generator's adversarial loss, lambda_G.
      wrong_share: share of the real images of other descriptions among what D should reject.
      generator: (A, noise size, start, stages) -> model.
      discriminator: (A, start, stages) -> model.
      start: (height, width) of the smallest map.
      max_stages: images are generated in the size start * 2^stages that is nearest to the crop's,
        with no more stages than this, and resized; 5 is 128 x 64 from 4 x 2.
      noise_size: length of z.
      draws: noise vectors per description in retrieval.
      layer: what images are compared by, the encoder's 'concept', "the penultimate layer of our
        semantic ID classification ResNet", or its 'features'.
      shown: number of descriptions on the sample sheet.

    Raises:
      ValueError: sizes that leave nothing.
    """
    super().__init__(name='image_generation')
    self.classification_weight = classification_weight
    self.adversarial_weight = adversarial_weight
    self.wrong_share = wrong_share
    self.noise_size = noise_size
    self.draws = draws
    self.shown = shown
    self.image_encoder = image_encoder(spec.image_shape)
    self.classifier = heads.classifier(self.image_encoder.output_shape[-1], spec.num_semantic_ids)
    self.image_encoder.trainable = False
    self.classifier.trainable = False
    stages = conditional_gan.nearest_stages(spec.image_shape, start=start, at_most=max_stages)
    sizes = {'start': tuple(start), 'stages': stages}
    self.generator = generator(spec.num_attributes, noise_size, **sizes)
    self.discriminator = discriminator(spec.num_attributes, **sizes)
    self.image_size = self.generator.output_shape[1:3]
    self.pixels = conditional_gan.GeneratedPixels(*spec.image_shape[:2], name='pixels')
    self.networks = {
      'image_encoder': self.image_encoder,
      'classifier': self.classifier,
      'generator': self.generator,
      'image_discriminator': self.discriminator,
    }
    self.objectives = [
      Objective('generator', self.generator.trainable_variables, generator_optimizer()),
      Objective(
        'image_discriminator', self.discriminator.trainable_variables, discriminator_optimizer()
      ),
    ]
    network = heads.unit_norm(encoder.features(self.image_encoder, layer))
    self._over_draws = conditional_gan.MeanOverDraws(
      self._encoder_of_generated(network),
      draws=draws,
      noise_size=noise_size,
      name='mean_over_draws',
    )
    attributes = tf.keras.Input([spec.num_attributes], name='attributes')
    concepts = heads.UnitNorm(name='unit_norm')(self._over_draws(attributes))
    self.space = JointSpace(network, tf.keras.Model(attributes, concepts, name='attribute_encoder'))
    self._described = np.zeros([0, spec.num_attributes], np.float32)
    self._photographs = np.zeros([0, *spec.image_shape], np.uint8)

  def _encoder_of_generated(self, network: tf.keras.Model) -> tf.keras.Model:
    """[attributes [K, A], noise [K, Z]] -> what the encoder makes of the images, [K, E]."""
    inputs = [tf.keras.Input(i.shape[1:], name=i.name) for i in self.generator.inputs]
    encoded = network(self.pixels(self.generator(inputs)))
    return tf.keras.Model(inputs, encoded, name='generated_image_encoder')

  def prepare(self, batches):
    """Remembers some people of different semantic IDs for the sample sheet."""
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for batch in batches.evaluation() if self.shown else ():
      for i, semantic_id in enumerate(batch['semantic_id'].numpy()):
        if semantic_id not in found and len(found) < self.shown:
          found[semantic_id] = (batch['attributes'][i].numpy(), batch['image'][i].numpy())
      if len(found) == self.shown:
        break
    if found:
      described, photographs = zip(*found.values())
      self._described = np.stack(described)
      self._photographs = np.round(np.stack(photographs)).astype(np.uint8)
    return batches

  def losses(self, batch):
    attributes = batch['attributes']
    seeds = [tf.random.experimental.stateless_fold_in(batch['seed'], i) for i in range(2)]
    noise = tf.random.stateless_normal([tf.shape(attributes)[0], self.noise_size], seeds[0])
    fakes = self.generator([attributes, noise], training=True)  # G(z, a) [B, h, w, 3]
    reals = conditional_gan.to_generated_range(batch['image'], self.image_size)
    others, exists = other_people(batch['semantic_id'], seeds[1])
    # Three passes, as published: batch norm sees one kind of image at a time. The fakes' logits
    # serve both sides; the discriminator's objective holds no variable of the generator, so
    # neither needs a stop_gradient.
    real_logits = self.discriminator([reals, attributes], training=True)  # [B, 1]
    wrong_logits = self.discriminator([tf.gather(reals, others), attributes], training=True)
    fake_logits = self.discriminator([fakes, attributes], training=True)
    fooling = losses.fooling_loss(fake_logits, wanted=1.0)
    report = {
      'fooling': fooling,
      'generator': self.adversarial_weight * fooling,
      'image_discriminator': losses.matching_discriminator_loss(
        real_logits, wrong_logits, fake_logits, exists=exists, wrong_share=self.wrong_share
      ),
      'real_probability': tf.reduce_mean(tf.sigmoid(real_logits)),
      'wrong_probability': tf.reduce_mean(tf.sigmoid(wrong_logits)),
      'fake_probability': tf.reduce_mean(tf.sigmoid(fake_logits)),
    }
    if self.classification_weight:
      concepts = self.image_encoder(self.pixels(fakes), training=False)
      logits = self.classifier(concepts, training=False)
      classification = losses.semantic_classification_loss(logits, batch['semantic_id'])
      right = tf.equal(tf.argmax(logits, axis=1), batch['semantic_id'])
      report['generator'] += self.classification_weight * classification
      report['generated_classification'] = classification
      report['generated_accuracy'] = tf.reduce_mean(tf.cast(right, tf.float32))
    return report

  def samples(self, attributes: np.ndarray, *, draw: int = 0) -> np.ndarray:
    """People generated from descriptions, as retrieval sees them.

    Args:
      attributes: [N, A].
      draw: which of the stored noise vectors.

    Returns:
      uint8 [N, H, W, 3], RGB.
    """
    attributes = tf.convert_to_tensor(attributes, tf.float32)
    noise = tf.repeat(self._over_draws.noise[draw : draw + 1], len(attributes), axis=0)
    images = self.pixels(self.generator([attributes, noise], training=False))
    return np.clip(np.round(images.numpy()), 0, 255).astype(np.uint8)

  def pictures(self):
    """'generated_people': a strip per description, a photograph and then one person per draw."""
    if not len(self._described):
      return {}
    draws = [self.samples(self._described, draw=draw) for draw in range(self.draws)]
    return {'generated_people': np.concatenate([self._photographs, *draws], axis=2)}


def other_people(semantic_ids: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """For each image of a batch, another one with a different semantic ID, at random.

  Args:
    semantic_ids: int [B].
    seed: int32 [2], stateless.

  Returns:
    int64 [B], positions in the batch, each of the candidates equally likely; and float32 [B], 1
    where there is such an image, 0 where all have the same ID and the position means nothing.
  """
  different = tf.not_equal(semantic_ids[:, tf.newaxis], semantic_ids[tf.newaxis, :])  # [B, B]
  lots = tf.where(different, tf.random.stateless_uniform(tf.shape(different), seed), -1.0)
  return tf.argmax(lots, axis=1), tf.cast(tf.reduce_any(different, axis=1), tf.float32)
