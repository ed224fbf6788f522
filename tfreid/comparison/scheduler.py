"""The workers of a comparison: which run each does next, and what is told of it. Floor 5."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Protocol

from tfreid.comparison import plan, processes
from tfreid.comparison.plan import Run

if TYPE_CHECKING:
  import rich.console
  import rich.progress

_LOOK = 0.5  # seconds between looks at what could be run


class Work(Protocol):
  """What a scheduler asks of the comparison whose runs it does.

  Attributes:
    out: folder of the runs.
    cores: those of each worker.
    later: runs that will follow those of the scheduler, for the estimate of time.
    clock: how long runs take.
    failed: title -> how, of the runs that failed; the scheduler adds those that it gives up.
  """

  @property
  def out(self) -> str: ...

  @property
  def cores(self) -> Sequence[Sequence[int]]: ...

  @property
  def later(self) -> Sequence[Run]: ...

  @property
  def clock(self) -> plan.Clock: ...

  @property
  def failed(self) -> MutableMapping[str, str]: ...

  def state(self, run: Run) -> str:
    """Whether a run has to be done: a state of `plan`."""

  def starts_from(self, run: Run) -> Run | None:
    """The pre-training that a run needs."""

  def estimate(self, runs: Sequence[Run]) -> float | None:
    """Seconds that runs will take, None where nothing is known."""

  def one(self, run: Run, cores: Sequence[int], tell: Callable[[float], None]) -> tuple[int, float]:
    """Does one run; returns its exit status and the seconds it took."""

  def ended(self, run: Run, status: int) -> None:
    """Heeds how a run ended."""

  def write(self, *, page: bool = True) -> None:
    """Writes what is known so far."""


def do(work: Work, runs: Sequence[Run]) -> None:
  """Does the runs that are not done, as many at a time as there are workers.

  Each worker is a thread that waits for the process of its run. Runs are begun in their order,
  but for those that wait for a pre-training or that another command is at.

  Args:
    work: the comparison that has the runs.
    runs: in the order in which they are to be done; those that are done are only counted.
  """
  import rich.console
  import rich.progress

  console = rich.console.Console(stderr=True)
  with rich.progress.Progress(
    rich.progress.TextColumn('{task.description}'),
    rich.progress.BarColumn(bar_width=24),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TextColumn('{task.fields[note]}'),
    console=console,
    refresh_per_second=2,
  ) as bar:
    scheduler = Scheduler(work, runs, bar, console)
    workers = [
      threading.Thread(target=scheduler.work, args=(cores,), daemon=True) for cores in work.cores
    ]
    for worker in workers:
      worker.start()
    try:
      # Joined in short pieces: a signal is handled between two of them.
      while any(worker.is_alive() for worker in workers):
        for worker in workers:
          worker.join(_LOOK)
    finally:
      scheduler.stop()
      for worker in workers:
        worker.join()
  if scheduler.error is not None:
    raise scheduler.error


class Scheduler:
  """The runs that the workers of one command take from, and what is told of them.

  Attributes:
    error: what went wrong in a worker beside its run, or None.
  """

  def __init__(
    self,
    work: Work,
    runs: Sequence[Run],
    bar: rich.progress.Progress,
    console: rich.console.Console,
  ):
    """Begins nothing.

    Args:
      work: the comparison that has the runs.
      runs: in the order in which they are to be done; those that are done are only counted.
      bar: to show the progress with.
      console: to write a line per finished run to.
    """
    self.error: BaseException | None = None
    self._comparison = work
    self._bar = bar
    self._console = console
    self._pending = [run for run in runs if work.state(run) != plan.DONE]
    self._active: dict[Run, float] = {}  # run -> seconds elapsed
    self._count = len(runs)
    self._guard = threading.RLock()
    self._stopped = threading.Event()
    self._task = bar.add_task('runs', total=len(runs), note='')
    self._update_bar()

  def stop(self) -> None:
    """Ends the runs under way and begins no other."""
    self._stopped.set()

  def work(self, cores: Sequence[int]) -> None:
    """Does run after run until none is left."""
    try:
      while not self._stopped.is_set() and (self._pending or self._active):
        if not self._next(cores):
          self._stopped.wait(_LOOK)
    except BaseException as error:
      if not self._stopped.is_set():
        self.error = error
        self.stop()

  def _next(self, cores: Sequence[int]) -> bool:
    """Does the first run that can be done; False if none can be just now."""
    with self._guard:
      ready = [run for run in self._pending if self._is_ready(run)]
    for run in ready:
      if self._give_up(run):
        return True
      with self._guard:
        if run not in self._pending:
          return True  # another worker was faster
        self._pending.remove(run)
        self._active[run] = 0.0
      done = False
      try:
        with processes.alone(run.directory(self._comparison.out), wait=False) as mine:
          if mine and self._comparison.state(run) != plan.DONE:
            self._do(run, cores)
        done = mine or self._comparison.state(run) == plan.DONE
      finally:
        with self._guard:
          del self._active[run]
          if not done:  # another command is at it: later, and meanwhile the next
            self._pending.insert(0, run)
      if done:
        self._ended(run)
        return True
    return False

  def _is_ready(self, run: Run) -> bool:
    """Whether a run need not wait for its pre-training."""
    shared = self._comparison.starts_from(run)
    return shared is None or (shared not in self._pending and shared not in self._active)

  def _give_up(self, run: Run) -> bool:
    """Whether a run's pre-training failed; then it is given up, and gets no folder."""
    comparison = self._comparison
    shared = comparison.starts_from(run)
    if shared is None or shared.title not in comparison.failed:
      return False
    with self._guard:
      if run in self._pending:
        self._pending.remove(run)
        comparison.failed[run.title] = f'{shared.title} failed, which it starts from'
        self._print(run, comparison.failed[run.title])
        self._update_bar()
    return True

  def _do(self, run: Run, cores: Sequence[int]) -> None:
    def tell(elapsed: float) -> None:
      if self._stopped.is_set():
        raise KeyboardInterrupt
      with self._guard:
        self._active[run] = elapsed
        self._update_bar()

    status, seconds = self._comparison.one(run, cores, tell)
    with self._guard:
      self._comparison.ended(run, status)
    log = os.path.join(run.directory(self._comparison.out), plan.LOG)
    self._print(
      run,
      (f'failed, see {log}' if status else f'done in {plan.duration(seconds)}')
      + f'; left: {plan.duration(self._left(without=run))}',
    )

  def _ended(self, run: Run) -> None:
    """Keeps what is known now; the page once a seed of the tables is through: one early."""
    with self._guard:
      rest = [*self._pending, *self._active]
      of_tables = run.role != plan.PARAMETER and all(
        other.seed != run.seed or other.role == plan.PARAMETER for other in rest
      )
      self._comparison.write(page=bool(rest) and of_tables)
      self._update_bar()

  def _left(self, without: Run | None = None) -> float | None:
    """Seconds until all is done."""
    comparison = self._comparison
    with self._guard:
      active: Mapping[Run, float] = {
        run: spent for run, spent in self._active.items() if run != without
      }
      rest = comparison.estimate([*self._pending, *comparison.later])
    for run, spent in active.items():
      whole = comparison.estimate([run])
      if rest is None or whole is None:
        return None
      rest += max(0.0, whole - spent / (1 if comparison.clock.is_guess else len(comparison.cores)))
    return rest

  def _print(self, run: Run, text: str) -> None:
    with self._guard:
      number = self._count - len(self._pending) - sum(other != run for other in self._active)
      self._console.print(
        f'[{number}/{self._count}] {run.title}: {text}',
        markup=False,
        highlight=False,
        soft_wrap=True,
      )

  def _update_bar(self) -> None:
    with self._guard:
      under_way = ' | '.join(
        f'{run.title}, {plan.duration(spent)}' for run, spent in self._active.items()
      )
      note = f'{under_way}; left: {plan.duration(self._left())}' if under_way else ''
      completed = self._count - len(self._pending) - len(self._active)
      self._bar.update(self._task, completed=completed, note=note)
