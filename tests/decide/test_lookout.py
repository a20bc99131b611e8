"""At which iterations a hook looks whether an evaluation is due: by tables, then by a law."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.private import NEVER, Lookout, Schedule
from helpers.private import Answer_of_lookout as Answer

MINUTE = timedelta(minutes=1)


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def by_iterations(interval: Any, **options: Any) -> Lookout:
    return Lookout(Schedule(interval, by_epoch=False, **options), Clock())


@pytest.mark.parametrize(
    ("lookout", "done", "length", "next_look"),
    [
        (by_iterations(5), 0, None, 5),
        (by_iterations(5), 4, 10, 5),
        (by_iterations(5), 5, 10, 10),
        (by_iterations(5, start=7), 0, 10, 7),
        (by_iterations([3, 8]), 3, 10, 8),
        (by_iterations([3, 8]), 8, 10, NEVER),
        (by_iterations(None), 0, 10, NEVER),
        (Lookout(Schedule(0.25), Clock()), 0, 10, 3),
        (Lookout(Schedule(0.25), Clock()), 3, 10, 5),
        # Nobody looks at iterations to count epochs; a clock is looked at after each.
        (Lookout(Schedule(2), Clock()), 0, 10, 0),
        (Lookout(Schedule(MINUTE), Clock()), 0, 10, 0),
    ],
)
def test_it_looks_where_the_schedule_is_due_next(
    lookout: Lookout, done: int, length: int | None, next_look: int
) -> None:
    lookout.look_ahead(done, length)
    assert lookout.next_look == next_look


def test_after_forgetting_it_looks_at_once() -> None:
    lookout = by_iterations(5)
    lookout.look_ahead(0, None)
    lookout.forget()
    assert lookout.next_look == 0


def test_the_end_of_an_epoch_is_left_to_epoch_completed() -> None:
    lookout = Lookout(Schedule(0.5), Clock())
    assert [i for i in range(1, 21) if lookout.sees(i, (i + 9) // 10, 10, None)] == [5, 15]


@given(
    st.integers(1, 7) | st.lists(st.integers(1, 40), min_size=1, unique=True).map(sorted),
    st.none() | st.integers(0, 9),
)
def test_who_looks_only_where_it_says_sees_all_that_is_due(interval: Any, start: Any) -> None:
    schedule = Schedule(interval, by_epoch=False, start=None if type(interval) is list else start)
    lookout, seen = Lookout(schedule, Clock()), []
    lookout.look_ahead(0, 10)
    for iteration in range(1, 41):
        if iteration >= lookout.next_look:
            if lookout.sees(iteration, 1, 10, None):
                seen.append(iteration)
            lookout.look_ahead(iteration, 10)
    assert seen == [i for i in range(1, 41) if schedule.is_due(i)]


# -- by the clock -----------------------------------------------------------------------------


def clocked(interval: timedelta = MINUTE, **options: Any) -> tuple[Lookout, Clock]:
    clock = Clock()
    lookout = Lookout(Schedule(interval, **options), clock)
    lookout.wind_up(0)
    return lookout, clock


@pytest.mark.parametrize(("now", "due"), [(0.0, False), (59.9, False), (60.0, True), (90.0, True)])
def test_a_time_that_is_over_is_due(now: float, due: bool) -> None:
    lookout, clock = clocked()
    clock.now = now
    assert lookout.sees(7, 1, 10, None) is due
    assert lookout.next_look == 0  # one rank can afford to look each time


def test_the_time_begins_anew_when_it_is_wound_up() -> None:
    lookout, clock = clocked()
    clock.now = 60.0
    lookout.wind_up(7)
    assert not lookout.sees(8, 1, 10, None)
    clock.now = 120.0
    assert lookout.sees(9, 1, 10, None)


def test_before_its_start_no_time_is_over() -> None:
    lookout, clock = clocked(by_epoch=False, start=9)
    clock.now = 1000.0
    assert [i for i in (7, 8, 9, 10) if lookout.sees(i, 1, None, None)] == [9, 10]


def test_several_ranks_ask_rank_0_and_then_not_again_before_it_expects_the_end() -> None:
    lookout, clock = clocked()
    clock.now = 20.0
    told: list[Answer] = []

    def tell(answer: Any) -> Answer:
        told.append(answer())
        return told[-1]

    assert not lookout.sees(10, 1, None, tell)
    assert told == [(False, 20)]  # 10 iterations in 20 s: at most twice as far as it has come
    assert lookout.next_look == 20
    lookout.wind_up(15)  # after an evaluation on demand
    assert lookout.next_look == 0


def test_another_rank_obeys_what_it_is_told_whatever_its_own_clock_says() -> None:
    lookout, clock = clocked()
    clock.now = 1000.0
    assert not lookout.sees(10, 1, None, lambda answer: (False, 14))
    assert lookout.next_look == 14
    clock.now = 0.0
    assert lookout.sees(14, 1, None, lambda answer: (True, 15))


def test_a_part_of_an_epoch_needs_its_length() -> None:
    with pytest.raises(ValueError, match="epoch_length"):
        Lookout(Schedule(Fraction(1, 4)), Clock()).look_ahead(0, None)
