"""``on_save_error="warn"``: a full disk is told once a file, and ends nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from helpers.private import Storage, open_storage
from helpers.ranks import on_ranks
from helpers.scripted import counter, scripted
from ignite_evalhook import BestCheckpoint, EvalHook, History, find_best
from ignite_evalhook.exceptions import CheckpointError

FULL: dict[str, Callable[[str], bool]] = {
    "best": lambda name: name.startswith("best_model"),
    "best.json": lambda name: name == "best.json",
    "history.jsonl": lambda name: name == "history.jsonl",
    "last.pt": lambda name: name == "last.pt",
    "everything": lambda name: True,
}


class Disk:
    """A storage that is full for some files, for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_full: Callable[[str], bool]) -> None:
        self.full = False
        self._is_full = is_full
        for kind in {type(open_storage(where)) for where in ("x", "memory://x")}:
            for method in ("write", "append_line"):
                monkeypatch.setattr(kind, method, self._flaky(getattr(kind, method)))

    def _flaky(self, write: Any) -> Any:
        def flaky(storage: Storage, name: str, what: Any) -> None:
            if self.full and self._is_full(name):
                raise CheckpointError(errno.ENOSPC, f"could not write {name}: disk full")
            write(storage, name, what)

        return flaky


def train(
    out_dir: Any, disk: Any, full: set[int], *, on_save_error: str = "warn", **options: Any
) -> EvalHook:
    """Train 6 epochs, each better than the one before, with a full disk in some."""
    model = counter()
    checkpoint = BestCheckpoint({"model": model}, out_dir, on_save_error=on_save_error, **options)
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    hook, trainer = scripted(scores, model=model, checkpoint=checkpoint)
    hook.attach(trainer)
    hook.keep_last({"model": model})

    @trainer.on(Events.EPOCH_STARTED)
    def fill(engine: Engine) -> None:
        disk.full = engine.state.epoch in full

    trainer.run([0], max_epochs=6)
    return hook


def lines(out_dir: Any) -> list[dict[str, Any]]:
    text = open_storage(out_dir).read_text("history.jsonl") or ""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("what", FULL)
@pytest.mark.parametrize("async_save", [False, True])
def test_it_is_logged_once_and_when_there_is_room_again_the_account_is_whole(
    what: str, async_save: bool, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    disk = Disk(monkeypatch, FULL[what])
    hook = train(tmp_path, disk, {3, 4}, async_save=async_save)
    assert [record.iteration for record in hook.history] == [1, 2, 3, 4, 5, 6]
    assert History.read(tmp_path / "history.jsonl") == hook.history
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 6
    assert hook.best == find_best(tmp_path)
    assert hook.best is not None
    assert hook.best.score == 0.6
    names = ["best.json", "best_model_6_acc=0.6.pt", "history.jsonl", "last.pt"]
    assert sorted(os.listdir(tmp_path)) == names
    told = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    kinds = {"the best acc", "history.jsonl", "last.pt"}
    kinds = kinds if what == "everything" else {what} & kinds or {"the best acc"}
    assert sorted(line.split(" was not saved")[0] for line in told) == [
        f"val: {kind}" for kind in sorted(kinds, key=lambda kind: f"val: {kind}")
    ]


def test_it_is_the_same_behind_a_url(monkeypatch: Any, caplog: Any) -> None:
    out_dir = f"memory://{os.urandom(8).hex()}"
    hook = train(out_dir, Disk(monkeypatch, FULL["everything"]), {2, 3})
    assert [line["iteration"] for line in lines(out_dir)] == [1, 2, 3, 4, 5, 6]
    assert find_best(out_dir) == hook.best
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 3


def test_a_second_time_is_told_again(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    train(tmp_path, Disk(monkeypatch, FULL["last.pt"]), {2, 3, 5})
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 2


def test_a_disk_that_stays_full_ends_nothing_and_a_restart_makes_all_whole(
    tmp_path: Path, monkeypatch: Any
) -> None:
    disk = Disk(monkeypatch, FULL["everything"])
    hook = train(tmp_path, disk, {4, 5, 6})
    assert [record.is_best for record in hook.history] == [True] * 3 + [False] * 3
    assert hook.best == find_best(tmp_path)
    assert len(lines(tmp_path)) == 3
    disk.full = False
    again = train(tmp_path, disk, set())
    assert [record.iteration for record in again.history] == [1, 2, 3, 4, 5, 6]
    assert History.read(tmp_path / "history.jsonl") == again.history
    assert find_best(tmp_path) == again.best


@pytest.mark.parametrize("what", FULL)
def test_otherwise_it_ends_the_run(what: str, tmp_path: Path, monkeypatch: Any) -> None:
    disk = Disk(monkeypatch, FULL[what])
    with pytest.raises(CheckpointError, match="disk full"):
        train(tmp_path, disk, {3}, on_save_error="raise")


def on_a_full_disk(rank: int, folder: str) -> list[Any]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        disk = Disk(monkeypatch, FULL["everything"])
        hook = train(folder, disk, {2, 3, 6})
    return [[record.is_best for record in hook.history], hook.best]


def test_all_ranks_go_on_alike(tmp_path: Path) -> None:
    said = on_ranks(2, on_a_full_disk, str(tmp_path))
    assert said == [said[0]] * 2
    assert said[0][0] == [True, False, False, True, True, False]
    assert [line["iteration"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 5
