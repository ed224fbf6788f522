from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from tfreid import cancellation, fibers
from tfreid.index import filters
from tfreid.web import executor as executor_module
from tfreid.web.executor import BoundedExecutor, BusyError, GroupExecutor, TooSlowError

PATIENCE = 30


def until(condition):
  deadline = time.monotonic() + PATIENCE
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.005)
  assert condition()


@pytest.fixture
def executor():
  made = BoundedExecutor('test', threads=1, waiting=3, timeout=0.1)
  yield made
  made.close()


def test_what_nobody_waits_for_ends_at_its_next_check(executor):
  steps = 0

  def work():
    nonlocal steps
    while True:
      cancellation.check()
      steps += 1
      time.sleep(0.001)

  with pytest.raises(TooSlowError):
    asyncio.run(executor.run(work))
  until(lambda: executor.taken == 0)
  assert steps > 1
  # The thread is free again.
  assert asyncio.run(executor.run(lambda: 5)) == 5


def test_what_does_not_check_keeps_its_place_until_it_ends(executor):
  released = threading.Event()
  called = []

  async def ask():
    stuck = [executor.run(released.wait)]
    stuck += [executor.run(called.append, i) for i in range(3)]
    return await asyncio.gather(*stuck, executor.run(called.append, 'full'), return_exceptions=True)

  errors = asyncio.run(ask())
  assert [type(error) for error in errors] == [TooSlowError] * 4 + [BusyError]
  # Those that waited are gone, without having been called, and one place is taken.
  assert executor.taken == 1
  released.set()
  until(lambda: executor.taken == 0)
  assert called == []


def test_a_caller_who_goes_cancels_what_he_asked_for(executor):
  ended = threading.Event()

  def work():
    try:
      while True:
        cancellation.check()
        time.sleep(0.001)
    except cancellation.CancelledError:
      ended.set()
      raise

  async def ask():
    task = asyncio.ensure_future(executor.run(work))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

  asyncio.run(ask())
  assert ended.wait(PATIENCE)


def test_who_asks_much_delays_others_by_one():
  executor = BoundedExecutor('test', threads=1, waiting=100, timeout=PATIENCE)
  order, released = [], threading.Event()

  async def ask():
    first = asyncio.ensure_future(executor.run(released.wait))
    await asyncio.sleep(0)
    many = [executor.run(order.append, f'many {i}', turn_of='many') for i in range(10)]
    one = [executor.run(order.append, f'one {i}', turn_of='one') for i in range(2)]
    rest = asyncio.gather(*many, *one)
    await asyncio.sleep(0.05)
    released.set()
    await asyncio.gather(first, rest)

  asyncio.run(ask())
  executor.close()
  assert order[:4] == ['many 0', 'one 0', 'many 1', 'one 1']
  assert order[4:] == [f'many {i}' for i in range(2, 10)]


def test_what_was_closed_takes_no_more(executor):
  executor.close()
  with pytest.raises(BusyError):
    asyncio.run(executor.run(lambda: 5))
  assert executor.taken == 0


def test_errors_come_to_whoever_waits(executor):
  with pytest.raises(ZeroDivisionError):
    asyncio.run(executor.run(lambda: 1 / 0))
  assert executor.taken == 0


def test_filters_look_whether_somebody_waits():
  condition = filters.parse('camera == 1 and time == 2')
  column = filters.Column((1,), np.zeros(3, np.int32))
  given_up = cancellation.Cancellation()
  looked = []

  def read(name):
    looked.append(name)
    given_up.cancel()
    return column

  assert filters.evaluate(condition, lambda _: column, 3).tolist() == [False] * 3
  with pytest.raises(cancellation.CancelledError), cancellation.scope(given_up):
    filters.evaluate(condition, read, 3)
  assert looked == ['camera']
  cancellation.check()  # outside of the scope nothing is cancelled


