"""Builder functions that return Keras functional models. Floor 1.

Importing the package registers every custom layer, so that saved encoders can be loaded.
"""

from tfreid.networks import attribute, heads, image

__all__ = ['attribute', 'heads', 'image']
