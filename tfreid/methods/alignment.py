"""Ways of making both modalities' concepts alike in distribution. Floor 3.

An alignment is a part of `JointConcepts`: it brings the term that stands in the place of the
adversarial objective of Eq. 5, and whatever networks and objectives that term needs.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfreid import losses, replicas
from tfreid.methods.method import Objective, OptimizerBuilder
from tfreid.networks import heads

MODALITIES = ('image', 'attribute')


class Alignment(tf.Module, abc.ABC):
  """The interface.

  Attributes:
    networks: by name, added to the method's.
    objectives: added to the method's.
    generators: the modalities whose encoder the alignment term moves.
  """

  networks: Mapping[str, tf.keras.Model]
  objectives: Sequence[Objective]
  generators: tuple[str, ...]

  def __init__(self, *, generators: Sequence[str]):
    super().__init__()
    generators = tuple(generators)
    if not generators or set(generators) - set(MODALITIES):
      raise ValueError(f'generators must name some of {MODALITIES}, not {generators}.')
    self.networks = {}
    self.objectives = []
    self.generators = generators

  def hold(self, image_concepts: tf.Tensor, attribute_concepts: tf.Tensor):
    """Both concepts, with no gradient to a modality that is only the target of the other."""
    return tuple(
      concepts if modality in self.generators else tf.stop_gradient(concepts)
      for modality, concepts in zip(MODALITIES, (image_concepts, attribute_concepts))
    )

  @abc.abstractmethod
  def losses(
    self, image_concepts: tf.Tensor, attribute_concepts: tf.Tensor
  ) -> dict[str, tf.Tensor]:
    """Scalars of one batch of paired concepts [B, E].

    Returns:
      'alignment': the weighted term that `JointConcepts` adds to its objective, and the losses of
      `objectives`.
    """


class NoAlignment(Alignment):
  """The row "w/o adv" of Tables 2 and 3: the adversarial objective is dropped."""

  def __init__(self, embedding_size: int):
    super().__init__(generators=('attribute',))
    del embedding_size

  def losses(self, image_concepts, attribute_concepts):
    return {'alignment': tf.zeros([])}


class MaximumMeanDiscrepancy(Alignment):
  """The row "+ MMD" of Table 2: the generator's term of Eq. 7 becomes a mean discrepancy."""

  def __init__(
    self,
    embedding_size: int,
    *,
    weight: float,
    kernel: str = 'linear',
    generators: Sequence[str] = ('attribute',),
  ):
    """Chooses the estimate.

    Args:
      embedding_size: E.
      weight: of the term.
      kernel: 'linear', what Sec. 4.4 describes, or 'multi', DAN's five Gaussian kernels.
      generators: which modalities move.
    """
    super().__init__(generators=generators)
    del embedding_size
    if kernel not in ('linear', 'multi'):
      raise ValueError(f"kernel must be 'linear' or 'multi', not '{kernel}'.")
    self.weight = weight
    self.kernel = kernel

  def losses(self, image_concepts, attribute_concepts):
    images, attributes = self.hold(image_concepts, attribute_concepts)
    images, attributes = replicas.gather(images), replicas.gather(attributes)
    mmd = losses.linear_mmd if self.kernel == 'linear' else losses.multi_kernel_mmd
    discrepancy = mmd(images, attributes)
    return {'alignment': self.weight * discrepancy, 'mmd': discrepancy}


class DeepCORAL(Alignment):
  """The row "+ DeepCoral" of Table 2: the covariances are matched."""

  def __init__(
    self,
    embedding_size: int,
    *,
    weight: float,
    match_mean: bool = False,
    generators: Sequence[str] = ('attribute',),
  ):
    """Chooses the estimate.

    Args:
      embedding_size: E.
      weight: of the term. For tanh concepts the loss is about a thousandth of a mean
        discrepancy, so the weight is larger by as much.
      match_mean: also match the means, which the published loss does not.
      generators: which modalities move.
    """
    super().__init__(generators=generators)
    del embedding_size
    self.weight = weight
    self.match_mean = match_mean

  def losses(self, image_concepts, attribute_concepts):
    images, attributes = self.hold(image_concepts, attribute_concepts)
    images, attributes = replicas.gather(images), replicas.gather(attributes)
    discrepancy = losses.coral_loss(images, attributes, match_mean=self.match_mean)
    return {'alignment': self.weight * discrepancy, 'coral': discrepancy}


class Adversarial(Alignment):
  """The adversarial objective of Sec. 3.2, Eq. 4 to 7, in its three directions (Table 3).

  D(x) is the probability that x is an image concept. Exchanging the concepts in Eq. 5 ("Img2A")
  leaves the discriminator's loss as it is under D -> 1 - D and only changes who plays generator,
  so one class serves 'A2Img' (the attribute side fools D), 'Img2A' (the image side does) and
  'Both'. Adding the two discriminator losses of "Both" literally would cancel to D = 1/2; one
  consistently labelled discriminator is what the text's "both generators try to fool the
  discriminator" can mean.
  """

  def __init__(
    self,
    embedding_size: int,
    *,
    optimizer: OptimizerBuilder,
    generator_weight: float,
    discriminator_weight: float,
    generators: Sequence[str] = ('attribute',),
    weight_decay: float = 0.0,
  ):
    """Builds the discriminator.

    Args:
      embedding_size: E.
      optimizer: the discriminator's.
      generator_weight: lambda_G.
      discriminator_weight: lambda_D. Under Adam a constant factor on the only loss of a network
        hardly changes its steps; the learning rate of `optimizer` does.
      generators: ('attribute',) for A2Img, ('image',) for Img2A, both for Both.
      weight_decay: coupled L2 factor of the discriminator.
    """
    super().__init__(generators=generators)
    self.generator_weight = generator_weight
    self.discriminator_weight = discriminator_weight
    self.discriminator = heads.discriminator(embedding_size)
    self.networks = {'discriminator': self.discriminator}
    self.objectives = [
      Objective('discriminator', self.discriminator.trainable_variables, optimizer(), weight_decay)
    ]

  def losses(self, image_concepts, attribute_concepts):
    images, attributes = self.hold(image_concepts, attribute_concepts)
    # One pass over both modalities: batch norm then sees their mixture, as it must if their
    # difference is not to be normalised away. D's own gradient needs no stop_gradient, since its
    # objective holds D's variables only; `hold` keeps the fooling term off the other side.
    logits = self.discriminator(tf.concat([images, attributes], axis=0), training=True)  # [2B, 1]
    image_logits, attribute_logits = tf.split(logits, 2, axis=0)
    fooling = tf.zeros([])
    if 'attribute' in self.generators:
      fooling += losses.fooling_loss(attribute_logits, wanted=1.0)
    if 'image' in self.generators:
      fooling += losses.fooling_loss(image_logits, wanted=0.0)
    discriminator = losses.discriminator_loss(image_logits, attribute_logits)
    right = tf.concat([image_logits > 0.0, attribute_logits < 0.0], axis=0)
    return {
      'alignment': self.generator_weight * fooling,
      'fooling': fooling,
      'discriminator': self.discriminator_weight * discriminator,
      'discriminator_accuracy': tf.reduce_mean(tf.cast(right, tf.float32)),
    }
