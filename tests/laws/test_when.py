"""Test when a hook evaluates in real runs of Ignite: tables, a naive oracle, then faults.

The trainer trains nothing and the evaluator is a function, so a run costs a millisecond and the
oracle can be compared with thousands of them.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from torch import nn

from ignite_evalhook import EvalEvents, EvalHook, Schedule

HAS_MAX_ITERS = "max_iters" in inspect.signature(Engine.run).parameters
needs_max_iters = pytest.mark.skipif(not HAS_MAX_ITERS, reason="this Ignite has no max_iters")
THIRD = Fraction(1, 3)


@pytest.fixture(autouse=True)
def _no_logs() -> Iterator[None]:
    """Thousands of runs would say thousands of lines."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


class Unsized:
    """Batches that do not tell how many they are."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._length))


def make(**options: Any) -> tuple[Engine, EvalHook, list[int]]:
    """Return a trainer, a hook attached to it, and the iterations at which it evaluated."""
    trainer = Engine(lambda engine, batch: None)
    seen: list[int] = []

    def measure(engine: Engine | None) -> dict[str, float]:
        assert engine is trainer
        seen.append(engine.state.iteration)
        return {"count": float(len(seen))}

    hook = EvalHook(None, measure, model=nn.Identity(), **options)
    return trainer, hook.attach(trainer), seen


def moments(hook: EvalHook) -> list[tuple[int, int]]:
    return [(record.epoch, record.iteration) for record in hook.history]


def call_at(trainer: Engine, event: Any, at: int, action: Callable[[], None]) -> None:
    """Call ``action`` when ``event`` is fired with that count, before the hook hears of it."""

    def handler(engine: Engine) -> None:
        if engine.state.iteration == at:
            action()

    trainer.add_event_handler(event, handler)
    handlers = trainer._event_handlers[event]
    handlers.insert(0, handlers.pop())


# --- a table: epochs of 4 iterations, 6 of them --------------------------------------------

TABLE: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [4, 8, 12, 16, 20, 24]),
    ({"interval": 2}, [8, 16, 24]),
    ({"interval": 4}, [16]),
    ({"interval": 4, "at_end": True}, [16, 24]),
    ({"interval": 50, "at_end": True}, [24]),
    ({"interval": 3, "start": 0}, [0, 12, 24]),
    ({"interval": 3, "start": 1}, [4, 16]),
    ({"interval": 3, "start": 5}, [20]),
    ({"interval": 50, "start": 0}, [0]),
    ({"interval": [1, 2, 5]}, [4, 8, 20]),
    ({"interval": [0, 5, 70]}, [0, 20]),
    ({"interval": [1, 2, 5], "start": 2}, [8, 20]),
    ({"interval": [2, 5], "start": 0}, [0, 8, 20]),
    ({"interval": 3, "dynamic_intervals": [(5, 1)]}, [12, 20, 24]),
    ({"interval": 1, "dynamic_intervals": [(3, 3)]}, [4, 8, 12, 24]),
    ({"interval": 7, "by_epoch": False}, [7, 14, 21]),
    ({"interval": 7, "by_epoch": False, "at_end": True}, [7, 14, 21, 24]),
    ({"interval": 8, "by_epoch": False, "at_end": True}, [8, 16, 24]),
    ({"interval": 10, "by_epoch": False, "start": 0}, [0, 10, 20]),
    ({"interval": 10, "by_epoch": False, "start": 1}, [1, 11, 21]),
    ({"interval": 10, "by_epoch": False, "start": 12}, [12, 22]),
    ({"interval": [3, 4, 17], "by_epoch": False}, [3, 4, 17]),
    ({"interval": 9, "by_epoch": False, "dynamic_intervals": [(15, 4)]}, [9, 16, 20, 24]),
    ({"interval": 0.25, "start": 5}, [20, 21, 22, 23, 24]),
    ({"interval": 0.5, "start": 4}, [16, 18, 20, 22, 24]),
    ({"interval": THIRD}, [2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19, 20, 22, 23, 24]),
    ({"interval": Fraction(5, 6)}, [4, 7, 10, 14, 17, 20, 24]),
    ({"interval": Fraction(5, 6), "start": 0}, [0, 4, 7, 10, 14, 17, 20, 24]),
    ({"interval": None}, []),
    ({"interval": None, "at_end": True}, [24]),
]


@pytest.mark.parametrize(("options", "iterations"), TABLE, ids=str)
def test_a_run_of_six_epochs_is_evaluated_after_exactly_these_iterations(
    options: dict[str, Any], iterations: list[int]
) -> None:
    trainer, hook, seen = make(**options)
    trainer.run(range(4), max_epochs=6)
    assert seen == iterations
    assert moments(hook) == [(math.ceil(i / 4), i) for i in iterations]


@pytest.mark.parametrize(
    ("length", "iterations"),
    [
        (10, [3, 5, 8, 10, 13, 15, 18, 20]),
        (7, [2, 4, 6, 7, 9, 11, 13, 14]),
        (3, [1, 2, 3, 4, 5, 6]),
        (1, [1, 2]),
    ],
)
def test_four_times_an_epoch_works_where_four_does_not_divide_it(
    length: int, iterations: list[int]
) -> None:
    trainer, _, seen = make(interval=0.25)
    trainer.run(range(length), max_epochs=2)
    assert seen == iterations


def test_a_part_of_an_epoch_that_ends_with_it_is_evaluated_at_epoch_completed() -> None:
    trainer, hook, _ = make(interval=0.5)
    events: list[Any] = []
    hook.on(EvalEvents.EVAL_COMPLETED, lambda record: events.append(trainer.last_event_name))
    trainer.run(range(4), max_epochs=2)
    assert events == [Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED] * 2


def test_an_epoch_may_be_longer_or_shorter_than_the_data() -> None:
    for data in (2, 9):
        trainer, _, seen = make(interval=0.5, start=1)
        trainer.run(range(data), max_epochs=3, epoch_length=6)
        assert seen == [6, 9, 12, 15, 18]


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_evaluation_before_training_comes_before_the_first_batch(order: str) -> None:
    story: list[str] = []
    trainer = Engine(lambda engine, batch: story.append("train"))
    hook = EvalHook(
        None, lambda engine: story.append("evaluate") or {}, model=nn.Identity(), start=0
    )
    if order == "before":
        hook.attach(trainer)
    trainer.add_event_handler(Events.STARTED, lambda engine: story.append("handler"))
    if order == "after":
        hook.attach(trainer)
    trainer.run(range(2), max_epochs=1)
    first = ["evaluate", "handler"] if order == "before" else ["handler", "evaluate"]
    assert story == [*first, "train", "train", "evaluate"]


# --- the clock ---------------------------------------------------------------------------


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_clocked(
    iteration: float, evaluation: float, **options: Any
) -> tuple[Engine, EvalHook, list[int]]:
    """Return what :func:`make` does; iterations and evaluations take these seconds."""
    clock, seen = Clock(), []

    def train(engine: Engine, batch: Any) -> None:
        clock.now += iteration

    def measure(engine: Engine | None) -> dict[str, float]:
        assert engine is not None
        seen.append(engine.state.iteration)
        clock.now += evaluation
        return {}

    trainer = Engine(train)
    hook = EvalHook(None, measure, model=nn.Identity(), clock=clock, **options)
    return trainer, hook.attach(trainer), seen


CLOCKED: list[tuple[float, float, dict[str, Any], list[int]]] = [
    (1.0, 0.0, {}, [5, 10, 15, 20]),
    (2.0, 0.0, {}, [3, 6, 9, 12, 15, 18]),
    # The time between two evaluations is counted from the end of the first.
    (1.0, 60.0, {}, [5, 10, 15, 20]),
    (9.0, 1.0, {}, list(range(1, 21))),
    (0.1, 0.0, {"at_end": True}, [20]),
    (1.0, 0.0, {"at_end": True}, [5, 10, 15, 20]),
    (1.0, 3.0, {"start": 0}, [0, 5, 10, 15, 20]),
    # Two epochs of four, and the time has passed by then.
    (1.0, 0.0, {"start": 2}, [8, 13, 18]),
    (1.0, 0.0, {"start": 7, "by_epoch": False}, [7, 12, 17]),
    (0.1, 0.0, {}, []),
]


@pytest.mark.parametrize(("iteration", "evaluation", "options", "expected"), CLOCKED)
def test_every_five_seconds_is_at_the_first_iteration_after_them(
    iteration: float, evaluation: float, options: dict[str, Any], expected: list[int]
) -> None:
    trainer, hook, seen = make_clocked(
        iteration, evaluation, interval=timedelta(seconds=5), **options
    )
    trainer.run(range(4), max_epochs=5)
    assert seen == expected
    assert [record.iteration for record in hook.history] == expected


def test_an_evaluation_on_demand_winds_the_clock_up_again() -> None:
    trainer, hook, seen = make_clocked(1.0, 0.0, interval=timedelta(seconds=5))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda engine: hook.evaluate())
    trainer.run(range(4), max_epochs=5)
    assert seen == [3, 8, 13, 18]


def test_an_answer_that_leaves_no_trace_does_not_wind_it_up() -> None:
    trainer, hook, seen = make_clocked(1.0, 0.0, interval=timedelta(seconds=5))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=3), lambda engine: hook.evaluate(track=False)
    )
    trainer.run(range(4), max_epochs=3)
    assert seen == [3, 5, 10]


def test_a_clock_is_not_asked_by_other_schedules() -> None:
    def no_clock() -> float:
        raise AssertionError

    trainer, _, seen = make(interval=3, by_epoch=False, clock=no_clock)
    trainer.run(range(4), max_epochs=3)
    assert seen == [3, 6, 9, 12]


# --- how a run ends ------------------------------------------------------------------------

# Epochs of 4 iterations, 3 of them.
ENDINGS: list[tuple[dict[str, Any], str, int, list[int]]] = [
    # The last iteration of an epoch: Ignite does not fire EPOCH_COMPLETED any more.
    ({}, "terminate", 8, [4, 8]),
    ({}, "terminate_skip", 8, [4, 8]),
    ({"interval": 2}, "terminate", 4, []),
    ({"interval": 2}, "terminate", 8, [8]),
    ({"interval": 2, "at_end": True}, "terminate", 4, [4]),
    ({}, "terminate", 6, [4]),
    ({"at_end": True}, "terminate", 6, [4, 6]),
    ({"at_end": True}, "terminate_skip", 6, [4, 6]),
    ({"at_end": True}, "terminate", 8, [4, 8]),
    ({"interval": 3, "by_epoch": False}, "terminate", 6, [3, 6]),
    ({"interval": 3, "by_epoch": False}, "terminate", 7, [3, 6]),
    ({"interval": 3, "by_epoch": False, "at_end": True}, "terminate", 7, [3, 6, 7]),
    ({"interval": 3, "by_epoch": False, "at_end": True}, "terminate_skip", 6, [3, 6]),
    ({"interval": 0.5}, "terminate", 8, [2, 4, 6, 8]),
    ({"interval": 0.5}, "terminate_skip", 8, [2, 4, 6, 8]),
    ({"interval": 0.5, "at_end": True}, "terminate", 7, [2, 4, 6, 7]),
    ({"interval": None, "at_end": True}, "terminate", 7, [7]),
    # An epoch that is cut short is over.
    ({}, "terminate_epoch", 6, [4, 6, 10]),
    ({"interval": 2}, "terminate_epoch", 6, [6]),
    ({"interval": 3}, "terminate_epoch", 6, [10]),
    ({"interval": 2, "at_end": True}, "terminate_epoch", 6, [6, 10]),
    ({}, "terminate_epoch", 8, [4, 8, 12]),
    ({"interval": 5, "by_epoch": False}, "terminate_epoch", 6, [5, 10]),
    ({"interval": 0.5}, "terminate_epoch", 5, [2, 4, 6, 8]),
    # A user who skips EPOCH_COMPLETED says that the epoch does not count.
    ({}, "terminate_epoch_skip", 6, [4, 10]),
    ({}, "terminate_both", 6, [4]),
    # An interruption is no end.
    ({}, "interrupt", 6, [4, 8, 12]),
    ({}, "interrupt", 8, [4, 8, 12]),
    ({"at_end": True}, "interrupt", 6, [4, 8, 12]),
    ({"interval": 3, "by_epoch": False}, "interrupt", 6, [3, 6, 9, 12]),
    ({"interval": 0.5}, "interrupt", 8, [2, 4, 6, 8, 10, 12]),
]


@pytest.mark.parametrize(("options", "how", "at", "iterations"), ENDINGS, ids=str)
def test_a_run_that_ends_otherwise_is_evaluated_after_these_iterations(
    options: dict[str, Any], how: str, at: int, iterations: list[int]
) -> None:
    trainer, hook, seen = make(**options)
    actions: dict[str, Callable[[], object]] = {
        "terminate": trainer.terminate,
        "terminate_skip": lambda: trainer.terminate(skip_completed=True),
        "terminate_epoch": trainer.terminate_epoch,
        "terminate_both": lambda: (trainer.terminate_epoch(), trainer.terminate()),
        "terminate_epoch_skip": lambda: trainer.terminate_epoch(skip_epoch_completed=True),
        "interrupt": trainer.interrupt,
    }
    call_at(trainer, Events.ITERATION_COMPLETED, at, actions[how])
    trainer.run(range(4), max_epochs=3)
    if how == "interrupt":
        assert trainer.state.iteration == at
        trainer.run(range(4), max_epochs=3)
    assert seen == iterations
    assert [record.iteration for record in hook.history] == iterations


@pytest.mark.parametrize("skip", [False, True])
def test_the_last_iteration_of_an_epoch_ends_it_also_when_an_earlier_one_was_cut_short(
    skip: bool,
) -> None:
    trainer, hook, _ = make()
    call_at(trainer, Events.ITERATION_COMPLETED, 2, trainer.terminate_epoch)
    call_at(trainer, Events.ITERATION_COMPLETED, 6, lambda: trainer.terminate(skip_completed=skip))
    trainer.run(range(4), max_epochs=3)
    assert moments(hook) == [(1, 2), (2, 6)]


def test_a_run_that_ends_before_its_first_iteration_has_nothing_to_evaluate() -> None:
    trainer, hook, _ = make(at_end=True)
    trainer.add_event_handler(Events.STARTED, trainer.terminate)
    trainer.run(range(4), max_epochs=3)
    assert moments(hook) == []


def test_a_run_that_ends_as_an_epoch_starts_ends_at_the_epoch_before() -> None:
    trainer, hook, _ = make(interval=5, at_end=True)
    trainer.add_event_handler(Events.EPOCH_STARTED(once=3), trainer.terminate)
    trainer.run(range(4), max_epochs=6)
    assert moments(hook) == [(2, 8)]


def test_an_early_stop_on_the_last_epoch_does_not_evaluate_twice() -> None:
    trainer, hook, seen = make(at_end=True)
    hook.on(EvalEvents.EVAL_COMPLETED, lambda record: trainer.terminate())
    trainer.run(range(4), max_epochs=3)
    assert seen == [4]


@needs_max_iters
@pytest.mark.parametrize(
    ("options", "iterations"),
    [
        ({}, [4, 8]),
        ({"at_end": True}, [4, 8, 10]),
        ({"interval": 2, "start": 0}, [0, 8]),
        ({"interval": 5, "by_epoch": False}, [5, 10]),
        ({"interval": 4, "by_epoch": False, "at_end": True}, [4, 8, 10]),
        ({"interval": 0.5, "at_end": True}, [2, 4, 6, 8, 10]),
        ({"interval": 0.75, "at_end": True}, [3, 6, 9, 10]),
        ({"interval": None, "at_end": True}, [10]),
    ],
    ids=str,
)
@pytest.mark.parametrize("sized", [True, False])
def test_max_iters_may_end_a_run_in_the_middle_of_an_epoch(
    options: dict[str, Any], iterations: list[int], sized: bool
) -> None:
    if not sized and isinstance(options.get("interval"), float):
        pytest.skip("a part of an epoch needs its length")
    trainer, _, seen = make(**options)
    trainer.run(range(4) if sized else Unsized(4), max_iters=10)
    assert seen == iterations


@needs_max_iters
def test_max_iters_at_the_end_of_an_epoch_is_evaluated_once() -> None:
    trainer, _, seen = make(at_end=True)
    trainer.run(range(4), max_iters=8)
    assert seen == [4, 8]


# --- loaders that do not tell their length --------------------------------------------------


@pytest.mark.parametrize(
    ("options", "iterations"),
    [
        ({}, [4, 8, 12]),
        ({"interval": 2, "start": 1}, [4, 12]),
        ({"interval": 2, "at_end": True, "start": 0}, [0, 8, 12]),
        ({"interval": 5, "by_epoch": False}, [5, 10]),
        ({"interval": 5, "by_epoch": False, "at_end": True}, [5, 10, 12]),
        ({"interval": [3, 4, 11], "by_epoch": False}, [3, 4, 11]),
    ],
    ids=str,
)
def test_an_unsized_training_loader_is_no_obstacle(
    options: dict[str, Any], iterations: list[int]
) -> None:
    trainer, hook, seen = make(**options)
    trainer.run(Unsized(4), max_epochs=3)
    assert seen == iterations
    assert moments(hook) == [(math.ceil(i / 4), i) for i in iterations]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interval": 0.25}, r"interval=0\.25 needs the length of an epoch.*pass epoch_length="),
        (
            {"interval": timedelta(hours=1), "start": 2},
            "start=2 counts epochs beside a time.*needs the length of an epoch",
        ),
    ],
)
def test_what_needs_the_length_of_an_epoch_is_refused_without_it(
    options: dict[str, Any], words: str
) -> None:
    trainer, _, seen = make(**options)
    trained: list[int] = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: trained.append(1))
    with pytest.raises(ValueError, match=words):
        trainer.run(Unsized(4), max_epochs=3)
    assert seen == trained == []


def test_an_epoch_length_passed_to_run_is_enough() -> None:
    trainer, _, seen = make(interval=0.5)
    trainer.run(Unsized(4), max_epochs=2, epoch_length=4)
    assert seen == [2, 4, 6, 8]


# --- an oracle ------------------------------------------------------------------------------


def is_due(options: dict[str, Any], step: int, length: int) -> bool:
    """Decide by trying, as the contract says it."""
    interval, start = options["interval"], options.get("start")
    if interval is None:
        return False
    if start == 0 == step:
        return True
    if isinstance(interval, list):
        return step in interval and (start is None or step >= start)
    if isinstance(interval, (float, Fraction)):
        anchor = 0 if start is None else start * length
        counted = range(1 if start is None else 0, 8 * step + 1)  # the smallest part is 1/8
        parts = [anchor + math.ceil(k * Fraction(interval) * length) for k in counted]
        return step in parts
    for from_step, other in options.get("dynamic_intervals") or []:
        interval = other if step >= from_step else interval
    first = 1 if start is None else start
    return step >= first and (step - (start or 0)) % interval == 0


def expect(
    options: dict[str, Any],
    length: int,
    epochs: int,
    stop: int | None = None,
    cut: frozenset[int] = frozenset(),
) -> list[tuple[int, int]]:
    """Return epoch and iteration of each evaluation of a run.

    Args:
        options: Of the hook.
        length: Iterations in an epoch.
        epochs: Of the run.
        stop: The iteration after which it ends, if it ends early.
        cut: Iterations after which ``terminate_epoch()`` is called.
    """
    counts_epochs = options.get("by_epoch", True) and not isinstance(
        options["interval"], (float, Fraction)
    )
    found: dict[int, int] = {}
    if is_due(options, 0, length):
        found[0] = 0
    epoch = iteration = 0
    while epoch < epochs and iteration != stop:
        epoch += 1
        done = 0
        while done < length:
            iteration += 1
            done += 1
            if not counts_epochs and is_due(options, iteration, length):
                found[iteration] = epoch
            if iteration == stop or iteration in cut:
                break
        whole = done == length or iteration != stop
        if counts_epochs and whole and is_due(options, epoch, length):
            found[iteration] = epoch
    if options.get("at_end"):
        found.setdefault(iteration, epoch)
    return [(found[i], i) for i in sorted(found)]


steps = st.lists(st.integers(0, 14), min_size=1, max_size=5, unique=True).map(sorted)
changes = st.dictionaries(st.integers(1, 12), st.integers(1, 5), min_size=1, max_size=3)
schedules = st.one_of(
    st.fixed_dictionaries(
        {"interval": st.integers(1, 9), "by_epoch": st.booleans()},
        optional={
            "start": st.integers(0, 9),
            "dynamic_intervals": changes.map(lambda pairs: sorted(pairs.items())),
        },
    ),
    st.fixed_dictionaries({"interval": steps, "by_epoch": st.booleans()}),
    st.fixed_dictionaries(
        {
            "interval": st.sampled_from(
                [0.25, 0.5, 0.75, 0.125, THIRD, Fraction(2, 3), Fraction(5, 6)]
            )
        },
        optional={"start": st.integers(0, 4)},
    ),
    st.just({"interval": None}),
)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_schedule_in_any_run_agrees_with_the_oracle(data: st.DataObject) -> None:
    options = data.draw(schedules) | {"at_end": data.draw(st.booleans())}
    length, epochs = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    total = length * epochs
    anywhere = st.integers(1, total)
    stop = data.draw(st.none() | anywhere)
    cut = frozenset(data.draw(st.sets(anywhere, max_size=2)))
    breaks = data.draw(st.sets(anywhere, max_size=2))
    trainer, hook, seen = make(**options)
    if stop is not None:
        skip = data.draw(st.booleans())
        call_at(
            trainer,
            Events.ITERATION_COMPLETED,
            stop,
            lambda: trainer.terminate(skip_completed=skip),
        )
    for at in cut:
        call_at(trainer, Events.ITERATION_COMPLETED, at, trainer.terminate_epoch)
    for at in breaks - cut - {stop}:
        call_at(trainer, Events.ITERATION_COMPLETED, at, trainer.interrupt)

    def run() -> None:
        trainer.run(range(length), max_epochs=epochs)
        while trainer._internal_run_generator is not None:  # interrupted
            trainer.run(range(length), max_epochs=epochs)

    if options["interval"] is not None and not expect(options, length, epochs):
        with pytest.raises(ValueError, match="no evaluation would ever be due"):
            run()
        assert seen == []
        return
    run()
    expected = expect(options, length, epochs, stop, cut)
    assert moments(hook) == expected
    assert seen == [iteration for _, iteration in expected]


@needs_max_iters
@settings(max_examples=100, deadline=None)
@given(options=schedules, length=st.integers(1, 6), total=st.integers(1, 20))
def test_any_schedule_agrees_with_the_oracle_until_max_iters(
    options: dict[str, Any], length: int, total: int
) -> None:
    trainer, hook, _ = make(**options)
    expected = expect(options, length, epochs=99, stop=total)
    if options["interval"] is not None and not expected:
        with pytest.raises(ValueError, match="no evaluation would ever be due"):
            trainer.run(range(length), max_iters=total)
    else:
        trainer.run(range(length), max_iters=total)
    assert moments(hook) == expected


# --- resumed at every event -----------------------------------------------------------------

RESUMED_AT = [
    Events.STARTED,
    Events.EPOCH_STARTED,
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
    Events.COMPLETED,
]


@pytest.mark.parametrize("options", [options for options, _ in TABLE], ids=str)
def test_a_run_that_is_resumed_at_any_event_is_evaluated_as_if_unbroken(
    options: dict[str, Any],
) -> None:
    def start(states: list[Any] | None, state: Any = None) -> EvalHook:
        trainer = Engine(lambda engine, batch: None)
        hook = EvalHook(None, lambda engine: {}, model=nn.Identity(), **options)

        def capture(engine: Engine) -> None:
            if states is not None:
                states.append((engine.state_dict(), hook.state_dict()))

        for event in RESUMED_AT:
            trainer.add_event_handler(event, capture)
        hook.attach(trainer)
        for event in RESUMED_AT:
            trainer.add_event_handler(event, capture)
        if state is not None:
            trainer.load_state_dict(state[0])
            hook.load_state_dict(state[1])
        trainer.run(range(4), max_epochs=6)
        return hook

    states: list[Any] = []
    unbroken = moments(start(states))
    assert len(states) == 2 * (1 + 6 + 24 + 6 + 1)
    for state in states:
        assert moments(start(None, state)) == unbroken, state


# --- never due --------------------------------------------------------------------------------

NEVER: list[tuple[dict[str, Any], str]] = [
    ({"interval": 500}, "interval=500 counts epochs and this run has 3.*by_epoch=False counts it"),
    ({"interval": 13, "by_epoch": False}, "interval=13 counts iterations and this run has 12"),
    ({"interval": [4, 9]}, r"interval=\[4, 9\] counts epochs and this run has 3"),
    ({"interval": 1, "start": 4}, "start=4 with interval=1 counts epochs and this run has 3"),
    ({"interval": 0.5, "start": 4}, "start=4 with interval=1/2 counts epochs and this run has 3"),
]


@pytest.mark.parametrize(("options", "words"), NEVER, ids=str)
def test_a_schedule_that_is_never_due_ends_the_run_before_it_begins_without_a_trace(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    out_dir = tmp_path / "run"
    trained: list[int] = []
    trainer = Engine(lambda engine, batch: trained.append(1))
    hook = EvalHook(
        None, lambda engine: {"loss": 0.0}, model=nn.Linear(1, 1), save_best="loss",
        out_dir=out_dir, **options,
    ).attach(trainer)  # fmt: skip
    with pytest.raises(ValueError, match=words):
        trainer.run(range(4), max_epochs=3)
    assert trained == list(hook.history) == list(tmp_path.iterdir()) == []
    trainer.state.max_epochs = None
    trainer.run(range(4), max_epochs=4 if options["interval"] != 500 else 500)
    assert len(hook.history) > 0  # a longer run is none the worse for it


def test_a_schedule_whose_steps_have_passed_is_not_refused_after_a_restart() -> None:
    trainer, hook, seen = make(interval=[1])
    trainer.load_state_dict({"iteration": 8, "epoch_length": 4, "max_epochs": 3})
    trainer.run(range(4))
    assert seen == []
    assert len(hook.history) == 0


# --- attached late, taken over ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "options", "iterations"),
    [
        (Events.STARTED, {"start": 0}, [0, 4, 8, 12]),
        (Events.EPOCH_STARTED(once=1), {"start": 0}, [0, 4, 8, 12]),
        (Events.EPOCH_STARTED(once=1), {}, [4, 8, 12]),
        (Events.EPOCH_STARTED(once=3), {}, [12]),
        # Taken over at epoch 2, where start is reached.
        (Events.EPOCH_STARTED(once=3), {"start": 2}, [8, 12]),
        (Events.EPOCH_STARTED(once=3), {"start": 3}, [12]),
        (Events.ITERATION_COMPLETED(once=6), {}, [8, 12]),
        (Events.ITERATION_COMPLETED(once=6), {"interval": 2, "by_epoch": False}, [6, 8, 10, 12]),
        (Events.ITERATION_COMPLETED(once=7), {"interval": 2, "by_epoch": False}, [8, 10, 12]),
        (Events.ITERATION_COMPLETED(once=7), {"interval": 0.5}, [8, 10, 12]),
        (Events.EPOCH_COMPLETED(once=2), {}, [8, 12]),
        (Events.EPOCH_COMPLETED(once=2), {"interval": 0.5}, [8, 10, 12]),
        (Events.COMPLETED, {"at_end": True, "interval": 2}, [12]),
    ],
    ids=lambda value: re.sub("[(]filter.*", "", str(value)),
)
def test_a_hook_attached_in_a_handler_makes_up_for_what_started_had_to_do(
    event: Any, options: dict[str, Any], iterations: list[int]
) -> None:
    trainer = Engine(lambda engine, batch: None)
    hook = EvalHook(None, lambda engine: {}, model=nn.Identity(), **options)
    trainer.add_event_handler(event, lambda engine: hook.attach(engine))
    trainer.run(range(4), max_epochs=3)
    assert moments(hook) == [(math.ceil(i / 4), i) for i in iterations]


@pytest.mark.parametrize(
    ("options", "iterations"),
    [
        ({}, [8, 12]),
        ({"interval": 2, "by_epoch": False}, [8, 10, 12]),
        ({"interval": 5, "by_epoch": False, "start": 5}, [7, 10]),
        ({"interval": 0.5}, [8, 10, 12]),
    ],
    ids=str,
)
def test_a_hook_attached_between_interrupt_and_run_is_in_time(
    options: dict[str, Any], iterations: list[int]
) -> None:
    trainer = Engine(lambda engine, batch: None)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), trainer.interrupt)
    trainer.run(range(4), max_epochs=3)
    hook = EvalHook(None, lambda engine: {}, model=nn.Identity(), **options).attach(trainer)
    trainer.run(range(4), max_epochs=3)
    assert [record.iteration for record in hook.history] == iterations


@pytest.mark.parametrize("late", [False, True])
def test_a_never_due_schedule_is_refused_also_when_attached_late(late: bool) -> None:
    trainer = Engine(lambda engine, batch: None)
    hook = EvalHook(None, lambda engine: {}, model=nn.Identity(), interval=9)
    if late:
        trainer.add_event_handler(Events.EPOCH_STARTED(once=2), lambda engine: hook.attach(engine))
    else:
        hook.attach(trainer)
    with pytest.raises(ValueError, match="interval=9 counts epochs and this run has 3"):
        trainer.run(range(4), max_epochs=3)


@pytest.mark.parametrize(
    ("options", "iterations"),
    [
        ({}, [12, 16]),
        ({"start": 0}, [8, 12, 16]),
        ({"start": 2, "interval": 2}, [8, 16]),
        ({"start": 3}, [12, 16]),
        ({"interval": 5, "by_epoch": False}, [10, 15]),
        ({"interval": 5, "by_epoch": False, "start": 8}, [8, 13]),
        ({"interval": 5, "by_epoch": False, "start": 3}, [8, 13]),
        ({"interval": 0.5, "start": 2}, [8, 10, 12, 14, 16]),
    ],
    ids=str,
)
def test_a_run_taken_over_at_epoch_2_is_evaluated_as_mmcv_does(
    options: dict[str, Any], iterations: list[int]
) -> None:
    trainer, hook, _ = make(**options)
    trainer.load_state_dict({"iteration": 8, "epoch_length": 4, "max_epochs": 4})
    trainer.run(range(4))
    assert moments(hook) == [(math.ceil(i / 4), i) for i in iterations]


# --- several runs -----------------------------------------------------------------------------


def test_a_second_run_is_a_fresh_run() -> None:
    trainer, hook, seen = make(start=0)
    trainer.run(range(4), max_epochs=2)
    first = hook.history
    trainer.run(range(4), max_epochs=2)
    assert seen == [0, 4, 8] * 2
    assert hook.history is not first
    assert moments(hook) == [(0, 0), (1, 4), (2, 8)]


def test_a_run_that_is_made_longer_goes_on() -> None:
    trainer, hook, seen = make(interval=2, start=0)
    trainer.run(range(4), max_epochs=2)
    trainer.run(range(4), max_epochs=5)
    assert seen == [0, 8, 16]
    assert moments(hook) == [(0, 0), (2, 8), (4, 16)]


def test_a_terminated_run_goes_on_where_it_stopped() -> None:
    trainer, hook, _ = make(interval=2, by_epoch=False)
    call_at(trainer, Events.ITERATION_COMPLETED, 6, trainer.terminate)
    trainer.run(range(4), max_epochs=2)
    assert [record.iteration for record in hook.history] == [2, 4, 6]
    trainer.run(range(4), max_epochs=3)
    assert [record.iteration for record in hook.history][:4] == [2, 4, 6, 8]


def test_a_run_that_goes_on_is_not_one_taken_over() -> None:
    trainer, _, seen = make(interval=[5], start=1)
    call_at(trainer, Events.ITERATION_COMPLETED, 8, trainer.terminate)
    trainer.run(range(4), max_epochs=6)
    assert seen == []
    trainer.run(range(4), max_epochs=6)
    assert seen == [20]


# --- an idle hook -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"interval": [2]}, {"start": 0}, {"interval": None}, {"at_end": True}], ids=str
)
def test_a_schedule_by_epochs_listens_to_no_iteration(options: dict[str, Any]) -> None:
    trainer, _, _ = make(**options)
    assert (
        set(trainer._event_handlers)
        & {
            Events.ITERATION_STARTED,
            Events.ITERATION_COMPLETED,
            Events.GET_BATCH_STARTED,
            Events.GET_BATCH_COMPLETED,
        }
        == set()
    )


@pytest.mark.parametrize("options", [{"interval": 100, "by_epoch": False}, {"interval": 0.5}])
def test_an_iteration_that_is_not_due_asks_no_schedule(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _, seen = make(**options)
    asked: list[int] = []
    next_due = Schedule.next_due
    monkeypatch.setattr(
        Schedule, "next_due", lambda self, *args: asked.append(1) or next_due(self, *args)
    )
    trainer.run(range(200), max_epochs=3)
    assert seen == [100, 200, 300, 400, 500, 600]
    assert len(asked) < 40
