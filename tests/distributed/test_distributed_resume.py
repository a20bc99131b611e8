"""Runs on several ranks that are killed and resumed end as if they had never been stopped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.metrics import Accuracy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from helpers.ranks import die, on_ranks
from ignite_evalhook import EvalHook, create_evaluator

CRITERION = nn.CrossEntropyLoss()
EPOCHS = 5


@dataclass(frozen=True)
class Kill:
    """Where a run is killed: on every rank, before or after the hook's handlers of an event."""

    event: Any
    epoch: int
    before: bool = True


@dataclass(frozen=True)
class Setup:
    """How a run goes."""

    patience: int | None = None
    hooks: int = 1
    interval: Any = 1
    by_epoch: bool = True


def samples(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=generator)
    return TensorDataset(x, (x.sum(dim=1) + 0.3 * x[:, 0] > 0).long())


def train(rank: int, world: int, out_dir: Path, setup: Setup, kill: Kill | None) -> Any:
    """Train with dropout, shuffling and BatchNorm; return all that must repeat."""
    torch.manual_seed(10 + rank)
    model: nn.Module = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
    )
    if world > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    trainer = create_supervised_trainer(model, optimizer, CRITERION)
    data = samples(16)
    sampler = DistributedSampler(data, world, rank, shuffle=True)
    loader = DataLoader(data, batch_size=4, sampler=sampler)
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: sampler.set_epoch(engine.state.epoch)
    )

    def bomb(engine: Engine) -> None:
        if kill is not None and engine.state.epoch == kill.epoch:
            die()

    if kill is not None and kill.before:
        trainer.add_event_handler(kill.event, bomb)
    hooks = []
    for number in range(setup.hooks):
        hook = EvalHook(
            DataLoader(samples(7), batch_size=2),
            create_evaluator(model, metrics={"accuracy": Accuracy()}, loss_fn=CRITERION),
            model=model,
            interval=setup.interval,
            by_epoch=setup.by_epoch,
            save_best=["val_loss", "accuracy"] if number == 0 else "accuracy",
            n_saved=2,
            out_dir=out_dir,
            name="val" if number == 0 else f"val{number}",
        )
        hooks.append(hook.attach(trainer))
    if setup.patience is not None:
        hooks[0].early_stopping(setup.patience, metric="accuracy")
    objects = {"model": model, "optimizer": optimizer}
    if setup.hooks > 1:
        objects["second"] = hooks[1]  # type: ignore[assignment]
    resumed = hooks[0].keep_last(objects)
    if kill is not None and not kill.before:
        trainer.add_event_handler(kill.event, bomb)
    trainer.run(loader, max_epochs=EPOCHS)
    return {
        "resumed": resumed,
        "epoch": trainer.state.epoch,
        "history": [[{**r.to_dict(), "seconds": 0} for r in hook.history] for hook in hooks],
        "best": [str(hook.best) for hook in hooks],
        "bests": [str(hook.bests) for hook in hooks],
        "weights": digest([*model.state_dict().values()]),
        "random": digest([torch.get_rng_state()]),
    }


def digest(tensors: list[torch.Tensor]) -> str:
    summed = hashlib.sha256()
    for tensor in tensors:
        summed.update(bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist()))
    return summed.hexdigest()


def files(folder: Path) -> dict[str, str]:
    """Return a digest of each file, but for the seconds, which do not repeat."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            text = json.dumps([{**row, "seconds": 0, "run_id": ""} for row in rows]).encode()
        elif file.name.startswith("best") and file.suffix == ".pt":
            text = file.read_bytes()
        else:
            text = b""
        found[str(file.relative_to(folder))] = hashlib.sha256(text).hexdigest()
    return found


def without_rank(told: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in told.items() if k not in ("random", "weights")}


KILLS = [
    Kill(Events.ITERATION_COMPLETED, 3),
    Kill(Events.EPOCH_COMPLETED, 3),
    Kill(Events.EPOCH_COMPLETED, 3, before=False),
    Kill(Events.EPOCH_STARTED, 2, before=False),
    Kill(Events.ITERATION_COMPLETED, 1),
]


@pytest.mark.parametrize(
    ("setup", "kills"),
    [
        (Setup(), KILLS),
        (Setup(patience=2, hooks=2), KILLS[:2]),
        (Setup(interval=1, by_epoch=False), KILLS[:2]),
    ],
    ids=["one hook", "two hooks, early stopping", "by iteration"],
)
def test_a_run_on_two_ranks_that_was_killed_ends_like_one_that_was_not(
    setup: Setup, kills: list[Kill], tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    unbroken = on_ranks(2, train, 2, whole, setup, None)
    assert without_rank(unbroken[0]) == without_rank(unbroken[1])
    assert unbroken[0]["random"] != unbroken[1]["random"]
    for number, kill in enumerate(kills):
        folder = tmp_path / str(number)
        outcomes = on_ranks(2, train, 2, folder, setup, kill, check=False)
        assert [outcome.code for outcome in outcomes] == [-9, -9], kill
        told = on_ranks(2, train, 2, folder, setup, None)
        for rank, one in enumerate(told):
            moved = json.loads(json.dumps(one).replace(str(folder), str(whole)))
            assert moved == {**unbroken[rank], "resumed": moved["resumed"]}, (kill, rank)
        assert files(folder) == files(whole), kill
    assert moved["resumed"] is (kills[-1].epoch > 1)


def test_a_run_goes_on_at_another_number_of_ranks(tmp_path: Path) -> None:
    kill = Kill(Events.ITERATION_COMPLETED, 4)
    on_ranks(2, train, 2, tmp_path, Setup(), kill, check=False)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    before = [json.loads(line)["metrics"] for line in lines]
    assert len(before) == 3
    for world in (3, 1):
        told = on_ranks(world, train, world, tmp_path, Setup(), kill if world == 3 else None,
                        check=False)  # fmt: skip
        if world == 3:  # killed again at the same place
            continue
        assert told[0].value["resumed"]
        history = told[0].value["history"][0]
        assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5]
        assert [record["metrics"] for record in history[:3]] == before


def clocked(rank: int, seconds: int) -> Any:
    """Evaluate by rank 0's clock; those of the others say nonsense."""
    model = nn.Linear(4, 2)
    time = 0.0
    looks = 0

    def step(engine: Engine, batch: Any) -> None:
        nonlocal time
        time += 1.0 if engine.state.iteration < 200 else 3.0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return time if rank == 0 else float(rank * 1e6)

    trainer = Engine(step)
    hook = EvalHook(
        DataLoader(samples(7), batch_size=2), create_evaluator(model, loss_fn=CRITERION),
        interval=timedelta(seconds=seconds), clock=clock,
    )  # fmt: skip
    hook.attach(trainer)
    trainer.run(list(range(300)), max_epochs=1)
    return [record.iteration for record in hook.history], looks


def test_a_schedule_by_time_follows_the_clock_of_rank_0() -> None:
    told = on_ranks(3, clocked, 10)
    assert told[0][0] == told[1][0] == told[2][0]
    at = told[0][0]
    # While training keeps its speed, on time; when it becomes slower, late by what was predicted.
    assert at[:19] == list(range(10, 200, 10))
    assert {later - earlier for earlier, later in pairwise(at[20:])} == {4}
    # The longer the time, the fewer the iterations at which ranks meet to look at the clock.
    at, looks = on_ranks(2, clocked, 60)[0]
    assert at[:3] == [60, 120, 180]
    assert looks < 100
