"""A full disk at any step of saving a best keeps the old one, on disk and in memory."""

from __future__ import annotations

import errno
import itertools
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from ignite.handlers.checkpoint import CheckpointEvents

from helpers.private import LocalStorage
from helpers.scripted import best_files, best_json, counter, run, scripted, step_in
from ignite_evalhook import (
    BestCheckpoint,
    CheckpointError,
    EvalEvents,
    EvalHook,
    find_best,
    load_best,
)

NEEDS_ROOM = ("open", "write", "fsync", "replace", "link", "mkdir")
CALLS = (*NEEDS_ROOM, "close", "unlink", "ftruncate")


class Disk:
    """Counts the calls to the system while it is on, and is full at the ``n``-th.

    Args:
        n: Number of the call that fails, from 0.
        stays_full: Whether every later call that needs room fails as well.
    """

    def __init__(self, n: int, *, stays_full: bool) -> None:
        self.n = n
        self.stays_full = stays_full
        self.is_on = False
        self.calls: list[str] = []

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.is_on:
                self._count(name, args, real)
            # What is durable is tested with the storage; here it only costs time.
            return None if name == "fsync" else real(*args, **kwargs)

        return call

    def _count(self, name: str, args: Any, real: Callable[..., Any]) -> None:
        number = len(self.calls)
        self.calls.append(name)
        if number == self.n or (number > self.n and self.stays_full and name in NEEDS_ROOM):
            if name == "close":  # a failing close closes
                real(*args)
            raise OSError(errno.ENOSPC, "No space left on device")

    @property
    def was_hit(self) -> bool:
        return len(self.calls) > self.n


SAID = [
    {"acc": 0.5, "loss": 0.5},
    {"acc": 0.7, "loss": 0.3},
    {"acc": 0.6, "loss": 0.4},
    {"acc": 0.8, "loss": 0.2},
]


def memory(hook: EvalHook, checkpoint: BestCheckpoint) -> tuple[Any, ...]:
    history = [record.iteration for record in hook.history]
    saved = [tuple(item) for item in checkpoint._saved]
    state = hook.state_dict()
    return hook.best, dict(hook.bests), history, saved, state["follower"], state["watchers"]


def disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def check_best_is_whole(folder: Path, metric: str, aliases: list[str]) -> float:
    """Check that the best on disk is what it says, and return its score."""
    best = find_best(folder, metric)
    model = counter()
    load_best(folder, {"model": model}, metric=metric)
    scores = [said[metric] for said in SAID]
    assert float(model.weight.detach()) == scores.index(best.score) + 1
    for alias in aliases:
        step_in(folder / alias)
    return best.score


