"""A large file is gone from the folder at once, and from the disk soon; nobody waits for that."""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ignite.engine import Engine
from torch import nn

from helpers.private import LocalStorage, _removal, _storage_local
from ignite_evalhook import EvalHook
from ignite_evalhook.exceptions import CheckpointError

posix = pytest.mark.skipif(sys.platform == "win32", reason="fork, links")


class Gate:
    """Holds back the last step of removing until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.threads: list[threading.Thread] = []
        unlink = Path.unlink

        def wait_and_unlink(path: Path, missing_ok: bool = False) -> None:
            self.threads.append(threading.current_thread())
            if threading.current_thread() is not threading.main_thread():
                assert self.open.wait(60)
            unlink(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", wait_and_unlink)

    @property
    def was_in_background(self) -> bool:
        return any(thread is not threading.main_thread() for thread in self.threads)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.setattr(_removal, "_LARGE", 1000)
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()
    _removal.wait_for_removals()


def test_a_large_file_is_gone_from_the_folder_before_it_is_gone_from_the_disk(
    tmp_path: Path, gate: Gate
) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_text("big", "x" * 1000)
    storage.remove("big")
    assert storage.list() == []
    assert storage.size("big") is None
    [left] = os.listdir(tmp_path)
    assert left.startswith(".big~")
    gate.open.set()
    storage.wait()
    assert os.listdir(tmp_path) == []
    assert gate.was_in_background


@pytest.fixture
def opened_by_waiting(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = _storage_local.wait_for_removals

    def open_and_wait() -> bool:
        gate.open.set()
        waited = wait()
        gate.open.clear()
        return waited

    monkeypatch.setattr(_storage_local, "wait_for_removals", open_and_wait)


@pytest.mark.usefixtures("opened_by_waiting")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("how", ["write_text", "append_line"])
def test_a_write_that_finds_no_room_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, how: str
) -> None:
    storage, write = LocalStorage(tmp_path), os.write
    storage.write_text("big", "x" * 1000)

    def write_if_there_is_room(handle: int, data: bytes) -> int:
        if any(name.startswith(".big~") for name in os.listdir(tmp_path)):
            write(handle, data[: len(data) // 2])
            raise OSError(number, os.strerror(number))
        return write(handle, data)

    storage.remove("big")
    monkeypatch.setattr(os, "write", write_if_there_is_room)
    if number == errno.EIO:
        with pytest.raises(CheckpointError, match="EIO"):
            getattr(storage, how)("new", "y")
        return
    getattr(storage, how)("new", "content")
    assert storage.read_text("new") == ("content" if how == "write_text" else "content\n")
    assert os.listdir(tmp_path) == ["new"]


def test_a_write_that_finds_no_room_where_none_will_be_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match="ENOSPC"):
        LocalStorage(tmp_path).write_text("new", "y")
    assert os.listdir(tmp_path) == []


def test_a_large_file_is_replaced_at_once_and_gone_from_the_disk_later(
    tmp_path: Path, gate: Gate
) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_text("big", "x" * 1000)
    storage.write_text("big", "new")
    assert storage.read_text("big") == "new"
    [left, _] = sorted(os.listdir(tmp_path))
    assert left.startswith(".big~")
    gate.open.set()
    storage.wait()
    assert os.listdir(tmp_path) == ["big"]
    assert gate.was_in_background


@pytest.mark.parametrize("broken", ["link", "replace"])
def test_a_file_that_cannot_be_replaced_stays_and_one_that_cannot_be_linked_is_replaced(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_text("big", "x" * 1000)
    gate.open.set()

    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, broken, refuse)
    if broken == "replace":
        with pytest.raises(CheckpointError, match=r"could not write .*big: Operation not perm"):
            storage.write_text("big", "new")
    else:
        storage.write_text("big", "new")
    assert storage.read_text("big") == ("new" if broken == "link" else "x" * 1000)
    assert os.listdir(tmp_path) == ["big"]


@pytest.mark.parametrize("case", ["small", "another thread", "missing", "link"])
def test_what_is_quick_is_done_at_once(tmp_path: Path, gate: Gate, case: str) -> None:
    storage = LocalStorage(tmp_path)
    gate.open.set()
    if case != "missing":
        storage.write_text("file", "x" * (999 if case == "small" else 1000))
    if case == "link":
        os.link(tmp_path / "file", tmp_path / "second")
    if case == "another thread":
        with ThreadPoolExecutor(1) as pool:
            pool.submit(storage.remove, "file").result(60)
    else:
        storage.remove("file")
    assert os.listdir(tmp_path) == (["second"] if case == "link" else [])
    assert _removal._running == []


@posix
def test_a_kill_in_between_leaves_what_the_next_run_cleans_up(tmp_path: Path, gate: Gate) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_text("big", "x" * 1000)
    child = os.fork()
    if child == 0:
        try:
            storage.remove("big")
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert storage.list() == []
    [left] = os.listdir(tmp_path)
    gate.open.set()
    assert storage.clean() == [left]
    storage.wait()
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_renamed_stays_and_the_error_tells(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_text("big", "x" * 1000)

    def refuse(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(CheckpointError, match=r"could not remove .*big: Operation not permitted"):
        storage.remove("big")
    assert os.listdir(tmp_path) == ["big"]


def test_a_file_that_somebody_else_has_removed_meanwhile_is_gone(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_text("big", "x" * 1000)
    rename = os.rename

    def too_late(source: Path, target: Path) -> None:
        os.remove(source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", too_late)
    storage.remove("big")
    assert os.listdir(tmp_path) == []


def test_one_that_stays_after_all_is_told_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_removal, "_LARGE", 1000)
    storage = LocalStorage(tmp_path)
    storage.write_text("big", "x" * 1000)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "unlink", refuse)
    with caplog.at_level(logging.WARNING, "ignite_evalhook"):
        storage.remove("big")
        storage.wait()
    assert "is not needed any more, but stays" in caplog.text


def test_where_no_thread_can_be_had_the_file_is_removed_all_the_same(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_text("big", "x" * 1000)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    storage.remove("big")
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("opened_by_waiting")
def test_when_a_run_has_ended_its_folder_is_tidy(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_removal, "_LARGE", 0)
    model, scores = nn.Linear(2, 1), iter([0.1, 0.2, 0.3])
    hook = EvalHook(
        None, lambda trainer: {"acc": next(scores)}, model=model, save_best="acc", out_dir=tmp_path
    )
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    assert gate.was_in_background
    assert sorted(os.listdir(tmp_path)) == ["best.json", "best_model_3_acc=0.3.pt", "history.jsonl"]
