"""What a restart brings back, besides what the user named: law 6 for the rest of a run."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import Checkpoint, EMAHandler, TerminateOnNan
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

from helpers.private import PACKED, _ended, not_finite
from helpers.resume_runs import plain
from ignite_evalhook import (
    BestCheckpoint,
    CheckpointError,
    EvalHook,
    History,
    StateError,
    create_evaluator,
    find_best,
)


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


# Every hook of the trainer -----------------------------------------------------------------------

LOSSES = (0.0, 0.9, 0.8, 0.3, 0.2, 0.25)


def two_hooks(
    folder: Path,
    *,
    where: Any = "folder",
    order: str = "first",
    named: bool = False,
    die: Any = None,
    **options: Any,
) -> tuple[EvalHook, EvalHook, Any]:
    """Run five epochs with a hook that keeps the last checkpoint and one that nobody thinks of."""
    model, trainer = nn.Linear(1, 1), Engine(lambda engine, batch: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mode: Any = "min" if options.get("rule") == "less" else "max"
    scheduler = ReduceLROnPlateau(optimizer, mode=mode, factor=0.5, patience=0)
    keeper = hook_of(model, [0.0, 0.1, 0.2, 0.3], folder, name="keeper")
    places = {"folder": folder, "other folder": folder / "other", "none": False}
    place = places.get(where, where)
    second = hook_of(model, LOSSES, place, name="second", **options)
    stopper = second.early_stopping(3)
    second.step_on_plateau(scheduler)
    if order == "first":
        second.attach(trainer)
    keeper.attach(trainer)
    if order == "between":
        second.attach(trainer)
    objects = {"m": model, "opt": optimizer}
    keeper.keep_last({**objects, "the second hook": second} if named else objects)
    if order == "last":
        second.attach(trainer)
    if die is not None:
        trainer.add_event_handler(die, kill)
    with contextlib.suppress(Kill):
        trainer.run([0], max_epochs=5)
    rest = (stopper.counter, scheduler.state_dict(), trainer.state.epoch, second.best)
    keeper.detach()
    second.detach()
    return keeper, second, rest


def same_bests(one: Any, other: Any) -> bool:
    return one[:3] == other[:3] and replace(one[3], path=None) == replace(other[3], path=None)


@pytest.mark.parametrize("order", ["first", "between", "last"])
@pytest.mark.parametrize("where", ["folder", "other folder", "none", "memory://second"])
def test_a_hook_that_nobody_named_goes_on(where: str, order: str, tmp_path: Path) -> None:
    where = f"{where}/{order}" if "//" in where else where
    whole = two_hooks(tmp_path / "whole", where="none" if "//" in where else where)
    assert of(whole[1]) == [(1, 1, True), (2, 2, False), (3, 3, False), (4, 4, False)]
    assert whole[2][0] == 3
    for epoch in (1, 2, 3, 4):
        folder, place = tmp_path / str(epoch), f"{where}/{epoch}" if "//" in where else where
        two_hooks(folder, where=place, order=order, die=Events.EPOCH_STARTED(once=epoch))
        keeper, second, rest = two_hooks(folder, where=place, order=order)
        assert (of(keeper), of(second)) == (of(whole[0]), of(whole[1]))
        assert same_bests(rest, whole[2])
        if where == "folder":
            assert rest[3].path.exists()
            assert find_best(folder, name="second").score == rest[3].score == 0.9


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_it_is_all_the_same_whether_a_hook_is_named(
    before: bool, after: bool, tmp_path: Path
) -> None:
    whole = two_hooks(tmp_path / "whole")
    two_hooks(tmp_path / "run", named=before, die=Events.EPOCH_STARTED(once=3))
    _, second, rest = two_hooks(tmp_path / "run", named=after)
    assert of(second) == of(whole[1])
    assert same_bests(rest, whole[2])


@pytest.mark.parametrize("order", ["between", "last"])
def test_a_hook_that_may_not_go_on_is_refused_before_anything_is_loaded(
    order: str, tmp_path: Path
) -> None:
    two_hooks(tmp_path, die=Events.EPOCH_STARTED(once=3))
    words = "the state of 'second' followed acc .greater., this hook follows acc .less."
    with pytest.raises(StateError, match=words):
        two_hooks(tmp_path, order=order, rule="less")


def test_hooks_that_came_or_went_between_the_runs_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(*names: str) -> list[EvalHook]:
        model, trainer = nn.Linear(1, 1), Engine(lambda engine, batch: None)
        hooks = [hook_of(model, [0.5], tmp_path, name=name).attach(trainer) for name in names]
        epochs = 1 + hooks[0].keep_last({"m": model}) + trainer.state.epoch
        caplog.clear()
        trainer.run([0], max_epochs=epochs)
        for hook in hooks:
            hook.detach()
        return hooks

    run("keeper", "old", "same")
    assert "state" not in caplog.text
    hooks = run("keeper", "new", "same")
    assert [len(hook.history) for hook in hooks] == [3, 2, 3]
    words = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(words) == 2
    assert "keeper: no hook 'old' is attached, of which last_keeper.pt has the state" in words[0]
    assert "last_keeper.pt has no state of the hook 'new', which starts with an empty" in words[1]
    run("keeper", "new", "same")
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize("name", ["random", "averaged", "eval_hooks", "trainer"])
def test_a_name_that_keep_last_needs_is_refused(name: str, tmp_path: Path) -> None:
    model, trainer = nn.Linear(1, 1), Engine(lambda engine, batch: None)
    hook = hook_of(model, [0.5], tmp_path).attach(trainer)
    with pytest.raises(ValueError, match=rf"to_save must not use \['{name}'\]"):
        hook.keep_last({"m": model, name: nn.Linear(1, 1)})
    assert hook.keep_last({"m": model, "trainer": trainer, "eval_hook": hook}) is False


# Averaged weights --------------------------------------------------------------------------------

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()


def averaged(
    folder: Path,
    *,
    die: Any = None,
    buffers: str = "copy",
    every: int = 1,
    attach: str = "first",
    named: bool = False,
    other: bool = False,
    momentum_of_user: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train four epochs with averaged weights; return all that has to be the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = nn.CrossEntropyLoss()
    trainer = create_supervised_trainer(model, optimizer, loss)
    handlers = [EMAHandler(model, 0.2, handle_buffers=buffers, **options)]
    names = ["ema_momentum"]
    if other:
        handlers.append(EMAHandler(model, 0.01))
        names.append("slow_momentum")

    def attach_all() -> None:
        for handler, name in zip(handlers, names, strict=True):
            handler.attach(trainer, name=name, event=Events.ITERATION_COMPLETED(every=every))
        if momentum_of_user:

            @trainer.on(Events.EPOCH_COMPLETED(once=2))
            def change() -> None:
                trainer.state.ema_momentum = 0.7  # type: ignore[attr-defined]

    if attach == "first":
        attach_all()
    hooks = []
    for number, handler in enumerate(handlers):
        evaluator = create_evaluator(model, loss_fn=loss)
        hook = EvalHook(
            [(X, Y)], evaluator, save_best="val_loss", out_dir=folder, context=handler,
            name=f"hook{number}",
        )  # fmt: skip
        hooks.append(hook.attach(trainer))
    more = {"ema": handlers[0].ema_model} if named else {}
    resumed = hooks[0].keep_last({"model": model, "optimizer": optimizer, **more})
    if attach == "first" and resumed:
        record = hooks[0].evaluate(track=False)
        known = hooks[0].history
        assert record.metrics["val_loss"] == known[-1].metrics["val_loss"]
    if attach == "last":
        attach_all()
    if die is not None:
        trainer.add_event_handler(die, kill)
    with contextlib.suppress(Kill):
        trainer.run([(X[i::4], Y[i::4]) for i in range(4)], max_epochs=4)
    for hook in hooks:
        hook.detach()
    return {
        "losses": [[record.metrics["val_loss"] for record in hook.history] for hook in hooks],
        "weights": [plain(handler.ema_model.state_dict()) for handler in handlers],
        "momentum": [getattr(trainer.state, name) for name in names],
        "best": [hook.best and hook.best.score for hook in hooks],
    }


WARMING = {"momentum_warmup": 0.9, "warmup_iters": 10}
AVERAGES: dict[str, dict[str, Any]] = {
    "copy": {},
    "update": {"buffers": "update"},
    "ema_train": {"buffers": "ema_train"},
    "warming up": WARMING,
    "every 3": {"every": 3, **WARMING},
    "attached after keep_last": {"attach": "last", **WARMING},
    "named as well": {"named": True, **WARMING},
    "two": {"other": True},
    "momentum of the user's": {"momentum_of_user": True},
}


@pytest.mark.filterwarnings("ignore:Attribute 'ema_momentum'")
@pytest.mark.parametrize("options", AVERAGES.values(), ids=AVERAGES)
def test_averaged_weights_go_on(options: dict[str, Any], tmp_path: Path) -> None:
    whole = averaged(tmp_path / "whole", **options)
    for iteration in (5, 10, 13):
        folder = tmp_path / str(iteration)
        averaged(folder, die=Events.ITERATION_COMPLETED(once=iteration), **options)
        assert averaged(folder, **options) == whole


def test_an_average_that_no_hook_evaluates_goes_on(tmp_path: Path) -> None:
    def run(folder: Path, epochs: int) -> Any:
        torch.manual_seed(0)
        model = nn.Linear(1, 1)

        def step(engine: Engine, batch: Any) -> None:
            with torch.no_grad():
                model.weight += 1.0

        trainer, handler = Engine(step), EMAHandler(model, 0.5)
        hook = hook_of(model, [0.5], folder).attach(trainer)
        hook.keep_last({"model": model})
        handler.attach(trainer, "my_momentum")
        trainer.run([0, 1], max_epochs=epochs)
        hook.detach()
        return plain(handler.ema_model.state_dict())

    run(tmp_path / "run", 2)
    assert run(tmp_path / "run", 4) == run(tmp_path / "whole", 4)


def test_an_average_that_the_file_does_not_know_begins_with_the_loaded_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    averaged(tmp_path, die=Events.EPOCH_STARTED(once=3))
    file = tmp_path / "last_hook0.pt"
    content = torch.load(file, weights_only=True)
    del content["averaged"]
    torch.save(content, file)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    trainer, handler = Engine(lambda engine, batch: None), EMAHandler(model, 0.2)
    hook = EvalHook(
        [(X, Y)], create_evaluator(model, loss_fn=nn.CrossEntropyLoss()), save_best="val_loss",
        out_dir=tmp_path, context=handler, name="hook0",
    )  # fmt: skip
    hook.attach(trainer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert hook.keep_last({"model": model, "optimizer": optimizer})
    assert "no averaged weights of the EMAHandler of the hook 'hook0'" in caplog.text
    assert plain(handler.ema_model.state_dict()) == plain(content["model"])


# A long history ----------------------------------------------------------------------------------


def long_run(folder: Path, die: Any = None) -> EvalHook:
    model, trainer = nn.Linear(1, 1), Engine(lambda engine, batch: None)
    table = [0.1, float("nan"), 0.5, 0.25]
    hook = hook_of(model, table, folder, by_epoch=False, on_bad_score="skip").attach(trainer)
    hook.keep_last({"model": model}, every=10)
    if die is not None:
        trainer.add_event_handler(die, kill)
    with contextlib.suppress(Kill):
        trainer.run(range(150), max_epochs=2)
    hook.detach()
    return hook


def test_a_long_history_costs_a_save_no_more_than_a_short_one_and_comes_back(
    tmp_path: Path,
) -> None:
    whole, known = long_run(tmp_path / "whole"), 290
    long_run(tmp_path / "run", die=Events.ITERATION_COMPLETED(once=known + 4))
    content = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    past, *rest = content["eval_hook"]["history"]
    # Of the long past a file holds the bytes, and a save walks through the few records behind it.
    assert len(rest) == known % PACKED
    lines = bytes(past.tolist()).decode().splitlines()
    rows = [row for line in lines for row in json.loads(line)]
    assert [row["iteration"] for row in rows] == list(range(1, known - len(rest) + 1))
    hook = long_run(tmp_path / "run")
    assert of(hook) == of(whole)
    assert repr([r.metrics for r in hook.history]) == repr([r.metrics for r in whole.history])
    state = json.loads(json.dumps(hook.state_dict()))
    assert History.from_list(state["history"]).to_list() == state["history"]
    other = hook_of(nn.Linear(1, 1), [0.1], False)
    other.load_state_dict(state)
    assert of(other) == of(whole)


@pytest.mark.parametrize(
    "past",
    [
        torch.tensor([255, 254], dtype=torch.uint8),
        torch.tensor([300.5]),
        torch.tensor(list(b"[")),
        torch.tensor(list(b"7")),
        torch.tensor(list(b'[{"epoch": 1}]')),
        torch.tensor(list(b"[" * 100_000)),
    ],
)
def test_a_damaged_past_is_refused_with_words(past: torch.Tensor, tmp_path: Path) -> None:
    long_run(tmp_path, die=Events.ITERATION_COMPLETED(once=150))
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    content["eval_hook"]["history"][0] = past
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises((CheckpointError, StateError), match="damaged"):
        long_run(tmp_path)


# Weights that are not finite ---------------------------------------------------------------------


def diverging(
    folder: Path, epochs: int, poison: Any, *, nested: bool = False, is_async: bool = False
) -> tuple[Engine, nn.Module]:
    """Train while one epoch makes a weight NaN or infinite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    model.register_buffer("mask", torch.tensor([0.0, -math.inf, math.nan]))  # as it has to be
    model.register_parameter("huge", nn.Parameter(torch.full((4,), 3e38)))

    def step(engine: Engine, batch: Any) -> float:
        with torch.no_grad():
            model[0].weight += 1.0
            if engine.state.iteration in poison:
                poison[engine.state.iteration](model)
        return float(model[0].weight.detach().sum())

    trainer = Engine(step)
    best = BestCheckpoint({"model": model}, folder, async_save=is_async)
    hook = hook_of(model, [0.5], None, checkpoint=best).attach(trainer)
    hook.keep_last({"nets": [{"net": model}]} if nested else {"net": model})
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    trainer.run([0], max_epochs=epochs)
    hook.detach()
    return trainer, model


