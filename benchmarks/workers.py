"""The row about data workers: short evaluations that start them anew each time, or keep them."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.metrics import Loss
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ignite_evalhook import EvalHook, create_evaluator

from .loops import FEATURES, Slow
from .peers import OURS
from .table import Row, row
from .timing import Effort, interleaved, ratios

TRAIN, VAL, STEP = 0.2, 20, 0.002  # seconds of training, batches, seconds a batch


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Samples that are made on access."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.full((FEATURES,), float(index)), torch.tensor(index % 2)


def loader(persistent: bool) -> DataLoader[Any]:
    """Return a loader with two workers."""
    return DataLoader(Samples(4 * VAL), 4, num_workers=2, persistent_workers=persistent)


def trainer() -> Engine:
    """Return an engine whose epoch of one iteration takes its time."""
    model = Slow(TRAIN)
    return Engine(lambda engine, batch: model(torch.zeros(1, FEATURES)))


def with_ours(persistent: bool, epochs: int) -> Callable[[], None]:
    """Return a whole run, evaluated by a hook after each epoch."""

    def run() -> None:
        evaluator = create_evaluator(Slow(STEP), loss_fn=nn.CrossEntropyLoss())
        engine = trainer()
        EvalHook(loader(persistent), evaluator, preflight=False).attach(engine)
        engine.run([0], max_epochs=epochs)

    return run


def with_ignite(persistent: bool, epochs: int) -> Callable[[], None]:
    """Return the same with Ignite's own evaluator."""

    def run() -> None:
        evaluator = create_supervised_evaluator(Slow(STEP), {"loss": Loss(nn.CrossEntropyLoss())})
        engine, data = trainer(), loader(persistent)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(data))
        engine.run([0], max_epochs=epochs)

    return run


def workers(effort: Effort) -> list[Row]:
    """Compare whole runs: persistent workers beside those that are started anew."""
    epochs = effort.of(10)
    logging.getLogger("ignite_evalhook").setLevel(logging.ERROR)
    contenders = {
        (who, persistent): make(persistent, epochs)
        for who, make in ((OURS, with_ours), ("ignite", with_ignite))
        for persistent in (False, True)
    }
    named = {f"{who} {persistent}": run for (who, persistent), run in contenders.items()}
    times = interleaved(named, effort.repetitions)
    shown = {who: ratios(times[f"{who} True"], times[f"{who} False"]) for who in (OURS, "ignite")}
    each = 1e3 * statistics.median(times[f"{OURS} False"]) / epochs
    note = f"{each:.0f} ms an epoch with its evaluation"
    return [
        row("short evaluations, 2 workers: persistent", "whole run, started anew = 1",
            shown.pop(OURS), shown, target=0.82, note=note),
    ]  # fmt: skip
