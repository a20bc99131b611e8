"""Say at which steps of a training run to evaluate.

A :class:`Schedule` is a value: numbers go in, the next due step comes out.  It knows no
engine, no clock and no history.  When a ``timedelta`` has passed, which event a due step
belongs to, and whether a step was already evaluated are the hook's to decide.

A step is a count of *completed* epochs or iterations, so it is 1-based; step 0 is the moment
before training.

Source:
    ``start``, ``interval`` and ``by_epoch`` are those of ``EvalHook`` in MMCV 1.x
    (open-mmlab/mmcv#739), ``dynamic_intervals`` is MMDetection 2.x's.  The code is our own.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from fractions import Fraction
from itertools import pairwise
from numbers import Real
from typing import TypeAlias

__all__ = ["Schedule"]

#: What ``interval`` holds once it has been checked.
_Interval: TypeAlias = int | Fraction | tuple[int, ...] | timedelta | None

#: A float is read as the nearest fraction with at most this denominator, so 0.1 is 1/10.
_MAX_DENOMINATOR = 10**6
_MOST_STEPS_SHOWN = 10
_START_HELP = "start=0 evaluates before training, start=None after the first full interval"
_NEVER = "interval=None evaluates on demand only"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Hold at which steps to evaluate; equal schedules are equal, hashable and picklable.

    Args:
        interval: One of

            - an int: every so many steps;
            - a sorted sequence of steps: exactly these (0: before training);
            - a float or ``Fraction`` between 0 and 1: this part of an epoch.  The k-th is due
              at iteration ``ceil(k * interval * epoch_length)``, by exact fractions.  A float
              is read as the nearest fraction with a denominator up to a million and is kept
              as that ``Fraction``;
            - a ``timedelta``: whenever this much time has passed (see :meth:`next_due`);
            - ``None``: never by itself, only on demand.
        start: The first step, and the anchor of the grid: due when ``step >= start`` and
            ``(step - start) % interval == 0``.  0 makes step 0 due.  ``None``: due when
            ``step % interval == 0``, from the first full interval on.  It counts what
            ``by_epoch`` says, epochs also where ``interval`` is a part of one.
        by_epoch: Count completed epochs (``True``) or completed iterations.
        dynamic_intervals: Pairs ``(from_step, interval)``: from that step on, this interval,
            on the same grid.  Only with an int ``interval``.

    Raises:
        TypeError: If an argument is of a kind that is not listed here.
        ValueError: If an argument is out of its range, or does not go with another one.
    """

    interval: int | float | Fraction | Sequence[int] | timedelta | None = 1
    _: KW_ONLY
    start: int | None = None
    by_epoch: bool = True
    dynamic_intervals: Sequence[tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        """Check the arguments, and bring equal meanings to equal values."""
        if not isinstance(self.by_epoch, bool):
            raise TypeError(f"by_epoch must be True or False, got {self.by_epoch!r}")
        interval = _checked_interval(self.interval)
        start = None if self.start is None else _whole(self.start, "start", 0, _START_HELP)
        dynamic = _checked_dynamic(self.dynamic_intervals)
        # A frozen dataclass leaves no other way to normalise its own fields.
        object.__setattr__(self, "interval", interval)
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "dynamic_intervals", dynamic)
        self._check_together()

    def _check_together(self) -> None:
        """Refuse normalised arguments that do not go with each other."""
        interval, start = self.interval, self.start
        if interval is None and start is not None:
            raise ValueError(
                f"interval=None evaluates on demand only and takes no start, got start={start}; "
                "interval=[0] evaluates once, before training"
            )
        if isinstance(interval, Fraction) and not self.by_epoch:
            raise ValueError(
                f"interval={_plain(interval)} is a fraction of an epoch and needs by_epoch=True, "
                "got by_epoch=False; pass an integer to count iterations"
            )
        if isinstance(interval, tuple) and start is not None and interval[-1] < start:
            raise ValueError(
                f"start={start} leaves none of the steps in interval={list(interval)}; "
                f"start must be at most {interval[-1]}"
            )
        if self.dynamic_intervals is not None and not isinstance(interval, int):
            raise ValueError(
                f"dynamic_intervals needs an integer interval to begin with, got {interval!r}"
            )

    @property
    def is_fraction(self) -> bool:
        """Tell whether the interval is a part of an epoch."""
        return isinstance(self.interval, Fraction)

    @property
    def is_clocked(self) -> bool:
        """Tell whether the interval is a time, which the hook's clock measures."""
        return isinstance(self.interval, timedelta)

    @property
    def counts_epochs(self) -> bool:
        """Tell whether steps are completed epochs (``True``) or completed iterations."""
        return self.by_epoch and not (self.is_fraction or self.is_clocked)

    @property
    def needs_epoch_length(self) -> bool:
        """Tell whether :meth:`is_due` and :meth:`next_due` must be given ``epoch_length``."""
        late = self.start is not None and self.start > 0
        return self.is_fraction or (self.is_clocked and self.by_epoch and late)

    @property
    def before_training(self) -> bool:
        """Tell whether step 0 is due, by ``start=0`` or by a 0 in the list of steps."""
        listed = isinstance(self.interval, tuple) and self.interval[0] == 0
        return self.start == 0 or (self.start is None and listed)

    def is_due(self, step: int, epoch_length: int | None = None) -> bool:
        """Return whether to evaluate at ``step``.

        Args:
            step: Completed epochs or iterations, whichever :attr:`counts_epochs` says.
            epoch_length: Iterations in an epoch; only read if :attr:`needs_epoch_length`.

        Returns:
            Whether ``step`` is due.  For a ``timedelta`` only whether ``start`` allows it;
            step 0, before training, needs ``start=0`` there as everywhere.

        Raises:
            ValueError: If ``epoch_length`` is needed and is not a positive integer.
        """
        return self.next_due(step - 1, epoch_length) == step

    def next_due(self, after: int, epoch_length: int | None = None) -> int | None:
        """Return the smallest due step greater than ``after``, without searching for it.

        For a ``timedelta`` this is the next iteration that ``start`` allows; whether the
        time has passed there is for the caller's clock to say.

        Args:
            after: Completed epochs or iterations; -1 includes step 0 in the answer.
            epoch_length: Iterations in an epoch; only read if :attr:`needs_epoch_length`.

        Returns:
            The step, or ``None`` if there is none any more.

        Raises:
            ValueError: If ``epoch_length`` is needed and is not a positive integer.
        """
        interval = self.interval
        if interval is None:
            return None
        if isinstance(interval, tuple):
            return self._next_listed(interval, after)
        if isinstance(interval, Fraction):
            return self._next_part(interval, after, self._checked_length(epoch_length))
        if isinstance(interval, timedelta):
            unit = self._checked_length(epoch_length) if self.needs_epoch_length else 1
            return max(after + 1, 1 if self.start is None else self.start * unit)
        return self._next_on_grid(after)

    def interval_at(self, step: int) -> int:
        """Return the int interval in force at ``step``, ``dynamic_intervals`` included.

        Raises:
            ValueError: If the interval is not an int.
        """
        found = self._segments()[0][1]
        for from_step, interval in self.dynamic_intervals or ():
            if from_step <= step:
                found = interval
        return found

    def __str__(self) -> str:
        """Return the schedule in plain words: ``every 2 epochs from epoch 3``."""
        interval = self.interval
        if interval is None:
            return "on demand only"
        if isinstance(interval, tuple):
            return self._describe_listed(interval)
        unit = "epoch" if self.by_epoch else "iteration"
        changes = ""
        if isinstance(interval, Fraction):
            words = f"every {_plain(interval)} epochs"
            if interval.numerator == 1:
                words = f"{interval.denominator} times an epoch"
        elif isinstance(interval, timedelta):
            words = f"every {_describe_time(interval)}"
        else:
            # Changes that came before the start are already in force there.
            first = 1 if self.start is None else max(self.start, 1)
            words = _every(self.interval_at(first), unit)
            changes = "".join(
                f", then {_every(every, unit)} from {unit} {from_step}"
                for from_step, every in self.dynamic_intervals or ()
                if from_step > first
            )
        if self.start == 0:
            return f"before training, then {words}{changes}"
        since = "" if self.start is None else f" from {unit} {self.start}"
        return f"{words}{since}{changes}"

    def _segments(self) -> tuple[tuple[int, int], ...]:
        """Return all pairs ``(from_step, interval)``, the first one from step 0 on."""
        if not isinstance(self.interval, int):
            raise ValueError(
                f"interval_at answers for an integer interval, got interval={self.interval!r}"
            )
        return ((0, self.interval), *(self.dynamic_intervals or ()))

    def _next_on_grid(self, after: int) -> int:
        anchor = 0 if self.start is None else self.start
        lowest = max(after + 1, 1 if self.start is None else self.start)
        segments = self._segments()
        for (from_step, interval), (end, _) in pairwise(segments):
            step = _round_up(max(lowest, from_step), anchor, interval)
            if step < end:
                return step
        from_step, interval = segments[-1]
        return _round_up(max(lowest, from_step), anchor, interval)

    def _next_listed(self, steps: tuple[int, ...], after: int) -> int | None:
        if self.start == 0 and after < 0:
            return 0
        lowest = max(after + 1, 0 if self.start is None else self.start)
        place = bisect_left(steps, lowest)
        return steps[place] if place < len(steps) else None

    def _next_part(self, part: Fraction, after: int, epoch_length: int) -> int:
        anchor = 0 if self.start is None else self.start * epoch_length
        if after < anchor and self.start is not None:
            return anchor
        gap = part * epoch_length
        # The k-th step is ceil(k * gap): it lies beyond `done` as soon as k * gap does.
        done = max(after - anchor, 0)
        return anchor + math.ceil((done // gap + 1) * gap)

    def _checked_length(self, epoch_length: int | None) -> int:
        length = _as_int(epoch_length)
        if length is not None and length >= 1:
            return length
        what = f"start={self.start} counts epochs beside a time in interval and"
        if isinstance(self.interval, Fraction):
            what = f"interval={_plain(self.interval)}"
        raise ValueError(
            f"{what} needs the length of an epoch, a positive integer, got "
            f"epoch_length={epoch_length!r}; pass epoch_length= to trainer.run, "
            "or count iterations with by_epoch=False"
        )

    def _describe_listed(self, steps: tuple[int, ...]) -> str:
        first = 1 if self.start is None else max(self.start, 1)
        numbers = [str(step) for step in steps if step >= first]
        if not numbers:
            return "before training only"
        unit = "epoch" if self.by_epoch else "iteration"
        many = "s" if len(numbers) > 1 else ""
        shown = ", ".join(numbers)
        if len(numbers) > _MOST_STEPS_SHOWN:
            shown = ", ".join([*numbers[: _MOST_STEPS_SHOWN - 1], "...", numbers[-1]])
            shown += f" ({len(numbers)} in all)"
        before = "before training, then " if self.before_training else ""
        return f"{before}at {unit}{many} {shown}"


def _round_up(step: int, anchor: int, interval: int) -> int:
    """Return the first step of the grid that is not below ``step``."""
    return step + (anchor - step) % interval


def _as_int(value: object) -> int | None:
    """Return an integer of any library as an int, and ``None`` for all else, bools too."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _whole(value: object, name: str, least: int, way_out: str) -> int:
    """Return ``value`` as an int that is at least ``least`` (0 or 1)."""
    whole = _as_int(value)
    wanted = f"{name} must be a {'positive' if least else 'non-negative'} integer"
    if whole is None:
        raise TypeError(f"{wanted}, got {value!r}; {way_out}")
    if whole < least:
        raise ValueError(f"{wanted}, got {whole}; {way_out}")
    return whole


def _check_increasing(numbers: Sequence[int], name: str) -> None:
    if any(earlier >= later for earlier, later in pairwise(numbers)):
        raise ValueError(
            f"{name} must be strictly increasing, got {list(numbers)}; "
            f"in order: {sorted(set(numbers))}"
        )


def _checked_interval(value: object) -> _Interval:
    if value is None:
        return None
    if isinstance(value, timedelta):
        if value <= timedelta(0):
            raise ValueError(f"interval must be a positive time, got {value!r}; {_NEVER}")
        return value
    if _as_int(value) is not None:
        return _whole(value, "interval", 1, _NEVER)
    refused = (bool, str, bytes, Mapping, AbstractSet)  # a number, iterables: by type only
    if isinstance(value, Real) and not isinstance(value, refused):
        return _checked_part(value if isinstance(value, Fraction) else float(value))
    if isinstance(value, Iterable) and not isinstance(value, refused):
        return _checked_steps(value)
    raise TypeError(
        "interval must be a positive integer, a sorted list of steps, a fraction of an epoch "
        f"between 0 and 1, a datetime.timedelta or None, got {value!r}"
    )


def _checked_part(value: Fraction | float) -> Fraction:
    """Read a fraction of an epoch: exactly, or a float as the fraction that it stands for."""
    wanted = "interval must be a positive integer, or a fraction of an epoch between 0 and 1"
    if not 0 < value < 1:
        way_out = "by_epoch=False counts iterations"
        if value >= 1 and value % 1 == 0:
            way_out = f"pass the integer {int(value)}"
        raise ValueError(f"{wanted}, got {value!r}; {way_out}")
    part = Fraction(value)
    if isinstance(value, float):
        part = part.limit_denominator(_MAX_DENOMINATOR)
        if not 0 < part < 1:
            raise ValueError(
                f"{wanted} and not within a millionth of either, got {value!r}; "
                "pass a fractions.Fraction, which is taken as it is"
            )
    return part


def _checked_steps(values: Iterable[object]) -> tuple[int, ...]:
    way_out = "a list names the steps at which to evaluate, 0 is before training"
    steps = tuple(_whole(v, f"interval[{i}]", 0, way_out) for i, v in enumerate(values))
    if not steps:
        raise ValueError(f"interval must name at least one step, got an empty list; {_NEVER}")
    _check_increasing(steps, "the steps in interval")
    return steps


def _checked_dynamic(values: object) -> tuple[tuple[int, int], ...] | None:
    if values is None:
        return None
    if not isinstance(values, Sequence) or not all(
        isinstance(pair, Sequence) and len(pair) == 2 for pair in values
    ):
        raise TypeError(
            "dynamic_intervals must be a list of pairs (from_step, interval), "
            f"such as [(285, 1)], got {values!r}"
        )
    way_out = "each pair is (from_step, interval); interval= holds before the first"
    pairs = tuple(
        (
            _whole(from_step, f"dynamic_intervals[{place}][0]", 1, way_out),
            _whole(interval, f"dynamic_intervals[{place}][1]", 1, way_out),
        )
        for place, (from_step, interval) in enumerate(values)
    )
    _check_increasing([pair[0] for pair in pairs], "the from_steps in dynamic_intervals")
    return pairs or None


def _plain(part: Fraction) -> str:
    """Return a fraction as a short decimal where that is exact: 0.25, but 1/3."""
    decimal = f"{float(part):g}"
    return decimal if Fraction(decimal) == part else str(part)


def _every(interval: int, unit: str) -> str:
    return f"every {unit}" if interval == 1 else f"every {interval} {unit}s"


def _describe_time(time: timedelta) -> str:
    minutes, seconds = divmod(time, timedelta(minutes=1))
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    amounts = {"day": days, "hour": hours, "minute": minutes, "second": seconds.total_seconds()}
    words = [f"{n:g} {unit}{'' if n == 1 else 's'}" for unit, n in amounts.items() if n]
    # "every hour", but "every 1 hour 30 minutes".
    return words[0].removeprefix("1 ") if len(words) == 1 else " ".join(words)
