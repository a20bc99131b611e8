"""Test where training stands and what is due there: tables of counters, then laws, then words."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.private import (
    START,
    Position,
    Schedule,
    check_ever_due,
    is_due_here,
    is_due_on_takeover,
    position,
    total_iterations,
)

EPOCHS, ITERATIONS, QUARTERS = Schedule(1), Schedule(1, by_epoch=False), Schedule(0.25)
HOUR = timedelta(hours=1)


def state(
    epoch: int = 0,
    iteration: int = 0,
    length: int | None = 4,
    max_epochs: int | None = 10,
    max_iters: int | None = None,
) -> Any:
    return SimpleNamespace(
        epoch=epoch,
        iteration=iteration,
        epoch_length=length,
        max_epochs=max_epochs,
        max_iters=max_iters,
    )


# --- where training stands ---------------------------------------------------------------

POSITIONS: list[tuple[Any, Schedule, dict[str, Any], Position]] = [
    (state(0, 0), EPOCHS, {}, START),
    (state(0, 0), ITERATIONS, {}, START),
    # Ignite counts an epoch when it starts; nothing of it is completed then.
    (state(1, 0), EPOCHS, {}, START),
    (state(1, 0), EPOCHS, {"epoch_started": True}, START),
    (state(1, 0, None), EPOCHS, {}, START),
    (state(1, 3), EPOCHS, {}, Position(1, 3, 1)),
    (state(1, 3), ITERATIONS, {}, Position(1, 3, 3)),
    (state(1, 3), QUARTERS, {}, Position(1, 3, 3)),
    (state(1, 3), Schedule(HOUR), {}, Position(1, 3, 3)),
    (state(1, 3, None), EPOCHS, {}, Position(1, 3, 1)),
    (state(2, 8), EPOCHS, {}, Position(2, 8, 2)),
    (state(3, 8), EPOCHS, {"epoch_started": True}, Position(2, 8, 2)),
    (state(3, 8), ITERATIONS, {"epoch_started": True}, Position(2, 8, 8)),
    # A trainer loaded in the middle of epoch 3 counts two, until it runs.
    (state(2, 9), EPOCHS, {}, Position(3, 9, 3)),
    (state(3, 9), EPOCHS, {"epoch_started": True}, Position(3, 9, 3)),
    # Epochs that terminate_epoch() cut short leave the iterations behind.
    (state(5, 9), EPOCHS, {}, Position(5, 9, 5)),
    # Somebody has seen where the epoch began: epochs may be of any length.
    (state(3, 6, 100), EPOCHS, {"began": (2, 6)}, Position(2, 6, 2)),
    (state(3, 8, 100), EPOCHS, {"began": (2, 6)}, Position(3, 8, 3)),
    (state(3, 8, 100), ITERATIONS, {"began": (2, 6)}, Position(3, 8, 8)),
    (state(2, 8, 3), EPOCHS, {"began": (2, 7)}, Position(3, 8, 3)),
    # An iteration that has started is counted by Ignite and not completed.
    (state(1, 1), EPOCHS, {"iteration_started": True}, START),
    (state(1, 1), ITERATIONS, {"iteration_started": True}, START),
    (state(2, 7), ITERATIONS, {"iteration_started": True}, Position(2, 6, 6)),
    (state(2, 5), EPOCHS, {"iteration_started": True}, Position(2, 4, 2)),
]


@pytest.mark.parametrize(("at", "schedule", "event", "expected"), POSITIONS)
def test_training_stands_where_its_completed_iterations_say(
    at: Any, schedule: Schedule, event: dict[str, Any], expected: Position
) -> None:
    assert position(at, schedule, **event) == expected


def test_a_position_says_in_words_where_it_is() -> None:
    assert str(START) == "the start"
    assert str(Position(3, 9, 3)) == "epoch 3 (iteration 9)"


# --- what is due there -------------------------------------------------------------------

DUE: list[tuple[Any, Schedule, dict[str, Any], bool]] = [
    (state(0, 0), EPOCHS, {}, False),
    (state(0, 0), Schedule(1, start=0), {}, True),
    (state(1, 0), Schedule(1, start=0), {"epoch_started": True}, True),
    (state(0, 0), Schedule([0, 3]), {}, True),
    (state(0, 0), Schedule(HOUR, start=0), {}, True),
    (state(1, 4), EPOCHS, {}, True),
    (state(1, 4), EPOCHS, {"epoch_completed": True}, True),
    (state(1, 3), EPOCHS, {}, False),
    # terminate_epoch(): Ignite says that the epoch is completed, whatever the iterations say.
    (state(1, 3), EPOCHS, {"epoch_completed": True}, True),
    (state(2, 6), Schedule(3), {"epoch_completed": True}, False),
    (state(1, 4, None), EPOCHS, {}, False),
    (state(1, 4, None), EPOCHS, {"epoch_completed": True}, True),
    (state(2, 8), Schedule(2), {}, True),
    (state(3, 8), Schedule(2), {}, False),
    (state(3, 8), Schedule(2), {"epoch_started": True}, True),
    (state(3, 8), Schedule(3), {"epoch_started": True}, False),
    (state(3, 12), Schedule(2), {}, False),
    (state(3, 8, 100), Schedule(2), {"began": (2, 8)}, True),
    (state(3, 9, 100), Schedule(3), {"began": (2, 8)}, False),
    (state(3, 9, 100), Schedule(3), {"began": (2, 8), "epoch_completed": True}, True),
    (state(3, 11, 3), Schedule(3), {"began": (2, 8)}, True),  # whole
    (state(3, 9), Schedule(3, by_epoch=False), {}, True),
    (state(3, 10), Schedule(3, by_epoch=False), {}, False),
    (state(1, 3), QUARTERS, {}, True),
    (state(1, 3), Schedule(0.5), {}, False),
    (state(1, 4), Schedule(0.5), {"epoch_completed": True}, True),
    (state(3, 9), Schedule(HOUR), {}, False),
    (state(3, 9), Schedule(HOUR, start=0), {}, False),
    (state(3, 9), Schedule(None), {}, False),
]


@pytest.mark.parametrize(("at", "schedule", "event", "due"), DUE)
def test_an_evaluation_is_due_where_the_schedule_says(
    at: Any, schedule: Schedule, event: dict[str, Any], due: bool
) -> None:
    assert is_due_here(position(at, schedule, **event), schedule, at.epoch_length) is due


TAKEOVERS: list[tuple[Any, Schedule, bool]] = [
    (state(3, 12), Schedule(5), False),
    (state(3, 12), Schedule(5, start=0), True),
    (state(3, 12), Schedule(5, start=3), True),
    (state(3, 12), Schedule(5, start=4), False),
    (state(2, 11), Schedule(5, start=3), False),  # in the middle of epoch 3
    (state(3, 12, None), Schedule(5, start=3), True),
    (state(3, 12), Schedule(5, start=12, by_epoch=False), True),
    (state(3, 12), Schedule(5, start=13, by_epoch=False), False),
    (state(3, 12), Schedule(0.5, start=3), True),
    (state(3, 12), Schedule(0.5, start=4), False),
    (state(3, 12), Schedule([5, 6], start=3), True),
    # start counts epochs beside a time as well.
    (state(3, 12), Schedule(HOUR, start=3), True),
    (state(3, 12), Schedule(HOUR, start=4), False),
    (state(3, 12), Schedule(HOUR, start=12, by_epoch=False), True),
    (state(3, 12), Schedule(HOUR, start=13, by_epoch=False), False),
]


@pytest.mark.parametrize(("at", "schedule", "due"), TAKEOVERS)
def test_a_run_taken_over_is_evaluated_first_if_start_is_reached(
    at: Any, schedule: Schedule, due: bool
) -> None:
    assert is_due_on_takeover(at, schedule) is due


def test_the_end_of_a_run_is_known_from_its_epochs_or_its_iterations() -> None:
    assert total_iterations(state(max_epochs=3)) == 12
    assert total_iterations(state(max_epochs=3, max_iters=10)) == 10
    assert total_iterations(state(max_epochs=None, max_iters=10)) == 10
    assert total_iterations(state(length=None)) is None
    assert total_iterations(state(max_epochs=None)) is None


def test_an_engine_that_knows_no_max_iters_is_understood() -> None:
    old = SimpleNamespace(epoch=0, iteration=0, epoch_length=4, max_epochs=3)
    assert total_iterations(old) == 12
    check_ever_due(old, EPOCHS, at_end=False)


# --- laws --------------------------------------------------------------------------------


@given(
    length=st.integers(1, 5),
    epochs=st.integers(1, 4),
    interval=st.integers(1, 6),
    start=st.none() | st.integers(0, 6),
    by_epoch=st.booleans(),
)
def test_walking_through_a_run_finds_each_due_step_once_it_is_completed(
    length: int, epochs: int, interval: int, start: int | None, by_epoch: bool
) -> None:
    schedule = Schedule(interval, start=start, by_epoch=by_epoch)
    found = [0] if is_due_here(START, schedule, length) else []
    for iteration in range(1, length * epochs + 1):
        at = state(math.ceil(iteration / length), iteration, length, epochs)
        if is_due_here(position(at, schedule), schedule, length):
            found.append(position(at, schedule).step)
    total = epochs if by_epoch else length * epochs
    first = 1 if start is None else start
    anchor = start or 0
    assert found == [s for s in range(first, total + 1) if (s - anchor) % interval == 0]


@given(
    length=st.integers(1, 6),
    total=st.integers(1, 30),
    by_epochs=st.booleans(),
    schedule=st.builds(
        lambda interval, start, by_epoch: Schedule(interval, start=start, by_epoch=by_epoch),
        st.integers(1, 12) | st.lists(st.integers(12, 15), min_size=1, unique=True).map(sorted),
        st.none() | st.integers(0, 12),
        st.booleans(),
    )
    | st.builds(
        lambda parts, start: Schedule(Fraction(*sorted(parts)), start=start),
        st.lists(st.integers(1, 9), min_size=2, max_size=2, unique=True),
        st.none() | st.integers(0, 6),
    ),
)
def test_a_schedule_is_refused_exactly_if_no_step_of_the_run_is_due(
    length: int, total: int, by_epochs: bool, schedule: Schedule
) -> None:
    run = state(0, 0, length, max_epochs=None, max_iters=total)
    if by_epochs:
        run = state(0, 0, length, max_epochs=total)
        total *= length
    places = [position(state(math.ceil(i / length), i, length), schedule) for i in range(total + 1)]
    ever = any(is_due_here(at, schedule, length) for at in places)
    if ever:
        check_ever_due(run, schedule, at_end=False)
    else:
        with pytest.raises(ValueError, match="no evaluation would ever be due"):
            check_ever_due(run, schedule, at_end=False)
    check_ever_due(run, schedule, at_end=True)


# --- words -------------------------------------------------------------------------------

NEVER: list[tuple[Any, Schedule, str]] = [
    (
        state(max_epochs=30),
        Schedule(500),
        "interval=500 counts epochs and this run has 30, so no evaluation would ever be due; "
        "by_epoch=False counts iterations, at_end=True evaluates at the end",
    ),
    (
        state(max_epochs=3),
        Schedule(13, by_epoch=False),
        "interval=13 counts iterations and this run has 12, so no evaluation would ever be due; "
        "by_epoch=True counts epochs, at_end=True evaluates at the end",
    ),
    (
        state(max_epochs=30),
        Schedule(2, start=31),
        "start=31 with interval=2 counts epochs and this run has 30",
    ),
    (state(max_epochs=3), Schedule([4, 5]), "interval=[4, 5] counts epochs and this run has 3"),
    (
        state(max_epochs=3),
        Schedule(0.25, start=4),
        "start=4 with interval=1/4 counts epochs and this run has 3, so no evaluation would ever "
        "be due; start= counts epochs",
    ),
    # Ten iterations complete two epochs of four.
    (
        state(max_epochs=None, max_iters=10),
        Schedule(3),
        "interval=3 counts epochs and this run has 2",
    ),
    # Ignite rounds them up to three epochs when it has met the end of an unsized loader.
    (
        state(max_epochs=3, max_iters=10),
        Schedule(3),
        "interval=3 counts epochs and this run has 2",
    ),
    (
        state(max_epochs=None, max_iters=10),
        Schedule(11, by_epoch=False),
        "interval=11 counts iterations and this run has 10",
    ),
    (
        state(max_epochs=3),
        Schedule(HOUR, start=4),
        "start=4 with interval=1:00:00 counts epochs and this run has 3",
    ),
    (
        state(max_epochs=3),
        Schedule(HOUR, start=13, by_epoch=False),
        "start=13 with interval=1:00:00 counts iterations and this run has 12",
    ),
]


@pytest.mark.parametrize(("run", "schedule", "words"), NEVER)
def test_a_schedule_that_is_never_due_is_refused_in_these_words(
    run: Any, schedule: Schedule, words: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        check_ever_due(run, schedule, at_end=False)


@pytest.mark.parametrize(
    ("run", "schedule"),
    [
        (state(max_epochs=3), Schedule(3)),
        (state(max_epochs=3), Schedule(12, by_epoch=False)),
        (state(max_epochs=3), Schedule([0, 100])),
        (state(max_epochs=3), Schedule(100, start=0)),
        (state(max_epochs=3), Schedule(None)),
        (state(max_epochs=3), Schedule(HOUR)),
        (state(max_epochs=3), Schedule(HOUR, start=3)),
        (state(max_epochs=3), Schedule(HOUR, start=0)),
        (state(length=None), Schedule(100, by_epoch=False)),  # nobody knows how long it is
        (state(length=None), Schedule(HOUR, start=100, by_epoch=False)),
        (state(length=None, max_epochs=None, max_iters=10), Schedule(100)),
        # What has been due before a restart counts.
        (state(8, 32, max_epochs=9), Schedule([2])),
    ],
)
def test_a_schedule_that_may_be_due_passes(run: Any, schedule: Schedule) -> None:
    check_ever_due(run, schedule, at_end=False)


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (QUARTERS, r"interval=0\.25 needs the length of an epoch.*got epoch_length=None"),
        (Schedule(HOUR, start=2), "start=2 counts epochs beside a time.*needs the length of an ep"),
    ],
)
def test_an_unknown_epoch_length_is_refused_where_it_is_needed(
    schedule: Schedule, words: str, at_end: bool
) -> None:
    with pytest.raises(ValueError, match=words):
        check_ever_due(state(length=None), schedule, at_end=at_end)
