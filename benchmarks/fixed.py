"""Measure what one evaluation costs apart from its batches, beside Ignite by hand.

``python benchmarks/fixed.py`` evaluates a single small batch, again and again, with a hook that
is attached to a trainer: validation loss, history, events, no files.  Ignite's row is its
``create_supervised_evaluator`` with a ``Loss``, run by hand, which moves random generators, and
remembers nothing.  *By hand* is forward pass and loss between ``eval()`` and ``train()``.  All
three take turns; the median is printed with its quartiles, in µs, and ours as a multiple of
Ignite's of the same turn.

A second table says what the 10,000th evaluation costs beside the first hundred.

The clock is the processor time of this process: the machine may be busy with other things, which
moves all rows alike (caches), but is not counted.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import ignite
import numpy.random  # as in most programs: its generator has to be remembered
import torch
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.metrics import Loss
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ignite_evalhook import EvalHook, EvalRecord, create_evaluator

Run = Callable[[], Any]
CRITERION = nn.CrossEntropyLoss()
X, Y = torch.randn(4, 8), torch.randint(0, 4, (4,))


def hooked(model: nn.Module, data: Iterable[Any], **settings: Any) -> tuple[Run, EvalHook, Engine]:
    """Return what completes one more epoch of a trainer, each of which is evaluated."""
    trainer = Engine(lambda engine, batch: None)
    evaluator = create_evaluator(model, loss_fn=CRITERION)
    hook = EvalHook(data, evaluator, preflight=False, **settings).attach(trainer)
    trainer.run([0], max_epochs=1)
    (handler,) = (
        h
        for h, _, _ in trainer._event_handlers[Events.EPOCH_COMPLETED]
        if h.__self__ is hook._session
    )

    def once() -> None:
        trainer.state.epoch += 1
        trainer.state.iteration += 1
        handler(trainer)

    return once, hook, trainer


def ignite_by_hand(model: nn.Module, data: Iterable[Any]) -> Run:
    """Return what runs Ignite's own evaluator once."""
    evaluator = create_supervised_evaluator(model, metrics={"loss": Loss(CRITERION)})
    evaluator.logger.setLevel(logging.WARNING)
    return lambda: evaluator.run(data)


def by_hand(model: nn.Module, data: Iterable[Any]) -> Run:
    """Return a plain loop."""

    def once() -> None:
        model.eval()
        with torch.no_grad():
            for x, y in data:
                CRITERION(model(x), y).item()
        model.train()

    return once


def microseconds(run: Run) -> float:
    """Return the processor time of a call."""
    begin = time.process_time()
    run()
    return (time.process_time() - begin) * 1e6


def quartiles(values: list[float]) -> str:
    """Return median and quartiles as a cell."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:7.1f} [{low:.1f} .. {high:.1f}]"


def compare(name: str, model: nn.Module, data: Iterable[Any], repetitions: int) -> None:
    """Print the rows of one kind of model and data."""
    runs = {
        "ours": hooked(model, data)[0],
        "ours, save_best": hooked(model, data, save_best="val_loss", out_dir=False)[0],
        "ignite by hand": ignite_by_hand(model, data),
        "by hand": by_hand(model, data),
    }
    found: dict[str, list[float]] = {row: [] for row in runs}
    for number in range(repetitions + 30):
        for row, run in runs.items():
            taken = microseconds(run)
            if number >= 30:  # all are warm
                found[row].append(taken)
    for row, values in found.items():
        pairs = zip(values, found["ignite by hand"], strict=True)
        ratio = statistics.median(own / theirs for own, theirs in pairs)
        print(f"{name:<28} {row:<16} {quartiles(values):<28} {ratio:5.2f} of ignite")


def growth(records: int, repetitions: int) -> None:
    """Print what evaluations cost early and late in a long history."""
    rising = itertools.count()
    always_best: dict[str, Any] = {
        "derive": {"rising": lambda metrics: next(rising)},
        "save_best": "rising",
        "rule": "greater",
        "out_dir": False,
    }
    for name, settings in (("history only", {}), ("each a new best", always_best)):
        once, hook, trainer = hooked(nn.Linear(8, 4), [(X, Y)], **settings)
        early = [microseconds(once) for _ in range(repetitions)]
        at = hook.history[-1].iteration
        for number in range(at + 1, at + 1 + records):
            hook.history.append(EvalRecord(number, number, {"val_loss": 1.0}, ("val_loss",), True))
        trainer.state.epoch = trainer.state.iteration = at + records
        late = [microseconds(once) for _ in range(repetitions)]
        ratio = statistics.median(late) / statistics.median(early)
        print(f"{name:<28} after {records} records: {quartiles(late)}, {ratio:.2f} of the first")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=800)
    parser.add_argument("--records", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ignite_evalhook").setLevel("WARNING")
    versions = f"torch {torch.__version__}, ignite {ignite.__version__}"
    print(f"Python {platform.python_version()}, {versions}, numpy {numpy.__version__}")
    norm = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    compare("linear, a list", nn.Linear(8, 4), [(X, Y)], args.repetitions)
    compare("with BatchNorm, a list", norm, [(X, Y)], args.repetitions)
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    compare("linear, a DataLoader", nn.Linear(8, 4), loader, args.repetitions)
    growth(args.records, args.repetitions)


if __name__ == "__main__":
    main()
