"""What several processes of one server remember together."""

from __future__ import annotations

import contextlib
import multiprocessing
import sqlite3
import threading
import time
from concurrent import futures

import pytest

from tfreid.web import access, state


@pytest.fixture
def shared(tmp_path):
  """shared(number, ...): what process `number` of three has; closed at the end."""
  opened = []

  def begin(number, **options):
    opened.append(state.SharedState(str(tmp_path), number=number, processes=3, **options))
    return opened[-1]

  yield begin
  for one in opened:
    one.close()


CROPS = [('a', '/crops/a.jpg'), ('b\udcff', '/crops/b\udcff.jpg'), ('c', '')]


def memories():
  """Each kind of `Seen`, by what makes it from a fixture and a size."""
  return {
    'here': lambda shared, size: state.SeenHere(size),
    'shared': lambda shared, size: shared(1, size=size).seen,
  }


@pytest.fixture(params=['here', 'shared'])
def seen(request, shared):
  """seen(size): what remembers so many crops."""
  return lambda size: memories()[request.param](shared, size)


def test_a_crop_is_known_by_its_key(seen):
  memory = seen(10)
  keys = memory.add(CROPS)
  assert [len(key) for key in keys] == [32] * 3 and len(set(keys)) == 3
  assert [memory.path(key) for key in keys] == [path for _, path in CROPS]
  assert memory.path('0' * 32) is None
  assert memory.add([]) == []


def test_a_crop_that_has_moved_is_where_it_is_now(seen):
  memory = seen(10)
  memory.add([('a', '/before.jpg')])
  (key,) = memory.add([('a', '/now.jpg')])
  assert memory.path(key) == '/now.jpg'


def test_the_oldest_make_room(seen):
  memory = seen(3)
  a, b, c = memory.add([(name, name) for name in 'abc'])
  memory.add([('a', 'a')])  # answered again, and so not the oldest
  (d,) = memory.add([('d', 'd')])
  assert [memory.path(key) for key in (a, b, c, d)] == ['a', None, 'c', 'd']
  keys = memory.add([(name, name) for name in 'vwxyz'])
  assert sum(memory.path(key) is not None for key in [a, b, c, d, *keys]) >= 3
  assert memory.path(keys[-1]) == 'z' and memory.path(a) is None


def test_the_other_processes_know_it_at_once(shared):
  first, second, third = shared(0), shared(1), shared(2)
  keys = first.seen.add(CROPS)
  for other in (second, third):
    assert [other.seen.path(key) for key in keys] == [path for _, path in CROPS]
  assert second.seen.path('0' * 32) is None


def test_what_made_room_is_gone_for_the_others_too(shared):
  first, second = shared(0, size=2), shared(1)
  keys = first.seen.add([('a', 'a'), ('b', 'b')])
  first.seen.add([('c', 'c')])
  assert [second.seen.path(key) for key in keys] == [None, 'b']


def test_a_process_that_comes_again_knows_what_the_one_before_did(shared):
  before = shared(0)
  keys = before.seen.add(CROPS)
  before.close()
  again = shared(0)
  assert [again.seen.path(key) for key in keys] == [path for _, path in CROPS]
  assert [shared(1).seen.path(key) for key in keys] == [path for _, path in CROPS]


def test_processes_begin_at_the_same_time(tmp_path):
  # SQLite refuses one of two that make the same file a database at once: some rounds in a hundred.
  processes = 4
  begin_together = threading.Barrier(processes)

  def begin(number, folder):
    begin_together.wait()
    memory = state.SharedState(str(folder), number=number, processes=processes)
    memory.ended.add(str(number), int(time.time()) + 100)
    memory.close()

  folders = [tmp_path / str(i) for i in range(100)]
  with futures.ThreadPoolExecutor(processes) as pool:
    for folder in folders:
      folder.mkdir()
      for worker in [pool.submit(begin, number, folder) for number in range(processes)]:
        worker.result()
  for folder in folders[:5]:
    memory = state.SharedState(str(folder), number=0, processes=processes)
    assert all(str(number) in memory.ended for number in range(processes))
    memory.close()


def test_who_waits_in_vain_is_told_so(tmp_path, monkeypatch):
  monkeypatch.setattr(state, '_PATIENCE', 0.1)
  with contextlib.closing(sqlite3.connect(tmp_path / 'ended.sqlite')) as other:
    other.execute('BEGIN EXCLUSIVE')
    with pytest.raises(sqlite3.OperationalError, match='locked'):
      state.SharedState(str(tmp_path), number=0, processes=1)
    other.rollback()
  state.SharedState(str(tmp_path), number=0, processes=1).close()


def _answer(folder, number, ready):
  memory = state.SharedState(folder, number=number, processes=3)
  ready.wait(60)
  for i in range(200):
    memory.seen.add([(f'{number}/{i}/{j}', f'/{number}/{i}/{j}') for j in range(5)])
    memory.ended.add(f'{number}/{i}', int(time.time()) + 100)
  memory.close()


def test_processes_write_at_the_same_time(shared, tmp_path):
  context = multiprocessing.get_context('spawn')
  ready = context.Barrier(2)
  workers = [context.Process(target=_answer, args=(str(tmp_path), i, ready)) for i in range(2)]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join(60)
  assert [worker.exitcode for worker in workers] == [0, 0]
  last = shared(2)
  key_of = state.SeenHere().add
  for number in range(2):
    crops = [(f'{number}/{i}/{j}', f'/{number}/{i}/{j}') for i in range(200) for j in range(5)]
    assert [last.seen.path(key) for key in key_of(crops)] == [path for _, path in crops]
    assert all(f'{number}/{i}' in last.ended for i in range(200))


def test_a_session_that_ended_at_one_process_is_over_at_all(shared):
  tokens, key = {'anna': 's' * 20}, b'k' * 32
  first, second = (
    access.Access(tokens=tokens, key=key, ended=shared(number).ended) for number in range(2)
  )
  cookie, other = first.cookie('anna'), second.cookie('anna')
  assert second.name_of_cookie(cookie) == 'anna'
  first.end_session(cookie)
  assert first.name_of_cookie(cookie) is None and second.name_of_cookie(cookie) is None
  assert first.name_of_cookie(other) == 'anna'


def test_sessions_that_would_be_over_are_forgotten(shared):
  ended = shared(0).ended
  ended.add('old', int(time.time()) - 1)
  ended.add('new', int(time.time()) + 100)
  assert 'old' not in ended and 'new' in ended


def test_no_more_sessions_than_there_is_room_for(shared, monkeypatch):
  monkeypatch.setattr(state, '_MAX_ENDED', 3)
  now = int(time.time())
  for ended in (shared(0).ended, state.EndedHere()):
    for i in range(5):
      ended.add(str(i), now + 100 + i)
    assert [str(i) in ended for i in range(5)] == [False, False, True, True, True]
