"""What is searched: the flags that name it, and what they open. Floor 5.

A tool that uses them adopts them for its --help: `flags.adopt_module_key_flags(source_flags)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import app, flags

from tfreid.cli import startup
from tfreid.index import runtimes

if TYPE_CHECKING:
  from tfreid.search import Source

startup.never_trains()

_MODEL = flags.DEFINE_string(
  'model',
  None,
  'Exported model: the folder of a version, or of the model (newest version). With --index: where '
  'its model is, if that was moved.',
)
_INDEX = flags.DEFINE_string('index', None, 'Index to search instead of the gallery of the model.')
_SERVER = flags.DEFINE_string(
  'server',
  None,
  'Address of a TF Serving instead of a folder: grpc://host:8500 or http://host:8501, with TLS '
  'grpcs:// or https://.',
)
_MODEL_NAME = flags.DEFINE_string('model_name', 'people', 'With --server: name of the model there.')
_VERSION = flags.DEFINE_string(
  'model_version', '', 'With --server: number or label of the version; the newest by default.'
)
_GALLERY = flags.DEFINE_string(
  'gallery',
  '',
  "With --server: the export's assets.extra/gallery.jsonl, for pictures and annotations.",
)
_CERTIFICATE = flags.DEFINE_string(
  'certificate',
  '',
  "With --server: PEM file of the authority that signed the server's certificate.",
)
_RUNTIME = flags.DEFINE_enum(
  'runtime',
  'tensorflow',
  runtimes.RUNTIMES,
  'With --index or --source: what embeds pictures. openvino is faster on processors, and needs the '
  'extra of that name.',
)


def model() -> str:
  """What --model names, '' if nothing."""
  return _MODEL.value or ''


def runtime() -> str:
  """What --runtime names."""
  return _RUNTIME.value


def check(source: str = ''):
  """Refuses flags that name nothing to search, or two things.

  Args:
    source: pictures that are searched without an index, '' if none are.

  Raises:
    app.UsageError: the message says what to give.
  """
  if source and (_INDEX.value or _SERVER.value):
    raise app.UsageError('Give --source, --index or --server, one of them.')
  folder = source or _MODEL.value or _INDEX.value
  if not (folder or _SERVER.value):
    raise app.UsageError('Give --index=DIRECTORY, --model=DIRECTORY or --server=ADDRESS.')
  if folder and _SERVER.value:
    raise app.UsageError('Give --server or a folder (--model, --index), not both.')
  if _RUNTIME.present and not (source or _INDEX.value):
    raise app.UsageError('--runtime needs --index or --source: a model alone runs in TensorFlow.')
  for flag in (_MODEL_NAME, _VERSION, _GALLERY, _CERTIFICATE):
    if flag.present and not _SERVER.value:
      raise app.UsageError(f'--{flag.name} needs --server: it is about a model of a TF Serving.')


def is_index() -> bool:
  """Whether an index is searched, which alone can filter."""
  return bool(_INDEX.value)


def opened(*, timeout: float, resident: bool = False, check: bool | None = None) -> Source:
  """What the flags name, ready to be asked.

  Args:
    timeout: seconds for a call to a server.
    resident: keep the concepts of an index in memory.
    check: compare the checksums of all files of an index; see `tfreid.index.open`.
  """
  if _INDEX.value:
    import tfreid.index

    return tfreid.index.open(
      _INDEX.value,
      model=_MODEL.value or '',
      resident=resident,
      check=check,
      runtime=_RUNTIME.value,
    )
  if _SERVER.value:
    from tfreid.search import remote

    wanted = _VERSION.value
    return remote.ServedModel(
      _SERVER.value,
      _MODEL_NAME.value,
      version=int(wanted) if wanted.isdecimal() else None,
      label='' if wanted.isdecimal() else wanted,
      timeout=timeout,
      gallery_file=_GALLERY.value,
      certificate=_CERTIFICATE.value,
    )
  from tfreid.search import exported

  model = exported.ExportedModel(startup.given(_MODEL))
  model.check_gallery()
  return model
