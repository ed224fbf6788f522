"""TensorBoard's event files, written so that a resumed run continues them. Floor 4."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfreid.training.stages import Progress


class Summaries:
  """One "run" in TensorBoard's sense: a folder, and the one writer that is open in it.

  A run that is killed has written about steps that it will take again when it resumes from its
  last checkpoint. Each writer therefore begins with a session start at the step from which on it
  writes; TensorBoard discards what older files of the folder say about that step and later ones.
  """

  def __init__(self, directory: str, *, first_step: int = 0):
    """Opens a new event file.

    Args:
      directory: created if need be.
      first_step: the first step that will be written about.
    """
    self._writer = tf.summary.create_file_writer(directory, flush_millis=20000)
    event = tf.compat.v1.Event(
      wall_time=time.time(),
      step=first_step,
      session_log=tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START),
    )
    # tf.summary of TensorFlow 2 has summaries only; a whole event needs the op below it. In the
    # same file, since TensorBoard reads files in the order of their names.
    tf.raw_ops.ImportEvent(writer=self._writer._resource, event=event.SerializeToString())

  def scalars(self, values: Mapping[str, float], step: int):
    """Numbers by name; the part before the first '/' is the section they appear in."""
    with self._writer.as_default(step=step):
      for name, value in values.items():
        tf.summary.scalar(name, value)

  def images(self, name: str, images: np.ndarray, step: int, *, description: str = ''):
    """uint8 [N, H, W, 3], each as an image of its own."""
    with self._writer.as_default(step=step):
      tf.summary.image(name, images, max_outputs=len(images), description=description or None)

  def histogram(self, name: str, values: np.ndarray, step: int, *, description: str = ''):
    """The distribution of numbers."""
    with self._writer.as_default(step=step):
      tf.summary.histogram(name, values, description=description or None)

  def text(self, name: str, text: str, step: int):
    """Markdown."""
    with self._writer.as_default(step=step):
      tf.summary.text(name, text)

  def proto(self, summary: Any, step: int):
    """A ready-made Summary, as TensorBoard's plug-ins make them."""
    with self._writer.as_default(step=step):
      tf.summary.experimental.write_raw_pb(summary.SerializeToString())

  def flush(self):
    """Makes what was written visible to others."""
    self._writer.flush()

  def close(self):
    """Writes out what is left."""
    self._writer.close()


def training_scalars(progress: Progress) -> dict[str, float]:
  """Everything that the loop measures, by tag.

  losses/<name>, gradient_norm/<position>_<loss>, learning_rate/<position>_<loss>, under float16
  also loss_scale/<position>_<loss>; throughput/images_per_second and progress/epoch.
  """
  scalars = {}
  for name, value in progress.losses.items():
    scalars[name if name.startswith('gradient_norm/') else f'losses/{name}'] = value
  for name, rate in progress.learning_rates.items():
    scalars[f'learning_rate/{name}'] = rate
  for name, optimizer in zip(progress.learning_rates, progress.trainer.optimizers):
    if isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
      scalars[f'loss_scale/{name}'] = float(optimizer.loss_scale)
  scalars['throughput/images_per_second'] = progress.images_per_second
  scalars['progress/epoch'] = progress.epoch
  return scalars


def code_block(text: str) -> str:
  """Markdown that shows `text` as it stands, such as a configuration."""
  return '\n'.join(f'    {line}' for line in text.splitlines())


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A Markdown table."""
  lines = [header, ['---'] * len(header), *rows]
  cells = [[str(cell).replace('|', '\\|').replace('\n', ' ') for cell in line] for line in lines]
  return '\n'.join(f'| {" | ".join(line)} |' for line in cells)