def set_nan(model: Any) -> None:
    model[0].weight.fill_(math.nan)


def set_infinite(model: Any) -> None:
    model[0].weight.fill_(math.inf)


def set_statistics(model: Any) -> None:
    model[1].running_var.fill_(math.nan)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("poison", [set_nan, set_infinite, set_statistics])
def test_weights_that_are_not_finite_replace_no_last_checkpoint(
    poison: Any, nested: bool, is_async: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def go(epochs: int, poisons: Any) -> tuple[Engine, nn.Module]:
        return diverging(tmp_path, epochs, poisons, nested=nested, is_async=is_async)

    trainer, _ = go(9, {3: poison})
    assert trainer.state.iteration == (9 if poison is set_statistics else 3)
    file = torch.load(tmp_path / "last.pt", weights_only=True)
    assert file["trainer"]["iteration"] == 2
    net = file["nets"][0]["net"] if nested else file["net"]
    assert net["0.weight"].isfinite().all()
    assert net["1.running_var"].isfinite().all()
    words = [r.getMessage() for r in caplog.records if "not finite" in r.getMessage()]
    assert len(words) == 1
    name = "1.running_var" if poison is set_statistics else "0.weight"
    place = "nets.0.net" if nested else "net"
    assert f"weights are not finite at epoch 3 (iteration 3): {place}.{name}; last.pt" in words[0]
    trainer, model = go(5, {})  # with a smaller learning rate, say
    assert trainer.state.iteration == 5
    file = torch.load(tmp_path / "last.pt", weights_only=True)
    assert file["trainer"]["iteration"] == 5
    assert plain(model.state_dict())["0.weight"] == plain(net["0.weight"] + 3.0)


def test_weights_that_recover_are_kept_again(tmp_path: Path) -> None:
    def undo(model: Any) -> None:
        model[1].running_var.fill_(1.0)

    diverging(tmp_path, 5, {2: set_statistics, 4: undo})
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 5


FINITE: list[tuple[torch.Tensor, bool]] = [
    (torch.ones(3), True),
    (torch.full((9,), 3e38), True),  # their sum overflows
    (torch.full((9,), 6e4, dtype=torch.float16), True),
    (torch.full((9,), 1e300, dtype=torch.float64), True),
    (torch.tensor([1.0, math.nan], dtype=torch.bfloat16), False),
    (torch.tensor([math.inf, -math.inf]), False),
    (torch.tensor([1.0, math.inf], dtype=torch.float64), False),
    (torch.tensor([complex(0.0, math.nan)]), False),
    (torch.tensor([complex(0.0, 1.0)]).conj(), True),
    (torch.tensor([math.nan]).to(torch.float8_e5m2), False),
    (torch.tensor([1]), True),
    (torch.empty(0), True),
    (torch.tensor(math.nan), False),
    (torch.tensor([math.nan]).to_sparse(), True),  # left alone
    (nn.UninitializedParameter(), True),
]


@pytest.mark.parametrize(("tensor", "finite"), FINITE)
def test_what_is_finite(tensor: torch.Tensor, finite: bool) -> None:
    assert not_finite({"a": {"b": tensor}, "c": torch.ones(1)}) == (set() if finite else {"a.b"})


# Other training data than before -----------------------------------------------------------------

ALL = TensorDataset(torch.arange(12.0).reshape(12, 1))


def fold(
    folder: Path, data: Any, *, epochs: int = 2, patience: int | None = None, **options: Any
) -> list[int]:
    """Do what is in the body of somebody's loop over folds; return the iterations trained."""
    trained: list[int] = []
    model, trainer = nn.Linear(1, 1), Engine(lambda engine, batch: None)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: trained.append(engine.state.iteration)
    )
    hook = hook_of(model, [0.5], folder, **options).attach(trainer)
    if patience is not None:
        hook.early_stopping(patience)
    hook.keep_last({"model": model})
    try:
        trainer.run(data, max_epochs=epochs)
    finally:
        hook.detach()
    return trained


