"""Shares the drawing out among processes, with a progress bar."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence


def shared_out(draw: Callable, jobs: Sequence, *, workers: int, progress: bool) -> Iterator:
  """Yields draw(job) for each job, in any order.

  Args:
    draw: called with a job; goes to the processes once, when they start.
    jobs: the arguments.
    workers: number of processes; 1 draws in this one.
    progress: whether to show a progress bar on stderr.

  Yields:
    What `draw` returns.
  """
  with _progress_bar(len(jobs), progress) as advance:
    for result in _results(draw, jobs, workers):
      advance()
      yield result


def _results(draw, jobs, workers) -> Iterable:
  if workers == 1:
    yield from map(draw, jobs)
    return
  # Fresh interpreters rather than forks, which threads of this process (TensorFlow's, perhaps)
  # would not survive.
  context = multiprocessing.get_context('spawn')
  with context.Pool(min(workers, len(jobs)), _start, (draw,)) as pool:
    yield from pool.imap_unordered(_work, jobs, chunksize=4)


# What a worker process draws with, set once when it starts.
_worker: dict = {}


def _start(draw) -> None:
  _worker['draw'] = draw


def _work(job):
  return _worker['draw'](job)


@contextlib.contextmanager
def _progress_bar(total: int, shown: bool):
  """Yields a function to call after each of `total` people."""
  if not shown:
    yield lambda: None
    return
  # Imported late: only whoever wants a bar needs rich.
  import rich.console
  import rich.progress

  bar = rich.progress.Progress(
    rich.progress.TextColumn('drawing people'),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
    console=rich.console.Console(stderr=True),
  )
  with bar:
    task = bar.add_task('', total=total)
    yield lambda: bar.advance(task)
