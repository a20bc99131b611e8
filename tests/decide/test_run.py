"""What a hook remembers of a run, and how it compares with where a trainer stands."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.private import (
    START,
    EvalRecord,
    History,
    Position,
    Run,
    RunState,
    check_same_standing,
    had_ended,
    put_back,
)
from ignite_evalhook.exceptions import StateError


def history(*iterations: int) -> History:
    found = History()
    for iteration in iterations:
        found.append(EvalRecord(iteration, iteration, {"acc": 0.5}, (), False, 8, 0.1))
    return found


def trainer_state(iteration: int = 0, *, length: int | None = 4, max_epochs: int | None = 5) -> Any:
    return SimpleNamespace(iteration=iteration, epoch=0, epoch_length=length, max_epochs=max_epochs)


def loaded(iteration: int, epoch: int = 5) -> RunState:
    return RunState("abc", history(), epoch, iteration)


@pytest.mark.parametrize(
    ("of_state", "here", "at_start", "ended"),
    [
        (20, 20, True, False),
        (20, 24, False, False),
        (0, 0, True, False),
        # Ignite begins a finished run again.
        (20, 0, True, True),
        (24, 0, True, True),
        # The trainer is behind for another reason.
        (19, 0, True, None),
        (20, 0, False, None),
        (20, 4, True, None),
    ],
)
def test_a_run_had_ended_if_its_trainer_begins_it_again(
    of_state: int, here: int, at_start: bool, ended: bool | None
) -> None:
    if ended is not None:
        assert had_ended(loaded(of_state), trainer_state(here), at_start=at_start) is ended
        return
    words = f"state is of iteration {of_state}, but the trainer stands at {here}; load"
    with pytest.raises(StateError, match=words):
        had_ended(loaded(of_state), trainer_state(here), at_start=at_start)


def test_a_run_of_unknown_length_never_had_ended() -> None:
    with pytest.raises(StateError):
        had_ended(loaded(20), trainer_state(0, length=None), at_start=True)


@pytest.mark.parametrize(
    ("length", "max_epochs", "counters"),
    [(4, 5, (18, 5, 5)), (4, 4, (18, 5, 5)), (4, None, (18, 5, None)), (None, 5, (18, 7, 7))],
)
def test_counters_are_put_back_where_the_run_had_ended(
    length: int | None, max_epochs: int | None, counters: tuple[int, int, int | None]
) -> None:
    state = trainer_state(0, length=length, max_epochs=max_epochs)
    put_back(loaded(18, epoch=7), state)
    assert (state.iteration, state.epoch, state.max_epochs) == counters


def test_a_new_run_has_a_name_of_its_own_and_knows_nothing() -> None:
    run = Run()
    first = run.id
    run.start_over()
    assert run.id != first
    assert (len(run.history), run.reaches(), run.is_known, run.is_under_way) == (0, 0, False, False)


@pytest.mark.parametrize(
    ("begun", "ran", "under_way"),
    [(False, False, False), (True, False, False), (False, True, False), (True, True, True)],
)
def test_a_run_is_under_way_when_the_trainer_and_the_hook_have_begun_it(
    begun: bool, ran: bool, under_way: bool
) -> None:
    run = Run()
    run.has_begun, run.has_run = begun, ran
    assert run.is_under_way is under_way


def test_a_history_that_reaches_beyond_the_trainer_is_refused() -> None:
    run = Run()
    run.history = history(4, 8)
    run.check_reached(8)
    with pytest.raises(StateError, match="reaches iteration 8, the trainer stands at 7"):
        run.check_reached(7)


@pytest.mark.parametrize(
    ("iterations", "of_state", "at", "iteration"),
    [
        ((), None, START, 0),
        ((), None, Position(2, 7, 2), 7),
        ((4, 8), None, Position(2, 7, 2), 8),
        ((4,), 20, START, 20),
    ],
)
def test_a_state_is_of_the_latest_iteration_known(
    iterations: tuple[int, ...], of_state: int | None, at: Position, iteration: int
) -> None:
    run = Run()
    run.start_over(None if of_state is None else loaded(of_state))
    run.history = history(*iterations)
    assert run.state("val", at)["iteration"] == iteration


def test_a_state_comes_back() -> None:
    run = Run()
    run.history = history(4, 8)
    state = run.state("val", Position(2, 8, 2))
    other = Run()
    other.start_over(RunState.read(state, "val"))
    assert other.is_known
    assert not other.has_begun
    assert other.state("val", START) == {**state, "epoch": 0}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"version": 9}, StateError, "the state has version 9, not 1"),
        ({"name": "other"}, StateError, "the state is of the hook 'other', this one is 'val'"),
        ({"run_id": 3}, ValueError, "run_id is 3"),
        ({"epoch": "2"}, ValueError, "epoch is '2'"),
        ({"iteration": None}, ValueError, "iteration is None"),
        ({"epochs": -1}, ValueError, "epochs is -1"),
        ({"into": "2"}, ValueError, "into is '2'"),
    ],
)
def test_a_state_of_something_else_is_refused(
    change: dict[str, Any], error: type[Exception], words: str
) -> None:
    state = {**Run().state("val", START), **change}
    with pytest.raises(error, match=re.escape(words)):
        RunState.read(state, "val")


def test_ranks_agree_where_they_stand_whatever_a_new_run_is_called_there() -> None:
    first, second = Run(), Run()
    said = [[first.standing(0), first.id], [second.standing(0), second.id]]
    assert check_same_standing(said) == first.id


@pytest.mark.parametrize("change", ["iteration", "records", "name", "begun"])
def test_a_rank_that_stands_elsewhere_is_named(change: str) -> None:
    first, second = Run(), Run()
    for run in (first, second):
        run.start_over(loaded(4))
    if change == "records":
        second.history = history(4)
    elif change == "name":
        second.id = "xyz"
    elif change == "begun":
        second.has_begun = True
    standing = second.standing(5 if change == "iteration" else 4)
    with pytest.raises(StateError, match=r"^rank 1 stands at .*; rank 0 at iteration 4 with 0"):
        check_same_standing([[first.standing(4), first.id], [standing, second.id]])
