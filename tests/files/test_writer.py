"""Jobs are done in their order, in a thread that lets training go first."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from helpers.private import Writer

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")


def test_jobs_are_done_in_their_order_and_no_thread_is_left() -> None:
    writer, done = Writer(), []
    for number in range(5):
        writer.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    writer.wait()
    assert done == [0, 1, 2, 3, 4]
    assert writer.is_idle
    assert not any(thread.name == "ignite-evalhook writer" for thread in threading.enumerate())


def test_what_waits_behind_a_job_that_fails_is_dropped_and_the_error_is_raised_once() -> None:
    writer, done, ready = Writer(), [], threading.Event()

    def fail() -> None:
        assert ready.wait(60)
        raise OSError("disk full")

    events = [writer.submit(fail), writer.submit(lambda: done.append(1))]
    ready.set()
    with pytest.raises(OSError, match="disk full"):
        writer.wait()
    assert done == []
    assert all(event.wait(60) for event in events)
    writer.wait()
    writer.submit(lambda: done.append(2))
    writer.wait()
    assert done == [2]


@linux
def test_training_goes_first_where_cores_are_short() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before, found, writer = priority(), [], Writer()
    writer.submit(lambda: found.append(priority()))
    writer.wait()
    assert found == [min(before + 5, 19)]
    assert priority() == before


@linux
def test_a_system_that_refuses_a_lower_priority_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", refuse)
    writer, done = Writer(), []
    writer.submit(lambda: done.append(1))
    writer.wait()
    assert done == [1]
