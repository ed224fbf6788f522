"""What the attributes of one data set mean in the terms of another: the written table. Floor 1.

Each entry is an attribute that two data sets name, or one that only one of them names and that is
worth asking for. A `Reading` says in which columns of a data set's annotations each value is to be
found, how sure it is that both mean the same, and where they differ. `shared_attributes` makes
schemas, views and queries of it.

Read from: the column names of PETA.mat and the readme of PETA (Deng et al. 2014; ages in its
names), the documentation of the annotations of Market-1501 and DukeMTMC-reID (Lin et al. 2019), and
the counts of the three files. No picture was looked at for it; where the names leave open what
annotators did, the certainty says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tfreid.data import dukemtmc, market1501, peta
from tfreid.data.words import color_words

PETA, MARKET, DUKE = peta.NAME, market1501.NAME, dukemtmc.NAME
SCHEMAS = {
  PETA: peta.SCHEMA,
  MARKET: market1501.SCHEMA,
  DUKE: dukemtmc.SCHEMA,
}

SAME = 'same'  # by its name and by its documentation the same question to the annotators
NEAR = 'near'  # the same question, with another border between its answers
LOOSE = 'loose'  # partly another question; a result on it says little about the model
CERTAINTIES = (SAME, NEAR, LOOSE)

# A column of an annotation file, and its value that says so.
Said = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Reading:
  """Where one data set says an attribute.

  Attributes:
    values: for each value, the columns any of which says it. A value that is not here cannot be
      said by the data set.
    certainty: SAME, NEAR or LOOSE: how sure it is that the data set means this attribute.
    note: where the meaning differs, or what the counts show.
    otherwise: the value of whoever none of the columns is on for; None: it is not said.
    leaves_open: columns that leave the whole attribute unsaid, whatever the others say.
  """

  values: Mapping[str, tuple[Said, ...]]
  certainty: str
  note: str = ''
  otherwise: str | None = None
  leaves_open: tuple[Said, ...] = ()


@dataclasses.dataclass(frozen=True)
class Correspondence:
  """An attribute and where each data set says it.

  Attributes:
    name: of the attribute.
    values: two for a binary attribute; any other has a column for each.
    readings: by the name of the data set.
    words: as in `Attribute`.
    is_binary: whether the two values are one column.
    neighbors: pairs of values that annotators who know only one of them may have called by it.
  """

  name: str
  values: tuple[str, ...]
  readings: Mapping[str, Reading]
  words: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  is_binary: bool = True
  neighbors: frozenset[frozenset[str]] = frozenset()


def _peta(*names: str) -> tuple[Said, ...]:
  return tuple((name, 1) for name in names)


def _thing(name: str, words: tuple[str, ...] = (), **readings: Reading) -> Correspondence:
  """A yes-or-no attribute; readings by 'peta', 'market' and 'duke'."""
  names = {'peta': PETA, 'market': MARKET, 'duke': DUKE}
  return Correspondence(
    name,
    ('no', 'yes'),
    {names[key]: reading for key, reading in readings.items()},
    words={'yes': words} if words else {},
  )


def _yes(columns: tuple[Said, ...], certainty: str = SAME, note: str = '') -> Reading:
  return Reading({'yes': columns}, certainty, note, otherwise='no')


def _words(*phrases: tuple[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
  return dict(phrases)


# Neighbouring colours. A brown top in a data set without brown was called black, gray, red or
# yellow, or nothing; which, nobody knows.
_NEIGHBORS = frozenset(
  frozenset(pair)
  for pair in (
    *(('pink', 'red'), ('pink', 'purple'), ('pink', 'white')),
    *(('orange', 'red'), ('orange', 'yellow'), ('orange', 'brown')),
    *(('brown', 'black'), ('brown', 'gray'), ('brown', 'red'), ('brown', 'yellow')),
    *(('yellow', 'white'), ('yellow', 'green'), ('purple', 'blue'), ('purple', 'red')),
  )
)

_TOPS = ('top', 'shirt', 't-shirt', 'jacket', 'coat', 'sweater', 'upper body')
_BOTTOMS = (
  *('pants', 'trousers', 'jeans', 'shorts', 'skirt', 'dress', 'bottoms', 'leggings'),
  'lower body',
)
_SHOES = ('footwear', 'shoes', 'sneakers', 'boots', 'sandals')
_HAIR_COLORS = ('black', 'brown', 'gray', 'white', 'yellow')


def _peta_colors(prefix: str, colors: tuple[str, ...], note: str) -> Reading:
  return Reading(
    {c: _peta(prefix + c.replace('gray', 'grey').capitalize()) for c in colors}, NEAR, note
  )


def _letters(prefix: str, colors: tuple[str, ...], note: str) -> Reading:
  return Reading({color: ((prefix + color, 2),) for color in colors}, NEAR, note)


def _colors(name, garments, *, colors=peta.COLORS, **readings) -> Correspondence:
  names = {'peta': PETA, 'market': MARKET, 'duke': DUKE}
  return Correspondence(
    name,
    colors,
    {names[key]: reading for key, reading in readings.items()},
    words=color_words(colors, garments),
    is_binary=False,
    neighbors=_NEIGHBORS,
  )


_LONG_LOWER = _peta('lowerBodyTrousers', 'lowerBodyJeans', 'lowerBodySuits', 'lowerBodyLongSkirt')
_SHORT_LOWER = _peta('lowerBodyShorts', 'lowerBodyHotPants', 'lowerBodyShortSkirt')
_SKIRTS = _peta('lowerBodyShortSkirt', 'lowerBodyLongSkirt')
_PANTS = _peta(
  *('lowerBodyTrousers', 'lowerBodyJeans', 'lowerBodySuits', 'lowerBodyShorts'),
  *('lowerBodyHotPants', 'lowerBodyCapri'),
)

TABLE: tuple[Correspondence, ...] = (
  Correspondence(
    'age',
    ('child', 'young', 'adult', 'old'),
    {
      PETA: Reading(
        {
          'child': _peta('personalLess15'),
          'young': _peta('personalLess30'),
          'adult': _peta('personalLess45', 'personalLess60'),
          'old': _peta('personalLarger60'),
        },
        NEAR,
        'Below 15, 15 to 30, 30 to 60, above 60, as guessed from far away.',
      ),
      MARKET: Reading(
        {
          'child': (('age', 1),),
          'young': (('age', 2),),
          'adult': (('age', 3),),
          'old': (('age', 4),),
        },
        LOOSE,
        "Young, teenager, adult, old, without years. 1,209 of 1,501 are 'teenager': students of a "
        "campus, so it is read as young, not as 13 to 19; where 'adult' begins is not known.",
      ),
    },
    words={
      'child': ('child', 'kid'),
      'young': ('young', 'young person', 'teenager', 'teen'),
      'adult': ('adult', 'grown-up', 'middle-aged'),
      'old': ('old', 'elderly', 'old person', 'elderly person', 'senior'),
    },
    is_binary=False,
  ),
  Correspondence(
    'gender',
    ('male', 'female'),
    {
      PETA: Reading(
        {'male': _peta('personalMale'), 'female': _peta('personalFemale')},
        SAME,
        'As annotated from the look. One image of 19,000 has neither.',
      ),
      MARKET: Reading({'male': (('gender', 1),), 'female': (('gender', 2),)}, SAME),
      DUKE: Reading({'male': (('gender', 1),), 'female': (('gender', 2),)}, SAME),
    },
    words={'male': ('male', 'man'), 'female': ('female', 'woman')},
  ),
  Correspondence(
    'hair',
    ('short', 'long'),
    {
      PETA: Reading(
        {'short': _peta('hairShort'), 'long': _peta('hairLong')},
        NEAR,
        'Where long begins is not known. Bald people have neither and are left unsaid.',
      ),
      MARKET: Reading({'short': (('hair', 1),), 'long': (('hair', 2),)}, NEAR),
    },
    words={
      'short': ('short hair', 'short haired', 'short-haired'),
      'long': ('long hair', 'long haired', 'long-haired'),
    },
  ),
  Correspondence(
    'sleeves',
    ('long', 'short'),
    {
      PETA: Reading(
        {
          'long': _peta('upperBodyLongSleeve'),
          'short': _peta('upperBodyShortSleeve', 'upperBodyNoSleeve'),
        },
        NEAR,
        'Sleeveless counts as short. 84 % are long: other seasons than on the campus of Market.',
      ),
      MARKET: Reading(
        {'long': (('up', 1),), 'short': (('up', 2),)},
        NEAR,
        '94 % are short: filmed in summer. Sleeveless has no value of its own.',
      ),
    },
    words={
      'long': ('long sleeves', 'long sleeve', 'long-sleeved', 'long sleeved'),
      'short': ('short sleeves', 'short sleeve', 'short-sleeved', 'short sleeved'),
    },
  ),
  Correspondence(
    'lower_length',
    ('long', 'short'),
    {
      PETA: Reading(
        {'long': _LONG_LOWER, 'short': _SHORT_LOWER},
        NEAR,
        'Made of the kinds of garment. Capri pants (326 images) lie between and are left unsaid.',
        leaves_open=_peta('lowerBodyCapri'),
      ),
      MARKET: Reading({'long': (('down', 1),), 'short': (('down', 2),)}, NEAR),
    },
    words={
      'long': ('long lower body clothing', 'long pants', 'long trousers', 'long skirt'),
      'short': ('short lower body clothing', 'shorts', 'short pants', 'short skirt'),
    },
  ),
  Correspondence(
    'lower_type',
    ('dress', 'pants'),
    {
      PETA: Reading(
        {'dress': _SKIRTS, 'pants': _PANTS},
        NEAR,
        'Skirts; PETA has no word for a dress. 233 images have both (a skirt over trousers) and '
        'are left unsaid.',
      ),
      MARKET: Reading({'dress': (('clothes', 1),), 'pants': (('clothes', 2),)}, NEAR),
    },
    words={'dress': ('dress', 'skirt'), 'pants': ('pants', 'trousers')},
  ),
  _thing(
    'hat',
    ('hat', 'cap'),
    peta=_yes(_peta('accessoryHat')),
    market=_yes((('hat', 2),), note='43 of 1,501 people: too few to say much.'),
    duke=_yes((('hat', 2),)),
  ),
  _thing(
    'backpack',
    ('backpack', 'rucksack'),
    peta=_yes(_peta('carryingBackpack')),
    market=_yes((('backpack', 2),)),
    duke=_yes((('backpack', 2),)),
  ),
  _thing(
    'bag',
    ('bag', 'shoulder bag', 'messenger bag'),
    peta=_yes(
      _peta('carryingMessengerBag'),
      NEAR,
      "Messenger bag, 30 %. 'Other' (20 %) may hide further bags, which are then called 'no'.",
    ),
    market=_yes(
      (('bag', 2),),
      NEAR,
      'Whatever bag is neither a backpack nor a handbag; by its pictures in the literature mostly '
      'hung over the shoulder.',
    ),
    duke=_yes((('bag', 2),), NEAR, "As Market's."),
  ),
  _thing(
    'handbag',
    ('handbag', 'purse'),
    market=_yes((('handbag', 2),), NEAR, 'Held in the hand; plastic bags may be among them.'),
    duke=_yes((('handbag', 2),), NEAR, "As Market's."),
  ),
  _thing(
    'boots',
    ('boots',),
    peta=_yes(_peta('footwearBoots')),
    duke=_yes((('boots', 2),), NEAR, '27 % in Duke, 5 % in PETA: hardly the same border.'),
  ),
  Correspondence(
    'shoes',
    ('dark', 'light'),
    {
      PETA: Reading(
        {
          'dark': _peta('footwearBlack', 'footwearBrown'),
          'light': _peta('footwearWhite', 'footwearYellow', 'footwearPink', 'footwearOrange'),
        },
        LOOSE,
        'Made of their colours; gray, red, blue, green and purple are left unsaid.',
      ),
      DUKE: Reading({'dark': (('shoes', 1),), 'light': (('shoes', 2),)}, LOOSE),
    },
    words={'dark': ('dark shoes',), 'light': ('light shoes',)},
  ),
  _colors(
    'upper_color',
    _TOPS,
    peta=_peta_colors('upperBody', peta.COLORS, '11 colours; 11 % of the images have several.'),
    market=_letters(
      'up',
      market1501.UPPER_COLORS,
      '8 colours, at most one each; 10 % of the people have none (another colour, or several), '
      'which is left unsaid.',
    ),
    duke=_letters('up', dukemtmc.UPPER_COLORS, '8 colours: brown and no yellow.'),
  ),
  _colors(
    'lower_color',
    _BOTTOMS,
    peta=_peta_colors('lowerBody', peta.COLORS, '11 colours; 2 % of the images have several.'),
    market=_letters(
      'down',
      market1501.LOWER_COLORS,
      '9 colours, at most one each; 5 % of the people have none, which is left unsaid.',
    ),
    duke=_letters('down', dukemtmc.LOWER_COLORS, '7 colours; 23 test people have several.'),
  ),
  # Named by PETA alone: of no use across data sets, but a model can learn them.
  _colors(
    'footwear_color',
    _SHOES,
    peta=_peta_colors('footwear', peta.COLORS, '5 % have none, which is left unsaid.'),
  ),
  _colors(
    'hair_color',
    ('hair',),
    colors=_HAIR_COLORS,
    peta=_peta_colors('hair', _HAIR_COLORS, '3 % have none, which is left unsaid.'),
  ),
  _thing('jeans', peta=_yes(_peta('lowerBodyJeans'))),
  _thing('jacket', peta=_yes(_peta('upperBodyJacket'))),
  _thing('tshirt', ('t-shirt',), peta=_yes(_peta('upperBodyTshirt'))),
  _thing('suit', ('suit jacket',), peta=_yes(_peta('upperBodySuit'))),
  _thing('logo', ('print',), peta=_yes(_peta('upperBodyLogo'))),
  _thing(
    'plaid', ('plaid top', 'plaid shirt', 'checked shirt'), peta=_yes(_peta('upperBodyPlaid'))
  ),
  _thing(
    'stripes',
    ('striped top', 'striped shirt'),
    peta=_yes(_peta('upperBodyThinStripes', 'upperBodyThickStripes')),
  ),
  _thing('sunglasses', peta=_yes(_peta('accessorySunglasses'))),
  _thing('scarf', ('muffler',), peta=_yes(_peta('accessoryMuffler'))),
  _thing('plastic_bag', ('plastic bags', 'shopping bag'), peta=_yes(_peta('carryingPlasticBags'))),
  _thing(
    'suitcase',
    ('luggage', 'trolley case'),
    peta=_yes(_peta('carryingLuggageCase', 'carryingSuitcase')),
  ),
  _thing('sneakers', ('sneaker', 'trainers'), peta=_yes(_peta('footwearSneaker'))),
  _thing('sandals', ('sandal',), peta=_yes(_peta('footwearSandals'))),
)
