"""A large file is gone from the folder at once, and from the disk soon; nobody waits for that."""

from __future__ import annotations

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

from ignite_evalhook import EvalHook, _removal, _storage_local
from ignite_evalhook._storage import LocalStorage
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
    assert left.startswith(".big.")
    gate.open.set()
    storage.wait()
    assert os.listdir(tmp_path) == []
    assert gate.was_in_background


@pytest.fixture
def opened_by_waiting(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = _storage_local.wait_for_removals

    def open_and_wait() -> None:
        gate.open.set()
        wait()
        gate.open.clear()

    monkeypatch.setattr(_storage_local, "wait_for_removals", open_and_wait)


@pytest.mark.usefixtures("opened_by_waiting")
def test_the_next_write_waits_for_the_room(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_text("big", "x" * 1000)
    storage.remove("big")
    found: list[list[str]] = []
    storage.write("new", lambda file: found.append(os.listdir(tmp_path)))
    [[only]] = found
    assert only.startswith(".new.")


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
