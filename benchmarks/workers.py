"""Compare whole runs with short evaluations whose data comes from two workers.

``python benchmarks/workers.py`` prints, as ratios to a hand-written loop that starts its workers
for each evaluation, what a run takes

- by hand with ``persistent_workers=True``;
- with a hook, either way, also where predictions are collected from a shuffled loader;
- without data workers, all batches being at hand: what nobody can go below.

An epoch trains for 100 ms, and an evaluation has 16 batches of 1 ms.  Repetitions are interleaved,
so that what else the machine does meets all alike; the median is printed with its quartiles.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import ignite
import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ignite_evalhook import EvalHook, create_evaluator

TRAIN, STEP, BATCHES = 0.1, 0.001, 16


def busy(seconds: float) -> None:
    """Compute for some time."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


class Model(nn.Module):
    """A model that takes 1 ms a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits of shape (batch, 4)."""
        busy(STEP)
        y: Tensor = self.layer(x)
        return y


def loader(*, persistent: bool, shuffle: bool = False) -> DataLoader[Any]:
    """Return a loader with two workers."""
    data = TensorDataset(torch.randn(4 * BATCHES, 8), torch.randint(0, 4, (4 * BATCHES,)))
    return DataLoader(data, 4, shuffle=shuffle, num_workers=2, persistent_workers=persistent)


def by_hand(batches: Iterable[Any], epochs: int) -> None:
    """Train and evaluate in a plain loop."""
    model, criterion = Model(), nn.CrossEntropyLoss()
    for _ in range(epochs):
        busy(TRAIN)
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for x, y in batches:
                total += criterion(model(x), y).item() * len(x)
                count += len(x)
        model.train()


def count_all(results: list[Any]) -> dict[str, float]:
    """Look at all predictions."""
    return {"count": len(results)}


def by_hook(batches: Iterable[Any], epochs: int, **options: Any) -> None:
    """Train with a hook."""
    trainer = Engine(lambda engine, batch: busy(TRAIN))
    evaluator = create_evaluator(Model(), loss_fn=nn.CrossEntropyLoss())
    EvalHook(batches, evaluator, preflight=False, **options).attach(trainer)
    trainer.run([0], max_epochs=epochs)


def seconds(function: Callable[[], Any]) -> float:
    """Return how long a call takes, up to the end of all workers."""
    begin = time.perf_counter()
    function()
    gc.collect()  # a hook and its trainer know each other
    return time.perf_counter() - begin


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ignite_evalhook").setLevel("WARNING")
    epochs, collect = args.epochs, {"compute_metrics": count_all}
    at_hand = list(loader(persistent=True))
    runs: dict[str, Callable[[], None]] = {
        "by hand, started anew": lambda: by_hand(loader(persistent=False), epochs),
        "by hand, persistent": lambda: by_hand(loader(persistent=True), epochs),
        "by hand, no workers": lambda: by_hand(at_hand, epochs),
        "hook, started anew": lambda: by_hook(loader(persistent=False), epochs),
        "hook, persistent": lambda: by_hook(loader(persistent=True), epochs),
        "hook, persistent, predictions of a shuffled loader": lambda: by_hook(
            loader(persistent=True, shuffle=True), epochs, **collect
        ),
    }
    versions = f"torch {torch.__version__}, ignite {ignite.__version__}"
    load = os.getloadavg()[0]
    print(
        f"Python {platform.python_version()}, {versions}, {os.cpu_count()} cores, load {load:.1f}"
    )
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repetitions):
        for name, run in runs.items():
            times[name].append(seconds(run))
    base = times["by hand, started anew"]
    print(f"{f'{epochs} epochs':<52} median  [quartiles]")
    for name, own in times.items():
        low, middle, high = statistics.quantiles(
            (one / other for one, other in zip(own, base, strict=True)), n=4
        )
        note = f"{statistics.median(own) / epochs * 1e3:.0f} ms an epoch"
        print(f"{name:<52} {middle:6.3f}  [{low:.3f} .. {high:.3f}]  {note}")


if __name__ == "__main__":
    main()
