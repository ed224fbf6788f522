"""PyTorch in the benchmarks: OSNet with the names of torchreid's weights. Needs PyTorch only."""

from __future__ import annotations

import torch
from torch import nn


def _layer(channels: int, outputs: int, size: int = 1, stride: int = 1, relu: bool = True):
  """Convolution and batch norm, called `conv` and `bn`, and ReLU."""
  layers = nn.Sequential()
  layers.add_module('conv', nn.Conv2d(channels, outputs, size, stride, size // 2, bias=False))
  layers.add_module('bn', nn.BatchNorm2d(outputs))
  if relu:
    layers.add_module('relu', nn.ReLU(inplace=True))
  return layers


def _lite(channels: int) -> nn.Sequential:
  layers = nn.Sequential()
  layers.add_module('conv1', nn.Conv2d(channels, channels, 1, bias=False))
  layers.add_module('conv2', nn.Conv2d(channels, channels, 3, 1, 1, bias=False, groups=channels))
  layers.add_module('bn', nn.BatchNorm2d(channels))
  layers.add_module('relu', nn.ReLU(inplace=True))
  return layers


class Gate(nn.Module):
  """Weighs the channels of a stream by its means."""

  def __init__(self, channels: int):
    super().__init__()
    self.fc1 = nn.Conv2d(channels, channels // 16, 1)
    self.fc2 = nn.Conv2d(channels // 16, channels, 1)

  def forward(self, x):
    weights = torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))
    return x * torch.sigmoid(self.fc2(weights))


class Block(nn.Module):
  """The omni-scale residual block: four streams, and one gate for all of them."""

  def __init__(self, channels: int, outputs: int):
    super().__init__()
    middle = outputs // 4
    self.conv1 = _layer(channels, middle)
    self.conv2a = _lite(middle)
    for length, name in ((2, 'conv2b'), (3, 'conv2c'), (4, 'conv2d')):
      setattr(self, name, nn.Sequential(*(_lite(middle) for _ in range(length))))
    self.gate = Gate(middle)
    self.conv3 = _layer(middle, outputs, relu=False)
    self.downsample = None
    if channels != outputs:
      self.downsample = _layer(channels, outputs, relu=False)

  def forward(self, x):
    y = self.conv1(x)
    streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
    y = self.conv3(sum(self.gate(stream(y)) for stream in streams))
    return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class OSNet(nn.Module):
  """[B, 3, H, W] to features [B, 512], or to an embedding of them."""

  def __init__(self, width: float, embedding_size: int | None = None):
    super().__init__()
    first, second, third, fourth = (int(width * n) for n in (64, 256, 384, 512))
    self.conv1 = _layer(3, first, 7, 2)
    self.maxpool = nn.MaxPool2d(3, 2, 1)
    self.conv2 = self._stage(first, second, pooled=True)
    self.conv3 = self._stage(second, third, pooled=True)
    self.conv4 = self._stage(third, fourth, pooled=False)
    self.conv5 = _layer(fourth, fourth)
    self.fc = nn.Sequential(nn.Linear(fourth, 512), nn.BatchNorm1d(512), nn.ReLU())
    self.embedding = None
    if embedding_size is not None:
      self.embedding = nn.Linear(512, embedding_size)

  @staticmethod
  def _stage(channels, outputs, *, pooled):
    layers = [Block(channels, outputs), Block(outputs, outputs)]
    if pooled:
      layers.append(nn.Sequential(_layer(outputs, outputs), nn.AvgPool2d(2, 2)))
    return nn.Sequential(*layers)

  def forward(self, x):
    x = self.maxpool(self.conv1(x))
    x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
    x = self.fc(x.mean((2, 3)))
    return x if self.embedding is None else torch.tanh(self.embedding(x))
