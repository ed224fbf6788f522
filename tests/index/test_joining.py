"""Calls that are joined: who goes along, whose turn it is, and that each gets its own answer."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import sys
import threading
import time

import numpy as np
import pytest

import tfreid.index
from tfreid import cancellation, fibers
from tfreid.index import engines, filters, joining, segment, writer
from tfreid.index.directory import IndexDirectory
from tfreid.index.joining import JoinedImages, JoinedSearch, Joiner

PATIENCE = 60


class Gate:
  """A call that keeps its first caller waiting, and notes what it was called for."""

  def __init__(self, answer=lambda key, item: (key, item)):
    self.calls = []
    self.open = threading.Event()
    self.entered = threading.Event()
    self._answer = answer

  def __call__(self, key, items):
    self.calls.append((key, list(items)))
    if not self.entered.is_set():
      self.entered.set()
      assert self.open.wait(PATIENCE)
    cancellation.check()
    return [self._answer(key, item) for item in items]


def until(condition):
  deadline = time.monotonic() + PATIENCE
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.001)


@contextlib.contextmanager
def asking(joiner, gate):
  """ask(key, item, turn_of='', cancellation=None): a future; a first call holds the gate.

  Each is in the queue when `ask` returns. The gate opens at the end of the context.
  """
  with concurrent.futures.ThreadPoolExecutor(64) as threads:

    def submit(key, item, asked):
      def work():
        with cancellation.scope(asked):
          return joiner(key, item)

      return threads.submit(work)

    def ask(key, item, turn_of='', asked=None):
      before = joiner.waiting
      future = submit(key, item, asked or cancellation.Cancellation(turn_of))
      until(lambda: joiner.waiting > before)
      return future

    submit('first', 0, cancellation.Cancellation())
    assert gate.entered.wait(PATIENCE)
    try:
      yield ask
    finally:
      gate.open.set()


def in_a_group(functions):
  """What functions return, or raise, when they are the calls of a group."""
  found = [None] * len(functions)

  def call(i):
    try:
      found[i] = functions[i]()
    except Exception as error:
      found[i] = error

  batches = [[lambda i=i: call(i) for i in range(len(functions))]]
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    fibers.Group(threads).run(lambda: batches.pop() if batches else [])
  return found


def test_calls_of_a_group_go_together_by_key():
  calls = []

  def call(key, items):
    calls.append((key, list(items)))
    return [1 / item for item in items]

  joiner = Joiner(call, most=lambda key: 3)
  asked = [('a', 1), ('b', 2), ('a', 4), ('a', 5), ('a', 8), ('b', 0)]
  found = in_a_group([lambda key=key, item=item: joiner(key, item) for key, item in asked])
  assert found[:5] == [1, 0.5, 0.25, 0.2, 0.125]
  assert isinstance(found[5], ZeroDivisionError)
  # One of them fails, so each of these is called alone.
  assert calls == [('a', [1, 4, 5]), ('a', [8]), ('b', [2, 0]), ('b', [2]), ('b', [0])]
  assert (joiner.calls, joiner.parts, joiner.waiting) == (3, 6, 0)


def test_a_cancelled_call_of_a_group_is_left_out():
  calls = []

  def call(key, items):
    calls.append(list(items))
    return items

  joiner = Joiner(call, most=lambda key: 8)
  gone = cancellation.Cancellation()

  def ask(item, asked):
    with cancellation.scope(asked):
      return joiner('a', item)

  def leave():
    gone.cancel()
    return joiner('a', 3)

  found = in_a_group(
    [lambda: ask(1, gone), lambda: ask(2, cancellation.Cancellation()), lambda: leave()]
  )
  assert isinstance(found[0], cancellation.CancelledError)
  assert found[1:] == [2, 3] and calls == [[2, 3]]


def test_a_group_and_threads_make_one_call_at_a_time():
  inside, most = [], []

  def call(key, items):
    inside.append(1)
    most.append(len(inside))
    time.sleep(0.002)
    inside.pop()
    return [(key, item) for item in items]

  joiner = Joiner(call, most=lambda key: 4)
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    others = [threads.submit(joiner, i % 3, i) for i in range(100, 160)]
    found = in_a_group([lambda i=i: joiner(i % 3, i) for i in range(100)])
  assert found == [(i % 3, i) for i in range(100)]
  assert [other.result() for other in others] == [(i % 3, i) for i in range(100, 160)]
  assert max(most) == 1


def test_who_is_alone_does_not_wait():
  joiner = Joiner(lambda key, items: [(key, item) for item in items], most=lambda key: 8)
  assert joiner('a', 1) == ('a', 1)
  assert joiner('b', 2) == ('b', 2)
  assert (joiner.calls, joiner.parts, joiner.waiting) == (2, 2, 0)


def test_what_comes_while_a_call_runs_goes_together_by_key():
  gate = Gate()
  joiner = Joiner(gate, most=lambda key: 8)
  with asking(joiner, gate) as ask:
    futures = [ask(key, item) for item, key in enumerate('ababcab')]
  assert [future.result() for future in futures] == list(zip('ababcab', range(7)))
  assert gate.calls == [('first', [0]), ('a', [0, 2, 5]), ('b', [1, 3, 6]), ('c', [4])]
  assert (joiner.calls, joiner.parts, joiner.waiting) == (4, 8, 0)


def test_no_more_go_together_than_may():
  gate = Gate()
  joiner = Joiner(gate, most={'first': 1, 'a': 3, 'b': 1}.get)
  with asking(joiner, gate) as ask:
    futures = [ask('a', i) for i in range(7)] + [ask('b', i) for i in range(2)]
  assert [future.result()[1] for future in futures] == [*range(7), *range(2)]
  sizes = [(key, len(items)) for key, items in gate.calls]
  assert sizes == [('first', 1), ('a', 3), ('a', 3), ('a', 1), ('b', 1), ('b', 1)]


def test_who_asks_much_delays_another_by_one_call():
  gate = Gate()
  joiner = Joiner(gate, most=lambda key: 4)
  with asking(joiner, gate) as ask:
    futures = [ask(f'much {i}', i, turn_of='much') for i in range(10)]
    futures.append(ask('little', 0, turn_of='little'))
  for future in futures:
    future.result()
  keys = [key for key, _ in gate.calls]
  assert keys[:3] == ['first', 'much 0', 'little']
  assert keys[3:] == [f'much {i}' for i in range(1, 10)]


def test_places_in_a_call_go_round():
  gate = Gate()
  joiner = Joiner(gate, most=lambda key: 4)
  with asking(joiner, gate) as ask:
    futures = [ask('a', f'much {i}', turn_of='much') for i in range(6)]
    futures += [ask('a', f'little {i}', turn_of='little') for i in range(2)]
  for future in futures:
    future.result()
  assert gate.calls[1] == ('a', ['much 0', 'little 0', 'much 1', 'little 1'])
  assert gate.calls[2] == ('a', ['much 2', 'much 3', 'much 4', 'much 5'])


def test_who_is_cancelled_while_waiting_leaves_alone():
  gate = Gate()
  joiner = Joiner(gate, most=lambda key: 8)
  gone = cancellation.Cancellation()
  with asking(joiner, gate) as ask:
    first, left, last = ask('a', 1), ask('a', 2, asked=gone), ask('a', 3)
    gone.cancel()
  assert first.result() == ('a', 1) and last.result() == ('a', 3)
  with pytest.raises(cancellation.CancelledError):
    left.result()
  assert gate.calls == [('first', [0]), ('a', [1, 3])]


def test_a_joined_call_ends_early_only_when_nobody_waits():
  held, entered = threading.Event(), threading.Event()

  def call(key, items):
    if key == 'held':
      entered.set()
      assert held.wait(PATIENCE)
      cancellation.check()
    return items

  for cancelled, expected in ((1, None), (2, cancellation.CancelledError)):
    held.clear()
    entered.clear()
    gate = Gate()
    joiner = Joiner(
      lambda key, items, gate=gate: gate(key, items) if key == 'first' else call(key, items),
      most=lambda key: 8,
    )
    scopes = [cancellation.Cancellation() for _ in range(2)]
    with asking(joiner, gate) as ask:
      futures = [ask('held', i, asked=scope) for i, scope in enumerate(scopes)]
      gate.open.set()
      assert entered.wait(PATIENCE)
      for scope in scopes[:cancelled]:
        scope.cancel()
      held.set()
      if expected:
        assert [type(future.exception(PATIENCE)) for future in futures] == [expected] * 2
      else:
        assert [future.result(PATIENCE) for future in futures] == [0, 1]


def test_a_fault_is_of_whose_it_is():
  def answer(key, item):
    if item == 'bad':
      raise ValueError(f'{item} of {key}')
    return item.upper()

  gate = Gate(answer=lambda key, item: item if key == 'first' else answer(key, item))
  joiner = Joiner(gate, most=lambda key: 8)
  with asking(joiner, gate) as ask:
    futures = [ask('a', item) for item in ('good', 'bad', 'fine')]
  assert futures[0].result() == 'GOOD' and futures[2].result() == 'FINE'
  with pytest.raises(ValueError, match='bad of a'):
    futures[1].result()
  assert joiner('b', 'more') == 'MORE'


def test_a_fault_of_who_is_alone_leaves_the_way_free():
  joiner = Joiner(lambda key, items: [1 // item for item in items], most=lambda key: 8)
  with pytest.raises(ZeroDivisionError):
    joiner('a', 0)
  assert joiner('a', 1) == 1


def test_many_threads_get_what_is_theirs():
  joiner = Joiner(lambda key, items: [(key, item) for item in items], most=lambda key: 7)
  interval = sys.getswitchinterval()
  sys.setswitchinterval(1e-5)
  try:
    with concurrent.futures.ThreadPoolExecutor(24) as threads:
      found = list(threads.map(lambda i: joiner(i % 3, i), range(3000)))
  finally:
    sys.setswitchinterval(interval)
  assert found == [(i % 3, i) for i in range(3000)]
  assert joiner.parts == 3000 and joiner.waiting == 0


# Searches.

N, E = 700, 16
CONDITIONS = ('', 'camera == 1', 'camera in [0, 3]')


@pytest.fixture(params=[False, True, 'bfloat16'])
def engine(request, tmp_path):
  """An engine of some hundred crops, with ties."""
  rng = np.random.default_rng(0)
  concepts = rng.standard_normal((N, E)).astype(np.float32)
  concepts[300:320] = concepts[3]
  rows = [segment.Row(f'crop {i}', f'/{i}.png', {'camera': i % 5}) for i in range(N)]
  folder = IndexDirectory(str(tmp_path / 'index'))
  about = {'fingerprint': 'f', 'embedding_size': E, 'path': '(none)'}
  opened = engines.open_engine(folder, engines.new_state(about), resident=request.param)
  with folder.lock():
    opened.commit([segment.write(folder.segments, [(concepts, rows)], size=N, width=E)])
  yield opened
  opened.close()


def searches(engine):
  """Arguments of searches that differ in everything that they may differ in."""
  rng = np.random.default_rng(1)
  near = engine.concepts(['crop 3'])[0]
  asked = []
  for i, (top_k, where) in enumerate(itertools.product((1, 20, 50, 90, 300), CONDITIONS * 4)):
    options = {'top_k': top_k, 'where': filters.parse(where) if where else None}
    if i % 3 == 0:
      options['exclude'] = ['crop 3', f'crop {300 + i % 20}', 'nobody'][: i % 4]
    if i % 5 == 0:
      options['min_score'] = 0.5
    query = rng.standard_normal(E).astype(np.float32) if i % 2 else near
    asked.append((query, options))
  return asked


def plain(matches):
  return [(match.row.id, match.score, match.concept.tobytes()) for match in matches]


def test_joined_searches_answer_bit_for_bit_as_the_engine_does_alone(engine):
  asked = searches(engine)
  alone = [plain(engine.search(query[None], **options)[0]) for query, options in asked]
  joined = JoinedSearch()
  with concurrent.futures.ThreadPoolExecutor(16) as threads:
    found = list(threads.map(lambda one: plain(joined.search(engine, one[0], **one[1])), asked * 4))
  assert found == alone * 4
  assert len({len(matches) for matches in alone}) > 5  # so they are not all of one kind
  assert joined.joiner.parts == 4 * len(asked) > joined.joiner.calls


def test_more_to_leave_out_than_is_worth_looking_for_is_left_out_by_the_engine(engine):
  query = engine.concepts(['crop 3'])[0]
  exclude = [f'crop {i}' for i in range(joining._DROPPED + 1)]
  joined = JoinedSearch()
  found = joined.search(engine, query, top_k=5, exclude=exclude)
  assert plain(found) == plain(engine.search(query[None], top_k=5, exclude=exclude)[0])
  assert joined.joiner.calls == 0


@pytest.mark.parametrize(
  ('options', 'complaint'),
  [
    ({'top_k': 0}, 'at least 1, not 0'),
    ({'top_k': 5, 'where': filters.parse('station == 1')}, 'station'),
  ],
)
def test_what_the_engine_refuses_is_refused(engine, options, complaint):
  with pytest.raises(ValueError, match=complaint):
    JoinedSearch().search(engine, np.ones(E, np.float32), **options)


def test_a_query_that_is_none_does_not_fail_its_neighbours(engine):
  query = engine.concepts(['crop 9'])[0]
  gate = Gate()
  joined = JoinedSearch()
  scan = joined.joiner._call

  def gated(key, items):
    if not gate.entered.is_set():
      gate(key, items)
    return scan(key, items)

  joined.joiner._call = gated
  bad = np.full(E, np.nan, np.float32)
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    first = threads.submit(joined.search, engine, query, top_k=2)
    assert gate.entered.wait(PATIENCE)
    others = [threads.submit(joined.search, engine, one, top_k=2) for one in (query, bad, query)]
    until(lambda: joined.joiner.waiting == 3)
    gate.open.set()
  alone = plain(engine.search(query[None], top_k=2)[0])
  for future in (first, others[0], others[2]):
    assert plain(future.result()) == alone
  with pytest.raises(ValueError, match='NaN or infinity'):
    others[1].result()


def test_pictures_are_embedded_together_and_a_broken_one_fails_alone(digest_model, monkeypatch):
  monkeypatch.setattr(joining, '_most_images', lambda model: joining.MAX_IMAGES)
  images, gate = JoinedImages(), threading.Event()
  sizes, embed = [], digest_model.embed_images

  def held(contents):
    sizes.append(len(contents))
    if len(sizes) == 1:
      assert gate.wait(PATIENCE)
    return embed(contents)

  class Model:
    embed_images = staticmethod(held)

  model = Model()
  contents = [b'broken' if i == 2 else b'picture %d' % i for i in range(7)]
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    futures = [threads.submit(images.embed, model, contents[0])]
    until(lambda: sizes)
    for i, content in enumerate(contents[1:]):
      futures.append(threads.submit(images.embed, model, content))
      until(lambda i=i: images.joiner.waiting == i + 1)
    gate.set()
  for i, (future, content) in enumerate(zip(futures, contents)):
    if i == 2:
      with pytest.raises(ValueError, match='Not an image'):
        future.result()
    else:
      assert np.array_equal(future.result(), embed([content])[0])
  # One alone; four together, of which one is broken, so each alone; and the two that are left.
  assert sizes == [1, 4, 1, 1, 1, 1, 2]


# A whole source.


@pytest.fixture(scope='module')
def color_index(models, crops, tmp_path_factory):
  """Folder of an index of a loaded model, and the model."""
  from tfreid.index import manifest
  from tfreid.index.embedder import Embedder

  model = Embedder(str(models / 'people'))
  directory = str(tmp_path_factory.mktemp('joined') / 'depot')
  rows = [
    type(row)(row.id, row.path, {'camera': i % 3}, {'hat': 'yes'} if i % 2 else {})
    for i, row in enumerate(manifest.read(str(crops)))
  ]
  writer.build(directory, rows[:20], model, shard_rows=7)
  return directory, model, rows


def questions(crops):
  """Functions that ask a source, each for something else."""
  pictures = [path.read_bytes() for path in sorted(crops.rglob('*.png'))[:4]]
  asked = [
    lambda source, q=query, o=options: source.search(
      q,
      explain=True,
      suggest=True,
      top_k=o.get('k', 5),
      where=o.get('where', ''),
      exclude=o.get('exclude', ()),
    )
    for query in ({'hat': 'yes'}, {'upper_color': 'red', 'hat': 'no'}, {'upper_color': '!blue'})
    for options in ({}, {'k': 12}, {'where': 'camera == 1'}, {'exclude': ['c0/000.png']})
  ]
  asked += [lambda source, p=picture: source.like(p, top_k=4) for picture in pictures]
  asked += [lambda source, i=i: source.like(f'c{i % 2}/{i:03d}.png', top_k=4) for i in range(4)]
  asked.append(lambda source: source.suggest({'hat': 'yes'}))
  return asked


def content(answer):
  """All of an answer but the time it took."""
  return answer if isinstance(answer, list) else {**answer.to_json(), 'seconds': 0.0}


@pytest.mark.parametrize('resident', [False, True])
def test_many_ask_a_source_and_get_what_they_would_alone(color_index, crops, resident):
  directory, model, _ = color_index
  asked = questions(crops)
  with tfreid.index.open(directory, model=model, resident=resident) as source:
    alone = [content(ask(source)) for ask in asked]
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
      found = list(threads.map(lambda ask: content(ask(source)), asked * 6))
  assert found == alone * 6


def test_a_group_asks_a_source_and_gets_what_each_would_alone(color_index, crops):
  directory, model, _ = color_index
  asked = questions(crops)
  with tfreid.index.open(directory, model=model, resident=True) as source:
    alone = [content(ask(source)) for ask in asked]
    before = source._joined.joiner.calls
    found = in_a_group([lambda ask=ask: content(ask(source)) for ask in asked * 3])
    assert found == alone * 3
    assert source._joined.joiner.calls - before < len(asked)


def test_reasons_and_suggestions_are_of_one_scan(color_index):
  directory, model, _ = color_index
  with tfreid.index.open(directory, model=model) as source:
    answer = source.search({'hat': 'yes'}, top_k=3, explain=True, suggest=True)
    assert source._joined.joiner.calls == 1
    assert len(answer.hits) == 3 and all(hit.reasons for hit in answer.hits)
    plainly = source.search({'hat': 'yes'}, top_k=3, explain=True)
    assert answer.hits == plainly.hits
    assert answer.suggestions == source.suggest({'hat': 'yes'})


def test_answers_are_of_one_state_while_the_index_is_exchanged(color_index, crops, tmp_path):
  from tfreid.web.policy import Policy
  from tfreid.web.service import SearchService

  _, model, rows = color_index
  directory = str(tmp_path / 'depot')
  writer.build(directory, rows[:20], model, shard_rows=7)
  asked = questions(crops)[:-1]
  service = SearchService(tfreid.index.open(directory, model=model), Policy())
  found, stop = [], threading.Event()

  def work(number):
    answers = []
    for i in itertools.count(number):
      with service.source.use() as (source, _):
        answers.append((i % len(asked), content(asked[i % len(asked)](source))))
      if stop.is_set() and len(answers) >= len(asked):
        return answers

  alone = []
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    futures = [threads.submit(work, number) for number in range(8)]
    try:
      for count in (20, 25, 30):
        if count > 20:
          writer.add(directory, rows[count - 5 : count], model)
          assert service.source.refresh()
        with tfreid.index.open(directory, model=model) as lone:
          alone.append([content(ask(lone)) for ask in asked])
    finally:
      stop.set()
    found = [answer for future in futures for answer in future.result()]
  service.source.close()
  sizes = set()
  for number, answer in found:
    (expected,) = [a[number] for a in alone if a[number]['gallery_size'] == answer['gallery_size']]
    assert answer == expected
    sizes.add(answer['gallery_size'])
  assert 30 in sizes
