#!/usr/bin/env python3
"""Runs the benchmarks of this folder and writes what they measured, with machine and versions.

  make bench
  make bench ARGS='--only=evaluation,pipeline'

A benchmark is a module here with a function `run()` that needs no arguments and returns numbers by
name, {'images_per_second': 812.0, …}, or dictionaries of such. The first line of the module's
docstring says what is measured. Each runs in a process of its own, so that none finds TensorFlow as
another left it.
"""

from __future__ import annotations

import ast
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIBRARIES = ('tfreid', 'tensorflow', 'keras', 'tensorflow-addons', 'numpy', 'scipy', 'pandas')

_ONLY = flags.DEFINE_list('only', None, 'Names of the benchmarks to run; all if not given.')
_OUT = flags.DEFINE_string('out', str(ROOT / 'bench'), 'Folder for the results.')
_FOLDER = flags.DEFINE_string('folder', str(ROOT / 'benchmarks'), 'Folder of the benchmarks.')
_LIST = flags.DEFINE_bool('list', False, 'Only say what there is.')


def find(folder: pathlib.Path) -> dict[str, str]:
  """Benchmarks of a folder by name, each with the first line of its docstring.

  Read from the sources, since importing them imports TensorFlow.
  """
  found = {}
  for path in sorted(folder.glob('*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'), filename=str(path))
    if any(isinstance(node, ast.FunctionDef) and node.name == 'run' for node in tree.body):
      found[path.stem] = (ast.get_docstring(tree) or path.stem).splitlines()[0]
  return found


def machine() -> dict[str, str | int | float]:
  """What the numbers depend on: processor, cores, memory, other load, accelerators, system."""
  description = {
    'processor': _processor(),
    'usable_cores': len(os.sched_getaffinity(0))
    if hasattr(os, 'sched_getaffinity')
    else os.cpu_count() or 1,
    'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
    'load_before': round(os.getloadavg()[0], 1),
    'system': platform.platform(),
    'python': platform.python_version(),
  }
  gpus = _output(['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader'])
  if gpus:
    description['gpus'] = '; '.join(gpus.splitlines())
  return description


def versions() -> dict[str, str]:
  """Installed versions of the libraries that the numbers depend on, and the git revision."""
  known = {}
  for library in LIBRARIES:
    try:
      known[library] = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
      continue
  revision = _output(['git', '-C', str(ROOT), 'describe', '--always', '--dirty'])
  return {**known, 'revision': revision or 'unknown'}


