"""What the endpoints of the page and the API share. Floor 5."""

from __future__ import annotations

import dataclasses

import fastapi

from tfreid.web.executor import BoundedExecutor
from tfreid.web.middleware import Access
from tfreid.web.query_log import QueryLog
from tfreid.web.service import SearchService
from tfreid.web.thumbnails import Thumbnails

# Searches at a time: of a source that computes each by itself, which takes the machine's cores, and
# of one that joins them, where they wait for the same scan.
THREADS, JOINED = 2, 64


@dataclasses.dataclass(frozen=True)
class Limits:
  """How much at a time, and how long.

  Attributes:
    threads: searches at a time; 0 for JOINED of a source that joins searches, and THREADS of
      another one.
    waiting: searches that may wait besides; more are sent away.
    seconds: that a search may take, waiting included.
    body_seconds: in which a request must have arrived.
    body_bytes: of all requests that are in memory at a time.
    refresh_seconds: between two looks at whether there is a newer state of an index, or another
      version of a served model; 0 for never.
  """

  threads: int = 0
  waiting: int = 128
  seconds: float = 30.0
  body_seconds: float = 20.0
  body_bytes: int = 128 * 2**20
  refresh_seconds: float = 5.0


@dataclasses.dataclass
class Services:
  """What the endpoints share.

  Attributes:
    search: answers questions.
    log: of questions.
    access: who may ask.
    limits: how much at a time.
    thumbnails: makes pictures small.
    searches: the thread, or the threads, for searching.
    pictures: threads for making pictures small.
    logging: the thread that waits for the disk of the log.
  """

  search: SearchService
  log: QueryLog
  access: Access
  limits: Limits
  thumbnails: Thumbnails
  searches: BoundedExecutor
  pictures: BoundedExecutor
  logging: BoundedExecutor

  def close(self) -> None:
    """Ends what runs, and closes the source and the log."""
    for executor in (self.searches, self.pictures, self.logging):
      executor.close()
    self.search.source.close()
    self.log.close()


def services_of(request: fastapi.Request) -> Services:
  """The services of the application that a request came to; a dependency of endpoints."""
  return request.app.state.services
