from __future__ import annotations

import concurrent.futures
import threading
import time

import pytest

from tfreid import cancellation, fibers

PATIENCE = 30


@pytest.fixture
def group():
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    yield fibers.Group(threads)


def once(functions):
  """What `Group.run` takes: these functions, and then none."""
  batches = [functions]
  return lambda: batches.pop() if batches else []


def test_what_several_wait_for_is_done_once_for_all_of_them(group):
  calls, ended = [], []

  def double(items):
    calls.append([item['number'] for item in items])
    for item in items:
      item['result'] = 2 * item['number']

  def call(number, times):
    for _ in range(times):
      item = {'number': number}
      fibers.current().wait(double, item)
      number = item['result']
    ended.append(number)

  group.run(once([lambda n=n: call(n, times=n) for n in (1, 2, 3)]))
  assert calls == [[1, 2, 3], [4, 6], [12]]
  assert ended == [2, 8, 24]
  assert fibers.current() is None


def test_more_calls_join_those_that_go_on(group):
  calls, batches = [], [[], ['c'], ['a', 'b']]

  def call(name):
    fibers.current().wait(calls.append, name)
    fibers.current().wait(calls.append, name.upper())

  group.run(lambda: [lambda n=n: call(n) for n in (batches.pop() if batches else [])])
  assert calls == [['a', 'b'], ['A', 'B', 'c'], ['C']]


def test_an_error_is_of_all_that_waited_for_it_and_of_nobody_else(group):
  seen = []

  def fail(items):
    raise ValueError(f'{items}')

  def call(name, together):
    try:
      fibers.current().wait(together, name)
      seen.append(name)
    except ValueError as error:
      seen.append(f'{name}: {error}')

  group.run(
    once([lambda: call('a', fail), lambda: call('b', seen.append), lambda: call('c', fail)])
  )
  assert seen == ["a: ['a', 'c']", "c: ['a', 'c']", ['b'], 'b']


def test_what_takes_long_is_done_elsewhere_while_others_go_on(group):
  released, order = threading.Event(), []

  def long():
    assert released.wait(PATIENCE)
    order.append(threading.current_thread() is not here)
    assert fibers.current() is None
    return 'result'

  def slow():
    order.append(fibers.elsewhere(long))

  def fast():
    group.wait(lambda items: None, 0)
    order.append('fast')
    released.set()

  here = threading.current_thread()
  group.run(once([slow, fast]))
  assert order == ['fast', True, 'result']


def test_an_error_elsewhere_is_the_callers(group):
  seen = []

  def call():
    try:
      fibers.elsewhere(lambda: 1 / 0)
    except ZeroDivisionError as error:
      seen.append(error)

  group.run(once([call]))
  assert len(seen) == 1


def test_who_waits_for_work_elsewhere_can_be_woken_up_for_more(group):
  released, order, waiting = threading.Event(), [], []

  def more():
    functions, waiting[:] = list(waiting), []
    return functions

  waiting.append(lambda: order.append(fibers.elsewhere(lambda: released.wait(PATIENCE))))
  with concurrent.futures.ThreadPoolExecutor(1) as threads:
    running = threads.submit(group.run, more)
    deadline = time.monotonic() + PATIENCE
    while not group.rests and time.monotonic() < deadline:
      time.sleep(0.001)
    waiting.append(lambda: (order.append('more'), released.set()))
    group.wake()
    running.result(PATIENCE)
  assert order == ['more', True]


def test_without_a_group_nothing_goes_elsewhere():
  assert fibers.elsewhere(threading.current_thread) is threading.current_thread()


def test_each_call_has_its_own_cancellation(group):
  seen = {}

  def call(name, cancelled):
    asked = cancellation.Cancellation(name)
    with cancellation.scope(asked):
      group.wait(lambda items: None, 0)
      if cancelled:
        asked.cancel()
      group.wait(lambda items: None, 0)
      seen[name] = cancellation.current().turn_of
      fibers.elsewhere(lambda: seen.update({f'{name} elsewhere': cancellation.current().turn_of}))
      try:
        cancellation.check()
      except cancellation.CancelledError:
        seen[name] = 'cancelled'
    assert cancellation.current() is None

  group.run(once([lambda: call('a', False), lambda: call('b', True), lambda: call('c', False)]))
  assert seen == {
    'a': 'a', 'b': 'cancelled', 'c': 'c',
    'a elsewhere': 'a', 'b elsewhere': 'b', 'c elsewhere': 'c',
  }  # fmt: skip
