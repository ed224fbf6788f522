#!/usr/bin/env python
"""Makes an .npz file of a .pth file of torchreid's model zoo.

Needs PyTorch and NumPy and nothing else, so that it can be run in an environment of its own:

  python tools/convert_torchreid.py osnet_x0_25_msmt17.pth osnet_x0_25_msmt17.npz

and then, in the environment of tfreid:

  --gin_file=encoders/osnet.gin --gin_bindings='OSNET_WIDTH = 0.25' \
  --gin_bindings='OSNET_WEIGHTS = "osnet_x0_25_msmt17.npz"'
"""

from __future__ import annotations

import argparse

import numpy as np
import torch


def main():
  """Reads the one and writes the other."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('source', help='.pth or .pth.tar file')
  parser.add_argument('target', help='.npz file to write')
  given = parser.parse_args()
  # Only tensors: a .pth file is a pickle, which could run commands.
  state = torch.load(given.source, map_location='cpu', weights_only=True)
  state = state.get('state_dict', state)
  arrays = {
    name.removeprefix('module.'): np.asarray(value.tolist(), np.float32)
    for name, value in state.items()
    if isinstance(value, torch.Tensor) and value.is_floating_point()
  }
  if not arrays:
    parser.error(f'{given.source} holds no weights')
  with open(given.target, 'wb') as file:
    np.savez(file, **arrays)
  print(f'{given.target}: {len(arrays)} arrays')


if __name__ == '__main__':
  main()