PARTS: dict[str, Callable[[int], Any]] = {
    "subset": lambda k: DataLoader(Subset(ALL, [*range(8 * k % 12, 8 * k % 12 + 4)]), 2),
    "nested subset": lambda k: DataLoader(Subset(Subset(ALL, [*range(k, k + 4)]), range(4)), 2),
    "indices of NumPy": lambda k: DataLoader(Subset(ALL, numpy.arange(k, k + 4)), 2),
    "sampler": lambda k: DataLoader(ALL, 2, sampler=SubsetRandomSampler(range(k, k + 4))),
    "tensors": lambda k: DataLoader(TensorDataset(ALL.tensors[0][k : k + 4]), 2),
    "list": lambda k: [ALL.tensors[0][k : k + 2], ALL.tensors[0][k + 2 : k + 4]],
}


@pytest.mark.parametrize("patience", [None, 1])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_loop_over_folds_in_one_folder_is_refused(
    part: Callable[[int], Any], patience: int | None, tmp_path: Path
) -> None:
    epochs = 2 if patience is None else 5
    assert fold(tmp_path, part(0), epochs=epochs, patience=patience) == [1, 2, 3, 4]
    words = (
        r"this process has trained to its end, on other data, .* loop over folds.* folder of its "
        r"own, out_dir=f'runs/fold\{k\}'; keep_last\(\.\.\., resume=False\) starts anew"
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StateError, match=words):
        fold(tmp_path, part(1), epochs=epochs, patience=patience)
    assert sorted(tmp_path.rglob("*")) == before
    # A folder for each, as the error says; and more epochs in this one.
    for k in range(3):
        folder = tmp_path / f"fold{k}"
        assert len(fold(folder, part(k), epochs=epochs, patience=patience)) == 4
    patience = None if patience is None else 4
    assert fold(tmp_path, part(0), epochs=epochs + 1, patience=patience)[:2] == [5, 6]


