"""What can compute the concepts of images. Floor 4.

By itself, so that the command line can name them without importing what computes.
"""

from __future__ import annotations

RUNTIMES = ('tensorflow', 'openvino')
