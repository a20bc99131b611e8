"""A sum computed in a second thread is the sum, and the thread is gone when its file is done."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from ignite_evalhook import _background_hash
from ignite_evalhook._background_hash import BackgroundHash
from ignite_evalhook._storage import LocalStorage
from ignite_evalhook.exceptions import CheckpointError

DATA = os.urandom(100_000)
SUM = hashlib.sha256(DATA).hexdigest()
posix = pytest.mark.skipif(sys.platform == "win32", reason="fork")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_background_hash, "_SMALL", 1000)
    monkeypatch.setattr(_background_hash, "_BLOCK", 700)
    monkeypatch.setattr(_background_hash, "_BLOCKS", 3)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sha256")]


def save(file: BinaryIO) -> None:
    file.write(DATA)


@pytest.mark.parametrize("size", [1, 300, 699, 700, 701, 1000, 5000, len(DATA)])
def test_the_sum_is_that_of_all_pieces_in_their_order(size: int) -> None:
    digest = BackgroundHash()
    for begin in range(0, len(DATA), size):
        piece = bytearray(DATA[begin : begin + size])
        digest.update(memoryview(piece))
        piece[:] = bytes(len(piece))  # it may be reused at once
    assert digest.hexdigest() == SUM
    digest.close()
    assert digest.hexdigest() == SUM
    assert threads() == []


def test_a_small_file_starts_no_thread() -> None:
    digest = BackgroundHash()
    digest.update(memoryview(DATA[:1000]))
    assert threads() == []
    digest.update(memoryview(b"more"))
    assert len(threads()) == 1
    digest.close()


@pytest.mark.parametrize("after", [0, 1, 10])
def test_where_no_thread_can_be_had_the_sum_is_the_same(
    monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    submit, count = ThreadPoolExecutor.submit, iter(range(1000))

    def refuse(self: Any, *args: Any) -> Any:
        if next(count) >= after:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        return submit(self, *args)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    digest = BackgroundHash()
    for begin in range(0, len(DATA), 2500):
        digest.update(memoryview(DATA)[begin : begin + 2500])
    assert digest.hexdigest() == SUM
    assert threads() == []


def test_a_thread_that_cannot_start_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    digest = BackgroundHash()
    digest.update(memoryview(DATA))
    assert digest.hexdigest() == SUM


@pytest.mark.parametrize("fails", [None, "write", "fsync", "close", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_no_thread_is_left_behind_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str | None, error: BaseException
) -> None:
    storage = LocalStorage(tmp_path)
    if fails is None:
        assert storage.write("x", save) == SUM
    else:
        real, calls = getattr(os, fails), []

        def fail(*args: Any) -> Any:
            calls.append(args)
            if fails == "write" and len(calls) == 1:
                return real(args[0], args[1][:50_000])  # half of it is on its way to the thread
            if fails == "close":
                real(*args)
            raise error

        monkeypatch.setattr(os, fails, fail)
        expected = CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            storage.write("x", save)
        assert calls
    assert threads() == []


def test_a_failure_of_the_thread_fails_the_file(tmp_path: Path) -> None:
    class Broken:
        def update(self, data: memoryview) -> None:
            raise MemoryError("no more")

    storage = LocalStorage(tmp_path)
    storage.write("x", lambda file: file.write(b"old"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashlib, "sha256", Broken)
        patch.setattr(_background_hash, "_SMALL", 0)
        with pytest.raises(CheckpointError, match="MemoryError: no more"):
            storage.write("x", save)
    with storage.open("x") as file:
        assert file.read() == b"old"
    assert storage.clean() == []
    assert threads() == []


@posix
def test_a_child_that_is_forked_in_mid_write_can_write_itself(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)

    def fork_and_save(file: BinaryIO) -> None:
        file.write(DATA[:50_000])
        file.flush()
        assert len(threads()) == 1
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if LocalStorage(tmp_path / "child").write("y", save) == SUM else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        file.write(DATA[50_000:])

    assert storage.write("x", fork_and_save) == SUM
    assert threads() == []


def test_a_thread_in_the_background_hashes_by_itself() -> None:
    def work() -> tuple[str, list[str]]:
        digest = BackgroundHash()
        digest.update(memoryview(DATA))
        return digest.hexdigest(), threads()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result(60) == (SUM, [])
