"""Tell where training stands, and whether an evaluation is due there.

Reads the counters of an engine's ``state`` (any object that has them); changes nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from .schedule import Schedule

__all__: list[str] = []


@dataclass(frozen=True)
class Position:
    """Where training stands.

    Attributes:
        epoch: The epoch under way or just completed, 1-based; 0 is before training.
        iteration: Completed iterations.
        step: What the schedule counts: the epoch or the iteration.
        into: Completed iterations of the epoch under way; 0 where one is just completed, ``None``
            where nobody has counted them.
    """

    epoch: int
    iteration: int
    step: int
    into: int | None = field(default=None, compare=False)

    @property
    def epochs(self) -> int:
        """How many epochs are completed."""
        return self.epoch - int(self.into != 0)

    def __str__(self) -> str:
        if self.iteration == 0:
            return "the start"
        return f"epoch {self.epoch} (iteration {self.iteration})"


START = Position(0, 0, 0, 0)


@dataclass(frozen=True)
class Timer:
    """A time that was set, and the training iteration at which it was.

    Attributes:
        start: When it was set, in seconds of some clock.
        seconds: How long it runs.
        iteration: Iterations completed by then.
    """

    start: float
    seconds: float
    iteration: int

    def is_over(self, now: float) -> bool:
        """Return whether the time has passed."""
        return now >= self.start + self.seconds

    def next_look(self, now: float, iteration: int) -> int:
        """Predict the iteration at which it will be over, by the speed so far.

        At most twice as far as it has come, since training may become slower.
        """
        done = iteration - self.iteration
        left = self.start + self.seconds - now
        if done < 1 or left <= 0.0 or now <= self.start:
            return iteration + 1
        predicted = math.ceil(left * done / (now - self.start))
        return iteration + max(1, min(predicted, done))


def position(
    state: Any,
    schedule: Schedule,
    *,
    began: tuple[int, int] | None = None,
    epoch_started: bool = False,
    epoch_completed: bool = False,
    iteration_started: bool = False,
) -> Position:
    """Return where training stands.

    Args:
        state: The trainer's state.
        schedule: Says what a step is.
        began: How many epochs and iterations were completed when the present epoch began, if
            somebody has seen that.  Else epochs are taken to be as long as each other.
        epoch_started: Whether ``EPOCH_STARTED`` is being fired, where Ignite's counter already
            names the epoch to come.
        epoch_completed: Whether the epoch is completed, whatever its length.
        iteration_started: Whether an iteration is under way, which Ignite's counter includes.
    """
    length, iteration = state.epoch_length, state.iteration - int(iteration_started)
    if iteration == 0:
        return START  # whatever the epoch that has started
    into: int | None
    if began is not None:
        epoch, into = began[0], iteration - began[1]
        if into > 0:
            epoch += 1
            into = 0 if epoch_completed or into == length else into
    else:
        # After a restart in the middle of an epoch Ignite's counter names the one before.
        under_way = math.ceil(iteration / length) if length else int(iteration > 0)
        epoch, into = max(state.epoch - int(epoch_started), under_way), None
        if epoch_completed or (length and iteration == epoch * length):
            into = 0
        elif epoch == under_way:
            into = iteration % length if length else iteration
    return Position(epoch, iteration, epoch if schedule.counts_epochs else iteration, into)


def is_due_here(at: Position, schedule: Schedule, epoch_length: int | None) -> bool:
    """Return whether an evaluation is due just where training stands.

    Args:
        at: Where it stands.
        schedule: When to evaluate.  One by the clock is never due by position.
        epoch_length: Iterations of an epoch, if that is known.
    """
    if at.iteration == 0:
        return schedule.before_training
    if schedule.is_clocked:
        return False
    if not schedule.counts_epochs:
        return schedule.is_due(at.iteration, epoch_length)
    return at.into == 0 and schedule.is_due(at.epoch)


def is_due_on_takeover(state: Any, schedule: Schedule) -> bool:
    """Return whether to evaluate before a run goes on that this hook has no state of.

    Source:
        MMCV: "It enables evaluation before the training starts if start <= the resuming epoch."
    """
    length, iteration = state.epoch_length, state.iteration
    done = iteration
    if schedule.by_epoch:
        done = iteration // length if length else state.epoch
    return schedule.start is not None and schedule.start <= done


def total_iterations(state: Any) -> int | None:
    """Return how many iterations the run will have, if that is known."""
    max_iters = getattr(state, "max_iters", None)  # Ignite before 0.5.5 has none
    if max_iters is not None:
        return int(max_iters)
    if state.max_epochs is None or not state.epoch_length:
        return None
    return int(state.max_epochs * state.epoch_length)


def check_ever_due(state: Any, schedule: Schedule, *, at_end: bool) -> None:
    """Refuse a schedule that a run never reaches.

    Raises:
        ValueError: Saying what is counted, how far the run goes, and the way out.
    """
    if schedule.needs_epoch_length:
        schedule.next_due(0, state.epoch_length)  # raises where the length is not known
    if at_end or schedule.interval is None or schedule.before_training:
        return
    total = total_iterations(state)
    if schedule.counts_epochs:
        total = _total_epochs(state)
        unit, other = "epochs", "by_epoch=False counts iterations"
    elif schedule.needs_epoch_length:
        unit, other = "epochs", "start= counts epochs"
    else:
        unit, other = "iterations", "by_epoch=True counts epochs"
    first = schedule.next_due(0, state.epoch_length)
    if total is None or (first is not None and first <= total):
        return
    what = f"interval={_show(schedule.interval)}"
    if schedule.start is not None:
        what = f"start={schedule.start} with {what}"
    shown = total // state.epoch_length if schedule.needs_epoch_length else total
    raise ValueError(
        f"{what} counts {unit} and this run has {shown}, so no evaluation would ever be due; "
        f"{other}, at_end=True evaluates at the end"
    )


def _total_epochs(state: Any) -> int | None:
    total = total_iterations(state)
    if total is not None and state.epoch_length:
        return total // int(state.epoch_length)  # max_iters may cut the last epoch short
    return None if state.max_epochs is None else int(state.max_epochs)


def _show(interval: Any) -> str:
    return str(list(interval)) if isinstance(interval, tuple) else str(interval)


# -- know at which iteration to look next whether an evaluation is due -----------------------------

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
