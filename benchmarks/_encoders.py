"""Encoders by name in the benchmarks: ours, and the same in PyTorch.

'resnet50', 'osnet_x1_0', 'osnet_x0_75', 'osnet_x0_5', 'osnet_x0_25', or the name of a network of
keras.applications, such as 'EfficientNetB0', which has no rival in PyTorch here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

# TensorFlow and PyTorch are imported by the processes that need them only.


def width(name: str) -> float | None:
  """The width that an OSNet's name says, or None for another network."""
  if not name.startswith('osnet_x'):
    return None
  return float(name.removeprefix('osnet_x').replace('_', '.'))


def tensorflow(name: str) -> Callable:
  """Image shape -> our image encoder, from random weights."""
  from tfreid.networks import applications, image, osnet

  if name == 'resnet50':
    return functools.partial(image.image_encoder, conv_bias=False)  # gin/encoders/resnet50.gin
  if width(name) is not None:
    return functools.partial(osnet.osnet, width=width(name))
  return functools.partial(applications.application, name=name)


def has_torch_rival(name: str) -> bool:
  """Whether there is the same network in PyTorch here."""
  return name == 'resnet50' or width(name) is not None


def torch(name: str):
  """The network in PyTorch: [B, 3, H, W] to an embedding [B, 128]."""
  import _torch_osnet
  import _torch_resnet

  if name == 'resnet50':
    return _torch_resnet.resnet50()
  return _torch_osnet.OSNet(width(name), 128)
