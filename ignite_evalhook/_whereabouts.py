"""Tell where a trainer stands from inside whichever event it is firing.

Ignite's counters mean different things in different events: the epoch is counted when it starts,
and so is an iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ignite.engine import Engine, Events

from ._engine import is_running
from ._moment import Position, is_due_here, position
from ._schedule import Schedule

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
        self._epoch_start: int | None = None

    @contextmanager
    def handling(self, event: Any) -> Iterator[None]:
        """Remember which event of the trainer is being handled."""
        self.event = event
        try:
            yield
        finally:
            self.event = None

    def note_epoch_start(self, iteration: int | None) -> None:
        """Remember how many iterations were completed when the epoch started; ``None``: forget."""
        self._epoch_start = iteration

    def position(self, trainer: Engine) -> Position:
        """Return where training stands."""
        # Only while it runs: a run that raised leaves the event behind.
        in_step = trainer.last_event_name is Events.ITERATION_STARTED and is_running(trainer)
        return position(
            trainer.state,
            self._schedule,
            epoch_started=self._is_ahead(trainer, trainer.state.iteration - int(in_step)),
            iteration_started=in_step,
        )

    def is_due(self, trainer: Engine) -> bool:
        """Return whether an evaluation is due just here."""
        state, start = trainer.state, self._epoch_start
        # terminate() in an epoch's last iteration skips EPOCH_COMPLETED.
        whole = start is not None and state.iteration - start == state.epoch_length
        return is_due_here(
            state,
            self._schedule,
            epoch_completed=whole or self.event is Events.EPOCH_COMPLETED,
            epoch_started=self._is_ahead(trainer, state.iteration),
        )

    def _is_ahead(self, trainer: Engine, iteration: int) -> bool:
        """Return whether Ignite counts an epoch of which no iteration is completed."""
        if self.event is Events.EPOCH_COMPLETED:
            return False
        at_start = trainer.last_event_name is Events.EPOCH_STARTED
        return at_start or iteration == self._epoch_start
