"""PyTorch in the benchmarks: ResNet-50 with an embedding of 128 numbers. Needs PyTorch only."""

from __future__ import annotations

import torch
from torch import nn


class Bottleneck(nn.Module):
  """1x1, 3x3 with the stride, 1x1, and the shortcut; what is usual in PyTorch ("v1.5")."""

  def __init__(self, channels: int, width: int, stride: int):
    super().__init__()
    self.body = nn.Sequential(
      *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
      *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
      *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
    )
    self.shortcut = nn.Identity()
    if stride > 1 or channels != 4 * width:
      self.shortcut = nn.Sequential(
        nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
      )

  def forward(self, x):
    return torch.relu(self.body(x) + self.shortcut(x))


def resnet50(embedding_size: int = 128) -> nn.Sequential:
  """ResNet-50 with random weights: [B, 3, H, W] to [B, embedding_size]."""
  stages, channels = [], 64
  for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
    for i in range(count):
      stages.append(Bottleneck(channels, width, 1 if i else stride))
      channels = 4 * width
  return nn.Sequential(
    *(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
    *(nn.MaxPool2d(3, 2, 1), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    nn.Linear(2048, embedding_size),
  )


def device() -> torch.device:
  """The GPU if there is one. TensorFloat-32 is allowed, as it is in TensorFlow by default."""
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
  return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
