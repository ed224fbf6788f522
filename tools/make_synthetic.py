"""Draws a data set of synthetic people, in Market-1501's own folder layout.

  tools/make_synthetic.py --out=DIRECTORY
  tools/make_synthetic.py --out=DIRECTORY --difficulty=easy --num_train_people=200 --seed=3
  tools/make_synthetic.py --sheet=people.png            # only a picture of some of them

Same parameters, same files. Running it again where the same data set stands does nothing.
"""

from __future__ import annotations

import os
import sys

from absl import app, flags

# So that the tool runs from a checkout, from any folder, installed or not.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
  sys.path.insert(0, ROOT)

FLAGS = flags.FLAGS

if __name__ == '__main__':
  # The processes that draw import this file again, under another name, and need no flags.
  flags.DEFINE_string('out', None, 'Folder to write the data set to.')
  flags.DEFINE_multi_string('gin_file', [], 'Configuration, searched for in gin/ too. Repeatable.')
  flags.DEFINE_multi_string(
    'gin_bindings', [], "Further bindings, e.g. 'synthetic.Difficulty.blur = 1.5'. Repeatable."
  )
  flags.DEFINE_integer('num_train_people', None, 'People in the training split.', lower_bound=1)
  flags.DEFINE_integer('num_test_people', None, 'People in the test split.', lower_bound=1)
  flags.DEFINE_integer('image_height', None, 'Height of the crops in pixels.', lower_bound=1)
  flags.DEFINE_integer('image_width', None, 'Width of the crops in pixels.', lower_bound=1)
  flags.DEFINE_integer('seed', None, 'Seed; the same seed gives the same files.', lower_bound=0)
  flags.DEFINE_enum('difficulty', None, ['easy', 'default', 'hard'], 'Named difficulty.')
  flags.DEFINE_string('sheet', None, 'Also write a labelled contact sheet to this PNG file.')
  flags.DEFINE_integer('workers', None, 'Processes; all usable cores if not given.', lower_bound=1)
  flags.DEFINE_bool('overwrite', False, 'Replace a synthetic data set with other parameters.')
  flags.DEFINE_bool('progress', True, 'Show a progress bar.')


def configured_people():
  """Returns the SyntheticPeople that gin files, bindings and flags describe."""
  import gin

  from tfreid.data import synthetic

  # Files that the given ones include are searched for by gin.
  gin.add_config_file_search_path(os.path.join(ROOT, 'gin'))
  # Bindings on the command line may name the generator without importing it; the one binding
  # registers it, at the value it has anyway.
  preamble = [
    'from __gin__ import dynamic_registration',
    'from tfreid.data import synthetic',
    'synthetic.SyntheticPeople.seed = 0',
  ]
  try:
    gin.parse_config(preamble)
    for path in FLAGS.gin_file:
      gin.parse_config_file(_found(path))
    gin.parse_config(preamble[:2] + FLAGS.gin_bindings)
    make = gin.get_configurable(synthetic.SyntheticPeople)
    given = {}
    for name in ('num_train_people', 'num_test_people', 'seed', 'difficulty'):
      if getattr(FLAGS, name) is not None:
        given[name] = getattr(FLAGS, name)
    if (FLAGS.image_height is None) != (FLAGS.image_width is None):
      raise ValueError('--image_height and --image_width go together: give both or none.')
    if FLAGS.image_height is not None:
      given['image_size'] = (FLAGS.image_height, FLAGS.image_width)
    return make(**given)
  except (AttributeError, ImportError, LookupError, NameError, SyntaxError, TypeError) as error:
    raise ValueError(f'The configuration is wrong: {error}') from error


def _found(path: str) -> str:
  """Returns the path as it is or below gin/; gin would log an ERROR for each try."""
  below = os.path.join(ROOT, 'gin', path)
  if not os.path.exists(path) and not os.path.exists(below):
    raise ValueError(f'There is no gin file {path}, neither here nor in {ROOT}/gin.')
  return path if os.path.exists(path) else below


def write_sheet(people, path: str, num_people: int = 24) -> None:
  """Writes a contact sheet of the first training people, a row of views for each."""
  import io

  import PIL.Image

  from tfreid.data import synthetic

  images, labels = [], []
  for person in people.population.train[:num_people]:
    crops = people.crops(person, 'bounding_box_train')
    chosen = {crop.view: (number, crop) for number, crop in reversed(list(enumerate(crops)))}
    chosen = sorted(chosen.values())
    rest = [pair for pair in enumerate(crops) if pair not in chosen]
    for i, (number, crop) in enumerate((chosen + rest)[:4]):
      images.append(PIL.Image.open(io.BytesIO(people.draw(person, number, crop))))
      labels.append(person.attributes.words() if i == 0 else f'camera {crop.camera}\n{crop.view}')
    while len(images) % 4:
      images.append(PIL.Image.new('RGB', images[0].size, 'white'))
      labels.append('')
  scale = max(1, round(160 / people.image_size[0]))
  sheet = synthetic.contact_sheet(images, labels=labels, columns=12, scale=scale)
  folder = os.path.dirname(os.path.abspath(path))
  os.makedirs(folder, exist_ok=True)
  part = f'{path}.part'
  sheet.save(part, 'PNG')
  os.replace(part, path)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {" ".join(argv[1:])}')
  if FLAGS.out is None and FLAGS.sheet is None:
    raise app.UsageError('Give --out=DIRECTORY for a data set, or --sheet=FILE.png for a look.')
  try:
    people = configured_people()
    if FLAGS.out is not None:
      report = people.write(
        FLAGS.out, workers=FLAGS.workers, progress=FLAGS.progress, overwrite=FLAGS.overwrite
      )
      counts = ', '.join(f'{number} in {folder}' for folder, number in report.images.items())
      done = 'written' if report.fresh else 'the same data set is there already, nothing to do'
      print(f'{report.directory}: {done}.')
      print(f'  crops: {counts}')
      print(f'  test semantic ids: {report.test_ids}, {report.unseen_ids} of them unseen')
    if FLAGS.sheet is not None:
      write_sheet(people, FLAGS.sheet)
      print(f'{FLAGS.sheet}: contact sheet written.')
  except (ValueError, OSError) as error:
    print(f'make_synthetic: {error}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  app.run(main)
