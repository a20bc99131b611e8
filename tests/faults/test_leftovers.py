"""A file that cannot be removed when it is not needed any more is removed later."""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from ignite.handlers import DiskSaver

from helpers.private import FsspecStorage, Leftovers, LocalStorage, Storage, open_storage, read_note
from helpers.scripted import best_files, counter, run, scripted
from ignite_evalhook import BestCheckpoint
from ignite_evalhook.exceptions import CheckpointError

NOTE = ".val.leftovers.json"


class Stuck:
    """Makes the removal of best files fail, a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int, *classes: Any) -> None:
        self.times = times
        for kind in classes:
            monkeypatch.setattr(kind, "remove", self._flaky(kind.remove))

    def _flaky(self, remove: Any) -> Any:
        def flaky(target: Any, name: str) -> None:
            if name.startswith("best_model") and self.times > 0:
                self.times -= 1
                raise CheckpointError(16, f"could not remove {name}: it is busy")
            remove(target, name)

        return flaky


def names(out_dir: Any) -> list[str]:
    return [name for name in open_storage(out_dir).list() if name.startswith((".", "best_model"))]


@pytest.fixture(params=["folder", "url"])
def out_dir(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


@pytest.mark.parametrize("async_save", [False, True])
def test_it_is_tried_again_with_the_next_evaluations_and_told_once(
    out_dir: str, async_save: bool, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    Stuck(monkeypatch, 4, LocalStorage, FsspecStorage)
    caplog.set_level(logging.WARNING, "ignite_evalhook")
    checkpoint = BestCheckpoint({"model": counter()}, out_dir, async_save=async_save)
    run([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], checkpoint=checkpoint)
    assert names(out_dir) == ["best_model_6_acc=0.6.pt"]
    told = [r.getMessage() for r in caplog.records if "is not needed any more" in r.getMessage()]
    assert len(told) == len({line.split()[0] for line in told}) > 0


def test_evaluations_that_save_nothing_try_again_too(
    out_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stuck(monkeypatch, 1, LocalStorage, FsspecStorage)
    run([0.1, 0.2, 0.0], out_dir)
    assert names(out_dir) == ["best_model_2_acc=0.2.pt"]


@pytest.mark.parametrize("fresh", [False, True])
def test_it_is_tried_again_after_a_restart(
    out_dir: str, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Stuck(patch, 99, LocalStorage, FsspecStorage)
        state = run([0.1, 0.2, 0.3], out_dir, n_saved=1).state_dict()
        assert len(names(out_dir)) == 4
    hook, trainer = scripted([0.0], out_dir)
    hook.attach(trainer)
    if fresh:
        trainer.run([0], max_epochs=1)
        assert names(out_dir) == ["best_model_1_acc=0.pt"]
        return
    hook.load_state_dict(state)
    trainer.load_state_dict({"iteration": 3, "epoch_length": 1, "max_epochs": 4})
    trainer.run([0], max_epochs=4)
    assert names(out_dir) == ["best_model_3_acc=0.3.pt"]


def test_a_file_that_has_changed_meanwhile_is_not_ours_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Stuck(patch, 99, LocalStorage)
        run([0.1, 0.2, 0.3], tmp_path)
    theirs = tmp_path / "best_model_1_acc=0.1.pt"
    torch.save({"somebody": "else's"}, theirs)
    content = theirs.read_bytes()
    run([0.0], tmp_path)
    assert theirs.read_bytes() == content
    assert names(tmp_path) == ["best_model_1_acc=0.1.pt", "best_model_1_acc=0.pt"]


def test_a_file_that_is_needed_again_stays(storage: Storage, monkeypatch: Any) -> None:
    storage.write_text("best_model_a", "a")
    with monkeypatch.context() as patch:
        Stuck(patch, 1, LocalStorage)
        Leftovers(storage, NOTE).remove(["best_model_a"], set())
    again = Leftovers(storage, NOTE)
    again.recall({"best_model_a"})
    assert storage.list() == ["best_model_a"]
    again.remove((), set())
    assert storage.list() == ["best_model_a"]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return LocalStorage(tmp_path / "run")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '{"x": null}', '{"x": [1]}', '{"../y": [1, "00000000"]}', '{"x": [1e999, 1]}',
     '{"a":' * 50_000 + "1" + "}" * 50_000],
)  # fmt: skip
def test_a_damaged_note_removes_nothing(storage: Storage, text: str, tmp_path: Path) -> None:
    (tmp_path / "y").write_bytes(b"\0")
    storage.write_text("x", "x")
    storage.write_text(NOTE, text)
    assert read_note(text) == {}
    Leftovers(storage, NOTE).recall(set())
    assert storage.list() == ["x"]
    assert (tmp_path / "y").exists()


def test_a_note_that_cannot_be_read_or_written_ends_nothing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage.write_text("best_model", "x")

    def full(*_: object) -> None:
        raise CheckpointError(28, "No space left on device")

    left = Leftovers(storage, NOTE)
    with monkeypatch.context() as patch:
        Stuck(patch, 1, LocalStorage)
        patch.setattr(LocalStorage, "write_text", full)
        patch.setattr(LocalStorage, "read_text", full)
        left.recall(set())
        left.remove(["best_model"], set())
    assert caplog.text.count("No space left") == 2
    left.remove((), set())
    assert storage.list() == []


def test_behind_ignites_own_save_handler_it_is_tried_again_within_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stuck(monkeypatch, 2, DiskSaver)
    run([0.1, 0.2, 0.3, 0.4], DiskSaver(tmp_path))
    assert best_files(tmp_path) == ["best_model_4_acc=0.4.pt"]


def test_a_note_is_plain_json_and_gone_with_the_last_file(
    out_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Stuck(patch, 99, LocalStorage, FsspecStorage)
        run([0.1, 0.2], out_dir)
    with fsspec.open(f"{out_dir}/{NOTE}") as file:
        [(name, (size, crc32))] = json.load(file).items()
    assert (name, open_storage(out_dir).fingerprint(name)) == (
        "best_model_1_acc=0.1.pt",
        (size, crc32),
    )
    run([0.3], out_dir)
    assert not open_storage(out_dir).exists(NOTE)
