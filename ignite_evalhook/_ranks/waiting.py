"""Watch for whom this rank waits, and give up on a rank that never comes.

Whenever a rank begins what all ranks go through, it says so in the store of the process group.
One that has begun may take hours for it.  One that has not, after another rank has waited for it
as long as the timeout of the default process group, is somewhere else: it is named, on all ranks.

To wait in gloo is to wait for all or nothing, since a timeout of gloo's closes the connections.
So a thread looks at the wait, and closes them where it gives up.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

__all__: list[str] = []

# Not the package's own logger: that speaks for all ranks, on rank 0 only.
logger = logging.getLogger("ignite_evalhook.waiting")

NOTICE_SECONDS = 30.0  # of waiting, after which it is said for whom
_LOOK_SECONDS = 1.0  # how often a wait is looked at
_PAUSES = (0.001, 0.25)  # seconds between two looks at the store, at first and at most
# Keys of the store.
_AT = "ignite_evalhook/at"  # and the rank: what it has begun
_ALL_CAME = "ignite_evalhook/all came"
_MISSING = "ignite_evalhook/missing"  # ranks that have been given up, with words


def default_timeout() -> float:
    """Return the timeout of the default process group, in seconds."""
    group: Any = dist.group.WORLD
    devices = getattr(group, "_device_types", ())
    options: list[Any] = [getattr(group._get_backend(d), "options", None) for d in devices]
    timeouts = [option._timeout for option in options if hasattr(option, "_timeout")]
    return min(timeouts, default=dist.constants.default_pg_timeout).total_seconds()


@dataclass
class Wait:
    """One wait: where, since when (seconds), for which rank; and what is known of it."""

    label: str
    since: float
    rank: int
    is_noticed: bool = False
    all_came: bool = False


class Watch:
    """What one rank knows of where the others are.

    Args:
        rank: This rank.
        size: Number of ranks.
        store: The store of the default process group.
        close: Closes this rank's connections, so that nobody waits for it.
        limit: Returns how many seconds to wait for a rank that does not come.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        store: Any,
        close: Callable[[], object],
        *,
        limit: Callable[[], float] = default_timeout,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank = rank
        self._others = [other for other in range(size) if other != rank]
        self._store = store
        self._close = close
        self._limit = limit
        self._clock = clock
        self._number = 0
        self._wait: Wait | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, number: int, what: str) -> None:
        """Say that this rank begins something that all ranks go through.

        Args:
            number: Grows with each; the same on all ranks.
            what: Words for it.
        """
        self._number = number
        with suppress(RuntimeError):  # the store is gone with its host, as others will find
            self._store.set(f"{_AT}/{self._rank}", f"{number} {what}")

    def meet_first(self, what: str) -> Mapping[int, str]:
        """Wait until every rank has come for the first time.

        Returns:
            The ranks that did not come in time, with words for each.
        """
        self.begin(-1, what)  # before any meeting
        awaited = [f"{_AT}/{other}" for other in self._others] if self._rank == 0 else [_ALL_CAME]
        pause, longest = _PAUSES
        with self.over(what, self._others[0]):
            while not (missing := self.missing()) and not self._store.check(awaited):
                time.sleep(pause)
                pause = min(2 * pause, longest)
        if self._rank == 0 and not missing:
            self._store.set(_ALL_CAME, "")
        return missing

    def missing(self) -> Mapping[int, str]:
        """Return the ranks that have been given up, by whichever rank, with words for each."""
        with suppress(RuntimeError):
            if self._store.check([_MISSING]):
                found = json.loads(self._store.get(_MISSING))
                return {int(rank): words for rank, words in found.items()}
        return {}

    @contextmanager
    def over(self, label: str, rank: int) -> Iterator[Wait]:
        """Watch the body, which waits for ``rank`` at the place of that label."""
        with self._lock:
            self._wait = Wait(label, self._clock(), rank)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, daemon=True)
                with suppress(RuntimeError):  # no more threads: a wait that is not watched
                    self._thread.start()
        try:
            yield self._wait
        finally:
            with self._lock:
                self._wait = None

    def _run(self) -> None:
        """Look now and then; end when there has been nothing to look at."""
        while True:
            time.sleep(min(_LOOK_SECONDS, self._limit() / 10))
            with self._lock:
                if self._wait is None:
                    self._thread = None
                    return
            self.look()

    def look(self) -> None:
        """Look once at the present wait: say whom it is for, or give up whoever never came."""
        with self._lock:
            wait = self._wait
            if wait is None:
                return
            seconds, limit = self._clock() - wait.since, self._limit()
            asks = seconds >= limit and not wait.all_came
            notices = seconds >= NOTICE_SECONDS and not wait.is_noticed
            if not (asks or notices):
                return
            absent = self._absent()
            wait.all_came = not absent
            if asks and absent:
                self._give_up(wait, absent, limit)
            elif notices:
                wait.is_noticed = True
                places = absent or {wait.rank: "at work there"}
                logger.warning(
                    "rank %d has waited for %.0f s at %r for %s",
                    self._rank, seconds, wait.label,
                    ", ".join(f"rank {rank} ({place})" for rank, place in places.items()),
                )  # fmt: skip

    def _absent(self) -> dict[int, str]:
        """Return the ranks that have not begun what this one has, with where they were last."""
        keys = [f"{_AT}/{other}" for other in self._others]
        try:
            if self._store.check(keys):
                said = dict(zip(self._others, self._store.multi_get(keys), strict=True))
                places = {rank: words.decode().partition(" ") for rank, words in said.items()}
                return {
                    rank: f"last at {what!r}"
                    for rank, (number, _, what) in places.items()
                    if int(number) < self._number
                }
            return {
                rank: "not seen yet"
                for rank, key in zip(self._others, keys, strict=True)
                if not self._store.check([key])
            }
        except RuntimeError:  # the store is gone with its host; the connections will tell
            return {}

    def _give_up(self, wait: Wait, absent: Mapping[int, str], limit: float) -> None:
        words = {
            rank: f"it did not come to {wait.label!r} ({place}), where rank {self._rank} waited "
            f"for {limit:g} s, the timeout of the default process group; call the hook on every "
            "rank alike"
            for rank, place in absent.items()
        }
        with suppress(RuntimeError):
            self._store.set(_MISSING, json.dumps(words))
        self._close()
