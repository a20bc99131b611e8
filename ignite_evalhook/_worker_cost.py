"""Measure what it costs to start data workers for one pass, and to end them.

What a worker really loads is not counted: only what would not be there if it had been running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__: list[str] = []

T = TypeVar("T")


class WorkerCost:
    """A stopwatch for one pass over a loader that starts its workers for it.

    Three things are counted.  Making the iterator starts the processes.  The first batch comes
    later than others, since the workers get ready before they load it; so long as it is not
    known how long a batch takes to load, that is not counted.  Dropping the iterator ends them.

    Args:
        workers: How many processes load batches, one batch each at a time, in turn.
        clock: Gives seconds.

    Attributes:
        seconds: What was counted so far; complete after the pass.
    """

    def __init__(self, workers: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = 0.0
        self._workers = workers
        self._clock = clock

    def watch(self, loader: Iterable[T]) -> Iterator[T]:
        """Go once through ``loader``; nobody else may hold its iterator."""
        clock = self._clock
        asked = clock()
        batches = iter(loader)
        came = clock()
        self.seconds, asked = came - asked, came
        number, first, first_came, slowest = 0, 0.0, came, 0.0
        try:
            for batch in batches:
                now = clock()
                if number == 0:
                    first, first_came = now - came, now
                else:
                    slowest = max(slowest, now - came)
                if number == self._workers:
                    # The first worker's second batch, begun not before its first one was done:
                    # it did not take longer than this to load.
                    self.seconds += max(0.0, first - max(slowest, now - first_came))
                came, number = now, number + 1
                yield batch
                asked = clock()
        except GeneratorExit:  # whoever takes the batches has enough
            asked = clock()
            raise
        finally:
            del batches  # nobody else has it, so the workers end here
            self.seconds += clock() - asked
