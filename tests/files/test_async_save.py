"""``BestCheckpoint(async_save=True)``: training goes on while a file is written; the laws hold."""

from __future__ import annotations

import errno
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from helpers.private import LocalStorage, _folder, wait_for_writers
from helpers.ranks import on_ranks
from helpers.resume_runs import Bomb, Killed, Run, Setup, outcome
from helpers.scripted import best_files, counter, scripted, step_in
from ignite_evalhook import (
    BestCheckpoint,
    CheckpointError,
    EvalEvents,
    EvalHook,
    EvaluationError,
    find_best,
    load_best,
)

DEADLINE = 60.0  # seconds until a test that hangs fails


def run(
    scores: list[Any], folder: Path, *, handlers: dict[Any, Any] | None = None, **options: Any
) -> EvalHook:
    """Run one epoch for each score, with files written in the background."""
    hook, trainer = make(scores, folder, **options)
    for event, handler in (handlers or {}).items():
        trainer.add_event_handler(event, handler)
    trainer.run([0], max_epochs=len(scores))
    return hook


def make(
    scores: list[Any],
    folder: Path,
    *,
    keeps: dict[str, Any] | None = None,
    model: nn.Module | None = None,
    **options: Any,
) -> tuple[EvalHook, Engine]:
    model = counter() if model is None else model
    checkpoint = BestCheckpoint({"model": model}, folder, async_save=True, **(keeps or {}))
    hook, trainer = scripted(scores, model=model, checkpoint=checkpoint, **options)
    hook.attach(trainer)
    return hook, trainer


