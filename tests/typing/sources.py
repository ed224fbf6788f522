"""What the type checker must accept: `make lint` checks this file, nothing runs it."""

from __future__ import annotations

from tfreid.data.person_crops import PersonCrops
from tfreid.index.searcher import Searcher
from tfreid.search.exported import ExportedModel
from tfreid.search.remote import ServedModel
from tfreid.source.protocol import Source
from tfreid.training.stages import StageData


def sources(exported: ExportedModel, index: Searcher, served: ServedModel) -> list[Source]:
  from_exported: Source = exported
  from_index: Source = index
  from_served: Source = served
  return [from_exported, from_index, from_served]


def stage_data(crops: PersonCrops) -> StageData:
  return crops
