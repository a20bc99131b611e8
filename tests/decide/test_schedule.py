"""Test when a schedule is due: a table of steps, laws against a naive oracle, then faults."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import sys
from datetime import timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.private import Schedule, _schedule

MINUTE = timedelta(minutes=1)


def due_steps(schedule: Schedule, last: int, epoch_length: int | None = None) -> list[int]:
    return [step for step in range(last + 1) if schedule.is_due(step, epoch_length)]


# --- a table -----------------------------------------------------------------------------

STEPS: list[tuple[Schedule, list[int]]] = [
    (Schedule(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    (Schedule(3), [3, 6, 9, 12]),
    (Schedule(3, by_epoch=False), [3, 6, 9, 12]),
    (Schedule(20), []),
    (Schedule(2, start=3), [3, 5, 7, 9, 11]),
    (Schedule(5, start=2), [2, 7, 12]),
    (Schedule(5, start=5), [5, 10]),
    (Schedule(2, start=0), [0, 2, 4, 6, 8, 10, 12]),
    (Schedule(1, start=1), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    (Schedule([1, 2, 10]), [1, 2, 10]),
    (Schedule([0, 4]), [0, 4]),
    (Schedule([0]), [0]),
    (Schedule([1, 2, 10], start=2), [2, 10]),
    (Schedule([0, 1, 10], start=2), [10]),
    (Schedule([4, 5], start=0), [0, 4, 5]),
    (Schedule([0, 5], start=0), [0, 5]),
    (Schedule(5, dynamic_intervals=[(8, 1)]), [5, 8, 9, 10, 11, 12]),
    (Schedule(1, dynamic_intervals=[(4, 3), (10, 2)]), [1, 2, 3, 6, 9, 10, 12]),
    # The grid stays anchored: a change at 7 does not make 7 due.
    (Schedule(2, dynamic_intervals=[(7, 4)]), [2, 4, 6, 8, 12]),
    (Schedule(2, start=1, dynamic_intervals=[(6, 4)]), [1, 3, 5, 9]),
    (Schedule(2, start=3, dynamic_intervals=[(1, 3)]), [3, 6, 9, 12]),
    (Schedule(6, start=0, dynamic_intervals=[(1, 5)]), [0, 5, 10]),
    # A segment may be too short to hold a due step, and a later one may be coarser.
    (Schedule(3, dynamic_intervals=[(4, 100), (5, 4)]), [3, 8, 12]),
    (Schedule(1, dynamic_intervals=[]), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    (Schedule(None), []),
    (Schedule(MINUTE), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    (Schedule(MINUTE, start=0), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    (Schedule(MINUTE, start=10, by_epoch=False), [10, 11, 12]),
]


@pytest.mark.parametrize(("schedule", "steps"), STEPS, ids=repr)
def test_exactly_these_steps_up_to_12_are_due(schedule: Schedule, steps: list[int]) -> None:
    assert due_steps(schedule, 12) == steps


FRACTIONS: list[tuple[Schedule, int, list[int]]] = [
    (Schedule(0.25), 8, [2, 4, 6, 8, 10, 12]),
    (Schedule(0.25), 10, [3, 5, 8, 10]),
    (Schedule(0.5), 5, [3, 5, 8, 10]),
    (Schedule(0.3), 10, [3, 6, 9, 12]),
    (Schedule(Fraction(2, 3)), 5, [4, 7, 10]),
    (Schedule(0.1), 3, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    (Schedule(0.25), 1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    (Schedule(0.9), 2, [2, 4, 6, 8, 9, 11]),
    (Schedule(0.25, start=0), 10, [0, 3, 5, 8, 10]),
    (Schedule(0.5, start=1), 6, [6, 9, 12]),
    (Schedule(0.5, start=2), 5, [10]),
    (Schedule(Fraction(2, 3), start=1), 5, [5, 9, 12]),
]


@pytest.mark.parametrize(("schedule", "epoch_length", "iterations"), FRACTIONS)
def test_a_fraction_of_an_epoch_is_due_at_exactly_these_of_12_iterations(
    schedule: Schedule, epoch_length: int, iterations: list[int]
) -> None:
    assert due_steps(schedule, 12, epoch_length) == iterations


@pytest.mark.parametrize("n", [2, 3, 7, 10, 11, 100, 997])
def test_a_float_stands_for_the_fraction_that_it_was_meant_to_be(n: int) -> None:
    assert Schedule(1 / n).interval == Fraction(1, n)
    assert Schedule(np.float32(0.1)).interval == Fraction(1, 10)


def test_a_fraction_is_taken_as_it_is_however_small() -> None:
    assert Schedule(Fraction(1, 10**9)).interval == Fraction(1, 10**9)
    assert Schedule(Fraction(1, 10**9)).next_due(0, 10**10) == 10


def test_a_clocked_schedule_answers_from_the_iteration_at_which_its_start_epochs_end() -> None:
    schedule = Schedule(MINUTE, start=2)
    assert due_steps(schedule, 12, epoch_length=5) == [10, 11, 12]
    assert schedule.next_due(-1, 5) == 10
    assert schedule.next_due(10, 5) == 11


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        (Schedule(3), -1, 3),
        (Schedule(3), 3, 6),
        (Schedule(3, start=0), -1, 0),
        (Schedule(3, start=0), -7, 0),
        (Schedule(3, start=7), 2, 7),
        (Schedule([1, 5]), 1, 5),
        (Schedule([1, 5]), 5, None),
        (Schedule([1, 5], start=0), -1, 0),
        (Schedule([1, 5], start=0), 0, 1),
        (Schedule(None), -1, None),
        (Schedule(MINUTE), -1, 1),
        (Schedule(MINUTE, start=0), -1, 0),
    ],
)
def test_the_next_due_step_lies_strictly_after_the_given_one(
    schedule: Schedule, after: int, expected: int | None
) -> None:
    assert schedule.next_due(after) == expected


@pytest.mark.parametrize(
    ("schedule", "fraction", "clocked", "epochs", "length", "before"),
    [
        (Schedule(2), False, False, True, False, False),
        (Schedule(2, start=0), False, False, True, False, True),
        (Schedule(2, start=3), False, False, True, False, False),
        (Schedule(2, by_epoch=False), False, False, False, False, False),
        (Schedule([0, 2]), False, False, True, False, True),
        (Schedule([0, 2], start=1), False, False, True, False, False),
        (Schedule([2], start=0, by_epoch=False), False, False, False, False, True),
        (Schedule(0.5), True, False, False, True, False),
        (Schedule(0.5, start=0), True, False, False, True, True),
        (Schedule(0.5, start=1), True, False, False, True, False),
        (Schedule(MINUTE), False, True, False, False, False),
        (Schedule(MINUTE, start=0), False, True, False, False, True),
        (Schedule(MINUTE, start=1), False, True, False, True, False),
        (Schedule(MINUTE, start=1, by_epoch=False), False, True, False, False, False),
        (Schedule(None), False, False, True, False, False),
        (Schedule(None, by_epoch=False), False, False, False, False, False),
    ],
    ids=repr,
)
def test_the_properties_tell_what_is_counted_and_needed(
    schedule: Schedule, fraction: bool, clocked: bool, epochs: bool, length: bool, before: bool
) -> None:
    assert schedule.is_fraction is fraction
    assert schedule.is_clocked is clocked
    assert schedule.counts_epochs is epochs
    assert schedule.needs_epoch_length is length
    assert schedule.before_training is before
    assert schedule.is_due(0, 10) is before


def test_interval_at_names_the_interval_in_force() -> None:
    schedule = Schedule(10, dynamic_intervals=[(5, 2), (9, 1)])
    assert [schedule.interval_at(step) for step in (0, 4, 5, 8, 9, 100)] == [10, 10, 2, 2, 1, 1]
    assert Schedule(7).interval_at(3) == 7


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (Schedule(), "every epoch"),
        (Schedule(by_epoch=False), "every iteration"),
        (Schedule(2, start=3), "every 2 epochs from epoch 3"),
        (Schedule(500, by_epoch=False), "every 500 iterations"),
        (Schedule(500, start=20, by_epoch=False), "every 500 iterations from iteration 20"),
        (Schedule(2, start=0), "before training, then every 2 epochs"),
        (Schedule([1, 2, 10]), "at epochs 1, 2, 10"),
        (Schedule([1, 2, 10], start=2), "at epochs 2, 10"),
        (Schedule([1, 2, 10], start=3), "at epoch 10"),
        (Schedule([0, 7], by_epoch=False), "before training, then at iteration 7"),
        (Schedule([7], start=0), "before training, then at epoch 7"),
        (Schedule([0]), "before training only"),
        (Schedule(range(1, 11)), "at epochs 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
        (Schedule(range(1, 31)), "at epochs 1, 2, 3, 4, 5, 6, 7, 8, 9, ..., 30 (30 in all)"),
        (Schedule(0.25), "4 times an epoch"),
        (Schedule(1 / 3), "3 times an epoch"),
        (Schedule(0.3), "every 0.3 epochs"),
        (Schedule(Fraction(2, 3)), "every 2/3 epochs"),
        (Schedule(0.25, start=3), "4 times an epoch from epoch 3"),
        (Schedule(0.25, start=0), "before training, then 4 times an epoch"),
        (Schedule(timedelta(minutes=10)), "every 10 minutes"),
        (Schedule(timedelta(hours=1)), "every hour"),
        (Schedule(timedelta(minutes=90)), "every 1 hour 30 minutes"),
        (Schedule(timedelta(days=2, seconds=1)), "every 2 days 1 second"),
        (Schedule(timedelta(seconds=0.5)), "every 0.5 seconds"),
        (Schedule(timedelta(hours=1), start=2), "every hour from epoch 2"),
        (
            Schedule(timedelta(hours=1), start=9, by_epoch=False),
            "every hour from iteration 9",
        ),
        (Schedule(timedelta(hours=1), start=0), "before training, then every hour"),
        (
            Schedule(10, dynamic_intervals=[(285, 1)]),
            "every 10 epochs, then every epoch from epoch 285",
        ),
        (
            Schedule(10, start=3, dynamic_intervals=[(2, 5), (20, 2)]),
            "every 5 epochs from epoch 3, then every 2 epochs from epoch 20",
        ),
        (
            Schedule(10, start=0, by_epoch=False, dynamic_intervals=[(8, 4)]),
            "before training, then every 10 iterations, then every 4 iterations from iteration 8",
        ),
        (Schedule(10, dynamic_intervals=[(1, 3)]), "every 3 epochs"),
        (Schedule(None), "on demand only"),
    ],
)
def test_a_schedule_says_in_plain_words_what_it_does(schedule: Schedule, words: str) -> None:
    assert str(schedule) == words


# --- the value ---------------------------------------------------------------------------

VALUES = [
    Schedule(2, start=3),
    Schedule([0, 5], by_epoch=False),
    Schedule(0.1, start=1),
    Schedule(MINUTE),
    Schedule(5, dynamic_intervals=[(8, 1)]),
    Schedule(None),
]


@pytest.mark.parametrize("schedule", VALUES, ids=repr)
def test_a_schedule_survives_pickle_copy_replace_and_its_own_repr(schedule: Schedule) -> None:
    scope = {"Schedule": Schedule, "Fraction": Fraction, "datetime": sys.modules["datetime"]}
    copies = [
        *(pickle.loads(pickle.dumps(schedule, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)),
        copy.copy(schedule),
        copy.deepcopy(schedule),
        dataclasses.replace(schedule),
        eval(repr(schedule), scope),
    ]
    for twin in copies:
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert str(twin) == str(schedule)


def test_equal_meanings_are_equal_values_and_hash_alike() -> None:
    integer: Any = np.int64(2)
    steps: Any = np.array([1, 2, 10])
    pairs: Any = [[8, 1]]
    twins = [
        (Schedule(2, start=3), Schedule(integer, start=np.int32(3))),
        (Schedule([1, 2, 10]), Schedule((1, 2, 10))),
        (Schedule([1, 2, 10]), Schedule(steps)),
        (Schedule(0.1), Schedule(Fraction(1, 10))),
        (Schedule(5, dynamic_intervals=[(8, 1)]), Schedule(5, dynamic_intervals=pairs)),
        (Schedule(5), Schedule(5, dynamic_intervals=())),
    ]
    for one, other in twins:
        assert one == other
        assert hash(one) == hash(other)
        assert repr(one) == repr(other)
    assert len({*VALUES, *VALUES}) == len(VALUES)
    assert Schedule(2) != Schedule(2, by_epoch=False)


def test_foreign_integers_become_plain_ones() -> None:
    given: Any = np.array([3, 4])
    interval = Schedule(given).interval
    assert isinstance(interval, tuple)
    assert [type(step) for step in interval] == [int, int]
    assert type(Schedule(1, start=np.int64(1)).start) is int


def test_a_list_that_changes_later_does_not_change_the_schedule() -> None:
    steps = [1, 2]
    schedule = Schedule(steps)
    steps.append(3)
    assert schedule.interval == (1, 2)


def test_a_schedule_cannot_be_changed_and_has_no_room_for_more() -> None:
    schedule = Schedule(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.interval = 3  # type: ignore[misc]
    assert not hasattr(schedule, "__dict__")


def test_all_but_the_interval_is_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        Schedule(2, 3)  # type: ignore[call-arg]


def test_the_module_imports_neither_torch_nor_ignite() -> None:
    assert not {"torch", "ignite", "time"} & vars(_schedule).keys()


# --- laws, against an oracle that reads the definition literally -----------------------------

HORIZON = 60
starts = st.none() | st.integers(0, 25)


def oracle_int(step: int, interval: int, start: int | None) -> bool:
    if start is None:
        return step > 0 and step % interval == 0
    return step >= start and (step - start) % interval == 0


def oracle_dynamic(
    step: int, interval: int, start: int | None, changes: list[tuple[int, int]]
) -> bool:
    for from_step, changed in changes:
        if step >= from_step:
            interval = changed
    return oracle_int(step, interval, start)


def oracle_listed(step: int, steps: list[int], start: int | None) -> bool:
    if start is None:
        return step in steps
    return (step == 0 and start == 0) or (step in steps and step >= start)


def oracle_part(part: Fraction, length: int, start: int | None) -> set[int]:
    anchor = 0 if start is None else start * length
    enough = math.ceil(HORIZON / part)
    return {anchor + math.ceil(k * part * length) for k in range(start is None, enough + 1)}


def agrees(schedule: Schedule, truth: list[int], length: int | None = None) -> None:
    """Check every answer up to the horizon, from every point at which a run may resume."""
    assert due_steps(schedule, HORIZON, length) == truth
    assert schedule.before_training is (0 in truth)
    for after in range(-3, HORIZON):
        walked = [after]
        step = schedule.next_due(after, length)
        while step is not None and step <= HORIZON:
            assert step > walked[-1]  # or this would never end
            walked.append(step)
            step = schedule.next_due(step, length)
        assert walked[1:] == [step for step in truth if step > after]
        assert step is None or step > HORIZON


@given(interval=st.integers(1, 30), start=starts, by_epoch=st.booleans())
def test_an_integer_agrees_with_its_definition(
    interval: int, start: int | None, by_epoch: bool
) -> None:
    truth = [step for step in range(HORIZON + 1) if oracle_int(step, interval, start)]
    agrees(Schedule(interval, start=start, by_epoch=by_epoch), truth)


@given(
    interval=st.integers(1, 30),
    start=starts,
    changes=st.dictionaries(st.integers(1, 50), st.integers(1, 20), max_size=5),
)
def test_dynamic_intervals_agree_with_their_definition(
    interval: int, start: int | None, changes: dict[int, int]
) -> None:
    pairs = sorted(changes.items())
    truth = [s for s in range(HORIZON + 1) if oracle_dynamic(s, interval, start, pairs)]
    agrees(Schedule(interval, start=start, dynamic_intervals=pairs), truth)


@given(steps=st.sets(st.integers(0, 50), min_size=1), start=starts)
def test_a_list_of_steps_agrees_with_its_definition(steps: set[int], start: int | None) -> None:
    ordered = sorted(steps)
    if start is not None:
        start = min(start, ordered[-1])
    truth = [step for step in range(HORIZON + 1) if oracle_listed(step, ordered, start)]
    agrees(Schedule(ordered, start=start), truth)


parts = st.fractions(Fraction(1, 30), Fraction(29, 30), max_denominator=30)


@given(
    part=parts,
    as_float=st.booleans(),
    length=st.integers(1, 40),
    start=st.none() | st.integers(0, 4),
)
def test_a_fraction_of_an_epoch_agrees_with_its_definition(
    part: Fraction, as_float: bool, length: int, start: int | None
) -> None:
    truth = sorted(step for step in oracle_part(part, length, start) if step <= HORIZON)
    agrees(Schedule(float(part) if as_float else part, start=start), truth, length)


@given(n=st.integers(2, 50), extra=st.integers(0, 200), epoch=st.integers(0, 1000))
def test_one_nth_of_an_epoch_gives_n_evaluations_in_every_epoch_the_last_at_its_end(
    n: int, extra: int, epoch: int
) -> None:
    schedule, length = Schedule(1 / n), n + extra
    begin, end = epoch * length, (epoch + 1) * length
    inside = [i for i in range(begin + 1, end + 1) if schedule.is_due(i, length)]
    assert len(inside) == n
    assert inside[-1] == end
    gaps = [later - earlier for earlier, later in zip([begin, *inside], inside, strict=False)]
    assert max(gaps) - min(gaps) <= 1


@given(steps=st.integers(10**12, 10**15), interval=st.integers(1, 10**9))
def test_far_away_steps_are_as_exact_as_near_ones(steps: int, interval: int) -> None:
    following = Schedule(interval).next_due(steps)
    assert following == (steps // interval + 1) * interval
    nearest = Schedule(0.1).next_due(steps, 7)
    assert nearest is not None
    assert nearest == min(s for s in range(steps + 1, steps + 3) if (s * 10) % 7 < 10)


def test_a_distant_next_step_is_computed_and_not_searched_for() -> None:
    # A search would not come back.
    assert Schedule(10**15).next_due(1) == 10**15
    assert Schedule(0.5).next_due(1, 10**15) == 5 * 10**14
    assert Schedule(1, dynamic_intervals=[(2, 10**15)]).next_due(2) == 10**15
    assert Schedule(1, start=10**15).next_due(1) == 10**15


# --- faults ------------------------------------------------------------------------------

FAULTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"interval": 0}, ValueError, r"interval must be a positive integer, got 0; interval=None"),
    ({"interval": -1}, ValueError, r"interval must be a positive integer, got -1; .*on demand"),
    ({"interval": np.int64(0)}, ValueError, r"interval must be a positive integer, got 0;"),
    ({"interval": True}, TypeError, r"interval must be a positive integer, .*got True"),
    ({"interval": np.True_}, TypeError, r"interval must be a positive integer, .*True"),
    ({"interval": "2"}, TypeError, r"interval must be a positive integer, .*got '2'"),
    ({"interval": "10 minutes"}, TypeError, r"a datetime.timedelta or None, got '10 minutes'"),
    ({"interval": {1: 2}}, TypeError, r"a sorted list of steps, .*got \{1: 2\}"),
    ({"interval": {1, 2}}, TypeError, r"a sorted list of steps, .*got \{1, 2\}"),
    ({"interval": object}, TypeError, r"interval must be a positive integer, .*got <class"),
    ({"interval": 1j}, TypeError, r"interval must be a positive integer, .*got 1j"),
    ({"interval": 2.0}, ValueError, r"between 0 and 1, got 2.0; pass the integer 2$"),
    ({"interval": 1.0}, ValueError, r"between 0 and 1, got 1.0; pass the integer 1$"),
    ({"interval": 2.0, "by_epoch": False}, ValueError, r"pass the integer 2$"),
    ({"interval": Fraction(3)}, ValueError, r"pass the integer 3$"),
    ({"interval": 1.5}, ValueError, r"between 0 and 1, got 1.5; by_epoch=False counts iter"),
    ({"interval": Fraction(3, 2)}, ValueError, r"between 0 and 1, got Fraction\(3, 2\)"),
    ({"interval": 0.0}, ValueError, r"between 0 and 1, got 0.0"),
    ({"interval": -0.5}, ValueError, r"between 0 and 1, got -0.5"),
    ({"interval": math.nan}, ValueError, r"between 0 and 1, got nan"),
    ({"interval": math.inf}, ValueError, r"between 0 and 1, got inf"),
    ({"interval": 1e-9}, ValueError, r"not within a millionth of either, got 1e-09; pass a frac"),
    ({"interval": 1 - 1e-9}, ValueError, r"not within a millionth of either, got 0.999999999;"),
    (
        {"interval": 0.25, "by_epoch": False},
        ValueError,
        r"interval=0.25 is a fraction of an epoch and needs by_epoch=True, got by_epoch=False",
    ),
    ({"interval": []}, ValueError, r"interval must name at least one step, got an empty list"),
    ({"interval": [1, 2.0]}, TypeError, r"interval\[1\] must be a non-negative integer, got 2.0"),
    ({"interval": [True]}, TypeError, r"interval\[0\] must be a non-negative integer, got True"),
    ({"interval": ["1"]}, TypeError, r"interval\[0\] must be a non-negative integer, got '1'"),
    ({"interval": [-1, 2]}, ValueError, r"interval\[0\] must be a non-negative integer, got -1"),
    (
        {"interval": [3, 1, 3]},
        ValueError,
        r"the steps in interval must be strictly increasing, got \[3, 1, 3\]; in order: \[1, 3\]",
    ),
    ({"interval": [2, 2]}, ValueError, r"must be strictly increasing, got \[2, 2\]"),
    (
        {"interval": [1, 2], "start": 3},
        ValueError,
        r"start=3 leaves none of the steps in interval=\[1, 2\]; start must be at most 2",
    ),
    ({"interval": [0], "start": 1}, ValueError, r"start=1 leaves none of the steps"),
    ({"interval": timedelta(0)}, ValueError, r"interval must be a positive time, got datetime"),
    ({"interval": -MINUTE}, ValueError, r"interval must be a positive time, got datetime"),
    ({"interval": None, "start": 0}, ValueError, r"takes no start, got start=0; interval=\[0\]"),
    (
        {"interval": None, "dynamic_intervals": [(2, 1)]},
        ValueError,
        r"dynamic_intervals needs an integer interval to begin with, got None",
    ),
    ({"start": -1}, ValueError, r"start must be a non-negative integer, got -1; start=0 eval"),
    ({"start": True}, TypeError, r"start must be a non-negative integer, got True"),
    ({"start": 1.0}, TypeError, r"start must be a non-negative integer, got 1.0"),
    ({"start": "3"}, TypeError, r"start must be a non-negative integer, got '3'"),
    ({"by_epoch": 1}, TypeError, r"by_epoch must be True or False, got 1"),
    ({"by_epoch": "False"}, TypeError, r"by_epoch must be True or False, got 'False'"),
    ({"dynamic_intervals": (285, 1)}, TypeError, r"such as \[\(285, 1\)\], got \(285, 1\)"),
    ({"dynamic_intervals": [(285,)]}, TypeError, r"a list of pairs .*, got \[\(285,\)\]"),
    ({"dynamic_intervals": {285: 1}}, TypeError, r"a list of pairs .*, got \{285: 1\}"),
    ({"dynamic_intervals": 5}, TypeError, r"a list of pairs .*, got 5"),
    (
        {"dynamic_intervals": [(0, 1)]},
        ValueError,
        r"dynamic_intervals\[0\]\[0\] must be a positive integer, got 0; .*holds before the first",
    ),
    (
        {"dynamic_intervals": [(1, 1), (2, 0)]},
        ValueError,
        r"dynamic_intervals\[1\]\[1\] must be a positive integer, got 0",
    ),
    ({"dynamic_intervals": [(1, True)]}, TypeError, r"must be a positive integer, got True"),
    ({"dynamic_intervals": [(1, 0.5)]}, TypeError, r"must be a positive integer, got 0.5"),
    (
        {"dynamic_intervals": [(9, 1), (3, 2)]},
        ValueError,
        r"the from_steps in dynamic_intervals must be strictly increasing, got \[9, 3\]",
    ),
    ({"dynamic_intervals": [(3, 1), (3, 2)]}, ValueError, r"strictly increasing, got \[3, 3\]"),
    *(
        (
            {"interval": interval, "dynamic_intervals": [(2, 1)]},
            ValueError,
            r"dynamic_intervals needs an integer interval to begin with",
        )
        for interval in (0.5, [1, 2], MINUTE)
    ),
]


@pytest.mark.parametrize(("arguments", "kind", "words"), FAULTS, ids=str)
def test_a_wrong_argument_is_refused_with_words(
    arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        Schedule(**arguments)


@pytest.mark.parametrize("length", [None, 0, -3, 2.5, True])
@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (Schedule(0.25), "interval=0.25 needs the length of an epoch"),
        (Schedule(1 / 3), "interval=1/3 needs the length of an epoch"),
        (Schedule(MINUTE, start=2), "start=2 counts epochs .* needs the length of an epoch"),
    ],
)
def test_an_unknown_epoch_length_is_an_error_that_says_where_to_pass_it(
    schedule: Schedule, words: str, length: Any
) -> None:
    words += f".*got epoch_length={length}; pass epoch_length= to trainer.run"
    with pytest.raises(ValueError, match=words):
        schedule.next_due(0, length)
    with pytest.raises(ValueError, match=words):
        schedule.is_due(1, length)


def test_an_epoch_length_that_is_not_needed_is_not_read() -> None:
    for schedule in (Schedule(2), Schedule([2]), Schedule(MINUTE, start=0), Schedule(None)):
        nothing: Any = "nothing"
        assert schedule.next_due(0, nothing) == schedule.next_due(0)


@pytest.mark.parametrize("interval", [[1, 2], 0.5, MINUTE, None])
def test_interval_at_is_refused_where_there_is_no_integer_interval(interval: Any) -> None:
    with pytest.raises(ValueError, match="interval_at answers for an integer interval, got"):
        Schedule(interval).interval_at(1)
