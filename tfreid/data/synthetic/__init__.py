"""Synthetic people: drawn pedestrians with attributes, in Market-1501's own folder layout.

`SyntheticPeople(...).write(directory)` makes a data set that the Market-1501 loader reads;
`draw_person` draws one crop and `contact_sheet` many. Nothing here imports TensorFlow, so that the
processes that draw start fast.

This file is the package's door: others import what it names, and none of the modules beside it.
"""

from tfreid.data.synthetic.crops import draw_person
from tfreid.data.synthetic.dataset import SyntheticPeople, Written
from tfreid.data.synthetic.difficulty import LEVELS, Difficulty
from tfreid.data.synthetic.figure import VIEWS
from tfreid.data.synthetic.identity import Identity, sample_identity
from tfreid.data.synthetic.population import Attributes, Person, Population, sample_attributes
from tfreid.data.synthetic.scene import Camera, make_cameras
from tfreid.data.synthetic.sheet import contact_sheet

__all__ = [
  'LEVELS',
  'VIEWS',
  'Attributes',
  'Camera',
  'Difficulty',
  'Identity',
  'Person',
  'Population',
  'SyntheticPeople',
  'Written',
  'contact_sheet',
  'draw_person',
  'make_cameras',
  'sample_attributes',
  'sample_identity',
]