@pytest.mark.parametrize("patience", [None, 1])
def test_a_cell_that_is_run_again_ends_at_once_and_says_why(
    patience: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    epochs = 2 if patience is None else 5
    fold(tmp_path, PARTS["subset"](0), epochs=epochs, patience=patience)
    assert "folds" not in caplog.text
    for _ in range(2):
        caplog.clear()
        assert fold(tmp_path, PARTS["subset"](0), epochs=epochs, patience=patience) == []
        assert "this process has trained that run to its end; in a loop over folds" in caplog.text
    _ended.clear()  # as in another process
    caplog.clear()
    assert fold(tmp_path, PARTS["subset"](1), epochs=epochs, patience=patience) == []
    assert "folds" not in caplog.text
    assert fold(tmp_path, PARTS["subset"](0), epochs=epochs + 2, patience=9)[0] == 5


def test_other_lengths_of_the_training_loader_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(batches: int, epochs: int, length: int | None = None) -> tuple[int, list[str]]:
        model, trainer = nn.Linear(1, 1), Engine(lambda engine, batch: None)
        hooks = [hook_of(model, [0.5], tmp_path, name=n).attach(trainer) for n in ("a", "b", "c")]
        hooks[1].keep_last({"model": model})
        if length is not None:
            trainer.state.epoch_length = length
        caplog.clear()
        trainer.run(DataLoader(TensorDataset(torch.zeros(batches)), 1), max_epochs=epochs)
        for hook in hooks:
            hook.detach()
        return trainer.state.iteration, [
            r.getMessage() for r in caplog.records if "batches" in r.getMessage()
        ]

    assert run(3, 1) == (3, [])
    assert run(3, 2) == (6, [])
    iteration, [words] = run(5, 3)
    assert iteration == 9
    assert words.startswith(
        "b: the training data have 5 batches, in the loaded run they had 3; an epoch stays at 3 it"
    )
    iteration, [words] = run(4, 5, length=4)
    assert iteration == 9 + 2 * 4
    assert run(4, 6, length=4)[1] == []
