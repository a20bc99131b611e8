"""Know at which iteration to look next whether an evaluation is due.

Most iterations are not due, and must cost next to nothing: each is compared with one number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta

from ._moment import Timer
from ._schedule import Schedule

__all__: list[str] = []

NEVER = sys.maxsize
Answer = tuple[bool, int]  # whether an evaluation is due, and the iteration at which to ask again


class Lookout:
    """What looks at iterations, for a schedule that does not count epochs.

    Args:
        schedule: When to evaluate.
        clock: Seconds that only grow, for a schedule by time.

    Attributes:
        next_look: Before so many completed iterations nothing is due.
    """

    def __init__(self, schedule: Schedule, clock: Callable[[], float]) -> None:
        self._schedule = schedule
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        """Look at the next iteration, whichever it is."""
        self.next_look = 0
        self._timer: Timer | None = None

    def wind_up(self, iteration: int) -> None:
        """Let the time of a schedule by time begin."""
        interval = self._schedule.interval
        if isinstance(interval, timedelta):
            self._timer = Timer(self._clock(), interval.total_seconds(), iteration)
            self.next_look = 0  # at the clock, after the next iteration

    def look_ahead(self, iteration: int, length: int | None) -> None:
        """Find the next iteration at which there is something to see.

        Args:
            iteration: Completed iterations.
            length: Iterations of an epoch, if that is known.
        """
        if self._schedule.counts_epochs or self._schedule.is_clocked:
            return
        due = self._schedule.next_due(iteration, length)
        self.next_look = NEVER if due is None else due

    def sees(
        self,
        iteration: int,
        epoch: int,
        length: int | None,
        tell: Callable[[Callable[[], Answer]], Answer] | None,
    ) -> bool:
        """Return whether an evaluation is due at an iteration.

        Args:
            iteration: Completed iterations, :attr:`next_look` at least.
            epoch: The epoch under way, 1-based.
            length: Iterations of an epoch, if that is known.
            tell: Calls a function on rank 0, whose clock decides, and tells all ranks its
                answer; ``None``: there is one rank, which can afford to look each time.
        """
        if self._schedule.is_fraction and length and iteration == epoch * length:
            return False  # the end of an epoch: EPOCH_COMPLETED comes next
        timer = self._timer
        if timer is None:
            return self._schedule.is_due(iteration, length)

        def answer() -> Answer:
            now = self._clock()
            due = timer.is_over(now) and self._schedule.is_due(iteration, length)
            return due, 0 if tell is None else timer.next_look(now, iteration)

        due, self.next_look = answer() if tell is None else tell(answer)
        return due
