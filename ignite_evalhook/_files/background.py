"""Do slow work in the background, one job after another."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from weakref import WeakSet

from .._log import logger

__all__ = ["Writer", "wait_for_writers"]

Job = Callable[[], object]

_NICENESS = 5  # a third of the share of training where cores are short; more would starve it

_threads: WeakSet[threading.Thread] = WeakSet()


def wait_for_writers() -> None:
    """Wait for all jobs of all writers of this process; what they fail with stays theirs."""
    for thread in list(_threads):
        thread.join()


class Writer:
    """A queue of jobs, and a thread while there are any.

    The interpreter does not exit before the last job is done.  When one fails, those behind it
    are dropped, and :meth:`wait` raises the error, once.
    """

    def __init__(self) -> None:
        self._jobs: deque[tuple[Job, threading.Event]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done."""
        with self._lock:
            return self._thread is None

    def submit(self, job: Job) -> threading.Event:
        """Do ``job`` after those submitted before; not at all if one of them has failed.

        Returns:
            What is set when it is done, or will not be done.
        """
        done = threading.Event()
        with self._lock:
            if self._error is not None:
                done.set()
                return done
            self._jobs.append((job, done))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="ignite-evalhook writer")
                self._thread.start()
                _threads.add(self._thread)
        return done

    def wait(self) -> None:
        """Wait for all jobs.

        Raises:
            BaseException: What a job has raised.
        """
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        _step_back()
        while True:
            with self._lock:
                if not self._jobs:
                    self._thread = None
                    return
                job, done = self._jobs.popleft()
            try:
                job()
            except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
                logger.error("in the background: %s", error)
                with self._lock:
                    self._error = error
                    dropped = [done, *(event for _, event in self._jobs)]
                    self._jobs.clear()
                    self._thread = None
                for event in dropped:
                    event.set()
                return
            done.set()


def _step_back() -> None:
    """Let training go first where cores are short."""
    if sys.platform == "linux":  # there, a thread has a priority of its own
        with contextlib.suppress(OSError):  # a sandbox that forbids it
            before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), before + _NICENESS)
