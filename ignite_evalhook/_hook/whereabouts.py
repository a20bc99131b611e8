"""Tell where a trainer stands from inside whichever event it is firing.

Ignite's counters mean different things in different events: the epoch is counted when it starts,
and so is an iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ignite.engine import Engine, Events

from .._decide.position import Position, is_due_here, position
from .._decide.schedule import Schedule
from .._evaluate.one_pass import go_on_with_epoch, is_running, iterations_before_epoch

__all__: list[str] = []


class Whereabouts:
    """Where a trainer stands.

    Args:
        schedule: Says what a step is, and when one is due.

    Attributes:
        event: The event of the trainer's that the hook is handling.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.event: Any = None
        self._schedule = schedule
        self._began: tuple[int, int] | None = None  # epochs, iterations before the present epoch

    @contextmanager
    def handling(self, event: Any) -> Iterator[None]:
        """Remember which event of the trainer is being handled."""
        self.event = event
        try:
            yield
        finally:
            self.event = None

    def note_epoch_started(self, trainer: Engine) -> None:
        """Remember where an epoch has begun; to be called at ``EPOCH_STARTED``."""
        self._began = trainer.state.epoch - 1, iterations_before_epoch(trainer)

    def note_epoch_ended(self, trainer: Engine) -> None:
        """Remember that an epoch is over, whatever its length."""
        self._began = trainer.state.epoch, trainer.state.iteration

    def forget(self) -> None:
        """Forget what was seen of the trainer."""
        self._began = None

    def go_on(self, trainer: Engine, epochs: int, into: int | None) -> None:
        """Let a trainer that was loaded stand in the epoch in which it was saved.

        Ignite reckons the epoch from the iterations, as if all epochs had the same length.

        Args:
            trainer: The engine, whose iterations are right.
            epochs: Completed epochs.
            into: Completed iterations of the next one; ``None``: leave it to Ignite.
        """
        starting = trainer.last_event_name is Events.STARTED
        if into is None or trainer.state.iteration == 0 or (is_running(trainer) and not starting):
            return
        self._began = epochs, trainer.state.iteration - into
        if starting and trainer.should_terminate:
            return  # another hook has ended the run again, in the epoch where it had ended
        trainer.state.epoch = epochs
        if starting:
            go_on_with_epoch(trainer, into)

    def position(self, trainer: Engine) -> Position:
        """Return where training stands."""
        # Only while it runs: a run that raised leaves the event behind.
        running, event = is_running(trainer), trainer.last_event_name
        # One that is cut short by the end of the run is not over.
        cut_short = (
            running and not trainer.should_terminate and bool(trainer.should_terminate_single_epoch)
        )
        return position(
            trainer.state,
            self._schedule,
            began=self._began if self._has_seen(trainer) else None,
            epoch_started=event is Events.EPOCH_STARTED,
            epoch_completed=event is Events.EPOCH_COMPLETED or cut_short,
            iteration_started=running and event is Events.ITERATION_STARTED,
        )

    def is_due(self, trainer: Engine) -> bool:
        """Return whether an evaluation is due just here."""
        return is_due_here(self.position(trainer), self._schedule, trainer.state.epoch_length)

    def _has_seen(self, trainer: Engine) -> bool:
        """Return whether the epoch that was seen to begin is the present one."""
        state = trainer.state
        return self._began is not None and (
            state.epoch - self._began[0] in (0, 1) and state.iteration >= self._began[1]
        )
