"""What a restart brings back, besides what the user named: law 6 for the rest of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from torch import nn

from ignite_evalhook import EvalHook


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Kill(BaseException):
    """Ends a run where it stands."""


def kill(engine: Engine) -> None:
    raise Kill


def hook_of(model: nn.Module, table: Sequence[float], folder: Any, **options: Any) -> EvalHook:
    """Return a hook whose score is read from a table, by completed iterations."""

    def score(trainer: Engine | None) -> dict[str, float]:
        assert trainer is not None
        return {"acc": table[trainer.state.iteration % len(table)]}

    return EvalHook(None, score, model=model, save_best="acc", out_dir=folder, **options)


# The best, between the load and the run ----------------------------------------------------------


@pytest.mark.parametrize("n_saved", [1, 2])
def test_the_best_has_its_file_as_soon_as_a_state_is_loaded(n_saved: int, tmp_path: Path) -> None:
    def new(folder: Path) -> tuple[EvalHook, Engine]:
        model, trainer = nn.Linear(1, 1), Engine(lambda engine, batch: None)
        hook = hook_of(model, [0.0, 0.1, 0.4, 0.3], folder, n_saved=n_saved).attach(trainer)
        hook.keep_last({"model": model})
        return hook, trainer

    hook, trainer = new(tmp_path / "here")
    trainer.run([0], max_epochs=3)
    assert hook.best is not None
    best, bests = hook.best, hook.bests
    hook.detach()
    for folder in (tmp_path / "here", (tmp_path / "here").rename(tmp_path / "moved")):
        if not folder.exists():
            continue
        hook, trainer = new(folder)
        assert hook.best is not None
        assert hook.best.path == folder / Path(str(best.path)).name
        assert hook.best.path.exists()
        assert [b.path for b in hook.bests["acc"]] == [
            folder / Path(str(b.path)).name for b in bests["acc"]
        ]
        assert len(bests["acc"]) == n_saved
        assert hook.load_best() == hook.best
        detached = hook_of(nn.Linear(1, 1), [0.0], folder, n_saved=n_saved)
        detached.load_state_dict(hook.state_dict())
        assert detached.best == hook.best
        hook.best.path.unlink()
        assert hook.best.path is None
        assert hook.bests["acc"][0].path is None
        hook.detach()


# Epochs that are not as long as each other -------------------------------------------------------

LENGTHS = (3, 4, 4, 5, 2)  # iterations of five epochs; by the last Ignite counts nine
ENDS = (3, 7, 11, 16, 18)
Seen = list[tuple[str, int, int]]


def cut_by_terminate_epoch(engine: Engine, batch: Any) -> None:
    if engine.state.iteration in ENDS:
        engine.terminate_epoch()


def set_length(engine: Engine) -> None:
    if engine.state.epoch <= len(LENGTHS):
        engine.state.epoch_length = LENGTHS[engine.state.epoch - 1]


def irregular(
    folder: Path, how: str, *, die: Any = None, epochs: int = 5, own: bool = False, **options: Any
) -> tuple[EvalHook, Engine, Seen, tuple[int, int]]:
    """Run five epochs of different lengths; return also what was seen, and where it was loaded."""
    seen: Seen = []
    model = nn.Linear(1, 1)
    trainer = Engine(cut_by_terminate_epoch if how == "cut" else lambda engine, batch: None)
    if how == "set":
        trainer.add_event_handler(Events.EPOCH_STARTED, set_length)
    for event in (Events.EPOCH_STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):
        trainer.add_event_handler(
            event, lambda e, name: seen.append((name, e.state.epoch, e.state.iteration)), event.name
        )
    hook = hook_of(model, [0.0, 0.3, 0.1, 0.5, 0.2], folder, **options).attach(trainer)
    if own:
        file, objects = folder / "own.pt", {"model": model, "trainer": trainer, "eval_hook": hook}

        @trainer.on(Events.EPOCH_COMPLETED)
        def save() -> None:
            torch.save({name: item.state_dict() for name, item in objects.items()}, file)

        if file.exists():
            Checkpoint.load_objects(objects, torch.load(file, weights_only=True))
    else:
        hook.keep_last({"model": model})
    loaded = (trainer.state.epoch, trainer.state.iteration)
    if die is not None:
        trainer.add_event_handler(die, kill)
    length = {"epoch_length": LENGTHS[0]} if how == "set" else {}
    if loaded[1]:
        length = {}
    with contextlib.suppress(Kill):
        trainer.run(range(20), max_epochs=epochs, **length)
    return hook, trainer, seen, loaded


def of(hook: EvalHook) -> list[tuple[int, int, bool]]:
    return [(record.epoch, record.iteration, record.is_best) for record in hook.history]


@pytest.mark.parametrize("how", ["cut", "set"])
@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interval": 2, "at_end": True},
        {"interval": 2, "by_epoch": False, "at_end": True},
        {"interval": 3, "by_epoch": False, "at_end": True},
    ],
    ids=str,
)
def test_epochs_of_any_length_go_on_where_they_were_saved(
    options: dict[str, Any], epoch: int, how: str, tmp_path: Path
) -> None:
    whole, trainer, every, _ = irregular(tmp_path / "whole", how, **options)
    assert (trainer.state.epoch, trainer.state.iteration) == (5, 18)
    killed = irregular(tmp_path / "run", how, die=Events.EPOCH_COMPLETED(once=epoch), **options)[2]
    hook, trainer, seen, loaded = irregular(tmp_path / "run", how, **options)
    assert (trainer.state.epoch, trainer.state.iteration) == (5, 18)
    assert of(hook) == of(whole)
    assert hook.state_dict()["into"] == 0
    # A handler sees what it would have seen; an epoch that goes on in its middle starts again.
    assert [at for at in seen if at[0] != "EPOCH_STARTED"] == [
        at for at in every if at[0] != "EPOCH_STARTED" and at[2] > loaded[1]
    ]
    ends = [0, *ENDS]
    completed = max(number for number, end in enumerate(ends) if end <= loaded[1])
    assert loaded[0] == completed
    assert killed


@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
def test_an_own_checkpoint_goes_on_in_the_epoch_in_which_it_was_saved(
    epoch: int, tmp_path: Path
) -> None:
    whole = irregular(tmp_path / "whole", "cut", own=True)[0]
    irregular(tmp_path / "run", "cut", own=True, die=Events.EPOCH_STARTED(once=epoch))
    hook, trainer, _, _ = irregular(tmp_path / "run", "cut", own=True)
    assert of(hook) == of(whole)
    assert (trainer.state.epoch, trainer.state.iteration) == (5, 18)


@pytest.mark.parametrize("how", ["cut", "set"])
def test_a_finished_run_of_short_epochs_ends_again_and_goes_on_with_more(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = irregular(tmp_path, how)[0]
    records = of(first)
    first.detach()
    hook, trainer, seen, loaded = irregular(tmp_path, how)
    assert (loaded, seen, of(hook)) == ((5, 18), [], records)
    assert (trainer.state.epoch, trainer.state.iteration) == (5, 18)
    assert "ends again at once" in caplog.text
    hook.detach()
    if how == "set":
        return  # by the last length Ignite has done more than six epochs
    hook, trainer, seen, _ = irregular(tmp_path, how, epochs=6)
    assert seen[0] == ("EPOCH_STARTED", 6, 18)
    assert [record.epoch for record in hook.history] == [1, 2, 3, 4, 5, 6]


def test_an_older_state_without_the_place_in_its_epoch_is_left_to_ignite(tmp_path: Path) -> None:
    hook, _, _, _ = irregular(tmp_path, "cut", epochs=2)
    hook.detach()
    file = tmp_path / "last.pt"
    content = torch.load(file, weights_only=True)
    del content["eval_hook"]["into"]
    torch.save(content, file)
    _, _, _, loaded = irregular(tmp_path, "cut")
    assert loaded == (7 // 20, 7)
