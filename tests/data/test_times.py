from __future__ import annotations

import datetime
import random

import pytest

from tfreid.data import times


@pytest.mark.parametrize(
  'text',
  [
    *('', '2024', '2024-03-01', '2024-03-01T', '09:15:00', '2024-03-01T09', '2024-02-30T09:15:00'),
    *('2024-03-01T25:00:00', '2024-03-01T09:60', '2024-03-01T09:15:00+24:00', '20240301T091500'),
    *('2024-03-01T09:15:00+01:60', 'x2024-03-01T09:15', '2024-03-01T09:15:00 UTC'),
    *('0001-01-01T00:00:00+01:00', '9999-12-31T23:59:59-01:00', '٢٠٢٤-03-01T09:15:00'),
  ],
)
def test_what_is_no_whole_time_stays_a_text(text):
  assert times.canonical(text) is None
  assert times.key(text) == text


def test_times_in_one_form_are_ordered_as_the_instants_they_name():
  draw = random.Random(0)
  moments = []
  for _ in range(300):
    zone = datetime.timezone(datetime.timedelta(minutes=draw.choice([0, 60, -90, 345, -720])))
    moment = datetime.datetime(
      *(
        2024,
        draw.choice([2, 3]),
        draw.choice([1, 28]),
        draw.choice([0, 23]),
        draw.choice([0, 59]),
      ),
      *(draw.choice([0, 1]), draw.choice([0, 0, 5, 500_000, 250_000, 999_999])),
      tzinfo=zone,
    )
    text = moment.isoformat(draw.choice(['T', ' ']))
    if draw.random() < 0.3:
      text = text.replace('+00:00', draw.choice(['Z', 'z', '+00', '+0000', ' +00:00']))
    moments.append((moment, times.canonical(text)))
  for (one, first), (other, second) in zip(moments, moments[1:]):
    assert times.has_offset(first)
    assert (one < other, one == other) == (first < second, first == second), (first, second)
    # Read again, it is the same.
    assert times.canonical(first) == times.key(first) == first