def numbers(values: Mapping, prefix: str = '') -> Iterator[tuple[str, object]]:
  """Yields (name, value) of nested results, 'float32.images_per_second' for one inside another."""
  for name, value in values.items():
    if isinstance(value, Mapping):
      yield from numbers(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def as_markdown(report: Mapping) -> str:
  """The report as a page: machine and versions, then a table for each benchmark."""
  lines = [f'# Benchmarks of {report["started"]}', '']
  for part in ('machine', 'versions'):
    facts = ', '.join(f'{name} {value}' for name, value in report[part].items())
    lines += [f'* {part}: {facts}']
  for name, result in report['benchmarks'].items():
    lines += ['', f'## {name}', '', f'{result["measures"]} Took {result["seconds"]:.0f} s.', '']
    if 'error' in result:
      lines += [f'Failed: `{result["error"]}`']
      continue
    lines += ['| what | value |', '|---|---:|']
    lines += [f'| {key} | {_rounded(value)} |' for key, value in numbers(result['results'])]
  return '\n'.join(lines) + '\n'


def _rounded(value: object) -> str:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return str(value)
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def _output(command: Sequence[str]) -> str:
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
  except (OSError, subprocess.TimeoutExpired):
    return ''
  return done.stdout.strip() if done.returncode == 0 else ''


def _processor() -> str:
  try:
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.split(':', 1)[1].strip()
  except OSError:
    pass
  return _output(['sysctl', '-n', 'machdep.cpu.brand_string']) or platform.machine()


def _last_line(path: pathlib.Path) -> str:
  lines = path.read_text(encoding='utf-8', errors='replace').replace('\r', '\n').splitlines()
  lines = [line.strip() for line in lines if line.strip()]
  return lines[-1] if lines else ''


def measure(path: pathlib.Path, *, on_tick=lambda line: None) -> dict:
  """Runs one benchmark in a process of its own.

  Args:
    path: the module.
    on_tick: called about twice a second with the last line that the benchmark printed.

  Returns:
    'seconds' and 'results', or 'error', the last line of what it said.
  """
  with tempfile.TemporaryDirectory() as folder:
    result, log = pathlib.Path(folder) / 'result.json', pathlib.Path(folder) / 'log'
    started = time.perf_counter()
    with open(log, 'wb') as output:
      process = subprocess.Popen(
        [sys.executable, __file__, '--child', str(path), str(result)],
        cwd=ROOT,
        env={'TF_CPP_MIN_LOG_LEVEL': '2', **os.environ},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
      )
      try:
        while True:
          try:
            process.wait(timeout=0.5)
            break
          except subprocess.TimeoutExpired:
            on_tick(_last_line(log))
      except BaseException:
        process.kill()
        process.wait()
        raise
    seconds = round(time.perf_counter() - started, 1)
    if process.returncode != 0 or not result.is_file():
      error = _last_line(log) or f'exit status {process.returncode}'
      return {'seconds': seconds, 'error': error}
    return {'seconds': seconds, 'results': json.loads(result.read_text())}


def _child(path: str, result: str) -> None:
  sys.path[:0] = [str(ROOT), str(pathlib.Path(path).parent)]
  spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  values = module.run()
  if not values:
    raise ValueError(f'run() of {path} returned no numbers.')
  # Numpy's numbers are no JSON; float() is what they are asked for.
  pathlib.Path(result).write_text(json.dumps(values, default=float))


def _write(path: pathlib.Path, text: str) -> None:
  beside = path.with_name(path.name + '.part')
  beside.write_text(text, encoding='utf-8')
  os.replace(beside, path)


def main(argv: Sequence[str]) -> int:
  """Runs what the flags choose; the report is written anew after each benchmark."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected argument: {argv[1]!r}. Everything is a --flag=value here.')
  from rich import progress
  from rich.console import Console

  folder = pathlib.Path(_FOLDER.value)
  benchmarks = find(folder)
  if _LIST.value:
    for name, measures in benchmarks.items():
      print(f'{name:20s} {measures}')
    return 0
  chosen = _ONLY.value or list(benchmarks)
  unknown = [name for name in chosen if name not in benchmarks]
  if unknown or not chosen:
    print(
      f'Error: no benchmark {", ".join(unknown)} in {folder}; it has: {", ".join(benchmarks)}.',
      file=sys.stderr,
    )
    return 1
  now = datetime.datetime.now().astimezone()
  report = {
    'started': now.isoformat(timespec='seconds'),
    'machine': machine(),
    'versions': versions(),
    'benchmarks': {},
  }
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  target = out / f'results-{now:%Y-%m-%d-%H%M%S}.json'
  console = Console()
  bar = progress.Progress(
    progress.SpinnerColumn(),
    progress.TextColumn('{task.description}'),
    progress.BarColumn(bar_width=20),
    progress.MofNCompleteColumn(),
    progress.TimeElapsedColumn(),
    progress.TextColumn('{task.fields[line]}', style='dim'),
    console=console,
  )
  with bar:
    task = bar.add_task('benchmarks', total=len(chosen), line='')
    for name in chosen:
      bar.update(task, description=name, line='')
      result = measure(folder / f'{name}.py', on_tick=lambda line: bar.update(task, line=line[:60]))
      report['benchmarks'][name] = {'measures': benchmarks[name], **result}
      _write(target, json.dumps(report, indent=2) + '\n')
      _write(target.with_suffix('.md'), as_markdown(report))
      bar.advance(task)
      said = f'failed: {result["error"]}' if 'error' in result else 'done'
      bar.console.print(f'{name}: {said} ({result["seconds"]:.0f} s)', highlight=False)
    bar.update(task, description='benchmarks', line='')
  print(as_markdown(report))
  print(f'Written to {target} and {target.with_suffix(".md").name}.')
  return int(any('error' in result for result in report['benchmarks'].values()))


if __name__ == '__main__':
  if sys.argv[1:2] == ['--child']:
    _child(*sys.argv[2:])
  else:
    try:
      app.run(main)
    except KeyboardInterrupt:
      sys.exit('\nInterrupted; what was measured until now is in the results folder.')
