"""Draws a data set of synthetic people, in Market-1501's own folder layout.

  tfreid synthesize --out=data/synthetic
  tfreid synthesize --out=data/easy --difficulty=easy --num_train_people=200 --seed=3
  tfreid synthesize --sheet=people.png            # only a picture of some of them

Starts from gin/synthetic_people.gin; further gin files, bindings and flags win over it, in this
order. Same parameters, same files: where the same data set stands already, nothing is done.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

from absl import app, flags

from tfreid import storage
from tfreid.cli import configuration, gin_flags, startup

if TYPE_CHECKING:
  import PIL.Image

flags.adopt_module_key_flags(gin_flags)
_OUT = flags.DEFINE_string('out', None, 'Folder to write the data set to.')
_GIN_FILE = flags.DEFINE_multi_string('gin_file', [], 'gin file, repeatable; later ones win.')
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], "One more binding, repeatable: 'synthetic.Difficulty.blur = 1.5'."
)
_TRAIN = flags.DEFINE_integer('num_train_people', None, 'People in training.', lower_bound=1)
_TEST = flags.DEFINE_integer('num_test_people', None, 'People in the test split.', lower_bound=1)
_HEIGHT = flags.DEFINE_integer('image_height', None, 'Height of the crops.', lower_bound=1)
_WIDTH = flags.DEFINE_integer('image_width', None, 'Width of the crops.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', None, 'The same seed gives the same files.', lower_bound=0)
_DIFFICULTY = flags.DEFINE_enum(
  'difficulty', None, ['easy', 'default', 'hard'], 'A named level instead of the one in gin.'
)
_SHEET = flags.DEFINE_string('sheet', None, 'Write a labelled contact sheet to this PNG file.')
_WORKERS = flags.DEFINE_integer(
  'workers', None, 'Processes that draw; all usable cores if not given.', lower_bound=1
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace a synthetic data set that has other parameters.'
)
_PROGRESS = flags.DEFINE_bool('progress', True, 'Show a progress bar.')


def configured_people():
  """Returns the SyntheticPeople that gin files, bindings and flags describe."""
  import gin

  from tfreid.data import synthetic

  configuration.configure(
    ['synthetic_people.gin', *_GIN_FILE.value],
    _GIN_BINDINGS.value,
    allow_imports=gin_flags.allow_imports(),
    root='tfreid.data.synthetic.SyntheticPeople',
  )
  flags_given: dict[str, Any] = {
    'num_train_people': _TRAIN.value,
    'num_test_people': _TEST.value,
    'seed': _SEED.value,
    'difficulty': _DIFFICULTY.value,
  }
  given = {name: value for name, value in flags_given.items() if value is not None}
  if (_HEIGHT.value is None) != (_WIDTH.value is None):
    raise ValueError('--image_height and --image_width go together: give both or neither.')
  if _HEIGHT.value is not None:
    given['image_size'] = (_HEIGHT.value, _WIDTH.value)
  try:
    return gin.get_configurable(synthetic.SyntheticPeople)(**given)
  except TypeError as error:
    raise ValueError(f'A value in the configuration has the wrong type: {error}') from error


def write_sheet(people, path: str, num_people: int = 24) -> None:
  """Writes a contact sheet of the first training people, up to four crops of each."""
  import PIL.Image

  from tfreid.data import synthetic

  images: list[PIL.Image.Image] = []
  labels: list[str] = []
  for person in people.population.train[:num_people]:
    crops = list(enumerate(people.crops(person, 'bounding_box_train')))
    # One of each view first, so that a sheet shows more than the fronts.
    by_view = {crop.view: (number, crop) for number, crop in reversed(crops)}
    chosen = sorted(by_view.values())
    chosen += [pair for pair in crops if pair not in chosen]
    for i, (number, crop) in enumerate(chosen[:4]):
      drawn = io.BytesIO(people.draw(person, number, crop))
      images.append(PIL.Image.open(drawn, formats=('JPEG',)))
      labels.append(person.attributes.words() if i == 0 else f'camera {crop.camera}\n{crop.view}')
    while len(images) % 4:
      images.append(PIL.Image.new('RGB', images[0].size, 'white'))
      labels.append('')
  scale = max(1, round(160 / people.image_size[0]))
  sheet = synthetic.contact_sheet(images, labels=labels, columns=12, scale=scale)
  path = os.path.abspath(os.path.expanduser(path))
  storage.make_directories(os.path.dirname(path))
  content = io.BytesIO()
  sheet.save(content, 'PNG')
  storage.write_bytes(path, content.getvalue())


def main(argv):
  """Writes the data set and the sheet that the flags ask for."""
  startup.no_arguments(argv)
  if _OUT.value is None and _SHEET.value is None:
    raise app.UsageError('Give --out=DIRECTORY for a data set, or --sheet=FILE.png for a look.')
  with startup.clear_errors():
    people = configured_people()
    if _OUT.value is not None:
      try:
        written = people.write(
          _OUT.value,
          workers=_WORKERS.value,
          progress=_PROGRESS.value,
          overwrite=_OVERWRITE.value,
        )
      except KeyboardInterrupt:
        print('\nInterrupted: no data set was written.', file=sys.stderr)
        sys.exit(130)
      counts = ', '.join(f'{number} in {folder}' for folder, number in written.images.items())
      if written.fresh:
        print(f'{written.directory}: written.')
      else:
        print(f'{written.directory}: this very data set is there already; nothing to do.')
      print(f'  crops: {counts}')
      print(f'  semantic ids in test: {written.test_ids}, unseen in training: {written.unseen_ids}')
    if _SHEET.value is not None:
      write_sheet(people, _SHEET.value)
      print(f'{_SHEET.value}: contact sheet written.')
