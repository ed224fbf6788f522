"""Looks a data set over before it is trained on: counts, rare attributes, unreadable images.

  tfreid check-data --dataset=market1501 --data_root=/data/market1501
  tfreid check-data --dataset=peta --data_root=/data/peta --gin_bindings="SPLIT = 'sal'" --images

Nothing is written. The exit code is 1 if the data cannot be used, or if an image cannot be decoded.
"""

import logging
import sys

from absl import flags

from tfreid.cli import configuration, gin_flags, startup
from tfreid.printable import printable

flags.adopt_module_key_flags(gin_flags)
_DATASET = flags.DEFINE_string(
  'dataset', None, 'Name of a file in gin/datasets/: market1501, dukemtmc, peta, …', required=True
)
_DATA_ROOT = flags.DEFINE_string('data_root', None, 'Where the data is.', required=True)
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], "Options of the loader, e.g. 'dukemtmc.load.repair = True'. Repeatable."
)
_IMAGES = flags.DEFINE_bool('images', False, 'Decode every image too, which takes minutes.')
_ATTRIBUTES = flags.DEFINE_bool('attributes', True, 'Show how common each attribute is.')
_RARE = flags.DEFINE_integer(
  'rare', 5, 'Remark on attributes of fewer training people than this.', lower_bound=1
)


def load():
  """The Benchmark that the data set's gin file describes."""
  given = [
    f'DATA_ROOT = {_DATA_ROOT.value!r}',
    "ENCODING = 'binary'",
    'VALIDATION_SHARE = 0.0',
    'VALIDATION_SEED = 0',
  ]
  return configuration.dataset(
    [f'datasets/{_DATASET.value}.gin'],
    given=given,
    bindings=_GIN_BINDINGS.value,
    allow_imports=gin_flags.allow_imports(),
  )


def _table(title, frame, format_cell=str):
  import rich.table

  table = rich.table.Table(title=title, title_justify='left')
  table.add_column('')
  for column in frame.columns:
    table.add_column(printable(column, lines=False).replace('_', ' '), justify='right')
  for name, row in frame.iterrows():
    label = ' '.join(name) if isinstance(name, tuple) else str(name)
    table.add_row(printable(label, lines=False), *(format_cell(cell) for cell in row))
  return table


def check_images(benchmark, console) -> int:
  """Prints the images that cannot be decoded; returns how many there are."""
  import numpy as np
  import rich.progress

  from tfreid.data import audit

  paths = [path for split in audit.splits(benchmark).values() for path in split.paths]
  heights, bad = [], []
  checks = rich.progress.track(
    audit.check_images(paths), 'Decoding images', total=len(paths), console=console
  )
  for check in checks:
    if check.problem:
      bad.append(check)
    else:
      heights.append((check.height, check.width))
  if heights:
    low, middle, high = (
      'x'.join(str(int(v)) for v in np.percentile(heights, q, axis=0)) for q in (0, 50, 100)
    )
    console.print(
      f'{len(heights)} images can be decoded; height x width is {low} at least, {middle} in the '
      f'median, {high} at most.',
      highlight=False,
      soft_wrap=True,
    )
  for check in bad:
    problem = printable(f'unreadable: {check.path}: {check.problem}', lines=False)
    console.print(problem, markup=False, soft_wrap=True)
  return len(bad)


def main(argv):
  """Loads and prints."""
  startup.no_arguments(argv)
  with startup.clear_errors():
    logging.getLogger('tfreid').setLevel(logging.WARNING)
    benchmark = load()
    import rich.console

    from tfreid.data import audit

    console = rich.console.Console()
    summary = audit.summarize(benchmark)
    console.print(
      _table(
        printable(f'{benchmark.name}, {benchmark.schema.size} columns', lines=False),
        summary.T.rename(lambda count: count.replace('_', ' ')),
      )
    )
    for name, split in audit.splits(benchmark).items():
      for reason, count in split.dropped.items():
        console.print(
          f'{name}: {count} files left out ({reason}).', highlight=False, soft_wrap=True
        )
    if _ATTRIBUTES.value:
      rates = audit.column_rates(benchmark)
      console.print(_table('Share of people', rates, '{:.1%}'.format))
      groups = audit.group_counts(benchmark)
      if len(groups):
        console.print(_table('People with values', groups))
    findings = audit.findings(benchmark, rare=_RARE.value)
    console.print(f'{len(findings)} remarks' if findings else 'No remarks.', style='bold')
    for finding in findings:
      text = printable(f'- {finding}')
      console.print(text, highlight=False, markup=False, soft_wrap=True)
    if _IMAGES.value and check_images(benchmark, console):
      sys.exit(1)