class Gate:
    """Lets writes of checkpoints wait until it is opened; notes what happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        self.log: list[str] = []
        real = LocalStorage.write

        def write(
            storage: LocalStorage, name: str, save: Callable[[Any], object], **more: Any
        ) -> str | None:
            if not name.endswith(".pt"):
                return real(storage, name, save)
            self.log.append(f"begin {name}")
            self.reached.set()
            assert self.opened.wait(DEADLINE)
            digest = real(storage, name, save)
            self.log.append(f"end {name}")
            return digest

        monkeypatch.setattr(LocalStorage, "write", write)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def broken_disk(monkeypatch: pytest.MonkeyPatch, *names: str, gate: Gate | None = None) -> None:
    """Let writes of some files fail, behind a gate if there is one."""
    real = LocalStorage.write

    def write(
        storage: LocalStorage, name: str, save: Callable[[Any], object], **more: Any
    ) -> str | None:
        if name in names:
            assert gate is None or gate.opened.wait(DEADLINE)
            raise CheckpointError(f"could not write {name}: No space left on device [ENOSPC]")
        return real(storage, name, save)

    monkeypatch.setattr(LocalStorage, "write", write)


# -- the same as without ----------------------------------------------------------------------

SCORES = [0.5, 0.7, 0.6, 0.0, 0.8, 0.8, float("nan"), 0.9, 0.1]


@pytest.mark.parametrize(
    "keeps", [{}, {"n_saved": 2}, {"n_saved": None}, {"alias": "copy"}, {"alias": "link"}], ids=str
)
def test_the_files_are_byte_for_byte_those_of_a_synchronous_run(
    keeps: dict[str, Any], tmp_path: Path
) -> None:
    model = counter()
    kept = BestCheckpoint({"model": model}, tmp_path / "sync", **keeps)
    plain, trainer = scripted(SCORES, model=model, checkpoint=kept)
    plain.attach(trainer)
    trainer.run([0], max_epochs=len(SCORES))
    late = run(SCORES, tmp_path / "async", keeps=keeps)
    for file in best_files(tmp_path / "sync"):
        assert (tmp_path / "async" / file).read_bytes() == (tmp_path / "sync" / file).read_bytes()
    assert best_files(tmp_path / "async") == best_files(tmp_path / "sync")
    assert [r.best_of for r in late.history] == [r.best_of for r in plain.history]

    def names(hook: EvalHook) -> list[tuple[float, int, str]]:
        return [(b.score, b.epoch, Path(str(b.path)).name) for b in hook.bests["acc"]]

    assert names(late) == names(plain)
    accounts = [
        re.sub('"run_id": "[^"]*"', "", (tmp_path / name / "best.json").read_text("utf-8"))
        for name in ("sync", "async")
    ]
    assert accounts[0] == accounts[1]


def test_several_metrics_have_each_their_best(tmp_path: Path) -> None:
    said = [{"acc": a, "loss": b} for a, b in [(0.5, 0.5), (0.7, 0.6), (0.6, 0.1), (0.8, 0.3)]]
    hook = run(said, tmp_path, save_best=["acc", "loss"])
    assert best_files(tmp_path) == ["best_model_3_loss=0.1.pt", "best_model_4_acc=0.8.pt"]
    assert {m: bests[0].epoch for m, bests in hook.bests.items()} == {"acc": 4, "loss": 3}


def test_by_itself_it_writes_in_the_background_too(tmp_path: Path, gate: Gate) -> None:
    model = counter()
    kept = BestCheckpoint({"model": model}, tmp_path, score_name="acc", async_save=True)
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics["acc"] = 0.5
    kept(engine)
    nn.init.ones_(model.weight)
    assert not best_files(tmp_path)
    gate.opened.set()
    assert len(kept.state_dict()["_saved"]) == 1  # waits
    (file,) = best_files(tmp_path)
    assert step_in(tmp_path / file) == 0.0


# -- training goes on -------------------------------------------------------------------------


def test_training_goes_on_and_the_file_holds_the_weights_that_were_scored(
    tmp_path: Path, gate: Gate
) -> None:
    seen: list[Any] = []

    def look(trainer: Engine) -> None:
        assert gate.reached.wait(DEADLINE)
        seen.append((hook.best, best_files(tmp_path), dict(hook.bests)))
        if trainer.state.epoch == 3:
            gate.opened.set()

    hook, trainer = make([0.5, 0.4, 0.3, 0.2], tmp_path)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, look)
    trainer.run([0], max_epochs=4)
    assert [files for _, files, _ in seen[:3]] == [[], [], []]
    best, _, bests = seen[1]
    assert (best.score, best.epoch, best.path) == (0.5, 1, None)  # it is the best; no file yet
    assert bests == {"acc": (best,)}
    assert hook.best is not None
    assert hook.best.path == tmp_path / "best_model_1_acc=0.5.pt"
    assert step_in(hook.best.path) == 1.0


def test_one_save_is_in_flight_and_files_are_written_in_order(tmp_path: Path, gate: Gate) -> None:
    def at_start(trainer: Engine) -> None:
        if trainer.state.epoch == 2:
            gate.opened.set()  # from here on a second best may come

    hook, trainer = make([0.5, 0.6, 0.7], tmp_path)
    hook.on(EvalEvents.EVAL_STARTED, lambda record: at_start(trainer))
    trainer.run([0], max_epochs=3)
    names = [f"best_model_{n}_acc=0.{n + 4}.pt" for n in (1, 2, 3)]
    assert gate.log == [f"{what} {name}" for name in names for what in ("begin", "end")]
    assert best_files(tmp_path) == names[2:]


def test_the_old_best_stays_until_the_new_one_is_there(tmp_path: Path, gate: Gate) -> None:
    gate.opened.set()
    hook, trainer = make([0.5, 0.6, 0.1], tmp_path)
    seen: list[Any] = []

    @trainer.on(Events.EPOCH_COMPLETED(once=1))
    def close() -> None:
        hook.load_best()  # waits
        gate.opened.clear()
        gate.reached.clear()

    @trainer.on(Events.EPOCH_COMPLETED(once=2))
    def look() -> None:
        assert gate.reached.wait(DEADLINE)
        seen.append((best_files(tmp_path), find_best(tmp_path).score, hook.best))
        gate.opened.set()

    trainer.run([0], max_epochs=3)
    files, on_disk, best = seen[0]
    assert files == ["best_model_1_acc=0.5.pt"]
    assert on_disk == 0.5
    assert (best.score, best.path) == (0.6, None)
    assert best_files(tmp_path) == ["best_model_2_acc=0.6.pt"]


def test_load_best_waits_for_the_file(tmp_path: Path, gate: Gate) -> None:
    hook, trainer = make([0.5, 0.1], tmp_path)

    @trainer.on(Events.EPOCH_COMPLETED(once=1))
    def load() -> None:
        gate.opened.set()
        assert hook.load_best().path == tmp_path / "best_model_1_acc=0.5.pt"

    trainer.run([0], max_epochs=2)


def test_a_state_claims_no_file_that_is_not_durable(tmp_path: Path, gate: Gate) -> None:
    hook, trainer = make([0.5, 0.1], tmp_path)

    @trainer.on(Events.EPOCH_COMPLETED(once=1))
    def look() -> None:
        assert gate.reached.wait(DEADLINE)
        assert hook._session.present_state()["follower"]["kept"] == {"acc": []}
        gate.opened.set()
        (kept,) = hook.state_dict()["follower"]["kept"]["acc"]
        assert (tmp_path / kept["file"]).exists()
        assert kept["crc32"] is not None

    trainer.run([0], max_epochs=2)


def test_training_is_bit_for_bit_that_without_a_hook(tmp_path: Path) -> None:
    def weights(with_hook: bool) -> torch.Tensor:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(8, 4)

        def train(engine: Engine, batch: Any) -> None:
            model.train()
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        trainer = Engine(train)
        if with_hook:
            make([0.1, 0.2, 0.3, 0.2], tmp_path, model=model, trainer=trainer)
        trainer.run([0], max_epochs=4)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(True), weights(False))


# -- what fails -------------------------------------------------------------------------------


def test_a_failure_is_raised_at_the_next_evaluation_and_the_old_best_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_disk(monkeypatch, "best_model_2_acc=0.7.pt")
    hook, trainer = make([0.5, 0.7, 0.6, 0.8], tmp_path)

    @trainer.on(Events.EPOCH_COMPLETED(once=2))
    def settle() -> None:
        hook._plan.follower.join(raises=False)

    with pytest.raises(CheckpointError, match="No space left on device"):
        trainer.run([0], max_epochs=4)
    assert trainer.state.epoch == 3
    assert [r.epoch for r in hook.history] == [1, 2]
    assert hook.best is not None
    assert (hook.best.score, hook.best.epoch) == (0.5, 1)  # what was before it is the best again
    assert find_best(tmp_path) == hook.best
    model = counter()
    load_best(tmp_path, {"model": model})
    assert model.weight.item() == 1.0


def test_a_best_that_fails_after_a_later_evaluation_gives_way_to_the_one_before_it(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_disk(monkeypatch, "best_model_2_acc=0.7.pt", gate=gate)
    hook, trainer = make([0.5, 0.7, 0.6], tmp_path)
    gate.opened.set()

    @trainer.on(Events.EPOCH_COMPLETED(once=1))
    def close() -> None:
        hook.load_best()  # waits
        gate.opened.clear()

    @trainer.on(Events.EPOCH_COMPLETED(once=3))
    def let_it_fail() -> None:
        assert hook.best is not None
        assert hook.best.score == 0.7
        gate.opened.set()

    with pytest.raises(CheckpointError, match="No space left on device"):
        trainer.run([0], max_epochs=3)
    assert [r.epoch for r in hook.history] == [1, 2, 3]
    assert hook.best is not None
    assert (hook.best.score, hook.best.epoch) == (0.5, 1)


def test_a_reset_that_hears_of_a_failure_has_forgotten_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_disk(monkeypatch, "best_model_3_acc=0.7.pt")
    hook, trainer = make([0.5, 0.4, 0.7, 0.1], tmp_path)
    stopper = hook.early_stopping(5)
    before: list[str] = []

    @trainer.on(Events.EPOCH_COMPLETED(once=3))
    def reset() -> None:
        before.append(hook._session.run.id)
        assert stopper.best_score == 0.7
        with pytest.raises(CheckpointError, match="No space left on device"):
            hook.reset()
        assert list(hook.history) == []
        assert hook.best is None
        assert stopper.best_score is None
        assert hook.state_dict()["run_id"] not in before

    trainer.run([0], max_epochs=3)
    assert [record.metrics for record in hook.history] == [{"acc": 0.1}]  # of the new run


def test_a_failure_of_the_last_best_is_raised_at_the_end_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_disk(monkeypatch, "best_model_2_acc=0.7.pt")
    with pytest.raises(CheckpointError, match="No space left on device"):
        run([0.5, 0.7], tmp_path)
    assert find_best(tmp_path).score == 0.5


def test_after_a_failure_the_run_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        broken_disk(patch, "best_model_2_acc=0.7.pt")
        hook, trainer = make([0.5, 0.7, 0.6, 0.65], tmp_path)
        with pytest.raises(CheckpointError):
            trainer.run([0], max_epochs=2)
    assert hook.evaluate(track=False) is not None
    assert hook.best is not None
    assert hook.best.score == 0.5


def test_what_was_to_be_written_behind_a_failure_is_taken_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [{"acc": 0.5, "loss": 0.5}, {"acc": 0.7, "loss": 0.4}, {"acc": 0.6, "loss": 0.45}]
    hook, trainer = make(said, tmp_path, save_best=["acc", "loss"])
    with monkeypatch.context() as patch:
        broken_disk(patch, "best_model_2_acc=0.7.pt")
        with pytest.raises(CheckpointError, match="No space left"):
            trainer.run([0], max_epochs=2)
    assert {m: (b.score, b.epoch) for m, (b,) in hook.bests.items()} == {
        "acc": (0.5, 1), "loss": (0.5, 1),
    }  # fmt: skip
    for metric in ("acc", "loss"):
        assert find_best(tmp_path, metric).epoch == 1
    trainer.state.epoch = trainer.state.iteration = 3  # Ignite runs no further after an error
    hook.evaluate()  # 0.6 and 0.45 beat what is on disk
    assert best_files(tmp_path) == ["best_model_3_acc=0.6.pt", "best_model_3_loss=0.45.pt"]
    assert all(bests[0] == find_best(tmp_path, metric) for metric, bests in hook.bests.items())


def test_a_failure_may_be_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken_disk(monkeypatch, "best_model_2_acc=0.7.pt")
    with caplog.at_level(logging.ERROR, "ignite_evalhook"):
        hook, trainer = make([0.5, 0.7, 0.6, 0.1], tmp_path, keeps={"on_save_error": "warn"})

        @trainer.on(Events.EPOCH_COMPLETED(once=2))
        def settle() -> None:
            hook.state_dict()

        trainer.run([0], max_epochs=4)
    assert "the best acc was not saved: " in caplog.text
    # 0.7 has no file, so it is not the one to beat; 0.6 is better than what is on disk.
    assert best_files(tmp_path) == ["best_model_3_acc=0.6.pt"]
    assert hook.best == find_best(tmp_path)


class FullDisk:
    """A disk that is full at one of the calls that the writer makes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("open", "write", "fsync", "replace", "mkdir"):
            monkeypatch.setattr(os, name, partial(self._call, name, getattr(os, name)))

    def _call(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name == "ignite-evalhook writer":
            self.count += 1
            if self.count == self.number:
                raise OSError(errno.ENOSPC, "No space left on device")
        return None if name == "fsync" else real(*args, **kwargs)

    @property
    def was_hit(self) -> bool:
        return self.count >= self.number


def test_a_full_disk_at_any_call_keeps_a_complete_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 200):
        folder, disk = tmp_path / str(number), FullDisk(number)
        with monkeypatch.context() as patch:
            disk.patch(patch)
            hook, trainer = make([0.5, 0.7], folder)
            with suppress(CheckpointError):
                trainer.run([0], max_epochs=2)
        if not (folder / "best.json").exists():  # the very first best failed
            assert hook.best is None
            continue
        assert hook.best == find_best(folder)
        model = counter()
        load_best(folder, {"model": model})
        assert model.weight.item() == find_best(folder).epoch
        if not disk.was_hit:
            assert number > 10
            assert hook.best.score == 0.7
            return
    raise AssertionError("the disk was full each time")


