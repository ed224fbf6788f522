"""The protocol of sources: what all of them must have, and what belongs to none of them."""

from __future__ import annotations

import inspect

import pytest

from tfreid.index.searcher import Searcher
from tfreid.search.exported import ExportedModel
from tfreid.search.remote import ServedModel
from tfreid.source.protocol import SearchOptions, Source

MEMBERS = [name for name in vars(Source) if not name.startswith('_')]


@pytest.mark.parametrize('kind', [ExportedModel, Searcher, ServedModel])
def test_every_source_has_each_method_with_the_parameters_of_the_protocol(kind):
  assert {'search', 'like', 'suggest', 'capabilities', 'newer', 'pinned'} <= set(MEMBERS)
  for name in MEMBERS:
    wanted = getattr(Source, name)
    if isinstance(wanted, property):
      continue  # An attribute does as well.
    found = inspect.signature(getattr(kind, name)).parameters.values()
    expected = inspect.signature(wanted).parameters.values()
    assert [(p.name, p.kind, p.default) for p in found] == [
      (p.name, p.kind, p.default) for p in expected
    ], name
    for one, other in zip(found, expected):
      # One that takes more is still a source.
      assert one.annotation in (other.annotation, f'{other.annotation} | np.ndarray'), name


def test_options_say_what_narrows_a_search():
  assert SearchOptions().given == []
  assert SearchOptions(where='', must={}, exclude=[]).given == []
  options = SearchOptions(where='camera == 1', min_score=0.0)
  assert options.given == ['where', 'min_score']
  joined = SearchOptions.joined(options, {'exclude': ['a']})
  assert (joined.where, joined.exclude) == ('camera == 1', ['a'])
  assert SearchOptions.joined(None, {}) == SearchOptions()
  with pytest.raises(TypeError, match="unexpected keyword argument 'wher'; the options are exc"):
    SearchOptions.joined(options, {'wher': 'camera == 1'})