@pytest.mark.parametrize(
    ("alias", "save_best", "stays_full"),
    [
        (None, {"acc": 1}, False),
        (None, {"acc": 1}, True),
        ("copy", {"acc": 1, "loss": 2}, False),
        ("link", {"acc": 2, "loss": 1}, True),
    ],
)
def test_a_full_disk_at_any_step_keeps_the_old_best_and_the_next_evaluation_works(
    alias: str | None,
    save_best: dict[str, int],
    stays_full: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reached: set[str] = set()
    for n in itertools.count():
        folder, full = tmp_path / str(n), Disk(n, stays_full=stays_full)
        model = counter()
        checkpoint = BestCheckpoint({"model": model}, folder, alias=alias)
        hook, trainer = scripted(
            SAID, model=model, checkpoint=checkpoint, save_best=save_best, interval=None
        )
        hook.attach(trainer)
        aliases = [] if alias is None else ["best.pt", "best_loss.pt"]

        @trainer.on(Events.EPOCH_COMPLETED)
        def evaluate(
            engine: Engine,
            folder: Path = folder,
            full: Disk = full,
            hook: EvalHook = hook,
            checkpoint: BestCheckpoint = checkpoint,
            aliases: list[str] = aliases,
        ) -> None:
            if engine.state.epoch != 2:
                hook.evaluate()
                return
            before, files = memory(hook, checkpoint), disk(folder)
            full.is_on = True
            try:
                hook.evaluate()
            except CheckpointError:
                full.is_on = False
                assert memory(hook, checkpoint) == before
                allowed = {SAID[0]["acc"], SAID[1]["acc"]} if stays_full else {SAID[0]["acc"]}
                assert check_best_is_whole(folder, "acc", aliases) in allowed
                assert files.items() <= disk(folder).items() or stays_full
                if not full.stays_full and full.calls[full.n] != "unlink":
                    assert disk(folder) == files
            else:
                full.is_on = False
                assert check_best_is_whole(folder, "acc", aliases) == SAID[1]["acc"]
                assert hook.best == find_best(folder, "acc")

        with monkeypatch.context() as patch:
            full.patch(patch)
            trainer.run([0], max_epochs=4)
        reached |= set(full.calls)
        for metric in save_best:
            assert find_best(folder, metric) == hook.bests[metric][0]
            assert find_best(folder, metric).epoch == 4
            check_best_is_whole(folder, metric, aliases)
        kept = best_json(folder)["kept"]
        listed = {file["file"] for part in kept.values() for file in part["files"]}
        orphans = set(best_files(folder)) - listed - set(aliases)
        assert len(orphans) <= (full.was_hit and full.calls[full.n] == "unlink")
        if not full.was_hit:
            break
    assert set(NEEDS_ROOM) - {"link", "mkdir"} <= reached
    assert n > 20


def test_a_full_disk_at_the_very_first_best_leaves_nothing_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in itertools.count():
        folder, full = tmp_path / str(n), Disk(n, stays_full=False)
        model = counter()
        checkpoint = BestCheckpoint({"model": model}, folder, alias="link")
        hook, trainer = scripted([0.5, 0.5], model=model, checkpoint=checkpoint, interval=None)
        hook.attach(trainer)

        def evaluate(
            engine: Engine, folder: Path = folder, full: Disk = full, hook: EvalHook = hook
        ) -> None:
            full.is_on = True
            try:
                hook.evaluate()
            except CheckpointError:
                full.is_on = False
                assert hook.best is None
                assert len(hook.history) == 0
                left = {name: data for name, data in disk(folder).items() if data != b""}
                assert left == {} or full.calls[full.n] == "unlink"
                hook.evaluate()
            full.is_on = False

        trainer.add_event_handler(Events.EPOCH_COMPLETED, evaluate)
        with monkeypatch.context() as patch:
            full.patch(patch)
            trainer.run([0], max_epochs=1)
        assert find_best(folder) == hook.best
        assert best_files(folder) == ["best.pt", "best_model_1_acc=0.5.pt"]
        assert len((folder / "history.jsonl").read_text().splitlines()) == 1
        if not full.was_hit:
            break
    assert n > 10


posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")


@posix
def test_a_kill_at_any_step_leaves_a_complete_best_of_every_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a kill does not need it
    seen: set[float] = set()
    for n in itertools.count():
        folder, model = tmp_path / str(n), counter()
        checkpoint = BestCheckpoint({"model": model}, folder, alias="copy")
        save_best = {"acc": 1, "loss": 2}
        hook, trainer = scripted(SAID, model=model, checkpoint=checkpoint, save_best=save_best)
        hook.attach(trainer)
        process = os.fork()
        if process == 0:
            end_at_call(n, hook, trainer, monkeypatch)
        _, status = os.waitpid(process, 0)
        for metric in save_best:
            seen.add(check_best_is_whole(folder, metric, ["best.pt", "best_loss.pt"]))
        model = counter()
        checkpoint = BestCheckpoint({"model": model}, folder, alias="copy")
        fresh = run(SAID[:1], model=model, checkpoint=checkpoint, save_best=save_best)
        assert find_best(folder) == fresh.best
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert n > 20
    assert seen == {0.5, 0.7, 0.3}


def end_at_call(n: int, hook: EvalHook, trainer: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run two epochs, and end this process at a call to the system in the second one."""
    full = Disk(n, stays_full=False)
    full.patch(monkeypatch)
    exit_now = os._exit

    def stop(name: str, args: Any, real: Callable[..., Any]) -> None:
        full.calls.append(name)
        if len(full.calls) - 1 == n:
            if name == "write":  # in the middle of it
                real(args[0], bytes(args[1])[: len(args[1]) // 2])
            exit_now(9)

    full._count = stop  # type: ignore[method-assign]
    trainer.add_event_handler(
        Events.EPOCH_STARTED(once=2), lambda engine: setattr(full, "is_on", True)
    )
    try:
        trainer.run([0], max_epochs=2)
    finally:
        exit_now(0 if len(hook.history) == 2 else 1)


# ------------------------------------------------------------------------------------------- law


class Faults:
    """Lets the ``n``-th write since :meth:`arm` fail, and perhaps every later one."""

    def __init__(self) -> None:
        self.arm(None)

    def arm(self, fault: tuple[int, bool] | None) -> None:
        self.fault, self.writes = fault, 0

    def __enter__(self) -> Faults:
        self.real = LocalStorage.write, LocalStorage.append_line
        LocalStorage.write = self._wrapped(LocalStorage.write)  # type: ignore[method-assign]
        LocalStorage.append_line = self._wrapped(  # type: ignore[method-assign]
            LocalStorage.append_line
        )
        return self

    def __exit__(self, *error: object) -> None:
        LocalStorage.write, LocalStorage.append_line = self.real  # type: ignore[method-assign]

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(storage: LocalStorage, name: str, what: Any, **more: Any) -> Any:
            self.writes += 1
            if self.fault is not None:
                n, stays_full = self.fault
                if self.writes == n or (stays_full and self.writes > n):
                    raise CheckpointError(errno.ENOSPC, f"could not write {name}: disk full")
            return real(storage, name, what)

        return call


values = st.sampled_from([0.0, 0.1, 0.2, 0.3, -0.5, math.nan])
faults = st.none() | st.tuples(st.integers(1, 7), st.booleans())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(values, values, faults), min_size=1, max_size=6),
    st.fixed_dictionaries({"acc": st.integers(1, 2)}, optional={"loss": st.integers(1, 3)}),
    st.sampled_from([None, "copy", "link"]),
)
@example(
    [(0.1, 0, None), (0.2, 0, (3, True)), (0.3, 0, (1, True)), (0.0, 0, None)], {"acc": 2}, None
)
def test_law_whatever_fails_and_when_memory_is_the_top_k_and_every_listed_file_is_whole(
    plan: list[tuple[float, float, tuple[int, bool] | None]],
    save_best: dict[str, int],
    alias: str | None,
) -> None:
    said = [{"acc": acc, "loss": loss} for acc, loss, _ in plan]
    model = counter()
    with tempfile.TemporaryDirectory() as name, Faults() as disk_faults:
        folder = Path(name)
        checkpoint = BestCheckpoint({"model": model}, folder, alias=alias)
        hook, trainer = scripted(
            said, model=model, checkpoint=checkpoint, save_best=save_best, interval=None
        )
        hook.attach(trainer)

        @trainer.on(Events.EPOCH_COMPLETED)
        def evaluate(engine: Engine) -> None:
            before = memory(hook, checkpoint)
            disk_faults.arm(plan[engine.state.epoch - 1][2])
            try:
                hook.evaluate()
            except CheckpointError:
                assert memory(hook, checkpoint) == before
            disk_faults.arm(None)
            for metric, k in save_best.items():
                sign = 1 if metric == "acc" else -1
                scored = [(-sign * r.metrics[metric], r.iteration) for r in hook.history]
                top = sorted(pair for pair in scored if math.isfinite(pair[0]))[:k]
                assert [best.iteration for best in hook.bests[metric]] == [n for _, n in top]
            check_listed_files(folder, hook)

        trainer.run([0], max_epochs=len(plan))


def check_listed_files(folder: Path, hook: EvalHook) -> None:
    """Check that what ``best.json`` lists is whole, and at least as good as memory says."""
    if not (folder / "best.json").exists():
        assert hook.best is None
        return
    for metric, part in best_json(folder)["kept"].items():
        for entry in part["files"]:
            assert step_in(folder / entry["file"]) == entry["iteration"]
        sign = 1 if part["rule"] == "greater" else -1
        if hook.bests[metric]:
            assert sign * part["files"][0]["score"] >= sign * hook.bests[metric][0].score
            load_best(folder, {"model": counter()}, metric=metric)


# ---------------------------------------------------------------------------------- other mishaps


def failing_write(monkeypatch: pytest.MonkeyPatch, *, when: Callable[[str], bool]) -> None:
    """Let the local storage refuse files, as a full disk does."""
    real = LocalStorage.write

    def write(self: LocalStorage, name: str, save: Any, **more: Any) -> str | None:
        if when(name):
            raise CheckpointError(errno.ENOSPC, f"could not write {name}: No space left on device")
        return real(self, name, save)

    monkeypatch.setattr(LocalStorage, "write", write)


def test_a_failure_is_a_warning_if_asked_for_and_training_goes_on_with_the_old_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing_write(monkeypatch, when=lambda name: "model_2" in name)
    model = counter()
    checkpoint = BestCheckpoint({"model": model}, tmp_path, on_save_error="warn")
    hook = run([0.5, 0.7, 0.6], model=model, checkpoint=checkpoint)
    assert [record.is_best for record in hook.history] == [True, False, True]
    assert hook.best == find_best(tmp_path)
    assert best_files(tmp_path) == ["best_model_3_acc=0.6.pt"]
    assert "the best acc was not saved: " in caplog.text
    assert "No space left on device" in caplog.text


def test_one_metric_that_fails_does_not_take_the_other_ones_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_write(monkeypatch, when=lambda name: "2_acc" in name)
    model = counter()
    checkpoint = BestCheckpoint({"model": model}, tmp_path, on_save_error="warn")
    hook = run(SAID[:2], model=model, checkpoint=checkpoint, save_best=["acc", "loss"])
    assert [record.best_of for record in hook.history] == [("acc", "loss"), ("loss",)]
    assert best_files(tmp_path) == ["best_model_1_acc=0.5.pt", "best_model_2_loss=0.3.pt"]
    assert find_best(tmp_path, "acc").epoch == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("where", ["best_model_2_acc=0.7.pt", "best.json"])
def test_ctrl_c_while_saving_leaves_files_and_memory_as_they_were(
    stop: type[BaseException], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook, trainer = scripted([0.5, 0.7], tmp_path)
    hook.attach(trainer)
    real = LocalStorage.write
    before: list[Any] = []

    def write(self: LocalStorage, name: str, save: Any, **more: Any) -> str | None:
        if trainer.state.epoch == 2 and name == where and not before:
            before.extend([hook.best, disk(tmp_path)])
            before[1].pop("best_model_2_acc=0.7.pt", None)
            raise stop
        return real(self, name, save)

    monkeypatch.setattr(LocalStorage, "write", write)
    with pytest.raises(stop):
        trainer.run([0], max_epochs=2)
    assert [hook.best, disk(tmp_path)] == before
    assert len(hook.history) == 1


def test_a_context_that_raises_on_the_way_out_takes_the_best_back(tmp_path: Path) -> None:
    hook, trainer = scripted([0.5, 0.7, 0.6], tmp_path, context=lambda: Raising(trainer))
    hook.attach(trainer)
    with pytest.raises(RuntimeError, match="could not swap back"):
        trainer.run([0], max_epochs=3)
    assert hook.best == find_best(tmp_path)
    assert best_files(tmp_path) == ["best_model_1_acc=0.5.pt"]
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1


class Raising:
    def __init__(self, trainer: Engine) -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        if self.trainer.state.epoch == 2:
            raise RuntimeError("could not swap back")


def test_a_listener_that_raises_while_saving_takes_the_best_back(tmp_path: Path) -> None:
    hook, trainer = scripted([0.5, 0.7], tmp_path)
    trainer.register_events(*CheckpointEvents)

    @trainer.on(CheckpointEvents.SAVED_CHECKPOINT)
    def upload(engine: Engine) -> None:
        if engine.state.epoch == 2:
            raise ConnectionError("no network")

    hook.attach(trainer)
    with pytest.raises(ConnectionError):
        trainer.run([0], max_epochs=2)
    assert hook.best == find_best(tmp_path)
    assert best_files(tmp_path) == ["best_model_1_acc=0.5.pt"]


def test_an_old_best_that_somebody_removed_is_no_reason_to_stop(tmp_path: Path) -> None:
    hook, trainer = scripted([0.5, 0.7, 0.6], tmp_path)
    hook.on(EvalEvents.NEW_BEST(once=1), lambda record: hook.best.path.unlink())
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    assert best_files(tmp_path) == ["best_model_2_acc=0.7.pt"]
    saver = DiskSaver(tmp_path / "other")
    hook, trainer = scripted([0.5, 0.7], saver)
    hook.on(EvalEvents.NEW_BEST(once=1), lambda record: saver.remove("best_model_1_acc=0.5.pt"))
    hook.attach(trainer)
    trainer.run([0], max_epochs=2)
    assert best_files(tmp_path / "other") == ["best_model_2_acc=0.7.pt"]


def test_an_old_best_that_cannot_be_removed_is_a_warning_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def remove(self: LocalStorage, name: str) -> None:
        raise CheckpointError(errno.EPERM, f"could not remove {name}: it is open elsewhere")

    monkeypatch.setattr(LocalStorage, "remove", remove)
    hook = run([0.5, 0.7], tmp_path, preflight=False)
    assert hook.best == find_best(tmp_path)
    assert len(best_files(tmp_path)) == 2
    assert "is not needed any more, but stays" in caplog.text


def test_the_first_best_of_all_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_write(monkeypatch, when=lambda name: name == "best.json")
    model = counter()
    checkpoint = BestCheckpoint({"model": model}, tmp_path, alias="copy")
    hook, trainer = scripted([0.5], model=model, checkpoint=checkpoint)
    hook.attach(trainer)
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.run([0], max_epochs=1)
    assert hook.best is None
    assert disk(tmp_path) == {}


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    hook, trainer = scripted([0.5], tmp_path / "file")
    hook.attach(trainer)
    with pytest.raises(CheckpointError, match=r"cannot write to .*choose another out_dir"):
        trainer.run([0], max_epochs=1)
    assert trainer.state.iteration == 0
    assert hook.history == type(hook.history)()


class Flaky:
    """An object whose state cannot always be saved."""

    is_broken = False

    def state_dict(self) -> dict[str, Any]:
        return {"path": Path("x")} if self.is_broken else {}


def test_a_score_after_a_failure_is_measured_against_the_old_best(tmp_path: Path) -> None:
    model, thing = counter(), Flaky()
    checkpoint = BestCheckpoint({"model": model, "thing": thing}, tmp_path)
    hook, trainer = scripted(
        [0.5, 0.9, 0.6, 0.4], model=model, checkpoint=checkpoint, interval=None
    )
    hook.attach(trainer)
    best: list[float] = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate(engine: Engine) -> None:
        thing.is_broken = engine.state.epoch == 2
        if thing.is_broken:
            with pytest.raises(CheckpointError, match="weights_only"):
                hook.evaluate()
        else:
            hook.evaluate()
        assert hook.best is not None
        best.append(hook.best.score)

    trainer.run([0], max_epochs=4)
    assert best == [0.5, 0.5, 0.6, 0.6]
    assert find_best(tmp_path) == hook.best
    assert best_files(tmp_path) == ["best_checkpoint_3_acc=0.6.pt"]


def test_the_same_evaluation_may_be_tried_again_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook, trainer = scripted([0.5, 0.7, 0.7], tmp_path, interval=None, n_saved=2)
    hook.attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate(engine: Engine) -> None:
        if engine.state.epoch == 2:
            with monkeypatch.context() as patch:
                failing_write(patch, when=lambda name: name == "best.json")
                with pytest.raises(CheckpointError, match="No space left"):
                    hook.evaluate()
        hook.evaluate()

    trainer.run([0], max_epochs=2)
    assert [record.iteration for record in hook.history] == [1, 2]
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2
    assert [best.epoch for best in hook.bests["acc"]] == [2, 1]
    assert find_best(tmp_path) == hook.best
