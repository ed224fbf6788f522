"""Builder functions that return Keras functional models. Floor 1.

Importing the package registers every custom layer, so that saved encoders can be loaded.
"""

from tfreid.networks import (
  applications,
  attribute,
  attribute_scores,
  batch_norms,
  conditional_gan,
  encoder,
  heads,
  image,
  osnet,
  osnet_weights,
  two_way,
  views,
)

__all__ = [
  'applications',
  'attribute',
  'attribute_scores',
  'batch_norms',
  'conditional_gan',
  'encoder',
  'heads',
  'image',
  'osnet',
  'osnet_weights',
  'two_way',
  'views',
]
