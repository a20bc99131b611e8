"""Time several contenders side by side: interleaved repetitions, so that noise meets all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Timed = Callable[[], Any]

#: What is measured.  ``use_cpu_time`` replaces it on a machine that does other things as well.
_clock: Callable[[], float] = time.perf_counter


def now() -> float:
    """Return the seconds of the clock that is in use."""
    return _clock()


def use_cpu_time() -> None:
    """Measure this process's CPU time from now on, where nothing is waited for."""
    global _clock
    _clock = time.process_time


def seconds(function: Timed) -> float:
    """Return how long a call takes, without the time for letting its result go."""
    gc.collect()
    begin = _clock()
    result = function()
    taken = _clock() - begin
    del result
    return taken


def settle() -> None:
    """Let the collector forget what there is: half a million objects of so many libraries.

    Else a full collection before each measurement takes longer than most of them.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def interleaved(
    contenders: Mapping[str, Timed],
    repetitions: int,
    measure: Callable[[Timed], float] = seconds,
) -> dict[str, list[float]]:
    """Return the times of each contender, all of a repetition right after each other.

    Each runs once before, to be warm.  The order turns from one repetition to the next, so that
    nobody always follows the same neighbour.
    """
    names = list(contenders)
    settle()
    for name in names:
        measure(contenders[name])
    settle()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(repetitions):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(measure(contenders[name]))
    return times


def ratios(times: Sequence[float], unit: Sequence[float]) -> list[float]:
    """Divide each time by that of the same repetition."""
    return [own / other for own, other in zip(times, unit, strict=True)]


@dataclass(frozen=True)
class Effort:
    """How hard to measure: repetitions, the part of the full sizes, and whether with peers."""

    repetitions: int = 7
    scale: float = 1.0
    peers: bool = True

    def of(self, full: int, least: int = 2) -> int:
        """Return the size to use where ``full`` is that of a full run."""
        return max(least, round(full * self.scale))


FULL = Effort()
QUICK = Effort(repetitions=3, scale=0.1)
TINY = Effort(repetitions=2, scale=0.004, peers=False)
