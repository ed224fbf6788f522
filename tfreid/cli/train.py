"""Trains and evaluates a system.

  tfreid train --gin_file=methods/a2img.gin --gin_file=datasets/market1501.gin \\
    --gin_bindings='DATA_ROOT = "/data/market1501"' --run_dir=runs/a2img

gin files are found by path or among those that come with tfreid (`tfreid --files` says where). A
gin file is code: read those of others before you use them. Running the same command again
continues where it stopped.
"""

from absl import app, flags

from tfreid.cli import configuration, gin_flags, startup

flags.adopt_module_key_flags(gin_flags)
_GIN_FILE = flags.DEFINE_multi_string('gin_file', [], 'gin file, repeatable; later ones win.')
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], 'One more binding, repeatable; wins over the files.'
)
flags.DEFINE_alias('gin_param', 'gin_bindings')
_RUN_DIR = flags.DEFINE_string('run_dir', None, 'Where the run is written.', required=True)
_PRECISION = flags.DEFINE_enum(
  'precision',
  None,
  ['float32', 'mixed_float16', 'mixed_bfloat16', 'auto'],
  'Overrides gin. auto: what the GPU or the processor has instructions for.',
)
_STRATEGY = flags.DEFINE_enum(
  'strategy', None, ['mirrored', 'multi_worker', 'one_device'], 'Overrides gin.'
)
_XLA = flags.DEFINE_bool(
  'xla', None, 'Compile the step with XLA but for the update; overrides gin.'
)
_ALLOW = flags.DEFINE_bool(
  'allow_changed_config', False, 'Continue a run although its configuration has changed.'
)
_ALLOW_UNUSED = flags.DEFINE_bool(
  'allow_unused_bindings',
  False,
  'Accept bindings that this system makes no use of: for gin files that serve several systems.',
)


def main(argv):
  """Reads the configuration, then trains."""
  startup.no_arguments(argv)
  if not _GIN_FILE.value:
    raise app.UsageError(
      'Give a method and a data set, e.g. --gin_file=methods/a2img.gin '
      '--gin_file=datasets/market1501.gin.'
    )
  overrides = [
    f'experiment.train.{name} = {value!r}'
    for name, value in (
      ('precision', _PRECISION.value),
      ('strategy', _STRATEGY.value),
      ('jit_compile', _XLA.value),
    )
    if value is not None
  ]
  with startup.clear_errors('The same command continues from the last checkpoint.'):
    import gin

    config = configuration.configure(
      _GIN_FILE.value,
      [*_GIN_BINDINGS.value, *overrides],
      allow_imports=gin_flags.allow_imports(),
      root='' if _ALLOW_UNUSED.value else configuration.TRAIN,
    )
    from tfreid import reporting

    train = configuration.root(configuration.TRAIN)
    evaluations = train(
      _RUN_DIR.value,
      config=config,
      operative_config=gin.operative_config_str,
      allow_changed_config=_ALLOW.value,
      hooks=reporting.hooks,
    )
    _print(evaluations, gin.query_parameter)


def _print(evaluations, setting):
  from rich.console import Console

  try:
    split = setting('experiment.train.final_split')
  except ValueError:  # nobody bound it
    split = 'test'
  for label, evaluation in evaluations.items():
    Console().print(evaluation.table(title=f'{label}, {split} split'))
