"""What a person watches while a run goes on: progress bars and TensorBoard. Floor 5."""

from __future__ import annotations

from collections.abc import Sequence

from rich import console, progress

from tfreid.data.benchmark import Benchmark
from tfreid.training.stages import Hooks, Progress


def hooks(run_directory: str, benchmark: Benchmark) -> list[Hooks]:
  """The hooks `tools/train.py` attaches."""
  del run_directory, benchmark
  return [ProgressBar()]


class ProgressBar(Hooks):
  """One bar per stage: epochs, latest loss, images per second, time left."""

  def __init__(self):
    self._bar = None
    self._task = None
    self._steps = 0
    self._first = 0

  def stage_begins(self, progress_: Progress, steps_per_epoch: int):
    self._steps = max(1, steps_per_epoch)
    self._bar = progress.Progress(
      progress.TextColumn('{task.description}'),
      progress.BarColumn(bar_width=24),
      progress.MofNCompleteColumn(),
      progress.TextColumn('{task.fields[note]}'),
      progress.TimeElapsedColumn(),
      progress.TimeRemainingColumn(),
      console=console.Console(stderr=True),
      refresh_per_second=2,
    )
    self._task = self._bar.add_task(
      f'stage {progress_.stage.name}',
      total=progress_.stage.epochs * self._steps,
      completed=progress_.epoch * self._steps,
      note='starting',
    )
    self._bar.start()

  def logged(self, progress_: Progress):
    first = progress_.method.objectives[0].loss
    self._bar.update(
      self._task,
      completed=progress_.step,
      note=f'epoch {progress_.epoch + 1}, {first} {progress_.losses[first]:.3f}, '
      f'{progress_.images_per_second:.0f} images/s',
    )

  def stage_ends(self, progress_: Progress):
    self._bar.update(self._task, completed=progress_.stage.epochs * self._steps)
    self.close()

  def close(self):
    """Leaves the bar as it stands; also called when a run ends in an error."""
    if self._bar is not None:
      self._bar.stop()
      self._bar = None


def close(attached: Sequence[Hooks]):
  """Gives every hook the chance to leave the terminal and its files in order."""
  for hook in attached:
    if hasattr(hook, 'close'):
      hook.close()
