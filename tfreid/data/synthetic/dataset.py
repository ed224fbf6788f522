"""Writes synthetic people as a folder in Market-1501's own layout, annotation file included."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tfreid import storage, threads
from tfreid.data.synthetic import crops, population, scene
from tfreid.data.synthetic.annotation import annotation_file
from tfreid.data.synthetic.difficulty import Difficulty, as_difficulty
from tfreid.data.synthetic.figure import VIEWS
from tfreid.data.synthetic.identity import Identity, sample_identity
from tfreid.data.synthetic.population import Person
from tfreid.data.synthetic.workers import shared_out

# Raised whenever the same parameters would give other files than before.
VERSION = 3
MARKER = 'synthetic.json'
FOLDERS = ('bounding_box_train', 'bounding_box_test', 'query')
ANNOTATION = 'market_attribute.mat'

_README = """\
Synthetic people
================

Every picture in this folder was drawn by a program. No real person is shown.

The folder has the layout, the file names and the annotation file (market_attribute.mat) of
Market-1501, so that the same loader reads both. It is made for tests, demonstrations and
comparisons where photographs of people cannot or should not be used. Results on it say nothing
about how well a model finds real people.

{train} people in bounding_box_train, {test} other people in bounding_box_test and query.
Files that begin with -1 are false detections, files that begin with 0000 are distractors.
Parameters and seed: synthetic.json.
"""


class Crop(NamedTuple):
  """A file to be: which folder and name, which camera and view."""

  folder: str
  name: str
  camera: int
  view: str


class Written(NamedTuple):
  """What `SyntheticPeople.write` did.

  Attributes:
    directory: the data set.
    images: files by folder.
    test_ids: distinct attribute combinations of the test split.
    unseen_ids: how many of them no training person has.
    fresh: False when the identical data set was there already.
  """

  directory: pathlib.Path
  images: dict[str, int]
  test_ids: int
  unseen_ids: int
  fresh: bool


class SyntheticPeople:
  """A data set of drawn people, defined by a few numbers and a seed.

  The same arguments give the same files, byte for byte, however many processes draw them (on one
  version of Pillow and numpy).

  Args:
    num_train_people: people in bounding_box_train.
    num_test_people: people in bounding_box_test and query.
    images_per_person: (fewest, most) crops of a person, over all cameras; at least 2.
    image_size: (height, width) of the crops; Market-1501's are (128, 64).
    difficulty: a Difficulty, or 'easy', 'default' or 'hard'.
    unseen_share: share of the test split's semantic IDs (distinct attribute combinations) that
      no training person has, in [0, 1].
    num_junk: false detections ('-1_...') in bounding_box_test.
    num_distractors: crops of people without annotation ('0000_...') in bounding_box_test.
    seed: non-negative integer.

  Raises:
    ValueError: an argument is outside its range.
  """

  def __init__(
    self,
    num_train_people: int = 400,
    num_test_people: int = 200,
    images_per_person: tuple[int, int] = (6, 14),
    image_size: tuple[int, int] = (128, 64),
    difficulty: Difficulty | str = 'default',
    unseen_share: float = 0.4,
    num_junk: int = 8,
    num_distractors: int = 8,
    seed: int = 0,
  ):
    if num_train_people < 1 or num_test_people < 1 or num_train_people + num_test_people > 9999:
      raise ValueError(
        'num_train_people and num_test_people must be at least 1 and together at most 9999 (ids '
        f'have four digits), not {num_train_people} and {num_test_people}.'
      )
    fewest, most = images_per_person
    if not 2 <= fewest <= most <= 500:
      raise ValueError(
        'images_per_person must be (fewest, most) with 2 <= fewest <= most <= 500 (a query and a '
        f'gallery crop at least), not {tuple(images_per_person)}.'
      )
    height, width = image_size
    if not (32 <= height <= 1024 and 16 <= width <= 1024):
      raise ValueError(
        'image_size must be (height, width) of at least (32, 16) and at most (1024, 1024), not '
        f'{tuple(image_size)}.'
      )
    if not 0.0 <= unseen_share <= 1.0:
      raise ValueError(f'unseen_share must be in [0, 1], not {unseen_share}.')
    if num_junk < 0 or num_distractors < 0:
      raise ValueError('num_junk and num_distractors must not be negative.')
    if seed < 0:
      raise ValueError(f'seed must not be negative, not {seed}.')
    self.num_train_people = int(num_train_people)
    self.num_test_people = int(num_test_people)
    self.images_per_person = (int(fewest), int(most))
    self.image_size = (int(height), int(width))
    self.difficulty = as_difficulty(difficulty)
    self.unseen_share = float(unseen_share)
    self.num_junk = int(num_junk)
    self.num_distractors = int(num_distractors)
    self.seed = int(seed)

  @property
  def parameters(self) -> dict:
    """All that decides what the files contain, as JSON-able values."""
    names = (
      'num_train_people',
      'num_test_people',
      'images_per_person',
      'image_size',
      'unseen_share',
      'num_junk',
      'num_distractors',
      'seed',
    )
    values = {'version': VERSION, **{name: getattr(self, name) for name in names}}
    values['difficulty'] = dataclasses.asdict(self.difficulty)
    return json.loads(json.dumps(values))

  @functools.cached_property
  def population(self) -> population.Population:
    """The people of both splits."""
    return population.sample_population(
      self.num_train_people,
      self.num_test_people,
      unseen_share=self.unseen_share,
      difficulty=self.difficulty,
      seed=self.seed,
    )

  @functools.cached_property
  def cameras(self) -> tuple[scene.Camera, ...]:
    """The six cameras."""
    return scene.make_cameras(self.seed, self.difficulty)

  def identity(self, person: Person) -> Identity:
    """Returns a person's looks."""
    rng = np.random.default_rng([self.seed, 303, person.number])
    return sample_identity(person.attributes, rng, self.difficulty)

  def crops(self, person: Person, folder: str) -> list[Crop]:
    """Returns the crops of a person; `folder` is where they go, but for the queries.

    A person walks past some of the six cameras and is seen by each mostly from one side. Of a
    test person every camera that has another crop to spare, or every fifth crop at least, gives
    one to the query folder.
    """
    rng = np.random.default_rng([self.seed, 404, person.number])
    fewest, most = self.images_per_person
    total = int(rng.integers(fewest, most + 1))
    num_cameras = min(total, int(rng.integers(2, scene.NUM_CAMERAS + 1)))
    cameras = 1 + rng.permutation(scene.NUM_CAMERAS)[:num_cameras]
    counts = np.ones(num_cameras, np.int64)
    counts += rng.multinomial(total - num_cameras, np.full(num_cameras, 1 / num_cameras))
    planned = []
    for camera, count in zip(cameras, counts):
      sequence, frame = int(rng.integers(1, 7)), int(rng.integers(1, 100_000))
      first = int(rng.integers(len(VIEWS)))
      for _ in range(count):
        turned = rng.random() < 0.3
        view = VIEWS[int(rng.integers(len(VIEWS))) if turned else first]
        name = f'{person.person_id}_c{camera}s{sequence}_{frame:06d}_{rng.integers(1, 5):02d}.jpg'
        planned.append(Crop(folder, name, int(camera), view))
        frame += int(rng.integers(5, 60))
    if folder == 'bounding_box_test':
      queries: set[int] = set()
      for i in rng.permutation(total):
        if planned[i].camera not in queries and len(queries) < max(1, total // 5):
          queries.add(planned[i].camera)
          planned[i] = planned[i]._replace(folder='query')
    return planned

  def draw(self, person: Person, number: int, crop: Crop) -> bytes:
    """Returns the JPEG file of a person's crop; `number` is its place in `crops(person, ...)`."""
    rng = np.random.default_rng([self.seed, 505, person.number, number])
    image = crops.draw_person(
      person.attributes,
      self.identity(person),
      self.cameras[crop.camera - 1],
      crop.view,
      rng,
      image_size=self.image_size,
      difficulty=self.difficulty,
    )
    return scene.encode_jpeg(image, rng, self.difficulty)

  def pictures(self) -> Iterator[bytes]:
    """The JPEG files of the training people's crops, one person after the other."""
    for person in self.population.train:
      for number, crop in enumerate(self.crops(person, FOLDERS[0])):
        yield self.draw(person, number, crop)

  def write(
    self, directory, *, workers: int | None = None, progress: bool = False, overwrite: bool = False
  ) -> Written:
    """Writes the data set, whole or not at all.

    It is made in a hidden folder beside `directory` and renamed when it is complete.

    Args:
      directory: the folder to make.
      workers: processes that draw; None = one for each core that this process may use.
      progress: whether to show a progress bar on stderr.
      overwrite: whether a synthetic data set with other parameters may be replaced.

    Returns:
      Written; its `fresh` is False when this very data set was there already.

    Raises:
      FileExistsError: the folder holds something else, or a synthetic data set with other
        parameters and `overwrite` is not set.
      ValueError: it is there, but one of its files is damaged and `overwrite` is not set.
    """
    directory = pathlib.Path(os.path.abspath(os.path.expanduser(directory)))
    present = self._present(directory, overwrite)
    if present is not None:
      return present
    if workers is None:
      workers = threads.usable_cores()
    if workers < 1:
      raise ValueError(f'workers must be at least 1, not {workers}.')
    storage.make_directories(directory.parent)
    part = directory.parent / f'.{directory.name}.part-{os.getpid()}'
    shutil.rmtree(part, ignore_errors=True)
    try:
      for folder in FOLDERS:
        (part / folder).mkdir(parents=True)
      images = self._draw_all(part, workers, progress)
      storage.write_bytes(part / ANNOTATION, annotation_file(self.population))
      people = self.population
      readme = _README.format(train=len(people.train), test=len(people.test))
      storage.write_text(part / 'README.txt', readme)
      seen = {person.attributes for person in people.train}
      test = {person.attributes for person in people.test}
      result = {
        'synthetic': True,
        'parameters': self.parameters,
        'images': images,
        'test_ids': len(test),
        'unseen_ids': len(test - seen),
      }
      storage.write_json(part / MARKER, dict(sorted(result.items())))
      # Size and checksum of each crop, so that a damaged one is noticed here and not trained on.
      storage.seal(part)
      storage.put_directory(part, directory)
    finally:
      shutil.rmtree(part, ignore_errors=True)
    return Written(directory, images, len(test), len(test - seen), True)

  def _present(self, directory: pathlib.Path, overwrite: bool) -> Written | None:
    """Returns what is there if it is this data set; None if the place is free or may be freed."""
    if not directory.exists():
      return None
    if not directory.is_dir():
      raise FileExistsError(f'{directory} is a file. Choose another folder to write to.')
    if not any(directory.iterdir()):
      return None
    try:
      marker = storage.read_json(directory / MARKER, what='description', required=False)
      synthetic = marker['synthetic'] is True
    except (OSError, ValueError, KeyError, TypeError):
      synthetic = False
    if not synthetic:
      raise FileExistsError(
        f'{directory} exists and is not a synthetic data set (it has no valid {MARKER}), so it is '
        'never overwritten. Choose another folder, or remove it yourself.'
      )
    if marker.get('parameters') == self.parameters:
      # Data sets of earlier releases have no seal.
      if (directory / storage.SEAL).exists() and not overwrite:
        storage.check_seal(directory, what='synthetic data set')
      elif overwrite and _is_damaged(directory):
        return None
      return Written(directory, marker['images'], marker['test_ids'], marker['unseen_ids'], False)
    if overwrite:
      return None
    theirs = marker.get('parameters', {})
    differing = sorted(k for k, v in self.parameters.items() if theirs.get(k) != v)
    raise FileExistsError(
      f'{directory} already holds a synthetic data set with other parameters (differing: '
      f'{", ".join(differing)}). Choose another folder, or pass overwrite (--overwrite) to '
      'replace it.'
    )

  def _draw_all(self, part: pathlib.Path, workers: int, progress: bool) -> dict[str, int]:
    """Draws every crop into `part`; returns the number of files by folder."""
    people = self.population
    jobs = [('bounding_box_train', i) for i in range(len(people.train))]
    jobs += [('bounding_box_test', i) for i in range(len(people.test))]
    jobs.append(('strangers', 0))
    images = dict.fromkeys(FOLDERS, 0)
    draw = functools.partial(self._draw_job, part)
    for written in shared_out(draw, jobs, workers=workers, progress=progress):
      for folder, number in written.items():
        images[folder] += number
    return images

  def _draw_job(self, part: pathlib.Path, job) -> dict[str, int]:
    """Draws one person's crops, or all junk and distractors; returns files by folder."""
    folder, index = job
    if folder == 'strangers':
      return self._draw_strangers(part / 'bounding_box_test')
    people = self.population.train if folder == 'bounding_box_train' else self.population.test
    person = people[index]
    written: dict[str, int] = {}
    for number, crop in enumerate(self.crops(person, folder)):
      (part / crop.folder / crop.name).write_bytes(self.draw(person, number, crop))
      written[crop.folder] = written.get(crop.folder, 0) + 1
    return written

  def _draw_strangers(self, folder: pathlib.Path) -> dict[str, int]:
    """Draws the false detections and the people without annotation."""
    kinds = ['-1'] * self.num_junk + ['0000'] * self.num_distractors
    for number, kind in enumerate(kinds):
      rng = np.random.default_rng([self.seed, 606, number])
      camera = self.cameras[int(rng.integers(len(self.cameras)))]
      attributes = population.sample_attributes(rng, self.difficulty.tail)
      identity = sample_identity(attributes, rng, self.difficulty)
      look: dict[str, Any] = {'image_size': self.image_size, 'difficulty': self.difficulty}
      if kind == '-1':
        person = (attributes, identity) if rng.random() < 0.7 else None
        image = crops.draw_junk(camera, rng, person=person, **look)
      else:
        view = VIEWS[int(rng.integers(len(VIEWS)))]
        image = crops.draw_person(attributes, identity, camera, view, rng, **look)
      name = f'{kind}_c{camera.number}s{rng.integers(1, 7)}_{100_000 + number:06d}_00.jpg'
      (folder / name).write_bytes(scene.encode_jpeg(image, rng, self.difficulty))
    return {'bounding_box_test': len(kinds)}


def _is_damaged(directory: pathlib.Path) -> bool:
  """Whether a file of a sealed data set is missing or changed."""
  try:
    return bool(storage.damage(directory))
  except FileNotFoundError:
    return False  # of an earlier release, without a seal
  except ValueError:
    return True