# -- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["terminate", "interrupt", "detach"])
def test_the_file_is_there_when_the_run_ends_early(how: str, tmp_path: Path) -> None:
    hook, trainer = make([0.5, 0.4, 0.3], tmp_path)

    @trainer.on(Events.ITERATION_COMPLETED(once=2))
    def stop() -> None:
        if how == "detach":
            hook.detach()
            assert best_files(tmp_path) == ["best_model_1_acc=0.5.pt"]
            trainer.terminate()
        else:
            getattr(trainer, how)()

    trainer.run([0], max_epochs=3)
    assert best_files(tmp_path) == ["best_model_1_acc=0.5.pt"]


def test_the_next_run_in_the_folder_waits_for_what_one_that_failed_still_writes(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trainer = make([0.5], tmp_path)

    @trainer.on(EvalEvents.EVAL_COMPLETED)
    def fail(engine: Engine) -> None:
        raise KeyError("a bug in training")

    with pytest.raises(KeyError):
        trainer.run([0], max_epochs=1)
    assert gate.reached.wait(DEADLINE)

    def open_and_wait() -> None:
        gate.opened.set()
        wait_for_writers()

    clean = LocalStorage.clean

    def clean_at_rest(storage: LocalStorage) -> list[str]:
        assert not [t.name for t in threading.enumerate() if t.name == "ignite-evalhook writer"]
        return clean(storage)

    monkeypatch.setattr(_folder, "wait_for_writers", open_and_wait)
    monkeypatch.setattr(LocalStorage, "clean", clean_at_rest)
    _, trainer = make([0.7], tmp_path)
    trainer.run([0], max_epochs=1)
    assert best_files(tmp_path) == ["best_model_1_acc=0.7.pt"]


def test_an_evaluation_on_demand_ends_with_its_file(tmp_path: Path) -> None:
    hook, trainer = make([0.5], tmp_path, interval=None)
    trainer.run([0], max_epochs=1)
    hook.evaluate()
    assert best_files(tmp_path) == ["best_model_1_acc=0.5.pt"]
    assert hook.best is not None
    assert hook.best.path is not None


def test_a_process_that_ends_with_an_exception_ends_with_a_complete_file(tmp_path: Path) -> None:
    script = f"""
        import sys, threading
        import torch
        from ignite.engine import Engine, Events
        from ignite_evalhook import BestCheckpoint, EvalHook
        from ignite_evalhook._files.storage import LocalStorage

        opened, real = threading.Event(), LocalStorage.write

        def write(storage, name, save, **more):
            assert not name.endswith(".pt") or opened.wait(60)
            return real(storage, name, save)

        def hook_of_exceptions(*args):  # the main thread is at its end, the file is not written
            print("raised", flush=True)
            opened.set()

        LocalStorage.write, sys.excepthook = write, hook_of_exceptions
        model = torch.nn.Linear(1, 1)
        kept = BestCheckpoint({{"model": model}}, {str(tmp_path)!r}, async_save=True)
        hook = EvalHook(None, lambda trainer: {{"acc": 0.5}}, model=model, save_best="acc",
                        checkpoint=kept)
        trainer = Engine(lambda engine, batch: None)
        hook.attach(trainer)

        @trainer.on(Events.ITERATION_COMPLETED(once=2))
        def fail():
            raise RuntimeError("out of memory")

        trainer.run([0], max_epochs=3)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout == "raised\n"
    assert find_best(tmp_path).score == 0.5


# -- kill and resume --------------------------------------------------------------------------


@pytest.fixture
def in_background(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every best be written in the background, also those of helpers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads do not survive a fork
    monkeypatch.setitem(BestCheckpoint.__init__.__kwdefaults__, "async_save", True)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    yield
    torch.set_num_threads(threads)


def in_a_child(action: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_call(number: int) -> None:
    """Let this process end at a call that its writer makes to change files."""
    count = 0

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if threading.current_thread().name == "ignite-evalhook writer":
                count += 1
                if count == number:
                    os._exit(9)
            return real(*args, **kwargs)

        return call

    for name in ("write", "replace", "rename", "link", "unlink", "remove", "mkdir"):
        setattr(os, name, wrapped(getattr(os, name)))


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a process with CUDA must not be forked")
@pytest.mark.usefixtures("in_background")
def test_killed_at_any_call_of_the_writer_a_run_resumes_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    setup = Setup()
    whole = outcome(Run(tmp_path / "whole", setup).go())

    def killed(folder: Path, number: int) -> None:
        kill_at_call(number)
        Run(folder, setup).go()

    for number in range(1, 400, 5):
        folder = tmp_path / str(number)
        status = in_a_child(partial(killed, folder, number))
        if (folder / "best.json").exists():
            model = nn.Linear(2, 2)
            load_best(folder, {"model": model})
        assert outcome(Run(folder, setup).go()) == whole, number
        if status == 0:
            assert number > 10
            return
        assert status == 9
    raise AssertionError("the run never reached its end")


@pytest.mark.usefixtures("in_background")
@pytest.mark.parametrize(
    "setup",
    [
        Setup(),
        Setup("before", seeded="epoch", patience=1, epochs=4),
        Setup(hook={"by_epoch": False, "interval": 2}, seeded="iteration"),
        Setup(hook={"n_saved": 2, "alias": "copy"}),
    ],
    ids=["keep_last", "own checkpoint", "by iteration", "top 2"],
)
def test_broken_anywhere_and_resumed_is_unbroken(setup: Setup, tmp_path: Path) -> None:
    bomb = Bomb()
    whole = outcome(Run(tmp_path / "whole", setup, bomb).go())
    for number in range(0, len(bomb.moments), 7):
        folder = tmp_path / str(number)
        with pytest.raises(Killed):
            Run(folder, setup, Bomb(number)).go()
        assert outcome(Run(folder, setup).go()) == whole, bomb.moments[number]


# -- several ranks ----------------------------------------------------------------------------


def on_a_rank(rank: int, folder: Path, fails: bool) -> Any:
    if fails and rank == 0:
        broken_disk(pytest.MonkeyPatch(), "best_model_2_acc=0.7.pt")
    hook, trainer = make([0.5, 0.7, 0.6, 0.8, 0.1], folder)
    seen: list[Any] = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append((hook.best, hook.bests)))
    try:
        trainer.run([0], max_epochs=5)
    except EvaluationError as error:  # of the team: it says which rank failed
        return "failed", str(error), hook.best, len(hook.history)
    return seen, hook.best, dict(hook.bests), len(hook.history)


def test_all_ranks_know_the_same_files_at_any_time(tmp_path: Path) -> None:
    one, other = on_ranks(2, on_a_rank, tmp_path, False)
    assert one == other
    assert one[1] == find_best(tmp_path)
    assert one[1].epoch == 4


def test_a_failure_in_the_background_is_raised_on_every_rank(tmp_path: Path) -> None:
    one, other = on_ranks(2, on_a_rank, tmp_path, True)
    assert one[0] == other[0] == "failed"
    assert "No space left on device" in one[1]
    assert "No space left on device" in other[1]
    assert one[2:] == other[2:]
    assert find_best(tmp_path).score == 0.5