def test_an_error_after_the_client_has_gone_is_not_printed():
  """The work ignores that it is cancelled, and fails: asyncio would call it never retrieved."""
  import gc

  from starlette.requests import ClientDisconnect

  from tfreid.web import api

  printed = []

  class Request:
    async def receive(self):
      return {'type': 'http.disconnect'}

  async def work():
    try:
      await asyncio.sleep(60)
    except asyncio.CancelledError:
      pass
    raise ValueError('too late')

  async def ask():
    asyncio.get_running_loop().set_exception_handler(lambda _, context: printed.append(context))
    with pytest.raises(ClientDisconnect):
      await api._while_connected(Request(), work())
    await asyncio.sleep(0.01)
    gc.collect()

  asyncio.run(ask())
  assert printed == []


# Calls of one thread.


@pytest.fixture
def together():
  made = GroupExecutor('test', together=3, waiting=4, timeout=PATIENCE)
  yield made
  made.close()


def test_calls_that_wait_for_the_same_share_a_thread_and_a_scan(together):
  scans, threads = [], set()

  def call(number):
    threads.add(threading.get_ident())
    fibers.current().wait(scans.append, number)
    return number * number

  async def ask():
    return await asyncio.gather(*(together.run(call, i) for i in range(7)))

  assert asyncio.run(ask()) == [i * i for i in range(7)]
  assert len(threads) == 1
  # At most three at a time, the oldest first.
  assert sorted(sum(scans, [])) == list(range(7)) and max(map(len, scans)) == 3
  until(lambda: together.taken == 0 and not together._running)


def test_each_call_of_a_group_has_its_own_error_and_its_own_end(together):
  gone = threading.Event()

  def fail():
    fibers.current().wait(lambda items: None, 0)
    raise ValueError('mine')

  def look():
    fibers.current().wait(lambda items: None, 0)
    return fibers.elsewhere(lambda: gone.wait(PATIENCE)) and cancellation.check() or 'looked'

  async def ask():
    tasks = [asyncio.ensure_future(together.run(work)) for work in (fail, look, look)]
    await asyncio.wait(tasks[:1])
    tasks[1].cancel()
    await asyncio.wait(tasks[1:2])
    gone.set()
    return await asyncio.gather(*tasks, return_exceptions=True)

  error, cancelled, looked = asyncio.run(ask())
  assert str(error) == 'mine'
  assert isinstance(cancelled, asyncio.CancelledError)
  assert looked == 'looked'
  until(lambda: together.taken == 0)


def test_a_call_that_computes_long_does_not_keep_those_that_come_later(together, monkeypatch):
  monkeypatch.setattr(executor_module, '_PATIENCE', 0.05)
  released = threading.Event()

  async def ask():
    stuck = asyncio.ensure_future(together.run(released.wait))
    await asyncio.sleep(0.01)
    # At once, and later.
    quick = [await together.run(lambda: 5)]
    await asyncio.sleep(0.2)
    quick.append(await together.run(lambda: 6))
    released.set()
    return quick, await stuck

  assert asyncio.run(ask()) == ([5, 6], True)


def test_a_full_group_turns_calls_away(together):
  released = threading.Event()

  async def ask():
    stuck = [together.run(fibers.elsewhere, lambda: released.wait(PATIENCE)) for _ in range(7)]
    tasks = [asyncio.ensure_future(one) for one in stuck]
    await asyncio.sleep(0.01)
    assert together.is_full
    with pytest.raises(BusyError):
      await together.run(lambda: 5)
    released.set()
    return await asyncio.gather(*tasks)

  assert asyncio.run(ask()) == [True] * 7


def test_groups_of_many_callers_lose_nothing():
  made = GroupExecutor('test', together=8, waiting=10_000, timeout=PATIENCE)

  def call(i):
    if i % 3 == 0:
      fibers.current().wait(lambda items: None, i)
    if i % 5 == 0:
      fibers.elsewhere(lambda: time.sleep(0.0005))
    return i

  async def ask(numbers):
    return [await made.run(call, i, turn_of=f'{i % 4}') for i in numbers]

  async def all_of_them():
    return await asyncio.gather(*(ask(range(k, 2000, 40)) for k in range(40)))

  found = asyncio.run(all_of_them())
  assert sorted(sum(found, [])) == list(range(2000))
  until(lambda: made.taken == 0 and not made._running)
  made.close()
