"""A full disk at any step of saving a best keeps the old one, on disk and in memory."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events

from helpers.scripted import best_files, counter, scripted, step_in
from ignite_evalhook import BestCheckpoint, CheckpointError, EvalHook, find_best, load_best

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


@pytest.mark.parametrize("stays_full", [False, True])
@pytest.mark.parametrize(
    ("alias", "save_best"),
    [(None, {"acc": 1}), ("copy", {"acc": 1, "loss": 2}), ("link", {"acc": 2, "loss": 1})],
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
        listed = {best.path.name for bests in hook.bests.values() for best in bests}
        orphans = set(best_files(folder)) - listed - set(aliases)
        assert len(orphans) <= (full.was_hit and full.calls[full.n] == "unlink")
        if not full.was_hit:
            break
    assert set(NEEDS_ROOM) - {"link", "mkdir"} <= reached
    assert n > 20
