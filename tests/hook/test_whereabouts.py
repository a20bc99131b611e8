"""Where a trainer stands, as seen from each of its events."""

from __future__ import annotations

from typing import Any

import pytest
from ignite.engine import Engine, Events

from helpers.private import START, Position, Schedule, Whereabouts

EPOCHS, PAIRS = Schedule(1), Schedule(2, by_epoch=False)  # of iterations


def seen_from(event: Any, schedule: Schedule) -> list[tuple[Position, bool]]:
    """Run two epochs of three iterations; return what is seen each time ``event`` is fired."""
    whereabouts, seen = Whereabouts(schedule), list[tuple[Position, bool]]()
    trainer = Engine(lambda engine, batch: None)

    @trainer.on(Events.EPOCH_STARTED)
    def note(engine: Engine) -> None:
        whereabouts.note_epoch_started(engine)

    @trainer.on(event)
    def look(engine: Engine) -> None:
        with whereabouts.handling(event):
            seen.append((whereabouts.position(engine), whereabouts.is_due(engine)))
        assert whereabouts.event is None

    trainer.run([0, 1, 2], max_epochs=2)
    return seen


@pytest.mark.parametrize(
    ("event", "schedule", "seen"),
    [
        (Events.STARTED, EPOCHS, [(0, 0, False)]),
        (Events.EPOCH_STARTED, EPOCHS, [(0, 0, False), (1, 3, True)]),
        (Events.EPOCH_COMPLETED, EPOCHS, [(1, 3, True), (2, 6, True)]),
        (Events.COMPLETED, EPOCHS, [(2, 6, True)]),
        (Events.EPOCH_STARTED, PAIRS, [(0, 0, False), (1, 3, False)]),
        (
            Events.ITERATION_COMPLETED,
            PAIRS,
            [(1, 1, False), (1, 2, True), (1, 3, False), (2, 4, True), (2, 5, False), (2, 6, True)],
        ),
    ],
)
def test_what_is_completed_and_due_in_each_event(
    event: Any, schedule: Schedule, seen: list[tuple[int, int, bool]]
) -> None:
    found = seen_from(event, schedule)
    assert [(at.epoch, at.iteration, due) for at, due in found] == seen
    assert all(at.step == (at.epoch if schedule is EPOCHS else at.iteration) for at, _ in found)


def test_an_iteration_under_way_is_not_completed_nor_is_the_epoch_that_it_begins() -> None:
    found = [(at.epoch, at.iteration) for at, _ in seen_from(Events.ITERATION_STARTED, EPOCHS)]
    assert found == [(0, 0), (1, 1), (1, 2), (1, 3), (2, 4), (2, 5)]


def test_an_epoch_that_starts_is_not_under_way_for_a_hook_that_comes_just_then() -> None:
    whereabouts = Whereabouts(EPOCHS)
    trainer = Engine(lambda engine, batch: None)
    seen: list[Position] = []
    trainer.add_event_handler(
        Events.EPOCH_STARTED(once=2), lambda e: seen.append(whereabouts.position(e))
    )
    trainer.run([0, 1, 2], max_epochs=2)
    assert seen == [Position(1, 3, 1)]


@pytest.mark.parametrize(("start", "due"), [(2, True), (3, False), (None, False)])
def test_an_epoch_is_completed_by_its_length_also_off_the_grid(
    start: int | None, due: bool
) -> None:
    whereabouts = Whereabouts(EPOCHS)
    trainer = Engine(lambda engine, batch: None)
    state = trainer.state
    if start is not None:
        state.epoch, state.iteration = 1, start
        trainer._init_iter = 0
        whereabouts.note_epoch_started(trainer)
    state.epoch, state.iteration, state.epoch_length = 1, 5, 3
    # terminate() in the last iteration: no EPOCH_COMPLETED
    assert whereabouts.is_due(trainer) is due


def test_a_run_that_raised_stands_after_the_iteration_it_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(engine: Engine, batch: int) -> None:
        if batch == 2:
            raise RuntimeError("boom")

    trainer = Engine(step)
    monkeypatch.setattr(trainer.logger, "disabled", True)  # one logger for all engines
    with pytest.raises(RuntimeError, match="boom"):
        trainer.run([0, 1, 2])
    assert trainer.last_event_name is Events.ITERATION_STARTED
    assert Whereabouts(EPOCHS).position(trainer).iteration == trainer.state.iteration == 3


def test_before_any_run_it_is_the_start() -> None:
    trainer = Engine(lambda engine, batch: None)
    assert Whereabouts(EPOCHS).position(trainer) == START
